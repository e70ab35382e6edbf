"""Errors where a law was not fitted: rows at an edge of the design, and groups of rows left out in turn.

Each error comes with what it is without each group of rows: without them among the rows fitted, and without their noise
among the rows tested. Two laws' errors are then compared pairwise by the jackknife of their difference. What a law
misses is no noise: it stays in its error, and out of the error's spread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from umscale.errors import UserError
from umscale.laws.fit import FitResult, fit_anew, refit
from umscale.laws.forms import LocalLaw, evaluate
from umscale.laws.uncertainty import without_each
from umscale.results.columns import Array
from umscale.results.table import Codes, Rows

Edge = Literal["largest", "sparsest", "future"]

EDGES: tuple[Edge, ...] = ("largest", "sparsest", "future")

HELD: Mapping[Edge, str] = {
    "largest": "the largest {} held out",
    "sparsest": "the sparsest activation held out",
    "future": "the most tokens held out",
}
BEYOND: Mapping[Edge, str] = {
    "largest": "to larger {}",
    "sparsest": "to sparser activation",
    "future": "to more tokens",
}
_SAME_LEVEL = 1.01
_MANY_LEVELS = (
    30  # an axis with more is no grid: its greatest tenth of the rows is held out, not its greatest level
)
_MOST_GROUPS = 40  # left out in turn; of more, several are left out together


@dataclass(frozen=True, slots=True, kw_only=True)
class Jackknifed:
    """An error, and how each group of rows moves it."""

    error: float
    moves: Array = field(repr=False, compare=False)
    """√((n − 1)/n) times (the error without a group − their mean) [n groups]; NaN where it cannot be had."""
    freedom: int
    """Groups less one; 0 where a single one was tested on."""

    def behind(self, other: "Jackknifed", level: float = 0.95) -> bool:
        """Whether this error is greater than the other's, of the same groups, by more than noise explains."""
        from umscale.laws.special import stdtrit

        with np.errstate(invalid="ignore"):  # both may be infinite
            spread = float(np.linalg.norm(self.moves - other.moves))
        if self.freedom < 1 or not np.isfinite(spread):
            return False
        return self.error - other.error > float(stdtrit(self.freedom, level)) * spread


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
    jackknife: Jackknifed | None = field(default=None, repr=False, compare=False)
    """Of the RMSE in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsHeldOut:
    """The rows of one hold-out, and what the law fitted to all others says of them."""

    test: HoldOut
    chosen: NDArray[np.bool_]
    """Which rows were left out, [rows]."""
    coefficients: Array
    """Fitted to the others, [coefficients]."""
    predicted: Array
    """Losses of the rows left out, [rows left out]."""


def rows_held_out(fit: FitResult, tests: Sequence[HoldOut]) -> tuple[RowsHeldOut, ...]:
    """Take the rows of each hold-out that was not skipped out of a fit again."""
    return tuple(_without_rows(fit, test) for test in tests if not test.skipped)


def _without_rows(fit: FitResult, test: HoldOut) -> RowsHeldOut:
    values = fit.rows.values
    _, axis = held_axis(fit.rows, test.edge)
    assert axis is not None, f"{test.edge} was skipped"
    chosen = np.zeros(fit.n_rows, dtype=bool)
    chosen[np.argsort(axis, kind="stable")[fit.n_rows - test.n_test :]] = True
    # A local law is linear: without its rows it is had in closed form.
    if isinstance(fit.law, LocalLaw):
        coefficients = without_each(fit, chosen.astype(np.int64))[1]
    else:
        coefficients = refit(fit, (~chosen).astype(np.float64)[None])[0]
    there = {symbol: v[chosen] for symbol, v in values.items()}
    predicted = evaluate(fit.law, coefficients, there, fit.reference)
    return RowsHeldOut(test=test, chosen=chosen, coefficients=coefficients, predicted=predicted)


def mean_error(parts: "list[Jackknifed]") -> Jackknifed:
    """The mean of a law's errors; those taken without different groups count as independent."""
    same = len({len(p.moves) for p in parts}) == 1
    moves = (
        np.mean([p.moves for p in parts], axis=0)
        if same
        else np.concatenate([p.moves for p in parts]) / len(parts)
    )
    return Jackknifed(
        error=float(np.mean([p.error for p in parts])),
        moves=moves,
        freedom=min(p.freedom for p in parts),
    )


@np.errstate(all="ignore")  # laws that run away without some rows say so by infinities
def group_error(fit: FitResult, groups: Codes) -> Jackknifed:
    """RMSE in nats of each group of rows by the law fitted without it."""
    codes = _few(groups)
    without = without_each(fit, codes)
    predicted = evaluate(fit.law, without, fit.rows.values, fit.reference)[codes, np.arange(fit.n_rows)]
    gaps = predicted - fit.rows.loss
    others = codes != np.arange(int(codes.max()) + 1)[:, None]
    if not others.any(axis=1).all():
        return Jackknifed(error=float(np.sqrt(np.mean(gaps**2))), moves=np.full(1, np.nan), freedom=0)
    return _jackknifed(gaps, np.where(others, gaps, np.nan), len(others))


def _few(groups: Codes) -> Codes:
    """Group codes from 0, groups put together at random where there are very many."""
    codes = np.unique(groups, return_inverse=True)[1].astype(np.int64).reshape(-1)
    n = int(codes.max()) + 1
    if n <= _MOST_GROUPS:
        return codes
    return np.asarray((np.random.Generator(np.random.PCG64(0)).permutation(n) % _MOST_GROUPS)[codes])


def _jackknifed(gaps: Array, moved: Array, n_tested: int) -> Jackknifed:
    """RMSE of gaps [rows], and what it is with those of ``moved`` [groups, rows], where NaN is left out."""
    without = np.sqrt(np.nanmean(moved**2, axis=1))
    n = len(without)
    return Jackknifed(
        error=float(np.sqrt(np.mean(gaps**2))),
        moves=(without - without.mean()) * np.sqrt((n - 1) / n),
        freedom=n - 1 if n_tested else 0,
    )


@np.errstate(all="ignore")  # laws that run away without some rows say so by infinities
def hold_out(fit: FitResult, edge: Edge, groups: Codes, noise: Array) -> HoldOut:
    """The law fitted without the rows at an edge, and its error there.

    Rows of one of ``groups`` [rows] err together; ``noise`` [rows] is what is known of their errors, in nats: residuals
    of the law that follows all rows best.
    """
    name, axis = held_axis(fit.rows, edge)
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
        anew = fit_anew(train, fit)
    except UserError as error:
        return _skipped(fit, edge, name, n_test, str(error))
    if anew.dropped or anew.unidentified:
        lost = ", ".join([*anew.dropped, *anew.unidentified])
        return _skipped(fit, edge, name, n_test, f"the rows that remain do not determine {lost}")
    if not anew.is_exact:
        return _skipped(fit, edge, name, n_test, "the optimiser did not arrive on the rows that remain")
    gap = anew.predict(test.values) - test.loss
    return HoldOut(
        edge=edge,
        axis=name,
        n_train=train.size,
        n_test=n_test,
        rmse_nats=float(np.sqrt(np.mean(gap**2))),
        mean_percent=float(100 * np.mean(np.abs(gap / test.loss))),
        skipped="",
        jackknife=_at_edge(anew, test, held, groups, noise),
    )


def _at_edge(
    refit: FitResult, test: Rows, held: NDArray[np.bool_], groups: Codes, noise: Array
) -> Jackknifed:
    """The error on held-out rows; moved by each group: its rows out of those fitted, its noise out of those held."""
    codes = _few(groups)
    fitted, n = codes[~held], int(codes.max()) + 1
    gap = refit.predict(test.values) - test.loss
    moved = np.repeat(gap[None], n, axis=0)
    present, own = np.unique(fitted, return_inverse=True)
    if len(present) > 1:
        coefficients = without_each(refit, own.reshape(-1))
        moved[present] = evaluate(refit.law, coefficients, test.values, refit.reference) - test.loss
    moved += noise[held] * (codes[held] == np.arange(n)[:, None])
    return _jackknifed(gap, moved, len(np.unique(codes[held])))


def held_axis(rows: Rows, edge: Edge) -> tuple[str, Array | None]:
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


def _greatest(axis: Array) -> NDArray[np.bool_]:
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
