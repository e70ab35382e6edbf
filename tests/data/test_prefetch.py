"""Batches read ahead are those of the step asked for, in whatever order steps come."""

import numpy as np
import pytest
import torch

from umscale.data.prefetch import Prefetch


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_are_those_of_the_step(ahead: bool) -> None:
    asked = []

    def read(step: int) -> np.ndarray:
        asked.append(step)
        return np.full((2, 3), step)

    batches = Prefetch(read, torch.device("cpu"), ahead=ahead)
    for step in (0, 1, 2, 7, 8, 3, 3):
        assert batches(step).tolist() == [[step] * 3] * 2
    if not ahead:
        assert asked == [0, 1, 2, 7, 8, 3, 3]
    else:
        assert {4, 9} <= set(asked), "one step ahead"
        assert asked.count(1) == asked.count(2) == 1, "and only once"


def test_what_reading_raises_is_raised_where_the_batch_is_wanted() -> None:
    def read(step: int) -> np.ndarray:
        if step == 1:
            raise OSError("gone")
        return np.zeros(1)

    batches = Prefetch(read, torch.device("cpu"), ahead=True)
    batches(0)
    with pytest.raises(OSError, match="gone"):
        batches(1)
