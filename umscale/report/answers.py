"""The answer to a study's question, in a sentence or two and a table for each thing held constant."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from umscale.laws.uncertainty import Estimate
from umscale.plots.search import objective_words
from umscale.questions.architectures import Architecture, ArchitectureTable, compare_architectures
from umscale.questions.density_over_size import Contrasts, Verdict
from umscale.questions.floor import floor_answers
from umscale.questions.learning_rates import RatesReport
from umscale.questions.memory_to_ffn import PAPER_MCP, RatioVerdict
from umscale.questions.noise import run_noise
from umscale.questions.trainer_choice import recommendation
from umscale.render.page import Answer, Block, Fold, Grid, Paragraph
from umscale.report.evidence import COMPENSATION_WORDS, STAGE_WORDS, Evidence
from umscale.results.table import Table
from umscale.say.estimates import both, counted, fixed, listed, pair, share, significant
from umscale.say.laws import LOSS_NAMES, by_chance, estimate_text, spread_words
from umscale.say.numbers import count
from umscale.store.store import STAGES

_QUESTIONS = {
    "density-over-size": "Does activation density beat size: does a doubling of `top_m`, the values that a "
    "token reads, lower the loss by more than a doubling of `N_s`, the sparse parameters there are to read?",
    "architectures": "Which architecture has the lowest loss, where what they cost is held equal?",
    "memory-to-ffn": "Which share of the computation of memory and FFN should go to the memory, at constant compute?",
    "noise": "How far do runs of one cell lie apart, and what does averaging weights do about it?",
    "laws": "What is the irreducible loss, and does a fitted law find it?",
    "trainer-choice": "Does a choice of the trainer decide the loss, or the verdict on density over size?",
    "learning-rates": "Which learning rates are best in every cell, and what do the default ones cost?",
}
_CONTRASTS = (
    ("a doubling of `top_m` buys", "delta_m"),
    ("a doubling of `N_s` buys", "delta_n"),
    ("difference", "difference"),
    ("(m, 2 N_s) minus (3 m, N_s)", "paper"),
)


def question_words(evidence: Evidence) -> str:
    """The study's question as a sentence."""
    if evidence.search:
        minimised = listed([objective_words(name) for name in evidence.search[0].objectives])
        return f"Which models of the space searched have the least {minimised}?"
    return _QUESTIONS[evidence.question]


def answer(evidence: Evidence) -> list[Block]:
    """The answer, before everything else."""
    blocks: list[Block] = []
    if 0 < evidence.n_finished < (planned := len(evidence.planned)) and not evidence.search:
        blocks.append(
            Paragraph(text=f"Preliminary: {evidence.n_finished} of {planned} planned runs have finished.")
        )
    if evidence.search:
        blocks += _searched(evidence)
    if evidence.refused:
        title = "No law of what the search tried" if evidence.search else "No answer"
        blocks.append(Answer(verdict=title, tone="open", text=_sentence(evidence.refused)))
    if evidence.laws:
        blocks += _density(evidence.laws.verdicts, searched=evidence.search is not None)
    blocks += _floors(evidence)
    blocks += _architectures(evidence)
    blocks += _ratios(evidence.ratios)
    blocks += _rates(evidence)
    blocks += _noise(evidence)
    blocks += _choices(evidence)
    return blocks


def _capital(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"


def _sentence(words: str) -> str:
    return f"{_capital(words)}{'' if words.endswith('.') else '.'}"


def _held(compensation: str | None) -> str:
    return COMPENSATION_WORDS.get(compensation or "none", str(compensation))


def _by_compensation(found: Sequence[Any], loss: str) -> dict[str | None, dict[str | None, Any]]:
    """Compensation → stage, before the decay first → verdict."""
    order = {stage: i for i, stage in enumerate(STAGES)}
    out: dict[str | None, dict[str | None, Any]] = {}
    for one in sorted((v for v in found if v.loss == loss), key=lambda v: order.get(v.stage, 0)):
        out.setdefault(one.compensation, {})[one.stage] = one
    return out


def _when(stage: str | None) -> str:
    return STAGE_WORDS.get(stage or "", stage or "in all rows")


def _title(answers: Mapping[str | None, str]) -> str:
    """``supported before and after the decay``, or each stage's own word."""
    if set(answers) == set(STAGES) and len(set(answers.values())) == 1:
        return f"{next(iter(answers.values()))} before and after the decay"
    return ", ".join(f"{word} {_when(stage)}" for stage, word in answers.items())


# -- density over size ----------------------------------------------------------------------------------------


def _density(verdicts: Sequence[Verdict], *, searched: bool) -> list[Block]:
    blocks: list[Block] = []
    averaged = _by_compensation(verdicts, "loss_ema")
    for compensation, stages in _by_compensation(verdicts, "loss").items():
        title = _title({stage: v.answer for stage, v in stages.items()})
        title = f"Density over size, from what the search tried: {title}" if searched else _capital(title)
        tones = {"supported": "yes", "contradicted": "no"}
        answers = {v.answer for v in stages.values()}
        sentences = [_density_sentence(v) for v in reversed(stages.values())]
        if {"supported", "contradicted"} <= answers:
            sentences.append("The answer changes sign at the decay.")
        blocks += [
            Answer(
                verdict=f"{title} ({_held(compensation)})",
                tone=tones.get(next(iter(answers)), "open") if len(answers) == 1 else "open",
                text=" ".join(sentences),
            ),
            _density_grid(compensation, stages, averaged.get(compensation, {})),
        ]
    return blocks


def _density_sentence(verdict: Verdict) -> str:
    when = _capital(_when(verdict.stage))
    found = verdict.from_law
    if found is None:
        return f"{when}: {verdict.reason}."
    said = (
        f"{when}, a doubling of `top_m` lowers the loss by {both(found.delta_m)} nats per token and a "
        f"doubling of `N_s` by {both(found.delta_n)}: a difference of {both(found.difference)}."
    )
    if verdict.answer == "inconclusive":
        said += f" {_sentence(verdict.reason)}"
        if verdict.further_runs is not None:
            said += f" About {verdict.further_runs} more runs like these would settle it (80% power)."
    return said


def _density_grid(
    compensation: str | None, stages: dict[str | None, Verdict], averaged: dict[str | None, Verdict]
) -> Grid:
    rows: list[tuple[str, ...]] = []
    for source, attribute in (("the law", "from_law"), ("paired cells", "from_pairs")):
        for title, name in _CONTRASTS:
            found = [_contrast(getattr(v, attribute), name) for v in stages.values()]
            if any(found):
                rows.append((title, source, *(cell for one in found for cell in pair(one))))
    rows.append(("verdict, raw weights", "", *(c for v in stages.values() for c in (v.answer, ""))))
    for name in ("answer", "difference"):
        cells: list[str] = []
        for stage in stages:
            one = averaged.get(stage)
            if name == "answer":
                cells += [one.answer if one else "–", ""]
            else:
                cells += pair(_contrast(one.from_law if one else None, "difference"))
        title = "verdict, averaged weights" if name == "answer" else "difference, averaged weights"
        rows.append((title, "" if name == "answer" else "the law", *cells))
    return Grid(
        caption=f"Nats per token, {_held(compensation)}; 95% intervals",
        head=("", "from", *(h for stage in stages for h in (_when(stage), "interval"))),
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
            notes.setdefault(words, []).append(_when(stage))
    everywhere = [words for words, where in notes.items() if len(where) == len(stages)]
    own = [f"{_capital(where[0])}: {w}." for w, where in notes.items() if len(where) < len(stages)]
    return (*(_sentence(words) for words in everywhere), *own)


# -- architectures --------------------------------------------------------------------------------------------


def _architectures(evidence: Evidence) -> list[Block]:
    blocks: list[Block] = []
    found = evidence.architectures.get("loss", ())
    places = dict.fromkeys((one.compensation, one.budget) for one in found)
    for compensation, budget in places:
        here = [one for one in found if (one.compensation, one.budget) == (compensation, budget)]
        stages = {s: one for s in STAGES for one in here if one.stage == s}
        place = f"{_held(compensation)}, {count(budget)} tokens"
        blocks += [
            _best(evidence, stages, place),
            _losses_grid(stages, "loss", place),
            _costs_grid(stages, place),
        ]
        averaged = {
            one.stage: one
            for one in evidence.architectures.get("loss_ema", ())
            if (one.compensation, one.budget) == (compensation, budget)
        }
        if set(averaged) == set(stages):
            grid = _losses_grid({stage: averaged[stage] for stage in stages}, "loss_ema", place)
            blocks.append(Fold(summary="The same with averaged weights", blocks=(grid,)))
    return blocks


def _best(evidence: Evidence, stages: dict[str, ArchitectureTable], place: str) -> Answer:
    sentences, near = [], {stage: _near_best(evidence.table, one) for stage, one in stages.items()}
    for stage, one in reversed(stages.items()):
        best = one.rows[0]
        said = f"{_capital(_when(stage))}, {best.name} has the lowest loss, {fixed(best.loss)} nats per token"
        if best.difference is not None:
            said += f", {both(best.difference)} from {best.baseline}"
        if one.freedom:
            said += (
                f"; not told apart from it: {listed(near[stage])}"
                if near[stage]
                else "; all others lie above it"
            )
        sides: dict[str, list[str]] = {"below": [], "above": [], "not told apart from": []}
        for row in one.rows:
            if row.difference is not None and row.baseline == one.baseline:
                sides[_side(row.difference)].append(row.name)
        if not one.freedom:
            sentences.append(f"{said}. One seed: which differences are more than noise is not known.")
            continue
        words = [f"{side} {one.baseline}: {listed(names)}" for side, names in sides.items() if names]
        sentences.append(f"{said}. {_sentence('; '.join(words))}" if words else f"{said}.")
    best_rows: dict[str | None, Architecture] = {stage: one.rows[0] for stage, one in stages.items()}
    title = _title({stage: row.name for stage, row in best_rows.items()})
    return Answer(
        verdict=f"Lowest loss: {title} ({place})",
        tone="yes" if all(one.freedom and not near[stage] for stage, one in stages.items()) else "open",
        text=" ".join(sentences),
    )


def _near_best(table: Table, found: ArchitectureTable) -> list[str]:
    """Names of those whose difference from the best has an interval that holds zero, or none."""
    table = {name: values for name, values in table.items() if name != "baseline"}
    [beside] = [
        one
        for one in compare_architectures(table, baseline=found.rows[0].name, stage=found.stage)
        if (one.compensation, one.budget) == (found.compensation, found.budget)
    ]
    return [row.name for row in beside.rows if row.difference and _side(row.difference) != "above"]


def _side(difference: Estimate) -> str:
    if not difference.has_interval or difference.low <= 0 <= difference.high:
        return "not told apart from"
    return "below" if difference.high < 0 else "above"


def _losses_grid(stages: dict[str, ArchitectureTable], loss: str, place: str) -> Grid:
    last = list(stages.values())[-1]
    others = any(row.baseline != last.baseline for row in last.rows)
    rows = []
    for row in last.rows:
        cells: list[str] = [
            row.name,
            *([row.baseline if row.difference else "–"] if others else []),
            str(row.n_runs),
        ]
        for one in stages.values():
            mine = _named(one, row.name)
            cells += [fixed(mine.loss), *pair(mine.difference)] if mine else ["–"] * 3
        rows.append(tuple(cells))
    minus = "minus that" if others else f"minus {last.baseline}"
    noise = [
        f"{_when(stage)} {fixed(one.noise)} nats ({one.freedom} degrees of freedom{spread_words(one.equal_spread)})"
        if one.freedom
        else f"{_when(stage)} unknown: one seed"
        for stage, one in stages.items()
    ]
    chance = by_chance(len(last.rows) - 1) if last.freedom else ""
    return Grid(
        caption=f"Validation loss in nats per token, {LOSS_NAMES[loss]}, 95% intervals; {place}",
        head=(
            "architecture",
            *(["compared with"] if others else []),
            "runs",
            *(head for stage in stages for head in (f"loss {_when(stage)}", minus, "interval")),
        ),
        sides=("ll" if others else "l") + "r" + "rrr" * len(stages),
        rows=tuple(rows),
        notes=(f"Run-to-run standard deviation: {', '.join(noise)}{chance}.",),
    )


def _named(table: ArchitectureTable, name: str) -> Architecture | None:
    return next((row for row in table.rows if row.name == name), None)


def _costs_grid(stages: dict[str, ArchitectureTable], place: str) -> Grid:
    last = list(stages.values())[-1]
    columns = (
        "total_params",
        "active_params",
        "sparse_params",
        "flops_per_token",
        "access_bytes_b1",
        "access_bytes_b16",
        "access_bytes_b64",
        "access_bytes_b256",
    )
    return Grid(
        caption=f"What they cost; {place}",
        head=(
            "architecture",
            "bits per byte",
            "parameters",
            "active",
            "sparse",
            "FLOPs per token, forward",
            "sparse bytes read per token, batch 1",
            "batch 16",
            "batch 64",
            "batch 256",
            "learning rate",
            "tokens per second",
        ),
        sides="l" + "r" * 11,
        rows=tuple(
            (
                row.name,
                fixed(row.bits_per_byte),
                *(count(row.costs[c]) for c in columns),
                significant(row.costs["lr"]),
                count(row.costs["tokens_per_second"]),
            )
            for row in last.rows
        ),
        notes=(
            "Sparse bytes are bf16 and measured. Active parameters are without embeddings. Tokens per second are "
            "those of training, which other work on the machine slows.",
        ),
    )


# -- memory to FFN --------------------------------------------------------------------------------------------


def _ratios(verdicts: Sequence[RatioVerdict]) -> list[Block]:
    blocks: list[Block] = []
    for compensation, stages in _by_compensation(verdicts, "loss").items():
        answers = {v.answer for v in stages.values()}
        tones = {"consistent": "yes", "different": "no"}
        title = _title({s: v.words for s, v in stages.items()})
        blocks += [
            Answer(
                verdict=f"The best share is {title} ({_held(compensation)})",
                tone=tones.get(next(iter(answers)), "open") if len(answers) == 1 else "open",
                text=" ".join(_ratio_sentence(v) for v in reversed(stages.values())),
            ),
            _ratio_grid(compensation, stages),
        ]
    for compensation, stages in _by_compensation(verdicts, "loss_ema").items():
        said = "; ".join(f"{_when(s)} {v.words}: {share(v.mcp)}" for s, v in stages.items())
        blocks.append(Paragraph(text=f"With averaged weights ({_held(compensation)}): {said}."))
    return blocks


def _ratio_sentence(verdict: RatioVerdict) -> str:
    when = _capital(_when(verdict.stage))
    if verdict.mcp is None:
        return f"{when}: {verdict.reason}."
    return (
        f"{when}, the loss is least at an MCP of {share(verdict.mcp)}; the paper's {PAPER_MCP:.0%} costs "
        f"{both(verdict.paper_excess)} nats per token more. {_sentence(verdict.reason)}"
    )


def _ratio_grid(compensation: str | None, stages: dict[str | None, RatioVerdict]) -> Grid:
    def row(title: str, name: str, digits: int) -> tuple[str, ...]:
        return title, *(c for v in stages.values() for c in pair(getattr(v, name), digits))

    first = next(iter(stages.values()))
    warnings = dict.fromkeys(w for v in stages.values() for w in v.warnings)
    return Grid(
        caption=f"The best memory-to-FFN ratio, {_held(compensation)}; 95% intervals",
        head=("", *(h for stage in stages for h in (_when(stage), "interval"))),
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
            *(_sentence(w) for w in warnings),
        ),
    )


# -- learning rates -------------------------------------------------------------------------------------------


def _rates(evidence: Evidence) -> list[Block]:
    blocks: list[Block] = []
    averaged: list[Block] = []
    for found in evidence.rates:
        place = f"{_when(found.stage)}, {count(found.budget)} tokens"
        place += "" if found.compensation in (None, "none") else f", {_held(found.compensation)}"
        worst = found.worst
        if found.loss == "loss":
            verdict = "The default rates are not priced: they lie outside what was measured"
            if worst is not None:
                verdict = f"The default rates cost at most {both(worst.excess)} nats per token"
            blocks.append(
                Answer(
                    verdict=f"{verdict} ({place})",
                    tone="open",
                    text=f"Of {counted(len(found.cells), 'cell')}."
                    if worst is None
                    else f"Most at {worst.name}, of {counted(len(found.cells), 'cell')}.",
                )
            )
        into = blocks if found.loss == "loss" else averaged
        into += _rates_grids(found, f"{place}, {LOSS_NAMES.get(found.loss, found.loss)}")
    return [
        *blocks,
        *([Fold(summary="The same with averaged weights", blocks=tuple(averaged))] if averaged else []),
    ]


def _rates_grids(found: RatesReport, place: str) -> Iterator[Grid]:
    powers = [
        f"The best `{rate}` goes with "
        + "; ".join(f"`{axis}` to the power {both(power, 2)}" for axis, power in each.items())
        + "."
        for rate, each in found.exponents.items()
    ]
    noise = f" Between runs of one setting: {fixed(found.noise)} ({found.freedom} degrees of freedom)."
    yield Grid(
        caption=f"Best and default learning rates, 95% intervals; what the default ones cost, nats per token; {place}",
        head=(
            "cell",
            "best lr",
            "interval",
            "best value_lr",
            "interval",
            "default lr",
            "default value_lr",
            "cost",
            "interval",
        ),
        sides="l" + "r" * 8,
        rows=tuple(
            (
                cell.name,
                *_rate(cell.lr),
                *_rate(cell.value_lr),
                significant(cell.default[0]),
                significant(cell.default[1]),
                *pair(cell.excess),
            )
            for cell in found.cells
        ),
        notes=(
            *powers,
            f"Standard deviation of a run about the fitted surface: {fixed(found.deviation)} nats; {found.n_rows} "
            f"runs, {found.n_far} too far from their cell's best left out.{noise if found.freedom else ''}",
            *(_sentence(w) for w in found.warnings),
        ),
    )
    yield Grid(
        caption=f"Best rates among those measured; {place}",
        head=("cell", "runs", "lr", "value_lr", "loss, nats per token"),
        sides="lrrrr",
        rows=tuple(
            (
                cell.name,
                str(cell.n_runs),
                significant(cell.best[0]),
                significant(cell.best[1]),
                fixed(cell.best[2]),
            )
            for cell in found.cells
        ),
    )


def _rate(estimate: Estimate) -> tuple[str, str]:
    if not estimate.has_interval:
        return significant(estimate.value), "–"
    return significant(estimate.value), f"[{significant(estimate.low)}, {significant(estimate.high)}]"


# -- floors ---------------------------------------------------------------------------------------------------


def _floors(evidence: Evidence) -> list[Block]:
    found = floor_answers(evidence.table, evidence.laws) if evidence.laws else ()
    return [
        Answer(
            verdict=f"The fitted floor {'covers' if one.covered else 'misses'} the true one"
            + ("" if one.holds else ", but the law does not hold"),
            tone="yes" if one.covered and one.holds else "no",
            text=f"{one.words}.",
        )
        for one in found
        if one.loss == "loss"
    ]


# -- a choice of the trainer ----------------------------------------------------------------------------------


def _choices(evidence: Evidence) -> list[Block]:
    raw = [one for one in evidence.choices if one.loss == "loss"]
    if not raw:
        return []
    first, *others = recommendation(raw)
    blocks: list[Block] = [Answer(verdict=first.rstrip("."), tone="open", text=" ".join(others))]
    for one in evidence.choices:
        shown = Grid(
            caption=f"{LOSS_NAMES[one.loss]}, {count(one.budget)} tokens, {_when(one.stage)}, "
            f"{_held(one.compensation)}: loss and what a doubling buys, nats per token, 95% intervals over seeds",
            head=(one.axis, "seeds", "mean loss", f"minus {one.levels[0].level}", "delta_m", "delta_N", "difference",
                  f"minus {one.levels[0].level}", "documents"),
            sides="lrrrrrrrr",
            rows=tuple(
                (
                    level.level,
                    str(len(level.seeds)),
                    fixed(level.loss.value),
                    *(
                        estimate_text(x)
                        for x in (
                            level.loss_change, level.delta_m, level.delta_n, level.difference, level.difference_change,
                        )
                    ),
                    "–" if level.documents is None else f"± {level.documents:.4f}",
                )
                for level in one.levels
            ),
        )  # fmt: skip
        main = one.loss == "loss" and one.stage == "annealed"
        blocks.append(shown if main else Fold(summary=shown.caption, blocks=(shown,)))
    return blocks


# -- noise ----------------------------------------------------------------------------------------------------


def _noise(evidence: Evidence) -> list[Block]:
    if evidence.question != "noise" or not evidence.noise:
        return []
    largest = [one for one in evidence.noise if one.budget == evidence.noise[0].budget]
    said = [
        f"{_when(one.stage)}, {LOSS_NAMES[one.loss]}: {both(one.deviation)} ({counted(one.n_runs, 'run')})"
        for one in sorted(largest, key=lambda one: (STAGES.index(one.stage), one.loss))
    ]
    cells = run_noise(evidence.table, by_cell=True)
    order = sorted(cells, key=lambda one: (-one.budget, one.cell, STAGES.index(one.stage), one.loss))
    return [
        Answer(
            verdict="Standard deviation between runs of one cell, in nats per token, at "
            f"{count(largest[0].budget)} tokens",
            tone="open",
            text=f"{_capital('; '.join(said))}. Pooled over cells; 95% intervals hold if noise is Gaussian.",
        ),
        Fold(
            summary="Every cell by itself",
            blocks=(
                Grid(
                    caption="Standard deviation between runs by cell, nats per token, 95% intervals",
                    head=("tokens", "cell", "stage", "weights", "runs", "mean loss", "deviation", "interval"),
                    sides="rlllrrrr",
                    rows=tuple(
                        (
                            count(one.budget),
                            one.cell,
                            _when(one.stage),
                            LOSS_NAMES[one.loss].removesuffix(" weights"),
                            str(one.n_runs),
                            fixed(one.mean),
                            *pair(one.deviation),
                        )
                        for one in order
                    ),
                ),
            ),
        ),
    ]


# -- search ---------------------------------------------------------------------------------------------------


def _searched(evidence: Evidence) -> list[Block]:
    assert evidence.search
    settings, found = evidence.search
    best = found.best
    if not best:
        return [
            Answer(verdict="No trial has finished", tone="open", text=f"{len(found.trials)} trials so far.")
        ]
    several = len(found.objectives) > 1
    first = best[0]
    at = ", ".join(f"`{name}` {_value(first.params[name])}" for name in settings.space)
    values = ", ".join(_objective(n, v) for n, v in zip(found.objectives, first.values or (), strict=True))
    title = f"{len(best)} of {len(found.trials)} trials that no other beats" if several else "Best trial"
    lead = "The one of least loss" if several else "It"
    costs = [c for c in ("total_params", "flops_per_token") if c not in found.objectives]
    rows = []
    for row in best:
        record = evidence.store.final_record(row.run_id or "") or {}
        rows.append(
            (
                str(row.number),
                (row.run_id or "")[:8],
                *(_value(row.params[name]) for name in settings.space),
                *(_amount(n, v) for n, v in zip(found.objectives, row.values or (), strict=True)),
                *(count(record.get(c)) for c in costs),
            )
        )
    importances = [
        f"What matters to `{name}` (PED-ANOVA): {', '.join(f'`{n}` {s:.0%}' for n, s in shares.items())}."
        for name, shares in found.importances.items()
    ]
    return [
        Answer(verdict=title, tone="open", text=f"{lead} has {values}, at {at}."),
        Grid(
            caption="The front: losses in nats per token, memory access in bytes per decoding step"
            if several
            else "The best trial",
            head=("trial", "run", *settings.space, *found.objectives, *costs),
            sides="rl" + "r" * (len(settings.space) + len(found.objectives) + len(costs)),
            rows=tuple(rows),
            notes=(*importances, *([f"Importances: {found.why_no_importances}."] if not importances else [])),
        ),
    ]


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _amount(name: str, value: float) -> str:
    from umscale.search.settings import MEASURED

    return fixed(value) if name in MEASURED else count(value)


def _objective(name: str, value: float) -> str:
    return f"`{name}` {_amount(name, value)}"
