"""A subscriber as an endless `text/event-stream` body (WHATWG HTML section 9.2)."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import copy
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from sse.access.permit import TAKEN_AFTER, Permit
from sse.errors import StoreUnavailable, TooMany, Unavailable
from sse.event import Entry, Position, format_last_event_id
from sse.hub.hub import ATTACH_TIMEOUT, Charge, Hub
from sse.hub.subscriber import Delivery, Lagging, Reset, Start, Subscriber
from sse.log import warn
from sse.stores import PAGE
from sse.wire import BARE_HEARTBEAT, HEARTBEAT, encode_comment, encode_control, type_in_data, with_id

_CHUNK: Final = 16_384
_CHUNK_EVENTS: Final = 1000
_STALLED_AFTER: Final = 20.0
_RETRY_STORE: Final = 1.0

Reason = Literal["lifetime", "drain", "expired", "slow", "busy"]


class Manner(NamedTuple):
    """How a stream is told, the same for very many."""

    heartbeat: float
    retry: int
    delta: bool
    typed: bool
    bare: bool
    cut: bool

    @property
    def id_last(self) -> bool:
        """True if the id is the last line of its block.

        Some readers that need these forms take an id when they read its line. If the body broke off behind that line,
        in the middle of the data, they would never ask for that event again.
        """
        return self.bare or self.cut


class Segment(NamedTuple):
    """Blocks of one channel that many streams go on with: as a whole, where ids have this channel only, or piece by
    piece around the ids' other entries; where they lead to, and whether there is more at hand.
    """

    whole: bytes
    pieces: Sequence[tuple[bytes, bytes]]
    place: Position
    more: bool


Shared = dict[tuple[str, Position, bool, bool], Segment | None]
"""Segments by channel, place and form, for one round."""

_manner = lru_cache(maxsize=1024)(Manner)


class Cut(BrokenPipeError):
    """Raised by the iterator of a body at its end, to have the body break off.

    A server takes it for a connection that is gone already, and closes it without
    the end of the body and without a word in its log.
    """

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "the body breaks off here")


class Stream:
    """A subscriber as a body: iterate over it; or drive it by `open`, `step` and `written`, as a loop over many does.

    An id never claims more than the blocks up to and including its own have said, so a client that is cut anywhere
    comes back for the rest. The subscriber is attached by `open`, or by `attach` before that, and detached by `close`.
    Driven, one stream can tell many clients at once: see `alike`, `absorb`, `split` and `leave`.

    :param heartbeat: seconds of quiet before a heartbeat.
    :param lifetime: seconds until `sse.close`, give or take 20 %, so that clients do not come back all at once.
    :param retry: milliseconds that a client waits before it reconnects.
    :param delta: whether an event's id has the position of its own channel only.
    :param typed: whether an event's type is told in its data, see `type_in_data`.
    :param bare: whether the service itself speaks in comments, so that every block is an event's. Such a stream cannot
        tell of a reset. If one is due at its opening, it has to be refused; if one is due later, it is `lost`.
    :param cut: whether the body breaks off at its end, for clients that take a clean end for the last one.
    :param told: what else `sse.open` tells.
    :param permit: what it stands on, where not all of its channels are public.
    :param charge: counts the channels that it brings into being, see `Hub.attach`.
    """

    # An idle stream is to be small.
    __slots__ = (
        *("_again", "_attached", "_charge", "_claims", "_clock", "_manner", "_starts", "_tells_retry", "_told"),
        *("_written", "closing", "deadline", "ended", "hub", "lost", "permit", "subscriber"),
    )
    subscriber: Subscriber

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
        bare: bool = False,
        cut: bool = False,
        told: Mapping[str, object] | None = None,
        permit: Permit | None = None,
        charge: Charge | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.closing: Sequence[Callable[[], object]] = ()
        """What else to do at the end."""
        self.ended = False
        """Whether what was given last is the end of the body."""
        self.lost = False
        """True if the body ends with a cut because a position is lost, and a bare stream cannot say so."""
        self.deadline = lifetime * random.uniform(0.8, 1.2)
        """When it ends: in seconds from the opening on, and then by the clock."""
        self.permit = permit
        """What it stands on; None also once that is looked after by others."""
        self.hub = hub
        self._starts: Mapping[str, Start] | None = starts
        self._attached = False
        self._manner = _manner(heartbeat, retry, delta, typed, bare, cut)
        self._tells_retry = bare  # with the first event, since there is no block before it
        self._told = told
        self._charge = charge
        self._clock = clock
        # What the client may say that it has, where that is not what it was given: see _claims.
        self._claims: dict[str, Position | None] | None = None
        self._written = self._again = 0.0

    @property
    def cuts(self) -> bool:
        """True if the body ends without its last chunk, so that clients see a broken connection."""
        return self.lost or self._manner.cut

    @property
    def is_bare(self) -> bool:
        """True for `form=bare`: the service says everything in comments."""
        return self._manner.bare

    @property
    def waits(self) -> bool:
        """Whether the store did not answer, so that there is nothing to say before it is `due`."""
        return self._again > 0

    @property
    def due(self) -> float:
        """When there is something to say, by the clock, if no event comes."""
        due = min(self._written + self._manner.heartbeat, self.deadline)
        if self.permit:
            due = min(due, self._clock() + self.permit.due_in)
        return min(due, self._again) if self._again else due

    @property
    def alike(self) -> Hashable:
        """Equal for streams that may be told by one another; None for one that is not at rest."""
        if self.subscriber.resets or self._claims is not None or self._again or self.ended:
            return None
        return self.hub, self._manner, self._tells_retry, *self.subscriber.places

    def attach(self) -> None:
        """Attach before `open`, to know the subscriber's resets.

        :raises Unavailable: if there is no room for another subscriber, or the store is away.
        """
        assert self._starts is not None, "a stream is opened once"
        self.subscriber = self.hub.attach(self._starts, ATTACH_TIMEOUT, self._charge)
        self._attached = True

    def open(self) -> bytes:
        """Attach, and give the first blocks; or the whole body, if this service is busy."""
        assert self._starts is not None, "a stream is opened once"
        starts, manner = self._starts, self._manner
        try:
            if not self._attached:
                self.attach()
        except Unavailable as error:
            warn("a stream is told that this service is busy: %s", error)
            self.ended, self.lost = True, manner.bare
            return busy(manner.retry, error.retry_after if isinstance(error, TooMany) else 0, bare=manner.bare)
        if manner.bare and self.subscriber.resets:  # it has been closed meanwhile, or it would have been refused
            self.ended = self.lost = True
            return BARE_HEARTBEAT
        self._starts = self._charge = None
        if self.permit:
            self.permit.begin(self.subscriber.notify)
        claims = _claims(self.subscriber, starts)
        if self.subscriber.resets:
            self._claims = claims
        told = {"heartbeat": manner.heartbeat, "lifetime": round(self.deadline), "retry": manner.retry}
        opening = _opening(self.subscriber, starts, claims, {**told, **(self._told or {})}, manner)
        self._told = None
        now = self._clock()
        self.deadline += now
        self.written(now)
        return opening

    def step(self) -> bytes:
        """What is to be written now, at the end of a block; perhaps nothing."""
        self._again = 0.0
        claims: dict[str, Position | None] = {**self.subscriber.places} if self._claims is None else self._claims
        try:
            taken = self.subscriber.take(_CHUNK_EVENTS, _CHUNK)
        except StoreUnavailable:
            self._again = self._clock() + _RETRY_STORE
            return self._or_heartbeat(b"")
        except Lagging:
            return self.end("slow")
        self._claims = None  # it is given all that it takes
        if self._manner.bare:
            for index, item in enumerate(taken):
                if isinstance(item, Reset):
                    # The ids before it have the channel's old entry, so the client is refused when it comes back.
                    self.ended = self.lost = True
                    del taken[index:]
                    break
        return self._or_heartbeat(self._begun(b"".join(_block(item, claims, self._manner) for item in taken)))

    def quick(self, shared: Shared) -> bytes | None:
        """As `step`, but with what the hub has at hand and for many at once; None if that does not do."""
        subscriber, manner = self.subscriber, self._manner
        if subscriber.resets or self._claims is not None or self._again:
            return None
        places = subscriber.places
        parts: list[bytes] = []
        size = 0
        for name in subscriber.order():
            key = (name, places[name], manner.typed, manner.id_last)
            if key in shared:
                segment = shared[key]
            else:
                segment = shared[key] = _segment(subscriber, name, manner)
            if segment is None:
                if not parts:
                    return None
                subscriber.notify()
                break
            if segment.whole:
                parts.append(segment.whole if manner.delta or len(places) == 1 else _around(segment, name, places))
                places[name] = segment.place
                size += len(segment.whole)
                if segment.more or size > _CHUNK:
                    subscriber.notify()
                    break
        if parts:
            subscriber.turn()
        return self._or_heartbeat(self._begun(b"".join(parts) if len(parts) > 1 else parts[0] if parts else b""))

    def end(self, reason: Reason) -> bytes:
        """The last block, after which nothing comes."""
        self.ended = True
        return self.goodbye(reason)

    def goodbye(self, reason: Reason, permit: Permit | None = None) -> bytes:
        """The last block, for one of those that it tells, by its permit if that is not this stream's; others go on."""
        permit = permit or self.permit
        bare = self._manner.bare
        if permit and permit.ended:  # revoked: a new token is not taken before
            return _close(reason, random.uniform(1, 1.5) * 1000 * TAKEN_AFTER, bare)
        return _close(reason, random.uniform(0.1, 1) * self._manner.retry, bare)

    def notice(self, permit: Permit) -> bytes:
        """Return the block that tells of the end of a permit of this stream's clients, or nothing before it is time."""
        return permit.notice(bare=self._manner.bare)

    def absorb(self, other: Stream) -> bool:
        """Tell the client of another stream too from now on, and end that; False if they are not at the same place.

        Both have to be at rest, and alike.
        """
        merged = self.hub.merge(self.subscriber, other.subscriber)
        if merged:
            self._written = min(self._written, other._written)  # for nobody is it quiet too long
        return merged

    def split(self) -> Stream:
        """A stream of its own for one of those that this one tells."""
        one = copy(self)
        one.subscriber = self.hub.split(self.subscriber)
        return one

    def leave(self) -> None:
        """Forget one of those that it tells."""
        self.hub.leave(self.subscriber)

    def written(self, now: float) -> None:
        """Tell that what was given has gone out: from now on it is quiet."""
        self._written = now

    def close(self) -> None:
        """Detach; a second time does nothing."""
        if self._attached:
            self._attached = False
            self.hub.detach(self.subscriber)
        if self.permit:
            self.permit.end()
        closing, self.closing = self.closing, ()
        for done in closing:
            done()

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield self.open()
            while not self.ended:
                chunk = self.step()
                if chunk:
                    began = self._clock()
                    yield chunk
                    now = self._clock()
                    self.written(now)
                    if now - began > _STALLED_AFTER and not self.ended:
                        yield self.end("slow")
                if not self.ended and not self.subscriber.draining:
                    self.subscriber.wait(max(self.due - self._clock(), 0))
            if self.cuts:
                raise Cut
        finally:
            self.close()

    def _or_heartbeat(self, chunk: bytes) -> bytes:
        now = self._clock()
        if self.permit:
            if self.permit.is_over:
                return self.end("expired")  # without the chunk: who knows which was first
            chunk += self.notice(self.permit)
        if self.lost:
            return chunk
        if self.subscriber.draining:
            return chunk + self.end("drain")
        if now >= self.deadline:
            return chunk + self.end("lifetime")
        if not chunk and now - self._written >= self._manner.heartbeat:
            return BARE_HEARTBEAT if self._manner.bare else HEARTBEAT
        return chunk

    def _begun(self, blocks: bytes) -> bytes:
        """Return the same blocks of events, the first of which tells `retry` if none has been told it."""
        if not (blocks and self._tells_retry):
            return blocks
        self._tells_retry = False
        return b"retry: %d\n%b" % (self._manner.retry, blocks)


def _segment(subscriber: Subscriber, name: str, manner: Manner) -> Segment | None:
    entries = subscriber.at_hand(name)
    if entries is None:
        return None
    pieces: list[tuple[bytes, bytes]] = []
    size = 0
    place = subscriber.places[name]
    for entry in entries:
        size += len(entry.body)
        if pieces and size > _CHUNK:
            break
        place = entry.position
        id, body = f"id: {name}={place}".encode(), _body(entry, manner.typed)
        pieces.append((body[:-1] + id, b"\n\n") if manner.id_last else (id, b"\n" + body))
    more = len(pieces) < len(entries) or len(entries) >= PAGE
    return Segment(b"".join(part for piece in pieces for part in piece), pieces, place, more)


def _around(segment: Segment, name: str, places: Mapping[str, Position]) -> bytes:
    """The segment with full ids: the other channels' entries stand after its own."""
    others = "".join(f"~{other}={place}" for other, place in places.items() if other != name).encode()
    return b"".join(head + others + body for head, body in segment.pieces)


def busy(retry: int, after: int = 0, *, bare: bool = False) -> bytes:
    """The whole body for a client that cannot be served now: an error status would end its EventSource for good.

    :param retry: milliseconds, of which it is told once to four times as many.
    :param after: seconds before which it would come in vain.
    """
    return _close("busy", busy_for(retry, after), bare)


def busy_for(retry: int, after: int = 0) -> float:
    """The milliseconds for which a client that cannot be served is to wait, see `busy`."""
    return random.uniform(1, 4) * retry + after * 1000


def _close(reason: Reason, retry: float, bare: bool) -> bytes:
    # In the data too: an EventSource keeps the `retry:` field to itself.
    if bare:
        return encode_comment("close", {"reason": reason, "retry": round(retry)})
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
    manner: Manner,
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
    if manner.bare:
        return encode_comment("open", data) + BARE_HEARTBEAT
    id = format_last_event_id(claims)
    opening = encode_control("sse.open", data, last_event_id=id, retry=manner.retry, id_last=manner.id_last)
    return opening + HEARTBEAT


def _block(item: Delivery | Reset, claims: dict[str, Position | None], manner: Manner) -> bytes:
    """The bytes of a delivery or a reset; from here on, the ids claim it."""
    if isinstance(item, Reset):
        claims[item.channel] = item.position
        id = _id(item.channel, claims, manner.delta)
        return encode_control("sse.reset", item.told, last_event_id=id, id_last=manner.id_last)
    claims[item.channel] = item.entry.position
    return with_id(_id(item.channel, claims, manner.delta), _body(item.entry, manner.typed), last=manner.id_last)


def _id(channel: str, claims: Mapping[str, Position | None], delta: bool) -> str:
    return format_last_event_id({channel: claims[channel]} if delta else claims, channel)


def _body(entry: Entry, typed: bool) -> bytes:
    return type_in_data(entry.body) if typed else entry.body
