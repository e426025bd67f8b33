"""The hub: each subscriber gets each event once and in order, or a reset. Nothing is left behind."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sse.errors import Busy, StoreUnavailable, TooMany
from sse.event import UNBORN, Event, LastEventId, Position
from sse.hub.channel import Channel
from sse.hub.hub import Hub
from sse.hub.subscriber import Delivery, Lagging, Reset, Start, Subscriber, starting_points
from sse.ring import Ring
from sse.stores import PAGE_BYTES, Feed, MemoryStore, Notice, Page, Publication, RedisStore, Store, connect
from sse.stores.base import Standing
from sse.stores.memory_rings import MemoryFeed
from tests.publishing import publish_to_store
from tests.servers import ROOT, RedisServer, wait_until

RING = 50
TTL = 3600
MakeHub = Callable[..., Hub]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class ForgetfulStore(MemoryStore):
    """A memory store whose feeds lose, repeat or invent announcements. The contract allows losing them."""

    def __init__(self, **options: object) -> None:
        super().__init__(ring=RING, ring_ttl=TTL, **options)  # type: ignore[arg-type]
        self.filter: Callable[[Notice], Iterable[Notice]] = lambda notice: [notice]

    def feed(self) -> Feed:
        feed = super().feed()
        assert isinstance(feed, MemoryFeed)
        announce = feed.announce

        def filtered(notice: Notice) -> None:
            for kept in self.filter(notice):
                announce(kept)

        feed.announce = filtered  # type: ignore[method-assign]
        return feed


class CountingStore(MemoryStore):
    """A memory store that counts reads, and holds them until the gate opens."""

    def __init__(self) -> None:
        super().__init__(ring=RING, ring_ttl=TTL)
        self.gate = threading.Event()
        self.gate.set()
        self.readings = 0
        self.fault: Exception | None = None

    def read(
        self, places: Sequence[tuple[str, Position]], limit: int = 100, max_bytes: int = PAGE_BYTES
    ) -> list[Page | StoreUnavailable]:
        self.readings += len(places)
        assert self.gate.wait(5)
        if self.fault:
            raise self.fault
        return super().read(places, limit, max_bytes)


@pytest.fixture
def make_hub() -> Iterator[MakeHub]:
    made: list[tuple[Hub, Store]] = []

    def make(store: Store, **options: object) -> Hub:
        made.append((Hub(store, **({"max_subscribers": 1000} | options)), store))  # type: ignore[arg-type]
        return made[-1][0]

    yield make
    for hub, store in made:
        assert hub.subscribers >= 0
        hub.close()
        store.close()


@pytest.fixture
def store(store_url: str | None) -> Store:
    return connect(store_url, ring=RING, ring_ttl=TTL)


@pytest.fixture
def hub(make_hub: MakeHub, store: Store) -> Hub:
    return make_hub(store)


def attach(hub: Hub, starts: Mapping[str, Start] | None = None, timeout: float = 3) -> Subscriber:
    return hub.attach(starts or {"a": Start()}, timeout)


def collect(subscriber: Subscriber, count: int, timeout: float = 5) -> list[Delivery | Reset]:
    taken: list[Delivery | Reset] = []
    deadline = time.monotonic() + timeout
    while len(taken) < count and time.monotonic() < deadline:
        subscriber.wait(0.1)
        taken += subscriber.take(1000, 1 << 20)
    return taken


def data(taken: Iterable[Delivery | Reset]) -> list[str]:
    return [item.entry.event.data if isinstance(item, Delivery) else f"reset {item.reason}" for item in taken]


# Where a client starts


@pytest.mark.parametrize(
    ("text", "from_header", "starts"),
    [
        (None, False, {"a": Start(replay=7), "b": Start(replay=7)}),
        ("a=5-1", False, {"a": Start(Position(5, 1)), "b": Start()}),
        ("a=5-1", True, {"a": Start(Position(5, 1)), "b": Start(fault="missing")}),
        ("a=x~b=5-1", False, {"a": Start(fault="invalid"), "b": Start(Position(5, 1))}),
        ("a=x", True, {"a": Start(fault="invalid"), "b": Start(fault="missing")}),
        ("rubbish", False, {"a": Start(fault="invalid"), "b": Start(fault="invalid")}),
        ("rubbish~b=5-1", True, {"a": Start(fault="invalid"), "b": Start(Position(5, 1))}),
        ("~", True, {"a": Start(fault="missing"), "b": Start(fault="missing")}),
        ("~", False, {"a": Start(), "b": Start()}),
        ("c=5-1", False, {"a": Start(), "b": Start()}),
    ],
)
def test_where_a_client_goes_on(text: str | None, from_header: bool, starts: dict[str, Start]) -> None:
    last = None if text is None else LastEventId.parse(text)
    assert starting_points(["a", "b"], last, from_header=from_header, replay=7) == starts


# Attaching, over both stores


def test_a_new_subscriber_starts_at_the_newest_position_and_gets_what_follows(hub: Hub, store: Store) -> None:
    (top,) = publish_to_store(store, "a", "before")
    subscriber = attach(hub)
    assert subscriber.positions_by_name == {"a": top}
    publish_to_store(store, "a", "1", "2", "3")
    assert data(collect(subscriber, 3)) == ["1", "2", "3"]
    assert subscriber.take(10, 1000) == []
    hub.detach(subscriber)


def test_a_channel_without_a_ring_gets_one_and_can_be_continued(hub: Hub, store: Store) -> None:
    subscriber = attach(hub)
    anchor = subscriber.positions_by_name["a"]
    assert anchor.offset == 0
    assert anchor != UNBORN
    assert store.newest(["a"]) == [anchor]
    hub.detach(subscriber)
    publish_to_store(store, "a", "1", "2")
    again = attach(hub, {"a": Start(anchor)})
    assert data(collect(again, 2)) == ["1", "2"]
    hub.detach(again)


def test_a_position_is_continued_from_the_store_and_from_the_hub_s_own_ring(hub: Hub, store: Store) -> None:
    positions = publish_to_store(store, "a", *range(10))
    from_store = attach(hub, {"a": Start(positions[3])})  # the hub's ring begins here
    assert data(collect(from_store, 6)) == [str(number) for number in range(4, 10)]
    positions += publish_to_store(store, "a", 10, 11)
    assert data(collect(from_store, 2)) == ["10", "11"]
    from_hub = attach(hub, {"a": Start(positions[10])})
    assert data(collect(from_hub, 1)) == ["11"]
    both = attach(hub, {"a": Start(positions[8])})
    assert data(collect(both, 3)) == ["9", "10", "11"]
    for subscriber in (from_store, from_hub, both):
        hub.detach(subscriber)


def test_a_replay_of_more_than_a_page_is_whole(make_hub: MakeHub, store_url: str | None) -> None:
    store = connect(store_url, ring=1000, ring_ttl=TTL)
    hub = make_hub(store)
    first, *_ = publish_to_store(store, "a", *range(350))
    subscriber = attach(hub, {"a": Start(first)})
    publish_to_store(store, "a", "end")
    assert data(collect(subscriber, 350)) == [*map(str, range(1, 350)), "end"]
    hub.detach(subscriber)


@pytest.mark.parametrize(("replay", "wanted"), [(0, []), (1, ["9"]), (3, ["7", "8", "9"]), (50, list("0123456789"))])
def test_the_newest_are_replayed(hub: Hub, store: Store, replay: int, wanted: list[str]) -> None:
    publish_to_store(store, "a", *range(10))
    cold = attach(hub, {"a": Start(replay=replay)})
    assert data(collect(cold, len(wanted), 1)) == wanted
    publish_to_store(store, "a", "10")
    collect(cold, 1)
    warm = attach(hub, {"a": Start(replay=replay)})
    assert data(collect(warm, len(wanted), 1)) == ([*wanted, "10"][-replay:] if replay else [])
    hub.detach(cold)
    hub.detach(warm)


def test_a_replay_of_a_channel_that_was_never_born_is_empty(hub: Hub, store: Store) -> None:
    subscriber = attach(hub, {"a": Start(replay=10)})
    assert subscriber.take(10, 1000) == []
    publish_to_store(store, "a", "1")
    assert data(collect(subscriber, 1)) == ["1"]
    hub.detach(subscriber)


@pytest.mark.parametrize("fault", ["invalid", "missing"])
def test_a_faulty_entry_is_reset_to_the_newest_position(hub: Hub, store: Store, fault: str) -> None:
    (top,) = publish_to_store(store, "a", "before")
    subscriber = attach(hub, {"a": Start(fault=fault)})  # type: ignore[arg-type]
    assert subscriber.resets == [Reset("a", fault, None, top)]  # type: ignore[arg-type]
    publish_to_store(store, "a", "after")
    assert data(collect(subscriber, 2)) == [f"reset {fault}", "after"]
    hub.detach(subscriber)


def test_a_trimmed_position_is_reset_and_told_how_many_were_missed(hub: Hub, store: Store) -> None:
    positions = publish_to_store(store, "a", *range(RING + 10))
    subscriber = attach(hub, {"a": Start(positions[4])})
    assert subscriber.take(10, 1000) == [Reset("a", "trimmed", RING + 5, positions[-1])]
    hub.detach(subscriber)
    kept = attach(hub, {"a": Start(positions[9])})
    assert len(collect(kept, RING)) == RING
    hub.detach(kept)


@pytest.mark.parametrize("beside", [Position(1, 5), Position(2, 5), Position(100, 5), UNBORN])
def test_a_position_that_never_was_is_reset(hub: Hub, store: Store, beside: Position) -> None:
    *_, top = publish_to_store(store, "a", "1", "2")
    subscriber = attach(hub, {"a": Start(beside)})
    assert subscriber.take(10, 1000) == [Reset("a", "diverged", None, top)]
    hub.detach(subscriber)


def test_a_position_in_a_channel_without_a_ring_is_unknown_though_one_is_ensured(hub: Hub, store: Store) -> None:
    subscriber = attach(hub, {"a": Start(Position(5, 5))})
    (anchor,) = store.newest(["a"])
    assert subscriber.take(10, 1000) == [Reset("a", "unknown", None, anchor)]  # type: ignore[arg-type]
    hub.detach(subscriber)


def test_one_connection_s_channels_each_go_their_own_way(hub: Hub, store: Store) -> None:
    a = publish_to_store(store, "a", *range(5))
    publish_to_store(store, "b", *range(5))
    b = publish_to_store(store, "b", *range(RING + 5))
    starts = {
        "a": Start(a[2]),
        "b": Start(b[0]),
        "c": Start(),
        "d": Start(fault="missing"),
        "e": Start(Position(1, 1)),
    }
    subscriber = attach(hub, starts)
    taken = collect(subscriber, 5)
    resets = {item.channel: item.reason for item in taken if isinstance(item, Reset)}
    assert resets == {"b": "trimmed", "d": "missing", "e": "unknown"}
    assert [isinstance(item, Reset) for item in taken] == [True] * 3 + [False] * 2
    assert [(item.channel, item.entry.position) for item in taken if isinstance(item, Delivery)] == [
        ("a", a[3]), ("a", a[4])
    ]  # fmt: skip
    hub.detach(subscriber)


def test_subscribers_come_and_go_during_a_storm_and_lose_nothing(make_hub: MakeHub, store_url: str | None) -> None:
    store = connect(store_url, ring=1000, ring_ttl=TTL)
    hub = make_hub(store)
    subscriber = attach(hub)
    start = subscriber.positions_by_name["a"]
    hub.detach(subscriber)
    wanted = [str(number) for number in range(400)]

    def blow() -> None:
        for number in range(0, 400, 4):
            publish_to_store(store, "a", *range(number, number + 4))
            time.sleep(0.001)

    def listen(patience: float) -> list[str]:
        place, heard = start, list[str]()
        deadline = time.monotonic() + 15
        while len(heard) < len(wanted) and time.monotonic() < deadline:
            subscriber = attach(hub, {"a": Start(place)})
            subscriber.wait(patience)
            heard += data(subscriber.take(30, 1 << 20))
            place = subscriber.positions_by_name["a"]
            hub.detach(subscriber)
        return heard

    with ThreadPoolExecutor(5) as pool:
        blowing = pool.submit(blow)
        for heard in pool.map(listen, [0.0, 0.005, 0.02, 0.05]):
            assert heard == wanted
        blowing.result()
    assert hub.subscribers == 0


# Moving forward


def test_an_announcement_that_was_lost_is_made_up_for_by_the_next(make_hub: MakeHub) -> None:
    store = ForgetfulStore()
    store.filter = lambda notice: [] if notice.entry and notice.entry.event.data == "lost" else [notice]
    hub = make_hub(store, clock=Clock())  # so that it never looks by itself
    subscriber = attach(hub)
    publish_to_store(store, "a", "1", "lost", "lost", "2")
    assert data(collect(subscriber, 4)) == ["1", "lost", "lost", "2"]
    hub.detach(subscriber)


def test_repeated_and_misplaced_announcements_are_dropped(make_hub: MakeHub) -> None:
    store = ForgetfulStore()
    said: list[Notice] = []

    def again(notice: Notice) -> list[Notice]:
        said.append(notice)
        return [*reversed(said), *said]

    store.filter = again
    hub = make_hub(store, clock=Clock())
    subscriber = attach(hub)
    publish_to_store(store, "a", *range(10))
    publish_to_store(store, "a", "end")
    assert data(collect(subscriber, 11)) == [*map(str, range(10)), "end"]
    assert subscriber.take(10, 1000) == []
    hub.detach(subscriber)


def test_an_announcement_from_another_life_is_never_delivered(make_hub: MakeHub) -> None:
    store = ForgetfulStore()
    hub = make_hub(store, clock=Clock())
    subscriber = attach(hub)
    (top,) = publish_to_store(store, "a", "1")
    store.filter = lambda notice: [notice._replace(previous=Position(1, top.tag + 1))]
    publish_to_store(store, "a", "2")
    assert data(collect(subscriber, 2)) == ["1", "2"]
    hub.detach(subscriber)


def test_what_was_published_while_the_feed_was_cut_is_made_up_for_when_it_is_back(
    make_hub: MakeHub, redis_url: str, shared_redis: RedisServer
) -> None:
    store = connect(redis_url, ring=RING, ring_ttl=TTL)
    hub = make_hub(store, clock=Clock())
    subscriber = attach(hub, {"a": Start(), "b": Start()})
    with shared_redis.client() as client:
        for number in range(5):
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
            publish_to_store(store, "a", number)
            assert data(collect(subscriber, 1)) == [str(number)]
    hub.detach(subscriber)


def look_again(hub: Hub, clock: Clock) -> None:
    """Make the hub look at the store now, by a new channel that wakes it."""
    clock.now += 6
    hub.detach(attach(hub, {f"wake{clock.now:g}": Start()}))


def test_with_no_announcement_at_all_the_store_is_looked_at_every_five_seconds(make_hub: MakeHub) -> None:
    clock = Clock()
    store = ForgetfulStore(clock=clock)
    store.filter = lambda notice: []
    hub = make_hub(store, clock=clock)
    subscriber = attach(hub)
    publish_to_store(store, "a", "1", "2")
    assert not subscriber.wait(0.1) or subscriber.take(10, 1000) == []
    look_again(hub, clock)
    assert data(collect(subscriber, 2)) == ["1", "2"]
    hub.detach(subscriber)


def test_a_ring_with_listeners_never_expires(make_hub: MakeHub) -> None:
    clock = Clock()
    store = MemoryStore(ring=RING, ring_ttl=60, clock=clock)
    hub = make_hub(store, clock=clock)
    subscriber = attach(hub)
    anchor = subscriber.positions_by_name["a"]
    for _ in range(25):
        look_again(hub, clock)
        wait_until(lambda: store._rings["a"].expires > clock.now + 100, 3, what="the ring is renewed")
    publish_to_store(store, "a", "1")
    assert data(collect(subscriber, 1)) == ["1"]
    assert store.read([("a", anchor)])[0].entries  # type: ignore[union-attr]
    hub.detach(subscriber)


def test_a_ring_that_is_lost_and_born_again_is_told_as_a_reset(make_hub: MakeHub) -> None:
    clock = Clock()
    store = MemoryStore(ring=RING, ring_ttl=60, clock=clock)
    hub = make_hub(store, clock=clock)
    subscriber = attach(hub)
    publish_to_store(store, "a", "1")
    assert data(collect(subscriber, 1)) == ["1"]
    clock.now += 3600
    *_, top = publish_to_store(store, "a", "2", "3")
    taken = collect(subscriber, 1)
    assert taken == [Reset("a", "diverged", None, top)]
    publish_to_store(store, "a", "4")
    assert data(collect(subscriber, 1)) == ["4"]
    hub.detach(subscriber)


def test_a_ring_that_is_lost_is_told_as_unknown(make_hub: MakeHub) -> None:
    clock = Clock()
    store = MemoryStore(ring=RING, ring_ttl=60, clock=clock)
    hub = make_hub(store, clock=clock)
    subscriber = attach(hub)
    clock.now += 3600
    hub.detach(attach(hub, {"wake": Start()}))
    (reset,) = collect(subscriber, 1)
    assert isinstance(reset, Reset)
    assert (reset.reason, reset.missed) == ("unknown", None)
    assert reset.position == store.newest(["a"])[0] == subscriber.positions_by_name["a"]
    hub.detach(subscriber)


def test_a_hub_that_fell_behind_the_ring_tells_how_much_was_missed(make_hub: MakeHub) -> None:
    store = ForgetfulStore()
    store.filter = lambda notice: [] if notice.entry and notice.entry.event.data == "lost" else [notice]
    hub = make_hub(store)
    subscriber = attach(hub)
    publish_to_store(store, "a", *["lost"] * (RING + 5))
    (top,) = publish_to_store(store, "a", "end")
    assert collect(subscriber, 1) == [Reset("a", "trimmed", RING + 6, top)]
    hub.detach(subscriber)


def test_of_more_announcements_than_the_memory_store_keeps_none_is_lost_and_no_check_is_waited_for(
    make_hub: MakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore(ring=5000, ring_ttl=TTL)
    hub = make_hub(store, clock=Clock())  # so that it never checks
    names = [f"c{number}" for number in range(2000)]
    subscriber = attach(hub, {name: Start() for name in [*names, "a"]})
    gate = threading.Event()
    assert hub._follower._feed
    read = hub._follower._feed.read
    monkeypatch.setattr(hub._follower._feed, "read", lambda timeout: read(timeout) if gate.wait(5) else [])
    time.sleep(0.05)  # as the publishing view lets no other read meanwhile
    store.publish([Publication(name, Event("x")) for name in names for _ in range(2)])
    store.publish([Publication("a", Event(number)) for number in range(3000)])
    gate.set()
    taken = collect(subscriber, 7000, 20)
    heard: dict[str, list[int]] = {}
    for item in taken:
        assert isinstance(item, Delivery)
        heard.setdefault(item.channel, []).append(item.entry.position.offset)
    assert heard == {name: [1, 2] for name in names} | {"a": list(range(1, 3001))}
    hub.detach(subscriber)


def test_a_feed_that_redis_cuts_because_it_is_behind_is_made_up_for(make_hub: MakeHub, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        store = connect(server.url, ring=RING, ring_ttl=TTL)
        assert isinstance(store, RedisStore)
        hub = make_hub(store, clock=Clock())
        names = [f"c{number}" for number in range(10)]
        subscriber = attach(hub, {name: Start() for name in names})
        with server.client() as client:
            client.config_set("client-output-buffer-limit", "pubsub 100000 100000 1")
            flood = "for _ = 1, 1000 do redis.call('PUBLISH', KEYS[1], string.rep('x', 1000)) end"
            client.eval(flood, 1, store.announcements("c0"))
        store.publish([Publication(name, Event("x" * 100)) for name in names * 40])
        taken = collect(subscriber, 400, 20)
        for name in names:
            mine = [item.entry.position.offset for item in taken if isinstance(item, Delivery) and item.channel == name]
            assert mine == list(range(1, 41))
        assert "overcoming of output buffer limits" in server.logs()
        hub.detach(subscriber)


# Turns: with thousands of channels, the hub asks the store about some at a time

MANY = 1500


class NotingStore(ForgetfulStore):
    """A memory store that records its calls, their numbers of channels, and the reads of the feed, in order."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.notes: list[tuple[str, int]] = []

    def standing(self, channels: Sequence[str], *, prolong: bool = False) -> list[Standing | StoreUnavailable]:
        self.notes.append(("newest", len(channels)))
        return super().standing(channels, prolong=prolong)

    def ensure(self, channels: Sequence[str]) -> list[Position | StoreUnavailable]:
        self.notes.append(("ensure", len(channels)))
        return super().ensure(channels)

    def read(
        self, places: Sequence[tuple[str, Position]], limit: int = 100, max_bytes: int = PAGE_BYTES
    ) -> list[Page | StoreUnavailable]:
        self.notes.append(("read", len(places)))
        return super().read(places, limit, max_bytes)

    def feed(self) -> Feed:
        feed = super().feed()
        read = feed.read

        def noted(timeout: float) -> list[Notice]:
            notices = read(timeout)
            self.notes.append(("feed", len(notices)))
            return notices

        feed.read = noted  # type: ignore[method-assign]
        return feed

    def check(self, kind: str, least: int) -> None:
        """Check that so many channels were asked about, a few at a time, with reads of the feed in between."""
        counts = [count for name, count in self.notes if name == kind]
        assert sum(counts) >= least
        assert max(count for _, count in self.notes) <= 256
        turns: list[list[str]] = [[]]
        for name, count in self.notes:
            turns[-1].append(name)
            if name == "feed":
                turns.append([])
            else:
                assert count <= 100
        assert all(turn.count(kind) <= (2 if kind == "newest" else 1) for turn in turns)


def test_thousands_of_new_channels_are_begun_in_turns(make_hub: MakeHub) -> None:
    store = NotingStore()
    hub = make_hub(store, clock=Clock())
    subscriber = attach(hub, {f"c{number}": Start() for number in range(MANY)})
    store.check("newest", MANY)
    store.check("ensure", MANY)
    hub.detach(subscriber)


def test_thousands_of_channels_are_checked_in_turns_and_announcements_are_heard_in_between(make_hub: MakeHub) -> None:
    clock = Clock()
    store = NotingStore(clock=clock)
    hub = make_hub(store, clock=clock)
    subscriber = attach(hub, {f"c{number}": Start() for number in range(MANY)})
    store.filter = lambda notice: []
    store.publish([Publication(f"c{number}", Event("x")) for number in range(MANY)])
    del store.notes[:]
    look_again(hub, clock)
    assert len(collect(subscriber, MANY, 20)) == MANY
    store.check("newest", MANY)
    store.check("read", MANY)
    hub.detach(subscriber)


def test_after_a_loss_of_redis_thousands_of_channels_are_listened_to_again_in_slices(
    make_hub: MakeHub, redis_url: str, shared_redis: RedisServer
) -> None:
    store = connect(redis_url, ring=RING, ring_ttl=TTL)
    hub = make_hub(store, clock=Clock())
    subscriber = attach(hub, {f"c{number}": Start() for number in range(MANY)})
    with shared_redis.client() as client:
        client.config_resetstat()
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
        store.publish([Publication(f"c{number}", Event("x")) for number in range(MANY)])
        assert len(collect(subscriber, MANY, 20)) == MANY
        assert client.info("commandstats")["cmdstat_subscribe"]["calls"] >= MANY / 500
    hub.detach(subscriber)


def test_a_fault_of_some_channels_does_not_keep_the_hub_from_the_others(make_hub: MakeHub) -> None:
    store = NotingStore()
    hub = make_hub(store, clock=Clock())
    subscriber = attach(hub, {f"c{number}": Start() for number in range(200)})
    read = store.read

    def fail(places: Sequence[tuple[str, Position]], *args: Any) -> list[Page | StoreUnavailable]:
        if ("c0", subscriber.positions_by_name["c0"]) in places:
            raise StoreUnavailable("c0 cannot be read")
        return read(places, *args)

    store.read = fail  # type: ignore[method-assign]
    store.filter = lambda notice: [Notice(notice.channel)]
    store.publish([Publication(f"c{number}", Event("x")) for number in range(200)])
    heard = {item.channel for item in collect(subscriber, 199, 20)}
    assert heard == {f"c{number}" for number in range(1, 200)}
    hub.detach(subscriber)


def test_new_channels_that_cannot_be_begun_keep_no_other_from_being_repaired(make_hub: MakeHub) -> None:
    store = NotingStore()
    hub = make_hub(store, clock=Clock())
    subscriber = attach(hub)
    standing = store.standing

    def fail(channels: Sequence[str], **options: bool) -> list[Standing | StoreUnavailable]:
        if "new" in channels:
            raise StoreUnavailable("new cannot be read")
        return standing(channels, **options)

    store.standing = fail  # type: ignore[method-assign]
    store.filter = lambda notice: [Notice(notice.channel)]
    with ThreadPoolExecutor(1) as pool:
        attaching = pool.submit(attach, hub, {"new": Start()}, 1.5)
        wait_until(lambda: "new" in hub._follower.upkeep.new, 3)
        publish_to_store(store, "a", "x")
        assert data(collect(subscriber, 1, 1.2)) == ["x"]
        assert not attaching.done()
        with pytest.raises(StoreUnavailable):
            attaching.result(5)
    hub.detach(subscriber)


def test_an_event_that_is_too_much_for_the_hub_makes_room_from_few_rings(
    make_hub: MakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore(ring=RING, ring_ttl=TTL)
    hub = make_hub(store)
    names = [f"c{number}" for number in range(300)]
    subscriber = attach(hub, {name: Start() for name in [*names, "a"]})
    store.publish([Publication(name, Event("x" * 1000)) for name in names])
    assert len(collect(subscriber, 300)) == 300
    monkeypatch.setattr("sse.hub.channel.HUB_BYTES", hub._channels.bytes)
    shrunk: list[int] = []
    shrink = Ring.shrink

    def noted(ring: Ring, max_bytes: int) -> None:
        shrunk.append(max_bytes)
        shrink(ring, max_bytes)

    monkeypatch.setattr(Ring, "shrink", noted)
    publish_to_store(store, "a", "x" * 1000)
    assert len(collect(subscriber, 1)) == 1
    assert 1 <= len(shrunk) <= 3
    assert hub._channels.bytes == sum(channel.ring.bytes for channel in hub._channels.values() if channel.ring)
    hub.detach(subscriber)


UNDER_GEVENT = """
import gevent.monkey; gevent.monkey.patch_all()
import gevent, socket, sys, time
from sse.hub.hub import Hub
from sse.stores import connect
from sse.hub.subscriber import Start

store = connect(sys.argv[1] or None, ring=10, ring_ttl=3600)
hub = Hub(store, max_subscribers=10)
subscriber = hub.attach({f"c{number}": Start() for number in range(1500)}, 10)
subscriber.wake_by(lambda: None)
notes = []
standing = store.standing

def noted(channels, *, prolong=False):
    notes.append("asked")
    return standing(channels, prolong=prolong)

def echo(sock):
    for _ in range(1_000_000):
        sock.send(sock.recv(1))
        notes.append("heard")

store.standing = noted
one, other = socket.socketpair()
for sock in (one, other):
    gevent.spawn(echo, sock)
one.send(b"x")
deadline = time.monotonic() + 10
while notes.count("asked") < 15 and time.monotonic() < deadline:
    checks = hub._follower.upkeep.checks
    checks.next = 0 if "asked" not in notes else checks.next
    hub._follower._feed.wake()
    gevent.sleep(0.05)
between = "".join(note[0] for note in notes).strip("h")
print(between.count("a"), "aaa" in between)  # of what an iteration of the loop finds, the timer comes first
"""


def test_under_gevent_input_is_let_in_between_two_turns(store_url: str | None) -> None:
    command = [sys.executable, "-c", UNDER_GEVENT, store_url or ""]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    asked, together = result.stdout.split() or [result.stderr, ""]
    assert int(asked) >= 15
    assert together == "False"


@pytest.mark.parametrize(("channels", "is_late"), [(100, True), (10, False)])
def test_a_hub_tells_since_when_announcements_for_many_channels_wait(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch, channels: int, is_late: bool
) -> None:
    subscriber = attach(hub, {f"c/{number}": Start() for number in range(channels)})
    apply, seen = hub._follower.upkeep.apply, [hub.late_since]

    def noted(notices: Sequence[Notice]) -> int:
        seen.append(hub.late_since)
        return apply(notices)

    assert hub._follower._feed
    read, published = hub._follower._feed.read, threading.Event()
    monkeypatch.setattr(hub._follower.upkeep, "apply", noted)
    monkeypatch.setattr(hub._follower._feed, "read", lambda timeout: read(timeout) if published.wait(10) else [])
    store.publish([Publication(f"c/{number % channels}", Event("x")) for number in range(1000)])
    time.sleep(0.1)  # until all of them are there to be read
    published.set()

    def appended() -> int:
        return sum(channel.ring.newest.offset for channel in hub._channels.values() if channel.ring)

    wait_until(lambda: appended() == 1000, 10)
    wait_until(lambda: not hub.late_since, 5)
    assert any(seen) is is_late
    hub.detach(subscriber)


# Taking events


def test_taking_is_bounded_in_events_and_in_bytes_but_never_nothing(hub: Hub, store: Store) -> None:
    subscriber = attach(hub)
    publish_to_store(store, "a", *["x" * 100] * 10)
    wait_until(subscriber.is_behind, 3)
    wait_until(lambda: hub._channels["a"].ring and hub._channels["a"].ring.newest.offset == 10, 3)  # type: ignore[union-attr]
    assert len(subscriber.take(3, 1 << 20)) == 3
    assert subscriber.wait(0)
    assert len(subscriber.take(1000, 2 * 108)) == 2
    assert len(subscriber.take(1000, 1)) == 1
    assert subscriber.is_behind()
    assert len(subscriber.take(1000, 1 << 20)) == 4
    assert not subscriber.wait(0)
    assert not subscriber.is_behind()
    hub.detach(subscriber)


def test_no_channel_starves_another(hub: Hub, store: Store) -> None:
    subscriber = attach(hub, {"a": Start(), "b": Start(), "c": Start()})
    for channel in "abc":
        publish_to_store(store, channel, *range(20))
    wait_until(lambda: all(hub._channels[name].ring.newest.offset == 20 for name in "abc"), 3)  # type: ignore[union-attr]
    first = {item.channel for _ in range(3) for item in subscriber.take(5, 1 << 20)}
    assert first == {"a", "b", "c"}
    hub.detach(subscriber)


def test_a_subscriber_that_its_rings_have_passed_is_told_that_it_lags(make_hub: MakeHub) -> None:
    store = MemoryStore(ring=5, ring_ttl=TTL)
    hub = make_hub(store)
    subscriber = attach(hub)
    publish_to_store(store, "a", *["x" * 200_000] * 10)  # more than the hub and the store's ring keep
    wait_until(lambda: hub._channels["a"].ring.newest.offset == 10, 3)  # type: ignore[union-attr]
    with pytest.raises(Lagging):
        subscriber.take(10, 1 << 20)
    hub.detach(subscriber)


def test_what_was_taken_before_a_fault_is_still_told(make_hub: MakeHub) -> None:
    store = MemoryStore(ring=5, ring_ttl=TTL)
    hub = make_hub(store)
    subscriber = attach(hub, {"a": Start(), "b": Start()})
    publish_to_store(store, "b", "1")
    publish_to_store(store, "a", *["x" * 200_000] * 10)
    wait_until(lambda: hub._channels["a"].ring.newest.offset == 10, 3)  # type: ignore[union-attr]
    assert data(subscriber.take(10, 1 << 20)) == ["1"]
    assert subscriber.wait(0)
    with pytest.raises(Lagging):
        subscriber.take(10, 1 << 20)
    hub.detach(subscriber)


def test_older_entries_are_read_from_the_store_when_the_hub_has_let_them_go(make_hub: MakeHub) -> None:
    store = MemoryStore(ring=RING, ring_ttl=TTL)
    hub = make_hub(store)
    subscriber = attach(hub)
    publish_to_store(store, "a", *[f"{number} " + "x" * 200_000 for number in range(10)])
    wait_until(lambda: hub._channels["a"].ring.newest.offset == 10, 3)  # type: ignore[union-attr]
    assert [item[0] for item in data(subscriber.take(1000, 1 << 30))] == list("0123456789")
    hub.detach(subscriber)


def test_the_hub_s_rings_are_bounded_together(make_hub: MakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse.hub.channel.HUB_BYTES", 100_000)
    store = MemoryStore(ring=RING, ring_ttl=TTL)
    hub = make_hub(store)
    names = [f"c{number}" for number in range(10)]
    subscriber = attach(hub, {name: Start() for name in names})
    for number in range(20):
        for name in names:
            publish_to_store(store, name, f"{number} " + "x" * 1000)
    taken = collect(subscriber, 200)
    for name in names:
        mine = [item.entry.event.data for item in taken if isinstance(item, Delivery) and item.channel == name]
        assert [text.split()[0] for text in mine] == [str(number) for number in range(20)]
    held = sum(channel.ring.bytes for channel in hub._channels.values() if channel.ring)
    assert 0 < held <= 100_000
    assert hub._channels.bytes == held
    hub.detach(subscriber)


def test_equal_replays_are_read_once(make_hub: MakeHub) -> None:
    store = CountingStore()
    hub = make_hub(store)
    position, *_ = publish_to_store(store, "a", *range(10))
    store.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        reading = [pool.submit(hub.reader.read, [("a", position)]) for _ in range(8)]
        wait_until(lambda: store.readings, 3)
        time.sleep(0.1)
        store.gate.set()
        pages = [one.result(5) for one in reading]
    assert store.readings == 1
    assert all(len(page[0].entries) == 9 for page in pages)
    hub.reader.read([("a", position)])
    assert store.readings == 2


@pytest.mark.parametrize("fault", [StoreUnavailable("away"), RuntimeError("broken")])
def test_a_reading_that_fails_fails_for_all_who_wait_and_is_forgotten(make_hub: MakeHub, fault: Exception) -> None:
    store = CountingStore()
    hub = make_hub(store)
    (position,) = publish_to_store(store, "a", "1")
    store.gate.clear()
    store.fault = fault
    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(hub.reader.read, [("a", position)]) for _ in range(3)]
        wait_until(lambda: store.readings, 3)
        time.sleep(0.1)
        store.gate.set()
        for one in reading:
            with pytest.raises((StoreUnavailable, type(fault))):
                one.result(5)
    assert store.readings == 1
    store.fault = None
    assert hub.reader.read([("a", position)]) == [Page([])]


# Reads from the store, in bytes

LARGE = 60_000


def measured(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the bytes of data of each read of the store from now on."""
    readings: list[int] = []
    read = store.read

    def counted(*args: Any) -> list[Page | StoreUnavailable]:
        pages = read(*args)
        entries = [entry for page in pages if isinstance(page, Page) for entry in page.entries]
        readings.append(sum(len(entry.event.data) for entry in entries))
        return pages

    monkeypatch.setattr(store, "read", counted)
    return readings


def test_who_comes_back_is_placed_without_reading_what_it_missed(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"c{number}" for number in range(30)]
    starts = {}
    for name in names:
        first, *_ = publish_to_store(store, name, *["x" * LARGE] * 5)
        starts[name] = Start(first)
    readings = measured(store, monkeypatch)
    subscriber = attach(hub, starts)
    assert readings == [0]
    taken = subscriber.take(1000, 16_384)
    assert len(taken) == 1
    assert sum(readings) <= 2 * LARGE
    del readings[:]
    taken += subscriber.take(1000, 1 << 20)
    assert sum(readings) <= (1 << 20) + 2 * LARGE
    assert max(readings) <= PAGE_BYTES + LARGE
    taken += collect(subscriber, 4 * 30 - len(taken), 10)
    for name in names:
        mine = [item.entry.position.offset for item in taken if isinstance(item, Delivery) and item.channel == name]
        assert mine == [2, 3, 4, 5]
    hub.detach(subscriber)


def test_a_look_at_many_channels_reads_about_what_it_takes(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"c{number}" for number in range(30)]
    for name in names:
        publish_to_store(store, name, *["x" * LARGE] * 5)
    readings = measured(store, monkeypatch)
    look = hub.reader.look({name: Start(replay=3) for name in names}, 1000, 1 << 20)
    assert look.more
    assert 10 <= len(look.taken) <= (1 << 20) / LARGE
    assert sum(readings) <= (1 << 20) + 2 * LARGE
    assert max(readings) <= PAGE_BYTES + LARGE
    taken, rounds = list(look.taken), 1
    while look.more:
        look = hub.reader.look({name: Start(place) for name, place in look.positions.items()}, 1000, 1 << 20)
        taken += look.taken
        rounds += 1
        assert rounds < 20
    for name in names:
        mine = [item.entry.position.offset for item in taken if isinstance(item, Delivery) and item.channel == name]
        assert mine == [3, 4, 5]


def test_a_hub_that_missed_large_events_on_many_channels_reads_them_by_and_by(
    make_hub: MakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ForgetfulStore()
    store.filter = lambda notice: [] if notice.entry and notice.entry.event.data != "end" else [notice]
    hub = make_hub(store, clock=Clock())
    names = [f"c{number}" for number in range(120)]
    subscriber = attach(hub, {name: Start() for name in names})
    readings = measured(store, monkeypatch)
    for data in ["x" * LARGE] * 2 + ["end"]:
        store.publish([Publication(name, Event(data)) for name in names])
    taken = collect(subscriber, 3 * len(names), 20)
    for name in names:
        mine = [item.entry.position.offset for item in taken if isinstance(item, Delivery) and item.channel == name]
        assert mine == [1, 2, 3]
    assert max(readings) <= PAGE_BYTES + LARGE
    hub.detach(subscriber)


# Looking without attaching


def test_a_look_ensures_nothing_and_attaches_nobody(hub: Hub, store: Store) -> None:
    look = hub.reader.look(
        {"a": Start(), "b": Start(replay=5), "c": Start(fault="missing"), "d": Start(Position(1, 1))}, 10, 1000
    )
    assert store.newest(["a", "b", "c", "d"]) == [None] * 4
    assert (hub.subscribers, hub.channels) == (0, 0)
    assert look.positions == dict.fromkeys("abcd", UNBORN)
    assert look.taken == [Reset("c", "missing", None, UNBORN), Reset("d", "unknown", None, UNBORN)]
    assert not look.more


def test_a_look_tells_what_a_subscriber_would_take(hub: Hub, store: Store) -> None:
    positions = publish_to_store(store, "a", *range(RING + 10))
    (other,) = publish_to_store(store, "b", "x")
    starts = {"a": Start(positions[20]), "b": Start(replay=1)}
    look = hub.reader.look(starts, 1000, 1 << 20)
    assert data(look.taken) == [*map(str, range(21, RING + 10)), "x"]
    assert (look.positions, look.more) == ({"a": positions[-1], "b": other}, False)
    look = hub.reader.look(starts, 5, 1 << 20)
    assert (data(look.taken), look.more) == (["21", "22", "23", "24", "25"], True)
    assert look.positions["a"] == positions[25]
    look = hub.reader.look({"a": Start(positions[-2])}, 1000, 1)
    assert (len(look.taken), look.more) == (1, False)
    look = hub.reader.look({"a": Start(positions[1])}, 1000, 1 << 20)
    assert look.taken == [Reset("a", "trimmed", RING + 8, positions[-1])]


# Limits, and the end


def test_over_its_fill_a_hub_is_busy_until_someone_leaves(make_hub: MakeHub, store: Store) -> None:
    hub = make_hub(store, max_subscribers=2)
    first, _ = attach(hub), attach(hub)
    with pytest.raises(Busy, match="SSE_MAX_SUBSCRIBERS"):
        attach(hub)
    assert hub.subscribers == 2
    hub.detach(first)
    hub.detach(first)
    assert hub.subscribers == 1
    attach(hub)


def test_very_many_new_channels_at_once_are_refused_and_later_allowed(
    make_hub: MakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse.hub.schedule.ENSURED_AT_ONCE", 250)
    clock = Clock()
    store = MemoryStore(ring=RING, ring_ttl=TTL, clock=clock)
    hub = make_hub(store, clock=clock)
    subscriber = attach(hub, {f"c{number}": Start() for number in range(250)})
    (known,) = publish_to_store(store, "born", "x")
    with pytest.raises(Busy, match="very many new channels"):
        attach(hub, {"one/more": Start()})
    assert hub.subscribers == 1
    assert store.newest(["one/more"]) == [None]
    born = attach(hub, {"born": Start()})
    assert born.positions_by_name == {"born": known}
    clock.now += 0.1
    hub.detach(attach(hub, {"one/more": Start()}))
    hub.detach(subscriber)
    hub.detach(born)


def test_only_channels_without_a_ring_are_charged_and_who_is_refused_leaves_nothing(hub: Hub, store: Store) -> None:
    publish_to_store(store, "born", "x")
    charged: list[int] = []
    listening = hub.attach({name: Start() for name in ("born", "a", "b")}, 3, charged.append)
    assert charged == [2]
    again = hub.attach({name: Start() for name in ("born", "a", "c")}, 3, charged.append)
    assert charged == [2, 1]

    def refuse(count: int) -> None:
        assert count == 2
        raise TooMany("too many", retry_after=1, limit="a test's")

    for _ in range(2):
        with pytest.raises(TooMany):
            hub.attach({name: Start() for name in ("born", "a", "d", "e")}, 3, refuse)
    assert store.newest(["d", "e"]) == [None, None]
    assert hub.subscribers == 2
    publish_to_store(store, "d", "1")
    free = hub.attach({"d": Start(), "e": Start()}, 3)
    assert (free.positions_by_name["d"].offset, free.positions_by_name["e"].offset) == (1, 0)
    publish_to_store(store, "e", "1")
    assert data(collect(free, 1)) == ["1"]
    for subscriber in (listening, again, free):
        hub.detach(subscriber)


def test_of_two_who_wait_for_the_same_new_channel_one_is_charged(hub: Hub, store: Store) -> None:
    charged: list[int] = []
    with ThreadPoolExecutor(8) as pool:
        attaching = [pool.submit(hub.attach, {"a": Start(), "b": Start()}, 3, charged.append) for _ in range(8)]
        subscribers = [one.result(5) for one in attaching]
    assert 2 <= sum(charged) <= 2 * 8  # at the very same moment, each may be told that there is none
    assert {tuple(one.positions_by_name.items()) for one in subscribers} == {
        tuple(subscribers[0].positions_by_name.items())
    }
    for subscriber in subscribers:
        hub.detach(subscriber)
    del charged[:]
    hub.detach(hub.attach({"a": Start(), "b": Start()}, 3, charged.append))
    assert charged == []


def test_a_channel_whose_new_ring_was_refused_is_heard_once_it_is_born(hub: Hub, store: Store) -> None:
    thinking, refusing = threading.Event(), threading.Event()

    def think(count: int) -> None:
        thinking.set()
        assert refusing.wait(5)
        raise TooMany("too many", retry_after=1, limit="a test's")

    with ThreadPoolExecutor(1) as pool:
        attaching = pool.submit(hub.attach, {"a": Start()}, 3, think)
        assert thinking.wait(3)
        publish_to_store(store, "a", "1")
        wait_until(lambda: hub._channels["a"].ring, 3)
        refusing.set()
        with pytest.raises(TooMany):
            attaching.result(5)
    charged: list[int] = []
    subscriber = hub.attach({"a": Start(replay=1)}, 3, charged.append)
    assert charged == []
    assert data(collect(subscriber, 1)) == ["1"]
    hub.detach(subscriber)


def test_channels_that_were_never_listened_to_are_forgotten_with_who_asked(make_hub: MakeHub, tmp_path: Path) -> None:
    hub = make_hub(connect(RedisServer(tmp_path).url, ring=RING, ring_ttl=TTL))
    for number in range(3):
        with pytest.raises(StoreUnavailable):
            attach(hub, {f"a{number}": Start(), f"b{number}": Start()}, timeout=0.1)
    assert hub.channels == 0
    assert not hub._follower.arrivals


def test_channels_that_nobody_listens_to_are_dropped_after_a_while(make_hub: MakeHub) -> None:
    clock = Clock()
    store = MemoryStore(ring=RING, ring_ttl=TTL, clock=clock)
    hub = make_hub(store, clock=clock)
    stays = attach(hub, {"stays": Start()})
    back = attach(hub, {"back": Start()})
    hub.detach(attach(hub, {"a": Start(), "b": Start()}))
    hub.detach(back)
    publish_to_store(store, "a", "x")
    assert hub.channels == 4
    back = attach(hub, {"back": Start()})
    look_again(hub, clock)
    wait_until(lambda: "a" not in hub._channels and "b" not in hub._channels, 3)
    look_again(hub, clock)
    wait_until(lambda: hub.channels <= 3, 3)
    assert {"stays", "back"} <= hub._channels.keys()
    again = attach(hub, {"a": Start(replay=1)})
    assert data(collect(again, 1)) == ["x"]
    assert hub._channels.bytes == sum(channel.ring.bytes for channel in hub._channels.values() if channel.ring)
    for subscriber in (stays, back, again):
        hub.detach(subscriber)


def test_a_closed_hub_takes_nobody_and_its_thread_has_ended(make_hub: MakeHub, store: Store) -> None:
    hub = make_hub(store)
    attach(hub)
    thread = hub._follower._thread
    assert thread and thread.is_alive()
    begun = time.monotonic()
    hub.close()
    assert not thread.is_alive()
    assert time.monotonic() - begun < 1
    with pytest.raises(Busy, match="closing"):
        attach(hub)
    hub.close()


def test_a_hub_that_closes_dismisses_all_before_its_thread_is_woken(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribers = [attach(hub) for _ in range(3)]
    feed = hub._follower._feed
    assert feed
    wake, seen = feed.wake, list[bool]()

    def noted() -> None:
        seen.append(all(one.draining and one.wait(0) for one in subscribers))
        wake()

    monkeypatch.setattr(feed, "wake", noted)
    hub.close()
    assert seen[0]


def test_a_hub_that_nobody_used_has_no_thread(make_hub: MakeHub, store: Store) -> None:
    make_hub(store).close()


def test_a_hub_that_is_started_has_one_thread_and_serves(make_hub: MakeHub, store: Store) -> None:
    others = set(threading.enumerate())
    hub = make_hub(store)
    hub.start()
    hub.start()
    subscriber = attach(hub)
    publish_to_store(store, "a", "1")
    assert data(collect(subscriber, 1)) == ["1"]
    assert len(set(threading.enumerate()) - others) == 1
    hub.detach(subscriber)
    hub.close()
    hub.start()
    assert set(threading.enumerate()) <= others


def test_a_fault_of_one_channel_is_its_own(make_hub: MakeHub, redis_url: str, shared_redis: RedisServer) -> None:
    store = connect(redis_url, ring=RING, ring_ttl=TTL)
    hub = make_hub(store)
    with shared_redis.client() as client:
        client.set("sse:{wrong}", "precious")
    right = attach(hub)
    with pytest.raises(StoreUnavailable, match="wrong"):
        attach(hub, {"a": Start(), "wrong": Start()})
    assert hub.subscribers == 1
    publish_to_store(store, "a", "1")
    assert data(collect(right, 1)) == ["1"]
    with shared_redis.client() as client:
        client.delete("sse:{wrong}")
    mended = attach(hub, {"wrong": Start()})
    hub.detach(mended)
    hub.detach(right)


def test_a_key_that_turns_into_another_type_stops_its_channel_only_and_is_told_when_it_is_mended(
    make_hub: MakeHub,
    redis_url: str,
    shared_redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sse.log._last_logged", {})
    clock = Clock()
    store = connect(redis_url, ring=RING, ring_ttl=TTL)
    hub = make_hub(store, clock=clock)
    subscriber = attach(hub, {"a": Start(), "b": Start()})
    publish_to_store(store, "a", "1")
    assert data(collect(subscriber, 1)) == ["1"]
    with shared_redis.client() as client, caplog.at_level(logging.WARNING, "sse"):
        client.delete("sse:{a}")
        client.set("sse:{a}", "precious")
        look_again(hub, clock)
        wait_until(lambda: "channel a waits" in caplog.text, 3)
        publish_to_store(store, "b", "2")
        assert data(collect(subscriber, 1)) == ["2"]
        client.delete("sse:{a}")
        look_again(hub, clock)
        assert data(collect(subscriber, 1)) == ["reset unknown"]
        publish_to_store(store, "a", "3")
        assert data(collect(subscriber, 1)) == ["3"]
    hub.detach(subscriber)


def test_hostile_entries_reset_their_channel_and_delay_no_other(
    make_hub: MakeHub, redis_url: str, shared_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    store = connect(redis_url, ring=RING, ring_ttl=TTL)
    hub = make_hub(store, clock=clock)
    bad = [f"bad{number}" for number in range(10)]
    good = attach(hub)
    subscribers = {name: attach(hub, {name: Start()}) for name in bad}
    with shared_redis.client() as client, caplog.at_level(logging.WARNING, "sse"):
        for name in bad:
            publish_to_store(store, name, "first")
            assert data(collect(subscribers[name], 1)) == ["first"]
            client.xadd(f"sse:{{{name}}}", {"d": "[" * 100_000}, id="2-5")
        look_again(hub, clock)
        publish_to_store(store, "a", "1")
        assert data(collect(good, 1)) == ["1"]
        for name, subscriber in subscribers.items():
            assert data(collect(subscriber, 1)) == ["reset diverged"]
            publish_to_store(store, name, "next")
            assert data(collect(subscriber, 1)) == ["next"]
        for name in bad:  # announcements that others made
            client.publish(f"sse:0:{{{name}}}", "3-1 4-1\n" + "[" * 100_000)
            newest = store.newest([name])[0]
            client.publish(f"sse:0:{{{name}}}", f'{newest} 9-1\n{{"data":"forged"}}')
            publish_to_store(store, name, "last")
            assert data(collect(subscribers[name], 1)) == ["last"]
    assert "could not go on" not in caplog.text
    assert "is reset: diverged" in caplog.text
    for subscriber in (good, *subscribers.values()):
        hub.detach(subscriber)


def test_a_replay_over_a_hostile_entry_is_reset_there_and_goes_on(
    make_hub: MakeHub, redis_url: str, shared_redis: RedisServer
) -> None:
    store = connect(redis_url, ring=RING, ring_ttl=TTL)
    begun = publish_to_store(store, "a", "1", "2")[0]
    with shared_redis.client() as client:
        client.xadd("sse:{a}", {"d": "[" * 100_000}, id="3-5")
    publish_to_store(store, "a", "4")
    hub = make_hub(store)
    look = hub.reader.look({"a": Start(begun)}, 100, 100_000)
    assert (data(look.taken), look.more) == (["2"], True)
    look = hub.reader.look({"a": Start(look.positions["a"])}, 100, 100_000)
    assert data(look.taken) == ["reset diverged"]
    subscriber = attach(hub, {"a": Start(begun)})
    assert data(subscriber.take(100, 100_000)) == ["2"]  # alone: a poll leaves out what comes before a reset
    assert data(collect(subscriber, 1)) == ["reset diverged"]
    publish_to_store(store, "a", "5")
    assert data(collect(subscriber, 1)) == ["5"]
    hub.detach(subscriber)


def test_a_replay_that_would_begin_at_an_entry_of_others_is_reset(
    make_hub: MakeHub, redis_url: str, shared_redis: RedisServer
) -> None:
    store = connect(redis_url, ring=RING, ring_ttl=TTL)
    publish_to_store(store, "a", "1")
    with shared_redis.client() as client:
        client.xadd("sse:{a}", {"d": "x"}, id="5-0")  # no position of ours
    publish_to_store(store, "a", "6", "7")
    hub = make_hub(store)
    look = hub.reader.look({"a": Start(replay=2)}, 100, 100_000)
    assert data(look.taken) == ["reset diverged"]
    assert data(hub.reader.look({"a": Start(replay=1)}, 100, 100_000).taken) == ["7"]
    subscriber = attach(hub, {"a": Start(replay=2), "b": Start()})
    publish_to_store(store, "b", "elsewhere")
    assert sorted(data(collect(subscriber, 2))) == ["elsewhere", "reset diverged"]
    publish_to_store(store, "a", "8")
    assert data(collect(subscriber, 1)) == ["8"]
    hub.detach(subscriber)


def test_a_fault_that_nobody_thought_of_is_logged_and_survived(
    make_hub: MakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    store = CountingStore()
    hub = make_hub(store)
    subscriber = attach(hub)
    store.fault = RuntimeError("unheard of")
    with caplog.at_level(logging.ERROR, "sse"):
        hub._follower.upkeep.dirty["a"] = None
        publish_to_store(store, "a", "1")
        wait_until(lambda: "could not go on" in caplog.text, 3)
    store.fault = None
    publish_to_store(store, "a", "2")
    assert data(collect(subscriber, 2)) == ["1", "2"]
    hub.detach(subscriber)


# With a Redis that goes away


def test_a_store_that_is_away_refuses_newcomers_in_time_and_leaves_nothing(make_hub: MakeHub, tmp_path: Path) -> None:
    hub = make_hub(connect(RedisServer(tmp_path).url, ring=RING, ring_ttl=TTL))
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"0\.3 s"):
        attach(hub, timeout=0.3)
    assert time.monotonic() - begun < 2
    assert hub.subscribers == 0


def test_a_newcomer_waits_longer_for_a_store_that_answers_than_for_one_that_does_not(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.start()
    wait_until(lambda: hub.was_reached, 5)
    upkeep = hub._follower.upkeep
    begin = upkeep._begin

    def begin_late(channels: list[Channel], feed: Feed) -> None:
        time.sleep(0.5)  # as if very many others were served first
        begin(channels, feed)

    monkeypatch.setattr(upkeep, "_begin", begin_late)
    hub.detach(attach(hub, timeout=0.1))
    assert hub.subscribers == 0


def test_a_hub_that_is_started_tells_what_ails_the_store_once_for_each_fault(
    make_hub: MakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path, maxmemory_policy="allkeys-lru")

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "sse"]

    with caplog.at_level(logging.WARNING, "sse"):
        make_hub(connect(server.url, ring=RING, ring_ttl=TTL)).start()
        wait_until(told, 3)
        time.sleep(0.5)  # in which it tries several times more
        assert len(told()) == 1
        assert "the store is away" in told()[0]
        with server:
            wait_until(lambda: "allkeys-lru" in told()[-1], 5)
            with server.client() as client:
                client.config_set("maxmemory-policy", "noeviction")
            wait_until(lambda: told()[-1] == "the store is back", 15)


@pytest.mark.parametrize("lost_writes", [False, True])
def test_subscribers_stay_while_redis_is_away_and_go_on_or_are_told(
    make_hub: MakeHub, tmp_path: Path, lost_writes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path) as server, caplog.at_level(logging.WARNING, "sse"):
        store = connect(server.url, ring=RING, ring_ttl=TTL)
        hub = make_hub(store)
        subscriber = attach(hub)
        publish_to_store(store, "a", "1")
        assert data(collect(subscriber, 1)) == ["1"]
        server.restart(lost_writes, down=0.5)
        publish_to_store(store, "a", "2")
        (item,) = collect(subscriber, 1, 10)
        if lost_writes:
            assert isinstance(item, Reset)
            assert item.reason in ("unknown", "diverged")
        else:
            assert data([item]) == ["2"]
        (end,) = publish_to_store(store, "a", "3")
        heard = list[str]()
        wait_until(
            lambda: heard.extend(data(collect(subscriber, 1, 0.2))) or subscriber.positions_by_name["a"] == end, 5
        )
        assert heard in (["3"], ["2", "3"] if lost_writes else [])  # a reset may come before 2, or count it in
        hub.detach(subscriber)
        assert "the store is away" in caplog.text


# Seats: one subscriber for many connections at the same positions


def listeners(hub: Hub, name: str = "a") -> int:
    """Return how many subscribers a channel has. Each serves one connection or more."""
    return len(hub._channels[name].subscribers)


def test_subscribers_at_the_same_position_merge_into_one_and_each_connection_counts(hub: Hub, store: Store) -> None:
    publish_to_store(store, "a", "before")
    one, *others = [attach(hub) for _ in range(5)]
    for number, other in enumerate(others, 2):
        assert hub.merge(one, other)
        assert (one.is_detached, other.is_detached, hub.subscribers) == (False, True, 5)
        assert listeners(hub) == 6 - number
    assert listeners(hub) == 1
    pair = [attach(hub), attach(hub)]
    assert hub.merge(*pair)
    assert hub.merge(pair[0], one)  # a row of many joins another
    assert (listeners(hub), hub.subscribers) == (1, 7)
    for other in (one, *others, pair[1]):
        hub.detach(other)  # which has ended already
        hub.release(other)
    assert hub.subscribers == 7
    publish_to_store(store, "a", "after")
    assert data(collect(pair[0], 1)) == ["after"]
    for left in (6, 5, 4, 3, 2, 1):
        hub.release(pair[0])
        assert (listeners(hub), hub.subscribers) == (1, left)
    hub.detach(pair[0])
    hub.release(pair[0])
    assert (listeners(hub), hub.subscribers) == (0, 0)


def test_those_at_other_places_or_of_other_channels_do_not_merge(hub: Hub, store: Store) -> None:
    first, _ = publish_to_store(store, "a", "1", "2")
    here, behind = attach(hub), attach(hub, {"a": Start(first)})
    both = attach(hub, {"a": Start(), "b": Start()})
    for one, other in ((here, behind), (here, both), (both, here), (behind, here)):
        assert not hub.merge(one, other)
    assert (here.is_detached, behind.is_detached, both.is_detached, hub.subscribers) == (False, False, False, 3)
    assert data(collect(behind, 1)) == ["2"]
    assert hub.merge(here, behind)
    assert hub.subscribers == 3


def test_a_subscriber_that_was_detached_or_is_the_same_does_not_merge_and_its_seat_is_given_back_once(
    hub: Hub, store: Store
) -> None:
    publish_to_store(store, "a", "x")
    one, other = attach(hub), attach(hub)
    assert not hub.merge(one, one)
    assert (one.is_detached, hub.subscribers) == (False, 2)
    with hub.lock:
        hub.detach(other)  # which has to wait for the lock, and is done later
        assert not other.is_detached
    assert not hub.merge(one, other)
    assert not hub.merge(other, one)
    hub.release(other)
    assert hub.subscribers == 1
    hub.detach(attach(hub))
    assert (hub.subscribers, other.is_detached, one.is_detached) == (1, True, False)
    assert not hub.merge(one, other)
    hub.detach(hub.split(other))
    assert hub.subscribers == 1
    hub.detach(one)
    assert hub.subscribers == 0


def test_a_connection_that_leaves_too_often_takes_no_seat_of_another_and_the_log_has_it(
    hub: Hub, store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse.log._last_logged", {})
    one, other, third = [attach(hub) for _ in range(3)]
    assert hub.merge(one, other)
    with caplog.at_level(logging.WARNING, "sse"):
        hub.release(one)
        assert (hub.subscribers, caplog.text) == (2, "")
        hub.release(one)
        assert hub.subscribers == 2
        assert "not counted" in caplog.text
    twin = hub.split(one)
    assert hub.subscribers == 3
    for left, subscriber in ((2, twin), (1, one), (0, third)):
        hub.detach(subscriber)
        assert hub.subscribers == left


def test_a_subscriber_that_is_detached_while_it_is_woken_waits_for_no_lock_and_the_others_are_woken(
    hub: Hub, store: Store
) -> None:
    subscribers, woken, listening = [attach(hub) for _ in range(5)], list[int](), threading.Event()

    def wake(number: int) -> None:
        if listening.is_set():
            woken.append(number)
            hub.detach(subscribers[number])

    for number, subscriber in enumerate(subscribers):
        subscriber.wake_by(lambda number=number: wake(number))
    listening.set()
    publish_to_store(store, "a", "x")
    wait_until(lambda: hub.subscribers == 0, 3)
    assert sorted(woken) == [0, 1, 2, 3, 4]
    wait_until(lambda: listeners(hub) == 0, 3)


def test_a_channel_that_was_dropped_and_begun_anew_is_another(make_hub: MakeHub) -> None:
    """Subscribers of the old channel are not woken by the new one, though both are at the same position."""
    store = MemoryStore(ring=RING, ring_ttl=TTL)
    hub = make_hub(store)
    publish_to_store(store, "a", "x")
    old, new = attach(hub), attach(hub)
    old.channels = (Channel("a"),)
    assert not hub.merge(old, new)


def test_a_connection_that_is_taken_out_goes_its_own_way(hub: Hub, store: Store) -> None:
    places = publish_to_store(store, "a", "before")
    row, other = attach(hub), attach(hub)
    assert hub.merge(row, other)
    one = hub.split(row)
    assert (row.is_detached, one.is_detached, hub.subscribers, listeners(hub)) == (False, False, 2, 2)
    assert one.positions_by_name == row.positions_by_name == {"a": places[0]}
    publish_to_store(store, "a", "1", "2")
    assert data(collect(one, 2)) == ["1", "2"]
    assert row.positions_by_name == {"a": places[0]}
    assert data(collect(row, 2)) == ["1", "2"]
    assert hub.merge(row, one)
    assert (listeners(hub), hub.subscribers, one.is_detached) == (1, 2, True)
    hub.release(row)
    hub.detach(row)
    assert hub.subscribers == 0


def test_a_connection_that_is_taken_out_is_reset_and_told_that_it_lags_as_the_others_are(make_hub: MakeHub) -> None:
    store = MemoryStore(ring=3, ring_ttl=TTL)
    hub = make_hub(store)
    row, other = attach(hub), attach(hub)
    hub.merge(row, other)
    publish_to_store(store, "a", *["x" * 300_000] * 5)  # the hub's ring holds one, the store's three
    wait_until(lambda: [top.offset for _, top in hub.newest(["a"]) if top] == [5], 5)
    for lagging in (hub.split(row), row):
        with pytest.raises(Lagging):
            lagging.take(1000, 1 << 20)

    store = MemoryStore(ring=50, ring_ttl=TTL)
    hub = make_hub(store)
    row, other = attach(hub), attach(hub)
    hub.merge(row, other)
    store._rings.clear()
    (top,) = publish_to_store(store, "a", "another life")
    one = hub.split(row)
    for lost in (one, row):
        taken = collect(lost, 1, 8)
        assert taken == [Reset("a", taken[0].reason, None, top)]  # type: ignore[union-attr]


def test_each_connection_counts_against_the_limit(make_hub: MakeHub, store: Store) -> None:
    hub = make_hub(store, max_subscribers=3)
    row, *others = [attach(hub) for _ in range(3)]
    for other in others:
        assert hub.merge(row, other)
    with pytest.raises(Busy):
        attach(hub)
    one = hub.split(row)
    with pytest.raises(Busy):
        attach(hub)
    hub.release(row)
    third = attach(hub)
    with pytest.raises(Busy):
        attach(hub)
    for left in (one, row, third):
        hub.detach(left)
    assert hub.subscribers == 0


def test_a_channel_is_dropped_only_when_its_last_subscriber_has_gone(make_hub: MakeHub) -> None:
    store = MemoryStore(ring=RING, ring_ttl=TTL)
    clock = Clock()
    hub = make_hub(store, clock=clock)
    row, other = attach(hub), attach(hub)
    assert hub.merge(row, other)
    one = hub.split(row)
    feed = hub._follower._feed
    assert feed

    def let_time_pass() -> None:
        for _ in range(3):
            clock.now += 6
            hub._follower.upkeep.check(feed)

    for leaves in (one, row):
        let_time_pass()
        assert (hub.channels, hub._channels["a"].idle_since) == (1, None)
        publish_to_store(store, "a", "still heard")
        wait_until(lambda row=row: row.is_behind(), 3)
        row.take(1000, 1 << 20)
        hub.detach(leaves)
    assert hub._channels["a"].idle_since is not None
    let_time_pass()
    assert hub.channels == 0


def test_connections_come_merge_part_and_end_in_a_storm_and_none_misses_anything(
    make_hub: MakeHub, store: Store, pytestconfig: pytest.Config
) -> None:
    """One thread does this, as in the worker, while the hub's own thread goes on."""
    wanted = 12
    hub = make_hub(store, max_subscribers=wanted)
    rng = random.Random(pytestconfig.getoption("hypothesis_seed"))
    rows: list[tuple[Subscriber, list[list[str]]]] = []  # the events that each connection has received

    def come() -> None:
        row = attach(hub)
        rows.append((row, [[str(number) for number in range(row.positions_by_name["a"].offset)]]))  # before it came

    def end(row: Subscriber, heard: list[list[str]]) -> None:
        heard.pop()
        if heard:
            hub.release(row)
        else:
            hub.detach(row)
            rows.remove((row, heard))

    def connections() -> int:
        return sum(len(heard) for _, heard in rows)

    for _ in range(wanted):
        come()
    published = ended = 0
    deadline = time.monotonic() + 20
    while rows and time.monotonic() < deadline:
        if published < 300 and rng.random() < 0.5:
            publish_to_store(store, "a", str(published))
            published += 1
        row, heard = rng.choice(rows)
        told = data(row.take(rng.choice((1, 2, 1000)), 1 << 20))
        for one in heard:
            one += told
        if len(heard) > 1 and rng.random() < 0.3:
            rows.append((hub.split(row), [heard.pop()]))
        for other, others in list(rows):
            if other is not row and rng.random() < 0.5 and hub.merge(row, other):
                heard += others
                rows.remove((other, others))
        if rng.random() < 0.2:
            end(row, heard)
            ended += 1
            assert hub.subscribers == connections() == wanted - 1
            come()
        elif rng.random() < 0.1:
            with pytest.raises(Busy):
                attach(hub)
        assert connections() == hub.subscribers == wanted
        assert {row for row, _ in rows} == set(hub._channels["a"].subscribers)
        if published == 300 and all(len(one) == 300 for _, heard in rows for one in heard):
            break
    assert [one for _, heard in rows for one in heard] == [[str(number) for number in range(300)]] * wanted
    assert ended > 20
    for left in range(wanted - 1, -1, -1):
        end(*rng.choice(rows))
        assert hub.subscribers == left


# Draining


def test_a_drain_is_spread_over_its_window_and_newcomers_are_told_at_once(make_hub: MakeHub, store: Store) -> None:
    hub = make_hub(store)
    waiting = [attach(hub, {"a": Start(), "b": Start()}) for _ in range(6)]
    for one in waiting:
        one.take(1000, 1 << 20)
    told: list[float] = []
    begun = time.monotonic()
    with ThreadPoolExecutor(7) as pool:
        results = [pool.submit(lambda one=one: (one.wait(10), time.monotonic() - begun)) for one in waiting]
        hub.drain(0.6)
        assert time.monotonic() - begun > 0.55
        for result in results:
            woken, after = result.result(10)
            assert woken
            told.append(after)
    told.sort()
    assert all(one.draining for one in waiting)
    assert told[0] < 0.35
    assert told[-1] > 0.4
    newcomer = attach(hub)
    assert newcomer.draining
    for one in (newcomer, *waiting):
        hub.detach(one)


def test_who_is_woken_by_a_call_is_not_drained_by_the_hub(hub: Hub) -> None:
    woken = []
    one = attach(hub)
    one.wake_by(lambda: woken.append(1))
    hub.drain(0)
    assert not one.draining
    assert woken == [1]  # by `wake_by` itself
    hub.detach(one)
