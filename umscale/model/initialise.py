"""Every initialisation, in one place (arXiv 2508.18756 section 3.4; ``official``: the released code's constants).

Each tensor is drawn from a generator named after it, so tensors of the same name and shape start equal in all
cells of a seed block, whatever else differs between the cells.
"""

import math

import torch
from torch import Tensor, nn

from umscale.layers.memory import Memory
from umscale.layers.tables import ValueTables
from umscale.layers.tucker import TuckerMemory
from umscale.model.scaling import value_std
from umscale.rng import generator
from umscale.spec import ADDITIVE_KINDS, ModelSpec

_RESIDUAL_OUTPUTS = ("attention.out.weight", "ffn.out.weight", "ffn.out", "ffn.shared.out.weight")


def _normal(tensor: Tensor, seed: int, name: str, std: float) -> None:
    tensor.copy_(torch.randn(tensor.shape, generator=generator(seed, name)).mul_(std))


@torch.no_grad()
def initialise(model: nn.Module, spec: ModelSpec, seed: int) -> None:
    """Initialise every parameter and buffer of a ``umscale.model.decoder.Decoder``, in place.

    Linears, experts and the embedding are N(0, 2 / (5 d_model)); the block's residual outputs (attention and FFN)
    get a further 1 / sqrt(2 n_layers). The memory's output does not: eq. 26 already puts it at the FFN's size.
    """
    h, layers, memory = spec.d_model, spec.n_layers, spec.memory
    std = math.sqrt(2 / (5 * h))
    official = memory is not None and memory.init == "official"
    for name, parameter in model.named_parameters():
        if name.endswith(_RESIDUAL_OUTPUTS):
            _normal(parameter, seed, name, std / math.sqrt(2 * layers))
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
            _normal(parameter, seed, name, h**-0.5)
        elif not name.startswith("tables."):
            _normal(parameter, seed, name, std)
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
        sigmas = (0.02, 0.02)
        if not official:
            mean_energy = sum(energies) / len(energies)
            sigmas = value_std(h, layers, spec.ffn.active_width, memory, mean_energy)
        if tables.pre_values is not None:
            _normal(tables.pre_values, seed, "tables.pre_values", sigmas[0])
        _normal(tables.values, seed, "tables.values", sigmas[1])
