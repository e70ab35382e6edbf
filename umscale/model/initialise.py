"""Every initialisation, in one place (arXiv 2508.18756 section 3.4; ``official``: the released code's constants).

Each tensor is drawn from a generator named after it, so tensors of the same name and shape start equal in all
cells of a seed block, whatever else differs between the cells.
"""

import dataclasses
import functools
import math

import torch
from torch import Tensor, nn

from umscale.layers.kinds import memory_class
from umscale.layers.memory import Memory
from umscale.layers.tables import ValueTables, column_groups, columns
from umscale.layers.tucker import TuckerMemory
from umscale.model.scaling import start_variance, token_row_std, value_std
from umscale.rng import generator
from umscale.spec import ADDITIVE_KINDS, MemorySpec, ModelSpec

_RESIDUAL_OUTPUTS = ("attention.out.weight", "ffn.out.weight", "ffn.out", "ffn.shared.out.weight")


def _normal(tensor: Tensor, seed: int, name: str, std: float) -> None:
    tensor.copy_(torch.randn(tensor.shape, generator=generator(seed, name)).mul_(std))


_DRAWN_AT_ONCE = 2**22
"""Numbers; a table is drawn by rows, so that beside the columns that a process holds there is never the whole."""


def _normal_columns(
    table: Tensor, seed: int, name: str, std: float, groups: int, part: tuple[int, int]
) -> None:
    """Fill ``table [N, D / W]``, columns of one of width D, with the numbers that ``_normal`` gives the whole.

    Torch draws normal numbers by sixteens, so pieces of a multiple of 16 numbers are those of the whole; what remains
    at the end goes with the last piece.
    """
    source = generator(seed, name)
    n, width = table.shape[0], table.shape[1] * part[1]
    rows = 16 * max(1, _DRAWN_AT_ONCE // (16 * width))
    starts = list(range(0, max(1, n - 15), rows))
    for start, end in zip(starts, [*starts[1:], n], strict=True):
        drawn = torch.randn(end - start, width, generator=source).mul_(std)
        table[start:end].copy_(columns(drawn, groups, part))


def _draw(
    parameter: nn.Parameter, name: str, d_model: int, n_layers: int, memory: MemorySpec | None, seed: int
) -> None:
    """Initialise one parameter that is not a value table."""
    std = math.sqrt(2 / (5 * d_model))
    official = memory is not None and memory.init == "official"
    if name.endswith(_RESIDUAL_OUTPUTS):
        _normal(parameter, seed, name, std / math.sqrt(2 * n_layers))
    elif name.endswith("norm.weight"):
        parameter.fill_(1.0)
    elif name.endswith("memory.cores"):
        parameter.copy_(torch.rand(parameter.shape, generator=generator(seed, name)))
    elif name.endswith("memory.keys"):
        additive = memory is not None and memory.kind in ADDITIVE_KINDS
        _normal(parameter, seed, name, parameter.shape[-1] ** -0.5 if additive else 1.0)
    elif official and name.endswith("memory.out.weight"):
        _normal(parameter, seed, name, parameter.shape[1] ** -0.5)
    elif official and name.endswith("memory.pre_value.weight"):
        _normal(parameter, seed, name, d_model**-0.5)
    elif not name.startswith("tables."):
        _normal(parameter, seed, name, std)


def _draw_token_memory(parameter: nn.Parameter, name: str, spec: ModelSpec, seed: int) -> None:
    """Initialise one parameter of token-addressed memory, see ``umscale.model.scaling.token_row_std``."""
    if name.endswith(".conv"):
        parameter.zero_()
    elif name.endswith("table.rows"):
        _normal(parameter, seed, name, token_row_std(spec))
    elif name.endswith("out_norm.weight"):  # all that a per-layer embedding adds has passed this norm
        parameter.fill_(start_variance(spec, measured=True) ** 0.5)
    elif name.endswith("norm.weight"):
        parameter.fill_(1.0)
    else:
        _normal(parameter, seed, name, math.sqrt(2 / (5 * spec.d_model)))


def score_energy(d_model: int, memory: MemorySpec) -> float:
    """Return the mean of ``sum_k s_k²`` over a token's lookups in a fresh layer on unit-variance input.

    What ``initialise`` measures of every layer of a run, here of ``_ENERGY_DRAWS`` layers of fixed seeds, so that all
    runs of a shape are trained at one rate; to four digits, beyond which machines may differ. Always on the CPU.
    """
    plain = dataclasses.replace(
        memory, init="paper", layers=None, skip=0, balance_loss=0.0, tucker_penalty=0.0, shuffle=False
    )
    return _score_energy(d_model, plain)


_ENERGY_DRAWS = 3


@functools.lru_cache(maxsize=1024)
@torch.no_grad()
def _score_energy(d_model: int, memory: MemorySpec) -> float:
    kind = memory_class(memory)
    drawn = ("memory.query", "memory.key", "memory.cores") if memory.own is None else ("memory.",)
    total = 0.0
    with torch.device("cpu"):
        for seed in range(_ENERGY_DRAWS):
            layer = kind(d_model, memory, 0, max(1, memory.share_layers), seed)
            for name, parameter in layer.named_parameters(prefix="memory"):
                if name.startswith(drawn):
                    _draw(parameter, name, d_model, 1, memory, seed)
            total += layer.calibrate(generator(seed, "energy"))
    return float(f"{total / _ENERGY_DRAWS:.4g}")


@torch.no_grad()
def initialise(model: nn.Module, spec: ModelSpec, seed: int) -> None:
    """Initialise every parameter and buffer of a ``umscale.model.decoder.Decoder``, in place.

    Linears, experts and the embedding are N(0, 2 / (5 d_model)); the block's residual outputs (attention and FFN)
    get a further 1 / sqrt(2 n_layers). The memory's output does not: the size of its values already counts it.
    """
    memory = spec.memory
    official = memory is not None and memory.init == "official"
    for name, parameter in model.named_parameters():
        if name.startswith("ngram."):
            _draw_token_memory(parameter, name, spec, seed)
        else:
            _draw(parameter, name, spec.d_model, spec.n_layers, memory, seed)
    energies = []
    for name, module in model.named_modules():
        if not isinstance(module, Memory):
            continue
        if official and isinstance(module, TuckerMemory):
            gain = module.spec.d_key ** (-0.4 if module.spec.kind == "ultramem_v2" else -0.33)
            module.query_norm.weight.fill_(gain)
            module.key_norm.weight.fill_(gain)
            module.refresh()
        else:
            energies.append(module.calibrate(generator(seed, f"{name}/calibration")))
    tables = getattr(model, "tables", None)
    if isinstance(tables, ValueTables) and memory is not None:
        sigmas = value_std(spec, memory, sum(energies) / max(1, len(energies)))
        for (name, groups), sigma in zip(column_groups(memory).items(), sigmas, strict=True):
            if (table := getattr(tables, name)) is not None:
                _normal_columns(table, seed, f"tables.{name}", sigma, groups, tables.part)
