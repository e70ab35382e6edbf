"""Named random streams: every draw of a run comes from a generator derived from its seed and a name."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed for the stream ``name`` of run seed ``seed``; stable across versions and machines."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1


def generator(seed: int, name: str) -> "torch.Generator":
    """Return a CPU ``torch.Generator`` for the stream ``name``; draw there, then move, so that devices agree."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, name))
