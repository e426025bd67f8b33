"""The demonstration that DEMO=1 adds to the service: a page of this machine's live data.

`sampler` publishes the machine's load each second, `breaker` serves the buttons that break connections, and `static/`
has the page. Nothing else needs this folder.
"""

from __future__ import annotations

from flask import Blueprint, Flask, Response

from demo.breaker import Breaker
from demo.sampler import Sampler
from sse import SSE


def add_demo(app: Flask, pages: Blueprint, sse: SSE) -> None:
    """Add the page at `/`, its files, its buttons and its sampler to an app, and to the blueprint of its pages."""
    sampler = Sampler(app, sse)
    breaker = Breaker(app, sse)
    app.extensions["demo"] = (sampler, breaker)
    demo = Blueprint("demo", __name__, static_folder="static", static_url_path="/demo/static")

    # At a request: in the serving process, after any fork, and never in a command such as `flask sse publish`.
    @app.before_request
    def start_sampler() -> None:
        sampler.start()

    @demo.get("/")
    def index() -> Response:
        return breaker.know(demo.send_static_file("index.html"))

    for action in (breaker.cut, breaker.sleep, breaker.buffer):
        demo.add_url_rule(f"/demo/{action.__name__}", view_func=action, methods=["POST"])
    pages.register_blueprint(demo)
