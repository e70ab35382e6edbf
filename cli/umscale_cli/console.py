"""How commands speak: data on stdout, progress on stderr, ``--json`` for machines."""

import json
import math
import sys
from typing import Annotated, Any

import typer

from umscale.say.numbers import count, duration, number, percent

__all__ = [
    "EXIT_FAILED",
    "EXIT_PARTLY",
    "JsonFlag",
    "SetOption",
    "StoreOption",
    "count",
    "duration",
    "err",
    "finite",
    "note",
    "number",
    "out",
    "percent",
    "print_json",
]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON on stdout.")]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="DIR", help="Results store; default ./umscale-runs/STUDY.", show_default=False
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the study, as in train.lr=1e-3; repeatable."
    ),
]

EXIT_FAILED = 1
EXIT_PARTLY = 3


def out() -> Any:
    """Return the Rich console for data (stdout); wide enough for tables when it is not a terminal."""
    from rich.console import Console

    return Console(soft_wrap=False, width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)


def err() -> Any:
    """Return the Rich console for progress and remarks (stderr)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, width=None if sys.stderr.isatty() else 160)


def note(text: str) -> None:
    """Write one plain line to stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Write JSON to stdout; NaN and infinities become null."""
    print(json.dumps(finite(value), indent=2, allow_nan=False))


def finite(value: Any) -> Any:
    """Replace what JSON cannot hold: non-finite floats become None, NumPy scalars plain numbers."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
