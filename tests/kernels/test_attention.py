"""Every path of `attention` against float64, outputs and all gradients, with and without documents kept apart."""

import pytest
import torch

from tests.numerics import assert_close, seeded
from umscale_kernels import attention, available_backends, native

# B, S, heads, d
SHAPES = [(1, 1, 1, 2), (2, 37, 3, 6), (3, 64, 2, 16), (1, 130, 2, 32), (2, 33, 1, 40)]
needs_native = pytest.mark.skipif(native.library("attention") is None, reason="no C++ compiler")


def operands(shape, dtype=torch.float32):
    B, S, heads, d = shape
    g = seeded(sum(shape))
    qkv = torch.randn(B, S, 3 * heads * d, generator=g)
    gains = (1 + 0.3 * torch.randn(heads * d, generator=g) for _ in range(2))
    angle = torch.rand(S + 3, d // 2, generator=g) * 7
    turns = torch.stack((angle.cos(), angle.sin()), -1)
    return [x.to(dtype).requires_grad_(i < 3) for i, x in enumerate((qkv, *gains, turns))]


def starts(shape):
    """Several documents a sequence, other ones in each; the first may begin before the window."""
    B, S = shape[:2]
    begins = torch.rand(B, S, generator=seeded(5)) < 0.1
    begins[:, S // 2] = True
    return torch.where(begins, torch.arange(S), 0).cummax(1).values


def outputs(shape, start, dtype=torch.float32, backend="auto", autocast=False):
    inputs = operands(shape, dtype)
    qkv = inputs[0].bfloat16() if autocast else inputs[0]
    out = attention(qkv, *inputs[1:], start, backend=backend)
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).cos().view(out.shape)
    return out, *torch.autograd.grad(out, inputs[:3], cotangent.to(out.dtype))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["reference", "aten", pytest.param("native", marks=needs_native)])
def test_matches_float64(backend, shape, masked):
    start = starts(shape) if masked else None
    wanted = outputs(shape, start, torch.float64, "reference")
    for name, got, want in zip(
        ("out", "qkv", "q", "k"), outputs(shape, start, backend=backend), wanted, strict=True
    ):
        assert_close(got, want, floor=1.0 if shape[1] == 1 else 0.0, name=name)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["aten", pytest.param("native", marks=needs_native)])
def test_bfloat16_matches_float64(backend, shape, masked):
    start = starts(shape) if masked else None
    wanted = outputs(shape, start, torch.float64, "reference")
    got = outputs(shape, start, backend=backend, autocast=True)
    assert got[0].dtype == torch.bfloat16
    for name, one, want in zip(("out", "qkv", "q", "k"), got, wanted, strict=True):
        assert_close(one, want, torch.bfloat16, floor=1.0 if shape[1] == 1 else 0.0, name=name)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("backend", available_backends("attention"))
def test_nothing_before_a_document_is_read(backend, autocast):
    """Not merely little: the part before it may even be infinite."""
    shape, start = (1, 70, 2, 16), torch.zeros(1, 70, dtype=torch.int64)
    start[:, 41:] = 41
    outs = []
    for scale in (1.0, 100.0):
        qkv, *rest = (x.detach() for x in operands(shape))
        qkv[:, :41] *= scale
        outs.append(attention(qkv.bfloat16() if autocast else qkv, *rest, start, backend=backend)[:, 41:])
    assert torch.equal(*outs)


@needs_native
def test_any_number_of_threads_gives_the_same_bits():
    shape, found = (3, 130, 2, 32), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            found.append(outputs(shape, starts(shape)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_refuses_what_does_not_fit():
    qkv, q, k, turns = operands((2, 9, 2, 8))
    for wrong in ((qkv[..., :-1], q, k, turns), (qkv, q[1:], k, turns), (qkv, q, k, turns[:4])):
        with pytest.raises(ValueError, match="do not fit"):
            attention(*wrong)
    with pytest.raises(ValueError, match="start must be"):
        attention(qkv, q, k, turns, torch.zeros(2, 8, dtype=torch.int64))
