"""How long a sweep will take on this machine: sizes are counted, and a few steps of models that are soon built timed.

Nothing is built that does not fit this machine or would take long; times of such models follow from those of others
and from what a step computes, reads and updates.
"""

import dataclasses
import heapq
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umscale.accounting import cost, gathered_params
from umscale.spec import RunSpec

MEASURED_SHAPES = 6
MEASURE_SECONDS = 2.0
"""Of CPU time, after which no further shape is timed."""
LONGEST_STEP = 1.0
"""Seconds of a step, as counted, beyond which a shape is not timed."""
TIMED_STEPS = 2
FORWARD_SHARE = 1 / 3
"""Cost of evaluating a token relative to training on it."""
STATE_BYTES = 20
"""A parameter in training: weight, gradient, two moments and average, in fp32."""
STEP_COSTS = np.array([3e-3, 1e-10, 2e-9, 7e-9])
"""Seconds of a step on an ordinary core: of its own, a forward FLOP, a gathered parameter, a parameter updated."""
TRUST = 0.05
"""Weight of those proportions beside a measurement's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Times of a step and of a whole run for each run of a sweep, in seconds of one worker."""

    steps: tuple[float, ...]
    runs: tuple[float, ...]
    start: float
    """Of a worker, until its first run."""
    timed: int
    """Shapes that were timed; 0 when all is counted and the scale is that of an ordinary core."""

    def sweep_seconds(self, n_workers: int) -> float:
        """Return how long ``n_workers`` take that each take the next run, in the order given."""
        if not self.runs:
            return 0.0
        free = [0.0] * min(n_workers, len(self.runs))
        for seconds in self.runs:
            heapq.heapreplace(free, free[0] + seconds)
        return self.start + max(free)


def estimate(runs: Sequence[RunSpec], threads: int = 1) -> Estimate:
    """Estimate the times of ``runs`` on workers of ``threads`` threads on this machine when it is idle."""
    import torch

    from umscale.machine import keep_freed_memory

    start = time.process_time()
    keep_freed_memory()  # as workers do
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        steps, timed = seconds_per_step(runs)
    finally:
        torch.set_num_threads(before)
    totals = tuple(run_seconds(run, step) for run, step in zip(runs, steps, strict=True))
    return Estimate(steps=tuple(steps), runs=totals, start=start, timed=timed)


def seconds_per_step(runs: Sequence[RunSpec]) -> tuple[list[float], int]:
    """Return the time of one training step of each run, on one worker, and how many shapes were timed for it."""
    index = {run: i for i, run in enumerate(dict.fromkeys(dataclasses.replace(run, seed=0) for run in runs))}
    shapes = list(index)
    parts = np.stack([step_parts(run) for run in shapes]) if shapes else np.zeros((0, 4))
    counted = parts.sum(1)
    room = 0.5 * available_bytes()
    small = [
        i
        for i in np.argsort(counted).tolist()
        if counted[i] <= LONGEST_STEP and state_bytes(shapes[i]) <= room
    ]
    picks = {round(x) for x in np.linspace(0, len(small) - 1, min(MEASURED_SHAPES, len(small)))}
    chosen = [small[i] for i in sorted(picks, key=lambda i: abs(i - len(small) / 2), reverse=True)]
    measured: dict[int, float] = {}
    end = time.process_time() + MEASURE_SECONDS
    for i in chosen:
        if time.process_time() < end:
            measured[i] = _measure(shapes[i])
    factors = _factors(parts, measured)
    steps = [measured.get(i, float(parts[i] @ factors)) for i in range(len(shapes))]
    return [steps[index[dataclasses.replace(run, seed=0)]] for run in runs], len(measured)


def run_seconds(run: RunSpec, step_seconds: float) -> float:
    """Return the time of the whole run: trunk, branches and evaluations of raw and averaged weights."""
    evaluated = 2 * 2 * len(run.budget_steps) * run.data.validation_tokens  # two stages, raw and averaged
    steps = run.total_steps + FORWARD_SHARE * evaluated / run.tokens_per_step
    return steps * step_seconds


def state_bytes(run: RunSpec) -> int:
    """Return the memory that the state of a run takes in training; activations come on top."""
    return STATE_BYTES * cost(run.model, run.data.seq_len).total_params_with_embedding


def kept_bytes(run: RunSpec, n_params: int) -> int:
    """Return what a run of a model of ``n_params`` with embeddings leaves in the store beside its records, in bytes.

    Weights of a record take 8 a parameter (raw and averaged, in fp32), a trunk 16: with both moments of the optimiser.
    """
    records = sum(
        run.keeps(budget, stage) for budget in run.train.budgets for stage in ("stable", "annealed")
    )
    return n_params * (8 * records + 16 * run.keeps_trunk)


def available_bytes() -> int:
    """Return the memory that a process can still get here."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def step_parts(run: RunSpec) -> np.ndarray:
    """Return what a step takes on an ordinary core, in seconds: by itself, arithmetic, gathering rows, updating all."""
    sizes = cost(run.model, run.data.seq_len)
    per_step = run.tokens_per_step
    amounts = [
        1.0,
        per_step * sizes.flops_per_token,
        per_step * gathered_params(run.model),
        sizes.total_params,
    ]
    parts: np.ndarray = STEP_COSTS * np.array(amounts, dtype=float)
    return parts


def _factors(parts: np.ndarray, measured: dict[int, float]) -> np.ndarray:
    """Return how much dearer each part is here: least squares of relative errors, near one factor for all."""
    if not measured:
        return np.ones(4)
    times = np.array(list(measured.values()))
    rows = parts[list(measured)]
    common = float(np.median(times / rows.sum(1)))
    matrix = np.concatenate([rows / times[:, None], TRUST / common * np.eye(4)])
    wanted = np.concatenate([np.ones(len(times)), np.full(4, TRUST)])
    found: np.ndarray = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    return np.clip(found, 0.1 * common, None)


def _measure(run: RunSpec) -> float:
    """Return the seconds of a step, of CPU time where that does the work: others may use the machine meanwhile."""
    import torch

    from umscale.data.corpus import open_corpus
    from umscale.model.decoder import resolve_device
    from umscale.training.run import Run

    corpus = open_corpus(run.data.corpus)
    device = resolve_device("auto")
    threads = torch.get_num_threads()
    clock = time.perf_counter if device.type == "cuda" or threads > 1 else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        trainer = Run(run, corpus, Path(folder), device)
        trainer.train_step()
        times = []
        for _ in range(TIMED_STEPS):
            began = clock()
            trainer.train_step()
            times.append(clock() - began)
    return min(times)
