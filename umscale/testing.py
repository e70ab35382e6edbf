"""The contract of parts from users' packages, run on a stranger's object: for pytest and ``umscale parts --check``.

    from umscale.testing import check_memory

    def test_my_memory() -> None:
        check_memory(MY_MEMORY, options={"tables": 4})

Each function returns what it looked at and raises ``Broken``, an AssertionError whose message is one line, at the first
thing that is not as it has to be. Nothing needs to be installed for them. docs/own-parts.md says why each matters.
"""

import dataclasses
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from umscale import parts
from umscale.errors import UserError
from umscale.parts import GROUPS, EvaluationPart, MemoryPart, OptimizerPart, Options, Part, Scalar
from umscale.spec import DataSpec, FfnSpec, MemorySpec, ModelSpec, OptimizerSpec, RunSpec, TrainSpec

if TYPE_CHECKING:
    import torch

    from umscale.laws.forms import Law
    from umscale.model.decoder import Decoder
    from umscale.questions.question import Question
    from umscale.results.table import Table

_NAME = "under_test"
_STEPS = 12
_TOKENS = 7
"""No power of two, as the last batch of an evaluation is none either."""
_SLOPE = 1e-4
"""Relative error of a directional derivative in float64."""
_START = 4.0
"""Factor within which a memory's output starts beside the size it is meant to have."""


class Broken(AssertionError):
    """A part does not keep the contract; the message says where."""


def _must(condition: Any, message: str) -> None:
    if not condition:
        raise Broken(message)


# -- memories -------------------------------------------------------------------------------------------------


def check_memory(
    part: MemoryPart,
    *,
    d_model: int = 32,
    options: Mapping[str, Scalar] | None = None,
    **memory: Any,
) -> tuple[str, ...]:
    """Run the contract on a memory layer: in a small decoder, in float32 and float64, and in a run that is interrupted.

    Args:
        options: of the part, beside its defaults.
        memory: fields of ``MemorySpec`` in place of 12 keys a side, top_m 4 and rows of 8 + 8.

    Raises:
        Broken: the first thing that is not as it has to be.
        UserError: the part refuses this shape or these options.
    """
    shape = {"n_keys": 12, "top_m": 4, "d_key": 8, "d_pre_value": 8, "d_value": 8} | memory
    with parts.lent("memories", part, _NAME):
        spec = ModelSpec(
            d_model=d_model, n_layers=2, n_heads=2, vocab_size=61, ffn=FfnSpec(d_ffn=2 * d_model),
            memory=MemorySpec(kind=_NAME, options=Options(options), **shape),
        )  # fmt: skip
        assert spec.memory is not None
        part.check(d_model, spec.memory)
        for look in (_shapes, _accounting, _initialisation, _determinism, _gradients, _state):
            look(spec)
        _resumes(RunSpec(model=spec))
    return (
        "shapes and dtypes", "accounting", "initialisation", "determinism", "gradients", "state_dict", "resumption",
    )  # fmt: skip


def _decoder(spec: ModelSpec, seed: int = 0) -> "Decoder":
    from umscale.model.decoder import Decoder

    return Decoder(spec, seed, 16)


def _inputs(spec: ModelSpec, seed: int = 0) -> "torch.Tensor":
    import torch

    return torch.randn(_TOKENS, spec.d_model, generator=torch.Generator().manual_seed(seed))


def _out(model: "Decoder", x: "torch.Tensor", layer: int = 0) -> "torch.Tensor":
    """Output of one memory layer, ``[T, h]``, on ``x [T, h]``."""
    assert model.tables is not None
    return model.memories[layer](x[None], *model.tables.per_layer()[layer])[0]


def _shapes(spec: ModelSpec) -> None:
    import torch

    memory, model = spec.memory, _decoder(spec)
    assert memory is not None
    kept = memory.heads * memory.top_m
    for n_tokens in (1, _TOKENS):
        x = _inputs(spec)[:n_tokens]
        rows, scores = model.memories[0].retrieve(x)
        _must(rows.dtype == torch.int64, f"retrieve: addresses must be int64, not {rows.dtype}")
        _must(
            tuple(rows.shape) == (n_tokens, kept),
            f"retrieve: addresses [T, heads top_m] must be {(n_tokens, kept)}, not {tuple(rows.shape)}",
        )
        inside = int(rows.min()) >= 0 and int(rows.max()) < memory.visible_values
        _must(
            inside, f"retrieve: addresses must lie from 0 to visible_values - 1 = {memory.visible_values - 1}"
        )
        _must(scores.dtype == torch.float32, f"retrieve: scores must be float32, not {scores.dtype}")
        _must(
            tuple(scores.shape) == (n_tokens, kept, 1),
            f"retrieve: scores [T, heads top_m, 1] must be {(n_tokens, kept, 1)}, not {tuple(scores.shape)}",
        )
        out = _out(model, x)
        _must(out.shape == x.shape, f"forward: {tuple(out.shape)} for an input of {tuple(x.shape)}")
        _must(out.dtype == x.dtype, f"forward: {out.dtype} for an input of {x.dtype}")
        _must(bool(out.isfinite().all()), "forward: the output of a fresh layer is not finite")
        with torch.autocast("cpu", torch.bfloat16):
            _must(bool(_out(model, x).isfinite().all()), "forward: not finite under bfloat16 autocast")


def _accounting(spec: ModelSpec) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from umscale.accounting import cost, memory_access_bytes, memory_dense_params

    memory, model = spec.memory, _decoder(spec)
    assert memory is not None
    assert memory.own is not None
    layer = model.memories[0]
    mine, counted = sum(p.numel() for p in layer.parameters()), memory_dense_params(spec.d_model, memory)
    _must(mine == counted, f"params: the layer has {mine} parameters beside its rows, {counted} are counted")
    total = sum(p.numel() for p in model.parameters())
    counted = cost(spec).total_params_with_embedding
    _must(total == counted, f"params: the model has {total} parameters, {counted} are counted")
    wide, finding = memory.own.macs(spec.d_model, memory)
    _must(
        all(math.isfinite(n) and n >= 0 for n in (wide, finding)),
        f"macs: {wide}, {finding} must be finite and not negative",
    )
    with FlopCounterMode(display=False) as counter:
        layer.retrieve(_inputs(spec))
    found = counter.get_total_flops() / 2 / _TOKENS
    _must(
        found <= 1.01 * (wide + finding),
        f"macs: retrieve does {found:.0f} multiply-accumulates a token in matrix products, {wide + finding:.0f} are "
        "counted",
    )
    few, many = (memory_access_bytes(spec, batch) for batch in (1, 64))
    _must(0 < few < many, f"bytes: {few:.0f} are read for one token and {many:.0f} for 64")


def _initialisation(spec: ModelSpec) -> None:
    import torch

    from umscale.model.scaling import start_variance

    memory = spec.memory
    assert memory is not None
    one, same, other = (_decoder(spec, seed) for seed in (0, 0, 1))
    pairs = zip(one.state_dict().items(), same.state_dict().values(), strict=True)
    differing = [name for (name, a), b in pairs if not torch.equal(a, b)]
    _must(not differing, f"initialisation: two models of one seed differ in {', '.join(differing[:3])}")
    moved = [
        name
        for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True)
        if "memory" in name and a.dim() > 1 and torch.equal(a, b)
    ]
    _must(not moved, f"initialisation: models of two seeds are alike in {', '.join(moved[:3])}")
    x = torch.randn(512, spec.d_model, generator=torch.Generator().manual_seed(1))
    energy = float(one.memories[0].retrieve(x)[1].detach().square().sum(1).mean())
    said = one.memories[0].calibrate(torch.Generator().manual_seed(2))
    _must(
        math.isfinite(said) and said > 0 and energy / 1.5 < said < energy * 1.5,
        f"calibrate: says a score energy of {said:.4g}, the layer's is {energy:.4g}",
    )
    ratio = float(_out(one, x).detach().std()) / start_variance(spec, memory.init == "matched") ** 0.5
    _must(
        1 / _START < ratio < _START,
        f"initialisation: the output starts at {ratio:.3g} times the size it should have",
    )


def _determinism(spec: ModelSpec) -> None:
    import torch

    model, x = _decoder(spec), _inputs(spec)
    found = []
    for _ in range(2):
        model.zero_grad()
        out = _out(model, x)
        out.square().sum().backward()
        found.append([out, *(p.grad for p in model.parameters() if p.grad is not None)])
    _must(
        all(torch.equal(a, b) for a, b in zip(*found, strict=True)),
        "determinism: output or gradients of the same input differ between two passes",
    )


def _gradients(spec: ModelSpec) -> None:
    import torch

    model = _decoder(spec).double()
    model.refresh()
    x = _inputs(spec).double().requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def loss() -> "torch.Tensor":
        model.refresh()
        return (_out(model, x) * weight).sum()

    loss().backward()
    named = {"the input": x, **{n: p for n, p in model.named_parameters() if "memory" in n or "tables" in n}}
    named = {
        name: tensor for name, tensor in named.items() if "blocks.1." not in name
    }  # which was not called
    for name, tensor in named.items():
        _must(tensor.grad is not None, f"gradients: {name} gets none, so it is never trained")
    for name, tensor in named.items():
        assert tensor.grad is not None
        _must(bool(tensor.grad.isfinite().all()), f"gradients: that of {name} is not finite")
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        step = 1e-6 * float(tensor.detach().norm() / direction.norm() + 1e-12)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.add_(direction, alpha=sign * step)
                ends.append(float(loss()))
                tensor.add_(direction, alpha=-sign * step)
        slope, told = (ends[0] - ends[1]) / (2 * step), float((tensor.grad * direction).sum())
        size = float(tensor.grad.norm() * direction.norm()) / max(1.0, tensor.numel() ** 0.5)
        _must(
            abs(slope - told) <= _SLOPE * max(abs(slope), abs(told), size),
            f"gradients: along a direction of {name} the loss changes by {slope:.6g}, its gradient says {told:.6g}",
        )


def _state(spec: ModelSpec) -> None:
    import torch

    model, again, x = _decoder(spec), _decoder(spec), _inputs(spec)
    _out(model, _inputs(spec, seed=5))  # of which it must keep nothing that a checkpoint does not hold
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    model.refresh()
    again.load_state_dict(model.state_dict())
    again.refresh()
    _must(
        torch.equal(_out(model, x), _out(again, x)),
        "state_dict: a model that has loaded another's gives other outputs; keep what matters in parameters or "
        "buffers, and derive the rest in refresh()",
    )


def _resumes(run: RunSpec) -> None:
    """Train a few steps at once, and again with a stop between, and compare bitwise."""
    import torch

    from umscale.data.corpus import open_corpus
    from umscale.training.run import Interrupted, Run

    corpus = open_corpus("kjv")
    run = dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, vocab_size=corpus.vocab_size),
        data=DataSpec(corpus="kjv", hash=corpus.hash, seq_len=16, validation_tokens=400, validation_documents=4),
        train=TrainSpec(
            budgets=(32 * _STEPS,), batch_size=2, warmup_tokens=64, precision="float32", checkpoint_seconds=1e9,
            optimizer=run.train.optimizer,
        ),
    )  # fmt: skip

    def losses(folder: Path, stop: Callable[[], bool] = lambda: False) -> list[float]:
        one = Run(run, corpus, folder, torch.device("cpu"))
        outcome = one.execute(lambda outcome: None, should_stop=stop)
        _must(outcome.status == "finished", f"training: the run {outcome.status} ({outcome.reason})")
        return [record["loss"] for record in outcome.records]

    with tempfile.TemporaryDirectory() as folder:
        whole, asked = losses(Path(folder) / "whole"), itertools.count()
        try:
            losses(Path(folder) / "parts", lambda: next(asked) == _STEPS // 2)
        except Interrupted:
            again = losses(Path(folder) / "parts")
        _must(
            again == whole,
            f"resumption: a run that was stopped and went on ends at {again}, one that was not at {whole}",
        )


# -- optimisers -----------------------------------------------------------------------------------------------


def check_optimizer(part: OptimizerPart, *, options: Mapping[str, Scalar] | None = None) -> tuple[str, ...]:
    """Run the contract on an optimiser: its steps, its state, and a run that is interrupted.

    Raises:
        Broken: the first thing that is not as it has to be.
        UserError: the part refuses its own defaults or these options.
    """
    _must("lr" in part.options, "options: there must be one called lr")
    _must(part.takes in ("matrices", "dense"), f"takes = {part.takes!r} must be matrices or dense")
    with parts.lent("optimizers", part, _NAME):
        train = TrainSpec(optimizer=OptimizerSpec(kind=_NAME, options=Options(options)))
        _steps(train)
        _optimizer_state(train)
        _resumes(RunSpec(model=_PLAIN, train=train))
    return ("options", "finite steps", "learning rate", "determinism", "state", "resumption")


_PLAIN = ModelSpec(d_model=32, n_layers=2, n_heads=2, vocab_size=61, ffn=FfnSpec(d_ffn=48))


def _trained(
    train: TrainSpec, steps: range, rate: float = 1e-2, before: "tuple[Decoder, Any] | None" = None
) -> "tuple[Decoder, Any]":
    """A small model after steps on batches of their number, and its optimiser."""
    import torch

    from umscale.training.optimiser import make_optimizer, set_rates

    model = before[0] if before else _decoder(_PLAIN)
    optimizer = before[1] if before else make_optimizer(model, train)
    for step in steps:
        tokens = torch.randint(0, _PLAIN.vocab_size, (2, 17), generator=torch.Generator().manual_seed(step))
        set_rates(optimizer, (rate, rate))
        optimizer.zero_grad(set_to_none=True)
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
    return model, optimizer


def _steps(train: TrainSpec) -> None:
    import torch

    fresh, (model, optimizer) = _decoder(_PLAIN), _trained(train, range(8))
    weights = list(zip(fresh.named_parameters(), model.parameters(), strict=True))
    for (name, _), p in weights:
        _must(bool(p.isfinite().all()), f"steps: after 8 of them {name} is not finite")
    still = [name for (name, before), p in weights if torch.equal(before, p)]
    _must(not still, f"steps: {', '.join(still[:3])} did not move in 8 of them")
    again = _trained(train, range(8))[0]
    _must(
        all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)),
        "determinism: the same 8 steps lead to other weights",
    )
    held = [p.detach().clone() for p in model.parameters()]
    _trained(train, range(8, 9), rate=0.0, before=(model, optimizer))
    _must(
        all(torch.equal(a, b) for a, b in zip(held, model.parameters(), strict=True)),
        "learning rate: weights move in a step whose groups have lr = 0; warm-up and decay set group['lr']",
    )
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    _must(
        all(bool(p.isfinite().all()) for p in model.parameters()), "steps: a gradient of zeros breaks weights"
    )


def _optimizer_state(train: TrainSpec) -> None:
    import torch

    from umscale.training.optimiser import load_optimizer_tensors, make_optimizer, optimizer_tensors

    model, optimizer = _trained(train, range(4))
    for state in optimizer.state.values():
        for key, value in state.items():
            _must(
                isinstance(value, torch.Tensor),
                f"state: {key} is {type(value).__name__}, no tensor, so that a checkpoint cannot hold it",
            )
            _must(isinstance(key, str) and "/" not in key, f"state: {key!r} must be a name without '/'")
    tensors = {name: value.clone() for name, value in optimizer_tensors(model, optimizer).items()}
    other = _decoder(_PLAIN)
    other.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    restored = make_optimizer(other, train)
    load_optimizer_tensors(other, restored, tensors)
    _trained(train, range(4, 7), before=(model, optimizer))
    _trained(train, range(4, 7), before=(other, restored))
    _must(
        all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)),
        "state: an optimiser that has loaded another's state takes other steps; keep all of it in state[parameter]",
    )


# -- laws -----------------------------------------------------------------------------------------------------


def check_law(
    law: "Law",
    *,
    truth: Mapping[str, float] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[str, ...]:
    """Run the contract on a law: every name counts, and a fit finds the coefficients that rows were simulated with.

    Args:
        truth: coefficients to simulate with; of an ``ExpressionLaw`` they must be given for the fit to be looked at.
        ranges: symbol → (least, greatest) of the simulated rows, positive; 1e6 to 1e9 where not said.

    Raises:
        Broken: the first thing that is not as it has to be.
    """
    from umscale.laws.forms import ExpressionLaw, PowerLaw, evaluate, from_theta, to_theta

    _must(law.name.isidentifier(), f"name: {law.name!r} must be letters, digits and '_'")
    _must(law.symbols, "symbols: the law reads no column")
    _must(law.formula and law.source, "formula and source must say what it is and where it comes from")
    known = truth or ({} if isinstance(law, ExpressionLaw) else _plausible(law, ranges or {}))
    if not known:
        return ("names",)
    missing = [name for name in law.coefficients if name not in known]
    _must(not missing, f"truth: no value for {', '.join(missing)}")
    values = _rows(law, ranges or {})
    centre = {s: float(np.exp(np.log(v).mean())) for s, v in values.items()}
    at = np.array([known[name] for name in law.coefficients])
    losses = evaluate(law, at, values, centre)
    _must(
        losses.shape == (len(next(iter(values.values()))),) and bool(np.isfinite(losses).all()),
        "evaluate: not one finite loss a row",
    )
    for i, name in enumerate(law.coefficients):
        moved = at.copy()
        moved[i] = moved[i] * 1.1 + (1e-3 if moved[i] == 0 else 0.0)
        _must(
            np.abs(evaluate(law, moved, values, centre) - losses).max() > 0,
            f"vary: {name} does not change the loss",
        )
    for symbol in law.symbols:
        other = {**values, symbol: values[symbol] * 1.5}
        _must(
            np.abs(evaluate(law, at, other, centre) - losses).max() > 0,
            f"vary: {symbol} does not change the loss",
        )
    if isinstance(law, PowerLaw):
        back = from_theta(law, to_theta(law, at))
        _must(
            np.allclose(back, at, rtol=1e-9), "inverse: coefficients change on their way to the fit and back"
        )
    _recovers(law, known, values, losses)
    return ("names", "vary", "inverse", "fit")


def _rows(law: "Law", ranges: Mapping[str, tuple[float, float]], n_rows: int = 120) -> dict[str, Any]:
    """Symbols drawn evenly in their logarithms, each for itself."""
    rng = np.random.default_rng(0)
    ends = {s: ranges.get(s, (1e-4, 0.5) if s == "rho" else (1e6, 1e9)) for s in law.symbols}
    return {s: np.exp(rng.uniform(np.log(ends[s][0]), np.log(ends[s][1]), n_rows)) for s in law.symbols}


def _plausible(law: Any, ranges: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Coefficients that give each term of a power law, each slope of a local one, a size that can be seen."""
    from umscale.laws.forms import LocalLaw

    if isinstance(law, LocalLaw):
        return {"c0": 2.5} | {slope.coefficient: -0.02 - 0.005 * i for i, slope in enumerate(law.slopes)}
    found: dict[str, float] = {}
    centre = {s: float(np.log(v).mean()) for s, v in _rows(law, ranges).items()}
    for term in law.terms:
        logarithm = math.log(term.constant)
        for factor in term.factors:
            low, high = factor.span
            value = found.setdefault(factor.coefficient, low + 0.3 * (high - low))
            logarithm += factor.sign * value * math.prod(centre[s] for s in factor.symbols)
        for symbols, exponent in term.powers:
            logarithm += exponent * math.prod(centre[s] for s in symbols)
        if term.scale is not None:
            size = 0.4 if term.factors or term.powers else 1.5
            found.setdefault(term.scale, size * math.exp(-logarithm))
    return found


def _recovers(law: "Law", known: Mapping[str, float], values: Mapping[str, Any], losses: Any) -> None:
    from umscale.laws.fit import fit_law
    from umscale.laws.forms import LocalLaw

    noise = np.random.default_rng(1).standard_normal(len(losses))
    table = {**values, "loss": losses * (1 + 1e-6 * noise)}
    found = fit_law(table, law, columns={s: s for s in law.symbols})
    fitted = found.coefficients
    worst = float(np.abs(found.predict(values) / losses - 1).max())
    _must(worst < 1e-3, f"fit: of rows that the law made, one is missed by {worst:.2%}")
    if isinstance(law, LocalLaw):  # whose reference point is the rows', not the simulation's
        return
    for name, value in known.items():
        _must(
            math.isclose(fitted[name], value, rel_tol=0.05, abs_tol=1e-4),
            f"fit: rows were made with {name} = {value:.4g}, the fit finds {fitted[name]:.4g}",
        )


# -- questions ------------------------------------------------------------------------------------------------


def check_question(question: "Question", table: "Table | None" = None) -> tuple[str, ...]:
    """Run the contract on a question: its answer's JSON and words, the same twice, and a line where it has none.

    Args:
        table: ``Store.columns()`` of a study that it can answer for; None takes the recorded ``enwik8_density``.

    Raises:
        Broken: the first thing that is not as it has to be.
    """
    from umscale.api import load_results
    from umscale.figures.kinds import KINDS
    from umscale.questions.question import Asked
    from umscale.render.html import to_html
    from umscale.render.markdown import to_markdown
    from umscale.render.terminal import to_text
    from umscale.say.blocks import Page

    _must(question.asks.endswith("?"), f"asks: {question.asks!r} must be a question, with its mark")
    unknown = [kind for kind in (*question.figures, *question.behind) if kind not in KINDS]
    _must(not unknown, f"figures: {', '.join(unknown)} is no kind of figure; there are {', '.join(KINDS)}")
    rows = load_results("enwik8_density").columns() if table is None else table
    first, second = (question.answer(rows, Asked()) for _ in range(2))
    try:
        said, again = (json.dumps(one.to_json(), sort_keys=True) for one in (first, second))
    except (TypeError, ValueError) as error:
        raise Broken(f"to_json: no plain data ({error})") from None
    _must(said == again, "answer: two answers to the same rows differ")
    blocks = first.blocks()
    _must(blocks, "blocks: the answer has no words")
    page = Page(title="", subtitle="", question=question.asks, lead=tuple(blocks), sections=(), footer="")
    for shown in (to_text(blocks, 80), to_html(page), to_markdown(page, "")):
        _must(shown.strip(), "blocks: they show nothing")
    nothing = {name: np.asarray(column)[:0] for name, column in rows.items()}
    try:
        question.answer(nothing, Asked())
    except UserError:
        pass
    except Exception as error:
        raise Broken(
            f"answer: a table without rows must raise umscale.UserError, not {type(error).__name__}: {error}"
        ) from None
    return ("words of the question", "answer", "JSON", "blocks", "determinism", "a table without rows")


# -- evaluations ----------------------------------------------------------------------------------------------


def check_evaluation(part: EvaluationPart) -> tuple[str, ...]:
    """Run the contract on an evaluation: numbers by name, the same twice, and weights left as they are.

    Raises:
        Broken: the first thing that is not as it has to be.
    """
    import contextlib

    import torch

    from umscale.data.batches import validation_windows
    from umscale.data.corpus import open_corpus
    from umscale.model.decoder import Decoder
    from umscale.training.own_evaluation import EvaluationFailed, Measured, measure

    corpus = open_corpus("kjv")
    with parts.lent("evaluations", part, _NAME):
        spec = RunSpec(
            model=dataclasses.replace(_PLAIN, vocab_size=corpus.vocab_size),
            data=DataSpec(corpus="kjv", hash=corpus.hash, seq_len=64, evaluations=(_NAME,)),
        )
        model = Decoder(spec.model, 0, spec.data.seq_len)
        measured = Measured(
            model=model,
            spec=spec,
            corpus=corpus,
            validation=validation_windows(corpus, spec.data.seq_len, 4000, 4),
            tokens=0,
            precision=contextlib.nullcontext,
        )
        before = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            first, second = measure(measured), measure(measured)
        except EvaluationFailed as error:
            raise Broken(f"evaluate: {error}") from error
    same = all(
        a["metric"] == b["metric"] and (a["value"] == b["value"] or a["value"] != a["value"])
        for a, b in zip(first, second, strict=True)
    )
    _must(same, "determinism: the same weights give other numbers")
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    _must(not changed, f"weights: {', '.join(changed[:3])} changed")
    return ("numbers by name", "determinism", "weights left as they are")


# -- by name --------------------------------------------------------------------------------------------------


def load(part: Part) -> Any:
    """Import a part and check what kind of object it is; raises ``UserError``."""
    from umscale.laws.forms import own_law
    from umscale.questions.question import Question

    kinds = {
        "memories": MemoryPart,
        "optimizers": OptimizerPart,
        "evaluations": EvaluationPart,
        "questions": Question,
    }
    return own_law(part) if part.group == "laws" else part.load(kinds[part.group])


def states(only: parts.Group | None = None) -> list[dict[str, str]]:
    """Return a row for each part that installed packages offer: what it is, of which package, and whether it loads."""
    rows = []
    for group, kind in GROUPS.items():
        if only not in (None, group):
            continue
        offered = parts.offered(group)
        for part in offered:
            row = {
                "kind": kind,
                "name": part.name,
                "package": part.package,
                "target": part.target,
                "state": "ok",
            }
            if part.name in own_names(group):
                row["state"] = "not used: umscale has one of that name"
            elif sum(other.name == part.name for other in offered) > 1:
                row["state"] = "not used: offered more than once"
            else:
                try:
                    load(part)
                except UserError as error:
                    row["state"] = f"broken: {error}"
            rows.append(row)
    return rows


def usable_laws() -> "list[Law]":
    """Return the laws that installed packages offer, without those that cannot be loaded (``states`` says why)."""
    from umscale.laws.forms import own_law

    named = {row["name"] for row in states("laws") if row["state"] == "ok"}
    return [own_law(part) for part in parts.offered("laws") if part.name in named]


def own_names(group: parts.Group) -> tuple[str, ...]:
    """Return the names in a group that are umscale's own, which no package can take."""
    from typing import get_args

    from umscale.design.question_names import QUESTIONS
    from umscale.laws.forms import LAWS
    from umscale.spec import MemoryKind

    own = {
        "memories": get_args(MemoryKind),
        "optimizers": ("adamw",),
        "laws": tuple(LAWS),
        "questions": QUESTIONS,
    }
    return (*own.get(group, ()), *parts.BUILT_IN.get(group, {}))


def check_named(name: str) -> list[dict[str, Any]]:
    """Run the contract on every part of that name that is installed, and return what was looked at.

    Raises:
        Broken: the first thing that is not as it has to be.
        UserError: no part is called so, or it cannot be loaded.
    """
    found = [
        part for group in GROUPS for part in (*_built_in(group), *parts.offered(group)) if part.name == name
    ]
    if not found:
        parts.find("memories", name)
    checks: dict[str, Callable[[Any], tuple[str, ...]]] = {
        "memories": check_memory,
        "optimizers": check_optimizer,
        "laws": check_law,
        "questions": check_question,
        "evaluations": check_evaluation,
    }
    done = []
    for part in found:
        looked = load(part)
        try:
            done.append(
                {"kind": GROUPS[part.group], "name": name, "package": part.package or "umscale",
                 "checked": list(checks[part.group](looked))}
            )  # fmt: skip
        except Broken as error:
            raise Broken(f"{part.noun}: {error}") from error
    return done


def _built_in(group: parts.Group) -> list[Part]:
    return [Part(group=group, name=n, package="", target=t) for n, t in parts.BUILT_IN.get(group, {}).items()]
