"""What a report says first: the answer to its study's question, or what its search found."""

from typing import Any

from umscale.plots.search import objective_words
from umscale.questions.question import find
from umscale.report.evidence import Evidence
from umscale.results.budgets import paused
from umscale.say.blocks import Block, Grid, Paragraph, Verdict
from umscale.say.estimates import fixed, listed
from umscale.say.labels import sentence
from umscale.say.numbers import count


def question_words(evidence: Evidence) -> str:
    """The study's question as a sentence."""
    if evidence.search:
        minimised = listed([objective_words(name) for name in evidence.search[0].objectives])
        return f"Which models of the space searched have the least {minimised}?"
    return find(evidence.question).asks


def answer(evidence: Evidence) -> list[Block]:
    """The answer, before everything else."""
    blocks: list[Block] = []
    if 0 < evidence.n_finished < (planned := len(evidence.planned)) and not evidence.search:
        blocks.append(
            Paragraph(text=f"Preliminary: {evidence.n_finished} of {planned} planned runs have finished.")
        )
    if stopped := paused(evidence.table):
        blocks.append(Paragraph(text=f"Preliminary: {stopped}."))
    if evidence.search:
        blocks += _searched(evidence)
    if evidence.refused:
        title = "No law of what the search tried" if evidence.search else "No answer"
        blocks.append(Verdict(verdict=title, tone="open", text=sentence(evidence.refused)))
    if evidence.answer:
        if evidence.search:
            blocks.append(Paragraph(text="What the search tried, which is no design, says this of laws:"))
        blocks += evidence.answer.blocks()
    return blocks


# -- search ---------------------------------------------------------------------------------------------------


def _searched(evidence: Evidence) -> list[Block]:
    assert evidence.search
    settings, found = evidence.search
    best = found.best
    if not best:
        return [
            Verdict(verdict="No trial has finished", tone="open", text=f"{len(found.trials)} trials so far.")
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
        Verdict(verdict=title, tone="open", text=f"{lead} has {values}, at {at}."),
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
