"""Specifications: identity, round trips, and one clear line for what is wrong."""

import contextlib
import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umscale.errors import UserError
from umscale.spec import (
    BEFORE_3,
    DataSpec,
    FfnSpec,
    MemorySpec,
    ModelSpec,
    RunSpec,
    TrainSpec,
    apply_overrides,
    from_dict,
    quantity,
    read_run,
    to_dict,
    to_toml,
)


def run(**memory: int) -> RunSpec:
    return RunSpec(model=ModelSpec(memory=MemorySpec(**memory)))


def test_toml_round_trip(tmp_path):
    import tomllib

    spec = RunSpec(
        model=ModelSpec(memory=MemorySpec(layers=(1, 3), preselect_m=8), ffn=FfnSpec(d_ffn=100)),
        train=TrainSpec(budgets=(100_000, 300_000), warmup_tokens=0),
        seed=3,
    )
    again = from_dict(RunSpec, tomllib.loads(to_toml(to_dict(spec))))
    assert again == spec
    assert again.run_id == spec.run_id


def test_run_id_follows_what_matters_and_nothing_else():
    base = run()
    assert base.run_id == run().run_id
    assert run(top_m=16).run_id != base.run_id
    assert dataclasses.replace(base, seed=1).run_id != base.run_id
    often = dataclasses.replace(base, train=dataclasses.replace(base.train, checkpoint_seconds=1.0))
    assert often.run_id == base.run_id
    here = dataclasses.replace(base, data=DataSpec(corpus="a", hash="00"))
    there = dataclasses.replace(base, data=DataSpec(corpus="elsewhere/a", hash="00"))
    other = dataclasses.replace(base, data=DataSpec(corpus="a", hash="11"))
    assert here.run_id == there.run_id != other.run_id


# Run ids that version 2 gave; to whom no cap was known.
WIDE_IDS = {
    (768, None): "7fdc2ff9113faa4b",
    (768, 128): "f4d080ef6b160ef2",
    (768, 768): "d43e0df58cfe4cf7",
    (32, None): "26059efb4de316bd",
}


@pytest.mark.parametrize(("top_m", "preselect_m"), WIDE_IDS)
def test_records_of_version_2_keep_their_candidates_and_their_id(top_m, preselect_m):
    memory = {"top_m": top_m} if top_m == 32 else {"top_m": top_m, "n_keys": 1024}
    memory |= {} if preselect_m is None else {"preselect_m": preselect_m}
    read = read_run(json.dumps({"model": {"memory": memory}, "train": {"rate_scaling": "shape"}}))
    assert read.run_id == WIDE_IDS[top_m, preselect_m]
    assert read.model.memory.candidates == (preselect_m or top_m)


def test_candidates_are_capped_from_version_3_on():
    assert [run(top_m=m, n_keys=1024).model.memory.candidates for m in (100, 128, 129, 768)] == [
        100,
        128,
        128,
        128,
    ]
    capped = run(top_m=768, n_keys=1024)
    assert read_run(json.dumps(to_dict(capped))) == capped
    asked = run(top_m=768, n_keys=1024, preselect_m=128)
    assert capped.run_id == asked.run_id, "the cap and the same number asked for are one run"
    assert run(top_m=768, n_keys=1024, preselect_cap=0).run_id != capped.run_id
    assert run(top_m=128**2 + 1, n_keys=1024).model.memory.candidates == 129, "enough cells for top_m"
    assert run(top_m=200, n_keys=64).model.memory.candidates == 64


def test_dense_and_default_memory_differ():
    assert RunSpec(model=ModelSpec()).run_id != RunSpec(model=ModelSpec(memory=MemorySpec())).run_id


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model": {"memory": {"top_m": 17, "n_keys": 4}}}, r"top_m = 17 exceeds n_keys² = 16"),
        ({"model": {"d_model": 100, "n_heads": 3}}, "not divisible"),
        ({"model": {"memory": {"topm": 8}}}, "model.memory.topm.*did you mean 'top_m'"),
        ({"model": {"memory": {"top_m": "many"}}}, "is not a number"),
        ({"model": {"memory": {"top_m": 2.5}}}, "whole number"),
        ({"model": {"memory": {"init": "paperish"}}}, "must be one of 'paper', 'matched', 'official'"),
        ({"model": {"memory": {"d_value": 33}}}, "not divisible by n_cores"),
        ({"model": {"memory": {"layers": [0, 9]}}}, "distinct blocks"),
        ({"train": {"budgets": [2, 1]}}, "strictly ascending"),
        ({"train": {"budgets": [10]}}, "fewer than 5 steps|warmup"),
        ({"train": {"lr": float("nan")}}, "finite"),
        (
            {"train": {"budgets": [100_000, 100_200], "batch_size": 16}, "data": {"seq_len": 256}},
            "100000 and 100200 tokens both round to 24 steps",
        ),
        ({"train": {"table_weight_decay": -0.1}}, "at least 0 and below 1"),
        ({"train": {"table_weight_decay": "some"}}, "is not a number.*'coupled'"),
        ({"data": {"validation_documents": -1}}, "between 0 and validation_tokens"),
        ({"train": {"lr": -1}}, "positive"),
        ({"model": 3}, "expected a table"),
        ({"seed": -1}, "seed"),
    ],
)
def test_invalid_specs_say_what_is_wrong(tree, message):
    with pytest.raises(UserError, match=message) as caught:
        from_dict(RunSpec, tree)
    assert "\n" not in str(caught.value)


def test_what_an_earlier_version_could_say_keeps_its_id_and_its_version():
    """``tests/test_recorded.py`` holds the ids of all recorded runs; here is what decides the version."""
    new = run()
    assert new.spec_version == 3
    old = dataclasses.replace(
        new,
        data=DataSpec(validation_documents=0),
        train=TrainSpec(table_weight_decay="coupled", score_energy="nominal"),
    )
    assert old.spec_version == 2
    first = dataclasses.replace(old, train=dataclasses.replace(old.train, rate_scaling="none"))
    assert first.spec_version == 1
    matched = dataclasses.replace(old, model=ModelSpec(memory=MemorySpec(init="matched")))
    assert matched.spec_version == 3
    tree = to_dict(old)
    for table, fields in BEFORE_3.items():
        for name in fields:
            del tree[table][name]
    assert read_run(json.dumps(tree)) == old, "a record without the new fields means the old defaults"
    ids = [r.run_id for r in (new, old, first, matched)]
    ids += [
        dataclasses.replace(new, train=TrainSpec(table_weight_decay=decay)).run_id for decay in (0.0, 1.6e-4)
    ]
    assert len(set(ids)) == len(ids)


def test_overrides():
    tree = {"train": {"lr": 1e-3}}
    out = apply_overrides(tree, ["train.lr=2e-3", "axes.top_m=[4, 8]", "data.corpus=kjv"])
    assert out == {"train": {"lr": 2e-3}, "axes": {"top_m": [4, 8]}, "data": {"corpus": "kjv"}}
    assert tree == {"train": {"lr": 1e-3}}
    with pytest.raises(UserError, match=r"path\.key=value"):
        apply_overrides(tree, ["train.lr"])
    with pytest.raises(UserError, match="not a table"):
        apply_overrides(tree, ["train.lr.x=1"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.5M", 1.5e6), ("64k", 64e3), ("120B", 120e9), ("1e6", 1e6), (7, 7), ("1_000", 1000)],
)
def test_quantity(text, value):
    assert quantity(text) == value


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
trees = st.recursive(
    scalars, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=8), t, max_size=3)
)
keys = st.sampled_from(["model", "train", "data", "seed", "memory", "ffn", "top_m", "budgets", "x"])


@settings(deadline=None)
@given(st.dictionaries(keys, st.dictionaries(keys, trees, max_size=3) | trees, max_size=4))
def test_any_tree_is_a_spec_or_a_user_error(tree):
    with contextlib.suppress(UserError):  # any other exception fails the test
        from_dict(RunSpec, tree)
