"""Says whether this process is ready for new clients, for the probe of a load balancer.

| code           | status | when                                                                         |
|----------------|--------|------------------------------------------------------------------------------|
| `drain`        | 503    | this process is ending                                                       |
| `files`        | 503    | fewer than 8 more files can be opened, so connections will soon be refused   |
| `memory_store` | 503    | several processes serve the app, and each would see its own events only      |
| `store`        | 503    | the store has never answered this process                                    |
| `store`        | 200    | the store has answered before, and does not answer now                       |
| `full`         | 200    | all seats are taken: publishing still works, and streams are told `busy`     |

A store that goes away fails for all processes at the same time. If they were unready then, a load balancer would have
nobody left, and could not even pass on the answer `busy`, after which clients come back. The same holds for `full`. In
a drain and after a fault of this process alone, others are there for its clients.

The answer costs some 20 microseconds: it asks no store, and opens no file for long.
"""

from __future__ import annotations

import math
import os
from typing import Final, NamedTuple

from sse.service import Service
from sse.web.answers import Answer, json

_SPARE_FILES: Final = 8


class Reason(NamedTuple):
    """A reason why new clients would be served badly. If it `is_fatal`, they are to go elsewhere."""

    code: str
    message: str
    is_fatal: bool = True


def readiness(service: Service, *, is_multiprocess: bool) -> Answer:
    """Return the answer to `/readyz`: 200 or 503, and `{"ready": …, "reasons": [{"code": …, "message": …}]}`.

    It starts the hub, so that the store is reached even if no client has come yet.

    :param is_multiprocess: True if several processes serve the app.
    """
    reasons = _reasons(service, is_multiprocess=is_multiprocess)
    is_ready = not any(reason.is_fatal for reason in reasons)
    told = [{"code": reason.code, "message": reason.message} for reason in reasons]
    return json({"ready": is_ready, "reasons": told}, 200 if is_ready else 503)


def _reasons(service: Service, *, is_multiprocess: bool) -> list[Reason]:
    if service.is_ending:  # then nothing new is begun
        return [Reason("drain", "this worker is ending")]
    reasons = []
    if not _has_files():
        reasons.append(Reason("files", f"fewer than {_SPARE_FILES} more files can be opened: raise LimitNOFILE"))
    if not service.shared:
        if is_multiprocess:
            reasons.append(Reason("memory_store", "several processes need Redis: set SSE_REDIS_URL, or run one"))
    else:
        service.hub.start()
        if not service.hub.was_reached:
            reasons.append(Reason("store", "the store has not been reached yet; the log says why"))
        elif service.hub.answering_since == math.inf:
            reasons.append(Reason("store", "the store is away; open streams wait for it", is_fatal=False))
    if service.is_full:
        reasons.append(Reason("full", "all seats of this worker are taken", is_fatal=False))
    return reasons


def _has_files() -> bool:
    """Return whether this process can open some more files. That is tried, because limits and counts may mislead."""
    opened: list[int] = []
    try:
        spare = os.open(os.devnull, os.O_RDONLY)
        opened.append(spare)
        opened.extend(os.dup(spare) for _ in range(_SPARE_FILES - 1))
    except OSError:  # EMFILE, or ENFILE for the whole system
        return False
    finally:
        for fd in opened:
            os.close(fd)
    return True
