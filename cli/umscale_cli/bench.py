"""``umscale bench``: speed, measured beside a named reference in the same run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.console import JsonFlag, finite, note, out, print_json
from umscale_cli.options import takes_options

if TYPE_CHECKING:
    from umscale.bench.measured import Part, Report, Row, Target

app = typer.Typer(help="Measure speed beside a reference in the same run.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure speed beside a reference in the same run."""


@app.command("train")
def train(
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each variant, interleaved.")] = 7,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    top_m: Annotated[int, typer.Option(min=1)] = 32,
    n_keys: Annotated[int, typer.Option(min=1)] = 128,
    shape: Annotated[
        str,
        typer.Option(
            metavar="proxy|sweep", help="d_model 128 and 4 layers, or 64 and 2 as in recorded studies."
        ),
    ] = "proxy",
    precision: Annotated[str, typer.Option(metavar="auto|float32|bfloat16")] = "auto",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="Time a compiled nanoGPT-order model too; takes a minute."
        ),
    ] = True,
    beside: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Source tree of another version, whose own step to time too.",
            show_default=False,
        ),
    ] = None,
    losses: Annotated[
        str,
        typer.Option(
            metavar="CORPUS",
            help="Train on this corpus by the step of 0.2.0 and by today's instead, and compare losses.",
            show_default=False,
        ),
    ] = "",
    tokens: Annotated[int, typer.Option(min=1, help="With --losses.")] = 400_000,
    seeds: Annotated[int, typer.Option(min=1, help="With --losses.")] = 2,
    json_: JsonFlag = False,
) -> None:
    """Tokens per second of a training step, beside version 0.2.0's, plain PyTorch and dense models."""
    from umscale.bench.training import SHAPES, bench_losses, bench_train
    from umscale.errors import UserError

    if shape not in SHAPES:
        raise UserError(f"--shape must be one of {', '.join(SHAPES)}, not {shape!r}")
    if precision not in ("auto", "float32", "bfloat16"):
        raise UserError(f"--precision must be auto, float32 or bfloat16, not {precision!r}")
    if losses:
        from umscale.data.corpus import open_corpus

        note(f"training {2 * seeds} models on {tokens:,} tokens each ...")
        found = bench_losses(open_corpus(losses), tokens, seeds, top_m, n_keys, precision)
        print_json(found) if json_ else _print_losses(found)
        return
    note(f"timing {rounds} interleaved steps of each variant on {threads} thread(s) ...")
    result = bench_train(
        rounds, threads, top_m, n_keys, shape=shape, precision=precision, compiled=compiled, beside=beside
    )
    print_json(result) if json_ else _print_training(result)


def _print_training(result: dict[str, Any]) -> None:
    table = _table(
        f"{result['model']}; {result['machine']}, {result['threads']} thread(s), {result['precision']}"
    )
    for name in ("variant", "tokens/s", "ms/step", "spread", "of matmul rate", "vs plain"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for row in result["variants"]:
        table.add_row(
            row["name"],
            f"{row['tokens_per_second']:,.0f}",
            f"{1e3 * row['seconds']:.0f}",
            f"{row['spread']:.0%}",
            f"{row['matmul_share']:.0%}",
            f"{row['vs_plain']:.2f}x",
        )
    console: Any = out()
    console.print(table)
    for name, ratio in result["ratios"].items():
        console.print(f"{name}: {ratio:.2f}x (median of rounds)", soft_wrap=True)
    console.print(
        f"measured matmul rate {result['matmul_flops'] / 1e9:.0f} GFLOP/s "
        f"(at which the model's {result['flops_per_token'] / 1e6:.2f} MFLOP a trained token allow "
        f"{result['matmul_flops'] / result['flops_per_token']:,.0f} tokens/s)"
    )
    console.print("where a step goes:")
    for part, share in result["profile"].items():
        console.print(f"  {part:<34} {share:.0%}")


def _print_losses(found: dict[str, Any]) -> None:
    names = [name for name in found["rows"][0] if name not in ("seed", "difference")]
    table = _table(f"mean loss of the last tenth of {found['tokens']:,} tokens, nats; {found['precision']}")
    for name in ("seed", *names, "difference"):
        table.add_column(name, justify="right")
    for row in found["rows"]:
        losses = (f"{row[name]:.4f}" for name in names)
        table.add_row(str(row["seed"]), *losses, f"{row['difference']:+.4f}")
    console: Any = out()
    console.print(table)
    console.print(f"largest difference between seeds of one step: {found['between_seeds']:.4f}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelsOptions:
    """Options of ``umscale bench kernels``."""

    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="With --json: write it there and print the tables.", show_default=False
        ),
    ] = None
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Sets the parts and their shapes.")] = "cpu"
    threads: Annotated[int, typer.Option(min=1)] = 1
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Timed calls of each variant, interleaved; default 7, on a GPU 20.",
            show_default=False,
        ),
    ] = None
    only: Annotated[
        str,
        typer.Option(
            metavar="PART,..",
            help="Parts: layer, select, lookup, shared, blocks, wide, scores, peers; tables (cpu); "
            "backward, adamw (cuda).",
            show_default=False,
        ),
    ] = ""
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Another shape: tokens, d_model, n_keys, top_m, d_key, d_pre_value, d_value, table_rows; repeatable.",
        ),
    ] = None
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Time torch.compile too, which takes a minute.")
    ] = True
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False
    json_: JsonFlag = False


@app.command("kernels")
@takes_options
def kernels(asked: KernelsOptions) -> None:
    """The memory layer and its kernels, beside what they replace and what bounds them."""
    from umscale.bench.kernels import bench_kernels
    from umscale.errors import UserError

    if asked.file is not None and not asked.json_:
        raise UserError(f"{asked.file} is where --json writes; add --json")
    if asked.file is not None and not asked.file.parent.is_dir():
        raise UserError(f"{asked.file}: there is no folder {asked.file.parent}")
    report = bench_kernels(
        asked.device,
        threads=asked.threads,
        rounds=asked.rounds,
        only=[name.strip() for name in asked.only.split(",") if name.strip()],
        overrides=asked.set_ or [],
        compiled=asked.compiled,
        progress=lambda what: note(f"measuring: {what} ..."),
    )
    if asked.json_ and asked.file is None:
        print_json(report.to_dict())
        return
    if asked.file is not None:
        asked.file.write_text(
            json.dumps(finite(report.to_dict()), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        note(f"wrote {asked.file}")
    if asked.markdown:
        _print_markdown(report)
    else:
        _print_tables(report)


@app.command("fit")
def fit(
    table: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TABLE]",
            help="CSV with columns N, D and loss; default a synthetic table of 240 rows.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each variant, interleaved.")] = 5,
    sample: Annotated[int, typer.Option(min=1, help="Starts of the grid given to scipy in a round.")] = 16,
    kinds_: Annotated[
        bool,
        typer.Option(
            "--kinds",
            help="Instead: random tables of ten kinds of law; how often is the least objective found?",
        ),
    ] = False,
    tables: Annotated[int, typer.Option(min=1, help="Tables of each kind.")] = 30,
    only: Annotated[
        str | None, typer.Option(metavar="KIND", help="One kind of --kinds.", show_default=False)
    ] = None,
    objective: Annotated[str, typer.Option(help="Of --kinds: least_squares or huber.")] = "least_squares",
    json_: JsonFlag = False,
) -> None:
    """A fit of the Chinchilla law, beside L-BFGS-B from the usual grid of 4500 starts; or ten kinds of other laws."""
    if kinds_:
        _kinds(tables, only, objective, json_)
        return
    from umscale.bench.law_fit import bench_fit

    note("timing fits; the whole grid by Newton takes up to two minutes ...")
    result = bench_fit(table, rounds=rounds, sample=sample)
    if json_:
        print_json(result)
        return
    shown = _table(f"{result['table']}: {result['rows']} rows, least objective {result['objective']:.15g}")
    for name in ("variant", "seconds", "spread", "starts", "timed", "at the optimum", "gap to the least"):
        shown.add_column(name, justify="left" if name == "variant" else "right")
    for row in result["variants"]:
        share = row["at_optimum"]
        extrapolated = row["timed"] < row["starts"]
        shown.add_row(
            row["name"],
            f"{row['seconds']:.3g}" + (" (extrapolated)" if extrapolated else ""),
            f"{row['spread']:.0%}",
            str(row["starts"]),
            str(row["timed"]),
            "–" if share is None else f"{share:.0%}",
            "–" if row["gap"] is None else f"{row['gap']:.1e}",
        )
    out().print(shown)


@app.command("intervals")
def intervals(
    tables: Annotated[int, typer.Option(min=1, help="Tables of each kind of noise.")] = 40,
    coefficient: Annotated[str, typer.Option(help="E, A, alpha, B or beta.")] = "alpha",
    json_: JsonFlag = False,
) -> None:
    """How often 95% intervals hold the truth, under equal, heteroscedastic, heavy-tailed and grouped noise."""
    from umscale.bench.law_coverage import TRUTH, run_coverage
    from umscale.errors import UserError, nearest

    if coefficient not in TRUTH:
        raise UserError(
            f"--coefficient {coefficient!r} must be one of {', '.join(TRUTH)}{nearest(coefficient, TRUTH)}"
        )
    rows = run_coverage(tables, coefficient=coefficient)
    if json_:
        print_json(rows)
        return
    for row in rows:
        shares = ", ".join(f"{method} {share:.0%}" for method, share in row["coverage"].items())
        out().print(f"{row['noise']}: {shares} of {row['tables']} tables", soft_wrap=True)


@app.command("compare")
def compare(
    tables: Annotated[int, typer.Option(min=1, help="Tables under each truth.")] = 40,
    laws: Annotated[str, typer.Option(help="Names of laws, apart by commas.")] = "P0,P1,P0_log",
    json_: JsonFlag = False,
) -> None:
    """How often `umscale fit --compare` names the true law, where an extra term is noise and where it is real."""
    from umscale.bench.law_choice import run_choices
    from umscale.laws.forms import law_named

    names = [law_named(name.strip()).name for name in laws.split(",")]
    rows = run_choices(tables, laws=names)
    if json_:
        print_json(rows)
        return
    for row in rows:
        named = ", ".join(f"{name} {n}" for name, n in row["named"].items())
        truth = f"truth {row['truth']} (N_s has {row['share']:.0%} of the exponent)"
        out().print(f"{truth}: named of {row['tables']} tables: {named}", soft_wrap=True)


def _kinds(n_tables: int, only: str | None, objective: str, json_: bool) -> None:
    from umscale.bench.law_forms import KINDS, run_kinds
    from umscale.errors import UserError, nearest

    if only is not None and only not in KINDS:
        raise UserError(f"--only {only!r} must be one of {', '.join(KINDS)}{nearest(only, KINDS)}")
    if objective not in ("least_squares", "huber"):
        raise UserError(f"--objective {objective!r} must be least_squares or huber")
    note("fitting tables of each kind, and scipy beside it, for some minutes ...")
    rows = run_kinds(n_tables, objective="huber" if objective == "huber" else "least_squares", only=only)
    if json_:
        print_json(rows)
        return
    shown = _table(
        f"{n_tables} tables of each kind, {objective}; scipy's least_squares from 10 random starts each"
    )
    for name in ("kind", "law", "least objective", "CPU s", "longest", "own starts", "scipy's starts"):
        shown.add_column(name, justify="left" if name in ("kind", "law") else "right")
    for row in rows:
        shown.add_row(
            row["name"],
            row["formula"],
            f"{row['reached']}/{row['tables']}",
            f"{row['seconds']:.2f}",
            f"{row['longest_seconds']:.2f}",
            f"{row['starts_at_optimum']:.0%}",
            f"{row['peer_share']:.0%}",
        )
    out().print(shown)


@app.command("sweep")
def sweep(
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Most workers to try; default: physical cores.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Training time of a run.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Sweeps of each size, each beside its peer.")] = 3,
    runs: Annotated[int, typer.Option(min=20, help="Runs to schedule without training.")] = 10_000,
    records: Annotated[int, typer.Option(min=100, help="Records of the store.")] = 100_000,
    json_: JsonFlag = False,
) -> None:
    """What a sweep adds to the training: throughput, scheduling, the store, memory of the parent."""
    from umscale.bench.sweep_overhead import bench_sweep

    result = bench_sweep(
        workers=workers, seconds=seconds, rounds=rounds, runs=runs, records=records, progress=note
    )
    if json_:
        print_json(result)
        return
    _print_overhead(result, out())


def _print_overhead(result: dict[str, Any], console: Any) -> None:
    """Print throughput beside independent processes, and where the rest of the time goes."""
    table = _table(f"throughput; {result['machine']}; runs of {result['seconds_a_run']:g} s, one thread each")
    for name in ("workers", "runs", "sweep", "independent processes", "tokens/s", "efficiency", "rounds"):
        table.add_column(name, justify="right")
    for row in result["throughput"]:
        table.add_row(
            str(row["workers"]),
            str(row["runs"]),
            f"{row['seconds']:.1f} s",
            f"{row['independent_seconds']:.1f} s",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['efficiency']:.1%}",
            " ".join(f"{e:.1%}" for e in row["efficiencies"]),
        )
    console.print(table)
    part = result["wall"]
    whole = part["workers"] * part["seconds"]
    console.print(
        f"\n{part['runs']} runs on {part['workers']} workers took {part['seconds']:.1f} s; of {whole:.1f} s of workers"
    )
    for name, spent in part["parts"].items():
        console.print(f"  {name:<34}{spent:6.1f} s  {spent / whole:6.1%}")
    part = result["scheduling"]
    console.print(
        f"\nscheduling {part['runs']:,} runs, {part['workers']} workers, training left out\n"
        f"  planning                        {1e3 * part['planning_seconds_a_run']:.2f} ms a run\n"
        f"  claim, write, report, release   {1e3 * part['seconds_a_run']:.2f} ms a run\n"
        f"    of which writing its rows     {1e3 * part['writing_seconds_a_run']:.2f} ms on one thread\n"
        f"  what is left, asked anew        {part['first_look_seconds']:.2f} s for all\n"
        f"  memory of the parent            {part['memory_bytes'][0] / 2**20:.0f} MiB after a tenth, "
        f"{part['memory_growth_bytes'] / 2**20:+.1f} MiB at the end"
    )
    part = result["store"]
    console.print(
        f"\nstore of {part['records']:,} records in {part['files']:,} files, {part['bytes'] / 2**20:.0f} MiB\n"
        f"  writing                         {1e3 * part['writing_seconds_a_run']:.2f} ms a run; the bytes alone, "
        f"flushed, {1e3 * part['plain_writing_seconds_a_file']:.2f} ms\n"
        f"  scan into Arrow                 {part['later_scan_seconds']:.2f} s; "
        f"the first {part['first_scan_seconds']:.2f} s\n"
        f"    one file of all rows          {part['one_file_seconds']:.2f} s; pyarrow.dataset "
        f"{part['pyarrow.dataset_seconds']:.2f} s\n"
        f"  statuses of all runs            {part['statuses_seconds']:.2f} s"
    )


def _print_tables(report: "Report") -> None:
    console: Any = out()
    console.print(_machine_line(report), soft_wrap=True)
    for part in report.parts:
        console.print(f"\n{_title(part)}", soft_wrap=True, style="bold")
        table = _table()
        if part.rows:
            for i, heading in enumerate(_headings(part)):
                table.add_column(heading, justify="left" if i == 0 else "right")
            for row in part.rows:
                table.add_row(*_cells(part, row))
            console.print(table)
        for text in part.notes:
            console.print(f"  {text}", soft_wrap=True)


def _print_markdown(report: "Report") -> None:
    print(_machine_line(report))
    for part in report.parts:
        print(f"\n**{_title(part)}**")
        if part.rows:
            headings = _headings(part)
            print(f"\n| {' | '.join(headings)} |")
            print(f"| --- |{' ---: |' * (len(headings) - 1)}")
            for row in part.rows:
                print(f"| {' | '.join(_cells(part, row))} |")
        if part.notes:
            print("\n" + "; ".join(part.notes) + ".")


def _machine_line(report: "Report") -> str:
    machine, settings, limits = report.machine, report.settings, report.limits
    gpu = machine.get("gpu")
    where = gpu["name"] if gpu else f"{machine['machine']}, {settings['threads']} thread(s)"
    return (
        f"{where}, torch {machine['versions']['torch']}; matrix products {limits['matmul_flops'] / 1e9:,.0f} GFLOP/s, "
        f"copy {limits['copy_bytes_per_second'] / 1e9:,.1f} GB/s (read + written); medians of {settings['rounds']} "
        "interleaved rounds"
    )


def _title(part: "Part") -> str:
    return f"{part.title} ({', '.join(f'{name} {value}' for name, value in part.shape.items())})"


def _headings(part: "Part") -> list[str]:
    with_unit = (f"{label}, ms" if key.endswith("_seconds") else label for key, label in part.columns.items())
    return ["variant", *with_unit, *(["target"] if any(row.targets for row in part.rows) else [])]


def _cells(part: "Part", row: "Row") -> list[str]:
    cells = [row.name, *(_cell(key, row.figures.get(key)) for key in part.columns)]
    if any(r.targets for r in part.rows):
        cells.append("; ".join(_target(part, row, target) for target in row.targets))
    return cells


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return ""
    unit = key.rpartition("_")[2]
    if unit == "seconds":
        return f"{1e3 * value:.3g}" if value < 0.1 else f"{1e3 * value:,.0f}"
    if unit in ("spread", "fraction"):
        return f"{value:.0%}"
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    return f"{value:.2f}"


def _target(part: "Part", row: "Row", target: "Target") -> str:
    sign = "≥" if target.at_least else "≤"
    verdict = "met" if target.met(row.figures) else "missed"
    return f"{part.columns[target.figure]} {sign} {_cell(target.figure, target.bound)}: {verdict}"


def _table(title: str | None = None) -> Any:
    from rich.table import Table

    return Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
