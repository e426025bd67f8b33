"""Sources over the memory store with a clock of the test: when they run, what they store, and when they end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sse.errors import InvalidEvent, StoreUnavailable
from sse.event import Event
from sse.stores import MemoryStore, Publication
from sse.stores.leases import LEASE_SECONDS, Answer, Ask, State
from sse.work.source import UNKNOWN_SECONDS, Runner, Source
from sse.work.sources import Sources
from tests.servers import wait_until


class NoSuchChannel(Exception):
    pass


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeHub:
    """The channels that are listened to in a worker, and what the hub was told about their sources."""

    def __init__(self) -> None:
        self.listening: set[str] = set()
        self.states: dict[str, State] = {}

    def listens(self, name: str) -> bool:
        return name in self.listening

    def set_source(self, name: str, state: State) -> None:
        self.states[name] = state


class Worker(Sources):
    """The sources of one worker, whose turns the test makes."""

    def __init__(self, world: World, most: int = 10, breaker: Any = None) -> None:
        self.hub = FakeHub()
        self._world = world
        super().__init__(
            world.store,
            self.hub,
            match=lambda channel: world.rules(channel),
            context=world.context,
            event_of=lambda value: value if isinstance(value, Event) else Event(value),
            most=most,
            breaker=lambda: breaker,
            clock=world.clock,
        )

    def _start(self) -> None:
        pass  # the test makes the turns

    def join(self, channel: str = "prices") -> None:
        """Have a first subscriber."""
        self.hub.listening.add(channel)
        self.began(channel)
        self.turn()

    def leave(self, channel: str = "prices") -> None:
        self.hub.listening.discard(channel)

    def runner(self, channel: str = "prices") -> Any:
        return self._watches[channel].runner


class World:
    """A store, a clock, and workers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(ring=50, ring_ttl=3600, clock=self.clock)
        self.sources: dict[str, Source] = {}
        self.workers: list[Worker] = []
        self.contexts = 0

    def rules(self, channel: str) -> tuple[Source, dict[str, object]] | None:
        source = self.sources.get(channel.partition("/")[0])
        return (source, {}) if source else None

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        self.contexts += 1
        try:
            yield
        finally:
            self.contexts -= 1

    def worker(self, **options: Any) -> Worker:
        self.workers.append(Worker(self, **options))
        return self.workers[-1]

    def advance(self, seconds: float, *, awake: list[Worker] | None = None) -> None:
        """Let time pass, with a turn of each worker that is awake every half second."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(self.clock.now + 0.5, end)
            for worker in self.workers if awake is None else awake:
                for runner in worker._runners():
                    runner._changed.set()
                worker.turn()
            time.sleep(0.002)

    def ring(self, channel: str = "prices") -> list[str]:
        (before,) = self.store.before([(channel, 50)])
        if before is None:
            return []
        assert not isinstance(before, StoreUnavailable)
        (page,) = self.store.read([(channel, before)])
        assert not isinstance(page, StoreUnavailable)
        return [entry.event.data for entry in page.entries]


class Upstream:
    """What a source asks: a generator whose steps the test permits, and a log of its calls."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.steps = threading.Semaphore(0)
        self.fault: BaseException | None = None
        self.runs = self.most = 0

    def generator(self) -> Iterator[object]:
        self.log.append("begin")
        self.runs += 1
        self.most = max(self.most, self.runs)
        try:
            while True:
                self.steps.acquire()
                if self.fault:
                    raise self.fault
                self.log.append("step")
                yield self.log.count("step")
        finally:
            self.runs -= 1
            self.log.append("finally")

    def function(self) -> object:
        self.log.append("call")
        if self.fault:
            raise self.fault
        return self.log.count("call")

    def permit(self, steps: int = 1) -> None:
        self.steps.release(steps)

    def hang_up(self) -> None:
        """Let no generator wait any more."""
        self.fault = EOFError()
        self.permit(1000)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for worker in world.workers:
        worker.close()
    assert not world.contexts


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.hang_up()


def reaches(value: Callable[[], Any], expected: Any) -> None:
    wait_until(lambda: value() == expected, 5)


def test_a_source_begins_with_the_first_subscriber_and_stores_what_it_yields(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.generator)
    worker = world.worker()
    worker.turn()
    assert not upstream.log
    worker.join()
    upstream.permit(3)
    reaches(world.ring, ["1", "2", "3"])
    assert worker.hub.states == {"prices": "up"}
    assert world.contexts == 1


def test_only_one_worker_of_all_runs_a_source(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.generator)
    for _ in range(4):
        world.worker().join()
    upstream.permit(5)
    reaches(world.ring, list("12345"))
    world.advance(30)
    assert upstream.log.count("begin") == 1
    assert sum(worker.running for worker in world.workers) == 1
    assert {worker.hub.states["prices"] for worker in world.workers} == {"up"}


def test_a_channel_without_a_source_is_none_of_its_business(world: World) -> None:
    worker = world.worker()
    assert worker.began("news") is None
    assert worker.turn() is None
    assert worker.fresh(["news"]) == set()


def test_it_ends_after_linger_when_nobody_listens_on_any_worker(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.function, interval=1, linger=5)
    runs, other = world.worker(), world.worker()
    runs.join()
    other.join()
    runs.leave()
    world.advance(30)
    assert runs.running == 1
    other.leave()
    gone = world.clock.now
    world.advance(5)
    assert runs.running == 1
    world.advance(5 + 8)
    reaches(lambda: (runs.turn(), runs.running)[1], 0)
    calls = len(upstream.log)
    world.advance(30)
    assert len(upstream.log) == calls
    assert calls <= 30 + 5 + 8 + 2, (gone, upstream.log)
    assert runs.turn() is None
    assert world.store.leases.states(["prices"]) == ["up"]


def test_a_worker_that_dies_ceases_to_count_as_a_listening_one(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.function, interval=1, linger=5)
    runs, dies = world.worker(), world.worker()
    runs.join()
    dies.join()
    runs.leave()
    world.advance(4)
    world.advance(5 + 8, awake=[runs])
    world.advance(0.5, awake=[runs])
    reaches(lambda: (runs.turn(), runs.running)[1], 0)


def test_a_subscriber_that_comes_back_within_linger_finds_the_same_run(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.generator, linger=5)
    worker = world.worker()
    worker.join()
    for _ in range(5):
        worker.leave()
        world.advance(4)
        worker.join()
        world.advance(4)
    assert upstream.log == ["begin"]


def test_an_idle_source_in_a_long_step_goes_on_if_somebody_comes(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.generator, linger=1)
    worker = world.worker()
    worker.join()
    worker.leave()
    world.advance(20)
    assert worker.runner().ending == "idle"
    worker.join()
    world.advance(3)
    upstream.permit()
    reaches(world.ring, ["1"])
    assert upstream.log == ["begin", "step"]


def test_an_idle_source_that_waits_is_closed_at_its_next_yield(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.generator, linger=1)
    worker = world.worker()
    worker.join()
    worker.leave()
    world.advance(20)
    upstream.permit()
    reaches(lambda: upstream.log, ["begin", "step", "finally"])
    world.advance(3)
    reaches(lambda: (worker.turn(), worker.running)[1], 0)


def test_a_dead_worker_is_replaced_within_ten_seconds(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.generator)
    dies, lives = world.worker(), world.worker()
    dies.join()
    lives.join()
    upstream.permit()
    reaches(world.ring, ["1"])
    world.advance(10, awake=[lives])
    assert lives.running == 1


def test_a_frozen_worker_that_wakes_stores_nothing_and_makes_no_other_call(world: World, upstream: Upstream) -> None:
    frozen, other = world.worker(), world.worker()
    late = Upstream()
    made = iter([late.generator, upstream.generator])
    world.sources["prices"] = Source(lambda: next(made)())
    frozen.join()
    other.join()
    late.permit()
    reaches(world.ring, ["1"])
    world.advance(20, awake=[other])  # the step of the frozen worker lasts all the while
    upstream.permit(2)
    reaches(world.ring, ["1", "1", "2"])
    late.permit(5)
    reaches(lambda: late.log, ["begin", "step", "step", "finally"])
    assert world.ring() == ["1", "1", "2"]
    world.advance(5)
    assert (frozen.running, other.running) == (0, 1)
    assert frozen.hub.states == {"prices": "up"}


def test_a_frozen_runner_that_wakes_does_not_go_on_though_the_lease_is_free_again(world: World) -> None:
    late, between, last = Upstream(), Upstream(), Upstream()
    made = iter([late.generator, between.generator, last.generator])
    world.sources["prices"] = Source(lambda: next(made)())
    frozen, other = world.worker(), world.worker()
    frozen.join()
    other.join()
    late.permit()
    reaches(world.ring, ["1"])
    world.advance(10, awake=[other])
    between.permit()
    reaches(world.ring, ["1", "1"])
    other.leave()
    other.finish()
    other.hub.listening.clear()
    world.advance(4, awake=[frozen])  # its asking thread is the first that wakes
    assert frozen.runner().ending == "lost"
    late.permit(5)
    reaches(lambda: late.log, ["begin", "step", "step", "finally"])
    world.advance(4, awake=[frozen])
    assert last.log == ["begin"]
    assert world.ring() == ["1", "1"]
    for upstream in (between, last):
        upstream.hang_up()


def test_a_frozen_worker_that_wakes_first_hears_who_has_left(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.function, interval=60)
    frozen, other = world.worker(), world.worker()
    other.join()
    frozen.join()
    reaches(lambda: len(upstream.log), 1)
    other.leave()
    world.advance(20, awake=[other])
    assert not other.running
    assert frozen.turn() == 0.5  # its clients' goodbyes are not read yet
    frozen.leave()
    world.advance(10)
    assert len(upstream.log) == 1


def test_a_runner_looks_at_the_age_of_its_lease_before_each_step(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.function, interval=1)
    worker = world.worker()
    worker.join()
    reaches(lambda: len(upstream.log), 1)
    world.advance(20, awake=[])  # nobody renews
    runner = worker.runner()
    runner._changed.set()
    reaches(lambda: runner.is_over, True)
    assert runner.ending == "lost"
    assert len(upstream.log) == 1


def test_an_error_is_logged_with_the_channel_and_the_source_is_down(
    world: World, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    world.sources["prices"] = Source(upstream.function, interval=1)
    upstream.fault = RuntimeError("no line to the exchange")
    workers = [world.worker(), world.worker()]
    for worker in workers:
        worker.join()
    world.advance(1)
    assert "prices" in caplog.text
    assert "no line to the exchange" in caplog.text
    world.advance(2)
    assert [worker.hub.states["prices"] for worker in workers] == ["down", "down"]
    assert workers[0].began("prices") == "down"
    upstream.fault = None
    world.advance(30)
    assert [worker.hub.states["prices"] for worker in workers] == ["up", "up"]


def test_a_source_that_fails_for_ever_is_tried_ever_more_seldom_over_all_workers(
    world: World, upstream: Upstream
) -> None:
    world.sources["prices"] = Source(upstream.function, interval=1)
    upstream.fault = RuntimeError("gone")
    for _ in range(4):
        world.worker().join()
    world.advance(600)
    assert 12 <= len(upstream.log) <= 30


def test_a_source_that_kills_its_worker_does_not_kill_all_in_turn(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.generator)
    alive = [world.worker() for _ in range(20)]
    for worker in alive:
        worker.join()
    for _ in range(240):
        world.advance(0.5, awake=alive)
        alive = [worker for worker in alive if not worker.running]  # whoever begins it dies
    assert 20 - len(alive) <= 7


def test_a_generator_that_returns_begins_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.sources["prices"] = Source(lambda: iter(["a", "b"]))
    worker = world.worker()
    worker.join()
    reaches(world.ring, ["a", "b"])
    world.advance(8)
    reaches(lambda: len(world.ring()) >= 4, True)
    assert "has returned" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("exit_", [SystemExit, GeneratorExit, KeyboardInterrupt])
def test_an_exit_in_a_source_is_no_reason_to_begin_it_at_once(
    world: World, upstream: Upstream, exit_: type[BaseException]
) -> None:
    world.sources["prices"] = Source(upstream.function, interval=1)
    upstream.fault = exit_()
    world.worker().join()
    world.advance(10)
    assert 2 <= len(upstream.log) <= 6


def test_an_unknown_channel_stays_down_for_a_minute(world: World, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[float] = []

    def produce() -> object:
        calls.append(world.clock.now)
        raise NoSuchChannel

    world.sources["prices"] = Source(produce, interval=1, unknown=(NoSuchChannel,))
    worker = world.worker()
    worker.join()
    world.advance(UNKNOWN_SECONDS - 2)
    assert len(calls) == 1
    assert worker.hub.states == {"prices": "down"}
    world.advance(6)
    reaches(lambda: len(calls), 2)
    assert "Traceback" not in caplog.text


def test_a_function_that_returns_a_value_needs_an_interval(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Else each key of a dict, or letter of a string, would be an event."""
    world.sources["prices"] = Source(lambda: {"acme": 7})
    world.worker().join()
    wait_until(lambda: "gives a dict: have it yield its values, or add interval=" in caplog.text)
    assert world.ring() == []


def test_a_value_that_is_no_event_is_a_failure(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.sources["prices"] = Source(lambda: {1, 2}, interval=1)
    worker = world.worker()
    worker.join()
    world.advance(3)
    assert InvalidEvent.__name__ in caplog.text
    assert worker.hub.states == {"prices": "down"}


def test_none_is_nothing_new_in_both_forms(world: World) -> None:
    world.sources["generated"] = Source(lambda: iter([None, "a", None, "b"]))
    values = iter([None, "a", None, "b"])
    world.sources["called"] = Source(lambda: next(values, None), interval=1)
    worker = world.worker()
    worker.join("generated")
    worker.join("called")
    world.advance(8)
    assert world.ring("generated")[:2] == ["a", "b"]
    assert world.ring("called") == ["a", "b"]


def test_an_event_keeps_its_type(world: World) -> None:
    world.sources["prices"] = Source(lambda: Event("7", "bid"), interval=60)
    worker = world.worker()
    worker.join()
    reaches(world.ring, ["7"])
    (before,) = world.store.before([("prices", 1)])
    (page,) = world.store.read([("prices", before)])  # type: ignore[list-item]
    assert page.entries[0].event == Event("7", "bid")  # type: ignore[union-attr]


def test_a_function_is_called_every_interval(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.function, interval=5)
    worker = world.worker()
    worker.join()
    world.advance(21)
    assert len(upstream.log) in (4, 5)


def test_beyond_the_limit_channels_are_down_until_there_is_room(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.function, interval=60, linger=0)
    worker = world.worker(most=3)
    names = [f"prices/{number}" for number in range(500)]
    worker.hub.listening.update(names)
    for name in names:
        worker.began(name)
    worker.turn()
    reaches(lambda: len(upstream.log), 3)
    world.advance(10)
    assert worker.running == 3
    assert sorted(worker.hub.states.values()) == ["down"] * 497 + ["up"] * 3
    up = {name for name, state in worker.hub.states.items() if state == "up"}
    worker.hub.listening -= up
    world.advance(10)
    assert worker.running == 3
    assert {name for name in worker.hub.listening if worker.hub.states[name] == "up"}.isdisjoint(up)


def test_beyond_the_limit_a_channel_that_another_worker_runs_is_up(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.function, interval=60)
    full, other = world.worker(most=0), world.worker()
    full.join()
    assert full.hub.states == {"prices": "down"}
    other.join()
    world.advance(3)
    assert full.hub.states == {"prices": "up"}
    assert (full.running, other.running) == (0, 1)


def test_a_drain_frees_the_lease_at_once_and_begins_nothing_more(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(upstream.generator)
    drains, other = world.worker(), world.worker()
    drains.join()
    other.join()
    drains.finish()
    world.advance(2.5)
    assert other.running == 1
    reaches(lambda: upstream.permit() or upstream.log.count("finally"), 1)
    other.leave()
    other.finish()
    world.advance(5)
    assert drains.hub.states == {"prices": "up"}
    reaches(lambda: (drains.turn(), drains.running)[1], 0)


def test_closing_ends_the_generators_and_tells_that_nobody_listens(world: World, upstream: Upstream) -> None:
    world.sources["prices"] = Source(lambda: iter(lambda: upstream.function(), None))
    worker, other = world.worker(), world.worker()
    worker.join()
    other.join()
    worker.close()
    other.leave()
    world.advance(3, awake=[other])
    (answer,) = world.store.leases.ask([Ask("prices", "test", listens=False)])
    assert isinstance(answer, Answer)
    assert answer.listeners == 0
    assert worker.began("prices") is None


def test_a_waiting_step_that_can_be_reached_is_cut(world: World) -> None:
    """A breaker, as our worker has one, raises GeneratorExit in the step; here a queue stands for gevent."""
    throws: list[Callable[[], bool]] = []
    ended = threading.Event()
    thrown, cleaned = threading.Event(), threading.Event()

    def generator() -> Iterator[object]:
        try:
            yield "first"
            thrown.wait(5)
            raise GeneratorExit  # as gevent would raise it in the wait
        finally:
            cleaned.wait(5)
            ended.set()

    def throw(is_waiting: Callable[[], bool]) -> None:
        throws.append(is_waiting)
        if is_waiting():
            thrown.set()

    world.sources["prices"] = Source(generator, linger=1)
    worker = world.worker(breaker=lambda: throw)
    worker.join()
    reaches(world.ring, ["first"])
    worker.leave()
    world.advance(6)
    assert throws
    assert thrown.is_set()
    worker.finish()
    assert len(throws) > 1
    assert not any(is_waiting() for is_waiting in throws), "its finally would be cut, too"
    cleaned.set()
    assert ended.wait(5)
    world.advance(3)
    reaches(lambda: (worker.turn(), worker.running)[1], 0)
    assert world.store.leases.states(["prices"]) == ["up"]


def test_a_store_that_is_away_gets_each_value_once_when_it_is_back(
    world: World, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sources["prices"] = Source(upstream.generator)
    worker = world.worker()
    worker.join()
    leases = world.store.leases
    real, keys = leases.write, []

    def write(channel: str, token: str, event: Event, *, key: str, written: int | None = None) -> Any:
        keys.append(key)
        if len(keys) == 1:
            real(channel, token, event, key=key)  # stored, but the reply is lost
        if len(keys) < 4:
            raise StoreUnavailable("away")
        return real(channel, token, event, key=key)

    monkeypatch.setattr(leases, "write", write)
    upstream.permit()
    reaches(lambda: len(keys), 4)
    upstream.permit()
    reaches(world.ring, ["1", "2"])
    assert len(set(keys[:4])) == 1


def test_a_store_that_stays_away_ends_the_run_and_it_begins_anew_afterwards(
    world: World, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sources["prices"] = Source(upstream.generator)
    worker = world.worker()
    worker.join()
    upstream.permit()
    reaches(world.ring, ["1"])

    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        for name in ("ask", "write", "note", "release"):
            patch.setattr(world.store.leases, name, away)
        upstream.permit()
        world.advance(LEASE_SECONDS + 2)
        reaches(lambda: upstream.log, ["begin", "step", "step", "finally"])
    world.advance(4)
    upstream.permit()
    reaches(world.ring, ["1", "3"])
    assert upstream.log.count("begin") == 2


def test_changes_only_skips_what_the_ring_has_already(world: World) -> None:
    values = iter(["a", "a", "b", "b", "a"])
    world.sources["prices"] = Source(lambda: next(values, None), interval=1, changes_only=True)
    worker = world.worker()
    worker.join()
    world.advance(8)
    assert world.ring() == ["a", "b", "a"]
    worker.finish()
    again = world.worker()
    world.sources["prices"] = Source(lambda: "a", interval=1, changes_only=True)
    again.join()
    world.advance(8)
    assert world.ring() == ["a", "b", "a"]


def test_changes_only_repeats_a_value_that_is_not_fresh_any_more_for_those_who_wait(world: World) -> None:
    world.store.publish([Publication("prices", Event("a"))])
    world.sources["prices"] = Source(lambda: "a", interval=1, changes_only=True, fresh=60)
    worker = world.worker()
    worker.join()
    world.advance(8)
    assert world.ring() == ["a", "a"]
    assert worker.fresh(["prices"]) == {"prices"}


def test_the_newest_value_is_fresh_if_the_runner_of_now_has_stored_it_or_if_it_is_young(
    world: World, upstream: Upstream
) -> None:
    world.sources["prices"] = Source(upstream.generator, fresh=60)
    runs, other = world.worker(), world.worker()
    runs.join()
    other.join()
    assert other.fresh(["prices"]) == set()
    upstream.permit()
    reaches(world.ring, ["1"])
    world.advance(100)
    assert runs.fresh(["prices"]) == other.fresh(["prices"]) == {"prices"}
    runs.leave()
    other.leave()
    runs.finish()
    upstream.permit()
    world.advance(2)
    assert other.fresh(["prices"]) == set()


def test_a_young_value_is_fresh_though_its_runner_has_ended(world: World) -> None:
    world.sources["prices"] = Source(lambda: "a", interval=100, fresh=60)
    world.sources["goals"] = Source(lambda: "a", interval=100, fresh=0)
    runs, other = world.worker(), world.worker()
    runs.join("prices")
    runs.join("goals")
    reaches(lambda: world.ring("prices") + world.ring("goals"), ["a", "a"])
    runs.finish()
    world.advance(30)
    assert other.fresh(["prices", "goals", "news"]) == {"prices"}
    world.advance(31)
    assert other.fresh(["prices", "goals", "news"]) == set()


def test_a_source_that_blocks_the_loop_is_named(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The asker's own lateness shows it: under gevent, nothing else runs while a source blocks."""
    world.sources["prices"] = Source(lambda: "a", interval=100)
    worker = world.worker(breaker=lambda: lambda _: None)
    worker.join()
    reaches(world.ring, ["a"])
    wait_until(lambda: worker.runner().step_ended > 0, 5)
    worker._due.clear()

    class Late:
        def is_set(self) -> bool:
            return world.clock.now > 2000

        def wait(self, _: float | None) -> None:
            world.clock.now += 1001.5
            worker.runner().step_ended = world.clock.now

    worker._due = Late()  # type: ignore[assignment]
    worker._wait(2000)
    worker._due = threading.Event()
    assert "prices" in caplog.text
    assert "blocked" in caplog.text


def test_a_source_that_cannot_have_a_thread_now_is_tried_again(
    world: World, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.sources["prices"] = Source(upstream.function, interval=60)
    worker = world.worker()

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "start", refuse)
        worker.join()
        world.advance(3)
        assert not worker.running
        assert "cannot start" in caplog.text
    world.advance(10)
    reaches(lambda: len(upstream.log), 1)


def test_an_asking_thread_that_cannot_start_starts_with_the_next_subscriber(
    world: World, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sources["prices"] = Source(upstream.function, interval=60)
    worker = world.worker()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start")))
        Sources._start(worker)
        assert worker._thread is None
    Sources._start(worker)
    assert worker._thread is not None
    worker._thread.join(0.01)
    assert worker._thread.is_alive()


def test_an_asking_thread_goes_on_after_a_fault(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def rules(channel: str) -> Any:
        raise LookupError("a rule of the app has failed")

    worker = world.worker()
    worker._arrived.append("prices")
    world.rules = rules  # type: ignore[method-assign]
    Sources._start(worker)
    wait_until(lambda: "in trouble" in caplog.text, 5)
    assert worker._thread is not None
    assert worker._thread.is_alive()


def test_while_the_store_is_away_nothing_is_fresh_and_a_drain_does_not_fail(
    world: World, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sources["prices"] = Source(upstream.function, interval=60)
    runs, other = world.worker(), world.worker()
    runs.join()
    other.join()
    reaches(lambda: len(upstream.log), 1)

    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        for name in ("ages", "release", "ask", "note"):
            patch.setattr(world.store.leases, name, away)
        assert other.fresh(["prices"]) == set()
        runs.finish()
        runs.close()
    assert runs.runner().is_over


def test_while_the_store_is_away_channels_that_nobody_listens_to_are_forgotten(
    world: World, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sources["prices"] = Source(upstream.function, interval=60)
    worker = world.worker()

    def away(*_: Any) -> Any:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(world.store.leases, "ask", away)
        for number in range(100):
            worker.join(f"prices/{number}")
            worker.leave(f"prices/{number}")
        worker.join("prices/kept")
        world.advance(3)
        assert list(worker._watches) == ["prices/kept"]
    world.advance(3)
    reaches(lambda: len(upstream.log), 1)


def test_a_rule_that_fails_refuses_no_subscriber(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The hub calls this in the middle of an attach, so an error would cost a seat."""

    def rules(channel: str) -> Any:
        raise LookupError("a converter of the app")

    worker = world.worker()
    world.rules = rules  # type: ignore[method-assign]
    assert worker.began("prices") is None
    assert "a converter of the app" in caplog.text


def test_the_memory_of_fresh_channels_is_bounded(world: World) -> None:
    world.sources["prices"] = Source(lambda: 7, interval=60)
    worker = world.worker(most=2)
    for number in range(1000):
        worker._remember([f"prices/{number}"], world.clock.now)
    assert len(worker._known_fresh) < 200
