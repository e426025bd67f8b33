"""The leases of sources and runs in this process's own memory, and the markers of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sse.errors import StoreUnavailable, TooLarge
from sse.event import End, EndReason, Event, Position
from sse.stores.base import Run
from sse.stores.leases import (
    DELIVERED,
    LEASE_SECONDS,
    MAX_WAIT,
    SOURCE_TTL,
    STEADY_SECONDS,
    Answer,
    Ask,
    Leases,
    Start,
    State,
    backoff,
    weight,
)
from sse.stores.memory_rings import ExpiringRing, MemoryRings, Sweep
from sse.stores.refusals import incomplete, lease_lost, over_bound, stopped, too_large


@dataclass(slots=True)
class _Marker:
    """What is known of a run. `key` and `stored_at` are those of its newest write, so that a repetition is found."""

    token: str
    anchor: Position
    expires: float
    written: int = 0
    held: int = 0
    key: str = ""
    stored_at: Position | None = None
    end: EndReason | None = None
    ended_at: Position | None = None
    before_end: Position | None = None


@dataclass(slots=True)
class _Source:
    """What is known of a source. `workers` has the expiry of each worker that listens."""

    expires: float = 0.0
    state: State | None = None
    since: float = 0.0  # when this state began, or the holder took the lease
    attempts: int = 0
    due: float = 0.0  # when the lease can be taken
    writer: str = ""  # the token, the key, the position and the time of the newest write
    key: str = ""
    stored_at: Position | None = None
    written: float = 0.0
    workers: dict[str, float] = field(default_factory=dict)


class MemoryLeases(Leases):
    """The leases and markers of the memory store. All that is here is guarded by the lock of `rings`.

    :param ring_ttl: seconds that a marker outlives its ring.
    :param run_bytes: bytes that the ring of a run may hold.
    :param run_ttl: seconds that the ring of a run outlives its end.
    """

    def __init__(self, rings: MemoryRings, *, ring_ttl: int, run_bytes: int, run_ttl: int) -> None:
        self._rings = rings
        self._lock = rings.lock
        self._clock = rings.clock
        self._run_bytes = run_bytes
        self._run_ttl = run_ttl
        self._source_ttl = max(SOURCE_TTL, ring_ttl)
        self._life = run_ttl + ring_ttl  # seconds that a live run's ring and marker outlive its last renewal
        self._leases: dict[str, tuple[str, float]] = {}  # by channel: the token, and the expiry
        self._markers: dict[str, _Marker] = {}
        self._sources: dict[str, _Source] = {}
        self._sweeping = Sweep(rings.clock())

    def start(self, channel: str, token: str, *, restart: bool = False) -> Start:
        with self._lock:
            self._sweep()
            marker, ring = self._marker(channel), self._rings.living(channel)
            if marker is not None:
                if marker.token == token:
                    return "started"  # the call is repeated
                if not restart:
                    return "exists"
            elif self._holder(channel) is not None or (ring is not None and ring.newest.offset):
                return "refused"
            # An anchor that subscribers wait at stays. With a ring of an earlier run, they are to hear a reset.
            anchor = ring.base if ring is not None and marker is None else None
            ring = self._rings.begin(channel, None, anchor)
            self._markers[channel] = marker = _Marker(token, ring.base, 0.0)
            self._hold(channel, marker, ring)
            self._rings.announce_state(channel)
            return "started"

    def write(self, channel: str, token: str, event: Event, *, key: str, written: int | None = None) -> Position:
        with self._lock:
            self._sweep()
            if written is None:
                return self._write_of_source(channel, token, event, key)
            return self._write_of_run(channel, token, event, key, written)

    def end(self, channel: str, reason: EndReason, *, token: str | None = None) -> Position | None:
        with self._lock:
            self._sweep()
            marker = self._marker(channel)
            if marker is None or marker.end is not None or (token is not None and token != marker.token):
                return None
            if token is None and reason == "lost" and self._holder(channel) is not None:
                return None
            ring = self._rings.living(channel)
            if ring is None:
                ring = self._rings.begin(channel, None)
            marker.end, marker.before_end = reason, ring.newest
            marker.ended_at = self._rings.append(channel, ring, End(channel, reason)).position
            self._leases.pop(channel, None)
            ring.expires = self._clock() + self._run_ttl
            marker.expires = self._clock() + self._life
            self._rings.announce_state(channel)
            return marker.ended_at

    def renew(self, held: Sequence[tuple[str, str]]) -> list[bool | StoreUnavailable]:
        with self._lock:
            return [self._renew(channel, token) for channel, token in held]

    def ask(self, questions: Sequence[Ask]) -> list[Answer | StoreUnavailable]:
        with self._lock:
            self._sweep()
            return [self._answer(question) for question in questions]

    def release(self, channel: str, token: str, *, wait: float = 0.0) -> None:
        with self._lock:
            if self._holder(channel) != token or self._marker(channel) is not None:
                return
            del self._leases[channel]
            source = self._source(channel)
            source.due = self._clock() + min(wait, MAX_WAIT)
            if not wait:
                source.attempts = max(source.attempts - 1, 0)

    def note(self, channel: str, token: str, state: State) -> None:
        with self._lock:
            if self._holder(channel) != token or self._marker(channel) is not None:
                return
            source = self._source(channel)
            if source.state != state:
                source.state, source.since = state, self._clock()
                self._rings.announce_state(channel)

    def states(self, channels: Sequence[str]) -> list[State | StoreUnavailable | None]:
        with self._lock:
            now = self._clock()
            sources = [self._sources.get(channel) for channel in channels]
            return [source.state if source is not None and source.expires > now else None for source in sources]

    def ages(self, channels: Sequence[str]) -> list[float | StoreUnavailable | None]:
        with self._lock:
            return [self._age(channel) for channel in channels]

    # For the store, which holds the lock:

    def run(self, channel: str) -> Run | None:
        """Return the marker of a channel's run, or None if it has none."""
        marker = self._marker(channel)
        if marker is None:
            return None
        is_held = self._holder(channel) is not None
        return Run(marker.anchor, marker.end, marker.ended_at, marker.before_end, is_held)

    @property
    def has_runs(self) -> bool:
        """Whether any channel has a marker."""
        return bool(self._markers)

    def has_ended(self, channel: str) -> bool:
        """Return whether a channel's run has ended."""
        marker = self._marker(channel)
        return marker is not None and marker.end is not None

    def count(self, channel: str, event: Event) -> bool | TooLarge:
        """Count another publisher's event for the ring of a run; return False if there is no run.

        The result is an error if the event does not fit.
        """
        marker = self._marker(channel)
        if marker is None:
            return False
        size = weight(event)
        if marker.held + size > self._run_bytes:
            return too_large(channel, size, marker.held, self._run_bytes)
        marker.held += size
        return True

    def _write_of_run(self, channel: str, token: str, event: Event, key: str, written: int) -> Position:
        marker, ring = self._marker(channel), self._rings.living(channel)
        if marker is None:
            raise incomplete(channel)
        if marker.token == token and marker.key == key and marker.stored_at is not None:
            return marker.stored_at
        if marker.token != token or marker.end is not None:
            raise stopped(channel)
        if self._holder(channel) is None and ring is not None:
            self._hold(channel, marker, ring)
        if marker.written != written or ring is None or ring.base != marker.anchor:
            raise incomplete(channel)
        if marker.held + weight(event) > self._run_bytes:
            raise over_bound(channel, weight(event), marker.held, self._run_bytes)
        marker.key, marker.stored_at = key, self._rings.append(channel, ring, event).position
        marker.written += weight(event)
        marker.held += weight(event)
        return marker.stored_at

    def _write_of_source(self, channel: str, token: str, event: Event, key: str) -> Position:
        source = self._source(channel)
        if source.key == key and source.stored_at is not None:
            return source.stored_at
        if self._holder(channel) != token or self._marker(channel) is not None:
            raise lease_lost(channel)
        ring = self._rings.ensure(channel)
        source.stored_at = self._rings.append(channel, ring, event).position
        if source.writer != token:
            source.due = self._clock() + backoff(source.attempts - DELIVERED)
        source.writer, source.key, source.written = token, key, self._clock()
        self._rings.prolong(ring)
        return source.stored_at

    def _renew(self, channel: str, token: str) -> bool:
        marker, ring = self._marker(channel), self._rings.living(channel)
        if marker is None or marker.token != token or marker.end is not None or ring is None:
            return False
        self._hold(channel, marker, ring)
        return True

    def _hold(self, channel: str, marker: _Marker, ring: ExpiringRing) -> None:
        """Set the lease of a live run, and begin the time to live of its ring and marker anew."""
        now = self._clock()
        self._leases[channel] = (marker.token, now + LEASE_SECONDS)
        marker.expires = ring.expires = now + self._life

    def _answer(self, question: Ask) -> Answer:
        channel, worker, listens, token = question
        now, source = self._clock(), self._source(question.channel)
        source.workers.pop(worker, None)
        if listens:
            source.workers[worker] = now + LEASE_SECONDS
        source.workers = {name: expiry for name, expiry in source.workers.items() if expiry > now}
        is_held = token is not None and self._take(channel, token, source)
        is_taken = self._holder(channel) is not None
        if not source.due:  # nobody has ever taken it, so there is nothing to remember
            source.expires = now + LEASE_SECONDS
        return Answer(is_held, len(source.workers), source.attempts, source.state, is_taken)

    def _age(self, channel: str) -> float | None:
        now, source = self._clock(), self._sources.get(channel)
        if source is None or source.expires <= now or source.stored_at is None:
            return None
        return 0.0 if source.writer == self._holder(channel) else now - source.written

    def _take(self, channel: str, token: str, source: _Source) -> bool:
        """Renew the lease of a source if it holds this token, or else take it if it is free and due."""
        now, holder = self._clock(), self._holder(channel)
        if self._marker(channel) is not None or (holder is not None and holder != token):
            return False
        if holder is None:
            if now < source.due:
                return False
            source.attempts += 1
            source.due = now + backoff(source.attempts)
            source.since = now
        elif source.state == "up" and now - source.since >= STEADY_SECONDS:
            source.attempts, source.due = 0, now
        self._leases[channel] = (token, now + LEASE_SECONDS)
        return True

    def _holder(self, channel: str) -> str | None:
        """Return the token that holds a channel's lease; None if the lease is free."""
        token, expiry = self._leases.get(channel, (None, 0.0))
        return token if expiry > self._clock() else None

    def _marker(self, channel: str) -> _Marker | None:
        marker = self._markers.get(channel)
        return marker if marker is not None and marker.expires > self._clock() else None

    def _source(self, channel: str) -> _Source:
        """Return the record of a source, after creating it if there is none; begin its time to live anew."""
        now, source = self._clock(), self._sources.get(channel)
        if source is None or source.expires <= now:
            source = self._sources[channel] = _Source()
        source.expires = now + self._source_ttl
        return source

    def _sweep(self) -> None:
        """Delete some of what has expired."""
        now = self._clock()
        self._rings.sweep(now)
        for channel in self._sweeping.names(now, self._leases, self._markers, self._sources):
            if channel in self._leases and self._leases[channel][1] <= now:
                del self._leases[channel]
            if channel in self._markers and self._markers[channel].expires <= now:
                del self._markers[channel]
            if channel in self._sources and self._sources[channel].expires <= now:
                del self._sources[channel]
