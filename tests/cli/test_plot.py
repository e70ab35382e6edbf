"""`umscale plot`: what it draws of studies and tables, what it refuses, and its terminal version."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.laws.tables import study_table
from tests.plots.test_law_figures import scaling_table
from umscale.figures.kinds import KINDS
from umscale_cli.main import main

MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


class Cli:
    """The command as its entry point runs it: output, error lines, exit code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[str, str, int]:
        self.monkeypatch.setattr(sys, "argv", ["umscale", "plot", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = self.capsys.readouterr()
        return out, err, int(left.value.code or 0)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


def write_csv(path: Path, table: dict[str, np.ndarray]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(table)
        writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
    return path


@pytest.fixture
def scaling(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "runs.csv", scaling_table(0.003))


def test_list_names_every_kind_with_what_it_shows_and_needs(cli: Cli) -> None:
    out, _, code = cli("--list")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(KINDS)
    for line, kind in zip(lines, KINDS.values(), strict=True):
        assert kind.shows in line
        assert kind.needs in line


def test_a_recorded_study_gives_all_its_figures_and_says_why_not_the_others(cli: Cli, tmp_path: Path) -> None:
    out, err, code = cli("enwik8_density", "--out", tmp_path / "f", "--json")
    assert code == 0, err
    paths = [Path(path) for path in json.loads(out)]
    names = {path.stem for path in paths}
    assert names == {
        "density", "size", "map", "slices", "trend", "predicted", "curves",
        "residuals-stable", "residuals-annealed", "bootstrap-stable", "bootstrap-annealed",
    }  # fmt: skip
    for path in paths:
        assert path.read_bytes().startswith(MAGIC["png"])
        assert path.stat().st_size > 10_000
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "ratio",
        "allocation",
        "iso-flop",
        "loss-n",
        "loss-d",
        "loss-c",
        "architectures",
        "rates",
    ]


def test_every_format_is_a_valid_file_and_data_hold_its_numbers(
    cli: Cli, scaling: Path, tmp_path: Path
) -> None:
    out, err, code = cli(
        scaling, "predicted", "--law", "chinchilla", "--format", "png,svg,pdf", "--data", "numbers.csv"
    )  # fmt: skip
    assert (code, err) == (0, "")
    *figures, data = map(Path, out.splitlines())
    assert [path.as_posix() for path in figures] == [f"runs-figures/predicted.{suffix}" for suffix in MAGIC]
    for path, magic in zip(figures, MAGIC.values(), strict=True):
        assert path.read_bytes().startswith(magic)
    assert "predicted loss" in figures[1].read_text()
    rows = list(csv.DictReader(data.open()))
    losses = [float(r["y"]) for r in rows if r["series"] == "all rows, as fitted" and float(r["y"]) > 1]
    np.testing.assert_array_equal(losses, scaling_table(0.003)["loss"])


def test_laws_of_a_table_are_drawn_by_name_and_by_expression(cli: Cli, tmp_path: Path) -> None:
    renamed = {"params": "N", "steps": "D", "final": "loss"}
    table = {name: scaling_table(0.003)[symbol] for name, symbol in renamed.items()}
    path = write_csv(tmp_path / "other.csv", table)
    laws = "chinchilla,E + A*N**-a + B*D**-b"
    out, err, code = cli(
        path, "residuals", "--law", laws, "--map", "N=params,D=steps,loss=final", "--out", "x"
    )
    assert code == 0, err
    assert out.splitlines() == ["x/residuals-chinchilla.png", "x/residuals-E_A_N_a_B_D_b.png"]


def test_a_table_with_stages_and_sizes_is_drawn_like_a_study(cli: Cli, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "study.csv", dict(study_table(seeds=2, run_noise=0.005)))
    out, err, code = cli(path, "density", "size", "map", "--law", "interaction", "--out", "x")
    assert (code, err) == (0, "")
    assert out.splitlines() == ["x/density.png", "x/size.png", "x/map.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["enwik8_density", "ratio"], "ratio: forward FLOPs differ 1.31-fold"),
        (["enwik8_density", "architectures"], "every run is of architecture ultramem_v2"),
        (["enwik8_density", "iso-flop"], "no compute has 4 sizes"),
        (["enwik8_density", "densty"], "no kind of figure is called 'densty'; did you mean 'density'?"),
        (["enwik8_density", "--format", "bmp"], "no format is called 'bmp'"),
        (["enwik8_density", "--loss", "los"], "no loss is called 'los'"),
        (["enwik8_density", "density", "--stage", "decayed"], "decayed"),
        (["enwik8_density", "density", "--where", "top_m == 8"], "every row has top_m 8"),
        (["enwik8_density", "--drop-invalid"], "--drop-invalid is for tables"),
        (["enwik8_density", "bootstrap", "--term"], "bootstrap: has no terminal version"),
        (["enwik8_architectures", "residuals"], "no law holds across architectures"),
        (["enwik8_architectures", "density"], "mixes architecture"),
        (["runs.csv", "residuals"], "this figure needs a law: name one with --law"),
        (["runs.csv", "map", "--law", "chinchilla"], "no column 'top_m' for m"),
        (["runs.csv", "curves"], "training curves are recorded by sweeps"),
        (["runs.csv", "--loss", "loss_ema"], "--map loss=COLUMN"),
        (["runs.csv", "predicted", "--law", "chinchila"], "did you mean 'chinchilla'?"),
        (["nowhere.csv"], "no file nowhere.csv"),
        (["nowhere"], "no results store at 'nowhere'"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_and_exit_2(
    cli: Cli, scaling: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    out, err, code = cli(*arguments)
    assert (out, code) == ("", 2)
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("umscale: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_that_can_be_drawn_is_exit_2_after_the_reasons(cli: Cli, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bare.csv", {"loss": np.array([2.0, 3.0])})
    _, err, code = cli(path)
    assert code == 2
    assert len(err.splitlines()) == len(KINDS) + 1


def test_the_terminal_version_fits_the_terminal_and_has_no_colours_in_a_pipe(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("plotext")
    for width in (60, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        out, err, code = cli("enwik8_density", "density", "map", "--stage", "annealed", "--term")
        assert (code, err) == (0, "")
        assert "\x1b" not in out
        figure = out[: out.index("map: annealed")].splitlines()
        assert width - 2 <= max(map(len, figure)) <= width
        for words in ("density: annealed, 800k tokens", "o 393k", "x 1.57M", "line law additive", "64"):
            assert words in out
        assert "D density wins, S size wins" in out


def test_without_plotext_the_terminal_version_says_what_to_install(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotext", None)
    out, err, code = cli("enwik8_density", "density", "--term")
    assert (out, code) == ("", 2)
    assert err == "umscale: --term needs plotext: pip install 'umscale[term]'\n"
