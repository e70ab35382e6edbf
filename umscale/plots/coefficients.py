"""How the coefficients of a law vary together: bootstrap draws of every pair, as a corner plot."""

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from umscale.errors import UserError
from umscale.laws.uncertainty import Estimate, Uncertainty
from umscale.plots.style import (
    ACCENT,
    GREY,
    INK,
    caption,
    house_style,
    law_words,
    panels,
    part_words,
    round_numbers,
)
from umscale.results.columns import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS = 1500  # draws shown of a pair: more only darken the page
_SHOWN = 0.99  # share of the draws within the axes
_WIDE = 10.0  # a positive coefficient whose draws span more than this factor gets a logarithmic axis


def coefficient_pairs(found: Uncertainty) -> "Figure":
    """Bootstrap draws of every pair of coefficients, their intervals on the diagonal, correlations above it.

    Pinned coefficients and those the rows do not determine are left out and named. Raises ``UserError`` when there
    are no draws, or fewer than two coefficients to pair.
    """
    fit = found.fit
    absent = {*fit.constraints.pins, *fit.unidentified}
    names = [name for name in fit.law.coefficients if name not in absent]
    if not len(found.draws):
        raise UserError(f"law {fit.law.name!r} has no bootstrap draws: {'; '.join(found.warnings)}")
    if len(names) < 2:
        raise UserError(
            f"law {fit.law.name!r} has fewer than two free coefficients: there is no pair to draw"
        )
    kept = [fit.law.coefficients.index(name) for name in names]
    draws, value = found.draws[:, kept], fit.vector[kept]
    draws = draws[np.isfinite(draws).all(axis=1)]
    estimates = found.coefficients()
    n, cell = len(names), max(0.95, min(1.8, 7.2 / len(names)))
    # [coefficients, 2]; the interval of a skewed coefficient may reach beyond the middle of its draws.
    ends = np.array([(estimates[name].low, estimates[name].high) for name in names])
    middle = np.quantile(draws, [(1 - _SHOWN) / 2, (1 + _SHOWN) / 2], axis=0).T
    limits = np.stack([np.fmin(middle[:, 0], ends[:, 0]), np.fmax(middle[:, 1], ends[:, 1])], axis=1)
    wide = (limits[:, 0] > 0) & (limits[:, 1] > _WIDE * limits[:, 0])
    with house_style():
        figure, grid = panels(n, n, width=cell, height=0.86 * cell, margin=0.0)
        for i in range(n):
            for j in range(n):
                ax = grid[i][j]
                ax.grid(False)
                if i == j:
                    _histogram(ax, draws[:, i], estimates[names[i]], limits[i], wide[i])
                elif i > j:
                    _scatter(ax, draws[:, [j, i]], (value[j], value[i]), f"{names[j]}, {names[i]}")
                else:
                    _correlation(ax, draws[:, [i, j]], wide[[i, j]])
                    continue
                _scale(ax, "x", limits[j], wide[j], names[j] if i == n - 1 else None)
                if i > j:
                    _scale(ax, "y", limits[i], wide[i], names[i] if j == 0 else None)
        marks = (
            f"{min(len(draws), _MOST_POINTS)} of {len(draws)} draws. Lines cross at the fit; dashed: 95% intervals; "
            "numbers: correlations (of logarithms where an axis is logarithmic)."
        )
        left = f"Pinned or not determined: {', '.join(sorted(absent))}." if absent else ""
        caption(figure, part_words(fit), law_words(found), marks, left)
    return figure


def _scatter(ax: "Axes", draws: Array, value: tuple[float, float], name: str) -> None:
    shown = draws[:_MOST_POINTS]
    ax.plot(*shown.T, "o", color=GREY, ms=1.3, mew=0, alpha=0.45, rasterized=True, label=name, zorder=1)
    ax.axvline(value[0], color=INK, lw=0.7, zorder=2)
    ax.axhline(value[1], color=INK, lw=0.7, zorder=2)


def _histogram(ax: "Axes", draws: Array, estimate: Estimate, limits: Array, wide: bool) -> None:
    edges = (np.geomspace if wide else np.linspace)(limits[0], limits[1], 31)
    ax.hist(draws, bins=edges.tolist(), color=GREY, alpha=0.6)
    ax.axvline(estimate.value, color=INK, lw=0.9)
    if estimate.has_interval:
        for end in (estimate.low, estimate.high):
            ax.axvline(end, color=ACCENT, lw=0.9, ls=(0, (4, 2)))
    ax.set_yticks([])
    ax.set_title(
        f"{estimate.value:.4g}\n[{estimate.low:.4g}, {estimate.high:.4g}]", fontsize=7.0, linespacing=1.1
    )


def _correlation(ax: "Axes", draws: Array, wide: NDArray[np.bool_]) -> None:
    """The number on a ground that darkens with its size."""
    columns = [
        np.log(np.maximum(column, 1e-300)) if w else column for column, w in zip(draws.T, wide, strict=True)
    ]
    still = min(np.std(column) for column in columns) == 0  # without noise nothing moves, together or apart
    r = 0.0 if still else float(np.corrcoef(*columns)[0, 1])
    ax.set_facecolor(str(1 - 0.45 * abs(r)))
    ax.text(0.5, 0.5, f"{r:+.2f}", ha="center", va="center", transform=ax.transAxes, fontsize=8)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _scale(ax: "Axes", side: Literal["x", "y"], limits: Array, wide: bool, name: str | None) -> None:
    """Range and ticks; a name on the outer panels only, whose ticks are labelled too."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, MaxNLocator, NullLocator

    axis = ax.xaxis if side == "x" else ax.yaxis
    locator: Locator = MaxNLocator(3, min_n_ticks=2)
    low, high = (float(end) for end in limits)
    if not high > low:  # all draws are one
        low, high = low - 0.05 * abs(low) - 1e-9, high + 0.05 * abs(high) + 1e-9
    if wide:
        ax.set(**{f"{side}scale": "log"})
        ticks = round_numbers(low, high)
        locator = FixedLocator(ticks[:: -(-len(ticks) // 3)])
        axis.set_minor_locator(NullLocator())
    ax.set(**{f"{side}lim": (low, high)})
    axis.set_major_locator(locator)
    if name is None:
        axis.set_tick_params(labelleft=False, labelbottom=False)
        return
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}".replace("e+", "e")))
    axis.set_label_text(name)
    axis.set_tick_params(labelsize=6.5, labelrotation=45 if side == "x" else 0)
