"""Measures the cost of runs, sources and `sse.stream`: `python -m bench.work`. It starts a Redis and a worker.

It prints the bytes of a text in Redis by `MEMORY USAGE`, and the script calls and CPU of Redis for each piece of it.
Then it prints what a thing that waits costs: memory of the worker, greenlets, kernel threads, and calls and CPU of
Redis.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests import client
from tests.servers import Gunicorn, RedisServer

PIECES = 1_000
MANY = 1_000
CHANNELS = 50  # of one stream
REST = 20.0  # seconds
SETTINGS = {"SSE_MAX_SOURCES": str(MANY), "SSE_LIMIT_NEW_CHANNELS": "1000000/minute", "SSE_STREAM_LIFETIME": "3600"}


def of_redis(redis: Any) -> tuple[int, float]:
    """Return how many scripts Redis has run, and the seconds of CPU that it has used for them."""
    stats = redis.info("commandstats")
    found = [stats[name] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats]
    return sum(each["calls"] for each in found), sum(each["usec"] for each in found) / 1e6


def memory_of(pid: int) -> int:
    """Return the bytes of memory that a process has of its own."""
    [line] = [line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if "Private_Dirty" in line]
    return int(line.split()[1]) * 1024


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def greenlets_of(service: Gunicorn) -> int:
    return int(client.request(service.url, "GET", "/greenlets", timeout=60).json()["greenlets"])


def measure_text(service: Gunicorn, redis: Any, name: str, pause: float) -> str:
    redis.flushall()
    time.sleep(1)
    before = of_redis(redis)
    began = time.monotonic()
    client.request(service.url, "GET", f"/run/{name}?number={PIECES}&pause={pause}", timeout=120)
    seconds = time.monotonic() - began
    calls, used = (there - here for here, there in zip(before, of_redis(redis), strict=True))
    size = sum(redis.memory_usage(key, samples=0) for key in redis.scan_iter(f"*{name}*"))
    entries = sum(redis.xlen(key) for key in redis.scan_iter(f"*{name}*") if redis.type(key) == "stream")
    return (
        f"{name} | {seconds:.1f} s | {size / 1e3:.1f} KB for {6 * PIECES / 1e3:.1f} KB of text, {entries} entries | "
        f"{calls / PIECES:.2f} calls | {1e6 * used / PIECES:.0f} us"
    )


def open_streams(service: Gunicorn, paths: list[str]) -> list[socket.socket]:
    host, port = service.bind.split(":")
    opened = []
    for path in paths:
        stream = socket.create_connection((host, int(port)), timeout=30)
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        stream.recv(65536)
        opened.append(stream)
    return opened


def measure_waiting(folder: Path, name: str, number: int, begin: Callable[[Gunicorn], list[socket.socket]]) -> str:
    """Return what a worker and Redis spend on many things that wait."""
    with ExitStack() as stack:
        folder.mkdir()
        server = stack.enter_context(RedisServer(folder))
        redis = stack.enter_context(server.client())
        service = stack.enter_context(
            Gunicorn(folder, "bench.apps.working:app", {"SSE_REDIS_URL": server.url} | SETTINGS)
        )
        [pid] = service.worker_pids()
        client.request(service.url, "GET", "/run/warm?number=10&pause=0", timeout=30)
        time.sleep(2)
        before, threads, greenlets = memory_of(pid), threads_of(pid), greenlets_of(service)
        opened = begin(service)
        time.sleep(8)
        size = (memory_of(pid) - before) / number
        calls = of_redis(redis)
        time.sleep(REST)
        asked, used = (there - here for here, there in zip(calls, of_redis(redis), strict=True))
        greenlets = greenlets_of(service) - greenlets
        for stream in opened:
            stream.close()
        return (
            f"{name} | {size / 1e3:.1f} KB each | {greenlets / number:.2f} greenlets each | "
            f"{threads_of(pid) - threads:+d} threads | "
            f"{asked / REST / number:.3f} calls a second each | {100 * used / REST:.2f} % of a core for all {number}"
        )


def channels(prefix: str) -> list[str]:
    """Return the paths of streams that have MANY channels together."""
    groups = [range(first, first + CHANNELS) for first in range(0, MANY, CHANNELS)]
    return ["/sse/stream?" + "&".join(f"channel={prefix}/{number}" for number in group) for group in groups]


def begin_runs(service: Gunicorn) -> list[socket.socket]:
    client.request(service.url, "POST", f"/runs/{MANY}", timeout=60)
    return []


def main() -> None:
    """Print a row for each measurement."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(RedisServer(folder))
        redis = stack.enter_context(server.client())
        service = stack.enter_context(Gunicorn(folder, "bench.apps.working:app", {"SSE_REDIS_URL": server.url}))
        client.request(service.url, "GET", "/run/warm?number=10&pause=0", timeout=30)
        for text, pause in (("at-once", 0.0), ("every-5-ms", 0.005), ("every-25-ms", 0.025), ("every-50-ms", 0.05)):
            print(measure_text(service, redis, text, pause), flush=True)
        print(measure_waiting(folder / "run", "a run", MANY, begin_runs), flush=True)
        for prefix, what in (("plain", "a channel without a source"), ("polled", "a source with an interval"),
                             ("pushed", "a source that is a generator")):  # fmt: skip
            row = measure_waiting(
                folder / prefix, what, MANY, lambda service: open_streams(service, channels(prefix))  # noqa: B023
            )  # fmt: skip
            print(row, flush=True)
        row = measure_waiting(
            folder / "items", "sse.stream", MANY, lambda service: open_streams(service, ["/iterable"] * MANY)
        )
        print(row, flush=True)


if __name__ == "__main__":
    main()
