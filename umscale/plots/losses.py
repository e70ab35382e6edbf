"""Loss against one axis of a study in series by another, with the fitted laws: against density, and against size."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from umscale.errors import UserError, nearest
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
    laws_words,
    level_codes,
    log_ticks,
    loss_words,
    ordered_colours,
    panels,
    symbol_words,
)
from umscale.results.columns import COLUMNS, Array
from umscale.results.table import Table, group_codes, levels, n_rows, numeric, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ("-", "--", ":", "-.")
_STAGES = ("stable", "annealed")
_MIXED = ("architecture", "d_model", "n_layers")  # a figure's points must not average over these
_MOST_BUDGETS = 6
_APART = 2.2  # points between the markers of neighbouring series, so that their bars can be told apart
_WIDEST = 7.0  # points between the markers of the first and the last

Place = tuple[str, float]
"""A panel: stage and token budget."""


def loss_vs_density(
    table: Table,
    fits: Sequence[Uncertainty] = (),
    *,
    loss: str = "loss",
    columns: Mapping[str, str] | None = None,
    words: str = "",
) -> "Figure":
    """Loss against top_m, one series per N_s; a panel per stage and token budget, all spanning equal nats.

    Points are means over the runs of a cell, with bars of their standard deviation when there are several. Each fit
    of this loss is drawn in the panels of its stage with its 95% band; a law that reads more than top_m, N_s and
    tokens is drawn through the measured cells alone. ``columns`` maps symbols over ``results.columns.COLUMNS``,
    ``words`` end the caption. Raises ``UserError`` when there is nothing to draw or the table mixes what a figure
    cannot.
    """
    return _against(table, "m", "N_s", fits, loss, columns, words)


def loss_vs_size(
    table: Table,
    fits: Sequence[Uncertainty] = (),
    *,
    loss: str = "loss",
    columns: Mapping[str, str] | None = None,
    words: str = "",
) -> "Figure":
    """Loss against N_s, one series per top_m; otherwise as ``loss_vs_density``."""
    return _against(table, "N_s", "m", fits, loss, columns, words)


def _against(
    table: Table,
    along: str,
    by: str,
    fits: Sequence[Uncertainty],
    loss: str,
    columns: Mapping[str, str] | None,
    words: str,
) -> "Figure":
    rows = LossRows.of(table, along, by, fits, loss=loss, columns=columns)
    with house_style():
        drawing = draw_losses(rows, fits)
        drawing.finish([*drawing.words(rows), *laws_words(drawing.fits), words])
    return drawing.figure


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRows:
    """The rows of one figure, [rows], and the levels that separate its series."""

    along: str
    """Symbol of the horizontal axis."""
    by: str | None
    """Symbol that separates the series; None for one series."""
    columns: Mapping[str, str]
    loss: str
    values: Mapping[str, Array]
    """Symbol → [rows]: both axes and what the laws read."""
    y: Array
    """Losses; offsets that the runs of a seed share are taken out of every panel."""
    n_seeds: int
    stage: NDArray[np.str_]
    budget: Array
    """Tokens a panel stands for; 0 where the table has none."""
    level: NDArray[np.int64]
    sizes: tuple[float, ...]
    """Level → value of ``by``."""

    @property
    def x(self) -> Array:
        return self.values[self.along]

    @classmethod
    def of(
        cls,
        table: Table,
        along: str,
        by: str | None,
        fits: Sequence[Uncertainty] = (),
        *,
        loss: str = "loss",
        columns: Mapping[str, str] | None = None,
    ) -> "LossRows":
        """The rows that have a loss and a place; raises ``UserError`` as ``loss_vs_density`` says."""
        mapping = {**COLUMNS, **(columns or {})}
        axes = [along, *([by] if by else [])]
        for name in (loss, *(mapping[s] for s in axes)):
            if name not in table:
                raise UserError(
                    f"the table has no column {name!r}: this figure needs it{nearest(name, table)}"
                )
        for name in ("compensation", *_MIXED):
            if len(mixed := levels(table, name)) > 1:
                raise UserError(f"the table mixes {name} {' and '.join(mixed)}: draw one at a time")
        read = {s for fit in fits for s in fit.fit.law.symbols}
        symbols = [*axes, *(s for s in sorted(read) if s not in axes)]
        values = {s: numeric(table, mapping[s]) for s in symbols if mapping[s] in table}
        y = numeric(table, loss)
        keep = np.isfinite(y) & np.all([np.isfinite(values[s]) & (values[s] > 0) for s in axes], axis=0)
        names = " and ".join(mapping[s] for s in axes)
        if not keep.any():
            raise UserError(f"no row has a finite {loss}, {names}: there is nothing to draw")
        values = {s: v[keep] for s, v in values.items()}
        if not np.ptp(level_codes(values[along])[0]):
            raise UserError(
                f"every row has {mapping[along]} {human(values[along][0])}: no axis to draw along"
            )
        stage = text(table, "stage")[keep] if "stage" in table else np.full(len(y[keep]), "", dtype=str)
        level, sizes = level_codes(values[by]) if by else (np.zeros(len(stage), dtype=np.int64), np.ones(1))
        budget = _budgets(table, mapping["D"])[keep]
        seed = group_codes(table, ["seed"])[keep]
        cell = level_codes(values[along])[0] * len(sizes) + level
        return cls(
            along=along,
            by=by,
            columns=mapping,
            loss=loss,
            values=values,
            y=_without_offsets(
                y[keep], cell, seed, group_codes({"stage": stage, "budget": budget}, ["stage", "budget"])
            ),
            n_seeds=len(set(seed.tolist())),
            stage=stage,
            budget=budget,
            level=level,
            sizes=tuple(sizes.tolist()),
        )


@dataclass(slots=True, kw_only=True)
class LossDrawing:
    """A figure of losses while it is built: what else a kind of figure draws goes into its panels and legend."""

    figure: "Figure"
    axes: "dict[Place, Axes]"
    handles: Artists
    title: str | None
    fits: list[Uncertainty]
    """Those that were drawn."""

    def words(self, rows: LossRows) -> list[str]:
        """What points and bars are, as the caption says it."""
        counts = [_runs_per_point(rows, place) for place in self.axes]
        least, most = min(low for low, _ in counts), max(high for _, high in counts)
        n = str(most) if least == most else f"{least} to {most}"
        bars = ", bars their standard deviation" if most > 1 else ""
        each = "one run each" if most == 1 else f"means of {n} runs{bars}"
        seeds = f" Offsets of {rows.n_seeds} seed blocks are taken out." if rows.n_seeds > 1 else ""
        return [f"Points: {each}.{seeds} All panels span equal nats."]

    def finish(self, words: Sequence[str]) -> None:
        self.figure.legend(
            handles=self.handles, title=self.title, loc="outside right upper", alignment="left"
        )
        caption(self.figure, *words)


def draw_losses(rows: LossRows, fits: Sequence[Uncertainty] = ()) -> LossDrawing:
    """Panels by stage and budget with points, and the laws with their bands; no legend yet."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = ordered_colours(len(rows.sizes))
    stages = sorted(set(rows.stage.tolist()), key=lambda s: (s not in _STAGES, s == "annealed", s))
    budgets = sorted(set(rows.budget.tolist()))
    dashes = dict(zip(dict.fromkeys(f.fit.law.name for f in fits), itertools.cycle(_DASHES), strict=False))
    figure, grid = panels(len(budgets), len(stages))
    axes: dict[Place, Axes] = {}
    extents: list[tuple[float, float]] = []
    drawn: list[Uncertainty] = []
    for row, budget in enumerate(budgets):
        for column, stage in enumerate(stages):
            ax = grid[row][column]
            here = (rows.stage == stage) & (rows.budget == budget)
            ax.set_title(", ".join(filter(None, (stage, f"{human(budget)} tokens" if budget else ""))))
            log_ticks(ax, "x", rows.x)
            if row == len(budgets) - 1:
                ax.set_xlabel(axis_words(rows.columns[rows.along]))
            if not here.any():
                ax.text(0.5, 0.5, "no finished run", ha="center", transform=ax.transAxes)
                continue
            axes[stage, budget] = ax
            seen = [
                _points(ax, rows, here & (rows.level == k), k, colours[k])
                for k in sorted(set(rows.level[here].tolist()))
            ]
            speaking = [f for f in fits if f.fit.loss == rows.loss and f.fit.stage in (None, stage)]
            for fit in (f for f in speaking if set(f.fit.law.symbols) <= set(rows.values)):
                seen += _lines(ax, fit, rows, here, colours, dashes[fit.fit.law.name])
                drawn.append(fit)
            extents.append((min(low for low, _ in seen), max(high for _, high in seen)))
        grid[row][0].set_ylabel(loss_words(rows.loss, study=any(stages)))
    # One span for all panels: equal heights are equal nats, whatever the level of a panel.
    span = max(high - low for low, high in extents) * 1.12 or 0.1
    for ax, (low, high) in zip(axes.values(), extents, strict=True):
        ax.set_ylim((low + high - span) / 2, (low + high + span) / 2)
    handles: Artists = [
        Line2D([], [], color=colours[k], marker=MARKERS[k % len(MARKERS)], ls="none", label=human(size))
        for k, size in enumerate(rows.sizes if rows.by else ())
    ]
    handles += [
        Line2D([], [], color=INK, ls=dashes[name], label=f"law: {name}")
        for name in dict.fromkeys(f.fit.law.name for f in drawn)
    ]
    if any(len(f.draws) for f in drawn):
        handles.append(Patch(color=INK, alpha=0.15, lw=0, label="95% band"))
    title = symbol_words(rows.by, rows.columns) if rows.by else None
    return LossDrawing(figure=figure, axes=axes, handles=handles, title=title, fits=drawn)


def _budgets(table: Table, tokens: str) -> Array:
    """What tells the panels of a stage apart, [rows]: a study's budgets, or the tokens of a table with few levels."""
    if "budget" in table:
        return np.nan_to_num(numeric(table, "budget"))
    if tokens not in table:
        return np.zeros(n_rows(table))
    values = numeric(table, tokens)
    positive = np.isfinite(values) & (values > 0)
    out = np.zeros(len(values))
    if positive.any():
        level, sizes = level_codes(values[positive])
        if len(sizes) > _MOST_BUDGETS:
            raise UserError(
                f"{tokens} takes {len(sizes)} values, a panel each: keep {_MOST_BUDGETS} or fewer with --where"
            )
        out[positive] = sizes[level]
    return out


def _without_offsets(
    y: Array, cell: NDArray[np.int64], seed: NDArray[np.int64], panel: NDArray[np.int64]
) -> Array:
    """Losses without what the runs of a seed share, by least squares on cells and seeds within each panel, [rows].

    Every cell of a seed sees the same data, so the offsets say nothing of the cells' differences.
    """
    out = y.copy()
    for one in np.unique(panel):
        here = panel == one
        seeds = (seed[here, None] == np.unique(seed[here])).astype(np.float64)
        cells = (cell[here, None] == np.unique(cell[here])).astype(np.float64)
        solved = np.linalg.lstsq(np.hstack([cells, seeds - seeds.mean(axis=0)]), y[here], rcond=1e-9)[0]
        out[here] -= (seeds - seeds.mean(axis=0)) @ solved[cells.shape[1] :]
    return out


def _runs_per_point(rows: LossRows, place: Place) -> tuple[int, int]:
    here = (rows.stage == place[0]) & (rows.budget == place[1])
    cells = np.stack([rows.level[here], level_codes(rows.x)[0][here]])
    counts = np.unique(cells, axis=1, return_counts=True)[1]
    return int(counts.min()), int(counts.max())


def _points(
    ax: "Axes", rows: LossRows, chosen: NDArray[np.bool_], k: int, colour: tuple[float, float, float]
) -> tuple[float, float]:
    """Means over runs with the same x, bars of one standard deviation; returns the lowest and highest ink."""
    from matplotlib.transforms import ScaledTranslation

    codes, xs = level_codes(rows.x[chosen])
    groups = [rows.y[chosen][codes == code] for code in range(len(xs))]
    means = np.array([g.mean() for g in groups])
    spread = np.array([g.std(ddof=1) if len(g) > 1 else 0.0 for g in groups])
    last = max(1, len(rows.sizes) - 1)
    shift = min(_APART, _WIDEST / last) * (k - last / 2) if spread.any() and rows.by else 0.0
    drawn = ax.errorbar(
        xs,
        means,
        yerr=spread if spread.any() else None,
        color=colour,
        marker=MARKERS[k % len(MARKERS)],
        ls="none",
        capsize=2,
        elinewidth=0.9,
        zorder=3,
        transform=ax.transData + ScaledTranslation(shift / 72, 0, ax.figure.dpi_scale_trans),
    )
    drawn.lines[0].set_label(f"{human(rows.sizes[k])}, measured" if rows.by else "measured")
    return float((means - spread).min()), float((means + spread).max())


def _lines(
    ax: "Axes",
    found: Uncertainty,
    rows: LossRows,
    here: NDArray[np.bool_],
    colours: Sequence[tuple[float, float, float]],
    dashes: str,
) -> list[tuple[float, float]]:
    """The law along the panel's x range, one line per level unless it ignores them.

    Returns each line's lowest and highest loss.
    """
    symbols = set(found.fit.law.symbols)
    smooth = symbols <= {rows.along, rows.by, "D"}
    extents = []
    present = sorted(set(rows.level[here].tolist()))
    separate = not smooth or rows.by in symbols
    for k in present if separate else present[:1]:
        colour = colours[k] if separate else INK
        chosen = here & (rows.level == k) if separate else here
        values = _curve(rows, here, k) if smooth else _cells(rows, chosen)
        x, y = values[rows.along], found.fit.predict(values)
        level = f"{human(rows.sizes[k])}, " if rows.by and separate else ""
        ax.plot(x, y, color=colour, ls=dashes, zorder=2, label=f"{level}law {found.fit.law.name}")
        if len(found.draws):
            band(ax, x, *found.band(values), colour)
        extents.append((float(y.min()), float(y.max())))
    return extents


def _curve(rows: LossRows, here: NDArray[np.bool_], k: int) -> dict[str, Array]:
    """Values of a law's symbols at 25 points along the panel, at the size of level ``k`` and the panel's tokens."""
    x = np.geomspace(rows.x[here].min(), rows.x[here].max(), 25)
    values = {s: np.full_like(x, np.median(v[here])) for s, v in rows.values.items()}
    if rows.by:
        values[rows.by] = np.full_like(x, rows.sizes[k])
    return values | {rows.along: x}


def _cells(rows: LossRows, chosen: NDArray[np.bool_]) -> dict[str, Array]:
    """Means of a law's symbols in each measured cell of a series: what the axes alone do not determine."""
    codes, xs = level_codes(rows.x[chosen])
    return {
        s: np.array([v[chosen][codes == code].mean() for code in range(len(xs))])
        for s, v in rows.values.items()
    }
