"""Held-out loss of a model: per document, by position, and how its value tables were used."""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from umscale.layers.loss import token_losses
from umscale.model.decoder import Decoder
from umscale.training.process_group import ALONE, World

if TYPE_CHECKING:
    from umscale.data.batches import ValidationSet

POSITION_BINS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Losses in nats on a fixed set of documents."""

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
    model: Decoder,
    data: "ValidationSet",
    batch_size: int,
    precision: AbstractContextManager[object],
    on_batch: Callable[[], None] = lambda: None,
    world: World = ALONE,
) -> Evaluation:
    """Return the loss of ``model`` on ``data``; ``batch_size`` windows at a time, ``on_batch`` before each.

    The processes of ``world`` share the windows out and all get the same result.
    """
    device = next(model.parameters()).device
    window_nats = np.zeros(len(data.inputs))
    positions = np.zeros((2, data.inputs.shape[1]))
    model.eval()
    for part, counts in _parts(len(data.inputs), batch_size, world):
        on_batch()
        targets = data.targets[part]
        with precision, contextlib.nullcontext() if counts else _uncounted(model):
            logits = model(torch.from_numpy(data.inputs[part]).to(device))
        losses = token_losses(logits, torch.from_numpy(targets).to(device)).double().cpu().numpy()
        if counts:
            window_nats[part] = losses.sum(1)
            positions += (losses.sum(0), (targets >= 0).sum(0))
    model.train()
    for sums in (window_nats, positions):
        world.sum(torch.from_numpy(sums))
    nats = np.zeros(len(data.n_tokens))
    np.add.at(nats, data.document, window_nats)
    bins = [b.sum(1) for b in np.array_split(positions, POSITION_BINS, axis=1)]
    return Evaluation(
        nats=nats,
        loss=float(nats.sum() / data.n_tokens.sum()),
        bits_per_byte=float(nats.sum() / math.log(2) / data.n_bytes.sum()),
        by_position=[float(total / count) if count else float("nan") for total, count in bins],
    )


@torch.no_grad()
def evaluate_targets(
    model: Decoder,
    windows: np.ndarray,
    batch_size: int,
    precision: AbstractContextManager[object],
    on_batch: Callable[[], None] = lambda: None,
    world: World = ALONE,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of every target, and whether it is the likeliest token (1 or 0), float64 ``[W, seq_len]`` each.

    Args:
        windows: int64 ``[W, seq_len + 1]``; shared out as ``evaluate`` does, with the same result everywhere.
    """
    device = next(model.parameters()).device
    nats, right = np.zeros((2, len(windows), windows.shape[1] - 1))
    model.eval()
    for part, counts in _parts(len(windows), batch_size, world):
        on_batch()
        window = torch.from_numpy(windows[part]).to(device)
        targets = window[:, 1:]
        with precision, contextlib.nullcontext() if counts else _uncounted(model):
            logits = model(window[:, :-1])
        if counts:
            nats[part] = token_losses(logits, targets).double().cpu().numpy()
            right[part] = (logits.argmax(-1) == targets).double().cpu().numpy()
    model.train()
    for sums in (nats, right):
        world.sum(torch.from_numpy(sums))
    return nats, right


def _parts(n_windows: int, batch_size: int, world: World) -> Iterator[tuple[slice, bool]]:
    """Yield the windows this process evaluates together, and whether they count here.

    With split tables every forward pass needs all processes, each with equally many tokens: so the fewer than
    ``world.size`` windows that are left when the rest is shared out evenly go through all, and count on the first.
    """
    each, batch = n_windows // world.size, batch_size // world.size
    for start in range(world.rank * each, (world.rank + 1) * each, batch):
        yield slice(start, min(start + batch, (world.rank + 1) * each)), True
    if each * world.size < n_windows:
        yield slice(each * world.size, n_windows), world.first


@contextlib.contextmanager
def _uncounted(model: Decoder) -> Iterator[None]:
    """Leave what is read meanwhile out of the usage."""
    modules = [part.module for part in model.sparse_parts]
    kept = [module.usage for module in modules]
    for module in modules:
        module.usage = None
    yield
    for module, usage in zip(modules, kept, strict=True):
        module.usage = usage


def start_counting(model: Decoder) -> None:
    """Make memory layers count the values, and mixtures the experts, that they use from now on."""
    for part in model.sparse_parts:
        part.module.usage = torch.zeros(part.n_units, dtype=torch.int64, device=model.rotary.device)


def stop_counting(model: Decoder, batches: tuple[int, ...], world: World = ALONE) -> Usage | None:
    """Return the usage on all processes of ``world`` since ``start_counting`` and stop; None for a dense model.

    Memory access at batch B takes tokens as independent draws from the measured histogram: a value read by a
    share f of tokens is fetched with probability 1 - (1 - f)^B per step.
    """
    distinct, entropy, access = [], [], dict.fromkeys(batches, 0.0)
    for part in model.sparse_parts:
        assert part.module.usage is not None
        counts = world.sum(part.module.usage.cpu()).numpy().astype(np.float64)
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
