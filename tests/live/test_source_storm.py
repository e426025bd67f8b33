"""A source over four workers that are killed, frozen and resumed at random, with a Redis that is restarted meanwhile.

The upstream's own log shows who called it and when. BROWSERS=all adds the long form: 200 disturbances, 50 subscribers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import selectors
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from tests.live.load import address
from tests.servers import Gunicorn, RedisServer, wait_until

APP = "tests.live.apps.sources:application"
LINGER = 2.0  # seconds, of the app's source
LATEST = LINGER + 8.0  # seconds after the last subscriber has gone, for the last call
REPLACED = 10.0  # seconds from the death of a worker to the first call of another
NOISE = 2.0  # seconds by which this machine may be late
CHANNEL = "prices/acme"
REQUEST = f"GET /sse/stream?channel={CHANNEL} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


class Call(NamedTuple):
    """A line of the upstream's log."""

    at: float
    pid: int
    runner: str
    what: str
    symbol: str


def calls(log: Path, what: str = "call") -> list[Call]:
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    found = [Call(float(line[0]), int(line[1]), *line[2:]) for line in lines]
    return sorted(call for call in found if call.what == what)


class Listener:
    """A stream: the worker that serves it, and the runners whose values it has heard, in order."""

    def __init__(self, where: tuple[str, int]) -> None:
        self.sock = socket.create_connection(where, timeout=5)
        self.sock.sendall(REQUEST)
        self.sock.setblocking(False)
        self.worker = 0
        self.runners: list[str] = []
        self._rest = b""

    def read(self) -> bool:
        """Take what has come; return False at the end of the stream."""
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        text = self._rest + data
        if not self.worker and (found := re.search(rb"X-Worker: (\d+)", text)):
            self.worker = int(found[1])
        for found in re.finditer(rb'"runner":"(\w{12})"', text):
            if not self.runners or self.runners[-1] != found[1].decode():
                self.runners.append(found[1].decode())
        self._rest = text[-30:] if self.worker else text  # a value that is cut in two is counted twice at most
        return bool(data)


class Crowd:
    """Listeners, which one thread reads."""

    def __init__(self, url: str) -> None:
        self._where = address(url)
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.listeners: set[Listener] = set()
        self.orders: list[list[str]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self.leave(len(self.listeners))

    def join(self, count: int) -> None:
        for _ in range(count):
            with contextlib.suppress(OSError):
                listener = Listener(self._where)
                with self._lock:
                    self.listeners.add(listener)
                    self._selector.register(listener.sock, selectors.EVENT_READ, listener)

    def leave(self, count: int, chooser: random.Random | None = None) -> None:
        with self._lock:
            chosen = sorted(self.listeners, key=id)
            if chooser:
                chosen = chooser.sample(chosen, min(count, len(chosen)))
            for listener in chosen:
                self._drop(listener)

    def of(self, pids: set[int]) -> int:
        """Return how many are served by these workers, and have heard from one."""
        with self._lock:
            return sum(listener.worker in pids for listener in self.listeners)

    def _read(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.1):
                with self._lock:
                    if key.data in self.listeners and not key.data.read():
                        self._drop(key.data)

    def _drop(self, listener: Listener) -> None:
        self.listeners.discard(listener)
        self.orders.append(listener.runners)
        self._selector.unregister(listener.sock)
        listener.sock.close()


class Storm:
    """The disturbances, and the times between which the source had to be running."""

    def __init__(self, server: Gunicorn, redis: RedisServer, crowd: Crowd, chooser: random.Random, most: int) -> None:
        self.server, self.redis, self.crowd, self.chooser, self.most = server, redis, crowd, chooser, most
        self.frozen: dict[int, float] = {}
        self.wakes: set[int] = set()
        self.done: Counter[str] = Counter()
        self.quiet: list[tuple[float, float]] = []  # from when to when nobody was there
        self.calm: list[tuple[float, float]] = []  # the source had to run all the while, but for REPLACED seconds
        self._calm_since: float | None = None

    @property
    def awake(self) -> set[int]:
        return set(self.server.worker_pids()) - self.frozen.keys()

    def disturb(self) -> None:
        acts = [self.join, self.join, self.leave, self.leave, self.kill, self.freeze, self.freeze, self.restart]
        act = self.chooser.choice(acts)
        self.done[act.__name__] += 1
        act()
        for pid, until in list(self.frozen.items()):
            if time.monotonic() >= until:
                self.thaw(pid)
        self.note()

    def note(self) -> None:
        """Note whether somebody listens at a worker that is awake."""
        now = time.monotonic()
        if self.crowd.of(self.awake) and self._calm_since is None:
            self._calm_since = now
        elif not self.crowd.of(self.awake):
            self.end_calm(now)

    def end_calm(self, now: float) -> None:
        if self._calm_since is not None:
            self.calm.append((self._calm_since, now))
        self._calm_since = None

    def join(self) -> None:
        self.crowd.join(min(self.chooser.randint(1, 10), self.most - len(self.crowd.listeners)))

    def leave(self) -> None:
        self.crowd.leave(self.chooser.randint(0, len(self.crowd.listeners) // 2), self.chooser)

    def kill(self) -> None:
        victim = self.chooser.choice(sorted(self.awake) or sorted(self.frozen))
        self.frozen.pop(victim, None)
        os.kill(victim, signal.SIGKILL)

    def freeze(self) -> None:
        if len(self.awake) > 1 and len(self.frozen) < 2:
            victim = self.runner() or self.chooser.choice(sorted(self.awake))
            os.kill(victim, signal.SIGSTOP)
            self.frozen[victim] = time.monotonic() + self.chooser.choice([0.5, 3, 9, 14])

    def thaw(self, pid: int) -> None:
        del self.frozen[pid]
        self.wakes.add(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def runner(self) -> int | None:
        """Return the worker that runs the source, one time of two."""
        log = calls(Path(self.server.env["UPSTREAM_LOG"]))
        pid = log[-1].pid if log else None
        return pid if pid in self.awake and self.chooser.random() < 0.5 else None

    def restart(self) -> None:
        stale = self.chooser.random() < 0.5
        self.done["stale"] += stale
        self.end_calm(time.monotonic())
        self.redis.restart(lost_writes=stale, down=self.chooser.choice([0, 0.5, 4, 8]))
        self.redis.snapshot()

    def all_leave(self) -> None:
        """Have nobody listen for as long as the source may go on, and 3 s more."""
        self.end_calm(time.monotonic())
        self.crowd.leave(len(self.crowd.listeners))
        left_at = time.monotonic()
        end = left_at + LATEST + NOISE + 3
        while time.monotonic() < end:
            for pid, until in list(self.frozen.items()):
                if time.monotonic() >= until:
                    self.thaw(pid)
            time.sleep(0.1)
        self.quiet.append((left_at, time.monotonic()))


def judge(storm: Storm, log: Path, orders: list[list[str]]) -> None:
    """Compare the upstream's log with the contract."""
    made = calls(log)
    assert made
    first: dict[str, float] = {}
    for call in made:
        first.setdefault(call.runner, call.at)
    began = sorted(first.values())
    for runner, begun in first.items():
        later = next((at for at in began if at > begun), None)
        extra = [call for call in made if call.runner == runner and later is not None and call.at > later]
        assert len(extra) <= 1, f"runner {runner} went on beside its successor: {extra}"
    for begun, ended in storm.quiet:
        late = [call for call in made if begun + LATEST + NOISE < call.at < ended]
        assert not late, f"nobody has listened since {begun}: {late}"
    for begun, ended in storm.calm:
        times = [begun, *(call.at for call in made if begun <= call.at <= ended), ended]
        longest = max(later - earlier for earlier, later in itertools.pairwise(times))
        assert longest <= REPLACED + NOISE, f"the source stood still for {longest} s between {begun} and {ended}"
    for order in orders:
        assert len(set(order)) == len(order), f"a runner stored values after its successor had: {order}"


def storm_of(tmp_path: Path, seed: int, disturbances: int, most: int, rests: int) -> Counter[str]:
    chooser = random.Random(seed)
    log = tmp_path / "upstream"
    with RedisServer(tmp_path) as redis:
        redis.snapshot()
        env = {
            "SSE_PUBLIC": "*",
            "SSE_REDIS_URL": redis.url,
            "SSE_REDIS_TIMEOUT": "2",
            "SSE_HEARTBEAT": "3",
            "UPSTREAM_LOG": str(log),
        }
        with Gunicorn(tmp_path, APP, env, workers=4) as server, Crowd(server.url) as crowd:
            storm = Storm(server, redis, crowd, chooser, most)
            crowd.join(most // 2)
            wait_until(lambda: calls(log), 10)
            for number in range(1, disturbances + 1):
                storm.disturb()
                time.sleep(chooser.choice([0.1, 0.5, 1, 2]))
                storm.note()
                if number % (disturbances // rests) == 0:
                    storm.all_leave()
                    crowd.join(most // 2)
            for pid in list(storm.frozen):
                storm.thaw(pid)
            storm.end_calm(time.monotonic())
            server.stop(30, signal.SIGTERM)
        judge(storm, log, crowd.orders)
    print(f"seed {seed}: {dict(storm.done)}, {len(calls(log))} calls, {len(storm.calm)} calm times")
    return storm.done


def test_one_worker_of_all_runs_a_source_whatever_happens_to_workers_and_redis(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    storm_of(tmp_path, seed, disturbances=14, most=12, rests=1)


@pytest.mark.long
def test_one_worker_of_all_runs_a_source_in_a_long_storm(tmp_path: Path) -> None:
    seed = int(os.environ.get("STORM_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}")
    done = storm_of(tmp_path, seed, disturbances=200, most=50, rests=5)
    assert min(done[name] for name in ("join", "leave", "kill", "freeze", "restart", "stale")) > 3
