"""Tables of files, and conditions that are parsed but never run."""

import contextlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umscale.errors import UserError
from umscale.results.source import choose_rows, map_columns, read_table, rows_and_columns, second_choices
from umscale.results.table import numeric

ROWS = [
    {"n": 1.0, "router": "Hash", "loss": 3.0},
    {"n": 2.0, "router": "Dense", "loss": 2.5},
    {"n": 3.0, "router": None, "loss": None},
]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_every_kind_of_file_gives_the_same_columns(tmp_path, kind):
    path = tmp_path / f"table.{kind}"
    if kind == "csv":
        path.write_text("n,router,loss\n1,Hash,3\n2,Dense,2.5\n3,,\n")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    table = read_table(path)
    assert table["n"].tolist() == [1, 2, 3]
    assert table["router"].tolist()[:2] == ["Hash", "Dense"]
    assert np.isnan(table["loss"][2])
    assert table["row"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("router == 'Hash'", [1]),
        ("router != 'Hash'", [2, 3]),
        ("n > 1 and loss < 2.9", [2]),
        ("not n > 1 or n >= 3", [1, 3]),
        ("router in ('Hash', 'Dense')", [1, 2]),
        ("1 < n <= 2", [2]),
    ],
)
def test_conditions_choose_rows(tmp_path, condition, rows):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert read_table(path, where=condition)["row"].tolist() == rows


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("rooter == 'Hash'", "router"),
        ("n > 9", ""),
        ("__import__('os').system('true')", ""),
        ("n.real > 1", ""),
        ("(", ""),
    ],
)
def test_bad_conditions_are_the_users_error(tmp_path, condition, message):
    path = tmp_path / "t.csv"
    path.write_text("n,router\n1,Hash\n")
    with pytest.raises(UserError, match=message or None):
        read_table(path, where=condition)


def test_missing_and_broken_files_are_the_users_error(tmp_path):
    with pytest.raises(UserError, match="no file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "broken.parquet")
    with pytest.raises(UserError, match="no table"):
        read_table(tmp_path / "model.pkl")


@given(st.text(alphabet="n1<>=!'\"() andortisi.,+-*/[]{}_:`", max_size=40))
def test_no_condition_raises_anything_else(condition):
    with contextlib.suppress(UserError):
        choose_rows({"n": np.array([1.0, 2.0]), "row": np.array([1.0, 2.0])}, condition)


# -- anybody's cells, names and conditions ---------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text(
        "n-params,val/loss,kind,done,acc\n12B,2.5,a,true,0.5\n1.5M,3.5,b,false,0.25\n70k,4.0,a,true,0.125\n"
    )
    return read_table(path)


def test_counts_with_suffixes_are_numbers_where_numbers_are_asked_for(odd):
    assert numeric(odd, "n-params").tolist() == [12e9, 1.5e6, 70e3]
    assert choose_rows(odd, "`n-params` > 1e6")["row"].tolist() == [1, 2]
    assert choose_rows(odd, "`n-params` == '12B'")["row"].tolist() == [1]
    with pytest.raises(UserError, match="holds 'a'"):
        numeric(odd, "kind")


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("done", [1, 3]),
        ("not done", [2]),
        ("done and acc > 0.2", [1]),
        ("6*`n-params`*acc > 1e9", [1]),
        ("log(acc) < -1", [2, 3]),
        ("-acc > -0.3", [2, 3]),
        ("max(acc, 0.3) == 0.3", [2, 3]),
        ("True", [1, 2, 3]),
    ],
)
def test_arithmetic_and_bare_truths_in_conditions(odd, condition, rows):
    assert choose_rows(odd, condition)["row"].tolist() == rows


@pytest.mark.parametrize(
    ("condition", "message"), [("acc", "truth values"), ("6*nope > 1", "nope"), ("kind", "truth values")]
)
def test_conditions_that_are_none(odd, condition, message):
    with pytest.raises(UserError, match=message):
        choose_rows(odd, condition)


def test_symbols_are_derived_from_symbols_columns_and_conditions(odd):
    given = {"N": "`n-params`", "D": "20*N", "C": "6*N*D", "is_a": "kind == 'a'", "loss": "`val/loss`/log(2)"}
    table, columns = map_columns(odd, given)
    assert table[columns["C"]] == pytest.approx(120 * np.array([12e9, 1.5e6, 70e3]) ** 2)
    assert table[columns["is_a"]].tolist() == [1, 0, 1]
    assert table[columns["loss"]] == pytest.approx(np.array([2.5, 3.5, 4.0]) / np.log(2))
    again, same = map_columns(odd, dict(columns.items()))
    assert all(np.array_equal(again[same[s]], table[columns[s]]) for s in given)
    chosen, _ = rows_and_columns(odd, "C > 1e15", given)
    assert chosen["row"].tolist() == [1]
    with pytest.raises(UserError, match="defined by each other"):
        map_columns(odd, {"A": "2*B", "B": "A/2"})
    with pytest.raises(UserError, match="backquotes: `val/loss`"):
        map_columns(odd, {"loss": "val/loss/log(2)"})


def test_a_column_of_the_symbols_own_name_goes_first_and_is_said():
    table = {"D": np.ones(2), "tokens": np.full(2, 2.0), "loss": np.ones(2)}
    assert map_columns(table, {})[1]["D"] == "D"
    assert map_columns(table, {"D": "tokens"})[1]["D"] == "tokens"
    assert second_choices(table, {}) == ("D is the column 'D'; --map D=tokens takes the column 'tokens'",)
    assert second_choices(table, {"D": "tokens"}) == ()


@pytest.mark.parametrize(
    "text",
    [
        "n;loss\n1,5;2,25\n2;3\n",
        "n;loss\n1.5;2.25\n2;3\n",
        "n\tloss\n1.5\t2.25\n2\t3\n",
        'n,loss\n"1.5",2.25\n2,3\n',
    ],
)
def test_what_separates_cells_is_found(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    table = read_table(path)
    assert (table["n"].tolist(), table["loss"].tolist()) == ([1.5, 2.0], [2.25, 3.0])
