"""What stages, weights, compensations and the parts of a study are called."""

from collections.abc import Mapping, Sequence
from typing import Any

from umscale.store.schema import STAGES, is_probe_column, probe_column

LOSS_NAMES: Mapping[str, str] = {"loss": "raw weights", "loss_ema": "averaged weights"}
STAGE_WORDS: Mapping[str, str] = {"stable": "before the decay", "annealed": "after the decay"}
COMPENSATION_WORDS: Mapping[str, str] = {
    "none": "nothing compensated",
    "iso_flops": "forward FLOPs per token held equal",
    "iso_active": "active parameters held equal",
}


def loss_name(loss: str) -> str:
    """Return words for a column of losses."""
    if is_probe_column(loss):
        return f"probe {loss.removesuffix(probe_column(''))}"
    return LOSS_NAMES.get(loss, loss)


def heading(stage: str | None, compensation: str | None, loss: str) -> str:
    """Return words for one part of a study."""
    parts = [stage or "", loss_name(loss)]
    if compensation not in (None, "", "none"):
        parts.append(str(compensation))
    return ", ".join(p for p in parts if p)


def part_words(stage: str | None, compensation: str | None, loss: str, by: Mapping[str, str]) -> str:
    """Return words for one part of any table."""
    where = heading(stage, compensation, loss) if stage else loss
    return ", ".join([where, *(f"{name} {value}" for name, value in by.items())])


def when(stage: str | None) -> str:
    """``after the decay``; ``in all rows`` of a table without stages."""
    return STAGE_WORDS.get(stage or "", stage or "in all rows")


def held(compensation: str | None) -> str:
    """What a compensation holds equal."""
    return COMPENSATION_WORDS.get(compensation or "none", str(compensation))


def capital(words: str) -> str:
    """Words that begin a sentence."""
    return f"{words[:1].upper()}{words[1:]}"


def sentence(words: str) -> str:
    """Words as a sentence."""
    return f"{capital(words)}{'' if words.endswith('.') else '.'}"


def over_stages(answers: Mapping[str | None, str]) -> str:
    """``supported before and after the decay``, or each stage's own word."""
    if set(answers) == set(STAGES) and len(set(answers.values())) == 1:
        return f"{next(iter(answers.values()))} before and after the decay"
    return ", ".join(f"{word} {when(stage)}" for stage, word in answers.items())


def by_compensation(found: Sequence[Any], loss: str) -> dict[str | None, dict[str | None, Any]]:
    """Compensation → stage, before the decay first → verdict."""
    order = {stage: i for i, stage in enumerate(STAGES)}
    out: dict[str | None, dict[str | None, Any]] = {}
    for one in sorted((v for v in found if v.loss == loss), key=lambda v: order.get(v.stage, 0)):
        out.setdefault(one.compensation, {})[one.stage] = one
    return out
