"""The routes: read the request, call down, set headers. CORS is flask-cors'."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from flask import Blueprint, Response, request
from flask_cors import CORS
from werkzeug.exceptions import HTTPException
from werkzeug.routing import PathConverter

from sse import access
from sse.config import Config
from sse.errors import (
    Forbidden,
    InvalidEvent,
    NotFound,
    RequestError,
    SSEError,
    StoreUnavailable,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
    WrongMethod,
)
from sse.event import DEFAULT_TYPE, Event, LastEventId, check_channel, data_url, id_size
from sse.poll import poll
from sse.service import Service
from sse.stores import Publication
from sse.stream import busy, stream
from sse.subscriber import Start, starting_points
from sse.wire import parse_publish

_log = logging.getLogger("sse")

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_MAX_BODY: Final = 1 << 20
_MAX_ID: Final = 4096
_MAX_POLL: Final = 60
_MIN_HEARTBEAT: Final = 3
_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TEXT_TYPES: Final = ("application/json", "application/x-www-form-urlencoded")
_STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",
}
_VARY: Final = ("Origin", "Cookie", "Authorization", "Last-Event-ID")


class _Rest(PathConverter):
    """The rest of a path, whatever it holds: at a line break werkzeug's own would leave the answer to the app."""

    regex = "(?s:.+)"
    part_isolating = False


def make_blueprint(service: Service, authorize: Callable[[], access.Authorize | None]) -> Blueprint:
    """The routes of one app, to be registered under SSE_PREFIX. `authorize` gives the app's rule for reading."""
    config = service.config
    blueprint = Blueprint("sse", __name__, url_prefix=config.prefix)
    # Registered before flask-cors, so that it runs after it and tidies its headers too.
    blueprint.after_request(_finish)
    if config.origins:
        _allow_origins(blueprint, config)
    blueprint.record(lambda state: state.app.url_map.converters.update(sse_rest=_Rest))
    blueprint.register_error_handler(SSEError, _error)
    blueprint.register_error_handler(HTTPException, _http_error)

    def route(path: str, *methods: str) -> Callable[[Callable[..., Response]], None]:
        def add(view: Callable[..., Response]) -> None:
            blueprint.add_url_rule(path, view.__name__, view, methods=methods)
            others = [method for method in _METHODS if method not in methods and (method, "GET") != ("HEAD", *methods)]
            blueprint.add_url_rule(path, f"not_{view.__name__}", _refuse_method(methods), methods=others)

        return add

    def starts() -> dict[str, Start]:
        channels = _channels(config)
        text, from_header = _last_event_id()
        replay = _integer("replay", 0, 0, config.ring)
        access.check_read(channels, config, _guarded(authorize()))
        _check_workers(service)
        last = LastEventId.parse(text) if text else None
        return starting_points(channels, last, from_header=from_header, replay=replay)

    @route("/stream", "GET")
    def get_stream() -> Response:
        _check_query("last_event_id", "lastEventId", "ids", "replay", "heartbeat", "token")
        delta = _one("ids")
        if delta not in (None, "delta"):
            raise RequestError(f"ids is {delta[:60]!a}", "leave it out, or give ids=delta")
        heartbeat = _integer("heartbeat", config.heartbeat, min(_MIN_HEARTBEAT, config.heartbeat), config.heartbeat)
        try:
            places = starts()
        except Unavailable as error:
            _log.warning("a stream is told that this service is busy: %s", error)
            return Response(busy(config.retry), headers=_STREAM_HEADERS)
        if request.method == "HEAD":
            return Response(iter(()), headers=_STREAM_HEADERS)  # a stream has no Content-Length
        replays = {start.replay for start in places.values()} - {0}
        body = stream(
            service.hub,
            places,
            heartbeat=heartbeat,
            lifetime=config.stream_lifetime,
            retry=config.retry,
            delta=delta == "delta",
            told={"replay": max(replays)} if replays else None,
        )
        return Response(body, headers=_STREAM_HEADERS)

    @route("/poll", "GET")
    def get_poll() -> Response:
        _check_query("last_event_id", "lastEventId", "replay", "timeout", "token")
        timeout = _integer("timeout", config.poll_timeout, 0, _MAX_POLL)
        places = starts()
        if request.method == "HEAD":
            return _json({})
        try:
            return _json(poll(service.hub, places, timeout=timeout, retry=config.retry))
        except StoreUnavailable as error:
            # What ails the store is for the log, not for whoever may read.
            _log.warning("a poll is told to come again: %s", error)
            raise StoreUnavailable("the store does not answer", "ask again with the same last event id") from error

    @route("/publish", "POST")
    def post_publish() -> Response:
        scope = access.check_publish(request.headers.get("Authorization"), config)
        _check_query()
        if request.mimetype != "application/json":
            raise UnsupportedMedia(
                f"Content-Type is {request.mimetype[:60]!a}",
                f"send application/json here, or any type to {config.prefix}/publish/CHANNEL",
            )
        return _publish(service, scope, parse_publish(_body()))

    @route("/publish/<sse_rest:channel>", "POST")
    def post_publish_raw(channel: str) -> Response:
        scope = access.check_publish(request.headers.get("Authorization"), config)
        _check_query("type")
        event = Event(_raw_data(_body()), request.args.get("type", DEFAULT_TYPE))
        return _publish(service, scope, [(check_channel(channel), event)])

    def nothing_here(**_: str) -> Response:
        raise NotFound("there is nothing here", f"see {config.prefix}/stream and {config.prefix}/poll")

    blueprint.add_url_rule("/", "nothing_here", nothing_here, methods=_METHODS)
    blueprint.add_url_rule("/<sse_rest:rest>", "nothing_here", nothing_here, methods=_METHODS)
    return blueprint


def _allow_origins(blueprint: Blueprint, config: Config) -> None:
    anybody = config.origins == ("*",)
    # flask-cors would read the brackets of an IPv6 address as a regular expression, so exact ones are given.
    exact = [re.compile(rf"{re.escape(origin)}\Z") for origin in config.origins]
    CORS(
        blueprint,
        origins="*" if anybody else exact,
        supports_credentials=not anybody,
        send_wildcard=anybody,
        always_send=False,
        methods=["GET", "HEAD", "POST", "OPTIONS"],
        allow_headers=["Authorization", "Cache-Control", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
        expose_headers=["Retry-After"],
        max_age=600,
    )


# Reading the request


def _check_query(*single: str) -> None:
    """Refuse what is not known yet, and a parameter that is given twice. Unknown ones are passed over."""
    for name in single:
        if len(request.args.getlist(name)) > 1:
            raise RequestError(f"{name} is given more than once", "give it once")
    if "token" in single and "token" in request.args:
        raise RequestError("token is not taken here", "leave it out: access goes by SSE_PUBLIC and @sse.authorize")


def _one(name: str) -> str | None:
    return request.args.get(name)


def _integer(name: str, default: int, low: int, high: int) -> int:
    text = _one(name)
    if text is None:
        return default
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise RequestError(f"{name} is {text[:60]!a}", f"give a whole number from {low} to {high}")
    # A number of over 18 digits is far out of range; converting thousands of them is refused by Python.
    number = int(text) if len(text) <= 18 else (low - 1 if text.startswith("-") else high + 1)
    return min(max(number, low), high)


def _channels(config: Config) -> list[str]:
    names = list(dict.fromkeys(request.args.getlist("channel")))
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


def _last_event_id() -> tuple[str, bool]:
    """The last event id, and whether it came in the header, which wins unless it is empty (WHATWG HTML 9.2.3)."""
    if "last_event_id" in request.args and "lastEventId" in request.args:
        raise RequestError("last_event_id and lastEventId are the same parameter", "give one of them")
    header = request.headers.get("Last-Event-ID", "")
    return header or _one("last_event_id") or _one("lastEventId") or "", bool(header)


def _check_workers(service: Service) -> None:
    if request.is_multiprocess and not service.shared:
        raise Unavailable(
            "the memory store is for one process, and this server runs several",
            "set SSE_REDIS_URL, or run one worker",
            code="memory_store",
        )


def _guarded(authorize: access.Authorize | None) -> access.Authorize | None:
    """The app's rule, closed where it fails: an error in it opens nothing, and ends no EventSource for good."""
    if authorize is None:
        return None

    def rule(channel: str) -> bool:
        try:
            return bool(authorize(channel))
        except Exception as error:
            if _status(error) < 500 and _status(error) != 429:
                raise
            _log.exception("@sse.authorize failed for channel %s", channel)
            raise Unavailable("the right to read could not be checked", "see the log", code="authorize") from error

    return rule


def _status(error: Exception) -> int:
    """The HTTP status that an error of the app's rule stands for."""
    if isinstance(error, HTTPException):
        return error.get_response().status_code
    return error.status if isinstance(error, SSEError) else 500


def _body() -> bytes:
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia(f"Content-Encoding is {encoding[:60]!a}", "send the body as it is")
    charset = request.mimetype_params.get("charset", "utf-8")
    if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMedia(f"charset is {charset[:60]!a}", "send UTF-8")
    request.max_content_length = _MAX_BODY
    return request.get_data(cache=False)


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


# Publishing


def _publish(service: Service, scope: str, events: Sequence[tuple[str, Event]]) -> Response:
    _check_workers(service)
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise RequestError(f"Idempotency-Key is {key[:60]!a}", "give 1 to 128 of A-Z a-z 0-9 _ . : -")
    publications = [
        Publication(channel, service.check(event), None if key is None else f"{scope}:{place}:{key}")
        for place, (channel, event) in enumerate(events)
    ]
    try:
        positions = service.publish(publications)
    except StoreUnavailable as error:
        raise StoreUnavailable(error.message, f"{error.hint}; repeat this with the same Idempotency-Key") from error
    ids = [f"{channel}={position}" for (channel, _), position in zip(events, positions, strict=True)]
    return _json({"ids": ids}, 201)


# Answering


def _json(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), status, content_type="application/json")


def _error(error: SSEError) -> Response:
    response = _json({"error": {"code": error.code, "message": error.message, "hint": error.hint}}, error.status)
    if isinstance(error, Forbidden):
        value = {
            "error": {"code": error.code, "message": error.message, "hint": error.hint, "channels": error.channels}
        }
        response.set_data(json.dumps(value))
    if isinstance(error, Unavailable):
        response.headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, 11.6.1
    if isinstance(error, WrongMethod):
        response.headers["Allow"] = ", ".join(error.allowed)  # RFC 9110, 15.5.6
    return response


def _http_error(error: HTTPException) -> Response:
    """What werkzeug, Flask or the app's rule raised, in this service's form."""
    if error.response is not None:
        return error.response  # type: ignore[return-value]
    if error.code == 413:
        return _error(TooLarge(f"the body is over {_MAX_BODY} bytes", "send less, or in several requests"))
    response = _error(RequestError(error.description or error.name, code=error.name.lower().replace(" ", "_")))
    response.status_code = error.code or 400
    return response


def _refuse_method(methods: Iterable[str]) -> Callable[..., Response]:
    allowed = (*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS")

    def view(**_: str) -> Response:
        raise WrongMethod(f"{request.method} is not for this address", f"use {allowed[0]}", allowed=allowed)

    return view


def _finish(response: Response) -> Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    others = [name for name in response.vary if name.lower() not in {ours.lower() for ours in _VARY}]
    response.headers["Vary"] = ", ".join([*_VARY, *others])
    return response
