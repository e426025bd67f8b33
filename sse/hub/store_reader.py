"""Reads the store for subscribers and polls, and shares a reading among all that want the same one.

`look` reads from the store the events that a subscriber would take, for a poll that does not wait and so attaches none.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from sse.errors import StoreUnavailable
from sse.event import UNBORN, Entry, Position, ResetReason
from sse.hub.subscriber import Delivery, Form, Reset, Start, Subscriber, in_blocks, reset_at, reset_size
from sse.stores import PAGE, PAGE_BYTES, Page, Store

T = TypeVar("T")


class Look(NamedTuple):
    """The result of `StoreReader.look`: resets and deliveries, the positions after them, and whether more follow."""

    taken: list[Delivery | Reset]
    positions: dict[str, Position]
    more: bool


class _SharedRead:
    """A reading of the store that is under way. When it is `done`, `pages` is its result; empty if it failed."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.pages: Sequence[Page | StoreUnavailable] = ()


class StoreReader:
    """Reads from the store the entries that subscribers and polls need and that no ring of this process has.

    Its lock is never held while the store is asked.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._under_way: dict[object, _SharedRead] = {}

    def read(
        self, positions: Sequence[tuple[str, Position]], limit: int = PAGE, max_bytes: int = PAGE_BYTES
    ) -> list[Page]:
        """Return the pages that `Store.read` returns. Equal readings at the same time are one call of the store.

        :raises StoreUnavailable: if any of them cannot be read.
        """
        key = tuple(positions), limit, max_bytes
        with self._lock:
            is_mine = key not in self._under_way
            shared = self._under_way.setdefault(key, _SharedRead())
        if is_mine:
            try:
                shared.pages = self._store.read(positions, limit, max_bytes)
            finally:
                with self._lock:
                    del self._under_way[key]
                    shared.done.set()
        else:
            shared.done.wait()
        if len(shared.pages) < len(positions):
            raise StoreUnavailable("the store did not answer", "try again")
        return [_value(page) for page in shared.pages]

    def set_positions(self, subscriber: Subscriber, starts: Mapping[str, Start]) -> None:
        """Set a subscriber's position in each of its channels, which are those of `starts` in the same order.

        If the ring in this process does not tell the position, the store is asked.

        :raises StoreUnavailable: if the store does not answer.
        """
        undecided = [
            (index, name, start)
            for index, (name, start) in enumerate(starts.items())
            if not subscriber.start_at(index, start)
        ]
        if not undecided:
            return
        if replays := [(index, name, start.replay) for index, name, start in undecided if not start.position]:
            befores = self._store.before([(name, replay) for _, name, replay in replays])
            for (index, *_), position in zip(replays, map(_value, befores), strict=True):
                if position is not None:
                    subscriber.go_on_from(index, position)
        if unknown := [(index, name, start.position) for index, name, start in undecided if start.position]:
            pages = self.read([(name, position) for _, name, position in unknown], 0)
            for (index, _, position), page in zip(unknown, pages, strict=True):
                if page.reason:
                    subscriber.start_with_reset(index, position, page.reason)
                else:
                    subscriber.go_on_from(index, position)

    def look(self, starts: Mapping[str, Start], max_events: int, max_bytes: int, form: Form = in_blocks) -> Look:
        """Return the resets and events that a subscriber with these starts would take now.

        It attaches no subscriber, and ensures no ring.

        :param max_events: the most events to return.
        :param max_bytes: the most bytes of bodies and resets together, except that the first event may be larger.
        :param form: makes the delivery of an entry.
        :raises StoreUnavailable: if the store does not answer.
        """
        newest = dict(zip(starts, map(_value, self._store.newest(list(starts))), strict=True))
        look = _LookUnderWay(starts, newest, max_events, max_bytes, form)
        replays = [(name, start.replay) for name, start in starts.items() if start.replay and newest[name]]
        for (name, _), position in zip(replays, map(_value, self._store.before(replays)), strict=True):
            look.positions[name] = position or UNBORN
        behind = [name for name, start in starts.items() if look.positions[name] != newest[name] and not start.fault]
        while behind:
            pages = self.read([(name, look.positions[name]) for name in behind], PAGE, look.bytes_to_read)
            for name, page in zip(behind, pages, strict=True):
                if not look.take(name, page):
                    return Look(look.taken, look.positions, more=True)
            behind = [name for name, page in zip(behind, pages, strict=True) if page.more]
            if behind and look.is_filled:
                return Look(look.taken, look.positions, more=True)
        return Look(look.taken, look.positions, more=False)


class _LookUnderWay:
    """A look that is under way, with the resets and deliveries that it has taken so far."""

    def __init__(
        self,
        starts: Mapping[str, Start],
        newest: Mapping[str, Position | None],
        max_events: int,
        max_bytes: int,
        form: Form,
    ) -> None:
        self.taken: list[Delivery | Reset] = []
        self.positions = {name: start.position or newest[name] or UNBORN for name, start in starts.items()}
        self._starts = starts
        self._newest = newest
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._form = form
        self._events = self._size = 0
        for name, start in starts.items():
            if start.fault:
                self._reset(Reset(name, start.fault, None, newest[name] or UNBORN))

    @property
    def bytes_to_read(self) -> int:
        """The bytes of data to ask the store for."""
        return min(max(self._max_bytes - self._size, 1), PAGE_BYTES)

    @property
    def is_filled(self) -> bool:
        """True if less than a quarter of `max_bytes` is left, so that asking the store again does not pay."""
        return self._size * 4 > self._max_bytes * 3

    def take(self, name: str, page: Page) -> bool:
        """Take a page of a channel; return False if a part of it has to wait for the next look."""
        if page.reason and not self._take_reset(name, page.reason):
            return False
        return all(self._deliver(name, entry) for entry in page.entries)

    def _take_reset(self, name: str, reason: ResetReason) -> bool:
        newest = self._newest[name]
        if not (newest or self._starts[name].position):
            return True  # the channel has no ring, and the client does not claim to have had an event
        too_much = self._events and self._size + reset_size(name) > self._max_bytes
        if too_much or any(item.channel == name for item in self.taken):
            return False  # the events before the reset come first, and the next look meets it again
        self._reset(reset_at(name, reason, self.positions[name], newest or UNBORN))
        return True

    def _reset(self, reset: Reset) -> None:
        self._size += reset_size(reset.channel)
        self.positions[reset.channel] = reset.position
        self.taken.append(reset)

    def _deliver(self, name: str, entry: Entry) -> bool:
        delivery = self._form(name, entry)
        self._size += len(delivery.entry.body)
        if self._events and (self._events >= self._max_events or self._size > self._max_bytes):
            return False
        self._events += 1
        self.taken.append(delivery)
        self.positions[name] = entry.position
        return True


def _value(value: T | StoreUnavailable) -> T:
    if isinstance(value, StoreUnavailable):
        raise value
    return value
