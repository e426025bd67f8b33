"""Revocation and expiry: known to all workers, ending what runs, and refusing what was issued before."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from sse.errors import StoreUnavailable
from sse.permit import WARNING, Kind, Permit, Revocations, one_revoked
from sse.stores import MemoryStore, Revocation, Store, connect
from sse.token import LEEWAY, Grant
from sse.wire import encode_control
from tests.servers import RedisServer, wait_until
from tests.tokens import claims, signed


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


MakeRevocations = Callable[[], Revocations]


@pytest.fixture
def store(store_url: str | None) -> Iterator[Store]:
    store = connect(store_url, ring=5, ring_ttl=60)
    yield store
    store.close()


@pytest.fixture
def make(store: Store) -> Iterator[MakeRevocations]:
    """Revocations as those of one worker each, over one store."""
    made: list[Revocations] = []

    def one() -> Revocations:
        made.append(Revocations(store, 3600))
        return made[-1]

    yield one
    for revocations in made:
        revocations.close()


def grant(sub: str = "ann", id: str = "1", ago: float = 60) -> Grant:
    return Grant(sub, ("a",), (), id, time.time() - ago, time.time() + 600, time.time() + 600)


@pytest.mark.parametrize(("kind", "value"), [("sub", "ann"), ("token", "1"), ("channel", "a")])
def test_another_worker_ends_what_is_revoked_within_two_seconds(make: MakeRevocations, kind: Kind, value: str) -> None:
    here, there = make(), make()
    permit, other = Permit(there, grant(), ["a"]), Permit(there, grant("bob", "2"), ["b"])
    woken: list[str] = []
    permit.begin(lambda: woken.append("ann"))
    other.begin(lambda: woken.append("bob"))
    here.revoke(kind, value)
    wait_until(lambda: woken == ["ann"], 2)
    assert permit.is_over
    assert not other.is_over


@pytest.mark.parametrize(("kind", "value"), [("sub", "ann"), ("token", "1"), ("channel", "a")])
def test_what_was_issued_before_is_refused_from_then_on(make: MakeRevocations, kind: Kind, value: str) -> None:
    make().revoke(kind, value)
    revocations = make()  # a worker that starts later
    assert revocations.refuses(grant(), ["a"])
    assert not revocations.refuses(grant("bob", "2"), ["b"])
    again = grant(id="1" if kind != "token" else "3", ago=-LEEWAY - 1)
    assert not revocations.refuses(again, ["a"])


def test_a_token_without_an_id_or_a_time_is_refused_with_its_subject(make: MakeRevocations) -> None:
    revocations = make()
    revocations.revoke("sub", "ann")
    assert revocations.refuses(Grant("ann"))
    assert not revocations.refuses(Grant(""))


def test_a_token_is_refused_for_good_whenever_it_says_it_was_issued(make: MakeRevocations) -> None:
    revocations = make()
    revocations.revoke("token", "1")
    assert revocations.refuses(grant(ago=-1000))


def test_a_stream_that_began_while_its_token_was_revoked_is_ended_at_once(make: MakeRevocations) -> None:
    revocations = make()
    permit = Permit(revocations, grant(id=""), ["a"])
    revocations.revoke("sub", "ann")
    permit.begin(lambda: None)
    assert permit.is_over


def test_who_reads_by_the_rule_is_ended_with_the_channel_and_may_come_back(make: MakeRevocations) -> None:
    revocations = make()
    permit = Permit(revocations, None, [], ["a"], revocations.count())
    permit.begin(lambda: None)
    revocations.revoke("channel", "a")
    assert permit.is_over
    again = Permit(revocations, None, [], ["a"], revocations.count())
    again.begin(lambda: None)
    assert not again.is_over


def test_who_reads_by_the_rule_is_ended_also_by_what_came_while_the_rule_was_asked(make: MakeRevocations) -> None:
    here, there = make(), make()
    here.revoke("channel", "b")
    decided = there.count()
    here.revoke("channel", "a")
    permit = Permit(there, None, [], ["a"], decided)
    permit.begin(lambda: None)
    wait_until(lambda: permit.is_over, 2)
    later = make()  # of a worker that starts now
    again = Permit(later, None, [], ["a"], later.count())
    again.begin(lambda: None)
    assert not again.is_over


def test_a_clock_that_goes_back_hides_no_revocation(
    make: MakeRevocations, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    revocations = make()
    revocations.revoke("channel", "a")
    permit = Permit(revocations, None, [], ["a"], revocations.count())
    permit.begin(lambda: None)
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: now - 3)
        revocations.revoke("channel", "a")
    assert permit.is_over


def test_a_list_that_has_lost_its_end_revokes_nothing_anew(redis_url: str) -> None:
    store = connect(redis_url, ring=5, ring_ttl=60)
    revocations = Revocations(store, 3600)
    try:
        for channel in "aab":
            revocations.revoke("channel", channel)
        permit = Permit(revocations, None, [], ["a"], revocations.count())
        with redis.Redis.from_url(redis_url) as client:
            ((last, _),) = client.xrevrange("sse:{sse.revoked}", count=1)
            client.xdel("sse:{sse.revoked}", last)
        revocations._look()
        assert not permit.is_over
        revocations.revoke("channel", "a")
        assert permit.is_over
    finally:
        revocations.close()
        store.close()


def test_a_list_that_has_another_end_since_a_failover_is_read_anew(redis_url: str) -> None:
    store = connect(redis_url, ring=5, ring_ttl=60)
    revocations = Revocations(store, 3600)
    try:
        revocations.revoke("sub", "bob")
        revocations.revoke("channel", "b")
        permit = Permit(revocations, grant(), ["a"])
        by_rule = Permit(revocations, None, [], ["b"], revocations.count())
        for each in permit, by_rule:
            each.begin(lambda: None)
        with redis.Redis.from_url(redis_url) as client:
            client.delete("sse:{sse.revoked}")
            for number, text in enumerate(('{"sub":"ann"}', '{"channel":"b"}')):
                client.xadd("sse:{sse.revoked}", {"d": text}, id=f"{int(time.time() * 1000) - 2000}-{number}")
        wait_until(lambda: permit.is_over and by_rule.is_over, 3)
        assert revocations.refuses(grant("bob", "2"))
    finally:
        revocations.close()
        store.close()


def test_one_that_cannot_be_woken_is_in_nobody_s_way(
    make: MakeRevocations, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = make(), make()
    permits = [Permit(there, grant(), ["a"]) for _ in range(20)]
    for permit in permits[:10] + permits[11:]:
        permit.begin(lambda: None)

    def fail() -> None:
        raise TypeError

    permits[10].begin(fail)
    here.revoke("sub", "ann")
    wait_until(lambda: all(permit.ended for permit in permits), 3)
    assert "could not be woken" in caplog.text


def test_what_was_read_before_the_store_went_away_counts() -> None:
    class Halting(MemoryStore):
        def revoked(self, after: str = "") -> list[Revocation]:
            if after:
                raise StoreUnavailable("away")
            return super().revoked()

    store = Halting(ring=1, ring_ttl=60)
    revocations = Revocations(store, 3600)
    try:
        permit = Permit(revocations, grant(), ["a"])
        permit.begin(lambda: None)
        with pytest.raises(StoreUnavailable):
            revocations.revoke("sub", "ann")
        assert permit.ended
    finally:
        revocations.close()


def test_what_has_ended_is_let_go(make: MakeRevocations) -> None:
    revocations = make()
    permit = Permit(revocations, grant(), ["a"])
    permit.begin(lambda: None)
    permit.end()
    permit.end()
    assert not revocations._permits
    revocations.revoke("sub", "ann")
    assert not permit.ended


def test_a_list_that_others_wrote_into_is_read_as_far_as_it_makes_sense(make: MakeRevocations, store: Store) -> None:
    for text in (
        "",
        "x",
        "[]",
        "{}",
        '{"sub": 5}',
        '{"role": "x"}',
        '{"sub": "x", "token": "y"}',
        "null",
        "[" * 100_000,
    ):
        store.revoke(text, 60)
    store.revoke(json.dumps({"sub": "ann"}), 60)
    revocations = make()
    assert revocations.refuses(grant())
    assert not revocations.refuses(grant("x", "y"))


def test_a_revocation_is_forgotten_when_no_token_from_before_it_can_live(store: Store) -> None:
    revocations = Revocations(store, -100)
    try:
        revocations.revoke("sub", "ann")
        assert not revocations.refuses(grant())
    finally:
        revocations.close()


def test_what_is_revoked_while_redis_was_away_is_known_when_it_is_back(redis_server: RedisServer) -> None:
    stores = [connect(redis_server.url, ring=5, ring_ttl=60) for _ in range(2)]
    here, there = (Revocations(store, 3600) for store in stores)
    try:
        permit = Permit(there, grant(), ["a"])
        assert not there.refuses(grant())
        permit.begin(lambda: None)
        redis_server.kill()
        with pytest.raises(StoreUnavailable):
            here.revoke("sub", "ann")
        time.sleep(1.5)
        redis_server.start()
        here.revoke("sub", "ann")
        wait_until(lambda: permit.is_over, 4)
    finally:
        for revocations, store in zip((here, there), stores, strict=True):
            revocations.close()
            store.close()


def test_a_worker_that_cannot_read_the_list_lets_nobody_in(redis_server: RedisServer) -> None:
    redis_server.kill()
    store = connect(redis_server.url, ring=5, ring_ttl=60)
    revocations = Revocations(store, 3600)
    try:
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                revocations.refuses(grant())
        redis_server.start()
        wait_until(lambda: not refuses_or_fails(revocations), 5)
    finally:
        revocations.close()
        store.close()


def refuses_or_fails(revocations: Revocations) -> bool:
    try:
        return revocations.refuses(grant())
    except StoreUnavailable:
        return True


def test_the_client_is_warned_once_and_in_time(make: MakeRevocations) -> None:
    now = time.time()
    for left, due in ((WARNING + 30, 30), (20, 0)):
        permit = Permit(make(), Grant("ann", ends_at=now + left + LEEWAY), ["a"])
        assert max(permit.due_in, 0) == pytest.approx(due, abs=1)
        notice = permit.notice()
        assert notice in ([b""] if due else [encode_control("sse.auth", {"expires": n}) for n in (left - 1, left)])
    assert permit.notice() == b""
    assert permit.due_in == pytest.approx(20 + LEEWAY, abs=1)
    assert Permit(make(), None, [], ["a"]).due_in > 10**9


def test_one_thing_is_revoked_at_a_time() -> None:
    assert one_revoked(sub="ann", channel=None) == ("sub", "ann")
    for given in ({}, {"sub": None}, {"sub": ""}, {"sub": "a", "channel": "b"}):
        with pytest.raises(ValueError, match="give one of"):
            one_revoked(**given)
    with pytest.raises(ValueError, match="sub is 42; give a string"):
        one_revoked(sub=42)
    with pytest.raises(ValueError, match="give its id, the claim jti"):
        one_revoked(token=signed(claims()))
