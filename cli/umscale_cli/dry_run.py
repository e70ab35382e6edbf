"""What ``umscale sweep --dry-run`` says: the cells and what they cost, counted; how long they take; what to change."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from umscale_cli.console import count, duration, note, out, print_json

if TYPE_CHECKING:
    from umscale.design.study import Cell, Study
    from umscale.execute.estimate import Estimate
    from umscale.spec import RunSpec

SHOWN_CELLS = 200
"""Rows of the table; ``--json`` lists all cells."""
SHOWN_REASONS = 20
GIB = 2**30


def show_plan(
    study: "Study", cells: "list[Cell]", n_workers: int, threads: int, json_: bool, until: int | None = None
) -> None:
    """Print the plan of a sweep.

    Args:
        threads: of a worker, whose steps are timed; 0 leaves times out.
        until: tokens after whose budget the runs are to be paused.

    Raises:
        UserError: no cell can be trained.
    """
    from umscale.design.conditioning import condition
    from umscale.design.study import design_columns
    from umscale.errors import UserError
    from umscale.execute.workload import make_plan

    ordered = make_plan(study.name, cells, until)
    runs = {run_id: _until(run, until) for run_id, run in zip(ordered.run_ids, ordered.runs, strict=True)}
    hints = [] if all(cell.run for cell in cells) else _advice(study, cells)
    if not runs:
        reasons = [reason for _, reason in _infeasible(cells)]
        raise UserError("; ".join([f"none of the {len(cells)} cells can be trained: {reasons[0]}", *hints]))
    found = _timed(list(runs.values()), threads) if threads else None
    seconds = dict(zip(runs, found.runs, strict=True)) if found else {}
    design = condition(design_columns(study, cells))
    if json_:
        print_json(
            {
                "study": study.name,
                "cells": [_cell_row(cell) | {"seconds": seconds.get(cell.run_id)} for cell in cells],
                "seconds": found.sweep_seconds(n_workers) if found else None,
                "training_flops": sum(map(_training_flops, runs.values())),
                "workers": n_workers,
                "kept_bytes": _kept_bytes(list(runs.values())),
                "advice": hints,
                "conditioning": {
                    "condition": design.condition,
                    "rank": design.rank,
                    "correlations": {f"{a}~{b}": r for (a, b), r in design.correlations.items()},
                    "statements": list(design.statements),
                },
            }
        )
        return
    console = out()
    _print_cells(study, cells, seconds)
    for hint in hints:
        console.print(hint, soft_wrap=True)
    console.print("\nDesign")
    comparable = study.question in ("architectures", "allocation")
    for statement in _held_equal(cells) if comparable else design.statements:
        console.print(f"  {statement}", soft_wrap=True)
    _memory(list(runs.values()), n_workers)
    if kept := _kept_bytes(list(runs.values())):
        console.print(f"\nWeights kept in the store (train.keep): {size_words(kept)}")
    console.print(
        f"\n{_duration(list(runs.values()), found, n_workers)} Nothing was written.", soft_wrap=True
    )


def _print_cells(study: "Study", cells: "list[Cell]", seconds: Mapping[str, float]) -> None:
    console, refused = out(), _infeasible(cells)
    console.print(_cell_table(study, cells[:SHOWN_CELLS], len(cells), seconds))
    if len(cells) > SHOWN_CELLS:
        console.print(f"... and {len(cells) - SHOWN_CELLS} more cells; --json lists all")
    for label, reason in refused[:SHOWN_REASONS]:
        console.print(f"infeasible: {label}: {reason}", soft_wrap=True)
    if len(refused) > SHOWN_REASONS:
        console.print(f"... and {len(refused) - SHOWN_REASONS} more infeasible cells")


def _until(run: "RunSpec", tokens: int | None) -> "RunSpec":
    """Return a run that costs what ``run`` does when it is paused after ``tokens``; only its costs are its own."""
    kept = run.train.budgets[: run.budgets_until(tokens)]
    return replace(run, train=replace(run.train, budgets=kept))


def _timed(runs: "Sequence[RunSpec]", threads: int) -> "Estimate":
    from umscale.execute.estimate import estimate

    note("timing a few steps of some shapes; --no-measure only counts ...")
    return estimate(runs, threads)


def _duration(runs: "Sequence[RunSpec]", found: "Estimate | None", n_workers: int) -> str:
    work = f"{len(runs)} runs, {sum(map(_training_flops, runs)):.3g} FLOPs of training"
    if found is None:
        return f"{work}."
    how = "" if found.timed else ", of an ordinary core: no shape was small enough to be timed here"
    return (
        f"{work}: about {duration(found.sweep_seconds(n_workers))} with {n_workers} workers "
        f"({duration(sum(found.runs))} of one worker{how})."
    )


def _training_flops(run: "RunSpec") -> float:
    """Return the FLOPs of training a run: three times the forward pass for every token of trunk and branches."""
    from umscale.accounting import cost

    tokens = run.total_steps * run.tokens_per_step
    return 3 * cost(run.model, run.data.seq_len).flops_per_token * tokens


def _kept_bytes(runs: "Sequence[RunSpec]") -> int:
    """Return what the runs leave in the store beside their records."""
    from umscale.accounting import cost
    from umscale.execute.estimate import kept_bytes

    sizes = (cost(run.model, run.data.seq_len).total_params_with_embedding for run in runs)
    return sum(kept_bytes(run, n_params) for run, n_params in zip(runs, sizes, strict=True))


def size_words(n_bytes: int) -> str:
    """Return a size in words, in binary units of two or three digits."""
    value, unit = float(n_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"


def _memory(runs: "Sequence[RunSpec]", n_workers: int) -> None:
    """Say when workers will not fit this machine."""
    from umscale.execute.estimate import available_bytes, state_bytes

    room = available_bytes() / min(n_workers, len(runs))
    large = [size for size in map(state_bytes, runs) if size > room]
    if large:
        note(
            f"warning: {len(large)} of {len(runs)} runs need more memory than a worker has here: up to "
            f"{max(large) / GIB:,.1f} GiB for parameters and optimiser, of {room / GIB:,.1f}"
        )


# ---------------------------------------------------------------------------------------------------------
# What cannot be trained, and what would help


def _infeasible(cells: "Sequence[Cell]") -> list[tuple[str, str]]:
    """Return label and reason of each infeasible cell, once for all its seeds."""
    found: dict[tuple[str, str], None] = {}
    for cell in cells:
        if cell.run is None:
            label = cell.label.rpartition(" ")[0] or cell.label  # the seed stands last
            found.setdefault((label, cell.reason), None)
    return list(found)


def _advice(study: "Study", cells: "Sequence[Cell]") -> list[str]:
    """Return what makes infeasible cells feasible, ready to be typed."""
    missed = [cell.missed for cell in cells if cell.missed is not None]
    hints = []
    nearest: dict[str, dict[Any, Counter[float]]] = {}
    for cell in cells:
        if cell.missed is not None and cell.missed.name in study.axes:
            target = cell.targets[cell.missed.name]
            by_target = nearest.setdefault(cell.missed.name, {})
            by_target.setdefault(target, Counter())[cell.missed.nearest] += 1
    for name, by_target in nearest.items():
        values = [_nearest(by_target[v]) if v in by_target else v for v in study.axes[name]]
        left = _infeasible_with(study, name, values)
        done = "all cells are feasible" if not left else f"{left} of {len(cells)} cells stay infeasible"
        listed = ",".join(f"{v:.10g}" if isinstance(v, float) else str(v) for v in values)
        hints.append(f"with --set 'axes.{name}=[{listed}]' {done}")
    if missed:
        worst = max(abs(m.nearest / m.target - 1) for m in missed)
        wide = math.ceil(1000 * worst + 1e-9) / 1000
        hints.append(f"--tolerance {wide:g} accepts the nearest as they are")
    return hints


def _nearest(values: "Counter[float]") -> int | float:
    value = values.most_common(1)[0][0]
    return int(value) if value == int(value) else value


def _infeasible_with(study: "Study", name: str, values: Sequence[Any]) -> int:
    """Return how many cells cannot be trained when an axis has other values."""
    from umscale.design.study import expand

    changed = replace(study, axes={**study.axes, name: tuple(dict.fromkeys(values))})
    return sum(cell.run is None for cell in expand(changed, "float32"))


# ---------------------------------------------------------------------------------------------------------
# Cells


def _held_equal(cells: "list[Cell]") -> list[str]:
    """Say how nearly equal the cells are in what a comparison of kinds of models should hold constant."""
    costs = [cell.solved.cost for cell in cells if cell.solved is not None]
    out = []
    for name, words in (
        ("flops_per_token", "forward FLOPs per token"),
        ("active_params", "active parameters"),
    ):
        values = [getattr(c, name) for c in costs]
        out.append(f"{words} differ by at most {max(values) / min(values) - 1:.1%}")
    sparse = [c.total_params for c in costs if c.sparse_params]
    if sparse:
        out.append(f"total parameters, dense models apart, by at most {max(sparse) / min(sparse) - 1:.1%}")
    return out


def _cell_row(cell: "Cell") -> dict[str, Any]:
    row: dict[str, Any] = {
        "run_id": cell.run_id,
        "cell": cell.label,
        "targets": dict(cell.targets),
        "seed": cell.seed,
        "compensation": cell.compensation,
        "feasible": cell.run is not None,
        "reason": cell.reason,
    }
    if cell.solved is not None:
        row |= {"wanted": dict(cell.solved.targets), "achieved": dict(cell.solved.achieved)}
        row |= {"cost": cell.solved.cost.to_dict()}
    return row


def _cell_table(study: "Study", cells: "Sequence[Cell]", n_cells: int, seconds: Mapping[str, float]) -> Any:
    from rich.table import Table

    table = Table(title=f"{study.name}: {n_cells} cells", title_justify="left", box=None, pad_edge=False)
    for name in (
        "cell",
        "n_keys/experts",
        "top_m/k",
        "d_ffn",
        "N_s",
        "A_s",
        "rho",
        "MCP",
        "total",
        "active",
        "FLOPs/token",
        "time",
    ):
        table.add_column(name, justify="left" if name == "cell" else "right", no_wrap=True)
    for cell in cells:
        if cell.solved is None:
            table.add_row(cell.label, *["–"] * 10, "infeasible")
            continue
        cost, model = cell.solved.cost, cell.solved.model
        memory, ffn = model.memory, model.ffn
        experts = (str(ffn.n_experts), str(ffn.top_k)) if ffn.kind == "moe" else ("–", "–")
        table.add_row(
            cell.label,
            str(memory.n_keys) if memory else experts[0],
            str(memory.heads * memory.top_m) if memory else experts[1],
            str(model.ffn.d_ffn),
            count(cost.sparse_params),
            count(cost.active_sparse_params),
            f"{cost.density:.2e}" if cost.sparse_params else "–",
            f"{cost.mcp:.1%}",
            count(cost.total_params),
            count(cost.active_params),
            count(cost.flops_per_token),
            duration(seconds[cell.run_id]) if seconds else "–",
        )
    return table
