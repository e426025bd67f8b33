"""The part of a store that sources and runs need: leases, the markers of runs, and who listens on which worker.

A *lease* is the right to be the one that runs a channel's source or run. Its holder proves the right by a random token.
A lease lasts LEASE_SECONDS, and its holder renews it every RENEW_SECONDS. Each write of a source or run names the
token, and the store refuses it if the lease holds another one, in the same step. So at most one of them stores events,
whatever process is frozen, killed or cut off.

The *marker* of a run says that the channel is a run's, and how it ended. It outlives the ring.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from sse.errors import StoreUnavailable
from sse.event import EndReason, Event, Position

LEASE_SECONDS: Final = 6.0
"""Seconds for which a lease lasts, and for which a worker that does not renew is still taken for a listening one."""

RENEW_SECONDS: Final = 2.0
"""Seconds between two renewals."""

ENTRY_BYTES: Final = 64
"""Bytes that each entry of a run's ring counts for beside its data, see SSE_RUN_BYTES."""

STEADY_SECONDS: Final = 5.0
"""Seconds for which a runner of a source has to hold the lease and be `up` before its attempts count from 0 again."""

DELIVERED: Final = 5
"""Attempts that do not count for the wait after a runner that has stored an event and dies, see `Leases.ask`."""

SOURCE_TTL: Final = 300
"""Seconds for which a store remembers a source that nobody asks about, or SSE_RING_TTL if that is longer."""

MAX_WAIT: Final = 300.0
"""The most seconds that `release` may have a source wait."""

Start = Literal["started", "exists", "refused"]
"""What `start` did: the run is new; a run is or was there; the channel has ordinary events."""

State = Literal["up", "down"]
"""Whether a source delivers, or has failed and waits for its next attempt."""


class Ask(NamedTuple):
    """A worker's regular question about a source's channel.

    :param worker: the random name of this worker.
    :param listens: whether the channel has subscribers in this worker, or had a poll within 10 s.
    :param token: with it, the lease is renewed if it holds this token, or else taken if it is free and due.
    """

    channel: str
    worker: str
    listens: bool
    token: str | None = None


class Answer(NamedTuple):
    """What a worker learns about a source's channel.

    :param is_held: whether the lease holds the token of the question.
    :param listeners: how many workers listen, this one included.
    :param attempts: how often the source has been begun, by any worker, since a runner was last `up` for
        STEADY_SECONDS; this attempt counts.
    :param state: the source's state; None if it has none yet.
    :param is_taken: whether anybody holds the lease now.
    """

    is_held: bool
    listeners: int
    attempts: int
    state: State | None
    is_taken: bool


class Leases(ABC):
    """The leases and markers of one store. The methods keep the rules of `Store` about faults, time and threads."""

    @abstractmethod
    def start(self, channel: str, token: str, *, restart: bool = False) -> Start:
        """Begin a run: write its lease and marker, ensure its ring, and announce it, in one step.

        A ring without events stays, with its anchor, so that subscribers that wait hear no reset. With `restart`, the
        lease is taken from the run that is or was there, and the ring begins anew. A channel with events but without a
        marker is refused even then, and so is a channel whose lease a source holds. A call that is repeated with its
        token, after a lost reply, has "started" it too.
        """

    @abstractmethod
    def write(self, channel: str, token: str, event: Event, *, key: str, written: int | None = None) -> Position:
        """Store and announce an event of a source or run, if the lease holds `token`; return its position.

        The lease of a live run that has run out is set again if it is free and the marker has this token. A write that
        is repeated with its `key` is stored once, whatever the lease says by then. The store remembers the key of the
        newest write alone, for as long as the marker or the source's record: a holder writes one event after the other.

        :param key: random; the caller repeats it if the reply was lost.
        :param written: of a run: the bytes that it has stored so far, by `weight`; None for a source.
        :raises LeaseLost: of a source, if the lease holds another token or none.
        :raises Stopped: of a run, if it has ended or another one has begun.
        :raises RunFailed: if the store has lost a part of the run: the marker is gone or says another number of bytes
            than `written`, or the ring is gone or does not begin at the run's anchor; or if this event goes beyond
            SSE_RUN_BYTES. The caller ends the run as failed.
        """

    @abstractmethod
    def end(self, channel: str, reason: EndReason, *, token: str | None = None) -> Position | None:
        """End a live run: store the `End` as the last entry, announce it, and remove the lease, in one step.

        Return the position of the end, or None if there is no live run to end for this caller: with a `token`, only if
        the marker has it, and without one, for the reason `lost`, only if nobody holds the lease. The end has room
        even where SSE_RUN_BYTES is used up. If the ring is gone, a new one has the end alone. A caller that repeats the
        call gets None.
        """

    @abstractmethod
    def renew(self, held: Sequence[tuple[str, str]]) -> list[bool | StoreUnavailable]:
        """Renew the leases of runs, given as (channel, token), and the life of their rings and markers.

        Each value is True if the run is live and its lease holds the token now. A lease that has run out is set again
        if the marker has the token. This uses a connection of its own, and gives up after 1.5 s.
        """

    @abstractmethod
    def ask(self, questions: Sequence[Ask]) -> list[Answer | StoreUnavailable]:
        """Note which workers listen, and renew or take the leases of sources; in one round trip.

        A channel that has a run's marker has no source: its lease is not taken.
        To take a lease counts as an attempt. After the attempt number n, the lease can be taken again only when
        `backoff(n)` seconds have passed, so that a source that kills its worker does not kill all of them in turn. Once
        its holder has written an event, `backoff(n - DELIVERED)` is enough: of workers that die for other reasons, nine
        in a row are replaced within 10 s, and only then does it look as if the source kills them. After STEADY_SECONDS
        of a runner, the lease can be taken as soon as it is free. This uses a connection of its own, and gives up
        after 1.5 s.
        """

    @abstractmethod
    def release(self, channel: str, token: str, *, wait: float = 0.0) -> None:
        """Give up the lease of a source if it holds `token`. It can be taken again after `wait` seconds, at
        most MAX_WAIT.

        Without a wait, as in a drain, the attempt does not count.
        """

    @abstractmethod
    def note(self, channel: str, token: str, state: State) -> None:
        """Note the state of a source if its lease holds `token`, and announce it if it has changed."""

    @abstractmethod
    def states(self, channels: Sequence[str]) -> list[State | StoreUnavailable | None]:
        """Return the states of sources; None for a channel whose source has none yet."""

    @abstractmethod
    def ages(self, channels: Sequence[str]) -> list[float | StoreUnavailable | None]:
        """Return the age of the newest event that a source has written on each channel, in seconds.

        It is 0 if whoever holds the lease now has written the event, and None if there is none that is remembered.
        """


def weight(event: Event) -> int:
    """Return the bytes for which an event counts in a run."""
    return len(event.data.encode()) + ENTRY_BYTES


def backoff(attempts: int) -> float:
    """Return the seconds after an attempt before which there is no other: 1, 2, 4 … 60."""
    return float(min(2 ** max(attempts - 1, 0), 60))
