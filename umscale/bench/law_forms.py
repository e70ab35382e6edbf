"""Ten kinds of law that are no sums of positive powers, random tables of each, and the least objective by other means.

``umscale bench fit --kinds`` draws tables and counts how often a fit reaches the least objective that scipy's
``least_squares`` finds from the truth and from random starts around it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from umscale import formulas as tree
from umscale.laws.engine import huber
from umscale.laws.expression import parse_law
from umscale.laws.fit import HUBER_DELTA, FitResult, fit_law
from umscale.laws.forms import Law, Objective
from umscale.results.columns import Array
from umscale.results.table import Table

_SAME = 1e-6  # relative excess over the least objective that still counts as reaching it
_SPREAD = 1.0  # of random starts: e^±1 around the truth

Drawn = tuple[Mapping[str, Array], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A form, and how its tables come about."""

    name: str
    formula: str
    source: str
    draw: Callable[[np.random.Generator], Drawn]
    """Columns of a table, and the coefficients its losses follow."""

    @property
    def law(self) -> Law:
        columns, _ = self.draw(np.random.Generator(np.random.PCG64(0)))
        return parse_law(self.formula, columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One table: what the fit reached, and the least that others did."""

    objective: float
    least: float
    seconds: float
    peer_share: float
    """Of scipy's random starts that reach the least objective."""
    starts_at_optimum: float

    @property
    def reached(self) -> bool:
        return self.objective <= self.least * (1 + _SAME)


def draw_table(kind: Kind, seed: int) -> tuple[Table, Mapping[str, float]]:
    """A table of the kind with 0.3 to 2% noise, and the coefficients behind it."""
    rng = np.random.Generator(np.random.PCG64(seed))
    columns, truth = kind.draw(rng)
    index = {name: k for k, name in enumerate(truth)}
    root = tree.parse(kind.formula, columns)
    clean = tree.evaluate(root, columns, np.array([[*truth.values()]]), index, order=0).value[0]
    noise = 10 ** rng.uniform(-2.5, -1.7)
    return {**columns, "loss": clean * np.exp(noise * rng.standard_normal(len(clean)))}, truth


def fit_kind(kind: Kind, table: Table, objective: Objective = "least_squares", **options: Any) -> FitResult:
    """The kind's law fitted to its table, columns by their own names."""
    law = kind.law
    return fit_law(table, law, columns={s: s for s in law.symbols}, objective=objective, **options)


def trial(kind: Kind, seed: int, *, objective: Objective = "least_squares", n_starts: int = 10) -> Trial:
    """Fit one table, and look for a lower objective with scipy from the truth and ``n_starts`` random starts."""
    table, truth = draw_table(kind, seed)
    began = time.process_time()
    fit = fit_kind(kind, table, objective)
    seconds = time.process_time() - began
    peers = peer_objectives(kind, table, truth, objective=objective, n_starts=n_starts, seed=seed)
    least = min(fit.objective, float(peers.min()))
    return Trial(
        objective=fit.objective,
        least=least,
        seconds=seconds,
        peer_share=float(np.mean(peers[1:] <= least * (1 + 1e-4))),
        starts_at_optimum=fit.starts_at_optimum or 0.0,
    )


def peer_objectives(
    kind: Kind,
    table: Table,
    truth: Mapping[str, float],
    *,
    objective: Objective,
    n_starts: int,
    seed: int,
) -> Array:
    """What scipy's trust-region least squares reaches from the truth, then from random starts around it.

    Residuals are ln L, the objective ½Σr² or Huber's with δ = 0.001, derivatives those of the tree.
    """
    from scipy.optimize import least_squares

    root = tree.parse(kind.formula, [name for name in table if name != "loss"])
    columns = {name: np.asarray(table[name], dtype=np.float64) for name in tree.symbol_names(root)}
    target, index = np.log(np.asarray(table["loss"], dtype=np.float64)), {n: k for k, n in enumerate(truth)}

    def residuals(theta: Array) -> Array:
        loss = tree.evaluate(root, columns, theta[None], index, order=0).value[0]
        with np.errstate(all="ignore"):
            r = np.log(loss) - target
        return np.where(np.isfinite(r), r, 1e3)

    def jacobian(theta: Array) -> Array:
        jet = tree.evaluate(root, columns, theta[None], index, order=1)
        with np.errstate(all="ignore"):
            rows = [np.broadcast_to(jet.first[k] / jet.value, (1, len(target)))[0] for k in range(len(theta))]
        return np.nan_to_num(np.stack(rows, axis=1), nan=0.0, posinf=1e6, neginf=-1e6)

    delta = np.inf if objective == "least_squares" else HUBER_DELTA
    how = {"loss": "linear"} if np.isinf(delta) else {"loss": "huber", "f_scale": delta}
    rng = np.random.Generator(np.random.PCG64(seed + 1))
    centre = np.array([*truth.values()])
    found = []
    for k in range(n_starts + 1):
        start = centre * np.exp(_SPREAD * rng.uniform(-1, 1, len(centre))) if k else centre
        end = least_squares(
            residuals,
            start,
            jac=jacobian,
            x_scale="jac",
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-14,
            max_nfev=400,
            **how,
        )
        found.append(float(huber(residuals(end.x), delta).sum()))
    return np.array(found)


def run_kinds(
    n_tables: int = 30,
    *,
    objective: Objective = "least_squares",
    first_seed: int = 0,
    only: str | None = None,
) -> list[dict[str, Any]]:
    """For each kind: tables, how many reached the least objective, the median and the longest time of a fit."""
    found = []
    for kind in KINDS.values():
        if only not in (None, kind.name):
            continue
        trials = [trial(kind, first_seed + k, objective=objective) for k in range(n_tables)]
        seconds = [t.seconds for t in trials]
        found.append(
            {
                "name": kind.name,
                "formula": kind.formula,
                "source": kind.source,
                "tables": n_tables,
                "reached": sum(t.reached for t in trials),
                "missed": [first_seed + k for k, t in enumerate(trials) if not t.reached],
                "seconds": float(np.median(seconds)),
                "longest_seconds": max(seconds),
                "starts_at_optimum": float(np.median([t.starts_at_optimum for t in trials])),
                "peer_share": float(np.mean([t.peer_share for t in trials])),
            }
        )
    return found


def _sizes(rng: np.random.Generator) -> dict[str, Array]:
    n = int(rng.integers(40, 81))
    return {"N": 10 ** rng.uniform(7.5, 9.7, n), "D": 10 ** rng.uniform(8.8, 11.3, n)}


def _scale(rng: np.random.Generator, column: Array, exponent: float) -> float:
    """A size whose power is 0.2 to 1.2 at the column's geometric mean."""
    return float(rng.uniform(0.2, 1.2) * np.exp(exponent * np.log(column).mean()))


def _decay(rng: np.random.Generator) -> Drawn:
    x = np.linspace(1, 10 ** rng.uniform(1, 4), int(rng.integers(25, 61)))
    return {"x": x}, {
        "E": rng.uniform(1.5, 3),
        "A": rng.uniform(0.3, 2),
        "T": x[-1] * 10 ** rng.uniform(-1.2, 0.2),
    }


def _stretched(rng: np.random.Generator) -> Drawn:
    x = 10 ** np.linspace(0, rng.uniform(2, 4.5), int(rng.integers(30, 61)))
    middle = 10 ** rng.uniform(0.3, 0.7 * np.log10(x[-1]))
    return {"x": x}, {
        "E": rng.uniform(1.5, 3), "A": rng.uniform(0.5, 2), "T": middle, "b": rng.uniform(0.35, 1.3)
    }  # fmt: skip


def _logistic(rng: np.random.Generator) -> Drawn:
    c = 10 ** np.linspace(17, rng.uniform(21, 24), int(rng.integers(25, 61)))
    logs = np.log(c)
    return {"C": c}, {
        "E": rng.uniform(0.2, 0.8), "A": rng.uniform(0.3, 1.0), "k": rng.uniform(0.5, 2.0),
        "c": rng.uniform(logs[0] + 0.3 * np.ptp(logs), logs[-1] - 0.3 * np.ptp(logs)),
    }  # fmt: skip


def _precision(rng: np.random.Generator) -> Drawn:
    columns = _sizes(rng)
    columns["P"] = rng.choice([2.0, 3.0, 4.0, 6.0, 8.0, 16.0], len(columns["N"]))
    a, b = rng.uniform(0.3, 0.6, 2)
    return columns, {
        "E": rng.uniform(1.5, 2.2), "A": _scale(rng, columns["N"], a), "g": rng.uniform(1, 4), "a": a,
        "B": _scale(rng, columns["D"], b), "b": b,
    }  # fmt: skip


def _parabola(rng: np.random.Generator) -> Drawn:
    n = 10 ** rng.uniform(7, 9.5, 5)
    rates = 10 ** np.linspace(-4.5, -1.5, int(rng.integers(7, 12)))
    columns = {"N": np.repeat(n, len(rates)), "lr": np.tile(rates, 5)}
    a, d = rng.uniform(0.15, 0.4), rng.uniform(-0.4, -0.1)
    best = rng.uniform(-7.5, -5.5)
    return columns, {
        "E": rng.uniform(1.5, 2.5), "A": _scale(rng, columns["N"], a), "a": a, "k": 10 ** rng.uniform(-2.5, -1),
        "m": best - d * float(np.log(n).mean()), "d": d,
    }  # fmt: skip


def _gamma(rng: np.random.Generator) -> Drawn:
    columns = _sizes(rng)
    a, b, g = rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.6), rng.uniform(0.5, 1.6)
    return columns, {
        "E": rng.uniform(1.2, 2), "A": _scale(rng, columns["N"], a), "a": a, "B": _scale(rng, columns["D"], b), "b": b,
        "g": g,
    }  # fmt: skip


def _break(rng: np.random.Generator) -> Drawn:
    x = 10 ** np.linspace(1, rng.uniform(5, 7), int(rng.integers(40, 81)))
    logs = np.log(x)
    return {"x": x}, {
        "E": rng.uniform(0.5, 2), "A": rng.uniform(1.5, 5), "a": rng.uniform(0.05, 0.3),
        "B": float(np.exp(rng.uniform(logs[0] + 0.35 * np.ptp(logs), logs[-1] - 0.35 * np.ptp(logs)))),
        "f": rng.uniform(0.2, 0.8), "c": rng.uniform(0.3, 0.9),
    }  # fmt: skip


def _farseer(rng: np.random.Generator) -> Drawn:
    n, d = (
        10 ** np.linspace(8, 10, int(rng.integers(6, 9))),
        10 ** np.linspace(9, 11.5, int(rng.integers(8, 12))),
    )
    columns = {"N": np.repeat(n, len(d)), "D": np.tile(d, len(n))}
    g, p, q = rng.uniform(-0.25, -0.08), rng.uniform(-0.25, -0.08), rng.uniform(-0.2, -0.05)
    at = 1e9
    s, r, u = rng.uniform(0.3, 1.0), rng.uniform(1.0, 3.0), rng.uniform(-0.6, 0.6)
    e, b, k = rng.uniform(0.3, 0.9), rng.uniform(6, 9), rng.uniform(-1.0, -0.7)
    return columns, {
        "s": s * at**-g, "g": g, "S": e - s, "r": r * at**-p, "p": p, "R": b - r, "u": u * at**-q, "q": q, "U": k - u
    }  # fmt: skip


def _repeated(rng: np.random.Generator) -> Drawn:
    n = int(rng.integers(60, 121))
    columns = {"N": 10 ** rng.uniform(7.5, 9.5, n), "U": 10 ** rng.uniform(8, 10, n)}
    columns["R"] = np.where(rng.random(n) < 0.25, 0.0, 10 ** rng.uniform(-0.3, 2, n))
    a, b = rng.uniform(0.25, 0.5, 2)
    return columns, {
        "E": rng.uniform(1.5, 2.2), "A": _scale(rng, columns["N"], a), "a": a, "B": _scale(rng, columns["U"], b),
        "Rs": 10 ** rng.uniform(0.3, 1.5), "b": b,
    }  # fmt: skip


def _signed(rng: np.random.Generator) -> Drawn:
    columns = _sizes(rng)
    b, p = rng.uniform(0.3, 0.5), rng.uniform(0.05, 0.4)
    size = rng.choice([-1.0, 1.0]) * rng.uniform(0.2, 0.6)
    return columns, {
        "E": rng.uniform(2.5, 3.5), "A": size * float(np.exp(-p * np.log(columns["N"]).mean())), "p": p,
        "B": _scale(rng, columns["D"], b), "b": b,
    }  # fmt: skip


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(name="decay", formula="E + A*exp(-x/T)", source="a curve over time", draw=_decay),
        Kind(
            name="stretched", formula="E + A*exp(-(x/T)**b)", source="stretched exponential", draw=_stretched
        ),
        Kind(
            name="logistic",
            formula="E + A/(1 + exp(k*(log(C) - c)))",
            source="a benchmark's error in log C",
            draw=_logistic,
        ),
        Kind(
            name="precision",
            formula="E + A*(N*(1 - exp(-P/g)))**-a + B*D**-b",
            source="Kumar et al. 2024 (arXiv 2411.04330)",
            draw=_precision,
        ),
        Kind(
            name="parabola",
            formula="E + A*N**-a + k*(log(lr) - m - d*log(N))**2",
            source="best learning rate as a power of N",
            draw=_parabola,
        ),
        Kind(
            name="gamma",
            formula="E + (A*N**-a + B*D**-b)**g",
            source="a sum of powers under a power",
            draw=_gamma,
        ),
        Kind(
            name="break",
            formula="E + A*x**-a*(1 + (x/B)**(1/f))**(-c*f)",
            source="one break, Caballero et al. 2023 (arXiv 2210.14891)",
            draw=_break,
        ),
        Kind(
            name="farseer",
            formula="exp(s*N**g + S) + exp(r*N**p + R)*D**-exp(u*N**q + U)",
            source="Farseer, Li et al. 2025 (arXiv 2506.10972)",
            draw=_farseer,
        ),
        Kind(
            name="repeated",
            formula="E + A*N**-a + B*(U + U*Rs*(1 - exp(-R/Rs)))**-b",
            source="repeated data, Muennighoff et al. 2023 (arXiv 2305.16264)",
            draw=_repeated,
        ),
        Kind(
            name="signed", formula="E + A*N**p + B*D**-b", source="a term that rises or falls", draw=_signed
        ),
    )
}
