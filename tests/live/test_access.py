"""Who is let in, by each credential and way in, from each kind of page; on both ways to run a stream."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sse.config import Config
from sse.token import LEEWAY, TICKET_LIFE, Tokens
from tests import client
from tests.client import Answer, Stream
from tests.live.load import APP, GREENLETS, KEY, ORIGIN
from tests.servers import Gunicorn, RedisServer
from tests.tokens import RSA, SECRET, by_key, claims, jwk_set, signed, unsigned

PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
PAGES: dict[str, dict[str, str]] = {
    "same origin": {"Sec-Fetch-Site": "same-origin"},
    "same site": {"Sec-Fetch-Site": "same-site", "Origin": "https://sibling.example"},
    "old browser": {},
    "listed": {"Sec-Fetch-Site": "cross-site", "Origin": ORIGIN},
    "unlisted": {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    "null": {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
}
OWN = ("same origin", "same site", "old browser", "listed")


def stale_ticket() -> str:
    tokens = Tokens(Config(secret=(SECRET,)), clock=lambda: time.time() - TICKET_LIFE - 1)
    return tokens.make_ticket(["a"], Tokens(Config(secret=(SECRET,))).verify(signed(claims())))


def ticket(*channels: str, **changes: str) -> str:
    tokens = Tokens(Config(secret=(SECRET,)))
    return tokens.make_ticket(channels or ["a"], tokens.verify(signed(claims(**changes))))


def in_header(text: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {text}"}}


def in_cookie(text: str) -> dict[str, Any]:
    return {"headers": {"Cookie": f"x=1; sse_token={text}"}}


def in_query(text: str) -> dict[str, Any]:
    return {"query": {"token": text}}


OTHERS = signed(claims(subscribe=["b"], publish=["a/*"]))
REFUSED = (401, "unauthorized")
INVALID = (401, "token_invalid")
EXPIRED = (401, "token_expired")
AUDIENCE = (401, "token_audience")
REVOKED = (401, "token_revoked")
IN_QUERY = (401, "token_in_query")
FORBIDDEN = (403, "forbidden")
READ, PUBLISHED = (200, ""), (201, "")
# What is brought; what a reader of a page that may is answered, and a reader of one that may not; and a publisher.
Row = tuple[Callable[[], dict[str, Any]], tuple[int, str], tuple[int, str], tuple[int, str]]
TABLE: dict[str, Row] = {
    "anonymous": (dict, REFUSED, REFUSED, REFUSED),
    "token in the header": (lambda: in_header(signed(claims())), READ, READ, PUBLISHED),
    "token of another issuer": (lambda: in_header(by_key(claims(), "RS256")), READ, READ, PUBLISHED),
    "token in the cookie": (lambda: in_cookie(signed(claims())), READ, REFUSED, REFUSED),
    "token in the query": (lambda: in_query(signed(claims())), IN_QUERY, IN_QUERY, REFUSED),
    "ticket": (lambda: in_query(ticket()), READ, READ, REFUSED),
    "ticket in the header": (lambda: in_header(ticket()), READ, READ, REFUSED),
    "ticket in the cookie": (lambda: in_cookie(ticket()), REFUSED, REFUSED, REFUSED),
    "ticket after its time": (lambda: in_query(stale_ticket()), EXPIRED, EXPIRED, REFUSED),
    "ticket for another channel": (lambda: in_query(ticket("b")), FORBIDDEN, FORBIDDEN, REFUSED),
    "expired": (lambda: in_header(signed(claims(exp=int(time.time()) - 60))), EXPIRED, EXPIRED, EXPIRED),
    "expired cookie": (lambda: in_cookie(signed(claims(exp=5))), EXPIRED, REFUSED, REFUSED),
    "wrong audience": (lambda: in_header(signed(claims(aud="other"))), AUDIENCE, AUDIENCE, AUDIENCE),
    "wrong key": (lambda: in_header(signed(claims(), "x" * 40)), INVALID, INVALID, INVALID),
    "alg none": (lambda: in_header(unsigned(claims())), INVALID, INVALID, INVALID),
    "alg none in the query": (lambda: in_query(unsigned(claims())), INVALID, INVALID, REFUSED),
    "key confusion": (lambda: in_header(signed(claims(), PEM, kid="RS256")), INVALID, INVALID, INVALID),
    "not a token": (lambda: in_header("hello"), INVALID, INVALID, REFUSED),
    "publishing key": (lambda: in_header(KEY), INVALID, INVALID, PUBLISHED),
    "other channels": (lambda: in_header(OTHERS), FORBIDDEN, FORBIDDEN, FORBIDDEN),
    "revoked": (lambda: in_header(signed(claims(jti="revoked"))), REVOKED, REVOKED, REVOKED),
    "ticket of a revoked token": (lambda: in_query(ticket("a", jti="revoked")), REVOKED, REVOKED, REFUSED),
}


@pytest.fixture(scope="module", params=["handed off", "greenlets"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    directory = tmp_path_factory.mktemp("access")
    (directory / "jwks.json").write_text(jwk_set("RS256"))
    arguments = GREENLETS if request.param == "greenlets" else ()
    with RedisServer(directory) as store:
        env = {
            "SSE_REDIS_URL": store.url,
            "SSE_PUBLIC": "open/*",
            "SSE_ORIGINS": ORIGIN,
            "SSE_SECRET": SECRET,
            "SSE_JWKS": str(directory / "jwks.json"),
            "SSE_PUBLISH_KEYS": KEY,
            "SSE_HEARTBEAT": "3",
        }
        with Gunicorn(directory, APP, env, workers=2, arguments=arguments) as server:
            assert client.publish(server.url, "a", "secret news", key=KEY).status == 201
            revoke(server, "token", "revoked")
            time.sleep(1.2)
            yield server
        log = server.log.read_text()
        assert "eyJ" not in log, "a token or a ticket is in the log"
        assert SECRET not in log
        assert KEY not in log


def revoke(server: Gunicorn, kind: str, value: str) -> None:
    with redis.Redis.from_url(server.env["SSE_REDIS_URL"]) as store:
        store.xadd("sse:{sse.revoked}", {"d": json.dumps({kind: value})})


def reason(answer: Answer) -> tuple[int, str]:
    assert "secret news" not in answer.body.decode() or answer.status == 200
    if answer.status in (200, 201):
        return answer.status, ""
    assert answer.headers.get_content_type() == "application/json"
    return answer.status, answer.json()["error"]["code"]


def read_stream(url: str, query: dict[str, str], headers: dict[str, str]) -> tuple[tuple[int, str], Any]:
    with Stream(url, {"channel": "a", **query}, headers=headers) as stream:
        if stream.status == 200:
            assert stream.until("sse.open").json()["channels"]["a"]
            if "replay" in query:
                assert stream.take(1)[0].data == "secret news"
            return (200, ""), stream.headers
        assert stream.next() is None
        return reason(Answer(stream.status, stream.headers, stream.received)), stream.headers


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("case", TABLE)
def test_each_credential_gives_what_it_should(server: Gunicorn, case: str, page: str) -> None:
    make, good, bad, publishing = TABLE[case]
    brought = make()
    headers = {**PAGES[page], **brought.get("headers", {})}
    query = brought.get("query", {})
    expected = good if page in OWN else bad
    answers = {}
    for way, extra in (("stream", {}), ("stream, replay", {"replay": "1"})):
        answers[way], told = read_stream(server.url, {**query, **extra}, headers)
        check_cors(told, page)
    for way, extra in (("poll", {"timeout": "0"}), ("poll, replay", {"timeout": "0", "replay": "1"})):
        answer = client.request(server.url, "GET", "/sse/poll", {"channel": "a", **query, **extra}, headers=headers)
        answers[way] = reason(answer)
        assert (b"secret news" in answer.body) == (answer.status == 200 and "replay" in extra)
        check_cors(answer.headers, page)
    assert answers == dict.fromkeys(answers, expected)
    event = json.dumps({"channel": "a", "data": "secret news"}).encode()
    answer = client.request(
        server.url, "POST", "/sse/publish", query, headers={**headers, "Content-Type": "application/json"}, body=event
    )
    assert reason(answer) == publishing
    answer = client.request(
        server.url,
        "POST",
        "/sse/publish/a",
        query,
        headers={**headers, "Content-Type": "text/plain"},
        body=b"secret news",
    )
    assert reason(answer) == publishing


def check_cors(headers: Any, page: str) -> None:
    assert headers.get("Access-Control-Allow-Origin") == (ORIGIN if page == "listed" else None)
    assert "no-store" in headers["Cache-Control"]
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("page", PAGES)
def test_what_is_public_needs_no_credential_and_a_stale_cookie_is_in_nobody_s_way(server: Gunicorn, page: str) -> None:
    brought: list[dict[str, str]] = [{}, in_cookie(signed(claims(exp=5)))["headers"], in_cookie("x")["headers"]]
    for headers in brought:
        answer = client.poll(server.url, ["open/a"], headers={**PAGES[page], **headers}, timeout=0)
        assert answer.status == 200
    answer = client.poll(server.url, ["open/a"], headers={**PAGES[page], **in_header("x.y.z")["headers"]}, timeout=0)
    assert reason(answer) == INVALID


def open_stream(server: Gunicorn, text: str, **query: str) -> Stream:
    stream = Stream(server.url, {"channel": "a", **query}, headers=in_header(text)["headers"])
    assert stream.status == 200
    stream.until("sse.open")
    return stream


def test_a_revoked_user_s_streams_are_gone_on_every_worker_within_two_seconds(server: Gunicorn) -> None:
    streams, workers = [], set()
    text = signed(claims(sub="eve", jti="eve"))
    other = open_stream(server, signed(claims(sub="bob", jti="bob")))
    for _ in range(200):
        streams.append(open_stream(server, text))
        workers.add(streams[-1].headers["X-Worker"])
        if len(workers) == 2 and len(streams) >= 4:
            break
    assert len(workers) == 2
    polls = client.poll(server.url, ["a"], headers=in_header(text)["headers"], timeout=0).json()["last_event_id"]
    began = time.monotonic()
    revoke(server, "sub", "eve")
    for stream in streams:
        assert stream.until("sse.close", 5).json()["reason"] == "expired"
        assert stream.next() is None
        assert stream.complete
    answer = client.poll(server.url, ["a"], polls, headers=in_header(text)["headers"], timeout=20)
    assert reason(answer) == (401, "token_revoked")
    assert time.monotonic() - began < 2.5
    with pytest.raises(TimeoutError):
        while other.next(0.5):
            pass
    other.close()


def test_a_parked_poll_ends_with_its_token(server: Gunicorn) -> None:
    text = signed(claims(exp=int(time.time()) - LEEWAY + 2))
    headers = in_header(text)["headers"]
    last = client.poll(server.url, ["a"], headers=headers, timeout=0).json()["last_event_id"]
    began = time.monotonic()
    answer = client.poll(server.url, ["a"], last, headers=headers, timeout=20)
    assert (answer.status, answer.json()["events"], answer.json()["last_event_id"]) == (200, [], last)
    assert 1 < time.monotonic() - began < 3.5
    assert reason(client.poll(server.url, ["a"], last, headers=headers, timeout=20)) == (401, "token_expired")


def test_a_parked_poll_ends_when_it_is_revoked_and_is_told_nothing_that_came_with_that(server: Gunicorn) -> None:
    headers = in_header(signed(claims(sub="joe", jti="joe")))["headers"]
    last = client.poll(server.url, ["a"], headers=headers, timeout=0).json()["last_event_id"]
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(client.poll, server.url, ["a"], last, headers=headers, timeout=20) for _ in range(4)]
        time.sleep(0.5)
        began = time.monotonic()
        revoke(server, "sub", "joe")
        for answer in answers:
            assert (answer.result().status, answer.result().json()["events"]) == (200, [])
    assert time.monotonic() - began < 2
    assert reason(client.poll(server.url, ["a"], last, headers=headers)) == (401, "token_revoked")


def test_a_stream_ends_with_its_token_and_tells_so_before(server: Gunicorn) -> None:
    ends = int(time.time()) + 3
    with open_stream(server, signed(claims(exp=ends - LEEWAY))) as stream:
        assert stream.until("sse.auth", 2).json() == {"expires": 0}
        assert stream.until("sse.close", 6).json()["reason"] == "expired"
        assert -0.1 < time.time() - ends < 1
        assert stream.next() is None
        assert stream.complete
    answer = client.poll(server.url, ["a"], headers=in_header(signed(claims(exp=ends - LEEWAY)))["headers"], timeout=0)
    assert reason(answer) == (401, "token_expired")


def test_of_streams_at_the_same_place_each_ends_with_its_own_token(server: Gunicorn) -> None:
    ends = int(time.time()) + 4
    tokens = [signed(claims(sub="ann", jti="ann")), signed(claims(sub="bob", jti="bob", exp=ends - LEEWAY))]
    with contextlib.ExitStack() as stack:
        streams = {(sub, n): stack.enter_context(open_stream(server, tokens[sub])) for sub in (0, 1) for n in range(6)}
        (id,) = client.publish(server.url, "a", "secret news", key=KEY).json()["ids"]
        told: dict[tuple[int, int], list[str]] = {key: [] for key in streams}
        for (sub, n), stream in streams.items():
            for event in stream.events(8):
                told[sub, n].append(event.event)
                if event.event == "sse.close" or (sub == 0 and event.id == id):
                    break
        for n in range(6):
            *before, last = [kind for kind in told[1, n] if kind != "sse.heartbeat"]
            assert (sorted(before), last) == (["message", "sse.auth"], "sse.close")
            assert "sse.auth" not in told[0, n]
        assert -0.1 < time.time() - ends < 1.5
        assert client.publish(server.url, "a", "secret news", key=KEY).status == 201
        for n in range(6):
            assert streams[0, n].take(1, 5)[0].data == "secret news"


def test_a_ticket_for_a_token_opens_streams_that_end_when_the_token_does(server: Gunicorn) -> None:
    ends = int(time.time()) + 4
    headers = in_header(signed(claims(exp=ends - LEEWAY)))["headers"]
    answer = client.request(server.url, "POST", "/sse/ticket", {"channel": "a"}, headers=headers)
    assert answer.status == 201
    assert answer.json()["expires"] == TICKET_LIFE
    text = answer.json()["ticket"]
    streams = [Stream(server.url, {"channel": "a", "token": text}) for _ in range(2)]  # more than once
    for stream in streams:
        with stream:
            assert stream.until("sse.close", 8).json()["reason"] == "expired"
    assert -0.1 < time.time() - ends < 1


@pytest.mark.parametrize(
    "case", ["anonymous", "ticket in the header", "publishing key", "token in the cookie", "token in the query"]
)
def test_a_ticket_is_for_the_bearer_of_a_token_only(server: Gunicorn, case: str) -> None:
    brought = TABLE[case][0]()
    answer = client.request(
        server.url, "POST", "/sse/ticket", {"channel": "a", **brought.get("query", {})}, headers=brought.get("headers")
    )
    assert answer.status == 401


def test_a_ticket_is_for_channels_that_the_token_may_read(server: Gunicorn) -> None:
    headers = in_header(signed(claims()))["headers"]
    answer = client.request(server.url, "POST", "/sse/ticket", [("channel", "a"), ("channel", "b")], headers=headers)
    assert reason(answer) == (403, "forbidden")
    assert answer.json()["error"]["channels"] == ["b"]


def test_a_position_opens_no_channel_and_tells_nothing_of_one(server: Gunicorn) -> None:
    headers = in_header(signed(claims(subscribe=["b"])))["headers"]
    last = client.poll(server.url, ["a"], headers=in_header(signed(claims()))["headers"], timeout=0).json()[
        "last_event_id"
    ]
    assert last.startswith("a=")
    answers = [
        client.poll(server.url, ["b"], entry, headers=headers, timeout=0).body.replace(b'"a"', b'"z"')
        for entry in (last, "a=0-0", "a=x")
    ]
    assert answers[0] == answers[1] == answers[2]
    assert b"a=" not in answers[0]


def test_a_secret_is_in_no_address_of_ours(server: Gunicorn) -> None:
    answer = client.request(server.url, "GET", "/sse/stream/", {"channel": "a", "token": ticket()})
    assert answer.status == 404
    assert "Location" not in answer.headers
    assert b"eyJ" not in answer.body
