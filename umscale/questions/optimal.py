"""How to spend a compute budget: the best size N*(C), tokens D*(C) and tokens per parameter, two ways, side by side.

By a *law* of N and D (approach 3 of Hoffmann et al. 2022): least loss along C = k·N·D, for the fit and for every draw
of its bootstrap. By *parabolas* (approach 2): one in log N through the runs of one compute, the vertex its best size,
a power law through the vertices; rows are drawn with replacement, by group, for its intervals. Parabolas are biased
where the surface is not symmetric about the vertex or the sizes are not centred on it (arXiv 2603.22339), and no
interval of theirs holds that. How biased is measured here: the same parabolas are laid through the law's own losses at
the very same sizes, and what they find there stands beside what the law itself says.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from umscale.errors import UserError
from umscale.laws.fit import FitResult
from umscale.laws.forms import evaluate
from umscale.laws.uncertainty import LEVEL, Estimate, Uncertainty
from umscale.questions.iso_flops import IsoFlop, iso_flops, refitted
from umscale.results.columns import Array
from umscale.results.table import Codes
from umscale.say.blocks import Block, Grid, Paragraph, noted
from umscale.say.labels import part_words
from umscale.say.numbers import axis_value

FLOPS_PER_PARAMETER = 6.0
"""Per token, forward and backward."""

_SEARCH = 12.0  # octaves beyond the sizes measured in which a best size is looked for
_PER_OCTAVE = 8
_BLOCK = 100  # draws searched together
_DRAWS = 1000  # of the parabolas' bootstrap
_FEWEST_VERTICES = 3
_ENOUGH = 0.95  # share of draws that must have an optimum for an interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """The best way to spend one compute."""

    flops: float
    n: Estimate
    d: Estimate
    tokens_per_parameter: Estimate
    loss: Estimate
    octaves: Mapping[str, float]
    """N, D and C → octaves above or below what was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponents:
    """Powers of C with which the best size and tokens grow, about the middle of the computes."""

    n: Estimate
    d: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Vertex:
    """The parabola of one compute."""

    flops: float
    runs: int
    n: Estimate
    """Size of least loss; NaN where the parabola has no minimum among its sizes."""
    d: Estimate
    tokens_per_parameter: Estimate
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ByLaw:
    """Approach 3."""

    law: str
    formula: str
    optima: tuple[Optimum, ...]
    exponents: Exponents
    method: str
    resampled: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ByParabolas:
    """Approach 2."""

    vertices: tuple[Vertex, ...]
    exponents: Exponents | None
    """None with fewer than three vertices."""
    optima: tuple[Optimum, ...]
    """By the power law through the vertices; empty without one. Loss is not said: parabolas do not give it."""
    bias: Mapping[str, tuple[float, float]]
    """On the law's own surface: quantity → what the parabolas find, what the law says. Empty without a law."""
    resampled: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimal:
    """Both ways on one part of a table."""

    stage: str | None
    loss: str
    by: Mapping[str, str]
    rows: int
    flops_per_parameter: float
    source: str
    """Where C comes from, in words."""
    by_law: ByLaw | None
    by_parabolas: ByParabolas | None
    statements: tuple[str, ...]

    def blocks(self) -> list[Block]:
        """Both ways, the exponents, and what to know of them."""
        place = part_words(self.stage, None, self.loss, self.by)
        found: list[Block] = []
        notes: tuple[str, ...] = ()
        if law := self.by_law:
            notes = (
                f"law {law.law}: {law.formula}; {_powers(law.exponents)}",
                f"intervals: {law.method}; resampled {law.resampled}",
            )
            found.append(_optima_grid(f"{place}: law {law.law}", law.optima, notes))
        if parabolas := self.by_parabolas:
            notes = ()
            if parabolas.exponents:
                notes = (f"parabolas: {_powers(parabolas.exponents)}; resampled {parabolas.resampled}",)
            if parabolas.optima:
                caption = f"{place}: iso-FLOP parabolas, power law through their minima"
                found.append(_optima_grid(caption, parabolas.optima, ()))
            found.append(
                Grid(
                    caption=f"{place}: minima of the parabolas",
                    head=(*_SIZES, "runs"),
                    sides="r" * (len(_SIZES) + 1),
                    rows=tuple((*_sizes(one), str(one.runs)) for one in parabolas.vertices),
                    notes=notes,
                )
            )
        factor = f"{self.flops_per_parameter:.3g} FLOPs per parameter and token"
        rows = f"{self.rows} rows; C from {self.source}; {factor}"
        return [*found, Paragraph(text=rows), *noted(self.statements)]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def optimal(
    found: Uncertainty,
    flops: Sequence[float],
    *,
    compute: Array | None = None,
    source: str = "6·N·D",
    groups: Codes | None = None,
    unit: str = "rows",
    by: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Optimal:
    """The best N and D at every compute of ``flops``; none takes three across the rows' own.

    Args:
        found: of a law of N and D, and draws of it.
        compute: FLOPs of every row [rows]; None is 6·N·D.
        source: where they come from, in words.
        groups: rows that are resampled together, from 0.

    Raises:
        UserError: a law that does not read both N and D, or reads more.
    """
    fit = found.fit
    values = fit.rows.values
    if not {"N", "D"} <= set(fit.law.symbols):
        raise UserError(
            f"law {fit.law.name!r} as fitted reads {', '.join(fit.law.symbols)}: how to spend compute needs one "
            "of N and D"
        )
    if more := set(fit.law.symbols) - {"N", "D"}:
        raise UserError(
            f"law {fit.law.name!r} also reads {', '.join(sorted(more))}: pin it by --map, as in "
            f"{sorted(more)[0]}=1, or "
            "use a law of N and D"
        )
    product = values["N"] * values["D"]
    compute = FLOPS_PER_PARAMETER * product if compute is None else compute
    factor = float(np.exp(np.log(compute / product).mean()))
    asked = sorted(flops) or np.geomspace(compute.min(), compute.max(), 3).tolist()
    edges = {"N": fit.domain["N"], "D": fit.domain["D"], "C": (float(compute.min()), float(compute.max()))}
    law = _by_law(found, asked, factor, edges)
    codes = np.arange(fit.n_rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    curves = iso_flops(values["N"], compute, fit.rows.loss, values["D"])
    parabolas = None
    if curves:
        parabolas = _by_parabolas(fit, curves, asked, factor, edges, codes, unit, seed)
    return Optimal(
        stage=fit.stage,
        loss=fit.loss,
        by=dict(by or {}),
        rows=fit.n_rows,
        flops_per_parameter=factor,
        source=source,
        by_law=law,
        by_parabolas=parabolas,
        statements=tuple(_statements(law, parabolas, compute / product)),
    )


def best_sizes(fit: FitResult, coefficients: Array, flops: Array, factor: float) -> tuple[Array, Array]:
    """Size of least loss and that loss, [draws, computes], for coefficients [draws, P]; NaN without a minimum."""
    low = np.log2(fit.domain["N"][0]) - _SEARCH
    high = np.log2(fit.domain["N"][1]) + _SEARCH
    grid = np.linspace(low, high, int((high - low) * _PER_OCTAVE) + 1)
    n = np.tile(2.0**grid, len(flops))
    values = {"N": n, "D": np.repeat(flops, len(grid)) / (factor * n)}
    sizes, losses = [], []
    with np.errstate(all="ignore"):
        for first in range(0, len(coefficients), _BLOCK):
            part = coefficients[first : first + _BLOCK]
            loss = evaluate(fit.law, part, values, fit.reference).reshape(len(part), len(flops), len(grid))
            least = np.where(np.isfinite(loss), loss, np.inf).argmin(axis=2)
            inside = np.clip(least, 1, len(grid) - 2)
            left, middle, right = (
                np.take_along_axis(loss, inside[..., None] + k, axis=2)[..., 0] for k in (-1, 0, 1)
            )
            bend = left - 2 * middle + right
            step = 0.5 * (left - right) / bend
            there = (least == inside) & (bend > 0) & np.isfinite(step)
            at = grid[inside] + step * (grid[1] - grid[0])
            sizes.append(np.where(there, 2.0**at, np.nan))
            losses.append(np.where(there, middle - 0.25 * (left - right) * step, np.nan))
    return np.concatenate(sizes), np.concatenate(losses)


def _by_law(
    found: Uncertainty, flops: Sequence[float], factor: float, edges: Mapping[str, tuple[float, float]]
) -> ByLaw:
    fit = found.fit
    # Beside the computes asked for, two about the middle of the rows for the exponents.
    middle = float(np.sqrt(edges["C"][0] * edges["C"][1]))
    computes = np.array([*flops, middle / 2, middle * 2])
    n, loss = best_sizes(fit, np.vstack([fit.vector, found.draws]), computes, factor)
    d = computes / (factor * n)
    rise = np.log(n[:, -1] / n[:, -2]) / np.log(4.0)
    optima = [_optimum(found, c, n[:, k], d[:, k], loss[:, k], edges) for k, c in enumerate(flops)]
    return ByLaw(
        law=fit.law.name,
        formula=fit.law.formula,
        optima=tuple(optima),
        exponents=Exponents(n=_estimate(rise, found.expansion), d=_estimate(1 - rise, found.expansion)),
        method=found.method,
        resampled=found.resampled,
    )


def _optimum(
    found: Uncertainty | None,
    flops: float,
    n: Array,
    d: Array,
    loss: Array,
    edges: Mapping[str, tuple[float, float]],
) -> Optimum:
    expansion = found.expansion if found is not None else 1.0
    places = {"N": float(n[0]), "D": float(d[0]), "C": float(flops)}
    return Optimum(
        flops=float(flops),
        n=_estimate(n, expansion, by_ratio=True),
        d=_estimate(d, expansion, by_ratio=True),
        tokens_per_parameter=_estimate(d / n, expansion, by_ratio=True),
        loss=_estimate(loss, expansion),
        octaves={name: _outside(value, edges[name]) for name, value in places.items() if np.isfinite(value)},
    )


def _outside(value: float, ends: tuple[float, float]) -> float:
    far = max(float(np.log2(value / ends[1])), 0.0) + min(float(np.log2(value / ends[0])), 0.0)
    return 0.0 if abs(far) < 1e-3 else far


def _estimate(values: Array, expansion: float = 1.0, *, by_ratio: bool = False) -> Estimate:
    """The first of ``values`` with the interval of all others; none where too many have no value."""
    from umscale.laws.special import ndtr, ndtri

    draws = values[1:]
    known = draws[np.isfinite(draws)]
    if not np.isfinite(values[0]) or len(known) < max(_ENOUGH * len(draws), 20):
        return Estimate(value=float(values[0]), low=float("nan"), high=float("nan"))
    tail = float(ndtr(ndtri((1 - LEVEL) / 2) * expansion))
    ordered = np.log(known) if by_ratio else known
    ends = np.quantile(ordered, [tail, 1 - tail])
    low, high = np.exp(ends) if by_ratio else ends
    return Estimate(value=float(values[0]), low=float(low), high=float(high))


def _by_parabolas(
    fit: FitResult,
    curves: Sequence[IsoFlop],
    flops: Sequence[float],
    factor: float,
    edges: Mapping[str, tuple[float, float]],
    codes: Codes,
    unit: str,
    seed: int,
) -> ByParabolas:
    """Vertices, the power law through them, both again for resampled rows, and their bias on the law's surface."""
    rng = np.random.Generator(np.random.PCG64(seed))
    n_groups = int(codes.max()) + 1
    counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=_DRAWS)
    weights = np.vstack([np.ones(len(codes)), counts[:, codes]])
    best = np.stack([refitted(one, weights) for one in curves], axis=1)  # [1 + draws, computes]
    c = np.array([one.flops for one in curves])
    per = np.array([one.per_parameter for one in curves])
    vertices = [
        Vertex(
            flops=one.flops,
            runs=len(one.n),
            n=_estimate(best[:, k], by_ratio=True),
            d=_estimate(c[k] / (per[k] * best[:, k]), by_ratio=True),
            tokens_per_parameter=_estimate(c[k] / (per[k] * best[:, k] ** 2), by_ratio=True),
            loss=float(one.predict(np.array([best[0, k]]))[0]),
        )
        for k, one in enumerate(curves)
    ]
    slope, size = _power_law(c, best, np.asarray(flops))
    exponents, optima = None, []
    if np.isfinite(slope[0]):
        exponents = Exponents(n=_estimate(slope), d=_estimate(1 - slope))
        nothing = np.full(len(slope), np.nan)
        optima = [
            _optimum(None, x, size[:, k], x / (factor * size[:, k]), nothing, edges)
            for k, x in enumerate(flops)
        ]
    return ByParabolas(
        vertices=tuple(vertices),
        exponents=exponents,
        optima=tuple(optima),
        bias=_bias(fit, curves, factor),
        resampled=f"{n_groups} {unit}",
    )


def _power_law(c: Array, best: Array, at: Array) -> tuple[Array, Array]:
    """Slope [draws] and sizes [draws, computes] of the power law through the vertices that each draw has."""
    there = np.isfinite(best)
    enough = there.sum(axis=1) >= _FEWEST_VERTICES
    x = np.where(there, np.log(c), 0.0)
    y = np.where(there, np.log(np.where(there, best, 1.0)), 0.0)
    count = np.maximum(there.sum(axis=1), 1)
    x_mean, y_mean = x.sum(axis=1) / count, y.sum(axis=1) / count
    dx = np.where(there, x - x_mean[:, None], 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(enough, (dx * y).sum(axis=1) / (dx**2).sum(axis=1), np.nan)
    sizes = np.exp(y_mean[:, None] + slope[:, None] * (np.log(at) - x_mean[:, None]))
    return slope, sizes


def _bias(fit: FitResult, curves: Sequence[IsoFlop], factor: float) -> dict[str, tuple[float, float]]:
    """What the same parabolas find on the law's own losses at the same sizes, beside what the law says there."""
    exact = []
    for one in curves:
        loss = fit.predict({"N": one.n, "D": one.flops / (one.per_parameter * one.n)})
        parabola = np.polyfit(np.log2(one.n / one.origin), loss, 2)
        exact.append(replace(one, loss=loss, parabola=parabola).best)
    c = np.array([one.flops for one in curves])
    theirs = best_sizes(fit, fit.vector[None], c, factor)[0]
    out = {}
    for name, sizes in (("parabolas", np.array(exact)[None]), ("law", theirs)):
        slope, middle = _power_law(c, sizes, np.array([np.exp(np.log(c).mean())]))
        out[name] = (float(slope[0]), float(middle[0, 0]))
    if not np.isfinite([*out["parabolas"], *out["law"]]).all():
        return {}
    return {
        "exponent of N": (out["parabolas"][0], out["law"][0]),
        "N in the middle": (out["parabolas"][1], out["law"][1]),
    }


def _statements(law: ByLaw, parabolas: ByParabolas | None, ratio: Array) -> Iterator[str]:
    spread = float(np.exp(np.log(ratio).std()) - 1)
    if spread > 0.05:
        yield f"FLOPs per parameter and token differ by {spread:.0%} between rows: their geometric mean is taken"
    outside = {name: far for one in law.optima for name, far in one.octaves.items() if far}
    if outside:
        words = ", ".join(f"{name} {far:+.1f}" for name, far in outside.items())
        yield (
            f"some optima lie octaves outside what was measured, at the most ({words}): intervals do not hold "
            "what the law misses there"
        )
    if any(not np.isfinite(one.n.value) for one in law.optima):
        yield "the law has no best size at some computes within 12 octaves of the sizes measured"
    if parabolas is None:
        yield "no parabolas: no compute has four sizes or more within 12% of it, over a factor of two"
        return
    yield (
        "parabolas in log N are biased where the loss is not symmetric about the best size; their intervals do "
        "not hold that"
    )
    if parabolas.bias:
        (found, true), (size, best) = parabolas.bias["exponent of N"], parabolas.bias["N in the middle"]
        yield (
            f"on this law's own surface, at these sizes, parabolas find N* ∝ C^{found:.3f} where the law has "
            f"C^{true:.3f}, and "
            f"sizes {100 * (size / best - 1):+.0f}% off in the middle"
        )
    if parabolas.exponents is None:
        yield "fewer than three computes have a minimum among their sizes: no power law through the vertices"


# -- in words -------------------------------------------------------------------------------------------------

_SIZES = ("C, FLOPs", "N*", "95%", "D*", "95%", "D*/N*", "95%")


def _optima_grid(caption: str, optima: Sequence[Optimum], notes: tuple[str, ...]) -> Grid:
    rows = []
    for one in optima:
        far = " ".join(f"{axis} {v:+.1f}" for axis, v in one.octaves.items() if v) or "–"
        # Parabolas do not give the loss.
        rows.append((*_sizes(one), f"{one.loss.value:.4f}" if np.isfinite(one.loss.value) else "–", far))
    head = (*_SIZES, "loss", "octaves outside")
    return Grid(caption=caption, head=head, sides="r" * len(head), rows=tuple(rows), notes=notes)


def _sizes(one: Optimum | Vertex) -> tuple[str, ...]:
    """Compute, then value and interval of size, tokens and their ratio."""
    cells = [f"{one.flops:.3g}"]
    for estimate in (one.n, one.d, one.tokens_per_parameter):
        if np.isnan(estimate.value):
            cells += ["–", "–"]
        elif not estimate.has_interval:
            cells += [axis_value(estimate.value), "none"]
        else:
            cells += [
                axis_value(estimate.value),
                f"[{axis_value(estimate.low)}, {axis_value(estimate.high)}]",
            ]
    return tuple(cells)


def _powers(exponents: Exponents) -> str:
    parts = []
    for name, one in (("N*", exponents.n), ("D*", exponents.d)):
        ends = f" [{one.low:.3f}, {one.high:.3f}]" if one.has_interval else ""
        parts.append(f"{name} ∝ C^{one.value:.3f}{ends}")
    return ", ".join(parts)
