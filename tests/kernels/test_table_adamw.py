"""Every backend of `table_adamw` against the float64 reference, torch's AdamW, and what lazy rows leave alone."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor

from tests.numerics import assert_close, seeded
from umscale_kernels import available_backends, table_adamw

BACKENDS = available_backends("table_adamw")
RATES = {"lr": 3e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
# N, D, touched rows
SHAPES = [(1, 24, 1), (7, 60, 3), (40, 24, 40), (33, 1, 5), (6, 200, 2), (3, 1100, 2)]

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")


def problem(
    shape: tuple[int, int, int], row_wise: bool, dtype: torch.dtype = torch.float32, shadow: bool = False
) -> dict[str, Tensor | None]:
    n, d, _ = shape
    generator = seeded(sum(shape))
    v = torch.rand(n, generator=generator) if row_wise else torch.rand(n, d, generator=generator)
    return {
        "param": torch.randn(n, d, generator=generator).to(dtype),
        "exp_avg": torch.randn(n, d, generator=generator).to(dtype),
        "exp_avg_sq": v.to(dtype),
        "shadow": torch.full((n, d), 7.0, dtype=torch.bfloat16) if shadow else None,
    }


def gradient(shape: tuple[int, int, int], sparse: bool, seed: int = 0) -> Tensor:
    """float32; row-sparse over distinct, unevenly spaced rows in ascending order, or dense."""
    n, d, touched = shape
    generator = seeded(seed)
    if not sparse:
        return torch.randn(n, d, generator=generator)
    rows = torch.randperm(n, generator=generator)[:touched].sort().values
    values = torch.randn(touched, d, generator=generator)
    return torch.sparse_coo_tensor(rows[None], values, (n, d), is_coalesced=True)


def device_of(backend: str) -> str:
    """Where a backend is tested: Triton on the GPU, interpreted on the CPU where there is none."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def updated(backend: str, state: dict[str, Tensor | None], grad: Tensor, step: int = 3) -> dict[str, Tensor]:
    device = device_of(backend)
    out = {name: None if x is None else x.to(device, copy=True) for name, x in state.items()}
    table_adamw(**out, grad=grad.to(device), step=step, **RATES, backend=backend)
    return {name: x.cpu() for name, x in out.items() if x is not None}


def same(x: dict[str, Tensor], y: dict[str, Tensor]) -> bool:
    return all(torch.equal(x[name], y[name]) for name in x)


@pytest.mark.parametrize("shadow", [False, True], ids=["", "shadow"])
@pytest.mark.parametrize("row_wise", [False, True], ids=["full", "row"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "rows"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_matches_the_float64_reference(
    backend: str, shape: tuple[int, int, int], sparse: bool, row_wise: bool, shadow: bool
) -> None:
    state, grad = problem(shape, row_wise, shadow=shadow), gradient(shape, sparse)
    got = updated(backend, state, grad)
    exact = {name: x if x is None or name == "shadow" else x.double() for name, x in state.items()}
    wanted = updated("reference", exact, grad.double().coalesce() if sparse else grad.double())
    for name in ("param", "exp_avg", "exp_avg_sq"):
        assert_close(got[name], wanted[name], 2e-6)
    if shadow:
        rows = grad.indices()[0] if sparse else torch.arange(shape[0])
        untouched = torch.ones(shape[0], dtype=torch.bool).index_fill(0, rows, False)
        assert torch.equal(got["shadow"][rows], got["param"][rows].to(torch.bfloat16))
        assert (got["shadow"][untouched] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "rows"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_torch_adamw_when_every_row_is_touched(backend: str, sparse: bool, dtype: torch.dtype) -> None:
    """Over several steps from zero state, with a learning rate that changes."""
    if backend in ("native", "triton") and dtype == torch.float64:
        pytest.skip("float32 only")
    shape = (9, 60, 9)
    ours = torch.randn(9, 60, generator=seeded(1), dtype=dtype).to(device_of(backend))
    theirs = ours.clone().requires_grad_()
    m, v = torch.zeros_like(ours), torch.zeros_like(ours)
    rates = {name: RATES[name] for name in ("lr", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW([theirs], betas=(RATES["beta1"], RATES["beta2"]), **rates)
    for step in range(1, 6):
        grad = gradient(shape, sparse, seed=step).to(ours)
        grad = grad.coalesce() if sparse else grad
        lr = RATES["lr"] / step
        theirs.grad = grad.to_dense()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        table_adamw(ours, grad, m, v, step, **{**RATES, "lr": lr}, backend=backend)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert_close(ours, theirs, tolerance)
    assert_close(m, optimizer.state[theirs]["exp_avg"], tolerance)
    assert_close(v, optimizer.state[theirs]["exp_avg_sq"], tolerance)


@pytest.mark.parametrize("row_wise", [False, True], ids=["full", "row"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_rows_sparse_is_bitwise_the_dense_update(backend: str, row_wise: bool) -> None:
    shape = (40, 60, 40)
    state, grad = problem(shape, row_wise, shadow=True), gradient(shape, sparse=True)
    assert same(updated(backend, state, grad), updated(backend, state, grad.to_dense()))


@pytest.mark.parametrize("row_wise", [False, True], ids=["full", "row"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_untouched_rows_do_not_change(backend: str, row_wise: bool) -> None:
    shape = (50, 24, 6)
    state, grad = problem(shape, row_wise, shadow=True), gradient(shape, sparse=True)
    after, rows = updated(backend, state, grad), grad.indices()[0]
    for name, x in state.items():
        changed = (after[name] != x).view(50, -1).any(1)
        assert changed.nonzero().squeeze(1).tolist() == rows.tolist(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_touches_nothing_changes_nothing(backend: str) -> None:
    state = problem((5, 8, 0), row_wise=False, shadow=True)
    assert same(updated(backend, state, gradient((5, 8, 0), sparse=True)), state)


def test_row_second_moment_by_hand() -> None:
    """First step: m = 0.1 g, v = 0.05 mean(g²) = 0.05 * 12.5; both corrections cancel their factors."""
    param, m, v = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2), torch.zeros(2)
    grad = torch.sparse_coo_tensor([[1]], [[3.0, -4.0]], (2, 2)).coalesce()
    table_adamw(param, grad, m, v, 1, **{**RATES, "eps": 0.0}, backend="reference")
    kept, lr = 1 - 3e-2 * 0.1, 3e-2 / 12.5**0.5
    assert param[0].tolist() == [1.0, 2.0]
    assert param[1].tolist() == pytest.approx([3 * kept - 3 * lr, 4 * kept + 4 * lr])
    assert v.tolist() == pytest.approx([0.0, 0.05 * 12.5])


@pytest.mark.skipif("native" not in BACKENDS, reason="no compiler")
@pytest.mark.parametrize("row_wise", [False, True], ids=["full", "row"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "rows"])
def test_native_does_not_depend_on_the_number_of_threads(sparse: bool, row_wise: bool) -> None:
    shape, before = (700, 60, 300), torch.get_num_threads()
    state, grad = problem(shape, row_wise, shadow=True), gradient(shape, sparse)
    try:
        runs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(updated("native", state, grad))
    finally:
        torch.set_num_threads(before)
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_shadow_rounds_to_nearest_even(backend: str) -> None:
    """Ties of bfloat16, subnormals, infinity and NaN; a step of rate and decay 0 leaves the values as they are."""
    bits = torch.arange(0x3F7F_0000, 0x3F82_0000, 0x1000, dtype=torch.int32).view(torch.float32)
    special = torch.tensor([0.0, -0.0, 1e-40, float("inf"), float("-inf"), float("nan"), 3.4e38, -1.00390625])
    param = torch.cat([bits, special]).view(-1, 8).to(device_of(backend))
    state = torch.zeros_like(param), torch.ones_like(param)
    shadow = torch.zeros_like(param, dtype=torch.bfloat16)
    wanted = param.to(torch.bfloat16)
    still = {**RATES, "lr": 0.0, "weight_decay": 0.0}
    table_adamw(param, torch.zeros_like(param), *state, 1, **still, shadow=shadow, backend=backend)
    torch.testing.assert_close(shadow, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif("native" not in BACKENDS, reason="no compiler")
@pytest.mark.parametrize("bad", [-1, 7])
def test_rows_out_of_range_are_refused(bad: int) -> None:
    state, values = problem((7, 60, 3), row_wise=False), torch.ones(2, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grad = torch.sparse_coo_tensor(
            torch.tensor([[2, bad]]), values, (7, 60), is_coalesced=True, check_invariants=False
        )
    for backend in ("aten", "native"):
        after = {name: x.clone() for name, x in state.items() if x is not None}
        with pytest.raises((IndexError, RuntimeError)):
            table_adamw(**after, grad=grad, step=1, **RATES, backend=backend)
        assert same(after, {name: x for name, x in state.items() if x is not None})


def test_operands_that_do_not_fit_are_refused() -> None:
    shape = (7, 60, 3)
    good = {**problem(shape, row_wise=False), "grad": gradient(shape, sparse=False), "step": 1, **RATES}
    for bad, message in [
        ({"grad": torch.zeros(7, 59)}, "grad"),
        ({"grad": torch.sparse_coo_tensor([[1, 1]], torch.ones(2, 60), (7, 60))}, "coalesced"),
        ({"exp_avg_sq": torch.zeros(60)}, "exp_avg_sq"),
        ({"exp_avg": torch.zeros(7, 60, dtype=torch.float64)}, "must be torch.float32"),
        ({"shadow": torch.zeros(7, 60)}, "shadow"),
        ({"step": 0}, "step"),
        ({"backend": "cuda"}, "backend"),
    ]:
        with pytest.raises(ValueError, match=message):
            table_adamw(**{**good, **bad})


def test_native_needs_contiguous_tables_and_auto_does_without() -> None:
    state, grad = problem((7, 60, 3), row_wise=False), gradient((7, 60, 3), sparse=True)
    wanted = updated("reference", state, grad)
    strided = {name: None if x is None else x.t().contiguous().t() for name, x in state.items()}
    with pytest.raises(ValueError, match="does not take"):
        table_adamw(**strided, grad=grad, step=3, **RATES, backend="native")
    table_adamw(**strided, grad=grad, step=3, **RATES)
    assert_close(strided["param"], wanted["param"], 2e-6)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "rows"])
def test_runs_under_torch_library_checks(sparse: bool) -> None:
    state, grad = problem((7, 60, 3), row_wise=sparse, shadow=True), gradient((7, 60, 3), sparse)
    rows, values = (grad.indices()[0].clone(), grad.values().clone()) if sparse else (None, grad)
    tensors = (state["param"], values, rows, state["exp_avg"], state["exp_avg_sq"], state["shadow"])
    torch.library.opcheck(
        torch.ops.umscale.table_adamw.default, (*tensors, 3, *RATES.values(), False, "aten")
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_that_stand_for_a_dense_gradient_update_every_row(backend, row_wise, shape, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["umscale_kernels.table_adamw"], "_PIECE_NUMBERS", 100)
    state, grad = problem(shape, row_wise, shadow=True), gradient(shape, sparse=True)
    for step in (1, 2):
        dense = {k: None if x is None else x.clone() for k, x in state.items()}
        table_adamw(**dense, grad=grad.to_dense(), step=step, **RATES, backend=backend)
        table_adamw(**state, grad=grad, step=step, **RATES, lazy=False, backend=backend)
        assert same(state, dense)
        grad = gradient(shape, sparse=True, seed=1)


COMPILE = """
import importlib, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import umscale_kernels

kernel = importlib.import_module("umscale_kernels.table_adamw.triton")._kernel
names = [p.name for p in kernel.params]
types = {"rows_ptr": "*i64", "shadow_ptr": "*i16", "n_updated": "i32"}
for some_rows, row_wise, width in [(False, False, 1), (True, False, 60), (True, True, 128), (False, True, 24)]:
    fixed = {
        "D": width, "BLOCK_D": triton.next_power_of_2(width), "BLOCK_R": 8, "SOME_ROWS": some_rows,
        "ROW_WISE": row_wise, "HAS_SHADOW": True, **({} if some_rows else {"rows_ptr": None}),
    }
    signature = {
        n: "constexpr" if n in fixed else types.get(n, "*fp32" if n.endswith("_ptr") else "fp32") for n in names
    }
    source = ASTSource(kernel, signature, {(names.index(n),): x for n, x in fixed.items()})
    for capability in (80, 90):
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
print("compiled")
"""


@pytest.mark.skipif("triton" not in BACKENDS, reason="no Triton")
def test_triton_kernel_compiles_for_ampere_and_hopper(source_paths: str) -> None:
    """Needs no GPU. The interpreter, which the other tests use without one, accepts more than the compiler."""
    env = {**os.environ, "PYTHONPATH": source_paths, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout.endswith("compiled\n"), done.stderr


def test_autograd_sees_the_change_in_place() -> None:
    state = problem((7, 60, 3), row_wise=False)
    state["param"].requires_grad_()
    loss = state["param"].square().sum()
    with torch.no_grad():
        table_adamw(**state, grad=gradient((7, 60, 3), sparse=True), step=1, **RATES)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
