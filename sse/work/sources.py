"""The sources of this process: which channels are listened to here, and which sources run here.

One thread asks the store about all of these channels every 2 s, and at once about a channel that gets its first
subscriber. It starts with the first of them, so a process without subscribers has no such thread. `source` has the
states of a source.
"""

from __future__ import annotations

import _thread
import contextlib
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

from sse.errors import StoreUnavailable
from sse.event import Event
from sse.log import warn
from sse.spread import PAUSE
from sse.stores.base import Store, nonce
from sse.stores.leases import LEASE_SECONDS, RENEW_SECONDS, Answer, Ask, State, backoff
from sse.transports.items import Breaker
from sse.work.source import Runner, Source, Tools, lease_clock

_AT_ONCE: Final = 100  # channels that the store is asked about in one call
_KNOWN_SECONDS: Final = 1.0  # for which a value counts as fresh without asking the store again
_JOIN_SECONDS: Final = 5.0  # that `close` waits for the threads
_BLOCKED_SECONDS: Final = 1.0  # that a step may block gevent's loop before the log names it
_BREATH: Final = 0.5  # seconds in which a process that was frozen takes in what has happened, before it takes a lease
_TICK: Final = 0.25  # seconds between two looks whether the loop is blocked
_system_random: Final = random.SystemRandom()  # leaves the sequence of an app's seeded `random` as it is

Match = Callable[[str], tuple[Source, Mapping[str, object]] | None]
"""Returns the source of a channel, and the arguments of its function; None if the channel has no source."""


class Listening(Protocol):
    """The part of a hub that tells who listens, and is told the state of each source."""

    def listens(self, name: str) -> bool:
        """Return whether the channel has subscribers here, or had a poll within 10 s."""

    def set_source(self, name: str, state: State) -> None:
        """Note the state of the channel's source, and wake its subscribers."""


class _Watch:
    """A channel with a source that is listened to here, or whose source runs here."""

    __slots__ = ("arguments", "channel", "is_taken", "runner", "source", "state", "token")

    def __init__(self, channel: str, source: Source, arguments: Mapping[str, object]) -> None:
        self.channel = channel
        self.source = source
        self.arguments = arguments
        self.token = nonce()  # another one for each runner
        self.runner: Runner | None = None
        self.is_taken = False  # by a worker, as far as the last answer knew
        self.state: State = "up"  # as far as the hub was told

    def offer(self, now: float) -> str | None:
        """Return the token to renew the lease of its runner; None if the lease is given up, or has run out."""
        if self.runner and now >= self.runner.held_until:
            self.runner.end("lost")
        return self.runner.token if self.runner and self.runner.ending in (None, "idle") else None


class Sources:
    """The sources that run in this process, and the thread that asks for their leases.

    It takes part in the fan-out by `began` and `fresh`, which the hub calls.

    :param match: finds the source of a channel.
    :param context: makes the context in which the app's functions are called.
    :param event_of: makes a checked event of a value of the app.
    :param most: sources that run here at the same time. Channels beyond that are `down` unless another worker has them.
    :param breaker: returns what ends the wait of a source under gevent; None where a source ends after its step.
    :param clock: returns seconds of a monotonic clock.
    """

    def __init__(
        self,
        store: Store,
        hub: Listening,
        *,
        match: Match,
        context: Callable[[], AbstractContextManager[object]],
        event_of: Callable[[object], Event],
        most: int,
        breaker: Callable[[], Breaker | None],
        clock: Callable[[], float] = lease_clock,
    ) -> None:
        self._store = store
        self._hub = hub
        self._match = match
        self._most = most
        self._clock = clock
        self._tools = Tools(store, context, event_of, clock, breaker, self._wake)
        self._worker = nonce()
        self._watches: dict[str, _Watch] = {}
        self._arrived: deque[str] = deque()
        self._known_fresh: dict[str, float] = {}  # by channel: until when
        self._round_at = -math.inf  # when all channels are asked about again
        self._turned_at = self._resumes_at = -math.inf
        self._is_finishing = self._is_closed = False
        self._due = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_started = False

    # For the hub:

    def began(self, channel: str) -> State | None:
        """Note that a channel has its first subscriber here; return the state of its source, None if it has none.

        The hub calls this under its lock, so it neither waits nor raises.
        """
        try:
            if self._is_closed or self._match(channel) is None:
                return None
            self._arrived.append(channel)
            self._due.set()
            if not self._is_started:
                _thread.start_new_thread(self._start, ())  # because to start a `threading.Thread` waits
                self._is_started = True
        except Exception:  # noqa: BLE001 - logged; a converter of the app failed, or no thread can be had now
            warn("the source of channel %s could not be begun", channel, exc_info=True)
            return None
        watch = self._watches.get(channel)
        return watch.state if watch else "up"

    def fresh(self, channels: Iterable[str]) -> set[str]:
        """Return the channels whose newest event a new subscriber is to get at once. It may ask the store."""
        now, asked, fresh = self._clock(), {}, set()
        for channel in channels:
            found = self._match(channel)
            if found is None or not found[0].fresh:
                continue
            watch = self._watches.get(channel)
            if (watch and watch.runner and watch.runner.has_stored) or self._known_fresh.get(channel, now) > now:
                fresh.add(channel)
            else:
                asked[channel] = found[0].fresh
        if asked:
            try:
                ages = self._store.leases.ages(list(asked))
            except StoreUnavailable:
                return fresh
            aged = {channel for channel, age in zip(asked, ages, strict=True) if _is_below(age, asked[channel])}
            self._remember(aged, now + _KNOWN_SECONDS)
            fresh |= aged
        return fresh

    # For the service:

    @property
    def running(self) -> int:
        """The number of sources that run here."""
        return sum(watch.runner is not None for watch in list(self._watches.values()))

    def finish(self) -> None:
        """Give up all leases at once, end the sources that run here, and begin no more. A second call does nothing."""
        if self._is_finishing:
            return
        self._is_finishing = True
        runners = self._runners()
        for runner in runners:
            runner.end("closing")
        try:
            for runner in runners:
                self._store.leases.release(runner.channel, runner.token)
        except StoreUnavailable as error:
            warn("leases of sources run out by themselves: %s", error)

    def close(self) -> None:
        """End all sources here and the asking thread; return when they have ended, or after 5 s."""
        self.finish()
        self._is_closed = True
        self._due.set()
        end = self._clock() + _JOIN_SECONDS
        for runner in self._runners():
            runner.join(max(end - self._clock(), 0))
        if self._thread and self._thread.ident and self._thread is not threading.current_thread():
            self._thread.join(max(end - self._clock(), 0))
        try:
            for watches in _parts(list(self._watches.values())):
                self._store.leases.ask([Ask(watch.channel, self._worker, listens=False) for watch in watches])
        except StoreUnavailable:
            pass  # this worker is taken for a listening one for 6 s more

    def _runners(self) -> list[Runner]:
        return [watch.runner for watch in list(self._watches.values()) if watch.runner]

    def _remember(self, channels: Iterable[str], until: float) -> None:
        if len(self._known_fresh) > 10 * self._most + _AT_ONCE:
            self._known_fresh.clear()
        self._known_fresh.update(dict.fromkeys(channels, until))

    # In the asking thread:

    def _wake(self) -> None:
        self._due.set()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="sse-sources", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the process cannot start another thread now
            self._thread, self._is_started = None, False
            warn("sources do not run: %s", error)

    def _run(self) -> None:
        while not self._is_closed:
            self._due.clear()
            try:
                patience = self.turn()
            except Exception:  # noqa: BLE001 - the next turn may do better
                warn("the sources of this process are in trouble", exc_info=True)
                patience = RENEW_SECONDS
            self._wait(patience)

    def _wait(self, seconds: float | None) -> None:
        """Wait until there is something to do. Under gevent, notice meanwhile if a source blocks the loop."""
        if not self.running or self._tools.breaker() is None:
            self._due.wait(seconds)
            return
        end = self._clock() + (seconds if seconds is not None else RENEW_SECONDS)
        while not self._due.is_set() and (left := end - self._clock()) > 0:
            tick = min(left, _TICK)
            expected = self._clock() + tick
            self._due.wait(tick)
            self._look_for_blocking(expected)

    def _look_for_blocking(self, since: float) -> None:
        """Name the sources that may have blocked gevent's loop, if this thread should have gone on at `since`."""
        blocked = self._clock() - since
        if self._tools.breaker() is None or blocked < _BLOCKED_SECONDS - _TICK:
            return
        runners = self._runners()
        guilty = [runner for runner in runners if runner.step_ended >= since] or [
            runner for runner in runners if runner.in_step
        ]
        if guilty:
            warn(
                "gevent's loop was blocked for %.1f s while the source of channel %s ran: if the machine was not busy, "
                "the source needs a library that waits cooperatively, or a process of its own for its work",
                blocked,
                ", ".join(runner.channel for runner in guilty[:3]),
            )

    def turn(self) -> float | None:
        """Do all that is due; return the seconds until something else is, None if nothing will be."""
        now = self._clock()
        if self._watches and now - self._turned_at > 2 * RENEW_SECONDS:
            self._resumes_at = now + _BREATH  # this process was frozen, and has yet to hear who has left meanwhile
        self._turned_at = now
        if now < self._resumes_at:
            return self._resumes_at - now
        asked = self._arrivals() + self._ended()
        if now >= self._round_at:
            self._round_at = now + RENEW_SECONDS * _system_random.uniform(0.85, 1.0)
            asked = list(self._watches.values())
        self._ask(asked)
        now = self._clock()
        ends = []
        for runner in self._runners():
            if runner.ending is None and runner.linger_until <= now:
                runner.end("idle")
            elif runner.ending is None:
                ends.append(runner.linger_until)
        return max(min([self._round_at, *ends]) - now, 0.0) if self._watches else None

    def _arrivals(self) -> list[_Watch]:
        """Return the watches of the channels that have their first subscriber here."""
        arrived: dict[str, _Watch] = {}
        while self._arrived:
            channel = self._arrived.popleft()
            found = self._match(channel)
            if found is not None:
                arrived[channel] = self._watches.setdefault(channel, _Watch(channel, *found))
        return list(arrived.values())

    def _ended(self) -> list[_Watch]:
        """Forget the runners that are over; return the watches of those that have not failed."""
        over = [watch for watch in self._watches.values() if watch.runner and watch.runner.is_over]
        again = []
        for watch in over:
            assert watch.runner
            if watch.runner.has_failed:
                self._tell(watch, "down")
            else:
                again.append(watch)
            watch.runner, watch.token = None, nonce()
        return again

    def _ask(self, watches: Sequence[_Watch]) -> None:
        """Ask the store about channels: first about those that run here, and last about those that others have."""
        order = sorted(watches, key=lambda watch: (watch.runner is None, watch.is_taken, _system_random.random()))
        seats = 0 if self._is_finishing else self._most - self.running
        for part in _parts(order):
            # The time is taken before the look at the runners, since this process may be frozen at any moment.
            asked_at = self._clock()
            questions = []
            for watch in part:
                listens, token = self._hub.listens(watch.channel), watch.offer(asked_at)
                if watch.runner is None and listens and seats > 0:
                    token, seats = watch.token, seats - 1
                questions.append(Ask(watch.channel, self._worker, listens, token))
            try:
                answers = self._store.leases.ask(questions)
            except StoreUnavailable as error:
                warn("sources wait: %s", error)
                self._forget_left()
                return
            for watch, question, answer in zip(part, questions, answers, strict=True):
                if isinstance(answer, Answer):
                    self._heed(watch, question, answer, asked_at + LEASE_SECONDS)
            if len(order) > _AT_ONCE:
                time.sleep(PAUSE)

    def _heed(self, watch: _Watch, question: Ask, answer: Answer, held_until: float) -> None:
        runner = watch.runner
        watch.is_taken = answer.is_taken
        if runner and question.token and answer.is_held:
            runner.renew(held_until, is_listened_to=bool(answer.listeners))
        elif runner and question.token:
            runner.end("lost")
        elif answer.is_held:
            self._begin(watch, answer, held_until)
        if question.listens:
            is_left_out = watch.runner is None and not (question.token or answer.is_taken or self._is_finishing)
            self._tell(watch, "down" if is_left_out else answer.state or "up")
        elif watch.runner is None:
            del self._watches[watch.channel]

    def _forget_left(self) -> None:
        """Forget the channels that nobody listens to here, without telling the store, which is away.

        Clients may ask for very many channels meanwhile.
        """
        for watch in list(self._watches.values()):
            if watch.runner is None and not self._hub.listens(watch.channel):
                del self._watches[watch.channel]

    def _tell(self, watch: _Watch, state: State) -> None:
        watch.state = state
        self._hub.set_source(watch.channel, state)

    def _begin(self, watch: _Watch, answer: Answer, held_until: float) -> None:
        """Start a runner, with the lease that was taken."""
        watch.runner = runner = Runner(
            watch.channel, watch.token, watch.source, watch.arguments, answer, held_until, self._tools
        )
        wait = 0.0
        if not self._is_finishing:
            try:
                now = self._clock()
                runner.start()
                self._look_for_blocking(now)  # under gevent, its first step runs before this thread goes on
                return
            except RuntimeError as error:  # the process cannot start another thread now
                warn("the source of channel %s cannot start: %s", watch.channel, error)
                wait = backoff(answer.attempts)
        watch.runner, watch.token = None, nonce()
        with contextlib.suppress(StoreUnavailable):  # else the lease runs out by itself
            self._store.leases.release(runner.channel, runner.token, wait=wait)


def _parts(watches: Sequence[_Watch]) -> list[Sequence[_Watch]]:
    return [watches[start : start + _AT_ONCE] for start in range(0, len(watches), _AT_ONCE)]


def _is_below(age: float | StoreUnavailable | None, seconds: float) -> bool:
    return isinstance(age, float) and age < seconds
