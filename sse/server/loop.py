"""The loop that rows are told in: the events of their connections, the time, and the greenlets in which they act.

`rows` decides what happens; here is everything that needs gevent, epoll and the system's calls.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from select import EPOLLIN, EPOLLOUT, EPOLLRDHUP
from typing import Any, Final

import gevent
from gevent.event import Event
from gevent.monkey import get_original
from gevent.pool import Group
from gevent.queue import SimpleQueue

from sse.server.backpressure import Backpressure
from sse.server.effects import Calls, Effects, Interest
from sse.server.rounds import Rounds
from sse.server.rows import Rows, Streams
from sse.server.sockets import unread
from sse.server.wheel import TICK, Wheel
from sse.spread import PAUSE

_EVENTS: Final[dict[Interest, int]] = {
    "end": EPOLLRDHUP,
    "input": EPOLLIN | EPOLLRDHUP,
    "room": EPOLLOUT,
    "input or room": EPOLLIN | EPOLLOUT | EPOLLRDHUP,
}
_AT_ONCE: Final = 1024  # events that are taken up before others have their turn
_ASKING: Final = 32  # rows for which the store is asked at the same time
_LEAP: Final = 0.5  # seconds by which the wall clock may drift before permits are looked at anew

_epoll = get_original("select", "epoll")
_close = get_original("os", "close")  # at once: gevent has nothing to do with these numbers any more


class Loop:
    """The rows of this worker, and the loop that tells them.

    :param give_back: lets a greenlet go on with a connection; returns False where none is free. Then the connection is
        put into `rows.waiting`.
    """

    def __init__(self, log: Any, keepalive: float, give_back: Callable[[int], bool]) -> None:
        self.log = log
        self._wake = Event()
        self._doomed: list[tuple[int, Calls]] = []
        self._finishing = Group()  # greenlets in which the app does what it wants done at the end of a connection
        self._asking: SimpleQueue = SimpleQueue()
        self._ahead = time.time() - time.monotonic()
        self._wheel: Wheel[int | Streams] = Wheel(time.monotonic())
        self._poller = _epoll()
        self.backpressure = Backpressure(self._wake.set)
        self.rows = Rows(self._effects(give_back), keepalive)
        self._rounds = Rounds(self.rows)
        self._watcher = gevent.get_hub().loop.io(self._poller.fileno(), 1)
        self._watcher.start(self._heard)
        self.backpressure.wait_for(self.rows, gevent.spawn(self._keep_on, self._round))
        for step in (self._turn, *[self._ask] * _ASKING):
            gevent.spawn(self._keep_on, step)

    @property
    def is_empty(self) -> bool:
        """True if no connection is here, or is being closed."""
        return self.rows.is_empty and not (self._doomed or self._finishing)

    def _effects(self, give_back: Callable[[int], bool]) -> Effects:
        return Effects(
            write=os.write,
            read=os.read,
            unread=unread,
            clock=time.monotonic,
            timer=self._wheel.add,
            watch=self._watch,
            change=self._change,
            unwatch=self._unwatch,
            pause=self.backpressure.pause,
            sleep=lambda seconds: gevent.sleep(max(seconds, PAUSE)),
            ask=self._asking.put,
            later=gevent.spawn_later,
            wake=self._wake.set,
            close=_close,
            doom=self._doom,
            finish=self._finish,
            give_back=give_back,
            warn=self.log.warning,
            fault=self.log.exception,
        )

    # The greenlets

    def _keep_on(self, step: Callable[[], None]) -> None:
        while True:
            try:
                step()
            except Exception:
                self.log.exception("the loop goes on after a fault")

    def _round(self) -> None:
        self._wake.wait()
        self._wake.clear()
        self.backpressure.begin_round()
        try:
            self._rounds.run()
        finally:
            self._close_doomed()
            self.backpressure.end_round()

    def _close_doomed(self) -> None:
        doomed, self._doomed = self._doomed, []
        for fd, closing in doomed:
            with contextlib.suppress(OSError):
                _close(fd)
            self._finish(closing)

    def _ask(self) -> None:
        self._asking.get()()

    def _turn(self) -> None:
        gevent.sleep(TICK)
        self.backpressure.let_in()  # for a publisher that waits while there is nothing to write
        now = time.monotonic()
        if abs(time.time() - now - self._ahead) > _LEAP:  # the clock by which permits end
            self._ahead = time.time() - now
            self._rounds.check_permits_soon()
        for slot, items in self._wheel.turn(now):
            self._rounds.look_at_slot(slot, items)

    def _heard(self) -> None:
        """Take up the events of connections. The event loop calls this, so it must not wait."""
        row_of = self.rows.row_of
        for fd, events in self._poller.poll(0, _AT_ONCE):
            row = row_of.get(fd)
            if row is None:
                continue
            if events & ~(EPOLLIN | EPOLLOUT):
                row.parted(fd)
            else:
                row.heard(fd)

    # The connections

    def _watch(self, fd: int, interest: Interest) -> None:
        self._poller.register(fd, _EVENTS[interest])

    def _change(self, fd: int, interest: Interest) -> None:
        with contextlib.suppress(OSError):
            self._poller.modify(fd, _EVENTS[interest])

    def _unwatch(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._poller.unregister(fd)

    def _doom(self, fd: int, closing: Calls) -> None:
        self._doomed.append((fd, closing))
        self._wake.set()

    def _finish(self, closing: Calls) -> None:
        for done in closing:
            self._finishing.spawn(done)
