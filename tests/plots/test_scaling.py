"""Loss against size, tokens and compute: points, curves of the law, bands, and rows held out."""

import numpy as np
import pytest

from tests.questions.test_optimal import closed_form, iso_table
from tests.questions.test_predict import loss_at, scaling_table
from umscale.errors import UserError
from umscale.laws.compare import compare
from umscale.laws.fit import fit_law
from umscale.laws.holdout import rows_held_out
from umscale.laws.uncertainty import bootstrap
from umscale.plots.scaling import scaling
from umscale.plots.series import panels_of


def drawn(table, along, law="chinchilla", **options):
    fit = fit_law(table, law)
    edge = {"N": "largest", "D": "future", "C": "largest"}[along]
    tests = [one for one in compare([fit]).laws[0].holdouts if one.edge == edge]
    held = next(iter(rows_held_out(fit, tests)), None)
    figure = scaling(bootstrap(fit, n_draws=30), held, along, **options)
    (panel,) = panels_of(figure)
    return figure, {one.name: one for one in panel.series}


@pytest.mark.parametrize(("along", "levels", "held"), [("N", 5, 5), ("D", 6, 6)])
def test_points_curves_and_hold_outs_of_every_level(along, levels, held):
    table = scaling_table(0, noise=0.002)
    figure, series = drawn(table, along)
    curves = [one for name, one in series.items() if "law chinchilla" in name]
    assert len(curves) == levels
    measured = sum(len(one.x) for name, one in series.items() if name.endswith("measured"))
    out = sum(len(one.x) for name, one in series.items() if name.endswith(", held out"))
    assert (measured, out) == (30 - held, held)
    assert sum("without the rows" in name for name in series) == levels
    assert len(figure.axes[0].collections) == levels  # a band for each
    assert "held out" in figure._supxlabel.get_text()


def test_curves_lie_where_the_law_does_and_the_least_loss_below_all_points():
    table = iso_table()
    compute = 6 * table["active_params"] * table["tokens"]
    _, series = drawn(table, "C", compute=compute, source="6·N·D")
    least = series["least loss of the law"]
    best = closed_form(least.x)
    assert least.y == pytest.approx(loss_at(best, least.x / (6 * best)), rel=1e-4)
    for name, one in series.items():
        if name.endswith("measured"):
            assert (one.y >= np.interp(np.log(one.x), np.log(least.x), least.y) * (1 - 1e-3)).all()


def test_many_levels_become_stretches_and_other_laws_are_refused():
    table = iso_table(noise=0.001)
    _, series = drawn(table, "N")
    assert len({name.split(",")[0] for name in series}) <= 7
    with pytest.raises(UserError, match="reads no N"):
        drawn(scaling_table(0), "N", "power_null")
    with pytest.raises(UserError, match="no compute"):
        drawn(table, "C")
