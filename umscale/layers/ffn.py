"""SwiGLU feed-forward layer (arXiv 2002.05202)."""

from torch import Tensor, nn

from umscale_kernels import swiglu


class SwiGlu(nn.Module):
    """``out(silu(gate(x)) * up(x))``, ``[..., h] -> [..., h]``; gate and up are one product."""

    def __init__(self, d_model: int, d_ffn: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * d_ffn, bias=False)
        self.out = nn.Linear(d_ffn, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(swiglu(self.gate_up(x)))
