"""Training-loss curves by run, trunk and branches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from umscale.cell_labels import cell_name, label_parts
from umscale.errors import UserError
from umscale.plots.style import (
    INK,
    axis_words,
    caption,
    distinct_styles,
    house_style,
    human,
    ordered_colours,
    panels,
)
from umscale.results.columns import Array
from umscale.results.table import Table, numeric, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Names = NDArray[np.str_]

_LEGEND_CELLS = 16  # more colours than this cannot be told apart
_UNSETTLED = 5  # the right panel's range is set by what comes after this fraction of the longest run
_SMOOTHING = 40  # running mean over this fraction of a trunk


def curves(table: Table) -> "Figure":
    """Training loss against tokens: as it is (left), and minus the mean of the seed's runs on the same batch (right).

    ``table`` has columns run_id, phase (``trunk``, ``branch-0`` …), tokens and loss, and may have ``label``, a cell's
    ``name=value`` pairs. Cells of a seed see the same batches, so the right panel is nearly free of batch noise. Both
    panels show running means; the runs of one cell share a colour, and colours and legend go from the lowest final
    loss to the highest. Raises ``UserError`` for a missing column or a table without finite losses.
    """
    for name in ("run_id", "phase", "tokens", "loss"):
        if name not in table:
            raise UserError(f"the table has no column {name!r}: the curves need it")
    run, phase = text(table, "run_id"), text(table, "phase")
    tokens, loss = numeric(table, "tokens"), numeric(table, "loss")
    label = text(table, "label") if "label" in table else run
    finite = np.isfinite(tokens) & np.isfinite(loss) & (tokens > 0)
    if not finite.any():
        raise UserError("no training curve has been recorded: there is nothing to draw")
    split = {one: cell_and_seed(one) for one in set(label.tolist())}
    rows = _Rows(
        run=run[finite],
        phase=phase[finite],
        tokens=tokens[finite],
        loss=loss[finite],
        cell=np.array([split[one][0] for one in label[finite].tolist()]),
        seed=np.array([split[one][1] for one in label[finite].tolist()]),
    )
    with house_style():
        return _draw(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """A row per logged step, [rows]."""

    run: Names
    phase: Names
    tokens: Array
    loss: Array
    cell: Names
    seed: Names


def _draw(rows: _Rows) -> "Figure":
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    relative = rows.loss - _batch_means(rows)
    final = {r: _final_loss(rows, r) for r in sorted(set(rows.run.tolist()))}
    cell_of = dict(zip(rows.run.tolist(), rows.cell.tolist(), strict=True))
    runs_of: dict[str, list[str]] = {}
    for r in sorted(final, key=lambda r: final[r]):
        runs_of.setdefault(cell_of[r], []).append(r)
    cells = sorted(runs_of, key=lambda cell: float(np.mean([final[r] for r in runs_of[cell]])))
    figure, [[left, right]] = panels(1, 2, width=3.6, height=3.2)
    settled = rows.tokens.max() / _UNSETTLED
    shown, handles = [], []
    few = len(cells) <= _LEGEND_CELLS
    styles = distinct_styles(len(cells)) if few else [{"color": c} for c in ordered_colours(len(cells))]
    for cell, style in zip(cells, styles, strict=True):
        for r in runs_of[cell]:
            for here, phase in _phases(rows, r):
                window = int(np.count_nonzero((rows.run == r) & (rows.phase == "trunk"))) // _SMOOTHING
                x, y = rows.tokens[here], _running_mean(rows.loss[here], window)
                difference = _running_mean(relative[here], window)
                name = f"{cell}, {r[:8]}, {phase}"
                dashes = "-" if phase == "trunk" else (0, (2, 1))
                left.plot(x, y, **style, ls=dashes, lw=0.9, label=name)
                right.plot(x, difference, **style, ls=dashes, lw=0.9, label=name)
                shown.append(difference[x >= settled])
        handles.append(Line2D([], [], **style, label=cell))
    left.set_xscale("log")
    left.set_ylabel("training loss (nats per token)")
    # The first steps differ by more than all later ones; the axis is made for what remains.
    extent = 1.1 * max((float(np.abs(part).max()) for part in shown if part.size), default=0.0)
    right.set_ylim(-(extent or 0.1), extent or 0.1)
    right.set_ylabel("minus mean over cells, same batch (nats)")
    right.xaxis.set_major_locator(MaxNLocator(5))
    for ax in (left, right):
        ax.set_xlabel(axis_words("tokens"))
        ax.xaxis.set_major_formatter(lambda value, _: human(value))
    title = "lowest final loss first"
    if not few:
        handles = [handles[0], handles[-1]]
        for handle, words in zip(handles, ("lowest", "highest"), strict=True):
            handle.set_label(f"{words}: {handle.get_label()}")
        title = f"{len(cells)} cells by final loss"
    branches = bool((rows.phase != "trunk").any())
    if branches:
        handles.append(Line2D([], [], color=INK, ls=(0, (2, 1)), lw=1.0, label="branch with decay"))
    figure.legend(handles=handles, title=title, loc="outside right upper", alignment="left")
    seeds = len(set(rows.seed.tolist()))
    each = f"{len(final)} runs of {len(cells)} cells in {seeds} seed{'s' if seeds > 1 else ''}"
    caption(
        figure, f"{each}; running means over 1/{_SMOOTHING} of a trunk. Training loss, not validation loss."
    )
    return figure


def _phases(rows: _Rows, run: str) -> Iterator[tuple[NDArray[np.int64], str]]:
    """Row numbers of a run's trunk and branches, each in the order of its tokens."""
    for phase in sorted(set(rows.phase[rows.run == run].tolist()), reverse=True):
        here = np.flatnonzero((rows.run == run) & (rows.phase == phase))
        yield here[np.argsort(rows.tokens[here], kind="stable")], phase


def _batch_means(rows: _Rows) -> Array:
    """Mean over the runs of a seed at each row's phase and token count, [rows]."""
    keys = zip(rows.seed, rows.phase, rows.tokens, strict=True)
    joined = np.array([f"{seed} {phase} {tokens:.0f}" for seed, phase, tokens in keys])
    _, code, count = np.unique(joined, return_inverse=True, return_counts=True)
    code = code.reshape(-1)
    return np.asarray((np.bincount(code, weights=rows.loss) / count)[code])


def _final_loss(rows: _Rows, run: str) -> float:
    """Mean of the last twentieth of a run's curve."""
    tokens, loss = rows.tokens[rows.run == run], rows.loss[rows.run == run]
    tail = np.argsort(tokens)[-max(1, len(tokens) // 20) :]
    return float(loss[tail].mean())


def _running_mean(values: Array, window: int) -> Array:
    """Centred mean over ``window`` points, narrowed at the start, where losses fall fast, and cut at the end."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    back = np.minimum(window // 2, index)
    ahead = np.minimum(back, len(values) - 1 - index)
    return np.asarray((total[index + ahead + 1] - total[index - back]) / (back + ahead + 1))


def cell_and_seed(label: str) -> tuple[str, str]:
    """``top_m=4 n_keys=128 seed=0`` as cell and seed; a bare run id is cut to eight characters and has no seed."""
    if "=" not in label:
        return label[:8], ""
    seeds = (part.removeprefix("seed=") for part in label_parts(label) if part.startswith("seed="))
    return cell_name(label), next(seeds, "")
