"""How often table rows are read."""

import torch
from torch import Tensor


def count_rows(rows: Tensor, n_rows: int) -> Tensor:
    """Lookups per table row: `rows` of any shape, integers in [0, n_rows) -> [n_rows] int64."""
    return torch.bincount(rows.reshape(-1), minlength=n_rows)
