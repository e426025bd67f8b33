"""Five restarts in a row under many streams, polls and publishers: nothing is lost, and nothing comes twice.

Every stream ends by `sse.close`, no connection is refused, and each request has its answer. The ends of the streams are
spread over SSE_DRAIN, and so are their returns.

There are two ways to restart without a gap, and docs/deploying.md has both. By a reload, one instance starts new
workers before the old ones end. In a rolling restart, two instances behind nginx restart one after the other.
"""

from __future__ import annotations

import asyncio
import math
import os
import resource
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from tests.live.fleet import Fleet
from tests.live.load import address
from tests.servers import Gunicorn, Nginx, RedisServer, wait_until
from tests.tokens import KEY

RESTARTS = 5
STREAMS = int(os.environ.get("STREAMS", "1000"))
POLLS = 200
RATE = 100  # events a second
IS_ALONE = STREAMS > 1000
"""True in `make restarts`. In `make test`, both ways run at the same time, and the middle of the spreads counts."""
DRAIN = 30 if IS_ALONE else 3  # seconds
WORKERS = 2 if IS_ALONE else 1
RETRY = 3.0 if IS_ALONE else 1.0  # seconds
ENV = {
    "SSE_PUBLIC": "*",
    "SSE_PUBLISH_KEYS": KEY,
    "SSE_DRAIN": str(DRAIN),
    "SSE_RETRY": str(int(RETRY * 1000)),
    "SSE_MAX_SUBSCRIBERS": "15000",
    "SSE_REDIS_TIMEOUT": "20",
}


class Reloaded:
    """One instance, whose workers SIGHUP replaces."""

    def __init__(self, directory: Path, redis: RedisServer) -> None:
        self.server = Gunicorn(directory, env=ENV | {"SSE_REDIS_URL": redis.url}, workers=WORKERS)
        self.address = address(self.server.url)
        self.drains: list[float] = []
        """When drains have begun."""

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()

    def restart(self) -> None:
        before = set(self.server.worker_pids())
        os.kill(self.server.pid, signal.SIGHUP)
        wait_until(lambda: len(self.server.worker_pids()) > len(before), 20, what="new workers")
        self.drains.append(time.monotonic())
        wait_until(lambda: not before & set(self.server.worker_pids()), DRAIN + 20, what="new workers alone")


class Rolled:
    """Two instances behind nginx, which restart one after the other; in `make test`, one each time."""

    def __init__(self, directory: Path, redis: RedisServer) -> None:
        env = ENV | {"SSE_REDIS_URL": redis.url, "SSE_PROXIES": "1"}
        self.servers = [Gunicorn(directory / str(number), env=env, workers=WORKERS) for number in range(2)]
        upstream = ";\n        server ".join(f"{server.bind} max_fails=0" for server in self.servers)
        self.nginx = Nginx(
            directory,
            upstream,
            {
                "return 308 https://$server_name$request_uri;": "",
                "worker_processes 1;": f"worker_processes {2 * WORKERS};",
            },
        )
        self.address = "127.0.0.1", self.nginx.http_port
        self.drains: list[float] = []
        """When drains have begun."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in [*self.servers, self.nginx]:
                stack.enter_context(server)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def restart(self) -> None:
        for server in self.servers if IS_ALONE else [self.servers[len(self.drains) % 2]]:
            self.drains.append(time.monotonic())
            server.stop(DRAIN + 20, signal.SIGTERM)
            server.start()


async def restart_under_load(service: Reloaded | Rolled) -> Fleet:
    name = type(service).__name__.lower()  # because both use one Redis
    fleet = Fleet(service.address, [f"{name}/{number}" for number in range(100)], RATE)
    try:
        await fleet.open(STREAMS, POLLS)
        fleet.publish()
        for _ in range(RESTARTS):
            await asyncio.to_thread(service.restart)
            await fleet.until(lambda: fleet.open_streams == STREAMS, "all streams are back", RETRY + 30)
        await fleet.finish()
    finally:
        await fleet.close()
    return fleet


def fullest(moments: Sequence[float], mean: float) -> float:
    """Return how many moments are in the fullest second, as a multiple of the mean of the drain."""
    return max(Counter(map(math.floor, moments)).values(), default=0) / mean


def spreads(fleet: Fleet, drains: Sequence[float]) -> list[tuple[float, float]]:
    """Return the fullest second of the ends and of the returns for each drain of at least a quarter of the streams."""
    found = []
    for begin, end in zip(drains, [*drains[1:], math.inf], strict=True):
        ends, returns = (
            [moment - begin for moment in moments if begin <= moment < end] for moments in (fleet.ends, fleet.returns)
        )
        if len(ends) >= STREAMS / 4:
            mean = len(ends) / DRAIN
            found.append((fullest(ends, mean), fullest(returns, mean)))
    return found


def check(way: type[Reloaded | Rolled], directory: Path, redis: RedisServer) -> None:
    with way(directory, redis) as service:
        fleet = asyncio.run(restart_under_load(service))
    assert fleet.faults == [], fleet.faults
    assert sum(fleet.published.values()) >= RATE * DRAIN * RESTARTS
    assert fleet.answers.keys() == {"poll 200", "publish 201"}
    assert len(fleet.ends) >= STREAMS * (RESTARTS - 1)  # the first instance has a part of them at first
    assert len(fleet.returns) == len(fleet.ends)
    found = spreads(fleet, service.drains)
    assert len(found) >= RESTARTS
    for name, multiples in zip(("ends", "returns"), zip(*found, strict=True), strict=True):
        shown = " ".join(f"{multiple:.2f}" for multiple in multiples)
        print(f"{way.__name__}: {name}, the fullest second of each drain by its mean: {shown}")
        assert (max if IS_ALONE else statistics.median)(multiples) <= 1.5, shown


WAYS = [(Reloaded,), (Rolled,)] if IS_ALONE else [(Reloaded, Rolled)]


@pytest.mark.parametrize("ways", WAYS, ids=lambda ways: " and ".join(way.__name__.lower() for way in ways))
def test_restarts_lose_nothing_and_spread_the_ends_and_the_returns(
    tmp_path: Path, redis_server: RedisServer, ways: Sequence[type[Reloaded | Rolled]]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard > STREAMS + 1000, f"{hard} open files are too few: raise `ulimit -Hn`"
    if soft < STREAMS + 1000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ThreadPoolExecutor(len(ways)) as threads:
        all_ways = [threads.submit(check, way, tmp_path / way.__name__, redis_server) for way in ways]
    for one in all_ways:
        one.result()
