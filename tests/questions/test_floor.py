"""A law's constant term against a known floor."""

import numpy as np
import pytest

from umscale.laws.forms import LAWS
from umscale.laws.sections import study_report
from umscale.questions.floor import floor_answers

E = 1.5


def table(floor: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = [
        (n, d, f"{n}-{seed}", seed, E + 20 * n**-0.4 + 60 * d**-0.4 + 0.002 * rng.standard_normal())
        for n in (1e4, 3e4, 1e5, 3e5)
        for d in (1e5, 3e5, 1e6, 3e6)
        for seed in (0, 1, 2)
    ]
    columns = {
        name: np.array(column)
        for name, column in zip(
            ("active_params", "tokens", "run_id", "seed", "loss"), zip(*rows, strict=True), strict=True
        )
    }
    n = len(rows)
    return columns | {
        "stage": np.array(["annealed"] * n, dtype=object),
        "compensation": np.array(["none"] * n, dtype=object),
        "floor_nats": np.full(n, floor),
        "top_m": np.full(n, 8.0),
        "sparse_params": np.full(n, 1e5),
    }


@pytest.mark.parametrize(("floor", "covered"), [(E, True), (E + 0.2, False)])
def test_the_true_floor_is_covered_and_a_wrong_one_is_not(floor, covered):
    found = study_report(table(floor), [LAWS["chinchilla"]], losses=("loss",))
    [answer] = floor_answers(table(floor), found)
    assert answer.fitted.value == pytest.approx(E, abs=0.1)
    assert answer.covered == covered
    assert ("covers" in answer.words) == covered


def test_a_constant_above_a_measured_loss_does_not_hold():
    rows = table(E)
    rows["loss"][0] = E - 0.1  # a run that has found what the others have not
    found = study_report(rows, [LAWS["chinchilla"]], losses=("loss",))
    [answer] = floor_answers(rows, found)
    assert not answer.holds
    assert f"above a loss measured, {E - 0.1:.4f}" in answer.words


def test_without_a_known_floor_nothing_is_said():
    found = study_report(table(np.nan), [LAWS["chinchilla"]], losses=("loss",))
    assert floor_answers(table(np.nan), found) == ()
