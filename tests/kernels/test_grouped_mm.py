"""grouped_mm and expert_ffn against float64 loops over rows and tokens: outputs and all gradients."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.numerics import TOLERANCE, assert_close, seeded
from umscale_kernels import expert_ffn, grouped_mm
from umscale_kernels.grouped_mm import ffn

module = importlib.import_module("umscale_kernels.grouped_mm")  # the package exports a function of this name

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

# Rows of each group, K, N.
GROUPS = [
    ([3, 0, 5, 1], 7, 5),
    ([0, 0, 4], 16, 24),
    ([9, 0], 8, 8),
    ([1], 1, 1),
    ([0, 0], 4, 6),
    ([2, 63, 0, 31, 4], 40, 16),
]
# T, h, E, k, d.
MIXTURES = [
    (1, 8, 4, 1, 4),
    (63, 12, 5, 2, 7),
    (40, 16, 8, 8, 6),
    (30, 24, 64, 8, 2),
    (17, 10, 3, 2, 16),
    (0, 8, 4, 2, 4),
]


def assert_all_close(got: list[Tensor], want: list[Tensor], dtype: torch.dtype) -> None:
    """Equal up to rounding, relative to the largest entry of all: a gate's gradient is a sum that may cancel."""
    largest = max(1.0, *(float(x.abs().max()) for x in want if x.numel()))
    for x, y in zip(got, want, strict=True):
        assert_close(x, y, dtype, floor=largest)


def grouped_problem(sizes: list[int], k: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, offsets and a cotangent of the output."""
    g = seeded(sum(sizes) * 31 + k)
    offsets = torch.tensor(sizes).cumsum(0)
    rows = sum(sizes)
    x, weight, dy = (torch.randn(s, generator=g) for s in ((rows, k), (len(sizes), n, k), (rows, n)))
    return x, weight, offsets, dy


def row_by_row(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    group = torch.searchsorted(offsets, torch.arange(x.shape[0]), right=True)
    rows = [weight[group[r]] @ x[r] for r in range(x.shape[0])]
    return torch.stack(rows) if rows else x.new_zeros(0, weight.shape[1]) + x.sum() + weight.sum()


def gradients(function: Callable[..., Tensor], inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """Output, and the gradient of every floating point input."""
    leaves = [t.detach().clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    y = function(*leaves)
    y.backward(cotangent.to(y))
    return [y.detach(), *(t.grad for t in leaves if t.grad is not None)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", GROUPS, ids=str)
def test_grouped_mm(sizes: tuple, dtype: torch.dtype, device: str) -> None:
    x, weight, offsets, dy = grouped_problem(*sizes)
    x, weight = x.to(dtype), weight.to(dtype)
    want = gradients(row_by_row, [x.double(), weight.double(), offsets], dy.to(dtype).double())
    for kind in (torch.int32, torch.int64):
        inputs = [x.to(device), weight.to(device), offsets.to(device, kind)]
        got = gradients(grouped_mm, inputs, dy.to(dtype))
        assert [t.dtype for t in got] == [dtype] * 3
        assert_all_close(got, want, dtype)


def test_operands_may_be_views() -> None:
    x, weight, offsets, dy = grouped_problem([3, 0, 5, 1], 6, 4)
    want = gradients(grouped_mm, [x, weight, offsets], dy)
    got = gradients(
        lambda a, w, o: grouped_mm(a.t(), w.mT, o), [x.t().contiguous(), weight.mT.contiguous(), offsets], dy
    )
    assert_all_close(got, [want[0], want[1].t(), want[2].mT], torch.float32)
    expanded = gradients(grouped_mm, [x, weight, offsets], torch.ones(()).expand(dy.shape))
    want = gradients(grouped_mm, [x, weight, offsets], torch.ones_like(dy))
    assert_all_close(expanded, want, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_call_of_the_grouped_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's grouped product also runs on a CPU, which checks layouts and offsets without a GPU."""
    x, weight, offsets, dy = grouped_problem([2, 63, 0, 31, 4], 40, 16)
    inputs = [x.to(dtype), weight.to(dtype), offsets]
    want = gradients(grouped_mm, inputs, dy)
    monkeypatch.setattr(module, "_has_kernel", lambda *_: True)
    for capability in ((9, 0), (10, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        got = gradients(grouped_mm, inputs, dy)
        assert_all_close(got, want, dtype)
        assert not got[2][2].any()


def test_grouped_mm_is_twice_differentiable() -> None:
    x, weight, offsets, _ = grouped_problem([2, 0, 3], 3, 2)
    operands = (x.double().requires_grad_(), weight.double().requires_grad_(), offsets)
    assert torch.autograd.gradcheck(grouped_mm, operands)
    assert torch.autograd.gradgradcheck(grouped_mm, operands)


def test_grouped_mm_follows_autocast() -> None:
    x, weight, offsets, dy = grouped_problem([3, 0, 5, 1], 16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, dx, dw = gradients(grouped_mm, [x, weight, offsets], dy)
        double = grouped_mm(x.double(), weight.double(), offsets)
    assert (y.dtype, dx.dtype, dw.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert double.dtype == torch.float64
    assert_close(y, row_by_row(x.double(), weight.double(), offsets), torch.bfloat16)


def test_operands_that_do_not_fit_are_refused() -> None:
    x, weight, offsets, _ = grouped_problem([3, 0, 5, 1], 7, 5)
    with pytest.raises(ValueError, match=r"must be \[R, K\]"):
        grouped_mm(x[:, :-1], weight, offsets)
    with pytest.raises(ValueError, match=r"must be \[R, K\]"):
        grouped_mm(x, weight, offsets[:-1])
    with pytest.raises(ValueError, match="one dtype"):
        grouped_mm(x.double(), weight, offsets)
    x, gates, experts, gate_up, out, _ = mixture((5, 4, 3, 2, 6))
    for operands, name in (
        ((x, gates[:, :1], experts, gate_up, out), "gates"),
        ((x, gates, experts[1:], gate_up, out), "experts"),
        ((x, gates, experts, gate_up[:, 1:], out), "gate_up"),
        ((x, gates, experts, gate_up, out[1:]), "out"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            expert_ffn(*operands)


def mixture(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Operands of expert_ffn with distinct experts per token, the last expert without tokens, and a cotangent."""
    tokens, h, n_experts, k, d = shape
    g = seeded(tokens * 31 + h)
    used = max(k, n_experts - 1)
    order = [torch.randperm(used, generator=g)[:k] for _ in range(tokens)]
    experts = torch.stack(order) if order else torch.zeros(0, k, dtype=torch.int64)
    shapes = ((tokens, h), (tokens, k), (n_experts, 2 * d, h), (n_experts, h, d), (tokens, h))
    x, gates, gate_up, out, dy = (torch.randn(s, generator=g) for s in shapes)
    return x, gates, experts, gate_up, out, dy


def token_by_token(x: Tensor, gates: Tensor, experts: Tensor, gate_up: Tensor, out: Tensor) -> Tensor:
    outputs = []
    for t in range(x.shape[0]):
        y = torch.zeros_like(x[t])
        for gate, e in zip(gates[t], experts[t].tolist(), strict=True):
            a, b = (gate_up[e] @ x[t]).chunk(2)
            y = y + gate * (out[e] @ (F.silu(a) * b))
        outputs.append(y)
    rest = 0 * (x.sum() + gates.sum() + gate_up.sum() + out.sum())  # reaches operands of no token
    return (torch.stack(outputs) if outputs else torch.zeros_like(x)) + rest


PATHS = {"in_chunks": ffn.in_chunks, "composed": ffn.composed}


@pytest.mark.parametrize("native", ["1", "0"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", MIXTURES, ids=str)
def test_expert_ffn(
    shape: tuple, dtype: torch.dtype, path: str, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UMSCALE_NATIVE", native)
    monkeypatch.setattr(ffn, "_CHUNK_BYTES", 1000)  # several chunks, of one expert and of more
    x, gates, experts, gate_up, out, dy = mixture(shape)
    x, gate_up, out, dy = (t.to(dtype) for t in (x, gate_up, out, dy))
    gates = gates.to(torch.promote_types(dtype, torch.float32))
    floats = [t.double() if t.is_floating_point() else t for t in (x, gates, experts, gate_up, out)]
    want = gradients(token_by_token, floats, dy.double())
    got = gradients(PATHS[path], [x, gates, experts, gate_up, out], dy)
    assert_all_close(got, want, dtype)
    assert [t.dtype for t in got] == [dtype, dtype, gates.dtype, dtype, dtype]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_expert_ffn_on_a_gpu(dtype: torch.dtype) -> None:
    *operands, dy = mixture((63, 32, 9, 4, 24))
    want = gradients(
        token_by_token, [t.double() if t.is_floating_point() else t for t in operands], dy.double()
    )
    x, gates, experts, gate_up, out = (t.cuda() for t in operands)
    got = gradients(expert_ffn, [x.to(dtype), gates, experts, gate_up.to(dtype), out.to(dtype)], dy)
    assert_all_close(got, want, dtype)


@pytest.mark.parametrize("path", PATHS)
def test_expert_ffn_gradcheck(path: str) -> None:
    *operands, _ = (t.double() if t.is_floating_point() else t for t in mixture((5, 4, 3, 2, 3)))
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in operands]
    assert torch.autograd.gradcheck(PATHS[path], leaves)


@pytest.mark.parametrize("path", PATHS)
def test_same_bits_every_time(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffn, "_CHUNK_BYTES", 4000)
    *operands, dy = mixture((300, 24, 8, 4, 16))
    first = gradients(PATHS[path], operands, dy)
    for _ in range(3):
        for a, b in zip(gradients(PATHS[path], operands, dy), first, strict=True):
            assert torch.equal(a, b)


def test_an_expert_may_be_chosen_twice() -> None:
    x, gates, experts, gate_up, out, dy = mixture((9, 8, 4, 2, 4))
    experts[:, 1] = experts[:, 0]
    for path in PATHS.values():
        both = gradients(path, [x, gates, experts, gate_up, out], dy)
        once = gradients(path, [x, gates.sum(1, keepdim=True), experts[:, :1], gate_up, out], dy)
        assert_close(both[0], once[0])


def test_no_buffer_of_every_assignment_at_full_width() -> None:
    """Nothing as large as [T k, h] is allocated when experts are narrow; the composed path shows the test can fail."""
    *operands, dy = mixture((2048, 256, 32, 8, 16))
    largest = {}
    for name, path in PATHS.items():
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            gradients(path, operands, dy)
        largest[name] = max(event.self_cpu_memory_usage for event in profile.events())
    full = 2048 * 8 * 256 * 4
    assert largest["in_chunks"] < full <= largest["composed"]


def test_registered_operators_pass_opcheck() -> None:
    x, weight, offsets, _ = grouped_problem([2, 0, 3], 4, 6)
    grouped = (x.requires_grad_(), weight.requires_grad_(), offsets.int())
    torch.library.opcheck(torch.ops.umscale.grouped_mm.default, grouped)
    x, gates, experts, gate_up, out, _ = mixture((6, 4, 3, 2, 4))
    flat, order = experts.view(-1).sort(stable=True)
    ends = torch.searchsorted(flat, torch.arange(3), right=True, out_int32=True)
    leaves = (x, gates.view(-1)[order], gate_up, out)
    a, b, c, d = (t.detach().requires_grad_() for t in leaves)
    torch.library.opcheck(torch.ops.umscale.expert_ffn.default, (a, b, order // 2, ends, c, d))


@pytest.mark.parametrize("path", PATHS)
def test_compiles_without_graph_breaks(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMSCALE_NATIVE", "0")  # the C++ swiglu is found by code that is not traced
    *operands, dy = mixture((20, 8, 4, 2, 6))
    compiled = torch.compile(PATHS[path], fullgraph=True, backend="aot_eager")
    assert_all_close(gradients(compiled, operands, dy), gradients(PATHS[path], operands, dy), torch.float32)
