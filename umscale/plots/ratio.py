"""The memory-to-FFN ratio: loss against the memory's share of compute, its optimum, and the paper's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from umscale.errors import UserError
from umscale.laws.fit import fit_law
from umscale.laws.uncertainty import bootstrap
from umscale.plots.losses import LossRows, draw_losses
from umscale.plots.style import ACCENT, INK, Artists, house_style, law_words
from umscale.questions.memory_to_ffn import PAPER_MCP, RATIO_LAW, RatioVerdict, memory_to_ffn
from umscale.results.columns import COLUMNS
from umscale.results.table import Table, levels, numeric, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OTHER_COMPUTE = 1.1  # forward FLOPs further apart than this factor make a best ratio meaningless


def memory_ratio(
    table: Table, *, loss: str = "loss", columns: Mapping[str, str] | None = None, seed: int = 0
) -> "Figure":
    """Loss against the memory-to-FFN ratio, with the fitted parabola, its optimum and UltraMemV2's 17% MCP.

    A panel per stage and token budget. The optimum's interval is shaded; where none can be given, the title says why.
    The upper axis is the memory's share of both computations. ``columns`` maps r and D. Raises ``UserError`` when the
    table lacks the ratio or has one level of it, mixes compensations, or shows that compute was not held constant.
    """
    column = {**COLUMNS, **(columns or {})}["r"]
    _require_constant_compute(table)
    rows = LossRows.of(table, "r", None, loss=loss, columns=columns)
    found: dict[str, RatioVerdict] = {}
    fits = []
    reasons = []
    for stage in sorted(levels(table, "stage"), reverse=True) or [""]:
        part = where(table, stage=stage or None)
        found[stage] = memory_to_ffn(part, stage=stage or None, loss=loss, column=column, seed=seed)
        try:
            fit = fit_law(part, RATIO_LAW, loss=loss, columns={**(columns or {}), "r": column})
        except UserError as error:
            reasons.append(f"No law: {error}.")
            continue
        if {"a", "b"} <= set(fit.law.coefficients) - set(fit.unidentified):
            fits.append(bootstrap(fit, seed=seed))
    rows = LossRows.of(table, "r", None, fits, loss=loss, columns=columns)
    with house_style():
        drawing = draw_losses(rows, fits)
        for (stage, _), ax in drawing.axes.items():
            _mark(ax, found[stage])
        drawing.handles += _handles(any(_optimum(v) for v in found.values()))
        answers = [_answer(verdict) for verdict in found.values()]
        drawing.finish([*drawing.words(rows), *(law_words(f) for f in fits[:1]), *answers, *reasons])
    return drawing.figure


def _require_constant_compute(table: Table) -> None:
    if "flops_per_token" not in table:
        return
    flops = numeric(table, "flops_per_token")
    flops = flops[np.isfinite(flops)]
    if len(flops) and flops.max() > _OTHER_COMPUTE * flops.min():
        raise UserError(
            f"forward FLOPs differ {flops.max() / flops.min():.2f}-fold between cells: a best ratio needs "
            "constant compute (compensation iso_flops)"
        )


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
