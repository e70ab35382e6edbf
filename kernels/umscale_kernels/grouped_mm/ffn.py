"""`expert_ffn`: the mixture of SwiGLU experts for a given routing; dropless.

    y_t = sum_j g_tj O_e swiglu(U_e x_t)          e = experts[t, j]

Assignments are sorted by expert. A token's outputs are summed in a fixed order (on a CPU by expert, on a GPU by j), so
equal inputs give equal bits, forward and backward. The gate multiplies the inner activation, which is narrower than
the output; its gradient then needs no expert's output.

On a CPU one operator walks over chunks of experts with buffers that stay in the cache: of all [T k, .] intermediates
only U_e x_t is stored, for the backward pass. On a GPU the same is `grouped_mm` between a gather and a sum.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from umscale_kernels.grouped_mm import autocast, group_sizes, grouped_mm, products
from umscale_kernels.swiglu import swiglu, swiglu_backward

_CHUNK_BYTES = 4 << 20
"""Size of one buffer of the CPU path; it has three."""


def expert_ffn(x: Tensor, gates: Tensor, experts: Tensor, gate_up: Tensor, out: Tensor) -> Tensor:
    """[T, h], the dtype of `x`; gradients reach all but `experts`. Follows `torch.autocast`.

    `x` [T, h]; `gates` [T, k], weights of the chosen experts; `experts` [T, k] int64 in [0, E), any number of tokens
    each; `gate_up` [E, 2d, h], gate above up; `out` [E, h, d]. Raises ValueError on shapes that do not fit together.
    """
    (tokens, h), (n_experts, inner, _) = x.shape, gate_up.shape
    wanted = {
        "gates": (gates, (tokens, experts.shape[-1])),
        "experts": (experts, (tokens, gates.shape[-1])),
        "gate_up": (gate_up, (n_experts, inner // 2 * 2, h)),
        "out": (out, (n_experts, h, inner // 2)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)} for x {list(x.shape)}, not {list(tensor.shape)}")
    x, gate_up, out = autocast(x, gate_up, out)
    path = composed if x.device.type == "cuda" else in_chunks
    return path(x, gates, experts, gate_up, out)


def composed(x: Tensor, gates: Tensor, experts: Tensor, gate_up: Tensor, out: Tensor) -> Tensor:
    """`expert_ffn` from differentiable parts, for any device."""
    gate, order, offsets = _by_expert(gates, experts, gate_up.shape[0])
    token = order // experts.shape[1]
    place = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    place = place.view(experts.shape)
    active = swiglu(grouped_mm(_Spread.apply(x, token, place), gate_up, offsets))
    weighted = (active * gate.unsqueeze(1)).to(active.dtype)
    y: Tensor = _Collect.apply(grouped_mm(weighted, out, offsets), token, place)
    return y


def in_chunks(x: Tensor, gates: Tensor, experts: Tensor, gate_up: Tensor, out: Tensor) -> Tensor:
    """`expert_ffn` in one operator, for a CPU."""
    gate, order, offsets = _by_expert(gates, experts, gate_up.shape[0])
    y: Tensor = _expert_ffn(x, gate, order // experts.shape[1], offsets, gate_up, out)[0]
    return y


def _by_expert(gates: Tensor, experts: Tensor, n_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort assignments: gates [T k], their places in [T, k], and int32 ends of the experts [E]."""
    ordered, order = experts.reshape(-1).sort(stable=True)
    ids = torch.arange(n_experts, device=experts.device)
    return (
        gates.reshape(-1).gather(0, order),
        order,
        torch.searchsorted(ordered, ids, right=True, out_int32=True),
    )


class _Spread(torch.autograd.Function):
    """Rows of `x` by `token` [T k]; the gradient sums each token's rows, `place` [T, k], without atomics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, d_rows: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return F.embedding_bag(place, d_rows.contiguous(), mode="sum"), None, None


class _Collect(torch.autograd.Function):
    """The transpose of `_Spread`: each token's sum of its `rows`, without a [T, k, h] buffer."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(token)
        return F.embedding_bag(place, rows, mode="sum")

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (token,) = ctx.saved_tensors
        return dy.index_select(0, token), None, None


class _Chunk(NamedTuple):
    experts: slice
    rows: slice
    sizes: list[int]
    """Rows of each of the experts."""


def _chunks(sizes: list[int], row_bytes: int) -> Iterator[_Chunk]:
    """Consecutive experts, all of them, in groups whose rows just fill a buffer."""
    first, start = 0, 0
    for e, end in enumerate(accumulate(sizes), start=1):
        if (end - start) * row_bytes >= _CHUNK_BYTES or e == len(sizes):
            yield _Chunk(slice(first, e), slice(start, end), sizes[first:e])
            first, start = e, end


def _plan(offsets: Tensor, x: Tensor) -> tuple[list[_Chunk], list[int], int]:
    """The chunks, the rows of each expert, and those of the largest chunk."""
    sizes = group_sizes(offsets)
    chunks = list(_chunks(sizes, x.shape[1] * x.element_size()))
    return chunks, sizes, max(sum(chunk.sizes) for chunk in chunks)


@torch.library.custom_op("umscale::expert_ffn", mutates_args=())
def _expert_ffn(
    x: Tensor, gate: Tensor, token: Tensor, offsets: Tensor, gate_up: Tensor, out: Tensor
) -> tuple[Tensor, Tensor]:
    """(y [T, h], U_e x_t [T k, 2d])."""
    chunks, sizes, most = _plan(offsets, x)
    y = torch.zeros_like(x, dtype=_sum_dtype(x))
    inner = x.new_empty(token.shape[0], gate_up.shape[1])
    buffer = x.new_empty(most, x.shape[1])
    U, O = gate_up.mT.unbind(), out.mT.unbind()
    inners = inner.split(sizes)
    for experts, rows, counts in chunks:
        wide = buffer[: rows.stop - rows.start]
        parts = wide.split(counts)
        torch.index_select(x, 0, token[rows], out=wide)
        products(parts, U[experts], inners[experts])
        active = swiglu(inner[rows]).mul_(gate[rows, None])
        products(active.split(counts), O[experts], parts)
        y.index_add_(0, token[rows], wide.to(y.dtype))
    return y.to(x.dtype), inner


@_expert_ffn.register_fake
def _(
    x: Tensor, gate: Tensor, token: Tensor, offsets: Tensor, gate_up: Tensor, out: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(token.shape[0], gate_up.shape[1])


@torch.library.custom_op("umscale::expert_ffn_backward", mutates_args=())
def _expert_ffn_backward(
    dy: Tensor,
    x: Tensor,
    gate: Tensor,
    token: Tensor,
    offsets: Tensor,
    gate_up: Tensor,
    out: Tensor,
    inner: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, d_gate, d_gate_up, d_out), each as its operand."""
    chunks, _, most = _plan(offsets, x)
    dx = torch.zeros_like(x, dtype=_sum_dtype(x))
    d_gate, d_gate_up, d_out = torch.empty_like(gate), torch.empty_like(gate_up), torch.empty_like(out)
    wide_buffer, narrow_buffer = x.new_empty(most, x.shape[1]), x.new_empty(most, out.shape[2])
    U, O, dU, dO = (w.unbind() for w in (gate_up, out, d_gate_up, d_out))
    for experts, rows, counts in chunks:
        n = rows.stop - rows.start
        wide, d_active = wide_buffer[:n], narrow_buffer[:n]
        parts = wide.split(counts)
        weight = gate[rows, None]
        torch.index_select(dy, 0, token[rows], out=wide)
        products(parts, O[experts], d_active.split(counts))
        active = swiglu(inner[rows])
        d_gate[rows] = (d_active * active).sum(1, dtype=gate.dtype)
        active.mul_(weight)
        # Still dy's rows in `wide`; the gate weighs the narrower factor, which is cheaper.
        products((part.t() for part in parts), active.split(counts), dO[experts])
        d_inner = swiglu_backward(d_active.mul_(weight), inner[rows])
        torch.index_select(x, 0, token[rows], out=wide)
        d_inners = d_inner.split(counts)
        products((d.t() for d in d_inners), parts, dU[experts])
        products(d_inners, U[experts], parts)  # over x's rows, which nothing needs any more
        dx.index_add_(0, token[rows], wide.to(dx.dtype))
    return dx.to(x.dtype), d_gate, d_gate_up, d_out


@_expert_ffn_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    gate: Tensor,
    token: Tensor,
    offsets: Tensor,
    gate_up: Tensor,
    out: Tensor,
    inner: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gate), torch.empty_like(gate_up), torch.empty_like(out)


def _sum_dtype(x: Tensor) -> torch.dtype:
    """Of the sums over a token's experts."""
    return torch.promote_types(x.dtype, torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, d_inner: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    dx, d_gate, d_gate_up, d_out = _expert_ffn_backward(dy, *ctx.saved_tensors)
    return dx, d_gate, None, None, d_gate_up, d_out


_expert_ffn.register_autograd(_backward, setup_context=_setup)
