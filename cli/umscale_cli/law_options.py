"""How `umscale fit` reads laws, and options such as ``NAME=VALUE``, from a command line."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from umscale_cli.console import note

if TYPE_CHECKING:
    from umscale.laws.compare import Recipe
    from umscale.laws.forms import Law
    from umscale.results.table import Table

_HOLD_OUT_AXES = ("N", "N_s", "D", "m", "rho", "experts", "C", "r")
"""Symbols that may be mapped although no law reads them: rows are held out along them, or a figure draws them."""

_OPERATORS = frozenset("+-*/()")


def read_laws(
    text: str,
    table: "Table",
    columns: dict[str, str],
    mapping: Mapping[str, str],
    pinned: Collection[str] = (),
    condition: str | None = None,
) -> "list[Law]":
    """Read the laws of --law: names are looked up; ``NAME: FORMULA`` and what holds an operator is a formula.

    A name that must be a column, as in ``size**-a``, or that is one of numbers in the table, joins ``columns``.
    ``pinned`` are the coefficients whose value is given; ``condition`` is --where, which may read symbols too.
    """
    from umscale import formulas
    from umscale.errors import UserError, nearest
    from umscale.laws.expression import must_be_columns, parse_law
    from umscale.laws.forms import LAWS, law_named

    found: list[Law] = []
    for one in split(text):
        if not _OPERATORS & set(one):
            found.append(law_named(one))
            continue
        name, colon, formula = (part.strip() for part in one.partition(":"))
        if colon and name in LAWS:
            raise UserError(
                f"{name!r} is the name of a law that is here already: call {formula!r} something else"
            )
        formula, name = (formula, name) if colon else (one, "")
        lost = [n for n in must_be_columns(formulas.parse(formula, columns)) if n not in pinned]
        columns |= {n: n for n in lost if n in table}
        for n in lost:
            if n not in table:
                raise UserError(
                    f"{one!r}: the table has no column {n!r}, and no fit can tell a coefficient there; "
                    f"--map {n}=COLUMN says which it is{nearest(n, table)}"
                )
        if not columns:
            raise UserError(f"say what the symbols of {one!r} stand for: --map N=COLUMN,...")
        law = parse_law(formula, columns, name)
        if own := [n for n in law.coefficients if n not in pinned and _varies(table, n)]:
            columns |= {n: n for n in own}
            law = parse_law(formula, columns, name)
            for n in own:
                note(
                    f"note: {n} in {one!r} is the table's column of that name; a coefficient needs another name"
                )
        for name in law.symbols:
            if name not in columns and name not in table:  # in backquotes
                raise UserError(f"the table has no column {name!r}{nearest(name, table)}")
        found.append(law)
    _check_mapping(mapping, found, condition)
    return found


def _check_mapping(mapping: Mapping[str, str], laws: "Sequence[Law]", condition: str | None) -> None:
    """Raise ``UserError`` for a symbol of --map that nothing reads."""
    from umscale.errors import UserError, nearest

    read = {symbol for law in laws for symbol in law.symbols}
    used = {
        name
        for source in (*mapping.values(), condition or "")
        for name in re.findall(r"[A-Za-z_]\w*", source)
    }
    for symbol in mapping:
        if symbol not in read | used and symbol not in (*_HOLD_OUT_AXES, "loss", "--weight", "--error"):
            raise UserError(
                f"--map {symbol}={mapping[symbol]}: no law reads {symbol!r}{nearest(symbol, read)}"
            )


def _varies(table: "Table", name: str) -> bool:
    """Whether the table has numbers of that name, and not one only."""
    import numpy as np

    values = table.get(name)
    return (
        values is not None and values.dtype.kind in "iuf" and len(np.unique(values[np.isfinite(values)])) > 1
    )


def mapping_of(given: Sequence[str] | None) -> dict[str, str]:
    """Read --map: ``SYMBOL=COLUMN``, several apart by commas or by repeating the option."""
    return dict(pairs([one for part in given or () for one in split(part)], "--map", "SYMBOL=COLUMN"))


def weights_of(weight: str | None, error: str | None) -> dict[str, str]:
    """What --weight and --error add to the mapping, under names that no symbol has."""
    return {name: source for name, source in (("--weight", weight), ("--error", error)) if source}


def weighted(recipe: "Recipe", columns: "dict[str, str]") -> "Recipe":
    """The recipe with the columns that --weight and --error stand for, which leave ``columns``."""
    return replace(recipe, weight=columns.pop("--weight", None), error=columns.pop("--error", None))


def with_own_coefficients(
    laws: "Sequence[Law]",
    names: Sequence[str],
    by: Sequence[str],
    table: "dict[str, Any]",
    columns: "dict[str, str]",
) -> "list[Law]":
    """Laws with own values of ``names`` for each group of --by; ``table`` and ``columns`` get the groups' columns."""
    from umscale.errors import UserError, nearest
    from umscale.laws.by_group import group_symbols, with_own
    from umscale.laws.sections import parts_of
    from umscale.results.source import satisfies
    from umscale.results.table import text

    if not by:
        raise UserError("--each gives every group of --by its own coefficient: add --by COLUMN")
    for name in by:
        if name not in table:
            raise UserError(f"the table has no column {name!r}{nearest(name, table)}")
    conditions = {}
    for labels, part in parts_of(table, tuple(by)):
        quoted = (f"`{n}` == {_constant(table[n], str(text(part, n)[0]))}" for n in by)
        conditions[", ".join(labels)] = " and ".join(quoted)
    symbols = group_symbols(list(conditions))
    for label, symbol in symbols.items():
        table[conditions[label]] = satisfies(table, conditions[label]).astype(float)
        columns[symbol] = conditions[label]
    return [with_own(law, names, symbols) for law in laws]


def _constant(column: Any, cell: str) -> str:
    """A cell as a condition compares with it."""
    return cell if column.dtype != object else repr(cell)


def split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"`":
            quote = c
        else:
            depth += (c in "([{") - (c in ")]}")
        if c == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts]


def pairs(given: Sequence[str] | None, option: str, form: str = "NAME=VALUE") -> list[tuple[str, str]]:
    """Split ``NAME=VALUE`` entries of a repeatable option."""
    from umscale.errors import UserError

    found: list[tuple[str, str]] = []
    for one in given or ():
        name, equals, value = (part.strip() for part in one.partition("="))
        if not (name and equals and value):
            raise UserError(f"{option} {one!r} must be {form}")
        if form != "NAME=NAME" and name in dict(found):
            raise UserError(f"{option} names {name!r} twice")
        found.append((name, value))
    return found


def ends(text: str, name: str) -> tuple[float, float]:
    """Read ``LOW:HIGH``, either of which may be left out."""
    from umscale.errors import UserError
    from umscale.spec import quantity

    low, colon, high = text.partition(":")
    if not colon:
        raise UserError(f"--bounds {name}={text} must be {name}=LOW:HIGH")
    option = f"--bounds {name}"
    return (
        quantity(low, option) if low.strip() else float("-inf"),
        quantity(high, option) if high.strip() else float("inf"),
    )


def choice(given: str | None, option: str, choices: Any) -> Any:
    """Check a value against the members of a ``Literal``."""
    from umscale.errors import UserError

    if given is not None and given not in get_args(choices):
        raise UserError(f"{option} {given!r} must be one of {', '.join(get_args(choices))}")
    return given
