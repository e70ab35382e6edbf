"""Labels of runs come apart as they were put together, whatever their values hold."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from umscale.cell_labels import cell_name, cell_parts, label_parts
from umscale.design.study import expand, parse
from umscale.errors import UserError
from umscale.questions.noise import run_noise
from umscale.say.estimates import significant
from umscale.say.numbers import count
from umscale.spec import from_dict
from umscale_cli import console
from umscale_cli.runs import print_probes

STUDY = {
    "name": "layers",
    "axes": {"model.memory.layers": [[0, 1], [0, 2]], "tokens": ["200k"], "seed": [0]},
    "model": {
        "d_model": 32,
        "n_layers": 3,
        "n_heads": 2,
        "ffn": {"d_ffn": 32},
        "memory": {"n_keys": 16, "top_m": 4},
    },
    "data": {"corpus": "kjv"},
}


def test_values_may_hold_spaces():
    label = "architecture=my arch layers=[0, 1] iso_flops seed=3"
    assert label_parts(label) == ["architecture=my arch", "layers=[0, 1]", "iso_flops", "seed=3"]
    assert cell_parts(label) == ["architecture=my arch", "layers=[0, 1]", "iso_flops"]
    assert cell_parts(label, ("seed", "layers")) == ["architecture=my arch", "iso_flops"]
    assert cell_name(label) == "my arch layers=[0, 1] iso_flops"
    assert label_parts(None) == label_parts("") == []


def test_a_studys_labels_hold_none():
    cells = expand(parse(STUDY, "test"), "float32")
    assert [cell.label for cell in cells] == ["layers=[0,1] seed=0", "layers=[0,2] seed=0"]


def test_different_cells_are_no_seeds_of_one():
    table = {
        "label": np.array(["layers=[0, 1] seed=0", "layers=[0, 2] seed=0"], dtype=object),
        "stage": np.array(["annealed"] * 2, dtype=object),
        "budget": np.array([1e4, 1e4]),
        "seed": np.zeros(2),
        "loss": np.array([3.0, 3.1]),
    }
    with pytest.raises(UserError, match="two seeds"):
        run_noise(table)


def test_architectures_have_plain_names():
    for name in ("[/b]x", "my arch", ""):
        tree = STUDY | {"axes": {"seed": [0]}, "question": "architectures", "architectures": {name: {}}}
        with pytest.raises(UserError, match="must be letters, digits"):
            parse(tree, "test")


def test_brackets_in_what_a_store_holds_are_printed(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr("sys.stdout", written)
    table = Table()
    table.add_row("[/b]x [enforce fail at alloc_cpu.cpp:117]")
    console.out().print(table)
    console.out().print("[bold]y")
    assert "[/b]x [enforce fail at alloc_cpu.cpp:117]" in written.getvalue()
    assert "[bold]y" in written.getvalue()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (9_999, "9999"),
        (12_345, "12.3k"),
        (999_499, "999k"),
        (999_500, "1M"),
        (999_999_999, "1B"),
        (-999_700, "-1M"),
    ],
)
def test_a_count_that_rounds_up_takes_the_next_unit(value, shown):
    assert count(value) == shown


def test_budgets_that_look_alike_are_records_of_their_own():
    written = io.StringIO()
    row = {"run_id": "a" * 16, "label": "seed=0", "stage": "stable", "task": "recall", "accuracy": 0.5,
           "chance": 0.0625, "ceiling": 1.0, "stored_bits": None, "bits_per_param": None}  # fmt: skip
    rows = [row | {"budget": budget} for budget in (10_000, 10_040)]
    print_probes([*rows, row | {"budget": 20_000, "accuracy": None}], Console(file=written))
    assert written.getvalue().count("aaaaaaaa") == 3
    assert written.getvalue().count("50.0%") == 2


def test_numbers_just_below_a_thousand():
    assert significant(999.6) == "1,000"
    assert significant(999.4) == "999"


def test_whole_numbers_beyond_a_floats_keep_their_digits():
    from umscale.data.synthetic import MarkovFacts

    for seed in (2**53 + 1, str(2**53 + 1)):
        assert from_dict(MarkovFacts, {"seed": seed}).seed == 2**53 + 1
    with pytest.raises(UserError):
        from_dict(MarkovFacts, {"seed": 10**400})


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path):
    from umscale.store.store import Store

    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "store", Path("/proc/nope/store")):
        with pytest.raises(UserError, match="cannot be written"):
            Store.create(place)


def test_a_report_or_figures_of_a_recorded_study_do_not_keep_a_sweep_from_its_folder(tmp_path: Path):
    from umscale.store.store import Store

    for name in ("report", "figures"):
        (tmp_path / "study" / name).mkdir(parents=True)
    Store.create(tmp_path / "study")
    (tmp_path / "other" / "thesis").mkdir(parents=True)
    with pytest.raises(UserError, match="holds other files"):
        Store.create(tmp_path / "other")
