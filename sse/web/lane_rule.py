"""Decides whether requests may go past Flask: only if the app would not have seen them, see docs/operating.md.

`LaneRule` looks at everything by which an app of Flask sees or changes a request under SSE_PREFIX. Hooks may come late,
so the worker asks on each turn. An answer costs some two microseconds as long as nothing has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter, itemgetter
from types import FunctionType, MethodType
from typing import Any, Final, NamedTuple

import flask.ctx
from flask import Flask, Request, Response, signals
from flask.sessions import SecureCookieSessionInterface
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RoutingException

from sse.config import Config

FIRST_REQUEST: Final = "the first request of each process goes through Flask"

# The methods that a request goes through. Each has to be Flask's own.
_OF_AN_APP: Final = (
    "__call__",
    "wsgi_app",
    "request_context",
    "app_context",
    "create_url_adapter",
    "full_dispatch_request",
    "preprocess_request",
    "dispatch_request",
    "raise_routing_exception",
    "make_response",
    "finalize_request",
    "process_response",
    "handle_user_exception",
    "handle_http_exception",
    "handle_exception",
    "log_exception",
    "trap_http_exception",
    "should_ignore_error",
    "do_teardown_request",
    "do_teardown_appcontext",
    "ensure_sync",
)
_OF_OTHERS: Final = (
    (vars(flask.ctx).get("RequestContext"), ("__init__", "push", "pop", "match_request")),
    (vars(flask.ctx).get("AppContext"), ("__init__", "push", "pop")),
    (Request, ("__init__", "close")),
    (Response, ("__init__", "__call__", "get_wsgi_response", "get_wsgi_headers", "get_app_iter", "close")),
    (SecureCookieSessionInterface, ("open_session", "save_session", "is_null_session", "should_set_cookie")),
)

_SIGNAL_NAMES: Final = (
    "request_started",
    "request_finished",
    "request_tearing_down",
    "got_request_exception",
    "appcontext_pushed",
    "appcontext_popped",
    "appcontext_tearing_down",
)
_SIGNALS: Final = tuple(getattr(signals, name) for name in _SIGNAL_NAMES)
_RECEIVERS: Final = tuple(signal.receivers for signal in _SIGNALS)

# Settings of Flask that change which requests it answers, and how.
_NOT_SET: Final = (
    "DEBUG",
    "TESTING",
    "PROPAGATE_EXCEPTIONS",
    "TRAP_HTTP_EXCEPTIONS",
    "TRAP_BAD_REQUEST_ERRORS",
    "TRUSTED_HOSTS",
    "SERVER_NAME",
    "MAX_CONTENT_LENGTH",
)
_settings = itemgetter(*_NOT_SET, "SESSION_COOKIE_NAME", "SESSION_REFRESH_EACH_REQUEST")
_ROUTES: Final = (
    ("GET", "/stream", "stream"),
    ("GET", "/poll", "poll"),
    ("POST", "/publish", "publish"),
    ("POST", "/publish/a", "publish_raw"),
)


def _getter(cls: type, names: Iterable[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that gets those of these methods of a class that this version of Flask has."""
    return attrgetter(*[name for name in names if hasattr(cls, name)])


_methods_of_app = _getter(Flask, _OF_AN_APP)
_OTHERS: Final = tuple((cls, _getter(cls, names)) for cls, names in _OF_OTHERS if cls)
_parts_of_app = attrgetter(
    "request_class",
    "response_class",
    "session_interface",
    "session_interface.__dict__",
    "subdomain_matching",
    "url_map.host_matching",
    "url_map._remap",
)


def _copy(part: Any) -> Any:
    """Return tables of an app as they are now: with copies of the inner tables and lists."""
    if isinstance(part, dict):
        return {key: _copy(value) for key, value in part.items()}
    return type(part)(map(_copy, part)) if isinstance(part, tuple | list) else part


class _Reason(NamedTuple):
    """A reason for which requests go through Flask."""

    text: str
    is_waived: bool = False
    """True for what SSE_LANE=on passes by: the app's hooks, signals, sessions and error handlers."""


class LaneRule:
    """Whether requests for streams, for polls and to publish may go past an app of Flask.

    :param app: has the routes of this service already.
    :param blueprint: the name of their blueprint.
    :param own: the hooks and error handlers of this service, also those of another `SSE` of the app.
    """

    def __init__(self, app: Flask, config: Config, blueprint: str, own: Sequence[object]) -> None:
        self.mode = config.lane
        """SSE_LANE: `auto`, `on` or `off`."""
        self.session_cookie = ""
        """A request with a cookie of this name is for Flask, which may set it again; empty if there is none."""
        self.reasons: tuple[str, ...] = ()
        """All reasons for which requests go through Flask, as of the last look."""
        self.passed_by: tuple[str, ...] = ()
        """What SSE_LANE=on lets requests pass by, as of the last look."""
        self._app = app
        self._prefix = config.prefix
        self._blueprint = blueprint
        self._own = own
        self._endpoints = tuple(f"{blueprint}.{name}" for _, _, name in _ROUTES)
        self._get_views = itemgetter(*self._endpoints)
        self._views = self._get_views(app.view_functions)
        self._seen: object = None
        self._why = ""

    def why_off(self) -> str:
        """Return why requests go through Flask now; empty if they may go past it."""
        if self.look():
            return self._why
        return "" if getattr(self._app, "_got_first_request", False) else FIRST_REQUEST

    def look(self) -> tuple[str, ...]:
        """Look at the app. Return the reasons for which its requests go through Flask, whether one has come or not."""
        if self.mode == "off":
            self.reasons, self._why = ("SSE_LANE is off",), "SSE_LANE is off"
            return self.reasons
        try:
            seen = self._all_parts()
            if seen != self._seen:
                self._judge()
                self._seen = _copy(seen)
        except Exception as error:  # noqa: BLE001 - whatever it is, the request is for Flask then
            # Only an app whose own parts fail comes here, or one that changes Flask's tables by hand; or a version of
            # Flask that has other tables.
            self._seen, self.passed_by = None, ()
            self.reasons = (f"this app cannot be examined ({type(error).__name__}: {error})",)
            self._why = self.reasons[0]
        return self.reasons

    def _all_parts(self) -> tuple[object, ...]:
        """Return everything that `_judge` looks at, or something that changes with it."""
        app = self._app
        return (
            _methods_of_app(type(app)),
            [get_methods(cls) for cls, get_methods in _OTHERS],
            _parts_of_app(app),
            len(vars(app)),
            len(app.url_map._rules_by_endpoint),
            self._get_views(app.view_functions),
            _settings(app.config),
            not app.config["SECRET_KEY"],  # this is no place for the secret itself
            app.before_request_funcs,
            app.after_request_funcs,
            app.teardown_request_funcs,
            app.url_value_preprocessors,
            app.error_handler_spec,
            app.teardown_appcontext_funcs,
            any(_RECEIVERS) and [signal.has_receivers_for(app) for signal in _SIGNALS],
        )

    def _judge(self) -> None:
        found = list(dict.fromkeys(self._found()))
        is_waiving = self.mode == "on"
        self.reasons = tuple(text for text, is_waived in found if not (is_waived and is_waiving))
        self.passed_by = tuple(text for text, is_waived in found if is_waived and is_waiving)
        self._why = "; ".join(self.reasons)
        config = self._app.config
        may_set = self.mode == "auto" and config["SECRET_KEY"] and config["SESSION_REFRESH_EACH_REQUEST"]
        self.session_cookie = config["SESSION_COOKIE_NAME"] if may_set else ""

    def _found(self) -> Iterator[_Reason]:
        for text in chain(self._replaced(), self._routed(), self._set()):
            yield _Reason(text)
        for text in chain(self._hooks(), self._receivers(), self._handlers(), self._session()):
            yield _Reason(text, is_waived=True)

    def _replaced(self) -> Iterator[str]:
        """Yield what stands in the place of something of Flask's or of this service's."""
        app = self._app
        for name in _OF_AN_APP:
            if name in vars(app):
                yield f"app.{name} is {_shown(vars(app)[name])}"
        for cls, get_methods in ((type(app), _methods_of_app), *_OTHERS):
            for method in get_methods(cls):
                if not _is_original(method):
                    yield f"a method of {cls.__name__} is {_shown(method)}"
        for name, original in (("request_class", Request), ("response_class", Response)):
            if (cls := getattr(app, name)) is not original:
                yield f"app.{name} is {cls.__name__}"
        for endpoint, view, own in zip(self._endpoints, self._get_views(app.view_functions), self._views, strict=True):
            if view is not own:
                yield f"the view {endpoint} is {_shown(view)}"

    def _routed(self) -> Iterator[str]:
        """Yield the rules of the app that lead a request elsewhere."""
        app = self._app
        if app.url_map.host_matching or app.subdomain_matching:
            yield "the app has routes by host or subdomain"
            return
        routes = app.url_map.bind("localhost")
        for (method, path, _), endpoint in zip(_ROUTES, self._endpoints, strict=True):
            try:
                rule, _ = routes.match(f"{self._prefix}{path}", method, return_rule=True)
            except (HTTPException, RoutingException) as error:
                yield f"the app routes {self._prefix}{path} elsewhere ({type(error).__name__})"
            else:
                if rule.endpoint != endpoint:
                    yield f"the app has a route of its own, {rule.rule}"
        publishing = f"{self._prefix}/publish/"
        for rule in app.url_map.iter_rules():
            if rule.rule.startswith(publishing) and rule.endpoint != f"{self._blueprint}.publish_raw":
                yield f"the app has a route of its own, {rule.rule}"

    def _set(self) -> Iterator[str]:
        """Yield settings of Flask that change how it answers."""
        for name in _NOT_SET:
            if self._app.config[name] is not None and self._app.config[name] is not False:
                yield f"{name} is set"

    def _hooks(self) -> Iterator[str]:
        app = self._app
        for kind, table in (
            ("before_request", app.before_request_funcs),
            ("after_request", app.after_request_funcs),
            ("teardown_request", app.teardown_request_funcs),
            ("url_value_preprocessor", app.url_value_preprocessors),
        ):
            for scope in (None, self._blueprint):
                for hook in table.get(scope, ()):
                    if hook not in self._own:
                        yield f"the app has the {kind} hook {_shown(hook)}"
        for hook in app.teardown_appcontext_funcs:
            yield f"the app has the teardown_appcontext hook {_shown(hook)}"

    def _receivers(self) -> Iterator[str]:
        for signal, name in zip(_SIGNALS, _SIGNAL_NAMES, strict=True):
            for receiver in signal.receivers_for(self._app):
                yield f"{_shown(receiver)} receives the signal {name}"

    def _handlers(self) -> Iterator[str]:
        """Yield the error handlers that could be called: by status, for all errors, or of this service's blueprint.

        Those of the app for classes of its own are none of them.
        """
        spec = self._app.error_handler_spec
        for scope in (None, self._blueprint):
            for code, handlers in spec.get(scope, {}).items():
                for error, handler in handlers.items():
                    is_for_all = scope is not None or code is not None or issubclass(HTTPException, error)
                    if is_for_all and handler not in self._own:
                        yield f"the app has the error handler {_shown(handler)} for {code or error.__name__}"

    def _session(self) -> Iterator[str]:
        interface = self._app.session_interface
        if type(interface) is not SecureCookieSessionInterface or vars(interface):
            yield f"the app's sessions are those of {type(interface).__name__}"


def _is_original(method: Any) -> bool:
    """Return True if a method is as Flask or werkzeug defines it: a plain function of the file of its module."""
    if type(method) is not FunctionType or hasattr(method, "__wrapped__"):
        return False
    names = method.__globals__
    module = sys.modules.get(names.get("__name__", ""))
    return (
        module is not None
        and vars(module) is names
        and module.__name__.partition(".")[0] in ("flask", "werkzeug")
        and method.__code__.co_filename == module.__file__
    )


def _shown(function: Any) -> str:
    """Return the name and place of a function of the app, as a text for the log."""
    while isinstance(function, partial | MethodType):
        function = function.func if isinstance(function, partial) else function.__func__
    code = getattr(function, "__code__", None)
    if code is None:
        return f"a {type(function).__name__}"
    return f"{code.co_qualname} ({code.co_filename}, line {code.co_firstlineno})"
