"""The sentences under every fit, sweep and page."""

import dataclasses

import umscale_studies
from umscale.say.basis import basis, old_defaults
from umscale.spec import DataSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec
from umscale.store.store import Store

NEW = RunSpec(model=ModelSpec(memory=MemorySpec()))
SECOND = dataclasses.replace(
    NEW,
    data=DataSpec(validation_documents=0),
    train=TrainSpec(table_weight_decay="coupled", score_energy="nominal"),
)


def test_old_records_say_which_defaults_they_used() -> None:
    assert old_defaults([NEW]) == ()
    (second,) = old_defaults([SECOND])
    assert "spec version 2" in second
    assert "0.1 x value_lr" in second
    first = dataclasses.replace(SECOND, train=dataclasses.replace(SECOND.train, rate_scaling="none"))
    assert "same for every shape" in old_defaults([first])[0]
    assert "do not compare" in old_defaults([SECOND, NEW])[-1]
    dense = dataclasses.replace(SECOND, model=ModelSpec())
    assert "value" not in old_defaults([dense])[0].replace("evaluation", "")


def test_a_recorded_study_says_what_it_rests_on() -> None:
    store = Store.open(umscale_studies.recorded()["noise"])
    version, documents = basis(store, store.columns())
    assert version.startswith("Records of spec version 2")
    assert documents.startswith("Validation: 10 documents, 56,865 tokens, the largest 22.4%")
    assert "They are few" in documents
