"""A subscriber, which has a position in each of its channels and takes the events after it.

A subscriber has no queue. It takes the events after its position from the channel's ring in this process. If that ring
no longer reaches back to its position, it reads them from the store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from sse.errors import SSEError, StoreUnavailable
from sse.event import UNBORN, End, EndReason, Entry, LastEventId, Position, ResetReason
from sse.hub.channel import Channel, encoded
from sse.hub.pieces import PIECE_REST, PIECES, joined
from sse.stores import PAGE, PAGE_BYTES, Page
from sse.stores.base import Run
from sse.stores.leases import State


class PageReader(Protocol):
    """The part of `StoreReader` that a subscriber uses."""

    def read(self, positions: Sequence[tuple[str, Position]], limit: int, max_bytes: int) -> list[Page]:
        """Return the page after each (channel, position), of at most `limit` entries each and `max_bytes` together."""


class HubParts:
    """The parts of a hub that its subscribers share.

    :param max_piece: the most bytes of pieces that are joined, which is SSE_MAX_EVENT_BYTES.
    """

    __slots__ = ("has_sources", "lock", "max_piece", "reader")

    def __init__(self, lock: threading.Lock, reader: PageReader, max_piece: int) -> None:
        self.lock = lock
        self.reader = reader
        self.max_piece = max_piece
        self.has_sources = False  # some channel has had the state of a source


class Start(NamedTuple):
    """The point in a channel after which a subscriber wants to go on.

    That is `position`, or if there is none, the position just before the newest `replay` entries. On a run's channel it
    is the anchor, whatever `replay` is. With a `fault`, the client's position is unknown, so it gets a reset.
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


class SourceState(NamedTuple):
    """The notice that a channel's source has another state than the subscriber was told before."""

    channel: str
    state: State


Item = Delivery | Reset | SourceState
"""Something that a subscriber takes. A source's state has no position."""

_ONE: Final = (0,)
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
        *("_generations", "_hub", "_signal", "_turn", "_wake_call"),
        *("channels", "draining", "positions", "resets", "told"),
    )

    def __init__(self, channels: tuple[Channel, ...], hub: HubParts, *, draining: bool = False) -> None:
        self.channels = channels
        self.positions = [UNBORN] * len(channels)
        """The position in each channel, by the channel's index. `go_on_from` sets it first."""
        self.resets: Sequence[Reset] = ()
        self.draining = draining  # this process ends soon, so the client is to be sent a goodbye
        self.told = _states(channels) if hub.has_sources else None
        """The state of each channel's source that the client knows, by the channel's index; None if it knows none.

        It knows those at the attach from the opening of its stream, and `take` tells it of changes.
        """
        self._hub = hub
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

    @property
    def ended(self) -> dict[str, EndReason]:
        """The reasons of the ends at which it stands, by channel."""
        return {
            channel.name: end.event.reason
            for channel, position in zip(self.channels, self.positions, strict=False)
            if (end := channel.traits.end) is not None and end.position == position and isinstance(end.event, End)
        }

    @property
    def has_ended(self) -> bool:
        """True if it stands at the end of each of its channels, so that nothing more comes."""
        for channel, position in zip(self.channels, self.positions, strict=False):
            end = channel.traits.end
            if end is None or end.position != position:
                return False
        return bool(self.channels)

    @property
    def sources(self) -> dict[str, State]:
        """The states in `told`, by channel."""
        if self.told is None:
            return {}
        return {
            channel.name: state for channel, state in zip(self.channels, self.told, strict=False) if state is not None
        }

    @property
    def has_source_change(self) -> bool:
        """True if a source has another state than the client knows. Then `take` has a notice for it."""
        return self._hub.has_sources and _states(self.channels) != self.told

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
        twin = Subscriber(self.channels, self._hub, draining=self.draining)
        twin.positions = [*self.positions]
        twin.told = self.told
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

    def take(self, max_events: int, max_bytes: int, form: Form | None = None) -> list[Item]:
        """Return the resets and events after its positions: known resets first, then each channel's events in order.

        Changed states of sources come before all of them. Consecutive pieces come as one, up to SSE_MAX_EVENT_BYTES and
        as the other bounds allow. Its positions move on, so the caller has to deliver everything that it is given.

        :param max_events: the most events to return.
        :param max_bytes: the most bytes of bodies and resets together. Resets that are known already are all returned
            nevertheless, and so is the first event, whatever its size, unless resets have filled the answer.
        :param form: makes each delivery; without it, a body is the event's block of a stream.
        :raises Lagging: if a channel's ring has passed the subscriber's position.
        :raises StoreUnavailable: if older entries are needed and cannot be read.
        """
        self.clear_signal()
        taken: list[Item] = [*self._source_changes(), *self.resets] if self.has_source_change else list(self.resets)
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
                    whole: Iterable[Entry] = entries
                    if len(entries) > 1 and channels[index].traits.run is not None:
                        whole = joined(entries, self._piece_bytes(name, max_bytes - size))
                    for entry in whole:
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
        if count == 1:
            return _ONE
        start = (self._turn + 1) % count
        return [*range(start, count), *range(start)] if start else range(count)

    def turn(self, channels: int = 1) -> None:
        """Give the turn to the channel that is `channels` after this one."""
        self._turn = (self._turn + channels) % len(self.positions)

    def at_hand(self, index: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry] | None:
        """Return a page of a channel's entries that are not taken yet; None if the ring has passed its position.

        :param max_bytes: on a run's channel, the most bytes of pieces that come as one, and of all bodies but the last.
        """
        channel = self.channels[index]
        with self._hub.lock:
            assert channel.ring is not None
            run = channel.traits.run
            entries = channel.ring.after(self.positions[index], PAGE if run is None else PIECES)
            if entries is not None and (channel.generation or self._generations):
                self._note_generation(channel.name, channel.generation)
        if run is None or not entries or len(entries) == 1:
            return entries
        page: list[Entry] = []
        for entry in joined(entries, self._piece_bytes(channel.name, max_bytes)):
            page.append(entry if entry.body else encoded(entry))
            max_bytes -= len(page[-1].body)
            if max_bytes <= 0:
                break
        return page

    def is_newest(self, index: int, entry: Entry) -> bool:
        """Return whether an entry of a channel is the newest one in this process."""
        ring = self.channels[index].ring
        return ring is not None and ring.newest == entry.position

    def _piece_bytes(self, channel: str, max_bytes: int) -> int:
        """Return the most bytes of a text that is joined, where `max_bytes` are left for all of it."""
        return min(self._hub.max_piece, max_bytes - PIECE_REST - 2 * len(channel))

    def is_behind(self) -> bool:
        """Return whether any of its channels has entries after its position."""
        with self._hub.lock:
            return any(
                channel.ring is not None and channel.ring.newest > position
                for channel, position in zip(self.channels, self.positions, strict=False)
            )

    def has_all(self) -> bool:
        """Return whether its position in each of its channels is the newest one in this process."""
        with self._hub.lock:
            return all(
                channel.ring is not None and channel.ring.newest == position
                for channel, position in zip(self.channels, self.positions, strict=False)
            )

    def _source_changes(self) -> list[SourceState]:
        """Return the states of sources that the client does not know. From now on it knows them."""
        known, self.told = self.told or (None,) * len(self.channels), _states(self.channels)
        return [
            SourceState(channel.name, state)
            for channel, state, old in zip(self.channels, self.told or (), known, strict=False)
            if state is not None and state != old
        ]

    def _next_entries(self, index: int, taken: list[Item], max_bytes: int) -> Sequence[Entry]:
        channel, position = self.channels[index], self.positions[index]
        name = channel.name
        with self._hub.lock:
            assert channel.ring is not None
            run = channel.traits.run
            limit = PAGE if run is None else PIECES
            entries = channel.ring.after(position, limit)
            generation = channel.generation
            if entries is None:
                restart, reason = channel.restart(position), channel.traits.reset_reason
        if entries is not None:
            if generation or self._generations:
                self._note_generation(name, generation)
            return entries
        if not max_bytes:
            self.notify()
            return []
        raw = max_bytes if run is None else 4 * max_bytes  # as stored, a short piece is mostly JSON
        page = self._hub.reader.read([(name, position)], limit, min(raw, PAGE_BYTES))[0]
        if not page.reason:
            return page.entries
        if generation == (self._generations or {}).get(name, 0):
            if page.reason != "diverged" and run is None:
                raise Lagging(name)
            # The ring goes on, but the entry after the position is no event. Events before it are delivered first.
            if any(item.channel == name for item in taken):
                self.notify()
                return []
            reason = reason_of(page.reason, run)
        taken.append(reset_at(name, reason, position, restart, run))
        self._note_generation(name, generation)
        self.positions[index] = restart
        return [] if run is None else self._next_entries(index, taken, max_bytes)  # its text begins anew

    def _note_generation(self, name: str, generation: int) -> None:
        # A channel is seldom reset. So most subscribers need no dict, and callers do not call this.
        if self._generations is None:
            self._generations = {}
        self._generations[name] = generation

    def start_at(self, index: int, start: Start) -> bool:
        """Set the position in a channel by its start; return False if the store has to be asked for the position.

        If entries are to be replayed and the ring here has too few of them, the position is the one before them all for
        now, and False is returned.
        """
        channel = self.channels[index]
        with self._hub.lock:
            ring = channel.ring
            assert ring is not None
            newest = ring.newest
            if start.fault:
                restart = channel.restart()
                self.go_on_from(index, restart, Reset(channel.name, start.fault, None, restart))
                return True
            if start.position is None and (run := channel.traits.run) is not None:
                if channel.is_textless:
                    self.go_on_from(index, channel.restart(), Reset(channel.name, "trimmed", None, channel.restart()))
                else:
                    self.go_on_from(index, run.anchor)
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
        """Set the position in a channel by a reset, because the store cannot continue `position`."""
        channel = self.channels[index]
        with self._hub.lock:
            run, restart = channel.run, channel.restart(position)
            reason = "unknown" if channel.was_unknown and run is None else reason_of(reason, run)
            self.go_on_from(index, restart, reset_at(channel.name, reason, position, restart, run))

    def go_on_from(self, index: int, position: Position, reset: Reset | None = None) -> None:
        """Set the position in a channel from which the subscriber goes on."""
        self.positions[index] = position
        channel = self.channels[index]
        if channel.generation or self._generations:
            self._note_generation(channel.name, channel.generation)
        if reset:
            self.resets = [*self.resets, reset]


def reset_at(channel: str, reason: ResetReason, position: Position, restart: Position, run: Run | None = None) -> Reset:
    """Return the notice that a channel cannot be continued after `position`, and goes on from `restart`."""
    # Entries count as missed up to the position where the subscriber goes on. Later ones in the store still come. On a
    # run's channel nothing counts as missed, because the text begins anew.
    missed = max(restart.offset - position.offset, 0) if reason == "trimmed" and run is None else None
    return Reset(channel, reason, missed, restart)


def reason_of(page_reason: ResetReason, run: Run | None) -> ResetReason:
    """Return the reason why a position cannot be continued, if the store gives this one.

    If it has no ring and the run has ended, the text has been there and is gone.
    """
    return "trimmed" if page_reason == "unknown" and run is not None and run.end else page_reason


def reset_size(channel: str) -> int:
    """Return the most bytes that a channel's reset takes in a poll's answer."""
    return 64 + len(channel)


def _states(channels: Sequence[Channel]) -> tuple[State | None, ...] | None:
    """Return the state of each channel's source; None if none has a state."""
    states = tuple([channel.traits.source for channel in channels])
    return states if any(states) else None


def _bytes_to_read(max_bytes: int, size: int, taken: Sequence[object]) -> int:
    """Return the bytes to ask the store for: 0 if only a small part is left, or if a reset would not fit."""
    left = max_bytes - size
    return left if left * 4 >= max_bytes and (left >= _LARGEST_RESET or not taken) else 0


def in_blocks(channel: str, entry: Entry) -> Delivery:
    """Return the delivery whose body is the entry's block of a stream."""
    return Delivery(channel, entry if entry.body else encoded(entry))
