"""What to run next, for which question, at what cost and with what chance: power, trend and plan as one list.

Every difference that an answer turns on (``Answer.contrasts``) is counted: settled, or to be settled by further seeds
of the cells that carry it, by chosen runs (``suggest``), or by longer training (``token_trend``); what the law
recommends (``plan``) is set against the best cell measured. Costs come from the records: tokens trained, and hours of
one worker at the tokens per second that runs of the same cell had. Chances are those of ``power``: given the rows
there are, not taking the difference for the truth. The list is ordered by chance per hour of a worker, or per token
where no speed is recorded.
"""

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from umscale.cell_labels import cell_name, cell_parts
from umscale.design.study import Study
from umscale.errors import UserError
from umscale.laws.uncertainty import Estimate
from umscale.questions import power
from umscale.questions.plan import Limits, Plan, Preferences, plan
from umscale.questions.question import Answer, Contrast
from umscale.questions.suggest import suggest, trained_tokens
from umscale.questions.token_trend import TokenTrend, token_trend
from umscale.results.table import Table, levels, n_rows, numeric, text, where
from umscale.say.blocks import Block, Bullets, Heading, Listing, Paragraph
from umscale.say.estimates import both, counted
from umscale.say.labels import capital, held, when
from umscale.say.numbers import MANY_RUNS, count, duration, percent

ENOUGH = 0.8
"""Chance from which a step is not made larger."""
LEAST_CHANCE = 0.2
"""Chance below which a step is said not to be worth its runs."""
MOST_SHOWN = 6
"""Steps, and questions left alone, that are shown; ``--json`` has all."""
MOST_CHOSEN = 24
"""Runs that are chosen one by one."""
MOST_OCTAVES = 3.0
"""Of tokens beyond the budgets up to which a turn is worth going to see."""
_NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What there is, and where more would go."""

    table: Table
    """Finished runs, or anybody's rows."""
    name: str
    """As the user named it."""
    study: Study | None = None
    """None of a table."""
    same_file: str | None = None
    """A study file or name that means the same as ``study``, for ``--set``; None where there is none."""
    store: str = ""
    """Where runs are added."""
    first: tuple[str, ...] = ()
    """Commands that come before any other."""
    stage: str | None = None
    loss: str = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent on one step."""

    seconds: float = math.inf
    """Of one worker."""
    tokens: float = math.inf

    def holds(self, cost: "Cost") -> bool:
        """Whether a step is affordable; one whose hours are not known is, as far as hours go."""
        return cost.tokens <= self.tokens and not cost.seconds > self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of a step."""

    runs: int
    tokens: float
    seconds: float
    """Of one worker at recorded speeds; NaN where none is recorded."""

    @property
    def words(self) -> str:
        """Runs, tokens and hours."""
        hours = "" if math.isnan(self.seconds) else f", {duration(self.seconds)} of one worker"
        return f"{counted(self.runs, 'run')}, {count(self.tokens)} tokens{hours}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something to run."""

    question: str
    known: str
    todo: str
    cost: Cost
    chance: float
    """That it settles the question."""
    commands: tuple[str, ...]
    """To be pasted; none for a table, whose runs are made elsewhere."""
    note: str = ""
    study: Mapping[str, Any] | None = None
    """Tree of the study file with these runs, where ``commands`` read one."""

    @property
    def worth(self) -> float:
        """Chance per second of a worker, or per token where no speed is known."""
        chance = LEAST_CHANCE if math.isnan(self.chance) else self.chance
        return chance / (self.cost.tokens if math.isnan(self.cost.seconds) else self.cost.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A question for which nothing is worth running."""

    question: str
    known: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to run next, best first, and what not to."""

    name: str
    steps: tuple[Step, ...]
    closed: tuple[Closed, ...]
    statements: tuple[str, ...]

    def blocks(self) -> list[Block]:
        """The list with commands, and what is left alone."""
        said: list[Block] = []
        if not self.steps and self.closed:
            said.append(Paragraph(text="Nothing is worth running for the questions of this study."))
        for i, step in enumerate(self.steps[:MOST_SHOWN], 1):
            said += [Heading(text=f"{i}. {step.question}"), Bullets(items=tuple(_lines(step)))]
            if step.commands:
                said.append(Listing(text="\n".join(step.commands), language="sh"))
        if self.closed:
            said += [
                Heading(text="Not worth running"),
                Bullets(
                    items=tuple(
                        f"{one.question} {capital(one.known)}. {one.why}" for one in self.closed[:MOST_SHOWN]
                    )
                ),
            ]
        return [*said, *([Bullets(items=self.statements)] if self.statements else [])]


def _lines(step: Step) -> list[str]:
    chance = "not known yet" if math.isnan(step.chance) else f"{step.chance:.0%} that it settles the question"
    return [
        f"Known now: {step.known}",
        f"To run: {step.todo}: {step.cost.words}",
        f"Chance: {chance}{'; ' if step.note else ''}{step.note}",
    ]


def to_json(advice: Advice) -> dict[str, Any]:
    """Return the advice for ``--json``."""
    return asdict(advice)


def advise(answer: Answer, evidence: Evidence, budget: Budget | None = None) -> Advice:
    """Return what to run next.

    Args:
        answer: of a question, on the rows of ``evidence``.
        evidence: of one stage.
        budget: steps that cost more are made smaller, or left out where even the smallest does.
    """
    budget = budget or Budget()
    wanted = [one for one in answer.contrasts() if evidence.stage in (None, one.stage)]
    steps: list[Step] = []
    closed: list[Closed] = []
    for contrast in wanted:
        found = _settled(contrast) or _seeds(contrast, evidence, budget)
        (steps if isinstance(found, Step) else closed).append(found)  # type: ignore[arg-type]
    if evidence.study is not None:
        for one in (
            *_chosen(wanted, evidence, budget),
            *_longer(wanted, evidence, budget),
            *_planned(evidence, budget),
        ):
            (steps if isinstance(one, Step) else closed).append(one)  # type: ignore[arg-type]
    ranked = sorted(steps, key=lambda step: step.worth, reverse=True)
    numbered = tuple(_numbered(step, i, evidence) for i, step in enumerate(ranked, 1))
    return Advice(
        name=evidence.name,
        steps=numbered,
        closed=tuple(closed),
        statements=_statements(wanted, evidence, len(ranked), len(closed)),
    )


def _statements(
    wanted: Sequence[Contrast], evidence: Evidence, n_steps: int, n_closed: int
) -> tuple[str, ...]:
    said = []
    if not wanted:
        said.append(
            "this question ranks nothing by a sign, so no number of runs is counted for it: what its answer lacks "
            f"stands in `umscale fit {shlex.quote(evidence.name)}`"
        )
    if n_steps > MOST_SHOWN or n_closed > MOST_SHOWN:
        said.append(
            f"{counted(n_steps, 'step')} and {counted(n_closed, 'question')} not worth a run in all, of which the "
            f"first {MOST_SHOWN} are shown; --json has all"
        )
    if n_steps:
        said.append(
            "ordered by chance per hour of a worker; chances are given the rows so far, without taking a difference "
            "for the truth, and for the place measured alone: these widths, tokens and text"
        )
    if evidence.first and n_steps:
        said.append("records that come with umscale are not written to: the first command copies them")
    return tuple(said)


# ---------------------------------------------------------------------------------------------------------
# What is known, and further seeds


def _question(contrast: Contrast) -> str:
    place = [when(contrast.stage)] if contrast.stage else []
    place += [held(contrast.compensation)] if contrast.compensation else []
    return f"{contrast.asks} ({', '.join(place)})" if place else contrast.asks


def _known(contrast: Contrast) -> str:
    one = contrast.estimate
    return contrast.known if math.isnan(one.value) else f"{contrast.known}: {both(one)} nats"


def _settled(contrast: Contrast) -> Closed | None:
    """Why no run is worth making for it, as far as that is known without counting any."""
    why = ""
    if contrast.settled:
        why = "Settled: the interval leaves out zero."
    elif contrast.obstacle and contrast.estimate.has_interval:
        why = f"Further seeds do not settle it: {contrast.obstacle}."
    return Closed(question=_question(contrast), known=_known(contrast), why=why) if why else None


def _seeds(contrast: Contrast, evidence: Evidence, budget: Budget) -> Step | Closed:
    """Further seeds of every cell that carries the difference."""
    carriers = _Carriers.of(evidence, contrast)
    blocks = carriers.seeds
    if not contrast.estimate.has_interval:
        return _first_repeats(contrast, evidence, carriers, budget)
    factor = power.factor_to_settle(contrast.estimate, contrast.freedom, contrast.averages)
    most = MANY_RUNS / max(carriers.of_one(), 1)

    def closed(why: str) -> Closed:
        return Closed(question=_question(contrast), known=_known(contrast), why=why)

    if not math.isfinite(factor):
        return closed(
            "No number of seeds settles it: what the law misses in cells does not average away; more cells between "
            "those measured would."
        )
    needed = max(1, math.ceil(blocks * (factor - 1)))
    if needed > most:
        end = max(abs(contrast.estimate.low), abs(contrast.estimate.high))
        return closed(
            f"More than {MANY_RUNS} runs like these would be needed if the difference is what it seems; that it is at "
            f"most {end:.4f} nats is known."
        )
    fits = [k for k in range(1, needed + 1) if budget.holds(carriers.cost(k))]
    if not fits:
        return closed(f"The least step, {carriers.cost(1).words}, is beyond the budget.")
    chosen = fits[-1]
    chance = _chance_of(contrast, blocks, chosen)
    if chance < LEAST_CHANCE:
        return closed(
            f"{carriers.words(chosen)} ({carriers.cost(chosen).words}) would settle it with a chance of {chance:.0%}."
        )
    full = f"as many as the budget allows: 80% power takes {counted(needed, 'seed')}" if chosen < needed else (
        f"{power.POWER:.0%} power if the difference is what it seems"
    )  # fmt: skip
    return Step(
        question=_question(contrast),
        known=_known(contrast),
        todo=carriers.words(chosen),
        cost=carriers.cost(chosen),
        chance=chance,
        commands=(),
        note=full,
        study=carriers.study_tree(chosen),
    )


def _chance_of(contrast: Contrast, blocks: int, more: int) -> float:
    """That ``more`` seeds beside ``blocks`` settle the difference."""
    factor = (blocks + more) / blocks
    # Two architectures alone tell of one difference a seed; a whole design of all its cells.
    grown = contrast.freedom + more if contrast.only else contrast.freedom * factor
    return power.chance(contrast.estimate, contrast.freedom, power.shrunk(contrast.averages, factor), grown)


def _first_repeats(
    contrast: Contrast, evidence: Evidence, carriers: "_Carriers", budget: Budget
) -> Step | Closed:
    """Where no interval can be given: with one seed a second shows how far runs lie apart."""
    lacks = contrast.obstacle or "how far runs lie apart is not known"
    question, known = (
        _question(contrast),
        contrast.known if math.isnan(contrast.estimate.value) else _known(contrast),
    )
    if contrast.obstacle or carriers.seeds > 1 or not carriers.of_one():
        return Closed(question=question, known=known, why=f"Seeds do not help: {lacks}.")
    cost = carriers.cost(1)
    if not budget.holds(cost):
        return Closed(
            question=question, known=known, why=f"The least step, {cost.words}, is beyond the budget."
        )
    return Step(
        question=question,
        known=known,
        todo=carriers.words(1),
        cost=cost,
        chance=_NAN,
        commands=(),
        note=f"{lacks} from one seed; once there are two, what more it takes can be counted",
        study=carriers.study_tree(1),
    )


@dataclass(frozen=True, slots=True)
class _Carriers:
    """The cells that carry a difference, and what a run of each costs."""

    evidence: Evidence
    contrast: Contrast
    runs: tuple[Cost, ...]
    """One a cell."""
    seeds: int
    names: tuple[str, ...]
    """Of the study's architectures, where these alone are run."""

    @classmethod
    def of(cls, evidence: Evidence, contrast: Contrast) -> "_Carriers":
        """Find them in the table."""
        part: Table = where(evidence.table, compensation=contrast.compensation, stage=contrast.stage)
        names: tuple[str, ...] = ()
        if contrast.only:
            rows = _of_architectures(part, contrast.only)
            seeds = len(np.unique(numeric(rows, "seed"))) if "seed" in part else 1
            names = _axis_names(rows, evidence.study)
            # Cells that no axis of the study picks out are run with all the others.
            part = rows if names or evidence.study is None else part
        else:
            seeds = len(np.unique(numeric(part, "seed"))) if "seed" in part else 1
        return cls(evidence, contrast, _cell_costs(part, evidence.study), max(seeds, 1), names)

    def of_one(self) -> int:
        """Runs of one seed."""
        return len(self.runs)

    def cost(self, seeds: int) -> Cost:
        """Of so many seeds."""
        return Cost(
            runs=seeds * len(self.runs),
            tokens=seeds * sum(one.tokens for one in self.runs),
            seconds=seeds * sum(one.seconds for one in self.runs),
        )

    def words(self, seeds: int) -> str:
        """What to run."""
        cells = f"each of {counted(len(self.runs), 'cell')}" if len(self.runs) > 1 else "the cell"
        if self.names or (self.contrast.only and self.evidence.study is None):
            cells = " and ".join(self.contrast.only)
        return f"{counted(seeds, 'further seed')} of {cells}"

    def study_tree(self, seeds: int) -> Mapping[str, Any] | None:
        """The study with these seeds beside those it has, of these cells alone."""
        study = self.evidence.study
        if study is None:
            return None
        axes = dict(study.axes)
        mode = self.contrast.compensation
        used = {*axes.get("seed", (0,)), *(s for cell in study.cells for s in cell.get("seed", ()))}
        used |= {int(s) for s in numeric(self.evidence.table, "seed")}
        fresh = tuple(range(max(used) + 1, max(used) + 1 + seeds))
        if self.names:
            axes["architecture"] = self.names
        cells = tuple(
            {**cell, "seed": (*cell["seed"], *fresh)} if "seed" in cell else cell for cell in study.cells
        )
        axes["seed"] = (*sorted(axes.get("seed", (0,))), *fresh)
        chosen = dataclasses.replace(
            study, axes=axes, cells=cells, compensation=(mode,) if mode else study.compensation
        )
        return chosen.to_dict()


def _axis_names(rows: Table, study: Study | None) -> tuple[str, ...]:
    """The values of the study's axis ``architecture`` that these rows have; none where it does not pick them out."""
    if study is None or "label" not in rows:
        return ()
    known = study.axes.get("architecture", ())
    parts = [cell_parts(label, ("seed",)) for label in levels(rows, "label")]
    names = {part[0].removeprefix("architecture=") for part in parts if len(part) == 1}
    return tuple(n for n in known if n in names) if len(names) == 2 and names <= set(known) else ()


def _of_architectures(table: Table, names: Sequence[str]) -> Table:
    """Rows of these architectures, or of cells called so where an architecture has several."""
    mine = np.isin(text(table, "architecture"), names)
    if not mine.any() and "label" in table:
        mine = np.isin([cell_name(label) for label in text(table, "label")], names)
    return {name: np.asarray(column)[mine] for name, column in table.items()}


def _cell_costs(part: Table, study: Study | None) -> tuple[Cost, ...]:
    """What a run of each cell took: its tokens, trunk and branches, and seconds; a mean over the cell's seeds."""
    if not n_rows(part):
        return ()
    decay = study.reference.train.decay_fraction if study is not None else 0.0
    budget = "budget" if "budget" in part else "tokens"
    tokens = numeric(part, budget) if budget in part else np.full(n_rows(part), _NAN)
    speed = numeric(part, "tokens_per_second") if "tokens_per_second" in part else np.full(len(tokens), _NAN)
    labels = (
        np.array([cell_name(label) for label in text(part, "label")], dtype=str)
        if "label" in part
        else _cells_of_a_table(part, budget)
    )
    if "compensation" in part:
        labels = np.char.add(labels, np.char.add(" ", text(part, "compensation").astype(str)))
    found = []
    for label in np.unique(labels):
        mine = labels == label
        budgets = sorted({float(b) for b in tokens[mine] if np.isfinite(b)})
        trained = trained_tokens(budgets, decay) if budgets else _NAN
        known = speed[mine][np.isfinite(speed[mine]) & (speed[mine] > 0)]
        found.append(Cost(runs=1, tokens=trained, seconds=trained / known.mean() if len(known) else _NAN))
    return tuple(found)


def _cells_of_a_table(part: Table, budget: str) -> Any:
    """What tells cells of anybody's table apart: all whole or textual columns that are no seed, run or budget."""
    kept = [
        name
        for name in ("top_m", "heads", "n_keys", "sparse_params", "d_model", "architecture")
        if name in part
    ]
    rows = zip(*(text(part, name) for name in kept), strict=True)
    return np.array([" ".join(map(str, row)) for row in rows] if kept else ["cell"] * n_rows(part), dtype=str)


# ---------------------------------------------------------------------------------------------------------
# Chosen runs, longer training, the plan


def _chosen(wanted: Sequence[Contrast], evidence: Evidence, budget: Budget) -> list[Step]:
    """The runs that narrow density over size the most per FLOP, where that is not settled."""
    found = []
    study = evidence.study
    assert study is not None
    for contrast in wanted:
        open_ = contrast.estimate.has_interval and not contrast.settled and not contrast.obstacle
        if (
            study.question != "density-over-size"
            or contrast.only
            or not open_
            or "`top_m`" not in contrast.asks
        ):
            continue
        part = where(evidence.table, compensation=contrast.compensation)
        try:
            offered = suggest(part, study.to_dict(), MOST_CHOSEN, stage=contrast.stage, loss=evidence.loss)
        except UserError:
            continue
        each = _cell_costs(where(part, stage=contrast.stage), study)
        tokens = float(np.mean([one.tokens for one in each]))
        rate = sum(one.tokens for one in each) / sum(one.seconds for one in each)
        step = _chosen_step(
            contrast, evidence, offered, Cost(runs=1, tokens=tokens, seconds=tokens / rate), budget
        )
        found += [step] if step is not None else []
    return found


def _chosen_step(
    contrast: Contrast, evidence: Evidence, offered: Any, one: Cost, budget: Budget
) -> Step | None:
    """As many of the runs offered as make it likely, or as the budget holds; None where that is not worth it."""
    best: tuple[int, float] | None = None
    for n, run in enumerate(offered.runs, 1):
        cost = Cost(runs=n, tokens=n * one.tokens, seconds=n * one.seconds)
        if n < 2 or not budget.holds(cost):  # a run alone opens no seed
            continue
        ratio = min(1.0, run.half_width / offered.half_width)
        chance = power.chance(contrast.estimate, contrast.freedom, ratio, contrast.freedom + n)
        best = (n, chance)
        if chance >= ENOUGH:
            break
    if best is None or best[1] < LEAST_CHANCE:
        return None
    n, chance = best
    where_ = (
        f" --where {shlex.quote(f'compensation == {contrast.compensation!r}')}"
        if contrast.compensation
        else ""
    )
    stage = f" --stage {contrast.stage}" if contrast.stage else ""
    return Step(
        question=_question(contrast),
        known=_known(contrast),
        todo=f"{n} runs chosen for it: {_targets(offered.runs[:n])}",
        cost=Cost(runs=n, tokens=n * one.tokens, seconds=n * one.seconds),
        chance=chance,
        commands=(
            *evidence.first,
            f"umscale fit {shlex.quote(evidence.store)} --suggest {n}{stage}{where_} --output next.toml",
            _sweep(evidence, "next.toml"),
        ),
        note="as if the law held between cells; it is tested only where cells repeat",
    )


def _targets(runs: Sequence[Any]) -> str:
    cells: dict[str, int] = {}
    for run in runs:
        name = " ".join(f"{axis}={value}" for axis, value in run.targets.items())
        cells[name] = cells.get(name, 0) + 1
    return ", ".join(f"{n} of {name}" for name, n in cells.items())


def _longer(wanted: Sequence[Contrast], evidence: Evidence, budget: Budget) -> list[Step | Closed]:
    """A longer budget where the trend in tokens would turn the verdict just beyond those measured."""
    study = evidence.study
    assert study is not None
    found: list[Step | Closed] = []
    for contrast in wanted:
        if "training length" not in contrast.asks:
            continue
        try:
            trend = token_trend(
                evidence.table, stage=contrast.stage, compensation=contrast.compensation, loss=evidence.loss
            )
        except UserError:
            continue
        if trend.turn.reached == "beyond":
            found.append(_turn_step(contrast, evidence, trend, budget))
    return found


def _turn_step(contrast: Contrast, evidence: Evidence, trend: TokenTrend, budget: Budget) -> Step | Closed:
    """Training to twice the tokens at which the difference would be zero."""
    place = dataclasses.replace(contrast, asks="Does the verdict turn with longer training?")
    turn = trend.turn.tokens.value
    known = f"as the trend goes, the difference is zero at {count(turn)} tokens"
    at_last = trend.verdicts[-1]
    if (
        trend.turn.octaves_beyond > MOST_OCTAVES
        or at_last.from_law is None
        or at_last.from_law.difference is None
    ):
        why = f"That lies {trend.turn.octaves_beyond:.1f} octaves beyond what was measured, too far for a trend."
        return Closed(question=_question(place), known=known, why=why)
    study = evidence.study
    assert study is not None
    target = round(2 * turn / 1e4) * 10_000
    carriers = _Carriers.of(evidence, contrast)
    last = max(trend.tokens)
    scale = target / last
    seeds = carriers.seeds
    cost = Cost(
        runs=seeds * carriers.of_one(),
        tokens=carriers.cost(seeds).tokens * scale,
        seconds=carriers.cost(seeds).seconds * scale,
    )
    if not budget.holds(cost):
        return Closed(
            question=_question(place), known=known, why=f"The step, {cost.words}, is beyond the budget."
        )
    chance = _chance_beyond(trend, at_last.from_law.difference, at_last.freedom, math.log2(scale))
    axes = dict(study.axes) | {"tokens": (*study.axes.get("tokens", study.reference.train.budgets), target)}
    mode = contrast.compensation
    tree = dataclasses.replace(
        study, axes=axes, compensation=(mode,) if mode else study.compensation
    ).to_dict()
    if chance < LEAST_CHANCE:
        why = f"All cells at {count(target)} tokens ({cost.words}) would tell with a chance of {chance:.0%}."
        return Closed(question=_question(place), known=known, why=why)
    return Step(
        question=_question(place),
        known=known,
        todo=f"the same cells and seeds at {count(target)} tokens",
        cost=cost,
        chance=chance,
        commands=(),
        note="an extrapolation, and every run starts anew unless its trunk was kept (train.keep = all)",
        study=tree,
    )


def _chance_beyond(trend: TokenTrend, last: Estimate, freedom: float, octaves: float) -> float:
    """That the verdict at tokens so far beyond the largest budget has an interval clear of zero."""
    assert trend.difference is not None
    error = power.standard_error(last, freedom)
    slope = power.standard_error(trend.difference, trend.freedom)
    if not (error > 0 and slope >= 0):
        return _NAN
    spread = math.sqrt(
        2 * error**2 + (octaves * slope) ** 2
    )  # of the level, of the new measurement, of the trend
    value = last.value + octaves * trend.difference.value
    return power.clear_of_zero(
        value, spread=spread, error=error, freedom=min(freedom, trend.freedom), grown=freedom
    )


def _planned(evidence: Evidence, budget: Budget) -> list[Step | Closed]:
    """The configuration that the law recommends within the largest sizes measured, against the best cell measured."""
    study = evidence.study
    assert study is not None
    part = where(evidence.table, stage=evidence.stage)
    if study.question != "density-over-size" or not n_rows(part) or "label" not in part:
        return []
    mode = next(iter(levels(part, "compensation")), None)
    part = where(part, compensation=mode) if mode else part
    model = study.reference.model
    if not model.vocab_size and "vocab_size" in part:
        model = dataclasses.replace(model, vocab_size=int(numeric(part, "vocab_size")[0]))
    limits = Limits(
        total_params=float(numeric(part, "total_params").max()),
        active_flops=float(numeric(part, "flops_per_token").max()),
    )
    wanted = Preferences(
        stage=evidence.stage,
        compensation=mode,
        loss=evidence.loss,
        tokens=float(numeric(part, "tokens").max()),
        seq_len=study.reference.data.seq_len,
    )
    try:
        found = plan(part, model, limits, wanted)
    except UserError:  # a law that cannot rank, or limits that nothing meets
        return []
    return [_plan_step(found, part, evidence, budget)]


def _plan_step(found: Plan, part: Table, evidence: Evidence, budget: Budget) -> Step | Closed:
    """Training the recommended configuration beside the best cell of ``part``."""
    best_loss, best_cell, noise = _best_cell(part, evidence.loss)
    place = ", ".join([*([when(found.stage)] if found.stage else []), held(found.compensation)])
    question = f"Is what the law recommends within the sizes measured better than the best cell, {best_cell}? ({place})"
    predicted = found.recommended.loss
    gain = best_loss - predicted.value
    dimensions = [f"{k}={v}" for k, v in found.recommended.dimensions.items() if k in ("top_m", "n_keys")]
    known = f"predicted: {' '.join(dimensions)}, {'better' if gain > 0 else 'worse'} by {abs(gain):.4f} nats"
    if set(dimensions) <= set(best_cell.split()):
        return Closed(question=question, known=known, why="It is the best cell measured.")
    longest = max(_cell_costs(part, evidence.study), key=lambda one: one.tokens)
    seeds = max(2, len(np.unique(numeric(part, "seed"))) if "seed" in part else 2)
    cost = Cost(runs=seeds, tokens=seeds * longest.tokens, seconds=seeds * longest.seconds)
    error = noise * math.sqrt(2 / seeds)
    freedom = 2.0 * seeds - 2
    spread = math.hypot(
        0.25 * (predicted.high - predicted.low), error
    )  # of the prediction, of the runs to come
    if gain <= 0:
        return Closed(question=question, known=known, why="The law itself does not expect it.")
    chance = (
        power.clear_of_zero(gain, spread=spread, error=error, freedom=freedom, grown=freedom)
        if noise > 0
        else _NAN
    )
    if not chance >= LEAST_CHANCE or not budget.holds(cost):
        why = (
            f"{counted(seeds, 'run')} of it ({cost.words}) would tell with a chance of {percent(chance, 0)}."
        )
        return Closed(question=question, known=known, why=why)
    options = {
        "max-total-params": f"{found.limits.total_params:.0f}",
        "max-active-flops": f"{found.limits.active_flops:.0f}",
        "tokens": f"{found.tokens:.0f}",
        "stage": found.stage,
        "compensation": found.compensation,
    }
    said = " ".join(f"--{name} {value}" for name, value in options.items() if value)
    seed_axis = shlex.quote(f"axes.seed={json.dumps(list(range(seeds)))}")
    return Step(
        question=question,
        known=known,
        todo=f"{counted(seeds, 'seed')} of the recommended configuration",
        cost=cost,
        chance=chance,
        commands=(
            f"umscale plan {shlex.quote(evidence.name)} {said} --output plan.toml",
            f"umscale sweep plan.toml --set {seed_axis}",
        ),
    )


def _best_cell(part: Table, loss: str) -> tuple[float, str, float]:
    """Mean loss and name of the best cell at the largest budget, and how far runs of a cell lie apart (NaN unknown)."""
    at = where(part, budget=float(numeric(part, "budget").max()))
    names, losses = np.array([cell_name(one) for one in text(at, "label")]), numeric(at, loss)
    means = {name: float(losses[names == name].mean()) for name in np.unique(names)}
    spare = len(losses) - len(means)
    squares = sum(float(((losses[names == name] - mean) ** 2).sum()) for name, mean in means.items())
    best = min(means, key=lambda name: means[name])
    return means[best], str(best), math.sqrt(squares / spare) if spare else _NAN


# ---------------------------------------------------------------------------------------------------------
# Commands


def _sweep(evidence: Evidence, file: str) -> str:
    return f"umscale sweep {shlex.quote(file)} --store {shlex.quote(evidence.store)}"


def _numbered(step: Step, number: int, evidence: Evidence) -> Step:
    """The step with its commands, which may say its number in the list."""
    if step.study is None or step.commands:
        return step
    if evidence.same_file is not None:
        return dataclasses.replace(
            step, commands=(*evidence.first, _with_set(step.study, evidence, evidence.same_file)), study=None
        )
    take = f"umscale advise {shlex.quote(evidence.name)} --take {number} --output next.toml"
    return dataclasses.replace(step, commands=(*evidence.first, take, _sweep(evidence, "next.toml")))


def _with_set(tree: Mapping[str, Any], evidence: Evidence, file: str) -> str:
    """The sweep of a study file with what differs from it said by ``--set``."""
    assert evidence.study is not None
    before = evidence.study.to_dict()
    sets = [
        f"axes.{name}={json.dumps(list(values))}"
        for name, values in tree["axes"].items()
        if list(values) != list(before["axes"].get(name, ()))
    ]
    if list(tree["compensation"]) != list(before["compensation"]):
        sets.append(f"compensation={json.dumps(list(tree['compensation']))}")
    options = "".join(f" --set {shlex.quote(one)}" for one in sets)
    return f"{_sweep(evidence, file)}{options}"
