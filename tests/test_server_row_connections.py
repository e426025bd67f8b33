"""What a row writes to one of its connections, and when."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from sse.access.permit import Permit
from sse.access.revocations import Revocations
from sse.access.token import Grant
from sse.event import Event
from sse.hub.hub import Hub
from sse.hub.subscriber import Start
from sse.server.handed_off import HandedOff
from sse.server.loop import Loop
from sse.server.row import Row
from sse.server.rows import Rows, Streams
from sse.stores import MemoryStore, Publication
from sse.transports.life import ClientPart
from sse.transports.stream import Stream
from tests.gevent_hubs import in_a_hub


def test_a_notice_waits_until_its_row_has_told_what_it_took() -> None:
    store = MemoryStore(ring=10, ring_ttl=60)
    hub = Hub(store, max_subscribers=10)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    permit = Permit(Revocations(store, 60), Grant("ann", ("a",), ends_at=time.time() + 30), ["a"])
    rows: Any = SimpleNamespace(handed_off=HandedOff(), draining=False, set_end=lambda fd, _: kept.append(fd))
    rows.effects = SimpleNamespace(write=os.write, clock=time.monotonic)
    rows.next_of = partial(Rows.next_of, rows)
    rows.handed_off.add(writing, ClientPart(math.inf, permit, ()))
    kept: list[int] = []
    try:
        stream = Stream(hub, {"a": Start()}, heartbeat=15, lifetime=60, retry=1)
        stream.open()
        row = Streams(rows, stream, chunked=False)
        row.fds = (writing,)
        store.publish([Publication("a", Event("news"))])
        row.is_asking = True  # as while the store is asked, when the stream is ahead of what its connections have got
        row.check(writing)
        row.is_asking, row.chunk = False, stream.next_bytes()
        row.check(writing)
        assert permit.warn_at < math.inf
        row.chunk = None
        row.check(writing)
        assert os.read(reading, 1000).startswith(b"event: sse.auth\n")
        assert kept == [writing] * 3
    finally:
        stream.close()
        hub.close()
        for fd in (reading, writing):
            os.close(fd)


@pytest.mark.parametrize("bare", [False, True])
def test_streams_that_come_after_an_event_share_a_row_as_those_before_it_did(*, bare: bool) -> None:
    store = MemoryStore(ring=10, ring_ttl=60)
    hub = Hub(store, max_subscribers=30)
    with ExitStack() as stack:
        stack.callback(hub.close)

        def run() -> None:
            loop: Any = Loop(logging.getLogger(), 75, lambda *_: True)
            rows = loop.rows

            def add() -> None:
                ours, peer = socket.socketpair()
                stack.callback(peer.close)
                ours.setblocking(False)
                stream = Stream(hub, {"a": Start()}, heartbeat=15, lifetime=60, retry=1000, bare=bare)
                stream.open()
                rows.take_over_stream(ours.detach(), stream, chunked=True)

            def become(count: int) -> None:
                end = time.monotonic() + 5
                while (found := len(set(rows.row_of.values()))) != count:
                    assert time.monotonic() < end, f"{found} rows, not {count}"
                    gevent.sleep(0.01)

            for count in (1, 2 if bare else 1):
                for _ in range(10):
                    add()
                # Streams that have been told no event yet are apart, because their first event tells `retry`.
                become(count)
                for _ in range(2):  # rows at the same position merge with the next event
                    store.publish([Publication("a", Event("news"))])
                    gevent.sleep(0.1)
                become(1)
            for fd in list(rows.row_of):
                rows.end(fd)
            gevent.sleep(0.1)

        in_a_hub(run)


class Telling:
    """A loop in its own thread. Each of its rows takes `cost` seconds to write."""

    def __init__(self, rows: int, cost: float, again: bool = False) -> None:
        self.told: list[float] = []
        self.loop: Any = Loop(logging.getLogger(), 75, lambda *_: True)
        self.rows = [self._row(number, cost, again) for number in range(rows)]

    def _row(self, number: int, cost: float, again: bool) -> Row:
        telling = self

        class Slow(Row):
            def serve(self) -> None:
                end = time.perf_counter() + cost
                while time.perf_counter() < end:
                    pass
                telling.told.append(time.monotonic())
                self.rows.effects.pause()
                if again:
                    self.rows.agenda.serve_soon(self)

        row = Slow(self.loop.rows)
        row.fds = (-number - 1,)  # no file is behind it
        self.loop.rows.row_of[-number - 1] = row
        return row

    def call_all(self) -> None:
        for row in self.rows:
            self.loop.rows.agenda.serve_soon(row)


def test_publishers_wait_in_line_while_many_rows_are_late_and_nobody_else_does() -> None:
    def run() -> None:
        telling = Telling(rows=200, cost=0.001)
        admitted: list[tuple[int, int]] = []
        others: list[int] = []

        def publisher(number: int) -> None:
            telling.loop.backpressure.admit()
            admitted.append((number, len(telling.told)))

        def other() -> None:
            others.append(len(telling.told))

        telling.call_all()
        gevent.sleep(0.03)  # so that they are late
        publishers = [gevent.spawn(publisher, number) for number in range(5)]
        gevent.spawn(other).join(5)
        gevent.joinall(publishers, timeout=5)
        assert [number for number, _ in admitted] == [0, 1, 2, 3, 4]
        assert admitted[0][1] >= 200 - 64
        assert others[0] < 100

    in_a_hub(run)


def test_publishers_wait_while_announcements_for_many_channels_are_unread_though_no_row_is_late() -> None:
    def run() -> None:
        telling = Telling(rows=1, cost=0)
        unread = time.monotonic() - 0.02
        telling.loop.backpressure.unread_since = lambda: unread
        publisher = gevent.spawn(telling.loop.backpressure.admit)
        gevent.sleep(0.2)
        assert not publisher.ready()
        unread = 0.0
        publisher.join(0.5)
        assert publisher.ready()

    in_a_hub(run)


def test_publishers_do_not_wait_for_few_rows_that_share_writes_nor_where_nobody_listens() -> None:
    def run() -> None:
        for rows in (0, 1, 50):
            telling = Telling(rows, cost=0.002)
            telling.call_all()
            gevent.sleep(0.03)
            before = len(telling.told)
            telling.loop.backpressure.admit()
            assert len(telling.told) == before

    in_a_hub(run)


def test_publishers_who_go_on_without_a_pause_let_the_loop_tell_in_between() -> None:
    def run() -> None:
        telling = Telling(rows=1, cost=0.001)
        told = []
        for _ in range(20):
            telling.call_all()
            telling.loop.backpressure.admit()
            end = time.perf_counter() + 0.005  # a publish that never switches, as into the memory store
            while time.perf_counter() < end:
                pass
            told.append(len(telling.told))
        assert told[-1] >= 4, told

    in_a_hub(run)


def test_a_publisher_waits_a_second_at_the_most_and_one_that_is_ended_does_not_hold_up_the_next() -> None:
    def run() -> None:
        telling = Telling(rows=200, cost=0.001, again=True)  # never done
        telling.call_all()
        gevent.sleep(0.03)
        began = time.monotonic()
        ended = gevent.spawn(telling.loop.backpressure.admit)
        others = [gevent.spawn(telling.loop.backpressure.admit) for _ in range(3)]
        gevent.sleep(0.1)
        ended.kill()
        gevent.joinall(others, timeout=10)
        assert all(one.successful() for one in others)
        assert 0.8 < time.monotonic() - began < 5
        assert not telling.loop.backpressure._queue

    in_a_hub(run)


def test_a_thread_of_the_app_s_own_and_the_loop_itself_do_not_wait() -> None:
    def run() -> None:
        telling = Telling(rows=200, cost=0.001)
        telling.call_all()
        gevent.sleep(0.03)
        other = threading.Thread(target=telling.loop.backpressure.admit)
        other.start()
        other.join(5)
        assert not other.is_alive()

        class Publishing(Row):
            def serve(self) -> None:
                began = len(telling.told)
                telling.loop.backpressure.admit()
                waited.append(len(telling.told) - began)

        waited: list[int] = []
        row = Publishing(telling.loop.rows)
        row.fds = (-1000,)
        telling.loop.rows.agenda.serve_soon(row)
        with gevent.Timeout(10):
            while not waited:
                gevent.sleep(0.01)
        assert waited == [0]

    in_a_hub(run)


def test_the_loop_takes_as_much_time_as_the_others_took() -> None:
    """The loop measures the time of the others between two portions of writes."""

    def run() -> None:
        telling = Telling(rows=64, cost=0.001)
        busy = True

        def other() -> None:
            while busy:
                end = time.thread_time() + 0.01
                while time.thread_time() < end:
                    pass
                gevent.sleep(1e-6)

        one = gevent.spawn(other)
        used = time.thread_time()
        telling.call_all()
        while len(telling.told) < 64:
            gevent.sleep(0.01)
        used = time.thread_time() - used
        busy = False
        one.join(5)
        # 64 ms for the rows and as much for the other; in slices of 1 ms it would be 64 times 10 ms for the other.
        assert used < 0.4, used

    in_a_hub(run)
