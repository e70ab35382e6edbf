"""Prepared corpora: a folder of token shards with a manifest that fixes them by hash.

    train-00000.bin …        token ids, uint16 or uint32, little-endian; shards are one stream, cut by size
    train-documents.bin      one ``DOCUMENT`` record a document
    validation-…             likewise
    tokenizer.json           unless the tokenizer is bytes
    manifest.json            what all this is, with the SHA-256 of every file

A manifest is input like any other: everything in it is checked before it is used.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from umscale.data.sources import SourceKind
from umscale.data.synthetic import MarkovFacts
from umscale.data.tokenizing import Tokenizer, TokenizerKind
from umscale.errors import UserError, nearest
from umscale.files import read_bounded
from umscale.spec import from_dict, to_dict
from umscale.trees import parse_json

FORMAT = "umscale-corpus"
VERSION = 1
"""Of the corpus format; a reader refuses newer ones."""
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
EMBEDDED = "kjv"
"""Name of the corpus that comes with the package."""

SplitName = Literal["train", "validation"]

DOCUMENT = np.dtype([("offset", "<i8"), ("n_tokens", "<i8"), ("n_bytes", "<i8"), ("hash", "<u8")])
"""A document: offset of its end-of-text token in the split, tokens (end-of-text included), bytes of text, and the
first eight bytes of the text's SHA-256."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusFile:
    """A file of the corpus folder."""

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One side of the train/validation split."""

    documents: int
    tokens: int
    """End-of-text tokens included."""
    n_bytes: int
    """Of text."""
    shards: tuple[CorpusFile, ...]
    index: CorpusFile


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerInfo:
    """Where token ids come from."""

    kind: TokenizerKind
    sha256: str = ""
    """Of tokenizer.json; empty for bytes."""
    sample_bytes: int = 0
    """How much text a BPE was trained on, the documents of highest hash of the training split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceInfo:
    """A file the corpus was made from."""

    name: str
    n_bytes: int
    sha256: str
    kind: SourceKind
    documents: str
    """How documents were told apart: ``row``, ``page``, ``file``, ``blank:BYTES`` or ``separator …``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What was asked for; the same recipe on the same sources gives the same corpus."""

    tokenizer: str = "bytes"
    """``bytes``, ``bpe:VOCAB``, or ``file:SHA256``."""
    documents: str = "auto"
    text_field: str = "text"
    validation_fraction: float = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """What is known about a corpus that was generated rather than collected."""

    source: MarkovFacts
    floor_nats: float
    """Exact expected loss, nats per token, of a reader who knows the source: see ``umscale.data.synthetic``. Reached in
    principle where ``data.seq_len`` holds a whole document; a bound where it is shorter."""
    floor_without_facts_nats: float
    """The same for a reader who knows everything but the facts' values: the difference is what memory can buy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything about a corpus but its tokens."""

    format: str
    version: int
    name: str
    hash: str
    """SHA-256 over what determines the token stream; equal on every machine."""
    dtype: Literal["<u2", "<u4"]
    vocab_size: int
    eot: int
    """Id that begins every document."""
    validation_below: str
    """16 hex digits: documents whose hash is below this are validation."""
    tokenizer: TokenizerInfo
    recipe: Recipe
    train: Split
    validation: Split
    sources: tuple[SourceInfo, ...]
    skipped_files: int = 0
    """Files below a folder that were left out."""
    left_out: tuple[str, ...] = ()
    """The first of them, with the reason."""
    null_rows: int = 0
    """Rows whose text is null, and so no documents."""
    empty_rows: int = 0
    """Rows whose text is empty."""
    header_rows: int = 0
    """First rows that say something of their file and hold no text."""
    lost_bytes: int = 0
    """Bytes of text that no token stands for; no document's size counts them, so bits per byte are of the rest."""
    undecodable_documents: int = 0
    """Documents that are not UTF-8 and lost those bytes to U+FFFD; the bytes tokenizer keeps everything."""
    generated: Generated | None = None
    """None of a corpus of real text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A prepared corpus on disk, as its manifest describes it."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """As given when it was prepared."""
        return self.manifest.name

    @property
    def hash(self) -> str:
        """64 hex digits; equal for equal token streams with equal document boundaries."""
        return self.manifest.hash

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self.manifest.vocab_size

    @property
    def eot(self) -> int:
        """Id that begins every document."""
        return self.manifest.eot

    @property
    def train_tokens(self) -> int:
        """Tokens of the training split."""
        return self.manifest.train.tokens

    @property
    def validation_tokens(self) -> int:
        """Tokens of the validation split."""
        return self.manifest.validation.tokens

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, over both splits."""
        splits = (self.manifest.train, self.manifest.validation)
        return sum(s.n_bytes for s in splits) / sum(s.tokens for s in splits)

    @property
    def floor_nats(self) -> float | None:
        """The lowest loss any model can expect, nats per token; None where that is not known."""
        generated = self.manifest.generated
        return None if generated is None else generated.floor_nats

    @property
    def floor_without_facts_nats(self) -> float | None:
        """The lowest loss without memory of facts, see ``Generated``; None where that is not known."""
        generated = self.manifest.generated
        return None if generated is None else generated.floor_without_facts_nats

    def split(self, name: SplitName) -> Split:
        """Return one side of the split."""
        return self.manifest.train if name == "train" else self.manifest.validation


# ---------------------------------------------------------------------------------------------------------
# Finding corpora


def data_home() -> Path:
    """Return ``$UMSCALE_DATA``, or ``umscale`` in ``$XDG_DATA_HOME`` (default ``~/.local/share``)."""
    if own := os.environ.get("UMSCALE_DATA"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_DATA_HOME"):
        return Path(shared).absolute() / "umscale"
    return Path.home() / ".local" / "share" / "umscale"


def corpora_folder() -> Path:
    """Return the folder that named corpora live in; it may not exist yet."""
    return data_home() / "corpora"


def corpus_names() -> list[str]:
    """Return the names of all prepared corpora, readable or not, and of the embedded one."""
    folder = corpora_folder()
    found = {p.parent.name for p in folder.glob(f"*/{MANIFEST}") if not p.parent.name.startswith(".")}
    return sorted(found | {EMBEDDED})


def list_corpora() -> tuple[list[Corpus], list[str]]:
    """Return the prepared corpora in order of name, and a line for each that cannot be read."""
    corpora, problems = [], []
    for name in corpus_names():
        if (corpora_folder() / name).exists():
            try:
                corpora.append(read_corpus(corpora_folder() / name))
            except UserError as error:
                problems.append(str(error))
    return corpora, problems


def open_corpus(name_or_path: str | os.PathLike[str], *, verify: bool = False) -> Corpus:
    """Open a corpus by its name or by the path of its folder; the embedded one is prepared on first use.

    Sizes of all files are checked; ``verify`` checks their SHA-256 too.

    Raises:
        UserError: there is no such corpus, or it is damaged, or newer than this version.
    """
    text = os.fspath(name_or_path)
    folder = corpora_folder() / text
    if is_name(text) and not folder.exists():
        restore_replaced(folder)
    if is_name(text) and text == EMBEDDED:
        from umscale.data.embedded import open_embedded

        corpus = open_embedded()
    elif is_name(text) and (folder / MANIFEST).exists():
        corpus = read_corpus(folder)
    elif os.path.exists(path := os.path.join(os.path.expanduser(text), MANIFEST)):
        corpus = read_corpus(Path(path).parent.absolute())
    else:
        raise UserError(
            f"no corpus {text!r} (make one with: umscale data prepare FILE --name {_as_name(text)})"
            + nearest(text, corpus_names())
        )
    if verify:
        verify_corpus(corpus)
    return corpus


def is_name(text: str) -> bool:
    """Return whether ``text`` can name a corpus: a letter or digit, then up to 63 of those and ``. _ -``."""
    return _NAME.fullmatch(text) is not None


def _as_name(text: str) -> str:
    return text if is_name(text) else "NAME"


# ---------------------------------------------------------------------------------------------------------
# Reading and checking


def replaced_name(folder: Path) -> Path:
    """Return where a corpus waits while another takes its place."""
    return folder.with_name(f".{folder.name}.replaced")


def restore_replaced(folder: Path) -> None:
    """Undo a replacement that was killed half way, or finish one that was killed at its end."""
    old = replaced_name(folder)
    if not old.is_dir():
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder.parent, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else the replacement is under way
            if folder.exists():
                shutil.rmtree(old)
            else:
                old.rename(folder)
        finally:
            os.close(handle)


def read_corpus(folder: Path) -> Corpus:
    """Read and check the manifest in ``folder``, and the sizes of the files it lists.

    Raises:
        UserError: a manifest that is damaged or newer, a file that is missing or of the wrong size.
    """
    path = folder / MANIFEST
    try:
        tree = parse_json(read_bounded(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path}: damaged; prepare the corpus again with --force") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise UserError(f"{path}: not the manifest of a corpus")
    version = tree.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"{path}: written by a newer umscale (format {version}, this one reads {VERSION}); upgrade umscale"
        )
    try:
        manifest = from_dict(Manifest, tree)
        _check(manifest)
    except (UserError, TypeError, ValueError) as error:  # a missing field is a TypeError of the dataclass
        reason = str(error).replace("__init__() ", "")
        raise UserError(
            f"{path}: damaged manifest ({reason}); prepare the corpus again with --force"
        ) from None
    corpus = Corpus(path=folder, manifest=manifest)
    for file in corpus_files(corpus):
        _check_size(folder / file.name, file.n_bytes)
    return corpus


def _check(manifest: Manifest) -> None:
    """Raise ValueError unless the manifest is consistent in itself and stays inside its folder."""
    m = manifest
    if m.version != VERSION:
        raise ValueError(f"version {m.version}")
    if not is_name(m.name):
        raise ValueError(f"name {m.name!r}")
    item_bytes = np.dtype(m.dtype).itemsize
    if not 0 <= m.eot < m.vocab_size <= 1 << (8 * item_bytes):
        raise ValueError(f"vocab_size {m.vocab_size}, eot {m.eot}, dtype {m.dtype}")
    if not re.fullmatch(r"[0-9a-f]{16}", m.validation_below):
        raise ValueError(f"validation_below {m.validation_below!r}")
    if (m.tokenizer.kind == "bytes") != (m.tokenizer.sha256 == ""):
        raise ValueError("tokenizer.sha256")
    sums = [m.hash, *(source.sha256 for source in m.sources)]
    for name, split in (("train", m.train), ("validation", m.validation)):
        files = [*split.shards, split.index]
        sums += [file.sha256 for file in files]
        expected = [f"{name}-{i:05d}.bin" for i in range(len(split.shards))] + [f"{name}-documents.bin"]
        if [file.name for file in files] != expected or not split.shards:
            raise ValueError(f"files of split {name}")
        if not 1 <= split.documents <= split.tokens or split.n_bytes < 1:
            raise ValueError(f"counts of split {name}")
        if any(file.n_bytes < item_bytes or file.n_bytes % item_bytes for file in split.shards):
            raise ValueError(f"shard sizes of split {name}")
        if sum(file.n_bytes for file in split.shards) != split.tokens * item_bytes:
            raise ValueError(f"shard sizes of split {name} do not add up")
        if split.index.n_bytes != split.documents * DOCUMENT.itemsize:
            raise ValueError(f"index size of split {name}")
    if (g := m.generated) is not None and not (
        0 <= g.floor_nats <= g.floor_without_facts_nats <= math.log(m.vocab_size)
    ):
        raise ValueError(f"floors {g.floor_nats} and {g.floor_without_facts_nats}")
    if not all(_HEX.fullmatch(text) for text in sums):
        raise ValueError("a SHA-256 is not 64 hex digits")
    if m.hash != content_hash(m):
        raise ValueError("hash does not match the content it lists")


def content_hash(manifest: Manifest) -> str:
    """Return the SHA-256 over what determines the tokens: no names, paths, times or sources."""

    def split(s: Split) -> list[Any]:
        return [s.documents, s.tokens, s.n_bytes, [f.sha256 for f in s.shards], s.index.sha256]

    m = manifest
    parts = [FORMAT, m.version, m.dtype, m.vocab_size, m.eot, m.tokenizer.sha256, split(m.train)]
    text = json.dumps([*parts, split(m.validation)], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_json(manifest: Manifest) -> str:
    """Return the manifest as it is stored."""
    return json.dumps(to_tree(manifest), indent=1, ensure_ascii=True) + "\n"


def to_tree(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest as nested dictionaries and lists."""
    return json.loads(json.dumps(manifest, default=to_dict))


def corpus_files(corpus: Corpus) -> list[CorpusFile]:
    """Return every file of the corpus with a recorded size: shards and indices."""
    m = corpus.manifest
    return [*m.train.shards, m.train.index, *m.validation.shards, m.validation.index]


def _check_size(path: Path, n_bytes: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); prepare the corpus again with --force"
        ) from None
    if size != n_bytes:
        raise UserError(
            f"{path}: corrupt, {size:,} bytes instead of {n_bytes:,}; prepare the corpus again with --force"
        )


def verify_corpus(corpus: Corpus, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Check the SHA-256 of every file; ``progress`` is told bytes done and bytes in all.

    Raises:
        UserError: naming the first file whose content is not what was written.
    """
    files = {file.name: file.sha256 for file in corpus_files(corpus)}
    if corpus.manifest.tokenizer.sha256:
        files[TOKENIZER] = corpus.manifest.tokenizer.sha256
    total = sum(file.n_bytes for file in corpus_files(corpus))
    done = 0
    for name, expected in files.items():
        path = corpus.path / name

        def advance(n_bytes: int, before: int = done) -> None:
            progress(min(before + n_bytes, total), total)

        try:
            actual = file_sha256(path, advance)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if actual != expected:
            raise UserError(
                f"{path}: corrupt, its SHA-256 is not the recorded one; prepare the corpus again with --force"
            )
        done += path.stat().st_size


def file_sha256(path: Path, advance: Callable[[int], None] = lambda n_bytes: None) -> str:
    """Return the SHA-256 of a file; ``advance`` is told how many bytes were read so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            advance(done)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------
# Tokens


class TokenReader:
    """The tokens of one split, memory-mapped; shards are one stream."""

    def __init__(self, corpus: Corpus, split: SplitName) -> None:
        shards = corpus.split(split).shards
        self._dtype = np.dtype(corpus.manifest.dtype)
        self._vocab_size = corpus.vocab_size
        self._paths = [corpus.path / shard.name for shard in shards]
        self._ends = np.cumsum([shard.n_bytes // self._dtype.itemsize for shard in shards])
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """Return tokens ``start`` to ``start + count`` as int64 [count].

        Raises:
            UserError: a shard is gone or holds an id outside the vocabulary.
        """
        if not 0 <= start <= start + count <= len(self):
            raise IndexError(f"tokens {start} to {start + count} of {len(self)}")
        out = np.empty(count, np.int64)
        filled = 0
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while filled < count:
            begin = start + filled - (int(self._ends[shard - 1]) if shard else 0)
            part = self._map(shard)[begin : begin + count - filled]
            out[filled : filled + len(part)] = part
            if int(part.max()) >= self._vocab_size:
                raise UserError(
                    f"{self._paths[shard]}: corrupt, token {int(part.max())} is not below {self._vocab_size}; "
                    "prepare the corpus again with --force"
                )
            filled += len(part)
            shard += 1
        return out

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            path = self._paths[shard]
            n_tokens = int(self._ends[shard]) - (int(self._ends[shard - 1]) if shard else 0)
            _check_size(path, n_tokens * self._dtype.itemsize)
            self._maps[shard] = np.memmap(path, self._dtype, "r")
        return self._maps[shard]


def document_index(corpus: Corpus, split: SplitName) -> np.ndarray:
    """Return the ``DOCUMENT`` records of a split, memory-mapped.

    Raises:
        UserError: the index is gone or of the wrong size.
    """
    file = corpus.split(split).index
    _check_size(corpus.path / file.name, file.n_bytes)
    return np.memmap(corpus.path / file.name, DOCUMENT, "r")


def corpus_tokenizer(corpus: Corpus) -> Tokenizer:
    """Return the corpus's tokenizer.

    Raises:
        UserError: tokenizer.json is missing or not the recorded one.
    """
    m = corpus.manifest
    text = ""
    if m.tokenizer.sha256:
        path = corpus.path / TOKENIZER
        try:
            text = path.read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            text = ""
        if hashlib.sha256(text.encode()).hexdigest() != m.tokenizer.sha256:
            raise UserError(f"{path}: missing or not the recorded one; prepare the corpus again with --force")
    return Tokenizer(
        kind=m.tokenizer.kind,
        vocab_size=m.vocab_size,
        eot=m.eot,
        json=text,
        sample_bytes=m.tokenizer.sample_bytes,
    )
