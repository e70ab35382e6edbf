"""`key_select` against scores and `select` in float64, outputs and every gradient."""

import pytest
import torch

from tests.numerics import assert_close, seeded
from umscale_kernels import available_backends, key_scores, key_select, native, select

# T, heads, n, r, c, k, m, m1
SHAPES = [
    (1, 1, 5, 2, 1, 3, 4, 2),
    (70, 1, 16, 2, 2, 16, 8, 8),
    (600, 2, 12, 2, 2, 32, 20, 6),
    (33, 1, 40, 1, 1, 64, 7, 5),
    (20, 2, 9, 3, 2, 20, 9, 3),
    (300, 1, 7, 4, 3, 128, 5, 7),
]


def operands(shape, dtype=torch.float32):
    T, heads, n, r, c, k, _, _ = shape
    g = seeded(sum(shape))
    sizes = ((T, 2 * r, k), (heads, 2 * r, n, k), (heads, r), (heads, r), (heads, c, r, r))
    return [torch.randn(size, generator=g).to(dtype) for size in sizes]


def outputs(function, inputs, shape):
    leaves = [x.detach().clone().requires_grad_(i not in (2, 3)) for i, x in enumerate(inputs)]
    picked = function(*leaves, shape[6], shape[7])
    cotangent = torch.linspace(-1, 1, picked.s.numel(), dtype=picked.s.dtype).view(picked.s.shape).cos()
    trained = [leaves[i] for i in (0, 1, 4)]
    return picked, torch.autograd.grad(picked.s, trained, cotangent)


def two_steps(q, keys, u, v, cores, top_m, preselect_m):
    scores = key_scores(q.transpose(0, 1).expand(keys.shape[0], -1, -1, -1), keys)
    scores = scores.view(keys.shape[0], 2, -1, q.shape[0], keys.shape[2])
    return select(scores, u, v, cores, top_m, preselect_m)


@pytest.mark.parametrize("backend", [b for b in available_backends("select") if b != "triton"])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_scores_and_selection(backend, shape):
    got, grads = outputs(lambda *x: key_select(*x, backend=backend)[0], operands(shape), shape)
    want, wanted = outputs(two_steps, operands(shape, torch.float64), shape)
    assert torch.equal(got.row, want.row)
    assert torch.equal(got.col, want.col)
    assert_close(got.s, want.s)
    for name, grad, reference in zip(("q", "keys", "cores"), grads, wanted, strict=True):
        assert_close(grad, reference, name=name)


@pytest.mark.skipif(native.library("key_select") is None, reason="no C++ compiler")
def test_any_number_of_threads_gives_the_same_bits():
    shape, found = (1500, 2, 12, 2, 2, 32, 8, 6), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(outputs(lambda *x: key_select(*x)[0], operands(shape), shape)[1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


@pytest.mark.skipif(native.library("key_select") is None, reason="no C++ compiler")
def test_rounds_operands_under_autocast_and_compiles():
    shape = (70, 1, 16, 2, 2, 16, 8, 8)
    inputs = operands(shape)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = key_select(*inputs, 8, 8)
    inputs[0], inputs[1] = (x.bfloat16().float() for x in inputs[:2])
    want, scores = key_select(*inputs, 8, 8)
    assert scores is None
    assert torch.equal(got.s, want.s)
    assert got.s.dtype == torch.float32
    compiled = torch.compile(lambda *x: key_select(*x, 8, 8)[0].s, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), want.s)
