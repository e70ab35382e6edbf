"""Every backend of `lookup` against the float64 reference: output, every gradient, determinism."""

import pytest
import torch
from torch import Tensor

from umscale_kernels import available_backends, lookup
from umscale_kernels.lookup import reference

BACKENDS = available_backends("lookup")
# T, N, m, c, Dp (0: no pre-values), Dv
SHAPES = [
    (1, 10, 1, 1, 8, 8),
    (63, 50, 47, 2, 24, 24),
    (63, 1000, 94, 1, 60, 24),
    (33, 7, 32, 2, 64, 64),
    (17, 300, 5, 2, 0, 40),
    (9, 40, 6, 3, 5, 21),
    (20, 64, 16, 2, 32, 160),
]


def problem(shape: tuple, table_dtype: torch.dtype = torch.float32) -> dict[str, Tensor | None]:
    tokens, n_rows, m, n_cores, d_pre_value, d_value = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return {
        "p": normal(tokens, d_pre_value) if d_pre_value else None,
        "s": normal(tokens, m, n_cores),
        "rows": torch.randint(0, n_rows, (tokens, m), generator=generator),  # with duplicates in a token
        "pre_values": normal(n_rows, d_pre_value).to(table_dtype) if d_pre_value else None,
        "values": normal(n_rows, d_value).to(table_dtype),
    }


def run(backend: str, operands: dict[str, Tensor | None], d_o: Tensor) -> list[Tensor]:
    """Output, then the gradients of every floating-point operand there is."""
    leaves = {
        name: x.detach().requires_grad_() if x is not None and x.is_floating_point() else x
        for name, x in operands.items()
    }
    o = lookup(**leaves, backend=backend)
    return [
        o.detach(),
        *torch.autograd.grad(o, [x for x in leaves.values() if x is not None and x.requires_grad], d_o),
    ]


def upstream(shape: tuple) -> Tensor:
    return torch.randn(shape[0], shape[5], generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_matches_the_float64_reference(
    backend: str, shape: tuple, table_dtype: torch.dtype, index_dtype: torch.dtype
) -> None:
    if backend == "native" and table_dtype == torch.float64:
        pytest.skip("the native path is float32")
    operands = problem(shape, table_dtype)
    operands["rows"] = operands["rows"].to(index_dtype)
    got = run(backend, operands, upstream(shape).to(torch.promote_types(table_dtype, torch.float32)))
    exact = {name: x if x is None or name == "rows" else x.double() for name, x in operands.items()}
    wanted = run("reference", exact, upstream(shape).double())
    tables = 2 if shape[4] else 1
    for i, (x, y) in enumerate(zip(got, wanted, strict=True)):
        rounded = (
            table_dtype == torch.bfloat16 and i >= len(got) - tables
        )  # table gradients take the table's dtype
        torch.testing.assert_close(
            x.double(), y, rtol=8e-3 if rounded else 1e-4, atol=1e-5 * y.abs().max().item()
        )


@pytest.mark.parametrize("backend", ["reference", "aten"])
@pytest.mark.parametrize("d_pre_value", [0, 3])
def test_gradcheck(backend: str, d_pre_value: int) -> None:
    operands = problem((4, 6, 5, 2, d_pre_value, 8))
    rows, leaves = (
        operands.pop("rows"),
        [None if x is None else x.double().requires_grad_() for x in operands.values()],
    )

    def output(p: Tensor | None, s: Tensor, pre_values: Tensor | None, values: Tensor) -> Tensor:
        return lookup(p, s, rows, pre_values, values, backend=backend)

    assert torch.autograd.gradcheck(output, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_is_bitwise_reproducible(backend: str) -> None:
    shape = (128, 30, 16, 2, 16, 32)
    operands, d_o = problem(shape), upstream(shape)
    first = run(backend, operands, d_o)
    assert all(torch.equal(x, y) for x, y in zip(first, run(backend, operands, d_o), strict=True))


@pytest.mark.skipif("native" not in BACKENDS, reason="no compiler")
def test_native_does_not_depend_on_the_number_of_threads() -> None:
    shape = (128, 700, 16, 2, 16, 32)
    operands, d_o, before = problem(shape), upstream(shape), torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(run("native", operands, d_o))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in runs[1:] for x, y in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_tables_get_no_gradient(backend: str) -> None:
    operands = problem(SHAPES[1])
    operands["s"].requires_grad_()
    lookup(**operands, backend=backend).sum().backward()
    assert operands["s"].grad is not None
    assert operands["values"].grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_nobody_reads_get_a_zero_gradient(backend: str) -> None:
    operands = problem((4, 50, 3, 2, 8, 16))
    operands["rows"] %= 5
    d_pre_values, d_values = run(backend, operands, upstream((4, 50, 3, 2, 8, 16)))[-2:]
    assert (d_pre_values[5:] == 0).all()
    assert (d_values[5:] == 0).all()
    assert (d_values[:5] != 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [-1, 50])
def test_rows_out_of_range_are_refused(backend: str, bad: int) -> None:
    operands = problem(SHAPES[1])
    operands["rows"][5, 3] = bad
    if backend == "reference" and bad < 0:
        pytest.skip("PyTorch indexing wraps negative rows")
    with pytest.raises((IndexError, RuntimeError)):
        lookup(**operands, backend=backend)


def test_shapes_that_do_not_fit_are_refused() -> None:
    operands = problem(SHAPES[1])
    with pytest.raises(ValueError, match="not a multiple of the 2 cores"):
        lookup(**{**operands, "values": operands["values"][:, :-1]})
    with pytest.raises(ValueError, match="rows must be"):
        lookup(**{**operands, "rows": operands["rows"][:-1]})
    with pytest.raises(ValueError, match="p None"):
        lookup(**{**operands, "p": None})


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_no_tokens(backend: str) -> None:
    operands = problem((0, 5, 3, 2, 4, 8))
    o, *_, d_values = run(backend, operands, upstream((0, 5, 3, 2, 4, 8)))
    assert o.shape == (0, 8)
    assert torch.equal(d_values, torch.zeros(5, 8))


def test_output_is_the_sum_written_in_the_formula() -> None:
    """Two lookups, two cores, by hand: z = (2, -1), slices of width 1."""
    p, pre_values = torch.tensor([[1.0]]), torch.tensor([[2.0], [-1.0], [9.0]])
    values = torch.tensor([[1.0, 10.0], [3.0, 20.0], [0.0, 0.0]])
    s = torch.tensor([[[1.0, 0.5], [2.0, 1.0]]])
    o = lookup(p, s, torch.tensor([[0, 1]]), pre_values, values, backend="reference")
    assert o.tolist() == [[1 * 2 * 1 + 2 * -1 * 3, 0.5 * 2 * 10 + 1 * -1 * 20]]


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4]], ids=str)
def test_runs_under_torch_library_checks(shape: tuple) -> None:
    operands = problem(shape)
    p = operands["s"].new_empty(0) if operands["p"] is None else operands["p"].requires_grad_()
    tensors = (
        p,
        operands["s"].requires_grad_(),
        operands["rows"],
        operands["pre_values"],
        operands["values"],
    )
    operands["values"].requires_grad_()
    torch.library.opcheck(torch.ops.umscale.lookup.default, (*tensors, "auto"))


def test_peak_memory_has_no_gathered_rows() -> None:
    """The fast paths allocate far less than one [T, m, Dv] buffer."""
    tokens, m, d_value = 256, 64, 256
    operands = problem((tokens, 500, m, 2, 0, d_value))
    for backend in BACKENDS:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            lookup(**operands, backend=backend)
        largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
        assert (largest >= tokens * m * d_value * 4) == (backend == "reference")


def test_reference_in_float64_keeps_its_dtype() -> None:
    operands = {name: x.double() if x.is_floating_point() else x for name, x in problem(SHAPES[1]).items()}
    assert reference.lookup(**operands).dtype == torch.float64
