"""Rows that belong together although no column says so: residuals that agree wherever a column repeats itself."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umscale.results.columns import Array
from umscale.results.table import group_codes

_CHANCE = 1e-3  # probability of as large an F among all columns looked at, where rows are independent
_LEAST = 0.1  # correlation below which intervals hardly change
_FEWEST = 3  # values of a column that may be groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """A column whose values look like runs, sizes or seeds that several rows share."""

    column: str
    n_levels: int
    correlation: float
    """Of two residuals of one value (intraclass correlation)."""
    narrow: float
    """How many times too narrow intervals between groups are: √(1 + (rows a value − 1)·correlation)."""


def repeated_group(residuals: Array, columns: Mapping[str, NDArray[np.generic]]) -> Repeats | None:
    """The column whose values share most of their residuals [rows] beyond chance, by one-way analysis of variance.

    Of columns that explain alike, the one with fewest values; None where rows look independent.
    """
    from umscale.laws.special import fdtrc

    n = len(residuals)
    total = float(((residuals - residuals.mean()) ** 2).sum())
    candidates: list[tuple[float, Repeats]] = []
    looked = 0
    for name in columns:
        codes = group_codes(columns, [name])
        sizes = np.bincount(codes).astype(np.float64)
        levels = len(sizes)
        if not _FEWEST <= levels <= n // 2:
            continue
        looked += 1
        means = np.bincount(codes, weights=residuals) / sizes
        between = float(sizes @ (means - residuals.mean()) ** 2) / (levels - 1)
        within = max(total - between * (levels - 1), 1e-12 * total) / (n - levels)
        size = (n - float(sizes @ sizes) / n) / (levels - 1)
        if within <= 0:
            continue
        f = between / within
        correlation = (f - 1) / (f - 1 + size)
        found = Repeats(
            column=name,
            n_levels=levels,
            correlation=correlation,
            narrow=float(np.sqrt(max(1 + (size - 1) * correlation, 1.0))),
        )
        if correlation > _LEAST:
            candidates.append((float(fdtrc(levels - 1, n - levels, f)), found))
    sure = [(p, found) for p, found in candidates if p * looked < _CHANCE]
    return min(sure, key=lambda pair: (pair[0], pair[1].n_levels))[1] if sure else None
