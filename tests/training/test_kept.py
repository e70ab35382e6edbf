"""Weights of records: what is kept, what it scores, and runs of larger budgets that go on from a kept trunk."""

import dataclasses

import pytest
import tokenizers
import torch

from umscale.accounting import cost
from umscale.data.corpus import open_corpus
from umscale.data.tokenizing import BYTES, train_bpe
from umscale.errors import UserError
from umscale.execute.estimate import kept_bytes
from umscale.inference.evaluate import evaluate_probes, evaluate_text
from umscale.inference.export import export, tokenizer_json
from umscale.inference.generate import Sampling, encode_prompt, generate, stream_text
from umscale.inference.kept import kept_records, open_exported, open_kept
from umscale.spec import DataSpec, FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec
from umscale.store.store import Store
from umscale.training.checkpoint import Workspace
from umscale.training.kept import continue_trunk
from umscale.training.run import Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus():
    return open_corpus("kjv")


@pytest.fixture(scope="module")
def spec(corpus):
    return RunSpec(
        model=ModelSpec(
            d_model=32, n_layers=2, n_heads=2, vocab_size=corpus.vocab_size, ffn=FfnSpec(d_ffn=48),
            memory=MemorySpec(n_keys=16, top_m=6, d_key=8, d_pre_value=8, d_value=8),
        ),
        data=DataSpec(corpus="kjv", hash=corpus.hash, seq_len=64, validation_tokens=4000),
        train=TrainSpec(
            budgets=(6_000, 12_000), batch_size=4, warmup_tokens=1_000, lr=1e-2, value_lr=1e-2, precision="float32",
            checkpoint_seconds=1e9, keep="all",
        ),
    )  # fmt: skip


def with_train(spec, **changes):
    return dataclasses.replace(spec, train=dataclasses.replace(spec.train, **changes))


def execute(store, spec, corpus):
    workspace = Workspace.of(store, spec.run_id, spec.trunk_id)
    start = continue_trunk(workspace, spec)
    outcome = Run(spec, corpus, workspace, CPU).execute(lambda outcome: None)
    store.clear_work(spec.run_id)
    return outcome, start


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store.create(tmp_path_factory.mktemp("kept") / "store")


@pytest.fixture(scope="module")
def trained(store, spec, corpus):
    return execute(store, spec, corpus)[0]


def test_what_is_kept_is_no_part_of_what_a_run_is(spec):
    ids = {with_train(spec, keep=keep).run_id for keep in ("none", "final", "all")}
    assert len(ids) == 1
    assert with_train(spec, budgets=(6_000,)).trunk_id == spec.trunk_id != spec.run_id
    assert with_train(spec, lr=2e-2).trunk_id != spec.trunk_id
    falling = {with_train(spec, budgets=b, value_lr_final=1e-3).trunk_id for b in ((6_000,), (6_000, 12_000))}
    assert len(falling) == 2, "the tables' rate depends on the largest budget"


def test_every_records_weights_have_its_loss(store, spec, corpus, trained):
    assert kept_records(store, spec.run_id) == [(r["budget"], r["stage"]) for r in trained.records]
    for record in trained.records:
        key = {"budget": record["budget"], "stage": record["stage"]}
        raw = evaluate_text(open_kept(store, spec.run_id, **key), corpus)
        assert raw.loss == record["loss"]
        averaged = evaluate_text(open_kept(store, spec.run_id, **key, averaged=True), corpus)
        assert averaged.loss == pytest.approx(record["loss_ema"], abs=1e-6)
        assert averaged.loss != raw.loss
    assert open_kept(store, spec.run_id).record == trained.records[-1]


def test_the_dry_run_tells_the_size(store, spec, trained):
    paths = [path for name in ("weights", "trunks") for path in (store.root / name).rglob("*.safetensors")]
    n_params = cost(spec.model, spec.data.seq_len).total_params_with_embedding
    assert len(paths) == 5
    assert sum(path.stat().st_size for path in paths) == pytest.approx(kept_bytes(spec, n_params), rel=0.15)
    assert kept_bytes(with_train(spec, keep="final"), n_params) == 8 * n_params
    assert kept_bytes(with_train(spec, keep="none"), n_params) == 0


@pytest.mark.parametrize("budgets", [(6_000, 12_000, 18_000), (15_000,), (6_000, 18_000)])
def test_a_raised_budget_goes_on_from_the_trunk_bitwise(store, spec, corpus, trained, tmp_path, budgets):
    raised = with_train(spec, budgets=budgets, keep="none")
    planned, nowhere = execute(Store.create(tmp_path / "store"), raised, corpus)
    assert nowhere is None
    continued, start = execute(store, raised, corpus)
    assert start == spec.branch_steps[-1] * spec.tokens_per_step
    names = ("budget", "stage", "tokens", "loss", "loss_ema", "loss_by_position", "value_use")
    assert [[r[n] for n in names] for r in continued.records] == [
        [r[n] for n in names] for r in planned.records
    ]
    assert continued.documents == planned.documents
    assert {point["phase"] for point in continued.curve} == {point["phase"] for point in planned.curve}


def test_a_trunk_beyond_a_budget_is_left_alone(store, spec, trained):
    between = with_train(spec, budgets=(6_000, 8_000, 12_000))
    assert continue_trunk(Workspace.of(store, between.run_id, between.trunk_id), between) is None


def test_a_damaged_trunk_and_damaged_weights(store, spec, corpus, trained, caplog, tmp_path):
    copy = Store.create(tmp_path / "store")
    for name in (f"{store.trunk_folder(spec.trunk_id)}/{spec.branch_steps[-1]}.safetensors",
                 f"{store.weights_folder(spec.run_id)}/12000-annealed.safetensors"):  # fmt: skip
        content = bytearray(store.files.read(name))
        content[-100] ^= 1
        copy.files.write(name, bytes(content))
    raised = with_train(spec, budgets=(6_000, 18_000))
    assert continue_trunk(Workspace.of(copy, raised.run_id, raised.trunk_id), raised) is None
    assert "cannot be used" in caplog.text
    with pytest.raises(UserError, match="checksum"):
        open_kept(copy, spec.run_id)
    with pytest.raises(UserError, match=r"train\.keep"):
        open_kept(copy, "0" * 16)
    with pytest.raises(UserError, match="there are: 12,000 annealed"):
        open_kept(copy, spec.run_id, budget=1)


def test_text_comes_as_asked(store, spec, trained):
    model = open_kept(store, spec.run_id)
    prompt = encode_prompt(model.tokenizer, "In the beginning")
    assert prompt[0] == model.tokenizer.eot

    def text(**options):
        return "".join(stream_text(model.tokenizer, generate(model, prompt, 40, **options)))

    greedy = Sampling(temperature=0.0)
    assert text(sampling=greedy, seed=1) == text(sampling=greedy, seed=2) == text(sampling=Sampling(top_k=1))
    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert text(sampling=Sampling(top_p=1e-9), seed=3) == text(sampling=greedy)
    with pytest.raises(UserError, match="top_p"):
        Sampling(top_p=0.0)


def test_half_a_character_is_held_back():
    assert list(stream_text(BYTES, "aé".encode())) == ["a", "", "é", ""]
    assert list(stream_text(BYTES, b"\xc3")) == ["", "\ufffd"]
    own = train_bpe([b"the cat sat on the mat"], 262)
    assert list(stream_text(own, encode_prompt(own, "é")[1:])) == ["é", ""]


def test_an_export_is_the_model(store, spec, corpus, trained, tmp_path):
    model = open_kept(store, spec.run_id, averaged=True)
    names = [path.name for path in export(model, tmp_path / "out")]
    assert names == [
        "README.md",
        "config.json",
        "model.safetensors",
        "source-tokenizer.json",
        "tokenizer.json",
    ]
    again = open_exported(tmp_path / "out")
    assert evaluate_text(again, corpus) == evaluate_text(model, corpus)
    assert again.averaged
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| {trained.records[-1]['loss_ema']:.4f} |" in card
    words = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert words.encode("the rat sat").ids == encode_prompt(model.tokenizer, "the rat sat")[1:]
    with pytest.raises(UserError, match="new folder"):
        export(model, tmp_path / "out")


@pytest.mark.parametrize(
    "own", [BYTES, train_bpe([b"the cat sat on the mat and the rat"], 270)], ids=["bytes", "bpe"]
)
def test_a_tokenizer_is_exported_with_the_same_ids(own):
    made = tokenizers.Tokenizer.from_str(tokenizer_json(own))
    text = "Ein Käse.\n\n\tzwei  🙂 the rat sat"
    assert made.encode(text).ids == encode_prompt(own, text)[1:]
    assert made.decode(made.encode(text).ids) == text
    assert made.token_to_id("<|endoftext|>") == own.eot


def test_probes_need_bytes_and_have_a_row_each(store, spec, trained):
    model = open_kept(store, spec.run_id)
    with pytest.raises(UserError, match="written in bytes"):
        evaluate_probes(model)
    rows = evaluate_probes(dataclasses.replace(model, tokenizer=BYTES), ("recall", "needle"))
    assert [row["task"] for row in rows] == ["recall", "needle"]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
