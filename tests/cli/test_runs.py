"""Lists at the width that a terminal has, live lines, and what machines and shells are told."""

import json
import sys

import pytest
from rich.console import Console

import umscale_studies
from umscale.store.store import Store
from umscale_cli import completion, sweep
from umscale_cli.executors import recorded
from umscale_cli.main import main


@pytest.fixture
def umscale(capsys, monkeypatch):
    def run(*arguments: str, width: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "argv", ["umscale", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        found = capsys.readouterr()
        return ended.value.code, found.out, found.err

    return run


@pytest.mark.parametrize("name", sorted(umscale_studies.recorded()))
@pytest.mark.parametrize("width", [60, 80, 100, 132, 200])
def test_ids_and_losses_stay_whole(umscale, name, width):
    store = Store.open(umscale_studies.recorded()[name])
    columns = store.columns()
    code, out, _ = umscale("runs", name, width=width)
    assert code == 0
    assert max(map(len, out.splitlines())) <= width
    words = set(out.split())
    assert {run_id[:8] for run_id in columns["run_id"]} <= words
    assert {f"{loss:.4f}" for loss in columns["loss"]} <= words
    if width == 200:
        assert "…" not in out


def test_what_is_left_out_is_named(umscale):
    _, out, err = umscale("runs", "parity", width=80)
    assert "tokens/s" not in out.splitlines()[0]
    assert "tokens/s" in err
    assert "left out for want of width" in err
    assert umscale("runs", "parity", width=200)[2] == ""


def test_json_keeps_integers(umscale):
    rows = json.loads(umscale("runs", "enwik8_architectures", "--json")[1])
    for name in ("budget", "seed", "step", "n_layers", "total_params"):
        assert {type(row[name]) for row in rows} == {int}
    assert {type(row["top_m"]) for row in rows} == {int, type(None)}
    assert {type(row["loss"]) for row in rows} == {float}
    assert {row["compensation"] for row in rows} == {"iso_flops"}


def test_a_live_line_names_the_budget():
    event = {"event": "record", "budget": 750_000, "stage": "stable", "loss": 2.0, "loss_ema": 2.1}
    assert recorded("top_m=4", event) == "top_m=4: 750k tokens, stable: loss 2.0000, averaged 2.1000 nats"


def test_a_resize_leaves_no_stale_headers(monkeypatch):
    """The screen is cleared and drawn anew, with the lines that stood above the display."""
    from umscale.execute.workload import Plan

    console = Console(force_terminal=True, width=100, height=20, file=open("/dev/null", "w"))  # noqa: SIM115
    monkeypatch.setattr(sweep, "err", lambda: console)
    cleared, printed = [], []
    with sweep.View(Plan(study="s", runs=()), {"r": "label"}, set()) as view:
        monkeypatch.setattr(console, "clear", lambda: cleared.append(True))
        event = {
            "event": "record",
            "run": "r",
            "budget": 1000,
            "stage": "stable",
            "loss": 2.0,
            "loss_ema": 2.0,
        }
        view.handle(0, event)
        assert not cleared
        console.width = 50
        plain = console.print
        monkeypatch.setattr(
            console, "print", lambda text, **more: (printed.append(str(text)), plain(text, **more))
        )
        view.handle(0, event | {"budget": 2000})
        assert cleared == [True]
        assert [line[7:11] for line in printed if line.startswith("label")] == ["1000", "2000"]
        view.handle(0, event | {"budget": 3000})
        assert cleared == [True]


def test_help_lists_whole_summaries(umscale):
    code, out, _ = umscale("--help")
    assert code == 0
    assert "..." not in out.replace("[ARGS]...", "")
    assert "Train a grid of proxy language models and store every result." in " ".join(out.split())


def test_completion_offers_studies_stores_and_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("")
    (tmp_path / "mine.csv").write_text("")
    (tmp_path / "folder").mkdir()
    Store.create(tmp_path / "umscale-runs" / "mystudy")
    assert {"quickstart", "mine.toml", "folder/"} <= set(completion.studies(""))
    assert completion.studies("quick") == ["quickstart"]
    assert completion.stores("myst") == ["mystudy"]
    assert "enwik8_density" in completion.stores("enw")
    assert completion.sources("mine") == ["mine.csv"]
    assert completion.stores("nowhere/") == []


def test_machines_are_told_laws_and_figures(umscale):
    laws = json.loads(umscale("laws", "--json")[1])
    assert {"chinchilla"} <= {law["name"] for law in laws}
    assert all(law["formula"] and law["symbols"] for law in laws)
    kinds = json.loads(umscale("plot", "--list", "--json")[1])
    assert {"density", "iso-flop"} <= {kind["kind"] for kind in kinds}
    assert all(set(kind) == {"kind", "shows", "needs"} for kind in kinds)


def test_plot_lists_what_a_source_can_give(umscale, tmp_path):
    table = tmp_path / "t.csv"
    rows = [f"{n},{d},{1.5 + n**-0.3 + d**-0.3}" for n in (10, 20, 40, 80) for d in (100, 200, 400, 800)]
    table.write_text("N,D,loss\n" + "\n".join(rows))
    arguments = ("plot", str(table), "--law", "chinchilla", "--map", "N=N,D=D,loss=loss", "--list")
    found = {entry["kind"]: entry for entry in json.loads(umscale(*arguments, "--json")[1])}
    assert found["residuals"]["figures"]
    assert found["density"]["figures"] == []
    assert found["density"]["why_not"]
    out = umscale(*arguments)[1]
    assert any(line.startswith("density") and " no: " in line for line in out.splitlines())
    assert list(tmp_path.iterdir()) == [table], "nothing is drawn"


def test_plot_without_a_source_is_one_line(umscale):
    code, _, err = umscale("plot")
    assert code == 2
    assert "plot needs a study or a table" in err
