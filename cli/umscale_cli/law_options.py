"""How `umscale fit` reads laws, and options such as ``NAME=VALUE``, from a command line."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from umscale_cli.console import note

if TYPE_CHECKING:
    from umscale.laws.forms import Law
    from umscale.results.table import Table

_HOLD_OUT_AXES = ("N", "N_s", "D", "m", "rho", "experts")
"""Symbols that may be mapped although no law reads them: rows are held out along them."""

_OPERATORS = frozenset("+-*/()")


def read_laws(
    text: str, table: "Table", columns: Mapping[str, str], mapping: Mapping[str, str]
) -> "list[Law]":
    """Read the laws of --law: names are looked up; ``NAME: FORMULA`` and what holds an operator is a formula."""
    from umscale.errors import UserError, nearest
    from umscale.laws.expression import parse_law
    from umscale.laws.forms import LAWS, law_named

    found: list[Law] = []
    for one in (part.strip() for part in text.split(",")):
        if not _OPERATORS & set(one):
            found.append(law_named(one))
            continue
        if not columns:
            raise UserError(f"say what the symbols of {one!r} stand for: --map N=COLUMN,...")
        name, colon, formula = (part.strip() for part in one.partition(":"))
        if colon and name in LAWS:
            raise UserError(
                f"{name!r} is the name of a law that is here already: call {formula!r} something else"
            )
        law = parse_law(formula, columns, name) if colon else parse_law(one, columns)
        for name in law.coefficients:
            if name in table:
                note(f"note: {name} is a coefficient of {one!r}; --map {name}={name} makes it the column")
        found.append(law)
    read = {symbol for law in found for symbol in law.symbols}
    for symbol in mapping:
        if symbol not in read and symbol not in _HOLD_OUT_AXES:
            raise UserError(
                f"--map {symbol}={mapping[symbol]}: no law reads {symbol!r}{nearest(symbol, read)}"
            )
    return found


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
