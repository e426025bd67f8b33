"""The gunicorn worker that hands off what waits: a greenlet begins a stream or a poll, and `Fanout` goes on.

It, `fanout` and `sse.worker` alone know gevent and gunicorn, and import nothing of the app before that has found the
standard library patched. `sse.worker` is a stub for gunicorn's master, which imports this file after the fork.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import gevent
import gevent.socket
from gevent.pool import Group
from gevent.server import StreamServer
from gunicorn.http.body import Body, LengthReader  # type: ignore[import-untyped]
from gunicorn.http.errors import (  # type: ignore[import-untyped]
    LimitRequestHeaders,
    NoMoreData,
    ParseException,
)
from gunicorn.http.message import Request  # type: ignore[import-untyped]
from gunicorn.http.parser import RequestParser  # type: ignore[import-untyped]
from gunicorn.http.wsgi import Response  # type: ignore[import-untyped]
from gunicorn.sock import ssl_context  # type: ignore[import-untyped]
from gunicorn.util import make_fail_app  # type: ignore[import-untyped]
from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]

from sse.log import follow_gunicorn
from sse.server.head import Head
from sse.server.loop import LAST_CHUNK, PAUSE, Fanout, date, framed, has_left, send

if TYPE_CHECKING:
    from sse.service import Service
    from sse.transports.poll import Poll
    from sse.transports.stream import Stream

_ACCEPTED: Final = 1000  # connections that are let in before others have their turn
_SMALL: Final = 65_536  # bytes of an answer that goes out in one write
_WHOLE: Final = 2 << 20  # the same for the service's own, which are never given piece by piece
_SKIPS: Final = 20  # of 64 KB: more than may be published at once
_SKIP_SECONDS: Final = 2.0  # for the rest of a body that the app has left
_MOMENT: Final = 0.25  # seconds that a greenlet waits for the next request before the connection rests
_TICK: Final = 0.1  # seconds between two looks at the listeners, and at heads that are to give way
_AHEAD: Final = 0.5  # seconds before graceful_timeout in which what is left is cut
_HEAD_BYTES: Final = 131_072  # of a request's head: the longest that gunicorn.conf.py is meant for has 90 KB
_HEAD_SECONDS: Final = 20.0  # from a head's first byte to its last
_HEAD_AT_LEAST: Final = 1.0  # seconds that a head has in any case, even while others wait for a greenlet
_BODY_SECONDS: Final = 20.0  # that a body may take, beside what its bytes take at _BODY_RATE
_BODY_RATE: Final = 4096.0  # bytes a second
_BODY_STEP: Final = 65_536
_TRAILER_BYTES: Final = 16_384  # of what follows a chunked body; gunicorn searches it anew at each packet

_same = lru_cache(maxsize=1024)(lambda head: head)  # one object for equal ones: very many wait with the same


def _is_small(response: Any, most: int) -> bool:
    return (
        not response.headers_sent
        and response.response_length is not None
        and response.response_length <= most
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


def _has_input(connection: Any) -> bool:
    """Whether there is something to read, be it the end."""
    try:
        connection._sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _skip_body(request: Any) -> bool:
    """Read what the app has left of a request's body, within bounds; whether its end was reached."""
    if _is_read(request):
        return True
    if request.body.failed:
        return False
    ended = False
    with gevent.Timeout(_SKIP_SECONDS, False), contextlib.suppress(OSError, ParseException):
        for _ in range(_SKIPS):
            if not request.body.read(65_536):
                ended = True
                break
    return ended


class _Request(Request):  # type: ignore[misc]
    """gunicorn's request, whose head has bounded bytes, lines and time, and is parsed once: when it is there."""

    body: Any

    def parse(self, unreader: Any) -> Any:
        """Return what has come behind the head.

        :raises StopIteration: if nothing comes, or the head is not there in time: the connection is to be closed.
        """
        head = Head(_HEAD_BYTES, self.limit_request_line, self.cfg.proxy_protocol if self.req_number == 1 else "off")
        is_enough = False
        while not (is_enough or head.has_begun):
            is_enough = head.add(_read(unreader, head))
        if not is_enough:
            with gevent.Timeout(_HEAD_SECONDS, False):
                while not is_enough:
                    is_enough = head.add(_read(unreader, head))
        if not is_enough:
            raise StopIteration(f"the head of a request has not come within {_HEAD_SECONDS:g} s")
        if head.is_too_large:
            raise LimitRequestHeaders(f"the head of a request is over {_HEAD_BYTES} bytes")
        unreader.unread(head.data)  # from where the parser gets all of it at once
        self.max_buffer_headers = _TRAILER_BYTES
        return super().parse(unreader)

    def parse_headers(self, data: bytes, from_trailer: bool = False) -> Any:
        if data.count(b"\r\n") >= self.limit_request_fields:  # gunicorn does not count those that it drops
            raise LimitRequestHeaders("limit request headers fields")
        return super().parse_headers(data, from_trailer)

    def set_body_reader(self) -> None:
        super().set_body_reader()
        if not _is_read(self):
            self.body = _Body(self.body.reader)


class _Body(Body):  # type: ignore[misc]
    """gunicorn's body of a request, which gives up on a client that sends it too slowly."""

    def __init__(self, reader: Any) -> None:
        super().__init__(reader)
        self._patience = _BODY_SECONDS

    def _read_reader(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer.

        :raises TimeoutError: if they come too slowly; then the connection is closed after the answer.
        """
        size = min(size, _BODY_STEP)
        began = time.monotonic()
        with gevent.Timeout(self._patience + size / _BODY_RATE, TimeoutError("the body of a request comes too slowly")):
            data: bytes = super()._read_reader(size)
        earned = len(data) / _BODY_RATE - (time.monotonic() - began)
        self._patience = min(self._patience + earned, _BODY_SECONDS)
        return data


def _is_read(request: Any) -> bool:
    """Whether nothing of a request's body is yet to come, so that what comes next is another request."""
    reader = request.body.reader
    return not reader.length if isinstance(reader, LengthReader) else reader.parser is None


def _read(unreader: Any, head: Head) -> bytes:
    data: bytes = unreader.read()
    if data:
        return data
    if head.data:
        raise NoMoreData(bytes(head.data))
    raise StopIteration  # the client has closed between two requests


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


class _Reading(gevent.Timeout):  # type: ignore[misc]
    """The time for which a greenlet waits for a request. `_Request` bounds the time of the head itself."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker.cfg.keepalive, False)
        self._worker = worker
        self.greenlet = gevent.getcurrent()
        self.begun = time.monotonic()

    def __enter__(self) -> Any:
        self._worker.heads[self] = None
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        del self._worker.heads[self]
        return super().__exit__(*error)


class _Listener(StreamServer):  # type: ignore[misc]
    """Accepts connections for a worker. Only TLS needs a greenlet at once."""

    def __init__(self, worker: Worker, listener: Any) -> None:
        listener.setblocking(1)
        tls = {"ssl_context": ssl_context(worker.cfg)} if worker.cfg.is_ssl else {}
        super().__init__(listener, handle=worker.handle, spawn=worker.spawn, **tls)
        self._worker = worker
        self.full = worker.is_busy if tls else worker.is_full
        # All that have come, or nearly: the others wait in the listener's queue, and a unix socket whose queue is full
        # refuses clients at once.
        self.max_accept = _ACCEPTED
        self.start()

    def do_handle(self, client: Any, address: Any) -> None:
        if self.ssl_enabled:
            super().do_handle(client, address)
        else:
            self._worker.accepted(client, address)

    def wrap_socket_and_handle(self, client: Any, address: Any) -> None:
        with gevent.Timeout(_HEAD_SECONDS, False), contextlib.suppress(OSError):
            client = self.wrap_socket(client, **self.ssl_args)
        if isinstance(client, ssl.SSLSocket):
            with contextlib.closing(client):
                # Its own address stands for the listener's, which may be closed by now.
                self._worker.handle(client, client, address)


class _Resumed(gevent.socket.socket):  # type: ignore[misc]
    """A connection that had been handed off, and the bytes that had been read from it before their turn."""

    def __init__(self, fd: int, early: bytes) -> None:
        super().__init__(fileno=fd)
        self._early = early

    def recv(self, size: int, *flags: int) -> bytes:
        """Return the next bytes: those from before all at once, so that none are left where nobody looks for them."""
        early, self._early = self._early, b""
        data: bytes = early or super().recv(size, *flags)
        return data


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, which hands off what waits; what TLS, or the app, has wrapped keeps its greenlet."""

    wsgi: Any
    _fanout: Fanout

    def init_process(self) -> None:
        # Here and not in __init__, which runs in the master: `sse.worker` becomes this class only after the fork.
        self._greenlets = Group()  # each reads a request and answers it
        self._serving = 0  # how many of them have not ended: the group knows of an end only some time later
        self._clients: dict[Any, socket.socket] = {}  # by greenlet
        self.heads: dict[_Reading, None] = {}  # that are being read, oldest first
        self._cut = False  # the time that requests had to end is over
        self._is_replaced = False  # another process accepts what comes when this one ends
        RequestParser.mesg_class = _Request  # in this process, where gunicorn has no setting for it
        follow_gunicorn(self.log, self.cfg)
        super().init_process()

    def load_wsgi(self) -> None:
        self._fanout = Fanout(self.log, self.cfg.keepalive, self._give_back)
        try:
            app = self.app.wsgi()
        except (Exception, SystemExit) as error:
            if not self.cfg.reload:
                raise
            app = self._until_mended(error)
        self.wsgi = partial(self._call, app)

    def _until_mended(self, error: BaseException) -> Any:
        """Return an app that says what is wrong with the real one, under --reload, until any file that has to do with
        the error changes. gunicorn does this for a SyntaxError alone, and watches only the file that has it.
        """
        self.log.error(
            "The app cannot be loaded; that is tried again when a file of this traceback changes", exc_info=error
        )
        files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            files.append(error.filename)
        for file in files:
            if not file.startswith("<"):  # as Python names the code of its own importing
                self.reloader.add_extra_file(file)
        if isinstance(error, SyntaxError):
            return make_fail_app("".join(traceback.format_exception(error)))
        # The message of another error may have anything in it, and the page is for everybody.
        return make_fail_app(f"The app cannot be loaded: {type(error).__name__}. The log has the whole error.\n")

    @property
    def _services(self) -> list[Service]:
        """Return the services of all apps in this process. Nothing is imported for an app without SSE."""
        module = sys.modules.get("sse.service")
        return module.living() if module else []

    def _call(self, app: Any, environ: dict[str, Any], start_response: Any) -> Any:
        """Call the app. Return its body, or what this worker writes in gunicorn's place."""
        response, connection = start_response.__self__, environ["gunicorn.socket"]
        environ["sse.gone"] = partial(has_left, connection)
        if type(response) is not Response:
            return app(environ, start_response)  # HTTP/2 puts more than bytes on the connection
        if not isinstance(connection, ssl.SSLSocket):  # and so does TLS
            environ["sse.holds"] = True
        began = datetime.now()
        body = app(environ, start_response)
        if self._is_last(response.req):
            response.force_close()
        write: Callable[[Any, socket.socket, Any], None]
        if body is environ.get("sse.body", self) and "sse.holds" in environ and _is_read(response.req):
            write = self._hand_off_stream if body.is_stream else self._hand_off_poll
        elif _is_small(response, _WHOLE if "sse.whole" in environ else _SMALL) and not isinstance(
            body, environ["wsgi.file_wrapper"]
        ):
            write = self._answer
        else:
            return body
        return _Taken(body, write, environ, response, began)

    def _is_last(self, request: Any) -> bool:
        """Whether a request's connection is to end with its answer, whatever its client asks for."""
        # At the end of this process, gunicorn knows it of requests that come from then on; here are those under way.
        # The PROXY protocol tells at a connection's beginning whose it is, which no other greenlet would know.
        # A client that sends requests in advance would keep its greenlet for ever, while others wait for one.
        is_crowded = self._fanout.waiting and request.unreader.buf.getvalue()
        return bool(not self.alive or self.cfg.proxy_protocol != "off" or is_crowded)

    def is_already_handled(self, respiter: Any) -> bool:
        """Between the app and its body, by gunicorn's own hook."""
        if not isinstance(respiter, _Taken):
            return bool(super().is_already_handled(respiter))
        body, write, environ, response, began = respiter
        connection = environ["gunicorn.socket"]
        try:
            write(body, connection, response)
            self.log.access(response, response.req, environ, datetime.now() - began)
        except BaseException:
            respiter.close()
            raise
        is_gone = connection.fileno() < 0
        if not is_gone or write == self._answer:
            respiter.close()
        if is_gone or response.should_close():
            raise StopIteration  # which ends the connection's greenlet
        return True

    def _answer(self, body: Any, connection: socket.socket, response: Any) -> None:
        """Send head and body in one write: a system call is a large part of what a request costs.

        The fan-out sends what the client does not take at once, so that slow clients hold no greenlets.
        """
        data = b"".join(body)[: response.response_length]
        if len(data) < response.response_length or not _skip_body(response.req):
            response.force_close()  # or the next answer, or request, would be taken for the rest of this one
        response.sent, response.headers_sent = len(data), True
        data = b"%bDate: %b\r\n\r\n%b" % (_head(response), date(), data)
        sent = -1 if isinstance(connection, ssl.SSLSocket) else send(connection.fileno(), data)
        if sent < 0:
            connection.sendall(data)  # which waits, or tells what is wrong
        elif sent < len(data):
            early = response.req.unreader.take_buffered()
            rest = memoryview(data)[sent:]
            self._fanout.send_rest(connection.fileno(), rest, closes=response.should_close(), early=early)
            connection.detach()

    def _hand_off_stream(self, stream: Stream, connection: socket.socket, response: Any) -> None:
        # A request that has come behind it is never answered: the connection ends with the stream.
        opening = stream.open()
        response.sent = len(opening)
        cuts = stream.ended and stream.cuts
        if cuts:
            response.force_close()
        if response.chunked:
            opening = framed(opening, LAST_CHUNK if stream.ended and not cuts else b"")
        response.headers_sent = True
        connection.sendall(b"%bDate: %b\r\n\r\n%b" % (_head(response), date(), opening))
        if not stream.ended:
            self._fanout.take_over(connection.fileno(), stream, chunked=response.chunked)
            connection.detach()

    def _hand_off_poll(self, poll: Poll, connection: socket.socket, response: Any) -> None:
        response.chunked, response.response_length = False, 0  # its length is told when it is known
        early = response.req.unreader.take_buffered()
        self._fanout.hold(connection.fileno(), poll, _same(_head(response)), early)
        connection.detach()

    # A connection is served by a greenlet while a request of it is read and answered, and rests in the fan-out as a
    # mere number at all other times. If all greenlets are taken, those with a request wait there, first come, first
    # served: new ones too.

    def accepted(self, client: Any, address: Any) -> None:
        """Take a new connection. Runs in gevent's hub, and must not wait."""
        if self.is_busy() or self._fanout.waiting or not _has_input(client):
            self._fanout.rest(client.detach(), new=True)
        else:
            self.spawn(self.handle, client, client, address)

    def is_full(self) -> bool:
        """Whether no more connections can be accepted."""
        return self._fanout.is_full

    def is_busy(self) -> bool:
        """Whether all greenlets are taken."""
        return bool(self._serving >= self.worker_connections)

    def spawn(self, handle: Callable[..., None], *connection: Any) -> None:
        """Have a greenlet serve a connection."""
        self._serving += 1
        self._greenlets.spawn(self._serve, handle, *connection)

    def _give_back(self, fd: int) -> bool:
        if self.is_busy():
            return False
        self.spawn(self._go_on, fd)
        return True

    def _serve(self, handle: Callable[..., None], *connection: Any) -> None:
        """Serve a connection, and then those that wait for a greenlet."""
        try:
            handle(*connection)
            while self._fanout.waiting and not self._cut:
                self._go_on(self._fanout.waiting.popleft())
        finally:
            self._serving -= 1

    def _go_on(self, fd: int) -> None:
        """Serve the requests that come next on a connection."""
        with _Resumed(fd, self._fanout.early.pop(fd, b"")) as connection, contextlib.suppress(OSError):
            self.handle(connection, connection, connection.getpeername())

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Answer a request, and see what becomes of its connection.

        :raises StopIteration: if this greenlet is done with it: it is closed, handed off or rests.
        """
        try:
            super().handle_request(listener_name, req, sock, addr)
            if not self._cut and _skip_body(req) and self._may_go_on(req, sock):
                return
        except gevent.GreenletExit:
            pass  # gunicorn would tell the client of an error of ours
        raise StopIteration

    def _may_go_on(self, request: Any, sock: Any) -> bool:
        """Whether the greenlet is to read the next request of its connection; else that rests."""
        if request.unreader.buf.getvalue():
            gevent.sleep(PAUSE)  # let in what others send: this client has always more
            return True
        if isinstance(sock, ssl.SSLSocket):
            return True  # TLS has a state of its own, so it keeps its greenlet
        if not self._comes_at_once(sock):
            self._fanout.rest(sock.detach())
            return False
        return True

    def _comes_at_once(self, sock: Any) -> bool:
        """Whether the next request, or the end, comes within a moment: to wait costs less than to rest."""
        if _has_input(sock):
            gevent.sleep(PAUSE)  # as above
            return not self._fanout.waiting
        if not self.alive or self._serving > self.worker_connections // 2:
            return False
        sock.settimeout(_MOMENT)
        try:
            sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return False
        finally:
            sock.settimeout(None)
        return True

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        greenlet = gevent.getcurrent()
        self._clients[greenlet] = client
        try:
            super().handle(listener, client, addr)
        finally:
            del self._clients[greenlet]

    def timeout_ctx(self) -> gevent.Timeout:
        """Around gunicorn's wait for a request."""
        return _Reading(self)

    def _give_up_heads(self) -> None:
        """Close connections whose request has not come whole: all of them when this process ends, else those of over a
        second while all greenlets are taken. Runs in gevent's hub, from where alone a greenlet may be thrown into.
        """
        now = time.monotonic()
        for head in list(self.heads):
            if not self._cut and (not self.is_busy() or now - head.begun < _HEAD_AT_LEAST):
                break
            if self._cut or not _has_input(self._clients[head.greenlet]):  # else the fault is ours
                head.greenlet.throw(head)

    def handle_exit(self, sig: Any, frame: Any) -> None:
        self._is_replaced = True
        super().handle_exit(sig, frame)

    def run(self) -> None:
        services = self._services
        for service in services:
            service.admit = self._fanout.admit
        self._fanout.unread_since = lambda: min(filter(None, (one.hub.late_since for one in services)), default=0.0)
        self._fanout.room = self.worker_connections + sum(service.hub.max_subscribers for service in services)
        listeners = [_Listener(self, listener) for listener in self.sockets]
        while self.alive:
            self._tick(listeners)
        self._is_replaced |= self.cfg.workers > 1
        draining = gevent.spawn(self._drain)
        end = time.monotonic() + self.cfg.graceful_timeout - _AHEAD  # the master kills this process after that
        while time.monotonic() < end and not (draining.ready() and self._is_idle):
            if self._is_replaced or draining.ready():
                for listener in listeners:
                    listener.close()  # the master listens still, so nobody is turned away
            self._tick(listeners)
        for listener in listeners:
            listener.close()
        if left := self._serving + len(self._fanout.waiting):
            self.log.warning("%d requests are cut, their time is over", left)
            self._cut = True
            gevent.get_hub().loop.run_callback(self._give_up_heads)
            gevent.sleep(PAUSE)
            self._greenlets.kill(timeout=_AHEAD / 2)

    @property
    def _is_idle(self) -> bool:
        """Whether no connection is left."""
        return not self._serving and self._fanout.is_empty

    def _tick(self, listeners: list[_Listener]) -> None:
        self.notify()
        if self.is_busy():
            gevent.get_hub().loop.run_callback(self._give_up_heads)
        for listener in listeners:
            if not listener.closed:
                listener.start_accepting()  # again, if it was full
        gevent.sleep(_TICK)

    def _drain(self) -> None:
        """End what waits; requests that are under way, or come within a second, are answered first."""
        services = self._services
        window = max((service.config.drain for service in services), default=0)
        hubs = [gevent.spawn(service.hub.drain, window) for service in services]
        gevent.joinall([gevent.spawn(self._fanout.drain, window), *hubs])
