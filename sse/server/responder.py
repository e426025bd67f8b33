"""The app's answers: this worker writes some of them instead of gunicorn, and hands off streams and waiting polls."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gunicorn.http.wsgi import Response  # type: ignore[import-untyped]

from sse.server.framing import LAST_CHUNK, date, framed
from sse.server.gunicorn_request import is_read, skip_body
from sse.server.lane_switch import LaneSwitch
from sse.server.rows import Rows, send
from sse.server.sockets import has_hung_up
from sse.transports.life import STALLED_AFTER

if TYPE_CHECKING:  # the library is not patched yet, so the transports, which need the stores, may not be imported
    from sse.transports.items import ItemStream
    from sse.transports.poll import Poll
    from sse.transports.probe import ProbeStream
    from sse.transports.stream import Stream

_SMALL: Final = 65_536  # bytes of an answer that goes out in one write
_WHOLE: Final = 2 << 20  # the same for the service's own answers, which come whole

# Equal heads become one object, because very many polls wait with the same head.
_interned = lru_cache(maxsize=1024)(lambda head: head)


class AppResponse(NamedTuple):
    """The app's answer to a request that this worker writes instead of gunicorn."""

    body: Any
    write: Callable[[Any, socket.socket, Any], None]
    environ: dict[str, Any]
    response: Any
    began: datetime

    def close(self) -> None:
        """Close the body, as a WSGI server has to (PEP 3333)."""
        if hasattr(self.body, "close"):
            self.body.close()


class Responder:
    """Calls the app, and writes its answers.

    :param is_last: returns whether a request's connection has to close after its answer, even if the client asks to
        keep it.
    :param uncounted: returns a context in which the greenlet does not count as one that answers a request.
    """

    def __init__(
        self,
        rows: Rows,
        is_last: Callable[[Any], bool],
        log: Any,
        uncounted: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._rows = rows
        self._is_last = is_last
        self._log = log
        self._uncounted = uncounted
        self.switch: LaneSwitch | None = None
        """Says whether the fast lane is on; None if there is none. Set before the first request."""

    def call(self, app: Any, environ: dict[str, Any], start_response: Any) -> Any:
        """Answer by the fast lane, or call the app.

        Return the body, or an `AppResponse` that this worker writes instead of gunicorn.
        """
        response, connection = start_response.__self__, environ["gunicorn.socket"]
        environ["sse.gone"] = partial(has_hung_up, connection)
        if type(response) is not Response:
            return app(environ, start_response)  # HTTP/2 has a framing of its own on the connection
        if not isinstance(connection, ssl.SSLSocket):  # and so has TLS
            environ["sse.can_hand_off"] = True
        began = datetime.now()
        body = self._ask_lane(environ, start_response)
        if body is None:
            body = app(environ, start_response)
        if self._is_last(response.req):
            response.force_close()
        write: Callable[[Any, socket.socket, Any], None]
        is_ours = body is environ.get("sse.body", self)
        if is_ours and body.keeps_greenlet:
            write = self._write_items
        elif is_ours and "sse.can_hand_off" in environ and is_read(response.req):
            write = self._hand_off_stream if body.is_stream else self._hand_off_poll
        elif _is_small(response, _WHOLE if "sse.whole" in environ else _SMALL) and not isinstance(
            body, environ["wsgi.file_wrapper"]
        ):
            write = self._write_whole
        else:
            return body
        return AppResponse(body, write, environ, response, began)

    def _ask_lane(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Return the body of the fast lane's answer; None if the request is the app's."""
        lane = self.switch.lane if self.switch and self.switch.is_on() else None
        if lane is None:
            return None
        route = lane.route(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        reply = lane.reply(route, lane.request(environ)) if route else None
        if reply is None:
            return None
        body = reply.body
        if isinstance(body, bytes):
            start_response(reply.status, [*reply.headers])
            environ["sse.whole"] = True
            return _broken_off(body) if reply.breaks_off else [body] if body else []
        try:
            start_response(reply.status, [*reply.headers])
        except BaseException:
            body.close()
            raise
        environ["sse.body"] = body
        return body

    def write(self, answer: AppResponse) -> None:
        """Write an answer.

        :raises StopIteration: if the greenlet is done with the connection: it closes, or was handed off.
        """
        body, write, environ, response, began = answer
        connection = environ["gunicorn.socket"]
        try:
            write(body, connection, response)
            self._log.access(response, response.req, environ, datetime.now() - began)
        except BaseException:
            answer.close()
            raise
        is_gone = connection.fileno() < 0
        if not is_gone or write == self._write_whole:
            answer.close()
        if is_gone or response.should_close():
            raise StopIteration

    def _write_whole(self, body: Any, connection: socket.socket, response: Any) -> None:
        """Send head and body in one write, because a system call is a large part of the cost of a request.

        The loop sends the bytes that the client does not take at once, so that slow clients hold no greenlets.
        """
        data = b"".join(body)[: response.response_length]
        if len(data) < response.response_length or not skip_body(response.req):
            response.force_close()  # else the next answer or request would be read as the rest of this one
        response.sent, response.headers_sent = len(data), True
        data = b"%bDate: %b\r\n\r\n%b" % (_head(response), date(), data)
        sent = -1 if isinstance(connection, ssl.SSLSocket) else send(os.write, connection.fileno(), data)
        if sent < 0:
            connection.sendall(data)  # this waits, or raises the error
        elif sent < len(data):
            read_ahead = response.req.unreader.take_buffered()
            unsent = memoryview(data)[sent:]
            self._rows.send_unsent(connection.fileno(), unsent, closes=response.should_close(), read_ahead=read_ahead)
            connection.detach()

    def _write_items(self, items: ItemStream | ProbeStream, connection: socket.socket, response: Any) -> None:
        """Send a stream that one client has for itself. It keeps its greenlet, which does not count as busy."""
        response.force_close()
        response.headers_sent = True
        unsent = b"%bDate: %b\r\n\r\n" % (_head(response), date())
        ends_at = time.monotonic() + items.longest
        with self._uncounted():
            connection.settimeout(STALLED_AFTER)  # for each part that the client takes
            try:
                for chunk in items:
                    response.sent += len(chunk)
                    _send_all(connection, unsent + (framed(chunk) if response.chunked else chunk), ends_at)
                    unsent = b""
                _send_all(connection, LAST_CHUNK if response.chunked else b"", ends_at)
            except TimeoutError:
                pass  # the client has stalled, or has vanished

    def _hand_off_stream(self, stream: Stream, connection: socket.socket, response: Any) -> None:
        # A request that has come behind this one is never answered, because the connection ends with the stream.
        opening = stream.open()
        response.sent = len(opening)
        if not (stream.ended or stream.cuts):
            response.force_close()  # else a proxy would send its next request on a connection that is just closing
        # Not with `end=cut`: Node's fetch takes the end of a connection that was to close for the end of the body.
        head = _head(response)
        is_cut = stream.ended and stream.cuts
        if is_cut:
            response.force_close()
        if response.chunked:
            opening = framed(opening, LAST_CHUNK if stream.ended and not is_cut else b"")
        response.headers_sent = True
        is_taken_over = False
        try:
            connection.sendall(b"%bDate: %b\r\n\r\n%b" % (head, date(), opening))
            if not stream.ended:
                self._rows.take_over_stream(connection.fileno(), stream, chunked=response.chunked)
                is_taken_over = True
                connection.detach()
        finally:
            if not is_taken_over:
                stream.log_end()

    def _hand_off_poll(self, poll: Poll, connection: socket.socket, response: Any) -> None:
        response.chunked, response.response_length = False, 0  # the row adds the length once the answer is there
        read_ahead = response.req.unreader.take_buffered()
        self._rows.take_over_poll(connection.fileno(), poll, _interned(_head(response)), read_ahead)
        connection.detach()


def _broken_off(body: bytes) -> Iterator[bytes]:
    """Give a body that breaks off at its end. gunicorn takes the connection for broken, and ends it without a word."""
    yield body
    raise BrokenPipeError(errno.EPIPE, "the body breaks off here")


def _send_all(connection: socket.socket, data: bytes, ends_at: float) -> None:
    """Send all data, however slowly the client takes it.

    :raises TimeoutError: if the client takes nothing for as long as the connection's timeout says, or is not done by
        `ends_at`.
    """
    left = memoryview(data)
    while left:
        left = left[connection.send(left) :]
        if left and time.monotonic() >= ends_at:
            raise TimeoutError


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
    """Return the head of gunicorn's response as gunicorn would write it, without the date and the final empty line."""
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
