"""How far a fit would move if the study were run again: bootstrap by cell, run or seed block, never by row.

Local laws, *wild*: the design stays as it is, so a small grid stays identified; each group's residuals,
enlarged for their leverage (CR2: (1 − H_gg)^-½), are multiplied by one random number per draw. A dozen groups
underestimate their own spread, so the draws are widened by Student's factor for the Bell–McCaffrey degrees
of freedom.

Other laws, *pairs*: whole groups are drawn with replacement and the law is refitted; percentiles are expanded
by Student's factor for groups minus coefficients (Hesterberg 2015).

What a group is. With one seed per cell, a run. With several seeds, a cell with all its runs when there are
cells enough: what a law misses in a cell is then shared by its seeds and does not average away. With too few
cells for that, a run. Offsets that a seed block shares are fitted beside a local law, not resampled; a slope
that differs between seed blocks is visible only with ``group="seed"`` and many blocks.

Intervals are percentiles of the draws, or BCa (Efron 1987): percentiles shifted for the bias of the draws and for
how fast their spread changes with the truth, which a jackknife over the groups gives.

A *profile* interval needs no draws: the values of one coefficient at which the best fit of all others is not worse
than noise explains. It sees what a curvature at the optimum does not, a coefficient without an end.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from umscale.errors import UserError, nearest
from umscale.laws.fit import FitResult, profile, refit, slopes
from umscale.laws.forms import Law, LocalLaw, PowerLaw, evaluate, local_features
from umscale.results.columns import Array
from umscale.results.table import Codes

Group = Literal["auto", "cell", "run", "seed"]
Interval = Literal["percentile", "bca"]

LEVEL = 0.95
_SPARE_CELLS = 6  # cells beyond the law's coefficients from which cells are the groups
_EXACT = 1e-9  # eigenvalues of 1 − H_gg below this: the group alone fixes that direction
_FAR = 1e3  # times its value, or e^±7 for a scale: a profile that has not closed by then is open
_WORDS = {True: ", BCa", False: ""}
_CLOSED = 1e-3  # relative distance from an end at which one more step of the search is exact enough
_MOST_STEPS = 60  # of the search for an end of a profile interval
_WINDOW = 0.6  # share of residuals by which a narrow Huber threshold is widened to tell the curvature


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its interval; NaN ends mean that no interval can be given, infinite ones that it has no end."""

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """Draws of a fit's coefficients, and where they come from."""

    fit: FitResult
    draws: Array = field(repr=False, compare=False)
    """[draws, coefficients] in the law's order; empty when nothing is left over to estimate noise from."""
    jackknife: Array | None = field(default=None, repr=False, compare=False)
    """Coefficients without each group in turn [groups, coefficients]; where there are any, intervals are BCa."""
    method: str
    """In words."""
    resampled: str
    """What was resampled, and how many."""
    n_groups: int
    degrees_of_freedom: float
    expansion: float
    """Factor on a normal quantile at the 95% level when percentiles are taken; 1 where draws are widened."""
    seed: int
    warnings: tuple[str, ...] = ()

    def estimate(self, quantity: Callable[[Array], Array], level: float = LEVEL) -> Estimate:
        """Interval of a scalar function of coefficients [..., p] → [...]."""
        low, high = self.interval(quantity, level)
        return Estimate(value=float(quantity(self.fit.vector)), low=float(low), high=float(high))

    def interval(self, quantity: Callable[[Array], Array], level: float = LEVEL) -> tuple[Array, Array]:
        """Interval, elementwise, of any function of coefficients [draws, p] → [draws, ...]."""
        if not len(self.draws):
            nothing = np.full_like(np.asarray(quantity(self.fit.vector), dtype=np.float64), np.nan)
            return nothing, nothing
        from umscale.laws.special import ndtr, ndtri

        normal = ndtri((1 - level) / 2) * self.expansion
        values = np.asarray(quantity(self.draws), dtype=np.float64)
        if self.jackknife is None:
            tail = ndtr(normal)
            with np.errstate(invalid="ignore"):  # an end may be infinite
                low, high = np.quantile(values, [tail, 1 - tail], axis=0)
            return low, high
        value = np.asarray(quantity(self.fit.vector), dtype=np.float64)
        tails = _bca_tails(values, value, np.asarray(quantity(self.jackknife), dtype=np.float64), normal)
        return _quantile(values, tails[0]), _quantile(values, tails[1])

    def coefficients(self, level: float = LEVEL) -> dict[str, Estimate]:
        """Every coefficient with its interval; coefficients that are not identified get none."""
        names = self.fit.law.coefficients
        low, high = self.interval(lambda draws: draws, level)
        loose = self.fit.unidentified
        return {
            name: Estimate(
                value=self.fit.coefficients[name],
                low=float("nan") if name in loose else float(low[k]),
                high=float("nan") if name in loose else float(high[k]),
            )
            for k, name in enumerate(names)
        }

    def band(self, values: Mapping[str, Array], level: float = LEVEL) -> tuple[Array, Array]:
        """Pointwise interval of the predicted mean loss at ``values`` (symbol → [points])."""
        return self.interval(lambda c: evaluate(self.fit.law, c, values, self.fit.reference), level)


def bootstrap(
    fit: FitResult,
    *,
    n_draws: int | None = None,
    group: Group | Codes = "auto",
    unit: str = "groups of rows",
    seed: int = 0,
    interval: Interval = "percentile",
) -> Uncertainty:
    """Uncertainty of ``fit`` by resampling groups of its rows; the same ``seed`` gives the same draws.

    ``n_draws`` defaults to 20 000 for local laws, whose draws are linear, and to 1000 refits for others; 0 gives no
    intervals. ``group`` may be a code for each of the fit's rows; ``unit`` is then what the groups are called. ``bca``
    intervals take one more refit a group.
    """
    codes, resampled = _groups(fit, group, unit)
    rng = np.random.Generator(np.random.PCG64(seed))
    bca = interval == "bca"
    if isinstance(fit.law, LocalLaw):
        return _wild(fit, fit.law, codes, resampled, 20_000 if n_draws is None else n_draws, rng, seed, bca)
    return _pairs(fit, codes, resampled, 1000 if n_draws is None else n_draws, rng, seed, bca)


def without_each(fit: FitResult, codes: Codes) -> Array:
    """Coefficients fitted without each group of rows in turn, [groups, coefficients].

    ``codes`` [rows] number the groups from 0. For a local law in closed form: θ − (X'X)^-1 X_g'(1 − H_gg)^-1 e_g.
    """
    if isinstance(fit.law, LocalLaw):
        leverage = _leverage(fit, fit.law, codes)
        moves = [
            leverage.bread @ leverage.design[rows].T @ (adjust @ (adjust @ leverage.residuals[rows]))
            for rows, adjust in zip(leverage.members, leverage.adjust, strict=True)
        ]
        return fit.vector - np.array(moves)[:, : len(fit.law.coefficients)]
    return refit(fit, (np.arange(int(codes.max()) + 1)[:, None] != codes).astype(np.float64))


def profile_interval(
    fit: FitResult, name: str, level: float = LEVEL, *, groups: Codes | None = None
) -> Estimate:
    """Profile-likelihood interval of one coefficient: its values c with Q(c) − Q̂ ≤ ½ t² κ.

    Q(c) is the objective with the coefficient held at c and all others fitted anew, t Student's quantile. For least
    squares of independent rows κ is the residual variance: the F statistic's interval, which is exact where the law is
    linear in its coefficients. Otherwise κ = [H⁻BH⁻]_cc/[H⁻]_cc (a likelihood ratio scaled for a likelihood that is
    not the noise's: Royall and Tsou 2003): B the sum over rows of the squares of their scores Jψ (ψ the derivative of
    the objective in a residual), enlarged for leverage, and H = Σ ψ′JJ' the objective's curvature. Where
    Huber's δ is narrow, ψ′ is counted in a wider window and each row counts for itself (Powell 1991), so noise may
    differ from row to row.

    With ``groups`` [rows], rows of one group err together: B sums the squares of their summed scores, and t has groups
    minus coefficients degrees of freedom. An end that the rows do not bound is infinite, or 0 for a scale.

    Raises ``UserError`` for a coefficient that the law lacks, and for least absolute deviations, whose objective has
    corners where a profile would be read.
    """
    from umscale.laws.special import stdtrit

    if fit.objective_name == "least_absolute":
        raise UserError("a profile needs a smooth objective: huber or least_squares, not least_absolute")
    if name in fit.constraints.pins:
        return Estimate(
            value=fit.constraints.pins[name], low=fit.constraints.pins[name], high=fit.constraints.pins[name]
        )
    codes = None if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    shared = codes is not None and int(codes.max()) + 1 < fit.n_rows
    if isinstance(fit.law, LocalLaw):
        if shared:
            return bootstrap(fit, group=np.asarray(codes, dtype=np.int64)).coefficients(level)[name]
        return _exact_interval(fit, fit.law, name, level)
    n_groups = int(codes.max()) + 1 if shared and codes is not None else fit.n_rows
    value, freedom = fit.coefficients[name], n_groups - fit.n_free
    if freedom < 1:
        return Estimate(value=value, low=float("nan"), high=float("nan"))
    allowed = 0.5 * float(stdtrit(freedom, (1 + level) / 2)) ** 2 * _score_scale(fit, name, codes, shared)
    by_ratio = isinstance(fit.law, PowerLaw) and name in fit.law.scales and value > 0
    low, high = _profile_ends(fit, name, allowed, by_ratio)
    least, most = fit.constraints.bounds.get(name, (-np.inf, np.inf))
    return Estimate(value=value, low=max(low, least), high=min(high, most))


def chance_of_gain(fit: FitResult, richer: FitResult, groups: Codes) -> float:
    """How likely noise alone lets a law of more coefficients lower the objective by as much as it does; NaN if unknown.

    The tail of F in 2(Q − Q′)·b/(s²·more coefficients), with b and s² of the richer law as in ``profile_interval``: the
    F test of nested laws for least squares, its like for Huber's objective. ``groups`` [rows] err together: s² is then
    at least what sums over groups tell, and the degrees of freedom are groups minus coefficients.
    """
    from umscale.laws.special import fdtrc

    used, fewer = (one.rank + one.blocks.shape[1] for one in (richer, fit))
    n_groups = len(np.unique(groups))
    how = [(one.objective_name, one.delta, one.residual, one.above) for one in (fit, richer)]
    if how[0] != how[1] or richer.above != 1 or richer.objective_name == "least_absolute":
        return float("nan")
    if used <= fewer or n_groups <= used:
        return float("nan")
    psi = np.clip(richer.residuals, -richer.delta, richer.delta) * _root_weights(richer)
    spread = float(psi @ psi) / (fit.n_rows - used)
    if n_groups < fit.n_rows:
        sums = np.bincount(np.unique(groups, return_inverse=True)[1].reshape(-1), weights=psi)
        spread = max(spread, float(sums @ sums) / (n_groups - used) * n_groups / fit.n_rows)
    if spread <= 0:
        return 0.0 if fit.objective > richer.objective else 1.0
    gain = 2 * (fit.objective - richer.objective) * _curvature(richer) / spread
    return float(fdtrc(used - fewer, n_groups - used, max(gain, 0.0) / (used - fewer)))


def _profile_ends(fit: FitResult, name: str, allowed: float, by_ratio: bool) -> tuple[float, float]:
    """The two values at which the profile has risen by ``allowed``; steps follow √rise, which is near linear."""
    value = fit.coefficients[name]
    signs = np.array([-1.0, 1.0])
    size = 1.0 if by_ratio else max(abs(value), 1e-3)
    furthest = float(np.log(_FAR)) if by_ratio else _FAR * size
    distance = np.full(2, 0.05 * size)
    inside, outside = np.zeros(2), np.full(2, np.inf)
    active = np.array([True, True])
    for _ in range(_MOST_STEPS):
        at = signs[active] * distance[active]
        rise = profile(fit, name, value * np.exp(at) if by_ratio else value + at) - fit.objective
        with np.errstate(divide="ignore"):
            factor = np.sqrt(allowed / np.maximum(rise, 0.0))
        here = distance[active]
        inside[active] = np.where(factor >= 1, here, inside[active])
        outside[active] = np.where(factor < 1, here, outside[active])
        following = here * np.clip(factor, 0.2, 5.0)
        # Never leave the bracket: halve it instead.
        between = (following > inside[active]) & (following < outside[active])
        following = np.where(
            between, following, 0.5 * (inside[active] + np.minimum(outside[active], 4 * here))
        )
        closed = np.abs(factor - 1) < _CLOSED
        open_ended = inside[active] >= furthest
        distance[active] = np.where(open_ended & ~closed, np.inf, following)
        active[active] = ~(closed | open_ended)
        if not active.any():
            break
    with np.errstate(over="ignore"):
        ends = value * np.exp(signs * distance) if by_ratio else value + signs * distance
    return float(ends[0]), float(ends[1])


def _score_scale(fit: FitResult, name: str, codes: Codes | None, shared: bool) -> float:
    """κ of ``profile_interval``, where rows are independent and, if they are not, by their groups: the greater."""
    weight = np.ones(fit.n_rows) if fit.weights is None else fit.weights
    weight = np.where(fit.residuals > 0, fit.above, 1.0) * weight
    psi = np.clip(fit.residuals, -fit.delta, fit.delta) * np.sqrt(weight)
    equal = float(psi @ psi) / (fit.n_rows - fit.n_free) / _curvature(fit)
    if np.isinf(fit.delta) and not shared:
        return equal
    position, unweighted = slopes(fit, name)
    design: Array = np.asarray(unweighted * np.sqrt(weight)[:, None], dtype=np.float64)
    bread = _inverse_square(design)
    inverse = _inverse_curvature(fit, design, bread)
    along, spread = inverse[position], equal * inverse[position, position]
    if np.isfinite(fit.delta):
        spread = _score_variance(design, bread, along, psi, np.arange(fit.n_rows, dtype=np.int64))
    if shared and codes is not None:
        spread = max(spread, _score_variance(design, bread, along, psi, codes))
    return float(spread / along[position])


def _inverse_square(design: Array) -> Array:
    """(X'X)⁻ of a design X [N, P], [P, P]: of directions that the rows do not tell apart, zero."""
    return np.asarray(np.linalg.pinv(design.T @ design, rcond=1e-12, hermitian=True), dtype=np.float64)


def _inverse_curvature(fit: FitResult, design: Array, bread: Array) -> Array:
    """H⁻ from the rows whose residuals are small, or from all rows' mean curvature where those are too few."""
    size = np.abs(fit.residuals)
    window = max(fit.delta, float(np.quantile(size, _WINDOW))) if np.isfinite(fit.delta) else np.inf
    near = size <= window
    if near.all() or near.sum() < 2 * design.shape[1]:
        return bread / _curvature(fit)
    chosen = design[near]
    inverse = _inverse_square(chosen)
    return inverse / min(1.0, fit.delta / window)


def _score_variance(design: Array, bread: Array, along: Array, psi: Array, codes: Codes) -> float:
    """Σ over groups of (along'X_g'A_gψ_g)², X = √w J, M = X'X, H_gg = X_g M⁻ X_g'.

    Rows by themselves are enlarged by A = (1 − H)^-½ (CR2), groups, of which there are few, by (1 − H_gg)^-1 as a
    jackknife does (CR3).
    """
    n_groups = int(codes.max()) + 1
    if n_groups == len(psi):
        room = 1 - np.einsum("ni,ij,nj->n", design, bread, design)
        return float((((design @ along) * psi) ** 2 / np.maximum(room, _EXACT))[room > _EXACT].sum())
    total = 0.0
    for g in range(n_groups):
        rows = codes == g
        x = design[rows]
        room, axes = np.linalg.eigh(np.eye(len(x)) - x @ bread @ x.T)
        adjust = np.where(room > _EXACT, 1 / np.maximum(room, _EXACT), 0.0)
        total += float(along @ (x.T @ ((axes * adjust) @ (axes.T @ psi[rows])))) ** 2
    return total * (n_groups - 1) / n_groups


def _curvature(fit: FitResult) -> float:
    """Mean of ψ′, the share of residuals within δ; from a wider window where δ is narrow, as density times 2δ.

    A fit passes through as many rows as it has coefficients: those residuals are no evidence of the density.
    """
    if np.isinf(fit.delta):
        return 1.0
    size = np.abs(fit.residuals)
    window = max(fit.delta, float(np.quantile(size, 0.5)))
    inside = float((size <= window).sum()) - fit.n_free * min(1.0, 1 - fit.delta / window)
    return max(inside / (fit.n_rows - fit.n_free), 1 / fit.n_rows) * min(1.0, fit.delta / window)


def _exact_interval(fit: FitResult, law: LocalLaw, name: str, level: float) -> Estimate:
    """Student's interval of a coefficient of a linear law, block intercepts beside it."""
    from umscale.laws.special import stdtrit

    if name not in law.coefficients:
        raise UserError(f"law {law.name!r} has no coefficient {name!r}{nearest(name, law.coefficients)}")
    root = _root_weights(fit)
    residuals = fit.residuals * root
    design = np.hstack([local_features(law, fit.rows.values, fit.reference), fit.blocks]) * root[:, None]
    k = law.coefficients.index(name)
    value, freedom = fit.coefficients[name], fit.n_rows - fit.rank - fit.blocks.shape[1]
    if freedom < 1 or name in fit.unidentified:
        return Estimate(value=value, low=float("nan"), high=float("nan"))
    bread = _inverse_square(design)
    error = float(np.sqrt(bread[k, k] * (residuals @ residuals) / freedom))
    half = float(stdtrit(freedom, (1 + level) / 2)) * error
    return Estimate(value=value, low=value - half, high=value + half)


def _bca_tails(values: Array, value: Array, left_out: Array, normal: float) -> tuple[Array, Array]:
    """Shares of the draws [draws, ...] below the two ends of the BCa interval, each [...].

    With z0 the normal quantile of the share of draws below the estimate and a = Σd³/6(Σd²)^1.5, d the jackknife's
    deviations, the ends are at Φ(z0 + (z0 ± z)/(1 − a(z0 ± z))). ``normal`` is −z.
    """
    from umscale.laws.special import ndtr, ndtri

    n = len(values)
    below = np.mean(values < value, axis=0) + 0.5 * np.mean(values == value, axis=0)
    shift = ndtri(np.clip(below, 0.5 / n, 1 - 0.5 / n))
    deviation = left_out.mean(axis=0) - left_out
    spread = (deviation**2).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        pull = np.where(spread > 0, (deviation**3).sum(axis=0) / (6 * spread**1.5), 0.0)

    def tail(z: float) -> Array:
        # Beyond the pole the transformation has no meaning; the interval then ends at the extreme draw.
        return np.asarray(ndtr(shift + (shift + z) / np.maximum(1 - pull * (shift + z), 1e-3)))

    return tail(normal), tail(-normal)


def _quantile(values: Array, shares: Array) -> Array:
    """The quantile of ``values`` [draws, ...] at a share of its own for each element [...], interpolated."""
    ordered = np.sort(values, axis=0)
    position = shares * (len(ordered) - 1)
    lower = np.floor(position).astype(np.int64)
    upper = np.minimum(lower + 1, len(ordered) - 1)
    low, high = (np.take_along_axis(ordered, k[None], axis=0)[0] for k in (lower, upper))
    return np.asarray(low + (position - lower) * (high - low))


def resampled_together(fit: FitResult) -> Codes:
    """Code of the group each row is in, as a bootstrap takes them by itself, [rows]."""
    return _groups(fit, "auto", "")[0]


def _groups(fit: FitResult, group: Group | Codes, unit: str) -> tuple[Codes, str]:
    """Group code of each row, from 0, and the words for the groups."""
    rows = fit.rows
    if not isinstance(group, str):
        codes = np.unique(group, return_inverse=True)[1].astype(np.int64).reshape(-1)
        return codes, f"{int(codes.max()) + 1} {unit}"
    n_cells, n_runs, n_seeds = (len(np.unique(c)) for c in (rows.cell, rows.run, rows.seed))
    if group == "auto":
        spare = n_cells - _coefficients_between_cells(fit.law)
        group = "cell" if n_runs > n_cells and spare >= _SPARE_CELLS else "run"
    codes = {"cell": rows.cell, "run": rows.run, "seed": rows.seed}[group]
    seeds = f"{n_seeds} seed block{'s' if n_seeds > 1 else ''}"
    words = {
        "cell": f"{n_cells} cells with all their runs ({n_runs} runs in {seeds})",
        "run": f"{n_runs} runs of {n_cells} cells in {seeds}",
        "seed": seeds,
    }[group]
    return np.unique(codes, return_inverse=True)[1].astype(np.int64).reshape(-1), words


def _coefficients_between_cells(law: Law) -> int:
    """Coefficients that differences between cells must determine; those of tokens vary within a run."""
    if isinstance(law, LocalLaw):
        return 1 + sum(1 for slope in law.slopes if slope.symbols != ("D",))
    return len(law.coefficients)


def _wild(
    fit: FitResult,
    law: LocalLaw,
    codes: Codes,
    resampled: str,
    n_draws: int,
    rng: np.random.Generator,
    seed: int,
    bca: bool,
) -> Uncertainty:
    """θ* = θ̂ + √(ν/χ²_ν) Σ_g z_g s_g, s_g = (X'X)^-1 X_g'(1 − H_gg)^-½ u_g, z_g standard normal.

    Given the data the draws are multivariate t with the CR2 covariance, so a linear function's percentile
    interval is the cluster-robust t interval and a ratio's is close to Fieller's.
    """
    n_coefficients = len(law.coefficients)
    leverage = _leverage(fit, law, codes)
    scores = np.stack(
        [
            (leverage.bread @ leverage.design[rows].T @ adjust @ leverage.residuals[rows])[:n_coefficients]
            for rows, adjust in zip(leverage.members, leverage.adjust, strict=True)
        ]
    )
    freedom = _degrees_of_freedom(fit, law, leverage)
    warnings: list[str] = []
    if freedom < 0.5:
        moves = np.zeros((0, n_coefficients))
        method = "none"
        warnings.append("the law passes through every group: nothing is left over to estimate noise from")
    else:
        widen = np.sqrt(freedom / rng.chisquare(freedom, size=n_draws))
        moves = (rng.standard_normal((n_draws, len(scores))) @ scores) * widen[:, None]
        method = f"wild cluster bootstrap, CR2 residuals, widened for t with {freedom:.1f} degrees of freedom"
        if freedom < 4:
            warnings.append(f"intervals rest on {freedom:.1f} degrees of freedom: they are wide and say so")
    return Uncertainty(
        fit=fit,
        draws=fit.vector + moves,
        jackknife=without_each(fit, codes) if bca and len(moves) else None,
        method=method + _WORDS[bca and len(moves) > 0],
        resampled=resampled,
        n_groups=len(scores),
        degrees_of_freedom=freedom,
        expansion=1.0,
        seed=seed,
        warnings=tuple(warnings),
    )


def _pairs(
    fit: FitResult,
    codes: Codes,
    resampled: str,
    n_draws: int,
    rng: np.random.Generator,
    seed: int,
    bca: bool,
) -> Uncertainty:
    """Refits from the optimum to groups drawn with replacement, all as one batch."""
    n_groups = int(codes.max()) + 1
    freedom = float(n_groups - fit.n_free)
    draws = np.zeros((0, len(fit.law.coefficients)))
    method, expansion = "none", 1.0
    warnings: tuple[str, ...] = ()
    if freedom < 1:
        warnings = ("the law has as many coefficients as there are groups: no interval can be given",)
    elif n_draws:
        counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws)
        draws = refit(fit, counts[:, codes].astype(np.float64))
        method = (
            f"pairs cluster bootstrap, {n_draws} refits, percentiles expanded for t with {freedom:.0f} "
            f"degrees of freedom{_WORDS[bca]}"
        )
        expansion = _student_over_normal(freedom) * float(np.sqrt(n_groups / (n_groups - 1)))
        if np.ptp(draws, axis=0).max() == 0 and fit.n_free and fit.rmse_nats > _EXACT:
            # Huber far inside its linear part, rows balanced around the law in every group: any resample agrees.
            draws, method = draws[:0], "none"
            warnings = (
                "resampling does not move the fit: rows lie in balance on both sides of it, far beyond delta; the law "
                "misses what sets them apart, and no interval can be given (--objective least_squares has one)",
            )
    return Uncertainty(
        fit=fit,
        draws=draws,
        jackknife=without_each(fit, codes) if bca and len(draws) else None,
        method=method,
        resampled=resampled,
        n_groups=n_groups,
        degrees_of_freedom=max(freedom, 0.0),
        expansion=expansion,
        seed=seed,
        warnings=warnings,
    )


def _student_over_normal(freedom: float) -> float:
    """Ratio of the two distributions' 97.5% quantiles."""
    from umscale.laws.special import ndtri, stdtrit

    return float(stdtrit(freedom, 0.975) / ndtri(0.975))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leverage:
    design: Array  # √w X [rows, P]
    residuals: Array  # √w r [rows]
    bread: Array  # (X'X)^-1 [P, P], pseudo-inverse where X is rank-deficient
    members: tuple[Codes, ...]  # row numbers of each group
    adjust: tuple[Array, ...]  # (1 − H_gg)^-½ of each group


def _root_weights(fit: FitResult) -> Array:
    return np.ones(fit.n_rows) if fit.weights is None else np.sqrt(fit.weights)


def _leverage(fit: FitResult, law: LocalLaw, codes: Codes) -> _Leverage:
    weigh = _root_weights(fit)
    design = np.hstack([local_features(law, fit.rows.values, fit.reference), fit.blocks]) * weigh[:, None]
    bread = _inverse_square(design)
    members = tuple(np.flatnonzero(codes == g) for g in range(int(codes.max()) + 1))
    adjust = []
    for rows in members:
        x = design[rows]
        room, axes = np.linalg.eigh(np.eye(len(rows)) - x @ bread @ x.T)
        root = np.where(room > _EXACT, 1 / np.sqrt(np.maximum(room, _EXACT)), 0.0)
        adjust.append((axes * root) @ axes.T)
    return _Leverage(
        design=design,
        residuals=fit.residuals * weigh,
        bread=bread,
        members=members,
        adjust=tuple(adjust),
    )


def _degrees_of_freedom(fit: FitResult, law: LocalLaw, leverage: _Leverage) -> float:
    """Bell–McCaffrey degrees of freedom, the least over the law's slopes between cells and their differences.

    The CR2 variance of a contrast c is Σ_g (q_g·ε)² for independent errors ε, with
    q_g = (1 − H)_g' A_g X_g (X'X)^-1 c; matching two moments gives ν = (Σ λ)²/Σ λ², λ eigenvalues of Q'Q.
    """
    design, bread = leverage.design, leverage.bread
    unit = np.eye(design.shape[1])[: len(law.coefficients)]
    slopes = [k for k, name in enumerate(law.coefficients) if name not in {"c0", "d", *fit.unidentified}]
    contrasts = [unit[k] for k in slopes or range(len(law.coefficients))]
    # δ_m − δ_N decides a verdict; slopes of products are in another unit and never compared with them.
    simple = [s.coefficient for s in law.slopes if len(s.symbols) == 1]
    pairs = itertools.combinations([k for k in slopes if law.coefficients[k] in simple], 2)
    contrasts += [unit[j] - unit[k] for j, k in pairs]
    residual_maker = np.eye(len(design)) - design @ bread @ design.T
    # [groups, rows, P]: what each group's adjusted score reads from every row's error.
    scores = np.stack(
        [
            residual_maker[:, rows] @ (adjust @ (design[rows] @ bread))
            for rows, adjust in zip(leverage.members, leverage.adjust, strict=True)
        ]
    )
    least = float("inf")
    for contrast in contrasts:
        q = scores @ contrast
        gram = q @ q.T
        trace = float(np.trace(gram))
        if trace <= 1e-12 * float(contrast @ bread @ contrast):
            return 0.0
        least = min(least, trace**2 / float((gram**2).sum()))
    return least
