"""The service with a view that chooses its channels, and with pages that a test writes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Flask, Response, request, send_from_directory

from sse import SSE
from tests.browser.origin import PAGES

HEAD = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'

application = Flask(__name__)
sse = SSE(application)
application.add_url_rule("/healthz", "healthz", application.view_functions["sse.health"])
written: dict[str, str] = {}
chosen: list[str] = []


@application.get("/pages/<path:name>")
def page(name: str) -> Response:
    return send_from_directory(PAGES, name)


@application.route("/written/<name>", methods=["GET", "PUT"])
def write(name: str) -> str:
    if request.method == "PUT":
        written[name] = request.get_data(as_text=True)
    return HEAD + written[name]


@application.put("/chosen")
def choose() -> dict[str, str]:
    chosen[:] = request.get_data(as_text=True).split()
    return {}


@sse.source("score/<name>")
def score(name: str) -> Iterator[int]:
    """Give one number, and fail when the test says so."""
    yield 1
    while "down" not in chosen:
        time.sleep(0.1)
    raise RuntimeError("the upstream is away")


@application.get("/inbox/events")
def inbox() -> Response:
    return sse.subscribe(*chosen)
