"""An app with presence: the query names the reader, and a file has the calls of the app's functions."""

from __future__ import annotations

import os

from flask import Flask, Response, request

from sse import SSE

app = application = Flask(__name__)
sse = SSE(app)


def note(*words: str) -> None:
    """Append a line. One short write of O_APPEND is not mixed with those of other workers."""
    file = os.open(os.environ["CALLS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{' '.join(words)}\n".encode())
    os.close(file)


@sse.identify
def reader() -> str | None:
    return request.args.get("reader")


@sse.joined("room/<id>")
def joined(id: str, sub: str) -> None:
    note("joined", id, sub)


@sse.left("room/<id>")
def left(id: str, sub: str) -> None:
    note("left", id, sub)


@app.after_request
def name_worker(response: Response) -> Response:
    response.headers["X-Worker"] = str(os.getpid())
    return response
