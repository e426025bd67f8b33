"""The schedule of the hub's thread: how many channels it works on in one turn, and when the next turn comes.

There may be thousands of channels. The thread asks the store about some of them in each turn, so that it reads
announcements in between. Nothing in this module reads a clock, waits or takes a lock.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

from sse.hub.channel import Channel

PER_TURN: Final = 100
"""The most channels that the store is asked about in one turn."""

GATHER: Final = 0.005
"""Seconds for which further arrivals are gathered after several have come together."""

CHECK_EVERY: Final = 5.0
"""Seconds between two comparisons of all channels with the store, give or take a tenth."""

RUN_CHECK_EVERY: Final = 2.0
"""Seconds between two comparisons of the channels of live runs with the store, give or take a tenth."""

BETWEEN_CHECKS: Final = 0.005
"""Seconds between two turns of the same comparison."""

ENSURED_AT_ONCE: Final = 20_000
"""Rings that this worker may ensure at one time, for all its clients together."""

ENSURED_PER_SECOND: Final = 2_000
"""Rings that it may ensure each second after that."""

_system_random: Final = random.SystemRandom()  # leaves the sequence of an app's seeded `random` as it is


class Arrivals:
    """Channels that wait for the hub's thread to listen to them, or to ensure their ring.

    A channel that comes alone is taken in the next turn. After several channels have come together, further ones are
    gathered for some milliseconds, so that many new channels do not cost a turn each. All methods are for use under the
    hub's lock.
    """

    def __init__(self) -> None:
        self._channels: dict[Channel, None] = {}
        self._announced = False  # the thread knows that channels wait
        self._gathered_at = 0.0

    def __len__(self) -> int:
        return len(self._channels)

    def add(self, channel: Channel) -> None:
        """Add a channel at the end of the line."""
        self._channels[channel] = None

    def remove(self, channel: Channel) -> None:
        """Remove a channel, if it waits."""
        self._channels.pop(channel, None)

    def announce(self, now: float) -> bool:
        """Return whether the thread has to be woken for the channels that wait.

        It need not be if it has been woken for them already, or if it comes back by itself after gathering.
        """
        if not self._channels or self._announced:
            return False
        self._announced = True
        return now >= self._gathered_at

    def retract(self) -> None:
        """Undo `announce`, because the thread could not be woken, so that the next call wakes it."""
        self._announced = False

    def take(self, now: float) -> list[Channel]:
        """Remove and return some channels; return none while further ones are gathered."""
        if self._channels and now < self._gathered_at:
            return []
        taken = list(islice(self._channels, PER_TURN))
        for channel in taken:
            del self._channels[channel]
        self._announced = bool(self._channels)
        self._gathered_at = now + GATHER if len(taken) > 1 and not self._announced else now
        return taken

    @property
    def is_announced(self) -> bool:
        """True if channels wait and the thread knows of them."""
        return self._announced

    def patience(self, now: float) -> float | None:
        """Return the seconds until channels may be taken; None if the thread need not come back for any."""
        gathering = self._gathered_at - now
        return gathering if self._announced or gathering > 0 else None


class Queue(dict[str, None]):
    """Channels by name, in the order of their turns.

    After a fault, half as many channels have the next turn, so that the channel which causes the fault is soon alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._at_once = PER_TURN

    def put(self, names: Iterable[str]) -> None:
        """Add names at the end. Names that are there already keep their turn."""
        self.update(dict.fromkeys(names))

    def take(self) -> list[str]:
        """Remove and return the names that have their turn now."""
        names = list(islice(self, self._at_once))
        for name in names:
            del self[name]
        return names

    def succeeded(self) -> None:
        """Let twice as many names have the next turn, up to PER_TURN."""
        self._at_once = min(2 * self._at_once, PER_TURN)

    def failed(self, names: list[str]) -> None:
        """Put these names back at the end of the queue, and let half as many have the next turn."""
        self.put(names)
        self._at_once = max(len(names) // 2, 1)


class Allowance:
    """The number of rings that may be ensured: ENSURED_AT_ONCE, and then ENSURED_PER_SECOND."""

    def __init__(self, now: float) -> None:
        self._left = float(ENSURED_AT_ONCE)
        self._counted_at = now

    def take(self, count: int, now: float) -> int:
        """Return how many of `count` rings may be ensured now, and count them as ensured."""
        more = (now - self._counted_at) * ENSURED_PER_SECOND
        self._counted_at = now
        self._left = min(self._left + more, float(ENSURED_AT_ONCE))
        allowed = min(count, int(self._left))
        self._left -= allowed
        return allowed


class Checks:
    """The order in which channels are compared with the store: all of them every five seconds, some in each turn."""

    def __init__(self, now: float) -> None:
        self.next = now + CHECK_EVERY
        """When the next check of all channels begins."""
        self._unchecked: list[Channel] = []

    @property
    def is_under_way(self) -> bool:
        """True if this check has yet to look at some channels."""
        return bool(self._unchecked)

    def postpone(self, now: float) -> None:
        """Put the next check off until five seconds from now."""
        self.next = now + CHECK_EVERY

    def is_due(self, now: float) -> bool:
        """Return whether there are channels to look at now."""
        return now >= self.next or self.is_under_way

    def take(self, now: float, channels: Mapping[str, Channel]) -> list[Channel]:
        """Return some channels of the register that this check has not looked at yet. Begin a check if one is due."""
        if not self._unchecked and now >= self.next:
            self.next = now + CHECK_EVERY * _system_random.uniform(0.9, 1.1)
            self._unchecked = list(channels.values())
        taken = self._unchecked[-PER_TURN:]
        del self._unchecked[-PER_TURN:]
        return [channel for channel in taken if channels.get(channel.name) is channel]

    def patience(self, now: float) -> float:
        """Return the seconds until there are channels to look at."""
        return BETWEEN_CHECKS if self._unchecked else self.next - now


class LiveRuns(dict[str, None]):
    """The channels of live runs by name. They are compared with the store more often, to see if nobody runs them."""

    def __init__(self, now: float) -> None:
        super().__init__()
        self._next = now

    def note(self, name: str, *, is_live: bool, now: float) -> None:
        """Add a channel whose run is live, or remove one."""
        if not is_live:
            self.pop(name, None)
        elif name not in self:
            if not self:
                self._postpone(now)
            self[name] = None

    def is_due(self, now: float) -> bool:
        """Return whether the channels are to be compared now."""
        return bool(self) and now >= self._next

    def take(self, now: float, channels: Mapping[str, Channel]) -> list[str]:
        """Return the channels that have subscribers. Forget the channels that are no longer in the register."""
        self._postpone(now)
        for name in [name for name in self if name not in channels]:
            del self[name]
        return [name for name in self if channels[name].subscribers]

    def patience(self, now: float) -> float:
        """Return the seconds until channels are to be compared."""
        return self._next - now if self else math.inf

    def _postpone(self, now: float) -> None:
        self._next = now + RUN_CHECK_EVERY * _system_random.uniform(0.9, 1.1)
