"""``umscale optimal``: the best size and number of tokens for a compute budget."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from umscale_cli.console import print_json, show
from umscale_cli.law_options import split
from umscale_cli.options import takes_options
from umscale_cli.rows import rows_of
from umscale_cli.selection import FittedRowsOptions

if TYPE_CHECKING:
    from umscale.questions.fitted import Fitted
    from umscale.questions.optimal import Optimal


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimalOptions(FittedRowsOptions):
    """Options of ``umscale optimal``."""

    law: Annotated[str, typer.Option(metavar="LAW,...", help="Of N and D, by name or as formulas.")] = (
        "chinchilla"
    )
    compute: Annotated[
        str | None,
        typer.Option(
            metavar="FLOPS,...",
            help="Training FLOPs, as in 1e21,5.76e23; default the rows' own.",
            show_default=False,
        ),
    ] = None


@takes_options
def optimal(asked: OptimalOptions) -> None:
    """Say how to spend compute: the best N, D and tokens per parameter by a law, and by iso-FLOP parabolas beside
    it.

    C is the training FLOPs: the column of --map C=COLUMN, 6·N·D where there is none.
    """
    from umscale.spec import quantity

    rows = rows_of(asked.rows(None if asked.source.endswith(".json") else asked.law))
    flops = [quantity(one, "--compute") for one in split(asked.compute)] if asked.compute else []
    found = [_optimal(asked, one, flops) for one in rows.fits]
    if asked.json_:
        print_json([one.to_dict() for one in found])
    else:
        show([block for one in found for block in one.blocks()])


def _optimal(asked: OptimalOptions, one: "Fitted", flops: list[float]) -> "Optimal":
    from umscale.laws.uncertainty import bootstrap
    from umscale.questions.iso_flops import training_flops
    from umscale.questions.optimal import optimal as answer

    uncertainty = bootstrap(one.fit, n_draws=asked.draws, group=one.groups, unit=one.unit, seed=asked.seed)
    table = {**one.rows, **{one.fit.columns[s]: v for s, v in one.fit.rows.values.items()}}
    compute, source = training_flops(table, one.fit.columns)
    return answer(
        uncertainty,
        flops,
        compute=compute,
        source=source,
        groups=one.fit.rows.run if one.group is None else one.group,
        unit="runs" if one.group is None else one.unit,
        by=one.by,
        seed=asked.seed,
    )
