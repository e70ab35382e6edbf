"""Your own architecture: a mixture of experts and memory that no shipped study has, beside dense and memory alone.

All three get the same FLOPs a token: the solver finds the width of each FFN. Run: python examples/own_architecture.py
Takes half a minute on one core.
"""

import sys
from pathlib import Path

import umscale

MEMORY = {"n_keys": 16, "top_m": 4, "d_key": 8, "d_pre_value": 8, "d_value": 8}
STUDY = {
    "name": "own_architecture",
    "question": "architectures",
    "compensation": ["iso_flops"],
    "tolerance": 0.2,  # of models this small, whose widths are coarse
    "axes": {"seed": [0, 1]},
    "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "ffn": {"d_ffn": 96}},
    "architectures": {
        "dense": {},
        "memory": {"model": {"memory": MEMORY}},
        "both": {
            "model": {"memory": MEMORY, "ffn": {"kind": "moe", "d_ffn": 24, "n_experts": 4, "top_k": 2}}
        },
    },
    "data": {"corpus": "kjv", "seq_len": 64, "validation_tokens": 4000},
    "train": {"budgets": [12_000], "batch_size": 4, "warmup_tokens": 1_000, "precision": "float32"},
}


def main(store: Path) -> None:
    """Solve, train, compare."""
    study = umscale.study(STUDY)
    for cell in umscale.cells(study):
        if cell.solved is None:
            raise SystemExit(f"{cell.label}: {cell.reason}")
        cost = cell.solved.cost
        print(
            f"{cell.label:32} {cost.flops_per_token:>9,.0f} FLOPs a token, {cost.total_params:>7,} parameters"
        )
    print(umscale.sweep(study, store).verdict())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "umscale-runs/own_architecture"))
