"""gunicorn's requests with bounds: the size and time of a head are limited, and a body must not come too slowly."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

import gevent
from gunicorn.http.body import Body as GunicornBody  # type: ignore[import-untyped]
from gunicorn.http.body import LengthReader
from gunicorn.http.errors import (  # type: ignore[import-untyped]
    LimitRequestHeaders,
    NoMoreData,
    ParseException,
)
from gunicorn.http.message import Request as GunicornRequest  # type: ignore[import-untyped]

from sse.server.head import MAX_HEAD, Head

HEAD_SECONDS: Final = 20.0
"""Seconds from a head's first byte to its last."""

_TRAILER_BYTES: Final = 16_384  # behind a chunked body; gunicorn searches them from the beginning at each packet
_BODY_SECONDS: Final = 20.0  # that a body may take in addition to the time of its bytes at _BODY_RATE
_BODY_RATE: Final = 4096.0  # bytes a second
_BODY_STEP: Final = 65_536  # bytes in one read
_SKIPS: Final = 20  # reads of 64 KB: together more than one publish may have
_SKIP_SECONDS: Final = 2.0  # to read the rest of a body that the app has not read


class Request(GunicornRequest):  # type: ignore[misc]
    """gunicorn's request. The bytes, lines and time of its head are bounded, and it is parsed once it is complete."""

    body: Any

    def parse(self, unreader: Any) -> Any:
        """Read and parse the head. Return the bytes that have come behind it.

        :raises StopIteration: if nothing comes, or the head is not complete in time. The connection is closed then.
        :raises LimitRequestHeaders: if the head is too large.
        """
        head = Head(MAX_HEAD, self.limit_request_line, self.cfg.proxy_protocol if self.req_number == 1 else "off")
        is_enough = False
        while not (is_enough or head.has_begun):
            is_enough = head.add(_read(unreader, head))
        if not is_enough:
            with gevent.Timeout(HEAD_SECONDS, False):
                while not is_enough:
                    is_enough = head.add(_read(unreader, head))
        if not is_enough:
            raise StopIteration(f"the head of a request has not come within {HEAD_SECONDS:g} s")
        if head.is_too_large:
            raise LimitRequestHeaders(f"the head of a request is over {MAX_HEAD} bytes")
        unreader.unread(head.data)  # the parser gets all of it at once from there
        self.max_buffer_headers = _TRAILER_BYTES
        return super().parse(unreader)

    def parse_headers(self, data: bytes, from_trailer: bool = False) -> Any:
        """Return the headers, as gunicorn does.

        :raises LimitRequestHeaders: if there are too many. Headers that gunicorn drops count here, too.
        """
        if data.count(b"\r\n") >= self.limit_request_fields:
            raise LimitRequestHeaders("limit request headers fields")
        return super().parse_headers(data, from_trailer)

    def set_body_reader(self) -> None:
        """Give the body a reader that refuses a slow client, unless the request has no body."""
        super().set_body_reader()
        if not is_read(self):
            self.body = Body(self.body.reader)


class Body(GunicornBody):  # type: ignore[misc]
    """gunicorn's body of a request. Reading it fails if the client sends it too slowly."""

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


def is_read(request: Any) -> bool:
    """Return whether a request's body has been read to its end, so that the next bytes belong to another request."""
    reader = request.body.reader
    return not reader.length if isinstance(reader, LengthReader) else reader.parser is None


def skip_body(request: Any) -> bool:
    """Read the rest of a body that the app has not read, within bounds. Return whether its end was reached."""
    if is_read(request):
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


def _read(unreader: Any, head: Head) -> bytes:
    data: bytes = unreader.read()
    if data:
        return data
    if head.data:
        raise NoMoreData(bytes(head.data))
    raise StopIteration  # the client has closed between two requests
