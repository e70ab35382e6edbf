"""``umscale selftest``: prove on this machine what the documentation promises."""

import dataclasses
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umscale_cli.console import EXIT_FAILED, JsonFlag, duration, note, out, print_json

if TYPE_CHECKING:
    from umscale.selftest.crash import Totals

app = typer.Typer(help="Prove on this machine what the documentation promises.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Prove on this machine what the documentation promises."""


@app.command()
def crash(
    rounds: Annotated[
        int,
        typer.Option(min=1, help="Kills at random moments; other faults come on top, one for every eight."),
    ] = 30,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of what strikes when; default a new one.", show_default=False)
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Keep the logs in this new folder.", show_default=False),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Kill, stop and starve small sweeps of real processes, damage their files, and compare with an undisturbed one."""
    from umscale.errors import UserError
    from umscale.selftest.crash import crash as run

    chosen = secrets.randbelow(10**6) if seed is None else seed
    if keep is not None:
        folder = Path(keep)
        if folder.exists():
            raise UserError(f"--keep {keep}: it exists already; name a new folder")
        folder.mkdir(parents=True)
        totals = run(rounds, chosen, folder.resolve(), note)
    else:
        with tempfile.TemporaryDirectory(prefix="umscale-crash-") as temporary:
            totals = run(rounds, chosen, Path(temporary).resolve(), note)
    if json_:
        print_json(dataclasses.asdict(totals) | {"passed": totals.passed})
    else:
        _print(totals)
    if not totals.passed:
        raise typer.Exit(EXIT_FAILED)


def _print(totals: "Totals") -> None:
    from rich.table import Table

    from umscale.selftest.crash import CHECKPOINT_SECONDS

    console = out()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("fault")
    table.add_column("times", justify="right")
    table.add_column("")
    for name, tally in totals.tallies.items():
        table.add_row(name, str(tally.rounds), f"left out: {tally.skipped}" if tally.skipped else "")
    console.print(table)
    lines = {
        "processes killed": totals.kills,
        "kills among training steps": totals.aimed,
        "kills beside a flush or a rename": totals.writing,
        "sweeps brought to their end": totals.sweeps - 1,
        "finished results looked at again": totals.finished,
        "finished results lost": totals.lost,
        "finished results changed": totals.changed,
        "rows doubled": totals.doubled,
        "runs continued by another process": totals.restarts,
        "most training repeated by one of them": f"{totals.worst_repeated:.2f} s of CPU time "
        f"(checkpoint interval {CHECKPOINT_SECONDS:g} s)",
        "repeated more than an interval": totals.too_much_repeated,
        "runs redone because their files were damaged": totals.redone,
        "files quarantined": totals.quarantined,
        "tables that differ from the undisturbed ones": totals.unequal,
    }
    console.print()
    for name, value in lines.items():
        console.print(f"{name:<46}{value}")
    for problem in totals.problems:
        console.print(f"problem: {problem}")
    verdict = "passed" if totals.passed else "FAILED"
    console.print(f"\n{verdict} in {duration(totals.seconds)}; --seed {totals.seed}")
