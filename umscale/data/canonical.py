"""Canonical ids: tokens whose text reads the same share an id, so that their n-grams share a row.

Engram (arXiv 2601.07372, section 2.2) compresses its vocabulary so before hashing: NFKC, NFD, without accents, lower
case, runs of white space as one space. A token that is not valid text alone (a part of a character) keeps an id of its
own, and one that would become empty keeps its text.
"""

import re
import unicodedata

import numpy as np

from umscale.data.tokenizing import BYTES_EOT, Tokenizer, build

_SPACES = re.compile(r"\s+")


def canonical_text(text: str) -> str:
    """Return the text under which tokens are merged."""
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    bare = "".join(c for c in folded if not unicodedata.combining(c)).lower()
    return _SPACES.sub(" ", bare) or text


def canonical_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Return the canonical id of every token, int64 ``[vocab_size]``.

    Ids are the least token id of each class, so that the map needs no second table; the id that begins documents
    stands alone.
    """
    out = np.arange(tokenizer.vocab_size, dtype=np.int64)
    first: dict[str, int] = {}
    for token, text in enumerate(_texts(tokenizer)):
        if text is not None and token != tokenizer.eot:
            out[token] = first.setdefault(canonical_text(text), token)
    return out


def _texts(tokenizer: Tokenizer) -> list[str | None]:
    """Return the text of every token; None for one that is not text alone."""
    if not tokenizer.json:
        return [chr(i) if i < 128 else None for i in range(BYTES_EOT)] + [None]
    model = build(tokenizer.json)
    texts = (model.decode([i], skip_special_tokens=False) for i in range(tokenizer.vocab_size))
    return [None if not text or "\ufffd" in text else text for text in texts]
