"""Plain requests. gunicorn's own parser is the second opinion: it reads the same in each of them.

The long form: FUZZ=1000000 pytest -o faulthandler_timeout=3600 tests/test_server_plain.py
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from typing import Any

import pytest
from gunicorn.config import Config  # type: ignore[import-untyped]
from gunicorn.http import message, wsgi
from gunicorn.http.errors import NoMoreData, ParseException  # type: ignore[import-untyped]
from gunicorn.http.unreader import IterUnreader  # type: ignore[import-untyped]

from sse.server.gunicorn_request import Request
from sse.server.head import MAX_HEAD
from sse.server.plain import MAX_BODY, Incomplete, Plain, Recogniser

COUNT = int(os.environ.get("FUZZ") or 100_000)
PEER = ("127.0.0.1", 4242)
STRANGER = ("192.0.2.7", 4243)
PATHS = {("GET", "/sse/stream"), ("GET", "/sse/poll"), ("POST", "/sse/publish"), ("POST", "/sse/publish/a")}
# What the recogniser leaves out, because only the socket knows it, or nobody reads it.
LEFT_OUT = {"gunicorn.socket", "RAW_URI", "SERVER_NAME", "SERVER_PORT", "wsgi.early_hints"}

ASK = b"GET /sse/poll?channel=a&timeout=0 HTTP/1.1\r\nHost: example.org\r\n"
POST = b"POST /sse/publish/a HTTP/1.1\r\nHost: example.org\r\nAuthorization: Bearer k-123\r\n"
BROWSER = (
    b"GET /sse/stream?channel=chat%2F7&last_event_id=~58-2893 HTTP/1.1\r\nHost: app.example.org:8443\r\n"
    b'Connection: keep-alive\r\nsec-ch-ua-platform: "Linux"\r\nCache-Control: no-cache\r\n'
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari\r\n"
    b"Accept: text/event-stream\r\nOrigin: https://app.example.org\r\nSec-Fetch-Site: same-origin\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nCookie: sse_token=eyJ.a.b; other=x:y\r\n\r\n"
)
PROXIED = (
    b"GET /sse/poll? HTTP/1.1\r\nHost: [2001:db8::7]:80\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n"
    b"X-Request-ID: 4f\r\nx-unknown-to-us:   two  words \r\nEmpty:\r\nconnection: Close\r\n\r\n"
)
PLAIN = [
    ASK + b"\r\n",
    BROWSER,
    PROXIED,
    PROXIED.replace(b"Proto: https", b"Proto: HTTPS"),
    ASK + b"Connection: close\r\n\r\n" + ASK,
    POST + b"Content-Type: text/plain\r\nContent-Length: 4\r\n\r\n\r\n\r\n" + ASK,
    POST.replace(b"/a", b"") + b'content-type: application/json\r\ncontent-length: 009\r\n\r\n{"a": "b"',
    POST + b"Content-Length: 0\r\nIdempotency-Key: x\r\n\r\n",
    POST + b"Content-Length: %d\r\n\r\n%b" % (MAX_BODY, b"x" * MAX_BODY),
]
# Each replaces a part of a plain request, which is then gunicorn's.
NOT_PLAIN = [
    *((b" HTTP/1.1", end) for end in (b"", b" HTTP/1.0", b" HTTP/1.2", b" HTTP/1.1 ", b"  HTTP/1.1", b"\tHTTP/1.1")),
    *((b" /sse/", path) for path in (b" http://a/sse/", b" //sse/", b" /sse/%2e/", b" /SSE/", b"  /sse/", b" ")),
    *(
        (b"GET ", method)
        for method in (b"HEAD ", b"OPTIONS ", b"get ", b"POST ", b"", b"\r\nGET ", b"\tGET ", b"GET\t")
    ),
    *((b"&timeout", query) for query in (b"#timeout", b"&\xff", b"&\x7f", b"& x", b"&\0", b"&\t", b"&\r", b"&\n")),
    *(
        (b"Host: example.org", lines)
        for lines in (
            *(
                b"X: y",
                b"Host:",
                b"Host: a, b",
                b"Host: a/b",
                b"Host: a:b",
                b"Host: a@b",
                b"Host: a:123456",
                b"Host: " + b"a" * 262,
                b"Host: [a",
            ),
            *(
                b"Host : a",
                b" Host: a",
                b"Host\t: a",
                b"Host: a\r\nHost: a",
                b"Host: a\r\nhost: b",
                b"Host",
                b"Host: \xe9",
            ),
            *(
                b"Host: a\r\n" + line
                for line in (
                    *(b"Connection: upgrade", b"Connection: close, x", b"Connection:", b"Connection: keep-alive\r\n y"),
                    *(b"Expect: 100-continue", b"Upgrade: h2c", b"TE: trailers", b"Trailer: X", b"HTTP2-Settings: x"),
                    *(b"Transfer-Encoding: chunked", b"transfer-encoding: x", b"Proxy-Connection: x", b"X_Y: z"),
                    *(
                        b"Content-Length: 0",
                        b"Content-Length: 5",
                        b"X: y\r\nX: y",
                        b"X: y\r\nx: z",
                        b": x",
                        b"X",
                        b"X:\ty",
                    ),
                    *(
                        b"X: \0",
                        b"X: \x7f",
                        b"X: \xff",
                        b"X\xe9: y",
                        b"X: y\rz",
                        b"X: y\nz",
                        b"X: y\r\r\nZ: z",
                        b"X!: y",
                    ),
                    *(b"X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: on", b"X: " + b"y" * 8190, b"Z" * 257 + b": x"),
                    *(
                        b"X-Forwarded-Proto: https\r\nX-Forwarded-Proto: https",
                        b"\r\n".join(b"X%d: y" % i for i in range(100)),
                    ),
                )
            ),
        )
    ),
]
NO_LENGTH = [
    b"",
    b"Content-Length:\r\n",
    b"Content-Length: x\r\n",
    b"Content-Length: -0\r\n",
    b"Content-Length: +0\r\n",
]
NO_LENGTH += [b"Content-Length: %d\r\n" % (MAX_BODY + 1), b"Content-Length: 0000000\r\n", b"Content-Length: 0, 0\r\n"]
NO_LENGTH += [b"Content-Length: 0\r\nContent-Length: 0\r\n", b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"]


def config(**settings: Any) -> Any:
    made = Config()
    for name, value in ({"forwarder_headers": "", "http_parser": "python"} | settings).items():
        made.set(name, value)
    return made


CONFIG = config()


def recogniser(cfg: Any = CONFIG) -> Recogniser:
    return Recogniser(cfg, lambda method, path: (method, path) if (method, path) in PATHS else None)


def lenient(cfg: Any = CONFIG) -> Recogniser:
    """Return a recogniser for which all paths are ours, so that nothing but itself keeps the odd ones out."""
    return Recogniser(cfg, lambda *asked: asked if asked[0] in ("GET", "POST") and asked[1].startswith("/") else None)


OURS = recogniser()


def gunicorn(data: bytes, peer: Any = PEER, cfg: Any = CONFIG) -> tuple[Any, dict[str, Any], bytes, bytes]:
    """Return gunicorn's request, its environ, its body, and the bytes behind it.

    :raises ParseException: if gunicorn refuses it, or asks for more bytes.
    """
    unreader = IterUnreader([data])
    request = Request(cfg, unreader, peer, 1)
    assert not request._expected_100_continue
    _, environ = wsgi.create(request, None, peer, ("127.0.0.1", 80), cfg)
    body = request.body.read()
    return request, environ, body, unreader.buf.getvalue()


def check(data: bytes, peer: Any = PEER, ours: Recogniser = OURS, cfg: Any = CONFIG) -> str:
    """Hold that gunicorn reads the same if a request is recognised. Return the verdict."""
    found = ours.read(data, peer)
    if found is None:
        return "gunicorn's"
    if isinstance(found, Incomplete):
        if not found.end:
            with pytest.raises((NoMoreData, StopIteration)):  # it would wait for more
                gunicorn(data, peer, cfg)
            return "head"
        assert len(data) < found.end <= data.index(b"\r\n\r\n") + 4 + MAX_BODY
        _, environ, body, behind = gunicorn(data, peer, cfg)
        assert len(data) - len(body) + int(environ["CONTENT_LENGTH"]) == found.end, data
        assert not behind
        return "body"
    request, environ, body, behind = gunicorn(data, peer, cfg)
    assert environ.keys() - found.environ.keys() == LEFT_OUT | (
        set() if body or found.route[0] == "POST" else {"wsgi.input"}
    )
    streams = "wsgi.errors", "wsgi.input"
    assert {name: value for name, value in environ.items() if name not in LEFT_OUT and name not in streams} == {
        name: value for name, value in found.environ.items() if name not in streams
    }, data
    assert found.route == (request.method, request.path)
    assert found.closes == request.should_close()
    assert ("wsgi.input" in found.environ) == (found.route[0] == "POST")
    assert (found.environ["wsgi.input"].read() if "wsgi.input" in found.environ else b"") == body
    assert data[found.end :] == behind
    return "plain"


@pytest.mark.parametrize("data", PLAIN)
def test_gunicorn_reads_a_plain_request_just_so(data: bytes) -> None:
    for peer in (PEER, ("::1", 4242, 0, 0), "", b""):
        assert check(data, peer) == "plain"


@pytest.mark.parametrize("data", PLAIN)
def test_it_is_incomplete_up_to_its_last_byte(data: bytes) -> None:
    whole = OURS.read(data, PEER)
    assert isinstance(whole, Plain)
    head = data.index(b"\r\n\r\n") + 4
    gathered = OURS.head()
    for size in range(whole.end + 1):
        if head + 20 < size < whole.end - 20:
            continue  # only a long body has so many
        verdict = check(data[:size])
        assert verdict == ("plain" if size == whole.end else "body" if size >= head else "head"), size
        if size and size <= head:
            assert gathered.add(data[size - 1 : size]) == (size == head)


@pytest.mark.parametrize(("old", "new"), NOT_PLAIN)
def test_what_another_parser_might_read_otherwise_is_gunicorn_s(old: bytes, new: bytes) -> None:
    data = (ASK + b"\r\n").replace(old, new, 1)
    assert data != ASK + b"\r\n"
    assert OURS.read(data, PEER) is None


@pytest.mark.parametrize("length", NO_LENGTH)
def test_a_publish_without_a_clear_length_is_gunicorn_s(length: bytes) -> None:
    assert OURS.read(POST + length + b"\r\n", PEER) is None
    assert check(POST + b"Content-Length: 0\r\n\r\n") == "plain"


@pytest.mark.parametrize(
    "data", [b"\n", b"GET /\n", ASK + b"X: y\n", b"GET /" + b"x" * 5000, b"\r\n\r\n", b"\r\nX\r\n\r\n"]
)
def test_a_head_that_can_never_become_plain_is_not_waited_for(data: bytes) -> None:
    assert OURS.read(data, PEER) is None
    for size in range(len(data)):
        assert OURS.read(data[:size], PEER) in (None, Incomplete(0))


def test_only_a_trusted_proxy_gives_the_scheme() -> None:
    for given, scheme in ((b"https", "https"), (b"http", "http"), (b"HTTPS", "http"), (b"https,http", "http")):
        data = ASK + b"X-Forwarded-Proto: " + given + b"\r\n\r\n"
        found = OURS.read(data, PEER)
        assert isinstance(found, Plain)
        assert found.environ["wsgi.url_scheme"] == scheme
        assert OURS.read(data, STRANGER) is None
    assert check(ASK + b"\r\n", STRANGER) == "plain"
    networks = config(
        forwarded_allow_ips="192.0.2.0/24", secure_scheme_headers={"X-SCHEME": "tls", "x-lower": "y", "X_LOW": "y"}
    )
    for peer in (PEER, STRANGER, "", ("not an address", 1)):
        verdict = check(ASK + b"X-Scheme: tls\r\nX-Lower: y\r\nX-Low: y\r\n\r\n", peer, recogniser(networks), networks)
        assert verdict == ("plain" if peer in (STRANGER, "") else "gunicorn's")


@pytest.mark.parametrize(
    ("setting", "least", "data"),
    [
        ("limit_request_line", 42, ASK + b"\r\n"),
        ("limit_request_fields", 2, ASK + b"X: y\r\n\r\n"),
        ("limit_request_field_size", 19, ASK + b"\r\n"),
    ],
)
def test_gunicorn_s_limits_hold(setting: str, least: int, data: bytes) -> None:
    for limit, verdict in ((least, "plain"), (least - 1, "gunicorn's"), (0, "plain")):
        cfg = config(**{setting: limit})
        assert check(data, PEER, recogniser(cfg), cfg) == verdict
        if verdict != "plain":
            with pytest.raises(ParseException):
                gunicorn(data, PEER, cfg)


@pytest.mark.parametrize("given", [-1, 9000])
def test_gunicorn_s_own_ceiling_of_the_first_line_holds(given: int) -> None:
    cfg = config(limit_request_fields=3)
    cfg.settings["limit_request_line"].value = given
    for size, verdict in ((message.MAX_REQUEST_LINE, "plain"), (message.MAX_REQUEST_LINE + 1, "gunicorn's")):
        line = ASK.partition(b"\r\n")[0]
        data = ASK.replace(b"&timeout=0", b"&timeout=" + b"0" * (size - len(line) + 1)) + b"\r\n"
        assert check(data, PEER, recogniser(cfg), cfg) == verdict


def test_a_head_of_any_size_that_gunicorn_takes_is_plain_and_a_larger_one_is_not() -> None:
    cfg = config(limit_request_field_size=200_000)
    ours = recogniser(cfg)
    for size, verdict in ((MAX_HEAD, "plain"), (MAX_HEAD + 1, "gunicorn's")):
        data = ASK + b"X: "
        data += b"y" * (size - len(data) - 4) + b"\r\n\r\n"
        assert check(data, PEER, ours, cfg) == verdict
        assert ours.read(data[:-1], PEER) == Incomplete(0)


def test_requests_share_nothing() -> None:
    first, second = (OURS.read(ASK + b"\r\n", PEER) for _ in range(2))
    assert isinstance(first, Plain) and isinstance(second, Plain)
    first.environ["HTTP_COOKIE"] = first.environ["wsgi.url_scheme"] = "x"
    assert second.environ["wsgi.url_scheme"] == "http"
    third = OURS.read(ASK + b"\r\n", PEER)
    assert isinstance(third, Plain)
    assert third.environ == second.environ


BYTES = [
    b"",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"_",
    b"-",
    b"#",
    b"?",
    b"%",
    b"/",
    b"\xff",
    b"0",
]
BYTES += [
    b"\x0b",
    b"\x0c",
    b"\x1c",
    b"\x7f",
    b"\x80",
    b"\x85",
    b"\xa0",
    b",",
    b";",
    b'"',
    b"\\",
    b"@",
    b"[",
    b"HTTP/1.1",
    b"//",
]
HEADERS = [new.split(b"\r\n", 1)[1] for old, new in NOT_PLAIN if b"Host: a\r\n" in new]
HEADERS += [line.rstrip(b"\r\n") for line in NO_LENGTH if line]
HEADERS += [
    b"Connection: close",
    b"Connection: Keep-Alive ",
    b"X-Forwarded-Proto: https",
    b"X-Forwarded-Ssl: on",
    b"Via: x",
]
HEADERS += [
    b"SCRIPT-NAME: /x",
    b"Proxy: x",
    b"Content-Type: a",
    b"Content-Length: 3",
    b"Keep-Alive: 5",
    b"DNT:1",
    b"-: -",
]


def mutated(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        head = data.find(b"\r\n\r\n") + 4
        kind = rng.randrange(6)
        at = rng.randrange(max(head, 1)) if rng.random() < 0.9 else rng.randrange(len(data) + 1)
        if kind == 0:  # at a border
            at = rng.choice([match.start() for match in re.finditer(rb"\r\n|[: ?&/]", data)] or [0])
        if kind <= 2:
            new = rng.choice(BYTES) if rng.random() < 0.8 else bytes([rng.randrange(256)])
            data = data[:at] + new + data[at + rng.randrange(3) :]
        elif kind <= 4:
            lines = data[: head - 4].split(b"\r\n")
            line = rng.choice([rng.choice(HEADERS), rng.choice(lines), rng.choice(lines).swapcase()])
            lines.insert(rng.randrange(1, len(lines) + 1), line)
            data = b"\r\n".join(lines) + data[max(head - 4, 0) :]
        else:
            data = data[: rng.randrange(min(rng.choice([0, head]), len(data)), len(data) + 1)]
    return data


def test_gunicorn_reads_the_same_in_whatever_is_recognised(request: pytest.FixtureRequest) -> None:
    rng = random.Random(int(request.config.option.hypothesis_seed))
    settings = [CONFIG, config(limit_request_fields=6, limit_request_field_size=60, limit_request_line=70)]
    settings += [config(header_map="dangerous", strip_header_spaces=True, permit_obsolete_folding=True)]
    settings += [config(casefold_http_method=True, permit_unconventional_http_method=True, forwarder_headers="*")]
    ours = [(lenient(cfg), cfg) for cfg in settings]
    seeds = PLAIN[:-1]
    seen = Counter(
        check(mutated(rng.choice(seeds), rng), rng.choice([PEER, STRANGER, ""]), *rng.choice(ours))
        for _ in range(COUNT)
    )
    assert min(seen[verdict] for verdict in ("plain", "gunicorn's", "head", "body")) > COUNT / 500, seen
