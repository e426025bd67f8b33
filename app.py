"""The service as a Flask app: the extension, a health check, and headers for pages. Start your own app from it."""

import os
from collections.abc import Mapping

from flask import Blueprint, Flask, Response, abort, request
from werkzeug.routing import Map, Rule

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

sse = SSE()


def create_app(config: Mapping[str, object] | None = None) -> Flask:
    """Return the WSGI application. A setting in `config` wins over the one in the environment."""
    app = Flask(__name__, static_folder=None)  # static/ has the embed script, which the extension serves
    app.config.from_mapping(config)
    app.url_map.merge_slashes = False  # else a redirection would repeat a ticket in its query
    sse.init_app(app)  # this reads the settings, so they have to be in app.config by now
    app.cli.add_command(cli)  # flask sse …
    # The pages are a blueprint, so that its hooks do not see the streams: those need no Flask, see the fast lane in
    # docs/operating.md.
    pages = Blueprint("pages", __name__)
    pages.after_request(add_page_headers)
    pages.add_url_rule("/healthz", "healthz", app.view_functions["sse.health"])  # both are under SSE_PREFIX, too
    pages.add_url_rule("/readyz", "readyz", app.view_functions["sse.ready"])
    add_pages(app, pages)
    app.register_blueprint(pages)
    add_refusals(app)
    return app


def add_pages(app: Flask, pages: Blueprint) -> None:
    """Add the page at `/`. An app of your own adds its pages here, and needs neither DEMO nor demo/."""
    if str(app.config.get("DEMO", os.environ.get("DEMO", ""))).lower() in {"1", "true", "yes", "on"}:
        from demo import add_demo

        add_demo(app, pages, sse)
    else:
        pages.add_url_rule("/", "index", lambda: plain("Throughline is running. DEMO=1 shows a page here.\n"))


def add_page_headers(response: Response) -> Response:
    """Keep the pages out of frames, and other sites' scripts out of them. The extension sets its own headers."""
    response.headers.update(PAGE_HEADERS)
    return response


def add_refusals(app: Flask) -> None:
    """Have the blueprint of the pages refuse whatever no other rule takes, so that a 404 or 405 has its headers."""
    rules = [rule.empty() for rule in app.url_map.iter_rules()]
    known = Map(rules, converters=app.url_map.converters, merge_slashes=app.url_map.merge_slashes)

    def refuse(path: str) -> Response:  # noqa: ARG001 - the match looks at the whole request
        known.bind_to_environ(request.environ).match()  # raises what Flask would answer without this rule
        abort(404)

    app.url_map.add(Rule("/<path:path>", endpoint="pages.refuse"))  # for all methods
    app.view_functions["pages.refuse"] = refuse


def plain(text: str) -> Response:
    return Response(text, mimetype="text/plain")
