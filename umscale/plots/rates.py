"""Loss against learning rates, cell by cell, with the default rates marked."""

from typing import TYPE_CHECKING

import numpy as np

from umscale.plots.style import (
    ACCENT,
    INK,
    caption,
    house_style,
    human,
    log_ticks,
    loss_words,
    ordered_colours,
    panels,
)
from umscale.questions.learning_rates import CellRates, RatesReport, cell_names
from umscale.results.table import Table, numeric, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3


def learning_rates(report: RatesReport, table: Table) -> "Figure":
    """Loss against ``value_lr``, a line for each ``lr``, a panel for each cell, at the report's budget.

    Dashed: the default rates for the cell's shape. Shaded: the 95% interval of the best ``value_lr`` on the fitted
    surface. ``table`` is what the report was made of, as ``Store.columns()`` returns it.
    """
    loss = report.loss
    part = where(table, stage=report.stage, compensation=report.compensation, budget=report.budget)
    cells = cell_names(part)
    rates = sorted(set(numeric(part, "lr").tolist()))
    n_rows = -(-len(report.cells) // _COLUMNS)
    with house_style():
        figure, grid = panels(n_rows, min(_COLUMNS, len(report.cells)), width=2.6, height=2.1)
        every = [axes for row in grid for axes in row]
        for axes in every[len(report.cells) :]:
            axes.set_visible(False)
        for axes, cell in zip(every, report.cells, strict=False):
            mine = cells == cell.name
            _panel(axes, cell, {k: np.asarray(v)[mine] for k, v in part.items()}, rates, loss)
        for row in grid:
            row[0].set_ylabel(loss_words(loss, study=True))
        handles, labels = max(
            (axes.get_legend_handles_labels() for axes in every), key=lambda found: len(found[0])
        )
        figure.legend(handles, labels, title="learning rate", loc="outside right upper")
        caption(figure, *_words(report))
    return figure


def _panel(axes: "Axes", cell: CellRates, rows: Table, rates: list[float], loss: str) -> None:
    lr, value_lr, losses = (numeric(rows, name) for name in ("lr", "value_lr", loss))
    for rate, colour in zip(rates, ordered_colours(len(rates)), strict=True):
        mine = (lr == rate) & np.isfinite(losses)
        if not mine.any():
            continue
        x = np.unique(value_lr[mine])
        means = [losses[mine & (value_lr == value)].mean() for value in x]
        axes.plot(x, means, "o-", color=colour, label=f"{rate:.3g}", zorder=3)
    axes.axvline(
        cell.default[1], color=ACCENT, ls=(0, (4, 2)), lw=1.2, zorder=2, label="default for the value tables"
    )
    if cell.value_lr.has_interval:
        shown = axes.get_xlim()
        span = (max(cell.value_lr.low, shown[0]), min(cell.value_lr.high, shown[1]))
        if span[0] < span[1]:
            axes.axvspan(*span, color=INK, alpha=0.1, lw=0, zorder=0, label="best, 95% interval")
    log_ticks(axes, "x", np.unique(value_lr))
    axes.set_xlabel("learning rate of the value tables")
    axes.set_title(cell.name)


def _words(report: RatesReport) -> list[str]:
    words = [
        f"{(report.stage or 'All').capitalize()}, {human(report.budget)} tokens. A run's standard deviation about the "
        f"fitted surface is {report.deviation:.4f} nats."
    ]
    worst = report.worst
    if worst is not None and worst.excess.has_interval:
        interval = f"[{worst.excess.low:.4f}, {worst.excess.high:.4f}]"
        words.append(
            f"The default rates cost at most {worst.excess.value:.4f} {interval} nats ({worst.name})."
        )
    return words
