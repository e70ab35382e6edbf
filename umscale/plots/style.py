"""What every figure shares: colours, words, number formats, ticks, sizes and saving. No pyplot.

Artists that show data or a law carry a label; all others keep matplotlib's own, which begin with an underscore.
``umscale.plots.series`` reads the numbers of a figure back by these labels.
"""

import contextlib
import importlib
import math
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from umscale.errors import UserError
from umscale.laws.fit import FitResult
from umscale.laws.uncertainty import Uncertainty
from umscale.results.columns import Array
from umscale.say.labels import loss_name
from umscale.store.schema import is_probe_column

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Artists = list["Artist"]

# Ends of viridis are hard to see on paper (yellow) or to tell apart (dark blues); this is its middle.
_VIRIDIS = (0.02, 0.82)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#222222"
GREY = "#777777"
ACCENT = "#c1440e"  # darker in print than GREY, lighter than INK
_COLUMN_WORDS: Mapping[str, str] = {
    "top_m": "top_m, values per token and layer",
    "sparse_params": "sparse parameters $N_s$",
    "active_params": "active parameters $N$",
    "tokens": "training tokens $D$",
    "density": "density, active over sparse parameters",
    "memory_to_ffn": "memory FLOPs over FFN FLOPs",
    "n_experts": "experts per layer",
    "training_flops": "training FLOPs $C$",
}
_LOSS_WORDS: Mapping[str, str] = {
    "loss": "validation loss",
    "loss_ema": "validation loss, averaged weights",
}
"""Of a study, whose stages say when a loss was measured."""
_CAPTION_SIZE = 7.0
_CHARACTERS_PER_INCH = 19.0  # of the caption's type
_MOST_LEVELS = 12  # more are ticked at round numbers instead
_LABEL_ROOM = 22.0  # characters beside each other under a panel
_LINE_ROOM = 2.0  # what a line of them takes, one above the other
_SAME_LEVEL = 1.01
SUFFIXES = {".png", ".svg", ".pdf"}

_RC: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "svg.hashsalt": "umscale",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib settings of every figure, in force while it is built and while it is written.

    They are matplotlib's own defaults and the house's changes: a user's matplotlibrc is for the user's figures.
    """
    matplotlib = _matplotlib()
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
        with matplotlib.rc_context({**defaults, **_RC}):
            yield


def _matplotlib() -> Any:
    """Import matplotlib, if that was not done before, without what would make the import fail.

    It reads ``$MPLBACKEND`` and a matplotlibrc, of the current folder even, and ends in a traceback when the backend of
    a notebook is not installed here or the file is none of its own.
    """
    if "matplotlib" not in sys.modules:
        kept = {name: os.environ.pop(name, None) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
        os.environ["MATPLOTLIBRC"] = os.devnull  # found, and empty
        here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.chdir(os.path.sep)
            importlib.import_module("matplotlib")
        finally:
            os.fchdir(here)
            os.close(here)
            del os.environ["MATPLOTLIBRC"]
            os.environ.update({name: value for name, value in kept.items() if value is not None})
    return importlib.import_module("matplotlib")


def panels(
    n_rows: int,
    n_columns: int,
    *,
    width: float = 3.3,
    height: float = 2.7,
    margin: float = 1.3,
    ratios: Sequence[float] | None = None,
) -> "tuple[Figure, list[list[Axes]]]":
    """A figure with [n_rows][n_columns] axes, each ``width`` × ``height`` inches, and room for a legend at the right.

    ``ratios`` are the heights of the rows beside each other.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * n_columns + margin, height * n_rows + 0.6), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, height_ratios=ratios)
    return figure, [list(row) for row in axes]


def ordered_colours(n: int) -> list[tuple[float, float, float]]:
    """``n`` colours whose lightness rises with the index: ordered, safe for the colour-blind and in grey."""
    from matplotlib import colormaps

    low, high = _VIRIDIS
    shades = [low + (high - low) * (k / max(n - 1, 1)) for k in range(n)]
    colours = (colormaps["viridis"](shade) for shade in shades)
    return [(red, green, blue) for red, green, blue, _ in colours]


_DISTINCT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#222222")
"""Okabe and Ito's colours, told apart by the colour-blind; their yellow, invisible on paper, is a violet here."""


def distinct_styles(n: int) -> list[dict[str, Any]]:
    """``n`` line styles with no order to them: eight colours, then the same with a marker here and there."""
    return [
        {"color": _DISTINCT[k % len(_DISTINCT)]}
        | (
            {"marker": MARKERS[k // len(_DISTINCT) - 1], "markevery": 0.12, "ms": 3.2}
            if k >= len(_DISTINCT)
            else {}
        )
        for k in range(n)
    ]


def axis_words(column: str) -> str:
    """What a column is called on an axis; a user's column by its own name."""
    return _COLUMN_WORDS.get(column, column.replace("$", r"\$"))


def loss_words(column: str, *, study: bool) -> str:
    """What a loss column is called on an axis, with its unit where it is known: a table's may be anything."""
    if study and is_probe_column(column):
        return f"{loss_name(column)} (nats per symbol)"
    words = axis_words(column)
    return f"{_LOSS_WORDS.get(column, words)} (nats per token)" if study else words


def symbol_words(symbol: str, columns: Mapping[str, str]) -> str:
    """A symbol as a legend's title names it."""
    return "$N_s$" if symbol == "N_s" else columns[symbol].replace("$", r"\$")


def level_codes(values: Array) -> tuple[NDArray[np.int64], Array]:
    """The level of each positive value and the levels, ascending; values within 1% of the next are one level."""
    logs = np.log(values)
    order = np.argsort(logs)
    codes = np.empty(len(logs), dtype=np.int64)
    codes[order] = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > np.log(_SAME_LEVEL))])
    return codes, np.array([np.exp(logs[codes == k].mean()) for k in range(int(codes.max()) + 1)])


def log_ticks(ax: "Axes", side: Literal["x", "y"], values: Array, *, most_levels: int = _MOST_LEVELS) -> None:
    """Make an axis logarithmic, with ticks at the levels of ``values`` or, where there are more, at round numbers."""
    from matplotlib.ticker import NullLocator

    levels = level_codes(values)[1]
    ticks = levels.tolist() if len(levels) <= most_levels else round_numbers(levels[0], levels[-1])
    ticks = thinned(ticks, None if side == "x" else _LINE_ROOM)
    labels = [human(tick) for tick in ticks]
    if side == "x":
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, labels)
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.set_yscale("log", base=2)
        ax.set_yticks(ticks, labels)
        ax.yaxis.set_minor_locator(NullLocator())


def thinned(ticks: Sequence[float], room: float | None = None) -> list[float]:
    """Ascending ticks without those whose labels would touch on a logarithmic axis; the ends stay.

    ``room`` is what a label takes, in characters side by side: by default the longest of them.
    """
    chosen: list[float] = []
    longest = room or max(len(human(tick)) for tick in ticks)
    gap = math.log(ticks[-1] / ticks[0]) / max(2.0, _LABEL_ROOM / longest)
    for tick in dict.fromkeys((ticks[0], ticks[-1], *ticks[1:-1])):
        if all(abs(math.log(tick / other)) > gap for other in chosen):
            chosen.append(tick)
    return sorted(chosen)


def round_numbers(low: float, high: float) -> list[float]:
    """Powers of ten within the range, with 2 and 5 or all digits of every decade where they would be few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        ticks = [d * 10.0**k for k in decades for d in digits if low / 1.001 <= d * 10.0**k <= high * 1.001]
        if len(ticks) >= 3:
            return ticks
    return [low, high]


def band(ax: "Axes", x: Array, low: Array, high: Array, colour: Any) -> None:
    """An interval about a line, light enough to see others through it."""
    ax.fill_between(x, low, high, color=colour, alpha=0.13, lw=0, zorder=1)


def laws_words(found: Sequence[Uncertainty]) -> list[str]:
    """``law_words`` of every law among ``found`` once, stages aside."""
    return [law_words(one) for one in {one.fit.law.name: one for one in found}.values()]


def law_words(found: Uncertainty) -> str:
    """A law, what it was fitted to and where its intervals come from, as a caption says it."""
    fit = found.fit
    intervals = f"95% intervals: {found.method.split(',')[0]}, resampling {found.resampled}"
    if not len(found.draws):
        intervals = "no intervals"
    return f"Law {fit.law.name}: {fit.law.formula}; {fit.n_rows} records; {intervals}."


def part_words(fit: FitResult) -> str:
    """Which part of a table a fit speaks of, as a caption begins; nothing for a table without parts."""
    parts = [fit.stage, None if fit.compensation == "none" else fit.compensation, _part_loss(fit.loss)]
    words = ", ".join(part for part in parts if part) if fit.stage else ""
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def _part_loss(loss: str) -> str | None:
    return loss_name(loss) if is_probe_column(loss) else _LOSS_WORDS.get(loss)


def caption(figure: "Figure", *sentences: str) -> None:
    """Write sentences under a figure, wrapped to its width."""
    words = " ".join(one for one in sentences if one)
    wrapped = textwrap.fill(words, int(figure.get_figwidth() * _CHARACTERS_PER_INCH))
    figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=_CAPTION_SIZE, color=INK, parse_math=False)


def human(value: float) -> str:
    """Three significant digits with a suffix: 1048576 → ``1.05M``, 32 → ``32``; far from 1, ``2e18``."""
    if 1e-3 <= abs(value) < 0.0995:
        return f"{value:.3g}"
    if abs(value) >= 0.9995e15 or 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # From 999.5 on, three digits round up into the next suffix.
        if abs(value) >= 0.9995 * size:
            return f"{_three_digits(value / size)}{suffix}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    if math.isclose(value, round(value), rel_tol=1e-9) and abs(value) < 1000:
        return f"{value:.0f}"
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}"


def lay_out(figure: "Figure") -> None:
    """Give a figure's parts their places once: matplotlib would draw all of it in vain before each time it is saved."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        # "none" would leave an engine that places nothing, for which savefig draws the figure in vain all the same.
        figure.set_layout_engine(None)


def save(figure: "Figure", path: Path | str, *, dpi: int = 200) -> Path:
    """Write PNG, SVG or PDF by the path's suffix, the same bytes every time; returns the path.

    Raises ``UserError`` for another suffix or a path that cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"cannot write a figure as {path.name!r}: use {', '.join(sorted(SUFFIXES))}")
    metadata = {
        ".png": {"Software": None},
        ".svg": {"Date": None, "Creator": None},
        ".pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    }[suffix]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with house_style():
            lay_out(figure)
            figure.savefig(path, dpi=dpi, metadata=metadata)
    except OSError as error:
        raise UserError(f"cannot write the figure {path}: {error.strerror or error}") from None
    return path
