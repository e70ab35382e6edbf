"""Laws that are no sum of products of powers, posed to the same Newton with derivatives from their trees.

Starting values: coefficients in which the formula, or its logarithm, is affine are solved for by least squares
given all others, which are drawn from the spans of the law or, where it has none, from what the rows allow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from umscale import formulas as tree
from umscale.laws.engine import Bounds, Surface, between
from umscale.laws.forms import Array, ExpressionLaw, Residual

_DRAWS = 512  # starting values for each coefficient that is not linear
_MOST_DRAWS = 2048
_REACH = 4.0  # e^±4: how far a power may carry a term over the rows, at the ends of a span
_BATCH = 64  # starting values whose linear coefficients are solved for together


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpressionProblem:
    """An expression on one set of rows; its coordinates are the coefficients."""

    law: ExpressionLaw
    columns: Mapping[str, Array]
    index: Mapping[str, int]
    residual: Residual
    delta: float
    box: tuple[Array, Array] | None
    row_weights: Array | None = None
    above: float = 1.0

    def with_delta(self, delta: float) -> "ExpressionProblem":
        return replace(self, delta=delta)

    @property
    def centring(self) -> Array:
        return np.eye(len(self.index))

    def theta(self, coefficients: Array) -> Array:
        return np.asarray(coefficients, dtype=np.float64)

    def coefficients(self, theta: Array) -> Array:
        return theta

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def predict(self, theta: Array) -> Array:
        loss = tree.evaluate(self.law.root, self.columns, theta, self.index, order=0).value
        loss = np.broadcast_to(loss, (len(theta), self.n_rows))
        return np.log(loss) if self.residual == "log" else loss

    def surface(self, theta: Array) -> Surface:
        jet = tree.evaluate(self.law.root, self.columns, theta, self.index, order=2)
        loss = np.broadcast_to(jet.value, (len(theta), self.n_rows))
        unit = loss if self.residual == "log" else np.ones((1, 1))
        j = np.zeros((*theta.shape, self.n_rows))
        for k, slope in jet.first.items():
            j[:, k] = slope / unit

        def bend(pull: Array) -> Array:
            hessian = np.zeros((*theta.shape, theta.shape[1]))
            pull = pull / unit
            for (i, k), second in jet.second.items():
                hessian[:, i, k] = hessian[:, k, i] = np.einsum(
                    "sn,sn->s", pull, np.broadcast_to(second, pull.shape)
                )
            return hessian

        return Surface(prediction=np.log(loss) if self.residual == "log" else loss, jacobian=j, bend=bend)

    def starts(self, loss: Array) -> Array:
        formula, target, row_weight = self.law.root, loss, 1 / loss
        linear = tree.linear_coefficients(formula)
        logarithm = tree.logarithm(formula)
        if len(in_logarithm := tree.linear_coefficients(logarithm)) > len(linear):
            formula, target, row_weight, linear = logarithm, np.log(loss), np.ones(len(loss)), in_logarithm
        spans = _spans(self.law, self.columns, linear)
        if self.box is not None:
            spans = {n: _clip(span, self.box, self.index[n]) for n, span in spans.items()}
        n_draws = min(_DRAWS * len(spans), _MOST_DRAWS) if spans else 1
        uniform = np.random.Generator(np.random.PCG64(0)).random((n_draws, len(spans)))
        theta = np.zeros((n_draws, len(self.index)))
        for q, (name, span) in enumerate(spans.items()):
            theta[:, self.index[name]] = between(span, uniform[:, q])
        if linear:
            positions = [self.index[name] for name in linear]
            for first in range(0, n_draws, _BATCH):
                part = theta[first : first + _BATCH]
                jet = tree.evaluate(formula, self.columns, part, self.index, order=1, along=linear)
                shape = (len(part), self.n_rows)
                with np.errstate(all="ignore"):
                    design = np.stack([np.broadcast_to(jet.first[k], shape) for k in positions], axis=1)
                    left = np.broadcast_to(target - jet.value, shape)
                    part[:, positions] = _least_squares(design * row_weight, left * row_weight)
        return theta


def expression_problem(
    law: ExpressionLaw,
    values: Mapping[str, Array],
    *,
    residual: Residual,
    delta: float,
    bounds: Bounds | None = None,
) -> ExpressionProblem:
    """The law on the rows of ``values`` (symbol → [N]); raises ``UserError`` where a column has no logarithm."""
    tree.check_logarithms(law.root, values)
    names = law.coefficients
    box = None
    if bounds:
        ends = np.array([bounds.get(name, (-np.inf, np.inf)) for name in names], dtype=np.float64).T
        box = (ends[0], ends[1])
    return ExpressionProblem(
        law=law,
        columns=values,
        index={name: k for k, name in enumerate(names)},
        residual=residual,
        delta=delta,
        box=box,
    )


def _least_squares(design: Array, target: Array) -> Array:
    """Solutions [S, P] of designs [S, P, N] to targets [S, N]; zeros where a design is not finite."""
    gram = design @ design.transpose(0, 2, 1)
    moment = np.einsum("spn,sn->sp", design, target)
    finite = np.isfinite(gram).all(axis=(1, 2)) & np.isfinite(moment).all(axis=1)
    gram, moment = np.where(finite[:, None, None], gram, 0.0), np.where(finite[:, None], moment, 0.0)
    size = np.sqrt(np.einsum("spp->sp", gram))
    size = np.where(size > 0, size, 1.0)
    unit = gram / (size[:, :, None] * size[:, None, :]) + 1e-10 * np.eye(gram.shape[1])
    return np.asarray(np.linalg.solve(unit, (moment / size)[..., None])[..., 0] / size)


def _spans(
    law: ExpressionLaw, columns: Mapping[str, Array], linear: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    """Where each coefficient that is not linear starts.

    In an exponent: as far as carries its term by e^±4 over the rows. Beside columns: a decade around them.
    """
    names = law.coefficients
    index = {name: k for k, name in enumerate(names)}
    roles = {name: _exponents(law.root, name) for name in names}
    probe = np.array([[float(between(law.spans[n], np.array(0.5))) if n in law.spans else 0.1 if roles[n] else 1.0
                       for n in names]])  # fmt: skip
    spans = {}
    for name in names:
        if name in linear:
            continue
        if name in law.spans:
            spans[name] = law.spans[name]
        elif roles[name]:
            reach = [_reach(part, columns, probe, index, name) for part in roles[name]]
            spans[name] = (-_REACH / max(reach), _REACH / max(reach)) if max(reach) > 0 else (-5.0, 5.0)
        else:
            beside = _columns_beside(law.root, name)
            values = np.concatenate([np.abs(columns[s]) for s in beside]) if beside else np.ones(1)
            values = values[values > 0] if (values > 0).any() else np.ones(1)
            spans[name] = (float(values.min()) / 10, float(values.max()) * 10)
    return spans


def _exponents(formula: tree.Node, name: str) -> list[tree.Node]:
    """Trees of the logarithms of all powers in whose exponent the coefficient stands."""
    found = []
    for part in tree.walk(formula):
        match part:
            case tree.Apply("**", (_, exponent)) if name in tree.coefficient_names(exponent):
                found.append(tree.logarithm(part))
            case tree.Apply("exp", (exponent,)) if name in tree.coefficient_names(exponent):
                found.append(exponent)
    return found


def _reach(
    part: tree.Node, columns: Mapping[str, Array], probe: Array, index: Mapping[str, int], name: str
) -> float:
    """Range over the rows of what one unit of the coefficient adds to the logarithm of a power."""
    slope = tree.evaluate(part, columns, probe, index, order=1).first.get(index[name], np.zeros(1))
    return float(np.ptp(slope)) if np.isfinite(slope).all() else 0.0


def _columns_beside(formula: tree.Node, name: str) -> tuple[str, ...]:
    """Columns of the smallest part of the formula that holds the coefficient and a column."""
    parts = [p for p in tree.walk(formula) if name in tree.coefficient_names(p) and tree.symbol_names(p)]
    smallest = min(parts, key=lambda p: sum(1 for _ in tree.walk(p)), default=None)
    return tree.symbol_names(smallest) if smallest is not None else ()


def _clip(span: tuple[float, float], box: tuple[Array, Array], k: int) -> tuple[float, float]:
    low, high = float(box[0][k]), float(box[1][k])
    return min(max(span[0], low), high), min(max(span[1], low), high)
