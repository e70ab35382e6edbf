"""Study files and stores from a stranger reach nothing outside their folders."""

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from umscale.data.corpus import open_corpus
from umscale.design.study import expand, load_study
from umscale.errors import UserError
from umscale.execute.job import newest_job, read_job
from umscale.execute.workload import JOBS
from umscale.files import open_files
from umscale.search.settings import parse_settings
from umscale.store.store import Store
from umscale_cli.main import main

STUDY = """
name = {name}
[axes]
top_m = [2, 4]
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
corpus = {corpus}
seq_len = 32
[train]
budgets = [5000]
batch_size = 4
warmup_tokens = 500
"""


def study(folder: Path, name: str = "fine", corpus: str = "kjv", more: str = "") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "study.toml"
    path.write_text(STUDY.format(name=json.dumps(name), corpus=json.dumps(corpus)) + more)
    return str(path)


@pytest.fixture
def outside(tmp_path):
    """A real corpus, but not one that a study file in another folder may name by its path."""
    source = open_corpus("kjv").path
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "kjv").symlink_to(source)
    return tmp_path / "corpora" / "kjv"


@pytest.mark.parametrize(
    "name", ["../out", "a/b", "/tmp/x", "..", ".hidden", "", "a\nb", "a\0b", "~root", "x" * 65]
)
def test_a_name_is_no_path(tmp_path, name):
    with pytest.raises(UserError, match="name = "):
        load_study(study(tmp_path, name=name))


def test_a_corpus_outside_the_folder_must_be_asked_for(tmp_path, outside):
    relative = os.path.relpath(outside, tmp_path / "mine")
    for corpus in (str(outside), relative, f"./../mine/{relative}"):
        with pytest.raises(UserError, match="outside the study's folder"):
            load_study(study(tmp_path / "mine", corpus=corpus))
    for more in (
        '[[cells]]\ntop_m = 2\n"data.corpus" = ',
        "[cells.data]\ncorpus = ",
        "[axes.data]\ncorpus = ",
    ):
        with pytest.raises(UserError):
            load_study(study(tmp_path / "mine", more=more + json.dumps([str(outside)])))
    space = f'[search.space]\n"data.corpus" = [{json.dumps(str(outside))}]\n'
    with pytest.raises(UserError):
        parse_settings(load_study(study(tmp_path / "mine", more=space)).search)
    found = load_study(study(tmp_path / "mine"), [f"data.corpus={outside}"])
    assert found.reference.data.corpus == str(outside)


@pytest.mark.parametrize("corpus", ["x" * 5000, "a\0b", "~nobody/x", ""])
def test_what_is_no_path_is_no_corpus(tmp_path, corpus):
    for attempt in (
        lambda: expand(load_study(study(tmp_path, corpus=corpus)), "float32"),
        lambda: open_corpus(corpus),
    ):
        with pytest.raises(UserError, match="corpus"):
            attempt()


def test_a_store_is_given_only_by_the_user(tmp_path, capsys, monkeypatch):
    before = set(tmp_path.iterdir())
    path = study(tmp_path / "mine", name="../../escaped")
    monkeypatch.setattr(sys, "argv", ["umscale", "sweep", path, "--store", str(tmp_path / "mine" / "store")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "name = " in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} - {p.name for p in before} == {"mine"}


@pytest.mark.parametrize("name", ["../secret", "runs/../../secret", "/etc/passwd", "a\0b", ".."])
def test_files_stay_below_their_root(tmp_path, name):
    (tmp_path / "secret").write_text("hidden")
    files = open_files(tmp_path / "store")
    files.write("a.txt", b"mine")
    for attempt in (
        lambda: files.read(name),
        lambda: files.write(name, b""),
        lambda: files.exists(name),
        lambda: files.entries(name),
        lambda: files.delete(name),
        lambda: files.delete_folder(name),
        lambda: files.move(name, "b.txt"),
        lambda: files.move("a.txt", name),
        lambda: files.reading(name).__enter__(),
        lambda: files.writing(name).__enter__(),
    ):
        with pytest.raises(UserError, match="no name of a file"):
            attempt()
    assert (tmp_path / "secret").read_text() == "hidden"
    assert files.read("a.txt") == b"mine"


@pytest.mark.parametrize("run_id", ["../../secret", "../../../etc/passwd"])
def test_ids_in_tables_jobs_and_claims_open_nothing_outside(tmp_path, run_id):
    secret = tmp_path / "secret.parquet"
    pq.write_table(
        pa.table({"run_id": ["x"], "status": ["finished"], "stage": ["annealed"], "budget": [1]}), secret
    )
    store = Store.create(tmp_path / "store")
    store.write_rows("runs", "0" * 16, [{"run_id": run_id, "status": "finished"}])
    store.write_rows("cells", "0" * 16, [{"run_id": run_id, "label": "l"}])
    assert set(store.columns()["run_id"]) == {run_id}, "shown, but nothing more"
    for use in (store.status, store.final_record, store.forget, store.clear_work):
        with pytest.raises(UserError):
            use(run_id)
    with pytest.raises(UserError), store.claim(run_id):
        pass
    store.files.write("work/jobs/newest", run_id.encode())
    with pytest.raises(UserError):
        read_job(store, newest_job(store) or "", JOBS)
    (store.root / "work" / "claims").mkdir(parents=True)
    (store.root / "work" / "claims" / "a...%2e%2e.claim").write_text(
        json.dumps({"host": run_id, "pid": run_id})
    )
    store.claimed()
    assert secret.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.parquet", "store"]
