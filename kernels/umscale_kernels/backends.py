"""Which implementation of an operation runs: `reference`, `aten` (stock PyTorch) or `native` (C++ on the CPU)."""

import torch

from umscale_kernels import native

OPS = ("select", "lookup")


def available_backends(op: str) -> tuple[str, ...]:
    """Backends of `op` that can run on this machine, slowest first. May compile. Raises ValueError."""
    if op not in OPS:
        raise ValueError(f"op must be one of {OPS}, not {op!r}")
    return ("reference", "aten", *(("native",) if native.library(op) is not None else ()))


def default_backend(device_type: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """What `backend="auto"` runs for both operations on tensors of this device and activation dtype."""
    return min(_auto(op, device_type, dtype) for op in OPS)  # "aten" < "native": the path of the slower one


def resolve(
    op: str, backend: str, device_type: str, dtype: torch.dtype, native_supported: bool = True
) -> str:
    """Name of the backend to run. Raises ValueError for an unknown one or one that cannot take such tensors."""
    if backend == "auto":
        return _auto(op, device_type, dtype) if native_supported else "aten"
    if backend == "native" and not (native_supported and device_type == "cpu" and dtype == torch.float32):
        raise ValueError(
            f"backend 'native' of {op} does not take {dtype} tensors of these shapes on {device_type}"
        )
    if backend not in ("aten", "native"):
        raise ValueError(f"backend of {op} must be auto, reference, aten or native, not {backend!r}")
    return backend


def _auto(op: str, device_type: str, dtype: torch.dtype) -> str:
    if device_type == "cpu" and dtype == torch.float32 and native.library(op) is not None:
        return "native"
    return "aten"
