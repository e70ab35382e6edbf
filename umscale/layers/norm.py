"""RMSNorm as a module."""

import torch
from torch import Tensor, nn

from umscale_kernels import rms_norm

NORM_EPS = 1e-5


class RmsNorm(nn.Module):
    """``x / rms(x) * weight`` over the last axis, statistics in the input's precision (fp32 in this model)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, NORM_EPS)
