"""The processes that train one run together, and the few things they tell each other.

Only tensors travel, nothing is pickled. What is about the run (flags, counts, checkpoints, text) is on the CPU and goes
through gloo, also beside GPUs, whose tensors go through NCCL: asking whether to stop never waits for a GPU.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = datetime.timedelta(minutes=30)
"""A process that is silent for this long counts as lost; longer than any checkpoint takes to write."""


class PeerLost(Exception):
    """Another process of the world is gone or does not answer."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A collective that goes on by itself; nothing without ``work``."""

    work: "dist.Work | None" = None

    def wait(self) -> None:
        """Wait until its tensor can be used; raises ``PeerLost``."""
        if self.work is not None:
            with _answered():
                self.work.wait()


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Who takes part in a run, as one process sees it; every method but properties is called by all, in one order.

    Raises:
        PeerLost: of every method.
    """

    rank: int = 0
    size: int = 1
    shard_tables: bool = False
    """Each process holds 1 / ``size`` of the columns of every value table."""
    shard_dense: bool = False
    """Each process holds 1 / ``size`` of every other parameter, and gathers it for use."""

    @property
    def first(self) -> bool:
        """Whether this process speaks for the run: it reads and writes the store."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process."""
        return bool(self.largest(int(flag)))

    def largest(self, value: int) -> int:
        """Return the largest of all processes' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        with _answered():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def mean(self, value: float) -> float:
        """Return the mean of all processes' values."""
        return (
            value if self.size == 1 else self.sum(torch.tensor(value, dtype=torch.float64)).item() / self.size
        )

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' contiguous tensors, the same bits everywhere; when eager, in place."""
        if self.size > 1:
            if torch.compiler.is_compiling():
                return _SUM(tensor)
            with _answered():
                dist.all_reduce(tensor)
        return tensor

    def begin_sum(self, tensor: Tensor) -> Pending:
        """Begin to do what ``sum`` does; ``tensor`` is left alone until the result has been waited for."""
        if self.size == 1:
            return Pending()
        with _answered():
            return Pending(dist.all_reduce(tensor, async_op=True))

    def gather(self, tensor: Tensor) -> Tensor:
        """Return everyone's ``tensor``, ``[size, *shape]``; the shape is the same on all."""
        if self.size == 1:
            return tensor.unsqueeze(0)
        return _GATHER(tensor, self.size) if torch.compiler.is_compiling() else _gather(tensor, self.size)

    def exchange(self, tensor: Tensor) -> Tensor:
        """Send ``tensor[r]`` to process r and return ``[size, *]``, at s what process s sent here."""
        if self.size == 1:
            return tensor
        return _EXCHANGE(tensor) if torch.compiler.is_compiling() else _exchange(tensor)

    def share(self, tensor: Tensor) -> Tensor:
        """Overwrite ``tensor`` with the first process's."""
        if self.size > 1:
            with _answered():
                dist.broadcast(tensor, 0)
        return tensor

    def share_text(self, text: str) -> str:
        """Return the first process's text."""
        if self.size == 1:
            return text
        content = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        size = self.share(torch.tensor(content.numel()))
        if not self.first:
            content = torch.empty(int(size), dtype=torch.uint8)
        return self.share(content).numpy().tobytes().decode().strip()

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """Return everyone's ``tensor`` (on the CPU, of one shape) to the first process, nothing to the others."""
        if self.size == 1:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.size)] if self.first else []
        with _answered():
            dist.gather(tensor, found or None)
        return found


ALONE = World()
"""The world of a run on one process, in which nobody need be told anything."""


def is_loss(error: RuntimeError) -> bool:
    """Return whether an error is that of a collective that another process did not take part in.

    For collectives that are not called through ``World``: those of FSDP.
    """
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Turn the errors of a collective into ``PeerLost``; gloo has no class of its own for them."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(" ".join(str(error).split())) from error


def _sum(tensor: Tensor) -> Tensor:
    found = tensor.clone(memory_format=torch.contiguous_format)
    with _answered():
        dist.all_reduce(found)
    return found


def _gather(tensor: Tensor, size: int) -> Tensor:
    found = tensor.new_empty(size, *tensor.shape)
    with _answered():
        dist.all_gather(list(found.unbind(0)), tensor.contiguous())
    return found


def _exchange(tensor: Tensor) -> Tensor:
    found = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    with _answered():
        dist.all_to_all_single(found, tensor.contiguous())
    return found


# What a compiler takes as one operation each, in the order of the program. Gradients are their callers' business.
_SUM = torch.library.custom_op("umscale::world_sum", _sum, mutates_args=())
_GATHER = torch.library.custom_op("umscale::world_gather", _gather, mutates_args=())
_EXCHANGE = torch.library.custom_op("umscale::world_exchange", _exchange, mutates_args=())
for _operation in (_SUM, _EXCHANGE):
    _operation.register_fake(lambda tensor: torch.empty_like(tensor, memory_format=torch.contiguous_format))
_GATHER.register_fake(lambda tensor, size: tensor.new_empty(size, *tensor.shape))


@contextlib.contextmanager
def joined(
    rendezvous: str, *, shard_tables: bool, device: torch.device, shard_dense: bool = False
) -> Iterator[World]:
    """Join the world that the environment describes as torchrun does (``RANK``, ``WORLD_SIZE``), and leave it.

    Args:
        rendezvous: where the processes find each other: ``file://PATH``, or ``env://`` for torchrun's own store.
        device: what this process computes on.
    """
    size = int(os.environ["WORLD_SIZE"])
    world = World(
        rank=int(os.environ["RANK"]),
        size=size,
        shard_tables=shard_tables,
        shard_dense=shard_dense and size > 1,
    )
    if world.size == 1:
        yield world
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    with _answered():
        dist.init_process_group(
            backend, init_method=rendezvous, rank=world.rank, world_size=world.size, timeout=TIMEOUT
        )
    yield world
    dist.destroy_process_group()  # not after an error: it would wait for processes that are gone
