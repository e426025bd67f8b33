"""The owner thread: the real thread that a service's store belongs to under gevent.

Under gevent, locks and connections belong to the event loop of one real thread, the owner. If another real thread used
them, such as a thread of gevent's threadpool or of a C library, its call would fail, and harm greenlets of the owner.
So the calls of other threads are handed to the owner, where each runs in a greenlet of its own.
"""

from __future__ import annotations

import _thread
import sys
import threading
import time
from _queue import Empty, SimpleQueue  # gevent patches the queues of the module `queue`
from _thread import RLock  # gevent never patches this lock
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, cast

from sse.errors import SSEError, StoreUnavailable

_RESOLVER_THREADS: Final = 2
T = TypeVar("T")


class _Call(Generic[T]):
    """Work for the owner that another thread, the caller, waits for; and its one ticket.

    The owner takes the ticket to begin the work, or the caller takes it to give up. So work that the caller has given
    up never begins.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._ticket: list[None] = [None]
        self._outcome: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

    def take(self) -> bool:
        """Take the ticket and return True; return False if it has been taken before."""
        try:
            self._ticket.pop()  # atomic: only one thread gets it
        except IndexError:
            return False
        return True

    def do(self) -> None:
        """Do the work, unless the caller has given up."""
        if not self.take():
            return
        value: T | None = None
        fault: Exception | None = StoreUnavailable("storing was interrupted", "try again; publish with the same key")
        try:
            value, fault = self._work(), None
        except SSEError as error:
            # The error goes without its frames, because the connections in these belong to this thread.
            fault = error.with_traceback(None)
            fault.__cause__ = fault.__context__ = None
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            fault = error
        finally:
            self._outcome.put((value, fault))

    def wait(self, until: float) -> T:
        """Return the result of the work, or raise its error.

        :param until: when to give up, by the monotonic clock.
        :raises Empty: if the work has not ended by then.
        """
        value, fault = self._outcome.get(timeout=max(until - time.monotonic(), 0))
        if fault:
            raise fault
        return cast("T", value)


class OwnerThread:
    """The thread that makes this object. Without gevent, any thread may use a store, so the owner does not matter."""

    def __init__(self) -> None:
        self._owned = RLock()
        self._owned.acquire()  # never released: the lock tells its owner from other threads without a system call
        self._loop = _loop()

    @property
    def is_other_thread(self) -> bool:
        """True if gevent is in use, and the current thread is not the owner."""
        return self._loop is not None and not self._owned._is_owned()  # type: ignore[attr-defined]

    def check(self) -> None:
        """Refuse work that only the owner thread can do.

        :raises StoreUnavailable: if the current thread is another one, and gevent is in use.
        """
        if self._loop is None and not _is_patched():
            return
        if not self._owned._is_owned():  # type: ignore[attr-defined]
            raise StoreUnavailable(
                "under gevent, the store belongs to the thread that the app was made in, and this is another",
                "other threads may publish and revoke, but only after the app's own thread has used the service",
            )
        if self._loop is None:
            self._loop = _loop()  # gevent has patched since this was made, as if gunicorn preloads the app

    def run(self, work: Callable[[], T], *, begin: float, end: float) -> T:
        """Have the owner call `work`; return its result, or raise its error. Only other threads call this.

        :param begin: seconds within which the owner has to begin the work; otherwise it is never done.
        :param end: seconds within which the owner has to end the work.
        :raises StoreUnavailable: if the owner does not begin or end it in time.
        """
        call, now = _Call(work), time.monotonic()
        try:
            self._loop.run_callback_threadsafe(_thread.start_new_thread, call.do, ())  # a greenlet
        except (AttributeError, TypeError, ValueError):  # from a loop that is being destroyed, by how far that is
            raise StoreUnavailable("this process is ending, so nothing was stored", "try again elsewhere") from None
        try:
            return call.wait(now + begin)
        except Empty:
            if call.take():
                raise StoreUnavailable(
                    f"the thread that the app was made in has been busy for {begin:g} s, so nothing was stored",
                    "try again, and see what blocks gevent's loop there",
                ) from None
        except BaseException:
            call.take()  # this thread is being ended
            raise
        try:
            return call.wait(now + end)
        except Empty:
            raise StoreUnavailable(
                f"the thread that the app was made in has not answered within {end:g} s",
                "try again; publish with the same key",
            ) from None


def _is_patched() -> bool:
    return type(threading.Lock()).__module__.startswith("gevent.")


def _loop() -> Any:
    """Return the event loop of the current thread; None if gevent has not patched the standard library.

    gevent is taken from the modules that are loaded already, because this package does not depend on it.
    """
    if not _is_patched():
        return None
    hub = sys.modules["gevent"].get_hub()
    # gevent resolves host names in its threadpool. If all threads of that pool waited for the owner to publish, and the
    # owner waited for one of them to resolve the name of Redis, neither would go on. So resolving has its own threads.
    if getattr(hub.resolver, "pool", None) is hub.threadpool:
        hub.resolver.pool = hub.threadpool_class(_RESOLVER_THREADS, hub=hub)
    return hub.loop
