"""What is said, before anybody knows where: paragraphs, verdicts, tables, figures, and pages of them.

Text may hold `code` between backticks and nothing else that is read: renderers escape all of it, for it comes from
stores.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SIGNATURE = "Written by `umscale report`"
"""What a page's footer says of where it comes from."""
_WIDE = 10
"""Columns from which a table is set smaller."""
_LONG = 90
"""Characters of a table's longest cells side by side, above which it is set smaller too."""
_SHORT = 16
"""Rows up to which a table is not divided between printed pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer to a question for one part of a study, in a sentence or two."""

    verdict: str
    """A word or two, as in ``supported``."""
    tone: str
    """``yes``, ``no`` or ``open``: the colour of its margin."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bullets:
    """A list of short texts."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table; ``sides`` says for each column whether it is aligned ``l``eft or ``r``ight."""

    caption: str
    head: tuple[str, ...]
    sides: str
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def short(self) -> bool:
        """Whether it is kept on one page when printed."""
        return len(self.rows) <= _SHORT

    @property
    def wide(self) -> bool:
        """Whether it has many columns, or long cells."""
        longest = sum(max(map(len, column)) for column in zip(*self.rows, strict=True))
        return len(self.head) >= _WIDE or (len(self.head) >= _WIDE // 2 and longest > _LONG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure: vector, or pixels where vectors would be too many."""

    name: str
    """A file's name without suffix."""
    title: str
    caption: str
    svg: str = ""
    png: bytes = b""

    @property
    def file(self) -> tuple[str, bytes]:
        """Name and content of the figure as a file of its own."""
        return (f"{self.name}.png", self.png) if self.png else (f"{self.name}.svg", self.svg.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Lines of a file or a terminal."""

    text: str
    language: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """What a page shows when asked for."""

    summary: str
    blocks: "tuple[Block, ...]"


Block = Paragraph | Verdict | Bullets | Grid | Picture | Listing | Heading | Fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page with a heading."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """What links to the section name it by."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A report."""

    title: str
    subtitle: str
    question: str
    lead: tuple[Block, ...]
    """The answer, before everything else."""
    sections: tuple[Section, ...]
    footer: str

    @property
    def answers(self) -> tuple[Verdict, ...]:
        """The answers at the page's head."""
        return tuple(block for block in self.lead if isinstance(block, Verdict))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All figures, in order."""
        return tuple(self._pictures(self.lead)) + tuple(
            picture for section in self.sections for picture in self._pictures(section.blocks)
        )

    def _pictures(self, blocks: tuple[Block, ...]) -> Iterator[Picture]:
        for block in blocks:
            if isinstance(block, Picture):
                yield block
            elif isinstance(block, Fold):
                yield from self._pictures(block.blocks)


def noted(statements: Sequence[str]) -> tuple[Block, ...]:
    """Statements that an answer makes of itself, as blocks; none where there are none."""
    return (Bullets(items=tuple(statements)),) if statements else ()


def spans(text: str) -> Iterator[tuple[str, bool]]:
    """The parts of a text, each with whether it is code; a backtick without a partner is dropped."""
    for i, part in enumerate(text.split("`")):
        if part:
            yield part, i % 2 == 1
