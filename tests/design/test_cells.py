"""Explicit cells of a study: crossed with its axes, with seeds of their own, and written back as read."""

import tomllib
from typing import Any

import pytest

from umscale.design.study import expand, parse, points
from umscale.errors import UserError

TREE: dict[str, Any] = {
    "name": "cells",
    "axes": {"tokens": ["20k", "40k"], "seed": [7]},
    "cells": [
        {"top_m": 4, "n_keys": 16},
        {"top_m": 8, "n_keys": 32, "seed": [0, 1]},
        {"top_m": 4, "n_keys": 32, "seed": 1},
    ],
    "model": {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 2,
        "memory": {"n_keys": 16, "top_m": 4, "d_key": 8, "d_pre_value": 8, "d_value": 8},
    },
    "data": {"seq_len": 64, "validation_tokens": "1k"},
    "train": {"batch_size": 4, "warmup_tokens": "2k"},
}


def test_cells_are_points_with_their_own_seeds() -> None:
    study = parse(TREE, "cells.toml")
    assert points(study) == [
        ({"top_m": 4, "n_keys": 16}, (7,)),
        ({"top_m": 8, "n_keys": 32}, (0, 1)),
        ({"top_m": 4, "n_keys": 32}, (1,)),
    ]
    cells = expand(study, "float32")
    assert [(c.targets["top_m"], c.targets["n_keys"], c.seed) for c in cells] == [
        (4, 16, 7), (8, 32, 0), (8, 32, 1), (4, 32, 1),
    ]  # fmt: skip
    assert all(c.run is not None and c.run.train.budgets == (20_000, 40_000) for c in cells)
    assert cells[0].label == "top_m=4 n_keys=16 seed=7"


def test_cells_are_crossed_with_the_axes() -> None:
    study = parse({**TREE, "axes": {"d_key": [8, 16], "seed": [7]}}, "cells.toml")
    assert len(points(study)) == 6
    assert {t["d_key"] for t, _ in points(study)} == {8, 16}


def test_toml_round_trip() -> None:
    study = parse(TREE, "cells.toml")
    assert parse(tomllib.loads(study.to_toml()), "again") == study


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([{"top_m": [4, 8], "n_keys": 16}], "holds one top_m"),
        ([{"top_m": 4}, {"n_keys": 16}], "must set the same axes"),
        ([{"tokens": 4}], "'tokens' is an axis of the whole study"),
        ([{"topm": 4}], "did you mean 'top_m'"),
        ([{"top_m": -4}], "must be positive"),
        ({"top_m": 4}, "each under a line"),
    ],
)
def test_bad_cells_are_explained(cells: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse({**TREE, "cells": cells}, "cells.toml")


def test_an_axis_of_the_study_is_no_axis_of_a_cell() -> None:
    with pytest.raises(UserError, match="'top_m' is an axis of the whole study"):
        parse({**TREE, "axes": {"top_m": [4, 8]}}, "cells.toml")
