"""Which runs to add: those that narrow the interval of δ_m − δ_N the most per training FLOP.

The law is linear, so the variance of δ_m − δ_N is σ²·c'Mc with M = (X'X)^-1, a row of X for every run: the axes in
doublings from the reference point and an indicator of the seed block. A run x in a block that exists lowers it by

    σ² (c'Mx)² / (1 + x'Mx)

and two runs i and j that open a block by as much for x = (x_i − x_j)/√2: the block's own offset costs one of them.
Runs are chosen one step at a time. The steps with the largest reduction per FLOP are shortlisted, and the shortlist
is decided by the interval itself, with the degrees of freedom that the bootstrap would give the larger study: variance
alone would repeat two extreme cells for ever, and leave nothing to judge the law by.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from umscale.design.axes import RUN_AXES, Infeasible, solve
from umscale.design.study import Study, parse
from umscale.errors import UserError
from umscale.laws.fit import FitResult, fit_rows
from umscale.laws.forms import LocalLaw, local_features
from umscale.laws.uncertainty import LEVEL, Estimate, bootstrap
from umscale.questions.density_over_size import fit_effects, why_thin
from umscale.questions.power import POWER
from umscale.questions.token_trend import token_trend
from umscale.results.columns import COLUMNS, Array
from umscale.results.table import Rows, Table, levels, numeric, where
from umscale.say.blocks import Block, Grid, Listing
from umscale.say.estimates import both, fixed
from umscale.say.numbers import count

_PLANE_AXES = ("top_m", "density", "n_keys", "n_values", "sparse_params", "total_params")
_MOST_RUNS = 1000  # beyond which a design is not said to settle anything
_LOOK_AHEAD = 24  # runs chosen one by one to see whether they settle it
_SHORTLIST = 4  # single runs, and as many pairs, whose interval is worked out at each step


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestedRun:
    """One run to add."""

    targets: Mapping[str, int]
    """``top_m`` and ``n_keys``."""
    seed: int
    flops: float
    """Training FLOPs: three times the forward pass, trunk and branches."""
    half_width: float
    """Expected half-width of the 95% interval of δ_m − δ_N with this run and those before it, nats."""
    outside: bool
    """The cell lies beyond the levels measured so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """Runs in the order in which they help."""

    runs: tuple[SuggestedRun, ...]
    study: Mapping[str, Any]
    """Tree of a study file with these runs and no others."""
    stage: str | None
    compensation: str
    loss: str
    law: str
    difference: float
    """δ_m − δ_N so far, nats."""
    half_width: float
    """Of its 95% interval so far."""
    runs_to_settle: int | None
    """Runs, chosen this way, for an 80% chance of an interval clear of zero if the difference is what it seems;
    0 where it is clear already, None beyond a thousand."""
    flops_to_settle: float | None
    statements: tuple[str, ...]

    def to_toml(self) -> str:
        """The study file, as ``umscale sweep`` reads it."""
        from umscale.spec import to_toml

        return to_toml(self.study)

    def blocks(self, *, with_file: bool) -> list[Block]:
        """The runs, what they cost and give, and the study file."""
        rows = []
        for i, run in enumerate(self.runs, 1):
            cell = " ".join(f"{name}={value}" for name, value in run.targets.items())
            outside = "beyond the grid so far" if run.outside else ""
            rows.append(
                (str(i), cell, str(run.seed), f"± {fixed(run.half_width)}", count(run.flops), outside)
            )
        return [
            Grid(
                caption=f"Difference so far {fixed(self.difference)} ± {fixed(self.half_width)} nats (law {self.law})",
                head=("", "cell", "seed", "after it", "FLOPs", ""),
                sides="rlrrrl",
                rows=tuple(rows),
                notes=self.statements,
            ),
            *([Listing(text=self.to_toml(), language="toml")] if with_file else []),
        ]


def suggest(
    table: Table,
    study_tree: Mapping[str, Any],
    n: int,
    *,
    stage: str | None = None,
    compensation: str | None = None,
    loss: str = "loss",
    extend: bool = True,
) -> Suggestion:
    """Choose ``n`` runs to add to a study of density over size.

    Candidates are the study's levels of ``top_m`` and ``n_keys`` and, with ``extend``, one more at each end, in
    every seed so far and in new ones.

    Args:
        table: the study's finished runs (``Store.columns()``).
        study_tree: the study's TOML tree, whose model, data and training the runs get.
        n: runs to choose, at least 1.
        stage: None takes ``annealed`` where the table has it.
        compensation: None takes the only one, or the first.

    Raises:
        UserError: too few runs for a verdict, a study that varies other axes too, or nothing left to add.
    """
    if n < 1:
        raise UserError(f"{n} runs to suggest: ask for one or more")
    study = parse(study_tree, "the study")
    _require_plain(study)
    stages = levels(table, "stage")
    stage = stage or ("annealed" if "annealed" in stages else next(iter(stages), None))
    compensation = compensation or (levels(table, "compensation") or ("none",))[0]
    part = where(table, stage=stage, compensation=compensation if "compensation" in table else None)
    fit = fit_effects(part, stage=stage, loss=loss)
    thin = why_thin(fit)
    if thin:
        raise UserError(f"no cell can be rated yet: {thin}")
    uncertainty = bootstrap(fit)
    a, b = (fit.law.coefficients.index(name) for name in ("a", "b"))
    difference = uncertainty.estimate(lambda c: c[..., b] - c[..., a])
    if not difference.has_interval:
        raise UserError(f"no cell can be rated yet: {uncertainty.warnings[0]}")
    candidates = _candidates(part, fit, study, compensation, extend)
    search = _Search(fit, numeric(part, "seed") if "seed" in part else np.zeros(fit.n_rows), candidates)
    search.error = _half(difference) / _quantile(search.freedom([]), (1 + LEVEL) / 2)
    settled = 0 if difference.low > 0 or difference.high < 0 else None
    chosen, settled, flops_to_settle = _choose(search, n, abs(difference.value), settled)
    return Suggestion(
        runs=chosen,
        study=_study_tree(study, chosen, compensation, len(np.unique(fit.rows.run))),
        stage=stage,
        compensation=compensation,
        loss=loss,
        law=fit.law.name,
        difference=difference.value,
        half_width=_half(difference),
        runs_to_settle=settled,
        flops_to_settle=flops_to_settle,
        statements=(*_statements(chosen, settled, flops_to_settle), *_along_tokens(part, fit, stage, loss)),
    )


def _choose(
    search: "_Search", n: int, effect: float, settled: int | None
) -> tuple[tuple[SuggestedRun, ...], int | None, float | None]:
    """The best ``n`` runs, and how many of such, with what FLOPs, would settle an ``effect`` that large."""
    runs: list[SuggestedRun] = []
    while len(runs) < n or (settled is None and len(runs) < _LOOK_AHEAD):
        step = search.step(n - len(runs) if len(runs) < n else 2)
        if not step and not runs:
            raise UserError(
                "every cell has run in every seed, and one run in a new seed says nothing: ask for two or more"
            )
        if not step:  # one run short of opening a seed
            n = len(runs)
            continue
        runs += step
        if settled is None and search.half_width(power=True) <= effect:
            settled = len(runs)
    flops_to_settle = sum(run.flops for run in runs[:settled]) if settled is not None else None
    if settled is None:
        settled, flops_to_settle = _beyond(search, runs, effect)
    return tuple(runs[:n]), settled, flops_to_settle


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    top_m: int
    n_keys: int
    m: float
    n: float
    """m and N_s as the law reads them."""
    features: Array
    """Axes of the law in doublings from the reference point, [slopes]."""
    flops: float
    outside: bool


class _Search:
    """The design as it grows: rows of X, one a run, and the variance c'(X'X)^-1 c of δ_m − δ_N in units of σ²."""

    def __init__(self, fit: FitResult, seeds: Array, candidates: Sequence[_Candidate]) -> None:
        law = cast(LocalLaw, fit.law)
        slopes = _slopes(law)
        first = np.unique(fit.rows.run, return_index=True)[1]
        self.fit = fit
        self.candidates = candidates
        self.rows = list(local_features(law, fit.rows.values, fit.reference)[first][:, slopes])
        self.seeds = [int(s) for s in seeds[fit.rows.index][first]]
        self.codes = dict(zip(self.seeds, fit.rows.seed[first].tolist(), strict=True))
        """Seed → code of its block in the fit's rows."""
        signs = {"a": -1.0, "b": 1.0}
        self.contrast = np.array([signs.get(law.coefficients[k], 0.0) for k in slopes])
        self.added: list[tuple[int, int]] = []
        """(candidate, seed) of every run added."""
        place = {tuple(c.features.round(6)): i for i, c in enumerate(candidates)}
        measured = [(place.get(tuple(row.round(6))), s) for row, s in zip(self.rows, self.seeds, strict=True)]
        self.done = {(i, s) for i, s in measured if i is not None}
        self.error = 1.0
        """Standard error of δ_m − δ_N before anything is added."""
        self._solve()
        self.start = self.variance

    def half_width(self, *, power: bool = False) -> float:
        """Expected half-width of the interval; with ``power`` the effect that clears zero with an 80% chance."""
        return self.width(self.variance, self.freedom(self.added), power)

    def width(self, variance: float, freedom: float, power: bool = False) -> float:
        """``half_width`` at this variance of the contrast and these degrees of freedom."""
        quantiles = _quantile(freedom, (1 + LEVEL) / 2) + (_quantile(freedom, POWER) if power else 0.0)
        return quantiles * self.error * float(np.sqrt(variance / self.start))

    def freedom(self, added: Sequence[tuple[int, int]]) -> float:
        """Degrees of freedom of the interval when these runs are in the study too: they depend on X alone."""
        rows = self.fit.rows
        budgets = np.unique(rows.values["D"]) if "D" in rows.values else np.ones(1)
        extra: list[tuple[float, dict[str, float], int, int, int]] = []
        for k, (index, seed) in enumerate(added):
            candidate = self.candidates[index]
            known = rows.cell[
                np.isclose(rows.values["m"], candidate.m) & np.isclose(rows.values["N_s"], candidate.n)
            ]
            cell = int(known[0]) if len(known) else int(rows.cell.max()) + 1 + index
            block = self.codes.get(seed, int(rows.seed.max()) + 1 + seed)
            for budget in budgets:
                point = {s: v[0] for s, v in rows.values.items()}
                point |= {"m": candidate.m, "N_s": candidate.n, "D": float(budget)}
                loss = float(self.fit.predict({s: np.array([v]) for s, v in point.items()})[0])
                extra.append((loss, point, int(rows.run.max()) + 1 + k, cell, block))
        grown = Rows(
            loss=np.append(rows.loss, [e[0] for e in extra]),
            values={s: np.append(v, [e[1][s] for e in extra]) for s, v in rows.values.items()},
            run=np.append(rows.run, [e[2] for e in extra]).astype(np.int64),
            cell=np.append(rows.cell, [e[3] for e in extra]).astype(np.int64),
            seed=np.append(rows.seed, [e[4] for e in extra]).astype(np.int64),
            setting=np.append(rows.setting, np.full(len(extra), rows.setting[0])).astype(np.int64),
            index=np.arange(rows.size + len(extra), dtype=np.int64),
        )
        fit = fit_rows(grown, self.fit.law, columns={**COLUMNS, **self.fit.columns})
        return bootstrap(fit, n_draws=1).degrees_of_freedom

    def step(self, room: int) -> list[SuggestedRun]:
        """Add the best run, or pair of runs that opens a seed, of at most ``room`` runs."""
        choices = self._singles() + (self._pairs() if room >= 2 else [])
        if not choices:
            return []
        before = self.half_width()

        def rate(choice: _Choice) -> float:
            freedom = self.freedom([*self.added, *choice.runs])
            return (before - self.width(self.variance - choice.gain, freedom)) / choice.flops

        best = max(choices, key=rate)
        for index, seed in best.runs:
            self.rows.append(self.candidates[index].features)
            self.seeds.append(seed)
            self.added.append((index, seed))
            self.done.add((index, seed))
        self._solve()
        widths = [before] * (len(best.runs) - 1) + [self.half_width()]
        return [self._described(i, s, w) for (i, s), w in zip(best.runs, widths, strict=True)]

    def _described(self, index: int, seed: int, half_width: float) -> SuggestedRun:
        candidate = self.candidates[index]
        return SuggestedRun(
            targets={"top_m": candidate.top_m, "n_keys": candidate.n_keys},
            seed=seed,
            flops=candidate.flops,
            half_width=half_width,
            outside=candidate.outside,
        )

    def _solve(self) -> None:
        """The variance of the contrast and M c, blocks' offsets among the columns of X."""
        self.blocks = sorted(set(self.seeds))
        indicators = (np.array(self.seeds)[:, None] == np.array(self.blocks)).astype(np.float64)
        design = np.hstack([np.array(self.rows), indicators])
        self.bread = np.linalg.pinv(design.T @ design, rcond=1e-10, hermitian=True)
        c = np.concatenate([self.contrast, np.zeros(len(self.blocks))])
        self.direction = self.bread @ c
        self.variance = float(c @ self.direction)

    def _singles(self) -> "list[_Choice]":
        """The best single runs in seeds that have runs already, one a cell."""
        free = [(i, s) for i in range(len(self.candidates)) for s in self.blocks if (i, s) not in self.done]
        if not free:
            return []
        unit = np.eye(len(self.blocks))
        x = np.array(
            [np.concatenate([self.candidates[i].features, unit[self.blocks.index(s)]]) for i, s in free]
        )
        best: dict[int, _Choice] = {}
        for (i, s), gain in zip(free, self._gain(x).tolist(), strict=True):
            if i not in best or gain > best[i].gain:
                best[i] = _Choice(runs=((i, s),), gain=gain, flops=self.candidates[i].flops)
        return _shortlist(list(best.values()))

    def _pairs(self) -> "list[_Choice]":
        """The best pairs of runs that open a new seed."""
        pairs = list(itertools.combinations(range(len(self.candidates)), 2))
        if not pairs:
            return []
        features = np.array([c.features for c in self.candidates])
        steps = np.array([(features[i] - features[j]) / np.sqrt(2) for i, j in pairs])
        x = np.hstack([steps, np.zeros((len(pairs), len(self.blocks)))])
        seed = max(self.blocks) + 1
        return _shortlist(
            [
                _Choice(
                    runs=((i, seed), (j, seed)),
                    gain=gain,
                    flops=self.candidates[i].flops + self.candidates[j].flops,
                )
                for (i, j), gain in zip(pairs, self._gain(x).tolist(), strict=True)
            ]
        )

    def _gain(self, x: Array) -> Array:
        """Reduction of the variance by each row of ``x`` [rows, P]."""
        leverage = np.einsum("rp,pq,rq->r", x, self.bread, x)
        return np.asarray((x @ self.direction) ** 2 / (1 + leverage))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    runs: tuple[tuple[int, int], ...]  # (candidate, seed)
    gain: float  # of variance, in units of σ²
    flops: float


def _shortlist(choices: list[_Choice]) -> list[_Choice]:
    return sorted(choices, key=lambda c: c.gain / c.flops, reverse=True)[:_SHORTLIST]


def _beyond(search: _Search, runs: Sequence[SuggestedRun], effect: float) -> tuple[int | None, float | None]:
    """Runs and FLOPs if the grown design were enlarged as a whole; None for more than a thousand."""
    factor = 1.0
    freedom = search.freedom(search.added)
    while factor * len(search.rows) - len(search.rows) + len(runs) <= _MOST_RUNS:
        if search.width(search.variance / factor, freedom * factor, power=True) <= effect:
            more = int(np.ceil((factor - 1) * len(search.rows)))
            return len(runs) + more, sum(r.flops for r in runs) * (1 + more / len(runs))
        factor *= 1.05
    return None, None


def _slopes(law: LocalLaw) -> list[int]:
    """Positions of the coefficients that differences between runs determine, the mean left to the blocks."""
    return [k for k, name in enumerate(law.coefficients) if name not in ("c0", "d")]


def _require_plain(study: Study) -> None:
    """Refuse a study whose cells differ in more than density and size."""
    if study.search:
        raise UserError("runs can be suggested for a grid, and this study's cells were searched for")
    varied = {name for name, values in study.axes.items() if len(values) > 1}
    if len(study.cells) > 1:
        varied |= set(study.cells[0])
    other = sorted(varied - {*_PLANE_AXES, *RUN_AXES})
    if other:
        raise UserError(
            f"runs can be suggested for a study of density and size; this one varies {' and '.join(other)} too"
        )


def _candidates(
    part: Table, fit: FitResult, study: Study, compensation: str, extend: bool
) -> tuple[_Candidate, ...]:
    """Feasible cells of the grid, one level wider at each end with ``extend``, with what a run of each costs."""
    index = fit.rows.index
    levels_m, levels_n = (_levels(numeric(part, name)[index], extend) for name in ("top_m", "n_keys"))
    reference = study.reference.model
    if not reference.vocab_size and "vocab_size" in part:
        vocabulary = int(numeric(part, "vocab_size")[index[0]])
        reference = dataclasses.replace(reference, vocab_size=vocabulary)
    fixed = {
        name: values[0]
        for name, values in study.axes.items()
        if name not in (*_PLANE_AXES, *RUN_AXES) and "." not in name
    }
    train = study.reference.train
    tokens = trained_tokens(train.budgets, train.decay_fraction)
    law = cast(LocalLaw, fit.law)
    found = []
    for top_m, n_keys in itertools.product(levels_m, levels_n):
        targets = {**fixed, "top_m": top_m, "n_keys": n_keys}
        try:
            solved = solve(reference, targets, compensation, study.reference.data.seq_len, study.tolerance)
        except (Infeasible, UserError):  # top_m values out of fewer, or compute that no FFN can pay for
            continue
        m, n = float(top_m), float(solved.cost.sparse_params)
        point = {s: np.array([v]) for s, v in {**fit.reference, "m": m, "N_s": n}.items()}
        inside = all(fit.domain[s][0] * 0.99 <= v[0] <= fit.domain[s][1] * 1.01 for s, v in point.items())
        found.append(
            _Candidate(
                top_m=top_m,
                n_keys=n_keys,
                m=m,
                n=n,
                features=local_features(law, point, fit.reference)[0][_slopes(law)],
                flops=3 * solved.cost.flops_per_token * tokens,
                outside=not inside,
            )
        )
    return tuple(found)


def _levels(values: Array, extend: bool) -> list[int]:
    """Distinct levels of an axis, and one beyond each end at the ratio of its neighbours."""
    present = sorted({round(v) for v in values})
    if not extend or len(present) < 2:
        return present
    below = round(present[0] ** 2 / present[1])
    above = round(present[-1] ** 2 / present[-2])
    return [*([below] if 1 <= below < present[0] else []), *present, above]


def trained_tokens(budgets: Sequence[float], decay_fraction: float) -> float:
    """Return the tokens that a run's trunk and branches train on, of its budgets in rising order."""
    return float(budgets[-1] * (1 - decay_fraction) + sum(budgets) * decay_fraction)


def _study_tree(
    study: Study, runs: Sequence[SuggestedRun], compensation: str, n_before: int
) -> dict[str, Any]:
    seeds: dict[tuple[int, int], list[int]] = {}
    for run in runs:
        seeds.setdefault((run.targets["top_m"], run.targets["n_keys"]), []).append(run.seed)
    axes = {k: v for k, v in study.axes.items() if k not in (*_PLANE_AXES, "seed")}
    cells = tuple(
        {"top_m": (m,), "n_keys": (k,), "seed": tuple(sorted(found))} for (m, k), found in seeds.items()
    )
    chosen = dataclasses.replace(
        study,
        axes=axes,
        cells=cells,
        compensation=(compensation,),
        description=f"{len(runs)} runs that narrow density over size, suggested from {n_before} finished ones.",
    )
    return chosen.to_dict()


def _statements(
    runs: Sequence[SuggestedRun], settled: int | None, flops_to_settle: float | None
) -> tuple[str, ...]:
    said = []
    outside = sum(run.outside for run in runs)
    if outside:
        said.append(
            f"{outside} of {len(runs)} runs lie a level beyond the grid: the law is taken to hold there"
        )
    if settled == 0:
        said.append("the question is settled already: these runs narrow the interval further")
    elif settled is None:
        said.append(f"not settled by {_MOST_RUNS} runs chosen this way, if the difference is what it seems")
    else:
        said.append(
            f"{settled} runs chosen this way ({flops_to_settle:.2g} training FLOPs) would settle it ({POWER:.0%} power)"
        )
    return tuple(said)


def _along_tokens(part: Table, fit: FitResult, stage: str | None, loss: str) -> tuple[str, ...]:
    """At which tokens these runs narrow the difference, and what they cannot say of others."""
    if "D" not in fit.domain:
        return ()
    low, high = fit.domain["D"]
    at = f"{count(high)} tokens, the only budget"
    if low < high:
        at = f"{count(fit.reference['D'])} tokens, the centre of {count(low)} to {count(high)}"
    said = f"that is the difference at {at}: beyond it nothing is settled"
    try:
        trend = token_trend(part, stage=stage, loss=loss)
    except UserError:
        return (f"{said}; a second, longer budget shows how it changes",)
    if not trend.direction or trend.difference is None:
        return (said,)
    words = f"it {trend.direction} with tokens, by {both(trend.difference)} nats per doubling within runs"
    if trend.turn.reached == "beyond":
        longer = 2 * trend.turn.tokens.value
        words += (
            f", and would be zero at about {count(trend.turn.tokens.value)} tokens, {trend.turn.octaves_beyond:.1f} "
            f"octaves beyond: a budget of {count(longer)} (axes.tokens) says more of that than any of these runs"
        )
    return (said, words)


def _half(estimate: Estimate) -> float:
    return 0.5 * (estimate.high - estimate.low)


def _quantile(freedom: float, probability: float) -> float:
    from umscale.laws.special import stdtrit

    return float(stdtrit(freedom, probability))
