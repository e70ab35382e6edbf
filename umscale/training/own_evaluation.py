"""What users' packages measure of a model at every record (``data.evaluations``), see ``umscale.parts``."""

import math
import numbers
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from umscale import parts
from umscale.parts import EvaluationPart
from umscale.spec import RunSpec

if TYPE_CHECKING:
    from umscale.data.batches import ValidationSet
    from umscale.data.corpus import Corpus
    from umscale.model.decoder import Decoder

MOST_METRICS = 64
_METRIC = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What an evaluation is given."""

    model: "Decoder"
    """In evaluation mode, raw weights: tokens int64 ``[B, S]`` to logits ``[B, S, vocab_size]``, and with targets
    ``[B, S]`` to their mean loss in nats."""
    spec: RunSpec
    corpus: "Corpus"
    validation: "ValidationSet"
    """The held-out windows that the record's loss is of."""
    tokens: int
    """The run has trained on so far."""
    precision: Callable[[], AbstractContextManager[object]]
    """``with measured.precision():`` makes products as training does."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.rotary.device


class EvaluationFailed(RuntimeError):
    """A package's evaluation raised, or gave no numbers by name; the message says which and what."""


@torch.no_grad()
def measure(measured: Measured) -> list[dict[str, Any]]:
    """Return a row for every number of every evaluation that the run asks for, as in the table ``evaluations``.

    Raises:
        EvaluationFailed: one raised, or returned something else than numbers by name.
    """
    rows = []
    for name in measured.spec.data.evaluations:
        found = parts.find("evaluations", name)
        part: EvaluationPart = found.load(EvaluationPart)
        measured.model.eval()
        try:
            values = part.evaluate(measured)
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            raise EvaluationFailed(f"{found.noun}: {words}") from error
        finally:
            measured.model.train()
        said = checked(values, found.noun)
        rows += [
            {"evaluation": name, "package": found.package, "metric": metric, "value": value}
            for metric, value in said.items()
        ]
    return rows


def checked(values: Any, who: str) -> dict[str, float]:
    """Return an evaluation's numbers as floats; raises ``EvaluationFailed`` for anything else."""
    if not isinstance(values, Mapping) or not 0 < len(values) <= MOST_METRICS:
        raise EvaluationFailed(f"{who} must return 1 to {MOST_METRICS} numbers by name, not {values!r:.200}")
    for name, value in values.items():
        if not isinstance(name, str) or not _METRIC.fullmatch(name):
            raise EvaluationFailed(f"{who}: the name {name!r:.100} must be letters, digits and '_'")
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isinf(value):
            raise EvaluationFailed(f"{who}: {name} = {value!r:.100} must be a finite number, or NaN")
    return {name: float(value) for name, value in values.items()}
