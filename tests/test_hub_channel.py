"""A channel's states, one after another, and the byte counts that its methods return, without thread, lock or store."""

from __future__ import annotations

import pytest

from sse.errors import StoreUnavailable
from sse.event import Entry, Event, Position
from sse.hub.channel import Channel, Channels, subscribers, wake
from sse.ring import Ring
from sse.wire import encode_body
from tests.driven_streams import Listener

NEWEST = Position(7, 70)


def entry(offset: int, data: str = "x") -> Entry:
    return Entry(Position(offset, offset * 10), Event(data))


def begun(name: str = "a", newest: Position = NEWEST) -> Channel:
    channel = Channel(name)
    channel.begin(newest)
    return channel


def positions(channel: Channel) -> list[int]:
    assert channel.ring is not None
    return [item.position.offset for item in channel.ring.after(channel.ring.base) or []]


def held(channels: Channels) -> int:
    return sum(channel.ring.bytes for channel in channels.values() if channel.ring)


# One channel


def test_a_channel_is_idle_from_the_moment_when_its_last_subscriber_leaves() -> None:
    channel, one, other = Channel("a"), Listener(), Listener()
    assert not channel.is_idle(1000, 0), "nobody has left it"
    channel.add(one)
    channel.add(other)
    channel.remove(one, 10)
    channel.remove(one, 11)
    assert (set(channel.subscribers), channel.idle_since) == ({other}, None)
    channel.remove(other, 20)
    assert [channel.is_idle(now, 5) for now in (20, 24.9, 25, 30)] == [False, False, True, True]
    channel.add(one)
    assert not channel.is_idle(1000, 0)


def test_a_new_channel_has_no_ring_and_its_beginning_wakes_all_who_wait() -> None:
    channel, listeners = Channel("a"), [Listener(), Listener()]
    for listener in listeners:
        channel.add(listener)
    assert (channel.ring, channel.listened, channel.unborn, channel.wanted, channel.fault) == (
        None, False, False, False, None
    )  # fmt: skip
    channel.listen()
    assert channel.listened
    assert [one.woken for one in listeners] == [0, 0]
    assert channel.begin(NEWEST) == 0
    assert channel.ring is not None
    assert (channel.ring.newest, channel.ring.base, channel.generation) == (NEWEST, NEWEST, 0)
    assert [one.woken for one in listeners] == [1, 1]


def test_a_channel_without_a_ring_in_the_store_waits_until_one_is_wanted() -> None:
    channel, listener = Channel("a"), Listener()
    channel.add(listener)
    channel.miss()
    assert (channel.unborn, channel.wanted, channel.ring, listener.woken) == (True, False, None, 1)
    channel.want()
    assert (channel.unborn, channel.wanted, listener.woken) == (True, True, 1)
    channel.begin(Position(0, 5), ensured=True)
    assert channel.was_unknown
    assert listener.woken == 2


def test_only_a_ring_that_this_hub_had_ensured_and_still_holds_all_of_was_unknown_before() -> None:
    assert not begun(newest=Position(0, 5)).was_unknown
    channel = Channel("a")
    channel.begin(Position(3, 5), ensured=True)
    assert not channel.was_unknown, "another has published meanwhile"
    channel = Channel("a")
    channel.begin(Position(0, 5), ensured=True)
    channel.append(entry(1))
    assert channel.was_unknown
    channel.shrink()
    assert not channel.was_unknown, "the ring here no longer reaches back"


def test_an_appended_entry_has_its_block_tells_its_bytes_and_wakes_nobody() -> None:
    channel, listener = begun(), Listener()
    channel.add(listener)
    grown = [channel.append(entry(8, "one")), channel.append(entry(9, "two\nlines"))]
    ring = channel.ring
    assert ring is not None
    assert all(more > 0 for more in grown)
    assert sum(grown) == ring.bytes
    assert [item.body for item in ring.after(NEWEST) or []] == [
        encode_body(Event("one")), encode_body(Event("two\nlines"))
    ]  # fmt: skip
    assert listener.woken == 0


def test_an_entry_that_does_not_follow_is_refused_and_nothing_has_changed() -> None:
    channel = begun()
    channel.append(entry(8))
    assert channel.ring is not None
    before = channel.ring.bytes
    with pytest.raises(ValueError, match="does not follow"):
        channel.append(entry(10))
    assert (positions(channel), channel.ring.bytes) == ([8], before)


def test_a_reset_tells_the_loss_of_bytes_and_is_one_step_with_the_new_ring() -> None:
    channel = begun()
    seen: list[tuple[int, str, Position]] = []

    class Looking(Listener):
        def notify(self) -> None:
            assert channel.ring is not None
            seen.append((channel.generation, channel.traits.reset_reason, channel.ring.newest))

    channel.add(Looking())
    grown = channel.append(entry(8))
    assert channel.reset(Position(3, 30), "trimmed") == -grown
    assert channel.reset(Position(4, 40), "unknown") == 0
    assert seen == [(1, "trimmed", Position(3, 30)), (2, "unknown", Position(4, 40))]
    assert positions(channel) == []


def test_a_ring_holds_so_many_bytes_and_the_change_that_is_told_has_what_was_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sse.hub.channel.CHANNEL_BYTES", 10_000)
    channel = begun()
    told = sum(channel.append(entry(number, "x" * 1000)) for number in range(8, 30))
    assert channel.ring is not None
    assert told == channel.ring.bytes <= 10_000
    assert positions(channel)[-1] == 29
    assert positions(channel)[0] > 8


def test_a_channel_that_shrinks_lets_go_of_its_older_half() -> None:
    channel = begun()
    told = sum(channel.append(entry(number)) for number in range(8, 18))
    freed = channel.shrink()
    assert channel.ring is not None
    assert told + freed == channel.ring.bytes
    assert positions(channel) == [13, 14, 15, 16, 17]
    assert Channel("new").shrink() == 0


def test_a_refused_channel_has_its_fault_and_all_who_wait_are_woken() -> None:
    channel, listener, fault = Channel("a"), Listener(), StoreUnavailable("no")
    channel.add(listener)
    channel.refuse(fault)
    assert (channel.fault, channel.ring, listener.woken) == (fault, None, 1)


def test_a_channel_is_its_own_only_one_for_all_who_listen_to_it_alone() -> None:
    channel = Channel("a")
    assert channel.as_tuple == (channel,)
    assert channel.as_tuple is channel.as_tuple


def test_a_channel_has_no_room_for_other_attributes_since_there_are_thousands() -> None:
    with pytest.raises(AttributeError):
        Channel("a").extra = 1  # type: ignore[attr-defined]


# Several channels


def test_a_subscriber_sees_the_new_ring_no_later_than_the_new_life() -> None:
    channel = begun()
    old = channel.ring
    seen: list[bool] = []

    class Spied(Channel):
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            if name == "generation" and value:
                seen.append(self.ring is not old)
            super().__setattr__(name, value)

    channel.__class__ = Spied
    channel.reset(Position(3, 30), "trimmed")
    assert seen == [True]


def test_each_subscriber_of_several_channels_is_woken_once() -> None:
    both, one, nobody = Listener(), Listener(), Listener()
    a, b, c = Channel("a"), Channel("b"), Channel("c")
    for channel in (a, b):
        channel.add(both)
    b.add(one)
    c.add(nobody)
    assert subscribers([a, b]) == {both, one}
    wake([a, b])
    assert (both.woken, one.woken, nobody.woken) == (1, 1, 0)


def register(*names: str) -> Channels:
    channels = Channels()
    for name in names:
        channels[name] = begun(name)
    return channels


def test_the_register_counts_the_bytes_of_all_rings_through_every_change() -> None:
    channels = register("a", "b")
    for number in range(8, 12):
        for channel in channels.values():
            channels.account(channel.append(entry(number)))
    assert channels.bytes == held(channels) > 0
    channels.account(channels["a"].reset(NEWEST, "diverged"))
    assert channels.bytes == held(channels) > 0
    channels.drop(channels["b"])
    assert (channels.bytes, list(channels)) == (0, ["a"])


def test_a_channel_that_is_no_longer_the_one_of_its_name_is_not_dropped_and_frees_nothing() -> None:
    channels = register("a")
    old = channels["a"]
    channels.account(old.append(entry(8)))
    channels.drop(old)
    new = channels["a"] = begun("a")
    channels.account(new.append(entry(8)))
    before = channels.bytes
    channels.drop(old)
    assert (channels["a"], channels.bytes) == (new, before)


def test_all_rings_together_are_bounded_and_as_few_are_shrunk_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    channels = register(*(f"c{number}" for number in range(100)))
    channels["bare"] = Channel("bare")  # without a ring yet
    for channel in list(channels.values())[:-1]:
        for number in range(8, 12):
            channels.account(channel.append(entry(number)))
    monkeypatch.setattr("sse.hub.channel.HUB_BYTES", channels.bytes)
    shrunk: list[Ring] = []
    shrink = Ring.shrink

    def noted(ring: Ring, max_bytes: int) -> None:
        shrunk.append(ring)
        shrink(ring, max_bytes)

    monkeypatch.setattr(Ring, "shrink", noted)
    bound = channels.bytes
    for number in range(12, 40):
        channels.account(channels["c0"].append(entry(number)))
        assert channels.bytes == held(channels) <= bound
    assert 10 < len(shrunk) < 20, "about one for each two entries"
    assert len({id(ring) for ring in shrunk}) == len(shrunk), "each in its turn"


def test_a_ring_that_was_dropped_meanwhile_is_passed_over_when_room_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    channels = register("a", "b", "c")
    for channel in channels.values():
        for number in range(8, 12):
            channels.account(channel.append(entry(number)))
    monkeypatch.setattr("sse.hub.channel.HUB_BYTES", channels.bytes)
    channels.account(channels["a"].append(entry(12)))  # shrinks the last one, and means to go on with the others
    channels.drop(channels["b"])
    monkeypatch.setattr("sse.hub.channel.HUB_BYTES", 1000)
    channels.account(0)
    assert channels.bytes == held(channels) <= 1000


def test_the_subscribers_of_the_register_are_those_of_all_channels() -> None:
    channels, one, other = register("a", "b"), Listener(), Listener()
    channels["a"].add(one)
    channels["b"].add(one)
    channels["b"].add(other)
    assert channels.subscribers() == {one, other}
