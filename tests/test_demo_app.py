"""The demo app: health, the page and its headers, the sampler of this machine, and the effects of the buttons."""

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse, create_environ, run_wsgi_app

import app as service
from demo import breaker
from demo import sampler as machine
from sse import SSE, Event
from sse.stores import Publication
from tests import client as wire
from tests.servers import Gunicorn, wait_until

LOADAVG = "0.42 1.31 12.20 2/85 6848\n"
STAT = "cpu  5363 10 2454 266337 395 1 67 16 900 30\ncpu0 2701 5 1227 133168 197 0 33 8 0 0\nintr 1 2 3\n"
MEMINFO = "MemTotal:       24684084 kB\nMemFree:        100 kB\nMemAvailable:   24408260 kB\nHugePages_Total:       0\n"
NET_DEV = (
    "Inter-|   Receive                                                |  Transmit\n"
    " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier\n"
    "    lo:    3193      29    0    0    0     0          0         0     3194      29    0    0    0     0       0\n"
    "  eth0:326157804    8209    0    0    0     0          0         0   523997    5182    0    0    0     0       0\n"
    "docker0:     77       1    0    0    0     0          0         0       78       1    0    0    0     0       0\n"
)

MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeApp]:
    for name in ("DEMO", "REDIS_URL", "SSE_REDIS_URL", "SSE_PUBLIC"):
        monkeypatch.delenv(name, raising=False)
    made: list[Flask] = []

    def make(**config: object) -> Flask:
        made.append(service.create_app({"SSE_PUBLIC": "demo/*", **config}))
        return made[-1]

    yield make
    for app in made:
        for part in app.extensions.get("demo", ()):
            part.stop()
        app.extensions["sse"].close()


def sampler_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "demo-sampler"]


def poll_events(app: Flask, wanted: int) -> list[dict[str, Any]]:
    client, place = app.test_client(), "replay=100"
    events: list[dict[str, Any]] = []
    deadline = time.monotonic() + 10
    while len(events) < wanted and time.monotonic() < deadline:
        answer = client.get(f"/sse/poll?channel=demo/machine&timeout=2&{place}").get_json()
        assert answer["resets"] == []
        events += answer["events"]
        place = f"last_event_id={answer['last_event_id']}"
    return events


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_health_is_told_without_a_store_and_never_cached(make_app: MakeApp) -> None:
    client = make_app(SSE_REDIS_URL=f"redis://127.0.0.1:{closed_port()}").test_client()
    response = client.get("/healthz")
    assert (response.status_code, response.text) == (200, "ok")
    assert response.headers["Cache-Control"] == "no-store"


def test_readiness_is_told_as_by_the_extension(make_app: MakeApp) -> None:
    away = make_app(SSE_REDIS_URL=f"redis://127.0.0.1:{closed_port()}").test_client().get("/readyz")
    assert (away.status_code, away.get_json()["ready"]) == (503, False)
    ready = make_app().test_client().get("/readyz")
    assert (ready.status_code, ready.get_json()) == (200, {"ready": True, "reasons": []})
    assert ready.headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in ready.headers["Content-Security-Policy"]


def test_the_demo_is_off_by_default(make_app: MakeApp) -> None:
    app = make_app()
    response = app.test_client().get("/")
    assert response.mimetype == "text/plain"
    assert "DEMO=1" in response.text
    assert sampler_threads() == []


@pytest.mark.parametrize(("value", "on"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_the_environment_turns_the_demo_on(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, value: str, on: bool
) -> None:
    monkeypatch.setenv("DEMO", value)
    assert ("demo" in make_app().extensions) is on


def test_the_config_goes_before_the_environment(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO", "1")
    assert "demo" not in make_app(DEMO=False).extensions


def test_the_page_allows_only_its_own_scripts_and_styles(make_app: MakeApp) -> None:
    with make_app(DEMO=True).test_client().get("/") as response:
        assert response.mimetype == "text/html"
        assert b"<title>Throughline</title>" in response.data
    policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("is_demo", [True, False])
@pytest.mark.parametrize("path", ["/", "/healthz", "/nothing?token=x", "/demo//static/demo.css?token=x", "/sse//poll"])
def test_every_answer_is_closed_to_frames_and_none_repeats_a_query(make_app: MakeApp, path: str, is_demo: bool) -> None:
    with make_app(DEMO=is_demo).test_client().get(path) as response:
        assert response.status_code in (200, 404)
        assert "Location" not in response.headers
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        if "sse" not in path:
            assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]


def test_the_page_has_nothing_inline_and_its_files_are_served(make_app: MakeApp) -> None:
    client = make_app(DEMO=True).test_client()
    with client.get("/") as response:
        page = response.get_data(as_text=True)
    for forbidden in ("<style", "style=", "onclick", "<script>", "https://"):
        assert forbidden not in page
    paths = re.findall(r'(?:src|href)="([^"#:]+)"', page)
    assert {"sse/sse.js", "demo/static/demo.js", "demo/static/old.js", "demo/static/demo.css"} < set(paths)
    for path in paths:
        with client.get(f"/{path}") as response:
            assert response.status_code == 200
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            if path.startswith("demo/static/"):  # no old file of a browser's cache runs with a new page
                assert response.headers["Cache-Control"] == "no-cache"
                with client.get(f"/{path}", headers={"If-None-Match": response.headers["ETag"]}) as again:
                    assert again.status_code == 304


def test_the_library_for_the_charts_is_as_published_and_beside_its_licence() -> None:
    folder = Path(service.__file__).parent / "demo/static/vendor/uPlot-1.6.32"
    published = {
        "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
        "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    }
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()} == published
    assert "demo/static/vendor" in (Path(service.__file__).parent / "README.md").read_text()


def test_the_sampler_starts_once_and_with_a_request_only(make_app: MakeApp) -> None:
    app = make_app(DEMO=True)

    @app.cli.command("count")
    def count() -> None:
        print(len(sampler_threads()))

    assert app.test_cli_runner().invoke(args=["count"]).output == "0\n"
    for _ in range(3):
        app.test_client().get("/healthz")
    assert len(sampler_threads()) == 1


def test_the_sampler_publishes_this_machine_each_second(make_app: MakeApp) -> None:
    events = poll_events(make_app(DEMO=True), wanted=2)
    assert [(event["channel"], event["type"]) for event in events[:2]] == [("demo/machine", "sample")] * 2
    first, second = (json.loads(event["data"]) for event in events[:2])
    assert 0.5 < second["at"] - first["at"] < 1.5
    assert 0 < first["memory"]["used"] < first["memory"]["total"]
    assert 0 <= first["cpu"] <= 100
    assert len(first["load"]) == 3
    assert set(first["network"]) == set(first["loopback"]) == {"in", "out"}


def test_of_several_samplers_one_is_stored_each_second() -> None:
    app = Flask(__name__)
    app.config["SSE_PUBLIC"] = "demo/*"
    sse = SSE()
    sse.init_app(app)
    samplers = [machine.Sampler(app, sse) for _ in range(3)]
    for sampler in samplers:
        sampler.start()
    events = poll_events(app, wanted=3)
    for sampler in samplers:
        sampler.stop()
    app.extensions["sse"].close()
    seconds = [int(json.loads(event["data"])["at"]) for event in events]
    assert len(seconds) >= 3
    assert len(set(seconds)) == len(seconds)


def test_with_the_store_away_samples_are_skipped_and_it_is_said_once(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(DEMO=True, SSE_REDIS_URL=f"redis://127.0.0.1:{closed_port()}")
    with caplog.at_level(logging.WARNING, logger="sse"):
        app.test_client().get("/healthz")
        time.sleep(3.2)
    assert sum("skips samples" in message for message in caplog.messages) == 1
    assert len(sampler_threads()) == 1


def test_the_load_is_parsed() -> None:
    assert machine.parse_load(LOADAVG) == (0.42, 1.31, 12.2)


def test_waiting_for_a_disk_is_not_busy_and_guests_count_once() -> None:
    busy = 5363 + 10 + 2454 + 1 + 67 + 16
    assert machine.parse_cpu(STAT) == (busy, busy + 266337 + 395)


def test_memory_that_can_be_freed_is_not_used() -> None:
    assert machine.parse_memory(MEMINFO) == ((24684084 - 24408260) * 1024, 24684084 * 1024)


def test_traffic_is_parsed_also_where_the_count_touches_the_name() -> None:
    assert machine.parse_network(NET_DEV) == {
        "lo": (3193, 3194),
        "eth0": (326157804, 523997),
        "docker0": (77, 78),
    }


def counters(monotonic: float, cpu: tuple[int, int], traffic: tuple[int, int]) -> machine.Counters:
    return machine.Counters(
        monotonic=monotonic, load=(0.1, 0.2, 0.3), cpu=cpu, memory=(30, 100), traffic=traffic, loopback=(0, 0)
    )


def test_a_sample_tells_what_changed_between_two_readings() -> None:
    sample = machine.describe(counters(10, (50, 100), (1000, 500)), counters(12, (100, 300), (5000, 501)))
    assert sample["cpu"] == 25
    assert sample["memory"] == {"used": 30, "total": 100}
    assert sample["network"] == {"in": 2000, "out": 0}


def test_a_counter_that_went_back_gives_no_negative_rate() -> None:
    sample = machine.describe(counters(10, (50, 100), (1000, 500)), counters(11, (50, 100), (10, 5)))
    assert sample["cpu"] == 0
    assert sample["network"] == {"in": 0, "out": 0}


def test_bytes_of_virtual_interfaces_are_not_counted_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    proc = tmp_path_factory.mktemp("proc")
    (proc / "net").mkdir()
    for name, text in {"loadavg": LOADAVG, "stat": STAT, "meminfo": MEMINFO, "net/dev": NET_DEV}.items():
        (proc / name).write_text(text)
    monkeypatch.setattr(machine, "PROC", proc)
    counted = machine.read_counters()
    assert counted.traffic == (326157804, 523997)
    assert counted.loopback == (3193, 3194)


def test_a_browser_gets_a_cookie_of_its_own_once(make_app: MakeApp) -> None:
    app = make_app(DEMO=True)
    first, second = app.test_client(), app.test_client()
    with first.get("/") as response, second.get("/") as other:
        cookie = response.headers["Set-Cookie"]
        assert cookie.startswith("demo=")
        assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
        assert cookie != other.headers["Set-Cookie"]
    with first.get("/") as response:
        assert "Set-Cookie" not in response.headers


BUTTONS = ("cut", "buffer", "sleep")
OWN_PAGE = {"Origin": "http://localhost"}


@pytest.mark.parametrize("button", BUTTONS)
def test_without_the_demo_there_are_no_buttons_and_with_it_none_is_pressed_by_get(
    make_app: MakeApp, button: str
) -> None:
    assert make_app().test_client().post(f"/demo/{button}", headers=OWN_PAGE).status_code == 404
    assert make_app(DEMO=True).test_client().get(f"/demo/{button}", headers=OWN_PAGE).status_code == 405


@pytest.mark.parametrize("button", BUTTONS)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://localhost:81"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", **OWN_PAGE}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 204),
        (OWN_PAGE, 204),
        ({"Origin": "https://localhost"}, 204),
    ],
)
def test_only_the_page_itself_presses_a_button(
    make_app: MakeApp, button: str, headers: dict[str, str], status: int
) -> None:
    client = make_app(DEMO=True).test_client()
    client.get("/").close()
    assert client.post(f"/demo/{button}", headers=headers).status_code == status


@pytest.mark.parametrize("button", ["cut", "sleep"])
def test_who_has_not_seen_the_page_has_nothing_to_break(make_app: MakeApp, button: str) -> None:
    assert make_app(DEMO=True).test_client().post(f"/demo/{button}", headers=OWN_PAGE).status_code == 403


def test_with_the_store_away_a_press_is_told_so(make_app: MakeApp) -> None:
    client = make_app(DEMO=True, SSE_REDIS_URL=f"redis://127.0.0.1:{closed_port()}").test_client()
    client.get("/").close()
    assert client.post("/demo/cut", headers=OWN_PAGE).status_code == 503


def test_a_buffered_browser_gets_the_head_of_a_stream_and_no_more_until_the_button_is_pressed_again(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "HELD", 0.3)
    app = make_app(DEMO=True)
    client, other = app.test_client(), app.test_client()
    client.post("/demo/buffer?on=1", headers=OWN_PAGE)
    pressed = time.monotonic()
    with client.get("/sse/stream?channel=demo/hello") as held:
        assert held.status_code == 200
        assert held.mimetype == "text/event-stream"
        assert held.data == b""
    assert time.monotonic() - pressed >= 0.3
    assert client.get("/sse/poll?channel=demo/hello&timeout=1").get_json()["events"] == []
    with other.get("/sse/stream?channel=demo/hello") as stream:
        assert b"sse.open" in next(stream.response)
    client.post("/demo/buffer?on=0", headers=OWN_PAGE)
    with client.get("/sse/stream?channel=demo/hello") as stream:
        assert b"sse.open" in next(stream.response)


def open_stream(app: Flask) -> tuple[Any, TestResponse, socket.socket, socket.socket]:
    """Return a browser that has a stream open, its stream, and the sockets of the server and the browser."""
    client = app.test_client()
    client.get("/").close()
    server, browser = socket.socketpair()
    browser.settimeout(5)
    stream = client.get("/sse/stream?channel=demo/hello", environ_overrides={"gunicorn.socket": server})
    assert b"sse.open" in next(stream.response)
    return client, stream, server, browser


def test_cut_ends_the_connections_of_the_browser_that_presses_it_and_of_no_other(make_app: MakeApp) -> None:
    app = make_app(DEMO=True)
    client, stream, server, browser = open_stream(app)
    _, other_stream, other_server, other = open_stream(app)
    with stream, server, browser, other_stream, other_server, other:
        wait_until(lambda: app.extensions["sse"].hub.subscribers == 3, what="the breaker listens beside two streams")
        time.sleep(0.5)  # it counts before it has its place
        assert client.post("/demo/cut", headers=OWN_PAGE).status_code == 204
        assert browser.recv(1) == b""
        other_server.sendall(b"x")
        assert other.recv(2) == b"x"


def test_a_connection_whose_response_has_ended_is_let_be(make_app: MakeApp) -> None:
    app = make_app(DEMO=True)
    client, stream, server, browser = open_stream(app)
    with server, browser:
        stream.close()
        _, still, still_server, still_browser = open_stream(app)
        with still, still_server, still_browser:
            client.post("/demo/cut", headers=OWN_PAGE)
            time.sleep(0.5)
            server.sendall(b"x")
            assert browser.recv(2) == b"x"


def asleep(app: Flask, client: Any) -> None:
    """Press the button, and wait until it has taken effect."""
    breaker = app.extensions["demo"][1]
    assert client.post("/demo/sleep", headers=OWN_PAGE).status_code == 204
    wait_until(lambda: any(connection.wakes_at for connection in breaker._open), what="the connection is put to sleep")


def test_a_number_that_is_another_connection_s_by_now_is_let_be() -> None:
    server, browser = socket.socketpair()
    other_server, other = socket.socketpair()
    other.settimeout(5)
    with server, browser, other_server, other:
        connection = breaker._Connection("ann", server.fileno())
        os.dup2(other_server.fileno(), server.fileno())
        breaker._cut(connection)
        other_server.sendall(b"x")
        assert other.recv(2) == b"x"
    breaker._cut(connection)  # nor is it a fault where it is closed


def test_no_lock_is_held_while_the_demo_s_threads_start(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(DEMO=True)
    held: list[bool] = []
    start = threading.Thread.start

    def watched(thread: threading.Thread) -> None:
        if thread.name.startswith("demo-"):
            held.extend(part._lock.locked() for part in app.extensions["demo"])
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", watched)
    app.test_client().get("/healthz")
    assert held == [False] * 4


def test_asleep_a_connection_says_nothing_and_is_closed_when_it_has_slept(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "NAP", 1.0)
    app = make_app(DEMO=True, SSE_HEARTBEAT=3)
    client, stream, server, browser = open_stream(app)
    _, other_stream, other_server, other = open_stream(app)
    with stream, server, browser, other_stream, other_server, other:
        wait_until(lambda: app.extensions["sse"].hub.subscribers == 3, what="the breaker listens beside two streams")
        time.sleep(0.5)  # it counts before it has its place
        began = time.monotonic()
        asleep(app, client)
        app.extensions["sse"].publish([Publication("demo/hello", Event("lost"))])
        assert list(stream.response) == []
        assert 1 <= time.monotonic() - began < 8
        assert browser.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            server.sendall(b"x")
        assert any(b"lost" in next(other_stream.response) for _ in range(2)), "nobody else's is asleep"
        other_server.sendall(b"x")
        assert other.recv(2) == b"x"
    assert app.extensions["demo"][1]._open == set()


@pytest.mark.parametrize("holds", [False, True], ids=["in the view", "after the view"])
def test_a_poll_that_is_put_to_sleep_is_not_answered(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    monkeypatch.setattr(breaker, "NAP", 1.5)
    app = make_app(DEMO=True)
    client, stream, *ends = open_stream(app)
    place = client.get("/sse/poll?channel=demo/quiet&timeout=1").get_json()["last_event_id"]
    server, browser = socket.socketpair()
    answered: list[float] = []

    def poll() -> None:
        environ = {"gunicorn.socket": server} | ({"sse.can_hand_off": True} if holds else {})
        query = {"channel": "demo/quiet", "timeout": "1", "last_event_id": place}
        with client.get("/sse/poll", query_string=query, environ_overrides=environ) as answer:
            if holds:
                assert answer.data == b""
            answered.append(time.monotonic())

    with stream, server, browser:
        thread = threading.Thread(target=poll)
        thread.start()
        wait_until(lambda: len(app.extensions["demo"][1]._open) == 2, what="the poll waits beside the stream")
        time.sleep(0.5)  # the breaker counts before it has its place
        pressed = time.monotonic()
        other = app.test_client()  # Flask's own is for one thread
        other.set_cookie("demo", client.get_cookie("demo").value)
        asleep(app, other)
        thread.join(10)
        assert answered[0] - pressed >= 1.3
        browser.settimeout(5)
        assert browser.recv(1) == b""
    for end in ends:
        end.close()


def test_a_stream_that_is_closed_before_it_begins_leaves_nothing_behind(make_app: MakeApp) -> None:
    app = make_app(DEMO=True)
    client = app.test_client()
    client.get("/").close()
    place = client.get("/sse/poll?channel=demo/quiet&timeout=1").get_json()["last_event_id"]
    server, browser = socket.socketpair()
    hub = app.extensions["sse"].hub
    wait_until(lambda: hub.subscribers == 1, what="the breaker alone listens")
    with server, browser:
        environ = {"gunicorn.socket": server, "sse.can_hand_off": True}
        query = {"channel": "demo/quiet", "last_event_id": place}
        asked = create_environ("/sse/poll", query_string=query, headers=cookie_header(client))
        body = app(asked | environ | {"REMOTE_ADDR": "127.0.0.1"}, lambda *head: None)
        assert hub.subscribers == 2
        body.close()
        assert hub.subscribers == 1
        assert app.extensions["demo"][1]._open == set()


FAR = [
    # The address, the Host and further headers of requests that do not come from this machine, or may not.
    ("192.0.2.1", "localhost", {}),
    ("", "localhost", {}),
    ("unix:", "localhost", {}),
    ("127.0.0.1", "", {}),
    ("127.0.0.1", "evil.example", {}),
    ("127.0.0.1", "localhost.evil.example", {}),
    ("127.0.0.1", "127.0.0.1.evil.example", {}),
    ("127.0.0.1", "demo.localhost", {}),
    ("127.0.0.1", "127.0.0.1:80@evil.example", {}),
    ("127.0.0.1", "0.0.0.0", {}),
    ("127.0.0.1", "[::2]", {}),
    ("127.0.0.1", "localhost", {"X-Forwarded-For": "127.0.0.1"}),
    ("127.0.0.1", "localhost", {"X-Forwarded-Proto": "https"}),
    ("127.0.0.1", "localhost", {"X-Forwarded-Host": "localhost"}),
    ("127.0.0.1", "localhost", {"X-Forwarded-Port": ""}),
    ("127.0.0.1", "localhost", {"Forwarded": "for=127.0.0.1"}),
    ("127.0.0.1", "localhost", {"X-Real-IP": "127.0.0.1"}),
    ("127.0.0.1", "localhost", {"Via": "1.1 proxy"}),
]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/demo/static/demo.js"), *(("POST", f"/demo/{button}?on=1") for button in BUTTONS)],
)
@pytest.mark.parametrize(("address", "host", "further"), FAR, ids=range(len(FAR)))
def test_the_demo_s_routes_are_for_this_machine_alone(
    make_app: MakeApp, method: str, path: str, address: str, host: str, further: dict[str, str]
) -> None:
    client = make_app(DEMO=True).test_client()
    client.get("/").close()
    headers = {**OWN_PAGE, "Sec-Fetch-Site": "same-origin", **cookie_header(client), **further}
    environ = create_environ(path, method=method, headers=headers) | {"REMOTE_ADDR": address, "HTTP_HOST": host}
    body, status, told = run_wsgi_app(client.application.wsgi_app, environ)
    assert status.startswith("403 ")
    assert "Set-Cookie" not in told
    assert b"for this machine alone" in b"".join(body)


def cookie_header(client: Any) -> dict[str, str]:
    return {"Cookie": f"demo={client.get_cookie('demo').value}"}


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1", "localhost:8000"),
        ("127.0.0.1", "LOCALHOST"),
        ("127.8.9.10", "127.0.0.1:8000"),
        ("::1", "[::1]:8000"),
        ("::ffff:127.0.0.1", "localhost"),
    ],
)
def test_this_machine_is_known_by_its_address_and_host(make_app: MakeApp, address: str, host: str) -> None:
    app = make_app(DEMO=True)
    environ = create_environ("/") | {"REMOTE_ADDR": address, "HTTP_HOST": host}
    body, status, _ = run_wsgi_app(app.wsgi_app, environ)
    assert (status, b"<title>" in b"".join(body)) == ("200 OK", True)
    body.close()  # type: ignore[attr-defined]


def test_far_clients_get_streams_as_ever_and_nothing_of_the_demo(make_app: MakeApp) -> None:
    app = make_app(DEMO=True)
    client = app.test_client()
    client.set_cookie("demo_buffer", "1")
    client.set_cookie("demo", "any")
    server, browser = socket.socketpair()
    with server, browser:
        environ = {"REMOTE_ADDR": "192.0.2.1", "gunicorn.socket": server}
        with client.get("/sse/stream?channel=demo/hello", environ_overrides=environ) as stream:
            assert b"sse.open" in next(stream.response)
            assert app.extensions["demo"][1]._open == set()


def test_of_several_workers_the_one_that_has_the_connection_breaks_it(redis_url: str, tmp_path: Path) -> None:
    environment = {"SSE_REDIS_URL": redis_url, "SSE_PUBLIC": "demo/*", "SSE_HEARTBEAT": "3", "DEMO": "1"}
    with Gunicorn(tmp_path, env=environment, workers=2) as server:
        cookie, other = (
            {"Cookie": wire.request(server.url, "GET", "/").headers["Set-Cookie"].split(";")[0]} for _ in range(2)
        )
        own_page = {"Origin": server.url, **cookie}
        streams = [wire.Stream(server.url, {"channel": "demo/machine"}, headers=cookie) for _ in range(6)]
        with wire.Stream(server.url, {"channel": "demo/machine"}, headers=other) as apart:
            for stream in [*streams, apart]:
                stream.take(1)
            for _ in range(30):  # each worker listens from its first request on
                assert wire.request(server.url, "GET", "/healthz").status == 200
            assert wire.request(server.url, "POST", "/demo/sleep", headers=own_page).status == 204
            time.sleep(0.5)
            for stream in streams:
                drain(stream)
            apart.take(3)
            for stream in streams:
                with pytest.raises(TimeoutError):  # neither an event nor an end
                    stream.next(0.1)
            awake = [wire.Stream(server.url, {"channel": "demo/machine"}, headers=cookie) for _ in range(6)]
            for stream in awake:
                stream.take(1)
            assert wire.request(server.url, "POST", "/demo/cut", headers=own_page).status == 204
            for stream in awake:
                for _ in stream.events(5):
                    pass
                assert not stream.complete
            apart.take(2)
        for stream in [*streams, *awake]:
            stream.close()


def drain(stream: wire.Stream) -> None:
    """Read all that came before the silence."""
    with contextlib.suppress(TimeoutError):
        while stream.next(0.1):
            pass
