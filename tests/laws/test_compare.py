import dataclasses

import numpy as np
import pytest
from scipy.stats import f

from tests.laws.tables import study_table
from umscale.bench.law_choice import run_choices, sparse_table
from umscale.errors import UserError
from umscale.laws.compare import compare, fit_laws
from umscale.laws.uncertainty import chance_of_gain

BUDGETS = (1_000_000, 2_000_000, 4_000_000)


def test_the_true_form_is_recommended() -> None:
    flat = compare(fit_laws(study_table(a=0.0, b=0.0, run_noise=0.01, seeds=3), stage="annealed"))
    assert flat.recommended == "null"
    plane = compare(fit_laws(study_table(run_noise=0.001, seeds=3, budgets=BUDGETS), stage="annealed"))
    assert plane.recommended == "additive"
    saddle = compare(fit_laws(study_table(x=0.02, run_noise=0.001, seeds=3), stage="annealed"))
    assert saddle.recommended == "interaction"


@pytest.mark.parametrize(("share", "law"), [(0.0, "P0"), (0.1, "P1")])
def test_a_term_is_recommended_only_where_there_is_one(share: float, law: str) -> None:
    (found,) = run_choices(4, laws=("P0", "P1"), shares=(share,))
    assert found["named"][law] == 4


def test_ties_are_named() -> None:
    columns = {"N": "N", "N_s": "N_s", "D": "D"}
    found = [compare(fit_laws(sparse_table(s, 0.0), ("P0", "P1"), columns=columns)) for s in range(4)]
    assert any("tied with P1" in c.reason for c in found)


def test_the_chance_of_a_gain_is_the_f_test() -> None:
    fits = fit_laws(study_table(), ("null", "additive"), stage="annealed")
    rss = [float(fit.residuals @ fit.residuals) for fit in fits]
    freedom = fits[1].n_rows - fits[1].rank
    more = fits[1].rank - fits[0].rank
    expected = f.sf((rss[0] - rss[1]) / more / (rss[1] / freedom), more, freedom)
    each = np.arange(fits[0].n_rows)
    assert chance_of_gain(*fits, each) == pytest.approx(expected, rel=1e-9)
    # Pairs of rows that err together are half the evidence, or less.
    assert chance_of_gain(*fits, each // 2) > chance_of_gain(*fits, each)
    assert np.isnan(chance_of_gain(fits[1], fits[0], each))


def test_a_fit_that_did_not_arrive_is_never_recommended() -> None:
    fits = fit_laws(sparse_table(0, 0.3), ("P0", "P1"), columns={"N": "N", "N_s": "N_s", "D": "D"})
    assert compare((fits[0], dataclasses.replace(fits[1], is_exact=False))).recommended == "P0"


def test_hold_outs_are_the_edges_of_the_design() -> None:
    table = study_table(budgets=BUDGETS, run_noise=0.0, block_noise=0.0)
    comparison = compare(fit_laws(table, stage="annealed"))
    additive = next(c for c in comparison.laws if c.fit.law.name == "additive")
    by_edge = {h.edge: h for h in additive.holdouts}
    assert (by_edge["largest"].n_train, by_edge["largest"].n_test) == (24, 12)
    assert (by_edge["future"].n_train, by_edge["future"].n_test) == (24, 12)
    assert (by_edge["sparsest"].n_train, by_edge["sparsest"].n_test) == (33, 3)
    for holdout in additive.holdouts:
        assert holdout.rmse_nats < 1e-12
    null = comparison.laws[0]
    error = {h.edge: h.rmse_nats for h in null.holdouts}
    # Sizes 2^16 and 2^18 centre on 2^17: three doublings of b = −0.01 short of 2^20, top_m spread 0.02·√1.25.
    assert error["largest"] == pytest.approx(np.hypot(0.03, 0.02 * np.sqrt(1.25)), rel=1e-9)


def test_what_cannot_be_held_out_says_why() -> None:
    table = study_table(sizes=(2**16, 2**18))
    additive = compare(fit_laws(table, stage="annealed")).laws[1]
    reasons = {h.edge: h.skipped for h in additive.holdouts}
    assert "one level remains" in reasons["largest"]
    assert "one level" in reasons["future"]


def test_criteria_follow_the_gaussian_likelihood() -> None:
    comparison = compare(fit_laws(study_table(), stage="annealed"))
    additive = comparison.laws[1]
    n, k = additive.fit.n_rows, 4
    rss = float(np.sum(additive.fit.residuals**2))
    aic = n * np.log(2 * np.pi * np.e * rss / n) + 2 * k
    assert additive.n_parameters == k
    assert additive.aicc == pytest.approx(aic + 2 * k * (k + 1) / (n - k - 1))
    assert additive.bic == pytest.approx(aic - 2 * k + k * np.log(n))


def test_laws_share_rows_even_where_one_could_use_more() -> None:
    """A row without top_m (a dense baseline) is in no fit of a comparison."""
    table = dict(study_table())
    top_m = table["top_m"].copy()
    top_m[:2] = np.nan
    table["top_m"] = top_m
    fits = fit_laws(table, ("null", "additive"), stage="annealed")
    assert [fit.n_rows for fit in fits] == [11, 11]


def test_different_rows_are_refused() -> None:
    one = fit_laws(study_table(0), ("null",), stage="annealed")
    other = fit_laws(study_table(1), ("null",), stage="annealed")
    with pytest.raises(UserError, match="same rows"):
        compare([*one, *other])
    with pytest.raises(UserError, match="at least one law"):
        compare([])


def test_laws_that_are_resampled_by_different_groups_are_compared_by_one() -> None:
    """A law of few coefficients is resampled by cell, one of many by run: the pairs of errors need the same groups."""
    table = study_table(seeds=2, budgets=(1_000_000, 2_000_000))
    found = compare(fit_laws(table, ("additive", "trend", "power_trend"), stage="annealed"))
    assert found.recommended in ("additive", "trend", "power_trend")
