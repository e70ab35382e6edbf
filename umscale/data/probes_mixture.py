"""Which training sequences are probes, and which probes a run is evaluated on."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from umscale.data.corpus import Corpus
from umscale.data.probes import Probes, SplitName, fact_table, probes
from umscale.errors import UserError
from umscale.spec import DataSpec, Probe

EVALUATED = 64
"""Held-out sequences a task."""
BLOCK = 32
"""Sequences of a task that are made together: one alone takes nearly as long."""
_MILLION = 10**6


def check_corpus(data: DataSpec, corpus: Corpus) -> None:
    """Raise ``UserError`` if probes are wanted and the corpus does not consist of bytes."""
    if data.probes and corpus.manifest.tokenizer.kind != "bytes":
        raise UserError(
            f"data.probes are written in bytes, corpus {corpus.name!r} is not; prepare its text with --tokenizer bytes "
            "(the default), or generate a corpus"
        )


class ProbeMixture:
    """Training sequences of which some are probes: a pure function of the sequence's number, whatever the batch size.

    Sequence g is a probe if ⌊(g + 1) p⌋ > ⌊g p⌋ for the fraction p (to a millionth); it is then probe number ⌊g p⌋, and
    probes take the tasks in turn. The others, in order, are the sequences of the text.

    Args:
        data: names tasks, fraction and number of facts.
        seed: of the run.
    """

    def __init__(self, data: DataSpec, seed: int) -> None:
        self._data, self._seed = data, seed
        self._parts = round(data.probe_fraction * _MILLION)
        self.facts = fact_table(seed, data.probe_facts) if "facts" in data.probes else None
        self._blocks: dict[Probe, tuple[int, np.ndarray]] = {}

    def mix(self, sequence: np.ndarray, text: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return sequences number ``sequence`` (int64 ``[n]``), int64 ``[n, seq_len + 1]``.

        Args:
            text: returns text sequences by their numbers, as this does.
        """
        before = self._probes_before(sequence)
        is_probe = self._probes_before(sequence + 1) > before
        out = np.empty((len(sequence), self._data.seq_len + 1), np.int64)
        if not is_probe.all():
            out[~is_probe] = text((sequence - before)[~is_probe])
        tasks = self._data.probes
        for row in np.flatnonzero(is_probe):
            index, task = divmod(int(before[row]), len(tasks))
            out[row] = self._window(tasks[task], index)
        return out

    def exposures(self, sequences: int) -> float:
        """Return how often the first ``sequences`` training sequences state a fact, on average over all facts."""
        if self.facts is None:
            return 0.0
        return self._fact_sequences(sequences) * self._facts_each / len(self.facts)

    def facts_seen(self, sequences: int) -> float:
        """Return the expected share of the facts that the first ``sequences`` training sequences state at all."""
        if self.facts is None:
            return 0.0
        each, total = self._facts_each, len(self.facts)
        epochs, rest = divmod(self._fact_sequences(sequences), total // each)
        return 1 - (total % each / total) ** epochs * (1 - rest * each / total)

    def held_out(self) -> "ProbeSet":
        """Return the probes to evaluate on: other sequences than any in training, the same facts."""
        made = []
        for task in self._data.probes:
            count = EVALUATED
            if task == "facts" and self.facts is not None:  # none twice
                count = min(count, len(self.facts) // self._facts_each)
            made.append(self._make(task, "validation", np.arange(count)))
        return ProbeSet(
            tasks=self._data.probes,
            windows=np.concatenate([part.windows for part in made]),
            counts=tuple(len(part.windows) for part in made),
            answers=tuple(part.answers for part in made),
        )

    @property
    def _facts_each(self) -> int:
        assert self.facts is not None
        return self.facts.per_sequence(self._data.seq_len)

    def _probes_before(self, sequence: np.ndarray) -> np.ndarray:
        return sequence * self._parts // _MILLION

    def _fact_sequences(self, sequences: int) -> int:
        """Return how many of the first ``sequences`` state facts."""
        tasks = self._data.probes
        n_probes = int(self._probes_before(np.array(sequences)))
        return (n_probes + len(tasks) - 1 - tasks.index("facts")) // len(tasks)

    def _window(self, task: Probe, index: int) -> np.ndarray:
        """Return one training sequence, from a block that is kept until the next is begun."""
        block, place = divmod(index, BLOCK)
        kept = self._blocks.get(task)
        if kept is None or kept[0] != block:
            made = self._make(task, "train", np.arange(block * BLOCK, (block + 1) * BLOCK))
            kept = self._blocks[task] = block, made.windows
        return kept[1][place]

    def _make(self, task: Probe, split: SplitName, index: np.ndarray) -> Probes:
        return probes(task, self._seed, split, index, self._data.seq_len, self.facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSet:
    """Probes of several tasks, one task after the other. W windows in all."""

    tasks: tuple[Probe, ...]
    windows: np.ndarray
    """int64 [W, seq_len + 1]."""
    counts: tuple[int, ...]
    """Windows of each task."""
    answers: tuple[np.ndarray, ...]
    """int64 [A, L] a task: which targets are answer symbols."""
