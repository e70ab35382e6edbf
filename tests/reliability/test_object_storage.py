"""A store in object storage: a real S3 server on loopback, and the same results as in a folder."""

import io
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from umscale.data.corpus import open_corpus
from umscale.errors import UserError
from umscale.execute.claimed_run import Reporter
from umscale.execute.local import LocalExecutor
from umscale.execute.workload import Plan
from umscale.files import open_files
from umscale.spec import DataSpec, FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec
from umscale.store.leases import ClaimLost
from umscale.store.store import Store
from umscale.training.checkpoint import Workspace
from umscale.training.record import spec_row
from umscale.training.run import Interrupted, Run

moto = pytest.importorskip("moto.server")

TIMES = (
    "train_seconds",
    "eval_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "input_seconds",
    "step_seconds",
    "checkpoint_seconds",
    "mfu",
    "peak_flops",
    "written_at",
)
SECRET = "hunter2"


@pytest.fixture(scope="module")
def server():
    saved = dict(os.environ)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"{host}:{port}"
    running.stop()
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def url(server, request):
    options = f"endpoint_override={server}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    address = f"s3://bucket-{abs(hash(request.node.name)) % 10**9}/studies/mine?{options}"
    system, prefix = open_files(address)._connect()
    system.create_dir(prefix.partition("/")[0])
    return address


@pytest.fixture(scope="module")
def run():
    corpus = open_corpus("kjv")
    model = ModelSpec(
        d_model=32,
        n_layers=1,
        n_heads=2,
        vocab_size=corpus.vocab_size,
        ffn=FfnSpec(d_ffn=32),
        memory=MemorySpec(n_keys=8, top_m=2, d_key=8, d_pre_value=8, d_value=8),
    )
    data = DataSpec(corpus="kjv", hash=corpus.hash, seq_len=32, validation_tokens=2000)
    train = TrainSpec(
        budgets=(4_000, 8_000), batch_size=4, warmup_tokens=500, precision="float32", checkpoint_seconds=1e9
    )
    return RunSpec(model=model, data=data, train=train)


def tables(store):
    return {
        name: [{k: v for k, v in row.items() if k not in TIMES} for row in store.read(name).to_pylist()]
        for name in ("runs", "documents", "curves")
    }


def test_files_behave_as_in_a_folder(url, tmp_path):
    for files in (open_files(url), open_files(tmp_path), open_files(tmp_path.as_uri())):
        assert not files.exists("a/b.txt")
        assert files.entries("a") == []
        with pytest.raises(FileNotFoundError):
            files.read("a/b.txt")
        with pytest.raises(FileNotFoundError), files.reading("a/b.txt"):
            pass
        with pytest.raises(FileNotFoundError):
            files.move("a/b.txt", "a/c.txt")
        files.write("a/b.txt", b"one")
        with files.writing("a/c.txt") as path:
            path.write_bytes(b"two")
        files.write("a/.hidden", b"")
        with pytest.raises(ZeroDivisionError), files.writing("a/d.txt") as path:
            path.write_bytes(bytes(1 // len(files.entries("nothing"))))
        assert [entry.name for entry in files.entries("a")] == ["b.txt", "c.txt"]
        before = files.entries("a")[0].version
        files.write("a/b.txt", b"three")
        assert files.entries("a")[0].version != before
        with files.reading("a/b.txt") as path:
            assert path.read_bytes() == b"three"
        files.move("a/b.txt", "elsewhere/b.txt")
        assert (files.exists("a/b.txt"), files.read("elsewhere/b.txt")) == (False, b"three")
        files.delete("a/c.txt")
        files.delete("a/c.txt")
        files.delete_folder("elsewhere")
        assert not files.exists("elsewhere/b.txt")


def test_a_run_gives_the_same_tables_as_in_a_folder(url, tmp_path, run):
    stores = [Store.create(tmp_path / "store"), Store.create(url)]
    for store in stores:
        plan = Plan(study="t", runs=(run,))
        plan.work(store, Reporter(io.StringIO()), "cpu")
        assert set(store.statuses().values()) == {"finished"}
        assert store.claimed() == {}
        assert store.files.entries(f"work/checkpoints/{run.run_id}") == []
    assert tables(stores[0]) == tables(stores[1])
    assert Store.open(url).columns()["loss"].tolist() == stores[0].columns()["loss"].tolist()


def test_an_interrupted_run_continues_from_its_uploaded_checkpoint(url, tmp_path, run):
    corpus, cpu = open_corpus("kjv"), torch.device("cpu")
    whole = Run(run, corpus, tmp_path, cpu).execute(lambda outcome: None)
    store = Store.create(url)
    for stop_at in (12, 30):
        calls = iter(range(1000))
        with store.claim(run.run_id):
            trainer = Run(run, corpus, Workspace.of(store, run.run_id), cpu)
            with pytest.raises(Interrupted):
                trainer.execute(
                    lambda outcome: None, should_stop=lambda calls=calls, at=stop_at: next(calls) == at
                )
        assert store.files.entries(f"work/checkpoints/{run.run_id}")
    steps = []
    with store.claim(run.run_id):
        outcome = Run(run, corpus, Workspace.of(store, run.run_id), cpu).execute(
            lambda outcome: None, lambda progress: steps.append(progress.steps_done)
        )
    assert steps[0] == 43
    assert [r["loss"] for r in outcome.records] == [r["loss"] for r in whole.records]


def test_a_damaged_object_is_quarantined(url, run):
    store = Store.create(url)
    store.write_run(spec_row(run), "t", status="diverged")
    name = f"runs/{run.run_id}.parquet"
    store.files.write(name, store.files.read(name)[:-50])
    assert store.status(run.run_id) is None
    assert store.read("runs").num_rows == 0
    assert store.damaged == [store.files.describe(name)]
    (message,) = store.repair()
    assert "trained again" in message
    assert len(store.files.entries("quarantine")) == 1
    assert store.statuses() == {}


def _die(url: str) -> None:
    with Store.open(url).claim("a") as mine:
        assert mine
        os.kill(os.getpid(), signal.SIGKILL)


def test_claims_exclude_and_a_lost_one_stops_the_writer(url, run):
    store, other = Store.create(url), Store.open(url)
    with store.claim(run.run_id) as lease:
        assert lease
        with other.claim(run.run_id) as second:
            assert second is None
        for entry in store.files.entries("work/claims"):
            store.files.delete(f"work/claims/{entry.name}")
        with pytest.raises(ClaimLost):
            store.write_run(spec_row(run), "t", status="diverged")
        with pytest.raises(ClaimLost):
            Workspace.of(store, run.run_id).save("trunk", None, None, None, {})
    assert store.statuses() == {}
    process = multiprocessing.get_context("spawn").Process(target=_die, args=(url,))
    process.start()
    process.join()
    with store.claim("a") as mine:
        assert mine


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "s3://someone:hunter2@nobucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=a&connect_timeout=1",
            r"someone:\*\*\*@nobucket/x",
        ),
        ("s3://b/x?endpoint_overrid=nowhere", "endpoint_overrid"),
        ("ftp://someone:hunter2@host/x", "ftp://"),
        ("file://host/x", "file:///folder"),
        ("gs://someone:hunter2@b/x?frob=1", "username"),
    ],
)
def test_a_bad_url_is_one_line_without_the_password(address, message, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match=message) as caught:
        Store.open(address)
    assert len(str(caught.value).splitlines()) == 1
    assert SECRET not in str(caught.value)


def test_a_password_in_the_url_is_nowhere_but_in_the_environment(url, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    address = url.replace("s3://", f"s3://someone:{SECRET}@")
    store = Store.create(address)
    seen = []

    def look(worker, event):
        seen.append(json.dumps(event))
        if event["event"] == "start":
            pid = executor.workers[worker].process.pid
            seen.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode())

    with LocalExecutor(store, Plan(study="t", runs=(run,)), 1, device="cpu") as executor:
        executor.run(look)
    assert set(store.statuses().values()) == {"finished"}
    assert "umscale.execute.worker" in "".join(seen)
    assert SECRET not in "".join(seen)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in store.name
    assert "someone" in store.name
    assert store.address == address
    system, prefix = store.files._connect()
    from pyarrow.fs import FileSelector

    for item in system.get_file_info(FileSelector(prefix, recursive=True)):
        if item.is_file:
            assert SECRET.encode() not in system.open_input_file(item.path).read(), item.path
    assert json.loads(store.files.read("store.json"))["format"] == "umscale-store"
    with pytest.raises(UserError, match="no folder") as caught:
        _ = store.root
    assert SECRET not in str(caught.value)
    assert tmp_path in store.scratch.parents
