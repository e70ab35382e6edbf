"""rms_norm and swiglu against float64, outputs and gradients, with and without the C++ path."""

import pytest
import torch
import torch.nn.functional as F

from tests.numerics import assert_close, seeded
from umscale_kernels import cross_entropy, native, rms_norm, swiglu

SHAPES = [(1, 2), (63, 60), (5, 7, 34), (300, 128), (2, 4)]


def both(function, reference, *inputs):
    """Outputs and gradients of `function` in float32 and of `reference` in float64."""
    results = []
    for f, dtype in ((function, torch.float32), (reference, torch.float64)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = f(*leaves)
        cotangent = torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape).sin()
        results.append((out.detach(), *torch.autograd.grad(out, leaves, cotangent)))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, floor=1.0)


@pytest.fixture(params=["native", "stock"])
def path(request, monkeypatch):
    if request.param == "stock":
        monkeypatch.setenv("UMSCALE_NATIVE", "0")
    elif native.library("rms_norm") is None:
        pytest.skip("no C++ compiler")


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape):
    x, weight = torch.randn(shape) * 3, torch.rand(shape[-1]) + 0.5
    both(
        lambda a, w: rms_norm(a, w, 1e-5),
        lambda a, w: a / (a.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w,
        x,
        weight,
    )


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_swiglu(shape, scale):
    def reference(a):
        gate, up = a.chunk(2, -1)
        return F.silu(gate) * up

    both(swiglu, reference, torch.randn(shape) * scale)


@pytest.mark.usefixtures("path")
def test_views_and_extremes():
    x = torch.randn(8, 6, 20).transpose(0, 1)
    assert_close(rms_norm(x, torch.ones(20), 1e-5), F.rms_norm(x, (20,), torch.ones(20), 1e-5))
    far = torch.tensor([[-1e4, 1e4, -200.0, 200.0, 1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(swiglu(far), torch.tensor([[0.0, 1e4, 0.0, 200.0]]))
    with pytest.raises(ValueError, match="must be even"):
        swiglu(torch.ones(2, 3))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_computed_in_float32(shape):
    """Inputs and outputs are rounded, nothing between; the gain stays float32."""
    x, weight = (torch.randn(shape) * 3).bfloat16(), torch.rand(shape[-1]) + 0.5
    for function, inputs in (
        (lambda a, w: rms_norm(a, w, 1e-5), (x, weight)),
        (lambda a, w: swiglu(a), (x, weight)),
    ):
        results = []
        for dtype in (torch.bfloat16, torch.float32):
            a, w = (t.detach().clone() for t in (inputs[0].to(dtype), inputs[1]))
            a.requires_grad_(), w.requires_grad_()
            out = function(a, w)
            assert out.dtype == dtype
            out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).sin().to(dtype))
            results.append([x for x in (out, a.grad, w.grad) if x is not None])
        for got, want in zip(*results, strict=True):
            assert_close(got, want, torch.bfloat16, floor=1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_take_the_stock_path(dtype):
    x = torch.randn(5, 8).to(dtype)
    assert rms_norm(x, torch.ones(8, dtype=dtype), 1e-5).dtype == dtype
    assert swiglu(x).dtype == dtype


def test_gradients_do_not_depend_on_threads():
    if native.library("rms_norm") is None:
        pytest.skip("no C++ compiler")
    x = torch.randn(1000, 48)
    grads = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        weight = torch.ones(48, requires_grad=True)
        rms_norm(x, weight, 1e-5).square().sum().backward()
        grads.append(weight.grad)
    torch.set_num_threads(1)
    assert torch.equal(*grads)


def test_registered_operators_pass_opcheck():
    if native.library("rms_norm") is None:
        pytest.skip("no C++ compiler")
    x, w, rstd = torch.randn(4, 8), torch.ones(8), torch.ones(4)
    ops = torch.ops.umscale
    calls = {
        ops.rms_norm: (x, w, 1e-5),
        ops.rms_norm_backward: (x, x, w, rstd),
        ops.swiglu: (x,),
        ops.swiglu_backward: (x[:, :4], x),
        ops.cross_entropy: (x, torch.tensor([0, 7, -1, 3])),
        ops.cross_entropy_backward: (rstd, x, torch.tensor([0, 7, -1, 3]), rstd),
        ops.attention: (torch.randn(2, 5, 24), w, w, torch.randn(5, 2, 2), None, 1e-5),
    }
    for op, inputs in calls.items():
        torch.library.opcheck(op.default, inputs)


def test_losses_ignore_hidden_targets_and_refuse_wrong_ones():
    logits, targets = torch.randn(3, 5, 33) * 4, torch.randint(33, (3, 5), generator=seeded(0))
    targets[1, 2:] = -1
    results = []
    for dtype in (torch.float32, torch.float64):
        x = logits.to(dtype).requires_grad_()
        loss = cross_entropy(x, targets)
        assert loss.dtype == dtype
        results.append((loss, *torch.autograd.grad((loss * torch.arange(5)).sum(), x)))
    for got, want in zip(*results, strict=True):
        assert_close(got, want)
    assert not results[0][0][1, 2:].any()
    assert not results[0][1][1, 2:].any()
    for wrong in (33, -2):
        with pytest.raises(IndexError):
            cross_entropy(logits, torch.full((3, 5), wrong))
