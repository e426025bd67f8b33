"""A subscriber, which has a position in each of its channels and takes the events after it.

A subscriber has no queue. It takes the events after its position from the channel's ring in this process. If that ring
no longer reaches back to its position, it reads them from the store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from sse.errors import SSEError, StoreUnavailable
from sse.event import UNBORN, Entry, LastEventId, Position, ResetReason
from sse.hub.channel import Channel, encoded
from sse.stores import PAGE, PAGE_BYTES, Page


class PageReader(Protocol):
    """The part of `StoreReader` that a subscriber uses."""

    def read(self, positions: Sequence[tuple[str, Position]], limit: int, max_bytes: int) -> list[Page]:
        """Return the page after each (channel, position), of at most `limit` entries each and `max_bytes` together."""


class Start(NamedTuple):
    """The point in a channel after which a subscriber wants to go on.

    That is `position`, or if there is none, the position just before the newest `replay` entries. With a `fault`, the
    client's position is unknown, so it gets a reset.
    """

    position: Position | None = None
    replay: int = 0
    fault: Literal["invalid", "missing"] | None = None


def starting_points(
    channels: Iterable[str], last: LastEventId | None, *, from_header: bool = False, replay: int = 0
) -> dict[str, Start]:
    """Return the start in each channel for a client with this last event id.

    A channel may have no position in the id. In the query parameter, whose channels a client chooses itself, this
    channel is new to the client. In the header, which repeats an id that the service sent, its position was lost
    (`missing`).

    :param last: the client's last event id, if it has one.
    :param from_header: whether the id comes from the header `Last-Event-ID`.
    :param replay: entries to begin with, for a client that has no last event id.
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
    """The notice that a channel could not be continued, and goes on from `position`.

    `missed` is the number of entries lost, if the reason is `trimmed`.
    """

    channel: str
    reason: ResetReason
    missed: int | None
    position: Position

    @property
    def json(self) -> dict[str, object]:
        """The JSON object that tells a client of the reset."""
        return {"channel": self.channel, "reason": self.reason, "missed": self.missed}


class Delivery(NamedTuple):
    """An entry of a channel that a subscriber takes."""

    channel: str
    entry: Entry


_LARGEST_RESET: Final = 192  # bytes, see reset_size

Form = Callable[[str, Entry], Delivery]
"""A function that makes the delivery of a channel's entry. Its `body` is the bytes that are sent to the client."""


class Lagging(SSEError):
    """The subscriber was too slow: the ring of the channel no longer reaches back to its position."""

    default_code = "slow"


class Subscriber:
    """A position in each of some channels, and a signal that there may be more to take.

    It belongs to one connection, or to a row of connections at the same positions.
    """

    # There may be very many subscribers, so each is small.
    __slots__ = (
        *("_generations", "_lock", "_reader", "_signal", "_turn", "_wake_call"),
        *("channels", "draining", "positions", "resets"),
    )

    def __init__(
        self, channels: tuple[Channel, ...], lock: threading.Lock, reader: PageReader, *, draining: bool = False
    ) -> None:
        self.channels = channels
        self.positions = [UNBORN] * len(channels)
        """The position in each channel, by the channel's index. `go_on_from` sets it first."""
        self.resets: Sequence[Reset] = ()
        self.draining = draining  # this process ends soon, so the client is to be sent a goodbye
        self._lock = lock
        self._reader = reader
        self._generations: dict[str, int] | None = None
        self._turn = 0
        self._signal: threading.Event | None = threading.Event()
        self._wake_call: Callable[[], None] | None = None

    @property
    def is_detached(self) -> bool:
        """True after the hub has removed it from its channels."""
        return not self.channels

    @property
    def positions_by_name(self) -> Mapping[str, Position]:
        """Its positions by the names of its channels, as they are now; empty after it has ended."""
        return {channel.name: position for channel, position in zip(self.channels, self.positions, strict=False)}

    def give_up_channels(self) -> tuple[Channel, ...]:
        """Return its channels; from now on it has none. Only the hub calls this, under its lock."""
        channels, self.channels = self.channels, ()
        return channels

    def notify(self) -> None:
        """Wake the transport of this subscriber."""
        if self._wake_call:
            self._wake_call()
        elif self._signal and not self._signal.is_set():
            self._signal.set()

    def wake_by(self, wake: Callable[[], None]) -> None:
        """Call `wake` now, and from now on whenever there may be something to take, instead of ending a `wait`.

        The hub's thread calls it, under the hub's lock, so it must not wait.
        """
        self._wake_call, self._signal = wake, None
        wake()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for something to take; return whether there may be something."""
        assert self._signal, "it is woken by a call"
        return self._signal.wait(timeout)

    def clear_signal(self) -> None:
        """Make the next `wait` wait for something that comes after this call."""
        if self._signal:
            self._signal.clear()

    def twin(self) -> Subscriber:
        """Return another subscriber at the same positions, which is woken by a signal of its own."""
        twin = Subscriber(self.channels, self._lock, self._reader, draining=self.draining)
        twin.positions = [*self.positions]
        twin._generations = self._generations and {**self._generations}
        return twin

    def drain(self) -> None:
        """Make it end soon, unless it is woken by a call: then the caller of `wake_by` ends its connections."""
        if self._signal:
            self.draining = True
            self._signal.set()

    def end_now(self) -> None:
        """Make it end now, in whichever way it is woken, because its hub is closed."""
        self.draining = True
        self.notify()

    def take(self, max_events: int, max_bytes: int, form: Form | None = None) -> list[Delivery | Reset]:
        """Return the resets and events after its positions: known resets first, then each channel's events in order.

        Its positions move on, so the caller has to deliver everything that it is given.

        :param max_events: the most events to return.
        :param max_bytes: the most bytes of bodies and resets together. Resets that are known already are all returned
            nevertheless, and so is the first event, whatever its size, unless resets have filled the answer.
        :param form: makes each delivery; without it, a body is the event's block of a stream.
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
                while entries := self._next_entries(index, taken, _bytes_to_read(max_bytes, size, taken)):
                    for entry in entries:
                        delivery = form(name, entry)  # made only for entries that are taken, not for the whole page
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
            # The events that were taken before the fault must be delivered. The next call meets the fault again.
            if not taken:
                raise
            self.notify()
        return taken

    def order(self) -> Sequence[int]:
        """Return the indices of its channels, beginning with the channel that has its turn, so that none starves."""
        count = len(self.positions)
        start = (self._turn + 1) % count
        return [*range(start, count), *range(start)] if start else range(count)

    def turn(self, channels: int = 1) -> None:
        """Give the turn to the channel that is `channels` after this one."""
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
        """Return whether any of its channels has entries after its position."""
        with self._lock:
            return any(
                channel.ring is not None and channel.ring.newest > position
                for channel, position in zip(self.channels, self.positions, strict=False)
            )

    def _next_entries(self, index: int, taken: list[Delivery | Reset], max_bytes: int) -> Sequence[Entry]:
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
        page = self._reader.read([(name, position)], PAGE, min(max_bytes, PAGE_BYTES))[0]
        if not page.reason:
            return page.entries
        reason = channel.reset_reason
        if generation == (self._generations or {}).get(name, 0):
            if page.reason != "diverged":
                raise Lagging(name)
            # The ring goes on, but the entry after the position is no event. Events before it are delivered first.
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
                return  # a channel is seldom reset, so most subscribers need no dict
            self._generations = {}
        self._generations[name] = generation

    def start_at(self, index: int, start: Start) -> bool:
        """Set the position in a channel by its start; return False if the store has to be asked for the position.

        If entries are to be replayed and the ring here has too few of them, the position is the one before them all for
        now, and False is returned.
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
        """Set the position in a channel to the newest one, with a reset: the store cannot continue `position`."""
        channel = self.channels[index]
        with self._lock:
            assert channel.ring is not None
            reason = "unknown" if channel.was_unknown else reason
            newest = channel.ring.newest
            self.go_on_from(index, newest, reset_at(channel.name, reason, position, newest))

    def go_on_from(self, index: int, position: Position, reset: Reset | None = None) -> None:
        """Set the position in a channel from which the subscriber goes on."""
        self.positions[index] = position
        channel = self.channels[index]
        if channel.generation or self._generations:
            self._note_generation(channel.name, channel.generation)
        if reset:
            self.resets = [*self.resets, reset]


def reset_at(channel: str, reason: ResetReason, position: Position, newest: Position) -> Reset:
    """Return the notice that a channel cannot be continued after `position`, and goes on from its newest position."""
    # Entries count as missed up to the position where the subscriber goes on. Later ones in the store still come.
    missed = max(newest.offset - position.offset, 0) if reason == "trimmed" else None
    return Reset(channel, reason, missed, newest)


def reset_size(channel: str) -> int:
    """Return the most bytes that a channel's reset takes in a poll's answer."""
    return 64 + len(channel)


def _bytes_to_read(max_bytes: int, size: int, taken: Sequence[object]) -> int:
    """Return the bytes to ask the store for: 0 if only a small part is left, or if a reset would not fit."""
    left = max_bytes - size
    return left if left * 4 >= max_bytes and (left >= _LARGEST_RESET or not taken) else 0


def in_blocks(channel: str, entry: Entry) -> Delivery:
    """Return the delivery whose body is the entry's block of a stream."""
    return Delivery(channel, entry if entry.body else encoded(entry))
