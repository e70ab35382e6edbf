"""How often `umscale fit --compare` names the law behind a table, and how often one with a term that is noise."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from umscale.laws.compare import compare, fit_laws
from umscale.results.columns import Array

LAWS = ("P0", "P1", "P0_log")
"""Chinchilla's law, in which sparse parameters count for nothing; with an effective size; with a term in ln N_s."""
SHARES = (0.0, 0.1)
"""Weight of N_s in the effective size: none, so that P0 is the truth, and a tenth, so that P1 is."""
NOISE = 0.01


def sparse_table(seed: int, share: float) -> dict[str, Array]:
    """Return 36 rows of E + A·(N^(1−g)·N_s^g)^-α + B·D^-β with 1% noise, E 1.8, α 0.35, β 0.37; ``share`` is g."""
    axes = ([2e7, 8e7, 3e8], [1e8, 4e8, 1.6e9, 6.4e9], [1e9, 4e9, 1.6e10])
    n, n_s, d = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    loss = 1.8 + 480 * (n ** (1 - share) * n_s**share) ** -0.35 + 2100 * d**-0.37
    noise = NOISE * np.random.default_rng(seed).standard_normal(len(loss))
    return {"N": n, "N_s": n_s, "D": d, "loss": loss * np.exp(noise)}


def run_choices(
    n_tables: int, *, laws: Sequence[str] = LAWS, shares: Sequence[float] = SHARES, first: int = 0
) -> list[dict[str, Any]]:
    """Return, for each share, how many of ``n_tables`` tables (seeds from ``first``) each law was recommended on."""
    columns = {"N": "N", "N_s": "N_s", "D": "D"}
    rows = []
    for share in shares:
        named = dict.fromkeys(laws, 0)
        for seed in range(first, first + n_tables):
            name = compare(fit_laws(sparse_table(seed, share), laws, columns=columns)).recommended
            named[name] = named.get(name, 0) + 1
        rows.append({"truth": "P1" if share else "P0", "share": share, "tables": n_tables, "named": named})
    return rows
