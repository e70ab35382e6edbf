import numpy as np
import pytest

from tests.laws.tables import study_table
from umscale.errors import UserError
from umscale.laws.fit import fit_law
from umscale.laws.forms import LAWS
from umscale.results.table import select_rows, where


def test_local_law_recovers_its_slopes() -> None:
    table = study_table(
        budgets=(1_000_000, 4_000_000),
        seeds=2,
        a=-0.02,
        b=-0.01,
        x=0.003,
        d=-0.1,
        run_noise=0.0,
        annealed_gain=0.1,
    )
    fit = fit_law(table, "interaction", stage="annealed")
    expected = {"a": -0.02, "b": -0.01, "x": 0.003, "d": -0.1}
    for name, value in expected.items():
        assert fit.coefficients[name] == pytest.approx(value, abs=1e-12), name
    assert fit.reference["m"] == pytest.approx(2**5.5)
    assert fit.reference["N_s"] == pytest.approx(2**18)
    assert fit.blocks.shape == (48, 1)
    assert fit.rmse_nats < 1e-12


def test_seed_blocks_do_not_blur_slopes() -> None:
    """A block offset a hundred times the slope leaves no trace in an unbalanced table."""
    table = study_table(seeds=3, block_noise=2.0, run_noise=0.0)
    kept = np.ones(len(table["loss"]), dtype=bool)
    kept[[0, 1, 10, 11, 30, 31]] = False
    fit = fit_law({name: column[kept] for name, column in table.items()}, "additive", stage="stable")
    assert fit.coefficients["a"] == pytest.approx(-0.02, abs=1e-12)
    assert fit.coefficients["b"] == pytest.approx(-0.01, abs=1e-12)


def test_an_axis_with_one_level_drops_out_and_says_so() -> None:
    fit = fit_law(study_table(top_m=(32,)), "interaction", stage="annealed")
    assert fit.dropped == ("a", "x", "d")
    assert any("top_m, 32" in warning for warning in fit.warnings)
    assert fit.law.coefficients == ("c0", "b")


def test_collinear_axes_are_named() -> None:
    """m and N_s that grow together cannot be told apart."""
    table = dict(study_table(sizes=SIZES_OF_M, run_noise=0.001))
    together = table["sparse_params"] == 1024 * table["top_m"]
    fit = fit_law({name: column[together] for name, column in table.items()}, "additive", stage="annealed")
    assert set(fit.unidentified) == {"a", "b"}
    assert fit.rank == len(fit.law.coefficients) - 1
    assert any("cannot be separated" in warning for warning in fit.warnings)


SIZES_OF_M = (2**14, 2**15, 2**16, 2**17)


def test_lack_of_fit_is_reported_only_when_present() -> None:
    bent = fit_law(study_table(seeds=3, x=0.05, run_noise=0.005), "additive", stage="annealed")
    assert any("misses cells" in warning for warning in bent.warnings)
    straight = fit_law(study_table(seeds=3, run_noise=0.005), "additive", stage="annealed")
    assert not any("misses cells" in warning for warning in straight.warnings)


def test_rows_without_a_loss_are_counted() -> None:
    table = dict(study_table())
    loss = table["loss"].copy()
    loss[:2] = np.nan
    table["loss"] = loss
    fit = fit_law(table, "additive", stage="stable")
    assert fit.n_rows == 11
    assert any("1 of 12 rows" in warning for warning in fit.warnings)
    with pytest.raises(UserError, match="1 of 12 rows lack"):
        select_rows(where(table, stage="stable"), [LAWS["additive"]], drop_invalid=False)


def test_missing_cells_may_be_none() -> None:
    table = dict(study_table())
    loss = table["loss"].astype(object)
    loss[1] = None
    table["loss"] = loss
    assert fit_law(table, "additive", stage="annealed").n_rows == 11


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {}, "mixes stage annealed and stable"),
        ({}, {"stage": "anealed"}, "did you mean 'annealed'"),
        ({"loss": None}, {"stage": "annealed"}, "no column 'loss'"),
        ({"top_m": np.zeros(24)}, {"stage": "annealed"}, "zero or negative"),
        ({"loss": np.full(24, np.nan)}, {"stage": "annealed"}, "no row has a finite loss"),
        ({"top_m": np.array(["many"] * 24)}, {"stage": "annealed"}, "must hold numbers"),
    ],
)
def test_bad_tables_are_one_line(
    change: dict[str, np.ndarray | None], arguments: dict[str, str], message: str
) -> None:
    table = {**study_table(), **change}
    table = {name: column for name, column in table.items() if column is not None}
    with pytest.raises(UserError, match=message) as error:
        fit_law(table, "additive", **arguments)
    assert "\n" not in str(error.value)


def test_fewer_rows_than_coefficients() -> None:
    table = {name: column[:4] for name, column in study_table(top_m=(16, 32), sizes=(2**16, 2**18)).items()}
    with pytest.raises(UserError, match="2 rows cannot determine"):
        fit_law(table, "chinchilla", stage="stable", columns={"N": "sparse_params", "D": "top_m"})
    with pytest.raises(UserError, match="least squares"):
        fit_law(study_table(), "additive", stage="stable", objective="huber")
