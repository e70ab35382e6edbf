"""The contract of parts finds what it is there to find: one class is broken in one way at a time."""

import dataclasses
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from umscale.laws.expression import parse_law
from umscale.laws.forms import LAWS
from umscale.parts import EvaluationPart, OptimizerPart
from umscale.questions.question import Question
from umscale.questions.question import find as find_question
from umscale.testing import (
    Broken,
    check_evaluation,
    check_law,
    check_memory,
    check_named,
    check_optimizer,
    check_question,
)

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_parts"


@pytest.fixture(scope="module")
def own():
    """The modules of the example package, not installed."""
    sys.path.insert(0, str(EXAMPLE))
    yield {
        name: importlib.import_module(f"own_parts.{name}")
        for name in ("memory", "optimizer", "law", "evaluation", "question")
    }
    sys.path.remove(str(EXAMPLE))
    for name in [name for name in sys.modules if name.split(".")[0] == "own_parts"]:
        del sys.modules[name]


def broken_memories(FlatKeys):
    """Name of the fault → a layer that has it, and the words that must be said."""

    class Narrow(FlatKeys):
        def retrieve(self, y):
            rows, scores = super().retrieve(y)
            return rows.int(), scores

    class Outside(FlatKeys):
        def retrieve(self, y):
            rows, scores = super().retrieve(y)
            return rows + self.spec.visible_values, scores

    class Squeezed(FlatKeys):
        def retrieve(self, y):
            rows, scores = super().retrieve(y)
            return rows, scores[..., 0]

    class Untold(FlatKeys):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.extra = torch.nn.Linear(3, 3, bias=False)

    class Dead(FlatKeys):
        def retrieve(self, y):
            rows, scores = super().retrieve(y)
            return rows, scores.detach()

    class Wrong(FlatKeys):
        def retrieve(self, y):
            rows, scores = super().retrieve(y)
            return rows, scores + 0.5 * (scores.detach() - scores)

    class Forgetful(FlatKeys):
        calls = 0

        def retrieve(self, y):
            rows, scores = super().retrieve(y)
            Forgetful.calls += 1
            return rows, scores * (1 + 1e-3 * (Forgetful.calls % 5))

    class Boastful(FlatKeys):
        def calibrate(self, generator, n_tokens=512):
            return 4 * super().calibrate(generator, n_tokens)

    class Hidden(FlatKeys):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.first = None  # that it was ever trained on

        def retrieve(self, y):
            if torch.is_grad_enabled() and self.first is None:
                self.first = float(y.detach().mean())
            rows, scores = super().retrieve(y)
            return rows, scores * (1 + (self.first or 0.0))

    return {
        "Narrow": (Narrow, "addresses must be int64"),
        "Outside": (Outside, "addresses must lie from 0"),
        "Squeezed": (Squeezed, r"scores \[T, heads top_m, 1\] must be"),
        "Untold": (Untold, "parameters beside its rows"),
        "Dead": (Dead, "gets none, so it is never trained"),
        "Wrong": (Wrong, "its gradient says"),
        "Forgetful": (Forgetful, "determinism|calibrate|initialisation"),
        "Boastful": (Boastful, "calibrate: says a score energy"),
        "Hidden": (Hidden, "state_dict"),
    }


@pytest.mark.parametrize(
    "fault",
    ["Narrow", "Outside", "Squeezed", "Untold", "Dead", "Wrong", "Forgetful", "Boastful", "Hidden"],
)
def test_a_memory_with_a_fault(own, fault) -> None:
    part = own["memory"].FLAT_KEYS
    layer, words = broken_memories(part.layer)[fault]
    with pytest.raises(Broken, match=words) as caught:
        check_memory(dataclasses.replace(part, layer=layer))
    assert "\n" not in str(caught.value)


def test_a_memory_whose_work_is_not_counted(own) -> None:
    part = dataclasses.replace(own["memory"].FLAT_KEYS, macs=lambda d_model, memory: (1.0, 1.0))
    with pytest.raises(Broken, match="multiply-accumulates a token in matrix products, 2 are counted"):
        check_memory(part)


def broken_optimizers(Lion):
    """Name of the fault → an optimiser that has it, and the words that must be said."""

    class Deaf(Lion):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.data.add_(p.grad.sign(), alpha=-1e-3)

    class Counting(Lion):
        def step(self, closure=None):
            super().step()
            for state in self.state.values():
                if "mean" in state:
                    state["calls"] = 1

    class Elsewhere(Lion):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.calls = 0

        @torch.no_grad()
        def step(self, closure=None):
            self.calls += 1
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.add_(p.grad.sign(), alpha=-group["lr"] / self.calls)

    class Exploding(Lion):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.div_(0.0)

    return {
        "Deaf": (Deaf, "lr = 0"),
        "Counting": (Counting, "calls is int, no tensor"),
        "Elsewhere": (Elsewhere, "takes other steps"),
        "Exploding": (Exploding, "is not finite"),
    }


@pytest.mark.parametrize("fault", ["Deaf", "Counting", "Elsewhere", "Exploding"])
def test_an_optimiser_with_a_fault(own, fault) -> None:
    module = own["optimizer"]
    kind, words = broken_optimizers(module.Lion)[fault]
    part = dataclasses.replace(module.LION, make=lambda parameters, options: kind(parameters, **options))
    with pytest.raises(Broken, match=words) as caught:
        check_optimizer(part)
    assert "\n" not in str(caught.value)


def test_the_example_keeps_the_contract(own) -> None:
    """Its memory is looked at where it is installed, in tests/test_own_parts_example.py."""
    assert "state" in check_optimizer(own["optimizer"].LION)
    assert "fit" in check_law(own["law"].TOKENS_AND_DENSITY, ranges={"m": (4, 256)})
    assert "JSON" in check_question(own["question"].QUESTION)
    assert "determinism" in check_evaluation(own["evaluation"].COPYING)


def test_an_optimiser_without_a_rate() -> None:
    with pytest.raises(Broken, match="one called lr"):
        check_optimizer(OptimizerPart(make=lambda parameters, options: None, options={}))


def test_muon_keeps_the_contract() -> None:
    (done,) = check_named("muon")
    assert done["package"] == "umscale"
    assert "resumption" in done["checked"]


@pytest.mark.parametrize("name", ["chinchilla", "additive", "power_interaction"])
def test_laws_keep_the_contract(name: str) -> None:
    assert "fit" in check_law(LAWS[name], ranges={"m": (4, 256), "N_s": (1e6, 1e8)})


def test_a_law_with_a_coefficient_that_counts_for_nothing() -> None:
    law = parse_law("E + A*N**-a + 0*b*N", ("N",), "idle", as_power=False)
    with pytest.raises(Broken, match="vary: b does not change the loss"):
        check_law(law, truth={"E": 1.5, "A": 400.0, "a": 0.4, "b": 1.0})


def test_a_law_whose_coefficients_rows_cannot_tell() -> None:
    law = parse_law("E + A*B*N**-a", ("N",), "doubled", as_power=False)
    with pytest.raises(Broken, match="fit: rows were made with"):
        check_law(law, truth={"E": 1.5, "A": 20.0, "B": 70.0, "a": 0.4})


def test_questions_keep_the_contract_or_not(own) -> None:
    assert "JSON" in check_question(find_question("noise"))
    answer = own["question"].answer
    with pytest.raises(Broken, match="must be a question"):
        check_question(Question(asks="Best cell", answer=answer))
    with pytest.raises(Broken, match="no kind of figure"):
        check_question(Question(asks="Which?", answer=answer, figures=("portrait",)))
    with pytest.raises(Broken, match=r"must raise umscale\.UserError, not IndexError"):
        check_question(
            Question(asks="Which?", answer=lambda table, asked: (table["loss"][0], answer(table, asked))[1])
        )


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        (lambda measured: 3.0, "numbers by name"),
        (lambda measured: {"a b": 1.0}, "letters, digits"),
        (lambda measured: {"a": "much"}, "must be a finite number"),
        (lambda measured: {"a": np.random.default_rng().random()}, "other numbers"),
        (lambda measured: {"a": float(measured.model.embedding.weight.mul_(2).sum())}, "numbers|weights"),
        (lambda measured: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_an_evaluation_with_a_fault(evaluate, words) -> None:
    with pytest.raises(Broken, match=words):
        check_evaluation(EvaluationPart(evaluate=evaluate))
