"""What was planned and what it took: axes, cells, what is held constant, runs, cost, versions."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from umscale.cell_labels import cell_name, cell_parts
from umscale.design.conditioning import condition
from umscale.report.evidence import Evidence
from umscale.results.budgets import budget_rows
from umscale.results.table import Table, levels, numeric, text
from umscale.say.blocks import Block, Bullets, Fold, Grid, Paragraph
from umscale.say.estimates import counted, fixed, listed, significant
from umscale.say.labels import COMPENSATION_WORDS, STAGE_WORDS
from umscale.say.numbers import count, duration, percent
from umscale.store.store import FINAL

_QUANTITIES: Mapping[str, str] = {
    "architecture": "architecture",
    "d_model": "width, d_model",
    "n_layers": "layers",
    "n_heads": "attention heads",
    "d_ffn": "FFN width, d_ffn",
    "vocab_size": "vocabulary, tokens",
    "seq_len": "sequence length, tokens",
    "n_keys": "row keys, n_keys",
    "top_m": "values per token and layer, top_m",
    "heads": "memory heads",
    "d_key": "key width, d_key",
    "d_pre_value": "pre-value width, d_pre_value",
    "d_value": "value width, d_value",
    "n_experts": "experts per layer",
    "top_k": "experts per token, top_k",
    "batch_size": "batch, sequences",
    "lr": "learning rate",
    "value_lr": "learning rate of the value tables",
    "total_params": "parameters",
    "active_params": "active parameters, without embeddings",
    "sparse_params": "sparse parameters, N_s",
    "density": "density, active over total sparse parameters",
    "flops_per_token": "forward FLOPs per token",
    "mcp": "memory's share of memory and FFN FLOPs, MCP",
    "budget": "budget, tokens",
    "seed": "seed",
    "corpus": "corpus",
    "floor_nats": "entropy of the corpus, nats per token",
}
_TEXT = ("architecture", "corpus")
_SIZES = ("total_params", "active_params", "sparse_params", "flops_per_token", "budget")
_MOST_LEVELS = 8
_MOST_CELLS = 12
_MOST_RUNS = 400


def design(evidence: Evidence) -> list[Block]:
    """Axes, compensations, what is constant and what varies, what cannot be built."""
    blocks: list[Block] = []
    axes = dict(_axes(evidence.tree.get("axes", {})))
    seeds = {cell["seed"] for cell in evidence.cells} or set(levels(evidence.every, "seed"))
    modes = evidence.tree.get("compensation") or levels(evidence.every, "compensation")
    modes = [modes] if isinstance(modes, str) else list(modes)
    said = (
        f"{counted(len(evidence.planned), 'run')} planned, in {counted(len(seeds), 'seed')}. Every run is a "
        "trunk at constant learning rate with a decaying branch for each token budget, and is measured at "
        "both ends of the branch: before the decay (stable) and after it (annealed), with raw and with "
        "averaged weights."
    )
    blocks.append(Paragraph(text=said))
    if axes:
        blocks.append(
            Grid(
                caption="Axes",
                head=("axis", "values"),
                sides="ll",
                rows=tuple((f"`{name}`", _short_list(values)) for name, values in axes.items()),
            )
        )
    if points := evidence.tree.get("cells"):
        blocks.append(_points(points))
    if (named := evidence.tree.get("architectures")) and "architecture" not in axes:
        blocks.append(Paragraph(text=f"Architectures: {listed([f'`{name}`' for name in named])}."))
    if evidence.search:
        blocks.append(_space(evidence))
    blocks.append(
        Bullets(
            items=tuple(
                f"Compensation `{mode}`: {COMPENSATION_WORDS.get(mode, mode)}"
                + ("; the FFN shrinks to pay for what a cell costs more." if mode.startswith("iso_") else ".")
                for mode in modes
            )
        )
    )
    if len(evidence.every["run_id"]):
        blocks += _constants(evidence.every)
    blocks += _reached(evidence.cells)
    if evidence.laws:
        blocks.append(Paragraph(text=" ".join(_conditioned(evidence.table))))
    blocks += _infeasible(evidence)
    return blocks


def _axes(tree: Any, prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    for name, values in tree.items() if isinstance(tree, Mapping) else ():
        if isinstance(values, Mapping):
            yield from _axes(values, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", values if isinstance(values, list) else [values]


def _short_list(values: Sequence[Any]) -> str:
    words = [f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else str(v) for v in values]
    return "; ".join(words) if any("," in word for word in words) else ", ".join(words)


def _points(points: Sequence[Mapping[str, Any]]) -> Grid:
    names = list(dict.fromkeys(name for point in points for name in point))
    rows = [tuple(_point_text(point.get(name)) for name in names) for point in points[:_MOST_CELLS]]
    more = len(points) - len(rows)
    return Grid(
        caption="Points named one by one",
        head=tuple(names),
        sides="l" * len(names),
        rows=tuple(rows),
        notes=(f"{more} more: see the study file.",) if more else (),
    )


def _point_text(value: Any) -> str:
    if value is None:
        return "–"
    return _short_list(value if isinstance(value, list) else [value])


def _space(evidence: Evidence) -> Grid:
    assert evidence.search
    settings = evidence.search[0]
    rows = []
    for name, entry in settings.space.items():
        if isinstance(entry, tuple):
            rows.append((f"`{name}`", ", ".join(map(str, entry)), ""))
        else:
            scale = "logarithmic" if entry.log else "linear"
            rows.append((f"`{name}`", f"{entry.low:g} to {entry.high:g}", scale))
    limits = [f"`{name}` at most {count(limit)}" for name, limit in settings.constraints.items()]
    return Grid(
        caption="Space searched",
        head=("parameter", "values", "scale"),
        sides="lll",
        rows=tuple(rows),
        notes=(
            f"Sampler {settings.sampler}, {settings.n_trials} trials; "
            f"{'constraints: ' + listed(limits) if limits else 'no constraints'}.",
        ),
    )


def _constants(table: Table) -> list[Block]:
    held, varied = [], []
    for name, words in _QUANTITIES.items():
        if name not in table:
            continue
        found = _levels_of(table, name)
        if len(found) == 1:
            held.append((words, _amount(name, found[0])))
        elif found:
            shown = list(dict.fromkeys(_amount(name, v) for v in found))
            values = ", ".join(shown) if len(shown) <= _MOST_LEVELS else f"{shown[0]} to {shown[-1]}"
            if len(shown) < len(found):  # some differ by less than is printed
                values += f" (within {max(found) / min(found) - 1:.2%})" if len(shown) == 1 else " (rounded)"
            varied.append((words, str(len(found)), values))
    blocks: list[Block] = []
    if varied:
        grid = Grid(
            caption="What differs between runs",
            head=("quantity", "levels", "values"),
            sides="lrl",
            rows=tuple(varied),
        )
        blocks.append(grid)
    if held:
        blocks.append(
            Grid(
                caption="What is the same in all runs",
                head=("quantity", "value", "quantity", "value"),
                sides="llll",
                rows=tuple(_beside(held)),
            )
        )
    return blocks


def _beside(rows: Sequence[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    """The second half of the rows at the right of the first."""
    half = -(-len(rows) // 2)
    for i in range(half):
        yield (*rows[i], *(rows[half + i] if half + i < len(rows) else ("", "")))


def _levels_of(table: Table, name: str) -> list[Any]:
    if name in _TEXT:
        return list(levels(table, name))
    values = numeric(table, name)
    return [float(v) for v in np.unique(values[np.isfinite(values)])]


def _amount(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name == "mcp":
        return f"{value:.1%}"
    if name in _SIZES:
        return count(value)
    return f"{value:,.0f}" if value == int(value) else significant(value)


def _reached(cells: Sequence[Mapping[str, Any]]) -> list[Block]:
    """How far the solver's whole-number dimensions are from their targets."""
    worst: dict[str, float] = {}
    for cell in cells:
        wanted, achieved = (json.loads(cell[name] or "{}") for name in ("wanted", "achieved"))
        for name, target in wanted.items():
            if target and name in achieved:
                worst[name] = max(worst.get(name, 0.0), abs(achieved[name] / target - 1))
    if not worst:
        return []
    words = [f"`{name}` by {share:.2%}" for name, share in worst.items()]
    return [Paragraph(text=f"Cells miss what they were solved for by at most: {', '.join(words)}.")]


def _conditioned(table: Table) -> tuple[str, ...]:
    """Whether the finished runs can tell the effects apart."""
    last = text(table, "stage") == "annealed"
    columns = {"top_m": numeric(table, "top_m") * numeric(table, "heads")} if "heads" in table else {}
    columns |= {name: numeric(table, name) for name in ("sparse_params", "tokens")}
    known = last & np.all([np.isfinite(column) for column in columns.values()], axis=0)
    return condition({name: column[known].tolist() for name, column in columns.items()}).statements


def _infeasible(evidence: Evidence) -> list[Block]:
    found: dict[tuple[str, str], int] = {}
    for cell in evidence.cells:
        if cell["reason"]:
            key = (" ".join(cell_parts(cell["label"])), cell["reason"])
            found[key] = found.get(key, 0) + 1
    if not found:
        return []
    rows = tuple((label or "–", str(n), reason) for (label, reason), n in found.items())
    grid = Grid(caption="Cells that cannot be built", head=("cell", "runs", "reason"), sides="lrl", rows=rows)
    if len(rows) <= _MOST_CELLS:
        return [grid]
    return [Fold(summary=f"{len(rows)} cells cannot be built: reasons", blocks=(grid,))]


# -- runs and cost --------------------------------------------------------------------------------------------


def statuses(table: Table) -> dict[str, int]:
    """Status → runs, in the order of ``FINAL``."""
    runs, status = text(table, "run_id"), text(table, "status")
    found = {one: len(set(runs[status == one].tolist())) for one in (*FINAL, *sorted(set(status.tolist())))}
    return {one: n for one, n in found.items() if n}


def cost(evidence: Evidence) -> list[Block]:
    """Runs, tokens, time and machines."""
    table = evidence.every
    known = statuses(table)
    missing = len(evidence.planned - set(levels(table, "run_id")))
    runs = [f"{n} {status}" for status, n in known.items()] + (
        [f"{missing} not begun or in progress"] if missing else []
    )
    spent = [(tokens, seconds, evaluated) for tokens, seconds, evaluated in _spent(table)]
    rows = [("runs", ", ".join(runs) or "none")]
    if spent:
        tokens, seconds, evaluated = (float(sum(column)) for column in zip(*spent, strict=True))
        peak = numeric(table, "peak_memory_bytes")
        rates = numeric(table, "tokens_per_second")
        rates = rates[np.isfinite(rates)]
        rows += [
            ("tokens trained on, trunks and branches", count(tokens)),
            ("training, sum over runs", f"{duration(seconds)} ({seconds / 3600:.2f} h)"),
            ("evaluation, sum over runs", duration(evaluated)),
            ("tokens per second and run", f"{rates.min():,.0f} to {rates.max():,.0f}"),
            ("peak memory of a run", f"{np.nanmax(peak) / 2**20:,.0f} MiB"),
        ]
        rows += [
            (name, "; ".join(levels(table, name))) for name in ("machine", "device") if levels(table, name)
        ]
    return [Grid(caption="", head=("what", "how much"), sides="ll", rows=tuple(rows))]


def _spent(table: Table) -> Iterator[tuple[float, float, float]]:
    """Tokens, seconds of training and of evaluation of each run: clocks run from a run's first step to its last."""
    runs = text(table, "run_id")
    seconds, rate = numeric(table, "train_seconds"), numeric(table, "tokens_per_second")
    evaluated = numeric(table, "eval_seconds")
    for run in sorted(set(runs.tolist())):
        mine = np.flatnonzero((runs == run) & np.isfinite(seconds))
        if len(mine):
            last = mine[np.argmax(seconds[mine])]
            yield (
                round(rate[last] * seconds[last]) if np.isfinite(rate[last]) else 0,
                float(seconds[last]),
                float(evaluated[last]),
            )


def every_run(evidence: Evidence) -> list[Block]:
    """A row for each run and budget, folded away."""
    rows = budget_rows(evidence.every)
    if not rows:
        return []
    shown = [
        (
            row["run_id"][:8],
            row["label"] or "–",
            count(row["sparse_params"]),
            count(row["budget"]),
            *(
                fixed(row.get(name, math.nan))
                for name in ("loss_stable", "ema_stable", "loss_annealed", "ema_annealed")
            ),
            row["status"],
        )
        for row in rows[:_MOST_RUNS]
    ]
    notes = (
        (f"{len(rows) - _MOST_RUNS} further rows: `umscale runs {evidence.source}`.",)
        if len(rows) > _MOST_RUNS
        else ()
    )
    grid = Grid(
        caption="Validation loss in nats per token, raw and averaged weights",
        head=(
            "run",
            "cell",
            "N_s",
            "budget",
            "before the decay",
            "averaged",
            "after the decay",
            "averaged",
            "status",
        ),
        sides="llrrrrrrl",
        rows=tuple(shown),
        notes=notes,
    )
    return [Fold(summary=f"Every run: {len(rows)} rows", blocks=(grid,))]


# -- probes ---------------------------------------------------------------------------------------------------


def probes(evidence: Evidence) -> list[Block]:
    """How often each cell is right at each task: means over seeds, at each run's largest budget."""
    if not evidence.probes:
        return []
    largest: dict[str, int] = {}
    for row in evidence.probes:
        largest[row["run_id"]] = max(largest.get(row["run_id"], 0), row["budget"])
    last = [row for row in evidence.probes if row["budget"] == largest[row["run_id"]]]
    return [_probed([row for row in last if row["stage"] == s], s) for s in evidence.stages()]


def _probed(rows: Sequence[Mapping[str, Any]], stage: str) -> Grid:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    cells = dict.fromkeys(_cell_name(row) for row in rows)

    def mean(cell: str, task: str, column: str) -> float:
        values = [
            r[column] for r in rows if _cell_name(r) == cell and r["task"] == task and r[column] is not None
        ]
        return float(np.mean(values)) if values else math.nan

    stored = [
        task for task in tasks if any(r["bits_per_param"] is not None for r in rows if r["task"] == task)
    ]
    body = [
        (
            cell,
            *(percent(mean(cell, task, "accuracy")) for task in tasks),
            *(fixed(mean(cell, task, "bits_per_param")) for task in stored),
        )
        for cell in cells
    ]
    ends = []
    for name in ("chance", "ceiling"):
        known = {task: [r[name] for r in rows if r["task"] == task and r[name] is not None] for task in tasks}
        shown = [percent(float(np.mean(known[task])) if known[task] else math.nan) for task in tasks]
        ends.append((name, *shown, *("" for _ in stored)))
    return Grid(
        caption=f"Answer symbols that are right, by task, {STAGE_WORDS.get(stage, stage)}, at each run's "
        "largest budget",
        head=("cell", *tasks, *(f"{task}: bits stored per parameter" for task in stored)),
        sides="l" + "r" * (len(tasks) + len(stored)),
        rows=(*body, *ends),
        notes=("Means over seeds, of raw weights and the likeliest symbol.",),
    )


def _cell_name(row: Mapping[str, Any]) -> str:
    if not row["label"]:
        return str(row["run_id"])[:8]
    return cell_name(row["label"]) or "all"


# -- versions -------------------------------------------------------------------------------------------------


def versions(evidence: Evidence) -> list[Block]:
    """What the runs were made with."""
    from umscale import __version__

    table = evidence.every
    revisions = levels(table, "git_revision")
    dirty = [r for r in revisions if r.endswith("+dirty")]
    packages: dict[str, dict[str, None]] = {}
    for one in levels(table, "versions"):
        with contextlib.suppress(ValueError, AttributeError):  # another tool's table
            for name, version in json.loads(one).items():
                if version:
                    packages.setdefault(name, {})[version] = None
    hashes = levels(table, "data_hash")
    rows = [
        ("source revision", ", ".join(revisions) or "not a git checkout"),
        (
            "uncommitted changes",
            f"yes, in {len(dirty)} of {len(revisions)} revisions"
            if dirty
            else "none"
            if revisions
            else "unknown",
        ),
        *((name, ", ".join(each)) for name, each in packages.items()),
        *(
            (name, ", ".join(levels(table, name)) or "–")
            for name in ("kernels", "precision", "device", "machine", "corpus")
        ),
        ("data hash", ", ".join(hashes) or "–"),
        ("report by", f"umscale {__version__}"),
    ]
    return [Grid(caption="", head=("what", "version"), sides="ll", rows=tuple(rows))]
