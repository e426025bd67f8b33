"""The log of the service, which is the logger `sse`: where its lines go, and how often a warning is repeated.

If the app has configured logging, by handlers of the root logger or of `sse`, these get the lines, as from any library.
Otherwise the lines go to the server's log, or else to the app's logger, and have the same form as the lines there.
`warn` and `warn_once` keep many warnings of one kind from filling the log.
"""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from _thread import RLock  # never patched by gevent, so that real threads can warn, too
from collections.abc import Callable, Iterator
from typing import Any, Final

_log = logging.getLogger("sse")
Write = Callable[[logging.LogRecord], object]

_INTERVAL: Final = 10.0  # seconds between two warnings with the same message
_MAX_ONCE: Final = 100  # warnings that `warn_once` remembers; further ones are not logged
_lock = RLock()  # never held while waiting
_last_logged: dict[str, tuple[float, int]] = {}  # by message: when that was, and how many were held back since
_once: set[str] = set()  # texts that `warn_once` has logged


def warn(message: str, *args: object, exc_info: bool = False) -> None:
    """Log a warning, unless one with the same `message`, whatever its `args`, was logged in the last 10 seconds.

    :param exc_info: log it as an error, with the traceback of the exception that is being handled.
    """
    now = time.monotonic()
    with _lock:
        at, held = _last_logged.get(message, (now - _INTERVAL, 0))
        due = now - at >= _INTERVAL
        _last_logged[message] = (now, 0) if due else (at, held + 1)
    level = logging.ERROR if exc_info else logging.WARNING
    if due and held:
        _log.log(level, f"{message} (and %d more like it)", *args, held, exc_info=exc_info, stacklevel=2)
    elif due:
        _log.log(level, message, *args, exc_info=exc_info, stacklevel=2)


def warn_once(message: str, *args: object) -> None:
    """Log a warning, unless the same one, with the same `args`, was logged in this process before."""
    text = message % args
    with _lock:
        if text in _once or len(_once) >= _MAX_ONCE:
            return
        _once.add(text)
    _log.warning("%s", text, stacklevel=2)


class _Route(logging.Filter):
    """Writes a record to the server's log or the app's, unless logging has handlers that are not the server's."""

    def __init__(self) -> None:
        super().__init__()
        self.server: Write | None = None
        self.apps: list[weakref.ref[Any]] = []
        self.known: list[logging.Handler] = []  # the server's handlers of the root logger
        self.kept: logging.Handler | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the record is for the handlers; otherwise write it, and return False."""
        if _log.handlers or any(handler not in self.known for handler in logging.root.handlers):
            return True
        write = self.server or self._to_newest_app()
        if write is None:
            return True
        write(record)
        return False

    def _to_newest_app(self) -> Write | None:
        app = next((app for ref in reversed(self.apps) if (app := ref())), None)
        if app is None:
            return None
        gunicorn = logging.getLogger("gunicorn.error")  # has handlers only in gunicorn's processes: for preload_app
        return _to_logger(gunicorn if gunicorn.handlers else app.logger)


_route = _Route()


def follow_gunicorn(log: Any, cfg: Any) -> None:
    """Write the service's lines to gunicorn's `log`, with the form, level and filters of its own lines.

    This is to be called before the app is loaded, when the root logger has only the handlers of gunicorn's
    `--log-config`. Further handlers are the app's. If there are any, the handlers get the lines instead.
    """
    target = getattr(log, "error_log", None)
    _route.known = list(logging.root.handlers) if cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json else []
    _route.server = _to_logger(target) if isinstance(target, logging.Logger) else _to_methods(log)
    _log.addFilter(_route)


def keep_until_exit(handler: logging.Handler) -> None:
    """Keep a handler alive as long as logging itself, by a reference from the filter of the service's logger.

    Without it, Flask's own handler would be deleted with Flask's modules when a process ends. That deletion needs
    modules of gevent if gevent patched the standard library after Flask was imported, as for an app that gunicorn
    preloads. These modules are empty by then, so each worker would end with a traceback.
    """
    _route.kept = handler
    _log.addFilter(_route)


def follow_app(app: weakref.ref[Any]) -> None:
    """Write the service's lines to an app's logger, unless the server has a log for them.

    If there are several apps, the newest one that still exists gets the lines.

    :param app: its attribute `logger` is read for each line, so that the app may configure logging at any time.
    """
    _route.apps = [other for other in _route.apps if other()] + [app]
    _log.addFilter(_route)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Write the service's lines to standard error in this block, without time and level, for commands."""
    before, _route.server = _route.server, _to_stderr
    try:
        yield
    finally:
        _route.server = before


def _to_logger(logger: logging.Logger) -> Write:
    def write(record: logging.LogRecord) -> None:
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)

    return write


def _to_methods(log: Any) -> Write:
    """Return a function that writes to a log of gunicorn's which has a logger's methods, but is none."""
    whole = logging.Formatter()  # appends the traceback, as the filter of secrets has left it
    return lambda record: log.log(record.levelno, "%s", whole.format(record))


def _to_stderr(record: logging.LogRecord) -> None:
    if logging.lastResort and record.levelno >= logging.lastResort.level:
        logging.lastResort.handle(record)
