"""Laws that are no sum of products of powers: their least objective, looked for from many places at once.

Starts are drawn from what the law does on the rows (``starts``), brought down by variable projection on squared
relative residuals (``projection``), and the distinct basins they end in are polished on the objective itself by the
same Newton as power laws, with derivatives from the tree.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from umscale import formulas as tree
from umscale.laws.engine import Bounds, Solution, Surface, minimise, objective_at
from umscale.laws.forms import ExpressionLaw, Residual
from umscale.laws.projection import Projection, centres_of, view_of
from umscale.laws.starts import draw
from umscale.results.columns import Array

_DRAWS = 1500  # looked at in a round
_REFINED = 40  # of them refined: half the best, half from all over
_STEPS = 40
_FOLLOWED = 12  # of them refined further
_MORE_STEPS = 150
_PARENTS = 6  # ends that later starts are mixed from
_ROUNDS = 4  # all of them: that several starts share a basin says little of narrower ones
_SAME_BASIN = 1e-6  # relative difference of two objectives that are one basin's
_NOTHING = 1e-24  # sum of squares of an exact fit
_POLISHED = 10  # distinct basins followed to the end
_WORSE = 10.0  # times the least sum of squares: basins beyond are not followed
_APART = 0.04  # least difference of two starts in the rank of some coefficient
_MOST_ROWS = 400  # the search looks at a sample of longer tables; the end is on every row


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpressionProblem:
    """An expression on one set of rows; its coordinates are the coefficients."""

    law: ExpressionLaw
    columns: Mapping[str, Array]
    index: Mapping[str, int]
    residual: Residual
    delta: float
    box: tuple[Array, Array] | None
    row_weights: Array | None = None
    above: float = 1.0

    def with_delta(self, delta: float) -> "ExpressionProblem":
        return replace(self, delta=delta)

    @property
    def centring(self) -> Array:
        return np.eye(len(self.index))

    def theta(self, coefficients: Array) -> Array:
        return np.asarray(coefficients, dtype=np.float64)

    def coefficients(self, theta: Array) -> Array:
        return theta

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def predict(self, theta: Array) -> Array:
        loss = tree.evaluate(self.law.root, self.columns, theta, self.index, order=0).value
        loss = np.broadcast_to(loss, (len(theta), self.n_rows))
        return np.log(loss) if self.residual == "log" else loss

    def surface(self, theta: Array) -> Surface:
        jet = tree.evaluate(self.law.root, self.columns, theta, self.index, order=2)
        loss = np.broadcast_to(jet.value, (len(theta), self.n_rows))
        unit = loss if self.residual == "log" else np.ones((1, 1))
        j = np.zeros((*theta.shape, self.n_rows))
        for k, slope in jet.first.items():
            j[:, k] = _finite(slope / unit)

        def bend(pull: Array) -> Array:
            hessian = np.zeros((*theta.shape, theta.shape[1]))
            pull = pull / unit
            for (i, k), second in jet.second.items():
                hessian[:, i, k] = hessian[:, k, i] = np.einsum(
                    "sn,sn->s", pull, np.broadcast_to(_finite(second), pull.shape)
                )
            return hessian

        return Surface(prediction=np.log(loss) if self.residual == "log" else loss, jacobian=j, bend=bend)

    def starts(self, loss: Array) -> Array:
        """Draws with their linear coefficients solved for."""
        projection = _projection(self, loss)
        theta = _round(self, projection, loss, np.random.Generator(np.random.PCG64(0)))
        return projection.view.inside(theta)


def _finite(slope: Array) -> Array:
    """A derivative that overflows on a row where the loss does not tells no direction there: 0."""
    return np.where(np.isfinite(slope), slope, 0.0)


def expression_problem(
    law: ExpressionLaw,
    values: Mapping[str, Array],
    *,
    residual: Residual,
    delta: float,
    bounds: Bounds | None = None,
) -> ExpressionProblem:
    """The law on the rows of ``values`` (symbol → [N]); raises ``UserError`` where a column has no logarithm."""
    tree.check_logarithms(law.root, values)
    names = law.coefficients
    box = None
    if bounds:
        ends = np.array([bounds.get(name, (-np.inf, np.inf)) for name in names], dtype=np.float64).T
        box = (ends[0], ends[1])
    return ExpressionProblem(
        law=law,
        columns=values,
        index={name: k for k, name in enumerate(names)},
        residual=residual,
        delta=delta,
        box=box,
    )


def search(problem: ExpressionProblem, loss: Array, *, extra: Array | None = None) -> Solution:
    """The least objective found, and what each start came to.

    From the second round of starts on, some that mix the best ends with new draws are refined too. ``extra`` [S, P] are
    coefficients to polish beside them. The first ``independent`` rows of the solution are the starts drawn.
    """
    projection = _projection(problem, loss)
    rng = np.random.Generator(np.random.PCG64(0))
    none = np.zeros((0, len(problem.index))), np.zeros(0)
    drawn, mixed = none, none
    for turn in range(_ROUNDS):
        kinds = []
        if turn and np.isfinite(drawn[1]).any():
            kinds.append(_mixed(problem, projection, loss, _joined(drawn, mixed), rng))
        kinds.append(_round(problem, projection, loss, rng, _REFINED // 4 if turn else _REFINED))
        *mixes, fresh = _descended(projection, kinds)
        mixed, drawn = _joined(mixed, *mixes), _joined(drawn, fresh)
        if not projection.nonlinear:
            break
    ends, values = _joined(drawn, mixed)
    return _polished(problem, projection.view.inside(ends), values, loss, extra, n_drawn=len(drawn[0]))


def _joined(*ends: tuple[Array, Array]) -> tuple[Array, Array]:
    return np.concatenate([theta for theta, _ in ends]), np.concatenate([value for _, value in ends])


def _descended(projection: Projection, kinds: Sequence[Array]) -> list[tuple[Array, Array]]:
    """Where starts of each kind lead, the most promising of each all the way; together, as one batch."""
    theta, value = projection.refine(np.concatenate(kinds), steps=_STEPS)
    ends = np.cumsum([0, *(len(starts) for starts in kinds)])
    parts = [slice(first, last) for first, last in itertools.pairwise(ends)]
    further = np.concatenate(
        [part.start + np.argsort(value[part], kind="stable")[:_FOLLOWED] for part in parts]
    )
    theta[further], value[further] = projection.refine(theta[further], steps=_MORE_STEPS)
    return [(theta[part], value[part]) for part in parts]


def _projection(problem: ExpressionProblem, loss: Array) -> Projection:
    """Squared relative residuals (or raw ones) of the problem's rows, of a sample of them where they are many."""
    low, high = (
        problem.box
        if problem.box is not None
        else np.array([[-np.inf], [np.inf]]) * np.ones(len(problem.index))
    )
    bounded = frozenset(
        name for name, k in problem.index.items() if np.isfinite(low[k]) or np.isfinite(high[k])
    )
    view = view_of(problem.law.root, problem.index, bounded)
    rows = np.arange(len(loss))
    if len(rows) > _MOST_ROWS:
        rows = np.sort(np.random.Generator(np.random.PCG64(0)).choice(rows, _MOST_ROWS, replace=False))
    kept = loss[rows]
    low, high = low.copy(), high.copy()
    for name in view.sizes:
        low[problem.index[name]] = 1e-300
    relative = problem.residual == "log"
    if view.logarithmic:
        target, weight = np.log(kept), np.ones_like(kept) if relative else kept
    else:
        target, weight = kept, 1 / kept if relative else np.ones_like(kept)
    columns = {name: np.broadcast_to(column, loss.shape)[rows] for name, column in problem.columns.items()}
    if problem.row_weights is not None:
        weight = weight * np.sqrt(problem.row_weights[rows])
    moving = [name for name in problem.index if name not in view.linear and name not in view.sizes]
    return Projection(
        view=view,
        columns=columns,
        target=target,
        weight=weight,
        low=low,
        high=high,
        centres=centres_of(problem.law.root, problem.index, columns, moving),
    )


def _draws(
    problem: ExpressionProblem, projection: Projection, loss: Array, rng: np.random.Generator
) -> Array:
    """Coefficients of the view drawn from what it does on the rows, inside its bounds [S, P]."""
    view = projection.view
    theta = draw(
        view.root,
        projection.columns,
        problem.index,
        n_draws=_DRAWS if projection.nonlinear else 1,
        size=float(np.median(loss)),
        rng=rng,
        solved=view.linear,
        spans=problem.law.spans,
    )
    return np.clip(theta, projection.low, projection.high)


def _round(
    problem: ExpressionProblem,
    projection: Projection,
    loss: Array,
    rng: np.random.Generator,
    n_starts: int = _REFINED,
) -> Array:
    """Starts of the view [S, P]: half the best of many draws, half any of them."""
    theta, value = projection.solve(_draws(problem, projection, loss, rng))
    alive = np.flatnonzero(np.isfinite(value))
    ordered = alive[np.argsort(value[alive], kind="stable")]
    best = _apart(theta[:, projection.moving], ordered, n_starts // 2)
    others = np.setdiff1d(alive, best)
    return theta[np.concatenate([best, rng.permutation(others)[: n_starts - len(best)]])]


def _mixed(
    problem: ExpressionProblem,
    projection: Projection,
    loss: Array,
    ends: tuple[Array, Array],
    rng: np.random.Generator,
) -> Array:
    """The best of draws in which some coefficients are those of a good end, alone or moved a little [S, P]."""
    theta, value = ends
    good = theta[np.argsort(value, kind="stable")[:_PARENTS]]
    fresh = _draws(problem, projection, loss, rng)
    parents = good[rng.integers(len(good), size=len(fresh))]
    with np.errstate(over="ignore"):
        moved = parents * np.exp(0.3 * rng.standard_normal(parents.shape))
    child = np.where(rng.random(fresh.shape) < rng.uniform(0.1, 0.9, (len(fresh), 1)), moved, fresh)
    child, value = projection.solve(np.clip(child, projection.low, projection.high))
    ordered = np.argsort(value, kind="stable")
    ordered = ordered[np.isfinite(value[ordered])]
    return child[_apart(child[:, projection.moving], ordered, _REFINED // 2)]


def _apart(theta: Array, ordered: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The first of ``ordered`` draws that differ from those before in the rank of some coefficient."""
    if not theta.shape[1] or not len(ordered):
        return ordered[:most]
    rank = np.zeros((len(theta), theta.shape[1]))
    rank[ordered] = theta[ordered].argsort(axis=0).argsort(axis=0) / len(ordered)
    chosen: list[int] = []
    for one in ordered:
        if not chosen or np.abs(rank[chosen] - rank[one]).max(axis=1).min() > _APART:
            chosen.append(int(one))
        if len(chosen) == most:
            break
    return np.array(chosen, dtype=np.int64)


def _polished(
    problem: ExpressionProblem,
    theta: Array,
    values: Array,
    loss: Array,
    extra: Array | None,
    n_drawn: int,
) -> Solution:
    """Distinct basins brought to the objective's own optimum; every start ends where its basin's first one does."""
    values = np.where(np.isfinite(objective_at(problem, theta, loss)), values, np.inf)
    basins = _basins(values)
    first = np.array([members[0] for members in basins], dtype=np.int64)
    ends = theta[first] if extra is None else np.concatenate([theta[first], extra])
    near = minimise(problem.with_delta(np.inf), ends, loss, max_steps=60)
    for delta in _narrowing(problem, near, loss):
        near = minimise(problem.with_delta(delta), near.theta, loss, max_steps=60)
    done = minimise(problem, near.theta, loss)
    before = theta.copy()
    objective, decrement = np.full(len(theta), np.inf), np.full(len(theta), np.inf)
    for k, members in enumerate(basins):
        theta[members], objective[members] = done.theta[k], done.objective[k]
        decrement[members] = done.decrement[k]
    k = len(basins)
    return Solution(
        theta=np.concatenate([theta, done.theta[k:]]),
        objective=np.concatenate([objective, done.objective[k:]]),
        decrement=np.concatenate([decrement, done.decrement[k:]]),
        independent=n_drawn,
        before=before,
    )


def _basins(values: Array) -> list[NDArray[np.int64]]:
    """Starts by basin, the least first; those far above the least are left out."""
    ordered = np.argsort(values, kind="stable")
    ordered = ordered[np.isfinite(values[ordered])]
    found: list[list[int]] = []
    for one in ordered:
        floor = values[found[-1][0]] if found else -np.inf
        if found and values[one] <= floor * (1 + _SAME_BASIN) + _NOTHING:
            found[-1].append(int(one))
        elif len(found) == _POLISHED or (found and values[one] > _WORSE * values[found[0][0]] + _NOTHING):
            break
        else:
            found.append([int(one)])
    return [np.array(members, dtype=np.int64) for members in found]


def _narrowing(problem: ExpressionProblem, near: Solution, loss: Array) -> list[float]:
    """Thresholds between the size of the residuals and the problem's own: a jump to a narrow one meets corners."""
    least = near.objective.min(initial=np.inf)
    if not np.isfinite(least) or np.isinf(problem.delta):
        return []
    delta = 3 * float(np.sqrt(2 * least / len(loss)))
    found = []
    while delta > 2 * problem.delta:
        found.append(delta)
        delta /= 4
    return found
