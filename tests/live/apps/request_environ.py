"""The inspected service, with a route `/told`, and all paths below it, that shows the WSGI environ of the request."""

from __future__ import annotations

from flask import request

from tests.live.apps.inspected import application

__all__ = ["application"]


@application.get("/told")
@application.get("/told/<path:rest>")
def told(rest: str = "") -> dict[str, str]:
    return {name: value for name, value in request.environ.items() if isinstance(value, str)}
