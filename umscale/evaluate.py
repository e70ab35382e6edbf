"""Held-out loss of a model: per document, by position, and how its value tables were used."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from umscale.model import Decoder, token_losses

if TYPE_CHECKING:
    from umscale.data.batches import ValidationSet

POSITION_BINS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Losses in nats on a fixed set of whole documents."""

    nats: np.ndarray
    """Summed loss of each document, float64 ``[documents]``."""
    loss: float
    """Mean over all tokens, nats per token."""
    bits_per_byte: float
    by_position: list[float]
    """Mean loss in ``POSITION_BINS`` equal parts of the context: what context buys (nats per token)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """How memory layers used their values on the validation set; one entry a layer."""

    distinct: list[float]
    """Share of values read at least once."""
    entropy: list[float]
    """Entropy of the use of values relative to uniform use (1 is uniform)."""
    access_bytes: dict[int, float]
    """Sparse-parameter bytes (bf16) read per token at each batch size, summed over layers."""


@torch.no_grad()
def evaluate(
    model: Decoder, data: "ValidationSet", batch_size: int, precision: AbstractContextManager[object]
) -> Evaluation:
    """Return the loss of ``model`` on ``data``; ``batch_size`` windows at a time."""
    device = next(model.parameters()).device
    nats = np.zeros(len(data.n_tokens))
    positions = np.zeros((2, data.inputs.shape[1]))
    model.eval()
    for start in range(0, len(data.inputs), batch_size):
        part = slice(start, start + batch_size)
        targets = data.targets[part]
        with precision:
            logits = model(torch.from_numpy(data.inputs[part]).to(device))
        losses = token_losses(logits, torch.from_numpy(targets).to(device)).double().cpu().numpy()
        np.add.at(nats, data.document[part], losses.sum(1))
        positions += (losses.sum(0), (targets >= 0).sum(0))
    model.train()
    bins = [b.sum(1) for b in np.array_split(positions, POSITION_BINS, axis=1)]
    return Evaluation(
        nats=nats,
        loss=float(nats.sum() / data.n_tokens.sum()),
        bits_per_byte=float(nats.sum() / math.log(2) / data.n_bytes.sum()),
        by_position=[float(total / count) if count else float("nan") for total, count in bins],
    )


def start_counting(model: Decoder) -> None:
    """Make memory layers count the values, and mixtures the experts, that they use from now on."""
    for part in model.sparse_parts:
        part.module.usage = torch.zeros(part.n_units, dtype=torch.int64, device=model.rotary.device)


def stop_counting(model: Decoder, batches: tuple[int, ...]) -> Usage | None:
    """Return the usage since ``start_counting`` and stop; None for a dense model.

    Memory access at batch B takes tokens as independent draws from the measured histogram: a value read by a
    share f of tokens is fetched with probability 1 - (1 - f)^B per step.
    """
    distinct, entropy, access = [], [], dict.fromkeys(batches, 0.0)
    for part in model.sparse_parts:
        assert part.module.usage is not None
        counts = part.module.usage.cpu().numpy().astype(np.float64)
        part.module.usage = None
        share = counts[counts > 0] / max(1.0, counts.sum())
        distinct.append(float((counts > 0).mean()))
        entropy.append(
            float(-(share * np.log(share)).sum() / math.log(part.n_units)) if part.n_units > 1 else 1.0
        )
        per_token = np.minimum(1.0, share * part.per_token)
        for batch in batches:
            fetched = -np.expm1(batch * np.log1p(-np.minimum(per_token, 1 - 1e-12))).sum()
            access[batch] += 2.0 * part.unit_params * float(fetched) / batch
    return Usage(distinct=distinct, entropy=entropy, access_bytes=access) if distinct else None
