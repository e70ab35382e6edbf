"""Probes in a run: trained on, measured at every record, stored, resumed, printed."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from umscale.data.corpus import Corpus, open_corpus
from umscale.data.synthetic import MarkovFacts
from umscale.data.synthetic_corpus import generate
from umscale.errors import UserError
from umscale.spec import DataSpec, FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec
from umscale.store.store import Store
from umscale.training.record import spec_row
from umscale.training.run import Interrupted, Outcome, Run
from umscale_cli.main import app

CPU = torch.device("cpu")
TASKS = ("in_context", "needle", "facts")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return generate("probed", MarkovFacts(document=64), 300_000, validation_fraction=0.05)


@pytest.fixture(scope="module")
def spec(corpus: Corpus) -> RunSpec:
    return RunSpec(
        model=ModelSpec(
            d_model=32, n_layers=1, n_heads=2, vocab_size=257, ffn=FfnSpec(d_ffn=48),
            memory=MemorySpec(n_keys=16, top_m=8, d_key=8, d_pre_value=8, d_value=8),
        ),
        data=DataSpec(
            corpus="probed", hash=corpus.hash, seq_len=64, validation_tokens=2000, probes=TASKS, probe_fraction=0.6,
            probe_facts=15,
        ),
        train=TrainSpec(budgets=(120_000,), batch_size=8, warmup_tokens=5000, precision="float32"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def outcome(spec: RunSpec, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Run(spec, corpus, tmp_path_factory.mktemp("run"), CPU).execute(lambda outcome: None)


def test_every_record_has_a_row_a_task(outcome: Outcome) -> None:
    keys = [(row["stage"], row["task"]) for row in outcome.probes]
    assert keys == list(itertools.product(("stable", "annealed"), TASKS))
    for row in outcome.probes:
        assert 0 <= row["answer_accuracy"] <= row["accuracy"] <= row["ceiling"] <= 1
        assert row["nats"] > 0


def test_facts_that_were_trained_on_are_stored(outcome: Outcome, spec: RunSpec, corpus: Corpus) -> None:
    facts = next(row for row in outcome.probes if (row["stage"], row["task"]) == ("annealed", "facts"))
    sequences = 120_000 // 64
    assert facts["exposures"] == pytest.approx(sequences * 0.6 / 3 * 5 / 15, rel=0.02)
    assert facts["n_answers"] == 15
    assert 60 < facts["stored_bits"] <= 15 * 16
    assert facts["accuracy"] > 0.3
    untrained = dataclasses.replace(
        spec,
        data=dataclasses.replace(spec.data, probe_fraction=0.0),
        train=dataclasses.replace(spec.train, budgets=(10_000,)),
    )
    rows = Run(untrained, corpus, Path("/nonexistent"), CPU)._score_probes()
    assert [row["task"] for row in rows] == list(TASKS)
    for row in rows:
        assert row["accuracy"] < 0.2
        assert row["ceiling"] == (1 / 16 if row["task"] == "facts" else 1)
    assert rows[2]["stored_bits"] == 0  # bytes that the model has never seen cost more than 4 bits each


def test_probes_leave_the_rest_of_a_run_as_it_is(spec: RunSpec, corpus: Corpus, tmp_path: Path) -> None:
    """Measured beside the text they cost time and change no loss."""
    short = dataclasses.replace(spec, train=dataclasses.replace(spec.train, budgets=(10_000,)))
    plain = dataclasses.replace(short, data=DataSpec(corpus="probed", hash=corpus.hash, seq_len=64))
    measured = dataclasses.replace(plain, data=dataclasses.replace(plain.data, probes=TASKS))
    assert plain.run_id != measured.run_id
    first = Run(plain, corpus, tmp_path / "a", CPU).execute(lambda outcome: None)
    second = Run(measured, corpus, tmp_path / "b", CPU).execute(lambda outcome: None)
    assert [r["loss"] for r in first.records] == [r["loss"] for r in second.records]
    assert [r["value_use"] for r in first.records] == [r["value_use"] for r in second.records]
    assert first.probes == []
    assert len(second.probes) == 6


def test_a_resumed_run_has_the_same_probes(spec: RunSpec, corpus: Corpus, tmp_path: Path) -> None:
    train = dataclasses.replace(spec.train, budgets=(8_000, 12_000), checkpoint_seconds=0.0)
    short = dataclasses.replace(spec, train=train)
    whole = Run(short, corpus, tmp_path / "whole", CPU).execute(lambda outcome: None)
    assert len(whole.probes) == 12
    for _ in range(20):
        calls = itertools.count()
        run = Run(short, corpus, tmp_path / "parts", CPU)
        try:
            parts = run.execute(lambda outcome: None, should_stop=lambda calls=calls: next(calls) >= 7)
            break
        except Interrupted:
            continue
    assert parts.probes == whole.probes


def test_a_store_keeps_and_prints_them(outcome: Outcome, spec: RunSpec, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    assert store.probes() == []
    call = CliRunner().invoke
    assert isinstance(call(app, ["runs", str(tmp_path / "store"), "--probes"]).exception, UserError)
    store.write_run(
        spec_row(spec),
        "t",
        status="finished",
        records=outcome.records,
        documents=outcome.documents,
        probes=outcome.probes,
    )
    found = Store.open(tmp_path / "store").probes("finished")
    assert [(row["stage"], row["task"]) for row in found] == [
        (row["stage"], row["task"]) for row in outcome.probes
    ]
    assert [row["nats"] for row in found] == [row["nats"] for row in outcome.probes]
    assert store.probes("diverged") == []
    printed = call(app, ["runs", str(tmp_path / "store"), "--probes"])
    assert printed.exit_code == 0
    lines = printed.stdout.splitlines()
    assert lines[0].split()[:7] == ["run", "cell", "budget", "stage", *TASKS]
    assert lines[1].split()[:3] == ["chance", "6.2%", "6.2%"]
    assert [line.split()[0] for line in lines[2:4]] == [spec.run_id[:8]] * 2
    rows = json.loads(call(app, ["runs", str(tmp_path / "store"), "--probes", "--json"]).stdout)
    assert rows == found
    columns = store.columns()
    for stage, task, nats in ((row["stage"], row["task"], row["nats"]) for row in outcome.probes):
        assert columns[f"{task}_nats"][columns["stage"] == stage].tolist() == [nats]
    asked = ["fit", str(tmp_path / "store"), "--question", "architectures", "--json", "--loss"]
    losses = json.loads(call(app, [*asked, "facts_nats"]).stdout)["facts_nats"]
    assert [(one["stage"], one["rows"][0]["loss"]) for one in losses] == [
        (row["stage"], row["nats"]) for row in reversed(outcome.probes) if row["task"] == "facts"
    ]
    with pytest.raises(UserError, match=r"must be one of both, loss, loss_ema, .*facts_nats; did you mean"):
        call(app, [*asked, "fact_nats"], catch_exceptions=False)
    store.forget(spec.run_id)
    assert store.probes() == []
    assert "facts_nats" not in store.columns()


def test_a_corpus_of_other_tokens_is_refused(spec: RunSpec, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="written in bytes"):
        Run(spec, open_corpus("kjv"), tmp_path, CPU)
