"""Sweeps through the command line: results, resumption, shared work, and crashes of real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from umscale.store.store import Store

STUDY = """
name = "tiny"
[axes]
top_m = [2, 4]
n_keys = [8, 16]
[model]
d_model = 32
n_layers = 1
n_heads = 2
[model.ffn]
d_ffn = 32
[model.memory]
n_keys = 8
top_m = 2
d_key = 8
d_pre_value = 8
d_value = 8
[data]
corpus = "kjv"
seq_len = 32
validation_tokens = 3000
[train]
budgets = [12000, 24000]
batch_size = 4
warmup_tokens = 1000
checkpoint_seconds = 0.2
precision = "float32"
"""
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


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def umscale(source_paths, tmp_path):
    """Run the command in a subprocess, as a user would."""

    def command(*arguments, **options):
        return subprocess.Popen(
            [sys.executable, "-m", "umscale_cli.main", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": source_paths, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A suite started in the background inherits an ignored SIGINT; a user's terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            **options,
        )

    return command


def finish(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def table(root: Path) -> list[dict]:
    """All that a store says, without the times at which it was said."""
    store = Store.open(root)
    rows = [
        {k: v for k, v in row.items() if k not in TIMES}
        for name in ("runs", "documents")
        for row in store.read(name).to_pylist()
    ]
    assert store.damaged == []
    return sorted(rows, key=lambda r: json.dumps(r, sort_keys=True))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, source_paths):
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.toml").write_text(STUDY)
    result = subprocess.run(
        [sys.executable, "-m", "umscale_cli.main", "sweep", "tiny.toml", "--store", "s", "--workers", "2"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": source_paths},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder / "s", result


def test_a_sweep_says_what_it_found_and_where(undisturbed):
    root, result = undisturbed
    assert len(table(root)) > 16
    assert Store.open(root).read("runs").num_rows == 4 * 2 * 2
    for text in ("4 of 4 runs finished", "after the decay", "umscale plot", str(root.name)):
        assert text in result.stdout, result.stdout
    assert list((root / "figures").glob("*.png"))
    assert not list((root / "work" / "checkpoints").glob("*/*")), "checkpoints of finished runs are removed"


def test_the_same_command_again_trains_nothing(undisturbed, umscale, study):
    root, _ = undisturbed
    before = {p: p.stat().st_mtime_ns for p in (root / "runs").iterdir()}
    code, out, err = finish(umscale("sweep", study, "--store", root, "--json"))
    assert code == 0, err
    assert json.loads(out)["finished"] == 4
    assert {p: p.stat().st_mtime_ns for p in (root / "runs").iterdir()} == before


def workers(root: Path) -> list[int]:
    """Process ids of the workers on a store."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"umscale.execute.worker" in arguments and str(root).encode() in arguments:
            found.append(int(entry.name))
    return found


def test_interrupt_stops_cleanly_and_resumes(umscale, study, tmp_path):
    root = tmp_path / "s"
    longer = ["--set", "train.budgets=[50000]", "--set", "axes.top_m=[2]", "--workers", "2", "--no-report"]
    process = umscale("sweep", study, "--store", root, *longer, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(root.glob("work/checkpoints/*/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130, err
    assert "Traceback" not in err
    assert workers(root) == []
    assert list(root.glob("work/checkpoints/*/*.safetensors")), "what was trained is kept"
    code, _, err = finish(umscale("sweep", study, "--store", root, *longer))
    assert code == 0, err
    assert set(Store.open(root).statuses().values()) == {"finished"}


def test_a_failing_run_is_a_row_and_the_sweep_goes_on(umscale, study, tmp_path):
    root = tmp_path / "s"
    wild = [
        "--set",
        "train.rate_scaling=none",
        "--set",
        "axes.train.lr=[0.004, 1e5]",
        "--set",
        "axes.top_m=[2]",
        "--set",
        "axes.n_keys=[8]",
    ]
    code, _, err = finish(umscale("sweep", study, "--store", root, *wild, "--set", "train.warmup_tokens=0"))
    assert code == 3, err
    rows = Store.open(root).read("runs").to_pylist()
    assert sorted({(r["lr"], r["status"]) for r in rows}) == [(0.004, "finished"), (1e5, "diverged")]
    assert all(r["reason"] for r in rows if r["status"] == "diverged")


def test_dry_run_writes_nothing(umscale, study, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, err = finish(umscale("sweep", study, "--dry-run"))
    assert code == 0, err
    assert "Separates density" in out
    assert "4 runs" in out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "quickstrt"], "did you mean 'quickstart'"),
        (["sweep", "missing.toml"], "no such study file"),
        (["sweep", "tiny.toml", "--set", "axes.top_m=[9999]"], "exceeds n_keys"),
        (["sweep", "tiny.toml", "--set", "model.n_heads=3"], "not divisible"),
        (["sweep", "tiny.toml", "--set", "train.lrr=1"], "did you mean 'lr'"),
        (["sweep", "tiny.toml", "--set", "data.corpus=nothing"], "nothing"),
        (["sweep", "tiny.toml", "--set", "train.budgets=['900M']"], "passes over corpus"),
        (["sweep", "tiny.toml", "--frobnicate"], "frobnicate"),
        (["fit", "nowhere"], "no results store"),
        (["plot", "nowhere"], "no results store"),
        (["show", "abc"], "no run 'abc'"),
        (["cost", "ultramem"], "no preset 'ultramem'"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_writes_nothing(umscale, study, tmp_path, arguments, message):
    before = sorted(tmp_path.rglob("*"))
    code, out, err = finish(umscale(*arguments))
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_show_runs_fit_and_plot_speak_json(undisturbed, umscale, tmp_path):
    root = shutil.copytree(undisturbed[0], tmp_path / "copy")
    code, out, err = finish(umscale("runs", root, "--json"))
    assert code == 0, err
    rows = json.loads(out)
    assert len(rows) == 16
    code, out, err = finish(umscale("show", rows[0]["run_id"][:10], "--study", root, "--json"))
    assert code == 0, err
    assert {r["run_id"] for r in json.loads(out)["records"]} == {rows[0]["run_id"]}
    (tmp_path / "again.toml").write_text(json.loads(out)["study_toml"])
    code, out, err = finish(umscale("sweep", "again.toml", "--store", root, "--json"))
    assert (code, json.loads(out)["seconds"] < 5) == (0, True), (
        "the printed study is the very run, already done"
    )
    assert json.loads(out)["finished"] == 1
    code, out, err = finish(umscale("fit", root, "--json"))
    assert code == 0, err
    fitted = json.loads(out)
    assert {f["law"] for f in fitted["fits"]} == {"null", "additive", "interaction"}
    assert {(v["stage"], v["loss"]) for v in fitted["verdicts"]} == {
        (s, x) for s in ("stable", "annealed") for x in ("loss", "loss_ema")
    }
    code, out, err = finish(umscale("plot", root, "--out", tmp_path / "f", "--format", "svg,pdf", "--json"))
    assert code == 0, err
    for path in map(Path, json.loads(out)):
        assert path.stat().st_size > 1000


def test_help_is_quick_and_imports_no_torch(source_paths):
    heavy = ("torch", "pyarrow", "scipy")
    code = f"import sys, umscale_cli.main; print(*[m in sys.modules for m in {heavy}])"
    out = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": source_paths}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert out.stdout.split() == ["False"] * 3
