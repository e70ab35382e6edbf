"""``umscale simulate``: how often the verdict is right, wrong or silent on tables drawn from a known law."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.console import JsonFlag, SetOption, note, out, print_json

if TYPE_CHECKING:
    from umscale.questions.simulate import Rate, Simulation, Truth


def simulate(
    study: Annotated[
        str | None,
        typer.Argument(
            help="A study whose design is used (its axes, seeds and budgets); default the runs of --from.",
            show_default=False,
        ),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="STORE", help="Take law and noise from a finished study.", show_default=False
        ),
    ] = None,
    slope_m: Annotated[
        float | None,
        typer.Option(help="Nats that a doubling of top_m buys; default 0.02.", show_default=False),
    ] = None,
    slope_n: Annotated[
        float | None,
        typer.Option(help="Nats that a doubling of N_s buys; default 0.02.", show_default=False),
    ] = None,
    interaction: Annotated[
        float | None,
        typer.Option(help="Nats added by a doubling of both; default 0.", show_default=False),
    ] = None,
    slope_tokens: Annotated[
        float | None,
        typer.Option(help="Nats that a doubling of tokens buys; default 0.1.", show_default=False),
    ] = None,
    run_sd: Annotated[
        float | None,
        typer.Option(help="Standard deviation of a run, nats; default 0.02.", show_default=False),
    ] = None,
    block_sd: Annotated[
        float | None, typer.Option(help="Of what a seed's runs share; default 0.02.", show_default=False)
    ] = None,
    cell_sd: Annotated[
        float | None, typer.Option(help="Of what the law misses in a cell; default 0.", show_default=False)
    ] = None,
    record_sd: Annotated[
        float | None, typer.Option(help="Of a single record of a run; default 0.", show_default=False)
    ] = None,
    slope_sd: Annotated[
        float | None,
        typer.Option(help="Of slopes between seed blocks, nats per doubling; default 0.", show_default=False),
    ] = None,
    misfit_sd: Annotated[
        float | None,
        typer.Option(
            help="Of a misfit smooth along top_m, as a rate tuned for one leaves; default 0.",
            show_default=False,
        ),
    ] = None,
    tables: Annotated[int, typer.Option(min=1, help="Tables to draw.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws; the same seed draws the same tables.")] = 0,
    stage: Annotated[
        str | None, typer.Option(help="Of --from: annealed or stable.", show_default=False)
    ] = None,
    compensation: Annotated[
        str | None,
        typer.Option(help="Of the study, and of --from; default the study's first.", show_default=False),
    ] = None,
    set_: SetOption = None,
    json_: JsonFlag = False,
) -> None:
    """Draw tables from a known law at a study's design and judge each by the verdict's own procedure.

    Shows whether its intervals cover, how often it decides wrongly, and what a design of this size can decide.
    """
    import dataclasses

    from umscale.design.study import load_study
    from umscale.errors import UserError
    from umscale.questions.simulate import Truth, fitted_truth, study_design, to_json
    from umscale.questions.simulate import simulate as run_simulation
    from umscale.results.table import levels
    from umscale.say.labels import heading
    from umscale_cli.runs import open_store

    if study is None and from_ is None:
        raise UserError("name a study whose design is simulated, or a finished one with --from")
    if study is None and set_:
        raise UserError("--set overrides a study's keys: name the study")
    truth = Truth(delta_m=0.02, delta_n=0.02)
    if study is not None:
        loaded = load_study(study, set_ or ())
        compensation = compensation or loaded.compensation[0]
        design = study_design(loaded, compensation)
    if from_ is not None:
        table = open_store(from_).columns()
        modes = levels(table, "compensation")
        # The law of the design's own compensation; of another study's only where it has no choice.
        mode = modes[0] if len(modes) == 1 else compensation or next(iter(modes), None)
        truth, design_of_runs = fitted_truth(table, stage=stage, compensation=mode)
        design = design_of_runs if study is None else design
        note(f"law and noise of {from_}, {heading(stage or 'annealed', mode, 'loss')}")
    given = {
        "delta_m": slope_m,
        "delta_n": slope_n,
        "interaction": interaction,
        "tokens": None if slope_tokens is None else -slope_tokens,
        "run_sd": run_sd,
        "block_sd": block_sd,
        "cell_sd": cell_sd,
        "record_sd": record_sd,
        "slope_sd": slope_sd,
        "misfit_sd": misfit_sd,
    }
    truth = dataclasses.replace(truth, **{k: v for k, v in given.items() if v is not None})
    found = run_simulation(design, truth, n_tables=tables, seed=seed, on_progress=_progress)
    if json_:
        print_json(to_json(found))
    else:
        print_simulation(found, out())


def _progress(done: int, total: int) -> None:
    """A counter on one line of the terminal; nothing where stderr is no terminal."""
    if sys.stderr.isatty() and (done % 10 == 0 or done == total):
        print(f"\r{done}/{total} tables", end="\n" if done == total else "", file=sys.stderr, flush=True)


def print_simulation(found: "Simulation", console: Any) -> None:
    """Print the truth, coverage and answers."""
    from rich.table import Table

    truth = found.truth
    console.print(
        f"{found.n_tables} tables (seed {found.seed}) of {found.n_cells} cells, {found.n_runs} runs, "
        f"{found.n_seeds} seeds, {found.n_rows} records"
    )
    console.print(_truth_text(truth), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("95% intervals", "truth, nats", "law covers", "paired cells cover"):
        table.add_column(name, justify="left" if name == "95% intervals" else "right")
    real = (truth.delta_m, truth.delta_n, truth.delta_m - truth.delta_n)
    titles = ("doubling top_m buys", "doubling N_s buys", "difference")
    for title, value, name in zip(titles, real, found.coverage, strict=True):
        table.add_row(title, f"{value:+.4f}", _rate(found.coverage[name]), _rate(found.coverage_pairs[name]))
    console.print(table)
    for answer, rate in found.answers.items():
        console.print(f"{answer:<13} {_rate(rate)}")
    console.print(f"false verdicts {_rate(found.false_verdicts)}")
    if found.power is not None:
        console.print(f"power {_rate(found.power)}")
    for name, guard in found.guards.items():
        right = "" if guard.power is None else f", power {_rate(guard.power)}"
        console.print(f"{_GUARDS[name]} alone: false {_rate(guard.false_verdicts)}{right}")
    console.print(f"median half-width of the difference's interval {found.half_width:.4f} nats")


def _truth_text(truth: "Truth") -> str:
    parts = [
        f"a doubling buys {truth.delta_m:.4g} (top_m), {truth.delta_n:.4g} (N_s), {-truth.tokens:.4g} (tokens) nats",
        f"interaction {truth.interaction:.4g}",
        f"standard deviations: run {truth.run_sd:.4g}, seed block {truth.block_sd:.4g}",
    ]
    if truth.cell_sd:
        parts.append(f"cell {truth.cell_sd:.4g}")
    if truth.record_sd:
        parts.append(f"record {truth.record_sd:.4g}")
    if truth.slope_sd:
        parts.append(f"slopes between seed blocks {truth.slope_sd:.4g}")
    if truth.misfit_sd:
        parts.append(f"misfit along top_m {truth.misfit_sd:.4g}")
    return ", ".join(parts)


_GUARDS = {"blocks": "seed blocks as the unit", "levels": "levels of top_m and N_s as the unit"}


def _rate(rate: "Rate") -> str:
    if not rate.of:
        return "–"
    low, high = rate.interval
    return f"{rate.share:.1%} [{low:.1%}, {high:.1%}]"
