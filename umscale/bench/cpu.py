"""``umscale bench kernels --device cpu``: the layer and its parts on a processor, fp32."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from umscale.bench.baselines import (
    ADAMW,
    BAG,
    GATHER,
    OFFICIAL,
    bag_lookup,
    fused_adamw,
    gather_lookup,
    official_order,
    product_flops,
    products,
    readable,
    with_embedding_bag,
)
from umscale.bench.measured import Part, Row, Target
from umscale.bench.setting import LAYER_SHAPE, Setting, lookup_operands, random_rows, ultramem_v2_layer
from umscale.bench.timing import TIME_COLUMNS, Step, cpu_clock, interleaved, matmul_step, normal, passes, rows
from umscale.training.optimiser import distinct_rows
from umscale_kernels import available_backends, lookup, table_adamw

LIMIT = "limit at measured rates"
_TARGETS = {"umscale aten": 0.50, "umscale aten, torch.compile": 0.45, "umscale native": 0.30}


def layer_part(setting: Setting, rounds: int, compiled: bool) -> Part:
    """The whole layer, forward and with all gradients, beside other ways to compute it and what bounds it."""
    layer, memory = ultramem_v2_layer(setting, "cpu")
    assert layer.pre_values is not None
    plain: dict[str, Callable[..., Tensor]] = {
        OFFICIAL: official_order,
        GATHER: readable,
        BAG: with_embedding_bag,
    }
    calls = {name: layer.call(partial(function, memory)) for name, function in plain.items()}
    for backend in backends("lookup"):
        calls[f"umscale {backend}"] = layer.call(layer.on(backend))
    if compiled:
        calls["umscale aten, torch.compile"] = layer.call(torch.compile(layer.on("aten")))
    variants = {name: passes(call, layer.inputs) for name, call in calls.items()}

    pooled = normal((setting.tokens, setting.d_value), "pooled", "cpu").requires_grad_()
    linears = (memory.query, memory.pre_value, memory.out)
    weights = [memory.keys, *(x.weight for x in linears if x is not None)]
    products_only = "matrix products only"
    variants[products_only] = passes(partial(products, memory, layer.y, pooled), [layer.y, pooled, *weights])
    matmul, matmul_flops = matmul_step("cpu", torch.float32, 512)
    gather, row_bytes = _row_gather(setting, setting.n_keys**2)
    probes = {"matmul": {"forward": matmul}, "gather": {"forward": gather}}
    timings = interleaved(variants | probes, rounds, cpu_clock)
    matmul_rate = matmul_flops / timings.pop("matmul")["forward"].seconds
    gather_rate = row_bytes / timings.pop("gather")["forward"].seconds

    found = rows(timings, OFFICIAL)
    for row in found:
        if row.name in _TARGETS and setting.is_default:
            row.targets.append(Target(figure="train_ratio", bound=_TARGETS[row.name]))
    # Training multiplies the products by 3, reads the rows twice and writes a dense gradient.
    flops = product_flops(memory, setting.tokens)
    table_bytes = layer.values.nbytes + layer.pre_values.nbytes
    least = {
        "forward": flops / matmul_rate + row_bytes / gather_rate,
        "train": 3 * flops / matmul_rate + (2 * row_bytes + table_bytes) / gather_rate,
    }
    reference = found[0].figures
    limit = {f"{key}_seconds": seconds for key, seconds in least.items()}
    limit |= {f"{key}_ratio": seconds / reference[f"{key}_seconds"] for key, seconds in least.items()}
    found.append(Row(name=LIMIT, figures=limit))
    return Part(
        name="layer",
        title="Whole layer",
        shape=setting.shape(*LAYER_SHAPE),
        columns=TIME_COLUMNS,
        rows=found,
        reference=OFFICIAL,
        notes=[
            f"{LIMIT}: {flops / 1e9:.2f} GFLOP of matrix products forward at {matmul_rate / 1e9:.0f} GFLOP/s, "
            f"{row_bytes / 1e6:.1f} MB of rows at {gather_rate / 1e9:.1f} GB/s; no selection"
        ],
    )


def lookup_part(setting: Setting, rounds: int) -> Part:
    """The lookup alone with dense table gradients; also as a fraction of the measured rate of row gathers."""
    inputs, rows_TxM = lookup_operands(setting, setting.n_keys**2, "cpu")
    p, s, *tables = inputs
    calls: dict[str, Callable[[], Tensor]] = {
        GATHER: lambda: gather_lookup(p, s, rows_TxM, *tables),
        BAG: lambda: bag_lookup(p, s, rows_TxM, *tables),
    }
    for backend in backends("lookup"):
        calls[f"umscale {backend}"] = partial(lookup, p, s, rows_TxM, *tables, backend=backend)
    gather, row_bytes = _row_gather(setting, setting.n_keys**2)
    variants = {name: passes(call, inputs) for name, call in calls.items()}
    timings = interleaved(variants | {"gather": {"forward": gather}}, rounds, cpu_clock)
    rate = row_bytes / timings.pop("gather")["forward"].seconds
    found = rows(timings, GATHER)
    for row in found:
        row.figures["forward_gather_fraction"] = row_bytes / rate / row.figures["forward_seconds"]
    return Part(
        name="lookup",
        title="Lookup",
        shape=setting.shape("tokens", "top_m", "d_pre_value", "d_value") | {"table_rows": setting.n_keys**2},
        columns=TIME_COLUMNS | {"forward_gather_fraction": "fwd, of gather rate"},
        rows=found,
        reference=GATHER,
        notes=[
            f"gather rate: {rate / 1e9:.1f} GB/s of whole rows at random, summed by F.embedding_bag without weights"
        ],
    )


def tables_part(setting: Setting, n_rows: int, rounds: int, memory_kept: bool = False) -> Part:
    """Lookup forward, backward and AdamW on tables of ``n_rows``: dense PyTorch, dense here, row-sparse here.

    All update the same tables and moments in turn. ``memory_kept`` says that ``keep_freed_memory`` was called.
    """
    inputs, rows_TxM = lookup_operands(setting, n_rows, "cpu")
    p, s, *tables = inputs
    first, second = ([torch.zeros_like(x) for x in tables] for _ in range(2))
    steps = [torch.zeros(()) for _ in tables]
    d_o = torch.ones(setting.tokens, setting.d_value)

    def dense_torch() -> None:
        o = gather_lookup(p, s, rows_TxM, *tables)
        grads = torch.autograd.grad(o, inputs, d_o)[2:]
        fused_adamw(tables, grads, first, second, steps)

    def ours(backend: str, sparse: bool) -> Step:
        def step() -> None:
            o = lookup(p, s, rows_TxM, *tables, sparse_grad=sparse, backend=backend)
            grads = torch.autograd.grad(o, inputs, d_o)[2:]
            for table, grad, m, v in zip(tables, grads, first, second, strict=True):
                whole = distinct_rows(grad) if sparse else grad
                table_adamw(table, whole, m, v, 1, backend=backend, **ADAMW)

        return step

    reference = "plain PyTorch, dense + fused AdamW"
    variants: dict[str, dict[str, Step]] = {reference: {"step": dense_torch}}
    for backend in backends("lookup", "table_adamw"):
        variants[f"umscale {backend}, dense"] = {"step": ours(backend, sparse=False)}
        variants[f"umscale {backend}, row-sparse"] = {"step": ours(backend, sparse=True)}
    found = rows(interleaved(variants, rounds, cpu_clock), reference)
    for row in found:
        if setting.is_default and not memory_kept and n_rows >= 1_000_000 and row.name.endswith("row-sparse"):
            row.targets.append(Target(figure="step_ratio", bound=0.2))
    return Part(
        name="tables",
        title=f"Lookup and table update, {n_rows:,} rows" + (", freed memory kept" if memory_kept else ""),
        shape=setting.shape("tokens", "top_m", "d_pre_value", "d_value") | {"table_rows": n_rows},
        columns={"step_seconds": "fwd+bwd+AdamW", "step_spread": "spread", "step_ratio": "ratio"},
        rows=found,
        reference=reference,
        notes=[
            "row-sparse is lazy AdamW: moments and decay of rows that no token read stand still",
            "the process keeps freed memory for the next step, as training here does: dense gradients gain most"
            if memory_kept
            else "the allocator as PyTorch finds it, which returns a dense gradient to the system after every step",
        ],
    )


def backends(*ops: str) -> list[str]:
    """Backends of all ``ops`` that are meant for a processor, slowest first."""
    return [b for b in ("aten", "native") if all(b in available_backends(op) for op in ops)]


def _row_gather(setting: Setting, n_rows: int) -> tuple[Step, int]:
    """Read ``T m`` random rows as wide as a pre-value and a value, summing each token's; the step and its bytes."""
    table = normal((n_rows, setting.d_pre_value + setting.d_value), "rows", "cpu")
    index = random_rows(setting, n_rows, "cpu")
    n_bytes = index.numel() * table.shape[1] * table.element_size()
    return lambda: F.embedding_bag(index, table, mode="sum"), n_bytes
