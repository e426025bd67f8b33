"""The upkeep of channels: it appends announced entries to their rings, and asks the store for missing ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from sse.errors import Busy, SSEError, StoreUnavailable
from sse.event import UNBORN, Position, ResetReason
from sse.hub.channel import Channel, Channels, as_kept, wake
from sse.hub.schedule import CHECK_EVERY, Allowance, Checks, LiveRuns, Queue
from sse.log import warn
from sse.spread import PAUSE
from sse.stores import Feed, Notice, Page, Store
from sse.stores.base import Standing


class Upkeep:
    """Keeps the ring of each channel up to date with the store. Only the hub's thread uses it.

    A channel waits in `new` until it has a ring, in `dirty` while it may be behind the store, and in `changed` until
    the store is asked about its run. In each turn, `settle` works on some channels of each.

    :param orphaned: see `Hub.orphaned`.
    """

    def __init__(
        self,
        store: Store,
        channels: Channels,
        lock: threading.Lock,
        clock: Callable[[], float],
        orphaned: Callable[[str], None],
    ) -> None:
        self.new = Queue()
        self.dirty = Queue()
        self.changed = Queue()
        self.checks = Checks(clock())
        self._live_runs = LiveRuns(clock())
        self._orphaned = orphaned
        self._allowance = Allowance(clock())
        self._store = store
        self._channels = channels
        self._lock = lock
        self._clock = clock

    @property
    def is_behind(self) -> bool:
        """True if channels wait to begin, to be repaired, or for an answer about their run."""
        return bool(self.new or self.dirty or self.changed)

    @property
    def patience(self) -> float:
        """The seconds until channels are to be compared with the store."""
        now = self._clock()
        return min(self.checks.patience(now), self._live_runs.patience(now))

    def apply(self, notices: Sequence[Notice]) -> int:
        """Append the entries that notices announce; return the number of channels that have moved on."""
        moved: set[Channel] = set()
        with self._lock:
            for name, previous, entry, state_changed in notices:
                channel = self._channels.get(name)
                if channel is None:
                    continue
                if channel.ring is None:
                    self.new[name] = None
                elif entry is None:
                    (self.changed if state_changed else self.dirty)[name] = None
                elif previous == channel.ring.newest:
                    self._channels.account(channel.append(entry))
                    moved.add(channel)
                elif entry.position not in channel.ring:
                    self.dirty[name] = None
            wake(moved)
        return len(moved)

    def settle(self, feed: Feed) -> None:
        """Begin some channels that are new, repair some that may be behind the store, and ask about some runs.

        Channels that fail have their next turn after all others.

        :raises StoreUnavailable: if the store does not answer. It is raised when all queues have had their turn.
        """
        fault: Exception | None = None
        for queue, act in ((self.new, self._begin), (self.dirty, self._repair), (self.changed, self._compare)):
            names = queue.take()
            with self._lock:
                channels = [self._channels[name] for name in names if name in self._channels]
            try:
                if channels:
                    act(channels, feed)
                    time.sleep(PAUSE)
                queue.succeeded()
            except Exception as error:  # noqa: BLE001 - raised when the other queues have had their turn
                queue.failed(names)
                fault = error
        if fault:
            raise fault

    def check(self, feed: Feed) -> None:
        """Compare some channels with the store, in case an announcement was lost, and drop channels that are idle.

        This also prolongs the rings of channels that have subscribers. The channels of live runs are compared more
        often, by `settle`.
        """
        now = self._clock()
        if self._live_runs.is_due(now):
            with self._lock:
                self.changed.put(self._live_runs.take(now, self._channels))
        if not self.checks.is_due(now):
            return
        with self._lock:
            some = self.checks.take(now, self._channels)
            if not some:
                return
            idle = [channel for channel in some if channel.is_idle(now, CHECK_EVERY / 2)]
            for channel in idle:
                self._channels.drop(channel)
            live = [channel for channel in some if channel.ring is not None and channel.subscribers]
        feed.unsubscribe([channel.name for channel in idle])
        self._note(live, self._store.standing([channel.name for channel in live], prolong=True))

    def _compare(self, channels: list[Channel], _feed: Feed) -> None:
        """Ask the store how these channels stand, and note that."""
        self._note(channels, self._store.standing([channel.name for channel in channels]))

    def _note(self, channels: list[Channel], standings: Sequence[Standing | StoreUnavailable]) -> None:
        """Note the markers of channels, and which channels are behind. Tell of runs that nobody holds."""
        orphaned = []
        with self._lock:
            for channel, standing in zip(channels, standings, strict=True):
                ring = channel.ring
                if ring is None:
                    continue
                if isinstance(standing, StoreUnavailable):
                    self.dirty[channel.name] = None
                    continue
                traits = channel.traits
                if standing == (ring.newest, None) and (
                    traits.is_ordinary or (traits.run is None and not ring.newest.offset)
                ):
                    continue  # as almost all are: an ordinary channel, or a blank one
                newest, run = as_kept(standing)
                was_unsure, was_textless = channel.is_unsure, channel.is_textless
                if newest != ring.newest:
                    self.dirty[channel.name] = None
                channel.note_standing(newest, run)
                if newest and channel.is_textless and not was_textless:
                    self._channels.account(channel.reset(newest, "trimmed", run))
                elif was_unsure:
                    channel.wake()
                self._note_live(channel)
                if run and not (run.end or run.is_held) and channel.subscribers:
                    orphaned.append(channel.name)
        for name in orphaned:
            self._orphaned(name)

    def _note_live(self, channel: Channel) -> None:
        is_live = channel.run is not None and channel.run.end is None
        self._live_runs.note(channel.name, is_live=is_live, now=self._clock())

    def _begin(self, channels: list[Channel], feed: Feed) -> None:
        """Give each new channel its ring. If the store has none, a ring is ensured for a channel that wants one."""
        channels = [channel for channel in channels if channel.ring is None]
        wanted = {channel for channel in channels if channel.wanted}
        asked = [channel for channel in channels if not (channel.unborn and channel in wanted)]
        standings: dict[Channel, Standing | StoreUnavailable] = dict.fromkeys(channels, Standing(None))
        standings.update(zip(asked, self._store.standing([channel.name for channel in asked]), strict=True))
        known = {
            channel: as_kept(standing) if isinstance(standing, Standing) else standing
            for channel, standing in standings.items()
        }
        ensured = self._ensure(
            [channel for channel, standing in known.items() if standing == (None, None) and channel in wanted]
        )
        for channel, standing in {**known, **ensured}.items():
            if isinstance(standing, Standing) and standing.newest:
                with self._lock:
                    grown = channel.begin(standing.newest, standing.run, ensured=channel in ensured)
                    self._channels.account(grown)
                    self._note_live(channel)
            elif standing == Standing(None) and channel not in wanted:
                with self._lock:
                    channel.miss()
            else:
                fault = standing if isinstance(standing, StoreUnavailable) else None
                self._refuse(channel, fault or Busy("very many new channels at once", "try again"), feed)

    def _ensure(self, unborn: list[Channel]) -> dict[Channel, Standing | StoreUnavailable]:
        """Ensure as many rings as the allowance permits now; return how the channels stand then."""
        allowed = unborn[: self._allowance.take(len(unborn), self._clock())]
        ensured = self._store.ensure([channel.name for channel in allowed])
        return {
            channel: Standing(newest) if isinstance(newest, Position) else newest
            for channel, newest in zip(allowed, ensured, strict=True)
        }

    def _refuse(self, channel: Channel, fault: SSEError, feed: Feed) -> None:
        with self._lock:
            self._channels.drop(channel)
            channel.refuse(fault)
        feed.unsubscribe([channel.name])

    def _repair(self, channels: list[Channel], _feed: Feed) -> None:
        """Append the entries that these channels lack; reset channels that cannot be continued."""
        positions = {channel: (channel.name, channel.ring.newest) for channel in channels if channel.ring is not None}
        pages = dict(zip(positions, self._store.read(list(positions.values())), strict=True))
        moved = []
        with self._lock:
            for channel, page in pages.items():
                if isinstance(page, Page) and page.entries and not page.reason:
                    moved.append(channel)
                    for entry in page.entries:
                        self._channels.account(channel.append(entry))
            wake(moved)
        again = [channel.name for channel, page in pages.items() if isinstance(page, Page) and page.more]
        lost = {channel: page.reason for channel, page in pages.items() if isinstance(page, Page) and page.reason}
        if lost:
            again += self._reset(lost)
        for channel, page in pages.items():
            if isinstance(page, StoreUnavailable):
                _warn_of_delay(channel, page)
        self.dirty.put(again)

    def _reset(self, lost: Mapping[Channel, ResetReason]) -> list[str]:
        """Replace rings that cannot be continued, each for its reason; return the channels to read again."""
        again = []
        for channel, standing in self._standing_ensured(list(lost)).items():
            assert channel.ring is not None
            if isinstance(standing, StoreUnavailable):
                _warn_of_delay(channel, standing)
                continue
            newest, run = standing
            assert newest is not None, "it was ensured"
            is_textless = run is not None and run.anchor == UNBORN
            if newest == channel.ring.newest and not is_textless:
                again.append(channel.name)
            elif newest != channel.ring.newest or not channel.is_textless:
                reason = "trimmed" if is_textless else lost[channel]
                warn("channel %s is reset: %s", channel.name, reason)
                with self._lock:
                    self._channels.account(channel.reset(newest, reason, run))
                    self._note_live(channel)
        return again

    def _standing_ensured(self, channels: list[Channel]) -> dict[Channel, Standing | StoreUnavailable]:
        """Return how channels stand, after creating a ring where there is none, unless a run has ended there."""
        standings = {
            channel: as_kept(standing) if isinstance(standing, Standing) else standing
            for channel, standing in zip(
                channels, self._store.standing([channel.name for channel in channels]), strict=True
            )
        }
        unborn = [channel for channel, standing in standings.items() if standing == (None, None)]
        if unborn:
            ensured = self._store.ensure([channel.name for channel in unborn])
            for channel, newest in zip(unborn, ensured, strict=True):
                standings[channel] = Standing(newest) if isinstance(newest, Position) else newest
        return standings


def _warn_of_delay(channel: Channel, fault: StoreUnavailable) -> None:
    warn("channel %s waits: %s", channel.name, fault)
