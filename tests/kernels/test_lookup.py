"""Every backend of `lookup` against the float64 reference: output, every gradient, determinism, memory, addressing."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.numerics import assert_close, seeded
from umscale_kernels import available_backends, lookup, lookup_linked, lookup_traffic_bytes
from umscale_kernels.backends import interpreted
from umscale_kernels.lookup import reference

Operands = dict[str, Tensor | None]

BACKENDS = available_backends("lookup")
# Ways to compute the gradients: backend and options.
PATHS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in (*BACKENDS, "auto")}
PATHS |= {f"{name}-rows": (name, {"sparse_grad": True}) for name in BACKENDS}
if "triton" in BACKENDS:
    PATHS["triton"] = ("triton", {"backward": "sorted"})
    PATHS["triton-atomic"] = ("triton", {"backward": "atomic"})
COMPILED = [path for path in PATHS if not (path.startswith("triton") and interpreted())]
DETERMINISTIC = [path for path in PATHS if path not in ("auto", "triton-atomic")]

# T, N, m, c, Dp (0: no pre-values), Dv; in most of them tokens share rows and rows repeat within a token
SHAPES = [
    (1, 10, 1, 1, 8, 8),
    (3, 20, 47, 2, 24, 24),
    (2, 9, 94, 1, 60, 24),
    (5, 12, 3, 2, 0, 40),
    (3, 10, 6, 3, 5, 21),
    (2, 8, 4, 2, 32, 160),
    (63, 6, 2, 1, 0, 8),
]
LARGER_SHAPES = [
    (63, 50, 47, 2, 24, 24),
    (63, 1000, 94, 1, 60, 24),
    (33, 7, 32, 2, 64, 64),
    (17, 300, 5, 2, 0, 40),
    (64, 5000, 16, 2, 32, 160),
]
# table dtype, activation, index dtype; the interpreter runs the first two, or one on many tokens
CASES = [
    (torch.float32, "gelu", torch.int32),
    (torch.bfloat16, "none", torch.int64),
    (torch.float32, "none", torch.int64),
    (torch.bfloat16, "gelu", torch.int32),
    (torch.float64, "gelu", torch.int64),
]


def device_of(path: str) -> str:
    return "cuda" if torch.cuda.is_available() and not path.startswith("native") else "cpu"


def problem(shape: tuple[int, ...], table_dtype: torch.dtype = torch.float32) -> Operands:
    tokens, n_rows, m, n_cores, d_pre_value, d_value = shape
    generator = seeded(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return {
        "p": normal(tokens, d_pre_value) if d_pre_value else None,
        "s": normal(tokens, m, n_cores),
        "rows": torch.randint(0, n_rows, (tokens, m), generator=generator),
        "pre_values": normal(n_rows, d_pre_value).to(table_dtype) if d_pre_value else None,
        "values": normal(n_rows, d_value).to(table_dtype),
    }


def upstream(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape[0], shape[5], generator=seeded(7))


def run(path: str, operands: Operands, d_o: Tensor, **options: Any) -> dict[str, Tensor]:
    """Output and the gradient of every floating-point operand, dense, on the CPU."""
    backend, own = PATHS[path]
    options, device = {**own, **options}, device_of(path)
    leaves: dict[str, Any] = {
        name: x if x is None or name == "rows" else x.detach().to(device).requires_grad_()
        for name, x in operands.items()
    }
    leaves["rows"] = leaves["rows"].to(device)
    o = lookup(**leaves, backend=backend, **options)
    wanted = [name for name, x in leaves.items() if x is not None and name != "rows"]
    grads = torch.autograd.grad(o, [leaves[name] for name in wanted], d_o.to(device, o.dtype))
    found = {"o": o.detach()}
    for name, grad in zip(wanted, grads, strict=True):
        assert grad.is_sparse == (options.get("sparse_grad", False) and name in ("pre_values", "values"))
        if grad.is_sparse:
            assert grad.is_coalesced()
            assert torch.equal(grad.indices()[0], leaves["rows"].unique())
        assert grad.dtype == leaves[name].dtype
        found[name] = grad.to_dense()
    return {name: x.cpu() for name, x in found.items()}


def reference_in_float64(operands: Operands, d_o: Tensor, **options: Any) -> dict[str, Tensor]:
    exact = {name: x if x is None or name == "rows" else x.double() for name, x in operands.items()}
    return run("reference", exact, d_o.double(), **options)


def assert_agree(
    got: dict[str, Tensor], wanted: dict[str, Tensor], table_dtype: torch.dtype = torch.float32
) -> None:
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        rounded = table_dtype == torch.bfloat16 and name in ("pre_values", "values")
        assert_close(got[name], x, 8e-3 if rounded else torch.float32, floor=1.0, name=name)


def same(x: dict[str, Tensor], y: dict[str, Tensor]) -> bool:
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def check_against_reference(path: str, shape: tuple[int, ...], case: tuple) -> None:
    table_dtype, activation, index_dtype = case
    if path.startswith(("native", "triton")) and table_dtype == torch.float64:
        pytest.skip("float32 and bfloat16 tables only")
    operands, d_o = problem(shape, table_dtype), upstream(shape)
    assert operands["rows"] is not None
    operands["rows"] = operands["rows"].to(index_dtype)
    options = {"activation": activation if shape[4] else "none"}
    got, wanted = run(path, operands, d_o, **options), reference_in_float64(operands, d_o, **options)
    assert got["o"].dtype == (torch.float64 if table_dtype == torch.float64 else torch.float32)
    assert_agree(got, wanted, table_dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_matches_the_float64_reference(path: str, shape: tuple[int, ...], case: tuple) -> None:
    if path not in COMPILED and case not in CASES[: 1 if shape[0] > 9 else 2]:
        pytest.skip("interpreted kernels run few of the cases")
    check_against_reference(path, shape, case)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("shape", LARGER_SHAPES, ids=str)
@pytest.mark.parametrize("path", COMPILED)
def test_larger_shapes_match_the_float64_reference(path: str, shape: tuple[int, ...], case: tuple) -> None:
    check_against_reference(path, shape, case)


@pytest.mark.parametrize("backend", ["reference", "aten"])
@pytest.mark.parametrize(("d_pre_value", "activation"), [(0, "none"), (3, "none"), (3, "gelu")])
def test_gradcheck(backend: str, d_pre_value: int, activation: str) -> None:
    operands = problem((4, 6, 5, 2, d_pre_value, 8))
    rows = operands.pop("rows")
    leaves = [None if x is None else x.double().requires_grad_() for x in operands.values()]

    def output(p: Tensor | None, s: Tensor, pre_values: Tensor | None, values: Tensor) -> Tensor:
        return lookup(p, s, rows, pre_values, values, activation=activation, backend=backend)

    assert torch.autograd.gradcheck(output, leaves)


def test_output_is_the_sum_written_in_the_formula() -> None:
    """Two lookups, two cores, by hand: z = (2, -1), slices of width 1."""
    p, pre_values = torch.tensor([[1.0]]), torch.tensor([[2.0], [-1.0], [9.0]])
    values = torch.tensor([[1.0, 10.0], [3.0, 20.0], [0.0, 0.0]])
    s = torch.tensor([[[1.0, 0.5], [2.0, 1.0]]])
    operands = (p, s, torch.tensor([[0, 1]]), pre_values, values)
    o = lookup(*operands, backend="reference")
    assert o.tolist() == [[1 * 2 * 1 + 2 * -1 * 3, 0.5 * 2 * 10 + 1 * -1 * 20]]
    h = F.gelu(torch.tensor([2.0, -1.0])).tolist()
    o = lookup(*operands, backend="reference", activation="gelu")
    assert o[0].tolist() == pytest.approx([1 * h[0] * 1 + 2 * h[1] * 3, 0.5 * h[0] * 10 + 1 * h[1] * 20])


# -- determinism


@pytest.fixture
def short_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the Triton row pass split what a test can afford to read."""
    if "triton" in BACKENDS:
        monkeypatch.setattr(importlib.import_module("umscale_kernels.lookup.triton"), "SPLIT", 8)


@pytest.mark.usefixtures("short_split")
@pytest.mark.parametrize("path", DETERMINISTIC)
def test_backward_is_bitwise_reproducible(path: str) -> None:
    shape = (5, 3, 8, 2, 8, 16)
    operands, d_o = problem(shape), upstream(shape)
    assert same(run(path, operands, d_o), run(path, operands, d_o))


@pytest.mark.usefixtures("short_split")
@pytest.mark.parametrize("path", DETERMINISTIC)
def test_permuting_tokens_permutes_what_belongs_to_them(path: str) -> None:
    """To the bit, as do gradients of rows read once; other rows sum in another order."""
    shape = (5, 16, 4, 2, 8, 16)
    operands, d_o = problem(shape), upstream(shape)
    order = torch.randperm(5, generator=seeded(3))
    shuffled = {
        name: x if x is None or name in ("pre_values", "values") else x[order] for name, x in operands.items()
    }
    one, other = run(path, operands, d_o), run(path, shuffled, d_o[order])
    for name in ("o", "p", "s"):
        assert torch.equal(one[name][order], other[name]), name
    assert operands["rows"] is not None
    once = operands["rows"].flatten().bincount(minlength=16) == 1
    assert 0 < once.sum() < 12
    for name in ("pre_values", "values"):
        assert torch.equal(one[name][once], other[name][once])
        assert_close(one[name], other[name])


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("native")])
def test_native_does_not_depend_on_the_number_of_threads(path: str) -> None:
    shape = (128, 700, 16, 2, 16, 32)
    operands, d_o, before = problem(shape), upstream(shape), torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(run(path, operands, d_o))
    finally:
        torch.set_num_threads(before)
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


@pytest.mark.usefixtures("short_split")
@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("triton")])
@pytest.mark.parametrize("skew", [1, 3])
def test_rows_read_often_are_summed_in_blocks(path: str, skew: int) -> None:
    """Segments shorter and longer than a block, that begin, end and lie inside one."""
    shape = (7, 12, 10, 2, 8, 16)
    operands, d_o = problem(shape), upstream(shape)
    assert operands["rows"] is not None
    operands["rows"] = (operands["rows"] - 6).clamp(min=0) // skew  # half of the lookups read row 0
    assert_agree(run(path, operands, d_o), reference_in_float64(operands, d_o))


# -- options


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("path", PATHS)
def test_copies_are_read_and_tables_get_the_gradient(path: str, activation: str) -> None:
    shape = (4, 12, 5, 2, 8, 16)
    operands, d_o = problem(shape), upstream(shape)
    names = ("pre_values", "values")
    copies = {name: operands[name].to(device_of(path), torch.bfloat16) for name in names}
    got = run(
        path, operands, d_o, activation=activation, read=tuple(copies.values())
    )  # dtypes are checked in there
    rounded = {**operands, **{name: copies[name].float() for name in names}}
    assert_agree(got, reference_in_float64(rounded, d_o, activation=activation))


@pytest.mark.parametrize("path", PATHS)
def test_a_copy_of_values_alone(path: str) -> None:
    shape = (3, 12, 5, 1, 0, 16)
    operands, d_o = problem(shape), upstream(shape)
    copy = 2 * operands["values"].to(device_of(path))
    got = run(path, operands, d_o, read=(None, copy))
    assert_agree(got, reference_in_float64({**operands, "values": copy.cpu()}, d_o))


@pytest.mark.parametrize("path", PATHS)
def test_frozen_tables_get_no_gradient(path: str) -> None:
    backend, options = PATHS[path]
    shape = (3, 50, 7, 2, 8, 16)
    operands: dict[str, Any] = {name: x.to(device_of(path)) for name, x in problem(shape).items()}
    wanted = run("reference", problem(shape), torch.ones(3, 16))
    operands["s"].requires_grad_()
    operands["p"].requires_grad_()
    lookup(**operands, backend=backend, **options).sum().backward()
    assert operands["values"].grad is None
    for name in ("s", "p"):
        assert_close(operands[name].grad, wanted[name])


@pytest.mark.parametrize("path", PATHS)
def test_rows_nobody_reads_get_a_zero_gradient(path: str) -> None:
    shape = (3, 30, 3, 2, 8, 16)
    operands = problem(shape)
    operands["rows"] %= 5
    found = run(path, operands, upstream(shape))  # a sparse gradient holds exactly the rows read
    for name in ("pre_values", "values"):
        assert (found[name][5:] == 0).all()
        assert (found[name][:5] != 0).any()


@pytest.mark.parametrize("path", [path for path in PATHS if not path.startswith("reference")])
def test_no_tokens(path: str) -> None:
    shape = (0, 5, 3, 2, 4, 8)
    found = run(path, problem(shape), upstream(shape))
    assert found["o"].shape == (0, 8)
    assert torch.equal(found["values"], torch.zeros(5, 8))
    assert torch.equal(found["pre_values"], torch.zeros(5, 4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="an error on the GPU ends the process's use of it")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [-1, 50])
def test_rows_out_of_range_are_refused(backend: str, bad: int) -> None:
    operands = problem((3, 50, 7, 2, 8, 16))
    operands["rows"][1, 2] = bad
    if backend == "reference" and bad == -1:
        pytest.skip("Python indexing counts from the end")
    with pytest.raises((IndexError, RuntimeError)):
        lookup(**operands, backend=backend)


def test_operands_that_do_not_fit_are_refused() -> None:
    operands = problem((3, 50, 7, 2, 8, 16))
    for bad, message in [
        ({"values": operands["values"][:, :-1]}, "not a multiple"),
        ({"rows": operands["rows"][:-1]}, "rows must be"),
        ({"p": None}, "p None"),
        ({"activation": "relu"}, "activation must be"),
        ({"activation": "gelu", "p": None, "pre_values": None}, "there are none"),
        ({"backward": "fast"}, "backward must be"),
        ({"backward": "atomic", "sparse_grad": True}, "atomic adds into dense"),
        ({"values": operands["values"].bfloat16()}, "one dtype"),
        ({"n_blocks": 2}, "needs blocks"),
        ({"n_blocks": 2, "blocks": operands["rows"][1:]}, "blocks must be"),
        ({"read": (None, operands["values"])}, "tables to read"),
        ({"read": (operands["pre_values"], operands["values"][1:])}, "tables to read"),
    ]:
        with pytest.raises(ValueError, match=message):
            lookup(**{**operands, **bad})


@pytest.mark.parametrize("backend", [name for name in (*BACKENDS, "auto") if name != "triton"])
def test_atomic_adds_need_triton(backend: str) -> None:
    if backend == "auto" and torch.cuda.is_available():
        pytest.skip("auto is triton there")
    with pytest.raises(ValueError, match="needs the triton backend"):
        lookup(**problem((3, 50, 7, 2, 8, 16)), backend=backend, backward="atomic")


@pytest.mark.skipif("triton" not in BACKENDS, reason="no Triton")
def test_a_gpu_is_deterministic_unless_atomics_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a row is hardly ever read twice: a thousand rows, 21 lookups."""
    kernels, modes = importlib.import_module("umscale_kernels.lookup.triton"), []
    run_backward = kernels.lookup_backward
    monkeypatch.setattr(kernels, "lookup_backward", lambda *x: modes.append(x[9]) or run_backward(*x))
    shape = (3, 1000, 7, 2, 8, 16)
    run("triton", problem(shape), upstream(shape))
    run("triton-atomic", problem(shape), upstream(shape))
    assert modes == ["dense", "atomic"]
    operands = {name: x.to(device_of("triton")) for name, x in problem(shape).items()}
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="not deterministic"):
            lookup(**operands, backend="triton", backward="atomic")
    finally:
        torch.use_deterministic_algorithms(False)


# -- virtual blocks


def blocks_of(shape: tuple[int, ...], n_blocks: int) -> Tensor:
    return torch.randint(0, n_blocks, (shape[0], shape[2]), generator=seeded(11))


@pytest.mark.usefixtures("short_split")
@pytest.mark.parametrize("shape", [(4, 30, 9, 2, 6, 20), (3, 60, 7, 1, 0, 8), (5, 4, 5, 2, 4, 16)], ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_blocks_are_lookups_of_their_own(path: str, shape: tuple[int, ...]) -> None:
    """As one lookup a block, of scores that are 0 elsewhere: what it replaces."""
    operands, n_blocks = problem(shape), 3
    blocks = blocks_of(shape, n_blocks)
    exact = {n: x if x is None or n == "rows" else x.double().requires_grad_() for n, x in operands.items()}
    masked = [
        lookup(**{**exact, "s": exact["s"] * (blocks == e).unsqueeze(-1)}, backend="reference")
        for e in range(n_blocks)
    ]
    o = torch.cat(masked, 1)
    d_o = torch.randn(o.shape, generator=seeded(7))
    names = [name for name, x in exact.items() if x is not None and name != "rows"]
    grads = torch.autograd.grad(o, [exact[name] for name in names], d_o.double())
    wanted = {"o": o.detach(), **dict(zip(names, grads, strict=True))}
    got = run(path, operands, d_o, blocks=blocks.to(device_of(path)), n_blocks=n_blocks)
    assert_agree(got, wanted)


@pytest.mark.parametrize("backend", ["reference", "aten"])
def test_gradcheck_of_blocks(backend: str) -> None:
    shape = (4, 6, 5, 2, 3, 8)
    operands = problem(shape)
    rows, blocks = operands.pop("rows"), blocks_of(shape, 4)
    leaves = [x.double().requires_grad_() for x in operands.values() if x is not None]

    def output(p: Tensor, s: Tensor, pre_values: Tensor, values: Tensor) -> Tensor:
        return lookup(p, s, rows, pre_values, values, blocks=blocks, n_blocks=4, backend=backend)

    assert torch.autograd.gradcheck(output, leaves)


# -- linked lookups

LINKED = [path for path in PATHS if not path.startswith("reference") and not path.endswith("-rows")]


def chain(path: str, operands: Operands, n_calls: int, linked: bool, **more: Any) -> Tensor:
    """Sum of the outputs of `n_calls` lookups in one pair of tables, each of other rows and scores."""
    backend, options = PATHS[path]
    tables = operands["pre_values"], operands["values"]
    links, total = tables, torch.zeros(())
    for i in range(n_calls):
        inputs = (
            operands["p"] * (i + 1),
            operands["s"].cos() * i,
            (operands["rows"] + 5 * i) % len(tables[1]),
        )
        if linked:
            o, links = lookup_linked(*inputs, *links, read=tables, backend=backend, **options, **more)
        else:
            o = lookup(*inputs, *tables, backend=backend, **options, **more)
        total = total + o
    return total


@pytest.mark.usefixtures("short_split")
@pytest.mark.parametrize("n_blocks", [1, 3])
@pytest.mark.parametrize("path", LINKED)
def test_linked_lookups_have_the_gradients_of_lookups(path: str, n_blocks: int) -> None:
    shape = (3, 40, 8, 2, 8, 16)
    operands = {name: x.to(device_of(path)) for name, x in problem(shape).items()}
    leaves = [x.requires_grad_() for name, x in operands.items() if name != "rows"]
    more = {"blocks": blocks_of(shape, n_blocks).to(device_of(path)), "n_blocks": n_blocks}
    outputs = [chain(path, operands, 3, linked, **more) for linked in (False, True)]
    assert torch.equal(*outputs)
    d_o = torch.randn(outputs[0].shape, generator=seeded(7)).to(outputs[0].device)
    apart, together = (torch.autograd.grad(o, leaves, d_o, retain_graph=True) for o in outputs)
    again = torch.autograd.grad(outputs[1], leaves, d_o)
    for x, y, z in zip(apart, together, again, strict=True):
        assert_close(y, x, floor=1.0)
        assert path not in DETERMINISTIC or torch.equal(y, z)


class _OfTableSize(TorchDispatchMode):
    """Names of the operators that return a tensor of so many rows."""

    def __init__(self, n_rows: int) -> None:
        super().__init__()
        self.n_rows, self.names = n_rows, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        if any(x.dim() == 2 and x.shape[0] == self.n_rows for x in tensors):
            self.names.append(func.overloadpacket.__name__)
        return found


def test_linked_lookups_write_one_gradient() -> None:
    """Where layers would each return a gradient of all tables, which autograd would add up."""
    operands = problem((2, 5000, 4, 2, 16, 16))
    leaves = [x.requires_grad_() for name, x in operands.items() if name != "rows"]
    found = {}
    for linked in (True, False):
        o = chain("aten", operands, 6, linked)
        with _OfTableSize(5000) as made:
            torch.autograd.grad(o.sum(), leaves)
        found[linked] = made.names
    assert found[True] == ["lookup_backward"]
    assert len(found[False]) == 6 + 2 * 5  # and a sum of pre-values and of values for each further call


@pytest.mark.parametrize("path", [path for path in LINKED if path != "auto"])
def test_linked_lookups_compile_in_one_graph(path: str) -> None:
    operands = {name: x.to(device_of(path)) for name, x in problem((3, 12, 4, 2, 8, 16)).items()}
    leaves = [x.requires_grad_() for name, x in operands.items() if name != "rows"]

    def loss(operands: Operands) -> Tensor:
        return chain(path, operands, 3, True).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    pairs = [torch.autograd.grad(f(operands), leaves) for f in (loss, compiled)]
    for x, y in zip(*pairs, strict=True):
        assert_close(x, y)


def test_linked_lookups_refuse_what_they_cannot_add_to() -> None:
    operands: dict[str, Any] = problem((3, 50, 7, 2, 8, 16), torch.bfloat16)
    read = operands["pre_values"], operands["values"]
    with pytest.raises(ValueError, match=r"not torch\.bfloat16"):
        lookup_linked(**operands, read=read)
    with pytest.raises(ValueError, match="another backend"):
        lookup_linked(**problem((3, 50, 7, 2, 8, 16)), read=read, backend="reference")


# -- torch.library, torch.compile


@pytest.mark.parametrize("path", [path for path in PATHS if not path.startswith("reference")])
@pytest.mark.parametrize("d_pre_value", [0, 8])
def test_runs_under_torch_library_checks(path: str, d_pre_value: int) -> None:
    backend, options = PATHS[path]
    shape, device = (3, 12, 4, 2, d_pre_value, 16), device_of(path)
    x: dict[str, Any] = {name: y if y is None else y.to(device) for name, y in problem(shape).items()}
    p = x["s"].new_empty(0) if x["p"] is None else x["p"]
    rows, P, V, sparse = x["rows"], x["pre_values"], x["values"], options.get("sparse_grad", False)
    backward = options.get("backward", "sorted")
    if not sparse:  # the checks compare gradients under a tracer that knows no sparse tensors
        leaves = [None if y is None else y.detach().requires_grad_() for y in (p, x["s"], P, V)]
        operands = (*leaves[:2], rows, None, *leaves[2:], P, V, 1, "none", False, backward, backend)
        torch.library.opcheck(torch.ops.umscale.lookup.default, operands)
        return
    o, z = torch.ops.umscale.lookup(p, x["s"], rows, None, P, V, P, V, 1, "none", True, backward, backend)
    operands = (torch.ones_like(o), p, x["s"], z, rows, None, P, V, "none", backend)
    torch.library.opcheck(torch.ops.umscale.lookup_row_gradients.default, operands)


@pytest.mark.parametrize("path", [path for path in PATHS if not path.startswith(("reference", "auto"))])
def test_compiles(path: str) -> None:
    """In one graph with dense gradients; with row-sparse ones the call runs eagerly."""
    shape = (3, 12, 4, 2, 8, 16)
    sparse = PATHS[path][1].get("sparse_grad", False)
    inputs = [x.to(device_of(path)) for x in problem(shape).values()]
    leaves = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]

    def loss(p: Tensor, s: Tensor, rows: Tensor, pre_values: Tensor, values: Tensor) -> Tensor:
        backend, options = PATHS[path]
        return lookup(p * 2, s.sin(), rows, pre_values, values, backend=backend, **options).square().sum()

    def gradients(f: Any) -> list[Tensor]:
        found = torch.autograd.grad(f(*leaves), [x for x in leaves if x.requires_grad])
        return [x.to_dense() if x.is_sparse else x for x in found]

    compiled = torch.compile(loss, fullgraph=not sparse, backend="aot_eager")
    for x, y in zip(gradients(loss), gradients(compiled), strict=True):
        assert_close(x, y)


# -- memory and addressing


def largest_allocation(path: str, operands: Operands) -> int:
    """Bytes of the largest single operation of a forward and backward pass."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        backend, options = PATHS[path]
        leaves: dict[str, Any] = {
            name: x if x is None or name == "rows" else x.detach().requires_grad_()
            for name, x in operands.items()
        }
        lookup(**leaves, backend=backend, **options).sum().backward()
    return max(event.self_cpu_memory_usage for event in profile.key_averages())


@pytest.mark.parametrize("path", ["reference", "aten", "native"])
def test_no_gathered_rows_in_memory(path: str) -> None:
    """The fast paths allocate far less than one [T, m, Dv] buffer."""
    if path not in PATHS:
        pytest.skip("no compiler")
    tokens, m, d_value = 256, 64, 256
    operands = problem((tokens, 500, m, 2, 0, d_value))
    assert (largest_allocation(path, operands) >= tokens * m * d_value * 4) == (path == "reference")


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts CPU memory")
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", [path for path in PATHS if path not in ("auto", "triton-atomic")])
def test_only_dense_gradients_take_the_memory_of_a_table(path: str, table_dtype: torch.dtype) -> None:
    n_rows, d_value = (40, 2048) if path == "triton" else (20_000, 16)  # a program a row, interpreted
    operands = problem((3, n_rows, 4, 1, 8, d_value), table_dtype)
    is_dense = largest_allocation(path, operands) >= n_rows * d_value * 2
    assert is_dense == (not path.endswith("-rows"))


@pytest.mark.parametrize("path", [path for path in PATHS if path.endswith("-rows")])
def test_tables_of_more_than_32_bits_of_elements(path: str, tmp_path: Path) -> None:
    """2^32 elements a table, in a sparse file: a 32-bit product of row and width would read a row of the beginning."""
    width, n_rows = 64, 2**26 + 8
    rows = torch.tensor([[2**26 + 1, 3, 2**26 + 2], [2**26 + 1, 2**26 + 7, 0]], dtype=torch.int32)
    tables: dict[str, Tensor] = {}
    for name in ("pre_values", "values"):
        if device_of(path) == "cuda":
            tables[name] = torch.empty(n_rows, width, dtype=torch.bfloat16, device="cuda")
        else:
            file = str(tmp_path / name)
            tables[name] = torch.from_file(file, True, n_rows * width, dtype=torch.bfloat16).view(
                n_rows, width
            )
        tables[name][:8] = 100.0
    small = problem((2, 6, 3, 2, width, width), torch.bfloat16)
    distinct, local = rows.unique(return_inverse=True)
    for name, table in tables.items():
        table[distinct.to(table.device)] = small[name][: len(distinct)].to(table.device)
    d_o = upstream((2, 6, 3, 2, width, width))
    wanted = run(path, {**small, "rows": local}, d_o)

    backend, options = PATHS[path]
    leaves: dict[str, Any] = {name: x.requires_grad_() for name, x in tables.items()}
    leaves |= {name: small[name].to(device_of(path)) for name in ("p", "s")}
    o = lookup(**leaves, rows=rows.to(device_of(path)), backend=backend, **options)
    o.backward(d_o.to(o.device))
    assert torch.equal(o.detach().cpu(), wanted["o"])
    for name, table in tables.items():
        assert table.grad is not None
        assert torch.equal(table.grad._indices()[0].cpu(), distinct.long())  # ascending, distinct
        assert torch.equal(table.grad._values().cpu(), wanted[name][: len(distinct)])


def test_traffic_of_the_published_one_billion_layer() -> None:
    """T = 8192, m = 128, N = 528², Dp = 384, Dv = 768, bfloat16 tables, float32 gradients."""
    n_rows, lookups, width = 528**2, 8192 * 128, 384 + 768
    distinct = round(n_rows * (1 - (1 - 1 / n_rows) ** lookups))
    dense = lookup_traffic_bytes(8192, 128, n_rows, distinct, 384, 768)
    rows = lookup_traffic_bytes(8192, 128, n_rows, distinct, 384, 768, sparse_grad=True)
    assert dense.forward == pytest.approx(lookups * width * 2, rel=0.05)
    assert dense.backward_atomic == pytest.approx(
        12.1e9 + n_rows * width * 4, rel=0.02
    )  # and the zeros it adds to
    for found in (dense, rows):
        assert found.backward_sorted <= found.backward_atomic / 4
    assert dense.backward_sorted - rows.backward_sorted == (n_rows - distinct) * width * 4
    with pytest.raises(ValueError, match="cannot read"):
        lookup_traffic_bytes(1, 4, 100, 5, 8, 8)


_COMPILE = """
import importlib, inspect, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

kernels = importlib.import_module("umscale_kernels.lookup.triton")
s, pre_values, values = torch.empty(1, 128, 2), torch.empty(4, 384), torch.empty(4, 768)
sizes = dict(M=128, C=2, E=1, DP=384, DV=768, GELU=True, ATOMIC=True, SPLIT=kernels.SPLIT, IN_PLACE=True, ADD=True)
by_token = kernels._token_tiles(s, pre_values, values)
by_row = kernels._row_tiles(4000, 1000, pre_values, values)
for name, tiles in dict(_forward=by_token, _token_backward=by_token, _segments=by_row, _long_segments=by_row).items():
    kernel = getattr(kernels, name)
    known, arguments = {**sizes, **tiles}, list(inspect.signature(kernel.fn).parameters)
    constants = {x: known[x] for x in arguments if x in known}
    types = {"P_ptr": "*bf16", "V_ptr": "*bf16", "rows_ptr": "*i32", "order_ptr": "*i64", "start_ptr": "*i64",
             "owner_ptr": "*i64", "slots_ptr": "*i64"}
    signature = {x: "constexpr" if x in constants else types.get(x, "*fp32") for x in arguments}
    for capability in (80, 90):
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        options = {"num_warps": tiles["num_warps"]}
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.metadata.shared <= 99 * 1024, (name, compiled.metadata.shared)
        assert "local.b" not in compiled.asm["ptx"]
"""


@pytest.mark.skipif("triton" not in BACKENDS, reason="no Triton")
def test_triton_kernels_compile_for_gpus(source_paths: str, tmp_path: Path) -> None:
    """The interpreter accepts what the compiler does not, such as blocks that are not powers of two."""
    environment = {
        **os.environ,
        "PYTHONPATH": source_paths,
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_INTERPRET": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif("triton" not in BACKENDS, reason="no Triton")
@pytest.mark.parametrize("top_m", [3, 16, 32, 100, 768])
def test_pipelines_of_a_token_pass_fill(top_m: int) -> None:
    kernels = importlib.import_module("umscale_kernels.lookup.triton")
    for d_pre_value, d_value in ((64, 64), (384, 384), (384, 768)):
        tables = torch.empty(4, d_pre_value), torch.empty(4, d_value)
        tiles = kernels._token_tiles(torch.empty(1, top_m, 2), *tables)
        assert top_m / tiles["BLOCK_M"] >= tiles["STAGES"]


def test_a_gpu_starts_no_program_for_rows_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer lookups than rows: a program a lookup at most."""
    if "triton" not in BACKENDS:
        pytest.skip("no Triton")
    kernels, grids = importlib.import_module("umscale_kernels.lookup.triton"), []
    launch = kernels._segments.__class__.__getitem__

    class Spy:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return launch(segments, grid)

    segments = kernels._segments
    monkeypatch.setattr(kernels, "_segments", Spy())
    shape = (3, 1000, 7, 2, 8, 16)
    run("triton", problem(shape), upstream(shape))
    assert grids == [(21,)]


def test_reference_in_float64_keeps_its_dtype() -> None:
    operands = {
        name: x.double() if x.is_floating_point() else x for name, x in problem((3, 9, 2, 1, 4, 4)).items()
    }
    assert lookup(**operands, backend="reference").dtype == torch.float64
