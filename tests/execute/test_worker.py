"""``umscale worker``: machines that share a store and nothing else; and what a plan leaves to do."""

import gc
import io
import json
import signal
import time

import pytest

from tests.execute.conftest import make_study
from umscale.data.batches import TrainStream
from umscale.data.corpus import Corpus
from umscale.design.study import expand
from umscale.errors import UserError
from umscale.execute.claimed_run import Reporter
from umscale.execute.job import read_job, write_job
from umscale.execute.workload import JOBS, make_plan
from umscale.model.decoder import Decoder
from umscale.store.store import Store


def test_workers_finish_what_a_killed_sweep_began(run_umscale, store, long_plan, long_undisturbed, results):
    write_job(store, long_plan)
    first, second = (run_umscale("worker", store.root, "--workers", 1, "--json") for _ in range(2))
    deadline = time.monotonic() + 120
    while len(store.claimed()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    while not list(store.root.glob("work/checkpoints/*/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.kill()  # its worker process finds nobody listening, and stops with a checkpoint
    out, err = second.communicate(timeout=200)
    assert second.returncode == 0, err
    assert json.loads(out)["here"]["finished"] >= 1
    assert results(store) == long_undisturbed
    assert store.claimed() == {}


def test_a_waiting_worker_takes_up_work_that_comes_later(run_umscale, store, study, undisturbed, results):
    waiting = run_umscale("worker", store.root, "--workers", 1, "--wait")
    (store.root.parent / "tiny.toml").write_text(study.to_toml())
    sweep = run_umscale("sweep", "tiny.toml", "--store", store.root, "--no-report", "--workers", 1)
    _, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 0, err
    assert results(store) == undisturbed
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 130, err
    assert "Traceback" not in err


def test_a_store_without_a_job_is_one_line(run_umscale, store):
    worker = run_umscale("worker", store.root)
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 2
    assert "has no job yet" in err
    assert len(err.splitlines()) == 1


def test_a_job_by_a_wrong_name_is_one_line(run_umscale, store):
    worker = run_umscale("worker", store.root, "--job", "../../x")
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 2
    assert "16 hexadecimal digits" in err


def test_a_job_left_in_a_store_is_done_by_its_name(store: Store, undisturbed, run_umscale, plan, results):
    name = write_job(store, plan)
    worker = run_umscale("worker", store.root, "--job", name, "--workers", 2)
    _, err = worker.communicate(timeout=200)
    assert worker.returncode == 0, err
    assert results(store) == undisturbed


def test_a_worker_holds_nothing_of_the_runs_it_has_done(store: Store, plan):
    def models_and_corpora() -> set[int]:
        return {id(one) for one in gc.get_objects() if type(one) in (Decoder, Corpus, TrainStream)}

    gc.disable()  # what is left to Python's own time may stay for many runs
    try:
        before = models_and_corpora()
        plan.work(store, Reporter(io.StringIO()), "cpu")
        held = models_and_corpora() - before
    finally:
        gc.enable()
    assert len(store.statuses()) > 1
    assert not held


def test_a_paused_run_that_fails_keeps_what_it_had_measured(store: Store, tmp_path, results, monkeypatch):
    cells = expand(make_study(budgets=[4_000, 8_000]), "float32")[:1]
    run_id = cells[0].run_id
    make_plan("tiny", cells, until=4_000).work(store, Reporter(io.StringIO()), "cpu")
    measured = store.columns()
    rest = make_plan("tiny", cells)
    with monkeypatch.context() as broken:
        broken.setattr("umscale.training.run.Run.execute", lambda *_: 1 / 0)
        rest.work(store, Reporter(io.StringIO()), "cpu")
    assert store.statuses() == {run_id: "failed"}
    failed = {(r["budget"], r["stage"]): r for r in store.read("runs").to_pylist()}
    assert {r["status"] for r in failed.values()} == {"failed"}
    assert all("division by zero" in r["reason"] for r in failed.values())
    for budget, stage, loss in zip(measured["budget"], measured["stage"], measured["loss"], strict=True):
        assert failed[budget, stage]["loss"] == loss
    assert failed[8_000, "annealed"]["loss"] is None
    assert not len(store.columns()["loss"]), "no fit reads a failed run"

    rest.give_up(store, run_id, "its worker was lost three times")
    assert [r["loss"] for r in store.read("runs").to_pylist()] == [r["loss"] for r in failed.values()]

    store.forget(run_id)
    rest.work(store, Reporter(io.StringIO()), "cpu")
    whole = Store.create(tmp_path / "whole")
    rest.work(whole, Reporter(io.StringIO()), "cpu")
    assert results(store) == results(whole)


def test_a_plan_done_in_parts_gives_what_one_in_a_piece_does(store: Store, tmp_path, results):
    cells = expand(make_study(budgets=[4_000, 8_000, 12_000]), "float32")[:1]
    part = read_job(store, write_job(store, make_plan("tiny", cells, until=9_000)), JOBS)
    rest = make_plan("tiny", cells)

    def work(plan, store: Store) -> list[dict]:
        said = io.StringIO()
        plan.work(store, Reporter(said), "cpu")
        return [json.loads(line) for line in said.getvalue().splitlines()]

    assert part.remaining(store) == rest.remaining(store) == 1
    assert work(part, store)[-1]["status"] == "paused"
    assert store.statuses() == {cells[0].run_id: "paused"}
    assert (part.remaining(store), rest.remaining(store)) == (0, 1)
    assert make_plan("tiny", cells, until=4_000).remaining(store) == 0
    assert work(part, store) == [], "nothing is left of it"
    store.pack()
    assert (part.remaining(store), rest.remaining(store)) == (0, 1)
    assert sorted(store.columns()["budget"]) == [4_000, 4_000, 8_000, 8_000]
    work(rest, store)
    whole = Store.create(tmp_path / "whole")
    work(rest, whole)
    assert results(store) == results(whole)
    assert not store.files.entries(store.checkpoint_folder(cells[0].run_id))
    with pytest.raises(UserError, match="first budget is 4,000 tokens"):
        make_plan("tiny", cells, until=3_999)
