"""Rows that share a run under another name are noticed; independent rows are not accused."""

import numpy as np

from umscale.laws.repeats import repeated_group


def rows(shared: float, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    of_run = np.repeat(rng.standard_normal(12), 6)
    columns = {
        "series": np.repeat(np.array([f"s{k}" for k in range(12)], dtype=object), 6),
        "tokens": np.tile(np.geomspace(1e9, 1e11, 6), 12),
        "seen": rng.random(72),
    }
    return shared * of_run + rng.standard_normal(72), columns


def test_the_column_is_named() -> None:
    found = repeated_group(*rows(3.0, 0))
    assert found is not None
    assert (found.column, found.n_levels) == ("series", 12)
    assert found.correlation > 0.6
    assert 1.9 < found.narrow < np.sqrt(6)


def test_independent_rows_are_left_alone() -> None:
    assert sum(repeated_group(*rows(0.0, seed)) is not None for seed in range(200)) <= 2
