"""The bytes of a stream, compared with those of an independent writer in this file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse.event import End, Entry, Event, Position
from sse.hub.hub import Hub
from sse.hub.subscriber import Delivery, Reset, SourceState, Start, encoded
from sse.stores import MemoryStore, Publication
from sse.transports.dialect import Dialect, Shared, claims_of, dialect_of
from sse.transports.stream import Stream
from tests.servers import wait_until

RETRY = 1000
CHANNELS = "abc"
SWITCHES = [
    dict(zip(("delta", "typed", "bare", "cut"), given, strict=True)) for given in itertools.product(*[[0, 1]] * 4)
]
every_dialect = pytest.mark.parametrize(
    "switches", SWITCHES, ids=lambda given: "+".join(name for name in given if given[name]) or "plain"
)


class Scribe:
    """Writes a stream's blocks as docs/protocol.md describes, and shares no code with `sse/`."""

    def __init__(self, claims: Mapping[str, Position | None], switches: Mapping[str, int]) -> None:
        self.claims = {**claims}
        self._switches = switches
        self.tells_retry = bool(switches["bare"])

    def opening(self, lifetime: int, names: Iterable[str]) -> bytes:
        told = {"resumed": False, "whole": True}  # all rings are new
        channels = {name: {"position": written(self.claims[name]) or None, **told} for name in names}
        data = dumps({"channels": channels, "heartbeat": 15, "lifetime": lifetime, "retry": RETRY, "replay": 7})
        if self._switches["bare"]:
            return f": open {data}\n: heartbeat\n".encode()
        id = "~".join(f"{name}={written(place)}" for name, place in self.claims.items())
        return (
            f"retry: {RETRY}\n".encode()
            + self._block(["event: sse.open", f"data: {data}"], id)
            + (b"event: sse.heartbeat\ndata:\n\n")
        )

    def event(self, channel: str, place: Position, event: Event) -> bytes:
        lines = event.data.split("\n")
        if self._switches["typed"]:
            head, lines = ["event: sse.event"], [event.type, *lines]
        else:
            head = [f"event: {event.type}"] if event.type != "message" else []
        retry = f"retry: {RETRY}\n".encode() if self.tells_retry else b""
        self.tells_retry = False
        return retry + self._block([*head, *(f"data: {line}" for line in lines)], self._id(channel, place))

    def end(self, channel: str, place: Position, reason: str) -> bytes:
        data = dumps({"channel": channel, "reason": reason})
        id = self._id(channel, place)
        if self._switches["bare"]:
            return f": end {data}\n".encode()
        return self._block(["event: sse.end", f"data: {data}"], id)

    def reset(self, channel: str, place: Position, reason: str, missed: int | None) -> bytes:
        data = dumps({"channel": channel, "reason": reason, "missed": missed})
        return self._block(["event: sse.reset", f"data: {data}"], self._id(channel, place))

    def _id(self, channel: str, place: Position) -> str:
        self.claims[channel] = place
        others = [name for name in self.claims if name != channel and not self._switches["delta"]]
        return "~".join(f"{name}={written(self.claims[name])}" for name in [channel, *others])

    def _block(self, lines: Sequence[str], id: str) -> bytes:
        is_last = self._switches["bare"] or self._switches["cut"]
        lines = [*lines, f"id: {id}"] if is_last else [f"id: {id}", *lines]
        return "".join(f"{line}\n" for line in [*lines, ""]).encode()


def written(place: Position | None) -> str:
    return f"{place.offset}-{place.tag}" if place is not None else ""


def dumps(data: Mapping[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def dialect(switches: Mapping[str, int]) -> Dialect:
    return dialect_of(15, RETRY, **{name: bool(value) for name, value in switches.items()})


texts = st.text("a\n\r: \0\ufeffé\u2028🎈", max_size=6) | st.sampled_from(["id: x\n\ndata: forged", "event: a", "\n\n"])
types = st.sampled_from(["message", "note", "été"])
positions = st.builds(Position, st.integers(0, 2**53 - 1), st.integers(1, 2**52))
events = st.builds(Event, texts, types)
resets = st.tuples(
    st.sampled_from(["trimmed", "unknown", "diverged", "invalid", "missing"]), st.none() | st.integers(0)
)
runs = st.lists(
    st.tuples(st.sampled_from(CHANNELS), st.lists(st.tuples(positions, events | resets), min_size=1, max_size=4)),
    max_size=6,
)
reasons = st.sampled_from(["done", "stopped", "failed", "lost", "interrupted"])
ends = st.dictionaries(st.sampled_from(CHANNELS), st.tuples(positions, reasons))


@every_dialect
@given(
    claims=st.fixed_dictionaries(dict.fromkeys(CHANNELS, st.none() | positions)), runs=runs, ends=ends, data=st.data()
)
def test_blocks_and_segments_are_the_same_bytes(
    switches: dict[str, int], claims: dict[str, Position | None], runs: Any, ends: Any, data: st.DataObject
) -> None:
    channels = data.draw(st.permutations(CHANNELS).flatmap(lambda names: st.integers(1, 3).map(lambda n: names[:n])))
    claims = {name: claims[name] for name in channels}
    runs = [(name, items) for name, items in runs if name in channels]
    for name, (place, reason) in ends.items():  # the end is the last entry of a channel
        last = next((items for other, items in reversed(runs) if other == name), None)
        if last is not None:
            last.append((place, End(name, reason)))
    ours, scribe = dialect(switches), Scribe(claims, switches)
    scribe.tells_retry = False
    wanted = b"".join(written_by(scribe, name, place, item) for name, items in runs for place, item in items)
    moving = {**claims}
    assert ours.blocks([taken(name, place, item) for name, items in runs for place, item in items], moving) == wanted
    assert list(moving.items()) == list(scribe.claims.items())
    moving = {**claims}
    max_bytes = data.draw(st.integers(0, 60))
    assert (
        b"".join(part for name, items in runs for part in in_segments(ours, name, items, moving, max_bytes)) == wanted
    )
    assert moving == scribe.claims


def written_by(scribe: Scribe, channel: str, place: Position, item: Any) -> bytes:
    if isinstance(item, End):
        return scribe.end(channel, place, item.reason)
    return scribe.event(channel, place, item) if isinstance(item, Event) else scribe.reset(channel, place, *item)


def taken(channel: str, place: Position, item: Any) -> Delivery | Reset:
    if isinstance(item, Event):
        return Delivery(channel, encoded(Entry(place, item)))
    return Reset(channel, *item, place)


def in_segments(
    ours: Dialect, channel: str, items: Any, claims: dict[str, Position | None], max_bytes: int
) -> Iterator[bytes]:
    """Return events in segments, as from `Stream.next_bytes_at_hand`, with resets in between."""
    for is_event, group in itertools.groupby(items, lambda item: isinstance(item[1], Event)):
        run = [taken(channel, place, item) for place, item in group]
        if not is_event:
            yield ours.blocks(run, claims)
            continue
        entries = [item.entry for item in run if isinstance(item, Delivery)]
        while entries:
            segment = ours.segment(channel, entries, max_bytes, more=False)
            count = len(segment.split_blocks) or 1  # the end in a bare stream is a comment, which has no id
            told, entries = entries[:count], entries[count:]
            assert segment.is_end == isinstance(told[-1].event, End)
            assert len(told) == 1 or sum(len(entry.body) for entry in told) <= max_bytes
            assert (
                not entries
                or isinstance(entries[0].event, End)
                or sum(len(entry.body) for entry in [*told, entries[0]]) > max_bytes
            )
            assert (segment.more, segment.position) == (bool(entries), told[-1].position)
            assert segment.is_end or ours.segment(channel, told, max_bytes, more=True).more
            yield ours.segment_blocks(segment, channel, claims)
            claims[channel] = segment.position


class Item(NamedTuple):
    """An event that was published; `is_new` if its ring began anew with it, so that a reset may come in its place."""

    place: Position
    event: Event | None
    is_new: bool


class Judge:
    """The client of one stream, which compares each byte with what the scribe writes."""

    def __init__(self, stream: Stream, starts: Mapping[str, Start], switches: Mapping[str, int]) -> None:
        self.stream = stream
        self.is_lost = False
        opening = stream.open()
        places = stream.subscriber.positions_by_name
        lost = {name for name, start in starts.items() if start != Start()}
        assert {reset.channel for reset in stream.subscriber.resets} == lost
        self._queues = {name: [Item(places[name], None, is_new=True)] if name in lost else [] for name in starts}
        claims = {name: starts[name].position if name in lost else place for name, place in places.items()}
        self._scribe = Scribe(claims, switches)
        first = next(line for line in opening.decode().split("\n") if "{" in line)
        assert opening == self._scribe.opening(json.loads(first[first.index("{") :])["lifetime"], starts)

    def expect(self, channel: str, item: Item) -> None:
        if channel in self._queues:
            self._queues[channel].append(item)

    def hear(self, shared: Shared | None) -> bytes:
        """Read to the end: by `next_bytes_at_hand` where segments are shared and that does, else by `next_bytes`."""
        told = b""
        stream = self.stream
        subscriber = stream.subscriber
        while not self.is_lost and (
            subscriber.resets
            or {*subscriber.positions_by_name.items()} != stream.hub.newest(subscriber.positions_by_name)
        ):
            chunk = stream.next_bytes_at_hand(shared) if shared is not None else None
            chunk = stream.next_bytes() if chunk is None else chunk
            self.is_lost = stream.lost
            for block in chunk.split(b"\n\n")[:-1]:
                self._judge(block + b"\n\n")
            assert not chunk or chunk.endswith(b"\n\n")
            told += chunk
        if self.is_lost:
            assert any(item.is_new for queue in self._queues.values() for item in queue)
        else:
            assert not any(self._queues.values())
        return told

    def _judge(self, block: bytes) -> None:
        lines = block.decode().split("\n")
        (id,) = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
        channel, _, position = id.partition("~")[0].partition("=")
        queue = self._queues[channel]
        if "event: sse.reset" in lines:
            assert not self.stream.is_bare
            told = json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: "))
            index = [written(item.place) for item in queue].index(position)
            assert any(item.is_new for item in queue[: index + 1])
            place = queue[index].place
            del queue[: index + 1]
            assert block == self._scribe.reset(channel, place, told["reason"], told["missed"])
        else:
            item = queue.pop(0)
            assert item.event is not None
            assert not item.is_new
            assert block == self._scribe.event(channel, item.place, item.event)


happenings = st.lists(st.tuples(st.sampled_from(CHANNELS), st.booleans() | st.just(value=False), events), max_size=5)


@every_dialect
@settings(max_examples=20)
@given(
    names=st.permutations(CHANNELS).flatmap(lambda names: st.integers(1, 3).map(lambda count: names[:count])),
    lost=st.dictionaries(st.sampled_from(CHANNELS), st.sampled_from([Start(Position(7, 7)), Start(fault="missing")])),
    rounds=st.lists(happenings, min_size=1, max_size=4),
)
def test_a_stream_alone_and_those_that_share_are_told_byte_for_byte_what_the_protocol_says(
    switches: dict[str, int], names: list[str], lost: dict[str, Start], rounds: list[list[tuple[str, bool, Event]]]
) -> None:
    """Events, and rings that begin anew; a bare stream that would have to tell of that is lost."""
    starts = {name: Start() if switches["bare"] else lost.get(name, Start()) for name in names}
    store = MemoryStore(ring=100, ring_ttl=3600)
    hub = Hub(store, max_subscribers=3)
    told: dict[str, Any] = {"heartbeat": 15, "lifetime": 900, "retry": RETRY, "told": {"replay": 7}, **switches}
    streams = [Stream(hub, starts, **told) for _ in range(3)]
    try:
        alone, one, other = judges = [Judge(stream, starts, switches) for stream in streams]
        for happening in rounds:
            for name, begins_anew, event in happening:
                if begins_anew and name in starts:
                    del store._rings[name]
                store.publish([Publication(name, event)])
                (place,) = store.newest([name])
                assert isinstance(place, Position)
                for judge in judges:
                    judge.expect(name, Item(place, event, begins_anew))
            tops = set(zip(names, store.newest(names), strict=True))
            wait_until(lambda tops=tops: hub.newest(names) == tops, 5, 0.001)
            shared: Shared = {}
            heard = [alone.hear(None), one.hear(shared), other.hear(shared)]
            if not any(begins_anew for _, begins_anew, _ in happening):
                assert heard[0] == heard[1] == heard[2]
            for stream in streams:  # in how many chunks resets are told may differ, and so whose turn it is
                stream.subscriber._turn = 0
            if alone.is_lost:
                assert one.is_lost
                return
            assert (
                one.stream.subscriber.positions_by_name
                == other.stream.subscriber.positions_by_name
                == alone.stream.subscriber.positions_by_name
            )
    finally:
        for stream in streams:
            stream.close()
        hub.close()
        store.close()


# The service's own blocks


def test_claims_are_the_client_s_own_word_until_a_reset_is_heard() -> None:
    places = {name: Position(number, 9) for number, name in enumerate("abc", 1)}
    starts = {"a": Start(Position(1, 1)), "b": Start(Position(7, 7)), "c": Start(fault="missing")}
    unheard = [Reset("b", "unknown", None, places["b"]), Reset("c", "missing", None, places["c"])]
    assert claims_of(places, [], starts) == places
    assert claims_of(places, unheard, starts) == {"a": places["a"], "b": Position(7, 7), "c": None}


@every_dialect
def test_each_dialect_has_its_heartbeat_notice_and_close(
    switches: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    ours = dialect(switches)
    assert ours.notice(None) == b""
    blocks = [ours.beat, ours.notice(0), ours.notice(60), ours.blocks([SourceState("a", "down")], {})]
    blocks += [ours.close("drain"), ours.close("expired", 21), ours.farewell(b"the end")]
    assert blocks == (
        [
            b": heartbeat\n",
            b': auth {"expires":0}\n',
            b': auth {"expires":60}\n',
            b': source {"channel":"a","state":"down","retry":1000}\n',
            b': close {"reason":"drain","retry":1000}\n',
            b': close {"reason":"expired","retry":31500}\n',
            b"the end",
        ]
        if switches["bare"]
        else [
            b"event: sse.heartbeat\ndata:\n\n",
            b'event: sse.auth\ndata: {"expires":0}\n\n',
            b'event: sse.auth\ndata: {"expires":60}\n\n',
            b'event: sse.source\ndata: {"channel":"a","state":"down","retry":1000}\n\n',
            b'retry: 1000\nevent: sse.close\ndata: {"reason":"drain","retry":1000}\n\n',
            b'retry: 31500\nevent: sse.close\ndata: {"reason":"expired","retry":31500}\n\n',
            b"retry: 1000\nthe end",
        ]
    )


def test_one_who_comes_back_waits_a_random_time() -> None:
    ours = dialect(SWITCHES[0])
    for after, low, high in ((None, RETRY / 10, RETRY), (21, 21_000, 31_500)):
        waits = [json.loads(ours.close("expired", after).split(b"data: ")[1])["retry"] for _ in range(100)]
        assert all(low <= wait <= high for wait in waits)
        assert max(waits) - min(waits) > (high - low) / 2


def test_streams_that_are_written_alike_have_one_dialect() -> None:
    assert dialect(SWITCHES[5]) is dialect(SWITCHES[5])
    assert len({dialect(switches) for switches in SWITCHES}) == len(SWITCHES)


def test_a_whole_number_of_seconds_is_told_as_it_was_given() -> None:
    switches = {"delta": False, "typed": False, "bare": False, "cut": False}
    assert [type(dialect_of(seconds, 3000, **switches).heartbeat) for seconds in (17.0, 17)] == [float, int]
