"""Formulas: min, max, indicators and names in backquotes, with derivatives that match differences."""

import numpy as np
import pytest

from umscale import formulas
from umscale.errors import UserError


def value(text, columns, theta=None, order=0):
    root = formulas.parse(text, columns)
    names = formulas.coefficient_names(root)
    theta = np.zeros((1, 0)) if theta is None else np.array([[theta[n] for n in names]])
    return formulas.evaluate(root, columns, theta, {n: k for k, n in enumerate(names)}, order=order)


X = np.array([0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max(x, 1)", [1, 1, 2, 4]),
        ("min(x, 1, 0.7)", [0.5, 0.7, 0.7, 0.7]),
        ("(x > 1)", [0, 0, 1, 1]),
        ("(x <= 1)*x", [0.5, 1, 0, 0]),
        ("`odd-name` + x", [1.5, 2, 3, 5]),
    ],
)
def test_values(text, expected):
    found = value(text, {"x": X, "odd-name": np.ones(4)}).value
    assert np.broadcast_to(found, (1, 4))[0] == pytest.approx(expected)


@pytest.mark.parametrize("text", ["max(a*x, b)", "min(a*x**b, 2*b) + a", "exp(-a*x)*(x > 1) + b"])
def test_derivatives_match_differences(text):
    at, step = {"a": 0.9, "b": 1.3}, 1e-6
    jet = value(text, {"x": X}, at, order=2)
    for k, name in enumerate(at):
        up, down = (value(text, {"x": X}, {**at, name: at[name] + s}).value for s in (step, -step))
        slope = np.broadcast_to(jet.first.get(k, np.zeros((1, 1))), (1, 4))
        assert slope == pytest.approx((up - down) / (2 * step), abs=1e-8)


def test_text_of_a_formula_reads_back():
    columns = {"x": X, "odd-name": X}
    for text in ("max(a, x)*(x > 1)", "`odd-name`**2 - min(x, 3)", "-(x <= 2)*a"):
        root = formulas.parse(text, columns)
        assert formulas.parse(formulas.unparse(root), columns) == root


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max(x)", "two arguments"),
        ("min", "two arguments"),
        ("x if x else 1", "not part"),
        ("max(x, y=1)", "not part|two"),
    ],
)
def test_refusals(text, message):
    with pytest.raises(UserError, match=message):
        formulas.parse(text, ("x",))


def test_a_coefficient_in_a_comparison_is_refused():
    with pytest.raises(UserError, match="cannot be fitted inside a comparison"):
        formulas.check_indicators(formulas.parse("E*(x > cut)", ("x",)))
