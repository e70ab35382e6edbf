"""``umscale data`` as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def umscale(tmp_path: Path, source_paths: str):  # type: ignore[no-untyped-def]
    environment = {**os.environ, "PYTHONPATH": source_paths, "UMSCALE_DATA": str(tmp_path / "home")}

    def call(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "umscale_cli.main", "data", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return call


def test_prepare_list_info(umscale, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "tales.txt"
    path.write_text("\f".join(f"Tale {i} of many." for i in range(60)))
    made = umscale("prepare", str(path), "--json")
    assert made.returncode == 0, made.stderr
    manifest = json.loads(made.stdout)
    assert manifest["name"] == "tales"
    assert str(tmp_path) not in json.dumps({k: v for k, v in manifest.items() if k != "path"})
    listed = json.loads(umscale("list", "--json").stdout)
    assert [c["hash"] for c in listed["corpora"]] == [manifest["hash"]]
    table = umscale("list").stdout
    assert "tales" in table
    assert "kjv" in table
    info = umscale("info", "tales", "--verify")
    assert info.returncode == 0
    assert manifest["hash"] in info.stdout
    assert "every file is as it was written" in info.stderr


def test_bad_input_is_one_line_and_code_2(umscale, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for arguments in (["info", "kjw"], ["prepare", str(tmp_path / "missing")], ["prepare"]):
        result = umscale(*arguments)
        assert result.returncode == 2, result
        assert result.stdout == ""
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert not (tmp_path / "home").exists()
