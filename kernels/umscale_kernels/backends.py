"""Which implementation of an operation runs.

reference   readable PyTorch, any dtype; what the others are tested against
aten        stock PyTorch operations without large intermediates, any device
native      C++ on the CPU, compiled at first use
triton      CUDA GPUs from Ampere on; on a CPU only through Triton's interpreter (`TRITON_INTERPRET=1`), for tests
"""

import functools
import importlib.util
import os
import warnings

import torch

from umscale_kernels import native

OPS = ("select", "lookup", "table_adamw", "attention")
NAMES = ("reference", "aten", "native", "triton")


class SlowPathWarning(UserWarning):
    """An operation runs on stock PyTorch operations where a kernel was made for such a device."""


def available_backends(op: str) -> tuple[str, ...]:
    """Backends of `op` that can run on this machine, slowest first. May compile. Raises ValueError."""
    if op not in OPS:
        raise ValueError(f"op must be one of {OPS}, not {op!r}")
    compiled = ("native",) if native.library(op) is not None else ()
    return ("reference", "aten", *compiled, *(("triton",) if op != "attention" and triton_runs() else ()))


def default_backend(device_type: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """What `backend="auto"` runs for both operations on tensors of this device and activation dtype."""
    found = {_auto(op, device_type, dtype, True, True) for op in ("select", "lookup")}
    return found.pop() if len(found) == 1 else "aten"  # the path of the slower one


def kernels_in_use(device_type: str) -> str:
    """What computes on a device, for records: losses of one specification differ where this does."""
    return native.in_use() if device_type == "cpu" else default_backend(device_type)


def resolve(
    op: str,
    backend: str,
    device_type: str,
    dtype: torch.dtype,
    native_supported: bool = True,
    triton_supported: bool = True,
) -> str:
    """Name of the backend to run. Raises ValueError for an unknown one or one that cannot take such tensors."""
    if backend == "auto":
        return _auto(op, device_type, dtype, native_supported, triton_supported)
    if backend not in NAMES:
        raise ValueError(f"backend of {op} must be auto or one of {', '.join(NAMES)}, not {backend!r}")
    fits = {
        "native": native_supported and device_type == "cpu" and dtype == torch.float32,
        "triton": triton_supported and (device_type == "cuda" or interpreted()) and dtype != torch.float64,
    }
    if not fits.get(backend, True):
        raise ValueError(
            f"backend {backend!r} of {op} does not take {dtype} tensors of these shapes on {device_type}"
        )
    return backend


def interpreted() -> bool:
    """Whether Triton kernels run through the interpreter, on CPU tensors; read when they are first used."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def triton_runs() -> bool:
    """Whether Triton kernels can run here: on a GPU of compute capability 8.0 or more, or interpreted."""
    if not triton_installed():
        return False
    return interpreted() or (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0))


def _auto(op: str, device_type: str, dtype: torch.dtype, native_ok: bool, triton_ok: bool) -> str:
    """The kernel made for the device; else "aten", with a warning unless that was asked for.

    float64 is for checking, and `UMSCALE_NATIVE=0` says what it wants.
    """
    if device_type == "cpu" and dtype == torch.float32:
        if native_ok and native.available(op):
            return "native"
        if native.wanted():
            warn_slow(op, "these sizes" if not native_ok else "a machine without a working C++ compiler")
    if device_type == "cuda" and dtype != torch.float64 and op != "attention":  # PyTorch's own is fused there
        if triton_ok and triton_runs():
            return "triton"
        warn_slow(op, "these sizes" if not triton_ok else "this GPU, or without Triton")
    return "aten"


@functools.cache
def warn_slow(op: str, where: str) -> None:
    """Warn, once a process and cause, that `op` takes the slow path."""
    text = f"{op} has no fast kernel for {where}: it runs on stock PyTorch operations, many times slower"
    warnings.warn(text, SlowPathWarning, stacklevel=2)
