"""Tokenizers: raw bytes, and byte-level BPE through the ``tokenizers`` library.

Every document is encoded as an end-of-text token followed by its own tokens. Text cannot produce the
end-of-text token: it lies outside what the tokenizer emits, or special tokens in text are read as plain text.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from umscale.errors import UserError

if TYPE_CHECKING:
    import tokenizers

TokenizerKind = Literal["bytes", "bpe", "file"]

BYTES_EOT = 256
MAX_VOCAB = 1 << 20
PIECE_CHARS = 1 << 16
"""Longer documents are encoded in pieces, because an encoding takes some hundred bytes a token."""
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "</s>", "<eos>")
"""Names under which a tokenizer file's own end-of-text token is recognised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """What text becomes: ids below ``vocab_size``, of which ``eot`` begins every document."""

    kind: TokenizerKind
    vocab_size: int
    eot: int
    json: str = ""
    """A tokenizer of the ``tokenizers`` library; empty for bytes."""
    sample_bytes: int = 0
    """How much text a BPE was trained on here."""

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Little-endian type that holds an id."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    @property
    def sha256(self) -> str:
        """Of the tokenizer's JSON; empty for bytes."""
        return hashlib.sha256(self.json.encode()).hexdigest() if self.json else ""


BYTES = Tokenizer(kind="bytes", vocab_size=BYTES_EOT + 1, eot=BYTES_EOT)


def parse_bpe(text: str) -> int:
    """Return VOCAB of ``bpe:VOCAB``.

    Raises:
        UserError: not a number, below 257 (256 bytes and end-of-text) or above ``MAX_VOCAB``.
    """
    size = text.removeprefix("bpe:").replace("_", "")
    if not (size.isdecimal() and BYTES.vocab_size <= int(size[:10]) <= MAX_VOCAB):
        raise UserError(
            f"tokenizer {text!r}: VOCAB must be a whole number from {BYTES.vocab_size} to {MAX_VOCAB}"
        )
    return int(size)


def train_bpe(sample: Sequence[bytes], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of ``vocab_size`` ids, the last of them end-of-text.

    The result depends on the sample's content only. A small sample may support fewer merges; ``vocab_size`` of
    the result is what there is.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    model.train_from_iterator((decode_utf8(text) for text in sample), trainer)
    size = model.get_vocab_size()
    return Tokenizer(
        kind="bpe",
        vocab_size=size + 1,
        eot=size,
        json=model.to_str(),
        sample_bytes=sum(map(len, sample)),
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``.

    Its end-of-text token is taken over if it has one under a usual name; otherwise one id is added.

    Raises:
        UserError: the file is missing or not a tokenizer.
    """
    try:
        text = path.read_text(encoding="utf-8")
        model = build(text)
    except OSError as error:
        raise UserError(
            f"tokenizer {str(path)!r}: {error.strerror}; write bytes, bpe:VOCAB or a tokenizer.json"
        ) from None
    except ValueError as error:  # includes text that is not UTF-8
        raise UserError(f"{path}: not a tokenizer.json ({str(error).splitlines()[0]})") from None
    vocabulary = model.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise UserError(f"{path}: a tokenizer without a vocabulary")
    size = max(vocabulary.values()) + 1
    eot = next((vocabulary[name] for name in END_OF_TEXT if name in vocabulary), size)
    return Tokenizer(kind="file", vocab_size=max(size, eot + 1), eot=eot, json=text)


def build(text: str) -> "tokenizers.Tokenizer":
    """Return the library's tokenizer for its JSON, without padding, truncation and special tokens in text.

    Raises:
        ValueError: not a tokenizer.
    """
    import tokenizers

    try:
        model = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(str(error) or "unreadable") from None
    model.no_padding()
    model.no_truncation()
    model.encode_special_tokens = True
    return model


class Encoder:
    """A tokenizer made ready to encode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.undecodable = 0
        """Documents so far that are not UTF-8."""
        self._model = build(tokenizer.json) if tokenizer.json else None

    def encode(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Return all tokens, each document led by end-of-text, and tokens per document (int64, eot included)."""
        if self._model is None:
            return self._encode_bytes(documents)
        pieces, owner = [], []
        for i, document in enumerate(documents):
            text = decode_utf8(document)
            self.undecodable += "\ufffd" in text and not _is_utf8(document)
            for piece in _pieces(text):
                pieces.append(piece)
                owner.append(i)
        encodings = self._model.encode_batch_fast(pieces, add_special_tokens=False)
        counts = np.ones(len(documents), np.int64)
        dtype = self.tokenizer.dtype
        eot = np.array([self.tokenizer.eot], dtype)
        parts: list[np.ndarray] = []
        last = -1
        for i, encoding in zip(owner, encodings, strict=True):
            if i != last:
                parts.append(eot)
                last = i
            ids = encoding.ids
            parts.append(np.array(ids, dtype))
            counts[i] += len(ids)
        return np.concatenate(parts), counts

    def _encode_bytes(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        counts = np.fromiter(map(len, documents), np.int64, len(documents)) + 1
        # One byte stands in for each end-of-text while widening; then it is put in place.
        tokens = np.frombuffer(b"\0" + b"\0".join(documents), np.uint8).astype(self.tokenizer.dtype)
        tokens[np.cumsum(counts) - counts] = self.tokenizer.eot
        return tokens, counts


def decode_utf8(document: bytes) -> str:
    """Return the text of a document; bytes that are not UTF-8 become U+FFFD."""
    return document.decode("utf-8", "replace")


def _is_utf8(document: bytes) -> bool:
    try:
        document.decode()
    except UnicodeDecodeError:
        return False
    return True


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text before white space that follows a word, where byte-level BPE never joins."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        match = _WORD_END.search(text, start + PIECE_CHARS // 2, start + PIECE_CHARS)
        end = match.start() + 1 if match else start + PIECE_CHARS
        yield text[start:end]
        start = end
    yield text[start:]


_WORD_END = re.compile(r"\S(?=\s)")


def text_bytes(tokenizer: Tokenizer, parts: Sequence[np.ndarray]) -> list[int]:
    """Return the bytes of text of each of ``parts``, ids without end-of-text; half a character counts as 3."""
    if not tokenizer.json:
        return [len(part) for part in parts]
    model = build(tokenizer.json)
    return [len(model.decode(part.tolist(), skip_special_tokens=False).encode()) for part in parts]


def decode(tokenizer: Tokenizer, tokens: Iterable[int]) -> bytes:
    """Return the text of ``tokens`` without end-of-text, as bytes."""
    ids = [int(i) for i in tokens if i != tokenizer.eot]
    if not tokenizer.json:
        return bytes(ids)
    return build(tokenizer.json).decode(ids, skip_special_tokens=False).encode()
