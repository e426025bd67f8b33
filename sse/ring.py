"""A ring: the newest entries of one channel, bounded in number and in bytes."""

from __future__ import annotations

from typing import Final

from sse.event import Entry, Position

_NO_ENTRIES: Final[list[Entry]] = []
"""The list of every ring that has no entries yet. It is never changed."""


class Ring:
    """Entries with contiguous offsets. `base` is the position just before the oldest of them.

    A client can go on from every position from `base` to `newest`, and from no other. When a bound is passed, the
    oldest entries are dropped, and `base` moves up.

    :param base: the position just before the first entry that will be appended.
    :param max_events: the most entries to hold; None for no bound.
    :param max_bytes: the most bytes to hold, as `_size` estimates them; None for no bound.
    """

    # There may be a ring for each client, on a channel of its own without events. So a ring is small.
    __slots__ = ("_entries", "_max_bytes", "_max_events", "_start", "base", "bytes")

    def __init__(self, base: Position, max_events: int | None = None, max_bytes: int | None = None) -> None:
        self.base = base
        self.bytes = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._entries = _NO_ENTRIES
        self._start = 0  # the index of the oldest entry; dropped ones before it are deleted many at a time

    def __contains__(self, position: Position) -> bool:
        return self._index(position) is not None

    @property
    def newest(self) -> Position:
        """The position of the newest entry, or `base` if there is none."""
        return self._entries[-1].position if len(self._entries) > self._start else self.base

    def append(self, entry: Entry) -> None:
        """Add the entry that follows `newest`.

        :raises ValueError: if its offset is not the next one.
        """
        if entry.position.offset != self.newest.offset + 1:
            raise ValueError(f"{entry.position} does not follow {self.newest}")
        if self._entries is _NO_ENTRIES:
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
        """Return the entries after `position`, at most `limit` of them; None if this ring cannot continue it."""
        index = self._index(position)
        if index is None:
            return None
        return self._entries[index : None if limit is None else index + limit]

    def before(self, count: int) -> Position:
        """Return the position just before the newest `count` entries, or before all of them if there are fewer."""
        index = max(len(self._entries) - count, self._start)
        return self._entries[index - 1].position if index > self._start else self.base

    def _index(self, position: Position) -> int | None:
        """Return the index in the list at which the entries after `position` start; None if it cannot be continued."""
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
    """Return about how many bytes an entry takes in memory."""
    return 400 + 2 * len(entry.event.data) + len(entry.body)
