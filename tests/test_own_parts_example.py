"""examples/own_parts: installed into a fresh environment and swept there; its contract; its records where it is not.

Nothing is fetched: pip builds with the setuptools that is here, and the environment sees this one's packages by a path
file, as a virtual environment of its own would hold them.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "own_parts"

pytest.importorskip("setuptools", reason="pip builds the example with it")


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment with the example."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(EXAMPLE, folder / "source")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    said = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seen = [
        ROOT,
        *(ROOT / room for room in ("kernels", "studies", "cli")),
        *(path for path in sys.path if path),
    ]
    (Path(said.stdout.strip()) / "here.pth").write_text("\n".join(map(str, seen)))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", folder / "source"], capture_output=True, text=True, check=False
    )
    if done.returncode and "invalid command 'bdist_wheel'" in done.stderr:
        pytest.skip("this setuptools is too old to build a wheel by itself")
    assert done.returncode == 0, done.stderr
    return python


def umscale(python: Path | str, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as this interpreter has it."""
    paths = f"import sys; sys.path[:0] = {[str(ROOT / r) for r in ('', 'kernels', 'studies', 'cli')]}; "
    code = paths + "from umscale_cli.main import main; main()"
    return subprocess.run([python, "-c", code, *argv], capture_output=True, text=True, check=False)


def test_it_is_listed_swept_and_answered_and_read_without_it(python: Path, tmp_path: Path) -> None:
    listed = json.loads(umscale(python, "parts", "--json").stdout)
    assert [(row["kind"], row["name"], row["package"], row["state"]) for row in listed] == [
        ("memory", "flat_keys", "own-parts 0.1.0", "ok"),
        ("optimiser", "lion", "own-parts 0.1.0", "ok"),
        ("law", "tokens_and_density", "own-parts 0.1.0", "ok"),
        ("question", "best-cell", "own-parts 0.1.0", "ok"),
        ("evaluation", "copying", "own-parts 0.1.0", "ok"),
    ]
    store = tmp_path / "store"
    swept = umscale(python, "sweep", EXAMPLE / "study.toml", "--store", store, "--workers", "1")
    assert swept.returncode == 0, swept.stderr
    assert "The least loss has" in swept.stdout

    here = umscale(sys.executable, "runs", store, "--json")  # the package is not
    rows = json.loads(here.stdout)
    assert len(rows) == 4
    assert all(row["architecture"] == "flat_keys" and isinstance(row["copying.gain"], float) for row in rows)
    assert "memory 'flat_keys' of own-parts 0.1.0, which is not installed here (2 runs)" in here.stderr
    assert "question 'best-cell' of own-parts 0.1.0, which is not installed here" in here.stderr
    again = umscale(sys.executable, "sweep", store / "study.toml", "--store", store)
    assert (again.returncode, again.stderr.strip()) == (
        2,
        "umscale: memory 'flat_keys' of own-parts 0.1.0, which is not installed here; install own-parts==0.1.0 to "
        "train or count it",
    )


def test_it_keeps_the_contract(python: Path) -> None:
    done = umscale(python, "parts", "--check", "flat_keys")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("memory flat_keys of own-parts 0.1.0: shapes and dtypes, accounting, ")
