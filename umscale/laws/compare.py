"""Which law to use, and for what: parameter counts, information criteria, and errors where it was not fitted.

Random cross-validation flatters laws that only interpolate, so rows are held out at an edge of the design:
the largest models, the sparsest activation, the most tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from umscale.errors import UserError, nearest
from umscale.laws.fit import FitResult, Objective, fit_rows
from umscale.laws.forms import FIRST_LAWS, LAWS, Law, LocalLaw, Residual, law_named
from umscale.results.columns import COLUMNS, Array
from umscale.results.table import Rows, Table, levels, missing_columns, select_rows, where

Edge = Literal["largest", "sparsest", "future"]

EDGES: tuple[Edge, ...] = ("largest", "sparsest", "future")
NULLS = ("null", "power_null", "P0", "P0_log")
"""Laws in which sparse parameters do not count, or only as a slope: what every other law has to beat."""

EXTRA_SYMBOLS = ("m", "N_s", "D", "rho")
"""Carried along with the rows of a study, so that they can be held out by axes a law does not read."""

_HELD: Mapping[Edge, str] = {
    "largest": "the largest {} held out",
    "sparsest": "the sparsest activation held out",
    "future": "the most tokens held out",
}
_BEYOND: Mapping[Edge, str] = {
    "largest": "to larger {}",
    "sparsest": "to sparser activation",
    "future": "to more tokens",
}
_SAME_LEVEL = 1.01
_MANY_LEVELS = (
    30  # an axis with more is no grid: its greatest tenth of the rows is held out, not its greatest level
)
_TIE = 2.0  # AICc differences below this do not choose between laws
_SAME_ERROR = 1.01  # ratio of standard errors below which the smaller law is as good


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldOut:
    """Error on rows beyond an edge of the rows fitted on."""

    edge: Edge
    axis: str
    """Symbol whose greatest values are held out; empty when the rows do not carry one."""
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
    """Coefficients identified, block intercepts and the noise's variance, as AICc and BIC count."""
    aicc: float
    """Gaussian likelihood of the losses in nats; NaN unless the fit is least squares with rows to spare."""
    bic: float
    standard_error: float
    """√(Σ(observed − fitted)²/(rows − coefficients)) in nats; NaN without rows to spare."""
    is_null: bool
    holdouts: tuple[HoldOut, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """The law to take for one purpose."""

    purpose: str
    law: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Laws on the same rows, in the order asked for, and the one to use."""

    laws: tuple[Compared, ...]
    recommended: str
    reason: str
    uses: tuple[Use, ...]
    """Within the rows' range, and beyond each edge that could be held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How laws are fitted; ``None`` is each law's own way. Local laws are linear and always fitted by their own."""

    objective: Objective | None = None
    delta: float | None = None
    residual: Residual | None = None
    pins: Mapping[str, float] | None = None
    ties: Sequence[tuple[str, str]] = ()
    bounds: Mapping[str, tuple[float, float]] | None = None
    weight: str | None = None
    """Column of the rows' weights."""
    error: str | None = None
    """Column of the losses' standard errors."""
    above: float = 1.0
    """Weight of rows above the law; see ``FitResult.above``."""

    @property
    def names(self) -> tuple[str, ...]:
        """Coefficients that are fixed, tied or bounded."""
        tied = (name for pair in self.ties for name in pair)
        return tuple(dict.fromkeys((*(self.pins or ()), *tied, *(self.bounds or ()))))

    def of(self, law: Law) -> "Recipe":
        """The part of it that concerns a law."""
        if isinstance(law, LocalLaw):
            return Recipe()
        there = set(law.coefficients)
        return Recipe(
            objective=self.objective,
            delta=self.delta,
            residual=self.residual,
            pins={name: value for name, value in (self.pins or {}).items() if name in there},
            ties=[pair for pair in self.ties if set(pair) <= there],
            bounds={name: ends for name, ends in (self.bounds or {}).items() if name in there},
            above=self.above,
        )


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

    ``objective`` applies to laws that are not linear.
    """
    fits, refused = fit_each(
        table,
        laws,
        stage=stage,
        compensation=compensation,
        loss=loss,
        columns=columns,
        recipe=Recipe(objective=objective),
    )
    if refused:
        raise refused[0]
    return fits


def fit_each(
    table: Table,
    laws: Sequence[str | Law],
    *,
    stage: str | None = None,
    compensation: str | None = None,
    loss: str = "loss",
    columns: Mapping[str, str] | None = None,
    extra: Iterable[str] = EXTRA_SYMBOLS,
    drop_invalid: bool = True,
    recipe: Recipe | None = None,
) -> tuple[tuple[FitResult, ...], tuple[UserError, ...]]:
    """Fits of the laws that the common rows can hold, and why the others cannot be fitted.

    Raises ``UserError`` as ``select_rows`` does, for a law or a constrained coefficient that does not exist.
    """
    chosen = [law_named(law) if isinstance(law, str) else law for law in laws]
    recipe = recipe or Recipe()
    known = {name for law in chosen for name in law.coefficients}
    for name in recipe.names:
        if name not in known:
            raise UserError(f"no law here has a coefficient {name!r}{nearest(name, known)}")
    part = where(table, stage=stage, compensation=compensation)
    lacking = {law.name: missing_columns(part, law, columns) for law in chosen}
    readable = [law for law in chosen if not lacking[law.name]] or chosen
    rows = select_rows(
        part,
        readable,
        loss=loss,
        columns=columns,
        extra=extra,
        drop_invalid=drop_invalid,
        weight=recipe.weight,
        error=recipe.error,
    )
    fits: list[FitResult] = []
    refused = [UserError(f"law {law.name!r}: {lacking[law.name]}") for law in chosen if law not in readable]
    for law in readable:
        how = recipe.of(law)
        try:
            fits.append(
                fit_rows(
                    rows,
                    law,
                    columns={**COLUMNS, **(columns or {})},
                    loss=loss,
                    stage=stage or next(iter(levels(part, "stage")), None),
                    compensation=compensation or next(iter(levels(part, "compensation")), None),
                    objective=how.objective,
                    delta=how.delta,
                    residual=how.residual,
                    pins=how.pins,
                    ties=how.ties,
                    bounds=how.bounds,
                    above=how.above,
                )
            )
        except UserError as error:
            refused.append(error)
    return tuple(fits), tuple(refused)


def nulls_beside(laws: Sequence[Law]) -> tuple[Law, ...]:
    """The nulls to compare laws with: those that read no other columns and are not among them."""
    symbols = {s for law in laws for s in law.symbols}
    local = all(isinstance(law, LocalLaw) for law in laws)
    formulas = {law.formula for law in laws}
    return tuple(
        law
        for law in (LAWS[name] for name in NULLS)
        if isinstance(law, LocalLaw) == local and set(law.symbols) <= symbols and law.formula not in formulas
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
    return Comparison(laws=compared, recommended=name, reason=reason, uses=_uses(compared))


def _compared(fit: FitResult) -> Compared:
    n_parameters = fit.rank + fit.blocks.shape[1] + 1
    aicc, bic = _criteria(fit, n_parameters)
    spare = fit.n_rows - n_parameters + 1
    return Compared(
        fit=fit,
        n_parameters=n_parameters,
        aicc=aicc,
        bic=bic,
        standard_error=fit.rmse_nats * float(np.sqrt(fit.n_rows / spare)) if spare > 0 else float("nan"),
        is_null=fit.law.name in NULLS,
        holdouts=tuple(_hold_out(fit, edge) for edge in EDGES),
    )


def _criteria(fit: FitResult, k: int) -> tuple[float, float]:
    """AICc and BIC from −2 log likelihood = n ln(2πe·RSS/n), with the Jacobian 2Σ ln L for log residuals.

    With weights w, RSS is Σwr² and −Σ ln w comes beside it; a one-sided objective has no likelihood.
    """
    weights = np.ones(fit.n_rows) if fit.weights is None else fit.weights
    n, rss = fit.n_rows, float(weights @ fit.residuals**2)
    if fit.objective_name != "least_squares" or fit.above != 1 or n - k - 1 <= 0 or rss <= 0:
        return float("nan"), float("nan")
    minus_twice = n * np.log(2 * np.pi * np.e * rss / n) - np.log(weights).sum()
    if fit.residual == "log":
        minus_twice += 2 * np.log(fit.rows.loss).sum()
    return float(minus_twice + 2 * k + 2 * k * (k + 1) / (n - k - 1)), float(minus_twice + k * np.log(n))


def _hold_out(fit: FitResult, edge: Edge) -> HoldOut:
    name, axis = _axis(fit.rows, edge)
    if axis is None:
        return _skipped(fit, edge, "", 0, "the table lacks its column")
    held = _greatest(axis)
    n_test = int(held.sum())
    if n_test == len(held):
        return _skipped(fit, edge, name, 0, "there is one level")
    train, test = fit.rows.take(~held), fit.rows.take(held)
    if np.ptp(np.log(axis[~held])) < np.log(_SAME_LEVEL):
        return _skipped(fit, edge, name, n_test, "one level remains: nothing to extrapolate from")
    try:
        refit = fit_rows(
            train,
            fit.law,
            columns={**COLUMNS, **fit.columns},
            objective=fit.objective_name,
            delta=fit.delta if np.isfinite(fit.delta) else None,
            residual=fit.residual,
            pins=fit.constraints.pins,
            ties=fit.constraints.ties,
            bounds=fit.constraints.bounds,
            above=fit.above,
        )
    except UserError as error:
        return _skipped(fit, edge, name, n_test, str(error))
    if refit.dropped or refit.unidentified:
        lost = ", ".join([*refit.dropped, *refit.unidentified])
        return _skipped(fit, edge, name, n_test, f"the rows that remain do not determine {lost}")
    gap = refit.predict(test.values) - test.loss
    return HoldOut(
        edge=edge,
        axis=name,
        n_train=train.size,
        n_test=n_test,
        rmse_nats=float(np.sqrt(np.mean(gap**2))),
        mean_percent=float(100 * np.mean(np.abs(gap / test.loss))),
        skipped="",
    )


def _axis(rows: Rows, edge: Edge) -> tuple[str, Array | None]:
    """The symbol and the quantity whose greatest values are held out, [rows]; none when the rows do not carry it."""
    values = rows.values
    if edge == "largest":
        name = "N_s" if "N_s" in values else "N"
    elif edge == "future":
        name = "D"
    elif "rho" in values:
        return "rho", 1 / values["rho"]
    elif {"N_s", "m"} <= set(values):
        return "rho", values["N_s"] / values["m"]
    else:
        name = "experts"
    axis = values.get(name)
    return (name, axis) if axis is not None and (axis > 0).all() else ("", None)


def _greatest(axis: Array) -> np.ndarray:
    """The greatest level of a grid; the greatest tenth of the rows where nearly every row has its own, [rows]."""
    ordered = np.sort(np.log(axis))
    n_levels = 1 + int((np.diff(ordered) > np.log(_SAME_LEVEL)).sum())
    if n_levels <= _MANY_LEVELS:
        return np.asarray(axis > axis.max() / _SAME_LEVEL)
    return np.asarray(np.log(axis) >= ordered[-max(1, len(ordered) // 10)])


def _skipped(fit: FitResult, edge: Edge, axis: str, n_test: int, reason: str) -> HoldOut:
    nan = float("nan")
    return HoldOut(
        edge=edge,
        axis=axis,
        n_train=fit.n_rows - n_test,
        n_test=n_test,
        rmse_nats=nan,
        mean_percent=nan,
        skipped=reason,
    )


def _recommend(laws: Sequence[Compared]) -> tuple[str, str]:
    """Least mean hold-out error over the edges all laws were tested on; else AICc; else the smallest law."""
    usable = [c for c in laws if not c.fit.unidentified]
    if not usable:
        best = min(laws, key=lambda c: c.standard_error if np.isfinite(c.standard_error) else np.inf)
        reason = "least residual standard error, for these rows only: no law here is identified on them"
        return best.fit.law.name, reason
    edges = [e for e in EDGES if all(_error(c, e) is not None for c in usable)]
    if edges:
        means = [float(np.mean([_error(c, e) for e in edges])) for c in usable]
        best = usable[int(np.argmin(means))]
        held = " and ".join(_HELD[e].format(_axis(best.fit.rows, e)[0]) for e in edges)
        return best.fit.law.name, f"least error with {held}, {_in_order(usable, means)}"
    if all(np.isfinite(c.aicc) for c in usable):
        return _least_aicc(usable).fit.law.name, (
            f"fewest parameters within {_TIE:g} of the least AICc; no hold-out was possible"
        )
    best = min(usable, key=lambda c: c.n_parameters)
    return best.fit.law.name, "fewest parameters: neither hold-outs nor AICc can choose on these rows"


def _uses(laws: Sequence[Compared]) -> tuple[Use, ...]:
    """The law for the rows' own range, and the one for each edge at which any could be tested."""
    usable = [c for c in laws if not c.fit.unidentified] or list(laws)
    found = []
    if all(np.isfinite(c.aicc) for c in usable):
        best, reason = _least_aicc(usable), f"fewest parameters within {_TIE:g} of the least AICc"
        found.append(Use(purpose="within the rows' range", law=best.fit.law.name, reason=reason))
    elif known := [c for c in usable if np.isfinite(c.standard_error)]:
        least = min(c.standard_error for c in known)
        best = min(
            (c for c in known if c.standard_error <= least * _SAME_ERROR), key=lambda c: c.n_parameters
        )
        reason = f"least residual standard error, {_in_order(known, [c.standard_error for c in known])}"
        found.append(Use(purpose="within the rows' range", law=best.fit.law.name, reason=reason))
    for edge in EDGES:
        tested = [(c, e) for c in usable if (e := _error(c, edge)) is not None]
        if tested:
            best = min(tested, key=lambda pair: pair[1])[0]
            axis = _axis(best.fit.rows, edge)[0]
            reason = f"least error with {_HELD[edge].format(axis)}, {_in_order(*zip(*tested, strict=True))}"
            found.append(Use(purpose=_BEYOND[edge].format(axis), law=best.fit.law.name, reason=reason))
    return tuple(found)


def _least_aicc(laws: Sequence[Compared]) -> Compared:
    least = min(c.aicc for c in laws)
    return min((c for c in laws if c.aicc <= least + _TIE), key=lambda c: (c.n_parameters, c.aicc))


def _in_order(laws: Sequence[Compared], errors: Sequence[float]) -> str:
    words = ", ".join(f"{1e3 * e:.1f} ({c.fit.law.name})" for c, e in zip(laws, errors, strict=True))
    return f"in 0.001 nats: {words}"


def _error(compared: Compared, edge: Edge) -> float | None:
    holdout = next(h for h in compared.holdouts if h.edge == edge)
    return None if holdout.skipped else holdout.rmse_nats
