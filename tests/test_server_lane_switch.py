"""The worker's side of the fast lane: which app it is for, what gunicorn's settings forbid, and what the log says."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from sse import SSE
from sse.server.lane_switch import LaneSwitch
from sse.server.worker import Worker
from tests.conftest import MakeApp


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines of gunicorn's log and of the service's."""
    handler, server, service = Lines(), logging.getLogger("gunicorn.error"), logging.getLogger("sse")
    before = server.level, server.propagate, server.handlers
    server.handlers = [handler]
    service.addHandler(handler)
    yield handler.lines
    service.removeHandler(handler)
    server.level, server.propagate, server.handlers = before


def worker_of(kind: type[Worker] = Worker, log: type[Logger] = Logger, **settings: Any) -> Any:
    """Return a worker that has loaded an app, but has no process of its own."""
    worker: Any = kind.__new__(kind)
    worker.cfg = Config()
    for name, value in settings.items():
        worker.cfg.set(name, value)
    worker.log = log(worker.cfg)
    worker.wsgi = lambda *_: None
    return worker


def begun(app: Any, worker: Any = None, *, is_told: bool = True) -> LaneSwitch:
    switch = LaneSwitch(worker or worker_of(), app)
    switch.begin(has_sse=True, is_told=is_told)
    return switch


def serve_one(app: Flask) -> None:
    app.test_client().get("/sse/health")


def test_it_is_on_after_the_first_request_and_the_log_says_so_at_the_start(make_app: MakeApp, lines: list[str]) -> None:
    app = make_app()
    switch = begun(app)
    assert switch.lane is app.extensions["sse.lane"]
    assert not switch.is_on()
    serve_one(app)
    assert switch.is_on()
    assert switch.is_free()
    assert lines == ["INFO fast lane: on"]


def test_only_one_worker_of_a_generation_says_so(make_app: MakeApp, lines: list[str]) -> None:
    app = make_app(SSE_LANE="off")
    assert not begun(app, is_told=False).is_on()
    assert lines == []


class Around:
    """A wrapper that passes on all attributes of the app, as a proxy object does."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)

    def __call__(self, *arguments: Any) -> Any:
        return self._app(*arguments)


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (ProxyFix, "a werkzeug.middleware.proxy_fix.ProxyFix"),
        (lambda app: DispatcherMiddleware(app, {}), "a werkzeug.middleware.dispatcher.DispatcherMiddleware"),
        (lambda app: lambda *arguments: app(*arguments), "a builtins.function"),
        (lambda app: app.wsgi_app, "a builtins.method"),
        (Around, "a tests.test_server_lane_switch.Around"),
        (lambda _: Flask("another"), "a flask.app.Flask"),
    ],
)
def test_an_app_that_is_wrapped_has_none(
    make_app: MakeApp, lines: list[str], wrap: Callable[[Flask], Any], named: str
) -> None:
    app = make_app()
    serve_one(app)
    switch = begun(wrap(app))
    assert switch.lane is None
    assert not switch.is_on()
    assert not switch.is_free()
    assert lines == [f"INFO fast lane: off, because gunicorn serves {named} and not the Flask app"]


def test_a_server_without_sse_says_nothing(lines: list[str]) -> None:
    switch = LaneSwitch(worker_of(), Flask("tests"))
    switch.begin(has_sse=False, is_told=True)
    assert not switch.is_on()
    assert lines == []


class OwnLog(Logger):  # type: ignore[misc]
    def access(self, *_: Any) -> None:
        """Count the requests, as statsd does."""


class OwnWorker(Worker):
    def handle_request(self, *_: Any) -> None:
        """Serve it."""


@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        ({"accesslog": "-"}, "gunicorn's access log is on"),
        ({"loglevel": "debug"}, "gunicorn logs each request at the level debug"),
        ({"log": OwnLog}, "gunicorn's log is a tests.test_server_lane_switch.OwnLog"),
        ({"pre_request": lambda _worker, _request: None}, "gunicorn has a pre_request hook"),
        ({"post_request": lambda _worker, _request, _environ, _response: None}, "gunicorn has a post_request hook"),
        ({"certfile": "/dev/null"}, "gunicorn ends TLS"),
        ({"proxy_protocol": "auto"}, "gunicorn reads the PROXY protocol"),
        ({"protocol": "uwsgi"}, "gunicorn speaks another protocol than HTTP/1.1"),
        ({"http2_cleartext": "upgrade", "http_protocols": "h1,h2"}, "gunicorn speaks another protocol than HTTP/1.1"),
        (
            {"kind": OwnWorker},
            "the worker is a tests.test_server_lane_switch.OwnWorker with a method handle_request of its own",
        ),
    ],
)
def test_what_gunicorn_does_with_each_request_needs_a_greenlet_but_not_flask(
    make_app: MakeApp, lines: list[str], worker: dict[str, Any], reason: str
) -> None:
    app = make_app()
    serve_one(app)
    switch = begun(app, worker_of(**worker))
    assert switch.is_on()
    assert not switch.is_free()
    assert lines[-1] == f"INFO fast lane: on, but each request has a greenlet, because {reason}"


@pytest.mark.parametrize(
    ("cls", "name"),
    [(AsyncWorker, "handle_request"), (AsyncWorker, "handle"), (GeventWorker, "handle_request"), (Logger, "access")],
)
def test_a_method_of_gunicorn_that_was_replaced_needs_a_greenlet(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, lines: list[str], cls: type, name: str
) -> None:
    original = getattr(cls, name)
    monkeypatch.setattr(cls, name, functools.wraps(original)(lambda *arguments: original(*arguments)))
    assert not begun(make_app()).is_free()
    assert lines[0].endswith(f"because gunicorn's own {cls.__name__}.{name} was replaced")


def test_a_script_name_in_the_environment_needs_a_greenlet(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setenv("SCRIPT_NAME", "/x")
    assert not begun(make_app()).is_free()
    assert lines == ["INFO fast lane: on, but each request has a greenlet, because SCRIPT_NAME is set"]


@pytest.mark.parametrize("is_early", [True, False])
def test_a_callable_that_takes_the_place_of_the_worker_s_needs_a_greenlet(make_app: MakeApp, is_early: bool) -> None:
    app, worker = make_app(), worker_of()
    serve_one(app)
    switch = LaneSwitch(worker, app)
    if is_early:  # as in gunicorn's hook post_worker_init
        worker.wsgi = ProxyFix(worker.wsgi)
    switch.begin(has_sse=True, is_told=True)
    assert switch.is_free() is not is_early
    worker.wsgi = ProxyFix(worker.wsgi)
    assert not switch.is_free()
    assert switch.is_on(), "the new callable may call the old one"


def test_each_change_is_logged_once(make_app: MakeApp, lines: list[str]) -> None:
    app = make_app()
    serve_one(app)
    switch = begun(app)
    app.config["TESTING"] = True
    assert [switch.is_on() for _ in range(3)] == [False] * 3
    app.config["TESTING"] = False
    assert [switch.is_on() for _ in range(3)] == [True] * 3
    assert lines == [
        "INFO fast lane: on",
        "WARNING fast lane: off from now on, because TESTING is set",
        "WARNING fast lane: on from now on",
    ]


def test_an_app_that_changes_all_the_time_does_not_fill_the_log(make_app: MakeApp, lines: list[str]) -> None:
    app = make_app()
    serve_one(app)
    switch = begun(app)
    for count in range(100):
        app.config["TESTING"] = count % 2 == 0
        switch.is_on()
    assert len(lines) == 3


def test_on_warns_of_what_requests_pass_by_and_of_what_holds_it_off_all_the_same(
    make_app: MakeApp, lines: list[str]
) -> None:
    app = make_app(SSE_LANE="on")
    app.before_request(serve_one)
    app.teardown_appcontext(begun)
    begun(app)
    app.config["TESTING"] = True
    begun(app)
    assert lines[0] == "INFO fast lane: on"
    assert lines[1].startswith("WARNING fast lane: SSE_LANE=on, so requests pass by what could see them: ")
    assert "the before_request hook serve_one (" in lines[1]
    assert "the teardown_appcontext hook begun (" in lines[1]
    assert lines[2] == "WARNING fast lane: off, because TESTING is set"


def test_the_reasons_are_all_told(lines: list[str]) -> None:
    app = Flask("tests")
    app.config["SSE_PUBLIC"] = "*"
    SSE(app)
    app.before_request(serve_one)
    app.config["TESTING"] = True
    begun(app)
    assert lines[0].startswith(
        "INFO fast lane: off, because TESTING is set; the app has the before_request hook serve_one"
    )
