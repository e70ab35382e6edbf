"""How to spend compute: the law's optimum in closed form, parabolas through the same rows, and their bias."""

import numpy as np
import pytest

from tests.questions.test_predict import TRUTH, loss_at, scaling_table
from umscale.errors import UserError
from umscale.laws.expression import parse_law
from umscale.laws.fit import fit_law
from umscale.laws.uncertainty import bootstrap
from umscale.questions.iso_flops import iso_flops, refitted
from umscale.questions.optimal import optimal


def iso_table(noise=0.0, seed=0, skew=0.0):
    """Nine sizes at five computes, around the best size times e^skew."""
    rng = np.random.default_rng(seed)
    c = np.repeat(np.geomspace(1e19, 1e21, 5), 9)
    n = closed_form(c) * np.exp(skew) * np.tile(np.geomspace(1 / 6, 6, 9), 5)
    d = c / (6 * n)
    loss = loss_at(n, d) * np.exp(noise * rng.standard_normal(len(c)))
    return {"active_params": n, "tokens": d, "loss": loss}


def closed_form(c):
    """Hoffmann et al. 2022, eq. 4: N* = (αA/βB)^(1/(α+β)) (C/6)^(β/(α+β))."""
    a, b = TRUTH["alpha"], TRUTH["beta"]
    return (a * TRUTH["A"] / (b * TRUTH["B"])) ** (1 / (a + b)) * (c / 6) ** (b / (a + b))


def test_the_laws_optimum_is_the_closed_form():
    found = optimal(bootstrap(fit_law(iso_table(), "chinchilla"), n_draws=0), [1e20, 1e24])
    for one in found.by_law.optima:
        assert one.n.value == pytest.approx(closed_form(one.flops), rel=2e-3)
        assert one.n.value * one.d.value * 6 == pytest.approx(one.flops)
        assert one.tokens_per_parameter.value == pytest.approx(one.d.value / one.n.value)
        assert one.loss.value == pytest.approx(loss_at(one.n.value, one.d.value), rel=1e-5)
    power = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    assert found.by_law.exponents.n.value == pytest.approx(power, abs=1e-4)
    assert found.by_law.optima[1].octaves["C"] == pytest.approx(np.log2(1e24 / 1e21))


def test_parabolas_on_an_exact_surface_are_off_by_what_is_said():
    """Without noise what parabolas miss is bias alone; sizes off centre make it some percent."""
    table = iso_table(skew=1.0)
    found = optimal(bootstrap(fit_law(table, "chinchilla"), n_draws=0), [1e20])
    vertices = found.by_parabolas.vertices
    off = np.mean([v.n.value / closed_form(v.flops) for v in vertices])
    said = found.by_parabolas.bias["N in the middle"]
    assert abs(off - 1) > 0.02
    assert said[0] / said[1] == pytest.approx(off, rel=5e-3)
    assert any("on this law's own surface" in line for line in found.statements)


def test_both_ways_agree_within_their_intervals_with_noise():
    found = optimal(bootstrap(fit_law(iso_table(noise=0.002), "chinchilla"), n_draws=200), [1e20])
    power = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    for one in (found.by_law.exponents.n, found.by_parabolas.exponents.n):
        assert one.low < power + 0.02
        assert one.high > power - 0.02
        assert one.high - one.low < 0.2
    for way in (found.by_law.optima[0], found.by_parabolas.optima[0]):
        assert way.n.low < way.n.value < way.n.high
        assert way.n.low < 1.1 * closed_form(1e20)
        assert way.n.high > 0.9 * closed_form(1e20)
    tree = found.to_dict()
    assert tree["by_law"]["optima"][0]["n"]["low"] == found.by_law.optima[0].n.low


def test_weighted_parabolas_are_those_of_repeated_rows():
    table = iso_table(noise=0.01)
    one = iso_flops(table["active_params"], 6 * table["active_params"] * table["tokens"], table["loss"])[0]
    weights = np.random.default_rng(0).multinomial(45, np.full(45, 1 / 45), size=3).astype(float)
    counts = weights[:, one.index].astype(int)
    expected = []
    for row in counts:
        x, y = np.repeat(np.log2(one.n / one.origin), row), np.repeat(one.loss, row)
        a, b, _ = np.polyfit(x, y, 2)
        best = one.origin * 2 ** (-b / (2 * a))
        expected.append(best if a > 0 and one.n[0] <= best <= one.n[-1] else np.nan)
    assert refitted(one, weights) == pytest.approx(expected, nan_ok=True)


def test_a_law_that_cannot_say_is_refused():
    with pytest.raises(UserError, match="needs one of N and D"):
        optimal(bootstrap(fit_law(scaling_table(0), "power_null"), n_draws=0), [])
    falling = parse_law("E + A*(N*D)**-a", ("N", "D"), "product")
    found = optimal(bootstrap(fit_law(scaling_table(0), falling), n_draws=0), [1e19])
    assert not np.isfinite(found.by_law.optima[0].n.value)
    assert any("no best size" in line for line in found.statements)
