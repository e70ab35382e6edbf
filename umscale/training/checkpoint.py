"""Checkpoints: one safetensors file holds weights, optimiser and average; its header holds the rest as JSON.

One file is one rename or one upload, so a checkpoint is there whole or not at all. The header carries a checksum of
the tensors and one of the state, so a flipped bit is found before it is trained on. Nothing is ever unpickled.

Of a run on several processes the first reads and writes the file, which holds whole tables however they are split: it
does not say how many processes made it.
"""

import contextlib
import json
import logging
import os
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from umscale.files import Files, Unusable, quarantine
from umscale.layers.split import is_split, split_like, whole
from umscale.store.leases import Lease
from umscale.store.store import Store
from umscale.training.optimiser import WeightAverage, load_optimizer_tensors, optimizer_tensors
from umscale.training.process_group import ALONE, World
from umscale.training.shards import columns, from_columns, groups_of, tensor_groups
from umscale.trees import parse_object

log = logging.getLogger(__name__)

_WRITER = ThreadPoolExecutor(1, "umscale-checkpoint")
"""Starts no thread before it is used."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """Where a run keeps its checkpoints, and the right to do so."""

    files: Files
    folder: str = ""
    lease: Lease | None = None
    world: World = ALONE
    """Processes that train the run together; only the first touches ``files``."""
    weights: str = ""
    """Folder for the weights of records; empty where none may be kept."""
    trunks: str = ""
    """Folder for trunks that other runs may go on from; likewise."""
    writing: "list[Future[None]]" = field(default_factory=list)
    """The checkpoint that is being written in the background, if any."""

    @classmethod
    def of(cls, store: Store, run_id: str, trunk_id: str = "") -> "Workspace":
        """A run's checkpoints in a store, under the lease by which this process works on it; its trunk if named."""
        return cls(
            files=store.files,
            folder=store.checkpoint_folder(run_id),
            lease=store.lease(run_id),
            weights=store.weights_folder(run_id),
            trunks=store.trunk_folder(trunk_id) if trunk_id else "",
        )

    def path(self, phase: str) -> str:
        """Return the name of a phase's checkpoint."""
        return f"{self.folder}/{phase}.safetensors".lstrip("/")

    def beat(self) -> None:
        """Show that the run makes progress; raises ``ClaimLost`` when another worker has taken it over."""
        if self.lease is not None:
            self.lease.beat()

    def save(
        self,
        phase: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage,
        state: dict[str, Any],
        in_background: bool = False,
    ) -> None:
        """Write the checkpoint of a phase; raises ``ClaimLost`` as ``beat`` does.

        ``in_background`` copies it to the host here and writes it while training goes on: every other method, also the
        next ``save``, first waits for that, and raises what writing raised. ``flush`` does nothing else.
        """
        self.ready()
        content = collect(model, optimizer, average, state, self.world)
        if content is None:
            return
        if in_background:
            held = {name: t.to("cpu", copy=True) for name, t in content.tensors.items()}
            content = Content(tensors=held, text=content.text)
            self.writing.append(_WRITER.submit(self._write, phase, content))
        else:
            self._write(phase, content)

    def _write(self, phase: str, content: "Content") -> None:
        self.write(self.path(phase), content)

    def write(self, name: str, content: "Content") -> None:
        """Write a file of ``files``, here and now."""
        with self.files.writing(name) as path:
            write(path, content)

    def ready(self) -> None:
        """Wait as ``flush`` does, and raise ``ClaimLost`` when the run is no longer this worker's."""
        self.flush()
        if self.lease is not None:
            self.lease.check()

    def flush(self) -> None:
        """Wait until what is written in the background is there; raises what writing it raised."""
        while self.writing:
            self.writing.pop().result()

    def exists(self, phase: str) -> bool:
        """Return whether a phase has a checkpoint."""
        self.flush()
        return self.world.any(self.world.first and self.files.exists(self.path(phase)))

    def delete(self, phase: str) -> None:
        """Remove a phase's checkpoint."""
        self.flush()
        if self.world.first:
            self.files.delete(self.path(phase))

    def load(
        self, phase: str, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
    ) -> dict[str, Any] | None:
        """Restore a phase's checkpoint and return its state; None when there is none that can be used.

        A damaged file is moved into quarantine with a log message: the run starts over from what is intact.
        """
        found: Content | None = None
        self.flush()
        try:
            if self.world.first:
                with contextlib.suppress(FileNotFoundError), self.files.reading(self.path(phase)) as path:
                    found = read(path)
        except (DamagedCheckpoint, Unusable) as error:
            self._set_aside(phase, error)
        if not self.world.any(found is not None):
            return None
        try:
            return restore(_share(found, model, self.world), model, optimizer, average)
        except DamagedCheckpoint as error:  # of another model: on all processes alike
            if self.world.first:
                self._set_aside(phase, error)
            return None

    def _set_aside(self, phase: str, error: Exception) -> None:
        name = self.path(phase)
        log.warning("%s is damaged (%s); moved to %s", name, error, quarantine(self.files, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What a checkpoint holds."""

    tensors: Mapping[str, torch.Tensor]
    text: str
    """The state, as JSON."""


class DamagedCheckpoint(Exception):
    """A checkpoint is not as it was written, or of another model; the message says in what way."""


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    state: dict[str, Any],
) -> None:
    """Write everything that a run on one process needs to continue bitwise; ``state`` is JSON."""
    content = collect(model, optimizer, average, state)
    assert content is not None
    write(path, content)


def collect(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    state: dict[str, Any],
    world: World = ALONE,
) -> Content | None:
    """Return everything that a run needs to continue bitwise, on the first process of ``world``; ``state`` is JSON.

    All call it. What is split is put together in the first's memory on the host; the rest is not copied.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimizer/{name}": value for name, value in optimizer_tensors(model, optimizer).items()}
    tensors |= {f"average/{name}": value for name, value in average.average.items()}
    whole_tensors = gather(model, tensors, world)
    if whole_tensors is None:
        return None
    return Content(tensors=whole_tensors, text=json.dumps(state | {"average_steps": average.steps}))


def gather(
    model: nn.Module, tensors: dict[str, torch.Tensor], world: World
) -> dict[str, torch.Tensor] | None:
    """Return ``tensors``, named as ``collect`` names them, with what is split put together, on the first process."""
    groups = tensor_groups(model, world)
    for name, tensor in tensors.items():
        if n_groups := groups_of(name, tensor.dim(), groups):
            parts = world.collect(tensor.detach().cpu())
            tensors[name] = from_columns(parts, n_groups) if parts else tensor
        elif is_split(tensor):
            complete = whole(tensor)
            tensors[name] = complete.cpu() if world.first else tensor
    return tensors if world.first else None


def write(path: Path, content: Content) -> None:
    """Write a checkpoint, with its checksums; raises ``OSError`` when there is no room."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors, text = dict(content.tensors), content.text
    try:
        save_file(tensors, path, metadata={"state": text, "checksum": _checksum(tensors, text)})
    except SafetensorError as error:  # a full disk, say, which is no fault of the run
        if found := _OS_ERROR.search(str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        raise


def load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> dict[str, Any]:
    """Restore what ``save`` wrote and return its state; raises ``DamagedCheckpoint`` as ``restore`` does."""
    return restore(read(path), model, optimizer, average)


def read(path: Path) -> Content:
    """Read what ``save`` wrote.

    Raises:
        DamagedCheckpoint: it is not as it was written.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            notes = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        if notes["checksum"] != _checksum(tensors, notes["state"]):
            raise DamagedCheckpoint("its checksum does not match")
        return Content(tensors=tensors, text=notes["state"])
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        raise DamagedCheckpoint(" ".join(str(error).split())) from None


def _share(content: Content | None, model: nn.Module, world: World) -> Content:
    """Give every process what the first has read: of a split table its columns, of everything else the whole."""
    if world.size == 1:
        assert content is not None
        return content
    found = content.tensors if content else {}
    text = world.share_text(content.text if content else "")
    layout = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in found.items()]
    groups = tensor_groups(model, world)
    split = {name: p for name, p in model.named_parameters() if is_split(p)}
    tensors = {}
    for name, dtype, shape in json.loads(world.share_text(json.dumps(layout))):
        tensor = found[name] if content else torch.empty(shape, dtype=getattr(torch, dtype))
        world.share(tensor)
        n_groups = groups_of(name, tensor.dim(), groups)
        parameter = split.get(name.partition("/")[2].removesuffix("/exp_avg").removesuffix("/exp_avg_sq"))
        if parameter is not None:
            tensor = split_like(tensor, parameter)
        tensors[name] = columns(tensor, n_groups, world) if n_groups else tensor
    return Content(tensors=tensors, text=text)


def restore(
    content: Content, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> dict[str, Any]:
    """Put what ``read`` found into the model, its optimiser and average, and return the state.

    Raises:
        DamagedCheckpoint: nothing that can be used; the model may be left half restored.
    """
    device = next(model.parameters()).device
    try:
        state = parse_object(content.text)
        groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "average": {}}
        for key, value in content.tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = value
        model.load_state_dict(groups["model"])
        optimizer_device = {
            name: t if name.endswith("/step") else t.to(device) for name, t in groups["optimizer"].items()
        }
        load_optimizer_tensors(model, optimizer, optimizer_device)
        average.average = {name: groups["average"][name].to(device) for name in average.average}
        steps = state.get("average_steps")  # version 0.2 counted updates
        average.steps = int(state["average_updates"]) * average.EVERY if steps is None else int(steps)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DamagedCheckpoint(" ".join(str(error).split())) from None
    refresh = getattr(model, "refresh", None)
    if refresh is not None:
        refresh()
    assert isinstance(state, dict)
    return state


def _checksum(tensors: Mapping[str, torch.Tensor], state: str) -> str:
    """Return a CRC-32 over names, types, shapes and bytes of all tensors, and one over the state.

    Against accidents, not forgery: what a CRC misses is one damaged file in four billion, and it is three times
    as fast as a disk.
    """
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        content = tensor.reshape(-1).view(torch.uint8).numpy()
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(content.data, value)
    return f"{value:08x}-{zlib.crc32(state.encode()):08x}"
