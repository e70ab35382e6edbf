"""Fits sums of products of powers: variable-projection starts, then batched damped Newton.

With log L = logsumexp_t(X_t · θ) and p_t the softmax weights,

    ∇ log L = Σ_t p_t X_t = J        ∇² log L = Σ_t p_t X_t X_tᵀ − J Jᵀ

so objective, gradient and Hessian of Σ_i w_i h_δ(r_i) are closed forms. All starts, or all bootstrap
replicates, advance together as one batch: S starts, T terms, N rows, P coefficients.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from umscale.laws.forms import Array, Factor, PowerLaw, Residual, power_features

_DECREMENT = 1e-13  # Newton decrement relative to the objective at which a start has arrived
_EXACT = 1e-24  # decrement per row below which the residuals are rounding errors
_STALLED = 1e8  # damping beyond which no step the arithmetic can resolve goes down
_GRID_BUDGET = 320  # starts laid out over the exponents
_REFINED = 16  # starts handed to Newton


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One law on one set of rows, with features centred so that scales and exponents are nearly orthogonal."""

    features: Array
    """X [T, N, P], each factor's column centred within its term."""
    centring: Array
    """θ_centred = centring @ θ, [P, P]."""
    pattern: tuple[tuple[int, ...], ...]
    """For each coefficient, the terms in which its feature is not zero."""
    residual: Residual
    delta: float
    """Huber threshold; infinity is least squares."""

    def centred(self, theta: Array) -> Array:
        """θ [..., P] in the law's own units → centred."""
        return np.asarray(theta @ self.centring.T)

    def restored(self, theta: Array) -> Array:
        """Centred θ [..., P] → the law's own units."""
        # centring − 1 maps exponents to scales only, so its square vanishes and the inverse is exact.
        return np.asarray(theta @ (2.0 * np.eye(len(self.centring)) - self.centring).T)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """Where each start of a batch ended."""

    theta: Array
    """Centred θ [S, P]."""
    objective: Array
    """[S]."""
    decrement: Array
    """Predicted further decrease of the objective, [S]."""


def make_problem(law: PowerLaw, values: Mapping[str, Array], *, residual: Residual, delta: float) -> Problem:
    """The law's features on the rows of ``values`` (symbol → [N])."""
    features = power_features(law, values)
    n_coefficients = features.shape[2]
    centring = np.eye(n_coefficients)
    scales = [law.coefficients.index(s) for s in law.scales]
    for t, scale in enumerate(scales):
        for k in range(n_coefficients):
            if k not in scales:
                mean = features[t, :, k].mean()
                centring[scale, k] += mean
                features[t, :, k] -= mean
    pattern = tuple(
        tuple(t for t in range(len(law.terms)) if features[t, :, k].any()) for k in range(n_coefficients)
    )
    return Problem(features=features, centring=centring, pattern=pattern, residual=residual, delta=delta)


def starting_points(law: PowerLaw, problem: Problem, loss: Array) -> Array:
    """Centred starts [S, P]: a grid over the exponents, the scales solved for given them (weights 1/L²)."""
    exponents = _exponent_grid(law)  # [S, Q]
    scales = [law.coefficients.index(s) for s in law.scales]
    others = [k for k in range(problem.features.shape[2]) if k not in scales]
    theta = np.zeros((len(exponents), problem.features.shape[2]))
    theta[:, others] = exponents
    shapes = np.exp(np.clip(np.einsum("sq,tnq->stn", exponents, problem.features[:, :, others]), -60, 60))
    theta[:, scales] = np.log(_positive_scales(shapes / loss))
    return theta


def minimise(
    problem: Problem, theta: Array, loss: Array, *, weights: Array | None = None, max_steps: int = 300
) -> Solution:
    """Damped Newton from centred starts ``theta`` [S, P] to the observed ``loss`` [N].

    ``weights`` [S, N] multiply the rows' terms of the objective. Directions of negative curvature are
    followed downhill (absolute eigenvalues), so no start converges to a saddle.
    """
    theta = np.array(theta)
    target = np.log(loss) if problem.residual == "log" else loss
    weight = np.ones((len(theta), len(loss))) if weights is None else weights
    value, gradient, hessian, gauss = _derivatives(problem, theta, target, weight)
    damping = np.full(len(theta), 1e-3)
    decrement = np.full(len(theta), np.inf)
    active = np.arange(len(theta))
    exact = _EXACT * len(target)
    for _ in range(max_steps):
        scale = np.sqrt(np.einsum("spp->sp", gauss[active])) + 1e-150
        curvature, axes = np.linalg.eigh(hessian[active] / (scale[:, :, None] * scale[:, None, :]))
        slope = np.einsum("spk,sp->sk", axes, gradient[active] / scale)
        bend = np.abs(curvature)
        decrement[active] = 0.5 * (slope**2 / np.maximum(bend, 1e-12)).sum(axis=1)
        unfinished = (decrement[active] > _DECREMENT * value[active] + exact) & (damping[active] < _STALLED)
        if not unfinished.any():
            break
        step = -np.einsum("spk,sk->sp", axes, slope / (bend + damping[active][:, None])) / scale
        active, step = active[unfinished], step[unfinished]
        trial = theta[active] + step
        t_value, t_gradient, t_hessian, t_gauss = _derivatives(problem, trial, target, weight[active])
        better = t_value < value[active]
        moved = active[better]
        theta[moved], value[moved] = trial[better], t_value[better]
        gradient[moved], hessian[moved], gauss[moved] = t_gradient[better], t_hessian[better], t_gauss[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 8, 1e-12), damping[active] * 6 + 1e-9)
    return Solution(theta=theta, objective=value, decrement=decrement)


def search(law: PowerLaw, problem: Problem, loss: Array) -> Solution:
    """The best starts of the grid, refined; the optimum is the row with the least objective."""
    starts = starting_points(law, problem, loss)
    log_loss = np.log(loss) if problem.residual == "log" else loss
    first = _objective(problem, starts, log_loss)
    best = np.argsort(first, kind="stable")[:_REFINED]
    # Least squares first: its basin is wide, and Huber at a small δ is nearly flat-sided around it.
    near = minimise(replace(problem, delta=np.inf), starts[best], loss, max_steps=12).theta
    return minimise(problem, near, loss)


def jacobian(problem: Problem, theta: Array) -> tuple[Array, Array]:
    """Prediction in residual space [N] and its derivative [N, P] at one centred θ [P]."""
    log_prediction, _, j = _softmax(problem, theta[None])
    if problem.residual == "log":
        return log_prediction[0], j[0].T
    prediction = np.exp(log_prediction[0])
    return prediction, j[0].T * prediction[:, None]


def huber(residuals: Array, delta: float) -> Array:
    """½r² inside |r| ≤ δ, δ(|r| − δ/2) outside."""
    size = np.abs(residuals)
    if np.isinf(delta):
        return 0.5 * size**2
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def _softmax(problem: Problem, theta: Array) -> tuple[Array, Array, Array]:
    """log L [S, N], softmax weights [S, T, N], J [S, P, N]."""
    n_terms, n_rows, n_coefficients = problem.features.shape
    logits = (theta @ problem.features.reshape(-1, n_coefficients).T).reshape(-1, n_terms, n_rows)
    top = logits.max(axis=1)
    weights = np.exp(logits - top[:, None])
    total = weights.sum(axis=1)
    weights /= total[:, None]
    j = np.zeros((len(theta), n_coefficients, n_rows))
    for k, terms in enumerate(problem.pattern):
        for t in terms:
            j[:, k] += weights[:, t] * problem.features[t, :, k]
    return top + np.log(total), weights, j


def _objective(problem: Problem, theta: Array, target: Array) -> Array:
    """Σ_i h_δ(r_i) for each start, [S]."""
    log_prediction, _, _ = _softmax(problem, theta)
    prediction = log_prediction if problem.residual == "log" else np.exp(log_prediction)
    return np.asarray(huber(prediction - target, problem.delta).sum(axis=1))


def _derivatives(
    problem: Problem, theta: Array, target: Array, weight: Array
) -> tuple[Array, Array, Array, Array]:
    """Objective [S], gradient [S, P], Hessian and its Gauss–Newton majoriser [S, P, P]."""
    n_terms, n_rows, n_coefficients = problem.features.shape
    with np.errstate(over="ignore", invalid="ignore"):
        log_prediction, p, j = _softmax(problem, theta)
        raw = problem.residual == "raw"
        prediction = np.exp(log_prediction) if raw else log_prediction
        r = prediction - target
        size = np.abs(r)
        psi = np.clip(r, -problem.delta, problem.delta) * weight
        inside = (size <= problem.delta) * weight
        # Weight of the quadratic that touches Huber's loss at r and lies above it.
        majoriser = weight * np.minimum(1.0, problem.delta / np.maximum(size, 1e-300))
        if raw:
            pull, outer, gauss = psi * prediction, inside * prediction**2, majoriser * prediction**2
        else:
            pull, outer, gauss = psi, inside - psi, majoriser
        value = (weight * huber(r, problem.delta)).sum(axis=1)
        gradient = np.einsum("spn,sn->sp", j, pull)
        j_t = j.transpose(0, 2, 1)
        products = np.einsum("tnp,tnq->tnpq", problem.features, problem.features)
        second = ((p * pull[:, None]).reshape(len(theta), -1)) @ products.reshape(n_terms * n_rows, -1)
        hessian = (j * outer[:, None]) @ j_t + second.reshape(-1, n_coefficients, n_coefficients)
        majorised = (j * gauss[:, None]) @ j_t
    # A start that ran out of the floating-point range is worse than any other, never NaN.
    broken = ~(np.isfinite(value) & np.isfinite(gradient).all(axis=1) & np.isfinite(hessian).all(axis=(1, 2)))
    if broken.any():
        value[broken] = np.inf
        for a in (gradient, hessian, majorised):
            a[broken] = 0.0
    return value, gradient, hessian, majorised


def _exponent_grid(law: PowerLaw) -> Array:
    """Starting exponents [S, Q], a full grid while it fits the budget, else a fixed random sample."""
    factors: dict[str, Factor] = {f.coefficient: f for term in law.terms for f in term.factors}
    if not factors:
        return np.zeros((1, 0))
    per_axis = int(_GRID_BUDGET ** (1 / len(factors)) + 1e-9)
    if per_axis >= 3:
        axes = [_between(f.span, (np.arange(per_axis) + 0.5) / per_axis) for f in factors.values()]
        return np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
    uniform = np.random.Generator(np.random.PCG64(0)).random((2 * _GRID_BUDGET, len(factors)))
    return np.stack([_between(f.span, uniform[:, q]) for q, f in enumerate(factors.values())], axis=1)


def _between(span: tuple[float, float], fraction: Array) -> Array:
    low, high = span
    if low > 0:
        return np.asarray(low * (high / low) ** fraction)
    return np.asarray(low + (high - low) * fraction)


def _positive_scales(shapes: Array) -> Array:
    """Least-squares scales [S, T] of shapes [S, T, N] to ones, kept positive."""
    gram = shapes @ shapes.transpose(0, 2, 1)
    moment = shapes.sum(axis=2)
    size = np.sqrt(np.einsum("stt->st", gram))
    gram = gram / (size[:, :, None] * size[:, None, :]) + 1e-12 * np.eye(gram.shape[1])
    moment = moment / size
    held = np.zeros(moment.shape, dtype=bool)
    solution = np.zeros_like(moment)
    for _ in range(gram.shape[1]):
        # Scales that came out negative are held at zero and the others solved for again.
        keep = ~held
        masked = gram * keep[:, :, None] * keep[:, None, :] + held[:, :, None] * np.eye(gram.shape[1])
        solution = np.linalg.solve(masked, (moment * keep)[:, :, None])[:, :, 0]
        negative = (solution < 0) & keep
        if not negative.any():
            break
        held |= negative
    floor = 1e-3 * np.abs(solution).max(axis=1, keepdims=True)
    return np.asarray(np.maximum(solution, floor) / size)
