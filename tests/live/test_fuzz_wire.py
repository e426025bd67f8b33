"""Requests that are malformed on the wire never cause a 5xx or a traceback.

They get no data, and no client gets the answer to another's request.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import time
from collections.abc import Iterator

import pytest

from tests import client
from tests.client import Stream
from tests.live.load import GREENLETS, KEY, address, has_whole_lane
from tests.servers import Gunicorn
from tests.tokens import SECRET, claims, signed

# They live longer than the tests take that come before.
ALICE, BOB = (signed(claims(sub=name, subscribe=[name], exp=int(time.time()) + 7200)) for name in ("alice", "bob"))
SECRETS = ["eyJ", *(token.rpartition(".")[2] for token in (ALICE, BOB)), KEY, SECRET]


def get(name: str, token: str, query: str = "replay=1&timeout=0") -> str:
    return f"GET /sse/poll?channel={name}&{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"


ASK = get("alice", ALICE)
POST = f"POST /sse/publish/in HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nAuthorization: Bearer {KEY}\r\n"
NEXT = get("bob", BOB) + "Connection: close\r\n\r\n"
# The content of a body is never taken for a request.
SMUGGLED = POST.replace("publish/in", "publish/smuggled") + "Content-Length: 1\r\n\r\nx"
SIZE = f"Content-Length: {len(SMUGGLED)}"
CHUNKED = "Transfer-Encoding: chunked"
CHUNK = f"{len(SMUGGLED):x}\r\n{SMUGGLED}\r\n0\r\n\r\n"

# fmt: off
# Headers and a body that one reader ends here, and another there.
SHAPES = [
    *((f"{size}\r\n{CHUNKED}", f"0\r\n\r\n{SMUGGLED}") for size in (SIZE, "Content-Length: 5", "Content-Length: 0")),
    *((f"{CHUNKED}\r\n{size}", f"0\r\n\r\n{SMUGGLED}") for size in (SIZE, "Content-Length: 5", "Content-Length: x")),
    *((f"Content-Length: {size}", SMUGGLED) for size in (
        "", "x", "-0", "+0", "0x0", "0e3", "0 0", "0, 0", "0,170", "\xb2", "9" * 30, f"0\r\n{SIZE}", "0_0", "0;")),
    *((f"{SIZE}\r\nTransfer-Encoding: {coding}", CHUNK) for coding in (
        "xchunked", "chunked, identity", "identity", "chunked, chunked", "chunked;q=1", "gzip, chunked", "")),
    *((f"Transfer-Encoding:{coding}", CHUNK) for coding in (
        " xchunked", "\tchunked", "\x0bchunked", " chunked\x0b", " Chunked", " chunked, chunked", "\r\n chunked",
        " identity, chunked", " gzip", f" chunked\r\n{CHUNKED}", ' "chunked"', " chunked\0")),
    *((f"{SIZE}\r\n{line}", SMUGGLED) for line in (
        "Transfer-Encoding : chunked", " Transfer-Encoding: chunked", "X: y\nTransfer-Encoding: chunked",
        "Transfer_Encoding: chunked", "X: y\rTransfer-Encoding: chunked", "Transfer-Encoding\0: chunked",
        "Content_Length: 0", "Content-Length : 0")),
    *((CHUNKED, f"{size}\r\n{SMUGGLED}\r\n0\r\n\r\n") for size in (
        "zz", "-1", "+5", "0x5", " 5", "5 ", "5_0", "", "f" * 17, "5;x", '5;x="\r\n"', "5;\n")),
    *((CHUNKED, f"1\r\nx\r\n0\r\n{trailer}\r\n\r\n") for trailer in (
        SIZE, CHUNKED, "no trailer", "X: y\n", " x", "Host: y")),
    *((CHUNKED, body) for body in (
        f"1\r\nxy\r\n0\r\n\r\n{SMUGGLED}", f"1\r\nx0\r\n\r\n{SMUGGLED}", f"1\nx\n0\n\n{SMUGGLED}", f"0\n\n{SMUGGLED}",
        f"0\r\n{SMUGGLED}", "000000000\r\n\r\n", "1\r\nx", "1", "")),
]
# Replacements for a part of a complete request.
LINES = [
    *(("Host: x", line) for line in (
        "Host: x\r\nHost: y", "Host:", "X: y", "Host: a b", "Host: x, y", "Host: x/y", "Host: [::1", "Host : x",
        "Host: x\0", "Host: \xff", ":", "no colon", "Host: x\n X: y", "Host: x\r\n fold", "Host: x\rX: y",
        "Host: x\r\nX\xe9: y", "Host: x\r\nX: " + "y" * 40_000, "Host: x" + "\r\nX: y" * 120,
        "Host: x\r\nExpect: 100-continue", "Host: x\r\nExpect: x", "Host: x\r\nX_Y: y",
        "Host: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c",
        "Host: x\r\nCookie: sse_token=\xff; =;", "Host: x\r\nOrigin: \xff\0")),
    *((" HTTP/1.1", end) for end in (
        "", " HTTP/1.0", " HTTP/0.9", " HTTP/1.9", " HTTP/2.0", " HTTP/1.1 ", "\tHTTP/1.1", " http/1.1", " HTTP/1.1\n",
        "&\xff\xfe HTTP/1.1", "&%ff%00%0d%0aX:y HTTP/1.1", "&\0 HTTP/1.1", "& x HTTP/1.1", "#x HTTP/1.1",
        "\rX: y HTTP/1.1", "&" + "y" * 40_000 + " HTTP/1.1", "&last_event_id=\xed\xa0\x80 HTTP/1.1")),
    *((" /sse/", path) for path in (
        " http://evil.example/sse/", " //evil.example/sse/", " /sse/../sse/", " /sse/\xff", " /sse/%00", " *", " ",
        " /sse/%2e%2e/", "\t/sse/", "  /sse/", " /sse//", " /SSE/", " /sse\\")),
    ("GET ", "get "), ("GET ", "\r\n\r\nGET "), ("GET ", "G\xffT "), ("GET ", ""), ("GET ", "PRI "),
    ("POST ", "X-" * 99 + " "), ("POST ", "\0POST "),
]
# fmt: on


@pytest.fixture(scope="module", params=["fast lane", "handed off", "greenlets"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    lane = "on" if request.param == "fast lane" else "off"
    env = {"SSE_SECRET": SECRET, "SSE_PUBLISH_KEYS": KEY, "SSE_LANE": lane}
    level = "info" if request.param == "fast lane" else "debug"  # at which each request has a greenlet
    arguments = ["--log-level", level, *(GREENLETS if request.param == "greenlets" else ())]
    with Gunicorn(tmp_path_factory.mktemp("wire"), "wsgi:application", env, arguments=arguments) as server:
        assert has_whole_lane(server) == (server.environment()["SSE_LANE"] == "on")
        for name in ("alice", "bob"):
            assert client.publish(server.url, name, f"for {name}", key=KEY).status == 201
        yield server
        everything = {"Authorization": f"Bearer {signed(claims(subscribe=['*']))}"}
        answer = client.poll(server.url, ["smuggled", "in"], headers=everything, replay=1000, timeout=0).json()
        assert {event["channel"] for event in answer["events"]} == {"in"}
        text = server.log.read_text(errors="replace")
        assert "Traceback" not in text
        assert not [secret for secret in SECRETS if secret in text]


def exchange(server: Gunicorn, *pieces: str) -> list[tuple[int, bytes]]:
    """Send these bytes, and return the status and body of each answer until the server closes."""
    data = b""
    with socket.create_connection(address(server.url), 5) as sock, contextlib.suppress(ConnectionError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # it may have been answered already, and closed
            for piece in pieces:
                sock.sendall(piece.encode("latin-1"))
            sock.shutdown(socket.SHUT_WR)
        while len(data) < 1_000_000 and (more := sock.recv(65_536)):
            data += more
    return list(answers(data))


def answers(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        assert data.startswith(b"HTTP/1."), data
        head, found, data = data.partition(b"\r\n\r\n")
        assert found, head
        status = int(head[9:12])
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if status != 100:
            assert length, head
            body, data = data[: int(length[1])], data[int(length[1]) :]
            yield status, body


def judge(got: list[tuple[int, bytes]], sent: str) -> None:
    for number, (status, body) in enumerate(got):
        # gunicorn's 501 is for a transfer coding that it does not know (RFC 9112, 6.1).
        assert status in (200, 201, 501) or 400 <= status < 500, (sent, got)
        assert b"for alice" not in body or (number == 0 and sent.startswith(("GET", "\r\n"))), (sent, got)
        assert b"for bob" not in body or (number == len(got) - 1 and b"for alice" not in body), (sent, got)
        # gunicorn's own complaint, which is HTML, quotes the line that it cannot read.
        assert body.startswith(b"<") or not [secret for secret in SECRETS if secret.encode() in body], (sent, got)


def test_one_request_after_another_has_its_own_answer(server: Gunicorn) -> None:
    for first, status in (
        *((f"{start}{SIZE}\r\n\r\n{SMUGGLED}", status) for start, status in ((ASK, 200), (POST, 201))),
        *((f"{start}{CHUNKED}\r\n\r\n{CHUNK}", status) for start, status in ((ASK, 200), (POST, 201))),
        (f"{ASK}\r\n", 200),
    ):
        got = exchange(server, first, NEXT)
        judge(got, first)
        assert [status for status, _ in got] == [status, 200]
        assert b"for bob" in got[1][1]


@pytest.mark.parametrize("start", [ASK, POST], ids=["poll", "publish"])
def test_a_body_of_doubtful_length_smuggles_nothing(server: Gunicorn, start: str) -> None:
    refused = 0
    for headers, body in SHAPES:
        sent = f"{start}{headers}\r\n\r\n{body}"
        got = exchange(server, sent, NEXT)
        judge(got, sent)
        refused += len(got) == 1 and got[0][0] >= 400
    assert len(SHAPES) / 2 < refused < len(SHAPES)


@pytest.mark.parametrize("start", [f"{ASK}\r\n", f"{POST}{SIZE}\r\n\r\n{SMUGGLED}"], ids=["poll", "publish"])
def test_a_head_at_fault_is_the_client_s(server: Gunicorn, start: str) -> None:
    answered = 0
    for old, new in LINES:
        sent = start.replace(old, new, 1)
        got = exchange(server, sent, NEXT)
        judge(got, sent)
        answered += len(got) == 2
    assert 5 < answered < len(LINES) / 2


def test_any_bytes_in_any_pieces(server: Gunicorn, request: pytest.FixtureRequest) -> None:
    rng = random.Random(int(request.config.option.hypothesis_seed))
    for _ in range(150):
        headers, body = rng.choice([(SIZE, SMUGGLED), (CHUNKED, CHUNK)])
        sent = f"{rng.choice([ASK, POST])}{headers}\r\n\r\n{body.replace('smuggled', 'in/other')}"
        for _ in range(rng.randrange(1, 4)):
            at = rng.choice([rng.randrange(len(sent)), sent.find("\r\n", rng.randrange(len(sent)))])
            new = rng.choice(
                ["", "\r", "\n", "\r\n", "\r\n\r\n", "\0", " ", ":", "\xff", "0", ";", chr(rng.randrange(256))]
            )
            sent = sent[:at] + new + sent[at + rng.randrange(3) :]
        cut = rng.randrange(len(sent))
        judge(exchange(server, sent[:cut], sent[cut:], NEXT), sent)


@pytest.mark.parametrize(
    ("body", "at_once", "while_it_waits", "after"),
    [("", NEXT, "", ""), ("", "", NEXT, ""), ("", "", NEXT[:40], NEXT[40:]), (SIZE, "", SMUGGLED, NEXT)],
    ids=["at once", "while it waits", "in two halves", "after a late body"],
)
def test_what_comes_after_a_poll_that_waits_is_answered_after_it(
    server: Gunicorn, body: str, at_once: str, while_it_waits: str, after: str
) -> None:
    here = client.poll(server.url, ["alice"], headers={"Authorization": f"Bearer {ALICE}"}, timeout=0).json()
    first = get("alice", ALICE, f"last_event_id={here['last_event_id']}&timeout=20") + (body and f"{body}\r\n") + "\r\n"
    with socket.create_connection(address(server.url), 5) as sock:
        sock.sendall((first + at_once).encode())
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.sendall(while_it_waits.encode())
        assert client.publish(server.url, "alice", "for alice", key=KEY).status == 201
        sock.settimeout(5)
        data = b""
        while b"for alice" not in data:
            more = sock.recv(65_536)
            assert more, data
            data += more
        sock.sendall(after.encode())
        while more := sock.recv(65_536):
            data += more
    got = list(answers(data))
    judge(got, first)
    assert [status for status, _ in got] == [200, 200]
    assert b"for bob" in got[1][1]


@pytest.mark.parametrize("when", ["at once", "later"])
def test_what_comes_after_a_stream_s_request_is_not_answered_in_it(server: Gunicorn, when: str) -> None:
    late = NEXT * 3
    headers = {"Authorization": f"Bearer {ALICE}" + (f"\r\n\r\n{late}" if when == "at once" else "")}
    with Stream(server.url, {"channel": "alice"}, headers=headers) as stream:
        stream.until("sse.open")
        if when == "later":
            stream.sock.sendall(late.encode())
        for number in range(3):
            assert client.publish(server.url, "alice", str(number), key=KEY).status == 201
        assert [event.data for event in stream.take(3)] == ["0", "1", "2"]
        assert b"bob" not in stream.received
