"""How far runs of one setting lie apart: the run-to-run noise of a study, by stage, budget and weights evaluated."""

from dataclasses import dataclass

import numpy as np

from umscale.errors import UserError
from umscale.labels import cell_parts
from umscale.laws.uncertainty import Estimate
from umscale.questions.architectures import block_noise
from umscale.results.table import Table, levels, n_rows, numeric, text, where

LOSSES = ("loss", "loss_ema")


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
    from scipy.stats import chi2

    low, high = (np.sqrt(variance * freedom / chi2.ppf(q, freedom)) for q in (0.975, 0.025))
    return Estimate(value=float(np.sqrt(variance)), low=float(low), high=float(high))
