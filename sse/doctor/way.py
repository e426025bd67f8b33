"""The way to a service: connections, requests, and answers as a client sees them."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

Headers = dict[str, list[str]]

ANSWER: Final = 10.0
"""Seconds that an answer to a short request may take."""

_ENCODINGS: Final = "gzip, deflate, br, zstd"  # as browsers send it over https
_SPARE: Final = 0.5  # seconds after which a connection is cut that should have timed out
_MOST: Final = 65_536  # bytes of a short answer
_MOST_UNPACKED: Final = 1 << 20  # bytes of one chunk


@dataclass(frozen=True, slots=True)
class Answer:
    """A short answer, whose body is complete."""

    status: int
    headers: Headers
    body: bytes
    took: float

    def json(self) -> dict[str, Any]:
        """Return the body as an object of JSON, or an empty object."""
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(self.body)
            if isinstance(value, dict):
                return value
        return {}

    @property
    def error_code(self) -> str:
        """The code of an error in the form of this service, or an empty string."""
        error = self.json().get("error")
        return str(error.get("code", "")) if isinstance(error, dict) and "hint" in error else ""

    def first(self, name: str) -> str:
        """Return the first value of a header, or an empty string."""
        return self.headers.get(name, [""])[0]


class Link(NamedTuple):
    """A connection, and its socket, which the connection forgets if it ends with its answer."""

    http: HTTPConnection
    sock: socket.socket
    cutter: threading.Timer
    is_cut: threading.Event


class Way:
    """The way to a service: makes connections and sends requests."""

    def __init__(self, url: str, given_pass: str = "", origin: str = "") -> None:
        parts = urlsplit(url)
        self.host = parts.netloc
        self.prefix = parts.path.rstrip("/")
        self.is_tls = parts.scheme == "https"
        self._name, self._port = parts.hostname or "", parts.port
        self._tls = ssl.create_default_context() if self.is_tls else None
        self._query = {"pass": given_pass} if given_pass else {}
        self._headers = {"Accept-Encoding": _ENCODINGS, "User-Agent": "throughline-doctor"}
        self._headers |= {"Origin": origin} if origin else {}
        self._open: set[socket.socket] = set()

    def connect(self, timeout: float) -> Link:
        """Return an open connection, which is cut when it is that old.

        The timeout of a socket is for each of its reads, and a server may send a byte just before each ends.
        """
        if self._tls:
            connection: HTTPConnection = HTTPSConnection(self._name, self._port, timeout=timeout, context=self._tls)
        else:
            connection = HTTPConnection(self._name, self._port, timeout=timeout)
        connection.connect()
        sock = connection.sock
        self._open.add(sock)
        is_cut = threading.Event()

        def cut() -> None:
            is_cut.set()
            _shut(sock)

        cutter = threading.Timer(timeout + _SPARE, cut)
        cutter.daemon = True
        cutter.start()
        return Link(connection, sock, cutter, is_cut)

    def target(self, path: str, query: Mapping[str, object] | None = None, mark: str = "") -> str:
        """Return the target of a request. `mark` makes it differ from all others; by default it is random."""
        return f"{self.prefix}{path}?{urlencode({**(query or {}), **self._query, '_': mark or secrets.token_hex(6)})}"

    def start(self, link: Link, target: str, headers: Mapping[str, str], method: str = "GET") -> HTTPResponse:
        """Send a request and return its answer, as soon as the head is there."""
        link.http.request(method, target, headers={**self._headers, **headers})
        return link.http.getresponse()

    def ask(
        self,
        path: str,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        mark: str = "",
        method: str = "GET",
        timeout: float = ANSWER,
        link: Link | None = None,
    ) -> Answer:
        """Return the complete answer to a request, on a new connection unless one is given.

        :raises TimeoutError: if it is not complete in time.
        """
        used = link or self.connect(timeout)
        try:
            began = time.monotonic()
            accept = {"Accept": "application/json", **(headers or {})}
            response = self.start(used, self.target(path, query, mark), accept, method)
            took = time.monotonic() - began
            answer = Answer(response.status, headers_of(response), unpacked(response), took)
        except (OSError, HTTPException):
            if used.is_cut.is_set():
                raise TimeoutError from None
            raise
        else:
            if used.is_cut.is_set():
                raise TimeoutError
            return answer
        finally:
            if link is None:
                self.drop(used)

    def drop(self, link: Link) -> None:
        """Close a connection at once."""
        self._open.discard(link.sock)
        link.cutter.cancel()
        _shut(link.sock)
        link.http.close()
        link.sock.close()

    def close(self) -> None:
        """Close all connections that are still open."""
        for sock in [*self._open]:
            _shut(sock)

    def speaks_h2(self) -> bool:
        """Return whether the server offers HTTP/2 (RFC 9113, 3.2)."""
        context = ssl.create_default_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection((self._name, self._port or 443), ANSWER) as plain,
            context.wrap_socket(plain, server_hostname=self._name) as sock,
        ):
            return sock.selected_alpn_protocol() == "h2"

    def error_page(self) -> dict[str, Any]:
        """Return the answer of the outermost server to a request that is no HTTP. Its error page names that server."""
        head = f"GET {self.prefix}/doctor/echo HTTP/1.1\r\nHost: {self.host}\r\nthis is no header\r\n\r\n"
        link = self.connect(3)
        try:
            link.sock.sendall(head.encode())
            response = HTTPResponse(link.sock)
            response.begin()
            body = _body(response, 2_048).decode(errors="replace")
            return {"status": response.status, "headers": headers_of(response), "body": body[:1_000]}
        finally:
            self.drop(link)


def headers_of(response: HTTPResponse) -> Headers:
    """Return the headers of an answer by their names in small letters, each with all of its values.

    The values of cookies are left out, because people show the doctor's JSON to others.
    """
    headers: Headers = {}
    for name, value in response.headers.items():
        lower = name.lower()
        shown = f"{value.partition('=')[0]}=…" if lower == "set-cookie" else value
        headers.setdefault(lower[:100], []).append(shown[:1_000])
    return headers


def unpacker(response: HTTPResponse, *, shortens: bool = False) -> Callable[[bytes], bytes] | None:
    """Return the function that decompresses a body bit by bit, or None if there is none here (RFC 9110, 8.4.1).

    The function raises `zlib.error` for bytes that are not packed, or that unfold beyond the bound.

    :param shortens: leave out what stands beyond the bound.
    """
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding in ("", "identity"):
        return bytes
    if coding in ("gzip", "x-gzip", "deflate"):
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # finds out which of the two it is

        def unpack(chunk: bytes) -> bytes:
            text = unpacker.decompress(chunk, _MOST_UNPACKED)
            if unpacker.unconsumed_tail and not shortens:
                raise zlib.error(f"some bytes unfold to more than {_MOST_UNPACKED}")
            return text

        return unpack
    return None


def unpacked(response: HTTPResponse) -> bytes:
    """Return the decompressed body of a short answer; what stands beyond its bound is left out."""
    body = _body(response, _MOST)
    unpack = unpacker(response, shortens=True)
    with contextlib.suppress(zlib.error):
        return unpack(body) if unpack else b""
    return b""


def _body(response: HTTPResponse, most: int) -> bytes:
    """Return the first bytes of a body."""
    if not response.chunked:
        return response.read(most)
    body = b""
    # `read` would take a chunk whose length is negative for one that ends with the connection, however long it is.
    while len(body) < most and (chunk := response.read1(most)):
        body += chunk
    return body[:most]


def number(value: float) -> str:
    """Return a number as it stands in a query."""
    return f"{value:g}"


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
