"""Tables simulated from a known local law at a study's design."""

import itertools
from collections.abc import Sequence

import numpy as np

from umscale.results.table import Table

TOP_M = (16, 32, 64, 128)
SIZES = (2**16, 2**18, 2**20)


def study_table(
    seed: int = 0,
    *,
    top_m: Sequence[int] = TOP_M,
    sizes: Sequence[int] = SIZES,
    seeds: int = 1,
    budgets: Sequence[int] = (1_000_000,),
    a: float = -0.02,
    b: float = -0.01,
    x: float = 0.0,
    d: float = -0.1,
    run_noise: float = 0.02,
    block_noise: float = 0.02,
    cell_noise: float = 0.0,
    annealed_gain: float = 0.1,
    compensations: Sequence[str] = ("none",),
) -> Table:
    """One row per run × budget × stage of L = 4 + a·u + b·v + x·u·v + d·w, axes in centred doublings."""
    rng = np.random.default_rng(seed)
    offset = rng.normal(0, block_noise, seeds) if block_noise else np.zeros(seeds)
    mean_m, mean_n = np.mean(np.log2(top_m)), np.mean(np.log2(sizes))
    mean_d = np.mean(np.log2(budgets))
    rows = []
    for mode in compensations:
        for m, n in itertools.product(top_m, sizes):
            cell = rng.normal(0, cell_noise) if cell_noise else 0.0
            for block in range(seeds):
                noise = rng.normal(0, run_noise) if run_noise else 0.0
                for budget in budgets:
                    u, v, w = np.log2(m) - mean_m, np.log2(n) - mean_n, np.log2(budget) - mean_d
                    loss = 4 + a * u + b * v + x * u * v + d * w + offset[block] + noise + cell
                    for stage, gain in (("stable", 0.0), ("annealed", annealed_gain)):
                        row = (
                            f"{mode}-{m}-{n}-{block}", block, stage, float(budget), float(budget),
                            loss - gain, loss - gain - 0.02, float(m), float(n), m / n, mode,
                        )  # fmt: skip
                        rows.append(row)
    names = (
        "run_id", "seed", "stage", "budget", "tokens", "loss", "loss_ema", "top_m", "sparse_params", "density",
        "compensation",
    )  # fmt: skip
    text = {"run_id", "stage", "compensation"}
    return {
        name: np.array(column, dtype=object if name in text else np.float64)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
