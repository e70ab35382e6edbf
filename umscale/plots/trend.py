"""What a doubling of density and of size buys, by token budget, and where their difference reaches zero."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from umscale.errors import UserError
from umscale.plots.style import ACCENT, INK, house_style
from umscale.questions.token_trend import TokenTrend
from umscale.say.labels import held, when
from umscale.say.numbers import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def token_trend_figure(found: Sequence[TokenTrend]) -> "Figure":
    """A panel for each stage: δ_m, δ_N and their difference against tokens, with intervals, and the turn.

    Args:
        found: answers of one compensation and loss, a stage each.

    Raises:
        UserError: none of them has a number.
    """
    drawn = [one for one in found if one.difference is not None]
    if not drawn:
        raise UserError("no trend with tokens to draw: the runs of this study give none")
    from matplotlib.figure import Figure

    with house_style():
        figure = Figure(figsize=(4.2 * len(drawn), 3.6), layout="constrained")
        axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        for ax, one in zip(axes, sorted(drawn, key=lambda x: x.stage == "annealed"), strict=True):
            _panel(ax, one)
        axes[0].set_ylabel("nats per token that a doubling buys")
        axes[0].legend(frameon=False)
        figure.suptitle(f"By token budget, {held(drawn[0].compensation)}")
    return figure


def _panel(ax: "Axes", one: TokenTrend) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    styles = (
        ("delta_m", "top_m", ACCENT, "o"),
        ("delta_n", "N_s", "0.45", "s"),
        ("difference", "difference", INK, "D"),
    )
    tokens = np.array(one.tokens)
    for i, (name, label, colour, marker) in enumerate(styles):
        read = [v.from_law or v.from_pairs for v in one.verdicts]
        estimates = [None if r is None else getattr(r, name) for r in read]
        kept = [(t, e) for t, e in zip(tokens, estimates, strict=True) if e is not None and e.has_interval]
        if not kept:
            continue
        x = np.array([t for t, _ in kept]) * 2 ** (0.06 * (i - 1))  # side by side
        y = np.array([e.value for _, e in kept])
        spread = np.array([[e.value - e.low, e.high - e.value] for _, e in kept]).T
        ax.errorbar(x, y, spread, color=colour, marker=marker, ms=4, lw=1.2, capsize=2, label=label)
    ax.axhline(0, color=INK, lw=0.8)
    turn = one.turn
    ax.set_xscale("log", base=2)
    low, high = tokens.min() / 1.3, tokens.max() * 1.3
    if turn.reached != "not reached" and low / 4 <= turn.tokens.value <= high * 4:
        ends = max(turn.tokens.low, low / 4), min(turn.tokens.high, high * 4)
        ax.axvspan(*ends, color=INK, alpha=0.08, lw=0)
        ax.axvline(turn.tokens.value, color=INK, lw=1, ls=(0, (4, 2)))
        low, high = min(low, ends[0]), max(high, ends[1])
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(FixedLocator(tokens.tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    ax.set_xlabel("tokens")
    ax.set_title(when(one.stage))
