"""A page of text, tables and figures, and how it is written: one HTML file that needs nothing else, or Markdown.

Text may hold `code` between backticks and nothing else that is read: all of it is escaped, for it comes from stores.
"""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from umscale.plain import plain_lines
from umscale.render.vector import inline

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

TEMPLATE = "page.html.jinja"
SIGNATURE = "Written by `umscale report`"
"""What a page's footer says of where it comes from."""
_MARKDOWN = re.compile(r"[\\*<>|$#~&]|(?<!\w)_|_(?!\w)|(?<=\])[(\[:]")
"""What Markdown would read; underscores inside words are safe, and so are brackets that nothing follows."""
_INTERVAL = re.compile(r"\[[−\d.∞]+%?, [−\d.∞]+%?\]")
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
class Answer:
    """The answer to the page's question for one part of the study."""

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


Block = Paragraph | Answer | Bullets | Grid | Picture | Listing | Heading | Fold


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
    def answers(self) -> tuple[Answer, ...]:
        """The answers at the page's head."""
        return tuple(block for block in self.lead if isinstance(block, Answer))

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


def to_html(page: Page) -> str:
    """Write a page as one HTML file with style and figures inside."""
    numbers = {picture.name: i for i, picture in enumerate(page.pictures, 1)}
    return plain_lines(_template().render(page=page, numbers=numbers)) + "\n"


def to_markdown(page: Page, figures: str) -> str:
    """Write a page as Markdown that takes its figures from the folder ``figures``, relative to it."""
    lines = [f"# {_plain(page.title)}", ""]
    if page.subtitle:
        lines += [_inline(page.subtitle), ""]
    lines += [f"**Question.** {_inline(page.question)}", ""]
    numbers = {picture.name: i for i, picture in enumerate(page.pictures, 1)}
    lines += _markdown(page.lead, figures, numbers)
    for section in page.sections:
        lines += [f"## {_plain(section.title)}", "", *_markdown(section.blocks, figures, numbers)]
    return plain_lines("\n".join([*lines, "---", "", _inline(page.footer), ""]))


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("umscale.render", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "spans": _spans,
        "picture": _drawn,
        "head": _breakable,
        "kind": lambda block: type(block).__name__,
    }
    return environment.get_template(TEMPLATE)


def _spans(text: str) -> "Markup":
    """Text with its `code` marked up, everything else escaped."""
    from markupsafe import Markup, escape

    parts = [
        Markup("<code>{}</code>").format(part)
        if code
        else Markup(_INTERVAL.sub(r'<span class="n">\g<0></span>', str(escape(part))))
        for part, code in _split(text)
    ]
    return Markup("").join(parts)


def _breakable(text: str) -> "Markup":
    """A column's name, which may break after an underscore or a dot."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[_.])(?=\w)", "<wbr>", str(escape(text))))


def _drawn(picture: Picture) -> "Markup":
    """A figure's element; the vector's names are its own on the page."""
    from markupsafe import Markup

    if picture.png:
        data = base64.b64encode(picture.png).decode()
        return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(picture.title, data)
    return Markup(inline(picture.svg, picture.name, picture.title))


def _markdown(blocks: tuple[Block, ...], figures: str, numbers: dict[str, int]) -> list[str]:
    lines: list[str] = []
    for block in blocks:
        match block:
            case Paragraph():
                lines += [_inline(block.text), ""]
            case Answer():
                lines += [f"> **{_plain(block.verdict)}.** {_inline(block.text)}", ""]
            case Bullets():
                lines += [*(f"- {_inline(item)}" for item in block.items), ""]
            case Heading():
                lines += [f"### {_plain(block.text)}", ""]
            case Listing():
                lines += [*_fenced(block), ""]
            case Picture():
                title = f"Figure {numbers[block.name]}: {_plain(block.title)}"
                lines += [
                    f"![{title}]({figures}/{block.file[0]})",
                    "",
                    f"*{title}.* {_inline(block.caption)}",
                    "",
                ]
            case Grid():
                lines += _grid(block)
            case Fold():
                inside = _markdown(block.blocks, figures, numbers)
                lines += [
                    f"<details><summary>{_plain(block.summary)}</summary>",
                    "",
                    *inside,
                    "</details>",
                    "",
                ]
    return lines


def _grid(table: Grid) -> list[str]:
    def row(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(_inline(cell) for cell in cells)} |"

    rule = " | ".join("---:" if side == "r" else "---" for side in table.sides)
    lines = [f"**{_inline(table.caption)}**", ""] if table.caption else []
    lines += [row(table.head), f"| {rule} |", *map(row, table.rows), ""]
    for note in table.notes:
        lines += [_inline(note), ""]
    return lines


def _fenced(block: Listing) -> list[str]:
    """Lines between fences longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", block.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{block.language}", *block.text.rstrip("\n").split("\n"), fence]


def _inline(text: str) -> str:
    return "".join(
        f"`{part.replace('|', chr(92) + '|')}`" if code else _plain(part) for part, code in _split(text)
    )


def _plain(text: str) -> str:
    """Text that Markdown reads as it is, in one line."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", " ".join(text.split()) if "\n" in text else text)


def _split(text: str) -> Iterator[tuple[str, bool]]:
    """The parts of a text, each with whether it is code; a backtick without a partner is dropped."""
    for i, part in enumerate(text.split("`")):
        if part:
            yield part, i % 2 == 1
