"""Requests may go past Flask only if the app would not have seen them. Each case here shows that the app sees one."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import flask.app
import flask.ctx
import pytest
from flask import Blueprint, Flask, Request, Response, signals
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from flask_cors import CORS
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import Rule

import app as start
from sse import SSE
from sse.web import lane_rule
from sse.web.answering import Answering
from sse.web.lane_rule import FIRST_REQUEST, LaneRule
from tests.conftest import MakeApp

POLL = "/sse/poll?channel=a&timeout=0"
METHODS = [name for name in lane_rule._OF_AN_APP if hasattr(Flask, name)]
Seen = list[object]
Install = Callable[[Flask, Seen], object]


def rule_of(app: Flask) -> LaneRule:
    rule = app.extensions["sse.lane"].rule
    assert isinstance(rule, LaneRule)
    return rule


def serve_one(app: Flask) -> None:
    assert app.test_client().get("/sse/health").status_code == 200


def why_off(app: Flask) -> str:
    serve_one(app)
    return rule_of(app).why_off()


def noting(seen: Seen, *back: Any) -> Callable[..., Any]:
    """Return a function that notes each call, and returns its first argument if it is to give it `back`."""

    def note(*arguments: Any, **_: object) -> Any:
        seen.append(arguments)
        return arguments[0] if back else None

    return note


def connect(name: str, of_all: bool = False) -> Install:
    def install(app: Flask, seen: Seen) -> None:
        receiver = noting(seen)
        getattr(signals, name).connect(receiver, *(() if of_all else (app,)), weak=False)

    return install


@pytest.fixture(autouse=True)
def no_receivers_left() -> Iterator[None]:
    yield
    for name in lane_rule._SIGNAL_NAMES:
        getattr(signals, name)._clear_state()


class OwnSessions(SecureCookieSessionInterface):
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        self._seen.append(request)
        return super().open_session(app, request)


# What SSE_LANE=on waives: by name, what is installed, and the reason that is given.
WAIVED: dict[str, tuple[Install, str]] = {
    "before_request": (lambda app, seen: app.before_request(noting(seen)), "before_request hook noting"),
    "after_request": (lambda app, seen: app.after_request(noting(seen, 1)), "after_request hook noting"),
    "teardown_request": (lambda app, seen: app.teardown_request(noting(seen)), "teardown_request hook noting"),
    "url_value_preprocessor": (lambda app, seen: app.url_value_preprocessor(noting(seen)), "url_value_preprocessor"),
    "teardown_appcontext": (lambda app, seen: app.teardown_appcontext(noting(seen)), "teardown_appcontext hook noting"),
    "before_request of the blueprint": (
        lambda app, seen: app.before_request_funcs["sse"].append(noting(seen)),
        "before_request hook",
    ),
    "after_request of the blueprint": (
        lambda app, seen: app.after_request_funcs["sse"].append(noting(seen, 1)),
        "after_request hook",
    ),
    "teardown_request of the blueprint": (
        lambda app, seen: app.teardown_request_funcs["sse"].append(noting(seen)),
        "teardown_request hook",
    ),
    "url_value_preprocessor of the blueprint": (
        lambda app, seen: app.url_value_preprocessors["sse"].append(noting(seen)),
        "url_value_preprocessor hook",
    ),
    "a partial": (lambda app, seen: app.before_request(functools.partial(noting(seen))), "hook noting.<locals>.note ("),
    "sessions of its own": (lambda app, seen: setattr(app, "session_interface", OwnSessions(seen)), "OwnSessions"),
    **{
        f"{name} of {'all apps' if of_all else 'the app'}": (connect(name, of_all), f"receives the signal {name}")
        for name in lane_rule._SIGNAL_NAMES
        if name != "got_request_exception"
        for of_all in (False, True)
    },
}

# The same for what sees a request only if something fails in it.
ON_ERRORS: dict[str, tuple[Install, str]] = {
    "500": (lambda app, seen: app.register_error_handler(500, noting(seen, 1)), "for 500"),
    "Exception": (lambda app, seen: app.register_error_handler(Exception, noting(seen, 1)), "for Exception"),
    "of the blueprint": (
        lambda app, seen: app.error_handler_spec["sse"][None].update({RuntimeError: noting(seen, 1)}),
        "for RuntimeError",
    ),
    "got_request_exception": (connect("got_request_exception"), "receives the signal got_request_exception"),
}


@pytest.mark.parametrize("case", WAIVED)
def test_a_hook_signal_or_session_of_the_app_sees_requests_so_none_goes_past_it(make_app: MakeApp, case: str) -> None:
    install, reason = WAIVED[case]
    app, seen = make_app(), Seen()
    install(app, seen)
    assert reason in why_off(app)
    seen.clear()
    assert app.test_client().get(POLL).status_code == 200
    assert seen


@pytest.mark.parametrize("case", ON_ERRORS)
def test_a_handler_of_errors_sees_requests_that_fail(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    install, reason = ON_ERRORS[case]
    app, seen = make_app(), Seen()
    install(app, seen)
    assert reason in why_off(app)

    def fail(*_: object) -> None:
        raise RuntimeError("a fault of the service")

    monkeypatch.setattr(Answering, "poll", fail)
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.test_client().get(POLL)
    assert seen


@pytest.mark.parametrize("case", [*WAIVED, *ON_ERRORS])
def test_with_on_requests_go_past_hooks_signals_sessions_and_handlers_and_each_is_named(
    make_app: MakeApp, case: str
) -> None:
    install, reason = {**WAIVED, **ON_ERRORS}[case]
    app = make_app(SSE_LANE="on")
    install(app, [])
    assert why_off(app) == ""
    assert rule_of(app).reasons == ()
    assert any(reason in text for text in rule_of(app).passed_by)


@pytest.mark.parametrize("error", [404, 413, HTTPException, NotFound, BaseException])
def test_an_error_handler_by_status_or_for_all_of_http_switches_it_off(make_app: MakeApp, error: Any) -> None:
    app = make_app()
    app.register_error_handler(error, lambda error: ("?", 500)) if error is not BaseException else (
        app.error_handler_spec[None][None].update({error: lambda error: ("?", 500)})
    )
    assert "the app has the error handler" in why_off(app)


# What no setting waives: it replaces a part of the way of a request, or changes what is answered.


def through(original: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
    def replaced(*arguments: Any, **options: Any) -> Any:
        seen.append(original)
        return original(*arguments, **options)

    return replaced


class Recording(Request):
    """A class of requests of an app."""


class Answer(Response):
    """A class of responses of an app."""


REPLACED: dict[str, tuple[Install, str]] = {
    "ProxyFix": (lambda app, _: setattr(app, "wsgi_app", ProxyFix(app.wsgi_app)), "app.wsgi_app is a .*ProxyFix"),
    "flask_cors": (lambda app, _: CORS(app), "app.handle_exception is .*flask_cors"),
    "a view": (
        lambda app, seen: app.view_functions.update({"sse.poll": through(app.view_functions["sse.poll"], seen)}),
        "the view sse.poll is through.<locals>.replaced",
    ),
    "request_class": (lambda app, _: setattr(app, "request_class", Recording), "app.request_class is Recording"),
    "response_class": (lambda app, _: setattr(app, "response_class", Answer), "app.response_class is Answer"),
    "a route": (
        lambda app, _: app.add_url_rule("/sse/publish/special", "mine", str, methods=["POST"]),
        "a route of its own, /sse/publish/special",
    ),
    "host_matching": (lambda app, _: setattr(app.url_map, "host_matching", True), "by host or subdomain"),
    "subdomain_matching": (lambda app, _: setattr(app, "subdomain_matching", True), "by host or subdomain"),
    "DEBUG": (lambda app, _: app.config.update(DEBUG=True), "DEBUG is set"),
    "TESTING": (lambda app, _: app.config.update(TESTING=True), "TESTING is set"),
    "PROPAGATE_EXCEPTIONS": (lambda app, _: app.config.update(PROPAGATE_EXCEPTIONS=True), "PROPAGATE_EXCEPTIONS"),
    "TRAP_HTTP_EXCEPTIONS": (lambda app, _: app.config.update(TRAP_HTTP_EXCEPTIONS=True), "TRAP_HTTP_EXCEPTIONS"),
    "TRAP_BAD_REQUEST_ERRORS": (
        lambda app, _: app.config.update(TRAP_BAD_REQUEST_ERRORS=True),
        "TRAP_BAD_REQUEST_ERRORS is set",
    ),
    "TRUSTED_HOSTS": (lambda app, _: app.config.update(TRUSTED_HOSTS=["a.example"]), "TRUSTED_HOSTS is set"),
    "SERVER_NAME": (lambda app, _: app.config.update(SERVER_NAME="a.example"), "SERVER_NAME is set"),
    "MAX_CONTENT_LENGTH": (lambda app, _: app.config.update(MAX_CONTENT_LENGTH=0), "MAX_CONTENT_LENGTH is set"),
}


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize("case", REPLACED)
def test_what_stands_in_the_place_of_flask_or_changes_its_answers_switches_it_off(
    make_app: MakeApp, case: str, mode: str
) -> None:
    install, reason = REPLACED[case]
    app = make_app(SSE_LANE=mode)
    install(app, [])
    assert any(re.search(reason, found) for found in rule_of(app).look())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_the_app_of_a_class_of_its_own_or_of_flask_itself_that_is_replaced_switches_it_off(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    replaced = through(getattr(Flask, name), [])
    own = type("Own", (Flask,), {name: replaced})("tests")
    SSE(own)
    assert rule_of(own).look() == (f"a method of Own is {lane_rule._shown(replaced)}",)
    app = make_app()
    assert rule_of(app).look() == ()
    monkeypatch.setattr(Flask, name, functools.wraps(getattr(Flask, name))(replaced))
    assert "a method of Flask is" in rule_of(app).look()[0]
    monkeypatch.undo()
    assert rule_of(app).look() == ()
    setattr(app, name, replaced)
    assert rule_of(app).look()[0].startswith(f"app.{name} is through.<locals>.replaced")


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (flask.ctx.RequestContext, "push"),
        (flask.ctx.AppContext, "pop"),
        (Request, "__init__"),
        (Response, "__call__"),
        (SecureCookieSessionInterface, "save_session"),
    ],
)
def test_a_class_of_flask_that_was_changed_switches_it_off_and_on_again(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, cls: type, name: str
) -> None:
    app = make_app()
    assert why_off(app) == ""
    monkeypatch.setattr(cls, name, through(getattr(cls, name), []))
    assert rule_of(app).why_off().startswith(f"a method of {cls.__name__} is through.<locals>.replaced")
    monkeypatch.undo()
    assert rule_of(app).why_off() == ""


def test_a_subclass_that_changes_nothing_on_the_way_of_a_request_leaves_it_on() -> None:
    class Own(Flask):
        def select_jinja_autoescape(self, filename: str | None) -> bool:
            return True

    app = Own("tests")
    SSE(app)
    assert why_off(app) == ""


def test_a_route_of_the_app_before_ours_switches_it_off() -> None:
    app = Flask("tests")
    app.add_url_rule("/sse/poll", "mine", lambda: "mine")
    SSE(app)
    assert app.test_client().get(POLL).text == "mine"
    assert rule_of(app).why_off() == "the app has a route of its own, /sse/poll"


def test_a_redirection_of_the_app_before_a_route_of_ours_switches_it_off() -> None:
    app = Flask("tests")
    app.url_map.add(Rule("/sse/poll", endpoint="mine", redirect_to="/other"))
    SSE(app)
    assert app.test_client().get(POLL).status_code == 308
    assert rule_of(app).why_off() == "the app routes /sse/poll elsewhere (RequestRedirect)"


def test_an_sse_whose_routes_another_one_has_is_off(make_app: MakeApp) -> None:
    app = make_app()
    SSE().init_app(app, blueprint="second")
    assert "a route of its own, /sse/stream" in why_off(app)


# What leaves it on


def second(app: Flask) -> None:
    app.config["SSE_PREFIX"] = "/push"
    SSE().init_app(app, blueprint="second")


def of_pages(app: Flask) -> None:
    pages = Blueprint("pages", __name__)
    pages.before_request(lambda: None)
    pages.after_request(lambda response: response)
    pages.teardown_request(lambda _: None)
    pages.url_value_preprocessor(lambda *_: None)
    pages.register_error_handler(404, lambda _: ("?", 404))
    pages.add_url_rule("/", "index", lambda: "page")
    app.register_blueprint(pages)


ON: dict[str, Callable[[Flask], object]] = {
    "nothing": lambda _: None,
    "hooks of a blueprint of pages": of_pages,
    "an error of its own": lambda app: app.register_error_handler(ZeroDivisionError, lambda _: ("?", 500)),
    "a context processor": lambda app: app.context_processor(dict),
    "url_defaults": lambda app: app.url_defaults(lambda *_: None),
    "a signal about templates": lambda app: signals.template_rendered.connect(print, app),
    "a signal of another app": lambda _: signals.request_started.connect(print, Flask("another")),
    "a key for sessions": lambda app: app.config.update(SECRET_KEY="of this test"),
    "another name of a route": lambda app: app.add_url_rule("/healthz", "healthz", app.view_functions["sse.health"]),
    "a second SSE": second,
}


@pytest.mark.parametrize("case", ON)
def test_what_sees_no_request_of_ours_leaves_it_on(make_app: MakeApp, case: str) -> None:
    app = make_app()
    ON[case](app)
    assert why_off(app) == ""


def test_the_app_of_the_checkout_has_it_on_and_the_demo_does_not() -> None:
    app = start.create_app({"DEMO": False, "SSE_PUBLIC": "*", "SSE_REDIS_URL": None})
    assert why_off(app) == ""
    demo = start.create_app({"DEMO": True, "SSE_PUBLIC": "*", "SSE_REDIS_URL": None})
    assert "before_request hook Breaker._enter" in "".join(rule_of(demo).look())
    for made in (app, demo):
        made.extensions["sse"].close()


# When it changes


def test_the_first_request_goes_through_flask(make_app: MakeApp) -> None:
    app = make_app()
    assert rule_of(app).why_off() == FIRST_REQUEST
    assert rule_of(app).look() == ()
    serve_one(app)
    assert rule_of(app).why_off() == ""


def late_hook(app: Flask, seen: Seen) -> None:
    app.before_request_funcs.setdefault(None, []).append(noting(seen))


def replaced_hook(app: Flask, seen: Seen) -> None:
    app.after_request_funcs[None][0] = noting(seen, 1)


LATE: dict[str, tuple[Install, str]] = {
    "a hook": (late_hook, "before_request hook"),
    "one of our hooks is replaced": (replaced_hook, "after_request hook"),
    "a table of hooks is replaced": (
        lambda app, seen: setattr(app, "before_request_funcs", {None: [noting(seen)]}),
        "hook",
    ),
    "a signal": (connect("request_started"), "request_started"),
    "a signal of all apps": (connect("request_finished", of_all=True), "request_finished"),
    "a middleware": (lambda app, seen: setattr(app, "wsgi_app", through(app.wsgi_app, seen)), "app.wsgi_app is"),
    "sessions": (lambda app, seen: setattr(app, "session_interface", OwnSessions(seen)), "OwnSessions"),
    "an attribute of the sessions": (lambda app, _: setattr(app.session_interface, "salt", "s"), "sessions are those"),
    "a class of requests": (lambda app, _: setattr(app, "request_class", Recording), "request_class"),
    "a view": (REPLACED["a view"][0], "the view"),
    "a route": (
        lambda app, _: app.url_map.add(Rule("/sse/publish/special", endpoint="sse.health")),
        "a route of its own",
    ),
    "a setting": (lambda app, _: app.config.update(TESTING=True), "TESTING"),
    "an error handler": (
        lambda app, seen: app.error_handler_spec[None][404].update({NotFound: noting(seen, 1)}),
        "error handler",
    ),
    "one of our error handlers is replaced": (
        lambda app, seen: app.error_handler_spec["sse"][None].update({HTTPException: noting(seen, 1)}),
        "error handler",
    ),
    "a teardown of the context": (lambda app, seen: app.teardown_appcontext_funcs.append(noting(seen)), "teardown"),
}


@pytest.mark.parametrize("case", LATE)
def test_a_late_change_is_seen_at_once(make_app: MakeApp, case: str) -> None:
    install, reason = LATE[case]
    app = make_app()
    app.session_interface = SecureCookieSessionInterface()
    assert why_off(app) == ""
    install(app, [])
    assert reason in rule_of(app).why_off()
    assert reason in rule_of(app).why_off(), "also when nothing has changed since"


def test_an_app_that_does_not_change_is_not_judged_again(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app()
    client = app.test_client()
    for path in (POLL, "/sse/nothing", "/nothing", "/sse/poll"):  # Flask notes in its tables for which errors it looked
        client.get(path)
    assert rule_of(app).why_off() == ""
    judged: Seen = []
    monkeypatch.setattr(LaneRule, "_judge", judged.append)
    for path in (POLL, "/sse/nothing", "/nothing", "/sse/poll"):
        client.get(path)
        assert rule_of(app).why_off() == ""
    assert judged == []


def test_what_goes_again_switches_it_on_again(make_app: MakeApp) -> None:
    app = make_app()
    hook = noting([])
    assert why_off(app) == ""
    app.before_request_funcs.setdefault(None, []).append(hook)
    assert rule_of(app).why_off()
    app.before_request_funcs[None].remove(hook)
    assert rule_of(app).why_off() == ""


def test_an_app_that_cannot_be_examined_has_it_off(make_app: MakeApp) -> None:
    app = make_app()
    assert why_off(app) == ""
    del app.config["SECRET_KEY"]
    assert rule_of(app).why_off() == "this app cannot be examined (KeyError: 'SECRET_KEY')"
    app.config["SECRET_KEY"] = None
    assert rule_of(app).why_off() == ""


def test_an_app_with_a_part_that_fails_when_it_is_compared_has_it_off(make_app: MakeApp) -> None:
    class Failing:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no comparison")

        def __call__(self) -> None:
            """Do nothing."""

    app = make_app()
    app.before_request(Failing())
    assert why_off(app) == "this app cannot be examined (RuntimeError: no comparison)"


def test_a_session_cookie_is_for_flask_which_may_refresh_it(make_app: MakeApp) -> None:
    app = make_app()
    assert (why_off(app), rule_of(app).session_cookie) == ("", "")
    app.config["SECRET_KEY"] = "of this test"
    assert (rule_of(app).why_off(), rule_of(app).session_cookie) == ("", "session")
    app.config["SESSION_COOKIE_NAME"] = "mine"
    assert (rule_of(app).why_off(), rule_of(app).session_cookie) == ("", "mine")
    app.config["SESSION_REFRESH_EACH_REQUEST"] = False
    assert (rule_of(app).why_off(), rule_of(app).session_cookie) == ("", "")
    waiving = make_app(SSE_LANE="on", SECRET_KEY="of this test")
    assert (why_off(waiving), rule_of(waiving).session_cookie) == ("", "")


def test_the_secret_of_the_app_is_not_kept(make_app: MakeApp) -> None:
    app = make_app(SECRET_KEY="hush, hush")
    assert why_off(app) == ""
    assert "hush" not in repr(vars(rule_of(app)))


def test_off_is_off(make_app: MakeApp) -> None:
    app = make_app(SSE_LANE="off")
    assert why_off(app) == "SSE_LANE is off"
    assert rule_of(app).look() == ("SSE_LANE is off",)


@pytest.mark.parametrize(
    "method",
    [
        through(Flask.wsgi_app, []),
        functools.wraps(Flask.wsgi_app)(through(Flask.wsgi_app, [])),
        functools.partial(Flask.wsgi_app),
        Flask("tests").wsgi_app,
        type("Wrapper", (), {"__call__": lambda *_: None, "__code__": Flask.wsgi_app.__code__})(),
        eval(compile("lambda *_: None", "elsewhere", "eval"), vars(flask.app)),
    ],
)
def test_a_function_that_is_not_flask_s_own_is_recognised(method: object) -> None:
    assert lane_rule._is_original(Flask.wsgi_app)
    assert not lane_rule._is_original(method)
