"""A channel in this process: its ring, its subscribers and its state; and the register of all of them.

A channel enters the register with its first subscriber, and goes through these states:

    state     it is so when              what comes next
    new       `listened` is False        the feed is asked for it; with its last subscriber it is dropped at once
    listened  `listened` is True         the feed confirms that, and the store is asked for the newest position
    unborn    `unborn` is True           the store had no ring: subscribers are woken, and one of them may want a ring
    wanted    `wanted` is True           if there is no ring, it is ensured
    begun     `ring` is not None         entries are appended; after a reset, another ring takes the place of this one
    idle      `idle_since` is not None   dropped after a while, unless a subscriber comes
    refused   `fault` is not None        dropped; each of its subscribers raises the fault

All methods here run under the hub's lock. They never take it, and never wait. Methods that change a ring return by how
many bytes the ring has grown, for `Channels.account`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from sse.errors import SSEError
from sse.event import Entry, Position, ResetReason
from sse.ring import Ring
from sse.small_set import SmallSet, added, removed
from sse.wire import encode_body

CHANNEL_BYTES: Final = 1 << 20
"""Bytes that the ring of one channel holds in this process, at the most."""

HUB_BYTES: Final = 64 << 20
"""Bytes that the rings of all channels hold in this process together, at the most."""


class ChannelSubscriber(Protocol):
    """A subscriber, as far as channels know it."""

    def notify(self) -> None:
        """Wake it. This is called under the hub's lock, so it must not wait or call the hub."""

    def drain(self) -> None:
        """Have it end soon."""

    def end_now(self) -> None:
        """Have it end now."""


class Channel:
    """A channel with local subscribers, or with none since a short while."""

    __slots__ = (
        *("as_tuple", "ensured", "fault", "idle_since", "listened", "generation", "name", "reset_reason", "ring"),
        *("subscribers", "unborn", "wanted"),
    )

    def __init__(self, name: str, *, wanted: bool = False) -> None:
        self.name = name
        self.subscribers: SmallSet[ChannelSubscriber] = ()  # only `add` and `remove` change it
        self.ring: Ring | None = None
        self.fault: SSEError | None = None
        self.listened = False
        self.unborn = False
        self.wanted = wanted
        self.ensured = False  # the store had no ring before this hub came
        self.generation = 0  # how often its ring was begun anew, after a reset
        self.reset_reason: ResetReason = "diverged"
        self.idle_since: float | None = None
        self.as_tuple = (self,)  # for all subscribers that listen to this channel alone

    @property
    def was_unknown(self) -> bool:
        """True if the store had no ring before this hub came, and the ring here still holds all that came since."""
        return self.ensured and self.ring is not None and self.ring.base.offset == 0

    def add(self, subscriber: ChannelSubscriber) -> None:
        """Add a subscriber."""
        self.subscribers = added(self.subscribers, subscriber)
        self.idle_since = None

    def remove(self, subscriber: ChannelSubscriber, now: float) -> None:
        """Remove a subscriber; with the last one, the channel is idle from `now` on."""
        self.subscribers = removed(self.subscribers, subscriber)
        if not self.subscribers:
            self.idle_since = now

    def is_idle(self, now: float, seconds: float) -> bool:
        """Return whether nobody has listened for so many seconds."""
        return self.idle_since is not None and now - self.idle_since >= seconds

    def listen(self) -> None:
        """Note that the feed is asked for it."""
        self.listened = True

    def want(self) -> None:
        """Have a ring ensured if the store has none."""
        self.wanted = True

    def miss(self) -> None:
        """Note that the store has no ring, and that nobody wants one yet."""
        self.unborn = True
        self.wake()

    def refuse(self, fault: SSEError) -> None:
        """Note why there will be no ring."""
        self.fault = fault
        self.wake()

    def begin(self, newest: Position, *, ensured: bool = False) -> int:
        """Begin an empty ring that goes on from the newest position; return the change in bytes."""
        self.ensured = self.ensured or ensured
        grown = self._renew(newest)
        self.wake()
        return grown

    def reset(self, newest: Position, reason: ResetReason) -> int:
        """Begin another ring, because the one here cannot be continued; return the change in bytes."""
        # In one step, under the lock: a subscriber that saw only a part of this would be told that it lags. The ring
        # comes first, because `Subscriber.go_on_from` reads `generation` without the lock.
        grown = self._renew(newest)
        self.generation += 1
        self.reset_reason = reason
        self.wake()
        return grown

    def append(self, entry: Entry) -> int:
        """Encode and add the entry that follows the newest one; return the change in bytes. This wakes nobody."""
        ring = self.ring
        assert ring is not None, "a channel begins with a ring"
        before = ring.bytes
        ring.append(encoded(entry))
        return ring.bytes - before

    def shrink(self) -> int:
        """Let go of the older half of the ring; return the change in bytes."""
        if self.ring is None:
            return 0
        before = self.ring.bytes
        self.ring.shrink(before // 2)
        return self.ring.bytes - before

    def wake(self) -> None:
        """Wake all subscribers."""
        for subscriber in self.subscribers:
            subscriber.notify()

    def _renew(self, newest: Position) -> int:
        before = self.ring.bytes if self.ring is not None else 0
        self.ring = Ring(newest, max_bytes=CHANNEL_BYTES)
        return -before


class Channels(dict[str, Channel]):
    """The register: the channels of this process by name, and how many bytes their rings hold together."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._to_shrink: list[Channel] = []

    def account(self, more: int) -> None:
        """Account for bytes that a ring has grown by. Where all rings hold too much, shrink as few as it takes."""
        self.bytes += more
        while self.bytes > HUB_BYTES:
            # One after another: to shrink all rings at once would take long.
            self._to_shrink = self._to_shrink or list(self.values())
            channel = self._to_shrink.pop()
            if self.get(channel.name) is channel:
                self.bytes += channel.shrink()

    def drop(self, channel: Channel) -> None:
        """Remove a channel, if it is still the one of its name."""
        if self.get(channel.name) is channel:
            del self[channel.name]
            self.bytes -= channel.ring.bytes if channel.ring is not None else 0

    def subscribers(self) -> set[ChannelSubscriber]:
        """Return all who listen to any channel."""
        return subscribers(self.values())


def subscribers(channels: Iterable[Channel]) -> set[ChannelSubscriber]:
    """Return all who listen to any of these channels."""
    return {subscriber for channel in channels for subscriber in channel.subscribers}


def wake(channels: Iterable[Channel]) -> None:
    """Wake the subscribers of several channels, each of them once."""
    for subscriber in subscribers(channels):
        subscriber.notify()


def encoded(entry: Entry) -> Entry:
    """Return an entry together with its block of a stream, without an id."""
    return Entry(entry.position, entry.event, encode_body(entry.event))
