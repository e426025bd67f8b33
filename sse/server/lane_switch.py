"""Decides for a worker whether the fast lane is on, and tells the log: at the start, and whenever that changes.

The fast lane has two parts. Past Flask, a request is answered by the `Lane` of the app, if the app would not have seen
the request (`web/lane_rule`). Past gunicorn, the worker also reads and answers it without a greenlet, if gunicorn's
settings ask for nothing that only gunicorn does with a request.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, Final

from gunicorn.config import PostRequest, PreRequest  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]
from gunicorn.workers.base_async import AsyncWorker  # type: ignore[import-untyped]
from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]

from sse.log import warn
from sse.server.app_lane import AppLane

# The methods of a worker through which gunicorn takes a request. They have to be this package's and gunicorn's own.
_METHODS: Final = ("handle", "handle_request", "is_already_handled", "timeout_ctx")
_OF_GUNICORN: Final = (
    *((AsyncWorker, name) for name in ("handle", "handle_request", "is_already_handled")),
    *((GeventWorker, name) for name in ("handle", "handle_request")),
    (Logger, "access"),
)
_HOOKS: Final = (("pre_request", PreRequest.pre_request), ("post_request", PostRequest.post_request))


class LaneSwitch:
    """Says for one worker whether the fast lane is on.

    :param worker: of gunicorn. Its `wsgi` is set already.
    :param app: the WSGI application that gunicorn has loaded.
    """

    def __init__(self, worker: Any, app: Any) -> None:
        self.lane: AppLane | None = _lane_of(app)
        """The lane of the app; None if it has none, or if another WSGI application wraps the app."""
        self._worker = worker
        self._app = app
        self._wsgi = worker.wsgi
        self._needs_no_greenlet = False
        self._known: tuple[str, ...] | None = None  # the reasons of which the log tells; None before the start

    def is_on(self) -> bool:
        """Return whether requests may go past Flask now."""
        if self.lane is None:
            return False
        rule = self.lane.rule
        why = rule.why_off()
        if rule.reasons is not self._known and self._known is not None:
            self._note_change(rule.reasons)
        return not why

    def is_free(self) -> bool:
        """Return whether requests may go past Flask, and past gunicorn too."""
        return self._needs_no_greenlet and self._worker.wsgi is self._wsgi and self.is_on()

    def begin(self, *, has_sse: bool, is_told: bool) -> None:
        """Look at gunicorn's settings, and log whether the lane is on. gunicorn's own hooks have run by then.

        :param has_sse: an app with SSE is in this process.
        :param is_told: this worker logs it, and no other one of its generation.
        """
        why_greenlets = "; ".join(_why_greenlets(self._worker, self._wsgi))
        self._needs_no_greenlet = not why_greenlets
        if self.lane is None:
            if has_sse and is_told:
                self._tell(logging.INFO, f"off, because gunicorn serves {_name_of(self._app)} and not the Flask app")
            return
        rule = self.lane.rule
        self._known = rule.look()
        if not is_told:
            return
        level = logging.WARNING if rule.mode == "on" else logging.INFO
        if self._known:
            self._tell(level, f"off, because {'; '.join(self._known)}")
            return
        if why_greenlets:
            self._tell(level, f"on, but each request has a greenlet, because {why_greenlets}")
        else:
            self._tell(logging.INFO, "on")
        if rule.passed_by:
            self._tell(level, f"SSE_LANE=on, so requests pass by what could see them: {'; '.join(rule.passed_by)}")

    def _tell(self, level: int, text: str) -> None:
        log = self._worker.log
        (log.warning if level == logging.WARNING else log.info)("fast lane: %s", text)

    def _note_change(self, reasons: tuple[str, ...]) -> None:
        if reasons != self._known:
            if reasons:
                warn("fast lane: off from now on, because %s", "; ".join(reasons))
            else:
                warn("fast lane: on from now on")
        self._known = reasons


def _lane_of(app: Any) -> Any:
    """Return the lane of an app if the app itself is what the server calls; else None."""
    extensions = getattr(app, "extensions", None)
    lane = extensions.get("sse.lane") if isinstance(extensions, dict) else None
    return lane if lane is not None and lane.app is app else None


def _why_greenlets(worker: Any, wsgi: Any) -> Iterator[str]:
    """Yield what gunicorn does with each request, and this worker would not do in its place."""
    cfg, log = worker.cfg, worker.log
    if cfg.is_ssl:
        yield "gunicorn ends TLS"
    if cfg.proxy_protocol != "off":
        yield "gunicorn reads the PROXY protocol"
    if cfg.protocol != "http" or cfg.http2_cleartext != "off":
        yield "gunicorn speaks another protocol than HTTP/1.1"
    if not isinstance(log, Logger) or type(log).access is not Logger.access or "access" in vars(log):  # as for statsd
        yield f"gunicorn's log is {_name_of(log)}"
    elif log.access_log_enabled:
        yield "gunicorn's access log is on"
    elif log.error_log.isEnabledFor(logging.DEBUG):
        yield "gunicorn logs each request at the level debug"
    for name, stock in _HOOKS:
        if getattr(cfg, name) is not stock:
            yield f"gunicorn has a {name} hook"
    if os.environ.get("SCRIPT_NAME"):
        yield "SCRIPT_NAME is set"
    if worker.wsgi is not wsgi:
        yield "worker.wsgi was replaced"
    for name in _METHODS:
        if not getattr(type(worker), name).__module__.startswith("sse."):
            yield f"the worker is {_name_of(worker)} with a method {name} of its own"
    for cls, name in _OF_GUNICORN:
        code = getattr(vars(cls)[name], "__code__", None)
        if code is None or code.co_filename != sys.modules[cls.__module__].__file__:
            yield f"gunicorn's own {cls.__name__}.{name} was replaced"


def _name_of(thing: Any) -> str:
    return f"a {type(thing).__module__}.{type(thing).__qualname__}"
