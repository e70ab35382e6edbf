"""Where in the (m, N_s) plane density beats size: δ_m − δ_N at every point of a lattice, with its uncertainty.

    δ_m(m, N_s) = L(m, N_s) − L(2m, N_s)        δ_N(m, N_s) = L(m, N_s) − L(m, 2N_s)

Both effects saturate, so the answer at the centre of a grid need not hold at its corners. The plane and nothing
else varies: any other axis of the law stays at the fit's reference, tokens too unless a slice is asked for. Slices
(``study_slices``) come from a law whose effects change with tokens; one beyond the budgets says how far. A density in
the law follows the point, rho ∝ m / N_s. The boundary is where the two effects are equal; its interval holds the m at
which the interval of δ_m − δ_N holds zero (a Fieller set, read off the draws), and may be open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from umscale.errors import UserError
from umscale.laws.fit import FitResult, fit_rows
from umscale.laws.forms import LAWS, LocalLaw, evaluate
from umscale.laws.uncertainty import Uncertainty, bootstrap
from umscale.questions.density_over_size import fit_effects
from umscale.results.columns import COLUMNS, Array
from umscale.results.table import Table, first_level, select_rows, where
from umscale.say.blocks import Block, Heading, Listing, Paragraph
from umscale.say.labels import heading

_FINE = 8  # points per octave on which boundaries are looked for
_SPARE_FOR_MAP = 4  # cells beyond its coefficients from which the interaction law draws a map
_NEAR = 0.05  # octaves beyond the rows that are not worth a word
_AHEAD = 4.0
"""Times the longest budget at which a slice looks ahead."""
_DRAWS = 4000  # of the bootstrap: enough for a picture, at every point of it
_WITHIN = 2**0.01  # reads beyond the grid by less than this factor are within it


@dataclass(frozen=True, slots=True, kw_only=True)
class DensityMap:
    """δ_m − δ_N over the plane; arrays are [sizes, densities], ascending in both."""

    law: str
    columns: tuple[str, str]
    """Names of the axes m and N_s in the table."""
    m: Array
    """[densities]."""
    n: Array
    """[sizes]."""
    held: Mapping[str, float]
    """Column → value of everything that the law reads and the map does not vary."""
    loss: Array
    """Predicted nats per token, for iso-loss contours."""
    difference: Array
    """δ_m − δ_N, nats per token."""
    low: Array
    """Ends of its 95% interval; NaN without one."""
    high: Array
    probability: Array
    """Share of bootstrap draws in which δ_m > δ_N; NaN without draws."""
    extrapolated: NDArray[np.bool_]
    """Where m, 2m, N_s or 2N_s lies beyond the grid the law was fitted on."""
    boundary: Array
    """[sizes], the m at which the effects are equal; NaN where they are not equal anywhere on the map."""
    boundary_low: Array
    """[sizes], ends of its 95% interval; NaN where the interval reaches the map's edge or is empty."""
    boundary_high: Array
    octaves_beyond: float
    """How far the tokens that it holds lie outside those of the rows; 0 within."""
    constant: bool
    """The law has no interaction of m and N_s, so that one number holds everywhere."""
    statements: tuple[str, ...]
    """What to say beside the map."""

    def lines(self) -> tuple[str, ...]:
        """The map as text, sizes descending, with its legend.

        D or S where the 95% interval says that density or size wins, d or s where it holds zero (the likelier
        one), ``?`` without an interval; a dot after the letter marks extrapolation.
        """
        width = 6
        name_m, name_n = self.columns
        out = [f"{name_n:>13} \\ {name_m}"]
        for i in reversed(range(len(self.n))):
            cells = "".join(f"{self._letter(i, j):>{width}}" for j in range(len(self.m)))
            out.append(f"{_short(self.n[i]):>15}{cells}")
        out.append(" " * 15 + "".join(f"{_short(m):>{width - 1}} " for m in self.m))
        out = [line.rstrip() for line in out]
        out.append("D density wins, S size wins (95%); d, s the likelier one; a dot marks extrapolation")
        return (*out, *self.statements)

    def _letter(self, i: int, j: int) -> str:
        low, high, middle = self.low[i, j], self.high[i, j], self.difference[i, j]
        if np.isnan(low):
            letter = "?"
        elif low > 0 or high < 0:
            letter = "D" if low > 0 else "S"
        else:
            letter = "d" if middle > 0 else "s"
        return letter + ("." if self.extrapolated[i, j] or self.octaves_beyond > _NEAR else " ")


def _octaves_beyond(fit: FitResult, tokens: float | None) -> float:
    if tokens is None or "D" not in fit.law.symbols:
        return 0.0
    low, high = np.log2(np.array(fit.domain["D"]) / tokens)
    return float(max(low, -high, 0.0))


def density_map(
    found: FitResult | Uncertainty,
    *,
    per_octave: int = 2,
    margin: float = 1.0,
    seed: int = 0,
    tokens: float | None = None,
) -> DensityMap:
    """Map δ_m − δ_N of a fitted law from ``margin`` octaves below the fit's grid to as many above it.

    Args:
        found: a fit (bootstrapped here with ``seed``) or its uncertainty.
        per_octave: points of the lattice; a figure wants about 8, the terminal 1 or 2.
        tokens: those to hold; None holds the reference's.

    Raises:
        UserError: the law reads neither m and N_s nor the density, or the rows do not carry m and N_s.
    """
    uncertainty = found if isinstance(found, Uncertainty) else bootstrap(found, seed=seed)
    uncertainty = replace(uncertainty, draws=uncertainty.draws[:_DRAWS])
    fit = uncertainty.fit
    _require_axes(fit)
    point = {**fit.reference, **({} if tokens is None else {"D": tokens})}
    m, n = (_lattice(fit.domain[s], per_octave, margin) for s in ("m", "N_s"))
    shape = (len(n), len(m))
    loss, difference, low, high, probability = (np.full(shape, np.nan) for _ in range(5))
    boundary, boundary_low, boundary_high = (np.full(len(n), np.nan) for _ in range(3))
    fine = _lattice(fit.domain["m"], _FINE, margin)
    for i, size in enumerate(n):
        loss[i] = fit.predict(_at(fit, point, m, size))
        difference[i] = _difference(fit, point, fit.vector, m, size)
        low[i], high[i] = uncertainty.interval(partial(_difference, fit, point, m=m, size=size))
        if len(uncertainty.draws):
            probability[i] = (_difference(fit, point, uncertainty.draws, m, size) > 0).mean(axis=0)
        boundary[i] = _crossing(fine, _difference(fit, point, fit.vector, fine, size))
        ends = uncertainty.interval(partial(_difference, fit, point, m=fine, size=size))
        boundary_low[i], boundary_high[i] = _zero_set(fine, *ends)
    constant = isinstance(fit.law, LocalLaw) and not any(
        len(s.symbols) > 1 and "D" not in s.symbols for s in fit.law.slopes
    )
    result = DensityMap(
        law=fit.law.name,
        columns=(fit.columns["m"], fit.columns["N_s"]),
        m=m,
        n=n,
        held={fit.columns[s]: point[s] for s in fit.law.symbols if s not in {"m", "N_s", "rho"}},
        loss=loss,
        difference=difference,
        low=low,
        high=high,
        probability=probability,
        extrapolated=_beyond(n, fit.domain["N_s"])[:, None] | _beyond(m, fit.domain["m"])[None, :],
        boundary=boundary,
        boundary_low=boundary_low,
        boundary_high=boundary_high,
        octaves_beyond=_octaves_beyond(fit, tokens),
        constant=constant,
        statements=(),
    )
    return _with_statements(result)


def study_map(
    table: Table,
    *,
    stage: str | None,
    compensation: str | None = None,
    loss: str = "loss",
    columns: Mapping[str, str] | None = None,
    per_octave: int = 2,
    margin: float = 1.0,
    seed: int = 0,
) -> DensityMap:
    """The map of one stage and compensation, from the interaction law where the grid holds cells enough for it.

    Raises ``UserError`` as ``select_rows`` and ``density_map`` do.
    """
    fit = fit_effects(
        table,
        stage=stage,
        compensation=compensation,
        loss=loss,
        columns=columns,
        spare_for_interaction=_SPARE_FOR_MAP,
    )
    return density_map(fit, per_octave=per_octave, margin=margin, seed=seed)


def study_slices(
    table: Table,
    *,
    stage: str | None,
    compensation: str | None = None,
    loss: str = "loss",
    columns: Mapping[str, str] | None = None,
    per_octave: int = 2,
    margin: float = 1.0,
    seed: int = 0,
) -> tuple[DensityMap, ...]:
    """The map at the shortest, a middle and the longest budget, and two octaves beyond, which is extrapolation.

    Raises:
        UserError: one budget, or rows that cannot tell how both effects change with tokens.
    """
    part = where(table, stage=stage, compensation=compensation)
    law = LAWS["trend_interaction"]
    rows = select_rows(part, [law], loss=loss, columns=columns)
    budgets = np.unique(rows.values["D"])
    if len(budgets) < 2:
        raise UserError("slices of the map at several token budgets need two budgets or more")
    fit = fit_rows(
        rows,
        law,
        columns={**COLUMNS, **(columns or {})},
        loss=loss,
        stage=stage or first_level(part, "stage"),
        compensation=compensation or first_level(part, "compensation"),
    )
    if lost := sorted({"a", "b", "p", "q"} & {*fit.dropped, *fit.unidentified}):
        raise UserError(
            f"the design cannot tell how both effects change with tokens (coefficients {', '.join(lost)})"
        )
    uncertainty = bootstrap(fit, seed=seed)
    inside = budgets[[0, len(budgets) // 2, -1]] if len(budgets) > 2 else budgets
    return tuple(
        density_map(uncertainty, per_octave=per_octave, margin=margin, tokens=float(tokens))
        for tokens in (*inside, _AHEAD * budgets[-1])
    )


def slice_title(found: DensityMap) -> str:
    """What a slice is at, and whether that was trained."""
    at = f"{_short(found.held[COLUMNS['D']])} tokens" if COLUMNS["D"] in found.held else "all tokens"
    return f"{at}, {found.octaves_beyond:.1f} octaves beyond" if found.octaves_beyond > _NEAR else at


def _require_axes(fit: FitResult) -> None:
    if not {"m", "N_s"} <= set(fit.reference):
        raise UserError(f"a map needs rows with m and N_s; the rows of law {fit.law.name!r} carry others")
    if not ({"m", "N_s"} <= set(fit.law.symbols) or "rho" in fit.law.symbols):
        gone = " and ".join(sorted({"m", "N_s"} - set(fit.law.symbols)))
        raise UserError(f"law {fit.law.name!r} as fitted says nothing about {gone}: there is no map to draw")


def _lattice(domain: tuple[float, float], per_octave: int, margin: float) -> Array:
    """Points spaced evenly in octaves, the grid's ends among them where its span is whole steps."""
    low, high = np.log2(domain[0]) - margin, np.log2(domain[1]) + margin
    return np.exp2(np.linspace(low, high, max(2, round((high - low) * per_octave) + 1)))


def _at(fit: FitResult, point: Mapping[str, float], m: Array, size: float) -> dict[str, Array]:
    """Every symbol of the law at (m, size), the rest as in ``point``, [points]."""
    values = {s: np.full(len(m), v) for s, v in point.items()}
    values["m"], values["N_s"] = m, np.full(len(m), float(size))
    if "rho" in values:
        values["rho"] = fit.reference["rho"] * (m / fit.reference["m"]) * (fit.reference["N_s"] / size)
    return values


def _difference(
    fit: FitResult, point: Mapping[str, float], coefficients: Array, m: Array, size: float
) -> Array:
    """δ_m − δ_N = L(m, 2N_s) − L(2m, N_s), [..., points]."""
    wide = evaluate(fit.law, coefficients, _at(fit, point, m, 2 * size), fit.reference)
    return wide - evaluate(fit.law, coefficients, _at(fit, point, 2 * m, size), fit.reference)


def _beyond(values: Array, domain: tuple[float, float]) -> NDArray[np.bool_]:
    return np.asarray((values * _WITHIN < domain[0]) | (2 * values > domain[1] * _WITHIN))


def _crossing(m: Array, difference: Array) -> float:
    """The first m at which the difference changes sign, between points by interpolation in log m; NaN if none."""
    change = np.flatnonzero(np.sign(difference[:-1]) * np.sign(difference[1:]) < 0)
    if not len(change):
        return float("nan")
    k = int(change[0])
    share = difference[k] / (difference[k] - difference[k + 1])
    return float(m[k] * (m[k + 1] / m[k]) ** share)


def _zero_set(m: Array, low: Array, high: Array) -> tuple[float, float]:
    """Ends of the range of m whose interval holds zero; NaN for an end on the map's edge."""
    holds = np.flatnonzero((low <= 0) & (high >= 0))
    if not len(holds):
        return float("nan"), float("nan")
    first, last = int(holds[0]), int(holds[-1])
    return (
        float(m[first]) if first > 0 else float("nan"),
        float(m[last]) if last < len(m) - 1 else float("nan"),
    )


def _with_statements(found: DensityMap) -> DensityMap:
    said = []
    if found.octaves_beyond > _NEAR:
        said.append(
            f"these tokens lie {found.octaves_beyond:.1f} octaves beyond those of the rows: all of it is extrapolated, "
            "by a line in log tokens"
        )
    if found.constant:
        said.append(f"law {found.law!r} has no interaction of m and N_s: its map is constant")
    inside = ~found.extrapolated
    if not inside.any():
        said.append("all of the map is extrapolated: the grid spans less than a doubling of one axis")
    elif not np.isnan(found.low).all():
        wins = [(found.low > 0) & inside, (found.high < 0) & inside]
        shares = [f"{w.sum() / inside.sum():.0%}" for w in wins]
        said.append(f"within the grid density wins on {shares[0]} of the map, size on {shares[1]}")
    if not found.constant and np.isnan(found.boundary).all():
        said.append("no boundary on the map: the same effect is the larger one everywhere on it")
    return replace(found, statements=tuple(said))


def _short(value: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.3g}"


def map_blocks(table: Table, stage: str | None, compensation: str | None, loss: str) -> list[Block]:
    """The map in letters, or why there is none."""
    place = heading(stage, compensation, loss)
    try:
        found = study_map(table, stage=stage, compensation=compensation, loss=loss)
    except UserError as error:
        return [Paragraph(text=f"No map ({place}): {error}")]
    blocks: list[Block] = [
        Heading(text=f"Where density beats size ({place}, law {found.law})"),
        Listing(text="\n".join(found.lines())),
    ]
    try:
        slices = study_slices(table, stage=stage, compensation=compensation, loss=loss, per_octave=1)
    except UserError as error:
        return [*blocks, Paragraph(text=f"No slices by tokens: {error}.")]
    for one in slices:
        blocks += [
            Heading(text=f"At {slice_title(one)} ({place}, law {one.law})"),
            Listing(text="\n".join(one.lines())),
        ]
    return blocks
