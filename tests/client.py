"""A blocking client for tests, as a second opinion on the wire format: it shares no code with `sse/`."""

from __future__ import annotations

import codecs
import http.client
import io
import json
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

Params = Mapping[str, Any] | Iterable[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class Event:
    """A block that a blank line completed.

    `id` is what a browser holds after it, `own_id` the block's own `id:` field; `data` is None where no browser
    dispatches the block; `retry` is the block's own valid `retry:` field.
    """

    id: str
    event: str
    data: str | None
    retry: int | None
    own_id: str | None

    def json(self) -> Any:
        assert self.data is not None, f"a block without data: {self}"
        return json.loads(self.data)


LINE_END = re.compile("\r\n|\r|\n")


class Parser:
    """A parser of `text/event-stream` by WHATWG HTML 9.2.6. An unfinished last block is never returned.

    With `bare`, each blank line has to end a block with data, because there are readers that make an event of any.
    With `comments`, a comment comes as an event of the type `comment`.
    """

    def __init__(self, last_event_id: str = "", *, bare: bool = False, comments: bool = False) -> None:
        self.last_event_id = last_event_id
        self._comments = comments
        self.retry: int | None = None
        self._bare = bare
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._start = True
        self._after_cr = False
        self._line = ""
        self._id_buffer = last_event_id
        self._clear()

    def _clear(self) -> None:
        self._event, self._seen = "", False
        self._data: str | None = None
        self._block_retry: int | None = None
        self._own_id: str | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        text = self._decoder.decode(chunk)
        if text and self._start:
            self._start = False
            text = text.removeprefix("\ufeff")
        if text and self._after_cr:
            self._after_cr = False
            text = text.removeprefix("\n")
        if not text:
            return []
        self._after_cr = text.endswith("\r")
        *lines, rest = LINE_END.split(text)
        if not lines:
            self._line += rest
            return []
        lines[0], self._line = self._line + lines[0], rest
        events = []
        for line in lines:
            assert line or not self._bare or self._data is not None, "a blank line that ends no event"
            if line.startswith(": ") and self._comments:
                events.append(Event(self.last_event_id, "comment", line[2:], None, None))
            elif line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        return events

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        if not name:
            return  # a comment
        value = value.removeprefix(" ")
        self._seen = True
        if name == "event":
            self._event = value
        elif name == "data":
            self._data = value if self._data is None else f"{self._data}\n{value}"
        elif name == "id" and "\0" not in value:
            self._id_buffer = self._own_id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = self._block_retry = int(value)

    def _dispatch(self) -> Event | None:
        self.last_event_id = self._id_buffer
        event = Event(self.last_event_id, self._event or "message", self._data, self._block_retry, self._own_id)
        seen = self._seen
        self._clear()
        return event if seen else None


def connect(url: str, timeout: float = 10) -> socket.socket:
    """Return a socket to `http://host:port`, `https://host:port` (any certificate) or `unix:/path`."""
    if url.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(url.removeprefix("unix:"))
        return sock
    parts = urlsplit(url)
    assert parts.hostname and parts.port, f"no host and port in {url!r}"
    sock = socket.create_connection((parts.hostname, parts.port), timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if parts.scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default one reads the system's certificates: 20 ms
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock, server_hostname="localhost")
    return sock


def read_all(sock: socket.socket, *, may_reset: bool = False) -> bytes:
    """Return what comes until the server closes; with `may_reset`, also by a reset."""
    data = b""
    try:
        while more := sock.recv(65_536):
            data += more
    except ConnectionError:
        if not may_reset:
            raise
    return data


def statuses(sock: socket.socket, timeout: float = 10) -> list[int]:
    """Return the status of each answer that comes until the server closes."""
    sock.settimeout(timeout)
    return [int(part[:3]) for part in read_all(sock, may_reset=True).split(b"HTTP/1.1 ")[1:]]


def target(path: str, params: Params = ()) -> str:
    query = urlencode(list(params.items()) if isinstance(params, Mapping) else list(params), doseq=True)
    return f"{path}?{query}" if query else path


def _host(url: str) -> str:
    return "localhost" if url.startswith("unix:") else urlsplit(url).netloc


class Stream:
    """One connection to a stream, read as slowly and cut as early as a test wishes.

    `limit` cuts the connection after that many bytes of body. A TimeoutError leaves it usable.
    """

    def __init__(
        self,
        url: str,
        params: Params = (),
        *,
        path: str = "/sse/stream",
        method: str = "GET",
        body: bytes = b"",
        last_event_id: str = "",
        headers: Mapping[str, str] | None = None,
        limit: int | None = None,
        timeout: float = 10,
    ) -> None:
        self.parser = Parser(last_event_id)
        self.received = b""  # the whole body so far
        self.complete = False  # the body has ended as HTTP says it should
        self._limit = limit
        self._pending: list[Event] = []
        self._raw = b""
        self._chunk_left = 0
        self._closed = False
        lines = {"Host": _host(url), "Accept": "text/event-stream", **(headers or {})}
        if last_event_id:
            lines["Last-Event-ID"] = last_event_id
        if body:
            lines["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.sock = connect(url, timeout)
        try:
            self.sock.sendall(f"{method} {target(path, params)} HTTP/1.1\r\n{head}\r\n".encode() + body)
            self.status, self.headers = self._read_head(time.monotonic() + timeout)
        except BaseException:
            self.sock.close()
            raise
        length = self.headers.get("Content-Length")
        self._length = None if length is None else int(length)
        self._chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        self.sock.close()

    @property
    def last_event_id(self) -> str:
        """The last event id that a browser would send if the connection broke now."""
        return self.parser.last_event_id

    def next(self, timeout: float = 10) -> Event | None:
        """Return the next block, or None when the body has ended. TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not self._pending:
            if self._closed:
                return None
            self._body()
            if not self._pending and not self._closed:
                self._receive(deadline)
        return self._pending.pop(0)

    def events(self, timeout: float = 10) -> Iterator[Event]:
        """Yield blocks until the body ends, all within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (event := self.next(max(0.01, deadline - time.monotonic()))) is not None:
            yield event

    def take(self, count: int, timeout: float = 10) -> list[Event]:
        """Return the next `count` published events. Heartbeats and other `sse.*` blocks are passed over."""
        deadline = time.monotonic() + timeout
        taken: list[Event] = []
        while len(taken) < count:
            event = self.next(max(0.01, deadline - time.monotonic()))
            assert event is not None, f"the stream ended after {len(taken)} of {count} events: {taken}"
            if event.data is not None and not event.event.startswith("sse."):
                taken.append(event)
        return taken

    def until(self, kind: str, timeout: float = 10) -> Event:
        """Return the next block of this type."""
        for event in self.events(timeout):
            if event.event == kind:
                return event
        raise AssertionError(f"the stream ended before {kind}: {self.received[-500:]!r}")

    def _receive(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(f"nothing more after {self.received[-200:]!r}")
        self.sock.settimeout(remaining)
        try:
            data = self.sock.recv(65536)
        except (ConnectionError, ssl.SSLEOFError):
            data = b""
        if data:
            self._raw += data
        else:
            self.close()

    def _read_head(self, deadline: float) -> tuple[int, Message]:
        while b"\r\n\r\n" not in self._raw:
            self._receive(deadline)
            if self._closed:
                raise ConnectionError(f"closed within the head: {self._raw!r}")
        head, _, self._raw = self._raw.partition(b"\r\n\r\n")
        status_line, _, rest = head.partition(b"\r\n")
        return int(status_line.split()[1]), http.client.parse_headers(io.BytesIO(rest + b"\r\n\r\n"))

    def _body(self) -> None:
        while self._raw and not self._closed:
            if not self._chunked:
                self._take(len(self._raw))
            elif self._chunk_left > 2:
                self._chunk_left -= self._take(min(self._chunk_left - 2, len(self._raw)))
            elif self._chunk_left:
                if len(self._raw) < 2:
                    break
                assert self._raw.startswith(b"\r\n"), f"a broken chunk: {self._raw[:40]!r}"
                self._raw, self._chunk_left = self._raw[2:], 0
            else:
                size, found, rest = self._raw.partition(b"\r\n")
                if not found:
                    break
                self._raw, self._chunk_left = rest, int(size.split(b";")[0], 16) + 2
                if self._chunk_left == 2:
                    self.complete = True
                    self.close()
        if self._length is not None and len(self.received) >= self._length:
            self.complete = True
            self.close()

    def _take(self, size: int) -> int:
        """Take up to `size` bytes of the body. Bytes beyond the limit count as never received."""
        if self._limit is not None and len(self.received) + size >= self._limit:
            size = self._limit - len(self.received)
            self.close()
        data, self._raw = self._raw[:size], self._raw[size:]
        self.received += data
        self._pending += self.parser.feed(data)
        return size


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    url: str,
    method: str,
    path: str,
    params: Params = (),
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = 30,
) -> Answer:
    """Make one request on its own connection."""
    connection = http.client.HTTPConnection("localhost", timeout=timeout)
    connection.sock = connect(url, timeout)
    try:
        lines = {"Host": _host(url), **(headers or {})}
        connection.request(method, target(path, params), body=body, headers=lines)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def poll(
    url: str,
    channels: Iterable[str],
    last_event_id: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    **params: Any,
) -> Answer:
    query = [("channel", channel) for channel in channels] + list(params.items())
    if last_event_id is not None:
        query.append(("last_event_id", last_event_id))
    return request(url, "GET", "/sse/poll", query, headers=headers, timeout=float(params.get("timeout", 25)) + 10)


def publish(
    url: str,
    channel: str | list[str],
    data: Any,
    *,
    key: str,
    type: str | None = None,
    idempotency_key: str | None = None,
    timeout: float = 30,
) -> Answer:
    payload = {"channel": channel, "data": data} | ({} if type is None else {"type": type})
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    if idempotency_key is not None:
        headers["Idempotency-Key"] = idempotency_key
    body = json.dumps(payload).encode()
    return request(url, "POST", "/sse/publish", headers=headers, body=body, timeout=timeout)
