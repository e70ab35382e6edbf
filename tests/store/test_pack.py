"""A packed store reads as it did, takes further writes, and loses nothing to a crash or a flipped bit."""

import pytest

from tests.store.test_store import CURVE, DOCUMENTS, RUN, records
from umscale.errors import UserError
from umscale.store.store import RUN_TABLES, Store
from umscale.training.record import spec_row


def runs_of(store, n=3):
    import dataclasses

    runs = [dataclasses.replace(RUN, seed=seed) for seed in range(n)]
    for run in runs:
        store.write_run(
            spec_row(run), "t", status="finished", records=records(), documents=DOCUMENTS, curve=CURVE
        )
    return runs


def everything(store):
    return {table: store.read(table).to_pylist() for table in RUN_TABLES}


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "s")


def test_a_packed_store_reads_as_before(store):
    runs = runs_of(store)
    before, statuses = everything(store), store.statuses()
    finals = [store.final_record(run.run_id) for run in runs]
    assert store.pack() == {"runs": 3, "documents": 3, "curves": 3}
    assert [p.name for p in (store.root / "runs").iterdir()] == ["packed.parquet"]
    again = Store.open(store.root)
    assert everything(again) == before
    assert again.statuses() == statuses
    assert [again.final_record(run.run_id) for run in runs] == finals
    assert {again.status(run.run_id) for run in runs} == {"finished"}
    assert again.status("0" * 16) is None
    assert again.repair() == []
    assert again.pack() == {}


def test_further_writes_win_and_are_packed_again(store):
    runs = runs_of(store)
    store.pack()
    store.write_run(spec_row(runs[1]), "t", status="diverged", reason="again")
    expected = {run.run_id: "finished" for run in runs} | {runs[1].run_id: "diverged"}
    for _ in range(2):
        assert Store.open(store.root).statuses() == expected
        rows = store.read("runs").to_pylist()
        assert {row["run_id"]: row["status"] for row in rows} == expected
        store.pack()
    assert len(list((store.root / "runs").iterdir())) == 1


def test_a_forgotten_run_is_gone(store):
    runs = runs_of(store)
    store.pack()
    store.forget(runs[0].run_id)
    assert set(store.statuses()) == {run.run_id for run in runs[1:]}
    assert store.status(runs[0].run_id) is None


def test_a_crash_between_packing_and_deleting_doubles_nothing(store, monkeypatch):
    runs_of(store)
    before = everything(store)

    def dying(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.files, "delete", dying)
        with pytest.raises(KeyboardInterrupt):
            store.pack()
    again = Store.open(store.root)
    assert everything(again) == before
    again.pack()
    assert everything(again) == before


def test_work_in_progress_is_not_packed(store):
    run = runs_of(store, 1)[0]
    with store.claim(run.run_id) as lease:
        assert lease
        with pytest.raises(UserError, match="being worked on"):
            store.pack()
    store.write_run(spec_row(run), "t", status="running", records=records((3.0,)))
    with pytest.raises(UserError, match="not over"):
        store.pack()


def test_a_flipped_bit_is_noticed_and_the_runs_done_again(store):
    runs_of(store)
    store.pack()
    path = store.root / "runs" / "packed.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    again = Store.open(store.root)
    assert again.read("runs").to_pylist() == []
    assert again.damaged == [str(path)]
    [message] = again.repair()
    assert "trained again" in message
    assert again.statuses() == {}
    assert not path.exists()
