"""Presence in this process's own memory. It does what presence.lua does in Redis, step by step."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from sse.errors import StoreUnavailable
from sse.stores.base import nonce
from sse.stores.presence import (
    ABSENCE_SECONDS,
    KEPT_SECONDS,
    RECORD_SECONDS,
    Attendance,
    Outcome,
    PresenceStore,
    Report,
    is_client,
    sub_of,
)


class _Record:
    """The connections of one worker, by key, and the number of its last report."""

    __slots__ = ("connections", "ends_at", "number")

    def __init__(self) -> None:
        self.number = 0
        self.connections: dict[str, int] = {}
        self.ends_at = 0.0


class _Room:
    """The presence of one channel."""

    def __init__(self) -> None:
        self.origin = nonce()[:16]
        self.records: dict[str, _Record] = {}
        self.sums: Counter[str] = Counter()
        self.leaving: dict[str, float] = {}
        """The subjects without a connection, each with the time when it has left."""
        self.reported_at = 0.0
        self.joined: list[str] = []

    def set(self, record: _Record, key: str, value: int, now: float) -> None:
        """Set the number of connections of one key in a record."""
        before = record.connections.pop(key, 0)
        if value:
            record.connections[key] = value
        is_elsewhere = is_client(key) and any(
            key in other.connections for other in self.records.values() if other is not record
        )
        if value == before or is_elsewhere:
            return
        sub = sub_of(key)
        self.sums[sub] += value - before
        if not self.sums[sub]:
            del self.sums[sub]
            if sub:
                self.leaving[sub] = now + ABSENCE_SECONDS
        elif sub and self.sums[sub] == value - before and self.leaving.pop(sub, None) is None:
            self.joined.append(sub)

    def remove(self, name: str, now: float) -> None:
        """Remove a record with its connections."""
        record = self.records[name]
        for key in list(record.connections):
            self.set(record, key, 0, now)
        del self.records[name]

    def sweep(self, now: float, kept: str = "") -> None:
        """Remove the records that have ended, all but the one that is reported on."""
        for name in [name for name, record in self.records.items() if record.ends_at <= now and name != kept]:
            self.remove(name, now)

    def take_left(self, now: float) -> list[str]:
        """Return the subjects that have left, and forget them."""
        left = [sub for sub, at in self.leaving.items() if at <= now]
        if now - self.reported_at > RECORD_SECONDS / 2:
            # Nobody has reported for so long, so the workers were stopped. They are about to report again.
            self.leaving.update(dict.fromkeys(left, now + RECORD_SECONDS))
            return []
        for sub in left:
            del self.leaving[sub]
        return left


class MemoryPresence(PresenceStore):
    """The presence of the channels of a `MemoryStore`.

    :param clock: returns seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rooms: dict[str, _Room] = {}  # in the order of their last reports

    def report(self, reports: Sequence[Report]) -> list[Outcome | StoreUnavailable]:
        with self._lock:
            return [self._take(report, self._clock()) for report in reports]

    def count(self, channel: str) -> int:
        return self.read(channel).total

    def read(self, channel: str) -> Attendance:
        with self._lock:
            room = self._rooms.get(channel)
            if room is None:
                return Attendance(0, {})
            room.sweep(self._clock())
            return Attendance(room.sums.total(), {sub: count for sub, count in room.sums.items() if sub})

    def _take(self, report: Report, now: float) -> Outcome:
        self._drop_old(now)
        room = self._rooms.pop(report.channel, None)
        if room:
            self._rooms[report.channel] = room
        record = room.records.get(report.record) if room else None
        number = record.number if record else 0
        if report.number not in (number, number + 1) or (room and _is_late(report.record, room)):
            return Outcome(is_known=False, origin=room.origin if room else "")
        if room is None:
            room = self._rooms[report.channel] = _Room()
            room.reported_at = now
        if record is None:
            worker = _worker(report.record)
            for other in [name for name in room.records if _worker(name) == worker]:
                room.records[other].ends_at = 0.0
            record = room.records[report.record] = _Record()
        room.joined = []
        record.number, record.ends_at = report.number, now + RECORD_SECONDS
        for key, value in sorted(report.changes.items(), key=lambda change: change[1] == 0):
            room.set(record, key, value, now)
        if report.is_last:
            room.remove(report.record, now)
        room.sweep(now, report.record)
        left = room.take_left(now)
        room.reported_at = now
        is_quiet = report.origin not in ("", room.origin)
        return Outcome(True, room.origin, [] if is_quiet else room.joined, left, len(room.leaving))

    def _drop_old(self, now: float) -> None:
        """Drop the channels on which nobody has reported for long."""
        while self._rooms:
            channel, room = next(iter(self._rooms.items()))
            if room.reported_at > now - KEPT_SECONDS:
                return
            del self._rooms[channel]


def _worker(record: str) -> str:
    return record.rpartition(".")[0]


def _is_late(name: str, room: _Room) -> bool:
    """Return whether the same worker has begun a later record."""
    worker, _, count = name.rpartition(".")
    return any(int(other.rpartition(".")[2]) > int(count) for other in room.records if _worker(other) == worker)
