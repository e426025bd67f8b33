"""The service for the framework tests. It reports each request that it gets to the tests."""

from __future__ import annotations

from flask import Flask, request

from sse import SSE

application = Flask(__name__)
sse = SSE(application)
application.add_url_rule("/healthz", "healthz", application.view_functions["sse.health"])
asked: list[tuple[str, str, str]] = []  # the method, the path, and what a preflight asks to be allowed


@application.before_request
def note() -> None:
    if request.path.startswith("/sse/"):
        asked.append((request.method, request.path, request.headers.get("Access-Control-Request-Headers", "")))


@application.get("/asked")
def tell() -> dict[str, object]:
    """Return the requests since the last call, and how many subscribers there are now."""
    told = asked.copy()
    asked.clear()
    return {"asked": told, "subscribers": application.extensions["sse"].hub.subscribers}
