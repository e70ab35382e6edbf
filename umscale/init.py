"""Every initialisation, in one place (arXiv 2508.18756 section 3.4; ``official``: the released code's constants).

Each tensor is drawn from a generator named after it, so tensors of the same name and shape start equal in all
cells of a seed block, whatever else differs between the cells.
"""

import math

import torch
from torch import Tensor, nn

from umscale.layers.memory import Memory, ValueTables, value_std
from umscale.rng import generator
from umscale.spec import ModelSpec


def _normal(tensor: Tensor, seed: int, name: str, std: float) -> None:
    tensor.copy_(torch.randn(tensor.shape, generator=generator(seed, name)).mul_(std))


@torch.no_grad()
def initialise(model: nn.Module, spec: ModelSpec, seed: int) -> None:
    """Initialise every parameter and buffer of a ``umscale.model.Decoder``, in place.

    Linears and the embedding are N(0, 2 / (5 d_model)); the block's residual outputs (attention and FFN) get a
    further 1 / sqrt(2 n_layers). The memory's output does not: eq. 26 already puts it at the FFN's size.
    """
    h, layers, memory = spec.d_model, spec.n_layers, spec.memory
    std = math.sqrt(2 / (5 * h))
    official = memory is not None and memory.init == "official"
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.out.weight", "ffn.out.weight")):
            _normal(parameter, seed, name, std / math.sqrt(2 * layers))
        elif name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("memory.cores"):
            parameter.copy_(torch.rand(parameter.shape, generator=generator(seed, name)))
        elif name.endswith("memory.keys"):
            _normal(parameter, seed, name, 1.0)
        elif official and name.endswith("memory.out.weight"):
            _normal(parameter, seed, name, parameter.shape[1] ** -0.5)
        elif official and name.endswith("memory.pre_value.weight"):
            _normal(parameter, seed, name, h**-0.5)
        elif parameter.dim() == 2 and not name.startswith("tables."):
            _normal(parameter, seed, name, std)
    variances = []
    for name, module in model.named_modules():
        if not isinstance(module, Memory):
            continue
        if official:
            module.query_norm.weight.fill_(module.spec.d_key**-0.4)
            module.key_norm.weight.fill_(module.spec.d_key**-0.4)
            module.refresh()
        else:
            variances.append(module.calibrate(generator(seed, f"{name}/calibration")))
    tables = getattr(model, "tables", None)
    if isinstance(tables, ValueTables) and memory is not None:
        sigma = 0.02
        if not official:
            sigma = value_std(h, layers, spec.ffn.d_ffn, memory, sum(variances) / len(variances))
        for name, parameter in tables.named_parameters():
            _normal(parameter, seed, f"tables.{name}", sigma)
