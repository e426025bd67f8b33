"""The gunicorn worker that takes streams over: a stream's head is written by a greenlet, the rest by one loop for all.

What a stream says and when is `Stream`'s; here is only how it gets out. A handed-off stream is a file descriptor and a
place, no greenlet. The only module that knows gevent or gunicorn.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.event import Event
from gevent.monkey import get_original
from gevent.queue import SimpleQueue
from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from sse.stream import Shared, Stream

_epoll = get_original("select", "epoll")
_EPOLLIN, _EPOLLOUT, _EPOLLRDHUP = 0x001, 0x004, 0x2000
_TURN: Final = 256  # streams served before others have their turn
_PAUSE: Final = 0.0005  # a real timer: gevent.sleep(0) lets no input in
_TICK: Final = 0.25
_STALLED_AFTER: Final = 20.0
_ASKING: Final = 32  # streams for which the store is asked at the same time
_LAST_CHUNK: Final = b"0\r\n\r\n"


class Seat:
    """A stream that was handed off: its connection, and what of its last write has not gone out yet."""

    __slots__ = ("busy", "chunked", "fd", "floor", "rest", "since", "stream", "timed")

    def __init__(self, floor: Floor, fd: int, stream: Stream, *, chunked: bool) -> None:
        self.floor = floor
        self.busy = False  # a greenlet asks the store for it
        self.fd = fd
        self.stream = stream
        self.chunked = chunked
        self.rest = b""
        self.since = 0.0  # when it began not to take more
        self.timed = 0.0  # the moment that its timer stands at

    def __call__(self) -> None:
        """There may be something to take."""
        self.floor.call(self)


class Floor:
    """All seats of this worker, and the loop that serves them."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.seats: dict[int, Seat] = {}
        self._ready: set[Seat] = set()
        self._doomed: list[Seat] = []
        self._wheel: dict[int, list[Seat]] = {}
        self._turned = int(time.monotonic() / _TICK)
        self._wake = Event()
        self._asking: SimpleQueue = SimpleQueue()
        self._poller = _epoll()
        self._watcher = gevent.get_hub().loop.io(self._poller.fileno(), 1)
        self._watcher.start(self._heard)
        for loop in (self._run, self._turn_wheel, *[self._ask] * _ASKING):
            gevent.spawn(loop)

    def seat(self, fd: int, stream: Stream, *, chunked: bool) -> None:
        """Take a connection over, from now on the only one to write to it and to close it."""
        os.set_blocking(fd, False)
        seat = self.seats[fd] = Seat(self, fd, stream, chunked=chunked)
        self._poller.register(fd, _EPOLLIN | _EPOLLRDHUP)
        self._set_timer(seat)
        stream.subscriber.wake_by(seat)

    def drain(self) -> None:
        """Say goodbye to all, and close."""
        for number, seat in enumerate(list(self.seats.values())):
            if not seat.rest:
                self._write(seat, seat.stream.end("drain"))
            self._end(seat)
            if number % _TURN == _TURN - 1:
                gevent.sleep(_PAUSE)
        self._bury()

    def call(self, seat: Seat) -> None:
        """Have this seat served in the next round."""
        self._ready.add(seat)
        if not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            ready, self._ready = self._ready, set()
            shared: Shared = {}
            for number, seat in enumerate(ready):
                self._serve(seat, shared)
                if number % _TURN == _TURN - 1:
                    gevent.sleep(_PAUSE)
            self._bury()

    def _serve(self, seat: Seat, shared: Shared) -> None:
        if seat.rest or seat.busy or seat.fd not in self.seats:
            return  # it goes on when the rest is out, or the store has answered
        chunk = seat.stream.quick(shared)
        if chunk is None:
            seat.busy = True
            self._asking.put(seat)
        else:
            self._give(seat, chunk)

    def _ask(self) -> None:
        """Serve those that need more than what is at hand, one after the other."""
        while True:
            self._serve_slowly(self._asking.get())
            if self._doomed:
                self._wake.set()

    def _serve_slowly(self, seat: Seat) -> None:
        try:
            chunk = seat.stream.step()
        except Exception:  # noqa: BLE001 - logged; one stream's fault is not the others'
            self._log.exception("a stream could not go on")
            self._end(seat)
        else:
            seat.busy = False
            if seat.fd in self.seats:
                self._give(seat, chunk)
                if not seat.stream.waits:
                    self.call(seat)  # for what came meanwhile

    def _give(self, seat: Seat, chunk: bytes) -> None:
        if chunk:
            self._write(seat, chunk)
        if seat.stream.ended and not seat.rest:
            self._end(seat)
        elif seat.stream.due < seat.timed:
            self._set_timer(seat)

    def _write(self, seat: Seat, chunk: bytes) -> None:
        if seat.chunked:
            chunk = b"%x\r\n%b\r\n%b" % (len(chunk), chunk, _LAST_CHUNK if seat.stream.ended else b"")
        self._push(seat, chunk)

    def _push(self, seat: Seat, data: bytes) -> None:
        try:
            sent = os.write(seat.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end(seat)
            return
        if sent == len(data):
            if seat.rest:
                self._poller.modify(seat.fd, _EPOLLIN | _EPOLLRDHUP)
                seat.rest = b""
            seat.stream.written(time.monotonic())
            return
        if not seat.rest:
            self._poller.modify(seat.fd, _EPOLLIN | _EPOLLOUT | _EPOLLRDHUP)
            seat.since = time.monotonic()
        seat.rest = data[sent:]

    def _heard(self) -> None:
        """The loop's callback: peers that have gone, and those that take more again."""
        for fd, events in self._poller.poll(0, 1024):
            seat = self.seats.get(fd)
            if seat is None:
                continue
            if events & ~(_EPOLLIN | _EPOLLOUT) or (events & _EPOLLIN and not self._drink(fd)):
                self._end(seat)
            elif events & _EPOLLOUT and seat.rest:
                self._push(seat, seat.rest)
                if not seat.rest:
                    if seat.stream.ended:
                        self._end(seat)
                    else:
                        self.call(seat)
        if self._doomed:
            self._wake.set()

    def _drink(self, fd: int) -> bool:
        """Whether the peer is there still; what it says now is not listened to."""
        try:
            return bool(os.read(fd, 4096))
        except BlockingIOError:
            return True
        except OSError:
            return False

    # Ends and timers

    def _end(self, seat: Seat) -> None:
        """Forget a seat. Its number is free only at the end of a round: another client could get what is for it."""
        if self.seats.pop(seat.fd, None) is None:
            return
        self._doomed.append(seat)
        seat.stream.close()

    def _bury(self) -> None:
        doomed, self._doomed = self._doomed, []
        for seat in doomed:
            fd, seat.fd = seat.fd, -1
            with contextlib.suppress(OSError):
                os.close(fd)

    def _set_timer(self, seat: Seat) -> None:
        seat.timed = seat.stream.due
        self._wheel.setdefault(max(int(seat.timed / _TICK), self._turned) + 1, []).append(seat)

    def _turn_wheel(self) -> None:
        while True:
            gevent.sleep(_TICK)
            now = time.monotonic()
            upto = int(now / _TICK)
            for slot in range(self._turned + 1, upto + 1):
                for seat in self._wheel.pop(slot, ()):
                    self._time(seat, now)
            self._turned = upto

    def _time(self, seat: Seat, now: float) -> None:
        if seat.fd < 0 or seat.fd not in self.seats:
            return
        if seat.rest and now - seat.since > _STALLED_AFTER:
            self._end(seat)
            self._wake.set()
            return
        if seat.stream.due <= now and not seat.rest:
            self.call(seat)
        self._set_timer(seat)


class _Handed:
    """A stream on its way from the app to the floor."""

    def __init__(self, stream: Stream, environ: dict[str, Any], response: Any) -> None:
        self.stream = stream
        self.environ = environ
        self.response = response


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, and a floor for streams."""

    floor: Floor
    wsgi: Any

    def load_wsgi(self) -> None:
        super().load_wsgi()
        app: Any = self.wsgi
        self.floor = Floor(self.log)

        def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            body = app(environ, start_response)
            stream = environ.get("sse.stream")
            if stream is None or body is not stream or isinstance(environ["gunicorn.socket"], ssl.SSLSocket):
                return body  # type: ignore[no-any-return]
            return _Handed(stream, environ, start_response.__self__)  # type: ignore[return-value]

        self.wsgi = wsgi

    def is_already_handled(self, respiter: Any) -> bool:
        if not isinstance(respiter, _Handed):
            return False
        self._hand_off(respiter.stream, respiter.environ, respiter.response)
        raise StopIteration

    def _hand_off(self, stream: Stream, environ: dict[str, Any], response: Any) -> None:
        began = datetime.now()
        connection: socket.socket = environ["gunicorn.socket"]
        try:
            response.write(stream.open())
            self.log.access(response, response.req, environ, datetime.now() - began)
            if stream.ended:
                response.close()
                stream.close()
                return
        except BaseException:
            stream.close()
            raise
        self.floor.seat(connection.detach(), stream, chunked=response.chunked)

    def run(self) -> None:
        drain = gevent.spawn(self._drain)
        super().run()
        drain.join(2)

    def _drain(self) -> None:
        while self.alive:
            gevent.sleep(0.1)
        self.floor.drain()
