"""Observed against predicted loss, rows held out at the design's edges marked."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from umscale.errors import UserError
from umscale.laws.compare import Compared
from umscale.laws.fit import FitResult
from umscale.laws.holdout import Edge, HoldOut, RowsHeldOut
from umscale.plots.style import GREY, INK, caption, house_style, loss_words, ordered_colours, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS: Mapping[Edge, str] = {"largest": "s", "sparsest": "^", "future": "D"}
_WORDS: Mapping[Edge, str] = {
    "largest": "largest {}",
    "sparsest": "sparsest activation",
    "future": "most tokens",
}


def predicted(found: Mapping[str, Compared], held: Mapping[str, Sequence[RowsHeldOut]]) -> "Figure":
    """Observed against predicted loss, and their difference below; a column for each titled part of a table.

    Rows held out at an edge, ``held`` of each part, are drawn with what the law predicts for them from all other
    rows. Raises ``UserError`` when there is no part.
    """
    if not found:
        raise UserError("no fit: there is nothing to draw")
    edges = list(dict.fromkeys(one.test.edge for part in held.values() for one in part))
    fit = next(iter(found.values())).fit
    with house_style():
        figure, (upper, lower) = panels(2, len(found), width=3.1, height=2.5, ratios=(3.0, 1.7))
        colours = dict(zip(edges, ordered_colours(6), strict=False))  # the darker ones, unlike the dots
        handles: dict[str, Any] = {}
        for above, below, (title, one) in zip(upper, lower, found.items(), strict=True):
            handles |= _column(above, below, one.fit, held[title], colours)
            above.set_title(title)
            below.set_xlabel(f"predicted loss{' (nats per token)' if fit.stage else ''}")
        upper[0].set_ylabel(
            f"observed {loss_words(fit.loss, study=fit.stage is not None)}".replace(" (", "\n(")
        )
        lower[0].set_ylabel(f"observed −\npredicted{' (nats)' if fit.stage else ''}")
        figure.legend(handles=list(handles.values()), loc="outside right upper", alignment="left")
        laws = {one.fit.law.name: one.fit.law.formula for one in found.values()}
        formulas = [f"Law {name}: {formula}." for name, formula in laws.items()]
        errors = [
            f"{f'{title.capitalize()}: ' if title else ''}{_errors(one)}." for title, one in found.items()
        ]
        blocks = "Offsets of seed blocks stay in: no prediction knows them." if fit.blocks.shape[1] else ""
        caption(figure, *formulas, "Lines: observed = predicted.", *errors, blocks)
    return figure


def _column(
    above: "Axes", below: "Axes", fit: FitResult, held: Sequence[RowsHeldOut], colours: Mapping[Edge, Any]
) -> dict[str, Any]:
    """Draw one part; returns a legend handle for each name."""
    dots: dict[str, Any] = {"marker": "o", "color": GREY, "ms": 3.2, "mew": 0, "alpha": 0.6}
    series = [("all rows, as fitted", fit.predict(fit.rows.values), fit.rows.loss, dots)]
    for one in held:
        edge = one.test.edge
        open_marker = {"marker": _MARKERS[edge], "color": colours[edge], "mfc": "none", "ms": 4.6, "mew": 0.9}
        series.append((f"{_words(one.test)} held out", one.predicted, fit.rows.loss[one.chosen], open_marker))
    handles = {}
    for name, guess, observed, style in series:
        (handles[name],) = above.plot(guess, observed, ls="none", label=name, zorder=3, **style)
        below.plot(guess, observed - guess, ls="none", label=name, zorder=3, **style)
    ends = [min(guess.min() for _, guess, _, _ in series), max(guess.max() for _, guess, _, _ in series)]
    above.plot(ends, ends, color=INK, lw=0.8, zorder=2)
    below.axhline(0, color=INK, lw=0.8, zorder=2)
    below.sharex(above)
    above.tick_params(labelbottom=False)
    return handles


def _words(one: HoldOut) -> str:
    return _WORDS[one.edge].format(one.axis)


def _errors(compared: Compared) -> str:
    """RMSE of the fit and of every hold-out."""
    fit = compared.fit
    parts = [
        f"RMSE {fit.rmse_nats:.4f}{' nats' if fit.stage else ''} of law {fit.law.name} as fitted to {fit.n_rows} rows"
    ]
    parts += [
        f"{one.rmse_nats:.4f} on {one.n_test} rows of {_words(one)} held out"
        for one in compared.holdouts
        if not one.skipped
    ]
    return ", ".join(parts)
