"""The writer of one run: it gathers pieces, stores them and other events in order, and waits for the store.

A writer is in one of these states. The store decides between them, because it alone knows who holds the lease.

| state  | what happens                                 | next   | what is stored                                   |
|--------|----------------------------------------------|--------|--------------------------------------------------|
| open   | a text, an event                             | open   | pieces and events, in the order of the calls     |
| open   | the store does not answer                    | open   | later the same again: same key, same `written`   |
| open   | the store says that the run has ended, or    | gone   | nothing                                          |
|        | that another one has begun                   |        |                                                  |
| open   | the store says that a part of the run is     | broken | the end `failed`                                 |
|        | lost or too large, or the marker is lost     |        |                                                  |
| open   | `end`                                        | ending | what is left of the text, then the end           |
| ending | the end is stored                            | gone   | nothing                                          |
| any    | `abandon`: the process ends                  | gone   | nothing; others find the run `lost`              |

A text or an event raises `Stopped` in the states `ending` and `gone`, and `RunFailed` in the state `broken`.

- If the process dies in any state before `gone`, nobody renews the lease, and another worker stores the end `lost`.
- If a reply is lost, the step is repeated with its key, so the store does it once. A write whose first attempt was
  stored by a store that has forgotten it since is refused, because `written` differs: `broken`, never a hole.
- If two processes write, the newer token is the lease's, and the older writer is `gone` at its next step.
- If the process was frozen, it may be `lost` or replaced meanwhile. So the lease's age is checked before each step that
  calls the app, and the store checks the token at each write.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from sse.errors import RunFailed, SSEError, Stopped, StoreUnavailable
from sse.event import DEFAULT_TYPE, EndReason, Event, Piece, Position
from sse.log import warn
from sse.stores import Standing, Store
from sse.stores.base import nonce
from sse.stores.leases import LEASE_SECONDS, weight

FLUSH_BYTES: Final = 16_384
"""Bytes of text that are stored at once, however short ago the last piece was stored."""

_FIRST_PAUSE: Final = 0.05  # seconds before a step is repeated; each further pause is twice as long
_LONGEST_PAUSE: Final = 1.0

T = TypeVar("T")
MakeEvent = Callable[[object, str], Event]
"""A function that returns an event with this data and type, if it is valid and small enough."""

_system_random: Final = random.SystemRandom()
_writers: Final[weakref.WeakSet[Writer]] = weakref.WeakSet()


class Writer:
    """Writes one run. Any thread may use it.

    :param token: the random token in the lease.
    :param every: seconds for which pieces are gathered. The first one is stored at once.
    :param max_bytes: the most bytes of one piece.
    """

    def __init__(
        self,
        store: Store,
        channel: str,
        token: str,
        *,
        every: float,
        max_bytes: int,
        make_event: MakeEvent,
        renewed_at: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.channel = channel
        self.token = token
        self.renewed_at = renewed_at
        """When the lease was last renewed, by the monotonic clock; the keeper sets it."""
        self.when_gone: Callable[[], object] = lambda: None
        """Called once, in any thread, when the run is over for another reason than `end`."""
        self._store = store
        self._every = every
        self._max_bytes = max_bytes
        self._make_event = make_event
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())  # its lock is never held while waiting for the store
        self._gathered: list[str] = []
        self._size = 0  # bytes of what is gathered
        self._is_after_cr = False  # the text ends with a CR, so that a LF that follows belongs to it
        self._next_at = 0.0  # from then on, a text is stored at once
        self._queue: deque[tuple[str, Event]] = deque()  # with the idempotency key of each
        self._queued = self._stored = 0  # how many events ever were
        self._positions: dict[int, Position] = {}  # of stored events, by their number, for `publish`
        self._is_storing = False  # a thread stores the first event of the queue
        self._written = 0  # bytes of this run in the store
        self._pump: threading.Thread | None = None
        self._fault: SSEError | None = None  # set in the states `broken` and `gone`
        self._is_ending = False
        self._abandoned = threading.Event()
        _writers.add(self)

    @property
    def is_over(self) -> bool:
        """True in all states but `open`: nothing more can be written."""
        return self._fault is not None or self._is_ending

    def write(self, text: str) -> int:
        """Append a text to the run's; return its number of characters, as files do.

        The call returns when the text is gathered, or, if it is due, when it is stored. It waits for a store that does
        not answer. CRLF and CR become LF, also if a CR and its LF come in two calls.

        :raises TypeError: if the text is no string.
        :raises InvalidEvent: for a lone surrogate.
        :raises Stopped: if the run has been stopped, begun anew elsewhere, or has ended.
        :raises RunFailed: if the run is over SSE_RUN_BYTES, or Redis has lost a part of it.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text is a string, not {type(text).__name__}: publish() takes other values")
        data = Piece(text).data
        with self._changed:
            self._require_open()
            if self._is_after_cr and text.startswith("\n"):
                data = data[1:]
            if text:
                self._is_after_cr = text.endswith("\r")
            if not data:
                return len(text)
            self._gathered.append(data)
            self._size += len(data.encode())
            number = self._queue_text() if self._is_due() else None
            pump = self._wake_pump() if number is None else None
        if pump:
            pump.start()  # not under the lock, because it waits for the new thread
        if number is not None:
            self._store_until(number)
        return len(text)

    def publish(self, data: object, type: str = DEFAULT_TYPE) -> str:
        """Store an event after the text so far; return its id, `channel=position`, when it is stored.

        :param data: as for `SSE.publish`.
        :param type: as for `SSE.publish`.
        :raises InvalidEvent: if the type or data can never be published.
        :raises TooLarge: if the data is over SSE_MAX_EVENT_BYTES.
        :raises Stopped: as for `write`.
        :raises RunFailed: as for `write`.
        """
        event = self._make_event(data, type)
        with self._changed:
            self._require_open()
            self._queue_text()
            number = self._put(event)
            self._positions[number] = Position(0, 0)
        try:
            self._store_until(number)
        finally:
            with self._changed:
                position = self._positions.pop(number)
        return f"{self.channel}={position}"

    def flush(self) -> None:
        """Return when all that was written is stored.

        :raises Stopped: as for `write`.
        :raises RunFailed: as for `write`.
        """
        with self._changed:
            self._require_open()
            number = self._queue_text()
        self._store_until(number)

    def confirm(self) -> None:
        """Return when the lease is surely held. Without this, a process that was frozen would begin another step.

        :raises Stopped: as for `write`.
        :raises RunFailed: as for `write`.
        """
        if not self._fault and self._clock() - self.renewed_at > LEASE_SECONDS:
            asked_at = self._clock()
            if self._insist(self._renew):
                self.renewed_at = asked_at
            else:
                self.lose()
        with self._changed:
            self._require_open()

    def end(self, reason: EndReason) -> None:
        """Store what is left of the text, and the end. A second call does nothing.

        :raises Stopped: if the run was stopped or begun anew before its end could be stored.
        :raises RunFailed: if the end is `failed` for a reason of the store, see `write`.
        """
        with self._changed:
            if self._is_ending:
                return
            self._require_open()
            self._is_ending = True
            number = self._queue_text()
        self._store_until(number)
        repeated: list[None] = []
        position = self._insist(partial(self._store.leases.end, self.channel, reason, token=self.token), repeated)
        is_stopped = position is None and not repeated  # the reply to an earlier attempt may be lost
        over = Stopped(f"the run of channel {self.channel} has ended", "write no more")
        with self._changed:
            self._fault = self._fault or over
            self._changed.notify_all()
        if is_stopped:
            raise self._verdict(over)

    def lose(self) -> None:
        """Go into the state `gone` or `broken`, because the lease is not this writer's any more."""
        if not self._is_ending:
            self._fail(
                Stopped(f"the run of channel {self.channel} was stopped, or begun anew elsewhere", "write no more")
            )

    def abandon(self) -> None:
        """Give up what is not stored, because the process ends. Calls that wait for the store raise."""
        self._abandoned.set()
        self._fail(Stopped(f"the run of channel {self.channel} is cut off, because this process ends", "write no more"))

    def forget(self) -> None:
        """Leave the run to the process that began it. A forked process calls this."""
        self._changed = threading.Condition(threading.Lock())  # another thread may have held the old one
        self._fault = Stopped(f"the run of channel {self.channel} is another process's", "begin one in this process")
        self._queue.clear()

    # All of these are called under the lock.

    def _require_open(self) -> None:
        if self._fault:
            raise type(self._fault)(self._fault.message, self._fault.hint)  # one error for each caller
        if self._is_ending:
            raise Stopped(f"the run of channel {self.channel} is being ended", "write no more")

    def _is_due(self) -> bool:
        return self._size >= FLUSH_BYTES or self._clock() >= self._next_at

    def _queue_text(self) -> int:
        """Move the text that is gathered into the queue; return the number of the queue's last event."""
        text, self._gathered, self._size = "".join(self._gathered), [], 0
        for part in split(text, self._max_bytes):
            self._put(Piece(part))
        return self._queued

    def _put(self, event: Event) -> int:
        self._queue.append((nonce(), event))
        self._queued += 1
        return self._queued

    def _wake_pump(self) -> threading.Thread | None:
        """Wake the thread that stores a text which is due later; return it if it has yet to be started."""
        self._changed.notify_all()
        if self._pump:
            return None
        self._pump = threading.Thread(target=self._run_pump, name="sse-writer", daemon=True)
        return self._pump

    # All of these are called without the lock.

    def _run_pump(self) -> None:
        """Store the text that is gathered as soon as it is due, if no further call does so."""
        while (number := self._wait_for_text()) is not None:
            try:
                self._store_until(number)
            except SSEError:
                return  # the next call of the writer tells it

    def _wait_for_text(self) -> int | None:
        """Return the number of the queue's last event, with the text that was due; None if nothing more is gathered."""
        with self._changed:
            while not (self._fault or self._is_ending):
                if not self._gathered:
                    self._changed.wait()
                elif self._is_due():
                    return self._queue_text()
                else:
                    self._changed.wait(max(self._next_at - self._clock(), 0.001))
        return None

    def _store_until(self, number: int) -> None:
        """Store the queue's events in order, up to this number. One thread at a time stores, and others wait for it."""
        while (turn := self._take_turn(number)) is not None:
            key, event = turn
            try:
                position = self._insist(partial(self._write, key, event))
            except SSEError as error:
                self._fail(error)
            else:
                with self._changed:
                    if self._fault:  # the run is over since, so the queue is empty
                        continue
                    self._queue.popleft()
                    self._stored += 1
                    self._written += weight(event)
                    self._next_at = self._clock() + self._every
                    if self._stored in self._positions:
                        self._positions[self._stored] = position
            finally:
                with self._changed:
                    self._is_storing = False
                    self._changed.notify_all()

    def _take_turn(self, number: int) -> tuple[str, Event] | None:
        """Return the queue's first event, if this thread is to store it; None when all up to `number` are stored."""
        with self._changed:
            while True:
                if self._stored >= number:
                    return None
                if self._fault:
                    self._require_open()
                if not self._is_storing:
                    self._is_storing = True
                    return self._queue[0]
                self._changed.wait()

    def _write(self, key: str, event: Event) -> Position:
        return self._store.leases.write(self.channel, self.token, event, key=key, written=self._written)

    def _renew(self) -> bool:
        [held] = self._store.leases.renew([(self.channel, self.token)])
        if isinstance(held, StoreUnavailable):
            raise held
        return held

    def _insist(self, ask: Callable[[], T], repeated: list[None] | None = None) -> T:
        """Ask the store until it answers, or the process ends; return its answer.

        :param repeated: gets an item for each attempt that failed.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                return ask()
            except StoreUnavailable as error:
                if self._abandoned.is_set():
                    raise
                warn("the run of channel %s waits: %s", self.channel, error)
                if repeated is not None:
                    repeated.append(None)
            self._abandoned.wait(_system_random.uniform(0.5, 1) * pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _fail(self, error: SSEError) -> None:
        """Go into the state `broken` or `gone`, unless this writer is in one of them."""
        error = self._verdict(error)
        with self._changed:
            if self._fault:
                return
            self._fault = error
            self._queue.clear()
            self._gathered.clear()
            self._changed.notify_all()
        try:
            if not isinstance(error, Stopped | StoreUnavailable):
                self._insist(self._store_failure)
        except StoreUnavailable as fault:
            warn("the end of channel %s is not stored: %s", self.channel, fault)
        self.when_gone()

    def _verdict(self, error: SSEError) -> SSEError:
        """Return the error for a run that is over: RunFailed if the store has lost even its marker."""
        if not isinstance(error, Stopped) or self._abandoned.is_set():
            return error
        try:
            is_lost = self._insist(self._is_lost)
        except StoreUnavailable:
            return error
        return RunFailed(f"the store has lost the run of channel {self.channel}", "begin it anew") if is_lost else error

    def _standing(self) -> Standing:
        [standing] = self._store.standing([self.channel])
        if isinstance(standing, StoreUnavailable):
            raise standing
        return standing

    def _is_lost(self) -> bool:
        """Return whether the store has lost the run's marker or its ring."""
        newest, run = self._standing()
        return run is None or (run.end is None and newest is None)

    def _store_failure(self) -> None:
        """Store the end `failed`. A marker that is lost is written anew, because otherwise nobody hears of the end."""
        leases = self._store.leases
        if self._standing().run is None and leases.start(self.channel, self.token) != "started":
            return
        leases.end(self.channel, "failed", token=self.token)


def split(text: str, max_bytes: int) -> list[str]:
    """Return the parts of a text, each at most `max_bytes` in UTF-8, or one character."""
    data = text.encode()
    if len(data) <= max_bytes:
        return [text] if text else []
    parts = []
    start = 0
    while start < len(data):
        end = min(start + max_bytes, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80 and end > start:  # within a character (RFC 3629, 3)
            end -= 1
        if end == start:  # this character alone is larger
            end += 1
            while end < len(data) and data[end] & 0xC0 == 0x80:
                end += 1
        parts.append(data[start:end].decode())
        start = end
    return parts


def _forget() -> None:
    for writer in _writers:
        writer.forget()


os.register_at_fork(after_in_child=_forget)
