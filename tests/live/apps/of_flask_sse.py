"""A small app of flask-sse. WHICH in the environment has it use the package or this service: one import differs."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, abort, request, url_for

if os.environ["WHICH"] == "flask-sse":
    from flask_sse import sse
else:
    from sse.compat.flask_sse import sse

application = app = Flask(__name__)
app.config["REDIS_URL"] = os.environ["THEIR_REDIS"]


@sse.before_request
def guard() -> None:
    if request.args.get("channel") == "secret" and request.args.get("pass") != "word":
        abort(403)


app.register_blueprint(sse, url_prefix="/stream")


@app.get("/healthz")
def healthz() -> dict[str, Any]:
    return {"at": url_for("sse.stream"), "of": url_for("sse.stream", channel="users.social")}


@app.post("/send")
def send() -> str:
    values = request.get_json()
    sse.publish(values.pop("data"), **values)
    return "sent"
