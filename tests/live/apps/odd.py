"""The service in an app whose views are odd: one says more than it gives, one reads nothing of what it is sent."""

from __future__ import annotations

from flask import Response

from tests.live.apps.inspected import application

__all__ = ["application"]


@application.get("/short")
def short() -> Response:
    return Response(iter([b"only so much"]), headers={"Content-Length": "100"})


@application.post("/ignore")
def ignore() -> str:
    return "ignored"
