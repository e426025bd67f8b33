"""nginx.conf, and the site that is installed beside others.

The upstream is a small server that misbehaves, or the service.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import select
import shutil
import socket
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from sse import __version__
from sse.web import script
from sse.web.answers import ALLOWED_HEADERS
from tests import client
from tests.client import Parser, Stream
from tests.publishing import publish
from tests.servers import ROOT, Gunicorn, HttpServer, Nginx, NginxBeside, RedisServer, free_port, wait_until
from tests.tokens import KEY

ORIGIN = "https://a.example"
CORS = ("Access-Control-Allow-Origin", "Access-Control-Allow-Credentials")


class Upstream(HttpServer):
    """Answers as the query says: `status`, `flood` (an endless body), `drop` (no answer), or a stream left open."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", free_port()), UpstreamHandler)
        self.requests: list[str] = []
        self.left = threading.Event()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.left.set()  # nginx has closed the connection under our hands


class UpstreamHandler(BaseHTTPRequestHandler):
    server: Upstream
    protocol_version = "HTTP/1.1"
    timeout = 20

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        if "drop" in query:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status = int(query.get("status", 200))
        streams = urlsplit(self.path).path == "/sse/stream" and status == 200
        body = (
            b"" if streams else json.dumps({"status": status, "forwarded": self.headers["X-Forwarded-Proto"]}).encode()
        )
        self.send_response(status)
        if "after" in query:
            self.send_header("Retry-After", query["after"])
        self.send_header("Content-Type", "text/event-stream" if streams else "application/json")
        self.send_header(*("Connection", "close") if streams else ("Content-Length", str(len(body))))
        self.end_headers()
        self.wfile.write(body)
        if not streams:
            return
        self.wfile.write(b"event: sse.open\ndata: {}\n\n")
        for _ in range(10_000):
            if "flood" in query:
                self.wfile.write(b"data: %s\n\n" % (b"x" * 8000))
            elif select.select([self.connection], [], [], 20)[0] and not self.connection.recv(1):
                break
        self.server.left.set()

    do_POST = do_HEAD = do_OPTIONS = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture(params=[Nginx, NginxBeside], ids=["alone", "beside"])
def front(request: pytest.FixtureRequest) -> Any:
    """The class of nginx: on a machine of its own, or beside other sites."""
    return request.param


@pytest.fixture
def down(front: type[Nginx], tmp_path: Path) -> Iterator[Nginx]:
    """An nginx without an upstream server."""
    with front(tmp_path, f"127.0.0.1:{free_port()}") as nginx:
        yield nginx


def get(url: str, path: str, params: client.Params = (), **headers: str) -> client.Answer:
    return client.request(url, "GET", path, params, headers=headers)


def retry_of(answer: client.Answer) -> int:
    """Check a fallback stream, and return the wait that it asks for."""
    assert answer.status == 200
    assert answer.headers.get_all("Content-Type") == ["text/event-stream"]
    assert "no-store" in answer.headers["Cache-Control"]
    assert answer.headers["X-Accel-Buffering"] == "no"
    [event] = Parser().feed(answer.body)
    assert event.event == "sse.close"
    assert event.json() == {"reason": "busy", "retry": event.retry}
    assert event.own_id is None
    assert event.retry is not None
    return event.retry


def test_the_configuration_is_accepted_without_a_warning(front: type[Nginx], tmp_path: Path) -> None:
    result = front(tmp_path, "unix:/run/throughline/throughline.sock").test()
    assert result.returncode == 0, result.stderr
    assert "[warn]" not in result.stderr
    assert "[emerg]" not in result.stderr


def test_the_site_beside_others_is_the_same_as_that_of_a_machine_of_its_own() -> None:
    site = (ROOT / "deploy/nginx/throughline.conf").read_text().partition("\nupstream ")
    alone = (ROOT / "nginx.conf").read_text()
    shared = textwrap.indent("".join(site[1:]).lstrip("\n"), "    ")
    assert alone.endswith(f"\n\n{shared}}}\n"), "make each change in nginx.conf and deploy/nginx/throughline.conf alike"
    assert "zone=throughline_held" in shared


def names(text: str) -> set[str]:
    """Return the names that are global in an nginx: of upstreams, formats, zones and variables."""
    defined = r"^ *(?:upstream|log_format) (\w+)|(?:zone=|shared:)(\w+):|^ *(?:map|split_clients) \S+ \$(\w+)"
    return {name for found in re.findall(defined, text, re.MULTILINE) for name in found if name}


def test_the_site_takes_no_other_site_s_names_and_sets_nothing_for_it() -> None:
    text = (ROOT / "deploy/nginx/throughline.conf").read_text()
    found = names(text)
    assert {"throughline", "throughline_held", "throughline_tls", "throughline_origin"} <= found
    assert all(name.startswith("throughline") for name in found)
    assert "default_server" not in re.sub("#.*", "", text)
    for_all = set(re.findall(r"^(\w+)", text, re.MULTILINE))
    assert for_all == {"upstream", "log_format", "limit_req_zone", "limit_conn_zone", "map", "split_clients", "server"}


def test_the_other_sites_stay_and_the_first_of_them_stays_the_default(tmp_path: Path) -> None:
    with NginxBeside(tmp_path, f"127.0.0.1:{free_port()}") as nginx:
        for host, text in (("shop.example", "the shop"), ("www.example", "the website"), ("other.example", "the shop")):
            plain = get(nginx.http_url, "/", Host=host)
            assert (plain.status, plain.body.decode()) == (200, text)
            for version in ("--http1.1", "--http2"):
                assert over_tls(nginx, host, version) == text
        shared = nginx.dir / "access.log"
        wait_until(lambda: len(shared.read_text().splitlines()) == 9, what="their log has their requests")
        assert nginx.access_log.read_text() == ""
        assert "nginx" in over_tls(nginx, "localhost", "--http2")  # ours, whose workers are down
        wait_until(lambda: len(nginx.access_log.read_text().splitlines()) == 1, what="our own log has our request")
        assert len(shared.read_text().splitlines()) == 9


def over_tls(nginx: Nginx, host: str, version: str) -> str:
    """Return the page that a browser gets for this host, at its root."""
    at = f"{host}:{nginx.https_port}"
    command = ["curl", "-sSk", version, "--max-time", "10", "--resolve", f"{at}:127.0.0.1", f"https://{at}/"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def test_plain_http_is_sent_to_our_own_name_whatever_host_was_asked_for(down: Nginx) -> None:
    host = "localhost:81" if isinstance(down, NginxBeside) else "evil.example"  # which other sites there get
    answer = get(down.http_url, "/page", {"a": "b"}, Host=host)
    assert (answer.status, answer.headers["Location"]) == (308, "https://localhost/page?a=b")


def test_with_the_workers_down_a_stream_is_told_to_come_back_at_a_jittered_time(down: Nginx) -> None:
    waits = [retry_of(get(down.url, "/sse/stream", {"channel": "a"})) for _ in range(60)]
    assert 2000 <= min(waits) < 6000
    assert 11000 < max(waits) < 15000
    assert len(set(waits)) > 40


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:8080", "http://[::1]:81", "capacitor://localhost"])
def test_with_the_workers_down_a_page_of_any_origin_may_read_the_answer(down: Nginx, origin: str) -> None:
    for path in ("/sse/stream", "/sse/poll", "/sse/publish"):
        answer = get(down.url, path, Origin=origin)
        assert [answer.headers.get_all(name) for name in CORS] == [[origin], ["true"]]
        assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize("headers", [{}, {"Origin": "null"}, {"Origin": "a.example"}, {"Origin": "https://a b"}])
def test_with_the_workers_down_what_is_no_origin_is_not_reflected(down: Nginx, headers: dict[str, str]) -> None:
    answer = client.request(down.url, "GET", "/sse/stream", headers=headers)
    assert retry_of(answer)
    assert [answer.headers.get_all(name) for name in CORS] == [None, None]


@pytest.mark.parametrize("path", ["/sse/stream", "/sse/poll", "/sse/publish", "/sse/publish/a/b"])
def test_with_the_workers_down_a_preflight_is_answered(down: Nginx, path: str) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "last-event-id",
    }
    answer = client.request(down.url, "OPTIONS", path, headers=asked)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert tuple(answer.headers["Access-Control-Allow-Headers"].split(", ")) == ALLOWED_HEADERS
    assert "GET" in answer.headers["Access-Control-Allow-Methods"]


def test_with_the_workers_down_a_head_has_the_stream_s_headers_and_no_body(down: Nginx) -> None:
    answer = client.request(down.url, "HEAD", "/sse/stream", headers={"Origin": ORIGIN})
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, "text/event-stream", b"")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/sse/poll"), ("POST", "/sse/publish"), ("POST", "/sse/publish/a")]
)
def test_with_the_workers_down_polls_and_publishers_get_a_json_error(down: Nginx, method: str, path: str) -> None:
    answer = client.request(down.url, method, path, headers={"Origin": ORIGIN})
    assert (answer.status, answer.headers["Content-Type"]) == (503, "application/json")
    assert int(answer.headers["Retry-After"]) in range(2, 15)
    assert answer.headers["Access-Control-Expose-Headers"] == "Retry-After"
    assert set(answer.json()["error"]) == {"code", "message", "hint"}


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/sse/poll"), ("POST", "/sse/publish"), ("POST", "/sse/publish/a")]
)
def test_a_failure_of_nginx_itself_is_told_as_unavailable(
    upstream: Upstream, front: type[Nginx], tmp_path: Path, method: str, path: str
) -> None:
    with front(tmp_path, upstream.address) as nginx:
        shutil.rmtree(nginx.dir / "client_body")  # where it keeps a body of this size: 500
        answer = client.request(nginx.url, method, path, headers={"Origin": ORIGIN}, body=b"x" * 500_000)
        assert (answer.status, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert answer.headers["Retry-After"]
    assert not upstream.requests


@pytest.mark.parametrize("path", ["/sse/publish", "/sse/publish/a"])
def test_a_body_that_nginx_itself_refuses_is_told_in_json_to_a_page_of_any_origin(
    upstream: Upstream, front: type[Nginx], tmp_path: Path, path: str
) -> None:
    with front(tmp_path, upstream.address) as nginx:
        for size, status in ((2 << 20, 200), ((2 << 20) + 1, 413)):
            answer = client.request(nginx.url, "POST", path, headers={"Origin": ORIGIN}, body=b"x" * size)
            assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
        assert answer.json()["error"]["code"] == "too_large"
        assert set(answer.json()["error"]) == {"code", "message", "hint"}
        assert [answer.headers.get_all(name) for name in CORS] == [[ORIGIN], ["true"]]
        assert answer.headers["Cache-Control"] == "no-store"
        assert len(upstream.requests) == 1


def test_queries_and_referers_are_in_no_log(down: Nginx) -> None:
    for path in ("/sse/stream", "/sse/poll"):
        get(down.url, path, {"channel": "a", "token": "SECRET"}, Referer="https://a.example/?token=SECRET")
    get(down.http_url, "/sse/stream", {"token": "SECRET"})
    lines = wait_until(lambda: down.access_log.read_text().splitlines()[2:], what="three lines are logged")
    assert len(lines) == 1
    assert "GET /sse/stream" in down.access_log.read_text()
    assert "SECRET" not in down.access_log.read_text()
    assert "SECRET" not in down.error_log.read_text()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_upstream_failure_on_the_stream_becomes_a_stream(
    upstream: Upstream, front: type[Nginx], tmp_path: Path, status: int
) -> None:
    with front(tmp_path, upstream.address) as nginx:
        answer = get(nginx.url, "/sse/stream", {"status": status}, Origin=ORIGIN)
        assert 2000 <= retry_of(answer) < 15000
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


# The app's own views


SOURCE = {"Accept": "text/event-stream"}


def test_with_the_workers_down_a_stream_of_a_view_is_told_to_come_back_and_a_page_gets_nginx_s_own_error(
    down: Nginx,
) -> None:
    for accept in ("text/event-stream", "text/event-stream, */*;q=0.1", "application/json,Text/Event-Stream;q=0.5"):
        answer = client.request(down.url, "GET", "/inbox/events", headers={"Accept": accept, "Origin": ORIGIN})
        assert 2000 <= retry_of(answer) < 15000
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    for accept in ("*/*", "text/html", "application/json", "text/event-streams", "xtext/event-stream"):
        assert client.request(down.url, "GET", "/inbox/events", headers={"Accept": accept}).status == 502
    bare = client.request(down.url, "GET", "/inbox/events", {"form": "bare"}, headers=SOURCE)
    assert (bare.status, bare.json()["error"]["code"]) == (503, "unavailable")
    with pytest.raises((OSError, http.client.HTTPException)):
        client.request(down.url, "GET", "/inbox/events", {"end": "cut"}, headers=SOURCE)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_upstream_failure_on_a_view_s_stream_becomes_a_stream_and_stays_what_it_is_for_others(
    upstream: Upstream, front: type[Nginx], tmp_path: Path, method: str, status: int
) -> None:
    with front(tmp_path, upstream.address) as nginx:
        body = b"x" * 10_000 if method == "POST" else None
        asked = {"status": status}
        assert retry_of(client.request(nginx.url, method, "/inbox/events", asked, headers=SOURCE, body=body))
        page = client.request(nginx.url, method, "/inbox/events", asked, headers={"Accept": "text/html"}, body=body)
        assert (page.status, page.json()["status"]) == (status, status)
        assert upstream.requests == [f"{method} /inbox/events?status={status}"] * 2


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 418])
def test_other_answers_to_a_view_s_stream_pass_unchanged(
    upstream: Upstream, front: type[Nginx], tmp_path: Path, status: int
) -> None:
    with front(tmp_path, upstream.address) as nginx:
        for accept in ("text/event-stream", "text/html"):
            answer = client.request(nginx.url, "GET", "/own", {"status": status}, headers={"Accept": accept})
            assert (answer.status, answer.json()) == (status, {"status": status, "forwarded": "https"})


def test_over_the_request_limit_a_view_s_stream_comes_back_later(
    upstream: Upstream, front: type[Nginx], tmp_path: Path
) -> None:
    edits = {"rate=50r/s": "rate=1r/m"}
    edits["limit_req zone=throughline_subscribe burst=500 nodelay;"] = "limit_req zone=throughline_subscribe;"
    with front(tmp_path, upstream.address, edits) as nginx:
        assert client.request(nginx.url, "GET", "/own", headers=SOURCE).status == 200
        assert retry_of(client.request(nginx.url, "GET", "/own", headers=SOURCE)) >= 2000
        assert client.request(nginx.url, "GET", "/own").status == 200


# end=cut and form=bare


QUERIES = ("form=bare", "channel=a&form=bare&x=1", "end=cut&form=bare")
OTHERS = ("form=bar", "xform=bare", "form=bare2", "send=cut", "end=cute", "x=end=cut", "x=:end=cut")


def curl_code(nginx: Nginx, version: str, query: str) -> int:
    """Return curl's exit status: 52 for a connection closed without an answer, 92 for a reset HTTP/2 stream."""
    address = f"{nginx.url}/sse/stream?{query}"
    command = ["curl", "-sk", version, "--max-time", "20", "-o", "/dev/null", address]
    return subprocess.run(command, timeout=40).returncode


def test_with_the_workers_down_a_bare_stream_is_503_and_one_that_asks_for_a_cut_gets_no_answer(down: Nginx) -> None:
    for query in QUERIES:
        answer = get(down.url, f"/sse/stream?{query}", Origin=ORIGIN)
        assert (answer.status, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.headers["Content-Type"] == "application/json"
        assert int(answer.headers["Retry-After"]) in range(2, 15)
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert answer.headers["Access-Control-Expose-Headers"] == "Retry-After"
    for query in ("end=cut", "channel=a&end=cut&x=1"):
        assert curl_code(down, "--http1.1", query) in (52, 56)
        assert curl_code(down, "--http2", query) == 92
    for query in OTHERS:
        assert retry_of(get(down.url, f"/sse/stream?{query}"))
    for query in ("form=bare", "end=cut"):
        assert get(down.url, f"/sse/poll?{query}").status == 503
        assert client.request(down.url, "OPTIONS", f"/sse/stream?{query}", headers={"Origin": ORIGIN}).status == 204


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_upstream_failure_is_503_for_a_bare_stream_which_waits_as_the_app_says(
    upstream: Upstream, front: type[Nginx], tmp_path: Path, status: int
) -> None:
    with front(tmp_path, upstream.address) as nginx:
        for after, waits in (("77", range(77, 78)), (None, range(2, 15))):
            query = {"status": status, "form": "bare"} | ({"after": after} if after else {})
            answer = get(nginx.url, "/sse/stream", query, Origin=ORIGIN)
            assert (answer.status, answer.headers["Content-Type"]) == (503, "application/json")
            assert [int(wait) in waits for wait in answer.headers.get_all("Retry-After", [])] == [True]
        assert curl_code(nginx, "--http2", f"status={status}&end=cut") == 92
        answer = get(nginx.url, "/sse/stream", {"status": 410, "form": "bare"})
        assert (answer.status, answer.json()["status"]) == (410, 410)


def test_a_body_that_is_cut_reaches_the_client_as_one_and_a_whole_one_whole(tmp_path: Path) -> None:
    env = {"SSE_PUBLIC": "*", "SSE_STREAM_LIFETIME": "5"}
    with Gunicorn(tmp_path, env=env) as server, Nginx(tmp_path, server.bind) as nginx, ThreadPoolExecutor(9) as pool:
        streams = {end: Stream(nginx.url, {"channel": "a"} | end_query(end)) for end in ("cut", "clean")}
        codes = {end: pool.submit(curl_code, nginx, "--http2", f"channel=a&{end}=cut") for end in ("end", "x")}
        for end, stream in streams.items():
            *_, last = stream.events()
            assert last.json()["reason"] == "lifetime"
            assert stream.complete == (end == "clean")
        assert (codes["end"].result(20), codes["x"].result(20)) == (92, 0)


def end_query(end: str) -> dict[str, str]:
    return {"end": "cut"} if end == "cut" else {}


def test_the_app_s_own_answers_pass_unchanged(upstream: Upstream, front: type[Nginx], tmp_path: Path) -> None:
    with front(tmp_path, upstream.address) as nginx:
        cases = [("/sse/stream", status) for status in (400, 401, 403, 404, 405)]
        cases += [(path, status) for path in ("/sse/poll", "/sse/publish", "/") for status in (200, 404, 413, 429, 503)]
        for path, status in cases:
            answer = get(nginx.url, path, {"status": status}, Origin=ORIGIN)
            assert (answer.status, answer.json()) == (status, {"status": status, "forwarded": "https"}), path
            assert [answer.headers.get_all(name) for name in CORS] == [None, None], path


def test_over_the_request_limit_a_stream_comes_back_later_and_a_poll_gets_429(
    upstream: Upstream, front: type[Nginx], tmp_path: Path
) -> None:
    edits = {
        "rate=50r/s": "rate=1r/m",
        "limit_req zone=throughline_subscribe burst=500 nodelay;": "limit_req zone=throughline_subscribe;",
    }
    with front(tmp_path, upstream.address, edits) as nginx:
        assert get(nginx.url, "/sse/poll").json()["status"] == 200
        answer = get(nginx.url, "/sse/stream", Origin=ORIGIN)
        assert retry_of(answer) >= 2000
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        answer = get(nginx.url, "/sse/poll", Origin=ORIGIN)
        assert (answer.status, answer.json()["error"]["code"]) == (429, "too_many_requests")
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert answer.headers["Retry-After"]
        assert get(nginx.url, "/sse/stream", {"form": "bare"}).status == 503
        assert len(upstream.requests) == 1


def test_over_the_connection_limit_a_stream_comes_back_later(
    upstream: Upstream, front: type[Nginx], tmp_path: Path
) -> None:
    with front(
        tmp_path, upstream.address, {"limit_conn throughline_held 1000;": "limit_conn throughline_held 1;"}
    ) as nginx:
        with Stream(nginx.url) as first:
            first.until("sse.open")
            assert retry_of(get(nginx.url, "/sse/stream")) >= 2000
            assert get(nginx.url, "/sse/poll").status == 429
        wait_until(lambda: get(nginx.url, "/sse/poll").status == 200, what="the place is free again")


def test_a_stream_is_never_compressed_even_where_a_site_compresses_everything(
    upstream: Upstream, front: type[Nginx], tmp_path: Path
) -> None:
    everything = "sendfile on; gzip on; gzip_proxied any; gzip_min_length 0; gzip_types *;"
    with front(tmp_path, upstream.address, {"sendfile on;": everything}) as nginx:
        asked = {"Accept-Encoding": "gzip"}
        assert client.request(nginx.url, "GET", "/sse/poll", headers=asked).headers["Content-Encoding"] == "gzip"
        fallback = client.request(nginx.url, "GET", "/sse/stream", {"status": 503}, headers=asked)
        assert "Content-Encoding" not in fallback.headers
        with Stream(nginx.url, headers=asked) as stream:
            assert stream.until("sse.open").data == "{}"
            assert "Content-Encoding" not in stream.headers


def test_the_upstream_learns_at_once_that_a_client_has_closed(
    upstream: Upstream, front: type[Nginx], tmp_path: Path
) -> None:
    with front(tmp_path, upstream.address) as nginx:
        with Stream(nginx.url) as stream:
            stream.until("sse.open")
            assert not upstream.left.wait(0.3)
        assert upstream.left.wait(1)


def test_a_client_that_does_not_read_is_cut(upstream: Upstream, front: type[Nginx], tmp_path: Path) -> None:
    impatient = front(tmp_path, upstream.address, {"send_timeout 30s;": "send_timeout 1s;"})
    with impatient as nginx, Stream(nginx.url, {"flood": 1}):
        assert upstream.left.wait(15)


@pytest.mark.parametrize("kept_alive", [False, True])
def test_a_publish_that_was_sent_is_never_repeated(
    upstream: Upstream, front: type[Nginx], tmp_path: Path, kept_alive: bool
) -> None:
    with front(tmp_path, upstream.address) as nginx:
        if kept_alive:
            assert get(nginx.url, "/sse/publish").status == 200
            upstream.requests.clear()
        answer = client.request(nginx.url, "POST", "/sse/publish", {"drop": 1}, body=b"{}")
        assert answer.status == 503
        assert upstream.requests == ["POST /sse/publish?drop=1"]


def test_the_longest_last_event_id_passes_in_a_query_and_in_a_header(
    upstream: Upstream, front: type[Nginx], tmp_path: Path
) -> None:
    with front(tmp_path, upstream.address) as nginx:
        query = {"status": 404, "last_event_id": "%" * 8000}  # 24,000 bytes, percent-encoded
        assert get(nginx.url, "/sse/stream", query).status == 404
        assert get(nginx.url, "/sse/stream", {"status": 404}, **{"Last-Event-ID": "a" * 8000}).status == 404


@dataclass
class Site:
    redis: RedisServer
    gunicorn: Gunicorn
    nginx: Nginx


@pytest.fixture(scope="module", params=["tcp", "unix", "beside"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer(directory / "redis"))
        environment = {
            "SSE_REDIS_URL": redis.url,
            "SSE_PUBLIC": "*",
            "SSE_ORIGINS": ORIGIN,
            "SSE_PUBLISH_KEYS": KEY,
        }
        bind = f"unix:{directory}/sock" if request.param != "tcp" else None
        gunicorn = stack.enter_context(Gunicorn(directory / "app", env=environment, workers=2, bind=bind))
        front = NginxBeside if request.param == "beside" else Nginx
        nginx = stack.enter_context(front(directory / "nginx", gunicorn.bind))
        yield Site(redis, gunicorn, nginx)


class Curl:
    """`curl -N` over HTTP/2, as a reader of blocks."""

    base: ClassVar[Sequence[str]] = ("curl", "-sSkN", "--http2", "--max-time", "30", "-w", "%{stderr}%{http_version}")

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen([*self.base, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        self.parser = Parser()
        self.pending: list[client.Event] = []

    def take(self, count: int) -> list[client.Event]:
        assert self.process.stdout is not None
        taken: list[client.Event] = []
        for _ in range(1000):
            while self.pending and len(taken) < count:
                event = self.pending.pop(0)
                taken += [event] if event.data is not None and not event.event.startswith("sse.") else []
            if len(taken) == count:
                return taken
            assert select.select([self.process.stdout], [], [], 5)[0], "nothing more within 5 s"
            self.pending += self.parser.feed(self.process.stdout.read(65536))
        raise AssertionError("1000 reads and not enough events")

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=5)


def over_http_1(site: Site, channel: str) -> contextlib.closing[Any]:
    stream = Stream(site.nginx.url, {"channel": channel})
    stream.until("sse.heartbeat")
    return contextlib.closing(stream)


def over_http_2(site: Site, channel: str) -> contextlib.closing[Any]:
    curl = Curl(f"{site.nginx.url}/sse/stream?channel={channel}&replay=1")
    publish(site.nginx, channel, "first")
    assert [event.data for event in curl.take(1)] == ["first"]
    return contextlib.closing(curl)


@pytest.mark.parametrize("over", [over_http_1, over_http_2])
def test_each_event_arrives_on_a_stream_before_the_next_is_published(
    site: Site, over: Callable[[Site, str], contextlib.closing[Any]]
) -> None:
    with over(site, over.__name__) as stream:
        for number in range(10):
            publish(site.nginx, over.__name__, number)
            assert [event.data for event in stream.take(1)] == [str(number)]


def test_curl_speaks_http_2_with_it(site: Site) -> None:
    result = subprocess.run(
        [*Curl.base, f"{site.nginx.url}/healthz"], check=True, capture_output=True, text=True, timeout=30
    )
    assert result.stderr == "2"


def test_each_event_arrives_on_a_poll_before_the_next_is_published(site: Site) -> None:
    position = client.poll(site.nginx.url, ["polled"]).json()["last_event_id"]
    with ThreadPoolExecutor(1) as pool:
        for number in range(5):
            waiting = pool.submit(client.poll, site.nginx.url, ["polled"], position, timeout=10)
            [published] = publish(site.nginx, "polled", number)
            answer = waiting.result(5).json()
            assert [(event["id"], event["data"]) for event in answer["events"]] == [(published, str(number))]
            position = answer["last_event_id"]


def test_each_event_arrives_on_a_poll_over_http_2_before_the_next_is_published(site: Site) -> None:
    position = client.poll(site.nginx.url, ["polled2"]).json()["last_event_id"]
    for number in range(3):
        address = site.nginx.url + client.target(
            "/sse/poll", {"channel": "polled2", "last_event_id": position, "timeout": 10}
        )
        with subprocess.Popen([*Curl.base, address], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as curl:
            [published] = publish(site.nginx, "polled2", number)
            output, errors = curl.communicate(timeout=15)
        answer = json.loads(output)
        assert [(event["id"], event["data"]) for event in answer["events"]] == [(published, str(number))]
        assert errors == b"2"
        position = answer["last_event_id"]


def test_clients_that_close_leave_no_descriptor_behind(site: Site) -> None:
    def open_streams(count: int) -> list[Stream]:
        streams = [Stream(site.nginx.url, {"channel": "closing", "heartbeat": 3}) for _ in range(count)]
        for stream in streams:
            stream.until("sse.open")
        return streams

    for stream in open_streams(3):  # so that what a worker opens once, and nginx keeps, is counted in the base
        stream.close()
    base = wait_until(lambda: settled(site.gunicorn.fds), 15)
    streams = open_streams(20)
    assert site.gunicorn.fds() >= base + 15
    for stream in streams:
        stream.close()
    wait_until(lambda: site.gunicorn.fds() <= base + 2, 8, what="the workers have closed 20 connections")


def settled(count: Callable[[], int]) -> int:
    """Return a count that is stable for four seconds, longer than a heartbeat of these tests, or else 0."""
    first = count()
    for _ in range(40):
        threading.Event().wait(0.1)
        if count() != first:
            return 0
    return first


def test_cors_on_a_stream_is_the_app_s_own_and_comes_once(site: Site) -> None:
    for origin, allowed in ((ORIGIN, [ORIGIN]), ("https://a.example.evil.net", None), ("null", None)):
        with Stream(site.nginx.url, {"channel": "cors"}, headers={"Origin": origin}) as stream:
            assert stream.status == 200
            assert stream.headers.get_all("Access-Control-Allow-Origin") == allowed
            assert stream.headers["X-Accel-Buffering"] == "no"


def assert_script(nginx: Nginx) -> None:
    """Check that the script arrives as the app sends it: gzipped at most once, with each header once."""
    for path in ("/sse/sse.js", f"/sse/sse.{__version__}.js"):
        for accepted, variant in (("gzip", script.load().gzipped), ("identity", script.load().plain)):
            asked = {"Origin": ORIGIN, "Accept-Encoding": accepted}
            answer = client.request(nginx.url, "GET", path, headers=asked)
            assert (answer.status, answer.body) == (200, variant.body)
            assert answer.headers["Content-Encoding"] == (accepted if accepted == "gzip" else None)
            assert [answer.headers.get_all(name) for name in CORS] == [["*"], None]
            assert len({name.lower() for name in answer.headers.keys()}) == len(answer.headers.keys())
            assert answer.headers["ETag"] == f'"{variant.etag}"'
            asked["If-None-Match"] = answer.headers["ETag"]
            answer = client.request(nginx.url, "GET", path, headers=asked)
            assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", asked["If-None-Match"])


def test_the_script_comes_gzipped_once_and_for_every_page(site: Site, tmp_path: Path) -> None:
    assert_script(site.nginx)
    everything = "sendfile on; gzip on; gzip_proxied any; gzip_min_length 0; gzip_types *;"
    with type(site.nginx)(tmp_path, site.gunicorn.bind, {"sendfile on;": everything}) as nginx:
        assert_script(nginx)


def test_a_request_line_of_24_kb_reaches_the_app(site: Site) -> None:
    answer = client.poll(site.nginx.url, ["long"], "long=1-2~" + "%" * 7900, timeout=0)  # three bytes each, encoded
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.status in (200, 400), answer


def test_a_refusal_by_the_app_passes_with_its_status(site: Site) -> None:
    answer = get(site.nginx.url, "/sse/stream", {"channel": ""}, Origin=ORIGIN)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (400, ORIGIN)
    assert answer.json()["error"]["code"]
    too_large = client.publish(site.nginx.url, "a", "x" * (1 << 20), key=KEY)
    assert (too_large.status, too_large.headers["Content-Type"]) == (413, "application/json")


def test_a_stream_goes_on_where_it_was_when_the_workers_are_back(site: Site) -> None:
    publish(site.nginx, "restart", 0)
    with Stream(site.nginx.url, {"channel": "restart", "replay": "1"}) as stream:
        assert [event.data for event in stream.take(1)] == ["0"]
        site.gunicorn.stop()
        assert all(event.event.startswith("sse.") for event in stream.events())
    answer = get(site.nginx.url, "/sse/stream", {"channel": "restart"}, Origin=ORIGIN)
    assert retry_of(answer) >= 2000
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    site.gunicorn.start()
    publish(site.nginx, "restart", 1)
    with Stream(site.nginx.url, {"channel": "restart"}, last_event_id=stream.last_event_id) as again:
        assert [event.data for event in again.take(1)] == ["1"]
