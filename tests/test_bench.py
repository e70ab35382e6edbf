"""The benchmark: baselines compute what the layer computes, and every table is printed and written."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.numerics import assert_close, seeded
from umscale.bench import cuda
from umscale.bench.baselines import (
    bag_lookup,
    gather_lookup,
    official_order,
    product_flops,
    products,
    readable,
    with_embedding_bag,
)
from umscale.bench.kernels import PARTS, WASTE, bench_kernels
from umscale.bench.measured import Target
from umscale.bench.setting import Setting, lookup_operands, ultramem_v2_layer
from umscale.bench.step_0_2_0 import release_step
from umscale.bench.timing import clock_of, interleaved, rows
from umscale.bench.training import RELEASE, bench_losses, bench_train, current_step, shape_of
from umscale.data.corpus import open_corpus
from umscale.errors import UserError
from umscale_cli.bench import kernels
from umscale_kernels import lookup
from umscale_kernels.backends import triton_runs

TINY = {
    "tokens": 6, "d_model": 16, "n_keys": 9, "top_m": 5, "d_key": 6, "d_pre_value": 4, "d_value": 8,
    "table_rows": [7, 30],
}  # fmt: skip
CHANGES = [text for key, value in TINY.items() for text in ("--set", f"{key}={value}")]
SHAPES = [
    Setting(tokens=37, d_model=24, n_keys=13, top_m=7, d_key=10, d_pre_value=6, d_value=12),
    Setting(tokens=20, d_model=16, n_keys=8, top_m=19, d_key=4, d_pre_value=8, d_value=4),
    Setting(tokens=1, d_model=8, n_keys=5, top_m=1, d_key=3, d_pre_value=1, d_value=2),
]


@pytest.mark.parametrize("setting", SHAPES, ids=["odd", "more-than-keys", "one"])
@pytest.mark.parametrize("baseline", [official_order, readable, with_embedding_bag])
def test_a_baseline_is_the_layer(baseline, setting):
    layer, memory = ultramem_v2_layer(setting, "cpu")
    expected = layer.call(layer.on("reference"))()
    found = layer.call(partial(baseline, memory))()
    assert_close(found, expected)
    d_out = torch.randn(found.shape, generator=seeded(1))
    gradients = (torch.autograd.grad(out, layer.inputs, d_out) for out in (found, expected))
    for a, b in zip(*gradients, strict=True):
        assert b.abs().max() > 0
        assert_close(a, b)


@pytest.mark.parametrize("baseline", [gather_lookup, bag_lookup])
def test_a_lookup_baseline_is_the_lookup(baseline):
    inputs, picked = lookup_operands(SHAPES[0], 50, "cpu")
    (p, s, *tables) = inputs
    expected = lookup(p, s, picked, *tables, backend="reference")
    found = baseline(p, s, picked, *tables)
    assert_close(found, expected)
    gradients = (torch.autograd.grad(out.square().sum(), inputs) for out in (found, expected))
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b)


def test_the_products_have_the_flops_they_are_said_to_have():
    layer, memory = ultramem_v2_layer(SHAPES[0], "cpu")
    with FlopCounterMode(display=False) as counter:
        products(memory, layer.y, torch.ones(37, 12))
    assert counter.get_total_flops() == product_flops(memory, 37)


def test_rounds_are_interleaved_and_medians_taken():
    calls = []
    seconds = iter([1.0, 10.0, 3.0, 30.0, 2.0, 50.0])
    variants = {name: {"forward": partial(calls.append, name)} for name in "ab"}

    def clock(step):
        step()
        return next(seconds)

    timings = interleaved(variants, 3, clock)
    assert "".join(calls[-6:]) == "ababab"
    assert (timings["a"]["forward"].seconds, timings["b"]["forward"].seconds) == (2.0, 30.0)
    figures = rows(timings, "a")[1].figures
    assert figures == {"forward_seconds": 30.0, "forward_spread": 40 / 30, "forward_ratio": 15.0}


def test_targets_bound_from_above_or_below():
    assert Target(figure="x", bound=0.5).met({"x": 0.5})
    assert not Target(figure="x", bound=0.5).met({"x": 0.6})
    assert Target(figure="x", bound=0.5, at_least=True).met({"x": 0.6})
    assert not Target(figure="x", bound=0.5, at_least=True).met({"x": 0.4})


@pytest.mark.skipif(not triton_runs(), reason="needs a GPU, or Triton's interpreter")
@pytest.mark.parametrize("name", [part for part in PARTS["cuda"] if part not in ("peers", *WASTE)])
def test_the_tables_of_a_gpu_at_a_tiny_shape(name):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = Setting(**(TINY | {"tokens": 2, "top_m": 3, "table_rows": (20,)}))
    parts = cuda.measure(name, "1B", setting, device, 1, clock_of(device), compiled=False, copy_rate=1e9)
    assert [part.name for part in parts] == [name] * (2 if name == "lookup" else 1)
    for part in parts:
        assert any("triton" in row.name or name == "backward" for row in part.rows)
        assert part.reference in [row.name for row in part.rows]
        assert any(row.targets for row in part.rows) or name == "adamw"
        for row in part.rows:
            assert set(row.figures) >= set(part.columns) or row.name == "score matrix product"
            assert all(math.isfinite(value) for value in row.figures.values()), row
            assert all(value > 0 for key, value in row.figures.items() if key.endswith("_seconds")), row
            assert {target.figure for target in row.targets} <= set(part.columns)


def bench(*arguments, source_paths, cwd):
    return subprocess.run(
        [sys.executable, "-m", "umscale_cli.main", "bench", "kernels", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": source_paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_every_part_is_in_the_json_file_and_on_stdout(source_paths, tmp_path):
    arguments = ("--rounds", "1", "--no-compile", *CHANGES, "--markdown", "--json", "found.json")
    result = bench(*arguments, source_paths=source_paths, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "found.json" in result.stderr
    report = json.loads((tmp_path / "found.json").read_text())
    parts = report["parts"]
    assert [part["name"] for part in parts] == [
        "layer",
        "select",
        "lookup",
        "shared",
        "blocks",
        "wide",
        "scores",
        *["tables"] * 2,
        *["peers"] * 2,
        "tables",
    ]
    assert report["settings"]["overrides"] == TINY
    assert report["machine"]["versions"]["torch"]
    assert report["limits"]["matmul_flops"] > 1e6
    assert report["limits"]["copy_bytes_per_second"] > 1e6
    layer = {row["name"]: row["figures"] for row in parts[0]["rows"]}
    assert layer["order of the released code"]["train_ratio"] == 1
    assert all(figures["train_seconds"] > 0 < figures["forward_seconds"] for figures in layer.values())
    assert {"umscale aten", "matrix products only", "limit at measured rates"} < set(layer)
    for part in parts:
        assert part["rows"] or "pip install" in part["notes"][0], part
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == sum(2 + len(part["rows"]) for part in parts if part["rows"])
    assert sum(line.startswith("| umscale aten |") for line in lines) == 3


def test_bare_json_goes_to_stdout_alone(capsys):
    kernels(rounds=1, only="lookup", set_=CHANGES[1::2], json_=True)
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    assert (part["name"], part["shape"]["table_rows"]) == ("lookup", 81)
    assert part["reference"] in [row["name"] for row in part["rows"]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what to do without a GPU")
def test_cuda_without_a_gpu_is_one_line_and_exit_code_2(source_paths, tmp_path):
    result = bench("--device", "cuda", "--json", "found.json", source_paths=source_paths, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "CUDA" in result.stderr
    assert not (tmp_path / "found.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "tpu"}, "cpu or cuda"),
        ({"only": ["layr"]}, "did you mean 'layer'"),
        ({"only": ["adamw"]}, "no part 'adamw' on cpu"),
        ({"overrides": ["n_key=3"]}, "did you mean 'n_keys'"),
        ({"overrides": ["tokens=0"]}, "tokens must be at least 1"),
        ({"overrides": ["top_m=100", "n_keys=4"]}, "top_m = 100 exceeds"),
    ],
)
def test_what_cannot_be_measured_is_said(options, said):
    with pytest.raises(UserError, match=said):
        bench_kernels(rounds=1, **options)


def test_the_step_of_0_2_computes_what_todays_does():
    spec, batch = shape_of("sweep", n_keys=16, top_m=4)
    spec = dataclasses.replace(spec, d_model=32)
    tokens = torch.randint(spec.vocab_size, (batch, 33), generator=seeded(0))
    now, then = current_step(spec, tokens, "float32"), release_step(spec, tokens, "float32")
    assert [now().item() for _ in range(3)] == pytest.approx([then().item() for _ in range(3)], rel=1e-5)


def test_a_training_step_is_timed_beside_others():
    root = Path(__file__).parents[1]
    result = bench_train(1, 1, 8, 64, shape="sweep", precision="float32", compiled=False, beside=root)
    names = {row["name"] for row in result["variants"]}
    assert {"plain", "aten", RELEASE, "dense", f"dense, {RELEASE}", f"dense, {root.name}"} <= names
    assert all(row["seconds"] > 0 and row["matmul_share"] > 0 for row in result["variants"])
    assert f"dense over dense, {RELEASE}" in result["ratios"]
    assert math.isclose(sum(result["profile"].values()), 1.0)
    with pytest.raises(UserError, match="not a source tree"):
        bench_train(1, 1, 8, 64, shape="sweep", precision="float32", compiled=False, beside=root / "tests")


def test_losses_are_compared_by_seed():
    found = bench_losses(open_corpus("kjv"), tokens=20_480, seeds=2, top_m=4, n_keys=64, precision="float32")
    assert [row["seed"] for row in found["rows"]] == [0, 1]
    assert all(abs(row["difference"]) < 0.02 for row in found["rows"]), (
        "ten steps: rounding has not grown yet"
    )
    assert found["between_seeds"] > 0
