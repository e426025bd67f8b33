"""What a row tells one of its connections, and when."""

from __future__ import annotations

import math
import os
import time
from types import SimpleNamespace
from typing import Any

from sse.event import Event
from sse.fanout import Streams
from sse.hub import Hub
from sse.permit import Permit, Revocations
from sse.stores import MemoryStore, Publication
from sse.stream import Stream
from sse.subscriber import Start
from sse.token import Grant


def test_a_notice_waits_until_its_row_has_told_what_it_took() -> None:
    store = MemoryStore(ring=10, ring_ttl=60)
    hub = Hub(store, max_subscribers=10)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    permit = Permit(Revocations(store, 60), Grant("ann", ("a",), ends_at=time.time() + 30), ["a"])
    fanout: Any = SimpleNamespace(
        permits={writing: (permit, math.inf)}, draining=False, keep=lambda fd: kept.append(fd)
    )
    fanout.is_over = fanout.is_time = lambda _: False
    kept: list[int] = []
    try:
        stream = Stream(hub, {"a": Start()}, heartbeat=15, lifetime=60, retry=1)
        stream.open()
        row = Streams(fanout, stream, chunked=False)
        row.fds = {writing: 0}
        store.publish([Publication("a", Event("news"))])
        row.asks = True  # as while the store is asked, when the stream is ahead of what its connections have got
        row.dismiss(writing)
        row.asks, row.chunk = False, stream.step()
        row.dismiss(writing)
        assert permit.warn_at < math.inf
        row.chunk = None
        row.dismiss(writing)
        assert os.read(reading, 1000).startswith(b"event: sse.auth\n")
        assert kept == [writing] * 3
    finally:
        stream.close()
        hub.close()
        for fd in (reading, writing):
            os.close(fd)
