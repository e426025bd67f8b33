"""The routes for Flask. Each reads the request, has it admitted, and makes a response of the answer.

The routes take every method and every path under SSE_PREFIX, so that errors have this service's form and CORS headers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import IO, Any, ClassVar, Final, cast

import flask
from flask import Blueprint, Flask, Response, current_app, request
from flask.sansio.app import App
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.exceptions import HTTPException
from werkzeug.routing import PathConverter, Rule

from sse.access.decision import Authorize
from sse.access.token import TICKET_LIFE
from sse.config import Config
from sse.errors import NotFound, SSEError, WrongMethod
from sse.service import Service
from sse.stores.presence import Attendance
from sse.transports.poll import Poll
from sse.transports.probe import ProbeStream
from sse.version import __version__
from sse.web.admission import Identify
from sse.web.answering import Answering, Polled, Streamed
from sse.web.answers import (
    CORS_DECIDED,
    JSON,
    STREAM_HEADERS,
    Answer,
    BusyAnswer,
    CommonHeaders,
    Empty,
    FileAnswer,
    embed_script,
    http_refusal,
    json,
)
from sse.web.doctor import Doctor
from sse.web.hooks import (
    CompleteResponse,
    Endless,
    WaitingResponse,
    break_off,
    busy_error,
    make_hook,
    waiting_class,
)
from sse.web.lane import Lane
from sse.web.lane_rule import LaneRule
from sse.web.probe_request import is_probe
from sse.web.readiness import readiness
from sse.web.request import Options, Query, Request

_NEVER_STORED: Final = {"Cache-Control": "no-store"}
_MAX_MEMBERS: Final = 1000  # in the answer to a request for presence


class _Rest(PathConverter):
    """The rest of a path, with any characters. Werkzeug's own converter does not match line breaks."""

    regex = "(?s:.+)"
    part_isolating = False


class AppRequest(Request):
    """A request whose parts come from Flask's request if a hook of the app has parsed, read or replaced them."""

    __slots__ = ("_flask_request",)
    in_app: ClassVar[bool] = True

    def __init__(self, flask_request: flask.Request) -> None:
        super().__init__(flask_request.environ, flask_request.method, flask_request.query_string)
        self._flask_request = flask_request

    def args(self) -> Query:
        return dict(self._flask_request.args.lists()) if self._has("args") else super().args()

    def cookie(self, name: str) -> str:
        return self._flask_request.cookies.get(name, "") if self._has("cookies") else super().cookie(name)

    def media_type(self) -> tuple[str, Options]:
        request = self._flask_request
        return (
            (request.mimetype, request.mimetype_params) if self._has("_parsed_content_type") else super().media_type()
        )

    def length(self) -> int | None:
        return self._flask_request.content_length

    def stream(self) -> IO[bytes]:
        return self._flask_request.stream

    def data(self, max_length: int) -> bytes:
        self._flask_request.max_content_length = max_length
        return self._flask_request.get_data(cache=False)

    def takes_gzip(self) -> bool:
        return self._flask_request.accept_encodings["gzip"] > 0

    def has(self, etag: str) -> bool:
        return self._flask_request.if_none_match.contains_weak(etag)

    @property
    def is_multiprocess(self) -> bool:
        return self._flask_request.is_multiprocess

    def _has(self, name: str) -> bool:
        """Return True if the app has parsed or replaced this part, or has a class of requests of its own."""
        return name in vars(self._flask_request) or type(self._flask_request) is not flask.Request


View = Callable[..., Response]


def make_blueprint(
    service: Service,
    authorize: Callable[[], Authorize | None],
    identify: Callable[[], Identify | None] = lambda: None,
    name: str = "sse",
) -> Blueprint:
    """Return the routes of one app, all under SSE_PREFIX.

    :param authorize: returns the app's rule for reading, or None.
    :param identify: returns the app's function that names the reader, or None.
    :param name: of the blueprint.
    """
    blueprint = Blueprint(name, __name__)
    views = Views(service, authorize, identify, name)
    hide_form = partial(_hide_form, f"{name}.publish_raw")
    own = (hide_form, views.finish, views.keep_working, _close_unsent, views.refuse, _refuse_http)
    blueprint.url_value_preprocessor(hide_form)
    blueprint.after_request(views.finish)
    blueprint.after_app_request(views.keep_working)
    blueprint.teardown_app_request(_close_unsent)
    blueprint.register_error_handler(SSEError, views.refuse)
    blueprint.register_error_handler(HTTPException, _refuse_http)
    blueprint.record(lambda state: _add_rules(state.app, views, service.config.prefix, name))
    blueprint.record(lambda state: _add_lane(cast("Flask", state.app), views, name, own))
    return blueprint


def _hide_form(raw: str, endpoint: str | None, _: dict[str, Any] | None) -> None:
    """Give an empty form to a hook of the app that asks for it. Parsing the form would read the event's data away."""
    if endpoint == raw:
        request.form, request.files = ImmutableMultiDict(), ImmutableMultiDict()


def _close_unsent(_: BaseException | None) -> None:
    """Release the seat of a poll or bare stream whose response was never sent, because the app dropped it or failed."""
    body = request.environ.pop("sse.unsent", None)
    if body:
        body.close()


class Views:
    """The view functions. Each has the name of its endpoint. `own_views` uses them for the views of the app."""

    def __init__(
        self,
        service: Service,
        authorize: Callable[[], Authorize | None],
        identify: Callable[[], Identify | None],
        blueprint: str,
    ) -> None:
        self._service = service
        self.config: Config = service.config
        self.answering = Answering(service, authorize, identify)
        self.admission = self.answering.admission
        self._waiting: Callable[[Any], type[Response]] = lru_cache(maxsize=4)(waiting_class)
        self._own_endpoints: set[str] = set()  # of views of the app that have answered with a stream
        self.common = CommonHeaders(service.config)
        self.doctor = Doctor(service, self.admission, self.common)
        self.keep_working = make_hook(service.config.retry, self._add_headers, blueprint, self._own_endpoints)
        """The hook that keeps streams working whatever hooks of the app do."""

    def finish(self, response: Response) -> Response:
        """Return a response of this service with all of its headers."""
        return self._add_headers(self.keep_working(response))

    def refuse(self, error: SSEError) -> Response:
        """Return the response that tells a client of an error."""
        return _respond(self.answering.refuse(error))

    def _add_headers(self, response: Response) -> Response:
        environ = request.environ
        # The app may have put flask-cors' decorator around a view. It has answered the preflight then, and it decides
        # for the app's own views.
        is_for_app = environ["REQUEST_METHOD"] == "OPTIONS" or "sse.own" in environ
        self.common(response.headers, environ, with_cors=not (is_for_app and hasattr(response, CORS_DECIDED)))
        return response

    def note_own(self, kind: str, given: Query) -> None:
        """Note for the hook that a view of the app answers the current request as a `stream` or `poll`.

        :param given: the parameters that the view decides, in place of the query.
        """
        request.environ["sse.own"] = kind, given
        if kind == "stream" and request.endpoint:
            self._own_endpoints.add(request.endpoint)

    def respond(self, incoming: Request, answer: Streamed | Polled | ProbeStream | FileAnswer) -> Response:
        """Return the response that sends an answer."""
        match answer:
            case Answer():
                return _respond(answer)
            case Empty():
                return _empty(answer)
            case BusyAnswer():
                return _busy(answer)
            case FileAnswer():
                return Response(answer.body or None, answer.status, answer.headers)
        if isinstance(answer, ProbeStream) or answer.is_attached:
            incoming.environ["sse.unsent"] = answer
        return self.waiting_response(answer, {"Content-Type": JSON} if isinstance(answer, Poll) else STREAM_HEADERS)

    def stream(self, incoming: Request) -> Response:
        if is_probe(incoming) and self.doctor.is_open:
            return self._probe(incoming, self.doctor.stream)
        return self.respond(incoming, self.answering.stream(incoming))

    def poll(self, incoming: Request) -> Response:
        if is_probe(incoming) and self.doctor.is_open:
            return self._probe(incoming, self.doctor.poll)
        return self.respond(incoming, self.answering.poll(incoming))

    def publish(self, incoming: Request) -> Response:
        return self.respond(incoming, self.answering.publish(incoming))

    def publish_raw(self, incoming: Request, channel: str) -> Response:
        return self.respond(incoming, self.answering.publish(incoming, channel))

    def presence(self, incoming: Request, channel: str) -> Response:
        return _respond(json(_shown(self.admission.watch(incoming, channel))))

    def ticket(self, incoming: Request) -> Response:
        return _respond(json({"ticket": self.admission.ticket(incoming), "expires": TICKET_LIFE}, 201))

    def ready(self, incoming: Request) -> Response:
        answer = readiness(self._service, is_multiprocess=incoming.is_multiprocess)
        return _respond(answer._replace(headers=[*_NEVER_STORED.items()]))

    def health(self, _: Request) -> Response:
        return Response("ok", mimetype="text/plain", headers=_NEVER_STORED)  # also while the store does not answer

    def script(self, incoming: Request, suffix: str) -> Response:
        return self.respond(incoming, embed_script(incoming, suffix, "public, max-age=300"))

    def script_of(self, incoming: Request, version: str, suffix: str) -> Response:
        if version != __version__:
            address = f"{self.config.prefix}/sse.{__version__}.{suffix}"
            raise NotFound(f"the script has no version {version[:60]!a} here", f"load it from {address}")
        return self.respond(incoming, embed_script(incoming, suffix, "public, max-age=31536000, immutable"))

    def doctor_page(self, incoming: Request) -> Response:
        return self._probe(incoming, self.doctor.page)

    def doctor_file(self, incoming: Request, suffix: str) -> Response:
        return self._probe(incoming, partial(self.doctor.page, name=f"doctor.{suffix}"))

    def doctor_pass(self, incoming: Request) -> Response:
        return self._probe(incoming, self.doctor.make_pass)

    def doctor_echo(self, incoming: Request) -> Response:
        return self._probe(incoming, self.doctor.echo)

    def doctor_stream(self, incoming: Request) -> Response:
        return self._probe(incoming, self.doctor.stream)

    def doctor_poll(self, incoming: Request) -> Response:
        return self._probe(incoming, self.doctor.poll)

    def doctor_left(self, incoming: Request) -> Response:
        return self._probe(incoming, self.doctor.left)

    def doctor_status(self, incoming: Request, code: str) -> Response:
        return self._probe(incoming, partial(self.doctor.status, code=code))

    def doctor_judge(self, incoming: Request) -> Response:
        return self._probe(incoming, self.doctor.judge)

    def _probe(self, incoming: Request, ask: Callable[[Request], Answer | FileAnswer | ProbeStream]) -> Response:
        """Return the answer of the doctor, if there is one here."""
        if not self.doctor.is_open:
            return self.nothing_here(incoming)
        incoming.environ["sse.probe"] = True  # at the address of real streams, a refusal stays a refusal
        answer = ask(incoming)
        return self.respond(incoming, Empty() if isinstance(answer, Answer) and answer.status == 204 else answer)

    def nothing_here(self, _: Request, **__: str) -> Response:
        raise NotFound(
            "there is nothing at this address", f"use {self.config.prefix}/stream or {self.config.prefix}/poll"
        )

    def waiting_response(self, body: Endless | Poll, headers: Mapping[str, str]) -> Response:
        response: Response = WaitingResponse(body, headers)
        response.__class__ = self._waiting(current_app.response_class)  # a class of its own would be changed by Flask
        return response


def _add_rules(app: App, views: Views, prefix: str, blueprint: str) -> None:
    app.extensions["sse.views"] = views
    app.url_map.converters["sse_rest"] = _Rest
    for path, view, methods in (
        ("/stream", views.stream, ("GET", "HEAD", "OPTIONS")),
        ("/poll", views.poll, ("GET", "HEAD", "OPTIONS")),
        ("/sse.<any(js, mjs):suffix>", views.script, ("GET", "HEAD", "OPTIONS")),
        ("/sse.<version>.<any(js, mjs):suffix>", views.script_of, ("GET", "HEAD", "OPTIONS")),
        ("/presence/<sse_rest:channel>", views.presence, ("GET", "HEAD", "OPTIONS")),
        ("/doctor", views.doctor_page, ("GET", "HEAD", "OPTIONS")),
        ("/doctor/doctor.<any(css, js):suffix>", views.doctor_file, ("GET", "HEAD", "OPTIONS")),
        ("/doctor/pass", views.doctor_pass, ("POST", "OPTIONS")),
        ("/doctor/echo", views.doctor_echo, ("GET", "HEAD", "OPTIONS")),
        ("/doctor/stream", views.doctor_stream, ("GET", "HEAD", "OPTIONS")),
        ("/doctor/poll", views.doctor_poll, ("GET", "HEAD", "OPTIONS")),
        ("/doctor/left", views.doctor_left, ("GET", "HEAD", "OPTIONS")),
        ("/doctor/status/<sse_rest:code>", views.doctor_status, ("GET", "HEAD", "OPTIONS")),
        ("/doctor/judge", views.doctor_judge, ("POST", "OPTIONS")),
        ("/ready", views.ready, ("GET", "HEAD", "OPTIONS")),
        ("/health", views.health, ("GET", "HEAD", "OPTIONS")),
        ("/ticket", views.ticket, ("POST", "OPTIONS")),
        ("/publish", views.publish, ("POST", "OPTIONS")),
        ("/publish/<sse_rest:channel>", views.publish_raw, ("POST", "OPTIONS")),
        ("", views.nothing_here, ()),
        ("/", views.nothing_here, ()),
        ("/<sse_rest:rest>", views.nothing_here, ()),
    ):
        endpoint = f"{blueprint}.{view.__name__}"
        # The rule takes every method, so that a wrong one gets this service's answer with its CORS headers.
        app.url_map.add(Rule(f"{prefix}{path}", endpoint=endpoint))
        app.view_functions[endpoint] = _for_methods(view, methods)


def _add_lane(app: Flask, views: Views, blueprint: str, own: Sequence[object]) -> None:
    all_own = app.extensions.setdefault("sse.own_hooks", [])  # also those of another SSE
    all_own += own
    rule = LaneRule(app, views.config, blueprint, all_own)
    app.extensions["sse.lane"] = Lane(
        app, views.config, views.answering, rule, views.common, lambda: views.doctor.is_open
    )


def _for_methods(view: View, methods: tuple[str, ...]) -> View:
    """Return the view for these methods only; for all if none is given."""

    def dispatch(**values: str) -> Response:
        incoming = AppRequest(flask_request())
        method = incoming.method
        if method == "OPTIONS":  # before all checks, because a preflight has no credentials (Fetch, 4.8)
            return Response(headers={"Allow": ", ".join(methods or ("OPTIONS",))})
        if methods and method not in methods:
            raise WrongMethod(f"{method[:60]!a} is not for this address", f"use {methods[0]}", allowed=methods)
        return view(incoming, **values)

    return dispatch


def flask_request() -> flask.Request:
    return request._get_current_object()  # type: ignore[attr-defined,no-any-return]


def _respond(answer: Answer) -> Response:
    response = CompleteResponse(answer.body, answer.status, content_type=JSON)
    if answer.headers:
        response.headers.extend(answer.headers)
    return response


def _empty(answer: Empty) -> Response:
    if answer.content_type:  # to a HEAD, for which the length of the body is not known
        return Response(iter(()), answer.status, content_type=answer.content_type)
    response = Response(status=answer.status)
    response.headers.remove("Content-Type")
    return response


def _busy(answer: BusyAnswer) -> Response:
    if answer.status != 200:
        return busy_error(answer)
    response = current_app.make_response(Response(answer.body, headers=answer.headers))
    if answer.breaks_off:
        break_off(response)  # after make_response, because Flask would change the class of the response
    return response


def _shown(attendance: Attendance) -> dict[str, object]:
    """Return who is there as the answer tells it: the count of all, and the first subjects by name."""
    members = sorted(attendance.connections.items())
    shown = [{"sub": sub, "connections": count} for sub, count in members[:_MAX_MEMBERS]]
    return {"count": attendance.total, "members": shown, "more": len(members) > _MAX_MEMBERS}


def _refuse_http(error: HTTPException) -> Response:
    """Return the response that an error of werkzeug, Flask or the app's rule has; else one in this service's form."""
    if error.response is not None:
        return error.response  # type: ignore[return-value]
    return _respond(http_refusal(error))
