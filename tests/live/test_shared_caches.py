"""A cache that many users share never gives one user the answer of another, whatever headers it ignores.

If the cache ignores `no-store`, `Vary` keeps the answers apart. No origin can help against a cache that ignores `Vary`
too, or that leaves the ticket out of its cache keys: see `CarelessVarnish`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import redis

from tests import client
from tests.client import Answer, Stream
from tests.live.load import APP, KEY, address
from tests.proxy_servers import (
    Cache,
    CarelessVarnish,
    GreedySquid,
    GreedyVarnish,
    JoiningSquid,
    OfflineSquid,
    Squid,
    StaleVarnish,
    StrippingVarnish,
    TicketlessSquid,
    Varnish,
)
from tests.publishing import publish
from tests.servers import Gunicorn, RedisServer, wait_until
from tests.tokens import SECRET, claims, signed

SECRETS = "the private news of ann"
ORIGINS = ("https://a.example", "https://b.example")
QUERY = {"channel": "user/ann", "replay": "1", "timeout": "0"}
READERS = {"ann": 200, "bob": 403, "": 401}  # the status of each about user/ann; "" has no credentials


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    directory = tmp_path_factory.mktemp("origin")
    with RedisServer(directory) as store:
        env = {
            "SSE_REDIS_URL": store.url,
            "SSE_SECRET": SECRET,
            "SSE_PUBLISH_KEYS": KEY,
            "SSE_ORIGINS": " ".join(ORIGINS),
            "SSE_HEARTBEAT": "3",
        }
        with Gunicorn(directory, APP, env) as server:
            assert client.publish(server.url, "user/ann", SECRETS, key=KEY).status == 201
            yield server


@pytest.fixture(
    scope="module",
    params=[Varnish, GreedyVarnish, StaleVarnish, Squid, JoiningSquid, GreedySquid, OfflineSquid],
    ids=lambda kind: kind.name,
)
def cache(
    request: pytest.FixtureRequest, origin: Gunicorn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cache]:
    with request.param(tmp_path_factory.mktemp("cache"), address(origin.url)[1]) as proxy:
        yield proxy


def credentials(way: str, sub: str) -> dict[str, str]:
    if not sub:
        return {}
    token = signed(claims(sub=sub, subscribe=[f"user/{sub}", f"user/{sub}/*"]))
    return {"Cookie": f"sse_token={token}"} if way == "cookie" else {"Authorization": f"Bearer {token}"}


def ticket(origin: Gunicorn, sub: str, **changes: str) -> str:
    token = signed(claims(sub=sub, subscribe=[f"user/{sub}"], **changes))
    headers = {"Authorization": f"Bearer {token}"}
    answer = client.request(origin.url, "POST", "/sse/ticket", {"channel": f"user/{sub}"}, headers=headers)
    assert answer.status == 201
    return str(answer.json()["ticket"])


def poll(url: str, query: dict[str, str], headers: dict[str, str] | None = None) -> Answer:
    return client.request(url, "GET", "/sse/poll", query, headers=headers)


def stream(url: str, query: dict[str, str], headers: dict[str, str]) -> Answer:
    """Return a stream's answer up to its first event, or its end."""
    with Stream(url, query, headers=headers) as opened:
        if opened.status == 200:
            opened.take(1)
        else:
            assert opened.next() is None
        return Answer(opened.status, opened.headers, opened.received)


def was_kept(answer: Answer) -> bool:
    """Return whether the cache had the answer, or shared it."""
    return " " in answer.headers.get("X-Varnish", "") or answer.headers.get("X-Cache", "").startswith("HIT")


def check(answer: Answer, status: int) -> None:
    assert answer.status == status
    assert (SECRETS.encode() in answer.body) == (status == 200)


@contextmanager
def held(origin: Gunicorn) -> Iterator[None]:
    """During the block, the origin accepts connections and answers none."""
    (worker,) = origin.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def test_the_cache_does_keep_answers(cache: Cache) -> None:
    for path, keeps in (("/sse/sse.js", True), ("/healthz", "health" in cache.KEEPS)):
        assert client.request(cache.url, "GET", path).status == 200
        assert was_kept(client.request(cache.url, "GET", path)) == keeps


@pytest.mark.parametrize("way", ["cookie", "header"])
def test_a_poll_s_answer_is_for_whoever_asked(cache: Cache, way: str) -> None:
    query = {**QUERY, "v": way}
    headers = {sub: credentials(way, sub) for sub in READERS}
    for sub, status in READERS.items():
        for again in (False, True):
            answer = poll(cache.url, query, headers[sub])
            check(answer, status)
            assert was_kept(answer) == (again and (way if status == 200 else "refusal") in cache.KEEPS)
    check(poll(cache.url, query, headers["ann"]), 200)


@pytest.mark.parametrize("way", ["cookie", "header"])
def test_a_stream_is_for_whoever_opened_it(cache: Cache, way: str) -> None:
    query = {**QUERY, "w": way}
    headers = {sub: credentials(way, sub) for sub in READERS}
    with Stream(cache.url, query, headers=headers["ann"]) as mine:  # open while the others come
        assert mine.take(1)[0].data == SECRETS
        for sub, status in READERS.items():
            answer = stream(cache.url, query, headers[sub])
            check(answer, status)
            assert was_kept(answer) == (sub == "ann" and "stream" in cache.KEEPS)


@pytest.mark.parametrize("way", ["cookie", "header"])
def test_a_refusal_is_not_given_to_one_who_may(cache: Cache, way: str) -> None:
    for sub, status in reversed(READERS.items()):
        check(poll(cache.url, {**QUERY, "x": way}, credentials(way, sub)), status)


@pytest.mark.parametrize("way", ["cookie", "header"])
def test_those_who_ask_at_the_same_moment_are_told_apart(cache: Cache, origin: Gunicorn, way: str) -> None:
    """Whoever comes first: while the origin has not answered, no cache can know what the answer varies by."""
    headers = {sub: credentials(way, sub) for sub in READERS}
    urls = [(ask, {**QUERY, "y": way, "first": first}) for ask in (poll, stream) for first in READERS]
    with ThreadPoolExecutor(50) as pool:
        with held(origin):
            asked = [(url["first"], pool.submit(ask, cache.url, url, headers[url["first"]])) for ask, url in urls]
            time.sleep(0.2)  # these are first
            asked += [(sub, pool.submit(ask, cache.url, url, headers[sub])) for ask, url in urls for sub in READERS]
            time.sleep(0.2)
        for sub, answer in asked:
            check(answer.result(20), READERS[sub])
    assert way not in cache.KEEPS or any(was_kept(answer.result()) for _, answer in asked)


@pytest.mark.parametrize("way", ["cookie", "header"])
def test_those_who_ask_while_another_s_poll_waits_are_told_apart(cache: Cache, origin: Gunicorn, way: str) -> None:
    channel = f"user/ann/{cache.name}/{way}"
    [place] = publish(origin, channel, "old")
    query = {"channel": channel, "last_event_id": place, "timeout": "10"}
    headers = {sub: credentials(way, sub) for sub in READERS}
    with ThreadPoolExecutor() as pool, redis.Redis.from_url(origin.env["SSE_REDIS_URL"]) as store:
        first = pool.submit(poll, cache.url, query, headers["ann"])
        wait_until(lambda: store.pubsub_numsub(f"sse:0:{{{channel}}}")[0][1], what="the first poll waits")
        others = {sub: pool.submit(poll, cache.url, query, headers[sub]) for sub in READERS}
        if cache.JOINS:
            time.sleep(0.2)
            assert not any(other.done() for other in others.values())
        else:
            check(others["bob"].result(5), 403)
            check(others[""].result(5), 401)
        assert client.publish(origin.url, channel, SECRETS, key=KEY).status == 201
        check(first.result(20), 200)
        for sub, status in READERS.items():
            check(others[sub].result(20), status)


def test_a_ticket_that_has_ended_opens_nothing_but_what_a_greedy_cache_has_kept_of_it(
    cache: Cache, origin: Gunicorn
) -> None:
    mine = {**QUERY, "token": ticket(origin, "ann", jti=cache.name)}
    others = (({**QUERY, "token": ticket(origin, "bob")}, 403), (QUERY, 401))
    check(poll(cache.url, mine), 200)
    for query, status in others:
        check(poll(cache.url, query), status)
    with redis.Redis.from_url(origin.env["SSE_REDIS_URL"]) as store:
        store.xadd("sse:{sse.revoked}", {"d": json.dumps({"token": cache.name})})
    wait_until(lambda: poll(origin.url, mine).status == 401, what="the ticket is revoked")
    check(poll(cache.url, mine), 200 if "ticket" in cache.KEEPS else 401)  # it does not ask the origin
    check(poll(cache.url, {**mine, "z": "1"}), 401)
    for query, status in others:
        check(poll(cache.url, query), status)


def test_an_answer_for_one_origin_s_page_is_not_given_to_another_s(cache: Cache) -> None:
    headers = {"GET": credentials("cookie", "ann"), "OPTIONS": {"Access-Control-Request-Method": "GET"}}
    for method, page in product(headers, (*ORIGINS, "https://c.example", "", ORIGINS[0])):
        asked = headers[method] | ({"Origin": page} if page else {})
        for _ in range(2):
            answer = client.request(cache.url, method, "/sse/poll", QUERY, headers=asked)
            assert answer.headers.get("Access-Control-Allow-Origin") == (page if page in ORIGINS else None)
        kind = "preflight" if method == "OPTIONS" else "cookie" if answer.status == 200 else "refusal"
        assert was_kept(answer) == (kind in cache.KEEPS)


@pytest.fixture
def upstream(origin: Gunicorn) -> int:
    return address(origin.url)[1]


def test_who_is_stripped_of_credentials_is_nobody(tmp_path: Path, origin: Gunicorn, upstream: int) -> None:
    with StrippingVarnish(tmp_path, upstream) as cache:
        for way in ("cookie", "header"):
            check(poll(cache.url, QUERY, credentials(way, "ann")), 401)
        check(poll(cache.url, {**QUERY, "token": ticket(origin, "ann")}), 401)


def test_an_answer_to_a_ticket_is_not_told_by_a_url_without_it(tmp_path: Path, origin: Gunicorn, upstream: int) -> None:
    with TicketlessSquid(tmp_path, upstream) as cache:
        for sub, status in (("ann", 200), ("bob", 403), ("ann", 200)):
            check(poll(cache.url, {**QUERY, "token": ticket(origin, sub)}), status)
        check(poll(cache.url, QUERY), 401)


def test_a_cache_that_throws_away_what_keeps_answers_apart_would_be_noticed(
    tmp_path: Path, origin: Gunicorn, upstream: int
) -> None:
    """No origin can help that. What helps the script is that no two of its requests have the same URL."""
    with CarelessVarnish(tmp_path, upstream) as cache:
        for way in ("cookie", "header"):
            for sub in ("ann", "bob", ""):
                check(poll(cache.url, {**QUERY, "v": way}, credentials(way, sub)), 200)
        for sub in ("ann", "bob"):
            check(poll(cache.url, {**QUERY, "token": ticket(origin, sub)}), 200)
