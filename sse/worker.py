"""The gunicorn worker that takes streams over: a greenlet writes a stream's head, one loop for all writes the rest.

What a stream says, and when, is `Stream`'s; here is only how it gets out. A stream that was handed off is a file
descriptor and a place, and no greenlet. The only module that knows gevent or gunicorn; it imports nothing of the app,
which has to find the standard library patched.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.event import Event
from gevent.monkey import get_original
from gevent.queue import SimpleQueue
from gunicorn.http.wsgi import Response  # type: ignore[import-untyped]
from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from sse.stream import Shared, Stream

_epoll = get_original("select", "epoll")
_EPOLLIN, _EPOLLOUT, _EPOLLRDHUP = 0x001, 0x004, 0x2000
_TURN: Final = 256  # streams written to before others have their turn
_PAUSE: Final = 0.0005  # a real timer: gevent.sleep(0) lets no input in
_TICK: Final = 0.25
_STALLED_AFTER: Final = 20.0
_ASKING: Final = 32  # streams for which the store is asked at the same time
_LAST_CHUNK: Final = b"0\r\n\r\n"  # RFC 9112, 7.1


class Connection:
    """A stream that was handed off, and what of its last write has not gone out yet."""

    __slots__ = ("_fanout", "asks", "chunked", "fd", "rest", "slot", "stalled_at", "stream")

    def __init__(self, fanout: Fanout, fd: int, stream: Stream, *, chunked: bool) -> None:
        self._fanout = fanout
        self.fd = fd
        self.stream = stream
        self.chunked = chunked
        self.asks = False  # a greenlet asks the store for it
        self.rest = b""
        self.stalled_at = 0.0
        self.slot = 0  # of the wheel, in which it is looked at next

    def __call__(self) -> None:
        """There may be something to take."""
        self._fanout.call(self)


class Fanout:
    """All streams of this worker that were handed off, and the loop that writes to them."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._connections: dict[int, Connection] = {}
        self._ready: set[Connection] = set()
        self._doomed: list[Connection] = []
        self._wheel: dict[int, list[Connection]] = {}
        self._turned = int(time.monotonic() / _TICK)
        self._wake = Event()
        self._asking: SimpleQueue = SimpleQueue()
        self._draining = False
        self._poller = _epoll()
        self._watcher = gevent.get_hub().loop.io(self._poller.fileno(), 1)
        self._watcher.start(self._heard)
        for step in (self._round, self._turn, *[self._ask] * _ASKING):
            gevent.spawn(self._keep_on, step)

    def take_over(self, fd: int, stream: Stream, *, chunked: bool) -> None:
        """From now on, nobody else writes to this connection or closes it."""
        os.set_blocking(fd, False)
        connection = self._connections[fd] = Connection(self, fd, stream, chunked=chunked)
        self._poller.register(fd, _EPOLLIN | _EPOLLRDHUP)
        if self._draining:
            self._goodbye(connection)
            self._wake.set()
            return
        self._set_timer(connection)
        stream.subscriber.wake_by(connection)

    def drain(self) -> None:
        """Say goodbye to all, and to whoever still comes."""
        self._draining = True
        for number, connection in enumerate(list(self._connections.values())):
            self._goodbye(connection)
            if number % _TURN == _TURN - 1:
                gevent.sleep(_PAUSE)
        self._bury()

    def call(self, connection: Connection) -> None:
        """Have it looked at in the next round."""
        self._ready.add(connection)
        if not self._wake.is_set():
            self._wake.set()

    def _keep_on(self, step: Callable[[], None]) -> None:
        while True:
            try:
                step()
            except Exception:  # noqa: BLE001 - logged; all streams of this worker depend on it
                self._log.exception("the fan-out goes on after a fault")

    # Rounds

    def _round(self) -> None:
        self._wake.wait()
        self._wake.clear()
        ready, self._ready = self._ready, set()
        shared: Shared = {}
        for number, connection in enumerate(ready):
            if not (connection.rest or connection.asks) and self._has(connection):
                self._serve(connection, shared)
            if number % _TURN == _TURN - 1:
                gevent.sleep(_PAUSE)
        self._bury()

    def _serve(self, connection: Connection, shared: Shared) -> None:
        try:
            chunk = connection.stream.quick(shared)
        except Exception:  # noqa: BLE001 - logged; one stream's fault is not the others'
            self._log.exception("a stream is cut after a fault")
            self._end(connection)
            return
        if chunk is None:
            connection.asks = True
            self._asking.put(connection)
        else:
            self._give(connection, chunk)

    def _ask(self) -> None:
        """Serve one that needs more than what the hub has at hand, which may take its time."""
        connection = self._asking.get()
        try:
            chunk = connection.stream.step() if self._has(connection) else b""
        except BaseException:
            self._end(connection)
            raise
        finally:
            connection.asks = False
            self._wake.set()
        if self._has(connection):
            self._give(connection, chunk)
            if not connection.stream.waits:
                self.call(connection)  # for what has come meanwhile

    def _give(self, connection: Connection, chunk: bytes) -> None:
        stream = connection.stream
        if chunk:
            if connection.chunked:
                chunk = b"%x\r\n%b\r\n%b" % (len(chunk), chunk, _LAST_CHUNK if stream.ended else b"")
            self._write(connection, chunk)
        if not connection.rest and stream.ended:
            self._end(connection)
        elif _slot(stream.due) < connection.slot:
            self._set_timer(connection)

    def _goodbye(self, connection: Connection) -> None:
        if not connection.rest:
            self._give(connection, connection.stream.end("drain"))
        self._end(connection)

    # The connections

    def _write(self, connection: Connection, data: bytes) -> None:
        try:
            sent = os.write(connection.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end(connection)
            return
        try:
            if sent == len(data):
                if connection.rest:
                    self._poller.modify(connection.fd, _EPOLLIN | _EPOLLRDHUP)
                connection.rest = b""
                connection.stream.written(time.monotonic())
                return
            if not connection.rest:
                self._poller.modify(connection.fd, _EPOLLIN | _EPOLLOUT | _EPOLLRDHUP)
                connection.stalled_at = time.monotonic()
            connection.rest = data[sent:]
        except OSError:
            self._end(connection)

    def _heard(self) -> None:
        """The event loop's callback, which must not wait: peers that have gone, and those that take more again."""
        for fd, events in self._poller.poll(0, 1024):
            connection = self._connections.get(fd)
            if connection is None:
                continue
            if events & ~(_EPOLLIN | _EPOLLOUT) or (events & _EPOLLIN and not _listens(fd)):
                self._end(connection)
            elif connection.rest:
                self._write(connection, connection.rest)
                if not connection.rest and connection.stream.ended:
                    self._end(connection)
                elif not connection.rest:
                    self.call(connection)
        if self._doomed:
            self._wake.set()

    def _has(self, connection: Connection) -> bool:
        return self._connections.get(connection.fd) is connection

    def _end(self, connection: Connection) -> None:
        """Forget it. Its number becomes free only at the end of a round: else another client could get its bytes."""
        if self._has(connection):
            del self._connections[connection.fd]
            with contextlib.suppress(OSError):
                self._poller.unregister(connection.fd)
            self._doomed.append(connection)

    def _bury(self) -> None:
        doomed, self._doomed = self._doomed, []
        for connection in doomed:
            if connection.asks:
                self._doomed.append(connection)  # until the store has answered
            elif connection.stream.closing:
                gevent.spawn(_close, connection)  # the app's own, which may wait
            else:
                _close(connection)

    # Time

    def _set_timer(self, connection: Connection) -> None:
        connection.slot = max(_slot(connection.stream.due), self._turned + 1)
        self._wheel.setdefault(connection.slot, []).append(connection)

    def _turn(self) -> None:
        gevent.sleep(_TICK)
        now = time.monotonic()
        while self._turned < int(now / _TICK):
            self._turned += 1
            for connection in self._wheel.pop(self._turned, ()):
                if connection.slot != self._turned or not self._has(connection):
                    continue  # it has another timer, or needs none
                if connection.rest and now - connection.stalled_at > _STALLED_AFTER:
                    self._end(connection)
                    self._wake.set()
                    continue
                if connection.stream.due <= now:
                    self.call(connection)
                self._set_timer(connection)


def _slot(moment: float) -> int:
    return int(moment / _TICK) + 1


def _listens(fd: int) -> bool:
    """Whether the peer is there still; what it says now is passed over."""
    try:
        return bool(os.read(fd, 4096))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _close(connection: Connection) -> None:
    try:
        connection.stream.close()
    finally:
        with contextlib.suppress(OSError):
            os.close(connection.fd)


class _Ready:
    """What the app gave for a request, where that is a stream which can be handed off."""

    def __init__(self, stream: Stream, environ: dict[str, Any], response: Any) -> None:
        self.stream = stream
        self.environ = environ
        self.response = response


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, which hands streams off; one that TLS, or the app, has wrapped keeps its greenlet."""

    wsgi: Any
    _fanout: Fanout

    def load_wsgi(self) -> None:
        super().load_wsgi()
        app = self.wsgi
        self._fanout = Fanout(self.log)

        def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
            body = app(environ, start_response)
            stream, response = environ.get("sse.stream"), start_response.__self__
            if stream is None or body is not stream:
                return body
            if type(response) is not Response or isinstance(environ["gunicorn.socket"], ssl.SSLSocket):
                return body  # HTTP/2 and TLS put more than bytes on the connection
            return _Ready(stream, environ, response)

        self.wsgi = wsgi

    def is_already_handled(self, respiter: Any) -> bool:
        """Between the app and its body, by gunicorn's own hook."""
        if not isinstance(respiter, _Ready):
            return False
        began = datetime.now()
        stream, response = respiter.stream, respiter.response
        try:
            response.write(stream.open())
            self.log.access(response, response.req, respiter.environ, datetime.now() - began)
        except BaseException:
            stream.close()
            raise
        if stream.ended:
            response.close()
            stream.close()
        else:
            connection: socket.socket = respiter.environ["gunicorn.socket"]
            self._fanout.take_over(connection.detach(), stream, chunked=response.chunked)
        raise StopIteration  # which ends the connection's greenlet

    def run(self) -> None:
        draining = gevent.spawn(self._drain)
        super().run()
        draining.join(2)

    def _drain(self) -> None:
        while self.alive:
            gevent.sleep(0.1)
        self._fanout.drain()
