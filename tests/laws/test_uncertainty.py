import numpy as np
import pytest
from scipy.stats import linregress, t

from tests.laws.tables import study_table
from umscale.laws.fit import FitResult, fit_law
from umscale.laws.forms import LAWS, evaluate
from umscale.laws.uncertainty import Uncertainty, bootstrap, profile_interval

TABLES = 120


def coverage(law: str, **design: object) -> float:
    """Share of tables whose interval of δ_m − δ_N holds the truth, −0.01 nats per doubling of difference."""
    hits = 0
    for seed in range(TABLES):
        fit = fit_law(study_table(seed, **design), law, stage="annealed")  # type: ignore[arg-type]
        estimate = bootstrap(fit, n_draws=4000, seed=seed).estimate(lambda c: c[..., 2] - c[..., 1])
        hits += estimate.low <= 0.01 <= estimate.high
    return hits / TABLES


@pytest.mark.parametrize(
    ("law", "design"),
    [
        ("additive", {}),
        ("additive", {"seeds": 3}),
        ("additive", {"seeds": 3, "cell_noise": 0.02}),
        ("interaction", {"budgets": (1_000_000, 4_000_000)}),
        ("additive", {"top_m": (16, 32), "sizes": (2**16, 2**18)}),
    ],
)
def test_intervals_cover_on_small_designs(law: str, design: dict[str, object]) -> None:
    """Nominal 95%; 120 tables put three standard errors at 6 points."""
    assert 0.89 <= coverage(law, **design) <= 0.995


def test_rows_of_a_run_are_not_independent_evidence() -> None:
    """Four budgets of the same run carry the same noise: the interval stays as wide as with one."""
    one = bootstrap(fit_law(study_table(7), "additive", stage="annealed"))
    many = study_table(7, budgets=(1_000_000, 2_000_000, 4_000_000, 8_000_000))
    four = bootstrap(fit_law(many, "additive", stage="annealed"))
    width = [np.diff(u.interval(lambda c: c[..., 1])).item() for u in (one, four)]
    assert width[1] == pytest.approx(width[0], rel=0.1)
    assert four.resampled == "12 runs of 12 cells in 1 seed block"


def test_replicated_cells_are_the_groups() -> None:
    uncertainty = bootstrap(fit_law(study_table(seeds=3), "additive", stage="annealed"))
    assert uncertainty.resampled == "12 cells with all their runs (36 runs in 3 seed blocks)"
    assert uncertainty.n_groups == 12


def test_too_few_cells_fall_back_to_runs() -> None:
    table = study_table(seeds=4, top_m=(16, 32), sizes=(2**16, 2**18))
    uncertainty = bootstrap(fit_law(table, "additive", stage="annealed"))
    assert uncertainty.n_groups == 16
    assert uncertainty.degrees_of_freedom > 4


def test_a_saturated_law_gets_no_interval() -> None:
    table = study_table(top_m=(16, 32), sizes=(2**16, 2**18))
    uncertainty = bootstrap(fit_law(table, "interaction", stage="annealed"))
    assert not uncertainty.coefficients()["a"].has_interval
    assert uncertainty.warnings


def test_the_same_seed_gives_the_same_interval() -> None:
    fit = fit_law(study_table(), "additive", stage="annealed")
    first, again, other = (bootstrap(fit, seed=s).coefficients()["a"] for s in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_line_through_equal_leverages_agrees_with_student() -> None:
    """One axis, two levels, twenty runs: CR2 is then the two-sample t interval."""
    table = study_table(top_m=(16, 32), sizes=(2**16,), seeds=10, block_noise=0.0)
    table = {**table, "seed": np.zeros(len(table["loss"]))}
    fit = fit_law(table, "additive", stage="annealed")
    uncertainty = bootstrap(fit, n_draws=200_000)
    mine = uncertainty.coefficients()["a"]
    chosen = table["stage"] == "annealed"
    line = linregress(np.log2(table["top_m"][chosen].astype(float)), table["loss"][chosen].astype(float))
    half = t.ppf(0.975, 18) * line.stderr
    assert mine.value == pytest.approx(line.slope, rel=1e-9)
    assert mine.high - mine.value == pytest.approx(half, rel=0.03)
    assert uncertainty.degrees_of_freedom == pytest.approx(18, rel=1e-6)


def test_power_law_intervals_cover() -> None:
    law = LAWS["power_null"]
    truth = np.array([1.8, 900.0, 0.33])
    tokens = np.geomspace(1e8, 1e12, 24)
    clean = evaluate(law, truth, {"D": tokens}, {})
    hits = 0
    for seed in range(60):
        noise = np.exp(0.01 * np.random.default_rng(seed).standard_normal(24))
        fit = fit_law({"tokens": tokens, "loss": clean * noise}, law, objective="least_squares")
        estimate = bootstrap(fit, n_draws=400, seed=seed).coefficients()["beta"]
        hits += estimate.low <= 0.33 <= estimate.high
    assert hits >= 52


def test_bands_hold_the_prediction(fit_and_draws: tuple[FitResult, Uncertainty]) -> None:
    fit, uncertainty = fit_and_draws
    at = {"m": np.array([8.0, 45.0, 512.0]), "N_s": np.full(3, 2.0**18), "D": np.full(3, 1e6)}
    low, high = uncertainty.band(at)
    predicted = fit.predict(at)
    assert (low < predicted).all()
    assert (predicted < high).all()
    assert (high - low)[1] < min((high - low)[0], (high - low)[2])


@pytest.fixture
def fit_and_draws() -> tuple[FitResult, Uncertainty]:
    fit = fit_law(study_table(), "additive", stage="annealed")
    return fit, bootstrap(fit)


def test_a_profile_knows_that_rows_of_a_run_err_together() -> None:
    """Twelve runs of six rows: an interval of the size exponent is about √6 times that of independent rows."""
    rng = np.random.default_rng(0)
    values = {
        "N": np.repeat(10 ** rng.uniform(7.5, 9.8, 12), 6),
        "D": np.tile(np.geomspace(1e9, 1e11, 6), 12),
    }
    runs = np.repeat(np.arange(12), 6)
    clean = evaluate(LAWS["chinchilla"], np.array([1.8, 480.0, 0.35, 2100.0, 0.37]), values, {})
    noise = 0.02 * rng.standard_normal(12)[runs] + 0.003 * rng.standard_normal(72)
    fit = fit_law({**values, "loss": clean * np.exp(noise)}, "chinchilla", columns={"N": "N", "D": "D"})
    apart, together = (profile_interval(fit, "alpha", groups=g) for g in (None, runs))
    assert 1.5 < (together.high - together.low) / (apart.high - apart.low) < 6
    assert together.low < 0.35 < together.high
