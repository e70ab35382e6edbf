"""The optimum memory-to-FFN ratio: recovered, covered, and refused where a table does not show one."""

import numpy as np
import pytest

from umscale.errors import UserError
from umscale.questions.memory_to_ffn import memory_to_ffn, ratio_verdicts

PAPER = 0.17 / 0.83


def ratio_table(
    seed: int,
    *,
    best: float = PAPER,
    curvature: float = 0.02,
    noise: float = 0.003,
    ratios: tuple[float, ...] = (0.08, 0.14, 0.2, 0.3, 0.45),
    seeds: int = 3,
    flops: float = 1e6,
) -> dict[str, np.ndarray]:
    """L = 2 + curvature·log2²(r/best), with a run's noise and an offset for each seed."""
    rng = np.random.default_rng(seed)
    rows = []
    for block in range(seeds):
        offset = rng.normal(0, 0.05)
        for i, r in enumerate(ratios):
            run = rng.normal(0, noise)
            for budget in (1e6, 2e6):
                loss = 2 + curvature * np.log2(r / best) ** 2 - 0.1 * np.log2(budget / 1e6) + offset + run
                rows += [
                    (f"{r}-{block}", block, stage, budget, loss + extra, r, 128 - i, flops, "iso_flops")
                    for stage, extra in (("annealed", 0.0), ("stable", 0.1))
                ]
    names = (
        "run_id",
        "seed",
        "stage",
        "tokens",
        "loss",
        "memory_to_ffn",
        "d_ffn",
        "flops_per_token",
        "compensation",
    )
    return {
        n: np.array([r[i] for r in rows], dtype=object if n in ("run_id", "stage", "compensation") else float)
        for i, n in enumerate(names)
    }


def test_the_papers_optimum_is_consistent_with_itself() -> None:
    found = memory_to_ffn(ratio_table(0), stage="annealed")
    assert found.answer == "consistent"
    assert found.mcp is not None
    assert found.mcp.value == pytest.approx(0.17, abs=0.02)
    assert found.mcp.low < 0.17 < found.mcp.high
    assert found.warnings == ()


def test_another_optimum_is_different() -> None:
    found = memory_to_ffn(ratio_table(0, best=0.35), stage="annealed")
    assert found.answer == "different"
    assert "above" in found.reason
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.35, rel=0.1)
    assert found.paper_excess is not None
    assert found.paper_excess.value == pytest.approx(0.02 * np.log2(0.35 / PAPER) ** 2, rel=0.3)


def test_intervals_of_the_optimum_cover() -> None:
    """100 tables: three standard errors at 95% are 7 points."""
    hits = 0
    for seed in range(100):
        ratio = memory_to_ffn(ratio_table(seed, noise=0.006), stage="annealed").ratio
        if ratio is None:  # curved the wrong way: the set of optima is unbounded and covers
            hits += 1
            continue
        low, high = np.nan_to_num(ratio.low, nan=0.0), np.nan_to_num(ratio.high, nan=np.inf)
        hits += low <= PAPER <= high
    assert hits >= 88


def test_a_table_without_an_optimum_is_seldom_decided() -> None:
    answers = [memory_to_ffn(ratio_table(s, curvature=0.0), stage="annealed").answer for s in range(60)]
    assert answers.count("inconclusive") >= 54


def test_an_optimum_outside_the_grid_is_inconclusive() -> None:
    found = memory_to_ffn(ratio_table(0, best=0.9, noise=1e-4), stage="annealed")
    assert found.answer == "inconclusive"
    assert "outside the grid" in found.reason


@pytest.mark.parametrize("ratios", [(0.1,), (0.1, 0.3)])
def test_fewer_than_three_levels_show_no_minimum(ratios: tuple[float, ...]) -> None:
    found = memory_to_ffn(ratio_table(0, ratios=ratios), stage="annealed")
    assert found.answer == "inconclusive"
    assert found.ratio is None


def test_every_stage_is_answered_and_uneven_compute_is_said() -> None:
    table = ratio_table(0)
    found = ratio_verdicts(table)
    assert [(v.stage, v.loss) for v in found] == [("annealed", "loss"), ("stable", "loss")]
    table["flops_per_token"] = table["memory_to_ffn"] * 1e6
    assert any("compute is not constant" in w for w in memory_to_ffn(table, stage="stable").warnings)


def test_bad_tables_are_user_errors() -> None:
    table = ratio_table(0)
    with pytest.raises(UserError, match="mixes stage"):
        memory_to_ffn(table, stage=None)
    with pytest.raises(UserError, match="no column"):
        memory_to_ffn({k: v for k, v in table.items() if k != "memory_to_ffn"}, stage="annealed")


def test_one_bad_end_is_no_minimum() -> None:
    """Cells without a minimum, and one at the end that is far worse: a parabola through them has a least point."""
    table = ratio_table(0, curvature=-0.01)
    table["loss"] = table["loss"] + 0.15 * (table["memory_to_ffn"] == 0.08)
    found = memory_to_ffn(table, stage="annealed")
    assert found.answer == "inconclusive"
    assert "further from the curve" in found.reason
    assert any("rests on the cells at a ratio of 0.08" in w for w in found.warnings)
