"""Laws of ten kinds on random tables: no other search finds less. `umscale bench fit --kinds` tries thirty of each."""

import numpy as np
import pytest

from umscale.bench.law_forms import KINDS, draw_table, fit_kind, trial


@pytest.mark.parametrize("name", KINDS)
def test_the_least_objective_is_found(name: str) -> None:
    assert trial(KINDS[name], 0 if name != "farseer" else 1, n_starts=1).reached


@pytest.mark.parametrize("name", ["decay", "logistic", "repeated"])
def test_the_least_objective_is_found_under_huber(name: str) -> None:
    assert trial(KINDS[name], 1, objective="huber", n_starts=1).reached


def test_bounds_around_the_truth_do_no_harm() -> None:
    kind = KINDS["stretched"]
    table, truth = draw_table(kind, 2)
    free = fit_kind(kind, table)
    bounded = fit_kind(kind, table, bounds={"T": (0.0, np.inf), "b": (0.0, 5.0)})
    assert bounded.objective <= free.objective * (1 + 1e-9) or free.coefficients["b"] < 0
    assert free.starts_at_optimum is not None
    assert 0 < free.starts_at_optimum <= 1
    assert set(truth) == set(free.coefficients)
