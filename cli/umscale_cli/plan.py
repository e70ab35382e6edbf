"""``umscale plan``: the configuration that a study's law recommends within limits on size, compute and access."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.console import JsonFlag, count, note, number, out, print_json
from umscale_cli.law_options import pairs
from umscale_cli.runs import open_store, warn_damaged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from umscale.questions.plan import Configuration, Plan
    from umscale.spec import ModelSpec

_RESOURCES = {
    "total_params": "total parameters",
    "active_flops": "FLOPs per token",
    "memory_access_bytes": "memory access",
}


def plan(
    source: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|FIT",
            help="A study's store or name, or a .json file that `umscale fit --json` printed.",
        ),
    ],
    max_total_params: Annotated[
        str | None, typer.Option(help="Parameters without embeddings, as in 120B.", show_default=False)
    ] = None,
    max_active_flops: Annotated[
        str | None, typer.Option(help="Forward FLOPs per token, head included.", show_default=False)
    ] = None,
    max_memory_access: Annotated[
        str | None,
        typer.Option(help="Bytes of FFN and memory weights read by a decoding step.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Tokens decoded together in that step.")] = 16,
    tokens: Annotated[
        str | None, typer.Option(help="Training tokens; default the study's.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="What the plan does not vary: a preset or a .toml file; its kind is what is planned: a memory layer, "
            "a mixture of experts, a dense model. Default the study's.",
            show_default=False,
        ),
    ] = None,
    law: Annotated[
        str | None,
        typer.Option(help="Law that ranks; default the one `umscale fit` recommends.", show_default=False),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="annealed or stable; default annealed.", show_default=False)
    ] = None,
    compensation: Annotated[
        str | None, typer.Option(help="Of the runs the law is fitted to.", show_default=False)
    ] = None,
    sizing: Annotated[
        str | None,
        typer.Option(
            help="How the FFN follows: none, iso_flops or iso_active (of --model); default as the runs.",
            show_default=False,
        ),
    ] = None,
    vary: Annotated[
        str, typer.Option(help="Also vary these, comma-separated: d_key, d_pre_value, d_value, d_ffn.")
    ] = "",
    max_octaves: Annotated[
        float, typer.Option(min=0, help="Extrapolation allowed on any axis of the law but tokens.")
    ] = 1.0,
    seq_len: Annotated[
        int | None,
        typer.Option(min=1, help="Context of the attention scores; default the study's.", show_default=False),
    ] = None,
    loss: Annotated[str, typer.Option(help="loss (raw weights) or loss_ema (averaged).")] = "loss",
    means: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SYMBOL=QUANTITY",
            help="What of a model a symbol of the law is: active_params, total_params, total_params_with_embedding, "
            "...; "
            "default a study's columns.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the recommendation as a study file."),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Recommend real dimensions within limits, with the predicted loss, the runners-up and what the limits cost."""
    from umscale.design.study import parse
    from umscale.errors import UserError
    from umscale.files import write_text
    from umscale.laws.saved import read_saved, refit_saved
    from umscale.laws.sections import STUDY_UNITS
    from umscale.questions.plan import FOR_NULL, Limits, to_json
    from umscale.questions.plan import plan as make_plan
    from umscale.results.source import read_table
    from umscale.spec import quantity
    from umscale_cli.cost import load_model

    saved = None
    if source.endswith(".json"):
        saved = read_saved(Path(source), law=law, stage=stage, for_null=FOR_NULL)
    store, table = None, {}
    if saved is not None and not saved.is_study:
        table = dict(read_table(saved.source))
    else:
        store = open_store(source if saved is None else saved.source)
        table = store.columns()
    ranks_by = law if saved is None else refit_saved(saved, table)
    tree: dict[str, Any] = {}
    context = 2048
    if store is not None:
        tree = store.study_tree()
        reference = parse(tree, "study.toml").reference
        context = reference.data.seq_len
    base = load_model(model, [])[0] if model is not None else reference.model if store is not None else None
    missing = list(_missing(base, max_total_params, max_active_flops, max_memory_access))
    if base is None or missing:
        raise UserError(f"{source}: a plan needs also {'; '.join(missing)}")
    if model is None and not base.vocab_size and len(table["vocab_size"]):
        base = dataclasses.replace(base, vocab_size=int(table["vocab_size"][0]))

    def limit(given: str | None, option: str) -> float | None:
        return None if given is None else quantity(given, option)

    found = make_plan(
        table,
        base,
        Limits(
            total_params=limit(max_total_params, "--max-total-params"),
            active_flops=limit(max_active_flops, "--max-active-flops"),
            memory_access_bytes=limit(max_memory_access, "--max-memory-access"),
            batch=batch,
        ),
        tokens=limit(tokens, "--tokens"),
        law=ranks_by,
        stage=stage,
        compensation=compensation,
        sizing=sizing,
        loss=loss,
        vary=tuple(name.strip() for name in vary.split(",") if name.strip()),
        max_octaves=max_octaves,
        seq_len=seq_len or context,
        seed=seed,
        means=dict(pairs(means, "--means", "SYMBOL=QUANTITY")),
        units=saved.units if saved is not None else STUDY_UNITS,
    )
    if json_:
        print_json(to_json(found))
    else:
        print_plan(found, out())
    if output is not None:
        write_text(Path(output), found.to_toml(tree))
        note(f"wrote {output}")
    if store is not None:
        warn_damaged(store)


def _missing(
    base: "ModelSpec | None", total: str | None, flops: str | None, access: str | None
) -> "Iterator[str]":
    """What a plan still lacks, each with the option that says it."""
    if base is None:
        yield "--model, since a table has none: a preset or .toml of the kind to plan"
    dense = base is not None and base.memory is None and base.ffn.kind != "moe"
    if dense and not (total or flops or access):
        yield "a limit: --max-total-params, --max-active-flops or --max-memory-access"
    if not dense and not total:
        yield "--max-total-params"
    if not dense and not (flops or access):
        yield "--max-active-flops or --max-memory-access"


def print_plan(found: "Plan", console: Any) -> None:
    """Print the recommendation beside the runners-up, what each limit costs, and the doubts."""
    from rich.table import Table

    from umscale.say.laws import estimate_text

    shown = (found.recommended, *found.runners_up)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for i in range(len(shown)):
        table.add_column("recommended" if i == 0 else f"runner-up {i}", justify="right", no_wrap=True)
    for name in found.recommended.dimensions:
        table.add_row(name, *(str(c.dimensions[name]) for c in shown))
    table.add_row("total parameters", *(count(c.cost.total_params) for c in shown))
    table.add_row("active parameters", *(count(c.cost.active_params) for c in shown))
    table.add_row("FLOPs per token", *(count(c.cost.flops_per_token) for c in shown))
    table.add_row(f"bytes read, batch {found.limits.batch}", *(count(c.memory_access_bytes) for c in shown))
    if found.recommended.model.memory is not None:
        table.add_row("MCP", *(f"{c.cost.mcp:.1%}" for c in shown))
    for name in found.recommended.used:
        table.add_row(f"  of the limit on {_RESOURCES[name]}", *(f"{c.used[name]:.0%}" for c in shown))
    table.add_row("predicted loss, nats", *(number(c.loss.value) for c in shown))
    table.add_row("  95% interval", *(_interval(c) for c in shown))
    table.add_row("behind the recommended", "", *(f"{c.behind.value:+.4f}" for c in shown[1:]))
    table.add_row("  95% interval", "", *(_interval(c, behind=True) for c in shown[1:]))
    for column in found.recommended.extrapolation:
        table.add_row(f"octaves outside, {column}", *(f"{c.extrapolation[column]:+.1f}" for c in shown))
    console.print(table)
    console.print()
    for one in found.sensitivities:
        change = f"loss {estimate_text(one.change)}, " + ", ".join(
            f"{name} {value}" for name, value in list(one.dimensions.items())[:2]
        )
        if one.change.value == 0:
            change = "nothing gained"
        console.print(
            f"twice the {_RESOURCES[one.constraint]} ({count(2 * one.limit)}): {change}", soft_wrap=True
        )
    console.print(f"{found.n_considered} configurations considered, FFN sized by {found.compensation}")
    for line in found.statements:
        console.print(f"note: {line}", soft_wrap=True)


def _interval(one: "Configuration", behind: bool = False) -> str:
    estimate = one.behind if behind else one.loss
    if not estimate.has_interval:
        return "none"
    sign = "+" if behind else ""
    return f"[{estimate.low:{sign}.4f}, {estimate.high:{sign}.4f}]"
