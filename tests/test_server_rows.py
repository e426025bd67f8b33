"""Each line of the tables at the head of sse/server/rows.py, with lists as sockets and a clock that the tests set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sse.errors import StoreUnavailable
from sse.hub.subscriber import Start
from sse.server import quiet
from sse.server import rows as module
from sse.server.head import Head, Rest
from sse.server.row import Row
from sse.server.rows import Polls, Sending, Streams
from sse.transports.stream import Stream
from sse.wire import HEARTBEAT
from tests.fake_sockets import CLOSED, World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    try:
        yield world
        for fd in list(world.rows.row_of):
            world.rows.end(fd)
        world.answer()
        assert world.hub.subscribers == 0, "each connection gives back its place, once"
        assert not world.rows.agenda.to_check or not any(fd in world.rows.row_of for fd in world.rows.agenda.to_check)
        assert not world.interest
    finally:
        world.end()


@contextmanager
def turns_of(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """Make a push pause after so many connections."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "_TURN", number)
        yield


# A push


def test_a_push_is_one_write_for_each_connection_of_a_row(world: World) -> None:
    fds = world.streams(5)
    world.publish()
    world.round()
    assert [len(world.got[fd]) for fd in fds] == [1] * 5
    assert len({world.told(fd) for fd in fds}) == 1
    assert world.events(fds[0]) == ["news"]
    assert world.hub.subscribers == 5


def test_a_chunked_stream_gets_a_chunk_and_stands_in_a_row_of_its_own(world: World) -> None:
    plain, chunked = world.stream(), world.stream(chunked=True)
    world.publish()
    world.round()
    assert world.row(plain) is not world.row(chunked)
    size, _, rest = world.told(chunked).partition(b"\r\n")
    assert rest == world.told(plain) + b"\r\n"
    assert int(size, 16) == len(world.told(plain))


def test_rows_at_the_same_position_become_one(world: World) -> None:
    first, second = world.stream(), world.stream()
    assert world.rows_now == 2
    world.round()
    assert world.rows_now == 1
    third = world.stream()
    world.publish()
    world.round()  # the newcomer, which no other row can join yet, is served first
    assert world.rows_now == 1
    assert world.events(first) == world.events(second) == world.events(third) == ["news"]


def test_a_quiet_stream_is_told_a_heartbeat_when_it_is_due(world: World) -> None:
    fds = world.streams(2)
    world.pass_by(14.5)
    assert not world.got
    world.pass_by(1)
    assert [world.told(fd) for fd in fds] == [HEARTBEAT] * 2


# A client that takes no more bytes


def test_a_connection_that_takes_a_part_stands_apart_and_gets_each_byte_once(world: World) -> None:
    slow, *others = world.streams(3)
    world.room[slow] = 10
    world.publish("one")
    world.round()
    assert world.row(slow) is not world.row(others[0])
    assert world.interest[slow] == "input or room"
    world.publish("two")
    world.round()
    assert world.events(others[0]) == ["one", "two"]
    assert len(world.told(slow)) == 10
    del world.room[slow]
    world.row(slow).on_ready(slow)
    assert world.interest[slow] == "input"
    world.round()
    assert world.told(slow) == world.told(others[0])
    world.publish("three")
    world.round()
    assert world.row(slow) is world.row(others[0])
    assert world.events(slow) == ["one", "two", "three"]


def test_a_connection_alone_that_takes_nothing_keeps_its_row(world: World) -> None:
    (fd,) = world.streams(1)
    row = world.row(fd)
    world.room[fd] = 0
    world.publish()
    world.round()
    assert world.row(fd) is row
    world.row(fd).on_ready(fd)  # there is no room yet
    assert not world.got[fd]
    del world.room[fd]
    world.row(fd).on_ready(fd)
    assert world.events(fd) == ["news"]


def test_a_connection_that_takes_nothing_for_20_s_is_cut_and_the_others_go_on(world: World) -> None:
    slow, other = world.streams(2)
    world.room[slow] = 5
    world.publish()
    world.round()
    world.pass_by(19.5)
    assert not world.doomed
    world.pass_by(1)
    assert world.doomed == [slow]
    assert len(world.told(slow)) == 5
    assert world.hub.subscribers == 1
    world.publish()
    world.round()
    assert world.events(other) == ["news", "news"]


def test_each_byte_that_is_taken_gives_20_s_more(world: World) -> None:
    (fd,) = world.streams(1)
    world.room[fd] = 0
    world.publish()
    world.round()
    for _ in range(4):
        world.pass_by(15)
        world.room[fd] = 1
        world.row(fd).on_ready(fd)
    assert not world.doomed
    world.pass_by(21)
    assert world.doomed == [fd]


def test_a_stalled_connection_whose_peer_breaks_off_is_ended(world: World) -> None:
    first, second, third = world.streams(3)
    world.room.update({first: 3, second: 3})
    world.publish()
    world.gone.add(third)
    world.round()
    assert world.doomed == [third]
    world.gone.update((first, second))
    world.row(first).on_ready(first)  # the end is read
    world.row(second).on_hang_up(second)
    assert world.doomed == [third, first, second]


def test_unsent_bytes_meet_a_broken_connection(world: World) -> None:
    (fd,) = world.streams(1)
    world.room[fd] = 3
    world.publish()
    world.round()
    world.sent[fd] = b"x"  # so that it is there still, when it is read

    def break_off(fd: int, data: bytes | memoryview) -> int:
        raise ConnectionResetError

    world.rows.effects = world.rows.effects._replace(write=break_off)
    world.row(fd).on_ready(fd)
    assert world.doomed == [fd]


def test_bytes_of_a_stream_s_client_are_passed_over(world: World) -> None:
    (fd,) = world.streams(1)
    world.sent[fd] = b"GET / HTTP/1.1\r\n"
    world.row(fd).on_ready(fd)
    assert not world.sent
    world.row(fd).on_ready(fd)  # nothing more to read
    assert not world.doomed
    assert not world.got[fd]


def test_a_read_that_fails_is_the_end(world: World) -> None:
    stream, poll = world.stream(), world.poll()

    def fail(fd: int, size: int) -> bytes:
        raise ConnectionResetError

    world.rows.effects = world.rows.effects._replace(read=fail)
    world.row(stream).on_ready(stream)
    world.row(poll).on_ready(poll)
    assert world.doomed == [stream, poll]


# The store is asked


def behind(world: World, number: int = 1, **options: Any) -> list[int]:
    """Return streams of one row that read from the store because they are behind the hub."""
    position = world.position()
    world.publish("old")
    fds = [world.stream(position=position, **options) for _ in range(number)]
    world.round()
    assert len(world.asked) == number
    assert all(world.row(fd).is_asking for fd in fds)
    return fds


def test_the_answer_of_the_store_is_told_in_the_next_round_and_then_the_row_is_woken_again(world: World) -> None:
    keep = world.stream("b")  # so that a round has more than one row
    (fd,) = behind(world)
    world.publish("new")
    world.round()  # it is woken in vain while it asks
    assert not world.got[fd]
    assert len(world.asked) == 1
    world.answer()
    assert world.row(fd).chunk is not None
    assert not world.row(fd).is_asking
    world.round()
    world.round()
    assert world.events(fd) == ["old", "new"]
    assert world.rows.agenda.to_serve == set()
    assert keep in world.rows.row_of


def test_a_row_that_asks_is_not_joined(world: World) -> None:
    first, second = behind(world, 2)
    assert world.row(first).merge_key is None
    assert world.rows_now == 2
    world.answer()
    world.round()
    world.round()
    assert world.rows_now == 1
    assert world.events(first) == world.events(second) == ["old"]


def test_a_row_that_all_have_left_gives_back_its_seat_when_the_store_has_answered(world: World) -> None:
    (fd,) = behind(world)
    world.row(fd).on_hang_up(fd)
    assert world.doomed == [fd]
    assert world.hub.subscribers == 1
    world.answer()
    assert world.hub.subscribers == 0
    world.round()
    assert not world.got[fd]


def test_a_fault_while_the_store_is_asked_cuts_the_row(world: World) -> None:
    (fd,) = behind(world)

    def fail() -> bytes:
        raise ValueError("a fault")

    stream = world.row(fd).stream
    world.row(fd).stream = Proxy(stream, next_bytes=fail)
    with pytest.raises(ValueError, match="a fault"):
        world.answer()
    world.asked.clear()
    assert world.doomed == [fd]
    assert world.hub.subscribers == 0


class Proxy:
    """A stream or poll, with some methods replaced."""

    def __init__(self, body: object, **replaced: Any) -> None:
        self._body = body
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


def test_a_row_waits_for_a_store_that_is_away_until_it_is_due(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (fd,) = behind(world)
    read = world.store.read

    def away(*_: object) -> Any:
        raise StoreUnavailable("it is away")

    monkeypatch.setattr(world.store, "read", away)
    world.answer()
    world.round()
    assert world.row(fd).stream.awaits_store
    assert not world.asked
    monkeypatch.setattr(world.store, "read", read)
    world.pass_by(1.2)
    world.answer()
    world.round()
    assert world.events(fd) == ["old"]


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_greenlet_that_is_ended_while_it_asks_the_store_leaves_no_seat_taken(world: World, *, is_gone: bool) -> None:
    class Ended(BaseException):
        """As gevent's GreenletExit."""

    def end() -> bytes:
        raise Ended

    (fd,) = behind(world)
    if is_gone:
        world.row(fd).on_hang_up(fd)
        world.answer()
    else:
        world.row(fd).stream = Proxy(world.row(fd).stream, next_bytes=end)
        with pytest.raises(Ended):
            world.answer()
        world.asked.clear()
    assert world.doomed == [fd]
    assert world.hub.subscribers == 0


# The end


def test_each_connection_of_a_row_ends_at_a_time_of_its_own(world: World) -> None:
    first, second = world.stream(lifetime=50), world.stream(lifetime=100)
    world.round()
    world.pass_by(62)
    assert world.reason(first) == "lifetime"
    assert world.doomed == [first]
    assert world.reason(second) is None
    world.pass_by(60)
    assert world.reason(second) == "lifetime"


def test_a_stream_whose_end_has_come_while_it_stalls_is_ended_when_it_has_caught_up(world: World) -> None:
    fds = world.streams(2, lifetime=50)
    world.pass_by(38)
    world.room[fds[0]] = 4
    world.publish()
    world.round()
    for _ in range(3):
        world.pass_by(9)
        world.room[fds[0]] = 1
        world.row(fds[0]).on_ready(fds[0])
    assert fds[0] not in world.doomed
    assert world.reason(fds[1]) == "lifetime"
    del world.room[fds[0]]
    world.row(fds[0]).on_ready(fds[0])
    world.pass_by(1.2)
    assert (world.events(fds[0]), world.reason(fds[0])) == (["news"], "lifetime")


def test_a_chunked_stream_ends_with_its_last_chunk_unless_it_is_to_be_cut(world: World) -> None:
    whole, cut = world.stream(chunked=True, lifetime=50), world.stream(chunked=True, lifetime=50, cut=True)
    world.pass_by(62)
    assert world.told(whole).endswith(b"\r\n0\r\n\r\n")
    assert not world.told(cut).endswith(b"0\r\n\r\n")
    assert world.reason(cut) == "lifetime"


def test_a_farewell_that_is_taken_in_part_goes_out_before_the_end(world: World) -> None:
    first, second = world.streams(2)
    world.room[first] = 7
    world.rows.drain(0)
    world.round()
    assert world.doomed == [second]
    assert world.reason(second) == "drain"
    assert world.row(first).closes
    del world.room[first]
    world.row(first).on_ready(first)
    assert world.reason(first) == "drain"
    assert world.doomed == [second, first]


def test_a_farewell_of_which_nothing_more_is_taken_is_cut_after_20_s(world: World) -> None:
    (fd,) = world.streams(1, lifetime=50, heartbeat=100)
    world.room[fd] = 7
    while not world.row(fd).closes:
        world.pass_by(1)
    world.pass_by(18)
    assert not world.doomed
    world.pass_by(3)
    assert world.doomed == [fd]


def test_a_goodbye_that_is_half_out_is_left_to_its_20_s_whatever_else_is_checked(world: World) -> None:
    drained = world.stream(permit=world.permit())
    other, poll = world.stream(), world.poll()
    world.round()
    world.room[drained] = 7
    world.rows.drain(0)
    world.rows.drain(0)  # a second check in the same round
    world.round()
    assert world.row(drained).closes
    world.rows.drain(0)
    world.revoke()
    world.rounds.check_permits_soon()
    world.round()
    assert sorted(world.doomed) == [other, poll]
    world.pass_by(15)
    world.room[drained] = 1
    world.row(drained).on_ready(drained)
    world.pass_by(15)
    assert drained in world.rows.row_of
    del world.room[drained]
    world.row(drained).on_ready(drained)
    assert world.reason(drained) == "drain"
    assert world.doomed[-1] == drained


def test_the_last_events_of_a_lost_stream_are_cut_by_a_revocation(world: World) -> None:
    fd = world.stream(bare=True, permit=world.permit())
    world.round()
    world.room[fd] = 7
    row = world.row(fd)
    row.stream = Proxy(row.stream, ended=True, lost=True, cuts=True, next_bytes_at_hand=lambda _: b"data: last\n\n")
    row()
    world.round()
    assert row.closes
    assert not world.doomed
    world.revoke()
    world.round()
    assert world.doomed == [fd]
    assert world.told(fd) == b"data: l"


def test_a_drain_ends_all_and_cuts_those_that_have_stalled(world: World) -> None:
    slow, other = world.streams(2)
    poll = world.poll()
    world.room[slow] = 3
    world.publish()
    world.round()
    world.rows.drain(0)
    world.round()
    assert world.reason(other) == "drain"
    assert len(world.told(slow)) == 3
    assert set(world.doomed[:2]) == {slow, other}
    world.answer()
    assert b"\r\nConnection: close\r\n" in world.told(poll)
    late = world.stream()
    late_poll = world.poll()
    world.round()
    assert world.reason(late) == "drain"
    assert world.answered(late_poll) == []
    assert world.rows.is_empty


def test_a_drain_passes_over_a_connection_that_has_ended_meanwhile(world: World) -> None:
    first, second = sorted(world.streams(2))
    world.in_pause.append(lambda: world.rows.end(second))

    def sleep(_: float) -> None:
        world.now += 1
        world._pause()

    world.rows.effects = world.rows.effects._replace(sleep=sleep)
    world.rows.drain(4)
    world.round()
    assert world.reason(first) == "drain"
    assert not world.got[second]


def test_a_hub_that_is_closed_ends_the_rows(world: World) -> None:
    fds = world.streams(2, chunked=True)
    world.hub.close()
    world.round()
    assert [world.reason(fd) for fd in fds] == ["drain"] * 2
    assert set(world.doomed) == set(fds)


def test_a_bare_stream_that_has_lost_its_position_is_cut_as_it_is(world: World) -> None:
    first, second = world.streams(2, bare=True)
    world.publish("one")
    world.round()
    row = world.row(first)
    lost = Proxy(row.stream, ended=True, lost=True, cuts=True, next_bytes_at_hand=lambda _: b": the last\n")
    row.stream = lost
    row()
    world.round()
    for fd in (first, second):
        assert world.told(fd).endswith(b": the last\n")
        assert world.reason(fd) is None
    assert set(world.doomed) == {first, second}


def test_the_first_event_makes_a_bare_row_like_those_that_have_been_told_one(world: World) -> None:
    (old,) = world.streams(1, bare=True)
    world.publish("one")
    world.round()
    (new,) = world.streams(1, bare=True)
    assert world.rows_now == 2
    world.publish("two")
    world.round()
    world.publish("three")
    world.round()
    assert world.rows_now == 1
    assert world.events(new) == ["two", "three"]
    assert world.events(old) == ["one", "two", "three"]
    assert world.told(new).count(b"retry: ") == world.told(old).count(b"retry: ") == 1


# Permits


def test_a_permit_s_end_is_told_once_to_its_own_connection(world: World) -> None:
    mine, other = world.stream(permit=world.permit(30)), world.stream()
    world.round()
    world.pass_by(0.3)
    assert world.told(mine).startswith(b"event: sse.auth\n")
    assert world.told(mine).count(b"sse.auth") == 1
    assert not world.got[other]
    assert world.row(mine) is world.row(other)


def test_a_permit_that_is_over_ends_its_own_connection(world: World) -> None:
    mine, other = world.stream(permit=world.permit(-1)), world.stream()
    world.round()
    assert world.reason(mine) == "expired"
    assert world.doomed == [mine]
    assert world.reason(other) is None


def test_a_revocation_ends_its_own_connection_and_cuts_it_where_it_stalls(world: World) -> None:
    fds = [world.stream(permit=world.permit()) for _ in range(2)]
    other = world.stream(permit=world.permit(sub="bob"))
    poll = world.poll(permit=world.permit())
    world.round()
    world.room[fds[1]] = 5
    world.publish()
    world.round()
    world.revoke()
    world.round()
    assert (world.events(fds[0]), world.reason(fds[0])) == (["news"], "expired")
    assert (len(world.told(fds[1])), world.reason(fds[1])) == (5, None)
    assert world.reason(other) is None
    assert world.answered(poll) == []
    assert sorted(world.doomed) == fds
    world.answer()


def test_a_clock_that_leaps_has_permits_looked_at_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, poll = world.stream(permit=world.permit(600)), world.poll(permit=world.permit(600))
    other = world.stream()
    world.round()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 700)
    world.rounds.check_permits_soon()
    world.round()
    assert world.reason(mine) == "expired"
    assert world.answered(poll) == []
    assert world.reason(other) is None


def test_a_leap_of_the_clock_ends_no_poll_whose_permit_holds(world: World) -> None:
    poll = world.poll(permit=world.permit(600))
    world.round()
    world.rounds.check_permits_soon()
    world.round()
    assert not world.got[poll]
    world.pass_by(21)
    assert world.answered(poll) == []


def test_what_the_app_wants_done_is_done_at_the_end(world: World) -> None:
    def done() -> None: ...

    stream = Stream(world.hub, {"a": Start()}, heartbeat=15, lifetime=60, retry=1)
    stream.closing = (done,)
    stream.open()
    world.rows.take_over_stream(100, stream, chunked=False)
    world.round()
    world.rows.end(100)
    world.rows.end(100)  # a second time does nothing
    assert world.finished == [done]
    assert world.doomed == [100]


# In a pause


def in_a_pause(world: World, monkeypatch: pytest.MonkeyPatch, what: Callable[[list[int]], object]) -> list[int]:
    """Push to four connections of a row, two at a time, and call `what` after the first two. Return their fds."""
    fds = world.streams(4)
    world.publish("one")
    with turns_of(monkeypatch, 2):
        world.in_pause.append(lambda: what(fds))
        world.round()
    assert not world.in_pause
    return fds


@pytest.mark.parametrize("which", [0, 3])
def test_a_connection_that_ends_in_a_pause(world: World, monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    fds = in_a_pause(world, monkeypatch, lambda fds: world.row(fds[which]).on_hang_up(fds[which]))
    assert world.doomed == [fds[which]]
    assert world.hub.subscribers == 3
    others = [fd for fd in fds if fd != fds[which]]
    world.publish("two")
    world.round()
    assert [world.events(fd) for fd in others] == [["one", "two"]] * 3
    assert world.events(fds[which]) == ["one"], "its number is nobody else's before the round is over"


def test_a_connection_that_ends_in_a_pause_is_not_made_to_stall(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(fds: list[int]) -> None:
        world.room[fds[3]] = 2
        world.rows.end(fds[3])

    fds = in_a_pause(world, monkeypatch, end)
    assert fds[3] not in world.rows.row_of
    assert len(world.told(fds[3])) == 2
    assert world.hub.subscribers == 3


def test_all_that_end_in_a_pause(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_pause(world, monkeypatch, lambda fds: [world.rows.end(fd) for fd in fds])
    assert world.hub.subscribers == 0
    world.pass_by(20)
    assert world.rows.is_empty
    assert not world.log


def test_a_connection_that_catches_up_in_a_pause_is_served_in_the_next_round(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, *others = world.streams(4)
    world.room[slow] = 6
    world.publish("one")
    world.round()

    def catch_up() -> None:
        del world.room[slow]
        world.row(slow).on_ready(slow)

    world.publish("two")
    with turns_of(monkeypatch, 2):
        world.in_pause.append(catch_up)
        world.round()
    assert world.events(slow) == ["one"]
    world.round()
    assert world.events(slow) == world.events(others[0]) == ["one", "two"]


def test_a_connection_that_stalls_in_one_part_of_a_push_is_no_hindrance_to_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = in_a_pause(world, monkeypatch, lambda fds: world.room.update({fds[2]: 4}))
    assert len(world.told(fds[2])) == 4
    assert world.row(fds[2]) is not world.row(fds[3])
    assert world.events(fds[3]) == ["one"]
    assert world.hub.subscribers == 4


def test_a_connection_that_comes_in_a_pause_has_a_row_of_its_own_until_the_next_round(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[int] = []
    fds = in_a_pause(world, monkeypatch, lambda _: came.append(world.stream()))
    (new,) = came
    assert world.row(new) is not world.row(fds[0])
    assert not world.got[new], "it began after the event"
    world.round()
    assert world.row(new) is world.row(fds[0])
    world.publish("two")
    world.round()
    assert (world.events(new), world.events(fds[0])) == (["two"], ["one", "two"])


def test_a_connection_whose_permit_is_revoked_in_a_pause_gets_this_push_and_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = [world.stream(permit=world.permit()) for _ in range(4)]
    world.round()
    world.publish("one")
    with turns_of(monkeypatch, 2):
        world.in_pause.append(world.revoke)
        world.round()
    assert not world.doomed
    world.publish("two")
    world.round()
    assert [(world.events(fd), world.reason(fd)) for fd in fds] == [(["one"], "expired")] * 4


def test_a_drain_that_begins_in_a_pause_ends_all_in_the_next_round(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = in_a_pause(world, monkeypatch, lambda _: world.rows.drain(0))
    assert not world.doomed
    world.round()
    assert [(world.events(fd), world.reason(fd)) for fd in fds] == [(["one"], "drain")] * 4


def test_a_row_that_is_woken_in_a_pause_is_served_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fds = in_a_pause(world, monkeypatch, lambda _: world.publish("two"))
    assert [world.events(fd) for fd in fds] == [["one"]] * 4
    world.round()
    assert [world.events(fd) for fd in fds] == [["one", "two"]] * 4


# Rounds


def test_a_fault_cuts_its_own_row_or_connection_alone(world: World) -> None:
    first, second, third = world.stream(), world.stream("b"), world.stream("c", permit=world.permit())
    world.round()

    def fail(*_: object) -> Any:
        raise ValueError("a fault")

    world.row(first).stream = Proxy(world.row(first).stream, next_bytes_at_hand=fail)
    world.row(third).stream = Proxy(world.row(third).stream, goodbye=fail)
    world.publish()
    world.publish(channel="b")
    world.revoke()
    world.round()
    assert world.events(second) == ["news"]
    assert sorted(world.doomed) == [first, third]
    assert sorted(world.log) == ["a connection is cut after a fault", "streams are cut after a fault"]


def test_a_round_that_breaks_off_leaves_its_work_to_the_next(world: World) -> None:
    first, second = world.poll(), world.poll()
    stream = world.stream("b")
    world.round()
    for fd in (first, second):
        world.rows.check_soon(fd)
    world.publish(channel="b")
    woken = world.wakes

    def break_off() -> None:
        raise ValueError("a fault")

    world.in_pause.append(break_off)
    with pytest.raises(ValueError, match="a fault"):
        world.round()
    assert world.wakes > woken
    assert not world.got[second]
    assert not world.rows.agenda.is_late(world.now + 60)
    world.round()
    assert world.answered(second) == []
    assert world.events(stream) == ["news"]


def test_a_fault_in_one_item_of_the_wheel_keeps_no_other_from_its_turn(world: World) -> None:
    (stream,) = world.streams(1)
    row = world.row(stream)
    row.stream = Proxy(row.stream, due="soon")
    poll = world.poll(timeout=1)
    world.rounds.look_at_slot(row.slot, [row, poll])
    assert world.log == ["a connection or row may be late after a fault"]
    world.pass_by(1.5)
    assert world.answered(poll) == []


def test_the_loop_is_woken_once_for_many_calls(world: World) -> None:
    fds = [world.stream(channel) for channel in "abc"]
    world.round()
    woken = world.wakes
    for fd in fds:
        world.row(fd)()
    assert world.wakes == woken + 1
    world.round()
    world.row(fds[0])()
    assert world.wakes == woken + 2


def test_a_number_that_another_connection_has_by_now_is_not_dismissed(world: World) -> None:
    fd = world.poll()
    world.rows.check_soon(fd)
    world.rows.end(fd)
    world.rows.check_soon(fd)  # it has no owner now
    world.rows.park(fd)
    world.round()
    assert fd in world.rows.row_of
    assert not world.closed


def test_rows_are_late_where_many_have_waited(world: World) -> None:
    for number in range(70):
        world.stream(f"c/{number}")
    assert not world.rows.agenda.is_late(world.now)
    assert world.rows.agenda.is_late(world.now + 0.02)
    late: list[bool] = []
    world.in_pause.extend([lambda: late.append(world.rows.agenda.is_late(world.now + 0.02))] * 70)
    for number in range(70):
        world.publish(channel=f"c/{number}")
    world.round()
    assert late[0], "those that are still to be served are late"
    assert not late[-1]
    assert not world.rows.agenda.is_late(world.now + 0.02)


# Polls


def test_polls_alike_share_a_row_and_an_answer_and_are_parked_afterwards(world: World) -> None:
    fds = [world.poll() for _ in range(3)]
    other = world.poll(head=CLOSED)
    assert world.rows_now == 2
    assert world.hub.subscribers == 4
    world.publish("one")
    world.round()
    world.publish("two")  # in the moment that it waits for more
    world.answer()
    assert [world.answered(fd) for fd in fds] == [["one", "two"]] * 3
    assert [len(world.got[fd]) for fd in fds] == [1] * 3
    assert world.doomed == [other]
    assert world.hub.subscribers == 0
    assert all(world.interest[fd] == "input" for fd in fds)
    world.sent[fds[0]] = b"GET"
    world.row(fds[0]).on_ready(fds[0])
    assert world.given_back == [fds[0]]
    world.pass_by(76)
    assert world.closed == fds[1:]


def test_a_poll_that_comes_while_others_are_answered_waits_for_the_next_event(world: World) -> None:
    first = world.poll()
    world.publish("one")
    world.round()
    second = world.poll()
    assert world.row(first) is not world.row(second)
    world.answer()
    assert world.answered(first) == ["one"]
    assert not world.got[second]
    world.publish("two")
    world.round()
    world.answer()
    assert world.answered(second) == ["two"]


def test_a_poll_that_is_woken_for_nothing_goes_on_waiting(world: World) -> None:
    fd = world.poll()
    world.row(fd)()
    world.round()
    assert not world.later
    world.row(fd).is_asking = True
    world.later.append(world.row(fd).answer)
    world.answer()
    assert not world.got[fd]
    assert isinstance(world.row(fd), Polls)


def test_a_poll_is_answered_with_nothing_at_its_end(world: World) -> None:
    fd = world.poll(timeout=20)
    world.pass_by(19.5)
    assert not world.got
    world.pass_by(1)
    assert world.answered(fd) == []


def test_a_poll_whose_end_comes_while_it_is_answered_gets_the_answer(world: World) -> None:
    fd = world.poll(timeout=20)
    world.pass_by(19.5)
    world.publish()
    world.round()
    world.pass_by(1)
    assert not world.got
    world.answer()
    assert world.answered(fd) == ["news"]


def test_a_poll_that_cannot_be_answered_is_to_ask_again(world: World) -> None:
    fd = world.poll()
    world.publish()
    world.round()

    def fail() -> bytes:
        raise ValueError("a fault")

    world.row(fd).poll = Proxy(world.row(fd).poll, answer=fail)
    world.answer()
    assert world.answered(fd) == []
    assert world.log == ["polls are to ask again: a fault"]


def test_polls_whose_clients_go_are_ended_and_the_last_gives_back_its_seat_with_the_answer(world: World) -> None:
    first, second = world.poll(), world.poll()
    world.gone.add(first)
    world.row(first).on_ready(first)
    assert world.hub.subscribers == 1
    world.publish()
    world.round()
    world.gone.add(second)
    world.row(second).on_ready(second)
    assert world.hub.subscribers == 1
    world.answer()
    assert world.hub.subscribers == 0
    assert world.doomed == [first, second]
    assert not world.got


def test_a_poll_whose_client_is_gone_when_it_is_answered_is_ended(world: World) -> None:
    fd = world.poll()
    world.publish()
    world.round()
    world.gone.add(fd)
    world.answer()
    assert world.doomed == [fd]


def test_bytes_behind_a_poll_are_kept_for_a_greenlet(world: World) -> None:
    fd, other = world.poll(read_ahead=b"GET /next"), world.poll()
    world.sent[fd] = b" HTTP/1.1"
    world.row(fd).on_ready(fd)
    world.row(fd).on_ready(fd)  # nothing more to read
    world.publish()
    world.round()
    world.answer()
    assert world.given_back == [fd]
    assert world.rows.read_ahead == {fd: b"GET /next HTTP/1.1"}
    assert world.answered(other) == ["news"]


def test_a_client_that_sends_too_much_behind_a_poll_is_answered_at_once(world: World) -> None:
    fd = world.poll(read_ahead=b"x" * 8192)
    world.sent[fd] = b"y"
    world.row(fd).on_ready(fd)
    assert world.answered(fd) == []
    assert world.given_back == [fd]


def test_a_client_that_sends_too_much_while_its_poll_is_answered_gets_the_answer(world: World) -> None:
    fd, revoked = world.poll(), world.poll(permit=world.permit())
    world.publish()
    world.round()
    for one in (fd, revoked):
        world.rows.read_ahead[one] = b"x" * 8192
        world.sent[one] = b"y"
    world.row(fd).on_ready(fd)
    assert not world.got[fd]
    world.revoke()
    world.row(revoked).on_ready(revoked)
    assert world.answered(revoked) == []
    world.answer()
    assert world.answered(fd) == ["news"]
    assert world.interest == {}
    assert world.given_back == [revoked, fd]


def test_a_drain_that_begins_while_polls_are_answered_closes_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = [world.poll() for _ in range(4)]
    world.publish()
    world.round()
    with turns_of(monkeypatch, 2):
        world.in_pause.append(lambda: world.rows.drain(0))
        world.answer()
    assert [world.answered(fd) for fd in fds] == [["news"]] * 4
    assert [b"Connection: close" in world.told(fd) for fd in fds] == [False, False, True, True]
    assert world.doomed == fds[2:]


def test_a_poll_whose_permit_ends_while_it_is_answered_gets_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = [world.poll(permit=world.permit()) for _ in range(4)]
    world.publish()
    world.round()
    with turns_of(monkeypatch, 2):
        world.in_pause.append(world.revoke)
        world.answer()
    assert [world.answered(fd) for fd in fds] == [["news"], ["news"], [], []]


def test_a_poll_whose_client_leaves_in_a_pause_is_passed_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fds = [world.poll() for _ in range(3)]
    world.publish()
    world.round()
    with turns_of(monkeypatch, 1):
        world.in_pause.append(lambda: world.rows.end(fds[2]))
        world.answer()
    assert not world.got[fds[2]]
    assert world.doomed == [fds[2]]


# The unsent part of an answer


def test_an_answer_that_is_taken_in_part_goes_out_as_its_client_takes_it(world: World) -> None:
    kept, closed = world.poll(), world.poll(head=CLOSED)
    world.room.update({kept: 9, closed: 9})
    world.publish()
    world.round()
    world.answer()
    assert [type(world.row(fd)) for fd in (kept, closed)] == [Sending] * 2
    assert world.hub.subscribers == 0
    world.row(kept).on_ready(kept)
    for fd in (kept, closed):
        world.room[fd] = 9
        world.row(fd).on_ready(fd)
        assert len(world.told(fd)) == 18
        del world.room[fd]
        world.row(fd).on_ready(fd)
        assert world.answered(fd) == ["news"]
    assert world.doomed == [closed]
    assert world.interest == {kept: "input"}


def test_an_answer_of_which_nothing_is_taken_for_20_s_is_cut(world: World) -> None:
    world.rows.send_unsent(1, memoryview(b"the rest"), closes=False, read_ahead=b"")
    world.rows.send_unsent(2, memoryview(b"the rest"), closes=False, read_ahead=b"")
    world.room.update({1: 0, 2: 1})
    world.pass_by(15)
    world.row(2).on_ready(2)
    world.pass_by(10)
    assert world.doomed == [1]
    world.gone.add(2)
    world.row(2).on_ready(2)
    assert world.doomed == [1, 2]


def test_of_too_much_that_nobody_takes_the_oldest_is_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_UNSENT", 20)
    for fd in (101, 102, 103):
        world.rows.send_unsent(fd, memoryview(bytes(8)), closes=False, read_ahead=b"")
    assert world.doomed == [101]
    assert set(world.rows.row_of) == {102, 103}


def test_an_answer_that_several_clients_leave_unsent_counts_once_and_is_given_up_for_all_of_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, *shared = [world.poll() for _ in range(4)]
    world.room.update(dict.fromkeys(shared, 5))
    world.publish()
    world.round()
    world.answer()
    monkeypatch.setattr(module, "_MOST_UNSENT", len(world.told(whole)) + 20)
    world.rows.end(shared.pop())
    for fd in (101, 102):
        world.rows.send_unsent(fd, memoryview(bytes(8)), closes=False, read_ahead=b"")
    assert set(world.rows.row_of) == {whole, *shared, 101, 102}
    world.rows.send_unsent(103, memoryview(bytes(8)), closes=False, read_ahead=b"")
    assert world.doomed[1:] == shared
    assert set(world.rows.row_of) == {whole, 101, 102, 103}


def test_clients_that_share_their_answers_cannot_keep_the_room_for_unsent_bytes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = world.poll(max_bytes=6000)
    pairs = [(world.poll(max_bytes=5000 + number), world.poll(max_bytes=5000 + number)) for number in range(4)]
    world.room.update(dict.fromkeys((fd for pair in pairs for fd in pair), 5))
    world.publish()
    world.round()
    world.row(whole).answer()
    size = len(world.told(whole))
    monkeypatch.setattr(module, "_MOST_UNSENT", 4 * size)
    for one, _ in pairs:
        world.row(one).answer()
    assert not world.doomed
    world.rows.send_unsent(101, memoryview(bytes(8)), closes=False, read_ahead=b"")
    assert world.doomed == [*pairs[0]]
    assert 101 in world.rows.row_of
    world.rows.send_unsent(102, memoryview(bytes(5 * size)), closes=False, read_ahead=b"")
    assert set(world.rows.row_of) == {whole}, "an answer over the bound is given up itself, after all others"


def test_waiting_polls_with_answers_of_their_own_are_cut_where_they_leave_too_much_unsent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = world.poll(max_bytes=5000)
    fds = [world.poll(max_bytes=5001 + number) for number in range(3)]
    world.room.update(dict.fromkeys(fds, 5))
    world.publish()
    world.round()
    assert len(world.later) == 4, "each has a row and an answer of its own"
    world.later.clear()
    world.row(whole).answer()
    monkeypatch.setattr(module, "_MOST_UNSENT", len(world.told(whole)) * 2)
    for fd in fds:
        world.row(fd).answer()
    assert world.doomed == fds[:1]
    del world.room[fds[1]]
    world.row(fds[1]).on_ready(fds[1])
    assert world.answered(fds[1]) == ["news"]
    world.rows.send_unsent(101, memoryview(bytes(8)), closes=False, read_ahead=b"")
    assert world.doomed == fds[:1], "an answer that has gone out counts no more"


# Connections between two requests


def test_a_connection_with_a_request_waits_for_a_greenlet_if_none_is_free(world: World) -> None:
    world.rows.park(1, new=True)
    world.has_greenlets = False
    world.row(1).on_ready(1)
    assert list(world.rows.waiting) == [1]
    assert not world.rows.is_empty
    assert 1 not in world.rows.row_of
    world.rows.waiting.clear()


def test_a_resting_connection_that_ends_is_closed_at_once_unless_a_request_has_come(world: World) -> None:
    world.rows.park(1)
    world.rows.park(2)
    world.sent[2] = b"GET"
    world.row(1).on_hang_up(1)
    world.row(2).on_hang_up(2)
    assert (world.closed, world.given_back, world.doomed) == ([1], [2], [])


def test_a_new_connection_has_20_s_and_in_a_drain_each_has_one_more(world: World) -> None:
    world.rows.park(1, new=True)
    world.rows.park(2)
    world.pass_by(21)
    assert world.closed == [1]
    world.rows.park(3, new=True)
    world.rows.drain(0)
    world.rows.park(4)
    world.pass_by(0.5)
    assert world.closed == [1]
    world.pass_by(1)
    assert sorted(world.closed) == [1, 2, 3, 4]


def test_very_many_connections_whose_time_is_over_at_once_hold_nobody_up(world: World) -> None:
    for fd in range(40_000):
        world.rows.park(fd, new=True)
    used = time.thread_time()
    world.pass_by(21)
    assert time.thread_time() - used < 0.8, "it is two tenths of a second if nothing is searched"
    assert world.closed == list(range(40_000))


def test_room_is_made_by_the_silent_first_then_by_the_oldest_that_rests(world: World) -> None:
    world.rows.max_connections = 3
    world.rows.park(1, new=True)
    world.rows.park(2)
    world.rows.park(3)
    assert world.rows.is_full is False
    world.rows.park(4)  # the new one may be sending its request just now
    assert world.closed == [2]
    world.pass_by(1.5)
    world.rows.park(5)
    assert world.closed == [2, 1]
    world.rows.end(3)
    world.rows.end(4)
    world.rows.end(5)
    for fd in (6, 7, 8, 9):
        world.rows.park(fd, new=True)
    assert world.closed == [2, 1, 6]


def test_it_is_full_where_none_rests(world: World) -> None:
    world.rows.max_connections = 2
    world.streams(1)
    assert not world.rows.is_full
    world.stream()
    assert world.rows.is_full
    assert world.rows.is_serving
    third = world.stream()
    assert third in world.rows.row_of, "nobody could be closed for it"


def test_nobody_listens_where_all_connections_are_parked(world: World) -> None:
    world.rows.park(1)
    world.rows.park(2, new=True)
    assert not world.rows.is_serving


def test_a_row_of_no_kind_says_nothing(world: World) -> None:
    row = Row(world.rows)
    row.serve()
    row.on_ready(1)
    row.check(1)
    row.release()
    row.detach()
    assert not world.got
    assert isinstance(Streams.interest, str)


# The fast lane


def accept(world: World, fd: int, data: bytes = b"") -> None:
    """Accept a connection on which bytes have come, and take it as a leader does."""
    world.sent[fd] = data
    world.rows.accept(fd)
    world.rows.ready.pop(fd, None)


def begin_head(world: World, fd: int) -> None:
    accept(world, fd, b"GET /")
    head = Head(10_000)
    head.add(b"GET /")
    world.rows.gather(fd, head, is_head=True)


def test_epoll_hears_of_a_new_connection_only_when_it_has_to_wait(world: World) -> None:
    world.rows.has_lane = True
    world.sent[101] = b"GET /poll"
    world.rows.accept(101)
    assert (list(world.rows.ready), world.rows.held) == ([101], 9)
    assert not world.interest
    world.rows.ready.clear()
    world.rows.answered(101, b"", closes=False)
    assert (world.interest, world.rows.held) == ({101: "input"}, 0)
    world.rows.close(101)


def test_polls_with_bytes_behind_them_do_not_keep_the_lane_from_reading(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_HELD", 160_000)
    monkeypatch.setattr(module, "_MOST_AHEAD", 40_000)
    world.rows.has_lane = True
    polls = [world.poll(read_ahead=b"x" * 8000) for _ in range(25)]
    late = world.poll(read_ahead=b"x" * 8193)
    answered = [fd for fd in polls if fd in world.rows.ready]
    for fd in answered:
        assert world.answered(fd) == []
        world.rows.close(fd)
    world.sent[101] = b"GET /poll"
    world.rows.accept(101)
    assert 101 in world.rows.ready, "it is read at once, and needs no greenlet"
    assert len(answered) == 20
    assert world.answered(late) == []
    assert world.rows.held_by_polls == 40_000
    world.publish()
    world.round()
    world.answer()
    assert world.rows.held_by_polls == 0
    for fd in list(world.rows.ready):
        world.rows.close(fd)


def test_parts_of_requests_do_not_keep_the_lane_from_reading(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_HELD", 160_000)
    monkeypatch.setattr(quiet, "_MOST_PARTIAL", 40_000)
    world.rows.has_lane = True
    for fd in range(1, 26):
        begin_head(world, fd)
        world.sent[fd] = b"x" * 7995
        world.row(fd).on_ready(fd)
    for fd in range(26, 51):
        accept(world, fd, b"x" * 8000)
        body = Rest(9000)
        body.add(b"x" * 8000)
        world.rows.gather(fd, body, is_head=False)
        for given in world.given_back:
            world.rows.take(given)  # as a greenlet does
    world.sent[101] = b"GET /poll"
    world.rows.accept(101)
    assert 101 in world.rows.ready, "it is read at once, and needs no greenlet"
    assert world.rows.held == 80_009
    assert world.closed == list(range(1, 21))
    assert world.given_back == list(range(26, 46))
    for fd in list(world.rows.row_of):
        world.rows.close(fd)
    assert world.rows.held == 0


def test_what_happens_on_a_connection_whose_request_is_handled_is_looked_at_once_and_again_afterwards(
    world: World,
) -> None:
    world.rows.has_lane = True
    accept(world, 101)
    world.sent[101] = b"GET /poll"
    world.row(101).on_ready(101)
    assert world.interest == {101: "input"}
    world.row(101).on_hang_up(101)
    assert not world.interest
    assert not world.closed
    world.rows.answered(101, b"", closes=False)
    assert world.interest == {101: "input"}
    world.rows.close(101)


def test_a_head_has_20_s_without_a_greenlet(world: World) -> None:
    world.rows.has_lane = True
    begin_head(world, 101)
    world.pass_by(19)
    world.sent[101] = b"po"
    world.row(101).on_ready(101)
    assert (world.rows.held, world.closed) == (7, [])
    world.pass_by(2)
    assert (world.rows.held, world.closed) == (0, [101])
    assert world.rows.is_empty


@pytest.mark.parametrize(("seconds", "closed"), [(0.5, 102), (2, 101)])
def test_a_head_that_takes_long_makes_room_before_a_kept_connection(world: World, seconds: float, closed: int) -> None:
    world.rows.has_lane, world.rows.max_connections = True, 2
    begin_head(world, 101)
    accept(world, 102, b"GET /poll")
    world.rows.answered(102, b"", closes=False)
    world.pass_by(seconds)
    accept(world, 103)
    assert world.closed == [closed]
    assert not world.rows.is_full
    assert not world.rows.is_serving
    for fd in list(world.rows.row_of):
        world.rows.close(fd)
