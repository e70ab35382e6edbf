"""``umscale fit``: laws with intervals and the verdict on density over size, or architectures side by side."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.answers import estimate_text, print_contrast, print_map, print_ratio, print_suggestion
from umscale_cli.console import JsonFlag, count, number, out, print_json
from umscale_cli.runs import StudyArgument, open_store, warn_damaged

if TYPE_CHECKING:
    from umscale.laws.architectures import ArchitectureTable
    from umscale.laws.report import Section, StudyReport
    from umscale.laws.verdict import Contrasts, Verdict
    from umscale.store import Store

LOSS_NAMES = {"loss": "raw weights", "loss_ema": "averaged weights"}


def fit(
    study: StudyArgument,
    law: Annotated[
        str, typer.Option(help="Laws to fit, comma-separated; `umscale laws` lists them.")
    ] = "null,additive,interaction",
    loss: Annotated[
        str, typer.Option(help="Detail for loss (raw weights), loss_ema (averaged weights) or both.")
    ] = "loss",
    stage: Annotated[
        str | None, typer.Option(help="annealed or stable; default both.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    question: Annotated[
        str | None,
        typer.Option(
            help="density-over-size, architectures or memory-to-ffn; default the study's.", show_default=False
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Architecture that differences refer to; default dense.", show_default=False),
    ] = None,
    plane: Annotated[
        bool, typer.Option("--plane", help="Also say where in the (top_m, N_s) plane density beats size.")
    ] = False,
    suggest: Annotated[
        int | None,
        typer.Option(min=1, help="Only suggest this many further runs for the verdict.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where --suggest writes its study file.", show_default=False)
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option(
            metavar="'CELL - CELL'",
            help="Only compare two cells, as in 'top_m=64,n_keys=64 - top_m=16,n_keys=128'.",
            show_default=False,
        ),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Fit scaling laws to a study's results and answer its question.

    The question is whether density beats size, which of several architectures is best, or which memory-to-FFN ratio.
    """
    from umscale.design.study import QUESTIONS
    from umscale.errors import UserError, nearest
    from umscale.laws.report import to_json

    store = open_store(study)
    if loss not in (*LOSS_NAMES, "both"):
        raise UserError(f"--loss {loss!r} must be loss, loss_ema or both")
    question = question or store.question()
    if question not in QUESTIONS:
        raise UserError(
            f"--question {question!r} must be one of {', '.join(QUESTIONS)}{nearest(question, QUESTIONS)}"
        )
    if output is not None and suggest is None:
        raise UserError("--output is where --suggest writes; add --suggest N")
    if suggest is not None or contrast is not None:
        _answer(store, suggest, output, contrast, stage, "loss" if loss == "both" else loss, json_)
        return
    if question == "memory-to-ffn":
        _ratios(store, loss, stage, json_)
        return
    if question == "architectures":
        losses = LOSS_NAMES if loss == "both" else (loss,)
        tables = {name: compare_store(store, name, baseline, stage) for name in losses}
        if json_:
            print_json({name: [asdict(t) for t in each] for name, each in tables.items()})
        else:
            for name, compared in tables.items():
                print_architectures(compared, name, out())
        warn_damaged(store)
        return
    found = fit_store(store, law.split(","), stage, seed)
    if json_:
        print_json(to_json(found))
    else:
        print_fit(found, out(), details=LOSS_NAMES if loss == "both" else (loss,))
        if plane:
            for verdict in found.verdicts:
                if loss in (verdict.loss, "both") and verdict.stage:
                    heading = _heading(verdict.stage, verdict.compensation, verdict.loss)
                    print_map(store, verdict.stage, verdict.compensation, verdict.loss, heading, out())
    warn_damaged(store)


def _answer(
    store: "Store",
    n_runs: int | None,
    output: Path | None,
    contrast: str | None,
    stage: str | None,
    loss: str,
    json_: bool,
) -> None:
    """Suggest runs, or compare two cells."""
    from umscale.laws.contrast import contrast as compare_cells
    from umscale.laws.contrast import parse_contrast
    from umscale.laws.suggest import suggest
    from umscale.spec import read_toml

    if contrast is not None:
        cells = compare_cells(
            store.columns(), *parse_contrast(contrast), stage=stage or "annealed", loss=loss
        )
        if json_:
            print_json(asdict(cells))
        else:
            print_contrast(cells, contrast, out())
    if n_runs is not None:
        tree = read_toml(store.root / "study.toml")
        found = suggest(store.columns(), tree, n_runs, stage=stage, loss=loss)
        if json_:
            print_json(asdict(found))
        else:
            print_suggestion(found, output, out())


def _ratios(store: "Store", loss: str, stage: str | None, json_: bool) -> None:
    from umscale.laws.ratio import ratio_verdicts

    losses = tuple(LOSS_NAMES) if loss == "both" else (loss,)
    found = [v for v in ratio_verdicts(store.columns(), losses=losses) if stage in (None, v.stage)]
    if json_:
        print_json([asdict(v) for v in found])
        return
    for verdict in found:
        print_ratio(verdict, _heading(verdict.stage, verdict.compensation, verdict.loss), out())


def laws() -> None:
    """List the laws that `umscale fit --law` knows, with formula and source."""
    from rich.table import Table

    from umscale.laws.forms import LAWS

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("law", "loss in nats", "source"):
        table.add_column(name, no_wrap=name == "law")
    for law in LAWS.values():
        table.add_row(law.name, law.formula, law.source)
    out().print(table)


def fit_store(
    store: "Store", laws: "list[str] | None" = None, stage: str | None = None, seed: int = 0
) -> "StudyReport":
    """Fit what a store holds; see ``umscale.laws.report.report``."""
    from umscale.laws.forms import FIRST_LAWS
    from umscale.laws.report import report

    return report(store.columns(), laws or FIRST_LAWS, stage=stage, seed=seed)


def compare_store(
    store: "Store", loss: str = "loss", baseline: str | None = None, stage: str | None = None
) -> "tuple[ArchitectureTable, ...]":
    """Compare a store's architectures; see ``umscale.laws.architectures.compare_architectures``."""
    from umscale.laws.architectures import compare_architectures

    return compare_architectures(store.columns(), loss=loss, baseline=baseline, stage=stage)


def print_architectures(found: "tuple[ArchitectureTable, ...]", loss: str, console: Any) -> None:
    """Print a table per stage and budget, best architecture first."""
    from rich.table import Table

    for one in found:
        heading = _heading(one.stage, one.compensation, loss)
        table = Table(
            title=f"Architectures: {heading}, {count(one.budget)} tokens",
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        table.add_column("architecture", no_wrap=True)
        for name in (
            "runs", "loss, nats", f"minus {one.baseline}, 95% interval", "bits/byte", "total", "active", "FLOPs/token",
            "sparse bytes read, batch 1", "batch 16", "lr",
        ):  # fmt: skip
            table.add_column(name, justify="right")
        for row in one.rows:
            costs = row.costs
            table.add_row(
                row.name,
                str(row.n_runs),
                number(row.loss),
                estimate_text(row.difference),
                number(row.bits_per_byte),
                *(count(costs[c]) for c in ("total_params", "active_params", "flops_per_token")),
                *(count(costs[c]) for c in ("access_bytes_b1", "access_bytes_b16")),
                f"{costs['lr']:.3g}",
            )
        console.print()
        console.print(table)
        noise = (
            f"{one.noise:.4f} nats ({one.freedom} degrees of freedom)" if one.freedom else "unknown: one seed"
        )
        console.print(f"run-to-run standard deviation {noise}; sparse bytes are bf16 and measured, a token")


def print_fit(found: "StudyReport", console: Any, details: "Iterable[str]" = ("loss",)) -> None:
    """Print laws and verdicts of the losses in ``details`` in full, and a line for every other verdict."""
    for section in found.sections:
        if section.loss not in details:
            continue
        console.print()
        console.print(_law_table(section))
        console.print(f"Law to use: {section.comparison.recommended} ({section.comparison.reason})")
    for line in found.skipped:
        console.print(f"not fitted: {line}")
    for verdict in found.verdicts:
        if verdict.loss in details:
            console.print()
            _print_verdict(verdict, console)
    console.print()
    for verdict in found.verdicts:
        if verdict.loss not in details:
            heading = _heading(verdict.stage, verdict.compensation, verdict.loss)
            difference = verdict.from_law.difference if verdict.from_law else None
            console.print(f"{heading}: {verdict.answer}, difference {estimate_text(difference)}")


def _heading(stage: str | None, compensation: str | None, loss: str) -> str:
    parts = [stage or "", LOSS_NAMES.get(loss, loss)]
    if compensation not in (None, "", "none"):
        parts.append(str(compensation))
    return ", ".join(p for p in parts if p)


def _law_table(section: "Section") -> Any:
    from rich.table import Table

    first = section.comparison.laws[0].fit
    table = Table(
        title=f"Laws: {_heading(section.stage, section.compensation, section.loss)} ({first.n_rows} records)",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("law", no_wrap=True)
    table.add_column("coefficients, 95% interval")
    for name in ("parameters", "RMSE nats", "R²", "AICc", "held out: largest", "sparsest", "future"):
        table.add_column(name, justify="right")
    for compared, uncertainty in zip(section.comparison.laws, section.uncertainty, strict=True):
        fit = compared.fit
        lines = []
        for name, value in uncertainty.coefficients().items():
            loose = "  not identified" if name in fit.unidentified else ""
            lines.append(f"{name} {estimate_text(value)}{loose}")
        errors = {h.edge: number(h.rmse_nats) for h in compared.holdouts}
        table.add_row(
            fit.law.name,
            "\n".join(lines),
            str(compared.n_parameters),
            number(fit.rmse_nats),
            number(fit.r_squared, 3),
            number(compared.aicc, 1),
            errors["largest"],
            errors["sparsest"],
            errors["future"],
        )
    return table


def _print_verdict(verdict: "Verdict", console: Any) -> None:
    from rich.table import Table

    heading = _heading(verdict.stage, verdict.compensation, verdict.loss)
    console.print(f"Density over size: {verdict.answer.upper()}  ({heading})", style="bold")
    console.print(f"  {verdict.reason}")
    if verdict.from_law is not None or verdict.from_pairs is not None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2))
        table.add_column("nats per token")
        table.add_column("from the law")
        table.add_column("from paired cells")
        rows = (
            ("doubling top_m buys", "delta_m"),
            ("doubling N_s buys", "delta_n"),
            ("difference", "difference"),
            ("(m, 2 N_s) minus (3 m, N_s)", "paper"),
        )
        for title, name in rows:
            table.add_row(title, _contrast(verdict.from_law, name), _contrast(verdict.from_pairs, name))
        console.print(table)
    if verdict.reference:
        at = ", ".join(f"{column} {count(value)}" for column, value in verdict.reference.items())
        console.print(f"  at {at}; {verdict.n_runs} runs, {verdict.n_cells} cells, {verdict.n_seeds} seeds")
    rate = verdict.exchange_rate
    if rate is not None and rate.has_interval:
        bounds = f"[{rate.low:.3g}, {rate.high:.3g}]"
        console.print(f"  a doubling of top_m buys as much as N_s times {rate.value:.3g} {bounds}")
    if verdict.further_runs is not None:
        console.print(f"  about {verdict.further_runs} more runs like these would settle it (80% power)")
    for line in (*verdict.extrapolated, *verdict.warnings):
        console.print(f"  note: {line}")


def _contrast(contrasts: "Contrasts | None", name: str) -> str:
    return "–" if contrasts is None else estimate_text(getattr(contrasts, name))
