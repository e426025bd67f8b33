"""The service, with pages on its own origin and with channels that one user may read."""

from __future__ import annotations

from flask import Flask, Response, request, send_from_directory

from sse import SSE
from tests.browser.origin import PAGES

application = Flask(__name__)
sse = SSE(application)
application.add_url_rule("/healthz", "healthz", application.view_functions["sse.health"])


@sse.authorize
def may_read(channel: str) -> bool:
    """Let only NAME read `user/NAME/...`. A token or a cookie names the user."""
    return request.args.get("token", request.cookies.get("user", "")) == channel.split("/")[1]


@application.get("/pages/<path:name>")
def page(name: str) -> Response:
    return send_from_directory(PAGES, name)


@application.get("/subscribers")
def subscribers() -> dict[str, int]:
    hub = application.extensions["sse"].hub
    return {"subscribers": hub.subscribers, "channels": hub.channels}
