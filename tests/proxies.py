"""TCP proxies on loopback that cut, delay, drop or answer what goes through them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests import servers
from tests.loop_threads import LoopThread


@dataclass(eq=False)
class Connection:
    """A connection of a client, and the one to the upstream server that belongs to it."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    silent: bool = False  # nothing passes any more, though it stays open
    answered: int = 0  # bytes that came down since the last request


class TcpProxy(LoopThread):
    """Forward connections from a port of loopback to the port `upstream` there, until told to cut or to refuse them.

    It may be set at any time: `pace` is how many bytes a second all connections together take downwards, `delay` how
    many seconds each piece that comes down waits, and `room` how many bytes of an answer pass. A longer answer's
    connection is reset there.
    """

    pace: float = float("inf")
    delay: float = 0
    room: float = float("inf")

    def __init__(self, upstream: int) -> None:
        super().__init__("proxy")
        self.port = servers.free_port()  # reserved while no server listens on it
        self.url = f"http://127.0.0.1:{self.port}"
        self._upstream = upstream
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._line = asyncio.Lock()

    def cut(self, reset: bool = False) -> int:
        """End every connection on both sides, by FIN or by RST, and return how many there were."""
        return self._run(self._cut(reset))

    def refuse(self) -> None:
        """Refuse new connections until `admit`. The open ones stay."""
        self._run(self._refuse())

    def admit(self) -> None:
        """Accept new connections."""
        self._run(self._admit())

    def silence(self) -> None:
        """Let nothing more pass on the open connections, which stay open."""
        for connection in self._connections:
            connection.silent = True

    def answered(self) -> int:
        """Return how many bytes have come down on all open connections since their last requests."""
        return sum(connection.answered for connection in list(self._connections))

    def passes(self, connection: Connection, data: bytes, upward: bool) -> bool:
        """Return whether `data` goes on. If it does not, its connection ends. For subclasses."""
        return True

    async def _begin(self) -> None:
        await self._admit()

    async def _admit(self) -> None:
        self._server = self._server or await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=256)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _cut(self, reset: bool) -> int:
        connections = list(self._connections)
        for connection in connections:
            for side in (connection.near, connection.far):
                abort(side, reset)
        return len(connections)

    async def _end(self) -> None:
        await self._refuse()
        for _ in range(50):  # a connection may be on its way to the upstream server
            await self._cut(reset=False)
            if not self._tasks:
                break
            await asyncio.wait(self._tasks, timeout=0.1)

    async def _accept(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError):
            try:
                far_reader, far = await asyncio.open_connection("127.0.0.1", self._upstream)
            except OSError:
                near.transport.abort()
                return
            connection = Connection(near, far)
            self._connections.add(connection)
            try:
                await asyncio.wait(
                    [
                        asyncio.ensure_future(self._pump(connection, reader, far, upward=True)),
                        asyncio.ensure_future(self._pump(connection, far_reader, near, upward=False)),
                    ]
                )
            finally:
                self._connections.discard(connection)

    async def _pump(
        self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upward: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536 if upward else max(1, int(min(65536, self.pace / 20)))):
                if not upward and self.delay:
                    await asyncio.sleep(self.delay)
                if connection.silent:
                    continue
                if not self.passes(connection, data, upward):
                    break
                connection.answered = 0 if upward else connection.answered + len(data)
                over = connection.answered - self.room
                writer.write(data[: len(data) - int(over)] if over > 0 else data)
                await writer.drain()
                if over > 0:
                    abort(connection.near, reset=True)
                if not upward and self.pace < float("inf"):
                    async with self._line:
                        await asyncio.sleep(len(data) / self.pace)
        connection.near.close()  # buffered data is still sent
        connection.far.close()


def abort(side: asyncio.StreamWriter, reset: bool) -> None:
    """End a connection at once on this side, by FIN or by RST."""
    sock = side.get_extra_info("socket")
    if reset and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    side.transport.abort()


class ReplyLosingProxy(TcpProxy):
    """Forward to Redis, but let the reply to a command that contains `marker` reach nobody, `losses` times.

    Redis has executed the command by then, and its client sees that the connection ends.
    """

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream)
        self.marker = b""
        self.losses = self.lost = 0
        self._doomed: set[Connection] = set()

    def lose(self, marker: bytes, losses: int) -> None:
        self.marker, self.losses, self.lost = marker, losses, 0

    def passes(self, connection: Connection, data: bytes, upward: bool) -> bool:
        if upward and self.losses and self.marker in data:
            self.losses -= 1
            self._doomed.add(connection)
        elif not upward and connection in self._doomed:
            self.lost += 1
            return False
        return True


class EventCuttingProxy(TcpProxy):
    """Forward to a server with streams, and cut the next `to_cut` connections in the middle of an event.

    The cuts come by turns behind `start`, with which the event's data begins, and behind the line of the event's id.
    `asked`, `streams` and `errors` count the requests, streams and errors that went through.
    """

    def __init__(self, upstream: int, start: bytes, to_cut: int = 0) -> None:
        super().__init__(upstream)
        self.start = start
        self.to_cut = to_cut
        self.asked = self.streams = self.cuts = self.errors = 0

    def passes(self, connection: Connection, data: bytes, upward: bool) -> bool:
        if upward:
            self.asked += data.startswith(b"GET ")
            return True
        self.streams += data.startswith(b"HTTP/1.1 200") and b"text/event-stream" in data
        self.errors += data.startswith(b"HTTP/1.1 503") or b'"reason":"busy"' in data
        at = data.find(self.start)
        id = data.rfind(b"\nid: ", 0, at)
        if id < 0 or b"\n\n" in data[id:at]:  # it is the last line of its block, not the first
            id = data.find(b"\nid: ", at)
        if self.to_cut == 0 or at < 0 or id < 0:
            return True
        end = data.index(b"\n", id + 1) + 1 if self.cuts % 2 else at + len(self.start)
        self.to_cut -= 1
        self.cuts += 1
        connection.near.write(data[:end])
        return False


class AnsweringProxy(TcpProxy):
    """Note each request for the upstream server, and answer it in that server's place where `answer` returns bytes."""

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream)
        self.requests: list[tuple[float, str]] = []
        self.answer: Callable[[str], bytes | None] = lambda target: None

    def passes(self, connection: Connection, data: bytes, upward: bool) -> bool:
        if not upward or not data.startswith(b"GET "):
            return True
        target = data.split(b" ", 2)[1].decode()
        self.requests.append((time.time(), target))
        answer = self.answer(target)
        if answer is not None:
            connection.near.write(answer)
        return answer is None

    def since(self, moment: float, part: str = "/sse/") -> list[float]:
        """Return when requests came from that moment on, if their targets contain `part`."""
        return [at for at, target in self.requests if at >= moment and part in target]


class StallingProxy(AnsweringProxy):
    """Let the next `openings` streams pass no further than their opening; their connections stay open.

    The next streams are answered with the items of `instead`, and then nothing more passes on their connections either.
    """

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream)
        self.openings = 0
        self.instead: list[bytes] = []

    def passes(self, connection: Connection, data: bytes, upward: bool) -> bool:
        if upward and self.instead and data.startswith(b"GET /sse/stream?"):
            connection.near.write(self.instead.pop())
            connection.far.transport.pause_reading()
        elif not upward and self.openings and b"event: sse.open\n" in data:
            self.openings -= 1
            connection.far.transport.pause_reading()
        return super().passes(connection, data, upward)
