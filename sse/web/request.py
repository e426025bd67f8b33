"""Reads a request into values: the parameters of each route, the credentials, and the body. Knows no Flask.

A fault in the request is raised here. The right to read or publish is decided later, in `admission`.

Werkzeug's functions parse the query, cookies, headers and the body. A parser of our own would be a security hole,
because a proxy or the app could read the same request differently.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, ClassVar, Final, NamedTuple, TypeVar
from urllib.parse import unquote

from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_accept_header, parse_etags, parse_options_header
from werkzeug.sansio.http import parse_cookie
from werkzeug.wsgi import get_content_length, get_input_stream

from sse.access.decision import Credentials, cookie_counts
from sse.access.limits import client_address
from sse.config import Config
from sse.errors import InvalidEvent, RequestError, TooLarge, UnsupportedMedia
from sse.event import DEFAULT_TYPE, Event, check_channel, check_idempotency_key, data_url, id_size
from sse.wire import parse_publish

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_MAX_BODY: Final = 1 << 20  # bytes of a publish request
_MAX_DISCARDED: Final = 16 << 20  # bytes that are read of a body that is too large
_DISCARD_SECONDS: Final = 2.0
_MAX_DROPPED: Final = 16_384  # bytes of a body that is read and ignored
_MAX_ID: Final = 4096  # bytes of a last event id
_MAX_POLL: Final = 60  # seconds
_ANSWER_BYTES: Final = (1024, 1 << 20)  # the range of a poll's parameter max_bytes
_MIN_HEARTBEAT: Final = 3  # seconds
# Parameters that a request may have once only.
_OF_BOTH: Final = ("last_event_id", "lastEventId", "replay", "client", "token")
_OF_STREAMS: Final = (*_OF_BOTH, "ids", "types", "form", "end", "heartbeat")
_OF_POLLS: Final = (*_OF_BOTH, "timeout", "max_bytes")
# Parameters that tell nothing of the client but its channels and positions.
_IMPERSONAL: Final = frozenset({"channel", *_OF_STREAMS, *_OF_POLLS} - {"client", "token"})
_MAX_KEPT_QUERY: Final = 512  # bytes of a query, and characters of a last event id, whose reading is kept
_MAX_KEPT: Final = 512  # of them; then all are dropped
_LENGTH: Final = re.compile("[0-9]{1,18}")
_INTEGER: Final = re.compile("[+-]?[0-9]+")
_CLIENT: Final = re.compile(r"[A-Za-z0-9_-]{8,64}")
_REQUEST_ID: Final = re.compile(r"(?!.*eyJ)[A-Za-z0-9._:/+=@-]{1,128}")  # no token: it begins with eyJ
_JSON: Final = "application/json"
_TEXT_TYPES: Final = (_JSON, "application/x-www-form-urlencoded")

T = TypeVar("T")
Query = dict[str, list[str]]
Options = Mapping[str, str]


class Request:
    """One request, with a method for each part that has to be parsed.

    A part is parsed only when its method is called, so that faults are answered in the order in which parts are needed.
    """

    __slots__ = ("_stream", "environ", "method", "query_string")
    in_app: ClassVar[bool] = False
    """True if functions of the app can be called, because Flask has a context for this request."""

    def __init__(self, environ: WSGIEnvironment, method: str, query_string: bytes) -> None:
        self.environ = environ
        self.method = method
        self.query_string = query_string
        self._stream: IO[bytes] | None = None

    def args(self) -> Query:
        """Return all values of each parameter, as `werkzeug.Request.args` parses them.

        :raises UnicodeDecodeError: if the query has bytes that are not UTF-8.
        """
        query: Query = {}
        for part in self.query_string.decode().split("&"):
            # As `parse_qsl` does it, which takes twice as long.
            name, _, value = part.partition("=")
            if "%" in part or "+" in part:
                name, value = _unquoted(name), _unquoted(value)
            if part:
                query.setdefault(name, []).append(value)
        return query

    def cookie(self, name: str) -> str:
        """Return a cookie's first value, empty if it was not sent."""
        header: str | None = self.environ.get("HTTP_COOKIE")
        return parse_cookie(header).get(name, "") if header else ""

    def media_type(self) -> tuple[str, Options]:
        """Return the body's media type in small letters, and its options."""
        text = self.environ.get("CONTENT_TYPE", "")
        if text == _JSON:
            return text, {}
        name, options = parse_options_header(text)
        return name.lower(), options

    def length(self) -> int | None:
        """Return the body's length in bytes, None if it comes in chunks or there is none."""
        return get_content_length(self.environ)

    def stream(self) -> IO[bytes]:
        """Return the body as a file that ends where the body ends. Each call returns the same file."""
        return self._input(None)

    def data(self, max_length: int) -> bytes:
        """Return the body.

        :raises RequestEntityTooLarge: if its Content-Length is over `max_length` bytes. A longer body in chunks is cut
            off at that length instead.
        """
        stream: IO[bytes] = self.environ["wsgi.input"]
        if hasattr(stream, "getvalue") and "wsgi.input_terminated" in self.environ and self._stream is None:
            length = self.length()
            if length is not None and length <= max_length:
                return stream.read(max_length)  # as below, but the body is in memory, which takes a tenth of the time
        return self._input(max_length).read()

    def takes_gzip(self) -> bool:
        """Return True if the client accepts a gzipped body."""
        return parse_accept_header(self.environ.get("HTTP_ACCEPT_ENCODING"))["gzip"] > 0

    def has(self, etag: str) -> bool:
        """Return True if the client has the version with this ETag already (RFC 9110, 13.1.2)."""
        return parse_etags(self.environ.get("HTTP_IF_NONE_MATCH")).contains_weak(etag)

    def header(self, name: str) -> str:
        """Return a header by its name in the environ, such as `HTTP_ORIGIN`; empty if it was not sent."""
        text: str = self.environ.get(name, "")
        return text

    def weight(self, media_type: str) -> float:
        """Return how much the client likes a media type, from 0 to 1 (RFC 9110, 12.5.1)."""
        header: str | None = self.environ.get("HTTP_ACCEPT")
        return float(parse_accept_header(header, MIMEAccept).quality(media_type)) if header else 1.0

    def left(self) -> int:
        """Return how many bytes of the body are known to be unread."""
        return self.length() or 0

    def unread(self) -> IO[bytes]:
        """Return the file from which the rest of a body that is too large is read and dropped."""
        rest: IO[bytes] = self.environ["wsgi.input"]  # `stream` refuses such a body
        return rest

    @property
    def is_multiprocess(self) -> bool:
        """True if several processes serve the app."""
        return bool(self.environ.get("wsgi.multiprocess"))

    def _input(self, max_length: int | None) -> IO[bytes]:
        if self._stream is None:  # only once: a second stream would read the bytes of the next request
            self._stream = get_input_stream(self.environ, max_content_length=max_length)
        return self._stream


class Subscription(NamedTuple):
    """The channels that a stream or poll asks for, and the positions from which it continues."""

    channels: list[str]
    last_event_id: str
    """The text as it was sent. It is parsed only after the request has been admitted."""
    from_header: bool
    """True if the last event id came in the header."""
    replay: int
    """Number of newest events to begin with, 0 if there is a last event id."""
    tells_replay: bool
    """True if the request has the parameter `replay`. Then `sse.open` tells the number that is used."""
    token: str
    """The token or ticket in the query, empty if there is none."""
    client: str = ""
    """The id by which a client is known across its connections; empty if it gives none."""


class StreamRequest(NamedTuple):
    """The parameters of a stream."""

    subscription: Subscription
    heartbeat: int
    """Seconds."""
    delta: bool
    """ids=delta"""
    typed: bool
    """types=data"""
    bare: bool
    """form=bare"""
    cut: bool
    """end=cut"""


class PollRequest(NamedTuple):
    """The parameters of a poll."""

    subscription: Subscription
    timeout: int
    """Seconds."""
    max_bytes: int | None
    """The bound of the answer, None if the client gives none."""


class _Kept(dict[tuple[object, ...], T]):
    """The results of reading some queries, because very many clients come with the same one.

    A query with a token, or with any parameter that is not ours and may be a secret, is not kept.
    """

    def keep(self, key: tuple[object, ...] | None, query: Query, result: T) -> T:
        """Keep the result of reading a query, unless it is not to be kept. Return the result."""
        if key and query.keys() <= _IMPERSONAL:
            if len(self) >= _MAX_KEPT:
                self.clear()
            self[key] = result
        return result


_streams: Final = _Kept[StreamRequest]()
_polls: Final = _Kept[PollRequest]()


def _key(request: Request, config: Config) -> tuple[object, ...] | None:
    """Return all that the reading of a query depends on, unless the query holds a token; None if it is too long.

    It is None, too, if another class of requests may read the query in its own way.
    """
    query, last_event_id = request.query_string, request.header("HTTP_LAST_EVENT_ID")
    if type(request) is not Request or len(query) > _MAX_KEPT_QUERY or len(last_event_id) > _MAX_KEPT_QUERY:
        return None
    return query, last_event_id, config.heartbeat, config.poll_timeout, config.ring, config.max_channels


# Routes


def read_stream(request: Request, config: Config, *, takes_token: bool) -> StreamRequest:
    """Return the parameters of a stream.

    :param takes_token: False if the parameter `token` is to be refused, because nothing reads it.
    :raises RequestError: for a fault in the query or body.
    :raises TooLarge: if the body, which has no meaning, is over 16 KB.
    """
    _drop_body(request)
    key = _key(request, config)
    if key and (kept := _streams.get(key)):
        return kept
    query = read_query(request, *_OF_STREAMS)
    delta, typed = _flag(query, "ids", "delta"), _flag(query, "types", "data")
    bare, cut = _flag(query, "form", "bare"), _flag(query, "end", "cut")
    if bare and (delta or typed):
        name = "ids" if delta else "types"
        raise RequestError(f"form=bare excludes {name}={query[name][0]}", f"leave {name} out, or form=bare")
    heartbeat = _integer(query, "heartbeat", config.heartbeat, _MIN_HEARTBEAT, config.heartbeat)
    subscription = _subscription(request, query, config, takes_token)
    return _streams.keep(key, query, StreamRequest(subscription, heartbeat, delta, typed, bare, cut))


def read_poll(request: Request, config: Config, *, takes_token: bool) -> PollRequest:
    """Return the parameters of a poll; arguments and errors are those of `read_stream`."""
    _drop_body(request)
    key = _key(request, config)
    if key and (kept := _polls.get(key)):
        return kept
    query = read_query(request, *_OF_POLLS)
    timeout = _integer(query, "timeout", config.poll_timeout, 0, _MAX_POLL)
    max_bytes = _rounded_down(_integer(query, "max_bytes", 0, *_ANSWER_BYTES))
    subscription = _subscription(request, query, config, takes_token)
    return _polls.keep(key, query, PollRequest(subscription, timeout, max_bytes))


def read_ticket(request: Request, config: Config) -> list[str]:
    """Return the channels that a ticket is to open.

    :raises RequestError: for a fault in the query.
    """
    return _channels(read_query(request), config)


def read_publish(request: Request, config: Config) -> list[tuple[str, Event]]:
    """Return the events in a body of JSON, each with its channel.

    :raises UnsupportedMedia: unless the body is plain JSON in UTF-8.
    :raises TooLarge: if it is over 1 MiB.
    :raises RequestError: if it is malformed or incomplete.
    """
    media_type, options = request.media_type()
    if media_type != _JSON:
        raise UnsupportedMedia(
            f"Content-Type is {media_type[:60]!a}",
            f"send application/json here, or any type to {config.prefix}/publish/CHANNEL",
        )
    return parse_publish(_text_body(request, options))


def read_raw(request: Request, channel: str) -> list[tuple[str, Event]]:
    """Return the event that a body of any media type makes, with its channel.

    :raises InvalidEvent: for a bad channel, type or media type. The other errors are those of `read_publish`.
    """
    type = read_query(request, "type").get("type", [DEFAULT_TYPE])[0]
    media_type, options = request.media_type()
    event = Event(_raw_data(_text_body(request, options), media_type), type)
    return [(check_channel(channel), event)]


def read_last_event_id(request: Request) -> str:
    """Return the last event id as it was sent, empty if there is none. Nothing else of the query is looked at.

    :raises RequestError: if it is given twice, or the query is not UTF-8.
    """
    return _last_event_id(request, read_query(request, "last_event_id", "lastEventId"))[0]


# Credentials


def read_credential(request: Request, token: str, config: Config) -> Credentials:
    """Return the request's credentials; `token` is the one in its query."""
    cookie = request.cookie(config.cookie)
    return Credentials(
        request.header("HTTP_AUTHORIZATION"), cookie, token, not cookie or _cookie_counts(request, config.origins)
    )


def _cookie_counts(request: Request, origins: tuple[str, ...]) -> bool:
    environ = request.environ
    own = f"{environ['wsgi.url_scheme']}://{environ.get('HTTP_HOST', '')}"
    return cookie_counts(environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE"), own, origins)


def read_address(request: Request, proxies: int) -> str | None:
    """Return the client's address as it is counted, None if it is not counted: see `client_address`."""
    forwarded = request.header("HTTP_X_FORWARDED_FOR") if proxies else ""
    return client_address(request.environ.get("REMOTE_ADDR"), forwarded, proxies)


def read_request_id(request: Request, proxies: int) -> str:
    """Return the id that a trusted proxy has given to the request, for the log; empty if it has none that can be shown.

    :param proxies: the number of trusted proxies. Without any, the client itself would have given the id.
    """
    given = request.header("HTTP_X_REQUEST_ID") if proxies else ""
    return given if _REQUEST_ID.fullmatch(given) else ""


def read_idempotency_key(request: Request) -> str | None:
    """Return the idempotency key, which makes a repeated request harmless; None if there is none.

    :raises RequestError: if the header is not an idempotency key.
    """
    key: str | None = request.environ.get("HTTP_IDEMPOTENCY_KEY")
    try:
        return None if key is None else check_idempotency_key(key)
    except InvalidEvent as error:
        raise RequestError(error.message, error.hint, code=error.code) from None


# The query


def _subscription(request: Request, query: Query, config: Config, takes_token: bool) -> Subscription:
    channels = _channels(query, config)
    text, from_header = _last_event_id(request, query)
    replay = _integer(query, "replay", 0, 0, config.ring)
    if "token" in query and not takes_token:
        raise RequestError("token is not taken here", "leave it out: no @sse.authorize function reads it")
    token = query.get("token", [""])[0]
    return Subscription(channels, text, from_header, 0 if text else replay, "replay" in query, token, _client(query))


def _client(query: Query) -> str:
    """Return the client's id, empty if it gives none.

    :raises RequestError: if it is malformed.
    """
    if "client" not in query:
        return ""
    client = query["client"][0]
    if not _CLIENT.fullmatch(client):
        raise RequestError(f"client is {client[:60]!a}", "give 8 to 64 of A-Z a-z 0-9 _ -, or leave it out")
    return client


def read_watch(channel: str) -> str:
    """Return the channel whose presence is asked for.

    :raises RequestError: if it is not valid.
    """
    try:
        return check_channel(channel)
    except InvalidEvent as error:
        raise RequestError(error.message, error.hint, code=error.code) from None


def read_query(request: Request, *single: str) -> Query:
    """Return the request's parameters. A parameter in `single` that is given twice is refused."""
    try:
        query = request.args()
    except UnicodeDecodeError:
        raise RequestError("the query has bytes that are not UTF-8", "percent-encode it, see RFC 3986, 2.1") from None
    for name, values in query.items():
        if len(values) > 1 and name in single:
            raise RequestError(f"{name} is given more than once", "give it once")
    return query


def _flag(query: Query, name: str, value: str) -> bool:
    """Return True if a parameter is given. It can have one value only.

    :raises RequestError: if it has another value.
    """
    if name not in query:
        return False
    text = query[name][0]
    if text != value:
        raise RequestError(f"{name} is {text[:60]!a}", f"leave it out, or give {name}={value}")
    return True


def _integer(query: Query, name: str, default: int, low: int, high: int) -> int:
    """Return the number in a parameter, clamped to the range; the default if the parameter is not given."""
    if name not in query:
        return default
    text = query[name][0]
    if not _INTEGER.fullmatch(text):
        raise RequestError(f"{name} is {text[:60]!a}", f"give a whole number from {low} to {high}")
    # A number of over 18 digits is out of range whatever it is, and Python refuses to convert thousands of digits.
    number = int(text) if len(text) <= 18 else (low - 1 if text.startswith("-") else high + 1)
    return min(max(number, low), high)


def _unquoted(text: str) -> str:
    text = text.replace("+", " ")
    return unquote(text, errors="werkzeug.url_quote") if "%" in text else text


def _rounded_down(max_bytes: int) -> int | None:
    """Return the bound rounded down to one of 41 sizes, so that polls with different bounds can share answers.

    None means that there is no bound.
    """
    return max_bytes >> (max_bytes.bit_length() - 3) << (max_bytes.bit_length() - 3) if max_bytes else None


def _channels(query: Query, config: Config) -> list[str]:
    names = dict.fromkeys(query.get("channel", ()))
    if not names:
        raise RequestError("no channel is named", "add ?channel=NAME, once for each channel")
    try:
        channels = [check_channel(name) for name in names]
    except InvalidEvent as error:
        raise RequestError(error.message, error.hint, code=error.code) from None
    if len(channels) > config.max_channels:
        raise RequestError(
            f"{len(channels)} channels in one request, SSE_MAX_CHANNELS is {config.max_channels}", "ask for fewer"
        )
    if id_size(channels) > _MAX_ID:
        raise RequestError(
            f"the names of these {len(channels)} channels are too long together",
            f"keep the sum of (length + 40) within {_MAX_ID}",
        )
    return channels


def _last_event_id(request: Request, query: Query) -> tuple[str, bool]:
    """Return the last event id, and True if it came in the header.

    The header wins over the query, unless it is empty (WHATWG HTML 9.2.3).
    """
    if "last_event_id" in query and "lastEventId" in query:
        raise RequestError("last_event_id and lastEventId are the same parameter", "give one of them")
    header = request.header("HTTP_LAST_EVENT_ID")
    return header or (query.get("last_event_id") or query.get("lastEventId") or [""])[0], bool(header)


# The body


def _text_body(request: Request, options: Options) -> bytes:
    """Return the whole body, which has no content coding and, if it is text, is in UTF-8.

    :raises UnsupportedMedia: if its headers name a coding or another charset. Other errors are those of `read_body`.
    """
    encoding: str = request.environ.get("HTTP_CONTENT_ENCODING", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia(f"Content-Encoding is {encoding[:60]!a}", "send the body as it is")
    charset = options.get("charset", "utf-8")
    if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMedia(f"charset is {charset[:60]!a}", "send UTF-8")
    return read_body(request)


def read_body(request: Request) -> bytes:
    """Return the whole body.

    :raises TooLarge: if it is over 1 MiB.
    :raises RequestError: if it is malformed, or if it breaks off before its Content-Length or its last chunk.
    """
    declared = request.header("CONTENT_LENGTH")
    # Some servers let through a Content-Length that is no number, or one beside chunks, which is ambiguous.
    if declared and (not _LENGTH.fullmatch(declared) or "HTTP_TRANSFER_ENCODING" in request.environ):
        raise RequestError(
            f"Content-Length is {declared[:60]!a}", "give the body's length in bytes, or send it in chunks"
        )
    try:
        body = request.data(_MAX_BODY + 1)  # werkzeug cuts a longer chunked body off there, without an error
        if len(body) > _MAX_BODY:
            raise RequestEntityTooLarge
    except RequestEntityTooLarge:
        _discard_body(request)
        raise TooLarge(f"the body is over {_MAX_BODY} bytes", "send less, or in several requests") from None
    except Exception as error:  # each server has its own error for a body that is malformed or breaks off
        raise RequestError(
            "the body is malformed, or breaks off",
            "send all of it again, with the same Idempotency-Key; see RFC 9112, 7.1, if it is chunked",
        ) from error
    # Some servers, gunicorn among them, give an incomplete body as if it were complete (RFC 9112, 8).
    if declared and len(body) < int(declared):
        raise RequestError(
            f"the body breaks off after {len(body)} of {declared} bytes",
            "send all of it again, with the same Idempotency-Key",
        )
    return body


def _drop_body(request: Request) -> None:
    """Read and ignore the body of a GET or HEAD, which has no meaning (RFC 9110, 9.3.1).

    Otherwise its bytes would be taken for the next request on the connection.

    :raises TooLarge: if it is over 16 KB.
    :raises RequestError: if it cannot be read.
    """
    if not request.environ.get("CONTENT_LENGTH") and "HTTP_TRANSFER_ENCODING" not in request.environ:
        return
    try:
        is_small = request.left() <= _MAX_DROPPED and _is_small(request.stream())
    except RequestEntityTooLarge:
        is_small = False
    except Exception as error:  # each server has its own error for a body that is malformed, breaks off or never comes
        raise RequestError("the body cannot be read to its end", "leave it out: it has no meaning here") from error
    if not is_small:
        _discard_body(request)
        raise TooLarge(f"the body is over {_MAX_DROPPED} bytes", "leave it out: it has no meaning here")


def _is_small(stream: IO[bytes]) -> bool:
    """Read a body, and return True if it is small enough to be ignored."""
    left = _MAX_DROPPED + 1
    while left and (chunk := stream.read(left)):
        left -= len(chunk)
    return left > 0


def _discard_body(request: Request) -> None:
    """Read the bytes that a client is still sending, up to 16 MiB and for up to 2 s.

    To close the connection while the client sends would reset it, and the client might lose the answer (RFC 9112, 9.6).
    """
    length = request.length()
    left = _MAX_DISCARDED if length is None else min(length, _MAX_DISCARDED)
    ends = time.monotonic() + _DISCARD_SECONDS
    with contextlib.suppress(Exception):  # if the body breaks off or never comes, the answer is the same
        while left > 0 and time.monotonic() < ends:
            chunk = request.unread().read(min(left, 4096))  # few, so that the clock is checked often
            if not chunk:
                break
            left -= len(chunk)


def _raw_data(body: bytes, media_type: str) -> str:
    """Return a body as an event's data: text as its text, anything else as a data: URL."""
    if media_type.startswith("text/") or media_type in _TEXT_TYPES or media_type.endswith("+json"):
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise RequestError(
                f"the body is not UTF-8 at byte {error.start}", "send UTF-8, or a Content-Type that is not text"
            ) from None
    return data_url(body, media_type or "application/octet-stream")
