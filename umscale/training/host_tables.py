"""Token-addressed tables that stay in host memory: their rows travel to the device a batch at a time.

What a batch reads follows from its tokens (arXiv 2601.07372, section 2.5), so the distinct rows of the next one are
found by a thread while the device computes this one. They are gathered when the optimiser has updated them, into pinned
memory, and copied while the device is still busy with what it was given before. Gradients return as rows. Results are
those of tables on the device, up to the order of summation; a GPU is waited for once a step, for these gradients.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from umscale.data.prefetch import ReadAhead
from umscale.layers.token_memory import TokenMemory


class HostTables:
    """The rows of the tables of ``memory`` that a training step reads.

    Args:
        memory: whose tables are ``on_host``.
        read: returns the batch of a step, int64 ``[B, S + 1]``; a function of the step alone.
        device: where the model computes.
    """

    def __init__(self, memory: TokenMemory, read: Callable[[int], np.ndarray], device: torch.device) -> None:
        self._memory, self._read, self._device = memory, read, device
        self._rows = ReadAhead(self._find, "umscale-rows", ahead=device.type == "cuda")
        self._fetched: int | None = None

    def fetch(self, step: int) -> None:
        """Put the rows that ``step`` reads on their way to the device, unless they are; none may change until then."""
        if self._fetched == step:
            return
        for table, rows in zip(self._memory.tables, self._rows(step), strict=True):
            table.fetched = table.fetch(rows, self._device, trained=True)
        self._fetched = step

    def return_gradients(self) -> None:
        """Give the tables the gradients of the rows that were fetched, after the backward pass of their step."""
        for table in self._memory.tables:
            assert table.fetched is not None
            rows, values = table.fetched.on_host, table.fetched.values.grad
            assert values is not None
            table.rows.grad = torch.sparse_coo_tensor(
                rows.unsqueeze(0), values.cpu(), table.rows.shape, is_coalesced=True, check_invariants=False
            )
            table.fetched = None
        self._fetched = None

    def forget(self) -> None:
        """Drop what was fetched: the tables were changed by something else than a step."""
        for table in self._memory.tables:
            table.fetched = None
        self._fetched = None

    def _find(self, step: int) -> list[Tensor]:
        tokens = torch.from_numpy(self._read(step))[:, :-1]
        return [rows.unique() for rows in self._memory.rows_read(tokens)]
