"""The crash test in small: every fault at least once, on real processes, and its own eyes are open."""

import concurrent.futures
import json
import os
import socket
import tempfile
from pathlib import Path

import pytest

from umscale.design.study import expand, load_study
from umscale.selftest import crash
from umscale.selftest.fork_server import alive, spawn, start_fork_server
from umscale.selftest.steps import Stretch, repetitions
from umscale.store.store import Store


@pytest.fixture(scope="module")
def totals(tmp_path_factory):
    return crash.crash(5, 1, tmp_path_factory.mktemp("crash"), lambda line: None)


def test_nothing_is_lost_doubled_or_repeated_beyond_an_interval(totals):
    assert totals.problems == []
    assert totals.passed
    assert (totals.lost, totals.changed, totals.doubled, totals.unequal) == (0, 0, 0, 0)
    assert totals.too_much_repeated == 0


def test_every_fault_struck(totals):
    for name, tally in totals.tallies.items():
        assert tally.rounds or tally.skipped, name
    assert sum(totals.tallies[name].rounds for name in set(crash.KILLS_IN_TURN)) == 5
    assert totals.kills >= 5
    assert totals.writing == totals.tallies["worker killed as it writes"].rounds == 1
    assert totals.restarts >= 5
    assert totals.finished >= crash.N_RUNS, "results were looked at after faults"
    assert totals.quarantined >= 1
    assert totals.redone >= 1


def test_what_it_looks_for_would_be_found():
    steps = [("trunk", i) for i in range(10)]

    def stretch(first, last):
        return Stretch(run_id="a", steps=steps[first:last], cpu=[0.1 * i for i in range(first, last)])

    assert repetitions([stretch(0, 6), stretch(6, 10)], {"a": steps})[0].seconds == 0.0
    lost = repetitions([stretch(0, 6), stretch(2, 10)], {"a": steps})[0]
    assert lost.seconds == pytest.approx(0.3), "steps 2 to 5 were done again"
    assert lost.allowance == pytest.approx(0.1)


@pytest.fixture(scope="module")
def address():
    with tempfile.TemporaryDirectory(prefix="umscale-") as folder:  # a socket's path must be short
        server = start_fork_server(Path(folder) / "forks")
        yield Path(folder) / "forks"
        server.stdin.close()
        assert server.wait(60) == 0


def test_the_runs_of_a_machine_that_is_gone_are_taken_over(address, tmp_path):
    store = Store.create(tmp_path / "store")
    store.set_stale_seconds(1.0)
    study = tmp_path / "crash.toml"
    study.write_text(crash.STUDY)
    for cell in expand(load_study(str(study)), "float32"):
        gone = {"host": "gone", "machine": "another boot", "pid": 1, "started": 1}
        store.files.write(f"work/claims/{cell.run_id}.{'0' * 16}.claim", json.dumps(gone).encode())
    with (tmp_path / "errors").open("wb") as errors:
        arguments = [str(store.root), str(study), "2", str(address)]
        sweep = spawn(address, "umscale.selftest.disturbed_sweep", arguments, os.environ, errors, hear=False)
        assert sweep.wait(120) == 0
    assert list(store.statuses().values()) == ["finished"] * crash.N_RUNS


def test_a_fork_server_forks_runs_and_reaps(address, tmp_path):
    with (tmp_path / "errors").open("wb") as errors:
        wrong = spawn(
            address, "umscale.selftest.disturbed_sweep", ["too few"], os.environ, errors, hear=False
        )
        assert wrong.wait(60) == 1
        absent = [str(tmp_path / "none"), "0" * 16, "1", "cpu"]
        worker = spawn(address, "umscale.execute.worker", absent, os.environ, errors, hear=True)
        assert '"ready"' in worker.stdout.readline()
        assert worker.wait(60) == 2
    assert "ValueError" in (tmp_path / "errors").read_text()
    assert alive(address, "umscale.execute.worker") == []


def test_a_client_that_never_asks_holds_nobody_up(address):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(str(address))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            asked = pool.submit(alive, address, "umscale.execute.worker")
            try:
                assert asked.result(10) == []
            finally:
                silent.close()
