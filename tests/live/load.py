"""Load for the live tests: numbered events, one client that reconnects, and many streams that one thread reads."""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Self, cast

from tests import client
from tests.client import Stream
from tests.servers import Gunicorn
from tests.tokens import KEY

ORIGIN = "https://a.example"
APP = "tests.live.apps.inspected:application"
HEARTBEAT = 3  # seconds
ENV = {
    "SSE_PUBLIC": "*",
    "SSE_PUBLISH_KEYS": KEY,
    "SSE_HEARTBEAT": str(HEARTBEAT),
    "SSE_ORIGINS": ORIGIN,
    "SSE_LANE": "on",  # although the apps of these tests have hooks
}
GREENLETS = ("-k", "gevent")  # gunicorn's own worker, in which each stream keeps its greenlet
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def has_whole_lane(server: Gunicorn) -> bool:
    """Return whether plain requests go past Flask and past gunicorn, as the server's log said at its start."""
    return bool(re.search(r"\] fast lane: on$", server.logs(), re.MULTILINE))


def inspect(server: Gunicorn) -> dict[str, int]:
    """Return what the one worker of the inspected app holds, by name."""
    answer = client.request(server.url, "GET", "/inspect", timeout=10)
    assert answer.status == 200
    return cast("dict[str, int]", answer.json())


class Follower:
    """A client that keeps its last event id, records the numbers, and reconnects with either transport."""

    def __init__(self, url: str, channels: Sequence[str]) -> None:
        self.url = url
        self.channels = list(channels)
        self.id = ""
        self.heard: dict[str, list[int]] = {channel: [] for channel in channels}
        self.workers: list[int] = []  # that served it

    def stream(self, enough: Callable[[], bool], timeout: float = 10) -> Stream:
        """Listen until `enough()`, or until the stream ends, and return the closed stream."""
        params = [("channel", channel) for channel in self.channels]
        with Stream(self.url, params, last_event_id=self.id) as stream:
            assert stream.status == 200
            self.workers.append(int(stream.headers["X-Worker"]))
            for event in stream.events(timeout):
                if event.event == "sse.open":
                    resumed = {channel["resumed"] for channel in event.json()["channels"].values()}
                    assert resumed == {bool(self.id)}
                assert event.event != "sse.reset", event
                self.id = event.id
                if not event.event.startswith("sse."):
                    assert event.data is not None
                    self.heard[event.id.partition("=")[0]].append(int(event.data))
                if enough():
                    break
            return stream

    def poll(self, timeout: int = 5) -> int:
        """Poll once, and return how many events came."""
        answer = client.poll(self.url, self.channels, self.id or None, timeout=timeout)
        assert answer.status == 200, answer
        self.workers.append(int(answer.headers["X-Worker"]))
        batch = answer.json()
        assert batch["resets"] == []
        self.id = batch["last_event_id"]
        for event in batch["events"]:
            self.heard[event["channel"]].append(int(event["data"]))
        return len(batch["events"])

    def is_at(self, count: int) -> bool:
        """Return whether the last of `count` events has come on every channel."""
        return all(numbers and numbers[-1] >= count - 1 for numbers in self.heard.values())

    def finish(self, count: int) -> None:
        """Poll for the rest, and check that each of `count` events came once and in order on every channel."""
        assert count > 0
        for _ in range(20):
            if self.is_at(count):
                break
            self.poll()
        assert self.heard == {channel: list(range(count)) for channel in self.channels}
        assert self.poll(0) == 0


class Member:
    """One stream of a crowd."""

    __slots__ = ("due", "head", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = b""
        self.due = 0.0

    @property
    def is_open(self) -> bool:
        return b"event: sse.heartbeat" in self.head


class Crowd:
    """Many streams that one thread reads, and that can be cut in several ways."""

    def __init__(self, url: str) -> None:
        self.members: set[Member] = set()
        self._address = address(url)
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in list(self.members):
            self.cut(member)
        self._selector.close()

    def open(self, count: int, channel: Callable[[], str], path: str = "/sse/stream?channel=") -> list[Member]:
        opened = []
        for number in range(count):
            sock = socket.create_connection(self._address, 10)
            sock.sendall(f"GET {path}{channel()} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            sock.setblocking(False)
            member = Member(sock)
            self.members.add(member)
            self._selector.register(sock, selectors.EVENT_READ, member)
            opened.append(member)
            if number % 50 == 49:
                assert not self.read(0), "a stream was ended"
        return opened

    def cut(self, member: Member, how: str = "close") -> None:
        self.members.discard(member)
        self._selector.unregister(member.sock)
        if how == "reset":
            member.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        elif how == "half":
            with contextlib.suppress(OSError):
                member.sock.shutdown(socket.SHUT_WR)
        member.sock.close()

    def read(self, timeout: float) -> list[Member]:
        """Read what has come, and return the members whose stream the server has ended."""
        ended = []
        for key, _ in self._selector.select(timeout):
            member = key.data
            try:
                data = member.sock.recv(65536)
            except ConnectionError:
                data = b""
            member.head = (member.head + data)[:4096]
            if not data:
                ended.append(member)
                self.cut(member)
        return ended

    def settle(self, timeout: float = 20) -> None:
        """Wait until every stream is open."""
        deadline = time.monotonic() + timeout
        while waiting := [member for member in self.members if not member.is_open]:
            assert time.monotonic() < deadline, f"{len(waiting)} do not open: {waiting[0].head!r}"
            assert not self.read(0.2), "a stream was ended"
