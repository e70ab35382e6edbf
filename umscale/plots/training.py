"""Training-loss curves by run, trunk and branches."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from umscale.errors import UserError
from umscale.laws.forms import Array
from umscale.laws.table import Table, numeric, text
from umscale.plots.style import INK, house_style, human, ordered_colours, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Names = NDArray[np.str_]

_LEGEND_RUNS = 16  # more lines than this cannot be told apart by colour
_UNSETTLED = 5  # the right panel's range is set by what comes after this fraction of the longest run
_SMOOTHING = 40  # running mean over this fraction of a trunk


def curves(table: Table) -> "Figure":
    """Training loss against tokens: as it is (left), and minus the mean of all runs on the same batch (right).

    ``table`` has columns run_id, phase (``trunk``, ``branch-0`` …), tokens and loss, and may have ``label``.
    Cells of a seed block see the same batches, so the right panel is nearly free of batch noise. Both panels
    show running means. Colours and legend go from the lowest final loss to the highest. Raises ``UserError``
    for a missing column or a table without finite losses.
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
    run, phase, label = run[finite], phase[finite], label[finite]
    tokens, loss = tokens[finite], loss[finite]
    with house_style():
        return _draw(run, phase, tokens, loss, label)


def _draw(run: Names, phase: Names, tokens: Array, loss: Array, label: Names) -> "Figure":
    relative = loss - _batch_means(phase, tokens, loss)
    runs = sorted(set(run.tolist()), key=lambda r: _final_loss(tokens[run == r], loss[run == r]))
    figure, [[left, right]] = panels(1, 2, width=3.6, height=3.2)
    settled = tokens.max() / _UNSETTLED
    shown = []
    for r, colour in zip(runs, ordered_colours(len(runs)), strict=True):
        for one in sorted(set(phase[run == r].tolist())):
            here = np.flatnonzero((run == r) & (phase == one))
            here = here[np.argsort(tokens[here], kind="stable")]
            window = int(np.count_nonzero((run == r) & (phase == "trunk"))) // _SMOOTHING
            dashes = "-" if one == "trunk" else (0, (2, 1))
            name = _short(str(label[here[0]])) if one == "trunk" else "_branch"
            left.plot(
                tokens[here], _running_mean(loss[here], window), color=colour, ls=dashes, lw=1.0, label=name
            )
            difference = _running_mean(relative[here], window)
            right.plot(tokens[here], difference, color=colour, ls=dashes, lw=1.0)
            shown.append(difference[tokens[here] >= settled])
    left.set_xscale("log")
    left.set_ylabel("training loss (nats per token)")
    # The first steps differ by more than all later ones; the axis is made for what remains.
    extent = 1.1 * max((float(np.abs(part).max()) for part in shown if part.size), default=0.0)
    right.set_ylim(-(extent or 0.1), extent or 0.1)
    right.set_ylabel("minus mean of runs, same batch (nats)")
    for ax in (left, right):
        ax.set_xlabel("tokens")
        ax.xaxis.set_major_formatter(lambda value, _: human(value))
    _legend(figure, left, len(runs), bool((phase != "trunk").any()))
    return figure


def _batch_means(phase: Names, tokens: Array, loss: Array) -> Array:
    """Mean over the runs at each row's phase and token count, [rows]."""
    keys = np.array([f"{p} {t:.0f}" for p, t in zip(phase, tokens, strict=True)])
    _, code, count = np.unique(keys, return_inverse=True, return_counts=True)
    code = code.reshape(-1)
    return np.asarray((np.bincount(code, weights=loss) / count)[code])


def _final_loss(tokens: Array, loss: Array) -> float:
    """Mean of the last twentieth of a run's curve."""
    tail = np.argsort(tokens)[-max(1, len(tokens) // 20) :]
    return float(loss[tail].mean())


def _running_mean(values: Array, window: int) -> Array:
    """Centred running mean over ``window`` points, shortened at both ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(window // 2, np.minimum(index, len(values) - 1 - index))
    return np.asarray((total[index + reach + 1] - total[index - reach]) / (2 * reach + 1))


def _short(label: str) -> str:
    """``top_m=4 n_keys=128 seed=0`` as it is; a bare run id cut to eight characters."""
    return label if "=" in label else label[:8]


def _legend(figure: "Figure", ax: "Axes", n_runs: int, branches: bool) -> None:
    from matplotlib.lines import Line2D

    handles, labels = ax.get_legend_handles_labels()
    title = "runs, lowest final loss first"
    if n_runs > _LEGEND_RUNS:
        ends = (0, -1)
        handles, labels = [handles[k] for k in ends], [f"lowest: {labels[0]}", f"highest: {labels[-1]}"]
        title = f"{n_runs} runs by final loss"
    if branches:
        handles = [*handles, Line2D([], [], color=INK, ls=(0, (2, 1)), lw=1.0)]
        labels = [*labels, "branch with decay"]
    figure.legend(handles, labels, title=title, loc="outside right upper", alignment="left")
