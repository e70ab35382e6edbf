"""How far runs of one setting lie apart: the run-to-run noise of a study, by stage, budget and weights evaluated."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from umscale.cell_labels import cell_parts
from umscale.errors import UserError
from umscale.laws.uncertainty import Estimate
from umscale.questions.architectures import block_noise
from umscale.questions.question import LOSSES, Answer, Asked, Question
from umscale.results.table import Table, levels, n_rows, numeric, text, where
from umscale.say.blocks import Block, Fold, Grid, Verdict
from umscale.say.estimates import both, counted, fixed, pair
from umscale.say.labels import LOSS_NAMES, capital, when
from umscale.say.numbers import count
from umscale.store.schema import STAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Standard deviation between seeds of one cell, or pooled over cells, at one stage and budget."""

    question: str = "noise"
    cell: str
    """Empty when pooled over all cells."""
    stage: str
    budget: float
    loss: str
    mean: float
    """Mean loss, nats per token."""
    n_runs: int
    deviation: Estimate
    """Nats per token, with the 95% interval that holds if noise is Gaussian (chi-squared)."""
    freedom: float
    """Degrees of freedom of ``deviation``: fewer than runs minus cells where cells share a seed's data order and
    initial weights, and so do not vary independently (Satterthwaite)."""
    in_block: Estimate | None
    """The same beside what the runs of a seed share: the noise of differences within seed blocks, over the root of
    two. None of a single cell."""


def run_noise(table: Table, *, by_cell: bool = False, stage: str | None = None) -> tuple[Noise, ...]:
    """Return the noise of a study's finished runs, largest budget and annealed first, raw before averaged weights.

    Args:
        table: ``Store.columns()``.
        by_cell: every cell by itself; otherwise variances are pooled over cells.

    Raises:
        UserError: no cell has two seeds.
    """
    if "label" not in table or not n_rows(table):
        raise UserError("noise is measured between a study's finished runs; there are none")
    found: list[Noise] = []
    for budget in sorted(set(numeric(table, "budget").tolist()), reverse=True):
        at = where(table, budget=budget)
        for one in levels(at, "stage"):
            if stage in (None, one):
                found += _at(where(at, stage=one), one, budget, by_cell)
    if not found:
        raise UserError("noise needs two seeds of some cell")
    return tuple(found)


def _at(table: Table, stage: str, budget: float, by_cell: bool) -> list[Noise]:
    modes = text(table, "compensation") if "compensation" in table else np.full(n_rows(table), "")
    shown = ("" if mode == "none" else f" {mode}" for mode in modes)
    words = [f"{_cell(label)}{mode}" for label, mode in zip(text(table, "label"), shown, strict=True)]
    cells = np.array(words, dtype=str)
    found = []
    for loss in LOSSES:
        if loss not in table:
            continue
        losses, seeds = numeric(table, loss), numeric(table, "seed")
        groups = {c: losses[(cells == c) & np.isfinite(losses)] for c in dict.fromkeys(words)}
        groups = {c: values for c, values in groups.items() if len(values) > 1}
        several = np.isin(cells, list(groups)) & np.isfinite(losses)
        parts = [(c, [v]) for c, v in groups.items()] if by_cell else [("", list(groups.values()))]
        for cell, values in parts:
            if freedom := sum(len(v) - 1 for v in values):
                squares = sum(float(v.var() * len(v)) for v in values)
                # A single cell has no other that shares its seeds.
                within, own = (
                    (0.0, 0) if cell else block_noise(cells[several], seeds[several], losses[several])
                )
                effective = _effective(squares, freedom, within, own)
                found.append(
                    Noise(
                        cell=cell,
                        stage=stage,
                        budget=budget,
                        loss=loss,
                        mean=float(np.mean([v.mean() for v in values])),
                        n_runs=sum(map(len, values)),
                        deviation=_deviation(squares / freedom, effective),
                        freedom=effective,
                        in_block=_deviation(within**2, own) if own and not cell else None,
                    )
                )
    return found


def _effective(squares: float, freedom: int, within: float, own: int) -> float:
    """Degrees of freedom of squares / freedom, a sum of what seed blocks share and of what is left (Satterthwaite)."""
    left, shared = own * within**2, freedom - own
    if not own or not shared:
        return float(freedom)
    between = max(squares - left, 0.0)
    return squares**2 / (between**2 / shared + left**2 / own)


def _cell(label: str) -> str:
    """The label of a run's cell: without the seed and with nothing that each study writes its own way."""
    return " ".join(part for part in cell_parts(label) if "=" in part) or "all"


def _deviation(variance: float, freedom: float) -> Estimate:
    from umscale.laws.special import chdtri

    low, high = (np.sqrt(variance * freedom / chdtri(freedom, q)) for q in (0.025, 0.975))
    return Estimate(value=float(np.sqrt(variance)), low=float(low), high=float(high))


# -- the answer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseAnswer(Answer):
    """Noise pooled over cells, and of every cell."""

    pooled: tuple[Noise, ...]
    each: tuple[Noise, ...]

    def to_json(self, **context: Any) -> list[dict[str, Any]]:
        """The pooled noise first."""
        return [asdict(one) for one in (*self.pooled, *self.each)]

    def blocks(self) -> list[Block]:
        """At the largest budget in a sentence, pooled in a table, and cell by cell where there are several."""
        largest = [one for one in self.pooled if one.budget == self.pooled[0].budget]
        said = [
            f"{when(one.stage)}, {LOSS_NAMES[one.loss]}: {both(one.deviation)} ({counted(one.n_runs, 'run')})"
            for one in sorted(largest, key=lambda one: (STAGES.index(one.stage), one.loss))
        ]
        cells = Fold(summary="Every cell by itself", blocks=(noise_grid(self.each),))
        return [
            Verdict(
                verdict="Standard deviation between runs of one cell, in nats per token, at "
                f"{count(largest[0].budget)} tokens",
                tone="open",
                text=f"{capital('; '.join(said))}. Pooled over cells; 95% intervals hold if noise is Gaussian.",
            ),
            noise_grid(self.pooled),
            *([cells] if len({one.cell for one in self.each}) > 1 else []),
        ]


def answer(table: Table, asked: Asked) -> NoiseAnswer:
    """How far runs of one cell lie apart; raises ``UserError`` where no cell has two seeds."""
    pooled, each = (run_noise(table, by_cell=by_cell, stage=asked.stage) for by_cell in (False, True))
    return NoiseAnswer(pooled=pooled, each=each)


def noise_grid(found: Sequence[Noise]) -> Grid:
    """A row for each budget, stage, weights evaluated and, unless pooled, cell."""
    pooled = not any(one.cell for one in found)
    order = sorted(found, key=lambda one: (-one.budget, one.cell, STAGES.index(one.stage), one.loss))
    return Grid(
        caption="Standard deviation between runs of one cell"
        f"{', pooled over cells' if pooled else ''}, nats per token, 95% intervals",
        head=(
            "tokens",
            *(() if pooled else ("cell",)),
            *("stage", "weights", "runs", "mean loss", "deviation", "interval"),
            *(("within seeds", "interval", "degrees of freedom") if pooled else ()),
        ),
        sides="rllrrrrrrr" if pooled else "rlllrrrr",
        rows=tuple(
            (
                count(one.budget),
                *(() if pooled else (one.cell,)),
                when(one.stage),
                LOSS_NAMES[one.loss].removesuffix(" weights"),
                str(one.n_runs),
                fixed(one.mean),
                *pair(one.deviation),
                *((*pair(one.in_block), f"{one.freedom:.0f}") if pooled else ()),
            )
            for one in order
        ),
        notes=("The offset that a seed gives to all its runs is in the deviation, not in that within seeds.",)
        if pooled
        else (),
    )


QUESTION = Question(
    asks="How far do runs of one cell lie apart, and what does averaging weights do about it?", answer=answer
)
