"""Fits laws by batched damped Newton with exact derivatives; sums of products of powers in closed form.

With log L = logsumexp_t(o_t + X_t · θ) and p_t the softmax weights,

    ∇ log L = Σ_t p_t X_t = J        ∇²L / L = Σ_t p_t X_t X_tᵀ

so objective, gradient and Hessian of Σ_i w_i h_δ(r_i) are closed forms. All starts, or all bootstrap
replicates, advance together as one batch: S starts, T terms, N rows, P coefficients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from umscale.laws.forms import PowerLaw, Residual, from_theta, power_features, to_theta
from umscale.laws.starts import between
from umscale.results.columns import Array

Bounds = Mapping[str, tuple[float, float]]
"""Coefficient → least and greatest value."""

_DECREMENT = 1e-13  # Newton decrement relative to the objective at which a start has arrived
_EXACT = 1e-24  # decrement per row below which the residuals are rounding errors
_STALLED = 1e8  # damping beyond which no step the arithmetic can resolve goes down
_GRID_BUDGET = 320  # starts laid out over the exponents
_REFINED = 16  # starts handed to Newton
_BATCH = 10_000  # starts × rows whose derivatives are taken together: the arrays stay in cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """A law at S coefficient vectors, on N rows, in the space of the residuals."""

    prediction: Array
    """[S, N]."""
    jacobian: Array
    """Derivative of the prediction [S, P, N]."""
    bend: Callable[[Array], Array]
    """Pull [S, N] → Σ_n pull · ∇²L/L (log residuals) or Σ_n pull · ∇²L (raw), [S, P, P]."""


class Problem(Protocol):
    """One law on one set of rows, in coordinates θ [..., P] of its own."""

    @property
    def residual(self) -> Residual: ...
    @property
    def delta(self) -> float:
        """Huber threshold; infinity is least squares."""

    @property
    def box(self) -> tuple[Array, Array] | None:
        """Least and greatest θ [P]; None when nothing is bounded."""

    @property
    def row_weights(self) -> Array | None:
        """Of the rows' terms of the objective [N]; None for equal ones."""

    @property
    def above(self) -> float:
        """Weight of rows whose loss lies above the law, beside those below it."""

    @property
    def centring(self) -> Array:
        """θ = centring @ (logarithms of scales, other coefficients), [P, P]."""

    def with_delta(self, delta: float) -> Self: ...
    def theta(self, coefficients: Array) -> Array:
        """Coefficients [..., P] → θ."""

    def coefficients(self, theta: Array) -> Array:
        """θ [..., P] → coefficients."""

    def predict(self, theta: Array) -> Array:
        """θ [S, P] → prediction in the space of the residuals [S, N]."""

    def surface(self, theta: Array) -> Surface: ...
    def starts(self, loss: Array) -> Array:
        """θ [S, P] laid out before anything is known but the observed ``loss`` [N]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A coordinate that multiplies ``terms`` by exp(gain · θ) on every row."""

    coordinate: int
    gain: float
    terms: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """X Xᵀ of one term, over the coordinates that stand in it."""

    coordinates: NDArray[np.int64]
    """[K]."""
    products: Array
    """[N, K·K]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerProblem:
    """A power law, with features centred so that scales and exponents are nearly orthogonal."""

    law: PowerLaw
    features: Array
    """X [T, N, P], each factor's column centred within its term where a free scale can take up the mean."""
    offsets: Array
    """o [T, N]."""
    centring: Array
    pattern: tuple[tuple[int, ...], ...]
    """For each coordinate, the terms in which its feature is not zero."""
    squares: tuple[Square, ...]
    """[T]."""
    scales: tuple[Scale, ...]
    residual: Residual
    delta: float
    box: tuple[Array, Array] | None
    row_weights: Array | None = None
    above: float = 1.0

    def with_delta(self, delta: float) -> "PowerProblem":
        return replace(self, delta=delta)

    def centred(self, theta: Array) -> Array:
        """Logarithms of scales and exponents [..., P], as the law has them → θ."""
        return np.asarray(theta @ self.centring.T)

    def restored(self, theta: Array) -> Array:
        """Inverse of ``centred``."""
        # centring − 1 maps exponents to scales only, so its square vanishes and the inverse is exact.
        return np.asarray(theta @ (2.0 * np.eye(len(self.centring)) - self.centring).T)

    def theta(self, coefficients: Array) -> Array:
        return self.centred(to_theta(self.law, coefficients))

    def coefficients(self, theta: Array) -> Array:
        return from_theta(self.law, self.restored(theta))

    def predict(self, theta: Array) -> Array:
        log_prediction = _softmax(self, theta)[0]
        return log_prediction if self.residual == "log" else np.exp(log_prediction)

    def surface(self, theta: Array) -> Surface:
        prediction, p, j = _softmax(self, theta)
        if self.residual == "raw":
            prediction = np.exp(prediction)
            j *= prediction[:, None]

        def bend(pull: Array) -> Array:
            if self.residual == "raw":
                pull = pull * prediction
            hessian = np.zeros((*theta.shape, theta.shape[1]))
            for t, inside in enumerate(self.squares):
                k = inside.coordinates
                hessian[:, k[:, None], k] += ((p[:, t] * pull) @ inside.products).reshape(
                    len(p), len(k), len(k)
                )
            return hessian

        return Surface(prediction=prediction, jacobian=j, bend=bend)

    def starts(self, loss: Array) -> Array:
        """A grid over the exponents, the scales solved for given them (weights 1/L², times the rows' own)."""
        exponents = _exponent_grid(self)  # [S, Q]
        scales = [s.coordinate for s in self.scales]
        others = [k for k in range(self.features.shape[2]) if k not in scales]
        theta = np.zeros((len(exponents), self.features.shape[2]))
        theta[:, others] = exponents
        logs = np.einsum("sq,tnq->stn", exponents, self.features[:, :, others]) + self.offsets
        root = np.ones(len(loss)) if self.row_weights is None else np.sqrt(self.row_weights)
        # Corners of the grid reach e^±1000, where one overflow would spoil the solution for all scales.
        shapes = np.exp(np.clip(logs, -60, 60)) / loss * root
        scaled = {t for scale in self.scales for t in scale.terms}
        known = sum((shapes[:, t] for t in range(shapes.shape[1]) if t not in scaled), np.zeros(()))
        if self.scales:
            own = np.stack([shapes[:, s.terms].sum(axis=1) for s in self.scales], axis=1)
            sizes = np.log(_positive_scales(own, np.broadcast_to(root - known, own[:, 0].shape)))
            theta[:, scales] = sizes / np.array([s.gain for s in self.scales])
        return theta


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """Where each start of a batch ended."""

    theta: Array
    """[S, P]."""
    objective: Array
    """[S]."""
    decrement: Array
    """Predicted further decrease of the objective, [S]."""
    independent: int | None = None
    """How many of them, the first, were drawn independently of each other; None for all."""
    before: Array | None = None
    """Where they were before basins were told apart, of the first ones [S', P]; None where that is not kept."""


def make_problem(
    law: PowerLaw,
    values: Mapping[str, Array],
    *,
    residual: Residual,
    delta: float,
    bounds: Bounds | None = None,
    hold: str | None = None,
) -> PowerProblem:
    """The law on the rows of ``values`` (symbol → [N]).

    Coordinates of bounded coefficients, and of ``hold``, are the coefficients themselves or their logarithms.
    """
    bounds = bounds or {}
    names = law.coefficients
    features, offsets = power_features(law, values)
    n_terms, _, n_coefficients = features.shape
    centring = np.eye(n_coefficients)
    scales = _scales(law, features)
    movable = {s.coordinate for s in scales if names[s.coordinate] not in {hold, *bounds}}
    for scale in scales:
        if scale.coordinate in movable and len(scale.terms) == 1:
            for k in range(n_coefficients):
                if k not in {s.coordinate for s in scales}:
                    (t,) = scale.terms
                    mean = features[t, :, k].mean()
                    centring[scale.coordinate, k] += mean / scale.gain
                    features[t, :, k] -= mean
    pattern = tuple(
        tuple(t for t in range(n_terms) if features[t, :, k].any()) for k in range(n_coefficients)
    )
    box = None
    if bounds:
        ends = np.array([bounds.get(name, (-np.inf, np.inf)) for name in names]).T
        for k, name in enumerate(names):
            if name in law.scales:
                ends[:, k] = np.log(np.maximum(ends[:, k], 1e-300))
        box = (ends[0], ends[1])
    return PowerProblem(
        law=law,
        features=features,
        offsets=offsets,
        centring=centring,
        pattern=pattern,
        squares=tuple(_square(x) for x in features),
        scales=scales,
        residual=residual,
        delta=delta,
        box=box,
    )


def _square(features: Array) -> Square:
    """Of one term's features [N, P]."""
    coordinates = np.flatnonzero(features.any(axis=0))
    inside = features[:, coordinates]
    products = (inside[:, :, None] * inside[:, None, :]).reshape(len(inside), -1)
    return Square(coordinates=coordinates.astype(np.int64), products=products)


def _scales(law: PowerLaw, features: Array) -> tuple[Scale, ...]:
    """The law's scales, then any other coefficient that is a factor of whole terms, one for each term at most."""
    names = law.coefficients
    found: list[Scale] = []
    claimed: set[int] = set()
    for name in sorted(names, key=lambda n: n not in law.scales):
        k = names.index(name)
        terms = tuple(t for t in range(len(features)) if features[t, :, k].any())
        gains = {float(g) for t in terms for g in (features[t, :, k].min(), features[t, :, k].max())}
        if len(gains) == 1 and not claimed & set(terms):
            found.append(Scale(coordinate=k, gain=gains.pop(), terms=terms))
            claimed |= set(terms)
    return tuple(found)


def minimise(
    problem: Problem,
    theta: Array,
    loss: Array,
    *,
    weights: Array | None = None,
    box: tuple[Array, Array] | None = None,
    max_steps: int = 300,
) -> Solution:
    """Damped Newton from starts ``theta`` [S, P] to the observed ``loss`` [N].

    ``weights`` [S, N] multiply the rows' terms of the objective; ``box`` holds the least and the greatest θ, [P] or
    [S, P], and defaults to the problem's. Directions of negative curvature are followed downhill (absolute
    eigenvalues), so no start converges to a saddle. A coordinate at its bound that is pushed outwards rests there.
    """
    box = problem.box if box is None else box
    low, high = (np.broadcast_to(end, theta.shape) for end in box or (np.array(-np.inf), np.array(np.inf)))
    theta = np.clip(theta, low, high)
    target = np.log(loss) if problem.residual == "log" else loss
    weight = np.ones((len(theta), len(loss))) if weights is None else weights
    value, gradient, hessian, gauss = _derivatives(problem, theta, target, weight)
    damping = np.full(len(theta), 1e-3)
    decrement = np.full(len(theta), np.inf)
    active = np.arange(len(theta))
    exact = _EXACT * len(target)
    for _ in range(max_steps):
        scale = np.sqrt(np.einsum("spp->sp", gauss[active])) + 1e-150
        slope, curvature = gradient[active] / scale, hessian[active] / (scale[:, :, None] * scale[:, None, :])
        if box is not None:
            at, downhill = theta[active], -gradient[active]
            free = ~((at <= low[active]) & (downhill <= 0) | (at >= high[active]) & (downhill >= 0))
            slope = slope * free
            curvature = curvature * free[:, :, None] * free[:, None, :] + ~free[:, :, None] * np.eye(
                len(low[0])
            )
        curvature, axes = np.linalg.eigh(curvature)
        slope = np.einsum("spk,sp->sk", axes, slope)
        bend = np.abs(curvature)
        decrement[active] = 0.5 * (slope**2 / np.maximum(bend, 1e-12)).sum(axis=1)
        unfinished = (decrement[active] > _DECREMENT * value[active] + exact) & (damping[active] < _STALLED)
        if not unfinished.any():
            break
        step = -np.einsum("spk,sk->sp", axes, slope / (bend + damping[active][:, None])) / scale
        active, step = active[unfinished], step[unfinished]
        trial = np.clip(theta[active] + step, low[active], high[active])
        t_value, t_gradient, t_hessian, t_gauss = _derivatives(problem, trial, target, weight[active])
        better = t_value < value[active]
        moved = active[better]
        theta[moved], value[moved] = trial[better], t_value[better]
        gradient[moved], hessian[moved], gauss[moved] = t_gradient[better], t_hessian[better], t_gauss[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 8, 1e-12), damping[active] * 6 + 1e-9)
    return Solution(theta=theta, objective=value, decrement=decrement)


def objective_at(problem: Problem, theta: Array, loss: Array) -> Array:
    """The objective at θ [S, P], infinite where it or a derivative leaves floating point, [S]."""
    target = np.log(loss) if problem.residual == "log" else loss
    return _derivatives(problem, theta, target, np.ones((len(theta), len(loss))))[0]


def search(problem: Problem, loss: Array) -> Solution:
    """The best starts, refined; the optimum is the row with the least objective."""
    starts = problem.starts(loss)
    if problem.box is not None:
        starts = np.clip(starts, *problem.box)
    target = np.log(loss) if problem.residual == "log" else loss
    with np.errstate(all="ignore"):
        first = objective(problem, problem.predict(starts) - target)
    best = np.argsort(np.where(np.isnan(first), np.inf, first), kind="stable")[:_REFINED]
    # Least squares first: its basin is wide, and Huber at a small δ is nearly flat-sided around it.
    near = minimise(problem.with_delta(np.inf), starts[best], loss, max_steps=12).theta
    return minimise(problem, near, loss)


def term_shares(problem: PowerProblem, theta: Array) -> Array:
    """Share of each term in the loss [T, N] at one θ [P]."""
    return np.asarray(_softmax(problem, theta[None])[1][0])


def objective(problem: Problem, r: Array) -> Array:
    """Σ_n w_n h_δ(r_n) [S] of predictions minus observations [S, N]."""
    return np.asarray((_weighted(problem, r, np.ones((1, 1))) * huber(r, problem.delta)).sum(axis=1))


def _weighted(problem: Problem, r: Array, weight: Array) -> Array:
    """``weight`` times the problem's own weights of its rows, where they lie: r < 0 is a loss above the law."""
    if problem.row_weights is not None:
        weight = weight * problem.row_weights
    return weight if problem.above == 1.0 else np.where(r < 0, problem.above * weight, weight)


def huber(residuals: Array, delta: float) -> Array:
    """½r² inside |r| ≤ δ, δ(|r| − δ/2) outside."""
    size = np.abs(residuals)
    if np.isinf(delta):
        return 0.5 * size**2
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def _softmax(problem: PowerProblem, theta: Array) -> tuple[Array, Array, Array]:
    """log L [S, N], softmax weights [S, T, N], ∇ log L [S, P, N]."""
    n_terms, n_rows, n_coefficients = problem.features.shape
    logits = np.empty((len(theta), n_terms, n_rows))
    logits[:] = problem.offsets
    # Few coefficients stand in a term: sums over those are cheaper than a product with mostly zeros.
    for k, terms in enumerate(problem.pattern):
        for t in terms:
            logits[:, t] += theta[:, k, None] * problem.features[t, :, k]
    top = logits.max(axis=1)
    weights = np.exp(logits - top[:, None])
    total = weights.sum(axis=1)
    weights /= total[:, None]
    j = np.zeros((len(theta), n_coefficients, n_rows))
    for k, terms in enumerate(problem.pattern):
        for t in terms:
            j[:, k] += weights[:, t] * problem.features[t, :, k]
    return top + np.log(total), weights, j


def _derivatives(
    problem: Problem, theta: Array, target: Array, weight: Array
) -> tuple[Array, Array, Array, Array]:
    """Objective [S], gradient [S, P], Hessian and its Gauss–Newton majoriser [S, P, P]."""
    n_starts, n_coefficients = theta.shape
    value, gradient = np.empty(n_starts), np.empty((n_starts, n_coefficients))
    hessian, majorised = (np.empty((n_starts, n_coefficients, n_coefficients)) for _ in range(2))
    size = max(1, _BATCH // len(target))
    with np.errstate(all="ignore"):
        for first in range(0, n_starts, size):
            part = slice(first, first + size)
            value[part], gradient[part], hessian[part], majorised[part] = _batch(
                problem, theta[part], target, weight[part]
            )
    # A start that ran out of the floating-point range is worse than any other, never NaN.
    broken = ~(np.isfinite(value) & np.isfinite(gradient).all(axis=1) & np.isfinite(hessian).all(axis=(1, 2)))
    if broken.any():
        value[broken] = np.inf
        for a in (gradient, hessian, majorised):
            a[broken] = 0.0
    return value, gradient, hessian, majorised


def _batch(problem: Problem, theta: Array, target: Array, weight: Array) -> tuple[Array, Array, Array, Array]:
    surface = problem.surface(theta)
    j = surface.jacobian
    r = surface.prediction - target
    size = np.abs(r)
    weight = _weighted(problem, r, weight)
    psi = np.clip(r, -problem.delta, problem.delta) * weight
    inside = (size <= problem.delta) * weight
    # Weight of the quadratic that touches Huber's loss at r and lies above it.
    majoriser = weight * np.minimum(1.0, problem.delta / np.maximum(size, 1e-300))
    # ∇² log L = ∇²L / L − J Jᵀ.
    outer = inside - psi if problem.residual == "log" else inside
    j_t = j.transpose(0, 2, 1)
    return (
        (weight * huber(r, problem.delta)).sum(axis=1),
        np.einsum("spn,sn->sp", j, psi),
        (j * outer[:, None]) @ j_t + surface.bend(psi),
        (j * majoriser[:, None]) @ j_t,
    )


def _exponent_grid(problem: PowerProblem) -> Array:
    """Starting exponents [S, Q], a full grid while it fits the budget, else a fixed random sample."""
    law = problem.law
    scales = {law.coefficients[s.coordinate] for s in problem.scales}
    spans: dict[str, tuple[float, float]] = {}
    for factor in (f for term in law.terms for f in term.factors if f.coefficient not in scales):
        spans.setdefault(factor.coefficient, factor.span)
    if not spans:
        return np.zeros((1, 0))
    per_axis = int(_GRID_BUDGET ** (1 / len(spans)) + 1e-9)
    if per_axis >= 3:
        axes = [between(span, (np.arange(per_axis) + 0.5) / per_axis) for span in spans.values()]
        return np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
    uniform = np.random.Generator(np.random.PCG64(0)).random((2 * _GRID_BUDGET, len(spans)))
    return np.stack([between(span, uniform[:, q]) for q, span in enumerate(spans.values())], axis=1)


def _positive_scales(shapes: Array, target: Array) -> Array:
    """Least-squares scales [S, T] of shapes [S, T, N] to ``target`` [S, N], kept positive."""
    gram = shapes @ shapes.transpose(0, 2, 1)
    moment = np.einsum("stn,sn->st", shapes, target)
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
    return np.asarray(np.maximum(np.maximum(solution, floor), 1e-12) / size)
