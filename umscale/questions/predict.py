"""What loss a law expects where nothing was measured, with intervals for the law and for one new run.

Two intervals, never one for the other. That of the *law* is where its curve may lie: the bootstrap's, by group. That of
a *run* adds how far runs lie off the curve: deviations of the rows from the law are drawn beside the law's own draws,
in the space of its residuals, enlarged for the coefficients that were fitted to them and widened by Student's factor.
What the law misses beyond its rows is in neither: every point says how many octaves it lies outside them, on each
axis.

Along tokens a law must let the effects of m and N_s change with D: a local law with m·D and N_s·D, or a power law in
which they meet. Others keep today's difference for ever, and are refused beyond the tokens measured.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from umscale.errors import UserError, nearest
from umscale.laws.fit import FitResult
from umscale.laws.forms import LAWS, ExpressionLaw, Law, LocalLaw, PowerLaw, evaluate
from umscale.laws.uncertainty import LEVEL, Estimate, Uncertainty
from umscale.results.columns import Array
from umscale.say.blocks import Block, Grid, noted
from umscale.say.labels import part_words
from umscale.say.laws import interval_text
from umscale.say.numbers import axis_value

TREND_LAWS = ("trend", "trend_curved", "trend_interaction", "power_product", "power_trend")
"""Laws whose effects of m and N_s change with tokens, fewest coefficients first."""

MOST_POINTS = 1000
_MOST_LINES = 60  # of a table of points
_MOST_CELLS = 64  # values of axes not asked about that are taken from the rows
_SAMPLES = 8000  # of the predictive distribution
_SAME = 1e-6  # relative difference of two values of an axis that are one
_FAR = 2.0  # octaves beyond its grid from which a tangent plane's losses are not to be believed


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One point."""

    at: Mapping[str, float]
    """Symbol of the law → value."""
    loss: Estimate
    """Of the law, in the unit of the losses."""
    run: Estimate
    """Of one new run; the same value."""
    octaves: Mapping[str, float]
    """Symbol → octaves above (positive) or below (negative) the rows; 0 within them."""
    expected_score: float
    """Mean interval score of ``run`` if runs come as it says: what a calibrated forecaster expects."""
    score_deviation: float
    """Standard deviation of that score from run to run."""

    @property
    def farthest(self) -> float:
        """Octaves outside the rows on the axis that lies furthest out."""
        return max((abs(far) for far in self.octaves.values()), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What one law, fitted to one part of a table, expects at points."""

    law: str
    formula: str
    reason: str
    """Why this law."""
    columns: Mapping[str, str]
    stage: str | None
    compensation: str | None
    loss: str
    by: Mapping[str, str]
    rows: int
    coefficients: Mapping[str, float]
    noise: float
    """Standard deviation of runs about the law, enlarged for its coefficients, in the space of its residuals."""
    method: str
    resampled: str
    level: float
    points: tuple[Prediction, ...]
    statements: tuple[str, ...]

    def blocks(self) -> list[Block]:
        """A table of the points, and what to know of it."""
        symbols = list(self.columns)
        rows = [
            (
                *(axis_value(point.at[s]) for s in symbols),
                f"{point.loss.value:.4f}",
                _ends(point.loss),
                _ends(point.run),
                " ".join(f"{s} {v:+.1f}" for s, v in point.octaves.items() if v) or "–",
            )
            for point in self.points[:_MOST_LINES]
        ]
        # Local laws are linear in the loss, all others in its logarithm.
        space = (
            "in the loss" if isinstance(LAWS.get(self.law), LocalLaw) else "in ln L, one standard deviation"
        )
        names = ", ".join(f"{s} is {c}" for s, c in self.columns.items())
        notes = [
            f"law {self.law}: {self.formula} ({self.reason})",
            f"{self.rows} rows; {names}; runs lie {self.noise:.2g} off the law ({space})",
        ]
        if len(self.points) > _MOST_LINES:
            notes.insert(0, f"and {len(self.points) - _MOST_LINES} more; --json prints all")
        if self.method != "none":
            notes.append(f"intervals: {self.method}; resampled {self.resampled}")
        place = part_words(self.stage, self.compensation, self.loss, self.by)
        level = f"{self.level:.0%}"
        grid = Grid(
            caption=f"{place}, law {self.law}",
            head=(*symbols, "loss", f"{level} of the law", f"{level} of a run", "octaves outside"),
            sides="r" * (len(symbols) + 4),
            rows=tuple(rows),
            notes=tuple(notes),
        )
        return [grid, *noted(self.statements)]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def _ends(estimate: Estimate) -> str:
    return f"[{estimate.low:.4f}, {estimate.high:.4f}]" if estimate.has_interval else interval_text(estimate)


def points_of(fit: FitResult, given: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Every combination of the values ``given`` by symbol or column; other axes take the values of the rows.

    Raises ``UserError`` for an axis that the law does not read, a value without a logarithm, and axes that are not
    given and take too many values in the rows.
    """
    by_column = {fit.columns[s]: s for s in fit.law.symbols}
    asked: dict[str, Sequence[float]] = {}
    for name, values in given.items():
        symbol = name if name in fit.law.symbols else by_column.get(name)
        if symbol is None:
            if name in fit.columns or name in fit.columns.values() or name in fit.dropped:
                raise UserError(
                    f"law {fit.law.name!r} as fitted does not read {name}: its prediction is the same for any"
                )
            raise UserError(
                f"law {fit.law.name!r} reads no {name!r}{nearest(name, (*fit.law.symbols, *by_column))}"
            )
        if symbol in fit.law.positive and min(values) <= 0:
            raise UserError(f"{name} = {min(values):g}: it must be positive")
        asked[symbol] = values
    others = [s for s in fit.law.symbols if s not in asked]
    measured = _combinations(fit, others)
    if len(measured) > _MOST_CELLS:
        names = " and ".join(f"{s} ({fit.columns[s]})" for s in others)
        raise UserError(
            f"say {names} too: the rows have {len(measured)} values of it, none is meant by silence"
        )
    found = [
        dict(zip(others, cell, strict=True)) | dict(zip(asked, values, strict=True))
        for values in itertools.product(*asked.values())
        for cell in measured
    ]
    if len(found) > MOST_POINTS:
        raise UserError(f"{len(found)} points; {MOST_POINTS} are the most")
    return [{s: float(point[s]) for s in fit.law.symbols} for point in found]


def _combinations(fit: FitResult, symbols: Sequence[str]) -> list[tuple[float, ...]]:
    """Values of axes that occur together in the rows, ascending; one empty combination of no axes."""
    found: list[tuple[float, ...]] = []
    for row in sorted(set(zip(*(fit.rows.values[s].tolist() for s in symbols), strict=True))) or [()]:
        if not found or not np.allclose(row, found[-1], rtol=_SAME, atol=0):
            found.append(row)
    return found


def predict(
    found: Uncertainty,
    points: Sequence[Mapping[str, float]],
    *,
    reason: str = "as asked",
    by: Mapping[str, str] | None = None,
    level: float = LEVEL,
) -> Predictions:
    """What a fitted law expects at ``points`` (symbol → value), with intervals.

    Raises ``UserError`` without points, and for a law that cannot speak of more tokens than were measured.
    """
    fit = found.fit
    if not points:
        raise UserError("no point to predict: say where, as in D=16M")
    octaves = [_octaves(fit, point) for point in points]
    _refuse_along_tokens(fit, octaves)
    values = {s: np.array([point[s] for point in points], dtype=np.float64) for s in fit.law.symbols}
    values = values or {"": np.zeros(len(points))}
    at = evaluate(fit.law, fit.vector, values, fit.reference)
    low, high = found.band(values, level)
    samples = _Samples.of(found)
    predictions = []
    for k, (point, far) in enumerate(zip(points, octaves, strict=True)):
        one = {s: v[k : k + 1] for s, v in values.items()}
        ends, score, spread = samples.interval(one, float(at[k]), level)
        predictions.append(
            Prediction(
                at=dict(point),
                loss=Estimate(value=float(at[k]), low=float(low[k]), high=float(high[k])),
                run=Estimate(value=float(at[k]), low=ends[0], high=ends[1]),
                octaves=far,
                expected_score=score,
                score_deviation=spread,
            )
        )
    return Predictions(
        law=fit.law.name,
        formula=fit.law.formula,
        reason=reason,
        columns={s: fit.columns[s] for s in fit.law.symbols},
        stage=fit.stage,
        compensation=fit.compensation,
        loss=fit.loss,
        by=dict(by or {}),
        rows=fit.n_rows,
        coefficients=dict(fit.coefficients),
        noise=samples.deviation,
        method=found.method,
        resampled=found.resampled,
        level=level,
        points=tuple(predictions),
        statements=tuple(_statements(found, predictions)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """Draws of the law, each with a draw of how far a run lies off it."""

    found: Uncertainty
    coefficients: Array
    """[samples, coefficients]."""
    deviations: Array
    """In the space of the residuals, [samples]."""
    deviation: float

    @classmethod
    def of(cls, found: Uncertainty) -> "_Samples":
        fit = found.fit
        off, freedom = deviations(fit)
        nothing = np.zeros(0)
        if not len(found.draws) or freedom < 1:
            return cls(found=found, coefficients=found.draws[:0], deviations=nothing, deviation=float("nan"))
        rng = np.random.Generator(np.random.PCG64(found.seed))
        repeats = -(-_SAMPLES // len(found.draws))
        draws = np.tile(found.draws, (repeats, 1))
        drawn = rng.choice(off, size=len(draws)) * np.sqrt(freedom / rng.chisquare(freedom, size=len(draws)))
        return cls(
            found=found, coefficients=draws, deviations=drawn, deviation=float(np.sqrt(np.mean(off**2)))
        )

    def interval(
        self, values: Mapping[str, Array], at: float, level: float
    ) -> tuple[tuple[float, float], float, float]:
        """Ends of a run's interval at one point, and mean and deviation of its interval score."""
        fit = self.found.fit
        if not len(self.deviations):
            return (float("nan"), float("nan")), float("nan"), float("nan")
        law = evaluate(fit.law, self.coefficients, values, fit.reference)[:, 0]
        with np.errstate(all="ignore"):
            if fit.residual == "log":
                # Percentiles of the law are expanded for few groups; so are its draws here.
                runs = at * np.exp(self.found.expansion * np.log(law / at) + self.deviations)
            else:
                runs = at + self.found.expansion * (law - at) + self.deviations
        runs = runs[np.isfinite(runs)]
        low, high = (float(end) for end in np.quantile(runs, [(1 - level) / 2, (1 + level) / 2]))
        scores = interval_score(runs, low, high, level)
        return (low, high), float(scores.mean()), float(scores.std())


def interval_score(observed: Array, low: float, high: float, level: float = LEVEL) -> Array:
    """Width of an interval plus 2/(1 − level) times what ``observed`` [...] lies outside it (Gneiting and Raftery
    2007).
    """
    outside = np.maximum(low - observed, 0.0) + np.maximum(observed - high, 0.0)
    return np.asarray(high - low + 2 / (1 - level) * outside)


def deviations(fit: FitResult) -> tuple[Array, float]:
    """How far the rows lie off the law in the space of its residuals [rows], and degrees of freedom.

    Offsets of seed blocks stay in: a new block has one too. Weights do not count: a run is one like those of the table.
    Enlarged for what the coefficients took up; one unit is a
    run, whose rows err together, where there are more runs than coefficients, else a row.
    """
    guess = fit.predict(fit.rows.values)
    off = np.log(fit.rows.loss / guess) if fit.residual == "log" else fit.rows.loss - guess
    n_runs = len(np.unique(fit.rows.run))
    units = n_runs if n_runs > fit.rank else fit.n_rows
    freedom = float(units - fit.rank)
    return off * np.sqrt(units / max(freedom, 1.0)), freedom


def _octaves(fit: FitResult, point: Mapping[str, float]) -> dict[str, float]:
    out = {}
    for symbol in fit.law.symbols:
        value, (low, high) = point[symbol], fit.domain[symbol]
        if low > 0 and value > 0:
            far = max(float(np.log2(value / high)), 0.0) + min(float(np.log2(value / low)), 0.0)
            out[symbol] = 0.0 if abs(far) < 1e-3 else far
    return out


def changes_with_tokens(law: Law) -> bool:
    """Whether the effects of m and N_s that a law has change with D in nats."""
    effects = [s for s in ("m", "N_s") if s in law.symbols]
    if isinstance(law, ExpressionLaw) or not effects:
        return True
    if isinstance(law, LocalLaw):
        return all(any({s, "D"} <= set(slope.symbols) for slope in law.slopes) for s in effects)
    return all(any({s, "D"} <= set(term.symbols) for term in law.terms) for s in effects)


def _refuse_along_tokens(fit: FitResult, octaves: Sequence[Mapping[str, float]]) -> None:
    beyond = max((far.get("D", 0.0) for far in octaves), default=0.0)
    if beyond <= 0:
        return
    effects = [s for s in ("m", "N_s") if s in fit.law.symbols]
    if isinstance(fit.law, (LocalLaw, PowerLaw)) and not changes_with_tokens(fit.law):
        raise UserError(
            f"law {fit.law.name!r} keeps the effect of {' and '.join(effects)} the same for any number of tokens: "
            "it cannot "
            f"predict {beyond:.1f} octaves beyond those measured; use {', '.join(TREND_LAWS)}, or a formula in "
            "which they meet D"
        )


def _statements(found: Uncertainty, points: Sequence[Prediction]) -> Iterator[str]:
    fit = found.fit
    farthest = {s: max((p.octaves.get(s, 0.0) for p in points), key=abs) for s in fit.law.symbols}
    outside = {s: far for s, far in farthest.items() if far}
    if outside:
        words = ", ".join(f"{s} {far:+.1f}" for s, far in outside.items())
        yield f"extrapolates by octaves of {words}: intervals do not hold what the law misses out there"
    if isinstance(fit.law, LocalLaw) and max((abs(far) for far in outside.values()), default=0.0) > _FAR:
        yield (
            "a local law is a tangent: so far outside its grid read its differences as a first guess, its losses "
            "not at all"
        )
    yield from fit.warnings
    if not len(found.draws):
        yield from found.warnings or ("no intervals: nothing was resampled",)
    if fit.unidentified:
        yield (
            f"the rows do not determine {', '.join(fit.unidentified)}: what rests on them is a choice, not a "
            "prediction"
        )
