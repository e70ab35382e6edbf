"""Whether a law's irreducible loss is the true one, where a generated corpus makes that known."""

from dataclasses import dataclass

import numpy as np

from umscale.laws.sections import Report
from umscale.laws.uncertainty import Estimate
from umscale.results.table import Table, numeric
from umscale.say.labels import heading
from umscale.say.laws import estimate_text

IRREDUCIBLE = "E"
"""Name of the constant term in the published laws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorAnswer:
    """A law's constant term beside the entropy rate of the source that made the corpus."""

    law: str
    stage: str | None
    compensation: str | None
    loss: str
    fitted: Estimate
    """Nats per token."""
    floor_nats: float
    """Exact, see ``umscale.data.synthetic``."""
    least_nats: float
    """The lowest loss the law was fitted to."""

    @property
    def covered(self) -> bool:
        """Whether the interval holds the floor."""
        return self.fitted.has_interval and self.fitted.low <= self.floor_nats <= self.fitted.high

    @property
    def holds(self) -> bool:
        """Whether the constant term lies below every loss fitted, as an irreducible loss must."""
        return self.fitted.value <= self.least_nats

    @property
    def words(self) -> str:
        """One sentence."""
        where = heading(self.stage, self.compensation, self.loss)
        answer = "its interval covers it" if self.covered else "its interval misses it"
        if not self.fitted.has_interval:
            answer = "it has no interval"
        if not self.holds:
            answer += f", but the law does not hold: {IRREDUCIBLE} lies above a loss measured, {self.least_nats:.4f}"
        return (
            f"Floor of the corpus {self.floor_nats:.4f} nats; {self.law}'s {IRREDUCIBLE} is "
            f"{estimate_text(self.fitted)}: {answer} ({where})"
        )


def floor_answers(table: Table, found: Report) -> tuple[FloorAnswer, ...]:
    """Compare every fitted constant term with the floor that a study's records hold; nothing where it is not known."""
    if "floor_nats" not in table:
        return ()
    floors = numeric(table, "floor_nats")
    floors = np.unique(floors[np.isfinite(floors)])
    if len(floors) != 1:
        return ()
    answers = []
    for section in found.sections:
        for compared, uncertainty in zip(section.comparison.laws, section.uncertainty, strict=True):
            if (fitted := uncertainty.coefficients().get(IRREDUCIBLE)) is not None:
                answers.append(
                    FloorAnswer(
                        law=compared.fit.law.name,
                        stage=section.stage,
                        compensation=section.compensation,
                        loss=compared.fit.loss,
                        fitted=fitted,
                        floor_nats=float(floors[0]),
                        least_nats=float(compared.fit.rows.loss.min()),
                    )
                )
    return tuple(answers)
