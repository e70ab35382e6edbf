"""What 0.2.0 did needlessly, beside what is done now: shared tables, virtual blocks, many kept values.

The ways of before are written here with the same kernels, so that a ratio is about the work and not about the kernel.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from umscale.bench.measured import Part, Target
from umscale.bench.setting import Setting, lookup_operands
from umscale.bench.timing import TIME_COLUMNS, Clock, Step, interleaved, normal, passes, rows
from umscale.layers.tables import Tables
from umscale.model.decoder import Decoder
from umscale.spec import FfnSpec, MemorySpec, ModelSpec
from umscale_kernels import key_scores, lookup, rank1_vectors, select

MOST_OF_OWN = 1.3
"""Shared tables, and virtual blocks, may cost this many times what own tables, and one block, do."""
_LAYERS, _BLOCKS = 16, 4
_WIDE, _WIDE_KEYS = 768, 1024


def shared_part(setting: Setting, rounds: int, clock: Clock, device: str) -> Part:
    """Forward and backward of 16 memory layers that share tables, beside as many with tables of their own."""
    tokens = max(1, setting.tokens // 4)  # 16 layers of them
    kinds = {"own tables": ("none", 1), "ring of 2": ("ring", 2), "no_ring of 2": ("no_ring", 2)}
    kinds |= {"block of 2": ("block", 2), "ring of 4": ("ring", 4)}
    own = "own tables"
    variants: dict[str, dict[str, Step]] = {
        name: {"train": _layers_step(setting, tokens, *kind, device)} for name, kind in kinds.items()
    }
    before = "ring of 2, a gradient of all tables from each layer"
    variants[before] = {"train": _layers_step(setting, tokens, *kinds["ring of 2"], device, chained=False)}
    found = rows(interleaved(variants, rounds, clock), own)
    for row in found:
        if row.name.endswith(" of 2"):
            row.targets.append(Target(figure="train_ratio", bound=MOST_OF_OWN))
    return Part(
        name="shared",
        title=f"{_LAYERS} layers with shared tables",
        shape={"tokens": tokens}
        | setting.shape("d_model", "n_keys", "top_m", "d_key", "d_pre_value", "d_value"),
        columns={"train_seconds": "fwd+bwd", "train_spread": "spread", "train_ratio": "ratio"},
        rows=found,
        reference=own,
        notes=["a window of g tables has sqrt(g) times the keys a side: 1.41 times of two, 2 times of four"],
    )


def _layers_step(
    setting: Setting, tokens: int, sharing: str, window: int, device: str, chained: bool = True
) -> Step:
    memory = MemorySpec(
        n_keys=setting.n_keys,
        top_m=setting.top_m,
        d_key=setting.d_key,
        d_pre_value=setting.d_pre_value,
        d_value=setting.d_value,
        sharing=sharing,  # type: ignore[arg-type]  # one of its literals
        share_layers=window,
    )
    spec = ModelSpec(
        d_model=setting.d_model,
        n_layers=_LAYERS,
        n_heads=1,
        vocab_size=1,
        ffn=FfnSpec(d_ffn=1),
        memory=memory,
    )
    model = Decoder(spec, seed=0, max_seq_len=1).to(device)
    pool, y = model.tables, normal((tokens, setting.d_model), "input", device)
    assert pool is not None
    parameters = [p for m in (*model.memories, pool) for p in m.parameters()]

    def step() -> object:
        tables = pool.per_layer()
        if not chained:
            tables = [Tables(t.pre_values, t.values, t.read) for t in tables]
        x = torch.zeros_like(y)
        for module, own in zip(model.memories, tables, strict=True):
            x = x + module(y, *own)
        return torch.autograd.grad(x.sum(), parameters)

    return step


def blocks_part(setting: Setting, backends: Sequence[str], rounds: int, clock: Clock, device: str) -> Part:
    """A lookup whose virtual blocks are summed apart, as UltraMem's: of one gather, and of one a block."""
    (_, s, _, values), picked = lookup_operands(setting, setting.n_keys**2, device)
    blocks = picked % _BLOCKS

    def one(backend: str) -> Tensor:
        return lookup(None, s, picked, None, values, backend=backend)

    def together(backend: str) -> Tensor:
        return lookup(None, s, picked, None, values, blocks=blocks, n_blocks=_BLOCKS, backend=backend)

    def apart(backend: str) -> Tensor:
        masks = [(blocks == e).unsqueeze(-1).to(s.dtype) for e in range(_BLOCKS)]
        return torch.cat([lookup(None, s * mask, picked, None, values, backend=backend) for mask in masks], 1)

    calls: dict[str, Callable[[str], Tensor]] = {
        "one block": one,
        f"{_BLOCKS} blocks, one gather": together,
        f"{_BLOCKS} blocks, {_BLOCKS} gathers": apart,
    }
    reference = f"one block, {backends[-1]}"
    variants = {
        f"{name}, {backend}": passes(partial(call, backend), [s, values])
        for backend in backends
        for name, call in calls.items()
    }
    found = rows(interleaved(variants, rounds, clock), reference)
    for row in found:
        if row.name == f"{_BLOCKS} blocks, one gather, {backends[-1]}":
            row.targets.append(Target(figure="train_ratio", bound=MOST_OF_OWN))
    return Part(
        name="blocks",
        title="Lookup in virtual blocks, without pre-values",
        shape=setting.shape("tokens", "top_m", "d_value") | {"table_rows": setting.n_keys**2},
        columns=TIME_COLUMNS,
        rows=found,
        reference=reference,
    )


def wide_part(setting: Setting, backends: Sequence[str], rounds: int, clock: Clock, device: str) -> Part:
    """Selection at the paper's largest top_m: 128 candidates a side, and as many as are kept."""
    wide = MemorySpec(n_keys=_WIDE_KEYS, top_m=_WIDE)
    tokens, rank, candidates = min(setting.tokens, 64), wide.tucker_rank, wide.candidates
    q = normal((2, rank, tokens, 64), "q", device)
    raw = (q @ normal((2, rank, 64, _WIDE_KEYS), "keys", device)).requires_grad_()  # [2, r, T, n]
    cores = normal((wide.n_cores, rank, rank), "cores", device).abs().requires_grad_()
    u, v = rank1_vectors(cores)

    def call(m1: int, backend: str) -> Tensor:
        return select(raw, u, v, cores, _WIDE, m1, backend=backend).s

    before = f"{_WIDE} candidates, aten"
    variants = {
        f"{m1} candidates, {backend}": passes(partial(call, m1, backend), [raw, cores])
        for m1 in (_WIDE, candidates)
        for backend in backends
        if m1 == candidates or backend != "triton"
    }
    return Part(
        name="wide",
        title=f"Selection at top_m {_WIDE}",
        shape={"tokens": tokens, "n_keys": _WIDE_KEYS, "top_m": _WIDE},
        columns=TIME_COLUMNS,
        rows=rows(interleaved(variants, rounds, clock), before),
        reference=before,
        notes=[f"{before}: what a GPU ran, a token at a time, before candidates were capped"],
    )


def scores_part(setting: Setting, rounds: int, clock: Clock, device: str) -> Part:
    """Query-key scores under bf16 autocast: results in bf16, as autocast makes them, and in fp32."""
    q = normal((4, setting.tokens, setting.d_key), "q", device).requires_grad_()
    keys = normal((4, setting.n_keys, setting.d_key), "keys", device).requires_grad_()

    def in_autocast(product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return product(q, keys)

    def rounded(q: Tensor, keys: Tensor) -> Tensor:
        return torch.matmul(q, keys.transpose(-1, -2)).float()

    before = "bf16 result"
    calls = {before: rounded, "fp32 result": key_scores}
    variants = {name: passes(partial(in_autocast, call), [q, keys]) for name, call in calls.items()}
    return Part(
        name="scores",
        title="Query-key scores of bf16 operands",
        shape=setting.shape("tokens", "n_keys", "d_key"),
        columns=TIME_COLUMNS,
        rows=rows(interleaved(variants, rounds, clock), before),
        reference=before,
    )
