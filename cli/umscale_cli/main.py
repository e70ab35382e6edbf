"""The ``umscale`` command: registers the commands and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 bad input or usage, 3 partly done, 130 interrupted.
"""

import os
import sys
from typing import Annotated

import typer

from umscale_cli import (
    bench,
    cost,
    data,
    fit,
    optimal,
    plan,
    plot,
    predict,
    report,
    runs,
    search,
    selftest,
    simulate,
    sweep,
    train,
    worker,
)

app = typer.Typer(
    name="umscale",
    help="Decide how to spend a sparse parameter budget: sweep, fit, plot.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: Rich's takes longer to import than all the rest
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("sweep")(sweep.sweep)
app.command("worker")(worker.worker)
app.command("train")(train.train)
app.command("search")(search.search)
app.command("fit")(fit.fit)
app.command("laws")(fit.laws)
app.command("plot")(plot.plot)
app.command("report")(report.report)
app.command("runs")(runs.runs)
app.command("show")(runs.show)
app.command("predict")(predict.predict)
app.command("optimal")(optimal.optimal)
app.command("plan")(plan.plan)
app.command("simulate")(simulate.simulate)
app.command("cost")(cost.cost)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")
app.add_typer(selftest.app, name="selftest")


def _version(value: bool) -> None:
    if value:
        from umscale import __version__

        print(f"umscale {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Decide how to spend a sparse parameter budget: sweep, fit, plot."""


def main() -> None:
    """Entry point of the ``umscale`` script."""
    from umscale.errors import UserError

    try:
        code = app(standalone_mode=False)
    except UserError as error:
        print(f"umscale: {error}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        print("umscale: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output is gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        message = getattr(error, "format_message", None)  # click's usage errors
        if message is None:
            raise
        print(f"umscale: {message()} (see umscale --help)", file=sys.stderr)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
