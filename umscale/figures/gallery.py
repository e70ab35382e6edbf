"""A table whose figures are drawn, and the laws on it once one of them asks."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from umscale.errors import UserError
from umscale.laws.forms import FIRST_LAWS, Law
from umscale.laws.sections import Section, Settings, table_report
from umscale.laws.uncertainty import Uncertainty
from umscale.questions.laws import LAWS
from umscale.results.columns import COLUMNS
from umscale.results.table import Table, levels, where


class Gallery:
    """A table, and the laws on it once a figure asks for them."""

    def __init__(
        self,
        table: Table,
        *,
        laws: Sequence[Law] = (),
        question: str = "",
        loss: str = "loss",
        stage: str | None = None,
        settings: Settings | None = None,
        training: Callable[[], Table] | None = None,
        seed: int = 0,
    ) -> None:
        """A gallery of ``table``.

        Args:
            laws: those to draw; none takes a study's own and draws the one it recommends.
            question: a study's, which says what its own laws are.
            stage: one stage alone; None takes all.
            settings: of the fits; the default ones are a study's.
            training: gives the training curves of a study's runs; None where there are none.
            seed: of the bootstrap.
        """
        self.table = where(table, stage=stage)
        self.laws = tuple(laws)
        self.question = question
        self.loss = loss
        self.settings = settings or Settings()
        self.training = training
        self.seed = seed
        self.skipped: tuple[str, ...] = ()
        """Laws that could not be fitted somewhere, with the reason; known once a figure has asked for laws."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Symbol → column."""
        return {**COLUMNS, **self.settings.columns}

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The laws on every stage and compensation, stages before the decay first; raises ``UserError`` for none."""
        if not self.laws and not self.settings.is_study:
            raise UserError("this figure needs a law: name one with --law; `umscale laws` lists them")
        self.require_one_architecture()
        settings = replace(self.settings, diagnostics=True)
        laws = self.laws or (LAWS if self.question == "laws" else FIRST_LAWS)
        found = table_report(self.table, laws, settings, loss=self.loss, seed=self.seed)
        self.skipped = found.skipped
        for section in found.sections:
            for fit in (section.comparison.laws[i].fit for i in self.chosen(section)):
                if not np.isfinite(fit.vector).all():
                    raise UserError(
                        f"law {fit.law.name!r} has no finite coefficients on these rows: nothing to draw"
                    )
        return tuple(sorted(found.sections, key=lambda section: section.stage == "annealed"))

    def require_one_architecture(self) -> None:
        """Raise ``UserError`` where a law of a study would mix architectures that it cannot tell apart."""
        names = levels(self.table, "architecture")
        if not self.laws and len(names) > 1:
            raise UserError(f"the study compares {', '.join(names)}: no law holds across architectures")

    def chosen(self, section: Section) -> list[int]:
        """Positions of the laws that are drawn: those asked for, or the recommended one."""
        names = [compared.fit.law.name for compared in section.comparison.laws]
        if self.laws:
            return list(range(len(names)))
        # A flat line says nothing of how flat: the band of the additive law does.
        best = section.comparison.recommended
        return [names.index("additive" if best == "null" and "additive" in names else best)]

    def laws_at(self, compensation: str | None) -> tuple[list[Uncertainty], str]:
        """The laws to draw beside points of one compensation, or why there are none."""
        if not self.laws and not self.settings.is_study:
            return [], ""
        try:
            sections = [s for s in self.sections if s.compensation == compensation]
        except UserError as error:
            if self.laws:
                raise
            return [], f"No law drawn: {error}."
        return [section.uncertainty[i] for section in sections for i in self.chosen(section)], ""

    def parts(self) -> Iterator[tuple[str, str | None, Table]]:
        """File-name suffix, compensation and rows of every compensation of the table."""
        modes = levels(self.table, "compensation")
        for mode in modes or (None,):
            yield (f"-{mode}" if len(modes) > 1 else ""), mode, where(self.table, compensation=mode)

    def fits(self, *, stages: bool = True) -> Iterator[tuple[str, Section, int]]:
        """File-name suffix, section and position of every law that is drawn.

        Suffixes tell apart what there are several of: compensations, laws and, unless a figure holds them all, stages.
        """
        names = ("compensation", "stage") if stages else ("compensation",)
        several = [name for name in names if len({getattr(s, name) for s in self.sections}) > 1]
        for section in self.sections:
            words = [str(getattr(section, name)) for name in several]
            positions = self.chosen(section)
            for i in positions:
                law = [_file_name(section.comparison.laws[i].fit.law.name)] if len(positions) > 1 else []
                yield "".join(f"-{word}" for word in (*words, *law)), section, i


def _file_name(law: str) -> str:
    """A law's name as part of a file's; an expression may hold anything."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", law).strip("_")[:40]
