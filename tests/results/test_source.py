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
from umscale.results.source import choose_rows, read_table

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
