"""The rings that all hubs share, in this process's memory or in Redis.

`base` is the contract that `memory` and `redis` keep. Redis runs each script `*.lua` as one step. `pool`, `peers`,
`fitness` and `faults` belong to `redis`: its connections, the other processes' settings, and what may be wrong with it.
"""

from __future__ import annotations

from sse.stores.base import PAGE, PAGE_BYTES, READ_AT_ONCE, Feed, Notice, Page, Publication, Receipt, Revocation, Store
from sse.stores.memory import MemoryStore
from sse.stores.redis import RedisStore

__all__ = [
    "PAGE",
    "PAGE_BYTES",
    "READ_AT_ONCE",
    "Feed",
    "MemoryStore",
    "Notice",
    "Page",
    "Publication",
    "Receipt",
    "RedisStore",
    "Revocation",
    "Store",
    "connect",
]


def connect(url: str | None, *, ring: int, ring_ttl: int, namespace: str = "sse", timeout: float = 5.0) -> Store:
    """The store behind `url`: `redis://`, `rediss://` or `unix://`; None for this process's own memory.

    Nothing is connected yet. `ring` is the number of events kept for each channel, `ring_ttl` the seconds that a ring
    outlives its last event, `timeout` the seconds that one call of the store may take when Redis does not answer.
    """
    if url is None:
        return MemoryStore(ring=ring, ring_ttl=ring_ttl)
    return RedisStore(url, ring=ring, ring_ttl=ring_ttl, namespace=namespace, timeout=timeout)
