"""The store in this process's own memory, for development and for a service of one worker."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from sse.errors import Ended, StoreUnavailable, TooLarge
from sse.event import UNBORN, Entry, Event, Position, ResetReason
from sse.ring import Ring
from sse.stores.base import (
    ONCE_TTL,
    PAGE,
    PAGE_BYTES,
    READ_AT_ONCE,
    UNBORN_TTL,
    Feed,
    Notice,
    Page,
    Publication,
    Receipt,
    Revocation,
    Standing,
    Store,
    conflict,
    nonce,
)
from sse.stores.memory_presence import MemoryPresence

_FEED_LENGTH = 1024  # announcements that wait; of further ones only the channel is noted, and the hub reads its ring
_SWEEP_SECONDS = 30.0
_SWEPT_AT_ONCE = 100


class _ExpiringRing(Ring):
    """A ring that is deleted when the store's clock has passed `expires`."""

    __slots__ = ("expires",)

    def __init__(self, base: Position, max_events: int) -> None:
        super().__init__(base, max_events)
        self.expires = 0.0


class MemoryStore(Store):
    """A store of one process.

    :param ring: events that a ring keeps.
    :param ring_ttl: seconds that a ring outlives its last event.
    :param clock: returns seconds of a monotonic clock.
    """

    def __init__(self, *, ring: int, ring_ttl: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_events = ring
        self._ttl = ring_ttl
        self._clock = clock
        self.presence = MemoryPresence(clock)
        self._lock = threading.Lock()
        self._rings: dict[str, _ExpiringRing] = {}
        self._once: dict[tuple[str, str], tuple[Entry, float]] = {}  # by channel and key: the entry, and its expiry
        self._feeds: list[_MemoryFeed] = []
        self._revoked: list[tuple[Revocation, float]] = []
        self._revocation_count = 0
        self._next_sweep = clock() + _SWEEP_SECONDS
        self._unswept: list[str] = []  # channels that this sweep has yet to look at

    def publish(self, publications: Sequence[Publication]) -> list[Receipt | StoreUnavailable | Ended | TooLarge]:
        with self._lock:
            self._sweep()
            self._check_keys(publications)
            return [self._publish(publication) for publication in publications]

    def standing(self, channels: Sequence[str], *, prolong: bool = False) -> list[Standing | StoreUnavailable]:
        with self._lock:
            rings = [self._ring(channel) for channel in channels]
            if prolong:
                for ring in rings:
                    if ring is not None:
                        self._renew(ring)
            return [Standing(ring.newest if ring is not None else None) for ring in rings]

    def ensure(self, channels: Sequence[str]) -> list[Position | StoreUnavailable]:
        with self._lock:
            self._sweep()
            return [self._ensure(channel).newest for channel in channels]

    def read(
        self, positions: Sequence[tuple[str, Position]], limit: int = PAGE, max_bytes: int = PAGE_BYTES
    ) -> list[Page | StoreUnavailable]:
        pages: list[Page | StoreUnavailable] = []
        with self._lock:
            for channel, position in positions:
                page = self._page(self._ring(channel), position, limit, max_bytes)
                max_bytes -= sum(len(entry.event.data) for entry in page.entries)
                pages.append(page)
        return pages

    def before(self, channels: Sequence[tuple[str, int]]) -> list[Position | StoreUnavailable | None]:
        with self._lock:
            rings = [(self._ring(channel), count) for channel, count in channels]
            return [ring.before(count) if ring is not None else None for ring, count in rings]

    def revoke(self, what: str, ttl: int) -> None:
        with self._lock:
            now = self._clock()
            self._revocation_count += 1
            item = Revocation(f"{self._revocation_count:016}", time.time(), what)
            self._revoked = [(item, end) for item, end in self._revoked if end > now] + [(item, now + ttl)]

    def revoked(self, after: str = "") -> list[Revocation]:
        with self._lock:
            return [item for item, _ in self._revoked if item.id > after]

    def feed(self) -> Feed:
        feed = _MemoryFeed()
        with self._lock:
            self._feeds = [other for other in self._feeds if not other.closed] + [feed]
        return feed

    def close(self) -> None:
        with self._lock:
            for feed in self._feeds:
                feed.close()

    def _check_keys(self, publications: Sequence[Publication]) -> None:
        used: dict[tuple[str, str], Event] = {}
        for channel, event, key in publications:
            if key:
                done = self._stored_with(channel, key)
                if (done.event if done else used.setdefault((channel, key), event)) != event:
                    raise conflict(channel)

    def _publish(self, publication: Publication) -> Receipt:
        channel, event, key = publication
        done = self._stored_with(channel, key) if key else None
        if done:
            return Receipt(done.position, "again")
        ring = self._ensure(channel)
        previous = ring.newest
        entry = Entry(_next_position(previous, nonce()), event)
        ring.append(entry)
        self._renew(ring)
        if key:
            self._once.pop((channel, key), None)  # so that the keys are in the order of their expiry
            self._once[channel, key] = (entry, self._clock() + ONCE_TTL)
        for feed in self._feeds:
            feed.announce(Notice(channel, previous, entry))
        return Receipt(entry.position, "new")

    def _stored_with(self, channel: str, key: str) -> Entry | None:
        """Return the entry that was stored with this key; None if there is none, or none that is remembered."""
        entry, expiry = self._once.get((channel, key), (None, 0.0))
        return entry if expiry > self._clock() else None

    def _ring(self, channel: str) -> _ExpiringRing | None:
        ring = self._rings.get(channel)
        if ring is None or ring.expires > self._clock():
            return ring
        del self._rings[channel]
        return None

    def _ensure(self, channel: str) -> _ExpiringRing:
        ring = self._ring(channel)
        if ring is None:
            ring = self._rings[channel] = _ExpiringRing(_next_position(Position(-1, 0), nonce()), self._max_events)
            self._renew(ring)
        return ring

    def _renew(self, ring: _ExpiringRing) -> None:
        lifetime = self._ttl if ring.newest.offset else UNBORN_TTL
        ring.expires = max(self._clock() + lifetime, ring.expires)

    def _sweep(self) -> None:
        """Delete some of the rings and keys that have expired; to delete all in one call would take long."""
        now = self._clock()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_SECONDS
            self._unswept = list(self._rings)
        for channel in self._unswept[-_SWEPT_AT_ONCE:]:
            ring = self._rings.get(channel)
            if ring is not None and ring.expires <= now:
                del self._rings[channel]
        del self._unswept[-_SWEPT_AT_ONCE:]
        for key in [key for key, (_, expiry) in islice(self._once.items(), _SWEPT_AT_ONCE) if expiry <= now]:
            del self._once[key]

    @staticmethod
    def _page(ring: Ring | None, position: Position, limit: int, max_bytes: int) -> Page:
        if ring is None:
            return Page([], reason="unknown")
        entries = ring.after(position, limit)
        if entries is not None:
            for index, entry in enumerate(entries):
                if max_bytes <= 0:
                    return Page(entries[:index], more=True)
                max_bytes -= len(entry.event.data)
            return Page(entries, more=len(entries) == limit)
        trimmed = position != UNBORN and position.offset < ring.base.offset
        reason: ResetReason = "trimmed" if trimmed else "diverged"
        return Page([], reason=reason, missed=ring.newest.offset - position.offset if trimmed else None)


class _MemoryFeed(Feed):
    def __init__(self) -> None:
        self.closed = False
        self._channels: dict[str, None] = {}  # a set of very many names would take up to five times as much memory
        self._announced: deque[Notice] = deque()
        self._to_look_at: dict[str, None] = {}  # channels whose ring the hub is to read
        self._filled = threading.Event()

    def announce(self, notice: Notice) -> None:
        channel = notice.channel
        if channel in self._channels:
            if len(self._announced) >= _FEED_LENGTH:
                self._to_look_at[channel] = None
            elif channel not in self._to_look_at:  # otherwise the ring is read anyway
                self._announced.append(notice)
            self._filled.set()

    def subscribe(self, channels: Iterable[str]) -> None:
        for channel in channels:
            self._channels[channel] = self._to_look_at[channel] = None
        self._filled.set()

    def unsubscribe(self, channels: Iterable[str]) -> None:
        for channel in channels:
            self._channels.pop(channel, None)

    def read(self, timeout: float) -> list[Notice]:
        self._filled.wait(timeout)
        self._filled.clear()
        notices = [Notice(channel) for channel in islice(list(self._to_look_at), READ_AT_ONCE // 2)]
        for notice in notices:
            del self._to_look_at[notice.channel]
        room = READ_AT_ONCE - len(notices)
        notices += [self._announced.popleft() for _ in range(min(len(self._announced), room))]
        if self._announced or self._to_look_at:
            self._filled.set()
        return notices

    def wake(self) -> None:
        self._filled.set()

    def close(self) -> None:
        self.closed = True
        self._filled.set()


def _next_position(previous: Position, nonce: str) -> Position:
    """Return the position after `previous`. Its tag is 52 bits of a hash over `previous` and the publisher's nonce."""
    digest = hashlib.sha1(f"{previous} {nonce}".encode(), usedforsecurity=False).hexdigest()
    return Position(previous.offset + 1, int(digest[:13], 16) + 1)
