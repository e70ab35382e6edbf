"""The recorded studies: readable, and what the README quotes of them is what the code computes today."""

from pathlib import Path

import pytest

import umscale_studies
from umscale.laws.report import report
from umscale.store import Store

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(umscale_studies.recorded()))
def test_recorded_stores_are_whole(name):
    store = Store.open(umscale_studies.recorded()[name])
    columns = store.columns()
    assert store.damaged == []
    assert len(columns["loss"])
    assert set(columns["study"]) <= set(umscale_studies.shipped())
    assert set(columns["status"]) == {"finished"}
    assert not any(revision.endswith("+dirty") for revision in columns["git_revision"]), "made from a commit"


def test_the_readme_quotes_the_recorded_density_study():
    store = Store.open(umscale_studies.recorded()["enwik8_density"])
    for verdict in report(store.columns(), losses=("loss",)).verdicts:
        assert verdict.answer == "supported"
        for estimate in (verdict.from_law.delta_m, verdict.from_law.delta_n, verdict.from_law.difference):
            assert f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]" in README
