"""The surroundings of sse/server/rows.py, made of lists and dicts: a socket is a list, and tests set the clock."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from typing import Any

from sse.access.permit import Permit
from sse.access.revocations import Revocations
from sse.access.token import Grant
from sse.hub.hub import Hub
from sse.hub.subscriber import Start
from sse.server.effects import Effects, EndFunctions
from sse.server.rounds import Rounds
from sse.server.rows import Rows
from sse.server.wheel import Wheel
from sse.stores import MemoryStore
from sse.transports.poll import Poll
from sse.transports.stream import Stream
from tests.publishing import publish_to_store

KEPT = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n"
CLOSED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


class World:
    """Rows over a real hub and the memory store, and records of all that the rows do."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.got: dict[int, list[bytes]] = defaultdict(list)  # by connection, what each write has brought
        self.room: dict[int, int] = {}  # bytes that it takes, if not all
        self.sent: dict[int, bytes] = {}  # that no client has read
        self.gone: set[int] = set()
        self.interest: dict[int, str] = {}
        self.in_pause: list[Callable[[], object]] = []  # called in the next pauses, one after the other
        self.asked: list[Callable[[], object]] = []
        self.later: list[Callable[[], object]] = []
        self.doomed: list[int] = []
        self.closed: list[int] = []
        self.given_back: list[int] = []
        self.has_greenlets = True
        self.finished: list[object] = []
        self.log: list[str] = []
        self.openings: dict[int, bytes] = {}
        self.ended: list[tuple[str, str, float, int, int, str]] = []
        self.wakes = 0
        self.wheel: Wheel[Any] = Wheel(self.now)
        self.rows = Rows(self._effects(), 75)
        self.rounds = Rounds(self.rows)
        self.store = MemoryStore(ring=100, ring_ttl=600)
        self.hub = Hub(self.store, max_subscribers=100)
        self.revocations = Revocations(self.store, 600)
        self._numbers = count(1)

    def _effects(self) -> Effects:
        return Effects(
            write=self._write,
            read=self._read,
            unread=lambda fd: len(self.sent.get(fd, b"")),
            clock=lambda: self.now,
            timer=self.wheel.add,
            register=self.interest.__setitem__,
            modify=self.interest.__setitem__,
            unregister=self.interest.pop,
            pause=self._pause,
            sleep=lambda _: self._pause(),
            call_in_greenlet=self.asked.append,
            call_later=lambda _, call: self.later.append(call),
            wake=self._wake,
            close=self.closed.append,
            close_after_round=self._doom,
            call_all=self.finished.extend,
            give_back=self._give_back,
            wake_lane=lambda: None,
            ended=lambda *end: self.ended.append(end),
            warn=lambda line, *values: self.log.append(line % values),
            fault=self.log.append,
        )

    def _write(self, fd: int, data: bytes | memoryview) -> int:
        if fd in self.gone:
            raise BrokenPipeError
        takes = min(self.room.get(fd, len(data)), len(data))
        if not takes:
            raise BlockingIOError
        self.got[fd].append(bytes(data[:takes]))
        if fd in self.room:
            self.room[fd] -= takes
        return takes

    def _read(self, fd: int, size: int) -> bytes:
        if fd in self.gone:
            return b""
        data = self.sent.pop(fd, b"")
        if not data:
            raise BlockingIOError
        return data[:size]

    def _pause(self) -> None:
        if self.in_pause:
            self.in_pause.pop(0)()

    def _wake(self) -> None:
        self.wakes += 1

    def _doom(self, fd: int, closing: EndFunctions) -> None:
        self.doomed.append(fd)
        self.finished.extend(closing)

    def _give_back(self, fd: int) -> bool:
        if self.has_greenlets:
            self.given_back.append(fd)
        return self.has_greenlets

    # Called by the tests

    def stream(
        self, channel: str = "a", *, chunked: bool = False, position: Any = None, request_id: str = "", **options: Any
    ) -> int:
        fd = next(self._numbers)
        given = {"heartbeat": 15.0, "lifetime": 600.0, "retry": 1000, "clock": lambda: self.now, **options}
        stream = Stream(self.hub, {channel: Start(position)}, **given)
        stream.request_id = request_id
        self.openings[fd] = stream.open()
        self.rows.take_over_stream(fd, stream, chunked=chunked)
        return fd

    def streams(self, number: int, **options: Any) -> list[int]:
        """Open streams that share a row, in the order in which the row writes to them."""
        fds = [self.stream(**options) for _ in range(number)]
        self.round()
        (row,) = {self.rows.row_of[fd] for fd in fds}
        return list(row.fds)

    def poll(
        self,
        channel: str = "a",
        *,
        head: bytes = KEPT,
        read_ahead: bytes = b"",
        request_id: str = "",
        **options: Any,
    ) -> int:
        fd = next(self._numbers)
        given = {"timeout": 20.0, "retry": 1000, "clock": lambda: self.now, **options}
        poll = Poll(self.hub, {channel: Start(self.position(channel))}, **given)
        poll.request_id = request_id
        assert poll.open() is None
        self.rows.take_over_poll(fd, poll, head, read_ahead)
        return fd

    def permit(self, seconds: float = 600, sub: str = "ann") -> Permit:
        grant = Grant(sub, ("a",), ends_at=time.time() + seconds, issued_at=time.time() - 100)
        return Permit(self.revocations, grant, ["a"])

    def revoke(self) -> None:
        self.revocations.revoke("sub", "ann")

    def publish(self, data: str = "news", channel: str = "a") -> None:
        """Publish, and wait until the hub has woken its subscribers."""
        [position] = publish_to_store(self.store, channel, data)
        end = time.monotonic() + 5
        while not self.hub.newest([channel]) & {(channel, position), (channel, None)}:
            assert time.monotonic() < end
            time.sleep(0.001)

    def position(self, channel: str = "a") -> Any:
        self.store.ensure([channel])
        (position,) = self.store.newest([channel])
        return position

    def round(self) -> None:
        self.rounds.run()

    def answer(self) -> None:
        """Let the store answer all reads, and so the polls that wait for more."""
        for call in (*self.asked, *self.later):
            call()
        self.asked.clear()
        self.later.clear()

    def pass_by(self, seconds: float) -> None:
        """Let time pass in steps of 0.1 s, and let the rows do what is due."""
        for _ in range(max(int(seconds * 10), 1)):
            self.now += 0.1
            for slot, items in self.wheel.turn(self.now):
                self.rounds.look_at_slot(slot, items)
            self.rows.check_late()
            self.round()

    def row(self, fd: int) -> Any:
        return self.rows.row_of[fd]

    def told(self, fd: int) -> bytes:
        return b"".join(self.got[fd])

    def events(self, fd: int) -> list[str]:
        return re.findall("(?m)^data: (?!{)(.*)$", self.told(fd).decode())

    def reason(self, fd: int) -> str | None:
        found = re.search(r"event: sse.close\n(?:.*\n)*?data: ({.*})\n", self.told(fd).decode())
        return json.loads(found[1])["reason"] if found else None

    def answered(self, fd: int) -> list[str]:
        """Return the data of the events in a poll's complete answer."""
        head, _, body = self.told(fd).partition(b"\r\n\r\n")
        assert b"\r\nContent-Length: %d" % len(body) in head
        return [event["data"] for event in json.loads(body)["events"]]

    @property
    def rows_now(self) -> int:
        return len({id(row) for row in self.rows.row_of.values()})

    def end(self) -> None:
        """End the hub, and the thread that looks for revocations."""
        self.hub.close()
        self.revocations.close()
