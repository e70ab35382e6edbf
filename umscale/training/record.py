"""What a record says of its run whatever came of it: sizes, costs and rates, which follow from the spec alone."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from umscale.accounting import cost
from umscale.model.scaling import learning_rates, optimizer_rates
from umscale.spec import RunSpec, to_dict
from umscale.store.schema import SPEC_COLUMNS

Row = dict[str, Any]


def spec_row(run: RunSpec) -> Row:
    """Return the columns of a record that follow from the spec alone, and beside them the budgets that it has."""
    model, memory = run.model, run.model.memory
    sizes = dataclasses.asdict(cost(model, run.data.seq_len))
    lr, value_lr = optimizer_rates(run)[0], learning_rates(run)[1]
    row: Row = {
        "run_id": run.run_id,
        "seed": run.seed,
        "architecture": model.architecture,
        "d_model": model.d_model,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "d_ffn": model.ffn.d_ffn,
        "vocab_size": model.vocab_size,
        "seq_len": run.data.seq_len,
        "batch_size": run.train.batch_size,
        "lr": lr,
        "value_lr": value_lr,
        "precision": run.train.precision,
        "corpus": Path(run.data.corpus).name,
        "data_hash": run.data.hash,
        "spec": json.dumps(to_dict(run), separators=(",", ":")),
    }
    if memory is not None:
        names = ("n_keys", "n_values", "top_m", "heads", "d_key", "d_pre_value", "d_value")
        row |= {name: getattr(memory, name) for name in names}
    if model.ffn.kind == "moe":
        row |= {"n_experts": model.ffn.n_experts, "top_k": model.ffn.top_k}
    row |= {name: value for name, value in sizes.items() if name in SPEC_COLUMNS}
    row["budgets"] = run.train.budgets
    return row
