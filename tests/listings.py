"""Listings in docs/ that a command printed: ``python tests/listings.py`` runs the commands and writes them anew.

A listing is an indented block below ``<!-- umscale … prints -->``, or ``<!-- umscale … prints, slowly -->`` where the
command takes longer than a test should; ``--quick`` leaves those as they are. What commands print is cut nowhere, at
140 columns.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
COLUMNS = 140
_LISTING = re.compile(
    r"<!-- (umscale [^\n]*?) prints(, slowly)? -->\n\n((?: {4}[^\n]*\n|\n)*? {4}[^\n]*\n)(?=\n?(?! {4})\S|\n\n|\n?\Z)"
)
_INDENT = "    "


@dataclass(frozen=True, slots=True)
class Listing:
    """A command and what a page says that it prints."""

    page: str
    command: str
    slow: bool
    text: str


def listings() -> list[Listing]:
    """Return the listings of all pages."""
    return [
        Listing(page.name, found[1], bool(found[2]), _dedented(found[3]))
        for page in DOCS
        for found in _LISTING.finditer(page.read_text(encoding="utf-8"))
    ]


def printed(command: str) -> str:
    """Run a command where a reader would, in a folder without stores of its own; return what it prints.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "docs").symlink_to(ROOT / "docs")
        start = [sys.executable, "-c", "from umscale_cli.main import main; main()"]
        found = subprocess.run(
            [*start, *shlex.split(command)[1:]],
            cwd=folder,
            env={**os.environ, "COLUMNS": str(COLUMNS)},
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
    return "\n".join(line.rstrip() for line in found.stdout.strip("\n").split("\n"))


def _dedented(block: str) -> str:
    return "\n".join(line.removeprefix(_INDENT) for line in block.strip("\n").split("\n"))


def _anew(found: re.Match[str]) -> str:
    if found[2] and "--quick" in sys.argv:
        return found[0]
    lines = printed(found[1]).split("\n")
    block = "".join(f"{_INDENT}{line}".rstrip() + "\n" for line in lines)
    return f"<!-- {found[1]} prints{found[2] or ''} -->\n\n{block}"


if __name__ == "__main__":
    for page in DOCS:
        before = page.read_text(encoding="utf-8")
        after = _LISTING.sub(_anew, before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"{page.name}: written anew")
