"""Throughline: server push that gets through, for Flask.

From the bottom up:

1. `event`, `wire`, `ring`, `config` and `errors` are values and words. They do no I/O.
2. `stores` keeps the newest events of each channel, its ring, for all processes in Redis, or for one in its memory.
3. `hub` fans out in one process. Its follower hears of new events, appends them to the process's copy of each channel,
   and wakes the subscribers of the channel.
4. `access` decides who may read and publish, until when, and how often.
5. `transports` writes what a subscriber gets: a stream of blocks, or the JSON of a poll.
6. `work` runs the app's own work in the background, such as runs, whose channels end with them.
7. `service` has the store, the hub, the revocations and the work of one app in this process. `doctor` finds out what is
   broken on the way to it.
8. `web` answers requests, under any WSGI server. `server` is gunicorn's worker: its loop writes to all streams, so that
   none holds a greenlet.
9. `extension` is the front for Flask apps, `publisher` the front for processes without Flask, `cli` has the commands
   `flask sse …`, and `worker` is gunicorn's way in. `compat` has other packages' names over `extension`.

Start with `extension`: follow `SSE.publish` down into the store, and from the hub up again to a stream.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sse.errors import (
        Busy,
        ConfigError,
        Ended,
        IdempotencyConflict,
        InvalidEvent,
        NotFound,
        RunFailed,
        RunRefused,
        SSEError,
        Stopped,
        StoreUnavailable,
        TooLarge,
        Unavailable,
    )
    from sse.extension import SSE, Event
    from sse.publisher import Publisher
    from sse.version import __version__ as __version__

__all__ = [
    "SSE",
    "Busy",
    "ConfigError",
    "Ended",
    "Event",
    "IdempotencyConflict",
    "InvalidEvent",
    "NotFound",
    "Publisher",
    "RunFailed",
    "RunRefused",
    "SSEError",
    "Stopped",
    "StoreUnavailable",
    "TooLarge",
    "Unavailable",
]
_HOMES = {
    "SSE": "sse.extension",
    "Event": "sse.extension",
    "Publisher": "sse.publisher",
    "__version__": "sse.version",
}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use: `sse.worker` needs gevent to patch the standard library before that."""
    if name not in __all__ and name not in _HOMES:
        raise AttributeError(f"module 'sse' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES.get(name, "sse.errors")), name)
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_HOMES})
