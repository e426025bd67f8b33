"""`flask sse doctor` before real servers: what it finds without proxies, what is no fault, and what it prints.

tests/live/test_doctor.py has the proxies.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sse.cli import cli
from sse.doctor.judge import judge
from sse.doctor.measure import get_pass, measure
from sse.doctor.proxies import on_the_way
from sse.doctor.watched_stream import WatchedStream
from sse.doctor.way import Way
from sse.errors import SSEError
from tests import client
from tests.proxies import TcpProxy
from tests.servers import Gunicorn, HttpServer, free_port
from tests.tokens import KEY

ORIGIN = "https://www.example"
OPEN = {"SSE_DOCTOR": "1"}
WAIT = 6.0  # seconds
Codes = dict[str, str]


def codes(measured: dict[str, Any]) -> Codes:
    """Return the level of each code that is found, without what every service of these tests has."""
    return {found.code: found.level for found in judge(measured) if found.code not in ("http1", "few_streams")}


class _Other(BaseHTTPRequestHandler):
    """Whatever may stand where the service should."""

    ANSWERS = {
        "/login": (302, {"Location": "https://login.example/?next=%2Fsse"}, b""),
        "/captive": (200, {"Content-Type": "text/html"}, b"<html><title>Welcome to\n the hotel</title>"),
        "/missing": (
            404,
            {"Content-Type": "text/html", "Set-Cookie": "AWSALB=S3CR3T; Path=/"},
            b"<html><title>Not Found</title>",
        ),
        "/password": (401, {"WWW-Authenticate": 'Basic realm="staging"'}, b""),
        "/lying": (200, {}, json.dumps({"service": "throughline", "now": [], "settings": 7, "worker": {}}).encode()),
        "/behind": (502, {"Server": "nginx/1.22.1"}, b"<html><title>502 Bad Gateway</title>"),
        "/deep": (200, {"Content-Type": "application/json"}, b'{"service":' + b"[" * 60_000),
    }

    def do_GET(self) -> None:
        status, headers, body = self.ANSWERS["/" + self.path.split("/")[1]]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def others() -> Iterator[str]:
    with HttpServer(("127.0.0.1", 0), _Other) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    env = {"SSE_PUBLISH_KEYS": KEY, "SSE_ORIGINS": ORIGIN}
    with Gunicorn(tmp_path_factory.mktemp("service"), env=env) as server:
        yield server


# ---- who is there


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/login", "answered with 302 and points to https://login.example/?next=%2Fsse"),
        ("/captive", 'answered with 200, as text/html, titled "Welcome to the hotel"'),
        ("/missing", 'answered with 404, as text/html, titled "Not Found"'),
        ("/password", "answered with 401"),
        ("/deep", "answered with 200, as application/json"),
    ],
)
def test_something_else_that_answers_is_named(others: str, path: str, words: str) -> None:
    [found] = judge(measure(others + path))
    assert found.code == "not_ours"
    assert words in found.evidence


def test_a_proxy_that_reaches_nothing_is_named(others: str) -> None:
    measured = measure(f"{others}/behind")
    [found] = judge(measured)
    assert (found.code, found.evidence) == ("unreachable", "A proxy answers 502: it does not reach the service.")
    assert on_the_way(measured) == ["nginx"]


def test_cookies_are_known_by_name_only(others: str) -> None:
    measured = measure(f"{others}/missing")
    assert on_the_way(measured) == ["alb"]
    assert "S3CR3T" not in json.dumps(measured)


def test_a_service_that_lies_is_not_ours(others: str) -> None:
    [found] = judge(measure(f"{others}/lying"))
    assert found.code == "not_ours"


def test_a_port_where_nobody_listens_is_unreachable() -> None:
    [found] = judge(measure(f"http://127.0.0.1:{free_port()}/sse"))
    assert (found.code, found.level) == ("unreachable", "fault")
    assert "refused" in found.evidence


def test_a_service_whose_probes_are_closed_says_so(service: Gunicorn) -> None:
    without, wrong = (judge(measure(f"{service.url}/sse", given_pass=given)) for given in ("", "1.00"))
    assert [found.code for found in [*without, *wrong]] == ["doctor_closed", "doctor_closed"]
    assert "SSE_DOCTOR=1" in without[0].paste
    assert "The pass is not valid" in wrong[0].evidence


def test_a_pass_needs_a_key_that_may_publish(service: Gunicorn, others: str) -> None:
    with pytest.raises(SSEError, match="does not accept this key"):
        get_pass(f"{service.url}/sse", "x" * 30)
    with pytest.raises(SSEError, match="cannot be reached"):
        get_pass(f"http://127.0.0.1:{free_port()}/sse", KEY)
    with pytest.raises(SSEError, match="was answered with 501"):
        get_pass(f"{others}/login", KEY)


# ---- hostile servers

ECHO = {"service": "throughline", "nonce": "", "worker": "1", "now": 1e9, "settings": {"poll_timeout": 1}}


class _Hostile:
    """A server that answers each request by a function, on a socket of its own."""

    def __init__(self, answer: Callable[[socket.socket, bytes], None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/sse"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> str:
        return self.url

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            if head := connection.recv(65_536):
                self._answer(connection, head)


def _drip(connection: socket.socket, head: bytes, drop: bytes) -> None:
    connection.sendall(head)
    for _ in range(200):
        connection.sendall(drop)
        time.sleep(0.1)


def _whole(body: bytes, status: str = "200 OK", type: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        pytest.param(b"", b"H", id="status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", id="header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n", b"x", id="body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0", id="length of a chunk"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="continue"),
    ],
)
def test_no_answer_may_take_longer_than_it_has(head: bytes, drop: bytes) -> None:
    """A byte now and then begins a socket's timeout anew."""
    with _Hostile(lambda connection, _: _drip(connection, head, drop)) as url:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            Way(url).ask("/doctor/echo", timeout=0.5)
        stream = WatchedStream("small", every=0.1, count=1)
        stream.watch(Way(url), began, until=0.5)
        assert time.monotonic() - began < 5
        assert "clean" not in stream.seen
        assert "ended_at" not in stream.seen


@pytest.mark.parametrize(
    "lie",
    [
        {"settings": [1]},
        {"settings": {"poll_timeout": math.nan}},
        {"settings": {"poll_timeout": -1_000}},
        {"headers": None},
        {"now": 10**400},  # more than a float
        {"ticks": "since"},
        {"worker": [[]]},
    ],
    ids=lambda lie: next(iter(lie)),
)
def test_no_lie_of_a_server_is_an_error_of_the_command(lie: dict[str, Any]) -> None:
    body = _whole(json.dumps({**ECHO, **lie}).encode())
    with _Hostile(lambda connection, _: connection.sendall(body)) as url:
        result = doctor(url, "--quick", "--wait", "5", "--json")
    assert result.exit_code in (1, 3), result.exception
    assert "Traceback" not in result.output
    told = json.loads(result.output)
    assert told["findings"]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("data", [b'{"n": Infinity, "now": 1}', b'{"n": 1, "now": NaN}', b"[" * 9_000, b'{"now": {}}'])
def test_no_block_of_a_strange_stream_is_an_error(data: bytes) -> None:
    body = _whole(b"event: doctor.open\ndata: " + data + b"\n\n", type="text/event-stream")
    with _Hostile(lambda connection, _: connection.sendall(body)) as url:
        stream = WatchedStream("small", every=0.1, count=1)
        stream.watch(Way(url), time.monotonic())
    assert stream.seen["clean"] is True


@pytest.mark.parametrize("size", [512, 1 << 20])
def test_a_compressed_stream_does_not_unfold_without_bound(size: int) -> None:
    packed = zlib.compress(b"data: " + b"0" * (8 << 20), 9)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\n\r\n"

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head)
        for at in range(0, len(packed), size):
            connection.sendall(packed[at : at + size])
            time.sleep(0.002)

    with _Hostile(answer) as url:
        stream = WatchedStream("small", every=0.1, count=1)
        stream.watch(Way(url), time.monotonic())
    assert stream.seen["clean"] is False
    assert stream.seen.get("bytes", 0) < len(packed)


def test_a_chunk_of_negative_length_is_not_read_without_bound() -> None:
    sent = 0

    def answer(connection: socket.socket, _: bytes) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
        for _ in range(100):
            connection.sendall(bytes(1_000_000))
            sent += 1_000_000

    with _Hostile(answer) as url:
        assert len(Way(url).ask("/doctor/echo", timeout=5).body) == 65_536
        assert Way(url).error_page()["status"] == 200
    assert sent < 50_000_000, "of two answers"


def test_no_escape_sequence_of_a_server_reaches_the_terminal() -> None:
    with _Hostile(lambda connection, _: connection.sendall(b"\x1b]0;owned\x07\x1b[31m\r\n\r\n")) as url:
        results = [doctor(url), doctor(url, key=KEY), doctor(url, "--link", key=KEY)]
    assert all("owned" in result.output for result in results)
    assert not any("\x1b" in result.output or "\x07" in result.output for result in results)


def test_a_pass_that_an_answer_shows_is_not_in_the_report() -> None:
    """A login sends its clients back to the address that they have asked for, with its query."""
    seen: list[bytes] = []

    def answer(connection: socket.socket, head: bytes) -> None:
        target = head.split()[1]
        seen.append(head)
        if b"/doctor/pass" in target:
            connection.sendall(_whole(b'{"pass": "1700000000.5ec7e7"}'))
        else:
            page = b"<title>" + target + b"</title>"
            location = b"HTTP/1.1 302 Found\r\nLocation: https://login.example/?next=" + target
            connection.sendall(location + b"\r\nContent-Length: %d\r\n\r\n" % len(page) + page)

    with _Hostile(answer) as url:
        results = [doctor(url, *more, key=KEY) for more in ([], ["--json"])]
    assert [result.exit_code for result in results] == [3, 3]
    assert all("login.example" in result.output for result in results)
    assert not any("5ec7e7" in result.output or KEY in result.output for result in results)
    # The key goes to one address alone, and to none that an answer names.
    assert all((KEY.encode() in head) == (b"/doctor/pass" in head) for head in seen)


# ---- streams


class Freezer:
    """Stops a server's worker for some seconds as soon as the doctor is quiet."""

    def __init__(self, server: Gunicorn, seconds: float) -> None:
        self._server, self._seconds = server, seconds
        self._timer: threading.Timer | None = None

    def __call__(self, text: str) -> None:
        if text.startswith("being quiet"):
            [pid] = self._server.worker_pids()
            os.kill(pid, signal.SIGSTOP)
            self._timer = threading.Timer(self._seconds, os.kill, (pid, signal.SIGCONT))
            self._timer.start()


def _cut_after(proxy: TcpProxy, seconds: float) -> Callable[[str], object]:
    """Return a listener that cuts all connections some seconds after streams are first watched."""
    timers: list[threading.Timer] = []

    def tell(text: str) -> None:
        if text.startswith("watching") and not timers:
            timers.append(threading.Timer(seconds, proxy.cut))
            timers[0].start()

    return tell


def test_what_is_found_side_by_side(tmp_path: Path, service: Gunicorn) -> None:
    """Each of these has a worker of its own, because a worker bounds the probes that it answers at a time."""
    with contextlib.ExitStack() as stack:
        number = iter(range(100))

        def serve(*arguments: str) -> Gunicorn:
            directory = tmp_path / str(next(number))
            directory.mkdir()
            server = Gunicorn(directory, env=OPEN, arguments=arguments)
            server.start(60)
            stack.callback(server.stop)
            return server

        far, restarted, frozen = serve(), serve(), serve()
        sync, threaded = serve("-k", "sync"), serve("-k", "gthread", "--threads", "8")
        slow = stack.enter_context(TcpProxy(int(far.url.rpartition(":")[2])))
        slow.delay = 0.2
        cutting = stack.enter_context(TcpProxy(int(restarted.url.rpartition(":")[2])))
        pool = stack.enter_context(ThreadPoolExecutor(8))

        def run(url: str, **more: Any) -> Future[dict[str, Any]]:
            return pool.submit(measure, f"{url}/sse", **{"wait": WAIT, "quick": True, **more})

        given = get_pass(f"{service.url}/sse", KEY)
        runs = {
            "good": run(service.url, given_pass=given, origin=ORIGIN),
            "far": run(slow.url),
            "restarted": run(cutting.url, tell=_cut_after(cutting, 4.5)),
            "frozen": run(frozen.url, quick=False, tell=Freezer(frozen, 6)),
            "sync": run(sync.url),
            "threaded": run(threaded.url),
        }
        measured = {name: future.result(120) for name, future in runs.items()}

    assert codes(measured["good"]) == {}
    assert measured["good"]["left"]["noticed"] is True
    assert measured["good"]["shared"] is False
    assert measured["good"]["poll"]["status"] == 200
    assert abs(measured["good"]["skew"]) < 1
    assert codes(measured["far"]) == {}, "a delay of 200 ms is no fault"
    assert measured["far"]["rtt"] > 0.15
    assert "idle_cutoff" not in codes(measured["restarted"]), "an outage is no limit of a proxy"
    assert "request_timeout" not in codes(measured["restarted"])
    assert codes(measured["frozen"])["frozen"] == "fault"
    found = {name: {one.code: one.level for one in judge(measured[name])} for name in ("sync", "threaded")}
    assert found["sync"]["few_streams"] == "fault"
    assert found["threaded"]["few_streams"] == "warning"
    assert found["sync"].keys() <= {"few_streams", "http1", "unsure"}
    assert found["threaded"].keys() <= {"few_streams", "http1", "unsure"}


# ---- the command


def doctor(*arguments: str, key: str = "") -> Result:
    return CliRunner(env={"THROUGHLINE_KEY": key or None}).invoke(cli, ["doctor", *arguments])


def test_the_report_names_the_fault_the_remedy_and_what_works(service: Gunicorn) -> None:
    result = doctor(f"{service.url}/sse", "--origin", "https://other.example", "--quick", "--wait", "5", key=KEY)
    assert result.exit_code == 1
    out = result.output
    assert "FAULT     the service does not allow this origin  [cors_not_allowed]" in out
    assert "SSE_ORIGINS=https://other.example" in out
    assert "docs/troubleshooting.md#cors_not_allowed" in out
    assert "Events arrive as soon as they are sent." in out
    assert "none within 5 s" in out
    assert out.strip().endswith("1 fault, 1 note.")
    assert KEY not in out


def test_json_has_the_findings_and_what_was_measured(others: str) -> None:
    result = doctor(f"{others}/captive", "--json")
    told = json.loads(result.output)
    assert result.exit_code == 3
    assert told["ok"] is False
    assert [found["code"] for found in told["findings"]] == ["not_ours"]
    assert told["measured"]["not_ours"]["title"] == "Welcome to the hotel"


def test_the_exit_status_tells_what_was_found(service: Gunicorn) -> None:
    assert doctor(f"{service.url}/sse").exit_code == 3
    assert doctor("push.example").exit_code == 2
    assert doctor(f"{service.url}/sse", "--origin", "www.example").exit_code == 2
    assert doctor(f"{service.url}/sse", "--wait", "91").exit_code == 2
    assert doctor(f"{service.url}/sse", key="not-a-key-of-this-service").exit_code == 1


def test_a_link_to_the_page_has_a_pass_and_no_key(service: Gunicorn) -> None:
    link = doctor(f"{service.url}/sse", "--link", key=KEY).output.strip()
    assert link.startswith(f"{service.url}/sse/doctor#pass=")
    assert KEY not in link
    given = link.partition("#pass=")[2]
    assert client.request(service.url, "GET", f"/sse/doctor/echo?pass={given}").status == 200
    assert doctor(f"{service.url}/sse", "--link").output.strip() == f"{service.url}/sse/doctor"
