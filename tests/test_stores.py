"""The contract of every store, over memory and a real Redis. Then the behaviour of Redis alone."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sse.errors import Ended, IdempotencyConflict, StoreUnavailable
from sse.event import UNBORN, Event, Position
from sse.stores import (
    Feed,
    MemoryStore,
    Notice,
    Page,
    Publication,
    Receipt,
    Receipts,
    RedisStore,
    Revocation,
    Store,
    connect,
)
from sse.stores.base import nonce
from sse.stores.leases import Ask
from tests.publishing import publish_to_store
from tests.servers import RedisServer, free_port, make_certificate, wait_until

T = TypeVar("T")
MakeStore = Callable[..., RedisStore]

RING = 5
TTL = 3600


def test_nonces_are_never_the_same_in_threads_or_after_a_fork() -> None:
    with ThreadPoolExecutor(8) as threads:
        found = [one for some in threads.map(lambda _: [nonce() for _ in range(2000)], range(8)) for one in some]
    assert len(set(found)) == 16_000
    assert {len(one) for one in found} == {32}
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, " ".join(nonce() for _ in range(100)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    others = os.read(reading, 8192).decode().split()
    for fd in (reading, writing):
        os.close(fd)
    assert len(set(others)) == 100
    assert not {nonce() for _ in range(1000)} & set(others)


def test_the_kernel_is_asked_for_the_randomness_of_many_events_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(ring=RING, ring_ttl=TTL)
    asked: list[int] = []
    real = os.urandom

    def urandom(count: int) -> bytes:
        asked.append(count)
        return real(count)

    monkeypatch.setattr(os, "urandom", urandom)
    store.publish([Publication("a", Event(str(number))) for number in range(300)])
    store.publish([Publication("a", Event(str(number))) for number in range(300)])
    assert 2 <= len(asked) <= 3


class World:
    """A store, and a way to move its time."""

    def __init__(self, url: str | None, client: Any, **options: Any) -> None:
        self.client = client
        self._now = 1000.0
        options = {"ring": RING, "ring_ttl": TTL} | options
        self.store: Store = MemoryStore(clock=lambda: self._now, **options) if url is None else connect(url, **options)

    def advance(self, seconds: float) -> None:
        """Let time pass; in Redis by taking it from each key's time to live."""
        self._now += seconds
        if self.client:
            for key in self.client.keys():
                left = self.client.pttl(key)
                assert left > 0, f"{key} never expires"
                self.client.pexpire(key, max(left - round(seconds * 1000), 0))

    def read(self, position: Position, limit: int = 100, channel: str = "a") -> Page:
        return good(self.store.read([(channel, position)], limit)[0])


def good(value: T | StoreUnavailable) -> T:
    assert not isinstance(value, StoreUnavailable), value
    return value


def said(page: Page) -> list[str]:
    return [entry.event.data for entry in page.entries]


def notices(feed: Feed, count: int) -> list[Notice]:
    heard: list[Notice] = []
    deadline = time.monotonic() + 5
    while len(heard) < count and time.monotonic() < deadline:
        heard += feed.read(0.2)
    return heard


@pytest.fixture
def world(store_url: str | None, shared_redis: RedisServer) -> Iterator[World]:
    with shared_redis.client() as client:
        world = World(store_url, client if store_url else None)
        yield world
        world.store.close()


# The contract


def test_both_stores_have_the_methods_of_the_contract_and_no_others_of_note() -> None:
    def methods(kind: type) -> dict[str, inspect.Signature]:
        return {
            name: inspect.signature(member)
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(MemoryStore) == methods(Store)
    extra = methods(RedisStore).keys() - methods(Store).keys()
    assert {name: methods(RedisStore)[name] for name in methods(Store)} == methods(Store)
    assert extra == {"check", "look_soon", "look_in_time", "announcements"}


def test_what_is_revoked_is_listed_in_order_with_its_time(world: World) -> None:
    assert world.store.revoked() == []
    for number in range(3):
        world.store.revoke(f"item {number}", 60)
    first, *rest = world.store.revoked()
    assert [first.what, *(item.what for item in rest)] == ["item 0", "item 1", "item 2"]
    assert abs(first.at - time.time()) < 5
    assert [item.id for item in world.store.revoked(first.id)] == [item.id for item in rest]
    assert world.store.revoked(rest[-1].id) == []
    world.store.revoke("item 3", 60)
    assert [item.what for item in world.store.revoked(rest[-1].id)] == ["item 3"]


def test_a_long_list_of_what_is_revoked_is_read_whole(world: World) -> None:
    for number in range(600):
        world.store.revoke(str(number), 60)
    found: list[Revocation] = []
    for _ in range(10):
        found += world.store.revoked(found[-1].id if found else "")
    assert [item.what for item in found] == [str(number) for number in range(600)]


def test_positions_count_from_one_and_carry_a_tag(world: World) -> None:
    positions = publish_to_store(world.store, "a", "x", "y", "z")
    assert [position.offset for position in positions] == [1, 2, 3]
    assert all(1 <= position.tag <= 2**52 for position in positions)
    assert len({position.tag for position in positions}) == 3


def test_a_tag_commits_to_what_came_before_and_is_never_the_same_in_another_life(world: World) -> None:
    one = publish_to_store(world.store, "a", "x", "y")
    other = publish_to_store(world.store, "b", "x", "y")
    assert {position.tag for position in one}.isdisjoint({position.tag for position in other})


def test_what_was_published_is_read_back_as_it_was(world: World) -> None:
    anchor = good(world.store.ensure(["a"])[0])
    events = [Event("two\nlines\0"), Event({"n": 1}, "created"), Event("", "ä"), Event("\U0001f600")]
    world.store.publish([Publication("a", event) for event in events])
    assert [entry.event for entry in world.read(anchor).entries] == events


def test_one_publish_reaches_several_channels_in_order(world: World) -> None:
    receipts = world.store.publish([Publication(name, Event(name)) for name in ("a", "b", "a")])
    assert [good(receipt).position.offset for receipt in receipts] == [1, 1, 2]


def test_newest_returns_the_newest_position_and_none_without_a_ring(world: World) -> None:
    position = publish_to_store(world.store, "a", "x", "y")[-1]
    assert world.store.newest(["a", "b", "a"]) == [position, None, position]
    assert world.store.newest([]) == world.store.ensure([]) == world.store.read([]) == world.store.before([]) == []


def test_founding_gives_an_anchor_once_and_it_is_never_delivered(world: World) -> None:
    anchor = good(world.store.ensure(["a"])[0])
    assert anchor.offset == 0 and anchor.tag > 0
    assert world.store.ensure(["a", "a"]) == [anchor, anchor]
    assert world.read(anchor) == Page([])
    (first,) = publish_to_store(world.store, "a", "x")
    assert world.store.ensure(["a"]) == [first]
    assert said(world.read(anchor)) == ["x"]


def test_a_page_goes_on_from_its_position_and_says_when_there_is_more(world: World) -> None:
    first, *_, last = publish_to_store(world.store, "a", "1", "2", "3", "4", "5")
    page = world.read(first, limit=2)
    assert (said(page), page.more) == (["2", "3"], True)
    page = world.read(page.entries[-1].position, limit=3)
    assert (said(page), page.more) == (["4", "5"], False)
    assert world.read(last) == Page([])


def test_a_page_is_bounded_in_bytes_but_has_one_entry_at_least(world: World) -> None:
    anchor = good(world.store.ensure(["a"])[0])
    publish_to_store(world.store, "a", *["x" * 1000] * 3, "y" * 5000)
    (page,) = world.store.read([("a", anchor)], 100, 2500)
    assert 1 <= len(good(page).entries) <= 3
    assert good(page).more
    (page,) = world.store.read([("a", anchor)], 100, 1)
    assert [entry.position.offset for entry in good(page).entries] == [1]
    assert good(page).more
    (page,) = world.store.read([("a", anchor)], 100, 1 << 20)
    assert (len(good(page).entries), good(page).more) == (4, False)
    (page,) = world.store.read([("a", good(page).entries[-2].position)], 100, 1)
    assert said(good(page)) == ["y" * 5000]


@pytest.mark.parametrize("size", [10, 1000, 20_000])
def test_the_pages_of_several_places_are_bounded_together_and_all_is_read_in_the_end(world: World, size: int) -> None:
    names = [f"c{number}" for number in range(20)]
    places = {name: good(top) for name, top in zip(names, world.store.ensure(names), strict=True)}
    for number in range(RING):
        for name in names:
            publish_to_store(world.store, name, str(number) * size)
    read: dict[str, list[str]] = {name: [] for name in names}
    rounds, more = 0, [*names, "none"]
    places["none"] = Position(5, 5)
    while more:
        rounds += 1
        pages = [good(page) for page in world.store.read([(name, places[name]) for name in more], 100, 30_000)]
        assert sum(len(entry.event.data) for page in pages for entry in page.entries) <= 30_000 + size
        assert any(page.entries for page in pages)
        for name, page in zip(more, pages, strict=True):
            assert page.reason == ("unknown" if name == "none" else None)
            read.setdefault(name, []).extend(entry.event.data for entry in page.entries)
            places[name] = page.entries[-1].position if page.entries else places[name]
        more = [name for name, page in zip(more, pages, strict=True) if page.more]
        assert rounds <= 20 * RING
    assert read == {name: [str(number) * size for number in range(RING)] for name in names} | {"none": []}


def test_with_a_limit_of_none_it_is_only_told_whether_a_position_can_be_continued(world: World) -> None:
    first, *_ = publish_to_store(world.store, "a", *"1234")
    publish_to_store(world.store, "b", "1")
    places = [("a", first), ("b", first), ("c", first), ("a", Position(9, 9))]
    pages = [good(page) for page in world.store.read(places, 0)]
    assert [page.reason for page in pages] == [None, "diverged", "unknown", "diverged"]
    assert not any(page.entries for page in pages)


def test_a_ring_keeps_its_newest_events_and_the_anchor_before_them(world: World) -> None:
    positions = publish_to_store(world.store, "a", *range(RING + 3))
    assert said(world.read(positions[2])) == [str(number) for number in range(3, RING + 3)]
    assert world.read(positions[1]) == Page([], reason="trimmed", missed=RING + 1)
    assert world.read(positions[0]) == Page([], reason="trimmed", missed=RING + 2)


def test_the_founding_anchor_is_trimmed_like_any_other(world: World) -> None:
    anchor = good(world.store.ensure(["a"])[0])
    publish_to_store(world.store, "a", *range(RING))
    assert len(world.read(anchor).entries) == RING
    publish_to_store(world.store, "a", "one more")
    assert world.read(anchor) == Page([], reason="trimmed", missed=RING + 1)


def test_a_position_without_a_ring_is_unknown(world: World) -> None:
    assert world.read(Position(3, 4)) == Page([], reason="unknown")


@pytest.mark.parametrize("beside", [Position(2, 1), Position(3, 1), Position(4, 1), Position(2**53 - 1, 2**52)])
def test_a_position_that_the_ring_never_had_is_diverged(world: World, beside: Position) -> None:
    publish_to_store(world.store, "a", *range(RING + 2))
    world.advance(TTL)
    publish_to_store(world.store, "a", "1", "2", "3")
    assert world.read(beside) == Page([], reason="diverged")


def test_a_position_of_an_earlier_life_is_diverged(world: World) -> None:
    earlier = publish_to_store(world.store, "a", "1", "2", "3")
    world.advance(TTL)
    publish_to_store(world.store, "a", "4", "5", "6", "7")
    assert [world.read(position).reason for position in earlier] == ["diverged"] * 3


def test_where_no_ring_was_nothing_can_be_continued(world: World) -> None:
    assert world.read(UNBORN).reason == "unknown"
    world.store.ensure(["a"])
    assert world.read(UNBORN).reason == "diverged"


def test_a_replay_begins_before_the_newest_events(world: World) -> None:
    anchor = good(world.store.ensure(["a"])[0])
    assert world.store.before([("a", 3), ("b", 3)]) == [anchor, None]
    positions = publish_to_store(world.store, "a", "1", "2", "3")
    wanted = [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("a", 100)]
    assert world.store.before(wanted) == [*reversed(positions), anchor, anchor]
    positions += publish_to_store(world.store, "a", *range(RING))
    assert world.store.before([("a", RING), ("a", RING + 1)]) == [positions[2]] * 2


def test_a_repeated_publication_is_stored_once(world: World) -> None:
    publication = Publication("a", Event("x"), "key")
    (first,) = map(good, world.store.publish([publication]))
    assert first.outcome == "new"
    publish_to_store(world.store, "a", "between")
    assert world.store.publish([publication, publication]) == [Receipt(first.position, "again")] * 2
    assert good(world.store.newest(["a"])[0]).offset == 2  # type: ignore[union-attr]


def test_repeated_within_one_request_it_is_stored_once(world: World) -> None:
    receipts = world.store.publish([Publication("a", Event("x"), "key")] * 2)
    assert [good(receipt).outcome for receipt in receipts] == ["new", "again"]


@pytest.mark.parametrize("other", [Event("y"), Event("x", "y")])
def test_another_event_under_the_same_key_is_a_conflict_and_not_stored(world: World, other: Event) -> None:
    (first,) = map(good, world.store.publish([Publication("a", Event("x"), "key")]))
    with pytest.raises(IdempotencyConflict, match="on channel a: use a new key"):
        world.store.publish([Publication("a", other, "key")])
    assert world.store.newest(["a"]) == [first.position]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_conflict_in_a_batch_keeps_all_of_it_out(world: World, place: int) -> None:
    stored = Publication("a", Event("x"), "key")
    (first,) = map(good, world.store.publish([stored]))
    batch = [Publication("a", Event("before"), "k1"), Publication("b", Event("elsewhere")), stored]
    batch.insert(place, Publication("a", Event("other"), "key"))
    with pytest.raises(IdempotencyConflict, match="channel a"):
        world.store.publish(batch)
    assert world.store.newest(["a", "b"]) == [first.position, None]
    del batch[place]
    assert [good(receipt).outcome for receipt in world.store.publish(batch)] == ["new", "new", "again"]


def test_one_key_for_two_events_of_a_batch_keeps_all_of_it_out(world: World) -> None:
    with pytest.raises(IdempotencyConflict, match="channel b"):
        world.store.publish(
            [Publication("a", Event("x")), *(Publication("b", Event(data), "key") for data in ("x", "y"))]
        )
    assert world.store.newest(["a", "b"]) == [None, None]


def received(outcome: Receipts | Exception) -> list[tuple[str, int]]:
    """Return the outcome and offset of each publication."""
    assert isinstance(outcome, list), outcome
    return [(receipt.outcome, receipt.position.offset) for receipt in outcome if isinstance(receipt, Receipt)]


def test_several_publishes_at_once_are_each_as_if_it_had_come_alone(world: World) -> None:
    store = world.store
    store.leases.start("over", "token")
    store.leases.end("over", "done", token="token")
    one, other = (Publication("a", Event(data), "key") for data in ("x", "y"))
    both = [Publication("b", Event("1")), Publication("a", Event("2"), "k2")]
    late = Publication("over", Event("4"))
    first, two, refused, none, conflict, over, half, again = store.publish_each(
        [[one], both, [other], [], [Publication("b", Event("3")), other], [late], [*both, late], [*both, one]]
    )
    assert (received(first), received(two), none) == ([("new", 1)], [("new", 1), ("new", 2)], [])
    assert isinstance(refused, IdempotencyConflict) and isinstance(conflict, IdempotencyConflict)
    assert isinstance(over, Ended) and isinstance(half, Ended)
    assert received(again) == [("new", 2), ("again", 2), ("again", 1)]
    assert [good(place).offset for place in store.newest(["a", "b"]) if place] == [2, 2]


def test_several_publishes_at_once_are_stored_in_their_order(world: World) -> None:
    outcomes = world.store.publish_each([[Publication("a", Event(str(number)))] for number in range(4)])
    assert [received(outcome) for outcome in outcomes] == [[("new", number)] for number in range(1, 5)]
    start = good(world.store.before([("a", RING)])[0])
    assert start is not None and said(world.read(start)) == ["0", "1", "2", "3"]


def test_a_key_is_one_channel_s_own(world: World) -> None:
    receipts = world.store.publish([Publication(name, Event("x"), "key") for name in ("a", "b")])
    assert [good(receipt).outcome for receipt in receipts] == ["new", "new"]


def test_a_key_is_forgotten_after_five_minutes(world: World) -> None:
    publication = Publication("a", Event("x"), "key")
    world.store.publish([publication])
    world.advance(295)
    assert good(world.store.publish([publication])[0]).outcome == "again"
    world.advance(10)
    assert good(world.store.publish([publication])[0]).outcome == "new"


def test_a_ring_outlives_its_last_event_by_its_time_to_live(world: World) -> None:
    publish_to_store(world.store, "a", "x")
    world.advance(TTL - 10)
    (second,) = publish_to_store(world.store, "a", "y")
    world.advance(TTL - 10)
    assert world.store.newest(["a"]) == [second]
    world.advance(20)
    assert world.store.newest(["a"]) == [None]


def test_an_ensured_ring_without_an_event_lives_two_minutes(world: World) -> None:
    anchor = good(world.store.ensure(["a"])[0])
    world.advance(110)
    assert world.store.newest(["a"]) == [anchor]
    world.advance(20)
    assert world.store.newest(["a"]) == [None]


def test_the_first_event_gives_an_ensured_ring_its_full_time(world: World) -> None:
    world.store.ensure(["a"])
    (first,) = publish_to_store(world.store, "a", "x")
    world.advance(TTL - 10)
    assert world.store.newest(["a"]) == [first]


def test_a_ring_with_listeners_is_kept_and_others_are_not(world: World) -> None:
    (kept,) = publish_to_store(world.store, "a", "x")
    anchor = good(world.store.ensure(["unborn"])[0])
    publish_to_store(world.store, "left", "x")
    for _ in range(3):
        world.advance(100)
        assert world.store.newest(["a", "unborn"], prolong=True) == [kept, anchor]
    world.advance(TTL - 250)
    assert world.store.newest(["left"]) == [None]
    assert world.store.newest(["a"]) == [kept]


def test_looking_does_not_prolong_a_ring(world: World) -> None:
    (position,) = publish_to_store(world.store, "a", "x")
    world.advance(TTL - 10)
    world.store.newest(["a"])
    world.store.read([("a", position)])
    world.store.before([("a", 1)])
    world.advance(20)
    assert world.store.newest(["a"]) == [None]


def test_a_feed_confirms_and_then_announces_in_order_with_the_position_before(world: World) -> None:
    with contextlib.closing(world.store.feed()) as feed:
        feed.subscribe(["a", "b"])
        assert sorted(notices(feed, 2)) == [Notice("a"), Notice("b")]
        anchor = good(world.store.ensure(["a"])[0])
        positions = publish_to_store(world.store, "a", "1", "2", "3")
        publish_to_store(world.store, "c", "elsewhere")
        heard = notices(feed, 3)
        assert [notice.channel for notice in heard] == ["a"] * 3
        assert [notice.previous for notice in heard] == [anchor, *positions[:-1]]
        assert [notice.entry and notice.entry.position for notice in heard] == positions
        assert [notice.entry and notice.entry.event.data for notice in heard] == ["1", "2", "3"]


def test_a_feed_announces_a_repetition_once_and_a_conflict_never(world: World) -> None:
    with contextlib.closing(world.store.feed()) as feed:
        feed.subscribe(["a"])
        notices(feed, 1)
        for event in ("x", "x", "y"):
            with contextlib.suppress(IdempotencyConflict):
                world.store.publish([Publication("a", Event(event), "key")])
        publish_to_store(world.store, "a", "end")
        assert [notice.entry and notice.entry.event.data for notice in notices(feed, 2)] == ["x", "end"]


def test_a_feed_is_silent_about_channels_that_it_left(world: World) -> None:
    with contextlib.closing(world.store.feed()) as feed:
        feed.subscribe(["a", "b"])
        notices(feed, 2)
        feed.unsubscribe(["a"])
        publish_to_store(world.store, "a", "x")
        publish_to_store(world.store, "b", "y")
        assert [notice.channel for notice in notices(feed, 1)] == ["b"]


def test_a_quiet_feed_waits_as_long_as_it_is_told(world: World) -> None:
    with contextlib.closing(world.store.feed()) as feed:
        assert feed.read(0.01) == []
        begun = time.monotonic()
        assert feed.read(0.2) == []
        assert 0.15 < time.monotonic() - begun < 2


def test_a_feed_that_is_woken_says_nothing_and_goes_on(world: World) -> None:
    with contextlib.closing(world.store.feed()) as feed, ThreadPoolExecutor(1) as pool:
        for when in ("before it connects", "before it reads", "while it reads"):
            begun = time.monotonic()
            if when == "while it reads":
                reading = pool.submit(feed.read, 4.0)
                time.sleep(0.1)
                feed.wake()
                assert reading.result(3) == []
            else:
                feed.wake()
                feed.wake()
                assert feed.read(4.0) == []
            assert time.monotonic() - begun < 2, when
        feed.subscribe(["a"])
        assert notices(feed, 1) == [Notice("a")]
        publish_to_store(world.store, "a", "x")
        assert [notice.entry and notice.entry.event.data for notice in notices(feed, 1)] == ["x"]


def test_closing_a_feed_wakes_its_reader(world: World) -> None:
    feed = world.store.feed()
    feed.subscribe(["a"])
    notices(feed, 1)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(feed.read, 4.0)
        time.sleep(0.1)
        begun = time.monotonic()
        feed.close()
        assert reading.result(3) == []
        assert time.monotonic() - begun < 1


def test_publishers_at_once_make_one_line_without_a_gap(world: World) -> None:
    anchor = good(world.store.ensure(["a"])[0])
    with contextlib.closing(world.store.feed()) as feed:
        feed.subscribe(["a"])
        notices(feed, 1)

        def publish(writer: int) -> None:
            for number in range(10):
                publish_to_store(world.store, "a", f"{writer}.{number}")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(publish, range(8)))
        heard = notices(feed, 80)
    assert [notice.entry and notice.entry.position.offset for notice in heard] == list(range(1, 81))
    assert [notice.previous for notice in heard] == [
        anchor, *[notice.entry and notice.entry.position for notice in heard[:-1]]
    ]  # fmt: skip
    for writer in range(8):
        mine = [
            notice.entry.event.data for notice in heard if notice.entry and notice.entry.event.data[0] == str(writer)
        ]
        assert mine == [f"{writer}.{number}" for number in range(10)]


def test_a_memory_feed_that_is_read_too_late_says_which_channels_to_look_at() -> None:
    store = MemoryStore(ring=RING, ring_ttl=TTL)
    feed = store.feed()
    feed.subscribe(["a", "b", "c"])
    assert feed.read(0) == [Notice("a"), Notice("b"), Notice("c")]
    for number in range(1100):
        store.publish([Publication("a", Event(number))])
    store.publish([Publication("b", Event("x"))])
    heard: list[Notice] = []
    while portion := feed.read(0):
        assert len(portion) <= 256
        heard += portion
    entries = [notice.entry.position.offset for notice in heard if notice.entry]
    assert entries == list(range(1, 1025))
    assert {notice.channel for notice in heard if not notice.entry} == {"a", "b"}
    store.publish([Publication("a", Event("y"))])
    assert [notice.entry and notice.entry.position.offset for notice in feed.read(0)] == [1101]


def test_the_memory_store_forgets_what_expired_and_nobody_asks_for() -> None:
    now = 0.0
    store = MemoryStore(ring=RING, ring_ttl=TTL, clock=lambda: now)
    store.publish([Publication(f"c{number}", Event("x"), "key") for number in range(100)])
    now = TTL + 1.0
    store.ensure(["other"])
    assert list(store._rings) == ["other"]
    assert store._once == {}


def test_what_has_expired_in_the_memory_store_is_forgotten_some_at_a_time() -> None:
    now = 0.0
    store = MemoryStore(ring=RING, ring_ttl=TTL, clock=lambda: now)
    store.publish([Publication(f"c{number}", Event("x"), "key") for number in range(1000)])
    now = TTL + 1.0
    for left in range(900, -1, -100):
        store.publish([Publication("other", Event("x"))])
        assert len(store._once) == left
        assert len(store._rings) == left + 1
    store.publish([Publication("other", Event("x"), "key")])
    now += 200
    store.publish([Publication("another", Event("x"), "key")])
    now += 101
    store.publish([Publication("other", Event("x"), "key")])
    now += 200
    store.ensure([])
    assert list(store._once) == [("other", "key")]


def test_a_closed_memory_store_lets_its_feeds_go() -> None:
    store = MemoryStore(ring=RING, ring_ttl=TTL)
    old = store.feed()
    old.close()
    feed = store.feed()
    assert store._rings.feeds == [feed]
    store.close()
    assert feed.read(5) == []


# Redis alone


@pytest.mark.parametrize("shift", [40 * 86_400, -40 * 86_400])
def test_a_clock_that_is_far_off_deletes_no_revocation(
    shift: float, client: Any, redis_url: str, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real = make_store(redis_url), time.time
    store.revoke("before", 60)
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: real() + shift)
        for _ in range(200):  # Redis trims whole nodes of a hundred entries
            store.revoke("by that clock", 60)
    store.revoke("after", 60)
    whats = [entry["d"] for _, entry in client.xrange("sse:{sse.revoked}")]
    assert (whats[0], len(whats), whats[-1]) == ("before", 202, "after")


def test_revocations_that_are_too_old_to_count_are_trimmed(client: Any, redis_url: str, make_store: MakeStore) -> None:
    key, store = "sse:{sse.revoked}", make_store(redis_url)
    for number in range(300):
        client.xadd(key, {"d": "old"}, id=f"{1000 + number}-0")
    store.revoke("new", 60)
    assert client.xlen(key) <= 101
    assert 86_400 < client.ttl(key) <= 86_460


@pytest.fixture
def client(shared_redis: RedisServer, redis_url: str) -> Iterator[Any]:
    with shared_redis.client() as client:
        yield client


@pytest.fixture
def make_store() -> Iterator[MakeStore]:
    made: list[RedisStore] = []

    def make(url: str, **options: Any) -> RedisStore:
        made.append(RedisStore(url, **({"ring": RING, "ring_ttl": TTL} | options)))
        return made[-1]

    yield make
    for store in made:
        store.close()


def first(values: Sequence[Any]) -> Any:
    return values[0]


def test_a_ring_is_one_stream_whose_ids_are_the_positions(client: Any, redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url, namespace="my.ns")
    receipt = first(store.publish([Publication("news/x", Event({"n": 1}, "created"), "k")]))
    anchor, entry = client.xrange("my.ns:{news/x}")
    assert anchor[0].startswith("0-") and anchor[1] == {"d": ""}
    assert entry == (str(receipt.position), {"d": '{"type":"created","data":"{\\"n\\":1}"}'})
    assert sorted(client.keys()) == ["my.ns:{news/x}", "my.ns:{news/x}:once:k"]


def test_the_time_to_live_is_in_redis(client: Any, redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    store.ensure(["unborn"])
    store.publish([Publication("a", Event("x"), "k"), Publication("b", Event("x"))])
    assert 119_000 < client.pttl("sse:{unborn}") <= 120_000
    assert (TTL - 1) * 1000 < client.pttl("sse:{a}") <= TTL * 1000
    assert 299_000 < client.pttl("sse:{a}:once:k") <= 300_000
    (random_key,) = client.keys("sse:{b}:once:*")
    assert 29_000 < client.pttl(random_key) <= 30_000


def test_databases_and_namespaces_do_not_hear_each_other(redis_url: str, make_store: MakeStore) -> None:
    stores = [make_store(redis_url), make_store(redis_url[:-1] + "1"), make_store(redis_url, namespace="other")]
    with contextlib.closing(stores[0].feed()) as feed:
        feed.subscribe(["a"])
        notices(feed, 1)
        for store in reversed(stores):
            assert first(store.publish([Publication("a", Event(str(stores.index(store))))])).position.offset == 1
        assert [notice.entry and notice.entry.event.data for notice in notices(feed, 1)] == ["0"]


def test_a_feed_that_was_cut_says_so_and_confirms_again(client: Any, redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    with contextlib.closing(store.feed()) as feed:
        feed.subscribe(["a", "b"])
        notices(feed, 2)
        assert client.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
        with pytest.raises(StoreUnavailable, match="Redis does not answer"):
            feed.read(2)
        assert sorted(notices(feed, 2)) == [Notice("a"), Notice("b")]
        store.publish([Publication("a", Event("x"))])
        assert [notice.entry and notice.entry.event.data for notice in notices(feed, 1)] == ["x"]


def test_what_is_subscribed_while_a_feed_is_cut_is_confirmed_after_it(
    client: Any, redis_url: str, make_store: MakeStore
) -> None:
    with contextlib.closing(make_store(redis_url).feed()) as feed:
        feed.subscribe(["a"])
        notices(feed, 1)
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        feed.subscribe(["b"])
        feed.unsubscribe(["a"])
        heard: list[Notice] = []
        with contextlib.suppress(StoreUnavailable):  # told, unless subscribing has found it out before
            heard = feed.read(2)
        assert (heard or notices(feed, 1)) == [Notice("b")]


def test_announcements_that_are_not_ours_make_the_hub_look_for_itself(
    client: Any, redis_url: str, make_store: MakeStore
) -> None:
    with contextlib.closing(make_store(redis_url).feed()) as feed:
        feed.subscribe(["a"])
        notices(feed, 1)
        for message in (
            "hello",
            "0-1 1-2",
            '0-1 1-0\n{"data":"x"}',
            '0-1 1-2\n{"data":"x","type":"open"}',
            "0-1 1-2\n[]",
            "0-1 1-2\n" + "[" * 100_000,
            '0-1 2-2\n{"data":"x"}',  # does not follow
            b"\xff\n\xff",
            b"",
        ):
            client.publish("sse:0:{a}", message)
        assert notices(feed, 9) == [Notice("a")] * 9


@pytest.mark.parametrize("value", ["", "x", "a b c", "1-2 x", b"\xff\xff \xff", "x" * 100_000, ["a list"]], ids=repr)
def test_what_others_wrote_into_an_idempotency_key_faults_what_uses_it_and_no_more(
    client: Any, redis_url: str, make_store: MakeStore, value: Any
) -> None:
    store = make_store(redis_url)
    if isinstance(value, list):
        client.rpush("sse:{a}:once:k", *value)
    else:
        client.set("sse:{a}:once:k", value)
    batch = [Publication("b", Event("x")), Publication("a", Event("x"), "k")]
    for publications in (batch[1:], batch):
        try:
            assert isinstance(store.publish(publications)[-1], StoreUnavailable)
        except IdempotencyConflict as told:
            assert "use a new key" in str(told)
    assert first(store.newest(["a"])) is None
    assert first(store.publish([Publication("a", Event("x"), "another")])).outcome == "new"


def test_what_is_published_together_with_a_hostile_key_is_stored(
    client: Any, redis_url: str, make_store: MakeStore
) -> None:
    store = make_store(redis_url)
    client.set("sse:{a}:once:k", "x")

    def publish(number: int) -> str:
        try:
            return str(first(store.publish([Publication("a", Event("x"), "k" if number % 2 else None)])).outcome)
        except IdempotencyConflict:
            return "conflict"

    client.client_pause(200, all=True)
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(publish, range(10))) == ["new", "conflict"] * 5


def test_a_script_flush_goes_unnoticed(client: Any, redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    for number in range(3):
        client.script_flush()
        receipts = store.publish([Publication(name, Event("x")) for name in ("a", "b")])
        assert [good(receipt).position.offset for receipt in receipts] == [number + 1] * 2
    client.script_flush()
    assert good(store.ensure(["c"])[0]).offset == 0


def test_a_key_of_a_wrong_type_is_named_and_never_deleted(client: Any, redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    client.set("sse:{wrong}", "precious")
    bad, right = store.publish([Publication("wrong", Event("x")), Publication("right", Event("x"))])
    assert isinstance(bad, StoreUnavailable)
    assert "sse:{wrong}" in str(bad) and "WRONGTYPE" in str(bad)
    position = good(right).position
    place = Position(1, 1)
    for values in (
        store.newest(["wrong", "right"]),
        store.newest(["wrong", "right"], prolong=True),
        store.ensure(["wrong", "right"]),
        store.before([("wrong", 0), ("right", 0)]),
    ):
        assert isinstance(values[0], StoreUnavailable) and "wrong" in str(values[0])
        assert values[1] == position
    pages = store.read([("wrong", place), ("right", position)])
    assert isinstance(pages[0], StoreUnavailable) and pages[1] == Page([])
    assert client.get("sse:{wrong}") == "precious"


def test_entries_that_were_written_by_hand_fault_their_channel_and_no_other(
    client: Any, redis_url: str, make_store: MakeStore
) -> None:
    store = make_store(redis_url)
    position = first(store.publish([Publication("right", Event("x"))])).position
    client.xadd("sse:{hand}", {"d": "x"}, id="7-0")
    for values in (
        store.newest(["hand", "right"]),
        store.ensure(["hand", "right"]),
        store.before([("hand", 0), ("right", 0)]),
    ):
        assert isinstance(values[0], StoreUnavailable) and "hand" in str(values[0])
        assert values[1] == position
    pages = store.read([("hand", Position(3, 1)), ("right", position)])
    assert isinstance(pages[0], StoreUnavailable) and pages[1] == Page([])
    after = first(store.publish([Publication("hand", Event("y"))])).position
    assert after.offset == 8
    assert good(first(store.read([("hand", Position(3, 1))]))).reason == "diverged"
    assert store.before([("hand", 0), ("hand", 1)]) == [after, UNBORN]


UNREADABLE = {
    "no JSON": ("2-5", {"d": "not JSON"}),
    "nested": ("2-5", {"d": "[" * 100_000}),
    "nested data": ("2-5", {"d": '{"data":' + "[" * 100_000}),
    "a number": ("2-5", {"d": '{"data":' + "9" * 5000 + "}"}),
    "not UTF-8": ("2-5", {"d": b"\xff"}),
    "no such field": ("2-5", {"e": "x"}),
    "too large": ("2-5", {"d": '{"data":"' + "x" * 7_000_000 + '"}'}),
    "a time": ("1700000000000-0", {"d": '{"data":"x"}'}),
    "a hole": ("5-5", {"d": '{"data":"x"}'}),
    "beyond counting": ("18446744073709551614-5", {"d": '{"data":"x"}'}),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_others_wrote_into_a_ring_ends_what_can_be_continued_and_no_more(
    client: Any, redis_url: str, make_store: MakeStore, what: str
) -> None:
    store = make_store(redis_url)
    anchor = good(store.ensure(["a"])[0])
    first_place, right = (first(store.publish([Publication(name, Event("x"))])).position for name in ("a", "right"))
    id, fields = UNREADABLE[what]
    client.xadd("sse:{a}", fields, id=id)
    for place in (anchor, first_place):
        pages = store.read([("a", place), ("right", right)])
        if place == anchor:  # the events before are given first
            assert (said(good(pages[0])), good(pages[0]).more, good(pages[0]).reason) == (["x"], True, None)
        else:
            assert good(pages[0]) == Page([], reason="diverged")
        assert pages[1] == Page([])


def test_what_is_larger_than_any_event_stays_in_redis(client: Any, redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    place = first(store.publish([Publication("a", Event("x"))])).position
    client.xadd("sse:{a}", {"d": '{"data":"' + "x" * 20_000_000 + '"}'}, id="2-5")
    before = client.info("stats")["total_net_output_bytes"]
    assert good(first(store.read([("a", place)]))) == Page([], reason="diverged")
    assert client.info("stats")["total_net_output_bytes"] - before < 1_000_000


def test_members_that_a_later_version_may_add_are_passed_over(
    client: Any, redis_url: str, make_store: MakeStore
) -> None:
    store = make_store(redis_url)
    position = first(store.publish([Publication("a", Event("x"))])).position
    client.xadd("sse:{a}", {"d": '{"data":"y","type":"t","new":[1]}', "e": "f"}, id="2-5")
    assert [entry.event for entry in first(store.read([("a", position)])).entries] == [Event("y", "t")]


def test_an_offset_beyond_all_counting_is_a_fault_and_not_a_crash(
    client: Any, redis_url: str, make_store: MakeStore
) -> None:
    store = make_store(redis_url)
    for name, id in (("a", "9007199254740991-5"), ("b", "18446744073709551615-5")):
        client.xadd(f"sse:{{{name}}}", {"d": '{"data":"x"}'}, id=id)
        assert isinstance(first(store.publish([Publication(name, Event("x"))])), StoreUnavailable)


def test_a_hole_in_a_ring_is_diverged_and_never_skipped(client: Any, redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    positions = [good(receipt).position for receipt in store.publish([Publication("a", Event(n)) for n in range(4)])]
    client.xdel("sse:{a}", str(positions[2]))
    assert first(store.read([("a", positions[1])])).reason == "diverged"
    assert first(store.read([("a", positions[2])])).reason == "diverged"
    assert said(first(store.read([("a", positions[3])]))) == []


def test_a_ring_emptied_by_hand_begins_a_new_life(client: Any, redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    position = first(store.publish([Publication("a", Event("x"))])).position
    client.xtrim("sse:{a}", maxlen=0)
    assert first(store.newest(["a"])) is None
    assert first(store.read([("a", position)])).reason == "unknown"
    again = first(store.publish([Publication("a", Event("y"))])).position
    assert again.offset == 1 and again != position
    client.xtrim("sse:{a}", maxlen=0)
    assert first(store.ensure(["a"])).offset == 0


def test_publishes_that_wait_together_share_a_round_trip(client: Any, redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url, ring=1000)
    store.ensure(["a"])
    go = threading.Barrier(40)

    def publish(number: int) -> str:
        go.wait(10)
        receipt = first(store.publish([Publication("a", Event(number), f"key{number}")]))
        return str(receipt.outcome)

    client.client_pause(300, all=True)  # so that they all wait for the first
    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(publish, range(40))) == ["new"] * 40
    assert first(store.newest(["a"])).offset == 40
    names = client.client_list()
    assert len(names) <= 4  # this one, the store's, and at most two of those who came before the lock


def test_an_event_that_cannot_be_written_is_the_fault_of_its_publish_alone(
    redis_url: str, make_store: MakeStore
) -> None:
    store = make_store(redis_url)
    broken: Any = Publication("a", object())  # type: ignore[arg-type]
    before, fault, after = store.publish_each([[Publication("a", Event(1))], [broken], [Publication("a", Event(2))]])
    assert (received(before), received(after)) == ([("new", 1)], [("new", 2)])
    assert isinstance(fault, AttributeError)
    with pytest.raises(AttributeError):
        store.publish([broken])


def test_a_fault_of_redis_is_raised_for_all_of_several_publishes(tmp_path: Path, make_store: MakeStore) -> None:
    with RedisServer(tmp_path) as server:
        store = make_store(server.url)
        publish_to_store(store, "a", "warm")
    with pytest.raises(StoreUnavailable):
        store.publish_each([[Publication("a", Event("x"))], [], [Publication("b", Event("x"))] * 2])
    assert store.publish_each([[], []]) == [[], []]


INTERRUPTED = """
from gevent import monkey; monkey.patch_all()
import sys, time, gevent, redis
from sse.event import Event
from sse.stores import Publication, RedisStore

url = sys.argv[1]
store = RedisStore(url, ring=10, ring_ttl=60)
publish = lambda text: store.publish([Publication("a", Event(text))])[0].outcome
assert publish("warm") == "new"
redis.Redis.from_url(url).client_pause(700)
greenlets = [gevent.spawn(publish, "leads")]
time.sleep(0.05)
greenlets += [gevent.spawn(publish, f"waits {number}") for number in range(3)]
time.sleep(0.05)
for place in INTERRUPT:
    greenlets[place].kill(block=False)
gevent.joinall(greenlets, timeout=5)
assert all(greenlet.ready() for greenlet in greenlets), "somebody waits for ever"
with gevent.Timeout(5):
    assert publish("after") == "new"
store.close()
"""


@pytest.mark.parametrize("interrupted", [[1], [0], [0, 1], [1, 2, 3], [0, 1, 2, 3]], ids=str)
def test_publishers_that_are_interrupted_leave_the_others_going(redis_url: str, interrupted: list[int]) -> None:
    """Under gevent, a timeout may end a greenlet at any wait."""
    program = INTERRUPTED.replace("INTERRUPT:", f"{interrupted}:")
    done = subprocess.run([sys.executable, "-c", program, redis_url], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_when_redis_is_away_it_is_said_and_all_is_well_when_it_is_back(tmp_path: Path, make_store: MakeStore) -> None:
    server = RedisServer(tmp_path)
    store = make_store(server.url)
    with pytest.raises(StoreUnavailable, match="Redis does not answer"):
        store.newest(["a"])
    with contextlib.closing(store.feed()) as feed:
        feed.subscribe(["a"])
        with pytest.raises(StoreUnavailable):
            feed.read(0.1)
        with server:
            assert notices(feed, 1) == [Notice("a")]
            position = first(store.publish([Publication("a", Event("x"))])).position
            server.restart()
            assert first(store.newest(["a"])) == position
            server.kill()
            with pytest.raises(StoreUnavailable):
                store.publish([Publication("a", Event("x")), Publication("b", Event("x"))])


def test_a_replica_refuses_publishing_until_it_is_the_primary(tmp_path: Path, make_store: MakeStore) -> None:
    with RedisServer(tmp_path / "one") as primary, RedisServer(tmp_path / "two") as replica, replica.client() as client:
        client.replicaof("127.0.0.1", str(primary.port))
        store = make_store(replica.url)
        refused = first(store.publish([Publication("a", Event("x"))]))
        assert isinstance(refused, StoreUnavailable)
        assert "read only" in str(refused)
        assert store.newest(["a"]) == [None]
        client.replicaof("NO", "ONE")
        assert first(store.publish([Publication("a", Event("x"))])).position.offset == 1


def test_what_is_stored_and_cannot_be_announced_is_logged(
    acl: Callable[[str], None], redis_url: str, make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    acl(MINIMAL_ACL)
    store = make_store(as_pusher(redis_url))
    assert store.newest(["a"]) == [None]
    acl("resetchannels")
    with caplog.at_level(logging.WARNING, "sse"):
        receipt = first(store.publish([Publication("a", Event("x"))]))
    assert receipt.outcome == "new"
    assert store.newest(["a"]) == [receipt.position]
    assert f"stored {receipt.position} in sse:{{a}} but could not announce it" in caplog.text


def test_a_redis_that_falls_silent_is_taken_for_lost(
    tmp_path: Path, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse.stores.redis._PING_AFTER", 0.1)
    monkeypatch.setattr("sse.stores.redis._LOST_AFTER", 0.4)
    with RedisServer(tmp_path) as server, contextlib.closing(make_store(server.url).feed()) as feed:
        feed.subscribe(["a"])
        notices(feed, 1)
        for _ in range(8):  # quiet, but alive: its answers to PING are heard
            assert feed.read(0.1) == []
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match="silent"):
                for _ in range(20):
                    assert feed.read(0.1) == []
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert notices(feed, 1) == [Notice("a")]


def test_a_connection_that_is_stuck_holds_up_nobody_else(tmp_path: Path, make_store: MakeStore) -> None:
    with (
        RedisServer(tmp_path) as server,
        contextlib.closing(make_store(server.url).feed()) as feed,
        ThreadPoolExecutor(2) as pool,
    ):
        feed.subscribe(["a"])
        notices(feed, 1)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            many = [f"{number:0128}" for number in range(150_000)]  # more than all buffers take
            stuck = pool.submit(feed.subscribe, many)
            wait_until(lambda: vars(feed)["_is_sending"], 10)  # otherwise `wake` might send all that
            time.sleep(0.2)
            feed.wake()
            assert not stuck.done()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        heard: set[str] = set()
        wait_until(
            lambda: heard.update(notice.channel for notice in feed.read(0.1)) or many[-1] in heard, 20, interval=0
        )


def test_a_flood_is_read_in_portions(redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    with contextlib.closing(store.feed()) as feed:
        feed.subscribe(["a"])
        notices(feed, 1)
        for _ in range(6):
            store.publish([Publication("a", Event("x"))] * 100)
        portions = [len(feed.read(0.2)) for _ in range(4)]
        assert (sum(portions), max(portions)) == (600, 256)


def test_a_flood_of_large_events_is_read_in_smaller_portions(redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    feed = store.feed()
    feed.subscribe(["a"])
    assert notices(feed, 1) == [Notice("a")]
    store.publish([Publication("a", Event("x" * 50_000)) for _ in range(20)])
    time.sleep(0.1)
    portions = [feed.read(0.2) for _ in range(10)]
    assert max(len(portion) for portion in portions) <= 4
    assert sum(len(portion) for portion in portions) == 20
    feed.close()


def test_where_a_ring_stands_is_asked_for_without_its_data(client: Any, redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    names = [f"c{number}" for number in range(20)]
    for name in names:
        store.publish([Publication(name, Event("x" * 50_000)) for _ in range(3)])
    tops = [good(top) for top in store.newest(names)]  # type: ignore[type-var]

    def sent() -> int:
        return int(client.info("stats")["total_net_output_bytes"])

    before = sent()
    asking = sent() - before
    before = sent()
    assert store.newest(names, prolong=True) == store.ensure(names) == tops
    assert store.before([(name, 1) for name in names]) != tops
    places = [(name, top) for name, top in zip(names, store.before([(name, 2) for name in names]), strict=True)]
    for page in store.read(places, 0):  # type: ignore[arg-type]
        assert page == Page([], more=True)
    for page in store.read([(name, Position(1, 1)) for name in names]):
        assert good(page).reason == "diverged"
    assert sent() - before - asking < 50_000, "that is less than one event's"


def test_out_of_memory_refuses_publishing_and_goes_on_reading(tmp_path: Path, make_store: MakeStore) -> None:
    with RedisServer(tmp_path, maxmemory="0") as server, server.client() as client:
        store = make_store(server.url)
        positions = [
            good(receipt).position for receipt in store.publish([Publication("a", Event(n)) for n in range(3)])
        ]
        client.config_set("maxmemory", "1mb")
        refused = first(store.publish([Publication("a", Event("x"))]))
        assert isinstance(refused, StoreUnavailable) and "maxmemory" in str(refused)
        assert first(store.newest(["a"])) == positions[-1]
        assert said(first(store.read([("a", positions[0])]))) == ["1", "2"]
        client.config_set("maxmemory", "0")
        assert first(store.publish([Publication("a", Event("y"))])).position.offset == 4


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_redis_that_may_evict_rings_is_refused(tmp_path: Path, make_store: MakeStore, policy: str) -> None:
    with RedisServer(tmp_path, maxmemory_policy=policy) as server, server.client() as client:
        store = make_store(server.url)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=f"{policy}.*set maxmemory-policy noeviction"):
                store.newest(["a"])
        client.config_set("maxmemory-policy", "noeviction")
        assert store.newest(["a"]) == [None]


MINIMAL_ACL = (
    "on >secret resetkeys ~sse:* resetchannels &sse:* -@all "
    "+info +time +ping +xrange +xrevrange +xadd +expire +exists +del +get +set +hmget +hset +zadd +zcard +zrem "
    "+zremrangebyscore +publish +subscribe +unsubscribe +eval +evalsha"
)


@pytest.fixture
def acl(client: Any) -> Iterator[Callable[[str], None]]:
    def set_user(rules: str) -> None:
        client.execute_command("ACL", "SETUSER", "pusher", *rules.split())

    yield set_user
    client.execute_command("ACL", "DELUSER", "pusher")


def as_pusher(url: str) -> str:
    return url.replace("redis://", "redis://pusher:secret@")


def test_a_user_with_just_these_rights_can_do_everything(
    acl: Callable[[str], None], redis_url: str, make_store: MakeStore
) -> None:
    acl(MINIMAL_ACL)
    store = make_store(as_pusher(redis_url))
    with contextlib.closing(store.feed()) as feed:
        feed.subscribe(["a", "b"])
        assert len(notices(feed, 2)) == 2
        feed.unsubscribe(["b"])
        position = first(store.publish([Publication("a", Event("x"), "key")])).position
        assert [notice.entry and notice.entry.position for notice in notices(feed, 1)] == [position]
    assert store.newest(["a"], prolong=True) == store.ensure(["a"]) == store.before([("a", 0)]) == [position]
    assert first(store.read([("a", Position(1, 1))])).reason == "diverged"
    assert store.leases.start("run", "t") == "started"
    assert store.leases.write("run", "t", Event("x"), key="k", written=0).offset == 1
    assert store.leases.renew([("run", "t")]) == [True]
    batch = [Publication("run", Event("y")), Publication("b", Event("y"))]
    assert [receipt.position.offset for receipt in store.publish(batch)] == [2, 1]  # type: ignore[union-attr]
    end = store.leases.end("run", "done", token="t")
    assert end == store.ensure(["run"])[0]
    assert first(store.standing(["run"])).run.ended_at == end
    assert first(store.leases.ask([Ask("source", "w", True, "t")])).is_held
    store.leases.note("source", "t", "up")
    assert store.leases.write("source", "t", Event("x"), key="k").offset == 1
    assert (store.leases.states(["source"]), store.leases.ages(["source"])) == (["up"], [0.0])
    assert not first(store.leases.ask([Ask("source", "w", False, None)])).listeners
    store.leases.release("source", "t")


@pytest.mark.parametrize(
    "missing",
    "info xrange xrevrange xadd expire exists del get set hmget hset zadd zcard zrem zremrangebyscore publish eval "
    "evalsha".split(),
)
def test_a_user_with_too_little_is_told_which_command_is_missing(
    acl: Callable[[str], None], redis_url: str, make_store: MakeStore, missing: str
) -> None:
    acl(f"{MINIMAL_ACL} -{missing}")
    store = make_store(as_pusher(redis_url))
    with pytest.raises(StoreUnavailable, match=f"'{missing}'.*ACL SETUSER"):
        store.newest(["a"])
    acl(f"{MINIMAL_ACL} +{missing}")
    assert store.newest(["a"]) == [None]


def test_a_user_without_time_loses_only_that_and_the_log_says_so_once(
    acl: Callable[[str], None], redis_url: str, make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    acl(f"{MINIMAL_ACL} -time")
    store = make_store(as_pusher(redis_url))
    with caplog.at_level(logging.WARNING, "sse"):
        assert first(store.publish([Publication("a", Event("x"))])).outcome == "new"
        for number in range(3):
            store.revoke(str(number), 60)
            assert len(store.revoked()) == number + 1
        assert caplog.text.count("'time'") == caplog.text.count("grant +time") == 1
        acl("+time")
        assert len(store.revoked()) == 3
    assert "agree again" in caplog.text


def test_all_missing_rights_are_told_together(
    acl: Callable[[str], None], redis_url: str, make_store: MakeStore
) -> None:
    acl("on >secret ~other:* resetchannels -@all +info +xadd")
    with pytest.raises(StoreUnavailable) as told:
        make_store(as_pusher(redis_url)).newest(["a"])
    for word in ("'xrange'", "'eval'", "'get'", "'publish'", "key"):
        assert word in str(told.value)


def test_a_user_that_may_not_subscribe_is_told_so(
    acl: Callable[[str], None], redis_url: str, make_store: MakeStore
) -> None:
    acl(f"{MINIMAL_ACL} -subscribe")
    with contextlib.closing(make_store(as_pusher(redis_url)).feed()) as feed:
        feed.subscribe(["a"])
        with pytest.raises(StoreUnavailable, match="'subscribe'"):
            feed.read(2)


def test_a_wrong_password_is_told(redis_url: str, make_store: MakeStore) -> None:
    with pytest.raises(StoreUnavailable, match=r"(?i)password"):
        make_store(as_pusher(redis_url)).newest(["a"])


def test_a_password_in_the_url(tmp_path: Path, make_store: MakeStore) -> None:
    with RedisServer(tmp_path, requirepass="s3cret/word") as server:
        assert make_store(server.url.replace("//", "//:s3cret%2Fword@")).newest(["a"]) == [None]
        with pytest.raises(StoreUnavailable, match="Authentication required"):
            make_store(server.url).newest(["a"])


@pytest.mark.parametrize("place", ["/3", "?db=3", "/?db=3", "/3?db=3"])
def test_a_database_by_its_number(client: Any, redis_url: str, make_store: MakeStore, place: str) -> None:
    store = make_store(redis_url.replace("/0", place))
    with contextlib.closing(store.feed()) as feed:
        feed.subscribe(["a"])
        notices(feed, 1)
        assert client.pubsub_channels() == ["sse:3:{a}"]
        store.publish([Publication("a", Event("x"))])
        assert len(notices(feed, 1)) == 1
    assert not client.exists("sse:{a}")
    client.select(3)
    assert client.xlen("sse:{a}") == 2


def test_a_unix_socket(tmp_path: Path, make_store: MakeStore) -> None:
    with RedisServer(tmp_path, unixsocket=tmp_path / "sock") as server, server.client(db=2) as client:
        store = make_store(f"unix://{tmp_path}/sock?db=2")
        with contextlib.closing(store.feed()) as feed:
            feed.subscribe(["a"])
            notices(feed, 1)
            assert client.pubsub_channels() == ["sse:2:{a}"]
            store.publish([Publication("a", Event("x"))])
            assert len(notices(feed, 1)) == 1
        assert client.xlen("sse:{a}") == 2


def test_tls(tmp_path: Path, make_store: MakeStore) -> None:
    certificate, key, port = tmp_path / "tls.crt", tmp_path / "tls.key", free_port()
    make_certificate(certificate, key)
    options = {"tls_port": port, "tls_cert_file": certificate, "tls_key_file": key, "tls_auth_clients": "no"}
    with RedisServer(tmp_path / "redis", **options):
        store = make_store(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}")
        with contextlib.closing(store.feed()) as feed:
            feed.subscribe(["a"])
            notices(feed, 1)
            store.publish([Publication("a", Event("x"))])
            assert [notice.entry and notice.entry.event.data for notice in notices(feed, 1)] == ["x"]
        with pytest.raises(StoreUnavailable, match="certificate is not accepted: self-signed"):
            make_store(f"rediss://127.0.0.1:{port}/0").newest(["a"])


def test_a_store_keeps_few_connections(client: Any, redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    base = client.client_list()
    with contextlib.closing(store.feed()) as feed:
        feed.subscribe(["a"])
        notices(feed, 1)
        with ThreadPoolExecutor(30) as pool:
            list(pool.map(lambda _: store.newest(["a"]), range(300)))
        now = client.client_list()
        assert len(now) - len(base) <= 9
        assert sum(connection["sub"] == "1" for connection in now) == 1
    store.close()
    wait_until(lambda: len(client.client_list()) <= len(base), 3, what="all connections are closed")
