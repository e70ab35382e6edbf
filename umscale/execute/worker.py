"""A worker process: claims runs of a plan one after another, trains them, writes their results.

Run as ``python -m umscale.execute.worker STORE PLAN THREADS DEVICE``; reports JSON lines on stdout. It needs no
coordinator: claims in the store keep workers apart, wherever they were started. It stops cleanly, with a
checkpoint, on SIGTERM and when the process that reads its reports is gone.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from umscale.errors import UserError
from umscale.execute.plan import Plan, read_plan
from umscale.spec import RunSpec
from umscale.store import FINAL, Store

REPORT_SECONDS = 0.5


class Reporter:
    """Writes events as JSON lines; notes when nobody reads them any more, or when asked to stop."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.stopping = False
        self.last_progress = 0.0

    def __call__(self, event: str, **fields: Any) -> None:
        if self.stopping and event == "progress":
            return
        try:
            self.stream.write(json.dumps({"event": event} | fields) + "\n")
            self.stream.flush()
        except (BrokenPipeError, ValueError):
            self.stopping = True

    def progress(self, run_id: str, fields: dict[str, Any]) -> None:
        """Report progress at most twice a second."""
        now = time.monotonic()
        if now - self.last_progress >= REPORT_SECONDS:
            self.last_progress = now
            self("progress", run=run_id, **fields)


def work(store: Store, plan: Plan, report: Reporter, device_name: str) -> None:
    """Train every run of the plan that is neither finished nor claimed by another worker."""
    for run in plan.runs:
        if report.stopping:
            return
        if store.status(run.run_id) in FINAL:
            continue
        with store.claim(run.run_id) as mine:
            if mine and store.status(run.run_id) not in FINAL:
                train_one(store, plan.study, run, report, device_name)


def train_one(store: Store, study: str, run: RunSpec, report: Reporter, device_name: str) -> None:
    """Train one claimed run and write its results; a failure becomes a row with its reason.

    Raises:
        UserError: something the user must put right before any run can go on (disk, corpus).
    """
    import dataclasses

    from umscale.data.corpus import open_corpus
    from umscale.machine import stamp
    from umscale.model import resolve_device
    from umscale.train import Interrupted, Outcome, Progress, Run
    from umscale_kernels import default_backend

    run_id = run.run_id
    report("start", run=run_id)
    device = resolve_device(device_name)
    info = stamp()
    context = {
        "device": device.type,
        "kernels": default_backend(device.type),
        "versions": json.dumps(info["versions"]),
        "git_revision": info["git_revision"],
        "machine": info["machine"],
    }

    def on_record(outcome: Outcome) -> None:
        store.write_run(
            run,
            study,
            status=outcome.status,
            reason=outcome.reason,
            records=outcome.records,
            documents=outcome.documents,
            curve=outcome.curve,
            context=context,
        )
        if outcome.records and outcome.status == "running":
            last = outcome.records[-1]
            report("record", run=run_id, **{k: last[k] for k in ("budget", "stage", "loss", "loss_ema")})

    def on_progress(progress: Progress) -> None:
        report.progress(run_id, dataclasses.asdict(progress))

    try:
        corpus = open_corpus(run.data.corpus)
        if corpus.hash != run.data.hash:
            raise UserError(
                f"corpus {run.data.corpus!r} has changed since this sweep was planned; run the sweep again"
            )
        outcome = Run(run, corpus, store.checkpoints(run_id), device).execute(
            on_record, on_progress, lambda: report.stopping
        )
    except Interrupted:
        return
    except UserError:
        raise
    except Exception as error:  # a bug or a machine's fault: recorded, and the other runs go on
        log = store.log_path(run_id)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc(), encoding="utf-8")
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:500]
        store.write_run(run, study, status="failed", reason=reason, context=context)
        report("end", run=run_id, status="failed", reason=reason)
        return
    store.clear_work(run_id)
    report("end", run=run_id, status=outcome.status, reason=outcome.reason)


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    root, plan_path, threads, device_name = arguments
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stray prints must not mix with the reports
    report = Reporter(stream)

    def stop(signum: int, frame: object) -> None:
        report.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which stops its workers
    try:
        import torch

        from umscale.machine import keep_freed_memory

        torch.set_num_threads(int(threads))
        keep_freed_memory()
        report("ready")
        work(Store.open(Path(root)), read_plan(Path(plan_path)), report, device_name)
    except UserError as error:
        report("user_error", message=str(error))
        return 2
    report("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
