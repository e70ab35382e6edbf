"""``umscale train``: train one run of a study, on one process or on several together."""

import io
import json
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from umscale_cli.completion import studies
from umscale_cli.console import (
    EXIT_FAILED,
    JsonFlag,
    SetOption,
    StoreOption,
    count,
    duration,
    note,
    number,
    out,
    print_json,
)
from umscale_cli.executors import DeviceOption, ThreadsOption, check_device, stopping_noted
from umscale_cli.options import takes_options
from umscale_cli.runs import DEFAULT_ROOT
from umscale_cli.splits import DenseOption, TablesOption, check_split
from umscale_cli.sweep import View, planned, ready

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from umscale.design.study import Cell
    from umscale.execute.claimed_run import Reporter
    from umscale.execute.executor import Event
    from umscale.store.store import Store
    from umscale.training.process_group import World

SHOWN = 8
"""Labels that a message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Options of ``umscale train``."""

    study: Annotated[
        str,
        typer.Argument(
            help="A study that ships with umscale (quickstart) or a .toml file.", autocompletion=studies
        ),
    ]
    cell: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="Which cell, as in 'top_m=8 seed=0'; needed when there are several.",
            show_default=False,
        ),
    ] = None
    run: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Which run, by the beginning of its id.", show_default=False),
    ] = None
    nproc: Annotated[int, typer.Option(min=1, help="Processes that train it together.")] = 1
    tables: TablesOption = "replicated"
    dense: DenseOption = "replicated"
    store: StoreOption = None
    set_: SetOption = None
    threads: ThreadsOption = 1
    device: DeviceOption = "auto"
    force: Annotated[bool, typer.Option("--force", help="Train again, replacing what is stored.")] = False
    json_: JsonFlag = False


@takes_options
def train(asked: TrainOptions) -> None:
    """Train one run of a study with several processes as data parallel, each on its own GPU or core.

    The results are those of one process up to rounding, in the same store under the same id. Interrupted, the same
    command continues, also with another number of processes.
    """
    from umscale.design.study import load_study
    from umscale.store.store import FINAL
    from umscale.training.shards import check

    how = _how(asked)
    if int(os.environ.get("RANK", "0")) and under_torchrun():
        _follow(how)
        return
    plan_study = load_study(asked.study, asked.set_ or ())
    root = asked.store or str(DEFAULT_ROOT / plan_study.name)
    cells, precision = planned(plan_study, root)
    chosen = _choose(cells, asked.cell, asked.run)
    assert chosen.run is not None
    check(chosen.run, how.size, how.shard_tables, how.shard_dense)
    opened = ready(root, precision)
    if asked.force:
        opened.forget(chosen.run_id, chosen.run.trunk_id)
    opened.write_design(plan_study, cells)
    began, peaks = time.monotonic(), list[int]()
    if (status := opened.status(chosen.run_id)) in FINAL:
        note(f"run {chosen.run_id} is {status} already; --force trains it again")
    else:
        split = f"{how.size} processes, tables {asked.tables}, the rest {asked.dense}"
        note(
            f"{plan_study.name}: {chosen.label}, {split if how.size > 1 else '1 process'}; results in {opened.name}"
        )
        reason, peaks = _train(opened, plan_study.name, chosen, how)
        status = opened.status(chosen.run_id)
        if status not in FINAL:
            note(f"umscale: {reason or 'the run was stopped'}; the same command continues")
            raise typer.Exit(EXIT_FAILED)
    _print(opened, chosen, peaks, time.monotonic() - began, asked.json_)
    if status != "finished":
        raise typer.Exit(EXIT_FAILED)


def _how(asked: TrainOptions) -> "How":
    """How the run is spread, by the options or by torchrun."""
    check_device(asked.device)
    size = _torchrun_size(asked.nproc) or asked.nproc
    split = check_split(size, asked.tables, asked.dense)
    return How(
        size=size,
        shard_tables=split.shard_tables,
        shard_dense=split.shard_dense,
        device=asked.device,
        threads=asked.threads,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class How:
    """How a run is spread over processes."""

    size: int
    shard_tables: bool
    shard_dense: bool
    device: str
    threads: int

    def take_part(self, report: "Reporter") -> "AbstractContextManager[tuple[World, torch.device]]":
        """Join torchrun's processes."""
        from umscale.execute.member import take_part

        return take_part(report, "env://", self.shard_tables, self.shard_dense, self.device, self.threads)


def under_torchrun() -> bool:
    """Whether torchrun started this process, as one of several that run the same command."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _torchrun_size(nproc: int) -> int | None:
    """Return torchrun's number of processes, None without it."""
    from umscale.errors import UserError

    if not under_torchrun():
        return None
    if nproc > 1:
        raise UserError(
            "--nproc: torchrun has started the processes already; give it --nproc-per-node instead"
        )
    return int(os.environ["WORLD_SIZE"])


def _choose(cells: "list[Cell]", label: str | None, run_id: str | None) -> "Cell":
    """Return the one cell that is meant; a label may leave out what the others do not need to be told apart."""
    from umscale.cell_labels import label_parts
    from umscale.errors import UserError

    words = set(label_parts(label))
    found = {
        cell.run_id: cell
        for cell in cells
        if words <= set(label_parts(cell.label)) and cell.run_id.startswith(run_id or "")
    }
    if len(found) == 1:
        (cell,) = found.values()
        if cell.run is None:
            raise UserError(f"cell {cell.label!r} is infeasible: {cell.reason}")
        return cell
    asked = " ".join(f"--{name} {value!r}" for name, value in (("cell", label), ("run", run_id)) if value)
    listed = list(found.values()) or cells
    labels = ", ".join(repr(cell.label) for cell in listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")
    if found:
        raise UserError(f"{asked or 'the study'} has {len(found)} cells; choose one with --cell: {labels}")
    raise UserError(f"no cell for {asked}; there are {labels}")


# ---------------------------------------------------------------------------------------------------------
# Training


def _train(store: "Store", study: str, cell: "Cell", how: How) -> tuple[str, list[int]]:
    """Train a run, live; return why it ended early, if it did, and every process's peak memory in bytes."""
    from umscale.execute.launch import launch
    from umscale.execute.workload import make_plan

    assert cell.run is not None
    view = View(make_plan(study, [cell]), {cell.run_id: cell.label}, {cell.run_id})
    peaks: list[int] = []

    def on_event(event: "Event") -> None:
        if event["event"] == "memory":
            peaks.extend(event["peak_bytes"])
        view.handle(0, event)

    try:
        with stopping_noted(), view:
            if under_torchrun():
                return _lead(store, study, cell, how, on_event), peaks
            reason = launch(
                store, study, cell.run, nproc=how.size, shard_tables=how.shard_tables,
                shard_dense=how.shard_dense, device=how.device, threads=how.threads, on_event=on_event,
            )  # fmt: skip
            return reason, peaks
    except KeyboardInterrupt:
        note("stopped (the same command continues)")
        raise


def _lead(store: "Store", study: str, cell: "Cell", how: How, on_event: "Callable[[Event], None]") -> str:
    """Train as the first of torchrun's processes."""
    from umscale.execute.claimed_run import Reporter
    from umscale.execute.member import LOST, lead

    assert cell.run is not None
    report = Reporter(Events(on_event))
    try:
        with how.take_part(report) as (world, device):
            lead(world, store, study, cell.run, report, device)
    except LOST as error:
        return str(error)
    if report.stopping:
        raise KeyboardInterrupt
    return ""


def _follow(how: How) -> None:
    """Train as any other of torchrun's processes."""
    from umscale.execute.claimed_run import Reporter
    from umscale.execute.member import LOST, follow

    with open(os.devnull, "w", encoding="utf-8") as nobody:
        report = Reporter(nobody)
        try:
            with how.take_part(report) as (world, device):
                follow(world, report, device)
        except LOST as error:
            note(f"umscale: ended with another process: {error}")
            raise typer.Exit(EXIT_FAILED) from None


class Events(io.StringIO):
    """A stream that takes reports to where events are shown, and keeps none."""

    def __init__(self, on_event: "Callable[[Event], None]") -> None:
        super().__init__()
        self.on_event = on_event

    def write(self, line: str) -> int:
        """Take one report."""
        self.on_event(json.loads(line))
        return len(line)


# ---------------------------------------------------------------------------------------------------------
# Afterwards


def _print(store: "Store", cell: "Cell", peaks: list[int], seconds: float, json_: bool) -> None:
    """Say what the run found."""
    import pyarrow.compute as pc

    runs = store.read("runs")
    columns = [
        "budget",
        "stage",
        "loss",
        "loss_ema",
        "bits_per_byte",
        "tokens_per_second",
        "status",
        "reason",
    ]
    rows = runs.filter(pc.equal(runs["run_id"], cell.run_id)).select(columns).to_pylist()
    if json_:
        found = {"store": store.name, "run_id": cell.run_id, "cell": cell.label, "seconds": seconds}
        print_json(found | {"peak_memory_bytes": peaks, "records": rows})
        return
    console = out()
    console.print(f"run {cell.run_id}   {cell.label}   {rows[-1]['status']} {rows[-1]['reason'] or ''}")
    for row in rows:
        console.print(
            f"  {count(row['budget'])} tokens, {row['stage']}: loss {number(row['loss'])} nats/token, averaged weights "
            f"{number(row['loss_ema'])}, {number(row['bits_per_byte'])} bits/byte",
            soft_wrap=True,
        )
    if peaks:
        memory = ", ".join(f"{peak / 2**20:,.0f}" for peak in peaks)
        console.print(
            f"{duration(seconds)}, {rows[-1]['tokens_per_second']:,.0f} tokens/s; peak memory by process, MiB: {memory}"
        )
    console.print(
        f"Next      umscale show {cell.run_id[:8]} --study {shlex.quote(store.name)}", soft_wrap=True
    )
