"""Every architecture on the one trainer: it learns, resumes bitwise, and its record says how it used its parameters."""

import dataclasses
import itertools
import math

import pytest
import torch

from umscale.data.corpus import open_corpus
from umscale.spec import DataSpec, FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec
from umscale.training.run import Interrupted, Run

CPU = torch.device("cpu")
SMALL = {"n_keys": 12, "top_m": 4, "d_key": 8}
MODELS = {
    "ultramem_v2": {"memory": MemorySpec(**SMALL, d_pre_value=8, d_value=8)},
    "no pre-values, one layer, skipped": {
        "memory": MemorySpec(**SMALL, d_pre_value=0, d_value=8, layers=(0,), skip=1)
    },
    "ring, aux losses": {
        "memory": MemorySpec(
            **SMALL,
            d_pre_value=8,
            d_value=8,
            sharing="ring",
            share_layers=2,
            balance_loss=1e-3,
            tucker_penalty=1e-3,
        )
    },
    "expanded": {"memory": MemorySpec(**SMALL, d_pre_value=8, d_value=8, key_expansion=2, value_expansion=4)},
    "ultramem": {"memory": MemorySpec(kind="ultramem", **SMALL, d_value=8)},
    "pkm": {"memory": MemorySpec(kind="pkm", **SMALL, d_value=8, heads=2)},
    "memory_plus": {"memory": MemorySpec(kind="memory_plus", **SMALL, d_value=8, heads=2)},
    "peer": {"memory": MemorySpec(kind="peer", **SMALL, heads=2)},
    "moe top-1": {"ffn": FfnSpec(kind="moe", d_ffn=48, n_experts=4, top_k=1)},
    "moe top-8, shared": {"ffn": FfnSpec(kind="moe", d_ffn=8, n_experts=16, top_k=8, n_shared_experts=1)},
    "moe and memory": {
        "ffn": FfnSpec(kind="moe", d_ffn=24, n_experts=4, top_k=2),
        "memory": MemorySpec(**SMALL, d_pre_value=8, d_value=8),
    },
    "dense": {},
}


@pytest.fixture(scope="module")
def corpus():
    return open_corpus("kjv")


def run_spec(corpus, name, **train):
    parts = {"ffn": FfnSpec(d_ffn=48), **MODELS[name]}
    return RunSpec(
        model=ModelSpec(d_model=32, n_layers=2, n_heads=2, vocab_size=corpus.vocab_size, **parts),
        data=DataSpec(
            corpus="kjv", hash=corpus.hash, seq_len=32, validation_tokens=1000, validation_documents=0
        ),
        train=TrainSpec(
            budgets=(4_000,), batch_size=8, warmup_tokens=1_000, lr=1e-2, value_lr=1e-2, precision="float32",
            checkpoint_seconds=0.0, **train,
        ),
    )  # fmt: skip


def losses(outcome):
    return [(r["stage"], r["loss"], r["loss_ema"]) for r in outcome.records]


@pytest.mark.parametrize("name", MODELS)
def test_learns_resumes_bitwise_and_reports_its_use(corpus, name, tmp_path):
    spec = run_spec(corpus, name)
    whole = Run(spec, corpus, tmp_path / "whole", CPU).execute(lambda outcome: None)
    assert whole.status == "finished"
    annealed = whole.records[-1]
    assert annealed["loss"] < math.log(corpus.vocab_size) - 0.5
    parts = len(Run(spec, corpus, tmp_path / "model", CPU).model.sparse_parts)
    used = annealed["value_use"]
    assert (used is None) == (name == "dense")
    if used is not None:
        assert len(used) == parts
        assert all(0 < share <= 1 for share in used)
        assert annealed["access_bytes_b1"] >= annealed["access_bytes_b256"] > 0

    countdown = itertools.count()
    with pytest.raises(Interrupted):
        Run(spec, corpus, tmp_path / "cut", CPU).execute(
            lambda outcome: None, should_stop=lambda: next(countdown) > 9
        )
    resumed = Run(spec, corpus, tmp_path / "cut", CPU).execute(lambda outcome: None)
    assert losses(resumed) == losses(whole)


@pytest.mark.parametrize(
    "options",
    [
        {"table_gradient": "rows"},
        {"table_gradient": "rows", "table_second_moment": "row", "table_copy": "bfloat16"},
        {"table_copy": "bfloat16"},
    ],
    ids=str,
)
def test_table_options_learn_and_resume_bitwise(corpus, options, tmp_path):
    spec = run_spec(corpus, "ultramem_v2", **options)
    whole = Run(spec, corpus, tmp_path / "whole", CPU).execute(lambda outcome: None)
    assert whole.records[-1]["loss"] < math.log(corpus.vocab_size) - 0.5
    countdown = itertools.count()
    with pytest.raises(Interrupted):
        Run(spec, corpus, tmp_path / "cut", CPU).execute(
            lambda outcome: None, should_stop=lambda: next(countdown) > 9
        )
    resumed = Run(spec, corpus, tmp_path / "cut", CPU).execute(lambda outcome: None)
    assert losses(resumed) == losses(whole)


def test_dense_and_row_updates_agree_while_every_row_is_read(corpus, tmp_path):
    """With a tiny table each step reads every row, and lazy AdamW is AdamW; it decays at every fourth, so none."""
    memory = MemorySpec(n_keys=3, top_m=9, d_key=8, d_pre_value=8, d_value=8)
    found = []
    for gradient in ("dense", "rows"):
        spec = run_spec(corpus, "ultramem_v2", table_gradient=gradient, table_weight_decay=0.0)
        spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, memory=memory))
        run = Run(spec, corpus, tmp_path / gradient, CPU)
        found.append([run.train_step() for _ in range(8)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_copy_that_is_read_follows_the_tables(corpus, tmp_path):
    run = Run(run_spec(corpus, "ring, aux losses", table_copy="bfloat16"), corpus, tmp_path, CPU)
    before = run.model.tables.values_copy.clone()
    for _ in range(3):
        run.train_step()
    tables = run.model.tables
    assert not torch.equal(tables.values_copy, before)
    for parameter, copy in tables.copies().items():
        assert torch.equal(copy, parameter.bfloat16())
