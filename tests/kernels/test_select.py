"""Every backend of `select` against the float64 reference and against brute force."""

import pytest
import torch
from torch import Tensor

from umscale_kernels import available_backends, rank1_vectors, select
from umscale_kernels.select import reference

BACKENDS = available_backends("select")
# heads (None: no head axis), T, n, r, c, top_m, preselect_m
SHAPES = [
    (None, 63, 100, 2, 2, 47, None),
    (None, 1, 128, 2, 1, 32, None),
    (None, 1, 1, 2, 2, 1, None),
    (None, 63, 13, 2, 2, 94, 13),
    (None, 9, 300, 2, 2, 94, 17),
    (None, 5, 37, 3, 1, 1, None),
    (None, 5, 30, 1, 2, 47, 30),
    (3, 7, 45, 2, 2, 47, None),
    (2, 4, 20, 4, 3, 25, 5),
]


def problem(shape: tuple, *, levels: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float32 scores, u, v, cores; with `levels`, few distinct values and hence many ties."""
    heads, tokens, n, rank, n_cores, _, _ = shape
    generator = torch.Generator().manual_seed(tokens * 1000 + n)
    lead = () if heads is None else (heads,)
    scores = torch.randn(*lead, 2, rank, tokens, n, generator=generator)
    cores = torch.rand(*lead, n_cores, rank, rank, generator=generator)
    u, v = rank1_vectors(cores)
    if levels is not None:
        scores, cores, u, v = ((x * levels).round() / levels for x in (scores, cores, u, v))
    return scores, u, v, cores


def brute_force(
    scores: Tensor, u: Tensor, v: Tensor, cores: Tensor, top_m: int, m1: int
) -> list[tuple[int, int]]:
    """Kept pairs of one token and head by sorting Python tuples; scores [2, r, n]."""
    a, b = reference.side_scores(scores.unsqueeze(-2), torch.stack((u, v)))[:, 0].tolist()
    rows = sorted(range(len(a)), key=lambda i: (-a[i], i))[:m1]
    cols = sorted(range(len(b)), key=lambda j: (-b[j], j))[:m1]
    total = reference.totals(scores[0].unsqueeze(-2), scores[1].unsqueeze(-2), reference.core_sum(cores))[
        0
    ].tolist()
    cells = sorted(((i, j) for i in rows for j in cols), key=lambda cell: (-total[cell[0]][cell[1]], cell))
    return sorted(cells[:top_m])


@pytest.mark.parametrize("levels", [None, 2], ids=["distinct", "ties"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_keeps_the_pairs_of_brute_force(backend: str, shape: tuple, levels: int | None) -> None:
    scores, u, v, cores = problem(shape, levels=levels)
    top_m, m1 = shape[5], shape[6] or min(shape[5], shape[2])
    row, col, _ = select(scores, u, v, cores, top_m, m1, backend=backend)
    heads, tokens = shape[0] or 1, shape[1]
    flat = [x.reshape(heads, *x.shape[-k:]) for x, k in ((scores, 4), (u, 1), (v, 1), (cores, 3))]
    row, col = row.reshape(heads, tokens, top_m), col.reshape(heads, tokens, top_m)
    for head in range(heads):
        for t in range(0, tokens, 5):
            S, *rest = (x[head] for x in flat)
            kept = list(zip(row[head, t].tolist(), col[head, t].tolist(), strict=True))
            assert kept == brute_force(S[:, :, t], *rest, top_m, m1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_scores_and_gradients_match_the_float64_reference(
    backend: str, shape: tuple, dtype: torch.dtype
) -> None:
    if backend == "native" and dtype == torch.float64:
        pytest.skip("the native path is float32")
    scores, u, v, cores = problem(shape)
    scores = scores.to(dtype).requires_grad_()
    cores = cores.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    row, col, s = select(scores, u, v, cores, *shape[5:], backend=backend)
    assert s.dtype == torch.promote_types(dtype, torch.float32)
    assert row.dtype == col.dtype == torch.int64
    ds = torch.randn(s.shape, generator=torch.Generator().manual_seed(1), dtype=s.dtype)
    d_scores, d_cores = torch.autograd.grad(s, (scores, cores), ds)

    exact = [x.detach().double().requires_grad_() for x in (scores, cores)]
    s_exact = reference.kept_scores(*exact, row, col)
    grads_exact = torch.autograd.grad(s_exact, exact, ds.double())
    torch.testing.assert_close(s.double(), s_exact, rtol=1e-5, atol=1e-5)
    # d_scores of bfloat16 scores is rounded once, to bfloat16.
    rtol = 8e-3 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(d_scores.double(), grads_exact[0], rtol=rtol, atol=1e-4)
    torch.testing.assert_close(d_cores.double(), grads_exact[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "aten"])
def test_gradcheck(backend: str) -> None:
    scores, u, v, cores = (x.double() for x in problem((None, 3, 9, 2, 2, 7, None)))

    def kept(scores: Tensor, cores: Tensor) -> Tensor:
        return select(scores, u, v, cores, 7, backend=backend).s

    assert torch.autograd.gradcheck(kept, (scores.requires_grad_(), cores.requires_grad_()))


def test_a_large_problem_keeps_the_same_pairs_on_every_backend() -> None:
    """Realistic scores (products of queries and keys), sizes that take every shortcut of the fast paths."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 2, 96, 32, generator=generator)
    keys = torch.randn(2, 2, 32, 260, generator=generator)
    cores = torch.rand(2, 2, 2, generator=generator)
    u, v = rank1_vectors(cores)
    scores = queries @ keys
    for top_m, m1 in ((128, 128), (100, 64), (5, 200)):
        wanted = select(scores, u, v, cores, top_m, m1, backend="reference")
        for backend in BACKENDS:
            got = select(scores, u, v, cores, top_m, m1, backend=backend)
            assert torch.equal(got.row, wanted.row)
            assert torch.equal(got.col, wanted.col)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top_m", [20, 37])
def test_non_finite_scores_still_give_pairs_in_range(backend: str, top_m: int) -> None:
    scores, u, v, cores = problem((None, 12, 40, 2, 2, top_m, None))
    scores[:, :, 0] = float("nan")
    scores[0, 0, 1, ::3] = float("inf")
    scores[1, 1, 2, ::2] = -float("nan")
    scores[:, :, 3] = scores[:, :, 0].copysign(torch.tensor(-1.0))
    row, col, _ = select(scores, u, v, cores, top_m, backend=backend)
    assert min(row.min(), col.min()) >= 0
    assert max(row.max(), col.max()) < 40
    finite = (row * 40 + col)[4:].tolist()
    assert all(len(set(kept)) == top_m for kept in finite)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_scores_and_empty_batches(backend: str) -> None:
    scores, u, v, cores = problem(SHAPES[0])
    strided = scores.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    a, b = (select(x, u, v, cores, 47, backend=backend) for x in (scores, strided))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert select(scores[:, :, :0], u, v, cores, 47, backend=backend).s.shape == (0, 47, 2)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_backward_does_not_depend_on_the_number_of_threads(backend: str) -> None:
    scores, u, v, cores = problem((None, 200, 50, 2, 2, 30, None))
    scores.requires_grad_(), cores.requires_grad_()
    before, grads = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            grads.append(
                torch.autograd.grad(select(scores, u, v, cores, 30, backend=backend).s.sum(), (scores, cores))
            )
    finally:
        torch.set_num_threads(before)
    for other in grads[1 if backend == "native" else 2 :]:
        assert all(torch.equal(x, y) for x, y in zip(grads[0], other, strict=True))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((10, 3), "top_m must lie in"),
        ((4, 21), "preselect_m must lie in"),
        ((0, None), "preselect_m must lie in"),
    ],
)
def test_sizes_that_cannot_work_are_refused(sizes: tuple, message: str) -> None:
    scores, u, v, cores = problem((None, 2, 20, 2, 2, 4, None))
    with pytest.raises(ValueError, match=message):
        select(scores, u, v, cores, *sizes)


def test_shapes_that_do_not_fit_are_refused() -> None:
    scores, u, v, cores = problem((None, 2, 20, 2, 2, 4, None))
    with pytest.raises(ValueError, match="u must be"):
        select(scores, u[:1], v, cores, 4)
    with pytest.raises(ValueError, match="backend of select must be"):
        select(scores, u, v, cores, 4, backend="numba")


def test_runs_under_torch_library_checks() -> None:
    scores, u, v, cores = problem((None, 3, 20, 2, 2, 4, None))
    arguments = (scores.requires_grad_(), u, v, cores.requires_grad_(), 4, 4, "auto")
    torch.library.opcheck(torch.ops.umscale.select.default, arguments)
