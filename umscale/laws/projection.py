"""Variable projection: coefficients in which a formula is linear are solved for, the others take the steps.

With f(q, c) = b(q) + Φ(q) c on N rows and c(q) the weighted least-squares solution, the residual is a function of q
alone, and Kaufman's Jacobian is −(1 − ΦΦ⁺) ∂f/∂q at fixed c (Golub and Pereyra 2003, section 4). Levenberg–Marquardt
steps advance a whole batch of S starts together.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umscale import formulas as tree
from umscale.formulas import Apply, Coefficient, Node, Number

Array = tree.Array

_RIDGE = 1e-13
_BATCH = 40_000  # starts × rows evaluated together: the arrays stay in cache
_ARRIVED = 1e-11  # relative decrease of a step that counts as none
_STUCK = 1e12  # damping beyond which no step goes down


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A formula as it is solved: of the loss or of its logarithm, with sizes in place of some logarithms."""

    root: Node
    logarithmic: bool
    linear: tuple[str, ...]
    """Coefficients in which ``root`` is affine together."""
    sizes: Mapping[str, float]
    """Coefficient Q that stands for K in ``root``, Q = factor · ln K."""
    index: Mapping[str, int]
    """Coefficient → its column of θ."""

    def inside(self, theta: Array) -> Array:
        """The formula's own coefficients [S, P] from the view's; NaN where a size is not positive."""
        return self._changed(theta, lambda column, factor: factor * np.log(column))

    def outside(self, theta: Array) -> Array:
        """Inverse of ``inside``."""
        return self._changed(theta, lambda column, factor: np.exp(column / factor))

    def _changed(self, theta: Array, change: Callable[[Array, float], Array]) -> Array:
        out = theta.copy()
        with np.errstate(all="ignore"):
            for name, factor in self.sizes.items():
                out[:, self.index[name]] = change(theta[:, self.index[name]], factor)
        return out


def view_of(root: Node, index: Mapping[str, int], held: frozenset[str] = frozenset()) -> View:
    """The way to write the formula that leaves fewest coefficients nonlinear; those ``held`` stay themselves."""
    level, sizes = _with_sizes(root, held)
    logs = tree.logarithm(root)
    linear, in_logarithm = tree.linear_coefficients(level), tree.linear_coefficients(logs)
    if len(in_logarithm) > len(linear):
        return View(root=logs, logarithmic=True, linear=in_logarithm, sizes={}, index=index)
    return View(root=level, logarithmic=False, linear=linear, sizes=sizes, index=index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Centre:
    """A coefficient c beside powers, c·Π x_i^(±e_i): steps move its product at the middle of the rows, not c itself.

    Where an offset takes up that product's level, as in S + s·N^g, what the rows tell is its slope, c·e: steps keep
    that instead, or they would have to follow a hyperbola as e nears 0.
    """

    coefficient: int
    exponents: tuple[tuple[int, float], ...]
    """(column of θ, ± the mean of ln x over the rows)."""
    by_slope: bool
    offset: int | None
    """Column of θ of an offset that takes steps of its own: they move its sum with the product."""

    def size(self, theta: Array) -> Array:
        """The product at the middle of the rows [S]."""
        size = theta[:, self.coefficient]
        for j, level in self.exponents:
            size = size * np.exp(level * theta[:, j])
        return size


def centres_of(
    root: Node, index: Mapping[str, int], columns: Mapping[str, Array], moving: Collection[str]
) -> tuple[Centre, ...]:
    """A centre for each coefficient among ``moving`` that stands beside powers of columns."""
    found: dict[str, Centre] = {}
    for part in tree.walk(root):
        if not (isinstance(part, Apply) and part.operation in ("+", "-")):
            continue
        summands = tree.terms(part)
        offsets = [(sign, term.name) for sign, term in summands if isinstance(term, Coefficient)]
        for own, term in summands:
            factors = tree.factors(term)
            scales = [f.name for power, f in factors if isinstance(f, Coefficient) and power > 0]
            powers = [
                one
                for power, f in factors
                if (one := _power_of_columns(f, power, index, columns, moving)) is not None
            ]
            if len(scales) != 1 or scales[0] not in moving or not powers:
                continue
            by_slope = bool(offsets) and len(powers) == 1 and offsets[0][0] == own
            moves_too = by_slope and offsets[0][1] in moving and len(scales) == len(factors) - 1
            found[scales[0]] = Centre(
                coefficient=index[scales[0]],
                exponents=tuple(powers),
                by_slope=by_slope,
                offset=index[offsets[0][1]] if moves_too else None,
            )
    return tuple(found.values())


def _power_of_columns(
    factor: Node,
    power: float,
    index: Mapping[str, int],
    columns: Mapping[str, Array],
    moving: Collection[str],
) -> tuple[int, float] | None:
    """(column of θ of e, ± the mean of ln x) of a factor x^(±e) without coefficients in x."""
    match factor:
        case Apply("**", (base, exponent)) if not tree.coefficient_names(base):
            (sign, inner), *more = tree.terms(exponent)
            if more or not isinstance(inner, Coefficient) or inner.name not in moving:
                return None
            with np.errstate(all="ignore"):
                level = np.log(tree.evaluate(base, columns, np.zeros((1, 0)), {}, order=0).value).mean()
            return (index[inner.name], power * sign * float(level)) if np.isfinite(level) else None
    return None


def _with_sizes(root: Node, held: frozenset[str]) -> tuple[Node, dict[str, float]]:
    """exp(u + Q) as K·exp(u), and b**Q as K, wherever that makes the formula linear in one more coefficient."""
    sizes: dict[str, float] = {}
    for name in tree.coefficient_names(root):
        linear = tree.linear_coefficients(root)
        if name in held or name in linear:
            continue
        factors: set[float] = set()
        changed = _pulled(root, name, factors)
        now = tree.linear_coefficients(changed) if len(factors) == 1 else ()
        if name in now and set(linear) < set(now):
            root = changed
            sizes[name] = factors.pop()
    return root, sizes


def _pulled(node: Node, name: str, factors: set[float]) -> Node:
    """The tree with Q taken out of exponentials as K; ``factors`` collects how Q follows from ln K."""
    match node:
        case Apply("exp", (argument,)):
            base = 1.0
        case Apply("**", (Number(value), argument)) if value > 0 and value != 1:
            base = float(np.log(value))
        case Apply(operation, arguments):
            return Apply(operation, tuple(_pulled(a, name, factors) for a in arguments))
        case _:
            return node
    parts = tree.terms(argument)
    own = [sign for sign, part in parts if part == Coefficient(name)]
    if len(own) != 1:
        return node
    factors.add(own[0] / base)
    rest: Node | None = None
    for sign, part in parts:
        if part != Coefficient(name):
            signed = part if sign > 0 else tree.apply("*", Number(-1.0), part)
            rest = signed if rest is None else tree.apply("+", rest, signed)
    if rest is None:
        return Coefficient(name)
    argument = rest if base == 1 else tree.apply("*", Number(base), rest)
    return Apply("*", (Coefficient(name), Apply("exp", (argument,))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A view on weighted rows: ½ Σ w²(y − f)² as a function of the coefficients that are not linear."""

    view: View
    columns: Mapping[str, Array]
    target: Array
    """y [N]."""
    weight: Array
    """w [N]."""
    low: Array
    """Least value of each coefficient of the view [P]."""
    high: Array
    centres: tuple[Centre, ...] = ()

    @property
    def nonlinear(self) -> tuple[str, ...]:
        return tuple(name for name in self.view.index if name not in self.view.linear)

    @property
    def moving(self) -> list[int]:
        """Columns of θ that are not linear."""
        return [self.view.index[name] for name in self.nonlinear]

    def solve(self, theta: Array) -> tuple[Array, Array]:
        """θ [S, P] with its linear coefficients solved for, and the objective [S], infinite where there is none."""
        theta = theta.copy()
        value = np.empty(len(theta))
        with np.errstate(all="ignore"):
            for part in self._parts(len(theta)):
                theta[part], value[part] = self._solved(theta[part])[:2]
        return theta, value

    def refine(self, theta: Array, *, steps: int) -> tuple[Array, Array]:
        """Levenberg–Marquardt from solved starts θ [S, P]; where they end, and the objective there [S]."""
        theta, value = self.solve(theta)
        with np.errstate(all="ignore"):
            for part in self._parts(len(theta)):
                theta[part], value[part] = self._refined(theta[part], steps)
        return theta, value

    def _parts(self, n_starts: int) -> list[slice]:
        size = max(1, _BATCH // len(self.target))
        return [slice(first, first + size) for first in range(0, n_starts, size)]

    def _solved(self, theta: Array) -> tuple[Array, Array, Array, Array]:
        """θ, objective [S], weighted residuals [S, N] and weighted Φ [S, L, N] of the free linear coefficients."""
        linear = [self.view.index[name] for name in self.view.linear]
        theta = theta.copy()
        theta[:, linear] = 0.0
        shape = (len(theta), len(self.target))
        jet = tree.evaluate(
            self.view.root, self.columns, theta, self.view.index, order=1, along=self.view.linear
        )
        with np.errstate(all="ignore"):
            left = np.broadcast_to((self.target - jet.value) * self.weight, shape)
            design = np.zeros((len(theta), len(linear), len(self.target)))
            for k, position in enumerate(linear):
                if position in jet.first:
                    design[:, k] = jet.first[position] * self.weight
        broken = np.asarray(~(np.isfinite(left).all(axis=1) & np.isfinite(design).all(axis=(1, 2))))
        if broken.any():
            left, design = np.where(broken[:, None], 0.0, left), np.where(broken[:, None, None], 0.0, design)
        if linear:
            solution, free = _bounded(design, left, self.low[linear], self.high[linear])
            theta[:, linear] = solution
            left = left - (solution[:, None] @ design)[:, 0]
            design = design * free[:, :, None]
        value = np.where(broken, np.inf, 0.5 * np.einsum("sn,sn->s", left, left))
        return theta, value, left, design

    def _refined(self, theta: Array, steps: int) -> tuple[Array, Array]:
        moving = self.moving
        theta, value, residual, design = self._solved(theta)
        if not moving:
            return theta, value
        slope = self._slopes(theta, residual, design)
        damping, idle = np.full(len(theta), 1e-2), np.zeros(len(theta), dtype=np.int64)
        active = np.flatnonzero(np.isfinite(value))
        for _ in range(steps):
            if not len(active):
                break
            at = theta[active]
            trial = self._moved(at, _step(slope[active], residual[active], damping[active]))
            t_theta, t_value, t_residual, t_design = self._solved(trial)
            better = t_value < value[active]
            gain = (value[active] - t_value) / np.maximum(value[active], 1e-300)
            moved = active[better]
            theta[moved], value[moved] = t_theta[better], t_value[better]
            residual[moved], design[moved] = t_residual[better], t_design[better]
            if len(moved):
                slope[moved] = self._slopes(theta[moved], residual[moved], design[moved])
            damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-12), damping[active] * 4)
            idle[active] = np.where(better & (gain < _ARRIVED), idle[active] + 1, idle[active] * ~better)
            active = active[(idle[active] < 2) & (damping[active] < _STUCK)]
        return theta, value

    def _moved(self, theta: Array, step: Array) -> Array:
        """θ [S, P] after steps [S, Q] of the nonlinear coefficients, those with a centre moved about it."""
        moving, trial = self.moving, theta.copy()
        trial[:, moving] += step
        for centre in self.centres:
            k = centre.coefficient
            size = theta[:, k] * (1 + step[:, moving.index(k)])
            for j, level in centre.exponents:
                size = size * np.exp(-level * (trial[:, j] - theta[:, j]))
                if centre.by_slope:
                    size = size * theta[:, j] / trial[:, j]
            trial[:, k] = size
            if centre.offset is not None:
                trial[:, centre.offset] += centre.size(theta) - centre.size(trial)
        trial[:, moving] = np.clip(trial[:, moving], self.low[moving], self.high[moving])
        return trial

    def _slopes(self, theta: Array, residual: Array, design: Array) -> Array:
        """Kaufman's Jacobian of the fit [S, Q, N], Φ projected out, of steps as ``_moved`` takes them."""
        names = self.nonlinear
        jet = tree.evaluate(self.view.root, self.columns, theta, self.view.index, order=1, along=names)
        slope = np.zeros((len(theta), len(names), len(self.target)))
        with np.errstate(all="ignore"):
            for k, name in enumerate(names):
                if self.view.index[name] in jet.first:
                    slope[:, k] = jet.first[self.view.index[name]] * self.weight
        moving = self.moving
        for centre in self.centres:
            k = moving.index(centre.coefficient)
            own = slope[:, k] * theta[:, centre.coefficient, None]
            for j, level in centre.exponents:
                slope[:, moving.index(j)] -= level * own
            if centre.offset is not None:
                own = own - centre.size(theta)[:, None] * slope[:, moving.index(centre.offset)]
            if centre.by_slope:
                j = centre.exponents[0][0]
                slope[:, moving.index(j)] -= own / theta[:, j, None]
            slope[:, k] = own
        slope = np.where(np.isfinite(slope).all(axis=2, keepdims=True), slope, 0.0)
        if design.shape[1]:
            unit = _orthonormal(design)
            for _ in range(2):  # twice is enough for orthogonality to working precision
                slope = slope - (slope @ unit.transpose(0, 2, 1)) @ unit
        return slope


def _step(slope: Array, residual: Array, damping: Array) -> Array:
    """(J Jᵀ + λ diag) ⁻¹ J r, [S, Q]."""
    gram = slope @ slope.transpose(0, 2, 1)
    size = np.sqrt(np.einsum("sqq->sq", gram))
    size = np.where(size > 0, size, 1.0)
    unit = gram / (size[:, :, None] * size[:, None, :])
    unit = unit + (damping[:, None, None] + _RIDGE) * np.eye(gram.shape[1])
    moment = (slope @ residual[..., None])[..., 0] / size
    return np.asarray(np.linalg.solve(unit, moment[..., None])[..., 0] / size)


def _orthonormal(design: Array) -> Array:
    """An orthonormal basis [S, L, N] of the rows of designs [S, L, N]; zero rows stay zero."""
    unit = np.zeros_like(design)
    for k in range(design.shape[1]):
        row = design[:, k]
        length = np.linalg.norm(row, axis=1, keepdims=True)
        for _ in range(2 if k else 0):
            row = row - ((row[:, None] @ unit[:, :k].transpose(0, 2, 1)) @ unit[:, :k])[:, 0]
        left = np.linalg.norm(row, axis=1, keepdims=True)
        unit[:, k] = np.where(left > 1e-12 * length, row / np.where(left > 0, left, 1.0), 0.0)
    return unit


def _bounded(design: Array, left: Array, low: Array, high: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Least-squares solutions [S, L] inside a box, and which of them are not at an end of it [S, L]."""
    free = np.ones(design.shape[:2], dtype=bool)
    solution = _least_squares(design, left)
    for _ in range(len(low)):
        outside = ((solution < low) | (solution > high)) & free
        if not outside.any():
            break
        free &= ~outside
        solution = np.clip(solution, low, high)
        held = np.where(free, 0.0, solution)
        rest = left - (held[:, None] @ design)[:, 0]
        solution = np.where(free, _least_squares(design * free[:, :, None], rest), held)
    return np.clip(solution, low, high), free


def _least_squares(design: Array, left: Array) -> Array:
    """Solutions [S, L] of designs [S, L, N] to [S, N], refined once; 0 along columns of zeros."""
    size = np.linalg.norm(design, axis=2)
    size = np.where(size > 0, size, 1.0)
    unit = design / size[:, :, None]
    gram = unit @ unit.transpose(0, 2, 1) + _RIDGE * np.eye(design.shape[1])
    solution = np.linalg.solve(gram, unit @ left[..., None])[..., 0]
    rest = left - (solution[:, None] @ unit)[:, 0]
    solution += np.linalg.solve(gram, unit @ rest[..., None])[..., 0]
    return np.asarray(solution / size)
