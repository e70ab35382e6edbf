"""The numbers of a figure: what its labelled artists show, panel by panel, for a terminal or a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from umscale.results.columns import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points or a line."""

    name: str
    is_line: bool
    x: Array
    y: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    x_log: bool
    y_log: bool
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: tuple[tuple[float, str], ...]
    """Position and label of each."""
    y_ticks: tuple[tuple[float, str], ...]
    series: tuple[Series, ...]


def panels_of(figure: "Figure") -> tuple[Panel, ...]:
    """The panels of a figure that show labelled points or lines, in the order they were made."""
    found = (_panel(ax) for ax in figure.axes)
    return tuple(panel for panel in found if panel.series)


def _panel(ax: "Axes") -> Panel:
    return Panel(
        title=_plain(ax.get_title().partition("\n")[0]),
        x_label=_plain(ax.get_xlabel()),
        y_label=_plain(ax.get_ylabel()),
        x_log=ax.get_xscale() == "log",
        y_log=ax.get_yscale() == "log",
        x_range=ax.get_xlim(),
        y_range=ax.get_ylim(),
        x_ticks=_ticks(ax.xaxis, ax.get_xlim()),
        y_ticks=_ticks(ax.yaxis, ax.get_ylim()),
        series=tuple(_series(ax)),
    )


def _series(ax: "Axes") -> Iterator[Series]:
    for line in ax.lines:
        name = str(line.get_label())
        # Matplotlib's own labels begin with an underscore.
        if not name.startswith("_"):
            x, y = (np.asarray(values, dtype=np.float64) for values in line.get_data(orig=False))
            yield Series(name=_plain(name), is_line=line.get_linestyle() != "None", x=x, y=y)


def _ticks(axis: "Axis", limits: tuple[float, float]) -> tuple[tuple[float, str], ...]:
    low, high = sorted(limits)
    axis.get_majorticklabels()  # brings the ticks up to date
    found = [(float(tick.get_loc()), _plain(tick.label1.get_text())) for tick in axis.get_major_ticks()]
    return tuple((at, words) for at, words in found if low <= at <= high and words)


def _plain(words: str) -> str:
    """Words without mathematical type."""
    return " ".join(words.replace("$", "").replace("\\", "").split())
