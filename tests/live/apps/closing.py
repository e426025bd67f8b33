"""The inspected service, which `/close` closes."""

from __future__ import annotations

from tests.live.apps.inspected import application

__all__ = ["application"]


@application.get("/close")
def close() -> str:
    application.extensions["sse"].close()
    return "closed"
