"""The doctor's probe of a stream: blocks at set times and of set sizes, by which a client sees what happens on the way.

A probe listens to no channel. It takes a seat of the hub, as every stream does, and is written as one.

| state   | what happens                             | next    | noted as   |
|---------|------------------------------------------|---------|------------|
| new     | it is closed unsent, as for a HEAD       | over    | nothing    |
| new     | `doctor.open` is sent at once            | running |            |
| running | a tick is due                            | running |            |
| running | the last tick is out                     | ending  |            |
| running | this process drains                      | ending  |            |
| running | the client takes its blocks too slowly   | ending  |            |
| any     | the client has gone, so the server closes| over    | `left`     |
| ending  | `doctor.end` is sent, and the body ends  | over    | `finished` |
| ending  | the same in a drain                      | over    | `drained`  |
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Final, Literal, NamedTuple

from sse.hub.hub import Hub
from sse.wire import encode_control

LONGEST: Final = 95.0
"""Seconds that a probe may take: somewhat longer than the time-outs that the doctor looks for."""

_LOOK: Final = 0.5  # seconds after which a probe that waits looks again if its client is there
_LATE: Final = 10.0  # seconds that a client which reads slowly may hold a probe up

How = Literal["left", "finished", "drained"]
"""The word that says how a probe ended."""


class Plan(NamedTuple):
    """The blocks of a probe: `ticks` of them, one `every` so many seconds, each with `size` bytes that no proxy can
    compress. With `keeps`, the body stays open after the last one until the client leaves.
    """

    every: float
    ticks: int
    size: int
    keeps: bool = False


class Visit:
    """A seat of the hub that a probe has until `close`, and its waits.

    :param gone: returns whether the client has gone; None if the server cannot tell.
    :param done: called by `close`.
    :raises Busy: if there is no seat, or this process drains.
    """

    def __init__(
        self,
        hub: Hub,
        gone: Callable[[], bool] | None = None,
        done: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.has_left = self.is_drained = False
        self._hub = hub
        self._gone = gone
        self._done: Callable[[], object] | None = done
        self._clock = clock
        self._changed = threading.Event()
        hub.admit(self)

    def drain(self) -> None:
        """End the probe politely, because this process ends."""
        self.is_drained = True
        self._changed.set()

    def wait_until(self, moment: float) -> bool:
        """Wait until a moment by the clock, and return True. Return False early if the client leaves, or in a drain."""
        while True:
            if self.is_drained:
                return False
            if self._gone and self._gone():
                self.has_left = True
                return False
            left = moment - self._clock()
            if left <= 0:
                return True
            self._changed.wait(min(left, _LOOK))

    def close(self) -> None:
        """Give the seat back. A second call does nothing."""
        self._hub.dismiss(self)
        done, self._done = self._done, None
        if done:
            done()


class ProbeStream:
    """A probe as the body of an answer.

    :param opening: the members of `doctor.open`.
    :param ended: called once after the end of a probe that was begun, with how it ended and after how many seconds.
    """

    keeps_greenlet: ClassVar[bool] = True
    """As of `Body`: it is for one client alone, so no row can send it."""
    longest: ClassVar[float] = LONGEST + _LATE
    """As of `ItemStream`: a client may take a few bytes at a time, and would hold its seat for hours."""

    def __init__(
        self,
        visit: Visit,
        plan: Plan,
        opening: Mapping[str, object],
        ended: Callable[[How, float], object] = lambda _how, _after: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.closing: Sequence[Callable[[], object]] = ()
        """The functions to call at the end."""
        self._visit = visit
        self._plan = plan
        self._opening = opening
        self._ended = ended
        self._clock = clock
        self._began: float | None = None
        self._how: How = "left"
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        plan, visit, clock = self._plan, self._visit, self._clock
        self._began = began = clock()
        yield _block("doctor.open", self._opening)
        reason, sent = "done", 0
        while sent < plan.ticks and visit.wait_until(began + (sent + 1) * plan.every):
            if clock() > began + (sent + 1) * plan.every + _LATE:
                reason = "bounds"
                break
            sent += 1
            yield _block("doctor.tick", {"n": sent, "pad": _random(plan.size)}, f"doctor-{sent}")
        if visit.has_left:
            return
        if visit.is_drained:
            reason = "drain"
        yield _block("doctor.end", {"n": sent, "reason": reason})
        if plan.keeps:
            visit.wait_until(began + LONGEST)
        if not visit.has_left:
            self._how = "drained" if visit.is_drained else "finished"

    def drain(self) -> None:
        """End the probe politely."""
        self._visit.drain()

    def close(self) -> None:
        """Give the seat back, and tell how the probe has ended. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._visit.close()
        closing, self.closing = self.closing, ()
        for done in closing:
            done()
        if self._began is not None:
            self._ended(self._how, self._clock() - self._began)


def _block(type: str, data: Mapping[str, object], id: str | None = None) -> bytes:
    return encode_control(type, {"now": time.time(), **data}, last_event_id=id)


def _random(size: int) -> str:
    return base64.b64encode(os.urandom(size * 3 // 4 + 1))[:size].decode()
