"""What ``umscale bench fit`` measures: the fit of the Chinchilla law beside the ways it is usually fitted.

Hoffmann et al. 2022 start L-BFGS from a grid of 4500 points in (log E, log A, log B, α, β) and keep the best. Here the
whole grid is run by batched Newton; for the others a random sample of it is timed and multiplied up.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from umscale.laws import engine
from umscale.laws.fit import HUBER_DELTA, FitResult, fit_law, refit
from umscale.laws.forms import LAWS, PowerLaw, evaluate
from umscale.results.columns import Array
from umscale.results.table import Table, numeric

HOFFMANN_GRID = {
    "e": np.arange(-1.0, 1.5, 0.5),
    "a": np.arange(0.0, 30.0, 5.0),
    "b": np.arange(0.0, 30.0, 5.0),
    "alpha": np.arange(0.0, 2.5, 0.5),
    "beta": np.arange(0.0, 2.5, 0.5),
}
"""Starting points of Hoffmann et al. 2022 (section D.2): E, A and B as logarithms."""

N_REFITS = 1000
_COLUMNS = {"N": "N", "D": "D"}
_SAME = 1e-9
_LOGARITHMS = np.array([True, True, False, True, False])  # of E, A, alpha, B, beta, the law's order
_WHOLE_GRID = "this project: Newton from every start of the grid"
_PEER_LEVELS = 2  # of each axis of the grid given to the chinchilla package


def bench_fit(
    path: Path | None = None, *, rounds: int = 5, sample: int = 16, peer: bool = True, seed: int = 0
) -> dict[str, Any]:
    """Time fits of E + A·N^-α + B·D^-β by Huber(1e-3) on log residuals, all to one table.

    Args:
        path: table with columns N, D and loss (and ``outlier5``, whose rows marked 1 are left out); None draws a table
            of 240 rows from Hoffmann's law with 1% noise.
        rounds: timings of each variant, interleaved; medians are given. The whole grid is run once.
        sample: starts of the grid given to scipy in each round.
        peer: also time lmfit, and once the package ``chinchilla``, where they are installed.
        seed: of the synthetic table, the resampling and the sample.

    Returns:
        ``rows``, ``table``, ``objective`` (the least of all), ``coefficients`` and ``variants``: for each ``name``,
        ``seconds`` (median, of this process's CPU; of ``chinchilla``, which starts others, on the clock), ``spread``
        ((max − min)/median), ``starts``, ``timed`` (how many of them, ``seconds`` being extrapolated from those when
        fewer), ``at_optimum`` (share of the timed starts within 1e-9 of the least objective, relative; None for refits)
        and ``gap`` (least objective reached, minus the least of all).
    """
    table = synthetic_table(seed) if path is None else _read(path)
    fit = fit_law(table, "chinchilla", columns=_COLUMNS)
    loss, grid = fit.rows.loss, hoffmann_starts()
    rng = np.random.Generator(np.random.PCG64(seed))
    resampled = rng.multinomial(len(loss), np.full(len(loss), 1 / len(loss)), size=N_REFITS).astype(
        np.float64
    )
    chosen = grid[rng.choice(len(grid), size=min(sample, len(grid)), replace=False)]
    tasks = _tasks(table, fit, grid, chosen, resampled, with_lmfit=peer)
    times, reached = _interleaved(tasks, rounds)
    if peer and (found := _peer(fit.rows.values, fit.rows.loss)) is not None:
        name, n_timed, seconds, objective = found
        tasks[name] = (len(grid), n_timed, partial(np.array, [objective]))
        times[name], reached[name] = [seconds], np.array([objective])
    least = min(fit.objective, *(float(o.min()) for o in reached.values() if o.size))
    return {
        "table": "synthetic" if path is None else path.name,
        "rows": len(fit.rows.loss),
        "rounds": rounds,
        "objective": least,
        "coefficients": dict(fit.coefficients),
        "variants": [
            {
                "name": name,
                "seconds": statistics.median(times[name]) * starts / timed,
                "spread": (max(times[name]) - min(times[name])) / statistics.median(times[name]),
                "starts": starts,
                "timed": timed,
                "at_optimum": _share(name, fit, reached[name], least),
                "gap": float(reached[name].min()) - least if reached[name].size else None,
            }
            for name, (starts, timed, _) in tasks.items()
        ],
    }


Task = tuple[int, int, Callable[[], Array]]
"""Starts it stands for, how many of them are timed, and what is timed: it returns the objectives reached."""


def _tasks(
    table: Table, fit: FitResult, grid: Array, chosen: Array, resampled: Array, *, with_lmfit: bool
) -> dict[str, Task]:
    """Every way of fitting by name."""
    law, values, loss = LAWS["chinchilla"], fit.rows.values, fit.rows.loss
    assert isinstance(law, PowerLaw)
    problem = engine.make_problem(law, values, residual="log", delta=HUBER_DELTA)

    def newton() -> Array:
        coefficients = np.where(_LOGARITHMS, np.exp(np.where(_LOGARITHMS, grid, 0.0)), grid)
        return engine.minimise(problem, problem.theta(coefficients), loss).objective

    def refits() -> Array:
        refit(fit, resampled)
        return np.zeros(0)

    def one_fit() -> Array:
        return np.array([fit_law(table, "chinchilla", columns=_COLUMNS).objective])

    n, timed = len(grid), len(chosen)
    tasks: dict[str, Task] = {
        "this project: one fit": (fit.n_starts, fit.n_starts, one_fit),
        f"this project: {N_REFITS} bootstrap refits": (N_REFITS, N_REFITS, refits),
        _WHOLE_GRID: (n, n, newton),
        "scipy L-BFGS-B, analytic gradient": (n, timed, partial(_scipy, chosen, values, loss, True)),
        "scipy L-BFGS-B, finite differences": (n, timed, partial(_scipy, chosen, values, loss, False)),
    }
    if with_lmfit and find_spec("lmfit") is not None:
        name = f"lmfit {version('lmfit')}, least_squares with huber"
        tasks[name] = (n, timed, partial(_lmfit, chosen, values, loss))
    return tasks


def _interleaved(tasks: Mapping[str, Task], rounds: int) -> tuple[dict[str, list[float]], dict[str, Array]]:
    """Seconds of processor time of every task, in turn, and the objectives of its last turn."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    reached: dict[str, Array] = {}
    for turn in range(rounds):
        for name, (_, _, run) in tasks.items():
            if turn and name == _WHOLE_GRID:  # it takes long: once will do
                continue
            began = time.process_time()
            reached[name] = run()
            times[name].append(time.process_time() - began)
    return times, reached


def hoffmann_starts() -> Array:
    """The 4500 points [4500, 5] in the order of the law's coefficients, scales as logarithms."""
    axes = [HOFFMANN_GRID[name] for name in ("e", "a", "alpha", "b", "beta")]
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


def synthetic_table(seed: int = 0, n_rows: int = 240) -> Table:
    """A table of the shape of the published one: Hoffmann's law refitted (arXiv 2404.10102) and 1% noise."""
    rng = np.random.Generator(np.random.PCG64(seed))
    values = {"N": 10 ** rng.uniform(7.6, 10.2, n_rows), "D": 10 ** rng.uniform(8.8, 11.2, n_rows)}
    clean = evaluate(LAWS["chinchilla"], np.array([1.8172, 482.01, 0.3478, 2085.43, 0.3658]), values, {})
    return {**values, "loss": clean * np.exp(0.01 * rng.standard_normal(n_rows))}


def _read(path: Path) -> Table:
    from umscale.results.source import read_table

    table = read_table(path)
    kept = numeric(table, "outlier5") != 1 if "outlier5" in table else slice(None)
    return {name: np.asarray(column)[kept] for name, column in table.items()}


def _share(name: str, fit: FitResult, objectives: Array, least: float) -> float | None:
    if name.endswith("one fit"):
        return fit.starts_at_optimum
    return float(np.mean(objectives <= least * (1 + _SAME))) if objectives.size > 1 else None


def _log_loss(theta: Array, log_n: Array, log_d: Array) -> tuple[Array, Array, Array, Array]:
    """ln L [N] by ``logaddexp``, the quickest way to write it, and the logarithms of its three terms."""
    e, a, alpha, b, beta = theta
    capacity, data = a - alpha * log_n, b - beta * log_d
    return np.logaddexp(e, np.logaddexp(capacity, data)), np.full_like(log_n, e), capacity, data


def _scipy(starts: Array, values: Mapping[str, Array], loss: Array, analytic: bool) -> Array:
    """Objectives that scipy's L-BFGS-B reaches from ``starts``, as notebooks call it."""
    from scipy.optimize import minimize

    log_n, log_d, target = np.log(values["N"]), np.log(values["D"]), np.log(loss)

    def objective(theta: Array) -> Any:
        log_loss, *terms = _log_loss(theta, log_n, log_d)
        residuals = log_loss - target
        value = engine.huber(residuals, HUBER_DELTA).sum()
        if not analytic:
            return value
        pull = np.clip(residuals, -HUBER_DELTA, HUBER_DELTA)
        e, a, b = (np.exp(term - log_loss) * pull for term in terms)
        return value, np.array([e.sum(), a.sum(), -a @ log_n, b.sum(), -b @ log_d])

    return np.array([minimize(objective, x, method="L-BFGS-B", jac=analytic or None).fun for x in starts])


def _lmfit(starts: Array, values: Mapping[str, Array], loss: Array) -> Array:
    """Objectives that lmfit reaches from ``starts`` by scipy's trust-region least squares with Huber's loss."""
    lmfit = import_module("lmfit")
    log_n, log_d, target = np.log(values["N"]), np.log(values["D"]), np.log(loss)
    names = ("e", "a", "alpha", "b", "beta")

    def residuals(parameters: Any) -> Array:
        theta = np.array([parameters[name].value for name in names])
        return _log_loss(theta, log_n, log_d)[0] - target

    found = []
    for start in starts:
        parameters = lmfit.Parameters()
        for name, value in zip(names, start, strict=True):
            parameters.add(name, value=float(value))
        end = lmfit.minimize(residuals, parameters, method="least_squares", loss="huber", f_scale=HUBER_DELTA)
        found.append(float(engine.huber(residuals(end.params), HUBER_DELTA).sum()))
    return np.array(found)


def _peer(values: Mapping[str, Array], loss: Array) -> tuple[str, int, float, float] | None:
    """Name, starts timed, seconds and objective reached of the package ``chinchilla``; None when it is not installed.

    It runs BFGS in as many processes as there are cores, over a grid of the same span with two levels an axis.
    """
    try:
        name = f"chinchilla {version('chinchilla')}, BFGS in {os.cpu_count()} processes"
    except PackageNotFoundError:
        return None
    import pandas

    package, metrics = import_module("chinchilla"), import_module("chinchilla._metrics")
    order = ("e", "a", "b", "alpha", "beta")
    levels = {
        axis: np.linspace(HOFFMANN_GRID[axis][0], HOFFMANN_GRID[axis][-1], _PEER_LEVELS) for axis in order
    }
    with tempfile.TemporaryDirectory() as folder:
        peer = package.Chinchilla(
            project_dir=folder,
            param_grid=levels,
            loss_fn=partial(metrics.log_huber, delta=HUBER_DELTA),
            log_level=50,
        )
        n, d = values["N"], values["D"]
        peer.database.df = pandas.DataFrame({"C": 6 * n * d, "N": n, "D": d, "loss": loss})
        began = time.perf_counter()
        peer.fit()
        seconds = time.perf_counter() - began
        found = peer.get_params()
    law = LAWS["chinchilla"]
    predicted = evaluate(law, np.array([float(found[c]) for c in law.coefficients]), values, {})
    objective = float(engine.huber(np.log(predicted / loss), HUBER_DELTA).sum())
    return name, _PEER_LEVELS**5, seconds, objective
