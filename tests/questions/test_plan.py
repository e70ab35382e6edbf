"""Plans keep their limits, rank by the law, and say how far they reach."""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.questions.test_predict import scaling_table
from tests.questions.test_suggest import TREE
from umscale.accounting import cost, memory_access_bytes
from umscale.design.study import parse
from umscale.errors import UserError
from umscale.hardware import BYTES, HARDWARE, decode_time
from umscale.laws.expression import parse_law
from umscale.laws.fit import FitResult, fit_law
from umscale.questions.plan import Limits, Plan, Preferences, plan, sized_model, to_json
from umscale.questions.simulate import Truth, draw, study_design
from umscale.spec import FfnSpec, ModelSpec, from_dict, read_toml
from umscale_cli.main import app

BASE = parse(TREE, "tree").reference.model
LIMITS = Limits(total_params=4e6, active_flops=4.0e5, memory_access_bytes=6e5, batch=16)


def planned(truth: Truth, limits: Limits = LIMITS, **options: Any) -> Plan:
    table = draw(study_design(parse(TREE, "tree")), truth, np.random.default_rng(0))
    return plan(table, BASE, limits, Preferences(**{"law": "additive", "seq_len": 256, **options}))


def test_every_configuration_keeps_its_limits_and_counts_as_accounting_does() -> None:
    found = planned(Truth(delta_m=0.03, delta_n=0.02, run_sd=0.005))
    for one in (found.recommended, *found.runners_up):
        counted = cost(one.model, 256)
        assert counted.total_params <= 4e6
        assert counted.flops_per_token <= 4.0e5
        assert memory_access_bytes(one.model, 16) == one.memory_access_bytes <= 6e5
        assert one.used["total_params"] == pytest.approx(counted.total_params / 4e6)
        assert one.dimensions["top_m"] == one.model.memory.top_m


def test_the_recommendation_is_the_best_of_an_exhaustive_search() -> None:
    """Every n_keys for every top_m of the plan's ladder, ranked by the law as written."""
    found = planned(Truth(delta_m=0.03, delta_n=0.02, run_sd=1e-6))
    best = np.inf
    for top_m in (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
        for n_keys in range(32, 400):
            memory = dataclasses.replace(BASE.memory, top_m=top_m, n_keys=n_keys)
            model = dataclasses.replace(BASE, memory=memory)
            counted = cost(model, 256)
            fits = counted.total_params <= 4e6 and counted.flops_per_token <= 4.0e5
            if fits and memory_access_bytes(model, 16) <= 6e5:
                best = min(best, -0.03 * np.log2(top_m) - 0.02 * np.log2(counted.sparse_params))
    dimensions = found.recommended.dimensions
    reached = -0.03 * np.log2(dimensions["top_m"]) - 0.02 * np.log2(found.recommended.cost.sparse_params)
    assert reached == pytest.approx(best, abs=1e-3)


def test_density_or_size_is_bought_as_the_law_says() -> None:
    dense = planned(Truth(delta_m=0.05, delta_n=0.001, run_sd=0.001)).recommended.dimensions
    large = planned(Truth(delta_m=0.001, delta_n=0.05, run_sd=0.001)).recommended.dimensions
    assert dense["top_m"] > large["top_m"]
    assert dense["n_keys"] < large["n_keys"]


def test_relaxed_limits_never_hurt_and_help_where_they_bind() -> None:
    found = planned(Truth(delta_m=0.03, delta_n=0.02, run_sd=0.005))
    assert [s.constraint for s in found.sensitivities] == [
        "total_params",
        "active_flops",
        "memory_access_bytes",
    ]
    assert all(s.change.value <= 1e-12 for s in found.sensitivities)
    assert min(s.change.value for s in found.sensitivities) < -0.005


def test_runners_up_are_other_densities_in_order() -> None:
    found = planned(Truth(delta_m=0.03, delta_n=0.02, run_sd=0.005))
    everyone = (found.recommended, *found.runners_up)
    assert len({c.dimensions["top_m"] for c in everyone}) == len(everyone) > 1
    losses = [c.loss.value for c in everyone]
    assert losses == sorted(losses)
    for one in found.runners_up:
        assert one.behind.value == pytest.approx(one.loss.value - losses[0])
        assert one.behind.low <= one.behind.value <= one.behind.high


def test_extrapolation_is_bounded_measured_and_said() -> None:
    huge = Limits(total_params=1e9, active_flops=1e9)
    truth = Truth(delta_m=0.03, delta_n=0.02, run_sd=0.005)
    near = planned(truth, huge)
    assert all(abs(v) <= 1.0 for v in near.recommended.extrapolation.values())
    far = planned(truth, huge, max_octaves=30.0)
    assert far.recommended.extrapolation["sparse_params"] == pytest.approx(
        np.log2(far.recommended.cost.sparse_params / (2 * 256**2 * 48))
    )
    assert any("do not believe the predicted loss" in s for s in far.statements)
    tiny = Limits(total_params=1.6e5, active_flops=1e9)
    with pytest.raises(UserError, match="allow --max-octaves"):
        planned(truth, tiny)


def test_iso_flops_sizes_the_ffn() -> None:
    found = planned(Truth(delta_m=0.03, delta_n=0.02, run_sd=0.005), sizing="iso_flops")
    reference = cost(BASE, 256).flops_per_token
    assert found.recommended.cost.flops_per_token == pytest.approx(reference, rel=0.01)
    assert any("does not know what iso_flops does" in s for s in found.statements)


def test_dimensions_the_law_does_not_read_are_marked() -> None:
    found = planned(Truth(delta_m=0.03, delta_n=0.02, run_sd=0.005), vary=("d_key",))
    assert found.recommended.dimensions["d_key"] <= 16
    assert any("the law reads no d_key" in s for s in found.statements)


def test_tokens_move_the_prediction() -> None:
    truth = Truth(delta_m=0.03, delta_n=0.02, tokens=-0.1, run_sd=1e-6)
    one, two = (planned(truth, tokens=t).recommended.loss.value for t in (1e6, 2e6))
    assert one - two == pytest.approx(0.1, abs=1e-4)


def test_the_study_file_trains_the_recommendation() -> None:
    found = planned(Truth(delta_m=0.03, delta_n=0.02, run_sd=0.005), tokens=2e6)
    study = parse(tomllib.loads(found.to_toml(TREE)), "plan")
    assert study.reference.model == found.recommended.model
    assert study.reference.train.budgets == (2_000_000,)
    assert to_json(found)["recommended"]["dimensions"] == found.recommended.dimensions


def test_limits_of_a_decoder_bound_a_plan() -> None:
    """Device memory bounds the size, decoding time what a token reads, each as ``cost --hardware`` counts it."""
    truth = Truth(delta_m=0.03, delta_n=0.02, run_sd=0.005)
    hardware = HARDWARE["h100"]
    limits = Limits(device_bytes=6e6, seconds_per_token=4.7e-8, hardware=hardware)
    best = planned(truth, limits).recommended
    assert BYTES * best.cost.total_params_with_embedding <= 6e6
    step = decode_time(best.model, hardware, limits.batch, 256)
    assert best.used["seconds_per_token"] == pytest.approx(step.seconds / limits.batch / 4.7e-8)
    assert best.used["seconds_per_token"] <= 1
    faster = planned(truth, limits.relaxed("seconds_per_token", 4.9e-8)).recommended
    assert faster.loss.value < best.loss.value


@pytest.mark.parametrize(
    ("limits", "options", "message"),
    [
        (Limits(total_params=4e6), {}, "one of active parameters, FLOPs, memory access and decoding time"),
        (Limits(total_params=4e6, seconds_per_token=1e-6), {}, "--hardware"),
        (Limits(active_flops=4e5, memory_access_bytes=1e6), {}, "limit the total parameters"),
        (Limits(total_params=4e6, active_flops=1e3), {}, "already takes active flops"),
        (Limits(total_params=-1, active_flops=1e6), {}, "must be positive"),
        (LIMITS, {"law": "null"}, "cannot rank"),
        (LIMITS, {"vary": ("d_kye",)}, "did you mean 'd_key'"),
        (LIMITS, {"sizing": "iso_flop"}, "did you mean 'iso_flops'"),
    ],
)
def test_impossible_plans_say_why(limits: Limits, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(Truth(delta_m=0.03, delta_n=0.02, run_sd=0.005), limits, **options)


SHAPE = Path(__file__).parents[2] / "docs" / "examples" / "umv2-2.5b-120b.toml"


def test_the_worked_example_has_2_5b_active_and_120b_total() -> None:
    model = from_dict(ModelSpec, read_toml(SHAPE)["model"])
    counted = cost(model)
    assert counted.active_params == pytest.approx(2.5e9, rel=0.001)
    assert counted.total_params == pytest.approx(120e9, rel=0.001)
    assert counted.mcp == pytest.approx(0.17, abs=0.001)
    blank = dataclasses.replace(
        model, ffn=FfnSpec(d_ffn=1), memory=dataclasses.replace(model.memory, n_keys=500, d_key=1)
    )
    assert sized_model(blank, active_params=2.5e9, total_params=120e9, mcp=0.17) == model
    with pytest.raises(UserError, match="fewer than the attention layers"):
        sized_model(blank, active_params=1e8, total_params=120e9)


def test_the_command_prints_writes_and_refuses(tmp_path: Path) -> None:
    limits = ["--max-total-params", "10M", "--max-active-flops", "400k", "--max-memory-access", "300k"]
    file = tmp_path / "plan.toml"
    run = CliRunner().invoke(app, ["plan", "enwik8_density", *limits, "--json", "-o", str(file)])
    assert run.exit_code == 0
    dimensions = json.loads(run.stdout)["recommended"]["dimensions"]
    written = parse(read_toml(file), "plan.toml").reference.model
    assert {"n_keys": written.memory.n_keys, "top_m": written.memory.top_m} == {
        name: dimensions[name] for name in ("n_keys", "top_m")
    }
    text = CliRunner().invoke(app, ["plan", "enwik8_density", *limits]).stdout
    assert "recommended" in text
    assert str(dimensions["n_keys"]) in text
    refused = CliRunner().invoke(app, ["plan", "enwik8_density", *limits[:2]])
    assert isinstance(refused.exception, UserError)


# -- laws of tables ----------------------------------------------------------------------------------------------

DENSE = ModelSpec(d_model=768, n_layers=12, n_heads=12, vocab_size=50304, ffn=FfnSpec(d_ffn=2048))
MIXTURE = dataclasses.replace(DENSE, ffn=FfnSpec(kind="moe", d_ffn=1024, n_experts=8, top_k=2))


def dense_fit() -> FitResult:
    return fit_law(scaling_table(0, noise=0.002), "chinchilla")


def mixture_fit() -> FitResult:
    rng = np.random.default_rng(0)
    n, experts = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 5), 2.0 ** np.arange(9)))
    loss = 1.5 + 60 * n**-0.25 * experts**-0.05 + 0.002 * rng.standard_normal(len(n))
    table = {"active_params": n, "n_experts": experts, "loss": loss}
    return fit_law(table, parse_law("E + A*N**-a*experts**-g", ("N", "experts")))


def test_a_dense_law_plans_dense_models_and_says_what_its_n_is() -> None:
    fit = dense_fit()
    limits = Limits(active_flops=8e8)
    found = plan(
        dict(fit_table(fit)), DENSE, limits, Preferences(law=fit, tokens=2e10, units={"N": "with embeddings"})
    )
    best = found.recommended
    assert best.cost.flops_per_token <= 8e8
    assert best.model.memory is None
    assert set(best.dimensions) == {"d_model", "n_layers", "n_heads", "d_ffn"}
    assert best.loss.value == pytest.approx(
        float(fit.predict({"N": np.array([best.cost.active_params]), "D": np.array([2e10])})[0])
    )
    assert "the rows say: with embeddings" in found.statements[0]
    means = {"N": "total_params_with_embedding"}
    counted = plan(dict(fit_table(fit)), DENSE, limits, Preferences(law=fit, tokens=2e10, means=means))
    assert counted.reads["N"] == "total_params_with_embedding"
    assert counted.recommended.loss.value < best.loss.value
    assert to_json(counted)["reads"] == {"N": "total_params_with_embedding", "D": "tokens"}


def test_a_law_of_mixtures_plans_mixtures() -> None:
    fit = mixture_fit()
    found = plan(
        dict(fit_table(fit)), MIXTURE, Limits(total_params=2e9, active_flops=6e8), Preferences(law=fit)
    )
    assert found.recommended.cost.total_params <= 2e9
    assert found.recommended.dimensions["n_experts"] > 8
    assert {"n_experts", "top_k"} <= set(found.recommended.dimensions)
    assert len({c.dimensions["top_k"] for c in (found.recommended, *found.runners_up)}) > 1


@pytest.mark.parametrize(
    ("fit", "base", "message"),
    [
        (dense_fit, BASE, "no memory layers"),
        (dense_fit, MIXTURE, "does not tell mixtures of experts apart"),
        (mixture_fit, BASE, "plan a mixture"),
    ],
)
def test_what_the_rows_cannot_speak_of_is_refused(fit: Any, base: ModelSpec, message: str) -> None:
    one = fit()
    with pytest.raises(UserError, match=message):
        plan(dict(fit_table(one)), base, Limits(total_params=1e10, active_flops=1e10), Preferences(law=one))


def test_rows_with_memory_layers_plan_no_dense_model() -> None:
    truth = Truth(delta_m=0.03, delta_n=0.02, run_sd=0.005)
    table = draw(study_design(parse(TREE, "tree")), truth, np.random.default_rng(0))
    with pytest.raises(UserError, match="a dense model has none"):
        plan(table, DENSE, Limits(active_flops=1e9), Preferences(law="additive"))


def fit_table(fit: FitResult) -> dict[str, np.ndarray]:
    return {fit.columns[s]: v for s, v in fit.rows.values.items()} | {"loss": fit.rows.loss}


def test_every_missing_option_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    columns = scaling_table(0, noise=0.002)
    path.write_text(
        "N,D,loss\n"
        + "".join(
            f"{n},{d},{x}\n"
            for n, d, x in zip(*(columns[k] for k in ("active_params", "tokens", "loss")), strict=True)
        )
    )
    runner = CliRunner()
    saved = tmp_path / "fit.json"
    saved.write_text(
        runner.invoke(app, ["fit", str(path), "--law", "chinchilla", "--draws", "0", "--json"]).stdout
    )
    refused = runner.invoke(app, ["plan", str(saved)])
    assert isinstance(refused.exception, UserError)
    for option in ("--model", "--max-total-params", "--max-active-flops, --max-memory-access"):
        assert option in str(refused.exception)
