"""`advise`: what it counts is what formulas and simulation say, and its commands do what they promise."""

import json
import math
import shlex
import subprocess

import numpy as np
import pytest
from typer.testing import CliRunner

import umscale_studies
from umscale.design.study import expand, load_study, points
from umscale.laws.special import stdtrit
from umscale.laws.uncertainty import Estimate
from umscale.questions import power
from umscale.questions.advise import Budget, Evidence, advise
from umscale.questions.architectures import answer as architectures
from umscale.questions.question import Asked
from umscale.store.store import Store
from umscale_cli.main import app

NOISE = 0.01


def runs(rng, n_seeds, gap):
    """Two architectures, ``gap`` nats apart, in seed blocks that share an offset."""
    rows = []
    for seed in range(n_seeds):
        block = 0.05 * rng.standard_normal()
        for name, mean in (("a", 2.0), ("b", 2.0 + gap)):
            rows.append((name, seed, mean + block + NOISE * rng.standard_normal()))
    names, seeds, losses = zip(*rows, strict=True)
    n = len(rows)
    return {
        "architecture": np.array(names, dtype=object),
        "seed": np.array(seeds, dtype=float),
        "loss": np.array(losses),
        "stage": np.array(["annealed"] * n, dtype=object),
        "budget": np.full(n, 1e6),
        "tokens_per_second": np.full(n, 1000.0),
    }


def advice(table, budget=None):
    found = architectures(table, Asked(losses=("loss",)))
    return advise(found, Evidence(table=table, name="t.csv", stage="annealed"), budget)


def exactly(n_seeds, gap):
    """A table whose estimate is ``gap`` and whose noise of a run is ``NOISE``, exactly."""
    pairs = np.linspace(-1, 1, n_seeds)
    pairs = gap + pairs / pairs.std(ddof=1) * NOISE * 2**0.5
    table = runs(np.random.default_rng(0), n_seeds, gap)
    first = table["architecture"] == "a"
    table["loss"][first], table["loss"][~first] = 2.0, 2.0 + pairs
    return table


@pytest.mark.parametrize("gap", [0.004, 0.006, 0.008])
def test_the_seeds_it_asks_for_are_those_of_the_formula(gap):
    n_seeds = 8
    (step,) = advice(exactly(n_seeds, gap)).steps
    wanted = next(
        n
        for n in range(n_seeds + 1, 1000)
        if gap >= (stdtrit((n - 1), 0.975) + stdtrit((n - 1), 0.8)) * NOISE * (2 / n) ** 0.5
    )
    asked = step.cost.runs / 2
    assert asked == pytest.approx(wanted - n_seeds, abs=1)
    assert step.cost.tokens == step.cost.runs * 1e6
    assert step.cost.seconds == pytest.approx(step.cost.runs * 1000)


def test_that_many_seeds_settle_it_as_often_as_they_should():
    gap, n_seeds, rng = 0.006, 8, np.random.default_rng(1)
    (step,) = advice(exactly(n_seeds, gap)).steps
    enlarged = n_seeds + step.cost.runs // 2
    settled = 0
    for _ in range(200):
        found = architectures(runs(rng, enlarged, gap), Asked(losses=("loss",)))
        settled += found.contrasts()[0].settled
    assert 0.7 < settled / 200 < 0.9


@pytest.mark.parametrize(("value", "factor"), [(0.5, 2.0), (1.5, 1.5), (0.0, 4.0), (1.9, 3.0)])
def test_the_chance_is_how_often_it_happens_given_what_is_known(value, factor):
    freedom, n = 12.0, 200_000
    half = float(stdtrit(freedom, 0.975))  # standard error 1
    estimate = Estimate(value=value, low=value - half, high=value + half)
    rng = np.random.default_rng(2)
    truth = value + rng.standard_t(freedom, n)  # the flat prior's posterior
    deviation = np.sqrt(freedom / rng.chisquare(freedom, n))  # of a run, given the same rows
    truth = value + deviation * rng.standard_normal(n)
    fresh = truth + deviation * rng.standard_normal(n) / math.sqrt(factor - 1)
    pooled = (value + (factor - 1) * fresh) / factor
    often = np.mean(np.abs(pooled) > stdtrit(freedom * factor, 0.975) / math.sqrt(factor))
    found = power.chance(estimate, freedom, power.shrunk(1.0, factor), freedom * factor)
    assert found == pytest.approx(often, abs=0.02)


def test_misfit_does_not_average_away():
    estimate = Estimate(value=0.5, low=-0.6, high=1.6)
    assert power.factor_to_settle(estimate, 20, averages=1.0) < 50
    assert power.factor_to_settle(estimate, 20, averages=0.5) == math.inf


def test_what_is_settled_or_hopeless_is_not_advised():
    settled = advice(exactly(8, 0.03))
    assert settled.steps == ()
    assert "Settled" in settled.closed[0].why
    hopeless = advice(exactly(8, 0.0002))
    assert hopeless.steps == ()
    assert "More than 500 runs" in hopeless.closed[0].why


def test_a_budget_makes_steps_smaller_and_says_so():
    whole = advice(exactly(8, 0.005)).steps[0]
    half = advice(exactly(8, 0.005), Budget(seconds=whole.cost.seconds / 2)).steps[0]
    assert half.cost.seconds <= whole.cost.seconds / 2
    assert half.chance < whole.chance
    assert "as many as the budget allows" in half.note
    none = advice(exactly(8, 0.005), Budget(tokens=1e6))
    assert none.steps == ()
    assert "beyond the budget" in none.closed[0].why


@pytest.mark.parametrize("name", sorted(umscale_studies.recorded()))
def test_every_recorded_study_gets_an_answer(name):
    result = CliRunner().invoke(app, ["advise", name, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    for step in found["steps"]:
        assert step["cost"]["runs"] > 0
        assert step["chance"] is None or 0.2 <= step["chance"] <= 1
    assert found["steps"] or found["closed"] or found["statements"]


def test_its_commands_train_what_it_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    step = json.loads(run(app, ["advise", "table_decay", "--json"]).stdout)["steps"][0]
    copy, sweep = step["commands"]
    subprocess.run(copy, shell=True, check=True)
    arguments = shlex.split(sweep)[1:]
    sets = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--set"]
    cells = expand(load_study(arguments[1], [*sets, "data.corpus=kjv", "data.max_epochs=10"]), "float32")
    store = Store.open(arguments[arguments.index("--store") + 1])
    rows = store.columns()
    done = set(rows["run_id"][rows["compensation"] == cells[0].compensation])
    assert len(cells) - len(done) == step["cost"]["runs"]


def test_a_steps_file_holds_the_seeds_there_are_and_those_to_come(tmp_path):
    target = tmp_path / "next.toml"
    result = CliRunner().invoke(app, ["advise", "memory_to_ffn", "--output", str(target)])
    assert result.exit_code == 0, result.output
    study = load_study(str(target))
    step = json.loads(CliRunner().invoke(app, ["advise", "memory_to_ffn", "--json"]).stdout)["steps"][0]
    n_cells = len(points(study)) * len(study.compensation)
    assert n_cells * len(study.axes["seed"]) == step["cost"]["runs"] + 10


def test_anybodys_table_is_answered_or_refused_in_a_line(tmp_path):
    rng = np.random.default_rng(3)
    lines = ["k,sparse,t,val,seed"]
    for k in (8, 16, 32, 64):
        for size in (1e6, 2e6, 4e6):
            for seed in range(2):
                loss = 3 - 0.021 * np.log2(k) - 0.02 * np.log2(size) + 0.01 * rng.standard_normal()
                lines.append(f"{k},{size:.0f},1000000,{loss:.6f},{seed}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    result = CliRunner().invoke(app, ["advise", str(path), "--map", "m=k,N_s=sparse,D=t,loss=val", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert "buy more" in (found["steps"] + found["closed"])[0]["question"]
    other = tmp_path / "other.csv"
    other.write_text("n,d,loss\n1e6,1e7,3\n2e6,1e7,2.9\n")
    refused = CliRunner().invoke(app, ["advise", str(other)])
    assert refused.exit_code != 0
    assert "has no column" in str(refused.exception)
