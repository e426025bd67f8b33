"""The service's log, the logger `sse`: where its lines go, and warnings that a storm of one kind cannot fill it with.

If logging is configured, by handlers of the root logger or of `sse`, it is as for any library. Otherwise the lines go
where the server's do, or else where the app's do, and so have their time, level and form.
"""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from _thread import RLock  # never patched, so that threads that gevent does not know can warn, too
from collections.abc import Callable, Iterator
from typing import Any, Final

_log = logging.getLogger("sse")
Write = Callable[[logging.LogRecord], object]

_EVERY: Final = 10.0
_MOST_ONCE: Final = 100  # warnings that are kept to be told once; later ones are not told
_lock = RLock()  # held while nothing waits
_told: dict[str, tuple[float, int]] = {}  # by message: when it was last logged, and how many were held back since
_once: set[str] = set()  # what this process has warned of, and does not repeat


def warn(message: str, *args: object, exc_info: bool = False) -> None:
    """Log a warning, unless one with the same `message`, whatever its `args`, was logged in the last 10 seconds.

    :param exc_info: log an error, and where the exception that is being handled comes from.
    """
    now = time.monotonic()
    with _lock:
        at, held = _told.get(message, (now - _EVERY, 0))
        due = now - at >= _EVERY
        _told[message] = (now, 0) if due else (at, held + 1)
    level = logging.ERROR if exc_info else logging.WARNING
    if due and held:
        _log.log(level, f"{message} (and %d more like it)", *args, held, exc_info=exc_info, stacklevel=2)
    elif due:
        _log.log(level, message, *args, exc_info=exc_info, stacklevel=2)


def warn_once(message: str, *args: object) -> None:
    """Log a warning, unless the same one, with the same `args`, was logged in this process before."""
    text = message % args
    with _lock:
        if text in _once or len(_once) >= _MOST_ONCE:
            return
        _once.add(text)
    _log.warning("%s", text, stacklevel=2)


class _Route(logging.Filter):
    """Writes a record in the server's way or the app's, unless a handler is there that they did not bring."""

    def __init__(self) -> None:
        super().__init__()
        self.server: Write | None = None
        self.apps: list[weakref.ref[Any]] = []
        self.known: list[logging.Handler] = []  # the server's handlers of the root logger
        self.kept: logging.Handler | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record goes on, to the handlers; otherwise it is written."""
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
        gunicorn = logging.getLogger("gunicorn.error")  # it has handlers in gunicorn's processes alone: preload_app
        return _to_logger(gunicorn if gunicorn.handlers else app.logger)


_route = _Route()


def follow_gunicorn(log: Any, cfg: Any) -> None:
    """Write the service's lines where gunicorn's `log` writes its own, with the same form, level and filters.

    To be called before the app is loaded: the root logger's handlers are then those of gunicorn's own `--log-config`.
    Any others are the app's. If there are some, they alone get the lines.
    """
    target = getattr(log, "error_log", None)
    _route.known = list(logging.root.handlers) if cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json else []
    _route.server = _to_logger(target) if isinstance(target, logging.Logger) else _to_methods(log)
    _log.addFilter(_route)


def keep_until_exit(handler: logging.Handler) -> None:
    """Have a handler live as long as logging itself, by way of the filter of the service's logger.

    Flask's own handler would end with Flask's modules when a process ends. If gevent patched the standard library only
    after Flask was imported, as for an app that gunicorn preloads, that needs modules of gevent that are empty by then,
    and each worker would end with a traceback.
    """
    _route.kept = handler
    _log.addFilter(_route)


def follow_app(app: weakref.ref[Any]) -> None:
    """Write the service's lines as lines of an app's logger, unless a server has a log for them.

    Of several apps, the newest that is there has them.

    :param app: its attribute `logger` is asked for with each line, so that the app may configure logging at any time.
    """
    _route.apps = [other for other in _route.apps if other()] + [app]
    _log.addFilter(_route)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """In this block, write the service's lines as they are, to standard error: for commands."""
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
    """Write with a log of gunicorn's that has no logger of the standard library, but the methods of one."""
    whole = logging.Formatter()  # with the traceback as the filter of secrets has left it
    return lambda record: log.log(record.levelno, "%s", whole.format(record))


def _to_stderr(record: logging.LogRecord) -> None:
    if logging.lastResort and record.levelno >= logging.lastResort.level:
        logging.lastResort.handle(record)
