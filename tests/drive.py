"""The other way to have a stream: driven, as by the worker that hands streams off."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

from sse.stream import Stream


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
