"""Run-to-run noise: pooled within cells, whatever lies between them."""

import numpy as np
import pytest

from umscale.errors import UserError
from umscale.questions.noise import run_noise


def table(rng, n_seeds=6, deviation=0.01, block=0.0):
    rows = []
    shared = 0.05 * rng.standard_normal(n_seeds)  # what a seed does to all runs alike
    for cell in range(30):
        for seed in range(n_seeds):
            for stage, sd in (("annealed", deviation), ("stable", 3 * deviation)):
                loss = 2 - 0.1 * cell + block * shared[seed] + sd * rng.standard_normal()
                rows.append((f"top_m={cell} seed={seed}", stage, 1e6, loss, loss, seed))
    names = ("label", "stage", "budget", "loss", "loss_ema", "seed")
    return {n: np.array([r[i] for r in rows], dtype=object if i < 2 else float) for i, n in enumerate(names)}


def test_noise_is_what_lies_within_cells():
    found = {(n.stage, n.loss): n for n in run_noise(table(np.random.default_rng(0)))}
    annealed, stable = found["annealed", "loss"], found["stable", "loss"]
    assert 100 < annealed.freedom <= 30 * 5
    assert annealed.n_runs == 180
    assert annealed.deviation.low < annealed.deviation.value < annealed.deviation.high
    assert annealed.deviation.value == pytest.approx(0.01, rel=0.25)  # over four standard errors
    assert stable.deviation.value == pytest.approx(0.03, rel=0.25)


def test_what_a_seed_shares_is_no_noise_within_blocks():
    found = {n.stage: n for n in run_noise(table(np.random.default_rng(3), block=1.0)) if n.loss == "loss"}
    assert found["annealed"].deviation.value > 0.02
    assert found["annealed"].in_block.value == pytest.approx(0.01, rel=0.25)
    assert found["annealed"].in_block.low < 0.01 < found["annealed"].in_block.high


def test_intervals_cover_although_cells_share_what_a_seed_does():
    """Thirty cells of six seeds are not 150 independent draws of what a seed does to all of them."""
    truth, covered = np.hypot(0.05, 0.01), []
    for seed in range(200):
        noise = run_noise(table(np.random.default_rng(seed), block=1.0), stage="annealed")[0]
        assert noise.freedom < 75
        covered.append(noise.deviation.low <= truth <= noise.deviation.high)
    assert np.mean(covered) > 0.88


def test_intervals_cover_cell_by_cell():
    each = [
        n
        for n in run_noise(table(np.random.default_rng(1)), by_cell=True, stage="annealed")
        if n.loss == "loss"
    ]
    assert len(each) == 30
    covered = np.mean([n.deviation.low <= 0.01 <= n.deviation.high for n in each])
    assert covered >= 0.8


def test_one_seed_shows_no_noise():
    with pytest.raises(UserError, match="two seeds"):
        run_noise(table(np.random.default_rng(2), n_seeds=1))
