"""Anybody's tables: CSV, Parquet and JSON Lines as columns, rows chosen by a condition, columns derived by a formula.

A condition is parsed and never run as code:

    condition   comparison, ``not`` condition, condition ``and`` condition, condition ``or`` condition, (condition),
                a column of truth values, True, False
    comparison  value < value <= value, == != > >=, value [not] in (constant, ...), value is [not] None
    value       column, `any column`, number, 'text', True, False, or a formula of columns (``6*n*d``, ``log(n)``)

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
from umscale.results.columns import COLUMNS
from umscale.results.table import Table, n_rows, numeric, text

if TYPE_CHECKING:
    import pyarrow as pa

ROW = "row"
"""Column that ``read_table`` adds: number of the row in the file, from 1, header not counted."""

_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
_ASSIGNS = re.compile(r"(?<![=!<>])=(?!=)")
_FORMULA = frozenset("+-*/(`<>=")
_CONDITION = re.compile(r"[<>]|[!=]=|\b(?:in|is|not|and|or)\b")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_QUOTED = re.compile(r"`[^`]*`|'[^']*'|\"[^\"]*\"")
_SNIFFED = 65_536  # bytes of a file that say what separates its cells
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+(?:[eE][-+]?\d+)?")

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


def rows_and_columns(
    table: Table, condition: str | None, given: Mapping[str, str]
) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    """``map_columns`` on the rows that satisfy a condition, which may name symbols beside columns."""
    if condition is None:
        return map_columns(table, given)
    if not (_names(condition, {}) - set(table)) & {*given, *COLUMNS}:
        return map_columns(choose_rows(table, condition), given)
    mapped, columns = map_columns(table, given)
    return choose_rows(mapped, condition, columns), columns


def choose_rows(
    table: Table, condition: str, symbols: Mapping[str, str] | None = None
) -> dict[str, NDArray[np.generic]]:
    """The rows that satisfy a condition; raises ``UserError`` as ``satisfies`` does, and when there are none."""
    chosen = satisfies(table, condition, symbols)
    if not chosen.any():
        raise UserError(f"none of {len(chosen)} rows satisfies {condition!r}")
    return {name: np.asarray(column)[chosen] for name, column in table.items()}


def satisfies(table: Table, condition: str, symbols: Mapping[str, str] | None = None) -> Mask:
    """Which rows satisfy a condition of the grammar above, [rows].

    ``symbols`` maps further names to columns; a column of the same name goes first. Raises ``UserError`` for anything
    else, an unknown column, or a comparison of text with numbers.
    """
    if len(condition) > tree.MAX_LENGTH:
        raise UserError(f"the condition has {len(condition)} characters; {tree.MAX_LENGTH} is the most")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "1if" is a warning of the language
            plain, quoted = tree.unquoted(condition)
            body = ast.parse(plain.strip(), mode="eval").body
    except SyntaxError as error:
        hint = "write == to compare" if _ASSIGNS.search(condition) else error.msg
        raise UserError(f"{condition!r} is not a condition: {hint}") from None
    except (ValueError, MemoryError, RecursionError):
        raise UserError(f"{condition!r} is not a condition") from None
    named = {name: column for name, column in (symbols or {}).items() if name not in table}
    return _Condition(table=table, quoted={**named, **quoted}, rows=n_rows(table)).truth(body, 0)


def map_columns(
    table: Table, given: Mapping[str, str]
) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    """The table with derived columns, and the column of every symbol that has one.

    A symbol stands for the column it is given; else, in order, for the column of its own name and its default of
    ``results.columns.COLUMNS``. Where no column is called what is given, a formula or a condition of columns and
    other symbols is (``1/num_experts``, ``6*N*D``, ``router == 'Hash'``) and becomes one, or a number, which every
    row then has. Raises ``UserError`` for neither, and for symbols that are defined by each other.
    """
    columns = {s: c for s, c in COLUMNS.items() if c in table} | {s: s for s in COLUMNS if s in table}
    out = {name: np.asarray(column) for name, column in table.items()}
    left = {symbol: _plain(source) for symbol, source in given.items()}
    columns = {symbol: column for symbol, column in columns.items() if symbol not in left}
    while left:
        ready = [s for s in left if not (_names(left[s], table) & set(left)) - {s, *table}]
        if not ready:
            raise UserError(f"--map: {' and '.join(left)} are defined by each other")
        for symbol in ready:
            source = left.pop(symbol)
            if source not in out and source in columns:
                source = columns[source]
            if source not in out:
                if not _FORMULA & set(source) and not source[:1].isdigit():
                    raise UserError(
                        f"the table has no column {source!r} for {symbol}{nearest(source, table)}"
                    )
                source, out[source] = _derived(out, source, columns, table)
            columns[symbol] = source
    return out, columns


def second_choices(table: Table, given: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for each symbol that the caller maps to nothing and that two columns could stand for."""
    return tuple(
        f"{symbol} is the column {symbol!r}; --map {symbol}={column} takes the column {column!r}"
        for symbol, column in COLUMNS.items()
        if symbol not in given and symbol in table and column in table
    )


def derive(table: Table, formula: str, symbols: Mapping[str, str] | None = None) -> NDArray[np.float64]:
    """A column computed from others by a formula of ``tree`` or a condition of ``satisfies`` (1 and 0), [rows].

    ``symbols`` maps further names to columns. Raises ``UserError`` for unknown columns.
    """
    return _derived(table, formula, symbols or {}, table)[1]


def _derived(
    table: Table, formula: str, symbols: Mapping[str, str], original: Table
) -> tuple[str, NDArray[np.float64]]:
    """The formula in terms of the ``original`` columns alone, and its values."""
    known = [*(name for name in table if name.isidentifier()), *symbols]
    try:
        root = tree.parse(formula, known)
    except UserError:
        if not _CONDITION.search(formula):
            raise
        return formula, satisfies(table, formula, symbols).astype(np.float64)
    for name in tree.coefficient_names(root):
        odd = next((c for c in table if not c.isidentifier() and c in formula), None)
        hint = f"; put odd names in backquotes: `{odd}`" if odd else nearest(name, table)
        raise UserError(f"{formula!r}: the table has no column {name!r}{hint}")
    columns = {
        name: numeric(table, _present(table, name if name in table else symbols.get(name, name)))
        for name in tree.symbol_names(root)
    }
    value = tree.evaluate(root, columns, np.zeros((1, 0)), {}, order=0).value
    inside = {name: symbols[name] for name in columns if name not in table and name in symbols}
    words = (
        formula
        if not inside
        else tree.unparse(root, names={n: _as_formula(c, original) for n, c in inside.items()})
    )
    return words, np.array(np.broadcast_to(value, (1, n_rows(table)))[0])


def _present(table: Table, name: str) -> str:
    if name not in table:
        raise UserError(f"the table has no column {name!r}{nearest(name, table)}")
    return name


def _as_formula(column: str, original: Table) -> str:
    """A column, or the formula it was derived by, as part of another formula."""
    if column in original:
        return column if column.isidentifier() else f"`{column}`"
    return f"({column})"


def _plain(source: str) -> str:
    """A column's name out of its backquotes; anything else as it is."""
    inside = source[1:-1]
    return inside if source[:1] == source[-1:] == "`" and "`" not in inside and inside else source


def _names(source: str, table: Table) -> set[str]:
    """Identifiers in a formula, those in quotes aside; nothing for a column's name."""
    return set() if source in table else set(_IDENTIFIER.findall(_QUOTED.sub(" ", source)))


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
            separator, decimal = ("\t", ".") if kind == ".tsv" else _separators(path)
            return pyarrow.csv.read_csv(
                path,
                parse_options=pyarrow.csv.ParseOptions(delimiter=separator),
                convert_options=pyarrow.csv.ConvertOptions(decimal_point=decimal),
            )


def _separators(path: Path) -> tuple[str, str]:
    """What separates the cells of a CSV and the digits of its numbers: a semicolon or a tab where the header has no
    comma.

    Beside semicolons, numbers such as 4,12 have a decimal comma, unless others have a point.
    """
    import gzip

    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rb") as file:
        header, *lines = file.read(_SNIFFED).decode("utf-8-sig", errors="replace").splitlines() or [""]
    plain = re.sub(r'"[^"]*"', "", header)
    separator = "," if "," in plain else next((c for c in ";\t" if c in plain), ",")
    if separator != ";":
        return separator, "."
    cells = [cell.strip().strip('"') for line in lines[:-1] or lines for cell in line.split(";")]
    has_comma = any(_DECIMAL_COMMA.fullmatch(cell) for cell in cells)
    has_point = any(re.fullmatch(r"-?\d+\.\d+(?:[eE][-+]?\d+)?", cell) for cell in cells)
    return separator, "," if has_comma and not has_point else "."


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
    numbers: NDArray[Any] | None = None
    """Of text whose every cell is a number with a suffix, as in 12B."""

    def as_number(self) -> "_Value | None":
        if not self.is_text:
            return self
        return None if self.numbers is None else _Value(self.numbers, self.missing, False, self.words)


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
            case ast.Constant(value=bool() as holds):
                return self.spread(np.array([holds]))
            case ast.Name():
                return self.column_of_truths(source)
        raise UserError(f"{self.quote(source)} is not a condition: compare it with something")

    def column_of_truths(self, source: ast.Name) -> Mask:
        """A column that holds truth values, [rows]; a missing one does not hold."""
        value = self.value(source).as_number()
        if value is None or not np.isin(value.cells[~value.missing], (0.0, 1.0)).all():
            raise UserError(f"{self.quote(source)} holds other than truth values: compare it with something")
        return self.spread(np.where(value.missing, False, value.cells == 1.0))

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
            first, second = left.as_number(), right.as_number()
            if first is None or second is None:
                one, other = (left, right) if left.is_text else (right, left)
                raise UserError(f"{one.words} is text and {other.words} a number: they cannot be compared")
            left, right = first, second
        known = ~(left.missing | right.missing)
        return self.spread(np.where(known, holds(left.cells, right.cells), holds is operator.ne))

    def value(self, source: ast.expr) -> _Value:
        if isinstance(source, (ast.BinOp, ast.Call)) or (
            isinstance(source, ast.UnaryOp) and not isinstance(source.operand, ast.Constant)
        ):
            return self.formula(source)
        if not isinstance(source, ast.Name):
            return self.constant(source)
        name = self.quoted.get(source.id, source.id)
        if name not in self.table:
            raise UserError(f"the table has no column {name!r}{nearest(name, self.table)}")
        try:
            numbers = numeric(self.table, name)
        except UserError:
            numbers = None
        if numbers is not None and np.asarray(self.table[name]).dtype != object:
            return _Value(numbers, np.isnan(numbers), False, f"column {name!r}")
        words = text(self.table, name)
        if numbers is not None and not any(isinstance(cell, str) for cell in self.table[name].tolist()):
            return _Value(numbers, np.isnan(numbers), False, f"column {name!r}")
        return _Value(words, words == "", True, f"column {name!r}", numbers)

    def formula(self, source: ast.expr) -> _Value:
        """Arithmetic of columns, [rows]; missing where a cell that it reads is, or where it has no value."""
        root = tree.read_node(source, [n for n in self.table if n.isidentifier()], self.quoted)
        for name in tree.coefficient_names(root):
            raise UserError(f"the table has no column {name!r}{nearest(name, self.table)}")
        columns = {n: numeric(self.table, _present(self.table, n)) for n in tree.symbol_names(root)}
        cells = tree.evaluate(root, columns, np.zeros((1, 0)), {}, order=0).value[0]
        return _Value(cells, np.isnan(cells), False, self.quote(source))

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
