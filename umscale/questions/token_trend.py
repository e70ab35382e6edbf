"""How the verdict on density and size moves as training lengthens.

δ_m and δ_N (see ``density_over_size``) are read at every budget by itself. The *trend* is their change per doubling
of tokens **within runs**: each run's losses are fitted by a line in log2 D, and the slopes of those lines are
compared between cells as losses are, so that points of one run, which err together, count once. Where δ_m − δ_N
reaches zero, the *turn*, is read from the law with products of m and N_s with D; its interval holds every D at which
the 95% interval of the difference holds zero (Fieller's, from the draws). A turn outside the budgets is an
extrapolation and says so.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from umscale.errors import UserError
from umscale.laws.fit import fit_rows
from umscale.laws.forms import LAWS
from umscale.laws.pairs import corners, paired_contrast, run_noise
from umscale.laws.uncertainty import Estimate, Uncertainty, bootstrap
from umscale.questions.density_over_size import Verdict as AtBudget
from umscale.questions.density_over_size import density_over_size, paired_estimate
from umscale.questions.question import LOSSES, Answer, Asked, Contrast, Question, with_beside
from umscale.results.columns import COLUMNS, Array
from umscale.results.table import Table, n_rows, numeric, parts, select_rows, text, where
from umscale.say.blocks import Block, Grid, Verdict
from umscale.say.estimates import both, fixed, interval, pair, significant
from umscale.say.labels import by_compensation, capital, held, loss_name, over_stages, when
from umscale.say.numbers import count

Word = Literal["supported", "contradicted", "inconclusive", "depends on training length"]
TURN_LAW = "trend"
_OCTAVES = 20.0
"""Of tokens beyond the budgets up to which a turn is looked for."""
_GRID = 0.02
"""Octaves between the values of D that are tried for the turn's interval."""
_AT_ONCE = 16
_NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Where the difference of both effects reaches zero."""

    reached: Literal["within", "beyond", "not reached"]
    """``within`` the budgets, ``beyond`` them, or nowhere within twenty octaves as far as the trend is known."""
    tokens: Estimate
    """NaN where it is not reached; an infinite end where nothing bounds it."""
    per_sparse_param: Estimate
    """Tokens per sparse parameter, at the reference N_s."""
    octaves_beyond: float
    """How far the value lies outside the budgets; 0 inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrend:
    """The answer for one stage, compensation and loss."""

    question: str = "token-trend"
    answer: Word
    direction: Literal["rises", "falls", ""]
    """Of the difference with tokens, where the trend's interval leaves out zero."""
    stage: str | None
    compensation: str | None
    loss: str
    tokens: tuple[float, ...]
    """The budgets."""
    tokens_per_sparse_param: tuple[float, ...]
    """The same over the reference N_s."""
    sparse_params: float
    """The reference N_s."""
    verdicts: tuple[AtBudget, ...]
    """At each budget by itself."""
    delta_m: Estimate | None
    """Change of δ_m per doubling of tokens, nats."""
    delta_n: Estimate | None
    difference: Estimate | None
    """Change of δ_m − δ_N per doubling of tokens."""
    freedom: float
    """Degrees of freedom of these intervals; 0 where there are none."""
    paired: Estimate | None
    """The same from neighbouring cells within seed blocks, without a law."""
    turn: Turn
    n_runs: int
    warnings: tuple[str, ...]

    def contrasts(self) -> list[Contrast]:
        """Whether the difference of both effects moves with tokens."""
        if self.difference is None:
            return []
        return [
            Contrast(
                asks="Does the difference of both change with training length?",
                known=f"{self.direction} with tokens" if self.direction else "not told",
                stage=self.stage,
                compensation=self.compensation,
                estimate=self.difference,
                freedom=self.freedom,
            )
        ]


def token_trends(table: Table, *, losses: tuple[str, ...] = LOSSES, seed: int = 0) -> tuple[TokenTrend, ...]:
    """The answer for every loss, compensation and stage a table holds; raises as ``token_trend`` does."""
    return tuple(
        token_trend(table, stage=stage, compensation=compensation, loss=loss, seed=seed)
        for loss, compensation, stage in parts(table, losses)
    )


def token_trend(
    table: Table,
    *,
    stage: str | None,
    compensation: str | None = None,
    loss: str = "loss",
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
) -> TokenTrend:
    """Answer for one stage, compensation and loss.

    Args:
        columns: the symbols m, N_s and D to columns.
        seed: of the bootstraps.

    Raises:
        UserError: fewer than two budgets, or a column that the table lacks.
    """
    tokens_column = {**COLUMNS, **(columns or {})}["D"]
    part = where(table, stage=stage, compensation=compensation)
    if tokens_column not in part:
        raise UserError(f"the table has no column {tokens_column!r}: a trend with tokens needs it")
    budgets = np.unique(numeric(part, tokens_column)[np.isfinite(numeric(part, loss))])
    if len(budgets) < 2:
        raise UserError("a trend with tokens needs two budgets of one study, or more")
    asked: dict[str, Any] = {"stage": stage, "compensation": compensation, "loss": loss, "columns": columns}
    at_budget = tuple(
        density_over_size(_take(part, numeric(part, tokens_column) == b), seed=seed, **asked) for b in budgets
    )
    # The verdict's own procedure on slopes in place of losses: what a run or a seed has in common at all budgets is in
    # no slope, and intervals cover as they do there.
    slopes = run_slopes(part, loss, tokens_column)
    lifted = density_over_size(_lifted(slopes, loss), seed=seed, **asked) if n_rows(slopes) else None
    within = lifted.from_law if lifted else None
    law, warnings = _law(part, stage, compensation, loss, columns, seed)
    size = law.fit.reference["N_s"] if law is not None else _NAN
    difference = within.difference if within else None
    direction: Literal["rises", "falls", ""] = ""
    if difference is not None and difference.has_interval and (difference.low > 0 or difference.high < 0):
        direction = "rises" if difference.low > 0 else "falls"
    turn = _turn(law, budgets, size, sure=bool(direction))
    return TokenTrend(
        answer=_answer(at_budget, direction, turn),
        direction=direction,
        stage=stage,
        compensation=compensation,
        loss=loss,
        tokens=tuple(budgets.tolist()),
        tokens_per_sparse_param=tuple((budgets / size).tolist()),
        sparse_params=size,
        verdicts=at_budget,
        delta_m=within.delta_m if within else None,
        delta_n=within.delta_n if within else None,
        difference=difference,
        freedom=lifted.freedom if lifted else 0.0,
        paired=_paired(_lifted(slopes, loss), loss, columns) if n_rows(slopes) else None,
        turn=turn,
        n_runs=n_rows(slopes),
        warnings=warnings,
    )


def run_slopes(table: Table, loss: str, tokens: str = "tokens") -> Table:
    """One row a run with several budgets: its slope against log2 of tokens in place of the loss, least squares.

    All other columns are those of the run's first row; ``tokens`` is the geometric mean of its budgets.
    """
    log_tokens, losses = np.log2(numeric(table, tokens)), numeric(table, loss)
    runs = text(table, "run_id") if "run_id" in table else _runs(table, tokens, loss)
    first, slope, middle = [], [], []
    for run in dict.fromkeys(runs.tolist()):
        mine = np.flatnonzero((runs == run) & np.isfinite(losses))
        if len(np.unique(log_tokens[mine])) < 2:
            continue
        x = log_tokens[mine] - log_tokens[mine].mean()
        first.append(int(mine[0]))
        slope.append(float(x @ losses[mine] / (x @ x)))
        middle.append(float(2 ** log_tokens[mine].mean()))
    out = {name: np.asarray(column)[first] for name, column in table.items()}
    return out | {loss: np.array(slope), tokens: np.array(middle)}


def _lifted(slopes: Table, loss: str) -> Table:
    """Slopes as losses, which are positive: a constant is in no difference."""
    values = numeric(slopes, loss)
    return dict(slopes) | {loss: values - values.min() + 1.0}


def _runs(table: Table, tokens: str, loss: str) -> Any:
    """What tells runs apart in a table without run ids: everything but tokens and losses."""
    kept = [name for name in table if name not in (tokens, loss, "budget", *LOSSES)]
    cells = [text(table, name) for name in kept]
    return np.array(["\0".join(row) for row in zip(*cells, strict=True)], dtype=str)


def _take(table: Table, rows: Any) -> Table:
    return {name: np.asarray(column)[rows] for name, column in table.items()}


def _law(
    part: Table,
    stage: str | None,
    compensation: str | None,
    loss: str,
    columns: Mapping[str, str] | None,
    seed: int,
) -> tuple[Uncertainty | None, tuple[str, ...]]:
    """The law that the turn is read from, with draws; None and why where the rows cannot give it."""
    try:
        rows = select_rows(part, [LAWS[TURN_LAW]], loss=loss, columns=columns)
        fit = fit_rows(
            rows,
            LAWS[TURN_LAW],
            columns={**COLUMNS, **(columns or {})},
            loss=loss,
            stage=stage,
            compensation=compensation,
        )
    except UserError as error:
        return None, (str(error),)
    lost = {"a", "b", "p", "q"} & {*fit.dropped, *fit.unidentified}
    if lost:
        return None, ("the design cannot tell how both effects change with tokens: no turn is read",)
    return bootstrap(fit, seed=seed), fit.warnings


def _turn(law: Uncertainty | None, budgets: Array, size: float, sure: bool) -> Turn:
    """Where the law's difference is zero: inside the budgets, or beyond them if there surely is a trend."""
    nowhere = Estimate(value=_NAN, low=_NAN, high=_NAN)
    nothing = Turn(reached="not reached", tokens=nowhere, per_sparse_param=nowhere, octaves_beyond=_NAN)
    if law is None or not len(law.draws):
        return nothing
    names = law.fit.law.coefficients
    a, b, p, q = (names.index(name) for name in ("a", "b", "p", "q"))
    level, slope = law.fit.vector[b] - law.fit.vector[a], law.fit.vector[q] - law.fit.vector[p]
    first, last = np.log2(budgets[[0, -1]] / law.fit.reference["D"])
    at = -level / slope if slope else np.inf
    if not (first - _OCTAVES <= at <= last + _OCTAVES) or not (sure or first <= at <= last):
        return nothing
    octaves = np.arange(first - _OCTAVES, last + _OCTAVES, _GRID)

    # As Fieller's set, the points where zero is inside the difference's interval. Quantiles of the draws' own turns
    # would not do: a slope that may be zero sends some of them to either end.
    def holds(where: Array) -> Any:
        low, high = law.interval(lambda c: (c[:, [b]] - c[:, [a]]) + (c[:, [q]] - c[:, [p]]) * where)
        return (low <= 0) & (high >= 0)

    ends = _stretch(octaves, holds, float(at))
    tokens = Estimate(
        value=float(law.fit.reference["D"] * 2.0**at),
        low=0.0 if ends[0] <= octaves[0] else float(law.fit.reference["D"] * 2.0 ** ends[0]),
        high=float("inf") if ends[1] >= octaves[-1] else float(law.fit.reference["D"] * 2.0 ** ends[1]),
    )
    beyond = float(max(first - at, at - last, 0.0))
    return Turn(
        reached="beyond" if beyond else "within",
        tokens=tokens,
        per_sparse_param=Estimate(value=tokens.value / size, low=tokens.low / size, high=tokens.high / size),
        octaves_beyond=beyond,
    )


def _stretch(octaves: Array, holds: Callable[[Array], Any], at: float) -> tuple[float, float]:
    """Ends of the stretch about ``at`` on which ``holds``, which is asked no further than it does, some at a time."""
    low = high = int(np.clip(np.searchsorted(octaves, at), 0, len(octaves) - 1))
    while low > 0:
        block = holds(octaves[max(0, low - _AT_ONCE) : low])[::-1]
        low -= int(np.argmin(block)) if not block.all() else len(block)
        if not block.all():
            break
    while high < len(octaves) - 1:
        block = holds(octaves[high + 1 : high + 1 + _AT_ONCE])
        high += int(np.argmin(block)) if not block.all() else len(block)
        if not block.all():
            break
    return float(octaves[low]), float(octaves[high])


def _paired(slopes: Table, loss: str, columns: Mapping[str, str] | None) -> Estimate | None:
    """The trend of the difference from neighbouring cells alone; None where the grid holds none."""
    try:
        rows = select_rows(slopes, [LAWS["additive"]], loss=loss, columns=columns)
    except UserError:
        return None
    contrast = paired_contrast(rows, corners)
    variance, freedom = run_noise(rows)
    return paired_estimate(contrast, variance, freedom)[0] if contrast and freedom else None


def _answer(verdicts: tuple[AtBudget, ...], direction: str, turn: Turn) -> Word:
    """One word over all budgets: theirs where they agree, else that it depends on training length."""
    said = [v.answer for v in verdicts]
    decided = set(said) - {"inconclusive"}
    if len(decided) > 1 or (direction and turn.reached == "within"):
        return "depends on training length"
    # The longest runs are the nearest to those that anybody asks about.
    return said[-1]


# -- the answer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TrendAnswer(Answer):
    """Trend, turn and verdicts by budget, for every loss, compensation and stage."""

    found: tuple[TokenTrend, ...]

    def to_json(self, **context: Any) -> list[dict[str, Any]]:
        """The answers as they are."""
        return [asdict(one) for one in self.found]

    def blocks(self) -> list[Block]:
        """A verdict for each compensation, and a table a stage; averaged weights in tables alone."""
        blocks: list[Block] = []
        first, *others = dict.fromkeys(one.loss for one in self.found)
        tones = {"supported": "yes", "contradicted": "no"}
        for compensation, stages in by_compensation(self.found, first).items():
            answers = {one.answer for one in stages.values()}
            blocks.append(
                Verdict(
                    verdict=f"{capital(over_stages({s: v.answer for s, v in stages.items()}))} "
                    f"({held(compensation)})",
                    tone=tones.get(next(iter(answers)), "open") if len(answers) == 1 else "open",
                    text=" ".join(trend_sentence(one) for one in reversed(stages.values())),
                )
            )
            blocks += [_grid(one) for one in reversed(stages.values())]
            for loss in others:
                beside = by_compensation(self.found, loss).get(compensation, {})
                blocks += [_grid(one) for one in reversed(beside.values())]
        return blocks

    def contrasts(self) -> list[Contrast]:
        """How the difference moves with tokens, at every stage and compensation."""
        return [c for one in self.found if one.loss == self.found[0].loss for c in one.contrasts()]

    def limits(self) -> list[str]:
        """How far a turn can be believed."""
        far = [one.turn.octaves_beyond for one in self.found if one.turn.reached == "beyond"]
        said = ["A trend is a line in log tokens: that both effects saturate, it does not know."]
        if far:
            said.append(
                f"Turns lie up to {max(far):.1f} octaves outside the budgets: they are extrapolated, not measured."
            )
        return said


def answer(table: Table, asked: Asked) -> TrendAnswer:
    """How the verdict moves with tokens; raises ``UserError`` where a table has one budget."""
    found = token_trends(table, losses=with_beside(asked.losses), seed=asked.seed)
    return TrendAnswer(found=tuple(one for one in found if asked.stage in (None, one.stage)))


def trend_sentence(one: TokenTrend, *, placed: bool = True) -> str:
    """The trend at one stage in two sentences: what each doubling of tokens does, and where it leads.

    ``placed`` begins with the stage.
    """
    place = f"{when(one.stage)}, " if placed else ""
    if one.difference is None:
        return capital(f"{place}the runs give no trend.")
    moves = {
        "": "no trend with tokens is sure",
        "falls": "the difference falls with tokens",
        "rises": "the difference rises with tokens",
    }[one.direction]
    spans = (
        f"between {count(one.tokens[0])} and {count(one.tokens[-1])} tokens, "
        f"{significant(one.tokens_per_sparse_param[0], 2)} to {significant(one.tokens_per_sparse_param[-1], 2)} "
        "a sparse parameter"
    )
    said = capital(
        f"{place}{spans}, {moves}: {both(one.difference)} nats per doubling, `top_m` {both(one.delta_m)} and "
        f"`N_s` {both(one.delta_n)}."
    )
    return f"{said} {_turn_sentence(one.turn)}"


def _turn_sentence(turn: Turn) -> str:
    if turn.reached == "not reached":
        return "Zero is not reached within what is known."
    ends = f"[{count(turn.tokens.low)}, {'∞' if np.isinf(turn.tokens.high) else count(turn.tokens.high)}]"
    place = "" if turn.reached == "within" else f", {turn.octaves_beyond:.1f} octaves outside the budgets"
    per = f"{significant(turn.per_sparse_param.value, 2)} a sparse parameter"
    return f"It reaches zero at {count(turn.tokens.value)} tokens {ends}{place}, {per}."


def _grid(one: TokenTrend) -> Grid:
    rows = [
        (
            count(tokens),
            significant(ratio, 2),
            verdict.answer,
            *(cell for name in ("delta_m", "delta_n", "difference") for cell in _contrast(verdict, name)),
        )
        for tokens, ratio, verdict in zip(one.tokens, one.tokens_per_sparse_param, one.verdicts, strict=True)
    ]
    trend = [cell for x in (one.delta_m, one.delta_n, one.difference) for cell in pair(x)]
    rows.append(("per doubling", "", one.direction or "–", *trend))
    notes = (
        [
            f"From neighbouring cells, without a law: {fixed(one.paired.value)} {interval(one.paired)} per doubling."
        ]
        if (one.paired is not None)
        else []
    )
    return Grid(
        caption=f"What a doubling buys by budget, {when(one.stage)}, {held(one.compensation)}, {loss_name(one.loss)}: "
        "nats per token, 95% intervals",
        head=(
            *("tokens", "per sparse parameter", "verdict"),
            *("`top_m`", "interval", "`N_s`", "interval", "difference", "interval"),
        ),
        sides="rrlrrrrrr",
        rows=tuple(rows),
        notes=(*notes, f"{one.n_runs} runs; `N_s` {count(one.sparse_params)} at the reference.", *one.warnings),
    )  # fmt: skip


def _contrast(verdict: AtBudget, name: str) -> tuple[str, str]:
    found = verdict.from_law or verdict.from_pairs
    return pair(None if found is None else getattr(found, name))


QUESTION = Question(
    asks="How does the verdict on density and size move as training lengthens, and where does it turn?",
    answer=answer,
    figures=("trend", "slices"),
    behind=("density", "size", "curves"),
)
