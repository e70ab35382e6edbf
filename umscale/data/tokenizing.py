"""Tokenizers: raw bytes, and byte-level BPE through the ``tokenizers`` library.

Every document is encoded as an end-of-text token followed by its own tokens. Text cannot produce the
end-of-text token: it lies outside what the tokenizer emits, or special tokens in text are read as plain text, which
is tried.

A tokenizer from a file may not be able to write all text. Which characters no token stands for (or only the one for
the unknown) is found out as they come up, and from then on the bytes of a document that are left are counted exactly.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from umscale.errors import UserError
from umscale.files import read_bounded
from umscale.trees import parse_json

if TYPE_CHECKING:
    import tokenizers

TokenizerKind = Literal["bytes", "bpe", "file"]

BYTES_EOT = 256
MAX_VOCAB = 1 << 20
MAX_TOKENIZER_BYTES = 1 << 28
PIECE_CHARS = 1 << 16
"""Longer documents are encoded in pieces, because an encoding takes some hundred bytes a token."""
OVERLAP_CHARS = 1 << 10
"""Of pieces of a tokenizer from a file, which are put together where both begin a token."""
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
        text = read_bounded(path, MAX_TOKENIZER_BYTES).decode()
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
    largest = max(vocabulary, key=lambda token: vocabulary[token])
    size = vocabulary[largest] + 1
    if size > MAX_VOCAB:
        raise UserError(
            f"{path}: token {largest!r} has id {size - 1:,}; a model would need a row for every id up to it, and "
            f"{MAX_VOCAB:,} is the most"
        )
    name = next((name for name in END_OF_TEXT if name in vocabulary), None)
    if name is not None:
        text = _made_special(text, name)
    own = name is not None and not _writes(build(text), name, vocabulary[name])
    eot = vocabulary[name] if name is not None and own else size
    return Tokenizer(kind="file", vocab_size=max(size, eot + 1), eot=eot, json=text)


def _made_special(text: str, name: str) -> str:
    """Return a tokenizer's JSON in which an added token is special, so that text cannot write it."""
    tree = parse_json(text)
    added = tree.get("added_tokens") or []
    for token in added:
        if token.get("content") == name:
            token["special"] = True
    return json.dumps(tree, ensure_ascii=False)


def _writes(model: "tokenizers.Tokenizer", name: str, eot: int) -> bool:
    """Whether text that holds a token's name comes out as that token, in any of the ways that text may hold it."""
    tries = (name, f"a{name}a", f"a {name} a", f"{name}{name}", f"\n{name}\n", f" {name}", name.upper())
    return any(eot in model.encode(text, add_special_tokens=False).ids for text in tries)


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
        self.lost_bytes = 0
        """Bytes of text so far that no token stands for."""
        self._model = build(tokenizer.json) if tokenizer.json else None
        self._complete = tokenizer.kind != "file"
        """Whether it is known to write all text, and alike in pieces."""
        self._lossy = False
        self._seen: set[str] = set()
        self._unknown = _unknown_id(tokenizer.json) if tokenizer.kind == "file" else None

    def encode(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all tokens and, by document, tokens and bytes of text that they stand for (int64).

        Each document is led by end-of-text, which counts as one of its tokens and as no byte.
        """
        n_bytes = np.fromiter(map(len, documents), np.int64, len(documents))
        if self._model is None:
            return *self._encode_bytes(documents), n_bytes
        texts = [decode_utf8(document) for document in documents]
        self.undecodable += sum(
            "\ufffd" in text and not _is_utf8(document)
            for text, document in zip(texts, documents, strict=True)
        )
        if not self._complete:
            self._lossy = self._lossy or any(self._loses_new(text) for text in texts)
        if self._lossy:
            encoded = [self._exactly(text) for text in texts]
            lost = np.array([n_lost for _, n_lost in encoded], np.int64)
            self.lost_bytes += int(lost.sum())
            return *self._joined([[ids] for ids, _ in encoded]), n_bytes - lost
        return *self._joined(self._quickly(texts)), n_bytes

    def _quickly(self, texts: Sequence[str]) -> list[list[Sequence[int]]]:
        """Return the ids of each text, in parts."""
        assert self._model is not None
        found: list[list[Sequence[int]]] = [[] for _ in texts]
        pieces, owner = [], []
        for i, text in enumerate(texts):
            if not self._complete and len(text) > PIECE_CHARS:
                found[i] = [[i for i, _, _ in self._tokens(text)]]
                continue
            for piece in _pieces(text):
                pieces.append(piece)
                owner.append(i)
        encodings = self._model.encode_batch_fast(pieces, add_special_tokens=False)
        for i, encoding in zip(owner, encodings, strict=True):
            found[i].append(encoding.ids)
        return found

    def _joined(self, parts: Sequence[Sequence[Sequence[int]]]) -> tuple[np.ndarray, np.ndarray]:
        """Return all tokens, each document led by end-of-text, and tokens per document."""
        dtype, eot = self.tokenizer.dtype, self.tokenizer.eot
        arrays = [[np.array(ids, dtype) for ids in some] for some in parts]
        if any((array == eot).any() for some in arrays for array in some):
            raise UserError(
                "the tokenizer turns text into its own end-of-text token, which marks where documents begin; give that "
                "token another name in the tokenizer.json"
            )
        counts = np.array([1 + sum(map(len, some)) for some in arrays], np.int64)
        begin = np.array([eot], dtype)
        return np.concatenate([array for some in arrays for array in (begin, *some)]), counts

    def _encode_bytes(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        counts = np.fromiter(map(len, documents), np.int64, len(documents)) + 1
        # One byte stands in for each end-of-text while widening; then it is put in place.
        tokens = np.frombuffer(b"\0" + b"\0".join(documents), np.uint8).astype(self.tokenizer.dtype)
        tokens[np.cumsum(counts) - counts] = self.tokenizer.eot
        return tokens, counts

    # -- tokenizers from files ----------------------------------------------------------------------------

    def _loses_new(self, text: str) -> bool:
        """Whether a character that came up for the first time is lost, in the word that it came up in."""
        new = set(text) - self._seen
        self._seen |= new
        for character in sorted(new):
            if character.isspace():
                continue
            at = text.index(character)
            start = max(
                (m.end() for m in _SPACE.finditer(text, max(0, at - 64), at)), default=max(0, at - 64)
            )
            end = m.start() if (m := _SPACE.search(text, at, at + 64)) else at + 64
            if self._lost(text[start:end], self._encoded(text[start:end])):
                return True
        return False

    def _exactly(self, text: str) -> tuple[list[int], int]:
        """Return a text's ids, and the bytes of it that no token stands for."""
        tokens = self._tokens(text)
        return [i for i, _, _ in tokens], self._lost(text, tokens)

    def _lost(self, text: str, tokens: "Sequence[_Token]") -> int:
        """Return the bytes of a text, white space apart, that lie in no token but that for the unknown."""
        covered = np.zeros(len(text) + 1, np.int64)
        for i, start, end in tokens:
            if i != self._unknown:
                covered[start] += 1
                covered[end] -= 1
        open_ = np.flatnonzero(np.cumsum(covered)[:-1] <= 0)
        return sum(len(text[i].encode("utf-8", "replace")) for i in open_ if not text[i].isspace())

    def _encoded(self, text: str) -> "list[_Token]":
        assert self._model is not None
        encoding = self._model.encode(text, add_special_tokens=False)
        return [(i, *span) for i, span in zip(encoding.ids, encoding.offsets, strict=True)]

    def _tokens(self, text: str) -> "list[_Token]":
        """Return the tokens of a text as it would be encoded whole, however long it is.

        What stands at the beginning of a piece may be encoded otherwise there than in the middle (some tokenizers put
        a space before whatever they are given), so pieces overlap and are joined where both begin a token.
        """
        if len(text) <= PIECE_CHARS:
            return self._encoded(text)
        found: list[_Token] = []
        start, joint = 0, 0
        while True:
            end = min(len(text), start + PIECE_CHARS)
            piece = [(i, start + a, start + b) for i, a, b in self._encoded(text[start:end])]
            if start:
                joint = _joint(found, piece, start, start + OVERLAP_CHARS)
                found = [token for token in found if token[1] < joint]
            found += [token for token in piece if token[1] >= joint]
            if end == len(text):
                return found
            start = end - OVERLAP_CHARS


_Token = tuple[int, int, int]
"""Id, and the characters from and up to which it stands."""
_SPACE = re.compile(r"\s")


def _joint(before: Sequence[_Token], after: Sequence[_Token], start: int, end: int) -> int:
    """Return the place nearest to the middle of an overlap where a token begins in both encodings."""
    middle = (start + end) // 2
    begun = {a for _, a, _ in reversed(before[-OVERLAP_CHARS * 4 :]) if start < a < end}
    both = begun & {a for _, a, _ in after[: OVERLAP_CHARS * 4] if start < a < end}
    return min(both, key=lambda a: (abs(a - middle), a), default=middle)


def _unknown_id(text: str) -> int | None:
    """Return the id of the token for what a tokenizer does not know, if it has one."""
    model = parse_json(text).get("model")
    if not isinstance(model, Mapping):
        return None
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    token = model.get("unk_token")
    found = build(text).token_to_id(token) if isinstance(token, str) else None
    return None if found is None else int(found)


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
