"""What a kind of figure is: what it shows, what it needs, what to look for in it, and how it is drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Figures = dict[str, "Figure"]
"""Figures of one kind by file-name suffix."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[T]):
    """A kind of figure, drawn from a ``T``."""

    title: str
    """Over the figure in a report."""
    look: str
    """Below the figure in a report: where to look, and what it would mean."""
    shows: str
    """What it shows, in a list of kinds."""
    needs: str
    """What the data must have."""
    draw: Callable[[T], Figures]
    """Raises ``UserError`` for data that cannot give it."""
    terminal: bool = True
    """Whether points and lines on a terminal can stand for it."""
