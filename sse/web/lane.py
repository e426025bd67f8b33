"""The fast lane: answers to streams, polls and publish requests without Flask, as values that a server sends.

They are those that Flask would give, byte for byte but for the date and random ids: `answering` decides for both.
A request that the lane cannot answer alike, or that a function of the app has to decide, is left to Flask.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from werkzeug.exceptions import InternalServerError
from werkzeug.http import HTTP_STATUS_CODES

from sse.config import Config
from sse.errors import InvalidEvent, SSEError
from sse.event import Position, check_channel
from sse.stores import Publication
from sse.transports.poll import Poll
from sse.transports.stream import Stream
from sse.web.admission import ForFlask, Prepared
from sse.web.answering import BEGUN, Answering, Polled, Streamed
from sse.web.answers import JSON, STREAM_HEADERS, Answer, BusyAnswer, CommonHeaders, Empty, http_refusal
from sse.web.request import Request

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_JSON_FIELDS: Final = (("Content-Type", JSON),)
_STREAM_FIELDS: Final = tuple(STREAM_HEADERS.items())
# Werkzeug refuses some other names of hosts (BadHost), and treats names with wrong characters as empty.
_HOST: Final = re.compile(
    r"(?:(?:[A-Za-z0-9_-]{1,63}\.){0,8}[A-Za-z0-9_-]{1,63}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)


class Route(NamedTuple):
    """One of the routes that the lane answers."""

    kind: Literal["stream", "poll", "publish"]
    channel: str | None = None
    """That of `PREFIX/publish/CHANNEL`; otherwise None."""

    @property
    def is_publish(self) -> bool:
        """True if the request publishes."""
        return self.kind == "publish"


_PUBLISH: Final = Route("publish")


class Reply(NamedTuple):
    """An answer, without the headers that say who sends it, when, and how its body is framed."""

    status: str
    """The code and its phrase, such as `200 OK`."""
    headers: tuple[tuple[str, str], ...]
    """In the order in which they are sent. Equal answers have mostly the same object. A body of bytes has its length
    among them; a 204, a stream, a poll and a body that breaks off have none."""
    body: bytes | Stream | Poll
    """A poll is open, and waits. A stream takes its seat when it is opened, unless it `is_attached` already. Who gets
    one of them has to close it."""
    breaks_off: bool = False
    """True if the body is to be sent in chunks without the last chunk, and the connection then ends."""


class Rule(Protocol):
    """Decides which requests may go past Flask. The server asks it whether any may."""

    @property
    def session_cookie(self) -> str:
        """The name of the cookie with which a request is Flask's; empty if there is none."""

    def why_off(self) -> str:
        """Return why all requests are Flask's; empty if they are not."""


class Lane:
    """The fast lane of one app.

    :param app: the app, as the server calls it. Its log gets unexpected exceptions.
    :param rule: the server asks it whether the lane is on.
    :param has_probes: returns whether the doctor's probes may be asked for.
    """

    def __init__(
        self,
        app: Any,
        config: Config,
        answering: Answering,
        rule: Rule,
        common: CommonHeaders,
        has_probes: Callable[[], bool],
    ) -> None:
        self.app = app
        self._answering = answering
        self.rule = rule
        self._common = common
        self._has_probes = has_probes
        prefix = config.prefix
        self._raw = f"{prefix}/publish/"
        self._routes = {
            ("GET", f"{prefix}/stream"): Route("stream"),
            ("GET", f"{prefix}/poll"): Route("poll"),
            ("POST", f"{prefix}/publish"): _PUBLISH,
        }

    def route(self, method: str, path: str) -> Route | None:
        """Return the route of a request; None if the request is Flask's.

        :param path: without the query, as the server gives it to an app.
        """
        route = self._routes.get((method, path))
        if route is None and method == "POST" and path.startswith(self._raw):
            return _raw_route(path[len(self._raw) :])
        return route

    def request(self, environ: WSGIEnvironment) -> Request:
        """Return the request of an environ, for `reply`."""
        return Request(environ, environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "").encode("latin-1"))

    def reply(self, route: Route, request: Request) -> Reply | None:
        """Return the answer to a request; None if the request is Flask's.

        Before None is returned, nothing has happened but what the environ says for Flask: the request may have been
        counted by the limits. No body has been read. This function may wait, for the store or another service.

        :param route: as `route` returned it for this request.
        """
        environ = request.environ
        if not self._is_ours(route, request):
            return None
        try:
            return self._sent(self._answer(route, request), environ)
        except SSEError as error:
            answer = self._answering.refuse(error)
            if route.kind == "stream" and (answer.status == 429 or answer.status >= 500):
                return self._failed_if_begun(route, request)
            return self._sent(answer, environ)
        except ForFlask:
            return None
        except Exception:  # noqa: BLE001 - as Flask would do for a view
            return self._failed_if_begun(route, request)

    def may_ask_app(self, route: Route, request: Request) -> bool:
        """Return whether a function of the app may have to decide on a request, so that `reply` may return None for it.

        Nothing is counted. A server that cannot pass on to Flask what was counted asks this before.
        """
        return not route.is_publish and self._answering.may_ask_app(request)

    def prepare(self, route: Route, request: Request) -> Prepared | Reply | None:
        """Admit a publish request. Return what is to be stored; the answer if it is refused; None if it is Flask's.

        None comes only before the body is read. This function may wait, for the Redis of the limits or for a key.
        """
        if not self._is_ours(route, request):
            return None
        try:
            return self._answering.prepare(request, route.channel)
        except SSEError as error:
            return self._sent(self._answering.refuse(error), request.environ)
        except Exception:  # noqa: BLE001 - as Flask would do for a view
            return self._failed_if_begun(route, request)

    def publish_each(self, calls: Sequence[Sequence[Publication]]) -> list[list[Position] | Exception]:
        """Store several requests' publications in one round trip, see `Service.publish_each`."""
        return self._answering.publish_each(calls)

    def published(self, request: Request, prepared: Prepared, outcome: list[Position] | BaseException) -> Reply:
        """Return the answer to a publish request.

        :param prepared: as `prepare` returned it.
        :param outcome: what became of it: from `publish_each`, or the exception that ended the attempt.
        """
        try:
            if not isinstance(outcome, list | Exception):
                raise RuntimeError("the publish request was cut, and its events may be stored") from outcome
            answer = self._answering.published(prepared, outcome)
        except SSEError as error:
            answer = self._answering.refuse(error)
        except Exception:  # noqa: BLE001 - as Flask would do for a view
            return self.failed(_PUBLISH, request)
        return self._sent(answer, request.environ)

    def failed(self, route: Route, request: Request) -> Reply:
        """Log the unexpected exception that is being handled, and return the answer to its request.

        A stream is told to come back, because an EventSource never would after a 500.
        """
        environ = request.environ
        with self.app.request_context(environ):
            self.app.log_exception(sys.exc_info())
        if route.kind == "stream":
            return self._busy(self._answering.busy_after_fault(request), environ, length_at=1)
        return self._sent(http_refusal(InternalServerError()), environ)

    def _failed_if_begun(self, route: Route, request: Request) -> Reply | None:
        return self.failed(route, request) if BEGUN in request.environ else None

    def _answer(self, route: Route, request: Request) -> Streamed | Polled:
        if route.kind == "stream":
            return self._answering.stream(request)
        if route.kind == "poll":
            return self._answering.poll(request)
        return self._answering.publish(request, route.channel)

    def _is_ours(self, route: Route, request: Request) -> bool:
        """Return whether a request has nothing that Flask would treat in another way."""
        environ = request.environ
        if environ.get("SERVER_PROTOCOL") != "HTTP/1.1" or environ.get("SCRIPT_NAME") or "HTTP_UPGRADE" in environ:
            return False
        if not _HOST.fullmatch(environ.get("HTTP_HOST", "")):
            return False
        if (cookie := environ.get("HTTP_COOKIE")) and (name := self.rule.session_cookie) and name in cookie:
            return False
        if route.kind == "publish":
            return True
        if environ.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" in environ:
            return False
        return b"probe=1" not in request.query_string or not self._has_probes()

    def _sent(self, answer: Streamed | Polled, environ: WSGIEnvironment) -> Reply:
        complete = self._common.complete
        if isinstance(answer, Answer):
            own = (*_JSON_FIELDS, *answer.headers) if answer.headers else _JSON_FIELDS
            headers = complete(own, environ)
            return Reply(_status(answer.status), _with_length(headers, 1, answer.body), answer.body)
        if isinstance(answer, Stream):
            return Reply("200 OK", complete(_STREAM_FIELDS, environ), answer)
        if isinstance(answer, Poll):
            return Reply("200 OK", complete(_JSON_FIELDS, environ), answer)
        if isinstance(answer, Empty):
            return Reply(_status(answer.status), complete((), environ), b"")
        return self._busy(answer, environ, length_at=1 if answer.status == 503 else len(answer.headers))

    def _busy(self, answer: BusyAnswer, environ: WSGIEnvironment, length_at: int) -> Reply:
        headers = self._common.complete(tuple(answer.headers.items()), environ)
        if not answer.breaks_off:
            headers = _with_length(headers, length_at, answer.body)
        return Reply(_status(answer.status), headers, answer.body, answer.breaks_off)


def _raw_route(channel: str) -> Route | None:
    try:
        return Route("publish", check_channel(channel))
    except InvalidEvent:
        return None  # Flask says what is wrong


def _with_length(headers: tuple[tuple[str, str], ...], place: int, body: bytes) -> tuple[tuple[str, str], ...]:
    return (*headers[:place], ("Content-Length", str(len(body))), *headers[place:])


@lru_cache
def _status(code: int) -> str:
    return f"{code} {HTTP_STATUS_CODES[code].upper()}"  # as werkzeug writes it
