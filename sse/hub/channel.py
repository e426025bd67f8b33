"""A channel in this process, with its ring, its subscribers and its state; and the register of all channels.

A channel enters the register with its first subscriber, and goes through these states:

    state     condition                  next
    new       `listened` is False        the feed listens to it; if its last subscriber leaves before, it is dropped
    listened  `listened` is True         the feed confirms that, and the store is asked for the newest position
    unborn    `unborn` is True           the store has no ring: subscribers are woken, and one of them may want a ring
    wanted    `wanted` is True           a ring is ensured if the store has none
    begun     `ring` is not None         entries are appended; a reset replaces the ring
    idle      `idle_since` is not None   the channel is dropped after some seconds, unless a subscriber comes
    refused   `fault` is not None        the channel is dropped, and each of its subscribers raises the fault

Most channels are ordinary ones. A run may begin on a channel that has had no event, so a channel that has begun is also
in one of these states:

    state     condition                  next
    blank     no event, `run` is None    a run begins, or an event comes
    unsure    `is_unsure` is True        the store is asked for the marker, at the latest when a subscriber comes that
                                         would not know where to start, because its position is not in the ring
    ordinary  `traits.is_ordinary`       a reset replaces the ring
    a run's   `run` is not None          its `End` is appended, or another run begins, which replaces the ring
    ended     `end` is not None          the ring in the store expires, and only the `End` is kept
    textless  the same, and `run` has    the marker expires, too, and a reset replaces the ring
              the anchor UNBORN

All methods run under the hub's lock. They never take it, and never wait. Methods that change a ring return the number
of bytes by which the ring has grown, for `Channels.account`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from sse.errors import SSEError
from sse.event import UNBORN, End, Entry, Position, ResetReason
from sse.ring import Ring
from sse.small_set import SmallSet, added, removed
from sse.stores.base import Run, Standing
from sse.stores.leases import State
from sse.wire import encode_body

CHANNEL_BYTES: Final = 1 << 20
"""The most bytes that the ring of one channel holds in this process."""

HUB_BYTES: Final = 64 << 20
"""The most bytes that the rings of all channels together hold in this process."""


class ChannelSubscriber(Protocol):
    """The part of a subscriber that a channel uses.

    A channel keeps its subscribers in a set, so they are hashable and compare by identity. It calls `notify` when its
    ring has grown or been replaced, when the store has no ring, and when it is refused. It hands over no entries: the
    subscriber takes them from the ring itself.
    """

    def notify(self) -> None:
        """Wake the subscriber. This is called under the hub's lock, so it must not wait or call the hub."""

    def drain(self) -> None:
        """Make the subscriber end soon, because this process drains. This is called without the hub's lock."""

    def end_now(self) -> None:
        """Make the subscriber end now, because the hub is closed. This is called without the hub's lock."""


@dataclass(frozen=True, slots=True)
class Traits:
    """The state that is the same for almost all channels, so that they share one object of it.

    :param is_ordinary: True if the channel has events and no run, so that no run can begin there.
    :param run: the marker of its run, as the store last told it. If the text is gone, its `anchor` is UNBORN.
    :param end: the entry of its end, if that is the newest one.
    :param source: the state of its source.
    :param reset_reason: the reason of its latest reset.
    """

    is_ordinary: bool = False
    run: Run | None = None
    end: Entry | None = None
    source: State | None = None
    reset_reason: ResetReason = "diverged"


_BLANK: Final = Traits()
_ORDINARY: Final = Traits(is_ordinary=True)


class Channel:
    """A channel that has subscribers in this process, or had some until a short while ago."""

    __slots__ = (
        *("as_tuple", "ensured", "fault", "generation", "idle_since", "listened", "name", "ring", "subscribers"),
        *("traits", "unborn", "wanted"),
    )

    def __init__(self, name: str, *, wanted: bool = False) -> None:
        self.name = name
        self.subscribers: SmallSet[ChannelSubscriber] = ()  # only `add` and `remove` change it
        self.ring: Ring | None = None
        self.fault: SSEError | None = None
        self.listened = False
        self.unborn = False
        self.wanted = wanted
        self.ensured = False  # the store had no ring until this hub ensured it
        self.generation = 0  # how often a reset has replaced the ring
        self.traits = _BLANK
        self.idle_since: float | None = None
        self.as_tuple = (self,)  # one tuple, shared by all subscribers of this channel alone

    @property
    def was_unknown(self) -> bool:
        """True if the store had no ring until this hub ensured it, and the ring here holds every entry since then."""
        return self.ensured and self.ring is not None and self.ring.base.offset == 0

    @property
    def run(self) -> Run | None:
        """The marker of its run, see `Traits`."""
        return self.traits.run

    @property
    def end(self) -> Entry | None:
        """The entry of its end, if that is the newest one."""
        return self.traits.end

    @property
    def source(self) -> State | None:
        """The state of its source; None if it has no source."""
        return self.traits.source

    @property
    def is_unsure(self) -> bool:
        """True if it may be the channel of a run whose announcement was lost."""
        traits = self.traits
        return not traits.is_ordinary and traits.run is None and self.ring is not None and self.ring.newest.offset > 0

    def is_ready_for(self, position: Position | None) -> bool:
        """Return whether a subscriber can begin at a position, or without one if it is None, with what is known here.

        Where a run may have begun, only the anchor is not known, which is for a subscriber whose position is not here.
        """
        if self.traits.is_ordinary:
            return True  # it has its ring, and no fault
        if self.ring is None or self.fault:
            return False
        return not self.is_unsure or (position is not None and position in self.ring)

    @property
    def is_textless(self) -> bool:
        """True if it has ended, and the store has its ring no more."""
        return self.run is not None and self.run.anchor == UNBORN

    def restart(self, lost: Position | None = None) -> Position:
        """Return the position from which a subscriber goes on after a reset.

        That is the newest one, or the anchor on a run's channel, whose text has no middle. Where the anchor itself is
        `lost`, it is the newest one again, or the one before the end.
        """
        assert self.ring is not None
        if self.run is None or self.is_textless or lost == self.run.anchor:
            return self.ring.before(1 if self.end else 0)
        return self.run.anchor

    def add(self, subscriber: ChannelSubscriber) -> None:
        """Add a subscriber."""
        self.subscribers = added(self.subscribers, subscriber)
        self.idle_since = None

    def remove(self, subscriber: ChannelSubscriber, now: float) -> None:
        """Remove a subscriber. If it was the last one, the channel is idle from `now` on."""
        self.subscribers = removed(self.subscribers, subscriber)
        if not self.subscribers:
            self.idle_since = now

    def postpone_idling(self, clock: Callable[[], float]) -> None:
        """If it is idle, note that it is so from now on."""
        if self.idle_since is not None:
            self.idle_since = clock()

    def is_idle(self, now: float, seconds: float) -> bool:
        """Return whether the channel has had no subscribers for so many `seconds`."""
        return self.idle_since is not None and now - self.idle_since >= seconds

    def listen(self) -> None:
        """Note that the feed has been asked to listen to this channel."""
        self.listened = True

    def want(self) -> None:
        """Note that a ring is to be ensured if the store has none."""
        self.wanted = True

    def miss(self) -> None:
        """Note that the store has no ring and that none is wanted yet, and wake the subscribers."""
        self.unborn = True
        self.wake()

    def refuse(self, fault: SSEError) -> None:
        """Note the fault for which there will be no ring, and wake the subscribers."""
        self.fault = fault
        self.wake()

    def begin(self, newest: Position, run: Run | None = None, *, ensured: bool = False) -> int:
        """Begin with a ring after the `newest` position, wake the subscribers; return the change in bytes.

        The ring is empty, or has the end of the `run` if that is the newest entry.
        """
        self.ensured = self.ensured or ensured
        grown = self._replace_ring(newest, run)
        self.wake()
        return grown

    def reset(self, newest: Position, reason: ResetReason, run: Run | None = None) -> int:
        """Replace the ring, which cannot be continued, by one as `begin` makes it; return the change in bytes."""
        # All of this is one step under the lock, since a subscriber that saw only a part of it would be told that it
        # lags. The ring is replaced first, because `Subscriber.go_on_from` reads `generation` without the lock.
        grown = self._replace_ring(newest, run)
        self.generation += 1
        self._change(reset_reason=reason)
        self.wake()
        return grown

    def append(self, entry: Entry) -> int:
        """Encode the next entry and add it; return the change in bytes. This wakes nobody."""
        ring = self.ring
        assert ring is not None, "a channel begins with a ring"
        before = ring.bytes
        entry = encoded(entry)
        ring.append(entry)
        if type(entry.event) is End:
            self._change(end=entry)
        return ring.bytes - before

    def note_standing(self, newest: Position | None, run: Run | None) -> None:
        """Note the marker of its run, or that it is an ordinary channel, as the store tells it."""
        is_ordinary = run is None and newest is not None and newest.offset > 0
        if self.traits.run != run or self.traits.is_ordinary != is_ordinary:
            self._change(run=run, is_ordinary=is_ordinary)

    def note_source(self, state: State | None) -> None:
        """Note the state of its source. This wakes nobody."""
        self._change(source=state)

    def shrink(self) -> int:
        """Drop the older half of the ring; return the change in bytes."""
        if self.ring is None:
            return 0
        before = self.ring.bytes
        self.ring.shrink(before // 2)
        return self.ring.bytes - before

    def wake(self) -> None:
        """Wake all subscribers."""
        for subscriber in self.subscribers:
            subscriber.notify()

    def _replace_ring(self, newest: Position, run: Run | None) -> int:
        before = self.ring.bytes if self.ring is not None else 0
        is_end = run is not None and run.end is not None and newest == run.ended_at
        base = run.before_end if run and is_end and run.before_end else newest
        self.ring = Ring(base, max_bytes=CHANNEL_BYTES)
        if self.traits.end:
            self._change(end=None)
        self.note_standing(newest, run)
        if run and run.end and base != newest:
            self.append(Entry(newest, End(self.name, run.end)))
        return self.ring.bytes - before

    def _change(self, **changes: Any) -> None:
        traits = replace(self.traits, **changes)
        self.traits = _ORDINARY if traits == _ORDINARY else _BLANK if traits == _BLANK else traits


class Channels(dict[str, Channel]):
    """The register: the channels of this process by name, and the bytes that their rings hold together."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._to_shrink: list[Channel] = []

    def account(self, more: int) -> None:
        """Add the bytes by which a ring has grown. If all rings hold more than HUB_BYTES, shrink as few as needed."""
        self.bytes += more
        while self.bytes > HUB_BYTES:
            # The rings are shrunk one after another, because to shrink all of them in one call would take long.
            self._to_shrink = self._to_shrink or list(self.values())
            channel = self._to_shrink.pop()
            if self.get(channel.name) is channel:
                self.bytes += channel.shrink()

    def drop(self, channel: Channel) -> None:
        """Remove a channel, unless another one of its name has taken its place."""
        if self.get(channel.name) is channel:
            del self[channel.name]
            self.bytes -= channel.ring.bytes if channel.ring is not None else 0

    def subscribers(self) -> set[ChannelSubscriber]:
        """Return the subscribers of all channels."""
        return subscribers(self.values())


def subscribers(channels: Iterable[Channel]) -> set[ChannelSubscriber]:
    """Return the subscribers of these channels."""
    return {subscriber for channel in channels for subscriber in channel.subscribers}


def wake(channels: Iterable[Channel]) -> None:
    """Wake the subscribers of several channels, each of them once."""
    for subscriber in subscribers(channels):
        subscriber.notify()


def as_kept(standing: Standing) -> Standing:
    """Return a standing as a channel keeps it.

    If a run has ended and its ring is gone, the end is the newest entry, and the text has no anchor. If the ring of a
    live run is gone, its next write fails, and until then there is no run.
    """
    newest, run = standing
    if newest is not None or run is None:
        return standing
    return Standing(run.ended_at, run._replace(anchor=UNBORN)) if run.ended_at else Standing(None)


def encoded(entry: Entry) -> Entry:
    """Return the entry with a body: its block of a stream, without the id line."""
    return Entry(entry.position, entry.event, encode_body(entry.event))
