"""An app with a source that notes each call of its upstream in the file UPSTREAM_LOG, by the machine's monotonic clock.

A line is `seconds pid runner what channel`. Each answer names its worker.
"""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections.abc import Iterator

from flask import Flask, Response

from sse import SSE

LINGER = 2
EVERY = 0.2

application = Flask(__name__)
sse = SSE(application)
_log = os.open(os.environ["UPSTREAM_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(*parts: object) -> None:
    os.write(_log, " ".join(map(str, (time.monotonic(), os.getpid(), *parts))).encode() + b"\n")


@sse.source("prices/<symbol>", linger=LINGER)
def prices(symbol: str) -> Iterator[object]:
    runner = secrets.token_hex(6)
    try:
        while True:
            note(runner, "call", symbol)
            yield {"runner": runner}
            time.sleep(EVERY)
    finally:
        note(runner, "finally", symbol)


@sse.source("slow/<symbol>", linger=LINGER)
def slow(symbol: str) -> Iterator[object]:
    runner = secrets.token_hex(6)
    try:
        note(runner, "call", symbol)
        yield {"runner": runner}
        time.sleep(3600)
    finally:
        note(runner, "finally", symbol)


@sse.source("blocking/<symbol>", interval=60, linger=LINGER)
def blocking(symbol: str) -> object:
    end = time.monotonic() + 2
    while time.monotonic() < end:  # as a library that does not wait cooperatively
        pass
    return symbol


@sse.source("eager/<path:value>")
def eager(value: str) -> Iterator[object]:
    while True:  # as over a queue that is empty, without a wait
        yield None if value == "nothing" else value


@application.get("/eager")
def run_eagerly() -> dict[str, bool]:
    return {"began": sse.run("text", itertools.repeat(""))}


@application.after_request
def name_worker(response: Response) -> Response:
    response.headers["X-Worker"] = str(os.getpid())
    return response
