"""A journal whose writers die: nothing of it is lost, nobody waits for the dead, and Optuna itself reads it."""

import json
import logging
import multiprocessing
import os
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from umscale.errors import UserError
from umscale.processes import scope
from umscale.search import journal
from umscale.search.journal import Journal, Lock

TORN = b'{"op_code":6,"worker_id":"x'


def study(path: Path, backend=Journal) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.JournalStorage(backend(path if backend is Journal else str(path)))
    return optuna.create_study(study_name="s", storage=storage, load_if_exists=True)


def trials(path: Path, n: int) -> None:
    study(path).optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=n)


@pytest.fixture
def path(tmp_path):
    trials(tmp_path / "journal.log", 2)
    return tmp_path / "journal.log"


@pytest.mark.parametrize("torn", [TORN, b"{", b"\0" * 512, TORN[:1] * 3, b'{"op_code":4,"worker_id":"x"}'])
def test_a_torn_end_costs_nothing_but_itself(path, torn):
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(study(path).trials) == 2, "read as it is"
    trials(path, 1)
    assert path.read_bytes().startswith(whole)
    assert len(study(path, JournalFileBackend).trials) == 3


@pytest.mark.parametrize("torn", [TORN, b"\0" * 512, b'{"op_code'])
def test_what_an_earlier_version_glued_together_is_taken_apart(path, torn):
    *first, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*first, torn + last]))
    assert len(study(path).trials) == 2
    expected = b"".join([*first, b" " * len(torn) + last])
    assert path.read_bytes().startswith(expected), "readers remember positions"
    assert len(study(path, JournalFileBackend).trials) == 2


def test_a_last_line_that_is_nothing_is_cut(path):
    whole = path.read_bytes()
    path.write_bytes(whole + TORN + b"\n")
    assert len(study(path).trials) == 2
    assert path.read_bytes().startswith(whole + b'{"op_code"')


def test_a_line_that_cannot_be_mended_is_named(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"garbage\n", *lines[1:]]))
    with pytest.raises(UserError, match=rf"line 2 of {len(lines) + 1} is damaged"):
        study(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "journal.log")
    with pytest.raises(UserError, match="no file"):
        Journal(tmp_path / "journal.log")


def _hold(path: Path) -> None:
    Lock(path).acquire()
    os._exit(9)


def test_the_lock_of_a_dead_process_is_broken_at_once(path):
    child = multiprocessing.get_context("fork").Process(target=_hold, args=(path,))
    child.start()
    child.join()
    assert os.path.islink(f"{path}.lock")
    began = time.monotonic()
    trials(path, 1)
    assert time.monotonic() - began < 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["journal.log"]


@pytest.mark.parametrize("owner", ["/elsewhere/journal.log", f"{'0' * 16}-1-2-abcd"])
def test_another_machines_lock_is_waited_for_and_said(path, monkeypatch, caplog, owner):
    monkeypatch.setattr(journal, "GRACE_SECONDS", 0.6)
    monkeypatch.setattr(journal, "SAY_SECONDS", 0.1)
    os.symlink(owner, f"{path}.lock")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        trials(path, 1)
    assert 0.6 < time.monotonic() - began < 5
    assert caplog.text.count("waiting for another process to release") == 1


def test_the_lock_of_a_living_process_is_respected(path, monkeypatch):
    monkeypatch.setattr(journal, "GRACE_SECONDS", 1000)
    held = Lock(path)
    held.acquire()
    assert os.readlink(f"{path}.lock").startswith(f"{scope()}-{os.getpid()}-")
    child = multiprocessing.get_context("fork").Process(target=trials, args=(path, 1))
    child.start()
    child.join(0.7)
    assert child.is_alive()
    held.release()
    child.join(10)
    assert child.exitcode == 0


def test_many_writers_lose_nothing(path):
    children = [multiprocessing.get_context("fork").Process(target=trials, args=(path, 4)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert len(study(path).trials) == 2 + 12
    assert all(json.loads(line) for line in path.read_text().splitlines())
