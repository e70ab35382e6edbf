"""``umscale generate``, ``export`` and ``eval``: what can be done with the weights that runs have kept."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umscale.escape import plain_lines
from umscale_cli.console import JsonFlag, count, note, out, plain_table, print_json
from umscale_cli.executors import DeviceOption
from umscale_cli.runs import WhereOption, locate

if TYPE_CHECKING:
    from umscale.inference.kept import KeptModel

ModelArgument = Annotated[
    str, typer.Argument(help="A run id, or the beginning of one; or the folder of an export.")
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS", help="Weights of this budget; default the largest kept.", show_default=False
    ),
]
StageOption = Annotated[
    str | None, typer.Option(help="stable or annealed; default the last kept.", show_default=False)
]
AveragedFlag = Annotated[bool, typer.Option("--averaged", help="The averaged weights, not the raw ones.")]


def _open(
    run: str, study: str, budget: str | None, stage: str | None, averaged: bool, device: str
) -> "KeptModel":
    """Open the model that the options of a command name."""
    from umscale.errors import UserError
    from umscale.inference.kept import open_exported, open_kept
    from umscale.spec import quantity
    from umscale.store.schema import STAGES
    from umscale_cli.executors import check_device

    check_device(device)
    if (Path(run) / "model.safetensors").exists():
        if budget or stage or averaged:
            raise UserError(
                f"{run} is an export and holds one record's weights; leave out --budget, --stage, --averaged"
            )
        return open_exported(Path(run), device)
    if stage not in (None, *STAGES):
        raise UserError(f"--stage {stage!r} must be stable or annealed")
    store, run_id = locate(run, study)
    tokens = None if budget is None else int(quantity(budget, "--budget"))
    return open_kept(store, run_id, budget=tokens, stage=stage, averaged=averaged, device=device)


def generate(
    run: ModelArgument,
    prompt: Annotated[str, typer.Option(help="Text to go on from; - reads it from stdin.")] = "",
    tokens: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many new ones.")] = 200,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 is greedy.")] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Sample from the likeliest so many.", show_default=False)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the likeliest that make up this probability.", show_default=False),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling; equal seeds give equal text.")] = 0,
    study: WhereOption = "",
    budget: BudgetOption = None,
    stage: StageOption = None,
    averaged: AveragedFlag = False,
    device: DeviceOption = "auto",
    json_: JsonFlag = False,
) -> None:
    """Write text with the model of a run whose weights were kept (train.keep), as it comes."""
    from umscale.inference.generate import Sampling, encode_prompt, stream_text
    from umscale.inference.generate import generate as tokens_of

    sampling = Sampling(temperature=0.0 if greedy else temperature, top_k=top_k, top_p=top_p)
    model = _open(run, study, budget, stage, averaged, device)
    text = sys.stdin.read() if prompt == "-" else prompt
    found = tokens_of(model, encode_prompt(model.tokenizer, text), tokens, sampling, seed)
    pieces = stream_text(model.tokenizer, found)
    if json_:
        print_json({"run_id": model.spec.run_id, "prompt": text, "text": "".join(pieces)})
        return
    print(plain_lines(text), end="", flush=True)
    for piece in pieces:
        print(plain_lines(piece), end="", flush=True)
    print()


def export(
    run: ModelArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    study: WhereOption = "",
    budget: BudgetOption = None,
    stage: StageOption = None,
    averaged: AveragedFlag = False,
    json_: JsonFlag = False,
) -> None:
    """Write a kept model to a folder: weights (safetensors), configuration, tokenizer and a card with its numbers."""
    from umscale.inference.export import export as export_to

    paths = export_to(_open(run, study, budget, stage, averaged, "cpu"), folder)
    if json_:
        print_json({"files": [str(path) for path in paths]})
    else:
        for path in paths:
            print(path)


def evaluate(
    run: ModelArgument,
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Loss on the validation split of this prepared corpus.", show_default=False
        ),
    ] = None,
    probes: Annotated[
        bool, typer.Option("--probes", help="Generated tasks: the run's own, or all that need no training.")
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Of the corpus, at most; default as the run's records.", show_default=False),
    ] = None,
    study: WhereOption = "",
    budget: BudgetOption = None,
    stage: StageOption = None,
    averaged: AveragedFlag = False,
    device: DeviceOption = "auto",
    json_: JsonFlag = False,
) -> None:
    """Measure a kept model on text that its run never saw, or on generated tasks."""
    from umscale.data.corpus import open_corpus
    from umscale.errors import UserError
    from umscale.inference.evaluate import evaluate_probes, evaluate_text

    if (corpus is None) == (not probes):
        raise UserError("say what to measure: --corpus NAME or --probes")
    opened = open_corpus(corpus) if corpus is not None else None
    model = _open(run, study, budget, stage, averaged, device)
    who = {"run_id": model.spec.run_id, "budget": model.record["budget"], "stage": model.record["stage"]}
    if opened is None:
        rows = evaluate_probes(model)
        if json_:
            print_json(who | {"probes": rows})
            return
        numbers = ("answers", "symbols right", "chance", "nats")
        table = plain_table("", {"task": "left"} | dict.fromkeys(numbers, "right"))
        for row in rows:
            shares = (f"{row['accuracy']:.1%}", f"{row['chance']:.1%}")
            table.add_row(row["task"], count(row["n_answers"]), *shares, f"{row['nats']:.4f}")
        out().print(table)
        return
    found = evaluate_text(model, opened, tokens)
    if json_:
        print_json(who | dataclasses.asdict(found))
        return
    if opened.hash == model.spec.data.hash:
        note(f"note: {opened.name} is what the run was trained on; this is its validation split")
    print(
        f"{opened.name}: {found.loss:.4f} nats/token, {found.bits_per_byte:.4f} bits/byte "
        f"({found.documents} documents, {found.tokens:,} tokens, {'averaged' if model.averaged else 'raw'} weights)"
    )
