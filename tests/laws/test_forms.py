import itertools

import numpy as np
import pytest

from umscale.errors import UserError
from umscale.laws.fit import fit_law
from umscale.laws.forms import COLUMNS, LAWS, evaluate, from_theta, law_named, to_theta, without_axes

TRUTH = {
    "chinchilla": {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658},
    "power_null": {"E": 1.8, "B": 900.0, "beta": 0.33},
    "power_additive": {"E": 1.5, "S": 8.0, "gamma": 0.15, "M": 0.6, "kappa": 0.4, "B": 300.0, "beta": 0.3},
    "power_interaction": {"E": 1.6, "S": 5.0, "gamma": 0.12, "kappa": 0.15, "B": 300.0, "beta": 0.3},
    "effective_size": {"E": 1.5, "A": 60.0, "alpha": 0.2, "gamma": 0.08, "B": 400.0, "beta": 0.3},
    "density_interaction": {
        "E": 1.6, "A": 200.0, "alpha": 0.3, "delta": 0.05, "eta": 0.004, "B": 500.0, "beta": 0.32, "omega": 0.03,
    },
    "granularity": {"c": 0.47, "g": 2.1, "gamma": 0.58, "alpha": 0.115, "a": 18.1, "b": 30.8, "beta": 0.147},
    "sparsity": {
        "e": 0.94, "a": 16612.5, "alpha": 0.5962, "b": 5455.67, "beta": 0.3954, "c": 0.4598, "lambda": -0.1666,
        "d": 17.26, "delta": 0.1603, "gamma": 0.1595,
    },
}  # fmt: skip
POWER_LAWS = sorted(TRUTH)


def grid() -> dict[str, np.ndarray]:
    axes = {
        "active_params": 2.0 ** np.arange(24, 33, 2),
        "tokens": 2.0 ** np.arange(30, 40, 2),
        "sparse_params": 2.0 ** np.arange(18, 28, 3),
        "top_m": 2.0 ** np.arange(3, 9, 2),
        "density": 2.0 ** np.arange(-7, 0, 2),
        "granularity": 2.0 ** np.arange(0, 5, 2),
    }
    points = np.array(list(itertools.product(*axes.values())))
    chosen = np.random.default_rng(0).permutation(len(points))[:300]
    return dict(zip(axes, points[chosen].T, strict=True))


def losses(name: str, table: dict[str, np.ndarray]) -> np.ndarray:
    law = LAWS[name]
    truth = np.array([TRUTH[name][c] for c in law.coefficients])
    return evaluate(law, truth, {s: table[COLUMNS[s]] for s in law.symbols}, {})


def test_every_power_law_has_a_truth() -> None:
    assert {name for name, law in LAWS.items() if law.residual == "log"} == set(TRUTH)


@pytest.mark.parametrize("name", POWER_LAWS)
def test_exact_tables_give_the_coefficients_back(name: str) -> None:
    table = grid()
    fit = fit_law({**table, "loss": losses(name, table)}, name)
    for coefficient, value in TRUTH[name].items():
        assert fit.coefficients[coefficient] == pytest.approx(value, rel=1e-5), coefficient
    assert fit.unidentified == ()
    assert fit.starts_at_optimum is not None
    assert fit.starts_at_optimum > 0.5


@pytest.mark.parametrize("name", POWER_LAWS)
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


def test_an_unknown_law_names_the_nearest() -> None:
    with pytest.raises(UserError, match="chinchilla"):
        law_named("chinchila")
