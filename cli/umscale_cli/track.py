"""``umscale track``: the numbers of a store in TensorBoard or Weights & Biases."""

from pathlib import Path
from typing import Annotated

import typer

from umscale_cli.console import note
from umscale_cli.runs import StudyArgument, open_store, warn_damaged

DEFAULT_FOLDER = Path("umscale-tracked")


def folder_of(store_name: str, kind: str) -> Path:
    """Where a tracker writes unless told otherwise."""
    last = store_name.partition("?")[0].rstrip("/").rpartition("/")[2]
    return DEFAULT_FOLDER / last / kind


def track(
    study: StudyArgument,
    to: Annotated[str, typer.Option("--to", help="tensorboard or wandb.")] = "tensorboard",
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Default ./umscale-tracked/STUDY/TRACKER.", show_default=False),
    ] = None,
) -> None:
    """Write what a store holds of its runs to TensorBoard's files or to Weights & Biases, and nothing twice."""
    from umscale.track.trackers import mirror, open_tracker

    store = open_store(study)
    where = folder or folder_of(study, to)
    tracker = open_tracker(to, where, Path(study.partition("?")[0]).name)
    added = mirror(store, tracker)
    print(where)
    view = (
        f"tensorboard --logdir {where}" if to == "tensorboard" else f"wandb sync {where}/wandb/offline-run-*"
    )
    note(f"{added:,} points added; {view} shows them")
    warn_damaged(store)
