"""The contract that every store keeps. A store holds one ring for each channel; all hubs that use it share the rings.

`Store` and `Feed` state the contract, and `leases.Leases` its part for sources and runs. The docstrings of their
methods add what each method promises. Someone who writes another store implements all of them, and runs
tests/test_stores.py over it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from sse.errors import Ended, StoreUnavailable, TooLarge
from sse.event import EndReason, Entry, Event, Position, ResetReason
from sse.stores.leases import Leases
from sse.stores.presence import PresenceStore

PAGE: Final = 100
"""The most entries that a store returns for one position in one call of `read`, by default."""

PAGE_BYTES: Final = 1 << 17
"""The most bytes of data that a store returns in one call of `read`, by default, beside one entry of any size."""

READ_AT_ONCE: Final = 256
"""The most notices that a feed returns in one call of `read`."""

UNBORN_TTL: Final = 120
"""Seconds that a ring lives if it was ensured and never had an event."""

ONCE_TTL: Final = 300
"""Seconds for which a store remembers an idempotency key."""

RUN_BYTES: Final = 4_194_304
"""Bytes that the ring of a run may hold, by default: see SSE_RUN_BYTES."""

RUN_TTL: Final = 3600
"""Seconds that the ring of a run outlives its end, by default: see SSE_RUN_TTL."""


class Publication(NamedTuple):
    """An event to be stored in a channel's ring. `key` is an idempotency key, already scoped to its publisher."""

    channel: str
    event: Event
    key: str | None = None


class Receipt(NamedTuple):
    """A publication that is stored at `position`: by this call (`new`), or by an earlier one with its key (`again`)."""

    position: Position
    outcome: Literal["new", "again"]


Receipts: TypeAlias = "list[Receipt | StoreUnavailable | Ended | TooLarge]"
"""What became of each publication of one call, in their order."""


class Run(NamedTuple):
    """The marker of a run's channel, which outlives the ring.

    :param anchor: the position before the first entry of the run's ring. Its text begins there.
    :param end: the reason of the end; None as long as the run is live.
    :param ended_at: the position of the ring's last entry, the `End`; None as long as the run is live.
    :param before_end: the position just before it.
    :param is_held: whether somebody holds the lease. A live run without it may be lost.
    """

    anchor: Position
    end: EndReason | None = None
    ended_at: Position | None = None
    before_end: Position | None = None
    is_held: bool = False


class Standing(NamedTuple):
    """The newest position of a channel, None if it has no ring; and the marker of its run, None if it has none.

    If a channel has a marker and no ring, its text is gone: it has ended some time ago, or somebody deleted the ring of
    a live run, which fails at its next write.
    """

    newest: Position | None
    run: Run | None = None


class Page(NamedTuple):
    """The entries that follow a position, in order and without a gap, and whether there are `more` after them.

    With a `reason`, the position cannot be continued, and there are no entries:

    - `trimmed`: the ring has dropped the entries that follow it. `missed` is the number of entries after the position.
    - `unknown`: the channel has no ring.
    - `diverged`: the ring has another history than the one that the position comes from.
    """

    entries: list[Entry]
    more: bool = False
    reason: ResetReason | None = None
    missed: int | None = None


class Notice(NamedTuple):
    """An announcement that `entry` was stored in a channel, after the entry at `previous`.

    A notice without these two asks the hub to read the ring from the store. A feed gives it when it begins to listen to
    the channel, and when it knows that it has lost an announcement. With `state_changed`, the channel's standing or its
    source's state has changed instead: the hub asks for `Store.standing`.
    """

    channel: str
    previous: Position | None = None
    entry: Entry | None = None
    state_changed: bool = False


class Revocation(NamedTuple):
    """An item of the list of revocations, with an `id` of its own.

    `at` is the time of the revocation, in seconds since 1970 by the clock of this process. `what` says what is revoked,
    such as `{"sub":"ann"}`. The store does not read it.
    """

    id: str
    at: float
    what: str


class Feed(ABC):
    """The announcements of new entries, for one hub.

    **Order.** The notices of one channel come in the order in which its entries were stored. Notices of different
    channels come in any order. After the notice that confirms a channel, each entry that is stored there is announced.

    **Loss.** A feed may lose announcements, as when its connection breaks or its reader is slow. A feed that knows of a
    loss says so with a notice that has no entry. A feed need not know: the hub compares `previous` with the newest
    position that it has and reads the store if they differ, and it asks `Store.newest` for all channels every 5 s.

    **Threads.** One thread reads, subscribes and unsubscribes. `wake` and `close` may be called from any thread, at any
    time.

    **Closing.** The hub that asked for a feed closes it, before the store is closed. A store may close feeds that are
    left.
    """

    @abstractmethod
    def subscribe(self, channels: Iterable[str]) -> None:
        """Listen to these channels. A notice without an entry confirms each, now and after every reconnection."""

    @abstractmethod
    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Stop listening to these channels. Their notices that are on the way may still come."""

    @abstractmethod
    def read(self, timeout: float) -> list[Notice]:
        """Return notices that are there, at most READ_AT_ONCE; if there are none, wait for the first one.

        :param timeout: seconds to wait. An empty list is returned after them, or earlier.
        :raises StoreUnavailable: if the connection is lost. The next call tries to connect again.
        """

    @abstractmethod
    def wake(self) -> None:
        """Have the `read` that is under way, or else the next one, return soon."""

    @abstractmethod
    def close(self) -> None:
        """End the feed and wake its reader."""


class Store(ABC):
    """The rings of all channels, the feeds that announce their entries, and the list of revocations.

    **Positions.** An entry's position is `offset-tag`. Offsets count from 1 without a gap. The tag, 1 to 2^52, commits
    to the position before this one and to a random number. So a position of a ring that was rewound or replaced is
    never taken for a position of the ring that took its place. A ring begins with an anchor, a position with the offset
    0 that no event has, so that a client can go on from before the first event.

    **Order.** The entries of a channel have one order, which all hubs see alike. Publications of one call that name the
    same channel are stored in the order of the call. Nothing is promised about entries of different channels.

    **Trimming.** A ring keeps its newest SSE_RING entries, and each publish drops the older ones. The position of every
    entry that is kept can be continued, and so can the position just before the oldest of them, which is the anchor as
    long as nothing was dropped. A ring is deleted SSE_RING_TTL seconds after its last event, or after `newest` last
    prolonged it. For a ring that never had an event these are UNBORN_TTL seconds, from its creation.

    **Runs.** The ring of a run keeps all its entries, within SSE_RUN_BYTES. As long as the run is live, its ring and
    its marker live SSE_RUN_TTL plus SSE_RING_TTL seconds after the last `Leases.renew`. After the end, the ring lives
    SSE_RUN_TTL seconds, and the marker SSE_RING_TTL seconds longer. Subscribers prolong neither.

    **Loss.** A ring may be lost or rewound, as when Redis is emptied or restarts from an older file. The `reason` of a
    page that is read shows that. An event may be stored although `publish` raises StoreUnavailable, because the reply
    was lost. A publisher that repeats it with the same key has it stored once.

    **Faults.** If a method takes several channels, its result has one value for each, in their order. A fault of one
    channel is a StoreUnavailable as that channel's value. A fault of the whole store is raised as StoreUnavailable, by
    every method that asks the store.

    **Time and threads.** A call ends within about the store's timeout, plus a millisecond for each channel; `revoked`
    may take twice as long. All methods may be called from several threads at the same time. Under gevent these are the
    greenlets of the thread that the app was made in, to which the service hands the calls of other threads.

    **Callers.** The hub's thread calls `newest`, `ensure` and `read` for the channels that have subscribers.
    Subscribers and polls call `newest`, `before` and `read` to find their position and to replay. The service calls
    `publish_each`, for the app and for requests. `access.revocations` calls `revoke` and `revoked`.

    **Opening and closing.** Each process makes a store of its own by `connect`, after it was forked. The service that
    made a store closes it, after the hub has closed its feeds. No one uses it after that.
    """

    leases: Leases
    """The leases of sources and runs, and the markers and texts of runs."""
    presence: PresenceStore
    """Who is connected to each channel, over all workers."""

    def publish(self, publications: Sequence[Publication]) -> Receipts:
        """Store each event at the end of its ring, trim the ring, and announce the entry: for each event in one step.

        If an entry cannot be announced, it is stored all the same, and hubs find it when they ask for the newest
        position. A ring is created for a channel that has none. A publication that is repeated with its key within
        ONCE_TTL seconds is stored once. If one of the keys was used for another event, nothing of the call is stored.

        The ring of a run's channel is not trimmed. An event that would take it beyond SSE_RUN_BYTES is refused by a
        TooLarge as its value. If a channel has ended, nothing of the call is stored. An event that is repeated with its
        key is stored already, so it has its receipt even then. A store that cannot look at all channels in one step
        with storing may refuse, by an Ended as the value, the events alone of a channel that ends in that very moment.

        :raises IdempotencyConflict: if a key was used for another event.
        :raises Ended: if a channel has ended; nothing of the call is stored.
        """
        [outcome] = self.publish_each([publications])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @abstractmethod
    def publish_each(self, calls: Sequence[Sequence[Publication]]) -> list[Receipts | Exception]:
        """Carry out several calls of `publish`, in this order and as if each had come alone, in one round trip.

        The result has, for each call, what `publish` would return, or the error that it would raise.
        """

    @abstractmethod
    def standing(self, channels: Sequence[str], *, prolong: bool = False) -> list[Standing | StoreUnavailable]:
        """Return the newest position of each channel, and the marker of its run.

        :param prolong: begin the rings' time to live anew, because they have subscribers. Those of runs stay as they
            are.
        """

    def newest(self, channels: Sequence[str], *, prolong: bool = False) -> list[Position | StoreUnavailable | None]:
        """Return the newest position of each channel, or None if it has no ring.

        :param prolong: as for `standing`.
        """
        return [
            standing.newest if isinstance(standing, Standing) else standing
            for standing in self.standing(channels, prolong=prolong)
        ]

    @abstractmethod
    def ensure(self, channels: Sequence[str]) -> list[Position | StoreUnavailable]:
        """Return the newest position of each channel, after creating a ring where there is none.

        The position of a ring without events is that of its anchor, which is never delivered. For a channel whose run
        has ended and whose ring is gone, no ring is created, and the position is that of its end.
        """

    @abstractmethod
    def read(
        self, positions: Sequence[tuple[str, Position]], limit: int = PAGE, max_bytes: int = PAGE_BYTES
    ) -> list[Page | StoreUnavailable]:
        """Return the page after each (channel, position).

        If any entry follows, at least one is returned. With several positions, a page may be cut short to keep within
        `max_bytes`, even to no entry, and then its `more` is True.

        :param limit: entries of one page. With 0, the pages only tell whether each position can be continued.
        :param max_bytes: bytes of data of all pages together. One entry beyond that may be returned, whatever its size.
        """

    @abstractmethod
    def before(self, channels: Sequence[tuple[str, int]]) -> list[Position | StoreUnavailable | None]:
        """Return, for each (channel, count), the position just before its newest `count` entries; None without a ring.

        If the ring has fewer entries, that is the oldest position that it can continue.
        """

    @abstractmethod
    def revoke(self, what: str, ttl: int) -> None:
        """Add an item to the list of revocations, which keeps it for `ttl` seconds or longer."""

    @abstractmethod
    def revoked(self, after: str = "") -> list[Revocation]:
        """Return the list of revocations, oldest first, some hundreds at a time.

        :param after: the id of an item, to return those that came after it. If the list has no such item, it is another
            list, as after a failover, and it is returned from its beginning.
        """

    @abstractmethod
    def feed(self) -> Feed:
        """Return a new feed. It connects when it is first read."""

    @abstractmethod
    def close(self) -> None:
        """Close the store's connections. A connection that is in use is closed after that use."""


_nonces: list[str] = []
os.register_at_fork(after_in_child=_nonces.clear)  # otherwise two processes would use the same ones


def nonce() -> str:
    """Return 128 random bits in hexadecimal, which are never returned again.

    One call asks the kernel for the bits of 256 events, because a system call for each event would add to its cost.
    """
    while True:
        try:
            return _nonces.pop()  # atomic: no other thread gets the same one
        except IndexError:
            bits = os.urandom(16 * 256).hex()
            _nonces.extend(bits[start : start + 32] for start in range(0, len(bits), 32))
