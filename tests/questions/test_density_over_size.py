from collections import Counter

import numpy as np
import pytest

from tests.laws.tables import study_table
from umscale.errors import UserError
from umscale.questions.density_over_size import density_over_size, verdicts


def answer(seed: int = 0, **design: object) -> str:
    return density_over_size(study_table(seed, **design), stage="annealed").answer  # type: ignore[arg-type]


def test_a_clear_effect_of_density_is_supported() -> None:
    verdict = density_over_size(study_table(seeds=3, a=-0.04, b=-0.01), stage="annealed")
    assert verdict.answer == "supported"
    assert verdict.from_law is not None
    assert verdict.from_law.difference is not None
    assert verdict.from_law.difference.low > 0
    assert verdict.further_runs is None
    assert verdict.reference["top_m"] == pytest.approx(2**5.5)
    assert (verdict.n_rows, verdict.n_runs, verdict.n_cells, verdict.n_seeds) == (36, 36, 12, 3)


def test_a_clear_effect_of_size_contradicts() -> None:
    assert answer(seeds=3, a=-0.01, b=-0.04) == "contradicted"


def test_equal_effects_are_seldom_decided() -> None:
    """At most 5% false verdicts; 150 tables allow three standard errors above it."""
    counts = Counter(answer(seed, a=-0.015, b=-0.015) for seed in range(150))
    assert counts["inconclusive"] >= 0.89 * 150


def test_law_and_pairs_agree_with_the_truth_on_a_table_without_noise() -> None:
    table = study_table(a=-0.03, b=-0.01, x=0.002, run_noise=1e-9, seeds=2, sizes=(2**16, 2**17, 2**18))
    verdict = density_over_size(table, stage="annealed")
    assert verdict.from_law is not None
    assert verdict.from_pairs is not None
    for contrasts in (verdict.from_law, verdict.from_pairs):
        assert contrasts.delta_m is not None
        assert contrasts.delta_n is not None
        assert contrasts.delta_m.value == pytest.approx(0.03, abs=1e-6)
        assert contrasts.delta_n.value == pytest.approx(0.01, abs=1e-6)
    assert verdict.from_law.paper is not None
    assert verdict.from_law.paper.value == pytest.approx(0.03 * np.log2(3) - 0.01, abs=1e-6)
    assert verdict.exchange_rate is not None
    assert verdict.exchange_rate.value == pytest.approx(8.0, rel=1e-4)


def test_paired_differences_are_taken_within_blocks() -> None:
    """Offsets of whole seed blocks, a thousand times the effect, cancel."""
    table = study_table(seeds=3, a=-0.03, b=-0.01, block_noise=30.0, run_noise=1e-9)
    table = {**table, "loss": table["loss"] + 200}
    verdict = density_over_size(table, stage="annealed")
    assert verdict.from_pairs is not None
    assert verdict.from_pairs.difference is not None
    assert verdict.from_pairs.difference.value == pytest.approx(0.02, abs=1e-6)
    assert verdict.answer == "supported"


def test_the_papers_contrast_is_read_off_the_grid_that_holds_it() -> None:
    table = study_table(top_m=(16, 32, 48), sizes=(2**16, 2**17), a=-0.03, b=-0.01, run_noise=1e-9)
    pairs = density_over_size(table, stage="annealed").from_pairs
    assert pairs is not None
    assert pairs.paper is not None
    assert pairs.paper.value == pytest.approx(0.03 * np.log2(3) - 0.01, abs=1e-6)
    without = density_over_size(study_table(), stage="annealed").from_pairs
    assert without is not None
    assert without.paper is None


@pytest.mark.parametrize("seeds", [1, 3, 6])
def test_paired_intervals_cover(seeds: int) -> None:
    hits = 0
    for seed in range(60):
        pairs = density_over_size(study_table(seed, seeds=seeds), stage="annealed").from_pairs
        assert pairs is not None
        assert pairs.difference is not None
        hits += pairs.difference.low <= 0.01 <= pairs.difference.high
    assert hits >= 0.86 * 60


def test_further_runs_settle_the_question() -> None:
    """With the runs it asks for, most tables drawn from what the first one seemed to say are decided."""
    first = density_over_size(study_table(3, a=-0.022, b=-0.012), stage="annealed")
    assert first.answer == "inconclusive"
    assert first.further_runs is not None
    assert first.from_law is not None
    assert first.from_law.delta_m is not None
    assert first.from_law.delta_n is not None
    a, b = -first.from_law.delta_m.value, -first.from_law.delta_n.value
    seeds = 1 + round(first.further_runs / 12)
    decided = [answer(seed, a=a, b=b, seeds=seeds) != "inconclusive" for seed in range(24)]
    assert sum(decided) >= 12
    before = [answer(seed, a=a, b=b) != "inconclusive" for seed in range(24)]
    assert sum(decided) > sum(before)


@pytest.mark.parametrize(
    ("design", "reason"),
    [
        ({"top_m": (32,)}, "top_m has one level"),
        ({"sizes": (2**16,)}, "sparse_params has one level"),
        ({"top_m": (32,), "sizes": (2**16,)}, "top_m and sparse_params has one level"),
    ],
)
def test_one_level_is_inconclusive_with_its_reason(design: dict[str, object], reason: str) -> None:
    verdict = density_over_size(study_table(**design), stage="annealed")  # type: ignore[arg-type]
    assert verdict.answer == "inconclusive"
    assert reason in verdict.reason


def test_a_diagonal_design_is_inconclusive() -> None:
    table = study_table(sizes=(2**14, 2**15, 2**16, 2**17))
    diagonal = table["sparse_params"] == 1024 * table["top_m"]
    verdict = density_over_size({n: c[diagonal] for n, c in table.items()}, stage="annealed")
    assert verdict.answer == "inconclusive"
    assert "cannot separate" in verdict.reason


@pytest.mark.parametrize("n_rows", range(0, 9))
def test_thin_tables_never_crash(n_rows: int) -> None:
    """A sweep is looked at while it runs: any first rows must do."""
    table = {name: column[:n_rows] for name, column in study_table(sizes=(2**16, 2**18)).items()}
    for stage in ("annealed", "stable"):
        verdict = density_over_size(table, stage=stage)
        assert verdict.reason
        if n_rows < 8:
            assert verdict.answer == "inconclusive"


def test_two_by_two_has_an_interval_of_one_degree_of_freedom() -> None:
    table = study_table(top_m=(16, 32), sizes=(2**16, 2**18))
    verdict = density_over_size(table, stage="annealed")
    assert any("degrees of freedom" in warning for warning in verdict.warnings)


def test_failed_runs_do_not_count() -> None:
    table = dict(study_table(seeds=2))
    loss = table["loss"].astype(object)
    loss[:6] = None
    table["loss"] = loss
    verdict = density_over_size(table, stage="annealed")
    assert verdict.n_rows == 21
    assert any("left out" in warning for warning in verdict.warnings)


def test_extrapolated_points_are_named() -> None:
    verdict = density_over_size(study_table(top_m=(16, 32)), stage="annealed")
    assert verdict.extrapolated == ("3 times the central top_m is 2.12 times the largest top_m measured, 32",)
    inside = density_over_size(study_table(top_m=(8, 32, 128)), stage="annealed")
    assert inside.extrapolated == ()


def test_every_stage_loss_and_compensation_is_answered() -> None:
    found = verdicts(study_table(compensations=("none", "iso_flops")))
    seen = {(v.loss, v.compensation, v.stage) for v in found}
    assert len(found) == len(seen) == 8


def test_a_mixed_table_is_inconclusive_not_pooled() -> None:
    verdict = density_over_size(study_table(compensations=("none", "iso_flops")), stage="annealed")
    assert verdict.answer == "inconclusive"
    assert "mixes compensation" in verdict.reason


def test_a_missing_column_is_the_users_error() -> None:
    table = {name: column for name, column in study_table().items() if name != "top_m"}
    with pytest.raises(UserError, match="top_m"):
        density_over_size(table, stage="annealed")
