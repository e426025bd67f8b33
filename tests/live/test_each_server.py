"""What the docs promise holds on each server that can run the service, and across several workers."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from app import create_app
from tests import client
from tests.client import Parser, Stream
from tests.live.app_servers import FlaskRun
from tests.live.load import ENV, GREENLETS, KEY, ORIGIN, Follower
from tests.publishing import publish, storm
from tests.servers import Gunicorn, RedisServer, wait_until

APP = "tests.live.apps.named:application"
LOOK_ALIKES = ("null", "https://a.example.evil.net", "https://xa.example", "http://a.example", "https://a.example:8443")


@pytest.fixture(scope="module")
def four_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    directory = tmp_path_factory.mktemp("four")
    with (
        RedisServer(directory) as store,
        Gunicorn(directory, APP, ENV | {"SSE_REDIS_URL": store.url, "SSE_RETRY": "200"}, workers=4) as server,
    ):
        yield server


@pytest.fixture(
    scope="module", params=["gunicorn, memory", "gunicorn, Redis, 2 workers", "greenlets, memory", "flask run, memory"]
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    directory = tmp_path_factory.mktemp("server")
    with contextlib.ExitStack() as stack:
        if request.param == "gunicorn, memory":
            yield stack.enter_context(Gunicorn(directory, APP, ENV))
        elif request.param == "greenlets, memory":
            yield stack.enter_context(Gunicorn(directory, APP, ENV, arguments=GREENLETS))
        elif request.param == "flask run, memory":
            yield stack.enter_context(FlaskRun(directory, APP, ENV))
        else:
            store = stack.enter_context(RedisServer(directory))
            yield stack.enter_context(Gunicorn(directory, APP, ENV | {"SSE_REDIS_URL": store.url}, workers=2))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""  # as a zombie's is
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestOnEachServer:
    def test_streams_that_were_closed_leave_no_fd_and_no_thread(self, server: Gunicorn) -> None:
        def held() -> tuple[int, int]:
            """Return its descriptors, without those of Redis' pool, and its threads if each connection has one."""
            fds = server.fds()
            if "SSE_REDIS_URL" in server.env:
                with redis.Redis.from_url(server.env["SSE_REDIS_URL"]) as store:
                    fds -= len(store.client_list())
            return fds, len(os.listdir(f"/proc/{server.pid}/task")) if isinstance(server, FlaskRun) else 0

        with ThreadPoolExecutor(8) as threads:  # so that each worker has its hub and its connections
            list(threads.map(lambda _: client.poll(server.url, ["f"]), range(40)))
        time.sleep(0.5)
        base = held()
        streams = [Stream(server.url, {"channel": "f"}) for _ in range(20)]
        for stream in streams:
            stream.until("sse.heartbeat")
        assert held()[0] >= base[0] + 20
        for stream in streams:
            stream.close()
        wait_until(lambda: all(now <= then for now, then in zip(held(), base, strict=True)), 8, what=f"{base} again")

    def test_an_event_reaches_streams_and_waiting_polls_under_one_id(self, server: Gunicorn) -> None:
        top = client.poll(server.url, ["a"], timeout=5).json()["last_event_id"]
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(4) as threads:
            polls = [threads.submit(client.poll, server.url, ["a"], top, timeout=10) for _ in range(4)]
            streams = [stack.enter_context(Stream(server.url, {"channel": "a"})) for _ in range(4)]
            for stream in streams:
                assert stream.headers["Content-Type"] == "text/event-stream"
                assert stream.until("sse.open").id == top
            for number in range(3):  # each is there before the next is published
                [id] = publish(server, "a", {"n": number, "text": "zwölf\n\n€"})
                for stream in streams:
                    [event] = stream.take(1)
                    assert (event.id, event.json()) == (id, {"n": number, "text": "zwölf\n\n€"})
                if not number:
                    answers = [poll.result().json() for poll in polls]
                    assert [[event["id"] for event in answer["events"]] for answer in answers] == [[id]] * 4
                    assert {answer["last_event_id"] for answer in answers} == {id}

    def test_a_client_goes_on_where_it_was_on_either_transport(self, server: Gunicorn) -> None:
        follower = Follower(server.url, ["b", "c"])
        follower.poll()
        for number in range(20):
            publish(server, "b", str(number))
            publish(server, "c", str(number))
            if number % 5 == 2:
                follower.stream(lambda at=number: follower.is_at(at))  # type: ignore[misc]
            elif number % 5 == 4:
                follower.poll()
        follower.finish(20)

    def test_what_cannot_be_continued_is_reset(self, server: Gunicorn) -> None:
        [id] = publish(server, "d", "seen")
        with Stream(server.url, {"channel": "d"}, last_event_id="d=7-123") as stream:
            assert stream.until("sse.reset").json()["reason"] in ("diverged", "unknown")
            assert stream.last_event_id == id
        assert [reset["channel"] for reset in client.poll(server.url, ["d"], "d=7-123").json()["resets"]] == ["d"]

    def test_a_quiet_stream_has_heartbeats(self, server: Gunicorn) -> None:
        with Stream(server.url, {"channel": "e", "heartbeat": 3}) as stream:
            stream.until("sse.heartbeat")
            begun = time.monotonic()
            [event] = [stream.next(5)]
            assert event
            assert (event.event, event.data, event.own_id) == ("sse.heartbeat", "", None)
            assert 2.8 < time.monotonic() - begun < 4

    def test_cors_is_on_the_streamed_answer_of_a_listed_origin_alone(self, server: Gunicorn) -> None:
        for origin in (ORIGIN, *LOOK_ALIKES):
            with Stream(server.url, {"channel": "g"}, headers={"Origin": origin}) as stream:
                assert stream.until("sse.open")
                allowed = stream.headers["Access-Control-Allow-Origin"]
                credentials = stream.headers["Access-Control-Allow-Credentials"]
                assert (allowed, credentials) == ((ORIGIN, "true") if origin == ORIGIN else (None, None))
                assert "Origin" in stream.headers["Vary"]


def test_the_test_client_reads_a_stream_while_events_are_published() -> None:
    app = create_app({name: value for name, value in ENV.items() if name != "SSE_ORIGINS"})
    parser = Parser()
    try:
        with app.test_client().get("/sse/stream?channel=a", buffered=False) as response:
            assert response.status_code == 200
            chunks = response.iter_encoded()
            assert [event.event for event in parser.feed(next(chunks))] == ["sse.open", "sse.heartbeat"]
            for number in range(3):
                answer = app.test_client().post(
                    "/sse/publish/a",
                    data=str(number),
                    headers={"Authorization": f"Bearer {KEY}"},
                    mimetype="text/plain",
                )
                [event] = parser.feed(next(chunks))
                assert (event.data, [event.id]) == (str(number), answer.json["ids"])  # type: ignore[index]
        assert app.extensions["sse"].hub.subscribers == 0
    finally:
        app.extensions["sse"].close()


def test_streams_end_with_their_lifetime_and_their_clients_lose_nothing(tmp_path: Path) -> None:
    env = ENV | {"SSE_STREAM_LIFETIME": "5", "SSE_RETRY": "1000"}
    with Gunicorn(tmp_path, APP, env) as server, ThreadPoolExecutor(4) as threads:

        def follow() -> Follower:
            follower = Follower(server.url, ["a"])
            follower.poll()
            ready.append(follower)
            wait_until(lambda: len(ready) == 4)
            for _ in range(2):
                begun = time.monotonic()
                stream = follower.stream(lambda: False, 8)
                assert 3.9 < time.monotonic() - begun < 6.5
                last = Parser().feed(stream.received)[-1]
                assert (last.event, last.own_id) == ("sse.close", None)
                assert last.json() == {"reason": "lifetime", "retry": last.retry}
                assert last.retry is not None
                assert 100 <= last.retry <= 1000
                assert stream.complete
                time.sleep(last.retry / 1000)
            return follower

        ready: list[Follower] = []
        following = [threads.submit(follow) for _ in range(4)]
        wait_until(lambda: len(ready) == 4)
        with storm(server.url, ["a"], 0.01) as publisher:
            followers = [each.result(20) for each in following]
        for follower in followers:
            follower.finish(publisher.count)


def test_a_second_worker_on_the_memory_store_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV) as server:
        [worker] = server.worker_pids()
        for count in range(1, 3):
            os.kill(server.pid, signal.SIGTTIN)
            wait_until(lambda wanted=count: server.logs().count("set SSE_REDIS_URL") == wanted)  # type: ignore[misc]
        time.sleep(0.5)
        assert server.worker_pids() == [worker]


def test_a_second_worker_on_redis_is_started(tmp_path: Path, redis_server: RedisServer) -> None:
    with Gunicorn(tmp_path, APP, ENV | {"SSE_REDIS_URL": redis_server.url}) as server:
        os.kill(server.pid, signal.SIGTTIN)
        wait_until(lambda: len(server.worker_pids()) == 2)


def test_a_redis_that_is_away_at_the_start_is_told_before_anybody_subscribes(tmp_path: Path) -> None:
    store = RedisServer(tmp_path, maxmemory_policy="allkeys-lru")
    with Gunicorn(tmp_path, APP, ENV | {"SSE_REDIS_URL": store.url}) as server:
        wait_until(lambda: "the store is away" in server.logs(), 2)
        assert client.publish(server.url, "a", "x", key=KEY).status == 503
        with store:
            wait_until(lambda: "maxmemory-policy allkeys-lru" in server.logs(), 5)
            assert client.publish(server.url, "a", "x", key=KEY).status == 503
            with store.client() as redis_client:
                redis_client.config_set("maxmemory-policy", "noeviction")
            wait_until(lambda: "the store is back" in server.logs(), 15)
            publish(server, "a", "x")


@pytest.mark.parametrize("arguments", [[], ["--preload"]])
def test_bad_settings_end_gunicorn_with_one_line_that_names_them(tmp_path: Path, arguments: list[str]) -> None:
    server = Gunicorn(tmp_path, env={"SSE_RINGS": "5", "SSE_RETRY": "x"}, arguments=arguments)
    with pytest.raises(AssertionError, match="ended with 3"):
        server.start()
    [line] = [line for line in server.logs().splitlines() if "SSE_" in line]
    assert "did you mean SSE_RING?" in line
    assert "SSE_RETRY is 'x'" in line
    assert "Traceback" not in server.logs()


def test_a_long_cookie_of_another_app_ends_no_stream(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV) as server:
        with Stream(server.url, {"channel": "a"}, headers={"Cookie": "c=" + "x" * 30_000}) as stream:
            assert stream.status == 200
            stream.until("sse.open")
        with Stream(server.url, {"channel": "a"}, headers={"Cookie": "c=" + "x" * 33_000}) as stream:
            assert stream.status == 431


def test_an_app_that_is_loaded_before_the_fork_has_a_hub_in_each_worker(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    env = ENV | {"SSE_REDIS_URL": redis_server.url}
    with (
        Gunicorn(tmp_path, APP, env, workers=2, arguments=["--preload"]) as server,
        contextlib.ExitStack() as stack,
    ):
        streams: list[Stream] = []
        for _ in range(50):  # an idle worker may be the first at several in a row
            with ThreadPoolExecutor(8) as threads:
                streams += threads.map(lambda _: Stream(server.url, {"channel": "a"}), range(8))
            if len({stream.headers["X-Worker"] for stream in streams}) == 2:
                break
        for stream in streams:
            stack.enter_context(stream)
            stream.until("sse.heartbeat")
        for number in range(3):
            [id] = publish(server, "a", number)
            assert {stream.take(1)[0].id for stream in streams} == {id}
        with redis_server.client() as store:
            assert len(store.client_list(_type="pubsub")) == 2


def test_a_client_that_changes_worker_and_transport_at_every_request_hears_each_event_once_in_order(
    four_workers: Gunicorn, pytestconfig: pytest.Config
) -> None:
    rng = random.Random(pytestconfig.getoption("hypothesis_seed"))
    follower = Follower(four_workers.url, ["switch/a", "switch/b"])
    follower.poll()
    with storm(four_workers.url, follower.channels, 0.005) as publisher:
        for turn in range(100):
            if turn % 2:
                follower.poll()
                continue
            blocks = iter(range(rng.choice((1, 2, 3, 8, 20))))
            follower.stream(lambda blocks=blocks: next(blocks, None) is None)  # type: ignore[misc]
    follower.finish(publisher.count)
    assert len(set(follower.workers)) == 4


def test_when_a_worker_is_killed_its_clients_go_on_at_the_others_and_lose_nothing(four_workers: Gunicorn) -> None:
    done = False
    followers = [Follower(four_workers.url, ["kill"]) for _ in range(8)]

    def follow(follower: Follower) -> int:
        for cuts in range(100):
            with contextlib.suppress(OSError):
                follower.stream(lambda: done and follower.is_at(publisher.count), 30)
            if done and follower.is_at(publisher.count):
                return cuts
            time.sleep(0.05)
        raise AssertionError("always cut")

    for follower in followers:
        follower.poll()
    with ThreadPoolExecutor(8) as threads:
        with storm(four_workers.url, ["kill"], 0.005) as publisher:
            following = [threads.submit(follow, follower) for follower in followers]
            for follower in followers[:4]:
                time.sleep(0.5)
                before = set(four_workers.worker_pids())
                wait_until(lambda one=follower, old=before: one.workers[-1] in old)  # type: ignore[misc]
                os.kill(follower.workers[-1], signal.SIGKILL)
                wait_until(lambda old=before: set(four_workers.worker_pids()) - old)  # type: ignore[misc]
            time.sleep(0.5)
        done = True
        publish(four_workers.url, "kill", str(publisher.count))  # wakes the clients that are at the end already
        cuts = [each.result(30) for each in following]
    assert sum(cuts) >= 4
    for follower in followers:
        follower.finish(publisher.count + 1)


def test_sigterm_ends_gunicorn_in_time_whatever_streams_are_open(tmp_path: Path, redis_server: RedisServer) -> None:
    with (
        Gunicorn(tmp_path, APP, ENV | {"SSE_REDIS_URL": redis_server.url}, workers=2) as server,
        contextlib.ExitStack() as stack,
    ):
        streams = [stack.enter_context(Stream(server.url, {"channel": "a"})) for _ in range(8)]
        for stream in streams:
            stream.until("sse.heartbeat")
        pids = [server.pid, *server.worker_pids()]
        assert len(pids) == 3
        begun = time.monotonic()
        assert server.process
        server.process.terminate()
        server.process.wait(10)
        assert time.monotonic() - begun < 2 + 2
        wait_until(lambda: not any(map(is_running, pids)), 1)
        for stream in streams:
            list(stream.events(1))  # to its end
        with redis_server.client() as store:
            assert len(store.client_list()) == 1
