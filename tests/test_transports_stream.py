"""The body of a stream, chunk by chunk."""

from __future__ import annotations

import itertools
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse.access.permit import Permit
from sse.access.revocations import Revocations
from sse.access.token import Grant
from sse.errors import StoreUnavailable
from sse.event import Event, Position
from sse.hub.hub import Hub
from sse.hub.subscriber import Start
from sse.stores import PAGE_BYTES, MemoryStore, Page, Publication
from sse.transports.dialect import Shared, busy
from sse.transports.stream import Cut, Stream
from tests import client
from tests.driven_streams import driven
from tests.publishing import publish_to_store
from tests.servers import wait_until
from tests.writing import Run

RETRY = 1000
OpenStream = Callable[..., "Body"]


class FaultyStore(MemoryStore):
    """A memory store whose reads fail while it is `away`."""

    away = False

    def read(
        self, places: Sequence[tuple[str, Position]], limit: int = 100, max_bytes: int = PAGE_BYTES
    ) -> list[Page | StoreUnavailable]:
        if self.away:
            raise StoreUnavailable("away")
        return super().read(places, limit, max_bytes)


class Body:
    """The chunks of a stream, each of which must end at the end of a block."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.count = 0
        self._parser = client.Parser()

    def next(self) -> list[client.Event]:
        chunk = next(self.chunks)
        assert chunk.endswith(b"\n\n")
        self.count += 1
        return self._parser.feed(chunk)

    def rest(self, limit: int = 1000) -> list[client.Event]:
        events = list[client.Event]()
        for _ in range(limit):
            try:
                events += self.next()
            except StopIteration:
                return events
        raise AssertionError(f"the stream goes on after {limit} chunks")

    def take(self, count: int) -> list[client.Event]:
        events = list[client.Event]()
        while len(events) < count:
            events += self.next()
        assert len(events) == count
        return events


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    store = FaultyStore(ring=5, ring_ttl=3600)
    yield store
    store.close()


@pytest.fixture
def hub(store: FaultyStore) -> Iterator[Hub]:
    hub = Hub(store, max_subscribers=3)
    yield hub
    hub.close()


@pytest.fixture
def revocations(store: FaultyStore) -> Iterator[Revocations]:
    revocations = Revocations(store, 3600)
    yield revocations
    revocations.close()


@pytest.fixture(params=[iter, driven], ids=["iterated", "driven"])
def open_stream(hub: Hub, request: pytest.FixtureRequest) -> Iterator[OpenStream]:
    opened: list[Any] = []

    def open(starts: Mapping[str, Start] | None = None, **options: Any) -> Body:
        opened.append(request.param(make_stream(hub, starts, **options)))
        return Body(opened[-1])

    yield open
    for chunks in opened:
        chunks.close()
    assert hub.subscribers == 0


@pytest.fixture(params=[iter, driven], ids=["iterated", "driven"])
def chunks_of(request: pytest.FixtureRequest) -> Any:
    return request.param


def make_stream(hub: Hub, starts: Mapping[str, Start] | None = None, **options: Any) -> Stream:
    return Stream(hub, starts or {"a": Start()}, **({"heartbeat": 15, "lifetime": 900, "retry": RETRY} | options))


def newest(hub: Hub, channel: str = "a") -> int:
    ring = hub._channels[channel].ring
    return ring.newest.offset if ring else 0


def test_it_opens_with_one_block_and_a_heartbeat_at_once(open_stream: OpenStream) -> None:
    opening, heartbeat = open_stream({"a": Start(), "b": Start(Position(3, 3))}, told={"replay": 7}).next()
    assert (opening.event, opening.retry) == ("sse.open", RETRY)
    told = opening.json()
    assert opening.own_id is not None
    assert set(opening.own_id.split("~")) == {f"a={told['channels']['a']['position']}", "b=3-3"}
    assert set(told) == {"channels", "heartbeat", "lifetime", "retry", "replay"}
    assert told["channels"]["b"] == {"position": "3-3", "resumed": False, "whole": True}
    assert (told["heartbeat"], told["retry"], told["replay"]) == (15, RETRY, 7)
    assert (heartbeat.event, heartbeat.data, heartbeat.own_id) == ("sse.heartbeat", "", None)


@pytest.mark.parametrize(
    "options", [{}, {"delta": True}, {"typed": True}, {"bare": True}, {"cut": True}, {"told": {"replay": 1}}], ids=str
)
@pytest.mark.parametrize("back", [0, 1, 3, 99])
def test_a_client_that_is_back_gets_its_events_with_the_first_blocks(
    hub: Hub, store: FaultyStore, options: dict[str, Any], back: int
) -> None:
    """`back`: how many events it has missed in each channel; 99 for more than the ring has."""
    names = ["a", "b"]
    places = {name: publish_to_store(store, name, *range(4 if back < 99 else 10)) for name in names}
    keep = hub.attach(dict.fromkeys(names, Start()), 5)
    for name in names:
        places[name] += publish_to_store(store, name, *range(4))
    wait_until(lambda: all(newest(hub, name) == places[name][-1].offset for name in names), 5)
    found: list[bytes] = []
    events: list[int] = []
    for is_begun in (True, False):
        starts = {name: Start(places[name][0 if back == 99 else -1 - back]) for name in names}
        random.seed(5)
        stream = make_stream(hub, starts, **options)
        if is_begun:
            found.append(stream.begin())
        else:
            found.append(stream.open() + (b"" if stream.ended else stream.next_bytes()))
        stream.begin_write(0)
        events.append(stream.events)
        stream.close()
    if back < 99:
        assert found[0] == found[1]
        assert events == [2 * back] * 2
    else:
        assert found[1].startswith(found[0]), "a reset is not at hand"
    hub.detach(keep)


def test_a_client_that_is_back_at_the_end_of_a_channel_gets_that_end(hub: Hub, store: FaultyStore) -> None:
    """And it is told to wait for a time of its own, as at any end."""
    run = Run(store, "a")
    keep = hub.attach({"a": Start()}, 5)
    run.write("text")
    run.end("done")
    wait_until(lambda: newest(hub) == 2, 5)
    ring = hub._channels["a"].ring
    assert ring is not None
    stream = make_stream(hub, {"a": Start(ring.base)})
    texts = [event.event for event in client.Parser().feed(stream.begin())]
    assert texts[:3] == ["sse.open", "sse.heartbeat", "text"]
    if not stream.finished:
        last = client.Parser().feed(stream.next_bytes())
        assert [event.event for event in last] == ["sse.end"]
    else:
        assert texts[3:] == ["sse.end"]
    stream.close()
    stream = make_stream(hub, {"a": Start(ring.before(1))})
    [*_, last_block] = client.Parser().feed(stream.begin())
    assert (last_block.event, stream.finished) == ("sse.end", True)
    assert last_block.retry is not None
    stream.close()
    hub.detach(keep)


def test_nothing_is_attached_before_the_first_chunk_nor_after_the_last(hub: Hub, open_stream: OpenStream) -> None:
    never = open_stream()
    assert (hub.subscribers, hub.channels) == (0, 0)
    never.chunks.close()  # type: ignore[attr-defined]
    assert hub.subscribers == 0
    body = open_stream()
    body.next()
    assert hub.subscribers == 1
    body.chunks.close()  # type: ignore[attr-defined]
    assert hub.subscribers == 0


def test_events_that_came_together_are_one_chunk(hub: Hub, store: FaultyStore, open_stream: OpenStream) -> None:
    body = open_stream()
    body.next()
    publish_to_store(store, "a", *range(4))
    wait_until(lambda: newest(hub) == 4, 3)
    assert [event.data for event in body.next()] == ["0", "1", "2", "3"]
    assert body.count == 2


def test_a_chunk_is_bounded_and_one_large_event_still_passes(
    hub: Hub, store: FaultyStore, open_stream: OpenStream
) -> None:
    body = open_stream()
    body.next()
    publish_to_store(store, "a", "x" * 40_000, "y" * 40_000, "z" * 100_000)
    wait_until(lambda: newest(hub) == 3, 3)
    for letter in "xyz":
        (event,) = body.next()
        assert event.data and event.data[0] == letter


def test_a_heartbeat_comes_after_quiet_and_not_after_an_event(store: FaultyStore, open_stream: OpenStream) -> None:
    body = open_stream(heartbeat=0.2)
    body.next()
    begun = time.monotonic()
    assert [event.event for event in body.take(2)] == ["sse.heartbeat"] * 2
    assert 0.35 < time.monotonic() - begun < 1.5
    for number in range(4):
        time.sleep(0.1)
        publish_to_store(store, "a", number)
        assert [event.data for event in body.next()] == [str(number)]
    begun = time.monotonic()
    (heartbeat,) = body.next()
    assert (heartbeat.event, heartbeat.own_id) == ("sse.heartbeat", None)
    assert time.monotonic() - begun > 0.15


def test_a_stream_ends_with_its_lifetime_and_a_jittered_retry(open_stream: OpenStream) -> None:
    lifetimes, retries = set(), set()
    for _ in range(6):
        body = open_stream(lifetime=0.2)
        begun = time.monotonic()
        *_, close = body.rest()
        lifetimes.add(round(time.monotonic() - begun, 4))
        assert (close.event, close.own_id) == ("sse.close", None)
        assert close.json() == {"reason": "lifetime", "retry": close.retry}
        assert close.retry is not None
        retries.add(close.retry)
    assert all(0.15 < lifetime < 1 for lifetime in lifetimes)
    assert all(RETRY / 10 <= retry <= RETRY for retry in retries)
    assert len(lifetimes) > 3
    assert len(retries) > 3


def test_a_lifetime_is_told_with_its_jitter(open_stream: OpenStream) -> None:
    told = {open_stream(lifetime=1000).next()[0].json()["lifetime"] for _ in range(3)}
    assert all(800 <= lifetime <= 1200 for lifetime in told)
    assert len(told) > 1


def test_a_busy_channel_does_not_keep_a_stream_alive(store: FaultyStore, open_stream: OpenStream) -> None:
    body = open_stream(lifetime=0.2)
    events = body.next()
    for number in itertools.count():
        assert number < 10_000
        publish_to_store(store, "a", number)
        events += body.next()
        if events[-1].event == "sse.close":
            break
    data = [int(event.data or "") for event in events if event.event == "message"]
    assert data == list(range(len(data)))
    assert next(body.chunks, None) is None


def test_who_cannot_keep_up_is_closed_as_slow_and_can_come_back(
    hub: Hub, store: FaultyStore, open_stream: OpenStream
) -> None:
    body = open_stream()
    opening, _ = body.next()
    publish_to_store(store, "a", *["x" * 300_000] * 10)  # the hub keeps 1 MiB, the store 5 events
    wait_until(lambda: newest(hub) == 10, 3)
    (close,) = body.rest()
    assert (close.event, close.json()) == ("sse.close", {"reason": "slow", "retry": close.retry})
    assert close.retry is not None
    assert RETRY / 10 <= close.retry <= RETRY
    again = open_stream({"a": Start(Position.parse(opening.json()["channels"]["a"]["position"]))})
    assert again.take(3)[2].json() == {"channel": "a", "reason": "trimmed", "missed": 10}


@pytest.mark.parametrize("open_stream", [iter], indirect=True)  # a stream that is driven watches its writing itself
def test_a_writer_that_stalls_for_twenty_seconds_is_closed_as_slow(store: FaultyStore, open_stream: OpenStream) -> None:
    now = 0.0
    body = open_stream(clock=lambda: now)
    body.next()
    for stalled in (19, 21):
        publish_to_store(store, "a", stalled)
        assert [event.data for event in body.next()] == [str(stalled)]
        now += stalled
    (close,) = body.rest()
    assert close.json() == {"reason": "slow", "retry": close.retry}


def test_with_the_store_away_a_stream_stays_and_goes_on_when_it_is_back(
    hub: Hub, store: FaultyStore, open_stream: OpenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse.hub.channel.CHANNEL_BYTES", 10_000)
    body = open_stream(heartbeat=0.3)
    body.next()
    publish_to_store(store, "a", *["x" * 1000] * 5)  # more than the hub keeps: older ones are read from the store
    wait_until(lambda: newest(hub) == 5, 3)
    store.away = True
    assert [event.event for event in body.take(2)] == ["sse.heartbeat"] * 2
    store.away = False
    events = list[client.Event]()
    while len([event for event in events if event.event == "message"]) < 5:
        events += body.next()
    assert [event.id.partition("-")[0] for event in events if event.event == "message"] == [
        f"a={n}" for n in range(1, 6)
    ]


def test_over_the_limit_the_whole_body_is_a_busy_notice_and_the_log_has_the_reason(
    hub: Hub, open_stream: OpenStream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sse.log._last_logged", {})
    for body in [open_stream() for _ in range(3)]:
        body.next()
    with caplog.at_level(logging.WARNING, "sse"):
        (close,) = open_stream().rest()
    assert "SSE_MAX_SUBSCRIBERS" in caplog.text
    assert (close.event, close.json()) == ("sse.close", {"reason": "busy", "retry": close.retry})
    assert hub.subscribers == 3


def test_a_stream_that_is_closed_waits_for_nothing_when_it_is_closed_again(hub: Hub, revocations: Revocations) -> None:
    permit = Permit(revocations, Grant("ann", ("a",)), ["a"])
    stream = Stream(hub, {"a": Start()}, heartbeat=15, lifetime=60, retry=RETRY, permit=permit)
    stream.open()
    stream.close()
    with ThreadPoolExecutor(1) as threads, hub.lock, revocations._lock:
        threads.submit(stream.close).result(5)
    assert not revocations._watched


def test_a_busy_notice_spreads_those_who_come_back() -> None:
    retries = [client.Parser().feed(busy(RETRY))[0].retry or 0 for _ in range(100)]
    assert all(RETRY <= retry <= 4 * RETRY for retry in retries)
    assert max(retries) - min(retries) > RETRY


def test_two_channels_take_turns_and_each_is_in_order(hub: Hub, store: FaultyStore, open_stream: OpenStream) -> None:
    body = open_stream({"a": Start(), "b": Start()})
    body.next()
    for number in range(4):
        publish_to_store(store, "a", number)
        publish_to_store(store, "b", number)
    wait_until(lambda: newest(hub) == newest(hub, "b") == 4, 3)
    events = body.take(8)
    for channel in "ab":
        mine = [event for event in events if event.id.startswith(f"{channel}=")]
        assert [event.data for event in mine] == ["0", "1", "2", "3"]
    for event in events:
        assert {entry[0] for entry in event.id.split("~")} == {"a", "b"}


def test_a_typed_stream_tells_each_event_s_type_in_its_data_and_its_own_blocks_as_ever(
    hub: Hub, store: FaultyStore, open_stream: OpenStream
) -> None:
    typed, plain = (open_stream({"a": Start(), "b": Start(Position(3, 3))}, typed=typed) for typed in (True, False))
    for body in (typed, plain):
        opening, _, reset = body.take(3)
        assert (opening.event, reset.event) == ("sse.open", "sse.reset")
    store.publish([Publication("a", Event("x\n\ny", "created")), Publication("a", Event(""))])
    wait_until(lambda: newest(hub) == 2, 3)
    assert [(event.event, event.data) for event in typed.take(2)] == [
        ("sse.event", "created\nx\n\ny"),
        ("sse.event", "message\n"),
    ]
    assert [(event.event, event.data) for event in plain.take(2)] == [("created", "x\n\ny"), ("message", "")]


# Bare


def words(chunk: bytes) -> list[tuple[str, Any]]:
    """Return the comments of a chunk without blocks, as names and data."""
    lines = chunk.decode().split("\n")
    assert lines.pop() == ""
    assert all(line.startswith(": ") for line in lines)
    pairs = [line.removeprefix(": ").partition(" ") for line in lines]
    return [(name, json.loads(data) if data else None) for name, _, data in pairs]


def test_a_bare_stream_says_all_but_events_in_comments(
    store: FaultyStore, revocations: Revocations, open_stream: OpenStream
) -> None:
    permit = Permit(revocations, Grant("ann", ("a",), ends_at=time.time() + 60), ["a"])
    body = open_stream({"a": Start(), "b": Start()}, bare=True, heartbeat=0.2, lifetime=1.5, permit=permit)
    (name, told), heartbeat = words(next(body.chunks))
    assert (name, heartbeat) == ("open", ("heartbeat", None))
    assert told.keys() == {"channels", "heartbeat", "lifetime", "retry"}
    assert told["channels"]["a"]["resumed"] is False
    chunks = []
    for chunk in body.chunks:
        if len(chunks) == 2:
            publish_to_store(store, "a", "1\n\nid: 7", "2")
        chunks.append(chunk)
    permit.end()
    parser = client.Parser(bare=True)
    events = parser.feed(b"".join(chunks))
    assert [event.data for event in events] == ["1\n\nid: 7", "2"]
    assert {entry[0] for entry in events[0].id.split("~")} == {"a", "b"}
    assert [event.retry for event in events] == [RETRY, None]
    said = [word for chunk in chunks if not chunk.endswith(b"\n\n") for word in words(chunk)]
    assert [name for name, _ in said].count("auth") == 1
    assert ("heartbeat", None) in said
    assert said[-1] == ("close", {"reason": "lifetime", "retry": said[-1][1]["retry"]})
    assert RETRY / 10 <= said[-1][1]["retry"] <= RETRY


def test_the_first_event_of_each_bare_connection_tells_retry(
    hub: Hub, store: FaultyStore, open_stream: OpenStream
) -> None:
    publish_to_store(store, "a", "before", "replayed")
    early, late = (open_stream({"a": Start(replay=replay)}, bare=True) for replay in (0, 1))
    next(early.chunks)
    next(late.chunks)
    assert next(late.chunks).startswith(b"retry: 1000\ndata: replayed\nid: a=2-")
    publish_to_store(store, "a", "live")
    wait_until(lambda: newest(hub) == 3, 3)
    assert next(early.chunks).startswith(b"retry: 1000\ndata: live\nid: a=3-")
    assert next(late.chunks).startswith(b"data: live\nid: a=3-")


def test_bare_streams_share_a_row_once_they_have_been_told_the_same(hub: Hub, store: FaultyStore) -> None:
    publish_to_store(store, "a", "before")
    row = row_of(make_stream(hub, bare=True), make_stream(hub, bare=True))
    told = make_stream(hub, {"a": Start(replay=1)}, bare=True)
    told.open()
    assert b"retry: " in tell(told)
    assert told.merge_key != row.merge_key
    assert told.subscriber.positions_by_name == row.subscriber.positions_by_name
    publish_to_store(store, "a", "on")
    assert tell(row) == b"retry: 1000\n" + tell(told)
    assert told.merge_key == row.merge_key is not None
    assert row.merge(told)
    publish_to_store(store, "a", "and on")
    assert tell(row).startswith(b"data: and on\nid: ")
    for _ in range(2):
        row.release()
    row.close()


def test_a_bare_stream_that_would_be_reset_is_cut_after_what_came_before(
    hub: Hub, store: FaultyStore, chunks_of: Callable[[Stream], Generator[bytes]]
) -> None:
    chunks = chunks_of(make_stream(hub, {"a": Start(), "b": Start()}, bare=True))
    next(chunks)
    place = str(store.newest(["b"])[0])
    publish_to_store(store, "a", "of a")
    del store._rings["b"]
    publish_to_store(store, "b", "another life")
    wait_until(lambda: hub._channels["b"].generation and newest(hub) == 1, 8)
    told = b""
    with pytest.raises(Cut):
        while True:
            told += next(chunks)
    events = client.Parser(bare=True).feed(told)
    assert [event.data for event in events] in (["of a"], [])
    assert all(f"b={place}" in event.id for event in events)
    assert b"close" not in told
    assert b"another life" not in told
    assert hub.subscribers == 0


def test_a_bare_stream_that_is_opened_too_late_is_cut(hub: Hub, store: FaultyStore) -> None:
    stream = make_stream(hub, {"a": Start(Position(7, 7))}, bare=True)
    stream.attach()
    assert stream.subscriber.resets
    stream.close()
    assert hub.subscribers == 0
    with pytest.raises(Cut):
        list(stream)
    assert hub.subscribers == 0


# Cut


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("reason", ["lifetime", "slow", "expired", "drain", "busy"])
def test_each_end_of_a_stream_with_a_cut_is_one_after_the_goodbye(
    hub: Hub,
    store: FaultyStore,
    revocations: Revocations,
    chunks_of: Callable[[Stream], Generator[bytes]],
    reason: str,
    bare: bool,
) -> None:
    permit = Permit(revocations, Grant("ann", ("a",), ends_at=time.time() + (reason != "expired") * 99), "a")
    lifetime = 0.1 if reason == "lifetime" else 90
    options: dict[str, Any] = {"heartbeat": 0.1, "lifetime": lifetime, "bare": bare, "permit": permit}
    chunks, clean = (chunks_of(make_stream(hub, cut=cut, **options)) for cut in (True, False))
    if reason == "busy":
        hub.max_subscribers = 0
    told = b""
    if reason != "busy":
        told += next(chunks)
        next(clean)
    if reason == "slow":
        publish_to_store(store, "a", *["x" * 300_000] * 10)  # the hub keeps 1 MiB, the store 5 events
        wait_until(lambda: newest(hub) == 10, 3)
    if reason == "drain":
        hub.drain(0)
    if not (bare and reason == "busy"):  # otherwise it is refused, unless it is too late for that
        list(clean)
    with pytest.raises(Cut):
        for chunk in chunks:
            told += chunk
    name = b": close " if bare else b"data: "
    assert name + b'{"reason":"%b",' % reason.encode() in told.splitlines()[-1 if bare else -2]
    assert told.endswith(b"}\n" if bare else b"}\n\n")
    assert hub.subscribers == 0


@pytest.mark.parametrize("form", ["bare", "cut"])
@pytest.mark.parametrize("channels", ["a", "ab"])
def test_an_id_is_read_behind_all_that_it_claims(
    hub: Hub, store: FaultyStore, chunks_of: Callable[[Stream], Generator[bytes]], form: str, channels: str
) -> None:
    """Some readers take an id at the end of its line. From there, one more byte completes the event."""
    publish_to_store(store, "a", *"12345")
    starts = {channel: Start(replay=2) for channel in channels} | (
        {"lost": Start(Position(3, 3))} if form == "cut" else {}
    )
    chunks = chunks_of(make_stream(hub, starts, **{form: True}))
    told = next(chunks) + next(chunks)
    publish_to_store(store, "a", "live\n\nid: forged", "")
    wait_until(lambda: newest(hub) == 7, 3)
    while told.count(b"\ndata: forged") + told.count(b"data: \n") < 2:
        told += next(chunks)
    chunks.close()
    blocks = [block.split(b"\n") for block in told.split(b"\n\n") if b"\nid: " in block]
    assert len(blocks) == (4 if form == "bare" else 6)  # with sse.open and sse.reset
    for *rest, last in blocks:
        assert last.startswith(b"id: ")
        assert not [line for line in rest if line.startswith(b"id:")]


# Ending together


def test_a_drain_ends_every_stream_with_a_notice_and_newcomers_at_once(hub: Hub, store: FaultyStore) -> None:
    def read(stream: Stream) -> list[client.Event]:
        return Body(iter(stream)).rest()

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(read, make_stream(hub)) for _ in range(2)]
        wait_until(lambda: hub.subscribers == 2, 3)
        begun = time.monotonic()
        hub.drain(0)
        waiting.append(pool.submit(read, make_stream(hub)))
        for told in waiting:
            *_, close = told.result(20)
            assert (close.event, close.json()) == ("sse.close", {"reason": "drain", "retry": close.retry})
        assert time.monotonic() - begun < 2
    assert hub.subscribers == 0


@pytest.mark.parametrize("other", [0, 1])
def test_a_drain_is_spread_over_its_window(hub: Hub, other: int) -> None:
    """It does not matter whether a stream is quiet or busy."""
    ends = []
    begun = 0.0

    def read(stream: Stream) -> None:
        *_, close = Body(iter(stream)).rest(100_000)
        assert close.json()["reason"] == "drain"
        ends.append(time.monotonic() - begun)

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(read, make_stream(hub)) for _ in range(3)]
        wait_until(lambda: hub.subscribers == 3, 3)
        begun = time.monotonic()
        draining = threading.Thread(target=hub.drain, args=(0.9,))
        draining.start()
        while draining.is_alive():
            if other:
                publish_to_store(hub.reader._store, "a", "busy")  # type: ignore[arg-type]
            time.sleep(0.005)
        for one in waiting:
            one.result(5)
        draining.join()
    ends.sort()
    assert ends[0] < 0.3
    assert ends[-1] > 0.5


# Rows: one stream that tells many clients


def row_of(*streams: Stream) -> Stream:
    """Return one stream for these streams, which were opened and have received all there is."""
    for stream in streams:
        stream.open()
        assert stream.next_bytes() == b""
    row, *others = streams
    for other in others:
        assert row.merge_key == other.merge_key is not None
        assert row.merge(other)
    return row


def listeners(hub: Hub, name: str = "a") -> int:
    """Return how many subscribers a channel has. Each serves one client or more."""
    return len(hub._channels[name].subscribers)


def tell(stream: Stream) -> bytes:
    """Return the next chunk, as `driven` does."""
    wait_until(stream.subscriber.is_behind, 3)
    chunk = stream.next_bytes_at_hand({})
    return stream.next_bytes() if chunk is None else chunk


def test_one_that_parts_from_its_row_goes_on_by_itself_and_can_come_back(hub: Hub, store: FaultyStore) -> None:
    row = row_of(*(make_stream(hub, delta=True) for _ in range(3)))
    assert (hub.subscribers, listeners(hub)) == (3, 1)
    one = row.split()
    assert (hub.subscribers, listeners(hub)) == (3, 2)
    publish_to_store(store, "a", "1")
    told = tell(row)
    assert b"data: 1" in told
    assert not row.merge(one)  # which has not been told that
    assert one.merge_key == row.merge_key
    assert (row.due, one.due) == (row.due, row.due)
    assert tell(one) == told
    assert row.merge(one)
    assert (hub.subscribers, listeners(hub), one.subscriber.is_detached) == (3, 1, True)
    for left in (2, 1):
        row.release()
        assert hub.subscribers == left
    row.detach()
    assert hub.subscribers == 0
    row.release()
    row.close()
    assert hub.subscribers == 0


def test_only_streams_that_are_told_in_the_same_manner_are_alike(hub: Hub, store: FaultyStore) -> None:
    hub.max_subscribers = 20
    other = Hub(store, max_subscribers=3)
    manners: list[dict[str, Any]] = [
        {},
        {"heartbeat": 16},
        {"retry": 1},
        {"delta": True},
        {"typed": True},
        {"bare": True},
        {"cut": True},
        {"starts": {"a": Start(), "b": Start()}},
        {"starts": {"b": Start(), "a": Start()}},
    ]
    streams = [make_stream(hub, **manner) for manner in manners] + [make_stream(other)]
    for stream in streams:
        stream.open()
    assert len({stream.merge_key for stream in streams}) == len(streams)
    twin = make_stream(hub, lifetime=5, told={"replay": 3})  # each client's own end, and what it was told already
    twin.open()
    assert twin.merge_key == streams[0].merge_key
    for stream in (twin, *streams):
        stream.close()
    other.close()


def test_a_stream_that_has_more_to_tell_is_like_no_other(
    hub: Hub, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse.hub.channel.CHANNEL_BYTES", 10_000)
    lost = make_stream(hub, {"a": Start(Position(7, 7))})
    lost.open()
    assert lost.merge_key is None
    assert lost.next_bytes_at_hand({}) is None
    assert b"event: sse.reset" in lost.next_bytes()
    assert lost.merge_key
    publish_to_store(store, "a", *["x" * 1000] * 5)  # more than the hub keeps
    wait_until(lambda: newest(hub) == 5, 3)
    store.away = True
    assert lost.next_bytes_at_hand({}) is None
    assert lost.next_bytes() == b""
    assert lost.merge_key is None
    store.away = False
    while lost.subscriber.is_behind():
        assert lost.next_bytes()
    assert lost.merge_key
    lost.end("lifetime")
    assert lost.merge_key is None
    lost.close()


def test_a_row_is_reset_as_one_and_who_parts_before_hears_of_it_too(hub: Hub, store: FaultyStore) -> None:
    row = row_of(*(make_stream(hub) for _ in range(3)))
    early = row.split()
    store._rings.clear()
    publish_to_store(store, "a", "another life")
    wait_until(lambda: hub._channels["a"].generation, 8)
    told = row.next_bytes()
    late = row.split()
    assert b"event: sse.reset" in told
    assert tell_until_level(early) == told
    assert late.next_bytes() == b""
    assert row.merge(late)
    assert row.merge(early)
    assert (hub.subscribers, listeners(hub)) == (3, 1)
    for _ in range(2):
        row.release()
    row.close()


def tell_until_level(stream: Stream) -> bytes:
    told = b""
    while not told or stream.subscriber.is_behind():
        chunk = stream.next_bytes_at_hand({})
        told += stream.next_bytes() if chunk is None else chunk
        assert not stream.ended
    return told


def test_a_goodbye_is_one_client_s_and_the_row_goes_on(hub: Hub, store: FaultyStore) -> None:
    row = row_of(make_stream(hub), make_stream(hub))
    (close,) = client.Parser().feed(row.goodbye("lifetime"))
    assert close.json()["reason"] == "lifetime"
    row.release()
    assert not row.ended
    publish_to_store(store, "a", "on")
    assert b"data: on" in tell(row)
    row.close()
    assert hub.subscribers == 0


def test_a_revoked_permit_lengthens_the_wait_of_its_own_client_alone(hub: Hub, revocations: Revocations) -> None:
    row = row_of(make_stream(hub), make_stream(hub))
    permits = [Permit(revocations, Grant("ann", ("a",)), ["a"]) for _ in range(2)]
    permits[0].revoked = True
    revoked, other, without = ([goodbye_of(row, permit) for _ in range(50)] for permit in (*permits, None))
    assert min(revoked) >= 11_000  # before that, a new token is not taken
    assert all(RETRY / 10 <= wait <= RETRY for wait in (*other, *without))
    row.release()
    row.close()


def goodbye_of(stream: Stream, permit: Permit | None) -> int:
    (close,) = client.Parser().feed(stream.goodbye("drain", permit))
    assert close.retry is not None
    assert close.json() == {"reason": "drain", "retry": close.retry}
    return close.retry


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_only_an_end_that_tells_nothing_is_lost(hub: Hub, *, bare: bool, cut: bool) -> None:
    """A bare stream has no block for `busy` or for a reset."""
    hub.max_subscribers = 2
    ended, late, *over = (
        make_stream(hub, {"a": start}, bare=bare, cut=cut) for start in (Start(), Start(Position(7, 7)), Start())
    )
    ended.open()
    first = late.open()
    busy = [stream.open() for stream in over]
    assert (ended.ended, ended.lost, ended.cuts) == (False, False, cut)
    assert (late.ended, late.lost, late.cuts) == (bare, bare, bare or cut)
    assert first.endswith(b": heartbeat\n" if bare else b"event: sse.heartbeat\ndata:\n\n")
    assert first.startswith(b": heartbeat" if bare else b"retry: ")
    assert [b'{"reason":"busy"' in told for told in busy] == [True]
    assert [(stream.ended, stream.lost, stream.cuts) for stream in over] == [(True, bare, bare or cut)]
    goodbye = ended.end("lifetime")
    assert b'{"reason":"lifetime"' in goodbye
    assert goodbye.startswith(b": close " if bare else b"retry: ")
    assert (ended.ended, ended.lost, ended.cuts) == (True, False, cut)
    for stream in (ended, late, *over):
        stream.close()
    assert hub.subscribers == 0


published = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["message", "note", "été"]),
        st.text("a\n\r: \0\ufeffé🎈", max_size=6) | st.integers(1, 70_000).map("x".__mul__) | st.none(),
    ),
    max_size=8,
)


@given(
    names=st.permutations("abc").flatmap(lambda names: st.integers(1, 3).map(lambda count: names[:count])),
    delta=st.booleans(),
    typed=st.booleans(),
    form=st.sampled_from(["", "bare", "cut"]),
    rounds=st.lists(published, min_size=1, max_size=5),
)
def test_what_is_shared_is_byte_for_byte_what_one_alone_gets(
    names: list[str], delta: bool, typed: bool, form: str, rounds: list[list[tuple[str, str, str | None]]]
) -> None:
    store = MemoryStore(ring=100, ring_ttl=3600)
    hub = Hub(store, max_subscribers=3)
    alone, one, other = streams = [
        make_stream(
            hub, {name: Start() for name in names}, delta=delta, typed=typed, bare=form == "bare", cut=form == "cut"
        )
        for _ in range(3)
    ]
    try:
        assert len({stream.open().partition(b"lifetime")[0] for stream in streams}) == 1
        for batch in rounds:
            store.publish([Publication(channel, Event(text, type)) for channel, type, text in batch])
            tops = set(zip(names, store.newest(names), strict=True))
            wait_until(lambda tops=tops: hub.newest(names) == tops, 5, 0.001)
            bodies = [200 + 10 * len(text or "") for channel, _, text in batch if channel in names]
            if not bodies:
                continue
            shared: Shared = {}
            if sum(bodies) < 16_000:  # at once
                told = alone.next_bytes()
                assert told
                assert one.next_bytes_at_hand(shared) == other.next_bytes_at_hand(shared) == told
            else:
                heard = [whole(alone, None), whole(one, shared), whole(other, shared)]
                assert heard[0] == heard[1] == heard[2]
                for stream in streams:  # in how many chunks may differ, and so whose turn it is
                    stream.subscriber._turn = 0
            assert (
                one.subscriber.positions_by_name
                == other.subscriber.positions_by_name
                == alone.subscriber.positions_by_name
            )
        assert one.merge(other)
        one.release()
    finally:
        for stream in (alone, one, other):
            stream.close()
        assert hub.subscribers == 0
        hub.close()
        store.close()


def whole(stream: Stream, shared: Shared | None) -> dict[str, list[tuple[str, str | None]]]:
    """Return all that several chunks tell, with each channel's events in order. The order of channels may differ."""
    heard: dict[str, list[tuple[str, str | None]]] = {}
    parser = client.Parser()
    for _ in range(100):
        chunk = stream.next_bytes_at_hand(shared) if shared is not None else None
        for block in parser.feed(stream.next_bytes() if chunk is None else chunk):
            assert block.own_id
            heard.setdefault(block.own_id.partition("=")[0], []).append((block.event, block.data))
        if not stream.subscriber.is_behind():
            break
    return heard


def test_who_joins_another_hears_a_heartbeat_no_later_than_it_would_have(hub: Hub, store: FaultyStore) -> None:
    now = 0.0
    one, other = (make_stream(hub, clock=lambda: now) for _ in range(2))
    for stream in (one, other):
        stream.open()
        assert stream.next_bytes() == b""
    one.mark_written(10)
    assert one.merge(other)
    assert one.due == 15
    one.release()
    one.release()
