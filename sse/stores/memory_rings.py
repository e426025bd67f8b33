"""The rings of the memory store, and the feeds that announce their entries."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

from sse.event import Entry, Event, Position
from sse.ring import Ring
from sse.stores.base import READ_AT_ONCE, UNBORN_TTL, Feed, Notice, nonce

_FEED_LENGTH: Final = 1024  # announcements that wait; of further ones only the channel is noted, and its ring is read
_SWEEP_SECONDS: Final = 30.0
_SWEPT_AT_ONCE: Final = 100


class Sweep:
    """The order in which names are looked at to delete what has expired: a hundred at a time, all every half minute.

    To look at all of them in one call would take long.
    """

    def __init__(self, now: float) -> None:
        self._next = now + _SWEEP_SECONDS
        self._unswept: list[str] = []

    def names(self, now: float, *dicts: dict[str, Any]) -> list[str]:
        """Return the names to look at now, of all that are in these dicts."""
        if now >= self._next:
            self._next = now + _SWEEP_SECONDS
            self._unswept = [name for names in dicts for name in names]
        elif not self._unswept:
            return []
        found = self._unswept[-_SWEPT_AT_ONCE:]
        del self._unswept[-_SWEPT_AT_ONCE:]
        return found


class ExpiringRing(Ring):
    """A ring that is deleted when the store's clock has passed `expires`."""

    __slots__ = ("expires",)

    def __init__(self, base: Position, max_events: int | None) -> None:
        super().__init__(base, max_events)
        self.expires = 0.0


class MemoryRings(dict[str, ExpiringRing]):
    """The rings of all channels, by channel, and the feeds. The caller of each method holds `lock`.

    :param max_events: events that a ring keeps.
    :param ttl: seconds that a ring outlives its last event.
    :param clock: returns seconds of a monotonic clock.
    """

    def __init__(self, max_events: int, ttl: int, clock: Callable[[], float]) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.clock = clock
        self._max_events = max_events
        self._ttl = ttl
        self.feeds: list[MemoryFeed] = []
        self._sweep = Sweep(clock())

    def living(self, channel: str) -> ExpiringRing | None:
        """Return a channel's ring, or None if it has none."""
        ring = self.get(channel)
        if ring is None or ring.expires > self.clock():
            return ring
        del self[channel]
        return None

    def ensure(self, channel: str) -> ExpiringRing:
        """Return a channel's ring. If there is none, begin one."""
        ring = self.living(channel)
        if ring is None:
            ring = self.begin(channel, self._max_events)
            self.prolong(ring)
        return ring

    def begin(self, channel: str, max_events: int | None, anchor: Position | None = None) -> ExpiringRing:
        """Begin a ring in place of the one that is there. The caller sets when it expires.

        :param max_events: events that it keeps; None for no bound.
        :param anchor: the position before its first event; by default a new one.
        """
        ring = self[channel] = ExpiringRing(anchor or next_position(Position(-1, 0), nonce()), max_events)
        return ring

    def append(self, channel: str, ring: Ring, event: Event) -> Entry:
        """Store an event at the end of a ring, and announce it."""
        previous = ring.newest
        entry = Entry(next_position(previous, nonce()), event)
        ring.append(entry)
        self._announce(Notice(channel, previous, entry))
        return entry

    def announce_state(self, channel: str) -> None:
        """Announce that the standing of a channel, or the state of its source, has changed."""
        self._announce(Notice(channel, state_changed=True))

    def prolong(self, ring: ExpiringRing) -> None:
        """Begin the time to live of an ordinary ring anew."""
        lifetime = self._ttl if ring.newest.offset else UNBORN_TTL
        ring.expires = max(self.clock() + lifetime, ring.expires)

    def sweep(self, now: float) -> None:
        """Delete some of the rings that have expired by now."""
        for channel in self._sweep.names(now, self):
            ring = self.get(channel)
            if ring is not None and ring.expires <= now:
                del self[channel]

    def feed(self) -> MemoryFeed:
        """Return a new feed."""
        feed = MemoryFeed()
        self.feeds = [other for other in self.feeds if not other.closed] + [feed]
        return feed

    def close_feeds(self) -> None:
        """Close all feeds."""
        for feed in self.feeds:
            feed.close()

    def _announce(self, notice: Notice) -> None:
        for feed in self.feeds:
            feed.announce(notice)


class MemoryFeed(Feed):
    """The announcements for one hub in this process."""

    def __init__(self) -> None:
        self.closed = False
        self._channels: dict[str, None] = {}  # a set of very many names would take up to five times as much memory
        self._announced: deque[Notice] = deque()
        self._to_look_at: dict[str, None] = {}  # channels whose ring the hub is to read
        self._changed: dict[str, None] = {}  # channels whose standing the hub is to ask for
        self._filled = threading.Event()

    def announce(self, notice: Notice) -> None:
        """Have `read` return a notice, if the feed listens to its channel."""
        channel = notice.channel
        if channel in self._channels:
            if notice.state_changed:
                self._changed[channel] = None
            elif len(self._announced) >= _FEED_LENGTH:
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
        notices = [Notice(channel) for channel in islice(list(self._to_look_at), READ_AT_ONCE // 4)]
        for notice in notices:
            del self._to_look_at[notice.channel]
        changed = list(islice(list(self._changed), READ_AT_ONCE // 4))
        for channel in changed:
            del self._changed[channel]
        room = READ_AT_ONCE - len(notices) - len(changed)
        notices += [self._announced.popleft() for _ in range(min(len(self._announced), room))]
        notices += [Notice(channel, state_changed=True) for channel in changed]
        if self._announced or self._to_look_at or self._changed:
            self._filled.set()
        return notices

    def wake(self) -> None:
        self._filled.set()

    def close(self) -> None:
        self.closed = True
        self._filled.set()


def next_position(previous: Position, nonce: str) -> Position:
    """Return the position after `previous`. Its tag is 52 bits of a hash over `previous` and the publisher's nonce."""
    digest = hashlib.sha1(f"{previous} {nonce}".encode(), usedforsecurity=False).hexdigest()
    return Position(previous.offset + 1, int(digest[:13], 16) + 1)
