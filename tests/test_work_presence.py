"""Presence in a process: its connections, its reports, and what it does while the store is away."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from sse import Publisher
from sse.errors import NotFound, StoreUnavailable
from sse.stores import Store, connect
from sse.stores.memory import MemoryStore
from sse.stores.memory_presence import MemoryPresence
from sse.stores.presence import Attendance, Outcome, PresenceStore, Report
from sse.work.calls import Calls
from sse.work.presence import LINGER, Presence, Stay
from tests.servers import RedisServer, wait_until

MakePresence = Callable[..., Presence]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Recorded(PresenceStore):
    """A presence store that counts round trips and reports, and may be away or lose replies."""

    def __init__(self, store: PresenceStore) -> None:
        self.store = store
        self.trips: list[Sequence[Report]] = []
        self.is_away = False
        self.loses_replies = False

    def report(self, reports: Sequence[Report]) -> list[Outcome | StoreUnavailable]:
        self.trips.append(reports)
        if self.is_away:
            raise StoreUnavailable("away")
        outcomes = self.store.report(reports)
        if self.loses_replies:
            raise StoreUnavailable("the reply is lost")
        return outcomes

    def count(self, channel: str) -> int:
        return self.store.count(channel)

    def read(self, channel: str) -> Attendance:
        return self.store.read(channel)


class World:
    """Several processes on one store, whose turns the test makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Presence, "_start", lambda self: None)  # turns are made by the test
        self.clock = Clock()
        self.store = Recorded(MemoryStore(ring=5, ring_ttl=60, clock=self.clock).presence)
        self.told: list[tuple[str, str, str]] = []
        self.processes: list[Presence] = []
        self.made: list[Presence] = []

    def process(self, **options: Any) -> Presence:
        presence = Presence(
            self.store, ["room/*"], lambda *happening: self.told.append(happening), clock=self.clock, **options
        )
        self.processes.append(presence)
        self.made.append(presence)
        return presence

    def pass_time(self, seconds: float) -> None:
        """Make a turn of each process every second."""
        for _ in range(int(seconds)):
            self.clock.now += 1
            for presence in self.processes:
                presence.turn()
        time.sleep(0.05)  # for the thread that tells

    def close(self) -> None:
        for presence in self.made:
            presence.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(monkeypatch)
    yield world
    world.close()


A = "room/a"


def test_connections_come_and_go(world: World) -> None:
    presence = world.process()
    stays = [presence.enter([A, "room/b"], "ann"), presence.enter([A], "bob"), presence.enter([A], "")]
    presence.turn()
    assert presence.read(A) == Attendance(3, {"ann": 1, "bob": 1})
    assert presence.count("room/b") == 1
    stays[0]()
    stays[0]()  # a second call does nothing
    presence.turn()
    assert presence.read(A) == Attendance(2, {"bob": 1})
    assert presence.count("room/b") == 0


def test_only_channels_that_match_have_presence(world: World) -> None:
    presence = world.process()
    assert presence.watched(["news", A, "room", "room/b/c"]) == [A, "room/b/c"]
    for call in (presence.count, presence.read):
        with pytest.raises(NotFound, match="no presence is kept for channel news: have SSE_PRESENCE match it"):
            call("news")


def test_a_connection_that_has_come_and_gone_within_a_turn_is_not_reported(world: World) -> None:
    presence = world.process()
    presence.enter([A], "ann")()
    presence.turn()
    assert world.store.trips == []


def test_ten_thousand_connections_take_some_round_trips(world: World) -> None:
    presence = world.process()
    stays = [presence.enter([A], f"user{number}") for number in range(10_000)]
    presence.turn()
    assert presence.count(A) == 10_000
    assert len(world.store.trips) <= 45
    assert max(len(report.changes) for reports in world.store.trips for report in reports) == 250
    stays += [presence.enter([f"room/{number}"], "ann") for number in range(3000)]
    world.store.trips.clear()
    presence.turn()
    assert len(world.store.trips) == 30
    for stay in stays:
        stay()
    presence.turn()
    assert presence.count(A) == 0


def test_a_quiet_channel_costs_one_report_in_five_seconds(world: World) -> None:
    presence = world.process()
    presence.enter([A], "ann")
    presence.turn()
    world.store.trips.clear()
    world.pass_time(50)
    assert 9 <= len(world.store.trips) <= 12
    assert not any(report.changes for reports in world.store.trips for report in reports)
    assert presence.count(A) == 1


def test_a_client_counts_once_however_many_connections_it_has_and_on_whatever_worker(world: World) -> None:
    one, two = world.process(), world.process()
    stays = [one.enter([A], "ann", "page-of-ann"), one.enter([A], "ann", "page-of-ann")]
    other = two.enter([A], "ann", "page-of-ann")
    two.enter([A], "bob", "page-of-ann")  # of another subject, so it is another client
    world.pass_time(1)
    assert one.read(A) == Attendance(2, {"ann": 1, "bob": 1})
    for stay in [*stays, other]:
        stay()
        world.pass_time(1)
        assert one.read(A).total == (1 if stay is other else 2)


def test_the_client_of_a_poll_counts_until_ten_seconds_after_its_answer(world: World) -> None:
    presence = world.process()
    presence.enter([A], "ann", "page-of-ann", lingers=True)()
    presence.enter([A], "bob", lingers=True)()
    world.pass_time(1)
    assert presence.read(A).connections == {"ann": 1}
    world.pass_time(5)
    presence.enter([A], "ann", "page-of-ann", lingers=True)()
    world.pass_time(LINGER - 1)
    assert presence.read(A).connections == {"ann": 1}
    world.pass_time(2)
    assert presence.read(A).connections == {}


def test_the_number_of_clients_that_linger_is_bounded(world: World) -> None:
    presence = world.process(most_lingering=3)
    for number in range(5):
        presence.enter([A], "", f"client-{number}", lingers=True)()
    world.pass_time(1)
    assert presence.count(A) == 3


def test_joining_and_leaving_are_told_once_over_all_processes(world: World) -> None:
    one, two = world.process(), world.process()
    first = one.enter([A], "ann")
    second = two.enter([A], "ann", "page-of-ann")
    world.pass_time(2)
    assert world.told == [("joined", A, "ann")]
    first()
    world.pass_time(40)
    second()
    world.pass_time(25)
    assert world.told == [("joined", A, "ann")]
    world.pass_time(15)
    assert world.told == [("joined", A, "ann"), ("left", A, "ann")]


def test_somebody_who_comes_back_to_another_process_within_30_seconds_has_not_left(world: World) -> None:
    one, two = world.process(), world.process()
    one.enter([A], "ann")()
    stay = one.enter([A], "ann")
    world.pass_time(1)
    stay()
    world.pass_time(25)
    two.enter([A], "ann")
    world.pass_time(60)
    assert world.told == [("joined", A, "ann")]
    assert two.count(A) == 1


def test_a_channel_that_nobody_listens_to_is_forgotten_after_those_who_left_were_told(world: World) -> None:
    presence = world.process()
    stay = presence.enter([A], "ann")
    world.pass_time(1)
    stay()
    world.pass_time(45)
    assert world.told == [("joined", A, "ann"), ("left", A, "ann")]
    assert not presence._rooms
    world.store.trips.clear()
    world.pass_time(20)
    assert world.store.trips == []


def test_an_app_s_function_that_fails_is_logged_and_the_next_one_is_called(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    told = []

    def tell(*happening: str) -> None:
        if happening[2] == "ann":
            raise RuntimeError("no")
        told.append(happening)

    presence = Presence(world.store, ["*"], lambda *happening: partial(tell, *happening), clock=world.clock)
    presence.enter([A], "ann")
    presence.turn()
    presence.enter([A], "bob")
    presence.turn()
    wait_until(lambda: told == [("joined", A, "bob")])
    assert "@sse.joined and @sse.left: a function failed" in caplog.text
    presence.close()


def test_a_search_for_the_app_s_function_that_fails_loses_no_connection(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: str) -> None:
        raise RuntimeError("a converter of the app")

    presence = Presence(world.store, ["*"], fail, clock=world.clock)
    stay = presence.enter([A], "ann")
    presence.turn()
    assert presence.count(A) == 1
    assert "a converter of the app" in caplog.text
    stay()
    presence.turn()
    assert presence.count(A) == 0


def test_a_turn_that_is_broken_off_is_told_again_in_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    presence = world.process()
    presence.enter([A], "ann")
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(world.store, "report", lambda reports: 1 / 0)
        presence.turn()
    presence.enter([A], "bob")
    presence.turn()
    assert presence.read(A) == Attendance(2, {"ann": 1, "bob": 1})


def test_a_backlog_of_calls_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("sse.work.calls._MOST", 3)
    calls, go, done = Calls("sse-calls", "functions"), threading.Event(), []
    calls.put(go.wait)
    wait_until(lambda: not calls._waiting)
    for number in range(5):
        calls.put(lambda number=number: done.append(number))
    assert "functions: 3 calls wait, so further ones are dropped" in caplog.text
    go.set()
    wait_until(lambda: done == [0, 1, 2])
    calls.close()


def test_calls_wait_for_a_thread_and_outlive_an_exit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls, done = Calls("sse-calls", "functions"), []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start")))
        calls.put(sys.exit)
    assert "functions: 1 calls wait for a thread: can't start" in caplog.text
    calls.put(lambda: done.append(1))
    wait_until(lambda: done == [1])
    assert "functions: a function failed" in caplog.text
    calls.close()


def test_a_connection_is_let_in_though_no_thread_can_report_it_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    presence = Presence(MemoryPresence(), ["*"])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start")))
        presence.enter([A], "ann")
    presence.enter([A], "bob")
    wait_until(lambda: presence.count(A) == 2)
    presence.close()


def test_a_store_that_is_away_is_asked_once_a_second_and_hears_everything_when_it_is_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    presence = world.process()
    stays = [presence.enter([A], "ann"), presence.enter([A], "bob")]
    world.pass_time(1)
    world.store.is_away = True
    world.store.trips.clear()
    stays[0]()
    presence.enter([A], "eve")
    for _ in range(40):
        world.clock.now += 0.25
        presence.turn()
    assert 9 <= len(world.store.trips) <= 11
    assert "presence waits" in caplog.text
    world.store.is_away = False
    world.pass_time(2)
    assert presence.read(A) == Attendance(2, {"bob": 1, "eve": 1})
    assert [happening for happening in world.told if happening[2] != "ann"] == [
        ("joined", A, "bob"),
        ("joined", A, "eve"),
    ]


def test_after_a_store_has_lost_everything_all_is_told_again_and_nobody_joins(world: World) -> None:
    one, two = world.process(), world.process()
    one.enter([A], "ann")
    two.enter([A], "bob", "page-of-bob")
    world.pass_time(1)
    world.store.store = MemoryStore(ring=5, ring_ttl=60, clock=world.clock).presence
    world.pass_time(7)
    assert one.read(A) == Attendance(2, {"ann": 1, "bob": 1})
    assert sorted(world.told) == [("joined", A, "ann"), ("joined", A, "bob")]


def test_a_reply_that_is_lost_neither_doubles_nor_loses_a_connection(world: World) -> None:
    presence = world.process()
    stays = [presence.enter([A], "ann") for _ in range(3)] + [presence.enter([A], "", "a-client")]
    world.store.loses_replies = True
    world.pass_time(4)
    stays.pop(0)()
    world.pass_time(2)
    world.store.loses_replies = False
    world.pass_time(3)
    assert presence.read(A) == Attendance(3, {"ann": 2})
    assert world.told == []  # at most once: the reply that named her was lost
    for stay in stays:
        stay()
    world.pass_time(2)
    assert presence.count(A) == 0


def test_the_members_of_a_dead_process_are_gone_for_the_others_within_30_seconds(world: World) -> None:
    dead, alive = world.process(), world.process()
    for number in range(600):
        dead.enter([A], f"user{number}")
    alive.enter([A], "ann")
    world.pass_time(1)
    world.processes.remove(dead)
    world.pass_time(26)
    assert alive.read(A) == Attendance(1, {"ann": 1})
    world.pass_time(40)
    assert Counter(happening for happening, _, _ in world.told) == {"joined": 601, "left": 600}


def test_a_process_that_was_frozen_is_there_again_when_it_wakes_up(world: World) -> None:
    frozen, alive = world.process(), world.process()
    frozen.enter([A], "ann")
    alive.enter([A], "bob")
    world.pass_time(1)
    world.processes.remove(frozen)
    world.pass_time(24)
    assert alive.read(A).connections == {"bob": 1}
    world.processes.append(frozen)
    world.pass_time(7)
    assert alive.read(A).connections == {"ann": 1, "bob": 1}
    world.pass_time(60)
    assert sorted(world.told) == [("joined", A, "ann"), ("joined", A, "bob")]


def test_close_takes_this_process_s_connections_away_at_once(world: World) -> None:
    one, two = world.process(), world.process()
    one.enter([A], "ann")
    two.enter([A], "bob")
    world.pass_time(1)
    one.close()
    world.processes.remove(one)
    assert two.read(A) == Attendance(1, {"bob": 1})
    world.pass_time(40)
    assert ("left", A, "ann") in world.told


def test_close_while_the_store_is_away_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    presence = world.process()
    presence.enter([A], "ann")
    world.pass_time(1)
    world.store.is_away = True
    presence.close()
    assert "connections count for some seconds more" in caplog.text
    world.store.is_away = False


@pytest.mark.parametrize("sub", ["x" * 257, "a\ud800b"])
def test_a_subject_that_cannot_be_kept_counts_as_anonymous(
    world: World, caplog: pytest.LogCaptureFixture, sub: str
) -> None:
    presence = world.process()
    presence.enter([A], sub)
    world.pass_time(1)
    assert presence.read(A) == Attendance(1, {})
    assert "counts as anonymous" in caplog.text


def test_a_connection_may_end_in_any_thread_while_a_turn_is_made(world: World) -> None:
    """As when the garbage collector ends a stream's generator."""
    presence = world.process()
    stays = [presence.enter([A], "ann") for _ in range(2)]
    presence.turn()
    with presence._turn, presence._lock:
        thread = threading.Thread(target=stays[0])
        thread.start()
        thread.join(5)
        assert not thread.is_alive()
        presence.turn()  # does nothing, for the turn is taken
    presence.turn()
    assert presence.count(A) == 1


def test_random_histories_of_four_processes_end_as_the_model_says(world: World) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    processes = [world.process() for _ in range(4)]
    open_stays: list[tuple[str, str, str, Stay]] = []
    for _ in range(600):
        act = chance.random()
        if act < 0.5:
            sub, client = chance.choice(["", "ann", "bob"]), chance.choice(["", "page-one", "page-two"])
            open_stays.append((A, sub, client, chance.choice(processes).enter([A], sub, client)))
        elif act < 0.85 and open_stays:
            open_stays.pop(chance.randrange(len(open_stays)))[3]()
        elif act < 0.95:
            world.clock.now += chance.random()
            chance.choice(processes).turn()
        elif act < 0.97:
            world.store.is_away = not world.store.is_away
        elif act < 0.98:
            world.store.loses_replies = not world.store.loses_replies
        elif act < 0.99:
            world.clock.now += 25
        else:
            world.store.store = MemoryStore(ring=5, ring_ttl=60, clock=world.clock).presence
    world.store.is_away = world.store.loses_replies = False
    world.pass_time(30)
    clients = {(sub, client) for _, sub, client, _ in open_stays if client}
    model = Counter(sub for _, sub, client, _ in open_stays if not client) + Counter(sub for sub, _ in clients)
    expected = Attendance(model.total(), {sub: count for sub, count in model.items() if sub})
    assert processes[0].read(A) == expected, f"seed {seed}"


# Real threads and a real Redis


@pytest.fixture
def make_process(redis_url: str) -> Iterator[MakePresence]:
    made: list[tuple[Presence, Store]] = []

    def make(tell: Any = None) -> Presence:
        store = connect(redis_url, ring=5, ring_ttl=60, timeout=2)
        presence = Presence(store.presence, ["room/*"], tell)
        made.append((presence, store))
        return presence

    yield make
    for presence, store in made:
        presence.close()
        store.close()


def test_two_processes_on_one_redis_see_each_other(make_process: MakePresence, shared_redis: RedisServer) -> None:
    told: list[tuple[str, str, str]] = []
    one, two = (make_process(lambda *happening: told.append(happening)) for _ in range(2))
    stays = [presence.enter([A], f"user{number}") for number in range(500) for presence in (one, two)]
    for presence in (one, two):
        wait_until(lambda presence=presence: presence.count(A) == 1000)
        assert presence.read(A) == Attendance(1000, {f"user{number}": 2 for number in range(500)})
    wait_until(lambda: len(told) == 500)
    assert {happening for happening, _, _ in told} == {"joined"}
    assert len({sub for _, _, sub in told}) == 500
    with shared_redis.client() as client:
        client.flushall()
    wait_until(lambda: one.count(A) == 1000, 10)
    for stay in stays[::2]:
        stay()
    wait_until(lambda: two.count(A) == 500)
    one.close()
    assert two.count(A) == 500
    two.close()
    assert make_process().count(A) == 0
    assert len(told) == 500


def test_a_process_that_only_publishes_may_ask_how_many_are_there(redis_url: str, make_process: MakePresence) -> None:
    serving = make_process()
    stays = [serving.enter([A], "ann") for _ in range(3)]
    with Publisher(redis_url=redis_url, presence="room/*") as publisher:
        wait_until(lambda: publisher.count(A) == 3)
        stays[0]()
        wait_until(lambda: publisher.count(A) == 2)
        with pytest.raises(NotFound):
            publisher.count("news")
    assert serving.count(A) == 2


def test_a_redis_that_goes_back_to_an_older_file_is_told_everything_again(tmp_path: Any) -> None:
    with RedisServer(tmp_path) as redis:
        stores = [connect(redis.url, ring=5, ring_ttl=60, timeout=1) for _ in range(2)]
        one, two = (Presence(store.presence, ["room/*"]) for store in stores)
        stays = [presence.enter([A], f"user{number}") for number in range(300) for presence in (one, two)]
        wait_until(lambda: one.count(A) == 600)
        redis.snapshot()
        for stay in stays[:100]:
            stay()
        late = [one.enter([A], "late", f"client-{number}") for number in range(50)]
        wait_until(lambda: one.count(A) == 550)
        redis.restart(lost_writes=True)

        def read() -> Attendance:
            try:
                return one.read(A)
            except StoreUnavailable:
                return Attendance(-1, {})

        connections = {f"user{number}": 2 for number in range(50, 300)} | {"late": len(late)}
        wait_until(lambda: read() == Attendance(550, connections), 15)
        for presence, store in zip((one, two), stores, strict=True):
            presence.close()
            store.close()


def test_a_redis_that_is_away_is_told_everything_when_it_is_back(tmp_path: Any) -> None:
    with RedisServer(tmp_path) as redis:
        store = connect(redis.url, ring=5, ring_ttl=60, timeout=1)
        presence = Presence(store.presence, ["room/*"])
        stays = [presence.enter([A], f"user{number}") for number in range(300)]
        wait_until(lambda: presence.count(A) == 300)
        redis.kill()
        for stay in stays[:100]:
            stay()
        stays += [presence.enter([A], "late") for _ in range(50)]
        with pytest.raises(StoreUnavailable):
            presence.count(A)
        redis.start()  # empty

        def count() -> int:
            try:
                return presence.count(A)
            except StoreUnavailable:
                return -1

        wait_until(lambda: count() == 250, 15)
        presence.close()
        assert store.presence.count(A) == 0
        store.close()
