"""What a search tried: its front, its course, and which parameters mattered."""

from typing import TYPE_CHECKING

import numpy as np

from umscale.errors import UserError
from umscale.plots.style import ACCENT, GREY, INK, caption, house_style, human, log_ticks, loss_words, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from umscale.search.results import Found

_WORDS = {
    "total_params": "total parameters",
    "active_params": "active parameters",
    "sparse_params": "sparse parameters",
    "flops_per_token": "forward FLOPs per token",
}


def objective_words(name: str) -> str:
    """Axis label of an objective, with its unit."""
    if name.startswith("memory_access_b"):
        return f"bytes read by a decoding step of {name.removeprefix('memory_access_b')} tokens"
    return _WORDS.get(name) or loss_words(name, study=True)


def front(found: "Found") -> "Figure":
    """Every finished trial in the plane of each pair of objectives, the Pareto front joined.

    Raises ``UserError`` for one objective, or fewer than two finished trials.
    """
    if len(found.objectives) < 2:
        raise UserError("a front needs two objectives; this search has one")
    finished = [row for row in found.trials if row.values is not None]
    if len(finished) < 2:
        raise UserError(f"{len(finished)} finished trials: nothing to draw yet")
    values = np.array([row.values for row in finished], dtype=np.float64)  # [trials, objectives]
    best = np.array([row.best for row in finished])
    others = range(1, len(found.objectives))
    with house_style():
        figure, [axes] = panels(1, len(others), width=4.6, height=3.2)
        for ax, k in zip(axes, others, strict=True):
            order = np.argsort(values[best, k])
            x, y = values[best, k][order], values[best, 0][order]
            ax.plot(
                values[~best, k],
                values[~best, 0],
                "o",
                color=GREY,
                markersize=4,
                alpha=0.7,
                label="dominated",
            )
            ax.plot(x, y, "D", color=ACCENT, markersize=5, label="front")
            if len(others) == 1:  # the front of more objectives is no line in this plane
                ax.step(x, y, where="post", color=ACCENT, linewidth=1)
            ax.set_xlabel(objective_words(found.objectives[k]))
            ax.set_ylabel(objective_words(found.objectives[0]))
            if values[:, k].max() > 2 * values[:, k].min() > 0:
                log_ticks(ax, "x", values[:, k])
            else:
                ax.xaxis.set_major_formatter(lambda v, _: human(v))
        axes[0].legend(loc="best")
        caption(figure, _counts(found), "Lower is better on both axes.")
    return figure


def history(found: "Found") -> "Figure":
    """The first objective of each trial in the order they were asked for, with the best so far."""
    rows = [row for row in found.trials if row.values is not None]
    if not rows:
        raise UserError("no finished trials: nothing to draw yet")
    numbers = np.array([row.number for row in rows])
    losses = np.array([row.values[0] for row in rows if row.values is not None])
    with house_style():
        figure, [[ax]] = panels(1, 1, width=4.6, height=2.8)
        ax.plot(numbers, losses, "o", color=GREY, markersize=4, label="finished trial")
        if len(found.objectives) == 1:
            ax.step(numbers, np.minimum.accumulate(losses), where="post", color=ACCENT, label="best so far")
        lost = [row.number for row in found.trials if row.state in ("pruned", "diverged")]
        if lost:
            ax.plot(
                lost,
                np.full(len(lost), losses.max()),
                "x",
                color=INK,
                markersize=5,
                label="pruned or diverged",
            )
        ax.set_xlabel("trial")
        ax.set_ylabel(objective_words(found.objectives[0]))
        ax.legend(loc="best")
        caption(figure, _counts(found))
    return figure


def importances(found: "Found") -> "Figure":
    """Share of each parameter in PED-ANOVA's importance, a panel an objective."""
    if not found.importances:
        raise UserError(f"no importances: {found.why_no_importances}")
    with house_style():
        n_params = len(next(iter(found.importances.values())))
        figure, [axes] = panels(1, len(found.importances), width=3.6, height=0.8 + 0.3 * n_params)
        for ax, (name, shares) in zip(axes, found.importances.items(), strict=True):
            names = sorted(shares, key=shares.__getitem__)
            ax.barh(names, [shares[n] for n in names], color=ACCENT, height=0.6)
            ax.set_xlim(0, 1)
            ax.set_axisbelow(True)
            ax.set_title(objective_words(name), fontsize="small")
            ax.set_xlabel("share of importance")
        caption(figure, "PED-ANOVA: what sets the better trials apart from all.", _counts(found))
    return figure


def _counts(found: "Found") -> str:
    states = dict.fromkeys(row.state for row in found.trials)
    said = ", ".join(f"{found.count(s)} {'finished' if s == 'complete' else s}" for s in states)
    return f"{len(found.trials)} trials: {said}."
