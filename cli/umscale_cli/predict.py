"""``umscale predict``: losses where nothing was measured, with intervals, sealed on request."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.console import JsonFlag, note, out, print_json
from umscale_cli.law_options import mapping_of, split
from umscale_cli.predicted import print_predictions
from umscale_cli.rows import RowsAsked, rows_of
from umscale_cli.runs import warn_damaged

if TYPE_CHECKING:
    from umscale.laws.fit import FitResult
    from umscale.questions.predict import Predictions


def predict(
    source: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|TABLE|FIT",
            help="A study, a table, or a .json file that `umscale fit --json` printed.",
        ),
    ],
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=VALUE,...",
            help="Where: symbols or columns, several values apart by commas, 'N=1B,10B,D=200B'; repeatable. Axes left "
            "out "
            "take the cells of the rows.",
            show_default=False,
        ),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(
            help="A table of points instead, with the law's columns or symbols.", show_default=False
        ),
    ] = None,
    law: Annotated[
        str | None,
        typer.Option(
            metavar="LAW,...",
            help="Laws by name or as formulas; default of a study: the best along tokens, held out.",
            show_default=False,
        ),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="SYMBOL=COLUMN,...", help="As of `umscale fit`."),
    ] = None,
    where: Annotated[str | None, typer.Option(help="Rows to keep.", show_default=False)] = None,
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN,...", help="A fit for each value.", show_default=False)
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Rows that err together.", show_default=False)
    ] = None,
    drop_invalid: Annotated[
        bool, typer.Option("--drop-invalid", help="Leave out a table's rows without a loss or a column.")
    ] = False,
    objective: Annotated[
        str | None, typer.Option(help="huber, least_squares or least_absolute.", show_default=False)
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Of a study: annealed or stable; default both.", show_default=False)
    ] = None,
    loss: Annotated[str, typer.Option(help="Of a study: loss, loss_ema or a generated task's.")] = "loss",
    draws: Annotated[
        int | None, typer.Option(min=1, help="Of the bootstrap; default 1000 refits.", show_default=False)
    ] = None,
    rollout: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS",
            help="Instead of points: fit on the smaller values of a symbol or column, predict the next, and score it.",
            show_default=False,
        ),
    ] = None,
    seal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the predictions with the SHA-256 of the records they came from; `umscale fit --check FILE` "
            "later.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    json_: JsonFlag = False,
) -> None:
    """Predict losses where nothing was measured: an interval for the law, one for a new run, and how far it reaches."""
    from umscale.errors import UserError
    from umscale.laws.uncertainty import bootstrap

    asked = RowsAsked(
        source=source, laws=law, mapping=mapping_of(map_), where=where, by=tuple(split(by)) if by else (),
        group=group, drop_invalid=drop_invalid, objective=objective, stage=stage, loss=loss,
    )  # fmt: skip
    if rollout is not None:
        for option, given in (("--at", at), ("--points", points), ("--seal", seal)):
            if given:
                raise UserError(f"--rollout predicts rows that are there: leave out {option}")
    elif not at and points is None:
        raise UserError("say where to predict: --at 'N=1B,D=20B', or --points FILE")
    rows = rows_of(asked)
    found: list[Predictions] = []
    parts = []
    scores = []
    for one in rows.fits:
        if rollout is not None:
            from umscale.questions.rollout import roll_out

            scores.append(roll_out(one.fit, one.axis(rollout), rollout, by=one.by))
            continue
        uncertainty = bootstrap(one.fit, n_draws=draws, group=one.groups, unit=one.unit, seed=seed)
        from umscale.questions.predict import predict as expect

        where_to = _table_points(points, one.fit) if points is not None else _points(at or (), one.fit)
        predictions = expect(uncertainty, where_to, reason=one.reason, by=one.by)
        found.append(predictions)
        parts.append((predictions, one))
    if seal is not None:
        _write_seal(seal, parts, rows.asked)
        note(f"sealed {sum(len(p.points) for p in found)} predictions in {seal}")
    if json_:
        print_json([one.to_dict() for one in (found or scores)])
    elif rollout is not None:
        from umscale_cli.predicted import print_rollouts

        print_rollouts(scores, out())
    else:
        print_predictions(found, out())
    if rows.store is not None:
        warn_damaged(rows.store)


def _points(at: "list[str] | tuple[str, ...]", fit: "FitResult") -> list[dict[str, float]]:
    """The points of every --at."""
    from umscale.questions.predict import points_of

    return [point for one in at for point in points_of(fit, _values(one))]


def _values(text: str) -> dict[str, list[float]]:
    """Read ``N=1B,10B,D=20B``: an entry without an axis belongs to the axis before it."""
    from umscale.errors import UserError
    from umscale.spec import quantity

    found: dict[str, list[float]] = {}
    name = ""
    for part in split(text):
        before, equals, value = part.rpartition("=")
        if equals:
            name = before.strip().strip("`")
            if not name or name in found:
                raise UserError(f"--at {text!r}: name every axis once, as in 'N=1B,10B,D=20B'")
            found[name] = []
        if not name:
            raise UserError(f"--at {text!r} must be AXIS=VALUE,...")
        found[name].append(quantity(value.strip(), f"--at {name}"))
    return found


def _table_points(path: Path, fit: "FitResult") -> list[dict[str, float]]:
    """The rows of a table as points: by column, by formula of columns, or by symbol."""
    import numpy as np

    from umscale.errors import UserError
    from umscale.questions.predict import MOST_POINTS
    from umscale.results.source import derive, read_table
    from umscale.results.table import n_rows, numeric

    table = read_table(path)
    columns = {}
    for symbol in fit.law.symbols:
        name = fit.columns[symbol]
        if name in table or symbol in table:
            columns[symbol] = numeric(table, name if name in table else symbol)
        else:
            columns[symbol] = derive(table, name)
        if not np.isfinite(columns[symbol]).all():
            raise UserError(f"{path}: {name} is missing in some rows: every point needs one")
    if n_rows(table) > MOST_POINTS:
        raise UserError(f"{path} has {n_rows(table)} rows; {MOST_POINTS} points are the most")
    return [{s: float(cells[i]) for s, cells in columns.items()} for i in range(n_rows(table))]


def _write_seal(path: Path, parts: "list[tuple[Predictions, Any]]", asked: RowsAsked) -> None:
    import datetime
    import json

    from umscale import __version__
    from umscale.files import write_text
    from umscale.questions.seal import Part, records_of, seal

    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()
    found = seal(
        [
            Part(
                predictions=predictions,
                records=tuple(records_of(one.rows, predictions.columns.values(), predictions.loss)),
            )
            for predictions, one in parts
        ],
        source=asked.to_dict(),
        sealed=now,
        version=__version__,
    )
    write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
