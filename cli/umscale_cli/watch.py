"""``umscale watch``: a page on this machine that shows a sweep as it goes."""

from typing import Annotated

import typer

from umscale_cli.console import note
from umscale_cli.runs import StudyArgument, open_store


def watch(
    study: StudyArgument,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the loopback interface; 0 takes a free one.")
    ] = 8765,
) -> None:
    """Show a running or finished sweep on a page of this machine: curves, cells, claims, failures, the answer so far.

    The page listens on 127.0.0.1 alone and changes nothing; Ctrl-C ends it. From elsewhere: ssh -L 8765:127.0.0.1:8765.
    """
    from umscale.watch.server import Server
    from umscale.watch.state import State

    with Server(State(open_store(study)), port) as server:
        print(server.url, flush=True)
        note("Ctrl-C ends it")
        server.serve_forever(poll_interval=0.2)
