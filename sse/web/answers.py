"""Answers as values, and the headers that all answers have. Nothing here needs a request of Flask's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from flask_cors.core import DEFAULT_OPTIONS, FLASK_CORS_EVALUATED, get_cors_headers, serialize_options
from werkzeug.datastructures import EnvironHeaders, Headers
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_set_header

from sse.config import Config
from sse.errors import Gone, RequestError, SSEError
from sse.hub.subscriber import Reset
from sse.web import script
from sse.web.request import Request
from sse.wire import encode_json

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Fields = Sequence[tuple[str, str]]

PREFLIGHT_ANSWERED: Final[str] = FLASK_CORS_EVALUATED
"""The attribute of a response whose CORS headers a decorator of flask-cors has decided on."""

STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",
}
_VARY: Final = ("Origin", "Cookie", "Authorization", "Last-Event-ID")
# The request headers that a page of another origin may send, by their names: a star would not count beside credentials.
# Datastar and htmx 4 send theirs with every request; Datastar sends a Content-Type even with GET. As in nginx.conf.
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
    """A whole answer of JSON: Content-Type and Content-Length come first, then `headers`, then those of `Finish`."""

    body: bytes
    status: int = 200
    headers: Fields = ()


class ScriptAnswer(NamedTuple):
    """An answer to a request for the embed script."""

    body: bytes
    status: int
    headers: Mapping[str, str]


def json(value: object, status: int = 200) -> Answer:
    """Return an answer that says `value`."""
    return Answer(encode_json(value).encode(), status)


def refusal(error: SSEError) -> Answer:
    """Return the answer that tells a client of an error."""
    return Answer(_told(error), error.status, [*error.headers.items()])


def http_refusal(error: HTTPException) -> Answer:
    """Return an error of werkzeug, Flask or the app's rule in this service's form."""
    told = RequestError(error.description or error.name, code=error.name.lower().replace(" ", "_"))
    headers = error.get_headers()  # Retry-After, WWW-Authenticate and Allow, where the error has them
    own = [(name, text) for name, text in headers if name.lower() != "content-type"]
    return Answer(_told(told), error.code or 400, own)


def gone(resets: Sequence[Reset], last_event_id: str) -> Answer:
    """Refuse a bare stream that would have to tell of resets; the client goes on from the last event id."""
    error = Gone(
        f"channel {resets[0].channel} cannot be continued: {resets[0].reason}",
        "fetch the state again, and come back with the last_event_id of this answer",
    )
    told = [reset.json for reset in resets]
    return json({"error": error.to_json(), "resets": told, "last_event_id": last_event_id}, error.status)


def embed_script(request: Request, suffix: str, cache_control: str) -> ScriptAnswer:
    """Return the embed script: any page may load it and check its hash, because it carries nothing of anyone's.

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
        "Access-Control-Allow-Origin": "*",  # where it is set, Finish adds nothing
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    if request.has(etag):
        return ScriptAnswer(b"", 304, headers)  # RFC 9110, 15.4.5
    if zipped:
        headers["Content-Encoding"] = "gzip"
    return ScriptAnswer(body, 200, headers)


class Finish:
    """Gives each answer, an error too, the headers that all have, and those of CORS."""

    def __init__(self, config: Config) -> None:
        self._cors = Cors(config) if config.origins else None

    def __call__(self, headers: Headers, environ: WSGIEnvironment, *, with_cors: bool = True) -> None:
        """Add to the headers of an answer to a request what they lack; without those of CORS if these are decided."""
        given = {name.lower() for name, _ in headers}  # once: each look into them goes through them all
        if with_cors and self._cors and "access-control-allow-origin" not in given:
            headers.extend(self._cors.headers(environ))
        if "x-content-type-options" not in given:
            headers.add("X-Content-Type-Options", "nosniff")
        if "cache-control" not in given:
            headers.add("Cache-Control", "private, no-store")  # caches that are made to ignore one may heed the other
        elif "public" in headers["Cache-Control"]:
            return  # the same for everybody
        headers.set("Referrer-Policy", "no-referrer")
        if "vary" not in given:
            headers.add("Vary", ", ".join(_VARY))
        else:
            headers["Vary"] = ", ".join([*_VARY, *_others(headers)])


def _others(headers: Headers) -> list[str]:
    """Return the names in an answer's Vary that are not ours."""
    ours = {name.lower() for name in _VARY}
    return [name for name in parse_set_header(headers["Vary"]) if name.lower() not in ours]


class Cors:
    """The headers of CORS, by flask-cors: worked out once for each origin, and anew for each preflight."""

    def __init__(self, config: Config) -> None:
        anybody = config.origins == ("*",)
        self._options = serialize_options(
            {
                **DEFAULT_OPTIONS,
                # flask-cors would read the brackets of an IPv6 address as a regular expression: exact ones are given.
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
        self._of_origin = lru_cache(maxsize=64)(self._work_out)

    def headers(self, environ: WSGIEnvironment) -> Fields:
        """Return the headers for the answer to a request; none unless a page's origin is sent."""
        origin = environ.get("HTTP_ORIGIN")
        if not origin:
            return ()
        if environ["REQUEST_METHOD"] == "OPTIONS":
            return self._asked(EnvironHeaders(environ), "OPTIONS")
        return self._of_origin(origin)

    def _work_out(self, origin: str) -> Fields:
        return self._asked(EnvironHeaders({"HTTP_ORIGIN": origin}), "GET")

    def _asked(self, headers: Headers, method: str) -> Fields:
        return [(name, str(value)) for name, value in get_cors_headers(self._options, headers, method).items()]


def _told(error: SSEError) -> bytes:
    return encode_json({"error": error.to_json()}).encode()
