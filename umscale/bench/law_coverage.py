"""How often 95% intervals of a fit hold the truth, on tables with noise that does not follow the textbook."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from umscale.laws.fit import fit_law
from umscale.laws.forms import LAWS, evaluate
from umscale.laws.uncertainty import bootstrap, profile_interval
from umscale.results.columns import Array
from umscale.results.table import Codes

TRUTH: Mapping[str, float] = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}
_RUNS, _BUDGETS = 12, 6

Drawn = tuple[dict[str, Array], Array, Codes | None]


def _scattered(rng: np.random.Generator) -> dict[str, Array]:
    return {"N": 10 ** rng.uniform(7.5, 9.8, 72), "D": 10 ** rng.uniform(9, 11, 72)}


def _equal(rng: np.random.Generator) -> Drawn:
    return _scattered(rng), 0.01 * rng.standard_normal(72), None


def _heteroscedastic(rng: np.random.Generator) -> Drawn:
    """Four times the noise at the smallest models as at the largest."""
    values = _scattered(rng)
    size = 0.02 * 4 ** (-(np.log10(values["N"]) - 7.5) / 2.3)
    return values, size * rng.standard_normal(72), None


def _heavy(rng: np.random.Generator) -> Drawn:
    """Student's t with three degrees of freedom."""
    return _scattered(rng), 0.006 * rng.standard_t(3, 72), None


def _grouped(rng: np.random.Generator) -> Drawn:
    """Runs of one size with several budgets each, that share most of their error; the groups are known."""
    runs = np.repeat(np.arange(_RUNS), _BUDGETS)
    values = {
        "N": (10 ** rng.uniform(7.5, 9.8, _RUNS))[runs],
        "D": np.tile(np.geomspace(1e9, 1e11, _BUDGETS), _RUNS),
    }
    return values, 0.02 * rng.standard_normal(_RUNS)[runs] + 0.003 * rng.standard_normal(72), runs


NOISES: Mapping[str, Callable[[np.random.Generator], Drawn]] = {
    "equal": _equal,
    "heteroscedastic": _heteroscedastic,
    "heavy-tailed": _heavy,
    "grouped": _grouped,
}


def run_coverage(
    n_tables: int = 40, *, coefficient: str = "alpha", n_draws: int = 200
) -> list[dict[str, Any]]:
    """For each noise: the share of tables whose bootstrap and profile interval of a coefficient hold the truth.

    Tables have 72 rows of the Chinchilla law, fitted by Huber(0.001); of the grouped ones both intervals are also taken
    as if rows were independent.
    """
    law, found = LAWS["chinchilla"], []
    for name, draw in NOISES.items():
        hits: dict[str, list[bool]] = {}
        for seed in range(n_tables):
            values, noise, groups = draw(np.random.Generator(np.random.PCG64(seed)))
            loss = evaluate(law, np.array([*TRUTH.values()]), values, {}) * np.exp(noise)
            fit = fit_law({**values, "loss": loss}, law, columns={"N": "N", "D": "D"})
            rows = np.arange(fit.n_rows, dtype=np.int64)
            for how, codes in (("", groups), (" as if independent", None)):
                if how and groups is None:
                    continue
                draws = bootstrap(fit, n_draws=n_draws, group=rows if codes is None else codes)
                pair = (
                    ("bootstrap", draws.coefficients()[coefficient]),
                    ("profile", profile_interval(fit, coefficient, groups=codes)),
                )
                for method, one in pair:
                    held = one.low <= TRUTH[coefficient] <= one.high
                    hits.setdefault(method + how, []).append(bool(held))
        found.append(
            {"noise": name, "tables": n_tables, "coverage": {m: float(np.mean(h)) for m, h in hits.items()}}
        )
    return found
