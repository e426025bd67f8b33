"""The gunicorn worker that hands off what waits: a greenlet begins a stream or a poll, and `Fanout` goes on.

It and `fanout` alone know gevent and gunicorn, and import nothing of the app before that has found the standard library
patched.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import gevent
from gevent.pool import Group
from gunicorn.http.wsgi import Response  # type: ignore[import-untyped]
from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]

from sse.fanout import LAST_CHUNK, STALLED_AFTER, Fanout, date, framed, send

if TYPE_CHECKING:
    from sse.poll import Poll
    from sse.stream import Stream

_SMALL: Final = 65_536  # answers that go out in one write

_same = lru_cache(maxsize=1024)(lambda head: head)  # one object for equal ones: very many wait with the same


def _answer(body: Any, connection: socket.socket, response: Any) -> None:
    """Head and body in one write: a system call is a large part of what a request costs."""
    data = b"".join(body)[: response.response_length]
    response.sent, response.headers_sent = len(data), True
    data = b"%bDate: %b\r\n\r\n%b" % (_head(response), date(), data)
    sent = 0 if isinstance(connection, ssl.SSLSocket) else max(send(connection.fileno(), data), 0)
    if sent < len(data):
        connection.sendall(data[sent:])  # which waits, or tells what is wrong


def _is_small(response: Any) -> bool:
    return (
        not response.headers_sent
        and response.response_length is not None
        and response.response_length <= _SMALL
        and response.status_code not in (204, 304)
        and response.req.method != "HEAD"
        and not response.upgrade
    )


def _head(response: Any) -> bytes:
    """The head of gunicorn's response, as it would write it itself, but for the date and the end."""
    connection = "close" if response.should_close() else "keep-alive"
    major, minor = response.req.version
    lines = [
        f"HTTP/{major}.{minor} {response.status}\r\nServer: {response.version}\r\nConnection: {connection}\r\n",
        *[f"{name}: {value}\r\n" for name, value in response.headers],
    ]
    if response.chunked:
        lines.append("Transfer-Encoding: chunked\r\n")
    head: bytes = "".join(lines).encode("latin-1")
    return head


class _Taken(NamedTuple):
    """What the app gave for a request, where this worker and not gunicorn is to write it."""

    body: Any
    write: Callable[[Any, socket.socket, Any], None]
    environ: dict[str, Any]
    response: Any
    began: datetime

    def close(self) -> None:
        if hasattr(self.body, "close"):
            self.body.close()


class _Between(gevent.Timeout):  # type: ignore[misc]
    """A connection's time between two requests: then it may be ended, and nothing is lost."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker.cfg.keepalive, False)
        self._worker = worker
        self._greenlet = gevent.getcurrent()

    def __enter__(self) -> Any:
        self._worker.between.add(self._greenlet)
        if not self._worker.alive:
            self._worker.stop_reading(self._greenlet)
        return super().__enter__()

    def __exit__(self, *error: object) -> Any:
        self._worker.between.discard(self._greenlet)
        return super().__exit__(*error)


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, which hands off what waits; what TLS, or the app, has wrapped keeps its greenlet."""

    wsgi: Any
    _fanout: Fanout
    _service: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._given_back = Group()  # greenlets that gunicorn's pool does not know
        self._clients: dict[Any, socket.socket] = {}  # by greenlet
        self.between: set[Any] = set()  # greenlets that wait for a request

    def load_wsgi(self) -> None:
        super().load_wsgi()
        app = self.wsgi
        self._service = getattr(app, "extensions", {}).get("sse")
        self._fanout = Fanout(self.log, self.cfg.keepalive, self._give_back)

        def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
            response = start_response.__self__
            if type(response) is not Response:
                return app(environ, start_response)  # HTTP/2 puts more than bytes on the connection
            # So does TLS; a request that has come early would be lost, and a body that comes late be taken for one.
            if not (
                isinstance(environ["gunicorn.socket"], ssl.SSLSocket)
                or response.req.unreader.buf.getvalue()
                or environ.get("CONTENT_LENGTH", "0") != "0"
                or "HTTP_TRANSFER_ENCODING" in environ
            ):
                environ["sse.holds"] = True
            began = datetime.now()
            body = app(environ, start_response)
            write: Callable[[Any, socket.socket, Any], None]
            if body is environ.get("sse.body", self) and "sse.holds" in environ:
                write = self._hand_off_stream if hasattr(body, "step") else self._hand_off_poll
            elif _is_small(response) and not isinstance(body, environ["wsgi.file_wrapper"]):
                write = _answer
            else:
                return body
            return _Taken(body, write, environ, response, began)

        self.wsgi = wsgi

    def is_already_handled(self, respiter: Any) -> bool:
        """Between the app and its body, by gunicorn's own hook."""
        if not isinstance(respiter, _Taken):
            return False
        body, write, environ, response, began = respiter
        connection = environ["gunicorn.socket"]
        try:
            write(body, connection, response)
            self.log.access(response, response.req, environ, datetime.now() - began)
        except BaseException:
            respiter.close()
            raise
        if connection.fileno() < 0:
            raise StopIteration  # which ends the connection's greenlet
        respiter.close()
        if response.should_close():
            raise StopIteration
        return True

    def _hand_off_stream(self, stream: Stream, connection: socket.socket, response: Any) -> None:
        opening = stream.open()
        response.sent = len(opening)
        if response.chunked:
            opening = framed(opening, LAST_CHUNK if stream.ended else b"")
        response.headers_sent = True
        connection.sendall(b"%bDate: %b\r\n\r\n%b" % (_head(response), date(), opening))
        if not stream.ended:
            self._fanout.take_over(connection.fileno(), stream, chunked=response.chunked)
            connection.detach()

    def _hand_off_poll(self, poll: Poll, connection: socket.socket, response: Any) -> None:
        response.chunked, response.response_length = False, 0  # its length is told when it is known
        self._fanout.hold(connection.fileno(), poll, _same(_head(response)))
        connection.detach()

    def _give_back(self, fd: int, data: bytes, closes: bool) -> bool:
        if len(self._given_back) >= self.worker_connections:
            return False
        self._given_back.spawn(self._go_on, fd, data, closes)
        return True

    def _go_on(self, fd: int, data: bytes, closes: bool) -> None:
        """Serve what comes next on a connection whose poll is answered."""
        with socket.socket(fileno=fd) as connection, contextlib.suppress(OSError):
            if data:
                connection.settimeout(STALLED_AFTER)
                connection.sendall(data)
            if not closes:
                self.handle(connection, connection, connection.getpeername())

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        greenlet = gevent.getcurrent()
        self._clients[greenlet] = client
        try:
            super().handle(listener, client, addr)
        finally:
            del self._clients[greenlet]

    def timeout_ctx(self) -> gevent.Timeout:
        """Around gunicorn's wait for a request."""
        return _Between(self)

    def run(self) -> None:
        if self._service:
            self._fanout.room = self._service.hub.max_subscribers
        draining = gevent.spawn(self._drain)
        super().run()
        draining.join()
        self._given_back.join(self.cfg.graceful_timeout)

    def _drain(self) -> None:
        while self.alive:
            gevent.sleep(0.1)
        window = self._service.config.drain if self._service else 0
        waiting = [gevent.spawn(self._fanout.drain, window)]
        if self._service:
            waiting.append(gevent.spawn(self._service.hub.drain, window))
        gevent.joinall(waiting)
        for greenlet in self.between:
            self.stop_reading(greenlet)

    def stop_reading(self, greenlet: Any) -> None:
        """What has come from its client is served, and then the connection ends."""
        client = self._clients[greenlet]
        if not isinstance(client, ssl.SSLSocket):
            with contextlib.suppress(OSError):
                # Not gevent's own: that would throw an error at who waits, and what has come would be lost.
                client._sock.shutdown(socket.SHUT_RD)  # type: ignore[attr-defined]
