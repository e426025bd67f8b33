"""The gunicorn worker that hands off streams and waiting polls: a greenlet begins one, and the loop goes on with it.

`sse.worker` is a stub for gunicorn's master, which imports this file after the fork. Only then does gunicorn let gevent
patch the standard library. So this file does not import `sse.service`, which has to find the library patched.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import gevent
import gevent.socket
from gevent.pool import Group
from gevent.server import StreamServer
from gunicorn.http.parser import RequestParser  # type: ignore[import-untyped]
from gunicorn.sock import ssl_context  # type: ignore[import-untyped]
from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]

from sse import connection_log
from sse.log import follow_gunicorn
from sse.server.gunicorn_request import HEAD_SECONDS, Request, skip_body
from sse.server.lane import FastLane
from sse.server.lane_switch import LaneSwitch
from sse.server.load_error import until_mended
from sse.server.loop import Loop
from sse.server.one_process import check_workers
from sse.server.responder import AppResponse, Responder
from sse.server.rows import Rows
from sse.server.sockets import has_input
from sse.spread import PAUSE

if TYPE_CHECKING:
    from sse.service import Service

_ACCEPTED: Final = 1000  # connections that all workers together accept before other greenlets run
_LEAST_ACCEPTED: Final = 64  # connections that one worker accepts then, however many workers there are
_MOMENT: Final = 0.25  # seconds that a greenlet waits for the next request before it parks the connection
_TICK: Final = 0.1  # seconds between two checks of the listeners, and of heads that come too slowly
_AHEAD: Final = 0.5  # seconds before the end of graceful_timeout, when the remaining requests are cut
_LAST_EVENTS: Final = 0.25  # seconds in which the end of a run reaches the streams here
_STORE_SECONDS: Final = 1.0  # that a new worker waits for its store before it takes clients
_LOOK: Final = 0.005  # seconds between two looks whether the store was reached
_HEAD_AT_LEAST: Final = 1.0  # seconds that every head has, even while other connections wait for a greenlet


def _breaker() -> Callable[[Callable[[], bool]], object]:
    """Return a function that raises GeneratorExit in the current greenlet, see `sse.work.run`.

    gevent's hub looks at the condition and raises, because only from there may an exception be thrown into a greenlet.
    """
    greenlet = gevent.getcurrent()

    def throw(is_waiting: Callable[[], bool]) -> None:
        if is_waiting() and not greenlet.dead:
            greenlet.throw(GeneratorExit)

    return lambda is_waiting: gevent.get_hub().loop.run_callback(throw, is_waiting)


class _RequestTimeout(gevent.Timeout):  # type: ignore[misc]
    """The time for which a greenlet waits for a request. `Request` bounds the time of the head itself."""

    def __init__(self, heads: _Heads, seconds: float) -> None:
        super().__init__(seconds, False)
        self._heads = heads
        self.greenlet = gevent.getcurrent()
        self.began = time.monotonic()

    def __enter__(self) -> Any:
        self._heads.reading[self] = None
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        del self._heads.reading[self]
        return super().__exit__(*error)


class _Heads:
    """The request heads that are being read, and their connections."""

    def __init__(self) -> None:
        self.reading: dict[_RequestTimeout, None] = {}  # oldest first
        self.clients: dict[Any, socket.socket] = {}  # by greenlet

    def give_up(self, is_busy: Callable[[], bool]) -> None:
        """Close connections whose head is not complete after a second, as long as all greenlets are taken.

        This runs in gevent's hub, because only from there may an exception be thrown into a greenlet.
        """
        now = time.monotonic()
        for head in list(self.reading):
            if not is_busy() or now - head.began < _HEAD_AT_LEAST:
                break
            if not has_input(self.clients[head.greenlet]):  # else this process is late in reading it
                head.greenlet.throw(head)

    def give_up_all(self) -> None:
        """Close all of these connections."""
        for head in list(self.reading):
            head.greenlet.throw(head)


class _Listener(StreamServer):  # type: ignore[misc]
    """Accepts connections for a worker. Only a TLS connection needs a greenlet at once."""

    def __init__(self, worker: Worker, listener: Any) -> None:
        listener.setblocking(1)
        tls = {"ssl_context": ssl_context(worker.cfg)} if worker.cfg.is_ssl else {}
        super().__init__(listener, handle=worker.handle, spawn=worker.spawn, **tls)
        self._worker = worker
        self.full = worker.is_busy if tls else worker.is_full
        # Accept nearly all connections that have come. The others stay in the listener's queue, and a unix socket
        # whose queue is full refuses clients at once. But other workers are to have their share.
        self.max_accept = max(_ACCEPTED // worker.cfg.workers, _LEAST_ACCEPTED)
        self.start()

    def finish(self) -> None:
        """Accept the connections that have come, and listen no more.

        If the master has ended listening, nobody else would accept them, and the kernel would reset them.
        """
        with contextlib.suppress(OSError):
            for _ in range(_ACCEPTED):
                if self.full() or not (accepted := self.do_read()):
                    break
                self.do_handle(*accepted)
        self.close()

    def do_read(self) -> Any:
        """Accept a connection. Return None if none has come; else its number, or gevent's socket if it is to have TLS.

        :raises OSError: if it cannot be accepted; then gevent waits a moment.
        """
        if self.ssl_enabled:
            return super().do_read()
        try:
            fd, address = self.socket._accept()
        except BlockingIOError:
            return None
        os.set_blocking(fd, False)
        return fd, address

    def do_handle(self, client: Any, address: Any) -> None:
        if self.ssl_enabled:
            super().do_handle(client, address)
        else:
            self._worker.accepted(client, address)

    def wrap_socket_and_handle(self, client: Any, address: Any) -> None:
        with gevent.Timeout(HEAD_SECONDS, False), contextlib.suppress(OSError):
            client = self.wrap_socket(client, **self.ssl_args)
        if isinstance(client, ssl.SSLSocket):
            with contextlib.closing(client):
                # gunicorn needs only the listener's address. The listener may be closed by now, so the client's serves.
                self._worker.handle(client, client, address)


class _Resumed(gevent.socket.socket):  # type: ignore[misc]
    """A connection that comes back from its row, with the bytes that were read ahead from it."""

    def __init__(self, fd: int, read_ahead: bytes) -> None:
        super().__init__(fileno=fd)
        self._read_ahead = read_ahead

    def recv(self, size: int, *flags: int) -> bytes:
        """Return the next bytes. All that were read ahead come first and at once, whatever the size."""
        read_ahead, self._read_ahead = self._read_ahead, b""
        data: bytes = read_ahead or super().recv(size, *flags)
        return data


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, which hands off streams and waiting polls.

    A connection with TLS, or a body that the app has wrapped, keeps its greenlet.
    """

    hands_off = True
    """True if streams and waiting polls need no greenlet. gunicorn.conf.py reads this from the worker's class.

    It is here and not in `sse.worker`, because after a reload the master still has that class from the old version.
    """
    wsgi: Any
    alive: bool
    is_reloaded: Callable[[], bool] = staticmethod(lambda: False)
    """Returns whether the master has begun a reload since this worker was forked. Set before `run`."""
    request_seconds: float | None = None
    """Seconds that requests have in a drain if there are no runs; None for graceful_timeout. Set before `run`."""
    loading_seconds = 0.0
    """Seconds of graceful_timeout for which a worker goes on while its successors load the app. Set before `run`."""
    has_loaded: Callable[[], object] = staticmethod(lambda: None)
    """Tells the workers that were forked before that this one takes clients. Set before `run`."""
    successors_load: Callable[[], bool] = staticmethod(lambda: False)
    """Return whether a worker that was forked later has not loaded the app yet. Set before `run`."""
    _loop: Loop
    _rows: Rows
    _responder: Responder
    _switch: LaneSwitch

    def init_process(self) -> None:
        # This is not in __init__, which runs in the master: `sse.worker` becomes this class only after the fork.
        self.greenlets = Group()  # each one reads requests and answers them
        self._serving = 0  # how many of them have not ended; the group learns of an end only later
        self._sending_items = 0  # further greenlets, each of which sends a stream for one client alone
        self._heads = _Heads()
        self._cut = False  # the time for requests to end is over
        self._is_replaced = False  # another process accepts new connections when this one ends
        RequestParser.mesg_class = Request  # for this process; gunicorn has no setting for it
        follow_gunicorn(self.log, self.cfg)
        super().init_process()

    def load_wsgi(self) -> None:
        self._lane: FastLane | None = None
        self._keeps_alive = bool(self.cfg.keepalive)
        self._loop = Loop(self.log, self.cfg.keepalive, self._give_back, self._wake_lane)
        self._rows = self._loop.rows
        self._responder = Responder(self._rows, self._is_last, self.log, self._uncounted)
        try:
            app = self.app.wsgi()
            check_workers(self, self._services)
        except (Exception, SystemExit) as error:
            if not self.cfg.reload:
                raise
            app = until_mended(error, self.log, self.reloader)
        self.wsgi = partial(self._responder.call, app)
        self._switch = self._responder.switch = LaneSwitch(self, app)

    @property
    def _services(self) -> list[Service]:
        """Return the services of all apps in this process. An app without SSE causes no import."""
        module = sys.modules.get("sse.service")
        return module.living() if module else []

    def _is_last(self, request: Any) -> bool:
        """Return whether a request's connection has to close after its answer, even if the client asks to keep it."""
        # When this process ends, gunicorn closes after requests that come from then on, but not after running ones.
        # The PROXY protocol names the client at the beginning of a connection, which no later greenlet would know.
        # A client that sends requests in advance would keep its greenlet for ever, while others wait for one.
        is_crowded = self._rows.waiting and request.unreader.buf.getvalue()
        return bool(not self.alive or self.cfg.proxy_protocol != "off" or is_crowded)

    def is_already_handled(self, respiter: Any) -> bool:
        """Write the app's answer if it is an `AppResponse`. gunicorn calls this between the app and the body."""
        if not isinstance(respiter, AppResponse):
            return bool(super().is_already_handled(respiter))
        self._responder.write(respiter)
        return True

    # A greenlet has a connection only while it reads and answers a request that is not for the fast lane. Without the
    # lane, it has it for a moment after that, because the next request may come at once. After that, and once its
    # stream or poll is handed off, the connection is a number in a row. Only a connection with TLS keeps its greenlet.
    # If all greenlets are taken, connections with a request wait in `Rows.waiting`, the first one first. This holds for
    # new connections too.

    def accepted(self, fd: int, address: Any) -> None:  # noqa: ARG002 - for worker classes of one's own
        """Take a new connection. This runs in gevent's hub, and must not wait."""
        self._rows.accept(fd)

    def is_full(self) -> bool:
        """Return whether no more connections can be accepted."""
        return self._rows.is_full

    def is_busy(self) -> bool:
        """Return whether all greenlets are taken."""
        return bool(self._serving >= self.worker_connections)

    def spawn(self, handle: Callable[..., None], *connection: Any) -> None:
        """Have a greenlet serve a connection."""
        self._serving += 1
        self.greenlets.spawn(self._serve, handle, *connection)

    def _give_back(self, fd: int) -> bool:
        if self.is_busy():
            return False
        self.spawn(self._go_on, fd)
        return True

    def _serve(self, handle: Callable[..., None], *connection: Any) -> None:
        """Serve a connection, and then the connections that wait for a greenlet."""
        try:
            handle(*connection)
            while self._rows.waiting and not (self._cut or self._lane_needs_place):
                self._go_on(self._rows.waiting.popleft())
        finally:
            self.leave_place()

    # For the fast lane

    def take_place(self) -> None:
        """Count a greenlet of the fast lane that waits."""
        self._serving += 1

    def leave_place(self) -> None:
        """Have the fast lane go on if it needs a greenlet; else a connection that waits for one."""
        self._serving -= 1
        if self._cut:
            return
        self._wake_lane()
        if self._rows.waiting and not self.is_busy():
            self.spawn(self._go_on, self._rows.waiting.popleft())

    @property
    def closes(self) -> bool:
        """True if connections close after their answers, because this process ends or gunicorn keeps none."""
        return not (self.alive and self._keeps_alive)

    def count_request(self) -> None:
        """Count a request of the fast lane, as gunicorn does."""
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False

    def _wake_lane(self) -> None:
        if self._lane:
            self._lane.wake()

    @property
    def _lane_needs_place(self) -> bool:
        return self._lane is not None and self._lane.needs_place

    @contextlib.contextmanager
    def _uncounted(self) -> Iterator[None]:
        """Let other connections have the place of this greenlet, which sends a stream for as long as that takes."""
        self._sending_items += 1
        try:
            self.leave_place()
            yield
        finally:
            self._serving += 1
            self._sending_items -= 1

    def _go_on(self, fd: int) -> None:
        """Serve the requests that come next on a connection."""
        with _Resumed(fd, self._rows.take(fd)) as connection, contextlib.suppress(OSError):
            self.handle(connection, connection, connection.getpeername())

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Answer a request. Return if this greenlet is to read the connection's next request.

        :raises StopIteration: if this greenlet is done with the connection: it is closed, handed off or parked.
        """
        try:
            super().handle_request(listener_name, req, sock, addr)
            if not self._cut and skip_body(req) and self._may_go_on(req, sock):
                return
        except gevent.GreenletExit:
            pass  # else gunicorn would answer that there was an internal error
        raise StopIteration

    def _may_go_on(self, request: Any, sock: Any) -> bool:
        """Return whether the greenlet is to read the connection's next request; else the connection is parked."""
        if self._lane and not self._rows.has_lane:
            self._lane.look()  # the first request of this process has just turned it on
        if self._rows.has_lane and not isinstance(sock, ssl.SSLSocket):
            self._rows.take_back(sock.fileno(), request.unreader.take_buffered())
            sock.detach()  # only now: if this fails, gunicorn still has to close it
            return False
        if request.unreader.buf.getvalue():
            gevent.sleep(PAUSE)  # let other clients in, because this one may always send more
            return True
        if isinstance(sock, ssl.SSLSocket):
            return True  # TLS has a state of its own, so it keeps its greenlet
        if not self._comes_at_once(sock):
            self._rows.park(sock.fileno())
            sock.detach()  # as above
            return False
        return True

    def _comes_at_once(self, sock: Any) -> bool:
        """Return whether the next request, or the end, comes within a moment. This wait is cheaper than parking."""
        if has_input(sock):
            gevent.sleep(PAUSE)  # as above
            return not self._rows.waiting
        if not self.alive or self._serving > self.worker_connections // 2:
            return False
        sock.settimeout(_MOMENT)
        try:
            sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return False
        finally:
            sock.settimeout(None)
        return True

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        greenlet = gevent.getcurrent()
        self._heads.clients[greenlet] = client
        try:
            super().handle(listener, client, addr)
        finally:
            del self._heads.clients[greenlet]

    def timeout_ctx(self) -> gevent.Timeout:
        """Return the context in which gunicorn waits for a request."""
        return _RequestTimeout(self._heads, self.cfg.keepalive)

    def handle_exit(self, sig: Any, frame: Any) -> None:
        self._is_replaced = True
        super().handle_exit(sig, frame)

    def run(self) -> None:
        services = self._services
        for service in services:
            service.admit = self._loop.backpressure.admit
            service.breaker = _breaker
        self._loop.backpressure.unread_since = lambda: min(
            filter(None, (service.hub.late_since for service in services)), default=0.0
        )
        self._rows.max_connections = self.worker_connections + sum(service.hub.max_subscribers for service in services)
        # Of workers that are forked one after another, as many as there are to be, this is true for one.
        is_told = (self.age - 1) % max(self.cfg.workers, 1) == 0
        self._switch.begin(has_sse=bool(services), is_told=is_told)
        self._await_stores(services)
        if self._switch.lane:
            self._lane = FastLane(self._rows, self._switch.lane, self._switch, self, self.cfg, self.log)
        listeners = [_Listener(self, listener) for listener in self.sockets]
        self.has_loaded()
        while self.alive:
            self._tick(listeners)
        is_stopped = self._is_replaced and not self.is_reloaded()  # else other workers take new clients
        delay = max((service.config.drain_delay for service in services), default=0) if is_stopped else 0
        self._is_replaced |= self.cfg.workers > 1
        # The master ends this process as soon as it has forked its successors. Until they have loaded the app, streams
        # that end here would wait for them, and come back all at once.
        end = time.monotonic() + self.loading_seconds
        while not is_stopped and self.successors_load() and time.monotonic() < end:
            self._tick(listeners)
        if not self.is_reloaded():  # else the instance goes on, and no probe of it may fail
            for service in services:
                service.is_ending = True
        draining = gevent.spawn_later(delay, self._drain)
        now = time.monotonic()
        leaves_at = now + delay
        # The master kills this process after that.
        end = now + self.cfg.graceful_timeout - self.loading_seconds - _AHEAD
        end_of_requests = min(end, now + (self.request_seconds or self.cfg.graceful_timeout) - _AHEAD)
        while time.monotonic() < (end if self._is_working else end_of_requests):
            if draining.ready() and self._is_idle and not self._is_working:
                break
            if (self._is_replaced and time.monotonic() >= leaves_at) or draining.ready():
                for listener in listeners:
                    if not listener.closed:
                        listener.finish()  # in a reload the master still listens, so no client is refused
            self._tick(listeners)
        for listener in listeners:
            listener.close()
        if not draining.ready():  # on a machine with too much work, the goodbyes are late
            self._rows.drain(0)
            gevent.sleep(_AHEAD / 2)
        for service in services:
            service.finish(0)  # runs that have begun late
        if left := self._serving + self._sending_items + self._rows.unanswered:
            self.log.warning("%d requests are cut, their time is over", left)
            self._cut = True
            if self._lane:
                self._lane.stop()
            gevent.get_hub().loop.run_callback(self._heads.give_up_all)
            gevent.sleep(PAUSE)
            self.greenlets.kill(timeout=_AHEAD / 2)
        gevent.joinall([gevent.spawn(service.leave) for service in services], _AHEAD / 2)
        self._loop.tell_ends()
        connection_log.flush(is_last=True)

    def _await_stores(self, services: list[Service]) -> None:
        """Give the hubs a moment to reach their stores before the first client comes.

        To connect to Redis and check it takes several replies. If thousands of clients came first, each reply would
        wait for the many requests that are begun at the same time.
        """
        hubs = [service.hub for service in services if service.shared]
        for hub in hubs:
            hub.start()
        end = time.monotonic() + _STORE_SECONDS
        while self.alive and time.monotonic() < end and not all(hub.was_reached for hub in hubs):
            self.notify()
            gevent.sleep(_LOOK)

    @property
    def _is_idle(self) -> bool:
        """True if no connection is left."""
        return not (self._serving or self._sending_items) and self._loop.is_empty

    @property
    def _is_working(self) -> bool:
        """True if runs of this process have not ended."""
        return any(service.is_working for service in self._services)

    def _tick(self, listeners: list[_Listener]) -> None:
        self.notify()
        connection_log.flush()
        if self._lane:
            self._lane.look()
        if self.is_busy():
            gevent.get_hub().loop.run_callback(self._heads.give_up, self.is_busy)
        for listener in listeners:
            if not listener.closed:
                listener.start_accepting()  # it stops when it is full
        gevent.sleep(_TICK)

    def _drain(self) -> None:
        """End streams and waiting polls. Requests that are running, or come within a second, are answered.

        While runs go on, streams stay open for their events, as long as the time to close the streams remains.
        """
        services = self._services
        window = max((service.config.drain for service in services), default=0)
        grace = max((service.config.run_grace for service in services), default=0)
        was_working = self._is_working
        runs = [gevent.spawn(service.finish, grace) for service in services]
        if was_working:  # else only sources end, and a store that does not answer would hold the goodbyes back
            gevent.joinall(runs, timeout=max(grace - window, 0))
            gevent.sleep(_LAST_EVENTS)
        hubs = [gevent.spawn(service.hub.drain, window) for service in services]
        gevent.joinall([gevent.spawn(self._rows.drain, window), *hubs, *runs])
