"""Shares of a sparse budget: optima recovered, covered and refused, for two parts and three; the slot law."""

import dataclasses
import json

import numpy as np
import pytest

from umscale.design.allocation import shares_of
from umscale.design.axes import solve
from umscale.errors import UserError
from umscale.plots.allocation import allocation_figure
from umscale.questions.allocation import (
    AllocationAnswer,
    allocation,
    allocations,
    draw,
    simulate,
    slot_law,
    with_shares,
)
from umscale.questions.question import Asked, find
from umscale.render.terminal import to_text
from umscale.spec import DataSpec, FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec, to_dict

FIVE = (0.0, 0.25, 0.5, 0.75, 1.0)


def two_way(
    slope: float, curvature: float, seed: int = 0, shares: tuple[float, ...] = FIVE, **noise: float
) -> dict:
    return draw(np.random.default_rng(seed), shares=shares, slope=slope, curvature=curvature, **noise)


def three_way(best: tuple[float, float], *, seed: int = 0, sd: float = 0.002) -> dict:
    """A simplex in quarters, its least loss at ``best`` (product keys, n-grams)."""
    rng = np.random.default_rng(seed)
    rows = []
    for block in range(3):
        for i, (x, y) in enumerate((a / 4, b / 4) for a in range(5) for b in range(5 - a)):
            u, v = x - best[0], y - best[1]
            loss = 2 + 0.1 * (u**2 + v**2 + u * v) + 0.02 * block + rng.normal(0, sd)
            rows.append((i * 3 + block, block, i, x, y, loss, 1e6, 4e6, 1e6))
    names = ("run_id", "seed", "n_experts", "memory_share", "ngram_share", "loss", "tokens", "total_params")
    return dict(zip((*names, "flops_per_token"), np.array(rows).T, strict=True))


def slots(per_doubling: float, bend: float = 0.0, *, seed: int = 0, sd: float = 0.003) -> dict:
    rng = np.random.default_rng(seed)
    rows = []
    for block in range(4):
        for octave in range(7):
            loss = 2 + per_doubling * octave + bend * octave**2 + 0.02 * block + rng.normal(0, sd)
            rows.append((octave * 4 + block, block, octave, 512 * 2.0**octave, loss, 1e6))
    return dict(
        zip(("run_id", "seed", "n_experts", "ngram_rows", "loss", "tokens"), np.array(rows).T, strict=True)
    )


def test_an_interior_optimum_is_found_with_what_the_ends_cost() -> None:
    found = allocation(two_way(-0.048, 0.08), stage=None)
    assert found.answer == "interior optimum"
    best = found.best["memory_share"]
    assert best.low < 0.3 < best.high
    assert best.value == pytest.approx(0.3, abs=0.08)
    assert found.best["experts"].value == pytest.approx(1 - best.value)
    cost = {end.part: end.cost for end in found.ends}
    assert cost["experts"].low < 0.08 * 0.3**2 < cost["experts"].high
    assert cost["memory_share"].low < 0.08 * 0.7**2 < cost["memory_share"].high
    assert [at.tokens for at in found.by_budget] == [1e6, 2e6]
    assert found.warnings == ()


@pytest.mark.parametrize(("slope", "end"), [(0.05, 0.0), (-0.05, 1.0)])
def test_an_end_is_named(slope: float, end: float) -> None:
    found = allocation(two_way(slope, 0.0), stage=None)
    assert found.answer == "an end"
    assert found.best["memory_share"].value == end
    assert ("all in experts" if end == 0 else "all in product-key memory") in found.reason


def test_ends_that_were_not_measured_decide_nothing() -> None:
    found = allocation(two_way(-0.1, 0.0, shares=(0.1, 0.2, 0.3, 0.4, 0.5)), stage=None)
    assert found.answer == "inconclusive"
    assert "where measuring ended" in found.reason


def test_three_shares_and_one_bad_end_are_no_optimum() -> None:
    assert "nothing tests it" in allocation(two_way(-0.08, 0.08, shares=(0, 0.5, 1)), stage=None).reason
    table = two_way(-0.02, 0.0)
    table["loss"] = table["loss"] + 0.05 * (table["memory_share"] == 1)
    found = allocation(table, stage=None)
    assert found.answer == "inconclusive"
    assert "further from the surface" in found.reason
    # Where noise hides that, the outermost cells alone make the optimum.
    table = two_way(-0.02, 0.0, shares=(0, 0.33, 0.67, 1), run_sd=0.004, seed=1)
    table["loss"] = table["loss"] + 0.025 * (table["memory_share"] == 1)
    assert allocation(table, stage=None).answer == "inconclusive"


def test_verdicts_are_seldom_wrong_and_intervals_cover() -> None:
    """40 tables each; at most 5% wrong in truth, and six or more have a chance below 2%."""
    for slope, curvature in ((0.0, 0.0), (0.02, 0.0), (-0.04, 0.08)):
        found = simulate(slope=slope, curvature=curvature, n_tables=40)
        assert found.false_verdicts.count < 6
        assert found.coverage.of - found.coverage.count < 6
    assert found.answers["interior optimum"].count > 25  # power, where there is one


@pytest.mark.parametrize(
    ("best", "word"),
    [((0.3, 0.3), "interior optimum"), ((-0.6, 0.5), "an end"), ((0.02, 0.4), "inconclusive")],
)
def test_three_parts(best: tuple[float, float], word: str) -> None:
    found = allocation(three_way(best), stage=None)
    assert found.answer == word
    assert found.parts == ("experts", "memory_share", "ngram_share")
    assert len(found.ends) == 3
    if word == "interior optimum":
        assert found.best["memory_share"].low < 0.3 < found.best["memory_share"].high
        assert found.best["ngram_share"].low < 0.3 < found.best["ngram_share"].high
        inside = np.array(found.surface.shares)[np.array(found.surface.inside)]
        assert np.abs(inside[:, 1:] - 0.3).max(axis=1).min() < 0.03
        assert len(inside) < len(found.surface.shares) / 4
    if word == "an end":
        assert "none in product-key memory" in found.reason


def test_the_slot_law_is_a_line_or_curved_or_open() -> None:
    line = slot_law(slots(-0.02), stage=None)
    assert line.answer == "log-linear"
    assert line.per_doubling.low < -0.02 < line.per_doubling.high
    assert line.held_out.low < 0 < line.held_out.high
    assert slot_law(slots(-0.03, 0.003), stage=None).answer == "curved"
    assert slot_law(slots(0.0), stage=None).answer == "inconclusive"
    # So noisy that the largest table tells a line from no further gain no better than a coin.
    assert slot_law(slots(-0.02, sd=0.03), stage=None).answer == "inconclusive"
    with pytest.raises(UserError, match="four sizes"):
        slot_law({k: v[slots(-0.02)["ngram_rows"] < 4096] for k, v in slots(-0.02).items()}, stage=None)


def test_the_largest_table_is_held_out() -> None:
    """What happens there moves the line through the others by nothing."""
    table = slots(-0.02)
    moved = table | {"loss": table["loss"] + 0.1 * (table["ngram_rows"] == table["ngram_rows"].max())}
    one, other = slot_law(table, stage=None), slot_law(moved, stage=None)
    assert other.held_out.value - one.held_out.value == pytest.approx(0.1)


def test_shares_are_those_that_cells_achieved() -> None:
    """A store's table has specs: shares follow from them."""
    mixture = ModelSpec(
        d_model=64, n_layers=4, n_heads=2, vocab_size=257,
        ffn=FfnSpec(kind="moe", d_ffn=40, n_experts=96, top_k=8, normalize_gates=True),
        memory=MemorySpec(n_keys=128, top_m=32, d_key=16, d_pre_value=16, d_value=32),
    )  # fmt: skip
    targets = {"total_params": 4e6, "memory_share": 0.5}
    model = solve(mixture, targets, "iso_flops", 256, dataclasses.replace(mixture, memory=None)).model
    run = RunSpec(model=model, data=DataSpec(corpus="enwik8"), train=TrainSpec())
    table = with_shares({"spec": np.array([json.dumps(to_dict(run)), None], dtype=object)})
    assert table["memory_share"][0] == shares_of(model)["memory_share"] == pytest.approx(0.5, abs=0.02)
    assert table["ngram_share"][0] == 0
    assert np.isnan(table["memory_share"][1])


def test_every_stage_and_weights_are_answered_in_words() -> None:
    table = two_way(-0.048, 0.08)
    twice = {k: np.concatenate([v, v]) for k, v in table.items()}
    twice["stage"] = np.repeat(np.array(["stable", "annealed"], dtype=object), len(table["loss"]))
    twice["loss_ema"] = twice["loss"] + 0.001
    found = find("allocation").answer(twice, Asked(losses=("loss",)))
    assert isinstance(found, AllocationAnswer)
    assert {(v.stage, v.loss) for v in found.found} == {
        (s, x) for s in ("stable", "annealed") for x in ("loss", "loss_ema")
    }
    said = " ".join(to_text(found.blocks(), 120).split())
    assert "interior optimum before and after the decay" in said
    assert "20% to 25% in n-gram memory" in said
    json.dumps(found.to_json())
    with pytest.raises(UserError, match="mixes stage"):
        allocation(twice, stage=None)
    with pytest.raises(UserError, match="no share varies"):
        allocation({k: v[table["memory_share"] == 0] for k, v in table.items()}, stage=None)


@pytest.mark.parametrize("kind", ["two", "three", "slots"])
def test_figures_draw_the_answer(kind: str) -> None:
    table = {"two": two_way(-0.048, 0.08), "three": three_way((0.3, 0.3)), "slots": slots(-0.02)}[kind]
    found = allocations(table, losses=("loss",))
    figure = allocation_figure(found)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    if kind == "two":
        one = found.found[0]
        x, y = lines["law"].get_data()
        assert x[np.argmin(y)] == pytest.approx(one.best["memory_share"].value)
        assert len(lines["cells, block and tokens taken out"].get_xdata()) == 5
    if kind == "three":
        assert len(lines["cells"].get_xdata()) == 15
    if kind == "slots":
        assert lines["held out for the test"].get_xdata() == [512 * 64]
