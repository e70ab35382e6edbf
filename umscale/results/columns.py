"""Which column of a results table each symbol of a formula stands for."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "N": "active_params",
        "N_s": "sparse_params",
        "D": "tokens",
        "m": "top_m",
        "rho": "density",
        "G": "granularity",
        "r": "memory_to_ffn",
        "experts": "n_experts",
        "C": "training_flops",
    }
)
"""Symbol of a formula → column of a results table, unless the caller maps it elsewhere."""
