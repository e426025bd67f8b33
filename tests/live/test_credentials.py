"""Access by each kind of credential, sent in each way, from each kind of page, handed off and with greenlets."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.message import Message
from typing import Any, NamedTuple, cast

import pytest
import redis
from flask import Flask

from sse import SSE
from sse.access.token import LEEWAY, TICKET_LIFE
from tests import client
from tests.client import Answer, Stream
from tests.conftest import MakeApp
from tests.live.load import APP, GREENLETS, KEY, ORIGIN
from tests.publishing import publish
from tests.servers import ROOT, Gunicorn, RedisServer
from tests.tokens import CREDENTIALS, SECRET, claims, jwk_set, signed, ticket

PAGES: dict[str, dict[str, str]] = {
    "same origin": {"Sec-Fetch-Site": "same-origin"},
    "same site": {"Sec-Fetch-Site": "same-site", "Origin": "https://sibling.example"},
    "old browser": {},
    "listed": {"Sec-Fetch-Site": "cross-site", "Origin": ORIGIN},
    "unlisted": {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    "null": {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
}
OWN = ("same origin", "same site", "old browser", "listed")
FOR_COOKIES = ("same site", "old browser")  # these differ from the same origin by what a cookie may, if at all
BEFORE = "the position before the newest event"
# How it is asked: the path, the query and the headers.
READING: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "stream": ("stream", {}, {}),
    "stream, replay": ("stream", {"replay": "1"}, {}),
    "stream, resumed": ("stream", {}, {"Last-Event-ID": BEFORE}),
    "poll": ("poll", {"timeout": "0"}, {}),
    "poll, replay": ("poll", {"replay": "1"}, {}),
    "poll, resumed": ("poll", {"last_event_id": BEFORE}, {}),
}
PUBLISHING = {
    "publish": ("/sse/publish", "application/json", json.dumps({"channel": "p", "data": "forged"}).encode()),
    "publish, raw": ("/sse/publish/p", "text/plain", b"forged"),
}
PLACES: dict[str, Callable[[str], tuple[dict[str, str], dict[str, str]]]] = {
    "header": lambda text: ({}, {"Authorization": f"Bearer {text}"}),
    "cookie": lambda text: ({}, {"Cookie": f"x=1; sse_token={text}"}),
    "query": lambda text: ({"token": text}, {}),
    "header of another scheme": lambda text: ({}, {"Authorization": f"Basic {text}"}),
}

Told = tuple[int, str]
READ, PUBLISHED, MADE = (200, ""), (201, ""), (201, "")
REFUSED = (401, "unauthorized")
INVALID = (401, "token_invalid")
EXPIRED = (401, "token_expired")
AUDIENCE = (401, "token_audience")
CLAIMS = (401, "token_claims")
LIFETIME = (401, "token_lifetime")
EARLY = (401, "token_early")
REVOKED = (401, "token_revoked")
IN_QUERY = (401, "token_in_query")
FORBIDDEN = (403, "forbidden")
# What one is told who reads with it in the header, in the cookie of a page whose cookie counts, in the query; and who
# publishes with it in the header. In the cookie or in the query it publishes nothing, and is not looked at.
TABLE: dict[str, tuple[Told, Told, Told, Told]] = {
    "nothing":                      (REFUSED,   REFUSED,   REFUSED,   REFUSED),
    "token":                        (READ,      READ,      IN_QUERY,  PUBLISHED),
    "token by RS256":               (READ,      READ,      IN_QUERY,  PUBLISHED),
    "token by ES256":               (READ,      READ,      IN_QUERY,  PUBLISHED),
    "token by EdDSA":               (READ,      READ,      IN_QUERY,  PUBLISHED),
    "token for reading only":       (READ,      READ,      IN_QUERY,  FORBIDDEN),
    "token for publishing only":    (FORBIDDEN, FORBIDDEN, IN_QUERY,  PUBLISHED),
    "token for other channels":     (FORBIDDEN, FORBIDDEN, IN_QUERY,  FORBIDDEN),
    "ticket":                       (READ,      REFUSED,   READ,      REFUSED),
    "ticket of the service":        (READ,      REFUSED,   READ,      REFUSED),
    "ticket of the app":            (READ,      REFUSED,   READ,      REFUSED),
    "ticket after its time":        (EXPIRED,   EXPIRED,   EXPIRED,   EXPIRED),
    "ticket after its token's time": (EXPIRED,  EXPIRED,   EXPIRED,   EXPIRED),
    "ticket for another channel":   (FORBIDDEN, REFUSED,   FORBIDDEN, REFUSED),
    "ticket by the secret itself":  (INVALID,   INVALID,   INVALID,   INVALID),
    "ticket turned into a token":   (INVALID,   INVALID,   INVALID,   INVALID),
    "expired":                      (EXPIRED,   EXPIRED,   EXPIRED,   EXPIRED),
    "without an end":               (CLAIMS,    CLAIMS,    CLAIMS,    CLAIMS),
    "too long-lived":               (LIFETIME,  LIFETIME,  LIFETIME,  LIFETIME),
    "not valid yet":                (EARLY,     EARLY,     EARLY,     EARLY),
    "wrong audience":               (AUDIENCE,  AUDIENCE,  AUDIENCE,  AUDIENCE),
    "without an audience":          (CLAIMS,    CLAIMS,    CLAIMS,    CLAIMS),
    "wrong key":                    (INVALID,   INVALID,   INVALID,   INVALID),
    "wrong key, expired":           (INVALID,   INVALID,   INVALID,   INVALID),
    "wrong key by ES256":           (INVALID,   INVALID,   INVALID,   INVALID),
    "unknown key id":               (INVALID,   INVALID,   INVALID,   INVALID),
    "another key's id":             (INVALID,   INVALID,   INVALID,   INVALID),
    "alg none":                     (INVALID,   INVALID,   INVALID,   INVALID),
    "alg none, as a ticket":        (INVALID,   INVALID,   INVALID,   INVALID),
    "key confusion: PEM":           (INVALID,   INVALID,   INVALID,   INVALID),
    "key confusion: PKCS #1":       (INVALID,   INVALID,   INVALID,   INVALID),
    "key confusion: DER":           (INVALID,   INVALID,   INVALID,   INVALID),
    "key confusion: JWK":           (INVALID,   INVALID,   INVALID,   INVALID),
    "key confusion: modulus":       (INVALID,   INVALID,   INVALID,   INVALID),
    "not a token":                  (INVALID,   INVALID,   INVALID,   REFUSED),
    "publishing key":               (INVALID,   INVALID,   INVALID,   PUBLISHED),
    "unknown publishing key":       (INVALID,   INVALID,   INVALID,   REFUSED),
    "revoked token":                (REVOKED,   REVOKED,   REVOKED,   REVOKED),
    "revoked user":                 (REVOKED,   REVOKED,   REVOKED,   REVOKED),
    "ticket of a revoked token":    (REVOKED,   REVOKED,   REVOKED,   REVOKED),
    "ticket of a revoked user":     (REVOKED,   REVOKED,   REVOKED,   REVOKED),
}  # fmt: skip


class Case(NamedTuple):
    """Credentials, and the answers to a reader whose cookie counts, to other readers, and to a publisher."""

    brought: Mapping[str, str]
    own: Told
    other: Told
    publisher: Told


CASES = {
    # None, or two: the header decides, then a cookie that is good and counts, then the query.
    "anonymous": Case({}, REFUSED, REFUSED, REFUSED),
    "good header, bad cookie": Case({"header": "token", "cookie": "expired"}, READ, READ, PUBLISHED),
    "bad header, good cookie": Case({"header": "wrong key", "cookie": "token"}, INVALID, INVALID, INVALID),
    "bad header, good ticket": Case({"header": "expired", "query": "ticket"}, EXPIRED, EXPIRED, EXPIRED),
    "other's header, own cookie": Case(
        {"header": "token for other channels", "cookie": "token"}, FORBIDDEN, FORBIDDEN, FORBIDDEN
    ),
    "other's header, own ticket": Case(
        {"header": "token for other channels", "query": "ticket"}, FORBIDDEN, FORBIDDEN, FORBIDDEN
    ),
    "other's cookie, own ticket": Case(
        {"cookie": "token for other channels", "query": "ticket"}, FORBIDDEN, READ, REFUSED
    ),
    "own cookie, other's ticket": Case(
        {"cookie": "token", "query": "ticket for another channel"}, READ, FORBIDDEN, REFUSED
    ),
    "bad cookie, good ticket": Case({"cookie": "wrong key", "query": "ticket"}, READ, READ, REFUSED),
    "revoked cookie, good ticket": Case({"cookie": "revoked user", "query": "ticket"}, READ, READ, REFUSED),
    "good cookie, bad query": Case({"cookie": "token", "query": "token"}, READ, IN_QUERY, REFUSED),
    "bad cookie, old ticket": Case({"cookie": "alg none", "query": "ticket after its time"}, EXPIRED, EXPIRED, REFUSED),
    "ticket as cookie, good ticket": Case({"cookie": "ticket", "query": "ticket"}, READ, READ, REFUSED),
    "publishing key, good cookie": Case({"header": "publishing key", "cookie": "token"}, INVALID, INVALID, PUBLISHED),
    "another scheme": Case({"header of another scheme": "token"}, REFUSED, REFUSED, REFUSED),
    "another scheme, good cookie": Case(
        {"header of another scheme": "nothing", "cookie": "token"}, READ, REFUSED, REFUSED
    ),
}  # fmt: skip
for _name, (_header, _cookie, _query, _publisher) in TABLE.items():
    CASES[f"{_name}, in the header"] = Case({"header": _name}, _header, _header, _publisher)
    CASES[f"{_name}, in the cookie"] = Case({"cookie": _name}, _cookie, REFUSED, REFUSED)
    CASES[f"{_name}, in the query"] = Case({"query": _name}, _query, _query, REFUSED)


def pages(brought: Mapping[str, str]) -> list[str]:
    return [page for page in PAGES if "cookie" in brought or page not in FOR_COOKIES]


def test_the_table_is_whole() -> None:
    """Each combination is tried on both ways to run a stream."""
    assert set(TABLE) == {*CREDENTIALS, *MADE_HERE}
    assert len(CASES) == 41 * 3 + 16
    assert sum(len(pages(case.brought)) for case in CASES.values()) * (len(READING) + len(PUBLISHING)) == 5_296


class IssuingServer(Gunicorn):
    """The service over a Redis; `before` is the position before the newest event in `a`."""

    store: redis.Redis
    before: str

    def newest(self, channel: str) -> str | None:
        """Return the newest position in a channel, or None if the channel has no ring."""
        entries = cast("list[Any]", self.store.xrevrange(f"sse:{{{channel}}}", count=1))
        return entries[0][0] if entries else None

    def published(self, channel: str) -> int:
        """Return how many events a channel ever had."""
        return int((self.newest(channel) or "0-").partition("-")[0])

    def revoke(self, kind: str, value: str) -> None:
        self.store.xadd("sse:{sse.revoked}", {"d": json.dumps({kind: value})})

    def ticket(self) -> str:
        query = [("channel", "a"), ("channel", "unborn")]
        answer = client.request(self.url, "POST", "/sse/ticket", query, headers=bearer(CREDENTIALS["token"]()))
        assert (answer.status, answer.json()["expires"]) == (201, TICKET_LIFE)
        return str(answer.json()["ticket"])


def ticket_of_the_app() -> str:
    app = Flask("tests")
    app.config.from_mapping(SSE_SECRET=SECRET)
    sse = SSE(app)
    with app.app_context():
        return sse.ticket(["a", "unborn"], "ann")


MADE_HERE: dict[str, Callable[[IssuingServer], str]] = {
    "publishing key": lambda server: KEY,
    "unknown publishing key": lambda server: KEY[::-1],
    "ticket of the service": IssuingServer.ticket,
    "ticket of the app": lambda server: ticket_of_the_app(),
}


@pytest.fixture(scope="module", params=["handed off", "greenlets"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IssuingServer]:
    directory = tmp_path_factory.mktemp("access")
    (directory / "jwks.json").write_text(jwk_set())
    arguments = GREENLETS if request.param == "greenlets" else ()
    with RedisServer(directory) as store, store.client() as connection:
        env = {
            "SSE_REDIS_URL": store.url,
            "SSE_PUBLIC": "open/*",
            "SSE_ORIGINS": ORIGIN,
            "SSE_SECRET": SECRET,
            "SSE_JWKS": str(directory / "jwks.json"),
            "SSE_PUBLISH_KEYS": KEY,
            "SSE_HEARTBEAT": "3",
        }
        with IssuingServer(directory, APP, env, workers=2, arguments=arguments) as server:
            server.store = connection
            [server.before] = publish(server, "a", "old news")
            assert client.publish(server.url, "a", "secret news", key=KEY).status == 201
            server.revoke("token", "revoked")
            server.revoke("sub", "revoked")
            time.sleep(1.2)
            yield server
        log = server.log.read_text()
        assert "eyJ" not in log, "a token or a ticket is in the log"
        assert SECRET not in log
        assert KEY not in log


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def bring(server: IssuingServer, brought: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the query and the headers that carry these credentials."""
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    for place, name in brought.items():
        text = CREDENTIALS[name]() if name in CREDENTIALS else MADE_HERE[name](server)
        in_query, in_headers = PLACES[place](text)
        query |= in_query
        headers |= in_headers
    return query, headers


def reason(answer: Answer, *refused: str) -> Told:
    """Return the status, and the code of the refusal, which names the channels of the request."""
    if answer.status in (200, 201):
        return answer.status, ""
    assert b"secret news" not in answer.body
    assert answer.headers.get_content_type() == "application/json"
    assert answer.headers.get("WWW-Authenticate") == ("Bearer" if answer.status == 401 else None)
    error = answer.json()["error"]
    assert error.get("channels") == (list(refused) if answer.status == 403 else None)
    return answer.status, error["code"]


def ask(
    server: IssuingServer, way: str, channels: Sequence[str], query: dict[str, str], headers: dict[str, str]
) -> Answer:
    """Read in one of the ways. For a stream that opens, return its first blocks."""
    path, more_query, more_headers = READING[way]
    params = [("channel", channel) for channel in channels]
    params += [(name, server.before if value is BEFORE else value) for name, value in more_query.items()]
    params += query.items()
    headers = {**headers, **dict.fromkeys(more_headers, server.before)}
    if path == "poll":
        return client.request(server.url, "GET", "/sse/poll", params, headers=headers)
    with Stream(server.url, params, headers=headers) as stream:
        if stream.status == 200:
            stream.until("sse.open")
            if way != "stream":
                stream.take(1)
        else:
            assert stream.next() is None
        return Answer(stream.status, stream.headers, stream.received)


def check_headers(headers: Message, page: str) -> None:
    is_listed = page == "listed"
    assert headers.get("Access-Control-Allow-Origin") == (ORIGIN if is_listed else None)
    assert headers.get("Access-Control-Allow-Credentials") == ("true" if is_listed else None)
    assert {"Origin", "Cookie", "Authorization"} <= set(headers["Vary"].split(", "))
    assert "no-store" in headers["Cache-Control"]
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("case", CASES)
def test_each_credential_gives_what_it_should(server: IssuingServer, case: str) -> None:
    brought, own, other, publisher = CASES[case]
    query, credential = bring(server, brought)
    before = server.published("p")
    told, expected = {}, {}
    for page in pages(brought):
        headers = {**PAGES[page], **credential}
        reader = own if page in OWN else other
        channels = ["a"] if reader == READ else ["a", "unborn"]
        for way in READING:
            answer = ask(server, way, channels, query, headers)
            told[page, way], expected[page, way] = reason(answer, *channels), reader
            assert (b"secret news" in answer.body) == (answer.status == 200 and way not in ("stream", "poll"))
            check_headers(answer.headers, page)
        for way, (path, content_type, body) in PUBLISHING.items():
            with_type = {**headers, "Content-Type": content_type}
            answer = client.request(server.url, "POST", path, query, headers=with_type, body=body)
            told[page, way], expected[page, way] = reason(answer, "p"), publisher
            check_headers(answer.headers, page)
    assert told == expected
    assert server.published("p") - before == list(expected.values()).count(PUBLISHED)
    assert server.newest("unborn") is None, "a refused request has created a channel"


def test_a_stream_that_is_let_in_creates_its_channel(server: IssuingServer) -> None:
    """Otherwise, the test of refused streams would prove nothing."""
    assert server.newest("born") is None
    with Stream(server.url, {"channel": "born"}, headers=bearer(signed(claims(subscribe=["born"])))) as stream:
        stream.until("sse.open")
    assert server.newest("born")


@pytest.mark.parametrize("page", PAGES)
def test_what_is_public_needs_no_credential_and_a_stale_cookie_is_in_nobody_s_way(
    server: IssuingServer, page: str
) -> None:
    for place, name, expected in (
        ("cookie", "nothing", READ),
        ("cookie", "expired", READ),
        ("cookie", "wrong key", READ),
        ("cookie", "revoked user", READ),
        ("header", "wrong key", INVALID),
        ("query", "wrong key", INVALID),
    ):
        query, headers = bring(server, {place: name})
        answer = client.poll(server.url, ["open/a"], headers={**PAGES[page], **headers}, timeout=0, **query)
        assert reason(answer) == expected


def open_stream(server: IssuingServer, text: str, channel: str = "a") -> Stream:
    stream = Stream(server.url, {"channel": channel}, headers=bearer(text))
    assert stream.status == 200
    stream.until("sse.open")
    return stream


def park_poll(server: IssuingServer, channel: str, headers: dict[str, str]) -> tuple[str, http.client.HTTPConnection]:
    """Start a poll that waits, and return its worker's name and its connection."""
    connection = http.client.HTTPConnection(server.bind, timeout=10)
    path = f"/sse/poll?channel={channel}"
    connection.request("GET", f"{path}&timeout=0", headers=headers)
    answer = connection.getresponse()
    last = json.load(answer)["last_event_id"]
    connection.request("GET", f"{path}&timeout=20&last_event_id={last}", headers=headers)
    return answer.headers["X-Worker"], connection


def by_command(server: IssuingServer, kind: str, value: str) -> None:
    command = [sys.executable, "-m", "flask", "--app", "wsgi:application", "sse", "revoke", f"--{kind}", value]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **server.env}, timeout=20, capture_output=True)


@pytest.mark.parametrize("kind", ["sub", "channel", "token"])
@pytest.mark.parametrize("by", ["command", "function"])
def test_what_is_revoked_is_gone_on_every_worker_within_two_seconds(
    server: IssuingServer, make_app: MakeApp, by: str, kind: str
) -> None:
    name = f"{by}/{kind}"
    channel = name if kind == "channel" else "a"
    text = signed(claims(sub=name, jti=name, subscribe=[channel], publish=[channel]))
    streams: dict[str, Stream] = {}
    polls: dict[str, http.client.HTTPConnection] = {}
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(open_stream(server, signed(claims(sub="bob", jti="bob"))))
        for _ in range(200):
            worker, poll = park_poll(server, channel, bearer(text))
            stack.callback(poll.close)
            polls[worker] = poll
            stream = stack.enter_context(open_stream(server, text, channel))
            streams[stream.headers["X-Worker"]] = stream
            if len(streams) == len(polls) == 2:
                break
        assert len(streams) == len(polls) == 2
        time.sleep(0.2)  # until the last poll waits
        if by == "command":
            by_command(server, kind, name)
        else:
            sse = SSE()
            with make_app(sse, SSE_REDIS_URL=server.env["SSE_REDIS_URL"]).app_context():
                sse.revoke(**{kind: name})
        revoked = time.monotonic()
        for stream in streams.values():
            told = stream.until("sse.close", 5).json()
            assert told["reason"] == "expired"
            assert told["retry"] >= 11_000  # before that, no new token would be taken
            assert stream.next() is None
            assert stream.complete
        for worker, poll in polls.items():
            told = poll.getresponse()
            assert (told.status, told.headers["X-Worker"], json.load(told)["events"]) == (200, worker, [])
        assert time.monotonic() - revoked < 2
        for method, path in ("GET", "stream"), ("GET", "poll"), ("POST", "ticket"), ("POST", f"publish/{channel}"):
            answer = client.request(server.url, method, f"/sse/{path}", {"channel": channel}, headers=bearer(text))
            assert reason(answer, channel) == REVOKED
        assert client.publish(server.url, "a", "secret news", key=KEY).status == 201
        assert other.take(1)[0].data == "secret news"


def test_a_parked_poll_ends_with_its_token(server: IssuingServer) -> None:
    ends = int(time.time()) + 2
    headers = bearer(signed(claims(exp=ends - LEEWAY)))
    last = client.poll(server.url, ["a"], headers=headers, timeout=0).json()["last_event_id"]
    answer = client.poll(server.url, ["a"], last, headers=headers, timeout=20)
    assert (answer.status, answer.json()["events"], answer.json()["last_event_id"]) == (200, [], last)
    assert -0.1 < time.time() - ends < 1
    assert reason(client.poll(server.url, ["a"], last, headers=headers, timeout=20)) == EXPIRED


def test_a_stream_ends_with_its_token_and_tells_so_before(server: IssuingServer) -> None:
    ends = int(time.time()) + 2
    text = signed(claims(exp=ends - LEEWAY))
    with open_stream(server, text) as stream:
        assert stream.until("sse.auth", 2).json() == {"expires": 0}
        assert stream.until("sse.close", 6).json()["reason"] == "expired"
        assert -0.1 < time.time() - ends < 1
        assert stream.next() is None
        assert stream.complete
    assert reason(client.poll(server.url, ["a"], headers=bearer(text), timeout=0)) == EXPIRED


def test_a_stream_is_told_a_minute_before_its_token_ends(server: IssuingServer) -> None:
    ends = int(time.time()) + 62
    with open_stream(server, signed(claims(exp=ends))) as stream:
        assert stream.until("sse.auth", 5).json() == {"expires": 60}
        assert -0.1 < time.time() - (ends - 60) < 1


def test_of_streams_at_the_same_position_each_ends_with_its_own_token(server: IssuingServer) -> None:
    ends = int(time.time()) + 3
    tokens = [signed(claims(sub="ann", jti="ann")), signed(claims(sub="bob", jti="bob", exp=ends - LEEWAY))]
    with contextlib.ExitStack() as stack:
        streams = {(sub, n): stack.enter_context(open_stream(server, tokens[sub])) for sub in (0, 1) for n in range(6)}
        [id] = publish(server, "a", "secret news")
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


def test_a_ticket_for_a_token_opens_streams_and_polls_that_end_when_the_token_does(server: IssuingServer) -> None:
    ends = int(time.time()) + 2
    headers = bearer(signed(claims(exp=ends - LEEWAY)))
    text = client.request(server.url, "POST", "/sse/ticket", {"channel": "a"}, headers=headers).json()["ticket"]
    last = client.poll(server.url, ["a"], timeout=0, token=text).json()["last_event_id"]
    streams = [Stream(server.url, {"channel": "a", "token": text}) for _ in range(2)]  # more than once
    assert client.poll(server.url, ["a"], last, timeout=20, token=text).json()["events"] == []
    assert -0.1 < time.time() - ends < 1
    for stream in streams:
        with stream:
            assert stream.until("sse.close", 8).json()["reason"] == "expired"
    assert -0.1 < time.time() - ends < 1
    assert reason(client.poll(server.url, ["a"], timeout=0, token=text)) == EXPIRED


def test_a_ticket_is_for_the_bearer_of_a_token_only(server: IssuingServer) -> None:
    told, expected = {}, {}
    for name, (reader, *_) in TABLE.items():
        _, headers = bring(server, {"header": name})
        headers |= PAGES["listed"]
        answer = client.request(server.url, "POST", "/sse/ticket", {"channel": "a"}, headers=headers)
        check_headers(answer.headers, "listed")
        told[name] = reason(answer, "a")
        is_ticket = name.startswith("ticket") and reader in (READ, FORBIDDEN)
        expected[name] = REFUSED if is_ticket else MADE if reader == READ else reader
    for place in ("cookie", "query"):
        query, headers = bring(server, {place: "token"})
        answer = client.request(server.url, "POST", "/sse/ticket", {"channel": "a", **query}, headers=headers)
        told[place], expected[place] = reason(answer), REFUSED
    assert told == expected
    assert MADE in told.values()


def test_a_ticket_is_for_channels_that_the_token_may_read(server: IssuingServer) -> None:
    headers = bearer(signed(claims()))
    answer = client.request(server.url, "POST", "/sse/ticket", [("channel", "a"), ("channel", "b")], headers=headers)
    assert reason(answer, "b") == FORBIDDEN


def test_a_position_opens_no_channel_and_tells_nothing_of_one(server: IssuingServer) -> None:
    text = signed(claims(subscribe=["b"]))
    last = client.poll(server.url, ["a"], headers=bearer(signed(claims())), timeout=0).json()["last_event_id"]
    assert last.startswith("a=")
    answers, opened = [], []
    with open_stream(server, text, "b"):
        pass  # its ring is ensured
    for entry in (last, "a=0-0", "a=x"):
        answers.append(client.poll(server.url, ["b"], entry, headers=bearer(text), timeout=0).body)
        with Stream(server.url, {"channel": "b", "last_event_id": entry}, headers=bearer(text)) as stream:
            event = stream.until("sse.open")
            opened.append((event.id, event.json()["channels"]))
    assert answers[0] == answers[1] == answers[2]
    assert b"a=" not in answers[0]
    assert opened[0] == opened[1] == opened[2]
    assert opened[0][1].keys() == {"b"}


def test_a_secret_is_in_no_address_of_ours(server: IssuingServer) -> None:
    answer = client.request(server.url, "GET", "/sse/stream/", {"channel": "a", "token": ticket()})
    assert answer.status == 404
    assert "Location" not in answer.headers
    assert b"eyJ" not in answer.body
