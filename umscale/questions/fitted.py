"""Laws fitted to every part of a table, each with the rows it was fitted to and the groups in which they err."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from umscale.errors import UserError, nearest
from umscale.laws.compare import Compared, errors_in_words
from umscale.laws.fit import FitResult
from umscale.laws.forms import Law
from umscale.laws.sections import Section, Settings, parts_of, resampling_groups, table_report
from umscale.questions.predict import TREND_LAWS
from umscale.results.columns import Array
from umscale.results.table import Codes, Table, numeric, where


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """One law on one part of a table."""

    fit: FitResult
    by: Mapping[str, str]
    """Column → the value that the part shares."""
    reason: str
    """Why this law."""
    group: Codes | None
    """Of the rows, as ``bootstrap`` takes them; None leaves a study's runs and cells to it."""
    unit: str
    rows: Table
    """The rows fitted, all columns."""

    @property
    def groups(self) -> Codes | Literal["auto"]:
        """What ``bootstrap`` takes."""
        return "auto" if self.group is None else self.group

    def axis(self, name: str) -> Array:
        """Values of a symbol or a column, [rows]; raises ``UserError`` for neither, and where one is missing."""
        if name in self.fit.rows.values:
            return self.fit.rows.values[name]
        if name not in self.rows:
            raise UserError(
                f"there is no symbol or column {name!r}{nearest(name, (*self.fit.columns, *self.rows))}"
            )
        cells = numeric(self.rows, name)
        if not np.isfinite(cells).all():
            raise UserError(f"column {name!r} is missing in some rows")
        return cells


def fitted(
    table: Table,
    laws: Sequence[Law | str],
    settings: Settings,
    *,
    loss: str = "loss",
    stage: str | None = None,
) -> tuple[Fitted, ...]:
    """Fit ``laws``, or where none is named the best of ``TREND_LAWS``, to every part of a table.

    Raises ``UserError`` where a law that was named cannot be fitted to a part.
    """
    report = table_report(table, laws or TREND_LAWS, replace(settings, n_draws=0), loss=loss, stage=stage)
    if laws and report.skipped:
        raise UserError(report.skipped[0])
    parts = dict(parts_of(table, settings.by))
    return tuple(one for section in report.sections for one in _fitted(section, parts, settings, bool(laws)))


def _fitted(
    section: Section, parts: Mapping[tuple[str, ...], Table], settings: Settings, named: bool
) -> Iterator[Fitted]:
    rows = where(parts[section.by], stage=section.stage, compensation=section.compensation)
    chosen = (
        [(c, "as asked") for c in section.comparison.laws]
        if named
        else [_along_tokens(section, settings.loss_unit)]
    )
    for compared, reason in chosen:
        fit = compared.fit
        codes, unit = resampling_groups(rows, fit, settings)
        yield Fitted(
            fit=fit,
            by=dict(zip(settings.by, section.by, strict=True)),
            reason=reason,
            group=codes,
            unit=unit,
            rows={name: np.asarray(cells)[fit.rows.index] for name, cells in rows.items()},
        )


def _along_tokens(section: Section, unit: str) -> tuple[Compared, str]:
    """The law of least error with the most tokens held out; the smallest where that cannot be tested."""
    usable = [c for c in section.comparison.laws if not c.fit.unidentified and not c.fit.dropped]
    if not usable:
        raise UserError(
            f"these rows identify none of {', '.join(c.fit.law.name for c in section.comparison.laws)}: name a "
            "law with "
            "--law, or train more cells and budgets"
        )
    tested = [(h.rmse_nats, c) for c in usable for h in c.holdouts if h.edge == "future" and not h.skipped]
    if not tested:
        tangent = [c for c in usable if c.fit.law.name == TREND_LAWS[0]] or usable
        return tangent[
            0
        ], "a tangent: too few budgets to hold one out, so nothing tells how what tokens buy changes"
    errors = errors_in_words([(c.fit.law.name, error) for error, c in tested], unit)
    best = min(tested, key=lambda pair: pair[0])[1]
    return best, f"least error with the most tokens held out, {errors}"
