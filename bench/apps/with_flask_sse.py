"""flask-sse, as its own quick start has it."""

import os

from flask import Flask, request
from flask_sse import sse

app = Flask(__name__)
app.config["REDIS_URL"] = os.environ["REDIS_URL"]
app.register_blueprint(sse, url_prefix="/stream")


@app.post("/publish")
def publish() -> tuple[str, int]:
    for data in request.get_json():
        sse.publish(data)
    return "", 201


@app.get("/healthz")
def healthz() -> str:
    return "ok"
