"""What a process's memory will hold at its fullest, before anything of that size is made.

Weights, gradients, moments and the average follow from the spec. What a block keeps for the backward pass is measured
on one block of the model's widths, a few tokens and small tables, and grows with tokens alone: attention keeps no
scores.

A step is fullest when the backward pass has begun: activations of all blocks are there, and gradients of tables come in
whole; or at its end, when all gradients are. Parts that are not there at the fullest moment count nothing.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from umscale.accounting import cost
from umscale.layers.attention import rotary_table
from umscale.layers.loss import PART_BYTES
from umscale.layers.tables import Tables, column_groups
from umscale.machine import resident_bytes
from umscale.model.decoder import Block
from umscale.ngram_tables import table_params
from umscale.spec import MemorySpec, ModelSpec, RunSpec
from umscale.training.optimiser import gradient_by_rows

MEASURED_TOKENS = 256
SMALL_ROWS = 4096
FLOAT = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """How a run is spread over processes."""

    size: int = 1
    shard_tables: bool = False
    shard_dense: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockMemory:
    """What one block needs for a token, in bytes."""

    kept: float
    """For the backward pass."""
    work: float
    """Beyond that, at most, forward and backward."""


def predict_memory(run: RunSpec, split: Split = Split()) -> dict[str, int]:
    """Return bytes by part at the fullest moment of a training step, on one process; they add up to the peak.

    The device's own use (a CUDA context, NCCL's buffers) is not in it; on a CPU ``libraries`` are what this process
    takes with the same ones loaded. Token-addressed tables in host memory are not in it either, see ``host_memory``.
    """
    model, train = run.model, run.train
    at_once = min(train.batch_size // split.size, train.micro_batch_size or train.batch_size)
    tokens = at_once * run.data.seq_len
    tables = _table_params(model) // (split.size if split.shard_tables else 1)
    away = table_params(model) if train.table_device == "cpu" else 0
    dense = (_dense_params(model) - away) // (split.size if split.shard_dense else 1)
    fetched = tokens * _width_fetched(model) if away else 0
    rows = gradient_by_rows(run, split.size, split.shard_tables)
    table_gradient = min(tables, _rows_read(run, tokens, split)) if rows else tables
    moments = tables + (_table_rows(model) if train.table_second_moment == "row" else tables) + 2 * dense
    activations, work = _activations(run, tokens)
    logits = tokens * model.vocab_size * FLOAT
    parts = -(-logits // PART_BYTES)
    head = model.vocab_size * model.d_model * FLOAT
    loss = 2 * logits if parts == 1 else 2 * PART_BYTES + head
    several = (
        at_once < train.batch_size // split.size
    )  # then gradients of the parts before are there throughout
    late = not several and work + FLOAT * dense > activations + max(loss, work)
    out = {
        "value tables": FLOAT * tables,
        "other weights": FLOAT * dense,
        "moments": FLOAT * moments,
        "weight average": FLOAT * (tables + dense),
        "copies of tables": 2 * tables if train.table_copy == "bfloat16" else 0,
        "gradients of tables": FLOAT * table_gradient,
        "other gradients": FLOAT * dense if late or several else 0,
        "rows from host memory": 2 * FLOAT * fetched,
        "activations": 0 if late else activations,
        "loss or a block's work": work if late else max(loss, work),
        "gathered weights": 2 * FLOAT * (_dense_params(model) - away) // model.n_layers
        if split.shard_dense
        else 0,
        "libraries": 0 if torch.cuda.is_available() else resident_bytes(),
    }
    return {name: int(n) for name, n in out.items()}


def host_memory(run: RunSpec) -> int:
    """Return the bytes that token-addressed tables take in a process's host memory: weights, moments and average."""
    if run.train.table_device != "cpu" or run.model.ngram is None:
        return 0
    params = table_params(run.model)
    second = params // run.model.ngram.head_width if run.train.table_second_moment == "row" else params
    return FLOAT * (3 * params + second)


def _width_fetched(model: ModelSpec) -> int:
    """Return the parameters that a token reads of token-addressed tables."""
    return 0 if model.ngram is None else model.ngram_modules * model.ngram.read_width


def _table_rows(model: ModelSpec) -> int:
    memory = model.memory
    return 0 if memory is None else memory.n_tables(len(model.memory_layers)) * memory.n_values


def _table_params(model: ModelSpec) -> int:
    return _table_rows(model) * (model.memory.row_width if model.memory is not None else 0)


def _dense_params(model: ModelSpec) -> int:
    return cost(model, 1).total_params_with_embedding - _table_params(model)


def _rows_read(run: RunSpec, tokens: int, split: Split) -> int:
    """Return the parameters of the rows that are read at once at most."""
    memory = run.model.memory
    if memory is None:
        return 0
    everyones = tokens * (split.size if split.shard_tables else 1)
    width = memory.row_width // (split.size if split.shard_tables else 1)
    return len(run.model.memory_layers) * everyones * memory.heads * memory.top_m * width


def _activations(run: RunSpec, tokens: int) -> tuple[int, int]:
    """Return what all blocks keep for the backward pass, and what one needs beyond that, in bytes."""
    model = run.model
    n_memory = len(model.memory_layers)
    kinds = [
        (with_memory, n) for with_memory, n in ((True, n_memory), (False, model.n_layers - n_memory)) if n
    ]
    found = [(measure_block(run, with_memory), n) for with_memory, n in kinds]
    work = max(block.work for block, _ in found)
    ends = 3 * model.d_model * FLOAT  # embedding, and before and after the last norm
    if run.train.activation_checkpointing:
        entering = model.n_layers * model.d_model * FLOAT * (2 if n_memory else 1)
        kept = max(block.kept for block, _ in found)
        return round(tokens * (entering + ends)), round(tokens * (kept + work))
    return round(tokens * (sum(n * block.kept for block, n in found) + ends)), round(tokens * work)


def measure_block(run: RunSpec, with_memory: bool) -> BlockMemory:
    """Measure one block of the run's widths and precision, here, on the CPU."""
    model = run.model
    index = next(i for i in range(model.n_layers) if (i in model.memory_layers) == with_memory)
    length = min(run.data.seq_len, MEASURED_TOKENS)
    block = Block(model, index, 0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    for buffer in block.buffers():
        torch.nn.init.normal_(buffer)
    tables = (
        [_small_tables(model.memory)] * max(1, len(model.memory_layers)) if model.memory is not None else []
    )
    rotary = rotary_table(length, model.d_model // model.n_heads, model.rope_theta)
    x = torch.randn(1, length, model.d_model, requires_grad=True)
    own = {p.untyped_storage().data_ptr() for p in (*block.parameters(), *block.buffers(), rotary)}
    own |= {t.untyped_storage().data_ptr() for table in tables for t in table[:2] if t is not None}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def forward() -> Tensor:
        bfloat16 = run.train.precision == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else contextlib.nullcontext():
            y, remembered = block(x, rotary, None, tables)
        return y.sum() if remembered is None else y.sum() + remembered.sum()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    own_gradients = sum(p.nbytes for p in block.parameters())
    own_gradients += sum(t.nbytes for table in tables[:1] for t in table[:2] if t is not None)
    peak = peak_allocated(lambda: forward().backward())
    work = max(0, peak - sum(kept.values()) - own_gradients)
    return BlockMemory(kept=sum(kept.values()) / length, work=work / length)


def _small_tables(memory: MemorySpec) -> Tables:
    """Return tables of few rows: a layer takes addresses modulo their number."""
    widths = {"pre_values": memory.d_pre_value, "values": memory.d_value}
    made = [
        torch.nn.Parameter(torch.randn(SMALL_ROWS, widths[name])) if widths[name] else None
        for name in column_groups(memory)
    ]
    assert made[1] is not None
    return Tables(made[0], made[1], None)


def peak_allocated(work: Callable[[], None]) -> int:
    """Return the most bytes of tensors on the CPU that ``work`` holds at once."""
    from torch.profiler import ProfilerActivity, profile

    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler's library, which no setting silences, from writing to stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
