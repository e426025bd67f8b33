"""Runs in the hub: their texts, their ends, and everything that a subscriber hears of them."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sse.errors import StoreUnavailable
from sse.event import UNBORN, End, EndReason, Entry, Event, Piece, Position
from sse.hub.channel import Channel, encoded
from sse.hub.hub import Hub
from sse.hub.pieces import joined
from sse.hub.recent_polls import RecentPolls
from sse.hub.subscriber import Delivery, Item, Reset, SourceState, Start, Subscriber
from sse.stores import MemoryStore, Publication, Store, connect
from sse.stores.base import Standing
from sse.stores.leases import LEASE_SECONDS, State, weight
from sse.wire import encode_body, encode_json
from tests.servers import wait_until
from tests.stepped_hub import SteppedHub

RING_TTL: Final = 600
RUN_TTL: Final = 60
TOKEN: Final = "t1"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class DeafStore(MemoryStore):
    """A memory store that announces nothing while it is `mute`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mute = False

    def feed(self) -> Any:
        feed: Any = super().feed()
        announce = feed.announce
        feed.announce = lambda notice: None if self.mute else announce(notice)
        return feed


@dataclasses.dataclass
class World:
    """A store and hubs that share a clock, and runs that are written here."""

    clock: Clock
    store: DeafStore
    hubs: list[SteppedHub] = dataclasses.field(default_factory=list)
    written: dict[str, int] = dataclasses.field(default_factory=dict)

    def hub(self, **options: Any) -> SteppedHub:
        self.hubs.append(SteppedHub(self.store, clock=self.clock, **options))
        return self.hubs[-1]

    def start(self, channel: str = "a", token: str = TOKEN, *, restart: bool = False) -> None:
        assert self.store.leases.start(channel, token, restart=restart) == "started"
        self.written[token] = 0

    def write(self, *values: str | Event, channel: str = "a", token: str = TOKEN) -> list[Position]:
        positions = []
        for value in values:
            event = Piece(value) if isinstance(value, str) else value
            key = f"{token}-{self.written[token]}"
            positions.append(self.store.leases.write(channel, token, event, key=key, written=self.written[token]))
            self.written[token] += weight(event)
        return positions

    def end(self, reason: EndReason = "done", *, channel: str = "a", token: str = TOKEN) -> Position:
        position = self.store.leases.end(channel, reason, token=token)
        assert position is not None
        return position

    def run(self, *values: str | Event, channel: str = "a") -> list[Position]:
        """Begin a run, write these values, and end it; return all positions, the anchor and the end among them."""
        self.start(channel)
        return [self.anchor(channel), *self.write(*values, channel=channel), self.end(channel=channel)]

    def anchor(self, channel: str = "a") -> Position:
        (anchor,) = self.store.before([(channel, 100_000)])
        assert isinstance(anchor, Position)
        return anchor

    def lose_text(self) -> None:
        self.clock.now += RUN_TTL + 1

    def note_questions(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """Return a list to which the channels of each question about their standing are added."""
        asked: list[list[str]] = []
        standing = self.store.standing

        def noted(channels: Sequence[str], *, prolong: bool = False) -> list[Standing | StoreUnavailable]:
            asked.append([*channels])
            return standing(channels, prolong=prolong)

        monkeypatch.setattr(self.store, "standing", noted)
        return asked

    def step(self) -> None:
        for hub in self.hubs:
            hub.step()

    def check(self) -> None:
        """Have all hubs compare their channels with the store."""
        self.clock.now += 6
        self.step()


@pytest.fixture
def world() -> Iterator[World]:
    clock = Clock()
    store = DeafStore(ring=20, ring_ttl=RING_TTL, run_ttl=RUN_TTL, clock=clock)
    world = World(clock, store)
    yield world
    for hub in world.hubs:
        assert hub.subscribers == 0
        assert hub._channels.bytes == sum(channel.ring.bytes for channel in hub._channels.values() if channel.ring)
        hub.feed.close()
    store.close()


def attach(hub: Hub, start: Start | None = None, channel: str = "a") -> Subscriber:
    return hub.attach({channel: start or Start()}, 5)


def heard(taken: Iterable[Item]) -> list[str]:
    """Return what was taken in words: an event's data, the reason of an end, or that of a reset."""
    words = []
    for item in taken:
        if isinstance(item, Reset):
            words.append(f"reset {item.reason}")
        elif isinstance(item, SourceState):
            words.append(f"source {item.state}")
        elif isinstance(item.entry.event, End):
            words.append(f"end {item.entry.event.reason}")
        else:
            words.append(item.entry.event.data)
    return words


def take(subscriber: Subscriber, max_bytes: int = 1 << 20) -> list[str]:
    return heard(subscriber.take(1000, max_bytes))


def take_once(hub: SteppedHub, start: Start | None = None, channel: str = "a") -> list[str]:
    """Return what a newcomer hears, and let it go."""
    subscriber = attach(hub, start, channel)
    words = take(subscriber)
    hub.detach(subscriber)
    return words


def look(hub: SteppedHub, start: Start | None = None, max_bytes: int = 1 << 20, channel: str = "a") -> list[str]:
    found = hub.reader.look({channel: start or Start()}, 1000, max_bytes)
    assert not found.more
    return heard(found.taken)


def states(of: dict[str, State]) -> Callable[[str], State | None]:
    """Return a function that knows these states of sources."""
    return lambda name: of.get(name)


def channel_of(hub: SteppedHub, name: str = "a") -> Channel:
    return hub._channels[name]


# The beginning


def test_a_run_that_begins_where_subscribers_wait_resets_none_of_them(world: World) -> None:
    hub = world.hub()
    waiting = attach(hub)
    world.start()
    world.step()
    assert take(waiting) == []
    world.write("Hel", "lo")
    world.step()
    assert take(waiting) == ["Hello"]
    world.write(" you", Event({"n": 1}), "!")
    world.end()
    world.step()
    assert take(waiting) == [" you", '{"n":1}', "!", "end done"]
    assert (waiting.ended, waiting.has_ended) == ({"a": "done"}, True)
    hub.detach(waiting)


@pytest.mark.parametrize("replay", [0, 1, 5])
def test_a_newcomer_hears_the_text_from_its_beginning_whatever_is_to_be_replayed(world: World, replay: int) -> None:
    hub = world.hub()
    waiting = attach(hub)
    world.start()
    world.write("one ", "two ", "three ")
    world.step()
    for some in (hub, world.hub()):
        assert take_once(some, Start(replay=replay)) == ["one two three "]
        assert look(some, Start(replay=replay)) == ["one two three "]
    assert waiting.take(1000, 1 << 20)[0].entry.position.offset == 3  # type: ignore[union-attr]
    hub.detach(waiting)


def test_a_newcomer_hears_the_whole_text_though_the_announcement_of_the_run_was_lost(world: World) -> None:
    hub = world.hub()
    waiting = attach(hub)
    world.store.mute = True
    world.start()
    world.store.mute = False
    world.write("one ", "two ")
    world.step()
    channel = channel_of(hub)
    assert (channel.run, channel.is_unsure) == (None, True)
    assert take_once(hub) == ["one two "]
    assert channel.run is not None
    assert not channel.is_unsure
    assert take(waiting) == ["one two "]
    hub.detach(waiting)


def test_an_ordinary_channel_is_asked_for_a_run_once_and_never_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = world.hub()
    waiting = attach(hub)
    world.store.publish([Publication("a", Event("x"))])
    world.step()
    asked = world.note_questions(monkeypatch)
    for _ in range(3):
        assert take_once(hub) == []
    assert take(waiting) == ["x"]
    assert asked == [["a"]]
    hub.detach(waiting)


def test_a_client_that_goes_on_from_here_does_not_wait_until_it_is_known_if_there_is_a_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = world.hub()
    waiting = attach(hub)
    world.store.mute = True
    world.start()
    world.store.mute = False
    world.write("one ", "two ", "three ")
    world.step()
    asked = world.note_questions(monkeypatch)
    for place, text in ((world.anchor(), "one two three "), (channel_of(hub).ring.newest, "")):  # type: ignore[union-attr]
        back = hub.attach({"a": Start(place)}, timeout=0)
        assert "".join(take(back)) == text
        hub.detach(back)
    assert (asked, channel_of(hub).is_unsure) == ([], True)
    assert take_once(hub) == ["one two three "], "a newcomer waits for the answer"
    assert asked
    hub.detach(waiting)


# Resets


@pytest.mark.parametrize(
    "start", [Start(fault="invalid"), Start(fault="missing"), Start(Position(2, 7)), Start(Position(99, 7))]
)
def test_every_reset_at_the_start_goes_to_the_anchor(world: World, start: Start) -> None:
    world.start()
    world.write("one ", "two ", "three")
    reason = start.fault or "diverged"
    hub = world.hub()
    subscriber = attach(hub, start)
    anchor = world.anchor()
    assert subscriber.positions_by_name == {"a": anchor}
    first, *_ = taken = subscriber.take(1000, 1 << 20)
    assert first == Reset("a", reason, None, anchor)
    assert heard(taken) == [f"reset {reason}", "one two three"]
    assert look(hub, start) == [f"reset {reason}", "one two three"]
    hub.detach(subscriber)


def test_a_position_of_a_channel_that_was_unborn_is_reset_to_the_anchor(world: World) -> None:
    hub = world.hub()
    assert look(hub) == []
    world.run("one ", "two")
    for words in (look(hub, Start(UNBORN)), take_once(hub, Start(UNBORN))):
        assert words == ["reset diverged", "one two", "end done"]


def test_a_run_that_is_restarted_resets_all_to_its_new_anchor(world: World) -> None:
    hub = world.hub()
    at_the_end, in_the_middle = attach(hub), attach(hub)
    world.start()
    positions = world.write("old ", "text ", "here")
    world.step()
    assert take(at_the_end) == ["old text here"]
    in_the_middle.take(1, 1)
    world.start(token="t2", restart=True)
    world.write("new ", "text", token="t2")
    world.step()
    anchor = world.anchor()
    for subscriber in (at_the_end, in_the_middle):
        first, *rest = subscriber.take(1000, 1 << 20)
        assert first == Reset("a", "diverged", None, anchor)
        assert heard(rest) == ["new text"]
        assert take(subscriber) == []
    assert take_once(hub, Start(positions[1])) == ["reset diverged", "new text"]
    world.write("!", token="t2")
    world.end(token="t2")
    world.step()
    for subscriber in (at_the_end, in_the_middle):
        assert take(subscriber) == ["!", "end done"]
        hub.detach(subscriber)


def test_a_run_that_is_restarted_after_its_end_goes_on_for_those_who_stand_there(world: World) -> None:
    hub = world.hub()
    subscriber = attach(hub)
    *_, end = world.run("old")
    world.step()
    assert take(subscriber) == ["old", "end done"]
    world.store.mute = True
    world.start(token="t2", restart=True)
    world.write("new", token="t2")
    world.store.mute = False
    assert subscriber.has_ended
    world.check()
    assert subscriber.ended == {}
    assert take(subscriber) == ["reset diverged", "new"]
    assert look(hub, Start(end)) == ["reset diverged", "new"]
    hub.detach(subscriber)


def test_an_anchor_that_the_store_has_no_more_is_reset_once_and_the_stream_goes_on(world: World) -> None:
    hub = world.hub()
    subscriber = attach(hub)
    world.start()
    world.write("lost")
    world.step()
    del world.store._rings["a"]  # as an eviction would
    world.end("failed")
    world.step()
    world.check()
    assert take(subscriber) in (
        ["lost", "end failed"],
        ["reset unknown", "end failed"],
        ["reset diverged", "end failed"],
    )
    assert subscriber.has_ended
    for some in (hub, world.hub()):
        newcomer = attach(some)
        words = [word for _ in range(3) for word in take(newcomer)]
        assert words[-1] == "end failed"
        assert words.count("end failed") == 1
        assert newcomer.has_ended
        some.detach(newcomer)
    hub.detach(subscriber)


def test_a_client_from_before_a_loss_hears_of_the_loss_on_the_run_s_channel(world: World) -> None:
    hub = world.hub()
    slow = attach(hub)
    world.store.publish([Publication("a", Event("lost"))])
    world.step()
    world.store._rings.pop("a")
    world.check()
    assert channel_of(hub).generation == 1
    world.run("text")
    world.step()
    assert take(slow) == ["reset unknown", "text", "end done"]
    hub.detach(slow)


# The end


def test_an_end_whose_announcement_was_lost_is_found_by_the_check(world: World) -> None:
    hub = world.hub()
    subscriber = attach(hub)
    world.start()
    world.write("one")
    world.step()
    world.store.mute = True
    end = world.end("stopped")
    world.step()
    assert take(subscriber) == ["one"]
    assert (subscriber.ended, subscriber.has_ended) == ({}, False)
    world.check()
    assert take(subscriber) == ["end stopped"]
    assert subscriber.ended == {"a": "stopped"}
    assert channel_of(hub).end == Entry(
        end, End("a", "stopped"), b'event: sse.end\ndata: {"channel":"a","reason":"stopped"}\n\n'
    )
    hub.detach(subscriber)


def test_a_hub_that_begins_at_the_end_knows_it_from_the_marker(world: World) -> None:
    anchor, one, two, end = world.run("one ", "two")
    hub = world.hub()
    for position, words in (
        (None, ["one two", "end done"]),
        (anchor, ["one two", "end done"]),
        (one, ["two", "end done"]),
        (two, ["end done"]),
        (end, []),
    ):
        assert look(hub, Start(position)) == words
        subscriber = attach(hub, Start(position))
        assert subscriber.has_ended == (position == end)
        assert take(subscriber) == words
        assert subscriber.ended == {"a": "done"}
        hub.detach(subscriber)


def test_a_subscriber_of_several_channels_has_ended_when_all_have(world: World) -> None:
    hub = world.hub()
    subscriber = hub.attach({"a": Start(), "b": Start(), "c": Start()}, 5)
    for channel in "abc":
        assert not subscriber.has_ended
        world.run("x", channel=channel)
        world.step()
        assert sorted(take(subscriber)) == ["end done", "x"]
        assert subscriber.ended == dict.fromkeys("abc"[: "abc".index(channel) + 1], "done")
    assert subscriber.has_ended
    hub.detach(subscriber)


def test_a_transport_may_take_the_end_back(world: World) -> None:
    hub = world.hub()
    subscriber = attach(hub)
    _, one, _ = world.run("one")
    world.step()
    assert take(subscriber) == ["one", "end done"]
    subscriber.positions[0] = one
    assert (subscriber.ended, subscriber.has_ended) == ({}, False)
    assert take(subscriber) == ["end done"]
    hub.detach(subscriber)


@pytest.mark.parametrize("knew_the_text", [False, True])
def test_of_a_text_that_is_gone_all_but_its_readers_hear_a_reset_and_the_end(world: World, knew_the_text: bool) -> None:
    anchor, one, two, end = world.run("one ", "two")
    hub = world.hub()
    waiting = None
    if knew_the_text:
        waiting = attach(hub)
        assert take(waiting) == ["one two", "end done"]
    world.lose_text()
    world.step()
    lost = ["reset trimmed", "end done"]
    for start, words in (
        (Start(), lost),
        (Start(replay=5), lost),
        (Start(anchor), lost),
        (Start(one), lost),
        (Start(Position(2, 7)), lost),
        (Start(UNBORN), lost),
        (Start(fault="invalid"), ["reset invalid", "end done"]),
        (Start(two), ["end done"]),
        (Start(end), []),
    ):
        assert look(hub, start) == words, start
        subscriber = attach(hub, start)
        taken = subscriber.take(1000, 1 << 20)
        assert heard(taken) == words, start
        assert all(item == Reset("a", item.reason, None, two) for item in taken if isinstance(item, Reset))
        assert all(item.entry.position == end for item in taken if isinstance(item, Delivery))
        assert subscriber.has_ended
        hub.detach(subscriber)
    assert channel_of(hub).is_textless
    if waiting:
        assert take(waiting) == []
        assert waiting.has_ended
        hub.detach(waiting)
    assert world.store.standing(["a"])[0].newest is None, "nobody ensured a ring"  # type: ignore[union-attr]


def test_a_reader_in_the_middle_of_a_text_that_goes_is_reset_and_hears_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse.hub.channel.CHANNEL_BYTES", 1000)
    hub = world.hub()
    slow = attach(hub)
    world.run(*[Event(f"{number} " * 100) for number in range(5)])
    world.step()
    assert len(slow.take(1, 1 << 20)) == 1
    world.lose_text()
    world.step()
    assert take(slow) == ["reset trimmed", "end done"]
    assert slow.has_ended
    hub.detach(slow)


def test_a_marker_that_is_gone_leaves_an_ordinary_channel(world: World) -> None:
    *_, end = world.run("one")
    hub = world.hub()
    subscriber = attach(hub, Start(end))
    assert subscriber.has_ended
    world.lose_text()
    world.step()
    world.clock.now += RING_TTL + RUN_TTL + 1
    world.step()
    assert channel_of(hub).run is None
    assert take(subscriber) == ["reset unknown"]
    assert subscriber.ended == {}
    world.store.publish([Publication("a", Event("x"))])
    world.step()
    assert take(subscriber) == ["x"]
    hub.detach(subscriber)


# Runs that nobody holds


def test_a_run_that_nobody_holds_is_told_every_two_seconds_while_somebody_listens(world: World) -> None:
    hub, other = world.hub(), world.hub()
    told: list[str] = []
    hub.orphaned = told.append
    other.orphaned = lambda name: told.append(f"other {name}")
    subscriber = attach(hub)
    other.detach(attach(other))
    world.start()
    world.step()
    assert told == []
    world.clock.now += LEASE_SECONDS + 0.1
    for _ in range(6):
        world.clock.now += 1
        world.step()
    assert 3 <= len(told) <= 5
    assert set(told) == {"a"}
    world.store.leases.end("a", "lost")
    world.step()
    told.clear()
    world.check()
    assert told == []
    assert take(subscriber) == ["end lost"]
    hub.detach(subscriber)


def test_a_run_that_is_held_is_not_told(world: World) -> None:
    hub = world.hub()
    told: list[str] = []
    hub.orphaned = told.append
    subscriber = attach(hub)
    world.start()
    for _ in range(10):
        world.clock.now += 2
        assert world.store.leases.renew([("a", TOKEN)]) == [True]
        world.step()
    assert told == []
    hub.detach(subscriber)


def test_a_poll_that_does_not_wait_tells_of_a_run_that_nobody_holds(world: World) -> None:
    hub = world.hub()
    told: list[str] = []
    hub.orphaned = told.append
    world.start()
    world.write("one")
    assert look(hub) == ["one"]
    assert told == []
    world.clock.now += LEASE_SECONDS + 0.1
    assert look(hub) == ["one"]
    assert told == ["a"]
    world.store.leases.end("a", "lost")
    assert look(hub) == ["one", "end lost"]
    assert told == ["a"]


def test_channels_of_live_runs_are_asked_about_more_often_and_others_are_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = world.hub()
    subscriber = hub.attach({"a": Start(), "b": Start()}, 5)
    world.start()
    world.step()
    asked = world.note_questions(monkeypatch)
    world.clock.now += 2.3
    world.step()
    assert asked == [["a"]]
    world.end()
    world.step()
    del asked[:]
    world.clock.now += 2.3
    world.step()
    assert asked == [] or asked == [["a", "b"]] or asked == [["b", "a"]]
    hub.detach(subscriber)


# Pieces


def test_600_pieces_that_a_subscriber_has_missed_come_as_one_and_only_once_in_the_segment(world: World) -> None:
    hub = world.hub()
    at_hand, late = attach(hub), attach(hub)
    world.start()
    positions = world.write(*[f"{number} " for number in range(600)])
    world.step()
    text = "".join(f"{number} " for number in range(600))
    (entry,) = at_hand.at_hand(0, 16_384) or []
    assert entry == encoded(Entry(positions[-1], Piece(text)))
    (delivery,) = late.take(1000, 16_384)
    assert isinstance(delivery, Delivery)
    assert delivery == Delivery("a", entry)
    assert type(delivery.entry.event) is Piece
    (other,) = hub.reader.look({"a": Start()}, 1000, 16_384).taken
    assert other == delivery
    with_text = channel_of(hub).ring
    assert with_text is not None
    assert len(with_text.after(with_text.base) or []) == 600, "the ring keeps single pieces"
    for subscriber in (at_hand, late):
        hub.detach(subscriber)


@pytest.mark.parametrize("most", [1, 64, 1000])
def test_a_joined_piece_is_bounded_by_the_largest_event(world: World, most: int) -> None:
    hub = world.hub(max_event_bytes=most)
    world.start()
    world.write(*["é" * 10] * 100)
    subscriber = attach(hub)
    taken = [item.entry.event.data for item in subscriber.take(1000, 1 << 20) if isinstance(item, Delivery)]
    assert "".join(taken) == "é" * 1000
    assert {len(text.encode()) for text in taken[:-1]} == {max(most // 20, 1) * 20}
    hub.detach(subscriber)


@pytest.mark.parametrize("max_bytes", [300, 1000, 16_384])
def test_joined_pieces_keep_within_the_bytes_of_one_turn_or_answer(world: World, max_bytes: int) -> None:
    hub = world.hub()
    world.start()
    world.write(*['"\n\\x' * 5] * 200)
    subscriber = attach(hub)
    text = ""
    while taken := subscriber.take(1000, max_bytes):
        bodies = [item.entry.body for item in taken if isinstance(item, Delivery)]
        assert sum(map(len, bodies)) <= max_bytes
        text += "".join(heard(taken))
    assert text == '"\n\\x' * 1000
    hub.detach(subscriber)


def test_a_text_larger_than_the_hub_s_ring_is_read_from_the_store_by_pages_and_joined(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse.hub.channel.CHANNEL_BYTES", 20_000)
    hub = world.hub()
    waiting = attach(hub)
    world.start()
    pieces = [f"{number:09} " for number in range(3500)]
    world.write(*pieces)
    world.end()
    world.step()
    ring = channel_of(hub).ring
    assert ring is not None
    assert ring.base.offset > 3000
    for start in (Start(), Start(replay=3)):
        newcomer = attach(hub, start)
        blocks = 0
        text = ""
        while words := take(newcomer, 16_384):
            blocks += len(words)
            text += "".join(words)
        assert text == "".join(pieces) + "end done"
        assert blocks <= 35_000 // 16_384 + 3, "the last one is the end"
        hub.detach(newcomer)
    assert "".join(take(waiting)) == "".join(pieces) + "end done"
    hub.detach(waiting)


def test_no_piece_is_joined_over_an_event_or_with_the_end(world: World) -> None:
    world.run("a", "b", Event("an event", "text"), "c", "d", Event("x"), Event("y"), "e")
    words = ["ab", "an event", "cd", "x", "y", "e", "end done"]
    hub = world.hub()
    assert look(hub) == take_once(hub) == words


def test_a_look_at_runs_and_ordinary_channels_takes_each_in_its_way(world: World) -> None:
    world.store.publish([Publication("b", Event(str(number))) for number in range(5)])
    (before,) = world.store.before([("b", 3)])
    assert isinstance(before, Position)
    anchor, *_, end = world.run(*["x"] * 300)
    found = world.hub().reader.look({"a": Start(), "b": Start(before), "c": Start()}, 1000, 1 << 20)
    assert heard(found.taken) == ["x" * 300, "end done", "2", "3", "4"]
    assert found.ended == {"a": "done"}
    assert (found.begins, found.positions["a"]) == ({"a": anchor, "b": before, "c": UNBORN}, end)


kinds = st.lists(st.one_of(st.text('ab\n"é', min_size=1, max_size=9), st.none()), max_size=60)


def entries_of(values: Iterable[str | None]) -> list[Entry]:
    """Return entries: a piece for a text, and an event for None."""
    return [
        Entry(Position(number, number), Event("event") if value is None else Piece(value))
        for number, value in enumerate(values, 1)
    ]


@given(kinds, st.integers(-5, 60))
def test_joined_pieces_are_the_same_text_in_order_and_bounded(values: list[str | None], most: int) -> None:
    entries = entries_of(values)
    whole = list(joined(entries, most))
    assert [entry.event for entry in whole if type(entry.event) is Event] == [Event("event")] * values.count(None)
    assert parts(whole) == parts(entries)
    positions = [entry.position for entry in entries]
    assert [entry.position for entry in whole] == sorted({entry.position for entry in whole})
    singles = {entry.position: entry for entry in entries}
    for before, entry in zip([Entry(Position(0, 0), Event("")), *whole], whole, strict=False):
        between = positions[before.position.offset : entry.position.offset]
        assert entry.event.data == "".join(singles[position].event.data for position in between)
        if len(between) > 1:
            in_json, in_block = len(encode_json(entry.event.data).encode()) - 2, len(encode_body(entry.event)) - 20
            assert max(in_json, in_block) <= most
        else:
            assert entry is singles[entry.position], "a single piece keeps its body"
    for entry, following in pairwise(whole):
        if isinstance(entry.event, Piece) and isinstance(following.event, Piece):
            first = singles[positions[entry.position.offset]]
            together = entry.event.data + first.event.data
            size = len(encode_json(together).encode()) + 6 * together.count("\n")
            assert size - 2 > most, "as few as the bound allows"


def parts(entries: Iterable[Entry]) -> str:
    return "".join("|" if type(entry.event) is Event else entry.event.data for entry in entries)


class Reader:
    """A client that appends, and comes back from any position that it has had."""

    def __init__(self, start: Position | None) -> None:
        self.position = start
        self.texts: dict[Position | None, str] = {start: ""}
        self.subscriber: Subscriber | None = None
        self.ended = False

    def hear(self, taken: Iterable[Item]) -> None:
        text = self.texts[self.position]
        for item in taken:
            if self.ended:  # only a run that has begun again, in a ring of its own, may follow
                assert isinstance(item, Reset)
                assert item.position not in self.texts
                self.ended = False
            if isinstance(item, Reset):
                text = ""
                self.position = item.position
            elif isinstance(item, Delivery):
                assert self.position is None or item.entry.position.offset > self.position.offset
                event = item.entry.event
                self.ended = isinstance(event, End)
                text += "" if self.ended else event.data if isinstance(event, Piece) else "|"
                self.position = item.entry.position
            self.texts[self.position] = text


steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "event", "end", "restart", "take", "take", "hand", "resume", "look", "new"]),
        st.integers(0, 200),
    ),
    max_size=60,
)


# The old end is heard after the restart.
@example([("write", 0), ("end", 0), ("take", 0), ("restart", 0), ("take", 0)], 1 << 20, 8)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(steps, st.sampled_from([400, 2000, 1 << 20]), st.sampled_from([1, 8, 65_536]))
def test_whatever_is_written_cut_and_resumed_the_text_is_the_text(
    steps: list[tuple[str, int]], ring_bytes: int, max_piece: int
) -> None:
    clock = Clock()
    world = World(clock, DeafStore(ring=20, ring_ttl=RING_TTL, run_ttl=RUN_TTL, clock=clock))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sse.hub.channel.CHANNEL_BYTES", ring_bytes)
        hub = world.hub(max_event_bytes=max_piece)
        readers = [Reader(None)]
        token, text, live = "t0", "", True
        world.start(token=token)

        def subscriber_of(reader: Reader) -> Subscriber:
            if reader.subscriber is None:
                reader.subscriber = attach(hub, Start(reader.position))
            return reader.subscriber

        def leave(reader: Reader) -> None:
            if reader.subscriber is not None:
                hub.detach(reader.subscriber)
            reader.subscriber = None

        for step, number in steps:
            reader = readers[number % len(readers)]
            if step == "write" and live:
                written = chr(97 + number % 26) * (number % 7 + 1) + "\n" * (number % 3 == 0)
                world.write(written, token=token)
                text += written
            elif step == "event" and live:
                world.write(Event("an event"), token=token)
                text += "|"
            elif step == "end" and live and number % 3 == 0:
                world.end(token=token)
                live = False
            elif step == "restart" and number % 4 == 0:
                token, text, live = f"t{clock.now}-{number}", "", True
                clock.now += 0.001
                world.start(token=token, restart=True)
                for other in readers:
                    other.ended = False
            elif step == "take":
                reader.hear(subscriber_of(reader).take(number % 5 + 1, [1, 30, 200, 1 << 16][number % 4]))
            elif step == "hand" and not (taker := subscriber_of(reader)).resets:
                entries = taker.at_hand(0, [1, 200, 1 << 16][number % 3])
                some = (entries or [])[: number % 3 + 1]
                if some:
                    taker.positions[0] = some[-1].position
                reader.hear(Delivery("a", entry) for entry in some)
            elif step == "resume":
                leave(reader)
                reader.position = list(reader.texts)[number % len(reader.texts)]
                reader.ended = False
            elif step == "look":
                leave(reader)
                found = hub.reader.look({"a": Start(reader.position)}, number % 5 + 1, [1, 200, 1 << 16][number % 3])
                reader.hear(item for item in found.taken)
                assert found.more or found.positions["a"] == reader.position or not found.taken
            elif step == "new":
                readers.append(Reader(None))
            if number % 2:
                world.step()
        world.step()
        for reader in readers:
            for _ in range(1000):
                taken = subscriber_of(reader).take(1000, 1 << 16)
                if not taken:
                    break
                reader.hear(taken)
            assert reader.texts[reader.position] == text
            assert subscriber_of(reader).has_ended == (not live)
            leave(reader)
        world.check()
        hub.feed.close()
        world.store.close()


# Sources, and who listens


def test_a_source_s_state_is_known_from_the_attach_and_each_change_is_told_once(world: World) -> None:
    hub = world.hub()
    hub.began = states({"a": "up"})
    subscriber = hub.attach({"b": Start(), "a": Start()}, 5)
    assert (subscriber.sources, subscriber.told) == ({"a": "up"}, (None, "up"))
    assert hub.sources(["a", "b", "c"]) == {"a": "up"}
    assert take(subscriber) == []
    world.store.publish([Publication("b", Event("x"))])
    world.step()
    subscriber.clear_signal()
    for _ in range(2):
        hub.set_source("a", "down")
    assert subscriber.wait(0)
    assert subscriber.has_source_change
    assert subscriber.take(1000, 1 << 16)[0] == SourceState("a", "down")
    assert (subscriber.sources, subscriber.has_source_change) == ({"a": "down"}, False)
    assert take(subscriber) == []
    subscriber.clear_signal()
    hub.set_source("a", "down")
    hub.set_source("nobody/is/here", "up")
    assert not subscriber.wait(0)
    hub.set_source("b", "up")
    hub.set_source("a", "up")
    assert take(subscriber) == ["source up", "source up"]
    hub.detach(subscriber)


def test_subscribers_merge_only_if_both_know_the_same_states_and_a_twin_knows_them_too(world: World) -> None:
    hub = world.hub()
    hub.began = states({"a": "up"})
    one, other = attach(hub), attach(hub)
    hub.set_source("a", "down")
    assert take(one) == ["source down"]
    assert not hub.merge(one, other)
    twins = hub.split(one), hub.split(other)
    assert [take(twin) for twin in twins] == [[], ["source down"]]
    assert take(other) == ["source down"]
    newcomer = attach(hub)
    assert take(newcomer) == []
    assert hub.merge(one, other)
    assert hub.merge(one, newcomer)
    for subscriber in (one, *twins):
        hub.detach(subscriber)
    hub._shared_seats = 0


def test_without_sources_nobody_knows_a_state_and_nothing_is_kept_for_it(world: World) -> None:
    hub = world.hub()
    subscriber = attach(hub)
    assert (subscriber.told, subscriber.sources, subscriber.has_source_change) == (None, {}, False)
    hub.detach(subscriber, polled=True)
    assert not hub.listens("a")


def test_a_channel_begins_with_its_first_subscriber_here_and_again_after_the_last_has_left(world: World) -> None:
    hub = world.hub()
    begun: list[str] = []

    def began(name: str) -> State | None:
        assert hub.lock.locked()
        begun.append(name)
        return None

    hub.began = began
    one, other = attach(hub), attach(hub)
    twin = hub.split(one)
    assert begun == ["a"]
    for subscriber in (one, other, twin):
        hub.detach(subscriber)
    hub.detach(attach(hub))
    assert begun == ["a", "a"]


def test_a_thread_that_hears_of_a_first_subscriber_sees_that_it_listens(world: World) -> None:
    hub = world.hub()
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(hub.listens("a")))

    def began(name: str) -> State:
        assert name == "a"
        thread.start()
        thread.join(0.5)  # the hub has not entered the subscriber yet
        return "up"

    hub.began = began
    subscriber = hub.attach({"a": Start()}, 5)
    thread.join(5)
    assert seen == [True]
    hub.detach(subscriber)


@pytest.mark.parametrize("polled", [False, True])
def test_a_source_s_channel_is_listened_to_for_ten_seconds_after_a_poll_and_not_after_a_stream(
    world: World, polled: bool
) -> None:
    hub = world.hub()
    hub.began = states({"a": "up"})
    assert not hub.listens("a")
    subscriber = hub.attach({"a": Start(), "b": Start()}, 5)
    assert hub.listens("a")
    assert hub.listens("b")
    hub.detach(subscriber, polled=polled)
    hub.detach(subscriber, polled=polled)
    assert hub.listens("a") == polled
    assert not hub.listens("b"), "it has no source"
    world.clock.now += 9.9
    assert hub.listens("a") == polled
    world.clock.now += 0.2
    assert not hub.listens("a")


def test_polls_that_end_are_forgotten_by_the_lot() -> None:
    clock = Clock()
    polls = RecentPolls(clock)
    for second in range(100):
        polls.note([f"c{second}", "always"])
        clock.now += 1
    assert [second for second in range(100) if f"c{second}" in polls] == list(range(91, 100))
    assert "always" in polls
    assert len(polls._new) + len(polls._old) <= 23


def test_a_newcomer_gets_a_source_s_newest_value_if_it_is_fresh_and_misses_none_that_comes_meanwhile(
    world: World,
) -> None:
    hub = world.hub()
    hub.began = states({"a": "up", "b": "up"})
    waiting = hub.attach({"a": Start(), "b": Start(), "c": Start()}, 5)
    for channel in "abc":
        world.store.publish([Publication(channel, Event(f"{channel}{number}")) for number in range(3)])
    world.step()
    asked: list[list[str]] = []

    def is_fresh(names: Iterable[str]) -> list[str]:
        assert not hub.lock.locked()
        asked.append([*names])
        world.store.publish([Publication("b", Event("meanwhile"))])
        world.step()
        return ["a"]

    hub.is_fresh = is_fresh
    newcomer = hub.attach({"a": Start(), "b": Start(), "c": Start()}, 5)
    assert asked == [["a", "b"]]
    assert sorted(take(newcomer)) == ["a2", "meanwhile"]
    again = hub.attach({"a": Start(newcomer.positions[0]), "b": Start(replay=2), "c": Start(fault="invalid")}, 5)
    assert len(asked) == 1, "only for starts that ask for nothing"
    assert take(again) == ["reset invalid", "b2", "meanwhile"]
    for subscriber in (waiting, newcomer, again):
        hub.detach(subscriber)


def test_a_run_s_text_is_heard_from_its_beginning_although_a_source_s_rule_matches_its_channel(world: World) -> None:
    hub = world.hub()
    hub.began = states({"a": "up"})
    hub.is_fresh = lambda names: ()
    waiting = hub.attach({"a": Start()}, 5)
    world.run("one ", Event("x"), "two")
    world.step()
    late = hub.attach({"a": Start()}, 5)
    assert take(waiting) == take(late) == ["one ", "x", "two", "end done"]
    hub.detach(late)
    hub.detach(waiting)
    world.lose_text()
    other = world.hub()
    other.began, other.is_fresh = hub.began, hub.is_fresh
    later = other.attach({"a": Start()}, 5)
    assert take(later) == ["reset trimmed", "end done"]
    other.detach(later)


def test_almost_all_channels_share_their_traits() -> None:
    channel = Channel("a")
    other = Channel("b")
    assert (channel.run, channel.end, channel.source) == (None, None, None)
    assert channel.traits is other.traits
    for some in (channel, other):
        some.begin(Position(5, 5))
        some.reset(Position(7, 7), "diverged")
    assert channel.traits is other.traits
    channel.note_source("up")
    assert channel.source == "up"
    channel.note_source(None)
    assert channel.traits is other.traits


# The same with the hub's own thread, over both stores


class Live:
    """Hubs with their threads over one store, and a run on channel `a`."""

    def __init__(self, url: str | None) -> None:
        self.url = url
        self.memory = None if url else self.connect()
        self.store = self.memory or self.connect()
        self.hubs: list[Hub] = []
        self.written = 0

    def connect(self) -> Store:
        return connect(self.url, ring=20, ring_ttl=RING_TTL, run_ttl=RUN_TTL)

    def hub(self) -> Hub:
        self.hubs.append(Hub(self.memory or self.connect(), max_subscribers=100))
        return self.hubs[-1]

    def start(self, token: str = TOKEN, *, restart: bool = False) -> Position:
        assert self.store.leases.start("a", token, restart=restart) == "started"
        self.written = 0
        (anchor,) = self.store.before([("a", 100_000)])
        assert isinstance(anchor, Position)
        return anchor

    def write(self, *values: str, token: str = TOKEN) -> list[Position]:
        positions = []
        for value in values:
            key = f"{token}-{self.written}"
            positions.append(self.store.leases.write("a", token, Piece(value), key=key, written=self.written))
            self.written += weight(Piece(value))
        return positions

    def lose_ring(self) -> None:
        if isinstance(self.store, MemoryStore):
            del self.store._rings["a"]
        else:
            with redis.Redis.from_url(self.url) as client:  # type: ignore[arg-type]
                assert client.delete("sse:{a}") == 1

    def close(self) -> None:
        for hub in self.hubs:
            assert hub.subscribers == 0
            hub.close()
        for store in {id(store): store for store in (self.store, *(hub.reader._store for hub in self.hubs))}.values():
            store.close()


@pytest.fixture
def live(store_url: str | None) -> Iterator[Live]:
    live = Live(store_url)
    yield live
    live.close()


def hears(subscriber: Subscriber, last: str, seconds: float = 8) -> list[str]:
    """Take until the last word is heard; return all words, with consecutive ones that are no notices joined."""
    words: list[str] = []
    deadline = time.monotonic() + seconds
    while not words or words[-1] != last:
        assert subscriber.wait(max(deadline - time.monotonic(), 0)), words
        for word in take(subscriber, 16_384):
            is_notice = word.startswith(("reset ", "end "))
            if words and not is_notice and not words[-1].startswith(("reset ", "end ")):
                words[-1] += word
            else:
                words.append(word)
    return words


def test_over_both_stores_waiting_and_late_subscribers_hear_the_whole_text_and_its_end(live: Live) -> None:
    here, elsewhere = live.hub(), live.hub()
    subscribers = [(hub, attach(hub)) for hub in (here, elsewhere)]
    live.start()
    live.write("one ", "two ")
    subscribers += [(hub, attach(hub, Start(replay=1))) for hub in (here, elsewhere, live.hub())]
    live.write("three ", "four")
    assert live.store.leases.end("a", "done", token=TOKEN)
    subscribers += [(hub, attach(hub)) for hub in (here, elsewhere, live.hub())]
    for hub, subscriber in subscribers:
        assert hears(subscriber, "end done") == ["one two three four", "end done"]
        wait_until(lambda subscriber=subscriber: subscriber.has_ended, 5)  # type: ignore[misc]
        hub.detach(subscriber)


def test_over_both_stores_600_pieces_come_in_as_few_blocks_as_16_kb_allow(live: Live) -> None:
    live.start()
    live.write(*[f"{number:08} \n" for number in range(600)])
    hub = live.hub()
    for _ in range(2):
        subscriber = attach(hub)
        blocks = [item for item in subscriber.take(1000, 16_384) if isinstance(item, Delivery)]
        assert "".join(item.entry.event.data for item in blocks) == "".join(f"{number:08} \n" for number in range(600))
        assert len(blocks) == 1
        hub.detach(subscriber)
    (found,) = live.hub().reader.look({"a": Start()}, 1000, 16_384).taken
    assert found == blocks[0]


def test_over_both_stores_a_client_goes_on_from_every_position(live: Live) -> None:
    anchor = live.start()
    pieces = [f"{number}," for number in range(40)]
    positions = [anchor, *live.write(*pieces)]
    assert live.store.leases.end("a", "failed", token=TOKEN)
    for hub in (live.hub(), live.hub()):
        for index, position in enumerate(positions):
            subscriber = hub.attach({"a": Start(position)}, 5)
            text = "".join(pieces[index:])
            assert hears(subscriber, "end failed") == ([text] if text else []) + ["end failed"]
            hub.detach(subscriber)


def test_over_both_stores_a_restart_resets_all_to_the_new_anchor(live: Live) -> None:
    hub, other = live.hub(), live.hub()
    live.start()
    subscribers = [some.attach({"a": Start()}, 5) for some in (hub, other)]
    (position,) = live.write("old")
    for subscriber in subscribers:
        assert hears(subscriber, "old") == ["old"]
    anchor = live.start("t2", restart=True)
    live.write("new ", "text", token="t2")
    assert live.store.leases.end("a", "stopped")
    for subscriber in subscribers:
        assert hears(subscriber, "end stopped") == ["reset diverged", "new text", "end stopped"]
    newcomer = other.attach({"a": Start(position)}, 5)
    assert newcomer.positions_by_name == {"a": anchor}
    assert hears(newcomer, "end stopped") == ["reset diverged", "new text", "end stopped"]
    for some, subscriber in zip((hub, other, other), (*subscribers, newcomer), strict=True):
        some.detach(subscriber)


def test_over_both_stores_of_a_text_that_is_gone_only_the_end_is_heard(live: Live) -> None:
    live.start()
    one, two = live.write("one ", "two")
    end = live.store.leases.end("a", "done", token=TOKEN)
    live.lose_ring()
    for hub in (live.hub(), live.hub()):
        for start, words in (
            (Start(), ["reset trimmed", "end done"]),
            (Start(one), ["reset trimmed", "end done"]),
            (Start(two), ["end done"]),
        ):
            assert heard(hub.reader.look({"a": start}, 1000, 1 << 16).taken) == words
            subscriber = hub.attach({"a": start}, 5)
            assert hears(subscriber, "end done") == words
            hub.detach(subscriber)
        subscriber = hub.attach({"a": Start(end)}, 5)
        assert subscriber.has_ended
        hub.detach(subscriber)
    assert live.store.newest(["a"]) == [None]


def test_over_both_stores_a_run_that_nobody_holds_is_told_within_seconds(live: Live) -> None:
    hub = live.hub()
    told: list[str] = []
    hub.orphaned = told.append
    subscriber = hub.attach({"a": Start()}, 5)
    live.start()
    live.write("one")
    assert hears(subscriber, "one") == ["one"]
    if isinstance(live.store, MemoryStore):
        live.store._leases._leases.clear()
    else:
        with redis.Redis.from_url(live.url) as client:  # type: ignore[arg-type]
            assert client.delete("sse:{a}:lease") == 1
    wait_until(lambda: told, 3)
    assert live.store.leases.end("a", "lost")
    assert hears(subscriber, "end lost") == ["end lost"]
    assert set(told) == {"a"}
    hub.detach(subscriber)


def test_nobody_misses_the_beginning_of_a_text_whose_announcement_redis_could_not_deliver(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        live = Live(redis_url)
        hub = live.hub()
        waiting = hub.attach({"a": Start()}, 5)
        wait_until(lambda: client.pubsub_numsub("sse:0:{a}")[0][1] or client.pubsub_channels("*"), 5)
        client.client_kill_filter(_type="pubsub")
        live.start()
        live.write("one ", "two ")
        newcomers = [hub.attach({"a": Start()}, 5) for _ in range(3)]
        live.write("three")
        for subscriber in (waiting, *newcomers):
            words: list[str] = []
            deadline = time.monotonic() + 8
            while "".join(words) != "one two three":
                assert subscriber.wait(max(deadline - time.monotonic(), 0)), words
                words += take(subscriber)
            hub.detach(subscriber)
        live.close()
