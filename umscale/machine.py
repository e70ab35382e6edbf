"""The machine a run happens on: cores, measured speed, and the stamp that goes on every record."""

import ctypes
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

STAMPED_PACKAGES = ("umscale", "torch", "triton", "numpy", "pyarrow")


def physical_cores() -> int:
    """Return the physical cores this process may use (hyper-threads counted once)."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            package = (topology / "physical_package_id").read_text()
            cores.add((package, (topology / "core_id").read_text()))
        except OSError:
            return len(allowed)
    return max(1, len(cores))


def matmul_rate(precision: str, seconds: float = 0.15, device: "torch.device | None" = None) -> float:
    """Measure a large matrix product on this process's threads, or on a GPU; FLOP/s of the best repetition.

    By processor time with one thread, which others on the machine disturb less.
    """
    import torch

    dtype = getattr(torch, precision)
    gpu = device is not None and device.type == "cuda"
    clock = time.perf_counter if gpu or torch.get_num_threads() > 1 else time.process_time
    size = 8192 if gpu else 512
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), clock() + seconds
    while True:
        start = clock()
        a @ b
        if gpu:
            torch.cuda.synchronize(device)
        now = clock()
        best = min(best, now - start)
        if now >= end:
            return 2 * size**3 / best


def resolve_precision(precision: str) -> str:
    """Turn ``auto`` into the faster of float32 and bfloat16 matrix products on this machine, by measurement.

    CPUs without native bf16 emulate it many times slower; those with it are two to four times faster.
    """
    if precision != "auto":
        return precision
    import torch

    if torch.cuda.is_available():
        return "bfloat16"
    return "bfloat16" if matmul_rate("bfloat16") > 1.3 * matmul_rate("float32") else "float32"


def keep_freed_memory() -> None:
    """Let the allocator keep what it frees: a training step reuses the same large blocks every time.

    Otherwise glibc returns each table gradient to the system and pays its page faults again in the next step.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(ctypes.c_int(-4), ctypes.c_int(0))  # M_MMAP_MAX: no separate mappings
        libc.mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD: no return
    except (OSError, AttributeError):  # not glibc
        pass


_DATASHEET = {  # dense, without sparsity; FLOP/s
    "H100 PCIe": {"bfloat16": 756e12, "float32": 51.2e12},
    "H100": {"bfloat16": 989.4e12, "float32": 66.9e12},
    "H200": {"bfloat16": 989.4e12, "float32": 66.9e12},
    "A100": {"bfloat16": 312e12, "float32": 19.5e12},
    "L40S": {"bfloat16": 362e12, "float32": 91.6e12},
}


@functools.lru_cache(maxsize=16)
def peak_flops(device: "torch.device", precision: str, threads: int) -> tuple[float, str]:
    """Return the FLOP/s of which a process's share is reported, and what they are.

    Of GPUs that are listed the datasheet's, of matrix products without sparsity; of others and of a CPU the rate of a
    large matrix product, measured once on ``threads`` threads.
    """
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, rates in _DATASHEET.items():
            if known in name:
                return rates[precision], f"datasheet of {name}, {precision}"
        return matmul_rate(precision, device=device), f"matmul measured on {name}, {precision}"
    return matmul_rate(precision, seconds=0.05), f"matmul measured, {precision}, threads: {threads}"


def peak_memory_bytes(device: "torch.device | None" = None) -> int:
    """Return this process's peak memory in bytes: allocated on ``device`` if that is a GPU, else resident."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)

    # Not `ru_maxrss`: a started process inherits there the peak of the one that started it, so that the runs of a
    # large parent would all report its size.
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(peak[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@functools.cache
def git_revision() -> str:
    """Return the revision of the source tree the code runs from, with ``+dirty`` for local changes; or empty."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        command = [
            "git",
            "-C",
            str(root),
            "describe",
            "--always",
            "--abbrev=12",
            "--dirty=+dirty",
            "--exclude=*",
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def stamp() -> dict[str, Any]:
    """Return where and with what a record was made: versions, revision, processor; no host or user name."""
    versions = {}
    for package in STAMPED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            from umscale import __version__

            versions[package] = __version__ if package == "umscale" else ""
    return {
        "versions": versions | {"python": platform.python_version()},
        "git_revision": git_revision(),
        "machine": processor_name(),
    }


def processor_name() -> str:
    """Return the processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def resident_bytes() -> int:
    """Return this process's resident memory in bytes, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
