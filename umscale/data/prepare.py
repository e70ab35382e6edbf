"""Preparing a corpus: files in, token shards and a manifest out.

Memory is flat: sources are read in chunks, documents pass through in batches, and what is kept for choosing the
split and for training a tokenizer is bounded. The corpus appears at its place complete or not at all.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import heapq
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from umscale.data.corpus import (
    DOCUMENT,
    EMBEDDED,
    FORMAT,
    MANIFEST,
    TOKENIZER,
    VERSION,
    Corpus,
    CorpusFile,
    Generated,
    Manifest,
    Recipe,
    SourceInfo,
    Split,
    SplitName,
    TokenizerInfo,
    content_hash,
    corpora_folder,
    file_sha256,
    is_name,
    manifest_json,
    read_corpus,
    replaced_name,
    restore_replaced,
)
from umscale.data.sources import DEFAULT_FIELD, Rows, Source, find_sources, parse_boundary, read_documents
from umscale.data.tokenizing import BYTES, Encoder, Tokenizer, load_tokenizer, parse_bpe, train_bpe
from umscale.errors import UserError, nearest
from umscale.files import sync_folder, write_error
from umscale.processes import scope, start_time

SHARD_BYTES = 1 << 30
"""A reader holds a file descriptor a shard, so that a terabyte stays below the usual limit of 1024."""
BATCH_BYTES = 2 << 20
BATCH_DOCUMENTS = 1 << 14
SAMPLE_BYTES = 32 << 20
"""At most this much text trains a BPE."""
SAMPLE_DOCUMENT_BYTES = 1 << 20
VALIDATION_DOCUMENTS = 16
"""Small corpora: at least this many validation documents, or a tenth of all where that is less (never none)."""
STALE_SECONDS = 60
LEFT_OUT_NAMED = 100
"""Files left out that the manifest names."""

Progress = Callable[[str, int, int], None]
"""``progress(stage, done_bytes, total_bytes)``; stages are ``checksums``, ``sample`` and ``tokens``."""


def prepare(
    paths: Sequence[Path],
    *,
    name: str | None = None,
    tokenizer: str = "bytes",
    documents: str = "auto",
    text_field: str | None = None,
    validation_fraction: float = 0.01,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Corpus:
    r"""Prepare a named corpus under ``data_home()``.

    Documents go to validation by a hash of their content, so that duplicates never straddle the split.

    Args:
        paths: text, JSON, CSV or Parquet files (but for Parquet also as gzip, xz, zstd or bz2), or folders of them.
        name: of the corpus; None takes the first path's name without suffixes.
        tokenizer: ``bytes``, ``bpe:VOCAB`` (trained on this text) or the path of a ``tokenizer.json``.
        documents: what a document is in plain text: ``file``, ``page`` (a MediaWiki dump), ``blank:BYTES`` (cut
            at the first blank line after BYTES), a separator, or ``auto`` (pages if there are any, else form
            feeds if there are any, else ``blank:8192``). A row of JSONL or Parquet is a document.
        text_field: field or column that holds the text of a row, ``text`` when None; with one, no plain text is taken.
        validation_fraction: of the documents, above 0 and at most 0.5.
        force: replace a corpus of that name.
        progress: called now and then.

    Returns:
        The corpus; one made earlier from the same sources in the same way is returned as it is.

    Raises:
        UserError: bad input or options, a name that is taken, text too short to split, a full disk.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise UserError("nothing to prepare; give at least one file or folder")
    name = _default_name(paths[0]) if name is None else name
    check_options(name, validation_fraction)
    boundary = parse_boundary(documents)
    known = _known_tokenizer(tokenizer)
    sources, skipped = find_sources(paths, boundary, text_field)
    if not sources:
        raise UserError(f"{paths[0]}: holds no file of text, JSON, CSV or Parquet{_left_out(skipped)}")
    recipe = Recipe(
        tokenizer=tokenizer if known is None or known is BYTES else f"file:{known.sha256}",
        documents=documents,
        text_field=text_field or DEFAULT_FIELD,
        validation_fraction=validation_fraction,
    )
    infos = _describe(sources, progress)
    target = corpora_folder() / name
    if not force and (found := _existing(target, recipe, infos)) is not None:
        return found
    return build(
        target, sources, infos, recipe, tokenizer=known, skipped=skipped, force=force, progress=progress
    )


def _left_out(skipped: Sequence[str]) -> str:
    return f" (left out: {'; '.join(skipped[:5])}{', ...' if len(skipped) > 5 else ''})" if skipped else ""


def check_options(name: str, validation_fraction: float) -> None:
    """Raise ``UserError`` unless a corpus can have that name and hold out that share of its documents."""
    if not is_name(name):
        raise UserError(
            f"{name!r} cannot name a corpus: use up to 64 letters, digits and . _ - (--name), "
            "the first a letter or digit"
        )
    if name == EMBEDDED:
        raise UserError(f"{name!r} is the corpus that comes with umscale; choose another with --name")
    if not 0 < validation_fraction <= 0.5:
        raise UserError(f"validation fraction {validation_fraction:g}: must be above 0 and at most 0.5")


def _default_name(path: Path) -> str:
    name = path.resolve().name
    stem = name.split(".")[0]
    return stem or name


def _known_tokenizer(text: str) -> Tokenizer | None:
    """Return the tokenizer that ``text`` names, or None for a BPE still to be trained."""
    if text == "bytes":
        return BYTES
    if text.startswith("bpe:"):
        parse_bpe(text)
        return None
    if "/" not in text and not Path(text).exists() and not text.endswith(".json"):
        raise UserError(
            f"unknown tokenizer {text!r}{nearest(text, ('bytes', 'bpe:4096'))}; "
            "write bytes, bpe:VOCAB or the path of a tokenizer.json"
        )
    return load_tokenizer(Path(text))


def _describe(sources: Sequence[Source], progress: Progress) -> tuple[SourceInfo, ...]:
    """Hash the sources."""
    total, done = sum(source.n_bytes for source in sources), 0
    infos = []
    for source in sources:

        def advance(n_bytes: int, before: int = done) -> None:
            progress("checksums", before + n_bytes, total)

        try:
            sha256 = file_sha256(source.path, advance)
        except OSError as error:
            raise UserError(f"{source.path}: cannot be read ({error.strerror})") from None
        infos.append(
            SourceInfo(
                name=source.label,
                n_bytes=source.n_bytes,
                sha256=sha256,
                kind=source.kind,
                documents="row" if source.boundary is None else str(source.boundary),
            )
        )
        done += source.n_bytes
    return tuple(infos)


def _existing(target: Path, recipe: Recipe, infos: tuple[SourceInfo, ...]) -> Corpus | None:
    """Return the corpus at ``target`` if this recipe and these sources made it; None if there is none.

    Raises:
        UserError: there is another one.
    """
    if not (target / MANIFEST).exists():
        return None
    corpus = read_corpus(target)
    if corpus.manifest.recipe == recipe and _contents(corpus.manifest.sources) == _contents(infos):
        return corpus
    raise UserError(
        f"corpus {target.name!r} exists and was made from other sources or options; "
        "replace it with --force or choose another --name"
    )


def _contents(infos: tuple[SourceInfo, ...]) -> list[tuple[str, str, str]]:
    return [(info.sha256, info.kind, info.documents) for info in infos]


def build(
    target: Path,
    sources: Sequence[Source],
    infos: tuple[SourceInfo, ...],
    recipe: Recipe,
    *,
    tokenizer: Tokenizer | None,
    force: bool,
    progress: Progress,
    skipped: Sequence[str] = (),
    shard_bytes: int = SHARD_BYTES,
    generated: Generated | None = None,
) -> Corpus:
    """Build the corpus folder ``target``; a ``tokenizer`` of None trains the BPE the recipe asks for.

    ``generated`` is recorded as it is.

    Raises:
        UserError: see ``prepare``.
    """
    below = int(recipe.validation_fraction * 2.0**64)
    with temporary_folder(target) as folder:
        if tokenizer is None:
            sample, below = _sample(sources, recipe, progress)
            tokenizer = train_bpe(sample, parse_bpe(recipe.tokenizer))
            del sample
        written = _write(folder, sources, tokenizer, recipe, below, shard_bytes, progress)
        if written.survey.threshold(below) != below:
            below = written.survey.threshold(below)
            written = _write(folder, sources, tokenizer, recipe, below, shard_bytes, progress)
        _check_result(written, sources, recipe)
        manifest = dataclasses.replace(
            _manifest(written, tokenizer, infos, recipe, below),
            name=target.name,
            skipped_files=len(skipped),
            left_out=tuple(skipped[:LEFT_OUT_NAMED]),
            generated=generated,
        )
        manifest = dataclasses.replace(manifest, hash=content_hash(manifest))
        if tokenizer.json:
            _write_file(folder / TOKENIZER, tokenizer.json)
        _write_file(folder / MANIFEST, manifest_json(manifest))
        sync_folder(folder)
        _put(folder, target, manifest, force)
    return read_corpus(target)


def _manifest(
    written: "_Written", tokenizer: Tokenizer, infos: tuple[SourceInfo, ...], recipe: Recipe, below: int
) -> Manifest:
    """What was written, before its name and its hash."""
    train, validation = written.splits
    return Manifest(
        format=FORMAT,
        version=VERSION,
        name="",
        hash="",
        dtype="<u2" if tokenizer.dtype.itemsize == 2 else "<u4",
        vocab_size=tokenizer.vocab_size,
        eot=tokenizer.eot,
        validation_below=f"{below:016x}",
        tokenizer=TokenizerInfo(
            kind=tokenizer.kind, sha256=tokenizer.sha256, sample_bytes=tokenizer.sample_bytes
        ),
        recipe=recipe,
        train=train,
        validation=validation,
        sources=infos,
        undecodable_documents=written.undecodable,
        null_rows=written.rows.null,
        empty_rows=written.rows.empty,
        header_rows=written.rows.headers,
        lost_bytes=written.lost_bytes,
    )


def _check_result(written: "_Written", sources: Sequence[Source], recipe: Recipe) -> None:
    survey, rows = written.survey, written.rows
    if survey.documents == 0:
        without = f": {rows.null + rows.empty} rows without any" if rows.null + rows.empty else ""
        raise UserError(f"the sources hold no text{without}")
    separated = [s for s in sources if s.boundary is not None and s.boundary.kind == "separator"]
    if recipe.documents != "auto" and len(separated) == len(sources) == survey.documents:
        raise UserError(
            f"documents {recipe.documents!r}: this separates nothing in {sources[0].path}; "
            "use auto, file, page, blank:BYTES or text that stands between documents"
        )
    if not all(split.documents for split in written.splits):
        shorter = any(s.kind == "text" for s in sources)
        raise UserError(
            f"the sources hold {survey.documents} document(s), too few different ones to hold some out for validation; "
            + (
                "give more text, or shorter documents with --documents blank:1024"
                if shorter
                else "give more rows"
            )
        )


# ---------------------------------------------------------------------------------------------------------
# Documents to tokens


class _Survey:
    """Counts documents and remembers the lowest hashes, from which the validation floor follows."""

    def __init__(self) -> None:
        self.documents = 0
        self._lowest: list[int] = []  # max-heap (negated) of distinct hashes
        self._members: set[int] = set()

    def add(self, content: int) -> None:
        self.documents += 1
        full = len(self._lowest) == VALIDATION_DOCUMENTS
        if content in self._members or (full and content >= -self._lowest[0]):
            return
        self._members.add(content)
        if full:
            self._members.discard(-heapq.heapreplace(self._lowest, -content))
        else:
            heapq.heappush(self._lowest, -content)

    def threshold(self, below: int) -> int:
        """Return ``below``, raised if need be so that enough documents have a lower hash."""
        lowest = sorted(self._members)
        floor = min(VALIDATION_DOCUMENTS, max(1, self.documents // 10), len(lowest))
        return max(below, lowest[floor - 1] + 1) if floor else below


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Written:
    """What a pass over all documents has found."""

    survey: _Survey
    splits: tuple[Split, Split]
    rows: Rows
    undecodable: int
    lost_bytes: int


def _hash(document: bytes) -> int:
    return int.from_bytes(hashlib.sha256(document).digest()[:8], "big")


def _documents(
    sources: Sequence[Source], text_field: str, stage: str, progress: Progress, rows: Rows | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield hash and content of every document."""
    total, done = sum(source.n_bytes for source in sources), 0
    for source in sources:

        def advance(n_bytes: int, before: int = done) -> None:
            progress(stage, before + n_bytes, total)

        for document in read_documents(source, text_field, advance, rows):
            yield _hash(document), document
        done += source.n_bytes
    progress(stage, total, total)


def _sample(sources: Sequence[Source], recipe: Recipe, progress: Progress) -> tuple[list[bytes], int]:
    """Return text to train a tokenizer on, and the final split threshold.

    The sample is the training documents of highest hash: an even spread over the corpus that does not depend
    on the order of documents and holds none of the validation split.
    """
    survey = _Survey()
    chosen: list[tuple[int, bytes]] = []  # min-heap by hash
    members: set[int] = set()
    size = 0
    for content, document in _documents(sources, recipe.text_field, "sample", progress):
        survey.add(content)
        if content in members or (size >= SAMPLE_BYTES and content < chosen[0][0]):
            continue
        members.add(content)
        heapq.heappush(chosen, (content, document[:SAMPLE_DOCUMENT_BYTES]))
        size += min(len(document), SAMPLE_DOCUMENT_BYTES)
        while size - len(chosen[0][1]) >= SAMPLE_BYTES:
            lost, text = heapq.heappop(chosen)
            members.discard(lost)
            size -= len(text)
    below = survey.threshold(int(recipe.validation_fraction * 2.0**64))
    return [document for content, document in sorted(chosen) if content >= below], below


def _write(
    folder: Path,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    recipe: Recipe,
    below: int,
    shard_bytes: int,
    progress: Progress,
) -> _Written:
    """Encode all documents into the shards and indices of both splits."""
    for old in folder.glob("*.bin"):
        old.unlink()
    survey, encoder, rows = _Survey(), Encoder(tokenizer), Rows()
    with (
        _SplitWriter(folder, "train", shard_bytes) as train,
        _SplitWriter(folder, "validation", shard_bytes) as validation,
    ):
        batches: dict[_SplitWriter, _Batch] = {train: _Batch(), validation: _Batch()}
        for content, document in _documents(sources, recipe.text_field, "tokens", progress, rows):
            survey.add(content)
            writer = validation if content < below else train
            batch = batches[writer]
            batch.add(content, document)
            if batch.n_bytes >= BATCH_BYTES or len(batch.documents) >= BATCH_DOCUMENTS:
                writer.append(batch, encoder)
                batches[writer] = _Batch()
        for writer, batch in batches.items():
            if batch.documents:
                writer.append(batch, encoder)
    return _Written(
        survey=survey,
        splits=(train.split, validation.split),
        rows=rows,
        undecodable=encoder.undecodable,
        lost_bytes=encoder.lost_bytes,
    )


class _Batch:
    def __init__(self) -> None:
        self.documents: list[bytes] = []
        self.hashes: list[int] = []
        self.n_bytes = 0

    def add(self, content: int, document: bytes) -> None:
        self.documents.append(document)
        self.hashes.append(content)
        self.n_bytes += len(document)


class _SplitWriter:
    """Writes one split: a token stream cut into shards, and an index record a document."""

    def __init__(self, folder: Path, name: SplitName, shard_bytes: int) -> None:
        self._folder, self._name, self._shard_bytes = folder, name, shard_bytes
        self._shards: list[_HashedFile] = []
        self._index = _HashedFile(folder / f"{name}-documents.bin")
        self._documents = self._tokens = self._n_bytes = 0

    def __enter__(self) -> "_SplitWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for file in (*self._shards, self._index):
            if kind is None:
                file.close()
            else:
                file.discard()

    def append(self, batch: _Batch, encoder: Encoder) -> None:
        tokens, counts, n_bytes = encoder.encode(batch.documents)
        rows = np.empty(len(counts), DOCUMENT)
        rows["offset"] = self._tokens + np.cumsum(counts) - counts
        rows["n_tokens"] = counts
        rows["n_bytes"] = n_bytes
        rows["hash"] = np.array(batch.hashes, np.uint64)
        self._index.write(rows.view(np.uint8).data)
        data = tokens.view(np.uint8).data
        while data:
            if not self._shards or self._shards[-1].n_bytes >= self._shard_bytes:
                if self._shards:
                    self._shards[-1].close()
                name = f"{self._name}-{len(self._shards):05d}.bin"
                self._shards.append(_HashedFile(self._folder / name))
            room = self._shard_bytes - self._shards[-1].n_bytes
            self._shards[-1].write(data[:room])
            data = data[room:]
        self._documents += len(counts)
        self._tokens += len(tokens)
        self._n_bytes += int(n_bytes.sum())

    @property
    def split(self) -> Split:
        """What was written."""
        return Split(
            documents=self._documents,
            tokens=self._tokens,
            n_bytes=self._n_bytes,
            shards=tuple(file.info for file in self._shards),
            index=self._index.info,
        )


class _HashedFile:
    """A file that is hashed as it is written, and on disk once it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()
        self.n_bytes = 0

    def write(self, data: memoryview) -> None:
        self._digest.update(data)
        self._stream.write(data)
        self.n_bytes += len(data)

    def close(self) -> None:
        if not self._stream.closed:
            try:
                self._stream.flush()
                os.fsync(self._stream.fileno())
            finally:
                self._stream.close()

    def discard(self) -> None:
        """Close without caring about what is on disk."""
        with contextlib.suppress(OSError):
            self._stream.close()

    @property
    def info(self) -> CorpusFile:
        return CorpusFile(name=self._path.name, n_bytes=self.n_bytes, sha256=self._digest.hexdigest())


def _write_file(path: Path, text: str) -> None:
    with path.open("wb") as stream:
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())


# ---------------------------------------------------------------------------------------------------------
# Folders that appear whole


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield a locked temporary sibling of ``target``; it is gone afterwards, whatever happens.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    temporary = _sibling(target)
    handle = -1
    restore_replaced(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        temporary.mkdir()
        handle = os.open(temporary, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield temporary
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


_TEMPORARY = re.compile(r"\..*\.(?P<scope>[0-9a-f]{16})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")


def _sibling(target: Path) -> Path:
    return target.with_name(f".{target.name}.{scope()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _remove_stale(parent: Path) -> None:
    """Remove temporaries whose process is gone: nobody holds their lock any more."""
    for path in parent.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            made = _TEMPORARY.fullmatch(path.name)
            dead = made and made["scope"] == scope() and start_time(int(made["pid"])) is None
            if not dead and time.time() - path.stat().st_mtime < STALE_SECONDS:
                continue  # perhaps just made and not yet locked
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def _put(folder: Path, target: Path, manifest: Manifest, force: bool) -> None:
    """Move the finished folder to its place.

    Raises:
        UserError: something else is there and ``force`` is off.
    """
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # one at a time, so that two replacements do not cross
        if force and target.exists():
            old = replaced_name(target)  # from which it comes back should this process be killed in between
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            folder.rename(target)
            sync_folder(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        elif not target.exists():
            folder.rename(target)
        elif not (target / MANIFEST).exists():
            raise UserError(f"{target}: in the way, and not a corpus; remove it or choose another --name")
        elif read_corpus(target).hash != manifest.hash:
            raise UserError(
                f"corpus {target.name!r} was made from other text meanwhile; choose another --name"
            )
    finally:
        os.close(handle)
    sync_folder(target.parent)
