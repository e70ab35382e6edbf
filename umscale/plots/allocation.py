"""Loss over the shares of a sparse budget: a curve for two parts, a ternary map for three; loss against rows."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from umscale.errors import UserError
from umscale.plots.style import ACCENT, GREY, INK, band, caption, house_style, log_ticks, loss_words, panels
from umscale.questions.allocation import PARTS, Allocation, AllocationAnswer, SlotLaw
from umscale.results.columns import Array
from umscale.say.estimates import share
from umscale.say.labels import capital, sentence, when

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])  # experts, product keys, n-grams
_REGION = 0.12  # opacity of what the optimum's interval covers


def allocation_figure(found: AllocationAnswer) -> "Figure":
    """A panel for each stage of one compensation and loss, before the decay first.

    Raises:
        UserError: no stage has a fitted curve.
    """
    drawn: "list[tuple[Allocation | SlotLaw, Callable[[Axes], None]]]" = [
        (one, _drawing(one)) for one in found.found if one.surface is not None
    ]
    drawn += [(law, _slots(law)) for law in found.slots]
    if not drawn:
        raise UserError(next((one.reason for one in found.found), "no share varies: nothing to draw"))
    drawn.sort(key=lambda pair: pair[0].stage == "annealed")
    with house_style():
        figure, (axes,) = panels(1, len(drawn), width=3.9, height=3.2)
        for ax, (one, draw) in zip(axes, drawn, strict=True):
            draw(ax)
            ax.set_title(capital(when(one.stage)))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
        caption(
            figure, *(f"{capital(when(one.stage))}: {one.answer}. {sentence(one.reason)}" for one, _ in drawn)
        )
    return figure


def _drawing(one: Allocation) -> "Callable[[Axes], None]":
    return (lambda ax: _curve(ax, one)) if len(one.parts) == 2 else (lambda ax: _ternary(ax, one))


def _curve(ax: "Axes", one: Allocation) -> None:
    """Loss against the memory's share, with the law's band, the optimum's interval and the ends' costs."""
    surface = one.surface
    assert surface is not None
    memory = np.array(surface.shares)[:, 1]
    loss, low, high = (np.array(values) for values in (surface.loss, surface.low, surface.high))
    ax.plot(memory, loss, color=INK, label="law")
    band(ax, memory, low, high, INK)
    cells = np.array(surface.cells)
    ax.plot(cells[:, 1], cells[:, 2], "o", color=INK, mfc="white", label="cells, block and tokens taken out")
    best = one.best[one.parts[1]]
    ax.axvline(
        best.value,
        color=INK,
        lw=1.0,
        label=f"least loss {share(best)}" if best.has_interval else "least loss",
    )
    ax.axvspan(best.low, best.high, color=INK, alpha=_REGION, lw=0, label="its 95% interval")
    ax.axvspan(*one.paper_share, fill=False, ec=ACCENT, ls=(0, (4, 2)), label="Engram's optimum")
    for end in one.ends:
        at = end.share if end.part != "experts" else 1 - end.share
        ax.annotate(
            f"{end.cost.value:+.4f}".replace("-", "−"),
            (at, loss[0] if at < np.mean(memory) else loss[-1]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="left" if at < np.mean(memory) else "right",
            fontsize=7.5,
            color=GREY,
        )
    ax.set_xlabel(
        f"share of inactive parameters in {PARTS[one.parts[1]]}\n(the rest in {PARTS[one.parts[0]]})"
    )
    ax.set_ylabel(loss_words(one.loss, study=True))


def _flat(shares: Array) -> tuple[Array, Array]:
    """Where points of the simplex [points, 3] lie on paper: x and y."""
    x, y = (shares @ _CORNERS).T
    return x, y


def _ternary(ax: "Axes", one: Allocation) -> None:
    """Loss above the least over the triangle, where the optimum may lie, and the cells measured."""
    surface = one.surface
    assert surface is not None
    shares, loss = np.array(surface.shares), np.array(surface.loss)
    inside = np.array(surface.inside)
    x, y = _flat(shares)
    filled = ax.tricontourf(x, y, loss - loss.min(), levels=12, cmap="viridis_r")
    ax.figure.colorbar(filled, ax=ax, label="loss above the least (nats per token)", shrink=0.8)
    ax.plot(x[inside], y[inside], "s", color="white", ms=2.4, alpha=0.7, label="95% of the draws' optima")
    best = int(np.argmin(loss))
    ax.plot(x[[best]], y[[best]], "*", color=ACCENT, ms=11, label="least loss")
    cells = np.array(surface.cells)
    ax.plot(*_flat(cells[:, :3]), "o", color=INK, mfc="none", label="cells")
    ax.plot(*_CORNERS[[0, 1, 2, 0]].T, color=INK, lw=0.8)
    for corner, part in zip(_CORNERS, one.parts, strict=True):
        top = corner[1] > 0
        ax.annotate(
            PARTS[part],
            (corner[0], corner[1]),
            xytext=(0, 5 if top else -5),
            textcoords="offset points",
            ha="center",
            va="bottom" if top else "top",
            fontsize=8,
        )
    ax.set_aspect("equal")
    ax.set_axis_off()


def _slots(law: SlotLaw) -> "Callable[[Axes], None]":
    def draw(ax: "Axes") -> None:
        rows, loss, low, high = (np.array(column) for column in zip(*law.line, strict=True))
        ax.plot(rows, loss, color=INK, label="line in log rows")
        band(ax, rows, low, high, INK)
        sizes, cells = np.array(law.cells).T
        ax.plot(
            sizes[:-1], cells[:-1], "o", color=INK, mfc="white", label="cells, block and tokens taken out"
        )
        ax.plot(sizes[-1:], cells[-1:], "D", color=ACCENT, mfc="white", label="held out for the test")
        log_ticks(ax, "x", rows)
        ax.set_xlabel("rows of a head's table")
        ax.set_ylabel(loss_words(law.loss, study=True))

    return draw
