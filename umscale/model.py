"""The decoder: pre-norm blocks x + attention, then + FFN(y) + memory(y) on the same normalised y."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umscale.init import initialise
from umscale.layers.attention import Attention, rotary_table
from umscale.layers.ffn import SwiGlu
from umscale.layers.memory import Memory, ValueTables
from umscale.layers.norm import RmsNorm
from umscale.spec import ModelSpec


class Block(nn.Module):
    """One block, ``[B, S, h] -> [B, S, h]`` (arXiv 2508.18756 Figure 1: memory beside the FFN)."""

    def __init__(self, spec: ModelSpec, index: int, seed: int) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(spec.d_model)
        self.attention = Attention(spec.d_model, spec.n_heads)
        self.ffn_norm = RmsNorm(spec.d_model)
        self.ffn = SwiGlu(spec.d_model, spec.ffn.d_ffn)
        self.memory = None
        if spec.memory is not None and index in spec.memory_layers:
            self.memory = Memory(spec.d_model, spec.memory, spec.memory_layers.index(index), seed)

    def forward(self, x: Tensor, rotary: Tensor, tables: list[tuple[Tensor | None, Tensor]]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary)
        y = self.ffn_norm(x)
        out = x + self.ffn(y)
        if self.memory is not None:
            out = out + self.memory(y, *tables[self.memory.table])
        return out


class Decoder(nn.Module):
    """A language model: tokens ``[B, S]`` to logits ``[B, S, vocab_size]``, initialised from ``seed``."""

    rotary: Tensor

    def __init__(self, spec: ModelSpec, seed: int, max_seq_len: int) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        self.blocks = nn.ModuleList(Block(spec, i, seed) for i in range(spec.n_layers))
        self.final_norm = RmsNorm(spec.d_model)
        self.head = None if spec.tie_embeddings else nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        self.tables = None if spec.memory is None else ValueTables(spec.memory, len(spec.memory_layers))
        rotary = rotary_table(max_seq_len, spec.d_model // spec.n_heads, spec.rope_theta)
        self.register_buffer("rotary", rotary, persistent=False)
        initialise(self, spec, seed)

    @property
    def memories(self) -> list[Memory]:
        """The memory layers, first block first."""
        return [module for module in self.modules() if isinstance(module, Memory)]

    def refresh(self) -> None:
        """Bring derived buffers up to date with the parameters; call after every change of parameters."""
        for memory in self.memories:
            memory.refresh()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        tables = self.tables.per_layer() if self.tables is not None else []
        for block in self.blocks:
            x = block(x, self.rotary, tables)
        x = self.final_norm(x)
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of every token in nats, fp32, shaped as ``targets [B, S]``; 0 where the target is -1."""
    flat = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), ignore_index=-1, reduction="none"
    )
    return flat.view(targets.shape)


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean loss in nats per token; ``logits [B, S, V]``, ``targets [B, S]``."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1))


def resolve_device(name: str) -> torch.device:
    """Return the device ``name`` stands for; ``auto`` is the first GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
