from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from tests.laws.tables import study_table
from umscale.errors import UserError
from umscale.laws.compare import fit_laws
from umscale.laws.expression import parse_law
from umscale.laws.fit import fit_law
from umscale.laws.uncertainty import Uncertainty, bootstrap
from umscale.plots import curves, loss_vs_density, loss_vs_size, save
from umscale.plots.series import panels_of
from umscale.plots.style import human, ordered_colours, thinned
from umscale.questions.architectures import compare_architectures
from umscale.results.table import Table


def drawn_fits(table: Table, law: str = "additive") -> list[Uncertainty]:
    return [bootstrap(fit_laws(table, (law,), stage=s)[0], n_draws=200) for s in ("stable", "annealed")]


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_panel_for_each_stage_and_budget() -> None:
    figure = loss_vs_density(study_table(budgets=(1_000_000, 4_000_000)))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [
        "stable, 1M tokens",
        "annealed, 1M tokens",
        "stable, 4M tokens",
        "annealed, 4M tokens",
    ]
    assert [ax.get_xlabel()[:5] for ax in figure.axes] == ["", "", "top_m", "top_m"]
    assert "nats per token" in figure.axes[0].get_ylabel()


def test_a_series_for_each_size_with_its_line_and_band() -> None:
    table = study_table(seeds=3)
    figure = loss_vs_density(table, drawn_fits(table))
    for ax in figure.axes:
        assert len(ax.containers) == 3
        lines = [line for line in ax.lines if len(line.get_xdata()) == 25]  # type: ignore[arg-type]
        assert len(lines) == 3
        assert len([c for c in ax.collections if isinstance(c, PolyCollection)]) == 3
    assert legend_texts(figure) == ["65.5k", "262k", "1.05M", "law: additive", "95% band"]


def test_points_are_means_and_bars_their_spread_without_what_seeds_share() -> None:
    table = study_table(seeds=3, block_noise=0.5)
    ax = loss_vs_density(table).axes[1]
    annealed = table["stage"] == "annealed"
    seed, losses = table["seed"][annealed], table["loss"][annealed].astype(float)
    offsets = {s: losses[seed == s].mean() - losses.mean() for s in set(seed.tolist())}
    chosen = ((table["sparse_params"] == 2**16) & (table["top_m"] == 32))[annealed]
    rest = losses[chosen] - [offsets[s] for s in seed[chosen].tolist()]
    smallest = ax.containers[0]
    points, _, (bars,) = smallest.lines  # type: ignore[attr-defined]
    at = int(np.argmin(np.abs(points.get_xdata() - 32)))
    assert points.get_ydata()[at] == pytest.approx(losses[chosen].mean())
    segment = bars.get_segments()[at]
    assert np.ptp(segment[:, 1]) == pytest.approx(2 * rest.std(ddof=1))


def test_the_line_is_the_law() -> None:
    table = study_table(run_noise=0.0, block_noise=0.0)
    fits = [bootstrap(f, n_draws=0) for f in fit_laws(table, ("interaction",), stage="annealed")]
    stable, annealed = loss_vs_density(table, fits).axes
    assert not [line for line in stable.lines if len(line.get_xdata()) == 25]  # type: ignore[arg-type]
    line = next(line for line in annealed.lines if len(line.get_xdata()) == 25)  # type: ignore[arg-type]
    y = np.asarray(line.get_ydata())
    chosen = (table["stage"] == "annealed") & (table["sparse_params"] == 2**16)
    observed = table["loss"][chosen].astype(float)
    assert (y[0], y[-1]) == pytest.approx((observed[0], observed[-1]), abs=1e-9)


def test_a_law_of_more_than_the_axes_goes_through_the_measured_cells() -> None:
    plain = study_table(run_noise=0.0, block_noise=0.0)
    table = {**plain, "active_params": 1e4 * np.sqrt(plain["top_m"].astype(float))}
    formula = parse_law("c - a*log(N) - b*log(N_s) + d*log(m)", ("N", "N_s", "m"))
    # Pinned, since N follows m here.
    fit = fit_law(table, formula, stage="annealed", pins={"a": 0.05}, columns={"N": "active_params"})
    ax = loss_vs_density(table, [bootstrap(fit, n_draws=0)]).axes[1]
    lines = [one for one in panels_of(ax.figure)[1].series if one.is_line]
    assert [len(one.x) for one in lines] == [4, 4, 4]
    n, size = 1e4 * np.sqrt(lines[0].x), np.full(4, 2.0**16)
    np.testing.assert_allclose(lines[0].y, fit.predict({"N": n, "N_s": size, "m": lines[0].x}))


def test_each_law_has_its_own_dashes_in_every_panel() -> None:
    table = study_table()
    stable = drawn_fits(table, "interaction")[:1]
    annealed = drawn_fits(table, "additive")[1:]
    figure = loss_vs_density(table, [*stable, *annealed])
    styles = [
        {line.get_linestyle() for line in ax.lines if "law" in str(line.get_label())} for ax in figure.axes
    ]
    assert styles == [{"-"}, {"--"}]
    assert legend_texts(figure)[3:5] == ["law: interaction", "law: additive"]


def test_a_law_that_ignores_the_series_is_one_line() -> None:
    table = study_table()
    ax = loss_vs_density(table, drawn_fits(table, "null")).axes[0]
    assert len([line for line in ax.lines if len(line.get_xdata()) == 25]) == 1  # type: ignore[arg-type]


def test_loss_against_size_mirrors_it() -> None:
    table = study_table()
    figure = loss_vs_size(table, drawn_fits(table))
    assert legend_texts(figure)[:4] == ["16", "32", "64", "128"]
    assert "N_s" in figure.axes[0].get_xlabel()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["65.5k", "262k", "1.05M"]


def test_panels_span_equal_nats() -> None:
    figure = loss_vs_density(study_table(budgets=(1_000_000, 16_000_000), a=-0.03))
    spans = [np.ptp(ax.get_ylim()) for ax in figure.axes]
    assert max(spans) == pytest.approx(min(spans))


def test_unfinished_runs_leave_gaps_not_errors() -> None:
    table = dict(study_table())
    loss = table["loss"].astype(object)
    loss[::2] = None
    table["loss"] = loss
    figure = loss_vs_density(table)
    assert [ax.get_title() for ax in figure.axes] == ["annealed, 1M tokens"]


def test_averaged_weights_are_named() -> None:
    figure = loss_vs_density(study_table(), loss="loss_ema")
    assert "averaged weights" in figure.axes[0].get_ylabel()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({name: c for name, c in study_table().items() if name != "top_m"}, "no column 'top_m'"),
        ({**study_table(), "loss": np.full(24, np.nan)}, "nothing to draw"),
        (study_table(compensations=("none", "iso_flops")), "mixes compensation"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(table: Table, message: str) -> None:
    with pytest.raises(UserError, match=message):
        loss_vs_density(table)


def curve_table(n_runs: int = 3) -> dict[str, np.ndarray]:
    """Runs that share batch noise and differ by 0.1 nats a run; the branch starts at 80 tokens."""
    batch_noise = np.random.default_rng(0).normal(0, 0.5, 100)
    columns: dict[str, list[object]] = {"run_id": [], "phase": [], "tokens": [], "loss": [], "label": []}
    for run in range(n_runs):
        for phase, steps in (("trunk", range(1, 101)), ("branch-0", range(80, 101))):
            for step in steps:
                loss = 5 - 0.01 * step + batch_noise[step - 1] + 0.1 * run
                for name, value in zip(
                    columns, (f"run{run}", phase, step, loss, f"top_m={run}"), strict=True
                ):
                    columns[name].append(value)
    return {name: np.array(column, dtype=object) for name, column in columns.items()}


def test_curves_subtract_what_runs_share() -> None:
    figure = curves(curve_table())
    left, right = figure.axes
    assert len(left.lines) == len(right.lines) == 6
    assert legend_texts(figure) == ["top_m=0", "top_m=1", "top_m=2", "branch with decay"]
    np.testing.assert_allclose(np.asarray(right.lines[0].get_ydata()), -0.1, atol=1e-9)
    assert left.get_ylabel() == "training loss (nats per token)"
    assert left.get_xlabel() == right.get_xlabel() == "training tokens $D$"


def test_the_runs_of_a_seed_are_compared_with_each_other() -> None:
    """Seeds see other batches: what a seed's runs share is no difference, however large."""
    table = curve_table(2)
    other = {**table, "loss": table["loss"] + 5.0, "run_id": "other-" + table["run_id"]}
    both = {name: np.concatenate([table[name], other[name]]) for name in table}
    n = len(table["loss"])
    both["label"] = both["label"] + np.array([" seed=0"] * n + [" seed=1"] * n, dtype=object)
    figure = curves(both)
    shown = [np.asarray(line.get_ydata()) for line in figure.axes[1].lines]
    assert {round(float(np.abs(y).max()), 6) for y in shown} == {0.05}
    assert legend_texts(figure) == ["top_m=0", "top_m=1", "branch with decay"], "a colour a cell, not a run"


def test_many_curves_keep_a_short_legend() -> None:
    texts = legend_texts(curves(curve_table(20)))
    assert texts == ["lowest: top_m=0", "highest: top_m=19", "branch with decay"]


def test_curves_need_their_columns() -> None:
    table = curve_table()
    del table["phase"]
    with pytest.raises(UserError, match="phase"):
        curves(table)
    with pytest.raises(UserError, match="nothing to draw"):
        curves({**curve_table(), "loss": np.full(363, np.nan)})


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_saved_files_are_the_same_every_time(tmp_path: Path, suffix: str) -> None:
    table = study_table()
    one, two = (
        save(loss_vs_density(table, drawn_fits(table)), tmp_path / name / f"figure.{suffix}", dpi=60)
        for name in "ab"
    )
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size > 2000


def test_an_unknown_format_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.pdf, \.png, \.svg"):
        save(loss_vs_density(study_table()), tmp_path / "figure.bmp")


def test_an_unwritable_path_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save(loss_vs_density(study_table()), tmp_path / "file" / "figure.png")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (32, "32"),
        (7.999999999999, "8"),
        (1536, "1.54k"),
        (65536, "65.5k"),
        (999_999, "1.00M"),
        (1_048_576, "1.05M"),
        (2.5e9, "2.50B"),
        (1.2e11, "120B"),
        (5.72e18, "5.72e18"),
        (0.08, "0.08"),
        (0.00195, "0.00195"),
        (4.88e-4, "4.88e-4"),
    ],
)
def test_human_numbers(value: float, words: str) -> None:
    assert human(value) == words


@pytest.mark.parametrize(
    ("ticks", "kept"),
    [
        ([8.0, 16.0, 32.0, 64.0], [8.0, 16.0, 32.0, 64.0]),
        ([1e6, 1.1e6, 4e6], [1e6, 4e6]),
        ([1.22e-4, 2.44e-4, 4.88e-4, 9.76e-4, 1.95e-3], [1.22e-4, 1.95e-3]),
    ],
)
def test_ticks_whose_labels_would_touch_are_left_out(ticks: list[float], kept: list[float]) -> None:
    assert set(kept) <= set(thinned(ticks)) <= set(ticks)
    assert (thinned(ticks) == ticks) == (kept == ticks)


def test_colours_differ_in_lightness() -> None:
    """Relative luminance rises from series to series, so that grey print keeps the order."""
    luminance = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in ordered_colours(6)]
    assert all(later - earlier > 0.04 for earlier, later in pairwise(luminance))


def test_architectures_best_on_top_with_intervals() -> None:
    from umscale.plots import architectures

    rows = [(name, seed, stage, base + 0.01 * seed + (0.1 if stage == "stable" else 0))
            for name, base in (("dense", 2.0), ("moe-8of64", 1.9), ("ultramem_v2", 1.8))
            for seed in (0, 1) for stage in ("annealed", "stable")]  # fmt: skip
    table = {
        "architecture": np.array([r[0] for r in rows], dtype=object),
        "seed": np.array([float(r[1]) for r in rows]),
        "stage": np.array([r[2] for r in rows], dtype=object),
        "loss": np.array([r[3] for r in rows]),
        "bits_per_byte": np.array([r[3] for r in rows]),
        "budget": np.full(len(rows), 1e6),
        "compensation": np.full(len(rows), "iso_flops", dtype=object),
    }
    figure = architectures(compare_architectures(table), table)
    left, right = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["ultramem_v2", "moe-8of64", "dense"]
    assert ["stable" in left.get_title(), "annealed" in right.get_title()] == [True, True]
    assert "iso_flops" in right.get_title()
    drawn = {one.name: one.x for one in panels_of(figure)[1].series}
    assert drawn["dense, runs"].tolist() == [2.0, 2.01]
    assert drawn["dense, mean"].tolist() == [2.005]
    only = {name: column[table["architecture"] == "dense"] for name, column in table.items()}
    with pytest.raises(UserError, match="nothing to compare"):
        architectures((), only)
