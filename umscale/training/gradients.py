"""The sum of gradients over replicas, divided by their number: for tables as for everything else.

Dense gradients are put into buckets, in about the order in which a backward pass makes them. A bucket is sent when its
gradients are whole and all buckets before it are sent: in one order on all processes, while the pass goes on. Not
``DistributedDataParallel``: it knows neither shards nor, on GPUs, row-sparse gradients.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from umscale.layers.split import is_split
from umscale.training.optimiser import distinct_rows, is_token_table
from umscale.training.process_group import Pending, World
from umscale.training.shards import sharded_parameters

BUCKET_BYTES = 32 * 2**20


class GradientMean:
    """Replaces every gradient of a model by the mean over processes.

    ``begin`` is called before the last backward pass of a step and ``finish`` after it; without ``begin`` all is sent
    in ``finish``.
    """

    def __init__(self, model: nn.Module, world: World, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.model, self.world = model, world
        self.shards = set(sharded_parameters(model, world))
        alike = [
            p for p in _by_time(model) if not is_split(p) and p not in self.shards
        ]  # FSDP scatters means
        self.buckets = list(_buckets(alike, bucket_bytes)) if world.size > 1 else []
        self.missing: list[int] = []
        """Gradients that each bucket waits for; empty outside a last backward pass."""
        self.sent: list[tuple[list[nn.Parameter], Pending]] = []
        for i, bucket in enumerate(self.buckets):
            for p in bucket:
                p.register_post_accumulate_grad_hook(partial(self._accumulated, i))

    def begin(self) -> None:
        """Send what the next backward pass makes as soon as it can be sent."""
        self.missing = [len(bucket) for bucket in self.buckets]

    def _accumulated(self, i: int, _: Tensor) -> None:
        if not self.missing:
            return
        self.missing[i] -= 1
        while len(self.sent) < len(self.buckets) and self.missing[len(self.sent)] == 0:
            self._send()

    def _send(self) -> None:
        """Begin to add up the next bucket's gradients over processes, which become parts of one message."""
        bucket = [p for p in self.buckets[len(self.sent)] if p.grad is not None and not p.grad.is_sparse]
        grads = [p.grad for p in bucket if p.grad is not None]
        whole = len(grads) == 1 and grads[0].is_contiguous()
        flat = torch.cat([grad.reshape(-1) for grad in grads]) if grads and not whole else None
        if flat is not None:
            for p, part in zip(bucket, flat.split([grad.numel() for grad in grads]), strict=True):
                p.grad = part.view(p.shape)
        message = grads[0] if whole else flat
        self.sent.append((bucket, Pending() if message is None else self.world.begin_sum(message)))

    def finish(self) -> None:
        """Wait until every gradient is the mean."""
        if self.world.size == 1:
            return
        while len(self.sent) < len(self.buckets):
            self._send()
        for bucket, pending in self.sent:
            pending.wait()
            if bucket:  # else all are row-sparse
                torch._foreach_div_([p.grad for p in bucket if p.grad is not None], self.world.size)
        self.sent.clear()
        self.missing = []
        for p in self.model.parameters():
            if p.grad is None or is_split(p):
                continue
            if p in self.shards:  # it holds the sum already: this process looked up the tokens of all
                p.grad.div_(self.world.size)
            elif p.grad.is_sparse:
                p.grad = _mean_rows(distinct_rows(p.grad), self.world)


def _by_time(model: nn.Module) -> list[nn.Parameter]:
    """Return parameters as a backward pass is done with them: last blocks first, at its end what all blocks read."""
    early: list[nn.Parameter] = []
    late: list[nn.Parameter] = []
    for name, p in reversed(list(model.named_parameters())):
        (late if name.startswith(("tables.", "embedding.")) or is_token_table(name) else early).append(p)
    return early + late


def _buckets(parameters: Sequence[nn.Parameter], most_bytes: int) -> Iterator[list[nn.Parameter]]:
    """Yield parameters in order, grouped up to ``most_bytes``, by type and device."""
    bucket: list[nn.Parameter] = []
    size = 0
    for p in parameters:
        alike = bucket and (p.dtype, p.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (size + p.nbytes > most_bytes or not alike):
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.nbytes
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
