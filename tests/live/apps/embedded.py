"""Apps in which the service is wrapped, mounted or nested in several ways, or of which there are two, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from sse import SSE

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def made(**config: object) -> Flask:
    """Return an app with SSE that shows what its worker has set up."""
    app = Flask("around")
    app.config.update(config)
    SSE(app)

    @app.get("/told")
    def told() -> dict[str, object]:
        service = app.extensions["sse"]
        return {"most": service.hub.max_subscribers, "admits": service.admit is not None}

    return app


def plain() -> Application:
    return made()


def inside() -> Application:
    app = made()
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    return app


def closure() -> Application:
    app = made()

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return app(environ, start_response)

    return application


def function() -> Application:
    return partial(_through, made())


def _through(app: Application, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    return app(environ, start_response)


class Slotted:
    """A wrapper with no attribute that leads to the wrapped app."""

    __slots__ = ("__inner",)

    def __init__(self, inner: Application) -> None:
        self.__inner = inner

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return self.__inner(environ, start_response)


def instance() -> Application:
    return Slotted(ProxyFix(made()))


class Bodies(Slotted):
    """A wrapper that wraps each body too, as middleware for metrics does. A stream then keeps its greenlet."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        yield from super().__call__(environ, start_response)


def bodies() -> Application:
    return Bodies(made())


def mounted() -> Application:
    return DispatcherMiddleware(Flask("front"), {"/there": made()})


def two() -> Application:
    return DispatcherMiddleware(made(), {"/there": made()})


def two_within() -> Application:
    app = made()
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/there": made()})  # type: ignore[method-assign]
    return app


def none() -> Application:
    app = Flask("none")
    app.add_url_rule("/", "index", lambda: "no SSE here")
    return app


def late() -> Application:
    apps: list[Flask] = []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not apps:
            apps.append(made())
        return apps[0](environ, start_response)

    return application
