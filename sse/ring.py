"""The newest events of one channel, bounded in number and in bytes."""

from __future__ import annotations

from typing import Final

from sse.event import Entry, Position

_NONE: Final[list[Entry]] = []
"""The entries of every ring that has none yet. It is never changed."""


class Ring:
    """Entries with contiguous offsets after `base`, which is the position just before the oldest of them.

    Every position from `base` to `newest` can be continued from; all others cannot. When a bound is passed the oldest
    entries go, and `base` moves up.
    """

    # There may be a ring for each client, in which nothing happens: it is to be small.
    __slots__ = ("_entries", "_max_bytes", "_max_events", "_start", "base", "bytes")

    def __init__(self, base: Position, max_events: int | None = None, max_bytes: int | None = None) -> None:
        self.base = base
        self.bytes = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._entries = _NONE
        self._start = 0  # entries before it are gone; the list is cut now and then, not at every append

    def __contains__(self, position: Position) -> bool:
        return self._index(position) is not None

    @property
    def newest(self) -> Position:
        """The position of the newest entry, or `base` where there is none."""
        return self._entries[-1].position if len(self._entries) > self._start else self.base

    def append(self, entry: Entry) -> None:
        """Add the entry that follows `newest`.

        :raises ValueError: if its offset is not the next one.
        """
        if entry.position.offset != self.newest.offset + 1:
            raise ValueError(f"{entry.position} does not follow {self.newest}")
        if self._entries is _NONE:
            self._entries = []
        self._entries.append(entry)
        self.bytes += _size(entry)
        while (self._max_events is not None and len(self._entries) - self._start > self._max_events) or (
            self._max_bytes is not None and self.bytes > self._max_bytes
        ):
            self._drop_oldest()

    def shrink(self, max_bytes: int) -> None:
        """Drop the oldest entries until at most `max_bytes` are held."""
        while self.bytes > max_bytes:
            self._drop_oldest()

    def after(self, position: Position, limit: int | None = None) -> list[Entry] | None:
        """The entries after `position`, at most `limit` of them; None if it cannot be continued from here."""
        index = self._index(position)
        if index is None:
            return None
        return self._entries[index : None if limit is None else index + limit]

    def before(self, count: int) -> Position:
        """The position just before the newest `count` entries, or before all that are held."""
        index = max(len(self._entries) - count, self._start)
        return self._entries[index - 1].position if index > self._start else self.base

    def _index(self, position: Position) -> int | None:
        """Where in the list the entries after `position` start."""
        if position == self.base:
            return self._start
        index = self._start + position.offset - self.base.offset
        if self._start < index <= len(self._entries) and self._entries[index - 1].position == position:
            return index
        return None

    def _drop_oldest(self) -> None:
        entry = self._entries[self._start]
        self.base = entry.position
        self.bytes -= _size(entry)
        self._start += 1
        if self._start > 64 and self._start * 2 > len(self._entries):
            del self._entries[: self._start]
            self._start = 0


def _size(entry: Entry) -> int:
    """About what an entry weighs in memory, in bytes."""
    return 400 + 2 * len(entry.event.data) + len(entry.body)
