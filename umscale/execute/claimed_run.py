"""What happens in a worker whatever its job: reports of progress, and the training of one claimed run."""

import contextlib
import dataclasses
import gc
import json
import os
import socket
import time
import traceback
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from umscale.errors import UserError
from umscale.spec import RunSpec
from umscale.store.store import Store
from umscale.training.checkpoint import Workspace
from umscale.training.kept import continue_trunk
from umscale.training.record import spec_row

if TYPE_CHECKING:
    import torch

    from umscale.data.corpus import Corpus
    from umscale.training.process_group import World
    from umscale.training.run import Outcome, Progress

REPORT_SECONDS = 0.5
REPORT_VARIABLE = "UMSCALE_REPORT_SECONDS"
"""Environment variable that makes a worker report its progress more rarely."""
ADDRESS_VARIABLE = "UMSCALE_STORE_ADDRESS"
"""Environment variable with a store's whole URL where the command line has it without its password."""
STORAGE_VARIABLE = "UMSCALE_SEARCH_STORAGE"
"""Holds the URL of a search's database, whose password is in no job file."""


class Reporter:
    """Writes events as JSON lines; notes when nobody reads them any more, or when asked to stop."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.stopping = False
        self.remarked: set[str] = set()
        self.progress_seconds = float(os.environ.get(REPORT_VARIABLE, REPORT_SECONDS))
        self.last_progress = 0.0

    def __call__(self, event: str, **fields: Any) -> None:
        if self.stopping and event == "progress":
            return
        try:
            self.stream.write(json.dumps({"event": event} | fields) + "\n")
            self.stream.flush()
        except (BrokenPipeError, ValueError):
            self.stopping = True

    def remark(self, texts: "Iterable[str]") -> None:
        """Report what a user should know of this machine, each text once."""
        for text in texts:
            if text not in self.remarked:
                self.remarked.add(text)
                self("remark", text=text, host=socket.gethostname())

    def progress(self, run_id: str, fields: dict[str, Any]) -> None:
        """Report progress, twice a second at most."""
        now = time.monotonic()
        if now - self.last_progress >= self.progress_seconds:
            self.last_progress = now
            self("progress", run=run_id, **fields)


class Watch(Protocol):
    """Looks on while a run trains, and may end it early."""

    def record(self, outcome: "Outcome") -> None:
        """Called after each record."""
        ...

    def progress(self, progress: "Progress") -> None:
        """Called for each step, when its loss is known."""
        ...

    def should_stop(self) -> bool:
        """Asked before each step; true interrupts the run, whose checkpoint is kept."""
        ...


def train_one(
    store: Store,
    study: str,
    run: RunSpec,
    report: Reporter,
    device_name: str,
    watch: Watch | None = None,
    world: "World | None" = None,
    until: int | None = None,
) -> "Outcome | None":
    """Train one claimed run and write its results; a failure becomes a row with its reason.

    Args:
        world: the processes that train it together, of which this one is the first; None: this one alone.
        until: tokens after whose budget the run is paused, its checkpoint kept; None: train it to its end.

    Returns:
        What the run produced; None when it was interrupted (its checkpoint is kept) or failed.

    Raises:
        UserError: something the user must put right before any run can go on (disk, corpus).
    """
    from umscale.model.decoder import resolve_device
    from umscale.training.process_group import ALONE
    from umscale.training.run import Interrupted, Run
    from umscale_kernels.native import remarks as native_remarks

    run_id = run.run_id
    report("start", run=run_id, token=store.token(run_id))
    device = resolve_device(device_name)
    world = world or ALONE
    context = provenance(device, world.size)
    if device.type == "cpu":
        report.remark(native_remarks())
    heard = _Heard(store, study, run, report, watch, world, context)
    try:
        corpus = _corpus(run)
        workspace = Workspace.of(store, run_id, run.trunk_id)
        if (tokens := continue_trunk(workspace, run)) is not None:
            report.remark([f"{run_id} goes on from a kept trunk at {tokens:,} tokens"])
        outcome = Run(run, corpus, workspace, device, world).execute(
            heard.record, heard.progress, heard.should_stop, until
        )
    except Interrupted:
        return None
    except UserError:
        raise
    except Exception as error:  # a bug or a machine's fault: recorded, and the other runs go on
        reason = _failed(store, study, run, error, context)
        report("end", run=run_id, status="failed", reason=reason)
        return None
    finally:
        # Cycles hold a run's model, moments and mapped corpus, and Python looks for such only now and then: after some
        # forty runs a worker was seen to hold a dozen.
        gc.collect()
    if outcome.status != "paused":
        store.clear_work(run_id)
    report("end", run=run_id, status=outcome.status, reason=outcome.reason)
    return outcome


@dataclasses.dataclass(frozen=True, slots=True)
class _Heard:
    """What is done with what a run says while it trains."""

    store: Store
    study: str
    run: RunSpec
    report: Reporter
    watch: Watch | None
    world: "World"
    context: Mapping[str, str]

    def record(self, outcome: "Outcome") -> None:
        """Write what the run has so far; say its last record."""
        kernels = ", then ".join(dict.fromkeys(outcome.kernels))
        self.store.write_run(
            spec_row(self.run),
            self.study,
            status=outcome.status,
            reason=outcome.reason,
            records=outcome.records,
            documents=outcome.documents,
            curve=outcome.curve,
            probes=outcome.probes,
            evaluations=outcome.evaluations,
            context={**self.context, "kernels": kernels},
        )
        if outcome.records and outcome.status == "running":
            last = outcome.records[-1]
            said = {k: last[k] for k in ("budget", "stage", "loss", "loss_ema")}
            self.report("record", run=self.run.run_id, **said)
        if self.watch is not None:
            self.watch.record(outcome)

    def progress(self, progress: "Progress") -> None:
        """Pass progress on."""
        self.report.progress(self.run.run_id, dataclasses.asdict(progress))
        if self.watch is not None:
            self.watch.progress(progress)

    def should_stop(self) -> bool:
        """Whether any process was asked to stop: all stop at the same step, or none."""
        watch, report = self.watch, self.report
        if self.world.any(report.stopping or (watch is not None and watch.should_stop())):
            report.stopping = report.stopping or self.world.size > 1
            return True
        return False


def _corpus(run: RunSpec) -> "Corpus":
    from umscale.data.corpus import open_corpus

    corpus = open_corpus(run.data.corpus)
    if corpus.hash != run.data.hash:
        raise UserError(
            f"corpus {run.data.corpus!r} has changed since this sweep was planned; run the sweep again"
        )
    return corpus


def _failed(store: Store, study: str, run: RunSpec, error: Exception, context: Mapping[str, str]) -> str:
    """Record a failure, its traceback in a file beside; returns the reason in a line."""
    log = store.log_path(run.run_id)
    with contextlib.suppress(OSError):  # no room for it
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:500]
    store.fail_run(spec_row(run), study, reason, context=context)
    return reason


def provenance(device: "torch.device", n_processes: int = 1) -> dict[str, str]:
    """Columns of a record that say what it was made with."""
    from umscale.machine import stamp
    from umscale_kernels import kernels_in_use

    info = stamp()
    return {
        "device": device.type,
        "kernels": kernels_in_use(device.type),
        "versions": json.dumps(info["versions"]),
        "git_revision": info["git_revision"],
        "machine": info["machine"] + (f", {n_processes} processes" if n_processes > 1 else ""),
    }
