"""One step is one step: 1, 2 and 3 processes, replicated, sharded and FSDP2, in parts, recomputed, compiled, in fp32.

Every variant takes the same few steps and must end with the losses and weights of one plain process to 1e-6. fp32 sums
in another order could decide once in some hundred thousand selections which of two scores is larger: with fixed seeds
and these few it decides none. ``test_process_group`` trains longer, in float64.
"""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from tests.training.test_steps import MODELS, run_spec
from umscale.data.corpus import open_corpus
from umscale.layers.split import whole
from umscale.training.process_group import World, joined
from umscale.training.run import Run
from umscale.training.shards import from_columns

CPU = torch.device("cpu")
STEPS = 3
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without torch.distributed"
)

HOW = {
    "replicated": {},
    "tables": {"shard_tables": True},
    "fsdp": {"shard_dense": True},
    "tables and fsdp": {"shard_tables": True, "shard_dense": True},
}
CUT = {"micro_batch_size": 2, "activation_checkpointing": True}
CASES = [
    (name, how, cut)
    for name in MODELS
    for how in HOW
    for cut in (False, True)
    if "tables" not in how or MODELS[name][1] is not None
    if not (cut and how in ("replicated", "fsdp"))  # cut with all splits at once, and alone in one process
]


def spec_of(name: str, cut: bool):
    spec = run_spec(name, **(CUT if cut else {}))
    memory = spec.model.memory
    if memory is not None and memory.kind == "peer":  # its rows are as wide as the model
        return spec
    return spec


def found_by(world: World, name: str, cut: bool, folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    run = Run(spec_of(name, cut), open_corpus("kjv"), folder, CPU, world)
    losses = [run.train_step() for _ in range(STEPS)]
    weights = {key: whole(p.detach()).clone() for key, p in run.model.named_parameters()}
    for table in run.shards:
        key = next(k for k, p in run.model.named_parameters() if p is table)
        groups = run.spec.model.memory.n_cores if key == "tables.values" else 1
        weights[key] = from_columns(list(world.gather(table.detach())), groups)
    return losses, weights


def process(rank: int, size: int, folder: str, data: str) -> None:
    os.environ |= {
        "UMSCALE_DATA": data,
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    found = {}
    with joined(f"file://{folder}/rendezvous", shard_tables=False, device=CPU) as world:
        for name, how, cut in CASES:
            here = dataclasses.replace(world, **HOW[how])
            found[name, how, cut] = found_by(here, name, cut, Path(folder) / "runs")
    if rank == size - 1:
        torch.save(found, Path(folder) / "found.pt")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("alone")
    return {name: found_by(World(), name, False, folder) for name in MODELS}


@pytest.fixture(scope="module", params=[2, 3])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("together")
    arguments = (request.param, str(folder), os.environ["UMSCALE_DATA"])
    open_corpus("kjv")
    torch.multiprocessing.spawn(process, arguments, nprocs=request.param)
    return torch.load(folder / "found.pt", weights_only=False)


@pytest.mark.parametrize("name", MODELS)
def test_every_way_of_splitting_a_step_is_one_step(alone, together, name: str) -> None:
    losses, weights = alone[name]
    for (other, how, cut), found in together.items():
        if other != name:
            continue
        assert found[0] == pytest.approx(losses, rel=1e-6), (how, cut)
        for key, weight in weights.items():
            # Adam divides by the root of squares: what is lost in a gradient near 0 is not small in its step.
            error = float((found[1][key] - weight).abs().max() / weight.abs().max())
            assert error < 1e-4, (how, cut, key, error)
