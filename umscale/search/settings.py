"""The [search] table of a study file.

[search]
objectives = ["loss", "memory_access_b16"]
sampler = "tpe"
n_trials = 60
[search.space]
top_m = {low = 4, high = 64, log = true}      # whole numbers: a whole range
n_keys = [32, 48, 64, 96, 128]                # a list: a choice
train.lr = {low = 2e-3, high = 2e-2, log = true}
[search.constraints]
total_params = "8M"                           # at most
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from umscale.design.axes import FRACTIONS, MODEL_AXES, RUN_AXES, TEXT_AXES, check_axis
from umscale.errors import UserError, nearest
from umscale.spec import quantity

SAMPLERS = ("tpe", "gp", "nsga2", "nsga3", "cmaes", "qmc", "random", "brute_force")
PRUNERS = ("none", "median", "hyperband", "asha", "wilcoxon")
MEASURED = ("loss", "loss_ema", "bits_per_byte", "bits_per_byte_ema")
"""Objectives that a run is trained for: of the annealed record at the largest budget."""
COSTS = ("total_params", "active_params", "sparse_params", "flops_per_token")
"""Objectives and constraints that follow from a model's dimensions."""
_ACCESS = re.compile(r"memory_access_b([1-9][0-9]{0,5})")
_KEYS = ("objectives", "sampler", "pruner", "n_trials", "space", "constraints")
_RANGE = ("low", "high", "step", "log")
_MOST_OBJECTIVES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A validated [search] table."""

    space: Mapping[str, Range | tuple[Any, ...]]
    """Axis or dotted path of the spec → range, or choices."""
    objectives: tuple[str, ...] = ("loss",)
    """All are made small."""
    constraints: Mapping[str, float] = field(default_factory=dict)
    """Cost → the most it may be."""
    sampler: str = "tpe"
    pruner: str = "none"
    n_trials: int = 40


def parse_settings(tree: Mapping[str, Any]) -> Settings:
    """Validate a [search] table; raises ``UserError`` that names the entry and what it may be."""
    for key in tree:
        if key not in _KEYS:
            raise UserError(f"[search]: unknown key {key!r}{nearest(key, _KEYS)}")
    space = _space(tree.get("space"))
    objectives = _objectives(tree.get("objectives", ["loss"]))
    sampler, pruner = tree.get("sampler", "tpe"), tree.get("pruner", "none")
    check_choice("sampler", sampler, SAMPLERS)
    check_choice("pruner", pruner, PRUNERS)
    if pruner != "none" and len(objectives) > 1:
        raise UserError(
            "[search]: pruning is for a single objective; leave the pruner out, or name one objective"
        )
    continuous = [n for n, v in space.items() if isinstance(v, Range) and not v.whole and v.step is None]
    if sampler == "brute_force" and continuous:
        raise UserError(
            f"[search]: brute_force needs lists, whole numbers or steps; {continuous[0]} has none"
        )
    n_trials = quantity(tree.get("n_trials", 40), "[search]: n_trials")
    if n_trials < 1 or n_trials != int(n_trials):
        raise UserError(f"[search]: n_trials = {n_trials:g} must be a whole number from 1")
    return Settings(
        space=space,
        objectives=objectives,
        constraints=_constraints(tree.get("constraints", {})),
        sampler=sampler,
        pruner=pruner,
        n_trials=int(n_trials),
    )


def check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ``UserError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(
            f"[search]: {key} = {value!r} must be one of {', '.join(choices)}{nearest(str(value), choices)}"
        )


def access_batch(name: str) -> int | None:
    """The batch of ``memory_access_bN``; None for any other name."""
    match = _ACCESS.fullmatch(name)
    return int(match[1]) if match else None


def _objectives(given: Any) -> tuple[str, ...]:
    names = tuple(given) if isinstance(given, list) else (given,)
    if (
        not all(isinstance(name, str) for name in names)
        or not 1 <= len(names) <= _MOST_OBJECTIVES
        or len(set(names)) < len(names)
    ):
        raise UserError(f"[search]: objectives = {given!r} must be one to {_MOST_OBJECTIVES} different names")
    for name in names:
        if name not in (*MEASURED, *COSTS) and access_batch(name) is None:
            known = (*MEASURED, *COSTS, "memory_access_b16")
            raise UserError(f"[search]: no objective {name!r}{nearest(name, known)}")
    if not set(names) & set(MEASURED):
        raise UserError(
            f"[search]: objectives = {list(names)} need no training; add one of {', '.join(MEASURED)}"
        )
    return names


def _constraints(tree: Any) -> dict[str, float]:
    if not isinstance(tree, Mapping):
        raise UserError('[search]: constraints must be a table of limits, such as total_params = "8M"')
    found = {}
    for name, limit in tree.items():
        if name not in COSTS and access_batch(name) is None:
            raise UserError(
                f"[search.constraints]: no cost {name!r}{nearest(name, (*COSTS, 'memory_access_b16'))}"
            )
        found[name] = quantity(limit, f"[search.constraints] {name}")
        if found[name] <= 0:
            raise UserError(f"[search.constraints]: {name} = {limit!r} must be positive")
    return found


def _space(tree: Any) -> dict[str, Range | tuple[Any, ...]]:
    if not isinstance(tree, Mapping) or not tree:
        raise UserError("a search needs a table [search.space] with a range or a list for each name")
    return {name: _entry(name, value) for name, value in _flat(tree).items()}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names; a table with ``low`` is a range and not a level of names."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and "low" not in value and "high" not in value
        out |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out


def _entry(name: str, value: Any) -> Range | tuple[Any, ...]:
    where = f"[search.space] {name}"
    if name in RUN_AXES or name == "architecture":
        raise UserError(f"{where}: {name} is fixed in a search; set it in [axes]")
    check_axis(name)
    if isinstance(value, list):
        numbers = name in MODEL_AXES and name not in TEXT_AXES
        items = tuple(quantity(v, where) if numbers else v for v in value)
        if numbers and name not in FRACTIONS:
            items = tuple(int(v) for v in items)
        if not items or len(set(map(repr, items))) < len(items):
            raise UserError(f"{where} = {value!r} must list different values, at least one")
        if not all(isinstance(v, str | int | float) for v in items):
            raise UserError(f"{where} = {value!r} must list numbers, names, true or false")
        return items
    if not isinstance(value, Mapping):
        raise UserError(f"{where} = {value!r} must be a list or a range {{low = .., high = .., log = true}}")
    for key in value:
        if key not in _RANGE:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, _RANGE)}")
    if "low" not in value or "high" not in value:
        raise UserError(f"{where}: a range has both low and high")
    low, high = quantity(value["low"], f"{where}.low"), quantity(value["high"], f"{where}.high")
    log = value.get("log", False)
    step = quantity(value["step"], f"{where}.step") if "step" in value else None
    if not isinstance(log, bool):
        raise UserError(f"{where}: log = {log!r} must be true or false")
    if not low < high:
        raise UserError(f"{where}: low = {low:g} must be less than high = {high:g}")
    if log and low <= 0:
        raise UserError(f"{where}: a logarithmic range cannot reach {low:g}; start above zero")
    if step is not None and (step <= 0 or log):
        raise UserError(f"{where}: step = {step:g} must be positive, and a logarithmic range has none")
    whole = name in MODEL_AXES and name not in FRACTIONS
    if name in TEXT_AXES:
        raise UserError(f"{where}: {name} takes names: give a list")
    ends = [low, high] if step is None else [low, high, step]
    if whole and any(end != int(end) for end in ends):
        raise UserError(f"{where}: {name} takes whole numbers")
    # Dotted paths say nothing of their type; whole ends mean whole numbers, as in TOML.
    if "." in name and all(isinstance(value[k], int) for k in value if k != "log"):
        whole = True
    return Range(low=low, high=high, step=step, log=log, whole=whole)
