"""The publishes that wait for the store. Those that come together are stored in one round trip.

| a publish is | where | until |
|---|---|---|
| queued | `_queue` | a batch takes it; the batch before it may be under way |
| under way | a batch of the one greenlet that runs `_run` | the store has an outcome for it, or the greenlet ends |
| answered | nowhere here: its `answer` has been called, once | |

A publish never goes back, so it is stored at most once from here. It does not belong to its connection: if its client
has gone meanwhile, it is stored all the same. The greenlet runs only while publishes are queued. If it is killed, all
of them are answered with the exception that ended it, since nobody else would do so.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

_log = logging.getLogger("sse")

_MOST: Final = 1024  # publishes that may be queued
_MOST_BYTES: Final = 8 << 20  # bytes that they may have together, beside the last one
_MOST_AT_ONCE: Final = 128  # publishes of one batch: Redis does nothing else meanwhile, for some milliseconds
_BYTES_AT_ONCE: Final = 1 << 20  # bytes of one batch, beside the last publish

Answer = Callable[[Any], object]
"""Called once with what became of a publish: the positions of its events, or the exception to raise for it."""


class Prepared(Protocol):
    """The admitted events of one request."""

    @property
    def publications(self) -> Sequence[Any]: ...

    @property
    def size(self) -> int:
        """About the bytes that they take in memory."""


class _Queued(NamedTuple):
    prepared: Prepared
    size: int
    answer: Answer


class Publishes:
    """The queue of one worker.

    :param store_each: stores the events of several requests, and returns what became of those of each, in their order:
        `Service.publish_each`. It may wait.
    :param spawn: calls a function soon, in a greenlet of its own. The caller goes on first.
    """

    def __init__(
        self, store_each: Callable[[list[Sequence[Any]]], Sequence[Any]], spawn: Callable[[Callable[[], None]], object]
    ) -> None:
        self._store_each = store_each
        self._spawn = spawn
        self._queue: deque[_Queued] = deque()
        self._size = 0  # bytes of those in the queue
        self._is_running = False

    @property
    def is_full(self) -> bool:
        """True if no further publish should be read now, because too many wait."""
        return len(self._queue) >= _MOST or self._size >= _MOST_BYTES

    @property
    def is_idle(self) -> bool:
        """True if all publishes have been answered."""
        return not self._is_running

    def submit(self, prepared: Prepared, answer: Answer) -> None:
        """Have a request's events stored after those that were submitted before, and its client answered.

        :param answer: must neither wait nor raise. It is called in another greenlet, after this method has returned.
        """
        size = prepared.size
        self._queue.append(_Queued(prepared, size, answer))
        self._size += size
        if not self._is_running:
            self._is_running = True
            self._spawn(self._run)

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._answer(batch, self._store(batch))
        finally:
            self._is_running = False

    def _take(self) -> list[_Queued]:
        """Return the next batch, and take it out of the queue."""
        batch: list[_Queued] = []
        size = 0
        while self._queue and len(batch) < _MOST_AT_ONCE and size < _BYTES_AT_ONCE:
            batch.append(self._queue.popleft())
            size += batch[-1].size
        self._size -= size
        return batch

    def _store(self, batch: Sequence[_Queued]) -> Sequence[Any]:
        """Return what became of each publish. An exception of the store as a whole is that of each of them."""
        try:
            return self._store_each([queued.prepared.publications for queued in batch])
        except Exception as error:  # noqa: BLE001 - each request is answered with it
            return [error] * len(batch)
        except BaseException as error:  # this greenlet is being killed
            left, self._queue, self._size = self._queue, deque(), 0
            self._answer([*batch, *left], [error] * (len(batch) + len(left)))
            raise

    def _answer(self, batch: Sequence[_Queued], outcomes: Sequence[Any]) -> None:
        for queued, outcome in zip(batch, outcomes, strict=True):
            try:
                queued.answer(outcome)
            except Exception:  # noqa: BLE001 - logged; the others must not wait for ever
                _log.exception("a publish could not be answered")
