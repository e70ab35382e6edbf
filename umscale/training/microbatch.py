"""A step's forward and backward passes, over all of its batch at once or a part at a time.

The loss of a batch is the mean of those of its equal parts, and so are auxiliary losses, given the share of tokens that
each expert or key serves. That share is the batch's: a mixture whose load is balanced over parts of a batch is another
one than if balanced over the batch. It is known only when all parts have been routed, so where there is such a loss
they go through the model once more beforehand, without gradients.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from umscale.layers.token_table import TokenTable
from umscale.model.decoder import Decoder


def forward_backward(
    model: Decoder,
    window: Tensor,
    micro_batch_size: int | None,
    precision: Callable[[], AbstractContextManager[object]],
    before_last: Callable[[], None] = lambda: None,
) -> Tensor:
    """Add the gradients of a batch to those of ``model`` and return its loss in nats per token, fp32 ``[]``.

    Args:
        window: int64 ``[B, S + 1]``, with the targets of its last position.
        micro_batch_size: sequences taken at once, a divisor of B; None: all.
        precision: what the forward pass runs in.
        before_last: called before the part after which gradients are whole.
    """
    parts = window.split(micro_batch_size or len(window))
    losses = []
    with _whole_statistics(model, parts, precision):
        for i, part in enumerate(parts):
            if i + 1 == len(parts):
                before_last()
            with precision():
                loss = model(part[:, :-1], part[:, 1:])
            auxiliary = model.auxiliary_loss()
            total = loss if auxiliary is None else loss + auxiliary
            (total if len(parts) == 1 else total / len(parts)).backward()
            losses.append(loss.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


@contextlib.contextmanager
def _whole_statistics(
    model: Decoder, parts: Sequence[Tensor], precision: Callable[[], AbstractContextManager[object]]
) -> Iterator[None]:
    """Let layers with a balance loss see, at every part, the statistics of all of them."""
    routed = [part.module for part in model.sparse_parts if not isinstance(part.module, TokenTable)]
    balanced = [module for module in routed if module.spec.balance_loss > 0]
    if len(parts) == 1 or not balanced:
        yield
        return
    plain = {module: module.replica_mean for module in balanced}
    shares: dict[torch.nn.Module, list[Tensor]] = {module: [] for module in balanced}
    for module in balanced:
        module.replica_mean = _noting(shares[module])
    try:
        with torch.no_grad(), precision():
            for part in parts:
                model(part[:, :-1])
        for module in balanced:
            per_part = len(shares[module]) // len(parts)
            means = [plain[module](torch.stack(shares[module][i::per_part]).mean(0)) for i in range(per_part)]
            module.replica_mean = _recalling(means)
        yield
    finally:
        for module in balanced:
            module.replica_mean = plain[module]


def _noting(shares: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def note(share: Tensor) -> Tensor:
        shares.append(share.detach().clone())
        return share

    return note


def _recalling(means: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the means in turn: a layer asks for its statistics in one order, also when it is computed again."""
    asked = iter(range(2**62))
    return lambda share: means[next(asked) % len(means)]
