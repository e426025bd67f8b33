"""An idle stream takes little memory, also if each stream has its own channel."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import pytest

from sse.hub.hub import Hub
from sse.hub.subscriber import Start
from sse.stores import connect
from sse.transports.stream import Stream
from tests.fake_sockets import World

STREAMS = 2000
CHANNELS = {"own": ["user/%d"], "own and a shared one": ["user/%d", "news"], "alike": ["news"]}


@pytest.fixture
def world(store_url: str | None) -> Iterator[World]:
    world, store = World(), connect(store_url, ring=100, ring_ttl=600)
    world.hub = Hub(store, max_subscribers=2 * STREAMS)
    yield world
    world.end()
    store.close()


def take_over(world: World, number: int, channels: list[str]) -> None:
    names = [name.replace("%d", str(number)) for name in channels]
    stream = Stream(world.hub, {name: Start() for name in names}, heartbeat=15, lifetime=600, retry=1000)
    stream.open()
    world.rows.take_over_stream(number, stream, chunked=True)
    world.round()


@pytest.mark.parametrize(("what", "most"), [("own", 1700), ("own and a shared one", 1800), ("alike", 350)])
def test_an_idle_stream_is_small(world: World, what: str, most: int) -> None:
    for number in range(100):
        take_over(world, number, CHANNELS[what])
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(100, STREAMS + 100):
            take_over(world, number, CHANNELS[what])
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert world.hub.subscribers == STREAMS + 100
    assert held / STREAMS < most
