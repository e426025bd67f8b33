"""The loop of the worker's rows: it passes on the events of connections and the time, and runs the rounds.

`rows` decides what happens. This module has everything that needs gevent, epoll and system calls.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from select import EPOLLIN, EPOLLOUT, EPOLLRDHUP
from typing import Any, Final

import gevent
from gevent.event import Event
from gevent.monkey import get_original
from gevent.pool import Group
from gevent.queue import SimpleQueue

from sse.connection_log import ended
from sse.server.backpressure import Backpressure
from sse.server.effects import Call, Effects, EndFunctions, Interest
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
_MAX_EVENTS: Final = 1024  # events of connections that are handled before other greenlets run
_CALLERS: Final = 32  # greenlets that ask the store for rows
_MAX_ENDS: Final = 20_000  # of streams and polls that wait for the log; the oldest are dropped
_LEAP: Final = 0.5  # seconds by which the wall clock may leap before all permits are checked again

_epoll = get_original("select", "epoll")
_close = get_original("os", "close")  # unpatched, because gevent no longer knows these numbers


class Loop:
    """The rows of this worker, and the greenlets that serve them.

    :param give_back: gives a connection to a greenlet, and returns False if none is free. The connection then goes to
        `rows.waiting`.
    :param wake_lane: has the fast lane serve the connections that are ready.
    """

    def __init__(self, log: Any, keepalive: float, give_back: Callable[[int], bool], wake_lane: Call) -> None:
        self.log = log
        self._wake = Event()
        self._to_close: list[tuple[int, EndFunctions]] = []
        self._ends: deque[tuple[Any, ...]] = deque(maxlen=_MAX_ENDS)  # of connections, which are not in the log yet
        self._finishing = Group()  # greenlets that run the app's functions at the end of a connection
        self._calls: SimpleQueue = SimpleQueue()
        self._wall_clock_lead = time.time() - time.monotonic()
        self._wheel: Wheel[int | Streams] = Wheel(time.monotonic())
        self._poller = _epoll()
        self.backpressure = Backpressure(self._wake.set)
        self.rows = Rows(self._effects(give_back, wake_lane), keepalive)
        self._rounds = Rounds(self.rows)
        self._watcher = gevent.get_hub().loop.io(self._poller.fileno(), 1)
        self._watcher.start(self._take_up_events)
        self.backpressure.wait_for(self.rows, gevent.spawn(self._repeat, self._round))
        for step in (self._tick, self._tell_ends_soon, *[self._make_call] * _CALLERS):
            gevent.spawn(self._repeat, step)

    @property
    def is_empty(self) -> bool:
        """True if no connection is here, and none is being closed."""
        return self.rows.is_empty and not (self._to_close or self._finishing)

    def _effects(self, give_back: Callable[[int], bool], wake_lane: Call) -> Effects:
        return Effects(
            write=os.write,
            read=os.read,
            unread=unread,
            clock=time.monotonic,
            timer=self._wheel.add,
            register=self._register,
            modify=self._modify,
            unregister=self._unregister,
            pause=self.backpressure.pause,
            sleep=lambda seconds: gevent.sleep(max(seconds, PAUSE)),
            call_in_greenlet=self._calls.put,
            call_later=gevent.spawn_later,
            wake=self._wake.set,
            close=_close,
            close_after_round=self._close_soon,
            call_all=self._call_all,
            give_back=give_back,
            wake_lane=wake_lane,
            ended=self._note_end,
            warn=self.log.warning,
            fault=self.log.exception,
        )

    def _note_end(self, *end: Any) -> None:
        """Note the end of a stream or held poll. The event loop may call this, and a handler of the log may wait."""
        self._ends.append(end)

    def tell_ends(self) -> None:
        """Log the ends that were noted."""
        while self._ends:
            ended(*self._ends.popleft())

    # The greenlets

    def _repeat(self, step: Callable[[], None]) -> None:
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
            self._close_after_round()
            self.backpressure.end_round()

    def _close_after_round(self) -> None:
        to_close, self._to_close = self._to_close, []
        for fd, closing in to_close:
            with contextlib.suppress(OSError):
                _close(fd)
            self._call_all(closing)

    def _make_call(self) -> None:
        self._calls.get()()

    def _tell_ends_soon(self) -> None:
        gevent.sleep(TICK)
        self.tell_ends()

    def _tick(self) -> None:
        gevent.sleep(TICK)
        self.backpressure.let_in()  # a publisher may wait while there is nothing to write
        now = time.monotonic()
        if abs(time.time() - now - self._wall_clock_lead) > _LEAP:  # permits end by the wall clock
            self._wall_clock_lead = time.time() - now
            self._rounds.check_permits_soon()
        for slot, items in self._wheel.turn(now):
            self._rounds.look_at_slot(slot, items)
        self.rows.check_late()

    def _take_up_events(self) -> None:
        """Pass the events of connections to their rows. The event loop calls this, so it must not wait."""
        row_of = self.rows.row_of
        for fd, events in self._poller.poll(0, _MAX_EVENTS):
            row = row_of.get(fd)
            if row is None:
                continue
            if events & ~(EPOLLIN | EPOLLOUT):
                row.on_hang_up(fd)
            else:
                row.on_ready(fd)

    # The connections

    def _register(self, fd: int, interest: Interest) -> None:
        self._poller.register(fd, _EVENTS[interest])

    def _modify(self, fd: int, interest: Interest) -> None:
        with contextlib.suppress(OSError):
            self._poller.modify(fd, _EVENTS[interest])

    def _unregister(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._poller.unregister(fd)

    def _close_soon(self, fd: int, closing: EndFunctions) -> None:
        self._to_close.append((fd, closing))
        self._wake.set()

    def _call_all(self, closing: EndFunctions) -> None:
        for done in closing:
            self._finishing.spawn(done)
