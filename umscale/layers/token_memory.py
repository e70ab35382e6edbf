"""All token-addressed memory of a decoder: its addresses, computed once a batch, and the modules that read them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from umscale.layers.engram import Engram
from umscale.layers.ngram_addresses import hashed_addresses, history, rolling_addresses
from umscale.layers.ngram_embedding import NgramEmbedding
from umscale.layers.per_layer_embedding import PerLayerEmbedding
from umscale.layers.token_table import TokenTable
from umscale.ngram_tables import multipliers, table_sizes
from umscale.spec import ModelSpec


class Vocabulary(NamedTuple):
    """What token-addressed memory knows of the tokens."""

    start: int
    """The id that begins every document."""
    canonical: Tensor
    """Canonical id of every token, int64 ``[V]``."""

    @classmethod
    def plain(cls, vocab_size: int) -> "Vocabulary":
        """Return one in which every token stands for itself and the last begins documents, as of bytes here."""
        return cls(vocab_size - 1, torch.arange(vocab_size))


class Addressed(NamedTuple):
    """What is known of a batch before the forward pass."""

    tokens: Tensor
    """int64 ``[B, S]``."""
    document: Tensor
    """Number of a token's document within its window, int64 ``[B, S]``."""
    addresses: list[Tensor]
    """Of each module, int64 ``[B, S, orders heads]``; none for per-layer embeddings."""


class TokenMemory(nn.Module):
    """The modules of ``spec.ngram``, in order of their blocks; one alone where it is at the input."""

    canonical: Tensor

    def __init__(self, spec: ModelSpec, seed: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        assert spec.ngram is not None
        ngram = self.spec = spec.ngram
        self.start, self.vocab_size = vocabulary.start, spec.vocab_size
        self.sizes = table_sizes(ngram, spec.ngram_modules, spec.vocab_size)
        self.factors = [multipliers(seed, i, ngram.max_order) for i in range(spec.ngram_modules)]
        kind = {"engram": Engram, "per_layer_embedding": PerLayerEmbedding}.get(ngram.kind, NgramEmbedding)
        self.parts = nn.ModuleList(kind(spec.d_model, ngram, sizes) for sizes in self.sizes)
        if ngram.kind == "per_layer_embedding":
            self.of_block = {i: i for i in range(spec.n_layers)}
        else:
            self.of_block = {block: i for i, block in enumerate(ngram.blocks or ())}
        merged = ngram.kind == "engram" and ngram.canonical
        ids = vocabulary.canonical.clone() if merged else torch.arange(spec.vocab_size)
        self.register_buffer("canonical", ids, persistent=False)
        self._on_host = ids  # where tables in host memory are addressed

    @property
    def tables(self) -> list[TokenTable]:
        """The tables of all modules."""
        return [module for module in self.modules() if isinstance(module, TokenTable)]

    def address(self, tokens: Tensor) -> Addressed:
        """Return what follows from ``tokens [B, S]`` alone."""
        document = (tokens == self.start).cumsum(1)
        addresses: list[Tensor] = []
        if self.spec.kind == "engram":
            canonical = self._on_host if tokens.device.type == "cpu" else self.canonical
            past = canonical[history(tokens, self.start, self.spec.max_order)]
            addresses = [
                hashed_addresses(past, factors, sizes)
                for factors, sizes in zip(self.factors, self.sizes, strict=True)
            ]
        elif self.spec.at_input:
            past = history(tokens, self.start, self.spec.max_order)
            addresses = [rolling_addresses(past, self.vocab_size, self.sizes[0])]
        return Addressed(tokens, document, addresses)

    def keep_on_host(self) -> None:
        """Let the tables stay in host memory when the model goes to a device; call before it does."""
        for table in self.tables:
            table.on_host = True

    def rows_read(self, tokens: Tensor) -> list[Tensor]:
        """Return the rows that ``tokens [B, S]``, on the host, read of each of ``tables``: int64 ``[B, S, A]``."""
        addresses = self.address(tokens).addresses or [tokens.unsqueeze(-1)] * len(self.tables)
        starts = [table.starts for table in self.tables]
        return [rows + start for rows, start in zip(addresses, starts, strict=True)]

    def embed(self, embedded: Tensor, known: Addressed) -> Tensor:
        """Return the decoder's input from the tokens' embeddings ``[B, S, h]``."""
        return self.parts[0](embedded, known.addresses[0]) if self.spec.at_input else embedded

    def before(self, block: int, x: Tensor, known: Addressed) -> Tensor:
        """Return ``x [B, S, h]`` as it enters a block."""
        if self.spec.kind != "engram" or block not in self.of_block:
            return x
        i = self.of_block[block]
        return x + self.parts[i](x, known.addresses[i], known.document)

    def after(self, block: int, x: Tensor, embedded: Tensor, known: Addressed) -> Tensor:
        """Return ``x [B, S, h]`` as it leaves a block; ``embedded`` are the tokens' embeddings."""
        if self.spec.kind != "per_layer_embedding":
            return x
        return x + self.parts[self.of_block[block]](x, embedded, known.tokens)
