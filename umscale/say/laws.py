"""How fits and answers are said in words, wherever they are printed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from umscale.store.schema import is_probe_column, probe_column

if TYPE_CHECKING:
    from umscale.laws.compare import Compared, Edge
    from umscale.laws.fit import FitResult
    from umscale.laws.uncertainty import Estimate
    from umscale.questions.laws import Report, Section

LOSS_NAMES: Mapping[str, str] = {"loss": "raw weights", "loss_ema": "averaged weights"}
_FEW_INTERVALS = 5
_EDGES: "tuple[Edge, ...]" = ("largest", "sparsest", "future")


def loss_name(loss: str) -> str:
    """Return words for a column of losses."""
    if is_probe_column(loss):
        return f"probe {loss.removesuffix(probe_column(''))}"
    return LOSS_NAMES.get(loss, loss)


def estimate_text(estimate: "Estimate | None", digits: int = 4) -> str:
    """Return ``+0.0123 [+0.0101, +0.0145]``; without the interval where there is none."""
    if estimate is None or estimate.value != estimate.value:
        return "–"
    value = f"{estimate.value:+.{digits}f}"
    if not estimate.has_interval:
        return f"{value} (no interval)"
    return f"{value} [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"


def spread_words(equal: bool) -> str:
    """Say, after other words, that architectures' runs lie unequally far apart; nothing where they may not."""
    if equal:
        return ""
    return "; runs of some lie further apart than others' (Bartlett, 1%), so each interval is of its own pairs of runs"


def by_chance(n_intervals: int) -> str:
    """Say, after other words, how many of so many 95% intervals leave out zero where nothing differs."""
    if n_intervals < _FEW_INTERVALS:
        return ""
    return f"; of {n_intervals} such intervals {0.05 * n_intervals:.1f} leave out zero by chance alone"


def interval_text(estimate: "Estimate", digits: int = 5) -> str:
    """``[0.32, 0.37]``; an end that the rows do not bound is infinite."""
    if estimate.low != estimate.low or estimate.high != estimate.high:
        return "(no interval)"
    return f"[{estimate.low:.{digits}g}, {estimate.high:.{digits}g}]"


def heading(stage: str | None, compensation: str | None, loss: str) -> str:
    """Return words for one part of a study."""
    parts = [stage or "", loss_name(loss)]
    if compensation not in (None, "", "none"):
        parts.append(str(compensation))
    return ", ".join(p for p in parts if p)


def edges_tested(section: "Section") -> "dict[Edge, str]":
    """The edges at which any law could be held out, each with its heading."""
    axes = {h.edge: h.axis for c in section.comparison.laws for h in c.holdouts if not h.skipped}
    return {edge: f"{edge} {axes[edge]} held out" for edge in _EDGES if edge in axes}


def holdout_text(compared: "Compared", edge: str) -> str:
    """Error on the rows held out at an edge, nats and percent; a dash where there is none."""
    holdout = next((h for h in compared.holdouts if h.edge == edge), None)
    if holdout is None or holdout.skipped:
        return "–"
    return f"{holdout.rmse_nats:.4f} ({holdout.mean_percent:.2f}%)"


def columns_text(found: "Report") -> str:
    """What every symbol stands for, with unit and convention."""
    first = found.sections[0]
    columns: dict[str, str] = {}
    for compared in first.comparison.laws:
        columns |= {symbol: compared.fit.columns[symbol] for symbol in compared.fit.law.symbols}
    units = found.settings.units
    said = [
        f"{s} is {c}, {units.get(s, 'unit not given (--unit)')}"
        for s, c in (("loss", first.loss), *columns.items())
    ]
    return f"columns: {'; '.join(said)}"


def loss_unit(found: "Report") -> str:
    """Unit of the losses in a word, for headings; nothing for a table that did not say (--unit loss=...)."""
    return "nats" if found.n_runs is not None else found.settings.units.get("loss", "").partition(" per ")[0]


def fitted_text(fit: "FitResult") -> str:
    """How a law was fitted, and how surely the optimum was found."""
    delta = {
        "huber": f" (delta {fit.delta:g})",
        "least_absolute": f" (as Huber with delta {fit.delta:g})",
        "least_squares": "",
    }[fit.objective_name]
    residuals = "ln L" if fit.residual == "log" else "L"
    text = f"{fit.objective_name}{delta} on {residuals}, objective {fit.objective:.9g}"
    if fit.starts_at_optimum is not None:
        text += f", reached by {fit.starts_at_optimum:.0%} of {fit.n_starts} starts"
    return text
