"""What a model's answers to probes are worth, against chance and against the best there is to do."""

import math
from typing import Any

import numpy as np

from umscale.data.probes import FACT_BITS, N_VALUES
from umscale.data.probes_mixture import ProbeMixture, ProbeSet


def score(
    data: ProbeSet, nats: np.ndarray, right: np.ndarray, mixture: ProbeMixture, sequences: int, n_params: int
) -> list[dict[str, Any]]:
    """Return a row a task, with columns as in the table ``probes`` of a store.

    Stored bits are those of "Physics of Language Models 3.3" (arXiv 2404.05405), of an attribute whose every choice is
    as likely: the sum over all facts of max(0, log2(choices) - nats / ln 2), estimated from the facts evaluated. What a
    model tells of a fact that it does not know counts as nothing, not as less.

    Args:
        data: the probes.
        nats: loss of every target, float64 ``[W, seq_len]``.
        right: whether the model's likeliest symbol is the target, 0 or 1, ``[W, seq_len]``.
        mixture: what the model was trained on.
        sequences: training sequences so far, which say how many of the facts can be known.
        n_params: parameters that the bits are shared out to.
    """
    rows, first = [], 0
    for task, count, answers in zip(data.tasks, data.counts, data.answers, strict=True):
        mine = slice(first, first + count)
        first += count
        lost, hits = nats[mine][:, answers], right[mine][:, answers]  # [n, A, L]
        chance = 1 / N_VALUES
        row: dict[str, Any] = {
            "task": task,
            "n_answers": count * len(answers),
            "answer_symbols": answers.shape[1],
            "accuracy": float(hits.mean()),
            "answer_accuracy": float(hits.all(-1).mean()),
            "nats": float(lost.mean()),
            "chance": chance,
            "ceiling": 1.0,
        }
        if task == "facts" and mixture.facts is not None:
            seen = mixture.facts_seen(sequences)
            bits = np.maximum(0.0, FACT_BITS - lost.sum(-1) / math.log(2))
            stored = float(bits.mean()) * len(mixture.facts)
            row |= {
                "ceiling": seen + (1 - seen) * chance,
                "exposures": mixture.exposures(sequences),
                "stored_bits": stored,
                "bits_per_param": stored / n_params,
            }
        rows.append(row)
    return rows
