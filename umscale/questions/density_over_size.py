"""Does density beat size? Supported, contradicted or inconclusive, with the numbers that decide.

At the reference point (m, N_s, D), the geometric mean of the design, with L in nats per token and doublings centred on
it, so that for a law linear in log m and log N_s they are its slopes:

    δ_m = L(m/√2, N_s) − L(√2 m, N_s)   what a doubling of activated values buys
    δ_N = L(m, N_s/√2) − L(m, √2 N_s)   what a doubling of sparse parameters buys
    Δ   = L(m, 2N_s) − L(3m, N_s)       the contrast of the UltraMemV2 paper (arXiv 2508.18756)

The answer is ``supported`` when the 95% interval of δ_m − δ_N lies above zero and ``contradicted`` when it lies
below. It is a statement at these tokens: ``token_trend`` says how it moves as training lengthens, and every answer
here carries that where runs have several budgets. Holding m/N_s fixed instead would count density twice, so no effect
is taken along that line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from umscale.errors import UserError
from umscale.laws.fit import FitResult, fit_rows, lack_of_fit
from umscale.laws.forms import FIRST_LAWS, LAWS
from umscale.laws.pairs import (
    PairedContrast,
    corners,
    paired_contrast,
    paper_pairs,
    run_noise,
    run_variance,
    steps_in_m,
    steps_in_n,
)
from umscale.laws.sections import Report, Settings, study_report, table_report, to_json
from umscale.laws.uncertainty import LEVEL, Estimate, Uncertainty, bootstrap
from umscale.questions.power import factor_to_settle
from umscale.questions.question import LOSSES, Answer, Asked, Contrast, Question, with_beside
from umscale.results.columns import COLUMNS, Array
from umscale.results.table import Table, first_level, levels, parts, select_rows, where
from umscale.say.blocks import Block, Grid
from umscale.say.blocks import Verdict as Said
from umscale.say.estimates import both, counted, pair, significant
from umscale.say.labels import by_compensation, capital, held, loss_name, over_stages, sentence, when
from umscale.say.laws import law_blocks
from umscale.say.numbers import count, further_runs
from umscale.store.schema import is_probe_column

if TYPE_CHECKING:
    from umscale.questions.token_trend import TokenTrend

AnswerWord = Literal["supported", "contradicted", "inconclusive"]

SPARE_FOR_INTERACTION = 12
"""Cells beyond its coefficients from which the interaction law decides."""
SPARE_FOR_CURVATURE = 6
"""Cells beyond its coefficients from which a law curved along each axis is tried where the plainer is rejected."""
REJECTED = 0.01
"""Probability of a law's misfit below which cells reject it."""
_CONTRASTS = (
    ("a doubling of `top_m` buys", "delta_m"),
    ("a doubling of `N_s` buys", "delta_n"),
    ("difference", "difference"),
    ("(m, 2 N_s) minus (3 m, N_s)", "paper"),
)
_OWN_BLOCKS = 5  # seed blocks from which their spread alone gives the paired intervals
_NAN = float("nan")

RUN_NOISE = "run-to-run noise within cells"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrasts:
    """The four numbers of one reading of the table; None where it cannot give one."""

    delta_m: Estimate | None
    """δ_m, nats per doubling of m."""
    delta_n: Estimate | None
    """δ_N, nats per doubling of N_s."""
    difference: Estimate | None
    """δ_m − δ_N."""
    paper: Estimate | None
    """Δ = L(m, 2N_s) − L(3m, N_s), nats."""
    basis: str
    """How the numbers and their intervals come about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An answer to "does density beat size?" for one stage, compensation and loss."""

    question: str = "density-over-size"
    answer: AnswerWord
    reason: str
    stage: str | None
    compensation: str | None
    loss: str
    law: str | None
    reference: Mapping[str, float]
    """Column → value at which the law is read."""
    from_law: Contrasts | None
    exchange_rate: Estimate | None
    """Factor on N_s that buys what a doubling of m buys, 2^(δ_m/δ_N), from the law."""
    from_pairs: Contrasts | None
    """Differences of measured cells within seed blocks and budgets; per doubling where levels are further
    apart, and averaged over the grid."""
    n_rows: int
    n_runs: int
    n_cells: int
    n_seeds: int
    resampled: str
    freedom: float
    """Degrees of freedom of the law's intervals; 0 where there are none."""
    averages: float
    """Share of their variance that further seeds in the same cells average away: the rest is what the law misses in
    cells, by the mean squares of its lack of fit."""
    further_runs: int | None
    """Runs that would have to be added for an 80% chance of an answer if δ_m − δ_N is what it seems."""
    extrapolated: tuple[str, ...]
    """Points of the contrasts that lie outside the grid, in words."""
    warnings: tuple[str, ...]


def verdicts(table: Table, *, losses: tuple[str, ...] = ("loss", "loss_ema")) -> tuple[Verdict, ...]:
    """A verdict for every loss, compensation and stage a table holds, annealed before stable."""
    return tuple(
        density_over_size(table, stage=stage, compensation=compensation, loss=loss)
        for loss, compensation, stage in parts(table, losses)
    )


def density_over_size(
    table: Table,
    *,
    stage: str | None,
    compensation: str | None = None,
    loss: str = "loss",
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Verdict:
    """Answer the question for one stage, compensation and loss; thin data are ``inconclusive``, never an error.

    ``columns`` maps the symbols m, N_s and D to columns. Raises ``UserError`` for a column the table lacks.
    """
    mapping = {**COLUMNS, **(columns or {})}
    for needed in (loss, mapping["m"], mapping["N_s"], mapping["D"]):
        if needed not in table:
            raise UserError(f"the table has no column {needed!r}: density over size needs it")
    present = levels(table, "compensation")
    if compensation is None and len(present) == 1:
        compensation = present[0]
    context = _Context(stage=stage, compensation=compensation, loss=loss)
    try:
        fit = fit_effects(
            table, stage=stage, compensation=compensation, loss=loss, columns=columns, curvature=True
        )
    except UserError as error:
        return _undecided(context, str(error))
    thin = why_thin(fit)
    if thin:
        return _undecided(context, thin, fit)
    uncertainty = bootstrap(fit, seed=seed)
    return _decide(context, uncertainty, _from_pairs(fit))


def fit_effects(
    table: Table,
    *,
    stage: str | None,
    compensation: str | None = None,
    loss: str = "loss",
    columns: Mapping[str, str] | None = None,
    spare_for_interaction: int = SPARE_FOR_INTERACTION,
    curvature: bool = False,
) -> FitResult:
    """Fit the law a verdict is read from: with the interaction of m and N_s where the grid has cells to spare for it.

    ``spare_for_interaction`` counts cells beyond the interaction law's coefficients. ``curvature`` lets both effects
    diminish along their own axis where cells reject the plainer law and the grid can hold it. Raises ``UserError`` as
    ``fit_law`` does.
    """
    part = where(table, stage=stage, compensation=compensation)
    rows = select_rows(part, [LAWS["interaction"]], loss=loss, columns=columns)
    n_cells = len(np.unique(rows.cell))

    def fitted(law: str) -> FitResult:
        return fit_rows(
            rows,
            LAWS[law],
            columns={**COLUMNS, **(columns or {})},
            loss=loss,
            stage=stage or first_level(part, "stage"),
            compensation=compensation or first_level(part, "compensation"),
        )

    # Cells, not rows, are what tells effects apart: seeds and budgets repeat them. The law has four coefficients
    # besides that of tokens; the curved one has six.
    plain = fitted("interaction" if n_cells - 4 >= spare_for_interaction else "additive")
    n_levels = min(len(np.unique(rows.values[symbol])) for symbol in ("m", "N_s"))
    if (
        not curvature
        or n_levels < 3
        or n_cells - 6 < SPARE_FOR_CURVATURE
        or lack_of_fit(plain)[1] >= REJECTED
    ):
        return plain
    curved = fitted("curved")
    return plain if curved.unidentified or lack_of_fit(curved)[1] < REJECTED else curved


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    stage: str | None
    compensation: str | None
    loss: str


def why_thin(fit: FitResult) -> str:
    """Why this design cannot separate the two effects, or the empty string."""
    mapping = fit.columns
    missing = [mapping[s] for s, name in (("m", "a"), ("N_s", "b")) if name in fit.dropped]
    if missing:
        return f"the design cannot say: {' and '.join(missing)} has one level"
    if {"a", "b"} & set(fit.unidentified):
        return f"the design cannot separate {mapping['m']} from {mapping['N_s']}: they vary together"
    return ""


def _decide(context: _Context, uncertainty: Uncertainty, pairs: Contrasts | None) -> Verdict:
    fit = uncertainty.fit
    a, b = (fit.law.coefficients.index(name) for name in ("a", "b"))
    triple = float(np.log2(3.0))  # the paper's comparison: twice the size against thrice the density
    a2, b2 = (
        fit.law.coefficients.index(name) if name in fit.law.coefficients else None for name in ("a2", "b2")
    )

    def estimate(weight_a: float, weight_b: float) -> Estimate:
        # Coefficients are what a doubling adds to the loss; what it buys has the other sign.
        return uncertainty.estimate(lambda c: weight_a * c[..., a] + weight_b * c[..., b])

    def paper(c: Array) -> Array:
        """L(m, 2N_s) − L(3m, N_s): steps upward, in which curvature counts."""
        curved = 0.0 if a2 is None or b2 is None else c[..., b2] - triple**2 * c[..., a2]
        return np.asarray(c[..., b] - triple * c[..., a] + curved)

    difference = estimate(-1.0, 1.0)
    f, p = lack_of_fit(fit)
    misses = f"; what it misses in cells against what runs differ by: F = {f:.1f}, p = {p:.2g}" if f else ""
    from_law = Contrasts(
        delta_m=estimate(-1.0, 0.0),
        delta_n=estimate(0.0, -1.0),
        difference=difference,
        paper=uncertainty.estimate(paper),
        basis=f"law {fit.law.name!r} at its reference point; {uncertainty.method}{misses}",
    )
    answer, reason = _answer(difference, pairs.difference if pairs else None, uncertainty)
    warnings = [*fit.warnings, *uncertainty.warnings]
    if answer != "inconclusive" and max(fit.coefficients["a"], fit.coefficients["b"]) >= 0:
        warnings.append("a doubling raises the loss here: the answer ranks two effects, not two gains")
    exchange, exchange_warning = _exchange_rate(uncertainty, a, b)
    return Verdict(
        answer=answer,
        reason=reason,
        stage=context.stage,
        compensation=context.compensation,
        loss=context.loss,
        law=fit.law.name,
        reference={fit.columns[s]: v for s, v in fit.reference.items()},
        from_law=from_law,
        exchange_rate=exchange,
        from_pairs=pairs,
        n_rows=fit.n_rows,
        n_runs=len(np.unique(fit.rows.run)),
        n_cells=len(np.unique(fit.rows.cell)),
        n_seeds=len(np.unique(fit.rows.seed)),
        resampled=uncertainty.resampled,
        freedom=uncertainty.degrees_of_freedom,
        averages=min(1.0, 1 / f) if f > 0 else 1.0,
        further_runs=_further_runs(difference, uncertainty) if answer == "inconclusive" else None,
        extrapolated=_extrapolated(fit),
        warnings=(*warnings, *exchange_warning),
    )


def _answer(
    difference: Estimate, paired: Estimate | None, uncertainty: Uncertainty
) -> tuple[AnswerWord, str]:
    """The answer and what decides it: the law's interval, unless paired cells or a lack of fit speak against it."""
    fit = uncertainty.fit
    answer: AnswerWord = "inconclusive"
    if not difference.has_interval:
        reason = uncertainty.warnings[0]
    elif difference.low > 0:
        answer, reason = "supported", "a doubling of m buys more than a doubling of N_s"
    elif difference.high < 0:
        answer, reason = "contradicted", "a doubling of N_s buys more than a doubling of m"
    else:
        reason = f"the {LEVEL:.0%} interval of δ_m − δ_N holds zero"
    if answer != "inconclusive" and paired and paired.has_interval:
        opposed = paired.high < 0 if answer == "supported" else paired.low > 0
        if opposed:
            answer, reason = "inconclusive", "the law and the paired cells point in opposite directions"
    f, p = lack_of_fit(fit)
    if answer != "inconclusive" and p < REJECTED:
        # What a law misses is in none of its intervals: it decides nothing that measured cells do not say themselves.
        agree = paired is not None and (paired.low > 0 if answer == "supported" else paired.high < 0)
        misfit = f"cells reject the law (F = {f:.1f})"
        if agree:
            reason = f"{misfit}, and paired cells say the same without it: {reason}"
        else:
            answer, reason = "inconclusive", f"no law fits: {misfit}, and paired cells do not decide"
    return answer, reason


def _undecided(context: _Context, reason: str, fit: FitResult | None = None) -> Verdict:
    rows = fit.rows if fit else None
    return Verdict(
        answer="inconclusive",
        reason=reason,
        stage=context.stage,
        compensation=context.compensation,
        loss=context.loss,
        law=None,
        reference={},
        from_law=None,
        exchange_rate=None,
        from_pairs=_from_pairs(fit) if fit else None,
        n_rows=rows.size if rows else 0,
        n_runs=len(np.unique(rows.run)) if rows else 0,
        n_cells=len(np.unique(rows.cell)) if rows else 0,
        n_seeds=len(np.unique(rows.seed)) if rows else 0,
        resampled="nothing",
        freedom=0.0,
        averages=1.0,
        further_runs=None,
        extrapolated=(),
        warnings=fit.warnings if fit else (),
    )


def _exchange_rate(uncertainty: Uncertainty, a: int, b: int) -> tuple[Estimate | None, list[str]]:
    """2^(δ_m/δ_N) with a percentile interval, where δ_N is surely positive."""
    if uncertainty.fit.vector[b] >= 0:
        return None, ["no exchange rate: more sparse parameters do not lower the loss here"]
    # Far out in a draw's tail the power overflows; it is then as good as unbounded.
    with np.errstate(over="ignore"):
        rate = uncertainty.estimate(lambda c: np.exp2(c[..., a] / c[..., b]))
    if rate.has_interval and np.mean(uncertainty.draws[:, b] >= 0) <= (1 - LEVEL) / 2:
        return rate, []
    unbounded = Estimate(value=rate.value, low=_NAN, high=_NAN)
    return unbounded, [
        "what a doubling of top_m is worth in N_s cannot be bounded: more N_s may not lower the loss at all"
    ]


def _further_runs(difference: Estimate, uncertainty: Uncertainty) -> int | None:
    """Runs to add at the present design; None when no number below a million would do."""
    factor = factor_to_settle(difference, uncertainty.degrees_of_freedom)
    further = (factor - 1) * len(np.unique(uncertainty.fit.rows.run))
    return max(1, int(np.ceil(further))) if further < 1e6 else None


def _extrapolated(fit: FitResult) -> tuple[str, ...]:
    """The points of the contrasts beyond the largest level."""
    said = []
    for symbol, multiple in (("m", 2**0.5), ("N_s", 2), ("m", 3)):
        largest = fit.domain[symbol][1]
        point = multiple * fit.reference[symbol]
        if point > 1.01 * largest:
            column = fit.columns[symbol]
            said.append(
                f"{multiple:.3g} times the central {column} is {point / largest:.3g} times the largest {column} "
                f"measured, {count(largest)}"
            )
    return tuple(said)


def _from_pairs(fit: FitResult) -> Contrasts | None:
    """The contrasts from measured cells alone, or None when no two cells differ in one axis only."""
    rows = fit.rows
    contrasts = [paired_contrast(rows, steps) for steps in (steps_in_m, steps_in_n, corners, paper_pairs)]
    if not any(contrasts):
        return None
    variance, freedom = run_noise(rows)
    noise = RUN_NOISE
    if not freedom:
        freedom = float(len(np.unique(rows.run)) - _between(fit))
        noise = "the law's residuals, for want of cells run twice"
        variance = run_variance(rows, fit.residuals, freedom) if freedom > 0 else _NAN
    found = [paired_estimate(c, variance, freedom, noise) if c else None for c in contrasts]
    source = next(pair[1] for pair in found if pair)
    delta_m, delta_n, difference, paper = (pair[0] if pair else None for pair in found)
    return Contrasts(
        delta_m=delta_m,
        delta_n=delta_n,
        difference=difference,
        paper=paper,
        basis=f"neighbouring cells within seed block and budget, per doubling, average of these cells; {source}",
    )


def _between(fit: FitResult) -> int:
    """Coefficients that differences between runs determine: all but the slope of tokens."""
    return len(fit.law.coefficients) + fit.blocks.shape[1] - ("d" in fit.law.coefficients)


def paired_estimate(
    contrast: PairedContrast, variance: float, freedom: float, noise: str = RUN_NOISE
) -> tuple[Estimate, str]:
    """A paired contrast with its 95% interval, and the words for where the interval comes from.

    From five seed blocks on, their spread gives it; with fewer, ``variance`` of a run at ``freedom`` degrees of
    freedom, which comes from ``noise``.
    """
    from umscale.laws.special import stdtrit

    n_blocks = len(contrast.by_block)
    if n_blocks >= _OWN_BLOCKS:
        error = float(contrast.by_block.std(ddof=1) / np.sqrt(n_blocks))
        freedom = n_blocks - 1.0
        source = f"intervals from the spread of {n_blocks} seed blocks"
    else:
        error = float(np.sqrt(variance * contrast.gain))
        source = f"intervals from {noise} ({freedom:.0f} degrees of freedom)"
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error if freedom > 0 else _NAN
    return Estimate(value=contrast.value, low=contrast.value - half, high=contrast.value + half), source


# -- the answer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DensityAnswer(Answer):
    """Laws, and a verdict for every loss, compensation and stage."""

    laws: Report
    verdicts: tuple[Verdict, ...]
    losses: tuple[str, ...]
    """Those to speak of: the first in full, others beside it."""
    trends: "tuple[TokenTrend, ...]"
    """How the verdicts move with tokens; none where every run has one budget."""

    def to_json(self, **context: Any) -> dict[str, Any]:
        """See docs/fit-json.md; ``context`` is put beside."""
        return to_json(self.laws, self.verdicts, self.trends, **context)

    def contrasts(self) -> list[Contrast]:
        """The difference of both effects at every stage and compensation, then how it moves with tokens."""
        first = self.losses[0]
        found = [_as_contrast(one) for one in self.verdicts if one.loss == first]
        return found + [c for t in self.trends if t.loss == first for c in t.contrasts()]

    def basis(self) -> list[Block]:
        """The laws."""
        return law_blocks(self.laws, self.losses)

    def limits(self) -> list[str]:
        """Where the verdicts hold."""
        beyond = dict.fromkeys(words for one in self.verdicts for words in one.extrapolated)
        return [
            "A verdict holds at the centre of the grid, where the law is read. Elsewhere in it, see the map; "
            "outside it, nothing is known.",
            *(f"A contrast reaches outside what was measured: {words}." for words in beyond),
        ]

    def blocks(self) -> list[Block]:
        """A verdict and a table for each compensation."""
        blocks: list[Block] = []
        first, *others = dict.fromkeys((*self.losses, *(v.loss for v in self.verdicts)))
        beside = {loss: by_compensation(self.verdicts, loss) for loss in others}
        for compensation, stages in by_compensation(self.verdicts, first).items():
            trends = {t.stage: t for t in self.trends if (t.compensation, t.loss) == (compensation, first)}
            words = {s: _over_budgets(v, trends.get(s)) for s, v in stages.items()}
            answers = {word.partition(" and ")[0] for word in words.values()}
            sentences = [_density_sentence(v, trends.get(v.stage)) for v in reversed(stages.values())]
            if {"supported", "contradicted"} <= answers:
                sentences.append("The answer changes sign at the decay.")
            title = capital(over_stages(words))
            place = ", ".join([held(compensation), *([] if first == "loss" else [loss_name(first)])])
            tones = {"supported": "yes", "contradicted": "no"}
            others_here = {loss: found.get(compensation, {}) for loss, found in beside.items()}
            blocks += [
                Said(
                    verdict=f"{title} ({place})",
                    tone=tones.get(next(iter(answers)), "open") if len(answers) == 1 else "open",
                    text=" ".join(sentences),
                ),
                _density_grid(compensation, stages, {first: stages, **others_here}),
            ]
        return blocks


def _as_contrast(verdict: Verdict) -> Contrast:
    """What further runs would settle of a verdict."""
    found = verdict.from_law.difference if verdict.from_law else None
    decides = found is not None and found.has_interval and (found.low > 0 or found.high < 0)
    return Contrast(
        asks="Does a doubling of `top_m` buy more than one of `N_s`?",
        known=verdict.answer,
        stage=verdict.stage,
        compensation=verdict.compensation,
        estimate=found or Estimate(value=_NAN, low=_NAN, high=_NAN),
        freedom=verdict.freedom,
        averages=verdict.averages,
        obstacle=verdict.reason if found is None or (decides and verdict.answer == "inconclusive") else "",
    )


def answer(table: Table, asked: Asked) -> DensityAnswer:
    """Laws and verdicts of a study; verdicts that thin data cannot give are inconclusive, never an error.

    Raises ``UserError`` where no law can be fitted.
    """
    settings = asked.settings or Settings()
    losses = with_beside(asked.losses)
    laws = asked.laws or FIRST_LAWS
    if settings.is_study:
        found = study_report(
            table, laws, losses=losses, stage=asked.stage, seed=asked.seed, settings=settings
        )
    else:
        found = table_report(table, laws, settings, loss=asked.losses[0], stage=asked.stage, seed=asked.seed)
    decided: tuple[Verdict, ...] = ()
    if not settings.by and all(one in LOSSES or is_probe_column(one) for one in losses):
        decided = tuple(v for v in verdicts(table, losses=losses) if asked.stage in (None, v.stage))
    return DensityAnswer(laws=found, verdicts=decided, losses=asked.losses, trends=_trends(table, decided))


def _trends(table: Table, decided: tuple[Verdict, ...]) -> "tuple[TokenTrend, ...]":
    """How each verdict moves with tokens; nothing where a table has one budget."""
    from umscale.questions.token_trend import token_trends  # which reads verdicts itself

    try:
        found = token_trends(table, losses=tuple(dict.fromkeys(v.loss for v in decided)))
    except UserError:
        return ()
    places = {(v.stage, v.compensation, v.loss) for v in decided}
    return tuple(one for one in found if (one.stage, one.compensation, one.loss) in places)


def _over_budgets(verdict: Verdict, trend: "TokenTrend | None") -> str:
    """The verdict's word, or that budgets disagree, and where it is heading."""
    if trend is None:
        return verdict.answer
    word = trend.answer if trend.answer == "depends on training length" else verdict.answer
    return f"{word} and {trend.direction} with tokens" if trend.direction else word


def _density_sentence(verdict: Verdict, trend: "TokenTrend | None") -> str:
    from umscale.questions.token_trend import trend_sentence

    place = capital(when(verdict.stage))
    found = verdict.from_law
    if found is None:
        return f"{place}: {verdict.reason}."
    said = (
        f"{place}, a doubling of `top_m` lowers the loss by {both(found.delta_m)} nats per token and a "
        f"doubling of `N_s` by {both(found.delta_n)}: a difference of {both(found.difference)}."
    )
    if verdict.answer == "inconclusive":
        said += f" {sentence(verdict.reason)}"
        if verdict.further_runs is not None:
            said += f" {sentence(further_runs(verdict.further_runs))}"
    tokens, size = (verdict.reference.get(COLUMNS[symbol]) for symbol in ("D", "N_s"))
    if tokens and size:
        said += f" That is at {count(tokens)} tokens, {significant(tokens / size, 2)} a sparse parameter."
    return said if trend is None else f"{said} {trend_sentence(trend, placed=False)}"


def _density_grid(
    compensation: str | None,
    stages: dict[str | None, Verdict],
    by_loss: dict[str, dict[str | None, Verdict]],
) -> Grid:
    """A column for each stage; other losses than the first with what the law says of them."""
    rows: list[tuple[str, ...]] = []
    for i, (loss, found) in enumerate(by_loss.items()):
        if not found:
            continue
        each = [found.get(stage) for stage in stages]
        rows.append(
            (f"verdict, {loss_name(loss)}", "", *(c for v in each for c in (v.answer if v else "–", "")))
        )
        for source, attribute in (("the law", "from_law"), ("paired cells", "from_pairs"))[: 1 if i else 2]:
            for title, name in _CONTRASTS:
                numbers = [_contrast(getattr(v, attribute) if v else None, name) for v in each]
                if any(numbers):
                    rows.append((title, source, *(cell for one in numbers for cell in pair(one))))
    return Grid(
        caption=f"Nats per token, {held(compensation)}; 95% intervals",
        head=("", "from", *(h for stage in stages for h in (when(stage), "interval"))),
        sides="ll" + "rr" * len(stages),
        rows=tuple(rows),
        notes=_density_notes(stages),
    )


def _contrast(contrasts: Contrasts | None, name: str) -> Estimate | None:
    return None if contrasts is None else getattr(contrasts, name)


def _density_notes(stages: dict[str | None, Verdict]) -> tuple[str, ...]:
    notes: dict[str, list[str]] = {}
    for stage, verdict in stages.items():
        said = []
        if verdict.reference:
            at = ", ".join(f"`{column}` {count(value)}" for column, value in verdict.reference.items())
            said.append(f"read at {at}")
        counts = ((verdict.n_runs, "run"), (verdict.n_cells, "cell"), (verdict.n_seeds, "seed"))
        said.append(", ".join(counted(n, thing) for n, thing in counts))
        rate = verdict.exchange_rate
        if rate is not None and rate.has_interval:
            bounds = f"[{significant(rate.low)}, {significant(rate.high)}]"
            said.append(
                f"a doubling of `top_m` buys as much as `N_s` times {significant(rate.value)} {bounds}"
            )
        said += [*verdict.extrapolated, *verdict.warnings]
        for contrasts in (verdict.from_law, verdict.from_pairs):
            said += [contrasts.basis] if contrasts else []
        for words in said:
            notes.setdefault(words, []).append(when(stage))
    everywhere = [words for words, where in notes.items() if len(where) == len(stages)]
    own = [f"{capital(where[0])}: {w}." for w, where in notes.items() if len(where) < len(stages)]
    return (*(sentence(words) for words in everywhere), *own)


QUESTION = Question(
    asks="Does activation density beat size: does a doubling of `top_m`, the values that a token reads, lower the "
    "loss by more than a doubling of `N_s`, the sparse parameters there are to read?",
    answer=answer,
    figures=("density", "size", "map"),
    behind=("predicted", "residuals", "curves"),
)
