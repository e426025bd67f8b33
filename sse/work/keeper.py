"""The keeper: one thread that renews the leases of all writers of this process, and ends the runs of dead processes.

A run is lost if nobody holds its lease although its process had the time to renew it. The lease itself lasts 6 s, by
Redis's clock. Then three things keep the end `lost` away from a run whose process lives:

- The store has answered this process for 6 s without interruption. After an outage, all leases may have run out.
- Another 1.5 s pass, since a store that was merely slow answers this question and the renewal at the same moment.
- The store decides in one step, and only while the lease is free. So a renewal that comes first keeps the run.

A process that renews too late finds the run ended at its next step, and writes no more.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from sse.errors import StoreUnavailable
from sse.log import warn
from sse.stores import Store
from sse.stores.leases import LEASE_SECONDS, RENEW_SECONDS
from sse.work.writer import Writer

_LOST_AFTER: Final = 1.5  # seconds between the news that nobody holds a run's lease and its end
_AGAIN: Final = 0.5  # seconds before the next attempt, if the store has not answered
_MAX_ORPHANED: Final = 1000  # the hub names further ones again


class Keeper:
    """Renews leases every 2 s, all of them in one call. Its thread ends when it has nothing to keep.

    :param answering_since: returns since when the store has answered without interruption, by `clock`.
    :param clock: returns seconds of a monotonic clock.
    """

    def __init__(
        self, store: Store, answering_since: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._answering_since = answering_since
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())  # its lock is never held while waiting for the store
        self._writers: dict[str, Writer] = {}  # by token
        self._orphaned: dict[str, float] = {}  # channels of runs that nobody holds, and when these are lost
        self._thread: threading.Thread | None = None
        self._next_at = 0.0

    @property
    def writers(self) -> list[Writer]:
        """The writers of this process that have not ended."""
        with self._changed:
            return list(self._writers.values())

    def add(self, writer: Writer) -> None:
        """Renew the lease of a writer from now on.

        :raises RuntimeError: if the process cannot start a thread now. Then the lease is not renewed.
        """
        with self._changed:
            self._writers[writer.token] = writer
            thread = self._wake()
        try:
            self._start(thread)
        except RuntimeError:
            self.remove(writer)
            raise

    def remove(self, writer: Writer) -> None:
        """Renew the lease of a writer no more. A second call does nothing."""
        with self._changed:
            self._writers.pop(writer.token, None)
            self._changed.notify_all()

    def orphaned(self, channel: str) -> None:
        """Have the end `lost` stored for a run without a lease, unless somebody takes it soon. This does not wait."""
        due = max(self._clock() + _LOST_AFTER, self._answering_since() + LEASE_SECONDS)
        if due == math.inf:
            return  # the store is away
        with self._changed:
            is_ours = any(writer.channel == channel for writer in self._writers.values())
            if is_ours or channel in self._orphaned or len(self._orphaned) >= _MAX_ORPHANED:
                return
            self._orphaned[channel] = due
            thread = self._wake()
        try:
            self._start(thread)
        except RuntimeError as error:
            warn("the end of channel %s has to wait: %s", channel, error)
            with self._changed:
                del self._orphaned[channel]  # the hub names it again

    def wait_until_idle(self, seconds: float) -> bool:
        """Return True as soon as no writer is left; False if one is after so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._writers, seconds)

    def _wake(self) -> threading.Thread | None:
        """Wake the thread; return it if it has yet to be started. To be called under the lock."""
        self._changed.notify_all()
        if self._thread:
            return None
        self._next_at = self._clock() + RENEW_SECONDS
        self._thread = threading.Thread(target=self._run, name="sse-keeper", daemon=True)
        return self._thread

    def _start(self, thread: threading.Thread | None) -> None:
        """Start the thread that `_wake` has returned. To be called without the lock, since this waits for it."""
        if thread is None:
            return
        try:
            thread.start()
        except RuntimeError:  # the process cannot start another thread now; the next call tries again
            with self._changed:
                self._thread = None
            raise

    def _run(self) -> None:
        while self._wait():
            try:
                if self._clock() >= self._next_at:
                    self._next_at = self._clock() + RENEW_SECONDS
                    self._renew([writer for writer in self.writers if not writer.is_over])
                lost = self._take_lost()
                if lost and self._store.leases.end(lost, "lost"):
                    warn("the run of channel %s is lost: its process has died or does not reach Redis", lost)
            except StoreUnavailable as error:
                self._next_at = min(self._next_at, self._clock() + _AGAIN)
                warn("the leases of runs are not renewed: %s", error)
            except Exception:  # noqa: BLE001 - logged; without this thread, all runs of this process would be lost
                self._next_at = min(self._next_at, self._clock() + _AGAIN)
                warn("the keeper of runs could not go on; trying again", exc_info=True)

    def _wait(self) -> bool:
        """Return True when there is something to do; False when this thread is to end."""
        with self._changed:
            while self._writers or self._orphaned:
                due = min([*self._orphaned.values(), *([self._next_at] if self._writers else ())])
                if due <= self._clock():
                    return True
                self._changed.wait(due - self._clock())
            self._thread = None
            return False

    def _take_lost(self) -> str | None:
        """Return one of the orphaned runs whose time is over, if the store has not been away meanwhile.

        After the death of a process there may be very many, and renewals have to come between them.
        """
        now = self._clock()
        with self._changed:
            lost = next((channel for channel, due in self._orphaned.items() if due <= now), None)
            if lost:
                del self._orphaned[lost]
        return lost if now - self._answering_since() >= LEASE_SECONDS else None

    def _renew(self, writers: Sequence[Writer]) -> None:
        asked_at = self._clock()
        answers = self._store.leases.renew([(writer.channel, writer.token) for writer in writers])
        for writer, held in zip(writers, answers, strict=True):
            if held is True:
                writer.renewed_at = asked_at
            elif held is False:
                # A thread of its own does this, because the writer asks the store why.
                threading.Thread(target=writer.lose, name="sse-lost-lease", daemon=True).start()
