"""The real thread that a service's store belongs to under gevent.

There, locks and connections belong to the event loop of one real thread, the home. Another real thread that used them,
such as one of gevent's threadpool or of a C library, would fail, and harm greenlets at home. So its calls are handed to
the home, where each runs in a greenlet of its own.
"""

from __future__ import annotations

import _thread
import sys
import threading
import time
from _queue import Empty, SimpleQueue  # gevent patches the one in `queue`
from _thread import RLock  # this one is never patched
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, cast

from sse.errors import SSEError, StoreUnavailable

_RESOLVERS: Final = 2
T = TypeVar("T")


class _Call(Generic[T]):
    """Some work that another thread waits for, and its ticket.

    The home takes the ticket to begin, or the caller takes it to give up, so work that was given up never begins.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._ticket: list[None] = [None]
        self._outcome: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

    def take(self) -> bool:
        """Take the ticket. False if it has been taken before."""
        try:
            self._ticket.pop()  # in one step, whatever other threads do
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
            # Without the frames, whose connections belong to this thread.
            fault = error.with_traceback(None)
            fault.__cause__ = fault.__context__ = None
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            fault = error
        finally:
            self._outcome.put((value, fault))

    def wait(self, until: float) -> T:
        """Return what the work returned, or raise its error.

        :raises Empty: at `until`, by the monotonic clock.
        """
        value, fault = self._outcome.get(timeout=max(until - time.monotonic(), 0))
        if fault:
            raise fault
        return cast("T", value)


class OwnerThread:
    """The thread that makes this. Without gevent, it does not matter which thread that is."""

    def __init__(self) -> None:
        self._mine = RLock()
        self._mine.acquire()  # for ever: its owner is told from other threads without a system call
        self._loop = _loop()

    @property
    def is_other_thread(self) -> bool:
        """True in any other thread, if gevent is at work."""
        return self._loop is not None and not self._mine._is_owned()  # type: ignore[attr-defined]

    def check(self) -> None:
        """Refuse what the home thread alone can do.

        :raises StoreUnavailable: if this is another thread, and gevent is at work.
        """
        if self._loop is None and not _is_patched():
            return
        if not self._mine._is_owned():  # type: ignore[attr-defined]
            raise StoreUnavailable(
                "under gevent, the store belongs to the thread that the app was made in, and this is another",
                "other threads may publish and revoke, but only after the app's own thread has used the service",
            )
        if self._loop is None:
            self._loop = _loop()  # patched since this was made, as where gunicorn preloads the app

    def run(self, work: Callable[[], T], *, begin: float, end: float) -> T:
        """Return what `work` returns when the home calls it, or raise its error. For other threads alone.

        :param begin: seconds within which the home has to begin it; else it is never done.
        :param end: seconds within which the home has to end it, from now on.
        :raises StoreUnavailable: when these are over.
        """
        call, now = _Call(work), time.monotonic()
        try:
            self._loop.run_callback_threadsafe(_thread.start_new_thread, call.do, ())  # a greenlet
        except (AttributeError, TypeError, ValueError):  # by how far its end has come
            raise StoreUnavailable("this process ends, so nothing was stored", "try again elsewhere") from None
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
    """The event loop of this thread; None where gevent has not patched the standard library.

    gevent is found where it has been imported; this package alone does not need it.
    """
    if not _is_patched():
        return None
    hub = sys.modules["gevent"].get_hub()
    # gevent looks host names up in its threadpool. If all threads of that pool waited for the home to publish, and the
    # home for one of them to find Redis, neither would go on. So host names get threads of their own.
    if getattr(hub.resolver, "pool", None) is hub.threadpool:
        hub.resolver.pool = hub.threadpool_class(_RESOLVERS, hub=hub)
    return hub.loop
