"""The contract that every store keeps: one ring a channel, shared by all hubs that use the store."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from sse.errors import IdempotencyConflict, StoreUnavailable
from sse.event import Entry, Event, Position, ResetReason

PAGE: Final = 100
"""How many entries a store gives at one reading."""

PAGE_BYTES: Final = 1 << 17
"""How many bytes of data a store gives at one reading, beside one entry that may be larger."""

READ_AT_ONCE: Final = 256
"""Notices that a feed gives at one reading, at the most."""

UNBORN_TTL: Final = 120
"""Seconds that a ring lives which was founded and never had an event."""

ONCE_TTL: Final = 300
"""Seconds that an idempotency key is remembered."""


class Publication(NamedTuple):
    """An event on its way into a channel's ring. `key` is an idempotency key, already scoped to its publisher."""

    channel: str
    event: Event
    key: str | None = None


class Receipt(NamedTuple):
    """What became of a publication: `new`, stored at `position`; `again`, stored there before with the same key."""

    position: Position
    outcome: Literal["new", "again"]


class Page(NamedTuple):
    """What follows a position: entries in order and without a gap, and whether there are `more`; or why there are none.

    With a `reason`, the position cannot be continued, and `missed` is the number of entries lost for `trimmed`.
    """

    entries: list[Entry]
    more: bool = False
    reason: ResetReason | None = None
    missed: int | None = None


class Notice(NamedTuple):
    """What a feed says of a channel: an `entry` that follows `previous`; or, with neither, to look at the store.

    That is said when the feed begins to listen, and when it has lost an announcement and knows.
    """

    channel: str
    previous: Position | None = None
    entry: Entry | None = None


class Revocation(NamedTuple):
    """An item of the list of what is revoked; `at` is when, in seconds since 1970 by the clock of this process."""

    id: str
    at: float
    what: str


class Feed(ABC):
    """Announcements of new entries, for one hub.

    A feed may lose announcements: a hub tells from `previous` when one is missing, and reads the store. Its methods are
    for one thread, but `wake` and `close` may be called from any.
    """

    @abstractmethod
    def subscribe(self, channels: Iterable[str]) -> None:
        """Listen to these channels; a notice without an entry confirms each, now and after every reconnection."""

    @abstractmethod
    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Listen to these channels no more."""

    @abstractmethod
    def read(self, timeout: float) -> list[Notice]:
        """Return some of the notices at hand, waiting up to `timeout` seconds for the first.

        :raises StoreUnavailable: when the connection is lost; the next call tries to connect again.
        """

    @abstractmethod
    def wake(self) -> None:
        """Have `read`, or the next one, return soon."""

    @abstractmethod
    def close(self) -> None:
        """End the feed and wake its reader."""


class Store(ABC):
    """All rings, and the news of them.

    An entry's position is `offset-tag`: offsets count from 1 without a gap, and the tag commits to the entry before it,
    so that a ring which was rewound or replaced is never taken for the one that a position came from. Where a method
    takes several channels, a fault of one channel is given in its place as a `StoreUnavailable` value; only a fault of
    the whole store is raised.
    """

    @abstractmethod
    def publish(self, publications: Sequence[Publication]) -> list[Receipt | StoreUnavailable]:
        """Store each event at the end of its ring, trim the ring, and announce it: all three or none.

        An unborn ring is founded. A publication that is repeated with its key is stored once. If one key was used for
        another event, nothing of the call is stored.

        :raises IdempotencyConflict: if a key was used for another event.
        """

    @abstractmethod
    def newest(self, channels: Sequence[str], *, prolong: bool = False) -> list[Position | StoreUnavailable | None]:
        """The newest position of each channel, None where it has no ring; `prolong` renews the rings' time to live."""

    @abstractmethod
    def ensure(self, channels: Sequence[str]) -> list[Position | StoreUnavailable]:
        """The newest position of each channel; where there is no ring, that of a new one's anchor, never delivered."""

    @abstractmethod
    def read(
        self, positions: Sequence[tuple[str, Position]], limit: int = PAGE, max_bytes: int = PAGE_BYTES
    ) -> list[Page | StoreUnavailable]:
        """For each (channel, position), the page after it: up to `limit` entries; with 0, only whether it continues.

        All pages together have up to `max_bytes` of data and one entry beyond that, and at least one entry if there is
        any. The pages of several positions may be cut short for that, even to none, and then there are `more`.
        """

    @abstractmethod
    def before(self, channels: Sequence[tuple[str, int]]) -> list[Position | StoreUnavailable | None]:
        """For each (channel, count), the position just before its newest `count` entries; None where it has no ring."""

    @abstractmethod
    def revoke(self, what: str, ttl: int) -> None:
        """Add to the list of what is revoked now, for `prolong` seconds or longer."""

    @abstractmethod
    def revoked(self, after: str = "") -> list[Revocation]:
        """What the list has, oldest first, some hundreds at a time; with the id of one, what came after that.

        All of it where it has none of that id, since it is another list then: as after a failover.
        """

    @abstractmethod
    def feed(self) -> Feed:
        """A new feed. It connects when it is first read."""

    @abstractmethod
    def close(self) -> None:
        """Let go of all connections."""


_nonces: list[str] = []
os.register_at_fork(after_in_child=_nonces.clear)  # else two processes would go on with the same


def nonce() -> str:
    """128 random bits in hexadecimal, never the same twice.

    The kernel is asked for those of 256 events at once: a system call for each is a part of what an event costs.
    """
    while True:
        try:
            return _nonces.pop()  # in one step, whatever other threads do
        except IndexError:
            bits = os.urandom(16 * 256).hex()
            _nonces.extend(bits[start : start + 32] for start in range(0, len(bits), 32))


def conflict(channel: str) -> IdempotencyConflict:
    """The error for a key that was used on this channel for another event."""
    return IdempotencyConflict(
        f"the idempotency key was used for another event on channel {channel}", "use a new key for a new event"
    )
