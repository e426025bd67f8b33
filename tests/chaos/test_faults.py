"""Each fault of Redis by itself, with streams and polls on two workers: clients lose nothing, or get a reset."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from sse.errors import StoreUnavailable
from sse.event import Entry, LastEventId
from sse.hub.subscriber import Delivery, Reset, Start, Subscriber, starting_points
from sse.transports.stream import Stream
from tests import client as wire
from tests.chaos.cluster import Client, Cluster, CrashingRedis
from tests.driven_streams import poll
from tests.proxies import ReplyLosingProxy
from tests.publishing import Publisher, post
from tests.servers import Gunicorn, wait_until
from tests.tokens import KEY

MakeApp = Callable[..., Flask]


@pytest.fixture
def audience(cluster: Cluster) -> list[Client]:
    """A stream and a poll on each worker, all on the channels `a` and `b`."""
    return [cluster.client("a", "b", worker=worker, transport=to) for worker in (0, 1) for to in ("stream", "poll")]


def streams(audience: list[Client]) -> list[Client]:
    return [client for client in audience if client.transport == "stream"]


def resets(audience: list[Client]) -> list[list[str]]:
    return [[f"{channel} {reason}" for channel, reason, _ in client.resets] for client in audience]


def assert_untroubled(audience: list[Client]) -> None:
    assert resets(audience) == [[]] * len(audience)
    assert [client.closes for client in audience] == [[]] * len(audience)
    assert_connected(audience)


def assert_connected(audience: list[Client]) -> None:
    """Check that no stream has reconnected."""
    assert [client.connections for client in streams(audience)] == [1] * len(streams(audience))


@contextlib.contextmanager
def storm(cluster: Cluster) -> Iterator[dict[str, list[str]]]:
    """Publish on `a` and `b` from both workers while the block runs, each event until it is stored; yield the data."""
    told: dict[str, list[str]] = {"a": [], "b": []}

    def publish(channel: str, worker: int, _: int) -> None:
        told[channel] += cluster.publish(channel, worker=worker)

    with contextlib.ExitStack() as stack:
        for channel in told:
            for worker in (0, 1):
                stack.enter_context(Publisher(functools.partial(publish, channel, worker), 0.003))
        yield told


def assert_all_heard(audience: list[Client], told: dict[str, list[str]]) -> None:
    for channel, sent in told.items():
        assert len(sent) > 20, "this was no storm"
        for client in audience:
            assert sorted(client.data(channel)) == sorted(sent)


def test_losing_the_subscriptions_in_a_storm_costs_nothing(cluster: Cluster, audience: list[Client]) -> None:
    killed = 0
    with storm(cluster) as told:
        for _ in range(12):
            time.sleep(0.15)
            killed += cluster.redis.ask("CLIENT", "KILL", "TYPE", "pubsub")
    cluster.settle()
    assert killed >= 12
    assert_all_heard(audience, told)
    assert_untroubled(audience)


def test_losing_the_command_connections_in_a_storm_costs_nothing(cluster: Cluster, audience: list[Client]) -> None:
    killed = 0
    with storm(cluster) as told:
        for _ in range(12):
            time.sleep(0.1)
            killed += cluster.redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    cluster.settle()
    assert killed >= 12
    assert_all_heard(audience, told)
    assert_untroubled(audience)


@pytest.mark.parametrize("down", [0, 1, 3])
def test_a_crash_without_lost_writes_is_repaired_unnoticed(
    cluster: Cluster, audience: list[Client], down: float
) -> None:
    with storm(cluster) as told:
        time.sleep(0.5)
        cluster.redis.restart(down=down)
        time.sleep(0.5)
    cluster.settle()
    assert_all_heard(audience, told)
    assert_untroubled(audience)


def test_events_stored_while_a_hub_hears_nothing_are_found_without_another_event(
    cluster: Cluster, audience: list[Client]
) -> None:
    """Redis drops overrun subscriptions, and with them the last announcements of all."""
    cluster.publish("a", 3)
    cluster.settle()
    with cluster.redis.client() as redis:
        redis.config_set("client-output-buffer-limit", "pubsub 20000 0 0")
        # One pipeline, answered in one go: Redis drops the subscriptions before it has sent any part of the answer.
        batch = [cluster.event(channel, 2000) for channel in "ab" for _ in range(40)]
        before = {client["id"] for client in redis.client_list("pubsub")}
        assert len(before) == 2
        assert cluster.ledger.publish(cluster.services[0].store, batch) == 80
        wait_until(lambda: not before & {client["id"] for client in redis.client_list("pubsub")}, 5, what="overrun")
        redis.config_set("client-output-buffer-limit", "pubsub 33554432 8388608 60")
    cluster.settle()
    assert_untroubled(audience)
    for client in audience:
        assert len(client.data("a")) == 43
        assert len(client.data("b")) == 40


def test_an_event_that_was_not_announced_is_found(
    cluster: Cluster, audience: list[Client], caplog: pytest.LogCaptureFixture
) -> None:
    """No announcement comes, so the hubs have to look at the store."""
    cluster.redis.ask("ACL", "SETUSER", "default", "-publish")
    cluster.publish("a", 3)
    assert "could not announce" in caplog.text
    cluster.settle()
    assert [len(client.data("a")) for client in audience] == [3] * 4
    assert_untroubled(audience)


def test_lost_writes_are_told_to_those_who_had_seen_them(cluster: Cluster, audience: list[Client]) -> None:
    kept = cluster.publish("a", 10)
    untouched = cluster.publish("b", 10)
    cluster.settle()
    before_the_fork = streams(audience)[0].last_event_id
    cluster.redis.remember()
    cluster.publish("a", 10)
    cluster.settle()
    after_the_fork = streams(audience)[0].last_event_id
    with cluster.ledger.loss():
        cluster.redis.rewind()
    told = cluster.publish("a", 15, worker=1)  # another history, that grows past the lost one
    cluster.settle()
    for client in audience:
        assert set(resets([client])[0]) == {"a diverged"}
        assert client.data("b") == untouched
        assert client.data("a") == told[len(told) - len(client.data("a")) :]
    assert_connected(audience)
    old, new = (returns(cluster, last_event_id) for last_event_id in (before_the_fork, after_the_fork))
    cluster.settle()
    assert (resets([old, new]), old.data("a"), new.data("a")) == ([[], ["a diverged"]], told, [])
    assert [data for _, data in cluster.redis.ring("a")] == kept + told


def returns(cluster: Cluster, last_event_id: str) -> Client:
    """Return a client that comes back to the first worker with the last event id that it holds."""
    client = Client(cluster.ledger, [cluster.services[0].hub], ["a", "b"])
    client.last_event_id = last_event_id
    client.start()
    cluster.clients.append(client)
    wait_until(lambda: len(client.runs) == 2, what="it is on")
    return client


def test_lost_writes_are_told_when_nothing_is_published_any_more(cluster: Cluster, audience: list[Client]) -> None:
    cluster.publish("a", 5)
    cluster.publish("b", 5)
    cluster.redis.remember()
    cluster.publish("a", 5)
    cluster.settle()
    with cluster.ledger.loss():
        cluster.redis.rewind()
    cluster.settle()
    assert resets(audience) == [["a diverged"]] * len(audience)
    assert_connected(audience)


def test_a_poll_gives_no_events_of_a_history_along_with_its_reset(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring is replaced while an answer is put together: the page would apply lost events to its new state."""
    hub = cluster.services[0].hub
    last = poll(hub, {"a": Start()}, timeout=1, retry=20)["last_event_id"]
    cluster.publish("a", 3)
    look = Subscriber._next_entries
    replaced: list[str] = []

    def replace_after(subscriber: Subscriber, name: str, taken: list[Delivery | Reset], room: int) -> Sequence[Entry]:
        entries = look(subscriber, name, taken, room)
        if entries and not replaced:
            cluster.redis.ask("DEL", "sse:{a}")
            replaced.extend(cluster.publish("a", worker=1))
            wait_until(lambda: subscriber.channels[0].generation, what="the hub has seen it")
        return entries

    monkeypatch.setattr(Subscriber, "_next_entries", replace_after)
    answer = poll(hub, starting_points(["a"], LastEventId.parse(last)), timeout=5, retry=20)
    assert replaced
    assert [reset["channel"] for reset in answer["resets"]] == ["a"]
    assert answer["events"] == []
    assert answer["last_event_id"] == f"a={cluster.redis.top('a')}"


@pytest.mark.parametrize("command", [("FLUSHALL",), ("DEL", "sse:{a}", "sse:{b}")], ids=lambda command: command[0])
@pytest.mark.parametrize("then", [0, 1, 7], ids=lambda then: f"{then}-more-events")
def test_emptied_rings_are_told(cluster: Cluster, audience: list[Client], command: tuple[str, ...], then: int) -> None:
    cluster.publish("a", 5)
    cluster.publish("b", 2)
    cluster.settle()
    with cluster.ledger.loss():
        cluster.redis.ask(*command)
    published = {channel: cluster.publish(channel, then) for channel in ("a", "b")}
    cluster.settle()
    for client in audience:
        assert {(channel, position.offset) for channel, _, position in client.resets} >= {("a", 5), ("b", 2)}
        for channel, data in published.items():
            assert client.data(channel) == data[len(data) - len(client.data(channel)) :]
    assert_connected(audience)
    if then == 0:
        assert {reason for client in audience for _, reason, _ in client.resets} <= {"unknown", "diverged"}


def test_a_key_of_a_wrong_type_is_named_never_deleted_and_harms_no_other_channel(
    cluster: Cluster, audience: list[Client]
) -> None:
    cluster.publish("a", 3)
    cluster.publish("b", 3)
    cluster.settle()
    cluster.redis.ask("RENAME", "sse:{a}", "aside")
    cluster.redis.ask("SET", "sse:{a}", "mistaken")
    with pytest.raises(StoreUnavailable, match=re.escape("sse:{a}")):
        cluster.services[0].publish([cluster.event("a")])
    receipts = cluster.services[1].store.publish([cluster.event("a"), cluster.event("b")])
    assert isinstance(receipts[0], StoreUnavailable)
    assert not isinstance(receipts[1], StoreUnavailable)
    cluster.publish("b", 3)
    wait_until(lambda: all(len(client.data("b")) == 7 for client in streams(audience)), 8, what="the other channel")
    time.sleep(6)  # a check by the hubs meets the wrong key too
    assert cluster.redis.ask("GET", "sse:{a}") == "mistaken"
    cluster.redis.ask("RENAME", "aside", "sse:{a}")
    cluster.publish("a", 3)
    cluster.settle()
    assert_untroubled(audience)
    assert [len(client.data("a")) for client in audience] == [6] * 4


def test_a_new_stream_on_a_key_of_a_wrong_type_is_told_that_it_is_busy(cluster: Cluster) -> None:
    cluster.redis.ask("SET", "sse:{a}", "mistaken")
    blocks = wire.Parser().feed(
        b"".join(Stream(cluster.services[0].hub, {"a": Start()}, heartbeat=15, lifetime=600, retry=20))
    )
    assert [(block.event, block.json()["reason"]) for block in blocks] == [("sse.close", "busy")]
    cluster.redis.ask("DEL", "sse:{a}")
    client = cluster.client("a")
    cluster.publish("a", 2)
    cluster.settle()
    assert len(client.data("a")) == 2


def test_out_of_memory_stops_publishing_and_nothing_else(cluster: Cluster, audience: list[Client]) -> None:
    start = streams(audience)[0].last_event_id
    known = cluster.publish("a", 150)
    cluster.settle()
    cluster.redis.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StoreUnavailable, match="memory"):
        cluster.services[0].publish([cluster.event("a")])
    resumed = returns(cluster, start)
    newcomer = cluster.client("a", worker=1)
    wait_until(lambda: resumed.data("a") == known, what="the replay of what is there")
    cluster.redis.ask("CONFIG", "SET", "maxmemory", "0")
    more = cluster.publish("a", 3)
    cluster.settle()
    assert newcomer.data("a") == more
    assert_untroubled([*audience, resumed, newcomer])


def test_a_batch_keeps_its_order_when_redis_has_lost_its_scripts(cluster: Cluster) -> None:
    """Redis loses its scripts by a restart, and another worker loads them during the batch."""
    with Publisher(lambda _: cluster.publish("b", worker=1), pause=0):
        for _ in range(40):
            cluster.redis.ask("SCRIPT", "FLUSH")
            cluster.ledger.publish(cluster.services[0].store, [cluster.event("a", 5000) for _ in range(100)])
    assert not cluster.ledger.faults, cluster.ledger.faults[0][:100]


def test_a_batch_keeps_its_order_when_redis_refuses_a_part_of_it(cluster: Cluster) -> None:
    """Redis has no memory left during the batch, and then has some again."""
    over = threading.Event()

    def squeeze() -> None:
        with contextlib.closing(cluster.redis.client()) as redis:
            while not over.is_set():
                redis.config_set("maxmemory", 1)
                redis.config_set("maxmemory", 0)

    batches = [[cluster.event("a") for _ in range(100)] for _ in range(9)]
    other = threading.Thread(target=squeeze)
    other.start()
    refused = 0
    try:
        for batch in batches:
            for _ in range(500):
                receipts = cluster.services[0].store.publish(batch)
                if not any(isinstance(receipt, StoreUnavailable) for receipt in receipts):
                    break
                refused += 1
    finally:
        over.set()
        other.join(10)
        cluster.redis.ask("CONFIG", "SET", "maxmemory", "0")
    assert refused, "nothing was refused: this shows nothing"
    for batch in batches:  # whatever is not stored yet
        cluster.services[0].store.publish(batch)
    assert [data for _, data in cluster.redis.ring("a")] == [event.event.data for batch in batches for event in batch]


@pytest.fixture
def proxy(redis: CrashingRedis) -> Iterator[ReplyLosingProxy]:
    with ReplyLosingProxy(redis.port) as proxy:
        yield proxy


def test_a_publish_whose_reply_is_lost_is_repeated_and_stored_once(
    redis: CrashingRedis, proxy: ReplyLosingProxy
) -> None:
    with Cluster(redis, url=f"redis://127.0.0.1:{proxy.port}/0") as cluster:
        client = cluster.client("a")
        cluster.publish("a")
        for offset, key in enumerate(("given", None), 2):
            publication = cluster.event("a")._replace(key=key)
            proxy.lose(publication.event.data.encode(), 1)
            [receipt] = cluster.services[0].store.publish([publication])
            assert proxy.lost == 1
            assert (receipt.position.offset, receipt.outcome) == (offset, "again")
        cluster.settle()
        assert len(client.data("a")) == 3
        assert [data for _, data in redis.ring("a")] == client.data("a")


def test_a_publisher_that_was_told_503_repeats_with_its_key_and_is_told_the_same_id(
    redis: CrashingRedis, proxy: ReplyLosingProxy, make_app: MakeApp
) -> None:
    http = make_app(SSE_REDIS_URL=f"redis://127.0.0.1:{proxy.port}/0", SSE_PUBLISH_KEYS=KEY).test_client()

    def publish_keyed(data: str) -> TestResponse:
        return post(http, {"channel": "a", "data": data}, headers={"Idempotency-Key": "one"})

    post(http, {"channel": "a", "data": "first"})
    proxy.lose(b"the event", 10)  # more than what the store repeats by itself
    refused = publish_keyed("the event")
    assert refused.status_code == 503
    assert refused.json["error"]["code"] == "store_unavailable"
    assert int(refused.headers["Retry-After"]) >= 1
    assert proxy.lost >= 2
    proxy.lose(b"", 0)
    stored = publish_keyed("the event")
    assert (stored.status_code, stored.json) == (201, publish_keyed("the event").json)
    assert [(f"a={position}", data) for position, data in redis.ring("a")][1:] == [(stored.json["ids"][0], "the event")]
    assert publish_keyed("another event").status_code == 422


def test_a_ring_of_the_same_length_but_another_history_is_told(cluster: Cluster, audience: list[Client]) -> None:
    """A backup is put back under open subscriptions; the next announcement has just the offset that is waited for."""
    cluster.publish("a", 5)
    with cluster.redis.client(decode_responses=False) as redis:
        backup = redis.dump("sse:{a}")
        with cluster.ledger.loss():
            redis.delete("sse:{a}")
            cluster.publish("a", 5)
            cluster.settle()
            redis.restore("sse:{a}", 0, backup, replace=True)
    seen = [len(client.resets) for client in audience]
    cluster.publish("a")
    cluster.settle()
    assert [len(client.resets) - count for client, count in zip(audience, seen, strict=True)] == [1] * 4
    assert_connected(audience)


def test_with_redis_away_publishing_answers_503_and_streams_stay(
    cluster: Cluster, redis: CrashingRedis, make_app: MakeApp
) -> None:
    http = make_app(SSE_REDIS_URL=redis.url, SSE_PUBLISH_KEYS=KEY).test_client()

    def publish_keyed(data: str) -> TestResponse:
        return post(http, data, "/sse/publish/a", content_type="text/plain", headers={"Idempotency-Key": data})

    client = Client(cluster.ledger, [http.application.extensions["sse"].hub], ["a"])
    cluster.ledger.watch(http.application.extensions["sse"].store)
    cluster.clients.append(client)
    client.start()
    wait_until(lambda: client.runs, what="the stream is on")
    assert publish_keyed("before").status_code == 201
    redis.kill()
    began = time.monotonic()
    refused = publish_keyed("meanwhile")
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert time.monotonic() - began < 5
    time.sleep(max(0, began + 2 - time.monotonic()))
    redis.start()
    assert publish_keyed("meanwhile").status_code == 201
    cluster.settle()
    assert client.data("a") == ["before", "meanwhile"]
    assert_untroubled([client])
    client.end()
    client.join(5)


@pytest.fixture
def gunicorn(redis: CrashingRedis, tmp_path: Path) -> Iterator[Gunicorn]:
    settings = {"SSE_REDIS_URL": redis.url, "SSE_PUBLIC": "*", "SSE_PUBLISH_KEYS": KEY, "SSE_HEARTBEAT": "3"}
    with Gunicorn(tmp_path, env=settings, workers=2) as gunicorn:
        yield gunicorn


def test_ten_seconds_without_redis_under_gunicorn(redis: CrashingRedis, gunicorn: Gunicorn) -> None:
    url = gunicorn.url

    def publish_keyed(data: str) -> wire.Answer:
        return wire.publish(url, "a", data, key=KEY, idempotency_key=data)

    channels = [("channel", "a"), ("channel", "b")]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        streams = [stack.enter_context(wire.Stream(url, channels)) for _ in range(6)]
        for stream in streams:
            stream.until("sse.heartbeat")
        assert publish_keyed("before").status == 201
        for stream in streams:
            assert [event.data for event in stream.take(1)] == ["before"]
        redis.kill()
        began = time.monotonic()
        held = pool.submit(wire.poll, url, ["a"], last_event_id(streams[0]), timeout=25)
        newcomer = pool.submit(first_blocks, url)
        refused = publish_keyed("meanwhile")
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "store_unavailable"
        waited, blocks = newcomer.result(15)
        assert [block.event for block in blocks] == ["sse.close"]
        assert blocks[0].json() == {"reason": "busy", "retry": blocks[0].retry}
        assert blocks[0].retry
        assert 4.5 < waited < 8
        time.sleep(max(0, began + 10 - time.monotonic()))
        assert not held.done()
        redis.start()
        wait_until(lambda: publish_keyed("meanwhile").status == 201, 5)
        assert [event["data"] for event in held.result(10).json()["events"]] == ["meanwhile"]
        assert publish_keyed("after").status == 201
        for stream in streams:
            blocks = until(stream, "after")
            assert [block.data for block in blocks if block.event == "message"] == ["meanwhile", "after"]
            assert {block.event for block in blocks} <= {"message", "sse.heartbeat"}


def last_event_id(stream: wire.Stream) -> str:
    return next(part for part in stream.last_event_id.split("~") if part.startswith("a="))


def first_blocks(url: str) -> tuple[float, list[wire.Event]]:
    """Return the first blocks of a new stream on a channel that no worker knows, and how long they took."""
    began = time.monotonic()
    with wire.Stream(url, {"channel": "never-heard-of"}) as stream:
        assert stream.status == 200
        blocks = list(stream.events(12))
        return time.monotonic() - began, blocks


def until(stream: wire.Stream, data: str) -> list[wire.Event]:
    """The blocks up to the event with this data, all on the same connection."""
    blocks = []
    for block in stream.events(15):
        blocks.append(block)
        if block.data == data:
            return blocks
    raise AssertionError(f"the stream ended before {data}: {blocks}")
