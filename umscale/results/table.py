"""From a table of results to the rows a law is fitted on.

A table is a mapping of column names to equally long arrays, one row per run × budget × stage, as read from
the results store or from any CSV. Missing cells are NaN or None.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from umscale.errors import UserError, nearest
from umscale.results.columns import COLUMNS, Array
from umscale.spec import quantity


class ReadsSymbols(Protocol):
    """Anything evaluated on columns: a law."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """Those that it reads."""
        ...

    @property
    def positive(self) -> tuple[str, ...]:
        """Those whose values must be positive."""
        ...


Table = Mapping[str, NDArray[np.generic]]
Codes = NDArray[np.int64]

# What makes two runs of one table the same cell: every axis of a design except seed and budget.
CELL_COLUMNS = (
    "architecture", "top_m", "sparse_params", "n_keys", "heads", "d_key", "d_pre_value", "d_value", "n_experts",
    "top_k", "d_model", "n_layers", "d_ffn", "compensation",
)  # fmt: skip
# Axes that no local law speaks about; runs that differ in them get an intercept of their own.
_SETTING_COLUMNS = ("d_model", "n_layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Clean rows: finite losses, positive finite values, and which rows belong together."""

    loss: Array
    """Nats per token, [rows]."""
    values: Mapping[str, Array]
    """Symbol of the law → [rows]."""
    run: Codes
    cell: Codes
    seed: Codes
    setting: Codes
    """Architecture outside the law's axes, [rows]; one code when all runs share it."""
    index: Codes
    """Row numbers in the table these rows came from."""
    weight: Array | None = None
    """How much each row counts, [rows]; None for equally."""
    error: Array | None = None
    """Standard error of each loss, [rows]; None where none is given."""
    notes: tuple[str, ...] = ()
    """What was left out or merged, in words."""

    @property
    def size(self) -> int:
        return len(self.loss)

    def take(self, chosen: NDArray[np.bool_]) -> "Rows":
        """The rows where ``chosen`` [rows] holds."""
        return Rows(
            loss=self.loss[chosen],
            values={symbol: v[chosen] for symbol, v in self.values.items()},
            run=self.run[chosen],
            cell=self.cell[chosen],
            seed=self.seed[chosen],
            setting=self.setting[chosen],
            index=self.index[chosen],
            weight=None if self.weight is None else self.weight[chosen],
            error=None if self.error is None else self.error[chosen],
            notes=self.notes,
        )


def numeric(table: Table, name: str) -> Array:
    """Column ``name`` as float64, None as NaN, text such as ``12B`` as ``spec.quantity`` reads it.

    Raises ``UserError`` for any other text, with the first of it.
    """
    column = np.asarray(table[name])
    if column.dtype == object:
        column = np.array([np.nan if cell is None else cell for cell in column])
    try:
        return column.astype(np.float64)
    except (TypeError, ValueError):
        return np.array([_number(cell, name) for cell in column.tolist()], dtype=np.float64)


def _number(cell: object, name: str) -> float:
    if cell in ("", "nan"):  # a missing cell beside text
        return float("nan")
    try:
        return quantity(cell)
    except UserError:
        raise UserError(f"column {name!r} must hold numbers, it holds {str(cell)[:40]!r}") from None


def text(table: Table, name: str) -> NDArray[np.str_]:
    """Column ``name`` as strings, missing cells as the empty string."""
    return np.array(
        ["" if cell is None else str(cell) for cell in np.asarray(table[name]).tolist()], dtype=str
    )


def n_rows(table: Table) -> int:
    """Length of the table; raises ``UserError`` when its columns differ in length."""
    lengths = {name: len(column) for name, column in table.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"the table's columns differ in length: {lengths}")
    return next(iter(lengths.values()), 0)


def where(
    table: Table, *, stage: str | None = None, compensation: str | None = None, budget: float | None = None
) -> dict[str, NDArray[np.generic]]:
    """The part of a table at one stage, compensation and budget; None leaves an axis alone.

    Raises ``UserError`` when nothing is left or the column asked about is missing.
    """
    keep = np.ones(n_rows(table), dtype=bool)
    for name, wanted in (("stage", stage), ("compensation", compensation)):
        if wanted is None:
            continue
        _require(table, [name])
        present = text(table, name)
        if wanted not in present:
            raise UserError(f"no row has {name} {wanted!r}{nearest(wanted, set(present.tolist()) - {''})}")
        keep &= present == wanted
    if budget is not None:
        _require(table, ["budget"])
        keep &= numeric(table, "budget") == budget
        if not keep.any():
            raise UserError(f"no row has budget {budget:g}")
    return {name: np.asarray(column)[keep] for name, column in table.items()}


def levels(table: Table, name: str) -> tuple[str, ...]:
    """Distinct non-missing entries of a text column, or nothing when the table lacks it."""
    if name not in table:
        return ()
    return tuple(sorted(set(text(table, name).tolist()) - {""}))


def first_level(table: Table, name: str) -> str | None:
    """The first of ``levels``, or None without any."""
    return next(iter(levels(table, name)), None)


def parts(table: Table, losses: Sequence[str]) -> list[tuple[str, str | None, str | None]]:
    """(loss, compensation, stage) of each part that questions are asked of; None where the table has no such column."""
    return [
        (loss, compensation, stage)
        for loss in losses
        if loss in table
        for compensation in levels(table, "compensation") or (None,)
        for stage in levels(table, "stage") or (None,)
    ]


def parts_by_budget(table: Table, stage: str | None = None) -> Iterator[tuple[str | None, str, float, Table]]:
    """Yield (compensation, stage, budget, rows), the largest budget of each first; of one ``stage`` or of all."""
    for compensation in levels(table, "compensation") or (None,):
        for one in levels(table, "stage"):
            if stage in (None, one):
                part = where(table, stage=one, compensation=compensation)
                for budget in sorted(set(numeric(part, "budget")), reverse=True):
                    yield compensation, one, float(budget), where(part, budget=budget)


def missing_columns(table: Table, law: ReadsSymbols, columns: Mapping[str, str] | None = None) -> str:
    """Which symbol of a law has no column, in words with the nearest name; the empty string when all have one."""
    for symbol in law.symbols:
        column = {**COLUMNS, **(columns or {})}.get(symbol, symbol)
        if column not in table:
            return f"the table has no column {column!r} for {symbol}: say --map {symbol}=COLUMN{nearest(column, table)}"
        if _is_empty(table[column]):
            return f"column {column!r}, for {symbol}, is empty"
    return ""


def _is_empty(column: NDArray[np.generic]) -> bool:
    """Whether a column holds nothing at all, as one of a store does that its runs have no use for."""
    cells = np.asarray(column)
    if cells.dtype == object:
        return all(cell is None for cell in cells.tolist())
    return bool(cells.dtype.kind == "f" and len(cells) and np.isnan(cells).all())


def _require_positive(columns: Mapping[str, Array], valid: NDArray[np.bool_], what: str) -> None:
    for name, column in columns.items():
        if (column[valid] <= 0).any():
            raise UserError(f"column {name!r} holds {what}")


def _read_by(table: Table, laws: Sequence[ReadsSymbols], columns: Mapping[str, str] | None) -> list[str]:
    """The symbols of laws, whose columns the table must have; raises ``UserError`` for one that mixes parts."""
    for law in laws:
        missing = missing_columns(table, law, columns)
        if missing:
            raise UserError(missing)
    for name in ("stage", "compensation"):
        if len(levels(table, name)) > 1:
            raise UserError(f"the table mixes {name} {' and '.join(levels(table, name))}: choose one")
    return list(dict.fromkeys(s for law in laws for s in law.symbols))


def select_rows(
    table: Table,
    laws: Sequence[ReadsSymbols],
    *,
    loss: str = "loss",
    columns: Mapping[str, str] | None = None,
    extra: Iterable[str] = (),
    drop_invalid: bool = True,
    weight: str | None = None,
    error: str | None = None,
) -> Rows:
    """The rows on which every one of ``laws`` can be evaluated.

    ``columns`` maps symbols to column names over the defaults of ``results.columns.COLUMNS``; ``extra`` are symbols
    carried along when the table has them. Rows of several stages or compensations do not mix: choose with
    ``where`` first. ``weight`` and ``error`` name columns of weights and of standard errors. Rows without a finite
    loss (diverged, killed, infeasible runs) are counted and left out, or refused with ``drop_invalid=False``. Raises
    ``UserError`` for missing columns, a mixed table, values that have no logarithm, or nothing left.
    """
    mapping = {**COLUMNS, **(columns or {})}
    _require(table, [loss, *(name for name in (weight, error) if name is not None)])
    symbols = _read_by(table, laws, columns)
    any_sign = {s for law in laws for s in law.symbols} - {s for law in laws for s in law.positive}
    held = {s for s in extra if mapping.get(s, s) in table and not _is_empty(table[mapping.get(s, s)])}
    symbols += [s for s in extra if s not in symbols and s in held]
    losses = numeric(table, loss)
    values = {symbol: numeric(table, mapping.get(symbol, symbol)) for symbol in symbols}
    beside = {name: numeric(table, name) for name in (weight, error) if name is not None}
    valid = np.isfinite(losses)
    for column in (*values.values(), *beside.values()):
        valid &= np.isfinite(column)
    n_invalid = int((~valid).sum())
    if n_invalid and not drop_invalid:
        raise UserError(
            f"{n_invalid} of {len(valid)} rows lack {loss} or a column of the law; --drop-invalid leaves them out"
        )
    if not valid.any():
        raise UserError(
            f"no row has a finite {loss} and all of {', '.join(mapping.get(s, s) for s in symbols)}"
        )
    logged = {loss: losses} | {mapping.get(s, s): values[s] for s in symbols if s not in any_sign}
    _require_positive(logged, valid, "values that are zero or negative and have no logarithm")
    _require_positive(beside, valid, "weights or standard errors that are not positive")
    run = group_codes(table, ["run_id"]) if "run_id" in table else np.arange(len(losses), dtype=np.int64)
    cell_columns = [c for c in CELL_COLUMNS if c in table]
    rows = Rows(
        loss=losses,
        values=values,
        run=run,
        cell=group_codes(table, cell_columns) if cell_columns else run,
        seed=group_codes(table, ["seed"]),
        setting=group_codes(table, _settings(table)),
        index=np.arange(len(losses), dtype=np.int64),
        weight=None if weight is None else beside[weight],
        error=None if error is None else beside[error],
        notes=(f"{n_invalid} of {len(valid)} rows without a usable {loss} were left out",)
        if n_invalid
        else (),
    )
    return rows.take(valid)


def _settings(table: Table) -> list[str]:
    # The dense FFN follows the cell under an iso-compute compensation; only elsewhere is it an axis.
    free_ffn = levels(table, "compensation") in {(), ("none",)}
    return [c for c in (*_SETTING_COLUMNS, *(("d_ffn",) if free_ffn else ())) if c in table]


def group_codes(table: Table, names: Sequence[str]) -> Codes:
    """Integer code of each distinct combination of ``names``; one code for all rows when there are none."""
    present = [text(table, name) for name in names if name in table]
    if not present:
        return np.zeros(n_rows(table), dtype=np.int64)
    joined = np.array(["\x1f".join(parts) for parts in zip(*present, strict=True)])
    return np.unique(joined, return_inverse=True)[1].astype(np.int64).reshape(-1)


def _require(table: Table, names: Iterable[str]) -> None:
    for name in names:
        if name not in table:
            raise UserError(f"the table has no column {name!r}{nearest(name, table)}")
