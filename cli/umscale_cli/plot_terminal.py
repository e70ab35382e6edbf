"""``umscale plot --term``: the points and lines of a figure as characters, for a look over ssh."""

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umscale.plots.series import Panel, Series
    from umscale.results.columns import Array

_MARKERS = "ox+*#@%&"
_COLOURS = (33, 208, 36, 201, 220, 51, 160, 245)  # of the 256; one for each marker
_ROWS = 20
_WIDEST = 120
_MOST_NAMES = 12


def plotext_module() -> Any:
    """Plotext; raises ``UserError`` where it is not installed."""
    from umscale.errors import UserError

    try:
        import plotext
    except ImportError:
        raise UserError("--term needs plotext: pip install 'umscale[term]'") from None
    if not hasattr(plotext, "clear_figure"):  # version 6 is another library under the same name
        raise UserError("--term needs plotext 5: pip install 'umscale[term]'")
    return plotext


def panel_text(plotext: Any, panel: "Panel", title: str) -> str:
    """A panel as wide as the terminal; colours only on one."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, _ROWS)
    plotext.title(f"{title}: {panel.title}" if panel.title else title)
    plotext.xlabel(panel.x_label)
    horizontal, vertical = _scale(panel.x_log, panel.x_range), _scale(panel.y_log, panel.y_range)
    for axis, scale, limits, ticks in (
        ("x", horizontal, panel.x_range, panel.x_ticks),
        ("y", vertical, panel.y_range, panel.y_ticks),
    ):
        getattr(plotext, f"{axis}lim")(*scale(_array(limits)).tolist())
        positions = scale(_array([at for at, _ in ticks])).tolist()
        getattr(plotext, f"{axis}ticks")(positions, [words for _, words in ticks])
    groups = list(dict.fromkeys(_group(one) for one in panel.series))
    # Points last: a line drawn over them would hide them.
    for one in sorted(panel.series, key=lambda one: not one.is_line):
        _draw(plotext, one, panel, horizontal, vertical, groups.index(_group(one)), width)
    text = str(plotext.build())
    lines = (text if _coloured() else str(plotext.uncolorize(text))).rstrip("\n").split("\n")
    y_label = [panel.y_label] if panel.y_label else []
    return "\n".join([*y_label, *(line.rstrip() for line in lines), *_legend(panel, groups, width), ""])


def _draw(
    plotext: Any,
    one: "Series",
    panel: "Panel",
    horizontal: "Callable[[Array], Array]",
    vertical: "Callable[[Array], Array]",
    k: int,
    width: int,
) -> None:
    import numpy as np

    (left, right), (low, high) = sorted(panel.x_range), sorted(panel.y_range)
    there = (one.x >= left) & (one.x <= right) & (one.y >= low) & (one.y <= high)
    there &= np.isfinite(one.x) & np.isfinite(one.y)
    every = max(1, int(there.sum()) // (2 * width)) if one.is_line else 1
    x, y = horizontal(one.x[there][::every]).tolist(), vertical(one.y[there][::every]).tolist()
    if not x:
        return
    colour = {"color": _COLOURS[k % len(_COLOURS)]} if _coloured() else {}
    if one.is_line:
        plotext.plot(x, y, marker="braille", **colour)
    else:
        plotext.scatter(x, y, marker=_MARKERS[k % len(_MARKERS)], **colour)


def _scale(log: bool, limits: tuple[float, float]) -> "Callable[[Array], Array]":
    """Where a value is drawn: plotext knows neither logarithms nor axes that run downwards."""
    import numpy as np

    sign = -1.0 if limits[0] > limits[1] else 1.0
    return lambda values: sign * (np.log10(values) if log else values)


def _array(values: Sequence[float]) -> "Array":
    import numpy as np

    return np.array(sorted(values), dtype=np.float64)


def _group(one: "Series") -> str:
    """What points and lines of one level have in common: the first part of their names."""
    return one.name.split(", ")[0]


def _legend(panel: "Panel", groups: Sequence[str], width: int) -> list[str]:
    """What each marker stands for, and the lines."""
    marked = dict.fromkeys(_group(one) for one in panel.series if not one.is_line)
    entries = [f"{_MARKERS[groups.index(name) % len(_MARKERS)]} {name}" for name in marked]
    lines = [one for one in panel.series if one.is_line]
    entries += dict.fromkeys(
        f"line {one.name.partition(', ')[2 if marked else 0] or one.name}" for one in lines
    )
    if len(entries) > _MOST_NAMES:
        entries = [*entries[:_MOST_NAMES], f"and {len(entries) - _MOST_NAMES} more"]
    return textwrap.wrap("   ".join(entries), width, drop_whitespace=True)


def _coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
