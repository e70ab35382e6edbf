"""``umscale fit``: laws with intervals from a study or any table, and the answer to a study's question."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umscale.say.laws import LOSS_NAMES
from umscale.store.schema import is_probe_column
from umscale_cli.answers import (
    print_architectures,
    print_contrast,
    print_map,
    print_noise,
    print_rates,
    print_ratio,
    print_suggestion,
    print_trainer_choices,
)
from umscale_cli.completion import sources
from umscale_cli.console import JsonFlag, note, out, print_json
from umscale_cli.law_options import (
    choice,
    ends,
    mapping_of,
    pairs,
    read_laws,
    split,
    weighted,
    weights_of,
    with_own_coefficients,
)
from umscale_cli.law_tables import print_comparison, print_fit, print_table_fit
from umscale_cli.runs import open_store, warn_damaged

if TYPE_CHECKING:
    from umscale.questions.architectures import ArchitectureTable
    from umscale.questions.laws import Report, Settings
    from umscale.results.table import Table
    from umscale.store.store import Store


def fit(
    source: Annotated[
        str,
        typer.Argument(
            help="A results store, the name of a study, or a table: .csv, .tsv, .parquet, .jsonl, also with .gz.",
            autocompletion=sources,
        ),
    ],
    law: Annotated[
        str | None,
        typer.Option(
            metavar="LAW,...",
            help="Laws by name (`umscale laws`) or as formulas, 'mine: E + A*N**-alpha'; default the local ones.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="LAW,...",
            help="Instead of --law: one table of these laws and the nulls, and which to use for what.",
            show_default=False,
        ),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="SYMBOL=COLUMN,...",
            help="Columns that the law's symbols and loss stand for; or formulas of columns, numbers: rho=1/experts.",
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="Rows to keep, as in \"router == 'Hash' and n > 1e6\".", show_default=False),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN,...", help="A fit for each value of it, or of several.", show_default=False
        ),
    ] = None,
    each: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="With --by: one fit in which only these coefficients are each group's own, as in --each E.",
            show_default=False,
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Rows with one value are resampled together; default a study's cells, a table's run_id or rows.",
            show_default=False,
        ),
    ] = None,
    drop_invalid: Annotated[
        bool, typer.Option("--drop-invalid", help="Leave out a table's rows without a loss or a column.")
    ] = False,
    objective: Annotated[
        str | None,
        typer.Option(
            help="huber, least_squares or least_absolute; default the law's own.", show_default=False
        ),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Huber's threshold; default 0.001.", show_default=False)
    ] = None,
    residual: Annotated[
        str | None, typer.Option(help="log (of ln L) or raw (of L, nats).", show_default=False)
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Fix a coefficient; repeatable.")
    ] = None,
    tie: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NAME", help="Give two coefficients one value; repeatable."),
    ] = None,
    bounds: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH", help="Bound a coefficient; repeatable, either end may be left out."
        ),
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="How much each row counts; or a formula of columns.", show_default=False
        ),
    ] = None,
    error: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Standard error of each row's loss: rows count by 1/error².",
            show_default=False,
        ),
    ] = None,
    above: Annotated[
        float,
        typer.Option(
            metavar="WEIGHT",
            help="What rows above the law count beside those below it; under 1 for undertuned runs.",
        ),
    ] = 1.0,
    unit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SYMBOL=WORDS",
            help="Unit and convention of a table's column, carried along: 'N=parameters without embeddings'.",
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=0, help="Of the bootstrap; default 1000 refits, 0 for none.", show_default=False),
    ] = None,
    interval: Annotated[str, typer.Option(help="percentile or bca.")] = "percentile",
    profile: Annotated[
        bool, typer.Option("--profile", help="Profile-likelihood intervals beside the bootstrap's.")
    ] = False,
    diagnostics: Annotated[
        bool,
        typer.Option(
            "--diagnostics", help="Residuals by axis and by run, rows that carry the fit, conditioning."
        ),
    ] = False,
    loss: Annotated[
        str,
        typer.Option(
            help="Of a study: detail for loss (raw weights), loss_ema (averaged), both, or a generated task's, as in "
            "facts_nats."
        ),
    ] = "loss",
    stage: Annotated[
        str | None, typer.Option(help="annealed or stable; default both.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    question: Annotated[
        str | None,
        typer.Option(
            help="density-over-size, architectures, memory-to-ffn, learning-rates, noise, trainer-choice, or "
            "laws alone; default the study's.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Architecture that differences refer to; default dense.", show_default=False),
    ] = None,
    plane: Annotated[
        bool, typer.Option("--plane", help="Also say where in the (top_m, N_s) plane density beats size.")
    ] = False,
    suggest: Annotated[
        int | None,
        typer.Option(min=1, help="Only suggest this many further runs for the verdict.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where --suggest writes its study file.", show_default=False)
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option(
            metavar="'CELL - CELL'",
            help="Only compare two cells, as in 'top_m=64,n_keys=64 - top_m=16,n_keys=128'.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Only say how many intervals of a seal (`umscale predict --seal FILE`) have held.",
            show_default=False,
        ),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Fit scaling laws to a study's results or to any table; answer a study's question.

    A study's question is whether density beats size, which of several architectures, which memory-to-FFN ratio or
    which learning rates are best, how far runs of one cell lie apart, or what a choice of the trainer decides. A table
    needs --law and, unless its columns have the usual names, --map.
    """
    from umscale.errors import UserError, nearest
    from umscale.laws.compare import Recipe
    from umscale.laws.forms import Objective, Residual
    from umscale.laws.uncertainty import Interval
    from umscale.questions.laws import Settings
    from umscale.results.source import choose_rows, is_table
    from umscale.spec import quantity

    if check is not None:
        _check(source, check, json_)
        return
    if law is not None and compare is not None:
        raise UserError("--law or --compare: --compare names its laws itself")
    mapping = mapping_of(map_) | weights_of(weight, error)
    settings = Settings(
        recipe=Recipe(
            objective=choice(objective, "--objective", Objective),
            delta=delta,
            residual=choice(residual, "--residual", Residual),
            pins={name: quantity(value, f"--pin {name}") for name, value in pairs(pin, "--pin")},
            ties=pairs(tie, "--tie", "NAME=NAME"),
            bounds={name: ends(value, name) for name, value in pairs(bounds, "--bounds", "NAME=LOW:HIGH")},
            above=above,
        ),
        units=dict(pairs(unit, "--unit", "SYMBOL=WORDS")),
        by=tuple(name.strip("`") for name in split(by)) if by else (),
        group=group,
        nulls=compare is not None,
        # A comparison prints no coefficients: nothing is resampled for it unless asked.
        n_draws=0 if draws is None and compare is not None else draws,
        interval=choice(interval, "--interval", Interval),
        profile=profile,
        diagnostics=diagnostics,
    )
    job = _Job(
        source=source,
        laws=law or compare,
        compare=compare is not None,
        measured=mapping.get("loss"),
        mapping=mapping,
        where=where,
        stage=stage,
        seed=seed,
        settings=settings,
        each=tuple(split(each)) if each else (),
        json=json_,
    )
    study_only = {
        "--question": question,
        "--baseline": baseline,
        "--plane": plane,
        "--suggest": suggest,
        "--output": output,
        "--contrast": contrast,
        "--loss": loss if loss != "loss" else None,
    }
    if is_table(source):
        for option, given in study_only.items():
            if given:
                raise UserError(f"{option} needs a study, and {source} is a table")
        _fit_table(job, drop_invalid)
        return
    if drop_invalid:
        raise UserError("--drop-invalid is for tables: a study's rows without a loss are always left out")
    if output is not None and suggest is None:
        raise UserError("--output is where --suggest writes; add --suggest N")
    store = open_store(source)
    table: Table = store.columns()
    losses = ("both", *LOSS_NAMES, *filter(is_probe_column, table))
    if loss not in losses:
        raise UserError(f"--loss {loss!r} must be one of {', '.join(losses)}{nearest(loss, losses)}")
    if where:
        table = choose_rows(table, where)
    details = (job.measured,) if job.measured else tuple(LOSS_NAMES) if loss == "both" else (loss,)
    if suggest is not None or contrast is not None:
        _answer(store, table, suggest, output, contrast, stage, details[0], json_)
    elif (asked := _question(question, store, job)) == "memory-to-ffn":
        _ratios(table, details, stage, json_)
    elif asked == "architectures":
        _architectures(table, details, baseline, stage, json_)
    elif asked == "learning-rates":
        _rates(table, details, stage, json_)
    elif asked == "noise":
        _noise(table, stage, json_)
    elif asked == "trainer-choice":
        print_choice(store, table, details, stage, json_)
    else:
        _fit_study(job, table, details, plane, asked)
    if not json_:
        print_basis(store, table, details[0])
    warn_damaged(store)


def print_basis(store: "Store", table: "Table", loss: str = "loss") -> None:
    """Say what the results of ``table`` rest on."""
    from umscale.say.basis import basis

    for sentence in basis(store, table, loss):
        out().print(f"\n{sentence}", soft_wrap=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a command line asks of laws."""

    source: str
    laws: str | None
    compare: bool
    measured: str | None
    """Column of the loss where --map names one."""
    mapping: dict[str, str]
    where: str | None
    stage: str | None
    seed: int
    settings: "Settings"
    each: tuple[str, ...]
    """Coefficients of which every group of --by has its own, all others shared."""
    json: bool


def _fit_table(job: _Job, drop_invalid: bool) -> None:
    from umscale.errors import UserError
    from umscale.questions.laws import table_report, to_json
    from umscale.results.source import read_table, rows_and_columns, second_choices

    if job.laws is None:
        raise UserError(f"name a law for {job.source} with --law; `umscale laws` lists them")
    whole = read_table(job.source)
    kept, columns = rows_and_columns(whole, job.where, job.mapping)
    loss = columns.pop("loss", "loss")
    recipe = weighted(job.settings.recipe, columns)
    settings = replace(
        job.settings,
        recipe=recipe,
        columns=columns,
        extra=tuple(symbol for symbol in job.mapping if symbol in columns),
        is_study=False,
        drop_invalid=drop_invalid,
    )
    laws = read_laws(job.laws, kept, columns, job.mapping, job.settings.recipe.names, job.where)
    if job.each:
        laws = with_own_coefficients(laws, job.each, settings.by, kept, columns)
        settings = replace(settings, by=())
    for line in second_choices(whole, job.mapping):
        note(f"note: {line}")
    found = table_report(kept, laws, settings, loss=loss, stage=job.stage, seed=job.seed)
    n_whole, n_kept = (len(next(iter(t.values()))) for t in (whole, kept))
    if job.json:
        inputs = {"table": job.source, "where": job.where, "map": job.mapping, "group": job.settings.group}
        print_json(to_json(found, input={**inputs, "rows": n_whole, "kept": n_kept}))
        return
    console = out()
    words = f"{n_kept} of {n_whole} rows, where {job.where}" if job.where else f"{n_whole} rows"
    console.print(f"{job.source}: {words}", soft_wrap=True)
    (print_comparison if job.compare else print_table_fit)(found, console)


def _fit_study(job: _Job, table: "Table", details: Sequence[str], plane: bool, question: str) -> None:
    from umscale.errors import UserError
    from umscale.questions.floor import floor_answers
    from umscale.questions.laws import STUDY_UNITS, question_laws, report, to_json
    from umscale.results.source import map_columns

    if job.each:
        raise UserError("--each is for tables, whose rows are no runs of one study")
    mapped, columns = map_columns(table, job.mapping)
    if job.measured:
        details = (columns.pop("loss"),)
    recipe = weighted(job.settings.recipe, columns)
    laws = (
        read_laws(job.laws, mapped, columns, job.mapping, job.settings.recipe.names)
        if job.laws
        else question_laws(question)
    )
    settings = replace(
        job.settings, recipe=recipe, columns=columns, units={**STUDY_UNITS, **job.settings.units}
    )
    fewer = job.compare or job.measured or any(map(is_probe_column, details))
    losses = details if fewer else tuple(LOSS_NAMES)
    found = report(mapped, laws, losses=losses, stage=job.stage, seed=job.seed, settings=settings)
    if question == "laws":
        found = replace(found, verdicts=())
    if job.json:
        inputs = {"study": job.source, "where": job.where, "map": job.mapping, "group": job.settings.group}
        print_json(to_json(found, input=inputs))
    elif job.compare:
        print_comparison(found, out())
    else:
        print_fit(found, out(), details=details)
        for floor in floor_answers(table, found):
            if floor.loss in details:
                out().print(f"\n{floor.words}")
        for one in found.verdicts if plane else ():
            if one.loss in details:
                print_map(table, one.stage, one.compensation, one.loss, out())


def _check(source: str, path: Path, json_: bool) -> None:
    from umscale_cli.predicted import print_check
    from umscale_cli.rows import check_seal

    found = check_seal(path, source)
    if json_:
        print_json(found.to_dict())
    else:
        print_check(found, out())


def _question(given: str | None, store: "Store", job: _Job) -> str:
    """The question asked: of the option, else about laws where laws are named, else the study's."""
    from umscale.design.study import QUESTIONS
    from umscale.errors import UserError, nearest

    if given is None:
        return QUESTIONS[0] if job.laws else store.question()
    if given not in QUESTIONS:
        raise UserError(
            f"--question {given!r} must be one of {', '.join(QUESTIONS)}{nearest(given, QUESTIONS)}"
        )
    return given


def _answer(
    store: "Store",
    table: "Table",
    n_runs: int | None,
    output: Path | None,
    contrast: str | None,
    stage: str | None,
    loss: str,
    json_: bool,
) -> None:
    """Suggest runs, or compare two cells."""
    from umscale.questions.contrast import contrast as compare_cells
    from umscale.questions.contrast import parse_contrast
    from umscale.questions.suggest import suggest

    if contrast is not None:
        cells = compare_cells(table, *parse_contrast(contrast), stage=stage or "annealed", loss=loss)
        if json_:
            print_json(asdict(cells))
        else:
            print_contrast(cells, contrast, out())
    if n_runs is not None:
        found = suggest(table, store.study_tree(), n_runs, stage=stage, loss=loss)
        if json_:
            print_json(asdict(found))
        else:
            print_suggestion(found, output, out())


def _ratios(table: "Table", losses: Sequence[str], stage: str | None, json_: bool) -> None:
    from umscale.questions.memory_to_ffn import ratio_verdicts

    found = [v for v in ratio_verdicts(table, losses=tuple(losses)) if stage in (None, v.stage)]
    if json_:
        print_json([asdict(v) for v in found])
        return
    for verdict in found:
        print_ratio(verdict, out())


def _architectures(
    table: "Table", losses: Sequence[str], baseline: str | None, stage: str | None, json_: bool
) -> None:
    from umscale.questions.architectures import compare_architectures

    found = {loss: compare_architectures(table, loss=loss, baseline=baseline, stage=stage) for loss in losses}
    if json_:
        print_json({loss: [asdict(one) for one in each] for loss, each in found.items()})
        return
    for loss, each in found.items():
        print_architectures(each, loss, out())


def _rates(table: "Table", losses: Sequence[str], stage: str | None, json_: bool) -> None:
    from umscale.questions.learning_rates import rates_reports

    found = [one for loss in losses for one in rates_reports(table, loss=loss, stage=stage)]
    if json_:
        print_json([asdict(one) for one in found])
        return
    for one in found:
        print_rates(one, out())


def print_choice(
    store: "Store", table: "Table", losses: Sequence[str], stage: str | None, json_: bool = False
) -> None:
    """Print what a choice of the trainer decides in a store's runs."""
    from umscale.questions.trainer_choice import recommendation, trainer_choices

    documents = store.read("documents")
    found = {loss: trainer_choices(table, loss=loss, stage=stage, documents=documents) for loss in losses}
    if json_:
        print_json([asdict(one) for each in found.values() for one in each])
        return
    for each in found.values():
        print_trainer_choices(each, recommendation(each), out())


def _noise(table: "Table", stage: str | None, json_: bool) -> None:
    from umscale.questions.noise import run_noise

    pooled, each = (run_noise(table, by_cell=by_cell, stage=stage) for by_cell in (False, True))
    if json_:
        print_json([asdict(one) for one in (*pooled, *each)])
        return
    print_noise(pooled, each, out())


def laws(json_: JsonFlag = False) -> None:
    """List the laws that `umscale fit --law` knows, with formula and source."""
    from rich.table import Table

    from umscale.laws.forms import LAWS

    if json_:
        print_json(
            [
                {"name": law.name, "formula": law.formula, "source": law.source, "symbols": list(law.symbols)}
                for law in LAWS.values()
            ]
        )
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("law", "loss in nats", "source"):
        table.add_column(name, no_wrap=name == "law")
    for law in LAWS.values():
        table.add_row(law.name, law.formula, law.source)
    out().print(table)


def fit_store(
    store: "Store", laws: "list[str] | None" = None, stage: str | None = None, seed: int = 0
) -> "Report":
    """Fit what a store holds; see ``umscale.questions.laws.report``."""
    from umscale.laws.forms import FIRST_LAWS
    from umscale.questions.laws import report

    return report(store.columns(), laws or FIRST_LAWS, stage=stage, seed=seed)


def compare_store(
    store: "Store", loss: str = "loss", baseline: str | None = None, stage: str | None = None
) -> "tuple[ArchitectureTable, ...]":
    """Compare a store's architectures; see ``umscale.questions.architectures.compare_architectures``."""
    from umscale.questions.architectures import compare_architectures

    return compare_architectures(store.columns(), loss=loss, baseline=baseline, stage=stage)
