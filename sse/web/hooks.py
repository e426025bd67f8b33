"""The app's own hooks around the routes, and the responses that keep a stream or a poll from harm by them."""

from __future__ import annotations

import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Response, request
from werkzeug.datastructures import Headers
from werkzeug.http import parse_date
from werkzeug.wsgi import ClosingIterator

from sse.errors import Busy
from sse.log import warn, warn_once
from sse.transports.dialect import busy, busy_for
from sse.transports.poll import Poll
from sse.transports.stream import Cut, Stream
from sse.web.answers import STREAM_HEADERS, refusal

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_DISPATCH: Final[CodeType] = Flask.full_dispatch_request.__code__
_LONGEST_WAIT: Final = 86_400  # seconds that a client is told to wait, whatever the app says
_BUSY: Final = "sse.busy"
_OF_A_WHOLE: Final = ("content-length", "etag")  # headers that a stream cannot have

Hook = Callable[[Response], Response]


class HookedStream(Stream):
    """A stream that gives an empty body to a hook of the app.

    The hook would wait for ever, and the client would lose what the hook read.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        if reader := _reader():
            request.environ["sse.read"] = self
            warn_once(
                "%s reads the body of a stream, which has no end. It is given an empty body, and the client gets the "
                "stream. Have it do nothing where response.is_streamed is true",
                reader,
            )
        else:
            yield from super().__iter__()


class HookedPoll(Poll):
    """A poll that gives a hook of the app the answer, for which the hook has to wait."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        if reader := _reader():
            warn_once(
                "%s reads the body of a poll that waits, and so holds a greenlet until there is an answer. Have it do "
                "nothing where response.is_streamed is true",
                reader,
            )
            answers = request.environ.setdefault("sse.answer", [])
            answers += () if answers else super().__iter__()
            yield from answers
        elif self.subscriber.is_detached and (answer := self.open()):
            yield answer  # it was given up at the request's end, but the app has made a response of its own of it
        else:
            yield from super().__iter__()


def _reader() -> str:
    """Return the function of the app that reads a body before it is sent; empty if the server reads it, to send it."""
    frame: FrameType | None = sys._getframe(1)
    hook, method = None, ""
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
    place = f"the app's {code.co_qualname} ({code.co_filename}, line {hook.f_lineno})"
    return f"{place}, with {method}()," if method else place


def keep_streams_coming(retry: int, finish: Hook) -> Hook:
    """Return a hook that answers `busy` for a stream where the app answers 429 or 5xx, which would end an EventSource.

    A bare stream is answered 503 then. The hook runs before the app's hooks, and again among them, because one of them
    may answer so, or set the Retry-After. There it also puts a stream back where a hook has made a response of its own
    of the empty body that it read.

    :param retry: milliseconds that a client waits before it reconnects.
    :param finish: gives an answer the headers that all have.
    """

    def keep(response: Response) -> Response:
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
        if request.endpoint != "sse.stream" or request.method not in ("GET", "HEAD"):
            return response
        is_bare = _asks_for("form", "bare")
        if is_bare and status == 503 and is_busy(response):
            return response
        if is_refused:
            vars(response)[_BUSY] = True
            warn(
                "a stream is told that this service is busy, because the app answered %s in its place: if that is "
                'meant for pages alone, have it leave out request.blueprint == "sse"',
                response.status,
            )
        if is_bare:
            _refuse(response, retry, _retry_after(response))
        else:
            _replace(response, busy(retry, _retry_after(response)), STREAM_HEADERS)
            if _asks_for("end", "cut"):
                break_off(response)
        return finish(response)

    return keep


def _asks_for(name: str, value: str) -> bool:
    try:
        return request.args.getlist(name) == [value]
    except UnicodeDecodeError:  # where the app has answered, nobody has refused such a query
        return False


class Whole(Response):
    """A response that has all its headers, so that nothing has to be found out about them when it is sent."""

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:  # noqa: ARG002
        return self.headers

    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        environ["sse.whole"] = True  # for a server that can send it without a greenlet
        return super().get_app_iter(environ)


class WaitingResponse(Whole):
    """Gives the server the stream or poll itself. Our worker hands it off, and other servers iterate over it.

    A hook of the app may wrap the body or put another in its place. A stream that a hook has read is sent all the same:
    the content that the hook made of the empty body is dropped.
    """

    def __init__(self, body: Stream | Poll, headers: Mapping[str, str]) -> None:
        super().__init__(body, headers=headers)
        self._body = body

    def make_sequence(self) -> None:
        if isinstance(self.response, Stream):
            deque(self.response, 0)  # tells the log which hook reads it, and gives nothing
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
            self.response = environ["sse.answer"]  # of a poll, which a hook has waited for
        if self.is_sequence:
            return Response.get_wsgi_headers(self, environ)
        if isinstance(self._body, Stream) and any(name.lower() in _OF_A_WHOLE for name, _ in self.headers):
            for name in _OF_A_WHOLE:
                self.headers.remove(name)
        return super().get_wsgi_headers(environ)

    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        body = self._body
        environ.pop("sse.unsent", None)
        if self.response is not body or environ["REQUEST_METHOD"] == "HEAD":
            self.call_on_close(body.close)
            return Response.get_app_iter(self, environ)
        body.closing = self._on_close  # what the app wants done at the end
        environ["sse.body"] = body  # for a server that can tell it by that
        return body


def waiting(wanted: Any) -> type[WaitingResponse]:
    """Return the class of responses that the app wants each of its responses to have, made to wait."""
    return WaitingResponse if wanted is Response else type("WaitingResponse", (WaitingResponse, wanted), {})


class _Broken(Response):
    """A response whose body breaks off after its last byte."""

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:
        headers = super().get_wsgi_headers(environ)
        headers.remove("Content-Length")
        return headers

    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        body = super().get_app_iter(environ)
        if environ["REQUEST_METHOD"] == "HEAD":
            return body
        return ClosingIterator(_broken(body), getattr(body, "close", None))


def _broken(body: Iterable[bytes]) -> Iterator[bytes]:
    yield from body
    raise Cut


@lru_cache(maxsize=4)
def _broken_kind(kind: type[Response]) -> type[Response]:
    return type("Broken", (_Broken, kind), {})


def break_off(response: Response) -> None:
    """Have the body of a response break off at its end."""
    if not isinstance(response, _Broken):
        kind: Any = type(response)
        response.__class__ = _broken_kind(kind)


def busy_error(retry: int, after: int) -> Response:
    """Return the answer to a bare stream that cannot be served now.

    :param retry: milliseconds that a client waits before it reconnects.
    :param after: seconds before which it would come in vain.
    """
    response = Response()
    vars(response)[_BUSY] = True
    _refuse(response, retry, after)
    return response


def _refuse(response: Response, retry: int, after: int) -> None:
    """Have a response be the refusal of a bare stream, which the client is to ask for again."""
    wait = math.ceil(busy_for(retry, after) / 1000)
    hint = "wait as Retry-After says, then ask again with the same last event id"
    answer = refusal(Busy("this service is busy", hint, retry_after=wait))
    _replace(response, answer.body, dict(answer.headers))
    response.status_code = answer.status
    response.content_type = "application/json"


def _put_back(response: Response, stream: HookedStream) -> None:
    """Have a response that a hook made of a stream's empty body be that stream again."""
    if response.is_streamed:
        return  # it has the stream, or a wrapping of it
    response.response = stream
    response.call_on_close(stream.close)
    response.headers.update(STREAM_HEADERS)
    for name in ("Content-Length", "Content-Encoding", "ETag"):
        response.headers.remove(name)


def is_busy(response: Response) -> bool:
    """Tell whether a response says `busy` in the place of another."""
    return _BUSY in vars(response)


def _replace(response: Response, body: bytes, headers: Mapping[str, str]) -> None:
    """Have a response be 200, with this whole body and these headers. Cookies and other headers of the app stay."""
    if close := getattr(response.response, "close", None):
        response.call_on_close(close)
    response.status_code = 200
    response.direct_passthrough = False
    response.set_data(body)
    response.headers.update(headers)
    for name in ("Content-Encoding", "Content-Disposition", "ETag", "Last-Modified"):
        response.headers.remove(name)


def _retry_after(response: Response) -> int:
    """Return the seconds that a response's Retry-After tells (RFC 9110, 10.2.3); 0 if it tells none."""
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        seconds = int(text)
    elif moment := parse_date(text):
        seconds = round(moment.timestamp() - time.time())
    else:
        seconds = 0
    return min(max(seconds, 0), _LONGEST_WAIT)
