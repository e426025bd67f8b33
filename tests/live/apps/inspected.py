"""The service, with a route `/inspect` that shows what its worker holds."""

from __future__ import annotations

import gc
import os
import threading

import gevent
from flask import Response, abort, request

from app import create_app

application = create_app()


@application.get("/inspect")
def inspect() -> dict[str, int]:
    if request.remote_addr != "127.0.0.1":
        abort(404)
    gc.collect()  # so that garbage does not count
    hub = application.extensions["sse"].hub
    return {
        "subscribers": hub.subscribers,
        "channels": hub.channels,
        # Not isinstance: it would wake every lazy proxy in memory.
        "greenlets": sum(issubclass(type(one), gevent.Greenlet) and not one.dead for one in gc.get_objects()),
        "threads": threading.active_count(),
        "frozen": gc.get_freeze_count() > 20_000,
        "threshold": gc.get_threshold()[0],
        "fds": len(os.listdir("/proc/self/fd")),
        **rows(),
    }


def rows() -> dict[str, int]:
    """Return how many connections our worker's rows hold, and how many bytes of requests; 0 in other workers.

    The worker is found by the greenlet that serves this request, because the collector does not list frozen objects.
    """
    served_by = [getattr(argument, "__self__", None) for argument in getattr(gevent.getcurrent(), "args", ())]
    for one in (worker._rows for worker in served_by if hasattr(worker, "_rows")):
        return {"rows": len({*one.row_of, *one.read_ahead, *one.ready, *one.waiting}), "held": one.held}
    return {"rows": 0, "held": 0}


@application.after_request
def name_worker(response: Response) -> Response:
    response.headers["X-Worker"] = str(os.getpid())
    return response
