"""Revocation and expiry of tokens.

All workers learn of a revocation, end the streams and polls that it concerns, and refuse tokens issued before it.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from sse.access.permit import WARNING, Permit
from sse.access.revocations import Kind, Revocations, one_revoked
from sse.access.token import LEEWAY, Grant
from sse.errors import StoreUnavailable
from sse.hub.hub import Hub
from sse.stores import MemoryStore, Revocation, Store, connect
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
    """Return a function that makes revocations, as of one worker each, over one store."""
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
    assert permit.ends_in == -math.inf
    assert 0 < other.ends_in < 700
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


def test_a_list_that_is_none_lets_nobody_in_and_one_that_is_full_takes_no_more(redis_url: str) -> None:
    store = connect(redis_url, ring=5, ring_ttl=60)
    revocations, later = Revocations(store, 3600), Revocations(store, 3600)
    try:
        revocations.revoke("sub", "ann")
        with redis.Redis.from_url(redis_url) as client:
            client.set("sse:{sse.revoked}", "precious")
            with pytest.raises(StoreUnavailable):
                later.refuses(grant("bob"))
            with pytest.raises(StoreUnavailable, match=r"sse\.revoked: WRONGTYPE"):
                revocations.revoke("sub", "bob")
            assert revocations.refuses(grant())  # known revocations stay known
            client.delete("sse:{sse.revoked}")
            client.xadd("sse:{sse.revoked}", {"d": "x" * 1_000_000}, id=f"{2**64 - 1}-{2**64 - 1}")
            with pytest.raises(StoreUnavailable, match=r"sse\.revoked: .*last possible ID"):
                revocations.revoke("sub", "bob")
    finally:
        later.close()
        revocations.close()
        store.close()


# Clocks. Redis's is right, so the others are moved instead: where they are a minute ahead, it is behind by a minute.

Shift = Callable[[float], None]
RIGHT, LATER = 30.0, -LEEWAY - 3.0  # seconds before now: of a token to refuse, and of one to accept


@pytest.fixture
def shift(monkeypatch: pytest.MonkeyPatch) -> Shift:
    """Return a function that moves this process's clock so many seconds from Redis's clock."""
    real, ahead = time.time, [0.0]
    monkeypatch.setattr("time.time", lambda: real() + ahead[0])

    def move(seconds: float) -> None:
        ahead[0] = seconds

    return move


@pytest.fixture
def redis_store(redis_url: str) -> Iterator[Store]:
    store = connect(redis_url, ring=5, ring_ttl=60)
    yield store
    store.close()


@pytest.fixture
def both(redis_store: Store) -> Iterator[MakeRevocations]:
    """Revocations of a worker that began before the test revoked anything, at the first call, and of one later."""
    begun = Revocations(redis_store, 3600)
    begun.count()
    made = [begun]

    def one() -> Revocations:
        made.append(Revocations(redis_store, 3600))
        return made[-1]

    one.begun = begun  # type: ignore[attr-defined]
    yield one
    for revocations in made:
        revocations.close()


def judged(revocations: Revocations) -> tuple[bool, bool]:
    """Return whether credentials from before a revocation are refused, and those from after it."""
    return revocations.refuses(grant(ago=RIGHT)), revocations.refuses(grant(id="2", ago=LATER))


@pytest.mark.parametrize("ahead", [60, 3600, -60, -3600, 40 * 86_400])
def test_a_redis_whose_clock_is_wrong_changes_nothing(both: Any, shift: Shift, ahead: float) -> None:
    shift(ahead)
    both().revoke("sub", "ann")
    both.begun._look()
    assert judged(both.begun) == judged(both()) == (True, False)


@pytest.mark.parametrize("ahead", [60, 3600, -60, -3600])
def test_a_machine_that_revokes_by_a_wrong_clock_changes_nothing(both: Any, shift: Shift, ahead: float) -> None:
    shift(ahead)
    both()._store.revoke('{"sub":"ann"}', 3600)
    shift(0)
    both.begun._look()
    assert judged(both.begun) == judged(both()) == (True, False)


@pytest.mark.parametrize("ahead", [-60, -3600])
def test_a_worker_whose_clock_is_behind_loses_no_revocation(both: Any, shift: Shift, ahead: float) -> None:
    both()._store.revoke('{"sub":"ann"}', 3600)
    issued_right = grant(ago=RIGHT)
    shift(ahead)
    both.begun._look()
    assert both.begun.refuses(issued_right)
    assert both().refuses(issued_right)


@pytest.mark.parametrize("off", [-60, -3600, 3600])
def test_a_clock_of_redis_that_was_wrong_and_has_been_set_changes_nothing(
    both: Any, redis_url: str, off: float
) -> None:
    """The same happens at a failover to a Redis with another clock."""
    now = time.time()
    with redis.Redis.from_url(redis_url) as client:
        entry = {"d": '{"sub":"ann"}', "at": int(now * 1000)}
        client.xadd("sse:{sse.revoked}", entry, id=f"{int((now + off) * 1000)}-0")
    assert judged(both()) == (True, False)
    both().revoke("sub", "bob")  # its id is never below the newest one
    revocations = both()
    assert revocations.refuses(grant("bob", ago=RIGHT))
    assert not revocations.refuses(grant("bob", "2", ago=LATER))


@pytest.mark.parametrize("ahead", [60, -3600])
def test_what_an_older_version_revoked_counts_by_redis_s_clock_and_its_difference(
    both: Any, redis_url: str, shift: Shift, ahead: float
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        for text, at in (("ann", b""), ("bob", b"soon"), ("eve", b"9" * 4000)):
            client.xadd("sse:{sse.revoked}", {"d": json.dumps({"sub": text}), **({"at": at} if at else {})})
    shift(ahead)
    for name in ("ann", "bob", "eve"):
        assert both().refuses(grant(name, ago=RIGHT))
        assert not both().refuses(grant(name, "2", ago=LATER))


def test_a_worker_s_clock_that_was_fast_for_a_while_makes_it_forget_nothing(both: Any, shift: Shift) -> None:
    both().revoke("sub", "ann")
    both.begun._look()
    permit = Permit(both.begun, None, [], ["b"], both.begun.count())
    both().revoke("channel", "b")
    both.begun._look()
    shift(100 * 86_400)  # all that has been revoked is too old to count
    both.begun._pruned_at = -math.inf
    both().revoke("sub", "bob")
    both.begun._look()
    began_meanwhile = both()
    began_meanwhile.count()
    assert both.begun._count == 3
    shift(0)
    for revocations in (both.begun, began_meanwhile):
        revocations._look()
        assert judged(revocations) == (True, False)
        assert revocations.refuses(grant("bob"))
    assert permit.is_over


def test_no_revocation_counts_as_later_than_now(both: Any, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        entry = {"d": '{"sub":"ann"}', "at": 10**15 - 1}
        client.xadd("sse:{sse.revoked}", entry, id=f"{2**64 - 1}-1")
    assert judged(both()) == (True, False)


@pytest.mark.parametrize("ahead", [60, -60])
def test_a_redis_that_tells_no_time_loses_no_revocation_of_a_right_clock(
    redis_url: str, shift: Shift, ahead: float
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.acl_setuser(
            "blind", enabled=True, passwords=["+secret"], keys=["*"], channels=["*"], commands=["+@all", "-time"]
        )
        store = connect(redis_url.replace("//", "//blind:secret@"), ring=5, ring_ttl=60)
        revocations = Revocations(store, 3600)
        try:
            shift(ahead)
            revocations.revoke("sub", "ann")
            assert revocations.refuses(grant(ago=RIGHT))
        finally:
            revocations.close()
            store.close()
            client.acl_deluser("blind")


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
    wait_until(lambda: all(permit.revoked for permit in permits), 3)
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
        assert permit.revoked
    finally:
        revocations.close()


class Counting(MemoryStore):
    """Counts how often it was asked, and answers when the test allows it."""

    def __init__(self) -> None:
        super().__init__(ring=1, ring_ttl=60)
        self.asked = 0
        self.may = threading.Event()
        self.is_away = False

    def revoked(self, after: str = "") -> list[Revocation]:
        self.asked += 1
        self.may.wait(5)
        if self.is_away:
            raise StoreUnavailable("away")
        return super().revoked(after)


@pytest.mark.parametrize("is_away", [False, True])
def test_who_waits_for_a_reading_shares_what_comes_of_it(monkeypatch: pytest.MonkeyPatch, is_away: bool) -> None:
    monkeypatch.setattr("sse.access.revocations._LOOK_EVERY", 60)
    store = Counting()
    store.is_away = is_away
    revocations = Revocations(store, 3600)
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(refuses_or_fails, revocations) for _ in range(8)]
        time.sleep(0.1)
        store.may.set()
        assert [future.result(5) for future in asking] == [is_away] * 8
    assert store.asked == 1
    revocations.close()


def test_a_revocation_waits_for_a_reading_that_begins_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse.access.revocations._LOOK_EVERY", 60)
    store = Counting()
    revocations = Revocations(store, 3600)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(revocations.count)
        wait_until(lambda: store.asked == 1)
        revoking = [pool.submit(revocations.revoke, "sub", f"sub {number}") for number in range(8)]
        wait_until(lambda: store._revocation_count == 8)
        assert not any(future.done() for future in revoking)
        store.may.set()
        for future in (first, *revoking):
            future.result(5)
    assert all(revocations.refuses(grant(f"sub {number}")) for number in range(8))
    revocations.close()


def test_a_thread_that_cannot_be_had_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = MemoryStore(ring=1, ring_ttl=60)
    revocations, hub = Revocations(store, 3600), Hub(store, max_subscribers=1)
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", fail)
        for begin in (revocations.count, hub.start):
            with pytest.raises(RuntimeError):
                begin()
    permit = Permit(revocations, grant(), ["a"])
    assert revocations.count() == 0
    store.revoke('{"sub":"ann"}', 60)
    wait_until(lambda: permit.is_over, 3)
    hub.start()
    assert any(thread.name == "sse-hub" for thread in threading.enumerate())
    hub.close()
    revocations.close()


def test_what_has_ended_is_let_go(make: MakeRevocations) -> None:
    revocations = make()
    permit = Permit(revocations, grant(), ["a"])
    permit.begin(lambda: None)
    permit.end()
    permit.end()
    assert not revocations._watched
    revocations.revoke("sub", "ann")
    assert not permit.revoked


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
        assert notice in ([None] if due else [left - 1, left])
    assert permit.notice() is None
    assert permit.due_in == pytest.approx(20 + LEEWAY, abs=1)
    assert permit.ends_in == pytest.approx(20 + LEEWAY, abs=1)
    assert permit.notice_in == math.inf
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
