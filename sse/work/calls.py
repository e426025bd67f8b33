"""Functions of the app: a check of what it decorates, and calls in a thread of their own, because they may wait."""

from __future__ import annotations

import contextlib
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from sse.log import warn

_log = logging.getLogger("sse")

_MOST: Final = 10_000
"""Calls that may wait."""


def check_function(
    decorator: str, function: Callable[..., object], arguments: Iterable[str] = (), *, may_yield: bool = False
) -> None:
    """Refuse a function that could never work.

    :param decorator: its name, for the error.
    :param arguments: the names of the keyword arguments that the function is called with.
    :param may_yield: whether it may be a generator function.
    :raises TypeError: if it cannot be called, is async or a generator function, or does not take these arguments.
    """
    name = getattr(function, "__qualname__", repr(function))
    if not callable(function):
        raise TypeError(f"{decorator} got {name:.60}, which cannot be called: decorate a function")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{decorator}: {name} is async; give a plain function, which may use asgiref.sync.async_to_sync"
        )
    if inspect.isgeneratorfunction(function) and not may_yield:
        raise TypeError(f"{decorator}: {name} has a yield, so a call of it does nothing; leave the yield out")
    with contextlib.suppress(ValueError):  # a builtin may have no signature
        given = dict.fromkeys(arguments)
        try:
            inspect.signature(function).bind(**given)
        except TypeError as error:
            names = ", ".join(given) or "no argument"
            raise TypeError(f"{decorator}: {name} is called with {names}, but: {error}") from None


class Calls:
    """A queue of calls. The thread begins with the first call.

    :param name: of the thread.
    :param what: names the functions in the log.
    """

    def __init__(self, name: str, what: str) -> None:
        self._name = name
        self._what = what
        self._waiting: deque[Callable[[], object]] = deque()
        self._filled = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def put(self, call: Callable[[], object]) -> None:
        """Have a function called after those that wait. If very many wait, it is dropped, and the log says so."""
        if len(self._waiting) >= _MOST:
            warn("%s: %d calls wait, so further ones are dropped; make these functions faster", self._what, _MOST)
            return
        self._waiting.append(call)
        self._filled.set()
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the process cannot start another thread now; the next call tries again
                warn("%s: %d calls wait for a thread: %s", self._what, len(self._waiting), error)
            else:
                self._thread = thread

    def close(self) -> None:
        """End the thread after the call that is running. Those that wait are dropped."""
        self._closed = True
        self._filled.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(5)

    def _run(self) -> None:
        while not self._closed:
            self._filled.wait()
            self._filled.clear()
            while self._waiting and not self._closed:
                call = self._waiting.popleft()
                try:
                    call()
                except BaseException:  # noqa: BLE001 - logged, a gevent.Timeout too; the next call is another one's
                    _log.exception("%s: a function failed", self._what)
