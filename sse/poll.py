"""A subscriber as one JSON answer: the same positions, from the same rings, for clients that cannot keep a stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sse.errors import Busy, Unauthorized
from sse.event import Position, format_last_event_id
from sse.hub import ATTACH_TIMEOUT, Hub
from sse.permit import Permit
from sse.subscriber import Delivery, Lagging, Reset, Start

_MAX_EVENTS: Final = 1000
_MAX_BYTES: Final = 1 << 20
_GATHER: Final = 0.01


def poll(
    hub: Hub,
    starts: Mapping[str, Start],
    *,
    timeout: float,
    retry: int,
    permit: Permit | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """What has come since, as the JSON object of a poll's answer.

    It comes at once when there is something to tell or a channel has no position yet; else with the first event and
    those that come within some milliseconds of it, or empty after `timeout` seconds. Asked twice, it answers twice.

    :param timeout: seconds to wait at the most; with 0 no ring is founded, and a channel that has none stands at `0-0`.
    :param retry: milliseconds that the client is to wait after a failure.
    :param permit: what it stands on, where not all of its channels are public.
    :raises Unauthorized: if that ends meanwhile.
    :raises Unavailable: if there is no room for another subscriber, or the store is away.
    """
    if timeout == 0:
        look = hub.look(starts, _MAX_EVENTS, _MAX_BYTES)
        return _answer(look.taken, look.places, look.more, retry)
    deadline = clock() + timeout
    subscriber = hub.attach(starts, max(timeout, ATTACH_TIMEOUT))
    try:
        if permit:
            permit.begin(subscriber.notify)
            deadline = min(deadline, clock() + permit.ends_in)
        taken = subscriber.take(_MAX_EVENTS, _MAX_BYTES)
        settled = all(start.position for start in starts.values())
        while settled and not taken and subscriber.wait(max(deadline - clock(), 0)):
            time.sleep(_GATHER)
            taken = subscriber.take(_MAX_EVENTS, _MAX_BYTES)
            if permit and permit.ended:
                break
        if permit and permit.is_over:
            raise Unauthorized("the token has expired or has been revoked", "fetch a new one", code="token_expired")
        return _answer(taken, subscriber.places, subscriber.is_behind(), retry)
    except Lagging as error:
        raise Busy(error.message, "ask again with the same last event id") from None
    finally:
        hub.detach(subscriber)
        if permit:
            permit.end()


def _answer(
    taken: Sequence[Delivery | Reset], places: Mapping[str, Position], more: bool, retry: int
) -> dict[str, Any]:
    # The answer lists resets apart from events: those before a reset are of a state that the client is to give up.
    resets = {item.channel: index for index, item in enumerate(taken) if isinstance(item, Reset)}
    return {
        "last_event_id": format_last_event_id(places),
        "events": [
            {
                "channel": item.channel,
                "id": f"{item.channel}={item.entry.position}",
                "type": item.entry.event.type,
                "data": item.entry.event.data,
            }
            for index, item in enumerate(taken)
            if isinstance(item, Delivery) and index > resets.get(item.channel, -1)
        ],
        "resets": [
            {"channel": item.channel, "reason": item.reason, "missed": item.missed}
            for index, item in enumerate(taken)
            if isinstance(item, Reset) and index == resets[item.channel]
        ],
        "more": more,
        "retry": retry,
    }
