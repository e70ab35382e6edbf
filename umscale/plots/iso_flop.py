"""iso-FLOP curves (approach 2 of arXiv 2203.15556): loss against size at constant compute, with parabolas.

A parabola in log N is fitted to the runs of one compute; its vertex estimates the best size N*(C). On surfaces that
are not symmetric about the vertex it is biased (arXiv 2603.22339), so a law's own curves stand beside it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from umscale.laws.fit import FitResult
from umscale.plots.style import (
    INK,
    MARKERS,
    Artists,
    axis_words,
    caption,
    house_style,
    human,
    log_ticks,
    loss_words,
    ordered_colours,
    panels,
)
from umscale.questions.iso_flops import SAME_COMPUTE, IsoFlop, IsoFlops, law_along

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def iso_flop(found: IsoFlops, *, size: str, loss: str = "loss", study: bool = False) -> "Figure":
    """Loss against size at constant compute with parabolas and their minima, and the best size against compute.

    A law of N and D is drawn beside them at the same compute. ``size`` and ``loss`` are the columns of N and of the
    loss; ``study`` says that losses are a study's.
    """
    curves, fit = found.curves, found.law
    with house_style():
        figure, [[left, right]] = panels(1, 2, width=3.5, height=3.3)
        handles = _curves(left, curves, fit)
        log_ticks(left, "x", np.concatenate([one.n for one in curves]), most_levels=0)
        left.set_xlabel(axis_words(size))
        left.set_ylabel(loss_words(loss, study=study))
        _best_sizes(right, found)
        right.set_ylabel(f"{axis_words(size)} of least loss")
        figure.legend(
            handles=handles, title="training FLOPs $C$", loc="outside right upper", alignment="left"
        )
        caption(figure, *_words(found))
    return figure


def _curves(ax: "Axes", curves: Sequence[IsoFlop], fit: FitResult | None) -> Artists:
    """Points, parabolas and minima; returns the legend's handles."""
    from matplotlib.lines import Line2D

    handles: Artists = []
    for k, (one, colour) in enumerate(zip(curves, ordered_colours(len(curves)), strict=True)):
        name, marker = human(one.flops), MARKERS[k % len(MARKERS)]
        ax.plot(one.n, one.loss, marker, color=colour, ms=3.4, ls="none", zorder=3, label=f"{name}, measured")
        x = np.geomspace(one.n[0], one.n[-1], 60)
        ax.plot(x, one.predict(x), color=colour, lw=1.0, zorder=2, label=f"{name}, parabola")
        if np.isfinite(one.best):
            least = one.predict(np.array([one.best]))
            ax.plot(
                [one.best],
                least,
                "*",
                color=colour,
                ms=9,
                mec=INK,
                mew=0.6,
                zorder=4,
                label=f"{name}, minimum",
            )
        if fit is not None:
            ax.plot(
                x, law_along(fit, x, one), color=colour, lw=1.0, ls=":", label=f"{name}, law {fit.law.name}"
            )
        handles.append(Line2D([], [], color=colour, marker=marker, ms=3.4, lw=1.0, label=name))
    handles.append(
        Line2D([], [], color="white", marker="*", ms=9, mec=INK, mew=0.6, ls="none", label="minimum")
    )
    if fit is not None:
        handles.append(Line2D([], [], color=INK, lw=1.0, ls=":", label=f"law: {fit.law.name}"))
    return handles


def _best_sizes(ax: "Axes", found: IsoFlops) -> None:
    curves, slope = found.curves, found.exponent
    flops, best = np.array([one.flops for one in curves]), np.array([one.best for one in curves])
    there = np.isfinite(best)
    sizes = [best[there]]
    for one, colour in zip(curves, ordered_colours(len(curves)), strict=True):
        if np.isfinite(one.best):
            ax.plot([one.flops], [one.best], "*", color=colour, ms=9, mec=INK, mew=0.6, zorder=3)
    if there.any():
        ax.plot(flops[there], best[there], ls="none", label="minimum")
    if slope is not None:
        x, y = np.log(flops[there]), np.log(best[there])
        line = np.exp(y.mean() + slope.value * (np.log(flops) - x.mean()))
        ax.plot(flops, line, color=INK, lw=1.0, label="power law through the minima")
        sizes.append(line)
    if found.law is not None:
        theirs = np.array(found.law_best)
        ax.plot(flops, theirs, color=INK, lw=1.0, ls=":", label=f"law {found.law.law.name}")
        sizes.append(theirs)
    ax.set_xlabel(axis_words("training_flops"))
    log_ticks(ax, "x", flops)
    if len(everything := np.concatenate(sizes)):
        log_ticks(ax, "y", best[there] if there.any() else everything)  # the optima are what is read off here
    else:
        ax.text(0.5, 0.5, "no parabola has a minimum\namong its sizes", ha="center", transform=ax.transAxes)


def _words(found: IsoFlops) -> list[str]:
    curves, slope, fit = found.curves, found.exponent, found.law
    runs = sum(len(one.n) for one in curves)
    near = f"C ({found.source}) within {SAME_COMPUTE - 1:.0%} of each other"
    said = [
        f"{runs} of {found.n_rows} runs, at {len(curves)} computes, {near}.",
        "Parabolas in log N by least squares; they are biased where the surface is not symmetric.",
    ]
    missing = sum(not np.isfinite(one.best) for one in curves)
    if missing:
        said.append(f"{missing} have no minimum among their sizes.")
    if slope is not None:
        said.append(f"N* ∝ C^{slope.value:.3f} [{slope.low:.3f}, {slope.high:.3f}] (95%, Student).")
    if fit is not None:
        if len(curves) > 1:
            rise = np.log(found.law_best[-1] / found.law_best[0]) / np.log(curves[-1].flops / curves[0].flops)
            said.append(
                f"Law {fit.law.name}: {fit.law.formula}, at the runs' own C/(N·D); its best sizes rise as C^{rise:.3f}."
            )
    elif found.unread:
        said.append(f"Law {found.unread} reads other columns than N and D and is not drawn.")
    return said
