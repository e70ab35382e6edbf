"""How initial sizes and learning rates follow from a model's shape, so that one setting serves all cells of a study.

- Values and pre-values start at the deviation that makes the memory's output as large as the FFN's (``value_std``).
- Their learning rate goes with that deviation, and with one over the square root of a row's width: an AdamW step
  moves every channel of a row by about the learning rate, against where it began (sigma), and what reads the row adds
  the channels up. The ``top_m`` rows of a token are moved by other tokens too, so their steps do not add up likewise.
- The learning rate of everything else goes with ``1 / d_model``, as maximal-update parametrisation has it for the
  hidden weights under Adam (arXiv 2203.03466, Table 3).

Both are relative to a base shape, at which rates are what ``train.lr`` and ``train.value_lr`` say. Neither a rule of
thumb nor a theorem: docs/learning-rates.md shows the measured optima that led to it.
"""

import dataclasses
import math
from collections.abc import Callable

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
    return train.lr * BASE.d_model / run.model.d_model, train.value_lr * _value_factor(run.model)


def default_rates(run: RunSpec) -> tuple[float, float]:
    """Return the rates that a run of this shape gets when its study says nothing of learning rates."""
    plain = TrainSpec()
    train = dataclasses.replace(
        run.train, lr=plain.lr, value_lr=plain.value_lr, rate_scaling=plain.rate_scaling
    )
    return learning_rates(dataclasses.replace(run, train=train))


def _value_factor(model: ModelSpec) -> float:
    return 1.0 if model.memory is None else _row_step(model) / _row_step(BASE)


def _row_step(model: ModelSpec) -> float:
    """What a step of the value tables may be, up to a constant: sigma of a row over the root of its width."""
    memory = model.memory
    assert memory is not None
    # Tucker scores average 1 over the top_m kept; a softmax's add up to 1. Their spread is left out.
    energy = memory.heads * (1 if memory.kind in ADDITIVE_KINDS else memory.top_m)
    sigma = value_std(model.d_model, model.n_layers, model.ffn.active_width, memory, energy)[1]
    return float(sigma / memory.row_width**0.5)


def value_std(
    d_model: int, n_layers: int, d_ffn: int, memory: MemorySpec, score_energy: float
) -> tuple[float, float]:
    """Initial standard deviations of (pre-value, value) rows that make the memory's output as large as the FFN's.

    ``score_energy`` is the mean of ``sum_k s_k²`` over a token's lookups; ``d_ffn`` the FFN's active inner width. For
    UltraMemV2 this is eq. 26 of arXiv 2508.18756, with the exponent its derivation gives: the equation prints sigma²
    on the left, but pre-values and values each contribute sigma² to the output's variance (eq. 22). The other
    architectures get the same rule, so that none starts at a disadvantage.
    """
    target = 0.2 * 0.4**2 * d_ffn / (d_model * n_layers)  # the FFN's output variance
    if memory.kind == "peer":
        return d_model**-0.5, (target / (score_energy * _second_moment(_gelu, 1.0))) ** 0.5
    path = 0.4 * memory.d_value / d_model * score_energy
    if memory.kind == "memory_plus":
        path *= _second_moment(_silu, math.sqrt(0.4))
    if memory.d_pre_value:
        sigma = (target / (path * 0.4 * memory.d_pre_value)) ** 0.25
        return sigma, sigma
    return 0.0, (target / path) ** 0.5


def _gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def _silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def _second_moment(function: Callable[[float], float], std: float) -> float:
    """E[f(x)²] for x ~ N(0, std²), by the trapezoidal rule over 12 standard deviations."""
    step, half = 24 / 4096, 2048
    points = (step * i for i in range(-half, half + 1))
    return step * sum(function(x * std) ** 2 * math.exp(-x * x / 2) for x in points) / math.sqrt(2 * math.pi)
