"""A stream of the doctor's probe, as it is watched: when its blocks arrive, and how it ends."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import zlib
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any, Final

from sse.doctor.way import Answer, Link, Way, headers_of, number, unpacked, unpacker
from sse.wire import Block, Parser

LAST_EVENT_ID: Final = "doctor=58-2893"
"""The Last-Event-ID that is sent, and that the service should see."""

PATIENCE: Final = 5.0
"""Seconds for which an answer is waited for beyond the time that it should take."""

_MOST: Final = 65_536  # bytes that are read at once
_MOST_BLOCKS: Final = 400
_MOST_OF_STREAM: Final = 4 << 20  # bytes


@dataclass(slots=True)
class WatchedStream:
    """A stream of the doctor, and what was seen of it."""

    name: str
    every: float
    count: int
    size: int = 0
    delay: float = 0
    mark: str = ""
    id: str = ""
    nonce: str = ""
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> float:
        """Seconds for which it should be open."""
        return self.every * self.count

    def watch(self, way: Way, first_began: float, until: float | None = None) -> None:
        """Read the stream to its end, and at most until `until` seconds have passed."""
        time.sleep(max(first_began + self.delay - time.monotonic(), 0))
        patience = self.asked + PATIENCE if until is None else until
        began = time.monotonic()
        self.seen |= {"started_at": round(began - first_began, 3), "asked": self.asked, "blocks": []}
        query: dict[str, object] = {"probe": 1, "every": number(self.every), "count": self.count, "size": self.size}
        query |= {"id": self.id} if self.id else {}
        headers = {"Accept": "text/event-stream", "Last-Event-ID": LAST_EVENT_ID}
        # The bytes of gzip can be read here, those of newer codings cannot. The fast stream asks as browsers do.
        headers |= {} if self.name == "fast" else {"Accept-Encoding": "gzip"}
        link: Link | None = None
        try:
            link = way.connect(patience)
            response = way.start(link, way.target("/stream", query, self.mark), headers)
            self.seen |= {"status": response.status, "headers": headers_of(response)}
            if response.status != 200:
                self._note_refusal(response)
            else:
                self._read(response, link.sock, began, patience)
            self.seen["ended_at"] = round(time.monotonic() - began, 2)
        except TimeoutError:
            pass  # it is still open
        except (OSError, HTTPException, zlib.error):
            if link is not None and link.is_cut.is_set():
                return  # the same, before a byte of the answer
            self.seen["ended_at"] = round(time.monotonic() - began, 2)
            self.seen["clean"] = False
        finally:
            if link is not None:
                way.drop(link)

    def _note_refusal(self, response: HTTPResponse) -> None:
        answer = Answer(response.status, {}, unpacked(response), 0)
        if answer.error_code:
            self.seen["refused"] = answer.error_code

    def _read(self, response: HTTPResponse, sock: socket.socket, began: float, patience: float) -> None:
        parser = Parser()
        unpack = unpacker(response)
        if unpack is None:
            del self.seen["blocks"]
        count = unpacked_count = 0
        while True:
            left = began + patience - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            chunk = response.read1(_MOST)
            at = time.monotonic() - began
            if not chunk and at > patience:
                raise TimeoutError  # we have cut it
            if not chunk:
                self.seen["clean"] = True
                return
            self.seen.setdefault("first_byte", round(at, 4))
            count += len(chunk)
            text = unpack(chunk) if unpack else b""
            unpacked_count += len(text)
            if max(count, unpacked_count) > _MOST_OF_STREAM:
                raise HTTPException("the stream has no end")
            self.seen["bytes"] = count
            for block in parser.feed(text):
                with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError, RecursionError):
                    self._note(block, at)

    def _note(self, block: Block, at: float) -> None:
        """Note a block, which may have any error that a strange server's JSON leads to."""
        told = json.loads(block.data)
        if not block.type.startswith("doctor.") or not isinstance(told, dict):
            return
        if block.type == "doctor.open":
            self.nonce = str(told.get("nonce", ""))
            headers = told.get("headers")
            if isinstance(headers, dict):
                self.seen["seen_headers"] = {str(name): str(value) for name, value in headers.items()}
        if block.type == "doctor.end":
            if told.get("reason", "done") == "done":
                self.seen["finished"] = True
            else:
                self.seen["refused"] = str(told["reason"])
        elif len(self.seen["blocks"]) < _MOST_BLOCKS:
            number, now = int(told.get("n", 0)), float(told["now"])
            self.seen["blocks"].append([number, now, round(at, 4), len(block.data) + 40])
