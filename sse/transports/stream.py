"""A subscriber as an endless `text/event-stream` body (WHATWG HTML section 9.2)."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import copy
from math import inf
from typing import ClassVar, Final, NamedTuple

from sse.access.permit import Permit
from sse.access.revocations import TAKEN_AFTER
from sse.errors import StoreUnavailable, TooMany, Unavailable
from sse.event import Position
from sse.hub.hub import ATTACH_TIMEOUT, Charge, Hub
from sse.hub.subscriber import Lagging, Reset, Start, Subscriber
from sse.log import warn
from sse.stores import PAGE
from sse.transports.dialect import NOTHING, Dialect, Segment, Shared, busy, claims_of, dialect_of
from sse.transports.life import CloseReason, Handed, Next, decide

_CHUNK: Final = 16_384
_CHUNK_EVENTS: Final = 1000
_RETRY_STORE: Final = 1.0


class Cut(BrokenPipeError):
    """Raised by the iterator of a body at its end, to have the body break off.

    A server takes it for a connection that is gone already, and closes it without
    the end of the body and without a word in its log.
    """

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "the body breaks off here")


class _Opening(NamedTuple):
    """The part of a stream that only its opening needs."""

    starts: Mapping[str, Start]
    told: Mapping[str, object]
    charge: Charge | None


class Stream:
    """A subscriber as a body: iterate over it; or drive it by `open`, `step` and `written`, as a loop over many does.

    An id never claims more than the blocks up to and including its own have said, so a client that is cut anywhere
    comes back for the rest. The subscriber is attached by `open`, or by `attach` before that, and detached by `close`.
    Driven, one stream can tell many clients at once: see `alike`, `merge`, `split` and `leave`.

    :param heartbeat: seconds of quiet before a heartbeat.
    :param lifetime: seconds until `sse.close`, give or take 20 %, so that clients do not come back all at once.
    :param retry: milliseconds that a client waits before it reconnects.
    :param delta: whether an event's id has the position of its own channel only.
    :param typed: whether an event's type is told in its data, see `type_in_data`.
    :param bare: whether the service itself speaks in comments, so that every block is an event's. Such a stream cannot
        tell of a reset. If one is due at its opening, it has to be refused; if one is due later, it is `lost`.
    :param cut: whether the body breaks off at its end, for clients that take a clean end for the last one.
    :param told: what else `sse.open` tells.
    :param permit: the right to read; None if all of its channels are public.
    :param charge: counts the channels that it brings into being, see `Hub.attach`.
    """

    # An idle stream is to be small.
    __slots__ = (
        *("_again", "_attached", "_claims", "_clock", "_opening", "_tells_retry"),
        *("_written", "closing", "deadline", "dialect", "hub", "lost", "permit", "reason", "subscriber"),
    )
    is_stream: ClassVar[bool] = True
    """Tells a stream from a poll."""
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
        """Called at the end."""
        self.reason: CloseReason | None = None
        """The reason that the last block told, after which nothing comes. If it is `lost`, no block tells one."""
        self.lost = False
        """True if the body ends with a cut because a position is lost, and a bare stream cannot say so."""
        self.deadline = lifetime * random.uniform(0.8, 1.2)
        """When it ends: in seconds from the opening on, and then by the clock. Infinity once it is handed off."""
        self.permit = permit
        """The right that it stands on; None where all is public, and once it is handed off."""
        self.hub = hub
        self._opening: _Opening | None = _Opening(starts, told or {}, charge)
        self._attached = False
        self.dialect = dialect_of(heartbeat, retry, delta=delta, typed=typed, bare=bare, cut=cut)
        self._tells_retry = bare  # with the first event, since there is no block before it
        self._clock = clock
        # The positions that ids tell while the client has not heard of a reset, see `claims_of`.
        self._claims: dict[str, Position | None] | None = None
        self._written = self._again = 0.0

    @property
    def ended(self) -> bool:
        """True if the bytes that it gave last are the end of the body."""
        return self.reason is not None or self.lost

    @property
    def cuts(self) -> bool:
        """True if the body ends without its last chunk, so that clients see a broken connection."""
        return self.lost or self.dialect.cut

    @property
    def is_bare(self) -> bool:
        """True for `form=bare`: the service says everything in comments."""
        return self.dialect.bare

    @property
    def waits(self) -> bool:
        """True if the store did not answer, so that the stream has nothing to say before it is `due`."""
        return self._again > 0

    @property
    def due(self) -> float:
        """When there is something to say, by the clock, if no event comes."""
        due = min(self._written + self.dialect.heartbeat, self.deadline)
        if self._again:
            due = min(due, self._again)
        if self.permit:
            due = min(due, self._clock() + self.permit.due_in)
        return due

    @property
    def alike(self) -> Hashable:
        """A key that is equal for streams that one row may serve together; None for a stream that is not at rest."""
        if self.subscriber.resets or self._claims is not None or self._again or self.ended:
            return None
        return self.dialect, self._tells_retry, self.subscriber.channels  # a channel is of one hub

    def attach(self) -> None:
        """Attach before `open`, to know the subscriber's resets.

        :raises Unavailable: if there is no room for another subscriber, or the store is away.
        """
        assert self._opening is not None, "a stream is opened once"
        self.subscriber = self.hub.attach(self._opening.starts, ATTACH_TIMEOUT, self._opening.charge)
        self._attached = True

    def open(self) -> bytes:
        """Attach, and give the first blocks; or the whole body, if this service is busy."""
        assert self._opening is not None, "a stream is opened once"
        starts, told, _ = self._opening
        dialect = self.dialect
        try:
            if not self._attached:
                self.attach()
        except Unavailable as error:
            warn("a stream is told that this service is busy: %s", error)
            self.reason, self.lost = "busy", dialect.bare
            return busy(dialect.retry, error.retry_after if isinstance(error, TooMany) else 0, bare=dialect.bare)
        if dialect.bare and self.subscriber.resets:  # it has been closed meanwhile, or it would have been refused
            self.lost = True
            return dialect.beat
        self._opening = None
        if self.permit:
            self.permit.begin(self.subscriber.notify)
        resets = self.subscriber.resets
        claims = claims_of(self.subscriber.positions_by_name, resets, starts)
        if resets:
            self._claims = claims
        opening = dialect.opening(starts, resets, claims, round(self.deadline), told)
        now = self._clock()
        self.deadline += now
        self.written(now)
        return opening

    def step(self) -> bytes:
        """Return the bytes to be written now, a whole number of blocks; perhaps none."""
        self._again = 0.0
        subscriber, claims = self.subscriber, self._claims
        if claims is None:
            claims, positions = {}, subscriber.positions
            for index, channel in enumerate(subscriber.channels):  # as `positions_by_name`, for less
                claims[channel.name] = positions[index]
        try:
            taken = subscriber.take(_CHUNK_EVENTS, _CHUNK)
        except StoreUnavailable:
            self._again = self._clock() + _RETRY_STORE
            return self._or_heartbeat(b"")
        except Lagging:
            return self.end("slow")
        self._claims = None  # it is given all that it takes
        if self.dialect.bare:
            for index, item in enumerate(taken):
                if isinstance(item, Reset):
                    # The ids before it have the channel's old entry, so the client is refused when it comes back.
                    self.lost = True
                    del taken[index:]
                    break
        return self._or_heartbeat(self._begun(self.dialect.blocks(taken, claims)))

    def quick(self, shared: Shared) -> bytes | None:
        """As `step`, but with what the hub has at hand and for many at once; None if that does not do."""
        subscriber, dialect = self.subscriber, self.dialect
        if subscriber.resets or self._claims is not None or self._again:
            return None
        channels, positions = subscriber.channels, subscriber.positions
        parts: list[bytes] = []
        size = 0
        for index in subscriber.order():
            key = (channels[index].name, positions[index], dialect.typed, dialect.id_last)
            if key in shared:
                segment = shared[key]
            else:
                segment = shared[key] = _segment(subscriber, index, dialect)
            if segment is None:
                if not parts:
                    return None
                subscriber.notify()
                break
            if segment.whole:
                parts.append(
                    dialect.within(segment, key[0], subscriber.positions_by_name)
                    if len(channels) > 1
                    else segment.whole
                )
                positions[index] = segment.position
                size += len(segment.whole)
                if segment.more or size > _CHUNK:
                    subscriber.notify()
                    break
        if parts:
            subscriber.turn()
        return self._or_heartbeat(self._begun(b"".join(parts)))

    def end(self, reason: CloseReason) -> bytes:
        """Return the last block, after which nothing comes."""
        self.reason = reason
        return self.goodbye(reason)

    def goodbye(self, reason: CloseReason, permit: Permit | None = None) -> bytes:
        """Return the last block for one of its clients, whose permit this is; its other clients go on."""
        permit = permit or self.permit
        is_revoked = permit is not None and permit.revoked  # then a new token is not taken before
        return self.dialect.close(reason, TAKEN_AFTER if is_revoked else None)

    def notice(self, permit: Permit) -> bytes:
        """Return the block that tells of the end of a permit of this stream's clients, or nothing before it is time."""
        return self.dialect.notice(permit.notice())

    def merge(self, other: Stream) -> bool:
        """Tell the client of another stream too from now on, and end that; False if they are not at the same place.

        Both have to be at rest, and alike.
        """
        merged = self.hub.merge(self.subscriber, other.subscriber)
        if merged:
            self._written = min(self._written, other._written)  # for nobody is it quiet too long
        return merged

    def split(self) -> Stream:
        """Return a stream of its own for one of the connections that this stream serves."""
        one = copy(self)
        one.subscriber = self.hub.split(self.subscriber)
        return one

    def release(self) -> None:
        """Forget one of its clients; others are left."""
        self.hub.release(self.subscriber)

    def detach(self) -> None:
        """Forget its last client; a second time does nothing."""
        if self._attached:
            self._attached = False
            self.hub.detach(self.subscriber)

    def hand_off(self) -> Handed:
        """Give up all that concerns its client alone: from now on, a row decides when that connection ends."""
        handed = Handed(self.deadline, self.permit, self.closing)
        self.deadline, self.permit, self.closing = inf, None, ()
        return handed

    def written(self, now: float) -> None:
        """Tell that what was given has gone out: from now on it is quiet."""
        self._written = now

    def close(self) -> None:
        """Detach, and end its permit; a second time does nothing."""
        self.detach()
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
                    if not self.ended and decide(now, inf, last_progress=began).ends:
                        yield self.end("slow")
                if not self.ended:
                    self.subscriber.wait(max(self.due - self._clock(), 0))
            if self.cuts:
                raise Cut
        finally:
            self.close()

    def _or_heartbeat(self, chunk: bytes) -> bytes:
        """Return the chunk, with all that the moment adds to it: a notice, a goodbye, or a heartbeat in its place."""
        now, permit = self._clock(), self.permit
        if now >= self.deadline or self.subscriber.draining or (permit and permit.is_due):  # else it goes on
            chunk = self._or_end(chunk, self._next(now))
        if not chunk and not self.ended and now - self._written >= self.dialect.heartbeat:
            return self.dialect.beat
        return chunk

    def _or_end(self, chunk: bytes, outcome: Next) -> bytes:
        if outcome.reason == "expired":
            return self.end("expired")  # without the chunk: nobody knows which of them came first
        if outcome.tells and self.permit:
            chunk += self.notice(self.permit)
        if outcome.reason and not self.lost:
            chunk += self.end(outcome.reason)
        return chunk

    def _next(self, now: float) -> Next:
        permit, draining = self.permit, self.subscriber.draining
        if permit is None:
            return decide(now, self.deadline, draining=draining)
        return decide(now, self.deadline, ends_in=permit.ends_in, notice_in=permit.notice_in, draining=draining)

    def _begun(self, blocks: bytes) -> bytes:
        """Return the same blocks of events, the first of which tells `retry` if none has been told it."""
        if not (blocks and self._tells_retry):
            return blocks
        self._tells_retry = False
        return self.dialect.begun(blocks)


def _segment(subscriber: Subscriber, index: int, dialect: Dialect) -> Segment | None:
    """Return the blocks of what the hub has at hand for a channel; None if it does not reach back far enough."""
    entries = subscriber.at_hand(index)
    if entries:
        return dialect.segment(subscriber.channels[index].name, entries, _CHUNK, more=len(entries) >= PAGE)
    return NOTHING if entries is not None else None
