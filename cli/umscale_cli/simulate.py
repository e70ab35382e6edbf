"""``umscale simulate``: how often the verdict is right, wrong or silent on tables drawn from a known law."""

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from umscale_cli.console import JsonFlag, SetOption, note, print_json, show
from umscale_cli.options import takes_options

if TYPE_CHECKING:
    from umscale.questions.simulate import Truth
    from umscale.results.table import Table


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """Options of ``umscale simulate``."""

    study: Annotated[
        str | None,
        typer.Argument(
            help="A study whose design is used (its axes, seeds and budgets); default the runs of --from.",
            show_default=False,
        ),
    ] = None
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="STORE", help="Take law and noise from a finished study.", show_default=False
        ),
    ] = None
    slope_m: Annotated[
        float | None,
        typer.Option(help="Nats that a doubling of top_m buys; default 0.02.", show_default=False),
    ] = None
    slope_n: Annotated[
        float | None,
        typer.Option(help="Nats that a doubling of N_s buys; default 0.02.", show_default=False),
    ] = None
    interaction: Annotated[
        float | None,
        typer.Option(help="Nats added by a doubling of both; default 0.", show_default=False),
    ] = None
    slope_tokens: Annotated[
        float | None,
        typer.Option(help="Nats that a doubling of tokens buys; default 0.1.", show_default=False),
    ] = None
    run_sd: Annotated[
        float | None,
        typer.Option(help="Standard deviation of a run, nats; default 0.02.", show_default=False),
    ] = None
    block_sd: Annotated[
        float | None, typer.Option(help="Of what a seed's runs share; default 0.02.", show_default=False)
    ] = None
    cell_sd: Annotated[
        float | None, typer.Option(help="Of what the law misses in a cell; default 0.", show_default=False)
    ] = None
    record_sd: Annotated[
        float | None, typer.Option(help="Of a single record of a run; default 0.", show_default=False)
    ] = None
    slope_sd: Annotated[
        float | None,
        typer.Option(help="Of slopes between seed blocks, nats per doubling; default 0.", show_default=False),
    ] = None
    misfit_sd: Annotated[
        float | None,
        typer.Option(
            help="Of a misfit smooth along top_m, as a rate tuned for one leaves; default 0.",
            show_default=False,
        ),
    ] = None
    tables: Annotated[int, typer.Option(min=1, help="Tables to draw.")] = 500
    seed: Annotated[int, typer.Option(min=0, help="Of the draws; the same seed draws the same tables.")] = 0
    stage: Annotated[str | None, typer.Option(help="Of --from: annealed or stable.", show_default=False)] = (
        None
    )
    compensation: Annotated[
        str | None,
        typer.Option(help="Of the study, and of --from; default the study's first.", show_default=False),
    ] = None
    set_: SetOption = None
    json_: JsonFlag = False


@takes_options
def simulate(asked: SimulateOptions) -> None:
    """Draw tables from a known law at a study's design and judge each by the verdict's own procedure.

    Shows whether its intervals cover, how often it decides wrongly, and what a design of this size can decide.
    """
    from umscale.questions.simulate import simulate as run_simulation
    from umscale.questions.simulate import to_json

    design, truth = _design(asked)
    found = run_simulation(design, truth, n_tables=asked.tables, seed=asked.seed, on_progress=_progress)
    if asked.json_:
        print_json(to_json(found))
    else:
        show(found.blocks())


def _design(asked: SimulateOptions) -> "tuple[Table, Truth]":
    """The rows of a table to draw, and the law that draws it: defaults, a finished study's, then what was given."""
    from umscale.design.study import load_study
    from umscale.errors import UserError
    from umscale.questions.simulate import Truth, fitted_truth, study_design
    from umscale.results.table import levels
    from umscale.say.labels import heading
    from umscale_cli.runs import open_store

    if asked.study is None and asked.from_ is None:
        raise UserError("name a study whose design is simulated, or a finished one with --from")
    if asked.study is None and asked.set_:
        raise UserError("--set overrides a study's keys: name the study")
    truth, compensation = Truth(delta_m=0.02, delta_n=0.02), asked.compensation
    design: Table | None = None
    if asked.study is not None:
        loaded = load_study(asked.study, asked.set_ or ())
        compensation = compensation or loaded.compensation[0]
        design = study_design(loaded, compensation)
    if asked.from_ is not None:
        table = open_store(asked.from_).columns()
        modes = levels(table, "compensation")
        # The law of the design's own compensation; of another study's only where it has no choice.
        mode = modes[0] if len(modes) == 1 else compensation or next(iter(modes), None)
        truth, design_of_runs = fitted_truth(table, stage=asked.stage, compensation=mode)
        design = design_of_runs if design is None else design
        note(f"law and noise of {asked.from_}, {heading(asked.stage or 'annealed', mode, 'loss')}")
    assert design is not None
    given = {
        "delta_m": asked.slope_m,
        "delta_n": asked.slope_n,
        "interaction": asked.interaction,
        "tokens": None if asked.slope_tokens is None else -asked.slope_tokens,
        "run_sd": asked.run_sd,
        "block_sd": asked.block_sd,
        "cell_sd": asked.cell_sd,
        "record_sd": asked.record_sd,
        "slope_sd": asked.slope_sd,
        "misfit_sd": asked.misfit_sd,
    }
    return design, dataclasses.replace(truth, **{k: v for k, v in given.items() if v is not None})


def _progress(done: int, total: int) -> None:
    """A counter on one line of the terminal; nothing where stderr is no terminal."""
    if sys.stderr.isatty() and (done % 10 == 0 or done == total):
        print(f"\r{done}/{total} tables", end="\n" if done == total else "", file=sys.stderr, flush=True)
