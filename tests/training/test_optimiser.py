"""The optimiser of the value tables: what its options change and what they leave alone, clipping, data parallelism."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.numerics import assert_close, seeded
from tests.training import worlds
from umscale.data.corpus import open_corpus
from umscale.layers.loss import mean_loss
from umscale.model.decoder import Decoder
from umscale.model.scaling import BASE, learning_rates, table_decay
from umscale.spec import DataSpec, FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec
from umscale.training import checkpoint
from umscale.training.optimiser import (
    TableAdamW,
    WeightAverage,
    clip_gradients,
    distinct_rows,
    make_optimizer,
    optimizer_tensors,
    set_rates,
)
from umscale.training.run import Interrupted, Run

ROWS = TrainSpec(lr=1e-2, value_lr=3e-2, table_gradient="rows", table_second_moment="row")
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")


class Toy(nn.Module):
    """Two tables that are read by row, and a dense projection."""

    def __init__(self, sparse: bool = True, n_rows: int = 40) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n_rows, 8, sparse=sparse) for _ in range(2))
        self.out = nn.Linear(8, 5)
        generator = seeded(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))

    def loss(self, rows: Tensor) -> Tensor:
        return self.out(self.tables[0](rows) * self.tables[1](rows + 1)).square().mean()


def reads(step: int, n_rows: int = 40) -> Tensor:
    """Rows that a step reads, with duplicates, never the last five."""
    return torch.randint(0, n_rows - 6, (24,), generator=seeded(step))


def train(model: Toy, optimizer: torch.optim.Optimizer, steps: range, max_norm: float = 0.5) -> None:
    for step in steps:
        set_rates(optimizer, (1e-2 / (1 + step), 3e-2))
        optimizer.zero_grad(set_to_none=True)
        model.loss(reads(step)).backward()
        clip_gradients(model.parameters(), max_norm)
        optimizer.step()


# -- options ------------------------------------------------------------------------------------------------


def test_by_default_it_is_torch_adamw_in_two_groups() -> None:
    optimizer = make_optimizer(Toy(), TrainSpec())
    assert type(optimizer) is torch.optim.AdamW
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    assert all(group["fused"] for group in optimizer.param_groups)
    assert type(make_optimizer(nn.Linear(2, 2), ROWS)) is torch.optim.AdamW, "no tables"


def test_dense_weights_take_bitwise_the_steps_of_torch_adamw() -> None:
    """The tables differ (one second moment a row), so their learning rate is 0 here."""
    ours, theirs = Toy(sparse=False), Toy(sparse=False)
    still = dataclasses.replace(ROWS, weight_decay=0.0)
    for model, spec in ((ours, still), (theirs, dataclasses.replace(TrainSpec(lr=1e-2), weight_decay=0.0))):
        optimizer = make_optimizer(model, spec)
        for step in range(5):
            set_rates(optimizer, (1e-2, 0.0))
            optimizer.zero_grad()
            model.loss(reads(step)).backward()
            optimizer.step()
    assert torch.equal(ours.out.weight, theirs.out.weight)
    assert torch.equal(ours.out.bias, theirs.out.bias)


def test_full_second_moment_with_dense_gradients_is_adamw() -> None:
    ours, theirs = Toy(sparse=False), Toy(sparse=False)
    train(ours, make_optimizer(ours, TrainSpec(table_gradient="rows")), range(6))
    train(theirs, make_optimizer(theirs, TrainSpec()), range(6))
    for x, y in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(x, y)


def test_row_gradients_leave_unread_rows_and_their_moments_alone() -> None:
    model = Toy()
    before = [table.weight.detach().clone() for table in model.tables]
    optimizer = make_optimizer(model, ROWS)
    assert isinstance(optimizer, TableAdamW)
    train(model, optimizer, range(3))
    read = torch.cat([reads(step) for step in range(3)]).unique()
    for shift, (table, old) in enumerate(zip(model.tables, before, strict=True)):
        changed = (table.weight != old).any(1).nonzero().squeeze(1)
        assert changed.tolist() == (read + shift).tolist()
        state = optimizer.state[table.weight]
        assert state["exp_avg_sq"].shape == (40,)
        for name in ("exp_avg", "exp_avg_sq"):
            assert state[name].view(40, -1).any(1).nonzero().squeeze(1).tolist() == changed.tolist()


def shrinkage(train: TrainSpec, table_decay: float, steps: int) -> Tensor:
    """What is left of the last rows of a table, which no step reads, relative to where they began."""
    model = Toy(sparse=train.table_gradient == "rows")
    before = model.tables[0].weight.detach().clone()
    optimizer = make_optimizer(model, train, table_decay)
    for step in range(steps):
        set_rates(optimizer, (1e-2, 3e-2))
        optimizer.zero_grad(set_to_none=True)
        model.loss(reads(step)).backward()
        optimizer.step()
    return model.tables[0].weight.detach()[-4:] / before[-4:]


@pytest.mark.parametrize("table_gradient", ["dense", "rows"])
@pytest.mark.parametrize("second_moment", ["full", "row"])
@pytest.mark.parametrize("decay", [0.0, 1.6e-4, 5e-3])
def test_tables_decay_by_their_own_share_a_step(
    table_gradient: str, second_moment: str, decay: float
) -> None:
    """Rows that nothing reads too: eight steps are two of the whole-table decays of row-sparse gradients."""
    train = dataclasses.replace(
        ROWS, table_weight_decay=decay, table_gradient=table_gradient, table_second_moment=second_moment
    )
    left = shrinkage(train, decay / 3e-2, 8)
    torch.testing.assert_close(left, torch.full_like(left, (1 - decay) ** 8), rtol=1e-5, atol=0)
    assert (decay == 0) == bool((left == 1).all())


def test_row_sparse_decay_agrees_with_dense_where_it_is_due() -> None:
    """Rows that are read too: with a gradient of zero, dense and row-sparse tables are the same after four steps."""
    left = {}
    for gradient in ("dense", "rows"):
        train = dataclasses.replace(ROWS, table_weight_decay=5e-3, table_gradient=gradient)
        model = Toy(sparse=gradient == "rows")
        optimizer = make_optimizer(model, train, 5e-3 / 3e-2)
        for step in range(4):
            set_rates(optimizer, (1e-2, 3e-2))
            optimizer.zero_grad(set_to_none=True)
            (0 * model.loss(reads(step))).backward()
            optimizer.step()
        left[gradient] = [table.weight.detach() for table in model.tables]
    for dense, rows in zip(*left.values(), strict=True):
        torch.testing.assert_close(rows, dense, rtol=1e-6, atol=0)


def test_coupled_decay_is_as_before_version_3() -> None:
    """AdamW's own: the tables' rate times ``weight_decay``, and of row-sparse gradients only the rows read."""
    coupled = dataclasses.replace(ROWS, table_weight_decay="coupled")
    assert (shrinkage(coupled, coupled.weight_decay, 4) == 1).all()
    dense = dataclasses.replace(coupled, table_gradient="dense")
    left = shrinkage(dense, dense.weight_decay, 4)
    torch.testing.assert_close(left, torch.full_like(left, (1 - 3e-2 * 0.1) ** 4), rtol=1e-6, atol=0)


def test_the_decay_of_a_run_does_not_move_with_its_shape() -> None:
    for top_m in (8, 96):
        model = dataclasses.replace(BASE, memory=dataclasses.replace(BASE.memory, top_m=top_m))
        own = RunSpec(model=model, train=TrainSpec(table_weight_decay=1.6e-4))
        assert table_decay(own) * learning_rates(own)[1] == pytest.approx(1.6e-4)
        coupled = RunSpec(model=model, train=TrainSpec(table_weight_decay="coupled"))
        assert table_decay(coupled) == coupled.train.weight_decay


# -- resuming -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second_moment", ["full", "row"])
@pytest.mark.parametrize("table_gradient", ["dense", "rows"])
def test_a_checkpoint_continues_bitwise(tmp_path: Path, table_gradient: str, second_moment: str) -> None:
    spec = dataclasses.replace(
        ROWS, table_gradient=table_gradient, table_second_moment=second_moment, table_weight_decay=1e-2
    )
    sparse = table_gradient == "rows"
    whole, first, second = (Toy(sparse) for _ in range(3))
    train(whole, make_optimizer(whole, spec), range(7))
    optimizer = make_optimizer(first, spec)
    train(first, optimizer, range(4))
    checkpoint.save(tmp_path / "c.safetensors", first, optimizer, WeightAverage(first, 0.1), {})
    resumed = make_optimizer(second, spec)
    assert (
        checkpoint.load(tmp_path / "c.safetensors", second, resumed, WeightAverage(second, 0.1)) is not None
    )
    saved, loaded = optimizer_tensors(first, optimizer), optimizer_tensors(second, resumed)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    train(second, resumed, range(4, 7))
    assert all(torch.equal(x, y) for x, y in zip(whole.parameters(), second.parameters(), strict=True))


def test_an_interrupted_run_continues_bitwise(tmp_path: Path) -> None:
    """A whole training run with row gradients and row-wise second moments, stopped twice."""
    corpus = open_corpus("kjv")
    spec = RunSpec(
        model=small_model(corpus.vocab_size),
        data=DataSpec(corpus="kjv", hash=corpus.hash, seq_len=32, validation_tokens=500),
        train=dataclasses.replace(ROWS, budgets=(3_000,), batch_size=8, warmup_tokens=500, precision="float32"),
    )  # fmt: skip

    def finish(folder: Path, stops: list[int]) -> tuple[list[float], Run]:
        calls = iter(range(1000))
        while True:
            run = Run(spec, corpus, folder, CPU)
            try:
                outcome = run.execute(lambda outcome: None, should_stop=lambda: next(calls) in stops)
            except Interrupted:
                continue
            return [point["loss"] for point in outcome.curve], run

    losses, run = finish(tmp_path / "whole", [])
    again, resumed = finish(tmp_path / "stopped", [4, 9])
    assert losses == again
    assert losses[-1] < losses[0]
    assert isinstance(run.optimizer, TableAdamW)
    assert run.model.tables.values.grad.is_sparse
    for x, y in zip(run.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(x, y)


# -- clipping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clipping_dense_gradients_is_torch_bitwise(max_norm: float) -> None:
    ours, theirs = Toy(sparse=False), Toy(sparse=False)
    for model in (ours, theirs):
        model.loss(reads(0)).backward()
    norm = clip_gradients(ours.parameters(), max_norm)
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm))
    assert all(
        torch.equal(x.grad, y.grad) for x, y in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clipping_counts_row_gradients_as_the_dense_ones(max_norm: float) -> None:
    sparse, dense = Toy(sparse=True), Toy(sparse=False)
    for model in (sparse, dense):
        model.loss(reads(0)).backward()
    norm = clip_gradients(sparse.parameters(), max_norm)
    assert_close(norm, torch.nn.utils.clip_grad_norm_(dense.parameters(), max_norm))
    for x, y in zip(sparse.parameters(), dense.parameters(), strict=True):
        assert_close(x.grad.to_dense(), y.grad)
        assert not x.grad.is_sparse or x.grad.is_coalesced()


def test_clipping_skips_parameters_without_a_gradient() -> None:
    model = Toy()
    model.out.requires_grad_(False)
    model.loss(reads(0)).backward()
    model.tables[1].weight.grad = None
    norm = clip_gradients(model.parameters(), 1e6)
    assert_close(norm, model.tables[0].weight.grad.to_dense().norm())


def test_distinct_rows_sums_duplicates_and_copies_nothing_when_there_are_none() -> None:
    values = torch.arange(6.0).view(3, 2)
    for rows in ([2, 0, 2], [0, 2, 2], [0, 1, 4]):
        grad = torch.sparse_coo_tensor(torch.tensor([rows]), values, (5, 2))
        found = distinct_rows(grad)
        assert found.is_coalesced()
        assert torch.equal(found.to_dense(), grad.to_dense())
        assert (found.values().data_ptr() == values.data_ptr()) == (rows == [0, 1, 4])
        assert distinct_rows(found) is found


# -- data parallelism ---------------------------------------------------------------------------------------


def small_model(vocab_size: int = 50) -> ModelSpec:
    return ModelSpec(
        d_model=32,
        n_layers=2,
        n_heads=2,
        vocab_size=vocab_size,
        ffn=FfnSpec(d_ffn=48),
        memory=MemorySpec(n_keys=16, top_m=6, d_key=8, d_pre_value=8, d_value=8),
    )


def gradients(model: nn.Module, rank: int) -> dict[str, Tensor]:
    """Gradients of a loss on the batch of ``rank``."""
    window = torch.randint(0, 50, (4, 17), generator=seeded(rank))
    mean_loss(model(window[:, :-1]), window[:, 1:]).backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}


def replica(rank: int, folder: Path) -> None:
    """One of two data-parallel processes; the first one writes its gradients."""
    with worlds.join(rank, 2, folder / "rendezvous"):
        model = Decoder(small_model(), seed=0, max_seq_len=16).double()  # rounding decides no selection
        found = gradients(nn.parallel.DistributedDataParallel(model), rank)
        if rank == 0:
            torch.save(found, folder / "gradients.pt")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_data_parallel_replicas_average_the_gradients_of_the_tables(tmp_path: Path) -> None:
    """Of the tables as of everything else: summed instead, they would dominate the clipped norm."""
    worlds.start(replica, 2, tmp_path)
    together = torch.load(tmp_path / "gradients.pt")
    alone = [gradients(Decoder(small_model(), seed=0, max_seq_len=16).double(), rank) for rank in range(2)]
    assert {"tables.values", "tables.pre_values"} <= together.keys()
    for name, grad in together.items():
        assert not torch.equal(alone[0][name], alone[1][name]), name
        assert_close(grad, (alone[0][name] + alone[1][name]) / 2, torch.float64, name=name)
