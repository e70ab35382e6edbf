"""Clocks, interleaved rounds, and the measured limits of a machine."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from umscale.bench.measured import Row
from umscale.rng import derive_seed

Step = Callable[[], object]
Clock = Callable[[Step], float]
"""Runs a step once; returns its seconds."""

_WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Timing:
    """Median of the rounds, and (max - min) / median."""

    seconds: float
    spread: float


def cpu_clock(step: Step) -> float:
    """Seconds of one call: the processor's with one thread, which other work disturbs less, else the wall clock's."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    step()
    return clock() - began


def cuda_clock(flush_bytes: int = 1 << 29) -> Clock:
    """GPU time of one call, from an L2 cache that holds none of its operands.

    The stream spins first for some milliseconds, so that the host is ahead and launches are not part of the time
    (unless the step waits for the device). ``flush_bytes`` are written before, several times the size of any L2.
    """
    flush = torch.empty(flush_bytes, dtype=torch.uint8, device="cuda")

    def clock(step: Step) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(10_000_000)
        flush.zero_()
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return clock


def clock_of(device: str) -> Clock:
    """Return the clock for tensors on ``device``."""
    return cuda_clock() if device == "cuda" else cpu_clock


Timings = dict[str, dict[str, Timing]]
"""By variant and pass."""


def interleaved(variants: Mapping[str, Mapping[str, Step]], rounds: int, clock: Clock) -> Timings:
    """Time every pass of every variant once a round, so that a noisy moment does not fall on one of them.

    Two calls each come first, untimed: they compile, tune and allocate.
    """
    steps = {(name, key): step for name, group in variants.items() for key, step in group.items()}
    for step in steps.values():
        for _ in range(_WARM_UP):
            step()
    seconds: dict[tuple[str, str], list[float]] = {called: [] for called in steps}
    for _ in range(rounds):
        for called, step in steps.items():
            seconds[called].append(clock(step))
    timings: Timings = {name: {} for name in variants}
    for (name, key), values in seconds.items():
        median = statistics.median(values)
        timings[name][key] = Timing(median, (max(values) - min(values)) / median)
    return timings


def rows(timings: Timings, reference: str) -> list[Row]:
    """``<pass>_seconds``, ``<pass>_spread`` and, beside ``reference``, ``<pass>_ratio`` of every variant."""
    found = []
    for name, group in timings.items():
        figures = {}
        for key, timing in group.items():
            figures[f"{key}_seconds"] = timing.seconds
            figures[f"{key}_spread"] = timing.spread
            if key in timings[reference]:
                figures[f"{key}_ratio"] = timing.seconds / timings[reference][key].seconds
        found.append(Row(name=name, figures=figures))
    return found


def passes(forward: Callable[[], Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> dict[str, Step]:
    """``forward`` (recording the graph, as in training) and ``train``, forward and the gradients of ``inputs``."""

    def outputs() -> tuple[Tensor, ...]:
        found = forward()
        return (found,) if isinstance(found, Tensor) else found

    d_outputs = [torch.ones_like(x) for x in outputs()]

    def train() -> object:
        return torch.autograd.grad(outputs(), inputs, d_outputs, allow_unused=True)

    return {"forward": forward, "train": train}


TIME_COLUMNS = {
    "forward_seconds": "fwd",
    "train_seconds": "fwd+bwd",
    "train_spread": "spread",
    "forward_ratio": "ratio fwd",
    "train_ratio": "ratio fwd+bwd",
}
"""What a table of the two ``passes`` shows."""


def peak_bytes(step: Step) -> int:
    """Peak of the GPU memory that one call takes beyond what is allocated before it."""
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def copy_step(device: str, n_bytes: int) -> Step:
    """A copy that moves ``n_bytes``, half of them read and half written."""
    source = torch.ones(n_bytes // 8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def matmul_step(device: str, dtype: torch.dtype, size: int) -> tuple[Step, float]:
    """A square matrix product and its FLOPs."""
    a, b = (normal((size, size), name, device, dtype) for name in ("a", "b"))
    return lambda: a @ b, 2.0 * size**3


def normal(shape: Sequence[int], name: str, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal draws of the stream ``name``, made on the device."""
    stream = torch.Generator(device).manual_seed(derive_seed(0, name))
    return torch.randn(*shape, generator=stream, device=device, dtype=dtype)
