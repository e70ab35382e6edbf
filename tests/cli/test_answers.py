"""The commands that answer further questions from a recorded study: they print what the library computes."""

import json

import pytest
from typer.testing import CliRunner

from umscale.design.study import load_study, parse
from umscale_cli.main import app
from umscale_cli.runs import open_store

RUN = CliRunner()


def printed(*arguments: str) -> str:
    result = RUN.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_suggested_runs_are_a_study_that_sweep_reads(tmp_path):
    target = tmp_path / "next.toml"
    text = printed("fit", "enwik8_density", "--suggest", "3", "--output", str(target))
    assert text.count("± ") == 1 + 3
    study = load_study(str(target))
    recorded = parse(open_store("enwik8_density").study_tree(), "study.toml").reference
    assert study.reference.model == recorded.model, "runs to add mean what those recorded mean"
    assert (recorded.model.memory.preselect_cap, recorded.train.table_weight_decay) == (0, "coupled")
    assert (study.reference.train.table_weight_decay, study.reference.train.score_energy) == (
        "coupled",
        "nominal",
    )


def test_two_cells_are_compared_within_seeds():
    cells = "top_m=8,n_keys=64 - top_m=64,n_keys=64"
    found = json.loads(printed("fit", "enwik8_density", "--contrast", cells, "--json"))
    difference = found["difference"]
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert found["stage"] == "annealed"
    assert difference["value"] > 0, "more values a token lower the loss in that study"


def test_the_plane_is_drawn():
    text = printed("fit", "enwik8_density", "--plane", "--stage", "annealed")
    assert "Where density beats size" in text
    assert "D density wins" in text


def test_the_best_ratio_is_refused_where_nothing_shows_it():
    found = json.loads(printed("fit", "enwik8_density", "--question", "memory-to-ffn", "--json"))
    assert {v["answer"] for v in found} == {"inconclusive"}


def test_plan_keeps_its_limits():
    found = json.loads(
        printed("plan", "enwik8_density", "--max-total-params", "4M", "--max-memory-access", "4M", "--json")
    )
    best = found["recommended"]
    assert best["total_params"] <= 4e6
    assert best["loss"]["low"] < best["loss"]["value"] < best["loss"]["high"]


def test_simulate_counts_its_tables():
    found = json.loads(printed("simulate", "enwik8_density", "--tables", "40", "--json"))
    assert found["n_tables"] == 40
    assert sum(found["answers"][a]["count"] for a in ("supported", "contradicted", "inconclusive")) == 40


@pytest.mark.parametrize("model", ["olmoe-227m", "ultramem_v2-227m"])
def test_cost_speaks_json(model):
    found = json.loads(printed("cost", model, "--batch", "1,16", "--json"))
    assert set(found["memory_access_bytes_per_step"]) == {"1", "16"}


def test_cost_prints_the_rates_a_run_would_get_and_why(tmp_path):
    from umscale.model.scaling import learning_rates
    from umscale.spec import MemorySpec, ModelSpec, RunSpec, TrainSpec

    spec = tmp_path / "pkm.toml"
    spec.write_text(
        '[model]\nd_model = 64\nn_layers = 4\nn_heads = 2\n[model.memory]\nkind = "pkm"\nn_keys = 64\ntop_m = 16\n'
        "heads = 2\nd_key = 16\nd_value = 64\n[train]\nvalue_lr = 4e-2\n"
    )
    memory = MemorySpec(kind="pkm", n_keys=64, top_m=16, heads=2, d_key=16, d_value=64)
    model = ModelSpec(d_model=64, n_layers=4, n_heads=2, memory=memory)
    run = RunSpec(model=model, train=TrainSpec(value_lr=4e-2))
    found = json.loads(printed("cost", str(spec), "--rates", "--json"))
    assert (found["lr"], found["value_lr"]) == pytest.approx(learning_rates(run))
    assert found["value_lr"] == pytest.approx(4e-2 * found["value_factor"])
    assert found["table_decay_per_step"] == pytest.approx(run.train.table_weight_decay)
    assert 0.05 < found["row"]["energy"] < 0.3  # of a softmax over 16, two heads
    text = printed("cost", str(spec), "ultramem_v2-227m", "--rates")
    assert "score energy" in text
    assert f"{found['value_lr']:.4g}" in text
    coupled = json.loads(
        printed("cost", str(spec), "--rates", "--json", "--set", "train.table_weight_decay=coupled")
    )
    assert coupled["table_decay_per_step"] == pytest.approx(0.1 * found["value_lr"])
