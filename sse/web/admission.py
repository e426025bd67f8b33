"""A request that has been read is let in here, by its limits, its right and then its positions. No Flask is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Final, NamedTuple

from werkzeug.exceptions import HTTPException

from sse.access import decision
from sse.access.limits import Limits
from sse.access.permit import Permit
from sse.errors import SSEError, StoreUnavailable, Unavailable
from sse.event import Event, LastEventId
from sse.hub.hub import Charge
from sse.hub.subscriber import Start, starting_points
from sse.log import warn
from sse.service import Service
from sse.stores import Publication
from sse.web.request import (
    Request,
    Subscription,
    read_address,
    read_body,
    read_credential,
    read_idempotency_key,
    read_ticket,
)
from sse.wire import stored_size

_log = logging.getLogger("sse")

_MAX_WRONG_ANSWERS: Final = 100


class Admitted(NamedTuple):
    """A reader who may read: where it goes on in each channel, what it stands on, and what counts new channels."""

    starts: dict[str, Start]
    permit: Permit | None
    """None where all channels are public."""
    charge: Charge | None
    """None where new channels are not limited."""


class Admission:
    """Lets the requests of one service pass. `authorize` gives the app's rule for reading."""

    def __init__(self, service: Service, authorize: Callable[[], decision.Authorize | None]) -> None:
        self._service = service
        self._config = service.config
        self._limits = Limits(service.config)
        service.also_close(self._limits.close)
        self._authorize = authorize
        self._access = decision.Access(service.config, service.tokens, service.keys, lambda: service.revocations)
        self._wrong_answers = WrongAnswers()

    def rule(self) -> decision.Authorize | None:
        """Return the app's rule, made safe: see `_ask`. One request asks for it once, because the app may change it."""
        authorize = self._authorize()
        return None if authorize is None else partial(_ask, authorize, self._wrong_answers)

    def takes_token(self, rule: decision.Authorize | None) -> bool:
        """Return whether anybody looks at the parameter `token`."""
        return self._service.tokens.configured or rule is not None

    def reader(self, request: Request, asked: Subscription, rule: decision.Authorize | None) -> Admitted:
        """Let a stream or poll pass, by this rule of the app's.

        :raises TooMany: if the client asks too often.
        :raises Unauthorized: if a credential is not valid, or missing.
        :raises Forbidden: naming the channels that are refused.
        :raises Unavailable: if the right cannot be checked, or where other processes publish what is not seen here.
        """
        config = self._config
        address = read_address(request, config.proxies)
        self._limits.subscribe(address)
        is_credential_read = self._service.tokens.configured
        credentials = read_credential(request, asked.token, config) if is_credential_read else decision.Credentials()
        permit = self._access.read(asked.channels, credentials, rule)
        self._service.check_workers(request.is_multiprocess)
        last = LastEventId.parse(asked.last_event_id) if asked.last_event_id else None
        starts = starting_points(asked.channels, last, from_header=asked.from_header, replay=asked.replay)
        return Admitted(starts, permit, self._charge(permit, address))

    def ticket(self, request: Request) -> str:
        """Return a ticket for the channels that the request names.

        :raises SSEError: those of reading the query, the limit, the right and the body, in this order.
        """
        channels = read_ticket(request, self._config)
        self._limits.subscribe(read_address(request, self._config.proxies))
        text = self._access.ticket(channels, request.header("HTTP_AUTHORIZATION"), self.rule())
        read_body(request)  # of which nothing is needed, but a request that breaks off is not acted on
        return text

    def publisher(self, request: Request) -> decision.Publisher:
        """Return who publishes, before the body is read: see `Access.publisher`."""
        return self._access.publisher(request.header("HTTP_AUTHORIZATION"))

    def publish(
        self, request: Request, publisher: decision.Publisher, events: Sequence[tuple[str, Event]]
    ) -> list[str]:
        """Store events, each on its channel, and return their ids.

        :raises SSEError: those of the right, the key, each event, the limits and the store, in this order.
        """
        channels = [channel for channel, _ in events]
        self._access.publish(channels, publisher)
        scope = publisher.scope
        self._service.check_workers(request.is_multiprocess)
        key = read_idempotency_key(request)
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
        self._limits.count_new_rings(scope, sum(position.offset == 1 for position in positions) - counted)
        return [f"{channel}={position}" for channel, position in zip(channels, positions, strict=True)]

    def _charge(self, permit: Permit | None, address: str | None) -> Charge | None:
        if not self._config.limit_new_channels:
            return None
        grant = permit.grant if permit else None
        client = grant.scope if grant and (grant.sub or grant.id) else address
        return partial(self._limits.new_channels, client) if client else None


class WrongAnswers:
    """Logs, once for each rule and type, that a rule answers with anything but True, False or None."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], object] = {}

    def tell(self, rule: str, kind: type) -> None:
        """Log an error about a rule that answered with this type, the first time that it does."""
        mine, wrong = object(), (rule, f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."))
        if len(self._told) < _MAX_WRONG_ANSWERS and self._told.setdefault(wrong, mine) is mine:
            _log.error(
                "@sse.authorize: the rule %s returned %s, so the channel stays closed: return True to open a channel "
                "and False to refuse it; use abort() for an answer of its own, and bool() for a value that stands for "
                "a yes or no",
                *wrong,
            )


def _ask(authorize: decision.Authorize, wrong_answers: WrongAnswers, channel: str) -> bool:
    """Return whether the app's rule opens a channel, which only `True` does.

    An error in the rule opens nothing. It is no error status for a stream, because that would end its EventSource for
    good.

    :raises Unavailable: if the rule fails. An `abort` in the rule passes as it is, but for 429 and 5xx.
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
        wrong_answers.tell(decision.name_of(authorize), type(answer))
    return False


def _status(error: Exception) -> int:
    """Return the HTTP status that an error of the app's rule stands for."""
    if isinstance(error, HTTPException):
        return error.get_response().status_code
    return error.status if isinstance(error, SSEError) else 500


def _stored_size(events: Sequence[tuple[str, Event]]) -> int:
    """Return the bytes that the events' data take in the store, in all channels together."""
    total = 0
    sizes: dict[int, int] = {}  # one event on many channels is one object, which is measured once
    for _, event in events:
        size = sizes.get(id(event))
        if size is None:
            size = sizes[id(event)] = stored_size(event)
        total += size
    return total
