"""The inspected service in an app that takes its time.

`?linger=S` holds an answer up, as a session's store would; after `/hold?seconds=S`, so is each reading of the store.
`/jump?seconds=S` moves its clock.
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
