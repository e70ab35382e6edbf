"""Does a choice of the trainer decide the loss, or the verdict on density over size?

A study repeats its cells for several levels of one choice: the weight decay of tables, the initialisation, the text. At
each level, with least squares over the cells of a seed,

    L = c - delta_m log2(heads top_m) - delta_N log2(N_s)

so that delta_m and delta_N are what a doubling of either buys, centred on the grid; at four corners these are means of
paired differences. Estimates are means over seeds with Student's interval, changes against another level are taken
within seeds. What the choice of validation documents adds is computed from the losses of every document.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from umscale.cell_labels import cell_parts
from umscale.errors import UserError
from umscale.laws.uncertainty import LEVEL, Estimate
from umscale.questions.question import Answer, Asked, Contrast, Question, with_beside
from umscale.results.columns import Array
from umscale.results.documents import NORMAL_95, difference_error
from umscale.results.table import Table, levels, n_rows, numeric, text, where
from umscale.say.blocks import Block, Grid, Verdict
from umscale.say.estimates import fixed
from umscale.say.labels import held, loss_name, when
from umscale.say.numbers import count

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "trainer-choice"
_DESIGN = ("top_m", "n_keys", "n_values", "sparse_params", "total_params", "density", "tokens", "seed")
_ANSWERS = {1: "supported", -1: "contradicted", 0: "inconclusive"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What the study finds at one level of the choice. Losses in nats per token, deltas in nats per doubling."""

    level: str
    n_runs: int
    seeds: tuple[float, ...]
    seed_losses: tuple[float, ...]
    """Mean over the cells, by seed."""
    loss: Estimate
    loss_change: Estimate | None
    """Against the first level, as ``difference_change``; None of that one itself."""
    delta_m: Estimate | None
    """None where the cells do not tell density from size."""
    delta_n: Estimate | None
    difference: Estimate | None
    difference_change: Estimate | None
    documents: float | None
    """95% half-width of ``difference`` over choices of validation documents; None where their losses are not stored."""

    @property
    def answer(self) -> str:
        """The verdict on density over size at this level."""
        if self.difference is None or not self.difference.has_interval:
            return _ANSWERS[0]
        return _ANSWERS[(self.difference.low > 0) - (self.difference.high < 0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceTable:
    """All levels at one place of the study."""

    question: str = NAME
    axis: str
    stage: str
    compensation: str
    budget: float
    loss: str
    n_cells: int
    levels: tuple[Level, ...]


def trainer_choices(
    table: Table, *, loss: str = "loss", stage: str | None = None, documents: "pa.Table | None" = None
) -> tuple[ChoiceTable, ...]:
    """Return a table of levels for each compensation, budget (largest first) and stage (annealed first).

    Args:
        table: ``Store.columns()``.
        loss: column of the loss.
        stage: only this one.
        documents: ``Store.read("documents")``.

    Raises:
        UserError: the study's cells do not differ in exactly one choice beside density, size and seed.
    """
    if "label" not in table or not n_rows(table):
        raise UserError(f"{NAME} compares a study's finished runs; there are none")
    axis, of_row = _axis(text(table, "label"))
    rows = {**table, "_level": of_row}
    found = []
    for mode in levels(table, "compensation") or ("",):
        held = where(rows, compensation=mode) if mode else rows
        for budget in sorted(set(numeric(held, "budget").tolist()), reverse=True):
            at = where(held, budget=budget)
            for one in sorted(levels(at, "stage")):
                if stage in (None, one):
                    place = {"stage": one, "compensation": mode, "budget": budget, "loss": loss}
                    found.append(_at(where(at, stage=one), axis, place, documents))
    return tuple(found)


def recommendation(tables: Sequence[ChoiceTable]) -> tuple[str, ...]:
    """Return sentences: the level of least annealed loss at the largest budget, and whether the verdict hangs on it."""
    last = max((t.budget for t in tables), default=0.0)
    annealed = [t for t in tables if t.stage == "annealed" and t.budget == last]
    if not annealed:
        return ()
    axis, names = annealed[0].axis, [level.level for level in annealed[0].levels]
    by_name = {name: [level for t in annealed for level in t.levels if level.level == name] for name in names}
    means = {name: float(np.mean([level.loss.value for level in found])) for name, found in by_name.items()}
    best = min(means, key=lambda name: means[name])
    equal = [name for name in names if name != best and _as_good(by_name[name], by_name[best])]
    worse = [f"{name} by {means[name] - means[best]:.4f}" for name in names if name not in (best, *equal)]
    said = [
        f"Recommended: {axis} = {best}, of least annealed loss at {last:,.0f} tokens"
        + (f"; {', '.join(worse)} nats above it" if worse else "")
        + (f"; {', '.join(equal)} cannot be told from it" if equal else "")
        + "."
    ]
    if any(level.difference is not None for t in tables for level in t.levels):
        said += [_hangs(one, axis) for one in annealed]
    return tuple(said)


def _as_good(found: Sequence[Level], best: Sequence[Level]) -> bool:
    """Whether the interval of the difference in loss holds zero in every compensation."""
    for mine, other in zip(found, best, strict=True):
        change = _paired(mine.seeds, np.array(mine.seed_losses), other.seeds, np.array(other.seed_losses))
        if change is None or not change.has_interval:
            return True
        if not change.low <= 0 <= change.high:
            return False
    return True


def _hangs(one: ChoiceTable, axis: str) -> str:
    answers: dict[str, list[str]] = {}
    for level in one.levels:
        answers.setdefault(level.answer, []).append(level.level)
    words = "; ".join(f"{answer} at {', '.join(names)}" for answer, names in answers.items())
    both = {"supported", "contradicted"} <= set(answers)
    verdict = (
        "hangs on it"
        if both
        else "has one sign wherever it is conclusive"
        if len(answers) > 1
        else "is the same"
    )
    mode = f" ({one.compensation})" if one.compensation else ""
    return f"The verdict on density over size{mode} {verdict} over all {axis}: {words}."


def _axis(labels: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the name of the choice and its level in every row."""
    parts = [dict(p.partition("=")[::2] for p in cell_parts(label) if "=" in p) for label in labels.tolist()]
    varied = [
        name
        for name in dict.fromkeys(name for part in parts for name in part)
        if name not in _DESIGN and len({part.get(name) for part in parts}) > 1
    ]
    if len(varied) != 1:
        what = f"{', '.join(varied)} are {len(varied)}" if varied else "there is none"
        raise UserError(f"{QUESTION} needs one axis beside density, size, tokens and seed: {what}")
    return varied[0], np.array([part.get(varied[0], "") for part in parts], dtype=object)


def _order(level: str) -> tuple[bool, float, str]:
    """Words first, then numbers from the largest down."""
    try:
        return True, -float(level), level
    except ValueError:
        return False, 0.0, level


@dataclass(frozen=True, slots=True)
class _Blocks:
    """One level's complete seed blocks: the same cells in each."""

    seeds: tuple[float, ...]
    losses: Array
    """``[seeds, cells]``."""
    run_ids: list[list[str]]
    slopes: Array | None
    """``[2, cells]``: what takes losses to (delta_m, delta_N); None where they cannot be told apart."""


def _blocks(rows: Table, loss: str) -> _Blocks:
    memory = "top_m" in rows
    top_m = numeric(rows, "top_m") * numeric(rows, "heads") if memory else np.ones(n_rows(rows))
    size, losses, seeds = numeric(rows, "sparse_params"), numeric(rows, loss), numeric(rows, "seed")
    keys = list(zip(top_m.tolist(), size.tolist(), strict=True))
    cells = sorted(set(keys))
    at = {
        (seed, key): i
        for i, (seed, key) in enumerate(zip(seeds.tolist(), keys, strict=True))
        if losses[i] == losses[i]
    }
    whole = tuple(s for s in sorted(set(seeds.tolist())) if all((s, cell) in at for cell in cells))
    index = [[at[seed, cell] for cell in cells] for seed in whole]
    with np.errstate(divide="ignore", invalid="ignore"):
        design = np.column_stack([np.ones(len(cells)), np.log2(np.array(cells, float).reshape(-1, 2))])
    known = bool(np.isfinite(design).all()) and np.linalg.matrix_rank(design) == 3
    run_ids = text(rows, "run_id")
    return _Blocks(
        seeds=whole,
        losses=losses[np.array(index, int).reshape(len(whole), len(cells))],
        run_ids=[[str(run_ids[i]) for i in block] for block in index],
        slopes=-np.linalg.pinv(design)[1:] if known else None,
    )


def _at(rows: Table, axis: str, place: Mapping[str, object], documents: "pa.Table | None") -> ChoiceTable:
    names = sorted({str(level) for level in rows["_level"]}, key=_order)
    level = rows["_level"]
    parts = {name: {key: np.asarray(column)[level == name] for key, column in rows.items()} for name in names}
    blocks = {name: _blocks(part, str(place["loss"])) for name, part in parts.items()}
    first, found = blocks[names[0]], []
    for name, mine in blocks.items():
        if not mine.seeds:
            raise UserError(f"{QUESTION}: no seed has every cell finished at {axis} = {name}")
        means = mine.losses.mean(1)
        deltas = None if mine.slopes is None else mine.losses @ mine.slopes.T  # [seeds, 2]
        reference = None if first.slopes is None else first.losses @ first.slopes.T
        gaps = None if deltas is None else deltas[:, 0] - deltas[:, 1]
        found.append(
            Level(
                level=name,
                n_runs=mine.losses.size,
                seeds=mine.seeds,
                seed_losses=tuple(means.tolist()),
                loss=mean_estimate(means),
                loss_change=None
                if mine is first
                else _paired(mine.seeds, means, first.seeds, first.losses.mean(1)),
                delta_m=None if deltas is None else mean_estimate(deltas[:, 0]),
                delta_n=None if deltas is None else mean_estimate(deltas[:, 1]),
                difference=None if gaps is None else mean_estimate(gaps),
                difference_change=None
                if gaps is None or reference is None or mine is first
                else _paired(mine.seeds, gaps, first.seeds, reference[:, 0] - reference[:, 1]),
                documents=_documents(mine, place, documents),
            )
        )
    return ChoiceTable(
        axis=axis,
        stage=str(place["stage"]),
        compensation=str(place["compensation"]),
        budget=float(str(place["budget"])),
        loss=str(place["loss"]),
        n_cells=first.losses.shape[1],
        levels=tuple(found),
    )


def mean_estimate(values: Array) -> Estimate:
    """Return the mean with Student's 95% interval; no interval of a single value."""
    from umscale.laws.special import stdtrit

    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Estimate(value=mean, low=float("nan"), high=float("nan"))
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(value=mean, low=mean - half, high=mean + half)


def _paired(seeds: Sequence[float], mine: Array, others: Sequence[float], theirs: Array) -> Estimate | None:
    """The mean difference within the seeds that both have; None without any."""
    known = dict(zip(others, theirs.tolist(), strict=True))
    values = [value - known[seed] for seed, value in zip(seeds, mine.tolist(), strict=True) if seed in known]
    return mean_estimate(np.array(values)) if values else None


def _documents(mine: _Blocks, place: Mapping[str, object], documents: "pa.Table | None") -> float | None:
    """Return the 95% half-width of ``difference`` over choices of documents, from the mean over seeds of each."""
    if documents is None or mine.slopes is None or place["loss"] not in ("loss", "loss_ema"):
        return None
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array([run_id for block in mine.run_ids for run_id in block])
    chosen = documents.filter(
        pc.and_(
            pc.is_in(documents["run_id"], wanted),
            pc.and_(
                pc.equal(documents["budget"], int(float(str(place["budget"])))),
                pc.equal(documents["stage"], place["stage"]),
            ),
        )
    )
    by_run: dict[str, dict[str, tuple[float, float]]] = {}
    column = "nats_ema" if place["loss"] == "loss_ema" else "nats"
    for run_id, name, nats, tokens in zip(
        *(chosen[c].to_pylist() for c in ("run_id", "document", column, "n_tokens")), strict=True
    ):
        by_run.setdefault(run_id, {})[name] = (nats, tokens)
    sets = {tuple(sorted(by_run.get(run_id, {}))) for block in mine.run_ids for run_id in block}
    if len(sets) != 1 or len(names := sets.pop()) < 2:
        return None
    nats = np.array(
        [[[by_run[run_id][d][0] for d in names] for run_id in block] for block in mine.run_ids]
    )  # [seeds, cells, documents]
    weights = mine.slopes[0] - mine.slopes[1]
    n_tokens = np.array([by_run[mine.run_ids[0][0]][d][1] for d in names], float)
    return NORMAL_95 * difference_error(weights @ nats.mean(0), n_tokens)


# -- the answer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceAnswer(Answer):
    """All levels at every place of the study, for every loss."""

    found: tuple[ChoiceTable, ...]

    def to_json(self, **context: Any) -> list[dict[str, Any]]:
        """The tables as they are."""
        return [asdict(one) for one in self.found]

    def contrasts(self) -> list[Contrast]:
        """At the largest budget: what each level changes of the loss, then of the verdict, against the first level."""
        last = max(one.budget for one in self.found)
        found = []
        for one in self.found:
            if one.loss != self.found[0].loss or one.budget != last:
                continue
            for level in one.levels[1:]:
                pairs = len(set(level.seeds) & set(one.levels[0].seeds))
                changes = {"the loss": level.loss_change, "δ_m − δ_N": level.difference_change}
                found += [
                    Contrast(
                        asks=f"Does {one.axis} = {level.level} instead of {one.levels[0].level} change {what}?",
                        known="not told" if change.low <= 0 <= change.high else "yes",
                        stage=one.stage,
                        compensation=one.compensation or None,
                        estimate=change,
                        freedom=pairs - 1.0,
                    )
                    for what, change in changes.items()
                    if change is not None
                ]
        return found

    def blocks(self) -> list[Block]:
        """What is recommended, and a table for each loss, compensation, budget and stage."""
        first = self.found[0].loss
        said, *others = recommendation([one for one in self.found if one.loss == first])
        return [
            Verdict(verdict=said.rstrip("."), tone="open", text=" ".join(others)),
            *(_grid(one) for one in self.found),
        ]


def answer(table: Table, asked: Asked) -> ChoiceAnswer:
    """Loss and both effects at every level of a choice; raises as ``trainer_choices`` does."""
    documents = None if asked.read is None else asked.read("documents")
    return ChoiceAnswer(
        found=tuple(
            one
            for loss in with_beside(asked.losses)
            if loss in table
            for one in trainer_choices(table, loss=loss, stage=asked.stage, documents=documents)
        )
    )


def _grid(one: ChoiceTable) -> Grid:
    first = one.levels[0].level
    slopes = any(level.difference is not None for level in one.levels)
    head = [one.axis, "seeds", "mean loss", f"minus {first}"]
    if slopes:
        head += ["delta_m", "delta_N", "difference", f"minus {first}", "documents"]
    rows = []
    for level in one.levels:
        cells = [level.level, str(len(level.seeds)), fixed(level.loss.value), _plus_minus(level.loss_change)]
        if slopes:
            effects = (level.delta_m, level.delta_n, level.difference, level.difference_change)
            cells += [
                *map(_plus_minus, effects),
                "–" if level.documents is None else f"± {level.documents:.4f}",
            ]
        rows.append(tuple(cells))
    notes = (
        (
            "`delta_m` and `delta_N` are what a doubling of `top_m` and of `N_s` buys; documents: 95% of the "
            "difference over choices of validation documents.",
        )
        if slopes
        else ()
    )
    return Grid(
        caption=f"{one.axis} at {count(one.budget)} tokens, {when(one.stage)}, {held(one.compensation)}, "
        f"{loss_name(one.loss)}: nats per token, ± 95% over seeds, {one.n_cells} cell{'s' * (one.n_cells > 1)}",
        head=tuple(head),
        sides="lr" + "r" * (len(head) - 2),
        rows=tuple(rows),
        notes=notes,
    )


def _plus_minus(estimate: Estimate | None) -> str:
    """Return ``+0.0123 ± 0.0022`` of a symmetric interval."""
    if estimate is None:
        return "–"
    spread = f" ± {(estimate.high - estimate.low) / 2:.4f}" if estimate.has_interval else ""
    return f"{estimate.value:+.4f}{spread}".replace("-", "−")


QUESTION = Question(
    asks="Does a choice of the trainer decide the loss, or the verdict on density over size?", answer=answer
)
