"""The service, with a route `/change` after which another function answers polls, and then again the service's own.

The fast lane is off as long as the function is not the service's own.
"""

from __future__ import annotations

from flask.typing import ResponseReturnValue

from tests.live.apps.inspected import application

__all__ = ["application"]

_own = application.view_functions["sse.poll"]


def _others() -> ResponseReturnValue:
    answer: ResponseReturnValue = application.ensure_sync(_own)()
    return answer


@application.post("/change")
def change() -> str:
    views = application.view_functions
    views["sse.poll"] = _others if views["sse.poll"] is _own else _own
    return "changed"
