"""The end of a channel in the rows: each connection gets it like a goodbye, and never before what comes before it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from sse.event import Event
from sse.hub.subscriber import Start
from sse.server import rows as module
from sse.server.framing import LAST_CHUNK
from sse.transports.stream import Stream
from tests.fake_sockets import World
from tests.servers import wait_until
from tests.writing import Run

RETRY = 1000


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    try:
        yield world
        for fd in list(world.rows.row_of):
            world.rows.end(fd)
        world.answer()
        assert world.hub.subscribers == 0, "each connection gives back its place, once"
        assert not world.interest
    finally:
        world.end()


@pytest.fixture
def run(world: World) -> Run:
    run = Run(world.store, "a")
    run.write("x")
    return run


def heard(world: World, run: Run) -> None:
    """Wait until the hub has all that the run has stored."""
    (newest,) = world.store.newest([run.channel])
    wait_until(lambda: (run.channel, newest) in world.hub.newest([run.channel]), 5, 0.001)


def write(world: World, run: Run, *texts: str) -> None:
    run.write(*texts)
    heard(world, run)


def end(world: World, run: Run, reason: Any = "done") -> None:
    run.end(reason)
    heard(world, run)


def rounds(world: World) -> None:
    for _ in range(4):
        world.round()
        world.answer()


def streams(world: World, number: int, **options: Any) -> list[int]:
    """Open streams that share a row and have had all texts, in the order in which the row writes to them."""
    fds = [world.stream(**options) for _ in range(number)]
    rounds(world)
    (row,) = {world.row(fd) for fd in fds}
    return list(row.fds)


def texts(world: World, fd: int) -> list[str]:
    return re.findall("(?m)^event: text\n(?:id: .*\n)?data: (.*)$", world.told(fd).decode())


def ends(world: World, fd: int) -> list[str]:
    told = world.told(fd).decode()
    return [json.loads(data)["reason"] for data in re.findall("event: sse.end\ndata: (.*)\n", told)]


def retry(world: World, fd: int) -> int:
    (found,) = re.findall(r"retry: (\d+)\nid: a=\S+\nevent: sse.end", world.told(fd).decode())
    return int(found)


@pytest.mark.parametrize("cut", [False, True])
def test_each_connection_of_a_row_gets_the_end_with_a_retry_of_its_own(world: World, run: Run, cut: bool) -> None:
    fds = streams(world, 40, chunked=True, cut=cut)
    write(world, run, "y")
    end(world, run)
    rounds(world)
    assert {tuple(texts(world, fd)) for fd in fds} == {("x", "y")}
    assert all(ends(world, fd) == ["done"] for fd in fds)
    assert all(world.told(fd).endswith(b"\r\n" + LAST_CHUNK) for fd in fds), "the body ends normally, with end=cut too"
    assert world.doomed == fds
    assert world.reason(fds[0]) is None
    if not cut:
        waits = [retry(world, fd) for fd in fds]
        assert all(RETRY / 10 <= wait <= RETRY for wait in waits)
        assert max(waits) - min(waits) > RETRY / 2


def test_the_end_comes_after_all_texts_that_were_not_read_yet(world: World, run: Run) -> None:
    slow, fast = streams(world, 2)
    world.room[slow] = 10
    write(world, run, "y")
    world.round()
    assert world.row(slow).unsent
    end(world, run)
    rounds(world)
    assert world.doomed == [fast]
    assert ends(world, slow) == []
    world.room[slow] = 100_000
    world.row(slow).on_ready(slow)
    rounds(world)
    assert "".join(texts(world, slow)) == "xy"
    assert ends(world, slow) == ["done"]
    assert world.doomed == [fast, slow]


def test_a_client_that_takes_a_part_of_the_end_gets_the_rest_later(world: World, run: Run) -> None:
    slow, fast = streams(world, 2, chunked=True)
    world.room[slow] = 30
    end(world, run, "failed")
    rounds(world)
    assert world.doomed == [fast]
    assert ends(world, slow) == []
    world.pass_by(10)
    world.room[slow] = 100_000
    world.row(slow).on_ready(slow)
    assert ends(world, slow) == ["failed"]
    assert world.told(slow).endswith(LAST_CHUNK)
    assert world.doomed == [fast, slow]


@pytest.mark.parametrize("takes", [0, 30])
def test_a_client_that_never_takes_the_end_is_cut_after_20_seconds(world: World, run: Run, takes: int) -> None:
    (slow,) = streams(world, 1)
    world.room[slow] = takes
    end(world, run)
    rounds(world)
    assert not world.doomed
    world.pass_by(19)
    assert not world.doomed
    world.pass_by(2)
    assert world.doomed == [slow]
    assert ends(world, slow) == []


def test_a_drain_during_a_part_of_the_end_does_not_hang(world: World, run: Run) -> None:
    (slow,) = streams(world, 1)
    world.room[slow] = 30
    end(world, run)
    rounds(world)
    world.rows.drain(0.1)
    world.round()
    assert not world.doomed, "a part of the end is out already, and the rest may follow"
    world.pass_by(21)
    assert world.doomed == [slow]
    assert world.reason(slow) is None


def test_a_drain_before_the_end_is_the_goodbye_and_the_end_follows_later(world: World, run: Run) -> None:
    (fd,) = streams(world, 1)
    end(world, run)
    world.rows.drain(0.1)
    world.round()
    assert (world.reason(fd), ends(world, fd)) == ("drain", [])
    assert world.doomed == [fd]


def test_a_lifetime_that_is_over_at_the_same_moment_loses_no_end(world: World, run: Run) -> None:
    fds = [world.stream(lifetime=10) for _ in range(5)]
    rounds(world)
    world.now += 13
    end(world, run)
    for slot, items in world.wheel.turn(world.now):
        world.rounds.look_at_slot(slot, items)
    rounds(world)
    for fd in fds:
        assert (world.reason(fd) == "lifetime") != (ends(world, fd) == ["done"])
    assert sorted(world.doomed) == sorted(fds)


def test_a_revoked_client_is_not_told_the_end(world: World) -> None:
    run = Run(world.store, "a")
    revoked, other = world.stream(permit=world.permit()), world.stream()
    rounds(world)
    world.revoke()
    end(world, run)
    rounds(world)
    assert (world.reason(revoked), ends(world, revoked)) == ("expired", [])
    assert ends(world, other) == ["done"]


def test_a_client_that_leaves_while_the_end_goes_out_is_passed_over(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = streams(world, 4)
    end(world, run)
    monkeypatch.setattr(module, "_TURN", 1)
    world.room[fds[2]] = 5  # it would stall

    def leave() -> None:
        world.gone.add(fds[1])
        for fd in fds[1:3]:
            world.row(fd).on_hang_up(fd)

    world.in_pause = [leave]
    rounds(world)
    assert [ends(world, fd) for fd in fds] == [["done"], [], [], ["done"]]
    assert sorted(world.doomed) == sorted(fds)


def test_a_newcomer_does_not_join_a_row_that_has_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(world.store, "a")
    fds = streams(world, 2)
    end(world, run)
    monkeypatch.setattr(module, "_TURN", 1)
    came: list[int] = []
    world.in_pause = [lambda: came.append(world.stream())]
    rounds(world)
    (new,) = came
    assert [ends(world, fd) for fd in (*fds, new)] == [["done"]] * 3
    assert sorted(world.doomed) == sorted([*fds, new])


def test_an_end_that_the_ring_here_has_passed_is_read_from_the_store(world: World, run: Run) -> None:
    fds = streams(world, 2)
    end(world, run, "stopped")
    with world.hub.lock:
        channel = world.hub._channels["a"]
        assert channel.ring is not None
        channel.ring.shrink(0)
    rounds(world)
    for fd in fds:
        assert (texts(world, fd), ends(world, fd)) == (["x"], ["stopped"])
    assert sorted(world.doomed) == sorted(fds)


def test_the_stream_of_two_channels_goes_on_for_the_one_that_lives(world: World, run: Run) -> None:
    fds = []
    for _ in range(3):
        fd = next(world._numbers)
        options = {"heartbeat": 15.0, "lifetime": 600.0, "retry": RETRY, "clock": lambda: world.now}
        stream = Stream(world.hub, {"a": Start(), "b": Start()}, **options)
        stream.open()
        world.rows.take_over_stream(fd, stream, chunked=False)
        fds.append(fd)
    end(world, run)
    rounds(world)
    assert world.rows_now == 1, "they are one row"
    other = Run(world.store, "b")
    write(world, other, "z")
    end(world, other, "lost")
    rounds(world)
    for fd in fds:
        assert (texts(world, fd), ends(world, fd)) == (["x", "z"], ["done", "lost"])
        assert world.told(fd).count(b"retry: ") == 1
    assert sorted(world.doomed) == sorted(fds)


def test_waiting_polls_are_answered_with_the_end(world: World, run: Run) -> None:
    fds = [world.poll() for _ in range(3)]
    end(world, run, "interrupted")
    rounds(world)
    for fd in fds:
        answer = json.loads(world.told(fd).partition(b"\r\n\r\n")[2])
        assert (answer["events"], answer["ended"]) == ([], {"a": "interrupted"})


# The states of sources


def test_a_row_is_told_that_a_source_fails_and_newcomers_join_it_afterwards(world: World) -> None:
    fds = streams(world, 3)
    world.hub.set_source("a", "up")
    rounds(world)
    world.hub.set_source("a", "down")
    rounds(world)
    told = [
        re.findall('event: sse.source\ndata: {"channel":"a","state":"(.*?)"', world.told(fd).decode()) for fd in fds
    ]
    assert told == [["up", "down"]] * 3
    new = world.stream()
    rounds(world)
    assert world.row(new) is world.row(fds[0]), "both know the same state"
    assert world.told(new) == b""
    world.publish()
    rounds(world)
    assert all(world.events(fd) == ["news"] for fd in (*fds, new))


def test_rows_that_were_told_different_states_do_not_merge(world: World) -> None:
    old = world.stream()
    rounds(world)
    world.hub.set_source("a", "up")
    new = world.stream()  # its opening says so
    assert world.row(old) is not world.row(new)
    rounds(world)
    assert b"sse.source" in world.told(old)
    assert b"sse.source" not in world.told(new)
    assert world.row(old) is world.row(new)


def test_a_waiting_poll_is_answered_when_a_source_changes(world: World) -> None:
    fd = world.poll()
    world.round()
    assert not world.told(fd)
    world.hub.set_source("a", "down")
    rounds(world)
    answer = json.loads(world.told(fd).partition(b"\r\n\r\n")[2])
    assert (answer["events"], answer["source"]) == ([], {"a": "down"})


def test_an_ordinary_event_of_a_run_s_channel_keeps_its_place(world: World, run: Run) -> None:
    (fd,) = streams(world, 1)
    run.write("y", Event("1", "step"), "z")
    end(world, run)
    rounds(world)
    order = re.findall("(?m)^data: (?!{)(.*)$", world.told(fd).decode())
    assert order == ["x", "y", "1", "z"]
