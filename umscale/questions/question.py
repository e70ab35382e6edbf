"""What a question is, and which file holds the one that a study names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from umscale import parts
from umscale.design.question_names import QUESTIONS
from umscale.laws.uncertainty import Estimate
from umscale.results.table import Table
from umscale.say.blocks import Block

if TYPE_CHECKING:
    import pyarrow as pa

    from umscale.laws.forms import Law
    from umscale.laws.sections import Report, Settings

LOSSES = ("loss", "loss_ema")
"""Columns of losses of a study: of raw weights and of averaged ones."""


def with_beside(losses: tuple[str, ...]) -> tuple[str, ...]:
    """The losses that laws are fitted to: beside raw weights always averaged ones, and the other way round."""
    return LOSSES if set(losses) <= set(LOSSES) else losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked of a table beside the question itself; a question reads what it needs."""

    losses: tuple[str, ...] = LOSSES
    """Columns of losses to speak of; the first one's answer comes first."""
    stage: str | None = None
    """One stage alone; None takes all."""
    baseline: str | None = None
    """Architecture that differences refer to; None takes the study's own."""
    laws: "Sequence[str | Law]" = ()
    """Laws to fit; none takes the question's own."""
    settings: "Settings | None" = None
    """Of the fits; None takes a study's."""
    seed: int = 0
    """Of the bootstrap."""
    read: "Callable[[str], pa.Table] | None" = None
    """``Store.read``: another table of the study by its name; None where there are no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A difference whose sign decides a question, or a part of one: what further runs are counted for."""

    asks: str
    """As a question, without its place in the study."""
    known: str
    """The answer so far, in a word or two."""
    stage: str | None
    compensation: str | None
    estimate: Estimate
    """The difference; settled where its interval leaves out zero. Without an interval nothing is known of it yet."""
    freedom: float
    """Degrees of freedom of the interval (Student)."""
    averages: float = 1.0
    """Share of the interval's variance that further seeds in the same cells average away; the rest is misfit."""
    obstacle: str = ""
    """Why the interval alone does not settle it, where something else stands in the way."""
    only: tuple[str, ...] = ()
    """Architectures that it is between; none where all cells carry it."""

    @property
    def settled(self) -> bool:
        """Whether the interval leaves out zero and nothing stands in the way."""
        one = self.estimate
        return one.has_interval and (one.low > 0 or one.high < 0) and not self.obstacle


class Answer:
    """The answer to a question: numbers with intervals, and their words."""

    __slots__ = ()

    @property
    def laws(self) -> "Report | None":
        """The laws that the answer rests on."""
        return None

    def to_json(self, **context: Any) -> Any:
        """Plain data, in which numbers may be infinite or NaN; ``context`` is put beside where the schema has room."""
        raise NotImplementedError

    def blocks(self) -> list[Block]:
        """The answer in words and tables, what matters most first."""
        raise NotImplementedError

    def contrasts(self) -> "Sequence[Contrast]":
        """The differences that the answer turns on, what matters most first; none of an answer that ranks nothing."""
        return ()

    def basis(self) -> list[Block]:
        """What the answer rests on."""
        return []

    def limits(self) -> list[str]:
        """What the answer does not show, in sentences, beside what no study shows."""
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question that a study may ask: ``question = "NAME"`` names the file ``questions/NAME.py`` with its QUESTION."""

    asks: str
    """The question as a sentence."""
    answer: Callable[[Table, Asked], Answer]
    """Raises ``UserError`` for a table that cannot give an answer."""
    figures: tuple[str, ...] = ()
    """Kinds of figures (``umscale plot``) that show the answer."""
    behind: tuple[str, ...] = ("curves",)
    """Kinds of figures that show what the answer rests on."""


def find(name: str) -> Question:
    """Return the question with this name: one of ``design.question_names.QUESTIONS``, or of an installed package.

    Raises:
        UserError: there is none, or the package's cannot be loaded.
    """
    found: Question
    if name in QUESTIONS:
        found = import_module(f"umscale.questions.{name.replace('-', '_')}").QUESTION
    else:
        found = parts.find("questions", name, known=QUESTIONS).load(Question)
    return found
