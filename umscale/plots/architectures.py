"""Losses of architectures side by side."""

from typing import TYPE_CHECKING

import numpy as np

from umscale.laws.architectures import ArchitectureTable, compare_architectures
from umscale.laws.table import Table, numeric, text, where
from umscale.plots.style import INK, house_style, human, ordered_colours, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def architectures(table: Table, *, loss: str = "loss") -> "Figure":
    """Loss of every architecture at the largest budget: each run, the mean, and the 95% interval of its difference.

    One panel a stage, best at the top of each. The bar belongs to the difference from the baseline, whose mean is the
    vertical line: a bar that does not reach the line is a difference. ``table`` as ``Store.columns()`` returns it.
    Raises ``UserError`` when there are no runs.
    """
    found = compare_architectures(table, loss=loss)
    largest = max(one.budget for one in found)
    shown = [one for one in found if one.budget == largest]
    with house_style():
        figure, [row] = panels(1, len(shown), width=3.6, height=0.6 + 0.36 * len(shown[0].rows))
        for axes, one in zip(row, shown, strict=True):
            _panel(
                axes, one, where(table, stage=one.stage, compensation=one.compensation, budget=largest), loss
            )
    return figure


def _panel(axes: "Axes", found: ArchitectureTable, table: Table, loss: str) -> None:
    names, losses = text(table, "architecture"), numeric(table, loss)
    best_first = found.rows
    colours = dict(zip(sorted(r.name for r in best_first), ordered_colours(len(best_first)), strict=True))
    baseline = next(r.loss for r in best_first if r.name == found.baseline)
    axes.axvline(baseline, color=INK, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
    for y, row in enumerate(best_first):
        runs = losses[names == row.name]
        axes.plot(
            runs, np.full(len(runs), y), "o", color=colours[row.name], markersize=3, alpha=0.5, zorder=3
        )
        axes.plot([row.loss], [y], "D", color=colours[row.name], zorder=4)
        if row.difference is not None and row.difference.has_interval:
            half = (row.difference.high - row.difference.low) / 2
            axes.plot([row.loss - half, row.loss + half], [y, y], color=colours[row.name], zorder=2)
    axes.set_yticks(range(len(best_first)), [r.name for r in best_first])
    axes.set_ylim(len(best_first) - 0.5, -0.5)
    axes.set_xlabel("loss, nats per token")
    mode = f", {found.compensation}" if found.compensation not in (None, "", "none") else ""
    axes.set_title(f"{found.stage}, {human(found.budget)} tokens{mode}")
