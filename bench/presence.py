"""The cost of presence in Redis and in a worker: `python -m bench.presence`. It starts a redis-server of its own.

Each row is a crowd of connections that four processes' worth of `Presence` report, then one minute of quiet in which
their records are renewed. It prints the bytes of Redis by `MEMORY USAGE`, and the CPU seconds of Redis and of this
process, for the arrival of all and for the minute.
"""

from __future__ import annotations

import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import redis

from sse.stores import connect
from sse.work.presence import Presence, Stay

PORT = 16_399
MEMBERS = 10_000
WORKERS = 4
QUIET = 60.0  # seconds

Crowd = Callable[[Presence, int], Stay]
CROWDS: dict[str, Crowd] = {
    "one channel, each a subject with a client": lambda presence, number: presence.enter(
        ["room/1"], f"user-{number:06}", f"client-of-{number:08}"
    ),
    "one channel, each a subject": lambda presence, number: presence.enter(["room/1"], f"user-{number:06}"),
    "one channel, all anonymous": lambda presence, _number: presence.enter(["room/1"], ""),
    "a channel for each": lambda presence, number: presence.enter(
        [f"user/{number:06}"], f"user-{number:06}", f"client-of-{number:08}"
    ),
}


def cpu(client: Any) -> tuple[float, float]:
    """Return the CPU seconds of Redis and of this process so far."""
    info = client.info("cpu")
    mine = resource.getrusage(resource.RUSAGE_SELF)
    return info["used_cpu_user"] + info["used_cpu_sys"], mine.ru_utime + mine.ru_stime


def measure(client: Any, crowd: Crowd) -> str:
    client.flushall()
    url = f"redis://127.0.0.1:{PORT}/0"
    stores = [connect(url, ring=10, ring_ttl=60) for _ in range(WORKERS)]
    processes = [Presence(store.presence, ["*"]) for store in stores]
    began = cpu(client)
    stays = [crowd(processes[number % WORKERS], number) for number in range(MEMBERS)]
    channels = {channel for stay in stays for channel in stay.channels}
    while sum(stores[0].presence.count(channel) for channel in list(channels)[-1:]) < MEMBERS // len(channels):
        time.sleep(0.05)
    time.sleep(3)
    arrived = cpu(client)
    size = sum(client.memory_usage(key, samples=0) for key in client.scan_iter("*:present*", count=1000))
    before = cpu(client)
    time.sleep(QUIET)
    after = cpu(client)
    for presence, store in zip(processes, stores, strict=True):
        presence.close()
        store.close()
    join = [there - here for here, there in zip(began, arrived, strict=True)]
    quiet = [100 * (there - here) / QUIET for here, there in zip(before, after, strict=True)]
    return f"{size / 1e6:.2f} MB | {join[0]:.2f} s | {join[1]:.2f} s | {quiet[0]:.2f} % | {quiet[1]:.2f} %"


def main() -> None:
    """Measure each crowd, and print a row for it."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["redis-server", "--port", str(PORT), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen([*command, "--loglevel", "warning"])
        try:
            time.sleep(1)
            client = redis.Redis("127.0.0.1", PORT)
            print("crowd | Redis | arrival: Redis | workers | quiet: Redis | workers")
            for name, crowd in CROWDS.items():
                print(f"{name} | {measure(client, crowd)}", flush=True)
        finally:
            server.terminate()
            server.wait(10)


if __name__ == "__main__":
    main()
