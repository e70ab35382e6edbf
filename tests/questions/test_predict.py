"""Predictions: intervals that hold as often as they say, points as asked, and no difference kept for ever."""

import numpy as np
import pytest

from tests.laws.tables import study_table
from umscale.errors import UserError
from umscale.laws.fit import fit_law
from umscale.laws.forms import LAWS
from umscale.laws.uncertainty import bootstrap
from umscale.questions.predict import changes_with_tokens, interval_score, points_of, predict
from umscale.questions.rollout import roll_out

TRUTH = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37}


def loss_at(n, d):
    return TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]


def scaling_table(seed, noise=0.01, sizes=6, tokens=5, group_noise=0.0):
    """A grid of N and D with noise in ln L; runs of one N share a part of it."""
    rng = np.random.default_rng(seed)
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, sizes), np.geomspace(1e9, 1e11, tokens)))
    shared = np.repeat(rng.normal(0, group_noise, sizes)[None], tokens, axis=0).ravel() if group_noise else 0
    loss = loss_at(n, d) * np.exp(noise * rng.standard_normal(len(n)) + shared)
    return {"active_params": n, "tokens": d, "loss": loss}


def test_intervals_of_a_run_hold_as_often_as_they_say_and_the_laws_hold_the_truth():
    """Inside and two octaves out, 30 tables of 30 rows: 95% of new runs, and of the law's own intervals the truth."""
    held, true = [], []
    for seed in range(30):
        fit = fit_law(scaling_table(seed), "chinchilla", objective="least_squares")
        points = [{"N": 1e8, "D": 1e10}, {"N": 4e9, "D": 4e11}, {"N": 2e7, "D": 1e11}]
        found = predict(bootstrap(fit, n_draws=150, seed=seed), points)
        rng = np.random.default_rng(1000 + seed)
        for one in found.points:
            right = loss_at(one.at["N"], one.at["D"])
            runs = right * np.exp(0.01 * rng.standard_normal(40))
            held += ((one.run.low <= runs) & (runs <= one.run.high)).tolist()
            true.append(one.loss.low <= right <= one.loss.high)
    assert 0.92 <= np.mean(held) <= 0.985
    assert np.mean(true) >= 0.85  # 90 intervals that share tables


def test_octaves_score_and_width_are_what_they_say():
    fit = fit_law(scaling_table(0), "chinchilla")
    found = predict(bootstrap(fit, n_draws=100), points_of(fit, {"N": [1e8], "tokens": [1e10, 4e11]}))
    near, far = found.points
    assert near.octaves == {"N": 0.0, "D": 0.0}
    assert far.octaves["D"] == pytest.approx(2.0)
    assert far.loss.high - far.loss.low > near.loss.high - near.loss.low
    assert near.run.low < near.loss.low < near.loss.high < near.run.high
    assert any("D +2.0" in line for line in found.statements)
    assert near.expected_score > near.run.high - near.run.low
    assert interval_score(np.array([0.5, 1.5, 3.0]), 1.0, 2.0, 0.9) == pytest.approx([1 + 10, 1, 1 + 20])


def test_points_are_products_and_axes_left_out_are_the_cells_of_the_rows():
    table = study_table(budgets=(1_000_000, 2_000_000), seeds=2)
    fit = fit_law(table, "trend", stage="annealed")
    points = points_of(fit, {"tokens": [4e6, 8e6]})
    assert len(points) == 2 * 12
    assert {(p["m"], p["N_s"]) for p in points} == {
        (m, n) for m in (16, 32, 64, 128) for n in (2.0**16, 2.0**18, 2.0**20)
    }
    with pytest.raises(UserError, match="did you mean 'tokens'"):
        points_of(fit, {"token": [1e6]})
    with pytest.raises(UserError, match="must be positive"):
        points_of(fit, {"D": [-1.0]})
    wide = fit_law(scaling_table(0, sizes=70), "chinchilla")
    with pytest.raises(UserError, match=r"say N \(active_params\)"):
        points_of(wide, {"D": [1e12]})


def test_a_difference_that_never_changes_is_not_carried_along_tokens():
    table = study_table(budgets=(1_000_000, 2_000_000, 4_000_000), seeds=2)
    fixed = bootstrap(fit_law(table, "additive", stage="annealed"), n_draws=200)
    inside = [{"m": 32.0, "N_s": 2.0**18, "D": 2e6}]
    assert predict(fixed, inside).points[0].run.has_interval
    with pytest.raises(UserError, match="trend, trend_curved"):
        predict(fixed, [{**inside[0], "D": 8e6}])
    moving = bootstrap(fit_law(table, "trend", stage="annealed"), n_draws=200)
    assert predict(moving, [{**inside[0], "D": 8e6}]).points[0].run.has_interval
    assert [changes_with_tokens(LAWS[name]) for name in ("additive", "trend", "power_additive", "power_trend")] == [
        False, True, False, True,
    ]  # fmt: skip


def test_trend_recovers_effects_that_shrink_with_tokens():
    table = study_table(budgets=(1_000_000, 2_000_000, 4_000_000), seeds=3, run_noise=0.0, block_noise=0.0)
    moved = np.log2(table["top_m"] / 45.25) * np.log2(table["tokens"] / 2e6)
    table["loss"] = table["loss"] + 0.004 * moved
    fit = fit_law(table, "trend", stage="annealed")
    assert fit.coefficients["p"] == pytest.approx(0.004, abs=1e-9)
    assert fit.coefficients["q"] == pytest.approx(0.0, abs=1e-9)


def test_roll_outs_predict_each_step_from_the_smaller_ones():
    table = scaling_table(3, noise=0.003)
    fit = fit_law(table, "chinchilla")
    compute = 6 * table["active_params"] * table["tokens"]
    found = roll_out(fit, compute, "C", draws=50)
    assert found.steps[0].skipped
    tested = [one for one in found.steps if not one.skipped]
    assert len(tested) >= 5
    last = tested[-1]
    assert last.n_train + last.n_test == 30
    assert last.rmse < 0.05
    assert sum(one.held for one in tested) >= 0.7 * sum(one.n_test for one in tested)
    along_n = roll_out(fit, table["active_params"], "N", draws=50)
    assert [one.n_test for one in along_n.steps] == [5] * 5
    with pytest.raises(UserError, match="nothing to roll out"):
        roll_out(fit, np.ones(30), "lr")
