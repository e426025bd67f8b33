"""The publishes that wait for the store. Publishes that come together are stored in one round trip.

| a publish is | where | until |
|---|---|---|
| queued | `_queue` | the greenlet that runs `_run` takes a batch; the batch before has been answered by then |
| under way | `_under_way` | the store has an outcome for it, or the greenlet is killed |
| answered | nowhere here: its `answer` has been called, once | |

A publish never goes back, so it is stored at most once from here. It does not belong to its connection: if its client
has gone meanwhile, it is stored all the same. The greenlet runs only while publishes are queued. If the store is away,
those that came meanwhile share that fault, so nobody waits for more than two calls of the store. If the greenlet is
killed, all are answered with the exception that ended it, since nobody else would do so.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from sse.errors import StoreUnavailable
from sse.spread import Pauses

_log = logging.getLogger("sse")

_MOST: Final = 1024  # publishes that may be queued
_MOST_BYTES: Final = 8 << 20  # bytes that they may have together, beside the last one
_EVENTS_AT_ONCE: Final = 256  # events of one batch, beside those of the last publish: some milliseconds of work
_BYTES_AT_ONCE: Final = 1 << 20  # bytes of one batch, beside the last publish

AnswerFunction = Callable[[Any], object]
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
    answer: AnswerFunction


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
        self._under_way: deque[_Queued] = deque()
        self._size = 0  # bytes of those in the queue
        self._is_running = False
        self._pause = Pauses()

    @property
    def is_full(self) -> bool:
        """True if no further publish should be read now, because too many wait."""
        return len(self._queue) >= _MOST or self._size >= _MOST_BYTES

    def submit(self, prepared: Prepared, answer: AnswerFunction) -> None:
        """Have a request's events stored after those that were submitted before, and its client answered.

        :param answer: called in another greenlet, after this method has returned. While it waits, the answers behind
            it and the next batch wait too.
        """
        size = prepared.size
        self._queue.append(_Queued(prepared, size, answer))
        self._size += size
        if not self._is_running:
            self._is_running = True
            self._spawn(self._run)

    def _run(self) -> None:
        try:
            while self._take():
                self._answer_batch()
                if self._queue:
                    self._pause()  # the memory store never waits, and neither do most answers
        except BaseException as error:  # this greenlet is being killed
            self._answer_all(error)
            raise
        finally:
            self._is_running = False

    def _take(self) -> bool:
        """Take the next batch out of the queue. Return False if nothing is queued."""
        events = size = 0
        while self._queue and events < _EVENTS_AT_ONCE and size < _BYTES_AT_ONCE:
            queued = self._queue.popleft()
            self._under_way.append(queued)
            events += len(queued.prepared.publications)
            size += queued.size
        self._size -= size
        return bool(self._under_way)

    def _answer_batch(self) -> None:
        batch = self._under_way
        try:
            outcomes = self._store_each([queued.prepared.publications for queued in batch])
        except StoreUnavailable as error:
            self._answer_all(error)  # otherwise, those behind this batch would wait for the store's timeout once more
            return
        except Exception as error:  # noqa: BLE001 - each request is answered with it
            outcomes = [error] * len(batch)
        for outcome in outcomes:
            _answer(batch.popleft(), outcome)

    def _answer_all(self, error: BaseException) -> None:
        """Answer those under way and those that are queued now. Others that these answers submit stay queued."""
        left = [*self._under_way, *self._queue]
        self._under_way.clear()
        self._queue.clear()
        self._size = 0
        for queued in left:
            _answer(queued, error)


def _answer(queued: _Queued, outcome: Any) -> None:
    try:
        queued.answer(outcome)
    except Exception:  # noqa: BLE001 - logged; the others must not wait for ever
        _log.exception("a publish could not be answered")
