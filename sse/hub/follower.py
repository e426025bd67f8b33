"""The hub's thread, a greenlet under gevent: it follows the feed, and alone moves channels forward.

It works in turns, however many channels there are: it reads some announcements, asks the store about some channels, and
pauses. Only this thread uses the feed, but for `Feed.wake`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from sse.errors import StoreUnavailable
from sse.hub.channel import Channels
from sse.hub.schedule import Arrivals
from sse.hub.upkeep import Upkeep
from sse.spread import PAUSE
from sse.stores import READ_AT_ONCE, Feed, Store

_FEW: Final = 64  # channels whose announcements may be late without anybody taking note
_JOIN: Final = 5.0  # seconds that the end of the thread is waited for

_log = logging.getLogger("sse")
_chance: Final = random.SystemRandom()  # a thread of ours leaves the app's own random numbers as they are


class Follower:
    """The thread that moves the channels of one hub forward. It starts with the first arrival, or by `start`.

    `tidy` is called in each turn. `clock` gives seconds, monotonic.
    """

    def __init__(
        self,
        store: Store,
        channels: Channels,
        lock: threading.Lock,
        clock: Callable[[], float],
        tidy: Callable[[], None],
    ) -> None:
        self.late_since = 0.0
        """Since when announcements for many channels have waited to be read, by `time.monotonic`; 0 if they do not."""
        self.arrivals = Arrivals()
        """Channels that wait for this thread; `wake` it after they have been added."""
        self.upkeep = Upkeep(store, channels, lock, clock)
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
        """Start the thread, unless it is there or has been stopped."""
        with self._lock:
            thread = None if self._thread or self.is_stopped else self._make_thread()
        if thread:
            self._start_thread(thread)

    def wake(self) -> None:
        """Have the thread look at what has arrived, if anything has."""
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
        """Have the thread end after its turn, or before it starts. `join` wakes it and waits for that."""
        self._stopped.set()

    def join(self) -> None:
        """Wake the thread, which has been stopped, and return when it has ended, or after 5 s."""
        with self._lock:
            feed, thread = self._feed, self._thread
        if feed:
            feed.wake()
        if thread and thread.ident:
            thread.join(_JOIN)

    def _make_thread(self) -> threading.Thread:
        self._feed = feed = self._store.feed()
        self.upkeep.checks.postpone(self._clock())
        self._thread = threading.Thread(target=self._run, args=(feed,), name="sse-hub", daemon=True)
        return self._thread

    def _start_thread(self, thread: threading.Thread) -> None:
        # The thread is noted before it starts: its starter may be killed while it waits, and no second thread may come.
        try:
            thread.start()
        except RuntimeError:  # no thread can be had now
            with self._lock:
                self._thread = None
                self.arrivals.retract()
            raise

    # In the thread

    def _run(self, feed: Feed) -> None:
        away = 0
        trouble = ""
        while not self.is_stopped:
            try:
                self._turn(feed)
                if away:
                    _log.warning("the store is back")
                away, trouble = 0, ""
            except StoreUnavailable as error:
                away += 1
                if str(error) != trouble:
                    trouble = str(error)
                    _log.warning("the store is away, streams stay open: %s", trouble)
                self._stopped.wait(_chance.uniform(0.5, 1) * min(0.05 * 2**away, 1.0))
            except Exception:  # noqa: BLE001 - logged; subscribers must not be left without a hub
                _log.exception("the hub could not go on with a channel; trying again")
                self._stopped.wait(1.0)
        feed.close()

    def _turn(self, feed: Feed) -> None:
        self._tidy()
        notices = feed.read(max(self._patience(), 0))
        many = self.upkeep.apply(notices) > _FEW and len(notices) >= READ_AT_ONCE
        self.late_since = (self.late_since or time.monotonic()) if many else 0.0
        self._listen(feed)
        self.upkeep.check(feed)  # first: it has its turn even where a channel at fault ends each turn below
        self.upkeep.settle(feed)
        if self.upkeep.is_behind or self.upkeep.checks.is_under_way or self.arrivals.is_announced:
            time.sleep(PAUSE)

    def _patience(self) -> float:
        """Return the seconds to wait for an announcement in this turn."""
        if self.upkeep.is_behind:
            return 0
        gathering = self.arrivals.patience(time.monotonic())
        return self.upkeep.checks.patience(self._clock()) if gathering is None else gathering

    def _listen(self, feed: Feed) -> None:
        """Listen to channels that have arrived; where that has been done, have their rings ensured."""
        with self._lock:
            arrived = self.arrivals.take(time.monotonic())
            unheard = [channel for channel in arrived if not channel.listened]
            self.upkeep.new.put(channel.name for channel in arrived if channel.listened)
            for channel in unheard:
                channel.listen()
        if unheard:
            feed.subscribe([channel.name for channel in unheard])
