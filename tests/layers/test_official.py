"""Released key layouts: the layer with loaded weights picks what the released computation picks."""

import pytest
import torch

from umscale.layers.official import load_official, query_weight
from umscale.layers.tucker import TuckerMemory
from umscale.spec import MemorySpec

H, N, K, M = 12, 16, 6, 5
SPEC = MemorySpec(n_keys=N, top_m=M, d_key=K, d_pre_value=4, d_value=4)


def released_picks(query, keys, cores, y, layout):
    """Pairs kept by the released code (slot 0 only) or the Ascend rewrite (first block of either slot), float64."""

    def rms(x):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    q = (y @ query.T).view(len(y), 2, 2 * K)
    row_q, col_q = (q[:, 0, :K], q[:, 0, K:]) if layout == "official" else (q[:, 0, :K], q[:, 1, :K])
    row_q, col_q = rms(row_q), rms(col_q)
    normed = rms(keys[0].transpose(-1, -2))  # [2, n, r, K]
    rows = torch.einsum("tk,nrk->trn", row_q, normed[0])
    cols = torch.einsum("tk,nrk->trn", col_q, normed[1])
    left, _, right = torch.linalg.svd(cores[:, 0].sum(0))
    u, v = left[:, 0], right[0]
    if (u + v).sum() < 0:
        u, v = -u, -v
    picks = []
    for t in range(len(y)):
        I = (u @ rows[t]).topk(M).indices
        J = (v @ cols[t]).topk(M).indices
        total = rows[t][:, I].T @ cores[:, 0].sum(0) @ cols[t][:, J]
        best = total.flatten().topk(M).indices
        picks.append({(int(I[f // M]), int(J[f % M])) for f in best})
    return picks


@pytest.mark.parametrize("layout", ["official", "ascend"])
def test_loaded_weights_pick_what_the_released_code_picks(layout):
    query, keys = torch.randn(4 * K, H), torch.randn(1, 2, N, K, 2)
    cores, y = torch.rand(2, 1, 2, 2), torch.randn(40, H)
    memory = TuckerMemory(H, SPEC, 0, 1, seed=0)
    permutation = torch.randperm(N * N)
    gains = {"query_gain": torch.ones(K), "key_gain": torch.ones(K)}
    load_official(
        memory, query=query, keys=keys, cores=cores, **gains, query_layout=layout, permutation=permutation
    )
    wanted = released_picks(query.double(), keys.double(), cores.double(), y.double(), layout)
    address = memory.retrieve(y)[0]
    for t in range(len(y)):
        assert set(address[t].tolist()) == {int(permutation[i * N + j]) for i, j in wanted[t]}
    other = "ascend" if layout == "official" else "official"
    load_official(
        memory, query=query, keys=keys, cores=cores, **gains, query_layout=other, permutation=permutation
    )
    same = (memory.retrieve(y)[0].sort(-1).values == address.sort(-1).values).float().mean()
    assert same < 0.5, "the layouts must not be interchangeable"


def test_paper_layout_is_the_layers_own():
    weight = torch.randn(4 * K, H)
    assert torch.equal(query_weight(weight, 2, "paper"), weight)


def test_sizes_and_layouts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="query_layout"):
        query_weight(torch.randn(4 * K, H), 2, "other")
    with pytest.raises(ValueError, match="rank 2"):
        query_weight(torch.randn(6 * K, H), 3, "official")
    memory = TuckerMemory(H, SPEC, 0, 1, seed=0)
    with pytest.raises(ValueError, match="keys must be"):
        load_official(
            memory, query=torch.randn(4 * K, H), keys=torch.randn(1, 2, N + 1, K, 2), cores=torch.rand(2, 1, 2, 2),
            query_gain=torch.ones(K), key_gain=torch.ones(K),
        )  # fmt: skip
