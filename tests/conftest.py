"""Shared fixtures: a small real corpus and an isolated data home."""

import os
import zlib
from pathlib import Path

import hypothesis
import pytest
import torch

from tests import numerics

ROOT = Path(__file__).resolve().parents[1]

if not torch.cuda.is_available():  # Triton reads it when a kernel is defined
    os.environ["TRITON_INTERPRET"] = "1"

os.environ.pop("COLUMNS", None)  # the machine's; tests of widths set their own

# The same examples on every machine, however slow.
hypothesis.settings.register_profile("umscale", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("umscale")


@pytest.fixture(autouse=True)
def _own_draw(request: pytest.FixtureRequest) -> None:
    """Give every test inputs of its own, whatever ran before it in its process."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()) + numerics.draw())


@pytest.fixture(scope="module", autouse=True)
def _own_data_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests away from the user's corpora, and those of a file away from another's."""
    os.environ["UMSCALE_DATA"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def source_paths() -> str:
    """Return the PYTHONPATH of the source tree, for subprocesses."""
    return os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "studies", "cli"))
