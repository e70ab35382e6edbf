"""Architectures side by side: differences, intervals and their coverage on simulated tables."""

import numpy as np
import pytest

from umscale.errors import UserError
from umscale.questions.architectures import compare_architectures
from umscale_cli.runs import open_store

TRUE = {"dense": 2.0, "moe-2of16": 1.9, "ultramem_v2": 1.85}


def simulated(
    rng: np.random.Generator, n_seeds: int = 3, noise: float | dict[str, float] = 0.02
) -> dict[str, np.ndarray]:
    rows = []
    for seed in range(n_seeds):
        block = rng.normal(0, 0.05)  # what a seed does to all runs alike
        for name, loss in TRUE.items():
            for stage, extra in (("stable", 0.1), ("annealed", 0.0)):
                measured = (
                    loss + extra + block + rng.normal(0, noise[name] if isinstance(noise, dict) else noise)
                )
                rows.append((name, float(seed), stage, 1e6, measured))
    names = ("architecture", "seed", "stage", "budget", "loss")
    table = {n: np.array([r[i] for r in rows], dtype=object if n in ("architecture", "stage") else float)
             for i, n in enumerate(names)}  # fmt: skip
    table["bits_per_byte"] = table["loss"] / np.log(2)
    table["compensation"] = np.array(["none"] * len(rows), dtype=object)
    return table


def test_best_first_and_differences_within_seeds():
    found = compare_architectures(simulated(np.random.default_rng(0), noise=1e-9))
    assert [t.stage for t in found] == ["annealed", "stable"]
    rows = found[0].rows
    assert [r.name for r in rows] == ["ultramem_v2", "moe-2of16", "dense"]
    assert rows[0].difference.value == pytest.approx(-0.15, abs=1e-6)
    assert rows[-1].difference is None


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(400):
        rows = {r.name: r for r in compare_architectures(simulated(rng), stage="annealed")[0].rows}
        for name in ("moe-2of16", "ultramem_v2"):
            d = rows[name].difference
            hits.append(d.low <= TRUE[name] - TRUE["dense"] <= d.high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.025)


def test_intervals_cover_where_some_have_learned_a_task_and_others_have_not():
    rng, noise = np.random.default_rng(5), {"dense": 0.001, "moe-2of16": 3.0, "ultramem_v2": 0.02}
    hits, pooled = {"moe-2of16": [], "ultramem_v2": []}, 0
    for _ in range(300):
        found = compare_architectures(simulated(rng, 4, noise), stage="annealed")[0]
        rows = {r.name: r for r in found.rows}
        pooled += found.equal_spread
        for name, hit in hits.items():
            d = rows[name].difference
            hit.append(d.low <= TRUE[name] - TRUE["dense"] <= d.high)
    assert pooled < 30
    assert all(np.mean(hit) > 0.91 for hit in hits.values())
    same = [compare_architectures(simulated(rng, 4))[0].equal_spread for _ in range(300)]
    assert np.mean(same) > 0.95


def test_one_seed_gives_no_interval():
    found = compare_architectures(simulated(np.random.default_rng(2), n_seeds=1))[0]
    assert found.freedom == 0
    assert not found.rows[0].difference.has_interval


def test_baseline_must_exist():
    with pytest.raises(UserError, match="did you mean 'dense'"):
        compare_architectures(simulated(np.random.default_rng(3)), baseline="dens")


def test_an_architecture_may_have_a_baseline_of_its_own():
    table = simulated(np.random.default_rng(4), noise=1e-9)
    own = {"ultramem_v2": "moe-2of16"}
    table["baseline"] = np.array([own.get(name) for name in table["architecture"]], dtype=object)
    rows = {r.name: r for r in compare_architectures(table, stage="annealed")[0].rows}
    assert rows["ultramem_v2"].baseline == "moe-2of16"
    assert rows["moe-2of16"].baseline == "dense"
    assert rows["ultramem_v2"].difference.value == pytest.approx(-0.05, abs=1e-6)
    assert rows["moe-2of16"].difference.value == pytest.approx(-0.1, abs=1e-6)


def test_bytes_of_all_weights_stand_beside_those_of_sparse_rows():
    """35 times fewer sparse bytes are 1.04 times fewer of all weights at batch 1, and 4.0 times at batch 256."""
    table = open_store("parity").columns()
    [found] = [t for t in compare_architectures(table) if t.stage == "annealed"]
    costs = {row.name: row.costs for row in found.rows}
    mixture, memory = (
        next(c for name, c in costs.items() if name.startswith(k)) for k in ("moe-8", "ultramem_v2")
    )
    assert mixture["access_bytes_b1"] / memory["access_bytes_b1"] == pytest.approx(35, abs=0.5)
    assert mixture["weight_bytes_b1"] / memory["weight_bytes_b1"] == pytest.approx(1.04, abs=0.005)
    assert mixture["weight_bytes_b256"] / memory["weight_bytes_b256"] == pytest.approx(4.0, abs=0.05)
    dense = costs["dense"]
    assert dense["weight_bytes_b1"] == 2 * (dense["total_params"] + 257 * 64)
