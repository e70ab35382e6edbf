"""The command in a process of its own, and a small study for it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

STUDY = """
name = "tiny"
[axes]
top_m = [2, 4]
[model]
d_model = 32
n_layers = 1
n_heads = 2
[model.ffn]
d_ffn = 32
[model.memory]
n_keys = 8
top_m = 2
d_key = 8
d_pre_value = 8
d_value = 8
[data]
corpus = "kjv"
seq_len = 32
validation_tokens = 2000
[train]
budgets = [{budget}]
batch_size = 4
warmup_tokens = 500
checkpoint_seconds = 1000.0
precision = "float32"
"""


@pytest.fixture
def run_umscale(source_paths: str, tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Start ``umscale`` with arguments; ``env``, ``cwd`` and what else ``Popen`` takes may be given."""

    def start(
        *arguments: object, env: dict[str, str] | None = None, **options: object
    ) -> "subprocess.Popen[str]":
        base = os.environ | {"PYTHONPATH": source_paths, "OMP_NUM_THREADS": "1"}
        given = {
            "cwd": tmp_path,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        } | options
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            [sys.executable, "-P", "-m", "umscale_cli.main", *map(str, arguments)],
            env=base | (env or {}),
            # A suite started in the background inherits an ignored SIGINT; a user's terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            **given,
        )

    return start


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[..., Path]:
    """Write the study with a budget, and more at its end, and return its path."""

    def write(budget: int = 5000, more: str = "") -> Path:
        path = tmp_path / "tiny.toml"
        path.write_text(STUDY.format(budget=budget) + more)
        return path

    return write
