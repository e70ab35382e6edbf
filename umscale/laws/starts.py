"""Where a formula's coefficients may lie, drawn from what the formula does on the rows.

A draw walks down the tree and asks of each coefficient what its place needs: an exponent carries its power by e^0.1 to
e^±10 over the rows; the argument of an exponential moves by 0.05 to 12 over them; a size beside columns makes its
product as large as its neighbours on some row; an offset lets its sum cross zero, or stay positive, on some row. What
stands inside is drawn first, so a scale is right for the exponents it was drawn with. Either sign is drawn wherever it
can stand.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from umscale import formulas as tree
from umscale.formulas import Apply, Coefficient, Node

Array = tree.Array
Kind = Literal["term", "base", "argument", "exponent"]

_SIZE = (-4.0, 3.0)  # logarithm of a size, relative to its neighbours'
_REACH = (np.log(0.1), np.log(10.0))  # of a power over the rows, as a logarithm
_MOVE = (np.log(0.05), np.log(12.0))  # of an exponential's argument over the rows
_NEGATIVE = 0.1  # share of draws with a negative size where a base needs a positive one


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a part of the formula should come to."""

    kind: Kind
    size: Array
    """[S, 1]: of a term or a base its magnitude; of an argument its level; of an exponent the range of ln base."""


@dataclass(slots=True, kw_only=True)
class _Drawing:
    columns: Mapping[str, Array]
    index: Mapping[str, int]
    theta: Array
    rng: np.random.Generator
    known: set[str] = field(default_factory=set)

    def visit(self, node: Node, goal: Goal) -> None:
        """Draw every coefficient below ``node`` that is not known yet."""
        if not self.unknown(node):
            return
        match node:
            case Coefficient():
                self.settle(node, np.zeros((len(self.theta), 1)), goal)
            case Apply("+" | "-"):
                self.sum(tree.terms(node), goal)
            case Apply("*" | "/"):
                self.product(tree.factors(node), goal)
            case Apply("**", (base, exponent)):
                self.visit(base, self.goal("base"))
                reach = _ptp(_log(self.value(base)))
                self.visit(exponent, self.goal("exponent", np.where(reach > 0, reach, 1.0)))
            case Apply("exp", (argument,)):
                wanted = (
                    goal.size if goal.kind in ("term", "base") else _uniform(self, _REACH) - _log(goal.size)
                )
                self.visit(
                    argument, self.goal("argument", _log(wanted) if goal.kind != "exponent" else wanted)
                )
            case Apply("log", (argument,)):
                self.visit(argument, self.goal("base"))
            case Apply(_, arguments):
                for argument in arguments:
                    self.visit(argument, goal)

    def sum(self, terms: list[tuple[float, Node]], goal: Goal) -> None:
        """Terms without unknown coefficients give the others their size; bare coefficients come last."""
        fixed = [(sign, t) for sign, t in terms if not self.unknown(t)]
        bare = [(sign, t) for sign, t in terms if isinstance(t, Coefficient) and t.name not in self.known]
        inner = goal
        if fixed and goal.kind in ("term", "base"):
            size = _typical(self.total(fixed))
            inner = self.goal(goal.kind, np.where(size > 1e-100, size, goal.size))
        for _, term in terms:
            if not isinstance(term, Coefficient):
                self.visit(term, inner)
        for k, (sign, term) in enumerate(bare):
            rest = [t for t in terms if t not in bare[k:]]
            self.settle(term, sign * self.total(rest), goal)

    def settle(self, coefficient: Coefficient, rest: Array, goal: Goal) -> None:
        """An offset c of c + ``rest`` [S, N]."""
        here, half = self.at_a_row(rest), self.rng.random((len(self.theta), 1)) < 0.5
        match goal.kind:
            case "exponent":
                value = self.sign() * np.exp(_uniform(self, _REACH)) / goal.size
            case "argument":
                level = np.where(half, goal.size + self.rng.normal(0, 2.0, half.shape), 0.0)
                value = level - here + self.rng.normal(0, 0.5, half.shape)
            case "base" if np.ptp(rest) > 0:
                low = rest.min(axis=1, keepdims=True)
                above = np.abs(here) * np.exp(self.rng.uniform(-4, 2, half.shape))
                near = -low * (1 - np.exp(-self.rng.exponential(2.0, half.shape)))
                across = -here + 0.2 * _ptp(rest) * self.rng.standard_normal(half.shape)
                value = np.where(half, above, np.where(self.rng.random(half.shape) < 0.5, near, across))
            case _:
                value = self.sign() * goal.size * np.exp(_uniform(self, _SIZE))
        self.put(coefficient, value)

    def product(self, factors: list[tuple[float, Node]], goal: Goal) -> None:
        """Compound factors first; then the first bare coefficient makes the product what the goal asks for."""
        bare = [(power, f) for power, f in factors if isinstance(f, Coefficient)]
        compound = [f for _, f in factors if not isinstance(f, Coefficient)]
        takes_goal = not any(f.name not in self.known for _, f in bare)
        for part in compound:
            self.visit(part, goal if takes_goal and goal.kind == "exponent" else self.goal("base"))
        unknown = [(power, f) for power, f in bare if f.name not in self.known]
        for _, other in unknown[1:]:
            self.put(other, np.exp(self.rng.uniform(-2, 2, (len(self.theta), 1))))
        if not unknown:
            return
        power, first = unknown[0]
        rest = np.ones((len(self.theta), 1))
        for exponent, factor in factors:
            if factor is not first:
                rest = rest * self.value(factor) ** exponent
        match goal.kind:
            case "argument":
                moved = _ptp(rest)
                wanted = (
                    self.sign() * np.exp(_uniform(self, _MOVE)) / np.where(moved > 0, moved, _typical(rest))
                )
            case "exponent":
                wanted = self.sign() * np.exp(_uniform(self, _REACH)) / goal.size / _typical(rest)
            case kind:
                low = _NEGATIVE if kind == "base" else 0.5
                sign = np.where(self.rng.random((len(rest), 1)) < low, -1.0, 1.0)
                wanted = sign * goal.size * np.exp(_uniform(self, _SIZE)) / np.abs(self.at_a_row(rest))
        self.put(first, wanted**power)

    def unknown(self, node: Node) -> bool:
        return any(name not in self.known for name in tree.coefficient_names(node))

    def put(self, coefficient: Coefficient, value: Array) -> None:
        self.theta[:, self.index[coefficient.name]] = value[:, 0]
        self.known.add(coefficient.name)

    def value(self, node: Node) -> Array:
        return tree.evaluate(node, self.columns, self.theta, self.index, order=0).value

    def total(self, terms: list[tuple[float, Node]]) -> Array:
        return np.asarray(sum((sign * self.value(t) for sign, t in terms), np.zeros((len(self.theta), 1))))

    def goal(self, kind: Kind, size: Array | None = None) -> Goal:
        one = np.ones((len(self.theta), 1))
        return Goal(kind=kind, size=one if size is None else np.broadcast_to(size, one.shape))

    def sign(self) -> Array:
        return np.where(self.rng.random((len(self.theta), 1)) < 0.5, -1.0, 1.0)

    def at_a_row(self, values: Array) -> Array:
        """Each start's value on a row of its own choice [S, 1]."""
        values = np.broadcast_to(values, (len(self.theta), values.shape[1]))
        row = self.rng.integers(values.shape[1], size=(len(values), 1))
        return np.take_along_axis(values, row, axis=1)


def draw(
    root: Node,
    columns: Mapping[str, Array],
    index: Mapping[str, int],
    *,
    n_draws: int,
    size: float,
    rng: np.random.Generator,
    solved: Collection[str] = (),
    spans: Mapping[str, tuple[float, float]] | None = None,
) -> Array:
    """Coefficients [S, P] of a formula on rows whose losses are about ``size``.

    Those in ``solved`` stay 1: they are found otherwise. ``spans`` are known beforehand; by ratio where they do not
    hold zero. Draws may leave the range of floating point, or the formula's domain: they are told by evaluating.
    """
    drawing = _Drawing(
        columns=columns, index=index, theta=np.ones((n_draws, len(index))), rng=rng, known=set(solved)
    )
    for name, span in (spans or {}).items():
        if name in index and name not in drawing.known:
            drawing.put(Coefficient(name), between(span, rng.random((n_draws, 1))))
    with np.errstate(all="ignore"):
        drawing.visit(root, drawing.goal("term", np.full((n_draws, 1), size)))
    return drawing.theta


def between(span: tuple[float, float], fraction: Array) -> Array:
    """Points of a span, spaced by ratio when both ends are positive (or both negative)."""
    low, high = span
    if low * high > 0:
        return np.asarray(low * (high / low) ** fraction)
    return np.asarray(low + (high - low) * fraction)


def _uniform(drawing: _Drawing, span: tuple[float, float]) -> Array:
    return drawing.rng.uniform(*span, (len(drawing.theta), 1))


def _log(values: Array) -> Array:
    return np.log(np.maximum(np.abs(values), 1e-300))


def _ptp(values: Array) -> Array:
    """Range over the rows [S, 1], zero where it is not finite."""
    spread = np.ptp(values, axis=1, keepdims=True)
    return np.where(np.isfinite(spread), spread, 0.0)


def _typical(values: Array) -> Array:
    """Geometric mean of the magnitude over the rows [S, 1]."""
    return np.exp(_log(values).mean(axis=1, keepdims=True))
