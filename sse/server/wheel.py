"""The timer wheel: it returns each of very many items soon after the item's own moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeVar

TICK: Final = 0.1
"""Seconds that one slot of the wheel covers."""

T = TypeVar("T")


def slot_of(moment: float) -> int:
    """Return the first slot that begins after a moment."""
    return int(moment / TICK) + 1


class Wheel(Generic[T]):
    """Items by the slot in which they are due. The caller passes the time, since the wheel has no clock.

    An item is never removed. Its owner remembers the slot that counts, and ignores the item in any other slot.
    """

    __slots__ = ("_slots", "_turned")

    def __init__(self, now: float) -> None:
        self._turned = int(now / TICK)
        self._slots: dict[int, list[T]] = {}

    def add(self, item: T, moment: float, slot: int = 0) -> int:
        """Add an item that is due at a moment. Return its slot, which is always in the future.

        :param slot: the slot in which the item is already. If that slot is in the future and not too late, the item is
            not added again.
        """
        new = max(int(moment / TICK), self._turned) + 1
        if self._turned < slot <= new:
            return slot
        if items := self._slots.get(new):
            items.append(item)
        else:
            self._slots[new] = [item]  # a list that is made with its first item takes less memory
        return new

    def turn(self, now: float) -> Iterator[tuple[int, Sequence[T]]]:
        """Yield each slot whose time has come since the last turn, with its items."""
        while self._turned < int(now / TICK):
            self._turned += 1
            if items := self._slots.pop(self._turned, None):
                yield self._turned, items
