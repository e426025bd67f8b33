"""Decides on the answer to a stream, a poll or a publish request, as a plain value. Knows no Flask.

`views` makes Flask's responses of these values, and `lane` sends them without Flask, so both give the same answers. An
error that the client is to hear of is raised as an SSEError, and `Answering.refuse` makes its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from sse.access.decision import Authorize
from sse.access.permit import Permit
from sse.config import matches
from sse.errors import KeyUnknown, SSEError, StoreUnavailable, TooMany, Unavailable
from sse.event import Position, format_last_event_id
from sse.log import warn
from sse.service import Service
from sse.stores import Publication
from sse.web.admission import Admission, Admitted, Identify, Prepared
from sse.web.answers import JSON, Answer, BusyAnswer, Empty, busy, ended, gone, json, refusal
from sse.web.hooks import HookedPoll, HookedStream
from sse.web.presence import Enter, PresentPoll, PresentStream
from sse.web.request import (
    PollRequest,
    Request,
    StreamRequest,
    Subscription,
    read_poll,
    read_publish,
    read_raw,
    read_request_id,
    read_stream,
)
from sse.web.server_check import warn_of_server

BEGUN: Final = "sse.begun"
"""The member of an environ that says that the request has had an effect, such as a seat, beside what limits count."""

Streamed = Answer | Empty | BusyAnswer | HookedStream
"""The answer to a request for a stream. A stream takes its seat when it is opened, unless it `is_attached` already."""
Polled = Answer | Empty | HookedPoll
"""The answer to a poll. If it is a `HookedPoll`, that poll has been opened, and waits."""


class Answering:
    """Answers the requests of one service.

    :param authorize: returns the app's rule for reading, or None.
    :param identify: returns the app's function that names the reader, or None.
    """

    def __init__(
        self,
        service: Service,
        authorize: Callable[[], Authorize | None],
        identify: Callable[[], Identify | None],
    ) -> None:
        self._service = service
        self._config = service.config
        self._authorize = authorize
        self._identify = identify
        self.admission = Admission(service, authorize)

    def stream(self, request: Request) -> Streamed:
        """Return the answer to a request for a stream.

        :raises SSEError: if the request is refused.
        :raises ForFlask: if a function of the app has to be asked, and the request is not Flask's.
        """
        admission = self.admission
        rule = admission.rule(request)
        parsed = read_stream(request, self._config, takes_token=admission.takes_token(rule))
        return self.answer_stream(request, parsed, partial(admission.reader, request, parsed.subscription, rule))

    def answer_stream(
        self, request: Request, parsed: StreamRequest, admit: Callable[[], Admitted], lifetime: float | None = None
    ) -> Streamed:
        """Return the answer to a request for a stream that was parsed. The errors are those of `stream`.

        :param admit: admits the request, or refuses it.
        :param lifetime: seconds, see `Stream`; None for SSE_STREAM_LIFETIME.
        """
        subscription = parsed.subscription
        try:
            starts, permit, charge = admit()
            enter = self._enter(request, subscription, permit)
        except (Unavailable, KeyUnknown) as error:  # also for KeyUnknown: its 401 would end an EventSource for good
            return self.busy(error, error.retry_after, parsed)
        if request.method != "HEAD":
            warn_of_server(request.environ)
        config = self._config
        make = HookedStream if enter is None else partial(PresentStream, enter)
        body = make(
            self._service.hub,
            starts,
            heartbeat=parsed.heartbeat,
            lifetime=lifetime or config.stream_lifetime,
            retry=config.retry,
            delta=parsed.delta,
            typed=parsed.typed,
            bare=parsed.bare,
            cut=parsed.cut,
            told={"replay": subscription.replay} if subscription.tells_replay else None,
            permit=permit,
            charge=charge,
        )
        body.request_id = read_request_id(request, config.proxies)
        # All others, which are most, are attached only when they are sent.
        return self._attached(request, parsed, body) if parsed.bare or subscription.last_event_id else body

    def _attached(self, request: Request, parsed: StreamRequest, body: HookedStream) -> Streamed:
        """Attach a stream to the hub, and return it, or the answer to send instead.

        That is the answer if it cannot be served, or if its channels have ended and nothing more comes.
        """
        request.environ[BEGUN] = True
        try:
            body.attach()
            instead = _instead(body)
        except Unavailable as error:
            return self.busy(error, error.retry_after if isinstance(error, TooMany) else 0, parsed)
        except BaseException:
            body.close()
            raise
        if instead or request.method == "HEAD":
            body.close()
        return instead or body

    def busy(self, error: SSEError, after: int, parsed: StreamRequest | None = None) -> BusyAnswer:
        """Return the answer to a request for a stream that cannot be served for the next `after` seconds."""
        warn("a stream is told that this service is busy: %s", error)
        bare, cut = (parsed.bare, parsed.cut) if parsed else (False, False)
        return busy(self._config.retry, after, bare=bare, cut=cut)

    def busy_after_fault(self, request: Request) -> BusyAnswer:
        """Return the answer to a request for a stream that has failed in a way that nobody expected."""
        warn("a stream is told that this service is busy, because its request has failed")
        query = request.args()
        bare, cut = query.get("form") == ["bare"], query.get("end") == ["cut"]
        return busy(self._config.retry, 0, bare=bare, cut=cut)

    def poll(self, request: Request) -> Polled:
        """Return the answer to a poll. The errors are those of `stream`."""
        admission = self.admission
        rule = admission.rule(request)
        parsed = read_poll(request, self._config, takes_token=admission.takes_token(rule))
        return self.answer_poll(request, parsed, partial(admission.reader, request, parsed.subscription, rule))

    def answer_poll(self, request: Request, parsed: PollRequest, admit: Callable[[], Admitted]) -> Polled:
        """Return the answer to a poll that was parsed. For `admit` and the errors see `answer_stream`."""
        starts, permit, charge = admit()
        if request.method == "HEAD":
            return Empty(200, JSON)
        enter = self._enter(request, parsed.subscription, permit) if parsed.timeout else None
        make = HookedPoll if enter is None else partial(PresentPoll, enter)
        body = make(
            self._service.hub,
            starts,
            timeout=parsed.timeout,
            max_bytes=parsed.max_bytes,
            retry=self._config.retry,
            permit=permit,
            charge=charge,
            gone=request.environ.get("sse.gone"),
        )
        body.request_id = read_request_id(request, self._config.proxies)
        request.environ[BEGUN] = True
        try:
            return self._opened(request, body)
        except StoreUnavailable as error:
            # The fault of the store is for the log, not for clients.
            warn("a poll is answered with 503, to be repeated: %s", error)
            raise StoreUnavailable("the store does not answer", "ask again with the same last event id") from error

    def _opened(self, request: Request, body: HookedPoll) -> Answer | HookedPoll:
        """Return the answer of a poll if there is one now.

        Otherwise our worker gets the poll itself and waits for the answer in its loop; under other servers, this
        function waits.
        """
        answer = body.open()
        if answer is None:
            if "sse.can_hand_off" in request.environ:  # our worker waits for all polls in one loop
                return body
            warn_of_server(request.environ)
            return Answer(body.wait())
        if body.permit and body.permit.is_over:
            raise Unavailable("the right to read ended while the answer was prepared", "ask again")
        return Answer(answer)

    def _enter(self, request: Request, subscription: Subscription, permit: Permit | None) -> Enter | None:
        """Return the function that notes an admitted stream or poll as a connection; None without SSE_PRESENCE.

        :raises Unavailable: if the app's own function cannot name the reader.
        """
        if not self._config.presence:
            return None
        presence = self._service.presence
        if not (channels := presence.watched(subscription.channels)):
            return None
        sub = permit.grant.sub if permit and permit.grant else ""
        sub = sub or self.admission.subject(request, subscription, self._identify())
        return partial(presence.enter, channels, sub, subscription.client)

    def publish(self, request: Request, channel: str | None = None) -> Answer:
        """Store the events of a request. Return the answer with their ids.

        :param channel: of the one event that a body of any media type makes; None for a body of JSON.
        :raises SSEError: if the request is refused, or the events could not be stored.
        """
        prepared = self.prepare(request, channel)
        outcome: list[Position] | Exception
        try:
            [outcome] = self.publish_each([prepared.publications])
        except StoreUnavailable as error:
            outcome = error
        return self.published(prepared, outcome)

    # The three steps of `publish`, for a server that stores the events of many requests in one round trip.

    def prepare(self, request: Request, channel: str | None = None) -> Prepared:
        """Admit a publish request, and return what is to be stored. For the parameter and errors see `publish`."""
        publisher = self.admission.publisher(request)
        request.environ[BEGUN] = True  # the body can be read once only
        events = read_publish(request, self._config) if channel is None else read_raw(request, channel)
        return self.admission.prepare(request, publisher, events)

    def publish_each(self, calls: Sequence[Sequence[Publication]]) -> list[list[Position] | Exception]:
        """Store what was prepared for several requests, see `Service.publish_each`."""
        return self._service.publish_each(calls)

    def published(self, prepared: Prepared, outcome: list[Position] | Exception) -> Answer:
        """Return the answer with the ids of the events that were stored. For the errors see `publish`."""
        return json({"ids": self.admission.stored(prepared, outcome)}, 201)

    def may_ask_app(self, request: Request) -> bool:
        """Return whether a function of the app may be asked about a stream or poll. Its parameters need not be right.

        A token may settle the matter, too, but is not looked at here.
        """
        config = self._config
        asks_rule = self._authorize() is not None
        asks_name = bool(config.presence) and self._identify() is not None
        if not (asks_rule or asks_name):
            return False
        try:
            channels = request.args().get("channel", [])
        except UnicodeDecodeError:
            return False  # it is refused before
        is_closed = asks_rule and not all(
            any(matches(pattern, channel) for pattern in config.public) for channel in channels
        )
        return is_closed or (asks_name and bool(self._service.presence.watched(channels)))

    def refuse(self, error: SSEError) -> Answer:
        """Return the answer that tells a client of an error."""
        if self._service.at_first_use:
            self._service.begin()
        return refusal(error)


def _instead(body: HookedStream) -> Answer | Empty | None:
    """Return the answer to send instead of a stream that is attached; None to send the stream."""
    resets, reasons = body.subscriber.resets, body.ends
    if resets and body.is_bare:
        return gone(resets, format_last_event_id(body.subscriber.positions_by_name))
    if not reasons:
        return None
    if body.is_bare and {*reasons.values()} != {"done"}:
        return ended(reasons, format_last_event_id(body.subscriber.positions_by_name))
    return Empty()
