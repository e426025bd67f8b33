"""A check of whether a Redis can keep the promises of this service.

`questions` are commands that the store sends. `judge` finds in the replies why this Redis cannot be used, and
`drawback` finds what is wrong with a Redis that can.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import NoPermissionError, NoScriptError, RedisError, ResponseError

from sse.errors import StoreUnavailable
from sse.stores import faults

_OLDEST_MAJOR: Final = 7
_UNKNOWN: Final = "unknown command"


def questions(key: str, announcements: str) -> list[tuple[Any, ...]]:
    """Return commands that show what a Redis is, and whether its user may use all that the store needs.

    They leave nothing behind: no key stays, and the pub/sub channel has no listeners.

    :param key: a key that nobody writes.
    :param announcements: a pub/sub channel without listeners.
    """
    return [
        ("INFO",),
        ("XREVRANGE", key, "+", "-", "COUNT", 1),
        ("XRANGE", key, "-", "+", "COUNT", 1),
        ("XADD", key, "NOMKSTREAM", "*", "d", ""),
        ("EXPIRE", key, 1, "GT"),
        ("EXISTS", f"{key}:run"),
        ("HMGET", f"{key}:run", "token"),
        ("HSET", f"{key}:run", "token", ""),
        ("DEL", key, f"{key}:run"),
        ("ZADD", f"{key}:workers", "XX", 1, ""),
        ("ZCARD", f"{key}:workers"),
        ("ZREM", f"{key}:workers", ""),
        ("ZREMRANGEBYSCORE", f"{key}:workers", 1, 1),
        ("GET", f"{key}:once:"),
        ("SET", f"{key}:once:", "", "XX"),
        ("PUBLISH", announcements, ""),
        ("EVALSHA", "0" * 40, 1, key),
        ("EVAL", "return 1", 1, key),
    ]


def judge(replies: Sequence[Any]) -> StoreUnavailable | None:
    """Return why a Redis with these replies to the `questions` cannot be used; None if it can."""
    info = _info(replies[0])
    mode = info.get("redis_mode")
    if mode == "sentinel":
        return StoreUnavailable(
            "this is a Redis Sentinel, which keeps no data", "have SSE_REDIS_URL name the primary that it watches"
        )
    if mode == "cluster" or info.get("cluster_enabled") == "1":
        return StoreUnavailable(*faults.CLUSTER)
    refused = [reply for reply in replies if isinstance(reply, NoPermissionError)]
    if refused:
        texts = "; ".join(sorted({faults.error_text(reply) for reply in refused}))
        return StoreUnavailable(f"Redis refuses this user: {texts}", "grant them with ACL SETUSER")
    unknown = [reply for reply in replies if isinstance(reply, ResponseError) and str(reply).startswith(_UNKNOWN)]
    if unknown:
        return faults.refusal(unknown[0], "a command that is needed")
    if isinstance(replies[0], RedisError):
        return faults.refusal(replies[0], "to tell what it is", "see Redis's log")
    version = info.get("redis_version", "of an unknown version")  # Valkey gives the version of the Redis that it equals
    if not (major := re.match("[0-9]{1,9}", version)) or int(major[0]) < _OLDEST_MAJOR:
        return StoreUnavailable(f"Redis is {version}", "use 7.0 or newer")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        return StoreUnavailable(
            f"Redis has maxmemory-policy {policy}, which may evict rings", "set maxmemory-policy noeviction"
        )
    return None


def drawback(replies: Sequence[Any]) -> StoreUnavailable | None:
    """Return what is wrong with a Redis that can be used all the same, at least for reading; None if nothing is."""
    info = _info(replies[0])
    if info.get("role") == "slave" and info.get("slave_read_only", "1") == "1":
        primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        return StoreUnavailable(
            f"Redis is a replica of {primary}, so nothing can be published", "have SSE_REDIS_URL name the primary"
        )
    refused = [reply for reply in replies if isinstance(reply, ResponseError) and not isinstance(reply, NoScriptError)]
    return faults.refusal(refused[0], "to store", "see Redis's log") if refused else None


def _info(reply: Any) -> dict[str, str]:
    if not isinstance(reply, bytes):
        return {}
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value for name, _, value in lines}
