"""Very many clients on one event loop: streams, polls and publishers, which come back as the protocol says.

Each client checks what it hears: on each of its channels, the numbers from 0 on, each once and in order. What no client
should meet goes into `Fleet.faults`, with the moment and the client.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.tokens import KEY

_ADDRESSES = 50  # of loopback, from which the clients come: a proxy or the service may limit each of them
_PATIENCE = 40.0  # seconds after which an answer counts as missing
_AT_ONCE = 200  # streams that open at the same time at the start


class Fleet:
    """Streams, polls and publishers of one service.

    :param address: the host and port of the service.
    :param channels: the channels. Stream and poll number N listens to channel N modulo their count. Each tenth stream
        listens to the next channel too.
    :param rate: events a second, over all channels.
    """

    def __init__(self, address: tuple[str, int], channels: Sequence[str], rate: float) -> None:
        self.address, self.channels, self.rate = address, channels, rate
        self.published = dict.fromkeys(channels, 0)
        """How many numbers each channel has had."""
        self.faults: list[str] = []
        self.ends: list[float] = []
        """When streams have had their `sse.close`, by the monotonic clock."""
        self.returns: list[float] = []
        """When streams that had ended before were open again."""
        self.retries: list[float] = []
        """The `retry` of each `sse.close`, in seconds."""
        self.answers: Counter[str] = Counter()
        self.readers: list[_Stream | _Poll] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()

    def fault(self, who: object, what: str) -> None:
        self.faults.append(f"{time.monotonic():.2f} {who}: {what}")

    async def open(self, streams: int, polls: int) -> None:
        """Open the streams and begin the polls. Return when all streams are open."""
        for begin in range(0, streams, _AT_ONCE):
            some = [_Stream(self, number) for number in range(begin, min(begin + _AT_ONCE, streams))]
            self.readers += some
            for stream in some:
                stream.connect()
            await self.until(lambda some=some: all(one.is_open for one in some), f"streams from {begin} are open")
        crowd = [_Poll(self, number) for number in range(polls)]
        self.readers += crowd
        self._tasks += [asyncio.create_task(poll.run()) for poll in crowd]
        await self.until(lambda: all(poll.last_event_id for poll in crowd), "polls have positions")

    def publish(self) -> None:
        """Begin to publish, each channel's numbers one after another."""
        self._publishers = [asyncio.create_task(self._publish(number)) for number in range(len(self.channels))]
        self._tasks += self._publishers

    async def finish(self, timeout: float = 20) -> None:
        """End the publishing, and wait until every client has heard the last number of its channels."""
        self._stop.set()
        async with asyncio.timeout(_PATIENCE):
            await asyncio.gather(*self._publishers)
        await self.until(lambda: all(one.is_at_end for one in self.readers), "all have heard the last number", timeout)

    async def close(self) -> None:
        """Let all clients go."""
        self._stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self.readers:
            one.close()

    @property
    def open_streams(self) -> int:
        return sum(one.is_open for one in self.readers if isinstance(one, _Stream))

    async def until(self, check: Any, what: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not check():
            if time.monotonic() > deadline or len(self.faults) > 1000:
                raise AssertionError(f"not within {timeout} s: {what}; {self.faults[:5]}")
            await asyncio.sleep(0.05)

    async def _publish(self, number: int) -> None:
        channel = self.channels[number]
        client = _Kept(self, f"publisher of {channel}", number)
        pause = len(self.channels) / self.rate
        due = time.monotonic() + pause * number / len(self.channels)
        while not self._stop.is_set():
            await asyncio.sleep(max(due - time.monotonic(), 0))
            due += pause
            data = str(self.published[channel]).encode()
            head = (
                f"POST /sse/publish/{channel} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
                f"Idempotency-Key: {number:08}-{data.decode()}\r\nContent-Type: text/plain\r\n"
                f"Content-Length: {len(data)}\r\n\r\n"
            )
            for _ in range(20):
                status, _body = await client.ask(head.encode() + data)
                self.answers[f"publish {status}"] += 1
                if status == 201:
                    break
                self.fault(client.name, f"status {status}")
                await asyncio.sleep(0.5)
            self.published[channel] += 1
        client.drop()


class _Heard:
    """The numbers that a client has heard, for each of its channels."""

    def __init__(self, fleet: Fleet, number: int, kind: str, count: int) -> None:
        self.fleet, self.number, self.name = fleet, number, f"{kind} {number}"
        all_channels = fleet.channels
        self.next = {all_channels[(number + more) % len(all_channels)]: 0 for more in range(count)}
        self.last_event_id = ""

    def __str__(self) -> str:
        return self.name

    def hear(self, channel: str, data: str) -> None:
        number, expected = int(data), self.next[channel]
        if number != expected:
            self.fleet.fault(self, f"{channel} had {number} instead of {expected}")
        self.next[channel] = number + 1

    @property
    def is_at_end(self) -> bool:
        return all(number == self.fleet.published[channel] for channel, number in self.next.items())

    @property
    def local(self) -> tuple[str, int]:
        return f"127.0.1.{1 + self.number % _ADDRESSES}", 0


class _Stream(_Heard, asyncio.Protocol):
    """A stream that comes back after `retry` milliseconds, as an EventSource does."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        super().__init__(fleet, number, "stream", 2 if number % 10 == 0 else 1)
        self.is_open = False
        self._closed = self._has_returned = False
        self._transport: asyncio.Transport | None = None
        self._begin()

    def _begin(self) -> None:
        self._head: bytes | None = b""
        self._chunks = self._text = b""
        self._retry: float | None = None
        self._has_ended = False

    def connect(self) -> None:
        if not self._closed:
            task = asyncio.ensure_future(self._connect())
            self.fleet._tasks.append(task)
            task.add_done_callback(self.fleet._tasks.remove)

    async def _connect(self) -> None:
        self._begin()
        try:
            async with asyncio.timeout(_PATIENCE):
                await asyncio.get_running_loop().create_connection(
                    lambda: self, *self.fleet.address, local_addr=self.local
                )
        except OSError as error:
            self.fleet.fault(self, f"not connected: {error!r}")
            self._again(1)

    def _again(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self.connect)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        query = "&".join(f"channel={channel}" for channel in self.next)
        at = f"Last-Event-ID: {self.last_event_id}\r\n" if self.last_event_id else ""
        transport.write(f"GET /sse/stream?{query} HTTP/1.1\r\nHost: localhost\r\n{at}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._head = None
            if not head.startswith(b"HTTP/1.1 200 ") or b"chunked" not in head.lower():
                self.fleet.fault(self, f"answer {head!r}")
        self._chunks += data
        while not self._has_ended:
            size, found, rest = self._chunks.partition(b"\r\n")
            if not found or len(rest) < (length := int(size, 16)) + 2:
                break
            self._text += rest[:length]
            self._chunks = rest[length + 2 :]
            self._has_ended = not length
        *blocks, self._text = self._text.split(b"\n\n")
        for block in blocks:
            self._take(block.decode())
        if self._has_ended and self._transport:
            self._transport.close()

    def _take(self, block: str) -> None:
        fields = dict(line.partition(": ")[::2] for line in block.split("\n"))
        kind, data = fields.get("event", "message"), fields.get("data", "")
        self.last_event_id = fields.get("id", self.last_event_id)
        if not kind.startswith("sse."):
            self.hear(fields["id"].partition("=")[0], data)
        elif kind == "sse.open":
            self.is_open = True
            if self._has_returned:
                self.fleet.returns.append(time.monotonic())
        elif kind == "sse.close":
            closed = json.loads(data)
            if closed["reason"] != "drain" or fields.get("retry") != str(closed["retry"]):
                self.fleet.fault(self, block)
            self._retry = closed["retry"] / 1000
            self.fleet.retries.append(self._retry)
            self.fleet.ends.append(time.monotonic())
        elif kind != "sse.heartbeat":
            self.fleet.fault(self, block)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open, self._has_returned = False, True
        if self._closed:
            return
        if error or not self._has_ended or self._retry is None:
            self.fleet.fault(self, f"cut: {error!r}, {self._head!r}, {self._text!r}")
        self._again(1 if self._retry is None else self._retry)

    def close(self) -> None:
        self._closed = True
        if self._transport:
            self._transport.abort()


class _Kept:
    """A connection that is kept between requests."""

    def __init__(self, fleet: Fleet, name: str, number: int) -> None:
        self.fleet, self.name = fleet, name
        self.local = f"127.0.1.{1 + number % _ADDRESSES}", 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Return the answer's status and body; 0 if there is no answer."""
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._ask(request)
        except (OSError, EOFError, TimeoutError) as error:
            self.fleet.fault(self.name, f"no answer: {error!r}")
            self.drop()
            return 0, b""

    async def _ask(self, request: bytes) -> tuple[int, bytes]:
        if not self._streams:
            self._streams = await asyncio.open_connection(*self.fleet.address, local_addr=self.local)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("\r\ncontent-length: ")[2].partition("\r\n")[0])
        body = await reader.readexactly(length)
        if "\r\nconnection: close\r\n" in head:
            self.drop()
        return int(head.split()[1]), body

    def drop(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None


class _Poll(_Heard):
    """A client that polls without end."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        super().__init__(fleet, number, "poll", 1)
        self._kept = _Kept(fleet, self.name, number)

    async def run(self) -> None:
        query = "&".join(f"channel={channel}" for channel in self.next)
        for _ in range(100_000):
            timeout = 20 if self.last_event_id else 0
            target = f"/sse/poll?{query}&timeout={timeout}&last_event_id={self.last_event_id}"
            status, body = await self._kept.ask(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            self.fleet.answers[f"poll {status}"] += 1
            if status != 200:
                self.fleet.fault(self, f"status {status}")
                await asyncio.sleep(0.5)
                continue
            answer = json.loads(body)
            if answer["resets"]:
                self.fleet.fault(self, str(answer["resets"]))
            for event in answer["events"]:
                self.hear(event["channel"], event["data"])
            self.last_event_id = answer["last_event_id"]

    def close(self) -> None:
        self._kept.drop()
