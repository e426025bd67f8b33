"""Apps that see requests in different ways. Each marks the answers to the requests that it has seen by X-Seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, Response, request_finished, session
from werkzeug.middleware.proxy_fix import ProxyFix

from sse import SSE


class Marking(Flask):
    def process_response(self, response: Response) -> Response:
        return mark(super().process_response(response))


class Middleware:
    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            return start_response(status, [*headers, ("X-Seen", "1")], *error)

        body: Iterable[bytes] = self._app(environ, start)
        return body


def mark(response: Response, **_: Any) -> Response:
    response.headers["X-Seen"] = "1"
    return response


def mark_sent(_: Flask, response: Response) -> None:
    mark(response)


def decorated(view: Callable[..., Response]) -> Callable[..., Response]:
    return lambda **values: mark(view(**values))


def refresh(user: str) -> str:
    session.permanent = True
    session["user"] = user
    return user


def make(way: str) -> Any:
    """Return an app for gunicorn that sees requests in this way."""
    app = (Marking if way == "class" else Flask)(__name__)
    app.secret_key = "of this test alone" if way == "session" else None
    SSE(app)
    app.add_url_rule("/healthz", "healthz", lambda: "ok")
    app.add_url_rule("/late", "late", lambda: f"{app.after_request_funcs.setdefault(None, []).append(mark)}")
    app.add_url_rule("/login/<user>", "login", refresh)
    if way == "hook":
        app.after_request(mark)
    elif way == "signal":
        request_finished.connect(mark_sent, app)
    elif way == "view":
        for name in ("sse.poll", "sse.stream", "sse.publish_raw"):
            app.view_functions[name] = decorated(app.view_functions[name])
    elif way == "inner middleware":
        app.wsgi_app = Middleware(app.wsgi_app)  # type: ignore[method-assign]
    elif way == "middleware":
        return Middleware(ProxyFix(app))
    return app
