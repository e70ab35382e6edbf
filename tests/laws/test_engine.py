"""Derivatives, boxes and refits, for power laws and for expressions."""

import dataclasses

import numpy as np
import pytest

from umscale import formulas as tree
from umscale.laws import engine
from umscale.laws.expression import parse_law
from umscale.laws.fit import FitResult, fit_law, profile, refit
from umscale.laws.forms import LAWS, ExpressionLaw, Law, PowerLaw, evaluate
from umscale.laws.generic import expression_problem

CHINCHILLA = "E + A*N**-alpha + B*D**-beta"
AS_EXPRESSION = ExpressionLaw(
    name="same", source="", formula=CHINCHILLA, root=tree.parse(CHINCHILLA, ("N", "D"))
)
TRUTH = np.array([1.8, 480.0, 0.35, 2100.0, 0.37])


def table(seed: int = 0, n_rows: int = 60, noise: float = 0.01) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = {"N": 10 ** rng.uniform(7, 10, n_rows), "D": 10 ** rng.uniform(9, 12, n_rows)}
    clean = evaluate(LAWS["chinchilla"], TRUTH, values, {})
    return {**values, "loss": clean * np.exp(noise * rng.standard_normal(n_rows))}


def fitted(law: Law = LAWS["chinchilla"], **options: object) -> FitResult:
    return fit_law(table(), law, columns={"N": "N", "D": "D"}, **options)  # type: ignore[arg-type]


def problem_of(
    law: Law, values: dict[str, np.ndarray], residual: engine.Residual, delta: float
) -> engine.Problem:
    if isinstance(law, PowerLaw):
        return engine.make_problem(law, values, residual=residual, delta=delta)
    assert isinstance(law, ExpressionLaw)
    return expression_problem(law, values, residual=residual, delta=delta)


@pytest.mark.parametrize(
    "law",
    [
        LAWS["chinchilla"],
        LAWS["bilinear"],
        parse_law("A*(N**-alpha + 2*D**-alpha)*experts**-0.1 + exp(e)", ("N", "D", "experts")),
        parse_law("E + A*(N**(1 - g)*D**g)**-alpha / (experts + X)", ("N", "D", "experts")),
    ],
    ids=["power", "saturated", "shared scale", "expression"],
)
@pytest.mark.parametrize("residual", ["log", "raw"])
@pytest.mark.parametrize("delta", [np.inf, 0.02])
def test_gradient_and_hessian_are_those_of_the_objective(
    law: Law, residual: engine.Residual, delta: float
) -> None:
    rng = np.random.default_rng(0)
    values = {
        "N": 10 ** rng.uniform(1, 2, 30), "D": 10 ** rng.uniform(1, 2, 30), "experts": rng.integers(1, 65, 30) * 1.0
    }  # fmt: skip
    problem = problem_of(law, values, residual, delta)
    names = law.coefficients
    coefficients = rng.uniform(0.1, 0.9, len(names)) + np.array(
        [{"E_start": 1.5, "E_max": 99}.get(n, 0) for n in names]
    )
    theta = problem.theta(coefficients)
    loss = evaluate(law, coefficients, values, {}) * rng.uniform(0.9, 1.1, 30)
    target = np.log(loss) if residual == "log" else loss
    weight = rng.uniform(0.5, 2, (1, 30))

    def derivatives(at: np.ndarray) -> tuple[np.ndarray, ...]:
        return engine._derivatives(problem, at[None], target, weight)

    value, gradient, hessian, _ = derivatives(theta)
    for k in range(len(names)):
        shift = 1e-6 * np.eye(len(names))[k] * max(1.0, abs(theta[k]))
        up, down, step = derivatives(theta + shift), derivatives(theta - shift), 2 * shift[k]
        assert gradient[0, k] == pytest.approx((up[0] - down[0])[0] / step, rel=1e-4, abs=1e-7 * value[0])
        scale = np.abs(hessian).max()
        np.testing.assert_allclose(hessian[0, k], (up[1] - down[1])[0] / step, rtol=1e-4, atol=1e-6 * scale)
    assert value[0] > 0


def test_coefficients_go_through_the_coordinates_and_back() -> None:
    for law in (LAWS["chinchilla"], AS_EXPRESSION):
        problem = problem_of(law, {"N": table()["N"], "D": table()["D"]}, "log", 1e-3)
        np.testing.assert_allclose(problem.coefficients(problem.theta(TRUTH[None]))[0], TRUTH, rtol=1e-12)


def test_the_generic_engine_finds_what_the_closed_form_finds() -> None:
    for objective in ("huber", "least_squares", "least_absolute"):
        for residual in ("log", "raw"):
            closed = fitted(objective=objective, residual=residual)
            generic = fitted(AS_EXPRESSION, objective=objective, residual=residual)
            assert generic.objective == pytest.approx(closed.objective, rel=1e-9)
            np.testing.assert_allclose(generic.vector, closed.vector, rtol=1e-4)


def test_least_absolute_deviations_beat_their_neighbours() -> None:
    fit = fitted(objective="least_absolute")
    values, loss = fit.rows.values, fit.rows.loss

    def total(coefficients: np.ndarray) -> float:
        return float(np.abs(np.log(evaluate(fit.law, coefficients, values, {}) / loss)).sum())

    best = total(fit.vector)
    rng = np.random.default_rng(0)
    for size in (1e-5, 1e-3, 1e-1):
        for _ in range(50):
            assert total(fit.vector * np.exp(size * rng.standard_normal(5))) >= best * (1 - 1e-5)


@pytest.mark.parametrize("law", [LAWS["chinchilla"], AS_EXPRESSION], ids=["closed", "generic"])
def test_refits_are_fits_to_the_resampled_rows(law: Law) -> None:
    fit = fitted(law)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(60, np.full(60, 1 / 60), size=4).astype(float)
    draws = refit(fit, weights)
    for draw, weight in zip(draws, weights, strict=True):
        repeated = {name: np.repeat(column, weight.astype(int)) for name, column in table().items()}
        direct = fit_law(repeated, law, columns={"N": "N", "D": "D"})
        np.testing.assert_allclose(draw, direct.vector, rtol=1e-5)


@pytest.mark.parametrize("law", [LAWS["chinchilla"], AS_EXPRESSION], ids=["closed", "generic"])
def test_the_profile_is_the_fit_with_one_coefficient_pinned(law: Law) -> None:
    fit = fitted(law)
    for name in ("E", "A", "alpha"):
        at = fit.coefficients[name] * np.array([0.5, 0.9, 1.0, 1.2])
        objectives = profile(fit, name, at)
        assert objectives[2] == pytest.approx(fit.objective, rel=1e-9)
        for value, objective in zip(at, objectives, strict=True):
            pinned = fitted(law, pins={name: float(value)})
            assert objective == pytest.approx(pinned.objective, rel=1e-7)
            assert pinned.n_free == 4


@pytest.mark.parametrize("law", [LAWS["chinchilla"], AS_EXPRESSION], ids=["closed", "generic"])
def test_a_bound_in_the_way_is_where_the_fit_rests(law: Law) -> None:
    free = fitted(law)
    for name in ("E", "alpha"):
        low = 1.1 * free.coefficients[name]
        bounded = fitted(law, bounds={name: (low, 10.0)})
        assert bounded.coefficients[name] == pytest.approx(low, rel=1e-12)
        assert bounded.objective == pytest.approx(fitted(law, pins={name: low}).objective, rel=1e-9)
        assert f"{name} rests at its bound" in bounded.warnings
    wide = fitted(law, bounds={"E": (0.1, 10.0), "alpha": (-1.0, 2.0)})
    assert wide.objective == pytest.approx(free.objective, rel=1e-9)
    assert wide.warnings == free.warnings


def test_starts_that_leave_the_range_do_no_harm() -> None:
    problem = problem_of(LAWS["chinchilla"], {"N": table()["N"], "D": table()["D"]}, "log", 1e-3)
    starts = np.array([[0.0, 1e5, 900.0, 0.0, -900.0], problem.theta(TRUTH)])
    solution = engine.minimise(problem, starts, table()["loss"])
    assert solution.objective[1] == pytest.approx(fitted().objective, rel=1e-9)


def test_a_term_that_vanishes_is_said_to() -> None:
    """Losses that rise with N want a negative scale in front of N^-½."""
    rows = table(noise=0.0)
    rows["loss"] = 1.8 + 2100 * rows["D"] ** -0.37 + 1e-2 * np.log(rows["N"])
    law = parse_law("E + S*N**-0.5 + B*D**-beta", ("N", "D"))
    assert isinstance(law, PowerLaw)
    assert fit_law(rows, law, columns={"N": "N", "D": "D"}).coefficients["S"] < 0
    fit = fit_law(rows, dataclasses.replace(law, root=None), columns={"N": "N", "D": "D"})
    assert fit.unidentified == ("S",)
    assert fit.rank == 3
    assert any("vanish or be negative" in warning for warning in fit.warnings)


def test_rows_without_an_effect_leave_its_term_undetermined() -> None:
    rows = table(noise=0.0)
    rows["loss"] = 1.8 + 2100 * rows["D"] ** -0.37
    fit = fit_law(rows, "chinchilla", columns={"N": "N", "D": "D"})
    assert "A" in fit.unidentified
    assert fit.rank < 5
    assert fit.warnings
