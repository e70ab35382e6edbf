"""The training step of version 0.2.0, kept to be measured beside today's.

What it did: rotary positions as complex products and SDPA on whole tensors, scores of all keys with dense gradients,
the gradient of every table as a dense tensor, log-probabilities kept for the loss, torch's fused AdamW on everything.
Select, lookup, norms and gates run on today's C++ kernels, which are faster than those of 0.2.0 were: ratios to this
step understate. ``umscale bench train --beside PATH`` measures the code of another version itself.
"""

import types
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from umscale.layers.attention import Attention
from umscale.layers.tucker import TuckerMemory
from umscale.model.decoder import Decoder
from umscale.spec import ModelSpec, TrainSpec
from umscale.training.optimiser import make_optimizer
from umscale_kernels import select


def release_step(spec: ModelSpec, tokens: Tensor, precision: str, seed: int = 0) -> Callable[[], Tensor]:
    """Return the step of 0.2.0 on ``tokens [B, S + 1]``; a call trains once and returns the loss.

    UltraMemV2, UltraMem and dense models.
    """
    model = as_released(Decoder(spec, seed=seed, max_seq_len=tokens.shape[1] - 1))
    optimizer = make_optimizer(model, TrainSpec())
    return lambda: release_update(model, optimizer, tokens, precision)


def as_released(model: Decoder) -> Decoder:
    """Let a model compute as 0.2.0 did, in place."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.forward = types.MethodType(_attention, module)  # type: ignore[method-assign]
        if isinstance(module, TuckerMemory):
            module.retrieve = types.MethodType(_retrieve, module)  # type: ignore[method-assign]
    return model


def release_update(
    model: Decoder, optimizer: torch.optim.Optimizer, tokens: Tensor, precision: str, clip: float = 1.0
) -> Tensor:
    """Train ``model`` once on ``tokens [B, S + 1]`` and return the loss in nats per token."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
    auxiliary = model.auxiliary_loss()
    optimizer.zero_grad(set_to_none=True)
    (loss if auxiliary is None else loss + auxiliary).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    model.refresh(tables=False)
    return loss.detach()


def _attention(self: Attention, x: Tensor, rotary: Tensor, start: Tensor | None = None) -> Tensor:
    B, S, h = x.shape
    d = 2 * rotary.shape[1]
    q, k, v = self.qkv(x).chunk(3, dim=-1)
    q, k = (norm(t).view(B, S, -1, d) for norm, t in ((self.q_norm, q), (self.k_norm, k)))
    q, k = _rotate(q, rotary).to(v.dtype), _rotate(k, rotary).to(v.dtype)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v.view(B, S, -1, d)))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    out: Tensor = self.out(mixed.transpose(1, 2).reshape(B, S, h))
    return out


def _rotate(x: Tensor, rotary: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turn = torch.view_as_complex(rotary[: x.shape[1]]).unsqueeze(1)
    return torch.view_as_real(pairs * turn).flatten(-2)


def _retrieve(self: TuckerMemory, y: Tensor) -> tuple[Tensor, Tensor]:
    memory, T = self.spec, y.shape[0]
    q, keys = self.queries(y)
    raw = torch.matmul(q.transpose(0, 1), keys.transpose(-1, -2)).float()  # [H, 2r, T, n]
    raw = raw.view(memory.heads, 2, memory.tucker_rank, T, memory.keys_per_side)
    picked = select(raw, self.u, self.v, self.cores, memory.top_m, memory.candidates, backend=self.backend)
    address = self.shuffle(picked.row * memory.keys_per_side + picked.col)
    rows = address.transpose(0, 1).reshape(T, -1)
    return rows, picked.s.transpose(0, 1).reshape(T, rows.shape[1], memory.n_cores)
