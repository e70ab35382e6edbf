"""What the README gives to be typed works as it is written."""

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import umscale_studies
from umscale.design.study import expand, parse
from umscale.spec import apply_overrides
from umscale.store.store import Store
from umscale.trees import parse_toml

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def studies() -> list[str]:
    whole = [block for block in blocks(README, "toml") if "[axes]" in block]
    assert len(whole) == 2
    return whole


def test_the_first_study_has_no_cell_that_cannot_be_trained():
    tree = parse_toml(studies()[0])
    tree = apply_overrides(tree, ["data.corpus=kjv", "data.max_epochs=10"])
    cells = expand(parse(tree, "README.md"), "float32")
    assert len(cells) == 72
    assert [cell.label for cell in cells if cell.run is None] == []


def test_the_architectures_it_compares_are_solved():
    reference = parse_toml(studies()[0])
    tree = parse_toml(studies()[1]) | {k: reference[k] for k in ("name", "model")}
    tree |= {"data": {"corpus": "kjv"}, "train": {"budgets": [400_000]}}
    cells = expand(parse(tree, "README.md"), "float32")
    assert len(cells) == 3
    assert [(cell.label, cell.reason) for cell in cells if cell.run is None] == []


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A recorded study as a sweep of today would have written it."""
    recorded = Store.open(umscale_studies.recorded()["density_over_size"])
    made = Store.create(tmp_path_factory.mktemp("store") / "store")
    for table in ("runs", "cells"):
        rows: dict[str, list[dict[str, object]]] = {}
        for row in recorded.read(table).to_pylist():
            rows.setdefault(row["run_id"], []).append(row)
        for run_id, some in rows.items():
            made.write_rows(table, run_id, some)
    return made.root


@pytest.mark.parametrize("number", range(2))
def test_its_snippets_of_python_run(store, number):
    snippet = [block for block in blocks(README, "python") if "read_parquet" in block][number]
    code = snippet.replace("umscale-runs/quickstart", str(store))
    *lines, last = code.strip().splitlines()
    names: dict[str, object] = {}
    exec("\n".join(["import glob, polars", *lines]), names)
    found = eval(last, names)
    if number == 1:
        import polars

        assert isinstance(found, polars.DataFrame)
        assert set(found["compensation"]) == {"none", "iso_flops"}
        expected = Store.open(store).columns()
        assert found["loss"].mean() == pytest.approx(expected["loss"].mean(), abs=0.02)


def test_its_snippets_read_what_several_versions_wrote(store, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(store, mixed)
    older = sorted((mixed / "runs").glob("*.parquet"))[::2]
    for path in older:
        pq.write_table(pq.read_table(path).drop_columns(["kernels", "written_at"]), path)
    first, second = (block for block in blocks(README, "python") if "read_parquet" in block)
    names: dict[str, object] = {}
    exec((first + second).replace("umscale-runs/quickstart", str(mixed)), names)
    runs = names["runs"].group_by("run_id").agg("kernels", "loss")
    assert len(runs) == len(list((mixed / "runs").glob("*.parquet"))) > len(older)
    assert sum(None in made for made in runs["kernels"].to_list()) == len(older)


def test_the_join_of_the_docs_gives_what_the_store_gives(store):
    import duckdb

    (query,) = blocks(RESULTS, "sql")
    found = duckdb.connect().execute(query.replace("STORE", str(store))).df()
    expected = Store.open(store).columns()
    names = ("compensation", "run_id", "budget", "stage")
    rows = [
        sorted(zip(*(map(str, table[name]) for name in names), strict=True))
        for table in (found, expected | {"budget": expected["budget"].astype(int)})
    ]
    assert rows[0] == rows[1]
    assert found["written_at"].str.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ").all()
