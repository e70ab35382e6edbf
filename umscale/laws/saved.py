"""A fit that ``umscale fit --json`` printed, taken up again: the same law on the same rows, with its draws.

The file is not trusted for numbers. Its source is read again and the law fitted again, and the optimum must be the
one recorded; intervals of whatever is predicted from it then come from refits, not from the file's marginal ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from umscale.errors import UserError
from umscale.files import read_bounded
from umscale.laws.compare import Recipe, fit_each
from umscale.laws.expression import parse_law
from umscale.laws.fit import FitResult
from umscale.laws.forms import LAWS, Law, law_named
from umscale.laws.sections import SCHEMA_VERSION
from umscale.results.source import rows_and_columns, satisfies
from umscale.results.table import Table, text
from umscale.trees import parse_json

_NO_SYMBOLS = ("loss", "--weight", "--error")
"""What a mapping gives beside symbols."""
_SAME = 1e-6  # relative difference of two objectives that are one optimum


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFit:
    """One law of a file of ``umscale fit --json``."""

    path: Path
    source: str
    """A study or a table file, as it was named."""
    is_study: bool
    where: str | None
    group: str | None
    """Column of --group."""
    mapping: Mapping[str, str]
    """As --map and the options of weights gave it: symbol → column or formula."""
    by: Mapping[str, str]
    law: Law
    recipe: Recipe
    columns: Mapping[str, str]
    units: Mapping[str, str]
    """Symbol → what the fit says it is."""
    loss: str
    stage: str | None
    compensation: str | None
    rows: int
    objective: float

    @property
    def given(self) -> dict[str, str]:
        """The mapping that gives the fit's columns again."""
        beside = dict(zip(_NO_SYMBOLS, (self.loss, self.recipe.weight, self.recipe.error), strict=True))
        return {**self.columns, **{k: c for k, c in beside.items() if c is not None}, **self.mapping}


def read_saved(
    path: Path, *, law: str | None = None, stage: str | None = None, for_null: str | None = None
) -> SavedFit:
    """Read one fit of a file: the law named, else the one recommended; of the stage named, else the first.

    Where ``null`` is recommended, which tells no configurations apart, the file's law ``for_null`` is taken instead.

    Raises ``UserError`` for a file that is no such output, is of another schema, or has no such fit.
    """
    try:
        tree = parse_json(read_bounded(path))
        version = tree["schema"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not what `umscale fit --json` prints") from None
    if version != SCHEMA_VERSION:
        raise UserError(f"{path} has schema {version}, this is {SCHEMA_VERSION}: fit again")
    try:
        return _chosen(path, tree, law, stage, for_null)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); fit again") from None


def refit_saved(saved: SavedFit, table: Table) -> FitResult:
    """The recorded fit made again from ``table``, the source's rows.

    Raises ``UserError`` when the rows or the optimum are not those recorded.
    """
    mapped, columns = rows_of(saved, table)
    fits, refused = fit_each(
        mapped,
        [saved.law],
        stage=saved.stage,
        compensation=saved.compensation,
        loss=saved.loss,
        columns=columns,
        extra=tuple(symbol for symbol in saved.columns if symbol not in saved.law.symbols),
        recipe=saved.recipe,
    )
    if not fits:
        raise refused[0]
    fit = fits[0]
    if fit.n_rows != saved.rows or abs(fit.objective - saved.objective) > _SAME * abs(saved.objective):
        raise UserError(
            f"{saved.source} has changed since {saved.path} was written ({fit.n_rows} rows, then {saved.rows}; "
            f"objective {fit.objective:.9g}, then {saved.objective:.9g}): fit again"
        )
    return fit


def rows_of(saved: SavedFit, table: Table) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The rows that a fit was made of, stages aside, with derived columns; and the column of every symbol."""
    mapped, columns = rows_and_columns(table, saved.where, saved.given)
    columns = {symbol: column for symbol, column in columns.items() if symbol not in _NO_SYMBOLS}
    for column, value in saved.by.items():
        kept = text(mapped, column) == value
        if not kept.any():
            kept = satisfies(mapped, f"`{column}` == {value}")
        mapped = {name: np.asarray(cells)[kept] for name, cells in mapped.items()}
    return mapped, columns


def _chosen(
    path: Path, tree: Mapping[str, Any], law: str | None, stage: str | None, for_null: str | None
) -> SavedFit:
    fits = [f for f in tree["fits"] if stage in (None, f["stage"])]
    if not fits:
        raise UserError(f"{path} holds no fit of stage {stage!r}")
    if law is None:
        first = fits[0]
        place = {k: first[k] for k in ("stage", "compensation", "loss", "by")}
        law = next(r["law"] for r in tree["recommended"] if all(r[k] == v for k, v in place.items()))
        if law == "null" and any(f["law"] == for_null for f in fits):
            law = for_null
    named = [f for f in fits if f["law"] == law]
    if not named:
        raise UserError(
            f"{path} holds no law {law!r}; it has {', '.join(dict.fromkeys(f['law'] for f in fits))}"
        )
    fit, source = named[0], tree["input"]
    name = str(fit["law"])
    columns = {str(s): str(c) for s, c in fit["columns"].items()}
    how = fit["constraints"]
    return SavedFit(
        path=path,
        source=str(source.get("study") or source["table"]),
        is_study="study" in source,
        where=source["where"],
        group=source.get("group"),
        mapping={str(s): str(c) for s, c in source.get("map", {}).items()},
        by=dict(fit["by"]),
        law=law_named(name, fit.get("package"))
        if name in LAWS or fit.get("package")
        else parse_law(str(fit["formula"]), columns, name, as_power=fit.get("form") != "expression"),
        recipe=Recipe(
            objective=fit["objective"]["name"],
            delta=fit["objective"]["delta"] if fit["objective"]["name"] == "huber" else None,
            residual=fit["objective"]["residual"],
            pins={str(name): float(value) for name, value in how["pins"].items()},
            ties=[(str(a), str(b)) for a, b in how["ties"]],
            bounds={
                str(name): (
                    -np.inf if low is None else float(low),
                    np.inf if high is None else float(high),
                )
                for name, (low, high) in how["bounds"].items()
            },
            weight=fit["objective"].get("weight"),
            error=fit["objective"].get("error"),
            above=float(fit["objective"].get("above", 1.0)),
        ),
        columns=columns,
        units={str(s): str(words) for s, words in tree["units"].items()},
        loss=str(fit["loss"]),
        stage=fit["stage"],
        compensation=fit["compensation"],
        rows=int(fit["rows"]),
        objective=float(fit["objective"]["value"]),
    )
