"""Connects to the probe routes of a service as clients do, and returns what comes of it, as JSON for the judge.

The measuring has two parts. First, short requests come one after another, with a few quiet seconds between two of them.
Then streams and a poll are open side by side, until each has ended or the time to wait is over.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

from sse.doctor.arrivals import held
from sse.doctor.shape import BadMeasure, checked
from sse.errors import SSEError
from sse.wire import Block, Parser

Headers = dict[str, list[str]]
Tell = Callable[[str], object]

LONGEST_WAIT: Final = 90.0
"""Seconds that a stream is watched at most."""

_QUICK: Final = 12.0  # seconds, with --quick
_ANSWER: Final = 10.0  # seconds for the answer to a short request
_PATIENCE: Final = 5.0  # seconds beyond the time that an answer should take
_QUIET: Final = 8.0  # seconds without a request
_LATER: Final = 3.0  # seconds after the silent stream at which the active one starts
_LEAVING: Final = 2.0  # seconds of a stream before its client leaves
_NOTICED: Final = 6.0  # seconds that the service has to notice it
_WHILE: Final = 8.0  # seconds for the answer to a short request while streams are open
_LAST_EVENT_ID: Final = "doctor=58-2893"
_ENCODINGS: Final = "gzip, deflate, br, zstd"  # as browsers send it over https
_NOTHING_BEHIND: Final = (502, 503, 504, *range(520, 527), 530)  # from 520 on, those of Cloudflare
_STATUSES: Final = (204, 400, 401, 403, 404, 409, 410, 413, 429, 503)
_MOST: Final = 65_536  # bytes of a short answer
_MOST_BLOCKS: Final = 400
_MOST_OF_STREAM: Final = 4 << 20  # bytes
_MOST_UNPACKED: Final = 1 << 20  # bytes of one chunk
_STRANGE: Final = {"title": "JSON in a form that no version of this service has"}
_TICK: Final = 0.1  # seconds between two looks at our own clock


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


def get_pass(url: str, key: str) -> str:
    """Return a pass for the probes of a service.

    :param key: a publishing key, or a token that may publish.
    :raises SSEError: if the service gives none, or cannot be reached.
    """
    way = _Way(url)
    try:
        answer = way.ask("/doctor/pass", method="POST", headers={"Authorization": f"Bearer {key}"})
    except (OSError, HTTPException) as error:
        raise SSEError(f"{url} cannot be reached: {_reason(error)}", "give the service's prefix") from None
    given = answer.json().get("pass")
    if isinstance(given, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,200}", given):
        return given
    if answer.error_code in ("unauthorized", "forbidden", "token_invalid") or answer.status in (401, 403):
        raise SSEError("the service does not accept this key", "give a publishing key, or a token that may publish")
    raise SSEError(
        f"{url}/doctor/pass was answered with {answer.status}", "leave out the key to learn what stands there"
    )


def measure(
    url: str,
    *,
    given_pass: str = "",
    origin: str = "",
    wait: float = LONGEST_WAIT,
    quick: bool = False,
    proxy: str = "",
    tell: Tell = lambda _text: None,
) -> dict[str, Any]:
    """Return what a client of this service meets, in the shape that `sse.doctor.shape` describes.

    :param url: the service's prefix, such as https://push.example/sse.
    :param given_pass: a pass for the probes; not needed if SSE_DOCTOR=1.
    :param origin: the origin of a page that reads the service, such as https://www.example; empty for its own pages.
    :param wait: seconds that streams without a fault are watched, 90 at most.
    :param quick: True to leave out all that takes longer than some 15 s.
    :param proxy: the name of the proxy in front, if the user knows it.
    :param tell: is told what is going on, from time to time.
    """
    wait = min(wait, _QUICK if quick else LONGEST_WAIT)
    found: dict[str, Any] = {"client": "command", "url": url, "wait": wait, "skipped": []}
    found |= {"origin": origin} if origin else {}
    found |= {"proxy": proxy} if proxy else {}
    way = _Way(url, given_pass, origin)
    with _Pulse() as pulse:
        try:
            _Measuring(way, found, tell).run(wait, quick)
        except ssl.SSLCertVerificationError as error:
            found["unreachable"] = f"The certificate is not valid: {error.verify_message}."
        except (OSError, HTTPException) as error:
            found["unreachable"] = f"{way.host} does not answer: {_reason(error)}."
        except (KeyError, TypeError, ValueError):
            found["not_ours"] = _STRANGE
        finally:
            way.close()
    found["client_gap"] = round(pulse.gap, 3)
    try:
        checked(found)
    except BadMeasure:
        return {name: found[name] for name in ("client", "url")} | {"not_ours": _STRANGE}
    return found


class _Link(NamedTuple):
    """A connection, and its socket, which the connection forgets if it ends with its answer."""

    http: HTTPConnection
    sock: socket.socket


class _Way:
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

    def connect(self, timeout: float) -> _Link:
        """Return an open connection."""
        if self._tls:
            connection: HTTPConnection = HTTPSConnection(self._name, self._port, timeout=timeout, context=self._tls)
        else:
            connection = HTTPConnection(self._name, self._port, timeout=timeout)
        connection.connect()
        self._open.add(connection.sock)
        return _Link(connection, connection.sock)

    def target(self, path: str, query: Mapping[str, object] | None = None, mark: str = "") -> str:
        """Return the target of a request. `mark` makes it differ from all others; by default it is random."""
        return f"{self.prefix}{path}?{urlencode({**(query or {}), **self._query, '_': mark or secrets.token_hex(6)})}"

    def start(self, link: _Link, target: str, headers: Mapping[str, str], method: str = "GET") -> HTTPResponse:
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
        timeout: float = _ANSWER,
        link: _Link | None = None,
    ) -> Answer:
        """Return the complete answer to a request, on a new connection unless one is given."""
        used = link or self.connect(timeout)
        try:
            began = time.monotonic()
            accept = {"Accept": "application/json", **(headers or {})}
            response = self.start(used, self.target(path, query, mark), accept, method)
            took = time.monotonic() - began
            return Answer(response.status, headers_of(response), _unpacked(response), took)
        finally:
            if link is None:
                self.drop(used)

    def drop(self, link: _Link) -> None:
        """Close a connection at once."""
        self._open.discard(link.sock)
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
            socket.create_connection((self._name, self._port or 443), _ANSWER) as plain,
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
            body = response.read(2_048).decode(errors="replace")
            return {"status": response.status, "headers": headers_of(response), "body": body[:1_000]}
        finally:
            self.drop(link)


class _Measuring:
    """One run of the doctor: writes what it finds into `found`."""

    def __init__(self, way: _Way, found: dict[str, Any], tell: Tell) -> None:
        self._way = way
        self._found = found
        self._tell = tell

    def run(self, wait: float, quick: bool) -> None:
        self._tell("asking the service who is there")
        self._found["tls"] = self._way.is_tls
        self._found["http"] = "2" if self._way.is_tls and self._way.speaks_h2() else "1.1"
        if not self._meet():
            return
        with contextlib.suppress(OSError, HTTPException):
            self._found["error_page"] = self._way.error_page()
        self._look_at_cors()
        self._look_at_statuses()
        if not quick:
            self._look_at_quiet()
        self._look_at_streams(wait)

    # -- short requests

    def _meet(self) -> bool:
        """Ask twice for the same echo, and return True if the service answers."""
        mark = secrets.token_hex(6)
        answers = []
        for _ in range(2):
            answer = self._echo(mark)
            if answer.json().get("service") != "throughline":
                return self._meet_others(answer)
            answers.append(answer)
        first, second = answers
        self._found["same_nonce"] = first.json().get("nonce") == second.json().get("nonce")
        self._found["sent"] = {"last_event_id": _LAST_EVENT_ID}
        self._found["echo_headers"] = second.headers
        best: Answer | None = None
        link = self._way.connect(_ANSWER)
        try:
            for _ in range(3):
                ours = time.time()
                answer = self._echo("", link)
                told = answer.json()
                if told.get("service") != "throughline":
                    break
                self._found["echo"] = _known_echo(told)
                if best is None or answer.took < best.took:
                    best = answer
                    self._found["skew"] = round(float(told["now"]) - ours - answer.took / 2, 3)
                    self._found["rtt"] = round(answer.took, 4)
                if answer.first("connection").lower() == "close":
                    break
        finally:
            self._way.drop(link)
        self._found.setdefault("echo", _known_echo(second.json()))
        return True

    def _echo(self, mark: str = "", link: _Link | None = None, timeout: float = _ANSWER) -> Answer:
        sent = {"Last-Event-ID": _LAST_EVENT_ID}
        return self._way.ask("/doctor/echo", headers=sent, mark=mark, link=link, timeout=timeout)

    def _meet_others(self, answer: Answer) -> bool:
        """Note what has answered in place of the service, and return False."""
        code = answer.error_code
        if answer.status == 401 and code.startswith("pass_"):
            self._found["closed"] = {"status": 401, "code": code}
        elif answer.status == 404 and self._way.ask("/stream").error_code:
            self._found["closed"] = {"status": 404, "code": code}
        elif code:
            self._found["unreachable"] = f"The service refuses the doctor's first request: {answer.status} {code}."
        else:
            other: dict[str, Any] = {"status": answer.status, "type": answer.first("content-type")[:200]}
            if location := answer.first("location"):
                other["location"] = location[:1_000]
            if title := re.search(rb"<title[^>]*>([^<]{1,200})", answer.body, re.IGNORECASE):
                other["title"] = " ".join(title[1].decode(errors="replace").split())
            self._found["error_headers"] = answer.headers
            if answer.status in _NOTHING_BEHIND:
                self._found["unreachable"] = f"A proxy answers {answer.status}: it does not reach the service."
                self._found["error_page"] = {
                    "status": answer.status,
                    "body": answer.body.decode(errors="replace")[:1_000],
                }
            else:
                self._found["not_ours"] = other
        return False

    def _look_at_cors(self) -> None:
        if not self._found.get("origin"):
            return
        headers = self._found["echo_headers"]
        seen: dict[str, Any] = {
            "allow_origin": headers.get("access-control-allow-origin", []),
            "allow_credentials": headers.get("access-control-allow-credentials", []),
        }
        asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "last-event-id"}
        answer = self._way.ask("/stream", {"probe": 1}, asked, method="OPTIONS")
        seen["preflight_status"] = answer.status
        seen["preflight_allow_headers"] = answer.headers.get("access-control-allow-headers", [])
        self._found["cors"] = seen

    def _look_at_statuses(self) -> None:
        self._tell("asking for each status")
        statuses, after, replaced = {}, {}, []
        for status in _STATUSES:
            answer = self._way.ask(f"/doctor/status/{status}")
            code = answer.error_code
            if code and code != "doctor":
                self._skip(f"the status {status}, because the service refused to send it: {code}")
                continue
            statuses[str(status)] = answer.status
            if status in (429, 503):
                after[str(status)] = "retry-after" in answer.headers
            if answer.status == status and status != 204 and not code:
                replaced.append(str(status))
        self._found |= {"statuses": statuses, "retry_after": after, "replaced": replaced}

    def _look_at_quiet(self) -> None:
        """Look whether the server's process goes on while nobody asks anything."""
        if self._found.get("same_nonce"):
            return
        first = self._echo().json()
        began = time.monotonic()
        self._tell(f"being quiet for {_QUIET:.0f} s, to see whether the server stands still")
        time.sleep(_QUIET)
        for _ in range(8):  # other workers may answer
            last = self._echo().json()
            if last.get("worker") == first.get("worker"):
                break
        elapsed = time.monotonic() - began
        ticks, before = last.get("ticks") or {}, first.get("ticks") or {}
        if last.get("worker") != first.get("worker") or "since" not in ticks or "since" not in before:
            self._found["ticks"] = {"quiet": _QUIET, "same_worker": False}
            return
        is_new = float(ticks.get("ago", 0)) < elapsed  # a gap before that is another one's
        ran = float(ticks["since"]) - float(before["since"])
        self._found["ticks"] = {
            "quiet": _QUIET,
            "longest_gap": float(ticks["longest_gap"]) if is_new else 0.0,
            "same_worker": True,
            "lost": round(max(elapsed - ran, 0.0), 3) if ran >= 0 else 0.0,
        }

    def _skip(self, reason: str) -> None:
        self._found["skipped"].append(reason)

    # -- streams

    def _look_at_streams(self, wait: float) -> None:
        holds = self._found["echo"].get("holds", "many")
        settings = self._found["echo"].get("settings", {})
        began = time.monotonic()
        silent = _Stream("silent", every=wait, count=1)
        active = _Stream("active", every=1, count=int(wait), delay=_LATER)
        small = _Stream("small", every=1, count=5)
        fast = _Stream("fast", every=0.1, count=40, size=2_048, mark=secrets.token_hex(6))
        twin = _Stream("fast", every=0.1, count=40, size=2_048, mark=fast.mark)
        poll = min(float(settings.get("poll_timeout", 25)), wait)
        streams: dict[str, Any] = {}
        self._found["streams"] = streams

        def watch(stream: _Stream) -> None:
            stream.watch(self._way, began)
            if stream is not twin:
                streams[stream.name] = stream.seen

        def watch_small() -> None:
            watch(small)
            if held(small.seen.get("blocks", ())) is not None:
                self._watch_again(small, began)

        def short() -> None:
            if holds == "many":
                self._together([watch_small, partial(watch, fast), partial(watch, twin)])
            else:
                watch_small()
                self._together([partial(watch, fast), *[partial(watch, twin)] * (holds == "threads")])
            if fast.nonce and twin.nonce:
                self._found["shared"] = fast.nonce == twin.nonce
            if holds != "one":
                with contextlib.suppress(OSError, HTTPException):
                    self._look_at_leaving()

        long: list[Callable[[], object]] = [partial(watch, silent), partial(watch, active)]
        if holds == "many":
            self._together([*long, short, partial(self._look_at_poll, poll), partial(self._ask_meanwhile, began)], wait)
        else:
            self._tell("watching streams one after another, because the server holds few at a time")
            short()
            if holds == "one":
                self._skip("long streams and polls, because the server answers one request at a time")
            else:
                self._skip("a long poll, because the server holds few requests at a time")
                self._together(long, wait)
        if seen := small.seen.get("seen_headers"):
            self._found["stream_headers"] = seen

    def _watch_again(self, small: _Stream, began: float) -> None:
        """Watch the small stream a second time, and keep the better one: a network may have stalled."""
        again = _Stream("small", every=small.every, count=small.count)
        again.watch(self._way, began)
        if again.seen.get("blocks") and held(again.seen["blocks"]) is None:
            self._found["streams"]["small"] = again.seen

    def _together(self, tasks: Sequence[Callable[[], object]], wait: float = 0) -> None:
        """Call functions side by side, and return when all have returned."""
        began = time.monotonic()
        threads = [threading.Thread(target=task, daemon=True) for task in tasks]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(1 / len(threads))
                if wait:
                    self._tell(f"watching streams: {min(time.monotonic() - began, wait):.0f} of {wait:.0f} s")
        except BaseException:
            self._way.close()  # which ends the threads
            raise

    def _ask_meanwhile(self, began: float) -> None:
        """Look whether the service answers others while streams are open."""
        time.sleep(max(began + 1 - time.monotonic(), 0))
        asked = time.monotonic()
        answered = False
        with contextlib.suppress(OSError, HTTPException):
            answered = bool(self._echo(timeout=_WHILE).json())
        self._found["while_streaming"] = {"answered": answered, "after": round(time.monotonic() - asked, 2)}

    def _look_at_poll(self, asked: float) -> None:
        poll: dict[str, Any] = {"asked": asked}
        began = time.monotonic()
        try:
            answer = self._way.ask("/poll", {"probe": 1, "wait": _number(asked)}, timeout=asked + _PATIENCE)
            poll["status"] = answer.status
            poll["headers"] = answer.headers
            if code := answer.error_code:
                poll["refused"] = code
            poll["answered_at"] = round(time.monotonic() - began, 2)
        except TimeoutError:
            pass
        except (OSError, HTTPException):
            poll["answered_at"] = round(time.monotonic() - began, 2)
        self._found["poll"] = poll

    def _look_at_leaving(self) -> None:
        id = secrets.token_hex(10)
        leaving = _Stream("leaving", every=0.5, count=60, id=id)
        leaving.watch(self._way, time.monotonic(), until=_LEAVING)
        if "refused" in leaving.seen or leaving.seen.get("status", 200) != 200:
            self._skip("whether a client's leaving is noticed, because its stream was refused")
            return
        left = time.monotonic()
        while (waited := time.monotonic() - left) < _NOTICED:
            try:
                answer = self._way.ask("/doctor/left", {"id": id})
            except (OSError, HTTPException):
                break
            told = answer.json()
            if "ended" not in told:
                self._skip(f"whether a client's leaving is noticed ({answer.error_code or answer.status})")
                return
            if told["ended"]:
                self._found["left"] = {"noticed": True, "after": round(waited, 2)}
                return
            time.sleep(0.5)
        self._found["left"] = {"noticed": False, "after": _NOTICED}


@dataclass(slots=True)
class _Stream:
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
        return self.every * self.count

    def watch(self, way: _Way, first_began: float, until: float | None = None) -> None:
        """Read the stream to its end, and at most until `until` seconds have passed."""
        time.sleep(max(first_began + self.delay - time.monotonic(), 0))
        patience = self.asked + _PATIENCE if until is None else until
        began = time.monotonic()
        self.seen |= {"started_at": round(began - first_began, 3), "asked": self.asked, "blocks": []}
        query: dict[str, object] = {"probe": 1, "every": _number(self.every), "count": self.count, "size": self.size}
        query |= {"id": self.id} if self.id else {}
        headers = {"Accept": "text/event-stream", "Last-Event-ID": _LAST_EVENT_ID}
        # The bytes of gzip can be read here, those of newer codings cannot. The fast stream asks as browsers do.
        headers |= {} if self.name == "fast" else {"Accept-Encoding": "gzip"}
        link: _Link | None = None
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
            self.seen["ended_at"] = round(time.monotonic() - began, 2)
            self.seen["clean"] = False
        finally:
            if link is not None:
                way.drop(link)

    def _note_refusal(self, response: HTTPResponse) -> None:
        answer = Answer(response.status, {}, _unpacked(response), 0)
        if answer.error_code:
            self.seen["refused"] = answer.error_code

    def _read(self, response: HTTPResponse, sock: socket.socket, began: float, patience: float) -> None:
        parser = Parser()
        unpack = _unpacker(response)
        if unpack is None:
            del self.seen["blocks"]
        count = 0
        while True:
            left = began + patience - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            chunk = response.read1(_MOST)
            at = time.monotonic() - began
            if not chunk:
                self.seen["clean"] = True
                return
            self.seen.setdefault("first_byte", round(at, 4))
            count += len(chunk)
            if count > _MOST_OF_STREAM:
                raise HTTPException("the stream has no end")
            self.seen["bytes"] = count
            for block in parser.feed(unpack(chunk)) if unpack else ():
                self._note(block, at)

    def _note(self, block: Block, at: float) -> None:
        told: dict[str, Any] = {}
        with contextlib.suppress(ValueError, RecursionError):
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
            with contextlib.suppress(KeyError, TypeError, ValueError):
                now = float(told["now"])
                self.seen["blocks"].append([int(told.get("n", 0)), now, round(at, 4), len(block.data) + 40])


class _Pulse:
    """Notes for how long this process itself stood still."""

    def __init__(self) -> None:
        self.gap = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(_TICK):
            now = time.monotonic()
            self.gap = max(self.gap, now - last - _TICK)
            last = now


def headers_of(response: HTTPResponse) -> Headers:
    """Return the headers of an answer by their names in small letters, each with all of its values."""
    headers: Headers = {}
    for name, value in response.headers.items():
        headers.setdefault(name.lower()[:100], []).append(value[:1_000])
    return headers


def _known_echo(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name not in ("service", "nonce", "ticks", "method")}


def _unpacker(response: HTTPResponse) -> Callable[[bytes], bytes] | None:
    """Return the function that decompresses a body bit by bit, or None if there is none here (RFC 9110, 8.4.1)."""
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding in ("", "identity"):
        return bytes
    if coding in ("gzip", "x-gzip", "deflate"):
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # finds out which of the two it is
        return lambda chunk: unpacker.decompress(chunk, _MOST_UNPACKED)
    return None


def _unpacked(response: HTTPResponse) -> bytes:
    body = response.read(_MOST)
    unpack = _unpacker(response)
    with contextlib.suppress(zlib.error):
        return unpack(body) if unpack else b""
    return b""


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _number(value: float) -> str:
    return f"{value:g}"


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
