"""How the best learning rates move from cell to cell, and what one rule for all cells costs.

In every cell c of a design, with x = ln lr and y = ln value_lr,

    L = b_cs + g_c x + k_c y + (h_xx x² + 2 h_xy x y + h_yy y²) / 2

a level for each cell and seed s, since what a seed does to all settings of a cell is often more than what the rates do;
one curvature for all cells, an optimum (x*, y*) = −H⁻¹ (g_c, k_c) for each. A rate that was measured at two values in
every cell has no optimum: then each of its values has an intercept of its own, and the other rate alone is placed. An
optimum outside the values of its cell, and a price of rates outside them, are not said: nothing was measured there.
This is linear in its coefficients, so intervals come from draws of their posterior under a flat prior (Student's t).
Cells far from their optimum bend more than a parabola does: rows more than ``WINDOW`` nats above the best of their cell
and seed are left out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from umscale.cell_labels import cell_parts
from umscale.errors import UserError
from umscale.laws.uncertainty import Estimate
from umscale.questions.question import Answer, Asked, Question
from umscale.results.columns import Array
from umscale.results.table import Codes, Table, numeric, parts_by_budget, text
from umscale.say.blocks import Block, Fold, Grid, Verdict
from umscale.say.estimates import both, counted, fixed, pair, significant
from umscale.say.labels import held, loss_name, sentence, when
from umscale.say.numbers import count

WINDOW = 0.15
_LEVELS = 3  # of a rate that an optimum needs
_SAME_RATE = 1.01
_RATES = ("lr", "value_lr")
DRAWS = 2000
_AXES = ("top_m", "n_values", "d_model", "n_layers")
_NOT_CELL = ("lr", "value_lr", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRates:
    """One cell: where its loss is least, and what the default rates cost it."""

    name: str
    n_runs: int
    best: tuple[float, float, float]
    """lr, value_lr and loss of the best setting measured, mean over seeds."""
    lr: Estimate
    """Of least loss on the fitted surface; NaN where it lies outside the values measured or they are too few."""
    value_lr: Estimate
    default: tuple[float, float]
    """The lr and value_lr that the default rates give this cell's shape (``umscale.model.scaling``)."""
    excess: Estimate
    """Loss at the default rates above the least, nats per token; NaN outside what was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatesReport:
    """The learning rates of a study at one stage and budget."""

    question: str = "learning-rates"
    stage: str | None
    compensation: str | None
    loss: str
    budget: float
    cells: tuple[CellRates, ...]
    exponents: Mapping[str, Mapping[str, Estimate]]
    """``lr`` and ``value_lr`` → axis → power with which the best rate goes."""
    curvature: Mapping[str, Estimate]
    """h_xx, h_xy, h_yy, nats per squared unit of the natural logarithm."""
    deviation: float
    """Standard deviation of a run about the surface, nats: noise, and what a parabola misses."""
    noise: float
    """Standard deviation between runs of one setting; NaN where no setting has two."""
    freedom: int
    n_rows: int
    n_far: int
    """Rows left out as far from the best of their cell and seed."""
    warnings: tuple[str, ...]

    @property
    def worst(self) -> CellRates | None:
        """The cell in which the default rates cost most; None where none is priced."""
        priced = [cell for cell in self.cells if np.isfinite(cell.excess.value)]
        return max(priced, key=lambda cell: cell.excess.value, default=None)


def rates_reports(table: Table, *, loss: str = "loss", stage: str | None = None) -> tuple[RatesReport, ...]:
    """Return a report for each stage, compensation and budget of a study, annealed and largest budget first.

    Args:
        table: ``Store.columns()``.

    Raises:
        UserError: no cell has enough settings of lr and value_lr to place its optimum.
    """
    for name in ("lr", "value_lr", "label"):
        if name not in table or not len(table[name]):
            raise UserError(
                "the best learning rates need a study's finished runs at several train.lr and train.value_lr"
            )
    found: list[RatesReport] = []
    lacking: list[UserError] = []
    for compensation, one, budget, rows in parts_by_budget(table, stage):
        for apart in _apart(rows):
            try:
                found.append(_report(apart, loss, one, compensation, budget))
            except UserError as error:
                lacking.append(error)
    if not found:
        raise lacking[0]
    if lacking:
        found[0] = replace(found[0], warnings=(*found[0].warnings, *map(str, lacking)))
    return tuple(found)


def _apart(table: Table) -> list[Table]:
    """Return the cells that vary both rates, and those that hold value_lr, as models without value tables do."""
    cells, rates = cell_names(table), numeric(table, "value_lr")
    held = np.array([len(np.unique(rates[cells == cell])) == 1 for cell in cells], dtype=bool)
    if held.all() or not held.any():
        return [table]
    return [{name: np.asarray(column)[chosen] for name, column in table.items()} for chosen in (~held, held)]


def cell_names(table: Table) -> np.ndarray:
    """Return the cell of every row: its label without learning rates and seed; ``all`` where nothing else varies."""
    out = []
    for label in text(table, "label"):
        out.append(" ".join(cell_parts(label, _NOT_CELL)) or "all")
    return np.array(out, dtype=str)


def _report(table: Table, loss: str, stage: str, compensation: str | None, budget: float) -> RatesReport:
    cells, losses = cell_names(table), numeric(table, loss)
    x, y = np.log(numeric(table, "lr")), np.log(numeric(table, "value_lr"))
    usable = np.isfinite(losses) & np.isfinite(x) & np.isfinite(y)
    blocks = _blocks(table, cells)
    least = np.array(
        [losses[usable & (blocks == b)].min(initial=np.inf) for b in range(int(blocks.max()) + 1)]
    )
    near = usable & (losses <= least[blocks] + WINDOW)
    names = [c for c in dict.fromkeys(cells.tolist()) if _places_optimum(x, y, near & (cells == c))]
    kept = near & np.isin(cells, names)
    if not names:
        raise UserError(
            f"no cell has settings on both sides in train.lr and train.value_lr ({stage}, {budget:g} tokens): an "
            "optimum needs three values of each"
        )
    placed = _placed(cells, (x, y), kept, names)
    if not any(placed):
        raise UserError(
            f"no cell has three values of train.lr or of train.value_lr ({stage}, {budget:g} tokens): an optimum needs "
            "three values of a rate, and two give none"
        )
    centre = np.array([x[kept].mean(), y[kept].mean()])
    rates = (x[kept] - centre[0], y[kept] - centre[1])
    surface = _Surface(names, cells[kept], blocks[kept], rates, losses[kept], placed)
    draws = surface.draws()
    warnings = [
        f"{rate} was measured at two values: two give no optimum, and the default rates are not priced"
        for rate, values, one in zip(_RATES, (x, y), placed, strict=True)
        if not one and len(np.unique(values[kept])) > 1
    ]
    if not surface.bowl:
        warnings.append("the fitted surface has no lowest point: measure further rates")
    if left := sorted(set(cells.tolist()) - set(names)):
        warnings.append(f"too few settings to place the optimum of {', '.join(left)}")
    rules = _defaults(table, cells, names)
    reports = []
    for i, name in enumerate(names):
        mine = usable & (cells == name)
        rows = _CellRows(name, x[mine], y[mine], losses[mine], int((kept & mine).sum()))
        cell, said = _cell(rows, i, draws, centre, rules[name], placed, surface.bowl)
        reports.append(cell)
        warnings += said
    noise, freedom = _repeats(cells, x, y, losses, usable)
    return RatesReport(
        stage=stage,
        compensation=compensation,
        loss=loss,
        budget=budget,
        cells=tuple(reports),
        exponents=_exponents(table, cells, names, draws.optimum),
        curvature={k: _interval(draws.curvature[:, j]) for j, k in enumerate(("h_xx", "h_xy", "h_yy"))},
        deviation=surface.deviation,
        noise=noise,
        freedom=freedom,
        n_rows=int(kept.sum()),
        n_far=int((usable & ~near).sum()),
        warnings=tuple(warnings),
    )


def _blocks(table: Table, cells: np.ndarray) -> np.ndarray:
    """Of each row, a number of its cell and seed, [rows]."""
    seeds = numeric(table, "seed") if "seed" in table else np.zeros(len(cells))
    pairs = np.stack([np.unique(cells, return_inverse=True)[1], seeds])
    return np.unique(pairs, axis=1, return_inverse=True)[1]


@dataclass(frozen=True, slots=True)
class _CellRows:
    """All usable rows of one cell."""

    name: str
    x: Array
    y: Array
    losses: Array
    n_kept: int


def _cell(
    rows: _CellRows,
    i: int,
    draws: "_Draws",
    centre: Array,
    rule: tuple[float, float],
    placed: tuple[bool, bool],
    bowl: bool,
) -> tuple[CellRates, list[str]]:
    """The ``i``-th cell, and what is not said of it; an optimum outside its values leaves ``draws``."""
    measured = (rows.x, rows.y)
    inside = _inside(draws.optimum[0, i] + centre, measured)
    draws.optimum[:, i, ~inside] = np.nan
    best = draws.optimum[:, i] + centre
    # A rate held at one value, as of models without tables, costs nothing: the other's price is the cell's.
    held = [len(np.unique(one)) == 1 for one in measured]
    priced = bool((_inside(np.log(rule), measured) | held).all())
    price = draws.above(i, np.log(rule) - centre, np.array(held))
    cell = CellRates(
        name=rows.name,
        n_runs=rows.n_kept,
        best=_best(rows.x, rows.y, rows.losses, np.ones(len(rows.x), dtype=bool)),
        lr=_interval(best[:, 0], np.exp),
        value_lr=_interval(best[:, 1], np.exp),
        default=rule,
        excess=_interval(price if priced else np.full_like(price, np.nan)),
    )
    return cell, _outside(rows.name, inside, placed, priced, rule, bowl)


def _placed(
    cells: np.ndarray, rates: tuple[Array, Array], kept: np.ndarray, names: list[str]
) -> tuple[bool, bool]:
    """Whether some cell has enough values of each rate for a curvature along it."""
    lr, value_lr = (
        max(len(np.unique(one[kept & (cells == name)])) for name in names) >= _LEVELS for one in rates
    )
    return lr, value_lr


def _inside(point: Array, measured: tuple[Array, Array]) -> np.ndarray:
    """Whether each rate of a point [2] lies between its cell's least and greatest, and had three values, [2]."""
    near = np.log(_SAME_RATE)
    return np.array(
        [
            len(np.unique(one)) >= _LEVELS and one.min() - near <= at <= one.max() + near
            for at, one in zip(point, measured, strict=True)
        ]
    )


def _outside(
    name: str,
    inside: np.ndarray,
    placed: tuple[bool, bool],
    priced: bool,
    rule: tuple[float, float],
    bowl: bool,
) -> list[str]:
    """What is not said of a cell because nothing was measured there."""
    said = [
        f"{name}: the best {rate} lies at or beyond the ends of its values, or they are fewer than three; measure "
        "further ones"
        for rate, there, one in zip(_RATES, inside, placed, strict=True)
        if one and not there and bowl
    ]
    if all(placed) and not priced:
        said.append(
            f"{name}: the default rates {rule[0]:.3g}, {rule[1]:.3g} lie outside its values: not priced"
        )
    return said


def _places_optimum(x: Array, y: Array, chosen: np.ndarray) -> bool:
    """Whether both rates vary enough, or the dense one alone where the other is held."""
    dense, tables = (len(np.unique(one[chosen])) for one in (x, y))
    if tables == 1:
        return dense >= _LEVELS
    return min(dense, tables) >= 2 and int(chosen.sum()) >= 4


@dataclass(frozen=True, slots=True)
class _Draws:
    """Draws of the surface; the first is its estimate."""

    optimum: Array
    """[draws, cells, 2], NaN where a draw has no lowest point."""
    curvature: Array
    """[draws, 3]."""

    def above(self, cell: int, point: Array, held: np.ndarray) -> Array:
        """Loss at ``point`` [2] above the cell's least, [draws], along the rates that are not ``held`` [2]."""
        d = np.where(held, 0.0, point - self.optimum[:, cell])
        bent = np.array([held[0], held.any(), held[1]])
        hxx, hxy, hyy = np.where(bent, 0.0, self.curvature).T
        return (hxx * d[:, 0] ** 2 + 2 * hxy * d[:, 0] * d[:, 1] + hyy * d[:, 1] ** 2) / 2


class _Surface:
    """Least squares of the module's equation, of the rates that are placed; of the other, an intercept for each
    value.
    """

    def __init__(
        self,
        names: list[str],
        cells: np.ndarray,
        blocks: Codes,
        rates: tuple[Array, Array],
        losses: Array,
        placed: tuple[bool, bool] = (True, True),
    ) -> None:
        x, y = rates
        member = (cells[:, None] == np.array(names)).astype(np.float64)  # [rows, cells]
        own = [block for name in names for block in np.unique(blocks[cells == name])]
        start = (blocks[:, None] == np.array(own)).astype(np.float64)  # [rows, cells and seeds]
        self.n_cells, self.n_blocks, self.placed = len(names), len(own), placed
        if all(placed):
            common = np.stack([x * x / 2, x * y, y * y / 2], 1)
            design = np.hstack([start, member * x[:, None], member * y[:, None], common])
        else:
            along, other = (x, y) if placed[0] else (y, x)
            level = (other[:, None] == np.unique(other)).astype(np.float64)
            places = (start[:, :, None] * level[:, None, :]).reshape(len(x), -1)
            design = np.hstack([member * along[:, None], (along**2 / 2)[:, None], places])
        self.coefficients = np.linalg.lstsq(design, losses, rcond=1e-10)[0]
        self.freedom = len(losses) - int(np.linalg.matrix_rank(design))
        residuals = losses - design @ self.coefficients
        self.deviation = (
            float(np.sqrt(residuals @ residuals / self.freedom)) if self.freedom > 0 else float("nan")
        )
        self.inverse = np.linalg.pinv(design.T @ design)

    @property
    def bowl(self) -> bool:
        """Whether the estimate has a lowest point."""
        found = self._optimum(self.coefficients[None])[:, :, np.array(self.placed)]
        return bool(np.isfinite(found).all())

    def draws(self, seed: int = 0) -> _Draws:
        """Return the estimate and draws around it; the estimate alone where no freedom is left."""
        rng = np.random.default_rng(seed)
        each = self.coefficients[None]
        if self.freedom > 0:
            n = DRAWS
            root = np.linalg.cholesky(self.inverse + 1e-15 * np.eye(len(self.inverse)))
            scale = self.deviation * np.sqrt(self.freedom / rng.chisquare(self.freedom, n))
            noise = rng.standard_normal((n, len(self.coefficients))) @ root.T
            each = np.vstack([each, self.coefficients + scale[:, None] * noise])
        curvature = each[:, -3:]
        if not all(self.placed):
            curvature = np.full((len(each), 3), np.nan)
            curvature[:, 0 if self.placed[0] else 2] = each[:, self.n_cells]
        return _Draws(self._optimum(each), curvature)

    def _optimum(self, each: Array) -> Array:
        n = self.n_cells
        if not all(self.placed):
            out = np.full((len(each), n, 2), np.nan)
            bend = each[:, n, None]
            with np.errstate(divide="ignore", invalid="ignore"):
                out[:, :, 0 if self.placed[0] else 1] = np.where(bend > 0, -each[:, :n] / bend, np.nan)
            return out
        first = self.n_blocks
        slopes = np.stack(
            [each[:, first : first + n], each[:, first + n : first + 2 * n]], -1
        )  # [draws, cells, 2]
        hxx, hxy, hyy = each[:, -3:].T
        determinant = hxx * hyy - hxy**2
        inverse = np.stack([np.stack([hyy, -hxy], -1), np.stack([-hxy, hxx], -1)], -2)
        bowl = (determinant > 0) & (hxx > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = np.where(bowl[:, None, None], inverse / determinant[:, None, None], np.nan)
        return -np.einsum("dij,dcj->dci", inverse, slopes)


def _interval(draws: Array, transform: np.ufunc | None = None) -> Estimate:
    """The estimate (the first draw) and its 95% interval; without an end where over 2.5% of draws have no value."""
    with np.errstate(over="ignore"):
        values = draws if transform is None else transform(draws)
    known = values[1:][np.isfinite(values[1:])]
    if len(values) < 2 or len(known) < 0.95 * (len(values) - 1):
        return Estimate(value=float(values[0]), low=float("nan"), high=float("nan"))
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(value=float(values[0]), low=float(low), high=float(high))


def _best(x: Array, y: Array, losses: Array, mine: np.ndarray) -> tuple[float, float, float]:
    settings = {(a, b) for a, b in zip(x[mine], y[mine], strict=True)}
    means = {s: float(losses[mine & (x == s[0]) & (y == s[1])].mean()) for s in settings}
    best = min(means, key=lambda s: means[s])
    return float(np.exp(best[0])), float(np.exp(best[1])), means[best]


def _repeats(cells: np.ndarray, x: Array, y: Array, losses: Array, usable: np.ndarray) -> tuple[float, int]:
    """Pooled standard deviation between runs of one setting, and its degrees of freedom."""
    groups: dict[tuple[str, float, float], list[float]] = {}
    for i in np.flatnonzero(usable):
        groups.setdefault((cells[i], x[i], y[i]), []).append(float(losses[i]))
    freedom = sum(len(g) - 1 for g in groups.values())
    if not freedom:
        return float("nan"), 0
    return float(np.sqrt(sum(np.var(g) * len(g) for g in groups.values()) / freedom)), freedom


def _exponents(
    table: Table, cells: np.ndarray, names: list[str], optimum: Array
) -> dict[str, dict[str, Estimate]]:
    """Powers of the design's axes with which the best rates go; nothing where cells are too few to tell."""
    columns = {}
    for name in _AXES:
        if name in table:
            values = numeric(table, name)
            each = np.array([values[cells == c][0] for c in names])
            if (
                np.isfinite(each).all()
                and len(np.unique(each)) > 1
                and not (name == "sparse_params" and "n_values" in columns)
            ):
                columns[name] = np.log(each)
    design = np.stack([np.ones(len(names)), *columns.values()], 1)
    if not columns or np.linalg.matrix_rank(design) < design.shape[1]:
        return {}
    solve = np.linalg.pinv(design)  # [1 + axes, cells]
    powers = np.einsum("ac,dci->dai", solve, optimum)[:, 1:]
    return {
        rate: {axis: _interval(powers[:, a, i]) for a, axis in enumerate(columns)}
        for i, rate in enumerate(_RATES)
        if np.isfinite(powers[0, :, i]).all()  # every cell's optimum is known
    }


def _defaults(table: Table, cells: np.ndarray, names: list[str]) -> dict[str, tuple[float, float]]:
    """The default rates of each cell's shape; NaN where a part of it is not installed here."""
    from umscale import parts
    from umscale.model.scaling import default_rates
    from umscale.spec import named_parts, read_run

    specs = text(table, "spec")
    runs = {c: read_run(specs[cells == c][0]) for c in names}
    nan = float("nan")
    return {
        c: (nan, nan) if any(parts.absent(*part) for part in named_parts(run)) else default_rates(run)
        for c, run in runs.items()
    }


# -- the answer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RatesAnswer(Answer):
    """The best rates for every loss, stage, compensation and budget."""

    found: tuple[RatesReport, ...]

    def to_json(self, **context: Any) -> list[dict[str, Any]]:
        """The reports as they are."""
        return [asdict(one) for one in self.found]

    def blocks(self) -> list[Block]:
        """What the default rates cost at most, and two tables, for each stage; other losses folded away."""
        blocks: list[Block] = []
        folded: dict[str, list[Block]] = {}
        for one in self.found:
            place = f"{when(one.stage)}, {count(one.budget)} tokens"
            place += "" if one.compensation in (None, "none") else f", {held(one.compensation)}"
            worst = one.worst
            grids = _grids(one, f"{place}, {loss_name(one.loss)}")
            if one.loss != self.found[0].loss:
                folded.setdefault(one.loss, []).extend(grids)
                continue
            cost = "are not priced: they lie outside what was measured"
            if worst is not None:
                cost = f"cost at most {both(worst.excess)} nats per token"
            most = f"Most at {worst.name}, of" if worst is not None else "Of"
            blocks += [
                Verdict(
                    verdict=f"The default rates {cost} ({place})",
                    tone="open",
                    text=f"{most} {counted(len(one.cells), 'cell')}.",
                ),
                *grids,
            ]
        return [
            *blocks,
            *(Fold(summary=f"The same with {loss_name(k)}", blocks=tuple(v)) for k, v in folded.items()),
        ]


def answer(table: Table, asked: Asked) -> RatesAnswer:
    """The best rates of every cell, and what the default ones cost; raises as ``rates_reports`` does."""
    return RatesAnswer(
        found=tuple(
            one for loss in asked.losses for one in rates_reports(table, loss=loss, stage=asked.stage)
        )
    )


def _grids(found: RatesReport, place: str) -> Iterator[Grid]:
    powers = [
        f"The best `{rate}` goes with "
        + "; ".join(f"`{axis}` to the power {both(power, 2)}" for axis, power in each.items())
        + "."
        for rate, each in found.exponents.items()
    ]
    noise = f" Between runs of one setting: {fixed(found.noise)} ({found.freedom} degrees of freedom)."
    yield Grid(
        caption=f"Best and default learning rates, 95% intervals; what the default ones cost, nats per token; {place}",
        head=(
            "cell",
            "best lr",
            "interval",
            "best value_lr",
            "interval",
            "default lr",
            "default value_lr",
            "cost",
            "interval",
        ),
        sides="l" + "r" * 8,
        rows=tuple(
            (
                cell.name,
                *_rate(cell.lr),
                *_rate(cell.value_lr),
                significant(cell.default[0]),
                significant(cell.default[1]),
                *pair(cell.excess),
            )
            for cell in found.cells
        ),
        notes=(
            *powers,
            f"Standard deviation of a run about the fitted surface: {fixed(found.deviation)} nats; {found.n_rows} "
            f"runs, {found.n_far} too far from their cell's best left out.{noise if found.freedom else ''}",
            *(sentence(w) for w in found.warnings),
        ),
    )
    yield Grid(
        caption=f"Best rates among those measured; {place}",
        head=("cell", "runs", "lr", "value_lr", "loss, nats per token"),
        sides="lrrrr",
        rows=tuple(
            (
                cell.name,
                str(cell.n_runs),
                significant(cell.best[0]),
                significant(cell.best[1]),
                fixed(cell.best[2]),
            )
            for cell in found.cells
        ),
    )


def _rate(estimate: Estimate) -> tuple[str, str]:
    if not estimate.has_interval:
        return significant(estimate.value), "–"
    return significant(estimate.value), f"[{significant(estimate.low)}, {significant(estimate.high)}]"


QUESTION = Question(
    asks="Which learning rates are best in every cell, and what do the default ones cost?",
    answer=answer,
    figures=("rates",),
)
