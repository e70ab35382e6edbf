"""``umscale plot``: figures of a study's results, or of any table's laws."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from umscale.store.schema import is_probe_column
from umscale_cli.completion import sources
from umscale_cli.console import note, out, print_json
from umscale_cli.law_options import read_laws
from umscale_cli.options import takes_options
from umscale_cli.runs import open_store, results_folder, warn_damaged
from umscale_cli.selection import SelectionOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from umscale.figures.gallery import Gallery
    from umscale.results.table import Table
    from umscale.store.store import Store

T = TypeVar("T")

FORMATS = ("png", "svg", "pdf")
_READ_BY_FIGURES = ("C", "r")
"""Symbols that may be mapped although no law reads them: figures do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotOptions(SelectionOptions):
    """Options of ``umscale plot``."""

    source: Annotated[
        str | None,
        typer.Argument(
            help="A results store, the name of a study, or a table: .csv, .tsv, .parquet, .jsonl, also with .gz.",
            autocompletion=sources,
            show_default=False,
        ),
    ] = None
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KIND",
            help="Figures by name, see --list; default all that the data can give.",
            show_default=False,
        ),
    ] = None
    list_: Annotated[
        bool,
        typer.Option("--list", help="Say what there is to draw, of a source what it can give, and exit."),
    ] = False
    term: Annotated[
        bool, typer.Option("--term", help="Draw in the terminal instead; needs umscale[term].")
    ] = False
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder to write to; default figures/ in the store, TABLE-figures/ here for a table.",
            show_default=False,
        ),
    ] = None
    format_: Annotated[str, typer.Option("--format", help="Comma-separated: png, svg, pdf.")] = "png"
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv", help="Also write the points and lines of all figures.", show_default=False
        ),
    ] = None


@takes_options
def plot(asked: PlotOptions) -> None:
    """Draw figures of a study, or of any table and its laws; prints the paths it wrote.

    Of a study without --law the law that `umscale fit` recommends is drawn.
    """
    from umscale.errors import UserError
    from umscale.figures.kinds import KINDS

    if asked.source is None:
        if not asked.list_:
            raise UserError("plot needs a study or a table; --list says what there is to draw")
        _list(None, asked.json_)
        return
    named = tuple(dict.fromkeys(asked.kinds or ()))
    _check(named, KINDS, "kind of figure")
    _check(asked.format_.split(","), FORMATS, "format")
    gallery, store = _gallery(asked, asked.source)
    if asked.list_:
        _list(gallery, asked.json_)
    elif asked.term:
        _print(gallery, named, asked.source)
    else:
        paths = _write(asked, gallery, named, asked.out_dir or _folder(store, asked.source))
        if asked.json_:
            print_json([str(path) for path in paths])
        else:
            for path in paths:
                print(path)
    for line in gallery.skipped if asked.law else ():
        note(f"not fitted: {line}")
    if store:
        warn_damaged(store)


def _gallery(asked: PlotOptions, source: str) -> "tuple[Gallery, Store | None]":
    """What is drawn from, and the store of a study."""
    from umscale.errors import UserError
    from umscale.figures.gallery import Gallery
    from umscale.laws.sections import Settings
    from umscale.results.source import is_table, read_table, rows_and_columns

    store: Store | None = None
    if is_table(source):
        if asked.loss != "loss":
            raise UserError(f"--loss needs a study: name the loss of {source} with --map loss=COLUMN")
        whole = read_table(source)
    else:
        if asked.drop_invalid:
            raise UserError("--drop-invalid is for tables: a study's rows without a loss are always left out")
        store = open_store(source)
        whole = store.columns()
        _check((asked.loss,), ("loss", "loss_ema", *filter(is_probe_column, whole)), "loss")
    mapping = asked.mapping
    table, columns = rows_and_columns(whole, asked.where, mapping)
    measured = columns.pop("loss", None)
    extra = tuple(symbol for symbol in mapping if symbol in columns and symbol not in _READ_BY_FIGURES)
    settings = Settings(columns=columns, group=asked.group)
    if store is None:
        settings = replace(settings, is_study=False, extra=extra, drop_invalid=asked.drop_invalid)
    gallery = Gallery(
        table,
        laws=read_laws(asked.law, table, columns, mapping, (), asked.where) if asked.law else (),
        question=store.question() if store else "",
        loss=measured or asked.loss,
        stage=asked.stage,
        settings=settings,
        training=partial(_curves, store, table) if store else None,
        seed=asked.seed,
    )
    return gallery, store


def _write(asked: PlotOptions, gallery: "Gallery", named: Sequence[str], folder: Path) -> list[Path]:
    """Draw into ``folder``; returns the paths, that of --data last."""
    from umscale.files import write_text

    paths, numbers = [], ["figure,panel,series,drawn_as,x,y"]
    for name, figure in _figures(gallery, named, str(asked.source)):
        paths += _save(figure, folder / name, asked.format_.split(","))
        numbers += _numbers(name, figure) if asked.data else []
    if asked.data:
        write_text(asked.data, "\n".join([*numbers, ""]))
        paths.append(asked.data)
    return paths


def _list(gallery: "Gallery | None", json_: bool) -> None:
    """Print every kind of figure: what it shows, what it needs and, of a gallery, whether it can be drawn."""
    from umscale.errors import UserError
    from umscale.figures.kinds import KINDS

    found = []
    for name, kind in KINDS.items():
        entry: dict[str, Any] = {"kind": name, "shows": kind.shows, "needs": kind.needs}
        if gallery is not None:
            try:
                entry |= {"figures": [f"{name}{suffix}" for suffix in kind.draw(gallery)], "why_not": ""}
            except UserError as error:
                entry |= {"figures": [], "why_not": str(error)}
        found.append(entry)
    if json_:
        print_json(found)
        return
    width = max(map(len, KINDS)) + 2
    for entry in found:
        words = f"{entry['shows']}; needs {entry['needs']}"
        if gallery is not None:
            words = entry["shows"] if entry["figures"] else f"no: {entry['why_not']}"
        out().print(f"{entry['kind']:<{width}}{words}", soft_wrap=True)


def plot_store(store: "Store", names: Sequence[str], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Draw the named figures of a store into ``folder`` and return the paths, one a figure and format."""
    from umscale.figures.gallery import Gallery

    gallery = Gallery(store.columns(), question=store.question(), training=store.curves)
    drawn = _figures(gallery, names, store.name)
    return [path for name, figure in drawn for path in _save(figure, folder / name, formats)]


def _check(given: Iterable[str], known: Iterable[str], what: str) -> None:
    from umscale.errors import UserError, nearest

    for one in given:
        if one not in known:
            raise UserError(f"no {what} is called {one!r}{nearest(one, known)}")


def _folder(store: "Store | None", source: str) -> Path:
    if store is None:
        return Path(f"{Path(source).name.partition('.')[0]}-figures")
    return results_folder(store, source) / "figures"


def _curves(store: "Store", table: "Table") -> "Table":
    """The training curves of the runs in ``table``; of all, running ones too, while none has finished."""
    import numpy as np

    found = store.curves()
    chosen = np.isin(found["run_id"].astype(str), table["run_id"].astype(str)) | (not len(table["run_id"]))
    return {name: column[chosen] for name, column in found.items()}


def _drawn(named: Sequence[str], source: str, draw: Callable[[str], Iterable[T]]) -> Iterator[T]:
    """What ``draw`` gives for each kind; of all kinds those that the data cannot give are noted and skipped."""
    from umscale.errors import UserError
    from umscale.figures.kinds import KINDS

    something = False
    for kind in named or KINDS:
        try:
            found = draw(kind)
        except UserError as error:
            if named:
                raise UserError(f"{kind}: {error}") from None
            note(f"{kind}: {error}")
            continue
        something = True
        yield from found
    if not something:
        raise UserError(f"{source} can give no figure, for the reasons above")


def _figures(gallery: "Gallery", named: Sequence[str], source: str) -> "Iterator[tuple[str, Figure]]":
    """File names without suffix, each with its figure."""
    from umscale.figures.kinds import KINDS

    def draw(kind: str) -> "Iterable[tuple[str, Figure]]":
        return [(f"{kind}{suffix}", figure) for suffix, figure in KINDS[kind].draw(gallery).items()]

    return _drawn(named, source, draw)


def _save(figure: "Figure", stem: Path, formats: Sequence[str]) -> list[Path]:
    from umscale.plots import save

    return [save(figure, stem.with_name(f"{stem.name}.{format_}")) for format_ in formats]


def _numbers(name: str, figure: "Figure") -> list[str]:
    """The points and lines of a figure as lines of CSV."""
    from umscale.plots.series import panels_of

    lines = []
    for panel in panels_of(figure):
        for one in panel.series:
            words = ",".join(_quoted(part) for part in (name, panel.title, one.name))
            kind = "line" if one.is_line else "points"
            lines += [
                f"{words},{kind},{x!r},{y!r}" for x, y in zip(one.x.tolist(), one.y.tolist(), strict=True)
            ]
    return lines


def _quoted(words: str) -> str:
    return '"' + words.replace('"', '""') + '"'


def _print(gallery: "Gallery", named: Sequence[str], source: str) -> None:
    """Print the figures as characters."""
    from umscale.errors import UserError
    from umscale.figures.kinds import KINDS, density_maps, density_slices
    from umscale.plots.series import panels_of
    from umscale_cli.plot_terminal import panel_text, plotext_module

    plotext = plotext_module()

    def draw(kind: str) -> list[str]:
        if kind in ("map", "slices"):
            of = density_maps if kind == "map" else density_slices
            maps = of(gallery, per_octave=1)
            return [
                "\n".join([f"{kind}{suffix}: {stage}", *one.lines(), ""])
                for suffix, stages in maps.items()
                for stage, one in stages.items()
            ]
        if not KINDS[kind].terminal:
            raise UserError("has no terminal version; leave out --term")
        figures = KINDS[kind].draw(gallery)
        return [
            panel_text(plotext, panel, f"{kind}{suffix}")
            for suffix, figure in figures.items()
            for panel in panels_of(figure)
        ]

    for text in _drawn(named, source, draw):
        print(text)
