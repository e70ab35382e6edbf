"""Seals: what was predicted stays what it was, and only records that came later are scored."""

import json

import numpy as np
import pytest
from scipy.stats import binom

from tests.laws.tables import study_table
from umscale.errors import UserError
from umscale.laws.fit import fit_law
from umscale.laws.uncertainty import bootstrap
from umscale.questions.predict import points_of, predict
from umscale.questions.seal import Part, binomial_range, canonical, check, read_seal, records_of, seal
from umscale.results.table import where

BUDGETS = (1_000_000, 2_000_000, 4_000_000, 8_000_000)


def study(seed=0):
    return study_table(seed, budgets=BUDGETS, seeds=3, block_noise=0.0)


def rows(table, keep):
    return {name: column[keep] for name, column in table.items()}


def sealed(table, path):
    """A seal of 8M tokens from records of up to 4M, written and read."""
    early = rows(table, table["tokens"] < 5e6)
    fit = fit_law(early, "trend", stage="annealed")
    found = predict(bootstrap(fit, n_draws=500), points_of(fit, {"D": [8e6]}))
    part = where(early, stage="annealed")
    records = tuple(records_of(part, found.columns.values(), "loss"))
    tree = seal([Part(predictions=found, records=records)], source={"study": "s"}, sealed="then", version="0")
    path.write_text(json.dumps(tree, indent=1))
    return read_seal(path)


def test_only_records_that_came_later_are_scored(tmp_path):
    table = study()
    kept = sealed(table, tmp_path / "seal.json")
    waiting = check(kept, [rows(table, table["tokens"] < 5e6)])
    assert (waiting.predictions, waiting.waiting, waiting.scores) == (12, 12, ())
    found = check(kept, [table])
    (one,) = found.scores
    assert (found.records_sealed, found.records_missing, found.waiting) == (108, 0, 0)
    assert (one.records, one.runs, one.part) == (36, 36, "annealed, D 8e+06")
    assert one.calibrated == (31, 36)
    assert 31 <= one.held <= 36
    assert one.score == pytest.approx(one.calibrated_score[0], rel=0.6)


def test_held_counts_losses_inside_their_interval(tmp_path):
    table = study()
    kept = sealed(table, tmp_path / "seal.json")
    late = (table["tokens"] > 5e6) & (table["stage"] == "annealed")
    shifted = {**table, "loss": np.where(late, table["loss"] + 1.0, table["loss"])}
    (one,) = check(kept, [shifted]).scores
    assert one.held == 0
    assert one.off == pytest.approx(check(kept, [table]).scores[0].off + 1.0)
    assert one.score > 30  # forty times what lies outside


def test_changed_records_and_edited_seals_are_noticed(tmp_path):
    table = study()
    path = tmp_path / "seal.json"
    kept = sealed(table, path)
    moved = {**table, "loss": np.where(np.arange(len(table["loss"])) == 1, 9.0, table["loss"])}
    found = check(kept, [moved])
    assert found.records_missing == 1
    assert "gone or have changed" in found.statements[0]
    tree = json.loads(path.read_text())
    tree["parts"][0]["points"][0]["run"]["high"] += 0.01
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="changed after it was sealed"):
        read_seal(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="not what"):
        read_seal(path)


def test_the_hash_of_records_can_be_made_again_by_hand(tmp_path):
    import hashlib

    table = {
        "run_id": np.array(["b", "a"], dtype=object),
        "n": np.array([1e9, 2.0]),
        "loss": np.array([2.5, np.nan]),
    }
    lines = records_of(table, ["n"], "loss")
    assert lines == ['{"loss":2.5,"n":1000000000.0,"run_id":"b"}', '{"loss":null,"n":2.0,"run_id":"a"}']
    assert canonical({"b": 1, "a": [0.1]}) == '{"a":[0.1],"b":1}'
    kept = sealed(study(), tmp_path / "seal.json")
    early = where(rows(study(), study()["tokens"] < 5e6), stage="annealed")
    words = "".join(
        f"{line}\n" for line in sorted(records_of(early, kept["parts"][0]["columns"].values(), "loss"))
    )
    assert kept["parts"][0]["records"]["sha256"] == hashlib.sha256(words.encode()).hexdigest()


@pytest.mark.parametrize("n", [1, 4, 24, 200])
def test_binomial_range_is_the_central_95_percent(n):
    assert binomial_range(n, 0.95) == tuple(int(k) for k in binom.interval(0.95, n, 0.95))
