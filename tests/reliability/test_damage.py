"""Crashes and full disks at the worst moment: what is left says the truth, and a run is never blamed for a disk."""

import resource

import pytest
import torch

from umscale.design.study import expand, load_study
from umscale.errors import UserError
from umscale.files import LocalFiles
from umscale.model.decoder import Decoder
from umscale.selftest.crash import STUDY
from umscale.store.store import RUN_TABLES, Store
from umscale.training.checkpoint import Workspace
from umscale.training.optimiser import WeightAverage, make_optimizer
from umscale.training.record import spec_row


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return next(cell.run for cell in expand(load_study(str(path)), "float32") if cell.run)


@pytest.fixture
def bounded():
    """No file may grow beyond a few kilobytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_checkpoint_that_does_not_fit_is_the_disks_fault(tmp_path, run, bounded, in_background):
    model = Decoder(run.model, run.seed, run.data.seq_len)
    model.configure_tables(run.train)
    optimizer, average = make_optimizer(model, run.train), WeightAverage(model, run.train.ema_width)
    workspace = Workspace(files=LocalFiles(tmp_path / "work"))

    def save() -> None:
        workspace.save("trunk", model, optimizer, average, {"step": 1}, in_background)
        workspace.flush()

    with pytest.raises(UserError, match="limit on file sizes"):
        save()
    assert list((tmp_path / "work").iterdir()) == []
    assert torch.isfinite(next(model.parameters())).all()


@pytest.mark.parametrize("table", RUN_TABLES)
@pytest.mark.parametrize("moves", [1, 2, 3, 4])
def test_a_repair_that_is_cut_short_leaves_no_run_finished_without_its_tables(
    tmp_path, run, monkeypatch, table, moves
):
    store = Store.create(tmp_path / "store")
    keys = [{"budget": b, "stage": s} for b in run.train.budgets for s in ("stable", "annealed")]
    store.write_run(
        spec_row(run),
        "t",
        status="finished",
        records=keys,
        documents=[{"document": "d", **key} for key in keys],
        curve=[{"phase": "trunk"}],
        probes=[{"task": "recall", **key} for key in keys],
        evaluations=[{"evaluation": "e", "metric": "m", "value": 1.0, **key} for key in keys],
    )
    path = store.root / table / f"{run.run_id}.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    real, done = LocalFiles.move, []

    def dying(files, name, to):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(name)
        real(files, name, to)

    monkeypatch.setattr(LocalFiles, "move", dying)
    try:
        store.repair()
    except KeyboardInterrupt:
        assert moves < len(RUN_TABLES)
    assert Store.open(store.root).status(run.run_id) is None
    monkeypatch.undo()
    Store.open(store.root).repair()
    assert Store.open(store.root).statuses() == {}
