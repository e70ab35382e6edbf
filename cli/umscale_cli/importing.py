"""``umscale import``: results of runs that were trained elsewhere, as a store."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from umscale_cli.console import JsonFlag, print_json
from umscale_cli.law_options import mapping_of
from umscale_cli.runs import DEFAULT_ROOT


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="A table (.csv as W&B exports it, .tsv, .parquet, .jsonl), or TensorBoard's folder."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Of the study that the rows become.")],
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="DIR", help="Default ./umscale-runs/NAME.", show_default=False),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="COLUMN=COLUMN,...",
            help="Columns of a store, or symbols of laws, by those of the table or formulas: loss=val/loss,D=tokens.",
        ),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Rows to keep, as in \"State == 'finished'\".", show_default=False)
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            help="The study that the runs follow: its question and reference model.", show_default=False
        ),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Take results of runs trained elsewhere into a store, so that fit, plot, report and plan read them as a study.

    A row is a run at a number of tokens, and needs a loss and that number; seed, top_m, sparse_params and so on say
    what it was. The same rows again replace themselves.
    """
    from umscale.design.study import load_study
    from umscale.errors import UserError
    from umscale.results.importing import import_runs, read_source
    from umscale.store.store import Store

    followed = load_study(study) if study else None
    table = read_source(source)
    root = store or str(DEFAULT_ROOT / name)
    if not store and not (name and name.replace("-", "").replace("_", "").replace(".", "").isalnum()):
        raise UserError(f"--name {name!r} must be letters, digits, '.', '_' and '-'")
    opened = Store.create(root)
    found = import_runs(opened, table, mapping_of(map_), study=name, where=where)
    if followed is not None:
        opened.write_design(dataclasses.replace(followed, name=name), [])
    if json_:
        print_json({"store": opened.name, **dataclasses.asdict(found)})
        return
    print(f"{opened.name}: {found.runs} runs, {found.records} records, with {', '.join(found.columns)}")
    if found.without_loss:
        print(f"{found.without_loss} records have no loss and count as failed")
    if found.left_out:
        print(f"left out, as a store has no such columns: {', '.join(found.left_out)}")
