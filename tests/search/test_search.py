"""`umscale search`: real runs of a tiny study, its storage read by Optuna itself, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from umscale.design.study import load_study
from umscale.errors import UserError
from umscale.search.bridge import cost_of
from umscale.search.settings import Range, parse_settings
from umscale.spec import read_run
from umscale.store.store import Store

TINY = """
name = "tiny"
[search]
objectives = ["loss", "memory_access_b16"]
n_trials = 5
sampler = "random"
[search.space]
top_m = {low = 2, high = 8, log = true}
n_keys = [8, 12, 16]
train.lr = {low = 2e-3, high = 1e-2, log = true}
[search.constraints]
total_params = "60k"
[axes]
tokens = [2048, 4096]
[model]
d_model = 16
n_layers = 1
n_heads = 1
ffn = {d_ffn = 32}
memory = {n_keys = 8, top_m = 4, d_key = 4, d_pre_value = 4, d_value = 8}
[data]
corpus = "kjv"
seq_len = 64
validation_tokens = 2048
[train]
batch_size = 4
warmup_tokens = 256
precision = "float32"
"""


@pytest.fixture(scope="module")
def umscale(source_paths, tmp_path_factory):
    def command(*arguments, **options):
        return subprocess.Popen(
            [sys.executable, "-m", "umscale_cli.main", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path_factory.mktemp("here"),
            env=dict(os.environ, PYTHONPATH=source_paths, OMP_NUM_THREADS="1", COLUMNS="180"),
            **options,
        )

    return command


def finish(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def done(umscale, study, tmp_path_factory):
    """A finished search: its store and what it printed."""
    root = tmp_path_factory.mktemp("store") / "s"
    code, out, err = finish(umscale("search", study, "--store", root, "--workers", "2"))
    assert code == 0, err
    return root, out, err


def journal(root: Path) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(root / "search" / "journal.log"))
    return optuna.load_study(study_name="tiny", storage=optuna.storages.JournalStorage(backend))


def test_every_trial_is_a_run_of_the_store(done):
    root, _, _ = done
    trials = [t for t in journal(root).trials if "void" not in t.user_attrs]
    assert len(trials) == 5
    store = Store.open(root)
    complete = [t for t in trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert complete
    for trial in complete:
        record = store.final_record(trial.user_attrs["run_id"])
        assert record is not None
        assert trial.values[0] == record["loss"]
        lr = read_run(record["spec"]).train.lr
        assert (record["top_m"], record["n_keys"], lr) == (
            trial.params["top_m"], trial.params["n_keys"], trial.params["train.lr"],
        )  # fmt: skip
        assert record["budget"] == 4096
        assert record["total_params"] <= 60_000
    run = next(r for r in store.specs("finished") if r.run_id == complete[0].user_attrs["run_id"])
    assert complete[0].values[1] == cost_of(run, "memory_access_b16")


def test_what_breaks_a_budget_is_never_trained(done):
    root, _, _ = done
    for trial in journal(root).trials:
        over = max(trial.constraints.values(), default=0.0) > 0
        assert over == trial.user_attrs.get("reason", "").startswith("over budget")
        assert not (over and "run_id" in trial.user_attrs)


def test_the_front_is_printed_and_drawn(done):
    root, out, _ = done
    assert "Front:" in out
    assert (root / "figures" / "search-front.png").stat().st_size > 5000
    assert "importances: " in out or "what matters" in out


def test_the_same_command_has_nothing_left_to_do(done, umscale, study):
    root, _, _ = done
    before = len(journal(root).trials)
    code, _, err = finish(umscale("search", study, "--store", root, "--workers", "1"))
    assert (code, len(journal(root).trials)) == (0, before), err
    code, out, err = finish(umscale("search", study, "--store", root, "--show", "--json"))
    assert code == 0, err
    found = json.loads(out)
    assert found["objectives"] == ["loss", "memory_access_b16"]
    assert {t["number"] for t in found["trials"] if t["best"]} >= set(found["best"])


def test_winners_are_a_study(done, umscale, study, tmp_path):
    root, _, _ = done
    target = tmp_path / "winners.toml"
    code, _, err = finish(
        umscale("search", study, "--store", root, "--show", "--winners", target, "--seeds", "2")
    )
    assert code == 0, err
    winners = load_study(str(target))
    assert winners.axes["seed"] == (0, 1)
    assert winners.cells
    assert not winners.search


def test_finished_runs_are_trials_to_begin_with(done, umscale, study):
    """Another storage on the same store: nothing is trained twice."""
    root, _, _ = done
    n_finished = sum(s == "finished" for s in Store.open(root).statuses().values())
    url = f"sqlite:///{root}/other.db"
    code, _, err = finish(
        umscale("search", study, "--store", root, "--storage", url, "--trials", "1", "--workers", "1")
    )
    assert code == 0, err
    assert f"{n_finished} finished runs of the store" in err
    assert "other.db" not in "".join(p.read_text() for p in (root / "work" / "jobs").glob("*.json"))
    trials = optuna.load_study(study_name="tiny", storage=url).trials
    assert sum(t.user_attrs.get("source") == "store" for t in trials) == n_finished


def test_killed_workers_lose_no_trial(umscale, study, tmp_path):
    root = tmp_path / "s"
    longer = ["--set", "axes.tokens=[65536]", "--trials", "3", "--workers", "2"]
    process = umscale("search", study, "--store", root, *longer)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (victims := workers(root)):
        time.sleep(0.1)
    while time.monotonic() < deadline and not list((root / "work" / "claims").glob("*.claim")):
        time.sleep(0.1)
    time.sleep(0.5)
    os.kill(victims[0], signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 0, err
    kept = [t for t in journal(root).trials if "void" not in t.user_attrs]
    assert len(kept) == 3
    assert all(t.state.is_finished() for t in kept)


def workers(root: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if b"umscale.execute.worker" in arguments and str(root).encode() in arguments:
            found.append(int(entry.name))
    return found


def test_pruned_runs_can_be_continued(umscale, study, tmp_path):
    root = tmp_path / "s"
    single = ["--set", 'search.objectives=["loss"]', "--pruner", "asha", "--trials", "6", "--workers", "1"]
    wide = ["--set", "search.space.train.lr={low = 1e-6, high = 1e-2, log = true}"]
    code, out, err = finish(umscale("search", study, "--store", root, *single, *wide))
    assert code == 0, err
    trials = journal(root).trials
    pruned = [t for t in trials if t.user_attrs.get("reason", "").startswith("pruned by asha")]
    assert pruned, "learning rates over four orders of magnitude: some are hopeless"
    assert "Best trial" in out
    store = Store.open(root)
    for trial in pruned:
        assert store.status(trial.user_attrs["run_id"]) == "pruned"
        folder = store.root / "work" / "checkpoints" / trial.user_attrs["run_id"]
        assert list(folder.iterdir()), "its checkpoint is kept"
        assert 1 <= max(trial.intermediate_values) < 20


REFUSALS = [
    ({"space": {"top_mm": [1, 2]}}, "did you mean 'top_m'"),
    ({}, "needs a table"),
    ({"space": {"top_m": []}}, "different values"),
    ({"space": {"top_m": {"low": 8, "high": 4}}}, "must be less"),
    ({"space": {"train.lr": {"low": 0, "high": 1, "log": True}}}, "cannot reach 0"),
    ({"space": {"top_m": {"low": 1.5, "high": 4}}}, "whole numbers"),
    ({"space": {"top_m": {"low": 1, "high": 4, "stp": 1}}}, "did you mean 'step'"),
    ({"space": {"seed": [1, 2]}}, "is fixed in a search"),
    ({"space": {"top_m": [1, 2]}, "sampler": "tpee"}, "did you mean 'tpe'"),
    ({"space": {"top_m": [1, 2]}, "objectives": ["los"]}, "did you mean 'loss'"),
    ({"space": {"top_m": [1, 2]}, "objectives": ["total_params"]}, "need no training"),
    ({"space": {"top_m": [1, 2]}, "objectives": ["loss", "total_params"], "pruner": "asha"}, "single objective"),
    ({"space": {"top_m": [1, 2]}, "constraints": {"total_parms": 3}}, "did you mean 'total_params'"),
    ({"space": {"top_m": [1, 2]}, "constraints": {"total_params": 0}}, "must be positive"),
    ({"space": {"train.lr": {"low": 1e-3, "high": 1e-2}}, "sampler": "brute_force"}, "brute_force needs"),
    ({"space": {"top_m": [1, 2]}, "n_trials": 1.5}, "whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("tree", "words"), REFUSALS)
def test_bad_tables_are_refused_in_words(tree, words):
    with pytest.raises(UserError, match=words):
        parse_settings(tree)


def test_dotted_names_nest_and_ranges_do_not():
    settings = parse_settings(
        {"space": {"train": {"lr": {"low": 1e-3, "high": 1e-2, "log": True}}, "top_m": [2, 4]}}
    )
    assert settings.space["train.lr"] == Range(low=1e-3, high=1e-2, log=True)
    assert settings.space["top_m"] == (2, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--storage", "postgresql://me:hunter2@localhost:1/x"], "***"),
        (["--set", "axes.top_m=[4]"], "in [axes] and in [search.space]"),
        (["--sampler", "magic"], "must be one of tpe"),
        (["--device", "tpu"], "must be auto, cpu or cuda"),
    ],
)
def test_bad_input_gets_one_line(umscale, study, tmp_path, options, words):
    code, _, err = finish(umscale("search", study, "--store", tmp_path / "s", *options))
    assert code == 2
    assert err.count("\n") == 1, err
    assert words in err
    assert "hunter2" not in err
