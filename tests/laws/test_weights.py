"""Weights, standard errors, a lighter side above the law, and coefficients of each group's own."""

import numpy as np
import pytest

from tests.questions.test_predict import TRUTH, loss_at, scaling_table
from umscale.errors import UserError
from umscale.laws.by_group import group_symbols, with_own
from umscale.laws.compare import Recipe, compare, fit_each
from umscale.laws.fit import fit_rows
from umscale.laws.forms import LAWS, LocalLaw, Slope
from umscale.laws.uncertainty import bootstrap


def fitted(table, law="chinchilla", **recipe):
    fits, refused = fit_each(table, [law], recipe=Recipe(**recipe))
    assert not refused
    return fits[0]


def repeated(table, counts):
    return {name: np.repeat(column, counts) for name, column in table.items()}


@pytest.mark.parametrize("objective", ["huber", "least_squares"])
def test_whole_weights_are_repeated_rows(objective):
    table = scaling_table(1)
    counts = np.random.default_rng(0).integers(1, 4, 30)
    weighted = fitted({**table, "w": counts.astype(float)}, weight="w", objective=objective)
    doubled = fitted(repeated(table, counts), objective=objective)
    assert weighted.vector == pytest.approx(doubled.vector, rel=1e-5)
    assert weighted.objective * counts.sum() / 30 == pytest.approx(doubled.objective, rel=1e-9)


def test_weights_of_a_local_law_are_repeated_rows():
    law = LocalLaw(name="line", source="", formula="", slopes=(Slope(coefficient="s", symbols=("N",)),))
    table = scaling_table(1)
    counts = np.random.default_rng(0).integers(1, 4, 30)
    weighted, doubled = (
        fitted({**table, "w": counts * 1.0}, law, weight="w"),
        fitted(repeated(table, counts), law),
    )
    # The reference is the geometric mean of the rows, which repeating moves.
    assert weighted.coefficients["s"] == pytest.approx(doubled.coefficients["s"], rel=1e-9)
    assert bootstrap(weighted, n_draws=50).coefficients()["s"].has_interval


def test_standard_errors_weigh_by_their_square_and_bring_back_the_truth():
    rng = np.random.default_rng(0)
    table = scaling_table(0, noise=0.0)
    error = np.where(np.arange(30) % 2, 1e-4, 0.1)
    table = {**table, "loss": table["loss"] + error * rng.standard_normal(30), "se": error, "w": 1 / error**2}
    law = fitted(table, error="se", objective="least_squares", residual="raw")
    assert law.coefficients["E"] == pytest.approx(TRUTH["E"], abs=2e-3)
    assert abs(fitted(table, objective="least_squares").coefficients["E"] - TRUTH["E"]) > 2e-3
    same = fitted(table, weight="w", objective="least_squares", residual="raw")
    assert same.vector == pytest.approx(law.vector, rel=1e-9)
    assert np.isfinite(compare([law]).laws[0].aicc)
    with pytest.raises(UserError, match="not positive"):
        fitted({**table, "se": np.zeros(30)}, error="se")


def test_undertuned_runs_above_the_law_count_less():
    rng = np.random.default_rng(2)
    table = scaling_table(2, noise=0.001)
    table["loss"] = table["loss"] * np.where(rng.random(30) < 0.3, 1 + 0.1 * rng.random(30), 1)
    right = loss_at(table["active_params"], table["tokens"])
    off = {
        above: np.median(np.log(fit.predict(fit.rows.values) / right))
        for above in (1.0, 0.05)
        for fit in [fitted(table, above=above, objective="least_squares")]
    }
    assert off[1.0] > 0.01
    assert abs(off[0.05]) < 0.3 * off[1.0]
    with pytest.raises(UserError, match="at most 1"):
        fit_rows(fitted(table).rows, LAWS["chinchilla"], above=2.0)


def test_groups_have_their_own_floor_and_share_exponents():
    floors = {"c4": 1.7, "code/py": 1.1, "wiki": 1.4}
    parts = [scaling_table(k, noise=0.001) for k in range(3)]
    table = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    own = np.repeat(list(floors.values()), 30)
    table["loss"] = table["loss"] - TRUTH["E"] + own
    symbols = group_symbols(list(floors))
    for label, symbol in symbols.items():
        table[symbol] = (np.repeat(list(floors), 30) == label).astype(float)
    law = with_own(LAWS["chinchilla"], ["E"], symbols)
    assert law.coefficients == ("E_c4", "E_code_py", "E_wiki", "A", "alpha", "B", "beta")
    fit = fitted(table, law)
    found = [fit.coefficients[f"E_{symbol.removeprefix('is_')}"] for symbol in symbols.values()]
    assert found == pytest.approx(list(floors.values()), abs=0.03)
    assert fit.coefficients["alpha"] == pytest.approx(TRUTH["alpha"], abs=0.02)
    with pytest.raises(UserError, match="no coefficient 'F'"):
        with_own(LAWS["chinchilla"], ["F"], symbols)
    with pytest.raises(UserError, match="rename"):
        group_symbols(["a b", "a-b"])
