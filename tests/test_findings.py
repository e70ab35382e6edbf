"""What docs/findings.md and docs/learning-rates.md quote is what a command prints from the records today."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from umscale_cli.main import app

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("findings.md", "learning-rates.md")
COMMAND = re.compile(r"`umscale (fit [^`]+|runs [^`]+)`")
MEASURED = re.compile(r"(?<![\w.])[+−-]?\d+\.\d{3,}(?![\w.])")
PAPER = {"1.752", "1.835", "1.066", "1.803", "1.769", "1.855", "1.100", "1.770"}
"""Losses that arXiv 2508.18756 prints."""


def printed(command: str) -> str:
    """What a command prints on stdout, as wide as it likes."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        app(shlex.split(command), standalone_mode=False)
    return out.getvalue()


@pytest.mark.parametrize("page", PAGES)
def test_every_measured_number_is_printed_by_a_command_on_the_page(page, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    text = (DOCS / page).read_text(encoding="utf-8")
    commands = sorted(set(COMMAND.findall(text)))
    assert commands
    shown = "\n".join(printed(command) for command in commands)
    known = {number.lstrip("+-") for number in re.findall(r"[+-]?\d+\.\d{3,}", shown)}
    prose = re.sub(
        r"(?m)^    .*$|`[^`]*`|\b\d{4}\.\d{5}\b", "", text
    )  # without formulas, commands and arXiv numbers
    quoted = {number.lstrip("+−-") for number in MEASURED.findall(prose)}
    assert len(quoted) > 5
    assert quoted - known - PAPER == set()
