"""How a sparse budget is shared out: experts, product-key memory and token-addressed memory of one total.

Of a model's *inactive* parameters (total minus active: what a token leaves alone) ``memory_share`` lie in value tables,
``ngram_share`` in token-addressed tables, and the rest in routed experts, as arXiv 2601.07372 (section 3) shares them
between two. A part with a share of zero is left out of the model; experts always keep the ones that a token activates.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from umscale.accounting import cost, expert_params
from umscale.errors import UserError
from umscale.ngram_tables import table_params
from umscale.spec import ModelSpec

SHARES = ("memory_share", "ngram_share")
SHARE_TOLERANCE = 0.02
"""Largest difference of an achieved share from its target: one expert may be that much of a small model."""


def check(model: ModelSpec, targets: Mapping[str, Any]) -> None:
    """Raise UserError for shares that this model cannot have."""
    shares = {name: float(targets[name]) for name in SHARES if name in targets}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"axis {name} = {share:g} must lie between 0 and 1")
    if sum(shares.values()) > 1 + 1e-9:
        raise UserError(f"axes {' and '.join(shares)} add up to {sum(shares.values()):g}, more than 1")
    if model.ffn.kind != "moe":
        raise UserError(f'axis {next(iter(shares))!r} needs experts: set kind = "moe" under [model.ffn]')
    if "total_params" not in targets:
        raise UserError(f"axis {next(iter(shares))!r} shares out a total: add total_params to [axes]")
    for name, part, table in (
        ("memory_share", model.memory, "[model.memory]"),
        ("ngram_share", model.ngram, "[model.ngram]"),
    ):
        if part is None and shares.get(name, 0) > 0:
            raise UserError(f"axis {name!r} needs a {table} table")
        if part is not None and name not in shares:
            raise UserError(f"{table} has no share: add the axis {name!r}, or leave the table out")


def without_empty_parts(model: ModelSpec, targets: Mapping[str, Any]) -> ModelSpec:
    """Return ``model`` without the memories whose share is zero."""
    if not any(name in targets for name in SHARES):
        return model
    memory = model.memory if targets.get("memory_share", 0) > 0 else None
    ngram = model.ngram if targets.get("ngram_share", 0) > 0 else None
    return dataclasses.replace(model, memory=memory, ngram=ngram)


def shares_of(model: ModelSpec) -> dict[str, float]:
    """Return the share of each part in a model's inactive parameters; they and the experts' add up to 1."""
    inactive = _inactive(model)
    total = sum(inactive.values())
    return {name: inactive[name] / total if total else 0.0 for name in SHARES}


def _inactive(model: ModelSpec) -> dict[str, float]:
    """Return inactive parameters by part: experts, and those whose share is named in ``SHARES``."""
    ffn, memory, ngram = model.ffn, model.memory, model.ngram
    experts = memories = ngrams = 0
    if ffn.kind == "moe":
        experts = model.n_layers * (ffn.n_experts - ffn.top_k) * expert_params(model.d_model, ffn)
    if memory is not None:
        layers = len(model.memory_layers)
        rows = memory.n_tables(layers) * memory.n_values - layers * memory.heads * memory.top_m
        memories = max(0, rows) * memory.row_width
    if ngram is not None:
        ngrams = max(0, table_params(model) - model.ngram_modules * ngram.read_width)
    return {"experts": experts, "memory_share": memories, "ngram_share": ngrams}


def allocate(model: ModelSpec, targets: Mapping[str, Any]) -> ModelSpec:
    """Return ``model`` with experts, values and rows for the shares; the finest of them makes up the total."""
    total = float(targets["total_params"])
    budget = max(0.0, total - cost(model).active_params)
    share = {name: float(targets.get(name, 0)) for name in SHARES}
    experts = 1 - sum(share.values())
    ffn = model.ffn
    routed = round(experts * budget / (model.n_layers * expert_params(model.d_model, ffn)))
    model = dataclasses.replace(model, ffn=dataclasses.replace(ffn, n_experts=ffn.top_k + max(0, routed)))
    if model.memory is not None:
        model = _with_values(model, share["memory_share"] * budget)
    if model.ngram is not None:
        model = _with_rows(model, share["ngram_share"] * budget)
    missing = total - cost(model).total_params
    if model.ngram is not None:
        return _with_rows(model, _inactive(model)["ngram_share"] + missing)
    if model.memory is not None:
        return _with_values(model, _inactive(model)["memory_share"] + missing)
    return model


def _with_values(model: ModelSpec, inactive: float) -> ModelSpec:
    """Return ``model`` with the n_keys that leave about ``inactive`` parameters of its tables unread by a token."""
    memory = model.memory
    assert memory is not None
    layers = len(model.memory_layers)
    rows = inactive / memory.row_width + layers * memory.heads * memory.top_m
    least = memory.preselect_m or 1
    while least**2 < memory.top_m:
        least += 1
    n_keys = max(least, round((max(0.0, rows) / memory.n_tables(layers)) ** 0.5))
    return dataclasses.replace(model, memory=dataclasses.replace(memory, n_keys=n_keys))


def _with_rows(model: ModelSpec, inactive: float) -> ModelSpec:
    """Return ``model`` with the rows a head that leave about ``inactive`` parameters of its tables unread."""
    ngram = model.ngram
    assert ngram is not None
    tables = model.ngram_modules * ngram.n_heads
    rows = round(inactive / ngram.head_width / tables + 1)
    # Tables get the next primes: go down by what those lie above, on average.
    found = dataclasses.replace(model, ngram=dataclasses.replace(ngram, rows=max(2, rows)))
    above = table_params(found) / (ngram.head_width * tables) - max(2, rows)
    return dataclasses.replace(model, ngram=dataclasses.replace(ngram, rows=max(2, round(rows - above))))
