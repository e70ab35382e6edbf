"""What a study can vary: the names of axes, and how a cell's values become a model's integer dimensions.

A cell fixes some axes as targets. Dimensions that are whole numbers can only come near a target, so the solver
searches them, reports what it achieved, and refuses a cell that it cannot bring within ``TOLERANCE``.

    n_keys, top_m, d_model, n_layers, ...   set directly
    n_values, sparse_params                 solved by n_keys
    density                                 solved by top_m (or by n_keys when top_m is an axis too)
    mcp, memory_to_ffn                      solved by d_key (the paper's own knob, Table 4)
    compensation iso_flops / iso_active     solved by d_ffn
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umscale.accounting import Cost, cost
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
    "init",
)
DIRECT_MODEL = ("n_layers", "n_heads")
SOLVED = ("n_values", "sparse_params", "density", "mcp", "memory_to_ffn", "d_model", "d_ffn")
MODEL_AXES = (*DIRECT_MEMORY, *DIRECT_MODEL, *SOLVED)
RUN_AXES = ("tokens", "seed")
"""Axes of the run: ``tokens`` become branches of one trunk; ``seed`` is a block of cells that share their draws."""

SMALLEST_D_FFN = 8


class Infeasible(Exception):
    """No whole-number dimensions bring this cell within tolerance; the message says what was nearest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Solved:
    """A cell's model with target and achieved value of everything the solver was asked for."""

    model: ModelSpec
    cost: Cost
    targets: Mapping[str, float]
    achieved: Mapping[str, float]


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
    reference: ModelSpec,
    targets: Mapping[str, Any],
    compensation: str,
    seq_len: int,
    tolerance: float = TOLERANCE,
) -> Solved:
    """Find the dimensions of one cell.

    Args:
        reference: the study's model; what no target or compensation touches stays as it is there.
        targets: values of model axes (see ``MODEL_AXES``).
        compensation: ``none``, or what d_ffn keeps equal to the reference: ``iso_flops`` (forward FLOPs per
            token at ``seq_len``, head included) or ``iso_active`` (active parameters without embeddings).

    Raises:
        Infeasible: a target cannot be reached within ``tolerance``.
        UserError: targets that make no sense together, or an invalid model.
    """
    model = reference
    if "d_model" in targets:
        model = scale_width(model, int(targets["d_model"]))
    direct: dict[str, Any] = {k: int(targets[k]) for k in DIRECT_MODEL if k in targets}
    if "d_ffn" in targets:
        direct["ffn"] = FfnSpec(d_ffn=int(targets["d_ffn"]))
    if direct:
        model = dataclasses.replace(model, **direct)
    memory_targets = [k for k in targets if k in (*DIRECT_MEMORY, *SOLVED) and k not in ("d_model", "d_ffn")]
    if memory_targets and model.memory is None:
        raise UserError(f"axis {memory_targets[0]!r} needs a memory layer: add a [model.memory] table")
    if model.memory is not None:
        model = dataclasses.replace(model, memory=_solve_table(model, model.memory, targets))
    model = _solve_compute(reference, model, targets, compensation, seq_len, tolerance)
    wanted, got = _deviations(reference, model, targets, compensation, seq_len)
    for name, target in wanted.items():
        if abs(got[name] / target - 1) > tolerance:
            raise Infeasible(
                f"{name} {target:.6g} cannot be reached within {tolerance:.0%}: nearest is {got[name]:.6g}"
            )
    return Solved(model=model, cost=cost(model, seq_len), targets=wanted, achieved=got)


def _solve_table(model: ModelSpec, memory: MemorySpec, targets: Mapping[str, Any]) -> MemorySpec:
    """Apply the memory axes: direct dimensions first, then n_keys and top_m from sizes and densities."""
    sizes = [k for k in ("n_keys", "n_values", "sparse_params") if k in targets]
    if len(sizes) > 1:
        raise UserError(f"axes {sizes[0]!r} and {sizes[1]!r} both set the number of values; keep one")
    if sizes and "density" in targets and "top_m" in targets:
        raise UserError(f"axes {sizes[0]!r}, 'density' and 'top_m' overdetermine the memory; keep two")
    values: dict[str, Any] = {
        k: targets[k] if k == "init" else int(targets[k])
        for k in DIRECT_MEMORY
        if k in targets and k not in ("n_keys", "top_m")
    }
    heads = values.get("heads", memory.heads)
    row_width = values.get("d_pre_value", memory.d_pre_value) + values.get("d_value", memory.d_value)
    n_layers = len(model.memory_layers)
    top_m = int(targets.get("top_m", memory.top_m))
    n_keys = float(targets.get("n_keys", memory.n_keys))
    if "n_values" in targets:
        n_keys = math.sqrt(targets["n_values"])
    elif "sparse_params" in targets:
        n_keys = math.sqrt(targets["sparse_params"] / (n_layers * row_width))
    elif "density" in targets and "top_m" in targets:
        n_keys = math.sqrt(top_m * heads / targets["density"])
    keys = max(1, round(n_keys))
    if "density" in targets and "top_m" not in targets:
        top_m = max(1, round(targets["density"] * keys**2 / heads))
    return dataclasses.replace(memory, **values, n_keys=keys, top_m=top_m)


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
) -> ModelSpec:
    """Choose d_ffn for the compensation, and d_key for the memory's share, jointly."""
    if compensation != "none" and "d_ffn" in targets:
        raise UserError(f"axis 'd_ffn' and compensation {compensation!r} both set the FFN's width; keep one")
    mcp = _mcp_target(targets)
    if mcp is None:
        return _compensate(reference, model, compensation, seq_len)
    if not 0 < mcp < 1:
        raise UserError(f"a memory share (mcp) of {mcp:.4g} must lie strictly between 0 and 1")
    if "d_key" in targets:
        raise UserError("axis 'd_key' and a memory share both set the key width; keep one")
    assert model.memory is not None
    best: tuple[float, ModelSpec] | None = None
    reason = ""
    for d_key in range(1, 4 * model.d_model + 1):
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
            if best is None or worst < best[0]:
                best = (worst, candidate)
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


def _held(model: ModelSpec, compensation: str, seq_len: int) -> float:
    found = cost(model, seq_len)
    return float(found.active_params) if compensation == "iso_active" else found.flops_per_token


def _deviations(
    reference: ModelSpec, model: ModelSpec, targets: Mapping[str, Any], compensation: str, seq_len: int
) -> tuple[dict[str, float], dict[str, float]]:
    found = cost(model, seq_len)
    achieved = {
        "n_values": float(model.memory.n_values) if model.memory else 0.0,
        "sparse_params": float(found.sparse_params),
        "density": found.density,
        "mcp": found.mcp,
        "memory_to_ffn": found.memory_to_ffn,
    }
    wanted = {name: float(targets[name]) for name in achieved if name in targets}
    got = {name: achieved[name] for name in wanted}
    if compensation != "none":
        name = "flops_per_token" if compensation == "iso_flops" else "active_params"
        wanted[name] = _held(reference, compensation, seq_len)
        got[name] = _held(model, compensation, seq_len)
    return wanted, got
