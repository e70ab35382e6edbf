"""How far a fit would move if the study were run again: bootstrap by cell, run or seed block, never by row.

Local laws, *wild*: the design stays as it is, so a small grid stays identified; each group's residuals,
enlarged for their leverage (CR2: (1 − H_gg)^-½), are multiplied by one random number per draw. A dozen groups
underestimate their own spread, so the draws are widened by Student's factor for the Bell–McCaffrey degrees
of freedom.

Power laws, *pairs*: whole groups are drawn with replacement and the law is refitted; percentiles are expanded
by Student's factor for groups minus coefficients (Hesterberg 2015).

What a group is. With one seed per cell, a run. With several seeds, a cell with all its runs when there are
cells enough: what a law misses in a cell is then shared by its seeds and does not average away. With too few
cells for that, a run. Offsets that a seed block shares are fitted beside a local law, not resampled; a slope
that differs between seed blocks is visible only with ``group="seed"`` and many blocks.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from umscale.laws import engine
from umscale.laws.fit import FitResult
from umscale.laws.forms import Array, Law, LocalLaw, PowerLaw, evaluate, from_theta, local_features, to_theta
from umscale.laws.table import Codes

Group = Literal["auto", "cell", "run", "seed"]

LEVEL = 0.95
_SPARE_CELLS = 6  # cells beyond the law's coefficients from which cells are the groups
_EXACT = 1e-9  # eigenvalues of 1 − H_gg below this: the group alone fixes that direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its interval; NaN ends mean that no interval can be given."""

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
        """Percentile interval of a scalar function of coefficients [..., p] → [...]."""
        low, high = self.interval(quantity, level)
        return Estimate(value=float(quantity(self.fit.vector)), low=float(low), high=float(high))

    def interval(self, quantity: Callable[[Array], Array], level: float = LEVEL) -> tuple[Array, Array]:
        """Percentile interval, elementwise, of any function of coefficients [draws, p] → [draws, ...]."""
        if not len(self.draws):
            nothing = np.full_like(np.asarray(quantity(self.fit.vector), dtype=np.float64), np.nan)
            return nothing, nothing
        from scipy.special import ndtr, ndtri

        tail = ndtr(ndtri((1 - level) / 2) * self.expansion)
        values = np.asarray(quantity(self.draws), dtype=np.float64)
        low, high = np.quantile(values, [tail, 1 - tail], axis=0)
        return low, high

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
    fit: FitResult, *, n_draws: int | None = None, group: Group = "auto", seed: int = 0
) -> Uncertainty:
    """Uncertainty of ``fit`` by resampling groups of its rows; the same ``seed`` gives the same draws.

    ``n_draws`` defaults to 20 000 for local laws, whose draws are linear, and to 1000 refits for power laws.
    """
    codes, resampled = _groups(fit, group)
    rng = np.random.Generator(np.random.PCG64(seed))
    if isinstance(fit.law, LocalLaw):
        return _wild(fit, fit.law, codes, resampled, n_draws or 20_000, rng, seed)
    return _pairs(fit, fit.law, codes, resampled, n_draws or 1000, rng, seed)


def _groups(fit: FitResult, group: Group) -> tuple[Codes, str]:
    """Group code of each row and the sentence that names the groups."""
    rows = fit.rows
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
) -> Uncertainty:
    """θ* = θ̂ + √(ν/χ²_ν) Σ_g z_g s_g, s_g = (X'X)^-1 X_g'(1 − H_gg)^-½ u_g, z_g standard normal.

    Given the data the draws are multivariate t with the CR2 covariance, so a linear function's percentile
    interval is the cluster-robust t interval and a ratio's is close to Fieller's.
    """
    n_coefficients = len(law.coefficients)
    leverage = _leverage(fit, law, codes)
    scores = np.stack(
        [
            (leverage.bread @ leverage.design[rows].T @ adjust @ fit.residuals[rows])[:n_coefficients]
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
        method=method,
        resampled=resampled,
        n_groups=len(scores),
        degrees_of_freedom=freedom,
        expansion=1.0,
        seed=seed,
        warnings=tuple(warnings),
    )


def _pairs(
    fit: FitResult,
    law: PowerLaw,
    codes: Codes,
    resampled: str,
    n_draws: int,
    rng: np.random.Generator,
    seed: int,
) -> Uncertainty:
    """Refits from the optimum to groups drawn with replacement, all as one batch."""
    n_groups = int(codes.max()) + 1
    freedom = float(n_groups - len(law.coefficients))
    draws = np.zeros((0, len(law.coefficients)))
    method, expansion = "none", 1.0
    warnings: tuple[str, ...] = ()
    if freedom < 1:
        warnings = ("the law has as many coefficients as there are groups: no interval can be given",)
    else:
        problem = engine.make_problem(law, fit.rows.values, residual=fit.residual, delta=fit.delta)
        start = np.repeat(problem.centred(to_theta(law, fit.vector))[None], n_draws, axis=0)
        counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws)
        solution = engine.minimise(problem, start, fit.rows.loss, weights=counts[:, codes].astype(np.float64))
        draws = from_theta(law, problem.restored(solution.theta))
        method = (
            f"pairs cluster bootstrap, {n_draws} refits, percentiles expanded for t with {freedom:.0f} "
            "degrees of freedom"
        )
        expansion = _student_over_normal(freedom) * float(np.sqrt(n_groups / (n_groups - 1)))
    return Uncertainty(
        fit=fit,
        draws=draws,
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
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(freedom, 0.975) / ndtri(0.975))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leverage:
    design: Array  # X [rows, P]
    bread: Array  # (X'X)^-1 [P, P], pseudo-inverse where X is rank-deficient
    members: tuple[Codes, ...]  # row numbers of each group
    adjust: tuple[Array, ...]  # (1 − H_gg)^-½ of each group


def _leverage(fit: FitResult, law: LocalLaw, codes: Codes) -> _Leverage:
    design = np.hstack([local_features(law, fit.rows.values, fit.reference), fit.blocks])
    bread = np.linalg.pinv(design.T @ design, rcond=1e-12, hermitian=True).astype(np.float64)
    members = tuple(np.flatnonzero(codes == g) for g in range(int(codes.max()) + 1))
    adjust = []
    for rows in members:
        x = design[rows]
        room, axes = np.linalg.eigh(np.eye(len(rows)) - x @ bread @ x.T)
        root = np.where(room > _EXACT, 1 / np.sqrt(np.maximum(room, _EXACT)), 0.0)
        adjust.append((axes * root) @ axes.T)
    return _Leverage(design=design, bread=bread, members=members, adjust=tuple(adjust))


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
