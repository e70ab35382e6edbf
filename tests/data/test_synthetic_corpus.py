"""Generated corpora: what is written, what the manifest says about it, and the command line."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from umscale.data.batches import validation_windows
from umscale.data.corpus import (
    Corpus,
    TokenReader,
    data_home,
    document_index,
    manifest_json,
    open_corpus,
    read_corpus,
    to_tree,
    verify_corpus,
)
from umscale.data.synthetic import MarkovFacts, documents, floor
from umscale.data.synthetic_corpus import generate, validation_floor
from umscale.errors import UserError
from umscale_cli.main import app

SOURCE = MarkovFacts(seed=7, facts=200, document=128)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return generate("generated", SOURCE, 400_000, validation_fraction=0.2)


def test_tokens_are_the_documents_of_the_source(corpus: Corpus) -> None:
    count = -(-400_000 // 129)
    found = set()
    for split in ("train", "validation"):
        reader = TokenReader(corpus, split)
        rows = reader.read(0, len(reader)).reshape(-1, 129)
        assert (rows[:, 0] == corpus.eot).all()
        assert len(rows) == len(document_index(corpus, split))
        found |= {bytes(row[1:].astype(np.uint8)) for row in rows}
    assert found == {bytes(row) for row in documents(SOURCE, 0, count)}
    assert corpus.train_tokens + corpus.validation_tokens == count * 129
    assert 0.15 < corpus.validation_tokens / (count * 129) < 0.25
    verify_corpus(corpus)


def test_the_manifest_holds_the_exact_floors(corpus: Corpus) -> None:
    exact = floor(SOURCE)
    assert corpus.floor_nats == exact.nats
    assert corpus.floor_without_facts_nats == exact.without_facts_nats
    again = open_corpus("generated")
    assert again.manifest.generated == corpus.manifest.generated
    assert again.manifest.generated is not None
    assert again.manifest.generated.source == SOURCE


def test_the_floor_of_the_validation_documents(corpus: Corpus) -> None:
    """It nears the expectation, and does not hang on how documents are cut into windows."""
    assert corpus.floor_nats is not None
    whole = validation_windows(corpus, 128, 60_000)
    found = validation_floor(corpus, whole.targets)
    assert found == pytest.approx(
        validation_floor(corpus, validation_windows(corpus, 50, 60_000).targets), rel=1e-12
    )
    assert found != corpus.floor_nats
    assert abs(found - corpus.floor_nats) < 0.03
    with pytest.raises(UserError, match="not generated"):
        validation_floor(open_corpus("kjv"), whole.targets)


def test_the_same_source_gives_the_same_corpus(corpus: Corpus, tmp_path: Path) -> None:
    assert generate("generated", SOURCE, 400_000, validation_fraction=0.2) == corpus
    written = (corpus.path / "manifest.json").stat().st_mtime_ns
    assert (open_corpus("generated").path / "manifest.json").stat().st_mtime_ns == written  # not made again
    assert generate("twin", SOURCE, 400_000, validation_fraction=0.2).hash == corpus.hash
    other = dataclasses.replace(SOURCE, seed=8)
    assert generate("cousin", other, 400_000, validation_fraction=0.2).hash != corpus.hash
    for arguments in ((other, 400_000), (SOURCE, 500_000)):
        with pytest.raises(UserError, match="made otherwise"):
            generate("generated", *arguments, validation_fraction=0.2)
    replaced = generate("cousin", SOURCE, 400_000, validation_fraction=0.2, force=True)
    assert replaced.hash == corpus.hash
    assert not list(data_home().glob("corpora/.*.tmp"))


def test_manifests_without_a_source_are_as_before() -> None:
    embedded = open_corpus("kjv")
    assert "generated" not in to_tree(embedded.manifest)
    assert embedded.floor_nats is None
    assert embedded.floor_without_facts_nats is None


@pytest.mark.parametrize(
    "damage", [{"floor_nats": 9.0}, {"floor_nats": -1.0}, {"source": {"order": 7}}, {"source": {"kind": "x"}}]
)
def test_a_manifest_with_impossible_floors_is_refused(corpus: Corpus, tmp_path: Path, damage: dict) -> None:
    for file in corpus.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tree = json.loads(manifest_json(corpus.manifest))
    tree["generated"] |= damage
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match="damaged manifest"):
        read_corpus(tmp_path)


def test_too_few_or_too_many_tokens_or_a_bad_name() -> None:
    before = sorted(data_home().glob("corpora/*"))
    for arguments, message in (
        (("x", SOURCE, 129), "ask for more tokens"),
        (("x", SOURCE, 10**18), "are free; ask for fewer tokens"),
        (("../x", SOURCE, 10_000), "cannot name a corpus"),
        (("kjv", SOURCE, 10_000), "comes with umscale"),
    ):
        with pytest.raises(UserError, match=message):
            generate(*arguments)
    assert sorted(data_home().glob("corpora/*")) == before


def test_generate_info_and_list(tmp_path: Path, source_paths: str) -> None:
    environment = {**os.environ, "PYTHONPATH": source_paths, "UMSCALE_DATA": str(tmp_path)}

    def umscale(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "umscale_cli.main", "data", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    options = ["--tokens", "50k", "--facts", "1k", "--document", "64"]
    made = umscale("generate", "toy", *options, "--json")
    assert made.returncode == 0, made.stderr
    manifest = json.loads(made.stdout)
    exact = floor(MarkovFacts(facts=1000, document=64))
    assert manifest["generated"]["floor_nats"] == exact.nats
    assert manifest["generated"]["source"]["facts"] == 1000
    assert f"{exact.nats:.6f}" in umscale("info", "toy").stdout
    listed = umscale("list").stdout
    assert f"{exact.without_facts_nats:.4f}" in listed
    refused = umscale("generate", "other", "--order", "3")
    assert refused.returncode == 2
    assert refused.stderr == "umscale: order must lie between 0 and 2, not 3\n"
    assert refused.stdout == ""
    for wrong in (["--kind", "markov"], ["--tokens", "many"], ["--facts", "1.5"]):
        found = CliRunner().invoke(app, ["data", "generate", "other", *wrong])
        assert isinstance(found.exception, UserError)
