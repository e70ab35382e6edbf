"""What the tests of numbers share: random inputs, and equality up to rounding."""

import os

import torch
from torch import Tensor

# Largest error of a result, relative to its largest entry. Not entry by entry: an entry that is a small difference
# of large terms carries their rounding, and which entry that is changes with the inputs and with the processor.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def draw() -> int:
    """Which random inputs to test with: ``UMSCALE_TEST_DRAW``, any number, also for the processes of a test."""
    return int(os.environ.get("UMSCALE_TEST_DRAW", "0"))


def seeded(seed: int) -> torch.Generator:
    """Return the generator of one of a test's inputs."""
    return torch.Generator().manual_seed(seed + 1_000_003 * draw())


def assert_close(
    got: Tensor,
    want: Tensor,
    tolerance: torch.dtype | float = torch.float32,
    floor: float = 0.0,
    name: str = "",
) -> None:
    """Assert that no entry is off by more than the tolerance times the largest entry, or times ``floor`` if larger.

    Args:
        got: Any shape and dtype, on any device.
        want: Same shape.
        tolerance: Relative error, or the dtype that ``got`` was computed in.
        floor: Size of the terms that ``want`` sums, where they may cancel.
        name: Of the result, for the message.
    """
    if isinstance(tolerance, torch.dtype):
        tolerance = TOLERANCE[tolerance]
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    scale = max(floor, float(want.abs().max()) if want.numel() else 0.0)
    torch.testing.assert_close(
        got, want, rtol=0, atol=tolerance * scale, msg=lambda text: f"{name}: {text}" if name else text
    )
