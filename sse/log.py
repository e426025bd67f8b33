"""The log of the service, which is the logger `sse`: where its lines go, and how often a warning is repeated.

If the app has configured logging, by handlers of the root logger or of `sse`, these get the lines, as from any library.
Otherwise the lines go to the server's log, or else to the app's logger, and have the same form as the lines there.
`warn` and `warn_once` keep many warnings of one kind from filling the log. `tell` logs a line with fields for programs.

With SSE_LOG=json the lines are JSON objects where they go to gunicorn's log or to Flask's own handler, and so are all
lines that gunicorn's worker itself writes. A handler that the app or gunicorn's `--log-config` has configured keeps its
form. Its formatter finds the fields of `tell` in the record's attribute `connection`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import time
import weakref
from _thread import RLock  # never patched by gevent, so that real threads can warn, too
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

_log = logging.getLogger("sse")

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


def is_enabled(level: int) -> bool:
    """Return whether `tell` would write a line of this level."""
    place = _route.place()
    return _log.isEnabledFor(level) if place is None else place.is_enabled(level) and not _log.disabled


def tell(level: int, message: str, fields: Mapping[str, object]) -> None:
    """Log a line. Call this only if `is_enabled`.

    The level of the place where the line goes is what counts: gunicorn's, say, and not that of the logger `sse`, which
    is WARNING unless the app has configured logging.

    :param fields: for programs: with SSE_LOG=json, they are members of the line's object.
    """
    _log.handle(_log.makeRecord(_log.name, level, __file__, 0, message, (), None, extra={"connection": fields}))


class _Place(Protocol):
    """The server's log or the app's."""

    def is_enabled(self, level: int) -> bool:
        """Return whether lines of this level are written."""

    def write(self, record: logging.LogRecord) -> None:
        """Write a line, if its level is enabled."""


class _Route(logging.Filter):
    """Writes a record to the server's log or the app's, unless logging has handlers that are not the server's."""

    def __init__(self) -> None:
        super().__init__()
        self.server: _Place | None = None
        self.apps: list[weakref.ref[Any]] = []
        self.known: list[logging.Handler] = []  # the server's handlers of the root logger
        self.kept: logging.Handler | None = None
        self.is_json = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the record is for the handlers; otherwise write it, and return False."""
        place = self.place()
        if place is None:
            return True
        place.write(record)
        return False

    def place(self) -> _Place | None:
        """Return where lines go; None for the handlers."""
        if _log.handlers:
            return None
        for handler in logging.root.handlers:
            if handler not in self.known:
                return None
        return self.server or self._of_newest_app()

    def _of_newest_app(self) -> _Place | None:
        app = next((app for ref in reversed(self.apps) if (app := ref())), None)
        if app is None:
            return None
        gunicorn = logging.getLogger("gunicorn.error")  # has handlers only in gunicorn's processes: for preload_app
        if gunicorn.handlers:
            return _ToLogger(gunicorn, gunicorn.handlers)
        return _ToLogger(app.logger, [self.kept] if self.kept and self.kept in app.logger.handlers else [])


def follow_gunicorn(log: Any, cfg: Any) -> None:
    """Write the service's lines to gunicorn's `log`, with the form, level and filters of its own lines.

    This is to be called before the app is loaded, when the root logger has only the handlers of gunicorn's
    `--log-config`. Further handlers are the app's. If there are any, the handlers get the lines instead.
    """
    target = getattr(log, "error_log", None)
    is_configured = cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json
    _route.known = list(logging.root.handlers) if is_configured else []
    if isinstance(target, logging.Logger):
        _route.server = _ToLogger(target, () if is_configured else target.handlers)
    else:
        _route.server = _ToMethods(log)
    _log.addFilter(_route)


def use_json(*, is_json: bool) -> None:
    """Write JSON objects from now on, or text as at first."""
    _route.is_json = is_json
    if isinstance(_route.server, _ToLogger):
        _route.server.take_form()


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
    before, _route.server = _route.server, _ToStderr()
    try:
        yield
    finally:
        _route.server = before


class _ToLogger:
    """A logger of the server or the app.

    :param own: the handlers that have the server's or Flask's own form, and get ours with SSE_LOG=json.
    """

    def __init__(self, logger: logging.Logger, own: Sequence[logging.Handler]) -> None:
        self._logger = logger
        self._own = own
        self.take_form()

    def take_form(self) -> None:
        """Have the handlers write JSON, if that is the form now."""
        for handler in self._own if _route.is_json else ():
            if not isinstance(handler.formatter, _Json):
                handler.setFormatter(_Json(handler.formatter))

    def is_enabled(self, level: int) -> bool:
        return self._logger.isEnabledFor(level)

    def write(self, record: logging.LogRecord) -> None:
        if self.is_enabled(record.levelno):
            self._logger.handle(record)


class _ToMethods:
    """A log of gunicorn's which has a logger's methods, but is none."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._whole = logging.Formatter()  # appends the traceback, as the filter of secrets has left it
        self._json = _Json(None)

    def is_enabled(self, level: int) -> bool:
        return level >= logging.INFO

    def write(self, record: logging.LogRecord) -> None:
        form = self._json if _route.is_json else self._whole
        self._log.log(record.levelno, "%s", form.format(record))


class _ToStderr:
    """Standard error, as without any configuration."""

    def is_enabled(self, level: int) -> bool:
        return logging.lastResort is not None and level >= logging.lastResort.level

    def write(self, record: logging.LogRecord) -> None:
        if logging.lastResort and self.is_enabled(record.levelno):
            logging.lastResort.handle(record)


class _Json(logging.Formatter):
    """Writes the lines of this service and of gunicorn as JSON objects, each on one line; others as before.

    The names of the first members are those that Google's Cloud Logging reads:
    https://cloud.google.com/logging/docs/structured-logging#special-payload-fields

    :param other: the former formatter of the handler, for the lines of other loggers.
    """

    def __init__(self, other: logging.Formatter | None) -> None:
        super().__init__()
        self._other = other or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        if not _route.is_json or record.name not in ("sse", "gunicorn.error"):
            return self._other.format(record)
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "severity": record.levelname,
            "message": record.getMessage(),
            "logger": record.name,
            "pid": record.process,
            **getattr(record, "connection", {}),
        }
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line)  # ASCII alone, so that no character ends the line


_route = _Route()
