"""A page as Markdown, with its figures in a folder beside it."""

import re

from umscale.escape import plain_lines
from umscale.say.blocks import (
    Block,
    Bullets,
    Fold,
    Grid,
    Heading,
    Listing,
    Page,
    Paragraph,
    Picture,
    Verdict,
    spans,
)

_MARKDOWN = re.compile(r"[\\*<>|$#~&]|(?<!\w)_|_(?!\w)|(?<=\])[(\[:]")
"""What Markdown would read; underscores inside words are safe, and so are brackets that nothing follows."""


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


def _markdown(blocks: tuple[Block, ...], figures: str, numbers: dict[str, int]) -> list[str]:
    lines: list[str] = []
    for block in blocks:
        match block:
            case Paragraph():
                lines += [_inline(block.text), ""]
            case Verdict():
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
        f"`{part.replace('|', chr(92) + '|')}`" if code else _plain(part) for part, code in spans(text)
    )


def _plain(text: str) -> str:
    """Text that Markdown reads as it is, in one line."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", " ".join(text.split()) if "\n" in text else text)
