"""The service in an app with faulty views. One sends less than its Content-Length says, one leaves its body unread.

When a stream ends, the app takes 0.3 s to note that in the file DONE.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from flask import Response, request

from tests.live.apps.inspected import application

__all__ = ["application"]


@application.get("/short")
def short() -> Response:
    return Response(iter([b"only so much"]), headers={"Content-Length": "100"})


@application.post("/ignore")
def ignore() -> str:
    return "ignored"


@application.after_request
def note_the_end(response: Response) -> Response:
    if "DONE" in os.environ and request.endpoint == "sse.stream":
        response.call_on_close(_note)
    return response


def _note() -> None:
    time.sleep(0.3)
    with Path(os.environ["DONE"]).open("a") as file:
        file.write("ended")
