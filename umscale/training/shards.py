"""Which columns of a value table a process holds, and how a model, its optimiser and checkpoints come to have them.

Of values, process r of W holds the r-th 1/W of each core's slice, so that cores stay as they are; of pre-values the
r-th 1/W of all columns. Rows are never divided: every process can be asked for any row, and none is asked more often.
"""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from umscale.errors import UserError
from umscale.layers import tables
from umscale.model.decoder import Decoder
from umscale.spec import RunSpec
from umscale.training.process_group import World
from umscale.training.sharded_lookup import sharded_lookup


def check(run: RunSpec, size: int, shard_tables: bool, shard_dense: bool = False) -> None:
    """Check that a run can be trained by ``size`` processes.

    Raises:
        UserError: its batch or the rows of its tables cannot be divided evenly, or its optimiser needs whole matrices.
    """
    if shard_dense and run.train.optimizer.kind != "adamw":
        raise UserError(
            f"--dense sharded: train.optimizer.kind = {run.train.optimizer.kind!r} needs whole matrices; use adamw, or "
            "--dense replicated"
        )
    if size > 1 and run.data.evaluations:
        raise UserError("data.evaluations are measured by one process; leave them out, or --nproc 1")
    batch, memory = run.train.batch_size, run.model.memory
    if batch % size:
        raise UserError(
            f"train.batch_size = {batch} is not divisible by {size} processes; --nproc can be {_divisors(batch)}"
        )
    micro = run.train.micro_batch_size
    if micro is not None and batch // size > micro and batch // size % micro:
        raise UserError(
            f"the {batch // size} sequences of each of {size} processes are not divisible by "
            f"train.micro_batch_size = {micro}"
        )
    if not shard_tables:
        return
    if memory is None:
        raise UserError("--tables sharded: this model has no value tables; leave the option out")
    if run.train.table_second_moment == "row":
        raise UserError(
            '--tables sharded: train.table_second_moment = "row" needs whole rows; use "full", or --tables replicated'
        )
    for name, groups in tables.column_groups(memory).items():
        width = memory.d_value if name == "values" else memory.d_pre_value
        if width % (groups * size):
            cores = f" in {groups} cores" if groups > 1 else ""
            raise UserError(
                f"--tables sharded: memory.d_{name[:-1]} = {width}{cores} is not divisible by {size} processes"
            )


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)


def table_part(world: World) -> tuple[int, int]:
    """Return which part of the columns of every table this process holds, of how many."""
    return (world.rank, world.size) if world.shard_tables else (0, 1)


def connect(model: Decoder, world: World) -> None:
    """Make a model with this process's part of the tables one of ``world.size`` replicas.

    Statistics of auxiliary losses are taken over the global batch from now on.
    """
    for part in model.sparse_parts:
        part.module.replica_mean = functools.partial(_mean, world)
    if world.shard_tables:
        for memory in model.memories:
            memory.lookup = functools.partial(sharded_lookup, world)


def _mean(world: World, share: Tensor) -> Tensor:
    return world.sum(share.detach().clone()) / world.size


def sharded_parameters(model: nn.Module, world: World) -> list[nn.Parameter]:
    """Return the value tables of which each process holds a part."""
    pool = getattr(model, "tables", None)
    return list(pool.parameters()) if world.shard_tables and isinstance(pool, nn.Module) else []


def columns(table: Tensor, groups: int, world: World) -> Tensor:
    """Return this process's columns ``[N, D / W]`` of ``table [N, D]``, a copy."""
    own = tables.columns(table, groups, (world.rank, world.size))
    return own.clone(memory_format=torch.contiguous_format)


def from_columns(parts: list[Tensor], groups: int) -> Tensor:
    """Return the table ``[N, D]`` of which process r holds ``parts[r] [N, D / W]``."""
    return torch.stack([part.unflatten(1, (groups, -1)) for part in parts], 2).flatten(1)


def tensor_groups(model: nn.Module, world: World) -> Mapping[str, int]:
    """Return, by name of a parameter of which each process holds a part, its groups of columns."""
    memory = model.spec.memory if world.shard_tables and isinstance(model, Decoder) else None
    return {} if memory is None else {f"tables.{k}": g for k, g in tables.column_groups(memory).items()}


def groups_of(name: str, tensor_dim: int, groups: Mapping[str, int]) -> int:
    """Return the groups of a tensor of a checkpoint, by its name there; 0 if all processes hold the whole of it."""
    return next((g for key, g in groups.items() if f"/{key}" in name and tensor_dim == 2), 0)
