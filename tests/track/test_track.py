"""Trackers get the store's numbers, once, and never stop a sweep."""

import json
import struct
import threading

import pytest
from typer.testing import CliRunner

import umscale_studies
from umscale.errors import UserError
from umscale.store.store import Store
from umscale.track.follow import Following
from umscale.track.points import tracked_runs
from umscale.track.trackers import SENT, mirror, open_tracker
from umscale_cli.main import app


@pytest.fixture(scope="module")
def store():
    return Store.open(umscale_studies.recorded()["init_matched"])


class Remembers:
    """A tracker in memory."""

    def __init__(self, fails=False):
        self.points, self.fails = {}, fails

    def seen(self, run):
        found = {}
        for tag, step, _ in self.points.get(run.run_id, []):
            found[tag] = max(found.get(tag, -1), step)
        return found

    def write(self, run, points):
        if self.fails:
            raise ConnectionError("no route to the tracker")
        self.points.setdefault(run.run_id, []).extend(points)


def test_every_number_goes_once_and_is_the_stores(store):
    tracker = Remembers()
    assert mirror(store, tracker) == sum(map(len, tracker.points.values())) > 100
    assert mirror(store, tracker) == 0
    rows = store.columns()
    for run_id, stage, budget, loss in zip(
        rows["run_id"], rows["stage"], rows["budget"], rows["loss"], strict=True
    ):
        assert (f"{stage}/loss", int(budget), float(loss)) in tracker.points[run_id]
    curves = store.curves()
    trunk = curves["phase"] == "trunk"
    assert trunk.sum() == sum(tag == "train/loss" for some in tracker.points.values() for tag, _, _ in some)


def test_a_tracker_that_was_cut_short_gets_the_rest(store):
    whole, cut = Remembers(), Remembers()
    mirror(store, whole)
    cut.points = {run_id: some[: len(some) // 2] for run_id, some in whole.points.items()}
    mirror(store, cut)
    assert {k: set(v) for k, v in cut.points.items()} == {k: set(v) for k, v in whole.points.items()}
    assert all(len(v) == len(set(v)) for v in cut.points.values())


def test_tensorboard_reads_the_same_numbers_and_nothing_twice(store, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        result = CliRunner().invoke(app, ["track", "init_matched", "--dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
    for run in tracked_runs(store):
        (folder,) = tmp_path.glob(f"*{run.run_id[:8]}")
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        read = [(tag, one.step) for tag in events.Tags()["scalars"] for one in events.Scalars(tag)]
        assert sorted(read) == sorted((tag, step) for tag, step, _ in run.points)
        for tag in events.Tags()["scalars"]:
            mine = [value for name, _, value in run.points if name == tag]
            assert [one.value for one in events.Scalars(tag)] == pytest.approx(mine, rel=1e-6)


def logged(data: bytes) -> list[bytes]:
    """Records of a LevelDB log after W&B's seven bytes: blocks of 32 KiB of (checksum, length, kind, content)."""
    found, at, whole = [], 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            found.append(whole)
            whole = b""
    return found


def test_weights_and_biases_takes_them_offline(store, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = open_tracker("wandb", tmp_path, "test")
    one = next(tracked_runs(store))
    tracker.write(one, one.points)
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    history = []
    for content in logged(path.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            history += [
                (tag, row["tokens"], v)
                for tag, v in row.items()
                if not tag.startswith("_") and tag != "tokens"
            ]
    assert sorted(history) == sorted(one.points)
    assert tracker.seen(one) == open_tracker("wandb", tmp_path, "test").seen(one)
    assert json.loads((tmp_path / SENT).read_text()).keys() == {one.run_id}
    assert [p for p in one.points if p[1] > tracker.seen(one)[p[0]]] == []


def test_a_tracker_that_fails_is_said_once_and_raises_nothing(store):
    said = []
    with Following(str(store.root), lambda: Remembers(fails=True), said.append) as following:
        following.news()
    assert said == ["tracking stopped, the sweep goes on: no route to the tracker"]

    def missing():
        raise UserError("wandb is not installed")

    with Following(str(store.root), missing, said.append):
        pass
    assert "not installed" in said[1]


def test_following_sends_what_was_there_and_what_came(store):
    tracker, done = Remembers(), threading.Event()
    with Following(str(store.root), lambda: tracker, print) as following:
        following.news()
        done.wait(0.01)
    assert sum(map(len, tracker.points.values())) > 100


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(UserError, match="no tracker 'tensorbord'"):
        open_tracker("tensorbord", tmp_path, "x")
