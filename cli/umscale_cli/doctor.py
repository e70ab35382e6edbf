"""``umscale doctor``: what this machine can do, and what to do about what is missing."""

from typing import Annotated

import typer

from umscale_cli.console import EXIT_FAILED, JsonFlag, print_json, show
from umscale_cli.runs import DEFAULT_ROOT


def doctor(
    store: Annotated[
        str,
        typer.Option("--store", metavar="DIR", help="Where results would go: a folder or an object store."),
    ] = str(DEFAULT_ROOT),
    build: Annotated[
        bool, typer.Option("--build", help="Compile the kernels now that first use would compile.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Say what this machine can do (kernels, precision, GPUs, room, executors, extras) and what is missing.

    Writes nothing without --build. Exit code 1 where no sweep can run.
    """
    from umscale.doctor import diagnose, to_json

    found = diagnose(store, build=build)
    if json_:
        print_json(to_json(found))
    else:
        show(found.blocks())
    if not found.can_sweep:
        raise typer.Exit(EXIT_FAILED)
