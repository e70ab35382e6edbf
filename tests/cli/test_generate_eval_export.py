"""Commands for kept weights, on a store that a tiny run left."""

import json
import sys

import pytest

from umscale.data.corpus import open_corpus
from umscale.execute.claimed_run import Reporter, train_one
from umscale.spec import RunSpec, from_dict
from umscale.store.store import Store
from umscale_cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A store with one finished run that kept its last weights; its id."""
    corpus = open_corpus("kjv")
    vocabulary = {"vocab_size": corpus.vocab_size}
    spec = from_dict(
        RunSpec,
        {
            "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "ffn": {"d_ffn": 16}} | vocabulary,
            "data": {"corpus": "kjv", "hash": corpus.hash, "seq_len": 64, "validation_tokens": 2000},
            "train": {"budgets": [2000], "batch_size": 4, "warmup_tokens": 0, "precision": "float32", "keep": "final"},
        },
    )  # fmt: skip
    store = Store.create(tmp_path_factory.mktemp("cli") / "store")
    with store.claim(spec.run_id) as mine, open("/dev/null", "w", encoding="utf-8") as nothing:
        assert mine
        train_one(store, "tiny", spec, Reporter(nothing), "cpu")
    return store, spec.run_id


@pytest.fixture
def umscale(capsys, monkeypatch, run):
    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["umscale", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        found = capsys.readouterr()
        return ended.value.code, found.out, found.err

    return command


def test_text_losses_and_an_export(umscale, run, tmp_path):
    store, run_id = run
    where = ("--study", str(store.root), "--device", "cpu")
    greedy = umscale("generate", run_id[:6], "--prompt", "In the", "--tokens", "8", "--greedy", *where)
    assert (greedy[0], greedy[1][:6]) == (0, "In the")
    code, out, _ = umscale("eval", run_id[:6], "--corpus", "kjv", "--json", *where)
    assert (code, json.loads(out)["loss"]) == (0, store.final_record(run_id)["loss"])
    code, out, _ = umscale("export", run_id, str(tmp_path / "m"), "--study", str(store.root))
    assert (code, len(out.split())) == (0, 5)
    folder = str(tmp_path / "m")
    again = umscale("generate", folder, "--prompt", "In the", "--tokens", "8", "--greedy", "--device", "cpu")
    assert again[1] == greedy[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "RUN", "--probes"), "written in bytes"),
        (("eval", "RUN"), "--corpus NAME or --probes"),
        (("eval", "RUN", "--corpus", "nothing"), "no corpus 'nothing'"),
        (("generate", "RUN", "--stage", "stable"), "there are: 2,000 annealed"),
        (("generate", "RUN", "--stage", "final"), "must be stable or annealed"),
        (("generate", "RUN", "--temperature", "-1"), "must not be negative"),
        (("generate", "RUN", "--device", "tpu"), "must be auto, cpu or cuda"),
        (("generate", "zzz"), "no run 'zzz'"),
        (("export", "RUN", "."), "holds other files"),
    ],
)
def test_errors_are_one_line(umscale, run, arguments, words):
    store, run_id = run
    code, _, err = umscale(*(run_id if a == "RUN" else a for a in arguments), "--study", str(store.root))
    assert (code, len(err.splitlines())) == (2, 1), err
    assert words in err


def test_weights_that_are_damaged_are_one_line(umscale, run, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    code, _, err = umscale("generate", str(tmp_path))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no readable weights" in err
