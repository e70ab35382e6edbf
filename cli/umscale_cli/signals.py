"""SIGTERM and SIGHUP take the path of Ctrl-C: workers write checkpoints, and the exit code is 128 + the signal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What a container, a scheduler or a closed terminal sends."""
_WORDS = {signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal is gone"}


class Ended(KeyboardInterrupt):
    """A signal asked this command to end."""


class Received:
    """The first of the signals that came, if one did."""

    signum: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that died of the signal; of Ctrl-C without one."""
        return 128 + (self.signum or signal.SIGINT)

    @property
    def words(self) -> str:
        """Why the command ends."""
        return _WORDS.get(self.signum, "interrupted") if self.signum else "interrupted"


@contextmanager
def handled() -> Iterator[Received]:
    """Raise ``Ended`` in the main thread when a signal of ``ENDING`` comes; the later ones find the work in hand.

    One that was ignored from the beginning, as under ``nohup``, stays so.
    """
    received = Received()

    def end(signum: int, frame: FrameType | None) -> None:
        if received.signum is None:
            received.signum = signal.Signals(signum)
            raise Ended

    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
