"""How much the hub's thread does in one turn, and when it has the next one.

There may be thousands of channels. The thread asks the store about some of them in each turn, so that announcements are
read in between. Nothing here reads a clock, waits or takes a lock.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

from sse.hub.channel import Channel

PER_TURN: Final = 100
"""Channels that the store is asked about before others have their turn."""

GATHER: Final = 0.005
"""Seconds in which arrivals that do not come alone are joined by others."""

CHECK_EVERY: Final = 5.0
"""Seconds after which all channels are compared with the store again, give or take a tenth."""

BETWEEN_CHECKS: Final = 0.005
"""Seconds between two turns of such a check."""

ENSURED_AT_ONCE: Final = 20_000
"""Rings that this worker ensures at once, for all its clients together."""

ENSURED_PER_SECOND: Final = 2_000
"""Rings that it ensures each second after that."""

_chance: Final = random.SystemRandom()  # a thread of ours leaves the app's own random numbers as they are


class Arrivals:
    """Channels that wait for the hub's thread: to be listened to, or to have their ring ensured.

    A channel that comes alone is looked at in the next turn. After several channels have come together, further ones
    are gathered for some milliseconds, so that many newcomers do not cost a turn each. For use under the hub's lock.
    """

    def __init__(self) -> None:
        self._channels: dict[Channel, None] = {}
        self._announced = False  # since channels were last taken
        self._gathered_at = 0.0

    def __len__(self) -> int:
        return len(self._channels)

    def add(self, channel: Channel) -> None:
        """Add a channel at the end of the line."""
        self._channels[channel] = None

    def remove(self, channel: Channel) -> None:
        """Forget a channel, if it waits."""
        self._channels.pop(channel, None)

    def announce(self, now: float) -> bool:
        """Return whether the thread has to be woken for what waits: not twice, nor while it gathers."""
        if not self._channels or self._announced:
            return False
        self._announced = True
        return now >= self._gathered_at

    def retract(self) -> None:
        """Have the next `announce` wake the thread, since this time it could not be."""
        self._announced = False

    def take(self, now: float) -> list[Channel]:
        """Return some channels, and have them wait no longer; none while others are gathered."""
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
        """True if channels wait that the thread knows of."""
        return self._announced

    def patience(self, now: float) -> float | None:
        """Return the seconds until channels may be taken, or None if the thread need not come back for any."""
        gathering = self._gathered_at - now
        return gathering if self._announced or gathering > 0 else None


class Queue(dict[str, None]):
    """Channels by name, in the order of their turns.

    After a fault, fewer channels have the next turn, so that the channel that causes the fault is soon alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._at_once = PER_TURN

    def put(self, names: Iterable[str]) -> None:
        """Add names at the end; names that are there already keep their place."""
        self.update(dict.fromkeys(names))

    def take(self) -> list[str]:
        """Return the names that have their turn now, and remove them."""
        names = list(islice(self, self._at_once))
        for name in names:
            del self[name]
        return names

    def succeeded(self) -> None:
        """Have more names in the next turn."""
        self._at_once = min(2 * self._at_once, PER_TURN)

    def failed(self, names: list[str]) -> None:
        """Put names that were taken at the end, and have half as many in the next turn."""
        self.put(names)
        self._at_once = max(len(names) // 2, 1)


class Allowance:
    """How many rings may be ensured: many at once, and then so many each second."""

    def __init__(self, now: float) -> None:
        self._left = float(ENSURED_AT_ONCE)
        self._counted_at = now

    def take(self, count: int, now: float) -> int:
        """Return how many of so many rings may be ensured now."""
        more = (now - self._counted_at) * ENSURED_PER_SECOND
        self._counted_at = now
        self._left = min(self._left + more, float(ENSURED_AT_ONCE))
        allowed = min(count, int(self._left))
        self._left -= allowed
        return allowed


class Checks:
    """Which channels are to be compared with the store: all of them every five seconds, some in each turn."""

    def __init__(self, now: float) -> None:
        self.next = now + CHECK_EVERY
        """When all channels are to be looked at again."""
        self._unchecked: list[Channel] = []

    @property
    def is_under_way(self) -> bool:
        """True if there are channels that this check has yet to look at."""
        return bool(self._unchecked)

    def postpone(self, now: float) -> None:
        """Have the next check in five seconds."""
        self.next = now + CHECK_EVERY

    def is_due(self, now: float) -> bool:
        """Return whether there are channels to look at now."""
        return now >= self.next or self.is_under_way

    def take(self, now: float, channels: Mapping[str, Channel]) -> list[Channel]:
        """Return some channels of the register that this check has not looked at. Begin a check if one is due."""
        if not self._unchecked and now >= self.next:
            self.next = now + CHECK_EVERY * _chance.uniform(0.9, 1.1)
            self._unchecked = list(channels.values())
        taken = self._unchecked[-PER_TURN:]
        del self._unchecked[-PER_TURN:]
        return [channel for channel in taken if channels.get(channel.name) is channel]

    def patience(self, now: float) -> float:
        """Return the seconds until there are channels to look at."""
        return BETWEEN_CHECKS if self._unchecked else self.next - now
