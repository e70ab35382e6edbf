"""How commands speak: data on stdout, progress on stderr, ``--json`` for machines."""

import codecs
import contextlib
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale.escape import plain_lines
from umscale.say.numbers import count, duration, number, percent

if TYPE_CHECKING:
    from umscale.say.blocks import Block

__all__ = [
    "EXIT_FAILED",
    "EXIT_PARTLY",
    "JsonFlag",
    "SetOption",
    "StoreOption",
    "close_stdout",
    "count",
    "duration",
    "err",
    "finite",
    "note",
    "number",
    "out",
    "percent",
    "plain_table",
    "prepare_streams",
    "print_json",
    "show",
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
UNWATCHED_WIDTH = 160
"""Columns of tables where no terminal says how many it has."""


def out() -> Any:
    """Return the Rich console for data (stdout); wide enough for tables when it is not a terminal."""
    return _console(stderr=False)


def err() -> Any:
    """Return the Rich console for progress and remarks (stderr)."""
    return _console(stderr=True)


def _console(stderr: bool) -> Any:
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        """Shows text from files without what would steer the terminal: all strings pass through here."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(plain_lines(text), **options)

    watched = (sys.stderr if stderr else sys.stdout).isatty() or os.environ.get("COLUMNS", "").isdecimal()
    width = None if watched else UNWATCHED_WIDTH
    return PlainConsole(
        stderr=stderr, soft_wrap=False, width=width, highlight=False, markup=False, emoji=False
    )


def note(text: str) -> None:
    """Write one line to stderr; that nobody can read it any more is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        print(plain_lines(text), file=sys.stderr, flush=True)


def show(blocks: "Sequence[Block]", *, folds: bool = True) -> None:
    """Write blocks to stdout after an empty line, as wide as the terminal; ``folds`` shows what a page folds away."""
    from umscale.render.terminal import to_text

    if blocks:
        console = out()
        text = to_text(blocks, console.width, bold=console.is_terminal and not console.no_color, folds=folds)
        print(f"\n{text}")


GAP = 2
"""Spaces between the columns of a table."""


def column_width(name: str, rows: "Sequence[Mapping[str, str]]") -> int:
    """Return how wide a column of that name is if nothing of it is cut."""
    return max([len(name), *(len(row[name]) for row in rows)])


def note_left_out(columns: "Sequence[str]") -> None:
    """Say which columns of a table had no room; nothing where all had."""
    if columns:
        note(f"{', '.join(columns)} left out for want of width; --json has all")


def plain_table(title: str, columns: "Mapping[str, str]") -> Any:
    """Return a table without lines; ``columns`` maps names to ``left`` or ``right``."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for name, side in columns.items():
        justify: Any = side
        table.add_column(name, justify=justify)
    return table


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


# ---------------------------------------------------------------------------------------------------------
# Streams as they are found


_ASCII = str.maketrans(
    {
        "–": "-", "—": "-", "−": "-", "×": "x", "·": ".", "…": "...", "²": "^2", "≤": "<=", "≥": ">=", "→": "->",
        "±": "+-", "≈": "~", "ρ": "rho", "‘": "'", "’": "'", "“": '"', "”": '"', "•": "*", "é": "e", "\u00a0": " ",
    }
)  # fmt: skip
_SPELLED = "umscale-spelled"


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Write what a stream's encoding lacks in ASCII."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode(), error.end


class Stdout(io.TextIOWrapper):
    """Stdout that remembers why it could not be written: a second attempt need not fail again."""

    lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write ``text``."""
        try:
            return super().write(text)
        except OSError as error:
            self.lost = error
            raise

    def flush(self) -> None:
        """Write what is held back."""
        try:
            super().flush()
        except OSError as error:
            self.lost = error
            raise


def prepare_streams() -> None:
    """Make stdout and stderr such that whatever is shown can be written, in the encoding that the user has.

    A stream that was closed becomes one that takes everything: a file opened later must not get its number.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for name, fileno in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fileno, "w", encoding="utf-8", closefd=False))
    codecs.register_error(_SPELLED, _spell)
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        encoding, lines = sys.stdout.encoding, sys.stdout.line_buffering
        sys.stdout = sys.__stdout__ = Stdout(sys.stdout.detach(), encoding=encoding, line_buffering=lines)  # type: ignore[misc]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SPELLED)


def close_stdout() -> None:
    """Drop what stdout still holds and cannot write, so that the interpreter does not try again."""
    with contextlib.suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
