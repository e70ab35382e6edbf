"""Rank-1 vectors: optimal, closed form equal to the SVD, signs that do not flip; row counts."""

import pytest
import torch

from tests.numerics import seeded
from umscale_kernels import count_rows, rank1_vectors


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("n_cores", [1, 2])
def test_leading_singular_vectors(rank: int, n_cores: int) -> None:
    cores = torch.randn(500, n_cores, rank, rank, generator=seeded(rank), dtype=torch.float64)
    u, v = rank1_vectors(cores)
    left, singular, right_h = torch.linalg.svd(cores.sum(1))
    best = singular[:, 0, None, None] * left[:, :, :1] * right_h[:, :1, :]
    torch.testing.assert_close(
        singular[:, 0, None, None] * u[:, :, None] * v[:, None, :], best, rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(u.norm(dim=-1), torch.ones(500, dtype=torch.float64))
    assert ((u + v).sum(-1) >= 0).all()


def test_sign_follows_the_previous_pair() -> None:
    cores = torch.rand(2, 2, 2, generator=seeded(0))
    u, v = rank1_vectors(cores)
    assert all((x > 0).all() for x in (u, v))  # positive cores search the positive quadrant
    again = rank1_vectors(cores + 1e-3, (-u, -v))
    assert all((x < 0).all() for x in again)
    for fresh in (torch.zeros(2), torch.zeros(2)), (u, v):
        assert torch.equal(rank1_vectors(cores, fresh)[0], u)


def test_signs_are_chosen_head_by_head() -> None:
    cores = torch.rand(3, 2, 2, 2, generator=seeded(1))
    u, v = rank1_vectors(cores)
    sign = torch.tensor([[1.0], [-1.0], [1.0]])
    again = rank1_vectors(cores, (u * sign, v * sign))
    assert torch.equal(again[0], u * sign)
    assert torch.equal(again[1], v * sign)


@pytest.mark.parametrize(
    "matrix", [[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [-1.0, 0.0]]]
)
def test_degenerate_cores_give_unit_vectors(matrix: list) -> None:
    u, v = rank1_vectors(torch.tensor([matrix]))
    torch.testing.assert_close(torch.stack((u.norm(), v.norm())), torch.ones(2))


def test_no_gradient_and_float32_at_least() -> None:
    cores = torch.rand(1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    u, v = rank1_vectors(cores)
    assert not u.requires_grad
    assert v.dtype == torch.float32


def test_count_rows() -> None:
    rows = torch.tensor([[0, 3], [3, 1]], dtype=torch.int32)
    counts = count_rows(rows, 6)
    assert counts.tolist() == [1, 1, 0, 2, 0, 0]
    assert counts.dtype == torch.int64
