"""The settings SSE_RING and SSE_RING_TTL of all processes that share a namespace in Redis.

Each publisher trims a ring to its own settings, so processes with different ones trim each other's rings. To find that
out, each process looks at a record, a stream in Redis, about once a minute. A process with readers adds the pair of its
settings there, unless another process has added the same pair since its last look.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

ENTRY_TTL: Final = 180
"""Seconds for which an entry of the record counts. A pair that is in use is added at least at every second look."""

MAX_ENTRIES: Final = 64
"""The most entries that the record has."""

_IN_USE: Final = 2  # looks that found a new entry of a pair; one entry may be the last of a process that has ended
_PAIR: Final = re.compile(rb"([0-9]{1,12}) ([0-9]{1,12})")
_ID: Final = re.compile(rb"([0-9]{1,16})-([0-9]{1,16})")
_Time = tuple[int, int]  # an entry's id: milliseconds of Redis's clock, and a number


class Peers:
    """The pairs of settings that one process has seen in the record.

    :param mine: its own SSE_RING and SSE_RING_TTL.
    """

    def __init__(self, mine: tuple[int, int]) -> None:
        self._mine = mine
        self._seen: dict[tuple[int, int], _Time] | None = None  # the newest entry of each pair, at the last look
        self._new_entries: Counter[tuple[int, int]] = Counter()  # looks that found a new entry of a pair
        self._reported: set[tuple[int, int]] = set()
        self.is_due = False
        """True if this process has to add its pair to the record: no process has done so since the look before."""

    def look(self, entries: Sequence[Any]) -> list[tuple[int, int]]:
        """Take in the entries of the record; return the pairs to warn of. Each pair is returned once.

        At the first look, these are all other pairs, if no process has added ours. So of many processes that start with
        a changed setting, only the first one warns. At later looks, these are pairs that are added again and again:
        then both pairs are in use for good, and not only until the old processes have ended.

        :param entries: as XREVRANGE returns them, newest first.
        """
        newest = _newest(entries)
        seen, self._seen = self._seen, newest
        others = [pair for pair in newest if pair != self._mine and pair not in self._reported]
        if seen is None:
            self.is_due = self._mine not in newest
            found = others if self.is_due else []
        else:
            self.is_due = newest.get(self._mine) == seen.get(self._mine)
            self._new_entries.update(pair for pair in others if newest[pair] > seen.get(pair, newest[pair]))
            found = [pair for pair in others if self._new_entries[pair] >= _IN_USE]
        self._reported.update(found)
        return found

    def added(self, id: bytes) -> None:
        """Take note of the id of the entry by which this process has added its pair."""
        if self._seen is not None and (time := _time(id)):
            self._seen[self._mine] = time


def _newest(entries: Sequence[Any]) -> dict[tuple[int, int], _Time]:
    """Return the id of the newest entry of each pair of settings. Entries in another form are passed over."""
    newest: dict[tuple[int, int], _Time] = {}
    oldest = 0
    for id, fields in entries:
        time, pair = _time(id), _PAIR.fullmatch(fields[1]) if len(fields) == 2 else None
        if not time or not pair:
            continue
        oldest = oldest or time[0] - ENTRY_TTL * 1000
        if time[0] >= oldest:
            newest.setdefault((int(pair[1]), int(pair[2])), time)
    return newest


def _time(id: bytes) -> _Time | None:
    parts = _ID.fullmatch(id)
    return (int(parts[1]), int(parts[2])) if parts else None
