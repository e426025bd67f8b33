"""Answers as plain values, and the headers that all answers have. Works without Flask's request."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from flask_cors.core import DEFAULT_OPTIONS, FLASK_CORS_EVALUATED, get_cors_headers, serialize_options
from werkzeug.datastructures import EnvironHeaders, Headers
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_set_header

from sse.config import Config
from sse.errors import Busy, Ended, Gone, RequestError, SSEError
from sse.event import EndReason
from sse.hub.subscriber import Reset
from sse.transports import dialect
from sse.web import script
from sse.web.request import Request
from sse.wire import encode_json

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Fields = Sequence[tuple[str, str]]

CORS_DECIDED: Final[str] = FLASK_CORS_EVALUATED
"""The attribute of a response whose CORS headers a decorator of flask-cors has decided on."""

JSON: Final = "application/json"
STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",
}
_VARY: Final = ("Origin", "Cookie", "Authorization", "Last-Event-ID")
# The request headers that a page of another origin may send. A star would not work for requests with credentials.
# Datastar and htmx 4 send their own with every request, and Datastar sends a Content-Type even with GET. nginx.conf has
# the same list.
ALLOWED_HEADERS: Final = (
    "Authorization",
    "Cache-Control",
    "Content-Type",
    "Datastar-Request",
    "HX-Current-URL",
    "HX-Request",
    "HX-Request-Type",
    "HX-Source",
    "HX-Target",
    "Idempotency-Key",
    "Last-Event-ID",
)


class Answer(NamedTuple):
    """An answer of JSON. Its Content-Type and Content-Length come first, then `headers`, then `CommonHeaders`."""

    body: bytes
    status: int = 200
    headers: Fields = ()


class Empty(NamedTuple):
    """An answer without a body: 204, after which an EventSource stays away (WHATWG HTML 9.2.3), unless it says else."""

    status: int = 204
    content_type: str = ""
    """Empty for no Content-Type."""


class BusyAnswer(NamedTuple):
    """The answer to a request for a stream that cannot be served now, after which the client comes back."""

    body: bytes
    status: int
    """503 for a bare stream, otherwise 200."""
    headers: Mapping[str, str]
    """Those of a stream, or the Content-Type and Retry-After of the 503."""
    breaks_off: bool = False
    """True if the body has neither a length nor an end, for a client that comes back from a broken connection only."""


class FileAnswer(NamedTuple):
    """An answer that is a file: the embed script, or a part of the doctor's page."""

    body: bytes
    status: int
    headers: Mapping[str, str]


def json(value: object, status: int = 200) -> Answer:
    """Return an answer whose body is `value` as JSON."""
    return Answer(encode_json(value).encode(), status)


def refusal(error: SSEError) -> Answer:
    """Return the answer that tells a client of an error."""
    return Answer(_error_body(error), error.status, [*error.headers.items()])


def busy(retry: int, after: int, *, bare: bool = False, cut: bool = False) -> BusyAnswer:
    """Return the answer to a request for a stream that cannot be served now.

    :param retry: milliseconds that a client waits before it reconnects.
    :param after: seconds for which another request would be refused too.
    :param bare: the stream would be bare, so the answer is a 503 with Retry-After.
    :param cut: the client takes a clean end of the body for the last one.
    """
    if not bare:
        return BusyAnswer(dialect.busy(retry, after), 200, STREAM_HEADERS, cut)
    wait = math.ceil(dialect.busy_for(retry, after) / 1000)
    hint = "wait as Retry-After says, then ask again with the same last event id"
    error = Busy("this service is busy", hint, retry_after=wait)
    return BusyAnswer(_error_body(error), error.status, {"Content-Type": JSON, **error.headers})


def http_refusal(error: HTTPException) -> Answer:
    """Return the answer to an error of werkzeug, Flask or the app's rule, in the form of this service's errors."""
    shown = RequestError(error.description or error.name, code=error.name.lower().replace(" ", "_"))
    headers = error.get_headers()  # Retry-After, WWW-Authenticate and Allow, where the error has them
    own = [(name, text) for name, text in headers if name.lower() != "content-type"]
    return Answer(_error_body(shown), error.code or 400, own)


def gone(resets: Sequence[Reset], last_event_id: str) -> Answer:
    """Return the refusal of a bare stream that would have to begin with resets, which a bare stream cannot tell.

    The client continues from the last event id in the answer.
    """
    error = Gone(
        f"channel {resets[0].channel} cannot be continued: {resets[0].reason}",
        "fetch the state again, then reconnect with the last_event_id of this answer",
    )
    notices = [reset.json for reset in resets]
    return json({"error": error.to_json(), "resets": notices, "last_event_id": last_event_id}, error.status)


def ended(reasons: Mapping[str, EndReason], last_event_id: str) -> Answer:
    """Return the refusal of a bare stream whose channels have ended, and not all as `done`: it could not tell that."""
    channel, reason = next((channel, reason) for channel, reason in reasons.items() if reason != "done")
    error = Ended(f"channel {channel} has ended: {reason}", "nothing more comes; do not reconnect")
    status = 410  # RFC 9110, 15.5.11; 409, the error's own status, is for publishing
    return json({"error": error.to_json(), "ended": reasons, "last_event_id": last_event_id}, status)


def embed_script(request: Request, suffix: str, cache_control: str) -> FileAnswer:
    """Return the embed script. Any page may load it and check its hash, because it has no data of any user.

    :param suffix: `js`, or `mjs` for the module.
    """
    zipped = request.takes_gzip()
    loaded = script.load(suffix == "mjs")
    body, etag = loaded.gzipped if zipped else loaded.plain
    headers = {
        "Content-Type": "text/javascript; charset=utf-8",
        "Cache-Control": cache_control,
        "ETag": f'"{etag}"',
        "Vary": "Accept-Encoding",
        "Access-Control-Allow-Origin": "*",  # as it is set here, CommonHeaders adds no other
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    if request.has(etag):
        return FileAnswer(b"", 304, headers)  # RFC 9110, 15.4.5
    if zipped:
        headers["Content-Encoding"] = "gzip"
    return FileAnswer(body, 200, headers)


class CommonHeaders:
    """Adds the headers that all answers have, errors too, and the CORS headers."""

    def __init__(self, config: Config) -> None:
        self._cors = Cors(config) if config.origins else None
        self._origins = frozenset(config.origins)
        self._complete = lru_cache(maxsize=1024)(self._work_out)

    def complete(self, own: tuple[tuple[str, str], ...], environ: WSGIEnvironment) -> tuple[tuple[str, str], ...]:
        """Return an answer's own headers and those that all answers have, in the order in which they are sent.

        They are those that `__call__` makes of `own`. Equal headers are mostly the same object.
        """
        origin: str = environ.get("HTTP_ORIGIN", "") if self._cors else ""
        if origin and self._origins == {"*"}:
            origin = "*"  # all origins get the same
        if (origin and origin not in self._origins) or environ["REQUEST_METHOD"] == "OPTIONS":
            return self._work_out(own, origin, environ)  # not kept, because strangers could fill the cache
        return self._complete(own, origin)

    def _work_out(
        self, own: tuple[tuple[str, str], ...], origin: str, environ: WSGIEnvironment | None = None
    ) -> tuple[tuple[str, str], ...]:
        headers = Headers([*own])
        self(headers, environ or {"REQUEST_METHOD": "GET", "HTTP_ORIGIN": origin})
        return tuple(headers)

    def __call__(self, headers: Headers, environ: WSGIEnvironment, *, with_cors: bool = True) -> None:
        """Add the missing headers to an answer.

        :param with_cors: False if something else has decided on the CORS headers.
        """
        given = {name.lower() for name, _ in headers}  # a set, because each look-up in Headers searches them all
        if with_cors and self._cors and "access-control-allow-origin" not in given:
            headers.extend(self._cors.headers(environ))
        if "x-content-type-options" not in given:
            headers.add("X-Content-Type-Options", "nosniff")
        if "cache-control" not in given:
            headers.add("Cache-Control", "private, no-store")  # a cache that is made to ignore one may obey the other
        elif "public" in headers["Cache-Control"]:
            return  # the answer is the same for all clients
        headers.set("Referrer-Policy", "no-referrer")
        if "vary" not in given:
            headers.add("Vary", ", ".join(_VARY))
        else:
            headers["Vary"] = ", ".join([*_VARY, *_others(headers)])

    def cors(self, environ: WSGIEnvironment) -> Fields:
        """Return the CORS headers of the answer to a request; none without SSE_ORIGINS."""
        return self._cors.headers(environ) if self._cors else ()


def _others(headers: Headers) -> list[str]:
    """Return the names in an answer's Vary that are not in `_VARY`."""
    ours = {name.lower() for name in _VARY}
    given = parse_set_header(", ".join(headers.getlist("Vary")))
    return [name for name in dict.fromkeys(given) if name.lower() not in ours]


class Cors:
    """The CORS headers, as flask-cors works them out: once for each origin, and for each preflight."""

    def __init__(self, config: Config) -> None:
        anybody = config.origins == ("*",)
        self._options = serialize_options(
            {
                **DEFAULT_OPTIONS,
                # Patterns, because flask-cors would read the brackets of an IPv6 address as a regular expression.
                "origins": "*" if anybody else [re.compile(rf"{re.escape(origin)}\Z") for origin in config.origins],
                "supports_credentials": not anybody,
                "send_wildcard": anybody,
                "always_send": False,
                "vary_header": False,
                "methods": ["GET", "HEAD", "POST", "OPTIONS"],
                "allow_headers": [*ALLOWED_HEADERS],
                "expose_headers": ["Retry-After"],
                "max_age": 600,
            }
        )
        self._by_origin = lru_cache(maxsize=64)(self._work_out)

    def headers(self, environ: WSGIEnvironment) -> Fields:
        """Return the CORS headers of the answer to a request; none if it has no Origin header."""
        origin = environ.get("HTTP_ORIGIN")
        if not origin:
            return ()
        if environ["REQUEST_METHOD"] == "OPTIONS":
            return self._headers_for(EnvironHeaders(environ), "OPTIONS")
        return self._by_origin(origin)

    def _work_out(self, origin: str) -> Fields:
        return self._headers_for(EnvironHeaders({"HTTP_ORIGIN": origin}), "GET")

    def _headers_for(self, headers: Headers, method: str) -> Fields:
        return [(name, str(value)) for name, value in get_cors_headers(self._options, headers, method).items()]


def _error_body(error: SSEError) -> bytes:
    return encode_json({"error": error.to_json()}).encode()
