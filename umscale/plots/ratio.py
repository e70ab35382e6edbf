"""The memory-to-FFN ratio: loss against the memory's share of compute, its optimum, and the paper's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from umscale.plots.losses import LossRows, draw_losses
from umscale.plots.style import ACCENT, INK, Artists, house_style, law_words
from umscale.questions.memory_to_ffn import PAPER_MCP, RatioCurves, RatioVerdict
from umscale.results.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def memory_ratio(
    found: RatioCurves, table: Table, *, loss: str = "loss", columns: Mapping[str, str] | None = None
) -> "Figure":
    """Loss against the memory-to-FFN ratio, with the fitted parabola, its optimum and UltraMemV2's 17% MCP.

    A panel per stage and token budget. The optimum's interval is shaded; where none can be given, the title says why.
    The upper axis is the memory's share of both computations. ``found`` is what ``ratio_curves`` says of ``table``;
    ``columns`` maps r and D. Raises ``UserError`` when the table has one level of the ratio.
    """
    rows = LossRows.of(table, "r", None, found.fits, loss=loss, columns=columns)
    with house_style():
        drawing = draw_losses(rows, found.fits)
        for (stage, _), ax in drawing.axes.items():
            _mark(ax, found.verdicts[stage])
        drawing.handles += _handles(any(map(_optimum, found.verdicts.values())))
        laws = [law_words(fit) for fit in found.fits[:1]]
        answers = [_answer(verdict) for verdict in found.verdicts.values()]
        drawing.finish([*drawing.words(rows), *laws, *answers, *found.refused])
    return drawing.figure


def _optimum(found: RatioVerdict) -> bool:
    """Whether the curve has a least loss among the measured ratios."""
    return found.ratio is not None and found.grid[0] <= found.ratio.value <= found.grid[1]


def _mark(ax: "Axes", found: RatioVerdict) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter

    left, right = ax.get_xlim()
    paper = PAPER_MCP / (1 - PAPER_MCP)
    ax.axvline(paper, color=ACCENT, ls=(0, (4, 2)), lw=1.4, zorder=1.5)
    if _optimum(found) and found.ratio is not None:
        ax.axvline(found.ratio.value, color=INK, lw=1.0, zorder=1)
        if found.ratio.has_interval:
            ax.axvspan(found.ratio.low, found.ratio.high, color=INK, alpha=0.1, lw=0, zorder=0)
    ax.set_xlim(min(left, paper / 1.05), max(right, paper * 1.05))
    top = ax.secondary_xaxis("top", functions=(lambda r: r, lambda r: r))
    shares = [s for s in (0.01, 0.02, 0.05, 0.1, 0.17, 0.3, 0.5, 0.7) if left <= s / (1 - s) <= right]
    top.xaxis.set_major_locator(FixedLocator([s / (1 - s) for s in shares]))
    top.xaxis.set_major_formatter(FuncFormatter(lambda r, _: f"{r / (1 + r):.0%}"))
    top.xaxis.set_minor_locator(FixedLocator([]))
    ax.set_title(f"{ax.get_title()}\nshare of memory and FFN FLOPs (MCP)")


def _handles(optimum: bool) -> Artists:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    paper = Line2D([], [], color=ACCENT, ls=(0, (4, 2)), lw=1.4, label=f"{PAPER_MCP:.0%} MCP, UltraMemV2")
    if not optimum:
        return [paper]
    return [
        Line2D([], [], color=INK, lw=1.0, label="least loss"),
        Patch(color=INK, alpha=0.1, lw=0, label="its 95% interval"),
        paper,
    ]


def _answer(found: RatioVerdict) -> str:
    best = ""
    if found.mcp is not None:
        best = f"best MCP {found.mcp.value:.1%}"
        if found.mcp.has_interval:
            best += f" [{found.mcp.low:.1%}, {found.mcp.high:.1%}]"
        best += "; "
    return f"{(found.stage or 'All').capitalize()}: {best}against {PAPER_MCP:.0%} {found.answer} ({found.reason})."
