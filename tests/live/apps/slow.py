"""The inspected service in a slow app.

`?linger=S` delays the response by S seconds, as a session store might. After `/hold?seconds=S`, each read of the store
takes S seconds. `/jump?seconds=S` moves the app's clock.
"""

from __future__ import annotations

import time
from typing import Any

from flask import Response, request

from tests.live.apps.inspected import application

__all__ = ["application"]


@application.get("/slow")
def slow() -> str:
    time.sleep(float(request.args["seconds"]))
    return "done"


@application.get("/hold")
def hold() -> str:
    seconds = float(request.args["seconds"])
    store = application.extensions["sse"].hub.reader._store
    read = store.read

    def read_slowly(*args: Any) -> Any:
        time.sleep(seconds)
        return read(*args)

    store.read = read_slowly
    return "held"


@application.get("/jump")
def jump() -> str:
    ahead, real = float(request.args["seconds"]), time.time
    time.time = lambda: real() + ahead
    return "jumped"


@application.after_request
def linger(response: Response) -> Response:
    time.sleep(float(request.args.get("linger", 0)))
    return response
