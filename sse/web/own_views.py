"""Answers of the app's own views: with channels, as the routes would, or with an iterable for one client alone.

A view of the app may stand anywhere, so nothing here relies on the routes' blueprint. The right to read is the view's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import IO, NamedTuple

import flask
from flask import Response, after_this_request, copy_current_request_context, g, request
from flask.globals import app_ctx

from sse.errors import NotAcceptable, SSEError, Unavailable
from sse.event import Event
from sse.service import Service
from sse.transports.dialect import ITEM_ID
from sse.transports.items import close
from sse.web.answers import STREAM_HEADERS, Empty
from sse.web.hooks import HookedItemStream
from sse.web.request import Query, read_last_event_id, read_poll, read_request_id, read_stream
from sse.web.server_check import warn_of_server
from sse.web.views import AppRequest, Views, flask_request

Headers = Sequence[tuple[str, str]]


class OwnView(NamedTuple):
    """The arguments of `SSE.subscribe`. They win over the query of the request that it answers."""

    given: Query
    """The parameters that the view of the app decides, with `channel`."""
    sub: str = ""
    """The reader's name, empty if it has none."""
    lifetime: float | None = None
    """Seconds; None for SSE_STREAM_LIFETIME."""
    headers: Headers = ()


class _OwnRequest(AppRequest):
    """A request to a view of the app, which decides some of its parameters and may have read its body."""

    __slots__ = ("_given",)

    def __init__(self, flask_request: flask.Request, given: Query) -> None:
        super().__init__(flask_request)
        self._given = given

    def args(self) -> Query:
        query = {name: values for name, values in super().args().items() if name not in ("channel", "token")}
        return query | self._given

    def left(self) -> int:
        return 0  # the Content-Length does not tell, because the view may have read the body

    def unread(self) -> IO[bytes]:
        return self.stream()


def subscribe(views: Views, view: OwnView) -> Response:
    """Return the answer to the current request: a stream of channels, or a poll if the client likes JSON better."""
    incoming = _OwnRequest(flask_request(), view.given)
    is_poll = incoming.weight("application/json") > incoming.weight("text/event-stream")
    views.note_own("poll" if is_poll else "stream", view.given)
    answer = _poll if is_poll else _stream
    try:
        response = answer(views, incoming, view)
    except SSEError as error:
        response = views.refuse(error)
    return _finished_later(views, response, view.headers)


def _stream(views: Views, incoming: _OwnRequest, view: OwnView) -> Response:
    parsed = read_stream(incoming, views.config, takes_token=False)
    # The client has not chosen the channels, so one that its last event id lacks has lost its position.
    parsed = parsed._replace(subscription=parsed.subscription._replace(from_header=True))
    admit = partial(views.admission.viewer, incoming, parsed.subscription, view.sub)
    return views.respond(incoming, views.answering.answer_stream(incoming, parsed, admit, view.lifetime))


def _poll(views: Views, incoming: _OwnRequest, view: OwnView) -> Response:
    parsed = read_poll(incoming, views.config, takes_token=False)
    parsed = parsed._replace(subscription=parsed.subscription._replace(from_header=True))
    admit = partial(views.admission.viewer, incoming, parsed.subscription, view.sub)
    return views.respond(incoming, views.answering.answer_poll(incoming, parsed, admit))


def stream_items(
    views: Views,
    service: Service,
    iterable: Iterable[object],
    make_event: Callable[[object], Event],
    headers: Headers,
) -> Response:
    """Return a stream of what the iterable gives, for the client of the current request alone."""
    incoming = _OwnRequest(flask_request(), {})
    views.note_own("stream", {})
    try:
        response = _items(views, incoming, service, iterable, make_event)
    except SSEError as error:
        close(iterable, _name())
        response = views.refuse(error)
    return _finished_later(views, response, headers)


def _items(
    views: Views,
    incoming: _OwnRequest,
    service: Service,
    iterable: Iterable[object],
    make_event: Callable[[object], Event],
) -> Response:
    if not incoming.weight("text/event-stream"):
        raise NotAcceptable("this address gives a stream only", "accept text/event-stream")
    if read_last_event_id(incoming) == ITEM_ID:
        close(iterable, _name())
        return views.respond(incoming, Empty())
    try:
        views.admission.subscribe(incoming)
    except Unavailable as error:
        close(iterable, _name())
        return views.respond(incoming, views.answering.busy(error, error.retry_after))
    if incoming.method != "HEAD":
        warn_of_server(incoming.environ)
    config = views.config
    body = HookedItemStream(
        service.hub,
        iterable,
        around=_request_context(),
        make_event=make_event,
        max_bytes=config.max_event_bytes,
        heartbeat=config.heartbeat,
        retry=config.retry,
        name=_name(),
        breaker=service.breaker,
        gone=incoming.environ.get("sse.gone"),
    )
    body.request_id = read_request_id(incoming, config.proxies)
    return views.waiting_response(body, STREAM_HEADERS)


def _name() -> str:
    """Return the name of the view that answers, for the log."""
    return request.endpoint or request.path


def _request_context() -> Callable[[Callable[[], None]], None]:
    """Return a function that calls another one in the context of the current request, in any thread.

    As in a generator with `stream_with_context`, `request`, `session` and `g` are those of the view. The functions that
    the app wants called at the end of a request are called at the end of the request, and again after the call.
    """
    of_view = g._get_current_object()

    @copy_current_request_context
    def call(work: Callable[[], None]) -> None:
        app_ctx.g = of_view
        work()

    return call


def _finished_later(views: Views, response: Response, headers: Headers) -> Response:
    """Return an own view's response, which gets the headers of this service before the app's hooks run."""
    response.headers.extend(headers)
    response.headers.add("Vary", "Accept")
    # Not now: a decorator around the view may add CORS headers of its own, and two of a kind are one too many.
    after_this_request(lambda sent: views.finish(sent) if sent is response else views.keep_working(sent))
    return response
