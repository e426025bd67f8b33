"""Who in this process hears what: one feed from the store, fanned out to all local subscribers.

One thread (a greenlet, under gevent) reads the feed and is the only one that moves a channel forward. It works in
turns, however many channels there are: it reads some announcements, asks the store about some channels, and pauses.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple, TypeVar

from sse.errors import Busy, SSEError, StoreUnavailable
from sse.event import UNBORN, Entry, Position, Reason
from sse.hub.subscriber import (
    Channel,
    Delivery,
    Form,
    Reset,
    Start,
    Subscriber,
    encoded,
    in_blocks,
    reset_at,
    reset_size,
)
from sse.log import warn
from sse.ring import Ring
from sse.stores import PAGE, PAGE_BYTES, READ_AT_ONCE, Feed, Notice, Page, Store

ATTACH_TIMEOUT: Final = 5.0
"""Seconds that a new subscriber waits for a store that is away."""

_log = logging.getLogger("sse")
_chance: Final = random.SystemRandom()  # a thread of ours leaves the app's own random numbers as they are

_CHECK_EVERY: Final = 5.0
_PER_TURN: Final = 100  # channels that the store is asked about before others have their turn
_FEW: Final = 64  # channels whose announcements may be late without anybody taking note
_BETWEEN_CHECKS: Final = 0.005
_GATHER: Final = 0.005  # in which arrivals that do not come alone are joined by others
_PAUSE: Final = 1e-6  # under gevent a real timer, which lets input in; 0 would not
_ENSURED_AT_ONCE: Final = 20_000  # rings, by this worker for all its clients together
_ENSURED_PER_SECOND: Final = 2_000
_CHANNEL_BYTES: Final = 1 << 20
_HUB_BYTES: Final = 64 << 20

Charge = Callable[[int], None]
"""Called with a number of channels before their rings are ensured; it refuses by raising an error."""

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


class _Queue(dict[str, None]):
    """Channels by name, in the order of their turns."""

    at_once = _PER_TURN
    """How many have the next turn: fewer after a fault, so that the channel that causes it is soon alone."""


class Hub:
    """The fan-out of one process. It starts with the first subscriber, or by `start`; `close` ends it.

    `clock` gives seconds, monotonic. `max_subscribers` bounds streams and waiting polls together; it may be lowered.
    """

    def __init__(self, store: Store, *, max_subscribers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.Lock()
        self.answered: tuple[object, bytes] = None, b""
        """The last answer to a poll, and where that poll stood: equal ones get the same bytes."""
        self._store = store
        self.max_subscribers = max_subscribers
        self._clock = clock
        self._channels: dict[str, Channel] = {}
        self._subscribers = 0
        self._arrived: dict[Channel, None] = {}  # to be listened to, or to have their ring ensured
        self._woken = False  # since arrivals were last looked at
        self._gathered_at = 0.0  # when they are looked at, by `time.monotonic`
        # In the order of their turns, by name:
        self._new = _Queue()  # without a ring here
        self._dirty = _Queue()  # perhaps behind the store
        self._unchecked: list[Channel] = []  # channels that this check has yet to look at
        self._to_shrink: list[Channel] = []
        self._left: set[Subscriber] = set()  # have ended, and are still counted
        self._feed: Feed | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._draining = False
        self._next_check = 0.0
        self._late_since = 0.0
        self._may_ensure = float(_ENSURED_AT_ONCE)
        self._counted_at = clock()
        self._bytes = 0
        self._flights: dict[object, _Flight] = {}

    @property
    def subscribers(self) -> int:
        """How many streams and waiting polls are attached."""
        return self._subscribers - sum(subscriber.seats for subscriber in list(self._left))

    @property
    def late_since(self) -> float:
        """Since when announcements for many channels have waited to be read, by `time.monotonic`; 0 if they do not."""
        return self._late_since

    @property
    def channels(self) -> int:
        """How many channels the feed listens to."""
        return len(self._channels)

    def start(self) -> None:
        """Start the feed before anyone subscribes, so that the log tells soon what ails the store; idempotent."""
        with self.lock:
            thread = None if self._thread or self._closed.is_set() else self._make_thread()
        if thread:
            self._start_thread(thread)

    def attach(self, starts: Mapping[str, Start], timeout: float, charge: Charge | None = None) -> Subscriber:
        """Return a subscriber to the channels in `starts`, each from where it asks; end it with `detach`.

        Nothing that is stored from then on passes it by. What cannot be continued stands in its `resets`. A ring is
        ensured for each channel that has none, after a `charge` for all of these.

        :raises Busy: if this worker has its fill of subscribers, or has ensured very many rings just now.
        :raises StoreUnavailable: if the store does not answer within `timeout` seconds.
        :raises SSEError: what `charge` raises.
        """
        deadline = self._clock() + timeout
        subscriber = self._enter(starts, ensure=charge is None)
        try:
            self._wake()
            while unborn := self._settled(subscriber, deadline, timeout):
                if charge:
                    charge(len(unborn))
                self._ensure(unborn)
            self._join(subscriber, starts)
        except BaseException:
            self.detach(subscriber)
            raise
        return subscriber

    def detach(self, subscriber: Subscriber) -> None:
        """End a subscriber, all its seats; a second time does nothing."""
        # It never waits, since the garbage collector may end a stream's generator in a thread that holds the lock. Then
        # the hub's next turn, or the next subscriber, does the rest.
        if subscriber.seats:
            self._left.add(subscriber)
            self._clear()

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
        events, size = 0, sum(reset_size(name) for name, start in starts.items() if start.fault)
        while behind:
            pages = self.read(
                [(name, places[name]) for name in behind], PAGE, min(max(max_bytes - size, 1), PAGE_BYTES)
            )
            for name, page in zip(behind, pages, strict=True):
                if page.reason and (tops[name] or starts[name].position):
                    reset = reset_at(name, page.reason, places[name], tops[name] or UNBORN)
                    size += reset_size(name)
                    if any(item.channel == name for item in taken) or (events and size > max_bytes):
                        return Look(taken, places, more=True)  # first what came before: the next look meets it again
                    places[name] = reset.position
                    taken.append(reset)
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
        """End all who wait here, and the feed and its thread; return when that has ended, or after 5 s.

        A stream says `sse.close` with the reason `drain`, and a waiting poll answers. A newcomer is refused.
        """
        self._closed.set()
        with self.lock:
            feed, thread = self._feed, self._thread
            subscribers = {one for channel in self._channels.values() for one in channel.subscribers}
        for subscriber in subscribers:
            subscriber.dismiss()
        if feed:
            feed.wake()
        if thread and thread.ident:
            thread.join(5)

    # Attaching: runs in the subscriber's own thread.

    def _enter(self, names: Iterable[str], *, ensure: bool) -> Subscriber:
        with self.lock:
            self._check_open()
            self._vacate_left()
            if self._subscribers >= self.max_subscribers:
                raise Busy(
                    f"this worker has its {self.max_subscribers} subscribers",
                    "try again, or raise SSE_MAX_SUBSCRIBERS",
                )
            self._subscribers += 1
            for name in names:
                if name not in self._channels:
                    channel = self._channels[name] = Channel(name)
                    channel.wanted = ensure
                    self._arrived[channel] = None
            channels = {name: self._channels[name] for name in names}
            if len(channels) == 1:
                channels = next(iter(channels.values())).alone
            subscriber = Subscriber(channels, self.lock, self.read)
            subscriber.draining = self._draining
            for channel in channels.values():
                channel.subscribers.add(subscriber)
                channel.idle_since = None
        return subscriber

    def _clear(self) -> None:
        """Have those who have left counted no more, unless another holds the lock."""
        while self._left and self.lock.acquire(blocking=False):
            try:
                self._vacate_left()
            finally:
                self.lock.release()

    def _vacate_left(self) -> None:
        while self._left:
            subscriber = self._left.pop()
            self._vacate(subscriber, subscriber.seats)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise Busy("this worker is closing", "try again")

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
                    if not channel.listened:  # as while the store is away
                        self._arrived.pop(channel, None)
                        self._channels.pop(channel.name, None)

    def _wake(self) -> None:
        """Have the hub's thread look at what has arrived, if anything has."""
        with self.lock:
            if not self._arrived or self._woken or self._closed.is_set():
                return
            self._woken = True
            if time.monotonic() < self._gathered_at:
                return  # it looks by itself
            thread = None if self._thread else self._make_thread()
            feed = self._feed
        if thread:
            self._start_thread(thread)
        elif feed:
            feed.wake()

    def _make_thread(self) -> threading.Thread:
        self._feed = self._store.feed()
        self._next_check = self._clock() + _CHECK_EVERY
        self._thread = threading.Thread(target=self._run, name="sse-hub", daemon=True)
        return self._thread

    def _start_thread(self, thread: threading.Thread) -> None:
        # It is known as the hub's before: who starts it may be ended while waiting for that, and no second may come.
        try:
            thread.start()
        except RuntimeError:  # no thread can be had now
            with self.lock:
                self._thread, self._woken = None, False
            raise

    def _settled(self, subscriber: Subscriber, deadline: float, timeout: float) -> list[Channel]:
        """Wait for the ring of each channel; return the channels that have none, if nobody has it ensured."""
        channels = list(subscriber.channels.values())
        while True:
            subscriber.rest()
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
        with self.lock:
            for channel in channels:
                channel.wanted = True
                self._arrived[channel] = None
        self._wake()

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
            for (name, position), page in zip(unknown, self.read(unknown, 0), strict=True):
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
                self._clear()
                notices = self._feed.read(max(self._patience(), 0))
                many = self._apply(notices) > _FEW and len(notices) >= READ_AT_ONCE
                self._late_since = (self._late_since or time.monotonic()) if many else 0.0
                self._listen(self._feed)
                self._check()  # first: it has its turn even where a channel at fault ends each turn below
                self._settle()
                if self._new or self._dirty or self._unchecked or self._woken:
                    time.sleep(_PAUSE)
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
        self._feed.close()

    def _patience(self) -> float:
        """Seconds to wait for an announcement in this turn."""
        if self._new or self._dirty:
            return 0
        gathering = self._gathered_at - time.monotonic()
        if self._woken or gathering > 0:
            return gathering
        return _BETWEEN_CHECKS if self._unchecked else self._next_check - self._clock()

    def _listen(self, feed: Feed) -> None:
        """Begin with the channels that have arrived: listen to them, or where that is done have their ring ensured."""
        now = time.monotonic()
        with self.lock:
            if self._arrived and now < self._gathered_at:
                return
            arrived = list(islice(self._arrived, _PER_TURN))
            for channel in arrived:
                del self._arrived[channel]
            self._woken = bool(self._arrived)
            self._gathered_at = now + _GATHER if len(arrived) > 1 and not self._woken else now
            unheard = [channel.name for channel in arrived if not channel.listened]
            self._new.update((channel.name, None) for channel in arrived if channel.listened)
            for channel in arrived:
                channel.listened = True
        if unheard:
            feed.subscribe(unheard)

    def _apply(self, notices: Sequence[Notice]) -> int:
        """Append what has been announced; the number of channels that have moved on."""
        touched: set[Channel] = set()
        with self.lock:
            for name, previous, entry in notices:
                channel = self._channels.get(name)
                if channel is None:
                    continue
                if channel.ring is None:
                    self._new[name] = None
                elif entry is None:
                    self._dirty[name] = None
                elif previous == channel.ring.newest:
                    self._append(channel, entry)
                    touched.add(channel)
                elif entry.position not in channel.ring:
                    self._dirty[name] = None
            _notify(touched)
        return len(touched)

    def _append(self, channel: Channel, entry: Entry) -> None:
        ring = channel.ring
        assert ring is not None
        before = ring.bytes
        ring.append(encoded(entry))
        self._bytes += ring.bytes - before
        while self._bytes > _HUB_BYTES:
            # One after another, as many as it takes: all at once would take long.
            self._to_shrink = self._to_shrink or list(self._channels.values())
            other = self._to_shrink.pop()
            if other.ring is not None and self._channels.get(other.name) is other:
                self._bytes -= other.ring.bytes
                other.ring.shrink(other.ring.bytes // 2)
                self._bytes += other.ring.bytes

    def _settle(self) -> None:
        """Bring some channels up to the store, the new ones first. What fails comes again, after all others."""
        fault: Exception | None = None
        for queue, bring in ((self._new, self._begin), (self._dirty, self._repair)):
            names = list(islice(queue, queue.at_once))
            for name in names:
                del queue[name]
            with self.lock:
                channels = [self._channels[name] for name in names if name in self._channels]
            try:
                if channels:
                    bring(channels)
                    time.sleep(_PAUSE)
                queue.at_once = min(2 * queue.at_once, _PER_TURN)
            except Exception as error:  # noqa: BLE001 - raised when the other queue has had its turn
                queue.update(dict.fromkeys(names))
                queue.at_once = max(len(names) // 2, 1)
                fault = error
        if fault:
            raise fault

    def _begin(self, channels: list[Channel]) -> None:
        """Give channels that are new here their ring. Where the store has none, it is ensured if that is wanted."""
        channels = [channel for channel in channels if channel.ring is None]
        wanted = {channel for channel in channels if channel.wanted}
        asked = [channel for channel in channels if not (channel.unborn and channel in wanted)]
        tops: dict[Channel, Position | StoreUnavailable | None] = dict.fromkeys(channels)
        tops.update(zip(asked, self._store.newest([channel.name for channel in asked]), strict=True))
        unborn = [channel for channel, top in tops.items() if top is None and channel in wanted]
        allowed = unborn[: self._allowed(len(unborn))]
        for channel, anchor in zip(allowed, self._store.found([channel.name for channel in allowed]), strict=True):
            tops[channel] = anchor
            channel.founded = True
        for channel, top in tops.items():
            if isinstance(top, Position):
                self._fill(channel, top)
            elif top is None and channel not in wanted:
                with self.lock:
                    channel.unborn = True
                    _notify([channel])
            else:
                self._refuse(channel, top or Busy("very many new channels at once", "try again"))

    def _allowed(self, count: int) -> int:
        """How many of so many rings may be ensured now."""
        now = self._clock()
        more = (now - self._counted_at) * _ENSURED_PER_SECOND
        self._counted_at = now
        self._may_ensure = min(self._may_ensure + more, float(_ENSURED_AT_ONCE))
        allowed = min(count, int(self._may_ensure))
        self._may_ensure -= allowed
        return allowed

    def _fill(self, channel: Channel, top: Position, reset: Reason | None = None) -> None:
        with self.lock:
            if channel.ring is not None:
                self._bytes -= channel.ring.bytes
            channel.ring = Ring(top, max_bytes=_CHANNEL_BYTES)
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
            _notify([channel])
        assert self._feed is not None
        self._feed.unsubscribe([channel.name])

    def _repair(self, channels: list[Channel]) -> None:
        """Read what channels have missed since their newest entry; reset those that cannot be continued."""
        channels = [channel for channel in channels if channel.ring is not None]
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
        self._dirty.update(dict.fromkeys(channel.name for channel in again))

    def _reset(self, channel: Channel, top: Position, reason: Reason) -> None:
        warn("channel %s is reset: %s", channel.name, reason)
        self._fill(channel, top, reason)

    def _check(self) -> None:
        """Of some channels: find what no announcement told of, keep alive what has listeners, and drop what is idle."""
        now = self._clock()
        if now >= self._next_check and not self._unchecked:
            self._next_check = now + _CHECK_EVERY * _chance.uniform(0.9, 1.1)
            with self.lock:
                self._unchecked = list(self._channels.values())
        if not self._unchecked:
            return
        some = self._unchecked[-_PER_TURN:]
        del self._unchecked[-_PER_TURN:]
        with self.lock:
            some = [channel for channel in some if self._channels.get(channel.name) is channel]
            idle = [
                channel
                for channel in some
                if channel.idle_since is not None and now - channel.idle_since >= _CHECK_EVERY / 2
            ]
            for channel in idle:
                del self._channels[channel.name]
                self._bytes -= channel.ring.bytes if channel.ring is not None else 0
            live = [channel for channel in some if channel.ring is not None and channel.subscribers]
        assert self._feed is not None
        self._feed.unsubscribe([channel.name for channel in idle])
        for channel, newest in zip(
            live, self._store.newest([channel.name for channel in live], keep=True), strict=True
        ):
            if channel.ring is not None and newest != channel.ring.newest:
                self._dirty[channel.name] = None


def _notify(channels: Iterable[Channel]) -> None:
    for subscriber in {subscriber for channel in channels for subscriber in channel.subscribers}:
        subscriber.notify()


def _good(value: T | StoreUnavailable) -> T:
    if isinstance(value, StoreUnavailable):
        raise value
    return value
