"""A Redis that hangs, or answers slowly: each call that waits for it ends in time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sse.errors import StoreUnavailable
from sse.event import Event, Position
from sse.stores import Publication, RedisStore
from sse.stores.pool import Pool
from tests.proxies import TcpProxy
from tests.servers import RedisServer, wait_until

TIMEOUT = 1.0
NEVER = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    store = RedisStore(server.url, ring=100, ring_ttl=60, timeout=TIMEOUT)
    yield store
    store.close()


@contextlib.contextmanager
def hanging(server: RedisServer) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def timed(call: Callable[[], object]) -> tuple[str, float, float]:
    """Return the error of the call, and when it began and ended."""
    begun = time.monotonic()
    try:
        call()
    except StoreUnavailable as error:
        return str(error), begun, time.monotonic()
    return "", begun, time.monotonic()


def outcome(store: RedisStore, number: int) -> str:
    """Publish the event of this number with its own key, and return the result."""
    (receipt,) = store.publish([Publication("a", Event(number), f"key{number}")])
    return receipt.outcome if not isinstance(receipt, StoreUnavailable) else str(receipt)


def test_publishes_end_in_time_and_those_that_wait_together_share_the_outcome(
    server: RedisServer, store: RedisStore
) -> None:
    outcome(store, -1)

    def late(number: int) -> tuple[str, float, float]:
        time.sleep(number / 40 * TIMEOUT)  # the last ones come when half of the time is over
        return timed(lambda: outcome(store, number))

    with ThreadPoolExecutor(20) as pool, hanging(server):
        told = list(pool.map(late, range(20)))
    assert all("Redis" in fault for fault, *_ in told)
    assert max(end - begun for _, begun, end in told) < 1.5 * TIMEOUT
    # The first one's attempt was the only one: all end with it, the last ones after half of the time.
    assert max(end for *_, end in told) - min(end for *_, end in told) < 0.3 * TIMEOUT
    outcomes = [outcome(store, number) for number in range(20)]
    assert set(outcomes) <= {"new", "again"}
    (newest,) = store.newest(["a"])
    assert isinstance(newest, Position) and newest.offset == 21  # each is stored once


def test_a_leader_that_is_stuck_keeps_nobody_beyond_its_time(
    server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader hangs, for example, in resolving a name, which nothing can end."""
    outcome(store, -1)
    ask, stuck = store._pool.ask, threading.Event()

    def ask_late(*arguments: Any) -> Any:
        stuck.wait(3 * TIMEOUT)
        return ask(*arguments)

    monkeypatch.setattr(store._pool, "ask", ask_late)
    with ThreadPoolExecutor(5) as pool:
        leads = pool.submit(outcome, store, 0)
        wait_until(lambda: store._has_leader and not store._pending)
        told = list(pool.map(lambda number: timed(lambda: outcome(store, number)), range(1, 5)))
        assert all("has not answered for 1 s" in fault for fault, *_ in told)
        assert max(end - begun for _, begun, end in told) < 1.5 * TIMEOUT
        assert not leads.done() and not store._pending
        stuck.set()
        with contextlib.suppress(StoreUnavailable):
            leads.result()
    monkeypatch.undo()
    assert not store._has_leader
    assert outcome(store, 1) == "new"


def test_every_call_ends_in_time_and_a_check_that_is_under_way_is_shared(
    server: RedisServer, store: RedisStore
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.newest(["a"], prolong=True),
        lambda: store.ensure(["a"]),
        lambda: store.read([("a", Position(1, 1))]),
        lambda: store.before([("a", 1)]),
        lambda: store.revoke("x", 60),
        lambda: store.revoked(),
        lambda: store.publish([Publication("a", Event("x"), "k"), Publication("b", Event("x"), "k")]),
        lambda: store.publish([Publication("a", Event("x"))]),
        lambda: store.feed().read(NEVER),
        store.check,
    ]
    for checked in (False, True):
        with ThreadPoolExecutor(3 * len(calls)) as pool, hanging(server):
            told = list(pool.map(timed, 3 * (calls[:-1] if checked else calls)))
            assert all(fault for fault, *_ in told)
            assert max(end - begun for _, begun, end in told) < 1.7 * TIMEOUT
        store.newest(["a"])


def test_a_connection_that_died_without_a_word_costs_half_of_the_time(server: RedisServer) -> None:
    with TcpProxy(server.port) as proxy:
        store = RedisStore(f"redis://127.0.0.1:{proxy.port}/0", ring=5, ring_ttl=60, timeout=TIMEOUT)
        with ThreadPoolExecutor(8) as pool, server.client() as client:
            client.client_pause(200, all=True)
            list(pool.map(lambda _: store.newest(["a"]), range(8)))  # several connections, all of them soon dead
        proxy.silence()
        for number in range(3):
            fault, begun, end = timed(lambda number=number: outcome(store, number))  # type: ignore[misc]
            assert not fault
            assert (end - begun < 0.4 * TIMEOUT) == (number > 0)
        assert outcome(store, 0) == "again"
        store.close()


def test_a_slow_login_ends_in_time(server: RedisServer) -> None:
    with TcpProxy(server.port) as proxy, contextlib.closing(Pool(f"redis://127.0.0.1:{proxy.port}/1", 1)) as pool:
        proxy.delay = 0.6 * TIMEOUT  # for each step; there are several
        fault, begun, end = timed(lambda: ask(pool))
        assert "Timeout" in fault or "over" in fault
        assert end - begun < 1.3 * TIMEOUT
        proxy.delay = 0
        assert ask(pool) == [b"PONG"]


def ask(pool: Pool) -> list[object]:
    try:
        return pool.ask([("PING",)], time.monotonic() + TIMEOUT)
    except Exception as error:
        raise StoreUnavailable(str(error)) from error


def test_a_server_that_was_restarted_is_asked_again_at_once(server: RedisServer, store: RedisStore) -> None:
    with ThreadPoolExecutor(8) as pool, server.client() as client:
        client.client_pause(200, all=True)
        list(pool.map(lambda _: store.newest(["a"]), range(8)))
    server.restart()
    assert outcome(store, 1) == "new"
    assert outcome(store, 1) == "again"


def test_who_waits_for_a_connection_gets_the_next_that_is_free(server: RedisServer) -> None:
    with contextlib.closing(Pool(server.url, 2)) as pool, ThreadPoolExecutor(20) as threads, server.client() as client:
        client.client_pause(100, all=True)
        assert list(threads.map(lambda _: ask(pool), range(20))) == [[b"PONG"]] * 20
        assert len(pool._made) == len(pool._free) == 2 and not pool._waiting


INTERRUPTED = """
from gevent import monkey; monkey.patch_all()
import sys, time, gevent, redis
from sse.stores.pool import Pool

pool = Pool(sys.argv[1], 2)
ask = lambda: pool.ask([("PING",)], time.monotonic() + 5)
assert ask() == [b"PONG"]
for kept in range(6):
    redis.Redis.from_url(sys.argv[1]).client_pause(200, all=True)
    greenlets = [gevent.spawn(ask) for _ in range(6)]
    time.sleep(0.05)
    for number, greenlet in enumerate(greenlets):
        if number != kept:
            greenlet.kill(block=False)
    assert greenlets[kept].get(timeout=3) == [b"PONG"]
    assert len(pool._made) == len(pool._free) == 2 and not pool._waiting
"""


def test_who_is_ended_while_it_waits_takes_no_connection_along(server: RedisServer) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, server.url], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
