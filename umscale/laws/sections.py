"""Laws side by side on each part of a table, with what ``umscale fit --json`` writes of them.

A study's table is taken apart by compensation and stage, anybody's by what its user names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from umscale.errors import UserError, nearest
from umscale.laws.compare import EXTRA_SYMBOLS, Compared, Comparison, Recipe, compare, fit_each, nulls_beside
from umscale.laws.diagnostics import Diagnostics, diagnose, inseparable, residuals_in_nats
from umscale.laws.fit import FitResult
from umscale.laws.forms import FIRST_LAWS, ExpressionLaw, Law, LocalLaw, PowerLaw, law_named
from umscale.laws.repeats import repeated_group
from umscale.laws.uncertainty import Estimate, Group, Interval, Uncertainty, bootstrap, profile_interval
from umscale.results.source import ROW
from umscale.results.table import Codes, Table, group_codes, levels, missing_columns, numeric, text
from umscale.results.table import where as part_of

SCHEMA_VERSION = 2
LOSSES = ("loss", "loss_ema")

STUDY_UNITS: Mapping[str, str] = {
    "N": "active parameters without embeddings",
    "N_s": "sparse parameters",
    "D": "training tokens",
    "m": "values activated per token and layer",
    "rho": "active over total sparse parameters",
    "r": "memory FLOPs over FFN FLOPs",
    "experts": "experts per layer",
    "loss": "nats per token",
}
"""Symbol → unit and convention of a store's columns."""

_MOST_GROUPS = 100  # fits of --by: more is a column that does not group
_FORMS: Mapping[type[Law], str] = {PowerLaw: "power", LocalLaw: "local", ExpressionLaw: "expression"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How laws are fitted and examined; the defaults are a study's."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Symbol → column, over the defaults of ``results.columns.COLUMNS``."""
    units: Mapping[str, str] = field(default_factory=lambda: STUDY_UNITS)
    """Symbol → unit and convention, carried along; ``loss`` is a symbol too."""
    recipe: Recipe = field(default_factory=Recipe)
    is_study: bool = True
    """Whether runs, cells and seeds are columns with a known meaning. Elsewhere rows are independent unless they share
    a ``run_id`` or are grouped, and axes that vary together are refused."""
    extra: tuple[str, ...] = EXTRA_SYMBOLS
    """Symbols that rows carry along for hold-outs where the table has them."""
    drop_invalid: bool = True
    by: tuple[str, ...] = ()
    """Columns with a fit for each of their values that occur together."""
    group: str | None = None
    """Column whose values are resampled whole."""
    nulls: bool = False
    """Also fit the nulls that read no other columns than the laws do."""
    n_draws: int | None = None
    interval: Interval = "percentile"
    profile: bool = False
    diagnostics: bool = False

    @property
    def loss_unit(self) -> str:
        """Of the losses, in a word; empty where it is not known."""
        return self.units.get("loss", "").partition(" per ")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The laws on one part of a table."""

    stage: str | None
    compensation: str | None
    loss: str
    by: tuple[str, ...]
    """Values of the columns that ``Settings.by`` names."""
    comparison: Comparison
    uncertainty: tuple[Uncertainty, ...]
    """Of each law of the comparison, in its order."""
    profiles: tuple[Mapping[str, Estimate], ...]
    """Coefficient → profile-likelihood interval, for each law; empty unless asked for."""
    diagnostics: tuple[Diagnostics, ...]
    """Of each law; empty unless asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Every section of a table, annealed before stable."""

    n_runs: int | None
    """None for a table that is no study."""
    sections: tuple[Section, ...]
    skipped: tuple[str, ...]
    """Laws and sections that could not be fitted, with the reason."""
    settings: Settings


def study_report(
    table: Table,
    laws: Sequence[str | Law] = FIRST_LAWS,
    *,
    losses: Sequence[str] = LOSSES,
    stage: str | None = None,
    seed: int = 0,
    settings: Settings | None = None,
) -> Report:
    """Fit and compare ``laws`` on every stage and compensation of a study's table.

    Args:
        table: columns of a store's finished runs (``Store.columns()``).
        laws: names from ``umscale.laws.forms.LAWS``, or laws.
        losses: which loss columns: raw weights (``loss``), averaged weights (``loss_ema``), generated tasks
            (``facts_nats``).
        stage: one stage alone; None takes ``annealed`` and ``stable``.
        seed: of the bootstrap.

    Raises:
        UserError: the table is empty, a law or a column does not exist, or no section could be fitted.
    """
    n_runs = len(set(table["run_id"])) if "run_id" in table else 0
    if not n_runs:
        raise UserError("the store holds no finished runs yet; `umscale runs` shows what there is")
    settings = settings or Settings()
    sections, skipped = _sections(table, laws, losses, stage, seed, settings)
    return Report(n_runs=n_runs, sections=sections, skipped=skipped, settings=settings)


def table_report(
    table: Table,
    laws: Sequence[str | Law],
    settings: Settings,
    *,
    loss: str = "loss",
    stage: str | None = None,
    seed: int = 0,
) -> Report:
    """Fit and compare ``laws`` on anybody's table, for each value of ``settings.by``.

    Raises as ``study_report`` does.
    """
    sections, skipped = _sections(table, laws, (loss,), stage, seed, settings)
    return Report(n_runs=None, sections=sections, skipped=skipped, settings=settings)


def _sections(
    table: Table,
    laws: Sequence[str | Law],
    losses: Sequence[str],
    stage: str | None,
    seed: int,
    settings: Settings,
) -> tuple[tuple[Section, ...], tuple[str, ...]]:
    chosen = [law_named(law) if isinstance(law, str) else law for law in laws]
    if settings.nulls:
        readable = [law for law in chosen if not missing_columns(table, law, settings.columns)]
        chosen = [*chosen, *nulls_beside(readable or chosen)]
    for name in (*settings.by, settings.group):
        if name is not None and name not in table:
            raise UserError(f"the table has no column {name!r}{nearest(name, table)}")
    sections: list[Section] = []
    skipped: list[str] = []
    for loss in losses:
        for by, group in parts_of(table, settings.by):
            stages: Sequence[str | None] = [s for s in levels(group, "stage") if stage in (None, s)]
            if stage is not None and not stages:
                there = ", ".join(levels(group, "stage")) or "none"
                raise UserError(f"no records of stage {stage!r}; there are {there}")
            for compensation in levels(group, "compensation") or (None,):
                for one in stages or (None,):
                    place = _place(one, compensation, loss, by, settings)
                    try:
                        section, refused = _section(
                            group, chosen, one, compensation, loss, by, seed, settings
                        )
                    except UserError as error:
                        skipped.append(f"{place}{error}")
                        continue
                    sections.append(section)
                    skipped += [f"{place}{error}" for error in refused]
    if not sections:
        raise UserError(skipped[0])
    return tuple(sections), tuple(skipped)


def parts_of(table: Table, by: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Table]]:
    """The values of columns that occur together, ascending, each with its rows; the whole table for no column."""
    if not by:
        yield (), table
        return
    cells = np.stack([text(table, name) for name in by], axis=1)
    present = {tuple(row) for row in cells.tolist() if "" not in row}
    ordered = sorted(present, key=lambda row: [(_number(cell), cell) for cell in row])
    if not 0 < len(ordered) <= _MOST_GROUPS:
        names = f"column {by[0]!r} has" if len(by) == 1 else f"columns {', '.join(by)} have"
        verb = "it does" if len(by) == 1 else "they do"
        raise UserError(f"{names} {len(ordered)} values: {verb} not group the rows")
    for row in ordered:
        labels = tuple(f"{_number(cell):g}" if np.isfinite(_number(cell)) else cell for cell in row)
        kept = (cells == np.array(row)).all(axis=1)
        yield labels, {name: np.asarray(column)[kept] for name, column in table.items()}


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("inf")


def _place(
    stage: str | None, compensation: str | None, loss: str, by: tuple[str, ...], settings: Settings
) -> str:
    """Words that say which section could not be fitted, with a colon; nothing where there is one."""
    parts = [f"{stage}, {compensation or 'no'} compensation, {loss}"] if settings.is_study else []
    parts += [f"{name} {value}" for name, value in zip(settings.by, by, strict=True)]
    return ", ".join(parts) + ": " if parts else ""


def _section(
    table: Table,
    laws: Sequence[Law],
    stage: str | None,
    compensation: str | None,
    loss: str,
    by: tuple[str, ...],
    seed: int,
    settings: Settings,
) -> tuple[Section, tuple[UserError, ...]]:
    """The laws that can be fitted, and why others cannot; raises ``UserError`` when none can."""
    fits, refused = fit_each(
        table,
        laws,
        stage=stage,
        compensation=compensation,
        loss=loss,
        columns=settings.columns,
        extra=settings.extra,
        drop_invalid=settings.drop_invalid,
        recipe=settings.recipe,
    )
    if not settings.is_study:
        reasons = [inseparable(fit) for fit in fits]
        refused += tuple(
            UserError(f"law {f.law.name!r}: {why}") for f, why in zip(fits, reasons, strict=True) if why
        )
        fits = tuple(f for f, why in zip(fits, reasons, strict=True) if not why)
    if not fits:
        raise refused[0]
    part = part_of(table, stage=stage, compensation=compensation)
    codes, unit = resampling_groups(part, fits[0], settings)
    if not settings.is_study and settings.group is None and "run_id" not in part:
        fits = tuple(_noticed(part, fit) for fit in fits)
    comparison = compare(fits, codes, unit=settings.loss_unit)
    draws = settings.n_draws
    group: Group | Codes = "auto" if codes is None else codes
    found = Section(
        stage=stage,
        compensation=compensation,
        loss=loss,
        by=by,
        comparison=comparison,
        uncertainty=tuple(
            bootstrap(fit, n_draws=draws, group=group, unit=unit, seed=seed, interval=settings.interval)
            for fit in fits
        ),
        profiles=tuple(_profiles(fit, codes) for fit in fits) if settings.profile else (),
        diagnostics=tuple(diagnose(fit, groups=codes, names=_row_names(part, fit)) for fit in fits)
        if settings.diagnostics
        else (),
    )
    return found, refused


def _profiles(fit: FitResult, codes: Codes | None) -> "dict[str, Estimate]":
    return {name: profile_interval(fit, name, groups=codes) for name in fit.law.coefficients}


def resampling_groups(table: Table, fit: FitResult, settings: Settings) -> tuple[Codes | None, str]:
    """Codes of the rows that are resampled together, [rows of the fit], and what they are called.

    None leaves a study to ``bootstrap``, which knows its runs and cells.
    """
    if settings.group is None and settings.is_study:
        return None, ""
    name = settings.group or "run_id"
    if name in table:
        return group_codes(table, [name])[fit.rows.index], f"values of {name}"
    return np.arange(fit.n_rows, dtype=np.int64), "rows"


def _noticed(table: Table, fit: FitResult) -> FitResult:
    """The fit, with a warning where rows that share a value of some column err together."""
    # Along an axis that the law does not read, residuals agree because the law misses it.
    unread = {column for symbol, column in fit.columns.items() if symbol not in fit.law.symbols}
    kept = {
        name: np.asarray(column)[fit.rows.index]
        for name, column in table.items()
        if name not in (ROW, fit.loss, *unread)
    }
    found = repeated_group(residuals_in_nats(fit), kept)
    if found is None:
        return fit
    words = (
        f"rows with the same {found.column} err together ({found.n_levels} values in {fit.n_rows} rows, correlation "
        f"{found.correlation:.2f}): intervals that take rows as independent are about {found.narrow:.1f} times too "
        f"narrow; --group {found.column} resamples them whole"
    )
    return replace(fit, warnings=(*fit.warnings, words))


def _row_names(table: Table, fit: FitResult) -> list[str]:
    """What to call each row of a fit: its run, its number in the file, or its number in the table."""
    if "run_id" in table:
        return [f"run {name[:12]}" for name in text(table, "run_id")[fit.rows.index]]
    numbers = numeric(table, ROW)[fit.rows.index] if ROW in table else fit.rows.index + 1
    return [f"row {number:.0f}" for number in numbers]


def to_json(
    found: Report, verdicts: Sequence[Any] = (), trends: Sequence[Any] = (), **context: Any
) -> dict[str, Any]:
    """Return the report as plain data; the schema is versioned and described in docs/fit-json.md.

    ``verdicts`` and ``trends`` are dataclasses; ``context`` is put beside: where the table came from, say.
    """
    return {
        "schema": SCHEMA_VERSION,
        **context,
        "runs": found.n_runs,
        "units": dict(found.settings.units),
        "fits": [
            _fit(section, i, found.settings)
            for section in found.sections
            for i in range(len(section.uncertainty))
        ],
        "recommended": [
            {
                "stage": s.stage,
                "compensation": s.compensation,
                "loss": s.loss,
                "by": _by(s, found.settings),
                "law": s.comparison.recommended,
                "reason": s.comparison.reason,
                "uses": [asdict(use) for use in s.comparison.uses],
            }
            for s in found.sections
        ],
        "verdicts": [asdict(v) for v in verdicts],
        "trends": [asdict(trend) for trend in trends],
        "skipped": list(found.skipped),
    }


def _by(section: Section, settings: Settings) -> dict[str, str]:
    return dict(zip(settings.by, section.by, strict=True))


def _fit(section: Section, index: int, settings: Settings) -> dict[str, Any]:
    compared, uncertainty = section.comparison.laws[index], section.uncertainty[index]
    fit = compared.fit
    return {
        "law": fit.law.name,
        "formula": fit.law.formula,
        "form": _FORMS[type(fit.law)],
        "source": fit.law.source,
        **({"package": fit.law.package} if fit.law.package else {}),
        "stage": section.stage,
        "compensation": section.compensation,
        "loss": section.loss,
        "by": _by(section, settings),
        "rows": fit.n_rows,
        "objective": {
            "name": fit.objective_name,
            "value": fit.objective,
            "residual": fit.residual,
            "delta": fit.delta,
            "weight": settings.recipe.weight,
            "error": settings.recipe.error,
            "above": fit.above,
        },
        "reference": dict(fit.reference),
        "domain": {symbol: list(ends) for symbol, ends in fit.domain.items()},
        "columns": dict(fit.columns),
        "constraints": {
            "pins": dict(fit.constraints.pins),
            "ties": [list(pair) for pair in fit.constraints.ties],
            "bounds": {name: list(ends) for name, ends in fit.constraints.bounds.items()},
        },
        "coefficients": _coefficients(section, index),
        "intervals": {"method": uncertainty.method, "resampled": uncertainty.resampled, "level": 0.95},
        "parameters": compared.n_parameters,
        "null": compared.is_null,
        "rmse_nats": fit.rmse_nats,
        "rmse_percent": fit.rmse_percent,
        "r_squared": fit.r_squared,
        "aicc": compared.aicc,
        "bic": compared.bic,
        "condition_number": fit.condition_number,
        "starts_at_optimum": fit.starts_at_optimum,
        "holdout": _holdouts(compared),
        "diagnostics": asdict(section.diagnostics[index]) if section.diagnostics else None,
        "dropped": list(fit.dropped),
        "warnings": [*fit.warnings, *uncertainty.warnings],
    }


def _coefficients(section: Section, index: int) -> dict[str, dict[str, Any]]:
    fit = section.comparison.laws[index].fit
    found: dict[str, dict[str, Any]] = {}
    for name, estimate in section.uncertainty[index].coefficients().items():
        found[name] = {
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "identified": name not in fit.unidentified,
        }
        if section.profiles:
            profile = section.profiles[index][name]
            found[name]["profile"] = {"low": profile.low, "high": profile.high}
    return found


def _holdouts(compared: Compared) -> dict[str, dict[str, Any]]:
    return {
        h.edge: {
            "axis": h.axis,
            "rmse_nats": h.rmse_nats,
            "mean_percent": h.mean_percent,
            "rows": h.n_test,
            "skipped": h.skipped,
        }
        for h in compared.holdouts
    }
