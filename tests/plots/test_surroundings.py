"""Figures are the same whatever a user has set up for figures of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from umscale.plots.style import house_style, panels, save, caption, log_ticks
import numpy as np
with house_style():
    figure, [[ax]] = panels(1, 1)
    ax.plot([1, 2, 4], [3, 1, 2], label="a")
    log_ticks(ax, "x", np.array([1.0, 2.0, 4.0]))
    ax.set_title("title")
    caption(figure, "words")
save(figure, sys.argv[1])
"""
RC = """
text.usetex: True
font.family: serif
font.size: 30
axes.facecolor: black
figure.dpi: 7
savefig.transparent: True
axes.prop_cycle: cycler('color', ['r'])
"""
SURROUNDINGS = {
    "a notebook's backend": ({"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, None, None),
    "a backend that does not exist": ({"MPLBACKEND": "nonesuch"}, None, None),
    "a backend with windows": ({"MPLBACKEND": "TkAgg"}, None, None),
    "a style by name": ({"MATPLOTLIBRC": "{tmp}/mine"}, "mine", RC.encode()),
    "a style in the current folder": ({}, "matplotlibrc", RC.encode()),
    "a style that is none": ({"MATPLOTLIBRC": "{tmp}/mine"}, "mine", b"\xff\xfe\0nonsense: [\n"),
    "nonsense in the current folder": ({}, "matplotlibrc", b"\xff\xfe\0nonsense: [\n"),
    "a style of the user": ({"XDG_CONFIG_HOME": "{tmp}"}, "matplotlib/matplotlibrc", RC.encode()),
}


def draw(folder: Path, **more: str) -> bytes:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "cache").mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MPL", "MATPLOTLIB"))}
    environment |= {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_CACHE_HOME": str(ROOT / ".pytest_cache"),
    } | more
    done = subprocess.run(
        [sys.executable, "program.py", "figure.png"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return (folder / "figure.png").read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("what", SURROUNDINGS)
def test_neither_backend_nor_style_is_heard(tmp_path, plain, what):
    environment, name, content = SURROUNDINGS[what]
    if name is not None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert draw(tmp_path, **{k: v.format(tmp=tmp_path) for k, v in environment.items()}) == plain


def test_a_users_own_settings_come_back():
    import matplotlib as mpl

    from umscale.plots.style import house_style

    with mpl.rc_context({"font.size": 31, "axes.facecolor": "black"}):
        with house_style():
            assert mpl.rcParams["font.size"] == 9.0
            assert mpl.rcParams["axes.facecolor"] == "white"
        assert mpl.rcParams["font.size"] == 31
