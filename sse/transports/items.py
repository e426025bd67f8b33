"""An iterable as a `text/event-stream` body for one client (WHATWG HTML section 9.2).

Two threads, or greenlets under gevent, share a queue of a few blocks. The *runner* runs the iterable and fills the
queue. The *server* iterates over the body: it empties the queue, and gets a heartbeat when nothing comes.

| state    | what happens                              | next    | what follows                                    |
|----------|-------------------------------------------|---------|-------------------------------------------------|
| new      | there is a seat, and the opening is sent  | running | the runner begins                               |
| new      | there is no seat                          | over    | the body is `busy`; the iterable is closed      |
| new      | the body is closed, as for a HEAD         | over    | the iterable is closed, unused                  |
| running  | the iterable gives a value                | running | its blocks; while the queue is full, it waits   |
| running  | it comes to its end, or raises            | ended   | the queue, then `sse.end` `done` or `failed`    |
| running  | this process drains                       | ended   | the queue, then `sse.end` `interrupted`         |
| any      | the client has gone, so the server closes | left    | the runner closes the iterable at its next value|
| left     | the runner has ended                      | over    | the seat is given back                          |

- The first reason of an end counts. Whatever the iterable gives after that is dropped.
- The iterable is closed once, in the runner, because a generator can be closed only by the thread that runs it.
- Whoever goes last, the runner or the server, gives the seat back. So iterables that never give a value, although their
  clients have gone, are at most as many as there are seats.
- `breaker` can interrupt the iterable while it waits, but never while the runner itself does something.
- If the process dies, the client comes back with the id `~`, and gets no second run of the iterable but a 204.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, Final

from sse.connection_log import ended, opened
from sse.errors import Unavailable
from sse.event import EndReason, Event, Piece, plain_str
from sse.hub.hub import Hub
from sse.log import warn
from sse.transports.dialect import busy, item_block, item_end, item_opening
from sse.wire import HEARTBEAT

_log = logging.getLogger("sse")

_AHEAD: Final = 4  # blocks in the queue: the iterable is not further ahead of the server
_LOOK: Final = 3.0  # seconds after which a waiting server looks again if its client is there
_NOTHING: Final = object()

Throw = Callable[[Callable[[], bool]], object]
"""A function that raises GeneratorExit in one thread if the condition is true at that moment. It does not wait."""

Breaker = Callable[[], Throw]
"""A function that returns the `Throw` of the current thread."""


class ItemStream:
    """An iterable as a body. It takes a seat of the hub while it is sent, and as long as its iterable runs.

    :param around: calls a function in the context of the request.
    :param make_event: returns the event that a value is, if it is valid.
    :param max_bytes: the most bytes of a piece. A longer text becomes several pieces.
    :param heartbeat: seconds of quiet before a heartbeat.
    :param retry: milliseconds that a client waits before it reconnects.
    :param name: of the view, for the log.
    :param breaker: None where a thread that waits cannot be interrupted.
    :param gone: returns whether the client has gone.
    """

    keeps_greenlet: ClassVar[bool] = True
    """As of `Body`: it is for one client alone, so no row can send it."""
    longest: ClassVar[float] = math.inf
    """Seconds that its client may take for it."""

    def __init__(
        self,
        hub: Hub,
        iterable: Iterable[object],
        *,
        around: Callable[[Callable[[], None]], None],
        make_event: Callable[[object], Event],
        max_bytes: int,
        heartbeat: float,
        retry: int,
        name: str,
        breaker: Breaker | None = None,
        gone: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.closing: Sequence[Callable[[], object]] = ()
        """The functions to call at the end."""
        self._hub = hub
        self._iterable = iterable
        self._around = around
        self._make_event = make_event
        self._max_bytes = max_bytes
        self._heartbeat = heartbeat
        self._retry = retry
        self._name = name
        self._breaker = breaker
        self.request_id = ""
        """The id by which the log names its request; empty if it has none."""
        self._sent = 0  # events that were given to the server
        self._size = 0  # bytes that were given to the server
        self._opened_at: float | None = None
        self._has_all = False  # the end has been given to the server
        self._gone = gone
        self._clock = clock
        self._changed = threading.Condition()  # guards what follows; nothing else is waited for while it is held
        self._queue: deque[bytes] = deque()
        self._reason: EndReason | None = None
        self._left = False
        self._has_begun = False
        self._parties = 1  # the server, and the runner once it has begun
        self._interrupt: Callable[[Callable[[], bool]], object] | None = None
        self._awaits_value = False  # the iterable runs, and not the runner's own code
        self._is_done = False  # the iterable has come to its end
        self._cr = ""  # a CR at the end of a text, because the next text may begin with its LF

    # The server

    def __iter__(self) -> Iterator[bytes]:
        try:
            try:
                self._hub.admit(self)
            except Unavailable as error:
                warn("a stream is told that this service is busy: %s", error)
                yield busy(self._retry)
                return
            self._opened_at = self._clock()
            opened("stream", self.request_id)
            opening = item_opening(self._heartbeat, self._retry)
            self._size = len(opening)
            yield opening
            self._begin()
            while not self._left:
                chunk, is_last = self._take(self._clock() + self._heartbeat)
                if chunk:
                    self._size += len(chunk)
                    yield chunk
                if is_last:
                    self._has_all = self._reason is not None
                    return
        finally:
            self.close()

    def drain(self) -> None:
        """End the stream as `interrupted`, unless it has ended."""
        with self._changed:
            self._end("interrupted")

    def close(self) -> None:
        """Note that the client has gone, or has all. A second call does nothing."""
        with self._changed:
            if self._left:
                return
            self._left = True
            self._changed.notify_all()
            interrupt = self._interrupt
        if self._opened_at is not None:
            reason = self._reason if self._has_all and self._reason else "left"
            ended("stream", reason, self._clock() - self._opened_at, self._sent, self._size, self.request_id)
        if not self._has_begun:
            self._close_iterable(())
        if interrupt:
            interrupt(lambda: self._awaits_value)
        self._depart()
        closing, self.closing = self.closing, ()
        for done in closing:
            done()

    def _begin(self) -> None:
        """Have a thread run the iterable, unless the body was closed before."""
        with self._changed:
            if self._left:
                return
            self._has_begun = True
            self._parties += 1
        try:
            threading.Thread(target=self._run, name="sse-items", daemon=True).start()
        except RuntimeError:  # no thread can be had now
            _log.exception("sse.stream: the iterable of %s could not be started", self._name)
            with self._changed:
                self._parties -= 1
                self._end("failed")
            self._close_iterable(())

    def _take(self, until: float) -> tuple[bytes, bool]:
        """Return the blocks that are there, as soon as there are some, and whether they are the last.

        :param until: when a heartbeat is due, by the clock.
        """
        with self._changed:
            while not self._queue and self._reason is None:
                left = until - self._clock()
                if left <= 0:
                    return HEARTBEAT, False
                if not self._changed.wait(min(left, _LOOK)) and self._gone and self._gone():
                    return b"", True
            chunk = b"".join(self._queue)
            self._sent += len(self._queue)
            self._queue.clear()
            self._changed.notify_all()
            if self._reason is None:
                return chunk, False
            return chunk + item_end(self._reason, self._retry), True

    # The runner

    def _run(self) -> None:
        """Run the iterable. This is the whole life of the thread."""
        try:
            if self._breaker:
                self._interrupt = self._breaker()
            self._around(self._produce)
        except GeneratorExit:
            pass  # the client has gone, or has been told the end
        except Exception:  # noqa: BLE001 - logged
            _log.exception("sse.stream: the iterable of %s has failed", self._name)
        finally:
            with self._changed:
                self._end("done" if self._is_done else "failed")
            self._depart()

    def _produce(self) -> None:
        """Put the blocks of all values into the queue, and close the iterable, whatever happens."""
        iterator: object = ()
        try:
            iterator = values = iter(self._iterable)
            while self._is_wanted() and (value := self._next(values)) is not _NOTHING:
                for event in self._events(value):
                    self._put(item_block(event))
            if self._cr:
                self._put(item_block(Piece(self._cr)))
            self._is_done = True
        finally:
            self._close_iterable(iterator)

    def _next(self, values: Iterator[object]) -> object:
        self._awaits_value = True
        try:
            return next(values, _NOTHING)
        finally:
            self._awaits_value = False

    def _events(self, value: object) -> Iterator[Event]:
        """Yield the events that a value is: the pieces of a text, or the one event of any other value."""
        text, self._cr = self._cr, ""
        if isinstance(value, str):
            text += plain_str(value)
            if text.endswith("\r"):
                text, self._cr = text[:-1], "\r"
            text = text.replace("\r\n", "\n").replace("\r", "\n")  # before it is split between the two
        size = self._max_bytes if len(text) * 4 <= self._max_bytes else max(self._max_bytes // 4, 1)  # characters
        for start in range(0, len(text), size):
            yield Piece(text[start : start + size])
        if not isinstance(value, str):
            yield self._make_event(value)

    def _put(self, block: bytes) -> None:
        with self._changed:
            while len(self._queue) >= _AHEAD and self._reason is None and not self._left:
                self._changed.wait()
            if self._reason is None and not self._left:
                self._queue.append(block)
                self._changed.notify_all()

    def _is_wanted(self) -> bool:
        return self._reason is None and not self._left

    def _close_iterable(self, iterator: object) -> None:
        """Close the iterable and its iterator."""
        for each in (iterator,) if iterator is self._iterable else (iterator, self._iterable):
            close(each, self._name)

    # Both

    def _end(self, reason: EndReason) -> None:
        self._reason = self._reason or reason
        self._changed.notify_all()

    def _depart(self) -> None:
        """Give the seat back if both the runner and the server have gone."""
        with self._changed:
            self._parties -= 1
            is_over = self._parties == 0
        if is_over:
            self._hub.dismiss(self)


def close(iterable: object, name: str) -> None:
    """Close an iterable, if it can be closed. An error is logged.

    :param name: of the view, for the log.
    """
    if not callable(end := getattr(iterable, "close", None)):
        return
    try:
        end()
    except Exception:  # noqa: BLE001 - logged
        _log.exception("sse.stream: the iterable of %s could not be closed", name)
