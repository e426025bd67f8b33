"""The inspected service in an app that uses threads, some of which gevent does not know.

`/in/KIND/WORK?threads=N` does some work in N threads at once and returns the results. KIND is `raw` (real threads, as
of a C library), `pool` (gevent's threadpool) or `green`. The other parameters are passed to the work.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import gevent
from flask import Flask, request
from flask.testing import FlaskClient
from gevent.monkey import get_original

from sse import SSE, Stopped

start_real_thread = get_original("_thread", "start_new_thread")
really_sleep = get_original("time", "sleep")

application = Flask(__name__)
sse = SSE(application)
application.add_url_rule("/healthz", "healthz", lambda: "ok")
# Flask would import it in the first thread that asks for a client. Under gevent, an import takes a lock that a real
# thread can wait for in vain.
application.test_client_class = FlaskClient


def publish(number: int, given: Mapping[str, str]) -> list[str]:
    channel, key = given["channel"], given.get("key")
    return [sse.publish(channel, [number, count], idempotency_key=key) for count in range(int(given["each"]))]


def publish_for_ever(number: int, given: Mapping[str, str]) -> None:
    while True:
        sse.publish(given["channel"], number)


def revoke(number: int, given: Mapping[str, str]) -> None:
    sse.revoke(sub=given["sub"])


def ticket(number: int, given: Mapping[str, str]) -> str:
    return sse.ticket(["secret"], "ann")


def write(number: int, given: Mapping[str, str]) -> list[object]:
    channel = f"{given['channel']}/{number}"
    begun = sse.run(f"{channel}/run", (f"{count} " for count in range(100)))
    with sse.writing(channel) as out:
        for count in range(100):
            print(count, file=out)
        out.publish({"count": 100})
        out.flush()
        out.confirm()
    try:
        with sse.writing(channel, restart=True) as out:
            print("again", file=out)
            stopped = sse.stop(channel)
            out.flush()
    except Stopped as error:
        return [begun, stopped, type(error).__name__]
    return ["not stopped"]


def count(number: int, given: Mapping[str, str]) -> list[object]:
    return [sse.count(given["channel"]), sse.members(given["channel"])]


def listen(number: int, given: Mapping[str, str]) -> int:
    return application.test_client().get("/sse/poll?channel=news&timeout=0").status_code


def close(number: int, given: Mapping[str, str]) -> None:
    application.extensions["sse"].close()


WORK: dict[str, Callable[[int, Mapping[str, str]], Any]] = {
    work.__name__: work for work in (publish, publish_for_ever, revoke, ticket, write, count, listen, close)
}


def begin(kind: str, work: str, given: Mapping[str, str]) -> list[Any]:
    """Begin the work in all threads. The returned list gets the result of each."""
    outcomes: list[Any] = []

    def run(number: int) -> None:
        with application.app_context():
            try:
                outcomes.append(WORK[work](number, given))
            except Exception as error:
                outcomes.append(f"{type(error).__name__}: {error}")

    for number in range(int(given.get("threads", "1"))):
        if kind == "raw":
            start_real_thread(run, (number,))
        elif kind == "pool":
            gevent.get_hub().threadpool.spawn(run, number)
        else:
            gevent.spawn(run, number)
    return outcomes


def wait_for(outcomes: list[Any], count: int = 1) -> list[Any]:
    end = time.monotonic() + 20
    while len(outcomes) < count and time.monotonic() < end:
        time.sleep(0.01)
    return outcomes


@application.get("/in/<kind>/<work>")
def do(kind: str, work: str) -> list[Any]:
    outcomes = begin(kind, work, request.args.to_dict())
    return outcomes if work == "publish_for_ever" else wait_for(outcomes, int(request.args.get("threads", "1")))


@application.get("/blocked/<float:seconds>/<kind>/<work>")
def do_while_blocked(seconds: float, kind: str, work: str) -> dict[str, Any]:
    """Do the work while the server's own thread is blocked."""
    outcomes = begin(kind, work, request.args.to_dict())
    really_sleep(seconds)
    return {"meanwhile": list(outcomes), "in the end": wait_for(outcomes)}


@application.get("/by-signal/<work>")
def do_by_signal(work: str) -> list[Any]:
    """Do the work for each of 20 signals, as gevent hands them on.

    Each signal waits until the one before has been taken up: the kernel and gevent merge signals that nobody has
    taken up yet.
    """
    taken_up: list[None] = []
    outcomes: list[list[Any]] = []
    given = request.args.to_dict()

    def take_up() -> None:
        taken_up.append(None)
        outcomes.append(wait_for(begin("green", work, given)))

    def send() -> None:
        end = time.monotonic() + 20
        for count in range(1, 21):
            os.kill(os.getpid(), signal.SIGUSR2)
            while len(taken_up) < count and time.monotonic() < end:
                really_sleep(0.01)

    handler = gevent.signal_handler(signal.SIGUSR2, take_up)
    start_real_thread(send, ())
    end = time.monotonic() + 25
    while len(outcomes) < 20 and time.monotonic() < end:
        time.sleep(0.1)
    handler.cancel()
    return outcomes
