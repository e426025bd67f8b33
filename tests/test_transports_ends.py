"""The ends of streams and polls, with a clock that the tests set where time matters."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest

from sse.access.permit import WARNING, Permit
from sse.access.revocations import Revocations
from sse.access.token import LEEWAY, Grant
from sse.event import Event, LastEventId
from sse.hub.hub import Hub
from sse.hub.subscriber import Start, Subscriber, starting_points
from sse.stores import MemoryStore, Publication
from sse.transports.life import STALLED_AFTER
from sse.transports.poll import Poll
from sse.transports.stream import Stream
from tests import client
from tests.servers import wait_until


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(ring=10, ring_ttl=60)


@pytest.fixture
def hub(store: MemoryStore) -> Iterator[Hub]:
    hub = Hub(store, max_subscribers=5)
    yield hub
    assert hub.subscribers == 0
    hub.close()


@pytest.fixture
def revocations(store: MemoryStore) -> Iterator[Revocations]:
    revocations = Revocations(store, 3600)
    yield revocations
    assert not revocations._watched
    revocations.close()


class Clock:
    """The monotonic clock and the wall clock, which begin together. Time passes only when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._began = time.time()
        self.now = 1000.0
        self.set_by = 0.0
        """Seconds by which the wall's clock has been set."""
        monkeypatch.setattr("time.time", lambda: self.wall)

    @property
    def wall(self) -> float:
        return self._began + self.now - 1000 + self.set_by

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def permit(revocations: Revocations, clock: Clock, seconds: float) -> Permit:
    """Return a permit that is over in so many seconds."""
    return Permit(revocations, Grant("ann", ("a",), ends_at=clock.wall + seconds), ["a"])


def stream(hub: Hub, clock: Clock, **options: Any) -> Stream:
    return Stream(hub, {"a": Start()}, **{"heartbeat": 15, "lifetime": 900, "retry": 1000, "clock": clock, **options})


def names(told: bytes) -> list[str]:
    return [event.event for event in client.Parser().feed(told)]


def test_a_stream_that_is_handed_off_gives_up_what_concerns_its_client(
    hub: Hub, revocations: Revocations, clock: Clock
) -> None:
    done: list[str] = []
    body = stream(hub, clock, permit=permit(revocations, clock, 70))
    body.closing = [lambda: done.append("closed")]
    body.open()
    held, deadline = body.permit, body.deadline
    assert held
    assert 1720 <= deadline <= 2080
    assert body.due == pytest.approx(1005)  # the permit's notice
    handed = body.hand_off()
    assert handed == (deadline, held, handed.closing)
    assert body.due == 1015  # the heartbeat alone
    assert body.hand_off() == (inf, None, ())
    clock.now += 5000
    assert body.next_bytes() == body.dialect.beat
    body.close()
    assert (done, revocations._watched, held.wake is None) == ([], {held}, False)
    for closed in handed.closing:
        closed()
    held.end()
    assert done == ["closed"]


def test_a_poll_that_is_handed_off_gives_up_what_concerns_its_client(
    hub: Hub, store: MemoryStore, revocations: Revocations, clock: Clock
) -> None:
    body, _ = waiting(hub, store, clock, permit(revocations, clock, 70))
    held = body.permit
    body.closing = closing = [lambda: None]
    assert body.hand_off() == (1030.0, held, closing)
    assert body.hand_off() == (inf, None, ())
    body.close()


def test_the_body_says_whether_it_is_a_stream() -> None:
    assert (Stream.is_stream, Poll.is_stream) == (True, False)


def test_a_notice_that_becomes_due_while_a_chunk_is_written_is_not_slept_over(
    hub: Hub, revocations: Revocations, clock: Clock
) -> None:
    body = stream(hub, clock, permit=permit(revocations, clock, LEEWAY + WARNING + 5))
    body.open()
    assert body.next_bytes() == b""
    assert body.due == pytest.approx(1005)
    clock.now += 5.001
    assert body.due <= clock.now
    assert names(body.next_bytes()) == ["sse.auth"]
    assert body.due == 1015
    body.close()


@pytest.mark.parametrize("drains", [False, True])
def test_a_notice_of_the_same_moment_comes_before_the_goodbye(
    hub: Hub, revocations: Revocations, clock: Clock, *, drains: bool
) -> None:
    body = stream(hub, clock, lifetime=100, permit=permit(revocations, clock, LEEWAY + 170))
    body.open()
    if drains:
        hub.drain(0)
    clock.now += 120
    notice, close = client.Parser().feed(body.next_bytes())
    assert (notice.event, notice.json()) == ("sse.auth", {"expires": 50})
    assert (close.event, close.json()["reason"]) == ("sse.close", "drain" if drains else "lifetime")
    assert body.reason == ("drain" if drains else "lifetime")
    body.close()


@pytest.mark.parametrize("has_more", [False, True])
def test_a_permit_that_is_over_takes_the_place_of_the_chunk_and_of_every_other_end(
    hub: Hub, store: MemoryStore, revocations: Revocations, clock: Clock, *, has_more: bool
) -> None:
    body = stream(hub, clock, permit=permit(revocations, clock, 50))
    body.open()
    if has_more:
        store.publish([Publication("a", Event("secret"))])
        while not body.subscriber.is_behind():
            time.sleep(0.01)
    hub.drain(0)
    clock.now += 5000
    told = body.next_bytes()
    assert names(told) == ["sse.close"]
    assert b'"reason":"expired"' in told
    assert b"secret" not in told
    body.close()


def test_a_stream_is_due_when_its_permit_is_over_and_is_woken_when_that_is_revoked(
    hub: Hub, revocations: Revocations, clock: Clock
) -> None:
    over, revoked = (stream(hub, clock, permit=permit(revocations, clock, seconds)) for seconds in (10, 5000))
    for body in over, revoked:
        body.open()
        body.next_bytes()
    assert (over.due, revoked.due) == (1010, 1015)
    assert not revoked.subscriber.wait(0)
    clock.now += 10
    revocations.revoke("sub", "ann")
    assert over.due <= clock.now
    assert revoked.subscriber.wait(0)
    assert [names(body.next_bytes()) for body in (over, revoked)] == [["sse.close"]] * 2
    for body in over, revoked:
        body.close()


def test_a_goodbye_that_is_written_slowly_is_the_last_word(hub: Hub, clock: Clock) -> None:
    body = iter(stream(hub, clock))
    next(body)
    hub.drain(0)
    assert names(next(body)) == ["sse.close"]
    clock.now += STALLED_AFTER + 1
    assert list(body) == []


@pytest.mark.parametrize(("seconds", "reason"), [(9000, None), (4000, "expired")])
def test_a_bare_stream_that_is_lost_is_cut_whatever_else_ends_it(
    hub: Hub, store: MemoryStore, revocations: Revocations, clock: Clock, seconds: float, reason: str | None
) -> None:
    body = stream(hub, clock, bare=True, permit=permit(revocations, clock, seconds))
    body.open()
    assert body.next_bytes() == b""
    store._rings.clear()
    store.publish([Publication("a", Event("another life"))])
    wait_until(lambda: hub._channels["a"].generation, 8)
    hub.drain(0)
    clock.now += 5000
    told = body.next_bytes()
    assert told.startswith(b': close {"reason":"expired",') if reason else told == b""
    assert (body.ended, body.lost, body.reason, body.cuts) == (True, True, reason, True)
    body.close()


def waiting(hub: Hub, store: MemoryStore, clock: Clock, held: Permit | None = None) -> tuple[Poll, str]:
    """Return a poll that waits 30 s, and its position."""
    (receipt,) = store.publish([Publication("a", Event("before"))])
    place = f"a={receipt.position}"
    body = Poll(hub, starting_points("a", LastEventId.parse(place)), timeout=30, retry=1, permit=held, clock=clock)
    assert body.open() is None
    return body, place


@pytest.fixture
def waited(clock: Clock, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> list[float]:
    """Return the seconds of each wait of an open poll. The waits pass at once."""
    waits: list[float] = []

    def wait(_: Subscriber, seconds: float) -> bool:
        waits.append(seconds)
        clock.now += seconds
        return False

    settled = hub.attach({"a": Start()}, 5)  # a poll that comes now waits for nothing at its opening
    hub.detach(settled)
    monkeypatch.setattr(Subscriber, "wait", wait)
    return waits


@pytest.mark.parametrize(("seconds", "waits"), [(50, [30, 0]), (20, [20])])
def test_a_poll_waits_until_its_time_or_its_permit_is_over(
    hub: Hub,
    store: MemoryStore,
    revocations: Revocations,
    clock: Clock,
    waited: list[float],
    seconds: float,
    waits: list[float],
) -> None:
    body, place = waiting(hub, store, clock, permit(revocations, clock, seconds))
    assert json.loads(body.wait())["last_event_id"] == place
    assert waited == pytest.approx(waits)


def test_a_clock_that_is_set_back_ends_no_poll_before_its_time(
    hub: Hub, store: MemoryStore, revocations: Revocations, clock: Clock, waited: list[float]
) -> None:
    body, _ = waiting(hub, store, clock, permit(revocations, clock, 20))
    clock.set_by = -3600
    body.wait()
    assert waited == [30, 0]


def test_a_clock_that_is_set_ahead_ends_a_poll_at_its_next_look(
    hub: Hub, store: MemoryStore, revocations: Revocations, clock: Clock, waited: list[float]
) -> None:
    body, place = waiting(hub, store, clock, permit(revocations, clock, 5000))
    looks = []

    def has_gone() -> bool:
        looks.append(clock.now)
        clock.set_by = 6000.0
        return False

    body._gone = has_gone
    assert json.loads(body.wait())["last_event_id"] == place
    assert waited == [Poll.LOOK]
    assert len(looks) == 1
