"""What docs/findings.md and docs/learning-rates.md quote is what the commands of the same section print today."""

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
MEASURED = re.compile(r"(?<![\w.])-?\d+\.\d{3,}(?![\w.])")
INTERVAL = re.compile(r"-?\d+\.\d+ \[-?[\d.]+, -?[\d.]+\]")
"""A value with its interval: ``0.0123 [0.0101, 0.0145]``."""
PAPER = {"1.752", "1.835", "1.066", "1.803", "1.769", "1.855", "1.100", "1.770"}
"""Losses that arXiv 2508.18756 prints."""


def printed(command: str) -> str:
    """What a command prints on stdout, as wide as it likes."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        app(shlex.split(command), standalone_mode=False)
    return out.getvalue()


def plain(text: str) -> str:
    """One way to write a sign and to part a value from its interval, which tables give a column each; no bold."""
    return re.sub(r"\s+", " ", text.replace("**", "").replace("−", "-").replace("+", ""))


def sections() -> list[tuple[str, str]]:
    """Each section of the pages that quotes a measurement: (page and heading, its text)."""
    found = []
    for page in PAGES:
        for section in re.split(r"(?m)^## ", (DOCS / page).read_text(encoding="utf-8")):
            # Without formulas and arXiv numbers.
            prose = re.sub(r"(?m)^    .*$|\b\d{4}\.\d{5}\b", "", section)
            if MEASURED.search(re.sub(r"`[^`]*`", "", prose)):
                found.append((f"{page}: {prose.splitlines()[0]}", prose))
    return found


@pytest.mark.parametrize(("heading", "text"), sections(), ids=[heading for heading, _ in sections()])
def test_what_a_section_quotes_is_printed_by_its_commands(heading, text, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    commands = sorted(set(COMMAND.findall(text)))
    assert commands, "a section that quotes measurements names the command that prints them"
    shown = plain("\n".join(printed(command) for command in commands))
    quoted = plain(re.sub(r"`[^`]*`", "", text))
    intervals = set(INTERVAL.findall(quoted))
    assert intervals - set(INTERVAL.findall(shown)) == set()
    known = {number.lstrip("-") for number in MEASURED.findall(shown)}
    assert {number.lstrip("-") for number in MEASURED.findall(quoted)} - known - PAPER == set()
