"""The decoder: pre-norm blocks x + attention, then + FFN(y) + memory(y) on the same normalised y."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from umscale.layers.attention import Attention, rotary_table
from umscale.layers.ffn import SwiGlu
from umscale.layers.kinds import memory_class
from umscale.layers.loss import linear_cross_entropy
from umscale.layers.memory import Memory
from umscale.layers.moe import Moe
from umscale.layers.norm import RmsNorm
from umscale.layers.tables import Tables, ValueTables
from umscale.layers.token_memory import TokenMemory, Vocabulary
from umscale.layers.token_table import TokenTable
from umscale.model.initialise import initialise
from umscale.spec import ModelSpec, TrainSpec


class Block(nn.Module):
    """One block, ``[B, S, h] -> [B, S, h]`` and its memory's output, if any, which the decoder adds."""

    def __init__(self, spec: ModelSpec, index: int, seed: int) -> None:
        super().__init__()
        self.checkpointing = False
        """Compute what is inside the block again in the backward pass instead of keeping it."""
        self.compiled: Callable[..., tuple[Tensor, Tensor | None]] | None = None
        """What is inside the block as training takes it, if that is not what is written here."""
        self.attention_norm = RmsNorm(spec.d_model)
        self.attention = Attention(spec.d_model, spec.n_heads)
        self.ffn_norm = RmsNorm(spec.d_model)
        self.ffn: nn.Module = (
            Moe(spec.d_model, spec.ffn) if spec.ffn.kind == "moe" else SwiGlu(spec.d_model, spec.ffn.d_ffn)
        )
        self.memory = None
        layers = spec.memory_layers
        if spec.memory is not None and index in layers:
            kind = memory_class(spec.memory)
            self.memory = kind(spec.d_model, spec.memory, layers.index(index), len(layers), seed)

    def forward(
        self, x: Tensor, rotary: Tensor, start: Tensor | None, tables: list[Tables]
    ) -> tuple[Tensor, Tensor | None]:
        inside = self._forward
        if torch.is_grad_enabled():
            inside = self.compiled or inside
            if self.checkpointing:
                out: tuple[Tensor, Tensor | None] = checkpoint(
                    inside, x, rotary, start, tables, use_reentrant=False, preserve_rng_state=False
                )
                return out
        return inside(x, rotary, start, tables)

    def _forward(
        self, x: Tensor, rotary: Tensor, start: Tensor | None, tables: list[Tables]
    ) -> tuple[Tensor, Tensor | None]:
        x = x + self.attention(self.attention_norm(x), rotary, start)
        y = self.ffn_norm(x)
        remembered = None if self.memory is None else self.memory(y, *tables[self.memory.index])
        return x + self.ffn(y), remembered


@dataclass(frozen=True, kw_only=True, slots=True)
class SparsePart:
    """A module that activates ``per_token`` of its ``n_units`` rows or experts, each of ``unit_params`` parameters."""

    module: Memory | Moe | TokenTable
    n_units: int
    per_token: int
    unit_params: int


class Decoder(nn.Module):
    """A language model: tokens ``[B, S]`` to logits ``[B, S, vocab_size]``, initialised from ``seed``.

    Given targets ``[B, S]`` too, it returns their mean loss in nats per token, and holds few logits at a time. Of value
    tables it holds ``part = (r, W)``, the r-th 1/W of the columns.
    """

    rotary: Tensor

    def __init__(
        self,
        spec: ModelSpec,
        seed: int,
        max_seq_len: int,
        part: tuple[int, int] = (0, 1),
        vocabulary: Vocabulary | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        self.blocks = nn.ModuleList(Block(spec, i, seed) for i in range(spec.n_layers))
        self.final_norm = RmsNorm(spec.d_model)
        self.head = None if spec.tie_embeddings else nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        self.tables = None if spec.memory is None else ValueTables(spec.memory, len(spec.memory_layers), part)
        self.ngram = None
        if spec.ngram is not None:
            self.ngram = TokenMemory(spec, seed, vocabulary or Vocabulary.plain(spec.vocab_size))
        self.row_gradients = False
        self.separator: int | None = None
        """The token that begins documents, if attention is not to cross their starts."""
        rotary = rotary_table(max_seq_len, spec.d_model // spec.n_heads, spec.rope_theta)
        self.register_buffer("rotary", rotary, persistent=False)
        initialise(self, spec, seed)

    @property
    def memories(self) -> list[Memory]:
        """The memory layers, first block first."""
        return [module for module in self.modules() if isinstance(module, Memory)]

    @property
    def sparse_parts(self) -> list[SparsePart]:
        """Memory layers, mixtures of experts and token-addressed tables: what a token activates a part of."""
        parts: list[SparsePart] = []
        ffn = self.spec.ffn
        for module in self.modules():
            if isinstance(module, Memory):
                m = module.spec
                parts.append(
                    SparsePart(
                        module=module,
                        n_units=m.visible_values,
                        per_token=m.heads * m.top_m,
                        unit_params=m.row_width,
                    )
                )
            elif isinstance(module, Moe):
                parts.append(
                    SparsePart(
                        module=module,
                        n_units=ffn.n_experts,
                        per_token=ffn.top_k,
                        unit_params=3 * self.spec.d_model * ffn.d_ffn,
                    )
                )
            elif isinstance(module, TokenTable):
                n_rows, width = module.rows.shape
                parts.append(
                    SparsePart(
                        module=module, n_units=n_rows, per_token=module.offsets.numel(), unit_params=width
                    )
                )
        return parts

    def configure_tables(self, train: TrainSpec, compact: bool = False, by_rows: bool = False) -> None:
        """Give value tables the gradients (dense, or ``torch.sparse_coo`` rows) and copies that ``train`` asks for.

        ``compact`` allows dense gradients to arrive as the rows that are not zero where that is faster, and ``by_rows``
        makes them, so that nothing of a table's size is held: the optimiser must then be ``make_optimizer``'s, made
        after this call.
        """
        self.row_gradients = by_rows or train.table_gradient == "rows"
        for memory in self.memories:
            memory.row_gradients = self.row_gradients
            memory.atomic_gradients = train.table_gradient == "atomic"
        for table in self.ngram.tables if self.ngram is not None else ():
            table.row_gradients = train.table_gradient == "rows"
        if self.tables is not None:
            self.tables.keep_copies(train.table_copy == "bfloat16")
            self.tables.compact_gradients = compact and not self.row_gradients

    def recompute_blocks(self, enabled: bool) -> None:
        """Keep only what enters each block in training, and compute the rest again in the backward pass."""
        for block in self.modules():
            if isinstance(block, Block):
                block.checkpointing = enabled

    def compile_blocks(self) -> None:
        """Compile what is inside each block, for training.

        For models whose blocks do more when they are called than a compiler can follow: FSDP's gather their weights.
        """
        from torch._dynamo import config

        limit = "recompile_limit"  # of graphs for one function, here of all blocks
        setattr(config, limit, max(getattr(config, limit), 2 * len(self.blocks)))
        for block in self.blocks:
            assert isinstance(block, Block)
            block.compiled = torch.compile(block._forward, fullgraph=True)

    def refresh(self, tables: bool = True) -> None:
        """Bring derived buffers up to date with the parameters; call after every change of parameters.

        ``tables=False`` leaves out the copies of value tables, which the optimiser writes itself.
        """
        for memory in self.memories:
            memory.refresh()
        if tables and self.tables is not None:
            self.tables.refresh()

    def auxiliary_loss(self) -> Tensor | None:
        """Sum of the auxiliary losses of the last forward pass in training; None when no layer has one."""
        found = [
            part.module.auxiliary for part in self.sparse_parts if not isinstance(part.module, TokenTable)
        ]
        losses = [loss for loss in found if loss is not None]
        return torch.stack(losses).sum() if losses else None

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        x = embedded = self.embedding(tokens)
        known = None
        if self.ngram is not None:
            known = self.ngram.address(tokens)
            x = self.ngram.embed(x, known)
        start = None if self.separator is None else document_start(tokens, self.separator)
        tables = self.tables.per_layer(whole=self.row_gradients) if self.tables is not None else []
        skip = 0 if self.spec.memory is None else self.spec.memory.skip
        waiting: dict[int, Tensor] = {}  # memory outputs by the block after which they are added
        for i, block in enumerate(self.blocks):
            if self.ngram is not None and known is not None:
                x = self.ngram.before(i, x, known)
            x, remembered = block(x, self.rotary, start, tables)
            if remembered is not None:
                waiting[i + skip] = remembered
            if i in waiting:
                x = x + waiting.pop(i)
            if self.ngram is not None and known is not None:
                x = self.ngram.after(i, x, embedded, known)
        x = self.final_norm(x)
        head = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(x, head) if targets is None else linear_cross_entropy(x, head, targets)


def document_start(tokens: Tensor, separator: int) -> Tensor:
    """Return the position of the last ``separator`` at or before each of ``tokens [B, S]``, 0 if none: int64."""
    position = torch.arange(tokens.shape[1], device=tokens.device)
    return torch.where(tokens == separator, position, 0).cummax(1).values


def resolve_device(name: str) -> torch.device:
    """Return the device ``name`` stands for; ``auto`` is the first GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
