"""``umscale optimal``: the best size and number of tokens for a compute budget."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.console import JsonFlag, out, plain_table, print_json
from umscale_cli.law_options import mapping_of, split
from umscale_cli.predicted import part_text, value_text
from umscale_cli.rows import RowsAsked, rows_of

if TYPE_CHECKING:
    from umscale.laws.uncertainty import Estimate
    from umscale.questions.fitted import Fitted
    from umscale.questions.optimal import Optimal


def optimal(
    source: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|TABLE|FIT",
            help="A study, a table, or a .json file that `umscale fit --json` printed.",
        ),
    ],
    compute: Annotated[
        str | None,
        typer.Option(
            metavar="FLOPS,...",
            help="Training FLOPs, as in 1e21,5.76e23; default the rows' own.",
            show_default=False,
        ),
    ] = None,
    law: Annotated[
        str, typer.Option(metavar="LAW,...", help="Of N and D, by name or as formulas.")
    ] = "chinchilla",
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="SYMBOL=COLUMN,...",
            help="As of `umscale fit`; C is the FLOPs, 6·N·D where there is none.",
        ),
    ] = None,
    where: Annotated[str | None, typer.Option(help="Rows to keep.", show_default=False)] = None,
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN,...", help="A fit for each value.", show_default=False)
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Rows that err together.", show_default=False)
    ] = None,
    drop_invalid: Annotated[
        bool, typer.Option("--drop-invalid", help="Leave out a table's rows without a loss or a column.")
    ] = False,
    objective: Annotated[
        str | None, typer.Option(help="huber, least_squares or least_absolute.", show_default=False)
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Of a study: annealed or stable; default both.", show_default=False)
    ] = None,
    loss: Annotated[str, typer.Option(help="Of a study: loss, loss_ema or a generated task's.")] = "loss",
    draws: Annotated[
        int | None, typer.Option(min=1, help="Of the bootstrap; default 1000 refits.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    json_: JsonFlag = False,
) -> None:
    """Say how to spend compute: the best N, D and tokens per parameter by a law, and by iso-FLOP parabolas beside
    it.
    """
    from umscale.laws.uncertainty import bootstrap
    from umscale.spec import quantity

    asked = RowsAsked(
        source=source, laws=None if source.endswith(".json") else law, mapping=mapping_of(map_), where=where,
        by=tuple(split(by)) if by else (), group=group, drop_invalid=drop_invalid, objective=objective,
        stage=stage, loss=loss,
    )  # fmt: skip
    flops = [quantity(one, "--compute") for one in split(compute)] if compute else []
    found = []
    for one in rows_of(asked).fits:
        uncertainty = bootstrap(one.fit, n_draws=draws, group=one.groups, unit=one.unit, seed=seed)
        found.append(_optimal(one, uncertainty, flops, seed))
    if json_:
        print_json([one.to_dict() for one in found])
        return
    for each in found:
        print_optimal(each, out())


def _optimal(one: "Fitted", uncertainty: Any, flops: list[float], seed: int) -> "Optimal":
    from umscale.questions.iso_flops import training_flops
    from umscale.questions.optimal import optimal as answer

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
        seed=seed,
    )


def print_optimal(found: "Optimal", console: Any) -> None:
    """Print both ways, the exponents, and what to know of them."""
    right = ("C, FLOPs", "N*", "95%", "D*", "95% ", "D*/N*", "95%  ", "loss", "octaves outside")
    ways = [("law " + found.by_law.law, found.by_law.optima)] if found.by_law else []
    if found.by_parabolas and found.by_parabolas.optima:
        ways.append(("iso-FLOP parabolas, power law through their minima", found.by_parabolas.optima))
    place = part_text(found.stage, None, found.loss, found.by)
    for name, optima in ways:
        table = plain_table(f"{place}: {name}", dict.fromkeys(right, "right"))
        for one in optima:
            far = " ".join(f"{axis} {v:+.1f}" for axis, v in one.octaves.items() if v) or "–"
            ratios = (one.n, one.d, one.tokens_per_parameter)
            loss = f"{one.loss.value:.4f}" if one.loss.value == one.loss.value else "–"
            table.add_row(f"{one.flops:.3g}", *(w for e in ratios for w in _pair(e)), loss, far)
        console.print()
        console.print(table)
    if found.by_parabolas:
        table = plain_table(f"{place}: minima of the parabolas", dict.fromkeys((*right[:7], "runs"), "right"))
        for vertex in found.by_parabolas.vertices:
            ratios = (vertex.n, vertex.d, vertex.tokens_per_parameter)
            table.add_row(f"{vertex.flops:.3g}", *(w for e in ratios for w in _pair(e)), str(vertex.runs))
        console.print()
        console.print(table)
    console.print()
    if found.by_law:
        law = found.by_law
        console.print(f"law {law.law}: {law.formula}; {_powers(law.exponents)}", soft_wrap=True)
        console.print(f"  intervals: {law.method}; resampled {law.resampled}", soft_wrap=True)
    if found.by_parabolas and found.by_parabolas.exponents:
        words = _powers(found.by_parabolas.exponents)
        console.print(f"parabolas: {words}; resampled {found.by_parabolas.resampled}", soft_wrap=True)
    factor = f"{found.flops_per_parameter:.3g} FLOPs per parameter and token"
    console.print(f"{found.rows} rows; C from {found.source}; {factor}", soft_wrap=True)
    for line in found.statements:
        console.print(f"note: {line}", soft_wrap=True)


def _pair(estimate: "Estimate") -> tuple[str, str]:
    if estimate.value != estimate.value:
        return "–", "–"
    if not estimate.has_interval:
        return value_text(estimate.value), "none"
    return value_text(estimate.value), f"[{value_text(estimate.low)}, {value_text(estimate.high)}]"


def _powers(exponents: Any) -> str:
    parts = []
    for name, one in (("N*", exponents.n), ("D*", exponents.d)):
        ends = f" [{one.low:.3f}, {one.high:.3f}]" if one.has_interval else ""
        parts.append(f"{name} ∝ C^{one.value:.3f}{ends}")
    return ", ".join(parts)
