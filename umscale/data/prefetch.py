"""The next step's batch, read and pinned by a thread while a GPU computes this one's."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor


class Prefetch:
    """Batches by step, on a device.

    Args:
        read: returns the batch of a step, int64 of any shape; a function of the step alone.
        device: where batches go.
        ahead: read one step ahead, in a thread. On a CPU a batch takes a thousandth of a step, and the thread would
            compete with it.
    """

    def __init__(
        self, read: Callable[[int], np.ndarray], device: torch.device, ahead: bool | None = None
    ) -> None:
        self._read, self._device = read, device
        ahead = device.type == "cuda" if ahead is None else ahead
        self._pool = ThreadPoolExecutor(1, "umscale-input") if ahead else None
        self._next: tuple[int, Future[Tensor]] | None = None

    def __call__(self, step: int) -> Tensor:
        """Return the batch of ``step``; fastest when steps come in order. Does not wait for the device."""
        if self._pool is None:
            return torch.from_numpy(self._read(step)).to(self._device)
        ready = self._next if self._next is not None and self._next[0] == step else None
        found = self._pool.submit(self._fetch, step) if ready is None else ready[1]
        batch = found.result()
        self._next = (step + 1, self._pool.submit(self._fetch, step + 1))
        return batch.to(self._device, non_blocking=True)

    def _fetch(self, step: int) -> Tensor:
        batch = torch.from_numpy(self._read(step))
        return batch.pin_memory() if self._device.type == "cuda" else batch
