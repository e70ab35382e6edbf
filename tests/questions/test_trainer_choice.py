"""Slopes and losses at each level of a trainer's choice: known answers, nominal coverage, what follows from them."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from umscale.errors import UserError
from umscale.questions.trainer_choice import mean_estimate, recommendation, trainer_choices
from umscale.results.documents import NORMAL_95, difference_error

WIDTH = 96
CORNERS = [(m, n) for m in (8, 96) for n in (64, 256)]


def study(levels, seeds=4, noise=0.0, seed=0):
    """A study of four corners; ``levels`` gives (loss, delta_m, delta_N) for each level."""
    rng = np.random.default_rng(seed)
    rows = []
    for mode in ("none", "iso_flops"):
        for s in range(seeds):
            block = 0.05 * rng.standard_normal()
            for level, (base, delta_m, delta_n) in levels.items():
                for m, n in CORNERS:
                    size = WIDTH * n**2
                    for stage in ("stable", "annealed"):
                        rows.append(
                            {
                                "run_id": f"{mode}{s}{level}{m}{n}",
                                "label": f"top_m={m} n_keys={n} table_weight_decay={level} {mode} seed={s}",
                                "compensation": mode,
                                "budget": 1e6,
                                "stage": stage,
                                "seed": float(s),
                                "top_m": float(m),
                                "heads": 1.0,
                                "sparse_params": float(size),
                                "loss": base
                                + block
                                - delta_m * (np.log2(m) - np.log2(8 * 96) / 2)
                                - delta_n * (np.log2(size) - np.log2(WIDTH * 64 * 256))
                                + noise * rng.standard_normal(),
                            }
                        )
    text = {"run_id", "label", "compensation", "stage"}
    return {
        name: np.array([row[name] for row in rows], object if name in text else float) for name in rows[0]
    }


EXACT = {"coupled": (3.0, 0.018, 0.015), "0.0005": (3.01, 0.02, 0.014), "0": (3.015, 0.02, 0.012)}


def test_slopes_and_changes_are_those_of_the_law() -> None:
    found = trainer_choices(study(EXACT))
    assert [(t.compensation, t.stage) for t in found] == [
        ("iso_flops", "annealed"), ("iso_flops", "stable"), ("none", "annealed"), ("none", "stable"),
    ]  # fmt: skip
    for one in found:
        assert [level.level for level in one.levels] == ["coupled", "0.0005", "0"]
        assert (one.axis, one.n_cells) == ("table_weight_decay", 4)
        for level in one.levels:
            _, delta_m, delta_n = EXACT[level.level]
            assert level.delta_m.value == pytest.approx(delta_m, abs=1e-12)
            assert level.delta_n.value == pytest.approx(delta_n, abs=1e-12)
            assert level.difference.value == pytest.approx(delta_m - delta_n, abs=1e-12)
            assert level.delta_m.low == pytest.approx(delta_m, abs=1e-12), (
                "what seeds share is no noise of a slope"
            )
        none = one.levels[2]
        assert none.difference_change.value == pytest.approx(0.008 - 0.003, abs=1e-12)
        assert one.levels[0].loss_change is one.levels[0].difference_change is None


def test_intervals_hold_the_truth_at_their_nominal_rate() -> None:
    hits = []
    for seed in range(200):
        one = trainer_choices(study(EXACT, noise=0.02, seed=seed), stage="annealed")[0]
        for level in one.levels:
            hits.append(
                level.difference.low <= EXACT[level.level][1] - EXACT[level.level][2] <= level.difference.high
            )
    assert np.mean(hits) == pytest.approx(0.95, abs=0.03)


def test_the_recommendation_is_the_least_loss_and_says_what_cannot_be_told_from_it() -> None:
    said = recommendation(trainer_choices(study(EXACT)))
    assert said[0].startswith(
        "Recommended: table_weight_decay = coupled, of least annealed loss at 1,000,000 tokens"
    )
    assert said[0].endswith("; 0.0005 by 0.0100, 0 by 0.0150 nats above it.")
    assert said[1].endswith("is the same over all table_weight_decay: supported at coupled, 0.0005, 0.")
    noisy = recommendation(trainer_choices(study(EXACT, noise=0.2)))[0]
    assert "cannot be told from it" in noisy
    flipped = {"a": (3.0, 0.02, 0.01), "b": (3.0, 0.01, 0.02)}
    assert "hangs on it" in recommendation(trainer_choices(study(flipped)))[1]


def test_documents_add_what_they_disagree_about() -> None:
    table = study(EXACT, seeds=2)
    rng = np.random.default_rng(5)
    tokens = rng.integers(100, 1000, 60)
    rows, nats = [], {}
    for run_id, loss, stage in zip(table["run_id"], table["loss"], table["stage"], strict=True):
        if stage == "annealed":
            nats[run_id] = (loss + 0.05 * rng.standard_normal(60)) * tokens
            rows += [
                {"run_id": run_id, "budget": 1_000_000, "stage": stage, "document": f"{i:02}", "n_tokens": int(t),
                 "nats": float(x), "nats_ema": float(x)}
                for i, (t, x) in enumerate(zip(tokens, nats[run_id], strict=True))
            ]  # fmt: skip
    one = trainer_choices(table, stage="annealed", documents=pa.Table.from_pylist(rows))[0]
    octaves = {"m": np.log2(12), "n": np.log2(16)}
    for level in one.levels:
        d = np.zeros(60)
        for m, n in CORNERS:
            mean = np.mean([nats[f"iso_flops{s}{level.level}{m}{n}"] for s in (0, 1)], 0)
            d += mean / 2 * ((-1 if m == 96 else 1) / octaves["m"] - (-1 if n == 256 else 1) / octaves["n"])
        assert level.documents == pytest.approx(NORMAL_95 * difference_error(d, tokens.astype(float)))


def test_a_single_cell_has_losses_and_no_slopes() -> None:
    table = study({"paper": (3.0, 0.0, 0.0), "matched": (2.9, 0.0, 0.0)})
    keep = (table["top_m"] == 8) & (table["sparse_params"] == WIDTH * 64**2)
    one = trainer_choices({name: column[keep] for name, column in table.items()})[0]
    assert [level.delta_m for level in one.levels] == [None, None]
    assert one.levels[0].level == "matched"
    assert one.levels[1].loss_change.value == pytest.approx(0.1)
    assert len(recommendation((one,))) == 1


def test_what_cannot_be_answered_is_said() -> None:
    table = study({"coupled": (3.0, 0.0, 0.0)})
    with pytest.raises(UserError, match="there is none"):
        trainer_choices(table)
    lost = study(EXACT)
    lost["loss"][(lost["top_m"] == 8) & (lost["sparse_params"] == WIDTH * 64**2)] = np.nan
    with pytest.raises(UserError, match="no seed has every cell"):
        trainer_choices(lost)
    assert not mean_estimate(np.array([1.0])).has_interval
    assert dataclasses.is_dataclass(trainer_choices(study(EXACT))[0])
