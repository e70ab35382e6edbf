"""What ``import umscale`` offers: examples in docstrings and docs run, and nothing is loaded before its use."""

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import umscale
from umscale import api

ROOT = Path(__file__).resolve().parents[1]


def test_every_name_is_offered_and_typed():
    stub = (ROOT / "umscale" / "__init__.pyi").read_text(encoding="utf-8")
    assert set(re.findall(r"import (\w+) as \1\n", stub)) == set(api.__all__) <= set(dir(umscale))
    for name in api.__all__:
        assert getattr(umscale, name) is getattr(api, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        umscale.nothing  # noqa: B018


def test_importing_it_loads_nothing(source_paths):
    program = (
        "import sys, umscale; print(*[m for m in ('torch', 'numpy', 'pyarrow', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": source_paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


def test_the_examples_of_docstrings():
    names = {"umscale": umscale, "np": np}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    found = [test for test in doctest.DocTestFinder().find(api, globs=names) if test.examples]
    assert len(found) >= 8
    for test in found:
        assert runner.run(test).failed == 0, test.name


def test_the_page_runs():
    [code] = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL
    )
    exec(code, {})


@pytest.mark.parametrize("name", ["own_table", "own_study", "own_architecture"])
def test_the_scripts_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if name == "own_table":
        module.main()
        assert (tmp_path / "own_table.png").stat().st_size > 10_000
        assert re.search(r"alpha +0\.3", capsys.readouterr().out)
        return
    module.main(tmp_path / "store")
    results = umscale.load_results(tmp_path / "store")
    assert set(results.to_arrow()["status"].to_pylist()) == {"finished"}
    assert capsys.readouterr().out
    module.main(tmp_path / "store")  # nothing is trained twice
    assert results.to_arrow().num_rows == umscale.load_results(tmp_path / "store").to_arrow().num_rows


def test_what_is_not_there_is_one_line():
    with pytest.raises(umscale.UserError, match="did you mean 'enwik8_density'"):
        umscale.load_results("enwik8_densty")
    with pytest.raises(umscale.UserError, match="no table 'run'"):
        umscale.load_results("enwik8_density").to_arrow("run")
    results = umscale.load_results("enwik8_density")
    run_id = results.to_arrow()["run_id"][0].as_py()
    with pytest.raises(umscale.UserError, match=r"train\.keep"):
        umscale.load_model(results, run_id)
