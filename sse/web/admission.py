"""Admits a parsed request, or refuses it: first by the limits, then by its right. Needs no Flask.

A stream or poll that is admitted gets its starting positions. A publication that is admitted is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from sys import getsizeof
from typing import Final, NamedTuple, cast

from werkzeug.exceptions import HTTPException

from sse.access import decision
from sse.access.limits import Limits
from sse.access.permit import Permit
from sse.errors import Forbidden, NotFound, SSEError, StoreUnavailable, Unavailable
from sse.event import Event, LastEventId, Position, plain_str
from sse.hub.hub import Charge
from sse.hub.subscriber import Start, starting_points
from sse.log import warn
from sse.service import Service
from sse.stores import Publication
from sse.stores.presence import Attendance
from sse.web.request import (
    Request,
    Subscription,
    read_address,
    read_body,
    read_credential,
    read_idempotency_key,
    read_ticket,
    read_watch,
)
from sse.wire import stored_size

_log = logging.getLogger("sse")

Identify = Callable[[], "str | None"]
"""The app's function that names the subject of the current request, for presence."""

COUNTED: Final = "sse.counted"
"""The member of an environ that has the client's address, in a tuple, once the request has been counted."""

_MAX_WRONG_ANSWERS: Final = 100
_PUBLICATION_BYTES: Final = 512  # that a publication takes in memory beside its data


class Admitted(NamedTuple):
    """An admitted stream or poll: where it starts in each channel, its right to read, and its limit of new channels."""

    starts: dict[str, Start]
    permit: Permit | None
    """None if all channels are public."""
    charge: Charge | None
    """Counts the channels that it creates; None if new channels are not limited."""


class ForFlask(BaseException):
    """Raised where a function of the app would have to be called outside of Flask: the request has to go to Flask.

    It is no Exception, so that what catches the faults of the app's functions lets it pass.
    """


class Prepared(NamedTuple):
    """The admitted events of one request, of the publisher `scope`.

    :param counted: new rings that the limits have counted in advance.
    """

    publications: list[Publication]
    scope: str
    counted: int

    @property
    def size(self) -> int:
        """About the bytes that they take in memory until they are stored."""
        return sum(getsizeof(publication.event.data) + _PUBLICATION_BYTES for publication in self.publications)


class Admission:
    """Admits the requests of one service. `authorize` returns the app's rule for reading, None if it has none."""

    def __init__(self, service: Service, authorize: Callable[[], decision.Authorize | None]) -> None:
        self._service = service
        self._config = service.config
        self._limits = Limits(service.config)
        service.also_close(self._limits.close)
        self._authorize = authorize
        self._access = decision.Access(service.config, service.tokens, service.keys, lambda: service.revocations)
        self._wrong_answers = WrongAnswers()

    def rule(self, request: Request) -> decision.Authorize | None:
        """Return the app's rule, wrapped in `_ask`. Call this once in each request: the app may change its rule.

        Outside of Flask, the rule raises ForFlask in place of an answer.
        """
        authorize = self._authorize()
        if authorize is None:
            return None
        return partial(_ask, authorize, self._wrong_answers) if request.in_app else _leave_to_flask

    def takes_token(self, rule: decision.Authorize | None) -> bool:
        """Return True if the parameter `token` is read: by this service, or by the app's rule."""
        return self._service.tokens.configured or rule is not None

    def reader(self, request: Request, subscription: Subscription, rule: decision.Authorize | None) -> Admitted:
        """Admit a stream or poll.

        The checks have this order: the limit of requests, the credentials, the right to each channel, the number of
        processes. Only then is the last event id read.

        :param rule: the app's rule, as `rule` returned it for this request.
        :raises TooMany: if the client asks too often.
        :raises Unauthorized: if a credential is not valid, or is missing.
        :raises Forbidden: naming the channels that are refused.
        :raises Unavailable: if the right cannot be checked now, or if the app runs in several processes whose memory
            stores do not see each other's events.
        """
        address = self.subscribe(request)
        permit = self._access.read(subscription.channels, self._credentials(request, subscription.token), rule)
        return self._admitted(request, subscription, address, permit)

    def viewer(self, request: Request, subscription: Subscription, sub: str) -> Admitted:
        """Admit a stream or poll that a view of the app lets read. The checks are those of `reader`, but for the right.

        :param sub: the reader's name, empty if it has none.
        :raises TooMany, Unavailable: as `reader` does.
        """
        address = self.subscribe(request)
        return self._admitted(request, subscription, address, self._access.of_view(subscription.channels, sub))

    def asks_app(self, request: Request, channels: Sequence[str], token: str, *, names: bool) -> bool:
        """Return whether a stream or poll needs a function of the app: its rule, or the one that names the reader.

        Nothing is counted, and the request may be refused all the same.

        :param token: the one in the query.
        :param names: the app's function would be asked for a reader without a subject.
        """
        has_rule = self._authorize() is not None
        if not (has_rule or names):
            return False
        try:
            is_settled, subject = self._access.without_rule(channels, self._credentials(request, token))
        except SSEError:
            return False
        return (has_rule and not is_settled) or (names and not subject)

    def subscribe(self, request: Request) -> str | None:
        """Count a request of a client that wants to listen, unless it was counted before it was passed to Flask.

        Return the client's address as it is counted.

        :raises TooMany: if the client asks too often.
        """
        if counted := request.environ.get(COUNTED):
            return cast("str | None", counted[0])
        address = read_address(request, self._config.proxies)
        self._limits.subscribe(address)
        if not request.in_app:
            request.environ[COUNTED] = (address,)
        return address

    def _admitted(
        self, request: Request, subscription: Subscription, address: str | None, permit: Permit | None
    ) -> Admitted:
        self._service.check_workers(request.is_multiprocess)
        last = LastEventId.parse(subscription.last_event_id) if subscription.last_event_id else None
        starts = starting_points(
            subscription.channels, last, from_header=subscription.from_header, replay=subscription.replay
        )
        return Admitted(starts, permit, self._charge(permit, address))

    def subject(self, request: Request, subscription: Subscription, identify: Identify | None) -> str:
        """Return the subject of an admitted stream or poll, for presence; empty if it is anonymous.

        It is that of the token or ticket, or else what the app's function says. A view of the app lets its readers in
        by itself, so a token in its requests may be another service's, and is not read.

        :raises Unavailable: if that function fails.
        """
        if self._service.tokens.configured and "sse.own" not in request.environ:
            credentials = read_credential(request, subscription.token, self._config)
            if sub := self._access.subject(credentials):
                return sub
        if identify is None:
            return ""
        if not request.in_app:
            raise ForFlask
        return _identified(identify)

    def watch(self, request: Request, channel: str) -> Attendance:
        """Return who is connected to a channel.

        :raises SSEError: for a fault in the channel's name, the limit, the right or the store, looked at in this order.
        """
        if not self._config.presence:
            raise NotFound("there is nothing at this address", "set SSE_PRESENCE to know who listens")
        channel = read_watch(channel)
        self._limits.subscribe(read_address(request, self._config.proxies))
        self._access.watch(channel, request.header("HTTP_AUTHORIZATION"))
        self._service.check_workers(request.is_multiprocess)
        try:
            return self._service.attendance(channel)
        except StoreUnavailable as error:
            warn("a request for presence is answered with 503: %s", error)
            raise StoreUnavailable("the store does not answer", "ask again") from error

    def ticket(self, request: Request) -> str:
        """Return a ticket for the channels that the request names.

        :raises SSEError: for a fault in the query, the limit, the right or the body, looked at in this order.
        """
        channels = read_ticket(request, self._config)
        self.subscribe(request)
        text = self._access.ticket(channels, request.header("HTTP_AUTHORIZATION"), self.rule(request))
        read_body(request)  # the content is not used, but a request whose body breaks off must have no effect
        return text

    def prober(self, request: Request) -> None:
        """Check that the bearer of the Authorization header may have a pass for the doctor's probes.

        Any publishing key may, and a token that may publish somewhere.

        :raises TooMany: if the client asks too often.
        :raises Unauthorized: if the header has no valid key or token.
        :raises Forbidden: for a token that may only read, as every user of a site may have one.
        """
        self.subscribe(request)
        publisher = self.publisher(request)
        self._access.publish((), publisher)
        if not publisher.patterns:
            raise Forbidden("not allowed to have a pass", "the token needs the claim publish, with one channel or more")

    def publisher(self, request: Request) -> decision.Publisher:
        """Return the publisher, from the header alone, before the body is read: see `Access.publisher`."""
        return self._access.publisher(request.header("HTTP_AUTHORIZATION"))

    def prepare(self, request: Request, publisher: decision.Publisher, events: Sequence[tuple[str, Event]]) -> Prepared:
        """Admit events, each on its channel, and count them by the limits. Return what is to be stored.

        :raises SSEError: for a fault in the right, the number of processes, the idempotency key, an event or the
            limits, looked at in this order, or if the store has to be asked for the limits and does not answer.
        """
        channels = [channel for channel, _ in events]
        self._access.publish(channels, publisher)
        scope = publisher.scope
        self._service.check_workers(request.is_multiprocess)
        key = read_idempotency_key(request)
        publications = [
            Publication(channel, self._service.check(event), None if key is None else f"{scope}:{index}:{key}")
            for index, (channel, event) in enumerate(events)
        ]
        size = _stored_size(events) if self._config.limit_publish_bytes else 0
        try:
            counted = self._limits.publish(scope, channels, size, lambda: self._service.count_new(channels))
        except StoreUnavailable as error:
            raise _to_be_repeated(error) from error
        return Prepared(publications, scope, counted)

    def stored(self, prepared: Prepared, outcome: list[Position] | Exception) -> list[str]:
        """Return the ids of the events of a request, or raise the error for which some or all were refused.

        :param outcome: what became of them, from `Service.publish_each`.
        """
        if isinstance(outcome, StoreUnavailable):
            raise _to_be_repeated(outcome) from outcome
        if isinstance(outcome, Exception):
            raise outcome
        new = sum(position.offset == 1 for position in outcome)
        self._limits.count_new_rings(prepared.scope, new - prepared.counted)
        return [
            f"{publication.channel}={position}"
            for publication, position in zip(prepared.publications, outcome, strict=True)
        ]

    def _credentials(self, request: Request, token: str) -> decision.Credentials:
        is_read = self._service.tokens.configured
        return read_credential(request, token, self._config) if is_read else decision.Credentials()

    def _charge(self, permit: Permit | None, address: str | None) -> Charge | None:
        if not self._config.limit_new_channels:
            return None
        grant = permit.grant if permit else None
        client = grant.scope if grant and (grant.sub or grant.id) else address
        return partial(self._limits.new_channels, client) if client else None


class WrongAnswers:
    """Logs that a rule returned something other than True, False or None, once for each rule and type."""

    def __init__(self) -> None:
        self._logged: dict[tuple[str, str], object] = {}

    def log(self, rule: str, kind: type) -> None:
        """Log an error the first time that this rule returns this type."""
        # setdefault is atomic, so only one of several threads gets its own object back and logs.
        mine, wrong = object(), (rule, f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."))
        if len(self._logged) < _MAX_WRONG_ANSWERS and self._logged.setdefault(wrong, mine) is mine:
            _log.error(
                "@sse.authorize: the rule %s returned %s, so the channel stays closed: return True to open a channel "
                "and False to refuse it; use abort() for an HTTP error of its own, and bool() for a value that "
                "stands for yes or no",
                *wrong,
            )


def _leave_to_flask(_: str) -> bool:
    raise ForFlask


def _ask(authorize: decision.Authorize, wrong_answers: WrongAnswers, channel: str) -> bool:
    """Return True if the app's rule returns True for a channel.

    An error in the rule opens nothing. It becomes Unavailable, for which a stream is answered `busy`: an error status
    would end its EventSource for good. An `abort` in the rule is raised as it is, unless its status is 429 or 5xx.

    :raises Unavailable: if the rule fails.
    """
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
        wrong_answers.log(decision.name_of(authorize), type(answer))
    return False


def _identified(identify: Identify) -> str:
    """Return the subject that the app's function names for the current request; empty if it names none.

    An error in the function is treated as one in the app's rule, see `_ask`. An answer other than a string or None is
    logged, and the connection is anonymous.

    :raises Unavailable: if the function fails.
    """
    try:
        answer: object = identify()
        if isinstance(answer, Coroutine):
            answer.close()
    except Exception as error:
        if _status(error) < 500 and _status(error) != 429:
            raise
        warn("@sse.identify failed", exc_info=True)
        raise Unavailable("the reader could not be identified", "see the log", code="identify") from error
    if answer is not None and not isinstance(answer, str):
        warn("@sse.identify returned %s, so the connection is anonymous: return a str, or None", type(answer).__name__)
    return plain_str(answer) if isinstance(answer, str) else ""


def _status(error: Exception) -> int:
    """Return the HTTP status of an error that the app's rule raised; 500 if it is no HTTP error."""
    if isinstance(error, HTTPException):
        return error.get_response().status_code
    return error.status if isinstance(error, SSEError) else 500


def _to_be_repeated(error: StoreUnavailable) -> StoreUnavailable:
    """Log that a publish request may not be stored, and return the error that tells its client to repeat it."""
    warn("a publish request is answered with 503, to be repeated: %s", error)
    return StoreUnavailable(error.message, f"{error.hint}; repeat this with the same Idempotency-Key")


def _stored_size(events: Sequence[tuple[str, Event]]) -> int:
    """Return the bytes that the events' data take in the store, in all channels together."""
    total = 0
    sizes: dict[int, int] = {}  # by the event's id(): an event on many channels is one object, and is measured once
    for _, event in events:
        size = sizes.get(id(event))
        if size is None:
            size = sizes[id(event)] = stored_size(event)
        total += size
    return total
