"""The demo page's buttons: each breaks the connections of the browser that presses it, and of no other."""

import contextlib
import hashlib
import ipaddress
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from flask import Flask, Response, g, request

from sse import SSE, SSEError, StoreUnavailable
from sse.hub.hub import ATTACH_TIMEOUT
from sse.hub.subscriber import Delivery, Start
from sse.log import warn
from sse.service import Service
from sse.transports.poll import Poll
from sse.transports.stream import Stream

CHANNEL = "breaks"  # through which all workers hear of each break
BROWSER = "demo"  # a cookie with a random value, which only tells this browser's connections from others'
BUFFER = "demo_buffer"  # a cookie: this browser's streams are held back; the page reads it
NAP = 30.0  # seconds that a connection sleeps
HELD = 20.0  # seconds that a stream is held back before it is ended

_LOOPBACK_HOST = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_FORWARDED = re.compile(r"HTTP_(X_FORWARDED(_.*)?|FORWARDED|X_REAL_IP|X_CLIENT_IP|VIA)")


class _Connection:
    """A connection of a browser that has seen the page, while a stream or poll is being answered on it."""

    def __init__(self, browser: str, fd: int) -> None:
        self.browser = browser
        self.fd = fd
        self.inode = os.fstat(fd).st_ino
        self.wakes_at = 0.0  # by the monotonic clock; 0 while it is awake


class Breaker:
    """Cuts connections, or puts them to sleep, or holds a browser's streams back while it has a cookie for that.

    The streams and polls of a browser that has seen the page are passed on piece by piece, by the greenlet or thread
    that has their request. So a worker does not hand them off, and nothing here touches a connection that is in the
    worker's epoll. Other browsers' streams and polls stay as they are.
    """

    def __init__(self, app: Flask, sse: SSE) -> None:
        self._service: Service = app.extensions["sse"]
        self._sse = sse
        self._open: set[_Connection] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        app.before_request(self._enter)
        app.after_request(self._leave)

    def know(self, response: Response) -> Response:
        """Set the cookie by which a browser's connections are known, if it has none."""
        if BROWSER not in request.cookies:
            secret = secrets.token_urlsafe(16)
            response.set_cookie(BROWSER, secret, httponly=True, samesite="Strict", secure=request.is_secure)
        return response

    def cut(self) -> Response:
        return self._order("cut")

    def sleep(self) -> Response:
        return self._order("sleep")

    def buffer(self) -> Response:
        if not _is_own_page():
            return _refused()
        response = Response(status=204)
        if request.args.get("on") == "1":
            response.set_cookie(BUFFER, "1", max_age=600, samesite="Strict", secure=request.is_secure)
        else:
            response.delete_cookie(BUFFER, samesite="Strict", secure=request.is_secure)
        return response

    def stop(self) -> None:
        """Stop listening for breaks, and wake the connections that sleep."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _order(self, kind: str) -> Response:
        browser = _browser()
        if not browser or not _is_own_page():
            return _refused()
        try:
            self._sse.publish(CHANNEL, browser, type=kind)
        except StoreUnavailable as error:
            return Response(f"{error.message}\n", 503, mimetype="text/plain")
        return Response(status=204)

    # Around each request

    def _enter(self) -> Response | None:
        self._start()
        endpoint = request.endpoint or ""
        if not is_local():
            return _not_here() if request.blueprint == "pages.demo" else None
        peer = request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")
        fd = peer.fileno() if peer else -1
        if fd >= 0 and endpoint in {"sse.stream", "sse.poll"} and (browser := _browser()):
            g.demo_connection = connection = _Connection(browser, fd)
            self._open.add(connection)
        return None

    def _start(self) -> None:
        """Start listening in the process that serves, after any fork, unless that has been done."""
        with self._lock:
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name="demo-breaker", daemon=True)
        self._thread.start()  # not under the lock: it lets other greenlets run

    def _leave(self, response: Response) -> Response:
        connection: _Connection | None = g.pop("demo_connection", None)
        if connection is not None:
            response.call_on_close(lambda: self._open.discard(connection))
            body = response.response
            if isinstance(body, Stream | Poll):
                response.call_on_close(body.close)  # the body may be closed before it begins
                response.response = self._passed_on(connection, body)
            else:  # the answer is there; its poll may have been put to sleep while it waited
                self._sleep_out(connection)
        if is_local() and request.endpoint == "sse.stream" and request.method == "GET" and BUFFER in request.cookies:
            response.response = _held()
        return response

    def _passed_on(self, connection: _Connection, body: Stream | Poll) -> Iterator[bytes]:
        """Yield the body as it comes. Once the connection sleeps, nothing more is yielded, and at the end it is cut.

        Everything that is written for it meanwhile is lost, as on a real network.
        """
        for chunk in body:
            if not connection.wakes_at:
                yield chunk
            elif isinstance(body, Poll) or time.monotonic() >= connection.wakes_at:
                break
        self._sleep_out(connection)

    def _sleep_out(self, connection: _Connection) -> None:
        """Wait until a connection has slept, and cut it. Do nothing if it is awake."""
        if connection.wakes_at:
            self._stopping.wait(max(connection.wakes_at - time.monotonic(), 0))
            _cut(connection)

    # In a thread of its own

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except SSEError as error:
                warn("the demo's buttons do nothing for now: %s", error)
                self._stopping.wait(1)

    def _listen(self) -> None:
        hub = self._service.hub
        subscriber = hub.attach({CHANNEL: Start()}, ATTACH_TIMEOUT)
        try:
            while not self._stopping.is_set():
                for item in subscriber.take(100, 1 << 16):
                    if isinstance(item, Delivery):
                        self._break(item.entry.event.data, item.entry.event.type)
                subscriber.wait(0.2)
        finally:
            hub.detach(subscriber)

    def _break(self, browser: str, kind: str) -> None:
        for connection in list(self._open):
            if connection.browser == browser:
                if kind == "cut":
                    _cut(connection)
                elif kind == "sleep" and not connection.wakes_at:
                    connection.wakes_at = time.monotonic() + NAP


def _cut(connection: _Connection) -> None:
    """Shut the connection down for both sides, unless it has ended and its number is another connection's now."""
    with contextlib.suppress(OSError):
        fd = os.dup(connection.fd)  # so that its number is not given to another connection meanwhile
        if os.fstat(fd).st_ino != connection.inode:
            os.close(fd)
            return
        with socket.socket(fileno=fd) as ours:
            ours.shutdown(socket.SHUT_RDWR)


def _held() -> Iterator[bytes]:
    """Yield the head at once and then nothing, as behind a proxy that buffers."""
    yield b""
    time.sleep(HELD)


def is_local() -> bool:
    """Return whether the current request comes from this machine, under a loopback name, and through no proxy.

    A proxy is recognized by the headers that it adds. The Host has to be a loopback one, because another site may have
    its own name point to 127.0.0.1 (DNS rebinding).
    """
    environ = request.environ
    return (
        _is_loopback(environ.get("REMOTE_ADDR") or "")
        and _LOOPBACK_HOST.fullmatch(environ.get("HTTP_HOST", "")) is not None
        and not any(_FORWARDED.fullmatch(name) for name in environ)
    )


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if address.version == 6 else None
    return (mapped or address).is_loopback


def _browser() -> str:
    """Return a public name for this browser. Its cookie stays secret, since it lets others press its buttons."""
    cookie = request.cookies.get(BROWSER)
    return hashlib.sha256(cookie.encode()).hexdigest() if cookie else ""


def _is_own_page() -> bool:
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    # Both schemes are allowed, because the browser's may differ from ours behind a proxy.
    return request.headers.get("Origin") in {f"http://{request.host}", f"https://{request.host}"}


def _not_here() -> Response:
    text = (
        "The demo is for this machine alone: open it as http://127.0.0.1 or http://localhost, with no proxy between.\n"
    )
    return Response(text, 403, mimetype="text/plain")


def _refused() -> Response:
    return Response("The buttons are for the demo page itself.\n", 403, mimetype="text/plain")
