"""Services on one namespace with rings of different sizes are told of each other.

A restart with a changed size logs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sse.stores import Feed, RedisStore
from sse.stores.peers import ENTRY_TTL, MAX_ENTRIES, Peers
from tests.conftest import MakeApp
from tests.publishing import publish_to_store
from tests.servers import RedisServer, wait_until

TTL = 3600
RECORD = "sse:{sse.settings}"


def entry(time: int, pair: str, number: int = 0) -> list[Any]:
    return [f"{time}-{number}".encode(), [b"d", pair.encode()]]


def test_the_first_process_of_a_setting_that_is_new_tells_of_the_other() -> None:
    peers = Peers((1000, 60))
    assert peers.look([entry(5, "50 60")]) == [(50, 60)]
    assert peers.is_due


def test_a_process_that_finds_its_own_setting_tells_only_of_another_that_lives_on() -> None:
    peers = Peers((1000, 60))
    record = [entry(6, "1000 60"), entry(5, "50 60")]
    assert peers.look(record) == []
    assert not peers.is_due
    assert peers.look(record) == []
    assert peers.is_due  # no process has since the last look
    record = [entry(8, "50 60"), *record]
    assert peers.look(record) == []  # it may be the last of an old process
    assert peers.look(record) == []
    record = [entry(9, "50 60"), *record]
    assert peers.look(record) == [(50, 60)]
    assert peers.look([entry(10, "50 60"), *record]) == []  # once


def test_a_setting_is_put_on_record_again_unless_another_process_of_it_has() -> None:
    peers = Peers((1000, 60))
    assert peers.look([]) == []
    assert peers.is_due
    peers.added(b"7-0")
    assert peers.look([entry(7, "1000 60")]) == []
    assert peers.is_due
    peers.added(b"8-0")
    assert peers.look([entry(8, "1000 60", 1), entry(8, "1000 60")]) == []
    assert not peers.is_due


def test_what_is_too_old_or_written_by_others_is_passed_over() -> None:
    now = ENTRY_TTL * 1000 + 10
    record = [
        entry(now, "500 60"),
        [b"x-1", [b"d", b"2 60"]],
        [b"9-1", [b"d"]],
        [b"9-1", [b"d", b"3 60", b"e", b""]],
        entry(now, "4 sixty"),
        entry(now, "5 " + "6" * 4000),
        entry(10, "6 60"),
        entry(9, "7 60"),
    ]
    assert Peers((1000, 60)).look(record) == [(500, 60), (6, 60)]


# Over a real Redis


class Process:
    """A store as one process has it, and its log. `serve` gives it readers."""

    def __init__(self, url: str, caplog: pytest.LogCaptureFixture, ring: int, ttl: int, namespace: str) -> None:
        self.store = RedisStore(url, ring=ring, ring_ttl=ttl, namespace=namespace)
        self._caplog = caplog
        self._here = f"SSE_RING is {ring} and SSE_RING_TTL {ttl} here"
        self._feed: Feed | None = None

    @property
    def told(self) -> list[str]:
        return [message for message in self._caplog.messages if message.startswith(self._here)]

    def serve(self, looks: int = 1) -> None:
        self._feed = self._feed or self.store.feed()
        for _ in range(looks):
            self._feed.read(0)
            self.store.look_soon()

    def end(self) -> None:
        if self._feed:
            self._feed.close()
        self.store.close()


@pytest.fixture
def process(redis_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def begin(ring: int, *, ttl: int = TTL, url: str = redis_url, namespace: str = "sse") -> Process:
        made.append(Process(url, caplog, ring, ttl, namespace))
        return made[-1]

    with caplog.at_level(logging.WARNING, "sse"):
        yield begin
    for one in made:
        one.end()


@pytest.fixture
def client(shared_redis: RedisServer, redis_url: str) -> Iterator[Any]:
    with shared_redis.client() as client:
        yield client


@pytest.mark.parametrize(("ring", "ttl"), [(50, TTL), (1000, 60)])
def test_the_second_service_is_told_at_its_check_and_the_first_within_its_next_looks(
    process: Callable[..., Process], ring: int, ttl: int
) -> None:
    first, second = process(1000), process(ring, ttl=ttl)
    first.serve()
    assert first.told == []
    second.serve()
    (message,) = second.told
    assert f"but 1000 and {TTL} elsewhere on namespace sse" in message
    assert "give each service an SSE_NAMESPACE of its own" in message
    for _ in range(5):
        first.serve()
        second.serve()
    (message,) = first.told
    assert f"but {ring} and {ttl} elsewhere" in message
    assert len(second.told) == 1
    assert publish_to_store(first.store, "a", "x")
    assert publish_to_store(second.store, "a", "x")


def test_processes_with_the_same_settings_and_other_namespaces_and_databases_are_not_told(
    process: Callable[..., Process], redis_url: str
) -> None:
    processes = [
        *(process(1000) for _ in range(3)),
        process(50, namespace="other"),
        process(50, url=redis_url.replace("/0", "/1")),
    ]
    for _ in range(3):
        for one in processes:
            one.serve()
    assert not any(one.told for one in processes)


def test_a_restart_with_a_changed_setting_tells_once_and_is_quiet_when_the_old_processes_are_gone(
    process: Callable[..., Process],
) -> None:
    old = [process(1000) for _ in range(2)]
    for one in old:
        one.serve(2)
    new = [process(50) for _ in range(3)]
    new[0].serve()
    old[0].end()
    for one in new[1:]:
        one.serve()
    old[1].serve()  # a last look
    old[1].end()
    later = process(50)
    for _ in range(3):
        for one in [*new, later]:
            one.serve()
    assert len(new[0].told) == 1  # of all these, which have the same words
    assert old[0].told == []


def test_a_script_only_reads_and_is_told_each_time(process: Callable[..., Process], client: Any) -> None:
    process(1000).serve()
    before = client.xrange(RECORD)
    for count in (1, 2, 3):
        script = process(50)
        publish_to_store(script.store, "a", "x")
        publish_to_store(script.store, "b", "x")
        assert len(script.told) == count
    assert client.xrange(RECORD) == before


def test_a_publisher_without_readers_is_told_when_a_service_comes_later(
    process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, service = process(50), process(1000)
    publish_to_store(publisher.store, "a", "x")
    service.serve()
    publish_to_store(publisher.store, "a", "x")
    assert publisher.told == []  # it has looked just now
    monkeypatch.setattr("sse.stores.redis._LOOK_LATE", 0)
    for _ in range(5):
        publisher.store.look_soon()
        publish_to_store(publisher.store, "a", "x")
        service.serve()
    assert len(publisher.told) == 1


def test_the_record_stays_small_and_expires(process: Callable[..., Process], client: Any) -> None:
    service = process(1000)
    service.serve(looks=2 * MAX_ENTRIES)
    assert 1 <= client.xlen(RECORD) <= MAX_ENTRIES
    assert ENTRY_TTL - 10 <= client.ttl(RECORD) <= ENTRY_TTL


@pytest.mark.parametrize("value", ["a string", "an entry of others"])
def test_what_others_wrote_there_is_nobody_s_fault(process: Callable[..., Process], client: Any, value: str) -> None:
    if value == "a string":
        client.set(RECORD, value)
    else:
        client.xadd(RECORD, {"d": value})
    service = process(1000)
    service.serve(3)
    assert publish_to_store(service.store, "a", "x")
    assert service.told == []
    if value != "a string":
        assert client.xrevrange(RECORD, count=1)[0][1] == {"d": f"1000 {TTL}"}


def test_the_documented_rights_are_enough(process: Callable[..., Process], client: Any, redis_url: str) -> None:
    rights = (
        "+info +time +ping +xadd +xrange +xrevrange +expire +exists +del +get +set +hmget +hset +zadd +zcard +zrem "
        "+zremrangebyscore +publish +subscribe +eval +evalsha"
    )
    client.execute_command(*f"ACL SETUSER pusher on >secret resetkeys ~sse:* resetchannels &sse:* {rights}".split())
    try:
        process(1000).serve()
        service = process(50, url=redis_url.replace("//", "//pusher:secret@"))
        service.serve()
        assert len(service.told) == 1
        assert client.xlen(RECORD) == 2
    finally:
        client.execute_command("ACL", "DELUSER", "pusher")


def test_two_apps_in_one_process_are_told(make_app: MakeApp, redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sse"):
        for ring in (1000, 50):
            service = make_app(SSE_REDIS_URL=redis_url, SSE_RING=ring).extensions["sse"]
            service.hub.start()
            wait_until(lambda service=service: service.store._peers._seen, 5)
    assert len([message for message in caplog.messages if "but 1000 and 86400 elsewhere" in message]) == 1
