"""The service: Flask, the SSE extension, a health check and, where DEMO is set, a page of this machine's live data."""

import os
from collections.abc import Mapping

from flask import Flask, Response, request

from sse import SSE
from sse.cli import cli

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(config: Mapping[str, object] | None = None) -> Flask:
    """Give the WSGI application; `config` goes before the environment's SSE_* and DEMO."""
    app = Flask(__name__, static_folder=None)
    app.config.from_mapping(config)
    sse = SSE()
    sse.init_app(app)
    app.cli.add_command(cli)
    app.add_url_rule("/healthz", "healthz", healthz)
    app.url_map.merge_slashes = False  # no redirection, which would repeat a ticket in the query
    app.after_request(add_page_headers)
    if is_on(app.config.get("DEMO", os.environ.get("DEMO", ""))):
        from demo import add_demo  # only here, so that a copy of this file needs no demo

        add_demo(app, sse)
    else:
        app.add_url_rule("/", "index", lambda: plain("Throughline is running. DEMO=1 shows a page here.\n"))
    return app


def add_page_headers(response: Response) -> Response:
    if request.blueprint != "sse":  # which has its own
        response.headers.update(PAGE_HEADERS)
    return response


def healthz() -> Response:
    response = plain("ok")
    response.headers["Cache-Control"] = "no-store"
    return response


def plain(text: str) -> Response:
    return Response(text, mimetype="text/plain")


def is_on(value: object) -> bool:
    return str(value).lower() in {"1", "true", "yes", "on"}
