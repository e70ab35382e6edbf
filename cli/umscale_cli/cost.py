"""``umscale cost``: parameters, FLOPs and memory access of models, without training anything."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.console import JsonFlag, SetOption, count, note, out, print_json
from umscale_cli.splits import DenseOption, TablesOption, check_split

if TYPE_CHECKING:
    from umscale.hardware import Hardware
    from umscale.spec import ModelSpec, RunSpec
    from umscale.training.peak_memory import Split


def cost(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="Presets (ultramem_v2-227m) or .toml files with a [model] table; none lists the presets.",
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(help="Tokens decoded together, for memory access.")
    ] = "1,16,64,256,1024,4096",
    seq_len: Annotated[int, typer.Option(min=1, help="Context length of the attention scores.")] = 2048,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            help="Memory that training takes on each process, by part: of the [train] and [data] tables of the file.",
        ),
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, help="Processes that train it, for --memory.")] = 1,
    tables: TablesOption = "replicated",
    dense: DenseOption = "replicated",
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="h100|h200|b200|FILE",
            help="Also price decoding on it: time a token by batch, and what binds.",
        ),
    ] = None,
    set_: SetOption = None,
    rates: Annotated[
        bool, typer.Option("--rates", help="Show the learning rates a run would get, and why, instead.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Count parameters, FLOPs and memory access per token; of two models or more, side by side.

    Total and active parameters leave the token embedding (and an untied head) out; the lines below add it.
    """
    from umscale.accounting import cost as count_cost
    from umscale.accounting import memory_access_bytes, prefetchable_bytes
    from umscale.errors import UserError
    from umscale.hardware import load_hardware

    try:
        batches = [int(b) for b in batch.split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise UserError(f"--batch {batch!r} must be whole numbers such as 1,16,64")
    if memory:
        split = check_split(gpus, tables, dense)
        found = {model: _memory(model, set_ or [], seq_len, split) for model in models or ()}
        if not found:
            raise UserError("--memory needs a model: a preset or a .toml file")
        _print_memory(found, gpus, json_)
        return
    if not models:
        _list_presets(json_)
        return
    if rates:
        _print_rates(models, set_ or [], json_)
        return
    device = load_hardware(hardware) if hardware else None
    entries = []
    for model in models:
        spec, source, remark = load_model(model, set_ or [])
        entries.append(
            {
                "model": model,
                "architecture": spec.architecture,
                "source": source,
                "note": remark,
                "seq_len": seq_len,
                "cost": count_cost(spec, seq_len).to_dict(),
                "memory_access_bytes_per_step": {b: memory_access_bytes(spec, b) for b in batches},
                "prefetchable_bytes_per_step": {b: prefetchable_bytes(spec, b) for b in batches},
            }
        )
        if device is not None:
            entries[-1]["decoding"] = _decoding(spec, device, batches, seq_len)
    if json_:
        print_json(entries[0] if len(entries) == 1 else entries)
        return
    _print(entries, seq_len)
    if device is not None:
        _print_decoding(entries, device)


def _decoding(
    spec: "ModelSpec", device: "Hardware", batches: list[int], context: int
) -> list[dict[str, Any]]:
    """Return decoding times by batch, token-addressed tables on the device and, where there are any, on the host."""
    from umscale.hardware import Placement, decode_time

    places: tuple[Placement, ...] = ("device", "host") if spec.ngram is not None else ("device",)
    return [
        decode_time(spec, device, b, context, place).to_dict() | {"hardware": device.name}
        for place in places
        for b in batches
    ]


def _print_decoding(entries: list[dict[str, Any]], device: "Hardware") -> None:
    """Print a table of decoding times, a row a model, placement and batch."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in (
        "decoding",
        "tables on",
        "batch",
        "us a token",
        "compute",
        "device memory",
        "host link",
        "binds",
    ):
        table.add_column(title, justify="left" if title in ("decoding", "tables on", "binds") else "right")
    for entry in entries:
        for one in entry["decoding"]:
            terms = [f"{one[t] / one['batch'] * 1e6:.3g}" for t in ("compute", "device_memory", "host_link")]
            remark = one["binds"] + ("" if one["fits"] else ", does not fit")
            table.add_row(
                entry["model"],
                one["tables"],
                str(one["batch"]),
                f"{one['seconds_per_token'] * 1e6:.3g}",
                *terms,
                remark,
            )
    out().print(table)
    out().print(f"{device.name}: a roofline, not a measurement. {device.source}", soft_wrap=True)


def _memory(model: str, overrides: list[str], seq_len: int, split: "Split") -> dict[str, int]:
    """Return the bytes of each part on one process; ``seq_len`` is that of a model without a [data] table."""
    from umscale.spec import DataSpec, RunSpec, TrainSpec, apply_overrides, from_dict, read_toml
    from umscale.training.peak_memory import host_memory, predict_memory
    from umscale.training.shards import check

    spec, _, _ = load_model(model, [item for item in overrides if item.startswith("model.")])
    tree = apply_overrides(read_toml(Path(model)) if model.endswith(".toml") else {}, overrides)
    data = from_dict(DataSpec, {"seq_len": seq_len} | tree.get("data", {}), "data")
    train = from_dict(TrainSpec, {"budgets": [10**12]} | tree.get("train", {}), "train")
    run = RunSpec(model=spec, data=data, train=train)
    check(run, split.size, split.shard_tables)
    if host := host_memory(run):
        note(
            f"{host / 2**20:,.0f} MiB of token-addressed tables are in each process's host memory beside what follows"
        )
    return predict_memory(run, split)


def _print_memory(found: dict[str, dict[str, int]], gpus: int, json_: bool) -> None:
    from rich.table import Table

    if json_:
        print_json({name: parts | {"total": sum(parts.values())} for name, parts in found.items()})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("MiB on each process")
    for name in found:
        table.add_column(name, justify="right", no_wrap=True)
    for part in next(iter(found.values())):
        table.add_row(part, *(f"{parts[part] / 2**20:,.0f}" for parts in found.values()))
    table.add_row("peak", *(f"{sum(parts.values()) / 2**20:,.0f}" for parts in found.values()))
    out().print(table)
    out().print(f"{gpus} processes; a GPU's own context and message buffers are not in it", soft_wrap=True)


def _print(entries: list[dict[str, Any]], seq_len: int) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for entry in entries:
        table.add_column(Path(entry["model"]).name, justify="right", no_wrap=True)
    table.add_column("")

    def row(title: str, values: list[str], remark: str = "") -> None:
        table.add_row(title, *values, remark)

    costs = [entry["cost"] for entry in entries]
    row("architecture", [entry["architecture"] for entry in entries])
    for title, name, remark in (
        ("total parameters", "total_params", "without embeddings"),
        ("  with embeddings", "total_params_with_embedding", "token embedding, and head if untied"),
        ("active parameters", "active_params", "read by one token, without embeddings"),
        ("  with embeddings", "active_params_with_embedding", ""),
        ("sparse parameters N_s", "sparse_params", "rows of value tables, routed experts"),
        ("active sparse A_s", "active_sparse_params", "of them, read by one token"),
    ):
        row(title, [count(c[name], 4) for c in costs], remark)
    row("values a layer and token", [count(c["activated_values"]) for c in costs], "heads x top_m")
    row("density rho", [_small(c["density"]) for c in costs], "A_s / N_s")
    row("visible density", [_small(c["visible_density"]) for c in costs], "of what a layer can address")
    row("MCP", [f"{c['mcp']:.2%}" for c in costs], "memory / (memory + FFN) work")
    row("memory-to-FFN ratio", [f"{c['memory_to_ffn']:.3f}" for c in costs], "MCP / (1 - MCP)")
    row("forward FLOPs per token", [count(c["flops_per_token"]) for c in costs], f"at context {seq_len}")
    for part in costs[0]["flops_by_part"]:
        shares = [
            f"{count(c['flops_by_part'][part])} {c['flops_by_part'][part] / c['flops_per_token']:6.1%}"
            for c in costs
        ]
        row(f"  {part.replace('_', ' ')}", shares)
    access = [entry["memory_access_bytes_per_step"] for entry in entries]
    for b in access[0]:
        ratios = ", ".join(f"{a[b] / access[-1][b]:.3g}" for a in access[:-1])
        remark = "FFN and memory weights, bf16, a step" if b == next(iter(access[0])) else ""
        if ratios:
            remark = f"{ratios} x {entries[-1]['model']}"
        row(f"weights read, batch {b}", [f"{a[b] / 1e6:.4g} MB" for a in access], remark)
    known = [entry["prefetchable_bytes_per_step"] for entry in entries]
    if any(k[b] for k in known for b in k):
        for b in known[0]:
            remark = (
                "addresses follow from the tokens: may lie in host memory"
                if b == next(iter(known[0]))
                else ""
            )
            table.add_row(
                f"  of it prefetchable, batch {b}", *[f"{k[b] / 1e6:.4g} MB" for k in known], remark
            )
    out().print(table)
    for entry in entries:
        if entry["note"]:
            out().print(f"{entry['model']} ({entry['source']}): {entry['note']}", soft_wrap=True)


def _rates_of(model: str, run: "RunSpec") -> dict[str, Any]:
    """Return the rates of a run and, where they follow from its shape, the factors they are made of."""
    from dataclasses import asdict

    from umscale.model.scaling import BASE, learning_rates, row_step, table_decay

    lr, value_lr = learning_rates(run)
    entry: dict[str, Any] = {"model": model, "architecture": run.model.architecture, "lr": lr}
    if run.model.memory is None:
        return entry
    entry |= {"value_lr": value_lr, "table_decay_per_step": value_lr * table_decay(run)}
    if run.train.rate_scaling == "shape":
        row, base = (row_step(m, run.train.score_energy == "measured") for m in (run.model, BASE))
        entry |= {"row": asdict(row), "base_row": asdict(base), "value_factor": row.step / base.step}
    return entry


def _print_rates(models: list[str], overrides: list[str], json_: bool) -> None:
    """Print the learning rates of a run of each model, and the factors they are made of."""
    from rich.table import Table

    from umscale.model.scaling import BASE

    runs = {model: _load_run(model, overrides) for model in models}
    entries = [_rates_of(model, run) for model, run in runs.items()]
    if json_:
        print_json(entries[0] if len(entries) == 1 else entries)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for model in models:
        table.add_column(Path(model).name, justify="right", no_wrap=True)
    table.add_column("why")

    def line(title: str, values: list[Any], why: str) -> None:
        table.add_row(
            title, *("–" if v is None else v if isinstance(v, str) else f"{v:.4g}" for v in values), why
        )

    def of(*path: str) -> list[Any]:
        found: list[Any] = entries
        for name in path:
            found = [None if each is None else each.get(name) for each in found]
        return found

    first = next(iter(runs.values())).train
    line("architecture", of("architecture"), "")
    line("lr", of("lr"), f"train.lr x {BASE.d_model} / d_model")
    line("value_lr", of("value_lr"), "train.value_lr x factor")
    base: dict[str, float] = next((entry["base_row"] for entry in entries if "base_row" in entry), {})
    at_base = {name: f"{value:.4g} at the base shape" for name, value in base.items()}
    if at_base:
        line("  factor", of("value_factor"), "sigma / width^(1/2), over that of the base shape")
        line("  sigma", of("row", "sigma"), f"deviation values start with (init paper); {at_base['sigma']}")
        line("  width", of("row", "width"), f"d_pre_value + d_value; {at_base['width']}")
        line(
            "  score energy",
            of("row", "energy"),
            f"sum of s² of a token, {first.score_energy}: sigma goes with its -1/4, without pre-values -1/2; "
            f"{at_base['energy']}",
        )
    decay = first.table_weight_decay
    line(
        "table decay a step",
        of("table_decay_per_step"),
        "train.weight_decay x value_lr" if decay == "coupled" else "train.table_weight_decay",
    )
    out().print(table)


def _load_run(model: str, overrides: list[str]) -> "RunSpec":
    """Return a run of a model by preset name or .toml file; of a file also with its ``[train]`` table."""
    from umscale.spec import RunSpec, TrainSpec, apply_overrides, from_dict, read_toml

    spec, _, _ = load_model(model, [o for o in overrides if not o.startswith("train.")])
    path = Path(model)
    tree = read_toml(path) if path.suffix == ".toml" else {}
    train = apply_overrides(
        {"train": tree.get("train", {})}, [o for o in overrides if o.startswith("train.")]
    )
    return RunSpec(model=spec, train=from_dict(TrainSpec, train["train"], "train"))


def _small(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3e}"


def _list_presets(json_: bool) -> None:
    from rich.table import Table

    from umscale.accounting import cost as count_cost
    from umscale.model.presets import PRESETS

    costs = {name: count_cost(found.model) for name, found in PRESETS.items()}
    if json_:
        print_json({name: {"source": PRESETS[name].source, "cost": c.to_dict()} for name, c in costs.items()})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("preset", "architecture", "total", "active", "source"):
        table.add_column(title, justify="right" if title in ("total", "active") else "left")
    for name, found in PRESETS.items():
        sizes = costs[name]
        table.add_row(
            name,
            found.model.architecture,
            count(sizes.total_params),
            count(sizes.active_params),
            found.source,
        )
    out().print(table)


def load_model(model: str, overrides: list[str]) -> "tuple[ModelSpec, str, str]":
    """Return a model by preset name or .toml file with overrides, where it comes from, and a remark."""
    from umscale.errors import UserError
    from umscale.model.presets import preset
    from umscale.spec import ModelSpec, apply_overrides, from_dict, read_toml, to_dict

    path = Path(model)
    if path.suffix == ".toml":
        tree = apply_overrides(read_toml(path), overrides)
        if "model" not in tree:
            raise UserError(f"{model}: no [model] table in it")
        spec = from_dict(ModelSpec, tree["model"], "model")
        remark = "" if spec.vocab_size else "vocab_size is not set: embeddings and head count nothing"
        return spec, path.name, remark
    found = preset(model)
    tree = apply_overrides({"model": to_dict(found.model)}, overrides)
    return from_dict(ModelSpec, tree["model"], "model"), found.source, found.note
