"""The presence of a channel in every store: who is there, who has joined and left, and what a lost worker leaves."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from sse.errors import StoreUnavailable
from sse.stores import connect
from sse.stores.memory import MemoryStore
from sse.stores.presence import (
    ABSENCE_SECONDS,
    RECORD_SECONDS,
    Attendance,
    Outcome,
    PresenceStore,
    Report,
    connection_key,
    is_client,
    sub_of,
)
from tests.servers import ROOT, RedisServer, wait_until


class World:
    """The presence of a store, and a way to move its time."""

    def __init__(self, url: str | None, client: Any) -> None:
        self._client = client
        self._now = 1000.0
        self._store = (
            MemoryStore(ring=5, ring_ttl=60, clock=lambda: self._now)
            if url is None
            else connect(url, ring=5, ring_ttl=60)
        )
        self.presence: PresenceStore = self._store.presence

    def report(self, *arguments: Any, **options: Any) -> Outcome:
        (outcome,) = self.presence.report([Report(*arguments, **options)])
        assert isinstance(outcome, Outcome)
        return outcome

    def advance(self, seconds: float) -> None:
        """Have the times in the store be `seconds` earlier, or its clock later."""
        self._now += seconds
        if self._client:
            for name in ("records", "leaving"):
                for item, score in self._client.zrange(f"sse:{{a}}:present:{name}", 0, -1, withscores=True):
                    self._client.zadd(f"sse:{{a}}:present:{name}", {item: score - seconds * 1000})

    def lose(self) -> None:
        """Lose all data."""
        if self._client:
            self._client.flushall()
        else:
            self.presence.__init__(lambda: self._now)  # type: ignore[misc]

    def close(self) -> None:
        self._store.close()


@pytest.fixture
def world(store_url: str | None, shared_redis: RedisServer) -> Iterator[World]:
    with shared_redis.client() as client:
        world = World(store_url, client if store_url else None)
        yield world
        world.close()


ANN, BOB = connection_key("ann"), connection_key("bob")
PAGE = connection_key("ann", "the-page-of-ann")
NOBODY = connection_key("")


def test_a_key_is_that_of_a_subject_and_of_its_client() -> None:
    keys = [ANN, PAGE, connection_key("bob", "the-page-of-ann"), NOBODY, connection_key("a=b\n", "client=1")]
    assert len(set(keys)) == 5
    assert [sub_of(key) for key in keys] == ["ann", "ann", "bob", "", "a=b\n"]
    assert [is_client(key) for key in keys] == [False, True, True, False, True]
    assert "the-page" not in PAGE


def test_a_channel_without_presence_is_empty(world: World) -> None:
    assert world.presence.count("a") == 0
    assert world.presence.read("a") == Attendance(0, {})


def test_connections_are_counted_over_all_records_and_a_client_once(world: World) -> None:
    world.report("a", "w.1", 1, {ANN: 2, PAGE: 1, NOBODY: 3})
    world.report("a", "v.1", 1, {ANN: 1, PAGE: 1, BOB: 1})
    world.report("b", "v.2", 1, {BOB: 1})
    assert world.presence.read("a") == Attendance(8, {"ann": 4, "bob": 1})
    assert world.presence.count("a") == 8
    world.report("a", "w.1", 2, {PAGE: 0, NOBODY: 1})
    assert world.presence.read("a") == Attendance(6, {"ann": 4, "bob": 1})
    world.report("a", "v.1", 2, {PAGE: 0, BOB: 0})
    assert world.presence.read("a") == Attendance(4, {"ann": 3})


def test_a_client_that_changes_workers_counts_once_in_either_order(world: World) -> None:
    world.report("a", "w.1", 1, {PAGE: 1})
    world.report("a", "v.1", 1, {PAGE: 1})
    assert world.report("a", "w.1", 2, {PAGE: 0}).leaving == 0
    assert world.presence.count("a") == 1
    assert world.report("a", "v.1", 2, {PAGE: 0}).leaving == 1
    outcome = world.report("a", "w.1", 3, {PAGE: 1})
    assert (outcome.leaving, outcome.joined, world.presence.count("a")) == (0, [], 1)


def test_a_subject_joins_with_its_first_connection_and_leaves_after_its_absence(world: World) -> None:
    assert world.report("a", "w.1", 1, {ANN: 1, NOBODY: 1}).joined == ["ann"]
    assert world.report("a", "v.1", 1, {ANN: 1, PAGE: 1, BOB: 1}).joined == ["bob"]
    assert world.report("a", "w.1", 2, {ANN: 0}).leaving == 0
    assert world.report("a", "v.1", 2, {ANN: 0, PAGE: 0}).leaving == 1
    for number in (3, 4, 5):
        world.advance(9)
        assert world.report("a", "v.1", number, {}).left == []
        world.report("a", "w.1", number, {})
    world.advance(4)
    assert world.report("a", "w.1", 6, {}) == Outcome(True, world.report("a", "v.1", 6, {}).origin, [], ["ann"])
    assert world.report("a", "w.1", 7, {ANN: 1}).joined == ["ann"]


def test_a_subject_that_is_back_in_time_has_neither_left_nor_joined(world: World) -> None:
    world.report("a", "w.1", 1, {ANN: 1})
    world.report("a", "w.1", 2, {ANN: 0})
    world.advance(8)
    assert world.report("a", "v.1", 1, {ANN: 1}).joined == []
    for number in range(2, 8):
        world.advance(8)
        assert world.report("a", "v.1", number, {}).left == []
    assert world.presence.read("a") == Attendance(1, {"ann": 1})


def test_a_report_that_comes_twice_changes_nothing(world: World) -> None:
    assert world.report("a", "w.1", 1, {ANN: 1}).joined == ["ann"]
    assert world.report("a", "w.1", 1, {ANN: 1}).joined == []
    world.report("a", "w.1", 2, {ANN: 3})
    assert world.report("a", "w.1", 2, {ANN: 3}).is_known
    assert world.presence.count("a") == 3


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_report_that_comes_late_or_after_one_that_was_lost_is_not_known(world: World, number: int) -> None:
    for count in (1, 2, 3):
        world.report("a", "w.1", count, {ANN: count})
    assert world.report("a", "w.1", number, {ANN: 9, BOB: 1}).is_known is False
    assert world.presence.read("a") == Attendance(3, {"ann": 3})


def test_a_new_record_takes_the_place_of_the_worker_s_others(world: World) -> None:
    world.report("a", "w.1", 1, {ANN: 1, BOB: 1, PAGE: 1})
    outcome = world.report("a", "w.3", 1, {ANN: 1, PAGE: 1})
    assert (outcome.joined, outcome.leaving) == ([], 1)
    assert world.presence.read("a") == Attendance(2, {"ann": 2})
    assert not world.report("a", "w.1", 2, {BOB: 1}).is_known
    assert not world.report("a", "w.2", 1, {BOB: 1}).is_known
    assert world.presence.read("a") == Attendance(2, {"ann": 2})


def test_what_a_dead_worker_left_behind_is_gone_after_20_seconds_for_those_who_ask(world: World) -> None:
    world.report("a", "w.1", 1, {ANN: 1, NOBODY: 1})
    world.advance(RECORD_SECONDS - 1)
    assert world.presence.count("a") == 2
    world.advance(2)
    assert world.presence.read("a") == Attendance(0, {})
    assert world.presence.count("a") == 0


def test_another_worker_removes_it_and_hears_who_has_left(world: World) -> None:
    world.report("a", "w.1", 1, {ANN: 1, PAGE: 1})
    world.report("a", "v.1", 1, {BOB: 1})
    left = []
    for number in range(2, 10):
        world.advance(8)
        left += [(number, sub) for sub in world.report("a", "v.1", number, {}).left]
    assert left == [(8, "ann")]  # at 56 s: the record ends before 24 s, and she has left 30 s after that
    assert world.presence.read("a") == Attendance(1, {"bob": 1})


def test_a_frozen_worker_that_wakes_up_reports_anew(world: World) -> None:
    world.report("a", "w.1", 1, {ANN: 1})
    world.report("a", "v.1", 1, {BOB: 1})
    world.advance(15)
    world.report("a", "v.1", 2, {})
    world.advance(8)
    assert world.report("a", "v.1", 3, {}).leaving == 1
    outcome = world.report("a", "w.1", 2, {PAGE: 1})
    assert not outcome.is_known
    assert world.presence.count("a") == 1
    assert world.report("a", "w.2", 1, {ANN: 1, PAGE: 1}, outcome.origin).joined == []
    assert world.presence.read("a") == Attendance(3, {"ann": 2, "bob": 1})


def test_one_that_sleeps_until_its_subjects_have_left_has_them_join_again(world: World) -> None:
    origin = world.report("a", "w.1", 1, {ANN: 1}).origin
    left: list[str] = []
    for number in range(1, 9):
        left += world.report("a", "v.1", number, {BOB: 1}).left
        world.advance(9)
    assert left == ["ann"]
    assert not world.report("a", "w.1", 2, {}, origin).is_known
    assert world.report("a", "w.2", 1, {ANN: 1}, origin).joined == ["ann"]


def test_after_a_loss_of_all_data_nobody_joins_again(world: World) -> None:
    origin = world.report("a", "w.1", 1, {ANN: 1}).origin
    world.lose()
    outcome = world.report("a", "w.1", 2, {PAGE: 1}, origin)
    assert (outcome.is_known, outcome.origin) == (False, "")
    outcome = world.report("a", "w.2", 1, {ANN: 1, PAGE: 1}, origin)
    assert (outcome.is_known, outcome.joined) == (True, [])
    assert outcome.origin not in ("", origin)
    assert world.report("a", "w.2", 2, {BOB: 1}, outcome.origin).joined == ["bob"]
    assert world.presence.read("a") == Attendance(3, {"ann": 2, "bob": 1})


def test_if_nobody_could_report_for_long_those_who_are_due_have_20_seconds_more(world: World) -> None:
    world.report("a", "w.1", 1, {ANN: 1, BOB: 1})
    world.report("a", "w.1", 2, {ANN: 0, BOB: 0})
    world.advance(ABSENCE_SECONDS + 5)
    assert world.report("a", "w.2", 1, {}).left == []
    assert world.report("a", "v.1", 1, {BOB: 1}).joined == []
    left: list[str] = []
    for number in range(2, 5):
        world.advance(8)
        left += world.report("a", "v.1", number, {}).left
    assert left == ["ann"]


def test_the_last_report_removes_the_record(world: World) -> None:
    world.report("a", "w.1", 1, {ANN: 1, BOB: 1})
    outcome = world.report("a", "w.1", 2, {}, is_last=True)
    assert (outcome.is_known, outcome.leaving) == (True, 2)
    assert world.presence.count("a") == 0
    assert not world.report("a", "w.1", 3, {ANN: 1}).is_known


def test_several_reports_on_a_channel_in_one_call_keep_their_order(world: World) -> None:
    found = world.presence.report(
        [
            Report("a", "w.1", 1, {ANN: 1}),
            Report("a", "w.1", 2, {ANN: 2}),
            Report("b", "w.2", 1, {ANN: 1}),
            Report("a", "w.1", 3, {ANN: 0}),
        ]
    )
    assert [outcome.joined for outcome in found if isinstance(outcome, Outcome)] == [["ann"], [], ["ann"], []]
    assert (world.presence.count("a"), world.presence.count("b")) == (0, 1)


def test_random_reports_of_five_workers_give_the_sums_of_a_model(world: World) -> None:
    chance = random.Random(random.SystemRandom().randrange(2**32))
    keys = [connection_key(sub, client) for sub in ("", "ann", "bob", "eve") for client in ("", "one-page", "two-page")]
    model: dict[str, dict[str, int]] = {}
    numbers: Counter[str] = Counter()
    for step in range(400):
        worker = chance.choice("vwxyz")
        name = f"{worker}.{numbers[worker + '#']}"
        if chance.random() < 0.1 and name in model:
            world.report("a", name, numbers[name] + 1, {}, is_last=True)
            del model[name]
            numbers[worker + "#"] += 1
            continue
        if chance.random() < 0.1:  # a report has failed: a new record
            model.pop(name, None)
            numbers[worker + "#"] += 1
            name = f"{worker}.{numbers[worker + '#']}"
        changes = {
            key: chance.randrange(2 if is_client(key) else 4) for key in chance.sample(keys, chance.randrange(5))
        }
        numbers[name] += 1
        assert world.report("a", name, numbers[name], changes).is_known
        record = model.setdefault(name, {})
        record.update(changes)
        if step % 10 == 0:
            assert world.presence.read("a") == expected(model.values())


def expected(records: Sequence[dict[str, int]] | Any) -> Attendance:
    sums: Counter[str] = Counter()
    clients = set()
    for record in records:
        for key, value in record.items():
            if is_client(key):
                clients |= {key} if value else set()
            else:
                sums[sub_of(key)] += value
    sums.update(map(sub_of, clients))
    return Attendance(sums.total(), {sub: count for sub, count in sums.items() if sub and count})


# Redis alone


@pytest.fixture
def redis_world(redis_url: str, shared_redis: RedisServer) -> Iterator[tuple[World, Any]]:
    with shared_redis.client() as client:
        world = World(redis_url, client)
        yield world, client
        world.close()


def test_a_lost_record_of_thousands_is_removed_in_small_steps(redis_world: tuple[World, Any]) -> None:
    world, client = redis_world
    for number in range(8):
        world.report("a", "w.1", number + 1, {connection_key(f"u{number}-{index}"): 1 for index in range(250)})
    world.report("a", "v.1", 1, {ANN: 1})
    world.advance(RECORD_SECONDS + 1)
    outcome = world.report("a", "v.1", 2, {})
    assert outcome.has_more
    assert 1500 < client.hlen("sse:{a}:present:at:w.1") <= 1752  # of 250 fields, one may be that of the record itself
    assert world.presence.count("a") == 1
    assert client.exists("sse:{a}:present:at:w.1") == 0
    assert client.zcard("sse:{a}:present:leaving") == 2000


@pytest.mark.parametrize("way", ["lost", "replaced"])
def test_a_record_of_which_a_part_is_removed_is_not_known_any_more(redis_world: tuple[World, Any], way: str) -> None:
    world, client = redis_world
    for number in range(8):
        world.report("a", "w.1", number + 1, {connection_key(f"u{number}-{index}"): 1 for index in range(250)})
    if way == "lost":
        world.report("a", "v.1", 1, {ANN: 1})
        world.advance(RECORD_SECONDS + 1)
        assert world.report("a", "v.1", 2, {}).has_more
    else:
        assert world.report("a", "w.2", 1, {ANN: 1}).has_more
    assert client.hlen("sse:{a}:present:at:w.1") > 1000
    assert not world.report("a", "w.1", 9, {BOB: 1}).is_known
    assert not world.report("a", "w.1", 1, {BOB: 1}).is_known
    assert world.presence.read("a") == Attendance(1, {"ann": 1})


def test_the_last_report_of_a_record_of_thousands_is_the_last(redis_world: tuple[World, Any]) -> None:
    world, _ = redis_world
    for number in range(4):
        world.report("a", "w.1", number + 1, {connection_key(f"u{number}-{index}"): 1 for index in range(250)})
    assert world.report("a", "w.1", 5, {}, is_last=True).is_known
    assert not world.report("a", "w.1", 6, {ANN: 1}).is_known
    assert world.presence.count("a") == 0


def test_all_keys_end_by_themselves(redis_world: tuple[World, Any]) -> None:
    world, client = redis_world
    world.report("a", "w.1", 1, {ANN: 1, BOB: 1})
    world.report("a", "w.1", 2, {BOB: 0})
    keys = client.keys("*")
    assert len(keys) == 4
    assert all(0 < client.ttl(key) <= 120 for key in keys)


def test_a_key_of_another_kind_is_a_fault_of_its_channel_alone(redis_world: tuple[World, Any]) -> None:
    world, client = redis_world
    client.set("sse:{a}:present", "mine")
    found = world.presence.report([Report("a", "w.1", 1, {ANN: 1}), Report("b", "w.2", 1, {ANN: 1})])
    assert isinstance(found[0], StoreUnavailable)
    assert "presence of channel a" in str(found[0])
    assert isinstance(found[1], Outcome)
    calls: list[Callable[[str], object]] = [world.presence.count, world.presence.read]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="presence of channel a"):
            call("a")
    assert wait_until(lambda: world.presence.count("b") == 1)


PAGE_OF_RIGHTS = (ROOT / "docs" / "operating.md").read_text()
RIGHTS = re.findall(r"[~&+]\S+", PAGE_OF_RIGHTS.partition("An ACL user needs")[2].split("`")[1])
OF_PRESENCE = re.findall(r"\+\w+", " ".join(PAGE_OF_RIGHTS.partition("SSE_PRESENCE needs")[2].split("`")[1:4:2]))


def use_all(presence: PresenceStore, client: Any) -> list[Outcome | StoreUnavailable]:
    """Take every way through the script."""
    found = presence.report([Report("a", "w.1", 1, {ANN: 1, PAGE: 1, NOBODY: 2}), Report("a", "v.1", 1, {PAGE: 1})])
    client.zadd("sse:{a}:present:records", {"w.1": 0})
    found += presence.report([Report("a", "v.1", 2, {BOB: 1}), Report("a", "v.2", 1, {PAGE: 1, BOB: 1})])
    for item in client.zrange("sse:{a}:present:leaving", 0, -1):
        client.zadd("sse:{a}:present:leaving", {item: 0})
    found += presence.report([Report("a", "v.2", 2, {BOB: 0}), Report("a", "v.2", 3, {}, is_last=True)])
    presence.read("a")
    return found


def test_a_record_that_was_deleted_by_hand_comes_back_with_an_end(redis_world: tuple[World, Any]) -> None:
    """It is shut when its worker begins a new one, and removed only after others."""
    world, client = redis_world
    world.report("a", "0.1", 1, {connection_key(f"s{number}"): 1 for number in range(300)})
    world.report("a", "w.1", 1, {ANN: 1})
    client.zadd("sse:{a}:present:records", {"0.1": 0})
    client.delete("sse:{a}:present:at:w.1")
    assert world.report("a", "w.2", 1, {ANN: 1}).has_more
    assert all(client.ttl(key) > 0 for key in client.keys("sse:{a}:present*"))


def test_the_rights_of_the_docs_are_those_that_presence_needs(redis_url: str, shared_redis: RedisServer) -> None:
    assert {"+hrandfield", "+time", "+zscore"} <= {*OF_PRESENCE}
    with shared_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "present", "on", ">secret", "-@all", *RIGHTS, *OF_PRESENCE)
        store = connect(redis_url.replace("redis://", "redis://present:secret@"), ring=5, ring_ttl=60)
        try:
            assert all(isinstance(outcome, Outcome) for outcome in use_all(store.presence, client))
            assert store.presence.count("a") == 0
            for right in OF_PRESENCE:
                client.flushall()
                client.execute_command("ACL", "SETUSER", "present", f"-{right[1:]}")
                with pytest.raises(
                    StoreUnavailable,
                    match=r"presence of channel a: .*(can't run this|no permissions).*docs/operating.md",
                ):
                    faults = [one for one in use_all(store.presence, client) if isinstance(one, StoreUnavailable)]
                    raise faults[0]
                client.execute_command("ACL", "SETUSER", "present", right)
        finally:
            store.close()
            client.execute_command("ACL", "DELUSER", "present")
