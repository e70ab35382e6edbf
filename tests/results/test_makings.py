"""Runs that different kernels computed are told apart where runs are compared."""

import numpy as np

from umscale.results.budgets import differently_made


def columns(*made: tuple[str, str, str]) -> dict[str, np.ndarray]:
    rows = [(f"run{i}", *one) for i, one in enumerate(made)]
    names = ("run_id", "status", "device", "kernels")
    return {name: np.array([row[k] for row in rows], dtype=object) for k, name in enumerate(names)}


def test_one_way_of_computing_is_not_worth_a_word():
    assert differently_made(columns(("finished", "cpu", "native"), ("finished", "cpu", "native"))) == ""
    assert differently_made(columns(("finished", "cpu", "native"), ("failed", "cpu", "aten"))) == ""
    assert differently_made(columns(("finished", "cpu", "native"), ("finished", "cpu", None))) == ""


def test_several_are_counted():
    said = differently_made(
        columns(
            ("finished", "cpu", "native"), ("finished", "cpu", "aten"), ("finished", "cpu", "native"),
            ("finished", "cuda", "triton"), ("finished", "cpu", "native, then aten"),
        )
    )  # fmt: skip
    assert "1 by aten on cpu, 2 by native on cpu, 1 by native, then aten on cpu, 1 by triton on cuda" in said


def test_a_table_that_says_nothing_of_it_is_silent():
    table = columns(("finished", "cpu", "native"), ("finished", "cpu", "aten"))
    assert "1 by aten on cpu" in differently_made({k: v for k, v in table.items() if k != "status"})
    assert differently_made({k: v for k, v in table.items() if k != "kernels"}) == ""
    assert differently_made(columns(("finished", "cpu", "native"), ("finished", "cpu", float("nan")))) == ""
