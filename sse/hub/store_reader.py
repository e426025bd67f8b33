"""Reads the store for subscribers and polls, and shares a reading among all that want the same one.

`look` reads from the store the events that a subscriber would take, for a poll that does not wait and so attaches none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from sse.errors import StoreUnavailable
from sse.event import UNBORN, End, EndReason, Entry, Position, ResetReason
from sse.hub.channel import as_kept
from sse.hub.pieces import PIECE_REST, PIECES, joined
from sse.hub.subscriber import Delivery, Form, Reset, Start, Subscriber, in_blocks, reason_of, reset_at, reset_size
from sse.stores import PAGE, PAGE_BYTES, Page, Store
from sse.stores.base import Standing

T = TypeVar("T")


class Look(NamedTuple):
    """The result of `StoreReader.look`: resets and deliveries, the positions after them, and whether more follow.

    `begins` has the positions from which the events go on, after the resets. `ended` has the reasons of the ends at
    which the `positions` are.
    """

    taken: list[Delivery | Reset]
    positions: dict[str, Position]
    more: bool
    begins: dict[str, Position]
    ended: dict[str, EndReason]


class _SharedRead:
    """A reading of the store that is under way. When it is `done`, `pages` is its result; empty if it failed."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.pages: Sequence[Page | StoreUnavailable] = ()


class StoreReader:
    """Reads from the store the entries that subscribers and polls need and that no ring of this process has.

    Its lock is never held while the store is asked.

    :param max_piece: the most bytes of pieces that are joined.
    :param orphaned: see `Hub.orphaned`.
    """

    def __init__(self, store: Store, max_piece: int, orphaned: Callable[[str], None]) -> None:
        self._store = store
        self._max_piece = max_piece
        self._orphaned = orphaned
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
        standings = dict(zip(starts, map(_value, self._store.standing(list(starts))), strict=True))
        look = _LookUnderWay(starts, standings, max_events, max_bytes, self._max_piece, form)
        replays = [(name, starts[name].replay) for name in look.replaying]
        if replays:
            for (name, _), position in zip(replays, map(_value, self._store.before(replays)), strict=True):
                look.go_on_from(name, position or UNBORN)
        more = self._fill(look)
        for name, (_, run) in standings.items():
            if run and not (run.end or run.is_held):
                self._orphaned(name)
        return look.result(more=more)

    def _fill(self, look: _LookUnderWay) -> bool:
        """Have a look take what follows its positions; return whether more follows."""
        behind = look.behind
        while behind:
            pages = self._pages(behind, look)
            for name, page in pages.items():
                if not look.take(name, page):
                    return True
            behind = [name for name, page in pages.items() if page.more or (page.reason and look.begins_anew(name))]
            if behind and look.is_filled:
                return True
        return False

    def _pages(self, names: Sequence[str], look: _LookUnderWay) -> dict[str, Page]:
        """Return the page after the position of each channel. Those of runs are longer, for pieces to be joined."""
        pages = {name: page for name in names if (page := look.page_of_end(name))}
        asked = [name for name in names if name not in pages]
        for limit in (PAGE, PIECES):
            some = [name for name in asked if look.limit(name) == limit]
            if some:
                places = [(name, look.positions[name]) for name in some]
                raw = look.bytes_to_read * (1 if limit == PAGE else 4)  # as stored, a short piece is mostly JSON
                pages.update(zip(some, self.read(places, limit, min(raw, PAGE_BYTES)), strict=True))
        return {name: pages[name] for name in names}


class _LookUnderWay:
    """A look that is under way, with the resets and deliveries that it has taken so far."""

    def __init__(
        self,
        starts: Mapping[str, Start],
        standings: Mapping[str, Standing],
        max_events: int,
        max_bytes: int,
        max_piece: int,
        form: Form,
    ) -> None:
        self.positions: dict[str, Position] = {}
        self._taken: list[Delivery | Reset] = []
        self._begins: dict[str, Position] = {}
        self._starts = starts
        self._standings = {name: as_kept(standing) for name, standing in standings.items()}
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._max_piece = max_piece
        self._form = form
        self._events = self._size = 0
        for name, start in starts.items():
            run = self._standings[name].run
            if start.fault:
                self._reset(Reset(name, start.fault, None, self._restart(name)))
            elif start.position is None and run and run.anchor == UNBORN:
                self._reset(Reset(name, "trimmed", None, self._restart(name)))
            else:
                self.go_on_from(name, start.position or self._restart(name))

    @property
    def replaying(self) -> list[str]:
        """The channels whose newest entries are to be replayed."""
        standings = self._standings
        return [
            name
            for name, start in self._starts.items()
            if start.replay and standings[name].newest and not standings[name].run
        ]

    @property
    def behind(self) -> list[str]:
        """The channels of which there may be something to take."""
        return [
            name
            for name, position in self.positions.items()
            if position != self._standings[name].newest and not (position == UNBORN and self._starts[name].fault)
        ]

    @property
    def bytes_to_read(self) -> int:
        """The bytes of data to ask the store for."""
        return min(max(self._max_bytes - self._size, 1), PAGE_BYTES)

    @property
    def is_filled(self) -> bool:
        """True if less than a quarter of `max_bytes` is left, so that asking the store again does not pay."""
        return self._size * 4 > self._max_bytes * 3

    def go_on_from(self, name: str, position: Position) -> None:
        """Set the position in a channel from which it goes on."""
        self.positions[name] = self._begins[name] = position

    def limit(self, name: str) -> int:
        """Return the most entries of a channel to ask the store for at once."""
        return PIECES if self._standings[name].run else PAGE

    def page_of_end(self, name: str) -> Page | None:
        """Return the page after the position in a channel that has ended and has no ring; None if it has one."""
        newest, run = self._standings[name]
        if not (newest and run and run.end and run.anchor == UNBORN):
            return None
        if self.positions[name] != run.before_end:
            return Page([], reason="unknown")
        return Page([Entry(newest, End(name, run.end))])

    def begins_anew(self, name: str) -> bool:
        """Return whether a channel that was reset has something to take: the text of a run."""
        newest, run = self._standings[name]
        return run is not None and self.positions[name] != newest

    def take(self, name: str, page: Page) -> bool:
        """Take a page of a channel; return False if a part of it has to wait for the next look."""
        if page.reason and not self._take_reset(name, page.reason):
            return False
        entries: Iterable[Entry] = page.entries
        if self._standings[name].run:
            most = min(self._max_piece, self._max_bytes - self._size - PIECE_REST - 2 * len(name))
            entries = joined(page.entries, most)
        return all(self._deliver(name, entry) for entry in entries)

    def result(self, *, more: bool) -> Look:
        """Return the look, with all resets and deliveries that were taken."""
        ended = {
            name: run.end
            for name, (_, run) in self._standings.items()
            if run and run.end and run.ended_at == self.positions[name]
        }
        return Look(self._taken, self.positions, more, self._begins, ended)

    def _restart(self, name: str, lost: Position | None = None) -> Position:
        """Return the position from which a channel goes on after a reset, see `Channel.restart`."""
        newest, run = self._standings[name]
        if run is None:
            return newest or UNBORN
        if run.anchor not in (UNBORN, lost):
            return run.anchor
        return (run.before_end if newest == run.ended_at else newest) or UNBORN

    def _take_reset(self, name: str, reason: ResetReason) -> bool:
        newest, run = self._standings[name]
        if not (newest or self._starts[name].position):
            return True  # the channel has no ring, and the client does not claim to have had an event
        too_much = self._events and self._size + reset_size(name) > self._max_bytes
        if too_much or any(item.channel == name for item in self._taken):
            return False  # the events before the reset come first, and the next look meets it again
        position = self.positions[name]
        self._reset(reset_at(name, reason_of(reason, run), position, self._restart(name, position), run))
        return True

    def _reset(self, reset: Reset) -> None:
        self._size += reset_size(reset.channel)
        self.go_on_from(reset.channel, reset.position)
        self._taken.append(reset)

    def _deliver(self, name: str, entry: Entry) -> bool:
        delivery = self._form(name, entry)
        self._size += len(delivery.entry.body)
        if self._events and (self._events >= self._max_events or self._size > self._max_bytes):
            return False
        self._events += 1
        self._taken.append(delivery)
        self.positions[name] = entry.position
        return True


def _value(value: T | StoreUnavailable) -> T:
    if isinstance(value, StoreUnavailable):
        raise value
    return value
