"""What a fitted law says by itself: its coefficients, and whether it finds an irreducible loss that is known."""

from dataclasses import dataclass
from typing import Any

from umscale.laws.sections import Report, study_report, to_json
from umscale.questions.floor import FloorAnswer, floor_answers
from umscale.questions.question import Answer, Asked, Question, with_beside
from umscale.results.table import Table
from umscale.say.blocks import Block, Verdict
from umscale.say.laws import law_blocks

LAWS = ("chinchilla",)
"""What a study that asks this is fitted with, unless others are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LawsAnswer(Answer):
    """Laws, and how their constant terms lie to the known floor of a generated corpus."""

    laws: Report
    floors: tuple[FloorAnswer, ...]
    losses: tuple[str, ...]
    """Those to speak of."""

    def to_json(self, **context: Any) -> dict[str, Any]:
        """See docs/fit-json.md; ``context`` is put beside."""
        return to_json(self.laws, **context)

    def basis(self) -> list[Block]:
        """The laws."""
        return law_blocks(self.laws, self.losses)

    def blocks(self) -> list[Block]:
        """A verdict for each floor."""
        return [
            Verdict(
                verdict=f"The fitted floor {'covers' if one.covered else 'misses'} the true one"
                + ("" if one.holds else ", but the law does not hold"),
                tone="yes" if one.covered and one.holds else "no",
                text=f"{one.words}.",
            )
            for one in self.floors
            if one.loss == self.losses[0]
        ]


def answer(table: Table, asked: Asked) -> LawsAnswer:
    """Laws of a study; raises ``UserError`` where none can be fitted."""
    found = study_report(
        table,
        asked.laws or LAWS,
        losses=with_beside(asked.losses),
        stage=asked.stage,
        seed=asked.seed,
        settings=asked.settings,
    )
    return LawsAnswer(laws=found, floors=floor_answers(table, found), losses=asked.losses)


QUESTION = Question(
    asks="What is the irreducible loss, and does a fitted law find it?",
    answer=answer,
    figures=("predicted",),
    behind=("bootstrap", "curves"),
)
