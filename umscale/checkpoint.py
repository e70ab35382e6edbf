"""Checkpoints: one safetensors file holds weights, optimiser and average; its header holds the rest as JSON.

One file is one rename, so a checkpoint is there whole or not at all. Nothing is ever unpickled.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from umscale.files import atomic_path
from umscale.optim import WeightAverage, load_optimizer_tensors, optimizer_tensors

log = logging.getLogger(__name__)


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    state: dict[str, Any],
) -> None:
    """Write everything that a run needs to continue bitwise; ``state`` is JSON."""
    from safetensors.torch import save_file

    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimizer/{name}": value for name, value in optimizer_tensors(model, optimizer).items()}
    tensors |= {f"average/{name}": value for name, value in average.average.items()}
    header = {"state": json.dumps(state | {"average_updates": average.updates})}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> dict[str, Any] | None:
    """Restore what ``save`` wrote and return its state; None when there is no usable checkpoint.

    A damaged file is renamed to ``*.damaged`` with a log message: the run starts over from what is intact.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    device = next(model.parameters()).device
    try:
        groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "average": {}}
        with safe_open(path, framework="pt", device="cpu") as file:
            state = json.loads(file.metadata()["state"])
            for key in file.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                group, _, name = key.partition("/")
                groups[group][name] = file.get_tensor(key)
        model.load_state_dict(groups["model"])
        optimizer_device = {
            name: t if name.endswith("/step") else t.to(device) for name, t in groups["optimizer"].items()
        }
        load_optimizer_tensors(model, optimizer, optimizer_device)
        average.average = {name: groups["average"][name].to(device) for name in average.average}
        average.updates = int(state["average_updates"])
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        damaged = path.with_suffix(".damaged")
        path.replace(damaged)
        log.warning("checkpoint %s is damaged (%s); moved to %s", path.name, error, damaged.name)
        return None
    refresh = getattr(model, "refresh", None)
    if refresh is not None:
        refresh()
    assert isinstance(state, dict)
    return state
