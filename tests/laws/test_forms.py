import itertools

import numpy as np
import pytest

from umscale.errors import UserError
from umscale.laws.fit import fit_law
from umscale.laws.forms import (
    LAWS,
    Factor,
    PowerLaw,
    Term,
    evaluate,
    from_theta,
    law_named,
    to_theta,
    without_axes,
)
from umscale.results.columns import COLUMNS

TRUTH = {
    "chinchilla": {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658},
    "power_null": {"E": 1.8, "B": 900.0, "beta": 0.33},
    "power_additive": {"E": 1.5, "S": 8.0, "gamma": 0.15, "M": 0.6, "kappa": 0.4, "B": 300.0, "beta": 0.3},
    "power_interaction": {"E": 1.6, "S": 5.0, "gamma": 0.12, "kappa": 0.15, "B": 300.0, "beta": 0.3},
    "power_product": {"E": 1.5, "B": 300.0, "beta": 0.25, "kappa": 0.05, "gamma": 0.03},
    "power_trend": {
        "E": 1.4, "A": 3.0, "kappa": 0.15, "gamma": 0.12, "B": 300.0, "beta": 0.3, "mu": 0.02, "nu": -0.03,
    },
    "effective_size": {"E": 1.5, "A": 60.0, "alpha": 0.2, "gamma": 0.08, "B": 400.0, "beta": 0.3},
    "density_interaction": {
        "E": 1.6, "A": 200.0, "alpha": 0.3, "delta": 0.05, "eta": 0.004, "B": 500.0, "beta": 0.32, "omega": 0.03,
    },
    "granularity": {"c": 0.47, "g": 2.1, "gamma": 0.58, "alpha": 0.115, "a": 18.1, "b": 30.8, "beta": 0.147},
    "sparsity": {
        "e": 0.94, "a": 16612.5, "alpha": 0.5962, "b": 5455.67, "beta": 0.3954, "c": 0.4598, "lambda": -0.1666,
        "d": 17.26, "delta": 0.1603, "gamma": 0.1595,
    },
    "bilinear": {"a": -0.083, "b": -0.126, "c": 0.012, "d": 1.111, "E_start": 1.88, "E_max": 469.98},
    "joint_moe": {
        "a": 35.91, "alpha": -0.1889, "delta": -0.2285, "gamma": 0.0098, "b": 35.98, "beta": -0.1775,
        "omega": 0.5529, "zeta": -0.0259, "E_start": 2.0732, "E_max": 290.45, "c": 1.3637,
    },
    "leverage": {
        "a": -0.9, "d": -0.02, "gamma": 0.017, "beta": -0.11, "A_start": 0.016, "A_max": 4.0,
    },
    "P0_log": {"E": 1.5, "A": 200.0, "alpha": 0.3, "B": 500.0, "beta": 0.32, "kappa": 0.004},
    "P2": {
        "E": 1.4, "A": 100.0, "alpha": 0.28, "S": 5.0, "gamma": 0.12, "kappa": 0.15, "B": 300.0, "beta": 0.3,
    },
    "P2_separate": {
        "E": 1.4, "A": 100.0, "alpha": 0.28, "S": 8.0, "gamma": 0.15, "M": 0.6, "kappa": 0.4, "B": 300.0,
        "beta": 0.3,
    },
    "P3_saturated": {
        "E": 1.6, "A": 200.0, "alpha": 0.3, "eta": 0.004, "delta": 0.05, "B": 500.0, "beta": 0.32, "omega": 0.03,
        "X_start": 2.0, "X_max": 200.0,
    },
}  # fmt: skip
"""Published coefficients where the source prints them."""
RATIO = {"c1": 0.04, "c2": 0.01}
for alias, name in {"P0": "chinchilla", "P1": "effective_size", "P3": "density_interaction"}.items():
    TRUTH[alias] = TRUTH[name]
for name, own in {"P4": "P0", **{f"P4_{p}": p for p in ("P1", "P2", "P2_separate", "P3")}}.items():
    TRUTH[name] = {**TRUTH[own], **RATIO}
CURVED_LAWS = sorted(TRUTH)


def grid() -> dict[str, np.ndarray]:
    axes = {
        "active_params": 2.0 ** np.arange(24, 33, 2),
        "tokens": 2.0 ** np.arange(30, 40, 2),
        "sparse_params": 2.0 ** np.arange(18, 28, 3),
        "top_m": 2.0 ** np.arange(3, 9, 2),
        "density": 2.0 ** np.arange(-7, 0, 2),
        "granularity": 2.0 ** np.arange(0, 5, 2),
        "memory_to_ffn": 2.0 ** np.arange(-5, 2, 2),
        "n_experts": 2.0 ** np.arange(0, 10, 2),
        "training_flops": 10.0 ** np.arange(18, 24, 2),
    }
    points = np.array(list(itertools.product(*axes.values())))
    chosen = np.random.default_rng(0).permutation(len(points))[:200]
    return dict(zip(axes, points[chosen].T, strict=True))


def losses(name: str, table: dict[str, np.ndarray]) -> np.ndarray:
    law = LAWS[name]
    truth = np.array([TRUTH[name][c] for c in law.coefficients])
    return evaluate(law, truth, {s: table[COLUMNS[s]] for s in law.symbols}, {})


def test_every_curved_law_has_a_truth() -> None:
    assert {name for name, law in LAWS.items() if law.residual == "log"} == set(TRUTH)


@pytest.mark.parametrize("name", CURVED_LAWS)
def test_exact_tables_give_the_coefficients_back(name: str) -> None:
    table = grid()
    fit = fit_law({**table, "loss": losses(name, table)}, name)
    for coefficient, value in TRUTH[name].items():
        assert fit.coefficients[coefficient] == pytest.approx(value, rel=1e-5), coefficient
    assert fit.unidentified == ()
    assert fit.n_free == len(fit.law.coefficients)
    assert fit.starts_at_optimum is not None
    assert fit.starts_at_optimum >= 0.25


@pytest.mark.parametrize("name", CURVED_LAWS)
def test_noisy_tables_give_the_predictions_back(name: str) -> None:
    """Coefficients of the larger forms are not identified at 0.3% noise; predictions are."""
    table = grid()
    clean = losses(name, table)
    noise = np.exp(0.003 * np.random.default_rng(1).standard_normal(len(clean)))
    fit = fit_law({**table, "loss": clean * noise}, name, objective="least_squares")
    predicted = fit.predict({s: table[COLUMNS[s]] for s in fit.law.symbols})
    assert np.abs(predicted / clean - 1).max() < 0.003


def test_published_sparsity_law_by_hand() -> None:
    """L(N=1e9, D=1e11, 1−S=1/8) written out from the paper's equation 6."""
    n, d, active = 1e9, 1e11, 0.125
    by_hand = (
        16612.5 / n**0.5962
        + 5455.67 / d**0.3954
        + 0.4598 / active**-0.1666
        + 17.26 / (active**0.1603 * n**0.1595)
        + 0.94
    )
    table = {"active_params": np.array([n]), "tokens": np.array([d]), "density": np.array([active])}
    assert losses("sparsity", table)[0] == pytest.approx(by_hand, rel=1e-12)


def test_published_bilinear_law_by_hand() -> None:
    """Router RL-R's coefficients at N = 1e9 and 64 experts, log10 throughout."""
    truth = TRUTH["bilinear"]
    n, experts = 1e9, 64.0
    start = 1 / (1 / truth["E_start"] - 1 / truth["E_max"])
    saturated = 1 / (1 / (experts - 1 + start) + 1 / truth["E_max"])
    log_n, log_e = np.log10(n), np.log10(saturated)
    by_hand = 10 ** (truth["a"] * log_n + truth["b"] * log_e + truth["c"] * log_n * log_e + truth["d"])
    table = {"active_params": np.array([n]), "n_experts": np.array([experts])}
    assert losses("bilinear", table)[0] == pytest.approx(by_hand, rel=1e-12)


def test_saturation_starts_and_ends_where_it_says() -> None:
    """Ê(1) = E_start and Ê(∞) = E_max, read off a law that is Ê itself."""
    law = LAWS["bilinear"]
    truth = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 0.0, "E_start": 2.5, "E_max": 300.0}
    values = {"N": np.ones(2), "experts": np.array([1.0, 1e15])}
    saturated = evaluate(law, np.array([truth[c] for c in law.coefficients]), values, {})
    np.testing.assert_allclose(saturated, [2.5, 300.0], rtol=1e-9)


def test_published_joint_law_by_hand() -> None:
    truth = TRUTH["joint_moe"]
    n, d, experts = 1e9, 1e11, 16.0
    start = 1 / (1 / truth["E_start"] - 1 / truth["E_max"])
    x = 1 / (1 / (experts - 1 + start) + 1 / truth["E_max"])
    by_hand = (
        truth["a"] * x ** truth["delta"] * n ** (truth["alpha"] + truth["gamma"] * np.log(x))
        + truth["b"] * x ** truth["omega"] * d ** (truth["beta"] + truth["zeta"] * np.log(x))
        + truth["c"]
    )
    table = {"active_params": np.array([n]), "tokens": np.array([d]), "n_experts": np.array([experts])}
    assert losses("joint_moe", table)[0] == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(
    ("alias", "name"), [("P0", "chinchilla"), ("P1", "effective_size"), ("P3", "density_interaction")]
)
def test_aliases_predict_what_their_namesakes_do(alias: str, name: str) -> None:
    table = grid()
    np.testing.assert_array_equal(losses(alias, table), losses(name, table))


def test_the_best_ratio_is_where_the_capacity_term_is_least() -> None:
    law = LAWS["P4"]
    ratios = np.geomspace(0.01, 10, 4001)
    values = {"N": np.full(4001, 1e9), "D": np.full(4001, 1e10), "r": ratios}
    predicted = evaluate(law, np.array([TRUTH["P4"][c] for c in law.coefficients]), values, {})
    assert ratios[predicted.argmin()] == pytest.approx(np.exp(-RATIO["c1"] / (2 * RATIO["c2"])), rel=2e-3)


@pytest.mark.parametrize("name", ["sparse_size", "memory_ratio"])
def test_local_laws_give_their_slopes_back(name: str) -> None:
    table = grid()
    law = LAWS[name]
    truth = np.array([3.0, -0.02, 0.01, -0.1][: len(law.coefficients)])
    values = {s: table[COLUMNS[s]] for s in law.symbols}
    reference = {s: float(np.exp(np.log(v).mean())) for s, v in values.items()}
    fit = fit_law({**table, "loss": evaluate(law, truth, values, reference)}, name)
    np.testing.assert_allclose(fit.vector, truth, atol=1e-12)


def test_scales_go_through_logarithms_and_back() -> None:
    law = LAWS["chinchilla"]
    coefficients = np.array([[1.8, 400.0, 0.3, 2000.0, 0.4]])
    np.testing.assert_allclose(from_theta(law, to_theta(law, coefficients)), coefficients, rtol=1e-14)


def test_a_constant_axis_merges_into_the_constant_term() -> None:
    law, dropped = without_axes(LAWS["power_additive"], ["D"])
    assert dropped == ("B", "beta")
    assert law.coefficients == ("E", "S", "gamma", "M", "kappa")


def test_a_constant_factor_merges_into_its_scale() -> None:
    law, dropped = without_axes(LAWS["power_interaction"], ["m"])
    assert dropped == ("kappa",)
    assert law.coefficients == ("E", "S", "gamma", "B", "beta")


def test_a_constant_axis_takes_its_interaction_along() -> None:
    law, dropped = without_axes(LAWS["interaction"], ["m"])
    assert dropped == ("a", "x")
    assert law.coefficients == ("c0", "b", "d")


def test_a_term_before_the_constant_merges_too() -> None:
    law = PowerLaw(
        name="reversed",
        source="",
        formula="",
        terms=(
            Term(scale="A", factors=(Factor(coefficient="alpha", symbols=("N",)),)),
            Term(scale="B", factors=(Factor(coefficient="beta", symbols=("D",)),)),
            Term(scale="E"),
        ),
    )
    reduced, dropped = without_axes(law, ["N"])
    assert dropped == ("alpha", "E")
    assert reduced.coefficients == ("A", "B", "beta")


def test_what_a_kept_coefficient_stands_in_stays() -> None:
    assert without_axes(LAWS["chinchilla"], ["D"], keep=["beta"])[1] == ()
    law, dropped = without_axes(LAWS["chinchilla"], ["D"], keep=["E"])
    assert dropped == ("beta",)
    assert law.coefficients == ("E", "A", "alpha", "B")


def test_an_unknown_law_names_the_nearest() -> None:
    with pytest.raises(UserError, match="chinchilla"):
        law_named("chinchila")
