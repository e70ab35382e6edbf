"""Where in the (m, N_s) plane density beats size: the map of ``umscale.questions.density_map`` as a picture."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from umscale.errors import UserError
from umscale.plots.style import (
    INK,
    Artists,
    axis_words,
    caption,
    house_style,
    human,
    log_ticks,
    panels,
)
from umscale.questions.density_map import DensityMap
from umscale.results.columns import Array
from umscale.say.labels import capital

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet
    from matplotlib.figure import Figure

_COLOURS = "cividis"  # its lightness rises throughout, so that grey print keeps the order
_CONTOURS = 9
_FRAME = (0, (5, 2))  # dashes of the line between what was measured and what is extrapolated


def density_plane(
    maps: Mapping[str, DensityMap], cells: tuple[Array, Array] | None = None, *, words: str = ""
) -> "Figure":
    """δ_m − δ_N over the plane, lighter where density wins; a panel for each titled map, all on one colour scale.

    Thin lines are iso-loss contours, the thick one is the boundary where both effects are equal, dashed at tokens
    beyond those of the rows. Hatching marks where the 95% interval of the difference holds zero, which is the
    boundary's interval; a veil marks extrapolation, and points the measured ``cells`` (m, N_s). ``words`` end the
    caption. Raises ``UserError`` without a map.
    """
    if not maps:
        raise UserError("no map: there is nothing to draw")
    with house_style():
        from matplotlib.ticker import MaxNLocator

        figure, [row] = panels(1, len(maps), width=3.2, height=3.1)
        shades = _shades(maps)
        for ax, (title, one) in zip(row, maps.items(), strict=True):
            filled = _panel(ax, one, shades, cells)
            ax.set_title(title)
        row[0].set_ylabel(axis_words(next(iter(maps.values())).columns[1]))
        bar = figure.colorbar(filled, ax=row, shrink=0.9, pad=0.02, ticks=MaxNLocator(7))
        bar.set_label("$\\delta_m - \\delta_N$, nats per token\n(doubling $m$ minus doubling $N_s$)")
        bar.ax.axhline(0, color=INK, lw=2.0)
        figure.legend(handles=_handles(maps, cells), loc="outside upper left", ncols=3, columnspacing=1.2)
        caption(figure, *_statements(maps), words)
    return figure


def _panel(
    ax: "Axes", found: DensityMap, shades: Array, cells: tuple[Array, Array] | None
) -> "QuadContourSet":
    """One map; returns what the colour bar describes."""
    from matplotlib.colors import Normalize
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    ax.grid(False)
    extent = float(np.abs(shades).max())
    m, n = found.m, found.n
    log_ticks(ax, "x", m if cells is None else cells[0])
    log_ticks(ax, "y", n if cells is None else cells[1])
    filled = ax.contourf(
        m, n, found.difference, levels=shades, norm=Normalize(-extent, extent), cmap=_COLOURS, zorder=0
    )
    filled.set_rasterized(True)  # fills of a vector file show hairlines between their levels
    _veil(ax, found)
    unsure = (found.low <= 0) & (found.high >= 0)
    if unsure.any() and not unsure.all():
        _hatch(ax, m, n, unsure.astype(np.float64))
    elif unsure.all():
        _hatch(ax, m, n, np.ones_like(found.loss))
    locator = MaxNLocator(_CONTOURS, steps=[1, 2, 5, 10])
    losses = np.array(locator.tick_values(found.loss.min(), found.loss.max()))
    lines = ax.contour(m, n, found.loss, levels=losses, colors=INK, linewidths=0.6, zorder=2)
    for text in ax.clabel(lines, fontsize=6.5, fmt=_loss_format(losses)):
        text.set_path_effects([withStroke(linewidth=1.8, foreground="white")])
    if found.difference.min() < 0 < found.difference.max():
        line = "dashed" if found.octaves_beyond else "solid"
        boundary = ax.contour(
            m, n, found.difference, levels=[0.0], colors=INK, linewidths=2.0, linestyles=line, zorder=3
        )
        boundary.set_path_effects([withStroke(linewidth=3.4, foreground="white")])
        boundary.set_gid("boundary")
    if cells is not None:
        ax.plot(*cells, "o", color="white", mec=INK, mew=0.7, ms=3.8, zorder=4, label="measured cells")
    ax.set_xlabel(axis_words(found.columns[0]))
    ax.set_xlim(m[0], m[-1])
    ax.set_ylim(n[0], n[-1])
    return filled


def _shades(maps: Mapping[str, DensityMap]) -> Array:
    """Levels of the fill, zero among their range; colours are symmetric about zero, the unused ones are not shown."""
    low = min(0.0, *(float(one.difference.min()) for one in maps.values()))
    high = max(0.0, *(float(one.difference.max()) for one in maps.values()))
    room = 0.02 * (high - low) or 1e-6
    return np.linspace(low - room, high + room, 61)


def _veil(ax: "Axes", found: DensityMap) -> None:
    """Whiten what is extrapolated, and frame what is not."""
    from matplotlib.patches import Rectangle

    inside = ~found.extrapolated
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    m, n = found.m, found.n

    def whiten(left: float, right: float, low: float, high: float) -> None:
        ax.fill_between([left, right], low, high, color="white", alpha=0.5, lw=0, zorder=1)

    if not len(columns):
        whiten(m[0], m[-1], n[0], n[-1])
        return
    left, right, low, high = m[columns[0]], m[columns[-1]], n[rows[0]], n[rows[-1]]
    whiten(m[0], left, n[0], n[-1])
    whiten(right, m[-1], n[0], n[-1])
    whiten(left, right, n[0], low)
    whiten(left, right, high, n[-1])
    frame = Rectangle((left, low), right - left, high - low, fill=False, ec=INK, lw=0.9, ls=_FRAME, zorder=3)
    ax.add_patch(frame)


def _hatch(ax: "Axes", m: Array, n: Array, unsure: Array) -> None:
    from matplotlib import rc_context

    with rc_context({"hatch.linewidth": 0.5}):
        hatched = ax.contourf(m, n, unsure, levels=[0.5, 1.5], colors="none", hatches=["////"], zorder=1.5)
    hatched.set_edgecolor(INK)
    hatched.set_linewidth(0)
    hatched.set_gid("uncertain")


def _loss_format(levels: Array) -> str:
    step = float(np.diff(levels).min())
    return f"%.{max(0, int(np.ceil(-np.log10(step) - 1e-9)))}f"


def _handles(maps: Mapping[str, DensityMap], cells: tuple[Array, Array] | None) -> Artists:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: Artists = [Line2D([], [], color=INK, lw=0.6, label="equal loss, nats")]
    found = maps.values()
    if any(one.difference.min() < 0 < one.difference.max() for one in found):
        handles.append(Line2D([], [], color=INK, lw=2.0, label="boundary: equal effects"))
    if any(((one.low <= 0) & (one.high >= 0)).any() for one in found):
        words = "95% interval holds zero"
        handles.append(Patch(facecolor="white", edgecolor=INK, lw=0.5, hatch="////", label=words))
    if any(one.extrapolated.any() for one in found):
        handles.append(Line2D([], [], color=INK, lw=0.9, ls=_FRAME, label="faded outside: extrapolated"))
    if cells is not None:
        handles.append(Line2D([], [], color="white", marker="o", mec=INK, ms=3.8, label="measured cells"))
    return handles


def _statements(maps: Mapping[str, DensityMap]) -> list[str]:
    said = []
    for title, one in maps.items():
        held = ", ".join(f"{column} {human(value)}" for column, value in one.held.items())
        at = f" at {held}" if held else ""
        said.append(f"{capital(title) or 'Map'} (law {one.law}{at}): {'; '.join(one.statements)}.")
    return said
