"""Which configuration to train: real dimensions within limits on size, compute and memory access, by a fitted law.

Every candidate is a model whose dimensions come from the solver of the sweep (``umscale.design.axes.solve``): a
``top_m``, the largest ``n_keys`` that the limits allow with it and octaves of N_s below that, the FFN's width as the
compensation wants it, and any further dimension the caller lets vary. The law ranks them; where it is silent (a
dimension it does not read), equals are ranked by FLOPs. A prediction carries its interval and how many octaves each
axis lies outside what was measured. A local law is a tangent plane: its differences reach further than its losses.
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
from umscale.laws.compare import compare, fit_laws
from umscale.laws.fit import FitResult, fit_law
from umscale.laws.forms import COLUMNS, FIRST_LAWS, Array, LocalLaw, evaluate
from umscale.laws.uncertainty import Estimate, Uncertainty, bootstrap
from umscale.results.table import Table, levels, numeric, where
from umscale.spec import ModelSpec, to_dict

VARIABLE = ("d_key", "d_pre_value", "d_value", "d_ffn")
"""Dimensions that may vary beside ``n_keys`` and ``top_m``."""

MAX_OCTAVES = 1.0
"""Extrapolation that a recommendation takes without being asked."""

_FACTORS = (0.5, 0.5**0.5, 1.0, 2**0.5, 2.0)  # of the base model's, for dimensions that vary
_MOST_KEYS = 2**20
_RUNNERS_UP = 4
_FAR = 2.0  # octaves outside the grid beyond which a local law's losses are not to be believed
_FIXED = (
    "d_model", "n_layers", "d_ffn", "d_key", "d_pre_value", "d_value", "density", "flops_per_token",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a configuration may cost; None is no limit."""

    total_params: float | None = None
    """Without embeddings."""
    active_flops: float | None = None
    """Forward FLOPs per token, head included."""
    memory_access_bytes: float | None = None
    """Weight bytes that one decoding step reads in FFN and memory layers, ``umscale.accounting``."""
    batch: int = 16
    """Tokens decoded together in that step."""

    def bounds(self) -> dict[str, float]:
        """Limits that there are, by name."""
        given = {
            name: getattr(self, name) for name in ("total_params", "active_flops", "memory_access_bytes")
        }
        return {name: float(limit) for name, limit in given.items() if limit is not None}

    def relaxed(self, name: str, limit: float) -> "Limits":
        """These limits with one of ``bounds`` changed."""
        return Limits(**{**self.bounds(), name: limit}, batch=self.batch)


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
        """The numbers to build it with."""
        assert self.model.memory is not None
        memory = self.model.memory
        names = ("n_keys", "top_m", "d_key", "d_pre_value", "d_value", "heads")
        return {n: getattr(memory, n) for n in names} | {"d_ffn": self.model.ffn.d_ffn}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What twice as much of one resource would buy."""

    constraint: str
    limit: float
    change: Estimate
    """Predicted loss of the best configuration with twice the limit, minus the recommended one's."""
    dimensions: Mapping[str, int]
    """Of that configuration."""


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
    """The best of every other ``top_m``, in order."""
    sensitivities: tuple[Sensitivity, ...]
    outside: Mapping[str, float]
    """Dimensions the law does not read → octaves between the recommendation and the range measured."""
    statements: tuple[str, ...]

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


def plan(
    table: Table,
    base: ModelSpec,
    limits: Limits,
    *,
    tokens: float | None = None,
    law: str | FitResult | None = None,
    stage: str | None = None,
    compensation: str | None = None,
    sizing: str | None = None,
    loss: str = "loss",
    vary: Sequence[str] = (),
    max_octaves: float = MAX_OCTAVES,
    seq_len: int = 2048,
    seed: int = 0,
) -> Plan:
    """Recommend the configuration of least predicted loss.

    Args:
        table: a study's finished runs.
        base: what no axis varies; its FFN is the reference of ``sizing``.
        tokens: training tokens; None is the study's (geometric mean).
        law: a name of ``forms.LAWS``, or a fit of ``table``'s rows that was made before, whose stage, compensation
            and loss are then taken; None takes what ``compare`` recommends.
        stage: None takes ``annealed`` where the table has it.
        compensation: of the runs that the law is fitted to; None takes the only one, or the first.
        sizing: how the FFN's width follows (``COMPENSATIONS``); None is ``compensation``.
        max_octaves: how far a recommendation may lie outside what was measured, on any axis of the law but tokens.
        vary: names of ``VARIABLE``, tried at factors of ½ to 2 of the base's.
        seq_len: context of the attention scores.

    Raises:
        UserError: limits that bound nothing or that no configuration meets, or a law that cannot rank.
    """
    _check(base, limits, vary, tokens)
    stages = levels(table, "stage")
    stage = stage or ("annealed" if "annealed" in stages else next(iter(stages), None))
    compensation = compensation or next(iter(levels(table, "compensation")), None)
    if isinstance(law, FitResult):
        stage, compensation, loss = law.stage, law.compensation, law.loss
    part = where(table, stage=stage, compensation=compensation)
    fit, reason = _fit(part, law, stage, loss)
    sizing = sizing or compensation or "none"
    if sizing not in COMPENSATIONS:
        raise UserError(f"unknown compensation {sizing!r}{nearest(sizing, COMPENSATIONS)}")
    search = _Search(base=base, sizing=sizing, vary=tuple(vary), seq_len=seq_len, batch=limits.batch)
    at = tokens or fit.reference.get("D")
    found = _best(search, fit, limits, at, max_octaves)
    uncertainty = bootstrap(fit, seed=seed)
    best = found[0]
    per_m: dict[int, _Candidate] = {}
    for candidate in found:
        per_m.setdefault(candidate.top_m, candidate)
    others = [c for c in per_m.values() if c is not best][:_RUNNERS_UP]
    described = [_describe(c, best, uncertainty, limits, at) for c in (best, *others)]
    sensitivities = []
    for name, limit in limits.bounds().items():
        relaxed = limits.relaxed(name, 2 * limit)
        better = _describe(_best(search, fit, relaxed, at, max_octaves)[0], best, uncertainty, relaxed, at)
        sensitivities.append(
            Sensitivity(constraint=name, limit=limit, change=better.behind, dimensions=better.dimensions)
        )
    outside = _outside(part, fit, best)
    return Plan(
        law=fit.law.name,
        stage=stage,
        compensation=sizing,
        loss=loss,
        tokens=tokens,
        limits=limits,
        n_considered=len(found),
        recommended=described[0],
        runners_up=tuple(described[1:]),
        sensitivities=tuple(sensitivities),
        outside=outside,
        statements=_statements(fit, reason, described, outside, compensation or "none", sizing, vary, tokens),
    )


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
    loss: float = float("nan")

    @property
    def top_m(self) -> int:
        assert self.model.memory is not None
        return self.model.memory.top_m

    def within(self, limits: Limits) -> bool:
        return all(self.usage[name] <= limit for name, limit in limits.bounds().items())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """The models to choose from, limits aside; those looked at are kept, since limits differ and models do not."""

    base: ModelSpec
    sizing: str
    vary: tuple[str, ...]
    seq_len: int
    batch: int
    seen: dict[tuple[int, ...], _Candidate | None] = field(default_factory=dict)

    def model(self, top_m: int, n_keys: int, others: Mapping[str, int]) -> _Candidate | None:
        """One configuration, or None where its dimensions cannot be."""
        key = (top_m, n_keys, *others.values())
        if key not in self.seen:
            self.seen[key] = self._solved({"top_m": top_m, "n_keys": n_keys, **others})
        return self.seen[key]

    def _solved(self, targets: Mapping[str, int]) -> _Candidate | None:
        try:
            solved = solve(self.base, targets, self.sizing, self.seq_len)
        except (Infeasible, UserError):
            return None
        usage = {
            "total_params": float(solved.cost.total_params),
            "active_flops": solved.cost.flops_per_token,
            "memory_access_bytes": memory_access_bytes(solved.model, self.batch),
        }
        return _Candidate(model=solved.model, cost=solved.cost, usage=usage)

    def variations(self) -> Iterator[dict[str, int]]:
        """Values of the dimensions that vary, the base's among them."""
        assert self.base.memory is not None
        cores = self.base.memory.n_cores
        choices = []
        for name in self.vary:
            value = self.base.ffn.d_ffn if name == "d_ffn" else getattr(self.base.memory, name)
            unit = cores if name == "d_value" else 1
            choices.append(sorted({max(1, round(value * f / unit)) * unit for f in _FACTORS}))
        for values in itertools.product(*choices):
            yield dict(zip(self.vary, values, strict=True))


def _check(base: ModelSpec, limits: Limits, vary: Sequence[str], tokens: float | None) -> None:
    if base.memory is None:
        raise UserError("a plan is for memory layers: the model needs a [model.memory] table")
    bounds = limits.bounds()
    if "total_params" not in bounds or len(bounds) < 2:
        raise UserError(
            "limit the total parameters, and FLOPs or memory access: nothing else keeps n_keys and top_m finite"
        )
    for name, limit in bounds.items():
        if not limit > 0:
            raise UserError(f"the limit on {name} must be positive, not {limit:g}")
    if limits.batch < 1:
        raise UserError(f"a batch of {limits.batch} tokens: it must be at least 1")
    if tokens is not None and not tokens > 0:
        raise UserError(f"{tokens:g} training tokens: there must be some")
    for name in vary:
        if name not in VARIABLE:
            raise UserError(f"cannot vary {name!r}{nearest(name, VARIABLE)}")


def _fit(table: Table, law: str | FitResult | None, stage: str | None, loss: str) -> tuple[FitResult, str]:
    """The fit that ranks, and why that law."""
    if isinstance(law, FitResult):
        fit, reason = law, "as fitted before"
    elif law is not None:
        fit, reason = fit_law(table, law, stage=stage, loss=loss), "as asked"
    else:
        fits = fit_laws(table, FIRST_LAWS, stage=stage, loss=loss)
        compared = compare(fits)
        name, reason = compared.recommended, compared.reason
        if name == "null":
            name, reason = "additive", "the null law predicts best on this study, and it cannot rank anything"
        fit = next(f for f in fits if f.law.name == name)
    if not set(fit.law.symbols) - {"D"}:
        raise UserError(
            f"law {fit.law.name!r} as fitted reads no axis but tokens: it cannot rank configurations"
        )
    return fit, reason


def _best(
    search: _Search, fit: FitResult, limits: Limits, tokens: float | None, max_octaves: float
) -> list[_Candidate]:
    """Every configuration considered within the limits, least predicted loss first, then fewest FLOPs."""
    for others in search.variations():
        for top_m in _round_numbers():
            largest = _most_keys(search, top_m, others, limits)
            if largest is None:  # more values only cost more
                break
            for n_keys in _below(largest):
                if n_keys**2 >= top_m:
                    search.model(top_m, n_keys, others)
    # All that was looked at, also under other limits: relaxing a limit can then only help.
    found = [c for c in search.seen.values() if c is not None and c.within(limits)]
    if not found:
        raise UserError(f"no configuration meets the limits: {_smallest(search, limits)}")
    values = _values(fit, found, tokens)
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
    """``n_keys`` up to ``largest``, four an octave (N_s two an octave)."""
    return {round(2 ** (k / 4)) for k in range(81) if 2 ** (k / 4) < largest}


def _most_keys(search: _Search, top_m: int, others: Mapping[str, int], limits: Limits) -> int | None:
    """The largest n_keys within the limits at this top_m, by bisection: every cost grows with n_keys."""

    def fits(n_keys: int) -> bool:
        candidate = search.model(top_m, n_keys, others)
        return candidate is not None and candidate.within(limits)

    low = int(np.ceil(np.sqrt(top_m)))
    if not fits(low):
        return None
    high = low
    while fits(high) and high < _MOST_KEYS:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _smallest(search: _Search, limits: Limits) -> str:
    """What the smallest memory would take of the limits that it exceeds."""
    candidate = search.model(1, 1, {})
    if candidate is None:
        return f"the base model cannot be sized by {search.sizing}"
    over = [
        f"{name.replace('_', ' ')} {candidate.usage[name]:.3g} of {limit:.3g}"
        for name, limit in limits.bounds().items()
        if candidate.usage[name] > limit
    ]
    return f"with one value a layer it already takes {', '.join(over)}; choose a smaller model"


def _values(fit: FitResult, candidates: Sequence[_Candidate], tokens: float | None) -> dict[str, Array]:
    """Symbol of the law → [candidates]."""
    return {
        symbol: np.array([_column(COLUMNS.get(symbol, fit.columns[symbol]), c, tokens) for c in candidates])
        for symbol in fit.law.symbols
    }


def _column(name: str, candidate: _Candidate, tokens: float | None) -> float:
    """What a record of this model would hold in column ``name``."""
    if name == "tokens" and tokens is not None:
        return float(tokens)
    for part in (candidate.cost, candidate.model.memory, candidate.model.ffn, candidate.model):
        if hasattr(part, name):
            return float(getattr(part, name))
    raise UserError(f"the law reads column {name!r}, which no model that is not trained yet has")


def _describe(
    candidate: _Candidate, best: _Candidate, uncertainty: Uncertainty, limits: Limits, tokens: float | None
) -> Configuration:
    fit = uncertainty.fit
    values = _values(fit, [candidate, best], tokens)

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


def _outside(table: Table, fit: FitResult, best: _Candidate) -> dict[str, float]:
    """Octaves from the measured range, of dimensions that the law does not read."""
    read = {COLUMNS.get(s, fit.columns[s]) for s in fit.law.symbols}
    out = {}
    for name in _FIXED:
        if name in table and name not in read:
            known = numeric(table, name)[fit.rows.index]
            known = known[np.isfinite(known) & (known > 0)]
            value = _column(name, best, None)
            if len(known) and value > 0:
                octaves = float(
                    _octaves_outside(np.array([value]), (float(known.min()), float(known.max())))[0]
                )
                if abs(octaves) > 0.01:
                    out[name] = octaves
    return out


def _statements(
    fit: FitResult,
    reason: str,
    found: Sequence[Configuration],
    outside: Mapping[str, float],
    measured: str,
    sizing: str,
    vary: Sequence[str],
    tokens: float | None,
) -> tuple[str, ...]:
    best = found[0]
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
            "" if cheapest is best else f"; of these top_m {cheapest.dimensions['top_m']} reads least memory"
        )
        said.append(
            f"{len(tied)} of the {len(found) - 1} runners-up cannot be told from the recommendation{also}"
        )
    if sizing != measured:
        said.append(
            f"the law was measured with compensation {measured}: it does not know what {sizing} does to the FFN"
        )
    silent = [n for n in vary if n not in {fit.columns[s] for s in fit.law.symbols}]
    if silent:
        said.append(
            f"the law reads no {', '.join(silent)}: it ranks them only by what they leave for m and N_s"
        )
    if tokens is not None and "D" not in fit.law.symbols:
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
        "sensitivities": [dataclasses.asdict(one) for one in found.sensitivities],
        "outside_octaves": dict(found.outside),
        "statements": list(found.statements),
    }
