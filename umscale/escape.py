"""Text from strangers' files as it may be shown."""

import unicodedata


def plain(text: str) -> str:
    """Return text from a file or a user as it may be shown: what would break the line or steer a terminal is escaped.

    Labels, reasons and names come from stores and tables that anybody may have made. Control characters of both sets,
    line separators and marks that reverse the writing go; letters, signs and spaces of all scripts stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def plain_lines(text: str) -> str:
    """Return ``plain`` text that may have several lines."""
    return text if text.isprintable() else "\n".join(map(plain, text.split("\n")))
