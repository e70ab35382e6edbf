"""How to share a sparse budget between experts and memories, and what more rows of a token-addressed memory buy.

Of a model's inactive parameters (``umscale.design.allocation``) a share x lies in product-key memory, y in
token-addressed memory and the rest in routed experts. At equal FLOPs and equal total parameters P, within seed blocks,

    L = c0 + a·x + b·x² (+ f·y + g·y² + k·x·y) + d·log2(D/D0) + e·log2(P/P0)

on the shares that cells achieved. The optimum is the least point among the shares measured, ends included. Every
bootstrap draw has one, and where they lie decides: inside, but for 2.5% at each end, it is an *interior optimum*; 97.5%
at one end, *an end*; else *inconclusive*, as is a surface that the cells contradict or that its outermost cells carry.
Beside it: arXiv 2601.07372 found 75-80% of the inactive parameters best with experts, the rest in n-gram tables,
without an interval.

Where no share varies but rows do (``model.ngram.rows``), the question is the *slot law*: is the loss linear in the
logarithm of rows, with the largest table held out, or curved?
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from umscale.design.allocation import SHARE_TOLERANCE, SHARES, shares_of
from umscale.errors import UserError
from umscale.laws.fit import FitResult, fit_law, lack_of_fit
from umscale.laws.forms import LocalLaw, Slope, evaluate
from umscale.laws.uncertainty import Estimate, Uncertainty, bootstrap
from umscale.questions.question import LOSSES, Answer, Asked, Contrast, Question, with_beside
from umscale.questions.simulate import Rate
from umscale.results.columns import Array
from umscale.results.table import Table, levels, n_rows, numeric, parts, text, where
from umscale.say.blocks import Block, Grid, Paragraph, Verdict
from umscale.say.estimates import both, counted, listed, pair, share
from umscale.say.labels import by_compensation, capital, held, loss_name, over_stages, sentence, when
from umscale.say.numbers import count
from umscale.spec import read_run

Word = Literal["interior optimum", "an end", "inconclusive"]
SlotWord = Literal["log-linear", "curved", "inconclusive"]

PARTS: Mapping[str, str] = {
    "experts": "experts",
    "memory_share": "product-key memory",
    "ngram_share": "n-gram memory",
}
"""What is shared out; the last two are axes and columns."""
PAPER_SHARE = (0.20, 0.25)
"""Of the inactive parameters in n-gram memory, where Engram's experts have 0.75 to 0.80 (arXiv 2601.07372)."""

_ROWS = "ngram_rows"
_SYMBOLS = {"X": "2**memory_share", "Y": "2**ngram_share", "P": "total_params, by level"}
_VARIES = 0.05  # shares that differ by less are one
_SAME = 1.02  # sizes and FLOPs within this factor are one
_MISFIT = 0.05  # p of the lack of fit below which the surface is not what was measured
_TAIL = 0.025  # of the draws at an end, above which the optimum's interval covers it
_DRAWS = 4000
_STEPS = {1: 200, 2: 40}  # of the lattice along a share, by how many vary


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The point measured that gives most to one part."""

    part: str
    share: float
    """Of the inactive parameters, in that part."""
    cost: Estimate
    """Its loss above the optimum's, nats per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """The fitted loss over the shares, for a figure: at mean seed block, tokens and total."""

    shares: tuple[tuple[float, ...], ...]
    """[points][parts], of the parts shared out; experts first."""
    loss: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    inside: tuple[bool, ...]
    """Whether the optimum may lie there: the points that hold 95% of the draws' optima."""
    cells: tuple[tuple[float, ...], ...]
    """Shares of every cell, and last its loss as the law would have it at the same block, tokens and total."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtBudget:
    """The answer from the records of one budget alone."""

    tokens: float
    answer: Word
    best: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The best shares for one stage, compensation and loss."""

    question: str = "allocation"
    answer: Word
    reason: str
    parts: tuple[str, ...]
    """Keys of ``PARTS``, of those shared out."""
    stage: str | None
    compensation: str | None
    loss: str
    best: Mapping[str, Estimate]
    """Part → its share at the optimum, with a 95% interval; empty where nothing could be fitted."""
    freedom: float
    """Degrees of freedom of these intervals; 0 where there are none."""
    ends: tuple[End, ...]
    paper_share: tuple[float, float]
    """Of memory, beside the best."""
    paper_excess: Estimate | None
    """Loss at the middle of the paper's shares above the optimum's; None for three parts."""
    misfit_p: float
    """Of cells against the surface."""
    by_budget: tuple[AtBudget, ...]
    surface: Surface | None
    n_runs: int
    n_cells: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLaw:
    """Loss against the rows of a head's table at a fixed backbone, for one stage, compensation and loss."""

    question: str = "allocation"
    answer: SlotWord
    reason: str
    stage: str | None
    compensation: str | None
    loss: str
    per_doubling: Estimate | None
    """Change of the loss per doubling of rows, nats per token."""
    curvature: Estimate | None
    """Nats per squared octave; positive where further rows buy less."""
    held_out: Estimate | None
    """The largest table's loss minus what a line through all others says of it."""
    rows: tuple[float, ...]
    cells: tuple[tuple[float, float], ...]
    """Rows and loss at mean seed block and tokens, as the line's residuals have it."""
    line: tuple[tuple[float, float, float, float], ...]
    """Rows, loss on the line, and its interval."""
    n_runs: int
    warnings: tuple[str, ...]


# -- the shares -----------------------------------------------------------------------------------------------


def with_shares(table: Table) -> dict[str, Any]:
    """``table`` with achieved shares and rows of n-gram tables from each run's spec, where it lacks these columns.

    Raises ``UserError`` for a table with neither shares nor specs.
    """
    out = dict(table)
    if any(name in table for name in (*SHARES, _ROWS)):
        return out | {name: np.zeros(n_rows(table)) for name in SHARES if name not in table}
    if "spec" not in table:
        raise UserError(
            f"the table has no column {' or '.join(SHARES)}, nor specs that would tell: this question needs shares"
        )
    specs = text(table, "spec")
    models = {spec: read_run(spec).model for spec in levels(table, "spec")}
    found = {
        spec: (*shares_of(model).values(), float(model.ngram.rows) if model.ngram else np.nan)
        for spec, model in models.items()
    }
    columns = np.array([found.get(spec, (np.nan,) * 3) for spec in specs.tolist()]).reshape(-1, 3)
    return out | dict(zip((*SHARES, _ROWS), columns.T, strict=True))


def _varying(table: Table) -> tuple[str, ...]:
    return tuple(name for name in SHARES if _spread(numeric(table, name)) > _VARIES)


def _spread(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.ptp(known)) if len(known) else 0.0


def _by_level(values: Array) -> Array:
    """Sizes with those within 2% of the next made equal: a solver only comes near a total."""
    order = np.argsort(values)
    codes = np.empty(len(values), dtype=np.int64)
    codes[order] = np.cumsum(np.diff(np.log(values[order]), prepend=np.nan) > np.log(_SAME))
    return np.array([np.exp(np.log(values[codes == code]).mean()) for code in codes])


def _columns(table: Table) -> dict[str, Any]:
    """The table with the law's columns: local laws take log2 of each, and shares may be zero."""
    out = dict(table) | {f"2**{name}": 2.0 ** numeric(table, name) for name in SHARES}
    if "total_params" in table:
        out[_SYMBOLS["P"]] = _by_level(numeric(table, "total_params"))
    return out


def _law(table: Table, names: tuple[str, ...]) -> LocalLaw:
    slopes = {"memory_share": (("a", "X"), ("b", "XX")), "ngram_share": (("f", "Y"), ("g", "YY"))}
    chosen = [one for name in names for one in slopes[name]] + ([("k", "XY")] if len(names) > 1 else [])
    chosen += [("d", "D")] if "tokens" in table else []
    totals = np.unique(numeric(table, _SYMBOLS["P"])) if "total_params" in table else ()
    chosen += [("e", "P")] if len(totals) > 1 else []
    return LocalLaw(
        name="allocation",
        source="this project",
        formula="c0 + a·x + b·x² + f·y + g·y² + k·x·y + d·log2(D/D0) + e·log2(P/P0)",
        slopes=tuple(Slope(coefficient=name, symbols=tuple(symbols)) for name, symbols in chosen),
    )


def _fit(table: Table, names: tuple[str, ...], loss: str) -> FitResult:
    """Raises ``UserError`` where the cells cannot tell curved from straight."""
    law = _law(table, names)
    fit = fit_law(table, law, loss=loss, columns={s: c for s, c in _SYMBOLS.items() if s in law.symbols})
    if {"a", "b", "f", "g", "k"} & {*fit.dropped, *fit.unidentified}:
        few = "three shares" if len(names) == 1 else "six points of the simplex"
        raise UserError(f"an optimum needs {few} or more")
    return fit


# -- the optimum ----------------------------------------------------------------------------------------------


def _lattice(table: Table, names: tuple[str, ...]) -> Array:
    """Shares [points, parts], experts first, over what was measured."""
    measured = np.stack([numeric(table, name) for name in names], axis=1)
    measured = measured[np.isfinite(measured).all(axis=1)]
    measured = np.hstack([1 - measured.sum(axis=1, keepdims=True), measured])
    low, high = measured.min(axis=0), measured.max(axis=0)
    steps = np.arange(_STEPS[len(names)] + 1) / _STEPS[len(names)]
    if len(names) == 1:
        memory = low[1] + steps * (high[1] - low[1])
        return np.stack([1 - memory, memory], axis=1)
    x, y = (axis.reshape(-1) for axis in np.meshgrid(steps, steps, indexing="ij"))
    points = np.stack([1 - x - y, x, y], axis=1)
    near = (points >= low - SHARE_TOLERANCE) & (points <= high + SHARE_TOLERANCE)
    return np.abs(points[near.all(axis=1) & (points[:, 0] > -1e-9)])  # no −0


def _losses(fit: FitResult, coefficients: Array, names: tuple[str, ...], points: Array) -> Array:
    """Loss [..., points] at shares [points, parts], tokens and total at their means."""
    values = {s: np.full(len(points), reference) for s, reference in fit.reference.items()}
    for i, name in enumerate(names):
        values["X" if name == "memory_share" else "Y"] = 2.0 ** points[:, i + 1]
    return evaluate(fit.law, coefficients, values, fit.reference)


def _ends(points: Array, parts: tuple[str, ...]) -> list[tuple[str, Any, bool]]:
    """Every end: its words, the points there [points], and whether it is one of the parts alone or without one."""
    found = []
    for i, part in enumerate(parts):
        least, most = points[:, i].min(), points[:, i].max()
        # Of two parts one has nothing where the other has all.
        words = f"all in {PARTS[parts[1 - i]]}" if len(parts) == 2 else f"none in {PARTS[part]}"
        found.append((words, points[:, i] <= least + 1e-9, bool(least <= SHARE_TOLERANCE)))
        if len(parts) > 2 and most < 1 - SHARE_TOLERANCE:
            found.append((f"{most:.0%} in {PARTS[part]}", points[:, i] >= most - 1e-9, False))
    return found


def _carrying(table: Table, names: tuple[str, ...], loss: str, points: Array) -> str:
    """The part whose outermost cells alone make an optimum: the others' least point is at an end; or nothing."""
    parts = ("experts", *names)
    columns = np.stack([numeric(table, name) for name in names], axis=1)
    columns = np.hstack([1 - columns.sum(axis=1, keepdims=True), columns])
    for i, part in enumerate(parts):
        rest = columns[:, i] < np.nanmax(columns[:, i]) - SHARE_TOLERANCE
        try:
            fit = _fit({name: np.asarray(c)[rest] for name, c in table.items()}, names, loss)
        except UserError:
            return part
        at = int(np.argmin(_losses(fit, fit.vector, names, points)))
        if any(mask[at] for _, mask, _ in _ends(points, parts)):
            return part
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Optimum:
    """Where the fitted loss is least, and where every draw's is."""

    uncertainty: Uncertainty
    names: tuple[str, ...]
    points: Array
    at: int
    drawn: Any  # index of each draw's least point [draws]

    @property
    def best(self) -> tuple[Estimate, ...]:
        """Of every part, experts first."""
        low, high = np.quantile(self.points[self.drawn], [_TAIL, 1 - _TAIL], axis=0)
        value = self.points[self.at]
        return tuple(
            Estimate(value=float(v), low=float(a), high=float(b))
            for v, a, b in zip(value, low, high, strict=True)
        )

    def excess(self, share: Array) -> Estimate:
        """Loss at one point of shares [parts] above that at the optimum."""
        both_points = np.stack([share, self.points[self.at]])

        def above(c: Array) -> Array:
            losses = _losses(self.uncertainty.fit, c, self.names, both_points)
            return np.asarray(losses[..., 0] - losses[..., 1])

        return self.uncertainty.estimate(above)


def _optimum(table: Table, names: tuple[str, ...], loss: str, seed: int) -> _Optimum:
    """Raises ``UserError`` where nothing can be fitted, or nothing is left over for an interval."""
    found = bootstrap(_fit(table, names, loss), n_draws=_DRAWS, seed=seed)
    if not len(found.draws):
        raise UserError(found.warnings[0])
    points = _lattice(table, names)
    drawn = np.argmin(_losses(found.fit, found.draws, names, points), axis=1)
    at = int(np.argmin(_losses(found.fit, found.fit.vector, names, points)))
    return _Optimum(uncertainty=found, names=names, points=points, at=at, drawn=drawn)


def _decide(table: Table, found: _Optimum, loss: str) -> tuple[Word, str]:
    """The verdict and why."""
    names, points = found.names, found.points
    parts = ("experts", *names)
    f, p = lack_of_fit(found.uncertainty.fit)
    if p < _MISFIT:
        return "inconclusive", (
            f"cells lie further from the surface than their runs from each other (F = {f:.1f}, p = {p:.3f}): its "
            "least point is no measurement"
        )
    at_end = [(words, float(mask[found.drawn].mean()), real) for words, mask, real in _ends(points, parts)]
    if sure := [(words, real) for words, drawn, real in at_end if drawn >= 1 - _TAIL]:
        words = listed([words for words, _ in sure])
        if all(real for _, real in sure):
            return "an end", f"the loss is least with {words}"
        return "inconclusive", f"the loss still falls where measuring ended: {words}"
    if covered := [words for words, drawn, _ in at_end if drawn > _TAIL]:
        return "inconclusive", f"the interval of the optimum covers an end: {listed(covered)}"
    if len(names) == 1 and lack_of_fit_freedom(table, names) < 1:
        return "inconclusive", "three shares lie on a parabola whatever the truth: nothing tests it"
    if part := _carrying(table, names, loss, points):
        return (
            "inconclusive",
            f"the optimum rests on the outermost cells: without those of most {PARTS[part]} the least point is an end",
        )
    return "interior optimum", "the interval of the optimum leaves out every end"


def lack_of_fit_freedom(table: Table, names: tuple[str, ...]) -> int:
    """Levels of one share beyond the three that a parabola takes; levels differ by more than the tolerance."""
    shares = np.sort(numeric(table, names[0]))
    return 1 + int((np.diff(shares[np.isfinite(shares)]) > SHARE_TOLERANCE).sum()) - 3


def _surface(found: _Optimum) -> Surface:
    fit, points = found.uncertainty.fit, found.points
    low, high = found.uncertainty.interval(lambda c: _losses(fit, c, found.names, points))
    votes = np.bincount(found.drawn, minlength=len(points))
    order = np.argsort(-votes, kind="stable")
    inside = np.zeros(len(points), dtype=bool)
    inside[order[: 1 + int(np.searchsorted(np.cumsum(votes[order]), 0.95 * len(found.drawn)))]] = True
    own = np.stack(
        [np.log2(fit.rows.values["X" if n == "memory_share" else "Y"]) for n in found.names], axis=1
    )
    own = np.hstack([1 - own.sum(axis=1, keepdims=True), own])
    level = _losses(fit, fit.vector, found.names, own) + fit.residuals
    rows = [fit.rows.cell == cell for cell in np.unique(fit.rows.cell)]
    return Surface(
        shares=tuple(map(tuple, points.tolist())),
        loss=tuple(_losses(fit, fit.vector, found.names, points).tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        inside=tuple(inside.tolist()),
        cells=tuple((*own[r].mean(axis=0).tolist(), float(level[r].mean())) for r in rows),
    )


def allocation(
    table: Table,
    *,
    stage: str | None,
    compensation: str | None = None,
    loss: str = "loss",
    seed: int = 0,
) -> Allocation:
    """The best shares among the cells of a study that varies them; what data cannot decide is ``inconclusive``.

    Args:
        seed: of the bootstrap.

    Raises:
        UserError: no share varies, the table has no shares, or mixes stages or compensations.
    """
    part = _columns(where(with_shares(table), stage=stage, compensation=compensation))
    names = _varying(part)
    if not names:
        raise UserError(f"no share varies: a study of this question has the axis {' or '.join(SHARES)}")
    _require_one_place(part)
    asked: dict[str, Any] = {"parts": ("experts", *names), "stage": stage, "compensation": compensation}
    asked |= {"loss": loss, "paper_share": PAPER_SHARE}
    try:
        found = _optimum(part, names, loss, seed)
    except UserError as error:
        return _undecided(part, asked, str(error))
    answer, reason = _decide(part, found, loss)
    fit, middle = found.uncertainty.fit, float(np.mean(PAPER_SHARE))
    tops = [int(np.argmax(found.points[:, i])) for i in range(len(names) + 1)]
    return Allocation(
        **asked,
        answer=answer,
        reason=reason,
        best=dict(zip(asked["parts"], found.best, strict=True)),
        freedom=found.uncertainty.degrees_of_freedom,
        ends=tuple(
            End(part=name, share=float(found.points[t, i]), cost=found.excess(found.points[t]))
            for i, (name, t) in enumerate(zip(asked["parts"], tops, strict=True))
        ),
        paper_excess=found.excess(np.array([1 - middle, middle])) if len(names) == 1 else None,
        misfit_p=lack_of_fit(fit)[1],
        by_budget=_by_budget(part, names, loss, seed),
        surface=_surface(found),
        n_runs=len(np.unique(fit.rows.run)),
        n_cells=len(np.unique(fit.rows.cell)),
        warnings=(*_held_equal(part), *fit.warnings, *found.uncertainty.warnings),
    )


def _undecided(part: Table, asked: dict[str, Any], reason: str) -> Allocation:
    """Nothing could be fitted."""
    return Allocation(
        **asked,
        answer="inconclusive",
        reason=reason,
        best={},
        freedom=0.0,
        ends=(),
        paper_excess=None,
        misfit_p=float("nan"),
        by_budget=(),
        surface=None,
        n_runs=len(levels(part, "run_id")),
        n_cells=0,
        warnings=_held_equal(part),
    )


def _require_one_place(part: Table) -> None:
    for name in ("stage", "compensation"):
        if len(levels(part, name)) > 1:
            raise UserError(f"the table mixes {name} {' and '.join(levels(part, name))}: choose one")


def _by_budget(table: Table, names: tuple[str, ...], loss: str, seed: int) -> tuple[AtBudget, ...]:
    """The same from each budget alone, where there are several."""
    tokens = numeric(table, "tokens") if "tokens" in table else np.zeros(0)
    budgets = np.unique(tokens[np.isfinite(tokens)])
    out = []
    for budget in budgets if len(budgets) > 1 else ():
        rows = {name: np.asarray(column)[tokens == budget] for name, column in table.items()}
        try:
            found = _optimum(rows, names, loss, seed)
        except UserError:
            out.append(AtBudget(tokens=float(budget), answer="inconclusive", best={}))
            continue
        best = dict(zip(("experts", *names), found.best, strict=True))
        out.append(AtBudget(tokens=float(budget), answer=_decide(rows, found, loss)[0], best=best))
    return tuple(out)


def _held_equal(table: Table) -> tuple[str, ...]:
    """A sentence for each quantity that is not shown to be equal between cells."""
    said = []
    for name, level, words in (
        ("flops_per_token", None, "forward FLOPs"),
        ("total_params", _SYMBOLS["P"], "total parameters"),
    ):
        if name not in table:
            said.append(f"the table has no column {name}: nothing shows that cells have equal {words}")
            continue
        values = numeric(table, name) / (1.0 if level is None else numeric(table, level))
        values = values[np.isfinite(values)]
        if len(values) and values.max() > _SAME * values.min():
            said.append(f"{words} differ {values.max() / values.min():.2f}-fold between cells")
    return tuple(said)


# -- the slot law ---------------------------------------------------------------------------------------------


def _slot_fit(table: Table, loss: str, *bent: tuple[str, str]) -> Uncertainty:
    """The line of log2 rows, and what is ``bent`` about it (coefficient, symbols), with draws."""
    chosen = [("a", "R"), *bent, *([("d", "D")] if "tokens" in table else [])]
    law = LocalLaw(
        name="slots",
        source="this project; arXiv 2601.07372, section 3",
        formula="c0 + a·log2(R/R0) + b·log2(R/R0)² + d·log2(D/D0)",
        slopes=tuple(Slope(coefficient=name, symbols=tuple(symbols)) for name, symbols in chosen),
    )
    columns = {"R": _ROWS} | ({"H": "held out"} if any("H" in symbols for _, symbols in bent) else {})
    return bootstrap(fit_law(table, law, loss=loss, columns=columns), n_draws=_DRAWS)


def _one(found: Uncertainty, name: str) -> Estimate:
    k = found.fit.law.coefficients.index(name)
    return found.estimate(lambda c: c[..., k])


def slot_law(
    table: Table, *, stage: str | None, compensation: str | None = None, loss: str = "loss"
) -> SlotLaw:
    """Loss against rows at a fixed backbone; raises ``UserError`` for fewer than four sizes of tables."""
    part = where(with_shares(table), stage=stage, compensation=compensation)
    sizes = numeric(part, _ROWS) if _ROWS in part else np.zeros(0)
    rows = np.unique(sizes[np.isfinite(sizes)])
    if len(rows) < 4:
        raise UserError(
            f"the slot law needs tables of four sizes (axis model.ngram.rows) or more, not {len(rows)}: the largest is "
            "held out"
        )
    # log2 of this column is 1 where the largest is: its coefficient is what a line through the others misses there.
    part = part | {"held out": np.where(sizes == rows[-1], 2.0, 1.0)}
    line, bent, out = (_slot_fit(part, loss, *more) for more in ((), (("b", "RR"),), (("h", "H"),)))
    slope, curvature, held_out = _one(line, "a"), _one(bent, "b"), _one(out, "h")
    gain = -_one(out, "a").value * float(np.log2(rows[-1] / rows[-2]))
    answer, reason = _slot_answer(slope, curvature, held_out, gain, lack_of_fit(line.fit)[1])
    fit = line.fit
    values = {s: np.full(len(rows), reference) for s, reference in fit.reference.items()} | {"R": rows}
    low, high = line.band(values)
    at_means = {s: np.full(fit.n_rows, reference) for s, reference in fit.reference.items()}
    level = fit.predict(at_means | {"R": fit.rows.values["R"]}) + fit.residuals
    tokens = numeric(part, "tokens") if "tokens" in part else np.array([np.inf])
    few = (
        (
            f"tables of {count(rows[-1])} rows a head and {count(tokens.min())} training tokens: some are never read",
        )
        if rows[-1] > tokens.min()
        else ()
    )
    return SlotLaw(
        answer=answer,
        reason=reason,
        stage=stage,
        compensation=compensation,
        loss=loss,
        per_doubling=slope,
        curvature=curvature,
        held_out=held_out,
        rows=tuple(rows.tolist()),
        cells=tuple((float(r), float(level[fit.rows.values["R"] == r].mean())) for r in rows),
        line=tuple(zip(*(a.tolist() for a in (rows, fit.predict(values), low, high)), strict=True)),
        n_runs=len(np.unique(fit.rows.run)),
        warnings=(*few, *fit.warnings, *line.warnings),
    )


def _slot_answer(
    slope: Estimate, curvature: Estimate, held_out: Estimate, gain: float, misfit_p: float
) -> tuple[SlotWord, str]:
    """``gain`` is what the line says that the largest table has over the next."""
    if not (slope.has_interval and curvature.has_interval and held_out.has_interval):
        return "inconclusive", "too few runs for intervals"
    if curvature.low > 0 or curvature.high < 0:
        return (
            "curved",
            f"further rows buy {'less' if curvature.low > 0 else 'more'}: the curvature's interval says so",
        )
    if slope.low <= 0 <= slope.high:
        return "inconclusive", "more rows buy nothing that these runs show"
    if misfit_p < _MISFIT:
        return (
            "inconclusive",
            f"cells lie further from the line than their runs from each other (p = {misfit_p:.3f})",
        )
    if not held_out.low <= 0 <= held_out.high:
        return "inconclusive", "the largest table, held out, misses the line, yet no curvature is sure"
    if held_out.low <= gain <= held_out.high:
        return "inconclusive", "the largest table, held out, is as well explained by no further gain"
    return "log-linear", "a line through the others predicts the largest table, and no curvature is seen"


# -- the answer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationAnswer(Answer):
    """Best shares or the slot law, for every loss, compensation and stage."""

    found: tuple[Allocation, ...]
    slots: tuple[SlotLaw, ...]

    def to_json(self, **context: Any) -> list[dict[str, Any]]:
        """The answers as they are."""
        return [*map(asdict, self.found), *map(asdict, self.slots)]

    def contrasts(self) -> list[Contrast]:
        """Whether each end costs more than the best share."""
        first = self.found[0].loss if self.found else ""
        return [
            Contrast(
                asks=f"Is {end.share:.0%} in {PARTS[end.part]} worse than the best share?",
                known=one.answer,
                stage=one.stage,
                compensation=one.compensation,
                estimate=end.cost,
                freedom=one.freedom,
            )
            for one in self.found
            if one.loss == first
            for end in one.ends
            if end.cost.value > 0  # the optimum itself lies at the other
        ]

    def blocks(self) -> list[Block]:
        """A verdict and tables for each compensation; averaged weights in a sentence beside raw ones."""
        blocks: list[Block] = []
        both_kinds: tuple[Sequence[Any], ...] = (self.found, self.slots)
        for found in filter(None, both_kinds):
            first, *others = dict.fromkeys(one.loss for one in found)
            slots = found is self.slots
            for compensation, stages in by_compensation(found, first).items():
                said = {s: one.answer for s, one in stages.items()}
                sure = len(set(said.values())) == 1 and "inconclusive" not in said.values()
                lead = "Loss against rows" if slots else "The best share"
                blocks.append(
                    Verdict(
                        verdict=f"{lead}: {over_stages(said)} ({held(compensation)})",
                        tone="yes" if sure else "open",
                        text=" ".join(
                            (slot_sentence if slots else best_sentence)(v) for v in reversed(stages.values())
                        ),
                    )
                )
                blocks += (
                    [_slot_grid(stages)] if slots else [_grid(compensation, stages), *_budget_grids(stages)]
                )
            for loss in others:
                for compensation, stages in by_compensation(found, loss).items():
                    said_of = "; ".join(f"{when(s)} {one.answer}{_shortly(one)}" for s, one in stages.items())
                    blocks.append(
                        Paragraph(text=f"With {loss_name(loss)} ({held(compensation)}): {said_of}.")
                    )
        return blocks

    def limits(self) -> list[str]:
        """What shares do not tell."""
        said = ["Rates are the study file's at every share: a part whose rate is off looks worse than it is."]
        if self.found:
            said.append(
                "A parabola has its least point at one share; that the true curve is none shows only where cells "
                "contradict it."
            )
        return said


def answer(table: Table, asked: Asked) -> AllocationAnswer:
    """The best shares, or the slot law where rows alone vary; raises as ``allocation`` and ``slot_law`` do."""
    return allocations(table, losses=with_beside(asked.losses), stage=asked.stage, seed=asked.seed)


def allocations(
    table: Table, *, losses: tuple[str, ...] = LOSSES, stage: str | None = None, seed: int = 0
) -> AllocationAnswer:
    """An answer for every loss, compensation and stage (or one) of a table."""
    table = with_shares(table)
    places = [place for place in parts(table, losses) if stage in (None, place[2])]
    if not _varying(table) and _ROWS in table and _spread(numeric(table, _ROWS)):
        laws = tuple(slot_law(table, stage=s, compensation=c, loss=loss) for loss, c, s in places)
        return AllocationAnswer(found=(), slots=laws)
    found = tuple(allocation(table, stage=s, compensation=c, loss=loss, seed=seed) for loss, c, s in places)
    return AllocationAnswer(found=found, slots=())


def best_sentence(one: Allocation) -> str:
    """The optimum of one stage, what the ends cost, and why the verdict."""
    place = capital(when(one.stage))
    if not one.best:
        return f"{place}: {one.reason}."
    best = listed([f"{share(e)} in {PARTS[name]}" for name, e in one.best.items()])
    ends = listed([f"{end.share:.0%} in {PARTS[end.part]} {both(end.cost)}" for end in one.ends])
    return f"{place}, the loss is least with {best}; the ends cost, in nats per token: {ends}. {sentence(one.reason)}"


def slot_sentence(law: SlotLaw) -> str:
    """The slot law of one stage."""
    return (
        f"{capital(when(law.stage))}, a doubling of rows changes the loss by {both(law.per_doubling)} nats per token; "
        f"the largest table, held out, lies {both(law.held_out)} from the line. {sentence(law.reason)}"
    )


def _shortly(one: Allocation | SlotLaw) -> str:
    if isinstance(one, SlotLaw):
        return f", {both(one.per_doubling)} a doubling"
    return "".join(f", {share(e)} {PARTS[name]}" for name, e in one.best.items() if name != "experts")


def _grid(compensation: str | None, stages: Mapping[str | None, Allocation]) -> Grid:
    first = next(iter(stages.values()))

    def row(title: str, read: Any, digits: int) -> tuple[str, ...]:
        return title, *(cell for one in stages.values() for cell in pair(read(one), digits))

    rows = [row(f"best share, {PARTS[p]}", lambda one, p=p: one.best.get(p), 3) for p in first.parts]
    for i, end in enumerate(first.ends):
        title = f"{end.share:.0%} in {PARTS[end.part]}, above the least, nats"
        rows.append(row(title, lambda one, i=i: one.ends[i].cost if len(one.ends) > i else None, 4))
    if len(first.parts) == 2:
        low, high = first.paper_share
        title = f"Engram's {low:.0%}–{high:.0%} in memory, above the least, nats"
        rows.append(row(title, lambda one: one.paper_excess, 4))
    return Grid(
        caption=f"Shares of the inactive parameters, {held(compensation)}; 95% intervals",
        head=("", *(h for stage in stages for h in (when(stage), "interval"))),
        sides="l" + "rr" * len(stages),
        rows=tuple(rows),
        notes=(
            f"{counted(first.n_runs, 'run')} of {counted(first.n_cells, 'cell')}. {_beside(stages)}",
            *dict.fromkeys(sentence(w) for one in stages.values() for w in one.warnings),
        ),
    )


def _beside(stages: Mapping[str | None, Allocation]) -> str:
    """How the optimum lies to the papers'."""
    low, high = PAPER_SHARE
    papers = (
        f"Engram (arXiv 2601.07372) reports {low:.0%} to {high:.0%} in n-gram memory, without an interval"
    )
    said = []
    for stage, one in stages.items():
        memory = [e for name, e in one.best.items() if name != "experts"]
        if len(memory) == 1:
            meets = memory[0].low <= high and memory[0].high >= low
            said.append(f"{when(stage)} the interval here {'meets' if meets else 'misses'} that")
    return f"{'; '.join([papers, *said])}."


def _budget_grids(stages: Mapping[str | None, Allocation]) -> list[Grid]:
    rows = [
        (when(stage), count(at.tokens), at.answer, *(c for p in one.parts for c in pair(at.best.get(p), 3)))
        for stage, one in stages.items()
        for at in one.by_budget
    ]
    parts = next(iter(stages.values())).parts
    return (
        [
            Grid(
                caption="Each budget by itself: best shares with 95% intervals",
                head=("", "tokens", "verdict", *(h for p in parts for h in (PARTS[p], "interval"))),
                sides="lrl" + "rr" * len(parts),
                rows=tuple(rows),
            )
        ]
        if rows
        else []
    )


def _slot_grid(stages: Mapping[str | None, SlotLaw]) -> Grid:
    titles = {
        "per_doubling": "loss per doubling of rows, nats",
        "curvature": "curvature, nats per squared octave",
        "held_out": "the largest minus the line through the others, nats",
    }
    first = next(iter(stages.values()))
    return Grid(
        caption="Loss against rows of a head's table at a fixed backbone; 95% intervals",
        head=("", *(h for stage in stages for h in (when(stage), "interval"))),
        sides="l" + "rr" * len(stages),
        rows=tuple(
            (title, *(cell for law in stages.values() for cell in pair(getattr(law, name))))
            for name, title in titles.items()
        ),
        notes=(
            f"{counted(first.n_runs, 'run')}; rows {', '.join(count(r) for r in first.rows)}.",
            *dict.fromkeys(sentence(w) for law in stages.values() for w in law.warnings),
        ),
    )


# -- how often it is wrong ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the verdict said over tables of a known curve."""

    answers: Mapping[str, Rate]
    false_verdicts: Rate
    """Interior where the least point is an end or the curve flat; an end where it is inside, flat or the other end."""
    coverage: Rate
    """Of the optimum's interval; of no table where the curve is flat."""


def draw(
    rng: np.random.Generator, *, shares: Sequence[float], slope: float, curvature: float, seeds: int = 4,
    budgets: Sequence[float] = (1e6, 2e6), run_sd: float = 0.005, block_sd: float = 0.02, cell_sd: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """A table of losses 2 + slope·x + curvature·x² and noise: a block's, a cell's, and a run's over its budgets."""
    cells = rng.normal(0, cell_sd, len(shares))
    rows = []
    for block, offset in enumerate(rng.normal(0, block_sd, seeds)):
        for i, x in enumerate(shares):
            level = 2 + slope * x + curvature * x**2 + cells[i] + offset + rng.normal(0, run_sd)
            rows += [
                (i * seeds + block, block, i, x, t, level - 0.1 * np.log2(t / 1e6), 4e6, 1e6) for t in budgets
            ]
    names = (
        "run_id",
        "seed",
        "n_experts",
        "memory_share",
        "tokens",
        "loss",
        "total_params",
        "flops_per_token",
    )
    return dict(zip(names, np.array(rows).T, strict=True))


def simulate(*, slope: float, curvature: float, n_tables: int = 500, seed: int = 0, **design: Any) -> Rates:
    """Judge ``n_tables`` tables of a known curve (``draw`` takes ``design``); the same seed draws the same tables."""
    design = {"shares": (0.0, 0.25, 0.5, 0.75, 1.0), **design}
    lattice = np.linspace(min(design["shares"]), max(design["shares"]), 1001)
    losses = slope * lattice + curvature * lattice**2
    at = float(lattice[int(np.argmin(losses))])
    flat = slope == curvature == 0
    edge = at in (lattice[0], lattice[-1])
    right = "inconclusive" if flat else "an end" if edge else "interior optimum"
    said, wrong, hits = [], 0, []
    for i in range(n_tables):
        table = draw(np.random.default_rng([seed, i]), slope=slope, curvature=curvature, **design)
        columns = _columns(with_shares(table))
        found = _optimum(columns, ("memory_share",), "loss", i)
        said.append(_decide(columns, found, "loss")[0])
        best = found.best[1]
        other = said[-1] == "an end" and abs(best.value - at) > 0.5
        wrong += said[-1] not in ("inconclusive", right) or other
        hits.append(best.low - 1e-9 <= at <= best.high + 1e-9)
    return Rates(
        answers={word: Rate(count=said.count(word), of=n_tables) for word in dict.fromkeys(said)},
        false_verdicts=Rate(count=wrong, of=n_tables),
        coverage=Rate(count=0 if flat else sum(hits), of=0 if flat else n_tables),
    )


QUESTION = Question(
    asks="How should a sparse budget be shared between experts, product-key memory and n-gram memory?",
    answer=answer,
    figures=("allocation",),
)
