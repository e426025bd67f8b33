"""The publisher works without Flask, in threads and in forked processes, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sse import ConfigError, Ended, InvalidEvent, NotFound, Publisher, RunRefused, Stopped, TooLarge
from sse.event import End, Event, Piece
from sse.service import living
from sse.stores import RedisStore, Standing
from tests.conftest import MakeApp
from tests.servers import ROOT, RedisServer, wait_until


def events(url: str, channel: str) -> list[Event]:
    store = RedisStore(url, ring=10_000, ring_ttl=3600)
    [standing] = store.standing([channel])
    assert isinstance(standing, Standing)
    [before] = store.before([(channel, 10_000)])
    start = standing.run.anchor if standing.run else before
    [page] = store.read([(channel, start)], limit=10_000, max_bytes=1 << 30)  # type: ignore[list-item]
    store.close()
    return [entry.event for entry in page.entries]  # type: ignore[union-attr]


def test_it_publishes_writes_and_stops(redis_url: str) -> None:
    with Publisher(redis_url=redis_url) as publisher:
        first = publisher.publish("news", {"number": 1}, "paid", idempotency_key="once")
        assert publisher.publish("news", {"number": 1}, "paid", idempotency_key="once") == first
        assert first.startswith("news=1-")
        with publisher.writing("a") as out:
            print("one", file=out)
            out.publish([1, 2])
        with pytest.raises(Stopped), publisher.writing("b") as out:
            assert publisher.stop("b") is True
            out.write("x")
        assert publisher.stop("b") is False
        with pytest.raises(RunRefused), publisher.writing("news"):
            pass
        with pytest.raises(Ended):
            publisher.publish("a", "late")
    assert events(redis_url, "news") == [Event({"number": 1}, "paid")]
    assert events(redis_url, "a") == [Piece("one"), Piece("\n"), Event([1, 2]), End("a", "done")]


def test_it_refuses_what_the_extension_refuses(redis_url: str) -> None:
    with Publisher(redis_url=redis_url, max_event_bytes=10) as publisher:
        with pytest.raises(TooLarge):
            publisher.publish("a", "x" * 11)
        with pytest.raises(InvalidEvent):
            publisher.publish("a", object())
        with pytest.raises(InvalidEvent):
            publisher.publish("a", "x", idempotency_key="not a key")
        with pytest.raises(InvalidEvent):
            publisher.stop("not a channel")


def test_it_counts_who_listens(redis_url: str, make_app: MakeApp) -> None:
    app = make_app(SSE_REDIS_URL=redis_url, SSE_PRESENCE="room/*")
    with Publisher(redis_url=redis_url, presence="room/*") as publisher:
        assert publisher.count("room/7") == 0
        with app.test_client().get("/sse/stream?channel=room/7") as response:
            next(iter(response.response))
            wait_until(lambda: publisher.count("room/7") == 1)
        with pytest.raises(NotFound):
            publisher.count("news")


def test_its_settings_come_from_the_environment_and_arguments_win(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, shared_redis: RedisServer
) -> None:
    monkeypatch.setenv("SSE_REDIS_URL", redis_url)
    monkeypatch.setenv("SSE_NAMESPACE", "shop")
    for settings, key in (({}, "shop:{a}"), ({"namespace": "mine"}, "mine:{a}")):
        with Publisher(**settings) as publisher:
            publisher.publish("a", "x")
        with shared_redis.client() as client:
            assert client.exists(key)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, "SSE_REDIS_URL is not set"),
        ({"redis_url": "redis://127.0.0.1", "rang": 5}, "SSE_RANG is not a setting"),
        ({"redis_url": "redis://127.0.0.1", "ring": "many"}, "SSE_RING"),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Publisher(**settings)


def test_it_needs_no_flask() -> None:
    code = (
        "import sys; from sse import Publisher; Publisher(redis_url='redis://127.0.0.1').close();"
        "print([name for name in ('flask', 'werkzeug', 'gevent', 'click') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    assert ran.stdout == "[]\n"


def test_servers_take_no_care_of_it(redis_url: str) -> None:
    before = living()
    with Publisher(redis_url=redis_url) as publisher:
        publisher.publish("a", "x")
        assert living() == before


def test_one_publisher_serves_all_threads(redis_url: str) -> None:
    with Publisher(redis_url=redis_url) as publisher, ThreadPoolExecutor(16) as threads:

        def work(number: int) -> str:
            with publisher.writing(f"run/{number}") as out:
                out.write(f"{number}")
            return publisher.publish("a", number)

        ids = set(threads.map(work, range(100)))
    assert len(ids) == 100
    assert {event.data for event in events(redis_url, "a")} == {str(number) for number in range(100)}
    assert [event.data for event in events(redis_url, "run/99")[:1]] == ["99"]


def test_a_publisher_that_was_used_before_a_fork_works_in_both_processes(redis_url: str) -> None:
    with Publisher(redis_url=redis_url) as publisher:
        held = threading.Event()

        def hold() -> None:
            with publisher.writing("parent") as out:
                out.write("one ")
                held.wait(20)
                out.write("two")

        thread = threading.Thread(target=hold)
        thread.start()
        publisher.publish("a", "parent")
        child = os.fork()
        if not child:
            status = 1
            try:
                publisher.publish("a", "child")
                with publisher.writing("child") as out:
                    out.write("from a child")
                publisher.close()
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert status == 0
        held.set()
        thread.join(10)
        publisher.publish("a", "parent")
    assert [event.data for event in events(redis_url, "a")] == ["parent", "child", "parent"]
    assert events(redis_url, "child") == [Piece("from a child"), End("child", "done")]
    assert events(redis_url, "parent") == [Piece("one "), Piece("two"), End("parent", "done")]


def test_a_run_stays_with_the_process_that_began_it(redis_url: str) -> None:
    with Publisher(redis_url=redis_url) as publisher, publisher.writing("a") as out:
        out.write("one ")
        child = os.fork()
        if not child:
            status = 1
            try:
                for call in (lambda: out.write("from a child"), out.flush, lambda: out.publish(1)):
                    with pytest.raises(Stopped, match="is another process's"):
                        call()
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        out.write("two")
    assert status == 0
    assert "".join(event.data for event in events(redis_url, "a") if isinstance(event, Piece)) == "one two"
    assert events(redis_url, "a")[-1] == End("a", "done")


def test_a_closed_publisher_begins_anew(redis_url: str) -> None:
    publisher = Publisher(redis_url=redis_url)
    publisher.publish("a", "one")
    publisher.close()
    publisher.close()
    publisher.publish("a", "two")
    publisher.close()
    assert [event.data for event in events(redis_url, "a")] == ["one", "two"]
