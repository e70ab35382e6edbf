"""Generating a corpus with a known entropy: documents of a seeded source, prepared as any other text."""

import hashlib
import shutil
from pathlib import Path

import numpy as np

from umscale.data.corpus import MANIFEST, Corpus, Generated, Recipe, SourceInfo, corpora_folder, read_corpus
from umscale.data.prepare import Progress, build, check_options, temporary_folder
from umscale.data.sources import Boundary, Source
from umscale.data.synthetic import MarkovFacts, document_batches, document_nats, floor
from umscale.data.tokenizing import BYTES
from umscale.errors import UserError


def generate(
    name: str,
    source: MarkovFacts,
    tokens: int,
    *,
    validation_fraction: float = 0.01,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Corpus:
    """Generate a named corpus of about ``tokens`` byte tokens, both splits and end-of-text included.

    A larger corpus of the same source begins with a smaller one. Its exact floors go into the manifest.

    Args:
        name: of the corpus.
        source: what is drawn from.
        tokens: rounded up to whole documents.
        validation_fraction: of the documents, above 0 and at most 0.5.
        force: replace a corpus of that name.
        progress: called now and then.

    Returns:
        The corpus; one generated earlier in the same way is returned as it is.

    Raises:
        UserError: bad options, a name that is taken, too few tokens to split, too many for the disk, a full disk.
    """
    check_options(name, validation_fraction)
    count = -(-tokens // (source.document + 1))
    if count < 2:
        raise UserError(
            f"{tokens:,} tokens are fewer than two documents of {source.document} bytes; ask for more tokens"
        )
    exact = floor(source)
    generated = Generated(
        source=source, floor_nats=exact.nats, floor_without_facts_nats=exact.without_facts_nats
    )
    boundary = Boundary(kind="separator", separator=b"\n")
    recipe = Recipe(tokenizer="bytes", documents=r"\n", validation_fraction=validation_fraction)
    target = corpora_folder() / name
    n_bytes = count * (source.document + 1)
    if not force and (found := _made_before(target, source, recipe, n_bytes)) is not None:
        return found
    with temporary_folder(target) as folder:
        _require_room(folder, n_bytes, tokens)
        path = folder / f"{source.kind}.txt"
        sha = _write_text(path, source, count, progress)
        info = SourceInfo(name=path.name, n_bytes=n_bytes, sha256=sha, kind="text", documents=str(boundary))
        text = Source(
            path=path, label=path.name, kind="text", compression="", n_bytes=n_bytes, boundary=boundary
        )
        return build(
            target, [text], (info,), recipe,
            tokenizer=BYTES, force=force, progress=progress, generated=generated,
        )  # fmt: skip


def _made_before(target: Path, source: MarkovFacts, recipe: Recipe, n_bytes: int) -> Corpus | None:
    """The corpus of that name if it is the one asked for; raises ``UserError`` if it is another."""
    if not (target / MANIFEST).exists():
        return None
    found = read_corpus(target)
    m = found.manifest
    # Not the floors: their last digits are the machine's.
    made = m.generated.source if m.generated else None
    if (made, m.recipe, m.sources[0].n_bytes) == (source, recipe, n_bytes):
        return found
    raise UserError(
        f"corpus {target.name!r} exists and was made otherwise; replace it with --force or choose another name"
    )


def _require_room(folder: Path, n_bytes: int, tokens: int) -> None:
    needed, free = n_bytes * (1 + BYTES.dtype.itemsize), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{tokens:,} tokens take {needed / 1e9:,.1f} GB of disk while they are made, {free / 1e9:,.1f} GB are "
            "free; ask for fewer tokens or set UMSCALE_DATA to a larger disk"
        )


def _write_text(path: Path, source: MarkovFacts, count: int, progress: Progress) -> str:
    """Write documents, a line each; returns their SHA-256."""
    digest, done, n_bytes = hashlib.sha256(), 0, count * (source.document + 1)
    with path.open("wb") as stream:
        for texts in document_batches(source, count):
            lines = np.full((len(texts), source.document + 1), ord("\n"), np.uint8)
            lines[:, :-1] = texts
            digest.update(lines.data)
            stream.write(lines.data)
            done += lines.size
            progress("generate", done, n_bytes)
    return digest.hexdigest()


def validation_floor(corpus: Corpus, targets: np.ndarray) -> float:
    """Return what the corpus's own source scores on validation windows, nats per token.

    ``Corpus.floor_nats`` is an expectation over all documents; this is the lowest honest loss on these ones, without
    the sampling error of choosing them.

    Args:
        corpus: a generated one.
        targets: of ``umscale.data.batches.validation_windows``, int64 ``[W, seq_len]``.

    Raises:
        UserError: the corpus was not generated.
    """
    generated = corpus.manifest.generated
    if generated is None:
        raise UserError(f"corpus {corpus.name!r} was not generated: its floor is not known")
    texts = targets[targets >= 0].reshape(-1, generated.source.document).astype(np.uint8)
    return float(document_nats(generated.source, texts)[0].sum() / texts.size)
