"""A worker process: does its share of a job, run after run, and writes the results.

Run as ``python -P -m umscale.execute.worker STORE JOB THREADS DEVICE [JOBS]``, where JOBS is the module of umscale
that reads the job; without it a sweep's. Reports JSON lines on stdout. It needs no coordinator: claims in the store
keep workers apart, wherever they were started. It stops cleanly, with a checkpoint, on SIGTERM and SIGHUP, on SIGUSR2
(a scheduler's warning) and when the process that reads its reports is gone.
"""

import os
import signal
import socket
import sys
from importlib import import_module

from umscale.errors import UserError
from umscale.execute.claimed_run import ADDRESS_VARIABLE, Reporter
from umscale.execute.job import Kinds, read_job
from umscale.store.store import Store


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    root, job, threads, device_name, *jobs = arguments
    kinds = _kinds(*jobs)
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stray prints must not mix with the reports
    report = Reporter(stream)

    def stop(signum: int, frame: object) -> None:
        report.stopping = True

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which stops its workers
    try:
        import torch

        from umscale.machine import keep_freed_memory

        torch.set_num_threads(int(threads))
        keep_freed_memory()
        report("ready")
        store = Store.open(os.environ.get(ADDRESS_VARIABLE, root))
        read_job(store, job, kinds).work(store, report, device_name)
    except UserError as error:
        report("user_error", message=str(error), host=socket.gethostname())
        return 2
    report("stopped", early=report.stopping)
    return 0


def _kinds(module: str = "umscale.execute.workload") -> Kinds:
    """The jobs that a module reads: whoever starts a worker names it, and nothing in the store does."""
    if not module.startswith("umscale."):
        raise SystemExit(f"{module} is no module of umscale")
    found: Kinds = import_module(module).JOBS
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
