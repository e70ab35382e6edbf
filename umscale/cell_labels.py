"""Labels of runs, such as ``architecture=moe layers=[0, 1] iso_flops seed=0``, taken apart in one way everywhere."""

import re
from collections.abc import Collection

_BETWEEN = re.compile(r"\s+(?=[\w.]+=|(?:none|iso_\w+)(?:\s|$))")


def label_parts(label: str | None) -> list[str]:
    """Return ``name=value`` pairs, whose values may hold spaces, and the compensation where a study has several."""
    return [part for part in _BETWEEN.split((label or "").strip()) if part]


def cell_parts(label: str | None, without: Collection[str] = ("seed",)) -> list[str]:
    """Return the parts of a label that name a cell: all but those named in ``without``."""
    return [part for part in label_parts(label) if part.partition("=")[0] not in without]


def cell_name(label: str | None) -> str:
    """Return a cell's name in tables and pictures: its parts without the seed, an architecture by its name alone."""
    return " ".join(part.removeprefix("architecture=") for part in cell_parts(label))
