"""What a law misses: residuals against the fitted loss and along every axis of its rows."""

from typing import TYPE_CHECKING

import numpy as np

from umscale.laws.diagnostics import AxisResiduals, Diagnostics, residuals_in_nats
from umscale.laws.uncertainty import Uncertainty
from umscale.plots.style import (
    ACCENT,
    GREY,
    INK,
    caption,
    house_style,
    law_words,
    log_ticks,
    panels,
    part_words,
)
from umscale.results.columns import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def residuals(found: Uncertainty, diagnostics: Diagnostics) -> "Figure":
    """Residuals in nats against the fitted loss and along every axis of the rows, with the mean of each stretch.

    A slope or a bend of the means is what the law misses. ``diagnostics`` are those of ``found.fit``.
    """
    fit = found.fit
    residual = residuals_in_nats(fit)
    n_panels = 1 + len(diagnostics.axes)
    n_columns = min(3, n_panels)
    with house_style():
        figure, grid = panels(-(-n_panels // n_columns), n_columns, width=2.5, height=2.2, margin=0.0)
        places = [ax for row in grid for ax in row]
        _panel(places[0], fit.predict(fit.rows.values), residual, fit.rmse_nats)
        places[0].set_xlabel(f"fitted loss{' (nats per token)' if fit.stage else ''}")
        for ax, axis in zip(places[1:], diagnostics.axes, strict=False):
            values = fit.rows.values[axis.symbol]
            log_ticks(ax, "x", values)
            _panel(ax, values, residual, fit.rmse_nats)
            _stretches(ax, axis)
            ax.set_xlabel(axis.column, parse_math=False)
        for ax in places[n_panels:]:
            ax.remove()
        for row in grid:
            row[0].set_ylabel(f"observed − fitted{' (nats)' if fit.stage else ''}")
        marks = (
            f"Dashed: ± RMSE, {fit.rmse_nats:.4f}{' nats' if fit.stage else ''}. Squares: mean of a level or "
            "stretch, with its standard "
            "deviation; above: slope with Student's t between groups of rows."
        )
        blocks = "Offsets of seed blocks are taken out." if fit.blocks.shape[1] else ""
        caption(figure, part_words(fit), law_words(found), marks, blocks)
    return figure


def _panel(ax: "Axes", x: Array, residual: Array, rmse: float) -> None:
    ax.axhline(0, color=INK, lw=0.8, zorder=1)
    for side in (-rmse, rmse):
        ax.axhline(side, color=GREY, lw=0.7, ls=(0, (4, 2)), zorder=1)
    ax.plot(x, residual, "o", color=GREY, ms=2.8, alpha=0.55, mew=0, zorder=2, label="residuals")
    extent = 1.08 * float(np.abs(residual).max()) or rmse or 1e-6
    ax.set_ylim(-extent, extent)


def _stretches(ax: "Axes", axis: AxisResiduals) -> None:
    middles = np.sqrt([one.low * one.high for one in axis.bins])
    means = np.array([one.mean for one in axis.bins])
    spread = np.sqrt([max(one.rms**2 - one.mean**2, 0.0) for one in axis.bins])
    drawn = ax.errorbar(
        middles, means, yerr=spread, fmt="s-", color=ACCENT, ms=4, lw=1.0, elinewidth=0.8, zorder=3
    )
    drawn.lines[0].set_label("mean of a stretch")
    t = "" if np.isnan(axis.t) else f", t = {round(axis.t, 1) + 0:.1f}"  # + 0 makes −0 a zero
    ax.set_title(f"slope {round(axis.slope, 4) + 0:.4f} an octave{t}", fontsize=7.5)
