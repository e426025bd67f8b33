"""The contract of leases, markers and the texts of runs, over memory and a real Redis. Then Redis alone."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from sse.errors import Ended, IdempotencyConflict, LeaseLost, RunFailed, Stopped, StoreUnavailable, TooLarge
from sse.event import End, Event, Piece, Position
from sse.stores import Notice, Publication, RedisStore, Run, Standing, Store
from sse.stores.base import UNBORN_TTL
from sse.stores.leases import (
    DELIVERED,
    ENTRY_BYTES,
    LEASE_SECONDS,
    RENEW_SECONDS,
    STEADY_SECONDS,
    Ask,
    Leases,
    backoff,
    weight,
)
from tests.servers import RedisServer
from tests.test_stores import RING, TTL, World, good, notices, said

RUN_TTL = 600
RUN_BYTES = 100_000
LATE = LEASE_SECONDS + 1


class LeaseWorld(World):
    """A store with runs and sources, and a way to move its time."""

    def __init__(self, url: str | None, client: Any) -> None:
        self.url = url
        super().__init__(url, client, run_ttl=RUN_TTL, run_bytes=RUN_BYTES)
        self.leases: Leases = self.store.leases

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        for key in self.client.keys() if self.client else ():
            if key.endswith(":workers"):
                for worker in self.client.zrange(key, 0, -1):
                    self.client.zincrby(key, -round(seconds * 1000), worker)
            if key.endswith(":source"):
                for name, unit in (("due", 1000), ("since", 1000), ("written", 1)):
                    if self.client.hexists(key, name):
                        self.client.hincrby(key, name, -round(seconds * unit))

    def standing(self, channel: str = "a") -> Standing:
        return good(self.store.standing([channel])[0])

    def run(self, channel: str = "a") -> Run:
        run = self.standing(channel).run
        assert run is not None
        return run

    def newest(self, channel: str = "a") -> Position | None:
        return good(self.store.newest([channel])[0])

    def ensure(self, channel: str = "a") -> Position:
        return good(self.store.ensure([channel])[0])

    def publish(self, data: str, channel: str = "a", key: str | None = None) -> Any:
        return self.store.publish([Publication(channel, Event(data), key)])[0]

    def text(self, channel: str = "a") -> list[str]:
        """Return the data of all entries after the run's anchor."""
        return said(self.read(self.run(channel).anchor, 10_000, channel))


class Writer:
    """A run's writer, which counts what it has written."""

    def __init__(self, world: LeaseWorld, token: str = "mine", channel: str = "a") -> None:
        self.written, self._world, self._token, self._channel = 0, world, token, channel

    def write(self, event: Event | str, key: str | None = None) -> Position:
        event = Piece(event) if isinstance(event, str) else event
        key = key or random.randbytes(8).hex()
        leases, written = self._world.leases, self.written
        position = leases.write(self._channel, self._token, event, key=key, written=written)
        self.written += weight(event)
        return position


@pytest.fixture
def world(store_url: str | None, shared_redis: RedisServer) -> Iterator[LeaseWorld]:
    with shared_redis.client() as client:
        world = LeaseWorld(store_url, client if store_url else None)
        yield world
        world.store.close()


@pytest.fixture
def redis_world(redis_url: str, shared_redis: RedisServer) -> Iterator[LeaseWorld]:
    with shared_redis.client() as client:
        world = LeaseWorld(redis_url, client)
        yield world
        world.store.close()


def begun(world: LeaseWorld, token: str = "mine", channel: str = "a") -> Writer:
    assert world.leases.start(channel, token) == "started"
    return Writer(world, token, channel)


# Runs


def test_a_run_is_written_and_ends_and_its_channel_ends_with_it(world: LeaseWorld) -> None:
    writer = begun(world)
    anchor = world.newest()
    assert world.standing() == Standing(anchor, Run(world.run().anchor, is_held=True))
    assert anchor == world.run().anchor
    first, event = writer.write("one"), writer.write(Event({"n": 1}, "step"))
    end = world.leases.end("a", "done", token="mine")
    assert end is not None
    assert world.standing() == Standing(end, Run(world.run().anchor, "done", end, event))
    entries = world.read(world.run().anchor).entries
    assert [entry.position for entry in entries] == [first, event, end]
    assert [entry.event for entry in entries] == [Piece("one"), Event({"n": 1}, "step"), End("a", "done")]
    assert [type(entry.event) for entry in entries] == [Piece, Event, End]


def test_start_keeps_the_anchor_that_subscribers_wait_at(world: LeaseWorld) -> None:
    anchor = world.ensure()
    writer = begun(world)
    assert world.run().anchor == world.newest() == anchor
    writer.write("x")
    assert said(world.read(anchor)) == ["x"]


def test_a_run_is_begun_once(world: LeaseWorld) -> None:
    begun(world)
    assert world.leases.start("a", "other") == "exists"
    world.leases.end("a", "done", token="mine")
    assert world.leases.start("a", "other") == "exists"
    world.advance(RUN_TTL + 1)  # the ring is gone, and the marker still there
    assert world.leases.start("a", "other") == "exists"
    world.advance(TTL + 1)
    assert world.leases.start("a", "other") == "started"


def test_a_start_that_is_repeated_after_a_lost_reply_has_started(world: LeaseWorld) -> None:
    writer = begun(world)
    writer.write("x")
    assert world.leases.start("a", "mine") == world.leases.start("a", "mine", restart=True) == "started"
    assert world.text() == ["x"]


def test_of_many_starts_at_once_one_begins_the_run(world: LeaseWorld) -> None:
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda number: world.leases.start("a", f"token {number}"), range(24)))
    assert sorted(outcomes) == ["exists"] * 23 + ["started"]


@pytest.mark.parametrize("restart", [False, True])
def test_a_channel_with_ordinary_events_is_refused(world: LeaseWorld, restart: bool) -> None:
    position = world.publish("x").position
    assert world.leases.start("a", "mine", restart=restart) == "refused"
    assert world.standing() == Standing(position)


def test_a_channel_of_a_source_is_refused(world: LeaseWorld) -> None:
    assert good(world.leases.ask([Ask("a", "w", True, "source")])[0]).is_held
    assert world.leases.start("a", "mine", restart=True) == "refused"


def test_restart_takes_the_lease_and_begins_the_ring_again(world: LeaseWorld) -> None:
    old = begun(world)
    position = old.write("old")
    assert world.leases.start("a", "new", restart=True) == "started"
    assert world.read(position).reason == "diverged"
    new = Writer(world, "new")
    new.write("new")
    with pytest.raises(Stopped, match="channel a"):
        old.write("late")
    assert good(world.leases.renew([("a", "mine")])[0]) is False
    assert world.leases.end("a", "done", token="mine") is None
    assert world.text() == ["new"]


def test_restart_begins_again_after_an_end_even_if_the_ring_is_gone(world: LeaseWorld) -> None:
    begun(world).write("old")
    end = world.leases.end("a", "failed", token="mine")
    assert end is not None
    assert world.leases.start("a", "new", restart=True) == "started"
    assert world.run().end is None
    assert world.read(end).reason == "diverged"
    world.leases.end("a", "done", token="new")
    world.advance(RUN_TTL + 1)
    assert world.leases.start("a", "newest", restart=True) == "started"
    assert world.newest() == world.run().anchor


def test_a_write_that_is_repeated_is_stored_once(world: LeaseWorld) -> None:
    writer = begun(world)
    writer.write("zero")
    position = world.leases.write("a", "mine", Piece("x"), key="k", written=writer.written)
    for change in ("", "lease", "end"):
        if change == "lease":
            world.advance(LATE)
        if change == "end":
            world.leases.end("a", "stopped")
        assert world.leases.write("a", "mine", Piece("x"), key="k", written=writer.written) == position
    assert world.text()[:2] == ["zero", "x"]
    assert world.leases.start("a", "new", restart=True) == "started"
    with pytest.raises(Stopped):
        world.leases.write("a", "mine", Piece("x"), key="k", written=writer.written)


def test_a_write_of_which_the_store_has_lost_a_part_fails(world: LeaseWorld) -> None:
    writer = begun(world)
    writer.write("x")
    for written in (writer.written + 1, 0):
        with pytest.raises(RunFailed, match="lost a part of the run on channel a"):
            world.leases.write("a", "mine", Piece("y"), key=f"k{written}", written=written)
    assert world.text() == ["x"]
    assert world.leases.end("a", "failed", token="mine") is not None
    with pytest.raises(Stopped):
        writer.write("y")


def test_a_write_to_a_run_that_the_store_does_not_know_fails(world: LeaseWorld) -> None:
    with pytest.raises(RunFailed):
        Writer(world).write("x")
    world.ensure()
    with pytest.raises(RunFailed):
        Writer(world).write("x")
    assert good(world.leases.renew([("a", "mine")])[0]) is False
    assert world.leases.end("a", "failed", token="mine") is None
    assert world.leases.start("a", "mine") == "started"
    assert world.leases.end("a", "failed", token="mine") is not None


def test_a_run_is_bounded_in_bytes_and_its_end_has_room(world: LeaseWorld) -> None:
    writer = begun(world)
    most = RUN_BYTES - ENTRY_BYTES
    writer.write("x" * (most - weight(Piece("é"))))
    writer.write("é")
    assert writer.written == RUN_BYTES
    with pytest.raises(RunFailed, match="SSE_RUN_BYTES"):
        writer.write("")
    assert isinstance(world.publish(""), TooLarge)
    assert world.leases.end("a", "failed", token="mine") is not None
    assert world.text()[1:] == ["é", End("a", "failed").data]


def test_others_publish_on_a_run_s_channel_within_its_bound(world: LeaseWorld) -> None:
    writer = begun(world)
    writer.write("x")
    data = 'é"\n\x01' * 10
    assert world.publish(data, key="k").outcome == "new"
    assert world.publish(data, key="k").outcome == "again"
    writer.write("y")
    room = RUN_BYTES - writer.written - weight(Event(data))
    refused = world.publish("z" * (room - ENTRY_BYTES + 1))
    assert isinstance(refused, TooLarge)
    assert "SSE_RUN_BYTES" in str(refused)
    assert world.publish("z" * (room - ENTRY_BYTES)).outcome == "new"
    with pytest.raises(RunFailed):
        writer.write("")
    assert [text[:10] for text in world.text()] == ["x", data[:10], "y", "z" * 10]


def test_the_ring_of_a_run_is_not_trimmed_whoever_publishes(world: LeaseWorld) -> None:
    writer = begun(world)
    for number in range(RING * 3):
        writer.write(f"piece {number}")
        world.publish(f"event {number}")
    assert len(world.text()) == RING * 6
    world.leases.end("a", "done", token="mine")
    assert len(world.text()) == RING * 6 + 1


def test_nothing_is_published_after_the_end(world: LeaseWorld) -> None:
    writer = begun(world)
    writer.write("x")
    before = world.publish("before", key="before")
    world.leases.end("a", "done", token="mine")
    for _ in range(2):
        with pytest.raises(Ended, match="channel a has ended"):
            world.publish("late")
        with pytest.raises(Ended):
            world.publish("late", key="late")
        assert world.publish("before", key="before") == before._replace(outcome="again")
        with pytest.raises(IdempotencyConflict):
            world.publish("other", key="before")
        world.advance(200)
    world.advance(RUN_TTL)
    assert world.newest() is None
    with pytest.raises(Ended):
        world.publish("late")
    world.advance(TTL)
    assert world.publish("anew").position.offset == 1


@pytest.mark.parametrize("keyed", [False, True])
def test_a_batch_with_a_channel_that_has_ended_stores_nothing(world: LeaseWorld, keyed: bool) -> None:
    begun(world)
    world.leases.end("a", "done", token="mine")
    begun(world, "live", "live")
    channels = ["b", "live", "a", "c", "b"]
    batch = [Publication(channel, Event("x"), f"k{n}" if keyed else None) for n, channel in enumerate(channels)]
    with pytest.raises(Ended, match="channel a has ended"):
        world.store.publish(batch)
    assert world.store.newest(["b", "c"]) == [None, None]
    assert world.text("live") == []
    del batch[2]
    assert [good(receipt).outcome for receipt in world.store.publish(batch)] == ["new"] * 4  # type: ignore[union-attr]


def test_a_batch_that_is_repeated_after_a_channel_has_ended_has_its_receipts(world: LeaseWorld) -> None:
    begun(world)
    batch = [Publication(channel, Event("x"), f"k{channel}") for channel in "ab"]
    receipts = world.store.publish(batch)
    world.leases.end("a", "stopped")
    assert world.store.publish(batch) == [receipt._replace(outcome="again") for receipt in receipts]  # type: ignore[union-attr]
    with pytest.raises(IdempotencyConflict):
        world.store.publish([Publication("a", Event("y"), "ka"), Publication("a", Event("z"))])
    with pytest.raises(Ended):
        world.store.publish([*batch, Publication("a", Event("new"))])


def test_an_end_has_one_reason(world: LeaseWorld) -> None:
    begun(world)
    with ThreadPoolExecutor(8) as threads:
        ends = list(threads.map(lambda number: world.leases.end("a", "stopped" if number % 2 else "failed"), range(16)))
    assert len([end for end in ends if end]) == 1
    assert world.run().ended_at == next(end for end in ends if end)
    assert world.leases.end("a", "done", token="mine") is None
    assert world.run().end in ("stopped", "failed")


def test_there_is_nothing_to_end_without_a_live_run_of_that_token(world: LeaseWorld) -> None:
    assert world.leases.end("a", "stopped") is None
    world.publish("x")
    assert world.leases.end("a", "stopped") is None
    begun(world, channel="b")
    assert world.leases.end("b", "done", token="other") is None
    assert world.leases.end("b", "interrupted", token="mine") is not None
    assert world.leases.end("b", "stopped") is None


def test_a_run_is_lost_only_without_its_lease(world: LeaseWorld) -> None:
    writer = begun(world)
    world.advance(LEASE_SECONDS - 1)
    assert world.run().is_held
    assert world.leases.end("a", "lost") is None
    world.advance(2)
    assert not world.run().is_held
    writer.write("x")  # its writer was only slow
    assert world.run().is_held
    assert world.leases.end("a", "lost") is None
    world.advance(LATE)
    assert world.leases.end("a", "lost") == world.run().ended_at
    assert world.run().end == "lost"
    with pytest.raises(Stopped):
        writer.write("y")
    assert good(world.leases.renew([("a", "mine")])[0]) is False


def test_a_renewal_sets_the_lease_again_if_the_run_is_live(world: LeaseWorld) -> None:
    begun(world)
    world.advance(LATE)
    assert world.leases.renew([("a", "other"), ("a", "mine"), ("b", "mine")]) == [False, True, False]
    assert world.run().is_held
    assert world.leases.renew([]) == []


def test_a_live_run_stays_as_long_as_it_is_renewed_and_then_until_somebody_finds_it_lost(world: LeaseWorld) -> None:
    begun(world).write("x")
    for _ in range(5):
        world.advance(RUN_TTL + TTL - 1)
        assert good(world.leases.renew([("a", "mine")])[0]) is True
    assert world.text() == ["x"]
    world.advance(RUN_TTL + TTL - 1)
    assert world.leases.end("a", "lost") is not None
    assert world.text() == ["x", End("a", "lost").data]


def test_a_run_that_nobody_renews_leaves_nothing_in_the_end(world: LeaseWorld) -> None:
    begun(world).write("x")
    world.advance(RUN_TTL + TTL + 1)
    assert world.standing() == Standing(None)
    assert world.leases.end("a", "lost") is None


def test_after_the_end_the_ring_lives_its_time_whoever_looks(world: LeaseWorld) -> None:
    anchor = world.ensure()
    begun(world).write("x")
    end = world.leases.end("a", "done", token="mine")
    assert end is not None
    for _ in range(5):
        world.advance(RUN_TTL / 6)
        assert good(world.store.standing(["a"], prolong=True)[0]).newest == end
        assert world.ensure() == end
        assert len(world.read(anchor).entries) == 2
    world.advance(RUN_TTL / 6 + 1)
    assert world.standing() == Standing(None, Run(anchor, "done", end, world.run().before_end))
    assert world.ensure() == end
    assert world.newest() is None
    assert world.read(end).reason == "unknown"
    assert good(world.store.before([("a", 1)])[0]) is None
    assert good(world.store.before([("a", 0)])[0]) is None
    world.advance(TTL - 2)
    assert world.run().end == "done"
    world.advance(3)
    assert world.standing() == Standing(None)
    assert world.ensure().offset == 0


def test_an_ordinary_ring_without_events_is_as_short_lived_as_before(world: LeaseWorld) -> None:
    world.ensure()
    world.advance(UNBORN_TTL - 1)
    assert world.standing() == Standing(world.newest())
    world.advance(2)
    assert world.standing() == Standing(None)


def test_hubs_hear_of_a_start_each_event_and_the_end(world: LeaseWorld) -> None:
    with contextlib.closing(world.store.feed()) as feed:
        feed.subscribe(["a"])
        assert notices(feed, 1) == [Notice("a")]
        begun(world).write("x")
        world.leases.end("a", "done", token="mine")
        heard = notices(feed, 3)
        while not {entry.event.data for _, _, entry, _ in heard if entry} >= {"x", End("a", "done").data}:
            heard += notices(feed, 1)
        heard += feed.read(0.2)
        entries = [notice for notice in heard if notice.entry]
        assert [notice.entry.event for notice in entries if notice.entry] == [Piece("x"), End("a", "done")]
        assert [notice.previous for notice in entries] == [world.run().anchor, world.run().before_end]
        states = [notice for notice in heard if not notice.entry]
        assert 1 <= len(states) <= 2
        assert set(states) == {Notice("a", state_changed=True)}


def test_a_start_an_end_and_a_new_start_are_each_told_as_a_change(world: LeaseWorld) -> None:
    world.ensure()
    with contextlib.closing(world.store.feed()) as feed:
        feed.subscribe(["a"])
        assert notices(feed, 1) == [Notice("a")]
        for change in (
            lambda: world.leases.start("a", "t"),
            lambda: world.leases.end("a", "stopped"),
            lambda: world.leases.start("a", "u", restart=True),
        ):
            change()
            heard = [notice for notice in notices(feed, 1) + feed.read(0.2) if not notice.entry]
            assert heard == [Notice("a", state_changed=True)]
            assert world.leases.start("a", "v") == "exists"
            assert feed.read(0.1) == []


def test_an_event_of_another_publisher_does_not_change_the_life_of_a_run(world: LeaseWorld) -> None:
    begun(world).write("x")
    world.advance(10)
    world.publish("y")
    world.advance(TTL + 1)
    assert world.text() == ["x", "y"]
    world.publish("z")
    world.advance(RUN_TTL)
    assert world.standing() == Standing(None)


def test_of_two_writers_that_race_over_restarts_no_text_has_a_hole_or_both(world: LeaseWorld) -> None:
    """Each writer takes the channel, writes numbers in order, and is thrown out by the next one."""
    tokens = itertools.count()
    failures: list[BaseException] = []
    over = threading.Event()

    def work() -> None:
        try:
            while not over.is_set():
                token = f"t{next(tokens)}"
                assert world.leases.start("a", token, restart=True) == "started"
                writer = Writer(world, token)
                with contextlib.suppress(Stopped):
                    for number in range(20):
                        writer.write(f"{token} {number}")
        except BaseException as error:
            failures.append(error)

    begun(world)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        text = world.text()
        if text:  # the ring may have begun anew since the marker was read
            token = text[0].split()[0]
            assert text == [f"{token} {number}" for number in range(len(text))]
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []


# Sources


def ask(world: LeaseWorld, worker: str, token: str | None = None, listens: bool = True) -> Any:
    return good(world.leases.ask([Ask("s", worker, listens, token)])[0])


def test_one_worker_of_all_holds_the_lease_of_a_source(world: LeaseWorld) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: ask(world, f"w{number}", f"t{number}"), range(16)))
    assert sorted(answer.is_held for answer in answers) == [False] * 15 + [True]
    assert max(answer.listeners for answer in answers) == 16
    assert {answer.attempts for answer in answers} == {1}
    assert all(answer.is_taken for answer in answers)
    holder = next(number for number, answer in enumerate(answers) if answer.is_held)
    assert ask(world, f"w{holder}", f"t{holder}").is_held
    assert not ask(world, f"w{holder}").is_held


def test_who_listens_is_counted_until_it_stops_or_is_silent(world: LeaseWorld) -> None:
    assert [ask(world, worker).listeners for worker in "abb"] == [1, 2, 2]
    assert ask(world, "a", listens=False).listeners == 1
    world.advance(LEASE_SECONDS - 1)
    assert ask(world, "c").listeners == 2
    world.advance(2)
    answer = ask(world, "d", listens=False)
    assert answer.listeners == 1
    assert (answer.is_held, answer.is_taken, answer.state, answer.attempts) == (False, False, None, 0)


def test_many_questions_are_answered_in_their_order(world: LeaseWorld) -> None:
    questions = [Ask(f"s{number}", "w", number % 2 == 0, "t" if number % 3 == 0 else None) for number in range(30)]
    answers = [good(answer) for answer in world.leases.ask(questions)]
    assert [answer.is_held for answer in answers] == [number % 3 == 0 for number in range(30)]
    assert [answer.listeners for answer in answers] == [int(number % 2 == 0) for number in range(30)]
    assert world.leases.ask([]) == []


def test_a_source_writes_only_with_the_lease_and_each_event_once(world: LeaseWorld) -> None:
    with pytest.raises(LeaseLost):
        world.leases.write("s", "t", Event("x"), key="k0")
    ask(world, "w", "t")
    position = world.leases.write("s", "t", Event("x"), key="k1")
    assert world.leases.write("s", "t", Event("x"), key="k1") == position
    with pytest.raises(LeaseLost, match="channel s"):
        world.leases.write("s", "other", Event("y"), key="k2")
    world.advance(LATE)
    assert world.leases.write("s", "t", Event("x"), key="k1") == position
    with pytest.raises(LeaseLost):
        world.leases.write("s", "t", Event("y"), key="k3")
    assert ask(world, "v", "new").is_held
    world.leases.write("s", "new", Event("z"), key="k4")
    with pytest.raises(LeaseLost):
        world.leases.write("s", "t", Event("y"), key="k5")
    assert world.standing("s").run is None
    assert said(world.read(position, channel="s")) == ["z"]


def test_the_ring_of_a_source_is_trimmed_as_any_other(world: LeaseWorld) -> None:
    first = world.ensure("s")
    ask(world, "w", "t")
    for number in range(RING + 2):
        world.leases.write("s", "t", Event(number), key=str(number))
    assert world.read(first, channel="s").reason == "trimmed"
    assert world.publish("x", "s").outcome == "new"
    world.advance(TTL - 1)
    assert world.newest("s") is not None
    world.advance(2)
    assert world.newest("s") is None


def test_each_attempt_waits_twice_as_long_over_all_workers(world: LeaseWorld) -> None:
    """Each runner kills its worker as soon as it begins."""
    assert [backoff(number) for number in range(1, 10)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    for attempt in range(1, 9):
        answer = ask(world, f"w{attempt}", f"t{attempt}")
        assert (answer.is_held, answer.attempts) == (True, attempt)
        wait = backoff(attempt)
        world.advance(max(LEASE_SECONDS, wait) - 0.5)
        assert not ask(world, "other", "other").is_held
        world.advance(0.6)


def take_and_write(world: LeaseWorld, attempt: int) -> None:
    answer = ask(world, f"w{attempt}", f"t{attempt}")
    assert (answer.is_held, answer.attempts) == (True, attempt)
    for number in range(2):
        world.leases.write("s", f"t{attempt}", Event("x"), key=f"k{attempt}.{number}")


def test_a_runner_that_has_written_and_dies_is_replaced_soon(world: LeaseWorld) -> None:
    """So workers that die for other reasons are replaced within 10 s, a round of questions included."""
    for attempt in range(1, 10):
        take_and_write(world, attempt)
        assert not ask(world, "other", "other").is_held
        world.advance(10 - RENEW_SECONDS + 0.1)


def test_a_source_that_writes_and_kills_its_worker_does_not_go_on_killing(world: LeaseWorld) -> None:
    for attempt in range(1, 15):
        take_and_write(world, attempt)
        world.advance(max(LEASE_SECONDS, backoff(attempt - DELIVERED)) - 1.5)  # the write is by whole seconds
        assert not ask(world, "other", "other").is_held
        world.advance(1.6)
    assert backoff(attempt - DELIVERED) == 60
    assert ask(world, "w", "t").is_held
    world.leases.write("s", "t", Event("x"), key="k")
    world.leases.note("s", "t", "up")
    world.advance(STEADY_SECONDS)
    assert ask(world, "w", "t").attempts == 0
    world.advance(LATE)
    assert ask(world, "v", "u").is_held, "one that was up for a while is not replaced soon"


def test_a_source_that_fails_after_a_value_waits_as_long_as_it_says(world: LeaseWorld) -> None:
    take_and_write(world, 1)
    world.leases.release("s", "t1", wait=30)
    world.advance(29)
    assert not ask(world, "w", "t").is_held
    world.advance(1.1)
    assert ask(world, "w", "t").is_held


def test_attempts_count_anew_when_a_runner_was_up_for_a_while(world: LeaseWorld) -> None:
    for attempt in range(1, 4):
        assert ask(world, "w", f"t{attempt}").attempts == attempt
        world.leases.note("s", f"t{attempt}", "up")  # at once, and then it dies
        world.advance(LATE)
    assert ask(world, "w", "t4").attempts == 4
    world.leases.note("s", "t4", "down")
    world.advance(STEADY_SECONDS)
    assert ask(world, "w", "t4").attempts == 4
    world.leases.note("s", "t4", "up")
    assert ask(world, "w", "t4").attempts == 4
    world.advance(STEADY_SECONDS)
    assert ask(world, "w", "t4").attempts == 0
    assert ask(world, "w", "t4").attempts == 0


def test_a_lease_that_is_given_up_can_be_taken_after_the_wait(world: LeaseWorld) -> None:
    ask(world, "w", "t")
    world.leases.release("s", "other")
    assert ask(world, "w", "t").is_held
    world.leases.release("s", "t", wait=3.0)
    answer = ask(world, "v", "u")
    assert (answer.is_held, answer.is_taken) == (False, False)
    world.advance(2.9)
    assert not ask(world, "v", "u").is_held
    world.advance(0.2)
    assert ask(world, "v", "u").attempts == 2
    world.leases.release("s", "u")  # a drain
    answer = ask(world, "w", "t")
    assert (answer.is_held, answer.attempts) == (True, 2)


def test_the_state_of_a_source_is_noted_by_its_holder_and_announced(world: LeaseWorld) -> None:
    with contextlib.closing(world.store.feed()) as feed:
        feed.subscribe(["s"])
        notices(feed, 1)
        assert world.leases.states(["s", "none"]) == [None, None]
        ask(world, "w", "t")
        world.leases.note("s", "other", "down")
        assert world.leases.states(["s"]) == [None]
        for state in ("up", "up", "down"):
            world.leases.note("s", "t", state)  # type: ignore[arg-type]
            assert world.leases.states(["none", "s"]) == [None, state]
            assert ask(world, "v").state == state
            heard = feed.read(0.2)
            assert heard in ([Notice("s", state_changed=True)], [])
        world.leases.note("s", "t", "up")
        assert notices(feed, 1)[0] == Notice("s", state_changed=True)
    world.advance(TTL + 1)
    assert world.leases.states(["s"]) == [None]


def test_the_age_of_a_source_s_newest_event(world: LeaseWorld) -> None:
    assert world.leases.ages(["s"]) == [None]
    ask(world, "w", "t")
    assert world.leases.ages(["s", "none"]) == [None, None]
    world.leases.write("s", "t", Event("x"), key="k")
    world.advance(4)
    assert world.leases.ages(["s"]) == [0.0]
    world.advance(LATE)
    (age,) = world.leases.ages(["s"])
    assert age == pytest.approx(LATE + 4, abs=1.5)
    ask(world, "v", "u")
    (age,) = world.leases.ages(["s"])
    assert age == pytest.approx(LATE + 4, abs=1.5)
    world.leases.write("s", "u", Event("y"), key="l")
    assert world.leases.ages(["s"]) == [0.0]


def test_a_run_s_channel_has_no_source(world: LeaseWorld) -> None:
    writer = begun(world, channel="s")
    answer = ask(world, "w", "t")
    assert (answer.is_held, answer.is_taken, answer.attempts) == (False, True, 0)
    world.leases.release("s", "mine")
    world.advance(LATE)
    assert not ask(world, "w", "t").is_held
    writer.write("x")
    world.leases.end("s", "done", token="mine")
    assert not ask(world, "w", "t").is_held
    with pytest.raises(LeaseLost):
        world.leases.write("s", "t", Event("x"), key="k")


def test_a_page_of_pieces_counts_their_text_alone(world: LeaseWorld) -> None:
    """So 600 short pieces that are joined for a late subscriber come from one question."""
    writer = begun(world)
    for number in range(700):
        writer.write(f"{number:010}")
    position = world.run().anchor
    (page,) = world.store.read([("a", position)], 4000, 6000)
    assert len(good(page).entries) == 600
    assert good(page).more
    position = good(page).entries[-1].position
    (page,) = world.store.read([("a", position)], 4000, 6000)
    assert said(good(page)) == [f"{number:010}" for number in range(600, 700)]
    (page,) = world.store.read([("a", world.run().anchor)], 50, 6000)
    assert len(good(page).entries) == 50


def test_a_batch_that_races_with_an_end_is_stored_whole_or_not_at_all(world: LeaseWorld) -> None:
    def publish(number: int) -> bool:
        try:
            world.store.publish([Publication("b", Event(number)), Publication("a", Event(number))])
        except Ended:
            return False
        return True

    for attempt in range(5):
        assert world.leases.start("a", f"t{attempt}", restart=True) == "started"
        anchor = world.ensure("b")
        with ThreadPoolExecutor(4) as threads:
            stored = list(threads.map(publish, range(10)))[:]
            ending = threads.submit(world.leases.end, "a", "done")
            stored += threads.map(publish, range(10, 30))
            assert ending.result()
        count = sum(stored)
        assert len(world.text()) == count + 1
        newest = world.newest("b")
        assert newest is not None
        assert newest.offset - anchor.offset == count


@pytest.mark.parametrize("look", ["none", "ensure", "publish", "both"])
def test_a_ring_that_is_lost_alone_fails_the_run(world: LeaseWorld, look: str) -> None:
    writer = begun(world)
    writer.write("x")
    if world.client:
        world.client.delete("sse:{a}")
    else:
        del world.store._rings["a"]  # type: ignore[attr-defined]
    standing = world.standing()
    assert standing.newest is None
    assert standing.run
    assert standing.run.end is None
    if look in ("ensure", "both"):
        world.ensure()
    if look in ("publish", "both"):
        world.publish("of another")
    with pytest.raises(RunFailed):
        writer.write("y")
    end = world.leases.end("a", "failed", token="mine")
    assert end == world.newest()
    before_end = world.run().before_end
    assert before_end is not None
    assert said(world.read(before_end)) == [End("a", "failed").data]
    world.advance(RUN_TTL - 1)
    assert world.newest() == end
    world.advance(2)
    assert world.newest() is None


# Redis alone


def test_an_ordinary_publish_and_an_ordinary_question_look_at_no_marker(redis_world: LeaseWorld) -> None:
    client = redis_world.client
    redis_world.ensure("old")
    redis_world.publish("x", "old")
    redis_world.ensure("unborn")
    client.config_resetstat()
    for _ in range(3):
        redis_world.publish("y", "old")
        redis_world.store.standing(["old", "unborn"], prolong=True)
        redis_world.store.ensure(["old", "unborn"])
        redis_world.store.before([("old", 1), ("unborn", 1)])
    redis_world.publish("first", "unborn")
    assert not client.info("commandstats").keys() & {"cmdstat_hmget", "cmdstat_exists"}
    begun(redis_world)
    redis_world.publish("z")
    assert "cmdstat_hmget" in client.info("commandstats")


@pytest.mark.parametrize("keyed", [False, True])
def test_a_batch_takes_one_round_trip(redis_world: LeaseWorld, keyed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    redis_world.publish("x")
    store = as_redis(redis_world.store)
    asked: list[int] = []
    ask = store._pool.ask

    def counting(commands: Any, deadline: float) -> Any:
        asked.append(len(commands))
        return ask(commands, deadline)

    monkeypatch.setattr(store._pool, "ask", counting)
    batch = [Publication(channel, Event("x"), f"k{channel}" if keyed else None) for channel in "abcd"]
    store.publish(batch)
    store.publish(batch)
    assert asked[-1] == 1
    assert len(asked) <= 3  # the script's text was sent once more at most


def test_a_very_large_batch_is_checked_as_a_small_one(redis_world: LeaseWorld) -> None:
    begun(redis_world, channel="c2999")
    batch = [Publication(f"c{number}", Event("x")) for number in range(3000)]
    assert len(redis_world.store.publish(batch)) == 3000
    redis_world.leases.end("c2999", "done", token="mine")
    with pytest.raises(Ended, match="c2999"):
        redis_world.store.publish(batch)
    assert {position.offset for position in redis_world.store.newest([f"c{number}" for number in range(2999)])} == {1}  # type: ignore[union-attr]


def as_redis(store: Store) -> RedisStore:
    assert isinstance(store, RedisStore)
    return store


@pytest.fixture
def doubled(redis_world: LeaseWorld, monkeypatch: pytest.MonkeyPatch) -> LeaseWorld:
    """A store whose every first reply is lost, so that it sends everything twice."""
    store = as_redis(redis_world.store)
    for pool in (store._pool, store._upkeep_pool):

        def ask_twice(commands: Any, deadline: float, ask: Callable[..., Any] = pool.ask) -> Any:
            ask(commands, deadline)
            return ask(commands, deadline)

        monkeypatch.setattr(pool, "ask", ask_twice)
    return redis_world


def test_nothing_is_done_twice_if_replies_are_lost(doubled: LeaseWorld) -> None:
    world, leases = doubled, doubled.leases
    writer = begun(world)
    writer.write("x")
    assert world.publish("y").outcome == "again"
    writer.write("z")
    assert leases.renew([("a", "mine")]) == [True]
    end = leases.end("a", "stopped")
    assert end == world.run().ended_at
    assert leases.end("a", "stopped") is None
    assert world.text() == ["x", "y", "z", End("a", "stopped").data]
    assert leases.start("a", "new", restart=True) == "started"
    assert world.text() == []
    assert ask(world, "w", "t").attempts == 1
    leases.note("s", "t", "up")
    leases.write("s", "t", Event("x"), key="k")
    assert world.standing("s").newest == Position(1, world.standing("s").newest.tag)  # type: ignore[union-attr]
    leases.release("s", "t")
    assert ask(world, "v", "u").attempts == 1
    receipts = world.store.publish([Publication(channel, Event("x")) for channel in ("b", "c", "b")])
    assert [receipt.position.offset for receipt in receipts] == [1, 1, 2]  # type: ignore[union-attr]


def test_a_stale_copy_of_a_run_fails_the_next_write_and_its_text_has_no_hole(redis_world: LeaseWorld) -> None:
    """As after a restart of Redis from an older file."""
    writer = begun(redis_world)
    writer.write("one")
    dump = dumped(redis_world)
    writer.write("two")
    writer.write("three")
    restore(redis_world, dump)
    with pytest.raises(RunFailed, match="lost a part"):
        writer.write("four")
    assert redis_world.leases.renew([("a", "mine")]) == [True]
    assert redis_world.leases.end("a", "failed", token="mine") is not None
    assert redis_world.text() == ["one", End("a", "failed").data]


def test_a_stale_copy_that_lacks_nothing_of_the_run_lets_it_go_on(redis_world: LeaseWorld) -> None:
    writer = begun(redis_world)
    writer.write("one")
    dump = dumped(redis_world)
    redis_world.publish("of another")
    restore(redis_world, dump)
    writer.write("two")
    assert redis_world.text() == ["one", "two"]


def test_a_stale_copy_from_before_the_run_fails_it(redis_world: LeaseWorld) -> None:
    redis_world.ensure()
    dump = dumped(redis_world)
    writer = begun(redis_world)
    restore(redis_world, dump)
    with pytest.raises(RunFailed):
        writer.write("one")
    assert redis_world.leases.start("a", "mine") == "started"
    assert redis_world.leases.end("a", "failed", token="mine") is not None
    assert redis_world.text() == [End("a", "failed").data]


def test_a_stale_copy_of_an_earlier_run_stops_the_new_one(redis_world: LeaseWorld) -> None:
    begun(redis_world, "old").write("old")
    dump = dumped(redis_world)
    redis_world.leases.end("a", "done", token="old")
    assert redis_world.leases.start("a", "new", restart=True) == "started"
    restore(redis_world, dump)
    with pytest.raises(Stopped):
        Writer(redis_world, "new").write("new")
    redis_world.advance(LATE)
    assert redis_world.leases.end("a", "lost") is not None


def raw_client(world: LeaseWorld) -> Any:
    """Return a client that decodes no values."""
    assert world.url
    return redis.Redis.from_url(world.url)


def dumped(world: LeaseWorld) -> dict[str, tuple[bytes, int]]:
    """Return a copy of all keys, which `restore` puts back."""
    with raw_client(world) as raw:
        return {key.decode(): (raw.dump(key), raw.pttl(key)) for key in raw.keys()}


def restore(world: LeaseWorld, copy: dict[str, tuple[bytes, int]]) -> None:
    with raw_client(world) as raw:
        raw.flushall()
        for key, (value, ttl) in copy.items():
            raw.restore(key, ttl, value)


@pytest.mark.parametrize("cut", ["xtrim", "xdel", "emptied"])
def test_a_ring_that_was_cut_by_hand_fails_the_run(redis_world: LeaseWorld, cut: str) -> None:
    client = redis_world.client
    writer = begun(redis_world)
    writer.write("x")
    writer.write("y")
    if cut == "xtrim":
        client.xtrim("sse:{a}", maxlen=1, approximate=False)
    elif cut == "xdel":
        client.xdel("sse:{a}", str(redis_world.run().anchor))
    else:
        client.xtrim("sse:{a}", maxlen=0, approximate=False)
    with pytest.raises(RunFailed):
        writer.write("z")
    assert redis_world.leases.end("a", "failed", token="mine") is not None


def test_a_marker_that_is_lost_alone_leaves_an_ordinary_ring_or_an_ended_channel(redis_world: LeaseWorld) -> None:
    client, leases = redis_world.client, redis_world.leases
    writer = begun(redis_world)
    last = writer.write("x")
    client.delete("sse:{a}:run")
    assert redis_world.standing() == Standing(last)
    assert redis_world.ensure() == last
    with pytest.raises(RunFailed):
        writer.write("y")
    assert leases.start("a", "new") == "exists"
    assert redis_world.publish("of another").outcome == "new"
    assert leases.start("a", "new", restart=True) == "refused"
    begun(redis_world, channel="b")
    leases.end("b", "done", token="mine")
    client.delete("sse:{b}:run")
    with pytest.raises(Ended):
        redis_world.publish("late", "b")
    outcomes = redis_world.store.publish([Publication(channel, Event("x")) for channel in "bc"])
    assert isinstance(outcomes[0], Ended)
    assert not isinstance(outcomes[1], Exception)
    assert leases.start("b", "new", restart=True) == "started"


@pytest.mark.parametrize("key", ["", ":run", ":lease", ":source", ":workers"])
def test_what_another_program_wrote_is_a_fault_of_that_channel_alone(redis_world: LeaseWorld, key: str) -> None:
    leases = redis_world.leases
    begun(redis_world, channel="b")
    redis_world.client.xadd(f"sse:{{a}}{key}", {"x": "y"}) if key else redis_world.client.set("sse:{a}", "x", ex=600)
    wrong = {"": ["start", "publish", "standing"], ":run": ["start", "renew", "ask"], ":lease": ["start", "ask"]}
    for name in wrong.get(key, ["ask"]):
        if name == "start":
            with pytest.raises(StoreUnavailable, match="channel a"):
                leases.start("a", "t")
        elif name == "renew":
            first, second = leases.renew([("a", "t"), ("b", "mine")])
            assert isinstance(first, StoreUnavailable) and second is True
        elif name == "ask":
            one, two = leases.ask([Ask("a", "w", True, "t"), Ask("c", "w", True, "t")])
            assert isinstance(one, StoreUnavailable) and good(two).is_held
        elif name == "standing":
            nothing, there = redis_world.store.standing(["a", "b"])
            assert isinstance(nothing, StoreUnavailable) and good(there).run
        else:
            outcomes = redis_world.store.publish([Publication(channel, Event("x")) for channel in "acb"])
            assert [isinstance(outcome, StoreUnavailable) for outcome in outcomes] == [True, False, False]


def test_a_marker_that_another_program_wrote_is_told(redis_world: LeaseWorld) -> None:
    for fields in ({"anchor": "x"}, {"anchor": "0-1", "end": "over"}, {"anchor": "0-1", "end": "done", "at": "y"}):
        redis_world.client.delete("sse:{a}:run")
        redis_world.client.hset("sse:{a}:run", mapping=fields)
        assert isinstance(redis_world.store.standing(["a"])[0], StoreUnavailable)


def test_an_older_version_s_event_on_a_run_s_channel_is_no_hole(redis_world: LeaseWorld) -> None:
    """An older version marks no entry, and trims the ring."""
    client = redis_world.client
    writer = begun(redis_world)
    writer.write("x")
    client.xadd("sse:{a}", {"d": '{"type":"message","data":"old"}'}, id="2-77")
    writer.write("y")
    assert redis_world.text() == ["x", "old", "y"]
    client.xadd("sse:{a}", {"d": '{"type":"message","data":"old"}'}, id="4-77", maxlen=2, approximate=False)
    with pytest.raises(RunFailed):
        writer.write("z")
    assert redis_world.leases.end("a", "failed", token="mine") is not None
    with pytest.raises(Ended):
        redis_world.publish("late")


def test_renewals_have_a_connection_of_their_own_and_little_time(
    redis_world: LeaseWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(redis_world)
    store = as_redis(redis_world.store)

    def never(*_: Any) -> Any:
        raise AssertionError("the connections of other calls may all be in use")

    with monkeypatch.context() as patch:
        patch.setattr(store._pool, "ask", never)
        assert redis_world.leases.renew([("a", "mine")]) == [True]
        assert ask(redis_world, "w", "t").is_held
    redis_world.client.client_pause(4000)
    for call in (lambda: redis_world.leases.renew([("a", "mine")]), lambda: ask(redis_world, "w")):
        begin = time.monotonic()
        with pytest.raises(StoreUnavailable):
            call()
        assert time.monotonic() - begin < 2


def test_redis_lets_a_lease_run_out(redis_world: LeaseWorld) -> None:
    begun(redis_world)
    ask(redis_world, "w", "t")
    for channel in "as":
        assert LEASE_SECONDS - 1 < redis_world.client.pttl(f"sse:{{{channel}}}:lease") / 1000 <= LEASE_SECONDS
    redis_world.client.pexpire("sse:{a}:lease", 20)
    time.sleep(0.05)
    assert not redis_world.run().is_held
    assert redis_world.leases.end("a", "lost") is not None


def test_a_clock_of_redis_that_is_set_back_stops_no_source_and_keeps_no_listener(redis_world: LeaseWorld) -> None:
    ask(redis_world, "dead", "t")
    ask(redis_world, "w")
    redis_world.leases.release("s", "t", wait=30)
    for worker in ("dead", "w"):
        redis_world.client.zincrby("sse:{s}:workers", 3_600_000, worker)
    redis_world.client.hincrby("sse:{s}:source", "due", 3_600_000)
    answer = ask(redis_world, "w", "u")
    assert (answer.is_held, answer.listeners) == (True, 1)


def test_guessed_names_leave_nothing_behind_for_long(world: LeaseWorld) -> None:
    world.leases.ask([Ask(f"guess/{number}", "w", True) for number in range(50)])
    world.advance(2 * LEASE_SECONDS + 1)
    if world.client:
        assert [key for key in world.client.keys() if "guess" in key] == []
    else:
        world.advance(60)
        for _ in range(3):
            ask(world, "w")
        assert list(world.leases._sources) == ["s"]  # type: ignore[attr-defined]
