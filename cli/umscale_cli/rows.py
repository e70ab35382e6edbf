"""The rows that `umscale predict` and `umscale optimal` speak of: a study, a table or a saved fit, and laws on them."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umscale_cli.console import note
from umscale_cli.law_options import choice, read_laws, weighted
from umscale_cli.runs import open_store

if TYPE_CHECKING:
    from umscale.laws.compare import Recipe
    from umscale.laws.saved import SavedFit
    from umscale.questions.fitted import Fitted
    from umscale.questions.seal import Checked
    from umscale.results.table import Table
    from umscale.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsAsked:
    """What a command line says of the rows and laws."""

    source: str
    laws: str | None = None
    mapping: dict[str, str] = field(default_factory=dict)
    where: str | None = None
    by: tuple[str, ...] = ()
    group: str | None = None
    drop_invalid: bool = False
    objective: str | None = None
    stage: str | None = None
    loss: str = "loss"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, as a seal keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> "RowsAsked":
        """Read it back; raises ``TypeError`` or ``KeyError`` for anything else."""
        return cls(**{**tree, "by": tuple(tree["by"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Laws fitted to every part of the rows."""

    asked: RowsAsked
    """What reads the same rows again; of a saved fit, what it was made of."""
    fits: "tuple[Fitted, ...]"
    store: "Store | None"
    """Of a study."""


def table_of(asked: RowsAsked) -> "tuple[Table, dict[str, str], Store | None]":
    """The rows kept, with derived columns; the column of every symbol, ``loss`` among them; and a study's store."""
    from umscale.results.source import is_table, read_table, rows_and_columns, second_choices

    store = None
    if is_table(asked.source):
        whole: Table = read_table(asked.source)
        for line in second_choices(whole, asked.mapping):
            note(f"note: {line}")
    else:
        store = open_store(asked.source)
        whole = store.columns()
    table, columns = rows_and_columns(whole, asked.where, asked.mapping)
    columns.setdefault("loss", asked.loss)
    return table, columns, store


def rows_of(asked: RowsAsked) -> Rows:
    """Fit the laws asked for; of a study without any, the best along tokens."""
    from umscale.errors import UserError
    from umscale.laws.compare import Recipe
    from umscale.laws.forms import Objective
    from umscale.questions.fitted import fitted

    if asked.source.endswith(".json"):
        return _saved(asked)
    table, columns, store = table_of(asked)
    if asked.laws is None and store is None:
        raise UserError(f"name a law for {asked.source} with --law; `umscale laws` lists them")
    loss = columns.pop("loss")
    recipe = weighted(Recipe(objective=choice(asked.objective, "--objective", Objective)), columns)
    laws = read_laws(asked.laws, table, columns, asked.mapping, (), asked.where) if asked.laws else []
    settings = _settings(asked, recipe, columns, is_study=store is not None)
    return Rows(asked=asked, fits=fitted(table, laws, settings, loss=loss, stage=asked.stage), store=store)


def _settings(asked: RowsAsked, recipe: "Recipe", columns: dict[str, str], *, is_study: bool) -> Any:
    from umscale.laws.compare import EXTRA_SYMBOLS
    from umscale.laws.sections import Settings

    return Settings(
        columns=columns,
        recipe=recipe,
        is_study=is_study,
        extra=EXTRA_SYMBOLS if is_study else tuple(s for s in asked.mapping if s in columns),
        drop_invalid=asked.drop_invalid or is_study,
        by=asked.by,
        group=asked.group,
    )


def _saved(asked: RowsAsked) -> Rows:
    """A fit that `umscale fit --json` printed, made again and compared with what it was."""
    from umscale.laws.saved import read_saved, refit_saved
    from umscale.laws.saved import rows_of as saved_rows
    from umscale.laws.sections import resampling_groups
    from umscale.questions.fitted import Fitted
    from umscale.results.source import read_table
    from umscale.results.table import where

    saved: SavedFit = read_saved(Path(asked.source), law=asked.laws, stage=asked.stage)
    store = open_store(saved.source) if saved.is_study else None
    whole: Table = store.columns() if store is not None else read_table(saved.source)
    fit = refit_saved(saved, whole)
    table, columns = saved_rows(saved, whole)
    rows = where(table, stage=saved.stage, compensation=saved.compensation)
    settings = _settings(
        replace(asked, group=asked.group or saved.group), saved.recipe, columns, is_study=saved.is_study
    )
    codes, unit = resampling_groups(rows, fit, settings)
    kept = {name: cells[fit.rows.index] for name, cells in rows.items()}
    one = Fitted(fit=fit, by=saved.by, reason="as fitted before", group=codes, unit=unit, rows=kept)
    again = RowsAsked(
        source=saved.source, laws=saved.law.formula, mapping=saved.given, where=saved.where, group=saved.group,
        by=tuple(saved.by), stage=saved.stage, loss=saved.loss,
    )  # fmt: skip
    return Rows(asked=again, fits=(one,), store=store)


def check_seal(path: Path, source: str) -> "Checked":
    """Score a seal on what ``source`` holds now; raises ``UserError`` for a seal of other rows."""
    from umscale.errors import UserError
    from umscale.laws.sections import parts_of
    from umscale.questions.seal import check, read_seal

    sealed = read_seal(path)
    try:
        asked = replace(RowsAsked.from_dict(sealed["input"]), source=source)
    except (KeyError, TypeError):
        raise UserError(f"{path} does not say what rows it speaks of") from None
    table = table_of(asked)[0]
    tables = []
    for part in sealed["parts"]:
        found = dict(parts_of(table, tuple(part["by"]))).get(tuple(part["by"].values()))
        if found is None:
            raise UserError(f"{source} has no rows of {part['by']}, of which {path} speaks")
        for column in part["columns"].values():
            if column not in found:
                raise UserError(f"{source} has no column {column!r}, of which {path} speaks")
        tables.append(found)
    return check(sealed, tables)
