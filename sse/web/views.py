"""The routes: read the request, call down, set headers. CORS is flask-cors'."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from flask import Blueprint, Response, current_app, request
from flask.sansio.app import App
from flask_cors.core import get_cors_headers, get_cors_options, set_cors_headers
from werkzeug.datastructures import EnvironHeaders, Headers, ImmutableMultiDict
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.routing import PathConverter, Rule

from sse.access import decision as access
from sse.access.limits import Limits, client_address
from sse.access.permit import Permit
from sse.access.token import TICKET_LIFE
from sse.config import Config
from sse.errors import (
    Gone,
    InvalidEvent,
    KeyUnknown,
    NotFound,
    RequestError,
    SSEError,
    StoreUnavailable,
    TooLarge,
    TooMany,
    Unavailable,
    UnsupportedMedia,
    WrongMethod,
)
from sse.event import (
    DEFAULT_TYPE,
    Event,
    LastEventId,
    check_channel,
    check_idempotency_key,
    data_url,
    format_last_event_id,
    id_size,
)
from sse.hub.hub import Charge
from sse.hub.subscriber import Reset, Start, starting_points
from sse.log import warn
from sse.service import Service
from sse.stores import Publication
from sse.transports.dialect import busy
from sse.transports.poll import Poll
from sse.transports.stream import Stream
from sse.version import __version__
from sse.web import script
from sse.web.hooks import HookedPoll, HookedStream, break_off, busy_error, is_busy, keep_streams_coming
from sse.web.host import warn_of_host
from sse.wire import encode_json, parse_publish, stored_size

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_log = logging.getLogger("sse")

_MAX_BODY: Final = 1 << 20
_MAX_DISCARDED: Final = 16 << 20
_DISCARD_SECONDS: Final = 2.0
_MAX_DROPPED: Final = 16_384
_MAX_ID: Final = 4096
_MAX_POLL: Final = 60
_ANSWER_BYTES: Final = (1024, 1 << 20)  # that a poll may set as its bound
_MIN_HEARTBEAT: Final = 3
_MAX_WRONG_ANSWERS: Final = 100
_TEXT_TYPES: Final = ("application/json", "application/x-www-form-urlencoded")
_STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",
}
_OF_A_WHOLE: Final = ("content-length", "etag")  # headers that a stream cannot have
_Query = dict[str, list[str]]
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


class _Rest(PathConverter):
    """The rest of a path, whatever it holds: at a line break werkzeug's own would leave the answer to the app."""

    regex = "(?s:.+)"
    part_isolating = False


def make_blueprint(service: Service, authorize: Callable[[], access.Authorize | None]) -> Blueprint:
    """The routes of one app, all under SSE_PREFIX. `authorize` gives the app's rule for reading."""
    blueprint = Blueprint("sse", __name__)
    finish = _finisher(blueprint, service.config)
    keep = keep_streams_coming(service.config.retry, _STREAM_HEADERS, finish, WaitingResponse)
    blueprint.url_value_preprocessor(_leave_form)
    blueprint.after_request(lambda response: finish(keep(response)))
    blueprint.after_app_request(keep)
    blueprint.teardown_request(_let_go)
    blueprint.register_error_handler(SSEError, partial(_refuse, service))
    blueprint.register_error_handler(HTTPException, _http_error)
    blueprint.record(lambda state: _add_rules(state.app, _Routes(service, authorize), service.config.prefix))
    return blueprint


class _Answer(Response):
    """A response that has all its headers, so that nothing has to be found out about them when it is sent."""

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:  # noqa: ARG002
        return self.headers

    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        environ["sse.whole"] = True  # for a server that can send it without a greenlet
        return super().get_app_iter(environ)


class WaitingResponse(_Answer):
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


def _waiting(wanted: Any) -> type[WaitingResponse]:
    """Return the class of responses that the app wants each of its responses to have, made to wait."""
    return WaitingResponse if wanted is Response else type("WaitingResponse", (WaitingResponse, wanted), {})


def _leave_form(endpoint: str | None, _: dict[str, Any] | None) -> None:
    """Give a hook of the app that asks for the form an empty one. To parse it would use the event's data up."""
    if endpoint == "sse.publish_raw":
        request.form, request.files = ImmutableMultiDict(), ImmutableMultiDict()


def _let_go(_: BaseException | None) -> None:
    """Give back the seat of a poll or a bare stream whose response the app has dropped, or failed to finish."""
    body = request.environ.pop("sse.unsent", None)
    if body:
        body.close()


class _Routes:
    def __init__(self, service: Service, authorize: Callable[[], access.Authorize | None]) -> None:
        self._service = service
        self._limits = Limits(service.config)
        service.also_close(self._limits.close)
        self._config = service.config
        self._authorize = authorize
        self._access = access.Access(service.config, service.tokens, service.keys, lambda: service.revocations)
        self._waiting: Callable[[Any], type[Response]] = lru_cache(maxsize=4)(_waiting)
        self._wrong_answers: dict[tuple[str, str], object] = {}  # by rule and type: the log has told of these

    def stream(self) -> Response:
        _drop_body()
        query = _query("last_event_id", "lastEventId", "ids", "types", "form", "end", "replay", "heartbeat", "token")
        delta, typed = _switch(query, "ids", "delta"), _switch(query, "types", "data")
        bare, cut = _switch(query, "form", "bare"), _switch(query, "end", "cut")
        if bare and (delta or typed):
            name = "ids" if delta else "types"
            raise RequestError(
                f"form=bare stands beside {name}={query[name][0]}", f"leave {name} out: bare stands alone"
            )
        heartbeat = _integer(query, "heartbeat", self._config.heartbeat, _MIN_HEARTBEAT, self._config.heartbeat)
        try:
            starts, replay, permit = self._starts(query)
        except (Unavailable, KeyUnknown) as error:  # a 401 would end an EventSource for good, too
            return self._busy(error, error.retry_after, bare=bare, cut=cut)
        if request.method == "GET":
            warn_of_host(request.environ)
        body = HookedStream(
            self._service.hub,
            starts,
            heartbeat=heartbeat,
            lifetime=self._config.stream_lifetime,
            retry=self._config.retry,
            delta=delta,
            typed=typed,
            bare=bare,
            cut=cut,
            told={"replay": replay} if "replay" in query else None,
            permit=permit,
            charge=self._charge(permit),
        )
        if bare:
            try:
                body.attach()
            except Unavailable as error:
                return self._busy(error, error.retry_after if isinstance(error, TooMany) else 0, bare=True, cut=cut)
            if resets := body.subscriber.resets:
                places = {name: body.subscriber.places[name] for name in starts}
                body.close()
                return _gone(resets, format_last_event_id(places))
            if request.method == "HEAD":
                body.close()
            else:
                request.environ["sse.unsent"] = body
        return self._waiting_response(body, _STREAM_HEADERS)

    def _busy(self, error: SSEError, after: int, *, bare: bool, cut: bool) -> Response:
        """Return the answer to a stream's request that cannot be served now, nor for the next `after` seconds."""
        warn("a stream is told that this service is busy: %s", error)
        if bare:
            return busy_error(self._config.retry, after)
        response = current_app.make_response(Response(busy(self._config.retry, after), headers=_STREAM_HEADERS))
        if cut:
            break_off(response)  # as the app's own class of responses, which Flask would else make of it
        return response

    def poll(self) -> Response:
        _drop_body()
        query = _query("last_event_id", "lastEventId", "replay", "timeout", "max_bytes", "token")
        timeout = _integer(query, "timeout", self._config.poll_timeout, 0, _MAX_POLL)
        max_bytes = _fewer(_integer(query, "max_bytes", 0, *_ANSWER_BYTES))
        starts, _, permit = self._starts(query)
        if request.method == "HEAD":
            return Response(iter(()), content_type="application/json")
        body = HookedPoll(
            self._service.hub,
            starts,
            timeout=timeout,
            max_bytes=max_bytes,
            retry=self._config.retry,
            permit=permit,
            charge=self._charge(permit),
            gone=request.environ.get("sse.gone"),
        )
        try:
            answer = body.open()
            if answer and permit and permit.is_over:
                raise Unavailable("the right to read has ended meanwhile", "ask again")
            if answer is None and "sse.holds" in request.environ:  # the server has one loop for all that wait
                request.environ["sse.unsent"] = body
                return self._waiting_response(body, {"Content-Type": "application/json"})
            if answer is None:
                warn_of_host(request.environ)
            return _Answer(answer or body.wait(), content_type="application/json")
        except StoreUnavailable as error:
            # What ails the store is for the log, not for whoever may read.
            warn("a poll is told to come again: %s", error)
            raise StoreUnavailable("the store does not answer", "ask again with the same last event id") from error

    def publish(self) -> Response:
        publisher = self._access.publisher(request.environ.get("HTTP_AUTHORIZATION", ""))
        if request.mimetype != "application/json":
            raise UnsupportedMedia(
                f"Content-Type is {request.mimetype[:60]!a}",
                f"send application/json here, or any type to {self._config.prefix}/publish/CHANNEL",
            )
        return self._publish(publisher, parse_publish(_body()))

    def publish_raw(self, channel: str) -> Response:
        publisher = self._access.publisher(request.environ.get("HTTP_AUTHORIZATION", ""))
        type = _query("type").get("type", [DEFAULT_TYPE])[0]
        event = Event(_raw_data(_body()), type)
        return self._publish(publisher, [(check_channel(channel), event)])

    def ticket(self) -> Response:
        channels = _channels(_query(), self._config)
        self._limits.subscribe(self._address())
        authorization = request.environ.get("HTTP_AUTHORIZATION", "")
        text = self._access.ticket(channels, authorization, self._guarded(self._authorize()))
        _read_body()  # of which nothing is needed, but a request that breaks off is not acted on
        return _json({"ticket": text, "expires": TICKET_LIFE}, 201)

    def script(self, suffix: str) -> Response:
        return _script(suffix, "public, max-age=300")

    def script_of(self, version: str, suffix: str) -> Response:
        if version != __version__:
            address = f"{self._config.prefix}/sse.{__version__}.{suffix}"
            raise NotFound(f"the script has no version {version[:60]!a} here", f"its address is {address}")
        return _script(suffix, "public, max-age=31536000, immutable")

    def nothing_here(self, **_: str) -> Response:
        raise NotFound("there is nothing here", f"see {self._config.prefix}/stream and {self._config.prefix}/poll")

    def _starts(self, query: _Query) -> tuple[dict[str, Start], int, Permit | None]:
        """Where the request wants to go on in each channel, once it may; the replay that is used; and its permit."""
        channels = _channels(query, self._config)
        text, from_header = _last_event_id(query)
        asked = _integer(query, "replay", 0, 0, self._config.ring)
        replay = 0 if text else asked
        authorize = self._authorize()
        if "token" in query and authorize is None and not self._service.tokens.configured:
            raise RequestError("token is not taken here", "leave it out: no @sse.authorize function reads it")
        self._limits.subscribe(self._address())
        permit = self._access.read(channels, self._brought(query), self._guarded(authorize))
        self._service.check_workers(request.is_multiprocess)
        last = LastEventId.parse(text) if text else None
        return starting_points(channels, last, from_header=from_header, replay=replay), replay, permit

    def _waiting_response(self, body: Stream | Poll, headers: Mapping[str, str]) -> Response:
        response: Response = WaitingResponse(body, headers)
        response.__class__ = self._waiting(current_app.response_class)  # else Flask would make it the app's own class
        return response

    def _charge(self, permit: Permit | None) -> Charge | None:
        """Return what counts the channels that the request brings into being; None if they are not limited."""
        if not self._config.limit_new_channels:
            return None
        grant = permit.grant if permit else None
        client = grant.scope if grant and (grant.sub or grant.id) else self._address()
        return partial(self._limits.new_channels, client) if client else None

    def _address(self) -> str | None:
        environ, proxies = request.environ, self._config.proxies
        return client_address(
            environ.get("REMOTE_ADDR"), environ.get("HTTP_X_FORWARDED_FOR", "") if proxies else "", proxies
        )

    def _brought(self, query: _Query) -> access.Brought:
        """What the request brings to show who it is."""
        if not self._service.tokens.configured:
            return access.Brought()
        environ = request.environ
        cookie = request.cookies.get(self._config.cookie, "") if "HTTP_COOKIE" in environ else ""
        counts = True
        if cookie:
            origin, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE")
            own = f"{environ['wsgi.url_scheme']}://{environ.get('HTTP_HOST', '')}"
            counts = access.cookie_counts(origin, site, own, self._config.origins)
        return access.Brought(environ.get("HTTP_AUTHORIZATION", ""), cookie, query.get("token", [""])[0], counts)

    def _guarded(self, authorize: access.Authorize | None) -> access.Authorize | None:
        """Return the app's rule, closed where it fails: an error in it opens nothing, and ends no EventSource for good.

        Only `True` opens a channel. The log tells once of each rule and type when a rule answers with anything but
        True, False or None.
        """
        if authorize is None:
            return None

        def rule(channel: str) -> bool:
            try:
                answer: object = authorize(channel)
                if answer is True:
                    return True
                if isinstance(answer, Coroutine):
                    answer.close()  # it will never run; else Python warns that nobody awaited it
            except Exception as error:
                if _status(error) < 500 and _status(error) != 429:
                    raise
                warn("@sse.authorize failed for channel %s", channel, exc_info=True)
                raise Unavailable("the right to read could not be checked", "see the log", code="authorize") from error
            if answer is not False and answer is not None:
                self._tell_wrong_answer(access.name_of(authorize), type(answer))
            return False

        return rule

    def _tell_wrong_answer(self, rule: str, kind: type) -> None:
        """Log an error about a rule that answered with this type, the first time that it does."""
        mine, wrong = object(), (rule, f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."))
        if len(self._wrong_answers) < _MAX_WRONG_ANSWERS and self._wrong_answers.setdefault(wrong, mine) is mine:
            _log.error(
                "@sse.authorize: the rule %s returned %s, so the channel stays closed: return True to open a channel "
                "and False to refuse it; use abort() for an answer of its own, and bool() for a value that stands for "
                "a yes or no",
                *wrong,
            )

    def _publish(self, publisher: access.Publisher, events: Sequence[tuple[str, Event]]) -> Response:
        channels = [channel for channel, _ in events]
        self._access.publish(channels, publisher)
        scope = publisher.scope
        self._service.check_workers(request.is_multiprocess)
        key = _idempotency_key()
        publications = [
            Publication(channel, self._service.check(event), None if key is None else f"{scope}:{place}:{key}")
            for place, (channel, event) in enumerate(events)
        ]
        size = _stored_size(events) if self._config.limit_publish_bytes else 0
        try:
            counted = self._limits.publish(scope, channels, size, lambda: self._service.count_new(channels))
            positions = self._service.publish(publications)
        except StoreUnavailable as error:
            warn("publishing is told to come again: %s", error)
            raise StoreUnavailable(error.message, f"{error.hint}; repeat this with the same Idempotency-Key") from error
        self._limits.begun(scope, sum(position.offset == 1 for position in positions) - counted)
        ids = [f"{channel}={position}" for (channel, _), position in zip(events, positions, strict=True)]
        return _json({"ids": ids}, 201)


def _add_rules(app: App, routes: _Routes, prefix: str) -> None:
    app.url_map.converters["sse_rest"] = _Rest
    for path, view, methods in (
        ("/stream", routes.stream, ("GET", "HEAD", "OPTIONS")),
        ("/poll", routes.poll, ("GET", "HEAD", "OPTIONS")),
        ("/sse.<any(js, mjs):suffix>", routes.script, ("GET", "HEAD", "OPTIONS")),
        ("/sse.<version>.<any(js, mjs):suffix>", routes.script_of, ("GET", "HEAD", "OPTIONS")),
        ("/ticket", routes.ticket, ("POST", "OPTIONS")),
        ("/publish", routes.publish, ("POST", "OPTIONS")),
        ("/publish/<sse_rest:channel>", routes.publish_raw, ("POST", "OPTIONS")),
        ("", routes.nothing_here, ()),
        ("/", routes.nothing_here, ()),
        ("/<sse_rest:rest>", routes.nothing_here, ()),
    ):
        endpoint = f"sse.{view.__name__}"
        # For every method there is: one that is wrong gets our answer too, and its CORS headers.
        app.url_map.add(Rule(f"{prefix}{path}", endpoint=endpoint))
        app.view_functions[endpoint] = _for_methods(view, methods)


def _for_methods(view: Callable[..., Response], methods: tuple[str, ...]) -> Callable[..., Response]:
    """The view, for these methods only; for all where none is given."""

    def dispatch(**values: str) -> Response:
        method = request.method
        if method == "OPTIONS":  # before all else: a preflight asks no more than this (Fetch, 4.8)
            return Response(headers={"Allow": ", ".join(methods or ("OPTIONS",))})
        if methods and method not in methods:
            raise WrongMethod(f"{method[:60]!a} is not for this address", f"use {methods[0]}", allowed=methods)
        return view(**values)

    return dispatch


# Reading the request


def _query(*single: str) -> _Query:
    """The request's parameters; of those in `single`, one that is given twice is refused."""
    try:
        query = dict(request.args.lists())
    except UnicodeDecodeError:
        raise RequestError("the query has bytes that are no UTF-8", "percent-encode it, see RFC 3986, 2.1") from None
    for name, values in query.items():
        if len(values) > 1 and name in single:
            raise RequestError(f"{name} is given more than once", "give it once")
    return query


def _switch(query: _Query, name: str, value: str) -> bool:
    """Whether a parameter is given, which can have one value only."""
    if name not in query:
        return False
    text = query[name][0]
    if text != value:
        raise RequestError(f"{name} is {text[:60]!a}", f"leave it out, or give {name}={value}")
    return True


def _integer(query: _Query, name: str, default: int, low: int, high: int) -> int:
    if name not in query:
        return default
    text = query[name][0]
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise RequestError(f"{name} is {text[:60]!a}", f"give a whole number from {low} to {high}")
    # A number of over 18 digits is far out of range; converting thousands of them is refused by Python.
    number = int(text) if len(text) <= 18 else (low - 1 if text.startswith("-") else high + 1)
    return min(max(number, low), high)


def _fewer(max_bytes: int) -> int | None:
    """Round down to one of 41 sizes, so that polls with different bounds can share their answers."""
    return max_bytes >> (max_bytes.bit_length() - 3) << (max_bytes.bit_length() - 3) if max_bytes else None


def _channels(query: _Query, config: Config) -> list[str]:
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


def _last_event_id(query: _Query) -> tuple[str, bool]:
    """The last event id, and whether it came in the header, which wins unless it is empty (WHATWG HTML 9.2.3)."""
    if "last_event_id" in query and "lastEventId" in query:
        raise RequestError("last_event_id and lastEventId are the same parameter", "give one of them")
    header: str = request.environ.get("HTTP_LAST_EVENT_ID", "")
    return header or (query.get("last_event_id") or query.get("lastEventId") or [""])[0], bool(header)


def _status(error: Exception) -> int:
    """The HTTP status that an error of the app's rule stands for."""
    if isinstance(error, HTTPException):
        return error.get_response().status_code
    return error.status if isinstance(error, SSEError) else 500


def _body() -> bytes:
    encoding: str = request.environ.get("HTTP_CONTENT_ENCODING", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia(f"Content-Encoding is {encoding[:60]!a}", "send the body as it is")
    charset = request.mimetype_params.get("charset", "utf-8")
    if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMedia(f"charset is {charset[:60]!a}", "send UTF-8")
    return _read_body()


def _read_body() -> bytes:
    """Return the whole body.

    :raises TooLarge: if it is over 1 MiB.
    :raises RequestError: if it is malformed, or if it breaks off before its Content-Length or its last chunk.
    """
    told: str = request.environ.get("CONTENT_LENGTH", "")
    # Some servers let through what is no length, and a length beside chunks, which leaves open what is meant.
    if told and (not re.fullmatch("[0-9]{1,18}", told) or "HTTP_TRANSFER_ENCODING" in request.environ):
        raise RequestError(f"Content-Length is {told[:60]!a}", "give the body's length in bytes, or send it in chunks")
    request.max_content_length = _MAX_BODY + 1  # werkzeug cuts a chunked body off there, and says nothing
    try:
        body = request.get_data(cache=False)
        if len(body) > _MAX_BODY:
            raise RequestEntityTooLarge
    except RequestEntityTooLarge:
        _discard_body()
        raise TooLarge(f"the body is over {_MAX_BODY} bytes", "send less, or in several requests") from None
    except Exception as error:  # each server has its own for a body that is malformed or breaks off
        raise RequestError(
            "the body is malformed, or breaks off",
            "send it again whole, with the same Idempotency-Key; see RFC 9112, 7.1, if it is chunked",
        ) from error
    # Some servers, gunicorn among them, give what has come as if it were all (RFC 9112, 8: such a body is incomplete).
    if told and len(body) < int(told):
        raise RequestError(
            f"the body breaks off after {len(body)} of {told} bytes",
            "send it again whole, with the same Idempotency-Key",
        )
    return body


def _drop_body() -> None:
    """Read the body of a GET or HEAD, which means nothing (RFC 9110, 9.3.1), so that only another request can follow.

    :raises TooLarge: if it is over 16 KB.
    :raises RequestError: if it cannot be read.
    """
    environ = request.environ
    if not environ.get("CONTENT_LENGTH") and "HTTP_TRANSFER_ENCODING" not in environ:
        return
    left = 0 if (request.content_length or 0) > _MAX_DROPPED else _MAX_DROPPED + 1
    try:
        while left and (chunk := request.stream.read(left)):
            left -= len(chunk)
    except RequestEntityTooLarge:
        left = 0
    except Exception as error:  # each server has its own for a body that is malformed, breaks off or does not come
        raise RequestError("the body cannot be read to its end", "leave it out: it means nothing here") from error
    if not left:
        _discard_body()
        raise TooLarge(f"the body is over {_MAX_DROPPED} bytes", "leave it out: it means nothing here")


def _discard_body() -> None:
    """Read what a client is still sending, within bounds: closing on it would reset the answer away (RFC 9112, 9.6)."""
    left = _MAX_DISCARDED if request.content_length is None else min(request.content_length, _MAX_DISCARDED)
    ends = time.monotonic() + _DISCARD_SECONDS
    with contextlib.suppress(Exception):  # if it breaks off, or does not come, the answer is the same
        while left > 0 and time.monotonic() < ends:
            chunk = request.environ["wsgi.input"].read(min(left, 4096))  # little, so that the clock is looked at
            if not chunk:
                break
            left -= len(chunk)


def _stored_size(events: Sequence[tuple[str, Event]]) -> int:
    """The bytes that the events' data take in the store, in all channels together."""
    total = 0
    sizes: dict[int, int] = {}  # one event on many channels is one object, which is measured once
    for _, event in events:
        size = sizes.get(id(event))
        if size is None:
            size = sizes[id(event)] = stored_size(event)
        total += size
    return total


def _idempotency_key() -> str | None:
    key: str | None = request.environ.get("HTTP_IDEMPOTENCY_KEY")
    try:
        return None if key is None else check_idempotency_key(key)
    except InvalidEvent as error:
        raise RequestError(error.message, error.hint, code=error.code) from None


def _raw_data(body: bytes) -> str:
    """A body as an event's data: text as its text, anything else as a data: URL."""
    media_type = request.mimetype
    if media_type.startswith("text/") or media_type in _TEXT_TYPES or media_type.endswith("+json"):
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise RequestError(
                f"the body is not UTF-8 at byte {error.start}", "send UTF-8, or a Content-Type that is not text"
            ) from None
    return data_url(body, media_type or "application/octet-stream")


# Answering


def _json(value: object, status: int = 200) -> Response:
    return _Answer(encode_json(value), status, content_type="application/json")


def _gone(resets: Sequence[Reset], last_event_id: str) -> Response:
    """Refuse a bare stream that would have to tell of resets; the client goes on from the last event id."""
    error = Gone(
        f"channel {resets[0].channel} cannot be continued: {resets[0].reason}",
        "fetch the state again, and come back with the last_event_id of this answer",
    )
    told = [reset.told for reset in resets]
    return _json({"error": error.to_json(), "resets": told, "last_event_id": last_event_id}, error.status)


def _script(suffix: str, cache_control: str) -> Response:
    """The embed script, a constant that carries nothing of anyone's: any page may load it, and check its hash."""
    zipped = request.accept_encodings["gzip"] > 0
    loaded = script.load(suffix == "mjs")
    body, etag = loaded.gzipped if zipped else loaded.plain
    headers = {
        "Content-Type": "text/javascript; charset=utf-8",
        "Cache-Control": cache_control,
        "ETag": f'"{etag}"',
        "Vary": "Accept-Encoding",
        "Access-Control-Allow-Origin": "*",  # where it is set, flask-cors adds nothing
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    if request.if_none_match.contains_weak(etag):
        return Response(status=304, headers=headers)  # RFC 9110, 15.4.5
    if zipped:
        headers["Content-Encoding"] = "gzip"
    return Response(body, headers=headers)


def _refuse(service: Service, error: SSEError) -> Response:
    if service.at_first_use:
        service.begin()
    return _error(error)


def _error(error: SSEError) -> Response:
    response = _json({"error": error.to_json()}, error.status)
    response.headers.update(error.headers)
    return response


def _http_error(error: HTTPException) -> Response:
    """What werkzeug, Flask or the app's rule raised, in this service's form."""
    if error.response is not None:
        return error.response  # type: ignore[return-value]
    response = _error(RequestError(error.description or error.name, code=error.name.lower().replace(" ", "_")))
    response.status_code = error.code or 400
    told = Headers(error.get_headers())  # Retry-After, WWW-Authenticate and Allow, where the error has them
    told.remove("Content-Type")
    response.headers.extend(told)
    return response


def _finisher(blueprint: Blueprint, config: Config) -> Callable[[Response], Response]:
    """What gives each answer, errors too, the headers that all have, and those of CORS."""
    allow = _cors(blueprint, config) if config.origins else None

    def finish(response: Response) -> Response:
        headers = response.headers
        given = {name.lower() for name, _ in headers}  # once: each look into them goes through them all
        if allow and "access-control-allow-origin" not in given:
            allow(response, request.environ)
        if "x-content-type-options" not in given:
            headers.add("X-Content-Type-Options", "nosniff")
        if "cache-control" not in given:
            headers.add("Cache-Control", "private, no-store")  # caches that are made to ignore one may heed the other
        elif "public" in headers["Cache-Control"]:
            return response  # the same for everybody
        headers.set("Referrer-Policy", "no-referrer")
        if "vary" not in given:
            headers.add("Vary", ", ".join(_VARY))
        else:
            ours = {name.lower() for name in _VARY}
            headers["Vary"] = ", ".join([*_VARY, *(name for name in response.vary if name.lower() not in ours)])
        return response

    return finish


def _cors(blueprint: Blueprint, config: Config) -> Callable[[Response, WSGIEnvironment], None]:
    """What adds flask-cors' headers: worked out once for each origin, but for preflights."""
    anybody = config.origins == ("*",)
    options = get_cors_options(
        blueprint,
        {
            # flask-cors would read the brackets of an IPv6 address as a regular expression, so exact ones are given.
            "origins": "*" if anybody else [re.compile(rf"{re.escape(origin)}\Z") for origin in config.origins],
            "supports_credentials": not anybody,
            "send_wildcard": anybody,
            "always_send": False,
            "vary_header": False,
            "methods": ["GET", "HEAD", "POST", "OPTIONS"],
            "allow_headers": [*ALLOWED_HEADERS],
            "expose_headers": ["Retry-After"],
            "max_age": 600,
        },
    )

    @lru_cache(maxsize=64)
    def known(origin: str) -> list[tuple[str, str]]:
        asked = EnvironHeaders({"HTTP_ORIGIN": origin})
        return [(name, str(value)) for name, value in get_cors_headers(options, asked, "GET").items()]

    def allow(response: Response, environ: WSGIEnvironment) -> None:
        origin = environ.get("HTTP_ORIGIN")
        if origin and environ["REQUEST_METHOD"] == "OPTIONS":
            set_cors_headers(response, options)
        elif origin:
            response.headers.extend(known(origin))

    return allow
