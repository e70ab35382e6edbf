"""Coefficients that a user fixes, ties together or bounds.

Pins and ties are taken out of a law before it is fitted: what is left is a law of the same class with fewer
coefficients, so a power law keeps its closed-form engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from umscale import formulas as tree
from umscale.errors import UserError, nearest
from umscale.laws.forms import ExpressionLaw, Law, LocalLaw, PowerLaw, Term, as_written
from umscale.results.columns import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What holds between a law's coefficients."""

    pins: Mapping[str, float] = field(default_factory=dict)
    """Coefficient → its value."""
    ties: tuple[tuple[str, str], ...] = ()
    """Pairs of coefficients with one value."""
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Coefficient → least and greatest value, either may be infinite."""

    def __bool__(self) -> bool:
        return bool(self.pins or self.ties or self.bounds)

    @property
    def names(self) -> frozenset[str]:
        return frozenset((*self.pins, *self.bounds, *(name for pair in self.ties for name in pair)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """What is left of a law to fit."""

    law: PowerLaw | ExpressionLaw
    bounds: Mapping[str, tuple[float, float]]
    leaders: Mapping[str, str]
    """Coefficient of the whole law → the one of ``law`` that has its value; pinned ones are not in it."""
    pins: Mapping[str, float]
    """Coefficient of the whole law → its value, with what is tied to it."""

    def expand(self, coefficients: Array, whole: PowerLaw | ExpressionLaw) -> Array:
        """Coefficients [..., free] of the reduced law → those of the whole law [..., P]."""
        position = {name: k for k, name in enumerate(self.law.coefficients)}
        columns = [
            np.full(coefficients.shape[:-1], self.pins[name])
            if name in self.pins
            else coefficients[..., position[self.leaders[name]]]
            for name in whole.coefficients
        ]
        return np.stack(columns, axis=-1)

    def restrict(self, coefficients: Array, whole: PowerLaw | ExpressionLaw) -> Array:
        """Inverse of ``expand``."""
        return coefficients[..., [whole.coefficients.index(name) for name in self.law.coefficients]]

    def tied(self, leader: str) -> tuple[str, ...]:
        """All coefficients that share the value of ``leader``."""
        return tuple(name for name, own in self.leaders.items() if own == leader)


def check(law: Law, constraints: Constraints) -> None:
    """Raise ``UserError`` for constraints that the law cannot have."""
    if not constraints:
        return
    if isinstance(law, LocalLaw):
        raise UserError(
            f"law {law.name!r} is linear: pins, ties and bounds are for power laws and expressions"
        )
    for name in sorted(constraints.names):
        if name not in law.coefficients:
            raise UserError(f"law {law.name!r} has no coefficient {name!r}{nearest(name, law.coefficients)}")
    scales = law.scales if isinstance(law, PowerLaw) and law.root is None else ()
    for name, value in constraints.pins.items():
        if not np.isfinite(value) or (name in scales and value < 0):
            raise UserError(f"{name} cannot be pinned to {value:g}: {_range(name in scales)}")
    for name, (low, high) in constraints.bounds.items():
        if not low < high:
            raise UserError(
                f"the bounds of {name} must be a lower and a greater number, got {low:g} and {high:g}"
            )
        if name in scales and high <= 0:
            raise UserError(f"{name} cannot lie between {low:g} and {high:g}: {_range(True)}")
    for one, other in constraints.ties:
        if (one in scales) != (other in scales):
            raise UserError(f"{one} and {other} cannot be tied: one is a scale, the other an exponent")
    reduce_law(as_written(law, law.root) if isinstance(law, PowerLaw) and law.root else law, constraints)


def needs_signs(law: PowerLaw, constraints: Constraints) -> bool:
    """Whether a scale of the law is held negative, or to the value of an exponent: no sum of positive powers."""
    scales = set(law.scales)
    return (
        any(value < 0 for name, value in constraints.pins.items() if name in scales)
        or any(high <= 0 for name, (_, high) in constraints.bounds.items() if name in scales)
        or any((one in scales) != (other in scales) for one, other in constraints.ties)
    )


def _range(scale: bool) -> str:
    return "a scale of a power law is not negative" if scale else "it must be a finite number"


def reduce_law(law: PowerLaw | ExpressionLaw, constraints: Constraints) -> Reduced:
    """The law without pinned coefficients and with one name for those that are tied.

    Raises ``UserError`` for constraints that contradict each other or leave nothing to fit.
    """
    present = law.coefficients
    leader = {name: name for name in present}
    for one, other in constraints.ties:
        if one in leader and other in leader:
            first, second = sorted((leader[one], leader[other]), key=present.index)
            leader = {name: first if own == second else own for name, own in leader.items()}
    pinned: dict[str, float] = {}
    for name, value in constraints.pins.items():
        if name in leader and pinned.setdefault(leader[name], value) != value:
            raise UserError(f"{name} and {leader[name]} are tied and cannot be pinned to different values")
    bounds: dict[str, tuple[float, float]] = {}
    for name, (low, high) in constraints.bounds.items():
        if name not in leader:
            continue
        own = leader[name]
        before = bounds.get(own, (-np.inf, np.inf))
        bounds[own] = (max(low, before[0]), min(high, before[1]))
        if not bounds[own][0] < bounds[own][1]:
            raise UserError(f"the bounds of {name} and of what is tied to it exclude each other")
        if own in pinned and not bounds[own][0] <= pinned[own] <= bounds[own][1]:
            raise UserError(f"{name} is pinned to {pinned[own]:g}, outside its bounds")
    free = {name: own for name, own in leader.items() if own not in pinned}
    if not free:
        raise UserError(f"every coefficient of law {law.name!r} is pinned: there is nothing to fit")
    return Reduced(
        law=_reduced(law, leader, pinned),
        bounds={name: ends for name, ends in bounds.items() if name not in pinned},
        leaders=free,
        pins={name: pinned[own] for name, own in leader.items() if own in pinned},
    )


def _reduced(
    law: PowerLaw | ExpressionLaw, leader: Mapping[str, str], pinned: Mapping[str, float]
) -> PowerLaw | ExpressionLaw:
    if isinstance(law, ExpressionLaw):
        values: dict[str, tree.Node] = {
            name: tree.Number(pinned[own]) if own in pinned else tree.Coefficient(own)
            for name, own in leader.items()
        }
        return replace(law, root=tree.substitute(law.root, values))
    return replace(
        law,
        terms=tuple(
            _reduced_term(term, leader, pinned)
            for term in law.terms
            # A term whose scale is pinned to zero is not there.
            if term.scale is None or pinned.get(leader[term.scale]) != 0
        ),
    )


def _reduced_term(term: Term, leader: Mapping[str, str], pinned: Mapping[str, float]) -> Term:
    scale = leader[term.scale] if term.scale is not None else None
    constant = term.constant
    if scale is not None and scale in pinned:
        constant, scale = constant * pinned[scale], None
    named = [replace(f, coefficient=leader[f.coefficient]) for f in term.factors]
    known = [(f.symbols, f.sign * pinned[f.coefficient]) for f in named if f.coefficient in pinned]
    return Term(
        scale=scale,
        factors=tuple(f for f in named if f.coefficient not in pinned),
        constant=constant,
        powers=(*term.powers, *known),
    )
