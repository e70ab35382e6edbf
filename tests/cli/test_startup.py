"""What commands that train nothing must not load: it would take longer than their work."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import contextlib, io, sys
sys.argv = ["umscale", *sys.argv[1:]]
from umscale_cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
print(*sorted({"torch", "pandas", "pyarrow.dataset", "numpy.f2py", "scipy.stats", "matplotlib"} & set(sys.modules)))
"""


@pytest.mark.parametrize("command", ["--help", "laws", "fit enwik8_density --json", "runs enwik8_density"])
def test_commands_load_what_they_use(command):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command.split()],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == []


def test_pandas_is_back_afterwards():
    from umscale_cli.main import _without_pandas

    with _without_pandas():
        assert any(type(finder).__name__ == "_NoPandas" for finder in sys.meta_path)
    assert not any(type(finder).__name__ == "_NoPandas" for finder in sys.meta_path)
