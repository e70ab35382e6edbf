"""How the verdict moves with tokens: on tables of a known law, and on the shipped records."""

import numpy as np
import pytest

from umscale.errors import UserError
from umscale.questions.question import Asked, find
from umscale.questions.token_trend import run_slopes, token_trend, token_trends
from umscale_cli.runs import open_store

M, N_S, TOKENS = (8, 96), (4e5, 6.4e6), (4e5, 1e6, 2.5e6)


def table(
    trend: float, *, difference: float = 0.01, noise: float = 0.002, seeds: int = 6, seed: int = 0
) -> dict:
    """Runs at four corners whose δ_m − δ_N is ``difference`` at 1M tokens and changes by ``trend`` a doubling."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list] = {
        name: [] for name in ("run_id", "seed", "top_m", "sparse_params", "tokens", "loss", "stage")
    }
    for s in range(seeds):
        block = rng.normal(0, 0.01)
        for m in M:
            for n in N_S:
                run = rng.normal(0, noise)
                for tokens in TOKENS:
                    octaves = np.log2(tokens / 1e6)
                    density = (0.02 + 0.5 * trend * octaves) * np.log2(m / 28)
                    size = (0.02 - difference - 0.5 * trend * octaves) * np.log2(n / 1.6e6)
                    loss = 2.0 + block + run - 0.1 * octaves - density - size + rng.normal(0, noise / 4)
                    for name, value in (
                        ("run_id", f"{s}-{m}-{n}"), ("seed", s), ("top_m", m), ("sparse_params", n),
                        ("tokens", tokens), ("loss", loss), ("stage", "annealed"),
                    ):  # fmt: skip
                        rows[name].append(value)
    return {name: np.array(values) for name, values in rows.items()}


@pytest.mark.parametrize("trend", [-0.006, 0.0, 0.006])
def test_a_trend_is_found_where_there_is_one(trend: float) -> None:
    found = token_trend(table(trend), stage="annealed")
    assert found.difference.low <= trend <= found.difference.high
    assert found.paired.value == pytest.approx(trend, abs=0.002)
    assert found.direction == {-0.006: "falls", 0.0: "", 0.006: "rises"}[trend]


def test_the_turn_is_where_the_difference_is_zero() -> None:
    found = token_trend(table(-0.006, difference=0.018), stage="annealed")
    assert found.turn.reached == "beyond"
    assert found.turn.tokens.low < 8e6 < found.turn.tokens.high  # three doublings of 1M
    assert found.turn.tokens.value == pytest.approx(8e6, rel=0.5)
    assert found.turn.per_sparse_param.value == pytest.approx(found.turn.tokens.value / 1.6e6, rel=0.01)
    assert found.turn.octaves_beyond == pytest.approx(np.log2(found.turn.tokens.value / 2.5e6))
    assert found.answer == "supported"


def test_a_turn_within_the_budgets_depends_on_training_length() -> None:
    found = token_trend(table(-0.02, difference=0.004, noise=0.001), stage="annealed")
    assert found.turn.reached == "within"
    assert found.answer == "depends on training length"
    assert found.verdicts[0].answer == "supported"
    assert found.verdicts[-1].answer == "contradicted"


def test_no_turn_without_a_trend() -> None:
    found = token_trend(table(0.0), stage="annealed")
    assert found.turn.reached == "not reached"
    assert np.isnan(found.turn.tokens.value)


def test_intervals_of_the_trend_cover_it() -> None:
    """25 tables without a trend: 95% intervals miss it in few (five has a chance below 1%)."""
    missed = 0
    for seed in range(25):
        found = token_trend(table(0.0, seeds=4, seed=seed), stage="annealed").difference
        missed += not found.low <= 0 <= found.high
    assert missed < 5


def test_points_of_a_run_count_once() -> None:
    """A run's own offset is in none of its slopes: offsets ten times as large change no slope."""
    one, other = (run_slopes(table(0.0, noise=n, seed=3), "loss") for n in (1e-9, 1e-9))
    assert len(one["loss"]) == 24
    assert np.allclose(one["loss"], other["loss"])
    shifted = table(0.0, seed=3)
    offsets = {run: i / 10 for i, run in enumerate(dict.fromkeys(shifted["run_id"].tolist()))}
    moved = shifted | {"loss": shifted["loss"] + [offsets[r] for r in shifted["run_id"].tolist()]}
    assert np.allclose(run_slopes(shifted, "loss")["loss"], run_slopes(moved, "loss")["loss"])


def test_one_budget_has_no_trend() -> None:
    rows = table(0.0)
    one = {name: column[rows["tokens"] == 1e6] for name, column in rows.items()}
    with pytest.raises(UserError, match="two budgets"):
        token_trend(one, stage="annealed")


def test_the_shipped_records_of_version_2_fall_at_equal_flops() -> None:
    """As an independent recomputation from the records has it: -0.0052 ± 0.0030 per doubling, N_s +0.0038 ± 0.0018."""
    answers = token_trends(open_store("density_over_size").columns(), losses=("loss",))
    found = {(one.compensation, one.stage): one for one in answers}
    one = found["iso_flops", "annealed"]
    assert one.paired.value == pytest.approx(-0.0052, abs=1e-4)
    assert one.paired.high - one.paired.value == pytest.approx(0.0030, abs=1e-4)
    assert one.delta_n.value == pytest.approx(0.0038, abs=1e-4)
    assert one.direction == "falls"
    assert found["none", "annealed"].direction == ""


def test_words_name_trend_and_turn() -> None:
    words = find("token-trend").answer(table(-0.006, difference=0.018), Asked(losses=("loss",))).blocks()[0]
    assert "falls with tokens" in words.text
    assert "octaves outside the budgets" in words.text
    assert "a sparse parameter" in words.text
