"""The inspected service, which closes itself at a request to `/close`."""

from __future__ import annotations

from tests.live.apps.inspected import application

__all__ = ["application"]


@application.get("/close")
def close() -> str:
    application.extensions["sse"].close()
    return "closed"
