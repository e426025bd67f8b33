"""The hub: the register of the subscribers of this process, over one feed from the store.

An event comes here through the feed. The hub's thread, the `Follower`, appends it to the ring of its `Channel` and
wakes the subscribers. Each `Subscriber` then takes from the ring the entries after its position.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from sse.errors import Busy, StoreUnavailable
from sse.event import Position
from sse.hub.channel import Channel, Channels
from sse.hub.follower import Follower
from sse.hub.store_reader import StoreReader
from sse.hub.subscriber import Start, Subscriber
from sse.log import warn
from sse.spread import spread
from sse.stores import Store

ATTACH_TIMEOUT: Final = 5.0
"""Seconds that a new subscriber waits for a store that is away."""

Charge = Callable[[int], None]
"""Called with a number of channels before their rings are ensured; it refuses by raising an error."""


class Hub:
    """The fan-out of one process. It starts with the first subscriber, or by `start`; `close` ends it.

    Each connection takes one seat. A subscriber may stand for several connections: see `merge`, `split` and `release`.
    `lock` guards channels, their rings, and the seats. It is held for work in memory alone.

    :param max_subscribers: bounds streams and waiting polls together; it may be lowered.
    :param clock: gives seconds, monotonic.
    """

    def __init__(self, store: Store, *, max_subscribers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.Lock()
        self.max_subscribers = max_subscribers
        self.reader = StoreReader(store)
        """The readings of the store, shared by subscribers and polls that ask for the same."""
        self.last_answer: tuple[object, bytes] = None, b""
        """The last answer to a poll, and where that poll stood: polls that stand there too get the same bytes."""
        self._clock = clock
        self._channels = Channels()
        self._attached = 0  # subscribers, each of which holds a seat
        self._shared = 0  # further seats, of connections that share a subscriber with another
        self._detached: set[Subscriber] = set()  # have been detached, and still hold their seat
        self._draining = False
        self._follower = Follower(store, self._channels, self.lock, clock, self._try_remove_detached)

    @property
    def subscribers(self) -> int:
        """How many streams and waiting polls are attached."""
        return self._attached + self._shared - sum(not subscriber.is_detached for subscriber in list(self._detached))

    @property
    def channels(self) -> int:
        """How many channels the feed listens to."""
        return len(self._channels)

    @property
    def late_since(self) -> float:
        """Since when announcements for many channels have waited to be read, by `time.monotonic`; 0 if they do not."""
        return self._follower.late_since

    def start(self) -> None:
        """Start the feed before anyone subscribes, so that the log tells soon what ails the store; idempotent."""
        self._follower.start()

    def attach(self, starts: Mapping[str, Start], timeout: float, charge: Charge | None = None) -> Subscriber:
        """Return a subscriber to the channels in `starts`, each from where it asks; end it with `detach`.

        The subscriber gets every event that is stored from then on. Its `resets` name the channels that cannot be
        continued. A ring is ensured for each channel that has none, after a `charge` for all of these.

        :raises Busy: if this worker has its fill of subscribers, or has ensured very many rings just now.
        :raises StoreUnavailable: if the store does not answer within `timeout` seconds.
        :raises SSEError: what `charge` raises.
        """
        deadline = self._clock() + timeout
        subscriber = self._enter(starts, wanted=charge is None)
        try:
            self._follower.wake()
            while unborn := self._settled(subscriber, deadline, timeout):
                if charge:
                    charge(len(unborn))
                self._ensure(unborn)
            self.reader.set_positions(subscriber, starts)
            subscriber.notify()
        except BaseException:
            self.detach(subscriber)
            raise
        return subscriber

    def detach(self, subscriber: Subscriber) -> None:
        """End a subscriber, and give back the seat of its one connection; a second time does nothing."""
        # It never waits, since the garbage collector may end a stream's generator in a thread that holds the lock. Then
        # the hub's next turn, or the next subscriber, does the rest.
        if not subscriber.is_detached:
            self._detached.add(subscriber)
            self._try_remove_detached()

    def release(self, subscriber: Subscriber) -> None:
        """Give back the seat of one connection of a subscriber that goes on for others. The last one detaches it."""
        with self.lock:
            if not self._has(subscriber):
                return
            if self._shared:
                self._shared -= 1
            else:
                warn("a connection has left that was not counted: its subscriber should have been detached")

    def merge(self, subscriber: Subscriber, other: Subscriber) -> bool:
        """Have one subscriber stand for another's connections as well, and end the other.

        Return False, and change nothing, unless both are attached and at the same positions of the same channels.
        """
        with self.lock:
            if subscriber.positions != other.positions or subscriber.channels != other.channels:
                return False
            if subscriber is other or not (self._has(subscriber) and self._has(other)):
                return False
            self._remove(other)
            self._shared += 1
            return True

    def split(self, subscriber: Subscriber) -> Subscriber:
        """Return another subscriber at the same positions, for one of the connections, which keeps its seat.

        The twin of a subscriber that has ended has ended, too.
        """
        with self.lock:
            twin = subscriber.twin()
            if twin.is_detached:
                return twin
            self._attached += 1
            self._shared = max(self._shared - 1, 0)
            for channel in twin.channels:
                channel.add(twin)
            return twin

    def drain(self, window: float) -> None:
        """End subscribers that have a greenlet or thread of their own, spread over `window` seconds.

        From now on, each newcomer ends at once. Connections in the worker's rows are ended by `Rows.drain`.
        """
        with self.lock:
            self._draining = True
            subscribers = self._channels.subscribers()
        spread(subscribers, window, lambda subscriber: subscriber.drain(), time.sleep)

    def newest(self, names: Iterable[str]) -> frozenset[tuple[str, Position | None]]:
        """Return the newest position of each channel, as far as this hub knows."""
        with self.lock:
            channels = [(name, self._channels.get(name)) for name in names]
            return frozenset(
                (name, channel.ring.newest if channel and channel.ring else None) for name, channel in channels
            )

    def close(self) -> None:
        """End all who wait here, and the feed and its thread; return when that has ended, or after 5 s.

        A stream says `sse.close` with the reason `drain`, and a waiting poll answers. A newcomer is refused.
        """
        self._follower.stop()
        with self.lock:
            subscribers = self._channels.subscribers()
        for subscriber in subscribers:
            subscriber.end_now()
        self._follower.join()

    # Attaching: runs in the subscriber's own thread.

    def _check_open(self) -> None:
        if self._follower.is_stopped:
            raise Busy("this worker is closing", "try again")

    def _enter(self, names: Iterable[str], *, wanted: bool) -> Subscriber:
        with self.lock:
            self._check_open()
            self._remove_detached()
            if self._attached + self._shared >= self.max_subscribers:
                raise Busy(
                    f"this worker has its {self.max_subscribers} subscribers",
                    "try again, or raise SSE_MAX_SUBSCRIBERS",
                )
            self._attached += 1
            channels = tuple([self._channel(name, wanted=wanted) for name in names])
            if len(channels) == 1:
                channels = channels[0].as_tuple
            subscriber = Subscriber(channels, self.lock, self.reader, draining=self._draining)
            for channel in channels:
                channel.add(subscriber)
            return subscriber

    def _channel(self, name: str, *, wanted: bool) -> Channel:
        """Return the channel of this name. If it is new, the follower has yet to begin with it."""
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = Channel(name, wanted=wanted)
            self._follower.arrivals.add(channel)
        return channel

    def _settled(self, subscriber: Subscriber, deadline: float, timeout: float) -> list[Channel]:
        """Wait for the ring of each channel; return the channels that have none, if nobody has it ensured."""
        channels = subscriber.channels
        while True:
            subscriber.clear_signal()
            self._check_open()
            with self.lock:
                fault = next((channel.fault for channel in channels if channel.fault), None)
                ringless = [channel for channel in channels if channel.ring is None]
                unborn = [channel for channel in ringless if channel.unborn and not channel.wanted]
            if fault:
                raise type(fault)(fault.message, fault.hint)  # for each waiting thread its own, with its own traceback
            if len(unborn) == len(ringless):
                return unborn
            if not subscriber.wait(max(deadline - self._clock(), 0)):
                raise StoreUnavailable(f"the store has not answered for {timeout:g} s", "try again")

    def _ensure(self, channels: Iterable[Channel]) -> None:
        """Have the follower ensure a ring for each of these channels."""
        with self.lock:
            for channel in channels:
                channel.want()
                self._follower.arrivals.add(channel)
        self._follower.wake()

    # Ending

    def _try_remove_detached(self) -> None:
        """End the subscribers that have been detached, unless another thread holds the lock."""
        while self._detached and self.lock.acquire(blocking=False):
            try:
                self._remove_detached()
            finally:
                self.lock.release()

    def _remove_detached(self) -> None:
        while self._detached:
            subscriber = self._detached.pop()
            if not subscriber.is_detached:
                self._remove(subscriber)

    def _has(self, subscriber: Subscriber) -> bool:
        """Return whether a subscriber is attached, and has not been detached while another thread held the lock."""
        return not subscriber.is_detached and subscriber not in self._detached

    def _remove(self, subscriber: Subscriber) -> None:
        """Take a subscriber out of its channels, and give back its seat."""
        self._attached -= 1
        now = self._clock()
        for channel in subscriber.give_up_channels():
            channel.remove(subscriber, now)
            if not channel.subscribers and not channel.listened:  # as while the store is away
                self._follower.arrivals.remove(channel)
                self._channels.drop(channel)
