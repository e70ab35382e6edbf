"""Laws as text: what is read, what is recognised, what is refused, and how pins, ties and bounds act."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from umscale import formulas as tree
from umscale.errors import UserError
from umscale.laws.expression import parse_law
from umscale.laws.fit import FitResult, fit_law, profile, refit
from umscale.laws.forms import LAWS, ExpressionLaw, Law, PowerLaw, evaluate

COLUMNS = ("N", "D", "M", "C")


def values(n_rows: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: 10 ** rng.uniform(0.5, 2.5, n_rows) for name in COLUMNS}


def python(text: str, names: dict[str, object]) -> np.ndarray:
    """What Python makes of the text."""
    return np.asarray(eval(text, {"log": np.log, "exp": np.exp}, names))


POWER_LAWS = (
    "E + A*N**-alpha + B*D**-beta",
    "E + (a*M**eta + b*M**(-eta)) * C**(-eta)",
    "exp(e) + exp(a)*N**-alpha + exp(b - beta*log(D))",
    "E + 406.4/N**0.34 + B/D**beta",
    "E + A/N**alpha * exp(c1*log(C) + c2*log(C)**2)",
    "E + A*(N/1e3)**-alpha",
    "A*(N**-a + D**-b)",
    "10**d * N**a",
    "E + A*N**(alpha + g*log(M)/2)",
    "(g*C**-gamma + a)*N**-alpha + c",
)
EXPRESSIONS = (
    "E - A*N**alpha",
    "E + A*(N**(1 - g)*M**g)**-alpha",
    "E + A*log(N)",
    "a*b*N",
    "E + A*exp(-k*N)",
    "E + A/(N + N0)**alpha",
    "E + A**2*N**-alpha",
    "+E + -A + N**2**-alpha - 1e-3*D",
)


@pytest.mark.parametrize("text", POWER_LAWS + EXPRESSIONS)
def test_a_law_predicts_what_its_text_says(text: str) -> None:
    law = parse_law(text, COLUMNS)
    assert isinstance(law, PowerLaw if text in POWER_LAWS else ExpressionLaw)
    columns = values(7)
    coefficients = np.random.default_rng(1).uniform(0.2, 0.9, (3, len(law.coefficients)))
    predicted = evaluate(law, coefficients, columns, {})
    assert predicted.shape == (3, 7)
    for row, loss in zip(coefficients, predicted, strict=True):
        names = {**columns, **dict(zip(law.coefficients, row, strict=True))}
        np.testing.assert_allclose(loss, python(text, names), rtol=1e-12)


@pytest.mark.parametrize("text", POWER_LAWS + EXPRESSIONS)
def test_unparsed_text_means_the_same(text: str) -> None:
    root = tree.parse(text, COLUMNS)
    assert tree.unparse(tree.parse(tree.unparse(root), COLUMNS)) == tree.unparse(root)
    names = {**values(5), **dict.fromkeys(tree.coefficient_names(root), 0.7)}
    np.testing.assert_allclose(python(tree.unparse(root), names), python(text, names), rtol=1e-9)


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_first_and_second_derivatives(text: str) -> None:
    root = tree.parse(text, COLUMNS)
    names = tree.coefficient_names(root)
    index = {name: k for k, name in enumerate(names)}
    at = np.random.default_rng(2).uniform(0.3, 0.8, (1, len(names)))
    columns = {name: 1 + column / 100 for name, column in values(5).items()}
    jet = tree.evaluate(root, columns, at, index, order=2)
    for i, k in itertools.product(range(len(names)), repeat=2):
        step = 1e-6 * np.eye(len(names))[k]
        up, down = (tree.evaluate(root, columns, at + s, index, order=1) for s in (step, -step))
        slope = jet.first.get(k, np.zeros(1))
        np.testing.assert_allclose(
            np.broadcast_to(slope, (1, 5)), (up.value - down.value) / 2e-6, rtol=1e-5, atol=1e-7
        )
        bend = (up.first.get(i, np.zeros(1)) - down.first.get(i, np.zeros(1))) / 2e-6
        second = jet.second.get((min(i, k), max(i, k)), np.zeros(1))
        np.testing.assert_allclose(
            np.broadcast_to(second, (1, 5)), np.broadcast_to(bend, (1, 5)), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    ("text", "linear"),
    [
        ("E + A*N**-alpha", {"E", "A"}),
        ("a*b*N + c", {"a", "c"}),
        ("(E + A*N) / (1 + k*D)", {"E", "A"}),
        ("exp(a)*N + b", {"b"}),
    ],
)
def test_which_coefficients_are_linear(text: str, linear: set[str]) -> None:
    assert set(tree.linear_coefficients(tree.parse(text, COLUMNS))) == linear


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a formula"),
        ("E + ", "is not a formula"),
        ("E + A*N^-alpha", r"'.*\^.*': write \*\* for a power"),
        ("E + f(N)", r"'f\(N\)' is not part of a formula"),
        ("E + log(N, 2)", "log and exp take one argument"),
        ("E + log", "log and exp take one argument"),
        ("E + log(x=N)", "log and exp take one argument"),
        ("E + N.real", r"'N\.real' is not part"),
        ("E + N[0]", r"'N\[0\]' is not part"),
        ("E if N else D", "is not part of a formula"),
        ("E + 'a'*N", "is not part of a formula"),
        ("E + True*N", "'True' is not part"),
        ("E + 1j*N", "'1j' is not part"),
        ("E, N", "is not part of a formula"),
        ("lambda: N", "is not part of a formula"),
        ("__import__('os').system('true')", "is not part of a formula"),
        ("E + A*N // 2", "is not part of a formula"),
        ("E + N*1e999", "too large a number"),
        ("E + N*" + "9" * 400, "too large a number"),
        ("E + N*(1/0)", "is not a finite number"),
        ("E + N*2**10000", "is not a finite number"),
        ("E + N*log(0)", "is not a finite number"),
        ("E + A*exp(1)", "reads no column"),
        ("2*N + 3", "has no coefficients"),
        ("E + " + "N*" * 600 + "N", "characters"),
        ("E + " + "-" * 60 + "N", "nested more than"),
        ("(" * 300 + "N" + ")" * 300, "is not a formula"),
        ("E +\x00 N", "is not a formula"),
        ("E + N\n+ D)", "is not a formula"),
    ],
)
def test_what_is_refused_says_so_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_law(text, COLUMNS)
    assert "\n" not in str(error.value)


def parsed(text: str) -> Law | None:
    """The law, or None when the text is refused; anything but a one-line ``UserError`` is let through."""
    refused = ""
    try:
        return parse_law(text, COLUMNS)
    except UserError as error:
        refused = str(error)
    assert refused
    assert "\n" not in refused
    return None


@settings(max_examples=400)
@given(st.text(max_size=60))
@example("1if 1else 1")
@example("\ud800")
@example("0x_1*N")
@example("１*N + Ｅ")
def test_no_text_raises_anything_else(text: str) -> None:
    law = parsed(text)
    assert law is None or law.coefficients


TOKENS = st.sampled_from(
    ["N", "D", "E", "A", "alpha", "0", "1", "2", "0.5", "1e300", "-", "+", "*", "/", "**", "(", ")", "log(", "exp("]
)  # fmt: skip


@settings(max_examples=600)
@given(st.lists(TOKENS, max_size=14).map(" ".join))
def test_no_formula_raises_anything_else(text: str) -> None:
    law = parsed(text)
    if law is None:
        return
    with np.errstate(all="ignore"):
        predicted = evaluate(law, np.full(len(law.coefficients), 0.7), values(3), {})
        np.testing.assert_allclose(
            predicted,
            python(text, {**values(3), **dict.fromkeys(law.coefficients, 0.7)}) * np.ones(3),
            rtol=1e-6,
        )


def fitted(rows: dict[str, np.ndarray], law: Law, **options: object) -> FitResult:
    """The fit with every symbol read from the column of its name."""
    return fit_law(rows, law, **{"columns": {s: s for s in law.symbols}, **options})  # type: ignore[arg-type]


def table(
    law: Law, coefficients: dict[str, float], noise: float = 0.0, n_rows: int = 80
) -> dict[str, np.ndarray]:
    rows = values(n_rows)
    clean = evaluate(law, np.array([coefficients[c] for c in law.coefficients]), rows, {})
    return {**rows, "loss": clean * np.exp(noise * np.random.default_rng(3).standard_normal(n_rows))}


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("E + (a*M**eta + b*M**(-eta)) * C**(-eta)", {"E": 1.7, "a": 0.8, "b": 5.0, "eta": 0.3}),
        ("exp(e) + exp(a)*N**-alpha + exp(b - beta*log(D))", {"e": 0.5, "a": 1.5, "alpha": 0.4, "b": 1.0, "beta": 0.3}),
        ("10**d * N**a", {"d": 0.7, "a": -0.2}),
        ("E - A*N**alpha", {"E": 5.0, "A": 0.4, "alpha": 0.3}),
        (
            "E + A*(N**(1 - g)*M**g)**-alpha + B*D**-beta",
            {"E": 1.6, "A": 3.0, "g": 0.3, "alpha": 0.5, "B": 2.0, "beta": 0.4},
        ),
        ("E + A/(N + N0)**alpha", {"E": 1.8, "A": 6.0, "N0": 20.0, "alpha": 0.6}),
        ("E + A*exp(-k*log(N)**2) - c*log(D)", {"E": 2.0, "A": 1.0, "k": 0.1, "c": 0.05}),
    ],
)  # fmt: skip
def test_written_laws_give_their_coefficients_back(text: str, truth: dict[str, float]) -> None:
    law = parse_law(text, COLUMNS)
    fit = fitted(table(law, truth), law)
    for name, value in truth.items():
        assert fit.coefficients[name] == pytest.approx(value, rel=1e-5), name
    noisy = fitted(table(law, truth, noise=0.003), law, objective="least_squares")
    clean = table(law, truth)["loss"]
    assert np.abs(noisy.predict(values(80)) / clean - 1).max() < 0.01


def test_a_written_law_is_the_named_one() -> None:
    rows = table(LAWS["chinchilla"], {"E": 1.8, "A": 5.0, "alpha": 0.35, "B": 4.0, "beta": 0.3}, noise=0.01)
    written = fitted(rows, parse_law("E + A*N**-alpha + B*D**-beta", COLUMNS))
    named = fitted(rows, LAWS["chinchilla"])
    np.testing.assert_allclose(written.vector, named.vector, rtol=1e-9)
    assert written.law.coefficients == named.law.coefficients


LAW = parse_law("E + A*N**-alpha + B*D**-beta", COLUMNS)
WRITTEN = ExpressionLaw(
    name="w", source="", formula="", root=tree.parse("E + A*N**-alpha + B*D**-beta", COLUMNS)
)
EQUAL = {"E": 1.8, "A": 5.0, "alpha": 0.35, "B": 4.0, "beta": 0.35}


@pytest.mark.parametrize("law", [LAW, WRITTEN], ids=["closed", "generic"])
def test_pins_and_ties_are_kept(law: Law) -> None:
    rows = table(LAW, EQUAL, noise=0.002)
    free = fitted(rows, law)
    fit = fitted(rows, law, pins={"E": 1.8}, ties=[("beta", "alpha")])
    assert fit.coefficients["E"] == 1.8
    assert fit.coefficients["alpha"] == fit.coefficients["beta"]
    assert (fit.n_free, free.n_free) == (3, 5)
    assert fit.rank == 3
    assert fit.objective > free.objective
    one = fitted(rows, parse_law("1.8 + A*N**-alpha + B*D**-alpha", COLUMNS))
    assert fit.objective == pytest.approx(one.objective, rel=1e-9)
    assert fit.coefficients["A"] == pytest.approx(one.coefficients["A"], rel=1e-6)
    draws = refit(fit, np.random.default_rng(0).multinomial(80, np.full(80, 1 / 80), size=3).astype(float))
    assert draws.shape == (3, 5)
    assert (draws[:, 0] == 1.8).all()
    np.testing.assert_array_equal(draws[:, 2], draws[:, 4])
    assert profile(fit, "beta", np.array([fit.coefficients["beta"]]))[0] == pytest.approx(fit.objective)
    with pytest.raises(UserError, match="'E' is not fitted"):
        profile(fit, "E", np.array([1.0]))


@pytest.mark.parametrize("law", [LAW, WRITTEN], ids=["closed", "generic"])
def test_tied_scales(law: Law) -> None:
    truth = {**EQUAL, "B": 5.0}
    fit = fitted(table(LAW, truth), law, ties=[("A", "B")])
    for name, value in truth.items():
        assert fit.coefficients[name] == pytest.approx(value, rel=1e-6)


def test_a_scale_pinned_to_zero_takes_its_term_out() -> None:
    rows = table(LAW, {**EQUAL, "E": 0.0}, noise=0.01)
    fit = fitted(rows, LAW, pins={"E": 0.0})
    without = fitted(rows, parse_law("A*N**-alpha + B*D**-beta", COLUMNS))
    assert fit.objective == pytest.approx(without.objective, rel=1e-9)
    assert fit.n_free == 4


def test_a_pinned_exponent_keeps_an_axis_with_one_level() -> None:
    rows = {**table(LAW, EQUAL), "D": np.full(80, 50.0)}
    rows["loss"] = evaluate(LAW, np.array([EQUAL[c] for c in LAW.coefficients]), rows, {})
    dropped = fitted(rows, LAW)
    assert dropped.dropped == ("B", "beta")
    kept = fitted(rows, LAW, pins={"B": 4.0, "beta": 0.35})
    assert kept.dropped == ()
    assert kept.coefficients["E"] == pytest.approx(1.8, rel=1e-6)


def test_bounds_choose_between_optima() -> None:
    """M^(2k)'s sign: bounded to falling powers the law is another one."""
    law = parse_law("E + A*exp(k*log(M)) + A*exp(-k*log(M))", COLUMNS)
    rows = table(law, {"E": 1.0, "A": 0.3, "k": 0.5})
    up = fitted(rows, law, bounds={"k": (0.0, 2.0)})
    down = fitted(rows, law, bounds={"k": (-2.0, 0.0)})
    assert up.coefficients["k"] == pytest.approx(0.5, rel=1e-6)
    assert down.coefficients["k"] == pytest.approx(-0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pins": {"F": 1.0}}, "no coefficient 'F'"),
        ({"pins": {"aplha": 1.0}}, "did you mean 'alpha'"),
        ({"pins": {"E": -1.0}}, "E cannot be pinned to -1"),
        ({"pins": {"alpha": float("nan")}}, "alpha cannot be pinned to nan"),
        ({"pins": EQUAL}, "nothing to fit"),
        ({"pins": {"alpha": 0.1, "beta": 0.2}, "ties": [("alpha", "beta")]}, "tied and cannot be pinned"),
        ({"ties": [("A", "alpha")]}, "A and alpha cannot be tied"),
        ({"bounds": {"E": (2.0, 1.0)}}, "bounds of E"),
        ({"bounds": {"E": (-2.0, -1.0)}}, "E cannot lie between"),
        ({"bounds": {"E": (2.0, 3.0)}, "pins": {"E": 1.0}}, "outside its bounds"),
        (
            {"bounds": {"alpha": (0.1, 0.2), "beta": (0.3, 0.4)}, "ties": [("alpha", "beta")]},
            "exclude each other",
        ),
        ({"columns": {"N": "N", "D": "D", "width": "N"}}, "does not read 'width'"),
    ],
)
def test_impossible_constraints_are_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        fitted(table(LAW, EQUAL), LAWS["chinchilla"], **options)
    assert "\n" not in str(error.value)


def test_a_written_coefficient_has_either_sign_unless_bounded() -> None:
    rows = {"N": values()["N"]}
    rows["loss"] = 3 - 0.1 * np.sqrt(rows["N"])
    law = parse_law("a + b*N**0.5", ("N",))
    fit = fitted(rows, law, objective="least_squares")
    assert fit.coefficients == pytest.approx({"a": 3.0, "b": -0.1}, rel=1e-9)
    assert not fit.unidentified
    pinned = fitted(rows, law, pins={"b": -0.2})
    assert pinned.coefficients["b"] == -0.2
    bounded = fitted(rows, law, bounds={"b": (-0.3, -0.15)})
    assert bounded.coefficients["b"] == pytest.approx(-0.15)
    positive = fitted(rows, law, bounds={"b": (0.0, np.inf)})
    assert "b" in positive.unidentified
    assert any("vanish or be negative" in warning for warning in positive.warnings)


def test_a_zero_in_a_linear_column_is_a_value() -> None:
    rows = {"N": values()["N"], "f": np.tile([0.0, 0.5, 1.0, 2.0], 10)}
    rows["loss"] = 1.5 + 4 * rows["N"] ** -0.3 + 0.2 * rows["f"]
    fit = fitted(rows, parse_law("E + A*N**-a + k*f", ("N", "f")))
    assert fit.coefficients == pytest.approx({"E": 1.5, "A": 4.0, "a": 0.3, "k": 0.2}, rel=1e-5)
    with pytest.raises(UserError, match="zero or negative and have no logarithm"):
        fitted(rows, parse_law("E + A*N**-a + k*f**b", ("N", "f")))


@pytest.mark.parametrize("text", ["E + A*exp(-N/T)", "E + A*N**-a + B*D**-b"])
def test_bounds_around_the_optimum_change_nothing(text: str) -> None:
    law = parse_law(text, COLUMNS)
    truth = {"E": 1.5, "A": 2.0, "T": 60.0, "a": 0.4, "B": 3.0, "b": 0.3}
    rows = table(law, {name: truth[name] for name in law.coefficients}, noise=0.01)
    free = fitted(rows, law)
    for name in ("E", "A"):
        value = free.coefficients[name]
        for ends in ((0.0, np.inf), (0.5 * value, 1.5 * value)):
            assert fitted(rows, law, bounds={name: ends}).objective <= free.objective * (1 + 1e-9)


def test_linear_laws_take_no_constraints() -> None:
    rows = {"tokens": values()["N"], "loss": values()["D"]}
    with pytest.raises(UserError, match="is linear"):
        fit_law(rows, "null", pins={"d": 0.0})


def test_what_the_rows_cannot_tell_apart_is_named() -> None:
    law = parse_law("E + a*b*log(N)", COLUMNS)
    fit = fitted(table(law, {"E": 1.0, "a": 0.5, "b": 0.4}), law)
    assert set(fit.unidentified) == {"a", "b"}
    assert fit.rank == 2
    assert any("a, b cannot be separated" in warning for warning in fit.warnings)


def test_bad_rows_are_one_line() -> None:
    law = parse_law("E + A*log(N - 50)", COLUMNS)
    rows = {**values(), "loss": np.full(40, 2.0)}
    with pytest.raises(
        UserError, match=r"'N - 50' has no logarithm: it is zero or negative in \d+ of 40 rows"
    ):
        fitted(rows, law)
    with pytest.raises(UserError, match="3 rows cannot determine the 4 coefficients"):
        fitted(
            {name: column[:3] for name, column in rows.items()},
            parse_law("E + A*(N + k)**-alpha", COLUMNS),
        )
    with pytest.raises(UserError, match="finite positive loss"):
        fitted(rows, parse_law("log(-exp(k)*N)", COLUMNS))
