"""Which law to use: parameter counts, information criteria, and errors where it was not fitted.

Random cross-validation flatters laws that only interpolate, so rows are held out at an edge of the design:
the largest N_s, the sparsest activation, the most tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from umscale.errors import UserError
from umscale.laws.fit import FitResult, Objective, fit_rows
from umscale.laws.forms import COLUMNS, FIRST_LAWS, Array, Law, PowerLaw, law_named
from umscale.laws.table import Rows, Table, levels, select_rows, where

Edge = Literal["largest", "sparsest", "future"]

EDGES: Mapping[Edge, str] = {
    "largest": "the largest N_s held out",
    "sparsest": "the sparsest activation held out",
    "future": "the most tokens held out",
}
_SAME_LEVEL = 1.01
_TIE = 2.0  # AICc differences below this do not choose between laws


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldOut:
    """Error on rows beyond an edge of the rows fitted on."""

    edge: Edge
    n_train: int
    n_test: int
    rmse_nats: float
    mean_percent: float
    """Mean absolute error in percent of the loss."""
    skipped: str
    """Why there is no error, or the empty string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One law's row of the comparison."""

    fit: FitResult
    n_parameters: int
    """Coefficients identified, block intercepts and the noise's variance."""
    aicc: float
    """Gaussian likelihood of the losses in nats; NaN unless the fit is least squares with rows to spare."""
    bic: float
    holdouts: tuple[HoldOut, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Laws on the same rows, in the order asked for, and the one to use."""

    laws: tuple[Compared, ...]
    recommended: str
    reason: str


def fit_laws(
    table: Table,
    laws: Sequence[str | Law] = FIRST_LAWS,
    *,
    stage: str | None = None,
    compensation: str | None = None,
    loss: str = "loss",
    columns: Mapping[str, str] | None = None,
    objective: Objective | None = None,
) -> tuple[FitResult, ...]:
    """Fit several laws to the rows on which every one can be evaluated; raises as ``fit_law`` does.

    ``objective`` applies to power laws.
    """
    chosen = [law_named(law) if isinstance(law, str) else law for law in laws]
    part = where(table, stage=stage, compensation=compensation)
    rows = select_rows(part, chosen, loss=loss, columns=columns, extra=("m", "N_s", "D", "rho"))
    return tuple(
        fit_rows(
            rows,
            law,
            columns={**COLUMNS, **(columns or {})},
            loss=loss,
            stage=stage or next(iter(levels(part, "stage")), None),
            compensation=compensation or next(iter(levels(part, "compensation")), None),
            # Local laws are linear: least squares whatever the others are fitted with.
            objective=objective if isinstance(law, PowerLaw) else None,
        )
        for law in chosen
    )


def compare(fits: Sequence[FitResult]) -> Comparison:
    """Compare fits of one set of rows (as ``fit_laws`` makes them).

    Raises ``UserError`` when there is none or they were fitted to different rows.
    """
    if not fits:
        raise UserError("nothing to compare: name at least one law")
    first = fits[0]
    for fit in fits[1:]:
        if (fit.loss, fit.stage) != (first.loss, first.stage) or not np.array_equal(
            fit.rows.loss, first.rows.loss
        ):
            raise UserError("laws can only be compared on the same rows: fit them together")
    compared = tuple(_compared(fit) for fit in fits)
    name, reason = _recommend(compared)
    return Comparison(laws=compared, recommended=name, reason=reason)


def _compared(fit: FitResult) -> Compared:
    n_parameters = fit.rank + fit.blocks.shape[1] + 1
    aicc, bic = _criteria(fit, n_parameters)
    return Compared(
        fit=fit,
        n_parameters=n_parameters,
        aicc=aicc,
        bic=bic,
        holdouts=tuple(_hold_out(fit, edge) for edge in EDGES),
    )


def _criteria(fit: FitResult, k: int) -> tuple[float, float]:
    """AICc and BIC from −2 log likelihood = n ln(2πe·RSS/n), with the Jacobian 2Σ ln L for log residuals."""
    n, rss = fit.n_rows, float(fit.residuals @ fit.residuals)
    if fit.objective_name != "least_squares" or n - k - 1 <= 0 or rss <= 0:
        return float("nan"), float("nan")
    minus_twice = n * np.log(2 * np.pi * np.e * rss / n)
    if fit.residual == "log":
        minus_twice += 2 * np.log(fit.rows.loss).sum()
    return float(minus_twice + 2 * k + 2 * k * (k + 1) / (n - k - 1)), float(minus_twice + k * np.log(n))


def _hold_out(fit: FitResult, edge: Edge) -> HoldOut:
    axis = _axis(fit.rows, edge)
    if axis is None:
        return _skipped(fit, edge, 0, "the table lacks its column")
    held = axis > axis.max() / _SAME_LEVEL
    n_test = int(held.sum())
    if n_test == len(held):
        return _skipped(fit, edge, 0, "there is one level")
    train, test = fit.rows.take(~held), fit.rows.take(held)
    if np.ptp(np.log(axis[~held])) < np.log(_SAME_LEVEL):
        return _skipped(fit, edge, n_test, "one level remains: nothing to extrapolate from")
    try:
        refit = fit_rows(
            train,
            fit.law,
            columns={**COLUMNS, **fit.columns},
            objective=fit.objective_name,
            delta=fit.delta if np.isfinite(fit.delta) else None,
            residual=fit.residual,
        )
    except UserError as error:
        return _skipped(fit, edge, n_test, str(error))
    if refit.dropped or refit.unidentified:
        lost = ", ".join([*refit.dropped, *refit.unidentified])
        return _skipped(fit, edge, n_test, f"the rows that remain do not determine {lost}")
    gap = refit.predict(test.values) - test.loss
    return HoldOut(
        edge=edge,
        n_train=train.size,
        n_test=n_test,
        rmse_nats=float(np.sqrt(np.mean(gap**2))),
        mean_percent=float(100 * np.mean(np.abs(gap / test.loss))),
        skipped="",
    )


def _axis(rows: Rows, edge: Edge) -> Array | None:
    """The quantity whose greatest level is held out, [rows]; None when the rows do not carry it."""
    values = rows.values
    if edge == "largest":
        return values.get("N_s")
    if edge == "future":
        return values.get("D")
    if "rho" in values:
        return 1 / values["rho"]
    return values["N_s"] / values["m"] if {"N_s", "m"} <= set(values) else None


def _skipped(fit: FitResult, edge: Edge, n_test: int, reason: str) -> HoldOut:
    nan = float("nan")
    return HoldOut(
        edge=edge,
        n_train=fit.n_rows - n_test,
        n_test=n_test,
        rmse_nats=nan,
        mean_percent=nan,
        skipped=reason,
    )


def _recommend(laws: Sequence[Compared]) -> tuple[str, str]:
    """Least mean hold-out error over the edges all laws were tested on; else AICc; else the smallest law."""
    usable = [c for c in laws if not c.fit.unidentified] or list(laws)
    edges = [e for e in EDGES if all(_error(c, e) is not None for c in usable)]
    if edges:
        means = [float(np.mean([_error(c, e) for e in edges])) for c in usable]
        best = usable[int(np.argmin(means))]
        words = ", ".join(f"{1e3 * m:.1f} ({c.fit.law.name})" for c, m in zip(usable, means, strict=True))
        held = " and ".join(EDGES[e] for e in edges)
        return best.fit.law.name, f"least error with {held}, in 0.001 nats: {words}"
    if all(np.isfinite(c.aicc) for c in usable):
        least = min(c.aicc for c in usable)
        near = [c for c in usable if c.aicc <= least + _TIE]
        best = min(near, key=lambda c: (c.n_parameters, c.aicc))
        return (
            best.fit.law.name,
            f"fewest parameters within {_TIE:g} of the least AICc; no hold-out was possible",
        )
    best = min(usable, key=lambda c: c.n_parameters)
    return best.fit.law.name, "fewest parameters: neither hold-outs nor AICc can choose on these rows"


def _error(compared: Compared, edge: Edge) -> float | None:
    holdout = next(h for h in compared.holdouts if h.edge == edge)
    return None if holdout.skipped else holdout.rmse_nats
