"""Which kind of model to train: those that a study measured, within limits on size, compute, memory and decoding time.

``plan`` chooses dimensions of one kind by a law of its sizes. Here dense models, mixtures, product-key memories, n-gram
memories and mixes of them are ranked against each other, each as it was measured: no law says what a kind would lose at
a size that it was not trained at. What is read along is training length. A run of kind g has at D tokens

    L(D) = E_g − s x(D),      x(D) = ln D, or (1 − D^−b) / b where three budgets or more tell the exponent b

with b shared by all kinds, and s where the runs allow it (an F test at 1% against each kind's own), so that every run
gives one number, its loss at the tokens asked for. Kinds are compared within seeds with the noise of these numbers; the
error of a slope that all share moves all alike and is in no interval.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from umscale.accounting import Cost, cost
from umscale.cell_labels import cell_parts
from umscale.errors import UserError
from umscale.laws.uncertainty import Estimate
from umscale.questions.architectures import block_noise, equal_spread, paired_difference
from umscale.questions.plan import MAX_OCTAVES, RESOURCES, Limits, amount, check_limits, ends
from umscale.results.columns import Array
from umscale.results.table import Codes, Table, levels, numeric, text, where
from umscale.say.blocks import Block, Bullets, Grid, noted
from umscale.say.estimates import both
from umscale.say.labels import sentence
from umscale.say.numbers import count, number
from umscale.spec import ModelSpec, to_dict

_Cell = TypeVar("_Cell", bound=np.generic)
_OWN_SLOPES = 0.01  # p of the F test below which kinds fall with tokens at slopes of their own
_EXPONENTS = np.linspace(0.0, 1.5, 61)  # of tokens; 0 is a logarithm
_AXES = ("seed", "tokens", "compensation")
"""Parts of a cell's label that do not make it another model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A model that was measured, and what is expected of it at the tokens asked for."""

    name: str
    """Its cell: the architecture, and the axes that the study varied beside tokens."""
    kind: str
    """dense, mixture, product-key, n-gram, or a mix of them."""
    model: ModelSpec
    cost: Cost
    usage: Mapping[str, float]
    """Of every resource that ``Limits`` knows."""
    breaks: tuple[str, ...]
    """Limits that it does not keep."""
    n_runs: int
    loss: Estimate
    """At the tokens asked for, nats per token."""
    behind: Estimate | None
    """Minus the recommended one's, within seeds; None for that one itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyPlan:
    """The recommended model among those measured, with all others behind it."""

    stage: str | None
    compensation: str | None
    loss: str
    tokens: float
    octaves: float
    """How far ``tokens`` lies outside the budgets trained: above them positive."""
    exponent: float
    """b of x(D); 0 where D enters by its logarithm."""
    shared: bool
    """All kinds fall at one slope."""
    limits: Limits
    members: tuple[Member, ...]
    """Within the limits first, least loss first; then those that break a limit."""
    statements: tuple[str, ...]

    @property
    def recommended(self) -> Member:
        """The one of least expected loss within the limits."""
        return self.members[0]

    def blocks(self) -> list[Block]:
        """The models in order, what each takes and breaks, and the doubts."""
        used = [name for name in RESOURCES if name in self.recommended.usage and self._told(name)]
        head = ("", "kind", *(RESOURCES[name] for name in used), "loss", "interval", "behind", "interval")
        rows = tuple(self._row(one, used) for one in self.members if not one.breaks)
        blocks: list[Block] = [
            Grid(
                caption=f"Models that keep the limits, at {count(self.tokens)} tokens; batch {self.limits.batch}",
                head=head,
                sides="ll" + "r" * (len(head) - 2),
                rows=rows,
            )
        ]
        broken = [one for one in self.members if one.breaks]
        if broken:
            blocks.append(Bullets(items=tuple(self._broken(one) for one in broken)))
        return [*blocks, *noted(self.statements)]

    def _told(self, name: str) -> bool:
        """Whether a resource is worth a column: bytes on the host are where something lies there."""
        return name != "host_bytes" or any(one.usage[name] for one in self.members)

    def _row(self, one: Member, used: Sequence[str]) -> tuple[str, ...]:
        behind = one.behind
        return (
            one.name, one.kind, *(amount(name, one.usage[name]) for name in used),
            number(one.loss.value), ends(one.loss),
            "" if behind is None else f"{behind.value:+.4f}", "" if behind is None else ends(behind, "+"),
        )  # fmt: skip

    def _broken(self, one: Member) -> str:
        bounds = self.limits.bounds()
        over = ", ".join(
            f"{RESOURCES[name]} {amount(name, one.usage[name])} of {amount(name, bounds[name])}"
            for name in one.breaks
        )
        return f"{one.name} breaks a limit: {over} (loss {number(one.loss.value)})"

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "stage": self.stage,
            "compensation": self.compensation,
            "loss": self.loss,
            "tokens": self.tokens,
            "octaves_outside": self.octaves,
            "exponent": self.exponent,
            "shared_slope": self.shared,
            "limits": self.limits.bounds() | {"batch": self.limits.batch, "tables": self.limits.tables},
            "members": [
                {
                    "name": one.name,
                    "kind": one.kind,
                    "model": to_dict(one.model),
                    "used": dict(one.usage),
                    "breaks": list(one.breaks),
                    "runs": one.n_runs,
                    "loss": dataclasses.asdict(one.loss),
                    "behind": None if one.behind is None else dataclasses.asdict(one.behind),
                }
                for one in self.members
            ],
            "statements": list(self.statements),
        }


def plan_families(
    table: Table,
    models: Mapping[str, ModelSpec],
    limits: Limits,
    *,
    tokens: float | None = None,
    stage: str | None = None,
    compensation: str | None = None,
    loss: str = "loss",
    context: int = 2048,
    max_octaves: float = MAX_OCTAVES,
) -> FamilyPlan:
    """Rank the models that a study measured by what they would lose at ``tokens``, those that break a limit last.

    Args:
        table: ``Store.columns()``.
        models: ``run_id`` → its model.
        tokens: training tokens; None takes the largest budget.
        context: tokens behind each sequence, for attention and for decoding.
        max_octaves: how far ``tokens`` may lie outside the budgets trained.

    Raises:
        UserError: no runs, runs of one model alone, a limit that is none, or none that keeps the limits.
    """
    check_limits(limits)
    stages, modes = levels(table, "stage"), levels(table, "compensation")
    if not stages:
        raise UserError("the store holds no finished runs yet; `umscale runs` shows what there is")
    stage = stage or ("annealed" if "annealed" in stages else stages[0])
    compensation = compensation or next(iter(modes), None)
    part = where(table, stage=stage, compensation=compensation)
    lengths = _lengths(part, loss)
    low, high = float(lengths.tokens.min()), float(lengths.tokens.max())
    at = tokens or high
    octaves = float(max(np.log2(at / high), 0.0) + min(np.log2(at / low), 0.0))
    if abs(octaves) > max_octaves:
        raise UserError(
            f"{count(at)} tokens lie {abs(octaves):.1f} octaves outside the budgets trained; allow --max-octaves "
            f"{np.ceil(abs(octaves)):.0f}, or train longer"
        )
    fall = _fall(lengths, at)
    found = _members(lengths, fall.losses, _models(part, models), limits, context)
    statements = tuple(_statements(lengths, fall, found, limits, octaves))
    return FamilyPlan(
        stage=stage, compensation=compensation, loss=loss, tokens=at, octaves=octaves, exponent=fall.exponent,
        shared=fall.shared, limits=limits, members=found, statements=statements,
    )  # fmt: skip


# -- losses at the tokens asked for ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lengths:
    """Losses along tokens, a row for each run and budget."""

    run: Codes
    """Codes of runs [rows]."""
    member: Codes
    """Codes of models [rows]."""
    names: tuple[str, ...]
    """Of models."""
    seeds: Array
    tokens: Array
    losses: Array

    def first(self, values: NDArray[_Cell]) -> NDArray[_Cell]:
        """A value of each run [runs] from one of each row."""
        return values[np.unique(self.run, return_index=True)[1]]


def _lengths(part: Table, loss: str) -> _Lengths:
    if loss not in part:
        raise UserError(f"the table has no column {loss!r}")
    losses = numeric(part, loss)
    kept = np.isfinite(losses)
    labels = np.array(_names(part))[kept]
    names, member = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise UserError(
            "these runs are all of one model: `umscale plan` without --across chooses its dimensions"
        )
    run = np.unique(
        [f"{a}\n{b}" for a, b in zip(labels, text(part, "run_id")[kept], strict=True)], return_inverse=True
    )[1]
    return _Lengths(
        run=run, member=member, names=tuple(names.tolist()), seeds=numeric(part, "seed")[kept],
        tokens=numeric(part, "budget")[kept], losses=losses[kept],
    )  # fmt: skip


def _names(part: Table) -> list[str]:
    labels = text(part, "label") if "label" in part else np.full(len(part["run_id"]), "")
    named = [
        " ".join(p.removeprefix("architecture=") for p in cell_parts(label, _AXES) if "=" in p)
        for label in labels
    ]
    return [name or own for name, own in zip(named, text(part, "architecture"), strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fall:
    """How losses fall with tokens."""

    losses: Array
    """Of each run at the tokens asked for [runs]."""
    exponent: float
    shared: bool
    several: bool
    """Runs have several budgets, so that something falls."""


def _fall(lengths: _Lengths, at: float) -> _Fall:
    """Every run's loss at ``at`` tokens: its own mean, moved along the slope from the mean of its budgets."""
    several = len(set(lengths.tokens.tolist())) > 1
    means = _run_means(lengths, lengths.losses)
    if not several:
        return _Fall(losses=means, exponent=0.0, shared=True, several=False)
    exponents = _EXPONENTS if len(set(lengths.tokens.tolist())) > 2 else _EXPONENTS[:1]
    shared = min((_sloped(lengths, b) for b in exponents), key=lambda fit: fit.squares)
    differ = _needs_own(lengths, shared, _sloped(lengths, shared.exponent, lengths.member))
    # Each run's own slope rather than its kind's, so that the spread between seeds holds the error of slopes too.
    slopes = _sloped(lengths, shared.exponent, lengths.run).slopes if differ else shared.slopes
    moved = _along(np.array([at]), shared.exponent)[0] - _run_means(
        lengths, _along(lengths.tokens, shared.exponent)
    )
    return _Fall(losses=means - slopes * moved, exponent=shared.exponent, shared=not differ, several=True)


def _along(tokens: Array, exponent: float) -> Array:
    """x(D), growing with D."""
    logs = np.log(tokens)
    return logs if exponent == 0 else -np.expm1(-exponent * logs) / exponent


def _run_means(lengths: _Lengths, values: Array) -> Array:
    return np.bincount(lengths.run, weights=values) / np.bincount(lengths.run)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sloped:
    exponent: float
    slopes: Array
    """[groups]"""
    squares: float


def _sloped(lengths: _Lengths, exponent: float, group: Codes | None = None) -> _Sloped:
    """Least squares of losses against −x, each run with a level of its own, each group [rows] with a slope."""
    x = _along(lengths.tokens, exponent)
    x = x - _run_means(lengths, x)[lengths.run]
    y = lengths.losses - _run_means(lengths, lengths.losses)[lengths.run]
    group = np.zeros(len(x), dtype=np.int64) if group is None else group
    squares = np.bincount(group, weights=x * x)
    products = np.bincount(group, weights=x * y)
    slopes = -np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)
    left = y + slopes[group] * x
    return _Sloped(exponent=exponent, slopes=slopes, squares=float(left @ left))


def _needs_own(lengths: _Lengths, shared: _Sloped, own: _Sloped) -> bool:
    """Whether one slope for all is rejected by what is left within runs."""
    from umscale.laws.special import fdtrc

    extra = len(own.slopes) - 1
    freedom = len(lengths.losses) - len(set(lengths.run.tolist())) - len(own.slopes)
    if freedom < 1 or extra < 1 or own.squares <= 0:
        return False
    ratio = (shared.squares - own.squares) / extra / (own.squares / freedom)
    return bool(fdtrc(extra, freedom, max(ratio, 0.0)) < _OWN_SLOPES)


# -- members --------------------------------------------------------------------------------------------------


def _models(part: Table, models: Mapping[str, ModelSpec]) -> dict[str, ModelSpec]:
    """Name → its model; raises ``UserError`` for runs whose models are not known here."""
    found: dict[str, ModelSpec] = {}
    for name, run_id in zip(_names(part), text(part, "run_id"), strict=True):
        if run_id not in models:
            raise UserError(
                f"run {run_id} says nothing of its model: a plan across kinds needs umscale's own records"
            )
        found.setdefault(name, models[run_id])
    return found


def _members(
    lengths: _Lengths, losses: Array, models: Mapping[str, ModelSpec], limits: Limits, context: int
) -> tuple[Member, ...]:
    member, seeds = lengths.first(lengths.member), lengths.first(lengths.seeds)
    names = np.array(lengths.names)[member]
    noise, freedom = block_noise(names, seeds, losses)
    pooled = (noise, freedom) if equal_spread(names, losses) else None
    counted = {name: cost(models[name], context) for name in lengths.names}
    usage = {name: limits.usage(models[name], counted[name], context) for name in lengths.names}
    bounds = limits.bounds()
    breaks = {n: tuple(b for b, limit in bounds.items() if usage[n][b] > limit) for n in lengths.names}
    means = {name: float(losses[names == name].mean()) for name in lengths.names}
    order = sorted(lengths.names, key=lambda name: (bool(breaks[name]), means[name]))
    if breaks[order[0]]:
        least = min(order, key=lambda name: max(usage[name][b] / bounds[b] for b in breaks[name]))
        over = ", ".join(
            f"{RESOURCES[b]} {amount(b, usage[least][b])} of {amount(b, bounds[b])}" for b in breaks[least]
        )
        raise UserError(f"no model that was measured keeps the limits; the nearest is {least}: {over}")
    return tuple(
        Member(
            name=name,
            kind=kind_of(models[name]),
            model=models[name],
            cost=counted[name],
            usage=usage[name],
            breaks=breaks[name],
            n_runs=int((names == name).sum()),
            loss=_mean(means[name], int((names == name).sum()), noise, freedom),
            behind=None
            if name == order[0]
            else paired_difference(names, seeds, losses, name, order[0], pooled),
        )
        for name in order
    )


def kind_of(model: ModelSpec) -> str:
    """Which kinds of parameters a model has beside its dense ones, in words."""
    kinds = []
    if model.ffn.kind == "moe":
        kinds.append("mixture")
    if model.memory is not None:
        kinds.append("product-key")
    if model.ngram is not None:
        kinds.append("n-gram")
    return " + ".join(kinds) or "dense"


def _mean(value: float, n: int, noise: float, freedom: int) -> Estimate:
    from umscale.laws.special import stdtrit

    half = float(stdtrit(freedom, 0.975)) * noise / n**0.5 if freedom else float("nan")
    return Estimate(value=value, low=value - half, high=value + half)


# -- words ----------------------------------------------------------------------------------------------------


def _negative(estimate: Estimate) -> Estimate:
    return Estimate(value=-estimate.value, low=-estimate.high, high=-estimate.low)


def _statements(
    lengths: _Lengths, fall: _Fall, members: Sequence[Member], limits: Limits, octaves: float
) -> Iterator[str]:
    best, others = members[0], [one for one in members[1:] if not one.breaks]
    tied = [o for o in others if o.behind is None or not (o.behind.has_interval and o.behind.low > 0)]
    if tied:
        names = ", ".join(one.name for one in tied)
        resource = next(iter(limits.bounds()), "memory_access_bytes")
        least = min((best, *tied), key=lambda one: one.usage[resource])
        yield (
            f"{names} cannot be told from {best.name}; of these {least.name} takes the least "
            f"{RESOURCES[resource]}, {amount(resource, least.usage[resource])}"
        )
    elif others and others[0].behind is not None:
        yield f"{best.name} is ahead of {others[0].name}, the next, by {both(others[0].behind)} nats"
    for one in members:
        if one.breaks and one.behind is not None and one.behind.high < 0:
            yield f"the limits cost {both(_negative(one.behind))} nats: {one.name}, which breaks one, is that far ahead"
            break
    yield from _along_tokens(lengths, fall, octaves)
    yield (
        "each model is taken as it was measured: `umscale plan` without --across chooses dimensions of one kind, "
        "where a study varied them"
    )


def _along_tokens(lengths: _Lengths, fall: _Fall, octaves: float) -> Iterator[str]:
    if not fall.several:
        yield (
            f"all runs end at {count(lengths.tokens[0])} tokens, and their losses are those there: how the order moves "
            "as training lengthens is not known"
        )
        return
    budgets = len(set(lengths.tokens.tolist()))
    form = "the logarithm of tokens" if fall.exponent == 0 else f"tokens to the power −{fall.exponent:.3g}"
    slope = (
        "one slope for all, which the runs do not reject, so the order is the same at any length"
        if fall.shared
        else "slopes of their own, since one for all is rejected"
    )
    yield sentence(f"losses fall with {form} over {budgets} budgets, with {slope}")
    if octaves:
        side = "beyond" if octaves > 0 else "below"
        yield f"the tokens asked for lie {abs(octaves):.1f} octaves {side} the budgets trained"
