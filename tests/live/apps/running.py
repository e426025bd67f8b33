"""An app with runs of numbered words, which notes in the file NOTES when a generator begins, and when it is closed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from flask import Flask, request

from sse import SSE

application = Flask(__name__)
sse = SSE(application)


def note(what: str, channel: str) -> None:
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{what} {channel} {os.getpid()}\n")


def words(channel: str, count: int, every: float, delay: float, size: int) -> Iterator[str]:
    note("begun", channel)
    try:
        time.sleep(delay)
        for number in range(count):
            yield f"{number}{'.' * size} "
            time.sleep(every)
    finally:
        note("closed", channel)


@application.get("/run/<path:channel>")
def run(channel: str) -> dict[str, object]:
    given = request.args
    text = words(
        channel,
        given.get("count", 1_000_000, int),
        given.get("every", 0.05, float),
        given.get("delay", 0, float),
        given.get("size", 0, int),
    )
    return {"began": sse.run(channel, text, restart="restart" in given), "pid": os.getpid()}


@application.get("/stop/<path:channel>")
def stop(channel: str) -> dict[str, object]:
    return {"stopped": sse.stop(channel), "pid": os.getpid()}
