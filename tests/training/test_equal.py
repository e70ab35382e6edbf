"""One step is one step: 1, 2 and 3 processes, replicated, sharded and FSDP2, in parts, recomputed, compiled, in fp32.

Every variant takes the same few steps and must end with the losses and weights of one plain process to 1e-6, with an
``eps`` of 1e-2. With 1e-8, AdamW makes of a gradient that is nothing but rounding a step as long as any other, in a
direction that depends on the order of a sum, and weights hold to 1e-4 only. ``test_process_group`` has the usual one,
in float64.

Nor can anything hold where an infinitesimal change decides. Engram's gate, whose signed root jumps at zero, is the
linear one here. Which of two scores is larger, the order of a sum decides once in some hundred thousand selections:
with fixed seeds, not in these few.

Compiled, across processes, is a model of all parts that speak to others; ``tests/model/test_compiled.py`` compiles each
architecture by itself.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.numerics import assert_close
from tests.training import worlds
from tests.training.test_steps import MODELS as KEYED
from tests.training.test_steps import run_spec
from umscale.data.corpus import open_corpus
from umscale.layers.split import whole
from umscale.spec import NgramSpec, RunSpec
from umscale.training.process_group import World
from umscale.training.run import Run
from umscale.training.shards import from_columns

CPU = torch.device("cpu")
STEPS = 3
HASHED: dict[str, Any] = {"rows": 50, "heads": 2}
ENGRAM = NgramSpec(kind="engram", gate="linear", blocks=(0,), **HASHED)
EVERYTHING = "engram, experts and ultramem_v2"
MODELS: dict[str, dict[str, Any]] = {
    **{name: {"ffn": ffn, "memory": memory} for name, (ffn, memory) in KEYED.items()},
    "engram": {"ngram": ENGRAM},
    "ngram_embedding": {"ngram": NgramSpec(kind="ngram_embedding", **HASHED)},
    "over_encoding": {"ngram": NgramSpec(kind="over_encoding", **HASHED)},
    "per_layer_embedding": {"ngram": NgramSpec(kind="per_layer_embedding", d_embedding=8)},
    EVERYTHING: {
        "ngram": ENGRAM,
        "ffn": KEYED["moe"][0],
        "memory": KEYED["ultramem_v2"][1],
        "n_layers": 1,
    },
}
SPLITS: dict[str, dict[str, bool]] = {
    "replicated": {},
    "tables": {"shard_tables": True},
    "fsdp": {"shard_dense": True},
    "tables and fsdp": {"shard_tables": True, "shard_dense": True},
}
IN_PARTS: dict[str, Any] = {"micro_batch_size": 2, "activation_checkpointing": True}
Case = tuple[str, str, str]
"""Model, what is split, how a process takes a step."""


def cases(size: int) -> list[Case]:
    """What ``size`` processes do."""
    found = []
    for name, model in MODELS.items():
        splits = [how for how in SPLITS if model.get("memory") is not None or "tables" not in how]
        found += [(name, how, "whole") for how in splits]
        found.append((name, splits[-1], "in parts"))
        if name == EVERYTHING and size == 2:
            found += [(name, how, "compiled") for how in ("replicated", "tables and fsdp")]
    return found


def spec_of(name: str, how: str = "whole") -> RunSpec:
    train = {"whole": {}, "in parts": IN_PARTS, "compiled": {"compile": True}}[how]
    spec = run_spec("dense", eps=1e-2, **train)
    return dataclasses.replace(spec, model=dataclasses.replace(spec.model, **MODELS[name]))


def steps(world: World, spec: RunSpec, folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of a few steps, and whole weights after them."""
    run = Run(spec, open_corpus("kjv"), folder, CPU, world)
    losses = [run.train_step() for _ in range(STEPS)]
    weights = {key: whole(p.detach()).clone() for key, p in run.model.named_parameters()}
    for table in run.shards:
        key = next(k for k, p in run.model.named_parameters() if p is table)
        assert spec.model.memory is not None
        groups = spec.model.memory.n_cores if key == "tables.values" else 1
        weights[key] = from_columns(list(world.gather(table.detach())), groups)
    return losses, weights


def process(rank: int, folder: Path, data: str) -> None:
    os.environ["UMSCALE_DATA"] = data
    plain = torch.compile  # inductor takes a minute, and what it makes of a graph is PyTorch's to test
    torch.compile = lambda model, **options: plain(model, backend="aot_eager", **options)
    for size in (2, 3):
        if rank < size:
            found = {}
            with worlds.join(rank, size, folder / f"rendezvous-{size}") as world:
                for name, split, how in cases(size):
                    here = dataclasses.replace(world, **SPLITS[split])
                    found[name, split, how] = steps(here, spec_of(name, how), folder / "runs")
            torch.save(found, folder / f"found-{size}-{rank}.pt")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("alone")
    return {name: steps(World(), spec_of(name), folder) for name in MODELS}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the last process of each world found."""
    folder = tmp_path_factory.mktemp("together")
    open_corpus("kjv")
    worlds.start(process, 3, folder, os.environ["UMSCALE_DATA"])
    return {size: torch.load(folder / f"found-{size}-{size - 1}.pt", weights_only=True) for size in (2, 3)}


def assert_equal(found: tuple[list[float], dict], wanted: tuple[list[float], dict], case: object) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-6), case
    for key, weight in wanted[1].items():  # of the largest entry; of 0.1 where all are smaller yet
        assert_close(found[1][key], weight, 1e-6, floor=0.1, name=f"{case} {key}")


@pytest.mark.parametrize("name", MODELS)
def test_in_parts_and_recomputed(alone, name: str, tmp_path: Path) -> None:
    assert_equal(steps(World(), spec_of(name, "in parts"), tmp_path), alone[name], name)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_every_way_of_splitting_a_step_is_one_step(alone, together, name: str, size: int) -> None:
    mine = {case: found for case, found in together[size].items() if case[0] == name}
    assert set(mine) == {case for case in cases(size) if case[0] == name}
    for case, found in mine.items():
        assert_equal(found, alone[name], case)
