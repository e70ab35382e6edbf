"""`umscale fit` on tables: published coefficients through the command line, its JSON, and what it refuses."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from umscale.laws.forms import LAWS, evaluate
from umscale_cli.main import main
from umscale_cli.runs import open_store

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = Path(os.environ.get("UMSCALE_PUBLISHED", ROOT.parent / "shared" / "data" / "published"))
ROUTED = str(ROOT / "tests" / "external" / "routed_clark2022.csv")
ROUTED_MAP = "N=dense_parameter_count,experts=num_experts,loss=loss_validation"
TRUTH = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37}


class Cli:
    """The command as its entry point runs it: output, error lines, exit code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.setenv("COLUMNS", "200")

    def __call__(self, *arguments: str) -> tuple[str, str, int]:
        self.monkeypatch.setattr(sys, "argv", ["umscale", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = self.capsys.readouterr()
        return out, err, int(left.value.code or 0)

    def json(self, *arguments: str) -> dict:
        out, err, code = self(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    def refusal(self, *arguments: str) -> str:
        """The one line with which it refuses."""
        out, err, code = self(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("umscale: ")
        return err


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture
def chinchilla() -> str:
    path = PUBLISHED / "chinchilla_figure4.csv"
    if not path.exists():
        pytest.skip("the digitised table is not here; UMSCALE_PUBLISHED names its folder")
    return str(path)


@pytest.fixture(scope="module")
def table() -> dict[str, np.ndarray]:
    """A 6 × 5 grid with 0.2% noise, two rows a run, and a column that splits it."""
    rng = np.random.default_rng(7)
    n, d = (a.ravel() for a in np.meshgrid(10.0 ** np.linspace(7, 10, 6), 10.0 ** np.linspace(9, 12, 5)))
    loss = TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]
    return {
        "params": n,
        "seen": d,
        "final": loss * np.exp(0.002 * rng.standard_normal(len(n))),
        "run": np.array([f"r{i // 2}" for i in range(len(n))], dtype=object),
        "kind": np.array(["a", "b"] * (len(n) // 2), dtype=object),
    }


@pytest.fixture(params=["csv", "tsv", "parquet", "jsonl", "csv.gz"])
def file(request: pytest.FixtureRequest, table: dict[str, np.ndarray], tmp_path: Path) -> str:
    path = tmp_path / f"table.{request.param}"
    if request.param == "parquet":
        pq.write_table(pa.table({name: pa.array(list(column)) for name, column in table.items()}), path)
    else:
        import pandas as pd

        frame = pd.DataFrame(table)
        if request.param == "jsonl":
            frame.to_json(path, orient="records", lines=True, double_precision=15)
        else:
            frame.to_csv(path, index=False, sep="\t" if request.param == "tsv" else ",")
    return str(path)


@pytest.fixture
def csv(table: dict[str, np.ndarray], tmp_path: Path) -> str:
    import pandas as pd

    path = tmp_path / "t.csv"
    pd.DataFrame(table).to_csv(path, index=False)
    return str(path)


MAP = "N=params,D=seen,loss=final"


def values(fit: dict) -> dict[str, float]:
    return {name: one["value"] for name, one in fit["coefficients"].items()}


# -- published tables ------------------------------------------------------------------------------------


def test_chinchilla_table(cli: Cli, chinchilla: str) -> None:
    fit = cli.json("fit", chinchilla, "--law", "chinchilla", "--where", "outlier5 == 0")["fits"][0]
    assert fit["rows"] == 240
    assert fit["objective"]["value"] == pytest.approx(0.00101827401780, rel=1e-8)
    expected = {"A": 477.826, "B": 2143.417, "E": 1.817218, "alpha": 0.347310, "beta": 0.367172}
    assert values(fit) == pytest.approx(expected, rel=2e-6)
    assert fit["starts_at_optimum"] == 1.0
    for name, one in fit["coefficients"].items():
        assert one["low"] < one["value"] < one["high"], name
        assert one["identified"], name


def test_the_same_law_written_out_reaches_the_same_optimum(cli: Cli, chinchilla: str) -> None:
    laws = "chinchilla,E + A*N**-alpha + B*D**-beta"
    named, written = cli.json("fit", chinchilla, "--law", laws, "--where", "outlier5 == 0", "--draws", "0")[
        "fits"
    ]
    assert written["objective"]["value"] == pytest.approx(named["objective"]["value"], rel=1e-9)
    assert values(written) == pytest.approx(values(named), rel=1e-5)


REFIT = {
    "RL-R": {"a": -0.0827, "b": -0.1234, "c": 0.0112, "d": 1.107, "E_start": 1.72, "E_max": 470},
    "Hash": {"a": -0.0874, "b": -0.1384, "c": 0.0126, "d": 1.160, "E_start": 4.27, "E_max": 427},
    "S-Base": {"a": -0.0830, "b": -0.1180, "c": 0.0099, "d": 1.114, "E_start": 2.07, "E_max": 239},
}
HALF_DIGIT = {"a": 5e-5, "b": 5e-5, "c": 5e-5, "d": 5e-4, "E_start": 5e-3, "E_max": 0.5}


@pytest.mark.parametrize("router", REFIT)
def test_routed_table(cli: Cli, router: str) -> None:
    """Dense models count as one expert of each router."""
    where = f"law_subset == 1 and router_type in ('{router}', 'Dense')"
    found = cli.json(
        "fit", ROUTED, "--law", "bilinear", "--map", ROUTED_MAP, "--where", where, "--draws", "0"
    )
    for name, value in values(found["fits"][0]).items():
        assert value == pytest.approx(REFIT[router][name], abs=1.01 * HALF_DIGIT[name]), name


def test_a_fit_for_each_router(cli: Cli) -> None:
    found = cli.json(
        "fit", ROUTED, "--law", "bilinear", "--map", ROUTED_MAP, "--where", "law_subset == 1 and num_experts > 1",
        "--by", "router_type", "--draws", "50",
    )  # fmt: skip
    assert [fit["by"] for fit in found["fits"]] == [{"router_type": r} for r in ("Hash", "RL-R", "S-Base")]
    assert sum(fit["rows"] for fit in found["fits"]) == found["input"]["kept"]


# -- any table -------------------------------------------------------------------------------------------


def test_every_format_reads_alike(cli: Cli, file: str) -> None:
    fit = cli.json("fit", file, "--law", "chinchilla", "--map", MAP, "--draws", "40")["fits"][0]
    assert fit["rows"] == 30
    assert fit["columns"] == {"N": "params", "D": "seen"}
    for name, value in TRUTH.items():
        assert values(fit)[name] == pytest.approx(value, rel=0.25), name


def test_pins_ties_and_bounds_hold(cli: Cli, csv: str) -> None:
    options = ("--map", MAP, "--pin", "E=1.6", "--tie", "alpha=beta", "--bounds", "B=:1500", "--draws", "20")
    fit = cli.json("fit", csv, "--law", "chinchilla", *options)["fits"][0]
    found = values(fit)
    assert found["E"] == 1.6
    assert found["alpha"] == found["beta"]
    assert found["B"] <= 1500
    assert fit["constraints"]["pins"] == {"E": 1.6}
    assert fit["constraints"]["ties"] == [["alpha", "beta"]]


def test_a_derived_column_is_a_symbol(cli: Cli, csv: str) -> None:
    law, mapping = "E + K*C**-gamma", "C=6*params*seen,loss=final"
    fit = cli.json("fit", csv, "--law", law, "--map", mapping, "--draws", "0")["fits"][0]
    assert fit["columns"] == {"C": "6*params*seen"}
    assert 0 < fit["coefficients"]["gamma"]["value"] < 1


def test_a_number_stands_for_a_column_that_every_row_shares(cli: Cli, csv: str) -> None:
    fit = cli.json("fit", csv, "--law", "P0", "--map", "N=params,D=300,loss=final", "--draws", "0")["fits"][0]
    assert fit["dropped"] == ["B", "beta"]


def test_a_formula_may_be_named(cli: Cli, csv: str) -> None:
    fit = cli.json("fit", csv, "--law", "mine: E + A*N**-alpha", "--map", MAP, "--draws", "0")["fits"][0]
    assert (fit["law"], fit["formula"]) == ("mine", "E + A*N**-alpha")
    assert "something else" in cli.refusal("fit", csv, "--law", "P0: E + A*N**-alpha", "--map", MAP)


def test_groups_are_resampled_whole(cli: Cli, csv: str) -> None:
    """Two equal rows a run carry no more than one: intervals by run are wider than by row."""
    import pandas as pd

    frame = pd.read_csv(csv)
    twice = csv.replace("t.csv", "twice.csv")
    pd.concat([frame.assign(run=frame.index), frame.assign(run=frame.index)]).to_csv(twice, index=False)

    def width(*options: str) -> float:
        fit = cli.json("fit", twice, "--law", "chinchilla", "--map", MAP, *options)["fits"][0]
        return fit["coefficients"]["E"]["high"] - fit["coefficients"]["E"]["low"]

    assert width("--group", "run") > 1.2 * width()


def test_profile_and_bca_intervals_hold_the_value(cli: Cli, csv: str) -> None:
    options = ("--map", MAP, "--interval", "bca", "--profile", "--draws", "200")
    fit = cli.json("fit", csv, "--law", "chinchilla", *options)["fits"][0]
    assert "BCa" in fit["intervals"]["method"]
    for name, one in fit["coefficients"].items():
        assert one["profile"]["low"] < one["value"] < one["profile"]["high"], name
        assert one["low"] < one["high"], name


def test_diagnostics_name_the_row_that_is_wrong(cli: Cli, csv: str) -> None:
    import pandas as pd

    frame = pd.read_csv(csv)
    frame.loc[12, "final"] *= 1.2
    frame.to_csv(csv, index=False)
    out, _, code = cli("fit", csv, "--law", "chinchilla", "--map", MAP, "--draws", "0", "--diagnostics")
    assert code == 0
    assert "Row 13 lies" in out
    assert "efined starts reach the optimum" in out


def test_residuals_show_the_axis_a_law_misses(cli: Cli, csv: str) -> None:
    fit = cli.json("fit", csv, "--law", "E + A*N**-alpha", "--map", MAP, "--draws", "0", "--diagnostics")[
        "fits"
    ][0]
    slopes = {axis["symbol"]: axis for axis in fit["diagnostics"]["axes"]}
    assert slopes["D"]["t"] < -3
    assert abs(slopes["N"]["t"]) < 3


def test_comparison_names_a_law_for_each_use(cli: Cli, csv: str) -> None:
    found = cli.json("fit", csv, "--compare", "chinchilla,E + K*(N*D)**-gamma", "--map", MAP)
    laws = {fit["law"]: fit for fit in found["fits"]}
    assert laws["power_null"]["null"]
    assert (
        laws["chinchilla"]["holdout"]["largest"]["rmse_nats"]
        < laws["power_null"]["holdout"]["largest"]["rmse_nats"]
    )
    uses = found["recommended"][0]["uses"]
    assert {use["law"] for use in uses} == {"chinchilla"}
    assert len(uses) == 3
    out, _, _ = cli("fit", csv, "--compare", "chinchilla,E + K*(N*D)**-gamma", "--map", MAP)
    assert "Law to use: chinchilla" in out


def test_a_law_whose_column_is_missing_leaves_the_others(cli: Cli, csv: str) -> None:
    found = cli.json("fit", csv, "--compare", "chinchilla,P1", "--map", MAP)
    assert {fit["law"] for fit in found["fits"]} == {"chinchilla", "power_null"}
    assert any("'P1'" in line and "--map N_s=COLUMN" in line for line in found["skipped"])


def test_units_are_carried_along(cli: Cli, csv: str) -> None:
    unit = "N=parameters without embeddings"
    out, _, _ = cli("fit", csv, "--law", "chinchilla", "--map", MAP, "--unit", unit, "--draws", "0")
    assert "N is params, parameters without embeddings" in out
    assert "D is seen, unit not given" in out


def test_json_is_the_documented_schema(cli: Cli, csv: str) -> None:
    """Every key that is printed is described, at the version that the page is about."""
    found = cli.json(
        "fit", csv, "--law", "chinchilla", "--map", MAP, "--draws", "20", "--diagnostics", "--profile"
    )
    page = (ROOT / "docs" / "fit-json.md").read_text()
    assert f"Schema version {found['schema']}" in page
    for key in [*found, *found["fits"][0], *found["fits"][0]["diagnostics"], *found["recommended"][0]]:
        assert key in page, key


def test_json_of_a_study_has_the_same_fits(cli: Cli, csv: str) -> None:
    of_study = cli.json("fit", "enwik8_density", "--stage", "annealed", "--law", "additive")
    of_table = cli.json("fit", csv, "--law", "chinchilla", "--map", MAP, "--draws", "20")
    assert set(of_study) == set(of_table)
    assert set(of_study["fits"][0]) == set(of_table["fits"][0])


@pytest.mark.parametrize("name", ["effective_size", "P2", "P3", "granularity", "sparsity", "joint_moe"])
def test_synthetic_tables_are_recovered(cli: Cli, tmp_path: Path, name: str) -> None:
    """Predictions within the noise, from a file that says nothing of the law it was made with."""
    import pandas as pd

    truth = {
        "effective_size": {"E": 1.5, "A": 60.0, "alpha": 0.2, "gamma": 0.08, "B": 400.0, "beta": 0.3},
        "P2": {"E": 1.4, "A": 100.0, "alpha": 0.28, "S": 5.0, "gamma": 0.12, "kappa": 0.15, "B": 300.0, "beta": 0.3},
        "P3": {
            "E": 1.6, "A": 200.0, "alpha": 0.3, "delta": 0.05, "eta": 0.004, "B": 500.0, "beta": 0.32, "omega": 0.03,
        },
        "granularity": {"c": 0.47, "g": 2.1, "gamma": 0.58, "alpha": 0.115, "a": 18.1, "b": 30.8, "beta": 0.147},
        "sparsity": {
            "e": 0.94, "a": 16612.5, "alpha": 0.5962, "b": 5455.67, "beta": 0.3954, "c": 0.4598, "lambda": -0.1666,
            "d": 17.26, "delta": 0.1603, "gamma": 0.1595,
        },
        "joint_moe": {
            "a": 35.91, "alpha": -0.1889, "delta": -0.2285, "gamma": 0.0098, "b": 35.98, "beta": -0.1775,
            "omega": 0.5529, "zeta": -0.0259, "E_start": 2.0732, "E_max": 290.45, "c": 1.3637,
        },
    }[name]  # fmt: skip
    rng, law = np.random.default_rng(3), LAWS[name]
    spans = {
        "N": (7, 10),
        "D": (9, 12),
        "N_s": (6, 10),
        "m": (1, 3),
        "rho": (-3, -0.5),
        "G": (0, 1.5),
        "experts": (0, 2.5),
    }
    axes = {s: 10 ** rng.uniform(*spans[s], size=150) for s in law.symbols}
    clean = evaluate(law, np.array([truth[c] for c in law.coefficients]), axes, {})
    path = tmp_path / "synthetic.csv"
    pd.DataFrame({**axes, "loss": clean * np.exp(0.001 * rng.standard_normal(150))}).to_csv(path, index=False)
    fit = cli.json("fit", str(path), "--law", name, "--draws", "0")["fits"][0]
    found = np.array([values(fit)[c] for c in law.coefficients])
    assert np.abs(evaluate(law, found, axes, {}) / clean - 1).max() < 0.0015
    assert fit["rmse_percent"] < 0.15


def test_a_law_that_resampling_cannot_move_gets_no_interval(cli: Cli) -> None:
    """Without tokens, a study of two budgets lies in balance on both sides of the law."""
    law = "E + S*N_s**-g + M*m**-k"
    fit = cli.json("fit", "enwik8_density", "--law", law, "--stage", "annealed", "--pin", "E=1")["fits"][0]
    assert fit["coefficients"]["g"]["low"] is None
    assert any("no interval can be given" in line for line in fit["warnings"])


def test_a_law_that_runs_away_is_left_out(cli: Cli) -> None:
    """Active parameters hardly vary in that study: the best exponent is one that no scale can follow."""
    found = cli.json("fit", "enwik8_density", "--law", "P1,P2", "--stage", "annealed")
    assert {fit["law"] for fit in found["fits"]} == {"P2"}
    assert any("'P1' runs away" in line for line in found["skipped"])


# -- a fit, planned with -----------------------------------------------------------------------------------

LIMITS = ("--max-total-params", "10M", "--max-memory-access", "300k")


def saved(cli: Cli, tmp_path: Path, *arguments: str) -> str:
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(cli.json("fit", *arguments)))
    return str(path)


def to_ten_digits(found: object) -> object:
    """Laws fitted in other company end some roundings apart."""
    return json.loads(json.dumps(found), parse_float=lambda text: f"{float(text):.10g}")


def test_a_plan_from_a_fit_is_the_plan_from_its_study(cli: Cli, tmp_path: Path) -> None:
    fit = saved(cli, tmp_path, "enwik8_density", "--stage", "annealed", "--law", "trend")
    from_fit, from_study = cli.json("plan", fit, *LIMITS), cli.json("plan", "enwik8_density", *LIMITS)
    assert to_ten_digits(from_fit["recommended"]) == to_ten_digits(from_study["recommended"])
    assert from_fit["law"] == from_study["law"]


def test_a_plan_across_kinds_of_a_recorded_study(cli: Cli) -> None:
    asked = ("plan", "enwik8_architectures", "--across", "--max-memory-access", "2M", "--hardware", "h100")
    found = cli.json(*asked)
    measured = open_store("enwik8_architectures").columns()
    mine = (measured["architecture"] == "ultramem_v2") & (measured["stage"] == "annealed")
    assert found["members"][0]["name"] == "ultramem_v2"
    assert found["members"][0]["loss"]["value"] == pytest.approx(measured["loss"][mine].mean())
    assert {one["name"] for one in found["members"] if one["breaks"]} == {"moe_top8", "moe_top2"}
    assert "--model cannot be given" in cli.refusal(*asked, "--model", "ultramem_v2-227m")
    assert "needs hardware" in cli.refusal("plan", "parity", "--across", "--max-decode-time", "1")


def test_a_plan_from_a_table(cli: Cli, tmp_path: Path) -> None:
    """Columns of any name: the model is the user's, the law is the table's."""
    import pandas as pd

    rng = np.random.default_rng(5)
    rows = {"slots": 10 ** rng.uniform(5, 7, 60), "active": 2 ** rng.uniform(3, 6, 60)}
    loss = 1.2 + 3 * rows["slots"] ** -0.15 + 0.6 * rows["active"] ** -0.3 + 0.002 * rng.standard_normal(60)
    path = tmp_path / "t.csv"
    pd.DataFrame({**rows, "loss": loss}).to_csv(path, index=False)
    law, mapping = "E + S*N_s**-gamma + M*m**-kappa", "N_s=slots,m=active"
    fit = saved(cli, tmp_path, str(path), "--law", law, "--map", mapping)
    assert "--model" in cli.refusal("plan", fit, *LIMITS)
    study = tmp_path / "model.toml"
    study.write_text(
        "[model]\nd_model = 64\nn_layers = 2\nn_heads = 2\nvocab_size = 256\nffn = {d_ffn = 128}\n"
        "memory = {n_keys = 64, top_m = 16, d_key = 16, d_pre_value = 16, d_value = 32}\n"
    )
    found = cli.json("plan", fit, *LIMITS, "--model", str(study))
    best = found["recommended"]
    coefficients = {
        name: c["value"] for name, c in json.loads(Path(fit).read_text())["fits"][0]["coefficients"].items()
    }
    n_s, m = best["sparse_params"], best["dimensions"]["top_m"]
    by_hand = (
        coefficients["E"]
        + coefficients["S"] * n_s ** -coefficients["gamma"]
        + coefficients["M"] * m ** -coefficients["kappa"]
    )
    assert best["loss"]["value"] == pytest.approx(by_hand, rel=1e-9)
    frame = pd.read_csv(path)
    frame.loc[0, "loss"] += 0.1
    frame.to_csv(path, index=False)
    assert "has changed since" in cli.refusal("plan", fit, *LIMITS, "--model", str(study))


@pytest.mark.parametrize(
    "content", ["", "{}", '{"schema": 1}', '{"schema": 2}', '{"schema": 2, "fits": [{}]}']
)
def test_a_damaged_fit_gets_one_line(cli: Cli, tmp_path: Path, content: str) -> None:
    path = tmp_path / "fit.json"
    path.write_text(content)
    cli.refusal("plan", str(path), *LIMITS)


# -- what it refuses -------------------------------------------------------------------------------------

REFUSALS = [
    (("--law", "chinchila"), "did you mean 'chinchilla'?"),
    (("--law", "chinchilla", "--map", "N=param,D=seen,loss=final"), "did you mean 'params'?"),
    (("--law", "chinchilla", "--map", f"{MAP},Q=seen"), "no law reads 'Q'"),
    (("--law", "chinchilla", "--map", "N=params,D=seen,loss=finale"), "did you mean 'final'?"),
    (("--law", "E + A*__import__('os')", "--map", MAP), "is not part of a formula"),
    (("--law", "E + A*N**-alpha + F", "--map", MAP), "E, F cannot be separated"),
    (("--law", "chinchilla", "--map", MAP, "--where", "seeen > 1"), "did you mean 'seen'?"),
    (("--law", "chinchilla", "--map", MAP, "--where", "seen = 1"), "write == to compare"),
    (("--law", "chinchilla", "--map", MAP, "--where", "seen < 0"), "none of 30 rows"),
    (("--law", "chinchilla", "--map", MAP, "--where", "seen > 1e11 and params > 1e9"), "4 rows cannot determine"),
    (("--law", "chinchilla", "--map", MAP, "--pin", "Z=1"), "no law here has a coefficient 'Z'"),
    (("--law", "chinchilla", "--map", MAP, "--pin", "E"), "must be NAME=VALUE"),
    (("--law", "chinchilla", "--map", MAP, "--bounds", "E=3"), "must be E=LOW:HIGH"),
    (("--law", "chinchilla", "--map", MAP, "--by", "knd"), "did you mean 'kind'?"),
    (("--law", "chinchilla", "--map", MAP, "--group", "rn"), "did you mean 'run'?"),
    (("--law", "chinchilla", "--map", MAP, "--objective", "l2"), "must be one of huber"),
    (("--law", "chinchilla", "--map", "N=params,D=20*params,loss=final"), "vary together"),
    (("--law", "chinchilla", "--map", "N=kind,D=seen,loss=final"), "kind"),
    (("--law", "chinchilla", "--map", "N=0*params,D=seen,loss=final"), "have no logarithm"),
    (("--law", "chinchilla", "--compare", "P0", "--map", MAP), "--law or --compare"),
    ((), "name a law"),
    (("--law", "chinchilla", "--map", MAP, "--question", "density-over-size"), "needs a study"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), REFUSALS)
def test_bad_input_gets_one_line(cli: Cli, csv: str, options: tuple[str, ...], words: str) -> None:
    line = cli.refusal("fit", csv, *options)
    assert words in line


def test_invalid_rows_are_counted_and_dropped_only_when_told(cli: Cli, csv: str) -> None:
    import pandas as pd

    frame = pd.read_csv(csv)
    frame.loc[[3, 4], "final"] = np.nan
    frame.to_csv(csv, index=False)
    assert "2 of 30 rows lack" in cli.refusal("fit", csv, "--law", "chinchilla", "--map", MAP)
    fit = cli.json("fit", csv, "--law", "chinchilla", "--map", MAP, "--drop-invalid", "--draws", "0")["fits"][
        0
    ]
    assert fit["rows"] == 28


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"\x00\xff\x13PAR1", b'{"a": [1'])
def test_damaged_files_get_one_line(cli: Cli, tmp_path: Path, content: bytes) -> None:
    for name in ("t.csv", "t.parquet", "t.jsonl", "t.csv.gz"):
        path = tmp_path / name
        path.write_bytes(content)
        cli.refusal("fit", str(path), "--law", "chinchilla")
