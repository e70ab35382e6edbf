"""The ``umscale`` command: registers the commands and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 bad input or usage, 3 partly done, 130 interrupted, 143 and 129 ended by SIGTERM and
SIGHUP.
"""

import contextlib
import importlib.abc
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from umscale_cli import (
    advise,
    bench,
    cost,
    data,
    doctor,
    fit,
    generate_eval_export,
    importing,
    optimal,
    parts,
    plan,
    plot,
    predict,
    report,
    runs,
    search,
    selftest,
    signals,
    simulate,
    sweep,
    track,
    train,
    watch,
    worker,
)
from umscale_cli.console import EXIT_FAILED, Stdout, close_stdout, note, prepare_streams

INTERRUPTED = 130

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
app.command("parts")(parts.parts)
app.command("plot")(plot.plot)
app.command("report")(report.report)
app.command("watch")(watch.watch)
app.command("track")(track.track)
app.command("runs")(runs.runs)
app.command("show")(runs.show)
app.command("pack")(runs.pack)
app.command("import")(importing.import_)
app.command("generate")(generate_eval_export.generate)
app.command("eval")(generate_eval_export.evaluate)
app.command("export")(generate_eval_export.export)
app.command("predict")(predict.predict)
app.command("optimal")(optimal.optimal)
app.command("plan")(plan.plan)
app.command("advise")(advise.advise)
app.command("simulate")(simulate.simulate)
app.command("cost")(cost.cost)
app.command("doctor")(doctor.doctor)
for _command in app.registered_commands:  # whole, where typer would cut what it takes from the docstring
    _command.short_help = (_command.callback.__doc__ or "").strip().partition("\n")[0]
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
    prepare_streams()
    with signals.handled() as received, _without_pandas():
        code = _run(received)
    sys.exit(code)


class _NoPandas(importlib.abc.MetaPathFinder):
    """Finds that there is no pandas, unless torch is loaded: it looks for it, and takes longer anyway."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Raise ModuleNotFoundError for pandas; leave everything else to others."""
        if fullname == "pandas" and "torch" not in sys.modules:
            raise ModuleNotFoundError("pandas is left out of this process", name="pandas")


@contextlib.contextmanager
def _without_pandas() -> Iterator[None]:
    """Keep pandas out of this process: pyarrow imports it where it can, which doubles the time to start."""
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _run(received: signals.Received) -> int:
    """Run the command line; return the exit code."""
    from umscale.errors import UserError

    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        if received.signum or code == INTERRUPTED:  # typer has turned the exception into a code
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except UserError as error:
        note(f"umscale: {error}")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        note(f"umscale: {received.words}")
        return received.exit_code
    except BrokenPipeError:  # the reader of our output is gone, as with `| head`
        close_stdout()
        return EXIT_FAILED
    except OSError as error:
        if not (isinstance(sys.stdout, Stdout) and error is sys.stdout.lost):
            raise
        close_stdout()
        note(f"umscale: the output cannot be written ({error.strerror})")
        return EXIT_FAILED
    except Exception as error:
        message = getattr(error, "format_message", None)  # click's usage errors
        if message is None:
            raise
        note(f"umscale: {message()} (see umscale --help)")
        return 2


if __name__ == "__main__":
    main()
