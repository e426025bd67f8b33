"""A publish whose body breaks off has no effect, on any server.

No event is stored, and the idempotency key is not used up.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import client
from tests.live.app_servers import FlaskRun, PyWSGI
from tests.live.load import APP, KEY, RESET_ON_CLOSE, address
from tests.servers import ROOT, Gunicorn, wait_until
from tests.tokens import SECRET, claims, signed

ENV = {"SSE_PUBLIC": "*", "SSE_PUBLISH_KEYS": KEY, "SSE_SECRET": SECRET}
LINE = b"0123456789abcdef" * 6 + b"!"  # 97 bytes
EVENT = json.dumps({"channel": "CHANNEL", "data": LINE.decode()}).encode()


WORKERS = {"handed off": (), "gevent": ("-k", "gevent"), "gthread": ("-k", "gthread"), "sync": ("-k", "sync")}


@pytest.fixture(scope="module", params=[*WORKERS, "flask run", "pywsgi"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    directory = tmp_path_factory.mktemp("server")
    makers = {"flask run": FlaskRun, "pywsgi": PyWSGI}
    if request.param in makers:
        server = makers[request.param](directory, APP, ENV)
    else:
        server = Gunicorn(directory, APP, ENV, arguments=WORKERS[request.param])
    with server:
        yield server


def head(path: str, fields: Mapping[str, str], key: str = KEY) -> bytes:
    lines = {"Host": "localhost", "Authorization": f"Bearer {key}", **fields}
    told = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
    return f"POST {path} HTTP/1.1\r\n{told}\r\n".encode()


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def send_half_closed(url: str, data: bytes) -> bytes:
    """Send the data, and end the sending side. The answer can still be read."""
    with socket.create_connection(address(url), timeout=20) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while more := sock.recv(65536):
            answer += more
        return answer


def send_and_vanish(url: str, data: bytes) -> None:
    with socket.create_connection(address(url), timeout=20) as sock:
        sock.sendall(data)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def stored(server: Gunicorn, channel: str) -> list[str]:
    answer = client.poll(server.url, [channel], replay=100, timeout=0)
    return [event["data"] for event in answer.json()["events"]]


CHUNKED = {"Transfer-Encoding": "chunked"}
TEXT = {"Content-Type": "text/plain"}


@dataclass(frozen=True)
class Broken:
    """A publish request whose body breaks off."""

    breaks: Callable[[bytes], bytes]  # the part of the body that is sent
    whole: bytes = LINE  # CHANNEL stands for the channel
    path: str = "/sse/publish/CHANNEL"
    media: str = "text/plain"
    is_chunked: bool = False

    def fields(self, body: bytes) -> dict[str, str]:
        media = {"Content-Type": self.media} if self.media else {}
        return media | (CHUNKED if self.is_chunked else {"Content-Length": str(len(body))})


JSON = {"path": "/sse/publish", "media": "application/json"}
PADDED = EVENT + b" " * 40  # a part missing at its end would not be noticed
BROKEN = {
    "raw, nothing of it": Broken(lambda body: b""),
    "raw, 16 of 97": Broken(lambda body: body[:16]),
    "raw, all but one": Broken(lambda body: body[:-1]),
    "raw bytes": Broken(lambda body: body[:16], media=""),
    "raw, large": Broken(lambda body: body[:50_000], b"x" * 60_000),
    "json": Broken(lambda body: body[:50], EVENT, **JSON),
    "json, in white space": Broken(lambda body: body[:-1], PADDED, **JSON),
    "chunked, in a chunk": Broken(lambda body: chunked(body[:40]) + b"39\r\nabc", is_chunked=True),
    "chunked, after a chunk": Broken(lambda body: chunked(body[:40]), is_chunked=True),
    "chunked, in a size": Broken(lambda body: chunked(body[:40]) + b"3", is_chunked=True),
    "chunked, before a line end": Broken(lambda body: chunked(body[:40])[:-2], is_chunked=True),
    "chunked, nothing of it": Broken(lambda body: b"", is_chunked=True),
    "chunked json": Broken(lambda body: chunked(body[:-1]), PADDED, **JSON, is_chunked=True),
}


@pytest.mark.parametrize("vanishes", [False, True], ids=["half-closed", "gone"])
@pytest.mark.parametrize("case", BROKEN)
def test_nothing_of_it_is_stored_and_the_same_key_is_good_for_the_whole(
    server: Gunicorn, case: str, vanishes: bool
) -> None:
    broken = BROKEN[case]
    channel = f"b/{list(BROKEN).index(case)}/{vanishes}"
    path, whole = broken.path.replace("CHANNEL", channel), broken.whole.replace(b"CHANNEL", channel.encode())
    once = {"Idempotency-Key": "once"}
    data = head(path, broken.fields(whole) | once) + broken.breaks(whole)
    if vanishes:
        send_and_vanish(server.url, data)
        assert client.request(server.url, "GET", "/healthz").status == 200
    else:
        answered = send_half_closed(server.url, data)
        assert answered.startswith(b"HTTP/1.1 400 "), answered[:300]
        assert answered.count(b"HTTP/1.1 ") == 1
        assert b"breaks off" in answered
    assert stored(server, channel) == []
    headers = {"Authorization": f"Bearer {KEY}", **once, **({"Content-Type": broken.media} if broken.media else {})}
    for _ in range(2):
        answer = client.request(server.url, "POST", path, headers=headers, body=whole)
        assert answer.status == 201, answer.body
    (text,) = stored(server, channel)
    if broken.media:
        assert text == (LINE if broken.media == "application/json" else whole).decode()


@pytest.mark.parametrize("fields", [{"Content-Length": "97"}, CHUNKED], ids=["length", "chunked"])
def test_a_ticket_is_not_made_for_a_request_that_breaks_off(server: Gunicorn, fields: Mapping[str, str]) -> None:
    token = signed(claims())
    sent = chunked(LINE[:16]) if fields is CHUNKED else LINE[:16]
    answered = send_half_closed(server.url, head("/sse/ticket?channel=a", fields, token) + sent)
    assert answered.startswith(b"HTTP/1.1 400 "), answered[:300]
    rest = b"0\r\n\r\n" if fields is CHUNKED else LINE[16:]
    answered = send_half_closed(server.url, head("/sse/ticket?channel=a", fields, token) + sent + rest)
    assert answered.startswith(b"HTTP/1.1 201 "), answered[:300]


def test_a_publish_command_that_is_killed_in_mid_upload_publishes_nothing(server: Gunicorn) -> None:
    """Its upload goes through a proxy that holds back the end, and ends with the command."""
    channel = "b/command"
    with socket.create_server(("127.0.0.1", 0)) as proxy, socket.socket() as upstream:
        proxy.settimeout(20)
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}/sse"
        command = [sys.executable, "-m", "flask", "--app", "wsgi", "sse", "publish", channel, "x" * 30_000]
        env = {**os.environ, "THROUGHLINE_KEY": KEY}
        process = subprocess.Popen([*command, "--url", url], cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
        try:
            connection, _ = proxy.accept()
            with connection:
                upstream.connect(address(server.url))
                data = b""
                while len(data) < 20_000:
                    more = connection.recv(1000)
                    assert more
                    data += more
                upstream.sendall(data)
                process.kill()
                process.wait(10)
                upstream.shutdown(socket.SHUT_WR)
                upstream.settimeout(20)
                assert upstream.recv(65536).startswith(b"HTTP/1.1 400 ")
        finally:
            process.kill()
            process.wait(10)
    assert stored(server, channel) == []


def test_a_length_that_is_none_stores_nothing(server: Gunicorn) -> None:
    channel = "b/none"
    for length in ("97abc", "abc", "-5", "0x61", "1_0", "9" * 5000):
        fields = {**TEXT, "Content-Length": length}
        answered = send_half_closed(server.url, head(f"/sse/publish/{channel}", fields) + LINE)
        assert not answered.startswith(b"HTTP/1.1 2"), (length, answered[:200])
    assert stored(server, channel) == []


def test_a_reset_within_the_body_is_no_fault_of_the_service(tmp_path: Path) -> None:
    """The log has no error for it."""
    with Gunicorn(tmp_path, APP, ENV) as server:
        for _ in range(5):
            send_and_vanish(server.url, head("/sse/publish/a", {**TEXT, "Content-Length": "97"}) + LINE[:16])
        wait_until(lambda: client.request(server.url, "GET", "/healthz").status == 200)
        assert stored(server, "a") == []
        assert "Traceback" not in server.log.read_text()
