"""Streams and polls without a server: a stream driven, as by the worker that hands it off, and a poll answered."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator, Mapping
from typing import Any

from sse.hub import Hub
from sse.poll import Poll
from sse.stream import Stream
from sse.subscriber import Start


def poll(hub: Hub, starts: Mapping[str, Start], *, timeout: float, retry: int) -> dict[str, Any]:
    """A poll's answer."""
    body = Poll(hub, starts, timeout=timeout, retry=retry)
    answer: dict[str, Any] = json.loads(body.open() or body.wait())
    return answer


def driven(stream: Stream) -> Generator[bytes]:
    """The chunks of a stream as a loop over many gives them, see sse/worker.py."""
    woken = threading.Event()
    try:
        yield stream.open()
        if not stream.ended:
            stream.subscriber.wake_by(woken.set)
        while not stream.ended:
            woken.clear()
            chunk = stream.quick({})
            chunk = stream.step() if chunk is None else chunk
            if chunk:
                yield chunk
                stream.written(time.monotonic())
            if not stream.ended:
                woken.wait(max(stream.due - time.monotonic(), 0))
    finally:
        stream.close()
