"""The store: what is written is read back by anything, and damage never spreads."""

import dataclasses
import json
import multiprocessing
import os
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from umscale.data.corpus import open_corpus
from umscale.design.study import expand, parse
from umscale.errors import UserError
from umscale.spec import FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec
from umscale.store import cache as scan
from umscale.store.schema import STAGES, STORE_VERSION, Damaged, verify
from umscale.store.store import Store, schema
from umscale.training.record import spec_row

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

DOCUMENTS = [
    {"budget": 100_000, "stage": "stable", "document": "d", "n_tokens": 5, "n_bytes": 5, "nats": 9.0}
]
CURVE = [{"phase": "trunk", "tokens": 4096, "loss": 5.5}]
EACH = 12


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
    store.write_run(spec_row(RUN), "t", status="finished", records=records())
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
            store.write_run(spec_row(cell.run), "t", status="diverged")
    columns = store.columns(status=None)
    assert set(columns["compensation"]) == {"none"}
    assert set(columns["label"]) == {f"top_m={m} seed={s}" for m in (2, 4) for s in (0, 1)}
    assert len(columns["run_id"]) == 4 * 2


def test_partial_run_keeps_its_records_and_shows_the_gap(store):
    store.write_run(spec_row(RUN), "t", status="diverged", reason="loss nan", records=records((3.0,)))
    rows = store.read("runs").to_pylist()
    assert [r["loss"] for r in rows] == [3.0, None, None, None]
    assert {r["reason"] for r in rows} == {"loss nan"}
    assert len(store.columns()["loss"]) == 0, "fits take finished runs alone"


def test_running_rows_are_replaced_not_doubled(store):
    store.write_run(spec_row(RUN), "t", status="running", records=records((3.0,)))
    assert store.statuses() == {RUN.run_id: "running"}
    store.write_run(spec_row(RUN), "t", status="finished", records=records())
    assert store.read("runs").num_rows == 4


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_file_is_named_and_the_rest_is_read(store, damage):
    store.write_run(spec_row(RUN), "t", status="finished", records=records())
    bad = store.root / "runs" / "ffffffffffffffff.parquet"
    content = bytearray((store.root / "runs" / f"{RUN.run_id}.parquet").read_bytes())
    if damage == "flip":
        content[-6] ^= 0xFF
    bad.write_bytes(
        {"truncate": bytes(content[: len(content) // 2]), "flip": bytes(content), "empty": b""}[damage]
    )
    table = store.read("runs")
    assert table.num_rows == 4
    assert store.damaged == [str(bad)]
    assert store.status("ffffffffffffffff") is None
    assert store.statuses() == {RUN.run_id: "finished"}


def test_damaged_files_are_quarantined_and_their_runs_count_as_not_done(store):
    other = dataclasses.replace(RUN, seed=1)
    for run in (RUN, other):
        store.write_run(
            spec_row(run), "t", status="finished", records=records(), documents=DOCUMENTS, curve=CURVE
        )
    path = store.root / "documents" / f"{RUN.run_id}.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(bytes(content))
    (message,) = store.repair()
    assert str(path) in message
    assert "quarantine" in message
    assert store.statuses() == {other.run_id: "finished"}
    assert bytes(content) in [p.read_bytes() for p in (store.root / "quarantine").iterdir()]
    assert store.repair() == []
    assert store.read("documents").num_rows == 1
    assert store.damaged == []


def test_every_flipped_bit_is_found(store):
    """Anywhere in a file: pages, their headers, statistics, the schema, the checksum itself."""
    store.write_run(spec_row(RUN), "t", status="finished", records=records())
    content = (store.root / "runs" / f"{RUN.run_id}.parquet").read_bytes()
    verify(content)
    rng = random.Random(5)
    places = [*range(64), *range(len(content) - 64, len(content)), *range(64, len(content) - 64, 37)]
    marks = [content.rfind(mark) + i for mark in (b"umscale_checksum", b"umscale-sha256:") for i in range(80)]
    for place in [*places, *(mark for mark in marks if mark < len(content))]:
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        with pytest.raises(Damaged):
            verify(bytes(changed))
    for length in rng.sample(range(len(content)), 200):
        with pytest.raises(Damaged):
            verify(content[:length])


def test_a_scan_of_many_files_leaves_a_copy_that_never_outlives_a_change(store, monkeypatch):
    monkeypatch.setattr(scan, "MANY_FILES", 3)
    runs = [dataclasses.replace(RUN, seed=seed) for seed in range(6)]
    for run in runs:
        store.write_run(spec_row(run), "t", status="finished", records=records())
    first = store.read("runs")
    copy = store.root / "work" / "scan" / "runs.parquet"
    assert copy.exists()
    assert store.read("runs").equals(first), "rows from the copy, in the same order"
    changed, removed = sorted(run.run_id for run in runs)[1:3]
    run = next(run for run in runs if run.run_id == changed)
    store.write_run(spec_row(run), "t", status="finished", records=records((9.0, 9.0, 9.0, 9.0)))
    store.forget(removed)
    rows = Store.open(store.root).read("runs").to_pylist()
    assert len(rows) == 4 * 5
    assert {row["loss"] for row in rows if row["run_id"] == changed} == {9.0}
    assert [row["run_id"] for row in rows] == sorted(row["run_id"] for row in rows)
    copy.write_bytes(copy.read_bytes()[:-200] + bytes(200))
    assert Store.open(store.root).read("runs").to_pylist() == rows, (
        "a damaged copy is worth nothing, and costs none"
    )


def test_statuses_follow_every_change(store, monkeypatch):
    monkeypatch.setattr(scan, "MANY_FILES", 2)
    runs = [dataclasses.replace(RUN, seed=seed) for seed in range(4)]
    for run in runs:
        store.write_run(spec_row(run), "t", status="running", records=records((3.0,)))
    assert set(store.statuses().values()) == {"running"}
    store.write_run(spec_row(runs[0]), "t", status="finished", records=records())
    store.forget(runs[1].run_id)
    expected = {runs[0].run_id: "finished", runs[2].run_id: "running", runs[3].run_id: "running"}
    assert store.statuses() == expected
    assert Store.open(store.root).statuses() == expected, "also in a process that begins with the copy"


def test_an_older_store_is_read_as_it_is_and_upgraded_by_a_writer(store):
    header = store.root / "store.json"
    header.write_text('{"format": "umscale-store", "version": 1, "precision": "float32"}')
    assert Store.open(store.root).pinned_precision() == "float32"
    assert json.loads(header.read_text())["version"] == 1
    assert Store.create(store.root).pinned_precision() == "float32"
    assert json.loads(header.read_text())["version"] == STORE_VERSION


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
    store.write_run(spec_row(RUN), "t", status="finished", records=records())
    path = store.root / "runs" / f"{RUN.run_id}.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["loss_ema"]), path)
    assert store.read("runs")["loss_ema"].null_count == 4


def _write_many(root: str, start: int) -> None:
    for seed in range(start, start + EACH):
        run = dataclasses.replace(RUN, seed=seed)
        Store.create(Path(root)).write_run(spec_row(run), "t", status="finished", records=records())


def test_eight_writers_lose_and_tear_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    root = tmp_path / "store"
    writers = [context.Process(target=_write_many, args=(str(root), EACH * i)) for i in range(8)]
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
    assert table.num_rows == 4 * 8 * EACH
    assert set(table["seed"].to_pylist()) == set(range(8 * EACH))
    keys = set(zip(*(table[name].to_pylist() for name in ("run_id", "budget", "stage")), strict=True))
    assert len(keys) == table.num_rows, "no row twice"
    assert not list(root.rglob("*.tmp"))


def test_plain_readers(store):
    pandas = pytest.importorskip("pandas")
    store.write_run(spec_row(RUN), "t", status="finished", records=records())
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
        store.write_run(spec_row(RUN), "t", status="finished", records=records())
    assert not list((store.root / "runs").iterdir())
