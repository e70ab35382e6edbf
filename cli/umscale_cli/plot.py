"""``umscale plot``: figures of a study's results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.console import JsonFlag, note, print_json
from umscale_cli.runs import DEFAULT_ROOT, StudyArgument, is_recorded, open_store, warn_damaged

if TYPE_CHECKING:
    from umscale.store import Store

FIGURES = {
    "density": "loss against top_m by sparse parameters, with the recommended law",
    "size": "loss against sparse parameters by top_m, with the recommended law",
    "curves": "training loss along trunk and branches",
    "architectures": "loss of every architecture beside the baseline",
}
FORMATS = ("png", "svg", "pdf")


def plot(
    study: StudyArgument,
    figures: Annotated[
        str, typer.Option(help=f"Comma-separated: {', '.join(FIGURES)}; default all that fit the question.")
    ] = "all",
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder to write to; default figures/ in the store.",
            show_default=False,
        ),
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="Comma-separated: png, svg, pdf.")] = "png",
    loss: Annotated[str, typer.Option(help="loss (raw weights) or loss_ema (averaged weights).")] = "loss",
    json_: JsonFlag = False,
) -> None:
    """Draw a study's figures; prints the paths it wrote."""
    store = open_store(study)
    folder = out_dir or (DEFAULT_ROOT / study if is_recorded(store) else store.root) / "figures"
    fitting = (
        ["architectures", "curves"] if store.question() == "architectures" else ["density", "size", "curves"]
    )
    names = fitting if figures == "all" else figures.split(",")
    paths = plot_store(store, names, folder, format_.split(","), loss)
    if json_:
        print_json([str(path) for path in paths])
    else:
        for path in paths:
            print(path)
    warn_damaged(store)


def plot_store(
    store: "Store", names: list[str], folder: Path, formats: list[str], loss: str = "loss"
) -> list[Path]:
    """Draw the named figures of a store into ``folder`` and return the paths, one a figure and format."""
    from umscale.errors import UserError, nearest
    from umscale.plots import save

    for name in names:
        if name not in FIGURES:
            raise UserError(f"no figure {name!r}{nearest(name, FIGURES)}")
    for format_ in formats:
        if format_ not in FORMATS:
            raise UserError(f"--format {format_!r} must be one of {', '.join(FORMATS)}")
    if loss not in ("loss", "loss_ema"):
        raise UserError(f"--loss {loss!r} must be loss or loss_ema")
    paths = []
    for name in names:
        try:
            drawn = _draw(store, name, loss)
        except UserError as error:
            if len(names) == 1:
                raise
            note(f"{name}: {error}")
            continue
        for suffix, figure in drawn.items():
            for format_ in formats:
                path = folder / f"{name}{suffix}.{format_}"
                save(figure, path)
                paths.append(path)
    return paths


def _draw(store: "Store", name: str, loss: str) -> dict[str, Any]:
    """Return figures by file-name suffix: one, or one for each compensation of the study."""
    from umscale.errors import UserError
    from umscale.laws.report import report
    from umscale.laws.table import levels, where
    from umscale.plots import architectures, curves, loss_vs_density, loss_vs_size

    if name == "curves":
        return {"": curves(store.curves())}
    table = store.columns()
    if not len(table["run_id"]):
        raise UserError("the store holds no finished runs yet; `umscale runs` shows what there is")
    if name == "architectures":
        return {"": architectures(table, loss=loss)}
    modes = levels(table, "compensation")
    out = {}
    for mode in modes or (None,):
        part = where(table, compensation=mode)
        fits = []
        try:
            for section in report(part, losses=(loss,)).sections:
                laws = [c.fit.law.name for c in section.comparison.laws]
                # A flat line says nothing of how flat: the band of the additive law does.
                best = section.comparison.recommended
                fits.append(section.uncertainty[laws.index("additive" if best == "null" else best)])
        except UserError as error:
            note(f"no law drawn: {error}")
        figure = (loss_vs_density if name == "density" else loss_vs_size)(part, fits, loss=loss)
        out["" if len(modes) < 2 else f"-{mode}"] = figure
    return out
