"""A source: a function of the app that makes a channel's events, and a runner that runs it while it has the lease.

The states of one source in one worker. `Sources` asks the store about each channel every 2 s:

    absent   --the channel gets its first subscriber here-->  watched
    watched  --the answer says that the lease is ours-->      running (a thread of its own)
    watched  --nobody listens here any more-->                absent
    running  --an answer says that nobody has listened anywhere for `linger` seconds-->  ending, idle
    running  --an answer or a write says that the lease is not ours, or it is 6 s since an answer-->  ending, lost
    running  --the process drains, or its service is closed-->  ending, closing (the lease is given up at once)
    running  --the function raises, or its generator returns-->  over (the lease is given up with a wait)
    ending   --an idle one is listened to again, before its step returns-->  running
    ending   --its step returns, or is cut-->                 over; the generator's `finally` has run
    over     --the next answer-->                             running, with a new token; watched; or absent

A *step* is one call of the function or generator. The time of the lease is looked at before each step, and the store
looks at the token at each write. So a process that was frozen in a step makes no other one, and stores nothing. One
that was frozen between that look and the step makes this one step. A lease that has run out is not continued, even if
nobody else has taken it: the source begins anew, because what it holds may be older than what another has stored.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, NamedTuple

from sse.errors import LeaseLost, StoreUnavailable
from sse.event import Event
from sse.log import warn
from sse.spread import Pauses
from sse.stores.base import Store, nonce
from sse.stores.leases import Answer, backoff
from sse.transports.items import Breaker, Throw
from sse.work.calls import check_function

UNKNOWN_SECONDS: Final = 60.0
"""Seconds for which a source stays down that does not know its channel."""

_RETRY: Final = 0.25  # seconds until a value is stored again that could not be stored
_system_random: Final = random.SystemRandom()  # leaves the sequence of an app's seeded `random` as it is

Ending = Literal["idle", "lost", "closing"]
"""Why a runner ends although its source goes on: nobody listens; another may have the lease; the process ends."""


lease_clock: Final[Callable[[], float]] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""Returns seconds of the monotonic clock by which leases age.

It goes on while the machine is suspended. On Linux, `time.monotonic` does not (clock_gettime(2)).
"""


@dataclass(frozen=True, slots=True)
class Source:
    """A function of the app and its options, see `SSE.source`.

    :param interval: seconds between two calls; None for a generator function.
    :param unknown: the errors by which the function says that there is no such channel.
    """

    produce: Callable[..., object]
    interval: float | None = None
    linger: float = 5.0
    fresh: float = 60.0
    changes_only: bool = False
    unknown: tuple[type[Exception], ...] = ()


def check_source(
    function: Callable[..., object], variables: Iterable[str], *, interval: float | None, linger: float, fresh: float
) -> None:
    """Refuse a function or options that could never work.

    :param variables: the names of the arguments that the function is called with.
    :raises TypeError: if the function is async, lacks an argument, or is a generator function with an interval.
    :raises ValueError: if a number is out of range.
    """
    check_function("@sse.source", function, variables, may_yield=True)
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isgeneratorfunction(function) and interval is not None:
        raise TypeError(f"{name} is a generator, which decides itself when its next value comes: leave out interval=")
    for option, value, is_good in (
        ("interval", interval, interval is None or (_is_seconds(interval) and interval > 0)),
        ("linger", linger, _is_seconds(linger)),
        ("fresh", fresh, _is_seconds(fresh)),
    ):
        if not is_good:
            raise ValueError(f"{option} of {name} is {value!r}: give a number of seconds, such as 5")


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


class Tools(NamedTuple):
    """All that runners need of their process.

    :param context: makes the context in which the app's functions are called.
    :param event_of: makes a checked event of a value of the app.
    :param breaker: returns what interrupts a step that waits; None if nothing can.
    :param report: called when a runner is over.
    """

    store: Store
    context: Callable[[], AbstractContextManager[object]]
    event_of: Callable[[object], Event]
    clock: Callable[[], float]
    breaker: Callable[[], Breaker | None]
    report: Callable[[], None]


class Runner:
    """A source that runs here, in a thread of its own, as long as it has the lease and somebody listens.

    :param answer: the answer by which the lease was taken with this token.
    :param held_until: when the lease runs out unless it is renewed, by the clock.
    """

    def __init__(
        self,
        channel: str,
        token: str,
        source: Source,
        arguments: Mapping[str, object],
        answer: Answer,
        held_until: float,
        tools: Tools,
    ) -> None:
        self.channel = channel
        self.token = token
        self.source = source
        self.ending: Ending | None = None
        self.linger_until = math.inf
        """When it ends unless somebody listens again, by the clock."""
        self.is_over = self.has_failed = self.has_stored = self.in_step = False
        self.step_ended = 0.0
        self._arguments = arguments
        self._attempts = answer.attempts
        self._is_noted = answer.state == "up"
        self.held_until = held_until
        self._tools = tools
        self._throw: Throw | None = None
        self._is_cut = False
        self._newest: Event | None = None  # in the ring, if only changes are stored
        self._aged_at = -math.inf  # when the newest event is no longer fresh
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sse-source-{channel}", daemon=True)

    # For `Sources`:

    def start(self) -> None:
        """Start the thread.

        :raises RuntimeError: if the process cannot start another thread now.
        """
        self._thread.start()

    def renew(self, held_until: float, *, is_listened_to: bool) -> None:
        """Note that the lease has been renewed, and whether anybody listens on any worker."""
        self.held_until = held_until
        if is_listened_to:
            self.linger_until = math.inf
            if self.ending == "idle":
                self.ending = None
        elif self.linger_until == math.inf:
            self.linger_until = self._tools.clock() + self.source.linger
            self._changed.set()

    def end(self, why: Ending) -> None:
        """Let it end: after its step; or at once, if the step waits and can be reached."""
        if self.ending is None or self.ending == "idle":
            self.ending = why
        self._changed.set()
        if self._throw:
            self._throw(self._may_be_cut)

    def _may_be_cut(self) -> bool:
        """Return whether the step is to be cut now: once only, because its `finally` may wait, too."""
        if self._is_cut or not self.in_step or self.ending is None:
            return False
        self._is_cut = True
        return True

    def join(self, timeout: float) -> None:
        """Wait for its end, up to so many seconds."""
        if self._thread.ident and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    # In the thread:

    def _run(self) -> None:
        wait: float | None = None  # before the next attempt
        try:
            if breaker := self._tools.breaker():
                self._throw = breaker()
            self._produce()
        except self.source.unknown:
            wait = UNKNOWN_SECONDS
            warn("the source of channel %s says that there is no such channel; it stays down for 60 s", self.channel)
        except Exception:  # noqa: BLE001 - it is logged, and the source is tried again
            wait = self._delay()
            warn("the source of channel %s has failed; it begins again in %.1f s", self.channel, wait, exc_info=True)
        except GeneratorExit:  # its wait was cut
            pass
        finally:
            if self.ending is None and wait is None:
                wait = self._delay()
                warn("the source of channel %s has returned; it begins again in %.1f s", self.channel, wait)
            self._give_up(wait)

    def _produce(self) -> None:
        if self.source.changes_only:
            self._read_newest()
        due, pause = self._tools.clock(), Pauses()
        with contextlib.closing(self._values() if self.source.interval is None else self._calls()) as events:
            while self._wait_until(due):
                due = self._tools.clock() + (self.source.interval or 0.0)
                self.in_step = True
                try:
                    event = next(events)
                except StopIteration:
                    return
                finally:
                    self.in_step = False
                    self.step_ended = self._tools.clock()
                if event is not None and not self._store(event):
                    return
                self._note_up()
                pause()

    def _values(self) -> Generator[Event | None, None, None]:
        """Make the event of each value that the generator yields; None for a None."""
        with self._tools.context():
            values = self.source.produce(**self._arguments)
            if not isinstance(values, Iterator):
                raise TypeError(
                    f"the source gives a {type(values).__name__}: have it yield its values, or add interval="
                )
            try:
                for value in values:
                    yield self._event_of(value)
            finally:
                if close := getattr(values, "close", None):
                    close()

    def _calls(self) -> Generator[Event | None, None, None]:
        """Make the event of each call of the function, in a context of its own; None if it returns None."""
        while True:
            with self._tools.context():
                event = self._event_of(self.source.produce(**self._arguments))
            yield event

    def _event_of(self, value: object) -> Event | None:
        return None if value is None else self._tools.event_of(value)

    def _wait_until(self, due: float) -> bool:
        """Wait until the next step is due. Return False if there is to be none."""
        while self._may_go_on():
            now = self._tools.clock()
            if now >= due:
                return True
            self._changed.wait(min(due, self.linger_until, self.held_until) - now)
            self._changed.clear()
        return False

    def _may_go_on(self) -> bool:
        if self.ending is None:
            now = self._tools.clock()
            if now >= self.held_until:
                self.ending = "lost"
            elif now >= self.linger_until:
                self.ending = "idle"
        return self.ending is None

    def _store(self, event: Event) -> bool:
        """Store an event; return False if the lease is lost."""
        if self._is_newest(event):
            return True
        key = nonce()
        while True:
            try:
                self._tools.store.leases.write(self.channel, self.token, event, key=key)
            except LeaseLost:
                self.ending = "lost"
                return False
            except StoreUnavailable as error:
                warn("the source of channel %s waits to store a value: %s", self.channel, error)
                self._changed.wait(_RETRY)
                if not self._may_go_on():
                    return False
            else:
                self._newest, self.has_stored = event, True
                return True

    def _note_up(self) -> None:
        if not self._is_noted:
            try:
                self._tools.store.leases.note(self.channel, self.token, "up")
            except StoreUnavailable:
                return  # the next step tries again
            self._is_noted = True

    def _read_newest(self) -> None:
        """Read the newest event of the ring, and how old it is."""
        store, channel = self._tools.store, self.channel
        try:
            (before,) = store.before([(channel, 1)])
            if before is None or isinstance(before, StoreUnavailable):
                return
            (page,) = store.read([(channel, before)], 1)
            (age,) = store.leases.ages([channel])
        except StoreUnavailable:
            return
        if not isinstance(page, StoreUnavailable) and page.entries:
            self._newest = page.entries[-1].event
            if isinstance(age, float):
                self._aged_at = self._tools.clock() + self.source.fresh - age

    def _is_newest(self, event: Event) -> bool:
        """Return whether an event only repeats the newest one of the ring.

        A value that another runner stored, and that a new subscriber would not get because it is not fresh any more, is
        stored again.
        """
        if not self.source.changes_only or event != self._newest:
            return False
        return self.has_stored or not self.source.fresh or self._tools.clock() < self._aged_at

    def _delay(self) -> float:
        return backoff(self._attempts) * _system_random.uniform(0.5, 1.0)

    def _give_up(self, wait: float | None) -> None:
        """Give up the lease: after a failure, for so many seconds."""
        leases = self._tools.store.leases
        self.has_failed = wait is not None and self.ending is None
        try:
            if self.has_failed:
                leases.note(self.channel, self.token, "down")
            if self.ending != "lost":
                leases.release(self.channel, self.token, wait=wait or 0.0)
        except StoreUnavailable:
            pass  # the lease runs out by itself
        finally:
            self.is_over = True
            self._tools.report()
