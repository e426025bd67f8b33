"""Under gevent, an app publishes from real threads that gevent does not know, and no other client is held up."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests import client
from tests.client import Parser, Stream
from tests.live.load import GREENLETS, KEY
from tests.publishing import Publisher, publish
from tests.servers import Gunicorn, RedisServer, wait_until
from tests.tokens import SECRET

APP = "tests.live.apps.threaded:application"
ENV = {
    "SSE_PUBLIC": "news,news/*,other,room/*",
    "SSE_PUBLISH_KEYS": KEY,
    "SSE_SECRET": SECRET,
    "SSE_QUERY_TOKENS": "1",
    "SSE_HEARTBEAT": "3",
    "SSE_REDIS_TIMEOUT": "1",
    "SSE_RING": "10000",
    "SSE_PRESENCE": "room/*",
}


KINDS = ("worker, memory", "worker, redis", "gevent, memory", "gevent, redis")


@contextlib.contextmanager
def serving(kind: str, directory: Path, *arguments: str) -> Iterator[Gunicorn]:
    worker, _, store = kind.partition(", ")
    with contextlib.ExitStack() as stack:
        env = dict(ENV)
        if store == "redis":
            env["SSE_REDIS_URL"] = stack.enter_context(RedisServer(directory)).url
        server = Gunicorn(directory, APP, env, arguments=(*arguments, *(GREENLETS if worker == "gevent" else ())))
        yield stack.enter_context(server)


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    with serving(request.param, tmp_path_factory.mktemp("threads")) as server:
        yield server


def get(server: Gunicorn, path: str, **params: Any) -> Any:
    answer = client.request(server.url, "GET", path, params)
    assert answer.status == 200, answer
    return answer.json()


@contextlib.contextmanager
def bystander(server: Gunicorn) -> Iterator[None]:
    """Publish over HTTP, one event after another, while the block runs, and see that none takes long."""
    longest = 0.0

    def publish_timed(_: int) -> None:
        nonlocal longest
        began = time.monotonic()
        publish(server, "other", "by")
        longest = max(longest, time.monotonic() - began)

    with Publisher(publish_timed, 0.005) as publisher:
        yield
    assert publisher.count
    assert longest < 3


@pytest.mark.parametrize(("kind", "threads", "each"), [("pool", 10, 40), ("raw", 8, 50), ("raw", 200, 2)])
def test_each_event_of_each_thread_arrives_in_its_order(server: Gunicorn, kind: str, threads: int, each: int) -> None:
    with Stream(server.url, {"channel": "news"}) as stream, bystander(server), bystander(server):
        outcomes = get(server, f"/in/{kind}/publish", channel="news", threads=threads, each=each)
        assert [ids for ids in outcomes if not isinstance(ids, list)] == []
        assert len({id for ids in outcomes for id in ids}) == threads * each
        told = defaultdict(list)
        for event in stream.take(threads * each, 20):
            number, count = event.json()
            told[number].append(count)
    assert told == {number: list(range(each)) for number in range(threads)}


@pytest.mark.parametrize("worker", ["worker", "gevent"])
def test_all_of_gevent_s_threads_publish_while_redis_has_to_be_found_again(worker: str, tmp_path: Path) -> None:
    with serving(f"{worker}, redis", tmp_path) as server, redis.Redis.from_url(server.env["SSE_REDIS_URL"]) as store:
        for _ in range(3):
            for kind in ("normal", "pubsub"):
                store.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")  # type: ignore[no-untyped-call]
            outcomes = get(server, "/in/pool/publish", channel="news", threads=30, each=2)
            assert [ids for ids in outcomes if not isinstance(ids, list)] == []
            assert len(outcomes) == 30


def test_a_key_is_good_in_every_thread(server: Gunicorn) -> None:
    (ids,) = get(server, "/in/raw/publish", channel="news", each=1, key="once")
    for kind in ("raw", "pool"):
        assert get(server, f"/in/{kind}/publish", channel="news", each=1, key="once") == [ids]
    (refused,) = get(server, "/in/raw/publish", channel="news", each=2, key="once")
    assert refused == ids * 2 or "IdempotencyConflict" in refused


def test_a_thread_that_waits_in_vain_stores_nothing(server: Gunicorn) -> None:
    with Stream(server.url, {"channel": "news"}) as stream:
        assert len(get(server, "/blocked/0.3/raw/publish", channel="news", each=1)["in the end"]) == 1
        blocked = get(server, "/blocked/2.5/raw/publish", channel="news", each=1)
        assert blocked["meanwhile"] == blocked["in the end"]
        assert "busy for 1 s, so nothing was stored: try again" in blocked["meanwhile"][0]
        get(server, "/in/green/publish", channel="news", each=1, threads=2)
        assert [event.json() for event in stream.take(3)] == [[0, 0], [0, 0], [1, 0]]


def test_a_thread_revokes_signs_tickets_and_closes(server: Gunicorn) -> None:
    (ticket,) = get(server, "/in/raw/ticket")
    with Stream(server.url, {"channel": "secret", "token": ticket}) as stream, bystander(server):
        assert stream.status == 200
        assert get(server, "/in/raw/revoke", sub="ann") == [None]
        assert stream.until("sse.close").json()["reason"] == "expired"
    assert get(server, "/in/raw/close") == [None]
    assert len(get(server, "/in/green/publish", channel="news", each=1)[0]) == 1
    assert len(get(server, "/in/raw/publish", channel="news", each=1)[0]) == 1


@pytest.mark.parametrize("kind", ["raw", "pool", "green"])
def test_a_thread_writes_begins_and_stops_runs(server: Gunicorn, kind: str) -> None:
    channel = f"news/{kind}"
    with bystander(server):
        assert get(server, f"/in/{kind}/write", channel=channel, threads=5) == [[True, True, "Stopped"]] * 5
    with Stream(server.url, {"channel": f"{channel}/4/run"}) as stream:
        assert stream.until("sse.end").json()["reason"] == "done"
        assert "".join(
            event.data or "" for event in Parser().feed(stream.received) if event.event == "text"
        ) == "".join(f"{count} " for count in range(100))


@pytest.mark.parametrize("kind", ["raw", "pool", "green"])
def test_a_thread_counts_those_who_listen(server: Gunicorn, kind: str) -> None:
    channel = f"room/{kind}"
    with Stream(server.url, {"channel": channel}) as stream, bystander(server):
        stream.until("sse.open")
        wait_until(lambda: get(server, f"/in/{kind}/count", channel=channel, threads=5) == [[1, []]] * 5, 5)
    wait_until(lambda: get(server, f"/in/{kind}/count", channel=channel) == [[0, []]], 10)


def test_a_thread_that_would_listen_is_refused_alone(server: Gunicorn) -> None:
    with Stream(server.url, {"channel": "news"}) as stream, bystander(server):
        assert get(server, "/in/raw/listen", threads=5) == [503] * 5
        get(server, "/in/raw/publish", channel="news", each=1)
        assert stream.take(1)[0].json() == [0, 0]


def test_signals_that_gevent_hands_on_publish_too(server: Gunicorn) -> None:
    with Stream(server.url, {"channel": "news"}) as stream, bystander(server):
        outcomes = get(server, "/by-signal/publish", channel="news", each=1)
        assert [event.json() for event in stream.take(20)] == [[0, 0]] * 20
        assert len({id for ((id,),) in outcomes}) == 20


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_publish_do_not_keep_a_worker_from_ending(kind: str, tmp_path: Path) -> None:
    with serving(kind, tmp_path) as server:
        get(server, "/in/raw/publish_for_ever", channel="news", threads=10)
        get(server, "/in/pool/publish_for_ever", channel="news", threads=5)
        with bystander(server):
            time.sleep(0.3)
        assert server.process
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert "TIMEOUT" not in server.logs()
        server.process = None


@pytest.mark.parametrize("store", ["memory", "redis"])
def test_a_thread_is_the_first_to_publish_or_is_refused_alone(store: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare.conf.py"
    bare.write_text("import os\nbind = os.environ['BIND']\n")
    with serving(f"gevent, {store}", tmp_path, "-c", str(bare)) as server:
        assert len(get(server, "/in/raw/publish", channel="news", each=1)[0]) == 1
        assert len(get(server, "/in/green/publish", channel="news", each=1)[0]) == 1
    # Where the app is made before gevent patches, a thread cannot know its home.
    with serving(f"gevent, {store}", tmp_path, "-c", str(bare), "--preload") as server:
        (refused,) = get(server, "/in/raw/publish", channel="news", each=1)
        assert refused.startswith("StoreUnavailable: under gevent, the store belongs to the thread that")
        with Stream(server.url, {"channel": "news"}) as stream:
            assert len(get(server, "/in/raw/publish", channel="news", each=1)[0]) == 1
            assert stream.take(1)[0].json() == [0, 0]
