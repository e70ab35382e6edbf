"""A page as one HTML file that needs nothing else."""

import base64
import re
from functools import cache
from typing import TYPE_CHECKING

from umscale.escape import plain_lines
from umscale.render.vector import inline
from umscale.say.blocks import Page, Picture, spans

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

TEMPLATE = "page.html.jinja"
_INTERVAL = re.compile(r"\[[−\d.∞]+%?, [−\d.∞]+%?\]")


def to_html(page: Page) -> str:
    """Write a page as one HTML file with style and figures inside."""
    numbers = {picture.name: i for i, picture in enumerate(page.pictures, 1)}
    return plain_lines(_template().render(page=page, numbers=numbers)) + "\n"


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("umscale.render", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "spans": _spans,
        "picture": _drawn,
        "head": _breakable,
        "kind": lambda block: type(block).__name__,
    }
    return environment.get_template(TEMPLATE)


def _spans(text: str) -> "Markup":
    """Text with its `code` marked up, everything else escaped."""
    from markupsafe import Markup, escape

    parts = [
        Markup("<code>{}</code>").format(part)
        if code
        else Markup(_INTERVAL.sub(r'<span class="n">\g<0></span>', str(escape(part))))
        for part, code in spans(text)
    ]
    return Markup("").join(parts)


def _breakable(text: str) -> "Markup":
    """A column's name, which may break after an underscore or a dot."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[_.])(?=\w)", "<wbr>", str(escape(text))))


def _drawn(picture: Picture) -> "Markup":
    """A figure's element; the vector's names are its own on the page."""
    from markupsafe import Markup

    if picture.png:
        data = base64.b64encode(picture.png).decode()
        return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(picture.title, data)
    return Markup(inline(picture.svg, picture.name, picture.title))
