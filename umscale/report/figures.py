"""The figures of a report: those of `umscale plot` and `umscale search` that fit the study's question, as SVG."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from umscale.errors import UserError
from umscale.figures.gallery import Gallery
from umscale.figures.kind import Figures, Kind
from umscale.figures.kinds import KINDS, SEARCH_KINDS
from umscale.questions.question import find
from umscale.render.vector import png, svg
from umscale.report.evidence import Evidence
from umscale.say.blocks import Picture
from umscale.say.labels import COMPENSATION_WORDS, STAGE_WORDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BYTES = 1_200_000
"""Of all figures together; the largest are drawn in pixels until they fit."""

Shown = tuple[list[Picture], list[str]]
"""Figures, and which could not be drawn, with the reason."""


Wanted = dict[str, tuple[Kind[Any], Callable[[], Figures]]]
"""Kinds by name, each with what draws it."""


def draw(evidence: Evidence) -> tuple[Shown, Shown]:
    """The figures that answer the question, and those that show what is behind the answer."""
    gallery = Gallery(evidence.table, question=evidence.question, training=evidence.store.curves)

    def kinds(names: Sequence[str]) -> Wanted:
        return {name: (KINDS[name], partial(KINDS[name].draw, gallery)) for name in names}

    if evidence.search:
        wanted: Wanted = {
            name: (kind, partial(kind.draw, evidence.search[1])) for name, kind in SEARCH_KINDS.items()
        }
        behind = kinds(["curves"])
    else:
        wanted = kinds(find(evidence.question).figures)
        behind = kinds(find(evidence.question).behind)
    drafts: list[tuple[Picture, Figure]] = []
    missed = _drawn(wanted, drafts)
    n_wanted = len(drafts)
    missed_behind = _drawn(behind, drafts)
    pictures = _fitted(drafts)
    return (pictures[:n_wanted], missed), (pictures[n_wanted:], missed_behind)


def _drawn(wanted: Wanted, drafts: "list[tuple[Picture, Figure]]") -> list[str]:
    """Add the figures of each kind to ``drafts``; say which cannot be drawn."""
    missed = []
    for name, (kind, draw_kind) in wanted.items():
        try:
            for suffix, figure in draw_kind().items():
                drafts.append((_picture(name, kind, suffix, figure, len(drafts)), figure))
        except UserError as error:
            missed.append(f"`{name}` is not drawn: {error}")
    return missed


def _picture(name: str, kind: Kind[Any], suffix: str, figure: "Figure", number: int) -> Picture:
    """A figure with a name that is safe in files and in HTML, whatever a store calls its parts."""
    words = "".join(f", {word}" for word in _suffix_words(suffix))
    safe = re.sub(r"[^A-Za-z0-9_]+", "-", f"{name}{suffix}").strip("-")
    return Picture(
        name=f"figure-{number + 1}-{safe}",
        title=f"{kind.title}{words}",
        caption=kind.look,
        svg=svg(figure),
    )


def _fitted(drafts: "Sequence[tuple[Picture, Figure]]") -> list[Picture]:
    """The figures within ``MOST_BYTES``."""
    total = sum(len(picture.svg) for picture, _ in drafts)
    pictures = [picture for picture, _ in drafts]
    for i in sorted(range(len(drafts)), key=lambda i: -len(pictures[i].svg)):
        if total <= MOST_BYTES:
            break
        pixels = png(drafts[i][1])
        total -= len(pictures[i].svg) - 4 * len(pixels) // 3
        pictures[i] = replace(pictures[i], svg="", png=pixels)
    return pictures


def _suffix_words(suffix: str) -> Iterator[str]:
    for word in suffix.strip("-").split("-"):
        if word:
            yield STAGE_WORDS.get(word, COMPENSATION_WORDS.get(word, word))
