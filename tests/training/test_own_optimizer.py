"""Muon, and with it any optimiser beside AdamW: what it takes, its steps, its rates, resumption, what is refused."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from umscale.data.corpus import open_corpus
from umscale.errors import UserError
from umscale.model.decoder import Decoder
from umscale.model.scaling import default_rates, learning_rates, optimizer_rates
from umscale.parts import Options
from umscale.spec import (
    DataSpec,
    FfnSpec,
    MemorySpec,
    ModelSpec,
    OptimizerSpec,
    RunSpec,
    TrainSpec,
    from_dict,
    read_run,
    to_dict,
)
from umscale.training.optimiser import make_optimizer, set_rates, skip_unless_finite
from umscale.training.own_optimizer import Together
from umscale.training.record import spec_row
from umscale.training.run import Interrupted, Run
from umscale.training.shards import check

CPU = torch.device("cpu")
MUON = OptimizerSpec(kind="muon")
MODEL = ModelSpec(
    d_model=32, n_layers=2, n_heads=2, vocab_size=64, ffn=FfnSpec(d_ffn=48),
    memory=MemorySpec(n_keys=16, top_m=6, d_key=8, d_pre_value=8, d_value=8),
)  # fmt: skip


def spec(**train) -> RunSpec:
    corpus = open_corpus("kjv")
    return RunSpec(
        model=dataclasses.replace(MODEL, vocab_size=corpus.vocab_size),
        data=DataSpec(corpus="kjv", hash=corpus.hash, seq_len=64, validation_tokens=2000),
        train=TrainSpec(
            **{
                "budgets": (4_000, 8_000), "batch_size": 4, "warmup_tokens": 500, "precision": "float32",
                "checkpoint_seconds": 1e9, "optimizer": MUON,
            } | train,
        ),
    )  # fmt: skip


def test_the_matrices_inside_blocks_are_muons_and_all_else_adamws() -> None:
    model = Decoder(MODEL, 0, 16)
    names = {p: name for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainSpec(optimizer=MUON))
    assert isinstance(optimizer, Together)
    mine = {names[p] for group in optimizer.own.param_groups for p in group["params"]}
    assert mine == {
        f"blocks.{i}.{name}.weight"
        for i in range(2)
        for name in (
            "attention.qkv", "attention.out", "ffn.gate_up", "ffn.out", "memory.query", "memory.pre_value", "memory.out"
        )
    }  # fmt: skip
    every = [names[p] for group in optimizer.param_groups for p in group["params"]]
    assert sorted(every) == sorted(names.values()), "each parameter once"


def test_head_and_experts_stay_with_adamw() -> None:
    model = Decoder(
        dataclasses.replace(
            MODEL, memory=None, tie_embeddings=False, ffn=FfnSpec(kind="moe", d_ffn=8, n_experts=4, top_k=2)
        ),
        0,
        16,
    )
    names = {p: name for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainSpec(optimizer=MUON))
    assert isinstance(optimizer, Together)
    mine = {names[p].split(".", 2)[-1] for group in optimizer.own.param_groups for p in group["params"]}
    assert mine == {"attention.qkv.weight", "attention.out.weight", "ffn.router.weight"}


def test_its_steps_are_torchs_and_follow_the_dense_schedule() -> None:
    train = TrainSpec(lr=1e-2, optimizer=OptimizerSpec(kind="muon", options=Options({"lr": 0.05})))
    model, tokens = Decoder(MODEL, 0, 16), torch.arange(32).view(2, 16)
    optimizer = make_optimizer(model, train)
    assert isinstance(optimizer, Together)
    set_rates(optimizer, (5e-3, 0.0))  # half of the peak
    weight = model.blocks[0].attention.out.weight
    model(tokens, tokens).backward()
    other = torch.nn.Parameter(weight.detach().clone())
    other.grad = weight.grad.clone()
    options = {"momentum": 0.95, "nesterov": True, "weight_decay": 0.03, "ns_steps": 5}
    torch.optim.Muon([other], lr=0.025, **options).step()
    optimizer.step()
    assert torch.equal(weight, other)


def test_a_gradient_that_is_not_finite_breaks_no_weight() -> None:
    model, tokens = Decoder(MODEL, 0, 16), torch.arange(32).view(2, 16)
    optimizer = make_optimizer(model, TrainSpec(optimizer=MUON))
    model(tokens, tokens).backward()
    for p in model.parameters():
        p.grad.fill_(float("nan"))
    skip_unless_finite(optimizer, torch.tensor(float("nan")))
    optimizer.step()
    assert all(p.isfinite().all() for name, p in model.named_parameters() if not name.startswith("tables."))


def test_a_stopped_run_goes_on_bitwise(tmp_path: Path) -> None:
    corpus, asked = open_corpus("kjv"), iter(range(1000))
    whole = Run(spec(), corpus, tmp_path / "whole", CPU).execute(lambda outcome: None)
    with pytest.raises(Interrupted):
        Run(spec(), corpus, tmp_path / "parts", CPU).execute(
            lambda outcome: None, should_stop=lambda: next(asked) == 20
        )
    again = Run(spec(), corpus, tmp_path / "parts", CPU).execute(lambda outcome: None)
    assert [r["loss"] for r in again.records] == [r["loss"] for r in whole.records]
    assert whole.records[-1]["loss"] < math.log(corpus.vocab_size) - 0.5, "it learns"


def test_ids_know_muon_and_its_options_and_leave_those_of_adamw_as_they_were() -> None:
    plain = spec(optimizer=OptimizerSpec())
    assert RunSpec().run_id == "0c4b0b755bcce4fd"  # before there was a choice
    assert spec().run_id != plain.run_id
    said = spec(optimizer=OptimizerSpec(kind="muon", options=Options({"lr": 0.02, "momentum": 0.95})))
    assert said.run_id == spec().run_id, "defaults that are said are defaults"
    assert spec(optimizer=OptimizerSpec(kind="muon", options=Options({"lr": 0.03}))).run_id != spec().run_id
    assert from_dict(RunSpec, to_dict(said)) == said
    assert read_run(spec_row(said)["spec"]) == said


def test_rates() -> None:
    """A record's ``lr`` is that of the hidden weights; Muon's is the same for all widths."""
    wide = dataclasses.replace(spec(), model=dataclasses.replace(MODEL, d_model=128, vocab_size=257))
    for run in (spec(), wide):
        assert optimizer_rates(run) == (0.02, learning_rates(run)[0])
        assert spec_row(run)["lr"] == 0.02
        assert default_rates(run) == (0.02, learning_rates(run)[1])
    told = spec(optimizer=OptimizerSpec(kind="muon", options=Options({"lr": 0.1})))
    assert (optimizer_rates(told)[0], default_rates(told)[0]) == (0.1, 0.02)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"kind": "mun"}, "did you mean 'muon'"),
        ({"kind": "muon", "options": {"rate": 1}}, "unknown key 'train.optimizer.options.rate'"),
        ({"kind": "muon", "options": {"lr": "fast"}}, "is not a number"),
        ({"kind": "muon", "options": {"lr": -1}}, "lr must be positive"),
        ({"kind": "muon", "options": [1]}, "must be a table"),
        ({"kind": "adamw", "options": {"lr": 1}}, "keys of \\[train\\]"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(tree: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        from_dict(RunSpec, {"train": {"optimizer": tree}})
    assert "\n" not in str(caught.value)


def test_split_matrices_are_refused_and_split_tables_are_not() -> None:
    check(spec(), 2, shard_tables=True)
    with pytest.raises(UserError, match="needs whole matrices; use adamw, or --dense replicated"):
        check(spec(), 2, shard_tables=False, shard_dense=True)
