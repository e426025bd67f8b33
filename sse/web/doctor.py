"""The doctor's probes: answers by which a client learns what is between it and this service. Knows no Flask.

The probes exist if SSE_DOCTOR=1 opens them, or if there is a secret or key to sign passes with. The checks of a probe
have this order: its parameters (400), the client's limit (429), its pass (401), the limits of all probes (429), a seat
(503). A probe reads and tells nothing of any channel. The judge is imported when it is first asked, because most
services never need it.
"""

from __future__ import annotations

import math
import os
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from sse.access.limits import Counts
from sse.access.passes import PASS_LIFE, Passes
from sse.errors import RequestError, SSEError, StoreUnavailable, TooMany, Unavailable
from sse.event import Event, Position
from sse.log import warn, warn_once
from sse.service import Service
from sse.stores import Page, Publication
from sse.transports.probe import LONGEST, How, ProbeStream, Visit
from sse.version import __version__
from sse.web.admission import Admission
from sse.web.answers import STREAM_HEADERS, Answer, CommonHeaders, FileAnswer, json
from sse.web.hooks import HookedProbeStream
from sse.web.probe_request import (
    kind_of_address,
    read_id,
    read_measured,
    read_pass,
    read_plan,
    read_status,
    read_wait,
    shown_headers,
)
from sse.web.request import Request
from sse.web.script import read_static
from sse.web.server_check import streams_held, warn_of_server
from sse.web.ticker import Ticker
from sse.wire import parse_json

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_AT_ONCE: Final = {"many": 8, "threads": 2, "one": 1}  # streams and polls of the doctor in each worker
_PER_MINUTE: Final = 240  # probes in each worker
_BYTES_PER_MINUTE: Final = 8 << 20
_LONGEST_ALONE: Final = 10.0  # seconds for which a server that answers one request at a time may be held at once
_MOST_ALONE: Final = 30  # seconds of each minute for which it may
_ENDS: Final = "sse.doctor"  # the channel of the ends of streams; clients cannot name it
_ENDS_KEPT: Final = 100  # ends that are searched
_NOT_CACHED: Final = [("Cache-Control", STREAM_HEADERS["Cache-Control"])]
_TYPES: Final = {
    "doctor.html": "text/html; charset=utf-8",
    "doctor.css": "text/css; charset=utf-8",
    "doctor.js": "text/javascript; charset=utf-8",
}
# The page may ask any service, because people look for faults between several origins.
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src http: https:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
}


class Doctor:
    """The probes of one service."""

    def __init__(self, service: Service, admission: Admission, common: CommonHeaders) -> None:
        self._service = service
        self._config = service.config
        self._admission = admission
        self._common = common
        self._passes = Passes(service.config, service.keys)
        self._counts = Counts()
        self._held = 0
        self._lock = threading.Lock()  # nothing waits while it is held
        self._ticker = Ticker()
        service.also_close(self._ticker.close)

    @property
    def is_open(self) -> bool:
        """True if there are probes here: for all, or for those who have a pass."""
        return self._config.doctor or self._passes.configured

    def page(self, _: Request, name: str = "doctor.html") -> FileAnswer:
        """Return a part of the page that measures from a browser."""
        return FileAnswer(read_static(name), 200, {"Content-Type": _TYPES[name], **_PAGE_HEADERS})

    def make_pass(self, request: Request) -> Answer:
        """Return a pass for the bearer of a publishing key or token.

        :raises SSEError: see `Admission.prober`.
        """
        self._admission.prober(request)
        return json({"pass": self._passes.make(), "expires_in": PASS_LIFE}, 201)

    def echo(self, request: Request) -> Answer:
        """Return what this process sees of the request, and what it knows of itself."""
        self._admit(request)
        environ, config = request.environ, self._config
        settings = {
            name: getattr(config, name) for name in ("heartbeat", "stream_lifetime", "poll_timeout", "retry", "proxies")
        }
        return _shown(
            {
                "service": "throughline",
                "version": __version__,
                **_marks(),
                "http": environ.get("SERVER_PROTOCOL", ""),
                "scheme": environ["wsgi.url_scheme"],
                "client": kind_of_address(environ.get("REMOTE_ADDR") or ""),
                "method": request.method,
                "headers": shown_headers(environ),
                "cors": {name.lower(): value for name, value in self._common.cors(environ)},
                "settings": settings,
                "store": "shared" if self._service.shared else "memory",
                "holds": streams_held(environ),
                "ticks": self._ticker.look(),
            }
        )

    def stream(self, request: Request) -> ProbeStream:
        """Return a stream of blocks at set times, which is written as every stream is.

        :raises Busy: if there is no seat for it, or this worker ends.
        """
        plan, id = read_plan(request)
        seconds = LONGEST if plan.keeps else plan.every * plan.ticks
        self._admit(request, seconds, plan.size * plan.ticks)
        opening = {**_marks(), "headers": shown_headers(request.environ)}
        return HookedProbeStream(self._visit(request.environ), plan, opening, partial(self._note_end, id))

    def poll(self, request: Request) -> Answer:
        """Return an answer after the seconds that the client names. Nothing is sent before."""
        seconds = read_wait(request)
        self._admit(request, seconds)
        began = time.monotonic()
        if request.method != "HEAD":
            with closing(self._visit(request.environ)) as visit:
                visit.wait_until(began + seconds)
        headers = shown_headers(request.environ)
        waited = round(time.monotonic() - began, 3)
        return json({**_marks(), "waited": waited, "headers": headers})  # with the Cache-Control of a poll

    def left(self, request: Request) -> Answer:
        """Return how and when a stream with an id has ended, whichever worker served it.

        :raises Unavailable: if several processes have no store in common, or the store does not answer.
        """
        id = read_id(request)
        self._admit(request)
        self._service.check_workers(request.is_multiprocess)
        found = next((end for end in self._ends() if end.get("id") == id), None)
        if found is None:
            return _shown({"ended": False, "after": None, "how": None})
        return _shown({"ended": True, "after": found.get("after"), "how": found.get("how")})

    def status(self, request: Request, code: str) -> Answer:
        """Return an answer with a status that this service's own answers have, in their form."""
        status = read_status(code)
        self._admit(request)
        error = {"code": "doctor", "message": f"the doctor has asked for {status}", "hint": "this is no fault"}
        headers = [*_NOT_CACHED]
        if status in (429, 503):
            headers.append(("Retry-After", "1"))
        if status == 401:
            headers.append(("WWW-Authenticate", "Bearer"))
        return json({"error": error}, status)._replace(headers=headers)

    def judge(self, request: Request) -> Answer:
        """Return what is wrong by the measurements in the body, worst first.

        :raises RequestError: if they do not have the shape that `sse.doctor.shape` describes.
        """
        self._admit(request)
        measured = read_measured(request)
        judging = import_module("sse.doctor.judge")
        try:
            return json({"findings": [finding.to_json() for finding in judging.judge(measured)]})
        except judging.BadMeasure as error:
            raise RequestError(str(error), "see docs/protocol.md") from None

    def _admit(self, request: Request, seconds: float = 0, size: int = 0) -> None:
        """Check that a probe may be answered now.

        :param seconds: that it takes.
        :param size: bytes that it sends.
        :raises TooMany: if the client asks too often, or if all clients together do.
        :raises Unauthorized: without a valid pass, unless SSE_DOCTOR=1.
        :raises Unavailable: for a long probe of a server that answers one request at a time.
        """
        self._admission.subscribe(request)
        if self._config.doctor:
            warn_once("SSE_DOCTOR=1: anybody may use the doctor's probes; take it away once the fault is found")
        else:
            self._passes.check(read_pass(request))
        is_alone = streams_held(request.environ) == "one"
        alone = math.ceil(seconds) if is_alone and seconds <= _LONGEST_ALONE else 0
        bounds = (("probes", 1, _PER_MINUTE), ("bytes", size, _BYTES_PER_MINUTE), ("seconds", alone, _MOST_ALONE))
        for name, cost, most in bounds:
            if cost and self._counts.incr(name, 60, cost) > most:
                wait = max(round(self._counts.get_expiry(name) - time.time()), 1)
                raise _too_many(f"the doctor may use {most} {name} a minute", wait)
        if is_alone and seconds > _LONGEST_ALONE:
            raise Unavailable(
                "this server answers one request at a time, and this probe would hold it",
                'set worker_class = "sse.worker.Worker", see docs/operating.md',
                code="one_at_a_time",
            )

    def _visit(self, environ: WSGIEnvironment) -> Visit:
        """Return a seat for a stream or poll of the doctor.

        :raises TooMany: if there are as many as one worker may have.
        :raises Busy: if the hub has no seat, or this worker ends.
        """
        warn_of_server(environ)
        most = _AT_ONCE[streams_held(environ)]
        with self._lock:
            if self._held >= most:
                raise _too_many(f"the doctor has {most} streams and polls in this worker", 2)
            self._held += 1
        try:
            return Visit(self._service.hub, environ.get("sse.gone"), self._leave)
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        with self._lock:
            self._held -= 1

    def _note_end(self, id: str, how: How, after: float) -> None:
        """Note how a stream with an id has ended, where every worker finds it."""
        if not id:
            return
        event = Event({"id": id, "how": how, "after": round(after, 3)})
        try:
            self._service.publish([Publication(_ENDS, event)])
        except SSEError as error:
            warn("the end of a probe cannot be noted: %s", error)

    def _ends(self) -> list[dict[str, Any]]:
        """Return the newest ends that were noted, the oldest first.

        :raises StoreUnavailable: if the store does not answer.
        """
        store = self._service.store
        [position] = store.before([(_ENDS, _ENDS_KEPT)])
        if position is None:
            return []
        [page] = store.read([(_ENDS, position)]) if isinstance(position, Position) else [position]
        if not isinstance(page, Page):
            raise StoreUnavailable("the store does not answer", "ask again") from page
        return [parse_json(entry.event.data.encode()) for entry in page.entries]


def _marks() -> dict[str, object]:
    """Return the marks of one answer: a text that no other answer has, one of this process, and the time."""
    return {"nonce": secrets.token_hex(8), "worker": _process(os.getpid()), "now": time.time()}


@cache
def _process(pid: int) -> str:  # noqa: ARG001 - a forked process has another one
    """Return a random name for this process."""
    return secrets.token_hex(4)


def _shown(value: Mapping[str, object]) -> Answer:
    return json(value)._replace(headers=_NOT_CACHED)


def _too_many(message: str, wait: int) -> TooMany:
    return TooMany(message, f"try again in {wait} s", retry_after=wait, limit="doctor")
