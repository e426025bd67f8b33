"""The inspected service, which also tells what its server makes of a request: `/told`, under any path."""

from __future__ import annotations

from flask import request

from tests.live.apps.inspected import application

__all__ = ["application"]


@application.get("/told")
@application.get("/told/<path:rest>")
def told(rest: str = "") -> dict[str, str]:
    return {name: value for name, value in request.environ.items() if isinstance(value, str)}
