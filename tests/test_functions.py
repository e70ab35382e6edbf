"""No function is longer, and none takes more, than a reader can hold."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 60
"""Of a function with its signature and docstring; kernels are longer where a formula is."""
MOST_PARAMETERS = 12
"""Of a function of the library; a command takes one dataclass of options."""
TAKE_WHAT_A_KERNEL_TAKES = {"sharded_lookup"}
"""The lookup of split tables: called in the place of the lookup, with its arguments."""


def functions(*rooms: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


@pytest.mark.parametrize("room", ["umscale", "cli", "studies"])
def test_no_function_is_longer_than_a_page(room: str) -> None:
    lengths = {name: (one.end_lineno or one.lineno) - one.lineno + 1 for name, one in functions(room)}
    assert lengths
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


def test_no_function_of_the_library_takes_too_much() -> None:
    counts = {
        name: len(one.args.posonlyargs) + len(one.args.args) + len(one.args.kwonlyargs)
        for name, one in functions("umscale", "studies")
        if one.name not in TAKE_WHAT_A_KERNEL_TAKES
    }
    assert {name: n for name, n in counts.items() if n > MOST_PARAMETERS} == {}
