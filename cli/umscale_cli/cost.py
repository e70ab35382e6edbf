"""``umscale cost``: parameters, FLOPs and memory access of models, without training anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.console import JsonFlag, SetOption, note, print_json, show
from umscale_cli.options import takes_options
from umscale_cli.splits import DenseOption, TablesOption, check_split

if TYPE_CHECKING:
    from umscale.hardware import Hardware
    from umscale.spec import ModelSpec, RunSpec
    from umscale.training.peak_memory import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOptions:
    """Options of ``umscale cost``."""

    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="Presets (ultramem_v2-227m) or .toml files with a [model] table; none lists the presets.",
        ),
    ] = None
    batch: Annotated[str, typer.Option(help="Tokens decoded together, for memory access.")] = (
        "1,16,64,256,1024,4096"
    )
    seq_len: Annotated[int, typer.Option(min=1, help="Context length of the attention scores.")] = 2048
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            help="Memory that training takes on each process, by part: of the [train] and [data] tables of the file.",
        ),
    ] = False
    gpus: Annotated[int, typer.Option(min=1, help="Processes that train it, for --memory.")] = 1
    tables: TablesOption = "replicated"
    dense: DenseOption = "replicated"
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="h100|h200|b200|FILE",
            help="Also price decoding on it: time a token by batch, and what binds.",
        ),
    ] = None
    set_: SetOption = None
    rates: Annotated[
        bool, typer.Option("--rates", help="Show the learning rates a run would get, and why, instead.")
    ] = False
    json_: JsonFlag = False


@takes_options
def cost(asked: CostOptions) -> None:
    """Count parameters, FLOPs and memory access per token; of two models or more, side by side.

    Total and active parameters leave the token embedding (and an untied head) out; the lines below add it.
    """
    batches = _batches(asked.batch)
    if asked.memory:
        _memories(asked)
    elif not asked.models:
        _list_presets(asked.json_)
    elif asked.rates:
        _rates(asked.models, asked.set_ or [], asked.json_)
    else:
        _costs(asked, asked.models, batches)


def _batches(text: str) -> list[int]:
    from umscale.errors import UserError

    try:
        batches = [int(b) for b in text.split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise UserError(f"--batch {text!r} must be whole numbers such as 1,16,64")
    return batches


def _costs(asked: CostOptions, models: list[str], batches: list[int]) -> None:
    from umscale.accounting import cost as count_cost
    from umscale.accounting import memory_access_bytes, prefetchable_bytes
    from umscale.hardware import load_hardware
    from umscale.say.costs import cost_blocks, decoding_blocks

    device = load_hardware(asked.hardware) if asked.hardware else None
    entries = []
    for model in models:
        spec, source, remark = load_model(model, asked.set_ or [])
        entry: dict[str, Any] = {
            "model": model,
            "architecture": spec.architecture,
            "source": source,
            "note": remark,
            "seq_len": asked.seq_len,
            "cost": count_cost(spec, asked.seq_len).to_dict(),
            "memory_access_bytes_per_step": {b: memory_access_bytes(spec, b) for b in batches},
            "prefetchable_bytes_per_step": {b: prefetchable_bytes(spec, b) for b in batches},
        }
        if device is not None:
            entry["decoding"] = _decoding(spec, device, batches, asked.seq_len)
        entries.append(entry)
    if asked.json_:
        print_json(entries[0] if len(entries) == 1 else entries)
        return
    show(cost_blocks(entries, asked.seq_len))
    if device is not None:
        show(decoding_blocks(entries, device))


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


def _memories(asked: CostOptions) -> None:
    from umscale.errors import UserError
    from umscale.say.costs import memory_blocks

    split = check_split(asked.gpus, asked.tables, asked.dense)
    found = {model: _memory(model, asked.set_ or [], asked.seq_len, split) for model in asked.models or ()}
    if not found:
        raise UserError("--memory needs a model: a preset or a .toml file")
    if asked.json_:
        print_json({name: parts | {"total": sum(parts.values())} for name, parts in found.items()})
    else:
        show(memory_blocks(found, asked.gpus))


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
    check(run, split.size, split.shard_tables, split.shard_dense)
    if host := host_memory(run):
        note(
            f"{host / 2**20:,.0f} MiB of token-addressed tables are in each process's host memory beside what follows"
        )
    return predict_memory(run, split)


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


def _rates(models: list[str], overrides: list[str], json_: bool) -> None:
    from umscale.say.costs import rates_blocks

    runs = [_load_run(model, overrides) for model in models]
    entries = [_rates_of(model, run) for model, run in zip(models, runs, strict=True)]
    if json_:
        print_json(entries[0] if len(entries) == 1 else entries)
    else:
        show(rates_blocks(entries, runs[0].train))


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


def _list_presets(json_: bool) -> None:
    from umscale.accounting import cost as count_cost
    from umscale.model.presets import PRESETS
    from umscale.say.costs import preset_blocks

    costs = {name: count_cost(found.model) for name, found in PRESETS.items()}
    if json_:
        print_json({name: {"source": PRESETS[name].source, "cost": c.to_dict()} for name, c in costs.items()})
    else:
        show(preset_blocks(PRESETS, costs))


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
