"""The stores: each keeps the newest events of every channel in a ring, and announces new ones to the hubs.

`base` is the contract, in prose: positions, order, trimming, what may be lost, and who closes what. `leases` is its
part for sources and runs, and `presence` the part for who is connected. `refusals` has the errors by which every store
refuses an event. Two stores keep the contract.

`memory` holds all in this process, for one worker. `memory_rings` has its rings and feeds, `memory_leases` its leases
and markers.

`redis` holds each ring in a stream of Redis, which all workers share. From the bottom up, it is made of:

- `faults`, which says in words what is wrong with Redis, and what an operator can do;
- `fitness`, which tells whether a Redis can keep the service's promises, and `peers`, which finds processes with other
  settings on the same rings;
- `pool`, the connections, on which every wait ends at a deadline;
- the scripts, which Redis runs as one step each, and `scripts`, which loads them. `publish.lua` stores and announces an
  event, and `publish_batch.lua` several. `read.lua` returns the events after a position, `before.lua` finds the
  position before the newest events, and `ensure.lua` creates a ring. The scripts of runs and sources end in `_run.lua`
  and `_source.lua`. `append.lua` has the functions of those that store;
- `redis_publish`, the script calls that publish, and the receipts in their replies;
- `redis_leases`, the leases and markers, and its list of the keys beside a ring.

`presence` is the contract for who is connected to each channel, which `memory_presence` and `redis_presence` (with
`presence.lua`) keep.
"""

from __future__ import annotations

from sse.stores.base import (
    PAGE,
    PAGE_BYTES,
    READ_AT_ONCE,
    RUN_BYTES,
    RUN_TTL,
    Feed,
    Notice,
    Page,
    Publication,
    Receipt,
    Receipts,
    Revocation,
    Run,
    Standing,
    Store,
)
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
    "Receipts",
    "RedisStore",
    "Revocation",
    "Run",
    "Standing",
    "Store",
    "connect",
]


def connect(
    url: str | None,
    *,
    ring: int,
    ring_ttl: int,
    run_bytes: int = RUN_BYTES,
    run_ttl: int = RUN_TTL,
    namespace: str = "sse",
    timeout: float = 5.0,
) -> Store:
    """Return the store at a URL. It connects when it is first used.

    :param url: `redis://…`, `rediss://…` or `unix://…`; None for the memory of this process.
    :param ring: events that are kept for each channel.
    :param ring_ttl: seconds that a ring outlives its last event.
    :param run_bytes: bytes that the ring of a run may hold.
    :param run_ttl: seconds that the ring of a run outlives its end.
    :param namespace: the first part of all names in Redis.
    :param timeout: seconds that one call of the store may take when Redis does not answer.
    """
    if url is None:
        return MemoryStore(ring=ring, ring_ttl=ring_ttl, run_bytes=run_bytes, run_ttl=run_ttl)
    return RedisStore(
        url,
        ring=ring,
        ring_ttl=ring_ttl,
        run_bytes=run_bytes,
        run_ttl=run_ttl,
        namespace=namespace,
        timeout=timeout,
    )
