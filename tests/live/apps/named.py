"""The inspected app, whose fast lane names the worker, too. Elsewhere only the hook of the app does."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sse.web.lane import Reply
from tests.live.apps.inspected import application

__all__ = ["application"]


def naming(answer: Callable[..., Any]) -> Callable[..., Any]:
    def named(*args: Any) -> Any:
        reply = answer(*args)
        if isinstance(reply, Reply):
            return reply._replace(headers=(*reply.headers, ("X-Worker", str(os.getpid()))))
        return reply

    return named


lane = application.extensions["sse.lane"]
for method in ("reply", "prepare", "published"):
    setattr(lane, method, naming(getattr(lane, method)))
