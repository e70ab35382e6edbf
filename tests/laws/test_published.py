"""The published tables, and what was published about them.

The routed models (Clark et al. 2022) are in tests/external. The points digitised from Hoffmann et al. 2022 have no
licence: they are read from the folder that ``UMSCALE_PUBLISHED`` names, or the test is skipped.
"""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from umscale.bench.law_fit import bench_fit, hoffmann_starts
from umscale.laws import engine
from umscale.laws.fit import FitResult, fit_law, profile, refit
from umscale.laws.forms import LAWS, PowerLaw, evaluate

ROOT = Path(__file__).parents[2]
PUBLISHED = Path(os.environ.get("UMSCALE_PUBLISHED", ROOT.parent / "shared" / "data" / "published"))
MAPPING = {"N": "N", "D": "D"}


def read(path: Path, keep: tuple[str, str]) -> dict[str, np.ndarray]:
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[keep[0]] == keep[1]]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def chinchilla() -> dict[str, np.ndarray]:
    path = PUBLISHED / "chinchilla_figure4.csv"
    if not path.exists():
        pytest.skip("the digitised table is not here; UMSCALE_PUBLISHED names its folder")
    table = read(path, ("outlier5", "0"))
    return {name: table[name].astype(float) for name in ("N", "D", "loss")}


@pytest.fixture(scope="module")
def chinchilla_fit(chinchilla: dict[str, np.ndarray]) -> FitResult:
    return fit_law(chinchilla, "chinchilla", columns=MAPPING)


def test_chinchilla_refit(chinchilla_fit: FitResult) -> None:
    fit = chinchilla_fit
    assert fit.n_rows == 240
    assert fit.objective == pytest.approx(0.00101827401780, rel=1e-9)
    assert fit.coefficients["A"] == pytest.approx(477.826, abs=1e-3)
    assert fit.coefficients["B"] == pytest.approx(2143.417, abs=1e-3)
    assert fit.coefficients["E"] == pytest.approx(1.817218, abs=1e-6)
    assert fit.coefficients["alpha"] == pytest.approx(0.347310, abs=1e-6)
    assert fit.coefficients["beta"] == pytest.approx(0.367172, abs=1e-6)
    assert fit.starts_at_optimum is not None
    assert fit.starts_at_optimum > 0.9


def test_no_start_of_the_grid_of_4500_does_better(chinchilla_fit: FitResult) -> None:
    """A tenth of the grid, and it does reach the optimum."""
    law, rows = LAWS["chinchilla"], chinchilla_fit.rows
    assert isinstance(law, PowerLaw)
    problem = engine.make_problem(law, rows.values, residual="log", delta=1e-3)
    grid = hoffmann_starts()
    assert grid.shape == (4500, 5)
    chosen = grid[np.random.default_rng(0).permutation(4500)[:120]]
    scale = np.array([name in law.scales for name in law.coefficients])
    starts = problem.theta(np.where(scale, np.exp(np.where(scale, chosen, 0.0)), chosen))
    found = engine.minimise(problem, starts, rows.loss, max_steps=150).objective
    assert found.min() == pytest.approx(chinchilla_fit.objective, abs=1e-9)
    assert found.min() >= chinchilla_fit.objective * (1 - 1e-12)


def test_chinchilla_least_absolute_deviations(chinchilla: dict[str, np.ndarray]) -> None:
    fit = fit_law(chinchilla, "chinchilla", columns=MAPPING, objective="least_absolute")
    assert fit.coefficients["A"] == pytest.approx(481.93, abs=0.01)
    assert fit.coefficients["B"] == pytest.approx(2085.00, abs=0.01)
    assert fit.coefficients["E"] == pytest.approx(1.81684, abs=1e-5)
    assert fit.coefficients["alpha"] == pytest.approx(0.347804, abs=1e-6)
    assert fit.coefficients["beta"] == pytest.approx(0.365844, abs=1e-6)


def test_chinchilla_standard_errors(chinchilla_fit: FitResult) -> None:
    """Published: A 124.5, B 1293, E .0257, α .0154, β .0206; ours come from other draws."""
    rng = np.random.default_rng(0)
    weights = rng.multinomial(240, np.full(240, 1 / 240), size=1000).astype(float)
    spread = dict(
        zip(chinchilla_fit.law.coefficients, refit(chinchilla_fit, weights).std(axis=0), strict=True)
    )
    published = {"A": 124.5, "B": 1293.0, "E": 0.0257, "alpha": 0.0154, "beta": 0.0206}
    for name, error in published.items():
        assert spread[name] == pytest.approx(error, rel=0.2), name


def test_tied_exponents_on_the_published_table(chinchilla: dict[str, np.ndarray]) -> None:
    """α = β by a tie, and by writing the law with one exponent."""
    tied = fit_law(chinchilla, "chinchilla", columns=MAPPING, ties=[("beta", "alpha")])
    assert tied.coefficients["alpha"] == tied.coefficients["beta"]
    assert tied.n_free == 4
    assert tied.objective == pytest.approx(0.00102214, rel=1e-4)


@pytest.fixture(scope="module")
def routed() -> dict[str, np.ndarray]:
    return read(ROOT / "tests" / "external" / "routed_clark2022.csv", ("law_subset", "1"))


def bilinear(routed: dict[str, np.ndarray], router: str) -> FitResult:
    """Dense models count as one expert of each router."""
    kept = (routed["router_type"] == router) | (routed["router_type"] == "Dense")
    table = {
        "N": routed["dense_parameter_count"][kept].astype(float),
        "experts": routed["num_experts"][kept].astype(float),
        "loss": routed["loss_validation"][kept].astype(float),
    }
    return fit_law(table, "bilinear", columns={"N": "N", "experts": "experts"})


REFIT = {
    "RL-R": {"a": -0.0827, "b": -0.1234, "c": 0.0112, "d": 1.107, "E_start": 1.72, "E_max": 470},
    "Hash": {"a": -0.0874, "b": -0.1384, "c": 0.0126, "d": 1.160, "E_start": 4.27, "E_max": 427},
    "S-Base": {"a": -0.0830, "b": -0.1180, "c": 0.0099, "d": 1.114, "E_start": 2.07, "E_max": 239},
}
DIGITS = {"a": 5e-5, "b": 5e-5, "c": 5e-5, "d": 5e-4, "E_start": 5e-3, "E_max": 0.5}
PUBLISHED_LAW = {
    "RL-R": {"a": -0.083, "b": -0.126, "c": 0.012, "d": 1.111, "E_start": 1.88, "E_max": 469.98},
    "Hash": {"a": -0.087, "b": -0.136, "c": 0.012, "d": 1.157, "E_start": 4.175, "E_max": 477.7},
    "S-Base": {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.847, "E_max": 314.5},
}


@pytest.mark.parametrize("router", REFIT)
def test_routed_refit(routed: dict[str, np.ndarray], router: str) -> None:
    fit = bilinear(routed, router)
    for name, value in REFIT[router].items():
        assert fit.coefficients[name] == pytest.approx(value, abs=1.01 * DIGITS[name]), name
    assert fit.objective_name == "least_squares"
    assert fit.starts_at_optimum > 0.9  # of starts that lie apart, not of copies of one
    assert fit.unidentified == ()


@pytest.mark.parametrize("router", REFIT)
def test_the_optimum_is_below_the_published_coefficients(routed: dict[str, np.ndarray], router: str) -> None:
    """Scored as published, by mean squared log10 error, on the same rows."""
    fit = bilinear(routed, router)
    pinned = fit_law(
        {"N": fit.rows.values["N"], "experts": fit.rows.values["experts"], "loss": fit.rows.loss},
        "bilinear",
        columns={"N": "N", "experts": "experts"},
        pins={name: value for name, value in PUBLISHED_LAW[router].items() if name != "d"},
    )
    assert pinned.n_free == 1
    assert fit.objective < pinned.objective < 2 * fit.objective


def test_rounded_coefficients_predict_badly(routed: dict[str, np.ndarray]) -> None:
    """RMSE of ln L for router RL-R: .0074 at the optimum, .0178 from the printed digits."""
    fit = bilinear(routed, "RL-R")
    printed = np.array([PUBLISHED_LAW["RL-R"][name] for name in fit.law.coefficients])

    def rmse(coefficients: np.ndarray) -> float:
        gap = np.log(evaluate(fit.law, coefficients, fit.rows.values, {}) / fit.rows.loss)
        return float(np.sqrt(np.mean(gap**2)))

    assert rmse(fit.vector) == pytest.approx(0.0074, abs=5e-5)
    assert rmse(printed) == pytest.approx(0.0178, abs=5e-5)


def test_the_largest_expert_count_is_barely_identified(routed: dict[str, np.ndarray]) -> None:
    """S-Base's E_max between 114 and 765 at 95%: F(1, n − 6) on the profile of the sum of squares."""
    from scipy.stats import f

    fit = bilinear(routed, "S-Base")
    n = fit.n_rows
    limit = fit.objective * (1 + f.ppf(0.95, 1, n - 6) / (n - 6))
    inside = profile(fit, "E_max", np.array([90.0, 150.0, 239.0, 500.0, 2000.0])) < limit
    assert inside.tolist() == [False, True, True, True, False]


def test_bench_fit_says_what_it_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umscale.bench.law_fit.hoffmann_starts", lambda: hoffmann_starts()[1100:1140])
    found = bench_fit(rounds=1, sample=2, peer=False)
    variants = {v["name"]: v for v in found["variants"]}
    assert found["rows"] == 240
    assert len(variants) == 5
    assert all(v["seconds"] > 0 for v in variants.values())
    assert variants["this project: one fit"]["gap"] <= 1e-9
    for solver in ("scipy L-BFGS-B, analytic gradient", "scipy L-BFGS-B, finite differences"):
        assert (variants[solver]["starts"], variants[solver]["timed"]) == (40, 2)
        assert variants[solver]["gap"] > -1e-12
