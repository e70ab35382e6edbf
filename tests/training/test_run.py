"""Training: branches, bitwise resume from any step, divergence, averaged weights, learning."""

import dataclasses
import itertools
import math

import pytest
import torch

from umscale.data.corpus import open_corpus
from umscale.model.scaling import learning_rates
from umscale.spec import DataSpec, FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec
from umscale.training.optimiser import Schedule, WeightAverage
from umscale.training.run import Interrupted, Run

CPU = torch.device("cpu")
TIMES = (
    "train_seconds",
    "eval_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "input_seconds",
    "step_seconds",
    "checkpoint_seconds",
    "mfu",
    "peak_flops",
)


@pytest.fixture(scope="module")
def corpus():
    return open_corpus("kjv")


@pytest.fixture(scope="module")
def spec(corpus):
    return RunSpec(
        model=ModelSpec(
            d_model=32,
            n_layers=2,
            n_heads=2,
            vocab_size=corpus.vocab_size,
            ffn=FfnSpec(d_ffn=48),
            memory=MemorySpec(n_keys=16, top_m=6, d_key=8, d_pre_value=8, d_value=8),
        ),
        data=DataSpec(corpus="kjv", hash=corpus.hash, seq_len=32, validation_tokens=4000),
        train=TrainSpec(
            budgets=(6_000, 12_000), batch_size=8, warmup_tokens=1_000, lr=1e-2, value_lr=1e-2, precision="float32",
            checkpoint_seconds=0.0,
        ),
    )  # fmt: skip


def results(outcome):
    """What must not depend on how often the run was interrupted."""
    rows = [{k: v for k, v in r.items() if k not in TIMES} for r in outcome.records]
    curve = [(c["phase"], c["tokens"], c["loss"]) for c in outcome.curve]
    return rows, outcome.documents, curve


@pytest.fixture(scope="module")
def undisturbed(spec, corpus, tmp_path_factory):
    quiet = dataclasses.replace(spec, train=dataclasses.replace(spec.train, checkpoint_seconds=1e9))
    return Run(quiet, corpus, tmp_path_factory.mktemp("run"), CPU).execute(lambda outcome: None)


def test_two_records_a_budget(undisturbed, spec):
    assert undisturbed.status == "finished"
    keys = [(r["budget"], r["stage"]) for r in undisturbed.records]
    assert keys == [(b, s) for b in spec.train.budgets for s in ("stable", "annealed")]
    for record in undisturbed.records:
        at = record["budget"] * (0.8 if record["stage"] == "stable" else 1.0)
        assert record["tokens"] == pytest.approx(at, abs=1.5 * spec.tokens_per_step)
    losses = {(r["budget"], r["stage"]): r["loss"] for r in undisturbed.records}
    assert losses[12_000, "annealed"] < losses[6_000, "annealed"] < math.log(spec.model.vocab_size)
    assert losses[12_000, "annealed"] < losses[12_000, "stable"], "the decay lowers the loss"


def test_documents_add_up_to_the_loss(undisturbed):
    for record in undisturbed.records:
        mine = [
            d
            for d in undisturbed.documents
            if (d["budget"], d["stage"]) == (record["budget"], record["stage"])
        ]
        nats, tokens = sum(d["nats"] for d in mine), sum(d["n_tokens"] for d in mine)
        assert nats / tokens == pytest.approx(record["loss"], rel=1e-9)
        text = sum(d["n_bytes"] for d in mine)
        assert nats / text / math.log(2) == pytest.approx(record["bits_per_byte"], rel=1e-9)
        ema = sum(d["nats_ema"] for d in mine)
        assert ema / tokens == pytest.approx(record["loss_ema"], rel=1e-9)


@pytest.mark.parametrize("stops", [(0,), (7,), (18, 19), (21, 30, 44), tuple(range(3, 60, 4))])
def test_interrupted_anywhere_it_resumes_bitwise(spec, corpus, tmp_path, undisturbed, stops):
    """``stops`` are calls of should_stop at which a fresh process would have taken over."""
    calls = 0
    pending = list(stops)

    def should_stop():
        nonlocal calls
        calls += 1
        if pending and calls > pending[0]:
            pending.pop(0)
            return True
        return False

    for _ in range(len(stops) + 1):
        run = Run(spec, corpus, tmp_path, CPU)
        try:
            outcome = run.execute(lambda outcome: None, should_stop=should_stop)
        except Interrupted:
            continue
        break
    assert results(outcome) == results(undisturbed)


def test_paused_after_a_budget_it_goes_on_bitwise(spec, corpus, tmp_path, undisturbed):
    def execute(**options):
        return Run(spec, corpus, tmp_path, CPU).execute(lambda outcome: None, **options)

    steps = []
    paused = execute(until=8_000, on_progress=steps.append)
    assert (paused.status, paused.reason) == ("paused", "until 6,000 of 12,000 tokens")
    assert steps[-1].steps_done == steps[-1].total_steps == spec.steps_of(1)
    whole, part = results(undisturbed), results(paused)
    assert part[0] == whole[0][:2]
    assert part[1] == [d for d in whole[1] if d["budget"] == 6_000]
    again = execute(
        until=6_000, on_progress=lambda p: pytest.fail("nothing is left to train before that budget")
    )
    assert results(again) == part
    finished = execute()
    assert (finished.status, finished.reason) == ("finished", "")
    assert results(finished) == whole


def test_paused_on_a_later_branch_it_goes_on_from_there(spec, corpus, tmp_path, undisturbed):
    """A run interrupted on its last branch and then asked for less is paused where it is."""
    calls = iter(range(1000))
    last = spec.steps_of(2) - 2
    with pytest.raises(Interrupted):
        Run(spec, corpus, tmp_path, CPU).execute(lambda o: None, should_stop=lambda: next(calls) == last)
    assert Run(spec, corpus, tmp_path, CPU).execute(lambda o: None, until=6_000).status == "paused"
    assert results(Run(spec, corpus, tmp_path, CPU).execute(lambda o: None)) == results(undisturbed)


def test_a_damaged_checkpoint_is_set_aside(spec, corpus, tmp_path, undisturbed):
    calls = iter(range(1000))
    with pytest.raises(Interrupted):
        Run(spec, corpus, tmp_path, CPU).execute(lambda o: None, should_stop=lambda: next(calls) == 12)
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])
    outcome = Run(spec, corpus, tmp_path, CPU).execute(lambda o: None)
    assert results(outcome) == results(undisturbed)
    assert list((tmp_path / "quarantine").glob("trunk.safetensors.*"))


def test_divergence_is_a_status_with_its_records(spec, corpus, tmp_path):
    wild = dataclasses.replace(spec.train, lr=1e4, value_lr=1e4, warmup_tokens=0, budgets=(40_000,))
    outcome = Run(dataclasses.replace(spec, train=wild), corpus, tmp_path, CPU).execute(lambda o: None)
    assert outcome.status == "diverged"
    assert "above chance" in outcome.reason or "nan" in outcome.reason


def test_equal_seeds_give_equal_runs_and_others_do_not(spec, corpus, tmp_path):
    short = dataclasses.replace(spec, train=dataclasses.replace(spec.train, budgets=(3_000,)))
    losses = []
    for i, seed in enumerate((0, 0, 1)):
        run = Run(dataclasses.replace(short, seed=seed), corpus, tmp_path / str(i), CPU)
        losses.append([run.train_step() for _ in range(5)])
    assert losses[0] == losses[1] != losses[2]


def test_schedule(spec):
    schedule = Schedule(spec)
    assert (schedule.ends, schedule.branches) == ([23, 47], [18, 38])
    assert spec.total_steps == 38 + 5 + 9
    peak = learning_rates(spec)[0]
    trunk = [schedule.rates(step, None)[0] for step in range(38)]
    assert trunk[0] < trunk[3] < trunk[4] == pytest.approx(peak)
    assert set(trunk[4:]) == {peak}
    branch = [schedule.rates(step, 1)[0] for step in range(38, 47)]
    assert all(a > b > 0 for a, b in itertools.pairwise(branch))


def test_value_learning_rate_has_its_own_schedule(spec):
    train = dataclasses.replace(spec.train, value_lr=4e-2, value_lr_final=1e-2, value_lr_fraction=0.5)
    run = dataclasses.replace(spec, train=train)
    schedule, (lr, value_lr) = Schedule(run), learning_rates(run)
    rates = [schedule.rates(step, None)[1] for step in range(10, 38)]
    assert rates[0] > rates[5] > rates[-1] == pytest.approx(value_lr / 4)
    assert {schedule.rates(step, None)[0] for step in range(10, 38)} == {lr}


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_weight_average_has_the_profile_it_claims(width):
    """Averaging the sequence 1, 2, .. T, its mean and spread follow from the power-function profile."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    squares = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    first, second = WeightAverage(model, width), WeightAverage(squares, width)
    T = 4000
    with torch.no_grad():
        for t in range(1, T + 1):
            model.weight.fill_(t / T)
            squares.weight.fill_((t / T) ** 2)
            first.update(model, t)
            second.update(squares, t)
    mean, mean_square = float(first.average["weight"]), float(second.average["weight"])
    assert math.sqrt(mean_square - mean**2) == pytest.approx(width, rel=0.01)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_branch_too_short_for_a_regular_update_is_averaged_all_the_same(spec, corpus, tmp_path, steps):
    """Its record must not hold the trunk's average: weights that the branch never had."""
    budget = 15 * 256
    train = dataclasses.replace(spec.train, budgets=(budget,), decay_fraction=steps / 15)
    run = Run(dataclasses.replace(spec, train=train), corpus, tmp_path, CPU)
    assert run.schedule.ends[0] - run.schedule.branches[0] == steps
    averages = {}

    def remember(outcome):
        average = run.average.average["embedding.weight"].clone()
        averages.setdefault(outcome.records[-1]["stage"], average)

    run.execute(remember)
    assert run.average.steps == 15
    last = dict(run.model.named_parameters())["embedding.weight"].detach()
    trunk, branch = averages["stable"], averages["annealed"]
    assert float((branch - last).norm()) < float((trunk - last).norm()), "nearer to where the branch ends"


def test_bfloat16_matrix_products_train(spec, corpus, tmp_path):
    """Weights, scores and losses stay fp32; the loss follows the fp32 run's within rounding."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        train = dataclasses.replace(spec.train, precision=precision)
        run = Run(dataclasses.replace(spec, train=train), corpus, tmp_path / precision, CPU)
        losses[precision] = [run.train_step() for _ in range(4)]
        assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
