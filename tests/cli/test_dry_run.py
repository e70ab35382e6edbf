"""``umscale sweep --dry-run``: counted in seconds whatever the sizes, timed where that is quick, with ready advice."""

import json
import shlex
import sys
import time

import numpy as np
import pytest
import torch

from umscale.data.corpus import open_corpus
from umscale.design.study import expand, parse
from umscale.execute import estimate
from umscale.execute.estimate import Estimate, available_bytes, run_seconds, state_bytes, step_parts
from umscale.machine import peak_memory_bytes
from umscale.training.run import Run
from umscale.trees import parse_toml
from umscale_cli.main import main

STUDY = """
name = "s"
[axes]
{axes}
[model]
d_model = 32
n_layers = {n_layers}
n_heads = 2
ffn = {{d_ffn = 64}}
memory = {{n_keys = {n_keys}, top_m = 4, d_key = 8}}
[data]
corpus = "kjv"
seq_len = 64
validation_tokens = 2048
[train]
budgets = [40000]
batch_size = 4
warmup_tokens = 1000
precision = "float32"
"""


@pytest.fixture
def dry_run(tmp_path, capsys, monkeypatch):
    """Run the command on a study of these axes; returns the exit code, stdout and stderr."""

    def run(axes: str, *options: str, n_layers: int = 2, n_keys: int = 16) -> tuple[int, str, str]:
        path = tmp_path / "s.toml"
        path.write_text(STUDY.format(axes=axes, n_layers=n_layers, n_keys=n_keys))
        monkeypatch.setattr(sys, "argv", ["umscale", "sweep", str(path), "--dry-run", *options])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as ended:
            main()
        assert {p.name for p in tmp_path.iterdir()} == {"s.toml"}, "nothing is written"
        found = capsys.readouterr()
        return ended.value.code, found.out, found.err

    return run


@pytest.mark.parametrize(
    "size", [{"n_layers": 10**9}, {"n_keys": 10**9}, {"n_keys": 2**31, "n_layers": 2**31}], ids=str
)
def test_giants_are_counted_and_not_built(dry_run, size):
    before, began = peak_memory_bytes(), time.process_time()
    code, out, err = dry_run("seed = [0, 1]", "--json", **size)
    assert code == 0
    assert time.process_time() - began < 8
    assert peak_memory_bytes() - before < 600 << 20
    found = json.loads(out)
    assert found["cells"][0]["cost"]["total_params"] > 10**10
    assert found["seconds"] > 10**6
    assert found["training_flops"] > 0
    assert "warning" not in err
    code, out, err = dry_run("seed = [0, 1]", **size)
    assert "no shape was small enough to be timed here" in out
    assert "2 of 2 runs need more memory than a worker has here" in err


def test_a_giant_beside_others_is_not_timed(dry_run, monkeypatch):
    timed = []
    monkeypatch.setattr(estimate, "_measure", lambda run: timed.append(run.model.n_layers) or 0.01)
    code, _, err = dry_run("n_layers = [1, 2, 100000000]")
    assert code == 0
    assert sorted(timed) == [1, 2]
    assert "1 of 3 runs need more memory" in err


def test_ten_thousand_cells_take_seconds(dry_run):
    axes = f"top_m = {[*range(1, 51)]}\nn_keys = {[*range(16, 66)]}\nseed = [0, 1, 2, 3]"
    began = time.process_time()
    code, out, _ = dry_run(axes, "--no-measure")
    assert time.process_time() - began < 10
    assert code == 0
    assert "s: 10000 cells" in out
    assert "... and 9800 more cells" in out
    assert "10000 runs" in out
    assert "about" not in out, "no time without measuring"


def test_shares_of_the_work_are_solved_without_trying_every_width():
    axes = "[axes]\nmcp = [0.5, 0.6]\nd_model = [256, 1024]\n"
    tree = STUDY.format(axes="", n_layers=2, n_keys=16).replace("[axes]\n", axes)
    began = time.process_time()
    cells = expand(parse(parse_toml(tree), "s"), "float32")
    assert time.process_time() - began < 2
    for cell in cells:
        assert cell.solved is not None
        assert cell.solved.achieved["mcp"] == pytest.approx(cell.targets["mcp"], rel=0.01)


def test_what_cannot_be_reached_comes_with_a_way_out(dry_run):
    code, out, _ = dry_run('sparse_params = ["30k", "1M"]\nseed = [0, 1]', "--no-measure")
    assert code == 0
    (reason,) = [line for line in out.splitlines() if line.startswith("infeasible:")]
    assert "sparse_params=30k" in reason, "once, not for every seed"
    assert "seed" not in reason
    (hint,) = [line for line in out.splitlines() if "--set" in line]
    option = shlex.split(hint)[1:3]
    assert hint.endswith("all cells are feasible")
    code, out, _ = dry_run('sparse_params = ["30k", "1M"]\nseed = [0, 1]', "--no-measure", *option)
    assert code == 0
    assert "infeasible" not in out


def test_a_wider_tolerance_is_offered_and_does_it(dry_run):
    axes = 'sparse_params = ["30k", "1M"]'
    _, out, _ = dry_run(axes, "--no-measure")
    (hint,) = [line for line in out.splitlines() if line.startswith("--tolerance")]
    code, out, _ = dry_run(axes, "--no-measure", *hint.split()[:2])
    assert code == 0
    assert "infeasible" not in out


@pytest.mark.parametrize("options", [(), ("--json",), ("--no-measure",)])
def test_a_design_without_a_feasible_cell_is_bad_input(dry_run, options):
    code, out, err = dry_run('sparse_params = ["30k"]\nseed = [0, 1]', *options)
    assert code == 2
    assert out == ""
    (line,) = err.splitlines()
    assert "none of the 2 cells can be trained" in line
    assert "--set 'axes.sparse_params=[" in line


def test_planning_for_slurm_needs_no_slurm(dry_run, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for executor in ("slurm", "ray"):
        code, out, _ = dry_run("seed = [0]", "--no-measure", "--executor", executor)
        assert code == 0
        assert "1 runs" in out


def runs(axes="n_keys = [16, 32, 64, 128]"):
    study = parse(parse_toml(STUDY.format(axes=axes, n_layers=2, n_keys=16)), "s")
    return [cell.run for cell in expand(study, "float32") if cell.run]


def test_times_follow_from_those_that_were_measured(monkeypatch):
    """A machine that is 3 times slower, and 5 times where tables are updated, is found out from six shapes."""
    factors = np.array([1.0, 3.0, 3.0, 5.0])
    true = {run.model: float(step_parts(run) @ factors) for run in runs(f"n_keys = {[*range(16, 400, 8)]}")}
    monkeypatch.setattr(estimate, "_measure", lambda run: true[run.model])
    all_runs = runs(f"n_keys = {[*range(16, 400, 8)]}")
    steps, timed = estimate.seconds_per_step(all_runs)
    assert timed == 6
    for run, step in zip(all_runs, steps, strict=True):
        assert step == pytest.approx(true[run.model], rel=0.1)


def test_a_sweep_lasts_as_long_as_its_busiest_worker():
    found = Estimate(steps=(1.0,) * 3, runs=(4.0, 3.0, 3.0), start=2.0, timed=1)
    assert found.sweep_seconds(1) == 12.0
    assert found.sweep_seconds(2) == 8.0
    assert found.sweep_seconds(100) == 6.0


def test_evaluation_and_memory_are_counted():
    (run,) = runs("seed = [0]")
    assert run_seconds(run, 1.0) > 40_000 / run.tokens_per_step
    assert state_bytes(run) < available_bytes()


def test_a_run_takes_what_was_estimated(tmp_path):
    """CPU time of a whole run in this process, evaluations and records in it, against the estimate."""
    (run,) = runs("seed = [0]")
    found = estimate.estimate([run])
    assert found.timed == 1
    corpus = open_corpus("kjv")
    trainer = Run(run, corpus, tmp_path, torch.device("cpu"))
    began = time.process_time()
    trainer.execute(lambda outcome: None)
    spent = time.process_time() - began
    assert found.runs[0] / 1.7 < spent < found.runs[0] * 1.7, (found.runs[0], spent)
