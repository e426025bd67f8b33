"""What one app runs on: its settings, and this process's store and hub."""

from __future__ import annotations

import _thread
import os
import threading
import weakref
from _thread import RLock  # never patched, so that any thread may take it
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, ParamSpec, TypeVar

from sse.access.keys import PublishKeys
from sse.access.revocations import Kind, Revocations
from sse.access.token import Tokens
from sse.config import Config
from sse.errors import StoreUnavailable, TooLarge, Unavailable
from sse.event import Event, Position
from sse.hub.hub import Hub
from sse.owner import OwnerThread
from sse.stores import Publication, Store, connect

_BEYOND: Final = 2.0  # seconds that a call from another thread may take beside its wait for Redis
_CLOSING: Final = 30.0

P = ParamSpec("P")
T = TypeVar("T")
_services: weakref.WeakSet[Service] = weakref.WeakSet()


def living() -> list[Service]:
    """Return the services that this process has, whatever has been put around their apps."""
    return list(_services)


class Service:
    """The store and hub of this process, made when they are first asked for.

    Not earlier: a server may fork, or replace the standard library's locks, after the app has been made. When the
    service is garbage-collected, as with its app, they are closed.

    :raises ConfigError: if a file that the settings name is at fault.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.tokens = Tokens(config)
        self.keys = PublishKeys(config)
        self.at_first_use: Callable[[], None] | None = None
        """Called once, when this is first used: before it makes the store, or refuses a request."""
        self.admit: Callable[[], None] | None = None
        """Called before events are stored, to wait while the server is late in telling those before them."""
        self._made: _Made | None = None  # in this process
        self._finalizer: weakref.finalize[..., Service] | None = None  # closes what is made
        self._owner = OwnerThread()
        self._max_subscribers = config.max_subscribers
        self._others: list[Callable[[], None]] = []
        self._lock = RLock()  # held while nothing waits
        _services.add(self)

    @property
    def store(self) -> Store:
        return self._all()[0]

    @property
    def hub(self) -> Hub:
        return self._all()[1]

    @property
    def revocations(self) -> Revocations:
        return self._all()[2]

    @property
    def shared(self) -> bool:
        """Whether other processes see what is published here."""
        return self.config.redis_url is not None

    def check_workers(self, multiprocess: bool) -> None:
        """Refuse a server of several processes over the memory store, where each would see only its own events.

        :raises Unavailable: if `multiprocess`, and the store is not shared.
        """
        if multiprocess and not self.shared:
            raise Unavailable(
                "the memory store is for one process, and this server runs several",
                "set SSE_REDIS_URL, or run one worker",
                code="memory_store",
            )

    def check(self, event: Event) -> Event:
        """Give the event back if it is small enough.

        :raises TooLarge: if its data is over SSE_MAX_EVENT_BYTES.
        """
        size = len(event.data.encode())
        if size > self.config.max_event_bytes:
            raise TooLarge(
                f"data has {size} bytes, SSE_MAX_EVENT_BYTES is {self.config.max_event_bytes}",
                "send less, or a link to it",
            )
        return event

    def count_new(self, channels: Iterable[str]) -> int:
        """How many of these channels have had no event yet, or none within SSE_RING_TTL.

        :raises StoreUnavailable: if the store does not answer.
        """
        tops = self.store.newest(list(dict.fromkeys(channels)))
        return sum(top is None or (isinstance(top, Position) and top.offset == 0) for top in tops)

    def publish(self, publications: Sequence[Publication]) -> list[Position]:
        """Store and announce events, from whatever thread; the position of each.

        :raises IdempotencyConflict: if a key was used before for another event; nothing is stored.
        :raises StoreUnavailable: if one or more may not be stored; publish all again with the same keys.
        """
        if self._owner.is_other_thread:
            return self._in_owner(self.config.redis_timeout + _BEYOND, self.publish, publications)
        if self.admit:
            self.admit()
        positions = []
        for receipt in self.store.publish(publications):
            if isinstance(receipt, StoreUnavailable):
                raise receipt
            positions.append(receipt.position)
        return positions

    def revoke(self, kind: Kind, value: str) -> None:
        """Refuse and end what was issued until now, from whatever thread.

        :raises StoreUnavailable: if it may not be known to all.
        """
        if self._owner.is_other_thread:
            return self._in_owner(4 * self.config.redis_timeout + _BEYOND, self.revoke, kind, value)
        return self.revocations.revoke(kind, value)

    def _in_owner(self, seconds: float, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Return what `work` returns, called in the thread that the store belongs to. For other threads.

        :param seconds: how long to wait for that.
        :raises StoreUnavailable: if that thread is busy for SSE_REDIS_TIMEOUT, or `seconds`.
        """
        return self._owner.run(partial(work, *args, **options), begin=self.config.redis_timeout, end=seconds)

    def _all(self) -> _Made:
        if self._owner.is_other_thread:
            self._owner.check()
        return self._made or self._make()

    def begin(self) -> None:
        """Call `at_first_use`, unless that has been done."""
        with self._lock:
            call, self.at_first_use = self.at_first_use, None
        if call:
            call()

    def also_close(self, close: Callable[[], None]) -> None:
        """Have `close` called when this service is closed or collected; it must not hold the service."""
        self._others.append(close)

    def close(self) -> None:
        """End this process's hub and let go of its store, as `SSE.close` says; the next use makes new ones."""
        if self._owner.is_other_thread:
            return self._in_owner(_CLOSING, self.close)
        with self._lock:
            made, self._made = self._made, None
            if self._finalizer:
                self._finalizer.detach()
        if made:
            self._max_subscribers = made[1].max_subscribers  # a server may have lowered it
        _close(made, self._others)
        return None

    def _forget(self) -> None:
        """Leave all that was made to the process that made it."""
        self._lock = RLock()  # another thread may have held it
        self._owner = OwnerThread()
        self._made = None
        if self._finalizer:
            self._finalizer.detach()

    def _make(self) -> _Made:
        self._owner.check()
        self.begin()
        # Without the lock, because redis-py switches greenlets here. Of several that are made at once, one is kept; the
        # others have neither connected nor started anything.
        store = connect(
            self.config.redis_url,
            ring=self.config.ring,
            ring_ttl=self.config.ring_ttl,
            namespace=self.config.namespace,
            timeout=self.config.redis_timeout,
        )
        hub = Hub(store, max_subscribers=self._max_subscribers)
        ours = store, hub, Revocations(store, self.config.token_lifetime)
        with self._lock:
            if self._made is None:
                self._made = ours
                self._finalizer = weakref.finalize(self, _close_elsewhere, ours, self._others)
                self._finalizer.atexit = False
            return self._made


_Made = tuple[Store, Hub, Revocations]


def _close(made: _Made | None, others: Sequence[Callable[[], None]]) -> None:
    if made:
        store, hub, revocations = made
        hub.close()
        revocations.close()
        store.close()
    for close in others:
        close()


def _close_elsewhere(made: _Made, others: Sequence[Callable[[], None]]) -> None:
    """Have a thread of its own close what a service has left behind, and wait for nothing.

    The collector calls this in any thread, which may hold any lock; to start a `threading.Thread` takes some.
    """
    _thread.start_new_thread(_close_in_thread, (made, others))


def _close_in_thread(*left: object) -> None:
    # A real one: the first wait of a bare thread would make an entry for it that `threading` keeps for good.
    threading.Thread(target=_close, args=left, name="sse-close", daemon=True).start()


def _forget() -> None:
    for service in _services:
        service._forget()


os.register_at_fork(after_in_child=_forget)  # a child makes its own; os.getpid() at each use is a system call
