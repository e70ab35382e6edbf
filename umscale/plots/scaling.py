"""Loss against size, tokens or compute, with a law's curves, their bands, and what it says of rows held out.

The standard figure of a scaling paper. Series are levels of the other axis, or stretches of it where it takes many
values; against compute they are sizes, and the least loss that the law has at each compute is drawn below them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from umscale.errors import UserError
from umscale.laws.fit import FitResult
from umscale.laws.forms import evaluate
from umscale.laws.holdout import HoldOut, RowsHeldOut
from umscale.laws.uncertainty import Uncertainty
from umscale.plots.style import (
    INK,
    MARKERS,
    Artists,
    axis_words,
    band,
    caption,
    house_style,
    human,
    law_words,
    level_codes,
    log_ticks,
    loss_words,
    ordered_colours,
    panels,
    part_words,
)
from umscale.questions.optimal import best_sizes
from umscale.results.columns import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Along = Literal["N", "D", "C"]

_OTHER: Mapping[Along, str] = {"N": "D", "D": "N", "C": "N"}
_MOST_SERIES = 7
_POINTS = 60
_COLUMN = {"N": "active_params", "D": "tokens", "C": "training_flops"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What is drawn, [rows]."""

    along: Along
    x: Array
    y: Array
    series: NDArray[np.int64]
    sizes: Array
    """Series → value of the other axis."""
    names: tuple[str, ...]
    factor: float
    """FLOPs per parameter and token; 0 unless drawn against compute."""


def scaling(
    found: Uncertainty,
    held: RowsHeldOut | None,
    along: Along,
    *,
    compute: Array | None = None,
    source: str = "",
) -> "Figure":
    """Loss against one axis, a law's curves with 95% bands, and dashed what it says without the rows ``held`` out.

    ``compute`` [rows of the fit] is needed against C; ``source`` says where it comes from. Raises ``UserError`` for a
    law that does not read the axis, and for one that reads others than N and D.
    """
    fit = found.fit
    rows = _rows(fit, along, compute)
    with house_style():
        figure, [[ax]] = panels(1, 1, width=4.6, height=3.6, margin=1.9)
        colours = ordered_colours(len(rows.sizes))
        for k, colour in enumerate(colours):
            _series(ax, found, rows, k, colour, held)
        lowest = _frontier(ax, fit, rows) if along == "C" else None
        log_ticks(ax, "x", rows.x, most_levels=0)
        ax.set_yscale("log")
        _loss_ticks(ax)
        ax.set_xlabel(axis_words(fit.columns.get(along, _COLUMN[along])))
        ax.set_ylabel(loss_words(fit.loss, study=fit.stage is not None))
        title = axis_words(fit.columns[_OTHER[along]]) if len(rows.sizes) > 1 else None
        handles = _handles(rows, colours, found, held is not None, lowest is not None)
        figure.legend(handles=handles, title=title, loc="outside right upper", alignment="left")
        caption(figure, *_words(found, rows, held.test if held is not None else None, source))
    return figure


def _rows(fit: FitResult, along: Along, compute: Array | None) -> _Rows:
    values, symbols = fit.rows.values, set(fit.law.symbols)
    needed = {"N", "D"} if along == "C" else {along}
    if not needed <= symbols:
        raise UserError(
            f"law {fit.law.name!r} as fitted reads no {' and '.join(sorted(needed - symbols))}: nothing to draw "
            f"along {along}"
        )
    if more := symbols - {"N", "D"}:
        raise UserError(
            f"law {fit.law.name!r} also reads {', '.join(sorted(more))}: this figure is of N and D"
        )
    if along == "C" and compute is None:
        raise UserError("the rows have no compute to draw along")
    other = _OTHER[along]
    series, sizes, names = _series_of(values[other]) if other in symbols else _one(fit.n_rows)
    x = values[along] if along != "C" else compute
    assert x is not None
    factor = float(np.exp(np.log(x / (values["N"] * values["D"])).mean())) if along == "C" else 0.0
    return _Rows(along=along, x=x, y=fit.rows.loss, series=series, sizes=sizes, names=names, factor=factor)


def _one(n_rows: int) -> tuple[NDArray[np.int64], Array, tuple[str, ...]]:
    return np.zeros(n_rows, dtype=np.int64), np.ones(1), ("measured",)


def _series_of(values: Array) -> tuple[NDArray[np.int64], Array, tuple[str, ...]]:
    """The series of each row, their values and names: levels, or equal stretches of their logarithm."""
    codes, levels = level_codes(values)
    if len(levels) <= _MOST_SERIES:
        return codes, levels, tuple(human(level) for level in levels)
    cuts = np.linspace(np.log(levels[0]), np.log(levels[-1]), _MOST_SERIES + 1)[1:-1]
    found = np.unique(np.searchsorted(cuts, np.log(values), side="right"), return_inverse=True)[1]
    stretches = [values[found == k] for k in range(int(found.max()) + 1)]
    names = tuple(f"{human(float(v.min()))} – {human(float(v.max()))}" for v in stretches)
    return found.astype(np.int64), np.array([np.exp(np.log(v).mean()) for v in stretches]), names


def _curve(fit: FitResult, rows: _Rows, x: Array, k: int) -> dict[str, Array]:
    """Values of the law's symbols along ``x`` in one series."""
    other = np.full_like(x, rows.sizes[k])
    if rows.along == "C":
        return {"N": other, "D": x / (rows.factor * other)}
    return {rows.along: x, _OTHER[rows.along]: other}


def _series(
    ax: "Axes",
    found: Uncertainty,
    rows: _Rows,
    k: int,
    colour: Any,
    held: RowsHeldOut | None,
) -> None:
    fit, here = found.fit, rows.series == k
    out = held.chosen if held is not None else np.zeros(fit.n_rows, dtype=bool)
    marker, name = MARKERS[k % len(MARKERS)], rows.names[k]
    for chosen, face, words in ((here & ~out, colour, "measured"), (here & out, "white", "held out")):
        if chosen.any():
            ax.plot(
                rows.x[chosen], rows.y[chosen], marker, color=colour, mfc=face, ms=3.4, mew=0.8, ls="none", zorder=3,
                label=f"{name}, {words}",
            )  # fmt: skip
    x = np.geomspace(rows.x[here].min(), rows.x[here].max(), _POINTS)
    if x[-1] <= x[0] * 1.001:
        return
    values = _curve(fit, rows, x, k)
    ax.plot(x, fit.predict(values), color=colour, lw=1.2, zorder=2, label=f"{name}, law {fit.law.name}")
    if len(found.draws):
        band(ax, x, *found.band(values), colour)
    if held is not None and (here & out).any():
        guess = evaluate(fit.law, held.coefficients, values, fit.reference)
        ax.plot(x, guess, color=colour, lw=1.0, ls="--", zorder=2, label=f"{name}, without the rows held out")


def _frontier(ax: "Axes", fit: FitResult, rows: _Rows) -> Array | None:
    """The least loss of the law at each compute; None where it has none."""
    x = np.geomspace(rows.x.min(), rows.x.max(), _POINTS)
    least = best_sizes(fit, fit.vector[None], x, rows.factor)[1][0]
    if not np.isfinite(least).any():
        return None
    ax.plot(x, least, color=INK, lw=1.2, ls=":", zorder=4, label="least loss of the law")
    return least


def _loss_ticks(ax: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    ax.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _handles(
    rows: _Rows, colours: Sequence[Any], found: Uncertainty, has_held: bool, has_frontier: bool
) -> Artists:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: Artists = [
        Line2D([], [], color=colour, marker=MARKERS[k % len(MARKERS)], ms=3.4, lw=1.2, label=name)
        for k, (colour, name) in enumerate(zip(colours, rows.names, strict=True))
    ]
    handles.append(Line2D([], [], color=INK, lw=1.2, label=f"law: {found.fit.law.name}"[:28]))
    if has_held:
        handles.append(
            Line2D([], [], color=INK, marker="o", mfc="white", ms=3.4, ls="--", lw=1.0, label="held out")
        )
    if has_frontier:
        handles.append(Line2D([], [], color=INK, lw=1.2, ls=":", label="least loss at C"))
    if len(found.draws):
        handles.append(Patch(color=INK, alpha=0.15, lw=0, label="95% band"))
    return handles


def _words(found: Uncertainty, rows: _Rows, edge: HoldOut | None, source: str) -> list[str]:
    said = [part_words(found.fit), law_words(found)]
    if edge is not None:
        off = edge.mean_percent
        said.append(
            f"Open: {edge.n_test} rows of the {'largest ' if edge.edge == 'largest' else 'most '}{edge.axis} held "
            "out; dashed: "
            f"the law fitted without them, {off:.2f}% off."
        )
    if len(rows.names) > 1 and "–" in rows.names[0]:
        said.append("Series are stretches; each curve is at the middle of its own.")
    if source:
        said.append(f"C: {source}.")
    return said
