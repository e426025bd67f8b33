"""The fronts of platforms that cannot run here, with the faults that they have: each before an instance of the service.

A `Platform` speaks HTTP as the front of Cloud Run, Firebase Hosting or Heroku does. It knows when a request begins and
ends, so it can do to the instance and to the answers what they do, in a shorter time. `Faults` lists what that is. It
also puts the platform's marks on each answer, by which the doctor recognises it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from tests.loop_threads import LoopThread
from tests.servers import Gunicorn, free_port

INFINITE = float("inf")
SCOREBOARD = "examples.scoreboard.app:app"
PAGE = "https://www.example"
QUIET = 0.15  # seconds without a request after which an instance is frozen
CLOUD_RUN = {"Server": "Google Frontend"}
FIREBASE = {"Vary": "x-fh-requested-host", "X-Served-By": "cache-fra-eddf8230055-FRA", "X-Cache": "MISS"}
HEROKU = {"Via": "1.1 heroku-router", "Server": "Heroku"}


class Instance(Gunicorn):
    """An instance on a platform: gunicorn in a session of its own, which can be frozen, ended and started again."""

    name = "instance"
    grace: float = 10

    def start(self, timeout: float = 60) -> Self:
        return super().start(timeout)

    def freeze(self, *, frozen: bool) -> None:
        """Stop all processes of the instance, or have them go on."""
        for pid in [self.pid, *self.worker_pids()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self, timeout: float = 5, by: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.freeze(frozen=False)
        super().stop(timeout, by)


@dataclass
class Faults:
    """What a platform does to its instance and to the answers. All times are in seconds."""

    freezes: bool = False
    """It stops the instance while no request is under way. Cloud Run with cpu-throttling leaves a little CPU."""
    idle_kill: float = INFINITE
    """It ends an instance after so long without a request, and the next one waits for a new one: minScale 0."""
    request_timeout: float = INFINITE
    """It answers 504, or cuts the answer, if that has not ended by then: Cloud Run 300, Firebase Hosting 60."""
    first_byte: float = INFINITE
    """It answers 503 if an answer has not begun by then: Heroku 30."""
    silence: float = INFINITE
    """It cuts an answer of which no byte has come for so long: Heroku 55."""
    buffers: bool = False
    """It holds an answer back until its end: Firebase Hosting."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """The marks that it puts on each answer."""


@dataclass(frozen=True)
class Case:
    """A platform with the settings of a service on it, and the codes of the faults that its doctor has to name."""

    faults: Faults
    named: frozenset[str] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    by_polls: bool = False


CASES = {
    # The request timeouts are 3,600 s in the recipe, 300 s by default, and SSE_STREAM_LIFETIME is 900 s and 20 %.
    "cloud run, as in its recipe": Case(
        Faults(request_timeout=14, headers=CLOUD_RUN), settings={"SSE_STREAM_LIFETIME": "5"}
    ),
    "cloud run, with its own request timeout": Case(
        Faults(request_timeout=4, headers=CLOUD_RUN),
        frozenset({"request_timeout"}),
        {"SSE_POLL_TIMEOUT": "2"},
    ),
    "cloud run, with its own CPU": Case(Faults(freezes=True, headers=CLOUD_RUN), frozenset({"frozen"})),
    "cloud run, without an instance at rest": Case(Faults(idle_kill=2, headers=CLOUD_RUN)),
    "firebase hosting in front": Case(
        Faults(buffers=True, request_timeout=7, headers=FIREBASE),
        frozenset({"buffered", "request_timeout"}),
        {"SSE_POLL_TIMEOUT": "3"},
        by_polls=True,
    ),
    "two origins": Case(Faults(headers=CLOUD_RUN), settings={"SSE_ORIGINS": PAGE}, origin=PAGE),
    "two origins, the page's not allowed": Case(
        Faults(headers=CLOUD_RUN), frozenset({"cors_not_allowed"}), origin=PAGE
    ),
    # The router waits 55 s for the next byte, 30 s for the first. A heartbeat comes after 15 s, a poll ends after 25 s.
    "heroku, as in its recipe": Case(
        Faults(silence=7, first_byte=7, headers=HEROKU), settings={"SSE_HEARTBEAT": "3", "SSE_POLL_TIMEOUT": "5"}
    ),
    "heroku, with a heartbeat that is too long": Case(Faults(silence=4, headers=HEROKU), frozenset({"idle_cutoff"})),
}


class Platform(LoopThread):
    """A front on a port of loopback. It forwards one request for each connection, and closes it with the answer.

    `requests` counts them, `cuts` the answers that it cut, and `starts` and `ends` what it did to the instance.
    """

    patience = 20.0

    def __init__(self, instance: Instance, faults: Faults, *, is_up: bool = True) -> None:
        super().__init__("platform")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.instance, self.faults = instance, faults
        self.requests = self.cuts = self.starts = self.ends = self.freezes = 0
        self._upstream = int(instance.bind.rpartition(":")[2])
        self._is_up, self._is_frozen = is_up, False
        self._active = 0
        self._idle: asyncio.Task[None] | None = None
        self._change = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_frozen(self) -> bool:
        return self._is_frozen

    @property
    def is_up(self) -> bool:
        return self._is_up

    async def _begin(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=256, limit=65_536)
        await self._look_idle()

    async def _end(self) -> None:
        self._server.close()
        if self._idle:
            self._idle.cancel()
        for task in [*self._tasks]:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        await self._thaw()

    # -- the instance

    @contextlib.asynccontextmanager
    async def _at_work(self) -> AsyncIterator[None]:
        """Have the instance run while a request is under way."""
        self._active += 1
        if self._idle:
            self._idle.cancel()
            self._idle = None
        try:
            await self._thaw()
            yield
        finally:
            self._active -= 1
            await self._look_idle()

    async def _thaw(self) -> None:
        async with self._change:
            if not self._is_up:
                await asyncio.to_thread(self.instance.start)
                self._is_up = True
                self.starts += 1
            if self._is_frozen:
                self.instance.freeze(frozen=False)
                self._is_frozen = False

    async def _look_idle(self) -> None:
        if not self._active and (self.faults.freezes or self.faults.idle_kill < INFINITE):
            self._idle = asyncio.ensure_future(self._be_idle())

    async def _be_idle(self) -> None:
        await asyncio.sleep(QUIET)
        async with self._change:
            if self.faults.freezes and self._is_up and not self._active:
                self.instance.freeze(frozen=True)
                self._is_frozen = True
                self.freezes += 1
        if self.faults.idle_kill < INFINITE:
            await asyncio.sleep(self.faults.idle_kill - QUIET)
            async with self._change:
                if self._is_up and not self._active:
                    self._is_up = self._is_frozen = False
                    self.ends += 1
                    await asyncio.to_thread(self.instance.stop, self.instance.grace, signal.SIGTERM)

    # -- requests

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            # A task that is cancelled is one that the end of the platform has cancelled.
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                async with self._at_work():
                    await self._serve(head, reader, writer)
        finally:
            writer.close()

    async def _serve(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = _Answer(writer, self.faults)
        try:
            async with _at_most(self.faults.request_timeout, 504):
                await self._forward(head, reader, answer)
        except _TooLate as late:
            self.cuts += 1
            await answer.fail(late.status)

    async def _forward(self, head: bytes, reader: asyncio.StreamReader, answer: _Answer) -> None:
        far_reader, far = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            far.write(_with_headers(head, {"Connection": "close", "X-Forwarded-For": "192.0.2.7"}))
            up = asyncio.ensure_future(_pump(reader, far))
            down = asyncio.ensure_future(self._return(far_reader, answer))
            try:
                await asyncio.wait(
                    (up, down), return_when=asyncio.FIRST_COMPLETED
                )  # `up` ends when the client has gone
            finally:
                for task in (up, down):
                    task.cancel()
                results = await asyncio.gather(up, down, return_exceptions=True)
            if late := [result for result in results if isinstance(result, _TooLate)]:
                raise late[0]
        finally:
            far.transport.abort()

    async def _return(self, reader: asyncio.StreamReader, answer: _Answer) -> None:
        async with _at_most(self.faults.first_byte, 503):
            head = await reader.readuntil(b"\r\n\r\n")
        await answer.send(_with_headers(head, {"Connection": "close", **self.faults.headers}))
        while True:
            async with _at_most(self.faults.silence, 503):
                data = await reader.read(65_536)
            if not data:
                break
            await answer.send(data)
        await answer.finish()


class _TooLate(Exception):
    """The instance has taken too long for its answer, which the platform now gives up with a status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@contextlib.asynccontextmanager
async def _at_most(seconds: float, status: int) -> AsyncIterator[None]:
    """Have the block end within so many seconds. _TooLate with the status if it does not."""
    try:
        async with asyncio.timeout(seconds if seconds < INFINITE else None):
            yield
    except TimeoutError:
        raise _TooLate(status) from None


class _Answer:
    """The answer to a client, which may be held back until its end."""

    def __init__(self, writer: asyncio.StreamWriter, faults: Faults) -> None:
        self._writer, self._faults = writer, faults
        self._held: list[bytes] = []
        self._has_begun = False

    async def send(self, data: bytes) -> None:
        if self._faults.buffers:
            self._held.append(data)
            return
        self._has_begun = True
        self._writer.write(data)
        await self._writer.drain()

    async def finish(self) -> None:
        self._writer.write(b"".join(self._held))
        await self._writer.drain()

    async def fail(self, status: int) -> None:
        """End in the middle, or answer with a page of the platform's own if nothing has gone out yet."""
        if self._has_begun:
            self._writer.transport.abort()
            return
        page = f"<html><title>Error {status}</title><h1>Error: Server Error</h1></html>".encode()
        lines = {"Content-Type": "text/html", "Content-Length": str(len(page)), "Connection": "close"}
        text = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **self._faults.headers}.items())
        self._writer.write(f"HTTP/1.1 {status} Too late\r\n{text}\r\n".encode() + page)
        await self._writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


def _with_headers(head: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a head with these headers. Those that may stand there once only replace what it has."""
    first, *lines = head.rstrip(b"\r\n").split(b"\r\n")
    replaced = {name.lower().encode() for name in headers} & {b"connection", b"server", b"x-forwarded-for"}
    kept = [line for line in lines if line.split(b":")[0].lower() not in replaced]
    added = [f"{name}: {value}".encode("latin-1") for name, value in headers.items()]
    return b"\r\n".join([first, *kept, *added]) + b"\r\n\r\n"
