"""How a run is split over processes, as options of several commands."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from umscale.training.peak_memory import Split

SPLITS = ("replicated", "sharded")

TablesOption = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help="replicated: every process holds whole value tables; sharded: 1/N of their columns.",
    ),
]
DenseOption = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help="replicated: every process holds all other parameters; sharded: 1/N of each, gathered for use (FSDP).",
    ),
]


def check_split(size: int, tables: str, dense: str) -> "Split":
    """Return what the options ask for.

    Raises:
        UserError: an unknown word.
    """
    from umscale.errors import UserError, nearest
    from umscale.training.peak_memory import Split

    for option, value in (("--tables", tables), ("--dense", dense)):
        if value not in SPLITS:
            raise UserError(f"{option} {value!r} must be {' or '.join(SPLITS)}{nearest(value, SPLITS)}")
    return Split(size=size, shard_tables=tables == "sharded", shard_dense=dense == "sharded" and size > 1)
