"""Results from elsewhere become a store that laws and verdicts read; event files are read without TensorBoard."""

import json
import struct
import sys

import numpy as np
import pytest

from umscale.errors import UserError
from umscale.results.events import read_scalars
from umscale.results.importing import import_runs, read_source
from umscale.store.store import Store
from umscale_cli.main import main


def wandb_export(path):
    """A CSV as the W&B page exports one: names with slashes, and everything in quotes."""
    rng = np.random.Generator(np.random.PCG64(0))
    lines = ['"Name","State","top_m","sparse","tokens_seen","seed","val/loss"']
    for m in (4, 8, 16):
        for n in (1e5, 4e5, 1.6e6):
            for seed in (0, 1):
                loss = 3 - 0.05 * np.log2(m) - 0.02 * np.log2(n / 1e5) + 0.002 * rng.standard_normal()
                lines.append(
                    f'"run-{m}-{n:.0f}-{seed}","finished","{m}","{n:.0f}","1000000","{seed}","{loss:.5f}"'
                )
    lines.append('"run-crashed","crashed","4","100000","1000000","7",""')
    path.write_text("\n".join(lines) + "\n")
    return path


MAP = "run_id=Name,sparse_params=sparse,tokens=tokens_seen,loss=`val/loss`"


@pytest.fixture
def umscale(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["umscale", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        found = capsys.readouterr()
        return ended.value.code, found.out, found.err

    return command


def test_an_export_becomes_a_study_with_a_verdict(umscale, tmp_path):
    source = wandb_export(tmp_path / "wandb.csv")
    code, out, err = umscale("import", source, "--name", "theirs", "--map", MAP, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["runs"], found["records"], found["without_loss"]) == (19, 19, 1)
    assert found["left_out"] == ["State"]
    code, out, err = umscale("fit", "theirs", "--json")
    assert code == 0, err
    verdict = json.loads(out)["verdicts"][0]
    assert verdict["answer"] == "supported"
    assert umscale("import", source, "--name", "theirs", "--map", MAP)[0] == 0
    assert len(Store.open(tmp_path / "umscale-runs" / "theirs").read("runs")) == 19, "replaced, not added"


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ("tokens=tokens_seen", "--map loss=COLUMN"),
        ("loss=`val/loss`", "--map tokens=COLUMN"),
        ("loss=`val/loss`,tokens=tokens_seen,lss=top_m", "no such column"),
        ("loss=Name,tokens=tokens_seen", "must hold numbers"),
        ("loss=`val/loss`,tokens=tokens_seen,n_keys=`val/loss`", "whole numbers"),
    ],
)
def test_what_does_not_fit_is_one_line(umscale, tmp_path, mapping, words):
    source = wandb_export(tmp_path / "wandb.csv")
    code, _, err = umscale("import", source, "--name", "theirs", "--map", mapping)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert words in err


def test_rows_that_nothing_tells_apart(tmp_path):
    table = {"loss": np.array([2.0, 2.1]), "tokens": np.array([10, 10]), "top_m": np.array([2, 2])}
    with pytest.raises(UserError, match="tells them apart"):
        import_runs(Store.create(tmp_path / "s"), table, {}, study="x")
    assert (
        import_runs(Store.create(tmp_path / "s"), table | {"seed": np.array([0, 1])}, {}, study="x").runs == 2
    )


def event(step, tag, value):
    """An event as TensorBoard writes it: framed, with a checksum that readers may ignore."""
    name = tag.encode()
    inner = b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", value)
    summary = b"\x0a" + bytes([len(inner)]) + inner
    content = (
        b"\x09" + struct.pack("<d", 1.0) + b"\x10" + bytes([step]) + b"\x2a" + bytes([len(summary)]) + summary
    )
    return struct.pack("<Q", len(content)) + b"\0" * 4 + content + b"\0" * 4


def test_event_files(tmp_path):
    for m in (2, 4):
        folder = tmp_path / "logs" / f"top_m={m},seed=0"
        folder.mkdir(parents=True)
        events = [event(s, "val/loss", 3 - s / 10) for s in (1, 2)] + [event(2, "tokens", 64.0)]
        (folder / "events.out.tfevents.1").write_bytes(b"".join(events) + b"cut")
    table = read_source(tmp_path / "logs")
    assert table["top_m"].tolist() == ["2", "4"]
    assert table["val/loss"].tolist() == pytest.approx([2.8, 2.8])
    found = import_runs(Store.create(tmp_path / "s"), table, {"loss": "`val/loss`"}, study="tb")
    assert (found.runs, found.left_out) == (2, ())
    (tmp_path / "bad.tfevents").write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match="no event file"):
        read_scalars(tmp_path / "bad.tfevents")
