"""Laws that users write: ``E + A*N**-alpha + B*D**-beta``.

A sum of products of powers is recognised, by expanding it, and becomes a ``PowerLaw`` with its closed-form engine. Its
scales are positive there; a fit also looks at what the formula does with negative ones. Everything else stays an
expression.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from umscale import formulas as tree
from umscale.errors import UserError
from umscale.laws.forms import ExpressionLaw, Factor, Law, PowerLaw, Term

_MOST_TERMS = 32  # of an expanded product of sums
_LARGEST = 700.0  # logarithm of a constant that floating point holds

Logs = dict[tuple[str | None, tuple[str, ...]], float]
"""Σ number · coefficient · Π ln symbols, as {(coefficient, symbols): number}; None stands for no coefficient."""


@dataclass(frozen=True, slots=True)
class _Product:
    """constant · Π scales · exp(logs)."""

    constant: float
    scales: tuple[str, ...]
    logs: Logs


def parse_law(text: str, symbols: Collection[str], name: str = "", *, as_power: bool = True) -> Law:
    """The law that ``text`` writes; ``symbols`` are the names that stand for columns, all others coefficients.

    It is called ``name``, or else what it says. ``as_power=False`` keeps a sum of products of powers an expression,
    whose scales and columns may have any sign. Raises ``UserError`` for what is not in the grammar of
    ``umscale.formulas``, and
    for a law without columns or coefficients.
    """
    formula = " ".join(text.split())
    root = tree.parse(formula, symbols)
    if not tree.symbol_names(root):
        lost = "".join(f"; {name} must be one: --map {name}=COLUMN" for name in must_be_columns(root))
        raise UserError(
            f"the law {formula!r} reads no column; columns are {', '.join(sorted(symbols))}{lost}"
        )
    if not tree.coefficient_names(root):
        raise UserError(f"the law {formula!r} has no coefficients to fit")
    terms = _terms(root) if as_power else None
    name = name or formula
    if terms is None:
        return ExpressionLaw(name=name, source="written by the user", formula=formula, root=root)
    return PowerLaw(name=name, source="written by the user", formula=formula, terms=terms, root=root)


def must_be_columns(root: tree.Node) -> tuple[str, ...]:
    """Coefficients that must be columns nobody named: a base to a fitted power, alone under a logarithm.

    ``foo**-a`` of two coefficients is one number, which no rows could take apart.
    """
    found = []
    for part in tree.walk(root):
        match part:
            case tree.Apply("**", (tree.Coefficient(name), exponent)) if tree.coefficient_names(
                exponent
            ) and not tree.symbol_names(exponent):
                found.append(name)
            case tree.Apply("log", (tree.Coefficient(name),)):
                found.append(name)
    return tuple(dict.fromkeys(found))


def _terms(root: tree.Node) -> tuple[Term, ...] | None:
    """The terms of a power law; None when the formula is none, or not with positive scales."""
    products = _expand(root)
    if products is None or any(not 0 < p.constant < np.inf or len(p.scales) > 1 for p in products):
        return None
    exponents = {name for p in products for name, _ in p.logs if name is not None}
    if exponents & {scale for p in products for scale in p.scales}:
        return None
    return tuple(_term(p) for p in products)


def _term(product: _Product) -> Term:
    factors = tuple(
        Factor(coefficient=name, symbols=symbols, sign=number, span=_span(symbols, number))
        for (name, symbols), number in product.logs.items()
        if name is not None and number
    )
    return Term(
        scale=product.scales[0] if product.scales else None,
        factors=factors,
        constant=product.constant,
        powers=tuple((symbols, number) for (name, symbols), number in product.logs.items() if name is None),
    )


def _span(symbols: tuple[str, ...], sign: float) -> tuple[float, float]:
    """Where an exponent starts: falling powers as published laws have them, others with either sign."""
    if len(symbols) > 1:
        return (-0.05, 0.05)
    return (0.05, 1.2) if sign < 0 else (-0.8, 0.8)


def _expand(node: tree.Node) -> list[_Product] | None:
    """The formula as a sum of products; None when it is none."""
    match node:
        case tree.Number(value):
            return [_Product(value, (), {})]
        case tree.Symbol(name):
            return [_Product(1.0, (), {(None, (name,)): 1.0})]
        case tree.Coefficient(name):
            return [_Product(1.0, (name,), {})]
        case tree.Apply("+" | "-" as sign, (left, right)):
            first, second = _expand(left), _expand(right)
            if first is None or second is None or len(first) + len(second) > _MOST_TERMS:
                return None
            factor = 1.0 if sign == "+" else -1.0
            return first + [_Product(factor * p.constant, p.scales, p.logs) for p in second]
        case tree.Apply("*", (left, right)):
            first, second = _expand(left), _expand(right)
            if first is None or second is None or len(first) * len(second) > _MOST_TERMS:
                return None
            return [_times(p, q) for p in first for q in second]
        case tree.Apply("/", (left, right)):
            first, below = _expand(left), _single(right)
            if first is None or below is None or below.scales or below.constant <= 0:
                return None
            inverse = _Product(1 / below.constant, (), {key: -number for key, number in below.logs.items()})
            return [_times(p, inverse) for p in first]
        case tree.Apply("**", (base, tree.Number(1.0))):
            return _expand(base)
        case tree.Apply("**" | "exp"):
            logs = _logs(tree.logarithm(node))
            if logs is None or abs(logs.get((None, ()), 0.0)) > _LARGEST:
                return None
            return [_Product(float(np.exp(logs.pop((None, ()), 0.0))), (), logs)]
    return None


def _single(node: tree.Node) -> _Product | None:
    products = _expand(node)
    return products[0] if products is not None and len(products) == 1 else None


def _times(p: _Product, q: _Product) -> _Product:
    return _Product(p.constant * q.constant, p.scales + q.scales, _plus(p.logs, q.logs))


def _plus(a: Logs, b: Logs, sign: float = 1.0) -> Logs:
    return {key: a.get(key, 0.0) + sign * b.get(key, 0.0) for key in (*a, *(k for k in b if k not in a))}


def _logs(node: tree.Node) -> Logs | None:
    """The formula as a sum of coefficients times products of logarithms of columns; None when it is none."""
    match node:
        case tree.Number(value):
            return {(None, ()): value}
        case tree.Coefficient(name):
            return {(name, ()): 1.0}
        case tree.Apply("log", (argument,)):
            inner = _single(argument)
            if inner is None or inner.scales or inner.constant <= 0:
                return None
            return _plus({(None, ()): float(np.log(inner.constant))}, inner.logs)
        case tree.Apply("+" | "-" as sign, (left, right)):
            first, second = _logs(left), _logs(right)
            if first is None or second is None:
                return None
            return _plus(first, second, 1.0 if sign == "+" else -1.0)
        case tree.Apply("*", (left, right)):
            return _multiply(_logs(left), _logs(right))
        case tree.Apply("/", (left, tree.Number(value))) if value:
            return _multiply(_logs(left), {(None, ()): 1 / value})
        case tree.Apply("**", (base, tree.Number(2.0))):
            return _multiply(_logs(base), _logs(base))
    return None


def _multiply(a: Logs | None, b: Logs | None) -> Logs | None:
    if a is None or b is None or len(a) * len(b) > _MOST_TERMS:
        return None
    product: Logs = {}
    for (left, left_symbols), x in a.items():
        for (right, right_symbols), y in b.items():
            if left is not None and right is not None:
                return None
            key = (left or right, tuple(sorted(left_symbols + right_symbols)))
            product = _plus(product, {key: x * y})
    return product
