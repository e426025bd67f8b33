"""A subscriber as an endless `text/event-stream` body (WHATWG HTML section 9.2)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, Literal

from sse.errors import StoreUnavailable, Unavailable
from sse.event import Position, format_last_event_id
from sse.hub import ATTACH_TIMEOUT, Hub
from sse.log import warn
from sse.subscriber import Delivery, Lagging, Reset, Start, Subscriber
from sse.wire import HEARTBEAT, encode_control, encode_id, type_in_data

_CHUNK: Final = 65_536
_CHUNK_EVENTS: Final = 1000
_STALLED_AFTER: Final = 20.0
_RETRY_STORE: Final = 1.0


def stream(
    hub: Hub,
    starts: Mapping[str, Start],
    *,
    heartbeat: float,
    lifetime: float,
    retry: int,
    delta: bool = False,
    typed: bool = False,
    told: Mapping[str, object] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[bytes]:
    """The chunks of a stream's body; each ends at the end of a block.

    An id never claims more than the blocks up to and including its own have said, so a client that is cut anywhere
    comes back for the rest. The subscriber is attached at the first chunk, and detached when the iterator is closed.

    :param heartbeat: seconds of quiet before a heartbeat.
    :param lifetime: seconds until `sse.close`, give or take 20 %, so that clients do not come back all at once.
    :param retry: milliseconds that a client waits before it reconnects.
    :param delta: whether an event's id has the position of its own channel only.
    :param typed: whether an event's type is told in its data, see `type_in_data`.
    :param told: what else `sse.open` tells.
    """
    try:
        subscriber = hub.attach(starts, ATTACH_TIMEOUT)
    except Unavailable as error:
        warn("a stream is told that this service is busy: %s", error)
        yield busy(retry)
        return
    try:
        lifetime *= random.uniform(0.8, 1.2)
        claims = _claims(subscriber, starts)
        told = {"heartbeat": heartbeat, "lifetime": round(lifetime), "retry": retry, **(told or {})}
        yield _opening(subscriber, starts, claims, told, retry)
        encode = partial(_block, claims=claims, delta=delta, typed=typed)
        yield from _blocks(subscriber, encode, heartbeat, clock() + lifetime, retry, clock)
    finally:
        hub.detach(subscriber)


def busy(retry: int) -> bytes:
    """The whole body for a client that cannot be served now: an error status would end its EventSource for good."""
    return _close("busy", random.uniform(1, 4) * retry)


def _close(reason: Literal["lifetime", "slow", "busy"], retry: float) -> bytes:
    # In the data too: an EventSource keeps the `retry:` field to itself.
    return encode_control("sse.close", {"reason": reason, "retry": round(retry)}, retry=round(retry))


def _claims(subscriber: Subscriber, starts: Mapping[str, Start]) -> dict[str, Position | None]:
    """What the client may say that it has: its own word, if any, for a channel whose reset it has not heard yet."""
    unheard = {reset.channel for reset in subscriber.resets}
    return {name: starts[name].position if name in unheard else place for name, place in subscriber.places.items()}


def _opening(
    subscriber: Subscriber,
    starts: Mapping[str, Start],
    claims: Mapping[str, Position | None],
    told: Mapping[str, object],
    retry: int,
) -> bytes:
    unheard = {reset.channel for reset in subscriber.resets}
    channels = {
        name: {
            "position": str(claims[name]) if claims[name] else None,
            "resumed": start.position is not None and name not in unheard,
        }
        for name, start in starts.items()
    }
    data = {"channels": channels, **told}
    return encode_control("sse.open", data, last_event_id=format_last_event_id(claims), retry=retry) + HEARTBEAT


def _blocks(
    subscriber: Subscriber,
    encode: Callable[[Delivery | Reset], bytes],
    heartbeat: float,
    deadline: float,
    retry: int,
    clock: Callable[[], float],
) -> Iterator[bytes]:
    written = clock()
    while True:
        pause = heartbeat
        try:
            chunk = b"".join(map(encode, subscriber.take(_CHUNK_EVENTS, _CHUNK)))
        except StoreUnavailable:
            chunk, pause = b"", _RETRY_STORE
        except Lagging:
            yield _close("slow", random.uniform(0.1, 1) * retry)
            return
        now = clock()
        if not chunk and now - written >= heartbeat:
            chunk = HEARTBEAT
        if chunk:
            yield chunk
            written = clock()
            if written - now > _STALLED_AFTER:
                yield _close("slow", random.uniform(0.1, 1) * retry)
                return
        if written >= deadline or now >= deadline:
            yield _close("lifetime", random.uniform(0.1, 1) * retry)
            return
        subscriber.wait(max(min(written + heartbeat - clock(), deadline - clock(), pause), 0))


def _block(item: Delivery | Reset, claims: dict[str, Position | None], delta: bool, typed: bool) -> bytes:
    """The bytes of a delivery or a reset; from here on, the ids claim it."""
    if isinstance(item, Reset):
        claims[item.channel] = item.position
        data = {"channel": item.channel, "reason": item.reason, "missed": item.missed}
        return encode_control("sse.reset", data, last_event_id=_id(item.channel, claims, delta))
    claims[item.channel] = item.entry.position
    body = type_in_data(item.entry.body) if typed else item.entry.body
    return encode_id(_id(item.channel, claims, delta)) + body


def _id(channel: str, claims: Mapping[str, Position | None], delta: bool) -> str:
    return format_last_event_id({channel: claims[channel]} if delta else claims, channel)
