"""What models cost, in tables: counted side by side, decoding, training memory, learning rates."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umscale.say.blocks import Block, Grid, Paragraph
from umscale.say.numbers import count

if TYPE_CHECKING:
    from umscale.accounting import Cost
    from umscale.hardware import Hardware
    from umscale.model.presets import Preset
    from umscale.spec import TrainSpec

Entry = Mapping[str, Any]
"""What ``umscale cost --json`` says of one model."""

_SIZES = (
    ("total parameters", "total_params", "without embeddings"),
    ("  with embeddings", "total_params_with_embedding", "token embedding, and head if untied"),
    ("active parameters", "active_params", "read by one token, without embeddings"),
    ("  with embeddings", "active_params_with_embedding", ""),
    ("sparse parameters N_s", "sparse_params", "rows of value tables, routed experts"),
    ("active sparse A_s", "active_sparse_params", "of them, read by one token"),
)


def cost_blocks(entries: Sequence[Entry], seq_len: int) -> list[Block]:
    """A column for each model, and what each says of itself."""
    rows = (*_counted(entries, seq_len), *_read(entries))
    names = (Path(entry["model"]).name for entry in entries)
    return [
        Grid(
            caption="",
            head=("", *names, ""),
            sides=f"l{'r' * len(entries)}l",
            rows=rows,
        ),
        *(
            Paragraph(text=f"{entry['model']} ({entry['source']}): {entry['note']}")
            for entry in entries
            if entry["note"]
        ),
    ]


def _counted(entries: Sequence[Entry], seq_len: int) -> Iterator[tuple[str, ...]]:
    costs = [entry["cost"] for entry in entries]
    yield "architecture", *(entry["architecture"] for entry in entries), ""
    for title, name, remark in _SIZES:
        yield title, *(count(c[name], 4) for c in costs), remark
    yield "values a layer and token", *(count(c["activated_values"]) for c in costs), "heads x top_m"
    yield "density rho", *(_small(c["density"]) for c in costs), "A_s / N_s"
    yield "visible density", *(_small(c["visible_density"]) for c in costs), "of what a layer can address"
    yield "MCP", *(f"{c['mcp']:.2%}" for c in costs), "memory / (memory + FFN) work"
    yield "memory-to-FFN ratio", *(f"{c['memory_to_ffn']:.3f}" for c in costs), "MCP / (1 - MCP)"
    yield "forward FLOPs per token", *(count(c["flops_per_token"]) for c in costs), f"at context {seq_len}"
    for part in costs[0]["flops_by_part"]:
        flops = [(c["flops_by_part"][part], c["flops_per_token"]) for c in costs]
        yield f"  {part.replace('_', ' ')}", *(f"{count(own)} {own / all_:6.1%}" for own, all_ in flops), ""


def _read(entries: Sequence[Entry]) -> Iterator[tuple[str, ...]]:
    """Bytes that a decoding step reads, by batch; of several models also as multiples of the last one's."""
    access = [entry["memory_access_bytes_per_step"] for entry in entries]
    first = next(iter(access[0]))
    for b in access[0]:
        ratios = ", ".join(f"{a[b] / access[-1][b]:.3g}" for a in access[:-1])
        remark = "FFN and memory weights, bf16, a step" if b == first else ""
        if ratios:
            remark = f"{ratios} x {entries[-1]['model']}"
        yield f"weights read, batch {b}", *(f"{a[b] / 1e6:.4g} MB" for a in access), remark
    known = [entry["prefetchable_bytes_per_step"] for entry in entries]
    if any(k[b] for k in known for b in k):
        for b in known[0]:
            remark = "addresses follow from the tokens: may lie in host memory" if b == first else ""
            yield f"  of it prefetchable, batch {b}", *(f"{k[b] / 1e6:.4g} MB" for k in known), remark


def decoding_blocks(entries: Sequence[Entry], device: "Hardware") -> list[Block]:
    """Decoding times, a row a model, placement and batch."""
    rows = []
    for entry in entries:
        for one in entry["decoding"]:
            terms = (f"{one[t] / one['batch'] * 1e6:.3g}" for t in ("compute", "device_memory", "host_link"))
            total = f"{one['seconds_per_token'] * 1e6:.3g}"
            remark = one["binds"] + ("" if one["fits"] else ", does not fit")
            rows.append((entry["model"], one["tables"], str(one["batch"]), total, *terms, remark))
    head = ("decoding", "tables on", "batch", "us a token", "compute", "device memory", "host link", "binds")
    source = f"{device.name}: a roofline, not a measurement. {device.source}"
    return [Grid(caption="", head=head, sides="llrrrrrl", rows=tuple(rows)), Paragraph(text=source)]


def memory_blocks(found: Mapping[str, Mapping[str, int]], gpus: int) -> list[Block]:
    """Peak memory of training on each process, by part; a column for each model."""
    parts = next(iter(found.values()))
    rows = [(part, *(f"{one[part] / 2**20:,.0f}" for one in found.values())) for part in parts]
    rows.append(("peak", *(f"{sum(one.values()) / 2**20:,.0f}" for one in found.values())))
    said = f"{gpus} processes; a GPU's own context and message buffers are not in it"
    sides = f"l{'r' * len(found)}"
    grid = Grid(caption="", head=("MiB on each process", *found), sides=sides, rows=tuple(rows))
    return [grid, Paragraph(text=said)]


def rates_blocks(entries: Sequence[Entry], train: "TrainSpec") -> list[Block]:
    """The learning rates that a run of each model gets, and the factors they are made of."""
    from umscale.model.scaling import BASE

    def row(title: str, why: str, *path: str) -> tuple[str, ...]:
        found: list[Any] = list(entries)
        for name in path:
            found = [None if one is None else one.get(name) for one in found]
        cells = ("–" if v is None else v if isinstance(v, str) else f"{v:.4g}" for v in found)
        return title, *cells, why

    rows = [
        row("architecture", "", "architecture"),
        row("lr", f"train.lr x {BASE.d_model} / d_model", "lr"),
        row("value_lr", "train.value_lr x factor", "value_lr"),
    ]
    base = next((entry["base_row"] for entry in entries if "base_row" in entry), None)
    if base is not None:
        at = {name: f"{value:.4g} at the base shape" for name, value in base.items()}
        energy = (
            f"sum of s² of a token, {train.score_energy}: sigma goes with its -1/4, without pre-values -1/2; "
            f"{at['energy']}"
        )
        rows += [
            row("  factor", "sigma / width^(1/2), over that of the base shape", "value_factor"),
            row("  sigma", f"deviation values start with (init paper); {at['sigma']}", "row", "sigma"),
            row("  width", f"d_pre_value + d_value; {at['width']}", "row", "width"),
            row("  score energy", energy, "row", "energy"),
        ]
    coupled = train.table_weight_decay == "coupled"
    why = "train.weight_decay x value_lr" if coupled else "train.table_weight_decay"
    rows.append(row("table decay a step", why, "table_decay_per_step"))
    names = (Path(entry["model"]).name for entry in entries)
    sides = f"l{'r' * len(entries)}l"
    return [Grid(caption="", head=("", *names, "why"), sides=sides, rows=tuple(rows))]


def preset_blocks(presets: "Mapping[str, Preset]", costs: "Mapping[str, Cost]") -> list[Block]:
    """The presets by name."""
    rows = tuple(
        (
            name,
            one.model.architecture,
            count(costs[name].total_params),
            count(costs[name].active_params),
            one.source,
        )
        for name, one in presets.items()
    )
    head = ("preset", "architecture", "total", "active", "source")
    return [Grid(caption="", head=head, sides="llrrl", rows=rows)]


def _small(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3e}"
