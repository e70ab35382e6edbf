"""The precision of what rounding could decide: scores, rotations, losses."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """``x`` as fp32; float64 stays, so that a model in float64 is a reference for one in fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
