"""What the next step needs, read by a thread while a GPU computes this one: its batch, in pinned memory, before all."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """What ``read`` returns for a step; it must be a function of the step alone.

    Args:
        ahead: read one step ahead, in a thread called ``name``. On a CPU what is read takes a thousandth of a step, and
            the thread would compete with it.
    """

    def __init__(self, read: Callable[[int], T], name: str, *, ahead: bool) -> None:
        self._read = read
        self._pool = ThreadPoolExecutor(1, name) if ahead else None
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, step: int) -> T:
        """Return what belongs to ``step``; fastest when steps come in order."""
        if self._pool is None:
            return self._read(step)
        ready = self._next if self._next is not None and self._next[0] == step else None
        found = (self._pool.submit(self._read, step) if ready is None else ready[1]).result()
        self._next = (step + 1, self._pool.submit(self._read, step + 1))
        return found


class Prefetch:
    """Batches by step, on a device.

    Args:
        read: returns the batch of a step, int64 of any shape; a function of the step alone.
        device: where batches go.
        ahead: see ``ReadAhead``; the default is to for a GPU.
    """

    def __init__(
        self, read: Callable[[int], np.ndarray], device: torch.device, ahead: bool | None = None
    ) -> None:
        self._read, self._device = read, device
        ahead = device.type == "cuda" if ahead is None else ahead
        self._batches = ReadAhead(self._fetch, "umscale-input", ahead=ahead)

    def __call__(self, step: int) -> Tensor:
        """Return the batch of ``step``; fastest when steps come in order. Does not wait for the device."""
        return self._batches(step).to(self._device, non_blocking=True)

    def _fetch(self, step: int) -> Tensor:
        batch = torch.from_numpy(self._read(step))
        return batch.pin_memory() if self._device.type == "cuda" else batch
