"""Text from a model, token by token.

The model reads its whole context anew for every token: no keys and values are kept between tokens, so that all
architectures are read by the code that trained them. For proxies that is fast enough.
"""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from umscale.data.tokenizing import Encoder, Tokenizer, decode
from umscale.errors import UserError
from umscale.inference.kept import KeptModel
from umscale.rng import derive_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.8
    """Of the softmax; 0 takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Only the likeliest so many."""
    top_p: float | None = None
    """Only the likeliest that together have at least this probability."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature = {self.temperature:g} must not be negative")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k = {self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p:g} must lie above 0 and at most at 1")


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return a prompt's tokens, led by the token that begins documents."""
    return [int(token) for token in Encoder(tokenizer).encode([text.encode()])[0]]


@torch.no_grad()
def generate(
    model: KeptModel, prompt: Iterable[int], n_tokens: int, sampling: Sampling | None = None, seed: int = 0
) -> Iterator[int]:
    """Yield up to ``n_tokens`` token ids after ``prompt``; the token that begins a document ends it.

    A context longer than the model was trained on is cut from the left. Equal seeds give equal text.

    Raises:
        UserError: an empty prompt, or a token that is none of the model's.
    """
    sampling = sampling or Sampling()
    tokens = list(prompt)
    vocab_size = model.spec.model.vocab_size
    if not tokens or not all(0 <= token < vocab_size for token in tokens):
        raise UserError(f"a prompt is one token or more, each from 0 to {vocab_size - 1}")
    draws = torch.Generator().manual_seed(derive_seed(seed, "generate"))
    known = model.tokenizer.vocab_size
    for _ in range(n_tokens):
        context = torch.tensor([tokens[-model.spec.data.seq_len :]], device=model.device)  # [1, S]
        with model.precision():
            logits = model.decoder(context)[0, -1, :known].float().cpu()  # [V]
        token = choose(logits, sampling, draws)
        if token == model.tokenizer.eot:
            return
        tokens.append(token)
        yield token


def choose(logits: Tensor, sampling: Sampling, draws: torch.Generator) -> int:
    """Return the next token for ``logits [V]``."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    likeliest, order = (logits / sampling.temperature).softmax(0).sort(descending=True, stable=True)
    keep = torch.ones_like(likeliest, dtype=torch.bool)
    if sampling.top_k is not None:
        keep[sampling.top_k :] = False
    if sampling.top_p is not None:
        keep &= likeliest.cumsum(0) - likeliest < sampling.top_p  # the one that reaches it stays
    return int(order[torch.multinomial(likeliest * keep, 1, generator=draws)])


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of ``tokens`` piece by piece as they come; half a character is held back until it is whole."""
    if not tokenizer.json:
        bytes_to_text = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield bytes_to_text.decode(bytes([token]))
        yield bytes_to_text.decode(b"", final=True)
        return
    seen: list[int] = []
    shown = ""
    for token in tokens:
        seen.append(token)
        text = decode(tokenizer, seen).decode()
        if not text.endswith("\ufffd") and text.startswith(shown):
            yield text[len(shown) :]
            shown = text
    yield decode(tokenizer, seen).decode()[len(shown) :]
