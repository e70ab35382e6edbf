"""Options that commands which read a study or a table share: which rows, which loss, which laws."""

from dataclasses import dataclass
from typing import Annotated

import typer

from umscale_cli.console import JsonFlag
from umscale_cli.law_options import mapping_of, split
from umscale_cli.rows import RowsAsked

DrawsOption = Annotated[
    int | None, typer.Option(min=1, help="Of the bootstrap; default 1000 refits.", show_default=False)
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionOptions:
    """Which rows of a study or a table, and which laws on them."""

    law: Annotated[
        str | None,
        typer.Option(
            metavar="LAW,...",
            help="Laws by name (`umscale laws`) or as formulas, 'mine: E + A*N**-alpha'.",
            show_default=False,
        ),
    ] = None
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="SYMBOL=COLUMN,...",
            help="Columns that the law's symbols and loss stand for; or formulas of columns, numbers: rho=1/experts.",
        ),
    ] = None
    where: Annotated[
        str | None,
        typer.Option(help="Rows to keep, as in \"router == 'Hash' and n > 1e6\".", show_default=False),
    ] = None
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Rows with one value are resampled together; default a study's cells, a table's run_id or rows.",
            show_default=False,
        ),
    ] = None
    drop_invalid: Annotated[
        bool, typer.Option("--drop-invalid", help="Leave out a table's rows without a loss or a column.")
    ] = False
    loss: Annotated[
        str,
        typer.Option(
            help="Of a study: loss (raw weights), loss_ema (averaged) or a generated task's, as in facts_nats."
        ),
    ] = "loss"
    stage: Annotated[
        str | None, typer.Option(help="annealed or stable; default both.", show_default=False)
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0
    json_: JsonFlag = False

    @property
    def mapping(self) -> dict[str, str]:
        """Symbol → column or formula, of --map."""
        return mapping_of(self.map_)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSelectionOptions(SelectionOptions):
    """The same where laws are fitted: to which parts, and by what objective."""

    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN,...", help="A fit for each value of it, or of several.", show_default=False
        ),
    ] = None
    objective: Annotated[
        str | None,
        typer.Option(
            help="huber, least_squares or least_absolute; default the law's own.", show_default=False
        ),
    ] = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Columns of --by."""
        return tuple(name.strip("`") for name in split(self.by)) if self.by else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedRowsOptions(FitSelectionOptions):
    """The same of commands that ask a fitted law something."""

    source: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|TABLE|FIT",
            help="A study, a table, or a .json file that `umscale fit --json` printed.",
        ),
    ]
    draws: DrawsOption = None

    def rows(self, laws: str | None) -> RowsAsked:
        """The rows asked for; a saved fit has its own law."""
        return RowsAsked(
            source=self.source,
            laws=laws,
            mapping=self.mapping,
            where=self.where,
            by=self.parts,
            group=self.group,
            drop_invalid=self.drop_invalid,
            objective=self.objective,
            stage=self.stage,
            loss=self.loss,
        )
