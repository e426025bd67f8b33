"""A thread that looks at the clock, and so finds the time for which this process was not running."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

_EVERY: Final = 0.25  # seconds between two looks
_FOR: Final = 60.0  # seconds after the last question


class Ticker:
    """Measures the longest gap between two looks at the clock. It runs for a minute after each `look`.

    A platform that gives a process no CPU between requests shows as a gap as long as the pause between them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # nothing waits while it is held
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._count = 0
        self._until = self._since = self._last = self._gap = self._gap_ended = 0.0

    def look(self) -> dict[str, float]:
        """Return how often the ticker looked, the seconds since it began, its longest gap, and those since its end."""
        now = self._clock()
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # it was never begun, is over, or was not forked
                self._since = self._last = self._gap_ended = now
                self._gap, self._count = 0.0, 0
                self._closed = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self._closed,), name="sse-ticker", daemon=True)
                self._thread.start()
            self._until = now + _FOR
            self._note(now)
            return {
                "count": self._count,
                "since": round(now - self._since, 3),
                "longest_gap": round(self._gap, 3),
                "ago": round(now - self._gap_ended, 3),
            }

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if (thread := self._thread) and thread.is_alive():
            thread.join(5)

    def _run(self, closed: threading.Event) -> None:
        while not closed.wait(_EVERY):
            with self._lock:
                now = self._clock()
                self._note(now)
                if now >= self._until:
                    self._thread = None
                    return

    def _note(self, now: float) -> None:
        gap = now - self._last
        self._last = now
        self._count += 1
        if gap > self._gap:
            self._gap, self._gap_ended = gap, now
