"""Which cell of a study has the least loss at its largest budget?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from umscale.cell_labels import cell_name
from umscale.errors import UserError
from umscale.questions.question import Answer, Asked, Question
from umscale.results.table import Table, numeric, text, where
from umscale.say.blocks import Block, Grid, Verdict


@dataclass(frozen=True, slots=True)
class BestCell(Answer):
    """Mean loss of every cell, least first."""

    cells: tuple[tuple[str, int, float], ...]
    """Name, runs, loss in nats per token."""

    def to_json(self, **context: Any) -> dict[str, Any]:
        return {"cells": [{"cell": c, "runs": n, "loss": x} for c, n, x in self.cells], **context}

    def blocks(self) -> list[Block]:
        name, _, loss = self.cells[0]
        rows = tuple((c, str(n), f"{x:.4f}") for c, n, x in self.cells)
        return [
            Verdict(verdict=f"The least loss has {name}", tone="open", text=f"{loss:.4f} nats per token."),
            Grid(caption="Cells, least loss first", head=("cell", "runs", "loss"), sides="lrr", rows=rows),
        ]


def answer(table: Table, asked: Asked) -> BestCell:
    """Raises ``UserError`` for a table without finished runs."""
    if not len(table["run_id"]):
        raise UserError("best-cell needs finished runs")
    part = where(table, stage=asked.stage or "annealed", budget=float(numeric(table, "budget").max()))
    losses = numeric(part, asked.losses[0])
    names = np.array([cell_name(label) for label in text(part, "label")], dtype=str)
    found = [
        (name, int((names == name).sum()), float(losses[names == name].mean()))
        for name in dict.fromkeys(names.tolist())
    ]
    return BestCell(tuple(sorted(found, key=lambda cell: cell[2])))


QUESTION = Question(asks="Which cell has the least loss?", answer=answer)
