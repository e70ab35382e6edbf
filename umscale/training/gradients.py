"""The sum of gradients over replicas, divided by their number: for tables as for everything else."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from umscale.layers.split import is_split
from umscale.training.optimiser import distinct_rows
from umscale.training.process_group import World
from umscale.training.shards import sharded_parameters

BUCKET_BYTES = 32 * 2**20


def average_gradients(model: nn.Module, world: World) -> None:
    """Replace every gradient by the mean over processes, after their backward passes.

    Not ``DistributedDataParallel``: it knows neither shards nor, on GPUs, row-sparse gradients, and what it gains by
    overlapping with the backward pass is little beside the exchanges within that pass.
    """
    if world.size == 1:
        return
    shards = set(sharded_parameters(model, world))
    dense = []
    for p in model.parameters():
        if p.grad is None:
            continue
        if is_split(p):  # FSDP has scattered the mean
            continue
        if p in shards:  # it holds the sum already: this process looked up the tokens of all
            p.grad.div_(world.size)
        elif p.grad.is_sparse:
            p.grad = _mean_rows(distinct_rows(p.grad), world)
        else:
            dense.append(p.grad)
    for bucket in _buckets(dense):
        _average(bucket, world)


def _average(grads: Sequence[Tensor], world: World) -> None:
    """Average dense gradients in place, in one message."""
    whole = len(grads) == 1 and grads[0].is_contiguous()
    flat = grads[0].view(-1) if whole else torch.cat([grad.reshape(-1) for grad in grads])
    world.sum(flat).div_(world.size)
    if not whole:
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view(grad.shape))


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients in order, grouped up to ``BUCKET_BYTES`` and by type."""
    bucket: list[Tensor] = []
    size = 0
    for grad in grads:
        if bucket and (size + grad.nbytes > BUCKET_BYTES or grad.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(grad)
        size += grad.nbytes
    if bucket:
        yield bucket


def _mean_rows(grad: Tensor, world: World) -> Tensor:
    """Average a coalesced row-sparse gradient ``[N, D]``: the union of all processes' rows, never a dense one."""
    rows, values = grad.indices()[0], grad.values()
    counts = world.gather(torch.tensor(rows.numel())).tolist()
    padding = max(counts) - rows.numel()
    rows = world.gather(nn.functional.pad(rows, (0, padding)))  # [W, U]
    values = world.gather(nn.functional.pad(values, (0, 0, 0, padding)))  # [W, U, D]
    everyones_rows = torch.cat([x[:n] for x, n in zip(rows, counts, strict=True)])
    everyones_values = torch.cat([x[:n] for x, n in zip(values, counts, strict=True)])
    union = torch.sparse_coo_tensor(
        everyones_rows.unsqueeze(0), everyones_values, grad.shape, check_invariants=False
    )
    return union.coalesce().div_(world.size)
