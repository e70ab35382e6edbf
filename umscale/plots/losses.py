"""Loss against density by size, and against size by density, with the fitted laws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from umscale.errors import UserError
from umscale.laws.fit import FitResult
from umscale.laws.forms import Array
from umscale.laws.table import Table, levels, n_rows, numeric, text
from umscale.laws.uncertainty import Uncertainty
from umscale.plots.style import INK, MARKERS, house_style, human, ordered_colours, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES: Mapping[str, str] = {"top_m": "top_m", "sparse_params": "sparse parameters $N_s$"}
_LOSSES: Mapping[str, str] = {"loss": "validation loss", "loss_ema": "validation loss, averaged weights"}
_SYMBOLS: Mapping[str, str] = {"top_m": "m", "sparse_params": "N_s"}
_DASHES = ("-", "--", ":", "-.")
_SAME_LEVEL = 1.01
_STAGES = ("stable", "annealed")

Fits = Sequence[FitResult | Uncertainty]


def loss_vs_density(table: Table, fits: Fits = (), *, loss: str = "loss") -> "Figure":
    """Loss against top_m, one series per N_s; a panel per stage and token budget, all spanning equal nats.

    Points are means over the runs of a cell, with bars of their standard deviation when there are several.
    Each fit of this loss is drawn in the panels of its stage, with its 95% band when it comes as an
    ``Uncertainty``; a law that reads other columns than top_m, N_s and tokens is left out. Raises
    ``UserError`` when there is nothing to draw or the table mixes compensations.
    """
    with house_style():
        return _draw(_Series.of(table, "top_m", "sparse_params", loss), fits)


def loss_vs_size(table: Table, fits: Fits = (), *, loss: str = "loss") -> "Figure":
    """Loss against N_s, one series per top_m; otherwise as ``loss_vs_density``."""
    with house_style():
        return _draw(_Series.of(table, "sparse_params", "top_m", loss), fits)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """The rows of one figure, [rows], and the levels that separate its series."""

    along: str
    by: str
    loss: str
    x: Array
    y: Array
    tokens: Array
    stage: NDArray[np.str_]
    budget: Array
    level: NDArray[np.int64]
    sizes: tuple[float, ...]
    """Level → value of ``by``."""

    @classmethod
    def of(cls, table: Table, along: str, by: str, loss: str) -> "_Series":
        for name in (along, by, loss):
            if name not in table:
                raise UserError(f"the table has no column {name!r}: this figure needs it")
        if len(modes := levels(table, "compensation")) > 1:
            raise UserError(f"the table mixes compensation {' and '.join(modes)}: draw one at a time")
        n = n_rows(table)
        x, group, y = (numeric(table, name) for name in (along, by, loss))
        tokens = numeric(table, "tokens") if "tokens" in table else np.full(n, np.nan)
        budget = numeric(table, "budget") if "budget" in table else np.zeros(n)
        stage = text(table, "stage") if "stage" in table else np.full(n, "", dtype=str)
        keep = np.isfinite(x) & np.isfinite(group) & np.isfinite(y) & (x > 0) & (group > 0)
        if not keep.any():
            raise UserError(f"no row has a finite {loss}, {along} and {by}: there is nothing to draw")
        logs = np.log(group[keep])
        order = np.argsort(logs)
        level = np.empty(len(logs), dtype=np.int64)
        level[order] = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > np.log(_SAME_LEVEL))])
        return cls(
            along=along,
            by=by,
            loss=loss,
            x=x[keep],
            y=y[keep],
            tokens=tokens[keep],
            stage=stage[keep],
            budget=np.nan_to_num(budget[keep]),
            level=level,
            sizes=tuple(float(np.exp(logs[level == k].mean())) for k in range(level.max() + 1)),
        )


def _draw(series: _Series, fits: Fits) -> "Figure":
    colours = ordered_colours(len(series.sizes))
    stages = sorted(set(series.stage.tolist()), key=lambda s: (s not in _STAGES, s == "annealed", s))
    budgets = sorted(set(series.budget.tolist()))
    figure, axes = panels(len(budgets), len(stages))
    extents = {}
    for row, budget in enumerate(budgets):
        for column, stage in enumerate(stages):
            ax = axes[row][column]
            here = (series.stage == stage) & (series.budget == budget)
            ax.set_xscale("log", base=2)
            ax.set_title(", ".join(filter(None, (stage, f"{human(budget)} tokens" if budget else ""))))
            if row == len(budgets) - 1:
                ax.set_xlabel(_TITLES[series.along])
            if not here.any():
                ax.text(0.5, 0.5, "no finished run", ha="center", transform=ax.transAxes)
                continue
            seen = [
                _points(ax, series, here & (series.level == k), k, colours[k])
                for k in sorted(set(series.level[here].tolist()))
            ]
            for number, fit in enumerate(_drawable(fits, stage, series)):
                seen += _lines(ax, fit, series, here, colours, _DASHES[number % len(_DASHES)])
            extents[row, column] = (min(low for low, _ in seen), max(high for _, high in seen))
        axes[row][0].set_ylabel(f"{_LOSSES.get(series.loss, series.loss)}\n(nats per token)")
    # One span for all panels: equal heights are equal nats, whatever the level of a panel.
    span = max(high - low for low, high in extents.values()) * 1.12 or 0.1
    for (row, column), (low, high) in extents.items():
        axes[row][column].set_ylim((low + high - span) / 2, (low + high + span) / 2)
    _ticks([ax for line in axes for ax in line], series.x)
    _legend(figure, series, colours, [f for s in stages for f in _drawable(fits, s, series)])
    return figure


def _points(
    ax: "Axes", series: _Series, chosen: NDArray[np.bool_], k: int, colour: tuple[float, float, float]
) -> tuple[float, float]:
    """Means over runs with the same x, bars of one standard deviation; returns the lowest and highest ink."""
    xs = np.unique(series.x[chosen])
    groups = [series.y[chosen & (series.x == x)] for x in xs]
    means = np.array([g.mean() for g in groups])
    spread = np.array([g.std(ddof=1) if len(g) > 1 else 0.0 for g in groups])
    bars = spread if spread.any() else None
    ax.errorbar(
        xs, means, yerr=bars, color=colour, marker=MARKERS[k % len(MARKERS)], ls="none", capsize=2, zorder=3
    )
    return float((means - spread).min()), float((means + spread).max())


def _drawable(fits: Fits, stage: str, series: _Series) -> list[FitResult | Uncertainty]:
    """The fits of this stage and loss whose law reads only what a panel fixes."""
    chosen = []
    for fit in fits:
        result = fit.fit if isinstance(fit, Uncertainty) else fit
        speaks = result.loss == series.loss and result.stage in (None, stage)
        if speaks and set(result.law.symbols) <= {"m", "N_s", "D"}:
            chosen.append(fit)
    return chosen


def _lines(
    ax: "Axes",
    fit: FitResult | Uncertainty,
    series: _Series,
    here: NDArray[np.bool_],
    colours: Sequence[tuple[float, float, float]],
    dashes: str,
) -> list[tuple[float, float]]:
    """The law along the panel's x range, one line per level unless it ignores them.

    Returns each line's lowest and highest loss.
    """
    result = fit.fit if isinstance(fit, Uncertainty) else fit
    tokens = float(np.nanmedian(series.tokens[here])) if np.isfinite(series.tokens[here]).any() else 1.0
    x = np.geomspace(series.x[here].min(), series.x[here].max(), 25)
    extents = []
    present = sorted(set(series.level[here].tolist()))
    separate = _SYMBOLS[series.by] in result.law.symbols
    for k in present if separate else present[:1]:
        colour = colours[k] if separate else INK
        values = {
            _SYMBOLS[series.along]: x,
            _SYMBOLS[series.by]: np.full_like(x, series.sizes[k]),
            "D": np.full_like(x, tokens),
        }
        y = result.predict(values)
        ax.plot(x, y, color=colour, ls=dashes, zorder=2)
        if isinstance(fit, Uncertainty):
            low, high = fit.band(values)
            ax.fill_between(x, low, high, color=colour, alpha=0.13, lw=0, zorder=1)
        extents.append((float(y.min()), float(y.max())))
    return extents


def _ticks(axes: "Sequence[Axes]", x: Array) -> None:
    """Ticks at the levels themselves, thinned where their labels would touch."""
    from matplotlib.ticker import NullLocator

    present = np.unique(x).tolist()
    chosen: list[float] = []
    gap = np.log(present[-1] / present[0]) / 7
    for level in (present[0], present[-1], *present[1:-1]):
        if all(abs(np.log(level / other)) > gap for other in chosen):
            chosen.append(level)
    chosen.sort()
    for ax in axes:
        ax.set_xticks(chosen, [human(level) for level in chosen])
        ax.xaxis.set_minor_locator(NullLocator())


def _legend(
    figure: "Figure",
    series: _Series,
    colours: Sequence[tuple[float, float, float]],
    fits: Fits,
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Line2D | Patch] = [
        Line2D([], [], color=colours[k], marker=MARKERS[k % len(MARKERS)], ls="none", label=human(size))
        for k, size in enumerate(series.sizes)
    ]
    results = [fit.fit if isinstance(fit, Uncertainty) else fit for fit in fits]
    for number, name in enumerate(dict.fromkeys(result.law.name for result in results)):
        handles.append(Line2D([], [], color=INK, ls=_DASHES[number % len(_DASHES)], label=f"law: {name}"))
    if any(isinstance(fit, Uncertainty) for fit in fits):
        handles.append(Patch(color=INK, alpha=0.15, lw=0, label="95% band"))
    title = "$N_s$" if series.by == "sparse_params" else _TITLES[series.by]
    figure.legend(handles=handles, title=title, loc="outside right upper", alignment="left")
