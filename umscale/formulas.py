"""Formulas as trees: read with ``ast`` from a small grammar, evaluated with exact first and second derivatives.

Grammar: numbers, names, `` `odd names` `` of columns, ``+ - * / **``, parentheses, ``log(x)``, ``exp(x)``,
``min(x, y, ...)``, ``max(x, y, ...)``, and comparisons ``(x > y)``, which are 1 where they hold and 0 elsewhere. A text
is parsed into the nodes below and nothing else; it is never compiled or run.

Derivatives are taken forwards through the tree. Each node carries its value and only those derivatives that do
not vanish, as arrays that broadcast over S coefficient vectors × N rows, so what depends on columns alone is
computed once and what depends on coefficients alone has no row axis.
"""

import ast
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from umscale.errors import UserError

Array = NDArray[np.float64]
_Key = TypeVar("_Key")
Operation = Literal["+", "-", "*", "/", "**", "log", "exp", "min", "max", "<", "<=", ">", ">=", "==", "!="]

MAX_LENGTH = 1000
MAX_DEPTH = 40

_BINARY: Mapping[type[ast.operator], Operation] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**",
}  # fmt: skip
_COMPARES: Mapping[type[ast.cmpop], Operation] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
_CALLS: Mapping[str, Operation] = {"log": "log", "exp": "exp"}
_FOLDS: Mapping[str, Operation] = {"min": "min", "max": "max"}
_INDICATORS = frozenset(_COMPARES.values())
_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2, "**": 3}
_BACKQUOTED = re.compile(r"`([^`]*)`")


@dataclass(frozen=True, slots=True)
class Number:
    """A constant of the formula."""

    value: float


@dataclass(frozen=True, slots=True)
class Symbol:
    """A column of the table."""

    name: str


@dataclass(frozen=True, slots=True)
class Coefficient:
    """What a fit determines."""

    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """One or two arguments under an operation."""

    operation: Operation
    arguments: tuple["Node", ...]


Node = Number | Symbol | Coefficient | Apply


def parse(text: str, symbols: Collection[str]) -> Node:
    """The tree of ``text``; names in ``symbols`` and those in backquotes are columns, all others coefficients.

    Equal subtrees are one object. Raises ``UserError`` with the offending text.
    """
    if len(text) > MAX_LENGTH:
        raise UserError(f"the formula has {len(text)} characters; {MAX_LENGTH} is the most")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "1if" is a warning of the language, and an error below
            plain, quoted = unquoted(text)
            body = ast.parse(plain.strip(), mode="eval").body
    except SyntaxError as error:
        raise UserError(f"{text!r} is not a formula: {error.msg}") from None
    except (ValueError, MemoryError, RecursionError):
        raise UserError(f"{text!r} is not a formula") from None
    return read_node(body, symbols, quoted)


def unquoted(text: str) -> tuple[str, dict[str, str]]:
    """The text with an identifier for each name in backquotes, and what each of these stands for."""
    quoted: dict[str, str] = {}

    def placeholder(match: re.Match[str]) -> str:
        name = f"backquoted_{len(quoted)}"
        quoted[name] = match[1]
        return name

    return _BACKQUOTED.sub(placeholder, text), quoted


def read_node(source: ast.expr, symbols: Collection[str], quoted: Mapping[str, str]) -> Node:
    """The tree of a part that ``ast`` has parsed; ``quoted`` as from ``unquoted``. Raises as ``parse`` does."""
    return _Reader(symbols=frozenset(symbols), quoted=quoted).node(source, 0)


@dataclass(slots=True)
class _Reader:
    symbols: frozenset[str]
    quoted: Mapping[str, str]
    seen: dict[Node, Node] = field(default_factory=dict)

    def node(self, source: ast.expr, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise UserError(f"the formula is nested more than {MAX_DEPTH} deep")
        built = self._build(source, depth + 1)
        return self.seen.setdefault(built, built)

    def _build(self, source: ast.expr, depth: int) -> Node:
        match source:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return _number(value, source)
            case ast.Name(id=name) if name in self.quoted:
                return Symbol(self.quoted[name])
            case ast.Name(id=name) if name not in _CALLS and name not in _FOLDS:
                return Symbol(name) if name in self.symbols else Coefficient(name)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.node(operand, depth)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return apply("*", self.node(ast.Constant(-1), depth), self.node(operand, depth))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return apply(_BINARY[type(op)], self.node(left, depth), self.node(right, depth))
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _CALLS:
                return apply(_CALLS[name], self.node(argument, depth))
            case ast.Call(func=ast.Name(id=name), args=[first, *rest], keywords=[]) if (
                name in _FOLDS and rest
            ):
                node = self.node(first, depth)
                for argument in rest:
                    node = apply(_FOLDS[name], node, self.node(argument, depth))
                return node
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARES:
                return apply(_COMPARES[type(op)], self.node(left, depth), self.node(right, depth))
            case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)) if name in _FOLDS:
                raise UserError(f"{_quote(source)}: min and max take two arguments or more")
            case ast.BinOp(op=ast.BitXor()):
                raise UserError(f"{_quote(source)}: write ** for a power")
            case ast.Name() | ast.Call(func=ast.Name(id="log" | "exp")):
                raise UserError(f"{_quote(source)}: log and exp take one argument")
        raise UserError(
            f"{_quote(source)} is not part of a formula: there are numbers, names, + - * / **, log(x), exp(x), "
            "min(x, y), max(x, y) and comparisons"
        )


def _quote(source: ast.expr) -> str:
    try:
        return repr(ast.unparse(source))
    except (ValueError, RecursionError):  # a number too long to print
        return "a part of the formula"


def _number(value: float, source: ast.expr) -> Number:
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not np.isfinite(number):
        raise UserError(f"{_quote(source)} is too large a number")
    return Number(number)


def apply(operation: Operation, *arguments: Node) -> Node:
    """The operation on its arguments, carried out when they are numbers; raises ``UserError`` if that fails."""
    node = Apply(operation, arguments)
    if not all(isinstance(a, Number) for a in arguments):
        return node
    value = float(evaluate(node, {}, np.zeros((1, 0)), {}, order=0).value[0, 0])
    if not np.isfinite(value):
        raise UserError(f"{unparse(node)!r} is not a finite number")
    return Number(value)


def unparse(node: Node, strength: int = 0, names: Mapping[str, str] | None = None) -> str:
    """The formula as text; ``names`` says how columns are written that are not written as they are."""
    match node:
        case Number(value):
            return f"{value:.15g}" if value >= 0 or not strength else f"({value:.15g})"
        case Symbol(name):
            written = (names or {}).get(name, name)
            return written if name != written or name.isidentifier() else f"`{name}`"
        case Coefficient(name):
            return name
        case Apply("log" | "exp" as name, (argument,)):
            return f"{name}({unparse(argument, 0, names)})"
        case Apply("min" | "max" as name, (left, right)):
            return f"{name}({unparse(left, 0, names)}, {unparse(right, 0, names)})"
        case Apply(operation, (left, right)) if operation in _INDICATORS:
            return f"({unparse(left, 1, names)} {operation} {unparse(right, 1, names)})"
        case Apply("*", (Number(-1.0), right)):
            return f"(-{unparse(right, 3, names)})" if strength else f"-{unparse(right, 3, names)}"
        case Apply(operation, (left, right)):
            own = _STRENGTH[operation]
            spaced = f" {operation} " if own == 1 else operation
            # Powers group from the right, everything else from the left.
            sides = (own + 1, own) if operation == "**" else (own, own + 1)
            text = f"{unparse(left, sides[0], names)}{spaced}{unparse(right, sides[1], names)}"
            return f"({text})" if own < strength else text
    raise AssertionError(node)


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it, left to right."""
    yield node
    if isinstance(node, Apply):
        for argument in node.arguments:
            yield from walk(argument)


def symbol_names(node: Node) -> tuple[str, ...]:
    """Columns in order of appearance."""
    return tuple(dict.fromkeys(n.name for n in walk(node) if isinstance(n, Symbol)))


def coefficient_names(node: Node) -> tuple[str, ...]:
    """Coefficients in order of appearance."""
    return tuple(dict.fromkeys(n.name for n in walk(node) if isinstance(n, Coefficient)))


def substitute(node: Node, replace: Mapping[str, Node]) -> Node:
    """The tree with coefficients replaced; equal subtrees are one object again."""
    seen: dict[Node, Node] = {}

    def visit(part: Node) -> Node:
        if isinstance(part, Coefficient):
            part = replace.get(part.name, part)
        elif isinstance(part, Apply):
            part = apply(part.operation, *(visit(a) for a in part.arguments))
        return seen.setdefault(part, part)

    return visit(node)


def logarithm(node: Node) -> Node:
    """A tree of ln(node) in which products are sums and powers are products."""
    match node:
        case Apply("*", (left, right)):
            return apply("+", logarithm(left), logarithm(right))
        case Apply("/", (left, right)):
            return apply("-", logarithm(left), logarithm(right))
        case Apply("**", (base, exponent)):
            return apply("*", exponent, logarithm(base))
        case Apply("exp", (argument,)):
            return argument
        case Number(value) if value <= 0:
            return Apply("log", (node,))
    return apply("log", node)


def linear_coefficients(node: Node) -> tuple[str, ...]:
    """Coefficients in which, taken together and all others held, the formula is affine."""
    chosen: tuple[str, ...] = ()
    for name in coefficient_names(node):
        if _degree(node, frozenset((*chosen, name))) <= 1:
            chosen = (*chosen, name)
    return chosen


def _degree(node: Node, names: frozenset[str]) -> int:
    """Degree of the tree as a polynomial in ``names``; 2 stands for anything not affine."""
    match node:
        case Coefficient(name):
            return int(name in names)
        case Apply("+" | "-", arguments):
            return max(_degree(a, names) for a in arguments)
        case Apply("*", (left, right)):
            return min(2, _degree(left, names) + _degree(right, names))
        case Apply("/", (left, right)):
            return 2 if _degree(right, names) else _degree(left, names)
        case Apply(_, arguments):
            return 2 if any(_degree(a, names) for a in arguments) else 0
    return 0


def check_indicators(node: Node) -> None:
    """Raise ``UserError`` for a comparison that a coefficient stands in: no derivative would ever move it."""
    for part in walk(node):
        if isinstance(part, Apply) and part.operation in _INDICATORS and (names := coefficient_names(part)):
            raise UserError(
                f"{unparse(part)!r}: {', '.join(names)} cannot be fitted inside a comparison; pin a value (--pin), or "
                "write a smooth step"
            )


def terms(node: Node) -> list[tuple[float, Node]]:
    """The summands of a formula, each with its sign; ``-1*x`` is x with the other sign."""
    match node:
        case Apply("+", (left, right)):
            return terms(left) + terms(right)
        case Apply("-", (left, right)):
            return terms(left) + [(-sign, part) for sign, part in terms(right)]
        case Apply("*", (Number(-1.0), part)):
            return [(-sign, inner) for sign, inner in terms(part)]
    return [(1.0, node)]


def factors(node: Node) -> list[tuple[float, Node]]:
    """The factors of a formula, each with its power, 1 or −1."""
    match node:
        case Apply("*", (left, right)):
            return factors(left) + factors(right)
        case Apply("/", (left, right)):
            return factors(left) + [(-power, part) for power, part in factors(right)]
    return [(1.0, node)]


def positive_symbols(node: Node) -> tuple[str, ...]:
    """Columns that stand directly under a logarithm or a power that is no whole number."""
    found = []
    for part in walk(node):
        match part:
            case Apply("log", (Symbol(name),)):
                found.append(name)
            case Apply("**", (Symbol(), Number(value))) if value.is_integer():
                pass
            case Apply("**", (Symbol(name), _)):
                found.append(name)
    return tuple(dict.fromkeys(found))


def check_logarithms(node: Node, values: Mapping[str, Array]) -> None:
    """Raise ``UserError`` where something that depends on columns alone is not positive under a logarithm.

    And as ``check_indicators`` does.
    """
    check_indicators(node)
    for part in walk(node):
        match part:
            case Apply("log", (inner,)):
                pass
            case Apply("**", (inner, exponent)) if not (
                isinstance(exponent, Number) and exponent.value.is_integer()
            ):
                pass
            case _:
                continue
        if (isinstance(inner, Number) and inner.value > 0) or coefficient_names(inner):
            continue
        value = evaluate(inner, values, np.zeros((1, 0)), {}, order=0).value
        bad = int((~(value > 0)).sum())
        if bad:
            rows = "every row" if value.shape[1] == 1 or bad == value.size else f"{bad} of {value.size} rows"
            raise UserError(f"{unparse(inner)!r} has no logarithm: it is zero or negative in {rows}")


@dataclass(frozen=True, slots=True)
class Jet:
    """A value with its derivatives in the coefficients; every array broadcasts to [S, N]."""

    value: Array
    first: Mapping[int, Array]
    """Coefficient → ∂/∂c; absent where it vanishes."""
    second: Mapping[tuple[int, int], Array]
    """(i, j) with i ≤ j → ∂²/∂c_i∂c_j; absent where it vanishes."""


def evaluate(
    node: Node,
    columns: Mapping[str, Array],
    coefficients: Array,
    index: Mapping[str, int],
    *,
    order: Literal[0, 1, 2],
    along: Collection[str] | None = None,
) -> Jet:
    """The formula at ``coefficients`` [S, P] on ``columns`` (symbol → [N]), with derivatives up to ``order``.

    ``index`` says which column of ``coefficients`` a name is; derivatives are taken in the coefficients ``along``, by
    default all. Values out of range come out as inf or NaN.
    """
    known: dict[int, Jet] = {}

    def visit(part: Node) -> Jet:
        if id(part) not in known:
            known[id(part)] = build(part)
        return known[id(part)]

    def build(part: Node) -> Jet:
        match part:
            case Number(value):
                return Jet(np.full((1, 1), value), {}, {})
            case Symbol(name):
                return Jet(np.asarray(columns[name], dtype=np.float64)[None], {}, {})
            case Coefficient(name):
                k = index[name]
                moves = order and (along is None or name in along)
                return Jet(coefficients[:, k, None], {k: np.ones((1, 1))} if moves else {}, {})
            case Apply("+", (left, right)):
                return _sum(visit(left), visit(right), 1.0)
            case Apply("-", (left, right)):
                return _sum(visit(left), visit(right), -1.0)
            case Apply("*", (left, right)):
                return _product(visit(left), visit(right), order)
            case Apply("/", (left, right)):
                return _product(visit(left), _power(visit(right), -1.0, order), order)
            case Apply("**", (base, Number(value))):
                return _power(visit(base), value, order)
            case Apply("**", (base, exponent)):
                return _exponential(_product(visit(exponent), _logarithm(visit(base), order), order), order)
            case Apply("log", (argument,)):
                return _logarithm(visit(argument), order)
            case Apply("exp", (argument,)):
                return _exponential(visit(argument), order)
            case Apply("min" | "max" as which, (left, right)):
                return _either(visit(left), visit(right), which == "min")
            case Apply(operation, (left, right)) if operation in _INDICATORS:
                holds = _HOLDS[operation](visit(left).value, visit(right).value)
                return Jet(np.asarray(holds, dtype=np.float64), {}, {})
        raise AssertionError(part)

    with np.errstate(all="ignore"):
        return visit(node)


def _sum(a: Jet, b: Jet, sign: float) -> Jet:
    first, second = dict(a.first), dict(a.second)
    for i, slope in b.first.items():
        _add(first, i, sign * slope)
    for pair, bend in b.second.items():
        _add(second, pair, sign * bend)
    return Jet(a.value + sign * b.value, first, second)


_HOLDS: Mapping[str, Callable[[Array, Array], NDArray[np.bool_]]] = {
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal, "!=": np.not_equal,
}  # fmt: skip


def _either(a: Jet, b: Jet, least: bool) -> Jet:
    """The smaller or the greater of two, with the derivatives of the one that is taken (the first where equal)."""
    left = a.value <= b.value if least else a.value >= b.value

    def chosen(one: Mapping[_Key, Array], other: Mapping[_Key, Array]) -> dict[_Key, Array]:
        nothing = np.zeros((1, 1))
        keys = dict.fromkeys((*one, *other))
        return {key: np.where(left, one.get(key, nothing), other.get(key, nothing)) for key in keys}

    return Jet(
        (np.minimum if least else np.maximum)(a.value, b.value),
        chosen(a.first, b.first),
        chosen(a.second, b.second),
    )


def _product(a: Jet, b: Jet, order: int) -> Jet:
    first: dict[int, Array] = {i: slope * b.value for i, slope in a.first.items()}
    for i, slope in b.first.items():
        _add(first, i, a.value * slope)
    second: dict[tuple[int, int], Array] = {}
    if order == 2:
        second = {pair: bend * b.value for pair, bend in a.second.items()}
        for pair, bend in b.second.items():
            _add(second, pair, a.value * bend)
        for i, left in a.first.items():
            for j, right in b.first.items():
                cross = left * right
                _add(second, (min(i, j), max(i, j)), 2 * cross if i == j else cross)
    return Jet(a.value * b.value, first, second)


def _chain(a: Jet, value: Array, slope: Array, bend: Array, order: int) -> Jet:
    """f(a) from f, f′ and f″ at a."""
    first = {i: slope * d for i, d in a.first.items()}
    second: dict[tuple[int, int], Array] = {}
    if order == 2:
        second = {pair: slope * d for pair, d in a.second.items()}
        for i, left in a.first.items():
            for j, right in a.first.items():
                if i <= j:
                    _add(second, (i, j), bend * (left * right))
    return Jet(value, first, second)


def _power(a: Jet, exponent: float, order: int) -> Jet:
    if not a.first:
        return Jet(a.value**exponent, {}, {})
    slope = exponent * a.value ** (exponent - 1)
    bend = exponent * (exponent - 1) * a.value ** (exponent - 2) if order == 2 else slope
    return _chain(a, a.value**exponent, slope, bend, order)


def _logarithm(a: Jet, order: int) -> Jet:
    slope = 1 / a.value
    return _chain(a, np.log(a.value), slope, -(slope**2), order)


def _exponential(a: Jet, order: int) -> Jet:
    value = np.exp(a.value)
    return _chain(a, value, value, value, order)


def _add(into: dict[_Key, Array], key: _Key, term: Array) -> None:
    into[key] = into[key] + term if key in into else term
