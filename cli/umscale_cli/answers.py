"""What `umscale fit` prints beyond laws and verdicts: the best ratio, the map, suggested runs, cell contrasts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from umscale_cli.console import count, note, number

if TYPE_CHECKING:
    from umscale.laws.contrast import CellContrast
    from umscale.laws.ratio import RatioVerdict
    from umscale.laws.suggest import Suggestion
    from umscale.laws.uncertainty import Estimate
    from umscale.store import Store


def estimate_text(estimate: "Estimate | None", digits: int = 4) -> str:
    """Return ``0.0123 [0.0101, 0.0145]``; without the interval where there is none."""
    if estimate is None:
        return "–"
    value = f"{estimate.value:+.{digits}f}"
    if not estimate.has_interval:
        return f"{value} [no interval]"
    return f"{value} [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"


def print_ratio(found: "RatioVerdict", heading: str, console: Any) -> None:
    """Print where along the memory-to-FFN ratio the loss is least."""
    console.print(
        f"\nBest memory-to-FFN ratio: {found.answer.upper()} with 17% MCP  ({heading})", style="bold"
    )
    console.print(f"  {found.reason}")
    low, high = found.grid
    console.print(
        f"  best ratio {estimate_text(found.ratio, 3)}, as MCP {estimate_text(found.mcp, 3)}; measured from {low:.3g} "
        f"to {high:.3g} in {found.n_runs} runs of {found.n_cells} cells"
    )
    console.print(f"  the paper's ratio costs {estimate_text(found.paper_excess)} nats against the best")
    for line in found.warnings:
        console.print(f"  note: {line}")


def print_map(
    store: "Store", stage: str, compensation: str | None, loss: str, heading: str, console: Any
) -> None:
    """Print where in the (top_m, N_s) plane density beats size, or why that cannot be said."""
    from umscale.errors import UserError
    from umscale.laws.map import study_map

    try:
        found = study_map(store.columns(), stage=stage, compensation=compensation, loss=loss)
    except UserError as error:
        console.print(f"\nno map ({heading}): {error}")
        return
    console.print(f"\nWhere density beats size ({heading}, law {found.law})", style="bold")
    for line in found.lines():
        console.print(f"  {line}", markup=False)


def print_suggestion(found: "Suggestion", output: Path | None, console: Any) -> None:
    """Print the runs that would narrow the verdict's interval most per FLOP; write their study file to ``output``."""
    from umscale.files import write_text

    console.print(
        f"difference so far {found.difference:+.4f} ± {found.half_width:.4f} nats (law {found.law})"
    )
    for i, run in enumerate(found.runs, 1):
        cell = " ".join(f"{name}={value}" for name, value in run.targets.items())
        outside = ", beyond the grid so far" if run.outside else ""
        console.print(
            f"  {i}. {cell} seed={run.seed}: ± {number(run.half_width)} after it, {count(run.flops)} FLOPs{outside}"
        )
    for line in found.statements:
        console.print(f"  {line}")
    if output is None:
        console.print("\n" + found.to_toml(), markup=False)
    else:
        write_text(output, found.to_toml())
        note(f"wrote {output}; run it with: umscale sweep {output}")


def print_contrast(found: "CellContrast", text: str, console: Any) -> None:
    """Print the loss of one cell minus that of another."""
    console.print(
        f"{text}: {estimate_text(found.difference)} nats ({found.stage}, {found.loss})", markup=False
    )
    console.print(f"  {found.n_pairs} pairs of {found.n_seeds} seeds; {found.basis}")
