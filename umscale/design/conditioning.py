"""Can this design separate the effects it asks about? Answered before anything is trained.

Works on the base-2 logarithms of each axis, standardised, with an intercept: the correlation of two axes, and
the condition number of the design matrix, whose smallest singular direction names what is confounded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WELL_CONDITIONED = 10.0
CONFOUNDED = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """What a design separates."""

    varied: tuple[str, ...]
    condition: float
    """Condition number of the standardised log design; 1 is orthogonal, infinite is rank-deficient."""
    rank: int
    correlations: Mapping[tuple[str, str], float]
    statements: tuple[str, ...]
    """Plain sentences for the user."""


def condition(columns: Mapping[str, Sequence[float]]) -> Conditioning:
    """Judge a design.

    Args:
        columns: for each quantity whose effect is asked for, its value in every planned record. Columns that
            do not vary, or are not all positive numbers, are no effects and are left out.
    """
    logs = {}
    for name, column in columns.items():
        values = np.asarray(column, dtype=float)
        if len(values) and np.all(values > 0):
            log = np.log2(values)
            if np.ptp(log) > 1e-3:
                logs[name] = (log - log.mean()) / log.std()
    varied = tuple(logs)
    if not varied:
        return Conditioning(
            varied=(),
            condition=float("inf"),
            rank=0,
            correlations={},
            statements=("Nothing varies but the seed: this design measures noise, and no effect.",),
        )
    matrix = np.stack([logs[name] for name in varied], axis=1) / np.sqrt(len(logs[varied[0]]))
    singular = np.linalg.svd(matrix, compute_uv=False)
    rank = int((singular > 1e-6 * singular[0]).sum())
    number = float(singular[0] / singular[-1]) if rank == len(varied) else float("inf")
    correlations = {
        (a, b): float(np.mean(logs[a] * logs[b])) for i, a in enumerate(varied) for b in varied[i + 1 :]
    }
    return Conditioning(
        varied=varied,
        condition=number,
        rank=rank,
        correlations=correlations,
        statements=tuple(_statements(logs, correlations, rank, number)),
    )


def _statements(
    logs: Mapping[str, np.ndarray], correlations: Mapping[tuple[str, str], float], rank: int, number: float
) -> list[str]:
    out = []
    if "top_m" in logs and "sparse_params" in logs:
        r = correlations[("top_m", "sparse_params")]
        if abs(r) > CONFOUNDED:
            out.append(
                f"Cannot separate density (top_m) from size (sparse_params): correlation {r:+.2f}. "
                "Vary them independently; a fixed rho = A_s / N_s ties one to the other."
            )
        else:
            out.append(f"Separates density (top_m) from size (sparse_params): correlation {r:+.2f}.")
    elif "top_m" in logs or "sparse_params" in logs:
        present, absent = ("top_m", "sparse_params") if "top_m" in logs else ("sparse_params", "top_m")
        out.append(f"Varies {present} but not {absent}: it cannot compare density with size.")
    for (a, b), r in correlations.items():
        if (a, b) != ("top_m", "sparse_params") and abs(r) > CONFOUNDED:
            out.append(f"Cannot separate {a} from {b} (correlation {r:+.2f}).")
    if len(logs) > 1:
        if rank < len(logs):
            out.append(
                f"The design is rank-deficient: {len(logs)} axes vary in {rank} independent directions."
            )
        else:
            quality = "well" if number < WELL_CONDITIONED else "badly"
            out.append(f"Condition number {number:.1f}: {quality} conditioned.")
    return out
