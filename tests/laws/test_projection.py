"""Variable projection: steps about the middle of the rows, and the slopes along them."""

import numpy as np
import pytest

from umscale.bench.law_forms import KINDS, draw_table
from umscale.laws.generic import _projection, expression_problem
from umscale.laws.projection import Projection


def posed(name: str) -> tuple[Projection, np.ndarray]:
    """A kind's law on a table of it, and a place near the truth [1, P]."""
    kind = KINDS[name]
    table, truth = draw_table(kind, 1)
    law = kind.law
    values = {s: np.asarray(table[s], dtype=np.float64) for s in law.symbols}
    problem = expression_problem(law, values, residual="log", delta=np.inf)
    projection = _projection(problem, np.asarray(table["loss"], dtype=np.float64))
    near = np.array([[truth[n] for n in law.coefficients]]) * np.linspace(0.97, 1.04, len(truth))
    return projection, projection.solve(projection.view.outside(near))[0]


@pytest.mark.parametrize(("name", "centred"), [("farseer", "sru"), ("gamma", "AB"), ("stretched", "")])
def test_slopes_are_those_of_the_steps(name: str, centred: str) -> None:
    projection, theta = posed(name)
    names = {k: n for n, k in projection.view.index.items()}
    assert {names[c.coefficient] for c in projection.centres} == set(centred)
    _, _, residual, design = projection._solved(theta)
    analytic = -(projection._slopes(theta, residual, design) @ residual[..., None])[0, :, 0]
    count = len(projection.moving)
    h = 1e-6 * np.maximum(1.0, np.abs(theta[0, projection.moving]))
    for c in projection.centres:  # relative steps
        h[projection.moving.index(c.coefficient)] = 1e-6
    numeric = np.empty(count)
    for k in range(count):
        step = np.zeros((2, count))
        step[:, k] = h[k], -h[k]
        value = projection.solve(projection._moved(np.repeat(theta, 2, axis=0), step))[1]
        numeric[k] = (value[0] - value[1]) / (2 * h[k])
    assert analytic == pytest.approx(numeric, rel=1e-4, abs=1e-6 * np.abs(numeric).max())


def test_a_step_of_an_exponent_keeps_the_middle() -> None:
    """Farseer's U + u·N^q: moving q keeps level and slope at the middle of the rows."""
    projection, theta = posed("farseer")
    index = projection.view.index
    centre = next(c for c in projection.centres if c.coefficient == index["u"])
    step = np.zeros((1, len(projection.moving)))
    step[0, projection.moving.index(index["q"])] = 0.05
    moved = projection._moved(theta, step)

    def level_and_slope(at: np.ndarray) -> tuple[float, float]:
        size = float(centre.size(at)[0])
        return float(at[0, index["U"]]) + size, size * float(at[0, index["q"]])

    assert moved[0, index["q"]] == pytest.approx(theta[0, index["q"]] + 0.05)
    assert level_and_slope(moved) == pytest.approx(level_and_slope(theta), rel=1e-12)
