"""The corpus that comes with the package: the King James Bible, a chapter a document. See README.md beside it."""

import hashlib
from pathlib import Path

from umscale.data.corpus import EMBEDDED, MANIFEST, Corpus, Recipe, SourceInfo, corpora_folder, read_corpus
from umscale.data.prepare import build
from umscale.data.sources import Boundary, Source
from umscale.data.tokenizing import load_tokenizer
from umscale.errors import UserError

TEXT = Path(__file__).with_name("kjv.txt.xz")
TEXT_SHA256 = "12db2efed81006c076dfae5cea03a26a55897dae5d7319efc28985551cef715e"
VOCABULARY = Path(__file__).with_name("kjv.tokenizer.json")
VOCABULARY_SHA256 = "2d14c7df97f586044fe5e573e262247cbefb6624e1d473b027f44eae70097958"
"""A BPE of 1024 ids trained on the training split; shipped so that tokens do not hang on a library version."""
VALIDATION_FRACTION = 0.06
"""Holds out as many tokens as ``DataSpec.validation_tokens`` asks for by default."""


def open_embedded() -> Corpus:
    """Open the embedded corpus; on first use it is prepared under ``data_home()``, which takes a second or two.

    Any number of processes may call this at once.

    Raises:
        UserError: the data folder cannot be written, or the packaged files are not the ones released.
    """
    target = corpora_folder() / EMBEDDED
    recipe = Recipe(
        tokenizer=f"file:{VOCABULARY_SHA256}",
        documents=r"\f",
        validation_fraction=VALIDATION_FRACTION,
    )
    outdated = False
    if (target / MANIFEST).exists():
        try:
            corpus = read_corpus(target)
            if corpus.manifest.recipe == recipe and corpus.manifest.sources[0].sha256 == TEXT_SHA256:
                return corpus
        except UserError:
            pass  # whatever happened to it, it can be made again
        outdated = True
    for path, expected in ((TEXT, TEXT_SHA256), (VOCABULARY, VOCABULARY_SHA256)):
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise UserError(f"{path}: missing or not the released file; install umscale again")
    boundary = Boundary(kind="separator", separator=b"\f")
    source = Source(
        path=TEXT,
        label=TEXT.name,
        kind="text",
        compression="xz",
        n_bytes=TEXT.stat().st_size,
        boundary=boundary,
    )
    info = SourceInfo(
        name=TEXT.name, n_bytes=source.n_bytes, sha256=TEXT_SHA256, kind="text", documents=str(boundary)
    )
    return build(
        target,
        [source],
        (info,),
        recipe,
        tokenizer=load_tokenizer(VOCABULARY),
        force=outdated,
        progress=lambda stage, done, total: None,
    )
