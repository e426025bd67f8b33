"""Runs in the hub: their texts, their ends, and everything that a subscriber hears of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pytest

from sse.event import UNBORN, End, EndReason, Entry, Event, Piece, Position
from sse.hub.channel import Channel
from sse.hub.subscriber import Delivery, Item, Reset, SourceState, Start, Subscriber
from sse.stores import MemoryStore, Publication
from sse.stores.leases import LEASE_SECONDS, weight
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
        (anchor,) = self.store.before([(channel, 1000)])
        assert isinstance(anchor, Position)
        return [anchor, *self.write(*values, channel=channel), self.end(channel=channel)]

    def lose_text(self) -> None:
        self.clock.now += RUN_TTL + 1

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


def attach(hub: SteppedHub, start: Start | None = None, channel: str = "a") -> Subscriber:
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
    asked: list[list[str]] = []
    standing = world.store.standing
    monkeypatch.setattr(
        world.store, "standing", lambda names, **options: asked.append([*names]) or standing(names, **options)
    )
    for _ in range(3):
        assert take_once(hub) == []
    assert take(waiting) == ["x"]
    assert asked == [["a"]]
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
    (anchor,) = world.store.before([("a", 1000)])
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
    (anchor,) = world.store.before([("a", 1000)])
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
    assert not subscriber.has_ended
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
    assert not subscriber.has_ended
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
    assert 2 <= len(told) <= 4
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
    asked: list[list[str]] = []
    standing = world.store.standing
    monkeypatch.setattr(
        world.store, "standing", lambda names, **options: asked.append([*names]) or standing(names, **options)
    )
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
