"""Anybody's tables: CSV, Parquet and JSON Lines as columns, rows chosen by a condition, columns derived by a formula.

A condition is parsed and never run as code:

    condition   comparison, ``not`` condition, condition ``and`` condition, condition ``or`` condition, (condition)
    comparison  value < value <= value, == != > >=, value [not] in (constant, ...), value is [not] None
    value       column, `any column`, number, 'text', True, False

A missing cell equals nothing: ``!=`` and ``not in`` hold for it, every other comparison does not.
"""

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from umscale import formulas as tree
from umscale.errors import UserError, nearest
from umscale.laws.forms import COLUMNS
from umscale.results.table import Table, n_rows, numeric, text

if TYPE_CHECKING:
    import pyarrow as pa

ROW = "row"
"""Column that ``read_table`` adds: number of the row in the file, from 1, header not counted."""

_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
_BACKQUOTED = re.compile(r"`([^`]*)`")
_ASSIGNS = re.compile(r"(?<![=!<>])=(?!=)")
_FORMULA = frozenset("+-*/(")

Mask = NDArray[np.bool_]


def is_table(path: str | Path) -> bool:
    """Whether the name ends as that of a table file does (``.csv``, ``.parquet``, ``.jsonl``; also ``.gz``)."""
    return _kind(Path(path)) in _SUFFIXES


def read_table(path: str | Path, *, where: str | None = None) -> dict[str, NDArray[np.generic]]:
    """Read a table file, numbers as float64 with NaN where missing, anything else as text objects with None.

    Nested columns become ``outer.inner``; lists are left out. A column ``row`` is added where the table has none.
    ``where`` keeps the rows that satisfy a condition. Raises ``UserError`` for a file that is missing, of another
    kind, damaged or empty, and as ``choose_rows`` does.
    """
    import pyarrow as pa

    path = Path(path)
    if not is_table(path):
        raise UserError(f"{path} is no table; tables end in {', '.join(_SUFFIXES)}")
    try:
        data = _read(path).flatten()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    twice = [name for name in data.column_names if data.column_names.count(name) > 1]
    if twice:
        raise UserError(f"{path} has {data.column_names.count(twice[0])} columns called {twice[0]!r}")
    found = {
        field.name: _column(data[field.name]) for field in data.schema if not pa.types.is_nested(field.type)
    }
    if not found or not data.num_rows:
        raise UserError(f"{path} holds no rows")
    found.setdefault(ROW, np.arange(1.0, data.num_rows + 1))
    return found if where is None else choose_rows(found, where)


def choose_rows(table: Table, condition: str) -> dict[str, NDArray[np.generic]]:
    """The rows that satisfy a condition; raises ``UserError`` as ``satisfies`` does, and when there are none."""
    chosen = satisfies(table, condition)
    if not chosen.any():
        raise UserError(f"none of {len(chosen)} rows satisfies {condition!r}")
    return {name: np.asarray(column)[chosen] for name, column in table.items()}


def satisfies(table: Table, condition: str) -> Mask:
    """Which rows satisfy a condition of the grammar above, [rows].

    Raises ``UserError`` for anything else, an unknown column, or a comparison of text with numbers.
    """
    quoted: dict[str, str] = {}

    def placeholder(match: re.Match[str]) -> str:
        name = f"backquoted_{len(quoted)}"
        quoted[name] = match[1]
        return name

    if len(condition) > tree.MAX_LENGTH:
        raise UserError(f"the condition has {len(condition)} characters; {tree.MAX_LENGTH} is the most")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "1if" is a warning of the language
            body = ast.parse(_BACKQUOTED.sub(placeholder, condition).strip(), mode="eval").body
    except SyntaxError as error:
        hint = "write == to compare" if _ASSIGNS.search(condition) else error.msg
        raise UserError(f"{condition!r} is not a condition: {hint}") from None
    except (ValueError, MemoryError, RecursionError):
        raise UserError(f"{condition!r} is not a condition") from None
    return _Condition(table=table, quoted=quoted, rows=n_rows(table)).truth(body, 0)


def map_columns(
    table: Table, given: Mapping[str, str]
) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    """The table with derived columns, and the column of every symbol that has one.

    A symbol stands for the column it is given; else for its default of ``forms.COLUMNS``; else for the column of
    its own name. Where no column is called what is given, a formula of columns is (``1/num_experts``) and becomes
    one, or a number, which every row then has. Raises ``UserError`` for neither.
    """
    columns = {s: s for s in COLUMNS if s in table} | {s: c for s, c in COLUMNS.items() if c in table}
    out = {name: np.asarray(column) for name, column in table.items()}
    for symbol, source in given.items():
        if source not in out:
            if not _FORMULA & set(source) and not source[:1].isdigit():
                raise UserError(f"the table has no column {source!r} for {symbol}{nearest(source, table)}")
            out[source] = derive(table, source)
        columns[symbol] = source
    return out, columns


def derive(table: Table, formula: str) -> NDArray[np.float64]:
    """A column computed from others by + - * / ** log exp, [rows]; raises ``UserError`` for unknown columns."""
    root = tree.parse(formula, [name for name in table if name.isidentifier()])
    for name in tree.coefficient_names(root):
        raise UserError(f"{formula!r}: the table has no column {name!r}{nearest(name, table)}")
    columns = {name: numeric(table, name) for name in tree.symbol_names(root)}
    value = tree.evaluate(root, columns, np.zeros((1, 0)), {}, order=0).value
    return np.array(np.broadcast_to(value, (1, n_rows(table)))[0])


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next(iter((suffixes[:-1] if suffixes[-1:] == [".gz"] else suffixes)[-1:]), "")


def _read(path: Path) -> "pa.Table":
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    match _kind(path):
        case ".parquet":
            return pyarrow.parquet.read_table(path)
        case ".jsonl" | ".ndjson":
            return pyarrow.json.read_json(path)
        case kind:
            separator = pyarrow.csv.ParseOptions(delimiter="\t" if kind == ".tsv" else ",")
            return pyarrow.csv.read_csv(path, parse_options=separator)


def _column(column: "pa.ChunkedArray") -> NDArray[Any]:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = pa.types
    is_number = kind.is_integer(column.type) or kind.is_floating(column.type) or kind.is_decimal(column.type)
    if is_number or kind.is_boolean(column.type) or kind.is_null(column.type):
        # Counts of FLOPs exceed what float64 holds exactly; that is precise enough here.
        return np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    cells = [None if cell is None else str(cell) for cell in column.to_pylist()]
    return np.array(cells, dtype=object)


@dataclass(frozen=True, slots=True)
class _Value:
    """A column, or a constant as an array of one."""

    cells: NDArray[Any]
    missing: Mask
    is_text: bool
    words: str


_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Condition:
    table: Table
    quoted: Mapping[str, str]
    rows: int

    def truth(self, source: ast.expr, depth: int) -> Mask:
        if depth > tree.MAX_DEPTH:
            raise UserError(f"the condition is nested more than {tree.MAX_DEPTH} deep")
        match source:
            case ast.BoolOp(op=op, values=values):
                parts = [self.truth(value, depth + 1) for value in values]
                return np.asarray((np.all if isinstance(op, ast.And) else np.any)(parts, axis=0))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.truth(operand, depth + 1)
            case ast.Compare(left=left, ops=ops, comparators=right):
                sides = [left, *right]
                steps = [self.step(*one) for one in zip(sides[:-1], ops, right, strict=True)]
                return np.asarray(np.all(steps, axis=0))
        raise UserError(f"{self.quote(source)} is not a condition: compare it with something")

    def step(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Mask:
        """One comparison, [rows]."""
        match op, right:
            case ((ast.Is() | ast.IsNot()), ast.Constant(value=None)):
                return self.spread(self.value(left).missing ^ isinstance(op, ast.IsNot))
            case (
                (ast.In() | ast.NotIn()),
                (ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items)),
            ):
                value = self.value(left)
                found = [self.compare(value, operator.eq, self.constant(item)) for item in items]
                inside = np.any(found, axis=0) if found else np.zeros(self.rows, dtype=bool)
                return self.spread(inside ^ isinstance(op, ast.NotIn))
            case ((ast.In() | ast.NotIn() | ast.Is() | ast.IsNot()), _):
                raise UserError(f"{self.quote(right)}: write in ('a', 'b') with constants, or is None")
        return self.compare(self.value(left), _COMPARE[type(op)], self.value(right))

    def compare(self, left: _Value, holds: Callable[[Any, Any], Any], right: _Value) -> Mask:
        if left.is_text != right.is_text:
            one, other = (left, right) if left.is_text else (right, left)
            raise UserError(f"{one.words} is text and {other.words} a number: they cannot be compared")
        known = ~(left.missing | right.missing)
        return self.spread(np.where(known, holds(left.cells, right.cells), holds is operator.ne))

    def value(self, source: ast.expr) -> _Value:
        if not isinstance(source, ast.Name):
            return self.constant(source)
        name = self.quoted.get(source.id, source.id)
        if name not in self.table:
            raise UserError(f"the table has no column {name!r}{nearest(name, self.table)}")
        try:
            numbers = numeric(self.table, name)
        except UserError:
            words = text(self.table, name)
            return _Value(words, words == "", True, f"column {name!r}")
        return _Value(numbers, np.isnan(numbers), False, f"column {name!r}")

    def constant(self, source: ast.expr) -> _Value:
        match source:
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                number = -number
            case ast.Constant(value=int() | float() as number):
                pass
            case ast.Constant(value=str(words)):
                return _Value(np.array([words]), np.array([False]), True, repr(words))
            case _:
                raise UserError(f"{self.quote(source)} is neither a column nor a number or text in quotes")
        try:
            cells = np.array([float(number)])
        except OverflowError:
            raise UserError(f"{self.quote(source)} is too large a number") from None
        return _Value(cells, np.isnan(cells), False, f"{cells[0]:g}")

    def spread(self, found: NDArray[Any]) -> Mask:
        return np.broadcast_to(np.asarray(found, dtype=bool), (self.rows,))

    def quote(self, source: ast.expr) -> str:
        try:
            words = ast.unparse(source)
        except (ValueError, RecursionError):  # a number too long to print
            return "a part of the condition"
        for name, column in self.quoted.items():
            words = words.replace(name, f"`{column}`")
        return repr(words)
