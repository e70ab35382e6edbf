"""What results rest on, said once for every fit, sweep and page: old defaults, the choice of validation documents."""

import re
from collections import Counter
from collections.abc import Sequence

from umscale import parts
from umscale.design.question_names import QUESTIONS
from umscale.results.budgets import paused
from umscale.results.documents import document_choice
from umscale.results.table import Table, levels
from umscale.say.labels import capital
from umscale.spec import ADDITIVE_KINDS, RunSpec, named_parts, read_run
from umscale.store.store import Store

_OF_A_PACKAGE = re.compile(r'"package": *"[^"]')

MANY_DOCUMENTS = 50
"""Fewer are said to be few."""


def basis(store: Store, table: Table, loss: str = "loss") -> tuple[str, ...]:
    """Return sentences on what the finished runs of ``table`` (``Store.columns()``) rest on."""
    runs = [read_run(spec) for spec in levels(table, "spec")]
    stopped = paused(table)
    said = (f"{capital(stopped)}: `umscale sweep` without --until goes on with them.",) if stopped else ()
    return (
        *said,
        *absent_parts(store, levels(table, "spec")),
        *old_defaults(runs),
        *_documents(store, table, loss),
    )


def absent_parts(store: Store, specs: Sequence[str]) -> tuple[str, ...]:
    """Return sentences on what is not installed here: parts of ``specs``, as records hold them, and the question."""
    runs = [read_run(spec) for spec in specs if _OF_A_PACKAGE.search(spec)]
    found = Counter(words for run in runs for part in named_parts(run) if (words := parts.absent(*part)))
    said = [f"{words} ({n} {'run' if n == 1 else 'runs'})" for words, n in sorted(found.items())]
    sentences = (
        [f"Made with what is not here: {'; '.join(said)}. Records can be read, not repeated."] if said else []
    )
    if asked := store.absent_question():
        sentences.append(f"The study asks {asked}; {QUESTIONS[0]} is asked instead.")
    return tuple(sentences)


def old_defaults(runs: Sequence[RunSpec]) -> tuple[str, ...]:
    """Return a sentence for each earlier version of the spec among ``runs``: the defaults it had, where they differ."""
    said = []
    for version in sorted({run.spec_version for run in runs} - {3}):
        mine = [run for run in runs if run.spec_version == version]
        words = []
        if any(run.model.memory for run in mine):
            decays = sorted({run.train.weight_decay for run in mine})
            words.append(
                f"value tables lose {' or '.join(f'{decay:g}' for decay in decays)} x value_lr of themselves a step"
            )
            if version > 1:
                softmax = any(run.model.memory and run.model.memory.kind in ADDITIVE_KINDS for run in mine)
                words.append(
                    "value_lr goes by nominal score energies"
                    + (", too large for a softmax" if softmax else "")
                )
        if version == 1:
            words.append("learning rates are the same for every shape")
        words += [
            "validation takes whole documents, however few",
            "and d_ffn at equal FLOPs is not rounded",
        ]
        said.append(f"Records of spec version {version}, with its defaults: {', '.join(words)}.")
    if said and any(run.spec_version == 3 for run in runs):
        said.append("Other records here are of spec version 3: the two do not compare.")
    return tuple(said)


def _documents(store: Store, table: Table, loss: str) -> tuple[str, ...]:
    found = document_choice(store.read("documents"), table, loss)
    if found is None:
        return ()
    said = (
        f"Validation: {found.n_documents} documents, {found.n_tokens:,} tokens, the largest {found.largest:.1%} of "
        "them."
    )
    if found.half_width is not None:
        said += (
            f" Their choice moves a difference between two cells by ±{found.half_width:.4f} nats (95%, median over "
            "pairs of cells). Intervals over runs do not hold that: for what other documents would say, add it in "
            "squares."
        )
    if found.n_documents < MANY_DOCUMENTS:
        said += (
            f" They are few: data.validation_documents asks for {MANY_DOCUMENTS} where the split has them."
        )
    if found.n_sets > 1:
        said += f" The runs were read on {found.n_sets} different sets, which do not compare."
    return (said,)
