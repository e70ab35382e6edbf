"""The store: what is written is read back by anything, and damage never spreads."""

import multiprocessing
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from umscale.data.corpus import open_corpus
from umscale.design.study import expand, parse
from umscale.errors import UserError
from umscale.spec import FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec
from umscale.store import STAGES, Store, schema

RUN = RunSpec(
    model=ModelSpec(
        d_model=32,
        n_layers=1,
        n_heads=2,
        vocab_size=257,
        ffn=FfnSpec(d_ffn=32),
        memory=MemorySpec(n_keys=8, top_m=4),
    ),
    train=TrainSpec(budgets=(100_000, 200_000)),
)


def records(losses=(3.0, 2.9, 2.8, 2.7)):
    keys = [(budget, stage) for budget in RUN.train.budgets for stage in STAGES]
    return [
        {"budget": b, "stage": s, "tokens": b, "loss": x, "loss_ema": x - 0.01, "value_use": [0.5]}
        for (b, s), x in zip(keys, losses, strict=False)
    ]


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "store")


def test_finished_run_reads_back(store):
    store.write_run(RUN, "t", status="finished", records=records())
    table = Store.open(store.root).read("runs")
    assert table.schema.equals(schema("runs"))
    assert table["loss"].to_pylist() == [3.0, 2.9, 2.8, 2.7]
    assert set(table["sparse_params"].to_pylist()) == {8**2 * (32 + 32)}
    assert store.status(RUN.run_id) == "finished"
    columns = store.columns()
    assert columns["loss"].tolist() == sorted(columns["loss"].tolist(), reverse=True)
    assert set(columns["stage"]) == set(STAGES)


def test_a_study_swept_again_with_other_seeds_keeps_its_earlier_cells(store):
    corpus = open_corpus("kjv")
    model = {"d_model": 32, "n_heads": 2, "memory": {"n_keys": 8, "top_m": 2}}
    for seed in (0, 1):
        study = parse({"name": "t", "axes": {"top_m": [2, 4], "seed": [seed]}, "model": model}, "t.toml")
        cells = expand(study, "float32", corpus)
        store.write_design(study, cells)
        for cell in cells:
            store.write_run(cell.run, "t", status="diverged")
    columns = store.columns(status=None)
    assert set(columns["compensation"]) == {"none"}
    assert set(columns["label"]) == {f"top_m={m} seed={s}" for m in (2, 4) for s in (0, 1)}
    assert len(columns["run_id"]) == 4 * 2


def test_partial_run_keeps_its_records_and_shows_the_gap(store):
    store.write_run(RUN, "t", status="diverged", reason="loss nan", records=records((3.0,)))
    rows = store.read("runs").to_pylist()
    assert [r["loss"] for r in rows] == [3.0, None, None, None]
    assert {r["reason"] for r in rows} == {"loss nan"}
    assert len(store.columns()["loss"]) == 0, "fits take finished runs alone"


def test_running_rows_are_replaced_not_doubled(store):
    store.write_run(RUN, "t", status="running", records=records((3.0,)))
    assert store.statuses() == {RUN.run_id: "running"}
    store.write_run(RUN, "t", status="finished", records=records())
    assert store.read("runs").num_rows == 4


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_file_is_named_and_the_rest_is_read(store, damage):
    store.write_run(RUN, "t", status="finished", records=records())
    bad = store.root / "runs" / "ffffffffffffffff.parquet"
    content = bytearray((store.root / "runs" / f"{RUN.run_id}.parquet").read_bytes())
    if damage == "flip":
        content[-6] ^= 0xFF
    bad.write_bytes(
        {"truncate": bytes(content[: len(content) // 2]), "flip": bytes(content), "empty": b""}[damage]
    )
    table = store.read("runs")
    assert table.num_rows == 4
    assert store.damaged == [bad]
    assert store.status("ffffffffffffffff") is None


def test_newer_and_foreign_folders_are_refused(tmp_path, store):
    (store.root / "store.json").write_text('{"format": "umscale-store", "version": 99}')
    with pytest.raises(UserError, match="newer umscale"):
        Store.open(store.root)
    (store.root / "store.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Store.open(store.root)
    with pytest.raises(UserError, match="no results store"):
        Store.open(tmp_path / "nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds other files"):
        Store.create(tmp_path / "full")


def test_older_files_lack_columns_and_still_read(store):
    store.write_run(RUN, "t", status="finished", records=records())
    path = store.root / "runs" / f"{RUN.run_id}.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["loss_ema"]), path)
    assert store.read("runs")["loss_ema"].null_count == 4


def test_claims_exclude_and_free_themselves(store):
    with store.claim("a") as first, store.claim("a") as second, store.claim("b") as other:
        assert (first, second, other) == (True, False, True)
    with store.claim("a") as again:
        assert again


def _hold(root: str, ready) -> None:
    with Store(Path(root)).claim("a") as mine:
        assert mine
        ready.set()
        os.kill(os.getpid(), 9)


def test_a_killed_owner_frees_its_claim(store):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(str(store.root), ready))
    process.start()
    assert ready.wait(60)
    process.join()
    with store.claim("a") as mine:
        assert mine


def _write_many(root: str, start: int) -> None:
    import dataclasses

    for seed in range(start, start + 25):
        run = dataclasses.replace(RUN, seed=seed)
        Store.create(Path(root)).write_run(run, "t", status="finished", records=records())


def test_many_writers_lose_and_tear_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    root = tmp_path / "store"
    writers = [context.Process(target=_write_many, args=(str(root), 25 * i)) for i in range(4)]
    for writer in writers:
        writer.start()
    reader = None
    while any(w.is_alive() for w in writers):
        if (root / "store.json").exists():
            reader = reader or Store.open(root)
            reader.read("runs")
            assert reader.damaged == []
    assert all(w.exitcode == 0 for w in writers)
    table = Store.open(root).read("runs")
    assert table.num_rows == 400
    assert set(table["seed"].to_pylist()) == set(range(100))
    assert not list(root.rglob("*.tmp"))


def test_plain_readers(store):
    pandas = pytest.importorskip("pandas")
    store.write_run(RUN, "t", status="finished", records=records())
    folder = store.root / "runs"
    assert len(pandas.read_parquet(folder)) == 4
    polars = pytest.importorskip("polars")
    assert polars.scan_parquet(folder / "*.parquet").collect().height == 4
    duckdb = pytest.importorskip("duckdb")
    assert duckdb.connect().execute(f"select count(*) from '{folder}/*.parquet'").fetchone() == (4,)


def test_a_full_disk_is_one_line_and_leaves_nothing(store, monkeypatch):
    import errno

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk .* is full"):
        store.write_run(RUN, "t", status="finished", records=records())
    assert not list((store.root / "runs").iterdir())
