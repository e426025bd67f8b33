"""The doctor's probes over HTTP: who may use them, what they tell, and their bounds."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, Response
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from sse.access.passes import PASS_LIFE, Passes
from sse.config import Config
from sse.errors import Unauthorized
from sse.service import Service
from sse.transports.probe import LONGEST, Plan, ProbeStream, Visit
from sse.web.ticker import Ticker
from tests import client as wire
from tests.conftest import MakeApp
from tests.servers import wait_until
from tests.tokens import KEY, SECRET, claims, signed

ID = "0123456789abcdef"
ORIGIN = "https://a.example"
NOTHING: Mapping[str, Any] = {}
PROBES = (
    "doctor/echo",
    "doctor/stream?count=0",
    "doctor/poll",
    f"doctor/left?id={ID}",
    "doctor/status/410",
    "stream?probe=1&count=0",
    "poll?probe=1",
)


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """An app whose probes are open to all."""
    return make_app(SSE_DOCTOR=1, SSE_ORIGINS=[ORIGIN])


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def code(response: TestResponse) -> tuple[int, str]:
    return response.status_code, response.get_json()["error"]["code"]


def blocks(response: TestResponse) -> list[wire.Event]:
    return [*wire.Parser().feed(response.data)]


def with_pass(probe: str, text: str) -> str:
    return f"/sse/{probe}{'&' if '?' in probe else '?'}pass={text}"


def make_pass(client: FlaskClient, credential: str) -> TestResponse:
    return client.post("/sse/doctor/pass", headers={"Authorization": f"Bearer {credential}"})


# Who may use them


@pytest.mark.parametrize("probe", PROBES)
def test_without_a_setting_or_a_key_there_is_no_probe(make_app: MakeApp, probe: str) -> None:
    answer = make_app(SSE_PUBLIC="*").test_client().get(f"/sse/{probe}")
    # A stream or poll passes over parameters that it does not know, and then misses its channel.
    assert code(answer) == ((400, "bad_request") if "probe=1" in probe else (404, "not_found"))


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_needs_a_pass_and_a_pass_opens_it(make_app: MakeApp, probe: str) -> None:
    client = make_app(SSE_PUBLISH_KEYS=[KEY]).test_client()
    assert code(client.get(f"/sse/{probe}")) == (401, "pass_missing")
    assert code(client.get(with_pass(probe, KEY))) == (401, "pass_invalid")
    made = make_pass(client, KEY)
    assert (made.status_code, made.json) == (201, {"pass": made.json["pass"], "expires_in": PASS_LIFE})  # type: ignore[index]
    assert client.get(with_pass(probe, made.json["pass"]), buffered=True).status_code in (200, 410)  # type: ignore[index]


def test_a_pass_opens_nothing_else(make_app: MakeApp) -> None:
    client = make_app(SSE_PUBLIC="", SSE_PUBLISH_KEYS=[KEY], SSE_SECRET=SECRET).test_client()
    text = make_pass(client, KEY).get_json()["pass"]
    assert client.get(f"/sse/poll?channel=a&timeout=0&pass={text}").status_code == 401
    assert client.get(f"/sse/poll?channel=a&timeout=0&token={text}").status_code in (400, 401)
    assert make_pass(client, text).status_code == 401
    assert client.post("/sse/publish/a", headers={"Authorization": f"Bearer {text}"}, data="x").status_code == 401


def test_a_pass_is_for_those_who_may_publish(make_app: MakeApp) -> None:
    client = make_app(SSE_SECRET=SECRET).test_client()
    assert make_pass(client, "nothing").status_code == 401
    assert client.post("/sse/doctor/pass").status_code == 401
    assert code(make_pass(client, signed(claims(publish=[])))) == (403, "forbidden")
    assert make_pass(client, signed(claims())).status_code == 201


def test_each_process_with_the_same_settings_verifies_a_pass_until_its_end(make_app: MakeApp) -> None:
    now = [1_000_000.0]

    def process(**settings: object) -> Passes:
        config = Config.load({}, settings)
        return Passes(config, Service(config, serves=False).keys, lambda: now[0])

    made = process(SSE_SECRET=SECRET).make()
    for settings in ({"SSE_SECRET": SECRET}, {"SSE_SECRET": f"{'n' * 32} {SECRET}", "SSE_PUBLISH_KEYS": KEY}):
        process(**settings).check(made)
    by_key = process(SSE_PUBLISH_KEYS=KEY).make()
    process(SSE_PUBLISH_KEYS=f"{'n' * 22},{KEY}").check(by_key)
    for settings in ({"SSE_SECRET": "n" * 32}, {"SSE_PUBLISH_KEYS": KEY}, {"SSE_SECRET": SECRET, "SSE_DOCTOR": "1"}):
        with pytest.raises(Unauthorized):
            process(**settings).check(by_key if "SSE_SECRET" in settings else made)
    mine = process(SSE_SECRET=SECRET)
    expiry, _, signature = made.partition(".")
    longer = f"{int(expiry) + 9}.{signature}"
    for forged in (
        longer,
        made[:-1],
        f"{made}0",
        f" {made}",
        made.upper(),
        f"{expiry}.{'0' * 64}",
        f"٣{made[1:]}",
        ".",
    ):
        with pytest.raises(Unauthorized) as caught:
            mine.check(forged)
        assert caught.value.code == "pass_invalid"
    now[0] += PASS_LIFE - 1
    mine.check(made)
    now[0] += 1
    with pytest.raises(Unauthorized, match="expired"):
        mine.check(made)


def test_no_pass_is_made_without_a_secret_of_this_service(make_app: MakeApp, app: Flask) -> None:
    assert make_pass(app.test_client(), KEY).status_code == 404


# What they tell


def test_the_echo_tells_what_arrived_and_no_secret_or_address(make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLISH_KEYS=[KEY], SSE_ORIGINS=[ORIGIN], SSE_HEARTBEAT=9)
    client = app.test_client()
    text = make_pass(client, KEY).get_json()["pass"]
    headers = {
        "Last-Event-ID": "doctor=58-123",
        "Origin": ORIGIN,
        "Accept-Encoding": "gzip, br",
        "Cookie": "sse_token=hush; session=hush",
        "Authorization": "Bearer hush",
        "X-Forwarded-For": "10.1.2.3, 8.8.8.8:4711, [::1]:80, nonsense.internal",
        "X-Forwarded-Host": "backend-7.internal",
        "Forwarded": "for=10.1.2.3;host=backend-7.internal",
        "Via": "1.1 vegur, 2 ip-10-0-0-7.internal:3128 (squid/5.7), 1.1 cache7, x",
        "Host": "push.example",
    }
    answer = client.get(f"/sse/doctor/echo?pass={text}&_=1", headers=headers, environ_base={"REMOTE_ADDR": "10.0.0.9"})
    told = answer.get_json()
    assert answer.headers["Cache-Control"] == "no-cache, no-store, no-transform"
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert (told["service"], told["client"], told["scheme"], told["method"]) == (
        "throughline",
        "private",
        "http",
        "GET",
    )
    assert abs(told["now"] - time.time()) < 5
    assert told["headers"] == {
        "last-event-id": "doctor=58-123",
        "accept-encoding": "gzip, br",
        "origin": ORIGIN,
        "x-forwarded-for": "private, public, loopback, unknown",
        "x-forwarded-host": "present",
        "forwarded": "present",
        "via": "1.1 vegur, 2 … (squid/5.7), 1.1 …, …",
    }
    assert told["cors"]["access-control-allow-origin"] == ORIGIN
    assert told["settings"]["heartbeat"] == 9
    assert (told["store"], told["holds"]) == ("memory", "many")
    assert not any(secret in answer.text for secret in ("hush", "10.", "8.8.8.8", "internal", "cache7", KEY, text))


def test_two_echoes_differ_and_are_of_one_process(client: FlaskClient) -> None:
    one, other = (client.get("/sse/doctor/echo").get_json() for _ in range(2))
    assert one["nonce"] != other["nonce"]
    assert one["worker"] == other["worker"]
    assert other["cors"] == {}, "there was no origin"


@pytest.mark.parametrize("path", ["/sse/stream?probe=1&", "/sse/doctor/stream?"])
def test_a_stream_has_the_head_of_a_stream_and_its_blocks_in_time(client: FlaskClient, path: str) -> None:
    with client.get("/sse/stream?channel=a", headers={"Origin": ORIGIN}) as real:
        pass
    answer = client.get(
        f"{path}every=0.1&count=3&size=40&unknown=1",
        headers={"Origin": ORIGIN, "Last-Event-ID": "a=1-2"},
        buffered=True,
    )
    assert dict(answer.headers) == dict(real.headers)
    opened, *ticks, end = blocks(answer)
    assert (opened.event, opened.id, opened.json()["headers"]["last-event-id"]) == ("doctor.open", "", "a=1-2")
    assert [(tick.event, tick.id, tick.json()["n"]) for tick in ticks] == [
        ("doctor.tick", f"doctor-{n}", n) for n in (1, 2, 3)
    ]
    assert all(len(tick.json()["pad"]) == 40 for tick in ticks)
    assert len({tick.json()["pad"] for tick in ticks}) == 3
    pauses = [tick.json()["now"] - opened.json()["now"] for tick in ticks]
    assert all(0.1 * n - 0.01 < pause < 0.1 * n + 1 for n, pause in enumerate(pauses, 1))
    assert (end.event, end.json()["n"], end.json()["reason"]) == ("doctor.end", 3, "done")


def test_a_probe_that_asks_for_its_head_takes_no_seat(app: Flask) -> None:
    answer = app.test_client().head("/sse/stream?probe=1&every=90&count=1", buffered=True)
    assert (answer.status_code, answer.content_type) == (200, "text/event-stream")
    assert app.extensions["sse"].hub.subscribers == 0


def test_every_process_learns_how_a_stream_has_ended(make_app: MakeApp, store_url: str | None) -> None:
    app = make_app(SSE_DOCTOR=1, SSE_REDIS_URL=store_url)
    # With the memory store, this process is the only one.
    asked = make_app(SSE_DOCTOR=1, SSE_REDIS_URL=store_url).test_client() if store_url else app.test_client()

    def left(id: str) -> Any:
        return asked.get(f"/sse/doctor/left?id={id}").get_json()

    assert left(ID) == {"ended": False, "after": None, "how": None}
    app.test_client().get(f"/sse/stream?probe=1&count=0&id={ID}", buffered=True)
    assert left(ID) == {"ended": True, "after": pytest.approx(0, abs=0.5), "how": "finished"}
    other = ID[::-1]
    answer = app.test_client().get(f"/sse/stream?probe=1&every=30&count=1&id={other}")
    assert next(iter(answer.response))
    assert left(other)["ended"] is False
    answer.close()
    assert left(other)["how"] == "left"
    assert left(ID)["how"] == "finished"


def test_the_end_cannot_be_known_if_processes_share_no_store(client: FlaskClient) -> None:
    answer = client.get(f"/sse/doctor/left?id={ID}", environ_overrides={"wsgi.multiprocess": True})
    assert code(answer) == (503, "memory_store")


def test_nobody_can_read_or_write_the_channel_of_the_ends(make_app: MakeApp) -> None:
    client = make_app(SSE_DOCTOR=1, SSE_PUBLISH_KEYS=[KEY]).test_client()
    assert code(client.get("/sse/poll?channel=sse.doctor&timeout=0")) == (400, "invalid_channel")
    answer = client.post("/sse/publish/sse.doctor", data="x", headers={"Authorization": f"Bearer {KEY}"})
    assert code(answer) == (422, "invalid_channel")


def test_a_store_that_is_away_harms_no_stream(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    client = make_app(SSE_DOCTOR=1, SSE_REDIS_URL="redis://127.0.0.1:1", SSE_REDIS_TIMEOUT=1).test_client()
    assert blocks(client.get(f"/sse/stream?probe=1&count=0&id={ID}", buffered=True))[-1].event == "doctor.end"
    assert "the end of a probe cannot be noted" in caplog.text
    assert code(client.get(f"/sse/doctor/left?id={ID}")) == (503, "store_unavailable")


@pytest.mark.parametrize("path", ["/sse/poll?probe=1&", "/sse/doctor/poll?"])
def test_a_poll_answers_after_its_time_with_the_head_of_a_poll(client: FlaskClient, path: str) -> None:
    real = client.get("/sse/poll?channel=a&timeout=0")
    began = time.monotonic()
    answer = client.get(f"{path}wait=0.3")
    assert 0.3 <= time.monotonic() - began < 3
    assert answer.get_json()["waited"] == pytest.approx(0.3, abs=0.2)
    assert {**answer.headers, "Content-Length": ""} == {**real.headers, "Content-Length": ""}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 429, 503])
def test_each_status_is_answered_in_the_form_of_our_errors(client: FlaskClient, status: int) -> None:
    answer = client.get(f"/sse/doctor/status/{status}")
    assert code(answer) == (status, "doctor")
    assert ("Retry-After" in answer.headers) == (status in (429, 503))


def test_204_has_no_body(client: FlaskClient) -> None:
    answer = client.get("/sse/doctor/status/204")
    assert (answer.status_code, answer.data, answer.content_length) == (204, b"", None)


# Faulty requests


@pytest.mark.parametrize(
    "probe",
    [
        "doctor/stream?every=0.01", "doctor/stream?every=96", "doctor/stream?every=nan", "doctor/stream?every=1e1",
        "doctor/stream?every=-1", "doctor/stream?every=٣", "doctor/stream?every=", "doctor/stream?every=1&every=2",
        "doctor/stream?count=1001", "doctor/stream?count=1.5", "doctor/stream?count=-1",
        "doctor/stream?every=1&count=96",
        "doctor/stream?size=16385", "doctor/stream?every=0.1&count=33&size=16384", "doctor/stream?end=cut",
        "doctor/stream?id=short", f"doctor/stream?id={ID.upper()}", f"doctor/stream?id={ID}&id={ID}",
        "doctor/stream?id=", "doctor/left", "doctor/left?id=..%2F..%2Fetc%2Fpasswd",
        "poll?probe=1&wait=95.5", "poll?probe=1&wait=inf", "poll?probe=1&wait=1&wait=2",
        "doctor/status/200", "doctor/status/500", "doctor/status/0410", "doctor/status/410/x",
        "doctor/status/x%0d%0aY:1", "doctor/echo?pass=1&pass=2",
    ],
)  # fmt: skip
def test_a_parameter_out_of_its_range_is_refused_and_not_rounded(make_app: MakeApp, probe: str) -> None:
    # A pass is read only where it is needed.
    client = make_app(**({"SSE_PUBLISH_KEYS": [KEY]} if "pass" in probe else {"SSE_DOCTOR": 1})).test_client()
    assert code(client.get(f"/sse/{probe}")) == (400, "bad_request")


def test_streams_and_polls_of_channels_do_not_take_a_word_for_a_probe(client: FlaskClient) -> None:
    assert client.get("/sse/poll?channel=probe&timeout=0").get_json()["last_event_id"].startswith("probe=")
    assert client.get("/sse/poll?channel=a&timeout=0&probe=11").status_code == 200
    assert client.get("/sse/poll?channel=a&timeout=0&client=probe=12345").status_code == 400


def test_a_wrong_method_is_405(client: FlaskClient) -> None:
    for path in ("echo", "stream", "poll", "left", "status/410"):
        assert client.post(f"/sse/doctor/{path}").status_code == 405
    for path in ("pass", "judge"):
        assert client.get(f"/sse/doctor/{path}").status_code == 405


# Bounds


def fill(client: FlaskClient, environ: Mapping[str, Any] = NOTHING) -> tuple[list[TestResponse], TestResponse]:
    """Open streams until one is refused. Return those that are open, and the refusal."""
    opened = []
    for _ in range(20):
        answer = client.get("/sse/stream?probe=1&every=60&count=1", environ_overrides=dict(environ))
        if answer.status_code != 200:
            return opened, answer
        opened.append(answer)
        next(iter(answer.response))
    raise AssertionError("no stream was refused")


def test_a_worker_has_eight_streams_of_the_doctor_and_gives_each_place_back(app: Flask) -> None:
    client = app.test_client()
    for _ in range(2):
        opened, refusal = fill(client)
        assert len(opened) == 8
        assert code(refusal) == (429, "too_many_requests")
        assert refusal.get_json()["error"]["limit"] == "doctor"
        assert code(client.get("/sse/poll?probe=1")) == (429, "too_many_requests")
        assert client.get("/sse/doctor/echo").status_code == 200
        for answer in opened:
            answer.close()
        assert app.extensions["sse"].hub.subscribers == 0


def test_a_stream_takes_a_seat_as_every_subscriber_does(make_app: MakeApp) -> None:
    client = make_app(SSE_DOCTOR=1, SSE_MAX_SUBSCRIBERS=1).test_client()
    with client.get("/sse/stream?probe=1&every=60&count=1"):
        assert code(client.get("/sse/poll?channel=a")) == (503, "busy")
        assert code(client.get("/sse/poll?probe=1")) == (503, "busy")
    assert client.get("/sse/poll?probe=1").status_code == 200


def test_240_probes_a_minute_are_answered(client: FlaskClient) -> None:
    statuses = [client.get("/sse/doctor/status/410").status_code for _ in range(241)]
    assert statuses == [410] * 240 + [429]
    refusal = client.get("/sse/doctor/echo")
    assert code(refusal) == (429, "too_many_requests")
    assert 50 <= int(refusal.headers["Retry-After"]) <= 60


def test_the_bytes_of_a_minute_are_bounded(client: FlaskClient) -> None:
    answers = [client.get("/sse/stream?probe=1&every=0.05&count=32&size=16384", buffered=False) for _ in range(8)]
    for answer in answers:
        answer.close()
    answers = [client.get("/sse/stream?probe=1&every=0.05&count=32&size=16384", buffered=False) for _ in range(9)]
    for answer in answers:
        answer.close()
    assert [answer.status_code for answer in answers[:8]] == [200] * 8
    assert answers[8].status_code == 429


def test_without_a_pass_nobody_uses_up_the_probes_of_the_others(make_app: MakeApp) -> None:
    client = make_app(SSE_PUBLISH_KEYS=[KEY]).test_client()
    assert {client.get("/sse/doctor/echo").status_code for _ in range(300)} == {401}
    assert client.get(with_pass("doctor/echo", make_pass(client, KEY).get_json()["pass"])).status_code == 200


def test_a_client_that_asks_too_often_is_refused_before_its_pass_is_looked_at(make_app: MakeApp) -> None:
    client = make_app(SSE_PUBLISH_KEYS=[KEY], SSE_LIMIT_SUBSCRIBE="3/minute").test_client()
    client.environ_base["REMOTE_ADDR"] = "192.0.2.1"
    assert [client.get("/sse/doctor/echo").status_code for _ in range(4)] == [401, 401, 401, 429]


def test_a_server_of_one_request_at_a_time_is_not_held_for_long(client: FlaskClient) -> None:
    sync = {"SERVER_SOFTWARE": "gunicorn/27.0.1"}
    assert client.get("/sse/doctor/echo", environ_overrides=sync).get_json()["holds"] == "one"
    for probe in ("stream?probe=1&every=6&count=2", "stream?probe=1&count=0&end=keep", "poll?probe=1&wait=11"):
        assert code(client.get(f"/sse/{probe}", environ_overrides=sync)) == (503, "one_at_a_time")
    assert client.get("/sse/stream?probe=1&count=0", environ_overrides=sync, buffered=True).status_code == 200


def test_a_server_of_one_request_at_a_time_is_held_for_half_of_its_time_at_most(client: FlaskClient) -> None:
    sync = {"SERVER_SOFTWARE": "gunicorn/27.0.1"}
    answers = [client.head("/sse/poll?probe=1&wait=10", environ_overrides=sync) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert client.get("/sse/doctor/echo", environ_overrides=sync).status_code == 200
    assert client.head("/sse/poll?probe=1&wait=10").status_code == 200, "others hold greenlets only"


def test_a_server_of_threads_gives_two_of_them(client: FlaskClient) -> None:
    threads = {"SERVER_SOFTWARE": "gunicorn/27.0.1", "wsgi.multithread": True}
    assert client.get("/sse/doctor/echo", environ_overrides=threads).get_json()["holds"] == "threads"
    opened, refusal = fill(client, threads)
    assert (len(opened), refusal.status_code) == (2, 429)
    for answer in opened:
        answer.close()


def test_a_drain_ends_streams_and_polls_politely(app: Flask) -> None:
    hub = app.extensions["sse"].hub
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(
            lambda: app.test_client().get(f"/sse/stream?probe=1&every=60&count=1&id={ID}", buffered=True)
        )
        poll = pool.submit(lambda: app.test_client().get("/sse/poll?probe=1&wait=60"))
        reading = pool.submit(lambda: stream.result(20).data)
        wait_until(lambda: hub.subscribers == 2)
        hub.drain(0)
        reading.result(5)
        assert poll.result(5).get_json()["waited"] < 20
    assert blocks(stream.result())[-1].json()["reason"] == "drain"
    assert app.test_client().get(f"/sse/doctor/left?id={ID}").get_json()["how"] == "drained"
    assert code(app.test_client().get("/sse/stream?probe=1")) == (503, "busy")


# The judge


def judged(client: FlaskClient, body: bytes | str) -> TestResponse:
    return client.post("/sse/doctor/judge", data=body, content_type="application/json")


def test_the_judge_says_what_is_wrong(client: FlaskClient) -> None:
    answer = judged(client, json.dumps({"client": "page", "statuses": {"410": 200}}))
    [finding] = answer.get_json()["findings"]
    assert (finding["code"], finding["level"]) == ("status_rewritten", "fault")
    assert finding.keys() == {"code", "level", "summary", "evidence", "remedy", "paste", "page"}
    assert judged(client, "{}").get_json() == {"findings": []}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 400), ("[]", 400), ("7", 400), ("{", 400), ('{"a":NaN}', 400), ('{"skew":1e999}', 400),
        ('{"skew":' + "9" * 5000 + "}", 400), ('{"skew":' + "9" * 400 + "}", 400), ('{"x":' + "[" * 30000, 400),
        ('{"url":"\\ud800"}', 400), ('{"url":"a","url":"b"}', 400),
        (b'{"url":"\xff"}', 400), ('{"statuses":[1]}', 400), ('{"streams":{"fast":{"blocks":[[1]]}}}', 400),
        ('{"url":"' + "x" * 65_600 + '"}', 413),
    ],
)  # fmt: skip
def test_the_judge_refuses_what_is_no_measurement(client: FlaskClient, body: bytes | str, status: int) -> None:
    answer = judged(client, body)
    assert answer.status_code == status, answer.text
    assert answer.get_json()["error"]["hint"]


def test_a_text_in_a_measurement_stays_a_text(client: FlaskClient) -> None:
    evil = "<script>alert(1)</script>"
    answer = judged(client, json.dumps({"not_ours": {"status": 200, "title": evil, "location": "javascript:alert(1)"}}))
    assert answer.content_type == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    [finding] = answer.get_json()["findings"]
    assert evil in finding["evidence"]
    assert finding["page"] == "docs/troubleshooting.md#not_ours"


# The parts


class Seats:
    """A hub that has a seat for everybody."""

    def __init__(self) -> None:
        self.guests: list[object] = []

    def admit(self, guest: object) -> None:
        self.guests.append(guest)

    def dismiss(self, guest: object) -> None:
        self.guests.remove(guest)


class Clock:
    """A clock that goes on only by waits, and by what the test adds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seats() -> Seats:
    return Seats()


def probe_of(seats: Seats, plan: Plan, clock: Clock, gone: Callable[[], bool] | None = None) -> ProbeStream:
    visit = Visit(seats, gone, clock=clock)  # type: ignore[arg-type]

    class Skipping(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            clock.now += timeout or 0
            return False

    visit._changed = Skipping()
    return ProbeStream(visit, plan, {}, lambda *end: ends.append(end), clock)


ends: list[tuple[str, float]] = []


@pytest.fixture(autouse=True)
def no_ends() -> None:
    ends.clear()


def test_a_client_that_leaves_a_quiet_stream_is_noticed_in_time(seats: Seats) -> None:
    clock = Clock()
    probe = probe_of(seats, Plan(90, 1, 0), clock, gone=lambda: clock.now > 7)
    assert len([*probe]) == 1, "the opening alone"
    probe.close()
    probe.close()
    assert ends == [("left", pytest.approx(7.5))]
    assert not seats.guests


def test_a_body_that_is_kept_open_ends_after_the_longest_time(seats: Seats) -> None:
    clock = Clock()
    probe = probe_of(seats, Plan(1, 2, 0, keeps=True), clock)
    assert b'"reason":"done"' in [*probe][-1]
    probe.close()
    assert ends == [("finished", pytest.approx(LONGEST))]


def test_a_client_that_reads_too_slowly_holds_no_probe_up(seats: Seats) -> None:
    clock = Clock()
    probe = probe_of(seats, Plan(0.1, 100, 10), clock)
    taken = []
    for block in probe:
        taken.append(block)
        clock.now += 6  # seconds until the client has taken it
    assert b'"reason":"bounds"' in taken[-1]
    assert len(taken) < 5


def test_the_ticker_finds_the_time_for_which_nothing_ran() -> None:
    clock = Clock()
    looking = Ticker(clock)
    assert looking.look() == {"count": 1, "since": 0, "longest_gap": 0, "ago": 0}
    clock.now = 8.0  # its thread has had no turn
    frozen = looking.look()
    assert (frozen["since"], frozen["longest_gap"]) == (8, 8)
    clock.now = 8.5
    assert looking.look()["longest_gap"] == 8
    looking.close()


def test_the_ticker_ends_a_minute_after_the_last_question() -> None:
    clock = Clock()
    looking = Ticker(clock)
    looking.look()
    thread = looking._thread
    assert thread
    clock.now = 59.0
    looking.look()
    clock.now = 61.0
    time.sleep(0.6)
    assert thread.is_alive(), "the second question counts"
    clock.now = 119.5
    thread.join(3)
    assert not thread.is_alive()
    assert looking.look()["since"] == 0, "it begins anew"
    looking.close()


def test_the_ticker_looks_by_itself() -> None:
    looking = Ticker()
    looking.look()
    wait_until(lambda: looking._count >= 4, 10, what="it has looked by itself")
    told = looking.look()
    assert 0.2 < told["longest_gap"] < told["since"]
    looking.close()


def test_a_hook_of_the_app_that_reads_bodies_does_not_keep_a_probe(app: Flask) -> None:
    app.after_request(lambda response: Response(response.get_data()))
    answer = app.test_client().get("/sse/stream?probe=1&every=0.05&count=2", buffered=True)
    assert [block.event for block in blocks(answer)] == ["doctor.open", "doctor.tick", "doctor.tick", "doctor.end"]
    assert answer.content_length is None
