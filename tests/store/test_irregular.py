"""Pipes, devices, links and absurd values where a store or a study has its files: one line each, and nobody waits."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from umscale.design.study import expand, load_study
from umscale.errors import UserError
from umscale.execute.job import newest_job, read_job
from umscale.execute.workload import JOBS
from umscale.files import LONGEST
from umscale.spec import apply_overrides
from umscale.store.store import Store
from umscale.training.checkpoint import Workspace
from umscale_cli.main import main

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
ROW = {"run_id": "a" * 16, "study": "s", "status": "finished", "budget": 1, "stage": "annealed", "loss": 1.0}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(LONGEST + 1)


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket must be short
        made.bind(path.name)
        os.chdir(here)


KINDS = pytest.mark.parametrize("make", [pipe, device, loop, sparse, listener])


@pytest.fixture
def store(tmp_path):
    made = Store.create(tmp_path / "store")
    for table in ("runs", "cells"):
        made.write_rows(table, "a" * 16, [ROW])
    return made


@KINDS
def test_one_of_them_among_the_results_is_named_and_the_others_are_read(store, make, capsys, monkeypatch):
    bad = store.root / "runs" / f"{'b' * 16}.parquet"
    make(bad)
    assert store.read("runs")["run_id"].to_pylist() == ["a" * 16]
    assert store.damaged == [str(bad)]
    assert store.statuses() == {"a" * 16: "finished"}
    assert store.status("b" * 16) is None
    assert store.final_record("b" * 16) is None
    monkeypatch.setattr(sys, "argv", ["umscale", "runs", str(store.root)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 0
    assert "aaaaaaaa" in said.out
    assert str(bad) in said.err
    (message,) = store.repair()
    assert "is damaged" in message
    assert not os.path.lexists(bad)
    assert store.repair() == []


@KINDS
def test_one_of_them_in_place_of_the_header_a_job_or_a_study_is_one_line(store, make):
    for name, use in (
        ("store.json", lambda: Store.open(store.root)),
        ("work/jobs/newest", lambda: newest_job(store)),
        (f"work/jobs/{'0' * 16}.json", lambda: read_job(store, "0" * 16, JOBS)),
        ("study.toml", store.study_tree),
    ):
        path = store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        make(path)
        with pytest.raises(UserError) as caught:
            use()
        assert str(path) in str(caught.value)


@KINDS
def test_one_of_them_as_a_claim_holds_nothing_up(store, make):
    folder = store.root / "work" / "claims"
    folder.mkdir(parents=True)
    make(folder / f"{'a' * 16}.{'0' * 16}.claim")
    make(folder / f"{'a' * 16}.{'0' * 16}.beat")
    assert set(store.claimed()) == {"a" * 16}, "alive until its beat has stood still for long"
    with store.claim("b" * 16) as mine:
        assert mine


@KINDS
def test_one_of_them_as_a_checkpoint_is_set_aside(store, make):
    path = store.root / "work" / "checkpoints" / "a" / "trunk.safetensors"
    path.parent.mkdir(parents=True)
    make(path)
    if make is sparse:
        path.unlink()
        path.write_bytes(b"\0" * 64)
    workspace = Workspace.of(store, "a")
    assert workspace.load("trunk", None, None, None) is None  # type: ignore[arg-type]
    assert not os.path.lexists(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"version": Infinity}', b'{"version": NaN}', b'{"version": 1e999}', b'{"version": "2"}', b'{"version": null}',
        b"[" * 100_000, b'{"version": ' + b"9" * 5000 + b"}", b"{}", b"[2]", b"\xff\xfe", b"", b'{"version": 2',
    ],
)  # fmt: skip
def test_a_header_that_says_nonsense_is_one_line(store, header):
    (store.root / "store.json").write_bytes(header)
    with pytest.raises(UserError, match=r"store\.json is damaged"):
        Store.open(store.root)


@pytest.mark.parametrize("seconds", ["Infinity", "NaN", "-1", "0", "true", '"1"', "1" + "0" * 400, "[]"])
def test_a_header_with_an_absurd_patience_is_one_line(store, seconds):
    (store.root / "store.json").write_text(f'{{"version": 2, "stale_seconds": {seconds}}}')
    with pytest.raises(UserError, match="stale_seconds"):
        Store.open(store.root).stale_seconds()


@pytest.mark.parametrize(
    "job",
    [
        "[" * 100_000, "{}", '{"kind": "plan", "study": "s", "runs": 5}', '{"kind": "plan", "runs": [[]]}',
        '{"kind": "search", "study": 5, "precision": "", "n_trials": 1, "n_workers": 1, "seed": 0}',
        '{"kind": "search", "study": {}, "precision": "", "n_trials": Infinity, "n_workers": 1, "seed": 0}',
        '{"kind": "plan", "study": "s", "runs": [{"seed": ' + "9" * 5000 + "}]}", '"' + "x" * 100,
    ],
)  # fmt: skip
def test_a_job_that_says_nonsense_is_one_line(store, job):
    (store.root / "work" / "jobs").mkdir(parents=True)
    (store.root / "work" / "jobs" / f"{'0' * 16}.json").write_text(job)
    with pytest.raises(UserError, match="no readable job") as caught:
        read_job(store, "0" * 16, JOBS)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "text",
    [
        "seed = " + "9" * 5000, "seed = " + "9" * 4000, ".".join("a" * 5000) + " = 1", "a = " + "[" * 100_000,
        "a = " + "{b = " * 500 + "1" + "}" * 500, "[" + ".".join("a" * 5000) + "]", "name = 1979-05-27",
        '[axes]\n"train.lr" = [1979-05-27T07:32:00Z]', "[axes]\ntrain.lr = [07:32:00]", "name = \"\\u0000\"",
        "[axes]\nseed = [inf]", "[axes]\nseed = [nan]", "[axes]\ntop_m = [1e308]",
    ],
)  # fmt: skip
def test_a_study_that_says_nonsense_is_one_line(tmp_path, store, text):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(UserError):
        expand(load_study(str(path)), "float32")
    (store.root / "study.toml").write_text(text)
    assert store.question() == "density-over-size"


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000, "{a = " * 200 + "1" + "}" * 200])
def test_an_override_that_says_nonsense_is_text(value):
    assert apply_overrides({}, [f"model.d_model={value}"]) == {"model": {"d_model": value}}


def test_an_override_of_a_thousand_parts_is_one_line():
    with pytest.raises(UserError, match="nested deeper"):
        apply_overrides({}, [".".join("a" * 5000) + "=1"])


def test_records_that_hold_nonsense_are_one_line(store, capsys, monkeypatch):
    for column, value in (("spec", "[" * 100_000), ("versions", "[1]"), ("spec", '{"seed": Infinity}')):
        store.write_rows("runs", "a" * 16, [ROW | {"versions": "{}", column: value}])
        monkeypatch.setattr(sys, "argv", ["umscale", "show", "aaaa", "--study", str(store.root), "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code in (0, 2)
        assert len(said.err.splitlines()) <= 1, json.dumps(said.err)
