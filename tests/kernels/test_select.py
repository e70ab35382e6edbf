"""Every backend of `select` against the float64 reference and against brute force."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.numerics import assert_close, seeded
from umscale.spec import MemorySpec
from umscale_kernels import Selection, available_backends, backends, rank1_vectors, select
from umscale_kernels.backends import interpreted
from umscale_kernels.select import native, reference, triton_supports

BACKENDS = available_backends("select")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Shape(NamedTuple):
    heads: int | None  # None: no head axis
    tokens: int
    n: int
    rank: int
    n_cores: int
    top_m: int
    preselect_m: int


SHAPES = [
    Shape(None, 63, 100, 2, 2, 47, 47),
    Shape(None, 63, 5, 1, 1, 1, 1),
    Shape(None, 1, 128, 2, 1, 32, 32),
    Shape(None, 1, 1, 2, 2, 1, 1),
    Shape(None, 63, 13, 2, 2, 94, 13),
    Shape(None, 9, 300, 2, 2, 94, 17),
    Shape(None, 5, 37, 3, 1, 1, 1),
    Shape(None, 5, 30, 1, 2, 47, 30),
    Shape(2, 2, 45, 2, 2, 47, 45),
    Shape(2, 4, 20, 4, 3, 25, 5),
]
NUMBERS = {
    "fp32": (torch.float32, None),
    "fp32-ties": (torch.float32, 2),
    "bf16": (torch.bfloat16, None),
    "fp64": (torch.float64, None),
}


def is_slow(backend: str) -> bool:
    """Interpreted Triton takes tenths of a second for every token."""
    return backend == "triton" and interpreted()


def cases() -> list[Any]:
    found = []
    for backend in (*BACKENDS, "auto"):
        for shape in SHAPES:
            for name, numbers in NUMBERS.items():
                if name == "fp64" and backend in ("native", "triton"):
                    continue
                case = shape
                if is_slow(backend) and shape == SHAPES[1] and name != "fp32":
                    continue  # the one with all its tokens
                if is_slow(backend) and shape != SHAPES[1]:
                    case = shape._replace(tokens=1)
                    if name == "bf16" and shape not in SHAPES[:3]:
                        continue
                label = "-".join(map(str, (backend, *shape, name)))
                found.append(pytest.param(backend, case, *numbers, id=label))
    return found


def problem(shape: Shape, *, levels: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float32 scores, u, v, cores; with `levels`, few distinct values and hence many ties."""
    generator = seeded(shape.tokens * 1000 + shape.n)
    lead = () if shape.heads is None else (shape.heads,)
    scores = torch.randn(*lead, 2, shape.rank, shape.tokens, shape.n, generator=generator)
    cores = torch.rand(*lead, shape.n_cores, shape.rank, shape.rank, generator=generator)
    u, v = rank1_vectors(cores)
    if levels is not None:
        scores, cores, u, v = ((x * levels).round() / levels for x in (scores, cores, u, v))
    return scores, u, v, cores


def run(
    backend: str, scores: Tensor, u: Tensor, v: Tensor, cores: Tensor, *sizes: int, **options: int
) -> Selection:
    """`select` on the GPU where there is one and the backend runs there; results on the CPU."""
    device = "cpu" if backend == "native" else DEVICE
    picked = select(*(x.to(device) for x in (scores, u, v, cores)), *sizes, **options, backend=backend)
    return Selection(*(x.cpu() for x in picked))


def brute_force(
    scores: Tensor, u: Tensor, v: Tensor, cores: Tensor, top_m: int, m1: int, quadrants: int = 1
) -> list[tuple[int, int]]:
    """Kept pairs of one token and head by sorting Python tuples; scores [2, r, n]."""
    a, b = reference.side_scores(scores.unsqueeze(-2), torch.stack((u, v)))[:, 0].tolist()
    core = reference.core_sum(cores)
    total = reference.totals(scores[0].unsqueeze(-2), scores[1].unsqueeze(-2), core)[0].tolist()
    cells = set()
    for sign in (-1, 1)[:quadrants]:
        rows = sorted(range(len(a)), key=lambda i, sign=sign: (sign * a[i], i))[:m1]
        cols = sorted(range(len(b)), key=lambda j, sign=sign: (sign * b[j], j))[:m1]
        cells |= {(i, j) for i in rows for j in cols}
    return sorted(sorted(cells, key=lambda cell: (-total[cell[0]][cell[1]], cell))[:top_m])


def assert_pairs_of_brute_force(
    picked: Selection, scores: Tensor, u: Tensor, v: Tensor, cores: Tensor, *sizes: int
) -> None:
    """Compare every seventh token of every head."""
    operands = [
        x.flatten(0, -1 - k) for x, k in ((scores, 4), (u, 1), (v, 1), (cores, 3)) if x.dim() > k
    ] or [x.unsqueeze(0) for x in (scores, u, v, cores)]
    row, col = (x.reshape(-1, *x.shape[-2:]) for x in picked[:2])
    for head, (S, *rest) in enumerate(zip(*operands, strict=True)):
        for t in range(0, S.shape[-2], 7):
            kept = list(zip(row[head, t].tolist(), col[head, t].tolist(), strict=True))
            assert kept == brute_force(S[:, :, t], *rest, *sizes)


@pytest.mark.parametrize(("backend", "shape", "dtype", "levels"), cases())
def test_pairs_of_brute_force_and_gradients_of_the_reference(
    backend: str, shape: Shape, dtype: torch.dtype, levels: int | None
) -> None:
    scores, u, v, cores = problem(shape, levels=levels)
    compute = torch.promote_types(dtype, torch.float32)
    scores, cores = scores.to(dtype).requires_grad_(), cores.to(compute).requires_grad_()
    picked = run(backend, scores, u, v, cores, shape.top_m, shape.preselect_m)
    assert picked.s.dtype == compute
    assert picked.row.dtype == picked.col.dtype == torch.int64
    operands = (x.detach().to(compute) for x in (scores, u, v, cores))
    assert_pairs_of_brute_force(picked, *operands, shape.top_m, shape.preselect_m)

    ds = torch.randn(picked.s.shape, generator=seeded(1), dtype=compute)
    grads = torch.autograd.grad(picked.s, (scores, cores), ds, retain_graph=True)
    again = torch.autograd.grad(picked.s, (scores, cores), ds)
    exact = [x.detach().double().requires_grad_() for x in (scores, cores)]
    s_exact = reference.kept_scores(*exact, picked.row, picked.col)
    d_scores, d_cores = torch.autograd.grad(s_exact, exact, ds.double())
    assert_close(picked.s, s_exact)
    # d_scores of bfloat16 scores is rounded once, to bfloat16.
    assert_close(grads[0], d_scores, 8e-3 if dtype == torch.bfloat16 else torch.float32)
    assert_close(grads[1], d_cores, floor=1.0)
    if backend in ("native", "triton") or DEVICE == "cpu":
        assert all(torch.equal(x, y) for x, y in zip(grads, again, strict=True))


@pytest.mark.parametrize("backend", ["reference", "aten"])
def test_gradcheck(backend: str) -> None:
    scores, u, v, cores = (x.double() for x in problem(Shape(None, 3, 9, 2, 2, 7, 7)))

    def kept(scores: Tensor, cores: Tensor) -> Tensor:
        return select(scores, u, v, cores, 7, backend=backend).s

    assert torch.autograd.gradcheck(kept, (scores.requires_grad_(), cores.requires_grad_()))


@pytest.mark.parametrize("sizes", [(128, 128), (100, 64), (5, 200), (200, 256), (768, 128)], ids=str)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_realistic_scores_keep_the_same_pairs_on_every_backend(backend: str, sizes: tuple[int, int]) -> None:
    """Products of queries and keys, in sizes that take every shortcut of the fast paths."""
    generator = seeded(0)
    tokens = 1 if is_slow(backend) else 96
    queries = torch.randn(2, 2, tokens, 32, generator=generator)
    keys = torch.randn(2, 2, 32, 260, generator=generator)
    cores = torch.rand(2, 2, 2, generator=generator)
    operands = (queries @ keys, *rank1_vectors(cores), cores)
    wanted, got = select(*operands, *sizes, backend="reference"), run(backend, *operands, *sizes)
    assert torch.equal(got.row, wanted.row)
    assert torch.equal(got.col, wanted.col)


@pytest.mark.parametrize("backend", BACKENDS)
def test_best_pairs_may_share_one_column_or_all_be_equal(backend: str) -> None:
    """What bounds from groups of cells are worst at."""
    generator = seeded(0)
    rows, cols = 1 + torch.rand(64, generator=generator), 0.9 + 0.1 * torch.rand(64, generator=generator)
    cols[5] = 100
    one_column, equal = torch.stack((rows, cols)), torch.ones(2, 64)
    scores, one = torch.stack((one_column, equal), 1).unsqueeze(1), torch.ones(1)
    operands = (scores, one, one, one.view(1, 1, 1))
    row, col, _ = run(backend, *operands, 32, 64)
    assert col[0].tolist() == [5] * 32
    assert row[0].tolist() == sorted(rows.topk(32).indices.tolist())
    assert row[1].tolist() == [0] * 32
    assert col[1].tolist() == list(range(32))


@pytest.mark.parametrize("levels", [None, 2], ids=["distinct", "ties"])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(None, 20, 40, 2, 2, 47, 12),
        Shape(None, 20, 20, 2, 2, 30, 13),  # the grids overlap
        Shape(None, 5, 9, 2, 1, 81, 9),  # they are the same
        Shape(2, 8, 30, 3, 2, 1, 6),
    ],
    ids=lambda shape: "-".join(map(str, shape)),
)
@pytest.mark.parametrize("backend", ["reference", "aten", "auto"])
def test_two_quadrants_keep_the_best_of_both_grids(backend: str, shape: Shape, levels: int | None) -> None:
    scores, u, v, cores = problem(shape, levels=levels)
    sizes = (shape.top_m, shape.preselect_m)
    scores.requires_grad_()
    picked = run(backend, scores, u, v, cores, *sizes, quadrants=2)
    operands = (scores.detach(), u, v, cores)
    assert_pairs_of_brute_force(picked, *operands, *sizes, 2)
    single = run(backend, *operands, *sizes)
    assert (picked.s.sum((-1, -2)) >= single.s.sum((-1, -2)) - 1e-4).all()
    exact = scores.detach().double().requires_grad_()
    s_exact = reference.kept_scores(exact, cores.double(), picked.row, picked.col)
    grads = [torch.autograd.grad(s.square().sum(), x)[0] for s, x in ((picked.s, scores), (s_exact, exact))]
    assert_close(grads[0], grads[1])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top_m", [20, 37])
def test_non_finite_scores_still_give_pairs_in_range(backend: str, top_m: int) -> None:
    scores, u, v, cores = problem(Shape(None, 5, 40, 2, 1, top_m, top_m))
    scores[:, :, 0] = float("nan")
    scores[0, 0, 1, ::3] = float("inf")
    scores[1, 1, 2, ::2] = -float("nan")
    scores[:, :, 3] = scores[:, :, 0].copysign(torch.tensor(-1.0))
    row, col, _ = run(backend, scores, u, v, cores, top_m)
    assert min(row.min(), col.min()) >= 0
    assert max(row.max(), col.max()) < 40
    finite = (row * 40 + col)[4:].tolist()
    assert all(len(set(kept)) == top_m for kept in finite)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_scores_and_empty_batches(backend: str) -> None:
    scores, u, v, cores = problem(Shape(None, 2, 30, 2, 2, 17, 17))
    strided = scores.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    a, b = (run(backend, x, u, v, cores, 17) for x in (scores, strided))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert run(backend, scores[:, :, :0], u, v, cores, 17).s.shape == (0, 17, 2)


def test_native_backward_does_not_depend_on_the_number_of_threads() -> None:
    if "native" not in BACKENDS:
        pytest.skip("no compiler")
    scores, u, v, cores = problem(Shape(None, 200, 50, 2, 2, 30, 30))
    scores.requires_grad_(), cores.requires_grad_()
    before, grads = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            s = select(scores, u, v, cores, 30, backend="native").s
            grads.append(torch.autograd.grad(s.sum(), (scores, cores)))
    finally:
        torch.set_num_threads(before)
    for other in grads[1:]:
        assert all(torch.equal(x, y) for x, y in zip(grads[0], other, strict=True))


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((10, 3), {}, "top_m must lie in"),
        ((4, 21), {}, "preselect_m must lie in"),
        ((0, None), {}, "preselect_m must lie in"),
        ((4, 4), {"quadrants": 3}, "quadrants must be 1 or 2"),
        ((4, 4), {"quadrants": 2, "backend": "native"}, "searches one quadrant"),
        ((4, 4), {"quadrants": 2, "backend": "triton"}, "searches one quadrant"),
        ((4, 4), {"backend": "numba"}, "backend of select must be"),
    ],
)
def test_arguments_that_cannot_work_are_refused(sizes: tuple, options: dict, message: str) -> None:
    scores, u, v, cores = problem(Shape(None, 2, 20, 2, 2, 4, 4))
    with pytest.raises(ValueError, match=message):
        select(scores, u, v, cores, *sizes, **options)


def test_the_widest_published_layer_has_a_fast_kernel_on_every_device() -> None:
    """top_m 768, whose candidates a layer caps at 128; and whatever has none says so, once."""
    wide = MemorySpec(n_keys=1024, top_m=768)
    for supports in (native.supports, triton_supports):
        assert supports(wide.tucker_rank, wide.keys_per_side, wide.candidates, wide.top_m)
        assert not supports(wide.tucker_rank, 2048, 1025, 2000)
    backends.warn_slow.cache_clear()
    with pytest.warns(backends.SlowPathWarning, match="select has no fast kernel for these sizes"):
        assert backends.resolve("select", "auto", "cuda", torch.float32, triton_supported=False) == "aten"
    with warnings.catch_warnings(action="error"):
        backends.resolve("select", "auto", "cuda", torch.float32, triton_supported=False)


def test_shapes_that_do_not_fit_are_refused() -> None:
    scores, u, v, cores = problem(Shape(None, 2, 20, 2, 2, 4, 4))
    with pytest.raises(ValueError, match="u must be"):
        select(scores, u[:1], v, cores, 4)
    if "triton" in BACKENDS:
        scores, u, v, cores = problem(Shape(None, 1, 8, 5, 1, 4, 4))
        with pytest.raises(ValueError, match="'triton' of select does not take"):
            select(scores, u, v, cores, 4, backend="triton")


def grads_of(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("backend", "quadrants"), [(name, 1) for name in BACKENDS[1:]] + [("auto", 2)])
def test_runs_under_torch_library_checks_and_torch_compile(
    backend: str, quadrants: int, dtype: torch.dtype
) -> None:
    device = "cpu" if backend == "native" else DEVICE
    scores, u, v, cores = (x.to(device) for x in problem(Shape(None, 1, 6, 1, 1, 2, 2)))
    scores, cores = scores.to(dtype).requires_grad_(), cores.requires_grad_()
    torch.library.opcheck(torch.ops.umscale.select.default, (scores, u, v, cores, 2, 2, quadrants, backend))

    def loss(scores: Tensor, cores: Tensor) -> Tensor:
        return select(scores * 2, u, v, cores, 2, quadrants=quadrants, backend=backend).s.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    pairs = zip(grads_of(compiled, scores, cores), grads_of(loss, scores, cores), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)
