"""The decisions of the hub's thread, without the thread, over the memory store, and without sleeping."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from sse.errors import Busy, StoreUnavailable
from sse.event import Entry, Event, Position
from sse.hub.channel import Channel, Channels
from sse.hub.follower import Follower
from sse.hub.schedule import GATHER, PER_TURN, Allowance, Arrivals, Checks, Queue
from sse.hub.upkeep import Upkeep
from sse.stores import PAGE_BYTES, MemoryStore, Notice, Page
from sse.stores.base import Standing
from tests.driven_streams import Listener
from tests.publishing import publish_to_store

RING = 20
TTL = 3600


def named(count: int, prefix: str = "c") -> list[Channel]:
    return [Channel(f"{prefix}{number}") for number in range(count)]


# Arrivals


def arrived(*channels: Channel) -> Arrivals:
    arrivals = Arrivals()
    for channel in channels:
        arrivals.add(channel)
    return arrivals


def test_without_arrivals_the_thread_is_not_woken_and_waits_for_none() -> None:
    arrivals = Arrivals()
    assert not arrivals.announce(10)
    assert arrivals.patience(10) is None
    assert arrivals.take(10) == []
    assert not arrivals.is_announced


def test_the_thread_is_woken_once_for_all_that_arrive_before_its_turn() -> None:
    one, other = named(2)
    arrivals = arrived(one)
    assert [arrivals.announce(10), arrivals.announce(10)] == [True, False]
    arrivals.add(other)
    assert not arrivals.announce(10.1)
    assert arrivals.is_announced
    assert arrivals.take(10.2) == [one, other]
    assert (len(arrivals), arrivals.is_announced) == (0, False)


def test_a_channel_that_comes_alone_is_followed_at_once() -> None:
    one, other = named(2)
    arrivals = arrived(one)
    assert arrivals.announce(10)
    assert arrivals.take(10) == [one]
    assert arrivals.patience(10) is None
    arrivals.add(other)
    assert arrivals.announce(10)
    assert arrivals.take(10) == [other]


def test_after_several_at_once_those_that_follow_are_gathered_and_the_thread_is_not_woken_for_them() -> None:
    one, other, late, later = named(4)
    arrivals = arrived(one, other)
    assert arrivals.announce(10)
    assert arrivals.take(10) == [one, other]
    assert arrivals.patience(10) == pytest.approx(GATHER)  # whether or not any comes
    arrivals.add(late)
    assert not arrivals.announce(10 + GATHER / 5), "the thread comes back by itself"
    assert arrivals.is_announced
    assert arrivals.take(10 + GATHER / 4) == []
    arrivals.add(later)
    assert arrivals.patience(10 + GATHER / 2) == pytest.approx(GATHER / 2)
    assert arrivals.take(10 + GATHER) == [late, later]


def test_of_very_many_arrivals_each_turn_takes_some_and_the_next_comes_at_once() -> None:
    channels = named(2 * PER_TURN + 1)
    arrivals = arrived(*channels)
    assert arrivals.announce(10)
    taken = [arrivals.take(10), arrivals.take(10)]
    assert [len(some) for some in taken] == [PER_TURN, PER_TURN]
    assert arrivals.is_announced
    assert arrivals.patience(10) == 0
    taken.append(arrivals.take(10))
    assert [channel for some in taken for channel in some] == channels
    assert not arrivals.is_announced


def test_a_channel_that_is_forgotten_or_comes_twice_is_not_taken_twice() -> None:
    one, other = named(2)
    arrivals = arrived(one, other, one)
    arrivals.remove(other)
    arrivals.remove(other)
    assert arrivals.take(10) == [one]


def test_a_thread_that_could_not_be_started_is_asked_for_again() -> None:
    arrivals = arrived(*named(1))
    assert arrivals.announce(10)
    arrivals.retract()
    assert arrivals.announce(10)


def test_a_thread_that_cannot_be_started_is_forgotten_and_the_next_arrival_starts_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = Follower(world.store, world.channels, world.lock, world.clock, lambda: None, lambda _: None)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    follower.arrivals.add(Channel("a"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="new thread"):
                follower.wake()
    assert follower._thread is None
    started: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: started.append(thread.name))
        follower.wake()
        follower.wake()
        follower.start()
    assert started == ["sse-hub"]


def test_a_follower_that_was_stopped_starts_no_thread(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = Follower(world.store, world.channels, world.lock, world.clock, lambda: None, lambda _: None)
    follower.stop()
    assert follower.is_stopped
    follower.arrivals.add(Channel("a"))
    follower.start()
    follower.wake()
    follower.join()
    assert follower._thread is None


# Turns


def test_names_have_their_turn_in_order_and_a_name_that_waits_keeps_its_place() -> None:
    queue = Queue()
    queue.put(["a", "b"])
    queue.put(["c", "a"])
    assert queue.take() == ["a", "b", "c"]
    assert queue.take() == []


def test_after_a_fault_half_as_many_have_a_turn_behind_all_others_until_the_cause_is_alone() -> None:
    queue = Queue()
    names = [str(number) for number in range(PER_TURN + 20)]
    queue.put(names)
    sizes, well = [], set[str]()
    for _ in range(40):
        taken = queue.take()
        if not taken:
            break
        sizes.append(len(taken))
        if "5" in taken:
            queue.failed(taken)
        else:
            well |= set(taken)
            queue.succeeded()
    assert (sizes[:3], sizes[-1]) == ([PER_TURN, PER_TURN // 2, PER_TURN // 4], 1)
    assert well == set(names) - {"5"}
    assert list(queue) == ["5"]


def test_the_size_of_a_turn_halves_with_each_fault_and_doubles_with_each_success_up_to_its_bound() -> None:
    queue = Queue()

    def size() -> int:
        queue.put(str(number) for number in range(2 * PER_TURN))
        return len(queue.take())

    assert size() == PER_TURN
    for number in (50, 25, 12):
        queue.put(str(number) for number in range(2 * PER_TURN))
        queue.failed(queue.take())
        assert size() == number
    queue.failed(["one"])
    assert size() == 1
    for number in (2, 4, 8, 16, 32, 64, 100, 100):
        queue.succeeded()
        assert size() == number


# How many rings are ensured


def test_many_rings_are_ensured_at_once_and_then_so_many_each_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse.hub.schedule.ENSURED_AT_ONCE", 100)
    monkeypatch.setattr("sse.hub.schedule.ENSURED_PER_SECOND", 10)
    allowance = Allowance(0)
    assert [allowance.take(count, 0) for count in (0, 60, 60, 1)] == [0, 60, 40, 0]
    assert [allowance.take(1, 0.05), allowance.take(9, 0.2), allowance.take(9, 1.2)] == [0, 2, 9]
    assert [allowance.take(9, 1.2), allowance.take(1000, 1e6)] == [1, 100]


# Checks


def test_every_five_seconds_or_so_all_channels_are_looked_at_once() -> None:
    checks, channels = Checks(0), {channel.name: channel for channel in named(3)}
    assert not checks.is_due(4.9)
    assert checks.take(4.9, channels) == []
    assert checks.patience(3) == pytest.approx(2)
    assert checks.is_due(5)
    assert set(checks.take(5, channels)) == set(channels.values())
    assert 5 + 4.5 <= checks.next <= 5 + 5.5
    assert not checks.is_under_way
    assert not checks.is_due(5)
    checks.postpone(100)
    assert not checks.is_due(104)
    assert checks.is_due(105)


def test_a_check_of_many_channels_takes_several_turns_soon_after_one_another() -> None:
    checks, channels = Checks(0), {channel.name: channel for channel in named(2 * PER_TURN + 1)}
    first = checks.take(5, channels)
    assert len(first) == PER_TURN
    assert checks.is_under_way
    assert checks.is_due(5)
    assert 0 < checks.patience(5) < 0.1
    second, third = checks.take(5, channels), checks.take(5, channels)
    assert (len(second), len(third)) == (PER_TURN, 1)
    assert {*first, *second, *third} == set(channels.values())
    assert not checks.is_under_way


def test_a_check_that_takes_longer_than_five_seconds_is_not_begun_anew() -> None:
    checks, channels = Checks(0), {channel.name: channel for channel in named(PER_TURN + 1)}
    first = checks.take(5, channels)
    (last,) = checks.take(20, channels)
    assert {*first, last} == set(channels.values())
    assert checks.is_due(20)
    assert len(checks.take(20, channels)) == PER_TURN


def test_a_channel_that_was_dropped_or_replaced_since_the_check_began_is_left_out() -> None:
    checks, channels = Checks(0), {channel.name: channel for channel in named(2 * PER_TURN)}
    checks.take(5, channels)
    del channels["c0"]
    channels["c1"] = Channel("c1")
    assert {channel.name for channel in checks.take(5, channels)} == {f"c{number}" for number in range(2, PER_TURN)}


# The store, and what is announced


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class FaultyStore(MemoryStore):
    """A memory store in which some channels fail, and some rings can be raised."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(ring=RING, ring_ttl=TTL, clock=clock)
        self.faulty: set[str] = set()
        self.calls: list[tuple[str, list[str]]] = []

    def standing(self, channels: Sequence[str], *, prolong: bool = False) -> list[Standing | StoreUnavailable]:
        self.calls.append(("keep" if prolong else "newest", list(channels)))
        tops = super().standing(channels, prolong=prolong)
        return [
            StoreUnavailable(f"{name} is at fault") if name in self.faulty else top
            for name, top in zip(channels, tops, strict=True)
        ]

    def ensure(self, channels: Sequence[str]) -> list[Position | StoreUnavailable]:
        self.calls.append(("ensure", list(channels)))
        tops = dict(zip(channels, super().ensure(channels), strict=True))
        return [StoreUnavailable(f"{name} is at fault") if name in self.faulty else tops[name] for name in channels]

    def read(
        self, places: Sequence[tuple[str, Position]], limit: int = 100, max_bytes: int = PAGE_BYTES
    ) -> list[Page | StoreUnavailable]:
        self.calls.append(("read", [name for name, _ in places]))
        pages = super().read(places, limit, max_bytes)
        return [
            StoreUnavailable(f"{name} is at fault") if name in self.faulty else page
            for (name, _), page in zip(places, pages, strict=True)
        ]


class NotingFeed:
    """A feed that records the channels that it no longer listens to."""

    def __init__(self) -> None:
        self.left: list[str] = []

    def unsubscribe(self, channels: Sequence[str]) -> None:
        self.left += channels


class World:
    """Upkeep over a memory store, with a register to which tests add channels."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = FaultyStore(self.clock)
        self.channels = Channels()
        self.lock = threading.Lock()
        self.feed = NotingFeed()
        self.orphaned: list[str] = []
        self.upkeep = Upkeep(self.store, self.channels, self.lock, self.clock, self.orphaned.append)
        self.listeners: dict[str, Listener] = {}

    def enter(self, *names: str, wanted: bool = True) -> None:
        for name in names:
            channel = self.channels[name] = Channel(name, wanted=wanted)
            channel.listen()
            self.listeners[name] = Listener()
            channel.add(self.listeners[name])
            self.upkeep.new[name] = None

    def settle(self) -> None:
        self.upkeep.settle(self.feed)  # type: ignore[arg-type]
        assert not self.lock.locked()

    def check(self) -> None:
        self.upkeep.check(self.feed)  # type: ignore[arg-type]
        assert not self.lock.locked()

    def apply(self, *notices: Notice) -> int:
        return self.upkeep.apply(notices)

    def newest(self, name: str) -> Position:
        ring = self.channels[name].ring
        assert ring is not None
        return ring.newest

    def heard(self, name: str) -> list[str]:
        ring = self.channels[name].ring
        assert ring is not None
        return [item.event.data for item in ring.after(ring.base) or []]

    def woken(self, name: str) -> int:
        """How often since the last time that this was asked."""
        woken, self.listeners[name].woken = self.listeners[name].woken, 0
        return woken


@pytest.fixture
def world() -> World:
    return World()


def test_a_new_channel_begins_at_the_newest_position_of_the_store(world: World) -> None:
    *_, top = publish_to_store(world.store, "a", 1, 2)
    world.enter("a")
    assert world.upkeep.is_behind
    world.settle()
    assert (world.newest("a"), world.heard("a"), world.woken("a")) == (top, [], 1)
    assert not world.channels["a"].ensured
    assert not world.upkeep.is_behind


def test_a_channel_that_the_store_does_not_have_is_ensured_if_that_is_wanted(world: World) -> None:
    world.enter("a")
    world.enter("b", wanted=False)
    world.settle()
    assert world.channels["a"].was_unknown
    assert world.newest("a") == world.store.newest(["a"])[0]
    assert (world.channels["b"].ring, world.channels["b"].unborn, world.store.newest(["b"])) == (None, True, [None])
    assert (world.woken("a"), world.woken("b")) == (1, 1)
    world.channels["b"].want()
    world.upkeep.new["b"] = None
    world.store.calls.clear()
    world.settle()
    assert world.store.calls == [("newest", []), ("ensure", ["b"])], "that it has none is known"
    assert world.channels["b"].was_unknown


def test_beyond_the_allowance_a_channel_is_refused_and_listened_to_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse.hub.schedule.ENSURED_AT_ONCE", 2)
    world.upkeep = Upkeep(world.store, world.channels, world.lock, world.clock, world.orphaned.append)
    publish_to_store(world.store, "born", "x")
    world.enter("a", "b", "c", "born")
    refused = world.channels["c"]
    world.settle()
    assert list(world.channels) == ["a", "b", "born"]
    assert isinstance(refused.fault, Busy)
    assert (world.feed.left, world.woken("c")) == (["c"], 1)
    assert world.store.newest(["c"]) == [None]


def test_a_new_channel_at_fault_is_refused_with_its_fault_and_the_others_begin(world: World) -> None:
    world.store.faulty.add("bad")
    world.enter("a", "bad")
    refused = world.channels["bad"]
    world.settle()
    assert list(world.channels) == ["a"]
    assert isinstance(refused.fault, StoreUnavailable)
    assert "bad is at fault" in refused.fault.message
    assert world.channels["a"].ring is not None


def follow(world: World, *names: str) -> None:
    world.enter(*names)
    world.settle()
    for name in names:
        assert world.woken(name) == 1


def announced(world: World, channel: str, *data: object) -> list[Notice]:
    """Return the feed's announcements of these events, once they are stored."""
    previous, notices = world.newest(channel), []
    for item in data:
        (position,) = publish_to_store(world.store, channel, item)
        page = world.store.read([(channel, previous)], 1)[0]
        assert isinstance(page, Page)
        notices.append(Notice(channel, previous, page.entries[0]))
        previous = position
    return notices


def test_what_is_announced_in_order_is_appended_and_wakes_each_subscriber_once(world: World) -> None:
    follow(world, "a", "b")
    notices = announced(world, "a", 1, 2, 3)
    assert world.apply(*notices, Notice("unheard", world.newest("a"), notices[0].entry)) == 1
    assert (world.heard("a"), world.woken("a"), world.woken("b")) == (["1", "2", "3"], 1, 0)
    assert world.channels.bytes > 0
    assert not world.upkeep.is_behind
    assert world.apply(*notices) == 0, "a repetition is passed over"
    assert (world.heard("a"), world.upkeep.is_behind) == (["1", "2", "3"], False)


def test_where_an_announcement_is_missing_the_store_is_read(world: World) -> None:
    follow(world, "a")
    first, _, third = announced(world, "a", 1, 2, 3)
    assert world.apply(first, third) == 1
    assert list(world.upkeep.dirty) == ["a"]
    assert world.woken("a") == 1
    world.settle()
    assert (world.heard("a"), world.woken("a")) == (["1", "2", "3"], 1)
    assert not world.upkeep.is_behind


def test_a_notice_without_an_entry_has_the_store_asked(world: World) -> None:
    follow(world, "a")
    publish_to_store(world.store, "a", 1)
    world.channels["new"] = Channel("new")
    assert world.apply(Notice("gone"), Notice("a"), Notice("new")) == 0
    assert (list(world.upkeep.dirty), list(world.upkeep.new)) == (["a"], ["new"])


def test_entries_are_repaired_page_by_page(world: World) -> None:
    follow(world, "a", "b")
    for name in "ab":
        publish_to_store(world.store, name, *["x" * 50_000] * 6)
    world.upkeep.dirty.put("ab")
    rounds = 0
    while world.upkeep.dirty:
        world.settle()
        rounds += 1
        assert rounds < 10
    assert rounds > 1
    assert [len(world.heard(name)) for name in "ab"] == [6, 6]


def test_a_channel_that_cannot_be_continued_is_reset_for_the_reason_that_the_store_gives(world: World) -> None:
    follow(world, "trimmed", "lost", "well")
    *_, top = publish_to_store(world.store, "trimmed", *range(RING + 5))
    publish_to_store(world.store, "lost", "x")
    world.upkeep.dirty.put(["lost"])
    world.settle()
    world.store._rings.pop("lost")
    world.upkeep.dirty.put(["trimmed", "lost", "well"])
    for name in world.listeners:
        world.woken(name)
    world.settle()
    trimmed, lost, well = (world.channels[name] for name in ("trimmed", "lost", "well"))
    assert (trimmed.generation, trimmed.traits.reset_reason, world.newest("trimmed")) == (1, "trimmed", top)
    assert (lost.generation, lost.traits.reset_reason, world.newest("lost")) == (
        1,
        "unknown",
        world.store.newest(["lost"])[0],
    )
    assert well.generation == 0
    assert [world.woken(name) for name in ("trimmed", "lost", "well")] == [1, 1, 0]
    assert not world.upkeep.is_behind
    assert world.channels.bytes == 0, "the old rings are gone"


def test_a_ring_that_is_back_where_it_was_is_read_again_and_not_reset(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(world, "a")
    world.upkeep.dirty.put(["a"])
    with monkeypatch.context() as patch:  # as while a failover is under way
        other = Entry(Position(world.newest("a").offset + 1, 5), Event("of another life"))
        patch.setattr(world.store, "read", lambda *_: [Page([other], reason="unknown")])
        world.settle()
    assert (world.channels["a"].generation, list(world.upkeep.dirty)) == (0, ["a"])
    assert world.heard("a") == []
    publish_to_store(world.store, "a", 1)
    world.settle()
    assert (world.heard("a"), world.channels["a"].generation) == (["1"], 0)


def test_a_channel_at_fault_is_left_as_it_is_and_the_others_go_on(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse.log._last_logged", {})
    follow(world, "a", "bad")
    for name in ("a", "bad"):
        publish_to_store(world.store, name, 1)
    world.store.faulty.add("bad")
    world.upkeep.dirty.put(["a", "bad"])
    with caplog.at_level("WARNING", "sse"):
        world.settle()
    assert (world.heard("a"), world.heard("bad")) == (["1"], [])
    assert "channel bad waits: " in caplog.text
    assert not world.upkeep.is_behind, "the next check finds it"


def test_a_fault_of_the_store_puts_its_channels_back_and_is_raised_after_both_queues_had_their_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(world, "a")
    publish_to_store(world.store, "a", 1)
    world.enter("new")
    standing = world.store.standing
    away = StoreUnavailable("away")

    def fail(channels: Sequence[str], *, prolong: bool = False) -> list[Standing | StoreUnavailable]:
        raise away

    monkeypatch.setattr(world.store, "standing", fail)
    world.upkeep.dirty.put(["a"])
    with pytest.raises(StoreUnavailable) as raised:
        world.settle()
    assert raised.value is away
    assert (world.heard("a"), list(world.upkeep.new)) == (["1"], ["new"])
    monkeypatch.setattr(world.store, "standing", standing)
    world.settle()
    assert world.channels["new"].ring is not None


def test_a_check_finds_what_no_announcement_told_of_and_keeps_what_has_listeners(world: World) -> None:
    follow(world, "a", "b")
    publish_to_store(world.store, "b", 1)
    world.store.calls.clear()
    world.check()
    assert world.store.calls == [], "it is not time"
    world.clock.now += 5
    world.check()
    ((kind, names),) = world.store.calls
    assert (kind, sorted(names)) == ("keep", ["a", "b"])
    assert list(world.upkeep.dirty) == ["b"]


def test_a_check_drops_channels_that_have_been_idle_for_half_its_time(world: World) -> None:
    follow(world, "idle", "left", "stays")
    world.channels["idle"].remove(world.listeners["idle"], world.clock.now)
    publish_to_store(world.store, "idle", 1)
    world.upkeep.dirty.put(["idle"])
    world.settle()
    assert world.channels.bytes > 0
    world.clock.now += 5
    world.channels["left"].remove(world.listeners["left"], world.clock.now - 2)
    world.check()
    assert (list(world.channels), world.feed.left) == (["left", "stays"], ["idle"])
    assert world.channels.bytes == 0
    assert world.store.calls[-1] == ("keep", ["stays"])


def test_a_check_of_nothing_asks_the_store_nothing(world: World) -> None:
    world.clock.now += 5
    world.check()
    assert world.store.calls == []
