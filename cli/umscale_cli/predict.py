"""``umscale predict``: losses where nothing was measured, with intervals, sealed on request."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umscale_cli.console import note, print_json, show
from umscale_cli.law_options import split
from umscale_cli.options import takes_options
from umscale_cli.rows import Rows, RowsAsked, rows_of
from umscale_cli.runs import warn_damaged
from umscale_cli.selection import FittedRowsOptions

if TYPE_CHECKING:
    from umscale.laws.fit import FitResult
    from umscale.questions.fitted import Fitted
    from umscale.questions.predict import Predictions
    from umscale.questions.rollout import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions(FittedRowsOptions):
    """Options of ``umscale predict``."""

    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=VALUE,...",
            help="Where: symbols or columns, several values apart by commas, 'N=1B,10B,D=200B'; repeatable. Axes left "
            "out take the cells of the rows.",
            show_default=False,
        ),
    ] = None
    points: Annotated[
        Path | None,
        typer.Option(
            help="A table of points instead, with the law's columns or symbols.", show_default=False
        ),
    ] = None
    rollout: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS",
            help="Instead of points: fit on the smaller values of a symbol or column, predict the next, and score it.",
            show_default=False,
        ),
    ] = None
    seal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the predictions with the SHA-256 of the records they came from; `umscale fit --check FILE` "
            "later.",
            show_default=False,
        ),
    ] = None


@takes_options
def predict(asked: PredictOptions) -> None:
    """Predict losses where nothing was measured: an interval for the law, one for a new run, and how far it reaches.

    Of a study without --law the law is the best along tokens, held out.
    """
    from umscale.errors import UserError

    if asked.rollout is not None:
        for option, given in (("--at", asked.at), ("--points", asked.points), ("--seal", asked.seal)):
            if given:
                raise UserError(f"--rollout predicts rows that are there: leave out {option}")
    elif not asked.at and asked.points is None:
        raise UserError("say where to predict: --at 'N=1B,D=20B', or --points FILE")
    rows = rows_of(asked.rows(asked.law))
    answers: Sequence[Predictions | Rollout]
    if asked.rollout is not None:
        answers = _roll_out(asked.rollout, rows)
    else:
        answers = predictions = [_predict(asked, one) for one in rows.fits]
        if asked.seal is not None:
            _write_seal(asked.seal, list(zip(predictions, rows.fits, strict=True)), rows.asked)
            note(f"sealed {sum(len(p.points) for p in predictions)} predictions in {asked.seal}")
    if asked.json_:
        print_json([one.to_dict() for one in answers])
    else:
        show([block for one in answers for block in one.blocks()])
    if rows.store is not None:
        warn_damaged(rows.store)


def _roll_out(axis: str, rows: Rows) -> "list[Rollout]":
    from umscale.questions.rollout import roll_out

    return [roll_out(one.fit, one.axis(axis), axis, by=one.by) for one in rows.fits]


def _predict(asked: PredictOptions, one: "Fitted") -> "Predictions":
    from umscale.laws.uncertainty import bootstrap
    from umscale.questions.predict import predict as expect

    uncertainty = bootstrap(one.fit, n_draws=asked.draws, group=one.groups, unit=one.unit, seed=asked.seed)
    points = (
        _points(asked.at or (), one.fit) if asked.points is None else _table_points(asked.points, one.fit)
    )
    return expect(uncertainty, points, reason=one.reason, by=one.by)


def _points(at: Sequence[str], fit: "FitResult") -> list[dict[str, float]]:
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


def _write_seal(path: Path, parts: "Sequence[tuple[Predictions, Fitted]]", asked: RowsAsked) -> None:
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
