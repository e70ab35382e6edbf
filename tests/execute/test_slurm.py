"""Slurm: a real controller and a real node daemon on this machine do the sweep."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from umscale.errors import UserError
from umscale.execute import slurm as engine
from umscale.execute.slurm import SlurmExecutor, Terms, minutes
from umscale.store.store import Store


def queue() -> list[str]:
    """States of the jobs that Slurm has."""
    command = ["squeue", "--noheader", "--array", "--format=%i %T"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def kill_job(store: Store) -> None:
    """Kill all processes of the job that trains something, without a word, as when its node is lost."""
    for claim in store.claimed().values():
        parent = int(Path(f"/proc/{claim.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        os.kill(claim.pid, signal.SIGKILL)


def checkpoints(store: Store) -> list[str]:
    return [str(path) for path in store.root.glob("work/checkpoints/*/*.safetensors")]


@contextmanager
def once_checkpointed(store: Store, act: Callable[[], None]) -> Iterator[None]:
    """Act as soon as a run has a checkpoint: between two reports a fast machine may end it."""
    acted, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if checkpoints(store) and store.claimed():
                act()
                acted.set()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert acted.is_set(), "the run ended without a checkpoint"


@pytest.mark.usefixtures("slurm")
def test_gives_the_results_of_a_local_sweep(run_umscale, study, plan, undisturbed, results, tmp_path):
    (tmp_path / "tiny.toml").write_text(study.to_toml())
    process = run_umscale(
        "sweep", "tiny.toml", "--store", "s", "--no-report", "--executor", "slurm", "--workers", 2, "--time", 5,
        "--partition", "main", "--slurm", "comment=a sweep",
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "2 of 2 runs finished" in out
    assert results(Store.open(tmp_path / "s")) == undisturbed
    assert queue() == []


@pytest.mark.usefixtures("slurm")
def test_a_warned_job_checkpoints_and_goes_back_to_the_queue_by_itself(
    store, long_run, undisturbed_run, results, monkeypatch
):
    monkeypatch.setattr(engine, "REPORT_SECONDS", 0.1)
    seen = []

    def warn() -> None:  # as Slurm does before a time limit
        subprocess.run(["scancel", "--signal=USR2", executor.jobs[0].job_id], check=True)

    with (
        SlurmExecutor(store, long_run, 1, terms=Terms(minutes=5)) as executor,
        once_checkpointed(store, warn),
    ):
        executor.run(lambda number, event: seen.append(event))
    kinds = [event["event"] for event in seen]
    assert kinds.count("requeued") == 1
    again = kinds.index("requeued")
    before = [e["steps_done"] for e in seen[:again] if e["event"] == "progress"][-1]
    after = next(e["steps_done"] for e in seen[again:] if e["event"] == "progress")
    assert after > before, "it continued, and did not start over"
    assert executor.started == 1, "the job came back by itself"
    assert results(store) == undisturbed_run


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_a_job_that_ends_with_work_left_is_submitted_again(
    how, store, long_run, undisturbed_run, results, monkeypatch
):
    monkeypatch.setattr(engine, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(engine, "UNSEEN_SECONDS", 1.0)
    codes = []

    def on_event(number, event):
        if event["event"] == "exit":
            codes.append(event["code"])

    def end() -> None:
        if how == "cancelled":
            subprocess.run(["scancel", "--signal=TERM", executor.jobs[0].job_id], check=True)
        else:
            kill_job(store)

    with SlurmExecutor(store, long_run, 1, terms=Terms(minutes=5)) as executor, once_checkpointed(store, end):
        executor.run(on_event)
    assert codes == [0 if how == "cancelled" else None, 0]
    assert results(store) == undisturbed_run


@pytest.mark.usefixtures("slurm")
def test_leaving_early_cancels_the_jobs_which_checkpoint(store, long_run):
    def on_event(number, event):
        if event["event"] == "progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), SlurmExecutor(store, long_run, 2) as executor:
        executor.run(on_event)
    assert queue() == []
    assert len(checkpoints(store)) >= 1
    assert store.claimed() == {}


@pytest.mark.usefixtures("slurm")
def test_a_refused_submission_is_one_line(store, plan):
    with (
        pytest.raises(UserError, match="invalid partition specified: nowhere"),
        SlurmExecutor(store, plan, 2, terms=Terms(partition="nowhere")) as executor,
    ):
        executor.run(lambda number, event: None)


@pytest.mark.usefixtures("slurm")
def test_what_is_pickled_lies_in_a_private_folder_and_not_in_the_store(store, plan):
    found = []

    def on_event(number, event):
        found.append((list(executor.folder.rglob("*.pkl")), os.stat(executor.folder).st_mode & 0o777))

    with SlurmExecutor(store, plan, 1) as executor:
        executor.run(on_event)
    assert found[0][0]
    assert found[0][1] == 0o700
    assert not list(store.root.rglob("*.pkl"))
    assert not executor.folder.exists(), "nothing is left when all went well"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("0:30", 1),
        ("5:01", 6),
        ("02:00:00", 120),
        ("1-12", 2160),
        ("2-00:30", 2910),
        ("1-01:00:30", 1501),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "2h", "1:2:3:4", "0", "-5", "1-", "٣x"])
def test_a_wrong_time_limit_says_so(text):
    with pytest.raises(UserError, match="--time"):
        minutes(text)


@pytest.mark.parametrize(
    ("extra", "message"),
    [({"time": "4"}, "--time"), ({"open-mode": "x"}, "itself"), ({"signal_delay_s": "soon"}, "whole number")],
)
def test_parameters_that_are_not_the_users_are_refused(extra, message):
    with pytest.raises(UserError, match=message):
        Terms(extra=extra)
