"""The proxies of deploy/, as they are written there, in front of the service."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from sse import __version__
from sse.web import script
from tests import client
from tests.client import Stream
from tests.deployed import DEPLOYED, Deployed, DeployedApache, DeployedCaddy, DeployedHaproxy, DeployedVarnish
from tests.publishing import publish
from tests.servers import ROOT, Gunicorn, wait_until
from tests.tokens import KEY

ORIGIN = "https://a.example"


@dataclass
class Site:
    gunicorn: Gunicorn
    proxy: Deployed

    @property
    def url(self) -> str:
        return self.proxy.url


def name_of(kind: type[Deployed]) -> str:
    return kind.name.partition("-")[0]


def only(*kinds: type[Deployed]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("site", kinds, indirect=True, ids=name_of)


@pytest.fixture(scope="module", params=DEPLOYED, ids=name_of)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp(request.param.name)
    environment = {
        "SSE_PUBLIC": "*",
        "SSE_ORIGINS": ORIGIN,
        "SSE_PUBLISH_KEYS": KEY,
        "SSE_PROXIES": "1",
        "SSE_DOCTOR": "1",
    }
    with (
        Gunicorn(directory / "app", env=environment) as gunicorn,
        request.param(directory / "proxy", int(gunicorn.bind.rpartition(":")[2])) as proxy,
    ):
        yield Site(gunicorn, proxy)


def test_each_event_arrives_on_a_stream_before_the_next_is_published(site: Site) -> None:
    with Stream(site.url, {"channel": "news"}) as stream:
        stream.until("sse.open")
        took = []
        for number in range(10):
            began = time.monotonic()
            publish(site.gunicorn, "news", number)
            assert [event.data for event in stream.take(1)] == [str(number)]
            took.append(time.monotonic() - began)
    assert sorted(took)[5] < 0.1, took


@only(DeployedCaddy, DeployedApache, DeployedHaproxy)  # Varnish has no TLS, and browsers speak HTTP/2 over TLS only
def test_one_connection_of_http_2_carries_many_streams(site: Site, tmp_path: Path) -> None:
    command = ["curl", "-ksSNZ", "--http2", "--max-time", "2", "-w", "%{http_version}\n"]
    for number in range(20):
        command += ["-o", str(tmp_path / f"{number}"), f"{site.url}/sse/stream?channel=two&number={number}"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=15)
    assert set(result.stdout.split()) <= {"2", "0"}, result.stdout  # 0: it got no answer
    opened = sum("event: sse.open" in file.read_text() for file in tmp_path.iterdir())
    # Apache begins with six at a time on each connection, as its README says.
    assert opened >= 6 if isinstance(site.proxy, DeployedApache) else opened == 20


@only(DeployedApache)
def test_more_streams_are_open_than_debian_has_threads_for(site: Site) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stream = stack.enter_context(Stream(site.url, {"channel": "crowd"}))
            stream.until("sse.open")


def test_each_event_arrives_on_a_poll_before_the_next_is_published(site: Site) -> None:
    position = client.poll(site.url, ["polled"]).json()["last_event_id"]
    with ThreadPoolExecutor(1) as pool:
        for number in range(3):
            waiting = pool.submit(client.poll, site.url, ["polled"], position, timeout=10)
            publish(site.gunicorn, "polled", number)
            answer = waiting.result(5).json()
            assert [event["data"] for event in answer["events"]] == [str(number)]
            position = answer["last_event_id"]


def test_the_service_learns_that_clients_have_gone(site: Site) -> None:
    def opened() -> list[Stream]:
        streams = [Stream(site.url, {"channel": "leaving", "heartbeat": 3}) for _ in range(8)]
        for stream in streams:
            stream.until("sse.open")
        return streams

    before = site.gunicorn.fds()
    for stream in opened():
        stream.close()
    # Apache learns it when it writes, at the second heartbeat after.
    seconds = 9 if isinstance(site.proxy, DeployedApache) else 2
    wait_until(lambda: site.gunicorn.fds() <= before + 2, seconds, what="the service has closed 8 streams")


def test_a_refusal_by_the_app_passes_with_its_status_and_its_headers(site: Site) -> None:
    for origin, allowed in ((ORIGIN, [ORIGIN]), ("https://evil.example", None)):
        answer = client.request(site.url, "GET", "/sse/stream", {"channel": ""}, headers={"Origin": origin})
        assert (answer.status, answer.headers.get_all("Access-Control-Allow-Origin")) == (400, allowed)
        assert answer.json()["error"]["code"]
    too_large = client.publish(site.url, "a", "x" * (1 << 20), key=KEY)
    assert (too_large.status, too_large.headers["Content-Type"]) == (413, "application/json")
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "Last-Event-ID",
    }
    preflight = client.request(site.url, "OPTIONS", "/sse/stream", headers=asked)
    assert preflight.status in (200, 204)
    assert "last-event-id" in preflight.headers["Access-Control-Allow-Headers"].lower()


def test_a_last_event_id_reaches_the_app_in_a_header_and_in_a_long_query(site: Site) -> None:
    publish(site.gunicorn, "resumed", 0)
    with Stream(site.url, {"channel": "resumed", "replay": "1"}) as stream:
        assert [event.data for event in stream.take(1)] == ["0"]
        position = stream.last_event_id
    for number in (1, 2):
        publish(site.gunicorn, "resumed", number)
    with Stream(site.url, {"channel": "resumed"}, last_event_id=position) as stream:
        assert [event.data for event in stream.take(2)] == ["1", "2"]
    answer = client.poll(site.url, ["long"], "long=1-2~" + "%" * 7900, timeout=0)  # three bytes each, encoded
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.status in (200, 400), answer


def test_the_service_learns_the_address_and_the_scheme_and_believes_no_client(site: Site) -> None:
    forged = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
    echo = client.request(site.url, "GET", "/sse/doctor/echo", headers=forged).json()
    assert echo["client"] == "loopback"
    assert echo["headers"]["x-forwarded-for"].rpartition(", ")[2] == "loopback"
    assert echo["scheme"] == site.url.partition(":")[0]


def test_the_script_comes_gzipped_once(site: Site) -> None:
    for path in ("/sse/sse.js", f"/sse/sse.{__version__}.js"):
        for accepted, variant in (("gzip", script.load().gzipped), ("identity", script.load().plain)):
            answer = client.request(site.url, "GET", path, headers={"Accept-Encoding": accepted, "Origin": ORIGIN})
            assert (answer.status, answer.body) == (200, variant.body)
            assert answer.headers["Content-Encoding"] == (accepted if accepted == "gzip" else None)
            assert answer.headers.get_all("Access-Control-Allow-Origin") == ["*"]


@only(DeployedApache, DeployedHaproxy)  # Varnish has no TLS, and Caddy's own redirect needs port 80
def test_plain_http_is_redirected_to_the_name_of_the_site(site: Site) -> None:
    answer = client.request(site.proxy.plain_url, "GET", "/sse/stream?channel=a")
    assert answer.status in (301, 308)
    assert answer.headers["Location"].startswith("https://localhost")


def test_a_stream_during_a_restart_waits_or_is_told_to_come_back_and_no_log_has_its_query(site: Site) -> None:
    query, headers = (
        {"channel": "a", "token": "a-secret-of-a-query"},
        {"Referer": "https://a.example/?a-secret-too", "Origin": ORIGIN},
    )
    client.request(site.url, "GET", "/sse/poll", [*query.items(), ("timeout", 0)], headers=headers)
    site.gunicorn.stop()
    starting = threading.Timer(1.2, site.gunicorn.start)
    starting.start()
    try:
        if isinstance(site.proxy, DeployedVarnish):  # as the READMEs say
            with pytest.raises(ConnectionError):
                Stream(site.url, query, headers=headers)
        else:
            with Stream(site.url, query, headers=headers, timeout=20) as stream:
                if isinstance(site.proxy, DeployedApache):
                    assert stream.status == 200
                    assert stream.headers.get_all("Access-Control-Allow-Origin") == [ORIGIN]
                    assert stream.until("sse.close").json() == {"reason": "busy", "retry": 5000}
                else:
                    assert stream.status == 400  # the service itself refuses a token in a query here
    finally:
        starting.join(20)
    texts = [path.read_bytes() for path in site.proxy.dir.iterdir() if path.suffix == ".log"]
    assert texts
    assert not [text for text in texts if b"a-secret" in text]


@pytest.mark.parametrize("name", ["caddy", "apache"])
def test_the_readme_s_command_puts_the_name_into_the_file(name: str, tmp_path: Path) -> None:
    commands = [line for line in (ROOT / f"deploy/{name}/README.md").read_text().split("\n") if line.startswith("sed ")]
    assert len(commands) == 1
    command, _, target = commands[0].partition(" >")
    assert target.startswith("/etc/")
    command = command.replace("/opt/throughline", str(ROOT))
    result = subprocess.run(
        ["bash", "-euc", command], cwd=ROOT / f"deploy/{name}", env={**os.environ, "NAME": "push.test"},
        check=True, capture_output=True, text=True, timeout=10,
    )  # fmt: skip
    lines = [line for line in result.stdout.split("\n") if not line.startswith("#")]
    assert any("push.test" in line for line in lines)
    assert not [line for line in lines if "push.example" in line]
