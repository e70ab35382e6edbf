"""What every figure shares: colours, number formats, sizes and saving. Matplotlib's object API, no pyplot."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umscale.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ends of viridis are hard to see on paper (yellow) or to tell apart (dark blues); this is its middle.
_VIRIDIS = (0.02, 0.82)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#222222"
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
    """Matplotlib settings of every figure, in force while it is built and while it is written."""
    from matplotlib import rc_context

    with rc_context(_RC):
        yield


def panels(
    n_rows: int, n_columns: int, *, width: float = 3.3, height: float = 2.7
) -> "tuple[Figure, list[list[Axes]]]":
    """A figure with [n_rows][n_columns] axes, each ``width`` × ``height`` inches, and room for a legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * n_columns + 1.3, height * n_rows + 0.3), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    return figure, [list(row) for row in axes]


def ordered_colours(n: int) -> list[tuple[float, float, float]]:
    """``n`` colours whose lightness rises with the index: ordered, safe for the colour-blind and in grey."""
    from matplotlib import colormaps

    low, high = _VIRIDIS
    shades = [low + (high - low) * (k / max(n - 1, 1)) for k in range(n)]
    colours = (colormaps["viridis"](shade) for shade in shades)
    return [(red, green, blue) for red, green, blue, _ in colours]


def human(value: float) -> str:
    """Three significant digits with a suffix: 1048576 → ``1.05M``, 32 → ``32``."""
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
            figure.savefig(path, dpi=dpi, metadata=metadata)
    except OSError as error:
        raise UserError(f"cannot write the figure {path}: {error.strerror or error}") from None
    return path
