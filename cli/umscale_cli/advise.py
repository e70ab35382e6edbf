"""``umscale advise``: what to run next for which question, at what cost and with what chance."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale.design.question_names import QUESTIONS
from umscale_cli.completion import sources
from umscale_cli.console import JsonFlag, note, print_json, show
from umscale_cli.law_options import mapping_of
from umscale_cli.options import takes_options
from umscale_cli.runs import DEFAULT_ROOT, is_recorded, open_store, warn_damaged

if TYPE_CHECKING:
    from umscale.design.study import Study
    from umscale.questions.advise import Advice, Evidence
    from umscale.results.table import Table
    from umscale.store.store import Store


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdviseOptions:
    """Options of ``umscale advise``."""

    source: Annotated[
        str,
        typer.Argument(
            help="A results store, the name of a study, or a table: .csv, .tsv, .parquet, .jsonl, also with .gz.",
            autocompletion=sources,
        ),
    ]
    hours: Annotated[
        float | None,
        typer.Option(min=0, help="Of one worker, that a step may take at most.", show_default=False),
    ] = None
    tokens: Annotated[
        str | None,
        typer.Option(help="Trained tokens that a step may take at most, as in 100M.", show_default=False),
    ] = None
    question: Annotated[
        str | None,
        typer.Option(
            help="A name that `umscale fit --question` takes; default the study's.", show_default=False
        ),
    ] = None
    stage: Annotated[
        str | None, typer.Option(help="annealed or stable; default annealed.", show_default=False)
    ] = None
    loss: Annotated[
        str, typer.Option(help="loss (raw weights), loss_ema (averaged) or a generated task's.")
    ] = "loss"
    where: Annotated[
        str | None, typer.Option(help="Rows to keep, as in \"compensation == 'none'\".", show_default=False)
    ] = None
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="SYMBOL=COLUMN,...",
            help="Of a table: the columns that m, N_s, D and loss stand for, as in m=top_k,N_s=sparse,D=tokens.",
        ),
    ] = None
    take: Annotated[int, typer.Option(min=1, help="The step that --output writes.")] = 1
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write a step's study file.", show_default=False),
    ] = None
    json_: JsonFlag = False


@takes_options
def advise(asked: AdviseOptions) -> None:
    """Say what to run next: for which question, at what cost, with what chance of settling it, and what not to run.

    Steps are ranked by chance per hour of a worker, at the speed that the records had, each with the commands to paste.
    """
    from umscale.questions.advise import Budget
    from umscale.questions.advise import advise as make_advice
    from umscale.questions.question import Asked, find
    from umscale.results.source import is_table
    from umscale.spec import quantity

    tokens = None if asked.tokens is None else quantity(asked.tokens, "--tokens")
    budget = Budget(
        seconds=float("inf") if asked.hours is None else 3600 * asked.hours,
        tokens=float("inf") if tokens is None else tokens,
    )
    store = None if is_table(asked.source) else open_store(asked.source)
    table = _rows(asked, store)
    evidence = _evidence(asked, store, table)
    question = asked.question or (QUESTIONS[0] if store is None else store.question())
    answer = find(question).answer(
        table,
        Asked(
            losses=(asked.loss,),
            stage=evidence.stage,
            settings=_settings(store),
            read=None if store is None else store.read,
        ),
    )
    found = make_advice(answer, evidence, budget)
    if asked.output is not None:
        _write(asked, found)
    _print(asked, found)
    if store is not None:
        warn_damaged(store)


def _settings(store: "Store | None") -> Any:
    """How laws are fitted: no draws are spent on coefficients that nobody reads here."""
    from umscale.laws.sections import Settings

    return Settings(is_study=store is not None, n_draws=0)


def _rows(asked: AdviseOptions, store: "Store | None") -> "Table":
    """The rows that are asked, a table's columns called as a study's are."""
    from umscale.errors import UserError
    from umscale.results.columns import COLUMNS
    from umscale.results.source import choose_rows, read_table, rows_and_columns

    if store is not None:
        if asked.map_:
            raise UserError(f"--map is for tables, and {asked.source} is a study")
        table: Table = store.columns()
        return choose_rows(table, asked.where) if asked.where else table
    mapping = mapping_of(asked.map_)
    table, columns = rows_and_columns(read_table(asked.source), asked.where, mapping)
    named = {
        COLUMNS.get(symbol, symbol): table[column] for symbol, column in columns.items() if column in table
    }
    return {**table, **named}


def _evidence(asked: AdviseOptions, store: "Store | None", table: "Table") -> "Evidence":
    from umscale.questions.advise import Evidence
    from umscale.results.table import levels

    stages = levels(table, "stage")
    stage = asked.stage or ("annealed" if "annealed" in stages else next(iter(stages), None))
    study = None if store is None else _study(store)
    if store is None or study is None:
        return Evidence(table=table, name=asked.source, stage=stage, loss=asked.loss)
    recorded = is_recorded(store)
    target = str(DEFAULT_ROOT / asked.source) if recorded else asked.source
    if not recorded and not Path(asked.source).exists() and (DEFAULT_ROOT / asked.source).exists():
        target = str(DEFAULT_ROOT / asked.source)
    here = shlex.quote(target)
    copy = f"mkdir -p {here} && cp -rn {shlex.quote(f'{store.root}/.')} {here}"
    return Evidence(
        table=table,
        name=asked.source,
        study=study,
        same_file=_same_file(store, study, target if store.is_folder and not recorded else None),
        store=target,
        first=(copy,) if recorded else (),
        stage=stage,
        loss=asked.loss,
    )


def _study(store: "Store") -> "Study | None":
    """The study that was swept; None where no sweep repeats its runs: those of a search, or made elsewhere."""
    from umscale.design.study import parse
    from umscale.errors import UserError

    try:
        study = parse(store.study_tree(), "study.toml")
    except UserError:
        return None
    return None if study.search else study


def _same_file(store: "Store", study: "Study", folder: str | None) -> str | None:
    """A study file that today means what was swept: one that ships with umscale, or the store's own."""
    import umscale_studies
    from umscale.design.study import load_study
    from umscale.errors import UserError

    wanted = study.to_dict() | {"description": ""}
    own = [] if folder is None else [f"{folder}/study.toml"]
    for one in [*([study.name] if study.name in umscale_studies.shipped() else []), *own]:
        try:
            if load_study(one).to_dict() | {"description": ""} == wanted:
                return one
        except UserError:
            continue
    return None


def _write(asked: AdviseOptions, found: "Advice") -> None:
    from umscale.errors import UserError
    from umscale.files import write_text
    from umscale.spec import to_toml

    assert asked.output is not None
    if asked.take > len(found.steps):
        raise UserError(f"--take {asked.take}: there are {len(found.steps)} steps")
    tree = found.steps[asked.take - 1].study
    if tree is None:
        raise UserError(
            f"--output: step {asked.take} has no study file of its own; its commands are in the list"
        )
    write_text(asked.output, to_toml(dict(tree)))
    note(f"wrote {asked.output}")


def _print(asked: AdviseOptions, found: "Advice") -> None:
    from umscale.questions.advise import to_json

    if asked.json_:
        print_json(to_json(found))
    elif asked.output is None:
        show(found.blocks())
