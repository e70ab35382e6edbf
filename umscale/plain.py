"""Text from strangers' files as it may be shown."""


def plain(text: str) -> str:
    """Return text from a file or a user as it may be shown: what would break the line or steer a terminal is escaped.

    Labels, reasons and names come from stores and tables that anybody may have made. Everything that Unicode does not
    call printable goes: control characters of both sets, line separators, marks that reverse the writing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plain_lines(text: str) -> str:
    """Return ``plain`` text that may have several lines."""
    return text if text.isprintable() else "\n".join(map(plain, text.split("\n")))
