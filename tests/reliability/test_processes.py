"""How processes are started and ended: by nothing that lies in the current folder, and never without a checkpoint."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from umscale.design.study import expand, load_study
from umscale.execute.executor import python_path, worker_command, worker_environment
from umscale.execute.job import write_job
from umscale.execute.workload import make_plan
from umscale.processes import python_command
from umscale.store.store import Store
from umscale_cli.main import main

ROOT = Path(__file__).resolve().parents[2]
LONG = 1_200_000
SEARCH = """
[search]
objectives = ["loss"]
n_trials = 2
[search.space]
d_key = { low = 4, high = 8 }
"""


def test_nothing_in_the_current_folder_is_run(tmp_path, monkeypatch):
    for name in ("random", "torch", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    for package in ("umscale", "umscale_kernels", "umscale_studies"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('the wrong umscale')")
    store = Store.create(tmp_path / "store")
    for given in (
        "",
        f":{ROOT}:",
        ".",
    ):  # an empty entry stands for the current folder, and "." was the parent's
        monkeypatch.setenv("PYTHONPATH", given)
        environment = {**worker_environment(store, 1), "PATH": "/usr/bin:/bin"}
        command = worker_command(store, "0" * 16, 1, "cpu", "umscale.execute.workload")
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert "no readable job" in done.stdout


def test_only_what_is_not_installed_is_put_before_the_standard_library(monkeypatch):
    import site

    monkeypatch.setenv("PYTHONPATH", "")
    assert python_path().split(":")[0] == str(ROOT)
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(ROOT / p) for p in ("", "kernels", "studies")])
    assert python_path() == ""


def test_every_process_is_started_on_the_safe_path():
    assert python_command("a.b", "c") == [sys.executable, "-P", "-m", "a.b", "c"]
    for folder in ("umscale", "cli", "kernels", "studies"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "processes.py":
                assert not re.search(r'executable,\s*"-m"', path.read_text()), path


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_an_ended_sweep_keeps_its_checkpoints(tmp_path, run_umscale, study_file, signum):
    study_file(LONG)
    sweep = run_umscale("sweep", "tiny.toml", "--store", "store", "--workers", 1)
    _ends_with_a_checkpoint(sweep, tmp_path / "store", signum)


def test_an_ended_search_keeps_its_checkpoints(tmp_path, run_umscale, study_file):
    path = study_file(LONG, SEARCH)
    path.write_text(path.read_text().replace("top_m = [2, 4]", "top_m = 2"))
    search = run_umscale("search", "tiny.toml", "--store", "store", "--workers", 1)
    _ends_with_a_checkpoint(search, tmp_path / "store", signal.SIGTERM)


def test_an_ended_worker_keeps_its_checkpoints(tmp_path, run_umscale, study_file):
    store = Store.create(tmp_path / "store")
    study = load_study(str(study_file(LONG)))
    write_job(store, make_plan(study.name, expand(study, "float32")))
    worker = run_umscale("worker", "store", "--workers", 1)
    _ends_with_a_checkpoint(worker, tmp_path / "store", signal.SIGHUP)


def test_an_ended_run_keeps_its_checkpoint(tmp_path, run_umscale, study_file):
    study_file(LONG)
    run = run_umscale("train", "tiny.toml", "--cell", "top_m=2", "--store", "store")
    _ends_with_a_checkpoint(run, tmp_path / "store", signal.SIGTERM)


def _ends_with_a_checkpoint(process, root: Path, signum: int) -> None:
    """End the process in the middle of its first run: it says so, and the run's state is on disk."""
    deadline = time.monotonic() + 400
    while not list((root / "work" / "claims").glob("*.claim")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signum)
    process.send_signal(signum)  # a scheduler that says it twice does not cut the checkpoint short
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signum
    lines = said.splitlines()
    assert "stopping: workers write their checkpoints ..." in lines
    assert lines[-1] == {15: "umscale: terminated", 1: "umscale: the terminal is gone"}[signum]
    assert "Traceback" not in said
    assert list((root / "work" / "checkpoints").glob("*/trunk.safetensors"))
    assert not list((root / "work" / "claims").glob("*.claim"))


def test_a_signal_that_was_ignored_stays_so(monkeypatch):
    seen = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(
            "umscale_cli.main.app", lambda **_: seen.append(signal.getsignal(signal.SIGHUP)) or 0
        )
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        assert seen == [signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGHUP, before)
