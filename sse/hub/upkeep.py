"""The upkeep of channels: it appends announced entries to their rings, and asks the store for missing ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from sse.errors import Busy, SSEError, StoreUnavailable
from sse.event import Position, ResetReason
from sse.hub.channel import Channel, Channels, wake
from sse.hub.schedule import CHECK_EVERY, Allowance, Checks, Queue
from sse.log import warn
from sse.spread import PAUSE
from sse.stores import Feed, Notice, Page, Store


class Upkeep:
    """Keeps the ring of each channel up to date with the store. Only the hub's thread uses it.

    A channel waits in `new` until it has a ring, and in `dirty` while it may be behind the store. In each turn,
    `settle` works on some channels of both.
    """

    def __init__(self, store: Store, channels: Channels, lock: threading.Lock, clock: Callable[[], float]) -> None:
        self.new = Queue()
        self.dirty = Queue()
        self.checks = Checks(clock())
        self._allowance = Allowance(clock())
        self._store = store
        self._channels = channels
        self._lock = lock
        self._clock = clock

    @property
    def is_behind(self) -> bool:
        """True if channels wait to begin or to be repaired."""
        return bool(self.new or self.dirty)

    def apply(self, notices: Sequence[Notice]) -> int:
        """Append the entries that notices announce; return the number of channels that have moved on."""
        moved: set[Channel] = set()
        with self._lock:
            for name, previous, entry, _ in notices:
                channel = self._channels.get(name)
                if channel is None:
                    continue
                if channel.ring is None:
                    self.new[name] = None
                elif entry is None:
                    self.dirty[name] = None
                elif previous == channel.ring.newest:
                    self._channels.account(channel.append(entry))
                    moved.add(channel)
                elif entry.position not in channel.ring:
                    self.dirty[name] = None
            wake(moved)
        return len(moved)

    def settle(self, feed: Feed) -> None:
        """Begin some channels that are new, and repair some that may be behind the store.

        Channels that fail have their next turn after all others.

        :raises StoreUnavailable: if the store does not answer. It is raised when both queues have had their turn.
        """
        fault: Exception | None = None
        for queue, act in ((self.new, self._begin), (self.dirty, self._repair)):
            names = queue.take()
            with self._lock:
                channels = [self._channels[name] for name in names if name in self._channels]
            try:
                if channels:
                    act(channels, feed)
                    time.sleep(PAUSE)
                queue.succeeded()
            except Exception as error:  # noqa: BLE001 - raised when the other queue has had its turn
                queue.failed(names)
                fault = error
        if fault:
            raise fault

    def check(self, feed: Feed) -> None:
        """Compare some channels with the store, in case an announcement was lost, and drop channels that are idle.

        This also prolongs the rings of channels that have subscribers.
        """
        now = self._clock()
        if not self.checks.is_due(now):
            return
        with self._lock:
            some = self.checks.take(now, self._channels)
            if not some:
                return
            idle = [channel for channel in some if channel.is_idle(now, CHECK_EVERY / 2)]
            for channel in idle:
                self._channels.drop(channel)
            live = [channel for channel in some if channel.ring is not None and channel.subscribers]
        feed.unsubscribe([channel.name for channel in idle])
        newest = self._store.newest([channel.name for channel in live], prolong=True)
        self.dirty.put(
            channel.name
            for channel, position in zip(live, newest, strict=True)
            if channel.ring is not None and position != channel.ring.newest
        )

    def _begin(self, channels: list[Channel], feed: Feed) -> None:
        """Give each new channel its ring. If the store has none, a ring is ensured for a channel that wants one."""
        channels = [channel for channel in channels if channel.ring is None]
        wanted = {channel for channel in channels if channel.wanted}
        asked = [channel for channel in channels if not (channel.unborn and channel in wanted)]
        newest: dict[Channel, Position | StoreUnavailable | None] = dict.fromkeys(channels)
        newest.update(zip(asked, self._store.newest([channel.name for channel in asked]), strict=True))
        ensured = self._ensure(
            [channel for channel, position in newest.items() if position is None and channel in wanted]
        )
        for channel, newest_position in {**newest, **ensured}.items():
            if isinstance(newest_position, Position):
                with self._lock:
                    self._channels.account(channel.begin(newest_position, ensured=channel in ensured))
            elif newest_position is None and channel not in wanted:
                with self._lock:
                    channel.miss()
            else:
                self._refuse(channel, newest_position or Busy("very many new channels at once", "try again"), feed)

    def _ensure(self, unborn: list[Channel]) -> dict[Channel, Position | StoreUnavailable]:
        """Ensure as many rings as the allowance permits now; return their newest positions."""
        allowed = unborn[: self._allowance.take(len(unborn), self._clock())]
        return dict(zip(allowed, self._store.ensure([channel.name for channel in allowed]), strict=True))

    def _refuse(self, channel: Channel, fault: SSEError, feed: Feed) -> None:
        with self._lock:
            self._channels.drop(channel)
            channel.refuse(fault)
        feed.unsubscribe([channel.name])

    def _repair(self, channels: list[Channel], _feed: Feed) -> None:
        """Append the entries that these channels lack; reset channels that cannot be continued."""
        positions = {channel: (channel.name, channel.ring.newest) for channel in channels if channel.ring is not None}
        pages = dict(zip(positions, self._store.read(list(positions.values())), strict=True))
        moved = []
        with self._lock:
            for channel, page in pages.items():
                if isinstance(page, Page) and page.entries and not page.reason:
                    moved.append(channel)
                    for entry in page.entries:
                        self._channels.account(channel.append(entry))
            wake(moved)
        again = [channel.name for channel, page in pages.items() if isinstance(page, Page) and page.more]
        again += self._reset(
            {channel: page.reason for channel, page in pages.items() if isinstance(page, Page) and page.reason}
        )
        for channel, page in pages.items():
            if isinstance(page, StoreUnavailable):
                _warn_of_delay(channel, page)
        self.dirty.put(again)

    def _reset(self, lost: Mapping[Channel, ResetReason]) -> list[str]:
        """Replace rings that cannot be continued, each for its reason; return the channels to read again."""
        again = []
        newest = self._store.ensure([channel.name for channel in lost])
        for (channel, reason), newest_position in zip(lost.items(), newest, strict=True):
            assert channel.ring is not None
            if isinstance(newest_position, StoreUnavailable):
                _warn_of_delay(channel, newest_position)
            elif newest_position == channel.ring.newest:
                again.append(channel.name)
            else:
                warn("channel %s is reset: %s", channel.name, reason)
                with self._lock:
                    self._channels.account(channel.reset(newest_position, reason))
        return again


def _warn_of_delay(channel: Channel, fault: StoreUnavailable) -> None:
    warn("channel %s waits: %s", channel.name, fault)
