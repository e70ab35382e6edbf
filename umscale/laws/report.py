"""What ``umscale fit STUDY`` says: laws side by side for every stage and compensation, and the verdicts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from umscale.errors import UserError
from umscale.laws.compare import Comparison, compare, fit_laws
from umscale.laws.forms import FIRST_LAWS
from umscale.laws.table import Table, levels
from umscale.laws.uncertainty import Uncertainty, bootstrap
from umscale.laws.verdict import Verdict, verdicts

SCHEMA_VERSION = 1
LOSSES = ("loss", "loss_ema")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The laws on one stage and compensation."""

    stage: str
    compensation: str | None
    loss: str
    comparison: Comparison
    uncertainty: tuple[Uncertainty, ...]
    """Of each law of the comparison, in its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyReport:
    """Every section of a study, annealed before stable, and a verdict for each."""

    n_runs: int
    sections: tuple[Section, ...]
    skipped: tuple[str, ...]
    """Sections that could not be fitted, with the reason."""
    verdicts: tuple[Verdict, ...]


def report(
    table: Table,
    laws: Sequence[str] = FIRST_LAWS,
    *,
    losses: Sequence[str] = LOSSES,
    stage: str | None = None,
    seed: int = 0,
) -> StudyReport:
    """Fit and compare ``laws`` on every stage and compensation of a study's table, and answer its question.

    Args:
        table: columns of a store's finished runs (``Store.columns()``).
        laws: names from ``umscale.laws.forms.LAWS``.
        losses: which loss columns: raw weights (``loss``), averaged weights (``loss_ema``).
        stage: one stage alone; None takes ``annealed`` and ``stable``.
        seed: of the bootstrap.

    Raises:
        UserError: the table is empty, or no section could be fitted.
    """
    n_runs = len(set(table["run_id"])) if "run_id" in table else 0
    if not n_runs:
        raise UserError("the store holds no finished runs yet; `umscale runs` shows what there is")
    stages = [s for s in levels(table, "stage") if stage in (None, s)]
    if not stages:
        raise UserError(f"no records of stage {stage!r}; there are {', '.join(levels(table, 'stage'))}")
    sections, skipped = [], []
    for loss in losses:
        for compensation in levels(table, "compensation") or (None,):
            for one in stages:
                try:
                    fits = fit_laws(table, laws, stage=one, compensation=compensation, loss=loss)
                    comparison = compare(fits)
                except UserError as error:
                    skipped.append(f"{one}, {compensation or 'no'} compensation, {loss}: {error}")
                    continue
                draws = tuple(bootstrap(fit, seed=seed) for fit in fits)
                sections.append(
                    Section(
                        stage=one,
                        compensation=compensation,
                        loss=loss,
                        comparison=comparison,
                        uncertainty=draws,
                    )
                )
    if not sections:
        raise UserError(skipped[0])
    answers = [v for v in verdicts(table, losses=tuple(losses)) if stage in (None, v.stage)]
    return StudyReport(
        n_runs=n_runs, sections=tuple(sections), skipped=tuple(skipped), verdicts=tuple(answers)
    )


def to_json(found: StudyReport) -> dict[str, Any]:
    """Return the report as plain data; the schema is versioned and described in docs/fit-json.md."""
    return {
        "schema": SCHEMA_VERSION,
        "runs": found.n_runs,
        "fits": [_fit(section, i) for section in found.sections for i in range(len(section.uncertainty))],
        "recommended": [
            {
                "stage": s.stage,
                "compensation": s.compensation,
                "loss": s.loss,
                "law": s.comparison.recommended,
                "reason": s.comparison.reason,
            }
            for s in found.sections
        ],
        "verdicts": [asdict(v) for v in found.verdicts],
        "skipped": list(found.skipped),
    }


def _fit(section: Section, index: int) -> dict[str, Any]:
    compared, uncertainty = section.comparison.laws[index], section.uncertainty[index]
    fit = compared.fit
    return {
        "law": fit.law.name,
        "formula": fit.law.formula,
        "source": fit.law.source,
        "stage": section.stage,
        "compensation": section.compensation,
        "loss": section.loss,
        "rows": fit.n_rows,
        "objective": {
            "name": fit.objective_name,
            "value": fit.objective,
            "residual": fit.residual,
            "delta": fit.delta,
        },
        "reference": dict(fit.reference),
        "columns": dict(fit.columns),
        "coefficients": {
            name: {
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "identified": name not in fit.unidentified,
            }
            for name, estimate in uncertainty.coefficients().items()
        },
        "intervals": {"method": uncertainty.method, "resampled": uncertainty.resampled, "level": 0.95},
        "rmse_nats": fit.rmse_nats,
        "r_squared": fit.r_squared,
        "aicc": compared.aicc,
        "bic": compared.bic,
        "condition_number": fit.condition_number,
        "starts_at_optimum": fit.starts_at_optimum,
        "holdout": {
            h.edge: {
                "rmse_nats": h.rmse_nats,
                "mean_percent": h.mean_percent,
                "rows": h.n_test,
                "skipped": h.skipped,
            }
            for h in compared.holdouts
        },
        "dropped": list(fit.dropped),
        "warnings": [*fit.warnings, *uncertainty.warnings],
    }
