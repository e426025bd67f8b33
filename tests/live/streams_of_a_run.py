"""Many streams of one run in a process of their own, which has all the files that a process may have.

`python -m tests.live.streams_of_a_run HOST:PORT CHANNEL COUNT` prints a line of JSON when each stream has begun, when
each has ended, and when each has come back after its own `retry:`, as an EventSource would.
"""

from __future__ import annotations

import heapq
import json
import re
import resource
import selectors
import socket
import sys
import time
from collections import Counter
from functools import lru_cache
from itertools import count
from typing import Any

from tests.client import Parser

AT_ONCE = 100  # streams that wait for their first piece
END = re.compile(rb"\nretry: (\d+)\nid: (\S+)\nevent: sse.end\ndata: [^\n]*\n\n\Z")


class Connections:
    """Connections with one request each. A key of the selector has what has come on its connection."""

    def __init__(self, host: str, channel: str) -> None:
        self.host, self.path = host, f"/sse/stream?channel={channel}"
        self.selector = selectors.EpollSelector()
        self.with_text: set[int] = set()  # descriptors on which a piece of the text has come

    def ask(self, last_event_id: str = "") -> None:
        name, _, port = self.host.partition(":")
        sock = socket.create_connection((name, int(port)), 20)
        lines = [f"GET {self.path} HTTP/1.1", "Host: a", "Connection: close"]
        lines += [f"Last-Event-ID: {last_event_id}"] if last_event_id else []
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        sock.setblocking(False)
        self.selector.register(sock, selectors.EVENT_READ, bytearray())

    def read(self, timeout: float) -> list[bytes]:
        """Read what has come, and return the answers that the server has ended."""
        ended = []
        for key, _ in self.selector.select(timeout):
            sock: Any = key.fileobj
            data = sock.recv(65_536)
            key.data.extend(data)
            if key.fd not in self.with_text and b"\nevent: text\n" in key.data:
                self.with_text.add(key.fd)
            if not data:
                self.selector.unregister(sock)
                sock.close()
                ended.append(bytes(key.data))
        return ended


def body_of(answer: bytes) -> bytes:
    """Return the body of a chunked answer; ValueError if it is cut."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"\r\nTransfer-Encoding: chunked" not in head:
        raise ValueError(f"not a stream: {answer[:200]!r}")
    parts = []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not (length := int(size, 16)):
            return b"".join(parts)
        parts.append(rest[:length])
        rest = rest[length + 2 :]


@lru_cache(10_000)  # most streams get the same blocks
def text_of(blocks: bytes) -> str:
    return "".join(event.data or "" for event in Parser().feed(blocks) if event.event == "text")


def tell(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def main(host: str, channel: str, streams: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    open_ones = Connections(host, channel)
    asked = 0
    while len(open_ones.with_text) < streams:
        while asked < min(streams, len(open_ones.with_text) + AT_ONCE):
            open_ones.ask()
            asked += 1
        assert not (ended := open_ones.read(1)), f"a stream was ended: {ended[0]!r}"
    tell(streams=streams)

    texts: list[bytes] = []  # the blocks between the opening and the end
    retries: list[int] = []
    due: list[tuple[float, int, str]] = []  # a heap
    later, returned = Connections(host, channel), Counter[str]()
    ended_at, numbers, moments = 0.0, count(), list[float]()
    give_up = time.monotonic() + 120
    while len(retries) < streams or due or later.selector.get_map():
        assert time.monotonic() < give_up, f"{len(retries)} ends, {returned}"
        for answer in open_ones.read(0.01) if len(retries) < streams else ():
            ended_at = time.monotonic()
            body = body_of(answer)
            end = END.search(body)
            assert end, f"a stream without an end: {answer[-300:]!r}"
            texts.append(body[body.index(b"\n\n") + 2 : end.start() + 1])
            retries.append(int(end[1]))
            heapq.heappush(due, (ended_at + retries[-1] / 1000, next(numbers), end[2].decode()))
        while due and due[0][0] <= time.monotonic():
            later.ask(heapq.heappop(due)[2])
            moments.append(time.monotonic())
        returned.update(answer.split(b" ", 2)[1].decode() for answer in later.read(0.01))
    tell(ended_at=ended_at, retries=retries, returned=returned, moments=moments)
    tell(texts=Counter(map(text_of, texts)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
