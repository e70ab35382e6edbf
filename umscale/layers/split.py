"""Parameters of which a process may hold a part (``umscale.training.fsdp``), for code that need not care."""

from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_split(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether this process holds a part of a tensor that is split over several."""
    return hasattr(tensor, "to_local")  # without an import that takes a second


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of ``tensor``, sharing its memory: all of it unless it is split."""
    return tensor.to_local() if is_split(tensor) else tensor


def split_dimension(tensor: "DTensor") -> int:
    """Return the dimension along which ``tensor`` is split."""
    (placement,) = tensor.placements
    return int(placement.dim)  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """Return ``tensor`` as one on every process; called by all of them when it is split."""
    return tensor.full_tensor() if is_split(tensor) else tensor


def split_like(tensor: Tensor, model_tensor: Tensor) -> Tensor:
    """Return ``tensor``, which every process has, split as ``model_tensor`` of the same shape is."""
    if not is_split(model_tensor) or tensor.shape != model_tensor.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh = model_tensor.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, model_tensor.placements, src_data_rank=None)
