"""An app whose runs, sources and iterables only wait, so that `bench.work` can weigh them."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

from flask import Flask, Response, request
from gevent import Greenlet

from sse import SSE

app = Flask(__name__)
app.config["SSE_PUBLIC"] = "*"
sse = SSE(app)


def wait() -> Iterator[str]:
    yield "begun"
    time.sleep(3600)


@app.post("/runs/<int:number>")
def runs(number: int) -> dict[str, int]:
    """Begin runs that wait."""
    return {"begun": sum(sse.run(f"waiting/{each}", wait()) for each in range(number))}


@app.get("/run/<channel>")
def run(channel: str) -> Response:
    """Write a text, with `pause` seconds between its pieces, and follow it."""
    number, pause = int(request.args["number"]), float(request.args["pause"])

    def write() -> Iterator[str]:
        for _ in range(number):
            yield "token "
            if pause:
                time.sleep(pause)

    sse.run(channel, write())
    return sse.subscribe(channel)


@sse.source("polled/<name>", interval=60)
def polled(name: str) -> str:
    return name


@sse.source("pushed/<name>")
def pushed(name: str) -> Iterator[str]:  # noqa: ARG001 - the channel's name is not sent
    return wait()


@app.get("/iterable")
def iterable() -> Response:
    return sse.stream(wait())


@app.get("/greenlets")
def greenlets() -> dict[str, int]:
    """Count the greenlets that have begun and not ended."""
    gc.collect()
    return {"greenlets": sum(isinstance(found, Greenlet) and bool(found) for found in gc.get_objects())}
