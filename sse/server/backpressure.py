"""The order in which publishers and the loop take turns, since they share one thread.

While the loop is late in sending what was published before, publishers wait in a queue before they store more.
"""

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

_SLICE: Final = 0.0005  # shortest time in seconds that the loop works before other greenlets run
_LONGEST_SLICE: Final = 0.02  # longest time, too
_PUBLISHING: Final = 0.01  # seconds of publishing after which the hub and the loop get their turn
_LONGEST_WAIT: Final = 1.0  # seconds that a publisher waits at most

_thread_id = get_original("_thread", "get_ident")


class Backpressure:
    """The queue of publishers that wait while this worker is late in sending what was published before.

    :param wake: starts a round of the loop.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self.unread_since: Callable[[], float] = float
        """Returns since when announcements for many channels have been waiting for the hub; 0 if none wait."""
        self._wake = wake
        self._rows: Rows | None = None
        self._loop: Any = None  # the greenlet that runs the rounds
        self._thread = _thread_id()
        self._slice_ends = 0.0
        self._publishing_since: float | None = None  # the time of the first publish after the loop's last turn
        self._queue: deque[Event] = deque()  # one event for each waiting publisher, the first one first

    def wait_for(self, rows: Rows, loop: Any) -> None:
        """Have publishers wait for these rows from now on, which are served in the greenlet `loop`."""
        self._rows, self._loop = rows, loop

    def begin_round(self) -> None:
        """Begin the loop's first slice of a round."""
        self._slice_ends = time.monotonic() + _SLICE

    def end_round(self) -> None:
        """Wake the first publisher of the queue, so that it checks whether it may go on."""
        self._publishing_since = None
        self.let_in()

    def pause(self) -> None:
        """Let other greenlets run, if the loop has used up its slice of time. Only the loop may call this.

        The next slice is as long as the others took, measured by this thread's CPU time. If the loop paused after a
        fixed number of connections instead, all waiting requests would be served between two of these portions.
        """
        if time.monotonic() >= self._slice_ends:
            used = time.thread_time()
            gevent.sleep(PAUSE)
            took = time.thread_time() - used
            self._slice_ends = time.monotonic() + min(max(took, _SLICE), _LONGEST_SLICE)
            self.end_round()

    def admit(self) -> None:
        """Wait while this worker is late in sending what was published before. Publishers call it before they store.

        A publisher waits if the first of over 64 rows has been waiting for 10 ms, if the hub has been late for 10 ms in
        reading announcements, or if others have published for 10 ms since the last turn of the loop. Publishers then
        go on one after another, in the order in which they came, and each after a second at the latest. A few late rows
        make no publisher wait, because the next events of their channels go out in the same writes.
        """
        if _thread_id() != self._thread or gevent.getcurrent() in (self._loop, gevent.get_hub()):
            return  # the app's own threads do not share this one, and the loop and gevent's hub must not wait
        if self._rows is None or not self._rows.is_serving:
            return
        if self._queue or self._is_behind(self._rows):
            self._wait_in_queue(self._rows)
        if self._publishing_since is None:
            self._publishing_since = time.monotonic()
            self._wake()  # a round resets it, at its end or at a pause

    def let_in(self) -> None:
        """Have the first of the publishers look whether it may go on."""
        if self._queue:
            self._queue[0].set()

    def _wait_in_queue(self, rows: Rows) -> None:
        ends = time.monotonic() + _LONGEST_WAIT
        turn = Event()
        self._queue.append(turn)
        try:
            while turn.wait(max(ends - time.monotonic(), 0)) and self._is_behind(rows):
                turn.clear()
        finally:
            self._queue.remove(turn)
            self.let_in()

    def _is_behind(self, rows: Rows) -> bool:
        now = time.monotonic()
        if self._publishing_since is not None and now - self._publishing_since > _PUBLISHING:
            return True
        if (late := self.unread_since()) and now - late > BEHIND:
            return True
        return rows.agenda.is_late(now)
