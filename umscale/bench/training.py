"""``umscale bench train``: tokens per second of a training step, by variant."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from umscale.accounting import cost
from umscale.machine import keep_freed_memory, matmul_rate, processor_name, resolve_precision
from umscale.model.decoder import Decoder, mean_loss
from umscale.spec import FfnSpec, MemorySpec, ModelSpec, TrainSpec
from umscale.training.optimiser import make_optimizer

BATCH, SEQ_LEN = 16, 256

# What the profiler calls the operations, by what they do for the model.
_GROUPS = (
    ("memory: selection", ("umscale::select", "umscale_select")),
    ("memory: value lookup", ("umscale::lookup", "umscale_lookup")),
    ("attention scores", ("flash_attention", "scaled_dot")),
    ("matrix products", ("aten::mm", "aten::bmm", "aten::addmm", "mkldnn")),
    ("norms and gates", ("rms_norm", "swiglu")),
    ("optimiser and clipping", ("_fused_adamw_", "linalg_vector_norm", "_foreach")),
    ("loss", ("log_softmax", "nll_loss")),
)


def bench_train(rounds: int, threads: int, top_m: int, n_keys: int) -> dict[str, Any]:
    """Time a training step of the reference proxy in four variants.

    ``plain`` runs the readable reference kernels (gathers and full grids, as PyTorch code is usually written),
    ``aten`` stock PyTorch without anything of size [tokens, top_m, width], ``native`` the compiled kernels;
    ``no memory`` is the same backbone without memory layers. All train on the same random tokens.
    """
    from umscale_kernels import available_backends

    torch.set_num_threads(threads)
    keep_freed_memory()
    precision = resolve_precision("auto")
    spec = ModelSpec(
        d_model=128,
        n_layers=4,
        n_heads=4,
        vocab_size=1024,
        ffn=FfnSpec(d_ffn=256),
        memory=MemorySpec(n_keys=n_keys, top_m=top_m),
    )
    tokens = torch.randint(
        0, spec.vocab_size, (BATCH, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0)
    )
    backends = [b for b in available_backends("lookup") if b != "reference"]
    steps = {"plain": _stepper(spec, "reference", tokens, precision)}
    steps |= {b: _stepper(spec, b, tokens, precision) for b in backends}
    steps["no memory"] = _stepper(dataclasses.replace(spec, memory=None), "", tokens, precision)
    times: dict[str, list[float]] = {name: [] for name in steps}
    rates = []
    for step in steps.values():
        step()
    for _ in range(rounds):
        rates.append(matmul_rate(precision, seconds=0.1))
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    rate = statistics.median(rates)
    medians = {name: statistics.median(values) for name, values in times.items()}
    flops = {name: 3 * cost(spec, SEQ_LEN).flops_per_token for name in steps}
    flops["no memory"] = 3 * cost(dataclasses.replace(spec, memory=None), SEQ_LEN).flops_per_token
    n = BATCH * SEQ_LEN
    fastest = backends[-1]
    return {
        "model": f"d_model 128, 4 layers, d_ffn 256, vocab 1024, n_keys {n_keys}, top_m {top_m}, batch 16 x 256",
        "machine": processor_name(),
        "precision": precision,
        "threads": threads,
        "matmul_flops": rate,
        "flops_per_token": flops[fastest],
        "variants": [
            {
                "name": name,
                "seconds": median,
                "spread": (max(times[name]) - min(times[name])) / median,
                "tokens_per_second": n / median,
                "matmul_share": flops[name] * n / median / rate,
                "vs_plain": medians["plain"] / median,
            }
            for name, median in medians.items()
        ],
        "profile": _profile(steps[fastest]),
    }


def _stepper(spec: ModelSpec, backend: str, tokens: torch.Tensor, precision: str) -> Callable[[], None]:
    model = Decoder(spec, seed=0, max_seq_len=SEQ_LEN)
    for memory in model.memories:
        memory.backend = backend
    optimizer = make_optimizer(model, TrainSpec())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(tokens[:, :-1])
        loss = mean_loss(logits, tokens[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.refresh()

    return step


def _profile(step: Callable[[], None]) -> dict[str, float]:
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
