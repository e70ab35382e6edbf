"""Which law to use, and for what: parameter counts, information criteria, and errors where it was not fitted.

Random cross-validation flatters laws that only interpolate, so rows are held out at an edge of the design:
the largest models, the sparsest activation, the most tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from umscale.errors import UserError, nearest
from umscale.laws.constraints import Constraints
from umscale.laws.diagnostics import residuals_in_nats
from umscale.laws.fit import FitResult, fit_rows
from umscale.laws.forms import FIRST_LAWS, LAWS, Law, LocalLaw, Objective, Residual, law_named
from umscale.laws.holdout import (
    BEYOND,
    EDGES,
    HELD,
    Edge,
    HoldOut,
    Jackknifed,
    group_error,
    held_axis,
    hold_out,
    mean_error,
)
from umscale.laws.uncertainty import chance_of_gain, resampled_together
from umscale.results.columns import COLUMNS, Array
from umscale.results.table import Codes, Table, first_level, missing_columns, select_rows, where

NULLS = ("null", "power_null", "P0", "P0_log")
"""Laws in which sparse parameters do not count, or only as a slope: what every other law has to beat."""

EXTRA_SYMBOLS = ("m", "N_s", "D", "rho")
"""Carried along with the rows of a study, so that they can be held out by axes a law does not read."""

_LEVEL = 0.95  # one-sided, shared among the laws compared with the best
_TIE = 2.0  # AICc differences below this do not choose between laws


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
    is_independent: bool
    """Whether every row is a group of its own, as information criteria take it."""
    inside: Jackknifed | None
    """RMSE in nats of groups of rows left out in turn; None where a fit cannot be had without one."""
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
                    stage=stage or first_level(part, "stage"),
                    compensation=compensation or first_level(part, "compensation"),
                    objective=how.objective,
                    delta=how.delta,
                    residual=how.residual,
                    constraints=Constraints(
                        pins=how.pins or {}, ties=tuple(how.ties), bounds=how.bounds or {}
                    ),
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


def compare(fits: Sequence[FitResult], groups: Codes | None = None, *, unit: str = "nats") -> Comparison:
    """Compare fits of one set of rows (as ``fit_laws`` makes them).

    ``groups`` [rows] numbers those that err together; None takes what the bootstrap resamples. ``unit`` is the losses'
    in a word, empty where it is not known. Raises ``UserError`` when there is none or they were fitted to different
    rows.
    """
    if not fits:
        raise UserError("nothing to compare: name at least one law")
    first = fits[0]
    for fit in fits[1:]:
        if (fit.loss, fit.stage) != (first.loss, first.stage) or not np.array_equal(
            fit.rows.loss, first.rows.loss
        ):
            raise UserError("laws can only be compared on the same rows: fit them together")
    follows = min(fits, key=lambda fit: fit.rmse_nats**2 * fit.n_rows / max(fit.n_rows - fit.rank, 1))
    noise = residuals_in_nats(follows) * np.sqrt(first.n_rows / max(first.n_rows - follows.rank, 1))
    if groups is None:
        # Errors are compared in pairs: one grouping for all laws, the coarsest that any of them is resampled by.
        groups = min((resampled_together(fit) for fit in fits), key=lambda codes: len(np.unique(codes)))
    compared = tuple(_compared(fit, groups, noise) for fit in fits)
    name, reason = _recommend(compared, groups, unit)
    return Comparison(laws=compared, recommended=name, reason=reason, uses=_uses(compared, groups, unit))


def _compared(fit: FitResult, groups: Codes, noise: Array) -> Compared:
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
        # A study's information criteria count its seed blocks and stay as they are.
        is_independent=isinstance(fit.law, LocalLaw) or len(np.unique(groups)) == fit.n_rows,
        inside=group_error(fit, groups) if spare > 0 and fit.n_free and not fit.unidentified else None,
        holdouts=tuple(hold_out(fit, edge, groups, noise) for edge in EDGES),
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


def _recommend(laws: Sequence[Compared], groups: Codes, unit: str) -> tuple[str, str]:
    """The simplest law within noise of the least mean hold-out error, over the edges all were tested on; else AICc."""
    usable = [c for c in laws if not c.fit.unidentified and c.fit.is_exact]
    if not usable:
        exact = [c for c in laws if c.fit.is_exact] or list(laws)
        best = min(exact, key=lambda c: c.standard_error if np.isfinite(c.standard_error) else np.inf)
        reason = "least residual standard error, for these rows only: no law here is identified on them"
        return best.fit.law.name, reason
    edges = [e for e in EDGES if all(_error(c, e) is not None for c in usable)]
    if edges:
        means = [
            mean_error([e for e in (_error(c, edge) for edge in edges) if e is not None]) for c in usable
        ]
        held = " and ".join(HELD[e].format(held_axis(usable[0].fit.rows, e)[0]) for e in edges)
        best, words = _simplest(usable, means, groups)
        return best.fit.law.name, f"{words} with {held}, {_in_order(usable, means, unit)}"
    if all(np.isfinite(c.aicc) for c in usable):
        return _least_aicc(usable).fit.law.name, (
            f"fewest parameters within {_TIE:g} of the least AICc; no hold-out was possible"
        )
    if inside := [c.inside for c in usable if c.inside is not None]:
        these = [c for c in usable if c.inside is not None]
        best, words = _simplest(these, inside, groups)
        return (
            best.fit.law.name,
            f"{words} with each group of rows left out in turn, {_in_order(these, inside, unit)}",
        )
    best = min(usable, key=lambda c: c.n_parameters)
    return best.fit.law.name, "fewest parameters: neither hold-outs nor AICc can choose on these rows"


def _simplest(laws: Sequence[Compared], errors: Sequence[Jackknifed], groups: Codes) -> tuple[Compared, str]:
    """The law with fewest coefficients of those that no other puts behind it, and words that name them.

    A law is behind another where its ``errors`` are greater by more than noise; or where the other follows all rows
    better by more than noise and its errors do not contradict that, for few rows lie beyond an edge. With it goes what
    is neither simpler nor nearer: being behind nobody by more than noise is not transitive.
    """
    level = 1 - (1 - _LEVEL) / max(len(laws) - 1, 1)
    pairs = [(k, j) for k in range(len(laws)) for j in range(len(laws)) if j != k]
    outside = {(k, j) for k, j in pairs if errors[k].behind(errors[j], level)}
    inside = {
        (k, j) for k, j in pairs if (j, k) not in outside and _behind_inside(laws[k], laws[j], groups, level)
    }
    beaten = {k for k, _ in outside | inside}
    beaten |= {
        k
        for k, j in pairs
        if j in beaten
        and (j, k) not in outside | inside
        and laws[j].n_parameters <= laws[k].n_parameters
        and errors[j].error < errors[k].error
    }
    tied = [k for k in range(len(laws)) if k not in beaten] or [int(np.argmin([e.error for e in errors]))]
    chosen = min(tied, key=lambda k: (laws[k].n_parameters, errors[k].error))
    others = [laws[k].fit.law.name for k in sorted(tied, key=lambda k: errors[k].error) if k != chosen]
    if others:
        names = f"{', '.join(others[:-1])} and {others[-1]}" if len(others) > 1 else others[0]
        return laws[chosen], f"simplest of those that noise does not tell apart (tied with {names})"
    if all((k, chosen) in outside for k in range(len(laws)) if k != chosen):
        return laws[chosen], "least error"
    return laws[
        chosen
    ], "the others follow all rows worse, by more than noise, and these errors do not contradict that,"


def _behind_inside(law: Compared, other: Compared, groups: Codes, level: float) -> bool:
    """By how much a law of more coefficients follows the rows better; else by groups of rows left out in turn.

    Never behind a simpler one: that is taken before it anyway where nothing tells them apart, and the tie is said.
    """
    chance = chance_of_gain(law.fit, other.fit, groups)
    if np.isfinite(chance):
        return chance < 1 - level
    if other.n_parameters < law.n_parameters or law.inside is None or other.inside is None:
        return False
    return law.inside.behind(other.inside, level)


def _uses(laws: Sequence[Compared], groups: Codes, unit: str) -> tuple[Use, ...]:
    """The law for the rows' own range, and the one for each edge at which any could be tested."""
    usable = [c for c in laws if not c.fit.unidentified and c.fit.is_exact] or list(laws)
    found = []
    inside = [c for c in usable if c.inside is not None]
    if all(np.isfinite(c.aicc) and c.is_independent for c in usable):
        best, reason = _least_aicc(usable), f"fewest parameters within {_TIE:g} of the least AICc"
        found.append(Use(purpose="within the rows' range", law=best.fit.law.name, reason=reason))
    elif inside:
        errors = [c.inside for c in inside if c.inside is not None]
        best, words = _simplest(inside, errors, groups)
        reason = f"{words} with each group of rows left out in turn, {_in_order(inside, errors, unit)}"
        found.append(Use(purpose="within the rows' range", law=best.fit.law.name, reason=reason))
    for edge in EDGES:
        tested = [(c, e) for c in usable if (e := _error(c, edge)) is not None]
        if tested:
            these, at_edge = [c for c, _ in tested], [e for _, e in tested]
            best, words = _simplest(these, at_edge, groups)
            axis = held_axis(best.fit.rows, edge)[0]
            reason = f"{words} with {HELD[edge].format(axis)}, {_in_order(these, at_edge, unit)}"
            found.append(Use(purpose=BEYOND[edge].format(axis), law=best.fit.law.name, reason=reason))
    return tuple(found)


def _least_aicc(laws: Sequence[Compared]) -> Compared:
    least = min(c.aicc for c in laws)
    return min((c for c in laws if c.aicc <= least + _TIE), key=lambda c: (c.n_parameters, c.aicc))


def _in_order(laws: Sequence[Compared], errors: Sequence[Jackknifed], unit: str) -> str:
    return errors_in_words([(c.fit.law.name, e.error) for c, e in zip(laws, errors, strict=True)], unit)


def errors_in_words(errors: Iterable[tuple[str, float]], unit: str) -> str:
    """Errors of laws by name, in thousandths of the unit; as they are where the losses' unit is not known."""
    size, form = (1e3, ".1f") if unit else (1.0, ".3g")
    words = ", ".join(f"{size * error:{form}} ({name})" for name, error in errors)
    return f"in 0.001 {unit}: {words}" if unit else f"errors {words}"


def _error(compared: Compared, edge: Edge) -> Jackknifed | None:
    return next(h for h in compared.holdouts if h.edge == edge).jackknife
