"""``umscale parts``: what installed packages add to umscale, and whether it can be loaded."""

from typing import Annotated, Any

import typer

from umscale_cli.console import JsonFlag, print_json, show


def parts(
    check: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Run the contract of umscale.testing on this part; exit 2 where it is broken.",
            show_default=False,
        ),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """List the memories, optimisers, laws, questions and evaluations that installed packages offer."""
    from umscale.say.blocks import Grid, Paragraph
    from umscale.testing import states

    if check is not None:
        _check(check, json_)
        return
    found = states()
    if json_:
        print_json(found)
        return
    if not found:
        show([Paragraph(text="No installed package offers a part; docs/own-parts.md says how one does.")])
        return
    head = ("kind", "name", "package", "target", "state")
    rows = tuple(tuple(row[name] for name in head) for row in found)
    show([Grid(caption="", head=head, sides="lllll", rows=rows)])


def _check(name: str, json_: bool) -> None:
    from umscale.errors import UserError
    from umscale.testing import Broken, check_named

    try:
        done: list[dict[str, Any]] = check_named(name)
    except Broken as error:
        raise UserError(str(error)) from None
    if json_:
        print_json(done)
        return
    for one in done:
        print(f"{one['kind']} {name} of {one['package']}: {', '.join(one['checked'])}: all as they should be")
