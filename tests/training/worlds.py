"""Processes of a test that train one run together.

They are forked from one server, which has imported what takes seconds: a process costs some hundredths of one.
"""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from umscale.training.process_group import World, joined

_IMPORTED = [
    "pytest",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "umscale.training.run",
    "umscale_cli.main",
]


def start(function: Callable[..., None], size: int, *arguments: Any) -> None:
    """Call ``function(rank, *arguments)`` in ``size`` processes and wait; raises what one of them raises."""
    multiprocessing.set_forkserver_preload(_IMPORTED)
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # the server, once it is started, imports by it
    try:
        torch.multiprocessing.start_processes(function, arguments, nprocs=size, start_method="forkserver")
    finally:
        os.environ.pop("PYTHONPATH") if kept is None else os.environ.update(PYTHONPATH=kept)


def join(rank: int, size: int, rendezvous: Path) -> "contextlib.AbstractContextManager[World]":
    """Join a world over gloo as process ``rank`` of ``size``, which meet at a file that is not there yet."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    return joined(f"file://{rendezvous}", shard_tables=False, device=torch.device("cpu"))
