"""``umscale fit``: laws with intervals from a study or any table, and the answer to a study's question."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umscale.design.question_names import QUESTIONS
from umscale_cli.completion import sources
from umscale_cli.console import JsonFlag, note, out, print_json, show
from umscale_cli.law_options import (
    choice,
    ends,
    pairs,
    read_laws,
    split,
    weighted,
    weights_of,
    with_own_coefficients,
)
from umscale_cli.options import takes_options
from umscale_cli.runs import open_store, warn_damaged
from umscale_cli.selection import FitSelectionOptions

if TYPE_CHECKING:
    from umscale.laws.sections import Settings
    from umscale.questions.question import Answer
    from umscale.results.table import Table
    from umscale.say.blocks import Block
    from umscale.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions(FitSelectionOptions):
    """Options of ``umscale fit``."""

    source: Annotated[
        str,
        typer.Argument(
            help="A results store, the name of a study, or a table: .csv, .tsv, .parquet, .jsonl, also with .gz.",
            autocompletion=sources,
        ),
    ]
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="LAW,...",
            help="Instead of --law: one table of these laws and the nulls, and which to use for what.",
            show_default=False,
        ),
    ] = None
    each: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="With --by: one fit in which only these coefficients are each group's own, as in --each E.",
            show_default=False,
        ),
    ] = None
    delta: Annotated[
        float | None, typer.Option(help="Huber's threshold; default 0.001.", show_default=False)
    ] = None
    residual: Annotated[
        str | None, typer.Option(help="log (of ln L) or raw (of L, nats).", show_default=False)
    ] = None
    pin: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Fix a coefficient; repeatable.")
    ] = None
    tie: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NAME", help="Give two coefficients one value; repeatable."),
    ] = None
    bounds: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH", help="Bound a coefficient; repeatable, either end may be left out."
        ),
    ] = None
    weight: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="How much each row counts; or a formula of columns.", show_default=False
        ),
    ] = None
    error: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Standard error of each row's loss: rows count by 1/error².",
            show_default=False,
        ),
    ] = None
    above: Annotated[
        float,
        typer.Option(
            metavar="WEIGHT",
            help="What rows above the law count beside those below it; under 1 for undertuned runs.",
        ),
    ] = 1.0
    unit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SYMBOL=WORDS",
            help="Unit and convention of a table's column, carried along: 'N=parameters without embeddings'.",
        ),
    ] = None
    draws: Annotated[
        int | None,
        typer.Option(min=0, help="Of the bootstrap; default 1000 refits, 0 for none.", show_default=False),
    ] = None
    interval: Annotated[str, typer.Option(help="percentile or bca.")] = "percentile"
    profile: Annotated[
        bool, typer.Option("--profile", help="Profile-likelihood intervals beside the bootstrap's.")
    ] = False
    diagnostics: Annotated[
        bool,
        typer.Option(
            "--diagnostics", help="Residuals by axis and by run, rows that carry the fit, conditioning."
        ),
    ] = False
    loss: Annotated[
        str,
        typer.Option(
            help="Of a study: detail for loss (raw weights), loss_ema (averaged), both, or a generated task's, as in "
            "facts_nats."
        ),
    ] = "loss"
    question: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(QUESTIONS[:-1])}, or {QUESTIONS[-1]} alone; default the study's.",
            show_default=False,
        ),
    ] = None
    baseline: Annotated[
        str | None,
        typer.Option(help="Architecture that differences refer to; default dense.", show_default=False),
    ] = None
    plane: Annotated[
        bool, typer.Option("--plane", help="Also say where in the (top_m, N_s) plane density beats size.")
    ] = False
    suggest: Annotated[
        int | None,
        typer.Option(min=1, help="Only suggest this many further runs for the verdict.", show_default=False),
    ] = None
    output: Annotated[
        Path | None, typer.Option(help="Where --suggest writes its study file.", show_default=False)
    ] = None
    contrast: Annotated[
        str | None,
        typer.Option(
            metavar="'CELL - CELL'",
            help="Only compare two cells, as in 'top_m=64,n_keys=64 - top_m=16,n_keys=128'.",
            show_default=False,
        ),
    ] = None
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Only say how many intervals of a seal (`umscale predict --seal FILE`) have held.",
            show_default=False,
        ),
    ] = None


@takes_options
def fit(asked: FitOptions) -> None:
    """Fit scaling laws to a study's results or to any table; answer a study's question.

    A study's question is whether density beats size, which of several architectures, which memory-to-FFN ratio or
    which learning rates are best, how far runs of one cell lie apart, or what a choice of the trainer decides. A table
    needs --law and, unless its columns have the usual names, --map.
    """
    from umscale.errors import UserError
    from umscale.results.source import is_table

    if asked.check is not None:
        _check(asked.source, asked.check, asked.json_)
        return
    if asked.law is not None and asked.compare is not None:
        raise UserError("--law or --compare: --compare names its laws itself")
    if is_table(asked.source):
        study_only = ("question", "baseline", "plane", "suggest", "output", "contrast")
        given = [f"--{name}" for name in study_only if getattr(asked, name)]
        for option in [*given, *(["--loss"] if asked.loss != "loss" else [])]:
            raise UserError(f"{option} needs a study, and {asked.source} is a table")
        _fit_table(asked)
        return
    if asked.drop_invalid:
        raise UserError("--drop-invalid is for tables: a study's rows without a loss are always left out")
    if asked.each:
        raise UserError("--each is for tables, whose rows are no runs of one study")
    if asked.output is not None and asked.suggest is None:
        raise UserError("--output is where --suggest writes; add --suggest N")
    store = open_store(asked.source)
    table = _fit_study(asked, store)
    if not asked.json_:
        show(basis_blocks(store, table, _losses(asked)[0]))
    _note_makings(table)
    warn_damaged(store)


def _note_makings(table: "Table") -> None:
    """Say on stderr that rows were computed by different kernels, which moves losses as seeds do."""
    from umscale.results.budgets import differently_made

    if words := differently_made(table):
        note(f"note: {words}")


def _settings(asked: FitOptions) -> "Settings":
    """How laws are fitted, before anything is known of the table."""
    from umscale.laws.compare import Recipe
    from umscale.laws.forms import Objective, Residual
    from umscale.laws.sections import Settings
    from umscale.laws.uncertainty import Interval
    from umscale.spec import quantity

    comparing = asked.compare is not None
    bounds = pairs(asked.bounds, "--bounds", "NAME=LOW:HIGH")
    return Settings(
        recipe=Recipe(
            objective=choice(asked.objective, "--objective", Objective),
            delta=asked.delta,
            residual=choice(asked.residual, "--residual", Residual),
            pins={name: quantity(value, f"--pin {name}") for name, value in pairs(asked.pin, "--pin")},
            ties=pairs(asked.tie, "--tie", "NAME=NAME"),
            bounds={name: ends(value, name) for name, value in bounds},
            above=asked.above,
        ),
        units=dict(pairs(asked.unit, "--unit", "SYMBOL=WORDS")),
        by=asked.parts,
        group=asked.group,
        nulls=comparing,
        # A comparison prints no coefficients: nothing is resampled for it unless asked.
        n_draws=0 if asked.draws is None and comparing else asked.draws,
        interval=choice(asked.interval, "--interval", Interval),
        profile=asked.profile,
        diagnostics=asked.diagnostics,
    )


def _mapping(asked: FitOptions) -> dict[str, str]:
    return asked.mapping | weights_of(asked.weight, asked.error)


def _fit_table(asked: FitOptions) -> None:
    from umscale.errors import UserError
    from umscale.laws.sections import table_report, to_json
    from umscale.results.source import read_table, rows_and_columns, second_choices
    from umscale.say.laws import comparison_blocks, table_blocks

    settings, mapping = _settings(asked), _mapping(asked)
    names = asked.law or asked.compare
    if names is None:
        raise UserError(f"name a law for {asked.source} with --law; `umscale laws` lists them")
    whole = read_table(asked.source)
    kept, columns = rows_and_columns(whole, asked.where, mapping)
    loss = columns.pop("loss", "loss")
    laws = read_laws(names, kept, {**columns}, mapping, settings.recipe.names, asked.where)
    settings = replace(
        settings,
        recipe=weighted(settings.recipe, columns),
        columns=columns,
        extra=tuple(symbol for symbol in mapping if symbol in columns),
        is_study=False,
        drop_invalid=asked.drop_invalid,
    )
    if asked.each:
        laws = with_own_coefficients(laws, split(asked.each), settings.by, kept, columns)
        settings = replace(settings, by=())
    for line in second_choices(whole, mapping):
        note(f"note: {line}")
    _note_makings(kept)
    found = table_report(kept, laws, settings, loss=loss, stage=asked.stage, seed=asked.seed)
    n_whole, n_kept = (len(next(iter(t.values()))) for t in (whole, kept))
    if asked.json_:
        inputs = {"table": asked.source, "where": asked.where, "map": mapping, "group": asked.group}
        print_json(to_json(found, input={**inputs, "rows": n_whole, "kept": n_kept}))
        return
    words = f"{n_kept} of {n_whole} rows, where {asked.where}" if asked.where else f"{n_whole} rows"
    out().print(f"{asked.source}: {words}", soft_wrap=True)
    show(comparison_blocks(found) if asked.compare else table_blocks(found))


def _fit_study(asked: FitOptions, store: "Store") -> "Table":
    """Answer a study's question; returns the rows that were asked."""
    from umscale.errors import UserError, nearest
    from umscale.questions.question import LOSSES
    from umscale.results.source import choose_rows
    from umscale.store.schema import is_evaluation_column, is_probe_column

    table: Table = store.columns()
    losses = ("both", *LOSSES, *filter(is_probe_column, table), *filter(is_evaluation_column, table))
    if asked.loss not in losses:
        raise UserError(
            f"--loss {asked.loss!r} must be one of {', '.join(losses)}{nearest(asked.loss, losses)}"
        )
    if asked.where:
        table = choose_rows(table, asked.where)
    if asked.suggest is not None or asked.contrast is not None:
        _suggest_or_contrast(asked, store, table)
        return table
    names = asked.law or asked.compare
    question = asked.question or ("density-over-size" if names else store.question())
    answer = _answer(asked, store, table, question)
    if asked.json_:
        inputs = {"study": asked.source, "where": asked.where, "map": _mapping(asked), "group": asked.group}
        print_json(answer.to_json(input=inputs))
        return table
    _show(asked, answer)
    if asked.plane and answer.laws:
        from umscale.questions.density_map import map_blocks

        places = dict.fromkeys((s.stage, s.compensation, s.loss) for s in answer.laws.sections)
        shown = _losses(asked)
        show([block for place in places if place[2] in shown for block in map_blocks(table, *place)])
    return table


def _check(source: str, path: Path, json_: bool) -> None:
    from umscale_cli.rows import check_seal

    found = check_seal(path, source)
    if json_:
        print_json(found.to_dict())
    else:
        show(found.blocks())


def basis_blocks(store: "Store", table: "Table", loss: str = "loss") -> "list[Block]":
    """What the results of ``table`` rest on."""
    from umscale.say.basis import basis
    from umscale.say.blocks import Paragraph

    return [Paragraph(text=sentence) for sentence in basis(store, table, loss)]


def _losses(asked: FitOptions) -> tuple[str, ...]:
    """Columns of losses to speak of."""
    from umscale.questions.question import LOSSES

    measured = _mapping(asked).get("loss")
    return (measured,) if measured else LOSSES if asked.loss == "both" else (asked.loss,)


def _answer(asked: FitOptions, store: "Store", table: "Table", question: str) -> "Answer":
    """Ask a study's table."""
    from umscale.laws.sections import STUDY_UNITS
    from umscale.questions.question import Asked, find
    from umscale.results.source import map_columns

    settings, mapping = _settings(asked), _mapping(asked)
    asks = find(question)
    mapped, columns = map_columns(table, mapping)
    loss = columns.pop("loss", None)
    names = asked.law or asked.compare
    laws = read_laws(names, mapped, {**columns}, mapping, settings.recipe.names) if names else ()
    recipe = weighted(settings.recipe, columns)
    units = {**STUDY_UNITS, **settings.units}
    return asks.answer(
        mapped,
        Asked(
            losses=(loss,) if loss else _losses(asked),
            stage=asked.stage,
            baseline=asked.baseline,
            laws=laws,
            settings=replace(settings, recipe=recipe, columns=columns, units=units),
            seed=asked.seed,
            read=store.read,
        ),
    )


def _show(asked: FitOptions, answer: "Answer") -> None:
    from umscale.say.laws import all_residuals, comparison_blocks

    if asked.compare and answer.laws:
        show(comparison_blocks(answer.laws))
        return
    show(answer.basis(), folds=False)
    if answer.laws:
        sections = [s for s in answer.laws.sections if s.loss in _losses(asked)]
        show([block for section in sections for block in all_residuals(answer.laws, section)])
    show(answer.blocks())


def _suggest_or_contrast(asked: FitOptions, store: "Store", table: "Table") -> None:
    """Suggest runs, or compare two cells."""
    from umscale.files import write_text
    from umscale.questions.contrast import contrast, parse_contrast
    from umscale.questions.suggest import suggest

    loss = _losses(asked)[0]
    if asked.contrast is not None:
        cells = contrast(table, *parse_contrast(asked.contrast), stage=asked.stage or "annealed", loss=loss)
        print_json(asdict(cells)) if asked.json_ else show(cells.blocks(asked.contrast))
    if asked.suggest is not None:
        found = suggest(table, store.study_tree(), asked.suggest, stage=asked.stage, loss=loss)
        if asked.json_:
            print_json(asdict(found))
            return
        show(found.blocks(with_file=asked.output is None))
        if asked.output is not None:
            write_text(asked.output, found.to_toml())
            note(f"wrote {asked.output}; run it with: umscale sweep {asked.output}")


def laws(json_: JsonFlag = False) -> None:
    """List the laws that `umscale fit --law` knows, those of installed packages too, with formula and source."""
    from umscale.laws.forms import LAWS
    from umscale.say.blocks import Grid
    from umscale.testing import usable_laws

    known = [*LAWS.values(), *usable_laws()]
    if json_:
        print_json(
            [
                {"name": law.name, "formula": law.formula, "source": law.source, "symbols": list(law.symbols)}
                | ({"package": law.package} if law.package else {})
                for law in known
            ]
        )
        return
    rows = tuple((law.name, law.formula, law.package or law.source) for law in known)
    show([Grid(caption="", head=("law", "loss in nats", "source"), sides="lll", rows=rows)])
