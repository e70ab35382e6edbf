"""The best memory-to-FFN ratio at constant compute, and whether it agrees with UltraMemV2's 17% MCP.

    L = c0 + a·log2(r/r0) + b·log2²(r/r0) + d·log2(D/D0)    r memory FLOPs / FFN FLOPs, MCP = r / (1 + r)

with an intercept for every seed block. The optimum is log2(r*/r0) = −a/2b. Its interval is the set of r at which
the slope a + 2b·log2(r/r0) may be zero (Fieller), which is honest about a curvature that is hardly there: such a
set has no end. Source of the comparison: arXiv 2508.18756, Table 4 and Figure 5.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from umscale.errors import UserError
from umscale.laws.fit import FitResult, fit_law, lack_of_fit
from umscale.laws.forms import LocalLaw, Slope
from umscale.laws.uncertainty import LEVEL, Estimate, Uncertainty, bootstrap
from umscale.questions.question import Answer, Asked, Contrast, Question
from umscale.results.columns import COLUMNS
from umscale.results.table import Table, first_level, levels, numeric, parts, where
from umscale.say.blocks import Block, Grid, Paragraph, Verdict
from umscale.say.estimates import both, pair, share, significant
from umscale.say.labels import by_compensation, capital, held, loss_name, over_stages, sentence, when

PAPER_MCP = 0.17
"""Memory's share of memory and FFN computation that UltraMemV2 found best."""

RATIO_LAW = LocalLaw(
    name="memory_to_ffn",
    source="this project",
    formula="c0 + a·log2(r/r0) + b·log2(r/r0)² + d·log2(D/D0)",
    slopes=(
        Slope(coefficient="a", symbols=("r",)),
        Slope(coefficient="b", symbols=("r", "r")),
        Slope(coefficient="d", symbols=("D",)),
    ),
)

_SAME_COMPUTE = 1.02  # FLOPs of the cells within this factor are one compute
_OTHER_COMPUTE = 1.1  # forward FLOPs further apart than this factor make a best ratio meaningless
_REACH = 3.0  # octaves beyond the grid within which the ends of the interval are looked for
_MISFIT = 0.05  # p of the lack of fit below which a parabola is not what was measured
_NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioVerdict:
    """Where the loss is least along the memory-to-FFN ratio, for one stage, compensation and loss."""

    question: str = "memory-to-ffn"
    answer: Literal["consistent", "different", "inconclusive"]
    """With the paper's 17% MCP."""
    reason: str
    stage: str | None
    compensation: str | None
    loss: str
    ratio: Estimate | None
    """r*, the ratio of least loss; None where the fitted curve has no minimum."""
    mcp: Estimate | None
    """r*/(1 + r*), a share."""
    paper_mcp: float
    paper_excess: Estimate | None
    """L at the paper's ratio minus L at r*, nats per token."""
    curvature: Estimate | None
    """b, nats per squared octave."""
    freedom: float
    """Degrees of freedom of these intervals; 0 where there are none."""
    grid: tuple[float, float]
    """Smallest and largest ratio measured."""
    n_rows: int
    n_runs: int
    n_cells: int
    warnings: tuple[str, ...]

    @property
    def words(self) -> str:
        """How the best ratio lies to the paper's."""
        sides = {
            "consistent": "consistent with",
            "different": "different from",
            "inconclusive": "not measured well enough to hold against",
        }
        return f"{sides[self.answer]} the paper's {self.paper_mcp:.0%} MCP"


def memory_to_ffn(
    table: Table,
    *,
    stage: str | None,
    compensation: str | None = None,
    loss: str = "loss",
    column: str = "memory_to_ffn",
    seed: int = 0,
) -> RatioVerdict:
    """Find the best ratio among the cells of a study that varies it; thin data, and cells that a
    parabola misses, are ``inconclusive``.

    Raises ``UserError`` when the table lacks ``column``, or mixes stages or compensations.
    """
    part = where(table, stage=stage, compensation=compensation)
    context = {
        "stage": stage or first_level(part, "stage"),
        "compensation": compensation or first_level(part, "compensation"),
        "loss": loss,
    }
    if column not in part:
        raise UserError(f"the table has no column {column!r}: this question needs it")
    for name in ("stage", "compensation"):
        if len(levels(part, name)) > 1:
            raise UserError(f"the table mixes {name} {' and '.join(levels(part, name))}: choose one")
    known = numeric(part, column)
    known = known[np.isfinite(known) & (known > 0)]
    grid = (float(known.min()), float(known.max())) if len(known) else (_NAN, _NAN)
    try:
        fit = fit_law(part, RATIO_LAW, loss=loss, columns={"r": column})
    except UserError as error:
        return _undecided(context, str(error), grid)
    if {"a", "b"} & {*fit.dropped, *fit.unidentified}:
        return _undecided(context, f"{column} needs three levels or more to show a minimum", grid, fit)
    ends = _without_ends(part, loss, column, grid)
    return _decide(context, bootstrap(fit, seed=seed), grid, ends, _compute_warning(part))


def ratio_verdicts(
    table: Table, *, losses: tuple[str, ...] = ("loss", "loss_ema"), seed: int = 0
) -> tuple[RatioVerdict, ...]:
    """A verdict for every loss, compensation and stage a table holds, annealed before stable."""
    return tuple(
        memory_to_ffn(table, stage=stage, compensation=compensation, loss=loss, seed=seed)
        for loss, compensation, stage in parts(table, losses)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioCurves:
    """Verdicts of one compensation by stage, and the parabolas that they rest on."""

    verdicts: Mapping[str, RatioVerdict]
    """By stage, the one before the decay first; of a table without stages under the empty string."""
    fits: tuple[Uncertainty, ...]
    """Of the stages whose rows determine one."""
    refused: tuple[str, ...]
    """Why other stages have none, in sentences."""


def ratio_curves(
    table: Table, *, loss: str = "loss", columns: Mapping[str, str] | None = None, seed: int = 0
) -> RatioCurves:
    """Verdict and parabola of every stage; ``columns`` maps r and D.

    Raises:
        UserError: the table lacks the ratio, mixes compensations, or shows that compute was not held constant.
    """
    mapping = {**COLUMNS, **(columns or {})}
    _require_constant_compute(table)
    verdicts: dict[str, RatioVerdict] = {}
    fits, refused = [], []
    for stage in sorted(levels(table, "stage"), reverse=True) or [""]:
        part = where(table, stage=stage or None)
        verdicts[stage] = memory_to_ffn(part, stage=stage or None, loss=loss, column=mapping["r"], seed=seed)
        try:
            fit = fit_law(part, RATIO_LAW, loss=loss, columns={**(columns or {}), "r": mapping["r"]})
        except UserError as error:
            refused.append(f"No law: {error}.")
            continue
        if {"a", "b"} <= set(fit.law.coefficients) - set(fit.unidentified):
            fits.append(bootstrap(fit, seed=seed))
    return RatioCurves(verdicts=verdicts, fits=tuple(fits), refused=tuple(refused))


def _require_constant_compute(table: Table) -> None:
    if "flops_per_token" not in table:
        return
    flops = numeric(table, "flops_per_token")
    flops = flops[np.isfinite(flops)]
    if len(flops) and flops.max() > _OTHER_COMPUTE * flops.min():
        raise UserError(
            f"forward FLOPs differ {flops.max() / flops.min():.2f}-fold between cells: a best ratio needs "
            "constant compute (compensation iso_flops)"
        )


def _decide(
    context: dict[str, str | None],
    uncertainty: Uncertainty,
    grid: tuple[float, float],
    ends: dict[float, float],
    warnings: tuple[str, ...],
) -> RatioVerdict:
    fit = uncertainty.fit
    a, b = (fit.law.coefficients.index(name) for name in ("a", "b"))
    origin = fit.reference["r"]
    curvature = uncertainty.estimate(lambda c: c[..., b])
    low, high = _fieller(uncertainty, a, b, grid) if fit.vector[b] > 0 else (_NAN, _NAN)
    best = origin * 2.0 ** (-fit.vector[a] / (2 * fit.vector[b])) if fit.vector[b] > 0 else _NAN
    ratio = Estimate(value=best, low=low, high=high)
    paper, misfit = PAPER_MCP / (1 - PAPER_MCP), lack_of_fit(fit)
    # Cells that no parabola joins to the others carry the optimum away with them.
    carried = {end: other for end, other in ends.items() if ratio.has_interval and not low <= other <= high}
    answer: Literal["consistent", "different", "inconclusive"] = "inconclusive"
    if not curvature.has_interval:
        reason = uncertainty.warnings[0]
    elif not curvature.low > 0:
        reason = "curvature not identified: its interval holds zero, so there may be no minimum"
    elif misfit[1] < _MISFIT:
        reason = (
            f"cells lie further from the curve than their runs from each other (F = {misfit[0]:.1f}, "
            f"p = {misfit[1]:.3f}): its least point is no measurement"
        )
    elif not grid[0] <= best <= grid[1]:
        reason = f"optimum outside the grid: at a ratio of {best:.3g}, measured from {grid[0]:.3g} to {grid[1]:.3g}"
    elif not ratio.has_interval:
        reason = "the optimum's interval has no end within three octaves of the grid"
    elif low <= paper <= high:
        answer, reason = "consistent", f"the {LEVEL:.0%} interval of the optimum holds {PAPER_MCP:.0%} MCP"
    elif carried:
        reason = "the optimum rests on the outermost cells"
    else:
        side = "below" if high < paper else "above"
        answer, reason = (
            "different",
            f"the {LEVEL:.0%} interval of the optimum lies {side} {PAPER_MCP:.0%} MCP",
        )
    found = np.isfinite(best)
    return RatioVerdict(
        answer=answer,
        reason=reason,
        stage=context["stage"],
        compensation=context["compensation"],
        loss=str(context["loss"]),
        ratio=ratio if found else None,
        mcp=Estimate(value=_share(best), low=_share(low), high=_share(high)) if found else None,
        paper_mcp=PAPER_MCP,
        paper_excess=_excess(uncertainty, a, b, float(np.log2(paper / origin))) if found else None,
        curvature=curvature,
        freedom=uncertainty.degrees_of_freedom,
        grid=grid,
        n_rows=fit.n_rows,
        n_runs=len(np.unique(fit.rows.run)),
        n_cells=len(np.unique(fit.rows.cell)),
        warnings=(*warnings, *map(_carried_words, carried.items()), *fit.warnings, *uncertainty.warnings),
    )


def _fieller(uncertainty: Uncertainty, a: int, b: int, grid: tuple[float, float]) -> tuple[float, float]:
    """Ratios about the optimum at which a + 2b·z may be zero; NaN for an end beyond ``_REACH`` octaves of the grid."""
    fit = uncertainty.fit
    origin = fit.reference["r"]

    def holds(z: float) -> bool:
        low, high = uncertainty.interval(lambda c: c[..., a] + 2 * c[..., b] * z)
        return bool(low <= 0 <= high)

    def end(outer: float) -> float:
        """Where the set ends between the optimum and ``outer``, by bisection."""
        inner = float(-fit.vector[a] / (2 * fit.vector[b]))
        if holds(outer) or abs(inner) > abs(outer):
            return _NAN
        for _ in range(20):
            middle = 0.5 * (inner + outer)
            inner, outer = (middle, outer) if holds(middle) else (inner, middle)
        return float(origin * 2.0**inner)

    return end(float(np.log2(grid[0] / origin)) - _REACH), end(float(np.log2(grid[1] / origin)) + _REACH)


def _excess(uncertainty: Uncertainty, a: int, b: int, at: float) -> Estimate:
    """Loss at ``at`` octaves from the origin above the fitted curve's least: b·(at + a/2b)²."""
    best = -uncertainty.fit.vector[a] / (2 * uncertainty.fit.vector[b])
    return uncertainty.estimate(lambda c: c[..., a] * (at - best) + c[..., b] * (at**2 - best**2))


def _share(ratio: float) -> float:
    return ratio / (1 + ratio)


def _compute_warning(table: Table) -> tuple[str, ...]:
    if "flops_per_token" not in table:
        return ("the table has no column flops_per_token: nothing shows that compute was held constant",)
    flops = numeric(table, "flops_per_token")
    flops = flops[np.isfinite(flops)]
    if len(flops) and flops.max() > _SAME_COMPUTE * flops.min():
        spread = flops.max() / flops.min()
        return (f"compute is not constant: forward FLOPs differ {spread:.2f}-fold between cells",)
    return ()


def _carried_words(one: tuple[float, float]) -> str:
    end, other = one
    where_to = "there is no minimum" if np.isnan(other) else f"it is {other:.3g}, outside its interval"
    return f"the optimum rests on the cells at a ratio of {end:.3g}: without them {where_to}"


def _without_ends(table: Table, loss: str, column: str, grid: tuple[float, float]) -> dict[float, float]:
    """Each end of the grid → the ratio of least loss among the other cells; NaN where those show no minimum."""
    found = {}
    for end in grid:
        outermost = np.isclose(numeric(table, column), end, rtol=1e-3)
        rest = {name: np.asarray(values)[~outermost] for name, values in table.items()}
        try:
            fit = fit_law(rest, RATIO_LAW, loss=loss, columns={"r": column})
        except UserError:
            continue
        if {"a", "b"} & {*fit.dropped, *fit.unidentified}:
            continue
        a, b = fit.coefficients["a"], fit.coefficients["b"]
        found[end] = float(fit.reference["r"] * 2.0 ** (-a / (2 * b))) if b > 0 else _NAN
    return found


def _undecided(
    context: dict[str, str | None], reason: str, grid: tuple[float, float], fit: FitResult | None = None
) -> RatioVerdict:
    return RatioVerdict(
        answer="inconclusive",
        reason=reason,
        stage=context["stage"],
        compensation=context["compensation"],
        loss=str(context["loss"]),
        ratio=None,
        mcp=None,
        paper_mcp=PAPER_MCP,
        paper_excess=None,
        curvature=None,
        freedom=0.0,
        grid=grid,
        n_rows=fit.n_rows if fit else 0,
        n_runs=len(np.unique(fit.rows.run)) if fit else 0,
        n_cells=len(np.unique(fit.rows.cell)) if fit else 0,
        warnings=fit.warnings if fit else (),
    )


# -- the answer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioAnswer(Answer):
    """Where the loss is least, for every loss, compensation and stage."""

    found: tuple[RatioVerdict, ...]

    def to_json(self, **context: Any) -> list[dict[str, Any]]:
        """The verdicts as they are."""
        return [asdict(one) for one in self.found]

    def contrasts(self) -> list[Contrast]:
        """Whether there is a best ratio at all, then whether the paper's lies above it in loss."""
        first = self.found[0].loss if self.found else ""
        return [
            Contrast(
                asks=asks,
                known=_sign(estimate) if estimate else one.reason,
                stage=one.stage,
                compensation=one.compensation,
                estimate=estimate or Estimate(value=_NAN, low=_NAN, high=_NAN),
                freedom=one.freedom,
                obstacle="" if estimate else one.reason,
            )
            for one in self.found
            if one.loss == first
            for asks, estimate in (
                ("Is there a best memory-to-FFN ratio: does the loss curve upwards?", one.curvature),
                (f"Is the loss at {one.paper_mcp:.0%} MCP above the least?", one.paper_excess),
            )
            if estimate or asks.startswith("Is there")
        ]

    def blocks(self) -> list[Block]:
        """A verdict and a table for each compensation; averaged weights in a sentence beside raw ones."""
        blocks: list[Block] = []
        first = self.found[0].loss if self.found else ""
        for compensation, stages in by_compensation(self.found, first).items():
            answers = {v.answer for v in stages.values()}
            tones = {"consistent": "yes", "different": "no"}
            title = over_stages({s: v.words for s, v in stages.items()})
            blocks += [
                Verdict(
                    verdict=f"The best share is {title} ({held(compensation)})",
                    tone=tones.get(next(iter(answers)), "open") if len(answers) == 1 else "open",
                    text=" ".join(_ratio_sentence(v) for v in reversed(stages.values())),
                ),
                _ratio_grid(compensation, stages),
            ]
        for loss in dict.fromkeys(v.loss for v in self.found if v.loss != first):
            for compensation, stages in by_compensation(self.found, loss).items():
                said = "; ".join(f"{when(s)} {v.words}: {share(v.mcp)}" for s, v in stages.items())
                blocks.append(Paragraph(text=f"With {loss_name(loss)} ({held(compensation)}): {said}."))
        return blocks


def _sign(estimate: Estimate) -> str:
    """Whether a number that should be positive is."""
    return "yes" if estimate.low > 0 else "no" if estimate.high < 0 else "not told"


def answer(table: Table, asked: Asked) -> RatioAnswer:
    """The best ratio and how it lies to the paper's; raises as ``memory_to_ffn`` does."""
    found = ratio_verdicts(table, losses=asked.losses, seed=asked.seed)
    return RatioAnswer(found=tuple(one for one in found if asked.stage in (None, one.stage)))


def _ratio_sentence(verdict: RatioVerdict) -> str:
    place = capital(when(verdict.stage))
    if verdict.mcp is None:
        return f"{place}: {verdict.reason}."
    return (
        f"{place}, the loss is least at an MCP of {share(verdict.mcp)}; the paper's {PAPER_MCP:.0%} costs "
        f"{both(verdict.paper_excess)} nats per token more. {sentence(verdict.reason)}"
    )


def _ratio_grid(compensation: str | None, stages: dict[str | None, RatioVerdict]) -> Grid:
    def row(title: str, name: str, digits: int) -> tuple[str, ...]:
        return title, *(c for v in stages.values() for c in pair(getattr(v, name), digits))

    first = next(iter(stages.values()))
    warnings = dict.fromkeys(w for v in stages.values() for w in v.warnings)
    return Grid(
        caption=f"The best memory-to-FFN ratio, {held(compensation)}; 95% intervals",
        head=("", *(h for stage in stages for h in (when(stage), "interval"))),
        sides="l" + "rr" * len(stages),
        rows=(
            row("best ratio, memory FLOPs over FFN FLOPs", "ratio", 3),
            row("as MCP, a share", "mcp", 3),
            row("loss at the paper's ratio minus the least, nats", "paper_excess", 4),
            row("curvature, nats per squared octave", "curvature", 4),
        ),
        notes=(
            f"Measured from {significant(first.grid[0])} to {significant(first.grid[1])} in {first.n_runs} runs of "
            f"{first.n_cells} cells.",
            *(sentence(w) for w in warnings),
        ),
    )


QUESTION = Question(
    asks="Which share of the computation of memory and FFN should go to the memory, at constant compute?",
    answer=answer,
    figures=("ratio",),
)
