"""Losses of architectures side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from umscale.errors import UserError
from umscale.plots.style import INK, caption, house_style, human, loss_words, ordered_colours, panels
from umscale.plots.training import cell_and_seed
from umscale.questions.architectures import ArchitectureTable
from umscale.results.table import Table, levels, numeric, text, where
from umscale.say.laws import spread_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def architectures(found: Sequence[ArchitectureTable], table: Table, *, loss: str = "loss") -> "Figure":
    """Loss of every architecture at the largest budget: each run, the mean, and the 95% interval of its difference.

    One panel a stage, before the decay at the left, best at the top of each. The bar belongs to the difference from
    the baseline, whose mean is the vertical line: a bar that does not reach the line is a difference. ``found`` is what
    ``compare_architectures`` says of ``table`` (``Store.columns()``). Raises ``UserError`` for one architecture alone.
    """
    names = levels(table, "architecture")
    named = "label" in table and any("architecture=" in label for label in text(table, "label"))
    if len(names) == 1 and not named:
        raise UserError(f"every run is of architecture {names[0]}: there is nothing to compare")
    largest = max(one.budget for one in found)
    shown = sorted((one for one in found if one.budget == largest), key=lambda one: one.stage == "annealed")
    with house_style():
        figure, [row] = panels(1, len(shown), width=3.8, height=0.6 + 0.36 * len(shown[0].rows), margin=0.0)
        for axes, one in zip(row, shown, strict=True):
            _panel(
                axes, one, where(table, stage=one.stage, compensation=one.compensation, budget=largest), loss
            )
        caption(figure, _words(shown))
    return figure


def _words(shown: Sequence[ArchitectureTable]) -> str:
    others = {row.baseline for row in shown[0].rows} - {shown[0].baseline}
    counts = sorted({row.n_runs for one in shown for row in one.rows})
    runs = "one run each" if counts == [1] else f"means of {' or '.join(map(str, counts))} runs (dots)"
    said = f"Diamonds: {runs}. Dashed: {shown[0].baseline}."
    if others:
        said += f" Short lines: baselines of their own ({', '.join(sorted(others))})."
    noise = [f"{one.stage} {one.noise:.4f}" for one in shown if one.freedom]
    if not noise:
        return f"{said} One seed: run-to-run noise is unknown, and no interval can be given."
    spread = f"{', '.join(noise)} ({shown[0].freedom} degrees of freedom)"
    spread += next((spread_words(False) for one in shown if not one.equal_spread), "")
    return (
        f"{said} Bars: 95% interval of the difference from it, drawn about the mean: one that misses the dashed "
        f"line is a difference. Run-to-run standard deviation, nats: {spread}."
    )


def _panel(axes: "Axes", found: ArchitectureTable, table: Table, loss: str) -> None:
    best_first = found.rows
    names, losses = text(table, "architecture"), numeric(table, loss)
    if not {row.name for row in best_first} <= set(names.tolist()):  # several cells of one architecture
        names = np.array([cell_and_seed(label)[0] for label in text(table, "label")])
    colours = dict(zip(sorted(r.name for r in best_first), ordered_colours(len(best_first)), strict=True))
    baseline = next(r.loss for r in best_first if r.name == found.baseline)
    axes.axvline(baseline, color=INK, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
    means = {row.name: row.loss for row in best_first}
    for y, row in enumerate(best_first):
        if row.baseline != found.baseline and row.baseline in means:
            axes.plot([means[row.baseline]] * 2, [y - 0.4, y + 0.4], color=INK, linewidth=1.2, zorder=1)
        runs = losses[names == row.name]
        axes.plot(
            runs, np.full(len(runs), y), "o", color=colours[row.name], markersize=3, alpha=0.6, zorder=3,
            label=f"{row.name}, runs",
        )  # fmt: skip
        axes.plot([row.loss], [y], "D", color=colours[row.name], zorder=4, label=f"{row.name}, mean")
        if row.difference is not None and row.difference.has_interval:
            half = (row.difference.high - row.difference.low) / 2
            axes.plot([row.loss - half, row.loss + half], [y, y], color=colours[row.name], zorder=2)
    axes.set_yticks(range(len(best_first)), [r.name for r in best_first])
    axes.set_ylim(len(best_first) - 0.5, -0.5)
    axes.set_xlabel(loss_words(loss, study=True))
    mode = f", {found.compensation}" if found.compensation not in (None, "", "none") else ""
    axes.set_title(f"{found.stage}, {human(found.budget)} tokens{mode}")
