"""Figures as SVG inside a page: letters as outlines, so that they look the same everywhere, and nothing to spare."""

import io
import re
from html import escape
from typing import TYPE_CHECKING

from umscale.plots.style import house_style, lay_out

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = 256
_DECIMAL = re.compile(r"-?\d+\.\d+")
_REFERENCES = re.compile(r'url\(#([^)]+)\)|href="#([^"]+)"')


def svg(figure: "Figure") -> str:
    """Draw a figure as an ``<svg>`` element; the same figure gives the same text.

    Comments, metadata and names that nothing refers to are left out, and outlines rounded to a hundredth of a point.
    """
    stream = io.BytesIO()
    with house_style():
        from matplotlib import rcParams

        rcParams["svg.fonttype"] = "path"
        lay_out(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' d="([^"]*)"', lambda found: f' d="{_rounded(found[1])}"', text)
    text = re.sub(r">\s+<", "><", text)
    used = {name for pair in _REFERENCES.findall(text) for name in pair}
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)


def png(figure: "Figure", dpi: int = 144) -> bytes:
    """Draw a figure in pixels of 256 colours, a third of the bytes of all colours, and the same ones every time."""
    from PIL import Image

    drawn, stream = io.BytesIO(), io.BytesIO()
    with house_style():
        lay_out(figure)
        figure.savefig(drawn, format="png", dpi=dpi)
    Image.open(drawn).convert("RGB").quantize(_COLOURS).save(stream, format="png", optimize=True)
    return stream.getvalue()


def inline(text: str, prefix: str, title: str) -> str:
    """An ``<svg>`` for a page that holds others: its names prefixed, and a title for those who cannot see it."""
    for mark in (' id="', "url(#", 'href="#'):
        text = text.replace(mark, f"{mark}{prefix}-")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1).strip()


def _rounded(path: str) -> str:
    short = _DECIMAL.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), path)
    return " ".join(short.split())
