"""``umscale bench train``: tokens per second of a training step, by variant."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from umscale.accounting import cost
from umscale.bench.baselines import plain_decoder_step
from umscale.bench.other_version import other_version
from umscale.bench.step_0_2_0 import as_released, release_step, release_update
from umscale.data.batches import TrainStream
from umscale.data.corpus import Corpus
from umscale.machine import keep_freed_memory, matmul_rate, processor_name, resolve_precision
from umscale.model.decoder import Decoder
from umscale.spec import FfnSpec, MemorySpec, ModelSpec, TrainSpec
from umscale.training.optimiser import clip_gradients, make_optimizer, set_rates

Step = Callable[[], object]

SHAPES: dict[str, tuple[ModelSpec, int]] = {
    "proxy": (
        ModelSpec(d_model=128, n_layers=4, n_heads=4, vocab_size=1024, ffn=FfnSpec(d_ffn=256)),
        16,
    ),
    "sweep": (ModelSpec(d_model=64, n_layers=2, n_heads=2, vocab_size=257, ffn=FfnSpec(d_ffn=128)), 8),
}
"""Backbones, and sequences a batch. ``sweep`` is that of the recorded studies."""
SEQ_LEN = 256
RELEASE = "step of 0.2.0"
NANO = "nanoGPT order, compiled"

# What the profiler calls the operations, by what they do for the model.
_GROUPS = (
    ("memory: selection", ("KeySelect", "umscale::select", "umscale_select")),
    ("memory: value lookup", ("Lookup", "umscale::lookup", "umscale_lookup")),
    ("attention", ("Attention", "flash_attention", "scaled_dot")),
    ("matrix products", ("aten::mm", "aten::bmm", "aten::addmm", "mkldnn")),
    ("norms and gates", ("rms_norm", "swiglu", "RmsNorm", "SwiGlu")),
    ("optimiser and clipping", ("_fused_adamw_", "table_adamw", "linalg_vector_norm", "_foreach", "AdamW")),
    ("loss", ("CrossEntropy", "log_softmax", "nll_loss")),
)


def shape_of(name: str, n_keys: int, top_m: int) -> tuple[ModelSpec, int]:
    """Return the model with memory of the shape ``name``, and its batch."""
    backbone, batch = SHAPES[name]
    memory = MemorySpec(n_keys=n_keys, top_m=top_m)
    if name == "sweep":
        memory = dataclasses.replace(
            memory, preselect_m=min(32, n_keys), d_key=16, d_pre_value=16, d_value=32
        )
    return dataclasses.replace(backbone, memory=memory), batch


def bench_train(
    rounds: int,
    threads: int,
    top_m: int,
    n_keys: int,
    *,
    shape: str = "proxy",
    precision: str = "auto",
    compiled: bool = True,
    beside: Path | None = None,
) -> dict[str, Any]:
    """Time a training step in variants, a step of each in turn; all train on the same random tokens.

    ``plain`` runs the readable reference kernels (gathers and full grids, as PyTorch code is usually written),
    ``aten`` stock PyTorch without anything of size [tokens, top_m, width], ``native`` the compiled kernels; ``dense``
    is the same backbone without memory layers. Beside them run the step of version 0.2.0 of either, and with
    ``compiled`` a dense model of nanoGPT's order under ``torch.compile``. ``beside`` is the source tree of another
    version, whose own step is then timed in a process of its own.

    Seconds are of processor time where there is one thread, and wall time otherwise.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    precision = resolve_precision(precision)
    spec, batch = shape_of(shape, n_keys, top_m)
    bare = dataclasses.replace(spec, memory=None)
    tokens = torch.randint(
        0, spec.vocab_size, (batch, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0)
    )
    steps, fastest = _steps(spec, bare, tokens, precision, compiled=compiled)
    references = {fastest: RELEASE, "dense": f"dense, {RELEASE}"}
    with ExitStack() as stack:
        if beside is not None:
            for name, one in ((fastest, spec), ("dense", bare)):
                other = stack.enter_context(other_version(beside, one, batch, SEQ_LEN, precision, threads))
                steps[f"{name}, {beside.name}"] = other
        times, rates = _interleaved(steps, rounds, precision, threads)
    return {
        "model": f"d_model {spec.d_model}, {spec.n_layers} layers, d_ffn {spec.ffn.d_ffn}, vocab {spec.vocab_size}, "
        f"n_keys {n_keys}, top_m {top_m}, batch {batch} x {SEQ_LEN}",
        "machine": processor_name(),
        "precision": precision,
        "threads": threads,
        "matmul_flops": statistics.median(rates),
        "flops_per_token": _flops(spec),
        "variants": _rows(times, statistics.median(rates), spec, bare, batch * SEQ_LEN),
        "ratios": {
            f"{name} over {of}": statistics.median(a / b for a, b in zip(times[of], times[name], strict=True))
            for name in (fastest, "dense")
            for of in times
            if (of.partition(",")[0] == name and of != name) or of == references[name]
        },
        "profile": _profile(steps[fastest]),
    }


def _steps(
    spec: ModelSpec, bare: ModelSpec, tokens: Tensor, precision: str, *, compiled: bool
) -> tuple[dict[str, Step], str]:
    """Every variant of the step, and the name of the fastest backend's."""
    from umscale_kernels import available_backends

    backends = [b for b in available_backends("lookup") if b not in ("reference", "triton")]
    steps: dict[str, Step] = {"plain": current_step(spec, tokens, precision, "reference")}
    steps |= {name: current_step(spec, tokens, precision, name) for name in backends}
    steps[RELEASE] = release_step(spec, tokens, precision)
    steps["dense"] = current_step(bare, tokens, precision)
    steps[f"dense, {RELEASE}"] = release_step(bare, tokens, precision)
    if compiled:
        steps[f"dense, {NANO}"] = plain_decoder_step(bare, tokens, precision)
    return steps, backends[-1]


def _flops(spec: ModelSpec) -> float:
    return 3 * cost(spec, SEQ_LEN).flops_per_token


def _interleaved(
    steps: dict[str, Step], rounds: int, precision: str, threads: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of every step in every round, and the matmul rate beside each round."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    rates = []
    for step in steps.values():
        step()
        step()
    for _ in range(rounds):
        rates.append(matmul_rate(precision, seconds=0.1))
        for name, step in steps.items():
            began = clock()
            reported = step()  # a step in another process tells its own time
            times[name].append(reported if isinstance(reported, float) else clock() - began)
    return times, rates


def _rows(
    times: dict[str, list[float]], rate: float, spec: ModelSpec, bare: ModelSpec, tokens: int
) -> list[dict[str, Any]]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [
        {
            "name": name,
            "seconds": median,
            "spread": (max(times[name]) - min(times[name])) / median,
            "tokens_per_second": tokens / median,
            "matmul_share": _flops(bare if name.startswith("dense") else spec) * tokens / median / rate,
            "vs_plain": medians["plain"] / median,
        }
        for name, median in medians.items()
    ]


def current_step(
    spec: ModelSpec, tokens: Tensor, precision: str, backend: str = "auto", seed: int = 0
) -> Callable[[], Tensor]:
    """Return today's step on ``tokens [B, S + 1]``; a call trains once and returns the loss."""
    model = Decoder(spec, seed=seed, max_seq_len=tokens.shape[1] - 1)
    for memory in model.memories:
        memory.backend = backend
    model.configure_tables(TrainSpec(), compact=True)
    optimizer = make_optimizer(model, TrainSpec())
    return lambda: _update(model, optimizer, tokens, precision)


def _update(
    model: Decoder, optimizer: torch.optim.Optimizer, tokens: Tensor, precision: str, clip: float = 1.0
) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        loss = model(tokens[:, :-1], tokens[:, 1:])
    auxiliary = model.auxiliary_loss()
    optimizer.zero_grad(set_to_none=True)
    (loss if auxiliary is None else loss + auxiliary).backward()
    clip_gradients(model.parameters(), clip)
    optimizer.step()
    model.refresh(tables=False)
    return loss.detach()


# ---------------------------------------------------------------------------------------------------------
# Same losses


def bench_losses(
    corpus: Corpus, tokens: int, seeds: int, top_m: int, n_keys: int, precision: str = "auto"
) -> dict[str, Any]:
    """Train the sweep's shape on a corpus by the step of 0.2.0 and by today's; the mean loss of the last tenth.

    The two differ in rounding alone, which decides selections and so comes to differ as two seeds do: the difference
    is to be held against that between seeds.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    precision = resolve_precision(precision)
    spec, batch = shape_of("sweep", n_keys, top_m)
    spec = dataclasses.replace(spec, vocab_size=corpus.vocab_size)
    n_steps = max(10, tokens // (batch * SEQ_LEN))
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        row: dict[str, Any] = {"seed": seed}
        for name in (RELEASE, "now"):
            losses = list(_train(spec, corpus, batch, n_steps, seed, name == RELEASE, precision))
            row[name] = statistics.fmean(losses[-n_steps // 10 :])
        rows.append(row | {"difference": row["now"] - row[RELEASE]})
    spread = max(max(row[name] for row in rows) - min(row[name] for row in rows) for name in (RELEASE, "now"))
    return {
        "tokens": n_steps * batch * SEQ_LEN,
        "precision": precision,
        "rows": rows,
        "between_seeds": spread,
    }


def _train(
    spec: ModelSpec, corpus: Corpus, batch: int, n_steps: int, seed: int, released: bool, precision: str
) -> Iterator[float]:
    stream = TrainStream(corpus, SEQ_LEN, batch, seed)
    model = Decoder(spec, seed=seed, max_seq_len=SEQ_LEN)
    if released:
        as_released(model)
    else:
        model.configure_tables(TrainSpec(), compact=True)
    optimizer = make_optimizer(model, TrainSpec())
    update = release_update if released else _update
    for step in range(n_steps):
        set_rates(optimizer, (6e-3 * min(1.0, (step + 1) / 25), 3e-2 * min(1.0, (step + 1) / 25)))
        yield update(model, optimizer, torch.from_numpy(stream.batch(step)), precision).item()


# ---------------------------------------------------------------------------------------------------------


def _profile(step: Step) -> dict[str, float]:
    """Return the share of a step's time by group of operations."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    totals: dict[str, float] = {}
    for event in profiler.key_averages():
        group = next(
            (name for name, keys in _GROUPS if any(k in event.key for k in keys)), "elementwise and the rest"
        )
        totals[group] = totals.get(group, 0.0) + event.self_cpu_time_total
    whole = sum(totals.values())
    return {name: value / whole for name, value in sorted(totals.items(), key=lambda item: -item[1])}
