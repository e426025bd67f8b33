"""The hub's thread, which is a greenlet under gevent. It alone reads the feed and moves channels forward.

It works in turns, so that each turn is short however many channels there are. In a turn, it reads some announcements,
asks the store about some channels, and pauses. No other thread uses the feed, except that any may call `Feed.wake`.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from sse import connection_log
from sse.errors import StoreUnavailable
from sse.hub.channel import Channels
from sse.hub.schedule import Arrivals
from sse.hub.upkeep import Upkeep
from sse.spread import PAUSE
from sse.stores import READ_AT_ONCE, Feed, Store

_FEW_CHANNELS: Final = 64  # announcements for up to so many channels do not count as late
_JOIN_TIMEOUT: Final = 5.0  # seconds to wait for the end of the thread

_log = logging.getLogger("sse")
_system_random: Final = random.SystemRandom()  # leaves the sequence of an app's seeded `random` as it is


class Follower:
    """The thread that moves the channels of one hub forward. It starts with the first arrival, or by `start`.

    :param lock: the hub's.
    :param clock: returns seconds of a monotonic clock.
    :param tidy: called at the beginning of each turn.
    :param orphaned: see `Hub.orphaned`.
    """

    def __init__(
        self,
        store: Store,
        channels: Channels,
        lock: threading.Lock,
        clock: Callable[[], float],
        tidy: Callable[[], None],
        orphaned: Callable[[str], None],
    ) -> None:
        self.late_since = 0.0
        """When announcements for many channels began to wait for this thread, by `time.monotonic`; 0 if none wait."""
        self.answering_since = math.inf
        """Since when the store has answered without interruption, by `time.monotonic`; inf while it does not."""
        self.was_reached = False
        """True once the store has answered."""
        self.arrivals = Arrivals()
        """Channels that wait for this thread. Call `wake` after adding some."""
        self.upkeep = Upkeep(store, channels, lock, clock, orphaned)
        self._store = store
        self._lock = lock
        self._clock = clock
        self._tidy = tidy
        self._feed: Feed | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    @property
    def is_stopped(self) -> bool:
        """True once `stop` has been called."""
        return self._stopped.is_set()

    def start(self) -> None:
        """Start the thread, unless it has been started or stopped before."""
        with self._lock:
            thread = None if self._thread or self.is_stopped else self._make_thread()
        if thread:
            self._start_thread(thread)

    def wake(self) -> None:
        """Wake the thread for the channels that have arrived, if there are any; start it if need be."""
        with self._lock:
            if self.is_stopped or not self.arrivals.announce(time.monotonic()):
                return
            thread = None if self._thread else self._make_thread()
            feed = self._feed
        if thread:
            self._start_thread(thread)
        elif feed:
            feed.wake()

    def stop(self) -> None:
        """Ask the thread to end after its turn, or before it starts. `join` wakes it and waits for its end."""
        self._stopped.set()

    def join(self) -> None:
        """Wake the thread after `stop`, and return when it has ended, or after 5 s."""
        with self._lock:
            feed, thread = self._feed, self._thread
        if feed:
            feed.wake()
        if thread and thread.ident:
            thread.join(_JOIN_TIMEOUT)

    def _make_thread(self) -> threading.Thread:
        self._feed = feed = self._store.feed()
        self.upkeep.checks.postpone(self._clock())
        self._thread = threading.Thread(target=self._run, args=(feed,), name="sse-hub", daemon=True)
        return self._thread

    def _start_thread(self, thread: threading.Thread) -> None:
        # The thread is noted before it starts. Its starter may be killed while it waits for that, and then no second
        # thread may be started.
        try:
            thread.start()
        except RuntimeError:  # the process cannot start another thread now
            with self._lock:
                self._thread = None
                self.arrivals.retract()
            raise

    # In the thread

    def _run(self, feed: Feed) -> None:
        failures = 0
        logged = ""
        while not self.is_stopped:
            try:
                self._turn(feed)
                self.answering_since = min(self.answering_since, time.monotonic())
                self.was_reached = True
                if failures:
                    _log.warning("the store is back")
                failures, logged = 0, ""
            except StoreUnavailable as error:
                failures += 1
                self.answering_since = math.inf
                if str(error) != logged:
                    logged = str(error)
                    _log.warning("the store is away, streams stay open: %s", logged)
                self._stopped.wait(_system_random.uniform(0.5, 1) * min(0.05 * 2**failures, 1.0))
            except Exception:  # noqa: BLE001 - logged; without this thread, subscribers would get nothing more
                _log.exception("the hub could not go on with a channel; trying again")
                self._stopped.wait(1.0)
        feed.close()

    def _turn(self, feed: Feed) -> None:
        self._tidy()
        connection_log.flush()
        is_away = self.answering_since == math.inf  # then it is soon known that the store answers, without events too
        notices = feed.read(0 if is_away else max(self._patience(), 0))
        many = self.upkeep.apply(notices) > _FEW_CHANNELS and len(notices) >= READ_AT_ONCE
        self.late_since = (self.late_since or time.monotonic()) if many else 0.0
        self._listen(feed)
        self.upkeep.check(feed)  # before `settle`, which raises in each turn if a channel is at fault
        self.upkeep.settle(feed)
        if self.upkeep.is_behind or self.upkeep.checks.is_under_way or self.arrivals.is_announced:
            time.sleep(PAUSE)

    def _patience(self) -> float:
        """Return the seconds that this turn may wait for an announcement."""
        if self.upkeep.is_behind:
            return 0
        gathering = self.arrivals.patience(time.monotonic())
        return self.upkeep.patience if gathering is None else gathering

    def _listen(self, feed: Feed) -> None:
        """Listen to channels that have arrived. If the feed listens to one already, have the store asked for it."""
        with self._lock:
            arrived = self.arrivals.take(time.monotonic())
            unlistened = [channel for channel in arrived if not channel.listened]
            self.upkeep.new.put(channel.name for channel in arrived if channel.listened and channel.ring is None)
            self.upkeep.changed.put(channel.name for channel in arrived if channel.is_unsure)
            for channel in unlistened:
                channel.listen()
        if unlistened:
            feed.subscribe([channel.name for channel in unlistened])
