"""The line about the end of each connection in a row: its reason, and what it got since it came."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fake_sockets import World

ID = "8f3a-1"


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.end()


def ends(world: World) -> list[tuple[str, str, int]]:
    """Return the transport, reason and events of the ends since the last call."""
    told = [(transport, reason, events) for transport, reason, _, events, _, _ in world.ended]
    world.ended.clear()
    return told


def leave(world: World, fd: int) -> None:
    world.gone.add(fd)
    world.row(fd).on_ready(fd)
    world.round()


def deliver(world: World, *data: str) -> None:
    for text in data:
        world.publish(text)
        world.round()


def test_a_stream_counts_what_came_since_it_came_in_a_row_of_many(world: World) -> None:
    first = world.stream(request_id=ID)
    world.round()
    deliver(world, "one")
    world.now += 7
    second = world.stream()
    world.round()
    assert world.row(first) is world.row(second)
    deliver(world, "two", "three")
    world.now += 3
    for fd in (second, first):
        leave(world, fd)
    (_, _, later, fewer, less, none), (transport, reason, seconds, events, size, request_id) = world.ended
    assert (transport, reason, seconds, events, request_id) == ("stream", "left", 10.0, 3, ID)
    assert (later, fewer, none) == (3.0, 2, "")
    assert size == len(world.openings[first] + world.told(first))
    assert less == len(world.openings[second] + world.told(second))


def test_a_number_that_is_used_again_begins_anew(world: World) -> None:
    fd = world.stream(request_id=ID)
    world.round()
    deliver(world, "one")
    leave(world, fd)
    world.ended.clear()
    world.rows.tally.begin(fd, world.now, "")
    assert world.rows.tally.end(fd, world.now + 1, 5, 50) == (1.0, 5, 50, "")


def test_a_stream_that_stalled_keeps_its_count_and_what_is_unsent_is_not_in_it(world: World) -> None:
    first, second = world.streams(2)
    deliver(world, "one")
    world.room[first] = 3
    deliver(world, "two" * 50)
    assert world.row(first) is not world.row(second)
    leave(world, first)
    (_, _, _, events, size, _) = world.ended.pop()
    assert events == 2  # the second one in part
    assert size == len(world.openings[first] + world.told(first))
    deliver(world, "three")
    leave(world, second)
    assert ends(world) == [("stream", "left", 3)]


def test_a_stream_that_stalled_and_caught_up_counts_on_in_its_old_row(world: World) -> None:
    first, second = world.streams(2)
    world.room[first] = 0
    deliver(world, "one", "two")
    del world.room[first]
    world.row(first).on_ready(first)
    for _ in range(3):
        world.round()
    assert world.row(first) is world.row(second)
    deliver(world, "three")
    for fd in (first, second):
        leave(world, fd)
    assert ends(world) == [("stream", "left", 3)] * 2


@pytest.mark.parametrize(
    ("reason", "options", "seconds"), [("lifetime", {"lifetime": 5.0}, 7), ("left", {}, 0), ("drain", {}, 0)]
)
def test_a_stream_tells_why_it_ends(world: World, reason: str, options: dict[str, float], seconds: int) -> None:
    fd = world.stream(**options)
    world.round()
    deliver(world, "one")
    if reason == "drain":
        world.rows.drain(0)
    elif reason == "left":
        world.row(fd).on_hang_up(fd)
    world.pass_by(seconds)
    assert ends(world) == [("stream", reason, 1)]


def test_a_stream_whose_right_ends_says_expired(world: World) -> None:
    fd = world.stream(permit=world.permit())
    world.revoke()
    world.pass_by(0.2)
    assert fd in world.doomed
    assert ends(world) == [("stream", "expired", 0)]


@pytest.mark.parametrize("room", [0, 5])
def test_a_stream_that_takes_nothing_is_slow_also_with_a_part_of_its_goodbye_out(world: World, room: int) -> None:
    fd = world.stream()
    world.round()
    world.room[fd] = room
    if room:
        world.rows.drain(0)
    else:
        world.publish()
    world.pass_by(21)
    assert fd in world.doomed
    assert ends(world) == [("stream", "slow", 0 if room else 1)]


def test_a_goodbye_that_is_taken_late_keeps_its_reason(world: World) -> None:
    fd = world.stream()
    world.round()
    world.room[fd] = 5
    world.rows.drain(0)
    world.round()
    del world.room[fd]
    world.row(fd).on_ready(fd)
    assert ends(world) == [("stream", "drain", 0)]


def test_a_write_that_fails_is_a_client_that_has_left(world: World) -> None:
    fd = world.stream()
    world.round()
    world.gone.add(fd)
    deliver(world, "one")
    assert [end[:2] for end in world.ended] == [("stream", "left")]


def test_a_poll_counts_the_events_of_its_answer_and_ends_once(world: World) -> None:
    fd, other = world.poll(request_id=ID), world.poll()
    assert world.row(fd) is world.row(other)
    world.now += 4
    world.publish("one")
    world.publish("two")
    world.round()
    world.answer()
    for (transport, reason, seconds, events, size, request_id), wanted, number in zip(
        world.ended, (ID, ""), (fd, other), strict=True
    ):
        assert (transport, reason, seconds, events, request_id) == ("poll", "answered", 4.0, 2, wanted)
        assert size == len(world.told(number).partition(b"\r\n\r\n")[2])
    world.ended.clear()
    world.row(fd).on_hang_up(fd)  # it is parked now
    assert world.ended == []


@pytest.mark.parametrize("reason", ["timeout", "left", "drain", "expired"])
def test_a_poll_tells_why_it_ends_without_an_event(world: World, reason: str) -> None:
    fd = world.poll(permit=world.permit())
    if reason == "drain":
        world.rows.drain(0)
    elif reason == "left":
        world.row(fd).on_hang_up(fd)
    elif reason == "expired":
        world.revoke()
    world.pass_by(21 if reason == "timeout" else 0.2)
    assert ends(world) == [("poll", reason, 0)]


def test_parked_connections_have_no_line(world: World) -> None:
    world.rows.park(70, new=True)
    world.pass_by(25)
    assert 70 in world.closed
    assert world.ended == []
