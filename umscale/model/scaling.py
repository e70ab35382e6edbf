"""How initial sizes and learning rates follow from a model's shape, so that one setting serves all cells of a study.

- Values and pre-values start at the deviation that gives the memory's output a size in terms of the FFN's
  (``value_std``).
- Their learning rate goes with that deviation, as ``init = "paper"`` has it, and with one over the square root of a
  row's width: an AdamW step moves every channel of a row by about the learning rate, against where it began (sigma),
  and what reads the row adds the channels up. The ``top_m`` rows of a token are moved by other tokens too, so their
  steps do not add up likewise.
- The learning rate of everything else goes with ``1 / d_model``, as maximal-update parametrisation has it for the
  hidden weights under Adam (arXiv 2203.03466, Table 3).

Both are relative to a base shape, at which rates are what ``train.lr`` and ``train.value_lr`` say. Neither a rule of
thumb nor a theorem: docs/learning-rates.md shows the measured optima that led to it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from umscale.parts import Options
from umscale.spec import ADDITIVE_KINDS, FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec

BASE = ModelSpec(
    d_model=64,
    n_layers=2,
    n_heads=2,
    ffn=FfnSpec(d_ffn=128),
    memory=MemorySpec(n_keys=128, top_m=32, d_key=16, d_pre_value=16, d_value=32),
)
"""The shape whose learning rates are ``train.lr`` and ``train.value_lr`` themselves."""


def learning_rates(run: RunSpec) -> tuple[float, float]:
    """Return the peak learning rates (dense, value tables) that ``run`` trains with."""
    train = run.train
    if train.rate_scaling == "none":
        return train.lr, train.value_lr
    return train.lr * BASE.d_model / run.model.d_model, train.value_lr * _value_factor(run)


def optimizer_rates(run: RunSpec) -> tuple[float, float]:
    """Return the peak learning rates of ``train.optimizer`` and of everything dense that AdamW trains.

    Both are the same for AdamW. Another optimiser's moves with width by an exponent of its own
    (``umscale.parts.OptimizerPart.width_exponent``).
    """
    dense, peak = learning_rates(run)[0], run.train.optimizer.peak
    if peak is None:
        return dense, dense
    rate, exponent = peak
    shaped = run.train.rate_scaling == "shape"
    return rate * (BASE.d_model / run.model.d_model) ** (exponent if shaped else 0.0), dense


def table_decay(run: RunSpec) -> float:
    """Return AdamW's coefficient for value tables: a step takes off that times the tables' learning rate."""
    train = run.train
    if train.table_weight_decay == "coupled":
        return train.weight_decay
    return float(train.table_weight_decay) / learning_rates(run)[1]


def default_rates(run: RunSpec) -> tuple[float, float]:
    """Return the rates of hidden weights and value tables where a study says nothing of learning rates."""
    plain, optimizer = TrainSpec(), run.train.optimizer
    said = {name: value for name, value in optimizer.options.items() if name != "lr"}
    train = dataclasses.replace(
        run.train,
        lr=plain.lr,
        value_lr=plain.value_lr,
        rate_scaling=plain.rate_scaling,
        optimizer=dataclasses.replace(optimizer, options=Options(said)),
    )
    untold = dataclasses.replace(run, train=train)
    return optimizer_rates(untold)[0], learning_rates(untold)[1]


def _value_factor(run: RunSpec) -> float:
    if run.model.memory is None:
        return 1.0
    measured = run.train.score_energy == "measured"
    return row_step(run.model, measured).step / row_step(BASE, measured).step


@dataclass(frozen=True, kw_only=True, slots=True)
class RowStep:
    """What a step of the value tables may be, up to a constant, and why."""

    energy: float
    """Mean of ``sum_k s_k²`` over the rows a token reads."""
    sigma: float
    """Deviation that values start with under ``init = "paper"``."""
    width: int
    """Of a row."""

    @property
    def step(self) -> float:
        """Sigma over the root of the width."""
        return self.sigma / self.width**0.5


def row_step(model: ModelSpec, measured: bool = True) -> RowStep:
    """Return the step that suits the rows of ``model``, which has a memory layer.

    The rule takes the sigma of ``init = "paper"`` whatever ``init`` is, so that a study can vary where values start
    and hold how fast they move.

    Args:
        model: with a memory layer.
        measured: take the energy that freshly initialised scores have (``umscale.model.initialise.score_energy``)
            instead of the nominal one of version 2: Tucker scores average 1 over the top_m kept, a softmax's
            concentrate on one row.
    """
    memory = model.memory
    assert memory is not None
    if measured:
        from umscale.model.initialise import score_energy

        energy = score_energy(model.d_model, memory)
    else:
        energy = float(memory.heads * (1 if memory.kind in ADDITIVE_KINDS else memory.top_m))
    plain = dataclasses.replace(memory, init="paper")
    return RowStep(energy=energy, sigma=value_std(model, plain, energy)[1], width=memory.row_width)


def value_std(model: ModelSpec, memory: MemorySpec, score_energy: float) -> tuple[float, float]:
    """Return the initial standard deviations of (pre-value, value) rows for an output of ``start_variance``.

    ``score_energy`` is the mean of ``sum_k s_k²`` over a token's lookups. For UltraMemV2 this is eq. 26 of arXiv
    2508.18756, with the exponent its derivation gives: the equation prints sigma² on the left, but pre-values and
    values each contribute sigma² to the output's variance (eq. 22). The other architectures get the same rule, so that
    none starts at a disadvantage. ``official`` has the released code's constant instead.
    """
    if memory.init == "official":
        return 0.02, 0.02
    d_model, target = model.d_model, start_variance(model, memory.init == "matched")
    if memory.kind == "peer":
        return d_model**-0.5, (target / (score_energy * _second_moment(_gelu, 1.0))) ** 0.5
    path = 0.4 * memory.d_value / d_model * score_energy
    if memory.kind == "memory_plus":
        path *= _second_moment(_silu, math.sqrt(0.4))
    if memory.d_pre_value:
        sigma = (target / (path * 0.4 * memory.d_pre_value)) ** 0.25
        return sigma, sigma
    return 0.0, (target / path) ** 0.5


def token_row_std(model: ModelSpec) -> float:
    """Return the initial deviation of rows of token-addressed memory.

    ``engram``: what it adds starts as large as the FFN's output, E[(gate v)²] with a ~ N(0, 1) in the gate. Input
    embeddings: each table adds as much variance as the token's own embedding, 2 / (5 d_model). ``per_layer_embedding``:
    a row counts as much as the context beside it, variance 1.
    """
    ngram = model.ngram
    assert ngram is not None
    if ngram.kind != "engram":
        return float(ngram.head_width**-0.5)
    passed = 1.0 if ngram.gate == "none" else _second_moment(_GATES[ngram.gate], 1.0)
    target = start_variance(model, measured=True)
    return float((target * model.d_model / (0.4 * ngram.read_width * passed)) ** 0.5)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


_GATES: dict[str, Callable[[float], float]] = {
    "signed_sqrt": lambda a: _sigmoid(math.copysign(math.sqrt(abs(a)), a)),
    "linear": _sigmoid,
}


def start_variance(model: ModelSpec, measured: bool) -> float:
    """Return the output variance that a fresh FFN of ``model`` has on unit-variance input.

    A SwiGLU of width d_ffn has ``0.2 d_ffn E[silu(z)²] E[z²] / (d_model n_layers)`` with z ~ N(0, 0.4): eq. 26 takes
    E[silu(z)²] as E[z²] = 0.4. It is 0.122 (``measured``), so that by the paper's formula a memory starts 1.81 times
    as large as a SwiGLU in standard deviation. Of a mixture ``measured`` also counts the experts' gates.
    """
    per_width = 0.2 * 0.4 / (model.d_model * model.n_layers)
    if not measured:
        return per_width * 0.4 * model.ffn.active_width
    return per_width * _second_moment(_silu, math.sqrt(0.4)) * effective_width(model.ffn)


def effective_width(ffn: FfnSpec) -> float:
    """Return the inner width of the dense SwiGLU whose fresh output is as large as this FFN's.

    An expert's output is weighted by its gate, so experts count with the mean of their squared gates: a mixture starts
    far smaller than the dense FFN of its active width. Router logits of fresh weights on unit-variance input are
    N(0, 0.4); the mean is over 4,096 tokens drawn once and for all.
    """
    if ffn.kind != "moe":
        return float(ffn.d_ffn)
    shared = ffn.d_ffn * ffn.n_shared_experts
    return shared + ffn.d_ffn * _gate_energy(ffn.n_experts, ffn.top_k, ffn.normalize_gates)


@functools.lru_cache(maxsize=256)
def _gate_energy(n_experts: int, top_k: int, normalize: bool, n_tokens: int = 4096) -> float:
    rng = np.random.default_rng(0)
    total, part = 0.0, max(1, min(n_tokens, 2**22 // n_experts))
    for start in range(0, n_tokens, part):
        weights = np.exp(math.sqrt(0.4) * rng.standard_normal((min(part, n_tokens - start), n_experts)))
        gates = np.sort(weights, axis=1)[:, -top_k:]
        gates /= gates.sum(1, keepdims=True) if normalize else weights.sum(1, keepdims=True)
        total += float(np.square(gates).sum())
    return total / n_tokens


def _gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def _silu(x: float) -> float:
    return x / (1 + math.exp(-x))


@functools.lru_cache(maxsize=64)
def _second_moment(function: Callable[[float], float], std: float) -> float:
    """E[f(x)²] for x ~ N(0, std²), by the trapezoidal rule over 12 standard deviations."""
    step, half = 24 / 4096, 2048
    points = (step * i for i in range(-half, half + 1))
    return step * sum(function(x * std) ** 2 * math.exp(-x * x / 2) for x in points) / math.sqrt(2 * math.pi)
