"""The recorded studies: readable, and what the README quotes of them is what the code computes today."""

from pathlib import Path

import pytest

import umscale_studies
from umscale.questions.architectures import compare_architectures
from umscale.questions.density_over_size import answer
from umscale.questions.question import Asked
from umscale.spec import read_run
from umscale.store.store import Store

# Made while the tree held uncommitted work; runs repeated from the commit gave the same bits.
UNCOMMITTED = ("enwik8_architectures", "enwik8_architectures_lr")
README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(umscale_studies.recorded()))
def test_recorded_stores_are_whole(name):
    store = Store.open(umscale_studies.recorded()[name])
    columns = store.columns()
    assert store.damaged == []
    assert len(columns["loss"])
    assert set(columns["study"]) <= set(umscale_studies.shipped())
    assert set(columns["status"]) == {"finished"}
    dirty = any(revision.endswith("+dirty") for revision in columns["git_revision"])
    assert dirty == (name in UNCOMMITTED), "made from a commit"


@pytest.mark.parametrize("name", sorted(umscale_studies.recorded()))
def test_recorded_runs_keep_their_ids(name):
    table = Store.open(umscale_studies.recorded()[name]).read("runs").select(["run_id", "spec"])
    specs = {row["run_id"]: row["spec"] for row in table.to_pylist() if row["spec"]}
    assert specs
    assert [run_id for run_id, spec in specs.items() if read_run(spec).run_id != run_id] == []


def test_the_readme_quotes_the_recorded_density_study():
    store = Store.open(umscale_studies.recorded()["enwik8_density"])
    found = answer(store.columns(), Asked(losses=("loss",)))
    for verdict in (one for one in found.verdicts if one.loss == "loss"):
        assert verdict.answer == "supported"
        for estimate in (verdict.from_law.delta_m, verdict.from_law.delta_n, verdict.from_law.difference):
            assert f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]" in README


def test_the_readme_quotes_the_recorded_architectures():
    store = Store.open(umscale_studies.recorded()["enwik8_architectures"])
    annealed = compare_architectures(store.columns(), stage="annealed")[0]
    assert [row.name for row in annealed.rows] == [
        "moe-8of75",
        "ultramem_v2",
        "moe-2of18",
        "ultramem",
        "dense",
    ]
    for row in annealed.rows:
        assert f"{row.loss:.4f}" in README
        if row.difference is not None:
            numbers = (row.difference.value, row.difference.low, row.difference.high)
            assert "{:.4f} [{:.4f}, {:.4f}]".format(*numbers).replace("-", "−") in README
