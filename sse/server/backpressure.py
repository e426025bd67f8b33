"""Publishers and the loop share one thread: who of them goes on, and for how long."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.event import Event
from gevent.monkey import get_original

from sse.server.agenda import BEHIND
from sse.spread import PAUSE

if TYPE_CHECKING:
    from sse.server.rows import Rows

_SLICE: Final = 0.0005  # seconds that the loop works before others have their turn, at the least
_LONGEST_SLICE: Final = 0.02  # the same, at the most
_PUBLISHING: Final = 0.01  # seconds of publishing after which the hub and the loop have their turn
_LONGEST_WAIT: Final = 1.0  # seconds that a publisher waits at the most

_thread_id = get_original("_thread", "get_ident")


class Backpressure:
    """The line of publishers that wait while this worker is late in telling what was published before.

    :param wake: sets off a round of the loop.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self.unread_since: Callable[[], float] = float
        """Tells since when announcements for many channels have waited for the hub to read them; 0 if they do not."""
        self._wake = wake
        self._rows: Rows | None = None
        self._loop: Any = None  # the greenlet whose rounds they wait for
        self._thread = _thread_id()
        self._slice_ends = 0.0
        self._publishing_since: float | None = None  # when the first publisher came after the loop's last turn
        self._line: deque[Event] = deque()  # one for each that waits, in the order in which they came

    def wait_for(self, rows: Rows, loop: Any) -> None:
        """Have publishers wait for these rows from now on, which a loop tells in this greenlet."""
        self._rows, self._loop = rows, loop

    def begin_round(self) -> None:
        """Begin the loop's first slice of a round."""
        self._slice_ends = time.monotonic() + _SLICE

    def end_round(self) -> None:
        """Let the first of the publishers look whether it may go on."""
        self._publishing_since = None
        self.let_in()

    def pause(self) -> None:
        """Let others have their turn, if the loop has had its time. For the loop alone.

        Its next slice is as long as the others took, by the time that this thread was at work. If it wrote to a fixed
        number of connections instead, all requests that wait would be served between two such portions.
        """
        if time.monotonic() >= self._slice_ends:
            used = time.thread_time()
            gevent.sleep(PAUSE)
            took = time.thread_time() - used
            self._slice_ends = time.monotonic() + min(max(took, _SLICE), _LONGEST_SLICE)
            self.end_round()

    def admit(self) -> None:
        """Wait while this worker is late in telling what was published before. Publishers call it before they store.

        It waits in two cases: over 64 rows have been late for 10 ms, or others have published for 10 ms since the last
        turn of the loop. Then publishers go on one after another, in the order in which they came, and each after a
        second at the latest. Few late rows keep nobody waiting: what comes next for their channels shares their writes.
        """
        if _thread_id() != self._thread or gevent.getcurrent() in (self._loop, gevent.get_hub()):
            return  # threads of the app's own have no turn here, and neither the loop nor gevent's hub can wait
        if self._rows is None or not self._rows.has_listeners:
            return
        if self._line or self._is_behind(self._rows):
            self._wait_in_line(self._rows)
        if self._publishing_since is None:
            self._publishing_since = time.monotonic()
            self._wake()  # so that a round comes, which sets it back at its end or at a pause

    def let_in(self) -> None:
        """Have the first of the publishers look whether it may go on."""
        if self._line:
            self._line[0].set()

    def _wait_in_line(self, rows: Rows) -> None:
        ends = time.monotonic() + _LONGEST_WAIT
        turn = Event()
        self._line.append(turn)
        try:
            while turn.wait(max(ends - time.monotonic(), 0)) and self._is_behind(rows):
                turn.clear()
        finally:
            self._line.remove(turn)
            self.let_in()

    def _is_behind(self, rows: Rows) -> bool:
        now = time.monotonic()
        if self._publishing_since is not None and now - self._publishing_since > _PUBLISHING:
            return True
        if (late := self.unread_since()) and now - late > BEHIND:
            return True
        return rows.agenda.is_late(now)
