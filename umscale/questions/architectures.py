"""Architectures side by side at the cells a study made comparable: losses, differences with intervals, costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from umscale.cell_labels import cell_name
from umscale.errors import UserError, nearest
from umscale.laws.uncertainty import Estimate
from umscale.questions.question import Answer, Asked, Contrast, Question
from umscale.results.table import Table, levels, numeric, parts_by_budget, text
from umscale.say.blocks import Block, Fold, Grid, Paragraph, Verdict
from umscale.say.estimates import both, fixed, listed, pair, significant
from umscale.say.labels import capital, held, loss_name, over_stages, sentence, when
from umscale.say.laws import by_chance, spread_words
from umscale.say.numbers import count
from umscale.store.schema import STAGES

COSTS = (
    "total_params", "active_params", "sparse_params", "flops_per_token",
    "access_bytes_b1", "access_bytes_b16", "access_bytes_b64", "access_bytes_b256",
    "tokens_per_second", "lr", "value_lr",
)  # fmt: skip

WEIGHT_BATCHES = (1, 256)
"""Batches for which the bytes of all weights stand beside those of sparse rows."""

_UNEQUAL = 0.01  # p of Bartlett's test below which spreads are taken to differ
_LEAST_PAIRS = 3  # runs that a spread of its own takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture at one budget and stage."""

    name: str
    """The architecture; with the cell's other axes where a study varies them (a learning-rate search, say)."""
    n_runs: int
    loss: float
    """Mean over runs, nats per token."""
    baseline: str
    """What it is compared with: the table's baseline, or one of its own."""
    difference: Estimate | None
    """Loss minus the baseline's, over the seeds both have, with a 95% interval; None for the table's baseline."""
    bits_per_byte: float
    """NaN of a generated task's loss."""
    costs: dict[str, float]
    """Means of ``COSTS``, NaN where not recorded; and ``weight_bytes_bN``, see ``weight_bytes``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureTable:
    """All architectures of a study at one stage, compensation and budget, best first."""

    stage: str
    compensation: str | None
    budget: float
    baseline: str
    noise: float
    """Standard deviation of a run beside its architecture and seed block, in nats; NaN with one seed."""
    freedom: int
    """Degrees of freedom of ``noise``."""
    equal_spread: bool
    """False where runs of some architectures lie further apart than others' (Bartlett, 1%): intervals are then each
    pair's own, not the pooled ones."""
    rows: tuple[Architecture, ...]


def compare_architectures(
    table: Table, *, loss: str = "loss", baseline: str | None = None, stage: str | None = None
) -> tuple[ArchitectureTable, ...]:
    """Compare the architectures of a study's finished runs, annealed before stable, largest budget first.

    Runs of one seed share their data order, so differences are taken within seeds. Their interval is Student's t on
    the run-to-run variance pooled over architectures: two or three seeds an architecture say little each, together
    they say how noisy a run is. Where spreads differ between architectures by more than chance (Bartlett's test, 1%),
    as those of a task that some have learned and others have not, each interval is of its own paired differences.

    Args:
        table: ``Store.columns()``.
        loss: ``loss`` (raw weights), ``loss_ema`` or a generated task's, as ``facts_nats``.
        baseline: an architecture's name; None takes ``dense``, else ``base``, else the first by name.
            A column ``baseline`` names others for some architectures.
        stage: one stage alone.

    Raises:
        UserError: no runs, or no such baseline.
    """
    if not levels(table, "architecture"):
        raise UserError("the store holds no finished runs yet; `umscale runs` shows what there is")
    table = {**table, "architecture": _cells(table)}
    names = levels(table, "architecture")
    if baseline is None:
        baseline = next((b for b in ("dense", "base") if b in names), names[0])
    if loss not in table:
        raise UserError(f"the table has no column {loss!r}{nearest(loss, table)}")
    if baseline not in names:
        raise UserError(f"no architecture {baseline!r} among the finished runs{nearest(baseline, names)}")
    return tuple(
        _compare(rows, loss, baseline, one, compensation, budget)
        for compensation, one, budget, rows in parts_by_budget(table, stage)
    )


def _cells(table: Table) -> np.ndarray:
    """Names that tell cells apart: the architecture, or the cell's label where an architecture has several cells."""
    names = text(table, "architecture")
    if "label" not in table:
        return names
    labels = np.array([cell_name(one) for one in text(table, "label")])
    one_cell = all(len(set(labels[names == name])) == 1 for name in set(names.tolist()))
    return names if one_cell else labels


def _compare(
    table: Table, loss: str, baseline: str, stage: str, compensation: str | None, budget: float
) -> ArchitectureTable:
    names, seeds, losses = text(table, "architecture"), numeric(table, "seed"), numeric(table, loss)
    in_bits = {"loss": "bits_per_byte", "loss_ema": "bits_per_byte_ema"}.get(loss)
    noise, freedom = block_noise(names, seeds, losses)
    equal = equal_spread(names, losses)
    rows = []
    for name in sorted(set(names.tolist())):
        mine = names == name
        other = (text(table, "baseline")[mine][0] if "baseline" in table else "") or baseline
        rows.append(
            Architecture(
                name=name,
                baseline=other,
                n_runs=int(mine.sum()),
                loss=float(losses[mine].mean()),
                difference=None
                if name == baseline
                else paired_difference(
                    names, seeds, losses, name, other, (noise, freedom) if equal else None
                ),
                bits_per_byte=_mean(numeric(table, in_bits)[mine])
                if in_bits and in_bits in table
                else float("nan"),
                costs=_costs(table, mine),
            )
        )
    return ArchitectureTable(
        stage=stage,
        compensation=compensation,
        budget=budget,
        baseline=baseline,
        noise=noise,
        freedom=freedom,
        equal_spread=equal,
        rows=tuple(sorted(rows, key=lambda row: row.loss)),
    )


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def block_noise(names: np.ndarray, seeds: np.ndarray, losses: np.ndarray) -> tuple[float, int]:
    """Residual standard deviation of losses ~ cell + seed, and its degrees of freedom; NaN and 0 with one seed."""
    design = np.hstack([codes[:, None] == np.unique(codes) for codes in (names, seeds)]).astype(np.float64)
    freedom = len(losses) - int(np.linalg.matrix_rank(design))
    if freedom < 1:
        return float("nan"), 0
    residuals = losses - design @ np.linalg.lstsq(design, losses, rcond=1e-9)[0]
    return float(np.sqrt(residuals @ residuals / freedom)), freedom


def equal_spread(names: np.ndarray, losses: np.ndarray) -> bool:
    """Whether the architectures' runs may all lie equally far apart; True where too few of them show otherwise."""
    # Not residuals beside seed blocks: the noisiest architecture would be in all of them.
    groups = [losses[names == name] for name in np.unique(names)]
    groups = [one for one in groups if len(one) >= _LEAST_PAIRS and one.var() > 0]
    if len(groups) < 2:
        return True
    # Imported here: scipy.stats takes longer to load than most tables take to compare.
    from scipy.stats import bartlett

    return bool(bartlett(*groups).pvalue > _UNEQUAL)


def paired_difference(
    names: np.ndarray,
    seeds: np.ndarray,
    losses: np.ndarray,
    name: str,
    baseline: str,
    pooled: tuple[float, int] | None,
) -> Estimate | None:
    """The mean of paired differences, with a run's ``pooled`` deviation and degrees of freedom, or with their own."""
    from umscale.laws.special import stdtrit

    def by_seed(wanted: str) -> dict[float, float]:
        mine = names == wanted
        return {s: float(losses[mine & (seeds == s)].mean()) for s in set(seeds[mine])}

    one, other = by_seed(name), by_seed(baseline)
    shared: Sequence[float] = sorted(set(one) & set(other))
    if not shared:
        return None
    pairs = np.array([one[s] - other[s] for s in shared])
    if pooled is not None:
        deviation, freedom = pooled[0] * 2**0.5, pooled[1]
    else:
        freedom = len(pairs) - 1 if len(pairs) >= _LEAST_PAIRS else 0
        deviation = float(pairs.std(ddof=1)) if freedom else float("nan")
    value = float(pairs.mean())
    half = float(stdtrit(freedom, 0.975)) * deviation / len(pairs) ** 0.5 if freedom else float("nan")
    return Estimate(value=value, low=value - half, high=value + half)


# -- the answer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitecturesAnswer(Answer):
    """Tables for every loss asked for."""

    found: Mapping[str, tuple[ArchitectureTable, ...]]
    """Loss → tables."""
    beside: Mapping[tuple[str, str | None, float], ArchitectureTable]
    """Stage, compensation and budget → the table of the first loss with its best as the baseline."""

    def to_json(self, **context: Any) -> dict[str, list[dict[str, Any]]]:
        """Tables by loss."""
        return {loss: [asdict(one) for one in each] for loss, each in self.found.items()}

    def contrasts(self) -> list[Contrast]:
        """At the largest budget: the best beside all that is not told apart from it, then each beside its baseline."""
        tables = next(iter(self.found.values()))
        last = max(one.budget for one in tables)
        found = []
        for own in (one for one in tables if one.budget == last):
            beside = self.beside[own.stage, own.compensation, last]
            best, *others = beside.rows
            near = [row for row in others if row.name in _near(beside)] or others[:1]
            if not own.freedom:
                found += _one_seed(beside)
                continue
            found += [_as_contrast(beside, row, best.name, "Is {other} better than {name}?") for row in near]
            found += [
                _as_contrast(own, row, row.baseline, "Does {name} differ from {other}?")
                for row in own.rows
                if row.difference is not None and best.name not in (row.name, row.baseline)
            ]
        return found

    def basis(self) -> list[Block]:
        """Why there are no laws."""
        said = "No law is fitted: none holds across architectures. Their losses are compared as they are."
        return [Paragraph(text=said)]

    def blocks(self) -> list[Block]:
        """The best, losses and costs at each compensation and budget; other losses folded away."""
        blocks: list[Block] = []
        (loss, found), *others = self.found.items()
        for compensation, budget in dict.fromkeys((one.compensation, one.budget) for one in found):
            stages = _at_place(found, compensation, budget)
            place = f"{held(compensation)}, {count(budget)} tokens"
            blocks += [
                self._best(stages, place),
                _losses_grid(stages, loss, place),
                _costs_grid(stages, place),
            ]
            for other, tables in others:
                also = _at_place(tables, compensation, budget)
                if set(also) == set(stages):
                    grid = _losses_grid(also, other, place)
                    blocks.append(Fold(summary=f"The same with {loss_name(other)}", blocks=(grid,)))
        return blocks

    def _best(self, stages: dict[str, ArchitectureTable], place: str) -> Verdict:
        sentences = []
        near = {s: _near(self.beside[s, one.compensation, one.budget]) for s, one in stages.items()}
        for stage, one in reversed(stages.items()):
            best = one.rows[0]
            said = (
                f"{capital(when(stage))}, {best.name} has the lowest loss, {fixed(best.loss)} nats per token"
            )
            if best.difference is not None:
                said += f", {both(best.difference)} from {best.baseline}"
            if one.freedom:
                said += (
                    f"; not told apart from it: {listed(near[stage])}"
                    if near[stage]
                    else "; all others lie above it"
                )
            sides: dict[str, list[str]] = {"below": [], "above": [], "not told apart from": []}
            for row in one.rows:
                if row.difference is not None and row.baseline == one.baseline:
                    sides[_side(row.difference)].append(row.name)
            if not one.freedom:
                sentences.append(f"{said}. One seed: which differences are more than noise is not known.")
                continue
            words = [f"{side} {one.baseline}: {listed(names)}" for side, names in sides.items() if names]
            sentences.append(f"{said}. {sentence('; '.join(words))}" if words else f"{said}.")
        best_rows: dict[str | None, Architecture] = {stage: one.rows[0] for stage, one in stages.items()}
        title = over_stages({stage: row.name for stage, row in best_rows.items()})
        return Verdict(
            verdict=f"Lowest loss: {title} ({place})",
            tone="yes" if all(one.freedom and not near[stage] for stage, one in stages.items()) else "open",
            text=" ".join(sentences),
        )


def _as_contrast(table: ArchitectureTable, row: Architecture, other: str, asks: str) -> Contrast:
    """What further runs would settle of one difference."""
    found = row.difference or Estimate(value=math.nan, low=math.nan, high=math.nan)
    told = _side(found) != "not told apart from"
    return Contrast(
        asks=asks.format(name=row.name, other=other),
        known="yes" if told else "not told apart",
        stage=table.stage,
        compensation=table.compensation,
        estimate=found,
        freedom=float(table.freedom if table.equal_spread else max(row.n_runs - 1, 0)),
        only=(other, row.name),
    )


def _one_seed(table: ArchitectureTable) -> list[Contrast]:
    """All differences as one, for none has an interval."""
    nothing = Estimate(value=math.nan, low=math.nan, high=math.nan)
    return [
        Contrast(
            asks=f"Is {table.rows[0].name} better than the others?",
            known="not told apart",
            stage=table.stage,
            compensation=table.compensation,
            estimate=nothing,
            freedom=0.0,
        )
    ]


def answer(table: Table, asked: Asked) -> ArchitecturesAnswer:
    """Every architecture beside the baseline; raises as ``compare_architectures`` does."""
    found = {
        loss: compare_architectures(table, loss=loss, baseline=asked.baseline, stage=asked.stage)
        for loss in asked.losses
    }
    loss = asked.losses[0]
    return ArchitecturesAnswer(
        found=found,
        beside={
            (one.stage, one.compensation, one.budget): _beside_best(table, one, loss) for one in found[loss]
        },
    )


def _at_place(
    found: Sequence[ArchitectureTable], compensation: str | None, budget: float
) -> dict[str, ArchitectureTable]:
    """Stage, before the decay first → table."""
    here = [one for one in found if (one.compensation, one.budget) == (compensation, budget)]
    return {stage: one for stage in STAGES for one in here if one.stage == stage}


def _beside_best(table: Table, found: ArchitectureTable, loss: str) -> ArchitectureTable:
    """The same table with its best as what all others are compared with."""
    table = {name: values for name, values in table.items() if name != "baseline"}
    [beside] = [
        one
        for one in compare_architectures(table, loss=loss, baseline=found.rows[0].name, stage=found.stage)
        if (one.compensation, one.budget) == (found.compensation, found.budget)
    ]
    return beside


def _near(beside: ArchitectureTable) -> list[str]:
    """Names of those whose difference from the best has an interval that holds zero, or none."""
    return [row.name for row in beside.rows if row.difference and _side(row.difference) != "above"]


def _side(difference: Estimate) -> str:
    if not difference.has_interval or difference.low <= 0 <= difference.high:
        return "not told apart from"
    return "below" if difference.high < 0 else "above"


def _losses_grid(stages: dict[str, ArchitectureTable], loss: str, place: str) -> Grid:
    last = list(stages.values())[-1]
    others = any(row.baseline != last.baseline for row in last.rows)
    rows = []
    for row in last.rows:
        cells: list[str] = [
            row.name,
            *([row.baseline if row.difference else "–"] if others else []),
            str(row.n_runs),
        ]
        for one in stages.values():
            mine = _named(one, row.name)
            cells += [fixed(mine.loss), *pair(mine.difference)] if mine else ["–"] * 3
        rows.append(tuple(cells))
    minus = "minus that" if others else f"minus {last.baseline}"
    noise = [
        f"{when(stage)} {fixed(one.noise)} nats ({one.freedom} degrees of freedom{spread_words(one.equal_spread)})"
        if one.freedom
        else f"{when(stage)} unknown: one seed"
        for stage, one in stages.items()
    ]
    chance = by_chance(len(last.rows) - 1) if last.freedom else ""
    return Grid(
        caption=f"Validation loss in nats per token, {loss_name(loss)}, 95% intervals; {place}",
        head=(
            "architecture",
            *(["compared with"] if others else []),
            "runs",
            *(head for stage in stages for head in (f"loss {when(stage)}", minus, "interval")),
        ),
        sides=("ll" if others else "l") + "r" + "rrr" * len(stages),
        rows=tuple(rows),
        notes=(f"Run-to-run standard deviation: {', '.join(noise)}{chance}.",),
    )


def _costs(table: Table, mine: np.ndarray) -> dict[str, float]:
    """Means over the rows ``mine`` of what is recorded, and the bytes of all weights that follow."""
    found = {
        c: _mean(numeric(table, c)[mine]) if c in table else float("nan")
        for c in (*COSTS, "embedding_params")
    }
    embedding = found.pop("embedding_params")
    return found | {f"weight_bytes_b{b}": weight_bytes(found, embedding, b) for b in WEIGHT_BATCHES}


def weight_bytes(costs: Mapping[str, float], embedding_params: float, batch: int) -> float:
    """Bytes of all weights, bf16, that a step of ``batch`` tokens reads, per token: dense once, sparse as measured.

    What sparse rows save is a part of this alone: dense weights are read whatever the memory does.
    """
    dense = costs["total_params"] - costs["sparse_params"] + embedding_params
    sparse = costs[f"access_bytes_b{batch}"]
    return 2.0 * dense / batch + (0.0 if np.isnan(sparse) else sparse)


def _named(table: ArchitectureTable, name: str) -> Architecture | None:
    return next((row for row in table.rows if row.name == name), None)


def _costs_grid(stages: dict[str, ArchitectureTable], place: str) -> Grid:
    last = list(stages.values())[-1]
    columns = (
        "total_params",
        "active_params",
        "sparse_params",
        "flops_per_token",
        "access_bytes_b1",
        "access_bytes_b16",
        "access_bytes_b64",
        "access_bytes_b256",
        *(f"weight_bytes_b{batch}" for batch in WEIGHT_BATCHES),
    )
    return Grid(
        caption=f"What they cost; {place}",
        head=(
            "architecture",
            "bits per byte",
            "parameters",
            "active",
            "sparse",
            "FLOPs per token, forward",
            "sparse bytes read per token, batch 1",
            "batch 16",
            "batch 64",
            "batch 256",
            *(f"of all weights, batch {batch}" for batch in WEIGHT_BATCHES),
            "learning rate",
            "tokens per second",
        ),
        sides="l" + "r" * (11 + len(WEIGHT_BATCHES)),
        rows=tuple(
            (
                row.name,
                fixed(row.bits_per_byte),
                *(count(row.costs[c]) for c in columns),
                significant(row.costs["lr"]),
                count(row.costs["tokens_per_second"]),
            )
            for row in last.rows
        ),
        notes=(
            "Sparse bytes are bf16 and measured; of all weights, dense ones are read once a step whatever the memory "
            "does, embedding and head included. Active parameters are without embeddings. Tokens per second are "
            "those of training, which other work on the machine slows.",
        ),
    )


QUESTION = Question(
    asks="Which architecture has the lowest loss, where what they cost is held equal?",
    answer=answer,
    figures=("architectures",),
)
