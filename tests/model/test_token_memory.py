"""Token-addressed memory in the decoder: sizes at the start, accounting, combination, training and resumption."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.numerics import seeded
from umscale.accounting import cost, memory_access_bytes, prefetchable_bytes
from umscale.data.corpus import open_corpus
from umscale.layers.token_memory import Vocabulary
from umscale.model.decoder import Decoder
from umscale.model.presets import preset
from umscale.model.scaling import start_variance
from umscale.ngram_tables import table_params
from umscale.spec import DataSpec, FfnSpec, MemorySpec, ModelSpec, NgramSpec, RunSpec, TrainSpec
from umscale.training.optimiser import is_token_table, make_optimizer
from umscale.training.peak_memory import host_memory, predict_memory
from umscale.training.run import Interrupted, Run

KINDS = ("engram", "ngram_embedding", "over_encoding", "per_layer_embedding")
BASE = ModelSpec(d_model=32, n_layers=3, n_heads=2, vocab_size=257, ffn=FfnSpec(d_ffn=64))
MEMORY = MemorySpec(n_keys=9, top_m=5, d_key=6, d_pre_value=8, d_value=12)
MIXTURE = FfnSpec(kind="moe", d_ffn=16, n_experts=4, top_k=2)


def with_kind(kind: str, **changes) -> ModelSpec:
    options = {} if kind == "per_layer_embedding" else {"rows": 50, "heads": 2}
    return dataclasses.replace(BASE, ngram=NgramSpec(kind=kind, **options), **changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes", [{}, {"memory": MEMORY}, {"ffn": MIXTURE}, {"memory": MEMORY, "ffn": MIXTURE}]
)
def test_accounting_equals_the_modules(kind: str, changes: dict) -> None:
    spec = with_kind(kind, **changes)
    model = Decoder(spec, 0, 16)
    found = cost(spec)
    assert found.total_params_with_embedding == sum(p.numel() for p in model.parameters())
    rows = sum(p.numel() for name, p in model.named_parameters() if is_token_table(name))
    assert found.ngram_params == table_params(spec) == rows


def test_closed_forms() -> None:
    """FLOPs and widths as the sources count them."""
    h, w = 32, 24
    engram = dataclasses.replace(BASE, ngram=NgramSpec(rows=50, heads=2, d_embedding=w, blocks=(1,)))
    assert 2 * cost(engram).macs.ngram == 2 * 2 * w * h * 2 + 8 * h  # two matrices of two orders, four taps
    assert cost(engram).active_sparse_params == 2 * w
    assert 2 * cost(with_kind("ngram_embedding")).macs.ngram == 2 * h * h
    ple = dataclasses.replace(BASE, ngram=NgramSpec(kind="per_layer_embedding", d_embedding=8))
    assert 2 * cost(ple).macs.ngram == 3 * 4 * h * 8 + 2 * h * 3 * 8
    assert cost(ple).ngram_params == 3 * 257 * 8


@pytest.mark.parametrize(
    ("name", "billions", "within"),
    [("engram-27b", 5.7, 0.1), ("longcat-flash-lite", 31.4, 0.05)],
)
def test_published_tables(name: str, billions: float, within: float) -> None:
    assert cost(preset(name).model).ngram_params / 1e9 == pytest.approx(billions, abs=within)


@pytest.mark.parametrize(("name", "billions"), [("engram-27b", 27), ("longcat-flash-lite", 68.5)])
def test_published_totals_are_near(name: str, billions: float) -> None:
    """Within 5%: attention of both is another one than is counted here, which their notes say."""
    assert cost(preset(name).model).total_params_with_embedding / 1e9 == pytest.approx(billions, rel=0.05)


def test_bytes_known_from_the_tokens() -> None:
    spec = with_kind("engram", memory=MEMORY)
    ngram = spec.ngram
    assert prefetchable_bytes(spec, 1) == 2 * spec.ngram_modules * ngram.read_width
    assert memory_access_bytes(spec, 1) > prefetchable_bytes(spec, 1)
    assert prefetchable_bytes(dataclasses.replace(spec, ngram=None), 64) == 0
    every = 2 * table_params(spec)
    assert prefetchable_bytes(spec, 10**6) == pytest.approx(every, rel=1e-6)


@pytest.mark.parametrize("gate", ["signed_sqrt", "linear", "none"])
def test_a_fresh_engram_adds_what_the_ffn_does(gate: str) -> None:
    spec = ModelSpec(
        d_model=128,
        n_layers=2,
        n_heads=2,
        vocab_size=257,
        ngram=NgramSpec(rows=2000, heads=4, blocks=(1,), gate=gate),
    )
    model = Decoder(spec, 0, 64)
    tokens = torch.randint(0, 256, (8, 64), generator=seeded(1))
    known = model.ngram.address(tokens)
    x = torch.randn(8, 64, 128, generator=seeded(2))
    with torch.no_grad():
        added = model.ngram.parts[0](x, known.addresses[0], known.document)
    assert added.var().item() == pytest.approx(start_variance(spec, measured=True), rel=0.1)


def test_a_fresh_per_layer_embedding_adds_what_the_ffn_does() -> None:
    spec = dataclasses.replace(BASE, d_model=128, n_heads=4, ngram=NgramSpec(kind="per_layer_embedding"))
    model = Decoder(spec, 0, 64)
    tokens = torch.randint(0, 256, (8, 64), generator=seeded(1))
    x = torch.randn(8, 64, 128, generator=seeded(2))
    with torch.no_grad():
        added = model.ngram.parts[1](x, model.embedding(tokens), tokens)
    assert added.var().item() == pytest.approx(start_variance(spec, measured=True), rel=0.1)


@pytest.mark.parametrize("kind", ["ngram_embedding", "over_encoding"])
def test_each_fresh_input_table_adds_what_the_token_does(kind: str) -> None:
    ngram = NgramSpec(kind=kind, rows=2000, heads=4)
    spec = dataclasses.replace(BASE, d_model=128, n_heads=4, ngram=ngram)
    model = Decoder(spec, 0, 64)
    tokens = torch.randint(0, 256, (8, 64), generator=seeded(1))
    known, module = model.ngram.address(tokens), model.ngram.parts[0]
    with torch.no_grad():
        own = model.embedding(tokens).var().item()
        rows = module.table(known.addresses[0]).split(spec.ngram.head_width, dim=-1)
        matrices = module.project.weight.split(spec.ngram.head_width, dim=1)
        added = [(row @ matrix.T).var().item() for row, matrix in zip(rows, matrices, strict=True)]
    assert len(added) == spec.ngram.n_heads
    assert added == pytest.approx([own] * len(added), rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_document_says_is_not_seen(kind: str) -> None:
    """With attention out of the way, a document's outputs do not depend on what stands before it."""
    spec = with_kind(kind)
    model = Decoder(spec, 0, 12).double()
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
    if spec.ngram.kind == "engram":
        for part in model.ngram.parts:
            torch.nn.init.ones_(part.conv)
    tokens = torch.randint(0, 256, (1, 12), generator=seeded(0))
    tokens[0, 6] = 256
    other = tokens.clone()
    other[0, :6] = torch.randint(0, 256, (6,), generator=seeded(1))
    assert torch.equal(model(tokens)[0, 6:], model(other)[0, 6:])


def test_no_address_outside_its_table() -> None:
    model = Decoder(with_kind("engram"), 3, 64)
    tokens = torch.randint(0, 257, (4, 64), generator=seeded(0))
    for found, sizes in zip(model.ngram.address(tokens).addresses, model.ngram.sizes, strict=True):
        flat = [size for heads in sizes for size in heads]
        assert (found >= 0).all()
        assert all(int(found[..., i].max()) < size for i, size in enumerate(flat))


def test_canonical_ids_share_rows() -> None:
    ids = torch.arange(257)
    ids[ord("A") : ord("Z") + 1] = ids[ord("a") : ord("z") + 1]
    spec = with_kind("engram")
    model = Decoder(spec, 0, 8, vocabulary=Vocabulary(256, ids))
    lower, upper = (torch.tensor([list(text.encode())]) for text in ("canonical"[:8], "CANONICAL"[:8]))
    for a, b in zip(model.ngram.address(lower).addresses, model.ngram.address(upper).addresses, strict=True):
        assert torch.equal(a, b)
    apart = Decoder(dataclasses.replace(spec, ngram=dataclasses.replace(spec.ngram, canonical=False)), 0, 8)
    found = [m.address(t).addresses[0] for m in [apart.ngram] for t in (lower, upper)]
    assert not torch.equal(*found)


@pytest.mark.parametrize("gradient", ["dense", "rows"])
def test_groups_of_the_optimiser(gradient: str) -> None:
    train = TrainSpec(table_gradient=gradient)
    model = Decoder(with_kind("engram", memory=MEMORY), 0, 8)
    model.configure_tables(train)
    groups = make_optimizer(model, train).param_groups
    assert [g["factor"] for g in groups] == [1.0, 1.0, 5.0]
    assert groups[2]["weight_decay"] == 0.0
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())


def run_of(kind: str, folder: Path, gradient: str = "dense", **train) -> Run:
    corpus = open_corpus("kjv")
    spec = RunSpec(
        model=dataclasses.replace(with_kind(kind, memory=MEMORY, ffn=MIXTURE), vocab_size=corpus.vocab_size),
        data=DataSpec(hash=corpus.hash, seq_len=32, validation_tokens=2000),
        train=TrainSpec(
            budgets=(1280, 2560),
            batch_size=4,
            warmup_tokens=256,
            precision="float32",
            table_gradient=gradient,
            **train,
        ),
    )
    return Run(spec, corpus, folder, torch.device("cpu"))


@pytest.mark.parametrize(("kind", "gradient"), [*((k, "dense") for k in KINDS), ("engram", "rows")])
def test_training_resumes_bitwise(kind: str, gradient: str, tmp_path: Path) -> None:
    whole = run_of(kind, tmp_path / "whole", gradient).execute(lambda outcome: None)
    assert whole.status == "finished"
    left = iter(range(7))
    with pytest.raises(Interrupted):
        run_of(kind, tmp_path / "cut", gradient).execute(
            lambda outcome: None, should_stop=lambda: next(left, None) is None
        )
    resumed = run_of(kind, tmp_path / "cut", gradient).execute(lambda outcome: None)
    assert [r["loss"] for r in resumed.records] == [r["loss"] for r in whole.records]
    assert len(whole.records[0]["value_use"]) > 0


def weights_after(run: Run, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    run.model.double()
    losses = [run.train_step() for _ in range(steps)]
    return losses, {name: p.detach() for name, p in run.model.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "train"),
    [*((k, {}) for k in KINDS), ("engram", {"micro_batch_size": 1, "activation_checkpointing": True})],
)
def test_tables_in_host_memory_train_as_on_the_device(kind: str, train: dict, tmp_path: Path) -> None:
    """In float64, whose rounding no selection turns into a difference."""
    losses, weights = weights_after(run_of(kind, tmp_path / "device"), 3)
    there = run_of(kind, tmp_path / "host", table_device="cpu", **train)
    losses_there, weights_there = weights_after(there, 3)
    assert losses_there == pytest.approx(losses, rel=1e-12)
    for name, weight in weights.items():
        torch.testing.assert_close(weights_there[name], weight, rtol=1e-9, atol=1e-12, msg=name)
    assert there.spec.run_id == run_of(kind, tmp_path / "device").spec.run_id


def test_tables_in_host_memory_resume_bitwise(tmp_path: Path) -> None:
    whole = run_of("engram", tmp_path / "whole", table_device="cpu").execute(lambda outcome: None)
    left = iter(range(7))
    with pytest.raises(Interrupted):
        run_of("engram", tmp_path / "cut", table_device="cpu").execute(
            lambda outcome: None, should_stop=lambda: next(left, None) is None
        )
    resumed = run_of("engram", tmp_path / "cut", table_device="cpu").execute(lambda outcome: None)
    assert [r["loss"] for r in resumed.records] == [r["loss"] for r in whole.records]
    assert [r["loss_ema"] for r in resumed.records] == [r["loss_ema"] for r in whole.records]


def test_tables_in_host_memory_stay_there() -> None:
    """``meta`` stands for a GPU: what moves there has no data left."""
    model = Decoder(with_kind("engram"), 0, 16)
    model.ngram.keep_on_host()
    moved = {name: p.device.type for name, p in model.to("meta").named_parameters()}
    assert {name for name, device in moved.items() if device == "cpu"} == {
        name for name in moved if is_token_table(name)
    }


def test_memory_of_tables_on_the_host() -> None:
    there = TrainSpec(budgets=(10**9,), table_device="cpu")
    data = DataSpec(seq_len=256)
    on_device, on_host = (
        RunSpec(model=with_kind("engram", n_layers=2, memory=None), data=data, train=train)
        for train in (dataclasses.replace(there, table_device="device"), there)
    )
    tables = 4 * cost(on_host.model).ngram_params
    assert (host_memory(on_device), host_memory(on_host)) == (0, 4 * tables)
    device, host = predict_memory(on_device), predict_memory(on_host)
    assert device["other weights"] - host["other weights"] == tables
    assert device["moments"] - host["moments"] == 2 * tables
