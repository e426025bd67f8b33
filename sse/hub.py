"""Who in this process hears what: one feed from the store, fanned out to all local subscribers.

One thread (a greenlet, under gevent) reads the feed and is the only one that moves a channel forward.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from sse.errors import Busy, SSEError, StoreUnavailable
from sse.event import UNBORN, Entry, Position, Reason
from sse.log import warn
from sse.ring import Ring
from sse.stores import PAGE, PAGE_BYTES, Feed, Notice, Page, Store
from sse.subscriber import Channel, Delivery, Form, Reset, Start, Subscriber, encoded, in_blocks, reset_at

ATTACH_TIMEOUT: Final = 5.0
"""Seconds that a new subscriber waits for a store that is away."""

_log = logging.getLogger("sse")
_chance: Final = random.SystemRandom()  # a thread of ours leaves the app's own random numbers as they are

_CHECK_EVERY: Final = 5.0
_FOUNDINGS_PER_SECOND: Final = 200
_REPAIRED_AT_ONCE: Final = 50  # channels that share one reading's bytes
_CHANNEL_BYTES: Final = 1 << 20
_HUB_BYTES: Final = 64 << 20

T = TypeVar("T")


class Look(NamedTuple):
    """What `Hub.look` saw: resets and deliveries, the places after them, and whether there are `more`."""

    taken: list[Delivery | Reset]
    places: dict[str, Position]
    more: bool


class _Flight:
    """A reading of the store under way, for all who want the same."""

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.pages: Sequence[Page | StoreUnavailable] = ()


class Hub:
    """The fan-out of one process. It starts with the first subscriber, or by `start`; `close` ends it.

    `clock` gives seconds, monotonic. `max_subscribers` bounds streams and waiting polls together; it may be lowered.
    """

    def __init__(self, store: Store, *, max_subscribers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.Lock()
        self.answered: tuple[object, bytes] = None, b""
        """What was answered last, to a poll that stood so."""
        self._store = store
        self.max_subscribers = max_subscribers
        self._clock = clock
        self._channels: dict[str, Channel] = {}
        self._subscribers = 0
        self._dirty: set[str] = set()  # channels to look at in the store
        self._feed: Feed | None = None
        self._feed_lock = threading.Lock()  # keeps the feed, and what it listens to, in step with `_channels`
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._draining = False
        self._next_check = 0.0
        self._foundings = float(_FOUNDINGS_PER_SECOND)
        self._foundings_at = clock()
        self._bytes = 0
        self._flights: dict[object, _Flight] = {}

    @property
    def subscribers(self) -> int:
        """How many streams and waiting polls are attached."""
        return self._subscribers

    @property
    def channels(self) -> int:
        """How many channels the feed listens to."""
        return len(self._channels)

    def start(self) -> None:
        """Start the feed before anyone subscribes, so that the log tells soon what ails the store; idempotent."""
        with self._feed_lock:
            if not self._closed.is_set():
                self._started()

    def attach(self, starts: Mapping[str, Start], timeout: float) -> Subscriber:
        """A subscriber to the channels in `starts`, each from where it asks; end it with `detach`.

        Nothing that is stored from then on passes it by. What cannot be continued stands in its `resets`.

        :raises Busy: if this worker has its fill of subscribers, or of channels newly founded.
        :raises StoreUnavailable: if the store does not answer within `timeout` seconds.
        """
        deadline = self._clock() + timeout
        subscriber = self._enter(starts)
        try:
            self._listen(subscriber)
            for channel in subscriber.channels.values():
                if not channel.settled.wait(max(deadline - self._clock(), 0)):
                    raise StoreUnavailable(f"the store has not answered for {timeout:g} s", "try again")
                if channel.fault:
                    raise channel.fault
            self._join(subscriber, starts)
        except BaseException:
            self.detach(subscriber)
            raise
        return subscriber

    def detach(self, subscriber: Subscriber) -> None:
        """End a subscriber, all its seats; a second time does nothing."""
        # Nor waits: the garbage collector may end a stream's generator in a thread that holds the lock.
        if subscriber.seats:
            with self.lock:
                self._vacate(subscriber, subscriber.seats)

    def leave(self, subscriber: Subscriber) -> None:
        """End one seat of a subscriber, and with its last one the subscriber."""
        with self.lock:
            self._vacate(subscriber, 1)

    def merge(self, subscriber: Subscriber, other: Subscriber) -> bool:
        """Have one subscriber stand for another as well, which ends; False if they are not at the same place."""
        with self.lock:
            if subscriber.places != other.places or subscriber.channels != other.channels:
                return False
            subscriber.seats += other.seats
            self._subscribers += other.seats
            self._vacate(other, other.seats)
            return True

    def split(self, subscriber: Subscriber) -> Subscriber:
        """Take one seat out of a subscriber, as one of its own at the same place."""
        with self.lock:
            twin = subscriber.twin()
            subscriber.seats -= 1
            for channel in twin.channels.values():
                channel.subscribers.add(twin)
            return twin

    def drain(self, window: float) -> None:
        """Have all who wait here end, spread over `window` seconds, and whoever still comes at once."""
        with self.lock:
            self._draining = True
            subscribers = {one for channel in self._channels.values() for one in channel.subscribers}
        begun = time.monotonic()
        for number, subscriber in enumerate(subscribers, 1):
            subscriber.drain()
            time.sleep(max(begun + window * number / len(subscribers) - time.monotonic(), 0))

    def tops(self, names: Iterable[str]) -> frozenset[tuple[str, Position | None]]:
        """The newest position of each channel, as far as this hub knows."""
        with self.lock:
            channels = [(name, self._channels.get(name)) for name in names]
            return frozenset(
                (name, channel.ring.newest if channel and channel.ring else None) for name, channel in channels
            )

    def read(
        self, places: Sequence[tuple[str, Position]], limit: int = PAGE, max_bytes: int = PAGE_BYTES
    ) -> list[Page]:
        """Return the pages that `Store.read` gives. Equal readings at the same time are one.

        :raises StoreUnavailable: if any of them cannot be read.
        """
        key = tuple(places), limit, max_bytes
        with self.lock:
            is_mine = key not in self._flights
            flight = self._flights.setdefault(key, _Flight())
        if is_mine:
            try:
                flight.pages = self._store.read(places, limit, max_bytes)
            finally:
                with self.lock:
                    del self._flights[key]
                    flight.landed.set()
        else:
            flight.landed.wait()
        if len(flight.pages) < len(places):
            raise StoreUnavailable("the store did not answer", "try again")
        return [_good(page) for page in flight.pages]

    def look(self, starts: Mapping[str, Start], max_events: int, max_bytes: int, form: Form = in_blocks) -> Look:
        """What a subscriber that starts so would take now, without attaching and without founding a ring.

        :raises StoreUnavailable: if the store does not answer.
        """
        tops = dict(zip(starts, map(_good, self._store.newest(list(starts))), strict=True))
        places = {name: start.position or tops[name] or UNBORN for name, start in starts.items()}
        taken: list[Delivery | Reset] = []
        for name, start in starts.items():
            if start.fault:
                places[name] = tops[name] or UNBORN
                taken.append(Reset(name, start.fault, None, places[name]))
        replays = [(name, start.replay) for name, start in starts.items() if start.replay and tops[name]]
        for (name, _), place in zip(replays, map(_good, self._store.before(replays)), strict=True):
            places[name] = place or UNBORN
        behind = [name for name, place in places.items() if place != tops[name] and not starts[name].fault]
        events = size = 0
        while behind:
            pages = self.read([(name, places[name]) for name in behind], PAGE, min(max_bytes - size, PAGE_BYTES))
            for name, page in zip(behind, pages, strict=True):
                if page.reason and (tops[name] or starts[name].position):
                    if any(item.channel == name for item in taken):
                        return Look(taken, places, more=True)  # first what came before: the next look meets it again
                    place, places[name] = places[name], tops[name] or UNBORN
                    taken.append(reset_at(name, page.reason, place, places[name]))
                for entry in page.entries:
                    delivery = form(name, entry)
                    size += len(delivery.entry.body)
                    if events and (events >= max_events or size > max_bytes):
                        return Look(taken, places, more=True)
                    events += 1
                    taken.append(delivery)
                    places[name] = entry.position
            behind = [name for name, page in zip(behind, pages, strict=True) if page.more]
            if behind and size * 4 > max_bytes * 3:
                return Look(taken, places, more=True)
        return Look(taken, places, more=False)

    def close(self) -> None:
        """End the feed and its thread. Subscribers hear nothing more."""
        self._closed.set()
        if self._feed:
            self._feed.close()
        if self._thread:
            self._thread.join(5)

    # Attaching: runs in the subscriber's own thread.

    def _enter(self, names: Iterable[str]) -> Subscriber:
        with self.lock:
            if self._closed.is_set():
                raise Busy("this worker is closing", "try again")
            if self._subscribers >= self.max_subscribers:
                raise Busy(
                    f"this worker has its {self.max_subscribers} subscribers",
                    "try again, or raise SSE_MAX_SUBSCRIBERS",
                )
            self._subscribers += 1
            for name in names:
                if name not in self._channels:
                    self._channels[name] = Channel(name)
            channels = {name: self._channels[name] for name in names}
            if len(channels) == 1:
                channels = next(iter(channels.values())).alone
            subscriber = Subscriber(channels, self.lock, self.read)
            subscriber.draining = self._draining
            for channel in channels.values():
                channel.subscribers.add(subscriber)
                channel.idle_since = None
        return subscriber

    def _vacate(self, subscriber: Subscriber, seats: int) -> None:
        if not subscriber.seats:
            return
        subscriber.seats -= seats
        self._subscribers -= seats
        if not subscriber.seats:
            channels, subscriber.channels = subscriber.channels, {}
            for channel in channels.values():
                channel.subscribers.discard(subscriber)
                if not channel.subscribers:
                    channel.idle_since = self._clock()

    def _listen(self, subscriber: Subscriber) -> None:
        unheard = [channel for channel in subscriber.channels.values() if not channel.listened]
        if unheard:
            with self._feed_lock:
                feed = self._started()
                feed.subscribe([channel.name for channel in unheard])
            feed.flush()
            for channel in unheard:
                channel.listened = True

    def _started(self) -> Feed:
        if self._feed is None:
            self._feed = self._store.feed()
            self._next_check = self._clock() + _CHECK_EVERY
        if self._thread is None:
            # Kept before it starts: who starts it may be ended while it waits for that, and a second one must not come.
            self._thread = threading.Thread(target=self._run, name="sse-hub", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no thread can be had now
                self._thread = None
                raise
        return self._feed

    def _join(self, subscriber: Subscriber, starts: Mapping[str, Start]) -> None:
        """Find each channel's place: in the hub's own ring, else by asking the store."""
        unknown: list[tuple[str, Position]] = []
        replays: list[tuple[str, int]] = []
        for name, start in starts.items():
            channel = subscriber.channels[name]
            with self.lock:
                ring = channel.ring
                assert ring is not None
                top = ring.newest
                if start.fault:
                    subscriber.join(name, top, Reset(name, start.fault, None, top))
                elif start.position is None:
                    place = ring.before(start.replay)
                    if top.offset - place.offset < start.replay and place.offset > 0:
                        replays.append((name, start.replay))
                    subscriber.join(name, place)
                elif start.position in ring:
                    subscriber.join(name, start.position)
                else:
                    unknown.append((name, start.position))
        if replays:
            for (name, _), anchor in zip(replays, map(_good, self._store.before(replays)), strict=True):
                if anchor is not None:
                    subscriber.join(name, anchor)
        if unknown:
            # With an entry each: one that is not ours cannot be passed, which the client is to hear now.
            for (name, position), page in zip(unknown, self.read(unknown, 1), strict=True):
                if not page.reason:
                    subscriber.join(name, position)
                    continue
                channel = subscriber.channels[name]
                with self.lock:
                    assert channel.ring is not None
                    top = channel.ring.newest
                    reason: Reason = "unknown" if channel.founded and channel.ring.base.offset == 0 else page.reason
                    subscriber.join(name, top, reset_at(name, reason, position, top))
        subscriber.notify()

    # Moving forward: runs in the hub's own thread only.

    def _run(self) -> None:
        assert self._feed is not None
        away = 0
        trouble = ""
        while not self._closed.is_set():
            try:
                wait = 0.01 if self._dirty else self._next_check - self._clock()
                self._apply(self._feed.read(max(wait, 0.001)))
                self._settle()
                if self._clock() >= self._next_check:
                    self._next_check = self._clock() + _CHECK_EVERY * _chance.uniform(0.9, 1.1)
                    self._check()
                if away:
                    _log.warning("the store is back")
                away, trouble = 0, ""
            except StoreUnavailable as error:
                away += 1
                if str(error) != trouble:
                    trouble = str(error)
                    _log.warning("the store is away, streams stay open: %s", trouble)
                self._closed.wait(_chance.uniform(0.5, 1) * min(0.05 * 2**away, 1.0))
            except Exception:  # noqa: BLE001 - logged; subscribers must not be left without a hub
                _log.exception("the hub could not go on with a channel; trying again")
                self._closed.wait(1.0)

    def _apply(self, notices: Sequence[Notice]) -> None:
        touched: set[Channel] = set()
        with self.lock:
            for name, previous, entry in notices:
                channel = self._channels.get(name)
                if channel is None:
                    continue
                if entry is None or channel.ring is None:
                    self._dirty.add(name)
                elif previous == channel.ring.newest:
                    self._append(channel, entry)
                    touched.add(channel)
                elif entry.position not in channel.ring:
                    self._dirty.add(name)
            _notify(touched)

    def _append(self, channel: Channel, entry: Entry) -> None:
        ring = channel.ring
        assert ring is not None
        before = ring.bytes
        ring.append(encoded(entry))
        self._bytes += ring.bytes - before
        if self._bytes > _HUB_BYTES:
            for other in self._channels.values():
                if other.ring is not None:
                    other.ring.shrink(other.ring.bytes // 2)
            self._bytes = sum(other.ring.bytes for other in self._channels.values() if other.ring is not None)

    def _settle(self) -> None:
        """Bring every dirty channel up to the store. What fails stays dirty."""
        if not self._dirty:
            return
        with self.lock:
            dirty = [self._channels[name] for name in self._dirty if name in self._channels]
        begun = [channel for channel in dirty if channel.ring is not None]
        self._begin([channel for channel in dirty if channel.ring is None])
        for start in range(0, len(begun), _REPAIRED_AT_ONCE):
            self._repair(begun[start : start + _REPAIRED_AT_ONCE])
        self._dirty.clear()

    def _begin(self, channels: list[Channel]) -> None:
        """Give channels that are new here their ring, founding it in the store where there is none."""
        tops = dict(zip(channels, self._store.newest([channel.name for channel in channels]), strict=True))
        unborn = [channel for channel, top in tops.items() if top is None]
        allowed = unborn[: self._may_found(len(unborn))]
        for channel, anchor in zip(allowed, self._store.found([channel.name for channel in allowed]), strict=True):
            tops[channel] = anchor
            channel.founded = True
        for channel, top in tops.items():
            if isinstance(top, Position):
                self._fill(channel, top)
            else:
                self._refuse(channel, top or Busy("too many new channels at once", "try again"))

    def _may_found(self, wanted: int) -> int:
        now = self._clock()
        self._foundings = min(
            self._foundings + (now - self._foundings_at) * _FOUNDINGS_PER_SECOND, float(_FOUNDINGS_PER_SECOND)
        )
        self._foundings_at = now
        allowed = min(wanted, int(self._foundings))
        self._foundings -= allowed
        return allowed

    def _fill(self, channel: Channel, top: Position, reset: Reason | None = None) -> None:
        with self.lock:
            if channel.ring is not None:
                self._bytes -= channel.ring.bytes
            channel.ring = Ring(top, max_bytes=_CHANNEL_BYTES)
            channel.settled.set()
            if reset:
                # In one step with the new ring: a subscriber that saw the one without the other would be cut.
                channel.lives += 1
                channel.reset_reason = reset
                _notify([channel])

    def _refuse(self, channel: Channel, fault: SSEError) -> None:
        with self.lock:
            if self._channels.get(channel.name) is channel:
                del self._channels[channel.name]
            channel.fault = fault
            channel.settled.set()
        self._unsubscribe([channel.name])

    def _unsubscribe(self, names: list[str]) -> None:
        with self._feed_lock:
            gone = [name for name in names if name not in self._channels]
            if gone and self._feed:
                self._feed.unsubscribe(gone)
        if self._feed:
            self._feed.flush()

    def _repair(self, channels: list[Channel]) -> None:
        """Read what channels have missed since their newest entry; reset those that cannot be continued."""
        while channels:
            places = [(channel.name, channel.ring.newest) for channel in channels if channel.ring is not None]
            pages = dict(zip(channels, self._store.read(places), strict=True))
            with self.lock:
                for channel, page in pages.items():
                    if isinstance(page, Page) and not page.reason:
                        for entry in page.entries:
                            self._append(channel, entry)
                _notify(channel for channel, page in pages.items() if isinstance(page, Page) and page.entries)
            lost = [channel for channel, page in pages.items() if isinstance(page, Page) and page.reason]
            again = [channel for channel, page in pages.items() if isinstance(page, Page) and page.more]
            for channel, top in zip(lost, self._store.found([channel.name for channel in lost]), strict=True):
                page = pages[channel]
                assert isinstance(page, Page) and page.reason  # noqa: PT018 - for the type checker
                assert channel.ring is not None
                if isinstance(top, StoreUnavailable):
                    pages[channel] = top
                elif top == channel.ring.newest:
                    again.append(channel)
                else:
                    self._reset(channel, top, page.reason)
            for channel, page in pages.items():
                if isinstance(page, StoreUnavailable):
                    warn("channel %s waits: %s", channel.name, page)
            channels = again

    def _reset(self, channel: Channel, top: Position, reason: Reason) -> None:
        warn("channel %s is reset: %s", channel.name, reason)
        self._fill(channel, top, reason)

    def _check(self) -> None:
        """Look for what no announcement told of, keep the rings alive that have listeners, drop idle channels."""
        now = self._clock()
        with self.lock:
            idle = [
                channel.name
                for channel in self._channels.values()
                if channel.idle_since is not None and now - channel.idle_since >= _CHECK_EVERY / 2
            ]
            for name in idle:
                channel = self._channels.pop(name)
                self._bytes -= channel.ring.bytes if channel.ring is not None else 0
            live = [channel for channel in self._channels.values() if channel.ring is not None and channel.subscribers]
        self._unsubscribe(idle)
        for channel, newest in zip(
            live, self._store.newest([channel.name for channel in live], keep=True), strict=True
        ):
            if channel.ring is not None and newest != channel.ring.newest:
                self._dirty.add(channel.name)
        self._settle()


def _notify(channels: Iterable[Channel]) -> None:
    for subscriber in {subscriber for channel in channels for subscriber in channel.subscribers}:
        subscriber.notify()


def _good(value: T | StoreUnavailable) -> T:
    if isinstance(value, StoreUnavailable):
        raise value
    return value
