"""TCP proxies that break or slow down what goes through them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self

from tests import servers


@dataclass(eq=False)
class Connection:
    """What one client's connection is made of: its own side, and the one to the server behind."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    doomed: bool = False  # for those who look at what passes
    answered: int = 0  # bytes that came down since the last request


class Cutter:
    """Forwards TCP connections on a port of its own to `upstream`, until told to cut or to refuse them.

    Its line to the clients takes `pace` bytes a second, of all connections together, and `room` bytes of each answer:
    the connection of a longer one is reset there.
    """

    pace: float = float("inf")
    room: float = float("inf")

    def __init__(self, upstream: int) -> None:
        self.port = servers.free_port()  # kept while nobody listens on it
        self._upstream = upstream
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cutter", daemon=True)
        self._line = asyncio.Lock()

    def cut(self, reset: bool = False) -> int:
        """End every connection on both sides, by FIN or by RST; how many there were."""
        return self._run(self._cut(reset))

    def refuse(self) -> None:
        """Refuse new connections, until `admit`; those that are open stay."""
        self._run(self._refuse())

    def admit(self) -> None:
        """Take new connections."""
        self._run(self._admit())

    def answered(self) -> int:
        """Bytes that have come down on all open connections since their last requests."""
        return sum(connection.answered for connection in list(self._connections))

    def passes(self, connection: Connection, data: bytes, upward: bool) -> bool:
        """Whether `data` goes on; where it does not, its connection ends. For subclasses."""
        return True

    def __enter__(self) -> Self:
        self._thread.start()
        self.admit()
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

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
        for _ in range(50):  # one may be on its way to its server
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
        connection.near.close()  # what is buffered for it is still sent
        connection.far.close()


def abort(side: asyncio.StreamWriter, reset: bool) -> None:
    """End a connection at once on this side, by FIN or by RST."""
    sock = side.get_extra_info("socket")
    if reset and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    side.transport.abort()
