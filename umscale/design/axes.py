"""What a study can vary: the names of axes, and how a cell's values become a model's integer dimensions.

A cell fixes some axes as targets. Dimensions that are whole numbers can only come near a target, so the solver
searches them, reports what it achieved, and refuses a cell that it cannot bring within ``TOLERANCE``.

    n_keys, top_m, n_experts, d_model, ...  set directly
    n_values                                solved by n_keys
    sparse_params, total_params             solved by n_keys, or by n_experts in a mixture of experts
    density                                 solved by top_m (or by n_keys when top_m is an axis too), or by top_k
    granularity                             experts that many times narrower, and as many times more of them
    mcp, memory_to_ffn                      solved by d_key (the paper's own knob, Table 4)
    memory_share, ngram_share               solved by n_experts, n_keys and n-gram rows, see ``allocation``
    compensation iso_flops / iso_active     solved by d_ffn, a multiple of 8 where that stays within tolerance

``sparse_params``, ``total_params`` and ``density`` say nothing about a dense model: its cells ignore them.
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umscale.accounting import Cost, cost, expert_params
from umscale.design import allocation
from umscale.design.allocation import SHARE_TOLERANCE, SHARES
from umscale.errors import UserError, nearest
from umscale.spec import FfnSpec, MemorySpec, ModelSpec

TOLERANCE = 0.01
"""Largest relative deviation of an achieved quantity from its target."""

COMPENSATIONS = ("none", "iso_flops", "iso_active")
DIRECT_MEMORY = (
    "n_keys",
    "top_m",
    "d_key",
    "d_pre_value",
    "d_value",
    "heads",
    "n_cores",
    "preselect_m",
    "preselect_cap",
    "key_expansion",
    "share_layers",
    "skip",
    "quadrants",
    "init",
    "sharing",
)
TEXT_AXES = ("init", "sharing", "architecture")
DIRECT_FFN = ("n_experts", "top_k", "n_shared_experts")
DIRECT_MODEL = ("n_layers", "n_heads")
SPARSE = ("sparse_params", "total_params", "density")
SOLVED = (*SPARSE, "n_values", "mcp", "memory_to_ffn", "d_model", "d_ffn", "granularity")
FRACTIONS = ("density", "mcp", "memory_to_ffn", *SHARES)
MODEL_AXES = (*DIRECT_MEMORY, *DIRECT_FFN, *DIRECT_MODEL, *SOLVED, *SHARES, "architecture")
RUN_AXES = ("tokens", "seed")
"""Axes of the run: ``tokens`` become branches of one trunk; ``seed`` is a block of cells that share their draws."""

SMALLEST_D_FFN = 8
D_FFN_MULTIPLE = 8
"""Matrix kernels are made for widths that 8 divides: tensor cores, grouped products, aligned rows."""
MAX_ROUNDS = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Missed:
    """A target that whole-number dimensions come near to, but not near enough."""

    name: str
    target: float
    nearest: float


class Infeasible(Exception):
    """No whole-number dimensions bring this cell within tolerance; the message says what was nearest."""

    def __init__(self, message: str, missed: Missed | None = None) -> None:
        super().__init__(message)
        self.missed = missed


@dataclass(frozen=True, kw_only=True, slots=True)
class Solved:
    """A cell's model with target and achieved value of everything the solver was asked for."""

    model: ModelSpec
    cost: Cost
    targets: Mapping[str, float]
    achieved: Mapping[str, float]
    """Under every name in ``targets``; and under ``d_ffn_multiple``, where the solver chose the FFN's width, the
    largest power of two, up to the one asked for, that divides it."""


def check_axis(name: str) -> None:
    """Raise UserError unless ``name`` is an axis or a dotted path into the spec (``train.lr``)."""
    if name in MODEL_AXES or name in RUN_AXES or "." in name:
        return
    raise UserError(f"unknown axis {name!r}{nearest(name, (*MODEL_AXES, *RUN_AXES, 'train.lr'))}")


def scale_width(model: ModelSpec, d_model: int) -> ModelSpec:
    """Return ``model`` at another width: head width fixed, all other widths in proportion."""
    factor = d_model / model.d_model
    d_head = model.d_model // model.n_heads
    if d_model % d_head:
        raise UserError(f"axis d_model = {d_model} is not divisible by the head width {d_head}")
    memory = model.memory
    if memory is not None:
        values = max(1, round(memory.d_value * factor / memory.n_cores)) * memory.n_cores
        memory = dataclasses.replace(
            memory,
            d_key=max(1, round(memory.d_key * factor)),
            d_pre_value=round(memory.d_pre_value * factor),
            d_value=values,
        )
    return dataclasses.replace(
        model,
        d_model=d_model,
        n_heads=d_model // d_head,
        ffn=dataclasses.replace(model.ffn, d_ffn=max(1, round(model.ffn.d_ffn * factor))),
        memory=memory,
    )


def solve(
    model: ModelSpec,
    targets: Mapping[str, Any],
    compensation: str,
    seq_len: int,
    tolerance: float = TOLERANCE,
    reference: ModelSpec | None = None,
    d_ffn_multiple: int = D_FFN_MULTIPLE,
) -> Solved:
    """Find the dimensions of one cell.

    Args:
        model: what no target or compensation touches stays as it is here.
        targets: values of model axes (see ``MODEL_AXES``).
        compensation: ``none``, or what d_ffn keeps equal to the reference: ``iso_flops`` (forward FLOPs per
            token at ``seq_len``, head included) or ``iso_active`` (active parameters without embeddings).
        reference: the model that compensation refers to; None is ``model``.
        d_ffn_multiple: a power of two. The width that compensation chooses is a multiple of it where the tolerance
            allows, else of half of it, and so on.

    Raises:
        Infeasible: a target cannot be reached within ``tolerance``.
        UserError: targets that make no sense together, or an invalid model.
    """
    reference = model if reference is None else reference
    model, targets = _with_direct(model, targets)
    # A rounder width may put another target out of reach: then a less round one has to do.
    multiple = d_ffn_multiple
    while True:
        try:
            found, wanted, got = _balance(
                model, targets, compensation, seq_len, tolerance, reference, multiple
            )
            break
        except Infeasible:
            if compensation == "none" or multiple == 1:
                raise
            multiple //= 2
    if compensation != "none":
        got["d_ffn_multiple"] = float(d_ffn_multiple >> _halvings(found.ffn.d_ffn, d_ffn_multiple))
    return Solved(model=found, cost=cost(found, seq_len), targets=wanted, achieved=got)


def _with_direct(model: ModelSpec, targets: Mapping[str, Any]) -> tuple[ModelSpec, Mapping[str, Any]]:
    """The model with the targets that are dimensions of it, and the targets that its kind has."""
    if "d_model" in targets:
        model = scale_width(model, int(targets["d_model"]))
    direct: dict[str, Any] = {k: int(targets[k]) for k in DIRECT_MODEL if k in targets}
    ffn: dict[str, Any] = {k: int(targets[k]) for k in (*DIRECT_FFN, "d_ffn") if k in targets}
    if ffn:
        direct["ffn"] = dataclasses.replace(model.ffn, **ffn)
    if direct:
        model = dataclasses.replace(model, **direct)
    if "granularity" in targets:
        model = dataclasses.replace(model, ffn=_granular(model.ffn, int(targets["granularity"])))
    if model.memory is None and model.ffn.kind == "swiglu":
        targets = {k: v for k, v in targets.items() if k not in SPARSE}
    for k in targets:
        if model.memory is None and k in (*DIRECT_MEMORY, "n_values", "mcp", "memory_to_ffn"):
            raise UserError(f"axis {k!r} needs a memory layer: add a [model.memory] table")
    if any(name in targets for name in SHARES):
        allocation.check(model, targets)
        model = allocation.without_empty_parts(model, targets)
    if "total_params" in targets and {"sparse_params", "n_keys", "n_values", "n_experts"} & set(targets):
        raise UserError(
            "axis 'total_params' sets the number of values or experts; leave the other size axes out"
        )
    return model, targets


def _balance(
    model: ModelSpec,
    targets: Mapping[str, Any],
    compensation: str,
    seq_len: int,
    tolerance: float,
    reference: ModelSpec,
    multiple: int,
) -> tuple[ModelSpec, dict[str, float], dict[str, float]]:
    """Return the model that meets sizes and compensation together, with what was wanted and what it has."""
    # Sizes change what a token costs and the FFN's width changes totals: repeat until neither moves.
    for _ in range(MAX_ROUNDS):
        before = model
        if any(name in targets for name in SHARES):
            model = allocation.allocate(model, targets)
        elif model.memory is not None:
            model = dataclasses.replace(model, memory=_solve_table(model, model.memory, targets))
        elif model.ffn.kind == "moe":
            model = dataclasses.replace(model, ffn=_solve_experts(model, model.ffn, targets))
        model = _solve_compute(reference, model, targets, compensation, seq_len, tolerance, multiple)
        if model == before:
            break
    wanted, got = _deviations(reference, model, targets, compensation, seq_len)
    for name, target in wanted.items():
        off = abs(got[name] - target) / (SHARE_TOLERANCE if name in SHARES else target * tolerance)
        if off > 1:
            within = f"{SHARE_TOLERANCE:g}" if name in SHARES else f"{tolerance:.3g} of it"
            raise Infeasible(
                f"{name} {target:.10g} cannot be reached within {within}: nearest is {got[name]:.10g}",
                Missed(name=name, target=target, nearest=got[name]),
            )
    return model, wanted, got


def _halvings(d_ffn: int, multiple: int) -> int:
    """How often ``multiple``, a power of two, has to be halved to divide ``d_ffn``."""
    halvings = 0
    while d_ffn % (multiple >> halvings):
        halvings += 1
    return halvings


def _granular(ffn: FfnSpec, factor: int) -> FfnSpec:
    """Split every expert into ``factor`` narrower ones; a token activates as much width as before."""
    if ffn.kind != "moe":
        raise UserError("axis 'granularity' needs experts: set kind = \"moe\" under [model.ffn]")
    if ffn.d_ffn % factor:
        raise UserError(f"axis granularity = {factor} does not divide the experts' width d_ffn = {ffn.d_ffn}")
    return dataclasses.replace(
        ffn,
        d_ffn=ffn.d_ffn // factor,
        n_experts=ffn.n_experts * factor,
        top_k=ffn.top_k * factor,
        n_shared_experts=ffn.n_shared_experts * factor,
    )


def _solve_experts(model: ModelSpec, ffn: FfnSpec, targets: Mapping[str, Any]) -> FfnSpec:
    """Choose the number of experts for a size, and of active ones for a density."""
    expert = expert_params(model.d_model, ffn)
    n_experts = ffn.n_experts
    if "sparse_params" in targets:
        n_experts = round(targets["sparse_params"] / (model.n_layers * expert))
    elif "total_params" in targets:
        excess = targets["total_params"] - cost(model).total_params
        n_experts += round(
            excess / (model.n_layers * (expert + model.d_model))
        )  # an expert and its router row
    top_k = round(targets["density"] * n_experts) if "density" in targets else ffn.top_k
    n_experts, top_k = max(1, n_experts), max(1, top_k)
    if top_k > n_experts:
        raise Infeasible(f"{top_k} active experts do not fit the {n_experts} that the size allows")
    return dataclasses.replace(ffn, n_experts=n_experts, top_k=top_k)


def _solve_table(model: ModelSpec, memory: MemorySpec, targets: Mapping[str, Any]) -> MemorySpec:
    """Apply the memory axes: direct dimensions first, then n_keys and top_m from sizes and densities."""
    sizes = [k for k in ("n_keys", "n_values", "sparse_params") if k in targets]
    if len(sizes) > 1:
        raise UserError(f"axes {sizes[0]!r} and {sizes[1]!r} both set the number of values; keep one")
    if (sizes or "total_params" in targets) and "density" in targets and "top_m" in targets:
        raise UserError("axes for size, 'density' and 'top_m' overdetermine the memory; keep two")
    values: dict[str, Any] = {
        k: targets[k] if k in TEXT_AXES else int(targets[k])
        for k in DIRECT_MEMORY
        if k in targets and k not in ("n_keys", "top_m")
    }
    heads = values.get("heads", memory.heads)
    row_width = values.get("d_pre_value", memory.d_pre_value) + values.get("d_value", memory.d_value)
    n_tables = memory.n_tables(len(model.memory_layers))
    top_m = int(targets.get("top_m", memory.top_m))
    n_keys = float(targets.get("n_keys", memory.n_keys))
    if "n_values" in targets:
        n_keys = math.sqrt(targets["n_values"])
    elif "sparse_params" in targets:
        n_keys = math.sqrt(targets["sparse_params"] / (n_tables * row_width))
    elif "total_params" in targets:
        n_keys = _keys_for_total(model, targets["total_params"])
    elif "density" in targets and "top_m" in targets:
        n_keys = math.sqrt(top_m * heads / targets["density"])
    keys = max(1, round(n_keys))
    if "density" in targets and "top_m" not in targets:
        top_m = max(1, round(targets["density"] * keys**2 / heads))
    return dataclasses.replace(memory, **values, n_keys=keys, top_m=top_m)


def _keys_for_total(model: ModelSpec, total: float) -> int:
    """Return the n_keys whose total parameters are nearest to ``total``, all else as in ``model``."""
    assert model.memory is not None
    memory = model.memory
    smallest = math.isqrt(memory.top_m - 1) + 1 if memory.preselect_m is None else memory.preselect_m

    def off(n_keys: int) -> float:
        return (
            cost(dataclasses.replace(model, memory=dataclasses.replace(memory, n_keys=n_keys))).total_params
            - total
        )

    low, high = smallest, smallest
    while off(high) < 0:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if off(middle) < 0 else (low, middle)
    return min((low, high), key=lambda n: abs(off(n)))


def _mcp_target(targets: Mapping[str, Any]) -> float | None:
    if "mcp" in targets and "memory_to_ffn" in targets:
        raise UserError("axes 'mcp' and 'memory_to_ffn' say the same thing; keep one")
    if "memory_to_ffn" in targets:
        return targets["memory_to_ffn"] / (1 + targets["memory_to_ffn"])
    return targets.get("mcp")


def _solve_compute(
    reference: ModelSpec,
    model: ModelSpec,
    targets: Mapping[str, Any],
    compensation: str,
    seq_len: int,
    tolerance: float,
    multiple: int,
) -> ModelSpec:
    """Choose d_ffn for the compensation, and d_key for the memory's share, jointly."""
    if compensation != "none" and "d_ffn" in targets:
        raise UserError(f"axis 'd_ffn' and compensation {compensation!r} both set the FFN's width; keep one")
    mcp = _mcp_target(targets)
    if mcp is None:
        return _rounded(reference, model, compensation, seq_len, tolerance, multiple)
    if not 0 < mcp < 1:
        raise UserError(f"a memory share (mcp) of {mcp:.4g} must lie strictly between 0 and 1")
    if "d_key" in targets:
        raise UserError("axis 'd_key' and a memory share both set the key width; keep one")
    assert model.memory is not None
    memory = model.memory

    def short(d_key: int) -> bool:
        """Whether the share stays far below its target with keys so wide: it grows with them."""
        try:
            keyed = dataclasses.replace(model, memory=dataclasses.replace(memory, d_key=d_key))
            found = _compensate(reference, keyed, compensation, seq_len)
        except Infeasible:
            return False
        return cost(found, seq_len).mcp < mcp * (1 - 4 * tolerance)

    best: tuple[tuple[float, int, float], ModelSpec] | None = None
    reason = ""
    widest = 4 * model.d_model
    first = max(1, bisect.bisect_left(range(1, widest + 1), True, key=lambda d_key: not short(d_key)))
    for d_key in range(first, widest + 1):
        keyed = dataclasses.replace(model, memory=dataclasses.replace(model.memory, d_key=d_key))
        try:
            candidates = _near(
                _compensate(reference, keyed, compensation, seq_len), mcp, compensation, seq_len
            )
        except Infeasible as error:
            reason = str(error)
            break  # wider keys only leave less for the FFN
        for candidate in candidates:
            share_off = abs(cost(candidate, seq_len).mcp / mcp - 1)
            held = _held(candidate, compensation, seq_len) / _held(reference, compensation, seq_len)
            worst = max(share_off, abs(held - 1) if compensation != "none" else 0.0)
            uneven = 0 if compensation == "none" else _halvings(candidate.ffn.d_ffn, multiple)
            # Within tolerance the roundest width counts before the nearest.
            rank = (worst, 0, 0.0) if worst > tolerance else (0.0, uneven, worst)
            if best is None or rank < best[0]:
                best = (rank, candidate)
        if cost(candidates[0], seq_len).mcp > mcp * (1 + 4 * tolerance):
            break  # the share grows with the key width
    if best is None:
        raise Infeasible(reason)
    return best[1]


def _near(model: ModelSpec, mcp: float, compensation: str, seq_len: int) -> list[ModelSpec]:
    """Return ``model`` and, where compensation frees the FFN's width, those between it and the exact share.

    A unit of d_key moves the share by percents, a unit of d_ffn by tenths: together they meet both targets.
    """
    if compensation == "none":
        return [model]
    macs = cost(model, seq_len).macs
    exact = round(model.ffn.d_ffn * macs.memory * (1 - mcp) / mcp / macs.ffn)
    span = max(1, model.ffn.d_ffn // 20)
    low, high = sorted((model.ffn.d_ffn, min(max(exact, model.ffn.d_ffn - span), model.ffn.d_ffn + span)))
    widths = [w for w in range(low, high + 1) if w != model.ffn.d_ffn and w >= SMALLEST_D_FFN]
    return [model, *(dataclasses.replace(model, ffn=dataclasses.replace(model.ffn, d_ffn=w)) for w in widths)]


def _compensate(reference: ModelSpec, model: ModelSpec, compensation: str, seq_len: int) -> ModelSpec:
    """Return ``model`` with the d_ffn that restores the reference's compute or active parameters."""
    if compensation == "none":
        return model
    if compensation not in COMPENSATIONS:
        raise UserError(f"unknown compensation {compensation!r}{nearest(compensation, COMPENSATIONS)}")

    def excess(d_ffn: int) -> float:
        changed = dataclasses.replace(model, ffn=dataclasses.replace(model.ffn, d_ffn=d_ffn))
        return _held(changed, compensation, seq_len) - _held(reference, compensation, seq_len)

    slope = excess(2) - excess(1)
    d_ffn = round(1 - excess(1) / slope)
    if d_ffn < SMALLEST_D_FFN:
        over = excess(1) / _held(reference, compensation, seq_len)
        what = "forward FLOPs" if compensation == "iso_flops" else "active parameters"
        raise Infeasible(
            f"{compensation}: even without any FFN this cell has {over:+.1%} of the reference's {what}; "
            "use a wider d_model or d_ffn, or a smaller memory"
        )
    return dataclasses.replace(model, ffn=dataclasses.replace(model.ffn, d_ffn=d_ffn))


def _rounded(
    reference: ModelSpec,
    model: ModelSpec,
    compensation: str,
    seq_len: int,
    tolerance: float,
    multiple: int,
) -> ModelSpec:
    """``_compensate``, with a width that ``multiple`` divides, or else half of it and so on, within ``tolerance``."""
    exact = _compensate(reference, model, compensation, seq_len)
    if compensation == "none" or exact == reference:  # which keeps the width it was given
        return exact
    wanted = _held(reference, compensation, seq_len)
    while multiple > 1:
        below = exact.ffn.d_ffn // multiple * multiple
        found = []
        for width in (below, below + multiple):
            if width >= SMALLEST_D_FFN:
                changed = dataclasses.replace(exact, ffn=dataclasses.replace(exact.ffn, d_ffn=width))
                found.append((abs(_held(changed, compensation, seq_len) / wanted - 1), width, changed))
        off, _, nearest_model = min(found, key=lambda candidate: candidate[:2])
        if off <= tolerance:
            return nearest_model
        multiple //= 2
    return exact


def _held(model: ModelSpec, compensation: str, seq_len: int) -> float:
    found = cost(model, seq_len)
    return float(found.active_params) if compensation == "iso_active" else found.flops_per_token


def _deviations(
    reference: ModelSpec, model: ModelSpec, targets: Mapping[str, Any], compensation: str, seq_len: int
) -> tuple[dict[str, float], dict[str, float]]:
    found = cost(model, seq_len)
    achieved = {
        "total_params": float(found.total_params),
        "n_values": float(model.memory.n_values) if model.memory else 0.0,
        "sparse_params": float(found.sparse_params),
        "density": found.density,
        "mcp": found.mcp,
        "memory_to_ffn": found.memory_to_ffn,
        **allocation.shares_of(model),
    }
    wanted = {name: float(targets[name]) for name in achieved if name in targets}
    got = {name: achieved[name] for name in wanted}
    if compensation != "none":
        name = "flops_per_token" if compensation == "iso_flops" else "active_params"
        wanted[name] = _held(reference, compensation, seq_len)
        got[name] = _held(model, compensation, seq_len)
    return wanted, got
