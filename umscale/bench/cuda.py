"""``umscale bench kernels --device cuda``: the layer and its kernels on a GPU, at published shapes.

Matrix products in bf16 under autocast. Tables are read in bf16: our layer has fp32 tables with bf16 copies, as
``table_copy = "bfloat16"`` trains, and writes fp32 gradients; plain PyTorch gets bf16 tables as parameters, pays for
no cast and writes bf16 gradients.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from umscale.bench.baselines import (
    ADAMW,
    BAG,
    GATHER,
    bag_lookup,
    fused_adamw,
    gather_lookup,
    readable,
    with_embedding_bag,
)
from umscale.bench.measured import Part, Target
from umscale.bench.selection import select_part
from umscale.bench.setting import LAYER_SHAPE, Setting, lookup_operands, random_rows, ultramem_v2_layer
from umscale.bench.timing import TIME_COLUMNS, Clock, Step, interleaved, normal, passes, peak_bytes, rows
from umscale_kernels import LookupTraffic, lookup, lookup_traffic_bytes, table_adamw

_LARGE = (1 << 23,)  # 6 and 19 GB in bf16 at the widths below: no cache helps
SETTINGS = {
    "227M": Setting(
        tokens=8192,
        d_model=768,
        n_keys=360,
        top_m=32,
        d_key=192,
        d_pre_value=192,
        d_value=192,
        table_rows=_LARGE,
    ),
    "1B": Setting(
        tokens=8192,
        d_model=2048,
        n_keys=528,
        top_m=128,
        d_key=512,
        d_pre_value=384,
        d_value=768,
        table_rows=_LARGE,
    ),
}
"""One layer of UltraMemV2-227M/1.2B and of UltraMemV2-1B/7B (arXiv 2508.18756, Table 10)."""
_LOOKUP_SHAPE = ("tokens", "top_m", "d_pre_value", "d_value")


def measure(
    name: str,
    label: str,
    setting: Setting,
    device: str,
    rounds: int,
    clock: Clock,
    compiled: bool,
    copy_rate: float,
) -> list[Part]:
    """Return the tables of part ``name`` at a shape called ``label``; ``copy_rate`` in bytes per second."""
    if name == "lookup":
        sizes = (setting.n_keys**2, *setting.table_rows)
        return [lookup_part(label, setting, n, device, rounds, clock, copy_rate) for n in sizes]
    if name == "backward":
        return [backward_part(label, setting, device, rounds, clock, copy_rate)]
    if name == "select":
        title = f"Selection, {label} layer"
        backends = ("aten", "triton")
        return [
            select_part(
                setting, backends, rounds, clock, device, torch.bfloat16, target="triton", title=title
            )
        ]
    if name == "layer":
        return [layer_part(label, setting, device, rounds, clock, compiled)]
    return [adamw_part(label, setting, device, rounds, clock, copy_rate)]


def lookup_part(
    label: str, setting: Setting, n_rows: int, device: str, rounds: int, clock: Clock, copy_rate: float
) -> Part:
    """Forward lookups of uniformly random rows, as a fraction of the copy bandwidth."""
    (p, s, *tables), picked = lookup_operands(setting, n_rows, device, torch.bfloat16)
    calls: dict[str, Callable[[], Tensor]] = {
        BAG: lambda: bag_lookup(p, s, picked, *tables),
        GATHER: lambda: gather_lookup(p, s, picked, *tables),
    }
    for backend in ("aten", "triton"):
        calls[f"umscale {backend}"] = partial(lookup, p, s, picked, *tables, backend=backend)
    found = rows(interleaved({name: {"forward": call} for name, call in calls.items()}, rounds, clock), BAG)
    for row in found:
        row.figures["forward_bytes"] = _traffic(setting, n_rows, picked).forward
        row.figures["forward_copy_fraction"] = (
            row.figures["forward_bytes"] / row.figures["forward_seconds"] / copy_rate
        )
    found[-1].targets.append(Target(figure="forward_copy_fraction", bound=0.70, at_least=True))
    return Part(
        name="lookup",
        title=f"Lookup forward, {label} layer",
        shape=setting.shape(*_LOOKUP_SHAPE) | {"table_rows": n_rows},
        columns={
            "forward_seconds": "fwd",
            "forward_spread": "spread",
            "forward_ratio": "ratio",
            "forward_bytes": "bytes",
            "forward_copy_fraction": "of copy bandwidth",
        },
        rows=found,
        reference=BAG,
        notes=[
            f"tables of {sum(x.nbytes for x in tables) / 1e6:,.0f} MB",
            "bytes: what a fused forward moves, each row once per lookup",
        ],
    )


def backward_part(
    label: str, setting: Setting, device: str, rounds: int, clock: Clock, copy_rate: float
) -> Part:
    """Backward of the lookup alone: sorted by row, row-sparse, and with atomics; time and bytes."""
    n_rows = setting.n_keys**2
    (p, s, *tables), picked = lookup_operands(setting, n_rows, device)
    read = (tables[0].detach().bfloat16(), tables[1].detach().bfloat16())
    inputs, d_o = [p, s, *tables], normal((setting.tokens, setting.d_value), "d_o", device)

    def backward(mode: Literal["sorted", "atomic"], sparse: bool = False) -> Step:
        o = lookup(p, s, picked, *tables, read=read, sparse_grad=sparse, backward=mode, backend="triton")
        return lambda: torch.autograd.grad(o, inputs, d_o, retain_graph=True)

    reference, ours = "atomic", "sorted by row"
    steps = {
        reference: backward("atomic"),
        ours: backward("sorted"),
        "sorted by row, row-sparse": backward("sorted", sparse=True),
    }
    found = rows(
        interleaved({name: {"backward": step} for name, step in steps.items()}, rounds, clock), reference
    )
    dense, sparse = (_traffic(setting, n_rows, picked, sparse_grad=x) for x in (False, True))
    moved = (dense.backward_atomic, dense.backward_sorted, sparse.backward_sorted)
    for row, n_bytes in zip(found, moved, strict=True):
        row.figures["backward_bytes"] = n_bytes
        row.figures["bytes_ratio"] = n_bytes / dense.backward_atomic
        row.figures["backward_copy_fraction"] = n_bytes / row.figures["backward_seconds"] / copy_rate
        if row.name == ours and label == "1B":
            row.targets.append(Target(figure="bytes_ratio", bound=0.25))
    return Part(
        name="backward",
        title=f"Lookup backward, {label} layer",
        shape=setting.shape(*_LOOKUP_SHAPE) | {"table_rows": n_rows},
        columns={
            "backward_seconds": "bwd",
            "backward_spread": "spread",
            "backward_ratio": "ratio",
            "backward_bytes": "bytes",
            "bytes_ratio": "bytes ratio",
            "backward_copy_fraction": "of copy bandwidth",
        },
        rows=found,
        reference=reference,
        notes=[
            "fp32 gradients of fp32 tables that are read through bf16 copies; bytes are counted, not measured"
        ],
    )


def layer_part(label: str, setting: Setting, device: str, rounds: int, clock: Clock, compiled: bool) -> Part:
    """The whole layer, forward and with all gradients, and the memory it takes beyond its table gradients."""
    layer, memory = ultramem_v2_layer(setting, device)
    copies = [x.detach().bfloat16().requires_grad_() for x in layer.tables]
    plain_inputs = [layer.y, *memory.parameters(), *copies]

    def plain(function: Callable[..., Tensor]) -> dict[str, Step]:
        call = layer.call(lambda y, *_: function(memory, y, *copies), autocast=True)
        return passes(call, plain_inputs)

    def ours(module: Callable[..., Tensor]) -> dict[str, Step]:
        return passes(layer.call(partial(module, read=tuple(copies)), autocast=True), layer.inputs)

    variants = {BAG: plain(with_embedding_bag), GATHER: plain(readable)}
    variants |= {f"umscale {backend}": ours(layer.on(backend)) for backend in ("aten", "triton")}
    by_compiler = f"{GATHER}, torch.compile"
    if compiled:
        variants[by_compiler] = plain(torch.compile(readable))
        variants["umscale triton, torch.compile"] = ours(torch.compile(layer.on("triton")))
    found = rows(interleaved(variants, rounds, clock), BAG)
    columns = dict(TIME_COLUMNS)
    by_name = {row.name: row for row in found}
    triton = by_name["umscale triton"]
    triton.targets.append(Target(figure="train_ratio", bound=1 / 2))
    if compiled:
        columns["train_compiled_ratio"] = "ratio to compiled gather"
        for row in found:
            compiled_seconds = by_name[by_compiler].figures["train_seconds"]
            row.figures["train_compiled_ratio"] = row.figures["train_seconds"] / compiled_seconds
        triton.targets.append(Target(figure="train_compiled_ratio", bound=1 / 1.5))
    rows_bytes = 2 * setting.tokens * setting.top_m * (setting.d_pre_value + setting.d_value)
    if device == "cuda":
        columns |= {"peak_bytes": "peak memory", "peak_rows_ratio": "peak / [T, m, D]"}
        for name, row in by_name.items():
            tables = layer.tables if name.startswith("umscale") else copies
            peak = peak_bytes(variants[name]["train"]) - sum(x.nbytes for x in tables)
            row.figures |= {"peak_bytes": peak, "peak_rows_ratio": peak / rows_bytes}
        if label == "1B":  # at 227M the query projections alone are half as large
            triton.targets.append(Target(figure="peak_rows_ratio", bound=1.0))
    return Part(
        name="layer",
        title=f"Whole layer, {label}",
        shape=setting.shape(*LAYER_SHAPE),
        columns=columns,
        rows=found,
        reference=BAG,
        notes=[
            f"peak memory of fwd+bwd beyond the table gradients; [T, m, D] in bf16 is {rows_bytes / 1e6:,.0f} MB, "
            f"[T, m, m] in fp32 {4 * setting.tokens * setting.top_m**2 / 1e6:,.0f} MB"
        ],
    )


def adamw_part(
    label: str, setting: Setting, device: str, rounds: int, clock: Clock, copy_rate: float
) -> Part:
    """AdamW on the layer's tables with a bf16 copy written beside."""
    n_rows, width = setting.n_keys**2, setting.d_pre_value + setting.d_value
    param, grad = (normal((n_rows, width), name, device) for name in ("param", "grad"))
    first, second = torch.zeros_like(param), torch.zeros_like(param)
    row_second, shadow, count = param.new_zeros(n_rows), param.bfloat16(), torch.zeros((), device=device)
    distinct = random_rows(setting, n_rows, device).unique()
    sparse = torch.sparse_coo_tensor(
        distinct[None], grad[distinct], grad.shape, is_coalesced=True, check_invariants=False
    )

    def torch_adamw() -> None:
        fused_adamw([param], [grad], [first], [second], [count])
        shadow.copy_(param)

    def ours(gradient: Tensor, moment: Tensor) -> Step:
        return lambda: table_adamw(
            param, gradient, first, moment, 1, shadow=shadow, backend="triton", **ADAMW
        )

    reference = "torch fused AdamW + cast"
    steps: dict[str, tuple[Step, int]] = {  # and bytes by row
        reference: (torch_adamw, (28 + 6) * width * n_rows),
        "umscale triton, dense": (ours(grad, second), 30 * width * n_rows),
        "umscale triton, second moment by row": (ours(grad, row_second), (22 * width + 8) * n_rows),
        f"umscale triton, {distinct.numel():,} rows": (
            ours(sparse, second),
            (30 * width + 8) * distinct.numel(),
        ),
    }
    timings = interleaved({name: {"step": step} for name, (step, _) in steps.items()}, rounds, clock)
    found = rows(timings, reference)
    for row in found:
        row.figures["step_bytes"] = n_bytes = steps[row.name][1]
        row.figures["step_copy_fraction"] = n_bytes / row.figures["step_seconds"] / copy_rate
    return Part(
        name="adamw",
        title=f"Table update, {label} layer",
        shape={"table_rows": n_rows, "width": width},
        columns={
            "step_seconds": "step",
            "step_spread": "spread",
            "step_ratio": "ratio",
            "step_bytes": "bytes",
            "step_copy_fraction": "of copy bandwidth",
        },
        rows=found,
        reference=reference,
    )


def _traffic(setting: Setting, n_rows: int, picked: Tensor, sparse_grad: bool = False) -> LookupTraffic:
    return lookup_traffic_bytes(
        setting.tokens,
        setting.top_m,
        n_rows,
        int(picked.unique().numel()),
        setting.d_pre_value,
        setting.d_value,
        n_cores=setting.memory.n_cores,
        index_bytes=picked.element_size(),
        sparse_grad=sparse_grad,
    )
