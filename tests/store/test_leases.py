"""Claims: one owner at most, whatever dies, hangs, wakes up again or has another clock."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from umscale.files import LocalFiles
from umscale.store.leases import ClaimLost, Claims

STALE = 0.6


def claims(root, stale=STALE) -> Claims:
    return Claims(LocalFiles(Path(root)), "claims", stale)


def foreign(root, name="a", token="0" * 16, **changes):
    """Write a claim as a worker on another machine would have."""
    claim = {"host": "elsewhere", "machine": "another boot", "pid": 1, "started": 1} | changes
    folder = root / "claims"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.{token}.claim").write_text(json.dumps(claim))
    return folder / f"{name}.{token}.beat"


def test_one_owner_a_name_and_free_after_release(tmp_path):
    one, two = claims(tmp_path), claims(tmp_path)
    lease = one.claim("a")
    assert lease
    assert two.claim("a") is None
    other = two.claim("b")
    assert set(one.live()) == {"a", "b"}
    assert one.live()["a"].pid == os.getpid()
    one.release(lease)
    two.release(other)
    again = two.claim("a")
    assert again
    two.release(again)
    assert list((tmp_path / "claims").iterdir()) == [], "nothing piles up"


def _hold(root: str, ready, hang: bool) -> None:
    lease = claims(root, 60).claim("a")
    assert lease
    ready.set()
    while hang:
        lease.beat()
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def spawn():
    return multiprocessing.get_context("spawn")


def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path, spawn):
    ready = spawn.Event()
    process = spawn.Process(target=_hold, args=(str(tmp_path), ready, False))
    process.start()
    assert ready.wait(60)
    # Not joined: what is left of a killed child that nobody has waited for counts as dead too.
    deadline = time.monotonic() + 10
    while not (lease := claims(tmp_path, 3600).claim("a")):
        assert time.monotonic() < deadline
    assert lease
    process.join()


def test_a_silent_worker_elsewhere_loses_its_claim_only_after_the_observer_has_watched_it(tmp_path):
    beat = foreign(tmp_path)
    observer = claims(tmp_path)
    beat.write_text("1")
    os.utime(beat, (0, 0))  # no clock of anybody else counts
    assert observer.claim("a") is None
    assert observer.stale({"a": "0" * 16}) == set()
    time.sleep(STALE / 2)
    beat.write_text("2")
    assert observer.claim("a") is None
    time.sleep(0.6 * STALE)
    assert observer.claim("a") is None, "it showed progress in between"
    time.sleep(0.6 * STALE)
    assert observer.stale({"a": "0" * 16}) == {"a"}
    assert claims(tmp_path).claim("a") is None, "someone who has just come has not watched it"
    assert observer.claim("a")


def test_an_owner_that_does_not_notice_its_loss_is_stale(tmp_path):
    worker, executor = claims(tmp_path), claims(tmp_path)
    tokens = {"a": worker.claim("a").token}
    assert executor.stale(tokens) == set()
    for path in (tmp_path / "claims").iterdir():
        path.unlink()
    assert claims(tmp_path).claim("a"), "another has taken over"
    assert executor.stale(tokens) == set()
    time.sleep(1.1 * STALE)
    assert executor.stale(tokens) == {"a"}


def test_a_newcomer_profits_from_what_another_has_watched(tmp_path):
    foreign(tmp_path)
    observer = claims(tmp_path)
    assert set(observer.live()) == {"a"}
    assert claims(tmp_path).claim("a") is None
    time.sleep(1.2 * STALE)
    assert observer.live() == {}
    assert claims(tmp_path).claim("a"), "it need not watch for as long itself"


def test_a_stopped_worker_is_taken_over_and_learns_it_when_it_wakes(tmp_path):
    sleeper, observer = claims(tmp_path), claims(tmp_path)
    lease = sleeper.claim("a")
    observer.claim("a")
    time.sleep(1.2 * STALE)
    taken = observer.claim("a")
    assert taken, "its process lives, but shows no progress"
    with pytest.raises(ClaimLost):
        lease.beat()
    with pytest.raises(ClaimLost):
        lease.check()
    taken.check()
    sleeper.release(lease)
    assert claims(tmp_path).claim("a") is None, "the sleeper's release frees its own claim alone"


def test_progress_keeps_a_claim(tmp_path):
    worker, observer = claims(tmp_path), claims(tmp_path)
    lease = worker.claim("a")
    end = time.monotonic() + 3 * STALE
    while time.monotonic() < end:
        lease.beat()
        assert observer.claim("a") is None
        time.sleep(0.02)


def test_an_unreadable_claim_is_judged_by_its_beat(tmp_path):
    foreign(tmp_path)
    next((tmp_path / "claims").iterdir()).write_text('{"host": ')
    observer = claims(tmp_path)
    assert observer.claim("a") is None
    time.sleep(1.1 * STALE)
    assert observer.claim("a")


def test_a_full_disk_does_not_cost_a_worker_its_claim(tmp_path, monkeypatch):
    worker = claims(tmp_path)
    lease = worker.claim("a")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker.files, "write", full)
    time.sleep(STALE / 5)
    lease.beat()
    lease.check()


def _contend(root: str, log: str, rounds: int) -> None:
    mine = claims(root, 60)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    done = 0
    while done < rounds:
        lease = mine.claim("a")
        if lease is None:
            time.sleep(0.0005)
            continue
        os.write(handle, b"(")
        time.sleep(0.0005)
        os.write(handle, b")")
        mine.release(lease)
        done += 1


def test_contending_processes_never_own_a_name_together(tmp_path, spawn):
    log = tmp_path / "log"
    log.touch()
    processes = [spawn.Process(target=_contend, args=(str(tmp_path), str(log), 25)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    text = log.read_text()
    assert text == "()" * 100, Counter(text)
