"""What a run reads: an endless, stateless stream of training windows and a fixed set of validation windows."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from umscale.data.corpus import Corpus, TokenReader, corpus_tokenizer, document_index
from umscale.data.draws import mix
from umscale.data.tokenizing import text_bytes
from umscale.errors import UserError
from umscale.rng import derive_seed

if TYPE_CHECKING:
    from umscale.data.probes_mixture import ProbeMixture

ROUNDS = 8
"""Of the Feistel network; 4 already pass as random, and 8 cost microseconds."""


class TrainStream:
    """Windows of a corpus's training split in a pseudo-random order that is a pure function of the step.

    An epoch cuts the split into ``n_windows`` windows of ``seq_len`` tokens that do not overlap, from an offset
    below ``seq_len`` of its own, and visits them in an order of its own. Sequence ``i`` of the stream is window
    ``i % n_windows`` of epoch ``i // n_windows`` in that order, whatever the batch size. Resuming needs no
    state, and memory does not grow with the corpus.

    Args:
        corpus: where tokens come from.
        seq_len: tokens a window is trained on; it reads one more, the last target.
        batch_size: windows per step.
        seed: of the run; equal seeds see equal data.
        mixture: replaces some sequences by probes; the others are the text's, in its order.

    Raises:
        UserError: the training split has fewer than two windows of tokens.
    """

    def __init__(
        self,
        corpus: Corpus,
        seq_len: int,
        batch_size: int,
        seed: int,
        mixture: "ProbeMixture | None" = None,
    ) -> None:
        self._tokens, self._mixture = TokenReader(corpus, "train"), mixture
        self.seq_len, self.batch_size, self.seed = seq_len, batch_size, seed
        # The last window of the largest offset, seq_len - 1, still has its last target.
        self.n_windows = (len(self._tokens) - seq_len) // seq_len
        if self.n_windows < 1:
            raise UserError(
                f"corpus {corpus.name!r} has {len(self._tokens):,} training tokens, fewer than two windows of "
                f"seq_len = {seq_len}; prepare more text or lower data.seq_len"
            )

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens trained on before any is seen again."""
        return self.n_windows * self.seq_len

    def batch(self, step: int, part: int = 0, n_parts: int = 1) -> np.ndarray:
        """Return the windows of ``step`` as int64 [batch_size, seq_len + 1], or of ``n_parts`` equal parts one."""
        first, size = step * self.batch_size, self.batch_size // n_parts
        sequence = np.arange(first + part * size, first + (part + 1) * size)
        return self._text(sequence) if self._mixture is None else self._mixture.mix(sequence, self._text)

    def _text(self, sequence: np.ndarray) -> np.ndarray:
        """Return sequences number ``sequence`` of the text, int64 ``[n, seq_len + 1]``."""
        return np.stack([self._tokens.read(int(start), self.seq_len + 1) for start in self.starts(sequence)])

    def starts(self, sequence: np.ndarray) -> np.ndarray:
        """Return where sequences number ``sequence`` (int64, any shape) of the stream begin in the split."""
        epochs, positions = np.divmod(sequence, self.n_windows)
        starts = np.empty_like(sequence)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order = permute(positions[here], self.n_windows, derive_seed(self.seed, f"data/order/{epoch}"))
            offset = derive_seed(self.seed, f"data/offset/{epoch}") % self.seq_len
            starts[here] = offset + order * self.seq_len
        return starts


def permute(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """Return the image of ``index`` (int64, each in [0, n)) under a keyed pseudo-random bijection of [0, n).

    A Feistel network over pairs (l, r) in [0, s)², s = ⌈√n⌉, alternately l += F(r) and r += F(l) mod s, where F
    is a keyed hash; images of n and above are sent through again (cycle walking) until they fall below n.
    """
    side = np.uint64(math.isqrt(n - 1) + 1)
    keys = [np.uint64(derive_seed(key, f"round/{i}")) for i in range(ROUNDS)]
    out = index.astype(np.uint64)
    todo = np.ones(out.shape, bool)
    while todo.any():
        left, right = np.divmod(out[todo], side)
        for i in range(0, ROUNDS, 2):
            left = (left + _mix(right + keys[i])) % side
            right = (right + _mix(left + keys[i + 1])) % side
        out[todo] = left * side + right
        todo = out >= np.uint64(n)
    return out.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Hash uint64 to 32-bit values in uint64, so that sums cannot overflow."""
    return mix(x) >> np.uint64(32)


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationSet:
    """Held-out documents, cut into windows. W windows, D documents."""

    inputs: np.ndarray
    """int64 [W, seq_len]; a document begins with end-of-text, and its last window is padded with it."""
    targets: np.ndarray
    """int64 [W, seq_len]; -1 where padded."""
    document: np.ndarray
    """int64 [W]: which document a window belongs to; windows of a document are in order."""
    ids: tuple[str, ...]
    """16 hex digits a document, a hash of its text: the same in every corpus that holds it."""
    n_tokens: np.ndarray
    """int64 [D]: predicted tokens, that is the document, or what is read of it, without its end-of-text."""
    n_bytes: np.ndarray
    """int64 [D]: bytes of that text."""


def validation_windows(
    corpus: Corpus, seq_len: int, max_tokens: int, least_documents: int = 0
) -> ValidationSet:
    """Return validation documents in order of their hash, until the next would exceed ``max_tokens``.

    With ``least_documents`` none counts with more than its first ``max_tokens / least_documents`` tokens, so that many
    are there if the split has them (of a split with fewer, all). Else documents are whole, and those longer than
    ``max_tokens / 4`` passed over, lest few make up the set (if all are, the shortest is taken, provided it fits). A
    larger set contains a smaller one, up to length. Of duplicates one is taken. Documents of a generated corpus are
    always whole: what its own source scores is known of those only.

    Raises:
        UserError: no document fits, or the corpus is corrupt.
    """
    reader, index = TokenReader(corpus, "validation"), document_index(corpus, "validation")
    offsets, lengths = index["offset"].astype(np.int64), index["n_tokens"].astype(np.int64)
    if not (np.all(lengths >= 1) and np.array_equal(offsets, np.cumsum(lengths) - lengths)) or (
        lengths.sum() != len(reader)
    ):
        name = corpus.manifest.validation.index.name
        raise UserError(f"{corpus.path / name}: corrupt; prepare the corpus again with --force")
    _, order = np.unique(index["hash"], return_index=True)  # ascending, first of each
    order = order[lengths[order] > 1]
    if least_documents and corpus.manifest.generated is None and len(order):
        kept = np.minimum(lengths[order] - 1, max(1, max_tokens // min(least_documents, len(order))))
        chosen = order[np.cumsum(kept) <= max_tokens]
        kept = kept[: len(chosen)]
    else:
        chosen = _whole_documents(corpus, order, lengths[order] - 1, max_tokens)
        kept = lengths[chosen] - 1
    n_bytes = index["n_bytes"][chosen].astype(np.int64)
    inputs, targets, document = [], [], []
    cut: dict[int, np.ndarray] = {}
    for i, d in enumerate(chosen):
        tokens = reader.read(int(offsets[d]), int(kept[i]) + 1)  # [n + 1], led by end-of-text
        if len(tokens) < lengths[d]:
            cut[i] = tokens[1:]
        n_windows = -(-(len(tokens) - 1) // seq_len)
        padded = np.full((2, n_windows * seq_len), [[corpus.eot], [-1]], np.int64)
        padded[0, : len(tokens) - 1], padded[1, : len(tokens) - 1] = tokens[:-1], tokens[1:]
        inputs.append(padded[0].reshape(n_windows, seq_len))
        targets.append(padded[1].reshape(n_windows, seq_len))
        document.append(np.full(n_windows, i, np.int64))
    if cut:
        n_bytes[list(cut)] = text_bytes(corpus_tokenizer(corpus), list(cut.values()))
    return ValidationSet(
        inputs=np.concatenate(inputs),
        targets=np.concatenate(targets),
        document=np.concatenate(document),
        ids=tuple(f"{int(value):016x}" for value in index["hash"][chosen]),
        n_tokens=kept,
        n_bytes=n_bytes,
    )


def _whole_documents(corpus: Corpus, order: np.ndarray, predicted: np.ndarray, max_tokens: int) -> np.ndarray:
    """Return the first of the documents ``order``, of ``predicted`` tokens, that make up ``max_tokens``."""
    short = 4 * predicted <= max_tokens
    if not short.any() and (not len(order) or predicted.min() > max_tokens):
        shortest = f"{int(predicted.min()):,} tokens" if len(order) else "nothing"
        raise UserError(
            f"no validation document of corpus {corpus.name!r} fits into {max_tokens:,} tokens (the shortest "
            f"has {shortest}); raise data.validation_tokens or prepare with --documents blank:8192"
        )
    fitting = short if short.any() else np.arange(len(order)) == predicted.argmin()
    kept: np.ndarray = order[fitting][np.cumsum(predicted[fitting]) <= max_tokens]
    return kept
