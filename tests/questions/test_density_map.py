"""The map over (m, N_s) against laws whose boundary is known in closed form."""

import numpy as np
import pytest

from tests.laws.tables import study_table
from tests.questions.test_token_trend import table as trend_table
from umscale.errors import UserError
from umscale.laws.fit import fit_law
from umscale.laws.forms import LAWS, evaluate
from umscale.laws.uncertainty import bootstrap
from umscale.questions.density_map import density_map, slice_title, study_map, study_slices

A, B, X = -0.03, -0.02, -0.004


def test_boundary_of_a_saddle_is_a_line_of_constant_density() -> None:
    """δ_m − δ_N = (b − a) + x(u − v) is zero at u − v = (a − b)/x, whatever the size."""
    table = study_table(a=A, b=B, x=X, run_noise=1e-6, seeds=2)
    found = study_map(table, stage="annealed", per_octave=4)
    known = np.isfinite(found.boundary)
    assert known.sum() > 5
    octaves = np.log2(found.boundary[known] / 2**5.5) - np.log2(found.n[known] / 2**18)
    np.testing.assert_allclose(octaves, (A - B) / X, atol=1e-3)
    u = np.log2(found.m / 2**5.5)[None, :]
    v = np.log2(found.n / 2**18)[:, None]
    np.testing.assert_allclose(found.difference, (B - A) + X * (u - v), atol=1e-5)
    assert not found.constant


def test_boundary_intervals_cover_the_truth() -> None:
    hits, asked = 0, 0
    for seed in range(40):
        table = study_table(seed, a=A, b=B, x=X, run_noise=0.01, seeds=2)
        found = study_map(table, stage="annealed", per_octave=1, margin=0.5)
        v = np.log2(found.n / 2**18)
        true = 2**5.5 * np.exp2((A - B) / X + v)
        # An open end reaches the edge of the map; a boundary beyond the edge is covered by an open end.
        low = np.where(np.isnan(found.boundary_low), 0.0, found.boundary_low)
        high = np.where(np.isnan(found.boundary_high), np.inf, found.boundary_high)
        row = 1  # where the boundary runs through the middle of the map
        asked += found.m[0] < true[row] < found.m[-1]
        # The interval's ends are points of a lattice of 8 an octave.
        hits += low[row] / 2**0.13 <= true[row] <= high[row] * 2**0.13
    assert asked == 40
    assert hits >= 0.85 * asked


def test_extrapolation_is_what_the_effects_read_beyond_the_grid() -> None:
    found = study_map(study_table(run_noise=0.003), stage="annealed", per_octave=1, margin=1)
    within_m = (found.m >= 15.9) & (2 * found.m <= 128.1)
    within_n = (found.n >= 2**16 * 0.99) & (2 * found.n <= 2**20 * 1.01)
    np.testing.assert_array_equal(~found.extrapolated, within_n[:, None] & within_m[None, :])
    assert (~found.extrapolated).sum() == 3 * 4


def test_the_additive_law_has_a_constant_map() -> None:
    small = study_table(top_m=(16, 32, 64), sizes=(2**16, 2**18), a=-0.03, b=-0.01, run_noise=0.001)
    found = study_map(small, stage="annealed")
    assert found.constant
    assert np.ptp(found.difference) < 1e-12
    assert any("its map is constant" in s for s in found.statements)
    assert (found.probability > 0.99).all()


def test_power_laws_are_mapped_by_their_own_differences() -> None:
    law = LAWS["power_additive"]
    # In order: E, S, gamma, M, kappa, B, beta.
    truth = np.array([1.5, 20.0, 0.3, 2.0, 0.5, 400.0, 0.4])
    m, n, d = (
        a.ravel() for a in np.meshgrid(2.0 ** np.arange(1, 8), 4.0 ** np.arange(6, 12), [1e6, 4e6, 1.6e7])
    )
    values = {"m": m, "N_s": n, "D": d}
    table = {"top_m": m, "sparse_params": n, "tokens": d, "loss": evaluate(law, truth, values, {})}
    fit = fit_law(table, law, objective="least_squares")
    found = density_map(bootstrap(fit, n_draws=200), per_octave=1)

    def loss(m: np.ndarray, n: np.ndarray) -> np.ndarray:
        return 20 * n**-0.3 + 2 * m**-0.5

    grid_m, grid_n = found.m[None, :], found.n[:, None]
    expected = loss(grid_m, 2 * grid_n) - loss(2 * grid_m, grid_n)
    np.testing.assert_allclose(found.difference, expected, atol=1e-4)
    # Twice the power of m falls faster with m: the boundary rises with N_s as N_s^(gamma / kappa).
    known = np.isfinite(found.boundary)
    slope = np.polyfit(np.log2(found.n[known]), np.log2(found.boundary[known]), 1)[0]
    assert slope == pytest.approx(0.3 / 0.5, abs=0.03)


def test_text_map_has_a_line_per_size_and_marks_what_it_says() -> None:
    found = study_map(study_table(a=A, b=B, x=X, run_noise=1e-4), stage="annealed", per_octave=1)
    lines = found.lines()
    assert len(lines) == len(found.n) + 3 + len(found.statements)
    letters = [line.split()[1:] for line in lines[1 : 1 + len(found.n)]]
    for row, size in zip(letters, range(len(found.n) - 1, -1, -1), strict=True):
        for j, text in enumerate(row):
            assert text.endswith(".") == found.extrapolated[size, j]
            assert (text[0] in "Dd") == (found.difference[size, j] > 0)


def test_a_law_without_both_axes_has_no_map() -> None:
    table = study_table(run_noise=0.01)
    with pytest.raises(UserError, match="m and N_s"):
        density_map(fit_law(table, "null", stage="annealed"))
    with pytest.raises(UserError, match="says nothing about m"):
        study_map(study_table(top_m=(16,)), stage="annealed")


def test_slices_follow_the_trend_and_say_what_is_extrapolated() -> None:
    """δ_m − δ_N is 0.01 at 1M tokens and falls by 0.006 a doubling: below zero two octaves past 2.5M."""
    found = study_slices(trend_table(-0.006), stage="annealed", per_octave=1, margin=0.0)
    assert [slice_title(one) for one in found] == [
        "400k tokens", "1M tokens", "2.5M tokens", "10M tokens, 2.0 octaves beyond",
    ]  # fmt: skip
    for one in found:
        octaves = np.log2(one.held["tokens"] / 1e6)
        middle = one.difference[len(one.n) // 2, len(one.m) // 2]
        assert middle == pytest.approx(0.01 - 0.006 * octaves, abs=0.004)
    assert [one.octaves_beyond for one in found] == pytest.approx([0, 0, 0, 2])
    beyond = found[-1]
    assert "beyond those of the rows" in beyond.statements[0]
    assert all(letter.endswith(".") for letter in beyond.lines()[1].split()[1:])


def test_one_budget_has_no_slices() -> None:
    with pytest.raises(UserError, match="two budgets"):
        study_slices(study_table(run_noise=0.003), stage="annealed")
