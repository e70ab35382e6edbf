"""Blocks as lines of text for a terminal of any width; what would steer it is escaped."""

import textwrap
from collections.abc import Iterator, Sequence

from umscale.escape import plain
from umscale.say.blocks import Block, Bullets, Fold, Grid, Heading, Listing, Paragraph, Verdict, spans

_GAP = 2
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


def to_text(blocks: Sequence[Block], width: int, *, bold: bool = False, folds: bool = True) -> str:
    """Write blocks as lines of at most ``width`` columns where their words allow it; figures are left out.

    Args:
        bold: whether the terminal knows ANSI's bold.
        folds: show what a page folds away.
    """
    lines = list(_lines(blocks, width, bold, folds))
    return "\n".join(lines[1:] if lines and not lines[0] else lines)


def _lines(blocks: Sequence[Block], width: int, bold: bool, folds: bool) -> Iterator[str]:
    """Every block after an empty line."""

    def strong(text: str) -> str:
        return f"{_BOLD}{text}{_PLAIN}" if bold else text

    for block in blocks:
        match block:
            case Paragraph():
                yield from ("", *_wrapped(block.text, width))
            case Verdict():
                yield from ("", *map(strong, _wrapped(block.verdict, width)))
                yield from _wrapped(block.text, width, "  ")
            case Bullets():
                yield ""
                for item in block.items:
                    yield from _wrapped(item, width, "  ", "- ")
            case Heading():
                yield from ("", *map(strong, _wrapped(block.text, width)))
            case Listing():
                yield from ("", *map(plain, block.text.rstrip("\n").split("\n")))
            case Grid():
                yield ""
                if block.caption:
                    yield from map(strong, _wrapped(block.caption, width))
                yield from _table(block, width)
                for note in block.notes:
                    yield from _wrapped(note, width, "  ")
            case Fold() if folds:
                yield from ("", *map(strong, _wrapped(block.summary, width)))
                yield from _lines(block.blocks, width, bold, folds)


def _wrapped(text: str, width: int, indent: str = "", first: str | None = None) -> list[str]:
    return textwrap.wrap(
        _shown(text),
        max(width, 20),
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def _shown(text: str) -> str:
    """Text without its marks of code."""
    return plain("".join(part for part, _ in spans(text)))


def _table(block: Grid, width: int) -> Iterator[str]:
    """Columns side by side; those that find no room follow below, beside the first column again."""
    head = [_shown(cell) for cell in block.head]
    rows = [[[_shown(line) for line in cell.split("\n")] for cell in row] for row in block.rows]
    cells = [[line for row in rows for line in row[i]] for i in range(len(head))]
    # A left column may break between words, a right one only in its heading.
    least = [
        max([_longest_word(head[i]), *((_longest_word if side == "l" else len)(c) for c in cells[i])])
        for i, side in enumerate(block.sides)
    ]
    whole = [max(map(len, cells[i]), default=0) for i in range(len(head))]
    for start, part in enumerate(_parts(least, width)):
        if start:
            yield ""
        widths = [least[i] for i in part]
        # A cell that breaks makes its row taller; a heading that breaks costs a line once.
        for wanted in ([whole[i] for i in part], [len(head[i]) for i in part]):
            widths = _widths(widths, wanted, width)
        sides = [block.sides[i] for i in part]
        yield from _row([[head[i]] for i in part], widths, sides, bottom=True)
        for row in rows:
            yield from _row([row[i] for i in part], widths, sides)


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _parts(least: list[int], width: int) -> Iterator[list[int]]:
    part, used = [0], least[0]
    for i in range(1, len(least)):
        if len(part) > 1 and used + _GAP + least[i] > width:
            yield part
            part, used = [0], least[0]
        part.append(i)
        used += _GAP + least[i]
    yield part


def _widths(least: list[int], most: list[int], width: int) -> list[int]:
    """Give each column what it needs, then what is left to those that want most."""
    widths = list(least)
    spare = width - sum(widths) - _GAP * (len(widths) - 1)
    while spare > 0 and (wanting := [i for i in range(len(widths)) if widths[i] < most[i]]):
        widest = max(wanting, key=lambda i: most[i] - widths[i])
        widths[widest] += 1
        spare -= 1
    return widths


def _row(
    cells: list[list[str]], widths: list[int], sides: list[str], *, bottom: bool = False
) -> Iterator[str]:
    """The lines of one row; a heading's stand at its bottom."""
    broken = [
        [part for line in cell for part in (_wrapped_cell(line, width) or [""])]
        for cell, width in zip(cells, widths, strict=True)
    ]
    height = max(map(len, broken))
    filled = [
        [""] * (height - len(lines)) + lines if bottom else lines + [""] * (height - len(lines))
        for lines in broken
    ]
    for line in zip(*filled, strict=True):
        parts = (
            f"{text:>{width}}" if side == "r" else f"{text:<{width}}"
            for text, width, side in zip(line, widths, sides, strict=True)
        )
        yield (" " * _GAP).join(parts).rstrip()


def _wrapped_cell(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
