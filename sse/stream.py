"""A subscriber as an endless `text/event-stream` body (WHATWG HTML section 9.2)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

Reason = Literal["lifetime", "drain", "slow", "busy"]


class Stream:
    """A subscriber as a body: iterate over it, or drive it by `open`, `step` and `written`, as a loop over many does.

    An id never claims more than the blocks up to and including its own have said, so a client that is cut anywhere
    comes back for the rest. The subscriber is attached by `open`, and detached by `close`.

    :param heartbeat: seconds of quiet before a heartbeat.
    :param lifetime: seconds until `sse.close`, give or take 20 %, so that clients do not come back all at once.
    :param retry: milliseconds that a client waits before it reconnects.
    :param delta: whether an event's id has the position of its own channel only.
    :param typed: whether an event's type is told in its data, see `type_in_data`.
    :param told: what else `sse.open` tells.
    """

    __slots__ = (
        *("closing", "due", "ended", "subscriber", "_claims", "_clock", "_deadline", "_delta", "_heartbeat"),
        *("_hub", "_lifetime", "_pause", "_retry", "_starts", "_told", "_typed", "_written"),
    )

    def __init__(
        self,
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
    ) -> None:
        self.closing: Sequence[Callable[[], object]] = ()
        """What else to do at the end."""
        self.due = 0.0
        """When `step` has something to say by itself, by the clock."""
        self.ended = False
        """Whether what was given last is the end of the body."""
        self.subscriber: Subscriber | None = None
        self._hub = hub
        self._starts = starts
        self._heartbeat = heartbeat
        self._lifetime = lifetime * random.uniform(0.8, 1.2)
        self._retry = retry
        self._delta = delta
        self._typed = typed
        self._told = told
        self._clock = clock
        self._claims: dict[str, Position | None] = {}
        self._deadline = self._written = self._pause = 0.0

    def open(self) -> bytes:
        """Attach, and give the first blocks; or the whole body, if this service is busy."""
        try:
            self.subscriber = self._hub.attach(self._starts, ATTACH_TIMEOUT)
        except Unavailable as error:
            warn("a stream is told that this service is busy: %s", error)
            self.ended = True
            return busy(self._retry)
        starts, told = self._starts, {"heartbeat": self._heartbeat, "lifetime": round(self._lifetime)}
        self._claims = _claims(self.subscriber, starts)
        opening = _opening(
            self.subscriber, starts, self._claims, {**told, "retry": self._retry, **(self._told or {})}, self._retry
        )
        self._starts, self._told = {}, None  # an idle stream is to be small
        self._deadline = self._clock() + self._lifetime
        self.written()
        return opening

    def step(self) -> bytes:
        """What is to be written now, at the end of a block; perhaps nothing."""
        assert self.subscriber is not None
        self._pause = 0.0
        try:
            chunk = b"".join(map(self._block, self.subscriber.take(_CHUNK_EVENTS, _CHUNK)))
        except StoreUnavailable:
            chunk, self._pause = b"", _RETRY_STORE
        except Lagging:
            return self.end("slow")
        now = self._clock()
        if now >= self._deadline:
            return chunk + self.end("lifetime")
        if not chunk and now - self._written >= self._heartbeat:
            chunk = HEARTBEAT
        self._plan(now)
        return chunk

    def end(self, reason: Reason) -> bytes:
        """The last block, after which nothing comes."""
        self.ended = True
        return _close(reason, random.uniform(0.1, 1) * self._retry)

    def written(self) -> None:
        """Tell that what was given has gone out: from now on it is quiet."""
        self._written = self._clock()
        self._plan(self._written)

    def close(self) -> None:
        """Detach; a second time does nothing."""
        if self.subscriber is not None:
            self._hub.detach(self.subscriber)
        closing, self.closing = self.closing, ()
        for done in closing:
            done()

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield self.open()
            while self.subscriber is not None and not self.ended:
                chunk = self.step()
                if chunk:
                    began = self._clock()
                    yield chunk
                    self.written()
                    if self._written - began > _STALLED_AFTER and not self.ended:
                        yield self.end("slow")
                if not self.ended:
                    self.subscriber.wait(max(self.due - self._clock(), 0))
        finally:
            self.close()

    def _plan(self, now: float) -> None:
        self.due = min(self._written + self._heartbeat, self._deadline)
        if self._pause:
            self.due = min(self.due, now + self._pause)

    def _block(self, item: Delivery | Reset) -> bytes:
        """The bytes of a delivery or a reset; from here on, the ids claim it."""
        claims = self._claims
        if isinstance(item, Reset):
            claims[item.channel] = item.position
            data = {"channel": item.channel, "reason": item.reason, "missed": item.missed}
            return encode_control("sse.reset", data, last_event_id=self._id(item.channel))
        claims[item.channel] = item.entry.position
        body = type_in_data(item.entry.body) if self._typed else item.entry.body
        return encode_id(self._id(item.channel)) + body

    def _id(self, channel: str) -> str:
        claims = {channel: self._claims[channel]} if self._delta else self._claims
        return format_last_event_id(claims, channel)


def busy(retry: int) -> bytes:
    """The whole body for a client that cannot be served now: an error status would end its EventSource for good."""
    return _close("busy", random.uniform(1, 4) * retry)


def _close(reason: Reason, retry: float) -> bytes:
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
