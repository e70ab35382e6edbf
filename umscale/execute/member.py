"""One of the processes that train a run together.

Run as ``python -m umscale.parallel.worker JOB`` with the environment that torchrun gives its workers. The first process
claims the run, reports JSON lines and writes the store; the others follow it. All stop, with a checkpoint, when any is
sent SIGTERM or SIGINT, or when the process that reads the reports is gone.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from umscale.data.corpus import open_corpus
from umscale.errors import UserError
from umscale.execute.claimed_run import ADDRESS_VARIABLE, Reporter, train_one
from umscale.files import open_files
from umscale.machine import keep_freed_memory, peak_memory_bytes
from umscale.spec import RunSpec, from_dict, to_dict
from umscale.store.store import Store, checkpoint_folder
from umscale.training.checkpoint import Workspace
from umscale.training.process_group import PeerLost, World, joined
from umscale.training.run import Interrupted, Run
from umscale.urls import redact

EXIT_LOST = 4
"""Exit code of a process that ended because another did, or because its run was taken over."""
LOST = (Interrupted, PeerLost)
"""What ``lead`` and ``follow`` then raise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the processes on this machine are told, as JSON."""

    store: str
    study: str
    run: Mapping[str, Any]
    shard_tables: bool
    shard_dense: bool
    device: str
    threads: int
    rendezvous: str
    """Where the processes find each other, as ``torch.distributed`` takes it."""
    events: str
    """A named pipe that takes the first process's reports."""


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    job = Job(**json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    first = int(os.environ["RANK"]) == 0
    with open(job.events if first else os.devnull, "w", encoding="utf-8") as stream:
        report = Reporter(stream)
        part = take_part(report, job.rendezvous, job.shard_tables, job.shard_dense, job.device, job.threads)
        try:
            with part as (world, device):
                if first:
                    store = Store.open(os.environ.get(ADDRESS_VARIABLE, job.store))
                    lead(world, store, job.study, from_dict(RunSpec, job.run), report, device)
                else:
                    follow(world, report, device)
        except UserError as error:
            report("user_error", message=str(error), host=socket.gethostname())
            print(error, file=sys.stderr)
            return 2
        except LOST as error:
            print(f"ended with another process: {error}", file=sys.stderr)
            return EXIT_LOST
    return 0


@contextlib.contextmanager
def take_part(
    report: Reporter, rendezvous: str, shard_tables: bool, shard_dense: bool, device: str, threads: int
) -> Iterator[tuple[World, torch.device]]:
    """Prepare this process, join the world (see ``joined``) and yield it with the process's own device."""
    _stop_on_signals(report)
    torch.set_num_threads(threads)
    keep_freed_memory()
    own = _own_device(device)
    with joined(rendezvous, shard_tables=shard_tables, shard_dense=shard_dense, device=own) as world:
        yield world, own


def lead(
    world: World, store: Store, study: str, run: RunSpec, report: Reporter, device: torch.device
) -> None:
    """Claim a run and train it as the first process of ``world``; write its results and report on it.

    Raises:
        Interrupted: another process is gone, or another worker has taken the run over.
        UserError: another worker is training the run, or what ``train_one`` raises.
    """
    with store.claim(run.run_id) as mine:
        if not mine:
            raise UserError(f"run {run.run_id} is being trained by another process; `umscale runs` shows it")
        world.share_text(json.dumps(to_dict(run)))
        world.share_text(str(store.root.absolute()) if store.is_folder else redact(store.address))
        outcome = train_one(store, study, run, report, str(device), world=world)
        if outcome is not None:
            report("memory", peak_bytes=_peaks(world, device))
        elif not report.stopping:  # the others must not wait for this process
            raise Interrupted("the run failed here, was taken over, or another process is gone")


def follow(world: World, report: Reporter, device: torch.device) -> None:
    """Train the run that the first process claims, as another process of ``world``.

    It writes its part of checkpoints, if it reaches the first's store.

    Raises:
        Interrupted, PeerLost: another process is gone.
        UserError: the run's corpus is not on this machine.
    """
    run = from_dict(RunSpec, json.loads(world.share_text("")))
    address = world.share_text("")
    corpus = open_corpus(run.data.corpus)
    if corpus.hash != run.data.hash:
        raise UserError(f"corpus {run.data.corpus!r} is another one on {socket.gethostname()}")
    files = open_files(os.environ.get(ADDRESS_VARIABLE, address))  # an address with a password is not sent
    workspace = Workspace(files=files, folder=checkpoint_folder(run.run_id))
    training = Run(run, corpus, workspace, device, world)

    def should_stop() -> bool:
        report.stopping = world.any(report.stopping)
        return report.stopping

    try:
        training.execute(lambda outcome: None, should_stop=should_stop)
    except Interrupted:
        if not report.stopping:
            raise
    else:
        _peaks(world, device)


def _own_device(name: str) -> torch.device:
    """Return this process's device of the kind ``name``: its own GPU, by ``LOCAL_RANK``.

    Raises:
        UserError: there are fewer GPUs than processes here.
    """
    rank, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not n_gpus):
        return torch.device("cpu")
    if rank >= n_gpus:
        raise UserError(
            f"process {rank} here has no GPU of its own: torch sees {n_gpus}; lower --nproc, or --device cpu"
        )
    return torch.device("cuda", rank)


def _stop_on_signals(report: Reporter) -> None:
    """Let SIGTERM, SIGINT, SIGHUP and a scheduler's SIGUSR2 stop the run with a checkpoint."""

    def stop(signum: int, frame: object) -> None:
        report.stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, stop)


def _peaks(world: World, device: torch.device) -> list[int]:
    """Return every process's peak memory, of its GPU if it has one."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
    return [int(x) for x in world.gather(torch.tensor(peak))]
