"""Initialisation: a part of a table is drawn as the whole is, and the whole is never made."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from umscale.layers.tables import column_groups, columns
from umscale.model import initialise
from umscale.model.decoder import Decoder
from umscale.rng import generator
from umscale.spec import FfnSpec, MemorySpec, ModelSpec

MEMORY = MemorySpec(n_keys=9, top_m=4, d_key=8, d_pre_value=6, d_value=12)
MODEL = ModelSpec(d_model=16, n_layers=3, n_heads=2, vocab_size=64, ffn=FfnSpec(d_ffn=24), memory=MEMORY)


@pytest.mark.parametrize("at_once", [1, 500, 2**22])
@pytest.mark.parametrize("shape", [(243, 6), (16, 1), (15, 1), (1, 1), (31, 3), (100, 7)])
def test_a_table_drawn_by_rows_is_the_one_drawn_at_once(
    shape: tuple[int, int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initialise, "_DRAWN_AT_ONCE", at_once)
    found = torch.empty(shape)
    initialise._normal_columns(found, 3, "x", 0.5, 1, (0, 1))
    assert torch.equal(found, torch.randn(shape, generator=generator(3, "x")).mul_(0.5))


@pytest.mark.parametrize("size", [2, 3])
def test_parts_of_tables_are_those_of_the_whole_which_is_never_made(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initialise, "_DRAWN_AT_ONCE", 600)
    model = dataclasses.replace(MODEL, memory=dataclasses.replace(MEMORY, top_m=3))
    whole = Decoder(model, 0, 8)
    n_rows = whole.tables.values.shape[0]

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[:1] == (n_rows,) and out.dim() == 2:
                self.found = max(self.found, out.shape[1])
            return out

    for rank in range(size):
        with Largest() as largest:
            mine = Decoder(model, 0, 8, (rank, size))
        assert largest.found == MEMORY.d_value // size
        for name, groups in column_groups(MEMORY).items():
            expected = columns(getattr(whole.tables, name), groups, (rank, size))
            assert torch.equal(getattr(mine.tables, name), expected)
        for name, p in whole.named_parameters():
            assert name.startswith("tables.") or torch.equal(dict(mine.named_parameters())[name], p)
