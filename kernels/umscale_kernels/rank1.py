"""The best rank-1 approximation of the summed Tucker cores, which scores rows and columns separately.

    sum_q C_q = sum_k l_k u_k v_k^T,  l_1 >= l_2 >= ...        u = u_1, v = v_1

UltraMemV2 (arXiv 2508.18756), section 3.2. The joint sign of (u, v) decides which quadrant is searched, so it
must not flip between steps.
"""

import torch
from torch import Tensor


@torch.no_grad()
def rank1_vectors(cores: Tensor, previous: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Leading singular vectors u, v [.., r] of the sum of `cores` [.., c, r, r]; unit length, no gradient.

    r = 2 in closed form (no LAPACK call, no host synchronisation), other ranks by SVD; formed in float32 or better,
    returned in that dtype. The sign is the one nearer in L1 to `previous`; without it, or when both are as near
    (zero buffers), the one whose entries sum to a non-negative number.
    """
    total = cores.to(torch.promote_types(cores.dtype, torch.float32)).sum(-3)
    u, v = _closed_form(total) if total.shape[-1] == 2 else _svd(total)
    flip = (u + v).sum(-1) < 0
    if previous is not None:
        u_old, v_old = (x.to(total.dtype) for x in previous)
        near = (u - u_old).abs().sum(-1) + (v - v_old).abs().sum(-1)
        far = (u + u_old).abs().sum(-1) + (v + v_old).abs().sum(-1)
        flip = torch.where(near == far, flip, far < near)
    sign = torch.where(flip, -1.0, 1.0).to(total.dtype).unsqueeze(-1)
    return u * sign, v * sign


def _closed_form(total: Tensor) -> tuple[Tensor, Tensor]:
    """r = 2: u is the leading eigenvector of total total^T, at half the angle of its traceless part."""
    a, b, c, d = (total[..., i, j] for i in range(2) for j in range(2))
    angle = 0.5 * torch.atan2(2 * (a * c + b * d), a * a + b * b - c * c - d * d)
    u = torch.stack((angle.cos(), angle.sin()), -1)
    v = torch.einsum("...ab,...a->...b", total, u)
    length = v.norm(dim=-1, keepdim=True)
    first = torch.zeros_like(v)
    first[..., 0] = 1.0
    return u, torch.where(length > 0, v / length, first)  # a zero matrix has no direction of its own


def _svd(total: Tensor) -> tuple[Tensor, Tensor]:
    left, _, right_h = torch.linalg.svd(total)
    return left[..., :, 0], right_h[..., 0, :]
