"""SSE_RING and SSE_RING_TTL of all processes on one namespace. Processes that differ trim each other's rings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

LIFE: Final = 180
"""Seconds that an entry of the record counts; a process adds one within two looks."""

AT_MOST: Final = 64
"""Entries that the record has."""

_LIVES_ON: Final = 2  # looks that have found a pair anew, so that it is no old process's last entry
_PAIR: Final = re.compile(rb"([0-9]{1,12}) ([0-9]{1,12})")
_ID: Final = re.compile(rb"([0-9]{1,16})-([0-9]{1,16})")
_Time = tuple[int, int]  # an entry's id: milliseconds of Redis's clock, and a number


class Peers:
    """A process's knowledge of others, by their entries in the record; `mine` is its own SSE_RING and SSE_RING_TTL."""

    def __init__(self, mine: tuple[int, int]) -> None:
        self._mine = mine
        self._seen: dict[tuple[int, int], _Time] | None = None  # the newest entry of each pair, at the last look
        self._anew: Counter[tuple[int, int]] = Counter()  # how many looks have found a new entry of a pair
        self._told: set[tuple[int, int]] = set()
        self.is_due = False
        """True if our pair has to be put into the record, because nobody has done so since the look before."""

    def look(self, entries: Sequence[Any]) -> list[tuple[int, int]]:
        """Take in the record's entries, newest first; return the pairs of others that are to be told of, each once.

        At the first look, that is a pair that is there while nobody has put ours there: so of many processes that
        start with a changed setting, the first one tells. Later it is a pair that goes on to come again: then both are
        in use, and not only until the old processes have gone.
        """
        newest = _newest(entries)
        seen, self._seen = self._seen, newest
        others = [pair for pair in newest if pair != self._mine and pair not in self._told]
        if seen is None:
            self.is_due = self._mine not in newest
            found = others if self.is_due else []
        else:
            self.is_due = newest.get(self._mine) == seen.get(self._mine)
            self._anew.update(pair for pair in others if newest[pair] > seen.get(pair, newest[pair]))
            found = [pair for pair in others if self._anew[pair] >= _LIVES_ON]
        self._told.update(found)
        return found

    def added(self, id: bytes) -> None:
        """Take note of the id of the entry with which ours was put into the record."""
        if self._seen is not None and (time := _time(id)):
            self._seen[self._mine] = time


def _newest(entries: Sequence[Any]) -> dict[tuple[int, int], _Time]:
    """The newest entry of each pair of settings, by its id; entries that others wrote by hand are passed over."""
    newest: dict[tuple[int, int], _Time] = {}
    oldest = 0
    for id, fields in entries:
        time, pair = _time(id), _PAIR.fullmatch(fields[1]) if len(fields) == 2 else None
        if not time or not pair:
            continue
        oldest = oldest or time[0] - LIFE * 1000
        if time[0] >= oldest:
            newest.setdefault((int(pair[1]), int(pair[2])), time)
    return newest


def _time(id: bytes) -> _Time | None:
    parts = _ID.fullmatch(id)
    return (int(parts[1]), int(parts[2])) if parts else None
