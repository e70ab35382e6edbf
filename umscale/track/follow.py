"""Keeps a tracker up to a sweep that runs; whatever goes wrong with it is said once, and the sweep goes on."""

import threading
from collections.abc import Callable
from types import TracebackType

from umscale.store.store import Store
from umscale.track.trackers import Tracker, mirror

LAST_SECONDS = 60.0
"""For which the end of a sweep waits for a tracker."""


class Following:
    """A thread that mirrors a store whenever it is told that something was recorded.

    Args:
        store: the address of the store, which the thread opens for itself.
        open_tracker: called in the thread, for some trackers ask a server.
        say: takes the line that says why tracking ended.
    """

    def __init__(self, store: str, open_tracker: Callable[[], Tracker], say: Callable[[str], None]) -> None:
        self._store, self._open, self._say = store, open_tracker, say
        self._news, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)

    def __enter__(self) -> "Following":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._news.set()
        self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            self._say(f"the tracker did not finish within {LAST_SECONDS:.0f} s; `umscale track` completes it")

    def news(self) -> None:
        """Say that something was recorded."""
        self._news.set()

    def _run(self) -> None:
        try:
            store, tracker = Store.open(self._store), self._open()
            over = False
            while not over:
                self._news.wait()
                self._news.clear()
                over = self._over.is_set()
                mirror(store, tracker)
        except Exception as error:  # of a library, a disk or a network: no reason to stop a sweep
            words = " ".join(str(error).split())[:300] or type(error).__name__
            self._say(f"tracking stopped, the sweep goes on: {words}")
