"""Two servers, one with the fast lane and one without, give the same bytes to the same requests on the wire.

They are alike but for the date, positions, tickets, random times, and how long a hub remembers an idle channel. The
requests are those of the fuzzer. They come on connections that are kept as long as both servers keep them.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import random
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from sse.wire import BARE_HEARTBEAT, HEARTBEAT
from tests import client
from tests.client import Parser
from tests.fuzzed_requests import COUNT, Fuzzer
from tests.live.load import has_whole_lane
from tests.servers import Gunicorn
from tests.tokens import KEY, SECRET, jwk_set

PUBLISHER = "another-publishing-key-for-these-tests"
POSITION = re.compile(r"\b\d+-\d{8,16}\b")
RANDOM = re.compile(
    r'(?<=retry: )\d+|(?<="retry":)\d+|(?<="lifetime":)\d+|eyJ[\w.-]+'
    # A hub that has forgotten an idle channel meanwhile does not know any more that its ring was new.
    r'|(?<="reason":")(?:unknown|trimmed|diverged)","missed":(?:null|\d+)'
    r"|(?<=cannot be continued: )(?:unknown|trimmed|diverged)"
)
FIXED = {"date", "content-length"}


class Came(NamedTuple):
    """An answer as it came over a connection."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    is_whole: bool
    """False if the body broke off."""
    is_stream: bool


class Side:
    """One of the servers, and a kept connection to it. Its positions are named by the order in which they came."""

    def __init__(self, server: Gunicorn) -> None:
        self.server = server
        self.names: dict[str, str] = {}
        self._socket: socket.socket | None = None
        self.last = self.now = b""

    def close(self) -> None:
        if self._socket:
            self._socket.close()
        self._socket = None

    def send(self, data: bytes, *, breaks_off: bool) -> None:
        """Send a request. If it breaks off, nothing more is to come."""
        self.last, self.now = self.now, data
        self._socket = self._socket or client.connect(self.server.url, 20)
        with contextlib.suppress(OSError):  # an answer may have come before the end of a body
            self._socket.sendall(data)
            if breaks_off:
                self._socket.shutdown(socket.SHUT_WR)

    def receive(self, method: str, behind: Any) -> Came:
        """Return the answer. Of a stream, read what comes without waiting.

        :param behind: returns whether more comes at once after a stream's opening.
        """
        assert self._socket
        answer = http.client.HTTPResponse(self._socket, method=method)
        try:
            answer.begin()
        except ConnectionError as error:
            error.add_note(f"from {self.server.dir.name}, after {self.last!r}")
            raise
        headers = answer.getheaders()
        is_stream = answer.chunked and answer.headers.get_content_type() == "text/event-stream" and method == "GET"
        body, is_whole = b"", True
        try:
            if is_stream:
                body = _chunk(answer.fp)
                # The lane may write what a stream has missed together with its opening, which ends with a heartbeat.
                if is_ended(body) or (body.endswith((HEARTBEAT, BARE_HEARTBEAT)) and behind(body)):
                    body += _chunk(answer.fp)
                is_stream = not is_ended(body)
                if not is_stream:
                    is_whole = answer.fp.read(1) != b""
            else:
                body = answer.read()
        except http.client.IncompleteRead as error:
            body, is_whole = error.partial, False
        except (EOFError, ConnectionResetError):
            is_whole = False
        if is_stream or answer.will_close or not is_whole:
            self.close()
        return Came(answer.status, answer.reason, headers, body, is_whole, is_stream)

    def named(self, text: str) -> str:
        """Return a text with names in place of its positions, and without random times."""
        text = POSITION.sub(lambda found: self.names.setdefault(found[0], f"position {len(self.names)}"), text)
        return RANDOM.sub("…", text)


def is_ended(body: bytes) -> bool:
    """Return whether a stream's first bytes are its last ones, too."""
    return b"event: sse.close" in body


def _chunk(file: Any) -> bytes:
    line = file.readline()
    if not line:
        raise EOFError
    size = int(line, 16)
    data: bytes = file.read(size + 2)
    return data[:-2]


class Raw(NamedTuple):
    """A request as a client would send it."""

    data: bytes
    breaks_off: bool
    """True if its body does."""
    is_last: bool
    """True if what comes behind it could be taken for the rest of its body, or the other way round."""


def raw(environ: dict[str, Any], chance: random.Random) -> Raw:
    """Return the request that a server would give to an app like this."""
    target = quote(environ["PATH_INFO"].encode("latin-1"), safe=chance.choice(["/:@.-_~", '/:@.-_~%*{}[]\\"<>|^`']))
    if query := environ["QUERY_STRING"]:
        query = query.replace("&max_bytes=1024", "")  # the positions decide which channel comes first then
        target += "?" + re.sub("[\r\n ]", "+", query)
    fields = {
        name.removeprefix("HTTP_").replace("_", "-").title(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or (name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
    }
    fields.setdefault("Host", "push.example")
    body, breaks_off, is_last = environ["wsgi.input"], False, "Expect" in fields
    if isinstance(body, io.BytesIO):
        content = body.getvalue()
    else:
        content, breaks_off = b"cut off", True
        fields["Content-Length"] = "100"
    if fields.pop("Transfer-Encoding", None):
        fields.pop("Content-Length", None)
        fields["Transfer-Encoding"] = "chunked"
        content = b"%x\r\n%b\r\n" % (len(content), content) if content else b""
        content += b"" if breaks_off else b"0\r\n\r\n"
    elif environ["REQUEST_METHOD"] in ("GET", "HEAD") and not content and fields.get("Content-Length") == "0":
        del fields["Content-Length"]  # as a browser sends it
    elif re.fullmatch("[0-9]{1,7}", length := fields.get("Content-Length", "0").strip()):
        content = content[: int(length)]
        breaks_off = len(content) < int(length)
    else:
        breaks_off = True
    lines = [f"{environ['REQUEST_METHOD']} {target} HTTP/1.1", *(f"{name}: {text}" for name, text in fields.items())]
    head = "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1", "replace")
    return Raw(head + content, breaks_off, is_last or breaks_off)


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    (tmp_path / "jwks").write_text(jwk_set("RS256"))
    (tmp_path / "keys").write_text(f"own {KEY} own/*\nall {PUBLISHER} *\n")
    env = {
        "SSE_SECRET": SECRET, "SSE_JWKS": str(tmp_path / "jwks"), "SSE_PUBLISH_KEYS_FILE": str(tmp_path / "keys"),
        "SSE_ORIGINS": "https://a.example", "SSE_PUBLIC": "own/b", "SSE_RING": "5", "SSE_PROXIES": "1",
        "SSE_PRESENCE": "own/a", "SSE_LIMIT_SUBSCRIBE": "9999999/minute", "SSE_LIMIT_NEW_CHANNELS": "",
    }  # fmt: skip
    with (
        Gunicorn(tmp_path / "lane", env=env | {"SSE_LANE": "auto"}) as lane,
        Gunicorn(tmp_path / "flask", env=env | {"SSE_LANE": "off"}) as flask,
    ):
        assert has_whole_lane(lane) == (lane.environment()["SSE_LANE"] == "auto")
        assert not has_whole_lane(flask)
        both = Side(flask), Side(lane)
        yield both
        for side in both:
            side.close()
        for server in (lane, flask):
            assert "Traceback" not in server.logs()


class Judge:
    """Sends requests to both servers, and compares what comes."""

    def __init__(self, sides: tuple[Side, Side], seed: int) -> None:
        self.sides = sides
        self.random = random.Random(seed)
        self.fuzzer = Fuzzer(seed, "")
        self.met: Counter[object] = Counter()
        self.fuzzer.private = self.publish("private", "the private news", PUBLISHER)

    def ask(self, data: bytes, *, breaks_off: bool = False, is_last: bool = False) -> Came:
        """Have both servers answer a request, and compare the answers. The positions in it are those of Flask's."""
        for side, request in zip(self.sides, (data, self.translated(data)), strict=True):
            side.send(request, breaks_off=breaks_off)
        came = self.compare(data)
        if is_last:
            for side in self.sides:
                side.close()
        return came

    def compare(self, data: bytes) -> Came:
        method = data.partition(b" ")[0].decode("latin-1")
        flask, lane = (side.receive(method, self.is_behind) for side in self.sides)
        shown = [
            (
                came.status,
                came.reason,
                [(name, side.named(text)) for name, text in came.headers if name.lower() not in FIXED],
                [name for name, _ in came.headers],
                side.named(came.body.decode("utf-8", "surrogateescape")),
                came.is_whole,
                came.is_stream,
            )
            for side, came in zip(self.sides, (flask, lane), strict=True)
        ]
        assert shown[0] == shown[1], f"{data!r} without the lane: {shown[0]}, with it: {shown[1]}"
        return flask

    def is_behind(self, body: bytes) -> bool:
        """Return whether a stream that begins like this has more to send at once."""
        if body.startswith(b": open "):
            channels = json.loads(body.splitlines()[0].removeprefix(b": open "))["channels"]
        else:
            (opening,) = [block for block in Parser().feed(body) if block.event == "sse.open"]
            channels = opening.json()["channels"]
        return any(self.follows(name, channel["position"]) for name, channel in channels.items())

    def follows(self, channel: str, position: str | None) -> bool:
        """Return whether a reader at a position of one of the servers has something to get at once."""
        stored = self.fuzzer.stored.get(channel)
        newest = stored[-1] if stored else ""
        return position is None or bool(stored and position not in (newest, self.translated(newest.encode()).decode()))

    def translated(self, data: bytes) -> bytes:
        """Return a request with the positions that the second server has in place of the first one's."""
        flask, lane = self.sides
        of_lane = {name: position for position, name in lane.names.items()}
        text = POSITION.sub(lambda found: of_lane.get(flask.names.get(found[0], ""), found[0]), data.decode("latin-1"))
        return text.encode("latin-1")

    def publish(self, channel: str, text: str, key: str = KEY) -> str:
        body = text.encode()
        came = self.ask(
            f"POST /sse/publish/{channel} HTTP/1.1\r\nHost: push.example\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert came.status == 201, came
        self.note(came)
        return str(json.loads(came.body)["ids"][0].partition("=")[2])

    def note(self, came: Came) -> None:
        """Note what was published, so that readers can go on from there."""
        if came.status == 201 and b'"ids"' in came.body:
            for id in json.loads(came.body)["ids"]:
                channel, _, position = id.partition("=")
                if position not in self.fuzzer.stored[channel]:
                    self.fuzzer.stored[channel].append(position)

    def held(self) -> None:
        """Have both servers hold a poll until something is published."""
        channel = self.random.choice(["own/a", "own/b", f"own/{self.random.randrange(9)}"])
        position = self.publish(channel, "before")
        token = self.fuzzer.tokens[0]
        data = (
            f"GET /sse/poll?channel={channel}&timeout=20&last_event_id={channel}={position} HTTP/1.1\r\n"
            f"Host: push.example\r\nAuthorization: Bearer {token}\r\n\r\n"
        ).encode()
        waiting = [Side(side.server) for side in self.sides]
        for other, side, request in zip(waiting, self.sides, (data, self.translated(data)), strict=True):
            other.names = side.names
            other.send(request, breaks_off=False)
        others, self.sides = self.sides, (waiting[0], waiting[1])
        for side in waiting:
            client.request(side.server.url, "GET", "/sse/health", timeout=10)
        kept, self.sides = self.sides, others
        self.publish(channel, "what they wait for")
        self.sides = kept
        came = self.compare(data)
        self.sides = others
        for side in kept:
            side.close()
        assert b"what they wait for" in came.body, came
        self.met["held"] += 1


def test_the_answers_on_the_wire_are_the_same(sides: tuple[Side, Side], request: pytest.FixtureRequest) -> None:
    seed = int(request.config.option.hypothesis_seed)
    judge = Judge(sides, seed)
    for number in range(COUNT // 20):
        if number % 500 == 499:
            judge.fuzzer.renew()
        given = judge.fuzzer.request()
        sent = raw(given.environ, judge.random)
        try:
            came = judge.ask(sent.data, breaks_off=sent.breaks_off, is_last=sent.is_last)
            if number % 20 == 0:
                judge.held()
        except Exception as fault:
            fault.add_note(f"request {number} of seed {seed}: {sent}")
            raise
        judge.note(came)
        judge.met[given.way, came.status] += 1
    found = judge.met
    for item in (
        ("stream", 200),
        ("poll", 200),
        ("publish", 201),
        ("raw", 201),
        ("stream", 400),
        ("poll", 401),
        "held",
    ):
        assert found[item] > COUNT / 2000, found
