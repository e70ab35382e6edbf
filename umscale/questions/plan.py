"""Which configuration to train: real dimensions within limits on size, compute and memory access, by a fitted law.

Every candidate is a model whose dimensions come from the solver of the sweep (``umscale.design.axes.solve``). What is
chosen depends on the base model's kind: of a memory layer a ``top_m``, the largest ``n_keys`` that the limits allow
with it and octaves of N_s below that; of a mixture ``top_k`` and ``n_experts`` likewise; of a dense model its layers
and its width. The FFN's width follows the compensation, and any further dimension the caller lets vary. A law is asked
only of kinds of models that its rows had. The law ranks them; where it is silent (a dimension it does not read),
equals are ranked by FLOPs. A prediction carries its interval and how many octaves each axis lies outside what was
measured. A local law is a tangent plane: its differences reach further than its losses.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from umscale.accounting import Cost, cost, memory_access_bytes
from umscale.design.axes import COMPENSATIONS, Infeasible, solve
from umscale.errors import UserError, nearest
from umscale.hardware import BYTES, Hardware, Placement, decode_time
from umscale.laws.compare import compare, fit_laws
from umscale.laws.fit import FitResult, fit_law
from umscale.laws.forms import FIRST_LAWS, LocalLaw, evaluate
from umscale.laws.uncertainty import Estimate, Uncertainty, bootstrap
from umscale.questions.token_trend import TURN_LAW, TokenTrend, token_trend
from umscale.results.columns import COLUMNS, Array
from umscale.results.table import Table, levels, numeric, where
from umscale.say.blocks import Block, Bullets, Grid, noted
from umscale.say.estimates import both
from umscale.say.laws import estimate_text
from umscale.say.numbers import count, number
from umscale.spec import ModelSpec, to_dict

VARIABLE = ("d_key", "d_pre_value", "d_value", "d_ffn")
"""Dimensions that may vary beside ``n_keys`` and ``top_m``."""

MAX_OCTAVES = 1.0
"""Extrapolation that a recommendation takes without being asked."""
FOR_NULL = "additive"
"""The law that ranks where the null law, which cannot, is the one recommended."""

RESOURCES = {
    "total_params": "total parameters",
    "active_params": "active parameters",
    "active_flops": "FLOPs per token",
    "memory_access_bytes": "memory access",
    "device_bytes": "device memory",
    "host_bytes": "host memory",
    "seconds_per_token": "decoding time",
}
_SIZES = ("total_params", "device_bytes")
"""Limits that keep the number of sparse parameters finite."""
_USES = ("active_params", "active_flops", "memory_access_bytes", "seconds_per_token")
"""Limits that keep finite how many of them a token reads."""
_DEPTHS = (0.5, 0.75, 1.0, 1.5, 2.0)  # of a dense base's layers
_FACTORS = (0.5, 0.5**0.5, 1.0, 2**0.5, 2.0)  # of the base model's, for dimensions that vary
_MOST_KEYS = 2**20
_RUNNERS_UP = 4
_NEAR = 0.05  # octaves outside the rows' tokens that are not worth a word
_FAR = 2.0  # octaves outside the grid beyond which a local law's losses are not to be believed
_FIXED = (
    "d_model", "n_layers", "d_ffn", "d_key", "d_pre_value", "d_value", "density", "flops_per_token",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a configuration may cost; None is no limit."""

    total_params: float | None = None
    """Without embeddings."""
    active_params: float | None = None
    """That one token reads, without embeddings."""
    active_flops: float | None = None
    """Forward FLOPs per token, head included."""
    memory_access_bytes: float | None = None
    """Weight bytes that one decoding step reads in FFN and memory layers, ``umscale.accounting``."""
    device_bytes: float | None = None
    """Of bf16 weights that lie in device memory: all, embeddings too, but the rows of tables on the host."""
    host_bytes: float | None = None
    """Of bf16 weights that lie in host memory: token-addressed tables, with ``tables = "host"``."""
    seconds_per_token: float | None = None
    """Of decoding ``batch`` sequences together on ``hardware``, by its roofline."""
    batch: int = 16
    """Tokens decoded together in a step."""
    hardware: Hardware | None = None
    """What decodes; ``seconds_per_token`` needs one."""
    tables: Placement = "device"
    """Where token-addressed tables lie."""

    def bounds(self) -> dict[str, float]:
        """Limits that there are, by name."""
        given = {name: getattr(self, name) for name in RESOURCES}
        return {name: float(limit) for name, limit in given.items() if limit is not None}

    def relaxed(self, name: str, limit: float) -> "Limits":
        """These limits with one of ``bounds`` changed."""
        changed: dict[str, Any] = {name: limit}
        return dataclasses.replace(self, **changed)

    def usage(self, model: ModelSpec, sizes: Cost, context: int) -> dict[str, float]:
        """What a model takes of every resource, limited or not; decoding time where there is hardware.

        ``sizes`` is the model's ``cost``; ``context`` the tokens behind each sequence that is decoded.
        """
        on_host = BYTES * sizes.ngram_params if self.tables == "host" else 0.0
        used = {
            "total_params": float(sizes.total_params),
            "active_params": float(sizes.active_params),
            "active_flops": sizes.flops_per_token,
            "memory_access_bytes": memory_access_bytes(model, self.batch),
            "device_bytes": BYTES * sizes.total_params_with_embedding - on_host,
            "host_bytes": on_host,
        }
        if self.hardware is not None:
            step = decode_time(model, self.hardware, self.batch, context, self.tables)
            used["seconds_per_token"] = step.seconds / self.batch
        return used


def check_limits(limits: Limits) -> None:
    """Raise ``UserError`` for a limit that is no positive number, and for a time without hardware."""
    for name, limit in limits.bounds().items():
        if not limit > 0:
            raise UserError(f"the limit on {name} must be positive, not {limit:g}")
    if limits.batch < 1:
        raise UserError(f"a batch of {limits.batch} tokens: it must be at least 1")
    if limits.seconds_per_token is not None and limits.hardware is None:
        raise UserError("a limit on decoding time needs hardware: say which with --hardware")


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A model within the limits, and what the law expects of it."""

    model: ModelSpec
    cost: Cost
    memory_access_bytes: float
    used: Mapping[str, float]
    """Constraint → share of its limit."""
    loss: Estimate
    """Predicted, nats per token."""
    behind: Estimate
    """Predicted loss minus that of the recommended configuration."""
    extrapolation: Mapping[str, float]
    """Column of the law → octaves beyond what was measured: above it positive, below it negative, within it 0."""

    @property
    def dimensions(self) -> dict[str, int]:
        """The numbers to build it with, those that were chosen first."""
        model = self.model
        if model.memory is not None:
            of_memory = ("n_keys", "top_m", "d_key", "d_pre_value", "d_value", "heads")
            return {n: getattr(model.memory, n) for n in of_memory} | {"d_ffn": model.ffn.d_ffn}
        if model.ffn.kind == "moe":
            of_experts = ("n_experts", "top_k", "n_shared_experts", "d_ffn")
            return {n: getattr(model.ffn, n) for n in of_experts} | {"d_model": model.d_model}
        own = {n: getattr(model, n) for n in ("d_model", "n_layers", "n_heads")}
        return own | {"d_ffn": model.ffn.d_ffn}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What twice as much of one resource would buy."""

    constraint: str
    limit: float
    change: Estimate
    """Predicted loss of the best configuration with twice the limit, minus the recommended one's."""
    dimensions: Mapping[str, int]
    """Of that configuration."""


def amount(resource: str, value: float) -> str:
    """An amount of a resource of ``Limits`` with its unit."""
    if resource == "seconds_per_token":
        return f"{value * 1e6:.3g} µs"
    # 8e9 parameters are 8B, as many bytes 8GB.
    return f"{count(value).replace('B', 'G')}B" if resource.endswith("_bytes") else count(value)


def _sensitivity_words(one: Sensitivity) -> str:
    twice = f"twice the {RESOURCES[one.constraint]} ({amount(one.constraint, 2 * one.limit)})"
    if one.change.value == 0:
        return f"{twice}: nothing gained"
    dimensions = [f"{name} {value}" for name, value in list(one.dimensions.items())[:2]]
    return f"{twice}: loss {estimate_text(one.change)}, {', '.join(dimensions)}"


def ends(estimate: Estimate, sign: str = "") -> str:
    """The ends of an interval in four decimals, or none."""
    return f"[{estimate.low:{sign}.4f}, {estimate.high:{sign}.4f}]" if estimate.has_interval else "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recommendation with its alternatives and its doubts."""

    law: str
    stage: str | None
    compensation: str
    loss: str
    tokens: float | None
    limits: Limits
    n_considered: int
    recommended: Configuration
    runners_up: tuple[Configuration, ...]
    """The best of every other ``top_m`` (``top_k``, number of layers), in order."""
    sensitivities: tuple[Sensitivity, ...]
    reads: Mapping[str, str]
    """Symbol of the law → what of a model is put there."""
    outside: Mapping[str, float]
    """Dimensions the law does not read → octaves between the recommendation and the range measured."""
    statements: tuple[str, ...]

    def blocks(self) -> list[Block]:
        """The recommendation beside the runners-up, what each limit costs, and the doubts."""
        shown = (self.recommended, *self.runners_up)
        others = [f"runner-up {i}" for i in range(1, len(shown))]
        counted = f"{self.n_considered} configurations considered, FFN sized by {self.compensation}"
        return [
            Grid(
                caption="",
                head=("", "recommended", *others),
                sides="l" + "r" * len(shown),
                rows=tuple(self._rows(shown)),
            ),
            Bullets(items=(*map(_sensitivity_words, self.sensitivities), counted)),
            *noted(self.statements),
        ]

    def _rows(self, shown: Sequence[Configuration]) -> Iterator[tuple[str, ...]]:
        first, others = self.recommended, shown[1:]
        for name in first.dimensions:
            yield name, *(str(c.dimensions[name]) for c in shown)
        yield "total parameters", *(count(c.cost.total_params) for c in shown)
        yield "active parameters", *(count(c.cost.active_params) for c in shown)
        yield "FLOPs per token", *(count(c.cost.flops_per_token) for c in shown)
        yield f"bytes read, batch {self.limits.batch}", *(count(c.memory_access_bytes) for c in shown)
        if first.model.memory is not None:
            yield "MCP", *(f"{c.cost.mcp:.1%}" for c in shown)
        for name in first.used:
            yield f"  of the limit on {RESOURCES[name]}", *(f"{c.used[name]:.0%}" for c in shown)
        yield "predicted loss, nats", *(number(c.loss.value) for c in shown)
        yield "  95% interval", *(ends(c.loss) for c in shown)
        yield "behind the recommended", "", *(f"{c.behind.value:+.4f}" for c in others)
        yield "  95% interval", "", *(ends(c.behind, "+") for c in others)
        for column in first.extrapolation:
            yield f"octaves outside, {column}", *(f"{c.extrapolation[column]:+.1f}" for c in shown)

    def to_toml(self, study_tree: Mapping[str, Any]) -> str:
        """A study file that trains the recommended model once, with data and training of ``study_tree``."""
        from umscale.spec import to_toml

        axes: dict[str, Any] = {"seed": [0]}
        if self.tokens:
            axes["tokens"] = [int(self.tokens)]
        return to_toml(
            {
                "name": "plan",
                "description": f"Planned by law {self.law}: the recommended configuration.",
                "axes": axes,
                "model": to_dict(self.recommended.model),
                **{k: study_tree[k] for k in ("data", "train") if k in study_tree},
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """What a plan takes into account beside its limits."""

    tokens: float | None = None
    """Training tokens; None is the study's (geometric mean)."""
    law: "str | FitResult | None" = None
    """A name of ``forms.LAWS``, or a fit of the table's rows that was made before, whose stage, compensation and loss
    are then taken; None takes what ``compare`` recommends."""
    stage: str | None = None
    """None takes ``annealed`` where the table has it."""
    compensation: str | None = None
    """Of the runs that the law is fitted to; None takes the only one, or the first."""
    sizing: str | None = None
    """How the FFN's width follows (``COMPENSATIONS``); None is ``compensation``."""
    loss: str = "loss"
    vary: Sequence[str] = ()
    """Names of ``VARIABLE``, tried at factors of ½ to 2 of the base's."""
    max_octaves: float = MAX_OCTAVES
    """How far a recommendation may lie outside what was measured, on any axis of the law but tokens."""
    seq_len: int = 2048
    """Context of the attention scores."""
    seed: int = 0
    means: Mapping[str, str] = field(default_factory=dict)
    """Symbol of the law → what of a model it stands for, a name of ``umscale.accounting.Cost`` or of the model's
    parts; the default is that of a study's column, so N is active parameters without embeddings."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Symbol → what the table says it is, in words."""

    def on(self, table: Table) -> "Preferences":
        """The same with stage, compensation, loss and sizing filled in."""
        stages, modes = levels(table, "stage"), levels(table, "compensation")
        stage = self.stage or ("annealed" if "annealed" in stages else next(iter(stages), None))
        compensation, loss = self.compensation or next(iter(modes), None), self.loss
        if isinstance(self.law, FitResult):
            stage, compensation, loss = self.law.stage, self.law.compensation, self.law.loss
        sizing = self.sizing or compensation or "none"
        return dataclasses.replace(self, stage=stage, compensation=compensation, loss=loss, sizing=sizing)


def plan(table: Table, base: ModelSpec, limits: Limits, wanted: Preferences | None = None) -> Plan:
    """Recommend the configuration of least predicted loss.

    Args:
        table: a study's finished runs.
        base: what no axis varies; its FFN is the reference of ``Preferences.sizing``.

    Raises:
        UserError: limits that bound nothing or that no configuration meets, a law that cannot rank, or one whose rows
            had no model of the base's kind.
    """
    wanted = (wanted or Preferences()).on(table)
    _check(base, limits, wanted.vary, wanted.tokens)
    part = where(table, stage=wanted.stage, compensation=wanted.compensation)
    family = _family(base)
    trend = _trend(part, wanted.stage, wanted.loss) if family.kind == "memory" else None
    fit, reason = _fit(part, wanted.law, wanted.stage, wanted.loss, trend)
    _refuse_unknown_kinds(fit, part, family)
    reads = _reads(fit, wanted.means)
    sizing = wanted.sizing or "none"
    if sizing not in COMPENSATIONS:
        raise UserError(f"unknown compensation {sizing!r}{nearest(sizing, COMPENSATIONS)}")
    search = _Search(
        base=base,
        family=family,
        sizing=sizing,
        vary=tuple(wanted.vary),
        seq_len=wanted.seq_len,
        limits=limits,
        reads=reads,
    )
    at = wanted.tokens or fit.reference.get("D")
    found = _best(search, fit, limits, at, wanted.max_octaves)
    uncertainty = bootstrap(fit, seed=wanted.seed)
    best = found[0]
    described = [_describe(one, best, uncertainty, limits, at, reads) for one in (best, *_runners_up(found))]
    outside = _outside(part, fit, best, reads)
    return Plan(
        law=fit.law.name,
        stage=wanted.stage,
        compensation=sizing,
        loss=wanted.loss,
        tokens=wanted.tokens,
        limits=limits,
        n_considered=len(found),
        recommended=described[0],
        runners_up=tuple(described[1:]),
        sensitivities=tuple(_sensitivities(search, uncertainty, limits, best, at, wanted.max_octaves)),
        reads=reads,
        outside=outside,
        statements=(
            *_meanings(fit, reads, wanted.units, wanted.means),
            *_statements(fit, reason, described, outside, wanted, family),
            *_along_tokens(fit, trend, wanted.tokens),
        ),
    )


def _runners_up(found: "Sequence[_Candidate]") -> "list[_Candidate]":
    """The best of every other coarse dimension, in order."""
    per_coarse: dict[int, _Candidate] = {}
    for candidate in found:
        per_coarse.setdefault(candidate.coarse, candidate)
    return [one for one in per_coarse.values() if one is not found[0]][:_RUNNERS_UP]


def _sensitivities(
    search: "_Search",
    uncertainty: Uncertainty,
    limits: Limits,
    best: "_Candidate",
    at: float | None,
    max_octaves: float,
) -> Iterator[Sensitivity]:
    """What twice as much of each limited resource would buy."""
    for name, limit in limits.bounds().items():
        relaxed = limits.relaxed(name, 2 * limit)
        there = _best(search, uncertainty.fit, relaxed, at, max_octaves)[0]
        better = _describe(there, best, uncertainty, relaxed, at, search.reads)
        yield Sensitivity(constraint=name, limit=limit, change=better.behind, dimensions=better.dimensions)


def sized_model(
    base: ModelSpec,
    *,
    active_params: float,
    total_params: float,
    mcp: float | None = None,
    seq_len: int = 2048,
) -> ModelSpec:
    """``base`` with n_keys, d_ffn and (for ``mcp``) d_key solved for its parameters, embeddings left out.

    Raises:
        UserError: no whole-number dimensions come within 1%.
    """
    if base.memory is None:
        raise UserError("a memory layer is what is sized: give the model one")
    dense = dataclasses.replace(base, memory=None, ffn=dataclasses.replace(base.ffn, d_ffn=1))
    per_width = 3 * base.d_model * base.n_layers
    d_ffn = round(1 + (active_params - cost(dense).active_params) / per_width)
    if d_ffn < 1:
        raise UserError(f"{active_params:.3g} active parameters are fewer than the attention layers have")
    reference = dataclasses.replace(dense, ffn=dataclasses.replace(base.ffn, d_ffn=d_ffn))

    def sized(d_key: int) -> ModelSpec:
        targets = {"total_params": total_params, "d_key": d_key}
        return solve(base, targets, "iso_active", seq_len, reference=reference).model

    try:
        if mcp is None:
            return sized(base.memory.d_key)
        low, high = 1, 2
        while cost(sized(high)).mcp < mcp:
            low, high = high, 2 * high
        while high - low > 1:  # the share grows with the key width
            middle = (low + high) // 2
            low, high = (middle, high) if cost(sized(middle)).mcp < mcp else (low, middle)
        return min((sized(low), sized(high)), key=lambda model: abs(cost(model).mcp - mcp))
    except Infeasible as error:
        raise UserError(f"no such model: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    model: ModelSpec
    cost: Cost
    usage: Mapping[str, float]
    """Of each limit of ``Limits``."""
    coarse: int
    """``top_m``, ``top_k`` or the number of layers."""
    loss: float = float("nan")

    def within(self, limits: Limits) -> bool:
        return all(self.usage[name] <= limit for name, limit in limits.bounds().items())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """A kind of models, and which two of their dimensions are chosen: a coarse one on a ladder, a fine one within
    it.
    """

    kind: str
    coarse: str
    fine: str
    unit: int
    """What the fine one is a multiple of."""
    variable: tuple[str, ...]

    def rungs(self, base: ModelSpec) -> Iterator[int]:
        """Values of the coarse dimension, ascending."""
        if self.kind != "dense":
            yield from _round_numbers()
            return
        yield from sorted({max(1, round(base.n_layers * share)) for share in _DEPTHS})

    def least(self, coarse: int) -> int:
        """The least fine value beside a coarse one, in units."""
        return {"memory": int(np.ceil(np.sqrt(coarse))), "mixture": coarse}.get(self.kind, 1)


def _family(base: ModelSpec) -> _Family:
    if base.memory is not None:
        return _Family(kind="memory", coarse="top_m", fine="n_keys", unit=1, variable=VARIABLE)
    if base.ffn.kind == "moe":
        return _Family(kind="mixture", coarse="top_k", fine="n_experts", unit=1, variable=("d_ffn",))
    unit = base.d_model // base.n_heads
    return _Family(kind="dense", coarse="n_layers", fine="d_model", unit=unit, variable=("d_ffn",))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """The models to choose from, limits aside; those looked at are kept, since limits differ and models do not."""

    base: ModelSpec
    family: _Family
    reads: Mapping[str, str]
    sizing: str
    vary: tuple[str, ...]
    seq_len: int
    limits: Limits
    """Of which only where and how the model runs matters here, which relaxing a limit leaves as it is."""
    seen: dict[tuple[int, ...], _Candidate | None] = field(default_factory=dict)

    def model(self, coarse: int, fine: int, others: Mapping[str, int]) -> _Candidate | None:
        """One configuration, the fine dimension in units; None where its dimensions cannot be."""
        key = (coarse, fine, *others.values())
        if key not in self.seen:
            chosen = {self.family.coarse: coarse, self.family.fine: fine * self.family.unit}
            self.seen[key] = self._solved({**chosen, **others})
        return self.seen[key]

    def _solved(self, targets: Mapping[str, int]) -> _Candidate | None:
        # A dense model has nothing that its FFN could make room for.
        sizing = "none" if self.family.kind == "dense" else self.sizing
        try:
            solved = solve(self.base, targets, sizing, self.seq_len)
        except (Infeasible, UserError):
            return None
        usage = self.limits.usage(solved.model, solved.cost, self.seq_len)
        coarse = targets[self.family.coarse]
        return _Candidate(model=solved.model, cost=solved.cost, usage=usage, coarse=coarse)

    def variations(self) -> Iterator[dict[str, int]]:
        """Values of the dimensions that vary, the base's among them."""
        memory = self.base.memory
        choices = []
        for name in self.vary:
            value = self.base.ffn.d_ffn if name == "d_ffn" else getattr(memory, name)
            unit = memory.n_cores if name == "d_value" and memory is not None else 1
            choices.append(sorted({max(1, round(value * f / unit)) * unit for f in _FACTORS}))
        for values in itertools.product(*choices):
            yield dict(zip(self.vary, values, strict=True))


def _check(base: ModelSpec, limits: Limits, vary: Sequence[str], tokens: float | None) -> None:
    family = _family(base)
    bounds = limits.bounds()
    finite = any(name in bounds for name in _SIZES) and any(name in bounds for name in _USES)
    if family.kind != "dense" and not finite:
        raise UserError(
            "limit the total parameters or device memory, and one of active parameters, FLOPs, memory access and "
            f"decoding time: nothing else keeps {family.fine} and {family.coarse} finite"
        )
    if not bounds:
        raise UserError("limit the total parameters, the FLOPs or the memory access")
    check_limits(limits)
    if tokens is not None and not tokens > 0:
        raise UserError(f"{tokens:g} training tokens: there must be some")
    for name in vary:
        if name not in family.variable:
            raise UserError(f"cannot vary {name!r} of a {family.kind} model{nearest(name, family.variable)}")


def _trend(table: Table, stage: str | None, loss: str) -> TokenTrend | None:
    """How what density and size buy changes with tokens; None where the rows cannot say."""
    try:
        return token_trend(table, stage=stage, loss=loss)
    except UserError:
        return None


def _fit(
    table: Table, law: str | FitResult | None, stage: str | None, loss: str, trend: TokenTrend | None
) -> tuple[FitResult, str]:
    """The fit that ranks, and why that law: one that knows of tokens where both effects change with them."""
    if isinstance(law, FitResult):
        fit, reason = law, "as fitted before"
    elif law is not None:
        fit, reason = fit_law(table, law, stage=stage, loss=loss), "as asked"
    elif trend is not None and trend.direction:
        fit, reason = (
            fit_law(table, TURN_LAW, stage=stage, loss=loss),
            "what density and size buy changes with tokens",
        )
    else:
        fits = fit_laws(table, FIRST_LAWS, stage=stage, loss=loss)
        compared = compare(fits)
        name, reason = compared.recommended, compared.reason
        if name == "null":
            name, reason = FOR_NULL, "the null law predicts best on this study, and it cannot rank anything"
        fit = next(f for f in fits if f.law.name == name)
    if not set(fit.law.symbols) - {"D"}:
        raise UserError(
            f"law {fit.law.name!r} as fitted reads no axis but tokens: it cannot rank configurations"
        )
    return fit, reason


def _along_tokens(fit: FitResult, trend: TokenTrend | None, tokens: float | None) -> Iterator[str]:
    """Where along tokens the ranking holds, how far that is from what was trained, and where it would turn."""
    if "D" not in fit.domain:
        return
    low, high = fit.domain["D"]
    trained = (
        f"{count(low)} to {count(high)} tokens of the rows"
        if low < high
        else f"{count(high)} tokens of the rows"
    )
    octaves = 0.0 if tokens is None else float(_octaves_outside(np.array([tokens]), (low, high))[0])
    products = isinstance(fit.law, LocalLaw) and any(
        "D" in s.symbols and len(s.symbols) > 1 for s in fit.law.slopes
    )
    if tokens is None and low < high:
        yield f"read at {count(fit.reference['D'])} tokens, the centre of the {trained}; --tokens asks for others"
    elif tokens is not None and abs(octaves) > _NEAR:
        side = "beyond" if octaves > 0 else "below"
        known = (
            "its trend is a line in log tokens there, extrapolated"
            if products
            else f"law {fit.law.name} ranks there as it does within them, which nothing measured says"
        )
        yield f"{count(tokens)} tokens lie {abs(octaves):.1f} octaves {side} the {trained}: {known}"
    if trend is None or not trend.direction or trend.difference is None:
        return
    said = (
        f"what density buys over size {trend.direction} with tokens, by {both(trend.difference)} nats per doubling "
        "within runs"
    )
    if trend.turn.reached != "not reached":
        there = f", {trend.turn.octaves_beyond:.1f} octaves outside them" if trend.turn.octaves_beyond else ""
        said += f", and is nothing at about {count(trend.turn.tokens.value)} tokens{there}"
    yield said if products else f"{said}: law {fit.law.name} does not know it"


def _best(
    search: _Search, fit: FitResult, limits: Limits, tokens: float | None, max_octaves: float
) -> list[_Candidate]:
    """Every configuration considered within the limits, least predicted loss first, then fewest FLOPs."""
    for others in search.variations():
        for coarse in search.family.rungs(search.base):
            largest = _largest(search, coarse, others, limits)
            if largest is None:  # more values only cost more
                break
            for fine in _below(largest):
                if fine >= search.family.least(coarse):
                    search.model(coarse, fine, others)
    # All that was looked at, also under other limits: relaxing a limit can then only help.
    found = [c for c in search.seen.values() if c is not None and c.within(limits)]
    if not found:
        raise UserError(f"no configuration meets the limits: {_smallest(search, limits)}")
    values = _values(search.reads, found, tokens)
    octaves = [np.abs(_octaves_outside(v, fit.domain[s])) for s, v in values.items() if s != "D"]
    farthest = np.max(octaves, axis=0)
    if not (farthest <= max_octaves).any():
        raise UserError(
            f"every configuration within the limits lies {farthest.min():.1f} octaves or more outside what was "
            f"measured; allow --max-octaves {np.ceil(farthest.min()):.0f}, or sweep a study nearer to it"
        )
    losses = evaluate(fit.law, fit.vector, values, fit.reference)
    near = [
        dataclasses.replace(c, loss=float(x))
        for c, x, far in zip(found, losses, farthest, strict=True)
        if far <= max_octaves
    ]
    return sorted(near, key=lambda c: (round(c.loss, 9), c.cost.flops_per_token))


def _round_numbers() -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, ...: two values of top_m an octave."""
    yield 1
    for k in range(1, 24):
        yield 2**k
        yield 3 * 2 ** (k - 1)


def _below(largest: int) -> set[int]:
    """The fine dimension up to ``largest``, four an octave (of ``n_keys``: N_s two an octave)."""
    return {round(2 ** (k / 4)) for k in range(81) if 2 ** (k / 4) < largest}


def _largest(search: _Search, coarse: int, others: Mapping[str, int], limits: Limits) -> int | None:
    """The largest fine dimension within the limits, in units, by bisection: every cost grows with it."""

    def fits(fine: int) -> bool:
        candidate = search.model(coarse, fine, others)
        return candidate is not None and candidate.within(limits)

    low = _first(search, coarse, others)
    if not fits(low):
        return None
    high = low
    while fits(high) and high < _MOST_KEYS:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _first(search: _Search, coarse: int, others: Mapping[str, int]) -> int:
    """The least fine dimension, by doublings, at which a model can be built: more keys than are preselected, say."""
    fine = search.family.least(coarse)
    while fine < _MOST_KEYS and search.model(coarse, fine, others) is None:
        fine *= 2
    return fine


def _smallest(search: _Search, limits: Limits) -> str:
    """What the smallest memory would take of the limits that it exceeds."""
    coarse = next(search.family.rungs(search.base))
    candidate = search.model(coarse, _first(search, coarse, {}), {})
    if candidate is None:
        return f"the base model cannot be sized by {search.sizing}"
    over = [
        f"{name.replace('_', ' ')} {candidate.usage[name]:.3g} of {limit:.3g}"
        for name, limit in limits.bounds().items()
        if candidate.usage[name] > limit
    ]
    return f"the smallest already takes {', '.join(over)}; choose a smaller model"


def _values(
    reads: Mapping[str, str], candidates: Sequence[_Candidate], tokens: float | None
) -> dict[str, Array]:
    """Symbol of the law → [candidates]."""
    return {
        symbol: np.array([_column(name, c, tokens) for c in candidates]) for symbol, name in reads.items()
    }


def _reads(fit: FitResult, means: Mapping[str, str]) -> dict[str, str]:
    """Symbol of the law → what of a model is put there: as told, else a study's column, else the column's own name."""
    for symbol in means:
        if symbol not in fit.law.symbols:
            raise UserError(
                f"law {fit.law.name!r} as fitted does not read {symbol!r}{nearest(symbol, fit.law.symbols)}"
            )
    return {s: means.get(s, COLUMNS.get(s, fit.columns[s])) for s in fit.law.symbols}


def _refuse_unknown_kinds(fit: FitResult, table: Table, family: _Family) -> None:
    """Raise ``UserError`` where the rows had no model of the family's kind, or the law cannot tell them apart."""
    read = set(fit.law.symbols)
    have_memory = "m" in read or _has(table, fit, "m")
    have_experts = "experts" in read or _has(table, fit, "experts")
    sparse = bool(read & {"N_s", "rho"})
    rows = f"law {fit.law.name!r} reads {', '.join(sorted(read))}, and"
    if family.kind == "memory" and not (have_memory or (sparse and not have_experts)):
        raise UserError(
            f"{rows} its rows have no memory layers (no top_m, no sparse parameters of theirs): it cannot rank "
            "them; plan a "
            f"{'mixture' if have_experts else 'dense model'} with a --model that has no [model.memory]"
        )
    if family.kind == "mixture" and not ("experts" in read or (sparse and not have_memory)):
        raise UserError(
            f"{rows} it does not tell mixtures of experts apart: that takes one of experts, N_s or rho, fitted to "
            "rows of "
            "mixtures"
        )
    if family.kind == "dense" and (sparse or "m" in read or "r" in read):
        raise UserError(
            f"{rows} a dense model has none of some of them: plan a --model with [model.memory] or experts"
        )
    if family.kind == "dense" and have_memory and "experts" not in read:
        raise UserError(f"{rows} its rows have memory layers, so its N is not that of a dense model")


def _has(table: Table, fit: FitResult, symbol: str) -> bool:
    """Whether the rows fitted say of a symbol's column that they have it, more than one expert where it is that."""
    name = fit.columns.get(symbol, COLUMNS[symbol])
    if name not in table:
        return False
    cells = numeric(table, name)[fit.rows.index]
    return bool((cells[np.isfinite(cells)] > (1 if symbol == "experts" else 0)).any())


_MEANINGS = {
    "active_params": "parameters that one token reads, without embeddings",
    "active_params_with_embedding": "parameters that one token reads, with embeddings",
    "total_params": "all parameters, without embeddings",
    "total_params_with_embedding": "all parameters, with embeddings",
    "sparse_params": "rows of value tables and routed experts",
    "density": "active over all sparse parameters",
}


def _meanings(
    fit: FitResult, reads: Mapping[str, str], units: Mapping[str, str], means: Mapping[str, str]
) -> Iterator[str]:
    """What is put for each size of the law, and what the table said it is."""
    for symbol, name in reads.items():
        if name not in _MEANINGS or (symbol != "N" and fit.columns[symbol] == name):
            continue
        said = f"the rows say: {units[symbol]}" if symbol in units else "the rows do not say what it counts"
        hint = "" if symbol in means else f" (--means {symbol}=total_params_with_embedding, say)"
        yield (
            f"{symbol} of the law is {fit.columns[symbol]}; of a model {name} is put there, {_MEANINGS[name]}; "
            f"{said}{hint}"
        )


def _column(name: str, candidate: _Candidate, tokens: float | None) -> float:
    """What a record of this model would hold in column ``name``."""
    if name == "tokens" and tokens is not None:
        return float(tokens)
    for part in (candidate.cost, candidate.model.memory, candidate.model.ffn, candidate.model):
        if hasattr(part, name):
            return float(getattr(part, name))
    raise UserError(
        f"the law reads {name!r}, which no model that is not trained yet has; say --means SYMBOL=QUANTITY"
    )


def _describe(
    candidate: _Candidate,
    best: _Candidate,
    uncertainty: Uncertainty,
    limits: Limits,
    tokens: float | None,
    reads: Mapping[str, str],
) -> Configuration:
    fit = uncertainty.fit
    values = _values(reads, [candidate, best], tokens)

    def predicted(c: Array) -> Array:
        return evaluate(fit.law, c, values, fit.reference)

    return Configuration(
        model=candidate.model,
        cost=candidate.cost,
        memory_access_bytes=candidate.usage["memory_access_bytes"],
        used={name: candidate.usage[name] / limit for name, limit in limits.bounds().items()},
        loss=uncertainty.estimate(lambda c: predicted(c)[..., 0]),
        behind=uncertainty.estimate(lambda c: predicted(c)[..., 0] - predicted(c)[..., 1]),
        extrapolation={
            fit.columns[s]: float(_octaves_outside(v[:1], fit.domain[s])[0]) for s, v in values.items()
        },
    )


def _octaves_outside(values: Array, domain: tuple[float, float]) -> Array:
    """Octaves above (positive) or below (negative) a range, [values]; 0 within it."""
    return np.maximum(np.log2(values / domain[1]), 0.0) + np.minimum(np.log2(values / domain[0]), 0.0)


def _outside(table: Table, fit: FitResult, best: _Candidate, reads: Mapping[str, str]) -> dict[str, float]:
    """Octaves from the measured range, of dimensions that the law does not read."""
    read = set(reads.values())
    out = {}
    for name in _FIXED:
        if name in table and name not in read:
            known = numeric(table, name)[fit.rows.index]
            known = known[np.isfinite(known) & (known > 0)]
            value = _column(name, best, None) if _has_part(best.model, name) else 0.0
            if len(known) and value > 0:
                octaves = float(
                    _octaves_outside(np.array([value]), (float(known.min()), float(known.max())))[0]
                )
                if abs(octaves) > 0.01:
                    out[name] = octaves
    return out


def _has_part(model: ModelSpec, name: str) -> bool:
    """Whether a model has the layer that a dimension is of."""
    return model.memory is not None or name not in ("d_key", "d_pre_value", "d_value")


def _statements(
    fit: FitResult,
    reason: str,
    found: Sequence[Configuration],
    outside: Mapping[str, float],
    wanted: Preferences,
    family: _Family,
) -> tuple[str, ...]:
    best, measured = found[0], wanted.compensation or "none"
    said = [f"law {fit.law.name} ({reason})"]
    farthest = max((abs(v) for v in best.extrapolation.values()), default=0.0)
    if isinstance(fit.law, LocalLaw) and farthest > _FAR:
        said.append(
            f"a local law {farthest:.1f} octaves outside its grid: read the differences as a first guess, and do not "
            "believe the predicted loss"
        )
    if outside:
        names = ", ".join(f"{n} {v:+.1f}" for n, v in outside.items())
        said.append(f"the law does not read, and the study did not reach (octaves): {names}")
    tied = [c for c in found[1:] if not (c.behind.has_interval and c.behind.low > 0)]
    if tied:
        cheapest = min([best, *tied], key=lambda c: c.memory_access_bytes)
        also = (
            ""
            if cheapest is best
            else f"; of these {family.coarse} {cheapest.dimensions[family.coarse]} reads least memory"
        )
        said.append(
            f"{len(tied)} of the {len(found) - 1} runners-up cannot be told from the recommendation{also}"
        )
    if wanted.sizing != measured and family.kind != "dense":
        said.append(
            f"the law was measured with compensation {measured}: it does not know what {wanted.sizing} does to the FFN"
        )
    if family.kind == "dense":
        said.append("the law reads no shape: dense models of nearly one size differ by less than it knows")
    silent = [n for n in wanted.vary if n not in {fit.columns[s] for s in fit.law.symbols}]
    if silent:
        said.append(
            f"the law reads no {', '.join(silent)}: it ranks them only by what they leave for what it reads"
        )
    if wanted.tokens is not None and "D" not in fit.law.symbols:
        said.append("tokens did not vary in the study: the prediction is the same for any number of them")
    return tuple(said)


def to_json(found: Plan) -> dict[str, Any]:
    """The plan as plain data."""

    def configuration(one: Configuration) -> dict[str, Any]:
        return {
            "dimensions": one.dimensions,
            "model": to_dict(one.model),
            "total_params": one.cost.total_params,
            "active_params": one.cost.active_params,
            "sparse_params": one.cost.sparse_params,
            "flops_per_token": one.cost.flops_per_token,
            "mcp": one.cost.mcp,
            "memory_access_bytes": one.memory_access_bytes,
            "used": dict(one.used),
            "loss": dataclasses.asdict(one.loss),
            "behind": dataclasses.asdict(one.behind),
            "extrapolation_octaves": dict(one.extrapolation),
        }

    return {
        "law": found.law,
        "stage": found.stage,
        "compensation": found.compensation,
        "loss": found.loss,
        "tokens": found.tokens,
        "limits": found.limits.bounds() | {"batch": found.limits.batch},
        "considered": found.n_considered,
        "recommended": configuration(found.recommended),
        "runners_up": [configuration(one) for one in found.runners_up],
        "reads": dict(found.reads),
        "sensitivities": [dataclasses.asdict(one) for one in found.sensitivities],
        "outside_octaves": dict(found.outside),
        "statements": list(found.statements),
    }
