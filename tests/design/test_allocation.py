"""Sharing out a sparse budget: every cell has the total, the FLOPs and the shares that were asked for."""

import dataclasses

import pytest

from umscale.accounting import cost
from umscale.design.allocation import shares_of
from umscale.design.axes import solve
from umscale.errors import UserError
from umscale.spec import FfnSpec, MemorySpec, ModelSpec, NgramSpec

MIXTURE = ModelSpec(
    d_model=64,
    n_layers=4,
    n_heads=2,
    vocab_size=4096,
    ffn=FfnSpec(kind="moe", d_ffn=40, n_experts=96, top_k=8, normalize_gates=True),
)
MEMORY = MemorySpec(n_keys=128, top_m=32, d_key=16, d_pre_value=16, d_value=32)
NGRAM = NgramSpec(rows=1000, heads=4, d_embedding=32)
TOTAL = 4e6


def solved(model: ModelSpec, **shares: float):
    return solve(model, {"total_params": TOTAL, **shares}, "iso_flops", 256, reference=MIXTURE)


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
@pytest.mark.parametrize(
    ("model", "name"),
    [
        (dataclasses.replace(MIXTURE, memory=MEMORY), "memory_share"),
        (dataclasses.replace(MIXTURE, ngram=NGRAM), "ngram_share"),
    ],
)
def test_two_ways(model: ModelSpec, name: str, share: float) -> None:
    found = solved(model, **{name: share})
    assert found.cost.total_params == pytest.approx(TOTAL, rel=0.01)
    assert found.cost.flops_per_token == pytest.approx(cost(MIXTURE, 256).flops_per_token, rel=0.01)
    assert shares_of(found.model)[name] == pytest.approx(share, abs=0.02)
    if share == 0:
        assert found.model.memory is None
        assert found.model.ngram is None
    if share == 1:
        assert found.model.ffn.n_experts == found.model.ffn.top_k


@pytest.mark.parametrize(
    "shares", [(0.25, 0.25), (0.5, 0.5), (0.25, 0.5), (0.5, 0), (0, 0.5), (0.1, 0.8), (1, 0), (0, 1), (0, 0)]
)
def test_three_ways(shares: tuple[float, float]) -> None:
    model = dataclasses.replace(MIXTURE, memory=MEMORY, ngram=NGRAM)
    found = solved(model, memory_share=shares[0], ngram_share=shares[1])
    assert found.cost.total_params == pytest.approx(TOTAL, rel=0.01)
    assert found.cost.flops_per_token == pytest.approx(cost(MIXTURE, 256).flops_per_token, rel=0.01)
    assert list(shares_of(found.model).values()) == pytest.approx(shares, abs=0.02)


@pytest.mark.parametrize(
    ("model", "targets", "message"),
    [
        (MIXTURE, {"total_params": TOTAL, "memory_share": 0.5}, "needs a"),
        (dataclasses.replace(MIXTURE, memory=MEMORY), {"memory_share": 0.5}, "add total_params"),
        (
            dataclasses.replace(MIXTURE, memory=MEMORY),
            {"total_params": TOTAL, "memory_share": 1.5},
            "between 0 and 1",
        ),
        (
            dataclasses.replace(MIXTURE, memory=MEMORY, ngram=NGRAM),
            {"total_params": TOTAL, "memory_share": 0.7, "ngram_share": 0.7},
            "more than 1",
        ),
        (
            dataclasses.replace(MIXTURE, ffn=FfnSpec(), memory=MEMORY),
            {"total_params": TOTAL, "memory_share": 0.5},
            "needs experts",
        ),
    ],
)
def test_what_cannot_be_shared_out_is_refused(model: ModelSpec, targets: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        solve(model, targets, "iso_flops", 256, reference=MIXTURE)
