"""The store in this process's own memory, for development and for a service of one worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from sse.errors import StoreUnavailable, TooLarge
from sse.event import UNBORN, Entry, Event, Position, ResetReason
from sse.ring import Ring
from sse.stores.base import (
    ONCE_TTL,
    PAGE,
    PAGE_BYTES,
    RUN_BYTES,
    RUN_TTL,
    Feed,
    Page,
    Publication,
    Receipt,
    Receipts,
    Revocation,
    Standing,
    Store,
)
from sse.stores.memory_leases import MemoryLeases
from sse.stores.memory_presence import MemoryPresence
from sse.stores.memory_rings import MemoryRings
from sse.stores.refusals import conflict, ended

_SWEPT_AT_ONCE: Final = 100


class MemoryStore(Store):
    """A store of one process.

    :param ring: events that a ring keeps.
    :param ring_ttl: seconds that a ring outlives its last event.
    :param run_bytes: bytes that the ring of a run may hold.
    :param run_ttl: seconds that the ring of a run outlives its end.
    :param clock: returns seconds of a monotonic clock.
    """

    def __init__(
        self,
        *,
        ring: int,
        ring_ttl: int,
        run_bytes: int = RUN_BYTES,
        run_ttl: int = RUN_TTL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._rings = MemoryRings(ring, ring_ttl, clock)
        self._lock = self._rings.lock
        self._leases = MemoryLeases(self._rings, ring_ttl=ring_ttl, run_bytes=run_bytes, run_ttl=run_ttl)
        self.leases = self._leases
        self.presence = MemoryPresence(clock)
        self._once: dict[tuple[str, str], tuple[Entry, float]] = {}  # by channel and key: the entry, and its expiry
        self._revoked: list[tuple[Revocation, float]] = []
        self._revocation_count = 0

    def publish_each(self, calls: Sequence[Sequence[Publication]]) -> list[Receipts | Exception]:
        with self._lock:
            self._sweep()
            return [self._publish_all(publications) for publications in calls]

    def standing(self, channels: Sequence[str], *, prolong: bool = False) -> list[Standing | StoreUnavailable]:
        with self._lock:
            return [self._standing(channel, prolong) for channel in channels]

    def ensure(self, channels: Sequence[str]) -> list[Position | StoreUnavailable]:
        with self._lock:
            self._sweep()
            return [self._ensure(channel) for channel in channels]

    def read(
        self, positions: Sequence[tuple[str, Position]], limit: int = PAGE, max_bytes: int = PAGE_BYTES
    ) -> list[Page | StoreUnavailable]:
        pages: list[Page | StoreUnavailable] = []
        with self._lock:
            for channel, position in positions:
                page = self._page(self._rings.living(channel), position, limit, max_bytes)
                max_bytes -= sum(len(entry.event.data) for entry in page.entries)
                pages.append(page)
        return pages

    def before(self, channels: Sequence[tuple[str, int]]) -> list[Position | StoreUnavailable | None]:
        with self._lock:
            rings = [(self._rings.living(channel), count) for channel, count in channels]
            return [ring.before(count) if ring is not None else None for ring, count in rings]

    def revoke(self, what: str, ttl: int) -> None:
        with self._lock:
            now = self._clock()
            self._revocation_count += 1
            item = Revocation(f"{self._revocation_count:016}", time.time(), what)
            self._revoked = [(item, end) for item, end in self._revoked if end > now] + [(item, now + ttl)]

    def revoked(self, after: str = "") -> list[Revocation]:
        with self._lock:
            return [item for item, _ in self._revoked if item.id > after]

    def feed(self) -> Feed:
        with self._lock:
            return self._rings.feed()

    def close(self) -> None:
        with self._lock:
            self._rings.close_feeds()

    def _publish_all(self, publications: Sequence[Publication]) -> Receipts | Exception:
        try:
            self._check_keys(publications)
            if self._leases.has_runs:
                self._check_ends(publications)
            return [self._publish(publication) for publication in publications]
        except Exception as error:  # noqa: BLE001 - raised for its own call
            return error

    def _check_keys(self, publications: Sequence[Publication]) -> None:
        used: dict[tuple[str, str], Event] = {}
        for channel, event, key in publications:
            if key:
                done = self._stored_with(channel, key)
                if (done.event if done else used.setdefault((channel, key), event)) != event:
                    raise conflict(channel)

    def _check_ends(self, publications: Sequence[Publication]) -> None:
        for channel, _, key in publications:
            if self._leases.has_ended(channel) and not (key and self._stored_with(channel, key)):
                raise ended(channel)

    def _publish(self, publication: Publication) -> Receipt | TooLarge:
        channel, event, key = publication
        done = self._stored_with(channel, key) if key else None
        if done:
            return Receipt(done.position, "again")
        is_run = self._leases.has_runs and self._leases.count(channel, event)
        if isinstance(is_run, TooLarge):
            return is_run
        ring = self._rings.ensure(channel)
        entry = self._rings.append(channel, ring, event)
        if not is_run:
            self._rings.prolong(ring)
        if key:
            self._once.pop((channel, key), None)  # so that the keys are in the order of their expiry
            self._once[channel, key] = (entry, self._clock() + ONCE_TTL)
        return Receipt(entry.position, "new")

    def _standing(self, channel: str, prolong: bool) -> Standing:
        ring = self._rings.living(channel)
        run = self._leases.run(channel) if self._leases.has_runs else None
        if prolong and ring is not None and run is None:
            self._rings.prolong(ring)
        return Standing(ring.newest if ring is not None else None, run)

    def _ensure(self, channel: str) -> Position:
        ring = self._rings.living(channel)
        run = self._leases.run(channel) if ring is None else None
        if run is not None and run.ended_at is not None:
            return run.ended_at
        return self._rings.ensure(channel).newest

    def _stored_with(self, channel: str, key: str) -> Entry | None:
        """Return the entry that was stored with this key; None if there is none, or none that is remembered."""
        entry, expiry = self._once.get((channel, key), (None, 0.0))
        return entry if expiry > self._clock() else None

    def _sweep(self) -> None:
        """Delete some of the rings and keys that have expired; to delete all in one call would take long."""
        now = self._clock()
        self._rings.sweep(now)
        if not self._once:
            return
        for key in [key for key, (_, expiry) in islice(self._once.items(), _SWEPT_AT_ONCE) if expiry <= now]:
            del self._once[key]

    @staticmethod
    def _page(ring: Ring | None, position: Position, limit: int, max_bytes: int) -> Page:
        if ring is None:
            return Page([], reason="unknown")
        entries = ring.after(position, limit)
        if entries is not None:
            for index, entry in enumerate(entries):
                if max_bytes <= 0:
                    return Page(entries[:index], more=True)
                max_bytes -= len(entry.event.data)
            return Page(entries, more=len(entries) == limit)
        trimmed = position != UNBORN and position.offset < ring.base.offset
        reason: ResetReason = "trimmed" if trimmed else "diverged"
        return Page([], reason=reason, missed=ring.newest.offset - position.offset if trimmed else None)
