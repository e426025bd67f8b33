"""Responses, and a hook, that keep streams and polls working whatever the app's own hooks do.

Flask passes each response to the app's after_request hooks. A hook may read the body, which never ends in a stream; it
may wrap or replace it; or it may answer 429 or 5xx, after which an EventSource never reconnects. So:

- A stream gives an empty body to a hook that reads it (`HookedStream`), and the stream is sent all the same.
- A poll gives a hook its answer, and the hook waits for it (`HookedPoll`).
- The server gets the stream or poll object itself, if no hook has wrapped it (`WaitingResponse`).
- A refusal by the app is replaced by the answer `busy`, so that the client reconnects (`make_hook`).

All of this holds for the views of the app that answer with a stream or poll, too, wherever they stand.
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Response, request
from werkzeug.datastructures import Headers
from werkzeug.http import parse_date
from werkzeug.wsgi import ClosingIterator

from sse.log import warn, warn_once
from sse.transports import dialect
from sse.transports.items import ItemStream
from sse.transports.poll import Poll
from sse.transports.probe import ProbeStream
from sse.transports.stream import Cut, Stream
from sse.web.answers import STREAM_HEADERS, BusyAnswer, busy

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_DISPATCH: Final[CodeType] = Flask.full_dispatch_request.__code__
_LONGEST_WAIT: Final = 86_400  # seconds that a client is told to wait at most, whatever the app's Retry-After
_BUSY: Final = "sse.busy"
# Headers of a body that is known as a whole, which a stream's is not.
_OF_COMPLETE_BODIES: Final = ("content-length", "etag")

Hook = Callable[[Response], Response]
Endless = Stream | ItemStream | ProbeStream


class HookedStream(Stream):
    """A stream that gives an empty body to a hook of the app that reads it.

    Otherwise the hook would wait for ever, and the client would not get the events that the hook has read.
    """

    __slots__ = ()

    def open(self) -> bytes:
        """Return the first blocks. After a fault that nobody expected, return the whole body, as if it was busy.

        The head of the answer says 200 by now, and with an error status an EventSource would never come back.
        """
        try:
            return self._open()
        except Exception:  # noqa: BLE001 - logged, and told to the client
            warn("a stream is told that this service is busy, because it could not be opened", exc_info=True)
            self.close()
            self.reason, self.lost = "busy", self.dialect.bare
            return dialect.busy(self.dialect.retry, bare=self.dialect.bare)

    def _open(self) -> bytes:
        return super().open()

    def __iter__(self) -> Iterator[bytes]:
        if reader := _reading_function():
            _give_nothing(self, reader)
        else:
            yield from super().__iter__()


class HookedItemStream(ItemStream):
    """The same for a stream that one client has for itself."""

    def __iter__(self) -> Iterator[bytes]:
        if reader := _reading_function():
            _give_nothing(self, reader)
        else:
            yield from super().__iter__()


class HookedProbeStream(ProbeStream):
    """The same for a probe of the doctor."""

    def __iter__(self) -> Iterator[bytes]:
        if reader := _reading_function():
            _give_nothing(self, reader)
        else:
            yield from super().__iter__()


class HookedPoll(Poll):
    """A poll that gives its answer to a hook of the app that reads it, after the hook has waited for it."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        if reader := _reading_function():
            warn_once(
                "%s reads the body of a poll that waits, and so holds a greenlet until there is an answer. Have it do "
                "nothing where response.is_streamed is true",
                reader,
            )
            answers = request.environ.setdefault("sse.answer", [])
            answers += () if answers else super().__iter__()
            yield from answers
        elif self.subscriber.is_detached and (answer := self.open()):
            yield answer  # the poll was closed at the request's end, but the app has put it into a response of its own
        else:
            yield from super().__iter__()


def _give_nothing(stream: Endless, reader: str) -> None:
    """Note that a hook has read this stream, and log which one."""
    request.environ["sse.read"] = stream
    warn_once(
        "%s reads the body of a stream, which has no end. It is given an empty body, and the client gets the stream. "
        "Have it do nothing where response.is_streamed is true",
        reader,
    )


def _reading_function() -> str:
    """Return the function of the app that is reading the body now, as a text for the log.

    The text is empty if no hook reads it, but the server does, to send it: then Flask's dispatch is not on the stack.
    """
    frame: FrameType | None = sys._getframe(1)
    hook, method = None, ""  # the frame of the app's code, and the method of werkzeug that it calls
    while frame is not None and frame.f_code is not _DISPATCH:
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module == "werkzeug" and hook is None:
            method = frame.f_code.co_name.removeprefix("_")
        elif module not in ("sse", "flask", "werkzeug", "blinker"):
            hook = frame
        frame = frame.f_back
    if frame is None:
        return ""
    if hook is None:
        return "a hook of the app"
    code = hook.f_code
    name = f"the app's {code.co_qualname} ({code.co_filename}, line {hook.f_lineno})"
    return f"{name}, with {method}()," if method else name


def make_hook(retry: int, add_headers: Hook, blueprint: str, own_endpoints: Collection[str]) -> Hook:
    """Return a hook that replaces the app's 429 or 5xx answer to a stream's request by the answer `busy`.

    An EventSource would never reconnect after such a status. A bare stream gets 503 instead of `busy`. The hook runs
    before the app's hooks, and again among them, because one of them may answer with such a status, or set Retry-After.
    It also puts a stream back into a response that a hook has made of the empty body that it read.

    :param retry: milliseconds that a client waits before it reconnects.
    :param add_headers: adds the headers that all answers have.
    :param blueprint: the name of the routes' blueprint.
    :param own_endpoints: the endpoints of views of the app that have answered with a stream.
    """
    route = f"{blueprint}.stream"

    def replace_refusal(response: Response) -> Response:
        status = response.status_code
        is_refused = status == 429 or status >= 500
        if not is_refused and not is_busy(response):
            if (
                status == 200
                and (stream := request.environ.get("sse.read"))
                and not isinstance(response, WaitingResponse)
            ):
                _put_back(response, stream)
            return response
        if not _is_for_stream(route, own_endpoints) or "sse.probe" in request.environ:
            return response
        is_bare = _asks_for("form", "bare")
        if is_bare and status == 503 and is_busy(response):
            return response
        if is_refused:
            vars(response)[_BUSY] = True
            warn(
                "a stream is told that this service is busy, because the app answered %s in its place: if that is "
                "meant for pages only, make an exception where %s",
                response.status,
                f'request.blueprint == "{blueprint}"' if request.endpoint == route else "its view stands",
            )
        answer = busy(retry, _retry_after(response), bare=is_bare, cut=_asks_for("end", "cut"))
        if is_bare:
            _refuse(response, answer)
        else:
            _replace(response, answer.body, answer.headers)
            if answer.breaks_off:
                break_off(response)
        if request.endpoint != route:
            response.headers.add("Vary", "Accept")
        return add_headers(response)

    return replace_refusal


def _is_for_stream(route: str, own_endpoints: Collection[str]) -> bool:
    """Return True if the current request is for a stream, of the route or of a view of the app."""
    if request.endpoint == route:
        return request.method in ("GET", "HEAD")
    if answered := request.environ.get("sse.own"):
        return bool(answered[0] == "stream")
    # The app has answered before its view did. A page that the same view shows gets the app's answer.
    return request.endpoint in own_endpoints and "text/event-stream" in request.accept_mimetypes.values()


def _asks_for(name: str, value: str) -> bool:
    """Return True if the query, or the view of the app in its place, has this parameter once, with this value."""
    _, given = request.environ.get("sse.own", ("", {}))
    try:
        return (given.get(name) or request.args.getlist(name)) == [value]
    except UnicodeDecodeError:  # the app has answered before this service could refuse such a query
        return False


class CompleteResponse(Response):
    """A response whose headers are complete, so that none has to be worked out when it is sent."""

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:  # noqa: ARG002
        return self.headers

    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        environ["sse.whole"] = True  # tells our worker that it can send the body without a greenlet
        return super().get_app_iter(environ)


class WaitingResponse(CompleteResponse):
    """A response that gives the server the stream or poll itself. Our worker hands it off, and others iterate over it.

    If a hook of the app has wrapped or replaced the body, the server gets that body. A stream that a hook has read is
    sent all the same, and the content that the hook made of the empty body is dropped.
    """

    def __init__(self, body: Endless | Poll, headers: Mapping[str, str]) -> None:
        super().__init__(body, headers=headers)
        self._body = body

    def make_sequence(self) -> None:
        if isinstance(self.response, Endless):
            deque(self.response, 0)  # gives nothing, and logs which hook reads the stream
        else:
            super().make_sequence()

    def _ensure_sequence(self, mutable: bool = False) -> None:
        super()._ensure_sequence(mutable)
        if mutable and not self.is_sequence:
            self.response = []

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:
        is_read = "sse.read" in environ and not is_busy(self) and self.status_code == 200
        if is_read and self.is_sequence:
            self.response = self._body
            self.headers.remove("Content-Encoding")
        elif self.response is self._body and "sse.answer" in environ:
            self.response = environ["sse.answer"]  # the poll's answer, for which a hook has waited
        if self.is_sequence:
            return Response.get_wsgi_headers(self, environ)
        if isinstance(self._body, Endless) and any(name.lower() in _OF_COMPLETE_BODIES for name, _ in self.headers):
            for name in _OF_COMPLETE_BODIES:
                self.headers.remove(name)
        return super().get_wsgi_headers(environ)

    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        body = self._body
        environ.pop("sse.unsent", None)
        if self.response is not body or environ["REQUEST_METHOD"] == "HEAD":
            self.call_on_close(body.close)
            return Response.get_app_iter(self, environ)
        # The functions that the app wants called at the end, after those that the body has of its own.
        body.closing = [*body.closing, *self._on_close] if body.closing else self._on_close
        environ["sse.body"] = body  # tells our worker that it can hand this body off
        return body


def waiting_class(base: Any) -> type[WaitingResponse]:
    """Return a WaitingResponse that is also a subclass of the app's own class of responses."""
    return WaitingResponse if base is Response else type("WaitingResponse", (WaitingResponse, base), {})


class _BrokenOff(Response):
    """A response whose body breaks off after its last byte, without the end that HTTP prescribes."""

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:
        headers = super().get_wsgi_headers(environ)
        headers.remove("Content-Length")
        return headers

    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        body = super().get_app_iter(environ)
        if environ["REQUEST_METHOD"] == "HEAD":
            return body
        return ClosingIterator(_cut_at_end(body), getattr(body, "close", None))


def _cut_at_end(body: Iterable[bytes]) -> Iterator[bytes]:
    yield from body
    raise Cut


@lru_cache(maxsize=4)
def _broken_off_class(base: type[Response]) -> type[Response]:
    return type("BrokenOff", (_BrokenOff, base), {})


def break_off(response: Response) -> None:
    """Make the body of a response break off at its end, for a client that reconnects only after a broken connection."""
    if not isinstance(response, _BrokenOff):
        base: Any = type(response)
        response.__class__ = _broken_off_class(base)


def busy_error(answer: BusyAnswer) -> Response:
    """Return the 503 to a bare stream that cannot be served now."""
    response = Response()
    vars(response)[_BUSY] = True
    _refuse(response, answer)
    return response


def _refuse(response: Response, answer: BusyAnswer) -> None:
    """Turn a response into the refusal of a bare stream, which tells the client when to ask again."""
    _replace(response, answer.body, answer.headers)
    response.status_code = answer.status


def _put_back(response: Response, stream: Endless) -> None:
    """Put a stream back into a response that a hook made of the stream's empty body."""
    if response.is_streamed:
        return  # its body is the stream, or wraps it
    response.response = stream
    response.call_on_close(stream.close)
    response.headers.update(STREAM_HEADERS)
    for name in ("Content-Length", "Content-Encoding", "ETag"):
        response.headers.remove(name)


def is_busy(response: Response) -> bool:
    """Return True if a response is the answer `busy`, or the 503 of a bare stream, in place of another answer."""
    return _BUSY in vars(response)


def _replace(response: Response, body: bytes, headers: Mapping[str, str]) -> None:
    """Turn a response into a 200 with this body and these headers. Cookies and other headers of the app stay."""
    if close := getattr(response.response, "close", None):
        response.call_on_close(close)
    response.status_code = 200
    response.direct_passthrough = False
    response.set_data(body)
    response.headers.update(headers)
    for name in ("Content-Encoding", "Content-Disposition", "ETag", "Last-Modified"):
        response.headers.remove(name)


def _retry_after(response: Response) -> int:
    """Return the seconds in a response's Retry-After (RFC 9110, 10.2.3); 0 if it has none."""
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        seconds = int(text)
    elif moment := parse_date(text):
        seconds = round(moment.timestamp() - time.time())
    else:
        seconds = 0
    return min(max(seconds, 0), _LONGEST_WAIT)
