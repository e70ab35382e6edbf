"""What a benchmark found, as data: parts, rows of named figures, and the targets some figures should keep.

The end of a figure's name is its unit: ``_seconds`` (a median), ``_spread`` ((max - min) / median of the rounds),
``_ratio`` (to the part's reference unless the column says otherwise), ``_fraction`` (of a physical limit), ``_bytes``.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A bound on one figure of a row."""

    figure: str
    bound: float
    at_least: bool = False

    def met(self, figures: dict[str, float]) -> bool:
        """Whether the figure keeps the bound."""
        value = figures[self.figure]
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(kw_only=True, slots=True)
class Row:
    """One variant."""

    name: str
    figures: dict[str, float]
    targets: list[Target] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Part:
    """One table: variants that do the same work."""

    name: str
    title: str
    shape: dict[str, int]
    columns: dict[str, str]
    """Headings by figure, in the order to show; figures that are not among them are in the JSON only."""
    rows: list[Row]
    reference: str = ""
    """The row to which ratios are taken."""
    notes: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Report:
    """All parts, and with what they were measured."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    limits: dict[str, float]
    """Measured physical limits: ``matmul_flops``, ``copy_bytes_per_second`` (read + written)."""
    parts: list[Part]

    def to_dict(self) -> dict[str, Any]:
        """Everything, with ``met`` beside every target."""
        tree = dataclasses.asdict(self)
        for part, part_tree in zip(self.parts, tree["parts"], strict=True):
            for row, row_tree in zip(part.rows, part_tree["rows"], strict=True):
                for target, target_tree in zip(row.targets, row_tree["targets"], strict=True):
                    target_tree["met"] = target.met(row.figures)
        return tree
