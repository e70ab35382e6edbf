"""Your own study: write it in Python, see what it costs, train it, ask it. Run: python examples/own_study.py

Four tiny proxies on the embedded corpus, half a minute on one core; a second run finds them in the store.
"""

import sys
from pathlib import Path

import umscale

STUDY = {
    "name": "own",
    "axes": {"top_m": [2, 8], "n_keys": [16, 32], "seed": [0, 1]},
    "model": {
        "d_model": 32,
        "n_layers": 1,
        "n_heads": 2,
        "ffn": {"d_ffn": 48},
        "memory": {"n_keys": 16, "top_m": 2, "d_key": 8, "d_pre_value": 8, "d_value": 8},
    },
    "data": {"corpus": "kjv", "seq_len": 64, "validation_tokens": 4000},
    "train": {
        "budgets": [16_000], "batch_size": 4, "warmup_tokens": 1_000, "precision": "float32", "keep": "final",
    },
}  # fmt: skip


def main(store: Path) -> None:
    """Plan, train, ask, and let the largest model write."""
    study = umscale.study(STUDY)
    for cell in umscale.cells(study):
        assert cell.solved is not None
        print(f"{cell.label:28} {cell.solved.cost.sparse_params:>9,} sparse parameters")
    results = umscale.sweep(study, store)
    print(results.verdict())
    frame = results.to_arrow()
    print(f"{frame.num_rows} records; losses {min(frame['loss'].to_pylist()):.3f} and up")
    model = umscale.load_model(results, results.models()[0])
    print(repr(model.generate("In the beginning ", n_tokens=40)))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "umscale-runs/own"))
