"""What `umscale fit` answers from a study: verdict, architectures, best ratio, map, suggested runs, cell contrasts."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umscale.say.laws import LOSS_NAMES, by_chance, estimate_text, heading, spread_words
from umscale_cli.console import count, note, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from umscale.laws.uncertainty import Estimate
    from umscale.questions.architectures import ArchitectureTable
    from umscale.questions.contrast import CellContrast
    from umscale.questions.density_over_size import Contrasts, Verdict
    from umscale.questions.learning_rates import RatesReport
    from umscale.questions.memory_to_ffn import RatioVerdict
    from umscale.questions.noise import Noise
    from umscale.questions.suggest import Suggestion
    from umscale.questions.trainer_choice import ChoiceTable
    from umscale.results.table import Table


def print_verdict(verdict: "Verdict", console: Any) -> None:
    """Print the verdict on density over size with the numbers that decide it."""
    from rich.table import Table

    where = heading(verdict.stage, verdict.compensation, verdict.loss)
    console.print(f"Density over size: {verdict.answer.upper()}  ({where})", style="bold")
    console.print(f"  {verdict.reason}")
    if verdict.from_law is not None or verdict.from_pairs is not None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2))
        table.add_column("nats per token")
        table.add_column("from the law")
        table.add_column("from paired cells")
        rows = (
            ("doubling top_m buys", "delta_m"),
            ("doubling N_s buys", "delta_n"),
            ("difference", "difference"),
            ("(m, 2 N_s) minus (3 m, N_s)", "paper"),
        )
        for title, name in rows:
            table.add_row(title, _contrast(verdict.from_law, name), _contrast(verdict.from_pairs, name))
        console.print(table)
    if verdict.reference:
        at = ", ".join(f"{column} {count(value)}" for column, value in verdict.reference.items())
        console.print(f"  at {at}; {verdict.n_runs} runs, {verdict.n_cells} cells, {verdict.n_seeds} seeds")
    rate = verdict.exchange_rate
    if rate is not None and rate.has_interval:
        bounds = f"[{rate.low:.3g}, {rate.high:.3g}]"
        console.print(f"  a doubling of top_m buys as much as N_s times {rate.value:.3g} {bounds}")
    if verdict.further_runs is not None:
        console.print(f"  about {verdict.further_runs} more runs like these would settle it (80% power)")
    for line in (*verdict.extrapolated, *verdict.warnings):
        console.print(f"  note: {line}")


def _contrast(contrasts: "Contrasts | None", name: str) -> str:
    return "–" if contrasts is None else estimate_text(getattr(contrasts, name))


def print_architectures(found: "tuple[ArchitectureTable, ...]", loss: str, console: Any) -> None:
    """Print losses and costs per stage and budget, best architecture first."""
    from rich.table import Table

    for one in found:
        losses, costs = (Table(box=None, pad_edge=False, padding=(0, 2, 0, 0)) for _ in range(2))
        for name in (
            "architecture",
            "runs",
            "loss, nats",
            f"minus {one.baseline}, 95% interval",
            "bits/byte",
        ):
            losses.add_column(name, justify="left" if name == "architecture" else "right", no_wrap=True)
        for name in (
            "architecture", "total", "active", "FLOPs/token", "bytes, B=1", "B=16", "B=256", "lr", "tok/s",
        ):  # fmt: skip
            costs.add_column(name, justify="left" if name == "architecture" else "right", no_wrap=True)
        for row in one.rows:
            losses.add_row(
                row.name,
                str(row.n_runs),
                number(row.loss),
                estimate_text(row.difference)
                + (f" from {row.baseline}" if row.baseline != one.baseline else ""),
                number(row.bits_per_byte),
            )
            cost = row.costs
            costs.add_row(
                row.name,
                *(count(cost[c]) for c in ("total_params", "active_params", "flops_per_token")),
                *(count(cost[c]) for c in ("access_bytes_b1", "access_bytes_b16", "access_bytes_b256")),
                f"{cost['lr']:.3g}",
                count(cost["tokens_per_second"]),
            )
        console.print()
        place = f"{heading(one.stage, one.compensation, loss)}, {count(one.budget)} tokens"
        console.print(f"Architectures: {place}", style="bold")
        console.print(losses)
        noise = (
            f"{one.noise:.4f} nats ({one.freedom} degrees of freedom)" if one.freedom else "unknown: one seed"
        )
        console.print(
            f"run-to-run standard deviation {noise}{by_chance(len(one.rows) - 1) if one.freedom else ''}"
            f"{spread_words(one.equal_spread)}\n"
        )
        console.print(costs)
    if found:
        console.print(
            "bytes: bf16 sparse parameters read a token, measured, in batches of B tokens; tok/s of training, which "
            "other work on the machine slows"
        )


def print_ratio(found: "RatioVerdict", console: Any) -> None:
    """Print where along the memory-to-FFN ratio the loss is least."""
    where = heading(found.stage, found.compensation, found.loss)
    console.print(f"\nBest memory-to-FFN ratio: {found.words}  ({where})", style="bold")
    console.print(f"  {found.reason}")
    low, high = found.grid
    console.print(
        f"  best ratio {estimate_text(found.ratio, 3)}, as MCP {estimate_text(found.mcp, 3)}; measured from {low:.3g} "
        f"to {high:.3g} in {found.n_runs} runs of {found.n_cells} cells"
    )
    console.print(f"  the paper's ratio costs {estimate_text(found.paper_excess)} nats against the best")
    for line in found.warnings:
        console.print(f"  note: {line}")


def print_rates(found: "RatesReport", console: Any) -> None:
    """Print where each cell's loss is least, what the default rates cost it, and how the best rates go with shape."""
    from rich.table import Table

    where = heading(found.stage, found.compensation, found.loss)
    table = Table(
        title=f"Learning rates: {where}, {count(found.budget)} tokens",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("cell", no_wrap=True)
    for name in (
        "runs", "best measured: lr, value_lr, nats", "best lr, 95% interval", "best value_lr", "default lr, value_lr",
        "default costs, nats",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for cell in found.cells:
        lr, value_lr, loss = cell.best
        table.add_row(
            cell.name,
            str(cell.n_runs),
            f"{lr:.3g}, {value_lr:.3g}, {number(loss)}",
            rate_text(cell.lr),
            rate_text(cell.value_lr),
            f"{cell.default[0]:.3g}, {cell.default[1]:.3g}",
            estimate_text(cell.excess),
        )
    console.print()
    console.print(table)
    for rate, powers in found.exponents.items():
        said = "; ".join(f"{axis} to the power {estimate_text(p, 2)}" for axis, p in powers.items())
        console.print(f"  best {rate} goes with {said}")
    console.print(
        f"  a run's standard deviation about the fitted surface {found.deviation:.4f} nats; {found.n_rows} runs, "
        f"{found.n_far} too far from their cell's best left out"
    )
    if found.freedom:
        console.print(
            f"  between runs of one setting {found.noise:.4f} nats ({found.freedom} degrees of freedom)"
        )
    for line in found.warnings:
        console.print(f"  note: {line}")


def print_noise(pooled: "Sequence[Noise]", each: "Sequence[Noise]", console: Any) -> None:
    """Print the deviation between runs of one cell, pooled and, at the largest budget, cell by cell."""
    from rich.table import Table

    table = Table(
        title="Run-to-run noise, nats per token",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for name in ("tokens", "stage", "weights", "cell"):
        table.add_column(name, no_wrap=True)
    for name in ("runs", "mean loss", "standard deviation, 95% interval", "within seed blocks"):
        table.add_column(name, justify="right")
    cells = len({one.cell for one in each}) > 1
    for one in sorted(
        (*pooled, *(each if cells else ())), key=lambda n: (-n.budget, n.stage, n.cell != "", n.cell)
    ):
        table.add_row(
            count(one.budget),
            one.stage,
            LOSS_NAMES[one.loss].removesuffix(" weights"),
            one.cell or "all",
            str(one.n_runs),
            number(one.mean),
            *(
                "" if d is None else f"{d.value:.4f} [{d.low:.4f}, {d.high:.4f}]"
                for d in (one.deviation, one.in_block)
            ),
        )
    console.print(table)


def print_trainer_choices(found: "Sequence[ChoiceTable]", said: "Sequence[str]", console: Any) -> None:
    """Print loss and slopes at every level of a choice, place by place, and what follows."""
    for one in found:
        first = one.levels[0]
        against = f"minus {first.level}"
        where = heading(one.stage, one.compensation, one.loss)
        console.print(
            f"\n{one.axis} at {count(one.budget)} tokens ({where}; {one.n_cells} cells)", style="bold"
        )
        losses = [
            (x.level, str(len(x.seeds)), f"{x.loss.value:.4f}", _plus_minus(x.loss_change))
            for x in one.levels
        ]
        console.print(_columns((one.axis, "seeds", "mean loss", against), losses))
        if first.difference is None:
            continue
        slopes = [
            (
                x.level,
                *map(_plus_minus, (x.delta_m, x.delta_n, x.difference, x.difference_change)),
                "–" if x.documents is None else f"± {x.documents:.4f}",
            )
            for x in one.levels
        ]
        heads = (one.axis, "delta_m", "delta_N", "difference", against, "documents")
        console.print(_columns(heads, slopes))
    if found and found[0].levels[0].difference is not None:
        console.print(
            "nats per token, of a doubling of top_m (delta_m) and of N_s (delta_N); ± 95% over seeds; documents: 95% "
            "of the difference over choices of validation documents",
            soft_wrap=True,
        )
    for sentence in said:
        console.print(f"\n{sentence}", soft_wrap=True)


def _plus_minus(estimate: "Estimate | None") -> str:
    """Return ``+0.0123 ± 0.0022`` of a symmetric interval."""
    if estimate is None:
        return "–"
    spread = f" ± {(estimate.high - estimate.low) / 2:.4f}" if estimate.has_interval else ""
    return f"{estimate.value:+.4f}{spread}"


def _columns(heads: "Sequence[str]", rows: "Sequence[Sequence[str]]") -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(heads):
        table.add_column(name, justify="right" if i else "left", no_wrap=bool(i))
    for row in rows:
        table.add_row(*row)
    return table


def rate_text(estimate: "Estimate") -> str:
    """Return ``0.0065 [0.0060, 0.0071]``, three digits; without the interval where there is none."""
    if not math.isfinite(estimate.value):
        return "–"
    value = f"{estimate.value:.3g}"
    return f"{value} [{estimate.low:.2g}, {estimate.high:.2g}]" if estimate.has_interval else value


def print_map(table: "Table", stage: str | None, compensation: str | None, loss: str, console: Any) -> None:
    """Print where in the (top_m, N_s) plane density beats size, or why that cannot be said."""
    from umscale.errors import UserError
    from umscale.questions.density_map import study_map

    where = heading(stage, compensation, loss)
    try:
        found = study_map(table, stage=stage, compensation=compensation, loss=loss)
    except UserError as error:
        console.print(f"\nno map ({where}): {error}")
        return
    console.print(f"\nWhere density beats size ({where}, law {found.law})", style="bold")
    for line in found.lines():
        console.print(f"  {line}")


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
        console.print("\n" + found.to_toml())
    else:
        write_text(output, found.to_toml())
        note(f"wrote {output}; run it with: umscale sweep {output}")


def print_contrast(found: "CellContrast", text: str, console: Any) -> None:
    """Print the loss of one cell minus that of another."""
    console.print(f"{text}: {estimate_text(found.difference)} nats ({found.stage}, {found.loss})")
    console.print(f"  {found.n_pairs} pairs of {found.n_seeds} seeds; {found.basis}")
