"""Copying: how much better is a model at random tokens that it has just seen?"""

import torch

from umscale.layers.loss import token_losses
from umscale.parts import EvaluationPart
from umscale.training.own_evaluation import Measured


def evaluate(measured: Measured) -> dict[str, float]:
    """Loss on random tokens, in nats, when they come first and when they come again."""
    half = measured.spec.data.seq_len // 2
    generator = torch.Generator().manual_seed(0)
    once = torch.randint(0, measured.spec.model.vocab_size, (8, half), generator=generator)
    tokens = torch.cat((once, once), 1).to(measured.device)
    with measured.precision():
        logits = measured.model(tokens[:, :-1])
    losses = token_losses(logits, tokens[:, 1:])
    first, second = (float(part.mean()) for part in (losses[:, : half - 1], losses[:, half:]))
    return {"first": first, "second": second, "gain": first - second}


COPYING = EvaluationPart(evaluate=evaluate)
