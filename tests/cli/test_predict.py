"""`umscale predict`, `umscale optimal`, `umscale fit --check` and what tables they take."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.test_fit import Cli
from tests.laws.tables import study_table
from tests.questions.test_optimal import iso_table
from tests.questions.test_predict import scaling_table


@pytest.fixture
def cli(monkeypatch, capsys):
    return Cli(monkeypatch, capsys)


@pytest.fixture
def table(tmp_path: Path) -> str:
    columns = scaling_table(0, noise=0.003)
    path = tmp_path / "runs.csv"
    pd.DataFrame(
        {"params": columns["active_params"], "seen": columns["tokens"], "miou": 1 - columns["loss"] / 10}
    ).to_csv(path, index=False)
    return str(path)


MAP = "N=params,D=seen,loss=10*(1-miou),C=6*N*D"


def test_predictions_of_a_formula_a_loss_of_its_own_and_a_saved_fit_agree(
    cli: Cli, table: str, tmp_path: Path
) -> None:
    at = ("--at", "N=1B,10B,D=20B")
    (direct,) = cli.json("predict", table, "--law", "chinchilla", "--map", MAP, "--draws", "50", *at)
    assert [p["at"] for p in direct["points"]] == [{"N": 1e9, "D": 2e10}, {"N": 1e10, "D": 2e10}]
    assert direct["loss"] == "10*(1-miou)"
    out, err, code = cli("fit", table, "--law", "chinchilla", "--map", MAP, "--draws", "0", "--json")
    assert code == 0, err
    saved = tmp_path / "fit.json"
    saved.write_text(out)
    (again,) = cli.json("predict", str(saved), "--draws", "50", *at)
    for one, other in zip(direct["points"], again["points"], strict=True):
        assert other["loss"] == pytest.approx(one["loss"])
        assert other["run"] == pytest.approx(one["run"])
        assert one["run"]["low"] < one["loss"]["low"] < one["loss"]["value"] < one["run"]["high"]


def test_points_of_a_table_and_what_is_missing(cli: Cli, table: str, tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    points.write_text("N,D\n1e9,2e10\n3e9,2e10\n")
    options = ("--law", "chinchilla", "--map", MAP, "--draws", "50")
    (found,) = cli.json("predict", table, *options, "--points", str(points))
    assert len(found["points"]) == 2
    assert "--at" in cli.refusal("predict", table, *options)
    assert "name a law" in cli.refusal("predict", table, "--at", "N=1B,D=1B")
    assert "leave out --at" in cli.refusal("predict", table, *options, "--rollout", "C", "--at", "N=1")
    (rolled,) = cli.json("predict", table, *options, "--rollout", "C")
    assert rolled["axis"] == "C"
    assert any(step["held"] for step in rolled["steps"])


def test_a_seal_is_checked_against_what_came_later(cli: Cli, tmp_path: Path) -> None:
    columns = study_table(0, budgets=(1_000_000, 2_000_000, 4_000_000), seeds=2, block_noise=0.0)
    frame = pd.DataFrame({name: list(column) for name, column in columns.items()})
    path, seal = tmp_path / "runs.csv", tmp_path / "seal.json"
    early = frame[frame.tokens < 3e6]
    early.to_csv(path, index=False)
    options = ("--law", "trend", "--stage", "annealed", "--map", "m=top_m,N_s=sparse_params,D=tokens")
    out, err, code = cli(
        "predict", str(path), *options, "--at", "tokens=4M", "--draws", "300", "--seal", str(seal)
    )
    assert code == 0, err
    assert "sealed 12 predictions" in err
    out, _, _ = cli("fit", str(path), "--check", str(seal))
    assert "12 of 12 predictions have no record yet" in out
    frame.to_csv(path, index=False)
    found = cli.json("fit", str(path), "--check", str(seal))
    (score,) = found["scores"]
    assert (score["records"], found["records_missing"]) == (24, 0)
    assert score["calibrated"] == [20, 24]
    out, _, _ = cli("fit", str(path), "--check", str(seal))
    assert re.search(r"20 to 24", out)
    tree = json.loads(seal.read_text())
    tree["parts"][0]["points"][0]["run"]["low"] = 0.0
    seal.write_text(json.dumps(tree))
    assert "changed after it was sealed" in cli.refusal("fit", str(path), "--check", str(seal))


def test_optimal_prints_both_ways(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "iso.csv"
    pd.DataFrame(iso_table(noise=0.002)).rename(columns={"active_params": "N", "tokens": "D"}).to_csv(
        path, index=False
    )
    out, err, code = cli("optimal", str(path), "--compute", "1e20,1e22", "--draws", "50")
    assert (code, err) == (0, "")
    assert "parabolas: N* ∝ C^" in out
    assert "on this law's own surface" in out
    (found,) = cli.json("optimal", str(path), "--draws", "50")
    assert len(found["by_parabolas"]["vertices"]) == 5
    assert found["by_law"]["optima"][0]["tokens_per_parameter"]["value"] > 1


def test_options_of_the_fit_for_odd_tables(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    columns = scaling_table(0, noise=0.003)
    frame = pd.DataFrame({"N": columns["active_params"], "D": columns["tokens"], "loss": columns["loss"]})
    frame["corpus"] = ["a", "b", "c"] * 10
    frame["half"] = ["x"] * 15 + ["y"] * 15
    frame["se"] = 0.01
    frame.to_csv(path, index=False)
    law = "E + A*N**-a + B*D**-b"
    tokens = "E + B*D**-b"
    out, _, code = cli("fit", str(path), "--law", tokens, "--by", "corpus,half", "--draws", "0")
    assert code == 0
    assert re.search(r"corpus +half +rows", out)
    found = cli.json("fit", str(path), "--law", law, "--by", "corpus", "--each", "E", "--draws", "0")
    assert set(found["fits"][0]["coefficients"]) == {"E_a", "E_b", "E_c", "A", "a", "B", "b"}
    weighted = cli.json("fit", str(path), "--law", law, "--error", "se", "--above", "0.5", "--draws", "0")
    objective = weighted["fits"][0]["objective"]
    assert (objective["error"], objective["above"]) == ("se", 0.5)
    assert "no column 'foo'" in cli.refusal("fit", str(path), "--law", "E + A*foo**-a")
    assert "RMSE, nats" not in cli("fit", str(path), "--law", law, "--draws", "0")[0]
    assert (
        "RMSE, nats"
        in cli("fit", str(path), "--law", law, "--draws", "0", "--unit", "loss=nats per token")[0]
    )
