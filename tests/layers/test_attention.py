"""Attention: relative positions and a float64 rendering."""

import torch

from tests.numerics import assert_close
from umscale.layers.attention import Attention, rotary_table
from umscale_kernels.attention.aten import rotate


def test_rotation_depends_on_distance_alone():
    table = rotary_table(32, 8, 100.0)
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 32, 1, 8)
    q, k = rotate(q, table)[0, :, 0], rotate(k, table)[0, :, 0]  # [S, d]
    scores = q @ k.T
    for distance in (-7, 0, 5):
        diagonal = scores.diagonal(distance)
        assert_close(
            diagonal,
            diagonal[:1].expand_as(diagonal),
            floor=float(q.norm(dim=-1).max() * k.norm(dim=-1).max()),
        )
    assert_close(q.norm(dim=-1), q[:1].norm(dim=-1).expand(32))


def test_attention_matches_its_definition():
    B, S, h, heads = 2, 9, 24, 3
    module = Attention(h, heads)
    x, table = torch.randn(B, S, h), rotary_table(16, h // heads, 1e4)

    def rms(t):
        return t / (t.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    q, k, v = (x.double() @ module.qkv.weight.double().T).chunk(3, -1)
    angle = torch.atan2(table[..., 1], table[..., 0])[:S].double()  # [S, d/2]

    def turned(t):
        t = rms(t).view(B, S, heads, -1, 2)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.stack(
            (t[..., 0] * cos - t[..., 1] * sin, t[..., 0] * sin + t[..., 1] * cos), -1
        ).flatten(-2)

    scores = torch.einsum("bihd,bjhd->bhij", turned(q), turned(k)) / (h // heads) ** 0.5
    scores = scores.masked_fill(torch.ones(S, S).triu(1).bool(), -torch.inf)
    mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v.view(B, S, heads, -1)).flatten(-2)
    want = mixed @ module.out.weight.double().T
    assert_close(module(x, table), want)
