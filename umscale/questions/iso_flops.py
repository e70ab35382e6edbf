"""Runs of equal compute, and the parabola in log N through each: approach 2 of arXiv 2203.15556.

The vertex estimates the best size N*(C). On surfaces that are not symmetric about it the estimate is biased (arXiv
2603.22339); ``questions.optimal`` says by how much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from umscale.errors import UserError, nearest
from umscale.laws.fit import FitResult
from umscale.laws.uncertainty import LEVEL, Estimate, Uncertainty
from umscale.results.columns import COLUMNS, Array
from umscale.results.table import Codes, Table, levels, numeric

SAME_COMPUTE = 1.12  # runs whose FLOPs lie within this factor are of one compute
FEWEST_SIZES = 4  # of one compute: three determine a parabola and leave nothing over
_LEAST_SPAN = 2.0  # factor between the smallest and the largest of them
_MOST_CURVES = 12
_SAME_SIZE = 1.01
_FLOPS_PER_PARAMETER = 6.0  # and token, forward and backward
_BACKWARD = 3.0  # times the forward FLOPs


@dataclass(frozen=True, slots=True, kw_only=True)
class IsoFlop:
    """The runs of one compute and their parabola L = c + b·log2(N/N0) + a·log2²(N/N0)."""

    flops: float
    """Geometric mean of the runs' training FLOPs."""
    per_parameter: float
    """FLOPs per parameter and token of these runs, so that D = C/(per_parameter·N)."""
    n: Array
    """Sizes, ascending, [runs]."""
    loss: Array
    origin: float
    """N0."""
    parabola: Array
    """[a, b, c]."""
    index: Codes
    """Row numbers of the runs, [runs]."""

    @property
    def best(self) -> float:
        """N of least loss; NaN where the parabola has no minimum among the sizes."""
        a, b, _ = self.parabola
        best = self.origin * 2.0 ** (-b / (2 * a)) if a > 0 else float("nan")
        return best if self.n[0] <= best <= self.n[-1] else float("nan")

    def predict(self, n: Array) -> Array:
        """The parabola at sizes ``n``."""
        return np.asarray(np.polyval(self.parabola, np.log2(n / self.origin)))


def training_flops(table: Table, columns: Mapping[str, str] | None = None) -> tuple[Array, str]:
    """Training FLOPs of every row, and where they come from in words.

    A column of them; else three times a study's measured forward FLOPs; else 6·N·D. Raises ``UserError`` without.
    """
    mapping = {**COLUMNS, **(columns or {})}
    if mapping["C"] in table:
        return numeric(table, mapping["C"]), f"column {mapping['C']}"
    if mapping["D"] in table:
        tokens = numeric(table, mapping["D"])
        if "flops_per_token" in table:
            return _BACKWARD * numeric(table, "flops_per_token") * tokens, "3 × forward FLOPs"
        if mapping["N"] in table:
            return _FLOPS_PER_PARAMETER * numeric(table, mapping["N"]) * tokens, "6·N·D"
    raise UserError(f"the table has no column {mapping['C']!r} for C, nor {mapping['D']!r} for D")


def iso_flops(n: Array, flops: Array, loss: Array, tokens: Array | None = None) -> tuple[IsoFlop, ...]:
    """The computes at which enough sizes were trained, ascending; arrays are [rows] and positive."""
    tokens = flops / (_FLOPS_PER_PARAMETER * n) if tokens is None else tokens
    left = np.arange(len(n))
    found: list[IsoFlop] = []
    while len(left) and len(found) < _MOST_CURVES:
        windows = [left[_within(flops[left], start)] for start in np.unique(flops[left])]
        counts = [_levels(n[w]) for w in windows]
        best = windows[int(np.argmax(counts))]
        if max(counts) < FEWEST_SIZES:
            break
        left = np.setdiff1d(left, best)
        best = best[np.argsort(n[best], kind="stable")]
        if n[best[-1]] < _LEAST_SPAN * n[best[0]]:
            continue
        origin = float(np.exp(np.log(n[best]).mean()))
        found.append(
            IsoFlop(
                flops=float(np.exp(np.log(flops[best]).mean())),
                per_parameter=float(np.exp(np.log(flops[best] / (n[best] * tokens[best])).mean())),
                n=n[best],
                loss=loss[best],
                origin=origin,
                parabola=np.polyfit(np.log2(n[best] / origin), loss[best], 2),
                index=best,
            )
        )
    return tuple(sorted(found, key=lambda one: one.flops))


def refitted(one: IsoFlop, weights: Array) -> Array:
    """N of least loss for weights [draws, rows] of all rows, [draws]; NaN where a draw has no minimum among its
    sizes.
    """
    x = np.log2(one.n / one.origin)
    powers = np.stack([x**2, x, np.ones_like(x)])  # [3, runs]
    w = weights[:, one.index]
    gram = np.einsum("in,dn,jn->dij", powers, w, powers)
    moment = np.einsum("in,dn,n->di", powers, w, one.loss)
    # Fewer than three sizes drawn determine no parabola.
    determined = np.linalg.cond(gram) < 1e12
    gram = np.where(determined[:, None, None], gram, np.eye(3))
    a, b, _ = np.linalg.solve(gram, moment[:, :, None])[:, :, 0].T
    with np.errstate(all="ignore"):
        best = one.origin * 2.0 ** (-b / (2 * a))
    there = determined & (a > 0) & (best >= one.n[0]) & (best <= one.n[-1])
    return np.where(there, best, np.nan)


def _levels(values: Array) -> int:
    """How many levels positive values take; those within 1% of the next are one."""
    return 1 + int((np.diff(np.sort(np.log(values))) > np.log(_SAME_SIZE)).sum())


def _within(flops: Array, start: float) -> Any:
    return (flops >= start * (1 - 1e-9)) & (flops <= start * SAME_COMPUTE)


def exponent(found: Sequence[IsoFlop]) -> Estimate | None:
    """α of N* ∝ C^α over the computes with a minimum, with Student's interval; None with fewer than three."""
    from umscale.laws.special import stdtrit

    best = np.array([one.best for one in found])
    there = np.isfinite(best)
    if there.sum() < 3:
        return None
    x, y = np.log([one.flops for one in found])[there], np.log(best[there])
    slope, origin = np.polyfit(x, y, 1)
    freedom = len(x) - 2
    residual = y - slope * x - origin
    error = float(np.sqrt(residual @ residual / freedom / ((x - x.mean()) ** 2).sum()))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Estimate(value=float(slope), low=float(slope) - half, high=float(slope) + half)


# -- beside a law ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class IsoFlops:
    """The computes of a table, and what a law of N and D says of each."""

    curves: tuple[IsoFlop, ...]
    """Ascending; never empty."""
    exponent: Estimate | None
    n_rows: int
    """Usable rows, in a curve or not."""
    source: str
    """Where the FLOPs come from, in words."""
    law: FitResult | None
    law_best: tuple[float, ...]
    """The law's size of least loss at each compute; empty without a law."""
    unread: str
    """Name of a law that was given but reads other columns than N and D, or the empty string."""


def iso_flops_of(
    table: Table,
    law: Uncertainty | None = None,
    *,
    loss: str = "loss",
    columns: Mapping[str, str] | None = None,
) -> IsoFlops:
    """Find the computes of a table of one stage and compensation.

    Args:
        columns: maps N, D and C.

    Raises:
        UserError: the table lacks a column or mixes, or no compute has four sizes or more.
    """
    mapping = {**COLUMNS, **(columns or {})}
    for name in (loss, mapping["N"]):
        if name not in table:
            raise UserError(f"the table has no column {name!r}: this figure needs it{nearest(name, table)}")
    for name in ("stage", "compensation"):
        if len(levels(table, name)) > 1:
            raise UserError(f"the table mixes {name} {' and '.join(levels(table, name))}: draw one at a time")
    flops, source = training_flops(table, columns)
    n, y = numeric(table, mapping["N"]), numeric(table, loss)
    usable = np.isfinite(y) & np.isfinite(flops) & (flops > 0) & np.isfinite(n) & (n > 0)
    tokens = numeric(table, mapping["D"])[usable] if mapping["D"] in table else None
    curves = iso_flops(n[usable], flops[usable], y[usable], tokens)
    if not curves:
        raise UserError(
            f"no compute has {FEWEST_SIZES} sizes or more (C within {SAME_COMPUTE - 1:.0%}, {source}): "
            "there is no iso-FLOP curve"
        )
    reads = law is not None and set(law.fit.law.symbols) == {"N", "D"}
    fit = law.fit if law is not None and reads else None
    return IsoFlops(
        curves=curves,
        exponent=exponent(curves),
        n_rows=int(usable.sum()),
        source=source,
        law=fit,
        law_best=tuple(_law_best(fit, one) for one in curves) if fit is not None else (),
        unread=law.fit.law.name if law is not None and not reads else "",
    )


def law_along(fit: FitResult, n: Array, one: IsoFlop) -> Array:
    """A law of N and D along sizes ``n`` at the constant compute of ``one``."""
    return fit.predict({"N": n, "D": one.flops / (one.per_parameter * n)})


def _law_best(fit: FitResult, one: IsoFlop) -> float:
    """The law's best size at a compute, looked for well beyond the sizes measured."""
    from scipy.optimize import minimize_scalar

    low, high = np.log(one.n[0] / 100), np.log(one.n[-1] * 100)
    found = minimize_scalar(
        lambda x: float(law_along(fit, np.exp(np.array([x])), one)[0]), bounds=(low, high), method="bounded"
    )
    return float(np.exp(found.x))
