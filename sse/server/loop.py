"""What was handed off: rows of connections that wait for the same, and the one loop that writes to them.

What a stream or a poll says, and when, is `Stream`'s and `Poll`'s; here is only how it gets out. A connection is a file
descriptor in a row, and no greenlet.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import termios
import time
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from select import EPOLLIN, EPOLLOUT, EPOLLRDHUP, POLLRDHUP
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import gevent
from gevent.event import Event
from gevent.monkey import get_original
from gevent.pool import Group
from gevent.queue import SimpleQueue
from gunicorn.util import http_date  # type: ignore[import-untyped]

from sse.spread import spread
from sse.transports.life import STALLED_AFTER

if TYPE_CHECKING:
    import socket

    from sse.access.permit import Permit
    from sse.transports.dialect import Shared
    from sse.transports.life import CloseReason
    from sse.transports.poll import Poll
    from sse.transports.stream import Stream

PAUSE: Final = 1e-6
"""Seconds of sleep that let others have their turn: a real timer, since `gevent.sleep(0)` lets no input in."""

LAST_CHUNK: Final = b"0\r\n\r\n"
"""The end of a chunked body (RFC 9112, 7.1)."""

_TURN: Final = 128  # connections written to, some 1 ms, before the clock is looked at
_MOST_UNTAKEN: Final = 64 << 20  # bytes of answers that clients have asked for and do not take
_EARLY: Final = 8192  # bytes that a client may send behind a poll that waits
_SLICE: Final = 0.0005  # seconds that the loop works before others have their turn, at the least
_LONGEST_SLICE: Final = 0.02  # the same, at the most
_FEW: Final = 64  # rows that may be late without publishers having to wait
_BEHIND: Final = 0.01  # seconds after which a row is late
_PUBLISHING: Final = 0.01  # seconds of publishing after which the hub and the loop have their turn
_LONGEST_WAIT: Final = 1.0  # seconds that a publisher waits at the most
_TICK: Final = 0.1
_FIRST_REQUEST: Final = 20.0  # seconds that a new client has to begin a request
_SILENT: Final = 1.0  # seconds after which a new client has not sent its request with the connection
_LAST_REQUEST: Final = 1.0  # seconds that a client has to send one more when this process ends
_JUMP: Final = 0.5
_ASKING: Final = 32  # rows for which the store is asked at the same time

_epoll, _poll = get_original("select", ["epoll", "poll"])
_close = get_original("os", "close")  # at once: gevent has nothing to do with these numbers any more
_thread_id = get_original("_thread", "get_ident")


class Row:
    """Connections that wait for the same: of each no more than its number, and the slot of the wheel when it is due."""

    __slots__ = ("asks", "fanout", "fds", "key")
    events = EPOLLRDHUP
    waits = True  # for events, so that its connections are told when this process ends

    def __init__(self, fanout: Fanout) -> None:
        self.fanout = fanout
        self.fds: dict[int, int] = {}
        self.key: Hashable = None  # under which others find it, to join it
        self.asks = False  # a greenlet takes what has come, and may be waiting for the store

    def __call__(self) -> None:
        """There may be something to tell."""
        self.fanout.call(self)

    def serve(self) -> None:
        """Tell what there is to tell."""

    def heard(self, fd: int) -> None:
        """Its peer has said something, or takes more again. This must not wait."""

    def parted(self, fd: int) -> None:
        """Its peer will say nothing more. This must not wait."""
        self.fanout.end(fd)

    def dismiss(self, fd: int) -> None:
        """Its time is over."""

    def left(self) -> None:
        """One of `fds` is gone from here, and is in no other row."""
        if self.fds:
            self.leave()
        elif not self.asks:  # else it is needed a little longer
            self.detach()

    def asked(self) -> None:
        """What it had to wait for is there."""
        self.asks = False
        if self.fds:
            self.fanout.call(self)  # for what has come meanwhile, too
        else:
            self.detach()

    def leave(self) -> None:
        """Let the hub know that one connection has left, and others are here."""

    def detach(self) -> None:
        """Let the hub know that the last connection has left."""


class Streams(Row):
    """Streams that have been told the same: a push is encoded once, and costs one write for each."""

    __slots__ = ("chunk", "chunked", "ends", "rest", "slot", "stalled_at", "stream")
    events = EPOLLIN | EPOLLRDHUP

    def __init__(self, fanout: Fanout, stream: Stream, *, chunked: bool) -> None:
        super().__init__(fanout)
        self.stream = stream
        self.chunked = chunked
        self.chunk: bytes | None = None  # from the store
        # What of the last write has not gone out: then this row is of one, until that has caught up.
        self.rest = memoryview(b"")
        self.stalled_at = 0.0
        self.ends = False  # it is not told more than the rest
        self.slot = 0  # of the wheel, in which it is looked at next

    @property
    def due(self) -> float:
        return self.stalled_at + STALLED_AFTER if self.rest else self.stream.due

    @property
    def alike(self) -> Hashable:
        """Equal for rows that can become one where they stand at the same place; None for one that is not at rest."""
        stream = self.stream.alike if self._is_told else None
        return None if stream is None else (stream, self.chunked)

    @property
    def _is_told(self) -> bool:
        """Whether all that was taken has gone out."""
        return not (self.rest or self.asks or self.chunk is not None)

    def serve(self) -> None:
        if self.rest:
            if time.monotonic() >= self.due:
                self._end_all()
            return
        if self.asks or (self.chunk is None and self.fanout.join(self)):
            return
        chunk, self.chunk = self.chunk, None
        asked = chunk is not None
        if chunk is None:
            chunk = self.stream.quick(self.fanout.shared)
        if chunk is None:
            self.asks = True
            self.fanout.ask(self)
        elif self.stream.lost:
            for fd in list(self.fds):
                self._tell_one(fd, chunk, last=True)
        elif reason := self.stream.reason:
            for fd in list(self.fds):  # each with a pause of its own before it comes back
                self._say_goodbye(fd, reason)
        else:
            if chunk:
                self._tell(chunk)
                if self.stream.is_bare and self.alike != self.key:
                    self.fanout.forget(self)  # the first event has made it like other rows than before
            if asked and not self.stream.waits:
                self.fanout.call(self)  # there may be more: a call that came while it asked was passed over
            elif self.fds and not self.fanout.join(self):
                self.fanout.set_timer(self)

    def step(self) -> None:
        """Get what needs more than the hub has at hand, which may take its time. The next round tells it."""
        try:
            if self.fds:
                self.chunk = self.stream.step()
        except BaseException:
            self._end_all()
            raise
        finally:
            self.asked()

    def heard(self, fd: int) -> None:
        if not _listens(fd):
            self.fanout.end(fd)
        elif self.rest:
            sent = send(fd, self.rest)
            if sent > 0:
                self.rest, self.stalled_at = self.rest[sent:], time.monotonic()
            if sent < 0 or (self.ends and not self.rest):
                self.fanout.end(fd)
            elif not self.rest:
                self.fanout.watch(fd, self.events)
                self.stream.written(time.monotonic())
                self.fanout.call(self)

    def dismiss(self, fd: int) -> None:
        if self.fanout.is_over(fd):
            if self.rest:
                self.fanout.end(fd)
            else:
                self._say_goodbye(fd, "expired")
        elif not self.fanout.draining and not self.fanout.is_time(fd):
            # While the row is ahead of what it has told, one that stalls would take along a place it was not given.
            if self._is_told and (notice := self.stream.notice(self.fanout.permits[fd][0])):
                self._tell_one(fd, notice)
            self.fanout.keep(fd)
        elif not self.rest:
            self._say_goodbye(fd, "drain" if self.fanout.draining else "lifetime")
        elif self.fanout.draining:
            self.fanout.end(fd)
        else:
            self.fanout.set_end(fd, time.monotonic() + 1)

    def leave(self) -> None:
        self.stream.leave()

    def detach(self) -> None:
        self.stream.detach()

    def _tell(self, chunk: bytes) -> None:
        # What a push costs: as little as can be for each.
        data = framed(chunk) if self.chunked else chunk
        size = len(data)
        write = os.write
        fds = list(self.fds)
        for start in range(0, len(fds), _TURN):
            turn = fds[start : start + _TURN]
            for fd in turn:
                try:
                    sent = write(fd, data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self.fanout.end(fd)
                    continue
                if sent != size and fd in self.fds:
                    self._stall(fd, memoryview(data)[sent:])
            self.fanout.pause()
        self.stream.written(time.monotonic())

    def _say_goodbye(self, fd: int, reason: CloseReason) -> None:
        permit = self.fanout.permits[fd][0] if fd in self.fanout.permits else None
        self._tell_one(fd, self.stream.goodbye(reason, permit), last=True)

    def _tell_one(self, fd: int, data: bytes, *, last: bool = False) -> None:
        if self.chunked and data:  # a chunk of no bytes would be the last one
            data = framed(data, LAST_CHUNK if last and not self.stream.cuts else b"")
        sent = send(fd, data)
        if 0 <= sent < len(data):
            self._stall(fd, memoryview(data)[sent:]).ends = last
        elif sent < 0 or last:
            self.fanout.end(fd)

    def _stall(self, fd: int, rest: memoryview) -> Streams:
        """Have one that takes no more stand apart, with what it has not got yet."""
        row = self
        if len(self.fds) > 1:
            row = Streams(self.fanout, self.stream.split(), chunked=self.chunked)
            self.fanout.move(fd, self, row)
            row.stream.subscriber.wake_by(row)
        self.fanout.forget(row)
        row.rest, row.stalled_at = rest, time.monotonic()
        self.fanout.watch(fd, self.events | EPOLLOUT)
        self.fanout.set_timer(row)
        return row

    def _end_all(self) -> None:
        for fd in list(self.fds):
            self.fanout.end(fd)


class Polls(Row):
    """Polls that wait at the same place, and have the same head: they get the same answer."""

    __slots__ = ("head", "poll")
    events = EPOLLIN | EPOLLRDHUP

    def __init__(self, fanout: Fanout, poll: Poll, head: bytes) -> None:
        super().__init__(fanout)
        self.poll = poll
        self.head = head

    def serve(self) -> None:
        if not self.asks and self.poll.is_behind:
            self.asks = True
            gevent.spawn_later(self.poll.GATHER, self._answer)

    def heard(self, fd: int) -> None:
        # The end of a connection may never arrive behind bytes that nobody reads, so they are read, and kept.
        try:
            data = os.read(fd, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.fanout.end(fd)
            return
        early = self.fanout.early[fd] = self.fanout.early.get(fd, b"") + data
        if len(early) > _EARLY:
            self.fanout.watch(fd, EPOLLRDHUP)
            self.dismiss(fd)

    def dismiss(self, fd: int) -> None:
        if self.asks and not self.fanout.draining and not self.fanout.is_over(fd):
            self.fanout.set_end(fd, time.monotonic() + 1)
        else:
            # It says the place where the poll began, and asked from there again, it is told all the rest.
            self._reply(fd, self._whole(self.poll.nothing))

    def leave(self) -> None:
        self.poll.leave()

    def detach(self) -> None:
        self.poll.detach()

    def _answer(self) -> None:
        try:
            answer = self.poll.answer() if self.fds else None
        except Exception as error:  # noqa: BLE001 - told by the log, and to the client when it asks again
            self.fanout.log.warning("polls are to ask again: %s", error)
            answer = self.poll.nothing
        self.fanout.forget(self)  # who comes now waits for the next
        try:
            if answer is not None:
                self._reply_all(answer)
        finally:
            self.asked()

    def _reply_all(self, answer: bytes) -> None:
        draining, data = self.fanout.draining, self._whole(answer)
        for number, fd in enumerate(list(self.fds), 1):
            if draining is not self.fanout.draining:
                draining, data = self.fanout.draining, self._whole(answer)
            if fd in self.fds:
                self._reply(fd, self._whole(self.poll.nothing) if self.fanout.is_over(fd) else data)
            if number % _TURN == 0:
                gevent.sleep(PAUSE)

    def _whole(self, body: bytes) -> bytes:
        head = self.head
        if self.fanout.draining:
            head = head.replace(b"\r\nConnection: keep-alive\r\n", b"\r\nConnection: close\r\n", 1)
        return b"%bDate: %b\r\nContent-Length: %d\r\n\r\n%b" % (head, date(), len(body), body)

    def _reply(self, fd: int, data: bytes) -> None:
        closes = self.fanout.draining or b"\r\nConnection: close\r\n" in self.head
        sent = send(fd, data)
        if sent < 0 or (closes and sent == len(data)):
            self.fanout.end(fd)
        elif sent == len(data):
            self.fanout.answered(fd)
        else:
            self.fanout.finish(fd, memoryview(data)[sent:], closes=closes)


class Sending(Row):
    """Connections whose client does not take all of an answer at once: each is sent the rest as it takes more."""

    __slots__ = ()
    events = EPOLLOUT
    waits = False

    def heard(self, fd: int) -> None:
        rest = self.fanout.rests[fd]
        sent = send(fd, rest.data)
        if sent < 0 or (rest.closes and sent == len(rest.data)):
            self.fanout.end(fd)
        elif sent == len(rest.data):
            self.fanout.answered(fd)
        elif sent:
            self.fanout.rests[fd] = rest._replace(data=rest.data[sent:])
            self.fanout.set_end(fd, time.monotonic() + STALLED_AFTER)

    def dismiss(self, fd: int) -> None:
        self.fanout.end(fd)


class Rest(NamedTuple):
    """The part of an answer that its client has not taken yet, and whether the connection ends after it.

    `own` is the size of the answer where it is for this client alone.
    """

    data: memoryview
    closes: bool
    own: int = 0


class Resting(Row):
    """Connections between two requests, or before the first: nothing of a request has come yet."""

    __slots__ = ()
    events = EPOLLIN | EPOLLRDHUP
    waits = False

    def heard(self, fd: int) -> None:
        self.fanout.give_back(fd)

    def parted(self, fd: int) -> None:
        self.dismiss(fd)  # a request may have come before the end

    def dismiss(self, fd: int) -> None:
        """Close it, unless a request has come just now."""
        if _unread(fd):
            self.fanout.give_back(fd)
        else:
            self.fanout.close(fd)


class Fanout:
    """All connections of this worker that were handed off, and the loop that writes to them.

    `give_back` is how a connection gets a greenlet again: called with its number, it returns False where no greenlet is
    free. Then the connection is put into `waiting`.
    """

    def __init__(self, log: Any, keepalive: float, give_back: Callable[[int], bool]) -> None:
        self.log = log
        self.room: float = math.inf  # connections that may be here
        self.unread_since: Callable[[], float] = float
        """Tells since when announcements for many channels have waited for the hub to read them; 0 if they do not."""
        self.draining = False
        self.shared: Shared = {}  # what is encoded in this round
        self._keepalive = keepalive
        self._give_back = give_back
        self._row_of: dict[int, Row] = {}
        self._rows: dict[Hashable, Row] = {}
        self._new = Resting(self)  # of which nothing has come yet
        self._resting = Resting(self)
        self._sending = Sending(self)
        self.rests: dict[int, Rest] = {}
        """By connection, what its client has not taken yet."""
        self._own = 0  # bytes of all answers in `rests` that are for one client alone
        self.waiting: deque[int] = deque()
        """Connections that wait for a greenlet."""
        self.permits: dict[int, tuple[Permit, float]] = {}
        """What connections stand on, where not all of their channels are public; and their end otherwise."""
        self.early: dict[int, bytes] = {}
        """By connection, what has come behind the request of a poll, and is to be served after its answer."""
        self._closing: dict[int, Sequence[Callable[[], object]]] = {}  # what the app wants done at the end
        self._finishing = Group()  # greenlets that do it
        self._ready: set[Row] = set()
        self._due: list[int] = []
        self._doomed: list[int] = []
        self._wheel: dict[int, list[Streams | int]] = {}
        self._turned = int(time.monotonic() / _TICK)
        self._ahead = time.time() - time.monotonic()
        self._wake = Event()
        self._slice_ends = 0.0
        self._waits_since: float | None = None  # when the first of `_ready` came
        self._round_waits_since: float | None = None  # the same for those of the round that is under way
        self._left = 0  # rows of that round that are still to be served
        self._publishing_since: float | None = None  # when the first publisher came after the loop's last turn
        self._publishers: deque[Event] = deque()  # one for each that waits, in the order in which they came
        self._thread = _thread_id()
        self._asking: SimpleQueue = SimpleQueue()
        self._poller = _epoll()
        self._watcher = gevent.get_hub().loop.io(self._poller.fileno(), 1)
        self._watcher.start(self._heard)
        self._loop = gevent.spawn(self._keep_on, self._round)
        for step in (self._turn, *[self._ask] * _ASKING):
            gevent.spawn(self._keep_on, step)

    @property
    def is_empty(self) -> bool:
        """Whether no connection is here."""
        return not (self._row_of or self.waiting or self._doomed or self._finishing)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another connection, and no resting one that could be closed for it."""
        if len(self._row_of) + len(self.waiting) < self.room:
            return False
        return not (self._new.fds or self._resting.fds)

    # From now on, nobody else writes to the connection or closes it.

    def take_over(self, fd: int, stream: Stream, *, chunked: bool) -> None:
        row = Streams(self, stream, chunked=chunked)
        self._poller.register(fd, row.events)  # it may fail: then the stream is still its greenlet's to close
        self._admit(fd, row, *stream.hand_off())
        stream.subscriber.wake_by(row)

    def hold(self, fd: int, poll: Poll, head: bytes, early: bytes = b"") -> None:
        self._keep_early(fd, early)
        key = poll.alike, head
        row = self._rows.get(key)
        if not (isinstance(row, Polls) and not row.asks and row.poll.absorb(poll)):
            row = self._rows[key] = Polls(self, poll, head)
            row.key = key
        self._poller.register(fd, row.events)
        self._admit(fd, row, *poll.hand_off())
        if row.poll is poll:
            poll.subscriber.wake_by(row)

    def rest(self, fd: int, *, new: bool = False) -> None:
        """Wait for the next request on a connection, or the first."""
        row = self._new if new else self._resting
        self._poller.register(fd, row.events)
        self._admit(fd, row, self._rest_until(new=new))

    def send_rest(self, fd: int, rest: memoryview, *, closes: bool, early: bytes) -> None:
        """Send the rest of an answer that a greenlet has begun, as the client takes it.

        If clients leave too much untaken, the connection that has waited longest is cut.

        :param early: what has come behind the request.
        """
        self._keep_early(fd, early)
        self._poller.register(fd, self._sending.events)
        self._admit(fd, self._sending, time.monotonic() + STALLED_AFTER)
        self.rests[fd] = Rest(rest, closes, len(rest))
        self._own += len(rest)
        while self._own > _MOST_UNTAKEN:
            self.end(next(other for other in self._sending.fds if self.rests[other].own))

    def drain(self, window: float) -> None:
        """Say goodbye to all streams and polls, spread over `window` seconds, and to those that still come.

        A connection between two requests has a moment more: its client may be sending the next one just now.
        """
        self.draining = True
        for fd in (*self._new.fds, *self._resting.fds):
            self.set_end(fd, self._rest_until())
        fds = [fd for fd, row in self._row_of.items() if row.waits]
        spread(fds, window, self._make_due_if_it_waits, lambda seconds: gevent.sleep(max(seconds, PAUSE)))

    # For the rows

    def call(self, row: Row) -> None:
        """Have it served in the next round."""
        self._ready.add(row)
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        if not self._wake.is_set():
            self._wake.set()

    def ask(self, row: Streams) -> None:
        """Have its `step` called where waiting does no harm."""
        self._asking.put(row)

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
            self._publishing_since = None
            self._let_in()

    def admit(self) -> None:
        """Wait while this worker is late in telling what was published before. Publishers call it before they store.

        It waits in two cases: over 64 rows have been late for 10 ms, or others have published for 10 ms since the last
        turn of the loop. Then publishers go on one after another, in the order in which they came, and each after a
        second at the latest. Few late rows keep nobody waiting: what comes next for their channels shares their writes.
        """
        if _thread_id() != self._thread or gevent.getcurrent() in (self._loop, gevent.get_hub()):
            return  # threads of the app's own have no turn here, and neither the loop nor gevent's hub can wait
        if len(self._row_of) == len(self._new.fds) + len(self._resting.fds):
            return  # nobody listens
        if self._publishers or self._is_behind:
            self._queue()
        if self._publishing_since is None:
            self._publishing_since = time.monotonic()
            self._wake.set()  # so that a round comes, which sets it back at its end or at a pause

    def _queue(self) -> None:
        ends = time.monotonic() + _LONGEST_WAIT
        turn = Event()
        self._publishers.append(turn)
        try:
            while turn.wait(max(ends - time.monotonic(), 0)) and self._is_behind:
                turn.clear()
        finally:
            self._publishers.remove(turn)
            self._let_in()

    def _let_in(self) -> None:
        """Have the first of the publishers look whether it may go on."""
        if self._publishers:
            self._publishers[0].set()

    @property
    def _is_behind(self) -> bool:
        now = time.monotonic()
        if self._publishing_since is not None and now - self._publishing_since > _PUBLISHING:
            return True
        if (late := self.unread_since()) and now - late > _BEHIND:
            return True
        since = self._waits_since if self._round_waits_since is None else self._round_waits_since
        return since is not None and now - since > _BEHIND and self._left + len(self._ready) > _FEW

    def join(self, row: Streams) -> bool:
        """Have a row become part of the one for all that are alike, where that stands at the same place."""
        alike = row.alike if row.key is None else None
        if alike is None:
            return False
        other = self._rows.setdefault(alike, row)
        if other is row:
            row.key = alike
            return False
        if not (isinstance(other, Streams) and other.alike == alike and other.stream.absorb(row.stream)):
            return False
        for fd in list(row.fds):
            self.move(fd, row, other)
        self.set_timer(other)  # which may be due sooner now
        return True

    def move(self, fd: int, row: Row, other: Row) -> None:
        other.fds[fd] = row.fds.pop(fd)
        self._row_of[fd] = other

    def forget(self, row: Row) -> None:
        """Nobody is to join it any more."""
        if self._rows.get(row.key) is row:
            del self._rows[row.key]
        row.key = None

    def is_over(self, fd: int) -> bool:
        """Whether it may be told nothing more, because its permit has ended."""
        return fd in self.permits and self.permits[fd][0].is_over

    def is_time(self, fd: int) -> bool:
        """Whether its end has come, whatever its permit says."""
        return fd not in self.permits or time.monotonic() >= self.permits[fd][1]

    def keep(self, fd: int) -> None:
        """Have it dismissed at its end, or when there is something to say of its permit."""
        if fd in self.permits:
            permit, end = self.permits[fd]
            self.set_end(fd, min(end, time.monotonic() + max(min(permit.ends_in, permit.notice_in), 0)))

    def watch(self, fd: int, events: int) -> None:
        with contextlib.suppress(OSError):
            self._poller.modify(fd, events)

    def answered(self, fd: int) -> None:
        """Its poll is answered: wait for what comes next."""
        if fd in self.early:
            self.give_back(fd)
            return
        self._leave_for(self._resting, fd, self._rest_until())

    def finish(self, fd: int, rest: memoryview, *, closes: bool) -> None:
        """Send the rest of a poll's answer as the client takes it."""
        self._leave_for(self._sending, fd, time.monotonic() + STALLED_AFTER)
        self.rests[fd] = Rest(rest, closes)

    def give_back(self, fd: int) -> None:
        """Let a greenlet go on with the connection."""
        self._leave(fd)
        self._unwatch(fd)
        self._run(self._closing.pop(fd, ()))
        if not self._give_back(fd):
            self.waiting.append(fd)

    def close(self, fd: int) -> None:
        """Close a resting connection, at once: nobody is about to write to it."""
        self._leave(fd)
        self._unwatch(fd)
        _close(fd)

    def end(self, fd: int) -> None:
        """Close it. Its number becomes free only between rounds: else another client could get its bytes."""
        if fd in self._row_of:
            self._leave(fd)
            self._unwatch(fd)
            self._doomed.append(fd)
            self._wake.set()

    def set_end(self, fd: int, moment: float) -> None:
        """Have it dismissed then."""
        slot = max(_slot(moment), self._turned + 1)
        self._row_of[fd].fds[fd] = slot
        self._wheel.setdefault(slot, []).append(fd)

    def set_timer(self, row: Streams) -> None:
        """Have it served when it is due, if it is not to be looked at before that."""
        slot = max(_slot(row.due), self._turned + 1)
        if row.slot <= self._turned or slot < row.slot:
            row.slot = slot
            self._wheel.setdefault(slot, []).append(row)

    # The loop

    def _keep_on(self, step: Callable[[], None]) -> None:
        while True:
            try:
                step()
            except Exception:
                self.log.exception("the fan-out goes on after a fault")

    def _round(self) -> None:
        self._wake.wait()
        self._wake.clear()
        self._slice_ends = time.monotonic() + _SLICE
        due, self._due = self._due, []
        for fd in due:
            row = self._row_of.get(fd)
            if row is not None and row.fds[fd] <= self._turned:
                try:
                    row.dismiss(fd)
                except Exception:
                    self.log.exception("a connection is cut after a fault")
                    self.end(fd)
            self.pause()
        ready, self._ready = self._ready, set()
        self._round_waits_since, self._waits_since = self._waits_since, None
        self._left = len(ready)
        self.shared = {}
        # Who stands alone comes first: were the others told first, for a while, it would never be where they are.
        for row in sorted(ready, key=lambda row: row.key is not None):
            self._left -= 1
            try:
                if row.fds:
                    row.serve()
            except Exception:
                self.log.exception("streams are cut after a fault")
                for fd in list(row.fds):
                    self.end(fd)
        doomed, self._doomed = self._doomed, []
        for fd in doomed:
            self.early.pop(fd, None)
            with contextlib.suppress(OSError):
                _close(fd)
            self._run(self._closing.pop(fd, ()))
        self._round_waits_since = self._publishing_since = None
        self._let_in()

    def _ask(self) -> None:
        self._asking.get().step()

    def _turn(self) -> None:
        gevent.sleep(_TICK)
        self._let_in()  # for one who waits while there is nothing to write
        now = time.monotonic()
        if abs(time.time() - now - self._ahead) > _JUMP:  # the clock by which permits end
            self._ahead = time.time() - now
            for fd in list(self.permits):
                self._make_due(fd)
        while self._turned < int(now / _TICK):
            self._turned += 1
            for item in self._wheel.pop(self._turned, ()):
                if isinstance(item, int):
                    row = self._row_of.get(item)
                    if row is not None and row.fds[item] == self._turned:
                        self._make_due(item)
                elif item.fds and item.slot == self._turned:
                    if item.due <= now:
                        self.call(item)
                    self.set_timer(item)

    def _heard(self) -> None:
        """The event loop's callback, which must not wait."""
        for fd, events in self._poller.poll(0, 1024):
            row = self._row_of.get(fd)
            if row is None:
                continue
            if events & ~(EPOLLIN | EPOLLOUT):
                row.parted(fd)
            else:
                row.heard(fd)

    # The connections

    def _admit(
        self,
        fd: int,
        row: Row,
        end: float,
        permit: Permit | None = None,
        closing: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._row_of[fd] = row
        self.set_end(fd, end)
        if closing:
            self._closing[fd] = closing
        if len(self._row_of) + len(self.waiting) > self.room:  # there are files for so many
            self._make_room()
        if permit:
            self.permits[fd] = permit, end
            if isinstance(row, Streams):
                self.keep(fd)  # before it begins: that may have it dismissed at once
            else:
                self.set_end(fd, min(end, time.monotonic() + max(permit.ends_in, 0)))
            permit.begin(partial(self._make_due, fd))
        if (self.draining and row.waits) or (permit and permit.is_over):
            self._make_due(fd)

    def _make_room(self) -> None:
        """Close the connection that has rested longest, first of all among those that have never sent anything."""
        silent = next(iter(self._new.fds.items()), None)
        if silent and silent[1] < _slot(self._rest_until(new=True) - _SILENT):
            self._new.dismiss(silent[0])
        elif self._resting.fds:
            self._resting.dismiss(next(iter(self._resting.fds)))
        elif silent:
            self._new.dismiss(silent[0])

    def _rest_until(self, *, new: bool = False) -> float:
        if self.draining:
            return time.monotonic() + _LAST_REQUEST
        return time.monotonic() + (_FIRST_REQUEST if new else self._keepalive)

    def _leave(self, fd: int) -> None:
        if fd in self.permits:
            self.permits.pop(fd)[0].end()
        if fd in self.rests:
            self._own -= self.rests.pop(fd).own
        row = self._row_of.pop(fd)
        del row.fds[fd]
        if not row.fds:
            self.forget(row)
        row.left()

    def _leave_for(self, row: Row, fd: int, end: float) -> None:
        """Have a connection whose poll is answered go on in another row."""
        self._leave(fd)
        self._row_of[fd] = row
        self.set_end(fd, end)
        self.watch(fd, row.events)
        self._run(self._closing.pop(fd, ()))

    def _keep_early(self, fd: int, early: bytes) -> None:
        self.early.pop(fd, None)
        if early:
            self.early[fd] = early

    def _make_due(self, fd: int) -> None:
        row = self._row_of.get(fd)
        if row is not None:
            row.fds[fd] = 0
            self._due.append(fd)
            self._wake.set()

    def _make_due_if_it_waits(self, fd: int) -> None:
        if (row := self._row_of.get(fd)) and row.waits:  # its number may be another connection's by now
            self._make_due(fd)

    def _unwatch(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._poller.unregister(fd)

    def _run(self, closing: Sequence[Callable[[], object]]) -> None:
        for done in closing:
            self._finishing.spawn(done)  # the app's own, which may wait


def _slot(moment: float) -> int:
    return int(moment / _TICK) + 1


def send(fd: int, data: bytes | memoryview) -> int:
    """How much of it the connection takes now; -1 where it is broken."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except OSError:
        return -1


def _unread(fd: int) -> int:
    """How many bytes its peer has sent that nobody has read."""
    count = array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def has_left(connection: socket.socket) -> bool:
    """Tell whether the peer has closed the connection, or has shut it for sending.

    A peer that sent more than is ever read ahead counts as gone: its end could not arrive behind all that.
    """
    poller = _poll()
    poller.register(connection.fileno(), POLLRDHUP)
    return bool(poller.poll(0)) or _unread(connection.fileno()) > _EARLY


def _listens(fd: int) -> bool:
    """Whether the peer is there still; what it says now is passed over."""
    try:
        return bool(os.read(fd, 4096))
    except BlockingIOError:
        return True
    except OSError:
        return False


def framed(chunk: bytes, last: bytes = b"") -> bytes:
    """A chunk of a chunked body (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n%b" % (len(chunk), chunk, last)


@lru_cache(maxsize=1)
def _date_of(second: int) -> bytes:
    date: str = http_date(second)
    return date.encode()


def date() -> bytes:
    """The value of a Date header."""
    return _date_of(int(time.time()))
