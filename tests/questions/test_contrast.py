"""User-named contrasts: pairing, intervals and the errors of a careless description."""

import numpy as np
import pytest

from tests.laws.tables import study_table
from umscale.errors import UserError
from umscale.questions.contrast import contrast, parse_contrast

LEFT, RIGHT = {"top_m": 16, "sparse_params": 2**16}, {"top_m": 64, "sparse_params": 2**16}


def test_seed_blocks_and_budgets_cancel() -> None:
    table = study_table(seeds=2, budgets=(1_000_000, 4_000_000), block_noise=30.0, run_noise=1e-9, a=-0.03)
    table = {**table, "loss": table["loss"] + 200}
    found = contrast(table, LEFT, RIGHT, stage="annealed")
    assert found.difference.value == pytest.approx(0.06, abs=1e-6)
    assert (found.n_pairs, found.n_seeds) == (4, 2)


@pytest.mark.parametrize("seeds", [2, 6])
def test_intervals_cover(seeds: int) -> None:
    """Pooled noise with two seeds, the blocks' own spread with six; 150 tables, three standard errors."""
    hits = 0
    for seed in range(150):
        d = contrast(study_table(seed, seeds=seeds, a=-0.03), LEFT, RIGHT, stage="annealed").difference
        hits += d.low <= 0.06 <= d.high
    assert 0.90 * 150 <= hits <= 150


def test_one_seed_has_a_value_and_no_interval() -> None:
    found = contrast(study_table(), LEFT, RIGHT, stage="annealed")
    assert np.isfinite(found.difference.value)
    assert not found.difference.has_interval


def test_parse_reads_numbers_suffixes_and_text() -> None:
    left, right = parse_contrast("top_m=16,sparse_params=4M - top_m=32, router='Hash'")
    assert left == {"top_m": 16.0, "sparse_params": 4e6}
    assert right == {"top_m": 32.0, "router": "Hash"}
    for bad in ("top_m=16", "top_m - top_m=32", "top_m=1 - top_m=2 - top_m=3", "=3 - top_m=2"):
        with pytest.raises(UserError, match="contrast"):
            parse_contrast(bad)


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ({"topm": 16}, "did you mean 'top_m'"),
        ({"top_m": 17, "sparse_params": 2**16}, "no finished run has top_m"),
        ({"top_m": 16}, "say sparse_params too"),
        (RIGHT, "the same cell"),
    ],
)
def test_careless_cells_are_explained(left: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        contrast(study_table(seeds=2), left, RIGHT, stage="annealed")


def test_cells_without_a_common_seed_cannot_be_paired() -> None:
    table = study_table(seeds=2)
    drop = ((table["seed"] == 0) & (table["top_m"] == 16)) | ((table["seed"] == 1) & (table["top_m"] == 64))
    with pytest.raises(UserError, match="share no seed"):
        contrast({k: v[~drop] for k, v in table.items()}, LEFT, RIGHT, stage="annealed")
