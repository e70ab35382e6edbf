"""The one exception a user can fix."""

import difflib
from collections.abc import Iterable

from umscale.escape import plain

LONGEST = 1500
"""Characters of a message."""
NAMES = 40
"""Names listed of what there is."""


class UserError(Exception):
    """Something the user can put right; the command line prints it as one line and exits with code 2.

    The message says what is wrong and what to do about it. Every other exception is a bug and keeps
    its traceback. Names from files may hold anything: what would break the line or steer a terminal is shown
    escaped, and the middle of an endless message is left out.
    """

    def __init__(self, message: str) -> None:
        shown = plain(message)
        if len(shown) > LONGEST:
            shown = f"{shown[: LONGEST // 2]} … {shown[-LONGEST // 2 :]}"
        super().__init__(shown)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or a list of what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return f"; known: {', '.join(names[:NAMES])}{more}" if names else ""
