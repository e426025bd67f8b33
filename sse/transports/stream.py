"""A subscriber as an endless `text/event-stream` body (WHATWG HTML section 9.2).

`Stream` takes events from its subscriber, writes them in its `dialect`, and ends when `life` says so.
"""

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
from sse.connection_log import ended, opened
from sse.errors import StoreUnavailable, TooMany, Unavailable
from sse.event import End, EndReason, Position
from sse.hub.hub import ATTACH_TIMEOUT, Charge, Hub
from sse.hub.subscriber import Delivery, Item, Lagging, Reset, Start, Subscriber
from sse.log import warn
from sse.stores import PAGE
from sse.transports.body import Body
from sse.transports.channel_facts import ended_at, ends_among, of_opening
from sse.transports.dialect import NOTHING, Dialect, Segment, Shared, busy, claims_of, dialect_of
from sse.transports.life import CloseReason, Next, decide

_CHUNK: Final = 16_384  # bytes of events after which a chunk ends
_CHUNK_EVENTS: Final = 1000  # events in one chunk
_RETRY_STORE: Final = 1.0  # seconds until a store that did not answer is asked again


class Cut(BrokenPipeError):
    """Raised by the iterator of a body at its end, so that the body breaks off.

    A server takes the connection for broken. It closes it without
    the end of the body, and logs nothing.
    """

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "the body breaks off here")


class _Opening(NamedTuple):
    """The part of a stream that only its opening needs."""

    starts: Mapping[str, Start]
    told: Mapping[str, object]
    charge: Charge | None


class Stream(Body):
    """A subscriber as a body: iterate over it, or drive it by `open`, `next_bytes` and `mark_written` as `rows` does.

    An id claims only the blocks up to and including its own, so a client that is cut anywhere
    reconnects for the rest. The subscriber is attached by `open`, or by `attach` before that, and detached by `close`.
    In a row, one stream can serve many clients at once: see `merge_key`, `merge`, `split` and `release`.

    :param heartbeat: seconds of quiet before a heartbeat.
    :param lifetime: seconds until `sse.close`, give or take 20 %, so that clients do not come back all at once.
    :param retry: milliseconds that a client waits before it reconnects.
    :param delta: True if an event's id has the position of its own channel only.
    :param typed: True if an event's type is written in its data, see `type_in_data`.
    :param bare: True if the service writes its own messages as comments, so that every block is an event's. Such a
        stream cannot send a reset. A request that needs one at its opening has to be refused, and a stream that needs
        one later is `lost`.
    :param cut: True if the body breaks off at its end, for clients that do not reconnect after a clean end.
    :param told: further members of the data of `sse.open`.
    :param permit: the right to read; None if all of its channels are public.
    :param charge: counts the channels that it creates, see `Hub.attach`.
    """

    # A stream without events has to be small, because there are very many.
    __slots__ = (
        *("_retry_store_at", "_claims", "_clock", "_opening", "_tells_retry"),
        *("_taken", "_written", "dialect", "events", "finished", "lost", "reason", "size"),
    )
    is_stream: ClassVar[bool] = True
    """True for a stream, False for a poll."""

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
        self.closing = ()
        self.reason: CloseReason | None = None
        """The close reason of the last block, after which nothing comes. A stream that is `lost` has no such block."""
        self.lost = False
        """True if the body ends with a cut, because a bare stream has lost a position and cannot say so."""
        self.finished = False
        """True if all of its channels have ended. Its last block is the end of the last one, see `farewell`."""
        self.deadline = lifetime * random.uniform(0.8, 1.2)
        """Before the opening, the lifetime in seconds; then the end by the clock. Infinity once it is handed off."""
        self.permit = permit
        self.request_id = ""
        self.events = 0
        """The number of events that have been written, for each of its clients since it came."""
        self.size = 0
        """The number of bytes that have been written in the same way."""
        self._taken = 0  # events of the bytes that were returned last, until they are written
        self.hub = hub
        self._opening: _Opening | None = _Opening(starts, told or {}, charge)
        self._attached = False
        self.dialect = dialect_of(heartbeat, retry, delta=delta, typed=typed, bare=bare, cut=cut)
        self._tells_retry = bare  # with the first event, because a bare stream has no block before it
        self._clock = clock
        # The positions in the ids until the client has got its resets, see `claims_of`.
        self._claims: dict[str, Position | None] | None = None
        self._written = self._retry_store_at = 0.0

    @property
    def ended(self) -> bool:
        """True if the bytes that it returned last are the end of the body."""
        return self.reason is not None or self.lost or self.finished

    @property
    def end_reason(self) -> str:
        """The word of the log for the reason of its end: `left` if its client has ended it."""
        return self.reason or ("reset" if self.lost else "ended" if self.finished else "left")

    @property
    def cuts(self) -> bool:
        """True if the body ends without its last chunk, so that clients see a broken connection and come back."""
        return self.lost or (self.dialect.cut and not self.finished)

    @property
    def is_bare(self) -> bool:
        """True for `form=bare`: the service writes its own messages as comments."""
        return self.dialect.bare

    @property
    def awaits_store(self) -> bool:
        """True if the store did not answer. It is asked again when the stream is `due`, or when an event comes."""
        return self._retry_store_at > 0

    @property
    def due(self) -> float:
        """The time, by the clock, when there is something to send even if no event comes."""
        due = min(self._written + self.dialect.heartbeat, self.deadline)
        if self._retry_store_at:
            due = min(due, self._retry_store_at)
        if self.permit:
            due = min(due, self._clock() + self.permit.due_in)
        return due

    @property
    def merge_key(self) -> Hashable:
        """A key that is equal for streams that may merge.

        It is None for a stream that has a reset to send, waits for the store, or has ended.
        """
        subscriber = self.subscriber
        if subscriber.resets or self._claims is not None or self._retry_store_at or self.ended:
            return None
        return self.dialect, self._tells_retry, subscriber.channels, subscriber.told  # a channel belongs to one hub

    @property
    def may_change_key(self) -> bool:
        """True if what it sends may change its `merge_key`: a first `retry`, or the state of a source."""
        return self.dialect.bare or self.subscriber.told is not None

    @property
    def ends(self) -> Mapping[str, EndReason]:
        """The reason of each channel's end, if all channels have ended and nothing follows; else empty.

        In a bare stream an end has no id. So there, an end that follows counts as nothing.
        """
        subscriber = self.subscriber
        reasons = ended_at(subscriber.channels, subscriber.positions, is_bare=self.is_bare)
        return reasons if len(reasons) == len(subscriber.channels) and not subscriber.resets else {}

    def attach(self) -> None:
        """Attach before `open`, so that the subscriber's resets are known.

        :raises Unavailable: if there is no room for another subscriber, or the store does not answer.
        """
        assert self._opening is not None, "a stream is opened once"
        self.subscriber = self.hub.attach(self._opening.starts, ATTACH_TIMEOUT, self._opening.charge)
        self._attached = True

    def open(self) -> bytes:
        """Attach, and return the first blocks. If this service is busy, return the whole body."""
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
        if dialect.bare and self.subscriber.resets:  # they came after the request was checked
            self.lost = True
            return dialect.beat
        self._opening = None
        if self.permit:
            self.permit.begin(self.subscriber.notify)
        resets = self.subscriber.resets
        claims = claims_of(self.subscriber.positions_by_name, resets, starts)
        if resets:
            self._claims = claims
        members = of_opening(self.subscriber)
        opening = dialect.opening(starts, resets, claims, round(self.deadline), told, members)
        self.finished = bool(members) and self.subscriber.has_ended
        now = self._clock()
        self.deadline += now
        self.mark_written(now)
        self.begin_write(len(opening))
        opened("stream", self.request_id)
        return opening

    def begin(self) -> bytes:
        """Return the first blocks as `open` does, and with them the events that the hub has for a client that is back.

        So they go out in one write.
        """
        assert self._opening is not None, "a stream is opened once"
        is_back = any(start.position for start in self._opening.starts.values())
        opening = self.open()
        if not is_back or self.ended or not self.subscriber.is_behind():
            return opening
        chunk = self.next_bytes_at_hand({})
        if not chunk:
            return opening
        self.begin_write(len(chunk))
        return opening + (self.farewell(chunk) if self.ended else chunk)

    def next_bytes(self) -> bytes:
        """Return the bytes to be written now: whole blocks, or none. It may wait for the store."""
        self._retry_store_at = 0.0
        subscriber, claims = self.subscriber, self._claims
        if claims is None:
            claims, positions = {}, subscriber.positions
            for index, channel in enumerate(subscriber.channels):  # as `positions_by_name`, but cheaper
                claims[channel.name] = positions[index]
        try:
            taken = subscriber.take(_CHUNK_EVENTS, _CHUNK)
        except StoreUnavailable:
            self._retry_store_at = self._clock() + _RETRY_STORE
            return self._or_heartbeat(b"")
        except Lagging:
            return self.end("slow")
        self._claims = None  # the blocks below have all of its resets
        if self.dialect.bare:
            for index, item in enumerate(taken):
                if isinstance(item, Reset):
                    # The ids before it have the channel's old position, so the client is refused when it reconnects.
                    self.lost = True
                    del taken[index:]
                    break
        if self._is_last_end(taken):
            end = taken.pop()
            if not taken:
                return self._finish(self.dialect.blocks([end], claims))
            blocks = self.dialect.blocks(taken, claims)
            self._hold_back(end.channel, claims[end.channel])
        elif not taken and subscriber.has_ended:
            return self._finish(self.dialect.beat)
        else:
            blocks = self.dialect.blocks(taken, claims)
        self._taken = sum(isinstance(item, Delivery) and type(item.entry.event) is not End for item in taken)
        return self._or_heartbeat(self._with_first_retry(blocks))

    def next_bytes_at_hand(self, shared: Shared) -> bytes | None:
        """Return the same as `next_bytes`, but only from entries that the hub has in memory. It never waits.

        It returns None if the hub does not have all entries; then `next_bytes` is needed.

        :param shared: the segments of this round, which other streams use too.
        """
        subscriber, dialect = self.subscriber, self.dialect
        if subscriber.resets or self._claims is not None or self._retry_store_at or subscriber.has_source_change:
            return None
        channels, positions = subscriber.channels, subscriber.positions
        parts: list[bytes] = []
        size = events = 0
        for index in subscriber.order():
            position = positions[index]
            key = (channels[index].name, position, dialect.kind)
            if key in shared:
                segment = shared[key]
            else:
                segment = shared[key] = _segment(subscriber, index, dialect)
            if segment is None:
                if not parts:
                    return None
                subscriber.notify()
                break
            if whole := segment.whole:
                blocks = (
                    dialect.segment_blocks(segment, key[0], subscriber.positions_by_name)
                    if len(channels) > 1
                    else whole
                )
                positions[index] = segment.position
                if segment.is_end and subscriber.has_ended:
                    if not parts:
                        return self._finish(blocks)
                    positions[index] = position
                    subscriber.notify()
                    break
                parts.append(blocks)
                size += len(whole)
                events += segment.events
                if segment.more or size > _CHUNK:
                    subscriber.notify()
                    break
        if not parts and subscriber.has_ended:
            return self._finish(dialect.beat)
        if parts and len(channels) > 1:
            subscriber.turn()
        self._taken = events
        return self._or_heartbeat(self._with_first_retry(b"".join(parts)))

    def end(self, reason: CloseReason) -> bytes:
        """Return the last block, after which nothing comes."""
        self.reason = reason
        return self.goodbye(reason)

    def farewell(self, last: bytes) -> bytes:
        """Return the last bytes for one of its clients, which `next_bytes` or `next_bytes_at_hand` has returned.

        If the stream is finished, they are an `sse.end`, and each client is to come back after a random time of its
        own. Then its request is answered with 204.
        """
        return self.dialect.farewell(last) if self.finished and last else last

    def goodbye(self, reason: CloseReason, permit: Permit | None = None) -> bytes:
        """Return the last block for one of its clients; the others go on.

        :param permit: that client's permit; None for the stream's own.
        """
        permit = permit or self.permit
        is_revoked = permit is not None and permit.revoked  # then no new token is accepted for so long
        return self.dialect.close(reason, TAKEN_AFTER if is_revoked else None)

    def notice(self, permit: Permit) -> bytes:
        """Return the notice of the end of one client's permit; empty if it is not due yet."""
        return self.dialect.notice(permit.notice())

    def merge(self, other: Stream) -> bool:
        """Serve the client of another stream too from now on, and end that stream. Return whether this was done.

        It is not done if their positions differ. Both need the same `merge_key`, and neither may have unsent bytes.
        """
        merged = self.hub.merge(self.subscriber, other.subscriber)
        if merged:
            self._written = min(self._written, other._written)  # so that the heartbeat is late for neither
        return merged

    def split(self) -> Stream:
        """Return a stream of its own for one of the connections that this stream serves."""
        stream = copy(self)
        stream.subscriber = self.hub.split(self.subscriber)
        return stream

    def begin_write(self, size: int) -> None:
        """Count the bytes that were returned last, and their events, because they are being written."""
        self.size += size
        self.events += self._taken
        self._taken = 0

    def mark_written(self, now: float) -> None:
        """Note that all bytes have gone out by now. The time until the next heartbeat begins."""
        self._written = now

    def __iter__(self) -> Iterator[bytes]:
        opened_at = self._clock()
        try:
            yield self.open()
            while not self.ended:
                chunk = self.next_bytes()
                if chunk:
                    began = self._clock()
                    self.begin_write(len(chunk))
                    yield self.farewell(chunk) if self.ended else chunk
                    now = self._clock()
                    self.mark_written(now)
                    if not self.ended and decide(now, inf, last_progress=began).is_end:
                        yield self.end("slow")
                if not self.ended:
                    self.subscriber.wait(max(self.due - self._clock(), 0))
            if self.cuts:
                raise Cut
        finally:
            self.log_end(opened_at)
            self.close()

    def log_end(self, opened_at: float | None = None) -> None:
        """Log the end of a stream that was not handed off.

        :param opened_at: by the clock; None for now.
        """
        if self.reason == "busy":
            return  # it was refused, of which there is a warning
        seconds = 0.0 if opened_at is None else self._clock() - opened_at
        ended("stream", self.end_reason, seconds, self.events, self.size, self.request_id)

    def _or_heartbeat(self, chunk: bytes) -> bytes:
        """Return the chunk, with a notice or a goodbye that is due now. An empty chunk may become a heartbeat."""
        now, permit = self._clock(), self.permit
        if now >= self.deadline or self.subscriber.draining or (permit and permit.is_due):  # else neither is due
            chunk = self._or_end(chunk, self._next(now))
        if not chunk and not self.ended and now - self._written >= self.dialect.heartbeat:
            return self.dialect.beat
        return chunk

    def _is_last_end(self, taken: Sequence[Item]) -> bool:
        """Return True if the last item is the end of a channel, and all other channels have ended, too."""
        last = taken[-1] if taken and not self.lost else None
        if not (isinstance(last, Delivery) and isinstance(last.entry.event, End)):
            return False
        return len(ends_among(taken) | self.subscriber.ended) == len(self.subscriber.channels)

    def _hold_back(self, name: str, position: Position | None) -> None:
        """Have the entry after a position in a channel taken again by the next call."""
        subscriber = self.subscriber
        index = [channel.name for channel in subscriber.channels].index(name)
        assert position is not None, "only a channel with a reset has none, and the reset was taken"
        subscriber.positions[index] = position
        subscriber.notify()

    def _finish(self, end: bytes) -> bytes:
        """Return the end of the last channel, unless it may have come after the end of the permit.

        Everything before it is out, and no other id claims it. So a client that is cut before it has the whole block
        comes back to it.

        :param end: a heartbeat in place of the block, if all ends have been sent before the hub knew of them.
        """
        if self._next(self._clock()).reason == "expired":
            return self.end("expired")
        self.finished = True
        return end

    def _or_end(self, chunk: bytes, outcome: Next) -> bytes:
        if outcome.reason == "expired":
            return self.end("expired")  # without the chunk, whose events may have come after the end of the permit
        if outcome.tells_notice and self.permit:
            chunk += self.notice(self.permit)
        if outcome.reason and not self.lost:
            chunk += self.end(outcome.reason)
        return chunk

    def _next(self, now: float) -> Next:
        permit, draining = self.permit, self.subscriber.draining
        if permit is None:
            return decide(now, self.deadline, draining=draining)
        return decide(now, self.deadline, ends_in=permit.ends_in, notice_in=permit.notice_in, draining=draining)

    def _with_first_retry(self, blocks: bytes) -> bytes:
        """Return the same blocks of events, with `retry` in the first one if the client has not got it yet."""
        if not (self._tells_retry and b"\n\n" in blocks):  # else there are comments alone
            return blocks
        self._tells_retry = False
        return self.dialect.first_blocks(blocks)


def _segment(subscriber: Subscriber, index: int, dialect: Dialect) -> Segment | None:
    """Return the blocks of a channel's entries in the hub; None if the hub's ring does not reach back far enough."""
    channel, entries = subscriber.channels[index], subscriber.at_hand(index, _CHUNK)
    if entries:
        more = len(entries) >= PAGE or (channel.traits.run is not None and not subscriber.is_newest(index, entries[-1]))
        return dialect.segment(channel.name, entries, _CHUNK, more=more)
    return NOTHING if entries is not None else None
