"""Parameters of which a process may hold a part (``umscale.training.fsdp``), for code that need not care."""

from torch import Tensor


def is_split(tensor: Tensor) -> bool:
    """Return whether this process holds a part of a tensor that is split over several."""
    return hasattr(tensor, "to_local")


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of ``tensor``, sharing its memory: all of it unless it is split."""
    return tensor.to_local() if is_split(tensor) else tensor  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """Return ``tensor`` as one on every process; called by all of them when it is split."""
    return tensor.full_tensor() if is_split(tensor) else tensor  # type: ignore[operator]


def split_like(tensor: Tensor, model_tensor: Tensor) -> Tensor:
    """Return ``tensor``, which every process has, split as ``model_tensor`` of the same shape is."""
    if not is_split(model_tensor) or tensor.shape != model_tensor.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(model_tensor, DTensor)
    mesh = model_tensor.device_mesh
    local = tensor.to(mesh.device_type)
    return distribute_tensor(local, mesh, model_tensor.placements, src_data_rank=None)
