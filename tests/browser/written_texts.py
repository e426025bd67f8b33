"""A small service in the tests' own process that speaks the wire contract of texts that are written bit by bit.

It has channels whose texts end, ordinary channels, and one view that chooses its channels. It keeps a list of all
requests, so that a test can show that none came.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.browser.origin import PAGES
from tests.servers import ROOT, HttpServer, free_port

VIEW = "/inbox/events"
LIFETIME = 120  # seconds of a stream, at the most


@dataclass
class Channel:
    """A ring that is never trimmed. An entry is a type and its data; that of the end has the reason."""

    tag: int
    is_run: bool = True
    entries: list[tuple[str, str]] = field(default_factory=list)

    def position(self, offset: int) -> str:
        return f"{offset}-{self.tag}"

    def ended(self, offset: int) -> str:
        """Return the reason, if this is the position of the end."""
        over = self.entries and self.entries[-1][0] == "sse.end" and offset == len(self.entries)
        return self.entries[-1][1] if over else ""

    def take(self, offset: int, room: int) -> tuple[str, str, int] | None:
        """Return the next entry and the offset after it. Pieces are joined up to `room` characters."""
        if offset == len(self.entries):
            return None
        type, data = self.entries[offset]
        offset += 1
        while type == "text" and offset < len(self.entries) and self.entries[offset][0] == "text" and len(data) < room:
            data += self.entries[offset][1]
            offset += 1
        return type, data, offset


class TextService(HttpServer):
    """Serves pages, the script, streams, polls and the view, and writes what a test tells it to."""

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        self.view: list[str] = []  # the channels of the view
        self.asked: list[tuple[float, str, str]] = []  # of each stream and poll: the moment, its target, its Accept
        self.changed = threading.Condition()
        self.generation = 0  # a stream of an older one is cut
        self.delay = 0.0  # seconds before a poll is answered
        self.pages: dict[str, str] = {}  # what the body of a page has, by its path
        self._tags = 1000
        super().__init__(("127.0.0.1", free_port()), _handler(self))
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.other = f"http://localhost:{self.server_port}"

    def begin(self, name: str, is_run: bool = True) -> None:
        """Begin a channel's ring, or begin it again."""
        with self.changed:
            self._tags += 1
            self.channels[name] = Channel(self._tags, is_run)
            self.changed.notify_all()

    def write(self, name: str, *pieces: str) -> None:
        self._add(name, [("text", piece) for piece in pieces])

    def publish(self, name: str, data: Any, type: str = "message") -> None:
        self._add(name, [(type, data if isinstance(data, str) else json.dumps(data))])

    def end(self, name: str, reason: str = "done") -> float:
        """End the channel, and return the moment."""
        self._add(name, [("sse.end", reason)])
        return time.time()

    def choose(self, *names: str) -> None:
        """Change the channels of the view, and cut its streams."""
        self.view = list(names)
        self.cut()

    def cut(self) -> None:
        with self.changed:
            self.generation += 1
            self.changed.notify_all()

    def since(self, moment: float, part: str = "") -> list[str]:
        """Return the targets of the streams and polls since that moment that contain `part`."""
        return [target for at, target, _ in self.asked if at >= moment and part in target]

    def _add(self, name: str, entries: Sequence[tuple[str, str]]) -> None:
        with self.changed:
            self.channels[name].entries += entries
            self.changed.notify_all()


@dataclass
class Reading:
    """What one request reads: the offset in each channel, and the resets that are due."""

    service: TextService
    offsets: dict[str, int]
    resets: list[dict[str, Any]]
    told: dict[str, str]  # the position of each channel that the request named
    tags: dict[str, int]

    def last_event_id(self, first: str = "", *, continued: bool = False) -> str:
        names = sorted(self.offsets, key=lambda name: name != first)
        places = {name: self.service.channels[name].position(self.offsets[name]) for name in names}
        if continued:
            places |= {reset["channel"]: self.told[reset["channel"]] for reset in self.resets}
        return "~".join(f"{name}={place}" for name, place in places.items() if place)

    def ended(self) -> dict[str, str]:
        reasons = {name: self.service.channels[name].ended(offset) for name, offset in self.offsets.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def is_stale(self) -> bool:
        return any(self.service.channels[name].tag != tag for name, tag in self.tags.items())

    def step(self, room: int) -> Iterator[tuple[str, str, str]]:
        """Yield a channel, type and data for what can be read now: all of the first channel first."""
        for name in self.offsets:
            while taken := self.service.channels[name].take(self.offsets[name], room):
                type, data, self.offsets[name] = taken
                yield name, type, data


def read(service: TextService, names: Sequence[str], last_event_id: str, replay: int, is_view: bool) -> Reading:
    told = dict(entry.split("=", 1) for entry in last_event_id.split("~") if entry)
    reading = Reading(service, {}, [], {name: told.get(name, "") for name in names}, {})
    for name in names:
        channel = service.channels[name]
        start = 0 if channel.is_run else max(0, len(channel.entries) - replay)
        offset, _, tag = told.get(name, "").partition("-")
        if tag == str(channel.tag):
            start = int(offset)
        elif tag or (told and is_view):
            reading.resets.append({"channel": name, "reason": "diverged" if tag else "missing", "missed": None})
            start = 0 if channel.is_run else len(channel.entries)
        reading.offsets[name] = start
        reading.tags[name] = channel.tag
    return reading


def _handler(service: TextService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path.startswith("/pages/"):
                self._send("text/html" if path.endswith("html") else "text/javascript", PAGES / path[7:])
            elif path in service.pages:
                head = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'
                self._answer(200, "text/html; charset=utf-8", (head + service.pages[path]).encode())
            elif path == "/sse/sse.js":
                self._send("text/javascript", ROOT / "static" / "sse.js")
            else:
                service.asked.append((time.time(), self.path, self.headers["Accept"]))
                self._subscribe(path)

        def _send(self, kind: str, file: Any) -> None:
            body = file.read_bytes()
            self._answer(200, f"{kind}; charset=utf-8", body)

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(body)

        def _subscribe(self, path: str) -> None:
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            names = parse_qs(urlsplit(self.path).query).get("channel", [])
            is_poll = path == "/sse/poll"
            if path == VIEW:
                assert not names, "a view chooses the channels itself"
                names, is_poll = service.view, "application/json" in self.headers["Accept"]
            last_event_id = self.headers["Last-Event-ID"] or query.get("last_event_id", "")
            with service.changed:
                reading = read(service, names, last_event_id, int(query.get("replay", 0)), path == VIEW)
            if is_poll:
                self._poll(reading, float(query["timeout"]), int(query.get("max_bytes", 1 << 20)))
            elif last_event_id and not reading.resets and len(reading.ended()) == len(names):
                self._answer(204, "text/event-stream", b"")
            else:
                self._stream(reading, query)

        def _poll(self, reading: Reading, timeout: float, room: int) -> None:
            events: list[dict[str, str]] = []
            more = False
            deadline = time.monotonic() + timeout
            with service.changed:
                while True:
                    for name, type, data in reading.step(room // 2):
                        if type != "sse.end":
                            id = reading.last_event_id(name)
                            events.append({"channel": name, "id": id, "type": type, "data": data})
                        if sum(len(json.dumps(event)) for event in events) > room // 2:
                            more = True
                            break
                    left = deadline - time.monotonic()
                    ended = reading.ended()
                    first = any(not place for place in reading.told.values())
                    if events or reading.resets or first or len(ended) == len(reading.offsets) or left <= 0:
                        break
                    service.changed.wait(left)
                answer = {"last_event_id": reading.last_event_id(), "events": events, "resets": reading.resets,
                          "more": more, "retry": 300, "ended": ended}  # fmt: skip
            time.sleep(service.delay)
            self._answer(200, "application/json", json.dumps(answer).encode())

        def _stream(self, reading: Reading, query: dict[str, str]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Connection", "close")
            self.end_headers()
            generation, deadline = service.generation, time.monotonic() + LIFETIME
            ended = reading.ended()
            channels = {}
            for name, offset in reading.offsets.items():
                reset = name in [reset["channel"] for reset in reading.resets]
                place = (reading.told[name] or None) if reset else service.channels[name].position(offset)
                channels[name] = {"position": place, "resumed": bool(reading.told[name]) and not reset,
                                  **({"ended": ended[name]} if name in ended else {})}  # fmt: skip
            told = {"channels": channels, "heartbeat": 3, "lifetime": LIFETIME, "retry": 300}
            self._block("sse.open", told, reading.last_event_id(continued=True))
            self._block("sse.heartbeat", "", "")
            for reset in reading.resets:
                name = reset["channel"]
                self._block("sse.reset", reset, f"{name}={service.channels[name].position(reading.offsets[name])}")
            while time.monotonic() < deadline and service.generation == generation and not reading.is_stale():
                with service.changed:
                    blocks = []
                    for name, type, data in reading.step(16384):
                        place = f"{name}={service.channels[name].position(reading.offsets[name])}"
                        if type == "sse.end":
                            blocks.append((type, {"channel": name, "reason": data}, place))
                        elif type.startswith("sse."):
                            blocks.append((type, data, ""))
                        else:
                            blocks.append(("sse.event", f"{type}\n{data}", place))
                    over = len(reading.ended()) == len(reading.offsets)
                    if not blocks and not over and not service.changed.wait(3):
                        blocks = [("sse.heartbeat", "", "")]
                try:
                    for block in blocks:
                        self._block(*block)
                except OSError:
                    return
                if over:
                    return

        def _block(self, type: str, data: Any, id: str) -> None:
            text = data if isinstance(data, str) else json.dumps(data)
            lines = [f"event: {type}", *(f"data: {line}" for line in text.split("\n")), *([f"id: {id}"] if id else [])]
            self.wfile.write(("\n".join(lines) + "\n\n").encode())
            self.wfile.flush()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
