"""What the demo page's buttons do: break the connections of the browser that presses them, and of no other."""

import contextlib
import hashlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from flask import Flask, Response, g, request

from sse import SSE, SSEError, StoreUnavailable
from sse.hub import ATTACH_TIMEOUT
from sse.log import warn
from sse.service import Service
from sse.subscriber import Delivery, Start

CHANNEL = "breaks"  # through which all workers hear of each break
BROWSER = "demo"  # a cookie: by chance, and good for telling this browser's connections from others', no more
BUFFER = "demo_buffer"  # a cookie: this browser's streams are held back; the page reads it
NAP = 30.0  # seconds that a connection sleeps
HELD = 20.0  # seconds that a stream is held back before it is ended


class Breaker:
    """Cuts connections, or puts them to sleep, by their sockets; holds streams back by the browser's own cookie.

    A response is left as it is, unless the browser that asks has its streams held back.
    """

    def __init__(self, app: Flask, sse: SSE) -> None:
        self._service: Service = app.extensions["sse"]
        self._sse = sse
        self._open: set[tuple[str, int]] = set()  # (browser, file descriptor) of each stream and poll
        self._asleep: list[tuple[float, socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        app.before_request(self._enter)
        app.after_request(self._leave)
        for action in (self.cut, self.sleep, self.buffer):
            app.add_url_rule(f"/demo/{action.__name__}", f"demo.{action.__name__}", action, methods=["POST"])

    def know(self, response: Response) -> Response:
        """Give a browser that has none the cookie that its connections are known by."""
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
        """Hear of no more breaks, and wake what sleeps."""
        self._stopping.set()
        with self._lock:
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

    def _enter(self) -> None:
        with self._lock:
            if self._thread is None:  # in the process that serves, after any fork
                self._thread = threading.Thread(target=self._run, name="demo-breaker", daemon=True)
                self._thread.start()
        peer = request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")
        if peer and request.endpoint in {"sse.stream", "sse.poll"} and (browser := _browser()):
            g.demo_connection = browser, peer.fileno()
            self._open.add(g.demo_connection)

    def _leave(self, response: Response) -> Response:
        if connection := g.pop("demo_connection", None):
            response.call_on_close(lambda: self._open.discard(connection))
        if request.endpoint == "sse.stream" and request.method == "GET" and BUFFER in request.cookies:
            response.response = _held()
        return response

    # In a thread of its own

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except SSEError as error:
                warn("the demo's buttons do nothing for now: %s", error)
                self._stopping.wait(1)
        self._wake(float("inf"))

    def _listen(self) -> None:
        hub = self._service.hub
        subscriber = hub.attach({CHANNEL: Start()}, ATTACH_TIMEOUT)
        try:
            while not self._stopping.is_set():
                for item in subscriber.take(100, 1 << 16):
                    if isinstance(item, Delivery):
                        self._break(item.entry.event.data, item.entry.event.type)
                self._wake(time.monotonic())
                subscriber.wait(0.2)
        finally:
            hub.detach(subscriber)

    def _break(self, browser: str, kind: str) -> None:
        for owner, fd in list(self._open):
            if owner == browser:
                with contextlib.suppress(OSError):  # it has gone by itself
                    if kind == "cut":
                        _cut(fd)
                    elif kind == "sleep":
                        self._asleep.append((time.monotonic() + NAP, *_put_to_sleep(fd)))

    def _wake(self, now: float) -> None:
        """End those that have slept long enough: what was written for them meanwhile is lost, as on a real network."""
        for sleeper in [sleeper for sleeper in self._asleep if sleeper[0] <= now]:
            self._asleep.remove(sleeper)
            for end in sleeper[1:]:
                with end, contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def _cut(fd: int) -> None:
    with socket.socket(fileno=os.dup(fd)) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def _put_to_sleep(fd: int) -> tuple[socket.socket, socket.socket]:
    """Have all that is written to `fd` go nowhere, while its peer waits on: the connection, and where it goes now."""
    connection = socket.socket(fileno=os.dup(fd))
    near, far = socket.socketpair()
    with near:
        os.dup2(near.fileno(), fd, inheritable=False)
    return connection, far


def _held() -> Iterator[bytes]:
    """The head at once and then nothing, as behind a proxy that buffers."""
    yield b""
    time.sleep(HELD)


def _browser() -> str:
    """What stands for this browser in the open: its cookie would let others press its buttons."""
    cookie = request.cookies.get(BROWSER)
    return hashlib.sha256(cookie.encode()).hexdigest() if cookie else ""


def _is_own_page() -> bool:
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    # The scheme is the browser's: before a proxy it may be another one.
    return request.headers.get("Origin") in {f"http://{request.host}", f"https://{request.host}"}


def _refused() -> Response:
    return Response("The buttons are for the demo page itself.\n", 403, mimetype="text/plain")
