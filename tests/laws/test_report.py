"""The whole report of a study: sections, verdicts, and a JSON form of plain finite data."""

import json
import math

import numpy as np
import pytest

from umscale.errors import UserError
from umscale.laws.report import report, to_json


def study(slope_m: float, slope_n: float, noise: float = 0.002) -> dict[str, np.ndarray]:
    """A 4 x 3 grid with 2 seeds, two stages and both loss columns, from a local law in nats per doubling."""
    rng = np.random.default_rng(1)
    rows = [
        (m, n, seed, stage)
        for m in (8, 16, 32, 64)
        for n in (1e5, 4e5, 1.6e6)
        for seed in (0, 1)
        for stage in ("stable", "annealed")
    ]
    m, n, seed, stage = (np.array(column, dtype=object) for column in zip(*rows, strict=True))
    loss = 3 - slope_m * np.log2(m.astype(float)) - slope_n * np.log2(n.astype(float))
    loss = loss + np.where(stage == "stable", 0.1, 0.0) + noise * rng.standard_normal(len(rows))
    return {
        "run_id": np.array([f"{a}-{b}-{s}" for a, b, s, _ in rows], dtype=object),
        "seed": seed.astype(float),
        "stage": stage,
        "compensation": np.full(len(rows), "none", dtype=object),
        "budget": np.full(len(rows), 1e6),
        "tokens": np.full(len(rows), 1e6),
        "top_m": m.astype(float),
        "sparse_params": n.astype(float),
        "loss": loss,
        "loss_ema": loss - 0.01,
    }


def test_every_stage_and_loss_has_laws_and_a_verdict():
    found = report(study(0.03, 0.01))
    assert {(s.stage, s.loss) for s in found.sections} == {
        (stage, loss) for stage in ("stable", "annealed") for loss in ("loss", "loss_ema")
    }
    assert {v.answer for v in found.verdicts} == {"supported"}
    assert {v.answer for v in report(study(0.01, 0.03)).verdicts} == {"contradicted"}
    assert [s.stage for s in report(study(0.03, 0.01), stage="stable").sections] == ["stable"] * 2


def test_json_names_each_coefficient_with_its_interval():
    tree = to_json(report(study(0.03, 0.01), losses=("loss",)))
    fit = next(f for f in tree["fits"] if f["law"] == "additive" and f["stage"] == "annealed")
    assert tree["schema"] == 1
    slope = fit["coefficients"]["a"]
    assert slope["low"] < -0.03 < slope["high"]
    assert slope["identified"]
    assert "d" in fit["dropped"]

    def plain(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    assert json.loads(json.dumps(tree, default=plain))


def test_nothing_to_fit_is_a_user_error():
    empty = {name: column[:0] for name, column in study(0.0, 0.0).items()}
    with pytest.raises(UserError, match="no finished runs"):
        report(empty)
    with pytest.raises(UserError, match="did you mean 'additive'"):
        report(study(0.0, 0.0), ["additiv"])
