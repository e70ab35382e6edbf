"""The whole report of a study: sections, verdicts, and a JSON form of plain finite data."""

import json
import math

import pytest

from tests.laws.tables import study_table
from umscale.errors import UserError
from umscale.questions.density_over_size import answer
from umscale.questions.question import Asked
from umscale.results.table import Table


def study(slope_m: float, slope_n: float) -> Table:
    """A 4 x 3 grid with 2 seeds and little noise, from a local law in nats per doubling."""
    return study_table(seeds=2, a=-slope_m, b=-slope_n, run_noise=0.002)


def test_every_stage_and_loss_has_laws_and_a_verdict():
    found = answer(study(0.03, 0.01), Asked())
    assert {(s.stage, s.loss) for s in found.laws.sections} == {
        (stage, loss) for stage in ("stable", "annealed") for loss in ("loss", "loss_ema")
    }
    assert {v.answer for v in found.verdicts} == {"supported"}
    assert {v.answer for v in answer(study(0.01, 0.03), Asked()).verdicts} == {"contradicted"}
    assert [s.stage for s in answer(study(0.03, 0.01), Asked(stage="stable")).laws.sections] == ["stable"] * 2


def test_json_names_each_coefficient_with_its_interval():
    tree = answer(study(0.03, 0.01), Asked(losses=("loss",))).to_json()
    fit = next(f for f in tree["fits"] if f["law"] == "additive" and f["stage"] == "annealed")
    assert tree["schema"] == 2
    slope = fit["coefficients"]["a"]
    assert slope["value"] == pytest.approx(-0.03, abs=0.004)
    assert slope["low"] < slope["value"] < slope["high"] < 0
    assert slope["identified"]
    assert "d" in fit["dropped"]

    def plain(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    assert json.loads(json.dumps(tree, default=plain))


def test_nothing_to_fit_is_a_user_error():
    empty = {name: column[:0] for name, column in study(0.0, 0.0).items()}
    with pytest.raises(UserError, match="no finished runs"):
        answer(empty, Asked())
    with pytest.raises(UserError, match="did you mean 'additive'"):
        answer(study(0.0, 0.0), Asked(laws=["additiv"]))
