"""A subscriber: its position in each of its channels, and the events that it takes next.

A subscriber has no queue. It keeps a position in each channel and takes what lies after it: from the ring in this
process where that reaches back far enough, else from the store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from sse.errors import SSEError, StoreUnavailable
from sse.event import UNBORN, Entry, LastEventId, Position, ResetReason
from sse.hub.channel import Channel, encoded
from sse.stores import PAGE, PAGE_BYTES, Page


class Pages(Protocol):
    """Readings of the store."""

    def read(self, positions: Sequence[tuple[str, Position]], limit: int, max_bytes: int) -> list[Page]:
        """Return the page after each (channel, position), of so many entries and bytes at the most."""


class Start(NamedTuple):
    """Where a subscriber wants to go on in a channel.

    At `position`; with none, just before the newest `replay` entries; with a `fault`, nowhere: it is to be reset.
    """

    position: Position | None = None
    replay: int = 0
    fault: Literal["invalid", "missing"] | None = None


def starting_points(
    channels: Iterable[str], last: LastEventId | None, *, from_header: bool = False, replay: int = 0
) -> dict[str, Start]:
    """Where a client with this last event id goes on in each channel.

    A channel without an entry is new to a client that writes its own list (the query parameter), and lost to one that
    repeats what it was told (the header). `replay` counts only where there is no last event id.
    """
    if last is None:
        return {channel: Start(replay=replay) for channel in channels}
    starts = {}
    for channel in channels:
        position = last.positions.get(channel)
        if position is None and last.is_invalid(channel):
            starts[channel] = Start(fault="invalid")
        elif position is None and from_header:
            starts[channel] = Start(fault="missing")
        else:
            starts[channel] = Start(position)
    return starts


class Reset(NamedTuple):
    """The notice that a channel could not be continued and goes on from `position`."""

    channel: str
    reason: ResetReason
    missed: int | None
    position: Position

    @property
    def told(self) -> dict[str, object]:
        """The members of the JSON object that tells a client of it."""
        return {"channel": self.channel, "reason": self.reason, "missed": self.missed}


class Delivery(NamedTuple):
    """An entry for a subscriber."""

    channel: str
    entry: Entry


_LARGEST_RESET: Final = 192  # bytes, see reset_size

Form = Callable[[str, Entry], Delivery]
"""Makes the delivery of a channel's entry, whose `body` is what the subscriber's client is sent."""


class Lagging(SSEError):
    """The subscriber was too slow: the ring of the channel no longer reaches back to its position."""

    default_code = "slow"


class Subscriber:
    """A position in each of some channels, and a signal that there may be more to take.

    It belongs to one connection, or to a row of connections that stand at the same positions.
    """

    # An idle subscriber is to be small.
    __slots__ = (
        *("_generations", "_lock", "_pages", "_signal", "_turn", "_wake"),
        *("channels", "draining", "positions", "resets"),
    )

    def __init__(
        self, channels: tuple[Channel, ...], lock: threading.Lock, pages: Pages, *, draining: bool = False
    ) -> None:
        self.channels = channels
        self.positions = [UNBORN] * len(channels)
        """The position in each channel, by the channel's index. `go_on_from` sets it first."""
        self.resets: Sequence[Reset] = ()
        self.draining = draining  # this process is about to end, so the client is told goodbye
        self._lock = lock
        self._pages = pages
        self._generations: dict[str, int] | None = None
        self._turn = 0
        self._signal: threading.Event | None = threading.Event()
        self._wake: Callable[[], None] | None = None

    @property
    def is_detached(self) -> bool:
        """True once the hub has taken it out of its channels."""
        return not self.channels

    @property
    def positions_by_name(self) -> Mapping[str, Position]:
        """Return its positions by the names of its channels, as they are now; empty once it has ended."""
        return {channel.name: position for channel, position in zip(self.channels, self.positions, strict=False)}

    def give_up_channels(self) -> tuple[Channel, ...]:
        """Give up its channels, and return them; from then on it has none. For the hub, under its lock."""
        channels, self.channels = self.channels, ()
        return channels

    def notify(self) -> None:
        """Wake the subscriber's transport."""
        if self._wake:
            self._wake()
        elif self._signal and not self._signal.is_set():
            self._signal.set()

    def wake_by(self, wake: Callable[[], None]) -> None:
        """Have `wake` called instead of `wait` return, in the hub's own thread and at once."""
        self._wake, self._signal = wake, None
        wake()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until there may be something to take."""
        assert self._signal, "it is woken by a call"
        return self._signal.wait(timeout)

    def clear_signal(self) -> None:
        """Have the next `wait` wait until something comes from now on."""
        if self._signal:
            self._signal.clear()

    def twin(self) -> Subscriber:
        """Return another subscriber at the same positions, to be woken in its own way."""
        twin = Subscriber(self.channels, self._lock, self._pages, draining=self.draining)
        twin.positions = [*self.positions]
        twin._generations = self._generations and {**self._generations}
        return twin

    def drain(self) -> None:
        """Have it end soon, unless it is woken by a call: then the caller of `wake_by` has its connections end."""
        if self._signal:
            self.draining = True
            self._signal.set()

    def end_now(self) -> None:
        """Have it end now, however it is woken: its hub is closed."""
        self.draining = True
        self.notify()

    def take(self, max_events: int, max_bytes: int, form: Form | None = None) -> list[Delivery | Reset]:
        """Return resets and events that have come since: known resets first, then each channel's events in order.

        Bodies and resets together have up to `max_bytes`, with two exceptions: resets that are known already are all
        returned, and the first event is returned whatever its size, unless resets have filled the answer. The positions
        move on, so the caller has to deliver everything that it is given. `form` makes each delivery; without it, a
        body is the event's block of a stream.

        :raises Lagging: if a channel's ring has passed the subscriber's position.
        :raises StoreUnavailable: if older entries are needed and cannot be read.
        """
        self.clear_signal()
        taken: list[Delivery | Reset] = list(self.resets)
        form = form or in_blocks
        events, size = 0, sum(reset_size(reset.channel) for reset in self.resets)
        self.resets = ()
        order, channels = self.order(), self.channels
        self.turn()
        try:
            for index in order:
                name = channels[index].name
                before = len(taken)
                while entries := self._next(index, taken, _to_read(max_bytes, size, taken)):
                    for entry in entries:
                        delivery = form(name, entry)  # of a whole page, only what is taken
                        size += len(delivery.entry.body)
                        if events and (events >= max_events or size > max_bytes):
                            self.notify()
                            return taken
                        events += 1
                        taken.append(delivery)
                        self.positions[index] = entry.position
                if len(taken) > before and isinstance(taken[-1], Reset):
                    size += reset_size(name)
        except (Lagging, StoreUnavailable):
            # What was taken before must still be told; the fault will be met again.
            if not taken:
                raise
            self.notify()
        return taken

    def order(self) -> Sequence[int]:
        """Return the indices of its channels, beginning with the one whose turn it is, so that none starves another."""
        count = len(self.positions)
        start = (self._turn + 1) % count
        return [*range(start, count), *range(start)] if start else range(count)

    def turn(self, channels: int = 1) -> None:
        """Give the turn to the next channel, or to a later one, so many `channels` after this one."""
        self._turn = (self._turn + channels) % len(self.positions)

    def at_hand(self, index: int) -> Sequence[Entry] | None:
        """Return a page of a channel's entries that are not taken yet; None if the ring has passed its position."""
        channel = self.channels[index]
        with self._lock:
            assert channel.ring is not None
            entries = channel.ring.after(self.positions[index], PAGE)
            if entries is not None:
                self._note_generation(channel.name, channel.generation)
            return entries

    def is_behind(self) -> bool:
        """Return whether any of its channels has moved on since."""
        with self._lock:
            return any(
                channel.ring is not None and channel.ring.newest > position
                for channel, position in zip(self.channels, self.positions, strict=False)
            )

    def _next(self, index: int, taken: list[Delivery | Reset], max_bytes: int) -> Sequence[Entry]:
        channel, position = self.channels[index], self.positions[index]
        name = channel.name
        with self._lock:
            assert channel.ring is not None
            entries = channel.ring.after(position, PAGE)
            generation, newest = channel.generation, channel.ring.newest
        if entries is not None:
            self._note_generation(name, generation)
            return entries
        if not max_bytes:
            self.notify()
            return []
        page = self._pages.read([(name, position)], PAGE, min(max_bytes, PAGE_BYTES))[0]
        if not page.reason:
            return page.entries
        reason = channel.reset_reason
        if generation == (self._generations or {}).get(name, 0):
            if page.reason != "diverged":
                raise Lagging(name)
            # The ring goes on, but what follows the position is no event of ours. What came before it is told first.
            if any(item.channel == name for item in taken):
                self.notify()
                return []
            reason = page.reason
        taken.append(reset_at(name, reason, position, newest))
        self._note_generation(name, generation)
        self.positions[index] = newest
        return []

    def _note_generation(self, name: str, generation: int) -> None:
        if self._generations is None:
            if not generation:
                return  # a channel is seldom reset, and an idle subscriber is to be small
            self._generations = {}
        self._generations[name] = generation

    def start_at(self, index: int, start: Start) -> bool:
        """Join a channel at the start; return False if the store has to be asked for the position.

        Where entries are to be replayed, it joins in either case: just before all that the ring holds.
        """
        channel = self.channels[index]
        with self._lock:
            ring = channel.ring
            assert ring is not None
            newest = ring.newest
            if start.fault:
                self.go_on_from(index, newest, Reset(channel.name, start.fault, None, newest))
                return True
            if start.position is None:
                position = ring.before(start.replay)
                self.go_on_from(index, position)
                return newest.offset - position.offset >= start.replay or position.offset == 0
            if start.position in ring:
                self.go_on_from(index, start.position)
                return True
            return False

    def start_with_reset(self, index: int, position: Position, reason: ResetReason) -> None:
        """Join a channel at its newest position with a reset, because the store cannot continue `position`."""
        channel = self.channels[index]
        with self._lock:
            assert channel.ring is not None
            reason = "unknown" if channel.was_unknown else reason
            newest = channel.ring.newest
            self.go_on_from(index, newest, reset_at(channel.name, reason, position, newest))

    def go_on_from(self, index: int, position: Position, reset: Reset | None = None) -> None:
        """Set the position from which the subscriber goes on in a channel."""
        self.positions[index] = position
        channel = self.channels[index]
        if channel.generation or self._generations:
            self._note_generation(channel.name, channel.generation)
        if reset:
            self.resets = [*self.resets, reset]


def reset_at(channel: str, reason: ResetReason, position: Position, newest: Position) -> Reset:
    """Return the notice that a channel cannot be continued after `position`, and goes on from its newest position."""
    # Counted up to where the subscriber goes on: the store may be ahead of that by now, and what is there still comes.
    missed = max(newest.offset - position.offset, 0) if reason == "trimmed" else None
    return Reset(channel, reason, missed, newest)


def reset_size(channel: str) -> int:
    """An upper bound of the bytes of a channel's reset in a poll's answer."""
    return 64 + len(channel)


def _to_read(max_bytes: int, size: int, taken: Sequence[object]) -> int:
    """Return the bytes to ask the store for: none if only a small part is left, or if a reset would be too much."""
    left = max_bytes - size
    return left if left * 4 >= max_bytes and (left >= _LARGEST_RESET or not taken) else 0


def in_blocks(channel: str, entry: Entry) -> Delivery:
    """Return the delivery for a stream."""
    return Delivery(channel, entry if entry.body else encoded(entry))
