"""The queue of publishes: what is stored together, how each is answered, and what bounds them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from sse.errors import StoreUnavailable
from sse.server.publishes import Publishes


class Request(NamedTuple):
    """A request that publishes one event."""

    event: object
    size: int = 600

    @property
    def publications(self) -> list[object]:
        return [self.event]


class World:
    """A queue, its greenlets, which run when a test lets them, and a store, which says `stored` of each event."""

    def __init__(self) -> None:
        self.calls: list[list[object]] = []  # the events of each call of the store
        self.answers: list[tuple[object, Any]] = []
        self.during: Callable[[], object] = lambda: None  # called while the store waits
        self.spawned: list[Callable[[], None]] = []
        self.publishes = Publishes(self._store_each, self.spawned.append)

    def submit(self, *events: object, size: int = 600) -> None:
        for event in events:
            self.publishes.submit(Request(event, size), lambda outcome, event=event: self.answered(event, outcome))

    def answered(self, event: object, outcome: Any) -> None:
        self.answers.append((event, outcome))

    def run(self) -> None:
        while self.spawned:
            self.spawned.pop()()

    def _store_each(self, calls: Sequence[Sequence[object]]) -> list[str]:
        self.calls.append([event for events in calls for event in events])
        self.during()
        return [f"stored {event}" for events in calls for event in events]


@pytest.fixture
def world() -> World:
    return World()


def test_publishes_that_come_together_are_stored_in_one_call_and_each_has_its_own_answer(world: World) -> None:
    world.submit(1, 2, 3)
    assert len(world.spawned) == 1 and not world.calls
    world.run()
    assert world.calls == [[1, 2, 3]]
    assert world.answers == [(1, "stored 1"), (2, "stored 2"), (3, "stored 3")]
    world.submit(4)
    world.run()
    assert world.calls[1:] == [[4]]


def test_publishes_that_come_while_the_store_waits_are_the_next_batch(world: World) -> None:
    def more() -> None:
        world.during = lambda: None
        world.submit(2, 3)
        assert not world.spawned, "one greenlet stores them all, so that they keep their order"

    world.during = more
    world.submit(1)
    world.run()
    assert world.calls == [[1], [2, 3]]
    assert [event for event, _ in world.answers] == [1, 2, 3]


def test_an_answer_that_submits_the_next_publish_is_served_by_the_same_greenlet(world: World) -> None:
    world.publishes.submit(Request(1), lambda _: world.submit(2))
    world.run()
    assert world.calls == [[1], [2]]


@pytest.mark.parametrize(("size", "batches"), [(600, [256, 256, 88]), (1 << 18, [4] * 150)])
def test_a_batch_is_bounded_in_events_and_bytes(world: World, size: int, batches: list[int]) -> None:
    world.submit(*range(600), size=size)
    world.run()
    assert [len(call) for call in world.calls] == batches
    assert [event for event, _ in world.answers] == [*range(600)]


def test_a_publish_that_is_larger_than_a_batch_is_stored_alone(world: World) -> None:
    world.submit(1, size=100 << 20)
    world.submit(2)
    assert world.publishes.is_full
    world.run()
    assert world.calls == [[1], [2]] and not world.publishes.is_full


@pytest.mark.parametrize(("size", "most"), [(600, 1024), (1 << 20, 8)])
def test_the_queue_says_when_it_is_full(world: World, size: int, most: int) -> None:
    for number in range(most):
        assert not world.publishes.is_full
        world.submit(number, size=size)
    assert world.publishes.is_full
    world.during = lambda: seen.append(world.publishes.is_full)
    seen: list[bool] = []
    world.run()
    assert not any(seen) and len(world.answers) == most


def test_a_fault_of_the_whole_store_is_the_answer_to_each_and_the_next_are_stored(world: World) -> None:
    def fail() -> None:
        world.during = lambda: None
        raise ValueError("a fault")

    world.during = fail
    world.submit(1, 2)
    world.run()
    assert [str(outcome) for _, outcome in world.answers] == ["a fault"] * 2
    world.submit(3)
    world.run()
    assert world.answers[2:] == [(3, "stored 3")]


def test_if_the_store_is_away_those_that_came_meanwhile_share_the_fault_and_later_ones_ask_again(world: World) -> None:
    def fail() -> None:
        world.submit(*range(1, 700))
        world.during = lambda: None
        raise StoreUnavailable("Redis has not answered for 5 s", "wait")

    world.during = fail
    world.publishes.submit(Request(0), lambda outcome: (world.answered(0, outcome), world.submit("later")))
    world.run()
    assert world.calls == [[0], ["later"]]
    told = world.answers[:-1]
    assert [event for event, _ in told] == [*range(700)]
    assert all(isinstance(outcome, StoreUnavailable) for _, outcome in told)
    assert world.answers[-1] == ("later", "stored later")
    assert not world.publishes.is_full


def test_an_answer_that_fails_is_logged_and_the_others_are_given(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.publishes.submit(Request(1), lambda _: 1 / 0)
    world.submit(2)
    with caplog.at_level(logging.ERROR, "sse"):
        world.run()
    assert "could not be answered" in caplog.text and "ZeroDivisionError" in caplog.text
    assert world.answers == [(2, "stored 2")]


def test_others_run_between_the_batches_of_very_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[int] = []
    now = iter(number * 0.02 for number in range(1_000_000))  # each batch takes that many seconds
    monkeypatch.setattr("time.sleep", lambda _: slept.append(len(world.answers)))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    world.submit(*range(600))
    world.run()
    assert slept == [256, 512] and len(world.answers) == 600


class Killed(BaseException):
    """What a greenlet that is killed raises where it waits."""


def kill() -> None:
    raise Killed


def test_a_kill_while_the_store_waits_answers_all_that_is_queued(world: World) -> None:
    def more_and_kill() -> None:
        world.submit(3)
        kill()

    world.during = more_and_kill
    world.submit(1, 2)
    with pytest.raises(Killed):
        world.run()
    assert [(event, type(outcome)) for event, outcome in world.answers] == [(1, Killed), (2, Killed), (3, Killed)]
    assert not world.publishes.is_full
    world.during = lambda: None
    world.submit(4)
    world.run()
    assert world.answers[3:] == [(4, "stored 4")]


def test_a_kill_while_an_answer_waits_answers_those_behind_it_once(world: World) -> None:
    world.submit(1)
    world.publishes.submit(Request(2), lambda _: kill())
    world.submit(3)
    with pytest.raises(Killed):
        world.run()
    assert [(event, isinstance(outcome, Killed)) for event, outcome in world.answers] == [(1, False), (3, True)]
