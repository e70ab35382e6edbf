"""Whatever is in a study file, a table or a store, the answer is a result or one line: never a traceback.

``UMSCALE_FUZZ=5000`` tries so many examples of each kind, at random; without it few, and always the same.
"""

import contextlib
import copy
import json
import math
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from umscale.design.study import expand, load_study
from umscale.errors import UserError
from umscale.execute.job import newest_job, read_job, write_job
from umscale.execute.workload import JOBS, make_plan
from umscale.files import LocalFiles
from umscale.laws.fit import fit_law
from umscale.results.source import read_table
from umscale.search.settings import parse_settings
from umscale.store.store import Store
from umscale.training.checkpoint import Workspace
from umscale.training.record import spec_row

EXAMPLES = int(os.environ.get("UMSCALE_FUZZ", "0"))


def fuzz(few: int):
    """Settings of a fuzz test: ``few`` fixed examples, or as many random ones as the environment says."""
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def one_line_at_most():
    """Pass for a result and for an error of one line; anything else fails."""
    try:
        yield
    except UserError as error:
        if len(str(error).splitlines()) != 1 or len(str(error)) > 2000:
            raise AssertionError(f"not one line: {error}") from error


TREE = {
    "name": "tiny",
    "question": "density-over-size",
    "compensation": ["none", "iso_flops"],
    "tolerance": 0.05,
    "axes": {"top_m": [2, 4], "n_keys": [8, 16], "tokens": ["10k", "20k"], "seed": [0, 1]},
    "cells": [],
    "architectures": {"moe": {"model": {"ffn": {"kind": "moe", "n_experts": 4, "top_k": 2}}}},
    "search": {
        "space": {"top_m": {"low": 2, "high": 8, "log": True}},
        "objectives": ["loss"],
        "constraints": {"total_params": "1M"},
        "sampler": "tpe",
        "n_trials": 4,
    },
    "model": {
        "d_model": 32,
        "n_layers": 1,
        "n_heads": 2,
        "ffn": {"d_ffn": 32},
        "memory": {"n_keys": 8, "top_m": 2, "d_key": 8, "d_pre_value": 8, "d_value": 8},
    },
    "data": {"corpus": "kjv", "seq_len": 32, "validation_tokens": 2000},
    "train": {"budgets": [5000, 10000], "batch_size": 4, "warmup_tokens": 500, "precision": "float32"},
}
ODD = st.one_of(
    st.booleans(),
    st.sampled_from(
        [
            0,
            -1,
            1,
            3,
            7,
            10**6,
            2**31,
            2**63 - 1,
            -(2**63),
            math.inf,
            -math.inf,
            math.nan,
            1e308,
            1e-308,
            0.5,
            "",
        ]
    ),
    st.sampled_from(
        [
            "../../etc/passwd",
            "/etc/passwd",
            "none",
            "auto",
            "1k",
            "1e400",
            "-5M",
            "top_m",
            "moe",
            "x" * 5000,
            "☃\u202e",
        ]
    ),
    st.text(max_size=12),
    st.integers(-100, 10**12),
    st.floats(),
    st.lists(st.integers(-3, 70), max_size=4),
    st.dictionaries(st.text(max_size=6), st.integers(), max_size=3),
    st.just([[[[[[]]]]]]),
)


def paths(tree, before=()):
    """All places of a tree."""
    found = []
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        found += [(*before, key), *paths(tree[key], (*before, key))]
    return found


PLACES = paths(TREE)


@st.composite
def studies(draw):
    """A valid study with a few things replaced, removed or added."""
    tree = copy.deepcopy(TREE)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(PLACES))
        node = tree
        try:
            for key in place[:-1]:
                node = node[key]
            match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
                case "replace":
                    node[place[-1]] = draw(ODD)
                case "remove":
                    del node[place[-1]]
                case "add":
                    node[draw(st.text(max_size=8))] = draw(ODD)
        except (KeyError, IndexError, TypeError):
            pass  # an earlier change took the place away
    return tree


@fuzz(150)
@given(tree=studies())
def test_studies(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    try:
        path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    except (ValueError, TypeError, OverflowError, UnicodeEncodeError):
        return  # no TOML
    with one_line_at_most():
        study = load_study(str(path))
        if study.search:
            parse_settings(study.search)
        if len(expand(study, "float32")) < 50:
            study.to_toml()


@fuzz(80)
@given(
    content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="replace"))
)
def test_files_that_are_no_studies(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise.toml"
    path.write_bytes(content)
    with pytest.raises(UserError):
        load_study(str(path))


CELL = st.one_of(st.none(), st.floats(), st.integers(-5, 10**9), st.text(max_size=5), st.booleans())
NAME = st.sampled_from(["N", "D", "loss", "m", "run", "", "a b", "row", "é"]) | st.text(max_size=4)


@st.composite
def tables(draw):
    """Columns of anything, with any name, sometimes those of a law."""
    n_rows = draw(st.integers(0, 14))
    names = draw(st.lists(NAME, max_size=5)) + draw(st.sampled_from([[], ["N", "D", "loss"]]))
    numbers = st.floats(1e-3, 1e12)
    return [
        (name, draw(st.lists(draw(st.sampled_from([CELL, numbers])), min_size=n_rows, max_size=n_rows)))
        for name in names
    ]


def write_table(table, kind: str, folder: Path) -> Path:
    path = folder / f"fuzz.{kind}"
    if kind == "parquet":
        arrays = []
        for _, column in table:
            try:
                arrays.append(pa.array(column))
            except (pa.ArrowException, OverflowError):
                arrays.append(
                    pa.array([None if v is None else str(v).encode("utf-8", "replace") for v in column])
                )
        pq.write_table(
            pa.Table.from_arrays(
                arrays, names=[name.encode("utf-8", "replace").decode() for name, _ in table]
            ),
            path,
        )
    elif kind == "csv":
        rows = [[name for name, _ in table], *zip(*(column for _, column in table), strict=True)]
        text = "\n".join(",".join("" if v is None else str(v) for v in row) for row in rows)
        path.write_bytes(text.encode("utf-8", "replace"))
    else:
        rows = zip(*(column for _, column in table), strict=True)
        path.write_text(
            "\n".join(json.dumps(dict(zip((n for n, _ in table), row, strict=True))) for row in rows)
        )
    return path


@fuzz(150)
@given(table=tables(), kind=st.sampled_from(["csv", "parquet", "jsonl"]))
def test_tables(tmp_path_factory, table, kind):
    path = write_table(table, kind, tmp_path_factory.getbasetemp())
    with one_line_at_most():
        fit_law(read_table(path), "chinchilla")


# ---------------------------------------------------------------------------------------------------------
# Stores


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store with a finished run, a job, a claim and a checkpoint."""
    import torch

    from umscale.data.corpus import open_corpus
    from umscale.design.study import parse
    from umscale.training.run import Interrupted, Run

    store = Store.create(tmp_path_factory.mktemp("whole") / "store")
    tree = {k: v for k, v in TREE.items() if k not in ("search", "architectures")}
    study = parse(tree, "tiny")
    cells = expand(study, "float32")
    store.write_design(study, cells)
    plan = make_plan("tiny", cells)
    write_job(store, plan)
    first, second = plan.runs[:2]
    records = [
        {"budget": b, "stage": s, "loss": 2.0} for b in first.train.budgets for s in ("stable", "annealed")
    ]
    store.write_run(
        spec_row(first),
        "tiny",
        status="finished",
        records=records,
        documents=[{"budget": 5000, "stage": "stable", "document": "a", "nats": 1.0}],
        curve=[{"phase": "trunk", "tokens": 10, "loss": 1.0}],
    )
    corpus = open_corpus("kjv")
    steps = iter(range(3))
    with store.claim(second.run_id):
        training = Run(second, corpus, Workspace.of(store, second.run_id), torch.device("cpu"))
        with pytest.raises(Interrupted):
            training.execute(lambda o: None, lambda p: None, lambda: next(steps, None) is None)
    assert store._claiming().claim("f" * 16)
    return store.root, second, corpus


def everything(store: Store, run, corpus) -> None:
    """Use all that is read from a store."""
    import torch

    from umscale.training.run import Run

    for table in ("runs", "documents", "curves", "cells"):
        store.read(table)
    store.statuses()
    store.columns()
    store.curves()
    store.question()
    store.specs("finished")
    for run_id in store.statuses():
        store.status(run_id)
        store.final_record(run_id)
    store.claimed()
    store.stale({run.run_id: "0" * 16})
    store.pinned_precision()
    name = newest_job(store)
    if name is not None:
        read_job(store, name, JOBS).remaining(store)
    assert isinstance(Workspace.of(store, run.run_id), Workspace)
    Run(run, corpus, Workspace.of(store, run.run_id), torch.device("cpu"))._restore()
    store.repair()


@st.composite
def damages(draw):
    """What happens to a file: cut, flipped, replaced, or a valid file of something else."""
    kind = draw(st.sampled_from(["cut", "flip", "flip", "noise", "foreign", "json", "empty", "folder"]))
    return kind, draw(st.floats(0, 1)), draw(st.integers(0, 7)), draw(ODD), draw(st.binary(max_size=60))


def damage(path: Path, how) -> None:
    kind, where, bit, value, noise = how
    content = bytearray(path.read_bytes())
    at = min(int(where * len(content)), max(0, len(content) - 1))
    match kind:
        case "cut":
            path.write_bytes(content[:at])
        case "flip" if content:
            content[at] ^= 1 << bit
            path.write_bytes(content)
        case "noise":
            path.write_bytes(noise)
        case "foreign":
            pq.write_table(pa.table({"run_id": [1, 2], "status": [[1], [2]], "loss": ["a", "b"]}), path)
        case "json":
            path.write_text(
                json.dumps({"version": value, "kind": value, "host": value, "pid": value, "runs": value})
            )
        case "folder":
            path.unlink()
            path.mkdir()
        case _:
            path.write_bytes(b"")


@fuzz(60)
@given(which=st.integers(0, 10**6), how=damages())
def test_stores(tmp_path_factory, whole, which, how):
    source, run, corpus = whole
    folder = tmp_path_factory.getbasetemp() / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    damage(files[which % len(files)], how)
    with one_line_at_most():
        store = Store.open(folder)
        everything(store, run, corpus)


@fuzz(60)
@given(name=st.text(max_size=40))
def test_names_of_jobs_do_not_lead_out_of_the_store(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / "jobs"
    store = Store.create(folder)
    with pytest.raises(UserError):
        read_job(store, name, JOBS)
    LocalFiles(folder).write("work/jobs/newest", name.encode("utf-8", "replace"))
    found = newest_job(store)
    with pytest.raises(UserError):
        read_job(store, found or "", JOBS)
