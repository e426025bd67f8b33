"""A writer gathers pieces, keeps their order, waits for its store, and knows when its run is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse.errors import InvalidEvent, RunFailed, Stopped, StoreUnavailable, TooLarge
from sse.event import End, Event, Piece, Position
from sse.stores import MemoryStore, Standing
from sse.stores.leases import LEASE_SECONDS
from sse.work.writer import FLUSH_BYTES, Writer, split
from tests.servers import wait_until


class Faulty:
    """The leases of a store that may be away: before it does what it is asked, or after it has done it."""

    def __init__(self, store: MemoryStore) -> None:
        self._leases = store.leases
        self.away = False
        self.lost_replies = 0
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._leases, name)

        def call(*args: Any, **options: Any) -> Any:
            self.calls.append((name, options.get("key")))
            if self.away:
                raise StoreUnavailable("the store is away")
            result = method(*args, **options)
            if self.lost_replies:
                self.lost_replies -= 1
                raise StoreUnavailable("the reply is lost")
            return result

        return call


class World:
    """A run in the memory of a store whose clock the test moves, and a writer whose clock it moves, too."""

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.store = MemoryStore(ring=10, ring_ttl=3600, clock=lambda: self.now, **options)
        self.leases = Faulty(self.store)
        self.store.leases = self.leases  # type: ignore[assignment]
        self.writers: list[Writer] = []

    def writer(self, token: str = "first", *, restart: bool = False, **options: Any) -> Writer:
        assert self.store.leases.start("a", token, restart=restart) == "started"
        given = {"every": 0.0, "max_bytes": 65_536, "make_event": checked, "clock": lambda: self.now, **options}
        writer = Writer(self.store, "a", token, renewed_at=self.now, **given)
        self.writers.append(writer)
        return writer

    @property
    def events(self) -> list[Event]:
        [standing] = self.store.standing(["a"])
        assert isinstance(standing, Standing)
        if standing.run is None:
            return []
        [page] = self.store.read([("a", standing.run.anchor)], limit=100_000, max_bytes=1 << 30)
        return [entry.event for entry in page.entries]  # type: ignore[union-attr]

    @property
    def pieces(self) -> list[str]:
        return [event.data for event in self.events if isinstance(event, Piece)]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def checked(data: object, type: str) -> Event:
    event = Event(data, type)
    if len(event.data) > 100_000:
        raise TooLarge("too large")
    return event


@pytest.fixture
def world() -> Iterator[World]:
    made = World(run_bytes=65_536 * 100)
    yield made
    made.leases.away = False
    for writer in made.writers:
        writer.abandon()


def test_the_first_piece_is_stored_at_once_and_the_next_ones_are_gathered(world: World) -> None:
    writer = world.writer(every=60)
    writer.write("one ")
    assert world.pieces == ["one "]
    for word in ("two ", "three ", "four"):
        writer.write(word)
    assert world.pieces == ["one "]
    writer.end("done")
    assert world.pieces == ["one ", "two three four"]
    assert world.events[-1] == End("a", "done")


def test_a_text_is_stored_in_time_although_nothing_more_is_written(world: World) -> None:
    writer = world.writer(every=0.05, clock=time.monotonic)
    writer.write("one ")
    writer.write("two ")
    writer.write("three")
    assert world.pieces == ["one "]
    wait_until(lambda: world.pieces == ["one ", "two three"], 2)
    writer.end("done")


def test_sixteen_kilobytes_are_stored_whatever_the_time(world: World) -> None:
    writer = world.writer(every=60)
    writer.write("x")
    writer.write("y" * (FLUSH_BYTES - 1))
    assert world.pieces == ["x"]
    writer.write("z")
    assert world.pieces == ["x", "y" * (FLUSH_BYTES - 1) + "z"]


def test_events_come_after_the_text_before_them(world: World) -> None:
    writer = world.writer(every=60)
    writer.write("a")
    writer.write("b")
    id = writer.publish({"percent": 50}, "progress")
    writer.write("c")
    writer.flush()
    assert world.events == [Piece("a"), Piece("b"), Event({"percent": 50}, "progress"), Piece("c")]
    assert id == f"a={id.partition('=')[2]}"
    [page] = world.store.read([("a", Position.parse(id.partition("=")[2]))])  # type: ignore[list-item]
    assert [entry.event.data for entry in page.entries] == ["c"]  # type: ignore[union-attr]


def test_a_writer_can_be_the_file_of_print(world: World) -> None:
    writer = world.writer(every=60)
    print("one", 2, file=writer)
    print("three", end="", file=writer, flush=True)
    assert world.text == "one 2\nthree"
    assert writer.write("grüße") == 5


def test_only_text_is_written(world: World) -> None:
    writer = world.writer()
    with pytest.raises(TypeError, match="a text is a string, not bytes"):
        writer.write(b"x")  # type: ignore[arg-type]
    with pytest.raises(InvalidEvent, match="lone surrogate"):
        writer.write("\ud83d")
    with pytest.raises(TooLarge):
        writer.publish("x" * 100_001)
    writer.write("")
    assert world.events == []
    assert not any(name == "write" for name, _ in world.leases.calls)


@given(st.lists(st.text(alphabet="ab\r\n", max_size=4) | st.none(), max_size=12), st.booleans())
def test_line_ends_are_the_same_however_the_text_is_cut(texts: list[str | None], gathered: bool) -> None:
    world = World()
    writer = world.writer(every=60 if gathered else 0)
    for text in texts:
        if text is None:
            writer.publish("between")
        else:
            writer.write(text)
    writer.end("done")
    whole = "".join(text for text in texts if text)
    assert world.text == whole.replace("\r\n", "\n").replace("\r", "\n")
    assert "" not in world.pieces


@given(st.text(alphabet="aé漢😀\r\n", max_size=60), st.integers(1, 9))
def test_large_texts_are_split_between_characters(text: str, most: int) -> None:
    parts = split(text, most)
    assert "".join(parts) == text
    assert all(0 < len(part.encode()) <= most or len(part) == 1 for part in parts)
    assert all(
        len((one + two).encode()) > most for one, two in zip(parts, (part[:1] for part in parts[1:]), strict=False)
    )


def test_a_text_over_the_bound_of_an_event_is_several_pieces(world: World) -> None:
    writer = world.writer(max_bytes=1000)
    writer.write("é" * 1250)
    assert [len(piece.encode()) for piece in world.pieces] == [1000, 1000, 500]


# The store is away


def test_a_write_waits_for_the_store_and_is_stored_once(world: World) -> None:
    writer = world.writer()
    writer.write("one ")
    world.leases.lost_replies = 1
    writer.write("two ")
    world.leases.away = True
    thread = threading.Thread(target=writer.write, args=("three",))
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive(), "the write returned although nothing can be stored"
    world.leases.away = False
    thread.join(5)
    assert world.pieces == ["one ", "two ", "three"]
    keys = [key for name, key in world.leases.calls if name == "write"]
    assert len(set(keys)) == 3
    assert len(keys) > 4, "no attempt was repeated"


def test_the_pause_between_two_attempts_is_bounded(world: World) -> None:
    writer = world.writer()
    world.leases.away = True
    thread = threading.Thread(target=writer.write, args=("x",))
    thread.start()
    time.sleep(4)
    attempts = len(world.leases.calls)
    world.leases.away = False
    thread.join(1.2)
    assert not thread.is_alive()
    assert 5 < attempts < 15
    assert world.text == "x"


def test_an_abandoned_writer_stops_waiting(world: World) -> None:
    writer = world.writer()
    world.leases.away = True
    raised: list[BaseException] = []

    def write() -> None:
        try:
            writer.write("x")
        except Stopped as error:
            raised.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(0.1)
    writer.abandon()
    thread.join(2)
    assert not thread.is_alive()
    assert len(raised) == 1


def test_a_run_that_is_over_while_a_write_waits_for_its_reply_is_stopped(world: World) -> None:
    writer = world.writer()
    real = world.store.leases.write

    def slow(*args: Any, **options: Any) -> Position:
        position = real(*args, **options)
        writer.abandon()  # by another thread, before the reply is there
        return position

    world.leases.write = slow  # type: ignore[attr-defined]
    with pytest.raises(Stopped):
        writer.write("one ")
    assert world.events == [Piece("one ")]


def test_an_end_whose_reply_was_lost_is_an_end(world: World) -> None:
    writer = world.writer()
    writer.write("x")
    world.leases.lost_replies = 1
    writer.end("done")
    assert world.events == [Piece("x"), End("a", "done")]


def test_an_interrupted_call_leaves_the_order_and_the_key_of_what_it_wrote(world: World) -> None:
    """As if Ctrl-C came while the main thread waits for the store."""
    writer = world.writer()
    real = world.store.leases.write

    def interrupted(*args: Any, **options: Any) -> Position:
        real(*args, **options)
        raise KeyboardInterrupt

    world.leases.write = interrupted  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        writer.write("one ")
    del world.leases.write  # type: ignore[attr-defined]
    writer.write("two")
    writer.end("stopped")
    assert world.events == [Piece("one "), Piece("two"), End("a", "stopped")]


# The run is over


def test_a_writer_of_a_stopped_run_raises_and_tells(world: World) -> None:
    writer = world.writer(every=60)
    gone: list[None] = []
    writer.when_gone = lambda: gone.append(None)
    writer.write("x")
    assert world.store.leases.end("a", "stopped")
    writer.write("y")
    for call in (writer.flush, lambda: writer.write("z"), lambda: writer.publish(1), writer.confirm):
        with pytest.raises(Stopped):
            call()
    assert gone == [None]
    assert writer.is_over
    with pytest.raises(Stopped):
        writer.end("done")
    assert world.events == [Piece("x"), End("a", "stopped")]


def test_a_run_that_is_stopped_before_its_end_raises_at_the_end(world: World) -> None:
    writer = world.writer()
    writer.write("x")
    assert world.store.leases.end("a", "stopped")
    with pytest.raises(Stopped):
        writer.end("done")
    assert world.events[-1] == End("a", "stopped")


def test_a_run_that_was_begun_anew_stops_the_older_writer(world: World) -> None:
    older = world.writer()
    older.write("old")
    newer = world.writer("second", restart=True)
    with pytest.raises(Stopped):
        older.write("old")
    newer.write("new")
    assert world.events == [Piece("new")]


def test_a_run_over_its_bytes_ends_as_failed() -> None:
    world = World(run_bytes=65_536)
    writer = world.writer()
    with pytest.raises(RunFailed, match="SSE_RUN_BYTES"):
        for _ in range(100):
            writer.write("x" * 1000)
    assert world.events[-1] == End("a", "failed")
    assert 60_000 < len(world.text) < 65_536
    with pytest.raises(RunFailed):
        writer.write("more")
    with pytest.raises(RunFailed):
        writer.end("done")


def test_a_store_that_has_lost_a_part_of_the_text_ends_the_run_as_failed(world: World) -> None:
    writer = world.writer()
    writer.write("one ")
    writer._written -= 10
    with pytest.raises(RunFailed):
        writer.write("two")
    assert world.events == [Piece("one "), End("a", "failed")]


def forget_everything(world: World) -> None:
    fresh = World().store
    world.store.__dict__.update(fresh.__dict__)
    world.leases._leases = fresh.leases
    world.store.leases = world.leases  # type: ignore[assignment]


@pytest.mark.parametrize("how", ["write", "lease"])
def test_a_store_that_has_lost_even_the_marker_tells_readers_of_the_end(world: World, how: str) -> None:
    writer = world.writer()
    writer.write("one ")
    forget_everything(world)
    if how == "lease":
        writer.lose()  # as the keeper does when the renewal says so
    with pytest.raises(RunFailed):
        writer.write("two")
    assert world.events == [End("a", "failed")]


def test_a_process_that_was_frozen_confirms_its_lease_before_its_next_step(world: World) -> None:
    writer = world.writer()
    writer.confirm()
    assert not any(name == "renew" for name, _ in world.leases.calls)
    world.now += LEASE_SECONDS + 1
    writer.confirm()  # the lease was free, so it is taken again
    assert writer.renewed_at == world.now
    world.now += LEASE_SECONDS + 1
    assert world.store.leases.end("a", "lost")
    with pytest.raises(Stopped):
        writer.confirm()


def test_many_threads_write_and_nothing_is_lost_or_cut(world: World) -> None:
    writer = world.writer(every=0.001, clock=time.monotonic)

    def work(name: str) -> None:
        for number in range(200):
            if number % 20 == 0:
                writer.publish({"from": name, "number": number})
            writer.write(f"{name}{number};")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    writer.end("done")
    words = world.text.split(";")[:-1]
    for name in "abcd":
        assert [word for word in words if word.startswith(name)] == [f"{name}{number}" for number in range(200)]
    assert len([event for event in world.events if event.type == "message"]) == 40
