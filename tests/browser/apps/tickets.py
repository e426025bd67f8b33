"""The service, with a login. Its pages get a ticket at `/token`."""

from __future__ import annotations

import os
import time

from flask import Flask, Response, request, send_from_directory

from sse import SSE
from tests.browser.origin import PAGES

application = Flask(__name__)
sse = SSE(application)
application.add_url_rule("/healthz", "healthz", application.view_functions["sse.health"])
given: list[float] = []  # when a ticket was given
bare: list[str] = []  # requests for streams and polls that came without a ticket


@application.before_request
def note_who_brings_none() -> None:
    if request.path in ("/sse/stream", "/sse/poll") and not request.args.get("token"):
        bare.append(request.path)


@application.get("/token")
def token() -> dict[str, str] | tuple[dict[str, str], int]:
    if request.cookies.get("out"):
        return {"error": "log in first"}, 401
    given.append(time.time())
    lifetime = int(os.environ["TICKET_LIFETIME"])
    return {"token": sse.ticket(["user/ann"], sub="ann", lifetime=lifetime)}


@application.get("/noted")
def noted() -> dict[str, list[float] | list[str]]:
    return {"given": given, "bare": bare}


@application.get("/pages/<path:name>")
def page(name: str) -> Response:
    return send_from_directory(PAGES, name)
