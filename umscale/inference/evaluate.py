"""Losses of a kept model on text and tasks that its run was not evaluated on."""

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

from umscale.accounting import cost
from umscale.data.batches import validation_windows
from umscale.data.corpus import Corpus, corpus_tokenizer
from umscale.data.probes_mixture import ProbeMixture
from umscale.data.probes_score import score
from umscale.errors import UserError
from umscale.inference.kept import KeptModel
from umscale.spec import Probe
from umscale.training.evaluate import evaluate, evaluate_targets

BATCH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLoss:
    """Loss on the validation split of a corpus."""

    corpus: str
    corpus_hash: str
    documents: int
    tokens: int
    n_bytes: int
    loss: float
    """Nats per token."""
    bits_per_byte: float
    loss_by_position: list[float]
    by_document: list[dict[str, Any]]
    """``document`` (a hash of its text), ``n_tokens``, ``n_bytes``, ``nats``."""


def evaluate_text(model: KeptModel, corpus: Corpus, n_tokens: int | None = None) -> TextLoss:
    """Return the loss of ``model`` on held-out documents of ``corpus``.

    Args:
        n_tokens: at most so many; None takes as many as the run's own records.

    Raises:
        UserError: the corpus has another tokenizer than the model.
    """
    if corpus_tokenizer(corpus).sha256 != model.tokenizer.sha256 or corpus.eot != model.tokenizer.eot:
        raise UserError(
            f"corpus {corpus.name!r} was not made with the model's tokenizer; prepare its text again with "
            f"--tokenizer {'bytes' if not model.tokenizer.json else 'the tokenizer.json of an export of the model'}"
        )
    data = model.spec.data
    documents = data.validation_documents if n_tokens is None else min(data.validation_documents, n_tokens)
    windows = validation_windows(corpus, data.seq_len, n_tokens or data.validation_tokens, documents)
    batch = min(model.spec.train.batch_size, BATCH)
    found = evaluate(model.decoder, windows, batch, model.precision())
    model.decoder.eval()
    by_document = [
        {"document": name, "n_tokens": int(tokens), "n_bytes": int(size), "nats": float(nats)}
        for name, tokens, size, nats in zip(
            windows.ids, windows.n_tokens, windows.n_bytes, found.nats, strict=True
        )
    ]
    return TextLoss(
        corpus=corpus.name,
        corpus_hash=corpus.hash,
        documents=len(by_document),
        tokens=int(windows.n_tokens.sum()),
        n_bytes=int(windows.n_bytes.sum()),
        loss=found.loss,
        bits_per_byte=found.bits_per_byte,
        loss_by_position=found.by_position,
        by_document=by_document,
    )


def evaluate_probes(model: KeptModel, tasks: tuple[Probe, ...] = ()) -> list[dict[str, Any]]:
    """Return a row a task, as in the table ``probes`` of a store, on sequences that no run was trained on.

    Args:
        tasks: which; none takes those of the run, or where it had none all but ``facts``, which it cannot know.

    Raises:
        UserError: the model reads no bytes, or its context is too short for probes.
    """
    if model.tokenizer.json:
        raise UserError("probes are written in bytes, and this model reads other tokens")
    own = model.spec.data
    chosen = tasks or own.probes or tuple(task for task in get_args(Probe) if task != "facts")
    data = dataclasses.replace(own, probes=chosen)
    mixture = ProbeMixture(data, model.spec.seed)
    held_out = mixture.held_out()
    nats, right = evaluate_targets(model.decoder, held_out.windows, BATCH, model.precision())
    model.decoder.eval()
    n_params = cost(model.spec.model, own.seq_len).total_params
    trained = ProbeMixture(own, model.spec.seed) if "facts" in own.probes else mixture
    sequences = model.record["tokens"] // own.seq_len if "facts" in own.probes else 0
    return score(held_out, nats, right, trained, sequences, n_params)
