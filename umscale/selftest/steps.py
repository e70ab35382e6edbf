"""How much work was done twice: the logs of all workers' steps, read together."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path


@dataclass(kw_only=True, slots=True)
class Stretch:
    """Steps of one run that one process did in a row."""

    run_id: str
    steps: list[tuple[str, int]] = field(default_factory=list)
    """(phase, step)."""
    cpu: list[float] = field(default_factory=list)
    """CPU seconds of the process after each."""
    began: float = 0.0

    def longest_pause(self) -> float:
        """Return the most CPU seconds between two steps, in which a step, an evaluation or a checkpoint was done."""
        return max((after - before for before, after in pairwise(self.cpu)), default=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Repetition:
    """Work that was lost with one process and done again by the next."""

    run_id: str
    seconds: float
    """Of CPU, from the first lost step to the last."""
    allowance: float
    """The longest single step, evaluation or checkpoint in it, which cannot be interrupted by a checkpoint."""
    began: float
    """When the process that did it again began, on the machine's clock."""


def read_logs(folder: Path) -> list[Stretch]:
    """Return all stretches in order of time; a line cut short by a kill is left out."""
    found: list[Stretch] = []
    for path in folder.glob("*.log"):
        current: Stretch | None = None
        for line in path.read_text(encoding="utf-8").splitlines():
            parts = line.split()
            if len(parts) != 5:
                continue
            run_id, phase, step, cpu, now = (
                parts[0],
                parts[1],
                int(parts[2]),
                float(parts[3]),
                float(parts[4]),
            )
            if current is None or current.run_id != run_id:
                current = Stretch(run_id=run_id, began=now)
                found.append(current)
            current.steps.append((phase, step))
            current.cpu.append(cpu)
    return sorted(found, key=lambda stretch: stretch.began)


def whole_order(stretches: list[Stretch]) -> dict[str, list[tuple[str, int]]]:
    """Return each run's steps in order, once each; on a busy machine even an undisturbed run may change hands."""
    order: dict[str, list[tuple[str, int]]] = {}
    for stretch in stretches:
        known = order.setdefault(stretch.run_id, [])
        seen = set(known)
        known += [step for step in stretch.steps if step not in seen]
    return order


def repetitions(stretches: list[Stretch], order: dict[str, list[tuple[str, int]]]) -> list[Repetition]:
    """Return what was done twice, one entry for each stretch that had to be followed by another.

    Args:
        order: each run's steps in the order of an undisturbed process.
    """
    found = []
    for run_id, steps in order.items():
        place = {step: i for i, step in enumerate(steps)}
        own = [stretch for stretch in stretches if stretch.run_id == run_id]
        for before, after in pairwise(own):
            resumed = place[after.steps[0]]
            lost = [i for i, step in enumerate(before.steps) if place[step] >= resumed]
            seconds = before.cpu[lost[-1]] - before.cpu[lost[0]] if lost else 0.0
            found.append(
                Repetition(
                    run_id=run_id, seconds=seconds, allowance=before.longest_pause(), began=after.began
                )
            )
    return found
