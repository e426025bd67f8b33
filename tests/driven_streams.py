"""Streams and polls without a server. A stream is stepped as by the worker that hands it off, a poll is answered."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Generator, Mapping
from typing import Any

from sse.errors import Unavailable
from sse.hub.hub import Hub
from sse.hub.subscriber import Start
from sse.transports.poll import Poll
from sse.transports.stream import Cut, Stream


def poll(hub: Hub, starts: Mapping[str, Start], **options: Any) -> dict[str, Any]:
    """Return a poll's answer."""
    answer: dict[str, Any] = json.loads(poll_bytes(hub, starts, **options))
    return answer


def poll_bytes(hub: Hub, starts: Mapping[str, Start], **options: Any) -> bytes:
    """Return the bytes of a poll's answer."""
    body = Poll(hub, starts, **options)
    return body.open() or body.wait()


def driven(stream: Stream, rng: random.Random | None = None) -> Generator[bytes]:
    """Yield the chunks of a stream as the worker's loop makes them. With `rng`, another stream joins and leaves."""
    woken = threading.Event()
    row = _Row(stream)
    try:
        yield stream.open()
        if not stream.ended:
            stream.subscriber.wake_by(woken.set)
        while not row.stream.ended:
            woken.clear()
            if rng and row.changes(rng):
                row.stream.subscriber.wake_by(woken.set)
            chunk = _next(row.stream)
            if chunk:
                yield row.stream.farewell(chunk) if row.stream.ended else chunk
                row.stream.mark_written(time.monotonic())
            if not row.stream.ended:
                woken.wait(max(row.stream.due - time.monotonic(), 0))
        if row.stream.cuts:
            raise Cut
    finally:
        row.close()


def _next(stream: Stream) -> bytes:
    chunk = stream.next_bytes_at_hand({})
    return stream.next_bytes() if chunk is None else chunk


class _Row:
    """A stream that another stream, without a client, joins and leaves."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._other: Stream | None = None  # that has left
        self._is_two = False  # it tells the other as well

    def changes(self, rng: random.Random) -> bool:
        """Let the other stream join or leave at random, and return whether the client's stream is a new object."""
        if rng.random() < 0.5 or self.stream.merge_key is None:
            return False
        if self._other:
            self._meet(self._other)
        elif not self._is_two:
            self._join()
        else:
            self._other = self.stream.split()
            self._is_two = False
            if rng.random() < 0.5:
                self.stream, self._other = self._other, self.stream
                self.stream.closing, self._other.closing = self._other.closing, ()
                return True
        return False

    def close(self) -> None:
        if self._is_two:
            self.stream.release()
        self.stream.close()
        if self._other:
            self._other.close()

    def _join(self) -> None:
        hub, subscriber = self.stream.hub, self.stream.subscriber
        with contextlib.suppress(Unavailable):
            other = hub.attach({name: Start(place) for name, place in subscriber.positions_by_name.items()}, 0.5)
            self._is_two = not other.resets and hub.merge(subscriber, other)
            if not self._is_two:
                hub.detach(other)

    def _meet(self, other: Stream) -> None:
        _next(other)
        if other.ended:
            other.close()
            self._other = None
        elif other.merge_key == self.stream.merge_key and self.stream.merge(other):
            self._other = None
            self._is_two = True


class Listener:
    """A subscriber that only counts how often a channel has woken it."""

    def __init__(self) -> None:
        self.woken = 0

    def notify(self) -> None:
        self.woken += 1

    def drain(self) -> None:
        raise NotImplementedError

    def end_now(self) -> None:
        raise NotImplementedError
