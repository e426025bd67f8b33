"""Random requests on one connection, each with the answer that it has to get, and the reading of those answers.

Some are plain requests, others are of the kinds that the fast lane leaves to gunicorn. Each client has channels and
events of its own, whose names say so: whatever else it gets is another client's.
"""

from __future__ import annotations

import json
import random
import re
import socket
import time
from collections.abc import Iterator
from email.message import Message
from http.client import parse_headers
from typing import BinaryIO, NamedTuple

from tests.tokens import KEY, claims, signed

SMUGGLED = "smuggled"  # the channel that has no event, as long as no body is taken for a request
_MARK = re.compile(rb"of-([a-z]+[0-9]+)-[0-9]+\.")


class Answer(NamedTuple):
    status: int
    headers: Message
    body: bytes


class Request(NamedTuple):
    sent: bytes
    statuses: tuple[int, ...]
    method: str = "GET"
    mark: bytes = b""
    """What the answer's body has, and of its kind nothing else; empty if it is to have nothing of the kind."""

    def judge(self, answer: Answer, name: str) -> None:
        """Hold that this is the answer to this request."""
        told = (self.sent[:300], answer)
        assert answer.status in self.statuses, told
        assert set(_MARK.findall(answer.body)) <= {name.encode()}, told
        found = {mark.group() for mark in _MARK.finditer(answer.body)}
        assert found == ({self.mark} if self.mark else set()), told
        if answer.status == 201:
            assert all(id.startswith(f"{name}=") for id in json.loads(answer.body)["ids"]), told


class Conversation:
    """What one client asks. The answers follow from the order of its requests alone."""

    def __init__(self, rng: random.Random, name: str) -> None:
        self.name = name
        self._rng = rng
        token = signed(claims(sub=name, subscribe=[name], exp=int(time.time()) + 7200))
        self._read = f"Host: localhost\r\nAuthorization: Bearer {token}\r\n"
        self._write = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        self.published: list[str] = []

    def requests(self, count: int) -> list[Request]:
        """Return the next requests, about a third of which are not plain."""
        makers = [self.publish, self.poll] * 3 + [self.other]
        return [self._rng.choice(makers)() for _ in range(count)]

    def publish(self, way: str = "") -> Request:
        way = way or self._rng.choice(["plain"] * 6 + ["json", "chunks", "announced", "doubled", "large"])
        mark = f"of-{self.name}-{len(self.published)}."
        self.published.append(mark)
        path, kind = f"/sse/publish/{self.name}", "text/plain"
        text = mark
        if self._rng.random() < 0.3:
            text += self._smuggled()
        if way in ("json", "large"):
            path, kind = "/sse/publish", "application/json"
            text = json.dumps({"channel": self.name, "data": text})
        if way == "large":
            text += " " * self._rng.choice([20_000, 66_000])  # more than is read at once, and than is plain
        lines = f"Content-Type: {kind}\r\n"
        body = text.encode()
        if way == "chunks":
            lines, body = f"{lines}Transfer-Encoding: chunked\r\n", self._chunks(body)
        else:
            lines += f"Content-Length: {len(body)}\r\n"
        if way == "announced":
            lines += "Expect: 100-continue\r\n"
        head = f"POST {path} HTTP/1.1\r\n{self._write}{lines}{self._odd(way)}\r\n"
        return Request(head.encode() + body, (201,), "POST")

    def poll(self, way: str = "") -> Request:
        way = way or self._rng.choice(["plain"] * 6 + ["body", "chunks", "doubled", "HEAD", "empty line"])
        lines, body = self._read + self._odd(way), b""
        if way == "body":
            body = self._smuggled().encode()
            lines += f"Content-Length: {len(body)}\r\n"
        elif way == "chunks":
            lines, body = f"{lines}Transfer-Encoding: chunked\r\n", self._chunks(self._smuggled().encode())
        method = "HEAD" if way == "HEAD" else "GET"
        start = "\r\n" if way == "empty line" else ""
        head = f"{start}{method} /sse/poll?channel={self.name}&replay=1&timeout=0 HTTP/1.1\r\n{lines}\r\n"
        mark = self.published[-1].encode() if self.published and method == "GET" else b""
        return Request(head.encode() + body, (200,), method, mark)

    def hold(self, newest: str) -> Request:
        """Return a request that is not answered soon: a stream, or a poll that waits for what comes after `newest`."""
        path = self._rng.choice(["stream?", f"poll?timeout=20&last_event_id={newest}&"])
        return Request(f"GET /sse/{path}channel={self.name} HTTP/1.1\r\n{self._read}\r\n".encode(), (200,))

    def other(self) -> Request:
        """Return a request that is refused, or is no business of the lane's."""
        line, statuses = self._rng.choice(
            [
                ("GET /healthz", (200,)),
                ("GET /sse/nothing", (404,)),
                (f"GET /sse/poll?channel={self.name}&timeout=soon", (400,)),
                ("GET /sse/poll?channel=a-stranger", (403,)),
                (f"GET /sse/poll?channel={self.name}&probe=1&timeout=0", (401,)),
                ("OPTIONS /sse/poll", (200, 204)),
                ("POST /sse/poll", (405,)),
                (f"GET /sse/%70oll?channel={self.name}&timeout=0", (200,)),
            ]
        )
        length = "Content-Length: 0\r\n" if line.startswith("POST") else ""
        return Request(f"{line} HTTP/1.1\r\n{self._read}{length}\r\n".encode(), statuses, line.split()[0])

    def _odd(self, way: str) -> str:
        if way == "doubled":
            return "X-Twice: 1\r\nX-Twice: 2\r\n"
        return self._rng.choice(["", "", "Accept: */*\r\n", "Cookie: other=1\r\n", "Origin: https://a.example\r\n"])

    def _smuggled(self) -> str:
        return f"\r\n\r\nPOST /sse/publish/{SMUGGLED} HTTP/1.1\r\n{self._write}Content-Length: 1\r\n\r\nx"

    def _chunks(self, body: bytes) -> bytes:
        chunks = b""
        while body:
            size = self._rng.randrange(1, len(body) + 1)
            chunks, body = chunks + b"%x\r\n%b\r\n" % (size, body[:size]), body[size:]
        return chunks + b"0\r\n\r\n"


def pieces(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """Yield the data in a few pieces."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([0, 0, 1, 2, 5])))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if piece := data[start:end]:
            yield piece


def send(sock: socket.socket, data: bytes, rng: random.Random) -> None:
    """Send the data in a few pieces, some of them after a pause."""
    for piece in pieces(data, rng):
        sock.sendall(piece)
        time.sleep(rng.choice([0, 0, 0.002, 0.02, 0.08]))


def read_answer(file: BinaryIO, method: str) -> Answer:
    """Return the next answer, by its Content-Length. One that asks for the body is passed over.

    :raises ConnectionError: if the server has closed the connection before it.
    """
    while True:
        line = file.readline()
        if not line:
            raise ConnectionError("closed before an answer")
        assert line.startswith(b"HTTP/1.1 "), line
        status, headers = int(line.split()[1]), parse_headers(file)
        if status != 100:
            break
    is_empty = method == "HEAD" or status == 204
    length = 0 if is_empty else int(headers["Content-Length"])
    body = file.read(length)
    assert len(body) == length, (status, body)
    return Answer(status, headers, body)


def converse(sock: socket.socket, conversation: Conversation, count: int, rng: random.Random) -> None:
    """Ask `count` requests on a connection, in one go or one after the other, and judge the answers."""
    sock.settimeout(30)
    requests = conversation.requests(count)
    with sock.makefile("rb") as file:
        while requests:
            size = rng.choice([1, 1, 2, 4, len(requests)])
            batch, requests = requests[:size], requests[size:]
            send(sock, b"".join(request.sent for request in batch), rng)
            for request in batch:
                request.judge(read_answer(file, request.method), conversation.name)
            time.sleep(rng.choice([0, 0, 0, 0.01, 0.4]))  # the longest is enough for the connection to be parked
