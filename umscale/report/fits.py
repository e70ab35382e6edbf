"""Laws with their intervals, run-to-run noise, and what residuals and failures show."""

import numpy as np

from umscale.errors import UserError
from umscale.laws.forms import LocalLaw
from umscale.laws.pairs import run_noise
from umscale.questions.laws import LOSSES, Report, Section
from umscale.render.page import Block, Bullets, Fold, Grid, Heading, Paragraph
from umscale.report.design import statuses
from umscale.report.evidence import COMPENSATION_WORDS, STAGE_WORDS, Evidence
from umscale.results.table import Table, levels, numeric, select_rows, text, where
from umscale.say.estimates import fixed, pair, significant
from umscale.say.laws import (
    LOSS_NAMES,
    columns_text,
    edges_tested,
    fitted_text,
    holdout_text,
    interval_text,
)
from umscale.say.numbers import count

_MOST_FAILED = 20


def laws(evidence: Evidence) -> list[Block]:
    """Laws compared and their coefficients, raw weights open and averaged ones folded away."""
    found = evidence.laws
    if found is None:
        if evidence.architectures:
            return [
                Paragraph(
                    text="No law is fitted: none holds across architectures. Their losses are compared as they are."
                )
            ]
        return []
    blocks: list[Block] = [
        Paragraph(
            text="Laws of the loss about the centre of the design (local laws: coefficients in nats per "
            "doubling), fitted to all finished runs of one stage. Held-out errors are of rows beyond an edge "
            "of the rows fitted on."
        )
    ]
    for loss in LOSSES:
        mine = [block for section in _ordered(found) if section.loss == loss for block in _section(section)]
        if mine and loss == "loss":
            blocks += mine
        elif mine:
            blocks.append(Fold(summary=f"The same with {LOSS_NAMES[loss]}", blocks=tuple(mine)))
    blocks += [Paragraph(text=f"{_sentence(columns_text(found))}"), *_sources(found)]
    if found.skipped:
        blocks.append(Bullets(items=tuple(f"Not fitted: {line}" for line in found.skipped)))
    return blocks


def _ordered(found: Report) -> list[Section]:
    """Sections by compensation, the stage before the decay first."""
    return sorted(found.sections, key=lambda s: (s.compensation or "", s.stage == "annealed"))


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"


def _place(section: Section) -> str:
    words = [
        STAGE_WORDS.get(section.stage or "", section.stage or ""),
        LOSS_NAMES.get(section.loss, section.loss),
    ]
    if section.compensation not in (None, "none"):
        words.append(COMPENSATION_WORDS.get(section.compensation or "", section.compensation or ""))
    return _sentence(", ".join(word for word in words if word))[:-1]


def _section(section: Section) -> list[Block]:
    edges = edges_tested(section)
    comparison = section.comparison
    compared = [
        (
            c.fit.law.name,
            str(c.n_parameters - 1),
            fixed(c.fit.rmse_nats),
            fixed(c.fit.rmse_percent, 2),
            fixed(c.fit.r_squared, 3),
            fixed(c.aicc, 1),
            fixed(c.bic, 1),
            *(holdout_text(c, edge) for edge in edges),
        )
        for c in comparison.laws
    ]
    coefficients = []
    for c, uncertainty in zip(comparison.laws, section.uncertainty, strict=True):
        for name, estimate in uncertainty.coefficients().items():
            local = isinstance(c.fit.law, LocalLaw)
            value, ends = (
                pair(estimate) if local else (significant(estimate.value, 7), interval_text(estimate))
            )
            loose = "no" if name in c.fit.unidentified else "yes"
            first = name == c.fit.law.coefficients[0]
            coefficients.append((c.fit.law.name if first else "", name, value, ends, loose))
    notes = [
        f"{c.fit.law.name}: {line}"
        for c, uncertainty in zip(comparison.laws, section.uncertainty, strict=True)
        for line in (*c.fit.warnings, *uncertainty.warnings)
    ]
    uses = [f"{_sentence(use.purpose)[:-1]}: {use.law} ({use.reason})." for use in comparison.uses]
    return [
        Heading(text=f"{_place(section)}: {comparison.laws[0].fit.n_rows} records"),
        Grid(
            caption="Laws compared",
            head=(
                "law",
                "free",
                "RMSE, nats",
                "RMSE, %",
                "R²",
                "AICc",
                "BIC",
                *(f"{h}, nats" for h in edges.values()),
            ),
            sides="l" + "r" * (6 + len(edges)),
            rows=tuple(compared),
            notes=(f"Law to use: {comparison.recommended} ({comparison.reason}).", *uses),
        ),
        Grid(
            caption="Coefficients, 95% intervals",
            head=("law", "coefficient", "value, nats", "interval", "identified"),
            sides="llrrl",
            rows=tuple(coefficients),
            notes=tuple(_sentence(note) for note in notes),
        ),
    ]


def _sources(found: Report) -> list[Block]:
    laws = {c.fit.law.name: c.fit.law for s in found.sections for c in s.comparison.laws}
    fitted = {c.fit.law.name: fitted_text(c.fit) for s in reversed(found.sections) for c in s.comparison.laws}
    drawn = {
        c.fit.law.name: f"{u.method}; resampled {u.resampled}"
        for s in reversed(found.sections)
        for c, u in zip(s.comparison.laws, s.uncertainty, strict=True)
        if len(u.draws)
    }
    rows = tuple(
        (name, f"`{law.formula}`", law.source, fitted[name].partition(", objective")[0], drawn.get(name, "–"))
        for name, law in laws.items()
    )
    head = ("law", "loss in nats", "source", "fitted by", "intervals by")
    return [Grid(caption="Where laws and intervals come from", head=head, sides="lllll", rows=rows)]


# -- noise ----------------------------------------------------------------------------------------------------


def noise(evidence: Evidence) -> list[Block]:
    """Run-to-run standard deviations, and what averaging weights and decaying the learning rate change."""
    if not evidence.n_finished:
        return []
    blocks: list[Block] = []
    places = dict.fromkeys((one.budget, one.stage) for one in evidence.noise)
    if places:
        found = {(one.budget, one.stage, one.loss): one for one in evidence.noise}
        rows = []
        for budget, stage in sorted(places, key=lambda place: (place[0], place[1] == "annealed")):
            each = [found.get((budget, stage, loss)) for loss in LOSSES]
            freedom = next(f"{one.freedom:.0f}" for one in each if one)
            cells = [cell for one in each for cell in pair(one.deviation if one else None)]
            rows.append((count(budget), STAGE_WORDS.get(stage, stage), *cells, freedom))
        blocks.append(
            Grid(
                caption="Standard deviation between seeds of one cell, pooled over cells, nats per token",
                head=(
                    "tokens",
                    "stage",
                    *(head for loss in LOSSES for head in (LOSS_NAMES[loss], "interval")),
                    "degrees of freedom",
                ),
                sides="rl" + "rr" * len(LOSSES) + "r",
                rows=tuple(rows),
                notes=("The offset that a seed gives to all its runs is in it.",),
            )
        )
    else:
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
    lost = {s: n for s, n in statuses(table).items() if s not in ("finished", "infeasible")}
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
        blocks += [block for s in _ordered(evidence.laws) if s.loss == "loss" for block in _residuals(s)]
    return blocks


def _lost(table: Table, which: tuple[str, ...]) -> Grid:
    run, label, status, reason = (text(table, name) for name in ("run_id", "label", "status", "reason"))
    rows: dict[str, tuple[str, ...]] = {}
    for i in np.flatnonzero(np.isin(status, which)):
        rows.setdefault(run[i], (run[i][:8], label[i] or "–", status[i], reason[i] or "–"))
    notes = (f"{len(rows) - _MOST_FAILED} more.",) if len(rows) > _MOST_FAILED else ()
    shown = tuple(list(rows.values())[:_MOST_FAILED])
    return Grid(caption="", head=("run", "cell", "status", "reason"), sides="llll", rows=shown, notes=notes)


def _residuals(section: Section) -> list[Block]:
    """Of the law a section recommends."""
    names = [c.fit.law.name for c in section.comparison.laws]
    index = names.index(section.comparison.recommended)
    found = section.diagnostics[index]
    rows = []
    for axis in found.axes:
        for i, one in enumerate(axis.bins):
            first = i == 0
            rows.append(
                (
                    f"`{axis.column}`" if first else "",
                    _size(one.low) if one.low == one.high else f"{_size(one.low)} to {_size(one.high)}",
                    str(one.n_rows),
                    fixed(one.mean),
                    fixed(one.rms),
                    fixed(axis.slope) if first else "",
                    fixed(axis.t, 1) if first else "",
                )
            )
    runs = ", ".join(f"{r.name} {fixed(r.mean)} ({fixed(abs(r.deviations), 1)} sd)" for r in found.runs)
    moved = ", ".join(
        f"{i.row} ({i.coefficient} by {fixed(abs(i.standard_errors), 2)} standard errors)"
        for i in found.influence
    )
    return [
        Grid(
            caption=f"Residuals of the law {names[index]}, {_place(section).lower()}, nats per token",
            head=("axis", "values", "rows", "mean residual", "RMS", "slope per octave", "t"),
            sides="llrrrrr",
            rows=tuple(rows),
            notes=(
                f"Furthest from the law: {runs}.",
                *([f"Rows that move a coefficient most: {moved}."] if moved else []),
                *(_sentence(line) for line in found.statements),
            ),
        )
    ]


def _size(value: float) -> str:
    return count(value) if abs(value) >= 1000 else significant(value)
