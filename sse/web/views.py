"""The routes for Flask: each has the request read and admitted, and makes a response of the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import IO, TYPE_CHECKING, Any

import flask
from flask import Blueprint, Response, current_app, request
from flask.sansio.app import App
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.exceptions import HTTPException
from werkzeug.routing import PathConverter, Rule

from sse.access.decision import Authorize
from sse.access.token import TICKET_LIFE
from sse.config import Config
from sse.errors import KeyUnknown, NotFound, SSEError, StoreUnavailable, TooMany, Unavailable, WrongMethod
from sse.event import format_last_event_id
from sse.log import warn
from sse.service import Service
from sse.transports.dialect import busy
from sse.transports.poll import Poll
from sse.transports.stream import Stream
from sse.version import __version__
from sse.web.admission import Admission
from sse.web.answers import (
    PREFLIGHT_ANSWERED,
    STREAM_HEADERS,
    Answer,
    Finish,
    embed_script,
    gone,
    http_refusal,
    json,
    refusal,
)
from sse.web.hooks import (
    HookedPoll,
    HookedStream,
    WaitingResponse,
    Whole,
    break_off,
    busy_error,
    keep_streams_coming,
    waiting,
)
from sse.web.request import Options, Query, Request, StreamAsked, read_poll, read_publish, read_raw, read_stream
from sse.web.server_check import warn_of_server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class _Rest(PathConverter):
    """The rest of a path, whatever it holds: at a line break werkzeug's own would leave the answer to the app."""

    regex = "(?s:.+)"
    part_isolating = False


class AppRequest(Request):
    """A request as the app has it: what a hook of the app has parsed, read or replaced counts."""

    __slots__ = ("_asked",)

    def __init__(self, asked: flask.Request) -> None:
        super().__init__(asked.environ, asked.method, asked.query_string)
        self._asked = asked

    def args(self) -> Query:
        return dict(self._asked.args.lists()) if self._has("args") else super().args()

    def cookie(self, name: str) -> str:
        return self._asked.cookies.get(name, "") if self._has("cookies") else super().cookie(name)

    def media_type(self) -> tuple[str, Options]:
        asked = self._asked
        return (asked.mimetype, asked.mimetype_params) if self._has("_parsed_content_type") else super().media_type()

    def length(self) -> int | None:
        return self._asked.content_length

    def stream(self) -> IO[bytes]:
        return self._asked.stream

    def data(self, max_length: int) -> bytes:
        self._asked.max_content_length = max_length
        return self._asked.get_data(cache=False)

    def takes_gzip(self) -> bool:
        return self._asked.accept_encodings["gzip"] > 0

    def has(self, etag: str) -> bool:
        return self._asked.if_none_match.contains_weak(etag)

    @property
    def is_multiprocess(self) -> bool:
        return self._asked.is_multiprocess

    def _has(self, name: str) -> bool:
        """Return whether the app has this already, or a class of requests of its own."""
        return name in vars(self._asked) or type(self._asked) is not flask.Request


View = Callable[..., Response]


def make_blueprint(service: Service, authorize: Callable[[], Authorize | None]) -> Blueprint:
    """Return the routes of one app, all under SSE_PREFIX. `authorize` gives the app's rule for reading."""
    blueprint = Blueprint("sse", __name__)
    finish = partial(_finish, Finish(service.config))
    keep = keep_streams_coming(service.config.retry, finish)
    blueprint.url_value_preprocessor(_leave_form)
    blueprint.after_request(lambda response: finish(keep(response)))
    blueprint.after_app_request(keep)
    blueprint.teardown_request(_close_unsent)
    blueprint.register_error_handler(SSEError, partial(_refuse, service))
    blueprint.register_error_handler(HTTPException, _refuse_http)
    blueprint.record(lambda state: _add_rules(state.app, _Views(service, authorize), service.config.prefix))
    return blueprint


def _leave_form(endpoint: str | None, _: dict[str, Any] | None) -> None:
    """Give a hook of the app that asks for the form an empty one. To parse it would use the event's data up."""
    if endpoint == "sse.publish_raw":
        request.form, request.files = ImmutableMultiDict(), ImmutableMultiDict()


def _close_unsent(_: BaseException | None) -> None:
    """Give back the seat of a poll or a bare stream whose response the app has dropped, or failed to finish."""
    body = request.environ.pop("sse.unsent", None)
    if body:
        body.close()


class _Views:
    """The functions that Flask calls, by the names of their endpoints."""

    def __init__(self, service: Service, authorize: Callable[[], Authorize | None]) -> None:
        self._service = service
        self._config: Config = service.config
        self._admission = Admission(service, authorize)
        self._waiting: Callable[[Any], type[Response]] = lru_cache(maxsize=4)(waiting)

    def stream(self, asked: Request) -> Response:
        rule = self._admission.rule()
        wanted = read_stream(asked, self._config, takes_token=self._admission.takes_token(rule))
        try:
            starts, permit, charge = self._admission.reader(asked, wanted.subscription, rule)
        except (Unavailable, KeyUnknown) as error:  # a 401 would end an EventSource for good, too
            return self._busy(error, error.retry_after, wanted)
        if asked.method == "GET":
            warn_of_server(asked.environ)
        subscription = wanted.subscription
        body = HookedStream(
            self._service.hub,
            starts,
            heartbeat=wanted.heartbeat,
            lifetime=self._config.stream_lifetime,
            retry=self._config.retry,
            delta=wanted.delta,
            typed=wanted.typed,
            bare=wanted.bare,
            cut=wanted.cut,
            told={"replay": subscription.replay} if subscription.tells_replay else None,
            permit=permit,
            charge=charge,
        )
        if wanted.bare and (refused := self._attach(asked, wanted, body)):
            return refused
        return self._waiting_response(body, STREAM_HEADERS)

    def _attach(self, asked: Request, wanted: StreamAsked, body: HookedStream) -> Response | None:
        """Attach a bare stream, and return the answer in its place if it cannot be served."""
        try:
            body.attach()
        except Unavailable as error:
            return self._busy(error, error.retry_after if isinstance(error, TooMany) else 0, wanted)
        if resets := body.subscriber.resets:
            positions = {name: body.subscriber.positions_by_name[name] for name in wanted.subscription.channels}
            body.close()
            return _respond(gone(resets, format_last_event_id(positions)))
        if asked.method == "HEAD":
            body.close()
        else:
            asked.environ["sse.unsent"] = body
        return None

    def _busy(self, error: SSEError, after: int, wanted: StreamAsked) -> Response:
        """Return the answer to a stream's request that cannot be served now, nor for the next `after` seconds."""
        warn("a stream is told that this service is busy: %s", error)
        if wanted.bare:
            return busy_error(self._config.retry, after)
        response = current_app.make_response(Response(busy(self._config.retry, after), headers=STREAM_HEADERS))
        if wanted.cut:
            break_off(response)  # as the app's own class of responses, which Flask would else make of it
        return response

    def poll(self, asked: Request) -> Response:
        rule = self._admission.rule()
        wanted = read_poll(asked, self._config, takes_token=self._admission.takes_token(rule))
        starts, permit, charge = self._admission.reader(asked, wanted.subscription, rule)
        if asked.method == "HEAD":
            return Response(iter(()), content_type="application/json")
        body = HookedPoll(
            self._service.hub,
            starts,
            timeout=wanted.timeout,
            max_bytes=wanted.max_bytes,
            retry=self._config.retry,
            permit=permit,
            charge=charge,
            gone=asked.environ.get("sse.gone"),
        )
        try:
            return self._open(asked.environ, body)
        except StoreUnavailable as error:
            # What ails the store is for the log, not for whoever may read.
            warn("a poll is told to come again: %s", error)
            raise StoreUnavailable("the store does not answer", "ask again with the same last event id") from error

    def _open(self, environ: WSGIEnvironment, body: HookedPoll) -> Response:
        """Return a poll's answer where there is one at once, else the poll itself, or the answer after a wait."""
        answer = body.open()
        if answer and body.permit and body.permit.is_over:
            raise Unavailable("the right to read has ended meanwhile", "ask again")
        if answer is None and "sse.can_hand_off" in environ:  # the server has one loop for all that wait
            environ["sse.unsent"] = body
            return self._waiting_response(body, {"Content-Type": "application/json"})
        if answer is None:
            warn_of_server(environ)
        return Whole(answer or body.wait(), content_type="application/json")

    def publish(self, asked: Request) -> Response:
        publisher = self._admission.publisher(asked)
        ids = self._admission.publish(asked, publisher, read_publish(asked, self._config))
        return _respond(json({"ids": ids}, 201))

    def publish_raw(self, asked: Request, channel: str) -> Response:
        publisher = self._admission.publisher(asked)
        ids = self._admission.publish(asked, publisher, read_raw(asked, channel))
        return _respond(json({"ids": ids}, 201))

    def ticket(self, asked: Request) -> Response:
        return _respond(json({"ticket": self._admission.ticket(asked), "expires": TICKET_LIFE}, 201))

    def script(self, asked: Request, suffix: str) -> Response:
        return _script(asked, suffix, "public, max-age=300")

    def script_of(self, asked: Request, version: str, suffix: str) -> Response:
        if version != __version__:
            address = f"{self._config.prefix}/sse.{__version__}.{suffix}"
            raise NotFound(f"the script has no version {version[:60]!a} here", f"its address is {address}")
        return _script(asked, suffix, "public, max-age=31536000, immutable")

    def nothing_here(self, _: Request, **__: str) -> Response:
        raise NotFound("there is nothing here", f"see {self._config.prefix}/stream and {self._config.prefix}/poll")

    def _waiting_response(self, body: Stream | Poll, headers: Mapping[str, str]) -> Response:
        response: Response = WaitingResponse(body, headers)
        response.__class__ = self._waiting(current_app.response_class)  # else Flask would make it the app's own class
        return response


def _add_rules(app: App, views: _Views, prefix: str) -> None:
    app.url_map.converters["sse_rest"] = _Rest
    for path, view, methods in (
        ("/stream", views.stream, ("GET", "HEAD", "OPTIONS")),
        ("/poll", views.poll, ("GET", "HEAD", "OPTIONS")),
        ("/sse.<any(js, mjs):suffix>", views.script, ("GET", "HEAD", "OPTIONS")),
        ("/sse.<version>.<any(js, mjs):suffix>", views.script_of, ("GET", "HEAD", "OPTIONS")),
        ("/ticket", views.ticket, ("POST", "OPTIONS")),
        ("/publish", views.publish, ("POST", "OPTIONS")),
        ("/publish/<sse_rest:channel>", views.publish_raw, ("POST", "OPTIONS")),
        ("", views.nothing_here, ()),
        ("/", views.nothing_here, ()),
        ("/<sse_rest:rest>", views.nothing_here, ()),
    ):
        endpoint = f"sse.{view.__name__}"
        # For every method there is: one that is wrong gets our answer too, and its CORS headers.
        app.url_map.add(Rule(f"{prefix}{path}", endpoint=endpoint))
        app.view_functions[endpoint] = _for_methods(view, methods)


def _for_methods(view: View, methods: tuple[str, ...]) -> View:
    """Return the view for these methods only, and for all where none is given."""

    def dispatch(**values: str) -> Response:
        asked = AppRequest(request._get_current_object())  # type: ignore[attr-defined]
        method = asked.method
        if method == "OPTIONS":  # before all else: a preflight asks no more than this (Fetch, 4.8)
            return Response(headers={"Allow": ", ".join(methods or ("OPTIONS",))})
        if methods and method not in methods:
            raise WrongMethod(f"{method[:60]!a} is not for this address", f"use {methods[0]}", allowed=methods)
        return view(asked, **values)

    return dispatch


def _respond(answer: Answer) -> Response:
    response = Whole(answer.body, answer.status, content_type="application/json")
    if answer.headers:
        response.headers.extend(answer.headers)
    return response


def _script(asked: Request, suffix: str, cache_control: str) -> Response:
    answer = embed_script(asked, suffix, cache_control)
    return Response(answer.body or None, answer.status, answer.headers)


def _refuse(service: Service, error: SSEError) -> Response:
    if service.at_first_use:
        service.begin()
    return _respond(refusal(error))


def _refuse_http(error: HTTPException) -> Response:
    """Return what werkzeug, Flask or the app's rule raised: a response of its own as it is, all else in our form."""
    if error.response is not None:
        return error.response  # type: ignore[return-value]
    return _respond(http_refusal(error))


def _finish(finish: Finish, response: Response) -> Response:
    environ = request.environ
    # The app may have put flask-cors' decorator around a view: it has answered the preflight then.
    is_answered = environ["REQUEST_METHOD"] == "OPTIONS" and hasattr(response, PREFLIGHT_ANSWERED)
    finish(response.headers, environ, with_cors=not is_answered)
    return response
