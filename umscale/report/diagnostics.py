"""Run-to-run noise, and what residuals and failures show."""

import numpy as np

from umscale.errors import UserError
from umscale.laws.pairs import run_noise
from umscale.questions.noise import noise_grid
from umscale.questions.question import LOSSES
from umscale.report.design import statuses
from umscale.report.evidence import Evidence
from umscale.results.table import Table, levels, numeric, select_rows, text, where
from umscale.say.blocks import Block, Grid, Paragraph
from umscale.say.estimates import fixed
from umscale.say.labels import COMPENSATION_WORDS, LOSS_NAMES, STAGE_WORDS
from umscale.say.laws import in_order, residuals
from umscale.store.store import MEASURED

_MOST_FAILED = 20


# -- noise ----------------------------------------------------------------------------------------------------


def noise(evidence: Evidence) -> list[Block]:
    """Run-to-run standard deviations, and what averaging weights and decaying the learning rate change."""
    if not evidence.n_finished:
        return []
    blocks: list[Block] = []
    if evidence.noise and evidence.question != "noise":
        blocks.append(noise_grid(evidence.noise))
    if not evidence.noise:
        blocks.append(
            Paragraph(
                text="No cell was run with two seeds: noise cannot be told from the cells' own differences."
            )
        )
    blocks += _within_seeds(evidence)
    changes = _changes(evidence.table)
    if changes:
        blocks.append(
            Grid(
                caption="What averaging and the decay change, over runs and budgets, nats per token",
                head=("difference", "mean", "least", "greatest", "pairs"),
                sides="lrrrr",
                rows=tuple(changes),
            )
        )
    return blocks


def _within_seeds(evidence: Evidence) -> list[Block]:
    """The noise that is left when cells are compared within seeds, as the paired contrasts of a verdict take it."""
    several = len(levels(evidence.table, "compensation")) > 1
    rows = []
    for mode in levels(evidence.table, "compensation") or (None,):
        for stage in evidence.stages():
            part = where(evidence.table, stage=stage, compensation=mode)
            for loss in LOSSES:
                try:
                    variance, freedom = run_noise(select_rows(part, [], loss=loss, extra=("D",)))
                except UserError:
                    continue
                if freedom:
                    place = [COMPENSATION_WORDS.get(mode or "none", str(mode))] if several else []
                    deviation = fixed(float(np.sqrt(variance)))
                    rows.append((*place, STAGE_WORDS[stage], LOSS_NAMES[loss], deviation, f"{freedom:.0f}"))
    if not rows:
        return []
    return [
        Grid(
            caption="Standard deviation of a run beside its cell, seed and budget, nats per token",
            head=(*(["held"] if several else []), "stage", "weights", "deviation", "degrees of freedom"),
            sides=("l" if several else "") + "llrr",
            rows=tuple(rows),
            notes=(
                "This is what blurs the comparison of cells within a seed, as the paired cells of a verdict do.",
            ),
        )
    ]


def _changes(table: Table) -> list[tuple[str, ...]]:
    stage, keys = (
        text(table, "stage"),
        list(zip(text(table, "run_id"), numeric(table, "budget"), strict=True)),
    )
    losses: dict[tuple[str, str], dict[tuple[str, float], float]] = {}
    for loss in LOSSES:
        values = numeric(table, loss)
        for one in STAGE_WORDS:
            mine = np.flatnonzero((stage == one) & np.isfinite(values))
            losses[one, loss] = {(str(keys[i][0]), float(keys[i][1])): float(values[i]) for i in mine}
    rows: list[tuple[str, ...]] = []
    for title, first, second in (
        ("averaged minus raw weights, before the decay", ("stable", "loss_ema"), ("stable", "loss")),
        ("averaged minus raw weights, after the decay", ("annealed", "loss_ema"), ("annealed", "loss")),
        ("after minus before the decay, raw weights", ("annealed", "loss"), ("stable", "loss")),
        ("after minus before the decay, averaged weights", ("annealed", "loss_ema"), ("stable", "loss_ema")),
    ):
        shared = losses[first].keys() & losses[second].keys()
        gaps = [losses[first][key] - losses[second][key] for key in sorted(shared)]
        if gaps:
            rows.append(
                (title, fixed(float(np.mean(gaps))), fixed(min(gaps)), fixed(max(gaps)), str(len(gaps)))
            )
    return rows


# -- diagnostics ----------------------------------------------------------------------------------------------


def diagnostics(evidence: Evidence) -> list[Block]:
    """Runs that did not finish, files that cannot be read, and what the recommended laws leave behind."""
    blocks: list[Block] = []
    table = evidence.every
    lost = {s: n for s, n in statuses(table).items() if s not in (*MEASURED, "infeasible")}
    if lost:
        blocks.append(Paragraph(text=f"Not finished: {', '.join(f'{n} {s}' for s, n in lost.items())}."))
        blocks.append(_lost(table, tuple(lost)))
    else:
        blocks.append(Paragraph(text="No run failed or diverged."))
    if evidence.unread:
        blocks.append(Paragraph(text=f"The study file is not used: {evidence.unread}."))
    if evidence.damaged:
        blocks.append(Paragraph(text=f"Damaged files, left out: {', '.join(evidence.damaged)}."))
    if evidence.laws:
        blocks += [residuals(evidence.laws, s) for s in in_order(evidence.laws) if s.loss == "loss"]
    return blocks


def _lost(table: Table, which: tuple[str, ...]) -> Grid:
    run, label, status, reason = (text(table, name) for name in ("run_id", "label", "status", "reason"))
    rows: dict[str, tuple[str, ...]] = {}
    for i in np.flatnonzero(np.isin(status, which)):
        rows.setdefault(run[i], (run[i][:8], label[i] or "–", status[i], reason[i] or "–"))
    notes = (f"{len(rows) - _MOST_FAILED} more.",) if len(rows) > _MOST_FAILED else ()
    shown = tuple(list(rows.values())[:_MOST_FAILED])
    return Grid(caption="", head=("run", "cell", "status", "reason"), sides="llll", rows=shown, notes=notes)
