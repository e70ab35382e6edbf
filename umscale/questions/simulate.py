"""Is the verdict honest, and what can a design decide? Tables from a known law, judged by the real procedure.

A table takes the rows of a design (its cells, seed blocks and budgets) and losses

    L = c0 − δ_m·u − δ_N·v + x·u·v + d·w + block + cell + run + record

u, v and w are log2 of m, N_s and tokens about their geometric means, so δ_m and δ_N hold at the point where the
verdict is read. ``block`` is shared by a seed, ``cell`` by all runs of a cell (what the law misses), ``run`` by all
budgets of a run; ``record`` is a row's own. Two more violate what the verdict assumes: slopes of a seed block's own
(``slope_sd``), and a misfit that is smooth along m and the same for all N_s and seeds (``misfit_sd``), as a learning
rate that was tuned for one m leaves it. Beside the verdict two guards are judged, each deciding alone: seed blocks as
the unit (``blocks``), and levels of either axis as the unit (``levels``). Each table goes through ``density_over_size``
like a measured one.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from umscale.design.axes import Infeasible, solve
from umscale.design.study import Study, points
from umscale.errors import UserError
from umscale.laws.forms import LAWS
from umscale.laws.pairs import corners, paired_contrast, run_noise, run_variance, steps_in_m, steps_in_n
from umscale.laws.uncertainty import Estimate
from umscale.questions.density_over_size import (
    AnswerWord,
    Contrasts,
    Verdict,
    density_over_size,
    fit_effects,
    why_thin,
)
from umscale.results.columns import Array
from umscale.results.table import Table, first_level, levels, numeric, select_rows, where
from umscale.say.blocks import Block, Grid, Paragraph

GUARDS = ("blocks", "levels")
_SMOOTH_OCTAVES = 2.0
CONTRASTS = ("delta_m", "delta_n", "difference")
_TEXT = ("run_id", "compensation")
_COLUMNS = (*_TEXT, "seed", "tokens", "top_m", "sparse_params", "n_keys", "d_model", "d_ffn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The law that tables are drawn from; nats per token, standard deviations of normal draws."""

    delta_m: float
    """What a doubling of m buys."""
    delta_n: float
    """What a doubling of N_s buys."""
    interaction: float = 0.0
    """x, loss per doubling of both."""
    tokens: float = -0.1
    """d, loss per doubling of tokens."""
    loss: float = 2.0
    """c0, at the centre of the design."""
    run_sd: float = 0.02
    block_sd: float = 0.02
    cell_sd: float = 0.0
    record_sd: float = 0.0
    slope_sd: float = 0.0
    """Of the slopes along m and N_s between seed blocks, nats per doubling."""
    misfit_sd: float = 0.0
    """Of a smooth function of m that every cell has on top of the law, nats."""

    @property
    def words(self) -> str:
        """Effects and deviations, in a sentence."""
        parts = [
            f"a doubling buys {self.delta_m:.4g} (top_m), {self.delta_n:.4g} (N_s), {-self.tokens:.4g} (tokens) nats",
            f"interaction {self.interaction:.4g}",
            f"standard deviations: run {self.run_sd:.4g}, seed block {self.block_sd:.4g}",
        ]
        parts += [f"cell {self.cell_sd:.4g}"] if self.cell_sd else []
        parts += [f"record {self.record_sd:.4g}"] if self.record_sd else []
        parts += [f"slopes between seed blocks {self.slope_sd:.4g}"] if self.slope_sd else []
        parts += [f"misfit along top_m {self.misfit_sd:.4g}"] if self.misfit_sd else []
        return ", ".join(parts)

    def __post_init__(self) -> None:
        for name in ("run_sd", "block_sd", "cell_sd", "record_sd", "slope_sd", "misfit_sd"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{name} = {getattr(self, name):g} is a standard deviation: it must not be negative"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share of tables with its 95% interval (Clopper–Pearson)."""

    count: int
    of: int

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        from umscale.laws.special import betaincinv

        k, n = self.count, self.of
        low = float(betaincinv(k, n - k + 1, 0.025)) if k else 0.0
        high = float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
        return low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """How a stricter way to decide does."""

    false_verdicts: Rate
    power: Rate | None
    """Tables decided rightly; None when both effects are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What the verdict said over many tables of one design and truth."""

    truth: Truth
    n_tables: int
    seed: int
    n_cells: int
    n_runs: int
    n_seeds: int
    n_rows: int
    coverage: Mapping[str, Rate]
    """Of the law's 95% intervals, by contrast (``CONTRASTS``); tables without an interval are left out."""
    coverage_pairs: Mapping[str, Rate]
    """Of the intervals from paired cells, which speak of the cells measured, ``cell`` included."""
    answers: Mapping[str, Rate]
    """supported, contradicted, inconclusive."""
    false_verdicts: Rate
    """Decided tables whose answer has not the sign of δ_m − δ_N; any decision when the two are equal."""
    power: Rate | None
    """Tables decided rightly; None when the two are equal."""
    half_width: float
    """Median half-width of the law's interval of δ_m − δ_N, nats."""
    guards: Mapping[str, Guard]
    """What deciding by another unit alone would have said (``GUARDS``); those the design cannot give are left out."""

    def blocks(self) -> list[Block]:
        """The truth, coverage of intervals, and how often each answer was given."""
        truth = self.truth
        drawn = (
            f"{self.n_tables} tables (seed {self.seed}) of {self.n_cells} cells, {self.n_runs} runs, "
            f"{self.n_seeds} seeds, {self.n_rows} records"
        )
        real = (truth.delta_m, truth.delta_n, truth.delta_m - truth.delta_n)
        titles = ("doubling top_m buys", "doubling N_s buys", "difference")
        coverage = tuple(
            (title, f"{value:+.4f}", _rate(self.coverage[name]), _rate(self.coverage_pairs[name]))
            for title, value, name in zip(titles, real, self.coverage, strict=True)
        )
        power = [("power", _rate(self.power))] if self.power is not None else []
        rates = (
            *((answer, _rate(rate)) for answer, rate in self.answers.items()),
            ("false verdicts", _rate(self.false_verdicts)),
            *power,
        )
        for name, guard in self.guards.items():
            right = "" if guard.power is None else f", power {_rate(guard.power)}"
            rates = (*rates, (f"{_GUARDS[name]} alone", f"false {_rate(guard.false_verdicts)}{right}"))
        return [
            Paragraph(text=drawn),
            Paragraph(text=truth.words),
            Grid(
                caption="",
                head=("95% intervals", "truth, nats", "law covers", "paired cells cover"),
                sides="lrrr",
                rows=coverage,
            ),
            Grid(caption="", head=("answer", "share of tables"), sides="lr", rows=rates),
            Paragraph(
                text=f"median half-width of the difference's interval {self.half_width:.4f} nats",
            ),
        ]


_GUARDS = {"blocks": "seed blocks as the unit", "levels": "levels of top_m and N_s as the unit"}


def _rate(rate: Rate) -> str:
    if not rate.of:
        return "–"
    low, high = rate.interval
    return f"{rate.share:.1%} [{low:.1%}, {high:.1%}]"


def study_design(study: Study, compensation: str | None = None) -> dict[str, np.ndarray]:
    """The rows that a study would record at one stage, without losses; infeasible cells are left out.

    Args:
        compensation: one of the study's; None takes its first.

    Raises:
        UserError: a compensation the study does not have, no feasible cell, or cells without a memory layer.
    """
    compensation = compensation or study.compensation[0]
    if compensation not in study.compensation:
        raise UserError(f"study {study.name!r} has no compensation {compensation!r}")
    if study.architectures or any("." in name for name in study.axes):
        raise UserError("simulation knows studies of density and size: no architectures, no dotted axes")
    model = study.reference.model
    rows = []
    for targets, seeds in points(study):
        try:
            solved = solve(model, targets, compensation, study.reference.data.seq_len, study.tolerance)
        except Infeasible:
            continue
        memory, width = solved.model.memory, solved.model.d_model
        if memory is None:
            raise UserError("simulation needs cells with a memory layer: add a [model.memory] table")
        for seed, budget in itertools.product(seeds, study.reference.train.budgets):
            run = f"{json.dumps(targets)} seed {seed}"
            sizes = (memory.top_m, solved.cost.sparse_params, memory.n_keys, width, solved.model.ffn.d_ffn)
            rows.append((run, compensation, seed, budget, *sizes))
    if not rows:
        raise UserError(f"no cell of study {study.name!r} is feasible")
    return {
        name: np.array(column, dtype=object if name in _TEXT else np.float64)
        for name, column in zip(_COLUMNS, zip(*rows, strict=True), strict=True)
    }


def fitted_truth(
    table: Table, *, stage: str | None = None, compensation: str | None = None, loss: str = "loss"
) -> tuple[Truth, dict[str, np.ndarray]]:
    """The law and the noise of a finished study, and its design: the rows that the fit used, without losses.

    Raises:
        UserError: the runs cannot separate the effects, or leave nothing over to estimate their noise from.
    """
    stages = levels(table, "stage")
    stage = stage or ("annealed" if "annealed" in stages else next(iter(stages), None))
    compensation = compensation or first_level(table, "compensation")
    part = where(table, stage=stage, compensation=compensation)
    fit = fit_effects(part, stage=stage, loss=loss)
    thin = why_thin(fit)
    if thin:
        raise UserError(thin)
    rows = fit.rows
    n_runs = len(np.unique(rows.run))
    left = n_runs - len(fit.law.coefficients) - fit.blocks.shape[1] + ("d" in fit.law.coefficients)
    if left < 1:
        raise UserError("the law passes through every run: there is no noise to simulate with")
    residual = run_variance(rows, fit.residuals, left)
    noise, freedom = run_noise(rows)
    missed = 0.0
    if not freedom:
        noise = residual
    elif left > freedom:
        per_cell = n_runs / len(np.unique(rows.cell))
        missed = max(0.0, ((residual * left - noise * freedom) / (left - freedom) - noise) / per_cell)
    offsets = rows.loss - fit.predict(rows.values)
    blocks = np.array([offsets[rows.seed == s].mean() for s in np.unique(rows.seed)])
    truth = Truth(
        delta_m=-fit.coefficients["a"],
        delta_n=-fit.coefficients["b"],
        interaction=fit.coefficients.get("x", 0.0),
        tokens=fit.coefficients.get("d", 0.0),
        loss=fit.coefficients["c0"],
        run_sd=float(np.sqrt(noise)),
        block_sd=float(blocks.std(ddof=1)) if len(blocks) > 1 else 0.0,
        cell_sd=float(np.sqrt(missed)),
    )
    return truth, {name: np.asarray(part[name])[rows.index] for name in _COLUMNS if name in part}


def draw(design: Table, truth: Truth, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One table: the design with losses."""
    shared, own = _losses(design, truth, rng)
    return {**design, "loss": shared + own}


def _losses(design: Table, truth: Truth, rng: np.random.Generator) -> tuple[Array, Array]:
    """What another run of these cells would share, and what it would not: [rows] each."""
    u, v, w = (_octaves(numeric(design, name)) for name in ("top_m", "sparse_params", "tokens"))
    losses = truth.loss - truth.delta_m * u - truth.delta_n * v + truth.interaction * u * v + truth.tokens * w
    cells = np.char.add(numeric(design, "top_m").astype(str), numeric(design, "sparse_params").astype(str))

    def normal(sd: float, labels: np.ndarray) -> Array:
        """One draw a label, [rows]."""
        codes = np.unique(labels, return_inverse=True)[1].reshape(-1)
        return np.asarray(sd * rng.standard_normal(codes.max() + 1)[codes])

    block = normal(truth.block_sd, numeric(design, "seed"))
    cell = normal(truth.cell_sd, cells)
    run = normal(truth.run_sd, np.asarray(design["run_id"]).astype(str))
    record = normal(truth.record_sd, np.arange(len(losses)))
    along_m = normal(truth.slope_sd, numeric(design, "seed"))
    along_n = normal(truth.slope_sd, numeric(design, "seed"))
    misfit = truth.misfit_sd * _smooth(u, rng)
    return losses + cell + misfit, block + run + record + along_m * u + along_n * v


def _smooth(octaves: Array, rng: np.random.Generator) -> Array:
    """A draw of unit standard deviation from a Gaussian process that forgets itself within two octaves, [rows]."""
    levels_, codes = np.unique(octaves.round(6), return_inverse=True)
    covariance = np.exp(-0.5 * ((levels_[:, None] - levels_[None, :]) / _SMOOTH_OCTAVES) ** 2)
    values, vectors = np.linalg.eigh(covariance)
    drawn = vectors @ (np.sqrt(np.maximum(values, 0.0)) * rng.standard_normal(len(levels_)))
    return np.asarray(drawn[codes.reshape(-1)])


def simulate(
    design: Table,
    truth: Truth,
    *,
    n_tables: int = 500,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Simulation:
    """Judge ``n_tables`` tables of ``design`` drawn from ``truth``; the same seed draws the same tables.

    Raises:
        UserError: no tables, or a design on which the verdict cannot be read at all.
    """
    if n_tables < 1:
        raise UserError(f"{n_tables} tables: ask for one or more")
    found: list[Verdict] = []
    of_cells: list[Mapping[str, float]] = []
    guarded: dict[str, list[Estimate]] = {name: [] for name in GUARDS}
    for i in range(n_tables):
        shared, own = _losses(design, truth, np.random.default_rng([seed, i]))
        verdict = density_over_size({**design, "loss": shared + own}, stage=None, seed=i)
        if i == 0 and verdict.from_law is None:
            raise UserError(f"no verdict can be read on this design: {verdict.reason}")
        found.append(verdict)
        for name, estimate in _guards({**design, "loss": shared + own}).items():
            guarded[name].append(estimate)
        if not of_cells or truth.cell_sd:
            of_cells.append(_paired_truth({**design, "loss": shared}))
        on_progress(i + 1, n_tables)
    real = dict(zip(CONTRASTS, (truth.delta_m, truth.delta_n, truth.delta_m - truth.delta_n), strict=True))
    sign = np.sign(real["difference"]) if abs(real["difference"]) > 1e-12 else 0.0
    right = {1.0: "supported", -1.0: "contradicted"}.get(float(sign), "")
    answers: list[str] = [v.answer for v in found]
    decided = [a for a in answers if a != "inconclusive"]
    widths = [
        (d.high - d.low) / 2 for v in found if v.from_law and (d := v.from_law.difference) and d.has_interval
    ]
    return Simulation(
        truth=truth,
        n_tables=n_tables,
        seed=seed,
        n_cells=found[0].n_cells,
        n_runs=found[0].n_runs,
        n_seeds=found[0].n_seeds,
        n_rows=found[0].n_rows,
        coverage={c: _coverage([v.from_law for v in found], c, [real]) for c in CONTRASTS},
        coverage_pairs={c: _coverage([v.from_pairs for v in found], c, of_cells) for c in CONTRASTS},
        answers={a: Rate(count=answers.count(a), of=n_tables) for a in get_args(AnswerWord)},
        false_verdicts=Rate(count=sum(a != right for a in decided), of=n_tables),
        power=Rate(count=answers.count(right), of=n_tables) if right else None,
        half_width=float(np.median(widths)) if widths else float("nan"),
        guards={name: _judged(each, sign) for name, each in guarded.items() if each},
    )


def _judged(estimates: Sequence[Estimate], sign: float) -> Guard:
    """How often intervals that leave out zero have the wrong sign, and how often the right one."""
    said = np.array([1.0 if e.low > 0 else -1.0 if e.high < 0 else 0.0 for e in estimates])
    wrong, n = int(((said != 0) & (said != sign)).sum()), len(said)
    right = Rate(count=int((said == sign).sum()), of=n) if sign else None
    return Guard(false_verdicts=Rate(count=wrong, of=n), power=right)


def _guards(table: Table) -> dict[str, Estimate]:
    """δ_m − δ_N with an interval from another unit than runs: seed blocks, or levels of either axis."""
    rows = select_rows(table, [LAWS["interaction"]])
    found = {}
    pairs = paired_contrast(rows, corners)
    if pairs is not None and len(pairs.by_block) > 1:
        n = len(pairs.by_block)
        error = float(pairs.by_block.std(ddof=1) / np.sqrt(n))
        found["blocks"] = _interval(pairs.value, error, n - 1.0)
    slopes = [_level_slope(rows.values[symbol], rows.loss) for symbol in ("m", "N_s")]
    if all(freedom > 0 for _, _, freedom in slopes):
        (m, var_m, free_m), (n_s, var_n, free_n) = slopes
        total = var_m + var_n
        freedom = total**2 / (var_m**2 / free_m + var_n**2 / free_n)  # Welch–Satterthwaite
        found["levels"] = _interval(n_s - m, float(np.sqrt(total)), freedom)
    return found


def _level_slope(values: Array, loss: Array) -> tuple[float, float, float]:
    """Slope per doubling of the mean loss of each level, its variance from their scatter, its degrees of freedom."""
    logs, codes = np.unique(np.log2(values).round(2), return_inverse=True)
    codes = codes.reshape(-1)
    means = np.bincount(codes, loss) / np.bincount(codes)
    x = logs - logs.mean()
    slope = float(x @ means / (x @ x)) if len(x) > 1 else float("nan")
    freedom = len(x) - 2.0
    left = means - means.mean() - slope * x
    variance = float(left @ left / freedom / (x @ x)) if freedom > 0 else float("nan")
    return slope, variance, freedom


def _interval(value: float, error: float, freedom: float) -> Estimate:
    from umscale.laws.special import stdtrit

    half = float(stdtrit(freedom, 0.975)) * error
    return Estimate(value=value, low=value - half, high=value + half)


def _paired_truth(table: Table) -> dict[str, float]:
    """What paired cells would say without noise: the contrasts of these cells, averaged as the verdict does."""
    rows = select_rows(table, [LAWS["interaction"]])
    found = (paired_contrast(rows, steps) for steps in (steps_in_m, steps_in_n, corners))
    return {name: pair.value if pair else float("nan") for name, pair in zip(CONTRASTS, found, strict=True)}


def _coverage(readings: Sequence[Contrasts | None], name: str, real: Sequence[Mapping[str, float]]) -> Rate:
    """Intervals that hold the truth, of one table each or of all."""
    hits = []
    for i, reading in enumerate(readings):
        estimate: Estimate | None = getattr(reading, name) if reading else None
        if estimate is not None and estimate.has_interval:
            hits.append(estimate.low <= real[i % len(real)][name] <= estimate.high)
    return Rate(count=sum(hits), of=len(hits))


def _octaves(values: Array) -> Array:
    logs = np.log2(values)
    return np.asarray(logs - logs.mean())


def to_json(found: Simulation) -> dict[str, object]:
    """The simulation as plain data; rates become {share, low, high, count, of}."""

    def plain(value: object) -> object:
        if isinstance(value, Rate):
            low, high = value.interval
            return {"share": value.share, "low": low, "high": high, "count": value.count, "of": value.of}
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, Guard):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.asdict(value) if isinstance(value, Truth) else value

    return {f.name: plain(getattr(found, f.name)) for f in dataclasses.fields(found)}
