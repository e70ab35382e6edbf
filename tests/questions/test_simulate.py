"""The procedure judged on tables whose truth is known; the recorded simulation is the large one."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import umscale_studies
from umscale.design.study import load_study, parse
from umscale.errors import UserError
from umscale.laws.fit import fit_law
from umscale.questions.simulate import CONTRASTS, Truth, draw, fitted_truth, simulate, study_design, to_json
from umscale.results.table import levels
from umscale.store.store import Store
from umscale_cli.main import app


def design() -> dict[str, np.ndarray]:
    return study_design(load_study("enwik8_density"))


def test_intervals_cover_and_equal_effects_are_seldom_decided() -> None:
    """120 tables: three standard errors of a 95% rate are 6 points."""
    found = simulate(design(), Truth(delta_m=0.02, delta_n=0.02), n_tables=120, seed=0)
    assert (found.n_cells, found.n_runs, found.n_seeds, found.n_rows) == (12, 24, 2, 48)
    for rates in (found.coverage, found.coverage_pairs):
        for name in CONTRASTS:
            assert rates[name].of == 120
            assert rates[name].share >= 0.89, name
    assert found.false_verdicts.share <= 0.11
    assert found.power is None


def test_what_the_law_misses_in_a_cell_widens_the_law_and_counts_as_effect_for_pairs() -> None:
    truth = Truth(delta_m=0.02, delta_n=0.02, run_sd=0.01, cell_sd=0.01)
    found = simulate(design(), truth, n_tables=80, seed=0)
    for rates in (found.coverage, found.coverage_pairs):
        assert all(rates[name].share >= 0.87 for name in CONTRASTS)
    assert (
        found.half_width
        > 1.2 * simulate(design(), Truth(delta_m=0.02, delta_n=0.02, run_sd=0.01), n_tables=20).half_width
    )


def test_recorded_simulation_meets_the_standard() -> None:
    path = umscale_studies.ROOT / "recorded" / "simulate_equal_effects.json"
    recorded = json.loads(path.read_text())
    assert recorded["n_tables"] >= 500
    assert recorded["truth"]["delta_m"] == recorded["truth"]["delta_n"]
    for name in CONTRASTS:
        assert 0.93 <= recorded["coverage"][name]["share"] <= 0.97, name
        assert 0.93 <= recorded["coverage_pairs"][name]["share"] <= 0.97, name
    assert recorded["false_verdicts"]["share"] <= 0.05
    again = to_json(simulate(design(), Truth(**recorded["truth"]), n_tables=2, seed=recorded["seed"]))
    assert again["truth"] == again["truth"] | recorded["truth"]
    for name in ("seed", "n_cells", "n_runs", "n_seeds", "n_rows"):
        assert again[name] == recorded[name]


def test_the_documented_output_is_the_recorded_one() -> None:
    recorded = json.loads((umscale_studies.ROOT / "recorded" / "simulate_equal_effects.json").read_text())
    page = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text()
    assert (
        f"umscale simulate enwik8_density --tables {recorded['n_tables']} --seed {recorded['seed']}" in page
    )
    for rate in (recorded["coverage"]["difference"], recorded["false_verdicts"]):
        assert f"{rate['share']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]" in page


def test_the_command_prints_rates_and_refuses_nothing_to_simulate() -> None:
    arguments = ["simulate", "enwik8_density", "--slope-m", "0.05", "--run-sd", "0.005", "--tables", "5"]
    text = CliRunner().invoke(app, arguments).stdout
    assert "5 tables" in text
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert found["power"]["share"] == 1.0
    assert found["truth"]["delta_m"] == 0.05
    fitted = CliRunner().invoke(app, ["simulate", "--from", "enwik8_density", "--tables", "2", "--json"])
    assert json.loads(fitted.stdout)["n_runs"] == 24
    assert isinstance(CliRunner().invoke(app, ["simulate"]).exception, UserError)


def test_law_and_design_are_of_one_compensation() -> None:
    """Of a study that has several, the first; its law is not that of the first by name."""
    table = Store.open(umscale_studies.recorded()["density_over_size"]).columns()
    assert levels(table, "compensation")[0] == "iso_flops"
    arguments = ["simulate", "density_over_size", "--from", "density_over_size", "--tables", "1", "--json"]
    for options, mode in (([], "none"), (["--compensation", "iso_flops"], "iso_flops")):
        found = json.loads(CliRunner().invoke(app, [*arguments, *options]).stdout)
        assert found["truth"]["delta_m"] == fitted_truth(table, compensation=mode)[0].delta_m


def test_power_counts_right_answers_only() -> None:
    strong = simulate(design(), Truth(delta_m=0.01, delta_n=0.05, run_sd=0.01), n_tables=10)
    assert strong.power is not None
    assert strong.power.share == 1.0
    assert strong.answers["contradicted"].count == 10
    assert strong.false_verdicts.count == 0


def test_a_table_has_the_law_and_the_noise_it_was_drawn_with() -> None:
    rows = study_design(load_study("enwik8_density", ["axes.seed=[0,1,2,3,4,5,6,7]"]))
    truth = Truth(delta_m=0.03, delta_n=0.01, interaction=0.004, tokens=-0.2, run_sd=0.0, block_sd=0.5)
    fit = fit_law(draw(rows, truth, np.random.default_rng(0)), "interaction")
    expected = {"a": -0.03, "b": -0.01, "x": 0.004, "d": -0.2}
    for name, value in expected.items():
        assert fit.coefficients[name] == pytest.approx(value, abs=1e-9), name
    noisy = Truth(delta_m=0.0, delta_n=0.0, tokens=0.0, loss=3.0, run_sd=0.02, block_sd=0.0)
    losses = draw(rows, noisy, np.random.default_rng(1))["loss"]
    by_run = {run: set(losses[rows["run_id"] == run].round(12)) for run in set(rows["run_id"])}
    assert all(len(values) == 1 for values in by_run.values())  # a run's budgets share its noise
    assert np.std([next(iter(v)) for v in by_run.values()]) == pytest.approx(0.02, rel=0.25)


def test_the_same_seed_draws_the_same_tables() -> None:
    truth = Truth(delta_m=0.02, delta_n=0.01)
    one, again, other = (simulate(design(), truth, n_tables=4, seed=s) for s in (3, 3, 4))
    assert one == again
    assert one.half_width != other.half_width


def test_fitted_truth_recovers_what_a_table_was_drawn_with() -> None:
    rows = study_design(load_study("enwik8_density", ["axes.seed=[0,1,2,3,4,5,6,7]"]))
    truth = Truth(delta_m=0.03, delta_n=0.01, tokens=-0.15, run_sd=0.02, block_sd=0.05, cell_sd=0.03)
    found, again = fitted_truth(draw(rows, truth, np.random.default_rng(2)))
    assert found.delta_m == pytest.approx(0.03, abs=0.02)
    assert found.tokens == pytest.approx(-0.15, abs=1e-9)
    assert found.run_sd == pytest.approx(0.02, rel=0.3)
    assert found.cell_sd == pytest.approx(0.03, rel=0.7)
    assert found.block_sd == pytest.approx(0.05, rel=0.8)
    assert len(again["seed"]) == len(rows["seed"])


def test_a_recorded_study_can_be_simulated_from() -> None:
    truth, rows = fitted_truth(Store.open(umscale_studies.recorded()["enwik8_density"]).columns())
    assert len(rows["seed"]) == 48
    assert simulate(rows, truth, n_tables=3).n_cells == 12


def test_bad_designs_are_user_errors() -> None:
    one = study_design(load_study("enwik8_density", ["axes.top_m=[8]"]))
    with pytest.raises(UserError, match="no verdict can be read"):
        simulate(one, Truth(delta_m=0.1, delta_n=0.1), n_tables=2)
    with pytest.raises(UserError, match="no compensation"):
        study_design(load_study("enwik8_density"), "iso_flops")
    with pytest.raises(UserError, match="must not be negative"):
        Truth(delta_m=0.1, delta_n=0.1, run_sd=-1)
    dense = {"name": "dense", "axes": {"d_ffn": [64, 128]}}
    with pytest.raises(UserError, match="memory layer"):
        study_design(parse(dense, "dense"))


def test_a_misfit_along_m_is_the_same_for_all_sizes_and_seeds_and_smooth() -> None:
    plan = study_design(load_study("density_over_size"), "none")
    quiet = {"run_sd": 0.0, "block_sd": 0.0}
    law = draw(plan, Truth(delta_m=0.02, delta_n=0.01, **quiet), np.random.default_rng(0))["loss"]
    drawn = draw(plan, Truth(delta_m=0.02, delta_n=0.01, misfit_sd=0.01, **quiet), np.random.default_rng(0))[
        "loss"
    ]
    misfit = drawn - law
    for m in np.unique(plan["top_m"]):
        assert np.ptp(misfit[plan["top_m"] == m]) < 1e-12
    assert np.ptp(misfit) > 1e-3


def test_slopes_of_a_seed_block_are_its_own() -> None:
    plan = study_design(load_study("density_over_size"), "none")
    truth = Truth(delta_m=0.02, delta_n=0.01, slope_sd=0.01, run_sd=0.0, block_sd=0.0)
    loss, octaves = draw(plan, truth, np.random.default_rng(0))["loss"], np.log2(plan["top_m"])
    kept = (plan["n_keys"] == 64) & (plan["tokens"] == 1e6)
    slopes = [
        np.polyfit(octaves[here], loss[here], 1)[0]
        for here in (kept & (plan["seed"] == s) for s in np.unique(plan["seed"]))
    ]
    assert np.std(slopes) > 1e-3
    with pytest.raises(UserError, match="slope_sd"):
        Truth(delta_m=0.02, delta_n=0.01, slope_sd=-1.0)


def test_stricter_units_are_judged_beside_the_verdict() -> None:
    plan = study_design(load_study("density_over_size"), "none")
    found = simulate(plan, Truth(delta_m=0.05, delta_n=0.0, run_sd=0.002, block_sd=0.0), n_tables=3)
    assert {name: guard.power.share for name, guard in found.guards.items()} == {"blocks": 1.0, "levels": 1.0}
    assert to_json(found)["guards"]["blocks"]["false_verdicts"]["count"] == 0
