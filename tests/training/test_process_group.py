"""Runs on several processes: the same numbers as on one, shares of memory, checkpoints, lost processes, bad input."""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.numerics import seeded
from tests.training import worlds
from umscale.data.corpus import open_corpus
from umscale.errors import UserError
from umscale.layers.loss import mean_loss
from umscale.model.scaling import table_decay
from umscale.spec import DataSpec, FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec
from umscale.store.store import Store
from umscale.training.evaluate import evaluate, start_counting, stop_counting
from umscale.training.gradients import GradientMean
from umscale.training.optimiser import clip_gradients, make_optimizer, optimizer_tensors, set_rates
from umscale.training.process_group import World
from umscale.training.run import Interrupted, Run
from umscale.training.sharded_lookup import sharded_lookup
from umscale.training.shards import check, columns, from_columns
from umscale_cli.main import main
from umscale_kernels import lookup, row_dots

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed"),
]

MEMORY = MemorySpec(n_keys=12, top_m=6, d_key=8, d_pre_value=8, d_value=8, balance_loss=1e-2)
MODELS: dict[str, tuple[FfnSpec, MemorySpec | None]] = {
    "dense": (FfnSpec(d_ffn=24), None),
    "moe": (FfnSpec(kind="moe", d_ffn=16, n_experts=6, top_k=2, balance_loss=0.1), None),
    "ultramem_v2": (FfnSpec(d_ffn=24), MEMORY),
    "rows": (FfnSpec(d_ffn=24), dataclasses.replace(MEMORY, sharing="ring", share_layers=2)),
    "ultramem": (FfnSpec(d_ffn=24), MemorySpec(kind="ultramem", n_keys=8, top_m=4, d_key=8, d_value=8)),
    "memory_plus": (FfnSpec(d_ffn=24), MemorySpec(kind="memory_plus", n_keys=8, top_m=4, d_key=8, d_value=8)),
    "peer": (FfnSpec(d_ffn=24), MemorySpec(kind="peer", n_keys=8, top_m=4, d_key=8, heads=2)),
}
CASES = [
    *((name, False) for name in ("dense", "moe", "ultramem_v2", "rows", "peer")),
    *((name, True) for name in ("ultramem_v2", "rows", "ultramem", "memory_plus", "peer")),
]
HALVED = ("dense", "peer")
LAYERS = 4
STEPS = 6


def run_spec(name: str) -> RunSpec:
    corpus = open_corpus("kjv")
    ffn, memory = MODELS[name]
    return RunSpec(
        model=ModelSpec(
            d_model=16, n_layers=2, n_heads=2, vocab_size=corpus.vocab_size, ffn=ffn, memory=memory
        ),
        data=DataSpec(
            corpus="kjv", hash=corpus.hash, seq_len=16, validation_tokens=800, validation_documents=0
        ),
        train=TrainSpec(
            budgets=(640, 1280), batch_size=4, warmup_tokens=256, lr=5e-3, value_lr=5e-3, rate_scaling="none",
            grad_clip=0.5, precision="float32", checkpoint_seconds=1e9,
            table_gradient="rows" if name == "rows" else "dense",
        ),
    )  # fmt: skip


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Models made here are float64.

    Products of a whole batch and of half a batch round differently. In fp32 that decides, once in some hundred
    thousand selections, which of two scores is the larger; from there on two runs differ by more than rounding.
    """
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def train_steps(name: str, world: World, folder: Path) -> dict[str, object]:
    """Losses of ``STEPS`` steps, then whole weights, usage and an evaluation."""
    run = Run(run_spec(name), open_corpus("kjv"), folder, CPU, world)
    assert len(run.validation.inputs) % 2 == 1, "a window is left over when two share them out"
    losses = [run.train_step() for _ in range(STEPS)]
    start_counting(run.model)
    found = evaluate(run.model, run.validation, 4, run.precision(), world=world)
    usage = stop_counting(run.model, (1, 16), world)
    sizes = {key: t.numel() for key, t in optimizer_tensors(run.model, run.optimizer).items()}
    sizes |= {key: t.numel() for key, t in run.model.named_parameters()}
    sizes |= {f"{key}/average": t.numel() for key, t in run.average.average.items()}
    weights = {key: p.detach() for key, p in run.model.named_parameters()}
    for table in run.shards:
        key = next(k for k, p in run.model.named_parameters() if p is table)
        groups = run.spec.model.memory.n_cores if key == "tables.values" else 1
        weights[key] = from_columns(list(world.gather(table.detach())), groups)
    return {
        "losses": losses,
        "weights": weights,
        "sizes": sizes,
        "nats": torch.from_numpy(found.nats),
        "positions": found.by_position,
        "usage": None if usage is None else (usage.distinct, usage.entropy, usage.access_bytes),
    }


def lookups(world: World) -> list[tuple[Tensor, Tensor]]:
    """Outputs and gradients of a split lookup beside those of a whole one, in float64 and in fp32."""
    generator = seeded(0)
    pairs = []
    cases = (("none", 2, True), ("gelu", 1, True), ("none", 1, False))
    for (activation, n_cores, with_pre_values), dtype in itertools.product(
        cases, (torch.float64, torch.float32)
    ):
        shapes = ((10, 4), (10, 5, n_cores), (30, 4), (30, 8), (10, 8))
        p, s, P, V, d_o = (torch.randn(x, generator=generator, dtype=dtype) for x in shapes)
        rows = torch.randint(0, 30, (10, 5), generator=generator)
        whole = [x.clone().requires_grad_() for x in (p, s, P, V)]
        pre_values = whole[2] if with_pre_values else None
        whole_o = lookup(whole[0], whole[1], rows, pre_values, whole[3], activation=activation)
        whole_o.backward(d_o)
        own = slice(5 * world.rank, 5 * world.rank + 5)
        mine = [p[own].clone(), s[own].clone(), columns(P, 1, world), columns(V, n_cores, world)]
        mine = [x.requires_grad_() for x in mine]
        pre_values = mine[2] if with_pre_values else None
        o = sharded_lookup(world, mine[0], mine[1], rows[own], pre_values, mine[3], activation=activation)
        o.backward(d_o[own])
        pairs.append((o, whole_o[own]))
        if with_pre_values:
            pairs += [(mine[0].grad, whole[0].grad[own]), (mine[2].grad, columns(whole[2].grad, 1, world))]
        pairs += [(mine[1].grad, whole[1].grad[own]), (mine[3].grad, columns(whole[3].grad, n_cores, world))]
    return pairs


class Counting(World):
    """Counts the bytes this process sends to others in gathers and exchanges."""

    sent: ClassVar[list[int]] = []

    def gather(self, tensor: Tensor) -> Tensor:
        self.sent.append(tensor.nbytes * (self.size - 1))
        return super().gather(tensor)

    def exchange(self, tensor: Tensor) -> Tensor:
        self.sent.append(tensor.nbytes * (self.size - 1) // self.size)
        return super().exchange(tensor)


def bytes_sent(world: World, folder: Path) -> int:
    """What the lookups of one step send."""
    counting = Counting(rank=world.rank, size=world.size, shard_tables=True)
    run = Run(run_spec("ultramem_v2"), open_corpus("kjv"), folder, CPU, counting)
    counting.sent.clear()
    run.train_step()
    return sum(counting.sent)


def clipping(world: World) -> tuple[float, list[Tensor], float, list[Tensor]]:
    """Norm and clipped gradients of two shards and a replica, beside those of the whole."""
    generator = seeded(1)
    table, other = (torch.randn(x, generator=generator, dtype=torch.float64) for x in ((6, 8), (3, 3)))
    whole = [torch.nn.Parameter(torch.zeros_like(x)) for x in (table, other)]
    mine = [torch.nn.Parameter(torch.zeros_like(x)) for x in (columns(table, 2, world), other)]
    for p, grad in zip((*whole, *mine), (table, other, columns(table, 2, world), other), strict=True):
        p.grad = grad.clone()
    norm = clip_gradients(whole, 0.25)
    split_norm = clip_gradients(mine, 0.25, mine[:1], world.sum)
    wanted = [columns(whole[0].grad, 2, world), whole[1].grad]
    return float(norm), wanted, float(split_norm), [p.grad for p in mine]


def row_averages(world: World) -> tuple[Tensor, Tensor]:
    """The mean of two row-sparse gradients, which stays sparse, and what it should be."""
    gradients = [torch.zeros(9, 2), torch.zeros(9, 2)]
    gradients[0][[1, 4]] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    gradients[1][[4, 5, 8]] = 1.0
    model = torch.nn.Embedding(9, 2)
    model.weight.grad = gradients[world.rank].to_sparse(1)
    GradientMean(model, world).finish()
    assert model.weight.grad.is_sparse
    assert model.weight.grad.coalesce().indices().tolist() == [[1, 4, 5, 8]]
    return model.weight.grad.to_dense(), sum(gradients) / 2


def until(step: int):
    """Stop a run after so many steps."""
    seen = iter(range(10**9))
    return lambda: next(seen) >= step


def execute(spec: RunSpec, folder: Path, world: World, stop_at: int | None = None):
    """Records of a whole run, in float64; None of one that stops."""
    with float64():
        run = Run(spec, open_corpus("kjv"), folder, CPU, world)
        try:
            return run.execute(
                lambda outcome: None, should_stop=until(stop_at) if stop_at else lambda: False
            ).records
        except Interrupted:
            return None


RESUMED = (False, True)


def overlapped(world: World) -> dict[str, object]:
    """Means of gradients that are sent during a backward pass, a layer a message, and what they should be."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(LAYERS)))
    x = torch.randn(world.size, 5, 8)[world.rank]
    model(x).square().sum().backward()
    wanted = [world.sum(p.grad.clone()) / world.size for p in model.parameters()]
    means = GradientMean(model, world, bucket_bytes=4 * (8 * 8 + 8))
    sent: list[int] = []
    model[0].weight.register_post_accumulate_grad_hook(lambda _: sent.append(len(means.sent)))
    found = []
    for parts in (1, 2):
        model.zero_grad()
        for i in range(parts):
            if i + 1 == parts:
                means.begin()
            (model(x).square().sum() / parts).backward()
        sent.append(len(means.sent))
        means.finish()
        found.append([p.grad.clone() for p in model.parameters()])
    return {"found": found, "wanted": wanted, "sent": sent}


def both(rank: int, root: Path, data: str) -> None:
    """One of two processes: does everything that needs two, and writes what it found."""
    os.environ["UMSCALE_DATA"] = data
    found: dict = {}
    with worlds.join(rank, 2, root / "rendezvous") as world:
        found["overlapped"] = overlapped(world)
        for name, shard in CASES:
            here = dataclasses.replace(world, shard_tables=shard)
            with float64():
                found[name, shard] = train_steps(name, here, root / f"{name}-{shard}")
        for name in HALVED:
            found[name, "fp32"] = train_steps(name, world, root / f"{name}-fp32")
        for shard in RESUMED:
            here = dataclasses.replace(world, shard_tables=shard)
            spec = run_spec("ultramem_v2")
            found["begun by two", shard] = execute(spec, root / f"begun-by-two-{shard}", here, stop_at=13)
            found["continued by two", shard] = execute(spec, root / f"begun-by-one-{shard}", here)
        found["lookups"], found["clipping"] = lookups(world), clipping(world)
        found["sent"] = bytes_sent(world, root / "sent")
        found["rows"], found["text"] = row_averages(world), world.share_text("Grüße" if rank == 0 else "")
    torch.save(found, root / f"found-{rank}.pt")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """The folder and the findings of two processes."""
    folder = tmp_path_factory.mktemp("pair")
    for shard in RESUMED:
        assert execute(run_spec("ultramem_v2"), folder / f"begun-by-one-{shard}", World(), stop_at=18) is None
    worlds.start(both, 2, folder, os.environ["UMSCALE_DATA"])
    return folder, [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return execute(run_spec("ultramem_v2"), tmp_path_factory.mktemp("undisturbed"), World())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    with float64():
        return {name: train_steps(name, World(), folder / name) for name in dict(CASES)}


# -- the same numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shard"), CASES)
def test_two_processes_train_as_one_does(pair, alone, name: str, shard: bool) -> None:
    expected = alone[name]
    first, second = (found[name, shard] for found in pair[1])
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(expected["losses"], rel=1e-12)
    for key, weight in expected["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key]), f"replicas drift apart: {key}"
        torch.testing.assert_close(first["weights"][key], weight, rtol=1e-10, atol=1e-11, msg=key)
    for found in (first, second):
        torch.testing.assert_close(found["nats"], expected["nats"], rtol=1e-12, atol=0)
        assert found["positions"] == pytest.approx(expected["positions"], rel=1e-12)
        assert (found["usage"] is None) == (expected["usage"] is None)
    assert first["usage"] == second["usage"]
    for ours, theirs in zip(first["usage"] or (), expected["usage"] or (), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("name", HALVED)
def test_two_replicas_are_bitwise_one_process_with_two_half_batches(pair, tmp_path: Path, name: str) -> None:
    run = Run(run_spec(name), open_corpus("kjv"), tmp_path, CPU)
    # Alone, table gradients arrive as rows, whose norm sums in another order; between processes they are dense.
    run.model.configure_tables(run.spec.train)
    run.optimizer = make_optimizer(run.model, run.spec.train, table_decay(run.spec))
    losses = []
    for step in range(STEPS):
        set_rates(run.optimizer, run.schedule.rates(step, None))
        run.optimizer.zero_grad(set_to_none=True)
        halves = [torch.from_numpy(run.stream.batch(step, part, 2)) for part in range(2)]
        parts = [mean_loss(run.model(half[:, :-1]), half[:, 1:]) for half in halves]
        for part in parts:
            (part / 2).backward()
        clip_gradients(run.model.parameters(), run.spec.train.grad_clip)
        run.optimizer.step()
        run.model.refresh(tables=False)
        losses.append(sum(part.item() for part in parts) / 2)
    found = pair[1][0][name, "fp32"]
    assert found["losses"] == losses
    for key, p in run.model.named_parameters():
        assert torch.equal(found["weights"][key], p), key


def test_the_lookups_of_a_step_send_what_the_formula_says(pair) -> None:
    spec = run_spec("ultramem_v2")
    m, tokens, memory = spec.model.memory.top_m, spec.tokens_per_step // 2, spec.model.memory
    a_layer = 4 * tokens * (m * (3 + 2 * memory.n_cores) + 2 * memory.row_width // 2)
    assert [found["sent"] for found in pair[1]] == [spec.model.n_layers * a_layer] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_split_lookup_is_the_whole_one_forward_and_backward(pair, rank: int) -> None:
    for mine, whole in pair[1][rank]["lookups"]:
        tolerance = 1e-12 if whole.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(mine, whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_clipped_norm_is_that_of_all_shards_and_one_replica(pair, rank: int) -> None:
    norm, wanted, split_norm, clipped = pair[1][rank]["clipping"]
    assert split_norm == pytest.approx(norm, rel=1e-14)
    for x, y in zip(clipped, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rank", [0, 1])
def test_row_sparse_gradients_are_averaged_as_such(pair, rank: int) -> None:
    torch.testing.assert_close(*pair[1][rank]["rows"])
    assert pair[1][rank]["text"] == "Grüße"


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_are_sent_while_the_backward_pass_goes_on(pair, rank: int) -> None:
    """Of a step in two parts, in the second alone."""
    found = pair[1][rank]["overlapped"]
    whole, first_part, second_part = found["sent"][0], found["sent"][2], found["sent"][3]
    assert min(whole, second_part) >= LAYERS - 1, "the first layer's gradients are made last"
    assert (found["sent"][1], first_part, found["sent"][4]) == (LAYERS, 0, LAYERS)
    for means in found["found"]:
        for mean, wanted in zip(means, found["wanted"], strict=True):
            assert torch.equal(mean, wanted)


def test_row_dots_is_half_a_lookup() -> None:
    generator = seeded(0)
    for dtype in (torch.float32, torch.float64):
        p, table, d_z = (
            torch.randn(shape, generator=generator, dtype=dtype) for shape in ((7, 5), (40, 5), (7, 3))
        )
        p.requires_grad_()
        table.requires_grad_()
        rows = torch.randint(0, 40, (7, 3), generator=generator)
        gradients = []
        plain = torch.einsum("td,tmd->tm", p, table[rows])
        for z in (row_dots(p, rows, table), row_dots(p, rows.int(), table, sparse_grad=True), plain):
            torch.testing.assert_close(z, plain)
            d_p, d_table = torch.autograd.grad(z, (p, table), d_z)
            gradients.append((d_p, d_table.to_dense()))
        for found in gradients[:2]:
            torch.testing.assert_close(found, gradients[2])


# -- shares -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, shard in CASES if shard])
def test_a_process_holds_half_of_tables_moments_and_average(pair, alone, name: str) -> None:
    whole = alone[name]["sizes"]
    for found in pair[1]:
        for key, size in found[name, True]["sizes"].items():
            split = key.startswith("tables.") and not key.endswith(("/step", "/kept"))
            assert size == (whole[key] // 2 if split else whole[key]), key
    assert any(key.startswith("tables.values/exp_avg_sq") for key in whole)


# -- checkpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", RESUMED)
def test_what_two_begin_one_continues_and_the_reverse(pair, undisturbed, shard: bool) -> None:
    folder, found = pair
    spec = run_spec("ultramem_v2")
    assert found[0]["begun by two", shard] is None, "it was interrupted"
    by_one = execute(spec, folder / f"begun-by-two-{shard}", World())
    for records in (by_one, found[0]["continued by two", shard], found[1]["continued by two", shard]):
        for name in ("loss", "loss_ema"):
            expected = [record[name] for record in undisturbed]
            assert [record[name] for record in records] == pytest.approx(expected, rel=1e-12)


# -- the command --------------------------------------------------------------------------------------------

STUDY = """
name = "tiny"
[axes]
top_m = [4, 6]
[model]
d_model = 32
n_layers = 1
n_heads = 2
[model.ffn]
d_ffn = 32
[model.memory]
n_keys = 16
d_key = 8
d_pre_value = 8
d_value = 8
[data]
corpus = "kjv"
seq_len = 32
validation_tokens = 3000
[train]
budgets = [60000]
batch_size = 4
warmup_tokens = 1000
checkpoint_seconds = 0.3
precision = "float32"
"""


def in_process(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Run the command here; returns exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["umscale", "train", "tiny.toml", "--store", "s", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, *capsys.readouterr()


def processes(folder: Path) -> dict[int, int]:
    """Processes that train from jobs below ``folder``, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (
                str(folder) in (path / "cmdline").read_text()
                and "umscale.parallel.worker" in (path / "cmdline").read_text()
            ):
                environment = (path / "environ").read_bytes().split(b"\0")
                rank = next(x for x in environment if x.startswith(b"RANK="))
                found[int(rank.removeprefix(b"RANK="))] = int(path.name)
        except OSError:
            continue
    return found


def wait_for(condition, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_killed_interrupted_and_resumed_with_another_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = ["--cell", "top_m=4", "--nproc", "2", "--tables", "sharded"]
    (tmp_path / "tiny.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    checkpoints = tmp_path / "s/work/checkpoints"

    def kill_one() -> None:
        wait_for(lambda: list(checkpoints.glob("*/trunk.safetensors")))
        os.kill(processes(tmp_path)[1], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    code, out, err = in_process(two, monkeypatch, capsys)
    killer.join()
    assert code == 1, err
    assert "process 1 of 2 was killed by signal 9" in err
    assert "Traceback" not in err
    assert out == ""
    assert Store.open("s").statuses() == {}, "a lost process is no result"

    (saved,) = checkpoints.glob("*/trunk.safetensors")
    before = saved.stat().st_mtime_ns

    def interrupt() -> None:
        wait_for(lambda: saved.stat().st_mtime_ns > before)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    code, _, err = in_process(two, monkeypatch, capsys)
    interrupter.join()
    assert code == 130, err
    assert processes(tmp_path) == {}
    assert not list(tmp_path.glob("umscale-train-*")), "nothing is left in the temporary folder"

    code, out, err = in_process(["--cell", "top_m=4", "--json"], monkeypatch, capsys)
    assert code == 0, err
    found = json.loads(out)
    assert [r["status"] for r in found["records"]] == ["finished"] * 2
    assert len(found["peak_memory_bytes"]) == 1
    assert not list(checkpoints.glob("*/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--nproc", "2"],
            "the study has 2 cells; choose one with --cell: 'top_m=4 seed=0', 'top_m=6 seed=0'",
        ),
        (["--cell", "top_m=5"], "no cell for --cell 'top_m=5'; there are 'top_m=4 seed=0'"),
        (["--cell", "top_m=4", "--nproc", "8"], "--nproc can be 1, 2, 4"),
        (["--cell", "top_m=4", "--tables", "split"], "must be replicated or sharded"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "tiny.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(arguments, monkeypatch, capsys)
    assert code == 2
    assert message in err
    assert (len(err.strip().splitlines()), out) == (1, "")
    assert not (tmp_path / "s").exists()


def test_what_cannot_be_divided_is_refused() -> None:
    spec = run_spec("ultramem_v2")
    check(spec, 4, True)
    for size, change, message in (
        (3, {}, "train.batch_size = 4 is not divisible by 3 processes; --nproc can be 1, 2, 4"),
        (8, {}, "train.batch_size = 4 is not divisible by 8 processes"),
        (4, {"d_value": 12}, "memory.d_value = 12 in 2 cores is not divisible by 4 processes"),
        (4, {"d_pre_value": 6}, "memory.d_pre_value = 6 is not divisible by 4 processes"),
    ):
        memory = dataclasses.replace(spec.model.memory, **change)
        with pytest.raises(UserError, match=message):
            check(dataclasses.replace(spec, model=dataclasses.replace(spec.model, memory=memory)), size, True)
    with pytest.raises(UserError, match="no value tables"):
        check(run_spec("dense"), 2, True)
    row = dataclasses.replace(spec, train=dataclasses.replace(spec.train, table_second_moment="row"))
    check(row, 2, False)
    with pytest.raises(UserError, match="whole rows"):
        check(row, 2, True)
