"""What the choice of validation documents adds to an interval: the formula against redrawn documents."""

import numpy as np
import pyarrow as pa
import pytest

from umscale.results.documents import NORMAL_95, difference_error, document_choice


def losses(rng: np.random.Generator, n_documents: int, cells: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Summed losses of cells on documents that disagree about them, ``[cells, K]``, and the documents' tokens."""
    tokens = rng.integers(100, 1300, n_documents).astype(float)
    rate = 2.0 + 0.3 * rng.standard_normal(n_documents) + 0.02 * rng.standard_normal((cells, n_documents))
    return rate * tokens, tokens


def test_the_error_is_how_far_other_documents_lie() -> None:
    rng = np.random.default_rng(0)
    found, means = [], []
    for _ in range(2000):
        nats, tokens = losses(rng, 60)
        difference = nats[0] - nats[1]
        means.append(difference.sum() / tokens.sum())
        found.append(difference_error(difference, tokens))
    assert np.mean(found) == pytest.approx(np.std(means), rel=0.05)
    assert difference_error(0.01 * tokens, tokens) == pytest.approx(0, abs=1e-15), "all documents agree"


def store(cells: np.ndarray, tokens: np.ndarray) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """A study of two seeds a cell, with the losses ``[cells, K]`` in both."""
    rows, runs = [], []
    for c, nats in enumerate(cells):
        for seed in (0, 1):
            run_id = f"{c}{seed}"
            runs.append((run_id, f"top_m={c} seed={seed}"))
            for budget in (100, 200):
                rows += [
                    {
                        "run_id": run_id, "budget": budget, "stage": "annealed", "document": f"{i:04}",
                        "n_tokens": int(tokens[i]), "nats": float(nats[i]), "nats_ema": float(nats[i]),
                    }
                    for i in range(len(tokens))
                ]  # fmt: skip
    table = {
        "run_id": np.array([r for r, _ in runs], object),
        "label": np.array([label for _, label in runs], object),
        "budget": np.full(len(runs), 200.0),
    }
    return pa.Table.from_pylist(rows), table


def test_a_study_says_how_many_documents_it_has_and_what_their_choice_adds() -> None:
    nats, tokens = losses(np.random.default_rng(1), 60, cells=4)
    found = document_choice(*store(nats, tokens))
    assert found is not None
    assert (found.n_documents, found.n_tokens, found.n_sets) == (60, int(tokens.sum()), 1)
    assert found.largest == pytest.approx(tokens.max() / tokens.sum())
    pairs = [difference_error(nats[a] - nats[b], tokens) for a in range(4) for b in range(a)]
    assert found.half_width == pytest.approx(NORMAL_95 * float(np.median(pairs)))
    alone = document_choice(*store(nats[:1], tokens))
    assert alone is not None
    assert alone.half_width is None
    assert document_choice(pa.Table.from_pylist([]), {"run_id": np.array([], object)}) is None
