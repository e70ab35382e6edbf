"""Runs that a command of the user's trains: what it is told, what it may answer, what becomes of its mistakes."""

import json
import sys
from pathlib import Path

import pytest

from umscale.data.corpus import open_corpus
from umscale.errors import UserError
from umscale.execute.claimed_run import Reporter
from umscale.execute.own_trainer import check_command, check_store, read_records, train_with
from umscale.spec import RunSpec, from_dict
from umscale.store.store import Store
from umscale_cli.main import main

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
name = "own"
[axes]
top_m = [2, 4]
n_keys = [4, 8]
[model]
d_model = 16
n_layers = 1
n_heads = 2
[model.ffn]
d_ffn = 16
[model.memory]
n_keys = 8
top_m = 2
d_key = 8
d_pre_value = 8
d_value = 8
[data]
seq_len = 32
validation_tokens = 2000
[train]
budgets = [2000, 4000]
batch_size = 8
warmup_tokens = 0
precision = "float32"
"""


@pytest.fixture(scope="module")
def run():
    corpus = open_corpus("kjv")
    model = {
        "d_model": 16,
        "n_layers": 1,
        "n_heads": 2,
        "vocab_size": corpus.vocab_size,
        "ffn": {"d_ffn": 16},
    }
    data = {"hash": corpus.hash, "seq_len": 32, "validation_tokens": 2000}
    train = {"budgets": [2000, 4000], "batch_size": 8, "warmup_tokens": 0, "precision": "float32"}
    return from_dict(RunSpec, {"model": model, "data": data, "train": train})


def test_a_study_is_swept_by_the_example(tmp_path, monkeypatch, capsys):
    (tmp_path / "own.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    command = f"{sys.executable} {ROOT / 'examples' / 'own_trainer.py'} {{spec}} {{out}}"
    call = ["umscale", "sweep", "own.toml", "--store", "s", "--workers", "1", "--json", "--trainer", command]
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(SystemExit) as ended:
        main()
    found = json.loads(capsys.readouterr().out)
    assert (ended.value.code, found["finished"]) == (0, 4)
    store = Store.open(tmp_path / "s")
    rows = store.read("runs").to_pylist()
    assert len(rows) == 8
    assert {row["kernels"] for row in rows} == {"own trainer"}
    assert len({row["loss"] for row in rows}) == 8
    assert {row["top_m"] for row in rows} == {2, 4}
    assert len(store.read("curves")) == 4 * 16
    monkeypatch.setattr(sys, "argv", ["umscale", "fit", "s", "--stage", "annealed", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["fits"]


GOOD = '{"budget": 2000, "loss": 2.5}\n{"budget": 4000, "stage": "annealed", "loss": 2, "tokens_per_second": 10}\n'


def test_what_it_tells_becomes_rows(run):
    told = read_records(run, GOOD + '\n{"type": "curve", "tokens": 64, "loss": 5.5}\n')
    assert [(r["budget"], r["stage"], r["loss"], r["tokens"]) for r in told.records] == [
        (2000, "annealed", 2.5, 2000), (4000, "annealed", 2.0, 4000),
    ]  # fmt: skip
    assert told.curve[0]["phase"] == "trunk"
    assert read_records(run, '{"status": "diverged", "reason": "NaN"}').status == "diverged"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no record of budget 2000"),
        (GOOD + "{", "line 3"),
        (GOOD + "[1]", "line 3: a JSON object was expected"),
        ('{"budget": 2000}', "line 1: loss is missing"),
        ('{"budget": 2000, "loss": null}', "line 1: loss is missing"),
        ('{"budget": 2000, "loss": NaN}', "must be a finite number"),
        ('{"budget": 2000, "loss": "2"}', "must be a finite number"),
        ('{"budget": true, "loss": 2}', "must be a whole number"),
        ('{"budget": 3000, "loss": 2}', "none of this run's"),
        ('{"budget": 2000, "loss": 2, "los": 3}', "unknown key 'los'"),
        ('{"budget": 2000, "loss": 2, "run_id": "x"}', "unknown key 'run_id'"),
        ('{"budget": 2000, "loss": 2, "stage": "end"}', "must be stable or annealed"),
        ('{"type": "recrd", "loss": 2}', "did you mean 'record'"),
        ('{"status": "fine"}', "status must be"),
    ],
)
def test_its_mistakes_are_named(run, text, words):
    with pytest.raises(UserError) as error:
        read_records(run, text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("program", "status", "words"),
    [
        (f"print('noise'); print({GOOD!r})", "finished", ""),
        ("import sys; sys.exit('out of memory')", "failed", "exit code 1: out of memory"),
        ("print('{}')", "failed", "records, line 1: budget is missing"),
    ],
)
def test_it_may_print_and_may_fail(run, tmp_path, program, status, words):
    (tmp_path / "train.py").write_text(program)
    store = Store.create(tmp_path / "store")
    with store.claim(run.run_id) as mine, open("/dev/null", "w", encoding="utf-8") as nothing:
        assert mine
        train_with(store, "own", run, Reporter(nothing), f"{sys.executable} {tmp_path / 'train.py'} {{spec}}")
    assert store.status(run.run_id) == status
    assert {row["reason"] for row in store.read("runs").to_pylist()} == {words}


def test_a_command_must_take_the_cell_and_its_own_store(run, tmp_path):
    for command, words in (("", "say a command"), ("a 'b", "No closing"), ("python train.py", "{spec}")):
        with pytest.raises(UserError, match=words):
            check_command(command)
    with (
        open("/dev/null", "w", encoding="utf-8") as nothing,
        pytest.raises(UserError, match="cannot be started"),
    ):
        train_with(Store.create(tmp_path / "a"), "own", run, Reporter(nothing), "/nowhere {spec}")
    with (
        open("/dev/null", "w", encoding="utf-8") as nothing,
        pytest.raises(UserError, match="UMSCALE_TRAINER"),
    ):
        train_with(Store.create(tmp_path / "a"), "own", run, Reporter(nothing), "")
    store = Store.create(tmp_path / "b")
    store.write_rows("runs", run.run_id, [{"run_id": run.run_id, "status": "finished", "kernels": "native"}])
    with pytest.raises(UserError, match="--store of its own"):
        check_store(store, [run.run_id])
