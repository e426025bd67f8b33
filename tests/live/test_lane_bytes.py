"""An answer has the same bytes on each of its three ways: through Flask, past Flask, and past gunicorn, too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest

from tests import client
from tests.live.load import KEY, ORIGIN, has_whole_lane
from tests.publishing import publish
from tests.servers import Gunicorn

SERVER_SETTINGS = {
    "flask": ({"SSE_LANE": "off"}, ()),
    "greenlet": ({"SSE_LANE": "auto"}, ("--access-logfile", "/dev/null")),
    "lane": ({"SSE_LANE": "auto"}, ()),
}
ENV = {
    "SSE_PUBLIC": "open full",
    "SSE_PUBLISH_KEYS": KEY,
    "SSE_ORIGINS": ORIGIN,
    "SSE_PROXIES": "1",
    "SSE_LIMIT_SUBSCRIBE": "20/day",
}
POLL = "/sse/poll?channel=open&timeout=0"
CROWD = "203.0.113.9"  # the address of a client that has asked too often
BAD_ID = "open%3D7-00000000000000000000000000000000"
BROKEN_OFF = b"<the connection ends>"
_HEARTBEAT = re.compile(rb"event: sse\.heartbeat\n|: heartbeat\n")  # the opening also names the seconds of a heartbeat
_CHANGING = (
    (re.compile(rb"\r\nDate: [^\r]*GMT"), b""),
    (re.compile(rb"\r\nContent-Length: \d+"), b"\r\nContent-Length: N"),  # of positions, which have several lengths
    (re.compile(rb"\b\d+-\d{10,}"), b"POSITION"),
    (re.compile(rb"\r\n[0-9A-Fa-f]+\r\n"), b"\r\nSIZE\r\n"),
    (re.compile(rb'"lifetime":\d+'), b""),
    (re.compile(rb'("retry":|retry: )\d+'), b""),
    (re.compile(rb"try again in \d+ s"), b""),
    (re.compile(rb"\r\nRetry-After: \d+"), b""),
)


def case(status: str, line: str, *headers: str, body: str = "") -> tuple[bytes, bytes]:
    """Return a request and the status of its answer."""
    fields = ["Host: a.example", *headers, *([f"Content-Length: {len(body)}"] if body else [])]
    lines = [f"{line} HTTP/1.1", *fields, "", body]
    return "\r\n".join(lines).encode(), b"HTTP/1.1 %b\r\n" % status.encode()


KNOWN = f"Authorization: Bearer {KEY}"
IN_JSON = "Content-Type: application/json"
FROM_CROWD = f"X-Forwarded-For: {CROWD}"
CASES = {
    "poll": case("200 OK", "GET /sse/poll?channel=open&timeout=0"),
    "poll of a page": case("200 OK", "GET /sse/poll?channel=open&timeout=0", f"Origin: {ORIGIN}", "Cookie: a=b"),
    "poll that closes": case("200 OK", "GET /sse/poll?channel=open&timeout=0", "Connection: close"),
    "poll that is reset": case("200 OK", f"GET /sse/poll?channel=open&last_event_id={BAD_ID}"),
    "poll without a channel": case("400 BAD REQUEST", "GET /sse/poll"),
    "poll that may not": case("403 FORBIDDEN", "GET /sse/poll?channel=shut"),
    "poll too often": case("429 TOO MANY REQUESTS", "GET /sse/poll?channel=open", FROM_CROWD),
    "stream": case("200 OK", "GET /sse/stream?channel=open", f"Origin: {ORIGIN}"),
    "stream that ends with a cut": case("200 OK", "GET /sse/stream?channel=open&end=cut"),
    "stream with few words": case("200 OK", "GET /sse/stream?channel=open&ids=delta&types=data&replay=2"),
    "stream that is reset": case("200 OK", f"GET /sse/stream?channel=open&last_event_id={BAD_ID}"),
    "bare stream": case("200 OK", "GET /sse/stream?channel=open&form=bare"),
    "bare stream that is gone": case("410 GONE", f"GET /sse/stream?channel=open&form=bare&last_event_id={BAD_ID}"),
    "stream that may not": case("403 FORBIDDEN", "GET /sse/stream?channel=shut", f"Origin: {ORIGIN}"),
    "stream too often": case("200 OK", "GET /sse/stream?channel=open", FROM_CROWD),
    "stream too often, cut": case("200 OK", "GET /sse/stream?channel=open&end=cut", FROM_CROWD),
    "stream too often, bare": case("503 SERVICE UNAVAILABLE", "GET /sse/stream?channel=open&form=bare", FROM_CROWD),
    "publish": case("201 CREATED", "POST /sse/publish", KNOWN, IN_JSON, body='{"channel":"new","data":1}'),
    "publish as it is": case("201 CREATED", "POST /sse/publish/new/2", KNOWN, body="text"),
    "publish without a key": case("401 UNAUTHORIZED", "POST /sse/publish", IN_JSON, body='{"channel":"new"}'),
    "publish no JSON": case("400 BAD REQUEST", "POST /sse/publish", KNOWN, IN_JSON, body="{"),
    "publish nowhere": case("422 UNPROCESSABLE ENTITY", "POST /sse/publish/..", KNOWN, body="{"),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Gunicorn]]:
    made = {
        name: Gunicorn(tmp_path_factory.mktemp(name), env=ENV | env, arguments=arguments)
        for name, (env, arguments) in SERVER_SETTINGS.items()
    }
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        list(pool.map(stack.enter_context, made.values()))
        for name, server in made.items():
            is_on = server.environment()["SSE_LANE"] == "auto"
            assert ("fast lane: on" in server.logs()) == is_on
            assert has_whole_lane(server) == (is_on and name == "lane")
            publish(server, "open", "one", "two", "three")
            for _ in range(100):
                client.request(
                    server.url, "GET", "/sse/poll?channel=open&timeout=0", headers={"X-Forwarded-For": CROWD}
                )
        yield made


def answer_of(server: Gunicorn, request: bytes) -> bytes:
    """Return the beginning of an answer: all of it, or all until a stream has said its first words."""
    came = b""
    with closing(client.connect(server.url)) as sock:
        sock.sendall(request)
        while not is_whole(came):
            chunk = sock.recv(65_536)
            if not chunk:
                return came + BROKEN_OFF
            came += chunk
    return came


def is_whole(came: bytes) -> bool:
    head, _, body = came.partition(b"\r\n\r\n")
    if length := re.search(rb"\r\nContent-Length: (\d+)", head):
        return len(body) >= int(length[1])
    return bool(_HEARTBEAT.search(body)) and body.endswith(b"\r\n")  # else it breaks off


def plain(answer: bytes) -> bytes:
    """Return what does not change of an answer; of a stream, all until its first heartbeat, because events follow."""
    if heartbeat := _HEARTBEAT.search(answer):
        answer = answer[: heartbeat.end()]
    for pattern, text in _CHANGING:
        answer = pattern.sub(text, answer)
    return answer


@pytest.mark.parametrize("name", CASES)
def test_an_answer_has_the_same_bytes_on_each_way(servers: dict[str, Gunicorn], name: str) -> None:
    request, status = CASES[name]
    answers = {way: plain(answer_of(server, request)) for way, server in servers.items()}
    expected = answers["flask"]
    assert expected.startswith(status)
    assert answers["greenlet"] == expected
    if expected.endswith(BROKEN_OFF):  # gunicorn writes it itself, and has a place of its own for Transfer-Encoding
        assert sorted(answers["lane"].splitlines()) == sorted(expected.splitlines())
    else:
        assert answers["lane"] == expected
