"""Figures of one law: map, ratio, residuals, predictions, coefficients and iso-FLOP curves show what was computed."""

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from tests.laws.tables import study_table
from tests.questions.test_memory_to_ffn import ratio_table
from umscale.errors import UserError
from umscale.laws.compare import compare, fit_laws
from umscale.laws.diagnostics import diagnose, residuals_in_nats
from umscale.laws.fit import fit_law
from umscale.laws.holdout import rows_held_out
from umscale.laws.uncertainty import bootstrap
from umscale.plots import coefficient_pairs, density_plane, iso_flop, memory_ratio, predicted, residuals
from umscale.plots.series import panels_of
from umscale.questions.density_map import density_map
from umscale.questions.iso_flops import exponent, iso_flops, iso_flops_of
from umscale.questions.memory_to_ffn import PAPER_MCP, memory_to_ffn, ratio_curves

TRUTH = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.28}


def caption_of(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def wide_table(noise: float = 0.004) -> dict[str, np.ndarray]:
    """Effects that interact so that the boundary crosses the plane."""
    return dict(
        study_table(
            1, top_m=(4, 16, 64, 256), sizes=(2**16, 2**19, 2**22), seeds=2, a=-0.02, b=-0.02, x=0.004, run_noise=noise
        )
    )  # fmt: skip


def scaling_table(noise: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Chinchilla's law at four computes, seven sizes of each, about the best one."""
    rng = np.random.default_rng(seed)
    steepness = TRUTH["alpha"] * TRUTH["A"] / (TRUTH["beta"] * TRUTH["B"])
    flops = np.repeat(10.0 ** np.array([18.0, 19.0, 20.0, 21.0]), 7)
    total = TRUTH["alpha"] + TRUTH["beta"]
    best = steepness ** (1 / total) * (flops / 6) ** (TRUTH["beta"] / total)
    n = best * np.tile(2.0 ** np.arange(-3, 4), 4)
    d = flops / (6 * n)
    loss = TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]
    return {"N": n, "D": d, "loss": loss * np.exp(rng.normal(0, noise, len(n)))}


COLUMNS = {"N": "N", "D": "D"}


# -- map -------------------------------------------------------------------------------------------------------


def contour_named(figure: Figure, gid: str) -> list[QuadContourSet]:
    found = [c for ax in figure.axes for c in ax.collections if isinstance(c, QuadContourSet)]
    return [c for c in found if c.get_gid() == gid]


def test_on_the_boundary_both_effects_are_equal() -> None:
    fit = fit_law(wide_table(), "interaction", stage="annealed")
    figure = density_plane({"annealed": density_map(fit, per_octave=8)})
    (boundary,) = contour_named(figure, "boundary")
    points = np.concatenate([path.vertices for path in boundary.get_paths()])
    assert len(points) > 20
    m, n = points.T

    def loss(m: np.ndarray, n: np.ndarray) -> np.ndarray:
        return fit.predict({"m": m, "N_s": n, "D": np.full(len(m), fit.reference["D"])} if "D" in fit.reference
                           else {"m": m, "N_s": n})  # fmt: skip

    delta_m, delta_n = loss(m, n) - loss(2 * m, n), loss(m, n) - loss(m, 2 * n)
    assert np.abs(delta_m).max() > 0.01
    np.testing.assert_allclose(delta_m, delta_n, atol=1e-4)


def test_uncertain_and_extrapolated_parts_are_marked() -> None:
    fit = fit_law(wide_table(noise=0.03), "interaction", stage="annealed")
    found = density_map(fit, per_octave=4)
    figure = density_plane({"annealed": found}, cells=(np.array([4.0, 256.0]), np.array([2.0**16, 2.0**22])))
    assert len(contour_named(figure, "uncertain")) == 1
    veils = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection) and c.get_alpha() == 0.5]
    covered = sum(np.log2(box.x1 / box.x0) * np.log2(box.y1 / box.y0)
                  for box in (v.get_datalim(figure.axes[0].transData) for v in veils))  # fmt: skip
    whole = np.log2(found.m[-1] / found.m[0]) * np.log2(found.n[-1] / found.n[0])
    (frame,) = figure.axes[0].patches
    box = frame.get_extents().transformed(figure.axes[0].transData.inverted())
    kept = np.log2(box.x1 / box.x0) * np.log2(box.y1 / box.y0)
    assert covered + kept == pytest.approx(whole, rel=1e-6)
    inside = found.m[(~found.extrapolated).any(axis=0)]
    assert (box.x0, box.x1) == pytest.approx((inside[0], inside[-1]))
    assert {"95% interval holds zero", "faded outside: extrapolated", "measured cells"} <= set(
        legend_texts(figure)
    )


def test_fills_grow_lighter_with_density_and_ticks_are_the_measured_levels() -> None:
    found = density_map(fit_law(wide_table(), "interaction", stage="annealed"), per_octave=2)
    cells = (np.array([4.0, 16.0, 64.0, 256.0]), np.array([2.0**16, 2.0**19, 2.0**22, 2.0**22]))
    figure = density_plane({"a": found}, cells)
    fill = next(c for c in figure.axes[0].collections if isinstance(c, QuadContourSet))
    colours = fill.cmap(fill.norm(np.linspace(-1, 1, 9) * np.abs(found.difference).max()))[:, :3]
    luminance = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 0.03).all()
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["4", "16", "64", "256"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["65.5k", "524k", "4.19M"]
    assert "nats" in figure.axes[1].get_ylabel()


def test_without_a_boundary_none_is_drawn_and_the_caption_says_so() -> None:
    found = density_map(fit_law(study_table(a=-0.05, b=-0.01), "additive", stage="annealed"))
    figure = density_plane({"annealed": found})
    assert not contour_named(figure, "boundary")
    assert "boundary: equal effects" not in legend_texts(figure)
    assert "its map is constant" in caption_of(figure)


# -- memory-to-FFN ratio ---------------------------------------------------------------------------------------


def test_the_optimum_its_interval_and_the_papers_share_are_drawn_where_they_are() -> None:
    table = ratio_table(0, best=0.3)
    figure = memory_ratio(ratio_curves(table), table)
    verdict = memory_to_ffn(table, stage="annealed")
    assert verdict.ratio is not None
    ax = next(ax for ax in figure.axes if "annealed" in ax.get_title())
    upright = [float(np.asarray(line.get_xdata())[0]) for line in ax.lines if len(set(line.get_xdata())) == 1]  # type: ignore[arg-type]
    assert sorted(upright) == pytest.approx(sorted([PAPER_MCP / (1 - PAPER_MCP), verdict.ratio.value]))
    (span,) = ax.patches
    assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx(
        (verdict.ratio.low, verdict.ratio.high)
    )  # type: ignore[attr-defined]
    assert {"least loss", "its 95% interval", "17% MCP, UltraMemV2"} <= set(legend_texts(figure))
    assert f"best MCP {verdict.ratio.value / (1 + verdict.ratio.value):.1%}" in caption_of(figure)


def test_the_curve_has_its_least_loss_at_the_optimum() -> None:
    table = ratio_table(0, noise=1e-5)
    curve = next(one for one in panels_of(memory_ratio(ratio_curves(table), table))[0].series if one.is_line)
    assert curve.x[curve.y.argmin()] == pytest.approx(PAPER_MCP / (1 - PAPER_MCP), rel=0.05)


def test_no_optimum_is_drawn_where_there_is_none() -> None:
    table = ratio_table(0, best=0.9, noise=1e-4)
    figure = memory_ratio(ratio_curves(table), table)
    assert "least loss" not in legend_texts(figure)
    assert "optimum outside the grid" in caption_of(figure)


def test_a_ratio_at_varying_compute_is_refused() -> None:
    table = ratio_table(0)
    table["flops_per_token"] = table["memory_to_ffn"] * 1e6
    with pytest.raises(UserError, match="needs constant compute"):
        memory_ratio(ratio_curves(table), table)


# -- residuals and predictions ---------------------------------------------------------------------------------


def test_residuals_against_the_fit_and_every_axis() -> None:
    table = study_table(seeds=2, budgets=(1_000_000, 4_000_000))
    fit = fit_law(table, "additive", stage="annealed")
    figure = residuals(bootstrap(fit), diagnose(fit))
    panels = panels_of(figure)
    assert [panel.x_label for panel in panels] == [
        "fitted loss (nats per token)",
        "top_m",
        "sparse_params",
        "tokens",
    ]
    for panel in panels:
        np.testing.assert_allclose(panel.series[0].y, residuals_in_nats(fit))
        assert panel.y_range == (-panel.y_range[1], panel.y_range[1])
    assert [label for _, label in panels[1].x_ticks] == ["16", "32", "64", "128"]
    assert "slope" in panels[1].title
    assert "nats" in figure.axes[0].get_ylabel()


def test_the_means_of_the_residuals_show_a_missing_bend() -> None:
    table = dict(study_table(run_noise=0.001, block_noise=0))
    table["loss"] = table["loss"] + 0.02 * (np.log2(table["top_m"].astype(float)) - 5.5) ** 2
    fit = fit_law(table, "additive", stage="annealed")
    panel = panels_of(residuals(bootstrap(fit), diagnose(fit)))[1]
    means = next(one for one in panel.series if one.name == "mean of a stretch").y
    assert means[0] > 0.01 > -0.01 > means[1]


@pytest.mark.parametrize("law", ["additive", "chinchilla"])
def test_held_out_rows_are_predicted_without_them(law: str) -> None:
    """The error of what is drawn is the error that the comparison reports, from a fit of its own."""
    if law == "chinchilla":
        fits = fit_laws(scaling_table(0.003), (law,), columns=COLUMNS)
    else:
        fits = fit_laws(study_table(seeds=2, budgets=(10**6, 2 * 10**6, 4 * 10**6)), (law,), stage="annealed")
    (compared,) = compare(fits).laws
    tested = rows_held_out(compared.fit, compared.holdouts)
    assert len(tested) == sum(not one.skipped for one in compared.holdouts) >= 2
    for one in tested:
        assert one.chosen.sum() == one.test.n_test
        error = np.sqrt(np.mean((one.predicted - compared.fit.rows.loss[one.chosen]) ** 2))
        assert error == pytest.approx(one.test.rmse_nats, rel=1e-3)


def test_predictions_are_marked_by_what_was_held_out() -> None:
    (compared,) = compare(fit_laws(scaling_table(0.003), ("chinchilla",), columns=COLUMNS)).laws
    figure = predicted({"": compared}, {"": rows_held_out(compared.fit, compared.holdouts)})
    assert legend_texts(figure) == ["all rows, as fitted", "largest N held out", "most tokens held out"]
    above, below = panels_of(figure)
    for one, two in zip(above.series, below.series, strict=True):
        np.testing.assert_allclose(two.y, one.y - one.x)
    markers = {
        str(line.get_marker()) for line in figure.axes[0].lines if not str(line.get_label()).startswith("_")
    }
    assert len(markers) == 3, "marks differ without colour too"
    assert f"{compared.fit.rmse_nats:.4f}" in caption_of(figure)


# -- coefficients ----------------------------------------------------------------------------------------------


def test_pairs_show_draws_intervals_and_correlations() -> None:
    found = bootstrap(fit_law(scaling_table(0.003), "chinchilla", columns=COLUMNS), n_draws=200)
    figure = coefficient_pairs(found)
    names = found.fit.law.coefficients
    grid = np.array(figure.axes).reshape(5, 5)
    assert [ax.get_xlabel() for ax in grid[-1]] == list(names)
    assert [ax.get_ylabel() for ax in grid[1:, 0]] == list(names[1:])
    draws = {one.name: one for panel in panels_of(figure) for one in panel.series}["A, alpha"]
    np.testing.assert_allclose(draws.x, found.draws[:, names.index("A")])
    estimate = found.coefficients()["alpha"]
    k = names.index("alpha")
    upright = sorted(float(np.asarray(line.get_xdata())[0]) for line in grid[k, k].lines)
    assert upright == pytest.approx(sorted([estimate.value, estimate.low, estimate.high]))
    (text,) = grid[names.index("E"), k].texts
    expected = np.corrcoef(found.draws[:, names.index("E")], found.draws[:, k])[0, 1]
    assert float(text.get_text()) == pytest.approx(expected, abs=0.006)
    weak, strong = (to_rgb(grid[place].get_facecolor())[0] for place in ((0, 1), (1, 2)))
    assert strong < weak, "a strong correlation stands on a darker ground"


def test_pinned_coefficients_have_no_pairs() -> None:
    found = bootstrap(
        fit_law(scaling_table(0.003), "chinchilla", columns=COLUMNS, pins={"E": 1.7}), n_draws=50
    )
    figure = coefficient_pairs(found)
    assert len(figure.axes) == 16
    assert "Pinned or not determined: E." in caption_of(figure)
    with pytest.raises(UserError, match="no bootstrap draws"):
        coefficient_pairs(bootstrap(found.fit, n_draws=0))


# -- iso-FLOP --------------------------------------------------------------------------------------------------


def test_parabolas_find_the_vertex_of_a_parabola() -> None:
    n = 1e8 * 2.0 ** np.arange(-3.0, 4.0)
    loss = 3 + 0.02 * np.log2(n / 1.3e8) ** 2
    (found,) = iso_flops(n, np.full(7, 1e19), loss)
    assert found.best == pytest.approx(1.3e8)
    np.testing.assert_allclose(found.predict(n), loss)
    (beyond,) = iso_flops(n[:4], np.full(4, 1e19), loss[:4])
    assert np.isnan(beyond.best), "a minimum beyond the sizes is none"


def test_computes_are_told_apart_and_stray_runs_left_out() -> None:
    table = scaling_table()
    n = np.concatenate([table["N"], [1e7, 2e7]])
    flops = np.concatenate([6 * table["N"] * table["D"], [3e18, 5e19]])
    found = iso_flops(n, flops * 1.01 ** np.tile([0, 1, 2], 10), np.concatenate([table["loss"], [9.0, 9.0]]))
    assert [len(one.n) for one in found] == [7, 7, 7, 7]
    assert [one.flops for one in found] == pytest.approx([1e18, 1e19, 1e20, 1e21], rel=0.03)


def test_best_sizes_rise_as_the_law_has_it() -> None:
    table = scaling_table()
    found = iso_flops(table["N"], 6 * table["N"] * table["D"], table["loss"])
    alpha = exponent(found)
    assert alpha is not None
    assert alpha.value == pytest.approx(TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"]), abs=0.02)
    fit = bootstrap(fit_law(table, "chinchilla", columns=COLUMNS), n_draws=0)
    figure = iso_flop(iso_flops_of(table, fit, columns=COLUMNS), size="N")
    left, right = panels_of(figure)
    law = next(one for one in left.series if one.name == "1e20, law chinchilla")
    np.testing.assert_allclose(law.y, fit.fit.predict({"N": law.x, "D": 1e20 / (6 * law.x)}))
    theirs = next(one for one in right.series if one.name == "law chinchilla")
    rise = np.polyfit(np.log(theirs.x), np.log(theirs.y), 1)[0]
    assert rise == pytest.approx(TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"]), abs=2e-3)
    minima = [one for one in left.series if one.name.endswith("minimum")]
    np.testing.assert_allclose([one.x[0] for one in minima], [one.best for one in found])
    assert legend_texts(figure)[:4] == ["1e18", "1e19", "1e20", "1e21"]
    assert [label for _, label in right.x_ticks] == ["1e18", "1e19", "1e20", "1e21"]


def test_too_few_sizes_at_a_compute_are_refused() -> None:
    table = {name: column[::3] for name, column in scaling_table().items()}
    with pytest.raises(UserError, match="no compute has 4 sizes"):
        iso_flops_of(table, columns=COLUMNS)
    with pytest.raises(UserError, match="no column 'training_flops' for C, nor 'D' for D"):
        iso_flops_of({"N": table["N"], "loss": table["loss"]}, columns=COLUMNS)
