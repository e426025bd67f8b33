"""Runs: an iterable is written in the background, its channel ends with it, and nothing is left behind."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, current_app

import sse as sse_package
from sse import SSE, InvalidEvent, RunRefused, Stopped, Unavailable
from sse.errors import StoreUnavailable
from sse.event import End, Event, Piece
from sse.service import Service
from sse.stores import Standing
from sse.stores.leases import LEASE_SECONDS, Leases
from sse.work.keeper import Keeper
from sse.work.writer import Writer
from tests.conftest import MakeApp
from tests.servers import ROOT, wait_until


@pytest.fixture
def sse() -> SSE:
    return SSE()


@pytest.fixture
def app(make_app: MakeApp, sse: SSE, store_url: str | None) -> Flask:
    return make_app(sse, SSE_REDIS_URL=store_url, SSE_WRITE_EVERY=0, SSE_RUN_BYTES=65_536)


def service_of(app: Flask) -> Service:
    service = app.extensions["sse"]
    assert isinstance(service, Service)
    return service


def standing(app: Flask, channel: str = "a") -> Standing:
    [found] = service_of(app).store.standing([channel])
    assert isinstance(found, Standing)
    return found


def events(app: Flask, channel: str = "a") -> list[Event]:
    run = standing(app, channel).run
    assert run
    [page] = service_of(app).store.read([(channel, run.anchor)], limit=10_000, max_bytes=1 << 30)
    return [entry.event for entry in page.entries]  # type: ignore[union-attr]


def ended(app: Flask, channel: str = "a", timeout: float = 5) -> str:
    def reason() -> str | None:
        run = standing(app, channel).run
        return run.end if run else None

    return str(wait_until(reason, timeout, what=f"the end of {channel}"))


class Steps:
    """A generator that yields what it is told to, and notes what becomes of it."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.closed = threading.Event()
        self.taken = 0

    def __iter__(self) -> Iterator[object]:
        try:
            while True:
                self.taken += 1
                yield f"{self.taken} "
                self.go.wait(20)
        finally:
            self.closed.set()


def test_a_run_writes_pieces_and_events_and_its_end(app: Flask, sse: SSE) -> None:
    def answer() -> Iterator[object]:
        yield "It "
        yield "rains"
        yield {"name": current_app.name}
        yield ""
        yield "."

    with app.app_context():
        assert sse.run("a", answer()) is True
    assert ended(app) == "done"
    assert events(app) == [Piece("It "), Piece("rains"), Event({"name": "tests"}), Piece("."), End("a", "done")]
    wait_until(lambda: not service_of(app).is_working)


def test_a_string_is_not_taken_for_a_run_of_its_characters(app: Flask, sse: SSE) -> None:
    with app.app_context(), pytest.raises(TypeError, match="'hello': give a generator, or a list of strings"):
        sse.run("chat/7", "hello")


def test_a_run_begins_once_and_the_other_iterable_is_closed_unused(app: Flask, sse: SSE) -> None:
    steps = Steps()
    first = iter(steps)
    with app.app_context():
        assert sse.run("a", first)
        wait_until(lambda: steps.taken)
        second = (str(number) for number in range(3))
        assert sse.run("a", second) is False
        assert list(second) == []
        assert sse.stop("a")
        steps.go.set()
        assert sse.run("a", ["again"]) is False, "a run that has ended was there, too"
        assert sse.run("a", ["again"], restart=True) is True
    wait_until(lambda: [event.data for event in events(app)][:1] == ["again"])
    assert ended(app) == "done"


def test_two_that_begin_a_run_at_once_begin_one(app: Flask, sse: SSE) -> None:
    results: list[bool] = []

    def begin() -> None:
        with app.app_context():
            results.append(sse.run("a", ["x"]))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(results) == [False] * 7 + [True]
    assert ended(app) == "done"
    assert events(app) == [Piece("x"), End("a", "done")]


def test_an_error_in_the_iterable_is_logged_and_the_channel_has_failed(
    app: Flask, sse: SSE, caplog: pytest.LogCaptureFixture
) -> None:
    def answer() -> Iterator[object]:
        yield "It "
        raise LookupError("no weather today")

    with app.app_context():
        sse.run("a", answer())
    assert ended(app) == "failed"
    assert events(app) == [Piece("It "), End("a", "failed")]
    wait_until(lambda: "no weather today" in caplog.text)
    assert "the run of channel a has failed" in caplog.text


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), "\ud83d", "x" * 70_000, b"x" * 70_000])
def test_a_value_that_can_never_be_stored_fails_the_run(
    app: Flask, sse: SSE, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[None] = []

    def answer() -> Iterator[object]:
        try:
            yield value
            yield "more"
        finally:
            closed.append(None)

    with app.app_context():
        sse.run("a", answer())
    assert ended(app) == "failed"
    wait_until(lambda: closed and "the run of channel a has failed" in caplog.text)


def test_stop_ends_the_channel_at_once_and_closes_the_generator_at_its_next_yield(app: Flask, sse: SSE) -> None:
    steps = Steps()
    with app.app_context():
        sse.run("a", iter(steps))
        wait_until(lambda: len(events(app)) == 1)
        assert sse.stop("a") is True
        assert events(app)[-1] == End("a", "stopped")
        assert sse.stop("a") is False
        assert sse.stop("never") is False
    assert not steps.closed.is_set()
    steps.go.set()
    assert steps.closed.wait(5)
    assert len(events(app)) == 2
    wait_until(lambda: not service_of(app).is_working)


def test_stop_leaves_a_run_alone_that_begins_in_the_same_moment(
    app: Flask, sse: SSE, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = service_of(app).store.leases
    end, first, later = leases.end, Steps(), threading.Event()

    def answer() -> Iterator[str]:
        later.wait(20)
        yield "still here"

    def end_and_begin(*args: Any, **options: Any) -> Any:
        position = end(*args, **options)
        monkeypatch.undo()
        assert sse.run("a", answer(), restart=True)
        return position

    with app.app_context():
        assert sse.run("a", first)
        monkeypatch.setattr(leases, "end", end_and_begin)
        assert sse.stop("a")
    first.go.set()
    later.set()
    assert ended(app) == "done"
    assert [event.data for event in events(app)][:1] == ["still here"]


@pytest.mark.parametrize("name", ["sse-keeper", "sse-run"])
def test_a_run_that_cannot_have_a_thread_has_failed_and_the_next_one_begins(
    app: Flask, sse: SSE, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    closed = threading.Event()

    class Values:
        def __iter__(self) -> Iterator[str]:
            return self

        def __next__(self) -> str:
            return "never"

        def close(self) -> None:
            closed.set()

    with app.app_context():
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="new thread"):
            patch.setattr(threading.Thread, "start", refuse)
            sse.run("a", Values())
        assert ended(app) == "failed"
        assert closed.is_set()
        assert not service_of(app).is_working
        assert sse.run("b", ["x"])
    assert ended(app, "b") == "done"


def test_stop_from_another_process_closes_the_generator_soon(make_app: MakeApp, redis_url: str) -> None:
    """The other process is another service over the same Redis."""
    sses = SSE(), SSE()
    apps = [make_app(sse, SSE_REDIS_URL=redis_url, SSE_WRITE_EVERY=0) for sse in sses]
    steps = Steps()
    with apps[0].app_context():
        sses[0].run("a", iter(steps))
    with apps[1].app_context():
        wait_until(lambda: sses[1].stop("a"))
    steps.go.set()
    assert steps.closed.wait(5)
    assert ended(apps[0]) == "stopped"


@pytest.mark.parametrize("bad", [5, None, object()])
def test_an_iterable_is_required(app: Flask, sse: SSE, bad: Any) -> None:
    async def later() -> Any:
        yield "x"

    with app.app_context():
        for iterable in (bad, later()):
            with pytest.raises(TypeError):
                sse.run("a", iterable)
        with pytest.raises(InvalidEvent):
            sse.run("not a channel", ["x"])
    assert standing(app).run is None


def test_a_channel_with_ordinary_events_has_no_run(app: Flask, sse: SSE) -> None:
    unused = (str(number) for number in range(3))
    with app.app_context():
        sse.publish("a", "hello")
        with pytest.raises(RunRefused, match="has events that were published on it"):
            sse.run("a", unused)
        with pytest.raises(RunRefused), sse.writing("a", restart=True):
            pass
    assert list(unused) == []
    assert not service_of(app).is_working


# Writing


def test_writing_ends_with_its_block(app: Flask, sse: SSE) -> None:
    with app.app_context(), sse.writing("a") as out:
        print("Counting", file=out)
        assert out.publish({"percent": 100}, type="progress").startswith("a=3-")
        assert service_of(app).is_working
    assert events(app) == [Piece("Counting"), Piece("\n"), Event({"percent": 100}, "progress"), End("a", "done")]
    assert not service_of(app).is_working


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LookupError, "failed"),
        (KeyboardInterrupt, "stopped"),
        (SystemExit, "interrupted"),
        (GeneratorExit, "interrupted"),
    ],
)
def test_an_error_in_the_block_ends_the_channel_and_goes_on(
    app: Flask, sse: SSE, error: type[BaseException], reason: str
) -> None:
    with pytest.raises(error), app.app_context(), sse.writing("a") as out:
        out.write("so ")
        raise error
    assert events(app) == [Piece("so "), End("a", reason)]  # type: ignore[arg-type]
    assert not service_of(app).is_working


def test_a_block_that_is_stopped_hears_of_it(app: Flask, sse: SSE) -> None:
    with app.app_context():
        with pytest.raises(Stopped), sse.writing("a") as out:
            out.write("so ")
            sse.stop("a")
            out.write("far")
        with pytest.raises(Stopped), sse.writing("b") as out:
            out.write("so ")
            sse.stop("b")
    assert events(app) == [Piece("so "), End("a", "stopped")]
    assert events(app, "b") == [Piece("so "), End("b", "stopped")]


def test_writing_where_a_run_was_needs_restart(app: Flask, sse: SSE) -> None:
    with app.app_context():
        with sse.writing("a") as out:
            out.write("one")
        with pytest.raises(RunRefused, match="restart=True") as refused, sse.writing("a"):
            pass
        assert refused.value.code == "run_exists"
        with sse.writing("a", restart=True) as out:
            out.write("two")
    assert events(app) == [Piece("two"), End("a", "done")]


def test_a_value_that_is_an_event_keeps_its_type(app: Flask, sse: SSE) -> None:
    with app.app_context():
        sse.run("a", iter(["one ", sse_package.Event({"percent": 10}, "progress"), 7]))
    wait_until(lambda: not service_of(app).is_working)
    assert events(app) == [Piece("one "), Event({"percent": 10}, "progress"), Event(7), End("a", "done")]


# Ends of the process


def test_a_run_that_ends_in_time_is_done_and_others_are_interrupted(app: Flask, sse: SSE) -> None:
    quick, slow = threading.Event(), Steps()

    def one() -> Iterator[object]:
        yield "x"
        quick.wait(10)

    with app.app_context():
        sse.run("a", one())
        sse.run("b", iter(slow))
    wait_until(lambda: len(events(app)) == 1 and len(events(app, "b")) == 1)
    threading.Timer(0.3, quick.set).start()
    begun = time.monotonic()
    service_of(app).finish(1.0)
    assert 0.9 < time.monotonic() - begun < 2.5
    assert events(app)[-1] == End("a", "done")
    assert events(app, "b")[-1] == End("b", "interrupted")
    assert not service_of(app).is_working
    slow.go.set()
    assert slow.closed.wait(5)
    assert len(events(app, "b")) == 2


def test_runs_that_are_interrupted_end_although_the_store_is_slow_and_none_of_them_is_logged(
    app: Flask, sse: SSE, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = service_of(app).store.leases
    real = leases.end

    def slow(*arguments: Any, **options: Any) -> object:
        time.sleep(0.8)
        return real(*arguments, **options)

    monkeypatch.setattr(leases, "end", slow)
    with app.app_context():
        for number in range(10):
            sse.run(f"a/{number}", (time.sleep(0.01) or "x" for _ in itertools.count()))
    service_of(app).finish(0.1)
    for number in range(10):
        assert events(app, f"a/{number}")[-1] == End(f"a/{number}", "interrupted")
    assert not caplog.records


def test_a_generator_that_waits_is_cut_once_and_not_in_its_finally(app: Flask, sse: SSE) -> None:
    """A breaker, as our worker has one, raises GeneratorExit in the wait; here an event stands for gevent."""
    throws: list[Callable[[], bool]] = []
    thrown, cleaned, closed = threading.Event(), threading.Event(), threading.Event()

    def text() -> Iterator[object]:
        try:
            yield "x"
            thrown.wait(5)
            raise GeneratorExit
        finally:
            cleaned.wait(5)
            closed.set()

    def throw(is_waiting: Callable[[], bool]) -> None:
        throws.append(is_waiting)
        if is_waiting():
            thrown.set()

    service_of(app).breaker = lambda: throw
    with app.app_context():
        sse.run("a", text())
        wait_until(lambda: len(events(app)) == 1)
        time.sleep(0.1)
        assert sse.stop("a") is True
    assert thrown.wait(2)
    assert not any(is_waiting() for is_waiting in throws)
    cleaned.set()
    assert closed.wait(5)
    assert ended(app) == "stopped"


def test_without_runs_the_end_takes_no_time_and_makes_no_store(make_app: MakeApp) -> None:
    service = service_of(make_app())
    begun = time.monotonic()
    service.finish(10)
    assert not service.is_working
    assert time.monotonic() - begun < 0.1
    assert service._made is None


def test_close_interrupts_runs(app: Flask, sse: SSE, redis_url: str) -> None:
    with app.app_context():
        with pytest.raises(Stopped), sse.writing("a") as out:
            out.write("x")
            runs = service_of(app).runs
            sse.close()
            out.write("y")
        with pytest.raises(Unavailable, match="this process is ending"), runs.writing("b", Event, restart=False):
            pass


def test_a_run_that_begins_while_the_service_closes_does_not_go_on(
    app: Flask, sse: SSE, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_of(app)
    runs, leases = service.runs, service.store.leases
    start = leases.start

    def start_and_close(*args: Any, **options: Any) -> Any:
        started = start(*args, **options)
        runs.close()
        return started

    monkeypatch.setattr(leases, "start", start_and_close)
    with app.app_context(), pytest.raises(Unavailable, match="is ending"):
        sse.run("a", Steps())
    assert not runs.is_busy


def test_a_script_waits_for_its_runs_and_for_no_others() -> None:
    script = """
import time
from flask import Flask
from sse import SSE
app = Flask("script")
sse = SSE(app)
def slow(word):
    yield word
    time.sleep(1)
    print(word)
with app.test_request_context():
    sse.run("a", slow("of a request"))
with app.app_context():
    sse.run("b", slow("of a script"))
print("the last line")
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0
    assert ran.stdout.splitlines()[0] == "the last line"
    assert "of a script" in ran.stdout
    assert "Traceback" not in ran.stderr


# The keeper


class CountedLeases:
    """Leases that count renewals, and answer what the test says."""

    def __init__(self) -> None:
        self.renewed: list[list[tuple[str, str]]] = []
        self.ended: list[tuple[str, str]] = []
        self.held: object = True

    def renew(self, held: list[tuple[str, str]]) -> list[object]:
        self.renewed.append(held)
        if self.held is None:
            raise StoreUnavailable("away")
        return [self.held] * len(held)

    def end(self, channel: str, reason: str, *, token: str | None = None) -> None:
        self.ended.append((channel, reason))


class StandIn:
    def __init__(self) -> None:
        self.leases: Any = CountedLeases()

    def standing(self, channels: list[str]) -> list[Standing]:
        return [Standing(None, None)] * len(channels)


def writer_of(store: Any, channel: str) -> Writer:
    return Writer(store, channel, f"{channel}-token", every=0, max_bytes=100, make_event=Event, renewed_at=0.0)


def test_one_call_renews_the_leases_of_all_writers_every_two_seconds() -> None:
    store: Any = StandIn()
    keeper = Keeper(store, lambda: 0.0)
    writers = [writer_of(store, channel) for channel in "abc"]
    for writer in writers:
        keeper.add(writer)
    wait_until(lambda: len(store.leases.renewed) >= 2, 5)
    assert store.leases.renewed[0] == [(channel, f"{channel}-token") for channel in "abc"]
    assert all(time.monotonic() - writer.renewed_at < 2.5 for writer in writers)
    keeper.remove(writers[0])
    wait_until(lambda: store.leases.renewed[-1] == [("b", "b-token"), ("c", "c-token")], 5)
    for writer in writers:
        keeper.remove(writer)
    assert keeper.wait_until_idle(1)


def test_a_renewal_that_fails_is_repeated_soon_and_one_that_is_refused_tells_the_writer() -> None:
    store: Any = StandIn()
    store.leases.held = None
    keeper = Keeper(store, lambda: 0.0)
    writer = writer_of(store, "a")
    gone = threading.Event()
    writer.when_gone = gone.set
    keeper.add(writer)
    wait_until(lambda: len(store.leases.renewed) >= 3, 4.5, what="three attempts, of which two come soon")
    assert writer.renewed_at == 0.0
    store.leases.held = StoreUnavailable("this channel alone")
    time.sleep(1)
    assert not gone.is_set()
    store.leases.held = False
    store.leases.start = lambda *_: "refused"
    assert gone.wait(5)
    keeper.remove(writer)


def test_a_run_is_lost_only_after_the_store_has_answered_for_six_seconds() -> None:
    store: Any = StandIn()
    since = [math.inf]
    keeper = Keeper(store, lambda: since[0])
    keeper.orphaned("a")
    assert keeper._thread is None, "the store is away"
    begun = time.monotonic()
    since[0] = begun - 2
    keeper.orphaned("a")
    wait_until(lambda: store.leases.ended == [("a", "lost")], 6)
    assert 3.9 < time.monotonic() - begun < 5.5
    since[0] -= 10
    begun = time.monotonic()
    keeper.orphaned("b")
    keeper.orphaned("b")
    wait_until(lambda: store.leases.ended[1:] == [("b", "lost")], 4)
    assert 1.4 < time.monotonic() - begun < 3
    keeper.orphaned("c")
    since[0] = time.monotonic()  # it was away for a moment
    wait_until(lambda: keeper._thread is None, 4)
    assert len(store.leases.ended) == 2


def test_leases_are_renewed_in_time_although_many_runs_are_lost() -> None:
    """As when another worker had very many runs, and has been killed, while the store is slow."""
    store: Any = StandIn()
    ended: list[str] = []

    def end(channel: str, *_: object) -> None:
        time.sleep(0.05)
        ended.append(channel)

    store.leases.end = end
    keeper = Keeper(store, lambda: 0.0)
    writer = writer_of(store, "a")
    keeper.add(writer)
    for number in range(150):
        keeper.orphaned(f"lost/{number}")
    longest = 0.0
    writer.renewed_at = time.monotonic()
    while len(ended) < 150:
        longest = max(longest, time.monotonic() - writer.renewed_at)
        time.sleep(0.02)
    keeper.remove(writer)
    assert longest < LEASE_SECONDS / 1.5
    assert sorted(ended) == sorted(f"lost/{number}" for number in range(150))


def test_a_run_of_this_process_is_never_lost_by_it() -> None:
    store: Any = StandIn()
    keeper = Keeper(store, lambda: 0.0)
    writer = writer_of(store, "a")
    keeper.add(writer)
    keeper.orphaned("a")
    time.sleep(2)
    keeper.remove(writer)
    assert store.leases.ended == []


def test_a_writer_that_is_over_is_renewed_no_more_though_its_iterable_goes_on() -> None:
    store: Any = StandIn()
    keeper = Keeper(store, lambda: 0.0)
    writers = [writer_of(store, channel) for channel in "ab"]
    for writer in writers:
        keeper.add(writer)
    writers[0].abandon()
    wait_until(lambda: store.leases.renewed, 5)
    assert store.leases.renewed == [[("b", "b-token")]]
    for writer in writers:
        keeper.remove(writer)


def test_the_end_of_a_lost_run_waits_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = StandIn()
    keeper = Keeper(store, lambda: 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start")))
        keeper.orphaned("a")
    keeper.orphaned("a")
    wait_until(lambda: store.leases.ended == [("a", "lost")], 5)


def test_the_stand_in_has_methods_that_leases_have() -> None:
    assert {"renew", "end", "start"} <= set(dir(Leases))
