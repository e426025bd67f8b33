"""Connections to one Redis, on which every wait ends at a deadline.

redis-py gives each wait a timeout of its own: for a connection, for each step of a login, for each reply, for each
repetition. Together, these can take many times as long as one. Here, a call has one deadline for all of them.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import redis
from hiredis import pack_command
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import ResponseError
from redis.retry import Retry

_ATTEMPTS: Final = 3  # times that commands are sent, if connections fail
_CONNECT_TIMEOUT: Final = 2.0  # seconds for one address
_PAUSE: Final = 0.1  # seconds, at most, before commands are sent again


class _Timed:
    """A part of a redis-py connection that ends each of its waits at `deadline`, by the monotonic clock."""

    deadline = math.inf
    generation = 0

    def connect(self) -> None:
        self.socket_timeout = self._left()
        self.socket_connect_timeout = min(self.socket_timeout, _CONNECT_TIMEOUT)
        super().connect()  # type: ignore[misc]

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        sock: Any = self._sock  # type: ignore[attr-defined]
        if sock:
            sock.settimeout(self._left())
        super().send_packed_command(command, check_health=check_health)  # type: ignore[misc]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        if "timeout" not in options:
            options["timeout"] = self._left()
        return super().read_response(*arguments, **options)  # type: ignore[misc]

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise redis.TimeoutError("the time for it is over")
        return left


class _Waiter:
    """A call that waits for a connection. `served` is set when it has been given one."""

    def __init__(self) -> None:
        self.served = threading.Event()
        self.connection: Any = None


class Pool:
    """At most `size` connections to the Redis at `url`, each of which is made when it is needed.

    The pool switches greenlets only if it has to wait. A queue of the standard library would do so at each step.
    """

    def __init__(self, url: str, size: int) -> None:
        self._options: dict[str, Any] = {
            **parse_url(url),  # type: ignore[no-untyped-call]
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
        }
        base = self._options.pop("connection_class", redis.Connection)
        self._connection_class = type(base.__name__, (_Timed, base), {})
        self._size = size
        self._lock = threading.Lock()  # never held while waiting
        self._made: list[Any] = []
        self._free: list[Any] = []  # the connection that was given back last is taken first
        self._waiting: deque[_Waiter] = deque()
        self._generation = 0
        self._closed = False

    @property
    def database(self) -> int:
        """The number of the database at the URL."""
        return int(self._options.get("db") or 0)

    def connection(self) -> Any:
        """Return a further connection, which the pool does not count.

        The caller sets its `deadline`, by the monotonic clock, and calls `connect`.
        """
        return self._connection_class(**self._options)

    def ask(self, commands: Sequence[tuple[Any, ...]], deadline: float) -> list[Any]:
        """Send all commands in one round trip; return their replies, of which an error is a value like any other.

        If a connection fails, all commands are sent again on another one. So each command must do no harm if Redis runs
        it twice.

        :param deadline: when to give up, by the monotonic clock.
        :raises RedisError, OSError: if there is no reply.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            generation = self._generation
            try:
                return self._attempt(commands, deadline)
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                # A connection that was used before may have been closed since. Then a new one is tried without a pause.
                pause = 0 if generation != self._generation else random.uniform(0, _PAUSE)
                if attempt == _ATTEMPTS or time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
        raise AssertionError("unreachable")

    def renew(self) -> None:
        """Replace each connection by a new one when it is next used."""
        self._generation += 1

    def close(self) -> None:
        """Close all connections that are free. A connection in use is closed when it is given back."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
            self._made = [connection for connection in self._made if connection not in free]
        for connection in free:
            connection.disconnect()

    def _attempt(self, commands: Sequence[tuple[Any, ...]], deadline: float) -> list[Any]:
        connection = self._take(deadline)
        is_used = False
        try:
            if connection.generation != self._generation:
                connection.disconnect()
            now = time.monotonic()
            is_used = connection.is_connected
            # A connection that was used before may be dead. Half of the time is left to try another one.
            connection.deadline = now + (deadline - now) / 2 if is_used else deadline
            if not is_used:
                connection.generation = self._generation
                connection.connect()
            # redis-py's own packing of commands takes several times as long.
            connection.send_packed_command([b"".join(map(pack_command, commands))], check_health=False)
            return [_reply(connection) for _ in commands]
        except BaseException as error:
            connection.disconnect()
            if is_used and isinstance(error, Exception):
                self.renew()  # the other connections are as old
            raise
        finally:
            self._give_back(connection)

    def _take(self, deadline: float) -> Any:
        with self._lock:
            if self._free:
                return self._free.pop()
            if len(self._made) < self._size:
                connection = self.connection()
                self._made.append(connection)
                return connection
            waiter = _Waiter()
            self._waiting.append(waiter)
        is_over = False
        try:
            waiter.served.wait(max(deadline - time.monotonic(), 0))
            is_over = True
        finally:
            with self._lock:
                if waiter.connection is None:
                    self._waiting.remove(waiter)
            if waiter.connection is not None and not is_over:  # this thread or greenlet is being ended
                self._give_back(waiter.connection)
        if waiter.connection is None:
            raise redis.TimeoutError("all connections to it are in use")
        return waiter.connection

    def _give_back(self, connection: Any) -> None:
        with self._lock:
            if self._waiting:
                waiter = self._waiting.popleft()
                waiter.connection = connection
                waiter.served.set()
                return
            if not self._closed:
                self._free.append(connection)
                return
            self._made.remove(connection)
        connection.disconnect()


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
