"""``umscale bench``: speed, measured beside a named reference in the same run."""

from typing import Annotated, Any

import typer

from umscale_cli.console import JsonFlag, note, out, print_json

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
    json_: JsonFlag = False,
) -> None:
    """Tokens per second of a training step, beside plain PyTorch and the backbone without memory."""
    from umscale.benchmark import bench_train

    note(f"timing {rounds} interleaved steps of each variant on {threads} thread(s) ...")
    result = bench_train(rounds=rounds, threads=threads, top_m=top_m, n_keys=n_keys)
    if json_:
        print_json(result)
        return
    from rich.table import Table

    table = Table(
        title=f"{result['model']}; {result['machine']}, {threads} thread(s), {result['precision']}",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
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
    console.print(
        f"measured matmul rate {result['matmul_flops'] / 1e9:.0f} GFLOP/s "
        f"(at which the model's {result['flops_per_token'] / 1e6:.2f} MFLOP a trained token allow "
        f"{result['matmul_flops'] / result['flops_per_token']:,.0f} tokens/s)"
    )
    console.print("where a step goes:")
    for part, share in result["profile"].items():
        console.print(f"  {part:<34} {share:.0%}")
