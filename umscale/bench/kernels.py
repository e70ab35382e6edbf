"""``umscale bench kernels``: the memory layer and its kernels beside what they replace and what bounds them."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from umscale.bench.measured import Part, Report
from umscale.bench.setting import Setting
from umscale.bench.timing import Clock, clock_of, copy_step, interleaved, matmul_step
from umscale.errors import UserError, nearest
from umscale.machine import keep_freed_memory, stamp
from umscale.spec import apply_overrides, from_dict

WASTE = ("shared", "blocks", "wide", "scores")
"""Parts that show what earlier versions did needlessly, or what a correction costs."""
PARTS = {
    "cpu": ("layer", "select", "lookup", *WASTE, "tables", "peers"),
    "cuda": ("lookup", "backward", "select", "layer", "adamw", *WASTE, "peers"),
}


def bench_kernels(
    device: str = "cpu",
    *,
    threads: int = 1,
    rounds: int | None = None,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    compiled: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure every part, or those in ``only``.

    Args:
        device: ``cpu`` or ``cuda``; sets the parts and their shapes.
        threads: of the processor.
        rounds: timed calls of every variant, interleaved; by default 7 on a processor, 20 on a GPU.
        overrides: ``key=value`` of ``umscale.bench.setting.Setting``; on a GPU they hold for every shape.
        compiled: whether to time ``torch.compile`` too, which takes most of a minute.
        progress: told in a line what is measured next.

    Raises:
        UserError: no such device, part or key, or a shape that is not possible.
    """
    if device not in PARTS:
        raise UserError(f"device must be cpu or cuda, not {device!r}")
    for name in only:
        if name not in PARTS[device]:
            raise UserError(f"no part {name!r} on {device}{nearest(name, PARTS[device])}")
    if device == "cuda":
        _require_gpu()
    changes = apply_overrides({}, overrides)
    _ = from_dict(Setting, changes).memory  # reports bad input before anything is measured
    torch.set_num_threads(threads)
    rounds = rounds or (7 if device == "cpu" else 20)
    wanted = [name for name in PARTS[device] if name in (only or PARTS[device])]
    progress("machine limits")
    limits = _limits(device, rounds)
    find = _cpu_parts if device == "cpu" else _cuda_parts
    parts = list(find(wanted, changes, rounds, compiled, limits, progress))
    settings = {"device": device, "threads": threads, "rounds": rounds, "parts": wanted, "overrides": changes}
    return Report(machine=_machine(device), settings=settings, limits=limits, parts=parts)


def _cpu_parts(
    wanted: list[str],
    changes: dict[str, Any],
    rounds: int,
    compiled: bool,
    limits: dict[str, float],
    progress: Callable[[str], None],
) -> Iterator[Part]:
    from umscale.bench import cpu
    from umscale.bench.peers import peers_parts
    from umscale.bench.selection import select_part

    setting: Setting = from_dict(Setting, changes)
    clock = clock_of("cpu")
    for name in wanted:
        progress(name)
        if name == "layer":
            yield cpu.layer_part(setting, rounds, compiled)
        elif name == "select":
            yield select_part(setting, cpu.backends("select"), rounds, clock, "cpu")
        elif name == "lookup":
            yield cpu.lookup_part(setting, rounds)
        elif name == "tables":
            for n_rows in setting.table_rows:
                yield cpu.tables_part(setting, n_rows, rounds)
        elif name in WASTE:
            yield _waste_part(name, setting, cpu.backends("lookup", "select"), rounds, clock, "cpu")
        else:
            yield from peers_parts(setting, "cpu", rounds, clock)
    if "tables" in wanted:  # last, because it cannot be undone
        progress("tables, keeping freed memory")
        keep_freed_memory()
        yield cpu.tables_part(setting, max(setting.table_rows), rounds, memory_kept=True)


def _cuda_parts(
    wanted: list[str],
    changes: dict[str, Any],
    rounds: int,
    compiled: bool,
    limits: dict[str, float],
    progress: Callable[[str], None],
) -> Iterator[Part]:
    from umscale.bench import cuda
    from umscale.bench.peers import peers_parts

    clock = clock_of("cuda")
    settings = {
        name: from_dict(Setting, dataclasses.asdict(setting) | changes)
        for name, setting in cuda.SETTINGS.items()
    }
    for name in wanted:
        if name == "peers":
            progress(name)
            setting = from_dict(Setting, {"tokens": 8192} | changes)
            yield from peers_parts(setting, "cuda", rounds, clock)
            continue
        if name in WASTE:
            progress(name)
            setting = from_dict(Setting, {"tokens": 8192} | changes)
            yield _waste_part(name, setting, ["aten", "triton"], rounds, clock, "cuda")
            continue
        for label, setting in settings.items():
            progress(f"{name}, {label} layer")
            torch.cuda.empty_cache()
            copy_rate = limits["copy_bytes_per_second"]
            yield from cuda.measure(name, label, setting, "cuda", rounds, clock, compiled, copy_rate)


def _waste_part(
    name: str, setting: Setting, backends: Sequence[str], rounds: int, clock: Clock, device: str
) -> Part:
    from umscale.bench import sharing

    if name == "shared":
        return sharing.shared_part(setting, rounds, clock, device)
    if name == "scores":
        return sharing.scores_part(setting, rounds, clock, device)
    part = sharing.blocks_part if name == "blocks" else sharing.wide_part
    return part(setting, backends, rounds, clock, device)


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise UserError(
            "--device cuda: PyTorch finds no CUDA GPU here; run it where there is one, or take --device cpu"
        )
    if torch.cuda.get_device_capability() < (8, 0):
        raise UserError(
            f"--device cuda: {torch.cuda.get_device_name()} is older than Ampere (compute capability 8.0), from which "
            "the Triton kernels run"
        )


def _limits(device: str, rounds: int) -> dict[str, float]:
    """Measured: FLOP/s of a large product, fp32 on a processor and bf16 on a GPU; bytes/s of a copy, both ways."""
    cpu = device == "cpu"
    matmul, flops = matmul_step(device, torch.float32 if cpu else torch.bfloat16, 512 if cpu else 8192)
    n_bytes = 1 << (28 if cpu else 32)
    variants = {"matmul": {"forward": matmul}, "copy": {"forward": copy_step(device, n_bytes)}}
    timings = interleaved(variants, rounds, clock_of(device))
    return {
        "matmul_flops": flops / timings["matmul"]["forward"].seconds,
        "copy_bytes_per_second": n_bytes / timings["copy"]["forward"].seconds,
    }


def _machine(device: str) -> dict[str, Any]:
    machine = dict(stamp())
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine["gpu"] = {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
        }
    return machine
