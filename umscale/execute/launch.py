"""Start the processes of a run on this machine, hear the first, and end all when one is lost.

Processes are started and watched by the part of torchrun that does so (``torch.distributed.elastic.multiprocessing``).
Its rendezvous is left out: it listens on every interface and unpickles what it is told. One machine needs none; the
processes find each other by a file in a folder of mode 700 and talk over the loopback interface.
"""

import dataclasses
import json
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from torch.distributed.elastic.multiprocessing import (
    DefaultLogsSpecs,
    PContext,
    RunProcsResult,
    SignalException,
    Std,
    start_processes,
)

from umscale.errors import UserError
from umscale.execute.executor import STOP_SECONDS, Event, parse_event, worker_environment
from umscale.execute.member import EXIT_LOST, Job
from umscale.processes import python_command
from umscale.spec import RunSpec, to_dict
from umscale.store.store import Store
from umscale.urls import redact

POLL_SECONDS = 0.1
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals for which torch installs handlers when processes start."""


def launch(
    store: Store,
    study: str,
    run: RunSpec,
    *,
    nproc: int,
    shard_tables: bool,
    shard_dense: bool,
    device: str,
    threads: int,
    on_event: Callable[[Event], None],
) -> str:
    """Train a run with ``nproc`` processes of ``threads`` threads; return why they ended early, empty if they did not.

    ``on_event`` gets ``start``, ``progress``, ``record`` and ``end`` as from a sweep's workers, and ``memory`` with the
    peak of each process.

    Raises:
        UserError: a process met something only the user can put right.
        KeyboardInterrupt: a signal came, and the processes have written their checkpoint.
    """
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="umscale-train-"))  # mode 700
    logs = store.scratch / "logs" / f"train-{os.getpid()}"
    pipe, file = folder / "events", folder / "job.json"
    inbox = _inbox(pipe)
    where = str(store.root.absolute()) if store.is_folder else redact(store.address)
    job = Job(
        store=where, study=study, run=to_dict(run), shard_tables=shard_tables, shard_dense=shard_dense,
        device=device, threads=threads, rendezvous=f"file://{folder}/rendezvous", events=str(pipe),
    )  # fmt: skip
    file.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    program, *arguments = python_command("umscale.parallel.worker", str(file))
    commands = dict.fromkeys(range(nproc), tuple(arguments))
    environments = _environments(store, threads, nproc)
    specs = DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL)
    context, reason = None, ""
    try:
        context = start_processes("umscale", program, commands, environments, specs)
        for number, handler in handlers.items():  # torch's own are for those who have none
            if handler is not signal.SIG_DFL:
                signal.signal(number, handler)
        reason = _reason(_listen(context, inbox, on_event), nproc)
    except SignalException as error:
        signal.signal(error.sigval, handlers[error.sigval])
        if callable(handlers[error.sigval]):  # as if it had come a moment later
            signal.raise_signal(error.sigval)
        raise KeyboardInterrupt from None
    finally:
        if context is not None:
            context.close(signal.SIGTERM, int(STOP_SECONDS))
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(inbox)
        shutil.rmtree(folder, ignore_errors=True)
        if not reason:
            shutil.rmtree(logs, ignore_errors=True)
    return reason


def _inbox(pipe: Path) -> int:
    os.mkfifo(pipe)
    return os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # for writing too: no end of file before the first writer


def _environments(store: Store, threads: int, nproc: int) -> dict[int, dict[str, str]]:
    """Rank → environment, as torchrun gives it to its workers."""
    common = worker_environment(store, threads) | {"WORLD_SIZE": str(nproc)}
    common |= {name: os.environ.get(name, value) for name, value in LOOPBACK.items()}
    return {rank: {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(nproc)}


def _listen(context: PContext, inbox: int, on_event: Callable[[Event], None]) -> RunProcsResult:
    """Pass on what the first process reports until all have ended."""
    heard = ""
    while True:
        result = context.wait(0)
        heard = _hear(inbox, heard, on_event)
        if result is not None:
            return result
        time.sleep(POLL_SECONDS)


def _hear(inbox: int, heard: str, on_event: Callable[[Event], None]) -> str:
    """Hand on the events in the pipe; return the beginning of the next one."""
    for text in _read(inbox):
        *lines, heard = (heard + text).split("\n")
        for line in lines:
            event = parse_event(line)
            if event is not None and event["event"] == "user_error":
                raise UserError(event["message"])
            if event is not None:
                on_event(event)
    return heard


def _read(inbox: int) -> Iterator[str]:
    """Yield what is in the pipe."""
    while True:
        try:
            yield os.read(inbox, 65536).decode()
        except BlockingIOError:
            return


def _reason(result: RunProcsResult, nproc: int) -> str:
    """Say in a line which process ended the others, and how; nothing if all came to their end."""
    failures = result.failures
    if not failures:
        return ""
    rank = min(failures, key=lambda r: (failures[r].exitcode == EXIT_LOST, failures[r].timestamp))
    code = failures[rank].exitcode
    log = Path(result.stderrs[rank])
    last: list[str] = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    said = next((line.strip() for line in reversed(last) if line.strip()), "")
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"process {rank} of {nproc} {how}" + (f": {said}" if said else "") + f" ({log})"
