"""Random faults under random load: nothing is lost, doubled or reordered unless a reset says so.

CHAOS_SEEDS is the number of seeds to run. CHAOS_SEED runs one seed again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sse.event import UNBORN
from tests.chaos.cluster import Cluster, CrashingRedis

SEEDS = [int(os.environ["CHAOS_SEED"])] if "CHAOS_SEED" in os.environ else range(int(os.environ.get("CHAOS_SEEDS", 20)))
CHANNELS = ("news", "chat/room", "ticks")
SECONDS = 2.2  # of faults in each seed

Fault = Callable[[Cluster, random.Random], None]


def kill_subscriptions(cluster: Cluster, rng: random.Random) -> None:
    cluster.redis.ask("CLIENT", "KILL", "TYPE", "pubsub")


def kill_commands(cluster: Cluster, rng: random.Random) -> None:
    cluster.redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def overrun(cluster: Cluster, rng: random.Random) -> None:
    cluster.redis.ask("CONFIG", "SET", "client-output-buffer-limit", "pubsub 20000 0 0")
    batch = [cluster.event(rng.choice(CHANNELS), 1000) for _ in range(60)]
    cluster.ledger.publish(rng.choice(cluster.services).store, batch)
    cluster.redis.ask("CONFIG", "SET", "client-output-buffer-limit", "pubsub 33554432 8388608 60")


def restart(cluster: Cluster, rng: random.Random) -> None:
    cluster.redis.restart(down=rng.uniform(0.1, 1))


def freeze(cluster: Cluster, rng: random.Random) -> None:
    os.kill(cluster.redis.pid, signal.SIGSTOP)
    try:
        time.sleep(rng.uniform(0.1, 1))
    finally:
        os.kill(cluster.redis.pid, signal.SIGCONT)


def fill_memory(cluster: Cluster, rng: random.Random) -> None:
    cluster.redis.ask("CONFIG", "SET", "maxmemory", "1")
    time.sleep(rng.uniform(0.1, 0.4))
    cluster.redis.ask("CONFIG", "SET", "maxmemory", "0")


def mistake_key(cluster: Cluster, rng: random.Random) -> None:
    """Give a ring's key a wrong type for a while, then put the ring back."""
    key = cluster.redis.key(rng.choice(CHANNELS))
    swap = "if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('RENAME', KEYS[1], KEYS[2]) {} end"
    cluster.redis.ask("EVAL", swap.format("redis.call('SET', KEYS[1], 'mistaken')"), 2, key, f"{key}:aside")
    time.sleep(rng.uniform(0.1, 0.4))
    cluster.redis.ask("EVAL", swap.format(""), 2, f"{key}:aside", key)


def mute(cluster: Cluster, rng: random.Random) -> None:
    """Store events without announcing them."""
    cluster.redis.ask("ACL", "SETUSER", "default", "-publish")
    time.sleep(rng.uniform(0.1, 0.4))
    cluster.redis.ask("ACL", "SETUSER", "default", "+publish")


def restore_key(cluster: Cluster, rng: random.Random) -> None:
    """Put back an older state of one ring while there are subscribers."""
    key = cluster.redis.key(rng.choice(CHANNELS))
    with contextlib.closing(cluster.redis.client(decode_responses=False)) as redis:
        backup = redis.dump(key)
        time.sleep(rng.uniform(0, 0.3))
        with cluster.ledger.loss():
            if backup:
                redis.restore(key, 0, backup, replace=True)


def rewind(cluster: Cluster, rng: random.Random) -> None:
    with cluster.ledger.loss():
        cluster.redis.rewind(down=rng.uniform(0, 0.5))


def remember(cluster: Cluster, rng: random.Random) -> None:
    cluster.redis.remember()


def flush(cluster: Cluster, rng: random.Random) -> None:
    with cluster.ledger.loss():
        cluster.redis.ask("FLUSHALL")


def delete_key(cluster: Cluster, rng: random.Random) -> None:
    with cluster.ledger.loss():
        cluster.redis.ask("DEL", cluster.redis.key(rng.choice(CHANNELS)))


LOSSLESS: list[Fault] = [kill_subscriptions, kill_commands, overrun, restart, freeze, fill_memory, mistake_key, mute]
LOSSY: list[Fault] = [rewind, rewind, rewind, remember, remember, flush, delete_key, restore_key, restore_key]


class Publisher(threading.Thread):
    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        super().__init__(name="publisher", daemon=True)
        self.cluster, self.rng, self.ended = cluster, rng, threading.Event()

    def run(self) -> None:
        try:
            while not self.ended.wait(self.rng.expovariate(120)):
                key = self.rng.random() < 0.7
                batch = [
                    self.cluster.event(self.rng.choice(CHANNELS), self.rng.choice((20, 200)), key)
                    for _ in range(self.rng.choice((1, 1, 2, 10)))
                ]
                self.cluster.ledger.counts["events"] += self.cluster.ledger.publish(
                    self.rng.choice(self.cluster.services).store, batch
                )
        except Exception as error:
            self.cluster.ledger.faults.append(f"a publisher ended: {error!r}")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashingRedis]:
    with CrashingRedis(Path(tmp_path_factory.mktemp("chaos"))) as server:
        yield server


@pytest.mark.chaos
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_nothing_is_lost_in_silence(
    seed: int, redis: CrashingRedis, totals: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"CHAOS_SEED={seed}")
    rng = random.Random(seed)
    # Only to save time: hubs find unannounced events in 1 s, not in 5. test_faults runs with the real pause.
    for module in ("schedule", "upkeep"):
        monkeypatch.setattr(f"sse.hub.{module}.CHECK_EVERY", 1.0)
    # Small rings in the hub, so that subscribers also read from the store.
    monkeypatch.setattr("sse.hub.channel.CHANNEL_BYTES", rng.choice((1 << 20, 8000)))
    gentle = rng.random() < 0.3
    redis.ask("FLUSHALL")
    redis.remember()
    with Cluster(redis, ring=20_000 if gentle else rng.choice((5, 20, 100))) as cluster:
        for channel in CHANNELS:
            cluster.publish(channel)
        for _ in range(5):
            channels = rng.sample(CHANNELS, rng.randint(1, 3))
            cluster.client(*channels, worker=None, rng=random.Random(rng.random()), heartbeat=rng.uniform(0.2, 0.6))
        for _ in range(2):
            channels = rng.sample(CHANNELS, rng.randint(1, 3))
            cluster.client(*channels, worker=None, rng=random.Random(rng.random()), apps=cluster.apps)
        cluster.client(*CHANNELS, worker=0, heartbeat=0.5)
        cluster.client(*CHANNELS, worker=1, transport="poll")
        publishers = [Publisher(cluster, random.Random(rng.random())) for _ in range(3)]
        for publisher in publishers:
            publisher.start()
        deadline = time.monotonic() + SECONDS
        try:
            while time.monotonic() < deadline:
                time.sleep(rng.uniform(0, 0.25))
                fault = rng.choice(LOSSLESS if gentle else LOSSLESS + LOSSY)
                print(f"{SECONDS + time.monotonic() - deadline:.2f} s: {fault.__name__}")
                fault(cluster, rng)
                totals[fault.__name__] += 1
        finally:
            for publisher in publishers:
                publisher.ended.set()
        for publisher in publishers:
            publisher.join(20)
            assert not publisher.is_alive(), "a publisher never came to its end"
        for client in cluster.clients:
            client.settle()
        cluster.settle()
        if gentle:
            undue = [reset for client in cluster.clients for reset in client.resets if reset[2] != UNBORN]
            assert not undue, f"resets without a cause: {undue}"
    totals.update(cluster.ledger.counts)
    totals["seeds"] += 1
    totals["connections"] += sum(client.connections for client in cluster.clients)
