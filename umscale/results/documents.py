"""What a study's choice of validation documents is worth: from the losses of every document, run by run.

Two cells are read on the same documents, so their difference moves with the choice of documents only as far as
documents disagree about it. With d_i the summed difference on document i of n_i tokens, D = sum d_i / sum n_i has, over
choices of as many documents, the variance K/(K-1) sum (d_i - D n_i)² / (sum n_i)² (of a ratio of sums).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from umscale.cell_labels import cell_parts
from umscale.results.table import Table, text

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_PAIRS = 2000
NORMAL_95 = 1.959964
"""Of a normal distribution, deviations to either side that hold 95%."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentChoice:
    """Validation documents of a study, and how far their choice moves a difference between two cells."""

    n_documents: int
    n_tokens: int
    largest: float
    """Share of the tokens in the largest."""
    half_width: float | None
    """95% half-width of a difference between two cells over choices of documents, nats per token, the median over pairs
    of cells at the largest budget, annealed; None with fewer than two cells or documents."""
    n_sets: int
    """Different sets of documents among the runs; more than one does not compare."""


def document_choice(documents: "pa.Table", table: Table, loss: str = "loss") -> DocumentChoice | None:
    """Return what the runs of ``table`` were evaluated on; None where no losses of documents are stored.

    Args:
        documents: ``Store.read("documents")``.
        table: ``Store.columns()``.
        loss: ``loss`` or ``loss_ema``.
    """
    sets, cells = _losses(documents, table, "nats_ema" if loss == "loss_ema" else "nats")
    if not sets:
        return None
    names, tokens = max(sets, key=lambda known: len(known[0]))
    chosen = [np.mean(runs, 0) for (known, _), runs in cells.items() if known == names]
    n = np.array(tokens, float)
    return DocumentChoice(
        n_documents=len(names),
        n_tokens=int(n.sum()),
        largest=float(n.max() / n.sum()),
        half_width=_half_width(np.array(chosen), n),
        n_sets=len(sets),
    )


def difference_error(difference: np.ndarray, n_tokens: np.ndarray) -> float:
    """Return the standard error, over choices of documents, of ``difference.sum() / n_tokens.sum()``.

    Args:
        difference: nats on each document, summed over its tokens, float64 ``[K]``; K is 2 or more.
        n_tokens: of each document ``[K]``.
    """
    total, k = n_tokens.sum(), len(n_tokens)
    off = difference - difference.sum() / total * n_tokens
    return float(np.sqrt(k / (k - 1) * np.square(off).sum()) / total)


def _half_width(nats: np.ndarray, n_tokens: np.ndarray) -> float | None:
    """``nats`` is ``[cells, K]``."""
    if len(nats) < 2 or len(n_tokens) < 2:
        return None
    pairs = np.transpose(np.triu_indices(len(nats), 1))
    if len(pairs) > _MOST_PAIRS:
        pairs = pairs[np.linspace(0, len(pairs) - 1, _MOST_PAIRS).astype(int)]
    errors = [difference_error(nats[a] - nats[b], n_tokens) for a, b in pairs]
    return NORMAL_95 * float(np.median(errors))


_Set = tuple[tuple[str, ...], tuple[int, ...]]


def _losses(
    documents: "pa.Table", table: Table, column: str
) -> tuple[set[_Set], Mapping[tuple[tuple[str, ...], str], list[np.ndarray]]]:
    """Return the sets of documents in use, and the runs' losses on each document by set and cell."""
    import pyarrow.compute as pc

    run_ids = text(table, "run_id")
    if not len(run_ids) or not len(documents):
        return set(), {}
    budget = float(np.nanmax(table["budget"].astype(float)))
    labels = text(table, "label") if "label" in table else run_ids
    cell = {r: " ".join(cell_parts(label)) for r, label in zip(run_ids, labels, strict=True)}
    wanted = pc.and_(pc.equal(documents["budget"], int(budget)), pc.equal(documents["stage"], "annealed"))
    rows = documents.filter(wanted)
    by_run: dict[str, list[int]] = {}
    runs = rows["run_id"].to_pylist()
    for i, run_id in enumerate(runs):
        if run_id in cell:
            by_run.setdefault(run_id, []).append(i)
    names, n_tokens = rows["document"].to_pylist(), rows["n_tokens"].to_pylist()
    nats = rows[column].to_numpy(zero_copy_only=False)
    sets: set[_Set] = set()
    out: dict[tuple[tuple[str, ...], str], list[np.ndarray]] = {}
    for run_id, found in by_run.items():
        order = sorted(found, key=lambda i: names[i])
        known = tuple(names[i] for i in order)
        sets.add((known, tuple(n_tokens[i] for i in order)))
        out.setdefault((known, cell[run_id]), []).append(nats[order])
    return sets, out
