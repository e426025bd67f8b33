"""The timer wheel: very many items, each of which is to be looked at soon after a moment of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeVar

TICK: Final = 0.1
"""Seconds that a slot of the wheel stands for."""

T = TypeVar("T")


def slot_of(moment: float) -> int:
    """Return the first slot that begins after a moment."""
    return int(moment / TICK) + 1


class Wheel(Generic[T]):
    """Items by the slot in which they are to be looked at. It is given the time, and keeps no clock.

    An item is never taken out: its owner remembers the slot that counts, and passes over it in any other.
    """

    __slots__ = ("_slots", "_turned")

    def __init__(self, now: float) -> None:
        self._turned = int(now / TICK)
        self._slots: dict[int, list[T]] = {}

    def add(self, item: T, moment: float, slot: int = 0) -> int:
        """Have an item looked at soon after a moment, and return its slot, which is yet to come in any case.

        :param slot: in which the item stands already; if that is yet to come, and no later, it stays there alone.
        """
        new = max(int(moment / TICK), self._turned) + 1
        if self._turned < slot <= new:
            return slot
        if items := self._slots.get(new):
            items.append(item)
        else:
            self._slots[new] = [item]  # an empty list that grows would be larger
        return new

    def turn(self, now: float) -> Iterator[tuple[int, Sequence[T]]]:
        """Yield each slot that has come since the last turn, with its items."""
        while self._turned < int(now / TICK):
            self._turned += 1
            if items := self._slots.pop(self._turned, None):
                yield self._turned, items
