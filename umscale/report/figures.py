"""The figures of a report: those of `umscale plot` and `umscale search` that fit the study's question, as SVG."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from umscale.errors import UserError
from umscale.figures.kinds import KINDS, Gallery
from umscale.plots import search as search_plots
from umscale.questions.question import find
from umscale.render.vector import png, svg
from umscale.report.evidence import Evidence
from umscale.say.blocks import Picture
from umscale.say.labels import COMPENSATION_WORDS, STAGE_WORDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BYTES = 1_200_000
"""Of all figures together; the largest are drawn in pixels until they fit."""

_TITLES: Mapping[str, str] = {
    "density": "Loss against values per token",
    "size": "Loss against sparse parameters",
    "map": "Where density beats size",
    "trend": "What a doubling buys, by token budget",
    "ratio": "Loss against the memory's share of computation",
    "allocation": "Loss over the shares of the sparse budget",
    "rates": "Loss against learning rates",
    "residuals": "Residuals of the law",
    "predicted": "Observed against predicted loss",
    "bootstrap": "Coefficients, draw by draw",
    "curves": "Training curves",
    "architectures": "Losses of the architectures",
    "front": "What the search tried, and its front",
    "history": "The search, trial by trial",
    "importances": "Which parameters mattered",
}
_LOOK: Mapping[str, str] = {
    "density": "Follow a line to the right: how steeply it falls is what reading more values buys at that "
    "size. The distance between lines is what size buys. Density beats size where a doubling along a line "
    "gains more than the step to the next line that is a doubling in size away.",
    "size": "The same losses, seen along the other axis: flat lines far apart mean that density matters and "
    "size does not.",
    "map": "Look where the border between the two winners runs and how much of the measured grid lies "
    "clearly on one side; what is left undecided is the width of the intervals.",
    "trend": "Follow the difference to the right: where it meets zero, size buys as much as density. The shaded "
    "stretch holds every number of tokens at which that cannot be ruled out.",
    "ratio": "Look at the bottom of the parabola and the shaded interval about it: does it hold the paper's "
    "dashed line?",
    "allocation": "Look at the least point and the interval or region about it: does it reach an end, and do the "
    "cells lie on the curve there?",
    "rates": "In each panel, look whether the dashed default lies in the shaded interval of the best rate, "
    "and how flat the bottom is there.",
    "residuals": "Squares that drift up or down along an axis are an effect that the law misses; single "
    "points far out are runs to look at.",
    "predicted": "Points on the diagonal are predicted well. The marked ones were held out: they say how far "
    "beyond the grid the law may be trusted.",
    "bootstrap": "Long thin clouds are coefficients that the runs cannot tell apart; one that runs into a wall is not "
    "identified.",
    "curves": "Look for spikes and for runs that leave the others: at right, each run is shown minus the "
    "mean of its seed on the same batch.",
    "architectures": "A bar that misses the dashed line is a difference from the baseline. Compare the order "
    "before and after the decay: it need not be the same.",
    "front": "Nothing measured lies below and to the left of the joined points.",
    "history": "A front or a best that still moves late in the search says that it was short.",
    "importances": "A large share means that good trials have values of this parameter in common.",
}


Shown = tuple[list[Picture], list[str]]
"""Figures, and which could not be drawn, with the reason."""


def draw(evidence: Evidence) -> tuple[Shown, Shown]:
    """The figures that answer the question, and those that show what is behind the answer."""
    gallery = Gallery(evidence.table, question=evidence.question, training=evidence.store.curves)

    def kinds(names: Sequence[str]) -> "dict[str, Callable[[], Mapping[str, Figure]]]":
        return {name: lambda name=name: KINDS[name].draw(gallery) for name in names}  # type: ignore[misc]

    drafts: list[tuple[Picture, Figure]] = []
    wanted: dict[str, Callable[[], Mapping[str, Figure]]]
    if evidence.search:
        found = evidence.search[1]
        wanted = {
            "front": lambda: {"": search_plots.front(found)},
            "history": lambda: {"": search_plots.history(found)},
            "importances": lambda: {"": search_plots.importances(found)},
        }
        behind = kinds(["curves"])
    else:
        wanted = kinds(find(evidence.question).figures)
        behind = kinds(find(evidence.question).behind)
    missed = _drawn(wanted, drafts)
    n_wanted = len(drafts)
    missed_behind = _drawn(behind, drafts)
    pictures = _fitted(drafts)
    return (pictures[:n_wanted], missed), (pictures[n_wanted:], missed_behind)


def _drawn(
    kinds: "Mapping[str, Callable[[], Mapping[str, Figure]]]", drafts: "list[tuple[Picture, Figure]]"
) -> list[str]:
    """Add the figures of each kind to ``drafts``; say which cannot be drawn."""
    missed = []
    for kind, draw_kind in kinds.items():
        try:
            for suffix, figure in draw_kind().items():
                drafts.append((_picture(kind, suffix, figure, len(drafts)), figure))
        except UserError as error:
            missed.append(f"`{kind}` is not drawn: {error}")
    return missed


def _picture(kind: str, suffix: str, figure: "Figure", number: int) -> Picture:
    """A figure with a name that is safe in files and in HTML, whatever a store calls its parts."""
    words = "".join(f", {word}" for word in _suffix_words(suffix))
    name = re.sub(r"[^A-Za-z0-9_]+", "-", f"{kind}{suffix}").strip("-")
    return Picture(
        name=f"figure-{number + 1}-{name}",
        title=f"{_TITLES[kind]}{words}",
        caption=_LOOK[kind],
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
