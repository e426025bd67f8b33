"""Connects to the probe routes of a service as clients do, and returns what comes of it, as JSON for the judge.

The measuring has two parts. First, short requests come one after another, with a few quiet seconds between two of them.
Then streams and a poll are open side by side, until each has ended or the time to wait is over.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.client import HTTPException
from typing import Any, Final

from sse.doctor import LONGEST_WAIT, STATUSES
from sse.doctor.arrivals import held
from sse.doctor.report import printable
from sse.doctor.shape import BadMeasure, checked
from sse.doctor.watched_stream import LAST_EVENT_ID, PATIENCE, WatchedStream
from sse.doctor.way import ANSWER, Answer, Link, Way, number
from sse.errors import SSEError

Tell = Callable[[str], object]

_QUICK: Final = 12.0  # seconds, with --quick
_QUIET: Final = 8.0  # seconds without a request
_LATER: Final = 3.0  # seconds after the silent stream at which the active one starts
_LEAVING: Final = 2.0  # seconds of a stream before its client leaves
_NOTICED: Final = 6.0  # seconds that the service has to notice it
_WHILE: Final = 8.0  # seconds for the answer to a short request while streams are open
_NOTHING_BEHIND: Final = (502, 503, 504, *range(520, 527), 530)  # from 520 on, those of Cloudflare
_STRANGE: Final = {"title": "JSON in a form that no version of this service has"}
_TICK: Final = 0.1  # seconds between two looks at our own clock


def get_pass(url: str, key: str) -> str:
    """Return a pass for the probes of a service.

    :param key: a publishing key, or a token that may publish.
    :raises SSEError: if the service gives none, or cannot be reached.
    """
    way = Way(url)
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
    way = Way(url, given_pass, origin)
    with _Pulse() as pulse:
        try:
            _Measuring(way, found, tell).run(wait, quick)
        except ssl.SSLCertVerificationError as error:
            found["unreachable"] = f"The certificate is not valid: {error.verify_message}."
        except (OSError, HTTPException) as error:
            found["unreachable"] = f"{way.host} does not answer: {_reason(error)}."
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            found["not_ours"] = _STRANGE
        finally:
            way.close()
    found["client_gap"] = round(pulse.gap, 3)
    if given_pass:  # an answer, such as a redirection to a login, may show the address that was asked for
        found = _without(found, given_pass)
    try:
        checked(found)
    except BadMeasure:
        return {name: found[name] for name in ("client", "url")} | {"not_ours": _STRANGE}
    return found


class _Measuring:
    """One run of the doctor: writes what it finds into `found`."""

    def __init__(self, way: Way, found: dict[str, Any], tell: Tell) -> None:
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
        self._try(self._look_at_cors, "CORS")
        self._try(self._look_at_statuses, "statuses")
        if not quick:
            self._try(self._look_at_quiet, "whether the server stands still between requests")
        self._look_at_streams(wait)

    def _try(self, look: Callable[[], object], what: str) -> None:
        """Look at something. If the service does not answer any more, go on without it."""
        try:
            look()
        except (OSError, HTTPException) as error:
            self._skip(f"{what}, because a request failed: {_reason(error)}")

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
        self._found["sent"] = {"last_event_id": LAST_EVENT_ID}
        self._found["echo_headers"] = second.headers
        best: Answer | None = None
        link = self._way.connect(3 * ANSWER)
        try:
            for _ in range(3):
                ours = time.time()
                answer = self._echo("", link)
                told = answer.json()
                if told.get("service") != "throughline":
                    break
                echo = self._found["echo"] = _known_echo(told)
                if best is None or answer.took < best.took:
                    best = answer
                    self._found["skew"] = round(float(echo["now"]) - ours - answer.took / 2, 3)
                    self._found["rtt"] = round(answer.took, 4)
                if answer.first("connection").lower() == "close":
                    break
        finally:
            self._way.drop(link)
        self._found.setdefault("echo", _known_echo(second.json()))
        return True

    def _echo(self, mark: str = "", link: Link | None = None, timeout: float = ANSWER) -> Answer:
        sent = {"Last-Event-ID": LAST_EVENT_ID}
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
        for status in STATUSES:
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
        silent = WatchedStream("silent", every=wait, count=1)
        active = WatchedStream("active", every=1, count=int(wait), delay=_LATER)
        small = WatchedStream("small", every=1, count=5)
        fast = WatchedStream("fast", every=0.1, count=40, size=2_048, mark=secrets.token_hex(6))
        twin = WatchedStream("fast", every=0.1, count=40, size=2_048, mark=fast.mark)
        poll = min(max(float(settings.get("poll_timeout", 25)), 0), wait)
        streams: dict[str, Any] = {}
        self._found["streams"] = streams

        def watch(stream: WatchedStream) -> None:
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
                self._try(self._look_at_leaving, "whether a client's leaving is noticed")

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

    def _watch_again(self, small: WatchedStream, began: float) -> None:
        """Watch the small stream a second time, and keep the better one: a network may have stalled."""
        again = WatchedStream("small", every=small.every, count=small.count)
        again.watch(self._way, began)
        if again.seen.get("blocks") and held(again.seen["blocks"]) is None:
            self._found["streams"]["small"] = again.seen

    def _together(self, tasks: Sequence[Callable[[], object]], wait: float = 0) -> None:
        """Call functions side by side, and return when all have returned. The first error of one is raised."""
        began = time.monotonic()
        errors: list[Exception] = []

        def call(task: Callable[[], object]) -> None:
            try:
                task()
            except Exception as error:  # noqa: BLE001 - it is raised below
                errors.append(error)

        threads = [threading.Thread(target=call, args=(task,), daemon=True) for task in tasks]
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
        if errors:
            raise errors[0]

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
            answer = self._way.ask("/poll", {"probe": 1, "wait": number(asked)}, timeout=asked + PATIENCE)
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
        leaving = WatchedStream("leaving", every=0.5, count=60, id=id)
        leaving.watch(self._way, time.monotonic(), until=_LEAVING)
        if "refused" in leaving.seen or leaving.seen.get("status", 200) != 200:
            self._skip("whether a client's leaving is noticed, because its stream was refused")
            return
        left = time.monotonic()
        while time.monotonic() - left < _NOTICED:
            try:
                answer = self._way.ask("/doctor/left", {"id": id})
            except (OSError, HTTPException):
                break
            told = answer.json()
            if "ended" not in told:
                self._skip(f"whether a client's leaving is noticed ({answer.error_code or answer.status})")
                return
            if told["ended"]:
                self._found["left"] = {"noticed": True, "after": round(time.monotonic() - left, 2)}
                return
            time.sleep(0.5)
        self._found["left"] = {"noticed": False, "after": _NOTICED}


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


def _known_echo(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of an echo that are measurements.

    :raises BadMeasure: if one has a form that no version of this service sends.
    """
    known: dict[str, Any] = checked({"echo": told})["echo"]
    return known


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = str(getattr(error, "strerror", None) or error)[:200]
    return printable(text) or type(error).__name__  # it may have a line that a server has sent


def _without(value: Any, secret: str) -> Any:
    """Return measurements without a secret, because people show them to others."""
    if isinstance(value, str):
        return value.replace(secret, "…")
    if isinstance(value, Mapping):
        return {_without(name, secret): _without(item, secret) for name, item in value.items()}
    if isinstance(value, list):
        return [_without(item, secret) for item in value]
    return value
