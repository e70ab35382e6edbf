"""How long a sweep will take on this machine, from a few measured steps."""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from umscale.accounting import cost, gathered_params
from umscale.spec import RunSpec
from umscale.training.optimiser import Schedule

MEASURED_SHAPES = 6
TIMED_STEPS = 2
FORWARD_SHARE = 1 / 3
"""Cost of evaluating a token relative to training on it."""


def seconds_per_step(runs: Sequence[RunSpec], on_progress: Callable[[int, int], None]) -> list[float]:
    """Return the time of one training step of each run, on one worker.

    Up to ``MEASURED_SHAPES`` of the distinct runs are measured; the rest follow from a least-squares fit on
    FLOPs, activated rows and table size.
    """
    distinct = list(dict.fromkeys(dataclasses.replace(run, seed=0) for run in runs))
    distinct.sort(key=lambda run: _features(run) @ np.array([0, 1e-12, 1e-9, 1e-9]))
    picks = sorted({round(i) for i in np.linspace(0, len(distinct) - 1, min(MEASURED_SHAPES, len(distinct)))})
    measured = {}
    for done, index in enumerate(picks):
        on_progress(done, len(picks))
        measured[distinct[index]] = _measure(distinct[index])
    matrix = np.stack([_features(run) for run in measured])
    scale = np.abs(matrix).max(0)
    weights, *_ = np.linalg.lstsq(matrix / scale, np.array(list(measured.values())), rcond=1e-8)
    floor = min(measured.values())
    times = []
    for run in runs:
        same = measured.get(dataclasses.replace(run, seed=0))
        times.append(same if same is not None else max(floor, float(_features(run) / scale @ weights)))
    return times


def run_seconds(run: RunSpec, step_seconds: float) -> float:
    """Return the time of the whole run: trunk, branches and evaluations."""
    schedule = Schedule(run)
    evaluated = 2 * 2 * len(schedule.ends) * run.data.validation_tokens  # two stages, raw and averaged
    steps = schedule.total_steps + FORWARD_SHARE * evaluated / run.tokens_per_step
    return steps * step_seconds


def _features(run: RunSpec) -> np.ndarray:
    sizes = cost(run.model, run.data.seq_len)
    per_step = run.tokens_per_step
    return np.array(
        [1.0, per_step * sizes.flops_per_token, per_step * gathered_params(run.model), sizes.total_params]
    )


def _measure(run: RunSpec) -> float:
    from umscale.data.corpus import open_corpus
    from umscale.model.decoder import resolve_device
    from umscale.training.run import Run

    corpus = open_corpus(run.data.corpus)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Run(run, corpus, Path(folder), resolve_device("auto"))
        trainer.train_step()
        times = []
        for _ in range(TIMED_STEPS):
            began = time.perf_counter()
            trainer.train_step()
            times.append(time.perf_counter() - began)
    return min(times)
