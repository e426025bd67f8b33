"""`SSE.close`, and an app that is garbage-collected, leave no thread and no connection behind."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from sse import SSE, StoreUnavailable
from sse.hub.subscriber import Start
from sse.service import Service
from tests.conftest import MakeApp
from tests.servers import ROOT, RedisServer, open_fds, wait_until
from tests.tokens import by_key, claims

DRAINED = b'event: sse.close\ndata: {"reason":"drain"'


def threads() -> list[str]:
    """Return the names of the package's threads, and of threads that `threading` did not start itself."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("sse-", "Dummy"))]


def connections(redis: RedisServer) -> int:
    """Return how many connections Redis has, apart from this call's own."""
    with redis.client() as client:
        return len(client.client_list()) - 1


@pytest.fixture
def nothing_left(shared_redis: RedisServer) -> Iterator[None]:
    """After the test, no thread of ours, and as many connections and file descriptors as before."""
    gc.collect()
    before = connections(shared_redis), open_fds(os.getpid())
    yield
    gc.collect()
    wait_until(lambda: not threads(), 10, what="no thread")
    wait_until(lambda: connections(shared_redis) <= before[0], 10, what=f"no more than {before[0]} connections")
    wait_until(lambda: open_fds(os.getpid()) <= before[1], 10, what=f"no more than {before[1]} file descriptors")


def use(app: Flask, sse: SSE, *, leave_open: bool = False) -> None:
    """Publish, poll and stream with a rule, so that revocations are read too."""
    with app.app_context():
        sse.publish("a", "x")
    client = app.test_client()
    assert client.get("/sse/poll?channel=a&replay=1&timeout=1").status_code == 200
    stream = client.get("/sse/stream?channel=a")
    assert b"sse.open" in next(iter(stream.response))
    if not leave_open:
        stream.close()


def make(url: str | None, **config: object) -> tuple[Flask, SSE]:
    app = Flask("tests")
    app.config.from_mapping({"SSE_REDIS_URL": url, **config})
    sse = SSE(app)
    sse.authorize(lambda channel: True)
    return app, sse


def test_sixty_apps_that_are_dropped_leave_nothing_behind(store_url: str | None, nothing_left: None) -> None:
    apps = []
    for number in range(60):
        app, sse = make(
            store_url, **({"SSE_LIMITS_URL": store_url, "SSE_PROXIES": 1} if store_url and number % 2 else {})
        )
        use(app, sse, leave_open=number % 3 == 0)
        apps.append(weakref.ref(app))
        del app, sse
    gc.collect()
    assert not [app for app in apps if app() is not None]


def factory(url: str | None) -> Flask:
    """Return an app whose functions are closures that hold it."""
    app, sse = make(url, SSE_PRESENCE="room/*")

    @sse.joined("room/<id>")
    def tell(id: str, sub: str) -> None:
        app.logger.info("%s %s", id, sub)

    @sse.source("prices/<symbol>", interval=60)
    def price(symbol: str) -> str:
        return f"{app.name} {symbol}"

    return app


def test_an_app_whose_functions_hold_it_leaves_nothing_behind(store_url: str | None, nothing_left: None) -> None:
    app = factory(store_url)
    client = app.test_client()
    with client.get("/sse/stream?channel=prices/acme") as stream:
        assert any(b"tests acme" in part for part in stream.response)
    with client.get("/sse/stream?channel=room/7") as stream:
        assert b"sse.open" in next(iter(stream.response))
    gone = weakref.ref(app)
    del app, client, stream
    wait_until(lambda: gc.collect() < 0 or gone() is None, 20, 0.5, what="no app")


def test_sixty_apps_that_are_closed_leave_nothing_behind(
    store_url: str | None, shared_redis: RedisServer, nothing_left: None
) -> None:
    before = connections(shared_redis)
    sse = SSE()
    sse.authorize(lambda channel: True)
    apps = []
    for _ in range(60):
        app = Flask("tests")
        app.config.from_mapping(SSE_REDIS_URL=store_url, SSE_LIMITS_URL=store_url or "", SSE_PROXIES=1)
        sse.init_app(app)
        use(app, sse)
        apps.append(app)
    sse.close()
    assert not threads()
    wait_until(lambda: connections(shared_redis) == before)  # while the apps are still here
    sse.close()
    use(apps[0], sse)
    with apps[0].app_context():
        sse.close()  # in the context of one, all the same
    assert not threads()


def test_a_view_may_close_and_the_next_request_begins_anew(store_url: str | None, nothing_left: None) -> None:
    app, sse = make(store_url)

    @app.get("/close")
    def close() -> str:
        use_before = sse.publish("b", "x")
        sse.close()
        return use_before

    use(app, sse)
    answer = app.test_client().get("/close")
    assert answer.text.startswith("b=1-")
    kept = app.test_client().get("/sse/poll?channel=b&replay=9&timeout=0").get_json()["events"]
    assert len(kept) == (1 if store_url else 0)  # the memory store's events go with it
    sse.close()


def test_a_stream_is_told_and_a_waiting_poll_is_answered(store_url: str | None, nothing_left: None) -> None:
    app, sse = make(store_url)
    client = app.test_client()
    with app.app_context():
        last = sse.publish("a", "before")
    stream = iter(client.get("/sse/stream?channel=a").response)
    assert b"sse.open" in next(stream)
    with ThreadPoolExecutor(2) as others:
        poll = others.submit(lambda: app.test_client().get(f"/sse/poll?channel=a&timeout=30&last_event_id={last}"))
        rest = others.submit(lambda: b"".join(stream))
        wait_until(lambda: app.extensions["sse"].hub.subscribers == 2)
        sse.close()
        assert poll.result(5).get_json()["last_event_id"] == last
        assert DRAINED in rest.result(5)
    assert app.extensions["sse"].hub.subscribers == 0
    sse.close()


def test_what_is_at_hand_is_told_before_the_end(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse)
    with app.app_context():
        stream = iter(app.test_client().get("/sse/stream?channel=a").response)
        next(stream)
        sse.publish("a", "the last")
        service: Service = app.extensions["sse"]
        subscriber = next(iter(service.hub._channels["a"].subscribers))
        wait_until(subscriber.is_behind)
        sse.close()
    body = b"".join(stream)
    assert body.index(b"data: the last") < body.index(DRAINED)


def test_who_comes_while_it_closes_is_told_to_come_again(make_app: MakeApp, tmp_path: os.PathLike[str]) -> None:
    app = make_app(SSE_REDIS_URL=RedisServer(tmp_path).url)  # it is not running, so who comes waits
    service: Service = app.extensions["sse"]
    with ThreadPoolExecutor(1) as others:
        coming = others.submit(lambda: app.test_client().get("/sse/stream?channel=a").get_data())
        wait_until(lambda: service.hub.subscribers == 1)
        began = time.monotonic()
        service.close()
        assert b'"reason":"busy"' in coming.result(5)
        assert time.monotonic() - began < 4


def test_publishes_under_way_end_as_ever(redis_url: str, shared_redis: RedisServer, nothing_left: None) -> None:
    app, sse = make(redis_url)
    ends = time.monotonic() + 2
    ids: list[str] = []
    refused: list[StoreUnavailable] = []

    def publish(number: int) -> None:
        while time.monotonic() < ends:
            with app.app_context():
                try:
                    ids.append(sse.publish(f"a{number}", "x"))
                except StoreUnavailable as error:
                    refused.append(error)

    with ThreadPoolExecutor(10) as others:
        done = [others.submit(publish, number) for number in range(10)]
        while time.monotonic() < ends:
            sse.close()
        for one in done:
            one.result(10)
    sse.close()
    assert len(ids) > 10
    assert not refused
    with shared_redis.client() as client:
        assert len(ids) == sum(client.xlen(f"sse:{{a{number}}}") - 1 for number in range(10)), (
            "an anchor, and all of them"
        )


def test_an_app_goes_while_its_keys_are_being_fetched(nothing_left: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        app, sse = make(None, SSE_JWKS=f"http://127.0.0.1:{silent.getsockname()[1]}/keys", SSE_PUBLIC="a")
        headers = {"Authorization": f"Bearer {by_key(claims(), 'RS256')}"}
        with ThreadPoolExecutor(1) as others:
            asking = others.submit(app.test_client().get, "/sse/poll?channel=a&timeout=0", headers=headers)
            wait_until(lambda: "sse-jwks" in threads())
            assert asking.result(10).status_code == 503
        gone = weakref.ref(app)
        del app, sse, asking
        gc.collect()
        assert gone() is None


def test_the_collector_waits_for_nothing_whatever_lock_its_thread_holds(nothing_left: None) -> None:
    app, sse = make(None)
    use(app, sse, leave_open=True)
    service: Service = app.extensions["sse"]
    hub, lock, gone = service.hub, service.hub.lock, weakref.ref(service)
    hub.lock.acquire()
    try:
        began = time.monotonic()
        del app, sse, service
        gc.collect()
        assert gone() is None
        assert time.monotonic() - began < 3
        assert "sse-hub" in threads(), "it goes when the lock is free"
    finally:
        lock.release()
    wait_until(lambda: not threads(), 10)


def test_streams_that_end_in_a_thread_that_holds_the_lock_wait_for_nothing(make_app: MakeApp) -> None:
    hub = make_app().extensions["sse"].hub
    subscribers = [hub.attach({"a": Start()}, 3) for _ in range(5)]
    with hub.lock:
        for subscriber in subscribers:
            hub.detach(subscriber)
            hub.detach(subscriber)
        assert hub.subscribers == 0
        assert len(hub._channels["a"].subscribers) == 5
    other = hub.attach({"b": Start()}, 3)
    assert hub.subscribers == 1
    assert not hub._channels["a"].subscribers
    hub.detach(other)


def test_a_token_s_stream_that_ends_in_a_thread_that_looks_what_is_revoked_waits_for_nothing(
    make_app: MakeApp,
) -> None:
    sse = SSE()
    sse.authorize(lambda channel: True)
    app = make_app(sse, SSE_PUBLIC="")
    stream = app.test_client().get("/sse/stream?channel=a")
    assert b"sse.open" in next(iter(stream.response))
    revocations = app.extensions["sse"].revocations
    with revocations._lock:
        stream.close()
    assert not revocations._watched


def test_a_lowered_bound_outlives_a_close(make_app: MakeApp) -> None:
    service: Service = make_app().extensions["sse"]
    service.hub.max_subscribers = 7
    service.close()
    assert service.hub.max_subscribers == 7


def test_a_child_closes_its_own_and_leaves_its_parent_s(redis_url: str, nothing_left: None) -> None:
    app, sse = make(redis_url)
    client = app.test_client()
    stream = iter(client.get("/sse/stream?channel=a").response)
    next(stream)
    child = os.fork()
    if not child:
        code = 1
        try:
            sse.close()
            with app.app_context():
                sse.publish("b", "from the child")
            sse.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    with app.app_context():
        sse.publish("a", "from the parent")
    assert b"from the parent" in next(stream)
    stream.close()  # type: ignore[attr-defined]
    sse.close()


UNDER_GEVENT = """
from gevent import monkey; monkey.patch_all()
import gc, sys, threading, time, weakref
import gevent
from tests.test_service_close import make, threads, use, DRAINED

url = sys.argv[1] or None
apps = []
for number in range(5):
    app, sse = make(url)
    use(app, sse)
    apps.append(weakref.ref(app))
    if number < 2:
        stream = iter(app.test_client().get("/sse/stream?channel=a").response)
        next(stream)
        rest = gevent.spawn(lambda: b"".join(stream))
        gevent.sleep(0.05)
        sse.close()
        assert DRAINED in rest.get(timeout=5)
        del stream, rest
    del app, sse
gc.collect()
assert not [app for app in apps if app() is not None]
ends = time.monotonic() + 8
while threads() and time.monotonic() < ends:
    gevent.sleep(0.05)
assert not threads(), threads()
"""

AT_EXIT = """
import sys
from tests.test_service_close import make, use

app, sse = make(sys.argv[1] or None)
use(app, sse)
other, its = make(sys.argv[1] or None)
use(other, its)
del other, its
"""


@pytest.mark.parametrize("program", [UNDER_GEVENT, AT_EXIT])
def test_an_app_closes_under_gevent_and_at_the_end_of_a_program(program: str, store_url: str | None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, store_url or ""], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
