"""The inspected service in an app that takes its time: `?linger=S` holds an answer up, as a session's store would."""

from __future__ import annotations

import time

from flask import Response, request

from tests.live.apps.inspected import application

__all__ = ["application"]


@application.get("/slow")
def slow() -> str:
    time.sleep(float(request.args["seconds"]))
    return "done"


@application.after_request
def linger(response: Response) -> Response:
    time.sleep(float(request.args.get("linger", 0)))
    return response
