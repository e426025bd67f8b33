"""The hub, which attaches the subscribers of this process to channels, over one feed from the store.

An event comes from the store through the feed. The hub's thread, the `Follower`, appends it to the ring of its
`Channel` and wakes the subscribers. Each `Subscriber` then takes the entries after its position from the ring.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol

from sse.errors import Busy, StoreUnavailable
from sse.event import Position
from sse.hub.channel import Channel, Channels
from sse.hub.follower import Follower
from sse.hub.recent_polls import RecentPolls
from sse.hub.store_reader import StoreReader
from sse.hub.subscriber import HubParts, Start, Subscriber
from sse.log import warn
from sse.spread import spread
from sse.stores import Store
from sse.stores.leases import State

ATTACH_TIMEOUT: Final = 5.0
"""Seconds that a new subscriber waits for a store that does not answer."""

_LATE_STEP: Final = 0.5  # seconds that a new subscriber waits longer for a store that still answers
_LATE_STEPS: Final = 20  # the most of these steps

Charge = Callable[[int], None]
"""A function, called with a number of channels before their rings are ensured. It refuses by raising an error."""


class Guest(Protocol):
    """A connection that holds a seat, but listens to no channel."""

    def drain(self) -> None:
        """End the connection politely, because this process ends."""


class Hub:
    """The fan-out of one process. It starts with the first subscriber, or by `start`; `close` ends it.

    Each connection takes one seat. A subscriber may stand for several connections, see `merge`, `split` and `release`.
    `lock` guards the channels, their rings, and the seats. It is never held while waiting for I/O.

    :param max_subscribers: seats, for streams and waiting polls together. The attribute may be lowered later.
    :param max_event_bytes: the most bytes of pieces that are joined, which is SSE_MAX_EVENT_BYTES.
    :param clock: returns seconds of a monotonic clock.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_subscribers: int,
        max_event_bytes: int = 65_536,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lock = threading.Lock()
        self.max_subscribers = max_subscribers
        self.orphaned: Callable[[str], None] | None = None
        """Called with the channel of a live run that nobody holds, if somebody here listens; again every 2 s.

        The hub's thread calls it, or that of a poll that does not wait, without a lock.
        """
        self.began: Callable[[str], State | None] | None = None
        """Called with a channel that gets its first subscriber here. It returns the state of the channel's source.

        It is called under the hub's lock, so it must not wait or call the hub.
        """
        self.is_fresh: Callable[[Sequence[str]], Collection[str]] | None = None
        """Called with channels of sources that get a subscriber without a position. It returns those whose newest event
        the subscriber gets at once. The subscriber's own thread calls it, without a lock, and it may ask the store.
        """
        self.reader = StoreReader(store, max_event_bytes, self._tell_orphaned)
        """Reads the store for subscribers and polls. Equal questions at the same time share a reading."""
        self.last_answer: tuple[object, bytes, int] = None, b"", 0
        """The positions of the poll that was answered last, its answer, and the number of events in it. Polls at these
        positions get it, too."""
        self._clock = clock
        self._channels = Channels()
        self._attached = 0  # subscribers, each of which holds a seat
        self._shared_seats = 0  # further seats, of connections that share a subscriber with another
        self._guests: set[Guest] = set()  # each holds a seat
        self._detached: set[Subscriber] = set()  # detached, but not yet removed: they still hold a seat
        self._draining = False
        self._parts = HubParts(self.lock, self.reader, max_event_bytes)
        self._recent_polls = RecentPolls(clock)
        self._follower = Follower(
            store, self._channels, self.lock, clock, self._try_remove_detached, self._tell_orphaned
        )

    @property
    def subscribers(self) -> int:
        """The number of streams and waiting polls that are attached, and of guests."""
        return self._seats - sum(not subscriber.is_detached for subscriber in list(self._detached))

    @property
    def channels(self) -> int:
        """The number of channels in this process."""
        return len(self._channels)

    @property
    def late_since(self) -> float:
        """When announcements for many channels began to wait to be read, by `time.monotonic`; 0 if none wait."""
        return self._follower.late_since

    @property
    def answering_since(self) -> float:
        """Since when the store has answered without interruption, by `time.monotonic`; inf while it does not."""
        return self._follower.answering_since

    @property
    def was_reached(self) -> bool:
        """True once the store has answered."""
        return self._follower.was_reached

    @property
    def is_full(self) -> bool:
        """True if all seats are taken."""
        return self._seats >= self.max_subscribers

    def start(self) -> None:
        """Start the feed before the first subscriber, so that the log soon tells what is wrong with the store.

        Further calls do nothing.
        """
        self._follower.start()

    def attach(self, starts: Mapping[str, Start], timeout: float, charge: Charge | None = None) -> Subscriber:
        """Return a subscriber to the channels in `starts`, from the position that each start asks for.

        The subscriber gets every event that is stored from then on. Its `resets` name the channels that cannot be
        continued. A ring is ensured for each channel that has none. The caller ends the subscriber with `detach`.

        :param timeout: seconds to wait for the store.
        :param charge: called with the number of channels without a ring, before their rings are ensured.
        :raises Busy: if all seats of this worker are taken, or if it has ensured very many rings just now.
        :raises StoreUnavailable: if the store does not answer in time.
        :raises SSEError: any error that `charge` raises.
        """
        deadline = self._clock() + timeout
        subscriber, is_ready = self._add_subscriber(starts, wanted=charge is None)
        try:
            if not is_ready:
                self._follower.wake()
            while not is_ready and (unborn := self._wait_for_rings(subscriber, starts, deadline, timeout)):
                if charge:
                    charge(len(unborn))
                self._ask_for_rings(unborn)
            if self.is_fresh:
                starts = self._with_fresh_values(subscriber, starts, self.is_fresh)
            self.reader.set_positions(subscriber, starts)
            subscriber.notify()
        except BaseException:
            self.detach(subscriber)
            raise
        return subscriber

    def at_hand(self, starts: Mapping[str, Start]) -> Subscriber | None:
        """Return a subscriber with these positions if the rings here have something for it to take now; else None.

        It has no seat, is not attached and is never woken, so it is to be used at once. It takes what a subscriber that
        is attached would take.
        """
        if self.began or self._parts.has_sources or self._follower.is_stopped:
            return None
        with self.lock:
            channels: list[Channel] = []
            positions: list[Position] = []
            is_behind = False
            for name, (position, _, _) in starts.items():
                channel = self._channels.get(name)
                if channel is None or position is None or channel.ring is None or position not in channel.ring:
                    return None
                is_behind = is_behind or position != channel.ring.newest
                channels.append(channel)
                positions.append(position)
            if not is_behind:
                return None
            subscriber = Subscriber(tuple(channels), self._parts)
            for index, position in enumerate(positions):
                subscriber.go_on_from(index, position)
                channels[index].postpone_idling(self._clock)
            return subscriber

    def detach(self, subscriber: Subscriber, *, polled: bool = False) -> None:
        """End a subscriber, and give back the seat of its one connection. A second call does nothing.

        :param polled: True for a poll, whose client counts as a listener of sources for 10 s more, see `listens`.
        """
        if polled and self._parts.has_sources:
            self._recent_polls.note([channel.name for channel in subscriber.channels if channel.source])
        # This never waits for the lock, because the garbage collector may end a stream's generator in a thread that
        # holds it. In that case the hub's next turn, or the next subscriber, removes this one.
        if not subscriber.is_detached:
            self._detached.add(subscriber)
            self._try_remove_detached()

    def release(self, subscriber: Subscriber) -> None:
        """Give back the seat of one connection of a subscriber that goes on for others.

        For the last connection, `detach` the subscriber instead.
        """
        with self.lock:
            if not self._is_attached(subscriber):
                return
            if self._shared_seats:
                self._shared_seats -= 1
            else:
                warn("a connection has left that was not counted: its subscriber should have been detached")

    def merge(self, subscriber: Subscriber, other: Subscriber) -> bool:
        """Have `subscriber` stand for the connections of `other` as well, and end `other`; return True.

        Return False, and change nothing, unless both are attached and at the same positions of the same channels.
        """
        with self.lock:
            if subscriber.positions != other.positions or subscriber.channels != other.channels:
                return False
            if subscriber.told != other.told:
                return False  # one of them has yet to tell a source's state
            if subscriber is other or not (self._is_attached(subscriber) and self._is_attached(other)):
                return False
            self._remove(other)
            self._shared_seats += 1
            return True

    def split(self, subscriber: Subscriber) -> Subscriber:
        """Return a new subscriber at the same positions, for one of the connections, which keeps its seat.

        If this subscriber has ended, the new one has ended, too.
        """
        with self.lock:
            twin = subscriber.twin()
            if twin.is_detached:
                return twin
            self._attached += 1
            self._shared_seats = max(self._shared_seats - 1, 0)
            for channel in twin.channels:
                channel.add(twin)
            return twin

    def drain(self, window: float) -> None:
        """End the subscribers that have a greenlet or thread of their own, spread over `window` seconds.

        From now on, each new subscriber ends at once. Connections in the worker's rows are ended by `Rows.drain`.
        """
        with self.lock:
            self._draining = True
            ending: list[Subscriber | Guest] = [*self._channels.subscribers(), *self._guests]
        spread(ending, window, lambda each: each.drain(), time.sleep)

    def listens(self, name: str) -> bool:
        """Return whether a source's channel has subscribers here, or had a poll that ended within the last 10 s.

        A subscriber for which `began` has been called counts, because this waits until it is there.
        """
        with self.lock:
            channel = self._channels.get(name)
            return bool(channel and channel.subscribers) or name in self._recent_polls

    def set_source(self, name: str, state: State | None) -> None:
        """Note the state of a channel's source, if the channel is here, and wake its subscribers if it has changed."""
        with self.lock:
            channel = self._channels.get(name)
            if channel and channel.source != state:
                self._parts.has_sources = True
                channel.note_source(state)
                channel.wake()

    def sources(self, names: Iterable[str]) -> dict[str, State]:
        """Return the states of those channels' sources that are known here."""
        if not self._parts.has_sources:
            return {}
        with self.lock:
            channels = [channel for name in names if (channel := self._channels.get(name))]
            return {channel.name: channel.source for channel in channels if channel.source}

    def newest_of(self, name: str) -> Position | None:
        """Return the newest position of a channel in this process; None if its ring is not known here."""
        with self.lock:
            channel = self._channels.get(name)
            return channel.ring.newest if channel and channel.ring else None

    def newest(self, names: Iterable[str]) -> frozenset[tuple[str, Position | None]]:
        """Return the newest position of each channel in this process; None if its ring is not known here."""
        with self.lock:
            channels = [(name, self._channels.get(name)) for name in names]
            return frozenset(
                (name, channel.ring.newest if channel and channel.ring else None) for name, channel in channels
            )

    def close(self) -> None:
        """End all subscribers, the feed and its thread; return when the thread has ended, or after 5 s.

        A stream sends `sse.close` with the reason `drain`, and a waiting poll is answered. New subscribers are refused.
        """
        self._follower.stop()
        with self.lock:
            subscribers = self._channels.subscribers()
            guests = list(self._guests)
        for subscriber in subscribers:
            subscriber.end_now()
        for guest in guests:
            guest.drain()
        self._follower.join()

    def admit(self, guest: Guest) -> None:
        """Give a seat to a connection that listens to no channel, until `dismiss`.

        :raises Busy: if all seats of this worker are taken, or if it ends.
        """
        with self.lock:
            self._check_open()
            if self._draining:
                raise Busy("this worker is ending", "try again")
            self._remove_detached()
            self._check_seats()
            self._guests.add(guest)

    def dismiss(self, guest: Guest) -> None:
        """Take a guest's seat back. A second call does nothing."""
        self._guests.discard(guest)  # atomic, so that no lock is waited for

    # Attaching: this runs in the subscriber's own thread.

    def _check_open(self) -> None:
        if self._follower.is_stopped:
            raise Busy("this worker is closing", "try again")

    @property
    def _seats(self) -> int:
        """The number of seats that are taken."""
        return self._attached + self._shared_seats + len(self._guests)

    def _check_seats(self) -> None:
        if self.is_full:
            raise Busy(
                f"all {self.max_subscribers} seats of this worker are taken",
                "try again, or raise SSE_MAX_SUBSCRIBERS",
            )

    def _add_subscriber(self, starts: Mapping[str, Start], *, wanted: bool) -> tuple[Subscriber, bool]:
        """Return a new subscriber, and whether all of its channels have their rings, so that nothing is to wait for."""
        with self.lock:
            self._check_open()
            self._remove_detached()
            self._check_seats()
            self._attached += 1
            channels = tuple([self._channel(name, wanted=wanted) for name in starts])
            if len(channels) == 1:
                channels = channels[0].as_tuple
            if self.began:
                for channel in channels:
                    if not channel.subscribers and (state := self.began(channel.name)):
                        self._parts.has_sources = True
                        channel.note_source(state)
            subscriber = Subscriber(channels, self._parts, draining=self._draining)
            is_ready = True
            for channel in channels:
                channel.add(subscriber)
                is_ready = is_ready and channel.is_ready_for(starts[channel.name].position)
            return subscriber, is_ready

    def _channel(self, name: str, *, wanted: bool) -> Channel:
        """Return the channel of this name. If there is none, create it, and leave it to the follower to begin."""
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = Channel(name, wanted=wanted)
            self._follower.arrivals.add(channel)
        return channel

    def _wait_for_rings(
        self, subscriber: Subscriber, starts: Mapping[str, Start], deadline: float, timeout: float
    ) -> list[Channel]:
        """Wait for the ring of each channel; return the channels that have none in the store, and none wanted yet.

        While the store answers, but this process is late because very many clients have come at once, it waits for some
        seconds more than `timeout`. A client that is told `busy` would only come back, and cost another request.
        """
        is_over, late_steps = False, _LATE_STEPS
        left = max(deadline - self._clock(), 0)
        while True:
            subscriber.clear_signal()
            self._check_open()
            unborn: list[Channel] = []
            is_asking = has_unsure = False
            with self.lock:
                for channel in subscriber.channels:
                    if fault := channel.fault:
                        raise type(fault)(fault.message, fault.hint)  # each waiting thread raises its own
                    if channel.is_ready_for(starts[channel.name].position):
                        continue
                    if channel.ring is None:
                        if channel.unborn and not channel.wanted:
                            unborn.append(channel)
                        else:
                            is_asking = True
                    else:
                        self._follower.arrivals.add(channel)
                        has_unsure = True
            if not (is_asking or has_unsure):
                return unborn
            if is_over:
                raise StoreUnavailable(f"the store has not answered for {timeout:g} s", "try again")
            if has_unsure:
                self._follower.wake()
            if subscriber.wait(left):
                left = max(deadline - self._clock(), 0)
            elif late_steps and self.answering_since < math.inf:
                late_steps, left = late_steps - 1, _LATE_STEP
            else:
                is_over = True  # but the ring may be there by now

    def _with_fresh_values(
        self, subscriber: Subscriber, starts: Mapping[str, Start], is_fresh: Callable[[Sequence[str]], Collection[str]]
    ) -> dict[str, Start]:
        """Return the starts, with the newest events of sources that are fresh."""
        # The others start at the positions of now, so that a value which comes during the call is not left out.
        with self.lock:
            noted = {
                channel.name: Start(channel.ring.newest)
                for channel in subscriber.channels
                if channel.source and channel.ring and channel.run is None and starts[channel.name] == Start()
            }
        fresh = is_fresh(list(noted)) if noted else ()
        return {**starts, **noted, **{name: Start(replay=1) for name in fresh if name in noted}}

    def _ask_for_rings(self, channels: Iterable[Channel]) -> None:
        """Ask the follower to ensure a ring for each of these channels."""
        with self.lock:
            for channel in channels:
                channel.want()
                self._follower.arrivals.add(channel)
        self._follower.wake()

    def _tell_orphaned(self, name: str) -> None:
        if self.orphaned:
            self.orphaned(name)

    # Ending

    def _try_remove_detached(self) -> None:
        """Remove the subscribers that have been detached, unless another thread holds the lock."""
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

    def _is_attached(self, subscriber: Subscriber) -> bool:
        """Return whether a subscriber is attached, and has not been detached while the lock was held elsewhere."""
        return not subscriber.is_detached and subscriber not in self._detached

    def _remove(self, subscriber: Subscriber) -> None:
        """Remove a subscriber from its channels, and give back its seat."""
        self._attached -= 1
        now = self._clock()
        for channel in subscriber.give_up_channels():
            channel.remove(subscriber, now)
            if not channel.subscribers and not channel.listened:  # this happens while the store is away
                self._follower.arrivals.remove(channel)
                self._channels.drop(channel)
