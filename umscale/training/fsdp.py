"""Everything but value tables split over processes, with its gradients, moments and average: torch's FSDP2.

``fully_shard`` keeps 1/W of every parameter of a block on each process, gathers a block's parameters while the block
before is computed, and scatters the sum of its gradients while the next is differentiated. Value tables are left to
``umscale.training.shards``: gathering them is what must not happen.
"""

import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn

from umscale.model.decoder import Decoder
from umscale.training.optimiser import is_token_table
from umscale.training.process_group import World

if TYPE_CHECKING:
    from torch.distributed.tensor import Shard


def shard_dense(model: Decoder, world: World) -> None:
    """Split all parameters of ``model``, on its device, but value tables over the processes of ``world``."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    # The decoder adds what a memory returns, a view, and never in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    mesh = DeviceMesh(model.rotary.device.type, torch.arange(world.size))
    tables = {p for name, p in model.named_parameters() if name.startswith("tables.") or is_token_table(name)}

    def placement(parameter: nn.Parameter) -> "Shard":
        from torch.distributed.tensor import Shard

        even = (i for i, n in enumerate(parameter.shape) if n % world.size == 0)
        return Shard(next(even, 0))  # only the first axis may be split unevenly

    for module in (*model.blocks, model):
        # The outermost too is split again after its forward pass: one of other weights may follow in an evaluation.
        fully_shard(
            module, mesh=mesh, ignored_params=tables, shard_placement_fn=placement, reshard_after_forward=True
        )
