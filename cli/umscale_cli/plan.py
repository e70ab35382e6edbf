"""``umscale plan``: the configuration that a study's law recommends within limits on size, compute and access."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from umscale_cli.console import JsonFlag, note, print_json, show
from umscale_cli.law_options import pairs
from umscale_cli.options import takes_options
from umscale_cli.runs import open_store, warn_damaged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from umscale.laws.saved import SavedFit
    from umscale.questions.plan import Limits, Preferences
    from umscale.results.table import Table
    from umscale.spec import ModelSpec
    from umscale.store.store import Store


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Options of ``umscale plan``."""

    source: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|FIT",
            help="A study's store or name, or a .json file that `umscale fit --json` printed.",
        ),
    ]
    max_total_params: Annotated[
        str | None, typer.Option(help="Parameters without embeddings, as in 120B.", show_default=False)
    ] = None
    max_active_params: Annotated[
        str | None, typer.Option(help="Parameters one token reads, without embeddings.", show_default=False)
    ] = None
    max_active_flops: Annotated[
        str | None, typer.Option(help="Forward FLOPs per token, head included.", show_default=False)
    ] = None
    max_memory_access: Annotated[
        str | None,
        typer.Option(help="Bytes of FFN and memory weights read by a decoding step.", show_default=False),
    ] = None
    max_device_memory: Annotated[
        str | None,
        typer.Option(help="Bytes of bf16 weights in device memory, embeddings included.", show_default=False),
    ] = None
    max_host_memory: Annotated[
        str | None,
        typer.Option(help="Bytes of bf16 weights in host memory, with --tables host.", show_default=False),
    ] = None
    max_decode_time: Annotated[
        float | None,
        typer.Option(
            help="Microseconds a token that decoding takes on --hardware, by its roofline.",
            show_default=False,
        ),
    ] = None
    hardware: Annotated[
        str | None, typer.Option(help="What decodes: h100, h200, b200 or a .toml file.", show_default=False)
    ] = None
    tables: Annotated[
        Literal["device", "host"], typer.Option(help="Where token-addressed tables lie when decoding.")
    ] = "device"
    batch: Annotated[int, typer.Option(min=1, help="Tokens decoded together in a step.")] = 16
    across: Annotated[
        bool,
        typer.Option(
            "--across",
            help="Choose among the kinds of models that the study measured, as they are: dense, mixtures, memories.",
        ),
    ] = False
    tokens: Annotated[
        str | None, typer.Option(help="Training tokens; default the study's.", show_default=False)
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            help="What the plan does not vary: a preset or a .toml file; its kind is what is planned: a memory layer, "
            "a mixture of experts, a dense model. Default the study's.",
            show_default=False,
        ),
    ] = None
    law: Annotated[
        str | None,
        typer.Option(help="Law that ranks; default the one `umscale fit` recommends.", show_default=False),
    ] = None
    stage: Annotated[
        str | None, typer.Option(help="annealed or stable; default annealed.", show_default=False)
    ] = None
    compensation: Annotated[
        str | None, typer.Option(help="Of the runs the law is fitted to.", show_default=False)
    ] = None
    sizing: Annotated[
        str | None,
        typer.Option(
            help="How the FFN follows: none, iso_flops or iso_active (of --model); default as the runs.",
            show_default=False,
        ),
    ] = None
    vary: Annotated[
        str, typer.Option(help="Also vary these, comma-separated: d_key, d_pre_value, d_value, d_ffn.")
    ] = ""
    max_octaves: Annotated[
        float, typer.Option(min=0, help="Extrapolation allowed on any axis of the law but tokens.")
    ] = 1.0
    seq_len: Annotated[
        int | None,
        typer.Option(min=1, help="Context of the attention scores; default the study's.", show_default=False),
    ] = None
    loss: Annotated[str, typer.Option(help="loss (raw weights) or loss_ema (averaged).")] = "loss"
    means: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SYMBOL=QUANTITY",
            help="What of a model a symbol of the law is: active_params, total_params, total_params_with_embedding, "
            "...; "
            "default a study's columns.",
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the recommendation as a study file."),
    ] = None
    json_: JsonFlag = False


@takes_options
def plan(asked: PlanOptions) -> None:
    """Recommend real dimensions within limits, with the predicted loss, the runners-up and what the limits cost."""
    from umscale.files import write_text
    from umscale.questions.plan import plan as make_plan
    from umscale.questions.plan import to_json

    if asked.across:
        _across(asked)
        return
    source = _read(asked)
    found = make_plan(source.table, _base(asked, source), _limits(asked), _preferences(asked, source))
    if asked.json_:
        print_json(to_json(found))
    else:
        show(found.blocks())
    if asked.output is not None:
        write_text(Path(asked.output), found.to_toml(source.tree))
        note(f"wrote {asked.output}")
    if source.store is not None:
        warn_damaged(source.store)


def _across(asked: PlanOptions) -> None:
    """Rank the models that a study measured."""
    from umscale.design.study import parse
    from umscale.errors import UserError
    from umscale.questions.plan_families import plan_families
    from umscale.store.store import MEASURED

    unused: dict[str, object] = {"--model": asked.model, "--law": asked.law, "--sizing": asked.sizing}
    unused |= {"--vary": asked.vary, "--means": asked.means, "--output": asked.output}
    if given := [name for name, value in unused.items() if value]:
        raise UserError(f"--across takes models as they were measured: {', '.join(given)} cannot be given")
    store = open_store(asked.source)
    found = plan_families(
        store.columns(),
        {run.run_id: run.model for status in MEASURED for run in store.specs(status)},
        _limits(asked),
        tokens=_quantity(asked.tokens, "--tokens"),
        stage=asked.stage,
        compensation=asked.compensation,
        loss=asked.loss,
        context=asked.seq_len or parse(store.study_tree(), "study.toml").reference.data.seq_len,
        max_octaves=asked.max_octaves,
    )
    if asked.json_:
        print_json(found.to_json())
    else:
        show(found.blocks())
    warn_damaged(store)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What is planned from: a study's runs, or the rows of a saved fit."""

    table: "Table"
    store: "Store | None"
    tree: dict[str, Any]
    """The study file; empty of a table."""
    saved: "SavedFit | None"
    reference: "ModelSpec | None"
    """The study's model."""
    context: int


def _read(asked: PlanOptions) -> _Source:
    from umscale.design.study import parse
    from umscale.laws.saved import read_saved
    from umscale.questions.plan import FOR_NULL
    from umscale.results.source import read_table

    saved = None
    if asked.source.endswith(".json"):
        saved = read_saved(Path(asked.source), law=asked.law, stage=asked.stage, for_null=FOR_NULL)
        if not saved.is_study:
            table = dict(read_table(saved.source))
            return _Source(table=table, store=None, tree={}, saved=saved, reference=None, context=2048)
    store = open_store(asked.source if saved is None else saved.source)
    tree = store.study_tree()
    run = parse(tree, "study.toml").reference
    return _Source(
        table=store.columns(),
        store=store,
        tree=tree,
        saved=saved,
        reference=run.model,
        context=run.data.seq_len,
    )


def _base(asked: PlanOptions, source: _Source) -> "ModelSpec":
    """The model that the plan varies; raises ``UserError`` naming every option that is missing."""
    from umscale.errors import UserError
    from umscale_cli.cost import load_model

    base = source.reference if asked.model is None else load_model(asked.model, [])[0]
    missing = list(_missing(asked, base))
    if base is None or missing:
        raise UserError(f"{asked.source}: a plan needs also {'; '.join(missing)}")
    if asked.model is None and not base.vocab_size and len(source.table["vocab_size"]):
        return dataclasses.replace(base, vocab_size=int(source.table["vocab_size"][0]))
    return base


def _limits(asked: PlanOptions) -> "Limits":
    from umscale.hardware import load_hardware
    from umscale.questions.plan import Limits

    time = asked.max_decode_time
    return Limits(
        total_params=_quantity(asked.max_total_params, "--max-total-params"),
        active_params=_quantity(asked.max_active_params, "--max-active-params"),
        device_bytes=_quantity(asked.max_device_memory, "--max-device-memory"),
        host_bytes=_quantity(asked.max_host_memory, "--max-host-memory"),
        seconds_per_token=None if time is None else time * 1e-6,
        hardware=None if asked.hardware is None else load_hardware(asked.hardware),
        tables=asked.tables,
        active_flops=_quantity(asked.max_active_flops, "--max-active-flops"),
        memory_access_bytes=_quantity(asked.max_memory_access, "--max-memory-access"),
        batch=asked.batch,
    )


def _preferences(asked: PlanOptions, source: _Source) -> "Preferences":
    from umscale.laws.saved import refit_saved
    from umscale.laws.sections import STUDY_UNITS
    from umscale.questions.plan import Preferences

    saved = source.saved
    return Preferences(
        tokens=_quantity(asked.tokens, "--tokens"),
        law=asked.law if saved is None else refit_saved(saved, source.table),
        stage=asked.stage,
        compensation=asked.compensation,
        sizing=asked.sizing,
        loss=asked.loss,
        vary=tuple(name.strip() for name in asked.vary.split(",") if name.strip()),
        max_octaves=asked.max_octaves,
        seq_len=asked.seq_len or source.context,
        seed=asked.seed,
        means=dict(pairs(asked.means, "--means", "SYMBOL=QUANTITY")),
        units=STUDY_UNITS if saved is None else saved.units,
    )


def _quantity(given: str | None, option: str) -> float | None:
    from umscale.spec import quantity

    return None if given is None else quantity(given, option)


def _missing(asked: PlanOptions, base: "ModelSpec | None") -> "Iterator[str]":
    """What a plan still lacks, each with the option that says it."""
    size = asked.max_total_params or asked.max_device_memory
    use = (
        asked.max_active_flops or asked.max_memory_access or asked.max_active_params or asked.max_decode_time
    )
    if base is None:
        yield "--model, since a table has none: a preset or .toml of the kind to plan"
    dense = base is not None and base.memory is None and base.ffn.kind != "moe"
    if dense and not (size or use):
        yield "a limit: --max-total-params, --max-active-flops or --max-memory-access"
    if not dense and not size:
        yield "--max-total-params or --max-device-memory"
    if not dense and not use:
        yield "--max-active-flops, --max-memory-access, --max-active-params or --max-decode-time"
