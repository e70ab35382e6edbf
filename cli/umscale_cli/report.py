"""``umscale report``: one self-contained page, and Markdown beside it, from a study's results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umscale_cli.console import JsonFlag, print_json
from umscale_cli.runs import StudyArgument, open_store, results_folder, warn_damaged

if TYPE_CHECKING:
    from umscale.say.blocks import Page


def report(
    study: StudyArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER|FILE.html",
            help="Where to write; default report/ in the store, ./umscale-runs/STUDY/report for a recorded one.",
            show_default=False,
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option(help="Also write Markdown, with its figures in a folder.")] = True,
    json_: JsonFlag = False,
) -> None:
    """Write a report of a study as one HTML page that needs no network: answer, design, cost, figures, laws, limits.

    Prints the paths it wrote. The same store gives the same page.
    """
    from umscale.errors import UserError
    from umscale.report.build import build

    if out is not None and out.suffix and out.suffix != ".html" and not out.is_dir():
        raise UserError(f"--out {str(out)!r} must be a folder or a file that ends in .html")
    store = open_store(study)
    page = build(store, study)
    target = out or results_folder(store, study) / "report"
    target = target if target.suffix == ".html" else target / "report.html"
    paths = _write(page, target, markdown)
    if json_:
        answers = [{"verdict": one.verdict, "text": one.text} for one in page.answers]
        print_json(
            {
                "study": page.title,
                "question": page.question,
                "answers": answers,
                "files": list(map(str, paths)),
            }
        )
    else:
        for path in paths:
            print(path)
    warn_damaged(store)


def _write(page: "Page", target: Path, markdown: bool) -> list[Path]:
    """Write the page and, beside it under the same name, its Markdown with the figures."""
    from umscale.errors import UserError
    from umscale.files import atomic_path
    from umscale.render.html import to_html
    from umscale.render.markdown import to_markdown
    from umscale.say.blocks import SIGNATURE

    contents = {}
    text, figures = target.with_suffix(".md"), target.with_name(f"{target.stem}-figures")
    if markdown:
        contents = {figures / picture.file[0]: picture.file[1] for picture in page.pictures}
        contents[text] = to_markdown(page, figures.name).encode()
    contents[target] = to_html(page).encode()
    # All that can be foreseen goes wrong before anything is written.
    for path in contents:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder")
    if markdown and figures.exists() and not figures.is_dir():
        raise UserError(f"cannot write {figures}: it is no folder")
    if markdown and text.exists() and SIGNATURE not in text.read_text(encoding="utf-8", errors="replace"):
        raise UserError(
            f"{text} is not of `umscale report`; choose another name with --out, or --no-markdown"
        )
    for path, content in contents.items():
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    return [target, *([text] if markdown else []), *(path for path in contents if path not in (target, text))]
