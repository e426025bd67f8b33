"""Presence in this process: its connections to the channels of SSE_PRESENCE, and its reports on them to the store.

A connection `enter`s, and is given a function to call at its end. Both only add to a queue, so that they never wait,
and may come from any thread, from the garbage collector too. The thread `sse-presence` works in turns of 0.25 s:

1. It takes the queue into the table of connections, which is the truth for this process.
2. It reports to the store what has changed since the last report, for each channel, very many changes in a round trip.
   A connection that has come and gone meanwhile is not reported.
3. It renews the records of channels where nothing has changed for 5 s.
4. It passes on who has joined or left, by the store's answer.

If a report fails, or the store no longer has the record as it was reported, the channel begins a new record with all
its connections: see `sse.stores.presence`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Literal

from sse.config import matches
from sse.errors import NotFound, StoreUnavailable
from sse.log import warn
from sse.spread import PAUSE
from sse.stores.base import nonce
from sse.stores.presence import (
    CHANGES_AT_ONCE,
    RENEW_SECONDS,
    Attendance,
    Outcome,
    PresenceStore,
    Report,
    connection_key,
    is_client,
)
from sse.work.calls import Calls

LINGER: Final = 10.0
"""Seconds for which a client still counts after the answer to its poll, because it is about to ask again."""

MAX_SUB: Final = 256
"""The most characters of a subject. A connection whose subject is longer counts as anonymous."""

_TURN: Final = 0.25  # seconds between two turns
_AGAIN: Final = 1.0  # seconds until a report that has failed is repeated
_REPORTS_AT_ONCE: Final = 100
_CHANGES_IN_ALL: Final = 2000  # in the reports of one round trip
_TAKEN_AT_ONCE: Final = 500  # connections that come or go, between two pauses
_MOST_TRIPS: Final = 1000  # round trips in one turn

Happening = Literal["joined", "left"]
FindCall = Callable[[Happening, str, str], Callable[[], object] | None]
"""Returns the function to call when a subject has joined or left a channel; None if the app has none."""


class Stay:
    """The stay of one connection. To call it ends the stay; a second call does nothing."""

    __slots__ = ("_queue", "channels", "has_ended", "is_in", "key", "lingers")

    def __init__(self, queue: deque[Stay], channels: Sequence[str], key: str, *, lingers: bool) -> None:
        self._queue = queue
        self.channels = channels
        self.key = key
        self.lingers = lingers
        self.is_in = False
        """Whether it is in the table of connections."""
        self.has_ended = False
        queue.append(self)

    def __call__(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            self._queue.append(self)  # atomic, and without a lock: the garbage collector may call this anywhere


class _Room:
    """The connections of this process to one channel, and what the store knows of them."""

    __slots__ = (
        *("connections", "dirty", "has_more", "is_reported", "leaving"),
        *("number", "origin", "record", "reported_at", "told"),
    )

    def __init__(self, record: str, now: float) -> None:
        self.connections: dict[str, int] = {}
        """The number of connections, by key."""
        self.told: dict[str, int] = {}
        """The numbers that the store has, by key."""
        self.dirty: dict[str, None] = {}
        """The keys whose number may differ from the one that was told."""
        self.origin = ""
        self.leaving = 0
        """The subjects that may have left soon. One of the workers has to ask."""
        self.has_more = False
        self.is_reported = False
        """Whether the store may know of this room."""
        self.reported_at = now
        self.begin(record)

    def begin(self, record: str) -> None:
        """Begin a new record, in which everything has to be told again."""
        self.record, self.number = record, 0
        self.told = {}
        self.dirty = dict.fromkeys(self.connections)

    @property
    def is_over(self) -> bool:
        """True if there is nothing to tell or to ask any more."""
        return not (self.connections or self.dirty or self.leaving or self.has_more)

    def add(self, key: str, by: int) -> None:
        number = self.connections.pop(key, 0) + by
        if number > 0:
            self.connections[key] = number
        self.dirty[key] = None

    def report(self, channel: str) -> Report:
        """Return the next report."""
        changes: dict[str, int] = {}
        while self.dirty and len(changes) < CHANGES_AT_ONCE:
            key, _ = self.dirty.popitem()
            number = self.connections.get(key, 0)
            if is_client(key):
                number = min(number, 1)
            if number != self.told.get(key, 0):
                changes[key] = number
        is_last = not changes and self.is_over
        return Report(channel, self.record, self.number + 1, changes, self.origin, is_last)

    def note(self, report: Report, outcome: Outcome) -> None:
        """Note that the store has taken a report."""
        self.number = report.number
        for key, number in report.changes.items():
            if number:
                self.told[key] = number
            else:
                self.told.pop(key, None)
        self.leaving, self.has_more = outcome.leaving, outcome.has_more
        if not (self.origin and self.dirty):  # while it is told again after a loss, it keeps the origin that it knew
            self.origin = outcome.origin


class Presence:
    """Who listens on the channels of SSE_PRESENCE. Its threads begin with the first connection.

    :param patterns: of SSE_PRESENCE.
    :param find_call: finds the function to call when somebody has joined or left, if the store tells this process. The
        functions are called one after another, in a thread of their own, so they may wait.
    :param most_lingering: clients that may count on after the answer to a poll.
    """

    def __init__(
        self,
        store: PresenceStore,
        patterns: Sequence[str],
        find_call: FindCall | None = None,
        *,
        most_lingering: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._patterns = patterns
        self._find_call = find_call
        self._most_lingering = most_lingering
        self._clock = clock
        self._queue: deque[Stay] = deque()
        self._lingering: deque[tuple[float, Stay]] = deque()
        self._rooms: dict[str, _Room] = {}  # in the order of their last reports
        self._due: dict[str, None] = {}  # the channels to report on in this turn
        self._failed: dict[str, None] = {}  # the channels whose report has failed
        self._retry_at = 0.0
        self._away_until = 0.0  # no report is sent before that
        self._worker = nonce()[:12]
        self._records = itertools.count(1)
        self._lock = threading.Lock()  # never held while waiting
        self._turn = threading.Lock()  # whoever has it makes a turn; no other call but `close` waits for it
        self._calls = Calls("sse-presence-hooks", "@sse.joined and @sse.left")
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def watched(self, channels: Sequence[str]) -> list[str]:
        """Return those of the channels whose presence is kept."""
        return [channel for channel in channels if any(matches(pattern, channel) for pattern in self._patterns)]

    def enter(self, channels: Sequence[str], sub: str, client: str = "", *, lingers: bool = False) -> Stay:
        """Note a connection to channels whose presence is kept. Return the function to call at its end.

        :param sub: the subject; empty if it is anonymous.
        :param client: the id of the page or program. All connections of a client of one subject count as one.
        :param lingers: whether a client counts for LINGER seconds after the end, as for a poll.
        """
        if sub and (len(sub) > MAX_SUB or not _is_text(sub)):
            warn("presence: a subject of %d characters counts as anonymous; the most are %d", len(sub), MAX_SUB)
            sub = ""
        stay = Stay(self._queue, channels, connection_key(sub, client), lingers=lingers and bool(client))
        if self._thread is None:
            self._start()
        return stay

    def count(self, channel: str) -> int:
        """Return the number of connections to a channel, over all workers.

        :raises NotFound: unless SSE_PRESENCE matches the channel.
        :raises StoreUnavailable: if the store does not answer.
        """
        self._prepare(channel)
        return self._store.count(channel)

    def read(self, channel: str) -> Attendance:
        """Return who is connected to a channel, over all workers. Errors are those of `count`."""
        self._prepare(channel)
        return self._store.read(channel)

    def turn(self) -> None:
        """Take what has come, and report it. If another thread is about that, do nothing."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            self._take_queue()
            self._report_all()
        finally:
            self._turn.release()

    def close(self) -> None:
        """End the threads. All connections of this process have gone: tell the store, if it answers at once."""
        self._closed.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(5)
        with self._turn:
            rooms, self._rooms = self._rooms, {}
            last = [
                Report(channel, room.record, room.number + 1, {}, room.origin, is_last=True)
                for channel, room in rooms.items()
                if room.is_reported
            ]
            try:
                for start in range(0, len(last), _REPORTS_AT_ONCE):
                    self._store.report(last[start : start + _REPORTS_AT_ONCE])
            except StoreUnavailable as error:
                warn("presence: this process's connections count for some seconds more: %s", error)
        self._calls.close()

    def _prepare(self, channel: str) -> None:
        if not self.watched([channel]):
            raise NotFound(
                f"no presence is kept for channel {channel[:128]}", "have SSE_PRESENCE match it", code="no_presence"
            )
        if self._thread and (self._queue or self._due) and not self._failed:
            self.turn()  # so that this process sees what it has done

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="sse-presence", daemon=True)
        with self._lock:
            if self._thread or self._closed.is_set():
                return
            self._thread = thread
        try:
            thread.start()
        except RuntimeError as error:  # the process cannot start another thread now; the next connection tries again
            self._thread = None
            warn("presence: no connection of this process is reported: %s", error)

    def _run(self) -> None:
        while not self._closed.wait(_TURN):
            try:
                self.turn()
            except Exception:  # noqa: BLE001 - logged; the thread has to run as long as the process
                warn("presence: a turn failed; the next one is in %g s", _TURN, exc_info=True)

    # The table

    def _take_queue(self) -> None:
        now = self._clock()
        for count in range(1, len(self._queue) + 1):  # not those that come meanwhile
            stay = self._queue.popleft()
            if not stay.is_in:
                stay.is_in = True
                self._add(stay, 1, now)
            elif stay.lingers and len(self._lingering) < self._most_lingering:
                self._lingering.append((now + LINGER, stay))
            else:
                self._add(stay, -1, now)
            if count % _TAKEN_AT_ONCE == 0:
                time.sleep(PAUSE)
        while self._lingering and self._lingering[0][0] <= now:
            self._add(self._lingering.popleft()[1], -1, now)

    def _add(self, stay: Stay, by: int, now: float) -> None:
        for channel in stay.channels:
            room = self._rooms.get(channel)
            if room is None:
                room = self._rooms[channel] = _Room(self._new_record(), now)
            room.add(stay.key, by)
            self._due[channel] = None

    def _new_record(self) -> str:
        return f"{self._worker}.{next(self._records)}"

    # The reports

    def _report_all(self) -> None:
        now = self._clock()
        if now < self._away_until:
            return
        if now >= self._retry_at:
            self._due.update(self._failed)
            self._failed = {}
        for channel, room in self._rooms.items():
            if room.reported_at > now - RENEW_SECONDS + _TURN:
                break
            self._due[channel] = None
        for _ in range(_MOST_TRIPS):
            if not (reports := self._next_reports()):
                break
            try:
                outcomes = self._store.report(reports)
            except StoreUnavailable as error:
                for report in reports:
                    self._fail(report.channel, error)
                self._away_until = self._retry_at
                break
            except BaseException:
                for report in reports:  # it is not known what the store has taken
                    self._rooms[report.channel].begin(self._new_record())
                    self._due[report.channel] = None
                raise
            for report, outcome in zip(reports, outcomes, strict=True):
                self._note(report, outcome)
            if self._due:
                time.sleep(PAUSE)

    def _next_reports(self) -> list[Report]:
        reports: list[Report] = []
        left = _CHANGES_IN_ALL
        while self._due and left > 0 and len(reports) < _REPORTS_AT_ONCE:
            channel = next(iter(self._due))
            del self._due[channel]
            room = self._rooms.get(channel)
            if room is None or channel in self._failed:
                continue
            report = room.report(channel)
            if report.is_last and not room.is_reported:
                del self._rooms[channel]  # its connections have come and gone
                continue
            room.is_reported = True
            left -= len(report.changes)
            reports.append(report)
        return reports

    def _note(self, report: Report, outcome: Outcome | StoreUnavailable) -> None:
        channel, now = report.channel, self._clock()
        if isinstance(outcome, StoreUnavailable):
            self._fail(channel, outcome)
            return
        room = self._rooms.pop(channel)
        if not outcome.is_known:
            room.begin(self._new_record())
        else:
            room.note(report, outcome)
            if report.is_last and not room.is_over:
                room.begin(self._new_record())
        if not (outcome.is_known and report.is_last and room.is_over):
            room.reported_at = now
            self._rooms[channel] = room  # at the end of the order
            if room.dirty or room.has_more:
                self._due[channel] = None
        self._pass_on("joined", channel, outcome.joined)
        self._pass_on("left", channel, outcome.left)

    def _fail(self, channel: str, error: StoreUnavailable) -> None:
        """Have a channel told again in whole, because it is not known what the store has taken."""
        warn("presence waits, and what is known of other workers is old: %s", error)
        room = self._rooms.pop(channel)
        room.begin(self._new_record())
        room.reported_at = self._clock()
        self._rooms[channel] = room
        self._failed[channel] = None
        self._retry_at = room.reported_at + _AGAIN

    def _pass_on(self, happening: Happening, channel: str, subs: Sequence[str]) -> None:
        for sub in subs:
            try:
                call = self._find_call(happening, channel, sub) if self._find_call else None
            except Exception:  # noqa: BLE001 - logged; a converter of the app failed
                warn("@sse.%s: the function for channel %s was not found", happening, channel, exc_info=True)
            else:
                if call:
                    self._calls.put(call)


def _is_text(text: str) -> bool:
    """Return whether a string can be written in UTF-8, which a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
